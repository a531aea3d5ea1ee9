"""What each side adds to a sum over joined rows: columns whose products over all persons are the sum.

A statistic of the joined table is a linear function of ``left.T @ right``, where the insurer's side makes
``left`` from its columns and the fund's side ``right`` from its own. Columns stand in named groups; a
statistic says which groups are multiplied, and what is made of the products: each side makes that of its
share of them, so that nothing is opened but what the statistic tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.errors import ConfigurationError
from lab.models.design import Design, Encoding, codes_of
from lab.statistics import Part
from lab.sums import Floats, Sums
from secure_agg.arithmetic.ring import Digits, Integers, Ring

Role = Literal["insurer", "fund"]
#: Who holds a column.
Owner = Callable[[str], Role]
#: Groups of the insurer's side and of the fund's that are multiplied with each other.
Multiplied = list[tuple[tuple[str, ...], tuple[str, ...]]]
#: Columns of each group of either side.
Widths = tuple[dict[str, int], dict[str, int]]
#: Columns by group: (rows, columns) each.
Groups = dict[str, Floats]


#: Numbers of either side below 2**44 on a grid of 2**-44, products of up to 2**30 rows: 89 bits each and
#: 30 bits more.
RING = Ring(208)


@dataclass(frozen=True)
class Format:
    """The fixed-point format of a side's numbers, which are scaled so that an average row's are about 1.

    ring: that sums of products stay in; bits: of a number with its sign; indicators: the fund's numbers
    are 0 or 1; encrypted: the insurer's are too, and products are made by Paillier whatever the plan says,
    for the fund's columns are so many that letters of dealt randomness would not travel.
    """

    bound: float
    resolution: float
    ring: Ring = RING
    bits: int = 90
    indicators: bool = False
    encrypted: bool = False

    @classmethod
    def counted(cls, most: float, *, encrypted: bool = False) -> Format:
        """Of whole numbers up to this at the insurer's side, added up by what the fund's side knows."""
        bits = int(most).bit_length() + 1
        ring = Ring(48 if encrypted else 64)
        return cls(2.0 ** (bits - 1), 1.0, ring, bits, indicators=True, encrypted=encrypted)

    def bits_over(self, rows: int) -> int:
        """Bits of a number of so many rows, with its sign: where 1 is the most, of a column's sum."""
        return rows.bit_length() + 1 if self.encrypted else self.bits

    def made_by(self, product: str) -> str:
        """How products are made, triples or paillier, where a plan says product."""
        return "paillier" if self.encrypted else product


#: Of sums that are products of two numbers; where shares are multiplied again, coarser.
FINE, COARSE = Format(2.0**44, 2.0**-44), Format(2.0**24, 2.0**-32, bits=58)


class Knowledge(IntEnum):
    """What sides know of the rows that they both have, so that they count by themselves.

    INSURERS: which are common; ALL: that every common row trains, and the fund which these are, too.
    """

    NOTHING = 0
    INSURERS = 1
    ALL = 2


class Half(Protocol):
    """A side's rows of a task."""

    role: Role

    def rows(self, task: Any, part: Part) -> pd.DataFrame:
        """The rows a task is about; at the fund's side all that it has."""

    def owners(self, task: Any, part: Part) -> pd.Series:
        """Who each of these rows belongs to."""

    secret: bytes
    kept: dict[bytes, bytes]  # ciphertexts of rows that are summed up again


@dataclass(frozen=True)
class Shares:
    """A side's shares of products of groups. widths: columns of each group of either side.

    blocks: (left columns, right columns) by the names of an insurer's group and a fund's; own: the
    side's groups on the rows of the spine, among them its shares of curves.
    """

    ring: Ring
    widths: Widths
    blocks: Mapping[tuple[str, str], Integers]
    own: Mapping[str, Digits]

    def __call__(self, left: str, right: str) -> Integers:
        """The share of the product of two groups."""
        empty = np.zeros((self.widths[0][left], self.widths[1][right]), dtype=object)
        return self.blocks.get((left, right), empty)

    def local(self, left: str, right: str) -> Integers:
        """The product of two groups that this side has, such as own columns and its share of a curve;
        0 at the side that has not both."""
        if left in self.own and right in self.own:
            return self.ring.product(self.own[left], self.own[right])
        ours, theirs = self.widths
        shape = [ours[name] if name in ours else theirs[name] for name in (left, right)]
        return np.zeros(shape, dtype=object)


class JoinedSum(Protocol):
    """One statistic at one set of arguments.

    curves: of each row, what is a function of both sides' parts of its linear predictor together, by
    name; shares of them are made first, row by row, and enter the products as columns of both sides.
    """

    curves: ClassVar[tuple[str, ...]]

    @property
    def form(self) -> Format:
        """The format of both sides' numbers."""

    @property
    def shared(self) -> tuple[str, ...]:
        """Groups of either side whose numbers are shares, anywhere in the ring."""

    def products(self) -> Multiplied:
        """Groups of the insurer's side and of the fund's that are multiplied with each other."""

    def widths(self) -> Widths:
        """Columns of each group of either side; both sides know them."""

    def left(self, side: Half) -> Groups:
        """The insurer's columns."""

    def right(self, side: Half) -> Groups:
        """The fund's columns."""

    def combined(self, shares: Shares) -> dict[str, Integers]:
        """What a side makes of its shares; linear, with whole coefficients."""

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        """The total, of what the shares add up to."""

    def about(self, column: str, numbers: int) -> int:
        """Of so many numbers that are opened, those that depend on a column."""


