"""Figures of a fraud detector for the report, drawn from ``result.json`` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lab.report.style import COLOURS, LINE, PALE, Result, resize, units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.typing import LineStyleType as LineStyle

#: Ratios below it are drawn at it.
LEAST_RATIO = 0.1
#: The four-fifths rule's bounds on a ratio (29 CFR 1607.4 D), as something to look at.
LOOK_AT = 0.8, 1.25


def _arms(result: Result) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each arm with the scores of its detector on the whole market."""
    for arm, curves in result["curves"].items():
        if curves and curves["detection"]:
            yield arm, curves["detection"]


def _shared(result: Result) -> dict[str, Any] | None:
    """The scores of the federated detector, else those of the last arm's."""
    arms = dict(_arms(result))
    return arms.get("federated") or next(iter(reversed(arms.values())), None)


def _style(arm: str) -> LineStyle:
    return (0, (2, 3)) if arm == "pooled" else "-"


def precision_recall(result: Result, axes: Axes) -> str:
    """Steps, since lines between the points promise too much."""
    for arm, detection in _arms(result):
        value = result["arms"][arm]["scores"]["all"]["average_precision"]
        axes.step(
            [0.0, *detection["recall"]],
            [detection["precision"][0], *detection["precision"]],
            where="pre",
            lw=1.5,
            ls=_style(arm),
            color=COLOURS[arm],
            label=f"{arm}, {value:.3f}",
        )
    chance = max(
        (result["arms"][a]["scores"]["all"]["fraud_share"] for a, _ in _arms(result)), default=0
    )
    axes.axhline(chance, color=PALE, lw=0.8, label=f"chance, {chance:.3f}")
    axes.set(xlabel="recall: share of frauds found", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper right")
    scores = ((arm, result["arms"][arm]["scores"]["all"]) for arm, _ in _arms(result))
    words = (f"{arm} {s['average_precision']:.3f}" for arm, s in scores)
    return ", ".join([*words, f"chance {chance:.3f}"]) if any(_arms(result)) else ""


def lift(result: Result, axes: Axes) -> str:
    """Lift over the share of claims investigated."""
    budget = result["experiment"]["detection"]["budget"]
    for arm, detection in _arms(result):
        axes.plot(
            detection["share"],
            detection["lift"],
            lw=1.5,
            ls=_style(arm),
            color=COLOURS[arm],
            label=arm,
        )
    axes.axvline(budget, color=PALE, lw=0.8)
    axes.annotate(
        f" budget {budget:.1%}",
        (budget, 1),
        xycoords=("data", "axes fraction"),
        va="top",
        color=PALE,
        fontsize=8,
    )
    axes.set(
        xscale="log", yscale="log", xlabel=f"share of {units(result)} investigated", ylabel="lift"
    )
    axes.set_xlim(1e-4, 1)
    _plain_ticks(axes.xaxis, _percent)
    _plain_ticks(axes.yaxis, lambda value: f"{value:,.6g}")
    axes.legend(loc="lower left")
    lifts = {arm: result["arms"][arm]["scores"]["all"]["lift"] for arm, _ in _arms(result)}
    return f"At the budget of {_percent(budget)}: " * bool(lifts) + ", ".join(
        f"{arm} {value:.1f}" for arm, value in lifts.items() if value is not None
    )


def _percent(value: float) -> str:
    return f"{100 * value:.6g} %"


def _plain_ticks(axis: Axis, text: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5, in plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    decades = high / low if low > 0 else 1e9
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 300 else (1.0,)))
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _labels(result: Result) -> tuple[str, str]:
    """The column that the detector was trained on, and the one that it is judged by."""
    target = result["experiment"]["data"]["target"]
    return target, result["experiment"]["detection"]["truth"] or target


def calibration_text(result: Result) -> str:
    """What the figure of calibration shows, with the label that the detector was trained on."""
    target, truth = _labels(result)
    text = f"Predicted share of {target}, which the federated detector was trained on, and actual share of {truth} in tenths of the ranking."
    if target != truth:
        text += " Two labels: the gap between them is not the model's error alone."
    return text


