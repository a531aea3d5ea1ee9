"""What a party has been asked, and the cells it therefore may not answer any more.

Every answer is a set of sums over *cells*, sets of rows. Whatever is computed linearly from all
answers together, a difference, a complement, a tracker of many overlapping filters, is a weighted
sum over persons. The rule kept here: **every such combination involves the minimum number of
persons at least.** It is decided for all combinations at once, and not for a list of attacks: if
the answers can be told from k disjoint groups of persons, each as well as from everybody, then
whoever is left out of a combination's support would have to be in all k groups, so no combination
that is not 0 has fewer than k persons behind it. (In words of matroids: k disjoint bases among the
columns of the matrix of answers by persons; the smallest cocircuit then has k elements. Edmonds,
"Minimum partition of a matroid into independent subsets", J. Res. NBS 1965.) Groups are looked for
greedily, so a cell may be vetoed that need not be, and none passes that should not.

The sum over the whole table is taken as known from the start, so what all shown cells leave over is
guarded like a cell. A cell that breaks the rule is vetoed and counts as not asked, smallest first,
until the rule holds: an auditor of sum queries (Chin and Özsoyoğlu, "Auditing and inference
control in statistical databases", IEEE TSE 1982) whose unit is not one person but the minimum. It
follows that a party answers at most one independent cell for every k persons. Each party keeps its
own history and knows no other's: the rule holds at every party for its own persons, whoever asks
and through whichever coordinator.

What it does not hide: that something is small, which a veto tells; what follows from inequalities
alone, as that a count is not below 0.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import gmpy2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.errors import ConfigurationError

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
#: Most cells that combinations are computed of; where there are more, all that is new is vetoed.
MOST_CELLS = 600


@dataclass(frozen=True)
class Asked:
    """What answers so far can tell apart.

    piece: (rows,) the piece of each row, from 0. cells: (pieces, questions) the cell of each piece
    in each question answered, `OUTSIDE` for none; the first question is the whole table.
    """

    piece: Ints
    cells: Ints

    @classmethod
    def nothing(cls, rows: int) -> Asked:
        return cls(np.zeros(rows, dtype=np.int64), np.zeros((1, 1), dtype=np.int64))


@dataclass(frozen=True)
class _Pieces:
    """The pieces that a question would make: of which old piece, in which cell, how many persons."""

    old: Ints
    cell: Ints
    rows: Ints
    persons: Ints


def admit(
    asked: Asked, codes: Ints, cells: int, persons: Ints | None, minimum: int
) -> tuple[Mask, Asked]:
    """The vetoed cells of a question, and what answers tell apart once the others are answered.

    codes: (rows,) the cell of each row, `OUTSIDE` for none; persons: who each row belongs to, from
    0 (None: each row is a person). Returns bool (cells,).
    """
    place, keys = pd.factorize(asked.piece * (cells + 1) + codes + 1)
    old, cell = np.divmod(np.asarray(keys), cells + 1)
    heads = _persons(place, len(keys), persons)
    rows = np.bincount(place, minlength=len(keys))
    pieces = _Pieces(old, cell - 1, rows, heads)
    vetoed = np.zeros(cells, dtype=bool)
    if (heads < minimum).any():
        vetoed = _vetoed(asked, pieces, cells, minimum)
    kept = np.where(vetoed[codes] & (codes != OUTSIDE), OUTSIDE, codes)
    return vetoed, _told_apart(asked, kept, cells)


def _persons(place: Ints, count: int, persons: Ints | None) -> Ints:
    """How many persons stand for each piece; a person stands for that of its first row alone."""
    if persons is not None:
        place = place[np.unique(persons, return_index=True)[1]]
    return np.bincount(place, minlength=count)


def _told_apart(asked: Asked, codes: Ints, cells: int) -> Asked:
    """The history with one more question answered; one that says nothing new leaves it as it is."""
    place, keys = pd.factorize(asked.piece * (cells + 1) + codes + 1)
    old, cell = np.divmod(np.asarray(keys), cells + 1)
    table = np.column_stack([asked.cells[old], cell - 1])
    known = _known(asked, _Pieces(old, cell - 1, np.bincount(place), old), cells)
    if known[np.unique(codes[codes != OUTSIDE])].all():
        return asked
    return Asked(place.astype(np.int64), table)


def _known(asked: Asked, pieces: _Pieces, cells: int) -> Mask:
    """Cells of a question that were answered before: the same rows are a cell of an old question."""
    known = np.zeros(cells, dtype=bool)
    inside = pieces.cell != OUTSIDE
    total = np.bincount(pieces.cell[inside], pieces.rows[inside], cells)
    for column in asked.cells.T:
        code = column[pieces.old]
        width = int(code.max(initial=0)) + 1
        answered = code != OUTSIDE
        whole = np.bincount(code[answered], pieces.rows[answered], width)
        both = answered & inside
        pair, keys = pd.factorize(pieces.cell[both] * width + code[both])
        shared = np.bincount(pair, pieces.rows[both], len(keys))
        cell, old = np.divmod(np.asarray(keys), width)
        known[cell[(shared == total[cell]) & (shared == whole[old])]] = True
    return known


def _vetoed(asked: Asked, pieces: _Pieces, cells: int, minimum: int) -> Mask:
    """The cells that may not be answered beside the history."""
    inside = pieces.cell != OUTSIDE
    present = np.bincount(pieces.cell[inside], minlength=cells) > 0
    heads = np.bincount(pieces.cell[inside], pieces.persons[inside], cells)
    known = _known(asked, pieces, cells)
    vetoed = present & (heads < minimum) & ~known
    row_of, count = _numbered(asked)
    while True:
        shown = np.append(~(vetoed | known), False)[pieces.cell]  # OUTSIDE is the last
        table = _Table(row_of[pieces.old], count, np.where(shown, pieces.cell, OUTSIDE))
        harmful = _harmful(table, pieces.persons, minimum) if shown.any() else None
        if harmful is None:
            return vetoed
        if not len(harmful):  # too many cells, or the history alone is not seen to keep the rule
            return present & ~known
        vetoed[min(harmful, key=lambda c: (heads[c], c))] = True


def _numbered(asked: Asked) -> tuple[Ints, int]:
    """(pieces, questions) the number of each old cell among all, `OUTSIDE` for none; how many."""
    numbers, start = np.full(asked.cells.shape, OUTSIDE), 0
    for k, column in enumerate(asked.cells.T):
        answered = column != OUTSIDE
        place, values = pd.factorize(column[answered])
        numbers[answered, k] = place + start
        start += len(values)
    return numbers, start


class _Table:
    """Answers by pieces: a row for each old cell and each cell of the question, 1 where it is.

    A combination has a weight for each old cell, and for each cell of the question one too. Where
    a cell has a reference, a piece with so many persons that it is in every group, its weight
    must cancel the old cells' there, so that it is no unknown.
    """

    def __init__(self, row_of: Ints, count: int, cell: Ints) -> None:
        self.row_of, self.count, self.cell = row_of, count, cell

    def backed(self, big: Ints) -> None:
        """Choose references among big pieces; number the cells that have none."""
        cells = int(self.cell.max(initial=-1)) + 1
        self.reference = np.full(cells + 1, -1)
        chosen, first = np.unique(self.cell[big], return_index=True)
        self.reference[chosen] = big[first]
        self.reference[OUTSIDE] = -1
        loose = np.setdiff1d(self.cell, chosen)
        self.loose = loose[loose != OUTSIDE]
        self.weight_of = np.full(cells + 1, OUTSIDE)
        self.weight_of[self.loose] = self.count + np.arange(len(self.loose))
        self.unknowns = self.count + len(self.loose)

    def on(self, weights: Ints, pieces: Ints, prime: int) -> Ints:
        """(pieces, combinations): what each combination is on each piece."""
        cell = self.cell[pieces]
        value = _on(weights, np.column_stack([self.row_of[pieces], self.weight_of[cell]]), prime)
        other = self.reference[cell]
        given = _on(weights, self.row_of[other], prime) * (other >= 0)[:, None]
        return (value - given) % prime

    def cells(self, weights: Ints, prime: int) -> Ints:
        """The cells of the question with a weight in one of these combinations."""
        backed = np.flatnonzero(self.reference[:-1] >= 0)
        given = _on(weights, self.row_of[self.reference[backed]], prime)
        loose = weights[self.weight_of[self.loose]]
        return np.concatenate([backed[given.any(axis=1)], self.loose[loose.any(axis=1)]])


def _harmful(table: _Table, persons: Ints, minimum: int) -> Ints | None:
    """None if the rule holds; else cells of a combination for which no group was found.

    Arithmetic is modulo a random prime: a number that is not 0 becomes 0 once in 2^30.
    """
    prime = int(gmpy2.next_prime((1 << 30) + secrets.randbits(29)))
    big, few = np.flatnonzero(persons >= minimum), np.flatnonzero(persons < minimum)
    table.backed(big)
    if table.unknowns > MOST_CELLS:
        return np.zeros(0, dtype=np.int64)
    open_still = np.eye(table.unknowns, dtype=np.int64)  # combinations that are 0 on big pieces
    for part in _parts(big, 2 * table.unknowns + 64):
        if not open_still.shape[1]:
            return None
        on = table.on(open_still, part, prime)
        open_still = _product(open_still, _null(on, prime), prime)
    values = table.on(open_still, few, prime)
    left, groups = persons[few].copy(), 0
    rank = len(_group(values, np.argsort(-left, kind="stable"), None, prime)[0])
    while rank and groups < minimum:
        order = np.argsort(-left, kind="stable")
        group, unseen = _group(values, order[left[order] > 0], rank, prime)
        if len(group) < rank:
            fresh = unseen[:, _product(values, unseen, prime).any(axis=0)]
            return table.cells(_product(open_still, fresh[:, :1], prime), prime)
        times = min(int(left[group].min()), minimum - groups)
        left[group] -= times
        groups += times
    return None


def _group(values: Ints, order: Ints, rank: int | None, prime: int) -> tuple[Ints, Ints]:
    """Pieces that tell combinations apart as well as all in ``order`` do, or until ``rank`` of them
    are found; and the combinations that are 0 on all pieces looked at."""
    unseen, group = np.eye(values.shape[1], dtype=np.int64), np.zeros(0, dtype=np.int64)
    for part in _parts(order, 2 * values.shape[1] + 64):
        if len(group) == rank or not unseen.shape[1]:
            break
        on = _product(values[part], unseen, prime)
        chosen = _echelon(on.T, prime)[1]
        group = np.concatenate([group, part[chosen]])
        unseen = _product(unseen, _null(on[chosen], prime), prime)
    return group, unseen


def _parts(items: Ints, size: int) -> Iterator[Ints]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _on(weights: Ints, numbers: Ints, prime: int) -> Ints:
    """(pieces, combinations): the sum of the weights of the old cells around each piece."""
    padded = np.vstack([weights, np.zeros((1, weights.shape[1]), dtype=np.int64)])
    total = np.zeros((len(numbers), weights.shape[1]), dtype=np.int64)
    for column in numbers.T:
        total += padded[column]  # OUTSIDE is the last row, of zeros
    return total % prime


def _product(left: Ints, right: Ints, prime: int) -> Ints:
    total = np.zeros((left.shape[0], right.shape[1]), dtype=np.int64)
    for k in range(left.shape[1]):
        total = (total + left[:, k, None] * right[None, k]) % prime
    return total


def _echelon(matrix: Ints, prime: int) -> tuple[Ints, list[int]]:
    """The reduced row echelon form, its rows that are not 0, and the column of each one's pivot."""
    rows, pivots = matrix.copy() % prime, []
    at = 0
    for column in range(rows.shape[1]):
        below = np.flatnonzero(rows[at:, column])
        if not len(below):
            continue
        rows[[at, at + below[0]]] = rows[[at + below[0], at]]
        rows[at] = rows[at] * pow(int(rows[at, column]), -1, prime) % prime
        others = np.flatnonzero(rows[:, column])
        others = others[others != at]
        rows[others] = (rows[others] - rows[others, column, None] * rows[at]) % prime
        pivots.append(column)
        at += 1
        if at == len(rows):
            break
    return rows[:at], pivots