def within(groups: Groups, rows: int, form: Format = FINE) -> Groups:
    """Groups with ``here``, 1 for each row, and ``valid``, which is 0 where a number is none or beyond
    its bound; such rows are 0 everywhere else."""
    inside = np.ones(rows, dtype=bool)
    for columns in groups.values():
        inside &= np.all(np.abs(columns) <= form.bound, axis=1)  # what is no number is not either
    kept = {name: np.where(inside[:, None], columns, 0.0) for name, columns in groups.items()}
    return {**kept, "valid": inside.astype(np.float64)[:, None], "here": np.ones((rows, 1))}


@dataclass(frozen=True)
class Halves:
    """An encoding cut by who holds its columns; the intercept is the insurer's."""

    encoding: Encoding
    owner: Owner

    def __post_init__(self) -> None:
        if self.encoding.crosses:
            raise ConfigurationError("model.interactions: joined sides have none; leave them out")

    def _part(self, role: Role) -> Encoding:
        return Encoding(
            numbers=tuple(t for t in self.encoding.numbers if self.owner(t.feature.column) == role),
            categories=tuple(
                t for t in self.encoding.categories if self.owner(t.feature.column) == role
            ),
        )

    @cached_property
    def places(self) -> dict[Role, NDArray[np.intp]]:
        """Which columns of the whole design are whose, in the order of the parts."""
        owners: list[Role] = ["insurer"]
        owners += [self.owner(t.feature.column) for t in self.encoding.numbers]
        for term in self.encoding.categories:
            owners += [self.owner(term.feature.column)] * (len(term.levels) - 1)
        whose = np.array(owners)
        return {
            "insurer": np.flatnonzero(whose == "insurer"),
            "fund": np.flatnonzero(whose == "fund"),
        }

    @cached_property
    def pairs(self) -> dict[tuple[Role, Role], tuple[NDArray[np.intp], Floats]]:
        """Entries of X'WX by whose columns meet: which of ``encoding.pairs``, and (2, entries) the places
        of the two columns within their parts; the insurer's first."""
        within_part = np.empty(self.encoding.width, dtype=np.intp)
        whose = np.empty(self.encoding.width, dtype=object)
        for role, places in self.places.items():
            within_part[places], whose[places] = np.arange(len(places)), role
        i, j = self.encoding.pairs
        found = {}
        for first, second in (("insurer", "insurer"), ("insurer", "fund"), ("fund", "fund")):
            straight = (whose[i] == first) & (whose[j] == second)
            turned = (whose[i] == second) & (whose[j] == first) & ~straight
            at = np.flatnonzero(straight | turned)
            one = np.where(turned[at], within_part[j[at]], within_part[i[at]])
            two = np.where(turned[at], within_part[i[at]], within_part[j[at]])
            found[first, second] = (at, np.array([one, two]))
        return found  # type: ignore[return-value]

    def matrix(self, role: Role, frame: pd.DataFrame) -> Floats:
        """(rows, columns) a side's part of the design."""
        dense: Floats = Design(frame, self._part(role)).matrix()
        return dense if role == "insurer" else dense[:, 1:]

    def squares(self, role: Role, matrix: Floats) -> Floats:
        """(rows, entries) products of a side's columns with each other."""
        _, (one, two) = self.pairs[role, role]
        return np.asarray(matrix[:, one] * matrix[:, two], dtype=np.float64)


def indicators(frame: pd.DataFrame, feature: Any, levels: tuple[str, ...]) -> Floats:
    """(rows, levels) 1 where a row has a level."""
    codes = codes_of(feature.texts(frame), levels)
    return np.asarray(codes[:, None] == np.arange(len(levels)), dtype=np.float64)


@dataclass(frozen=True)
class Arguments:
    """What every statistic of joined rows is made from: the record of its arguments, the arrays that came
    with them, and who holds a column."""

    a: Any
    arrays: Mapping[str, Floats]
    owner: Owner
    curves: ClassVar[tuple[str, ...]] = ()

    @property
    def form(self) -> Format:
        """Fine where shares are not multiplied again."""
        return FINE

    @property
    def shared(self) -> tuple[str, ...]:
        """Groups of either side whose numbers are shares."""
        return self.curves

    def about(self, column: str, numbers: int) -> int:
        """Of so many numbers that are opened, those that depend on a column."""
        return numbers


class CurvedSum(JoinedSum, Protocol):
    """A statistic that needs curves: f(a + b) as sum_k f_k(a) g_k(b), exact to a stated error.

    terms: how many products a curve is the sum of.
    """

    @property
    def terms(self) -> int: ...

    def left_curves(self, side: Half) -> Floats:
        """(rows, curves, terms) the insurer's factors."""

    def right_curves(self, side: Half) -> Floats:
        """(rows, terms) the fund's factors, the same for all curves."""

    def with_curves(self, ring: Ring, own: dict[str, Digits]) -> dict[str, Digits]:
        """A side's groups on the spine, with those that its shares of curves make."""


@runtime_checkable
class TellingSum(JoinedSum, Protocol):
    """A statistic of which the insurer's side knows a part by itself, once the fund's side has told it
    what a plan chose to be told."""

    def told(self, side: Any, peer: str) -> bytes:
        """What the fund's side tells an insurer."""

    def hear(self, side: Any, data: bytes) -> None:
        """Take it up at the insurer's side."""

    def alone(self, side: Any) -> dict[str, Integers]:
        """What the insurer's side adds by itself, of any of the arrays and of :data:`BOTH`."""


#: The total of rows that both sides have, which every statistic opens, and of those among them whose
#: numbers are within their bounds.
BOTH, WITHIN = "both sides' rows", "rows within bounds"
