"""A plan's questions, one after the other, wherever the next one has to be known.

Solvers are written against ``federation.sum`` and ask when they need a total. Here one runs in a
thread of its own and stops at each question, until it is given the total: beside whoever opens
totals, who signs the questions; and at every party under replay, which holds what it is asked
against the question that its own solver arrived at.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np

from federated.federation import single_threaded_blas
from federated.messages import Hiding, Request
from federated.party import statistics
from federated.party.binding import Standing, UnboundQuestion, check_order
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.profile import Profile, ProfileCells
from lab.privacy.disclosure import Rules
from lab.privacy.joining import Opened
from lab.sums import Floats, Sums

Result = TypeVar("Result")
#: Names of the levels of a column whose contract lists none.
Levels = Mapping[str, tuple[str, ...]]
#: How far two machines may be apart in a number that floating point decides, relative to the
#: largest number beside it.
TOLERANCE = 1e-9


#: Statistics of which solvers ask the same again; the others' totals are not kept.
ASKED_TWICE = ("magnitudes", "totals")


class Ended(BaseException):
    """Nobody waits for this solver any more."""


class Questioner:
    """What a solver sees of the parties: its questions are put, and the totals come when they do."""

    def __init__(self, levels: Levels, hiding: Hiding, everybody: bool, charter: str) -> None:
        self._levels, self._hiding, self._charter = levels, hiding, charter
        self.everybody, self.opened = everybody, list[Opened]()
        self.least_parties = 1
        self._seen: list[Opened] | None = [] if everybody or hiding == "clear" else None
        self._past: dict[bytes, Sums] = {}
        self.questions: SimpleQueue[Request | None] = SimpleQueue()
        self.totals: SimpleQueue[Sums | None] = SimpleQueue()

    @property
    def alone(self) -> bool:
        """A plan is for parties that see what comes out of each other's rows."""
        return False

    @property
    def openings(self) -> list[Opened]:
        """What the solver tells; where totals are seen by others, all of them, whatever it tells, and
        of their cells that each may stand on one person."""
        return self.opened if self._seen is None else self._seen

    def sum(
        self, statistic: str, arrays: Mapping[str, Floats] | None = None, **arguments: Any
    ) -> Sums:
        """The total of a statistic over all parties; a question that was put before is not put again."""
        request = statistics.request(
            statistic,
            arguments,
            arrays or {},
            query="",
            hiding=self._hiding,
            charter=self._charter,
        )
        if request.question in self._past:
            return self._past[request.question]
        self.questions.put(request)
        total = self.totals.get()
        if total is None:
            raise Ended
        if statistic in ASKED_TWICE:
            self._past[request.question] = total
        row = statistics.find(statistic)
        if self._seen is not None and not row.released:
            numbers = sum(array.size for array in total.arrays.values())
            few = row.cells or statistic == "glm_step"  # entries of two columns may be joint cells
            self._seen.append(Opened(statistic, numbers, 1 if few else None))
        return total

    def profile(self, cells: ProfileCells, rules: Rules) -> Profile:
        """What the rules leave of the parties' sums by provider and period."""
        total = self.sum("profile", cells=cells, rules=rules)
        visible = [array.sum() for name, array in total.arrays.items() if "shown " in name]
        self.openings.append(Opened.cells("profile", int(sum(visible)), total["persons"]))
        return Profile.of(cells, total)

    def join(self, profiles: Sequence[Profile]) -> None:
        """Parties are given a profile by whoever carries its total, before the next question."""

    def levels(self, task: Task, features: tuple[Feature, ...]) -> list[tuple[str, ...]]:
        """The names of levels that all parties have together."""
        return [self._levels[feature.column] for feature in features]


