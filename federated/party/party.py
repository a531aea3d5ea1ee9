"""One party's side: its rows, what was made of them, and the gate that everything passes.

What can be asked for stands in `federated.party.statistics`. Nothing else here can produce an answer.
"""

from __future__ import annotations

import secrets
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from federated.messages import Request
from federated.party import statistics
from federated.party.binding import Binding
from federated.party.party_sets import PartySets
from lab.errors import PeerError, PolicyError
from lab.models.glm import Task
from lab.models.profile import Profile
from lab.privacy.disclosure import Rules
from lab.privacy.joining import HOME
from lab.queries.query_table import QueryTable
from lab.records import Strict
from lab.statistics import QUESTIONS, Part
from lab.sums import Floats, Sums
from secure_agg.transcript import FEWEST

#: Bits of a row's number that count the rows of a party; those above tell the parties apart.
PARTY_BITS = 31


class Policy(Strict):
    """What a party's gate lets through."""

    minimum_rows: int = 10
    announces: tuple[str, ...] = ()  # columns whose level names may leave
    shows_receipt: bool = False  # with the rows behind a model's sums, which are hidden otherwise
    answers: Literal["models", "questions"] = "models"
    rules: Rules = Field(default_factory=Rules.read)  # by which it releases what it opens


@dataclass
class Party:
    """A party's rows, split for training and testing, and the rule of its gate."""

    name: str
    train: pd.DataFrame
    test: pd.DataFrame
    person: str | None = None
    policy: Policy = field(default_factory=Policy)
    workers: int = 2  # processes that may make blinding factors
    secret: bytes = field(default_factory=partial(secrets.token_bytes, 32), repr=False)
    rows_secret: bytes = field(default_factory=partial(secrets.token_bytes, 32), repr=False)
    query_table: QueryTable | None = None  # what questions are answered from
    profiles: dict[str, Profile] = field(default_factory=dict)  # released, by digest
    finished: dict[str, Any] = field(default_factory=dict)  # trees, as lab.trees.Finished
    party_sets: PartySets = field(default_factory=PartySets)  # behind totals that all see
    binding: Binding | None = None  # the plan whose questions it answers; None: it asks itself
    fewest: int = FEWEST  # parties that a sum hides it among, at least

    def holds(self, column: str) -> bool:
        """Whether a column is this party's; all are, where nobody knows the same persons."""
        return True

    @property
    def rules(self) -> Rules:
        """The rules of disclosure by which this party releases what it opens."""
        return self.policy.rules if self.query_table is None else self.query_table.rules

    def __post_init__(self) -> None:
        self._at_hand: dict[Callable[..., Any], OrderedDict[tuple[Any, ...], Any]] = {}

    def once(self, make: Callable[..., Any], *key: Any, at_hand: int = 8) -> Any:
        """``make(self, *key)``, made once while it is at hand; the last so many are."""
        results = self._at_hand.setdefault(make, OrderedDict())
        if key not in results:
            results[key] = make(self, *key)
        results.move_to_end(key)
        while len(results) > at_hand:
            results.popitem(last=False)
        return results[key]

    def forget(self, make: Callable[..., Any] | None = None) -> None:
        """Drop what this function made; without one, all that can be made again."""
        if make is None:
            self._at_hand.clear()
        else:
            self._at_hand.pop(make, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """As the rows alone: what is at hand can be made again where the party is sent."""
        data = (self.name, self.train, self.test, self.person, self.policy, self.workers)
        drawing = (self.secret, self.rows_secret)
        return Party, (*data, *drawing, self.query_table, {}, {}, PartySets(), self.binding)

    def _frame(self, part: Part) -> pd.DataFrame:
        return self.train if part == "train" else self.test

    def rows(self, task: Task, part: Part) -> pd.DataFrame:
        """The rows a task is about, without who they belong to: no question is about persons."""
        frame = self._frame(part)
        visible = frame if self.person is None else frame.drop(columns=self.person)
        rows = task.rows(visible)
        for digest in task.profiles:
            if digest not in self.profiles:
                raise PeerError("coordinator: names a profile that was not released to this party")
            rows = self.profiles[digest].join(rows)
        return rows

    def owners(self, task: Task, part: Part) -> pd.Series:
        """Who each of these rows belongs to: its person, or its own number."""
        rows = task.rows(self._frame(part))
        return rows.index.to_series() if self.person is None else rows[self.person]

    def units(self, task: Task, part: Part) -> Floats:
        """(rows,) who each of these rows belongs to, as numbers: apart for each party whose rows are
        here, which the rows' own numbers tell where they are pooled."""
        owners = self.owners(task, part)
        labels = owners.index.to_numpy()
        homes = labels >> PARTY_BITS if labels.dtype.kind == "i" else np.zeros(len(labels))
        person, home = (pd.factorize(values)[0] for values in (owners, homes))
        return np.asarray(person + HOME * home, dtype=np.float64)

    def claims(self) -> pd.DataFrame:
        """All rows, for training and for testing, with who they belong to."""
        parts = [self.train] if self.test is self.train else [self.train, self.test]
        return pd.concat(parts)

    def take(self, request: Request) -> Sums:
        """The gate: the statistic asked for, over this party's rows.

        Raises :class:`PolicyError` for a model's sum over fewer rows than the party's minimum; what
        is opened cell by cell has rules for that. A party without any row for a question
        contributes zeros.
        """
        row = statistics.find(request.statistic)
        if (row.analysis == QUESTIONS) != (self.policy.answers == QUESTIONS):
            raise PolicyError(f"this party answers {self.policy.answers} alone")
        sums = row.function(self, row.read(request.text, request.arrays), request.arrays)
        if not row.released:
            self.check_rows(request.statistic, sums)
        return sums

    def check_rows(self, statistic: str, sums: Sums) -> None:
        """Raises :class:`PolicyError` for a sum over fewer rows than the party's minimum."""
        if 0 < sums.rows < self.policy.minimum_rows:
            raise PolicyError(
                f"{statistic}: fewer rows behind the sum than this party's minimum "
                f"of {self.policy.minimum_rows}"
            )


def numbered(party: str, rows: pd.DataFrame) -> pd.DataFrame:
    """A party's rows by their numbers: its name's CRC-32 and their place among its rows.

    Every party makes them by itself, and they are the same in a simulation, at a node, and where
    rows of several parties are pooled.
    """
    first = zlib.crc32(party.encode()) << PARTY_BITS
    return rows.set_axis(pd.RangeIndex(first, first + len(rows)), axis="index")
