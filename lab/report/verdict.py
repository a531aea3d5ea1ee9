"""What a run says of joining, in one sentence with its interval."""

from __future__ import annotations

from lab.report.style import Result, units


def verdict(result: Result) -> str:
    """Joining against each party alone, or the better of joined sides, on the whole market; empty
    where nothing was scored."""
    whole = result["arms"].get("federated", {}).get("scores", {}).get("all", {})
    value = whole.get(result["headline"])
    if value is None:
        return ""
    rows = _rows(result, whole)
    if result["data"]["in_sample"]:
        return "No rows were kept for testing, so nothing here says what joining is worth."
    other = _rival(result)
    line = _against(result, other)
    if line is None:
        return f"The federated model {_level(result, value)}, on {rows}."
    gain, low, high = line
    than = "alone" if other == "alone" else f"the {other}'s own columns"
    if low is None or high is None:
        return (
            f"{_gain(result, gain)} than {than}, on {rows}. There is no interval without resamples."
        )
    proof = "that is proved" if low > 0 or high < 0 else "that is not proved"
    interval = f"95 % interval {_signed(result, low)} to {_signed(result, high)}"
    return f"{_gain(result, gain)} than {than} ({interval}); on {rows} {proof}."


def _rival(result: Result) -> str:
    """The arm without joining: each party alone, or the better of two sides."""
    scores = {
        side: result["arms"].get(side, {}).get("scores", {}).get("all", {}).get(result["headline"])
        for side in ("insurer", "fund")
    }
    sides = {side: score for side, score in scores.items() if score is not None}
    return "alone" if not sides else max(sides, key=lambda side: sides[side])


def against_pooled(result: Result) -> str:
    """What the federation loses against all rows in one place; empty where that arm did not run."""
    line = _against(result, "pooled")
    if line is None:
        return ""
    if _signed(result, line[0]).strip("+-0.") == "":
        return "Against all rows in one place, which nobody may have, it loses nothing."
    return f"Against all rows in one place, which nobody may have: {_signed(result, line[0])}."


def _against(result: Result, arm: str) -> tuple[float, float | None, float | None] | None:
    """(federated minus the arm on the whole market, low, high)."""
    for line in result["differences"]:
        if line["against"] == arm and line["party"] == "all":
            return line["difference"], line["low"], line["high"]
    key, arms = result["headline"], result["arms"]
    ours, theirs = (arms.get(a, {}).get("scores", {}).get("all", {}) for a in ("federated", arm))
    if None in (ours.get(key), theirs.get(key)) or ours["rows"] != theirs["rows"]:
        return None  # not run, or some party has no model of its own
    return ours[key] - theirs[key], None, None


def _rows(result: Result, scores: Result) -> str:
    if not result["experiment"]["detection"]:
        return f"{scores['rows']:,} test rows"
    return f"{scores['rows']:,} test {units(result)} with {scores['frauds']:,.0f} frauds"


def _gain(result: Result, gain: float) -> str:
    if result["headline"] == "deviance_explained":
        direction = "more" if gain >= 0 else "less"
        return (
            f"Joining explains {abs(100 * gain):.2f} percentage points {direction} of the deviance"
        )
    return f"Joining gives a PR-AUC that is {abs(gain):.3f} {'higher' if gain >= 0 else 'lower'}"


def _signed(result: Result, value: float) -> str:
    return f"{100 * value:+.2f}" if result["headline"] == "deviance_explained" else f"{value:+.3f}"


def _level(result: Result, value: float) -> str:
    if result["headline"] == "deviance_explained":
        return f"explains {100 * value:.2f} % of the deviance"
    return f"has a PR-AUC of {value:.3f}"
