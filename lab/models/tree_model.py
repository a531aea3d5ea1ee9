"""Gradient-boosted trees as a file: bins, cuts and leaf values, all that is needed to score a table."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Literal, NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import model_validator

from lab.errors import ModelError
from lab.models import kernels
from lab.models.design import Feature, codes_of
from lab.models.effects import AGAIN, Effects, Exposures
from lab.models.glm import Task
from lab.privacy.joining import HOME, PARTIES, PERSONS
from lab.records import Strict
from lab.sums import HEADS, Floats, Sums

#: Levels of a category, or ranges of a number, that have bins of their own; a bin's number is one
#: byte, and one bin is for what is missing.
MOST_BINS = 255


#: Nodes of a tree of depth 10; bins of all nodes that one question may ask for.
MOST_NODES, MOST_CELLS = 2**11 - 1, 2**24


LEAF = -1


class Cuts(Strict):
    """A feature in bins. Numbers: bin k holds values above ``edges[k - 1]`` and up to ``edges[k]``.
    Categories, where ``edges`` is None: bin k is level k. The last bin is for what is missing, and
    for levels that have none of their own: unknown ones, and the rarest where there are too many."""

    feature: Feature
    edges: tuple[float, ...] | None = None
    levels: tuple[str, ...] = ()
    monotone: Literal[-1, 0, 1] = 0

    @model_validator(mode="after")
    def _fits_a_byte(self) -> Self:
        if self.edges is None and len(self.levels) > MOST_BINS:
            raise ValueError(f"at most {MOST_BINS} levels may have bins, got {len(self.levels)}")
        if self.edges is not None and (
            len(self.edges) >= MOST_BINS or sorted(set(self.edges)) != list(self.edges)
        ):
            raise ValueError(f"edges must be strictly increasing and fewer than {MOST_BINS}")
        return self

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


class Owned(NamedTuple):
    """Rows by who they belong to, put in order once: persons are counted at every tree. order: the
    rows, those of a person one after the other; unit, home: (rows,) of the rows in that order."""

    order: NDArray[np.int64]
    unit: NDArray[np.int64]
    home: NDArray[np.int64]

    @classmethod
    def of(cls, unit: Floats) -> Owned:
        """unit: (rows,) of persons, `HOME` apart from party to party."""
        order = np.argsort(unit, kind="stable")
        ranked = unit[order]
        new = [np.diff(at, prepend=at[:1]) > 0 for at in (ranked, np.floor(ranked / HOME))]
        return cls(order, np.cumsum(new[0]), np.cumsum(new[1]))

    def behind(self, group: NDArray[np.int32] | NDArray[np.uint8], count: int) -> dict[str, Floats]:
        """(count,) distinct persons, and parties, of each group. group: (rows,), -1 for none."""
        persons, parties = np.zeros(count), np.zeros(count)
        kernels.behind(group, *self, persons, parties)
        return {PERSONS: persons, PARTIES: parties}


def persons_in(codes: NDArray[np.uint8], owned: Owned, cuts: tuple[Cuts, ...]) -> Sums:
    """Distinct persons, within the party, in each bin of each feature, one feature after the other.

    codes: (rows, features) their bins.
    """
    persons = [owned.behind(codes[:, j], cut.bins) for j, cut in enumerate(cuts)]
    arrays = {name: np.concatenate([each[name] for each in persons]) for name in (PERSONS, PARTIES)}
    return Sums(arrays, dict.fromkeys(arrays, HEADS), len(codes))


class Tree(Strict):
    """A tree by its nodes, the root first. A leaf has feature -1; another node's children are
    ``left`` and ``left + 1``, and of ``bins`` (hexadecimal) bit k is set where bin k goes left.
    ``value``: of each node, where it is a leaf; ``share``: of each node that is cut, how much of what
    it was grown from goes left, by the loss's second derivative; empty where a file does not say."""

    feature: tuple[int, ...] = (LEAF,)
    left: tuple[int, ...] = (0,)
    bins: tuple[str, ...] = ("0",)
    value: tuple[float, ...] = (0.0,)
    share: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        """Compiled code follows these numbers unchecked."""
        count = len(self.feature)
        if not 1 <= count <= MOST_NODES or not (
            count == len(self.left) == len(self.bins) == len(self.value)
        ):
            raise ValueError(
                f"a tree has 1 to {MOST_NODES} nodes, each with feature, left, bins and value"
            )
        for at, (feature, left) in enumerate(zip(self.feature, self.left, strict=True)):
            if feature < LEAF or (feature != LEAF and not at < left < count - 1):
                raise ValueError("children must come after their parent")
        if not all(re.fullmatch("[0-9a-f]{1,64}", bins) for bins in self.bins):
            raise ValueError("bins must be hexadecimal numbers of at most 256 bits")
        if self.share and not (len(self.share) == count and all(0 <= s <= 1 for s in self.share)):
            raise ValueError("share must be numbers from 0 to 1, one for each node, or be left out")
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

    def joined(self, persons: Floats, least: int) -> tuple[Tree, tuple[int, ...]]:
        """The tree without cuts that leave a leaf with fewer than ``least`` persons, and the numbers
        that its nodes had before. persons: (nodes,) at each leaf."""
        reached = np.asarray(persons, dtype=np.float64).copy()
        feature = list(self.feature)
        for at in reversed(range(len(feature))):
            if feature[at] == LEAF:
                continue
            children = (self.left[at], self.left[at] + 1)
            reached[at] = sum(reached[child] for child in children)
            if any(feature[child] == LEAF and reached[child] < least for child in children):
                feature[at] = LEAF
        return self.compact(feature)

    def compact(self, feature: list[int]) -> tuple[Tree, tuple[int, ...]]:
        """The tree with other features at its nodes, some of them leaves now, and the numbers that the
        nodes which are still reached had before. feature: (nodes,)."""
        order, left = [0], [0]
        for at in order:  # grows while it is read
            if feature[at] != LEAF:
                left[order.index(at)] = len(order)
                order += [self.left[at], self.left[at] + 1]
                left += [0, 0]
        leaf = [feature[at] == LEAF for at in order]
        tree = Tree(
            feature=tuple(feature[at] for at in order),
            left=tuple(left),
            bins=tuple("0" if end else self.bins[at] for at, end in zip(order, leaf, strict=True)),
            value=tuple(self.value[at] for at in order),
            share=tuple(0.0 if end else self.share[at] for at, end in zip(order, leaf, strict=True))
            if self.share
            else (),
        )
        return tree, tuple(order)

    def shape(self) -> Tree:
        """Its cuts alone: who is asked to count at its nodes needs no more."""
        return self.model_copy(update={"value": (0.0,) * len(self.value), "share": ()})

    def paths(self) -> kernels.Paths:
        """What the way to each leaf asks of each feature that is cut on it."""
        ways: list[dict[int, tuple[NDArray[np.bool_], float]]] = [{} for _ in self.feature]
        anything = np.ones(self.goes_left.shape[1], dtype=bool)
        for at, (feature, left) in enumerate(zip(self.feature, self.left, strict=True)):
            if feature == LEAF:
                continue
            for child, goes, share in (
                (left, self.goes_left[at], self.share[at]),
                (left + 1, ~self.goes_left[at], 1 - self.share[at]),
            ):
                bins, before = ways[at].get(feature, (anything, 1.0))
                ways[child] = {**ways[at], feature: (bins & goes, before * share)}
        leaves = [at for at, feature in enumerate(self.feature) if feature == LEAF]
        return kernels.paths([ways[at] for at in leaves], [self.value[at] for at in leaves])

    def add_values(self, codes: NDArray[np.uint8], eta: Floats) -> None:
        """Add to each row of ``eta`` the value of its leaf."""
        node = np.zeros(len(codes), dtype=np.int32)
        self.descend(codes, node)
        eta += np.array(self.value)[node]


