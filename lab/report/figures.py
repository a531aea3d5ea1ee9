"""Figures of the report, drawn from ``result.json`` alone; each is an SVG in the page."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from lab.report.style import COLOURS, INK, LINE, MARKS, NAMES, PALE, Result, resize

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from lab.report.style import Draw

MOST_COEFFICIENTS = 40


def figures(result: Result) -> list[dict[str, str]]:
    """Each figure: title, what it shows, svg; one that cannot be drawn says so in its place."""
    sections, result = [], _literal(result)
    for title, text, draw in _detector(result) if result["experiment"]["detection"] else _RATES:
        try:
            svg = _figure(result, draw)
        except Exception as error:  # whatever the drawing does, the run is kept
            text, svg = f"This figure could not be drawn ({type(error).__name__}).", ""
            sections.append({"title": title, "text": text, "svg": svg})
        if svg:
            sections.append({"title": title, "text": text, "svg": svg})
    return sections


def _literal(content: Any) -> Any:
    """The result with every dollar sign as it is: matplotlib takes two for a formula."""
    match content:
        case str():
            return content.replace("$", r"\$")
        case dict():
            return {_literal(k): _literal(v) for k, v in content.items()}
        case list():
            return [_literal(each) for each in content]
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
            "The whole market's test rows; the area is PR-AUC.",
            of.precision_recall,
        ),
        (
            "Lift",
            "How many times more frauds the highest-ranked claims hold than claims picked at random.",
            of.lift,
        ),
        (
            "Found by kind of fraud",
            "At the budget; kinds with fewer than ten frauds are left out.",
            of.typologies,
        ),
        (
            "Calibration",
            "Predicted and actual share of fraud in tenths of the ranking (federated).",
            of.calibration,
        ),
        (
            "Fairness",
            "Recall, and false positives among honest claims, beside the largest group; 4/5 to 5/4 is shaded.",
            of.fairness,
        ),
        _CONVERGENCE,
        _COEFFICIENTS,
    ]


def parties(result: Result) -> list[str]:
    """The whole market, then each party whose scores are known; real parties keep theirs."""
    return ["all"] if "outlook" in result else ["all", *result["data"]["parties"]]


def _figure(result: Result, draw: Draw) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": ["sans-serif"],
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": "lab",
        "axes.edgecolor": LINE,
        "axes.labelcolor": PALE,
        "xtick.color": PALE,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#eef1f3",
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # text stays text: the page's fonts draw it
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        if not draw(result, axes):
            return ""
        out = io.StringIO()
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    svg = out.getvalue()
    head, _, rest = svg[svg.index("<svg") :].partition("<metadata>")
    return head + rest.partition("</metadata>")[2]


def _by_party(result: Result, axes: Axes) -> bool:
    holders, score = parties(result)[::-1], result["headline"]
    if len(holders) == 1:
        return False
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
    axes.set_yticks(range(len(holders)), ["whole market" if p == "all" else p for p in holders])
    axes.axhline(len(holders) - 1.5, color=LINE, lw=1)
    axes.set_xlabel(NAMES[score])
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=5, columnspacing=1)
    return True


def _in_bins(result: Result) -> dict[str, Any]:
    """The curves of each arm that was judged in bins."""
    return {arm: c for arm, c in result["curves"].items() if c and c["tenths"]}


def _lorenz(result: Result, axes: Axes) -> bool:
    arms = _in_bins(result)
    if not arms:
        return False
    axes.plot([0, 1], [0, 1], color=LINE, lw=1)
    for arm, curves in arms.items():
        gini = result["arms"][arm]["scores"]["all"]["gini"]
        style = (0, (2, 3)) if arm == "pooled" else "-"
        axes.plot(
            curves["lorenz"]["exposure"],
            curves["lorenz"]["target"],
            lw=1.6,
            ls=style,
            color=COLOURS[arm],
            label=f"{arm}, Gini {gini:.3f}",
        )
    axes.set(xlabel="share of exposure", ylabel="share of target", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")
    return True


def _tenths(result: Result) -> pd.DataFrame:
    import pandas as pd

    arm = "federated" if result["curves"].get("federated") else next(iter(result["curves"]), "")
    curves = result["curves"].get(arm) or {}
    return pd.DataFrame(curves.get("tenths", []))


def _calibration(result: Result, axes: Axes) -> bool:
    table = _tenths(result)
    if table.empty:
        return False
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
    return True


def _lift(result: Result, axes: Axes) -> bool:
    arms = _in_bins(result)
    if not arms:
        return False
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
    return True


def _convergence(result: Result, axes: Axes) -> bool:
    groups: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for line in result["convergence"]:
        value = line.get("deviance", None)
        value = line.get("loss") if value is None else value
        if line["holder"] == "all" and value is not None:
            key = (line["arm"], line["part"], line["holder"])
            groups.setdefault(key, []).append((int(line["step"]), float(value)))
    for (arm, part, _), points in groups.items():
        steps, values = zip(*points, strict=True)
        floor = min(values)
        exact = result["experiment"]["model"]["kind"] == "glm"
        gap = [max((v - floor) / abs(floor), 1e-16) if exact else v for v in values]
        style = "-" if arm == "federated" else (0, (2, 3))
        label = arm if part == "model" else f"{arm}, {part}"
        axes.plot(steps, gap, marker="o", ms=3, lw=1.4, ls=style, color=COLOURS[arm], label=label)
    if result["experiment"]["model"]["kind"] == "glm":
        axes.set_yscale("log")
        axes.set(xlabel="step", ylabel="deviance above its last value, relative")
    else:
        axes.set(xlabel="round", ylabel="training loss")
    if groups:
        axes.legend(loc="upper right")
    return bool(groups)


def _coefficients(result: Result, axes: Axes) -> bool:
    rows = shared_coefficients(result)
    rows = [row for row in rows if row["name"] != "intercept"][:MOST_COEFFICIENTS][::-1]
    if not rows:
        return False
    resize(axes, 5.2, 1.1 + 0.21 * len(rows))
    largest = max(max(abs(r["low"]), abs(r["high"])) for r in rows)
    for y, row in enumerate(rows):
        axes.plot([row["low"], row["high"]], [y, y], color=COLOURS["federated"], lw=1.4)
        axes.scatter([row["estimate"]], [y], color=COLOURS["federated"], s=14, zorder=3)
    axes.axvline(0, color=PALE, lw=0.8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.set_xlim(-1.05 * largest, 1.05 * largest)
    axes.set_xlabel("estimate and 95 % interval")
    return True


def shared_coefficients(result: Result) -> list[dict[str, Any]]:
    """Coefficients of the federated (else pooled) model; of the frequency where there are two."""
    for arm in ("federated", "pooled"):
        entry = result["arms"].get(arm, {})
        fit = entry.get("fit") or entry.get("parts", {}).get("frequency", {}).get("fit")
        if fit:
            return list(fit["coefficients"])
    return []


def _levels(result: Result, axes: Axes) -> bool:
    arm = "federated" if result["curves"].get("federated") else "pooled"
    by_feature = (result["curves"].get(arm) or {}).get("levels", {})
    rows: list[tuple[str, float, float]] = []
    for column, values in by_feature.items():
        total = sum(values["size"]) or 1
        for k, level in enumerate(values["levels"]):
            if values["expected"][k] > 0 and values["size"][k] / total >= 0.02:
                ratio = values["actual"][k] / values["expected"][k]
                rows.append((f"{column} {level}", ratio, values["size"][k] / total))
    rows = rows[:MOST_COEFFICIENTS][::-1]
    if not rows:
        return False
    resize(axes, 5.2, 1.1 + 0.2 * len(rows))
    for y, (_, ratio, share) in enumerate(rows):
        axes.scatter([ratio], [y], s=12 + 90 * share, color=COLOURS["federated"], zorder=3)
    axes.axvline(1, color=PALE, lw=0.8)
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.set_xlabel("actual / expected")
    return True


_JOINING = "What joining is worth"
_CONVERGENCE: tuple[str, str, Draw] = (
    "Convergence",
    "The whole market's deviance at each step, or training loss after each round.",
    _convergence,
)
_COEFFICIENTS: tuple[str, str, Draw] = (
    "Coefficients",
    "Estimates with 95 % intervals, in the table's own units.",
    _coefficients,
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
    _CONVERGENCE,
    _COEFFICIENTS,
    (
        "Actual over expected",
        "By feature level on the test rows (federated); the size of a mark is its exposure.",
        _levels,
    ),
]
