"""Gradient-boosted trees: one party's sums while they grow, and the model as a file.

Second-order boosting on histograms (Chen & Guestrin, "XGBoost", 2016, section 2.2; Ke et al.,
"LightGBM", 2017, section 2.1): to grow a tree, nothing is needed of the rows but the sums of the
loss's first and second derivatives by node, feature and bin. The derivatives are rounded to whole
numbers of a public unit before they are added, so that the sums, the cuts chosen from them and the
trees are the same to the bit however the rows are split and whether or not the sums are encrypted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lab import kernels
from lab.contracts import Strict
from lab.errors import PeerError
from lab.families import Family
from lab.features import Feature, codes_of
from lab.glm import Response, Task
from lab.sums import COUNT, Floats, Limit, Sums

#: Derivatives are counted in 2**-16 of what an average row adds, to 64 times what all rows add.
GRAIN, REACH = 2.0**-16, 64
#: Losses, in the same unit, are larger for each row.
LOSS = Limit(bound=2.0**34, resolution=2.0**-16)
#: Bins of a feature without the one for missing values; a bin's number is one byte.
MOST_BINS = 254
LEAF = -1


class Cuts(Strict):
    """A feature in bins. Numbers: bin k holds values above ``edges[k - 1]`` and up to ``edges[k]``.
    Categories, where ``edges`` is None: bin k is level k. The last bin is for what is missing."""

    feature: Feature
    edges: tuple[float, ...] | None = None
    levels: tuple[str, ...] = ()
    monotone: Literal[-1, 0, 1] = 0

    @property
    def bins(self) -> int:
        """Bins, the one for missing values among them."""
        return (len(self.levels) if self.edges is None else len(self.edges) + 1) + 1

    def codes(self, frame: pd.DataFrame, out: NDArray[np.uint8]) -> None:
        """Write the bin of each row into ``out``."""
        if self.edges is None:
            level = codes_of(self.feature.texts(frame), self.levels)
            out[:] = np.where(level < 0, self.bins - 1, level)
        else:
            kernels.bins(self.feature.numbers(frame, self.levels), np.array(self.edges), out)


class Tree(Strict):
    """A tree by its nodes, the root first. A leaf has feature -1; another node's children are
    ``left`` and ``left + 1``, and of ``bins`` (hexadecimal) bit k is set where bin k goes left."""

    feature: tuple[int, ...] = (LEAF,)
    left: tuple[int, ...] = (0,)
    bins: tuple[str, ...] = ("0",)
    value: tuple[float, ...] = (0.0,)

    @model_validator(mode="after")
    def _leads_down(self) -> Self:
        """Compiled code follows these numbers unchecked: every step must lead to a later node."""
        count = len(self.feature)
        if not 0 < count == len(self.left) == len(self.bins) == len(self.value):
            raise ValueError("feature, left, bins and value need one entry for each node")
        for at, (feature, left) in enumerate(zip(self.feature, self.left, strict=True)):
            if feature < LEAF or (feature != LEAF and not at < left < count - 1):
                raise ValueError("a node needs two later nodes below it, or feature -1")
        if not all(0 <= int(text, 16) < 1 << 256 for text in self.bins):
            raise ValueError("bins need up to 64 hexadecimal digits")
        return self

    @cached_property
    def goes_left(self) -> NDArray[np.bool_]:
        """(nodes, 256) whether a bin goes left."""
        masks = [int(text, 16).to_bytes(32, "little") for text in self.bins]
        bits = np.frombuffer(b"".join(masks), dtype=np.uint8).reshape(-1, 32)
        return np.unpackbits(bits, axis=1, bitorder="little").astype(bool)

    def descend(self, codes: NDArray[np.uint8], node: NDArray[np.int32]) -> None:
        """Move rows from the nodes they are at to the leaves below."""
        feature, left = np.array(self.feature, dtype=np.int64), np.array(self.left, dtype=np.int64)
        kernels.descend(codes, node, feature, left, self.goes_left)

    def extends(self, other: Tree) -> bool:
        """True where this is the other tree with some of its leaves cut further."""
        old = zip(other.feature, other.left, other.bins, strict=True)
        new = zip(self.feature, self.left, self.bins, strict=True)
        pairs = zip(old, new, strict=False)
        return len(other.feature) <= len(self.feature) and all(
            a == b or a[0] == LEAF for a, b in pairs
        )

    def add_values(self, codes: NDArray[np.uint8], eta: Floats) -> None:
        """Add to each row of ``eta`` the value of its leaf."""
        node = np.zeros(len(codes), dtype=np.int32)
        self.descend(codes, node)
        eta += np.array(self.value)[node]


class Trees(Strict):
    """A fitted model: all that is needed to score a table, as plain numbers."""

    kind: Literal["trees"] = "trees"
    task: Task
    cuts: tuple[Cuts, ...]
    intercept: float
    trees: tuple[Tree, ...] = ()

    @model_validator(mode="after")
    def _features_are_there(self) -> Self:
        if any(cut.bins > MOST_BINS + 1 for cut in self.cuts):
            raise ValueError(f"a feature has at most {MOST_BINS} bins")
        if any(max(tree.feature) >= len(self.cuts) for tree in self.trees):
            raise ValueError("a tree cuts by a feature that is not there")
        return self

    def predict(self, frame: pd.DataFrame) -> Floats:
        """The mean for one unit of exposure (or for one claim), one for each row."""
        return self.task.law.mean(self.eta(frame))

    def eta(self, frame: pd.DataFrame) -> Floats:
        """The linear predictor of each row, without its exposure."""
        codes, eta = binned(frame, self.cuts), np.full(len(frame), self.intercept)
        for tree in self.trees:
            tree.add_values(codes, eta)
        return eta


def binned(frame: pd.DataFrame, cuts: tuple[Cuts, ...]) -> NDArray[np.uint8]:
    """(rows, features) the bin of each value."""
    codes = np.empty((len(frame), len(cuts)), dtype=np.uint8)
    for j, cut in enumerate(cuts):
        cut.codes(frame, codes[:, j])
    return codes


def in_order(frame: pd.DataFrame, cuts: tuple[Cuts, ...]) -> list[Floats]:
    """The numbers of each feature, sorted, without missing ones."""
    columns = (cut.feature.numbers(frame, cut.levels) for cut in cuts)
    return [np.sort(values[~np.isnan(values)]) for values in columns]


def counts(columns: list[Floats], *, edges: Floats) -> Sums:
    """Rows up to each edge and above the one before, (features, edges + 1); edges: (features,
    edges), rising, filled up with infinity."""
    up_to = [
        np.searchsorted(column, row, side="right")
        for column, row in zip(columns, edges, strict=True)
    ]
    ends = [[len(column)] for column in columns]
    count = np.diff(np.hstack([up_to, ends]), axis=1, prepend=0).astype(np.float64)
    return Sums({"count": count}, {"count": COUNT}, max(map(len, columns), default=0))


class Recipe(Strict):
    """What is fixed before the first tree. ``unit``: the second derivative of an average row;
    ``rows``: how many all parties have; ``held``: the share of persons (or rows) that no tree is
    grown from, to judge them by."""

    intercept: float
    unit: float = Field(gt=0)
    rows: int = Field(gt=0)
    held: float = Field(0.0, ge=0, lt=1)
    seed: int = 0

    @property
    def limit(self) -> Limit:
        """The format of a sum of derivatives."""
        return Limit(bound=float(REACH << self.rows.bit_length()), resolution=GRAIN)


class Place(Strict):
    """Where the trees stand: the digest of all that are finished (empty before the first), the
    last of them, and the one that grows."""

    chain: str = ""
    last: Tree | None = None
    growing: Tree = Tree()

    def next(self, finished: Tree) -> Place:
        """The place once the tree that grew is finished."""
        return Place(chain=chained(self.chain, finished), last=finished)


def chained(chain: str, tree: Tree) -> str:
    """The digest of the trees so far and one more."""
    return hashlib.sha256(f"{chain} {tree.model_dump_json()}".encode()).hexdigest()


@dataclass
class Side:
    """Rows that trees are grown from, or rows that they are judged by, with their scores so far."""

    codes: NDArray[np.uint8]
    y: Floats
    weight: Floats
    offset: Floats
    eta: Floats
    node: NDArray[np.int32]

    def loss(self, law: Family, unit: float) -> float:
        """Deviance in whole grains of the unit."""
        deviance = law.deviance(self.y, law.mean(self.eta + self.offset))
        return float(np.rint(self.weight * deviance / (unit * LOSS.resolution)).sum())


class Rows:
    """A party's rows while trees grow.

    keys: (rows,) of persons or rows, by which the share held out is drawn: who is held out does
    not depend on how rows are split among parties.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        response: Response,
        keys: pd.Series,
        cuts: tuple[Cuts, ...],
        task: Task,
        recipe: Recipe,
    ) -> None:
        self.cuts, self.law, self.recipe = cuts, task.law, recipe
        codes, held = binned(frame, cuts), drawn(keys, recipe)
        self.grown, self.held = (self._side(codes, response, part) for part in (~held, held))
        self._features: list[int] = []
        self._codes = self.grown.codes
        self.derivatives = np.zeros((len(self.grown.y), 2), dtype=np.int64)
        self._restart()

    def _side(self, codes: NDArray[np.uint8], r: Response, part: NDArray[np.bool_]) -> Side:
        chosen = (r.y[part], r.weight[part], r.offset[part])
        start = np.full(int(part.sum()), self.recipe.intercept)
        return Side(codes[part], *chosen, start, np.zeros(len(start), dtype=np.int32))

    def _restart(self) -> None:
        self.chain = ""
        for side in (self.grown, self.held):
            side.eta[:] = self.recipe.intercept
        self._start_tree()

    def _start_tree(self) -> None:
        self.growing, side = Tree(), self.grown
        side.node[:] = 0
        kernels.gradients(
            kernels.OBJECTIVES[self.law.name],
            self.law.power,
            side.y,
            side.weight,
            side.eta + side.offset,
            1 / (self.recipe.unit * GRAIN),
            self.derivatives,
        )

    def follow(self, place: Place) -> None:
        """Come to where the trees stand. Raises :class:`PeerError` if the way there is unknown."""
        if place.chain == "" != self.chain:
            self._restart()
        if place.chain != self.chain:
            if place.last is None or chained(self.chain, place.last) != place.chain:
                raise PeerError("the trees so far are not known here; start the run again")
            self._grow(place.last)
            self.grown.eta += np.array(place.last.value)[self.grown.node]
            place.last.add_values(self.held.codes, self.held.eta)
            self.chain = place.chain
            self._start_tree()
        self._grow(place.growing)

    def columns(self, features: list[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """The bins of these features alone, side by side, and where each feature's bins start."""
        if features != self._features:
            whole = features == list(range(len(self.cuts)))
            self._codes = self.grown.codes if whole else self.grown.codes[:, features].copy()
            self._features = features
        widths = [self.cuts[j].bins for j in features]
        return self._codes, np.concatenate([[0], np.cumsum(widths)]).astype(np.uint64)

    def _grow(self, tree: Tree) -> None:
        if not tree.extends(self.growing):
            self.grown.node[:] = 0
        tree.descend(self.grown.codes, self.grown.node)
        self.growing = tree


def drawn(keys: pd.Series, recipe: Recipe) -> NDArray[np.bool_]:
    """(rows,) true for those held out, by a hash of their key and the seed."""
    salted = hashlib.sha256(f"held out {recipe.seed}".encode()).digest()[:16].hex()[:16]
    hashed = pd.util.hash_pandas_object(keys, index=False, hash_key=salted).to_numpy()
    return np.asarray(hashed < np.uint64(int(recipe.held * 2.0**63)) * np.uint64(2))


def level(rows: Rows, place: Place, nodes: list[int], features: list[int]) -> Sums:
    """Derivatives by bin of some nodes of the growing tree, and the losses where it is a lone root.

    ``gradient`` and ``hessian`` (nodes, bins of the features one after the other) are in units of
    an average row, ``rows`` (nodes,); ``loss`` holds the deviance and ``size`` the weight of grown
    and held-out rows.
    """
    rows.follow(place)
    codes, start = rows.columns(features)
    slot = np.full(len(place.growing.feature), LEAF, dtype=np.int64)
    slot[nodes] = np.arange(len(nodes))
    found = np.zeros((len(nodes), 2 * int(start[-1])), dtype=np.int64)
    behind = np.zeros(len(nodes), dtype=np.int64)
    kernels.histograms(codes, rows.grown.node, slot, rows.derivatives, start, found, behind)
    arrays: dict[str, Floats] = {
        "gradient": np.asarray(found[:, 0::2] * GRAIN, dtype=np.float64),
        "hessian": np.asarray(found[:, 1::2] * GRAIN, dtype=np.float64),
        "rows": behind.astype(np.float64),
    }
    limits = {"gradient": rows.recipe.limit, "hessian": rows.recipe.limit, "rows": COUNT}
    if len(place.growing.feature) == 1:
        both, unit = (rows.grown, rows.held), rows.recipe.unit
        arrays["loss"] = np.array([s.loss(rows.law, unit) for s in both]) * LOSS.resolution
        arrays["size"] = np.array([float(len(s.y)) for s in both])
        limits |= {"loss": LOSS, "size": COUNT}
    return Sums(arrays, limits, len(rows.grown.y) + len(rows.held.y))
