"""What was told of the table that two sides make together, kept by whoever releases it.

Neither side can keep this history: of a cell that goes by both sides' groups it knows only its own part.
So each side says in which places of every question so far its kinds of rows are, and how many
persons are of an insurer's kind and of a fund's kind together is a product like any other. From these
counts, which are of no person, `lab.privacy.query_audit` decides as it does for one party's table.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from lab.errors import ConfigurationError, PolicyError
from lab.files import write_whole
from lab.privacy.history import CellParts, admitted_parts
from lab.privacy.query_audit import Answers, Mask, independent_cells, with_answer
from lab.queries.questions import Question
from lab.records import Strict


class ToldAnswer(Strict):
    """A question that was answered, but in these cells."""

    question: Question
    vetoed: tuple[int, ...]

    @property
    def mask(self) -> Mask:
        """bool (cells,): the vetoed."""
        mask = np.zeros(self.question.cells, dtype=bool)
        mask[list(self.vetoed)] = True
        return mask


class _Kept(Strict):
    """The file. state: digests of whom each side has and of each column that was asked about; asked:
    cells that were asked for."""

    state: dict[str, int] = Field(default_factory=dict)
    asked: int = 0
    told: tuple[ToldAnswer, ...] = ()


class PairHistory:
    """The history of one pair. path: its file, None for memory alone.

    Raises :class:`ConfigurationError` for a file that is no history."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._kept, self._content = path, _Kept(), b""
        self.refresh()

    def refresh(self) -> None:
        """Take up what the file says now: a question begins with it."""
        if self.path is None or not self.path.exists():
            return
        self._content = self.path.read_bytes()
        try:
            self._kept = _Kept.model_validate_json(self._content)
        except (ValidationError, ValueError):
            raise ConfigurationError(
                f"{self.path.name}: the history of questions cannot be used; nothing is answered without it"
            ) from None

    @property
    def questions(self) -> tuple[Question, ...]:
        """What was answered, in its order."""
        return tuple(one.question for one in self._kept.told)

    def check_state(self, state: Mapping[str, int]) -> None:
        """Raises :class:`PolicyError` where a side's table is not the one that was asked about."""
        before = self._kept.state
        for name in before:
            if before[name] != state.get(name, before[name]):
                raise PolicyError(
                    f"{name} changed since this pair was first asked, and nobody can say which persons two "
                    f"answers would differ by; write {{}} into {self._name} to begin a new history"
                )
        self._kept = self._kept.model_copy(update={"state": {**before, **state}})

    @property
    def _name(self) -> str:
        return "its history" if self.path is None else self.path.name

    def admit(
        self, question: Question, parts: Sequence[Sequence[CellParts]], persons: int, least: int
    ) -> tuple[Mask, dict[str, float]]:
        """(the vetoed cells, counters: cells asked for, and how many can still be answered).

        parts: of each question so far and of this one, its splits over the persons, who are numbered by
        kind. The answer counts as told before it leaves. Raises :class:`PolicyError` where another
        question was answered since this one began.
        """
        answers = Answers.nothing(persons)
        for one, splits in zip(self._kept.told, parts, strict=False):
            for split in splits:
                answers = with_answer(answers, split.without(one.mask), max(len(split.cell), 1))
        vetoed, after = admitted_parts(answers, parts[-1], question.cells, None, least)
        told = self._kept.told
        if after is not answers:
            told += (ToldAnswer(question=question, vetoed=tuple(np.flatnonzero(vetoed).tolist())),)
        asked = self._kept.asked + question.cells
        self._kept = self._kept.model_copy(update={"told": told, "asked": asked})
        self._write()
        left = max(persons // least - independent_cells(after), 0)
        return vetoed, {"asked": float(asked), "left": float(_two_digits(left))}

    def _write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self._kept.model_dump(mode="json")).encode()
        with self.path.with_suffix(".lock").open("wb") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            there = self.path.read_bytes() if self.path.exists() else b""
            if there != self._content:
                raise PolicyError(
                    "another question of this pair was answered meanwhile; ask again", "interrupted"
                )
            write_whole(self.path, content, 0o600)
        self._content = content


def _two_digits(count: int) -> int:
    step: int = 10 ** max(len(str(count)) - 2, 0)
    return count // step * step
