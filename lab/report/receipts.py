"""What left the parties and what was opened, grouped by what it was for, and explained."""

from __future__ import annotations

from collections import Counter, defaultdict

from lab.report.style import Result

#: What a statistic is for, and what it adds up; the order is that of a run.
EXPLANATIONS: dict[str, tuple[str, str]] = {
    "magnitudes": ("agreeing on columns", "which power of 256 its sums reach, to size the grid"),
    "moments": ("agreeing on columns", "count, sum and sum of squares of each number"),
    "level_counts": ("agreeing on columns", "rows and persons at each level of a category"),
    "level_parties": ("agreeing on columns", "whether it has persons enough of a level"),
    "histogram": ("agreeing on columns", "rows by interval of each number"),
    "trees_bins": ("agreeing on columns", "rows between candidate cuts of each number"),
    "trees_persons": ("agreeing on columns", "persons in each bin of a feature"),
    "totals": ("agreeing on columns", "rows, weight, exposure, target and its square"),
    "profile": ("profiles of providers", "claims and persons by provider and period"),
    "glm_start": ("fitting the model", "totals, and persons with each pair of columns"),
    "glm_step": (
        "fitting the model",
        "curvature, score and deviance at the coefficients of a step",
    ),
    "glm_theta": ("fitting the model", "the slope of the likelihood by theta"),
    "glm_held_out": ("fitting the model", "the deviance of rows that judge penalties"),
    "glm_likelihood": ("fitting the model", "the log-likelihood of the fit"),
    "network_update": ("fitting the model", "the weighted change of the network's weights"),
    "trees_level": ("fitting the model", "derivatives of the loss by bin, node by node"),
    "trees_leaves": ("fitting the model", "persons at each leaf"),
    "score_fit": ("scoring", "deviance, actual and expected, with resamples"),
    "score_lorenz": ("scoring", "exposure, actual and expected by bin of the predicted rate"),
    "score_levels": ("scoring", "exposure, actual and expected by level of a feature"),
    "explain_partial": ("explaining", "expected, with a feature set to one value after the other"),
    "explain_shuffled": ("explaining", "deviance where a feature is shuffled, with resamples"),
    "explain_intervals": ("explaining", "persons by interval of a feature"),
    "explain_local": ("explaining", "by how much expected changes across intervals of a feature"),
    "explain_grid": ("explaining", "expected, with two features set to values, with resamples"),
    "explain_excess": ("explaining", "how far two features together are from both apart"),
    "detection_rank": ("scoring", "claims, frauds and amounts by bin of the predicted probability"),
    "detection_groups": ("scoring", "claims and frauds, flagged and not, by group"),
    "cells": ("questions", "sums by cell of a question"),
    "pair_kinds": ("questions", "which kinds of rows a joined side has, and their cells"),
    "pair_cells": ("questions", "persons of two kinds together, and amounts by cell"),
    "violations": ("questions", "a veto on cells that would tell of few"),
    "drift": ("questions", "how far an amount is from being one person's"),
    "part of a decryption": ("opening totals", "its part of opening a total, with a proof"),
    "keys and shares of masks": ("opening totals", "fresh public keys and sealed shares"),
}
#: Where ``rows`` is 0 though sums of rows left, the party does not tell how many.
NOT_TOLD = "not told"
OTHER = ("other", "")


def left_by_statistic(result: Result) -> list[tuple[str, ...]]:
    """Rows for the page: purpose, what it adds up, statistic, hidden by, parties, messages, values,
    bytes and rows behind."""
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for line in result["receipt"]:
        groups[line["statistic"], line["hiding"]].append(line)
    order = {name: k for k, name in enumerate(EXPLANATIONS)}
    table = []
    for (name, hiding), lines in sorted(
        groups.items(), key=lambda group: (order.get(group[0][0], len(order)), group[0])
    ):
        purpose, what = EXPLANATIONS.get(name, OTHER)
        total = _total(lines)
        table.append(
            (
                purpose,
                what,
                name,
                "NOTHING (clear)" if hiding == "clear" else hiding,
                *(f"{total[key]:,}" for key in ("messages", "values", "bytes")),
                _rows(lines),
            )
        )
    return table


def left_by_party(result: Result) -> list[tuple[str, ...]]:
    """Rows for the page: party, messages, values, bytes, most rows behind a sum."""
    groups: dict[str, list[Result]] = defaultdict(list)
    for line in result["receipt"]:
        groups[line["party"]].append(line)
    return [
        (
            name,
            *(f"{_total(lines)[key]:,}" for key in ("messages", "values", "bytes")),
            _rows(lines),
        )
        for name, lines in groups.items()
    ]


def opened(result: Result) -> list[tuple[str, ...]]:
    """Rows for the page: purpose, totals of what, their statistic, how many numbers made of them
    were opened, fewest persons behind a cell."""
    order = {name: k for k, name in enumerate(EXPLANATIONS)}
    lines = sorted(result["opened"], key=lambda line: order.get(line["statistic"], len(order)))
    return [
        (
            *EXPLANATIONS.get(line["statistic"], OTHER),
            line["statistic"],
            f"{line['numbers']:,}",
            "all rows" if line["fewest_persons"] is None else f"{line['fewest_persons']:,}",
        )
        for line in lines
    ]


def _total(lines: list[Result]) -> Counter[str]:
    total: Counter[str] = Counter()
    for line in lines:
        total.update({key: line[key] for key in ("messages", "values", "bytes")})
    return total


def _rows(lines: list[Result]) -> str:
    """Rows behind a party's sum, from the party with fewest to the one with most."""
    own = [
        line for line in lines if EXPLANATIONS.get(line["statistic"], OTHER)[0] != "opening totals"
    ]
    if not own:
        return "–"
    by_party: dict[str, int] = {}
    for line in own:
        by_party[line["party"]] = max(by_party.get(line["party"], 0), line["rows"])
    rows = [n for n in by_party.values() if n]
    if len(rows) < len(by_party):
        return NOT_TOLD if not rows else f"{max(rows):,}, {NOT_TOLD} by {len(by_party) - len(rows)}"
    low, high = min(rows), max(rows)
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"