class Trees(Strict):
    """A fitted model: all that is needed to score a table, as plain numbers.

    ``gains``: (features,) by how much the cuts on each feature lowered the loss, all trees together;
    empty where a file does not say.
    """

    kind: Literal["trees"] = "trees"
    task: Task
    cuts: tuple[Cuts, ...]
    intercept: float
    trees: tuple[Tree, ...] = ()
    gains: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _features_are_there(self) -> Self:
        if self.gains and len(self.gains) != len(self.cuts):
            raise ValueError(f"gains: needs {len(self.cuts)} values, got {len(self.gains)}")
        if any(max(tree.feature) >= len(self.cuts) for tree in self.trees):
            raise ValueError("a tree splits on a feature that the model does not have")
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

    def effects(self, frame: pd.DataFrame) -> Effects:
        """The Shapley value of each column for each row: what it adds to the linear predictor.

        Raises :class:`ModelError` for a file that does not say how much went which way.
        """
        if any(len(tree.feature) > 1 and not tree.share for tree in self.trees):
            raise ModelError(
                f"reasons: this model's file does not say which share goes left; {AGAIN}"
            )
        codes, base = binned(frame, self.cuts), self.intercept
        values = np.zeros((len(frame), len(self.cuts)))
        for tree in self.trees:
            paths = tree.paths()
            base += paths.mean
            kernels.shapley(codes, *paths, kernels.SUBSETS, values)
        return Effects.of(base, [cut.feature.column for cut in self.cuts], values)

    def importance(self, exposures: Exposures) -> dict[str, float]:
        """By how much the cuts on each column lowered the loss; empty where the file does not say."""
        size: dict[str, float] = {}
        for cut, gain in zip(self.cuts, self.gains, strict=False):
            size[cut.feature.column] = size.get(cut.feature.column, 0.0) + gain
        return size


def binned(frame: pd.DataFrame, cuts: tuple[Cuts, ...]) -> NDArray[np.uint8]:
    """(rows, features) the bin of each value."""
    codes = np.empty((len(frame), len(cuts)), dtype=np.uint8)
    for j, cut in enumerate(cuts):
        cut.codes(frame, codes[:, j])
    return codes
