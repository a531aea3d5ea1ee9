"""Bins of features that all parties agree on, with about the same number of training rows in each, from counts alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from federated.federation import ModelTotals
from federated.solvers.encoding import counted_levels, is_category
from lab.errors import ConfigurationError, ModelError
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.tree_model import MOST_BINS, Cuts
from lab.privacy.joining import Opened, by_parties, in_order
from lab.sums import Floats
from lab.tables.contracts import Contract

#: The first ladder of edges: octaves either side of 0; then every heavy step is cut into so many,
#: so many times: to five digits.
OCTAVES = 128


STEPS, TIMES = 8, 6


def bins_of(feature: Feature, contract: Contract, bins: int) -> int:
    """Bins that a feature gets at most, the one of missing values among them; where no contract lists
    its levels, as many as a number."""
    levels: tuple[str, ...] | None = None
    if is_category(feature, contract):
        levels = feature.intervals() if feature.cut else contract.columns[feature.column].levels
    return min(len(levels or range(bins)), MOST_BINS) + 1


def most_rungs(bins: int) -> int:
    """Rungs of all of a feature's ladders together, at most."""
    return (1 + TIMES) * max(2 * OCTAVES + 4, 4 * bins * (STEPS + 1))


def agree_cuts(
    federation: ModelTotals,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    rows: int,
    *,
    bins: int,
    least: int,
    monotone: Mapping[str, Literal[-1, 1]],
) -> tuple[Cuts, ...]:
    """Bins of each feature with about the same number of training rows in each, from counts alone.

    Edges are found on a ladder that is cut finer where rows are many; a value that many rows share
    gets a bin of its own. Levels are those of the contract, or announced, that have a row; where
    they are more than fit, the most frequent ones (of equally frequent ones the first), and the
    rest share the bin of missing values. Bins of fewer than ``least`` persons are joined with their
    neighbours, such levels share the bin of missing values. A feature that is the same in all rows
    is left out.
    Raises :class:`ModelError` if none is left.
    """
    _check_monotone(monotone, features, contract)
    categories = [f for f in features if is_category(f, contract)]
    cuts: dict[Feature, Cuts] = {}
    for levels, count in counted_levels(federation, task, categories, contract):
        frequent = np.sort(np.argsort(-count, kind="stable")[:MOST_BINS])
        levels_kept = tuple(levels.levels[k] for k in frequent if count[k] > 0)
        if len(levels_kept) + (count[frequent].sum() < rows) > 1:
            cuts[levels.feature] = Cuts(feature=levels.feature, levels=levels_kept)
    numbers = [f for f in features if f not in categories]
    cuts |= _cut_numbers(federation, task, numbers, contract, rows, bins, monotone)
    final = _of_enough(federation, task, tuple(cuts[f] for f in features if f in cuts), least)
    if not final:
        raise ModelError("every feature is the same in all training rows; there is nothing to cut")
    return final