def _null(matrix: Ints, prime: int) -> Ints:
    """(columns, dimension): a basis of all x with matrix x = 0."""
    rows, pivots = _echelon(matrix, prime)
    free = sorted(set(range(matrix.shape[1])) - set(pivots))
    basis = np.zeros((matrix.shape[1], len(free)), dtype=np.int64)
    basis[free, range(len(free))] = 1
    if pivots:
        basis[pivots] = -rows[:, free] % prime
    return basis


def _sealed(piece: bytes, cells: bytes) -> bytes:
    """A digest that tells damage, not somebody who means to deceive."""
    return hashlib.sha256(len(piece).to_bytes(8, "big") + piece + cells).digest()


class History:
    """A party's history on disk (or in memory), for one state of its table.

    A veto is decided and written before the answer leaves, one question at a time. Raises
    :class:`ConfigurationError` for a file that is damaged or not a history.
    """

    def __init__(self, path: Path | None, digest: str, rows: int) -> None:
        self._path, self._digest, self._lock = path, digest, threading.Lock()
        self._asked = Asked.nothing(rows)
        self._values: dict[str, str] = {}

    def admit(self, codes: Ints, cells: int, persons: Ints | None, minimum: int) -> Mask:
        """bool (cells,): the cells that may not be answered; the others are history now."""
        with self._lock:
            if self._path is None:
                vetoed, self._asked = admit(self._asked, codes, cells, persons, minimum)
                return vetoed
            try:
                with closing(sqlite3.connect(self._path, 60, isolation_level=None)) as store:
                    return self._stored(store, codes, cells, persons, minimum)
            except (sqlite3.Error, ValueError) as error:
                raise self._unusable(error) from None

    def once(self, codes: Ints, value: str) -> bool:
        """Whether a split of the rows is asked about for the first time, or with the same value as
        before, whatever its cells are called."""
        split = np.asarray(pd.factorize(codes)[0], dtype="<i8").tobytes()
        name = hashlib.sha256(self._digest.encode() + split).hexdigest()
        with self._lock:
            if self._path is None:
                return self._values.setdefault(name, value) == value
            try:
                with closing(sqlite3.connect(self._path, 60, isolation_level=None)) as store:
                    store.execute("PRAGMA synchronous = EXTRA")
                    store.execute("CREATE TABLE IF NOT EXISTS once (split TEXT PRIMARY KEY, value)")
                    store.execute("INSERT OR IGNORE INTO once VALUES (?, ?)", (name, value))
                    found = store.execute("SELECT value FROM once WHERE split = ?", (name,))
                    return bool(found.fetchone() == (value,))
            except sqlite3.Error as error:
                raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> ConfigurationError:
        assert self._path is not None
        return ConfigurationError(
            f"{self._path.name}: the history of questions cannot be used ({error}); "
            "nothing is answered without it"
        )

    def _stored(
        self, store: sqlite3.Connection, codes: Ints, cells: int, persons: Ints | None, minimum: int
    ) -> Mask:
        store.execute("PRAGMA synchronous = EXTRA")
        store.execute("BEGIN IMMEDIATE")
        store.execute(
            "CREATE TABLE IF NOT EXISTS asked "
            "(state TEXT PRIMARY KEY, piece BLOB, cells BLOB, digest BLOB)"
        )
        found = store.execute(
            "SELECT piece, cells, digest FROM asked WHERE state = ?", (self._digest,)
        ).fetchone()
        before = self._asked
        if found:
            *blobs, digest = found
            if not all(isinstance(blob, bytes) for blob in found) or _sealed(*blobs) != digest:
                raise ValueError("it does not match its digest")
            piece, table = (np.frombuffer(blob, "<i8") for blob in blobs)
            before = Asked(piece, table.reshape(int(piece.max(initial=0)) + 1, -1))
            if len(piece) != len(codes):
                raise ValueError("it is of a table with another number of rows")
        vetoed, after = admit(before, codes, cells, persons, minimum)
        if after is not before:
            blobs = after.piece.astype("<i8").tobytes(), after.cells.astype("<i8").tobytes()
            row = (self._digest, *blobs, _sealed(*blobs))
            store.execute("INSERT OR REPLACE INTO asked VALUES (?, ?, ?, ?)", row)
        store.execute("COMMIT")
        return vetoed


#: Rows with a value in none of an axis's levels or intervals.
OUTSIDE = -1
