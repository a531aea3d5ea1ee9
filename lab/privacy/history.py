"""A party's history of questions on disk, over every state of its table.

The history is about *columns*: a row as it was first asked about is one. A row that comes back
unchanged is the same column, whatever else changed in the table; a row that is new is a new one. So
the same question before and after one row came differs by one person, and is vetoed the second time.

A row that changed is its old column and a *change* that belongs to nobody: what two answers differ
by may be one person's change alone, whatever columns nobody asked about changed for everybody, so
changes count for no minimum. A cell whose rows changed is therefore answered again only where rows
enough came or left with them.

Which row a changed one was before is known by its person: of the rows of a person, the first that
vanished became the first that is new. Where each row is a person, rows must either change, or come,
or leave between two questions; a table where both happened is refused. Somebody who renames all
persons starts a history in which nobody is known.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.errors import ConfigurationError, PolicyError
from lab.privacy.query_audit import (
    NOBODY,
    OUTSIDE,
    Answers,
    Ints,
    Mask,
    admit,
    independent_cells,
)

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class TableRows:
    """The rows of a state of a table. key: (rows,) a hash of what each row holds, different for
    equal rows; owner: (rows,) a hash of each row's person, from 0; None: each row is a person."""

    key: Hashes
    owner: Ints | None

    @classmethod
    def of(cls, frame: pd.DataFrame, person: str | None) -> Self:
        """Rows of a table; equal values are equal however they are stored."""
        key = np.zeros(len(frame), dtype=np.uint64)
        for name in sorted(frame.columns):
            key = pd.util.hash_array(key ^ _hashed(frame[name]))
        again = pd.Series(key).groupby(key).cumcount().to_numpy(dtype=np.uint64)
        key = np.where(again > 0, pd.util.hash_array(key ^ pd.util.hash_array(again)), key)
        if person is None:
            return cls(key, None)
        owner = np.where(frame[person].isna(), key, _hashed(frame[person]))
        return cls(key, (owner >> np.uint64(1)).astype(np.int64))


def _hashed(column: pd.Series) -> Hashes:
    if pd.api.types.is_numeric_dtype(column):
        number = column.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0  # -0 is 0
        return pd.util.hash_array(np.where(np.isnan(number), np.nan, number))
    return pd.util.hash_array(column.astype(object).where(column.notna(), None).to_numpy())


@dataclass(frozen=True)
class Columns:
    """What a history is about.

    key: (versions,) of every row that was ever asked about; base, change: (versions,) its columns,
    no change `OUTSIDE`; owner: (columns,) the person of each, `NOBODY` for a change.
    """

    key: Hashes
    base: Ints
    change: Ints
    owner: Ints

    @classmethod
    def first(cls, rows: TableRows) -> Self:
        base = np.arange(len(rows.key))
        owner = base if rows.owner is None else rows.owner
        return cls(rows.key, base, np.full_like(base, OUTSIDE), owner)

    def places(self, rows: TableRows) -> Ints:
        """(rows,) the version of each row, `OUTSIDE` for a row that was not seen before."""
        return np.asarray(pd.Index(self.key).get_indexer(pd.Index(rows.key)), dtype=np.int64)

    def with_rows(self, rows: TableRows) -> Self:
        """These with the rows of another state of the table. Raises :class:`PolicyError` where
        nobody can say which rows changed."""
        places = self.places(rows)
        new, old = np.flatnonzero(places == OUTSIDE), places[places != OUTSIDE]
        if not len(new):
            return self
        vanished = np.setdiff1d(self.base, self.base[old])
        before = self._before(rows, new, vanished)
        width = len(self.owner)
        fresh = before == OUTSIDE
        base = np.where(fresh, width + np.cumsum(fresh) - 1, before)
        width += int(fresh.sum())
        change = np.where(fresh, OUTSIDE, width + np.cumsum(~fresh) - 1)
        came = new[fresh]
        owner = len(self.owner) + np.arange(len(came)) if rows.owner is None else rows.owner[came]
        nobody = np.full(int((~fresh).sum()), NOBODY)
        return replace(
            self,
            key=np.concatenate([self.key, rows.key[new]]),
            base=np.concatenate([self.base, base]),
            change=np.concatenate([self.change, change]),
            owner=np.concatenate([self.owner, owner, nobody]),
        )

    def _before(self, rows: TableRows, new: Ints, vanished: Ints) -> Ints:
        """The column that each new row was before, `OUTSIDE` for one that came."""
        if rows.owner is None:
            if len(vanished) and len(vanished) != len(new):
                raise PolicyError(
                    "rows of this party's table changed, and others came or left: nobody can say "
                    "which; say who each row belongs to (data.person)"
                )
            return vanished if len(vanished) else np.full(len(new), OUTSIDE)
        now = pd.DataFrame({"owner": rows.owner[new]})
        then = pd.DataFrame({"owner": self.owner[vanished], "column": vanished})
        for table in (now, then):
            table["place"] = table.groupby("owner").cumcount()
        paired = now.merge(then, how="left", on=["owner", "place"])["column"]
        return paired.fillna(OUTSIDE).to_numpy(dtype=np.int64)

    def codes(self, rows: TableRows, codes: Ints) -> Ints:
        """(columns,) the cell of each column, from those of the rows."""
        places, spread = self.places(rows), np.full(len(self.owner), OUTSIDE)
        spread[self.base[places]] = codes
        changed = self.change[places] != OUTSIDE
        spread[self.change[places][changed]] = codes[changed]
        return spread


