"""Figures of the model itself: how it was found, its coefficients, the features it goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lab.report.style import COLOURS, INK, PALE, Result, resize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Lines of a figure that lists coefficients, levels or features.
MOST_LINES = 40
#: Features whose curves are drawn.
MOST_CURVES = 6
#: Partial dependence, and accumulated local effects beside it.
STYLES: tuple[dict[str, Any], ...] = (
    {"marker": "o", "lw": 1.4},
    {"marker": "D", "lw": 1.2, "ls": (0, (3, 2))},
)


def convergence(result: Result, axes: Axes) -> str:
    """Deviance or loss of the whole market's models after each step or round."""
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
    return "; ".join(
        f"{arm}, {part}: {len(points)} steps, from {points[0][1]:.6g} to {points[-1][1]:.6g}"
        for (arm, part, _), points in groups.items()
    )


def coefficients(result: Result, axes: Axes) -> str:
    """Estimates of the shared GLM with their intervals; those of a spline say nothing one by one."""
    rows = shared_coefficients(result)
    rows = [r for r in rows if r["name"] != "intercept" and "[spline" not in r["name"]]
    rows = rows[:MOST_LINES][::-1]
    if not rows:
        return ""
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
    return "; ".join(
        f"{row['name']} {row['estimate']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
        for row in rows[::-1]
    )


def shared_coefficients(result: Result) -> list[dict[str, Any]]:
    """Coefficients of the federated (else pooled) model; of the frequency where there are two."""
    for arm in ("federated", "pooled"):
        entry = result["arms"].get(arm, {})
        fit = entry.get("fit") or entry.get("parts", {}).get("frequency", {}).get("fit")
        if fit:
            return list(fit["coefficients"])
    return []


