"""Gradient-boosted trees: one party's sums while they grow, and the model as a file.

Second-order boosting on histograms (Chen & Guestrin, "XGBoost", 2016, section 2.2; Ke et al.,
"LightGBM", 2017, section 2.1): to grow a tree, nothing is needed of the rows but the sums of the
loss's first and second derivatives by node, feature and bin. The derivatives are rounded to whole
numbers of a public unit before they are added, so that the sums, the cuts chosen from them and the
trees are the same to the bit however the rows are split and whether or not the sums are encrypted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from lab.errors import PeerError
from lab.models import kernels
from lab.models.glm import Response, Task
from lab.models.tree_model import LEAF, MOST_CELLS, Cuts, Owned, Tree, Trees, binned, persons_in
from lab.models.tree_rows import GRAIN, LOSS, Place, Rows, TreesRecipe
from lab.records import Strict
from lab.statistics import Arrays, Holding, Statistic
from lab.sums import COUNT, FLAG, HEADS, Floats, Limit, Sums


def in_order(frame: pd.DataFrame, cuts: tuple[Cuts, ...]) -> list[Floats]:
    """The numbers of each feature, sorted, without missing ones."""
    columns = (cut.feature.numbers(frame, cut.levels) for cut in cuts)
    return [np.sort(values[~np.isnan(values)]) for values in columns]


def counts(columns: list[Floats], *, edges: Floats, rows: int) -> Sums:
    """Rows up to each edge and above the one before, (features, edges + 1).

    edges: (features, edges), rising, filled up with the largest number. rows: how many the party
    has, which is compared with nothing: a bound of the asker's choosing would tell it.
    """
    if edges.ndim != 2 or len(edges) != len(columns):
        raise PeerError("request: edges must have one row for each feature")
    up_to = [
        np.searchsorted(column, row, side="right")
        for column, row in zip(columns, edges, strict=True)
    ]
    ends = [[len(column)] for column in columns]
    count = np.diff(np.hstack([up_to, ends]), axis=1, prepend=0).astype(np.float64)
    return Sums({"count": count}, {"count": HEADS}, rows)


class Ask(Strict):
    """A question about leaves of the tree that grows: for each the bounds of its first and second
    derivatives, in units, which follow from totals known before."""

    place: Place
    nodes: tuple[int, ...] = Field(min_length=1)
    features: tuple[int, ...] = Field(min_length=1)
    most: tuple[tuple[float, float], ...]

    def check(self, cuts: tuple[Cuts, ...], recipe: TreesRecipe) -> None:
        """Raises :class:`PeerError` for what nobody who grows trees would ask."""
        growing, last = self.place.growing, self.place.last or Tree()
        leaves = {at for at, feature in enumerate(growing.feature) if feature == LEAF}
        if max(*growing.feature, *last.feature) >= len(cuts):
            raise PeerError("request: a tree splits on a feature that was not agreed on")
        if len(set(self.nodes)) != len(self.nodes) or not leaves.issuperset(self.nodes):
            raise PeerError("request: nodes must be distinct leaves of the growing tree")
        if list(self.features) != sorted(set(self.features) & set(range(len(cuts)))):
            raise PeerError("request: features must be distinct, in order, and agreed on")
        if len(self.nodes) * sum(cuts[j].bins for j in self.features) > MOST_CELLS:
            raise PeerError(f"request: asks for more than {MOST_CELLS:,} bins at once")
        if len(self.most) != len(self.nodes) or not all(
            GRAIN <= most <= recipe.most for pair in self.most for most in pair
        ):
            raise PeerError("request: each node needs two bounds, within those of the recipe")


def level(rows: Rows, ask: Ask) -> Sums:
    """Derivatives by bin of leaves of the growing tree, and the losses where it is a lone root.

    ``gradient k`` and ``hessian k`` (bins of the features one after the other) are of the k-th
    node asked for, ``gross`` (nodes,) sums the magnitudes of its first derivatives, all in units;
    ``loss`` holds the deviance and ``size`` the number of grown and held-out rows. ``beyond`` is 1
    where a sum does not keep to its bound and was cut off at it: it travels with the sums, because
    a refusal would tell it of this party alone. Raises :class:`PeerError` for a question that does
    not fit.
    """
    ask.check(rows.cuts, rows.recipe)
    rows.follow(ask.place)
    codes, start = rows.columns(ask.features)
    slot = np.full(len(ask.place.growing.feature), LEAF, dtype=np.int64)
    slot[list(ask.nodes)] = np.arange(len(ask.nodes))
    histograms = np.zeros((len(ask.nodes), 2 * int(start[-1])), dtype=np.int64)
    gross = np.zeros(len(ask.nodes), dtype=np.int64)
    side = rows.training
    kernels.histograms(codes, side.node, slot, side.derivatives, start, histograms, gross)
    arrays: dict[str, Floats] = {"gross": np.asarray(gross * GRAIN, dtype=np.float64)}
    limits = {"gross": Limit(max(most[0] for most in ask.most), GRAIN)}
    for k, (node, most) in enumerate(zip(histograms * GRAIN, ask.most, strict=True)):
        for i, name in enumerate(("gradient", "hessian")):
            arrays[f"{name} {k}"], limits[f"{name} {k}"] = node[i::2], Limit(most[i], GRAIN)
    if len(slot) == 1:
        both = (rows.training, rows.validation)
        arrays["loss"] = np.array([s.loss for s in both]) * LOSS.resolution
        arrays["size"] = np.array([float(len(s.y)) for s in both])
        limits |= {"loss": LOSS, "size": COUNT}
    over = [name for name in arrays if np.abs(arrays[name]).max() > limits[name].bound]
    for name in over:
        bound = limits[name].bound
        arrays[name] = np.clip(arrays[name], -bound, bound)
    beyond = bool(over) or rows.training.beyond or rows.validation.beyond
    arrays["beyond"], limits["beyond"] = np.array([float(beyond)]), FLAG
    return Sums(arrays, limits, len(rows.training.y) + len(rows.validation.y))


def persons_at(rows: Rows, place: Place) -> Sums:
    """Distinct persons, within the party, at each node of the tree that was grown, of those that it
    was grown from: (nodes,).

    Raises :class:`PeerError` where the way to the tree is unknown.
    """
    rows.follow(place)
    nodes = np.where(rows.in_tree, rows.training.node, np.int32(LEAF))
    persons = rows.owned.behind(nodes, len(place.growing.feature))
    return Sums(
        persons, dict.fromkeys(persons, HEADS), len(rows.training.y) + len(rows.validation.y)
    )


class OfBins(Strict):
    """Arguments of :func:`counts`, with the edges beside them."""

    task: Task
    cuts: tuple[Cuts, ...]


@dataclass(frozen=True, eq=False)
class TreesTerms:
    """What trees grow from, and how; the same object for the same terms (:func:`trees_terms`), so that
    a party finds its rows by them without comparing thousands of edges at every question."""

    task: Task
    cuts: tuple[Cuts, ...]
    recipe: TreesRecipe


@lru_cache(8)
def trees_terms(task: Task, cuts: tuple[Cuts, ...], recipe: TreesRecipe) -> TreesTerms:
    """The one object of these terms."""
    return TreesTerms(task, cuts, recipe)


class OfGrowing(Strict):
    """Arguments of all that is asked while trees grow."""

    task: Task
    cuts: tuple[Cuts, ...]
    recipe: TreesRecipe

    @cached_property
    def terms(self) -> TreesTerms:
        return trees_terms(self.task, self.cuts, self.recipe)


class OfLevel(OfGrowing):
    """Arguments of :func:`level`."""

    ask: Ask


class OfLeaves(OfGrowing):
    """Arguments of :func:`persons_at`."""

    place: Place


def _response(holding: Holding, task: Task) -> Response:
    return Response(holding.rows(task, "train"), task)


def _coded(holding: Holding, task: Task, cuts: tuple[Cuts, ...]) -> NDArray[np.uint8]:
    return binned(holding.rows(task, "train"), cuts)


def _sorted(holding: Holding, task: Task, cuts: tuple[Cuts, ...]) -> list[Floats]:
    return in_order(holding.rows(task, "train"), cuts)


def growing_rows(holding: Holding, terms: TreesTerms) -> Rows:
    """Rows that trees grow from; which are held out goes by their owner."""
    task = terms.task
    codes, owners = holding.once(_coded, task, terms.cuts, at_hand=1), holding.owners(task, "train")
    response, drawing = holding.once(_response, task), holding.rows_secret
    units, known = holding.units(task, "train"), (task, terms.recipe, holding.finished)
    for made in (_sorted, _coded):  # bins are agreed by now
        holding.forget(made)
    return Rows(codes, response, owners, terms.cuts, *known, units=units, secret=drawing)


def _bins(holding: Holding, a: OfBins, arrays: Arrays) -> Sums:
    columns, rows = holding.once(_sorted, a.task, a.cuts, at_hand=1), holding.rows(a.task, "train")
    return counts(columns, edges=arrays["edges"], rows=len(rows))


def _persons(holding: Holding, a: OfBins, arrays: Arrays) -> Sums:
    codes = holding.once(_coded, a.task, a.cuts, at_hand=1)
    return persons_in(codes, Owned.of(holding.units(a.task, "train")), a.cuts)


def _level(holding: Holding, a: OfLevel, arrays: Arrays) -> Sums:
    return level(holding.once(growing_rows, a.terms, at_hand=1), a.ask)


def _leaves(holding: Holding, a: OfLeaves, arrays: Arrays) -> Sums:
    return persons_at(holding.once(growing_rows, a.terms, at_hand=1), a.place)


STATISTICS = (
    Statistic("trees_bins", OfBins, _bins, "trees", ("edges",), cells=True),
    Statistic("trees_persons", OfBins, _persons, "trees", cells=True),
    Statistic("trees_leaves", OfLeaves, _leaves, "trees", cells=True),
    Statistic("trees_level", OfLevel, _level, "trees", cells=True),
)


#: What a file of this kind holds.
MODEL = Trees
