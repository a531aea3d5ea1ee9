"""Contracts: what a table's columns are, and the check that a table keeps them.

A contract is one TOML file. Its columns carry a type, a unit, a range or levels, and a role; the
check reports every violation at once and a table with one violation is not used at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lab.errors import ContractError
from lab.records import Strict, nearest, parse, read_toml

Role = Literal["identifier", "feature", "exposure", "weight", "target", "never_leaves"]
#: How many rows of one rule are written out; the rest is counted.
ROWS_SHOWN = 5


class Column(Strict):
    """One column. ``minimum`` and ``maximum`` are inclusive, ``above`` is exclusive, in ``unit``."""

    type: Literal["integer", "number", "category"]
    role: Role = "feature"
    unit: str = ""
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    levels: tuple[str, ...] | None = None
    nullable: bool = False
    advice: str = ""

    @model_validator(mode="after")
    def _ranges_belong_to_numbers(self) -> Self:
        has_range = (self.minimum, self.maximum, self.above) != (None, None, None)
        if self.type == "category" and has_range:
            raise ValueError("a category takes levels, not minimum, maximum or above")
        if self.type != "category" and self.levels is not None:
            raise ValueError("only a category takes levels")
        return self

    def allowed(self) -> str:
        """The rule in words."""
        if self.levels is not None:
            return "must be one of " + ", ".join(self.levels)
        words = {"integer": "a whole number", "number": "a number", "category": "text"}[self.type]
        bounds = [
            f"{text} {value:g}"
            for text, value in (
                ("at least", self.minimum),
                ("above", self.above),
                ("at most", self.maximum),
            )
            if value is not None
        ]
        return f"must be {words}" + (f" {' and '.join(bounds)}" if bounds else "")


class Contract(Strict):
    """A table's contract: name, version, provenance, and its columns by name."""

    name: str
    version: int = 1
    title: str = ""
    published: str = ""
    licence: str = ""
    notes: str = ""
    columns: dict[str, Column] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> Contract:
        """Read a contract file; every mistake in it is reported at once."""
        return parse(cls, read_toml(path), where=str(path))


def check(frame: pd.DataFrame, contract: Contract, *, where: str) -> pd.DataFrame:
    """The table with the contract's types, or a ContractError that lists every violation.

    Rows are counted from 1, without the header. Columns that the contract does not name are
    dropped: what no contract describes takes part in nothing.
    """
    checker = Checker(contract, where)
    checker.add(frame)
    return checker.table()


def broken(frame: pd.DataFrame, contract: Contract) -> dict[tuple[str, str], int]:
    """How many rows break each rule of a contract, whatever rules are broken: (column, rule) -> rows."""
    counts: dict[tuple[str, str], int] = {}
    for name, column in contract.columns.items():
        counts[name, "must be there"] = 0 if name in frame.columns else len(frame)
        counts[name, column.allowed()] = 0
        if not column.nullable:
            counts[name, "must not be empty"] = 0
    checker = Checker(contract, "")
    checker.add(frame)
    for name, fault in checker.faults():
        rule = fault.rule if (name, fault.rule) in counts else contract.columns[name].allowed()
        counts[name, rule] += fault.count
    return counts


@dataclass
class Fault:
    """A rule that rows of a column break: the first of them, how many, and the first value."""

    rule: str
    rows: list[int]
    count: int
    got: str


class Checker:
    """A table under check that comes in parts of rows; of each part the typed columns are kept.

    `add` takes the next rows, `table` gives all of them or every violation.
    """

    def __init__(self, contract: Contract, where: str) -> None:
        self._contract, self._where, self._rows = contract, where, 0
        self._columns: dict[str, _Numbers | _Levels] = {}
        self._names: list[str] = []

    def add(self, part: pd.DataFrame) -> None:
        """Take the next rows; all parts have the same columns."""
        if not self._names:
            self._names = [str(name) for name in part.columns]
        for name, column in self._contract.columns.items():
            if name in part.columns:
                if name not in self._columns:
                    kind = _Levels if column.type == "category" else _Numbers
                    self._columns[name] = kind(column)
                self._columns[name].add(part[name], self._rows)
        self._rows += len(part)

    def faults(self) -> list[tuple[str, Fault]]:
        """What was found so far, in the contract's order of columns."""
        return [(name, f) for name, column in self._columns.items() for f in column.faults()]

    def table(self) -> pd.DataFrame:
        """All rows with the contract's types. Raises ContractError with every violation."""
        contract, where = self._contract, self._where
        if not self._rows:
            raise ContractError(
                f"{where}: the table has no rows; {contract.name} needs at least one"
            )
        violations: list[str] = []
        for missing in [name for name in contract.columns if name not in self._columns]:
            near = nearest(missing, self._names)
            hint = f"; is it '{near}' in this table?" if near else ""
            violations.append(f"column '{missing}' of contract {contract.name} is missing{hint}")
        violations += [_line(name, contract.columns[name], f) for name, f in self.faults()]
        if violations:
            count = f"{len(violations)} violation{'s' * (len(violations) > 1)}"
            raise ContractError(
                f"{where}: {count} of contract {contract.name}", tuple(f"  {v}" for v in violations)
            )
        order = [name for name in contract.columns if name in self._columns]
        columns = {name: self._columns.pop(name).whole() for name in order}  # one at a time
        return pd.DataFrame(columns, copy=False)


