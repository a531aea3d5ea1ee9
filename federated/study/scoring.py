"""Scoring models on test rows: a party scores its own rows for itself, a federation the market's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from federated.federation import ModelTotals, Parties
from federated.solvers import explaining
from federated.solvers.encoding import is_category
from federated.solvers.explaining import Ask
from federated.study.experiment import Experiment
from federated.study.rows import Features
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError
from lab.models import files as models
from lab.models.design import Feature, Levels
from lab.models.families import Scale
from lab.models.glm import Task
from lab.privacy import joining
from lab.privacy.joining import NO_RULE, PERSONS, Least, by_parties
from lab.scores import accuracy as scoring
from lab.scores import detection, places
from lab.scores.explanation import Explained
from lab.scores.interaction import Interaction
from lab.sums import Sums, combine
from lab.tables.contracts import Contract

#: Where numeric features are cut for the table of actual against expected, in standard deviations.
CUTS = (-1.5, -0.5, 0.5, 1.5)
#: A bound of sums that stay where they are.
MOST = 2.0**300

#: ModelTotals by level of some columns: names of the levels, and the totals.
ByLevel = dict[str, tuple[tuple[str, ...], Sums]]


@dataclass(frozen=True)
class Detected:
    """Opened totals of a fraud detector: its ranking, and who is flagged at the budget, by group.

    The typology of frauds, where it is known, is one of the groups, under the name of its column.
    """

    rank: Sums
    groups: ByLevel


@dataclass(frozen=True)
class Evaluation:
    """Opened totals of one model on one set of rows; ``detected`` for a fraud detector; ``own_null``
    is the deviance of a constant model of the training rows of the one party whose rows these are.

    ``lorenz`` is None, and ``levels`` are empty, where all parties would see cells of few persons.
    """

    fit: Sums
    lorenz: Sums | None
    levels: ByLevel
    detected: Detected | None = None
    own_null: float | None = None
    explained: Mapping[str, Explained] = field(default_factory=dict)
    pairs: tuple[Interaction, ...] = ()

    @property
    def scores(self) -> scoring.Scores:
        return scoring.scores(self.fit, self.lorenz)


def scored(experiment: Experiment, evaluation: Evaluation) -> dict[str, Any]:
    """All scores of an evaluation by name; those of a detector among them.

    ``deviance_explained`` is against the rate of all training rows, ``…_of_own_rate`` against that of
    the party's own, ``…_of_counts`` is `lab.scores.accuracy.counts_explained`.
    """
    scores, fit = dict(vars(evaluation.scores)), evaluation.fit
    if evaluation.own_null:
        scores["deviance_explained_of_own_rate"] = 1 - fit["deviance"][0] / evaluation.own_null
    if (of_counts := scoring.counts_explained(fit)) is not None:
        scores["deviance_explained_of_counts"] = of_counts
    if evaluation.detected is not None and (settings := experiment.detection):
        rank, cost = evaluation.detected.rank, settings.investigation_cost
        scores |= detection.scores(rank, settings.budget, investigation_cost=cost)
    return scores


def _cuts(values: pd.Series) -> tuple[float, ...]:
    """Two significant digits around the mean; a column of two values is cut between them."""
    low, high = float(values.min()), float(values.max())
    if values.isin((low, high)).all():
        return ((low + high) / 2,)
    mean, deviation = float(values.mean()), float(values.std())
    cuts = {float(f"{mean + c * deviation:.2g}") for c in CUTS}
    return tuple(sorted(c for c in cuts if low < c < high)) or (mean,)


class Scorer:
    """Scores models on test rows: a party's own rows are scored at that party, in the clear and
    for itself; the whole market's totals go through the federation where there is one.

    own: what each party's training rows are like, by party and part, where its rows are here;
    constants: what all training rows are like, by part, and with it the model that explains
    nothing; by_level: what actual and expected are compared by; groups: who is compared
    for fairness; alone: a federation of each party whose rows are here; least: persons behind
    each cell of what is told of several parties' rows, at least: cells of fewer are joined.
    """

    def __init__(
        self,
        experiment: Experiment,
        constants: Mapping[str, Scale],
        by_level: Mapping[str, tuple[Levels, ...]],
        groups: tuple[Levels, ...],
        alone: Mapping[str, Parties],
        least: Least,
        own: Mapping[str, Mapping[str, Scale]] | None = None,
    ) -> None:
        self.own: Mapping[str, Mapping[str, Scale]] = own or {}
        self.experiment, self.tasks = experiment, experiment.all_tasks()
        self.constants, self.by_level, self.groups = constants, by_level, groups
        self.ones, self._least = alone, least

    def alone(self, models: dict[str, dict[str, str]]) -> dict[str, dict[str, Evaluation]]:
        """Every party's own model on its own test rows, and all that have one together; by part."""
        evaluations = {}
        for part in self.tasks:
            own = {name: texts[part] for name, texts in models.items()}
            asks = {name: self._ask(part, {name: text}) for name, text in own.items()}
            evaluations[part] = self._each(part, asks)
            if len(own) > 1 or len(own) == len(self.ones):
                everybody = self._evaluate(part, self._ask(part, own), self._least)
                evaluations[part] = {"all": everybody, **evaluations[part]}
        return evaluations

    def shared(
        self, model: dict[str, str], federation: ModelTotals | None
    ) -> dict[str, dict[str, Evaluation]]:
        """One model on everybody's test rows; ``federation`` gives the market's totals."""
        evaluations = {}
        for part in self.tasks:
            everybody: Ask = self._ask(part, dict.fromkeys(self.ones, model[part]))
            if federation is not None:
                text = model[part]
                everybody = partial(federation.sum, model=text, task=self._task(part, text))
            whole = federation is not None and federation.everybody
            rounded = federation is not None and self._of_sides
            total = self._evaluate(part, everybody, self._least, whole=whole, rounded=rounded)
            if federation is not None and part == next(reversed(self.tasks)):
                total = self._explained(part, model[part], everybody, total)
            evaluations[part] = {"all": total, **self._own(part, model)}
        return evaluations

    def _explained(self, part: str, model: str, ask: Ask, total: Evaluation) -> Evaluation:
        """With what a model makes of the features that ``[explain]`` names, over everybody's test rows."""
        if (settings := self.experiment.explain) is None:
            return total
        resampled = self._resampled(part)
        explained = explaining.features(ask, model, settings, resampled, self._least)
        pairs = explaining.pairs(ask, model, settings, explained, total.fit, resampled)
        return replace(total, explained=explained, pairs=pairs)

    def beside(
        self, model: dict[str, str], everybody: Mapping[str, Evaluation]
    ) -> dict[str, dict[str, Evaluation]]:
        """One model on each party's own test rows, beside what it does on everybody's."""
        return {part: {"all": everybody[part], **self._own(part, model)} for part in self.tasks}

    @property
    def _of_sides(self) -> bool:
        """Whether nobody knows the prediction of a row."""
        return bool(self.experiment.joined) and self.experiment.model.kind != "trees"

    def _own(self, part: str, model: dict[str, str]) -> dict[str, Evaluation]:
        return self._each(part, {name: self._ask(part, {name: model[part]}) for name in self.ones})

    def _each(self, part: str, asks: Mapping[str, Ask]) -> dict[str, Evaluation]:
        """Each party by itself, against the market's rate and against its own."""
        evaluations = {}
        for name, ask in asks.items():
            own = self.own.get(name, {}).get(part)
            null = (
                ask("score_fit", scale=own, replicates=0, seed=0)["null_deviance"] if own else None
            )
            evaluation = self._evaluate(part, ask, NO_RULE)
            evaluations[name] = replace(
                evaluation, own_null=None if null is None else float(null[0])
            )
        return evaluations

    def others(self, models: dict[str, dict[str, str]]) -> dict[str, Evaluation]:
        """The model of each holder on all test rows but the holder's own, for the headline part."""
        part = next(reversed(self.tasks))
        asks = {
            holder: self._ask(part, {name: texts[part] for name in self.ones if name != holder})
            for holder, texts in models.items()
        }
        return {holder: self._evaluate(part, ask, self._least) for holder, ask in asks.items()}

    def _ask(self, part: str, texts: dict[str, str]) -> Ask:
        """ModelTotals over these parties, each with its model, taken at each party for itself."""
        arguments_of = {
            name: {"model": t, "task": self._task(part, t)} for name, t in texts.items()
        }

        def ask(statistic: str, arrays: Any = None, **arguments: Any) -> Sums:
            parts = [
                self.ones[name].sum(statistic, arrays, **own, **arguments)
                for name, own in arguments_of.items()
            ]
            return combine(parts)

        return ask

    def _task(self, part: str, model: str) -> Task:
        """What is scored: the part's task, over rows with the profiles that the model knows."""
        digests = getattr(getattr(models.from_json(model), "task", None), "profiles", ())
        return self.tasks[part].model_copy(update={"profiles": digests})

    def _evaluate(
        self, part: str, ask: Ask, least: Least, *, whole: bool = False, rounded: bool = False
    ) -> Evaluation:
        """whole: by sums over all rows alone, by no bin, level or group; rounded: of predictions that
        two sides know a part of each."""
        fit = ask("score_fit", **self._resampled(part))
        if whole:
            return Evaluation(fit, None, {})
        lorenz = self._lorenz(partial(ask, "score_lorenz", scale=self.constants[part]), rounded)
        lorenz = joining.apply(
            lorenz, joining.in_order(by_parties(lorenz, least.parties), least.persons)
        )
        levels = {
            term.feature.column: _of_enough(term, ask("score_levels", feature=term), least)
            for term in self.by_level[part]
        }
        return Evaluation(fit, lorenz, levels, self._detect(ask, least))

    def _resampled(self, part: str) -> dict[str, Any]:
        """What the deviance is measured in, and the resamples, which are the same for every model."""
        arms, seed = self.experiment.arms, self.experiment.seed
        return {"scale": self.constants[part], "replicates": arms.replicates, "seed": seed}

    def _lorenz(self, ask: Ask, rounded: bool) -> Sums:
        """Exposure, actual and expected in bins of the predicted rate: coarse ones, then finer."""
        if rounded:
            return places.curve(lambda bins: ask({"edges": bins.edges}), PERSONS)
        edges = scoring.finer_edges(ask({"edges": scoring.GRID}), scoring.GRID)
        return ask({"edges": np.asarray(edges)})

    def _detect(self, ask: Ask, least: Least) -> Detected | None:
        """The ranking in bins that are fine where claims are investigated, then the groups."""
        settings = self.experiment.detection
        if settings is None:
            return None
        columns = {
            "truth": settings.truth or self.experiment.data.target,
            "amount": settings.amount,
        }
        resampling = {"replicates": self.experiment.arms.replicates, "seed": self.experiment.seed}
        whole = {"edges": detection.GRID}
        coarse = ask("detection_rank", whole, **columns, replicates=0, seed=0)
        edges = detection.ranking_edges(coarse, detection.GRID)
        rank = ask("detection_rank", {"edges": edges}, **columns, **resampling)
        places = joining.in_order(by_parties(rank, least.parties), least.persons)
        rank, edges = joining.apply(rank, places), edges[np.diff(places) > 0]
        threshold = detection.threshold_at(rank, edges, settings.budget)
        groups = {}
        for group in self.groups:
            of_kinds = group.feature.column == settings.typology
            how = resampling if of_kinds else {"replicates": 0, "seed": 0}
            sums = ask("detection_groups", group=group, threshold=threshold, **columns, **how)
            groups[group.feature.column] = _of_enough(group, sums, least)
        return Detected(rank, groups)


