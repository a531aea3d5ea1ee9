"""A question about a table, as every party is asked it: who is meant, into which cells, what is summed.

A question holds no code and no text that is run: conditions compare one column with constants,
a cell is a combination of public levels or intervals, and what is summed is a column or a product
of two. Everything else an analyst wants is arithmetic on the totals, made by him (`lab.queries.sql_plan`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self, Union

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lab.errors import PolicyError
from lab.privacy.noise import Noise
from lab.privacy.query_audit import OUTSIDE
from lab.records import Strict, nearest
from lab.sums import Floats
from lab.tables.contracts import Contract

Value = str | float
Mask = NDArray[np.bool_]
#: A question's most cells; more is a list of persons, not a table.
MOST_CELLS = 1_000_000


class Compare(Strict):
    """``column operation value``; unknown where the column is empty, as in SQL."""

    kind: Literal["compare"] = "compare"
    column: str = Field(description="A column of the table.")
    operation: Literal["=", "<>", "<", "<=", ">", ">="] = Field(description="How it is compared.")
    value: Value = Field(description="With what.")


class OneOf(Strict):
    """``column in (values)``."""

    kind: Literal["one of"] = "one of"
    column: str
    values: tuple[Value, ...] = Field(min_length=1)


class Empty(Strict):
    """``column is null``."""

    kind: Literal["empty"] = "empty"
    column: str


class Not(Strict):
    kind: Literal["not"] = "not"
    of: Condition


class Every(Strict):
    kind: Literal["and"] = "and"
    of: tuple[Condition, ...] = Field(min_length=1)


class Some(Strict):
    kind: Literal["or"] = "or"
    of: tuple[Condition, ...] = Field(min_length=1)


Condition = Annotated[
    Union[Compare, OneOf, Empty, Not, Every, Some],  # noqa: UP007  # pydantic needs it
    Field(discriminator="kind"),
]
for _model in (Not, Every, Some):
    _model.model_rebuild()


class Axis(Strict):
    """A grouping column: its levels, or edges of intervals ``(a, b]``, of which the first has both
    its edges; the cuts of an experiment are closed on the right as well."""

    column: str
    levels: tuple[Value, ...] = ()
    edges: tuple[float, ...] = ()
    missing: bool = False  # one more cell for rows without a value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.levels) == bool(self.edges):
            raise ValueError("an axis has levels or edges")
        if self.edges and (len(self.edges) < 2 or list(self.edges) != sorted(set(self.edges))):
            raise ValueError("edges must rise, and be two or more")
        if len(set(self.levels)) != len(self.levels):
            raise ValueError("a level is named twice")
        return self

    @property
    def size(self) -> int:
        return (len(self.levels) or len(self.edges) - 1) + self.missing

    @property
    def names(self) -> list[Any]:
        """What each cell is called; intervals are `pandas.Interval`, a missing value None."""
        names: list[Any] = list(self.levels)
        for low, high in itertools.pairwise(self.edges):
            names.append(pd.Interval(low, high, "both" if low == self.edges[0] else "right"))
        return names + [None] * self.missing

    def condition(self, place: int) -> Condition:
        """What the rows of one of its cells keep."""
        if self.missing and place == self.size - 1:
            return Empty(column=self.column)
        if self.levels:
            return Compare(column=self.column, operation="=", value=self.levels[place])
        low, high = self.edges[place], self.edges[place + 1]
        return Every(
            of=(
                Compare(column=self.column, operation=">" if place else ">=", value=low),
                Compare(column=self.column, operation="<=", value=high),
            )
        )

    def codes(self, column: pd.Series[Any]) -> NDArray[np.int64]:
        """The cell of each row, `OUTSIDE` where it is in none."""
        if self.edges:
            values = column.to_numpy(dtype=np.float64)
            codes = np.searchsorted(self.edges, values, side="left") - 1
            codes[values == self.edges[0]] = 0
            codes = np.where(codes >= len(self.edges) - 1, OUTSIDE, codes)
            gone = np.isnan(values)
        elif isinstance(column.dtype, pd.CategoricalDtype):
            place = {level: k for k, level in enumerate(self.levels)}
            table = np.array(
                [place.get(str(c), OUTSIDE) for c in column.cat.categories] + [OUTSIDE]
            )
            codes, gone = table[column.cat.codes.to_numpy()], column.isna().to_numpy()
        else:
            values = column.to_numpy(dtype=np.float64)
            levels = np.array(self.levels, dtype=np.float64)
            order = np.argsort(levels)
            at = np.searchsorted(levels, values, sorter=order).clip(max=len(levels) - 1)
            codes = np.where(levels[order[at]] == values, order[at], OUTSIDE)
            gone = np.isnan(values)
        codes[gone] = self.size - 1 if self.missing else OUTSIDE
        return codes.astype(np.int64)


class Total(Strict):
    """What is added up in each cell: rows without an empty value among ``columns``, or the product
    of ``columns``, each less its public ``centre``, over those rows. No columns: all rows."""

    kind: Literal["count", "sum"]
    columns: tuple[str, ...] = Field((), max_length=2)
    centres: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "sum" and not self.columns:
            raise ValueError("a sum needs a column")
        if len(self.centres) != (len(self.columns) if self.kind == "sum" else 0):
            raise ValueError("a sum has one centre for each column, a count has none")
        return self

    def present(self, frame: pd.DataFrame) -> Mask:
        """Rows that take part."""
        mask = np.ones(len(frame), dtype=bool)
        for column in self.columns:
            mask &= frame[column].notna().to_numpy()
        return mask

    def values(self, frame: pd.DataFrame) -> Floats:
        """What each row adds; 0 where a column is empty."""
        value = self.present(frame).astype(float)
        for column, centre in zip(
            self.columns, self.centres, strict=False
        ):  # a count has no centre
            value *= np.nan_to_num(frame[column].to_numpy(dtype=np.float64) - centre)
        return value


#: The number of rows; every question has it first.
ROWS = Total(kind="count")


class Question(Strict):
    """What all parties are asked. ``person``: the column of who a row belongs to, where there is one."""

    table: str
    where: Condition | None = None
    axes: tuple[Axis, ...] = ()
    totals: tuple[Total, ...] = (ROWS,)
    person: str | None = None
    noise: Noise | None = None

    @model_validator(mode="after")
    def _answerable(self) -> Self:
        if not self.totals or self.totals[0] != ROWS:
            raise ValueError("a question's first total is the number of rows")
        if len(self.axes) > 3:
            raise ValueError(f"at most 3 grouping columns, not {len(self.axes)}")
        if len({axis.column for axis in self.axes}) != len(self.axes):
            raise ValueError("a column groups twice")
        if self.cells > MOST_CELLS:
            raise ValueError(f"{self.cells:,} cells are more than {MOST_CELLS:,}")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def cells(self) -> int:
        return math.prod(self.shape)

    @property
    def columns(self) -> set[str]:
        """Every column it looks at, but the person."""
        columns = {axis.column for axis in self.axes} | set(mentioned(self.where))
        return columns | {column for total in self.totals for column in total.columns}

    def within(self, cell: int) -> Question:
        """The same question about one of its cells, without groups and about the number of rows."""
        parts: list[Condition] = [] if self.where is None else [self.where]
        for axis, place in zip(self.axes, np.unravel_index(cell, self.shape or (1,)), strict=False):
            parts.append(axis.condition(int(place)))
        where = Every(of=tuple(parts)) if parts else None
        return self.model_copy(update={"where": where, "axes": (), "totals": (ROWS,)})

    def rows(self, frame: pd.DataFrame) -> Mask:
        """Rows the question is about: where the condition is true, not false and not unknown."""
        if self.where is None:
            return np.ones(len(frame), dtype=bool)
        return _truth(self.where, frame)[0]

    def codes(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        """The cell of each row, in row-major order; `OUTSIDE` where it is in none."""
        inside = self.rows(frame)
        codes = np.zeros(len(frame), dtype=np.int64)
        for axis in self.axes:
            own = axis.codes(frame[axis.column])
            inside &= own != OUTSIDE
            codes = codes * axis.size + own
        return np.where(inside, codes, OUTSIDE)


def mentioned(condition: Condition | None) -> Iterator[str]:
    """Columns that a condition looks at."""
    match condition:
        case None:
            return
        case Not(of=one):
            yield from mentioned(one)
        case Every(of=parts) | Some(of=parts):
            for part in parts:
                yield from mentioned(part)
        case _:
            yield condition.column


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": np.equal,
    "<>": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


def _truth(condition: Condition, frame: pd.DataFrame) -> tuple[Mask, Mask]:
    """Rows where it is true and rows where it is false; SQL's unknown is neither."""
    match condition:
        case Not(of=one):
            true, false = _truth(one, frame)
            return false, true
        case Every(of=parts):
            pairs = [_truth(part, frame) for part in parts]
            return np.logical_and.reduce([t for t, _ in pairs]), np.logical_or.reduce(
                [f for _, f in pairs]
            )
        case Some(of=parts):
            pairs = [_truth(part, frame) for part in parts]
            return np.logical_or.reduce([t for t, _ in pairs]), np.logical_and.reduce(
                [f for _, f in pairs]
            )
        case Empty(column=column):
            gone = frame[column].isna().to_numpy()
            return gone, ~gone
        case OneOf(column=column, values=values):
            holds = frame[column].isin(list(values)).to_numpy()
        case Compare(column=column, operation=operation, value=value):
            series = frame[column]
            if isinstance(series.dtype, pd.CategoricalDtype):
                holds = (series == value).to_numpy()
                holds = ~holds if operation == "<>" else holds
            else:
                holds = _OPERATIONS[operation](series.to_numpy(dtype=np.float64), value)
    filled = frame[condition.column].notna().to_numpy()
    return holds & filled, ~holds & filled


