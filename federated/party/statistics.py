"""The table of statistics: all that a party can be asked for, one typed row each.

Rows that belong to one kind of model stand with that model (``STATISTICS`` in ``lab/models/KIND.py``)
and are named after it; they are read when they are first needed, because some load torch or numba.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from federated.messages import Hiding, Request
from federated.party import scores
from lab.errors import PeerError, PolicyError
from lab.models import agreement, glm, profile
from lab.models.design import Design, Encoding, Number
from lab.models.files import kinds, statistics_of
from lab.models.glm import Response, Task
from lab.privacy.disclosure import Rules
from lab.queries.pair_cells import OfPairCells, OfPairKinds
from lab.queries.questions import Question
from lab.records import Strict
from lab.statistics import ACROSS, ANY_MODEL, PROFILES, QUESTIONS, Arrays, Holding, Part, Statistic
from lab.sums import Sums

# Arguments.


class OfNumbers(Strict):
    task: Task
    features: tuple[Number, ...]


class OfMoments(OfNumbers):
    """most: a bound of the sums, in units of the features' scales."""

    most: float


class OfLevels(Strict):
    task: Task
    features: tuple[agreement.Counted, ...]


class OfPresence(OfLevels):
    """least: persons at a level, at least."""

    least: int


class OfHistogram(OfNumbers):
    """least: persons of a party behind each interval, at least."""

    least: int


class OfTask(Strict):
    """most: bounds of the sums, as `lab.models.glm.SUMMED`."""

    task: Task
    part: Part
    most: tuple[float, float, float, float]


class OfProfile(Strict):
    cells: profile.ProfileCells
    rules: Rules


class OfQuestion(Strict):
    """rules: those of disclosure that the question is asked under."""

    question: Question
    rules: Rules


class OfViolations(OfQuestion):
    flags: int


# What is made of a party's rows once, and kept at hand.


def encoded(holding: Holding, encoding: Encoding, task: Task, part: Part) -> Design:
    """The rows of a task in the columns that all parties agreed on."""
    return Design(holding.rows(task, part), encoding)


def response(holding: Holding, task: Task, part: Part) -> Response:
    """Targets, weights and exposures of the rows of a task."""
    return Response(holding.rows(task, part), task)


# Functions.


def _moments(holding: Holding, a: OfMoments, arrays: Arrays) -> Sums:
    return agreement.moments(holding.rows(a.task, "train"), a.features, a.most)


def _level_counts(holding: Holding, a: OfLevels, arrays: Arrays) -> Sums:
    rows = holding.rows(a.task, "train")
    return agreement.level_counts(rows, a.features, holding.units(a.task, "train"))


def _level_parties(holding: Holding, a: OfPresence, arrays: Arrays) -> Sums:
    rows = holding.rows(a.task, "train")
    return agreement.level_parties(rows, a.features, holding.units(a.task, "train"), a.least)


def _histogram(holding: Holding, a: OfHistogram, arrays: Arrays) -> Sums:
    rows, owners = holding.rows(a.task, "train"), holding.units(a.task, "train")
    return agreement.histogram(rows, a.features, arrays["edges"], owners, a.least)


def _totals(holding: Holding, a: OfTask, arrays: Arrays) -> Sums:
    return glm.totals(holding.once(response, a.task, a.part), a.most)


def _profile(holding: Holding, a: OfProfile, arrays: Arrays) -> Sums:
    if holding.person is None:
        raise PolicyError(
            "this party does not say who a row belongs to, and a profile counts persons"
        )
    return profile.sums(holding.claims(), a.cells, holding.person)


def _table(holding: Holding) -> Any:
    if holding.query_table is None:
        raise PolicyError("this party has no table for questions")
    return holding.query_table


def _cells(holding: Holding, a: OfQuestion, arrays: Arrays) -> Sums:
    sums: Sums = _table(holding).answer(a.model_dump(mode="json"))
    return sums


def _violations(holding: Holding, a: OfViolations, arrays: Arrays) -> Sums:
    sums: Sums = _table(holding).violations(a.model_dump(mode="json"))
    return sums


def _drift(holding: Holding, a: OfQuestion, arrays: Arrays) -> Sums:
    sums: Sums = _table(holding).drift(a.model_dump(mode="json"), arrays["shares"])
    return sums


