"""Figures of the report, drawn from ``result.json`` alone; each is an SVG in the page."""

from __future__ import annotations

import html
import io
import re
import warnings
from typing import TYPE_CHECKING, Any

from lab.report.figures_model import (
    MOST_LINES,
    coefficients,
    convergence,
    dependence,
    importance,
    interactions,
    shuffling,
)
from lab.report.style import (
    COLOURS,
    GRID,
    INK,
    LINE,
    MARKS,
    NAMES,
    PALE,
    Result,
    judged,
    resize,
    themed,
)
from lab.report.tables import name_of, number, parties
from lab.text import slug

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from lab.report.style import Draw


def figures(result: Result) -> list[dict[str, str]]:
    """Each figure: title, what it shows, svg; one that cannot be drawn says so in its place."""
    sections, result = [], literal(result)
    for title, text, draw in _detector(result) if result["experiment"]["detection"] else _RATES:
        try:
            svg = themed(drawn(result, title, draw))
            text = text.replace("test rows", judged(result))
        except Exception as error:  # whatever the drawing does, the run is kept
            text, svg = f"This figure could not be drawn ({type(error).__name__}).", ""
            sections.append({"title": title, "text": text, "svg": svg})
        if svg:
            sections.append({"title": title, "text": text, "svg": svg})
    return sections


def literal(content: Any) -> Any:
    """The result with every dollar sign as it is: matplotlib takes two for a formula."""
    match content:
        case str():
            return content.replace("$", r"\$")
        case dict():
            return {literal(k): literal(v) for k, v in content.items()}
        case list():
            return [literal(each) for each in content]
        case _:
            return content


def _detector(result: Result) -> list[tuple[str, str, Draw]]:
    """The figures of a fraud detector."""
    from lab.report import figures_detection as of

    name = NAMES[result["headline"]]
    return [
        (_JOINING, f"{name} on each party's test rows, with 95 % intervals.", _by_party),
        (
            "Who stays away",
            f"{name} of the federated model minus that of the model without the party.",
            of.joining,
        ),
        (
            "Precision and recall",
            "The whole market's test rows; the area is PR-AUC, the flat line is chance.",
            of.precision_recall,
        ),
        (
            "Lift",
            "How many times more frauds those ranked highest hold than as many picked at random.",
            of.lift,
        ),
        (
            "Found by kind of fraud",
            "At the budget; kinds with fewer than ten frauds are left out.",
            of.typologies,
        ),
        ("Calibration", of.calibration_text(result), of.calibration),
        (
            "Fairness",
            "Recall, and false positives among the honest, beside the largest group; 4/5 to 5/4 is shaded.",
            of.fairness,
        ),
        _IMPORTANCE,
        *_EXPLAINED,
        _CONVERGENCE,
        _COEFFICIENTS,
    ]


