"""Growing gradient-boosted trees from sums: the coordinator's side.

Level by level: for the lesser child of every cut the parties are asked for derivatives by bin, the
greater child is its parent minus that (Ke et al., "LightGBM", 2017). Cuts are chosen from totals
alone, which are exact whole numbers, so that the trees are those of the pooled rows to the bit.
What is known of a node before it is asked bounds its numbers, and narrow numbers cost less to hide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from federated.federation import ModelTotals
from federated.solvers.bins import agree_cuts
from federated.solvers.encoding import leave_out, totals_of
from federated.solvers.glm import constant_predictor
from federated.solvers.growth import Growth
from federated.solvers.solution import ModelSettings, Solution, Watch
from lab.errors import ConfigurationError, ModelError
from lab.models.design import Feature, Number
from lab.models.families import FamilyName, Scale
from lab.models.glm import Task
from lab.models.tree_model import LEAF, MOST_BINS, Cuts, Tree, Trees
from lab.models.tree_rows import LEAST_DRAWN, MOST_ROWS, REACH, Place, TreesRecipe
from lab.models.trees import Ask
from lab.privacy.joining import Opened, by_parties
from lab.sums import Floats, Sums
from lab.tables.contracts import Contract

#: What is said where the sums of a party do not keep to the bounds that follow from all rows.
RUN_AWAY = (
    f"a few rows weigh more than {REACH} times all rows of an average model; lower "
    "model.learning_rate, raise model.min_child_rows or model.l2, or cap the target"
)
#: The constant model and the units are rounded, so that the last bits of a mean cannot change a tree.
COARSE = 2.0**20


class TreesSettings(ModelSettings):
    """``[model] kind = "trees"``: gradient-boosted trees, the leaf of most gain cut first.

    ``l1``, ``l2`` and ``smoothing`` are in units of evidence: what is taken from a leaf's sum, what
    pulls it towards 0, what pulls it towards its parent. A unit is as many average rows as tell the
    linear predictor with a standard error of 1: a claim, or 20 rows where one in 20 has a claim,
    and more where amounts vary much; so leaves are drawn further where rows tell little.
    ``min_gain`` is in what chance alone adds to the gain of a cut, ``min_child_rows``, on either side
    of it, in average rows. ``leaves = 2**depth`` cuts every level in full. ``rows``, ``features``: the
    shares of persons and of features drawn for each tree. ``validation_share``: the share of persons
    that judge when to stop, after ``patience`` trees without gain; with ``refit`` so many trees are
    then grown from all rows. ``monotone``: 1 or -1 for features in which the model must rise or fall.
    """

    missing: ClassVar[Literal["mean", "keep"]] = "keep"

    kind: Literal["trees"] = Field(description="Gradient-boosted trees.")
    family: FamilyName = Field("binomial", description="Distribution of the target.")
    power: float | None = Field(None, description="Power of the variance, for tweedie.")
    trees: int = Field(1000, ge=1, le=10_000, description="Trees, at most.")
    depth: int = Field(8, ge=1, le=10, description="Levels of a tree, at most.")
    leaves: int = Field(
        15, ge=2, le=2**10, description="Leaves of a tree, at most; those that gain most are cut."
    )
    learning_rate: float = Field(
        0.05, gt=0, le=1, description="Share of a leaf's value that is added."
    )
    bins: int = Field(64, ge=2, le=MOST_BINS, description="Bins of a number.")
    l1: float = Field(0.0, ge=0, description="Units of evidence taken from a leaf's sum.")
    l2: float = Field(
        1.0,
        ge=0,
        description="Units of evidence that pull a leaf towards 0; a unit is about one claim.",
    )
    smoothing: float = Field(
        0.0, ge=0, description="Units of evidence that pull a leaf towards its parent."
    )
    min_child_rows: float = Field(
        20.0, gt=0, description="Average rows on either side of a cut, at least."
    )
    min_gain: float = Field(
        2.0, ge=0, description="Gain of a cut, at least, in what chance alone adds to it."
    )
    rows: float = Field(
        1.0, ge=LEAST_DRAWN, le=1, description="Share of persons drawn for each tree."
    )
    features: float = Field(1.0, gt=0, le=1, description="Share of features drawn for each tree.")
    validation_share: float = Field(
        0.2, ge=0, lt=1, description="Share of persons that judge when to stop; 0: never."
    )
    patience: int = Field(50, ge=1, description="Trees without gain after which to stop.")
    refit: bool = Field(
        True, description="Once it is known when to stop, grow so many trees from all rows."
    )
    own_trees: int = Field(
        0,
        ge=0,
        description="First trees that cut the insurer's own columns alone, where sides are joined: what they explain, later cuts on the fund's columns do not tell.",
    )
    monotone: dict[str, Literal[-1, 1]] = Field(
        default_factory=dict,
        description="As { age = 1 }: the prediction must not fall as age rises; -1: must not rise.",
    )

    def law(self) -> dict[str, Any]:
        return {"family": self.family, "power": self.power}


def most_histograms(settings: TreesSettings) -> int:
    """Nodes whose derivatives by bin are opened, at most."""
    lesser = sum(min(1 << depth, settings.leaves - 1) for depth in range(settings.depth - 1))
    again = 2 if settings.validation_share and settings.refit else 1
    return again * (settings.trees * (1 + lesser) + 1)


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
    """The trees, and their losses by step; what never varies gets no bins.

    Raises :class:`ConfigurationError` where everybody sees the totals, :class:`ModelError` for a
    feature that never varies unless there is a list ``left_out``.
    """
    if federation.everybody:
        raise ConfigurationError(
            "trees are grown from sums by bin, some of few persons, and here all parties see every "
            "total; use protection.sums = 'paillier' with protection.key = 'authority', or "
            "model.kind = 'glm' or 'network'"
        )
    model, losses = train(federation, task, features, contract, settings, seed, watch)
    used = {cut.feature for cut in model.cuts}
    for feature in (f for f in features if f not in used):
        leave_out(feature.name, left_out)
    return Solution(model, losses)


def train(
    federation: ModelTotals,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    settings: TreesSettings,
    seed: int,
    watch: Watch | None = None,
) -> tuple[Trees, pd.DataFrame]:
    """(model, losses by step). Same seed and same rows give the same bits, for any split of rows."""
    # 1. What is fixed before the first tree.
    totals = totals_of(federation, task)
    cuts = agree_cuts(
        federation,
        task,
        features,
        contract,
        round(totals.total("rows")),
        bins=settings.bins,
        least=settings.min_persons,
        monotone=settings.monotone,
    )
    recipe = _recipe(federation, task, totals, settings)
    noise = 1.0 if task.law.name == "gaussian" else Scale.of(totals).noise(task.law)

    growing = _Growing(
        *(federation, task, contract, cuts, recipe, settings), _rounded(noise), seed, watch
    )
    # 2. Tree by tree; the sums at a root tell the loss of the trees before it.
    grown, trace = growing.trees()
    # 3. So many trees as judged the held-out rows best, from all rows.
    if settings.validation_share and settings.refit and grown:
        grown, _ = growing.from_all(len(grown)).trees()
    return _model(task, cuts, recipe, grown), trace


def _model(
    task: Task, cuts: tuple[Cuts, ...], recipe: TreesRecipe, grown: list[tuple[Tree, Floats]]
) -> Trees:
    """The file of trees, each with the gain of its cuts by feature."""
    gains = sum((gain for _, gain in grown), np.zeros(len(cuts)))
    return Trees(
        task=task,
        cuts=cuts,
        intercept=recipe.intercept,
        trees=tuple(tree for tree, _ in grown),
        gains=tuple(gains.tolist()),
    )


@dataclass(frozen=True)
class _Growing:
    """What trees grow from, and what is asked of the parties meanwhile."""

    federation: ModelTotals
    task: Task
    contract: Contract
    cuts: tuple[Cuts, ...]
    recipe: TreesRecipe
    settings: TreesSettings
    noise: float
    seed: int
    watch: Watch | None

    def from_all(self, trees: int) -> _Growing:
        """The same, with nothing held out and so many trees."""
        settings = self.settings.model_copy(update={"trees": trees, "validation_share": 0.0})
        recipe = self.recipe.model_copy(update={"validation_share": 0.0})
        return replace(self, settings=settings, recipe=recipe)

    def trees(self) -> tuple[list[tuple[Tree, Floats]], pd.DataFrame]:
        """Each tree with (features,) the gain of its cuts, and losses by step."""
        settings, place, told = self.settings, Place(), 0
        grown: list[tuple[Tree, Floats]] = []
        trace: list[dict[str, float]] = []
        for at in range(settings.trees + 1):
            if self.watch:
                self.watch(f"tree {at} of {settings.trees}", at, settings.trees)
            chosen = _chosen(self.cuts, self.contract, settings, self.seed, at)
            growth = Growth(self.cuts, chosen, settings, self.recipe, self.noise)
            root = self.level(growth.first(place))
            trace.append({"step": at, **_losses(root, settings, self.recipe)})
            best = _best(trace, settings)
            if at == settings.trees or at - best >= settings.patience:
                break
            tree = growth.grow(place, root, self.level)
            grown.append(_of_enough(growth, tree, settings, self, place))
            place, told = place.next(grown[-1][0]), told + len(growth.told)
        opened = Opened("trees_level", 2 * len(trace) + told + len(self.cuts))
        self.federation.opened.append(opened)
        return grown[:best], pd.DataFrame(trace)

    def level(self, ask: Ask) -> Sums:
        """Derivatives by bin. Raises :class:`ModelError` where they are beyond all bounds."""
        sums = self._sum("trees_level", ask=ask)
        if sums.total("beyond") > 0:
            raise ModelError(RUN_AWAY)
        return sums

    def persons(self, place: Place) -> Floats:
        """(nodes,) persons at each leaf of the tree that grows."""
        counts = self._sum("trees_leaves", place=place)
        return by_parties(counts, self.federation.least_parties)

    def _sum(self, statistic: str, **arguments: Any) -> Sums:
        return self.federation.sum(
            statistic, task=self.task, cuts=self.cuts, recipe=self.recipe, **arguments
        )


def _of_enough(
    growth: Growth,
    tree: Tree,
    settings: TreesSettings,
    ask: _Growing,
    place: Place,
) -> tuple[Tree, Floats]:
    """The tree that grew, without cuts that leave a leaf with too few persons, and (features,) the
    gain of those that stay.

    Its values are told to nobody before: the parties count at a tree that holds none. A person with
    rows at two leaves counts at both, so that a joined leaf is counted anew.
    """
    gain = np.array(growth.gain)
    while True:
        persons = ask.persons(place.model_copy(update={"growing": tree.shape()}))
        smaller, nodes = tree.joined(persons, settings.min_persons)
        gain = gain[list(nodes)]
        if len(smaller.feature) in (1, len(tree.feature)):
            feature = np.array(smaller.feature)
            cut = feature != LEAF
            if len(feature) > 1:  # a lone root stands on all rows
                behind = persons[~cut]
                told = len(feature) + int(
                    cut.sum()
                )  # values, and the share that goes left at a cut
                ask.federation.opened.append(Opened.cells("trees_leaves", told, behind))
            by_feature = np.bincount(feature[cut], gain[cut], len(growth.cuts))
            return smaller, by_feature.astype(np.float64)
        tree = smaller


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
        size = float(np.sqrt(totals.total("square") / totals.total("weight")))
        term = Number(feature=Feature(column=task.target), mean=start, scale=size or 1.0)
        moments = federation.sum("moments", task=task, features=(term,), most=4.0 * rows)
        spread = size**2 * float(moments["second"][0]) / rows
        if spread <= 1e-24 * start**2:
            raise ModelError("the target is the same in every training row")
        step = _rounded(np.sqrt(spread))
    return TreesRecipe(
        intercept=round(start / step * COARSE) / COARSE * step,
        step=step,
        unit=_rounded(Scale.of(totals).row_curvature(law)),
        rows=rows,
        validation_share=settings.validation_share,
        drawn_share=settings.rows,
    )


def _rounded(value: float) -> float:
    """To the digits of :data:`COARSE`, whatever its size."""
    mantissa, exponent = np.frexp(value)
    return float(np.ldexp(round(mantissa * COARSE) / COARSE, exponent))


def _chosen(
    cuts: tuple[Cuts, ...], contract: Contract, settings: TreesSettings, seed: int, at: int
) -> list[int]:
    """The features that a tree may use; the root behind the last tree tells the loss alone."""
    allowed = list(range(len(cuts)))
    if at < settings.own_trees:
        holders = [contract.columns[cut.feature.column].holder for cut in cuts]
        allowed = [j for j in allowed if holders[j] != "fund"]
        if not allowed:
            raise ModelError("model.own_trees: the insurer has no feature that varies")
    if settings.features == 1.0 or not at < settings.trees:
        return allowed if at < settings.trees else allowed[:1]
    count = max(1, round(settings.features * len(allowed)))
    chosen = np.random.default_rng([seed, at]).choice(len(allowed), count, replace=False)
    return sorted(allowed[int(k)] for k in chosen)


def _best(trace: list[dict[str, float]], settings: TreesSettings) -> int:
    """How many trees to keep: all, or as many as judged the held-out rows best."""
    if not settings.validation_share:
        return len(trace) - 1
    return int(np.argmin([line["validation"] for line in trace]))


Settings = TreesSettings
