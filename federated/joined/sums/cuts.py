"""The fund's columns in trees: how their bins are agreed on, and what is told of cuts on them.

Before trees grow, rows for training are counted by bin. Which they are is the insurer's to know, and who is
common perhaps too. So it encrypts 1 for each row of the spine that counts and 0 for each other, and the fund
adds up what it can't read, by its bins: a ladder of edges that is cut finer where rows are many, with far more
rungs than a tree has bins. Where all common rows train and both sides know which they are, each counts its own.

While trees grow, the fund's column stays at the fund. To follow its rows through a tree the insurer's side
needs of a cut on that column one bit for each common person, and keeps of the column no more than that: the
class of bins that all bits so far put a person in. Where a class stands in for its bins, every cut that was
told goes as it does at the fund, so that trees, leaves and scores are computed as if the column were there.

Where the insurer alone knows who is common, the fund tells of all its rows, each row's bits hidden by its
key of the alignment, which an insurer without the row does not have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
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
from federated.party.party import Party
from lab.errors import PeerError
from lab.models.design import Feature
from lab.models.tree_model import LEAF, Cuts, Tree, binned
from lab.models.tree_rows import MOST_ROWS
from lab.models.trees import OfBins
from lab.privacy.joining import PERSONS
from lab.statistics import Part
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

    @property
    def _opened(self) -> Codes:
        """Which numbers of the array are opened; the others are 0."""
        return self._places(list(range(len(self.a.cuts))), full=True)

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
        whole = np.zeros(sum(self.sizes), dtype=object)
        if own:
            whole[self._places(own)] = [int(v) for v in self._counts(party, own)]
        return {BOTH: rows, WITHIN: rows, self.array: whole[self._opened]}

    def _counts(self, party: Party, own: list[int]) -> Floats:
        """Of some features, whose columns a party holds."""
        asked = self.a.model_copy(update={"cuts": tuple(self.a.cuts[j] for j in own)})
        arrays = {name: each[own] for name, each in self.arrays.items()}
        return statistics.find(self.name).function(party, asked, arrays)[self.array].ravel()

    def known(self, side: Any) -> Sums:
        """What a side counts of its own features where it knows which rows train."""
        insurer, own = side.role == "insurer", self._of(side.role)
        parties = [side.common.party] if insurer else [_met(side, peer) for peer in side.met]
        whole = np.zeros(sum(self.sizes))
        for party in parties if own else ():
            whole[self._places(own)] += self._counts(party, own)
        rows = len(side.common.party.train) if insurer else 0
        return Sums({self.array: self.shaped(whole)}, {self.array: self.limit}, rows)

    def combined(self, shares: Shares) -> dict[str, Integers]:
        opened, at_fund = self._opened, self._places(self._of("fund"), full=True)
        values = np.zeros(len(opened), dtype=object)
        values[np.searchsorted(opened, at_fund)] = shares("trained", "bins")[0]
        return {self.array: values}

    def about(self, column: str, numbers: int) -> int:
        return sum(
            len(self.full(j)) for j, cut in enumerate(self.a.cuts) if cut.feature.column == column
        )

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        whole = np.zeros(sum(self.sizes))
        whole[self._opened] = values[self.array]
        return Sums({self.array: self.shaped(whole)}, {self.array: self.limit}, rows)

    def shaped(self, whole: Floats) -> Floats:
        """The array in the form that it is opened in."""
        return whole


def _met(fund: Any, peer: str) -> Party:
    """The fund's rows that an insurer has too, as a party."""
    there = fund.met[peer].reindex(fund.train.index, fill_value=False).to_numpy(dtype=bool)
    rows = fund.train[there]
    return Party(fund.name, rows, rows, fund.person, fund.policy)


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

    def shaped(self, whole: Floats) -> Floats:
        return whole.reshape(len(self._edges), -1)


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


#: What is counted of bins before trees grow.
COUNTED: Mapping[str, type[_Counted]] = {each.name: each for each in (Bins, Persons)}


# What is told of cuts.

Bits = NDArray[np.bool_]
#: A cut: the number of its feature, and (bins,) which bins go left.
Cut = tuple[int, tuple[bool, ...]]


def cuts_of(trees: Iterable[Tree], cuts: tuple[Cuts, ...], holds: Any) -> list[Cut]:
    """The cuts of trees on columns that ``holds`` is true of, each once, in the order of their nodes."""
    chosen: dict[Cut, None] = {}
    for tree in trees:
        for at, feature in enumerate(tree.feature):
            if feature != LEAF and holds(cuts[feature].feature.column):
                left = tree.goes_left[at, : cuts[feature].bins]
                chosen[feature, tuple(map(bool, left))] = None
    return list(chosen)


def text_of(cut: Cuts, goes_left: Iterable[bool]) -> str:
    """A cut as it is kept: the bins of its feature, and which of them go left."""
    bins = "".join(str(int(left)) for left in goes_left)
    return json.dumps([cut.model_dump(mode="json"), bins], sort_keys=True)


