"""What a party answers questions from: its table, the rules it keeps, its history and its budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from lab.errors import PolicyError
from lab.privacy.budget import PrivacyBudget, event
from lab.privacy.counters import Counters
from lab.privacy.disclosure import Rules
from lab.privacy.history import CellParts, History, TableRows
from lab.privacy.noise import bounded, clamped, noised
from lab.privacy.query_audit import OUTSIDE
from lab.queries import cells
from lab.queries.actuarial import stability_index
from lab.queries.parts import by_value
from lab.queries.questions import Question, check
from lab.records import Strict
from lab.sums import HEADS, Floats, Sums
from lab.tables.checks import broken
from lab.tables.contracts import Contract

#: The file of counters, and the refusals that are no rule's, over all runs, after which a party
#: answers no more: each can tell a bit of the rows.
COUNTERS, MOST_REFUSALS = "counters.db", 10
#: The ends of a column's declared range.
ENDS = ("minimum", "maximum")


class Budget(Strict):
    """What a party is ready to spend on noised answers, ever: the total epsilon, at this delta."""

    epsilon: float = Field(description="Total epsilon, ever.")
    delta: float = Field(1e-6, description="The delta at which it is counted.")


@dataclass
class QueryTable:
    """A party's table under its contract. Questions are answered here and nowhere else.

    raw: the table as it came, for counts of violations; folder: where history and budget are kept
    (None: in memory, and no budget); noised: the party answers no question without noise; asker,
    quota: who asks, and for how many cells each asker may, ever (None: no end).
    """

    frame: pd.DataFrame
    contract: Contract
    rules: Rules
    person: str | None = None
    raw: pd.DataFrame | None = None
    folder: Path | None = None
    budget: Budget | None = None
    noised: bool = False
    asker: str = "analyst"
    quota: int | None = None
    history: History = field(init=False, repr=False)
    counters: Counters = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        place = self.folder / "history.db" if self.folder else None
        self.counters = Counters(self.folder / COUNTERS if self.folder else None)
        self.history = History(place, TableRows.of(self.frame[self._askable()], self.person))

    def _askable(self) -> list[str]:
        """The columns that a question may be about, and the person."""
        roles = {name: column.role for name, column in self.contract.columns.items()}
        hidden = {name for name, role in roles.items() if role in ("identifier", "never_leaves")}
        return [c for c in self.frame.columns if c == self.person or c not in hidden]

    @cached_property
    def persons(self) -> NDArray[np.int64] | None:
        """Who each row belongs to, numbered from 0; None where each row is a person."""
        if self.person is None:
            return None
        codes, names = pd.factorize(self.frame[self.person])
        unknown = np.flatnonzero(codes < 0)  # each is a person of its own
        codes[unknown] = len(names) + np.arange(len(unknown))
        return np.asarray(codes, dtype=np.int64)

    @cached_property
    def ledger(self) -> PrivacyBudget:
        """The budget on disk. Raises :class:`PolicyError` where the party has none."""
        if self.budget is None or self.folder is None:
            raise PolicyError("this party has no budget for noised answers")
        return PrivacyBudget(self.folder / "budget.db", self.budget.epsilon, self.budget.delta)

    def answer(self, request: Mapping[str, Any]) -> Sums:
        """This party's contribution to an answer.

        Raises :class:`PolicyError` for what its contract, its rules or its budget do not allow.
        """
        question = self._read(request)
        codes = question.codes(self.frame)
        if question.noise is not None:
            return self._with_noise(question, codes)
        vetoed = self._admitted(question, codes)
        arrays = cells.plain(question, self.frame, self.persons, codes, vetoed, self.rules)
        count = min(self.counters.of(f"cells {self.asker}"), int(HEADS.bound))
        arrays |= {"asked": np.array([float(count)]), "left": np.array([float(self._left())])}
        return cells.sums(cells.form(question), arrays, int((codes != OUTSIDE).sum()))

    def _admitted(self, question: Question, codes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The cells that history vetoes; the others are history now.

        A total tells more than its cells where it leaves rows out or weighs them by a column that
        somebody may know: rows with a value, and rows by the values of a factor, are cells to
        the history as well.
        """
        splits = []
        for parts, count in self._splits(question, codes):
            part = np.full(len(codes), OUTSIDE, dtype=np.int64)
            inside = (codes != OUTSIDE) & (parts != OUTSIDE)
            part[inside], keys = pd.factorize(codes[inside] * count + parts[inside])
            splits.append(CellParts(part, np.asarray(keys, dtype=np.int64) // count))
        least = self.rules.minimum_difference.persons
        return self.history.admit(splits, question.cells, least)

    def _left(self) -> int:
        """Cells that this party can still answer to this asker, at most, to two digits: the exact
        number would tell how many were vetoed."""
        count = self.history.left(self.rules.minimum_difference.persons)
        if self.quota is not None:
            count = min(count, self.quota - self.counters.of(f"cells {self.asker}"))
        step: int = 10 ** max(len(str(count)) - 2, 0)
        return count // step * step

    def _charge(self, count: int) -> None:
        """Count the cells of a question against its asker's quota."""
        total = self.counters.add(f"cells {self.asker}", count, self.quota)
        if self.quota is not None and total > self.quota:
            raise PolicyError(
                f"{self.asker} may ask for {self.quota:,} cells here, ever; this question makes "
                f"{total:,}",
                "quota",
            )

    def refuse(self) -> None:
        """Count a refusal that is no rule's."""
        self.counters.add("refusals", 1)

    def check_refusals(self) -> None:
        """Raises :class:`PolicyError` if this party has refused too often to answer any more."""
        count = self.counters.of("refusals")
        if count >= MOST_REFUSALS:
            raise PolicyError(
                f"this party has refused {count} questions in all its runs and answers no more; "
                f"its owner looks why, and removes {COUNTERS} from the folder of its questions"
            )

    def _by_value(
        self, codes: NDArray[np.int64], factor: pd.Series[Any]
    ) -> tuple[NDArray[np.int64], int]:
        value = np.asarray(pd.factorize(factor)[0], dtype=np.int64)
        persons = np.arange(len(value)) if self.persons is None else self.persons
        part = by_value(codes, value, persons, self.rules.minimum_difference.persons)
        return part, int(part.max(initial=0)) + 1

    def _splits(
        self, question: Question, codes: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], int]]:
        """How the totals of a question split its cells: the part of each row, and how many."""
        yield np.zeros(len(codes), dtype=np.int64), 1
        for columns in {total.columns for total in question.totals}:
            filled = (
                np.logical_and.reduce([self.frame[c].notna() for c in columns]) if columns else True
            )
            if not np.all(filled):
                yield np.where(filled, 0, 1).astype(np.int64), 2
        factors = {
            c for total in question.totals if len(set(total.columns)) > 1 for c in total.columns
        }
        for column in sorted(factors):
            yield self._by_value(codes, self.frame[column])

    def _read(self, request: Mapping[str, Any]) -> Question:
        """The question, if it is asked under this party's rules, within its contract and its asker's
        quota."""
        if request["rules"] != json.loads(self.rules.model_dump_json()):
            raise PolicyError(
                "asked under other disclosure rules than this party's; it keeps its own"
            )
        question = Question.model_validate(request["question"])
        check(question, self.contract, self.person)
        if self.noised and question.noise is None:
            raise PolicyError("this party answers with noise alone; give an epsilon")
        self._charge(question.cells)
        return question

    @staticmethod
    def _without_noise(question: Question) -> None:
        """Raises :class:`PolicyError` where noise is asked for that would not be made."""
        if question.noise is not None:
            raise PolicyError(
                "noise is for counts and sums alone; this is answered without, or not"
            )

    def _with_noise(self, question: Question, codes: NDArray[np.int64]) -> Sums:
        """A contribution with this party's own noise, charged before the noise is made."""
        noise, columns = question.noise, self.contract.columns
        assert noise is not None
        rows = np.flatnonzero(codes != OUTSIDE)
        own = None if self.persons is None else self.persons[rows]
        rows = rows[bounded(own, noise.rows_per_person, len(rows))]
        releases = cells.releases(question, columns)
        self.ledger.charge(question.model_dump_json(), [event(r) for r in releases.values()])
        arrays: dict[str, Floats] = {}
        for k, total in enumerate(question.totals):
            step, (low, high) = cells.step_of(total, columns), cells.bounds(total, columns)
            part = self.frame.iloc[rows][list(dict.fromkeys(total.columns))]
            if total.kind == "sum":
                least, most = ({c: getattr(columns[c], end) for c in total.columns} for end in ENDS)
                part = part.clip(pd.Series(least), pd.Series(most), axis=1)
            each = np.where(total.present(part), total.values(part), np.nan)
            values = clamped(each, low, high, step)
            exact = cells.added(codes[rows], values, question.cells)
            arrays[f"total {k}"] = np.float64(step) * noised(exact, releases[k])
        return cells.sums(cells.form(question), arrays, 0)

    def keep(self, line: Mapping[str, Any]) -> None:
        """Add a line to the party's own receipt: what leaves it, and the rows behind it."""
        if self.folder is not None:
            with (self.folder / "receipt.jsonl").open("a", encoding="utf-8") as receipt:
                receipt.write(json.dumps(line) + "\n")

    def violations(self, request: Mapping[str, Any]) -> Sums:
        """Rows that break each rule of the contract, of the table as it came."""
        self._without_noise(self._read(request))
        counts = broken(self.frame if self.raw is None else self.raw, self.contract)
        return cells.sums(cells.flag_form(len(counts)), cells.flagged(counts), 0)

    def drift(self, request: Mapping[str, Any], shares: Floats) -> Sums:
        """How far this party's distribution over the question's cells is from the market's, where
        its history lets it tell: an index of small cells, asked often, is their counts. So is one
        from shares that somebody chooses, and the market has but one share of each cell."""
        question = self._read(request)
        self._without_noise(question)
        codes = question.codes(self.frame)
        visible = ~self._admitted(question, codes)
        counts = np.bincount(codes[codes != OUTSIDE], minlength=question.cells)[visible]
        rows, market = int(counts.sum()), shares[visible]
        split = np.where((codes != OUTSIDE) & np.append(visible, False)[codes], codes, OUTSIDE)
        if not self.history.once(split, hashlib.sha256(market.astype("<f8").tobytes()).hexdigest()):
            raise PolicyError("drift from other shares than before would tell this party's own")
        index = stability_index(market, counts, rows) if rows and market.sum() > 0 else None
        return cells.sums(cells.DRIFT_FORM, cells.drifted(index), 0)
