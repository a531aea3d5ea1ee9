"""The claims of a payer as texts by which they are looked for, one list for each key and grid.

A row takes part by a key where each of its columns has a value that keeps its rule of spelling. Rows of
one payer with the same text are one: who claims twice from the same payer is told at home, and no
message shows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from federated.link.charter import LinkCharter, MatchKey
from lab.errors import ConfigurationError, ContractError
from lab.tables.identifiers import spellings
from lab.tables.values import EXACT

Places = NDArray[np.int64]


@dataclass(frozen=True)
class KeyBatch:
    """One payer's texts by one key and grid.

    texts: each once
    place: (rows,) where a row's text stands among them, -1 where the row takes no part
    """

    key: str
    texts: tuple[bytes, ...]
    place: Places


@dataclass(frozen=True)
class KeyCounts:
    """Rows by one key: in how many a value is missing, how many break a rule of spelling, how many
    say the same as an earlier row of this payer."""

    key: str
    missing: int
    invalid: int
    repeated: int


@dataclass(frozen=True)
class PayerClaims:
    """One payer's table, ready to be compared.

    rows: of the table; unpaid, without: rows that the charter leaves out
    counts: what takes no part by each key
    """

    name: str
    rows: int
    unpaid: int
    without: int
    batches: tuple[KeyBatch, ...]
    counts: tuple[KeyCounts, ...]


def payer_claims(table: pd.DataFrame, charter: LinkCharter, name: str) -> PayerClaims:
    """The texts of a payer's table by every key of the charter.

    Raises ContractError: a column that is not there, more claims than the cap.
    """
    _check_columns(table, charter, name)
    paid = pd.to_numeric(table[charter.rows.paid], errors="coerce").fillna(0).to_numpy() > 0
    without = np.zeros(len(table), dtype=bool)
    for column, values in charter.rows.without.items():
        without |= table[column].astype("str").isin(values).to_numpy()
    part = paid & ~without
    columns = _texts(table, charter, name)
    batches, counts = [], []
    for key in charter.key:
        there = np.logical_and.reduce([columns[c].there for c in key.columns])
        valid = np.logical_and.reduce([columns[c].valid for c in key.columns])
        grids = list(_grids(table, key, columns, part & there & valid))
        counts.append(
            KeyCounts(
                key.name,
                int((part & ~there).sum()),
                int((part & there & ~valid).sum()),
                int((grids[0].place >= 0).sum()) - len(grids[0].texts),
            )
        )
        batches += grids
    for batch in batches:
        if len(batch.texts) > charter.cap_of(name):
            raise ContractError(
                f"{name}: more claims than its cap of {charter.cap_of(name):,} in the charter; agree "
                "on a higher one"
            )
    claims = tuple(batches), tuple(counts)
    return PayerClaims(name, len(table), int((~paid).sum()), int((paid & without).sum()), *claims)


def one_claim(values: Mapping[str, object], charter: LinkCharter) -> list[bytes]:
    """The texts of a single claim, one for each key and grid.

    Raises ConfigurationError, with every mistake: a column that is missing or not of a key, an
    identifier of the wrong form. No value is repeated in it.
    """
    names = list(dict.fromkeys(column for key in charter.key for column in key.columns))
    mistakes = [f"no column '{n}' is in a key" for n in values if n not in names]
    mistakes += [f"{n} is missing" for n in names if values.get(n) in (None, "")]
    mistakes += [
        f"{n} must be a text or a number"
        for n in names
        if not isinstance(values.get(n, ""), str | int | float | None)
    ]
    if not mistakes:
        table = pd.DataFrame({n: [values[n]] for n in names}).astype(object)
    if not mistakes:
        columns = _texts(table, charter, "the claim")
        for n, column in columns.items():
            if not column.there[0]:
                mistakes.append(f"{n} is missing")
            elif not column.valid[0] and n in charter.spelling:
                mistakes.append(f"{n} is no {charter.spelling[n]} number: its form or check digit")
            elif not column.valid[0]:
                mistakes.append(f"{n} must be a number")
    if mistakes:
        raise ConfigurationError(
            f"the claim can't be asked about: {'; '.join(mistakes)}; it needs {', '.join(names)}"
        )
    whole = np.ones(1, dtype=bool)
    return [b.texts[0] for key in charter.key for b in _grids(table, key, columns, whole)]


def one_identifier(value: str, rule: str) -> str:
    """A person's identifier in its spelling. Raises ConfigurationError, without the value."""
    texts, valid = spellings(pd.Series([value], dtype=object), rule, "the person")
    if not texts[0] or not valid[0]:
        raise ConfigurationError(
            f"the person's identifier is no {rule} number: its form or check digit is wrong"
        )
    return texts[0]