@dataclass(frozen=True)
class _Record:
    """What is kept: the columns, and what answers tell apart of them."""

    columns: Columns
    answers: Answers

    @classmethod
    def first(cls, rows: TableRows) -> Self:
        return cls(Columns.first(rows), Answers.nothing(len(rows.key)))

    def with_rows(self, rows: TableRows) -> Self:
        columns = self.columns.with_rows(rows)
        if columns is self.columns:
            return self
        return replace(
            self,
            columns=columns,
            answers=self.answers.with_rows(len(columns.owner) - len(self.columns.owner)),
        )

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """Key, base, change, owner, piece, cells."""
        arrays = (self.columns.key.astype("<u8"), self.columns.base, self.columns.change)
        more = (self.columns.owner, self.answers.piece, self.answers.cells)
        return arrays[0].tobytes(), *(a.astype("<i8").tobytes() for a in (*arrays[1:], *more))

    @classmethod
    def read(cls, blobs: tuple[bytes, ...]) -> Self:
        key = np.frombuffer(blobs[0], "<u8")
        base, change, owner, piece, cells = (np.frombuffer(blob, "<i8") for blob in blobs[1:])
        table = cells.reshape(int(piece.max(initial=0)) + 1, -1)
        return cls(Columns(key, base, change, owner), Answers(piece, table))


@dataclass(frozen=True)
class CellParts:
    """The cells of a question in parts. part: (rows,) the part of each row, `OUTSIDE` for none;
    cell: (parts,) the cell that each is a part of."""

    part: Ints
    cell: Ints

    def without(self, cells: Mask) -> Ints:
        """(rows,) the part of each row, `OUTSIDE` in one of these cells."""
        out = np.append(cells[self.cell], True)[self.part]  # OUTSIDE is the last
        return np.where(out, OUTSIDE, self.part)


def admitted_parts(
    before: Answers, splits: Sequence[CellParts], cells: int, persons: Ints | None, minimum: int
) -> tuple[Mask, Answers]:
    """`admit` for a question whose cells come in parts by several splits: the cells of which no part
    may be answered with the others, and what answers tell apart then."""
    vetoed, last = np.zeros(cells, dtype=bool), None
    while last is None or (vetoed != last).any():
        last, answers = vetoed.copy(), before
        for split in splits:
            parts = len(split.cell)
            own, answers = admit(answers, split.without(last), max(parts, 1), persons, minimum)
            vetoed[split.cell[own[:parts]]] = True
    return vetoed, answers


