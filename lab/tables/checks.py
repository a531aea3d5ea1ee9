"""The check that a table keeps its contract: every violation at once, rows counted from 1."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.errors import ContractError
from lab.records import nearest
from lab.tables.contracts import POINT, WRITING, Column, Contract
from lab.tables.values import DECIMAL, EXACT, GROUPED, NULLS, as_numbers, code, factorized, pointed

#: How many rows of one rule are written out; the rest is counted.
ROWS_SHOWN = 5
EMPTY = "must not be empty"
TOO_LONG = "must be within 2^53 to be a number; give codes the type category"
BLURRED = "must be stored as text or whole numbers: a floating number beyond 2^53 has lost digits"


def check(
    frame: pd.DataFrame, contract: Contract, *, where: str, open_lists: bool = False
) -> pd.DataFrame:
    """The table with the contract's types, or a ContractError that lists every violation.

    Rows are counted from 1, without the header. Columns that the contract does not name are
    dropped: what no contract describes takes part in nothing. ``open_lists``: a level that is not
    listed stays as it is, for the caller to see.
    """
    checker = Checker(contract, where, open_lists=open_lists)
    checker.add(frame)
    return checker.table()


def broken(frame: pd.DataFrame, contract: Contract) -> dict[tuple[str, str], int]:
    """How many rows break each rule of a contract, whatever rules are broken: (column, rule) -> rows."""
    counts: dict[tuple[str, str], int] = {}
    for name, column in contract.columns.items():
        counts[name, "must be there"] = 0 if name in frame.columns else len(frame)
        counts[name, column.allowed()] = 0
        if not column.nullable:
            counts[name, EMPTY] = 0
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

    def __init__(self, contract: Contract, where: str, *, open_lists: bool = False) -> None:
        self._open_lists = open_lists
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
                    self._columns[name] = (
                        _Levels(column, self._open_lists)
                        if column.type == "category"
                        else _Numbers(column, self._contract)
                    )
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
            first = values.iloc[bad[0]]
            got = "" if rule == EMPTY and not isinstance(first, str) else str(first)
            fault = self.by_place.setdefault(place, Fault(rule, [], 0, got))
            fault.rows += (bad[: ROWS_SHOWN - len(fault.rows)] + start + 1).tolist()
            fault.count += len(bad)

    def faults(self) -> list[Fault]:
        return [self.by_place[place] for place in sorted(self.by_place)]


class _Numbers(_Column):
    """A column of float64, NaN where it is empty."""

    def __init__(self, column: Column, contract: Contract) -> None:
        super().__init__(column)
        self.contract = contract
        self.parts: list[NDArray[np.float64]] = []

    def add(self, part: pd.Series, start: int) -> None:
        rule, contract = self.column.allowed(), self.contract
        other = contract.writes_otherwise
        plain = pointed(part, contract.decimal, contract.thousands) if other else part
        values, empty, beyond = as_numbers(plain)
        if self.column.type == "integer":
            beyond |= np.isfinite(values) & (np.abs(values) > EXACT)
        wrong = np.isnan(values) & ~empty
        grouped = np.zeros(len(part), dtype=bool)
        if wrong.any() and not other:
            grouped[wrong] = part[wrong].astype("str").str.fullmatch(GROUPED).to_numpy(dtype=bool)
        self.note(0, rule, wrong & ~grouped, start, part)
        self.note(1, "must be finite", np.isinf(values), start, part)
        values[np.isinf(values) | beyond] = np.nan
        if not self.column.nullable:
            self.note(2, EMPTY, empty, start, part)
        self.note(3, rule, _outside(values, self.column), start, part)
        self.note(4, TOO_LONG, beyond, start, part)
        self.note(5, f"{POINT}, {WRITING}", grouped, start, part)
        self.parts.append(values)

    def whole(self) -> pd.Series:
        return pd.Series(np.concatenate(self.parts), copy=False)


class _Levels(_Column):
    """A column of categories: the number of each row's level, and the levels of each part."""

    def __init__(self, column: Column, open_list: bool) -> None:
        super().__init__(column)
        self.open = open_list or column.levels is None
        self.codes: list[NDArray[np.int32]] = []
        self.levels: list[str] = []
        self.exact = column.spelling == "exact"
        names = column.levels or ()
        self.listed = {code(level, exact=self.exact): level for level in names}
        numbers = [code(Decimal(level)) for level in names if DECIMAL.fullmatch(level)]
        self.by_number = {
            code(Decimal(level)): level
            for level in names
            if DECIMAL.fullmatch(level) and numbers.count(code(Decimal(level))) == 1
        }

    def level(self, value: Any) -> str | None:
        """The level of a value, the listed one where there is a list; None where it is missing.

        A listed level wins over a text that means missing, and has a number's value or a text's
        digits: 3.0 is the level "3" where that alone is listed.
        """
        text = code(value, exact=self.exact)
        if text in self.listed:
            return self.listed[text]
        if isinstance(value, str):
            if text in NULLS:
                return None
            whole = text.removesuffix(".0")
            return self.listed.get(whole, text) if DECIMAL.fullmatch(whole) else text
        return self.by_number.get(text, text)

    def add(self, part: pd.Series, start: int) -> None:
        codes, values = factorized(part)
        levels = [self.level(value) for value in values]
        names = {None, *(levels if self.open else self.column.levels or ())}
        empty = np.array([*(level is None for level in levels), True])[codes]
        wrong = np.array([*(level not in names for level in levels), False])[codes]
        blurred = np.array([*map(_blurred, values), False])[codes]
        if not self.column.nullable:
            self.note(0, EMPTY, empty, start, part)
        self.note(1, self.column.allowed(), wrong & ~blurred, start, part)
        self.note(2, BLURRED, blurred, start, part)
        self.codes.append(np.where(empty, -1, codes + len(self.levels)).astype(np.int32))
        self.levels += [level or "" for level in levels]

    def whole(self) -> pd.Series:
        texts = pd.Index(self.levels, dtype="str")
        codes = np.concatenate(self.codes)
        levels = texts[np.unique(codes[codes >= 0])].unique().sort_values()
        place = np.append(levels.get_indexer(texts), -1)
        return pd.Series(pd.Categorical.from_codes(place[codes], categories=levels), copy=False)


def _blurred(value: Any) -> bool:
    """Whether a code was stored as a floating number and has lost digits."""
    return isinstance(value, float | np.floating) and abs(float(value)) > EXACT


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


def _line(name: str, column: Column, fault: Fault) -> str:
    rows = ", ".join(map(str, fault.rows))
    more = f" and {fault.count - ROWS_SHOWN} more" if fault.count > ROWS_SHOWN else ""
    value = f", got {fault.got}" if fault.rule != EMPTY else ""
    if fault.rule == EMPTY and fault.got.strip():
        hint = "; list it in levels if it is one" if column.type == "category" else ""
        value = f", and {fault.got} is read as empty{hint}"
    advice = f"; {column.advice}" if column.advice else ""
    return f"row{'s' * (fault.count > 1)} {rows}{more}: {name} {fault.rule}{value}{advice}"


def refuse_rows(wrong: pd.Series, rule: str) -> None:
    """Raises ContractError where rows break a rule; how many and which, by the numbers in the
    index, are for the party's own eyes."""
    rows = wrong.index[wrong]
    if len(rows):
        first = ", ".join(str(row + 1) for row in rows[:5])
        raise ContractError(rule, (f"{len(rows):,} of {len(wrong):,} rows (first: {first})",))
