"""Sparse elimination modulo a prime, compiled: which persons tell combinations of cells apart.

A row is a piece of a table: the cells that hold it, each with weight 1. Cells are numbered so that
those of few pieces come first, which keeps rows short: a histogram of thousands of bins crossed with
a few groups costs about one step for each piece.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
#: Multiplications for one question; where it takes more, its new cells are vetoed.
MOST_STEPS = 2_000_000_000
#: By how much one element may raise a rank to come before others.
MOST_GAIN = 4


def _compiled(function: Callable[..., Any]) -> Any:
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder it may write to
        return njit(nogil=True)(function)


@dataclass(frozen=True)
class Elements:
    """What a group may be made of: sets of pieces, each a list of cells, both in compressed rows.

    piece_ends: (elements + 1,) into pieces; cell_ends: (pieces + 1,) into cells, numbers below size.
    """

    piece_ends: Ints
    pieces: Ints
    cell_ends: Ints
    cells: Ints
    size: int

    @property
    def arrays(self) -> tuple[Ints, Ints, Ints, Ints]:
        return self.piece_ends, self.pieces, self.cell_ends, self.cells


@dataclass(frozen=True)
class Echelon:
    """Rows in echelon form: of each cell with a pivot the place of its row in index and value.

    rank: rows; steps: multiplications so far, above :data:`MOST_STEPS` where it gave up.
    """

    first: Ints
    last: Ints
    index: Ints
    value: Ints
    rank: int = 0
    length: int = 0
    steps: int = 0

    @classmethod
    def empty(cls, size: int) -> Self:
        places = np.full(size, -1, dtype=np.int64)
        return cls(places, places.copy(), np.zeros(1024, np.int64), np.zeros(1024, np.int64))

    def grown(
        self, elements: Elements, order: Ints, prime: int, target: int | None = None
    ) -> tuple[Self, Ints]:
        """This with the rows of elements in this order, until a rank is reached; and the elements
        that raised it.

        Elements that raise it by most come first, then by one less: whoever has rows in two places
        that few persons tell apart serves a group twice. Between two parts of the order, elements
        are left out on which a random combination is 0 that is 0 on all rows so far: but once in
        the prime they raise no rank.
        """
        echelon, groups = self, [np.zeros(0, np.int64)]
        target = elements.size if target is None else target
        most = int(np.diff(elements.piece_ends)[order].max(initial=1))
        for gain in range(min(most, MOST_GAIN), 0, -1):
            rest, size = order, elements.size + 64
            while len(rest) and echelon.rank < target and not echelon.exhausted:
                part, rest = rest[:size], rest[size:]
                echelon, group = echelon._with(elements, part, prime, target, gain)
                groups.append(group)
                if len(rest) and len(group):
                    rest = rest[echelon._touched(elements, rest, prime)]
            order = order[echelon._touched(elements, order, prime)] if gain > 1 else order
        return echelon, np.concatenate(groups)

    def _with(
        self, elements: Elements, order: Ints, prime: int, target: int, gain: int
    ) -> tuple[Self, Ints]:
        members = np.zeros(len(order), dtype=np.bool_)
        first, last = self.first.copy(), self.last.copy()
        index, value, rank, length, steps = _grow(
            *(elements.arrays, order, members, (first, last, self.index, self.value)),
            *((self.rank, self.length, self.steps), (target, gain, prime, MOST_STEPS)),
        )
        return replace(
            self,
            **{"first": first, "last": last, "index": index, "value": value},
            **{"rank": rank, "length": length, "steps": steps},
        ), order[members]

    def _touched(self, elements: Elements, order: Ints, prime: int) -> NDArray[np.bool_]:
        """Elements that may raise the rank."""
        free = self.first < 0
        weights = np.zeros(len(free), dtype=np.int64)
        weights[free] = np.random.default_rng().integers(prime, size=int(free.sum()))
        weights = self._solved(weights, free, prime)
        return np.asarray(_touched(*elements.arrays, order, weights, prime), dtype=np.bool_)

    @property
    def exhausted(self) -> bool:
        """Whether it gave up."""
        return self.steps > MOST_STEPS

    def combination(self, cell: int, free: Ints, prime: int) -> Ints:
        """(size,) weights that are 0 on every row but those of ``free``, cells with a pivot of which
        ``cell`` has weight 1 and the others 0."""
        weights, fixed = np.zeros((2, len(self.first)), dtype=np.int64)
        weights[cell], fixed[free] = 1, 1
        return self._solved(weights, fixed > 0, prime)

    def _solved(self, weights: Ints, fixed: NDArray[np.bool_], prime: int) -> Ints:
        solution = _solve(self.first, self.last, self.index, self.value, fixed, weights, prime)
        return np.asarray(solution, dtype=np.int64)


@_compiled
def _inverse(number: int, prime: int) -> int:  # pragma: no cover
    result, base, exponent = 1, number % prime, prime - 2
    while exponent:
        if exponent & 1:
            result = result * base % prime
        base = base * base % prime
        exponent >>= 1
    return result


@_compiled
def _grow(
    elements: Any, order: Any, members: Any, rows: Any, counts: Any, limits: Any
) -> Any:  # pragma: no cover
    piece_ends, pieces, cell_ends, cells = elements
    first, last, index, value = rows
    rank, length, steps = counts
    target, gain, prime, most = limits
    size = len(first)
    work, pivots = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for place in range(len(order)):
        if rank >= target or steps > most:
            break
        element, before, mark = order[place], rank, length
        for at in range(piece_ends[element], piece_ends[element + 1]):
            piece, cell = pieces[at], size
            for k in range(cell_ends[piece], cell_ends[piece + 1]):
                work[cells[k]] = 1
                cell = min(cell, cells[k])
            # 1. Take off the rows whose pivots it has, the first cell first.
            while cell < size and (work[cell] == 0 or first[cell] >= 0):
                factor = work[cell]
                if factor != 0:
                    for k in range(first[cell], last[cell]):
                        work[index[k]] = (work[index[k]] - factor * value[k]) % prime
                    steps += last[cell] - first[cell]
                cell += 1
            if cell == size:
                continue
            # 2. What is left is a row with a new pivot.
            if length + size - cell > len(index):
                index = np.concatenate((index, np.zeros(len(index) + size, np.int64)))
                value = np.concatenate((value, np.zeros(len(value) + size, np.int64)))
            factor, first[cell] = _inverse(work[cell], prime), length
            for k in range(cell, size):
                if work[k] != 0:
                    index[length], value[length] = k, work[k] * factor % prime
                    length += 1
                    work[k] = 0
            last[cell], pivots[rank - before] = length, cell
            rank += 1
        # 3. It stays if it raises the rank enough.
        if rank - before >= gain:
            members[place] = True
        else:
            first[pivots[: rank - before]] = last[pivots[: rank - before]] = -1
            rank, length = before, mark
    return index, value, rank, length, steps


@_compiled
def _solve(
    first: Any, last: Any, index: Any, value: Any, fixed: Any, weight: Any, prime: int
) -> Any:  # pragma: no cover
    for k in range(len(first) - 1, -1, -1):
        if first[k] >= 0 and not fixed[k]:
            total = 0
            for at in range(first[k] + 1, last[k]):
                total = (total + value[at] * weight[index[at]]) % prime
            weight[k] = -total % prime
    return weight


@_compiled
def _touched(
    piece_ends: Any, pieces: Any, cell_ends: Any, cells: Any, order: Any, weight: Any, prime: int
) -> Any:  # pragma: no cover
    touched = np.zeros(len(order), np.bool_)
    for place in range(len(order)):
        element = order[place]
        for at in range(piece_ends[element], piece_ends[element + 1]):
            total = 0
            for k in range(cell_ends[pieces[at]], cell_ends[pieces[at] + 1]):
                total += weight[cells[k]]
            if total % prime != 0:
                touched[place] = True
                break
    return touched