def drawn(result: Result, title: str, draw: Draw) -> str:
    """A figure as SVG that says what it shows, in the light colours; empty where there is nothing to
    draw."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": ["sans-serif"],
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "lab",
        "text.color": INK,
        "axes.edgecolor": LINE,
        "axes.labelcolor": PALE,
        "xtick.color": PALE,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": GRID,
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # text stays text: the page's fonts draw it
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        words = draw(result, axes)
        if not words:
            return ""
        out = io.StringIO()
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    svg = out.getvalue()
    head, _, rest = svg[svg.index("<svg") :].partition("<metadata>")
    return _described(head + rest.partition("</metadata>")[2], title, words)


def _described(svg: str, title: str, words: str) -> str:
    """The figure with what it is and shows, for readers who do not see it; its identifiers are its
    own, since figures of one page share them otherwise."""
    title, words = (html.escape(text.replace(r"\$", "$")) for text in (title, words))
    name = slug(title)
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    opening, _, rest = svg.partition(">")
    label = f'role="img" aria-labelledby="{name}-title {name}-words"'
    described = f'<title id="{name}-title">{title}</title><desc id="{name}-words">{words}</desc>'
    return f"{opening} {label}>{described}{rest}"


def _by_party(result: Result, axes: Axes) -> str:
    holders, score = parties(result)[::-1], result["headline"]
    if len(holders) == 1:
        return ""
    resize(axes, 5.2, 1.3 + 0.3 * len(holders))
    points: list[tuple[float, int]]
    for arm, values in result["arms"].items():
        by_line = {y: values["scores"].get(p, {}) for y, p in enumerate(holders)}
        points = [(s[score], y) for y, s in by_line.items() if s.get(score) is not None]
        if points:
            x, y = zip(*points, strict=True)
            size = 110 if arm == "pooled" else 34
            axes.scatter(x, y, s=size, color=COLOURS[arm], marker=MARKS[arm], label=arm, zorder=3)
        for line, s in by_line.items() if arm == "federated" else ():
            if s.get(f"{score}_low") is not None:
                ends = [s[f"{score}_low"], s[f"{score}_high"]]
                axes.plot(ends, [line, line], color=COLOURS[arm], lw=1)
    axes.set_yticks(range(len(holders)), [name_of(p) for p in holders])
    axes.axhline(len(holders) - 1.5, color=LINE, lw=1)
    axes.set_xlabel(NAMES[score])
    _legend_above(axes)
    return "; ".join(f"{name_of(p)}: {_arms_at(result, p, score)}" for p in holders[::-1])


def _legend_above(axes: Axes) -> None:
    """The legend on one line above the axes, however high they are."""
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=5, columnspacing=1)


def _arms_at(result: Result, party: str, score: str) -> str:
    """A party's score in each arm, in words."""
    values = {arm: v["scores"].get(party, {}).get(score) for arm, v in result["arms"].items()}
    return ", ".join(f"{arm} {number(v, 3)}" for arm, v in values.items() if v is not None)


def _in_bins(result: Result) -> dict[str, Any]:
    """The curves of each arm that was judged in bins."""
    return {arm: c for arm, c in result["curves"].items() if c and c["tenths"]}


