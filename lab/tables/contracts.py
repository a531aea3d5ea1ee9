"""Contracts: what a table's columns are.

A contract is one TOML file. Its columns carry a type, a unit, a range or levels, and a role; a
table that breaks it in one place (`lab.tables.checks`) is not used at all.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal
from pathlib import Path
from typing import Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, ValidationInfo, field_validator, model_validator

from lab.errors import ContractError
from lab.records import Strict, parse, read_toml
from lab.tables.values import GROUPED, NULLS, as_numbers, code, level_of, normal

Role = Literal["identifier", "feature", "exposure", "weight", "target", "never_leaves"]
#: The rule of numbers with a decimal comma or thousands signs.
POINT = "must be written with a decimal point and without thousands signs"
WRITING = "or state how numbers are written in the contract: decimal = ',' and thousands = '.'"


class Column(Strict):
    """One column. ``minimum`` and ``maximum`` are inclusive, ``above`` is exclusive, in ``unit``.

    ``spelling``: texts and levels of a category in one Unicode spelling (`lab.tables.values.normal`),
    or exactly as they are written; identifiers by further rules (`lab.tables.identifiers`). ``holder``:
    who has the column, where two sides know the same persons.
    """

    type: Literal["integer", "number", "category"]
    role: Role = "feature"
    unit: str = ""
    description: str = ""
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    spelling: Literal["normal", "exact", "code", "resident"] = "normal"
    levels: tuple[str, ...] | None = None
    nullable: bool = False
    advice: str = ""
    holder: Literal["insurer", "fund"] | None = None

    @model_validator(mode="after")
    def _ranges_belong_to_numbers(self) -> Self:
        has_range = (self.minimum, self.maximum, self.above) != (None, None, None)
        if self.type == "category" and has_range:
            raise ValueError("a category takes levels, not minimum, maximum or above")
        if self.type != "category" and self.levels is not None:
            raise ValueError("only a category takes levels")
        if self.spelling in ("code", "resident") and self.role != "identifier":
            raise ValueError(f'only an identifier is spelled as "{self.spelling}"')
        return self

    @field_validator("levels")
    @classmethod
    def _levels_differ(
        cls, levels: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        exact = info.data.get("spelling") == "exact"
        if levels is None or exact:
            names = [code(level, exact=True) for level in levels or ()]
        else:
            levels = tuple(map(normal, levels))
            names = [code(level) for level in levels]
        alike = next((name for name in names if names.count(name) > 1 or not name), None)
        if alike is not None:
            raise ValueError(
                f"two levels read as '{alike}'; drop one of them" if alike else "a level is empty"
            )
        return levels

    def allowed(self) -> str:
        """The rule in words."""
        if self.levels is not None:
            return "must be one of " + ", ".join(self.levels)
        words = {"integer": "a whole number", "number": "a number", "category": "text"}[self.type]
        bounds = [
            f"{text} {level_of(value)}"
            for text, value in (
                ("at least", self.minimum),
                ("above", self.above),
                ("at most", self.maximum),
            )
            if value is not None
        ]
        return f"must be {words}" + (f" {' and '.join(bounds)}" if bounds else "")


class Contract(Strict):
    """A table's contract: name, version, provenance, and its columns by name.

    decimal, thousands: the signs with which numbers are written where they come as text.
    """

    name: str
    version: int = 1
    title: str = ""
    published: str = ""
    licence: str = ""
    notes: str = ""
    decimal: Literal[".", ","] = "."
    thousands: Literal["", ",", ".", " ", "'"] = ""
    columns: dict[str, Column] = Field(min_length=1)

    @model_validator(mode="after")
    def _signs_differ(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError(
                f"decimal and thousands are both '{self.decimal}'; numbers need two signs"
            )
        return self

    @property
    def writes_otherwise(self) -> bool:
        """Whether numbers are written in another way than with a decimal point alone."""
        return (self.decimal, self.thousands) != (".", "")

    @classmethod
    def read(cls, path: Path) -> Contract:
        """Read a contract file; every mistake in it is reported at once."""
        return parse(cls, read_toml(path), where=str(path))


def draft(frame: pd.DataFrame, name: str, codes: Collection[str] = ()) -> Contract:
    """The loosest contract a table keeps: types only, no ranges, no levels.

    Used where a table comes without one. It holds nothing of the values, so that nothing of the
    rows that are kept for testing gets into a model. codes: columns that are read as categories
    whatever they hold. Raises ContractError for numbers in another way of writing.
    """
    columns = {
        str(column): Column(
            type="category" if column in codes else _drafted(str(column), frame[column]),
            nullable=True,
        )
        for column in frame.columns
    }
    return Contract(name=name, title="drafted from the table's types", columns=columns)


def _drafted(name: str, values: pd.Series) -> Literal["number", "category"]:
    """Numbers are numbers, whole ones beyond 2^53 are codes. Raises ContractError."""
    if _is_number(values):
        return "category" if as_numbers(values)[2].any() else "number"
    there = values.dropna()
    if len(there) and there.dtype == object and there.map(lambda v: isinstance(v, Decimal)).all():
        return "category" if as_numbers(there)[2].any() else "number"
    if isinstance(values.dtype, pd.StringDtype):
        texts = there[~there.isin(NULLS)].unique()
        numbers = ~np.isnan(as_numbers(pd.Series(texts, dtype="str"))[0])
        grouped = pd.Series(texts, dtype="str").str.fullmatch(GROUPED).to_numpy(dtype=bool)
        if grouped.any() and (grouped | numbers).all():
            raise ContractError(
                f"column '{name}' {POINT}, {WRITING}; where it holds codes, say so there: "
                'type = "category"'
            )
    return "category"


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
    plain = plain_name(name)
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
    if plain_name(name).endswith("_id"):
        return "is named like the number of something"
    rows, distinct = int(values.notna().sum()), int(values.nunique())
    if not _is_number(values) and distinct > SHORT_LIST:
        return f"has {distinct:,} levels, more than {SHORT_LIST}"
    if distinct * REPEATS > rows:
        return f"has {distinct:,} different values in {rows:,} rows, which seldom repeat"
    return None


def plain_name(name: str) -> str:
    """A column's name in lower case, its words joined by underscores."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[\s.-]+", "_", name.strip()).lower()
