"""What a party makes of its test rows for a model: scores, explanations, the ranking of a detector."""

from __future__ import annotations

import hmac
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lab.errors import PeerError
from lab.models.design import Levels, codes_of
from lab.models.families import Scale
from lab.models.files import from_json
from lab.models.glm import Response, Task
from lab.records import Strict
from lab.scores import accuracy, detection, explanation, groups, interaction, local_effects
from lab.statistics import Arrays, Holding
from lab.sums import Floats, Sums

# Arguments.


class OfFit(Strict):
    model: str
    task: Task
    scale: Scale
    replicates: int
    seed: int


class OfScores(Strict):
    model: str
    task: Task


class OfCurve(OfScores):
    """scale: of the market, around whose mean joined sides count bins."""

    scale: Scale


class OfScoresByLevel(OfScores):
    feature: Levels


class OfPartial(OfScores):
    column: str
    values: tuple[float | str, ...]


class OfShuffled(OfFit):
    column: str


class OfIntervals(OfScores):
    """edges: the intervals are closed on the right, and what is beyond is in the outer ones."""

    column: str
    edges: tuple[float | str, ...]


class OfGrid(OfScores):
    """grid: the values of either column, beside each other."""

    columns: tuple[str, str]
    grid: tuple[tuple[float | str, ...], tuple[float | str, ...]]
    replicates: int
    seed: int


class OfRanking(OfScores):
    truth: str
    amount: str | None
    replicates: int
    seed: int


class OfGroups(OfRanking):
    group: Levels
    threshold: float


# What is made of a party's rows once, and kept at hand.


def scored(holding: Holding, model: str, task: Task) -> accuracy.Scored:
    """Test rows beside what a model predicts for them; resampled by person."""
    rows = holding.rows(task, "test")
    truth, unit = Response(rows, task), holding.units(task, "test")
    rate = from_json(model).predict(rows)
    return accuracy.Scored(truth.y, rate, truth.exposure, truth.weight, unit)


def _resampling(holding: Holding, seed: int) -> list[int]:
    """The seed of a party's resamples: nobody else can draw them."""
    return [seed, *hmac.digest(holding.secret, b"resamples", "sha256")]


def _judged(holding: Holding, a: OfRanking | OfGroups) -> tuple[Floats, Floats]:
    """Truth and amount of each test row; amounts are 0 where no column has them."""
    rows = holding.rows(a.task, "test")
    truth = rows[a.truth].to_numpy(dtype=np.float64)
    amount = rows[a.amount].to_numpy(dtype=np.float64) if a.amount else 0 * truth
    return truth, amount


# Functions.


def score_fit(holding: Holding, a: OfFit, arrays: Arrays) -> Sums:
    return accuracy.fit_sums(
        holding.once(scored, a.model, a.task),
        family=a.task.law,
        scale=a.scale,
        replicates=a.replicates,
        seed=_resampling(holding, a.seed),
        counts=a.task.counts_with_exposure,
    )


def explain_partial(holding: Holding, a: OfPartial, arrays: Arrays) -> Sums:
    size = holding.once(scored, a.model, a.task).size
    rows = holding.rows(a.task, "test")
    return explanation.partial_sums(from_json(a.model), rows, size, a.column, a.values)


def explain_shuffled(holding: Holding, a: OfShuffled, arrays: Arrays) -> Sums:
    own = hmac.digest(holding.secret, b"shuffled " + a.column.encode(), "sha256")
    rows = explanation.shuffled(holding.rows(a.task, "test"), a.column, [a.seed, *own])
    plain = holding.once(scored, a.model, a.task)
    return accuracy.fit_sums(
        replace(plain, rate=from_json(a.model).predict(rows)),
        family=a.task.law,
        scale=a.scale,
        replicates=a.replicates,
        seed=_resampling(holding, a.seed),
    )


def _placed(holding: Holding, a: OfIntervals) -> tuple[accuracy.Scored, NDArray[np.int64], Sums]:
    """The scored rows, the interval of each, and the persons behind the intervals."""
    plain, rows = holding.once(scored, a.model, a.task), holding.rows(a.task, "test")
    places = explanation.places_of(rows, a.column, a.edges)
    interval = local_effects.intervals_of(places)
    persons = local_effects.persons_by_interval(interval, plain.unit, len(a.edges) - 1)
    return plain, interval, persons


def explain_intervals(holding: Holding, a: OfIntervals, arrays: Arrays) -> Sums:
    return _placed(holding, a)[2]


def explain_local(holding: Holding, a: OfIntervals, arrays: Arrays) -> Sums:
    plain, interval, persons = _placed(holding, a)
    there = interval >= 0
    rows, interval = holding.rows(a.task, "test")[there], interval[there]
    low, high = (
        explanation.with_values(rows, a.column, [a.edges[at] for at in ends])
        for ends in (interval, interval + 1)
    )
    size = plain.size[there]
    return local_effects.effect_sums(from_json(a.model), low, high, size, persons, interval)


def explain_grid(holding: Holding, a: OfGrid, arrays: Arrays) -> Sums:
    return interaction.grid_sums(
        from_json(a.model),
        holding.rows(a.task, "test"),
        holding.once(scored, a.model, a.task),
        a.columns,
        a.grid,
        replicates=a.replicates,
        seed=_resampling(holding, a.seed),
    )


def explain_excess(holding: Holding, a: OfGrid, arrays: Arrays) -> Sums:
    rows = holding.rows(a.task, "test")
    one, other = (
        explanation.places_of(rows, *side) for side in zip(a.columns, a.grid, strict=True)
    )
    if arrays["joint"].shape[1:] != tuple(map(len, a.grid)):
        raise PeerError("request: the grids must have a number for each pair of values")
    return interaction.excess_sums(
        holding.once(scored, a.model, a.task),
        (one, other),
        arrays["joint"],
        arrays["excess"],
        replicates=a.replicates,
        seed=_resampling(holding, a.seed),
    )


def score_lorenz(holding: Holding, a: OfCurve, arrays: Arrays) -> Sums:
    return accuracy.lorenz_sums(holding.once(scored, a.model, a.task), edges=arrays["edges"])


def score_levels(holding: Holding, a: OfScoresByLevel, arrays: Arrays) -> Sums:
    rows, levels = holding.rows(a.task, "test"), a.feature.levels
    codes = codes_of(a.feature.feature.texts(rows), levels)
    return accuracy.level_sums(
        holding.once(scored, a.model, a.task), codes=codes, count=len(levels)
    )


def detection_rank(holding: Holding, a: OfRanking, arrays: Arrays) -> Sums:
    scores, (truth, amount) = holding.once(scored, a.model, a.task), _judged(holding, a)
    return detection.rank_sums(
        truth,
        scores.rate,
        amount,
        scores.unit,
        edges=arrays["edges"],
        replicates=a.replicates,
        seed=_resampling(holding, a.seed),
    )


def detection_groups(holding: Holding, a: OfGroups, arrays: Arrays) -> Sums:
    texts = a.group.feature.texts(holding.rows(a.task, "test"))
    truth, amount = _judged(holding, a)
    scores = holding.once(scored, a.model, a.task)
    return groups.group_sums(
        truth,
        scores.rate,
        amount,
        scores.unit,
        codes=codes_of(texts, a.group.levels).astype(np.int64),
        count=len(a.group.levels),
        threshold=a.threshold,
        replicates=a.replicates,
        seed=_resampling(holding, a.seed),
    )
