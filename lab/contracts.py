"""Contracts: what a table's columns are, and the check that a table keeps them.

A contract is one TOML file. Its columns carry a type, a unit, a range or levels, and a role; the
check reports every violation at once and a table with one violation is not used at all.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lab.errors import ConfigurationError, ContractError

Role = Literal["identifier", "feature", "exposure", "weight", "target", "never_leaves"]
Model = TypeVar("Model", bound=BaseModel)
#: Stands among known keys where a table's keys are free, as the names of columns are.
ANY = "*"
#: How many rows of one rule are written out; the rest is counted.
ROWS_SHOWN = 5
MISTAKES_SHOWN = 20


class Strict(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
        ranged = (self.minimum, self.maximum, self.above) != (None, None, None)
        if self.type == "category" and ranged:
            raise ValueError("a category has levels, not a range")
        if self.type != "category" and self.levels is not None:
            raise ValueError("only a category has levels")
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


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary, or a ConfigurationError that names the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None


def parse(model: type[Model], values: Any, *, where: str) -> Model:
    """Check ``values`` against a model; all mistakes in one error, unknown keys with the nearest known."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        lines = [_mistake(model, dict(item)) for item in found[:MISTAKES_SHOWN]]
        if len(found) > MISTAKES_SHOWN:
            lines.append(f"and {len(found) - MISTAKES_SHOWN} more")
        raise ConfigurationError("\n  ".join([f"{where}:", *lines])) from None


def _mistake(model: type[BaseModel], item: dict[str, Any]) -> str:
    place: list[str] = []
    for at, part in enumerate(map(str, item["loc"])):  # tags of unions are no keys of the file
        last = at == len(item["loc"]) - 1
        known = _known_keys(model, place)
        if last or part.isdigit() or part in known or ANY in known:
            place.append(part)
    key = ".".join(place) or "the file"
    if item["type"] == "extra_forbidden":
        near = nearest(place[-1], _known_keys(model, place[:-1]))
        return f"unknown key '{key}'" + (f"; did you mean '{near}'?" if near else "")
    came = "" if isinstance(item["input"], dict | list) else f", got {item['input']!r:.60}"
    return f"{key}: {item['msg'].removeprefix('Value error, ').lower()}{came}"


def nearest(word: str, known: list[str]) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, known, 1, 0.4)), None)