def _of_enough(term: Levels, sums: Sums, least: Least) -> tuple[tuple[str, ...], Sums]:
    """The levels of a term and their sums, those of few persons joined."""
    persons = by_parties(sums, least.parties)
    places, names = joining.of_levels(persons, term.levels, least.persons)
    return names, joining.apply(sums, places)


# What a scorer compares by.

#: The levels of each part that actual and expected are compared by, and groups of persons.
Comparisons = tuple[dict[str, tuple[Levels, ...]], tuple[Levels, ...]]


def simulated_comparisons(experiment: Experiment, market: SimulatedMarket) -> Comparisons:
    """For parties whose rows are here: numbers are cut around their mean, levels are those seen."""
    _check_explained(experiment, market.features)
    by_level = {
        part: tuple(
            _levels_in(market, feature)
            for feature in features
            if not feature.ordinal and feature.column in market.parties[0].train.columns
        )
        for part, features in market.features.items()
    }
    if "severity" in market.features:
        by_level["pure premium"] = by_level["frequency"]
    return by_level, tuple(_levels_in(market, feature) for feature in _groups(experiment))


def public_comparisons(
    experiment: Experiment, contract: Contract, features: Features
) -> Comparisons:
    """For parties whose rows are elsewhere: nothing is cut by the values of numbers, which nobody
    here has seen."""
    _check_explained(experiment, features)
    by_part = {**features, "pure premium": features.get("frequency", ())}
    by_level = {part: _public_levels(contract, by_part[part]) for part in experiment.all_tasks()}
    return by_level, _public_levels(contract, _groups(experiment))