@dataclass(frozen=True)
class _ColumnTexts:
    texts: NDArray[np.object_]
    there: NDArray[np.bool_]
    valid: NDArray[np.bool_]


def _check_columns(table: pd.DataFrame, charter: LinkCharter, name: str) -> None:
    wanted = [charter.rows.paid, *charter.rows.without]
    wanted += [column for key in charter.key for column in key.columns]
    absent = [column for column in dict.fromkeys(wanted) if column not in table]
    if absent:
        raise ContractError(
            f"{name}: has no column '{absent[0]}', which the charter names; its columns are "
            + ", ".join(map(str, table))
        )


def _texts(table: pd.DataFrame, charter: LinkCharter, name: str) -> dict[str, _ColumnTexts]:
    """Every column of a key in its spelling."""
    columns = {}
    numbers = {*charter.numbers, *(c for key in charter.key for c in key.bands)}
    for column in dict.fromkeys(c for key in charter.key for c in key.columns):
        rule, where = charter.spelling.get(column, "normal"), f"{name} column '{column}'"
        texts, valid = spellings(table[column], rule, where)
        if column in numbers:
            texts, valid = _number_texts(texts)
        there = np.array([bool(text) for text in texts], dtype=bool)
        columns[column] = _ColumnTexts(
            np.array(texts, dtype=object), there, np.array(valid, dtype=bool)
        )
    return columns


def _number_texts(texts: list[str]) -> tuple[list[str], list[bool]]:
    """Numbers in one spelling, cents and all; whether each is a number."""
    values = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(np.float64)
    valid = np.isfinite(values) & (np.abs(values) <= EXACT)
    whole = valid & (values == np.floor(np.where(valid, values, 0)))
    written = [
        str(int(v)) if integral else repr(float(v)) if number else text
        for v, integral, number, text in zip(values, whole, valid, texts, strict=True)
    ]
    return written, [bool(ok) or not text for ok, text in zip(valid, texts, strict=True)]


def _grids(
    table: pd.DataFrame,
    key: MatchKey,
    columns: Mapping[str, _ColumnTexts],
    part: NDArray[np.bool_],
) -> Iterator[KeyBatch]:
    """A batch for each way to shift the grids of the banded columns by none or half a width."""
    bands = {c: _banded(table[c], width, columns[c].there & part) for c, width in key.bands.items()}
    for grid in range(key.grids):
        parts = []
        for column in key.columns:
            if column in bands:
                shift = grid >> list(bands).index(column) & 1
                parts.append(bands[column][shift].astype("str").astype(object))
            else:
                parts.append(columns[column].texts)
        rows = np.flatnonzero(part)
        texts = [
            "".join(f"{len(text)} {text} " for text in (key.name, str(grid), *values)).encode()
            for values in zip(*(column[rows] for column in parts), strict=True)
        ]
        codes, distinct = pd.factorize(np.array(texts, dtype=object))
        place = np.full(len(table), -1, dtype=np.int64)
        place[rows] = codes
        yield KeyBatch(key.name, tuple(distinct), place)


def _banded(values: pd.Series, width: float, part: NDArray[np.bool_]) -> tuple[Places, Places]:
    """The band of each value in both grids; 0 where the row takes no part."""
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    numbers = np.where(part, numbers, 0)
    plain, shifted = np.floor(numbers / width), np.floor(numbers / width + 0.5)
    return plain.astype(np.int64), shifted.astype(np.int64)
