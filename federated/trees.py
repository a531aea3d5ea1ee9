"""Growing gradient-boosted trees from sums: the coordinator's side.

Level by level: for the lesser child of every cut the parties are asked for derivatives by bin, the
greater child is its parent minus that (Ke et al., "LightGBM", 2017). Cuts are chosen from totals
alone, which are exact whole numbers, so that the trees are those of the pooled rows to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from federated.experiment import TreesModel
from federated.features import is_category, levelled
from federated.federation import Federation
from federated.glm import constant_predictor, row_curvature
from lab import kernels
from lab.contracts import Contract
from lab.errors import ConfigurationError, ModelError
from lab.features import Feature
from lab.glm import Task
from lab.sums import Floats
from lab.trees import LEAF, MOST_BINS, Cuts, Place, Recipe, Tree, Trees

#: The first ladder of edges: half octaves either side of 0; then every heavy step is cut into so
#: many, so many times: to four digits.
OCTAVES = 40
STEPS, TIMES = 16, 3
#: Average rows that pull the order of a category's levels towards the node's mean.
SMOOTH = 10.0
#: The constant model is rounded, so that the last bits of a mean cannot change a tree.
COARSE = 2.0**10
Ask = Callable[..., Any]


def train(
    federation: Federation,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    settings: TreesModel,
    seed: int,
    watch: Callable[[str, int, int | None], None] | None = None,
) -> tuple[Trees, pd.DataFrame]:
    """(model, losses by step). Same seed and same rows give the same bits, for any split of rows."""
    cuts = agree_cuts(federation, task, features, contract, settings)
    totals = federation.sum("means", task=task.model_dump_json(), part="train")
    rows = round(totals.total("rows"))
    intercept = round(constant_predictor(task.law, totals) * COARSE) / COARSE
    unit = row_curvature(task.law, totals, rows)
    recipe = Recipe(intercept=intercept, unit=unit, rows=rows, held=settings.held, seed=seed)
    told: dict[str, Any] = {
        "task": task.model_dump_json(),
        "cuts": "[" + ",".join(cut.model_dump_json() for cut in cuts) + "]",
        "recipe": recipe.model_dump_json(),
    }

    def ask(place: Place, nodes: list[int], chosen: list[int]) -> Any:
        return federation.sum(
            "tree_level", place=place.model_dump_json(), nodes=nodes, features=chosen, **told
        )

    trees: list[Tree] = []
    trace, place = [], Place()
    for at in range(settings.trees + 1):
        if watch:
            watch(f"tree {at} of {settings.trees}", at, settings.trees)
        chosen = _chosen(len(cuts), settings.features, seed, at)
        root = ask(place, [0], chosen)
        grown, held = root["loss"] * unit / np.maximum(root["size"], 1)
        trace.append({"step": at, "loss": grown, "held": held if settings.held else np.nan})
        best = _best(trace, settings)
        if at == settings.trees or at - best >= settings.patience:
            break
        tree = _Growth(cuts, chosen, settings, place, ask).grow(root)
        trees.append(tree)
        place = place.next(tree)
    model = Trees(task=task, cuts=cuts, intercept=intercept, trees=tuple(trees[:best]))
    return model, pd.DataFrame(trace)


def _chosen(count: int, share: float, seed: int, at: int) -> list[int]:
    """The features that a tree may use."""
    if share == 1.0:
        return list(range(count))
    rng = np.random.default_rng([seed, at])
    kept = rng.choice(count, max(1, round(share * count)), replace=False)
    return sorted(int(j) for j in kept)


def _best(trace: list[dict[str, float]], settings: TreesModel) -> int:
    """How many trees to keep: all, or as many as judged the held-out rows best."""
    if not settings.held:
        return len(trace) - 1
    return int(np.argmin([line["held"] for line in trace]))


class _Cut(NamedTuple):
    feature: int
    bins: int  # bits of those that go left
    sums: tuple[float, float]  # derivatives of what goes left


@dataclass
class _Node:
    """A leaf that may be cut: its number, the derivatives in its bins (None where it is too deep
    to be cut), their sums, and the range its value must keep to."""

    number: int
    gradient: Floats | None
    hessian: Floats | None
    sums: tuple[float, float]
    low: float = -np.inf
    high: float = np.inf


class _Growth:
    """One tree while it grows."""

    def __init__(
        self,
        cuts: tuple[Cuts, ...],
        chosen: list[int],
        settings: TreesModel,
        place: Place,
        ask: Ask,
    ) -> None:
        self.cuts, self.chosen, self.settings = cuts, chosen, settings
        self.place, self.ask = place, ask
        self.start = np.concatenate([[0], np.cumsum([cuts[j].bins for j in chosen])])
        self.ordered = np.array([cuts[j].edges is not None for j in chosen])
        self.direction = np.array([cuts[j].monotone for j in chosen])
        self.feature, self.left, self.bins = [LEAF], [0], [0]
        self.value = [0.0]

    def grow(self, root: Any) -> Tree:
        g, h = root["gradient"][0], root["hessian"][0]
        width = self.start[1]
        sums = (float(g[:width].sum()), float(h[:width].sum()))
        level = [_Node(0, g, h, sums)]
        for depth in range(1, self.settings.depth + 1):
            pairs = [pair for node in level if (pair := self._cut(node))]
            if not pairs:
                break
            level = [child for pair in pairs for child in pair[1:]]
            if depth < self.settings.depth:
                self._fill(pairs)
        return self._tree()

    def _tree(self) -> Tree:
        return Tree(
            feature=tuple(self.feature),
            left=tuple(self.left),
            bins=tuple(f"{bins:x}" for bins in self.bins),
            value=tuple(self.value),
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
        left = _Node(first, None, None, best.sums, node.low, node.high)
        right = _Node(first + 1, None, None, rest, node.low, node.high)
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
        return float(np.clip(-g / (h + self.settings.ridge), node.low, node.high))

    def _settle(self, node: _Node) -> None:
        self.value[node.number] = self.settings.learning_rate * self._leaf(node)

    def _fill(self, pairs: list[tuple[_Node, _Node, _Node]]) -> None:
        """Derivatives by bin for all children: the lesser of two is asked, the other follows."""
        lesser = [min(pair[1:], key=lambda n: n.sums[1]) for pair in pairs]
        place = self.place.model_copy(update={"growing": self._tree()})
        total = self.ask(place, [node.number for node in lesser], self.chosen)
        for k, (parent, left, right) in enumerate(pairs):
            small, large = (left, right) if lesser[k] is left else (right, left)
            assert parent.gradient is not None and parent.hessian is not None
            small.gradient, small.hessian = total["gradient"][k], total["hessian"][k]
            large.gradient = parent.gradient - small.gradient
            large.hessian = parent.hessian - small.hessian
            parent.gradient = parent.hessian = None

    def _best_cut(self, node: _Node) -> _Cut | None:
        """The cut that gains most, or None where none is allowed or worth it."""
        g, h, s = node.gradient, node.hessian, self.settings
        if g is None or h is None:
            return None
        free = (SMOOTH, s.ridge, s.least, node.low, node.high)
        gain, cut, missing = kernels.best_cuts(
            g, h, self.start, self.ordered, self.direction, *free
        )
        k = int(gain.argmax())
        if gain[k] <= s.least_gain:
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


# Bins that all parties agree on.


def agree_cuts(
    federation: Federation,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    settings: TreesModel,
) -> tuple[Cuts, ...]:
    """Bins of each feature with about the same number of training rows in each, from counts alone.

    Edges are found on a ladder that is cut finer where rows are many; a value that many rows share
    gets a bin of its own. Levels are those of the contract, or announced, that have a row.
    """
    _check_monotone(settings, features, contract)
    categories = [f for f in features if is_category(f, contract)]
    levels = {t.feature: t.levels for t in levelled(federation, task, categories, contract, [])}
    found: dict[Feature, Cuts] = {}
    for feature, named in levels.items():
        if len(named) > MOST_BINS:
            raise ConfigurationError(
                f"data.features: '{feature.column}' has {len(named)} levels, trees take {MOST_BINS}; "
                "group them or leave it out"
            )
        found[feature] = Cuts(feature=feature, levels=named)
    numbers = [f for f in features if f not in categories]
    terms = [
        Cuts(
            feature=f,
            edges=(),
            levels=contract.columns[f.column].levels or (),
            monotone=settings.monotone.get(f.column, 0),
        )
        for f in numbers
    ]
    wide = 2.0 ** (np.arange(2 * OCTAVES + 1) / 2 - OCTAVES / 2)
    ladders = [np.concatenate([-wide[::-1], [0.0], wide])] * len(numbers)
    told = f"[{','.join(term.model_dump_json() for term in terms)}]"
    counts = _counted(federation, task, told, ladders)
    for _ in range(TIMES):
        pairs = zip(ladders, counts, strict=True)
        ladders = [_finer(ladder, count, settings.bins) for ladder, count in pairs]
        counts = _counted(federation, task, told, ladders)
    for term, ladder, count in zip(terms, ladders, counts, strict=True):
        edges = tuple(_edges(ladder, count, settings.bins))
        found[term.feature] = term.model_copy(update={"edges": edges})
    return tuple(found[f] for f in features if f in found)


def _check_monotone(
    settings: TreesModel, features: tuple[Feature, ...], contract: Contract
) -> None:
    numbers = [f.column for f in features if not is_category(f, contract)]
    for name in settings.monotone:
        if name not in numbers:
            raise ConfigurationError(
                f"model.monotone: '{name}' is not a numeric feature; there are {', '.join(numbers)}"
            )


def _counted(federation: Federation, task: Task, terms: str, ladders: list[Floats]) -> list[Floats]:
    """Rows on each rung of each feature's ladder, one more than it has edges."""
    if not ladders:
        return []
    edges = np.full((len(ladders), max(map(len, ladders))), np.inf)
    for row, ladder in zip(edges, ladders, strict=True):
        row[: len(ladder)] = ladder
    edges = np.minimum(edges, np.finfo(np.float64).max)
    told = task.model_dump_json()
    counts = federation.sum("bin_counts", {"edges": edges}, task=told, cuts=terms)["count"]
    return [row[: len(ladder) + 1] for row, ladder in zip(counts, ladders, strict=True)]