def _lorenz(result: Result, axes: Axes) -> str:
    ginis = {arm: result["arms"][arm]["scores"]["all"]["gini"] for arm in _in_bins(result)}
    arms = {arm: c for arm, c in _in_bins(result).items() if ginis[arm] is not None}
    if not arms:
        return ""
    axes.plot([0, 1], [0, 1], color=LINE, lw=1)
    for arm, curves in arms.items():
        style = (0, (2, 3)) if arm == "pooled" else "-"
        axes.plot(
            curves["lorenz"]["exposure"],
            curves["lorenz"]["target"],
            lw=1.6,
            ls=style,
            color=COLOURS[arm],
            label=f"{arm}, Gini {ginis[arm]:.3f}",
        )
    axes.set(xlabel="share of exposure", ylabel="share of target", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")
    return "Gini index: " + ", ".join(f"{arm} {number(ginis[arm], 3)}" for arm in arms)


def _tenths(result: Result) -> pd.DataFrame:
    import pandas as pd

    arm = "federated" if result["curves"].get("federated") else next(iter(result["curves"]), "")
    curves = result["curves"].get(arm) or {}
    return pd.DataFrame(curves.get("tenths", []))


def _calibration(result: Result, axes: Axes) -> str:
    table = _tenths(result)
    if table.empty:
        return ""
    axes.plot(
        table["tenth"],
        table["expected"] / table["size"],
        color=COLOURS["federated"],
        lw=1.6,
        label="expected",
    )
    axes.scatter(
        table["tenth"],
        table["actual"] / table["size"],
        color=COLOURS["alone"],
        s=30,
        zorder=3,
        label="actual",
    )
    axes.set(
        xlabel="tenth of exposure", ylabel="rate for one unit of exposure", xticks=range(1, 11)
    )
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
    rates = (table[k] / table["size"] for k in ("actual", "expected"))
    pairs = zip(table["tenth"], *rates, strict=True)
    return "Actual and expected rate by tenth: " + "; ".join(
        f"{tenth} {actual:.4g} and {expected:.4g}" for tenth, actual, expected in pairs
    )


def _lift(result: Result, axes: Axes) -> str:
    arms = _in_bins(result)
    if not arms:
        return ""
    for k, (arm, curves) in enumerate(arms.items()):
        table = curves["tenths"]
        mean = sum(t["actual"] for t in table) / sum(t["size"] for t in table)
        width = 0.8 / len(arms)
        x = [t["tenth"] - 0.4 + width * (k + 0.5) for t in table]
        height = [t["actual"] / t["size"] / mean if t["size"] and mean else 0 for t in table]
        axes.bar(x, height, width, color=COLOURS[arm], label=arm)
    axes.axhline(1, color=PALE, lw=0.8)
    axes.set(xlabel="tenth of exposure", ylabel="actual rate / mean", xticks=range(1, 11))
    axes.legend(loc="upper left")
    return _lift_in_words(arms)


def _lift_in_words(arms: Result) -> str:
    """Rate of the lowest and the highest tenth over the mean."""
    words = []
    for arm, curves in arms.items():
        table = curves["tenths"]
        mean = sum(t["actual"] for t in table) / (sum(t["size"] for t in table) or 1)
        ends = [t["actual"] / (t["size"] * mean) if t["size"] and mean else 0.0 for t in table]
        words.append(f"{arm}: {ends[0]:.2f} in the lowest tenth, {ends[-1]:.2f} in the highest")
    return "; ".join(words)


def _levels(result: Result, axes: Axes) -> str:
    arm = "federated" if result["curves"].get("federated") else "pooled"
    by_feature = (result["curves"].get(arm) or {}).get("levels", {})
    rows: list[tuple[str, float, float]] = []
    for column, values in by_feature.items():
        total = sum(values["size"]) or 1
        for k, level in enumerate(values["levels"]):
            if values["expected"][k] > 0 and values["size"][k] / total >= 0.02:
                ratio = values["actual"][k] / values["expected"][k]
                rows.append((f"{column} {level}", ratio, values["size"][k] / total))
    rows = rows[:MOST_LINES][::-1]
    if not rows:
        return ""
    resize(axes, 5.2, 1.1 + 0.2 * len(rows))
    for y, (_, ratio, share) in enumerate(rows):
        axes.scatter([ratio], [y], s=12 + 90 * share, color=COLOURS["federated"], zorder=3)
    axes.axvline(1, color=PALE, lw=0.8)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.set_xlabel("actual / expected")
    return "; ".join(f"{name} {ratio:.2f}" for name, ratio, _ in rows[::-1])


_JOINING = "What joining is worth"
_CONVERGENCE: tuple[str, str, Draw] = (
    "Convergence",
    "The whole market's deviance at each step, or training loss after each round.",
    convergence,
)
_COEFFICIENTS: tuple[str, str, Draw] = (
    "Coefficients",
    "Estimates with 95 % intervals, in the table's own units.",
    coefficients,
)
_IMPORTANCE: tuple[str, str, Draw] = (
    "What the model goes by",
    "Of trees the gain of all cuts on a feature; of a GLM the spread of what a feature adds to the "
    "predictor, over exposure. What a model goes by need not cause anything.",
    importance,
)
_EXPLAINED: tuple[tuple[str, str, Draw], ...] = (
    (
        "What is lost without a feature",
        "Deviance explained on test rows that the federated model loses where a column is shuffled within each party.",
        shuffling,
    ),
    (
        "What a feature makes of the rate",
        "The mean predicted rate with one column set to a value in all test rows, for the features that matter most; "
        "dashed, where asked for, the effects in rows that lie there, added up. Not what would happen if the column changed.",
        dependence,
    ),
    (
        "Features that go together",
        "How much of what two features do to the rate is not the sum of what each does (H² of Friedman and Popescu), "
        "on test rows.",
        interactions,
    ),
)
#: The figures of a model of claims.
_RATES: list[tuple[str, str, Draw]] = [
    (
        _JOINING,
        "Deviance explained on each party's test rows; the first line is the whole market.",
        _by_party,
    ),
    (
        "Lorenz curve",
        "Share of the target held by the lowest-rated share of exposure. Further below the diagonal sorts better.",
        _lorenz,
    ),
    (
        "Calibration",
        "Actual and expected rate in tenths of exposure, from the lowest predicted rate up (federated).",
        _calibration,
    ),
    ("Lift", "Actual rate of each tenth over the market's mean.", _lift),
    _IMPORTANCE,
    *_EXPLAINED,
    _CONVERGENCE,
    _COEFFICIENTS,
    (
        "Actual over expected",
        "By feature level on the test rows (federated); the size of a mark is its exposure.",
        _levels,
    ),
]
