"""Gradient-boosted trees: one party's sums while they grow, and the model as a file.

Second-order boosting on histograms (Chen & Guestrin, "XGBoost", 2016, section 2.2; Ke et al.,
"LightGBM", 2017, section 2.1): to grow a tree, nothing is needed of the rows but the sums of the
loss's first and second derivatives by node, feature and bin. The derivatives are rounded to whole
numbers of a public unit before they are added, so that the sums, the cuts chosen from them and the
trees are the same to the bit however the rows are split and whether or not the sums are encrypted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from lab.errors import ConfigurationError, PeerError
from lab.models import kernels
from lab.models.families import Family
from lab.models.glm import Response, Task
from lab.models.tree_model import LEAF, MOST_CELLS, Cuts, Tree, Trees, binned, persons_in
from lab.privacy.joining import behind
from lab.records import Strict
from lab.statistics import Arrays, Holding, Statistic
from lab.sums import COUNT, FLAG, HEADS, Floats, Limit, Sums
from lab.tables.partition import drawn

#: Derivatives are counted in 2**-10 of what an average row adds, to 64 times what all rows add.
GRAIN, REACH = 2.0**-10, 64
#: Losses, in the same unit, are larger for each row.
LOSS = Limit(bound=2.0**34, resolution=2.0**-16)
#: Rows of all parties: their sums of derivatives are exact in float64.
MOST_ROWS = 2**31


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


class TreesRecipe(Strict):
    """What is fixed before the first tree. ``step``: by how much linear predictors differ;
    ``unit``: the second derivative of an average row; ``rows``: how many all parties have;
    ``validation_share``: the share of persons (or rows) that no tree is grown from, to judge them by."""

    intercept: float
    step: float = Field(1.0, gt=0)
    unit: float = Field(gt=0)
    rows: int = Field(gt=0, le=MOST_ROWS)
    validation_share: float = Field(0.0, ge=0, lt=1)

    @property
    def most(self) -> float:
        """The largest sum of derivatives, in units."""
        return float(REACH << self.rows.bit_length())

    @property
    def scales(self) -> Floats:
        """(3,) units of first and second derivatives and of the loss, as grains to one."""
        unit, step = self.unit, self.step
        return 1 / np.array([unit * step * GRAIN, unit * GRAIN, unit * step**2 * LOSS.resolution])


class Place(Strict):
    """Where the trees stand: the digest of all that are finished (empty before the first), the
    last of them, and the one that grows."""

    chain: str = ""
    last: Tree | None = None
    growing: Tree = Tree()

    def next(self, finished: Tree) -> Place:
        """The place once the tree that grew is finished."""
        return Place(chain=chained(self.chain, finished), last=finished)


#: Finished trees by the digest of all up to them, each with the digest before it.
Finished = dict[str, tuple[str, Tree]]


def chained(chain: str, tree: Tree) -> str:
    """The digest of the trees so far and one more."""
    return hashlib.sha256(f"{chain} {tree.model_dump_json()}".encode()).hexdigest()


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


def read_finished(text: str) -> tuple[str, Tree]:
    """A finished tree as a node keeps it: the digest before it, and the tree.

    Raises :class:`PeerError` where it is damaged.
    """
    try:
        return _FINISHED.validate_json(text)
    except ValidationError:
        raise PeerError("this party's finished trees are damaged; start the run again") from None


_FINISHED = TypeAdapter(tuple[str, Tree])


@dataclass
class Side:
    """Rows that trees are grown from, or rows that they are judged by, with their scores so far."""

    codes: NDArray[np.uint8]
    y: Floats
    weight: Floats
    offset: Floats
    eta: Floats
    node: NDArray[np.int32] = field(init=False)
    derivatives: NDArray[np.int64] = field(init=False)
    loss: float = 0.0  # deviance in grains
    beyond: bool = False  # whether a few rows weigh more than the sums can carry

    def __post_init__(self) -> None:
        self.node = np.zeros(len(self.y), dtype=np.int32)
        self.derivatives = np.zeros((len(self.y), 2), dtype=np.int64)

    def derive(self, law: Family, recipe: TreesRecipe) -> None:
        """Derivatives and loss at the scores so far, or a note that they are beyond all bounds."""
        objective = kernels.OBJECTIVES[law.name]
        eta, scales, out = self.eta + self.offset, recipe.scales, self.derivatives
        self.loss, gross, total = kernels.derivatives(
            objective, law.power, self.y, self.weight, eta, scales, out
        )
        self.beyond = not (max(gross, total) * GRAIN <= recipe.most and np.isfinite(self.loss))
        if self.beyond:
            self.loss = 0.0
            self.derivatives[:] = 0


class Rows:
    """A party's rows while trees grow.

    keys: (rows,) of persons or rows, by which the validation share is drawn with a secret of the
    party's: nobody who asks can choose it. units: (rows,) the same as numbers. finished: the trees so far, which are followed
    anew where the rows come from a restart.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        response: Response,
        keys: pd.Series,
        cuts: tuple[Cuts, ...],
        task: Task,
        recipe: TreesRecipe,
        finished: Finished | None = None,
        *,
        units: Floats | None = None,
        secret: bytes = b"",
    ) -> None:
        self.finished: Finished = {} if finished is None else finished
        self.cuts, self.law, self.recipe = cuts, task.law, recipe
        if self.law.link != Family.make(self.law.name, power=task.power).link:
            raise ConfigurationError(
                f"model.link: trees fit {task.family} on its default link alone; drop the key"
            )
        codes, apart = binned(frame, cuts), drawn(keys, recipe.validation_share, secret, "held out")
        self.training = self._side(codes, response, ~apart)
        self.validation = self._side(codes, response, apart)
        units = pd.factorize(keys)[0].astype(np.float64) if units is None else units
        self.persons = units[~apart]
        self._features: tuple[int, ...] = ()
        self._codes = self.training.codes[:, :0]
        self._restart()

    def _side(self, codes: NDArray[np.uint8], r: Response, part: NDArray[np.bool_]) -> Side:
        start = np.full(int(part.sum()), self.recipe.intercept)
        return Side(codes[part], r.y[part], r.weight[part], r.offset[part], start)

    def _restart(self) -> None:
        for side in (self.training, self.validation):
            side.eta[:] = self.recipe.intercept
        self._start_tree("")

    def _start_tree(self, chain: str) -> None:
        self.chain, self.growing = "nowhere", Tree()  # until there are derivatives to go on from
        self.training.node[:] = 0
        for side in (self.training, self.validation):
            side.derive(self.law, self.recipe)
        self.chain = chain

    def follow(self, place: Place) -> None:
        """Bring the rows to where the trees stand. Raises :class:`PeerError` if no way is known."""
        for chain in self._way_to(place):
            if chain == "":
                self._restart()
            else:
                self._finish(chain, self.finished[chain][1])
        self._grow(place.growing)

    def _way_to(self, place: Place) -> list[str]:
        """What is to be done from where these rows are: restart, finish one tree after another."""
        last = place.last
        if last is not None and place.chain not in self.finished:
            starts = (self.chain, "", *self.finished)
            before = next((c for c in starts if chained(c, last) == place.chain), None)
            if before is not None:
                self.finished[place.chain] = (before, last)
        way, at = [], place.chain
        while at != self.chain:
            way.append(at)
            if at == "":
                break
            if at not in self.finished:
                raise PeerError("the trees so far are not known here; start the run again")
            at = self.finished[at][0]
        return way[::-1]

    def _finish(self, chain: str, tree: Tree) -> None:
        self._grow(tree)
        self.training.eta += np.array(tree.value)[self.training.node]
        tree.add_values(self.validation.codes, self.validation.eta)
        self._start_tree(chain)

    def columns(self, features: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """The bins of these features alone, side by side, and where each feature's bins start."""
        if features != self._features:
            whole = len(features) == len(self.cuts)
            self._codes = self.training.codes if whole else self.training.codes[:, list(features)]
            self._features = features
        widths = [self.cuts[j].bins for j in features]
        return self._codes, np.concatenate([[0], np.cumsum(widths)]).astype(np.uint64)

    def _grow(self, tree: Tree) -> None:
        if not tree.extends(self.growing):
            self.training.node[:] = 0
        tree.descend(self.training.codes, self.training.node)
        self.growing = tree


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
    for k, (node, most) in enumerate(zip(histograms, ask.most, strict=True)):
        for i, name in enumerate(("gradient", "hessian")):
            arrays[f"{name} {k}"] = np.asarray(node[i::2] * GRAIN, dtype=np.float64)
            limits[f"{name} {k}"] = Limit(most[i], GRAIN)
    if len(slot) == 1:
        both = (rows.training, rows.validation)
        arrays["loss"] = np.array([s.loss for s in both]) * LOSS.resolution
        arrays["size"] = np.array([float(len(s.y)) for s in both])
        limits |= {"loss": LOSS, "size": COUNT}
    beyond = rows.training.beyond or rows.validation.beyond
    for name, array in arrays.items():
        bound = limits[name].bound
        beyond = beyond or bool(np.abs(array).max(initial=0.0) > bound)
        arrays[name] = np.clip(array, -bound, bound)
    arrays["beyond"], limits["beyond"] = np.array([float(beyond)]), FLAG
    return Sums(arrays, limits, len(rows.training.y) + len(rows.validation.y))


def persons_at(rows: Rows, place: Place) -> Sums:
    """Distinct persons, within the party, at each node of the tree that was grown: (nodes,).

    Raises :class:`PeerError` where the way to the tree is unknown.
    """
    rows.follow(place)
    nodes = rows.training.node.astype(np.int64)
    persons = behind(nodes, rows.persons, len(place.growing.feature))
    return Sums(
        persons, dict.fromkeys(persons, HEADS), len(rows.training.y) + len(rows.validation.y)
    )


class OfBins(Strict):
    """Arguments of :func:`counts`, with the edges beside them."""

    task: Task
    cuts: tuple[Cuts, ...]


class OfLevel(Strict):
    """Arguments of :func:`level`."""

    task: Task
    cuts: tuple[Cuts, ...]
    recipe: TreesRecipe
    ask: Ask


class OfLeaves(Strict):
    """Arguments of :func:`persons_at`."""

    task: Task
    cuts: tuple[Cuts, ...]
    recipe: TreesRecipe
    place: Place


def _response(holding: Holding, task: Task) -> Response:
    return Response(holding.rows(task, "train"), task)


def _sorted(holding: Holding, task: Task, cuts: tuple[Cuts, ...]) -> list[Floats]:
    return in_order(holding.rows(task, "train"), cuts)


def _growing(holding: Holding, cuts: tuple[Cuts, ...], task: Task, recipe: TreesRecipe) -> Rows:
    """Rows that trees grow from; which are held out goes by their owner."""
    holding.forget(_sorted)  # bins are agreed by now
    rows, owners = holding.rows(task, "train"), holding.owners(task, "train")
    response, drawing = holding.once(_response, task), holding.rows_secret
    units, known = holding.units(task, "train"), (task, recipe, holding.finished)
    return Rows(rows, response, owners, cuts, *known, units=units, secret=drawing)


def _bins(holding: Holding, a: OfBins, arrays: Arrays) -> Sums:
    columns, rows = holding.once(_sorted, a.task, a.cuts, at_hand=1), holding.rows(a.task, "train")
    return counts(columns, edges=arrays["edges"], rows=len(rows))


def _persons(holding: Holding, a: OfBins, arrays: Arrays) -> Sums:
    return persons_in(holding.rows(a.task, "train"), holding.units(a.task, "train"), a.cuts)


def _level(holding: Holding, a: OfLevel, arrays: Arrays) -> Sums:
    return level(holding.once(_growing, a.cuts, a.task, a.recipe, at_hand=1), a.ask)


def _leaves(holding: Holding, a: OfLeaves, arrays: Arrays) -> Sums:
    return persons_at(holding.once(_growing, a.cuts, a.task, a.recipe, at_hand=1), a.place)


STATISTICS = (
    Statistic("trees_bins", OfBins, _bins, "trees", ("edges",), cells=True),
    Statistic("trees_persons", OfBins, _persons, "trees", cells=True),
    Statistic("trees_leaves", OfLeaves, _leaves, "trees", cells=True),
    Statistic("trees_level", OfLevel, _level, "trees", cells=True),
)


#: What a file of this kind holds.
MODEL = Trees
