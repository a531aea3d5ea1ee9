"""The figure of a sweep, drawn from its ``result.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lab.report.figures import drawn, literal
from lab.report.style import COLOURS, LINE, MARKS, NAMES, Result, resize
from lab.report.tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How far the lines of two arms stand apart, and those of two settings.
APART, HIGH = 0.16, 0.55


def spread(result: Result) -> str:
    """Each arm's mean over seeds with its 95 % interval, a group of lines for each settings: SVG."""
    svg = drawn(literal(result), "Scores over seeds", _means)
    return svg.replace("<svg ", '<svg style="background: #fff" ', 1)


def _means(result: Result, axes: Axes) -> str:
    rows = [row for row in result["table"] if row["arm"] in COLOURS]
    settings = list(dict.fromkeys(row["settings"] for row in rows))
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    resize(axes, 6.2, 1.2 + HIGH * len(settings))
    for place, arm in enumerate(arms):
        own = [row for row in rows if row["arm"] == arm]
        lines = [settings.index(row["settings"]) + APART * place for row in own]
        means = [row["mean"] for row in own]
        colour = COLOURS[arm]
        axes.scatter(means, lines, s=34, marker=MARKS[arm], label=arm, color=colour, zorder=3)
        for row, line in zip(own, lines, strict=True):
            if row["low"] is not None and row["low"] == row["low"]:
                axes.plot([row["low"], row["high"]], [line, line], color=colour, lw=1)
    middle = APART * (len(arms) - 1) / 2
    names = [each or "as it stands" for each in settings]
    axes.set_yticks([k + middle for k in range(len(settings))], names)
    axes.set_ylim(len(settings) - 1 + 2 * middle + APART, -APART)
    for line in range(1, len(settings)):
        axes.axhline(line - (1 - 2 * middle) / 2, color=LINE, lw=1)
    axes.set_xlabel(f"{NAMES[result['headline']]}, mean over seeds, 95 % interval")
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=5, columnspacing=1)
    return "; ".join(f"{r['settings']} {r['arm']} {number(r['mean'], 4)}".strip() for r in rows)