def _check_explained(experiment: Experiment, features: Features) -> None:
    """Raises :class:`ConfigurationError` for a column of ``[explain]`` that is no feature."""
    if (settings := experiment.explain) is None:
        return
    read = list(dict.fromkeys(feature.column for own in features.values() for feature in own))
    named = [("features", name) for name in settings.features or ()]
    named += [("pairs", name) for pair in settings.listed_pairs for name in pair]
    for key, name in named:
        if name not in read:
            raise ConfigurationError(
                f"explain.{key}: '{name}' is no feature of the model; these are: {', '.join(read)}"
            )


def simulated_scorer(
    experiment: Experiment, comparisons: Comparisons, alone: Mapping[str, Parties], least: Least
) -> Scorer:
    """For parties whose rows are here, each of which is scored by itself."""
    tasks = experiment.all_tasks()
    totals = {part: _totals_of_each(alone, task) for part, task in tasks.items()}
    constants = {part: Scale.of(combine(list(each.values()))) for part, each in totals.items()}
    own = {
        name: {
            part: Scale.of(each[name])
            for part, each in totals.items()
            if each[name].rows and _has_a_rate(tasks[part], each[name])
        }
        for name in alone
    }
    return Scorer(experiment, constants, *comparisons, alone, least, own)


def _has_a_rate(task: Task, totals: Sums) -> bool:
    """Whether a party's own rate is a model: not where its target is 0, or 1, in all rows."""
    certain = task.family == "binomial" and totals.total("positive") == totals.total("rows")
    return totals.total("target") > 0 and not certain


