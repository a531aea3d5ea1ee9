"""One tree while it grows from totals: which leaf is cut where, and what is asked next.

The leaf that gains most is cut first, until there are so many leaves (Shi, "Best-first decision tree
learning", 2007; LightGBM's leaf-wise growth). That order takes one question for a cut. Here a level
is one question, and the tree is the same: whoever cuts the leaf of most gain first cuts those leaves
whose least gain on the way from the root is largest, so that a leaf which falls behind so many
others need not be asked about, and in the end the others are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lab.models import kernels
from lab.models.tree_model import LEAF, Cuts, Tree
from lab.models.tree_rows import GRAIN, Place, TreesRecipe
from lab.models.trees import Ask
from lab.sums import Floats, Sums

#: Average rows that pull the order of a category's levels towards the node's mean.
SMOOTH = 10.0


class GrowthSettings(Protocol):
    """What decides where a tree is cut; see `federated.solvers.trees.TreesSettings`."""

    @property
    def depth(self) -> int: ...
    @property
    def leaves(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def l1(self) -> float: ...
    @property
    def l2(self) -> float: ...
    @property
    def smoothing(self) -> float: ...
    @property
    def min_child_rows(self) -> float: ...
    @property
    def min_gain(self) -> float: ...


class _Cut(NamedTuple):
    feature: int
    bins: int  # bits of those that go left
    sums: tuple[float, float]  # derivatives of what goes left
    gain: float


@dataclass
class _Node:
    """A leaf that may be cut: its number, the sums of its derivatives, the value of its parent, the
    range its value must keep to, the least gain on its way; the derivatives in its bins and the
    magnitudes of first ones, where they are known."""

    number: int
    sums: tuple[float, float]
    parent: float | None = None
    low: float = -np.inf
    high: float = np.inf
    way: float = np.inf
    gradient: Floats | None = None
    hessian: Floats | None = None
    gross: float = 0.0


class Growth:
    """One tree while it grows. Derivatives are in units, values in steps of the recipe.

    noise: the variance of what an average row says of its linear predictor, in squared steps: so
    many rows are a unit of evidence, and so much does chance alone add to the gain of a cut.
    """

    def __init__(
        self,
        cuts: tuple[Cuts, ...],
        chosen: list[int],
        settings: GrowthSettings,
        recipe: TreesRecipe,
        noise: float,
    ) -> None:
        self.noise = noise
        self.cuts, self.chosen, self.settings, self.recipe = cuts, chosen, settings, recipe
        self.start = np.concatenate([[0], np.cumsum([cuts[j].bins for j in chosen])])
        self.ordered = np.array([cuts[j].edges is not None for j in chosen])
        self.direction = np.array([cuts[j].monotone for j in chosen])
        self.feature, self.left, self.bins = [LEAF], [0], [0]
        self.value, self.gain = [0.0], [0.0]
        self._way: dict[int, float] = {}  # of each node that is cut, its own gain included
        self.told: set[int] = set()  # nodes whose cuts parties were told

    def first(self, place: Place) -> Ask:
        """The question about the root, of which nothing is known yet."""
        most = (self.recipe.most, self.recipe.most)
        return Ask(place=place, nodes=(0,), features=tuple(self.chosen), most=(most,))

    def grow(self, place: Place, root: Sums, ask_parties: Callable[[Ask], Sums]) -> Tree:
        g, h = root["gradient 0"], root["hessian 0"]
        width = self.start[1]
        sums = (float(g[:width].sum()), float(h[:width].sum()))
        level = [_Node(0, sums, gradient=g, hessian=h, gross=root.total("gross"))]
        self._settle(level[0])
        for depth in range(1, self.settings.depth + 1):
            pairs = [self._cut(node, best) for node, best in self._worth_a_cut(level)]
            if not pairs:
                break
            level = [child for pair in pairs for child in pair[1:]]
            if depth < self.settings.depth:
                self._fill(place, pairs, ask_parties)
        return self._of_most_gain()

    def _worth_a_cut(self, level: list[_Node]) -> list[tuple[_Node, _Cut]]:
        """The nodes of a level to cut, with their cuts: those that no order of the rest can put
        behind as many others as may be cut."""
        cuts = [(node, best) for node in level if (best := self._best_cut(node))]
        self._way |= {node.number: min(node.way, best.gain) for node, best in cuts}
        final = self._final()
        return [(node, best) for node, best in cuts if node.number in final]

    def _final(self) -> set[int]:
        """Of the nodes that may be cut so far, those that are cut first; of equals the first."""
        order = sorted(self._way, key=lambda number: -self._way[number])
        return set(order[: self.settings.leaves - 1])

    def _of_most_gain(self) -> Tree:
        """The tree with those of its cuts that gain most."""
        final = self._final()
        self.told |= final
        feature = [f if at in final else LEAF for at, f in enumerate(self.feature)]
        tree, nodes = self._tree().compact(feature)
        self.gain = [self.gain[at] for at in nodes]
        return tree

    def _shape(self) -> Tree:
        """The tree so far, without values: who is asked to count needs none."""
        tree = self._tree()
        return tree.model_copy(update={"value": (0.0,) * len(tree.value)})

    def _tree(self) -> Tree:
        return Tree(
            feature=tuple(self.feature),
            left=tuple(self.left),
            bins=tuple(f"{bins:x}" for bins in self.bins),
            value=tuple(v * self.recipe.step for v in self.value),
        )

    def _cut(self, node: _Node, best: _Cut) -> tuple[_Node, _Node, _Node]:
        """The node and its two children."""
        direction = self.cuts[best.feature].monotone
        first = len(self.feature)
        self.feature[node.number], self.left[node.number] = best.feature, first
        self.bins[node.number], self.gain[node.number] = best.bins, best.gain
        rest = (node.sums[0] - best.sums[0], node.sums[1] - best.sums[1])
        on_the_way = (self._leaf(node), node.low, node.high, self._way[node.number])
        left, right = _Node(first, best.sums, *on_the_way), _Node(first + 1, rest, *on_the_way)
        if direction:
            middle = (self._leaf(left) + self._leaf(right)) / 2
            if direction > 0:
                left.high = right.low = middle
            else:
                left.low = right.high = middle
        for child in (left, right):
            self.feature.append(LEAF)
            self.left.append(0)
            self.bins.append(0)
            self.value.append(0.0)
            self.gain.append(0.0)
            self._settle(child)
        return node, left, right

    def _leaf(self, node: _Node) -> float:
        g, h = node.sums
        if h <= 0:
            return float(np.clip(0.0, node.low, node.high))
        pull = self._pull(node.parent)
        return float(kernels.leaf_value(g, h, pull, node.low, node.high))

    def _pull(self, parent: float | None) -> kernels.Pull:
        """What draws a leaf's value, in average rows."""
        s = self.settings
        smoothing = 0.0 if parent is None else s.smoothing * self.noise
        return s.l1 * self.noise, s.l2 * self.noise, smoothing, parent or 0.0

    def _settle(self, node: _Node) -> None:
        self.value[node.number] = self.settings.learning_rate * self._leaf(node)

    def _fill(
        self,
        place: Place,
        pairs: list[tuple[_Node, _Node, _Node]],
        ask_parties: Callable[[Ask], Sums],
    ) -> None:
        """Derivatives by bin for children that can be cut: the lesser of two is asked, the other
        follows. No bin of a node holds more than all of it, nor more than its parent's."""
        pairs = [pair for pair in pairs if any(map(self._can_be_cut, pair[1:]))]
        if not pairs:
            return
        self.told |= {at for at, feature in enumerate(self.feature) if feature != LEAF}
        lesser = [min(pair[1:], key=lambda n: n.sums[1]) for pair in pairs]
        ask = Ask(
            place=place.model_copy(update={"growing": self._shape()}),
            nodes=tuple(node.number for node in lesser),
            features=tuple(self.chosen),
            most=tuple(
                (_bound(pair[0].gross), _bound(node.sums[1]))
                for pair, node in zip(pairs, lesser, strict=True)
            ),
        )
        total = ask_parties(ask)
        for k, ((parent, left, right), small) in enumerate(zip(pairs, lesser, strict=True)):
            large = right if small is left else left
            assert parent.gradient is not None and parent.hessian is not None
            small.gradient, small.hessian = total[f"gradient {k}"], total[f"hessian {k}"]
            small.gross = float(total["gross"][k])
            large.gradient = parent.gradient - small.gradient
            large.hessian = parent.hessian - small.hessian
            large.gross = parent.gross - small.gross

    def _can_be_cut(self, node: _Node) -> bool:
        return node.sums[1] >= 2 * self.settings.min_child_rows

    def _best_cut(self, node: _Node) -> _Cut | None:
        """The cut that gains most, or None where none is allowed or worth it."""
        g, h, s = node.gradient, node.hessian, self.settings
        if g is None or h is None or not self._can_be_cut(node):
            return None
        pull = self._pull(self._leaf(node))
        free = (SMOOTH, self.noise, s.min_child_rows, pull, node.low, node.high)
        gain, cut, missing = kernels.best_cuts(
            g, h, self.start, self.ordered, self.direction, *free
        )
        k = int(gain.argmax())
        if gain[k] <= s.min_gain * self.noise:
            return None
        part = slice(self.start[k], self.start[k + 1])
        left, sums = self._sides(node, k, g[part], h[part], int(cut[k]), bool(missing[k]))
        bins = int.from_bytes(np.packbits(left, bitorder="little").tobytes(), "little")
        return _Cut(self.chosen[k], bins, sums, float(gain[k]))

    def _sides(
        self, node: _Node, k: int, g: Floats, h: Floats, last: int, missing: bool
    ) -> tuple[NDArray[np.bool_], tuple[float, float]]:
        """What a cut of the k-th chosen feature sends left: its bins and sums. Levels that no row of
        the node has, and missing values where it has none, go with the greater part."""
        empty = (g == 0) & (h == 0)
        if self.ordered[k]:
            left = np.arange(len(g)) <= last
            left[-1] = missing
            empty[:-1] = False  # between numbers their order decides
        else:
            left = np.zeros(len(g), dtype=bool)
            left[np.argsort(g / (h + SMOOTH), kind="stable")[: last + 1]] = True
        sums = (float(g[left].sum()), float(h[left].sum()))
        left[empty] = 2 * sums[1] >= node.sums[1]
        return left, sums


def _bound(value: float) -> float:
    """A bound for sums, the next power of two: the number itself may stand on few persons."""
    return float(2.0 ** np.ceil(np.log2(max(value, GRAIN))))