def check(question: Question, contract: Contract, person: str | None) -> None:
    """Refuse a question that this table's contract does not let anybody ask.

    Raises :class:`PolicyError`: another table, an unknown column, one that identifies or never
    leaves, text where numbers are, numbers where text is.
    """
    if question.table != contract.name:
        raise PolicyError(f"there is no table '{question.table}' here; there is {contract.name}")
    if question.person != person:
        raise PolicyError("a question must count persons by this table's own person column")
    for name in sorted(question.columns):
        allowed(name, contract, person)
    for axis in question.axes:
        words = contract.columns[axis.column].type == "category"
        if any(isinstance(level, str) != words for level in axis.levels) or (words and axis.edges):
            raise PolicyError(f"'{axis.column}' has other levels in contract {contract.name}")
    for column, value, operation in constants(question.where):
        words = contract.columns[column].type == "category"
        if isinstance(value, str) != words:
            kind = "text" if words else "a number"
            raise PolicyError(f"'{column}' is compared with {kind} alone, got {value!r}")
        if words and operation not in ("=", "<>"):
            raise PolicyError(
                f"'{column}' is text: it can be = or <> or in a list, not {operation}"
            )
    for total in question.totals:
        for column in total.columns if total.kind == "sum" else ():
            if contract.columns[column].type == "category":
                raise PolicyError(f"'{column}' is text and has no sum")


def allowed(name: str, contract: Contract, person: str | None) -> None:
    """Raises :class:`PolicyError` unless questions may look at this column."""
    if name not in contract.columns:
        near = nearest(name, list(contract.columns))
        hint = f"; did you mean '{near}'?" if near else ""
        raise PolicyError(f"there is no column '{name}' in {contract.name}{hint}")
    role = contract.columns[name].role
    if role in ("identifier", "never_leaves") or name == person:
        word = "person" if name == person else role
        raise PolicyError(f"no question is about '{name}': its role is '{word}'")


def constants(condition: Condition | None) -> Iterator[tuple[str, Value, str]]:
    """Column, value and operation of each comparison in a condition."""
    match condition:
        case Compare(column=column, operation=operation, value=value):
            yield column, value, operation
        case OneOf(column=column, values=values):
            for value in values:
                yield column, value, "="
        case Not(of=one):
            yield from constants(one)
        case Every(of=parts) | Some(of=parts):
            for part in parts:
                yield from constants(part)