def _totals_of_each(alone: Mapping[str, Parties], task: Task) -> dict[str, Sums]:
    """Of parties whose rows are here: nothing is hidden, and one bound does for all."""
    most = (MOST, MOST, MOST, MOST)
    return {
        name: one.sum("totals", task=task, part="train", most=most) for name, one in alone.items()
    }


def _groups(experiment: Experiment) -> tuple[Feature, ...]:
    """The columns by which a detector is compared: groups of persons, and the kind of fraud."""
    detection = experiment.detection
    if detection is None:
        return ()
    columns = (*detection.groups, *([detection.typology] if detection.typology else []))
    return tuple(Feature(column=c) if isinstance(c, str) else c for c in columns)


def _levels_in(market: SimulatedMarket, feature: Feature) -> Levels:
    """A feature as levels: those of the contract, those that parties have, or intervals."""
    contract, parties = market.contract, market.parties
    if not is_category(feature, contract):
        cuts = _cuts(pd.concat([p.train[feature.column] for p in parties]))
        feature = Feature(column=feature.column, cut=cuts)
    if feature.cut:
        return Levels(feature=feature, levels=feature.intervals())
    levels = contract.columns[feature.column].levels
    if levels is None:
        values = pd.concat([feature.texts(p.train) for p in parties])
        levels = tuple(sorted(values.dropna().astype(str).unique()))
    return Levels(feature=feature, levels=tuple(levels))


def _public_levels(contract: Contract, features: Iterable[Feature]) -> tuple[Levels, ...]:
    """Features as levels, of those whose levels or cuts are public."""
    columns = contract.columns
    return tuple(
        Levels(
            feature=f,
            levels=f.intervals() if f.cut else tuple(columns[f.column].levels or ()),
        )
        for f in features
        if f.cut or (is_category(f, contract) and columns[f.column].levels)
    )
