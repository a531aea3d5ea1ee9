"""From a party's columns to a design that all parties agree on.

An :class:`Encoding` is public: for every term its column, how it is cut or scaled, and its
levels. It is made from federated sums over training rows (``federated/solvers/encoding.py``), which a
party takes in `lab.models.agreement`; this file applies it to the party's rows.

Natural cubic splines in truncated powers: Hastie, Tibshirani and Friedman, The Elements of Statistical
Learning (2nd ed. 2009), section 5.2.1, whose columns span the same curves as ``cr`` of patsy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lab.errors import ContractError
from lab.privacy.joining import RARE
from lab.records import Strict
from lab.sums import Floats
from lab.tables.values import DECIMAL, level_of

#: Rows handled at once: a block of the design stays in the processor's cache.
BLOCK = 4096
#: Knots of a curve at quantiles.
MOST_KNOTS = 20
#: Levels of a category: their codes are 16-bit numbers.
MOST_LEVELS = 2**15 - 1


class Bend(Strict):
    """One column of a number's curve.

    ``natural``: column ``at`` of a cubic spline that is straight beyond its first and last knot, K knots
    make K - 1 columns; ``straight``: how far a value is above knot ``at`` - 1, or for ``at`` 0 the value.
    """

    kind: Literal["natural", "straight"]
    knots: tuple[float, ...] = Field(min_length=1)
    at: int = Field(ge=0)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if any(low >= high for low, high in itertools.pairwise(self.knots)):
            raise ValueError("knots must be strictly increasing")
        if self.kind == "natural" and len(self.knots) < 3:
            raise ValueError("a natural spline needs 3 knots or more")
        if self.at >= columns(self.kind, self.knots):
            raise ValueError(f"has no column {self.at}")
        return self

    def of(self, x: Floats) -> Floats:
        """The column, of the same shape; NaN stays.

        >>> Bend(kind="straight", knots=(30.0,), at=1).of(np.array([20.0, 50.0])).tolist()
        [0.0, 20.0]
        """
        if self.at == 0:
            return x
        if self.kind == "straight":
            return np.maximum(x - self.knots[self.at - 1], 0.0)
        inner, last = self._cubed(x, self.at - 1), self._cubed(x, len(self.knots) - 2)
        return np.asarray(inner - last)

    def _cubed(self, x: Floats, k: int) -> Floats:
        """d_k of section 5.2.1, with the range of the knots as the unit."""
        low, high = self.knots[0], self.knots[-1]
        t, knots = (x - low) / (high - low), (np.array(self.knots) - low) / (high - low)
        above = [np.maximum(t - knots[at], 0.0) ** 3 for at in (k, -1)]
        return np.asarray((above[0] - above[1]) / (1.0 - knots[k]))

    @property
    def label(self) -> str:
        """What a column is called beside its feature."""
        if self.kind == "natural":
            return f"[spline {self.at + 1}]"
        return "" if self.at == 0 else f"[above {self.knots[self.at - 1]:g}]"


def columns(kind: str, knots: tuple[float, ...]) -> int:
    """How many columns a curve has."""
    return len(knots) - 1 if kind == "natural" else len(knots) + 1


def bends(kind: Literal["natural", "straight"], knots: tuple[float, ...]) -> tuple[Bend, ...]:
    """All columns of a curve."""
    return tuple(Bend(kind=kind, knots=knots, at=k) for k in range(columns(kind, knots)))


def rounded(values: Floats, spread: float) -> Floats:
    """Values to three digits of their spread: short to read, and still apart.

    >>> rounded(np.array([2013.237, 2016.881]), spread=2.5).tolist()
    [2013.24, 2016.88]
    """
    return np.round(values, 2 - int(np.floor(np.log10(spread))))


class Feature(Strict):
    """A feature as an experiment names it.

    ``log``: the natural logarithm. ``cut``: intervals closed on the right, so ``[20, 25]`` makes
    up to 20, above 20 up to 25, above 25. ``category``: each value is a level. ``ordinal``: the
    position of a category's level in its contract, as a number. ``spline``, ``pieces``: a curve instead of
    a straight line, see :class:`Bend`, through so many knots at quantiles or through these knots.
    ``base``: what relativities are 1.00 at, a level or a value. ``smooth``, ``monotone``: of levels in an order.
    """

    column: str = Field(description="A column of the table.")
    log: bool = Field(False, description="Take its natural logarithm.")
    cut: tuple[float, ...] | None = Field(
        None, description="Cut points of intervals, closed on the right."
    )
    category: bool = Field(False, description="Take each value as a level.")
    ordinal: bool = Field(
        False, description="Take the position of a category's level in its contract, as a number."
    )
    spline: int | tuple[float, ...] | None = Field(
        None, description="A natural cubic spline: how many knots, or the knots."
    )
    pieces: int | tuple[float, ...] | None = Field(
        None, description="Straight pieces: how many knots between them, or the knots."
    )
    base: str | float | None = Field(
        None,
        description="Where a GLM's relativity is 1: a level, or a value of a number; default: the first level, the mean.",
    )
    smooth: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="In a GLM, λ of: λ/2·Σ differences² of neighbouring levels.",
    )
    differences: Literal[1, 2] = Field(
        2, description="Which differences smooth takes: 1 draws levels together, 2 to a line."
    )
    monotone: Literal["rising", "falling"] | None = Field(
        None, description="In a GLM, coefficients of levels that never fall, or never rise."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum([self.log, self.cut is not None, self.category, self.ordinal]) > 1:
            raise ValueError("use only one of log, cut, category and ordinal")
        self._check_curve()
        if self.cut is not None and sorted(set(self.cut)) != list(self.cut):
            raise ValueError("cut points must be strictly increasing")
        return self

    def _check_curve(self) -> None:
        if (knots := self.knots) is None:
            return
        others = self.cut is not None or self.category or self.ordinal
        if others or (self.spline is not None and self.pieces is not None):
            raise ValueError("spline and pieces are for numbers, one of them, with log or without")
        least = 3 if self.spline is not None else 1
        if isinstance(knots, int):
            if not least <= knots <= MOST_KNOTS:
                raise ValueError(f"takes {least} to {MOST_KNOTS} knots, got {knots}")
        else:
            bends(self.curve, knots)

    @property
    def knots(self) -> int | tuple[float, ...] | None:
        """Of its curve: how many, or which; None for a straight line."""
        return self.pieces if self.spline is None else self.spline

    @property
    def curve(self) -> Literal["natural", "straight"]:
        return "straight" if self.spline is None else "natural"

    @property
    def name(self) -> str:
        return f"log({self.column})" if self.log else self.column

    def numbers(self, frame: pd.DataFrame, levels: tuple[str, ...] = ()) -> Floats:
        """The feature as numbers, one for each row; NaN where the value is missing."""
        if self.ordinal:
            place = codes_of(frame[self.column].astype("category"), levels)
            return np.where(place < 0, np.nan, place + 1.0)
        values = frame[self.column].to_numpy(dtype=np.float64)
        if self.log:
            if (values <= 0).any():
                raise ContractError(
                    f"column '{self.column}' must be above 0 where its logarithm is a feature; "
                    "leave other rows out, or drop log"
                )
            return np.asarray(np.log(values))
        return values

    def texts(self, frame: pd.DataFrame) -> pd.Series:
        """The feature as level names, a pandas category; cut intervals read ``20-25``."""
        values = frame[self.column]
        if self.cut is None and not pd.api.types.is_float_dtype(values):
            return values.astype("category")
        numbers = values.to_numpy(dtype=np.float64)
        if self.cut is None:
            levels, codes = np.unique(numbers, return_inverse=True)
            names = [level_of(level) for level in levels[~np.isnan(levels)]]
        else:
            names = list(self.intervals())
            codes = np.searchsorted(np.array(self.cut), numbers, side="left")
        codes = np.where(np.isnan(numbers), -1, codes)
        return pd.Series(
            pd.Categorical.from_codes(codes, pd.Index(names, dtype="str")), index=frame.index
        )

    def intervals(self) -> tuple[str, ...]:
        """Names of the cut's intervals, in order."""
        cut = self.cut or ()
        ends = [level_of(end) for end in cut]
        inner = [f"{low}-{high}" for low, high in itertools.pairwise(ends)]
        return (f"<={ends[0]}", *inner, f">{ends[-1]}")


