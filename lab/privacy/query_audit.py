"""What a party has been asked, and the cells it therefore may not answer any more.

Every answer is a set of sums over *cells*, sets of rows. Whatever is computed linearly from all
answers together, a difference, a complement, a tracker of many overlapping filters, is a weighted
sum over persons. The rule kept here: **every such combination involves the minimum number of
persons at least.** It is decided for all combinations at once, and not for a list of attacks: if
the answers can be told from k disjoint groups of persons, each as well as from everybody, then
whoever is left out of a combination's support would have to be in all k groups, so no combination
that is not 0 has fewer than k persons behind it. (In words of matroids: k disjoint bases among the
columns of the matrix of answers by persons; the smallest cocircuit then has k elements. Edmonds,
"Minimum partition of a matroid into independent subsets", J. Res. NBS 1965.) Whoever has several
rows is in a group with all of them. Groups are looked for greedily, so a cell may be vetoed that
need not be, and none passes that should not. The work is sparse elimination
(`lab.privacy.elimination`): thousands of cells take seconds.

The sum over the whole table, as it was first asked about, is taken as known from the start, so what
all shown cells leave over is guarded like a cell; `lab.privacy.history` follows the table's later
states. A cell that breaks the rule is vetoed and counts as not asked, smallest first, until the
rule holds: an auditor of sum queries (Chin and Özsoyoğlu, "Auditing and inference control in
statistical databases", IEEE TSE 1982) whose unit is not one person but the minimum. It follows that a party answers at most one independent cell for every k rows. Each party keeps its own
history and knows no other's: the rule holds at every party for its own persons, whoever asks
and through whichever coordinator.

What it does not hide: that something is small, which a veto tells; what follows from inequalities
alone, as that a count is not below 0.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import gmpy2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lab.privacy.elimination import Echelon, Elements

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
#: Rows with a value in none of an axis's levels or intervals; rows that are no person's.
OUTSIDE = NOBODY = -1


@dataclass(frozen=True)
class Answers:
    """What answers so far can tell apart.

    piece: (rows,) the piece of each row, from 0. cells: (pieces, questions) the cell of each piece
    in each question answered, `OUTSIDE` for none; the first question is the whole table.
    """

    piece: Ints
    cells: Ints

    @classmethod
    def nothing(cls, rows: int) -> Answers:
        return cls(np.zeros(rows, dtype=np.int64), np.zeros((1, 1), dtype=np.int64))

    def with_rows(self, count: int) -> Answers:
        """This with rows that no answer was about."""
        place = np.full(count, len(self.cells))
        cells = np.vstack([self.cells, np.full((1, self.cells.shape[1]), OUTSIDE)])
        return Answers(np.concatenate([self.piece, place]), cells)


@dataclass(frozen=True)
class _Pieces:
    """The pieces that a question would make: of which old piece, in which cell, how many rows."""

    old: Ints
    cell: Ints
    rows: Ints


@dataclass(frozen=True)
class _Kinds:
    """Kinds of persons: the pieces that their rows are in, as compressed rows; how many persons."""

    ends: Ints
    pieces: Ints
    persons: Ints


def admit(
    answers: Answers, codes: Ints, cells: int, persons: Ints | None, minimum: int
) -> tuple[Mask, Answers]:
    """The vetoed cells of a question, and what answers tell apart once the others are answered.

    codes: (rows,) the cell of each row, `OUTSIDE` for none; persons: who each row belongs to, from
    0, `NOBODY` for one that counts for none (None: each row is a person). Returns bool (cells,).
    """
    pieces, place = _split(answers, codes, cells)
    kinds = _kinds(place, persons)
    vetoed = np.zeros(cells, dtype=bool)
    if (kinds.persons < minimum).any():
        heads = _persons(codes, cells, persons)
        vetoed = _vetoed(answers, pieces, kinds, heads, minimum)
    visible = np.where(vetoed[codes] & (codes != OUTSIDE), OUTSIDE, codes)
    return vetoed, with_answer(answers, visible, cells)


def _split(answers: Answers, codes: Ints, cells: int) -> tuple[_Pieces, Ints]:
    """The pieces that a question would make, and the piece of each row."""
    place, keys = pd.factorize(answers.piece * (cells + 1) + codes + 1)
    old, cell = np.divmod(np.asarray(keys), cells + 1)
    rows = np.bincount(place, minlength=len(keys))
    return _Pieces(old, cell - 1, rows), np.asarray(place, dtype=np.int64)


def _persons(codes: Ints, cells: int, persons: Ints | None) -> Ints:
    """(cells,) the persons who have a row in each cell."""
    if persons is not None:
        own = persons != NOBODY
        pairs = np.unique(persons[own] * (cells + 1) + codes[own] + 1)
        codes = pairs % (cells + 1) - 1
    return np.bincount(codes[codes != OUTSIDE], minlength=cells)


def _kinds(place: Ints, persons: Ints | None) -> _Kinds:
    """Persons by the set of pieces that their rows are in.

    place: (rows,) the piece of each row. A combination is about a person where it is not 0 on
    some piece that the person has a row in.
    """
    if persons is None:
        present, count = np.unique(place, return_counts=True)
        return _Kinds(np.arange(len(present) + 1), present, count)
    own, width = persons != NOBODY, int(place.max(initial=0)) + 1
    person, piece = np.divmod(np.unique(persons[own] * width + place[own]), width)
    sizes = np.bincount(np.unique(person, return_inverse=True)[1])
    starts = np.cumsum(sizes) - sizes
    nobody = np.unique(place[~own])
    ends, sets, counts = [np.arange(len(nobody) + 1)], [nobody], [np.zeros_like(nobody)]
    for size in np.unique(sizes):
        own = piece[starts[sizes == size][:, None] + np.arange(size)]
        distinct, count = np.unique(own, axis=0, return_counts=True)
        ends.append(ends[-1][-1] + size * np.arange(1, len(distinct) + 1))
        sets.append(distinct.ravel())
        counts.append(count)
    return _Kinds(np.concatenate(ends), np.concatenate(sets), np.concatenate(counts))


def with_answer(answers: Answers, codes: Ints, cells: int) -> Answers:
    """The history with one more question answered; one that says nothing new leaves it as it is."""
    pieces, place = _split(answers, codes, cells)
    repeats = _repeats(answers, pieces, cells)
    if repeats[np.unique(codes[codes != OUTSIDE])].all():
        return answers
    return Answers(place, np.column_stack([answers.cells[pieces.old], pieces.cell]))


def _repeats(answers: Answers, pieces: _Pieces, cells: int) -> Mask:
    """Cells of a question that were answered before: the same rows are a cell of an old question."""
    repeats = np.zeros(cells, dtype=bool)
    inside = pieces.cell != OUTSIDE
    total = np.bincount(pieces.cell[inside], pieces.rows[inside], cells)
    for column in answers.cells.T:
        code = column[pieces.old]
        width = int(code.max(initial=0)) + 1
        within = code != OUTSIDE
        whole = np.bincount(code[within], pieces.rows[within], width)
        both = within & inside
        pair, keys = pd.factorize(pieces.cell[both] * width + code[both])
        shared = np.bincount(pair, pieces.rows[both], len(keys))
        cell, old = np.divmod(np.asarray(keys), width)
        repeats[cell[(shared == total[cell]) & (shared == whole[old])]] = True
    return repeats


def _vetoed(answers: Answers, pieces: _Pieces, kinds: _Kinds, heads: Ints, minimum: int) -> Mask:
    """The cells that may not be answered beside the history. heads: (cells,) persons in each."""
    cells = len(heads)
    repeats = _repeats(answers, pieces, cells)
    vetoed = (heads > 0) & (heads < minimum) & ~repeats
    row_of, count = _numbered(answers)
    while True:
        visible = np.append(~(vetoed | repeats), False)[pieces.cell]  # OUTSIDE is the last
        if not visible.any():
            return vetoed
        new = np.where(visible, pieces.cell + count, OUTSIDE)
        table = np.column_stack([row_of[pieces.old], new])
        combinations = _harmful(table, count + cells, kinds, minimum)
        if combinations is None:
            return vetoed
        sets = [np.flatnonzero(weights[count:]) for weights in combinations]
        smallest = [min(own, key=lambda c: (heads[c], c)) for own in sets if len(own)]
        if not smallest:  # too much to compute, or the history alone is not seen to keep the rule
            return (heads > 0) & ~repeats
        vetoed[smallest] = True


def _numbered(answers: Answers) -> tuple[Ints, int]:
    """(pieces, questions) the number of each old cell among all, `OUTSIDE` for none; how many."""
    numbers, start = np.full(answers.cells.shape, OUTSIDE), 0
    for k, column in enumerate(answers.cells.T):
        within = column != OUTSIDE
        place, values = pd.factorize(column[within])
        numbers[within, k] = place + start
        start += len(values)
    return numbers, start


def _harmful(table: Ints, size: int, kinds: _Kinds, minimum: int) -> list[Ints] | None:
    """None if the rule holds; else combinations, (size,) weights of cells, for which not all groups
    were found, none where it took too much.

    table: (pieces, questions) the cell that each piece is in, `OUTSIDE` for none. Arithmetic is
    modulo a random prime: a number that is not 0 becomes 0 once in 2^30.
    """
    from lab.privacy.elimination import Echelon  # numba takes a second

    prime = _prime()
    elements, name = _elements(table, size, kinds)
    order = np.argsort(-kinds.persons, kind="stable")
    big, few = order[kinds.persons[order] >= minimum], order[kinds.persons[order] < minimum]
    # 1. Who is in every group; then everybody, which is the first group and has the rank.
    common, _ = Echelon.empty(size).grown(elements, big, prime)
    whole, group = common.grown(elements, few, prime)
    supply, groups = kinds.persons.copy(), 0
    while not whole.exhausted:
        # 2. A group counts as often as its rarest kind is left.
        times = min(int(supply[group].min(initial=minimum)), minimum - groups)
        supply[group] -= times
        groups += times
        if groups == minimum or not len(group):
            return None
        # 3. The next one, of those who are left, the most numerous kinds first.
        order = few[np.argsort(-supply[few], kind="stable")]
        spent = replace(common, steps=whole.steps)
        echelon, group = spent.grown(elements, order[supply[order] > 0], prime, whole.rank)
        if echelon.rank < whole.rank:
            return _combinations(echelon, elements, few, prime, name)
        whole = replace(whole, steps=echelon.steps)
    return []


def _combinations(
    echelon: Echelon, elements: Elements, few: Ints, prime: int, name: Ints
) -> list[Ints]:
    """Combinations that are 0 on a group and not on everybody."""
    full, _ = echelon.grown(elements, few, prime)
    fresh = np.flatnonzero((full.first >= 0) & (echelon.first < 0))
    fresh = fresh[np.argsort(full.first[fresh])]
    return [full.combination(int(cell), fresh[k:], prime)[name] for k, cell in enumerate(fresh)]


def _elements(table: Ints, size: int, kinds: _Kinds) -> tuple[Elements, Ints]:
    """Kinds of persons for the elimination, and the number of each cell there."""
    from lab.privacy.elimination import Elements

    inside = table != OUTSIDE
    degree = np.bincount(table[inside], minlength=size)
    name = np.empty(size, dtype=np.int64)
    name[np.argsort(degree, kind="stable")] = np.arange(size)
    ends = np.concatenate([[0], np.cumsum(inside.sum(axis=1))])
    return Elements(kinds.ends, kinds.pieces, ends, name[table[inside]], size), name


def independent_cells(answers: Answers) -> int:
    """How many answered cells are no combination of the others."""
    from lab.privacy.elimination import Echelon

    table, size = _numbered(answers)
    pieces = np.arange(len(table))
    every = _Kinds(np.arange(len(table) + 1), pieces, np.ones_like(pieces))
    elements, _ = _elements(table, size, every)
    return Echelon.empty(size).grown(elements, pieces, _prime())[0].rank


def _prime() -> int:
    """A random one, so that nobody can ask for what is 0 modulo it."""
    return int(gmpy2.next_prime((1 << 30) + secrets.randbits(29)))