def calibration(result: Result, axes: Axes) -> str:
    """Frauds and expected frauds in tenths of the ranking."""
    detection = _shared(result)
    if detection is None:
        return ""
    tenths = [t["tenth"] for t in detection["tenths"]]
    target, truth = _labels(result)
    rates = {}
    for key, mark, colour, label in (
        ("expected", "-", "federated", f"predicted {target}"),
        ("fraud", "o", "alone", f"actual {truth}"),
    ):
        rates[label] = [t[key] / t["rows"] if t["rows"] else 0.0 for t in detection["tenths"]]
        axes.plot(tenths, rates[label], mark, color=COLOURS[colour], ms=5, lw=1.6, label=label)
    axes.set(
        yscale="log",
        xticks=tenths,
        xlabel=f"tenth of {units(result)}, the most suspicious first",
        ylabel=f"share of {units(result)}",
    )
    _plain_ticks(axes.yaxis, _percent)
    axes.legend(loc="upper right")
    return "; ".join(
        f"{label}: {_percent(round(r[0], 4))} in the first tenth, {_percent(round(r[-1], 4))} in the last"
        for label, r in rates.items()
    )


def typologies(result: Result, axes: Axes) -> str:
    """Recall at the budget of each kind of fraud."""
    arms = dict(_arms(result))
    kinds = [
        t["typology"]
        for t in next(iter(arms.values()), {}).get("typologies", [])
        if t["recall"] is not None
    ][::-1]
    if not kinds:
        return ""
    resize(axes, 5.2, 1.2 + 0.34 * len(kinds))
    height = 0.8 / len(arms)
    for k, (arm, detection) in enumerate(arms.items()):
        recall = {t["typology"]: t["recall"] or 0.0 for t in detection["typologies"]}
        y = [at + 0.4 - height * (k + 0.5) for at in range(len(kinds))]
        axes.barh(y, [recall[kind] for kind in kinds], height, color=COLOURS[arm], label=arm)
    axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axes.set(xlabel="share found at the budget", xlim=(0, 1))
    axes.grid(visible=False, axis="y")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=5, columnspacing=1)
    shared = {t["typology"]: t["recall"] or 0.0 for t in (_shared(result) or {})["typologies"]}
    return "; ".join(f"{kind.replace('_', ' ')} {shared[kind]:.2f}" for kind in kinds[::-1])


def fairness(result: Result, axes: Axes) -> str:
    """Ratio of each group's rates to those of the largest group."""
    detection = _shared(result)
    rows = [
        (f"{column} {line['group']}", line)
        for column, lines in (detection["groups"] if detection else {}).items()
        for line in lines
        if line["false_positive_rate_ratio"] is not None
    ][::-1]
    if not rows:
        return ""
    resize(axes, 5.2, 1.2 + 0.2 * len(rows))
    for rate, colour, mark in (
        ("false_positive_rate", "alone", "o"),
        ("recall", "federated", "D"),
    ):
        points = [
            (max(line[f"{rate}_ratio"], LEAST_RATIO), y)
            for y, (_, line) in enumerate(rows)
            if line[f"{rate}_ratio"] is not None
        ]
        if points:
            x, y = zip(*points, strict=True)
            label = rate.replace("_", " ")
            axes.scatter(x, y, s=24, marker=mark, color=COLOURS[colour], label=label, zorder=3)
    axes.axvspan(*LOOK_AT, color=LINE, alpha=0.35, lw=0)
    axes.axvline(1, color=PALE, lw=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis, lambda value: f"{value:.6g}")
    axes.set_xlabel("ratio to the largest group")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return "False positives beside the largest group: " + "; ".join(
        f"{name} {line['false_positive_rate_ratio']:.2f}" for name, line in rows[::-1]
    )


def joining(result: Result, axes: Axes) -> str:
    """What a party's staying away costs it and the others."""
    rows = result["joining"][::-1]
    if not rows:
        return ""
    resize(axes, 5.2, 1.3 + 0.36 * len(rows))
    for place, colour, shift in (
        ("own_rows", "federated", 0.12),
        ("others_rows", "without", -0.12),
    ):
        for y, row in enumerate(rows):
            low, high = row[f"{place}_low"], row[f"{place}_high"]
            if low is not None:
                axes.plot([low, high], [y + shift] * 2, color=COLOURS[colour], lw=1.4)
        gains = [row[f"{place}_gain"] for row in rows]
        at = [y + shift for y in range(len(rows))]
        label = "on its own rows" if place == "own_rows" else "on the others' rows"
        axes.scatter(gains, at, s=26, color=COLOURS[colour], label=label, zorder=3)
    axes.axvline(0, color=PALE, lw=0.8)
    axes.set_yticks(range(len(rows)), [row["party"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("gain when it joins")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    return "; ".join(
        f"{row['party']}: {row['own_rows_gain']:+.3f} on its own rows, "
        f"{row['others_rows_gain']:+.3f} on the others'"
        for row in rows[::-1]
    )