def importance(result: Result, axes: Axes) -> str:
    """By how much the shared model goes by each feature, as shares of all of it; of joined sides, whose
    column it is."""
    rows = [row for row in shared_importance(result) if row["share"] > 0][: MOST_LINES // 2][::-1]
    if len(rows) < 2:
        return ""
    resize(axes, 5.2, 1.0 + 0.21 * len(rows))
    at_fund = set(result["data"].get("fund_columns", []))
    arms = [
        "fund" if r["feature"] in at_fund else "insurer" if at_fund else "federated" for r in rows
    ]
    for arm in dict.fromkeys(arms):
        at = [y for y, own in enumerate(arms) if own == arm]
        shares = [rows[y]["share"] for y in at]
        axes.barh(at, shares, height=0.62, color=COLOURS[arm], label=f"columns of the {arm}")
    if at_fund:
        axes.legend(loc="lower right")
    axes.set_yticks(range(len(rows)), [row["feature"] for row in rows])
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.set_xlabel("share of the importance of all features")
    return "; ".join(f"{row['feature']} {100 * row['share']:.1f} %" for row in rows[::-1])


def explained(result: Result) -> list[dict[str, Any]]:
    """Features of the federated model as its sums explain them, the one that matters most first."""
    rows = (result["curves"].get("federated") or {}).get("explained") or []
    return sorted(rows, key=lambda row: -row["importance"][0])


def shuffling(result: Result, axes: Axes) -> str:
    """The deviance explained that is lost where a feature is shuffled."""
    rows = explained(result)[: MOST_LINES // 2][::-1]
    if not rows:
        return ""
    resize(axes, 5.2, 1.0 + 0.21 * len(rows))
    for y, row in enumerate(rows):
        lost, low, high = row["importance"]
        if low is not None:
            axes.plot([low, high], [y, y], color=COLOURS["federated"], lw=1.4)
        axes.scatter([lost], [y], color=COLOURS["federated"], s=14, zorder=3)
    axes.axvline(0, color=PALE, lw=0.8)
    axes.set_yticks(range(len(rows)), [row["feature"] for row in rows])
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.set_xlabel("deviance explained that is lost, 95 % interval")
    return "; ".join(f"{row['feature']} {100 * row['importance'][0]:.2f} %" for row in rows[::-1])


def dependence(result: Result, axes: Axes) -> str:
    """The mean predicted rate with a feature at each of its values, of those that matter most; beside it
    its accumulated local effects where they were asked for."""
    rows = explained(result)[:MOST_CURVES]
    if not rows:
        return ""
    resize(axes, 5.2, 1.2 * len(rows) + 0.4)
    axes.set_axis_off()
    rates = [rate for row in rows for curve in _curves(row) for rate in curve["rates"]]
    low, high = min(0.0, *rates), max(rates)
    for k, row in enumerate(rows):
        own = axes.inset_axes((0.0, 1 - (k + 0.78) / len(rows), 1.0, 0.6 / len(rows)))
        _draw_curves(row, own)
        own.set_title(row["feature"], loc="left", fontsize="small")
        own.set_ylim(1.1 * low, 1.1 * high)
        if k == 0 and any("local" in row for row in rows):
            own.legend(
                *_key(), loc="lower right", bbox_to_anchor=(1.0, 0.95), ncols=2, fontsize="small"
            )
    words = [f"{row['feature']} {_words(_curves(row))}" for row in rows]
    return "; ".join(words)


def _curves(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Partial dependence, and accumulated local effects where they are there."""
    return [row, *([row["local"]] if "local" in row else [])]


def _words(curves: list[dict[str, Any]]) -> str:
    ends = [f"from {min(c['rates']):.4g} to {max(c['rates']):.4g}" for c in curves]
    return ", where rows have it ".join(ends)


def _draw_curves(row: dict[str, Any], axes: Axes) -> None:
    named = any(isinstance(value, str) for value in row["values"])
    for curve, colour, style in zip(
        _curves(row), (COLOURS["federated"], INK), STYLES, strict=False
    ):
        x = [row["values"].index(v) for v in curve["values"]] if named else curve["values"]
        style = {**style, "lw": 0} if named else style
        axes.plot(x, curve["rates"], ms=3, color=colour, **style)
    if named:
        axes.set_xticks(range(len(row["values"])), row["values"])


def _key() -> tuple[list[Any], list[str]]:
    """What the two curves are."""
    from matplotlib.lines import Line2D

    colours = (COLOURS["federated"], INK)
    lines = [Line2D([], [], ms=3, color=c, **s) for c, s in zip(colours, STYLES, strict=True)]
    return lines, ["in all rows", "where rows have it"]


def interactions(result: Result, axes: Axes) -> str:
    """H² of pairs of features, the greatest first."""
    rows = (result["curves"].get("federated") or {}).get("pairs") or []
    rows = [row for row in rows if row["interaction"][0] is not None]
    rows = sorted(rows, key=lambda row: row["interaction"][0])[-MOST_LINES:]
    if not rows:
        return ""
    resize(axes, 5.2, 1.0 + 0.21 * len(rows))
    names = [" and ".join(row["features"]) for row in rows]
    for y, row in enumerate(rows):
        share, low, high = row["interaction"]
        if low is not None:
            axes.plot([low, high], [y, y], color=COLOURS["federated"], lw=1.4)
        axes.scatter([share], [y], color=COLOURS["federated"], s=14, zorder=3)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    axes.set_xlabel("share of the pair's effect that is interaction, 95 % interval")
    shares = [f"{100 * row['interaction'][0]:.2f} %" for row in rows]
    return "; ".join(f"{n} {s}" for n, s in zip(names[::-1], shares[::-1], strict=True))


def shared_importance(result: Result) -> list[dict[str, Any]]:
    """Features of the federated (else pooled) model with their shares, the first goes first; of the
    frequency where there are two models."""
    for arm in ("federated", "pooled"):
        entry = result["arms"].get(arm, {})
        sizes = entry.get("importance") or entry.get("parts", {}).get("frequency", {}).get(
            "importance"
        )
        if sizes and (total := sum(sizes.values())):
            rows = [{"feature": name, "share": size / total} for name, size in sizes.items()]
            return sorted(rows, key=lambda row: -row["share"])
    return []