class History:
    """A party's history on disk (or in memory), for the present rows of its table.

    A veto is decided and written before the answer leaves, one question at a time. Raises
    :class:`ConfigurationError` for a file that is damaged or not a history.
    """

    def __init__(self, path: Path | None, rows: TableRows) -> None:
        self._path, self._rows, self._lock = path, rows, threading.Lock()
        self._record: _Record | None = None
        self._values: dict[str, str] = {}

    def admit(self, splits: Sequence[CellParts], cells: int, minimum: int) -> Mask:
        """bool (cells,): the cells of a question that may not be answered; the others are history
        now, all their splits, and nothing of those that may not."""
        with self._lock:
            if self._path is None:
                vetoed, self._record = self._admitted(self._record, splits, cells, minimum)
                return vetoed
            try:
                with closing(sqlite3.connect(self._path, 60, isolation_level=None)) as store:
                    return self._stored(store, splits, cells, minimum)
            except (sqlite3.Error, ValueError) as error:
                raise self._unusable(error) from None

    def _admitted(
        self, record: _Record | None, splits: Sequence[CellParts], cells: int, minimum: int
    ) -> tuple[Mask, _Record]:
        record = (record or _Record.first(self._rows)).with_rows(self._rows)
        columns, owner = record.columns, record.columns.owner
        if self._rows.owner is not None:
            owner = np.where(owner == NOBODY, NOBODY, pd.factorize(owner)[0])
        spread = [replace(one, part=columns.codes(self._rows, one.part)) for one in splits]
        vetoed, answers = admitted_parts(record.answers, spread, cells, owner, minimum)
        return vetoed, record if answers is record.answers else replace(record, answers=answers)

    def left(self, minimum: int) -> int:
        """Independent cells that may still be answered, at most: one for every ``minimum`` rows,
        less those that were."""
        record = self._record or _Record.first(self._rows)
        rows = int((record.columns.owner != NOBODY).sum())
        return max(rows // minimum - independent_cells(record.answers), 0)

    def once(self, codes: Ints, value: str) -> bool:
        """Whether a split of the rows is asked about for the first time, or with the same value as
        before, whatever its cells are called."""
        inside = codes != OUTSIDE
        split = np.asarray(pd.factorize(codes[inside])[0], dtype="<i8").tobytes()
        name = hashlib.sha256(self._rows.key[inside].astype("<u8").tobytes() + split).hexdigest()
        with self._lock:
            if self._path is None:
                return self._values.setdefault(name, value) == value
            try:
                with closing(sqlite3.connect(self._path, 60, isolation_level=None)) as store:
                    store.execute("PRAGMA synchronous = EXTRA")
                    store.execute("CREATE TABLE IF NOT EXISTS once (split TEXT PRIMARY KEY, value)")
                    store.execute("INSERT OR IGNORE INTO once VALUES (?, ?)", (name, value))
                    entry = store.execute("SELECT value FROM once WHERE split = ?", (name,))
                    return bool(entry.fetchone() == (value,))
            except sqlite3.Error as error:
                raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> ConfigurationError:
        assert self._path is not None
        return ConfigurationError(
            f"{self._path.name}: the history of questions cannot be used ({error}); "
            "nothing is answered without it"
        )

    def _stored(
        self, store: sqlite3.Connection, splits: Sequence[CellParts], cells: int, minimum: int
    ) -> Mask:
        store.execute("PRAGMA synchronous = EXTRA")
        store.execute("BEGIN IMMEDIATE")
        store.execute(
            "CREATE TABLE IF NOT EXISTS asked (one INTEGER PRIMARY KEY, "
            "key BLOB, base BLOB, change BLOB, owner BLOB, piece BLOB, cells BLOB, digest BLOB)"
        )
        entry = store.execute(
            "SELECT key, base, change, owner, piece, cells, digest FROM asked"
        ).fetchone()
        before = None
        if entry:
            *blobs, digest = entry
            if not all(isinstance(blob, bytes) for blob in entry) or _sealed(blobs) != digest:
                raise ValueError("it does not match its digest")
            before = _Record.read(tuple(blobs))
        vetoed, self._record = self._admitted(before, splits, cells, minimum)
        if self._record is not before:
            row = (*self._record.blobs, _sealed(self._record.blobs))
            store.execute("INSERT OR REPLACE INTO asked VALUES (1, ?, ?, ?, ?, ?, ?, ?)", row)
        store.execute("COMMIT")
        return vetoed


def _sealed(blobs: tuple[bytes, ...] | list[bytes]) -> bytes:
    """A digest that tells damage, not somebody who means to deceive."""
    sha = hashlib.sha256()
    for blob in blobs:
        sha.update(len(blob).to_bytes(8, "big") + blob)
    return sha.digest()