def _cut_numbers(
    federation: ModelTotals,
    task: Task,
    features: list[Feature],
    contract: Contract,
    rows: int,
    bins: int,
    monotone: Mapping[str, Literal[-1, 1]],
) -> dict[Feature, Cuts]:
    """Bins of numbers, on a ladder of edges that is cut finer where rows are many."""
    terms = tuple(
        Cuts(
            feature=f,
            edges=(),
            levels=contract.columns[f.column].levels or (),
            monotone=monotone.get(f.column, 0),
        )
        for f in features
    )
    wide = 2.0 ** np.arange(-OCTAVES // 2, OCTAVES // 2 + 1)
    ladders = [np.concatenate([-wide[::-1], [0.0], wide])] * len(features)
    counts = _counted(federation, task, terms, ladders)
    for _ in range(TIMES):
        pairs = zip(ladders, counts, strict=True)
        ladders = [_finer(ladder, count, bins) for ladder, count in pairs]
        counts = _counted(federation, task, terms, ladders)
    cuts: dict[Feature, Cuts] = {}
    for term, ladder, count in zip(terms, ladders, counts, strict=True):
        edges = tuple(_edges(ladder, count, bins))
        if edges or 0 < count.sum() < rows:
            cuts[term.feature] = term.model_copy(update={"edges": edges})
    return cuts


def _of_enough(
    federation: ModelTotals, task: Task, cuts: tuple[Cuts, ...], least: int
) -> tuple[Cuts, ...]:
    """Bins with enough persons in each but that of missing values."""
    if least <= 1 or not cuts:
        return cuts
    counts = federation.sum("trees_persons", {}, task=task, cuts=cuts)
    persons = by_parties(counts, federation.least_parties)
    ends = np.cumsum([cut.bins for cut in cuts])
    final = []
    for cut, each in zip(cuts, np.split(persons, ends[:-1]), strict=True):
        if cut.edges is None:
            levels = tuple(n for n, p in zip(cut.levels, each[:-1], strict=True) if p >= least)
            one = cut.model_copy(update={"levels": levels})
            behind = each[:-1][each[:-1] >= least]
        else:
            place = in_order(each[:-1], least)
            edges = np.array(cut.edges)[np.diff(place) > 0]
            behind = np.bincount(place, each[:-1]).astype(np.float64)
            one = cut.model_copy(update={"edges": tuple(edges.tolist())})
        if one.bins - 1 + (each[-1] > 0 or one.bins < cut.bins) > 1:
            final.append(one)
            federation.opened.append(Opened.cells("trees_persons", one.bins - 1, behind))
    return tuple(final)


def _check_monotone(
    monotone: Mapping[str, int], features: tuple[Feature, ...], contract: Contract
) -> None:
    numbers = [f.column for f in features if not is_category(f, contract)]
    for name in monotone:
        if name not in numbers:
            raise ConfigurationError(
                f"model.monotone: '{name}' is not a numeric feature; there are {', '.join(numbers)}"
            )


def _counted(
    federation: ModelTotals, task: Task, terms: tuple[Cuts, ...], ladders: list[Floats]
) -> list[Floats]:
    """Rows on each rung of each feature's ladder, one more than it has edges."""
    if not ladders:
        return []
    edges = np.full((len(ladders), max(map(len, ladders))), np.inf)
    for row, ladder in zip(edges, ladders, strict=True):
        row[: len(ladder)] = ladder
    edges = np.minimum(edges, np.finfo(np.float64).max)
    counts = federation.sum("trees_bins", {"edges": edges}, task=task, cuts=terms)
    return [row[: len(ladder) + 1] for row, ladder in zip(counts["count"], ladders, strict=True)]


def _finer(ladder: Floats, count: Floats, bins: int) -> Floats:
    """The ladder with heavy rungs cut and light ones joined."""
    heavy = count.sum() / (4 * bins)
    edges, pending = [], 0.0
    for k, edge in enumerate(ladder):  # edge k ends rung k; the last rung has no end
        low = ladder[k - 1] if k else edge
        if count[k] > heavy:
            if k and pending:
                edges.append(low)
            step = np.linspace(low, edge, STEPS + 1)[1:-1] if k else np.zeros(0)
            edges += [*([low] if k else []), *step, edge]
            pending = 0.0
        elif pending + count[k] > heavy:
            edges.append(low)
            pending = count[k]
        else:
            pending += count[k]
    edges.append(ladder[-1])
    return np.unique(edges)


def _edges(ladder: Floats, count: Floats, bins: int) -> list[float]:
    """Edges of at most so many bins: heavy rungs alone, the others filled up in order."""
    full = np.flatnonzero(count)
    if len(full) <= bins:
        return [float(ladder[k]) for k in full[:-1]]
    alone = count >= count.sum() / bins
    bins_left, rows = bins - int(alone.sum()), float(count[~alone].sum())
    edges, pending = [], 0.0
    for k in range(len(ladder)):
        pending += 0.0 if alone[k] else float(count[k])
        near = pending + count[k + 1] / 2 >= rows / max(
            bins_left, 1
        )  # with the next would be further off
        if alone[k] or (pending and (near or alone[k + 1])):
            edges.append(float(ladder[k]))
            bins_left, rows, pending = bins_left - (pending > 0), rows - pending, 0.0
    return edges[: bins - 1]