def _of_sides(holding: Holding, a: OfPairKinds, arrays: Arrays) -> Sums:
    raise PolicyError("this party is joined to no other")


def _any_model(name: str, arguments: type[Strict], function: Any, *arrays: str) -> Statistic:
    return Statistic(name, arguments, function, ANY_MODEL, arrays)


def _by_cell(name: str, arguments: type[Strict], function: Any, *arrays: str) -> Statistic:
    return Statistic(name, arguments, function, ANY_MODEL, arrays, cells=True)


def _by_rules(name: str, arguments: type[Strict], function: Any, *arrays: str) -> Statistic:
    analysis = PROFILES if name == "profile" else QUESTIONS
    return Statistic(name, arguments, function, analysis, arrays, "rules, cell by cell", cells=True)


#: Statistics that belong to no kind of model alone.
COMMON: Mapping[str, Statistic] = {
    row.name: row
    for row in (
        _any_model("magnitudes", agreement.OfMagnitudes, agreement.of_party),
        _any_model("moments", OfMoments, _moments),
        _by_cell("level_counts", OfLevels, _level_counts),
        _any_model("level_parties", OfPresence, _level_parties),
        _any_model("totals", OfTask, _totals),
        _any_model("histogram", OfHistogram, _histogram, "edges"),
        _any_model("score_fit", scores.OfFit, scores.score_fit),
        _by_cell("score_lorenz", scores.OfCurve, scores.score_lorenz, "edges"),
        _by_cell("score_levels", scores.OfScoresByLevel, scores.score_levels),
        _any_model("explain_partial", scores.OfPartial, scores.explain_partial),
        _any_model("explain_shuffled", scores.OfShuffled, scores.explain_shuffled),
        _by_cell("explain_intervals", scores.OfIntervals, scores.explain_intervals),
        _by_cell("explain_local", scores.OfIntervals, scores.explain_local),
        _any_model("explain_grid", scores.OfGrid, scores.explain_grid),
        _any_model("explain_excess", scores.OfGrid, scores.explain_excess, "joint", "excess"),
        _by_cell("detection_rank", scores.OfRanking, scores.detection_rank, "edges"),
        _by_cell("detection_groups", scores.OfGroups, scores.detection_groups),
        _by_rules("profile", OfProfile, _profile),
        _by_rules("cells", OfQuestion, _cells),
        _by_rules("violations", OfViolations, _violations),
        _by_rules("drift", OfQuestion, _drift, "shares"),
        Statistic("pair_kinds", OfPairKinds, _of_sides, ACROSS, cells=True),
        Statistic("pair_cells", OfPairCells, _of_sides, ACROSS, cells=True),
    )
}
#: Statistics of questions, and all that only a release answers.
ASKED_IN_QUESTIONS = tuple(row.name for row in COMMON.values() if row.analysis == QUESTIONS)
RELEASED = tuple(row.name for row in COMMON.values() if row.released)


def analyses() -> tuple[str, ...]:
    """What a charter and a node may allow."""
    return (*kinds(), QUESTIONS, PROFILES)


def find(name: str) -> Statistic:
    """The row of a statistic. Raises :class:`PeerError` for a name that stands nowhere."""
    row, kind = COMMON.get(name), name.partition("_")[0]
    if row is None and kind in kinds():
        row = next((own for own in statistics_of(kind) if own.name == name), None)
    if row is None:
        raise PeerError(f"no statistic '{name[:60]}' here")
    return row


def belongs(name: str, analyses: Iterable[str]) -> bool:
    """Whether a statistic is asked for by one of these analyses; what stands nowhere is by none."""
    kind, models = name.partition("_")[0], kinds()
    if name not in COMMON and kind not in analyses:
        return False
    try:
        analysis = find(name).analysis
    except PeerError:
        return False
    if analysis == ACROSS:
        return QUESTIONS in analyses
    return analysis in analyses or (analysis == ANY_MODEL and any(a in models for a in analyses))


def request(
    name: str,
    arguments: Mapping[str, Any],
    arrays: Arrays,
    *,
    query: str,
    hiding: Hiding,
    parties: tuple[str, ...] = (),
    charter: str = "",
) -> Request:
    """The request for a statistic, its arguments in their one form. Raises :class:`PeerError`."""
    row = find(name)
    return Request(query, name, row.written(arguments), arrays, hiding, parties, charter)
