"""Growing gradient-boosted trees from sums: the coordinator's side.

Level by level: for the lesser child of every cut the parties are asked for derivatives by bin, the
greater child is its parent minus that (Ke et al., "LightGBM", 2017). Cuts are chosen from totals
alone, which are exact whole numbers, so that the trees are those of the pooled rows to the bit.
What is known of a node before it is asked bounds its numbers, and narrow numbers cost less to hide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from federated.federation import ModelTotals
from federated.solvers.bins import agree_cuts
from federated.solvers.glm import constant_predictor, row_curvature
from federated.solvers.solution import ModelSettings, Solution, Watch
from lab.errors import ModelError
from lab.models import kernels
from lab.models.design import Feature, Number
from lab.models.families import FamilyName
from lab.models.glm import Task
from lab.models.tree_model import LEAF, Cuts, Tree, Trees
from lab.models.trees import GRAIN, MOST_ROWS, REACH, Ask, Place, TreesRecipe
from lab.sums import Floats, Sums
from lab.tables.contracts import Contract

#: Average rows that pull the order of a category's levels towards the node's mean.
SMOOTH = 10.0
#: What is said where the sums of a party do not keep to the bounds that follow from all rows.
RUN_AWAY = (
    f"a few rows weigh more than {REACH} times all rows of an average model; lower "
    "model.learning_rate, raise model.min_child_rows or model.l2, or cap the target"
)
#: The constant model is rounded, so that the last bits of a mean cannot change a tree.
COARSE = 2.0**10


class TreesSettings(ModelSettings):
    """``[model] kind = "trees"``: gradient-boosted trees, grown level by level.

    ``l2`` and ``min_child_rows`` are in average rows: what pulls a leaf towards 0, and what must
    stand on either side of a cut. ``features``: the share of features drawn for each tree.
    ``validation_share``: the share of persons that judge when to stop, after ``patience`` trees without gain. ``monotone``:
    1 or -1 for features in which the model must rise or fall.
    """

    missing: ClassVar[Literal["mean", "keep"]] = "keep"

    kind: Literal["trees"] = Field(description="Gradient-boosted trees.")
    family: FamilyName = Field("binomial", description="Distribution of the target.")
    power: float | None = Field(None, description="Power of the variance, for tweedie.")
    trees: int = Field(100, ge=1, le=10_000, description="Trees, at most.")
    depth: int = Field(6, ge=1, le=10, description="Levels of a tree.")
    learning_rate: float = Field(
        0.1, gt=0, le=1, description="Share of a leaf's value that is added."
    )
    bins: int = Field(
        64, ge=2, le=254, description="Bins of a number."
    )  # one byte, less one for what is missing
    l2: float = Field(1.0, ge=0, description="Average rows that pull a leaf towards 0.")
    min_child_rows: float = Field(
        20.0, gt=0, description="Average rows on either side of a cut, at least."
    )
    min_gain: float = Field(0.0, ge=0, description="Gain of a cut, at least.")
    features: float = Field(1.0, gt=0, le=1, description="Share of features drawn for each tree.")
    validation_share: float = Field(
        0.0, ge=0, lt=1, description="Share of persons that judge when to stop."
    )
    patience: int = Field(20, ge=1, description="Trees without gain after which to stop.")
    monotone: dict[str, Literal[-1, 1]] = Field(
        default_factory=dict,
        description="As { age = 1 }: the prediction must not fall as age rises; -1: must not rise.",
    )

    def law(self) -> dict[str, Any]:
        return {"family": self.family, "power": self.power}


def solve(
    federation: ModelTotals,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    settings: TreesSettings,
    seed: int,
    watch: Watch | None = None,
    left_out: list[str] | None = None,
) -> Solution:
    """The trees, and their losses by step. What never varies gets no bins, so nothing is left out."""
    model, losses = train(federation, task, features, contract, settings, seed, watch)
    return Solution(model, losses)


def train(
    federation: ModelTotals,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    settings: TreesSettings,
    seed: int,
    watch: Callable[[str, int, int | None], None] | None = None,
) -> tuple[Trees, pd.DataFrame]:
    """(model, losses by step). Same seed and same rows give the same bits, for any split of rows."""
    # 1. What is fixed before the first tree.
    totals = federation.sum("totals", task=task, part="train")
    cuts = agree_cuts(
        federation,
        task,
        features,
        contract,
        round(totals.total("rows")),
        bins=settings.bins,
        monotone=settings.monotone,
    )
    recipe = _recipe(federation, task, totals, settings)

    def ask_parties(ask: Ask) -> Sums:
        sums = federation.sum("trees_level", ask=ask, task=task, cuts=cuts, recipe=recipe)
        if sums.total("beyond") > 0:
            raise ModelError(RUN_AWAY)
        return sums

    # 2. Tree by tree; the sums at a root tell the loss of the trees before it.
    trees: list[Tree] = []
    trace, place = [], Place()
    for at in range(settings.trees + 1):
        if watch:
            watch(f"tree {at} of {settings.trees}", at, settings.trees)
        growth = _Growth(cuts, _chosen(len(cuts), settings.features, seed, at), settings, recipe)
        root = ask_parties(growth.first(place))
        trace.append({"step": at, **_losses(root, settings, recipe)})
        best = _best(trace, settings)
        if at == settings.trees or at - best >= settings.patience:
            break
        tree = growth.grow(place, root, ask_parties)
        trees.append(tree)
        place = place.next(tree)
    model = Trees(task=task, cuts=cuts, intercept=recipe.intercept, trees=tuple(trees[:best]))
    return model, pd.DataFrame(trace)


def _losses(root: Sums, settings: TreesSettings, recipe: TreesRecipe) -> dict[str, float]:
    """Mean deviance of the rows that trees grow from, and of those that judge when to stop."""
    if not all(root["size"][: 2 if settings.validation_share else 1]):
        raise ModelError(
            "no row is left to grow from, or none to judge by; change model.validation_share"
        )
    loss = root["loss"] * recipe.unit * recipe.step**2 / np.maximum(root["size"], 1)
    return {"loss": loss[0], "validation": loss[1] if settings.validation_share else np.nan}


def _recipe(
    federation: ModelTotals, task: Task, totals: Sums, settings: TreesSettings
) -> TreesRecipe:
    """What is fixed before the first tree, rounded so that no order of rows can change a bit."""
    law, rows, step = task.law, round(totals.total("rows")), 1.0
    if rows > MOST_ROWS:
        raise ModelError(f"{rows:,} rows are more than the {MOST_ROWS:,} that trees are exact for")
    start = constant_predictor(law, totals)
    if law.name == "gaussian":  # the other families have a scale of their own
        term = Number(feature=Feature(column=task.target), mean=start, scale=1.0)
        moments = federation.sum("moments", task=task, features=(term,))
        spread = float(moments["second"][0]) / rows
        if spread <= 1e-24 * start**2:
            raise ModelError("the target is the same in every training row")
        step = 2.0 ** round(np.log2(spread) / 2)
    return TreesRecipe(
        intercept=round(start / step * COARSE) / COARSE * step,
        step=step,
        unit=row_curvature(law, totals, rows),
        rows=rows,
        validation_share=settings.validation_share,
    )


def _chosen(count: int, share: float, seed: int, at: int) -> list[int]:
    """The features that a tree may use."""
    if share == 1.0:
        return list(range(count))
    rng = np.random.default_rng([seed, at])
    features = rng.choice(count, max(1, round(share * count)), replace=False)
    return sorted(int(j) for j in features)


def _best(trace: list[dict[str, float]], settings: TreesSettings) -> int:
    """How many trees to keep: all, or as many as judged the held-out rows best."""
    if not settings.validation_share:
        return len(trace) - 1
    return int(np.argmin([line["validation"] for line in trace]))


class _Cut(NamedTuple):
    feature: int
    bins: int  # bits of those that go left
    sums: tuple[float, float]  # derivatives of what goes left


@dataclass
class _Node:
    """A leaf that may be cut: its number, the sums of its derivatives, the range its value must
    keep to; the derivatives in its bins and the magnitudes of first ones, where they are known."""

    number: int
    sums: tuple[float, float]
    low: float = -np.inf
    high: float = np.inf
    gradient: Floats | None = None
    hessian: Floats | None = None
    gross: float = 0.0


class _Growth:
    """One tree while it grows. Derivatives are in units, values in steps of the recipe."""

    def __init__(
        self,
        cuts: tuple[Cuts, ...],
        chosen: list[int],
        settings: TreesSettings,
        recipe: TreesRecipe,
    ) -> None:
        self.cuts, self.chosen, self.settings, self.recipe = cuts, chosen, settings, recipe
        self.start = np.concatenate([[0], np.cumsum([cuts[j].bins for j in chosen])])
        self.ordered = np.array([cuts[j].edges is not None for j in chosen])
        self.direction = np.array([cuts[j].monotone for j in chosen])
        self.feature, self.left, self.bins = [LEAF], [0], [0]
        self.value = [0.0]

    def first(self, place: Place) -> Ask:
        """The question about the root, of which nothing is known yet."""
        most = (self.recipe.most, self.recipe.most)
        return Ask(place=place, nodes=(0,), features=tuple(self.chosen), most=(most,))

    def grow(self, place: Place, root: Sums, ask_parties: Callable[[Ask], Sums]) -> Tree:
        g, h = root["gradient 0"], root["hessian 0"]
        width = self.start[1]
        sums = (float(g[:width].sum()), float(h[:width].sum()))
        level = [_Node(0, sums, gradient=g, hessian=h, gross=root.total("gross"))]
        for depth in range(1, self.settings.depth + 1):
            pairs = [pair for node in level if (pair := self._cut(node))]
            if not pairs:
                break
            level = [child for pair in pairs for child in pair[1:]]
            if depth < self.settings.depth:
                self._fill(place, pairs, ask_parties)
        return self._tree()

    def _tree(self) -> Tree:
        return Tree(
            feature=tuple(self.feature),
            left=tuple(self.left),
            bins=tuple(f"{bins:x}" for bins in self.bins),
            value=tuple(v * self.recipe.step for v in self.value),
        )

    def _cut(self, node: _Node) -> tuple[_Node, _Node, _Node] | None:
        """The node and its two children, or None where it stays a leaf with its value."""
        best = self._best_cut(node)
        if best is None:
            self._settle(node)
            return None
        direction = self.cuts[best.feature].monotone
        first = len(self.feature)
        self.feature[node.number], self.left[node.number] = best.feature, first
        self.bins[node.number] = best.bins
        rest = (node.sums[0] - best.sums[0], node.sums[1] - best.sums[1])
        left = _Node(first, best.sums, node.low, node.high)
        right = _Node(first + 1, rest, node.low, node.high)
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
            self._settle(child)
        self.value[node.number] = 0.0
        return node, left, right

    def _leaf(self, node: _Node) -> float:
        g, h = node.sums
        value = -g / (h + self.settings.l2) if h > 0 else 0.0
        return float(np.clip(value, node.low, node.high))

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
        lesser = [min(pair[1:], key=lambda n: n.sums[1]) for pair in pairs]
        ask = Ask(
            place=place.model_copy(update={"growing": self._tree()}),
            nodes=tuple(node.number for node in lesser),
            features=tuple(self.chosen),
            most=tuple(
                (max(pair[0].gross, GRAIN), node.sums[1])
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
        free = (SMOOTH, self.recipe.unit, s.l2, s.min_child_rows, node.low, node.high)
        gain, cut, missing = kernels.best_cuts(
            g, h, self.start, self.ordered, self.direction, *free
        )
        k = int(gain.argmax())
        if gain[k] <= s.min_gain:
            return None
        part = slice(self.start[k], self.start[k + 1])
        return self._made(node, k, g[part], h[part], int(cut[k]), bool(missing[k]))

    def _made(self, node: _Node, k: int, g: Floats, h: Floats, last: int, missing: bool) -> _Cut:
        """The cut of the k-th chosen feature: its bins and sums. Levels that no row of the node
        has, and missing values where it has none, go with the greater part."""
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
        bins = int.from_bytes(np.packbits(left, bitorder="little").tobytes(), "little")
        return _Cut(self.chosen[k], bins, sums)


Settings = TreesSettings