def _known_keys(model: type[BaseModel], place: list[str]) -> list[str]:
    """The keys allowed at a place of a model, found in its JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for part in place:
        found = []
        for node in _resolve(nodes, definitions):
            found += [
                child
                for child in (
                    node.get("properties", {}).get(part),
                    node.get("additionalProperties") or None,
                    node.get("items") if part.isdigit() else None,
                )
                if isinstance(child, dict)
            ]
        nodes = found or nodes
    resolved = _resolve(nodes, definitions)
    free = [ANY for node in resolved if isinstance(node.get("additionalProperties"), dict)]
    return [key for node in resolved for key in node.get("properties", {})] + free


def _resolve(nodes: list[dict[str, Any]], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for node in nodes:
        if "$ref" in node:
            out += _resolve([definitions[node["$ref"].rsplit("/", 1)[1]]], definitions)
        elif "anyOf" in node or "oneOf" in node:
            out += _resolve(node.get("anyOf") or node["oneOf"], definitions)
        else:
            out.append(node)
    return out


def check(frame: pd.DataFrame, contract: Contract, *, where: str) -> pd.DataFrame:
    """The table with the contract's types, or a ContractError that lists every violation.

    Rows are counted from 1, without the header. Columns that the contract does not name are
    dropped: what no contract describes takes part in nothing.
    """
    violations: list[str] = []
    if frame.empty:
        raise ContractError(f"{where}: the table has no rows; {contract.name} needs at least one")
    for missing in [name for name in contract.columns if name not in frame.columns]:
        near = nearest(missing, [str(name) for name in frame.columns])
        hint = f"; is it '{near}' in this table?" if near else ""
        violations.append(f"column '{missing}' of contract {contract.name} is missing{hint}")
    typed: dict[str, pd.Series[Any]] = {}
    for name, column in contract.columns.items():
        if name in frame.columns:
            typed[name], faults = _typed(frame[name], column)
            violations += [_line(name, column, rule, rows, got) for rule, rows, got in faults]
    if violations:
        count = f"{len(violations)} violation{'s' * (len(violations) > 1)}"
        raise ContractError(
            f"{where}: {count} of contract {contract.name}", tuple(f"  {v}" for v in violations)
        )
    return pd.DataFrame(typed, copy=False)


def broken(frame: pd.DataFrame, contract: Contract) -> dict[tuple[str, str], int]:
    """How many rows break each rule of a contract, whatever rules are broken: (column, rule) -> rows."""
    counts: dict[tuple[str, str], int] = {}
    for name, column in contract.columns.items():
        counts[name, "must be there"] = 0 if name in frame.columns else len(frame)
        counts[name, column.allowed()] = 0
        if not column.nullable:
            counts[name, "must not be empty"] = 0
        faults = _typed(frame[name], column)[1] if name in frame.columns else []
        for rule, rows, _ in faults:
            counts[name, rule if (name, rule) in counts else column.allowed()] += len(rows)
    return counts


def _typed(
    series: pd.Series[Any], column: Column
) -> tuple[pd.Series[Any], list[tuple[str, list[int], str]]]:
    """A column in its contract's type, and the rules it breaks: (rule, rows, what came first)."""
    import pandera.pandas as pa

    faults: list[tuple[str, list[int], str]] = []
    gone = series.isna()
    if column.type == "category":
        values = _as_text(series)
    else:
        values = pd.to_numeric(series, errors="coerce").astype("float64")
        unreadable = values.isna() & ~gone
        if unreadable.any():
            faults.append(_fault(series, unreadable, column.allowed()))
        values = values.mask(~values.abs().lt(float("inf")) & values.notna())
        endless = values.isna() & ~gone & ~unreadable
        if endless.any():
            faults.append(_fault(series, endless, "must be finite"))
    if gone.any() and not column.nullable:
        faults.append(_fault(series, gone, "must not be empty"))
    checks = [
        rule
        for rule in (
            pa.Check.ge(column.minimum) if column.minimum is not None else None,
            pa.Check.gt(column.above) if column.above is not None else None,
            pa.Check.le(column.maximum) if column.maximum is not None else None,
            pa.Check.isin(column.levels) if column.levels is not None else None,
            pa.Check(lambda s: s % 1 == 0) if column.type == "integer" else None,
        )
        if rule is not None
    ]
    try:
        pa.SeriesSchema(checks=checks, nullable=True).validate(values, lazy=True)
    except pa.errors.SchemaErrors as error:
        broken = sorted({int(i) for i in error.failure_cases["index"].dropna()})
        mask = pd.Series(False, index=series.index)
        mask.loc[broken] = True
        faults.append(_fault(series, mask, column.allowed()))
    if column.type == "category":
        return values.astype("category"), faults
    return values, faults


def _as_text(series: pd.Series[Any]) -> pd.Series[Any]:
    """Category values as text; whole numbers lose their '.0' so that 3.0 and 3 are one level."""
    if pd.api.types.is_float_dtype(series):
        series = series.map({v: level_of(v) for v in series.dropna().unique()}).astype("object")
    return series.astype("str").where(series.notna())


def level_of(number: float) -> str:
    """A number as the name of a level: the shortest digits that mean it, without exponent."""
    return np.format_float_positional(number, trim="-")


def _fault(series: pd.Series[Any], mask: pd.Series[bool], rule: str) -> tuple[str, list[int], str]:
    rows = [int(i) + 1 for i in mask.to_numpy().nonzero()[0]]
    return rule, rows, str(series.iloc[rows[0] - 1])


def _line(name: str, column: Column, rule: str, rows: list[int], got: str) -> str:
    shown = ", ".join(map(str, rows[:ROWS_SHOWN]))
    more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
    came = "" if rule == "must not be empty" else f", got {got}"
    advice = f"; {column.advice}" if column.advice else ""
    return f"row{'s' * (len(rows) > 1)} {shown}{more}: {name} {rule}{came}{advice}"


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


def _is_number(series: pd.Series[Any]) -> bool:
    return bool(pd.api.types.is_numeric_dtype(series))
