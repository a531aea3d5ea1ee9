"""Figures of the model itself: how it was found, its coefficients, the features it goes by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lab.report.style import COLOURS, PALE, Result, resize

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Lines of a figure that lists coefficients, levels or features.
MOST_LINES = 40


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
    """Estimates of the shared GLM with their intervals."""
    rows = shared_coefficients(result)
    rows = [row for row in rows if row["name"] != "intercept"][:MOST_LINES][::-1]
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