class Number(Strict):
    """A numeric term, standardised with a mean and a scale that come from sums."""

    kind: Literal["number"] = "number"
    feature: Feature
    mean: float
    scale: float = Field(gt=0)
    levels: tuple[str, ...] = ()
    bend: Bend | None = None

    @property
    def name(self) -> str:
        return self.feature.name + (self.bend.label if self.bend else "")

    def values(self, frame: pd.DataFrame) -> Floats:
        """The term of each row in its own units; NaN where the value is missing."""
        own = self.feature.numbers(frame, self.levels)
        return own if self.bend is None else self.bend.of(own)

    def standardised(self, frame: pd.DataFrame) -> Floats:
        return (self.values(frame) - self.mean) / self.scale


class Levels(Strict):
    """A categorical term in treatment coding: the first level is the base and has no column."""

    kind: Literal["levels"] = "levels"
    feature: Feature
    levels: tuple[str, ...]

    def codes(self, frame: pd.DataFrame) -> NDArray[np.int32]:
        """The place of each row's level, -1 where it is not among them."""
        return codes_of(self.feature.texts(frame), self.levels)

    @property
    def order(self) -> list[int]:
        """The places of levels as intervals or numbers rise, else as they are; joined levels have none."""
        names = [name for name in self.levels if name != RARE]
        if self.feature.cut is not None:
            names.sort(key=self.feature.intervals().index)
        elif all(map(DECIMAL.fullmatch, names)):
            names.sort(key=float)
        return [self.levels.index(name) for name in names]


