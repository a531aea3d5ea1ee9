"""What a model makes of its features, asked for by sums over everybody's test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

from lab.models import files as models
from lab.privacy import joining
from lab.privacy.joining import Least, by_parties
from lab.scores.explanation import Explain, Explained, columns_of, is_ordered, values_of
from lab.scores.interaction import (
    VALUES_IN_A_PAIR,
    Grid,
    Interaction,
    Pair,
    functions_of,
    replicates_of,
    share_of,
)
from lab.scores.local_effects import LocalEffects, Value
from lab.sums import Sums

#: The total of a statistic over the rows that a model is scored on.
Ask = Callable[..., Sums]


def features(
    ask: Ask, model: str, settings: Explain, resampled: Mapping[str, Any], least: Least
) -> dict[str, Explained]:
    """Each feature that ``[explain]`` names and that the model tells apart.

    resampled: what the deviance is measured in, and the resamples; least: persons in each interval.
    """
    read, explained = models.from_json(model), dict[str, Explained]()
    for column in settings.features or columns_of(read):
        values = values_of(read, column, settings.points)
        if not values:  # it never varied, and was left out
            continue
        sums = ask("explain_partial", column=column, values=values)
        rates = (sums["expected"] / sums.total("size")).tolist()
        lost = ask("explain_shuffled", column=column, **resampled)
        explained[column] = Explained(values, tuple(rates), lost)
        if settings.local and is_ordered(read, column):
            local = _local(ask, column, values, least)
            explained[column] = replace(explained[column], local=local)
    return explained


def _local(ask: Ask, column: str, values: tuple[Value, ...], least: Least) -> LocalEffects | None:
    """Effects in intervals between values; neighbours of few persons are joined before the model is
    asked about them. None where all rows with a value are of few."""
    if len(values) < 2:
        return None
    persons = by_parties(ask("explain_intervals", column=column, edges=values), least.parties)
    if persons.sum() < least.persons:
        return None
    interval = joining.in_order(persons, least.persons)
    first = [k + 1 for k, (one, other) in enumerate(pairwise(interval)) if one != other]
    edges = tuple(values[k] for k in (0, *first, len(values) - 1))
    return LocalEffects(edges, ask("explain_local", column=column, edges=edges))


def pairs(
    ask: Ask,
    model: str,
    settings: Explain,
    explained: Mapping[str, Explained],
    fit: Sums,
    resampled: Mapping[str, Any],
) -> tuple[Interaction, ...]:
    """H² of the pairs that are listed, or of all pairs of the features that matter most. fit: of the same
    rows, against which importance is measured."""
    read, found = models.from_json(model), []
    if isinstance(settings.pairs, int):
        by_importance = sorted(explained, key=lambda c: -explained[c].importance(fit)[0])
        chosen = tuple(combinations(by_importance[: settings.pairs], 2))
    else:
        chosen = settings.listed_pairs
    for pair in chosen:
        one, other = (
            values_of(read, column, min(settings.points, VALUES_IN_A_PAIR)) for column in pair
        )
        if one and other:
            found.append(_interaction(ask, pair, (one, other), resampled))
    return tuple(found)


def _interaction(ask: Ask, pair: Pair, grid: Grid, resampled: Mapping[str, Any]) -> Interaction:
    """The functions on the grid are opened, then how far they are apart where the rows lie."""
    asked = {
        "columns": pair,
        "grid": grid,
        "replicates": replicates_of(grid, resampled["replicates"]),
        "seed": resampled["seed"],
    }
    joint, excess = functions_of(grid, ask("explain_grid", **asked))
    total = ask("explain_excess", {"joint": joint, "excess": excess}, **asked)
    return Interaction(pair, joint.size + excess.size, *share_of(total))