class _Column:
    """Faults of a column by the place of their rule, so that they are reported in one order."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.by_place: dict[int, Fault] = {}

    def note(
        self, place: int, rule: str, mask: NDArray[np.bool_], start: int, values: pd.Series
    ) -> None:
        """Note rows of a part that break a rule; start: the rows before this part."""
        bad = np.flatnonzero(mask)
        if len(bad):
            fault = self.by_place.setdefault(place, Fault(rule, [], 0, str(values.iloc[bad[0]])))
            fault.rows += (bad[: ROWS_SHOWN - len(fault.rows)] + start + 1).tolist()
            fault.count += len(bad)

    def faults(self) -> list[Fault]:
        return [self.by_place[place] for place in sorted(self.by_place)]


class _Numbers(_Column):
    """A column of float64, NaN where it is empty."""

    def __init__(self, column: Column) -> None:
        super().__init__(column)
        self.parts: list[NDArray[np.float64]] = []

    def add(self, part: pd.Series, start: int) -> None:
        rule, empty = self.column.allowed(), part.isna().to_numpy()
        values = _as_numbers(part)
        self.note(0, rule, np.isnan(values) & ~empty, start, part)
        self.note(1, "must be finite", np.isinf(values), start, part)
        values[np.isinf(values)] = np.nan
        if not self.column.nullable:
            self.note(2, "must not be empty", empty, start, part)
        self.note(3, rule, _outside(values, self.column), start, part)
        self.parts.append(values)

    def whole(self) -> pd.Series:
        return pd.Series(np.concatenate(self.parts), copy=False)


class _Levels(_Column):
    """A column of categories: the number of each row's level, and the levels of each part."""

    def __init__(self, column: Column) -> None:
        super().__init__(column)
        self.codes: list[NDArray[np.int32]] = []
        self.levels: list[pd.Index] = []
        self.size = 0

    def add(self, part: pd.Series, start: int) -> None:
        if not self.column.nullable:
            self.note(0, "must not be empty", part.isna().to_numpy(), start, part)
        codes, levels = pd.factorize(_as_text(part))
        self.codes.append(np.where(codes < 0, -1, codes + self.size).astype(np.int32))
        self.levels.append(pd.Index(levels))
        self.size += len(levels)

    def _texts(self) -> pd.Series:
        """The level of each code; whole numbers that came as text lose their '.0', as floats do."""
        texts = pd.Series(pd.Index(np.concatenate(self.levels)), dtype="str")
        if texts.iloc[:1].str.fullmatch(WHOLE).any() and texts.str.fullmatch(WHOLE).all():
            return texts.str.removesuffix(".0")
        return texts

    def faults(self) -> list[Fault]:
        if self.column.levels is not None:
            texts = self._texts()
            bad = np.append(~texts.isin(self.column.levels).to_numpy(), False)
            self.by_place.pop(1, None)
            start = 0
            for codes in self.codes:
                mask = bad[codes]  # an empty value is the last
                if mask.any():
                    self.note(1, self.column.allowed(), mask, start, texts.reindex(codes))
                start += len(codes)
        return super().faults()

    def whole(self) -> pd.Series:
        texts = self._texts()
        levels = pd.Index(texts.unique(), dtype="str").sort_values()
        place = np.append(levels.get_indexer(pd.Index(texts)), -1)
        codes = place[np.concatenate(self.codes)]
        return pd.Series(pd.Categorical.from_codes(codes, categories=levels), copy=False)


#: A whole number as text, perhaps with the '.0' that programs give to columns with gaps.
WHOLE = r"-?(?:0|[1-9][0-9]*)(?:\.0)?"


def _as_numbers(part: pd.Series) -> NDArray[np.float64]:
    """Numbers of any kind of column, NaN where there is none."""
    if isinstance(part.dtype, pd.StringDtype):
        import pyarrow as pa

        try:
            numbers = pa.array(part, pa.string(), from_pandas=True).cast(pa.float64())
            return np.array(numbers.to_numpy(zero_copy_only=False), dtype=np.float64)
        except pa.ArrowInvalid:  # not all are numbers; which, the slower way tells
            truth = part.str.lower().map({"true": 1.0, "false": 0.0})
            part = pd.to_numeric(part, errors="coerce").astype("float64").fillna(truth)
    values = pd.to_numeric(part, errors="coerce").astype("float64")
    return np.array(values.to_numpy(), dtype=np.float64)