class Steps(Generic[Result]):
    """A plan that is carried out step by step.

    ``question`` is the one that the solver stands at, None once it is done; ``give`` hands it the
    opened total, which all parties see where ``everybody`` does. ``result`` raises what the solver
    raised. To be closed: the thread ends with it.
    """

    def __init__(
        self,
        work: Callable[[Questioner], Result],
        hiding: Hiding,
        *,
        everybody: bool,
        levels: Levels | None = None,
        charter: str = "",
    ) -> None:
        self._work = work
        self._questioner = Questioner(levels or {}, hiding, everybody, charter)
        self._results: list[Result] = []
        self._failure: BaseException | None = None
        self.number = 0
        self.question: Request | None = None
        self._thread = threading.Thread(target=self._run, name="solver", daemon=True)
        self._thread.start()
        self._advance()

    def _run(self) -> None:
        try:
            with single_threaded_blas():
                self._results.append(self._work(self._questioner))
        except Ended:
            pass
        except BaseException as error:
            self._failure = error
        finally:
            self._questioner.questions.put(None)

    def _advance(self) -> None:
        question = self._questioner.questions.get()
        if question is None:
            self._thread.join()
            self.question = None
        else:
            self.number += 1
            self.question = replace(question, step=self.number)

    def give(self, total: Sums) -> None:
        """The opened total of the question that the solver stands at."""
        if self.question is None:
            raise ValueError("the plan is carried out; there is no question to answer")
        self._questioner.totals.put(total)
        self._advance()

    @property
    def result(self) -> Result:
        """What the solver arrived at. Raises what it raised instead."""
        if self.question is not None:
            raise ValueError("the plan is not carried out yet")
        if self._failure is not None:
            raise self._failure
        return self._results[0]

    def close(self) -> None:
        if self.question is not None:
            self._questioner.totals.put(None)
            self._thread.join()


class Replay:
    """A party's own solver, beside the one that asks: it answers what its own would ask.

    Numbers may differ by :data:`TOLERANCE`, as machines do; nothing else may. begin: makes the
    solver of the party's plan, from the names of levels that were agreed on, as JSON.
    """

    def __init__(self, begin: Callable[[str], Steps[Any]]) -> None:
        self._begin = begin
        self._steps: Steps[Any] | None = None

    def steps(self, levels: str) -> Steps[Any]:
        """The party's own solver, at the question that it stands at."""
        if self._steps is None:
            self._steps = self._begin(levels)
        return self._steps

    def check(self, request: Request, standing: Standing) -> None:
        """Raises :class:`UnboundQuestion` unless the party's own solver asks the same now."""
        check_order(request, standing)
        own = self.steps(standing.levels).question
        if own is None:
            raise UnboundQuestion("the plan is carried out; nothing is asked after its end")
        if request.step != own.step:
            raise UnboundQuestion(
                f"step {request.step} was asked for where this party's own solver is at {own.step}"
            )
        if (text := difference(own, request)) is not None:
            raise UnboundQuestion(f"step {own.step} of the plan asks for other {text}")

    def give(self, step: int, total: Sums, levels: str = "{}") -> bool:
        """Take the total of a step, once; a total that comes again changes nothing."""
        steps = self.steps(levels)
        if steps.question is None or steps.question.step != step:
            return False
        steps.give(total)
        return True

    def close(self) -> None:
        if self._steps is not None:
            self._steps.close()


def difference(own: Request, other: Request) -> str | None:
    """In what a request differs from one's own, in a word; None where it does not."""
    if (own.statistic, own.hiding, own.charter) != (other.statistic, other.hiding, other.charter):
        return f"statistics than '{other.statistic[:60]}'"
    if own.question == other.question:
        return None
    if not near(own.arguments, other.arguments):
        return f"arguments of '{own.statistic}'"
    if set(own.arrays) != set(other.arrays):
        return f"arrays of '{own.statistic}'"
    for name, array in own.arrays.items():
        there = other.arrays[name]
        if array.shape != there.shape or not _close(array, there):
            return f"numbers in '{name}' of '{own.statistic}'"
    return None


def _close(own: Floats, other: Floats) -> bool:
    """To within the tolerance of the larger of each pair; infinite numbers must be equal."""
    return bool(np.isclose(own, other, rtol=TOLERANCE, atol=TOLERANCE).all())


def near(own: Any, other: Any) -> bool:
    """JSON values that are equal but for rounding in their fractions."""
    match own, other:
        case dict(), dict():
            return own.keys() == other.keys() and all(near(own[k], other[k]) for k in own)
        case list(), list():
            return len(own) == len(other) and all(map(near, own, other))
        case float(), float():
            return _close(np.array(own), np.array(other))
    return type(own) is type(other) and bool(own == other)


def carried_out(
    steps: Steps[Result],
    ask: Callable[[Request], Sums],
) -> Result:
    """The result of a plan, each question of which is answered by ``ask``."""
    with closing(steps):
        while (question := steps.question) is not None:
            steps.give(ask(question))
        return steps.result