def _finer(ladder: Floats, count: Floats, bins: int) -> Floats:
    """The ladder with heavy rungs cut and light ones joined."""
    heavy = count.sum() / (2 * bins)
    edges, joined = [], 0.0
    for k, edge in enumerate(ladder):  # edge k ends rung k; the last rung has no end
        low = ladder[k - 1] if k else edge
        if count[k] > heavy:
            if k and joined:
                edges.append(low)
            step = np.linspace(low, edge, STEPS + 1)[1:-1] if k else np.zeros(0)
            edges += [*([low] if k else []), *step, edge]
            joined = 0.0
        elif joined + count[k] > heavy:
            edges.append(low)
            joined = count[k]
        else:
            joined += count[k]
    edges.append(ladder[-1])
    return np.unique(edges)


def _edges(ladder: Floats, count: Floats, bins: int) -> list[float]:
    """Edges of at most so many bins: heavy rungs alone, the others filled up in order."""
    full = np.flatnonzero(count)
    if len(full) <= bins:
        return [float(ladder[k]) for k in full[:-1]]
    share = count.sum() / bins
    alone = count >= share
    left, rows = bins - int(alone.sum()), float(count[~alone].sum())
    target = rows / max(left, 1)
    edges, held = [], 0.0
    for k in range(len(ladder)):
        following = alone[k + 1] if k + 1 < len(count) else False
        held += 0.0 if alone[k] else float(count[k])
        if alone[k] or held >= target or (following and held):
            edges.append(float(ladder[k]))
            held = 0.0
    return edges[: bins - 1]


def check(model: Trees) -> None:
    """Refuse a model without a tree."""
    if not model.trees:
        raise ModelError("no tree was grown")