def _outside(values: NDArray[np.float64], column: Column) -> NDArray[np.bool_]:
    """Numbers that the column does not allow."""
    import pandera.pandas as pa

    checks = [
        rule
        for rule in (
            pa.Check.ge(column.minimum) if column.minimum is not None else None,
            pa.Check.gt(column.above) if column.above is not None else None,
            pa.Check.le(column.maximum) if column.maximum is not None else None,
            pa.Check(lambda s: s % 1 == 0) if column.type == "integer" else None,
        )
        if rule is not None
    ]
    mask = np.zeros(len(values), dtype=bool)
    try:
        pa.SeriesSchema(checks=checks, nullable=True).validate(pd.Series(values), lazy=True)
    except pa.errors.SchemaErrors as error:
        mask[[int(row) for row in error.failure_cases["index"].dropna()]] = True
    return mask


def _as_text(series: pd.Series) -> pd.Series:
    """Category values as text; whole numbers lose their '.0' so that 3.0 and 3 are one level."""
    if pd.api.types.is_float_dtype(series):
        series = series.map({v: level_of(v) for v in series.dropna().unique()}).astype("object")
    return series.astype("str").where(series.notna())


def level_of(number: float) -> str:
    """A number as the name of a level: the shortest digits that mean it, without exponent."""
    return np.format_float_positional(number, trim="-")


def _line(name: str, column: Column, fault: Fault) -> str:
    rows = ", ".join(map(str, fault.rows))
    more = f" and {fault.count - ROWS_SHOWN} more" if fault.count > ROWS_SHOWN else ""
    value = "" if fault.rule == "must not be empty" else f", got {fault.got}"
    advice = f"; {column.advice}" if column.advice else ""
    return f"row{'s' * (fault.count > 1)} {rows}{more}: {name} {fault.rule}{value}{advice}"


def draft(frame: pd.DataFrame, name: str) -> Contract:
    """The loosest contract a table keeps: types only, no ranges, no levels.

    Used where a table comes without one. It holds nothing of the values, so that nothing of the
    rows that are kept for testing gets into a model.
    """
    columns = {
        str(column): Column(
            type="number" if _is_number(frame[column]) else "category", nullable=True
        )
        for column in frame.columns
    }
    return Contract(name=name, title="drafted from the table's types", columns=columns)


def _is_number(series: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(series))


#: A larger share of different values names rows or persons, if they are not measurements.
MOST_DISTINCT = 0.9
#: The fewest rows of a value, on average, and the most levels of a feature that nobody listed.
REPEATS, SHORT_LIST = 10, 64
_WHO = (
    "policy|contract|person|patient|member|customer|client|insured|insuree|holder|policyholder|"
    "beneficiary|claimant|claim|employee|user|subject|account|invoice|certificate|passport|licence|"
    "license|phone|record|row"
)
_NAMED = re.compile(
    rf"(?:.*_)?(?:(?:{_WHO})_?(?:id|ids|no|nr|num|number|key)|uuid|guid|ssn|nin|iban|e_?mail|mrn)"
    rf"|id|id_?(?:{_WHO}|pol|no|nr|number)"
)
_COUNTERS = {"", "rownames", "rowname", "row_names", "row_name", "index", "level_0"}


def identifying(name: str, values: pd.Series, owners: pd.Series | None) -> str | None:
    """Why a column that no contract describes tells rows or persons apart; None if it does not.

    owners: who each row belongs to. A number with fractions is a measurement, however rare it is.
    """
    plain = _plain(name)
    if plain in _COUNTERS or plain.startswith("unnamed:"):
        return "is named like a row number"
    if _NAMED.fullmatch(plain):
        return "is named like an identifier"
    values = values.reset_index(drop=True)
    there = values.dropna()
    if _is_number(values):
        numbers = there.to_numpy(dtype=np.float64)
        if (numbers % 1 != 0).any():
            return None
        first = numbers[0] if len(numbers) else -1
        if len(there) == len(values) > 2 and first in (0, 1) and (np.diff(numbers) == 1).all():
            return "numbers the rows"
    if owners is not None:  # one value for each person, who may have many rows
        pairs = pd.DataFrame({"owner": owners.to_numpy(), "value": values}).dropna()
        pairs = pairs.drop_duplicates()
        if not pairs["owner"].duplicated().any():
            there = pairs["value"]
    if len(there) > 2 and there.nunique() > MOST_DISTINCT * len(there):
        return f"has {there.nunique():,} different values for {len(there):,} rows or persons"
    return None


def unsuited(name: str, values: pd.Series) -> str | None:
    """Why a column is no feature as long as nobody lists it; None where it may be one."""
    if _plain(name).endswith("_id"):
        return "is named like the number of something"
    rows, distinct = int(values.notna().sum()), int(values.nunique())
    if not _is_number(values) and distinct > SHORT_LIST:
        return f"has {distinct:,} levels, more than {SHORT_LIST}"
    if distinct * REPEATS > rows:
        return f"has {distinct:,} different values in {rows:,} rows, which seldom repeat"
    return None


def _plain(name: str) -> str:
    """A column's name in lower case, its words joined by underscores."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\s.-]+", "_", name.strip()).lower()
