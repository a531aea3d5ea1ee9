"""Rows for training by bin of a feature, before trees grow: the fund adds up what it can't read.

Which rows train is the insurer's to know, and who is common perhaps too. So it encrypts 1 for each row of
the spine that counts and 0 for each other, several to a ciphertext, and the fund adds them up by its bins,
of which there are far more here than in trees: a ladder of edges is cut finer where rows are many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from federated.joined.sums.factors import (
    BOTH,
    WITHIN,
    Arguments,
    Format,
    Groups,
    Multiplied,
    Shares,
    Widths,
)
from federated.party import statistics
from lab.errors import PeerError
from lab.models.tree_model import Cuts, binned
from lab.models.tree_rows import MOST_ROWS
from lab.models.trees import OfBins
from lab.privacy.joining import PERSONS
from lab.sums import HEADS, Floats, Limit, Sums
from secure_agg.arithmetic.ring import Integers

ONES = {"here": 1, "valid": 1}
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class _Counted(Arguments):
    """Rows in bins of several features. The insurer adds those of its own features by itself."""

    a: OfBins
    form: ClassVar[Format] = Format.counted(MOST_ROWS, encrypted=True)
    #: The array that is opened, and how a party that holds all columns makes it.
    array: ClassVar[str]
    name: ClassVar[str]
    limit: ClassVar[Limit] = HEADS

    @property
    def sizes(self) -> list[int]:
        """Numbers of each feature in the array."""
        raise NotImplementedError

    def full(self, feature: int) -> Codes:
        """Which of a feature's numbers can differ from 0."""
        return np.arange(self.sizes[feature])

    def codes(self, feature: int, rows: Any) -> Codes:
        """(rows,) which of a feature's numbers each row adds to, -1 for none."""
        raise NotImplementedError

    def _of(self, role: str) -> list[int]:
        cuts = enumerate(self.a.cuts)
        return [j for j, cut in cuts if self.owner(cut.feature.column) == role]

    def _places(self, features: list[int], *, full: bool = False) -> Codes:
        """Where the numbers of some features stand, all or those that can differ from 0."""
        start = np.concatenate([[0], np.cumsum(self.sizes)])
        parts = [start[j] + (self.full(j) if full else np.arange(self.sizes[j])) for j in features]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)

    def told(self, side: Any, peer: str) -> bytes:
        return b""

    def hear(self, side: Any, data: bytes) -> None:
        if data:
            raise PeerError("the fund: tells of cuts before any was chosen")

    def products(self) -> Multiplied:
        return [(("trained",), ("bins",))]

    def widths(self) -> Widths:
        bins = len(self._places(self._of("fund"), full=True))
        return {"trained": 1} | ONES, {"bins": bins} | ONES

    def left(self, side: Any) -> Groups:
        index = side.rows(self.a.task, "train").index
        trained = index.isin(side.common.party.train.index)
        return {"trained": trained.astype(np.float64)[:, None]}

    def right(self, side: Any) -> dict[str, Any]:
        rows = side.rows(self.a.task, "train")
        flags = [self.codes(j, rows)[:, None] == self.full(j) for j in self._of("fund")]
        return {"bins": np.hstack([np.zeros((len(rows), 0), dtype=bool), *flags])}

    def alone(self, side: Any) -> dict[str, Integers]:
        own, party = self._of("insurer"), side.common.party
        rows = np.array([len(party.train)], dtype=object)
        values = {BOTH: rows, WITHIN: rows, self.array: np.zeros(sum(self.sizes), dtype=object)}
        if own:
            asked = self.a.model_copy(update={"cuts": tuple(self.a.cuts[j] for j in own)})
            arrays = {name: each[own] for name, each in self.arrays.items()}
            sums = statistics.find(self.name).function(party, asked, arrays)
            values[self.array][self._places(own)] = [int(v) for v in sums[self.array].ravel()]
        return values

    def combined(self, shares: Shares) -> dict[str, Integers]:
        values = np.zeros(sum(self.sizes), dtype=object)
        values[self._places(self._of("fund"), full=True)] = shares("trained", "bins")[0]
        return {self.array: values}

    def about(self, column: str, numbers: int) -> int:
        return sum(
            len(self.full(j)) for j, cut in enumerate(self.a.cuts) if cut.feature.column == column
        )

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        return Sums({self.array: values[self.array]}, {self.array: self.limit}, rows)


@dataclass(frozen=True)
class Bins(_Counted):
    """``trees_bins``: rows between edges. Equal edges, which fill up a row, have nothing between them."""

    array: ClassVar[str] = "count"
    name: ClassVar[str] = "trees_bins"

    @property
    def _edges(self) -> Floats:
        return self.arrays["edges"]

    @property
    def sizes(self) -> list[int]:
        return [self._edges.shape[1] + 1] * len(self._edges)

    def full(self, feature: int) -> Codes:
        return self._distinct[feature]

    @cached_property
    def _distinct(self) -> list[Codes]:
        ends = self._edges.shape[1]
        return [np.append(np.unique(row, return_index=True)[1], ends) for row in self._edges]

    def codes(self, feature: int, rows: Any) -> Codes:
        cut = self.a.cuts[feature]
        values = cut.feature.numbers(rows, cut.levels)
        return np.where(np.isnan(values), -1, np.searchsorted(self._edges[feature], values))

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        count = values["count"].reshape(len(self._edges), -1)
        return super().opened({"count": count}, rows)


@dataclass(frozen=True)
class Persons(_Counted):
    """``trees_persons``: persons in bins, each of whom has one row."""

    array: ClassVar[str] = PERSONS
    name: ClassVar[str] = "trees_persons"

    @property
    def sizes(self) -> list[int]:
        return [cut.bins for cut in self.a.cuts]

    def codes(self, feature: int, rows: Any) -> Codes:
        cuts: tuple[Cuts, ...] = (self.a.cuts[feature],)
        return binned(rows, cuts)[:, 0].astype(np.int64)