def cut_of(text: str) -> tuple[Cuts, tuple[bool, ...]]:
    """The cut that :func:`text_of` wrote."""
    cut, bins = json.loads(text)
    return Cuts.model_validate(cut), tuple(left == "1" for left in bins)


def pads(keys: NDArray[np.uint8], nonce: bytes, cuts: int) -> Bits:
    """(cuts, rows) what hides the bits of rows. keys: (rows, 32); nonce: of one letter."""
    width = -(-cuts // 8)
    data = b"".join(hashlib.shake_128(nonce + key.tobytes()).digest(width) for key in keys)
    rows = np.frombuffer(data, dtype=np.uint8).reshape(len(keys), width)
    return np.unpackbits(rows, axis=1, count=cuts).T.astype(bool)


class ToldColumn:
    """What was told of one of the fund's columns. codes: (rows,) of each common row a bin of its class."""

    def __init__(self, name: str, cut: Cuts, rows: int) -> None:
        """name: of the column that stands in for the fund's."""
        self.name, self.cut = name, cut
        self._of_bin = np.zeros(cut.bins, dtype=np.int64)
        self._of_row = np.zeros(rows, dtype=np.int64)
        self.codes = np.zeros(rows, dtype=np.uint8)

    @property
    def term(self) -> Cuts:
        """The bins of the column that stands in: bin k holds the number k."""
        edges = tuple(k + 0.5 for k in range(self.cut.bins - 2))
        feature = Feature(column=self.name)
        return Cuts(feature=feature, edges=edges, monotone=self.cut.monotone)

    @property
    def values(self) -> NDArray[np.float64]:
        """(rows,) the column that stands in, missing where the last bin does."""
        last = self.cut.bins - 1
        return np.where(self.codes == last, np.nan, self.codes.astype(np.float64))

    def hear(self, goes_left: Bits, bits: Bits) -> None:
        """Take up one cut. goes_left: (bins,); bits: (rows,). Raises :class:`PeerError` for bits that no
        column could have after those before."""
        of_bin, of_row = 2 * self._of_bin + goes_left, 2 * self._of_row + bits
        classes, first, self._of_bin = np.unique(of_bin, return_index=True, return_inverse=True)
        place = np.searchsorted(classes, of_row).clip(max=len(classes) - 1)
        if not np.array_equal(classes[place], of_row):
            raise PeerError("the fund: tells of a cut what does not go with the cuts before it")
        self._of_row, self.codes = place, first[place].astype(np.uint8)


class CommonRows:
    """An insurer's rows that the fund has as well, as a party with what it was told of the fund's columns.

    place: (rows,) where each row that the fund has too stands on the spine, by its label; -1 for others.
    """

    def __init__(self, side: Party, place: pd.Series) -> None:
        self._holds, self._told = side.holds, dict[Cuts, ToldColumn]()
        train = _common(side.train, place)
        test = train if side.test is side.train else _common(side.test, place)
        self.party = Party(
            side.name,
            train,
            test,
            side.person,
            side.policy,
            secret=side.secret,
            rows_secret=side.rows_secret,
        )
        self._training = len(train)
        labels = train.index if test is train else train.index.append(test.index)
        self._place = place.loc[labels].to_numpy()

    def column(self, cut: Cuts) -> ToldColumn:
        """What was told of one of the fund's columns in bins."""
        if cut not in self._told:
            self._told[cut] = ToldColumn(f"told {len(self._told)}", cut, len(self._place))
            self._show(self._told[cut])
        return self._told[cut]

    def hear(self, cut: Cuts, goes_left: tuple[bool, ...], bits: Bits) -> None:
        """Take up a cut. bits: (spine's rows,)."""
        column = self.column(cut)
        column.hear(np.array(goes_left), bits[self._place])
        self._show(column)

    def _show(self, column: ToldColumn) -> None:
        party, values = self.party, column.values
        whole = party.test is party.train
        party.train = party.train.assign(**{column.name: values[: self._training]})
        party.test = (
            party.train if whole else party.test.assign(**{column.name: values[self._training :]})
        )

    def terms(self, cuts: tuple[Cuts, ...]) -> tuple[Cuts, ...]:
        """Bins as this table has them: of the fund's columns those that stand in."""
        return tuple(
            cut if self._holds(cut.feature.column) else self.column(cut).term for cut in cuts
        )

    def codes(self, cut: Cuts, part: Part) -> NDArray[np.uint8]:
        """(rows,) what was told of one of the fund's columns."""
        codes, in_sample = self.column(cut).codes, self.party.test is self.party.train
        of_training = part == "train" or in_sample
        return codes[: self._training] if of_training else codes[self._training :]


def _common(frame: pd.DataFrame, place: pd.Series) -> pd.DataFrame:
    there = place.reindex(frame.index, fill_value=-1).to_numpy() >= 0
    return frame[there].copy()