class Encoding(Strict):
    """The agreed design: an intercept, then the terms in order, then products. Missing numbers take the
    mean; a level that no training row had takes the base level. ``crosses``: of each product, the places
    of the two columns that are multiplied, as they are standardised."""

    numbers: tuple[Number, ...] = ()
    categories: tuple[Levels, ...] = ()
    crosses: tuple[tuple[int, int], ...] = ()

    @model_validator(mode="after")
    def _levels_have_codes(self) -> Self:
        for term in self.categories:
            if not 1 < len(term.levels) <= MOST_LEVELS:
                raise ValueError(
                    f"category '{term.feature.column}' needs 2 to {MOST_LEVELS:,} levels, "
                    f"got {len(term.levels):,}"
                )
        if any(not 0 < i < j <= len(self.features) for i, j in self.crosses):
            raise ValueError("crosses: each takes the places of two columns of terms, in order")
        return self

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """The feature behind each column of a term, from place 1 on."""
        return (
            *(term.feature for term in self.numbers),
            *(term.feature for term in self.categories for _ in term.levels[1:]),
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Column names: intercept, ``age``, ``log(density)``, ``region[T.north]``, ``age:region[T.north]``."""
        own = (
            "intercept",
            *(term.name for term in self.numbers),
            *(
                f"{term.feature.column}[T.{level}]"
                for term in self.categories
                for level in term.levels[1:]
            ),
        )
        return (*own, *(f"{own[i]}:{own[j]}" for i, j in self.crosses))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The table's column behind each column of the design, but the intercept; of a product both."""
        own = tuple(feature.column for feature in self.features)
        return (*own, *(f"{own[i - 1]}:{own[j - 1]}" for i, j in self.crosses))

    @property
    def width(self) -> int:
        return len(self.names)

    @cached_property
    def pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the upper triangle of X'WX that can differ from zero: two levels of
        one category never meet in a row."""
        size = 1 + len(self.features)
        factor = np.arange(size)  # each number its own, the levels of a category together
        start = 1 + len(self.numbers)
        for term in self.categories:
            factor[start : start + len(term.levels) - 1] = size + start
            start += len(term.levels) - 1
        apart = (factor[:, None] == factor) & ~np.eye(size, dtype=bool)
        made_of = np.array([*((k, k) for k in range(size)), *self.crosses])  # (width, 2)
        i, j = np.triu_indices(self.width)
        never = apart[made_of[i][:, :, None], made_of[j][:, None, :]].any(axis=(1, 2))
        return i[~never], j[~never]

    def raw_transform(self) -> Floats:
        """T with beta_raw = T beta: from standardised columns to the table's own units, (p, p)."""
        size = 1 + len(self.features)
        mean, scale, transform = np.zeros(size), np.ones(size), np.eye(self.width)
        for j, term in enumerate(self.numbers, start=1):
            mean[j], scale[j] = term.mean, term.scale
            transform[j, j], transform[0, j] = 1 / term.scale, -term.mean / term.scale
        for k, (i, j) in enumerate(self.crosses, start=size):
            products = np.array([1, -mean[j], -mean[i], mean[i] * mean[j]])
            transform[[k, i, j, 0], k] = products / (scale[i] * scale[j])
        return transform


class Design:
    """A party's rows under an encoding, kept small: numbers as they are, categories as codes.

    Blocks of the dense matrix are made when needed and never stand in memory together.
    """

    def __init__(self, frame: pd.DataFrame, encoding: Encoding) -> None:
        self.rows, self.width, self.pairs = len(frame), encoding.width, encoding.pairs
        self.numbers = np.zeros((self.rows, len(encoding.numbers)))
        for j, term in enumerate(encoding.numbers):
            self.numbers[:, j] = np.nan_to_num(term.standardised(frame))
        self.codes: list[tuple[NDArray[np.int32], int, int]] = []
        start = 1 + len(encoding.numbers)
        for category in encoding.categories:
            codes = category.codes(frame)
            self.codes.append((codes.clip(min=0), start, len(category.levels) - 1))
            start += len(category.levels) - 1
        self.crosses = np.array(encoding.crosses, dtype=np.intp).reshape(-1, 2)

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """(rows, dense matrix of shape (rows, width)); the matrix may be changed, the next one overwrites it."""
        buffer = np.zeros((min(BLOCK, max(self.rows, 1)), self.width))
        first = 1 + self.numbers.shape[1]
        for begin in range(0, self.rows, BLOCK):
            part = slice(begin, min(begin + BLOCK, self.rows))
            block = buffer[: part.stop - begin]
            block[:, 0] = 1.0
            block[:, 1:first] = self.numbers[part]
            block[:, first:] = 0.0
            for codes, start, count in self.codes:
                if count:
                    level = codes[part]
                    at = np.flatnonzero(level)
                    block[at, start - 1 + level[at]] = 1.0
            for k, (i, j) in enumerate(self.crosses, start=self.width - len(self.crosses)):
                np.multiply(block[:, i], block[:, j], out=block[:, k])
            yield part, block

    def matrix(self) -> Floats:
        """The whole dense matrix, (rows, width); for tests and small tables."""
        parts = [block.copy() for _, block in self.blocks()]
        return np.vstack(parts) if parts else np.zeros((0, self.width))


def codes_of(values: pd.Series, levels: tuple[str, ...]) -> NDArray[np.int32]:
    """The position of each value in ``levels``. A value that is not among them takes that of
    :data:`RARE`, or -1 where there is none. A missing value is -1."""
    position = {level: k for k, level in enumerate(levels)}
    other = position.get(RARE, -1)
    places = [position.get(str(v), other) for v in values.cat.categories]
    table = np.array([*places, -1], dtype=np.int32)
    return table[values.cat.codes.to_numpy()]
