"""Cell suppression: which cells of a table of totals are hidden, so that no forbidden one follows.

`lab.privacy.disclosure` says which cells are **primary**, forbidden by themselves. They must not
follow from the rest either, so others are hidden with them.

*What the reader is taken to know*: every cell that is shown, every total, which cells are empty,
and that nothing is negative; of the totals, all but those that this module would not show in a
table of their own, for the rules or to protect another total. So the totals are decided first, the
table last (HiTaS: de Wolf, LNCS 2316, 2002).

*How a cell is protected*: the corners of a box of hidden cells can be raised and lowered by turns
and no total changes; so far the reader cannot tell (the hypercube method: Giessing & Repsilber,
"Tools and strategies to protect multiple tables with the GHQUAR cell suppression engine", LNCS
2316, 2002). Where few cells need protection, or no box is wide enough, linear programming finds a
cheap move of any form. Both hide more than the least that would do, never too little.

*What is not seen from here*: a person in two cells or at two parties counts twice; a party that
takes its own rows off the totals knows more than a reader, so cells that it knows protect last; a
total that is too concentrated shows it only in a table of totals, which may then protect others.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np

from lab.privacy.disclosure import Bools, Cells, Indices, Rules, primary
from lab.sums import Floats

#: Boxes tried in a whole table, and places tried along a line: bounds for large tables.
BOXES, PLACES = 10_000_000, 256
#: So many primary cells are protected by linear programming alone: it hides less, and is slower.
FEW = 100
#: Cells that may take part in linear programming, the cheapest; more if that fails.
MOVABLE = 1_000, 10_000


def suppressed(cells: Cells, rules: Rules) -> Bools:
    """Which cells are hidden, bool of the table's shape: primary, empty, and those that protect.

    Guarantee: a reader as above cannot narrow the persons of a primary cell to an interval of less
    than ``minimum_count``, nor an amount to less than p% (what dominance asks for, if more) of it;
    and the hidden cells of a line together are no primary cell. Where nothing can do that, every
    cell of the table is hidden. Same totals, same answer.
    """
    shape = tuple(n for n in cells.persons.shape if n != 1)
    hidden = with_totals(cells.each(lambda array: array.reshape(shape)), rules)
    return np.asarray(hidden[(slice(-1),) * len(shape)]).reshape(cells.persons.shape)


def with_totals(cells: Cells, rules: Rules) -> Bools:
    """As :func:`suppressed`, with the totals of the table at the last place of each axis."""
    axes = range(cells.persons.ndim)
    for axis in axes:
        cells = _with_total(cells, axis)
    forbidden = primary(cells, rules)
    hidden = np.asarray(forbidden | (cells.persons <= 0))
    for size in axes:
        for free in combinations(axes, size + 1):
            table = tuple(slice(None) if axis in free else -1 for axis in axes)
            part, inside = cells.each(operator.itemgetter(table)), (slice(-1),) * len(free)
            if size and not _protect(part, forbidden[table], hidden[table], rules):
                hidden[table][inside] = True
            for axis in range(len(free)):
                inner = part.each(operator.itemgetter(inside))
                _fill_lines(inner, hidden[table][inside], axis, rules)
    return hidden


def _with_total(cells: Cells, axis: int) -> Cells:
    """Totals along an axis, with what is sure of them: a total is forbidden for its persons, for
    its parties if all parties of its cells are too few, or as one cell under another name."""
    filled = cells.persons > 0
    single = filled.sum(axis, keepdims=True) == 1

    def total(array: Floats) -> Floats:
        return np.concatenate([array, array.sum(axis, keepdims=True)], axis)

    def sure(array: Floats) -> Floats:
        sums = np.where(single, (array * filled).sum(axis, keepdims=True), 0.0)
        return np.concatenate([array, sums], axis)

    return Cells(
        total(cells.persons),
        total(cells.parties),
        sure(cells.vetoes),
        {name: total(array) for name, array in cells.amounts.items()},
        {name: sure(array) for name, array in cells.sensitivity.items()},
    )


def _fill_lines(cells: Cells, hidden: Bools, axis: int, rules: Rules) -> None:
    """Hide, in place, the smallest shown cells of a line until its hidden ones may be shown as one.

    A line's total less what is shown in it is their sum. It is judged by what bounds it: the most
    parties of one cell, the sum of sensitivities. A vetoed cell is close to an earlier answer and
    does not help.
    """
    # 1. The cells of each line from the smallest; the hidden ones come last.
    cells = cells.each(lambda array: np.moveaxis(array, axis, -1))
    hidden = np.moveaxis(hidden, axis, -1)
    filled, helps = cells.persons > 0, cells.vetoes <= 0
    order = np.argsort(np.where(hidden, np.inf, cells.persons), axis=-1, kind="stable")
    visible = np.take_along_axis(~hidden, order, -1)

    # 2. What bounds the hidden ones together, with none more hidden, with one more, and so on.
    def growing(array: Floats, merge: np.ufunc) -> Floats:
        start = merge.reduce(
            np.where(hidden & filled, array, 0.0), axis=-1, keepdims=True, initial=0.0
        )
        more = np.where(visible, np.take_along_axis(array, order, -1), 0.0)
        return np.asarray(merge.accumulate(np.concatenate([start, more], -1), axis=-1))

    safe = growing(cells.persons * helps, np.add) >= rules.minimum_count.persons
    safe &= growing(cells.parties * helps, np.maximum) >= rules.minimum_parties.parties
    for measure in cells.sensitivity.values():
        safe &= growing(np.where(helps, measure, np.maximum(measure, 0)), np.add) <= 0
    # 3. Hide as many as it takes, all where nothing is safe, none where nothing is hidden.
    enough = np.where(safe.any(-1), safe.argmax(-1), safe.shape[-1])
    enough[~(hidden & filled).any(-1)] = 0
    hidden |= np.argsort(order, axis=-1, kind="stable") < enough[..., None]


@dataclass(frozen=True)
class _Search:
    """A table with its totals as the search for protection sees it, its n cells in one row.

    ``values``: float64[m, n], persons and amounts; ``needs``: how wide each must stay open;
    ``price``: float64[n], of a cell's help, infinite where it cannot move; ``again``: the same once
    it is hidden; ``places``: for each axis and line where to look along it, cheapest first.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    values: Floats
    needs: Floats
    price: Floats
    again: Floats
    places: tuple[Indices, ...]


def _search(cells: Cells, forbidden: Bools, hidden: Bools, total: Bools, rules: Rules) -> _Search:
    shares = [rules.p_percent.percent / 100] if rules.p_percent else []
    if rules.dominance:  # (100/k)(x1 + ... + xn) - X is at most this share of X
        shares.append(100 / rules.dominance.percent - 1)
    persons, shape = cells.persons, hidden.shape
    amounts = [a for a in cells.amounts.values() if (a >= 0).all()]  # nothing bounds the others
    values = np.stack([persons, *amounts]).reshape(1 + len(amounts), -1)
    needs = values * max(shares, default=0.0)
    needs[0] = rules.minimum_count.persons
    # Last resort: what its only person or party knows, what an earlier answer tells, and totals
    # that are hidden for another total's sake.
    insiders = (persons < 2) | (cells.parties < min(2, rules.minimum_parties.parties))
    last = np.where(total, ~forbidden, insiders | (cells.vetoes > 0))
    again = np.where(last, 8 * persons.max(), 0.0)
    again[(persons <= 0) | (total & ~hidden)] = np.inf
    price = again + np.where(hidden, 0, persons)
    places = tuple(
        np.argsort(lines.reshape(-1, lines.shape[-1]), axis=-1, kind="stable")[:, :PLACES]
        for lines in (np.moveaxis(price, axis, -1) for axis in range(len(shape)))
    )
    strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    return _Search(shape, strides, values, needs, price.ravel(), again.ravel(), places)


def _protect(cells: Cells, forbidden: Bools, hidden: Bools, rules: Rules) -> bool:
    """Hide, in place, what protects each forbidden cell of a table; False where nothing does."""
    # 1. The forbidden cells that are no totals: totals are protected in tables of their own.
    total = np.zeros(hidden.shape, dtype=bool)
    for axis in range(hidden.ndim):
        np.moveaxis(total, axis, -1)[..., -1] = True
    targets = np.flatnonzero(forbidden & ~total)
    if not len(targets):
        return True
    search = _search(cells, forbidden, hidden, total, rules)
    reach = max(3, int((BOXES / len(targets)) ** (1 / hidden.ndim)))

    def hide(protectors: Indices) -> None:
        protectors = protectors[~total.flat[protectors]]
        hidden.flat[protectors] = True
        search.price[protectors] = search.again[protectors]

    # 2. Many of them by boxes, some at a time, because each box makes the next one cheaper.
    if len(targets) > FEW:
        remainder = []
        for some in np.array_split(targets, min(len(targets), 256)):
            corners, cost = _boxes(search, some, reach)
            hide(corners[np.isfinite(cost)].ravel())
            remainder.append(some[~np.isfinite(cost)])
        targets = np.concatenate(remainder)
    # 3. The others one by one, by linear programming.
    for target in map(int, targets):
        moves = (_move(search, target, movable) for movable in MOVABLE)
        move = next((move for move in moves if move is not None), None)
        if move is None:
            return False
        hide(move)
    return True


def _boxes(search: _Search, targets: Indices, reach: int) -> tuple[Indices, Floats]:
    """For each target the cheapest box that is wide enough: corners int64[t, 2**d], price[t].

    Where the target rises, the corners an odd number of steps away fall: it can rise by the least
    of them and fall by the least of the others. A step to a total does not count, because a total
    moves with its line. ``reach``: places along each line that are tried.
    """
    # 1. Along each line of a target: steps to the cheapest places where a cell is large enough.
    d, t = len(search.shape), len(targets)
    at = np.unravel_index(targets, search.shape)
    need = search.needs[:, targets]
    steps: list[Indices] = []
    turns: list[Bools] = []
    prices: list[Floats] = []
    for axis, n in enumerate(search.shape):
        line = np.ravel_multi_index(_without(at, axis), _without(search.shape, axis))
        place = search.places[axis][line]
        step = (place - at[axis][:, None]) * search.strides[axis]
        cell = targets[:, None] + step
        wide = (search.values[:, cell] + search.values[:, targets, None] >= need[..., None]).all(0)
        price = np.where((step != 0) & (wide | (place == n - 1)), search.price[cell], np.inf)
        first = np.argsort(price, axis=-1, kind="stable")[:, :reach]
        across = (t, *(-1 if a == axis else 1 for a in range(d)))
        steps.append(np.take_along_axis(step, first, -1).reshape(across))
        turns.append(np.take_along_axis(place < n - 1, first, -1).reshape(across))
        prices.append(np.take_along_axis(price, first, -1).reshape(across))
    # 2. Each box of one step along every axis: its price, and how far its corners rise and fall.
    many = (-1, t, *[1] * d)
    up, down = np.full(1, np.inf), search.values[:, targets].reshape(many)
    cost = np.zeros(1)
    ways = [axes for size in range(1, d + 1) for axes in combinations(range(d), size)]
    for axes in ways:
        cell = reduce(operator.add, [steps[axis] for axis in axes], targets.reshape(many[1:]))
        falls = reduce(operator.xor, [turns[axis] for axis in axes])
        cost = cost + (search.price[cell] if len(axes) > 1 else prices[axes[0]])
        value = search.values.take(cell, axis=1)
        up = np.minimum(up, np.where(falls, value, np.inf))
        down = np.minimum(down, np.where(falls, np.inf, value))
    # 3. The cheapest of those that are wide enough.
    cost = np.where((up + down >= need.reshape(many)).all(0), cost, np.inf)
    best, rows = cost.reshape(t, -1).argmin(-1), np.arange(t)
    where = np.unravel_index(best, cost.shape[1:])
    sides = [step.reshape(t, -1)[rows, w] for step, w in zip(steps, where, strict=True)]
    corners = [targets, *(targets + sum(sides[axis] for axis in axes) for axes in ways)]
    return np.stack(corners, -1), cost.reshape(t, -1)[rows, best]


def _without(items: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    return items[:axis] + items[axis + 1 :]


def _move(search: _Search, target: int, movable: float) -> Indices | None:
    """The cells that protect a target at least cost, by linear programming, or None.

    Two moves of the table that leave every shown total as it is and no cell negative, one that
    raises the target and one that lowers it, so far apart as it needs: what moves must be hidden.
    This is one step of the heuristic of Kelly, Golden & Assad, "Cell suppression: disclosure
    protection for sensitive tabular data", Networks 22 (1992), for tables of any form.
    """
    from scipy import optimize, sparse

    # 1. The two moves as one program: each keeps every total, and they are as far apart as is asked.
    cell, change = _movable(search, target, movable)
    apart = np.kron([[1.0, -1.0, -1.0, 1.0]], cell == target)  # rises, falls; again: second move
    both = sparse.vstack([sparse.kron(np.eye(2), sparse.hstack([change, -change])), apart])
    # 2. Persons, then each amount: the cheapest moves, where what moves already is free.
    moves = np.zeros(len(cell), dtype=bool)
    for value, need in zip(search.values[:, cell], search.needs[:, target], strict=True):
        if need <= 0:
            continue
        fall = np.minimum(value / need, 100.0)  # more than any move takes
        price = np.where(moves, 0.0, search.price[cell])
        most = np.concatenate([np.full(len(cell), np.inf), fall] * 2)
        solution = optimize.linprog(
            np.tile(price / (price.max() or 1.0) + 1e-6, 4),
            A_eq=both,
            b_eq=np.append(np.zeros(both.shape[0] - 1), 1.0),
            bounds=np.stack([np.zeros(len(most)), most], -1),
            method="highs",
        )
        if solution.status != 0:
            return None
        moves |= (solution.x.reshape(4, -1) > 1e-9).any(0)
    return np.asarray(cell[moves])


def _movable(search: _Search, target: int, most: float) -> tuple[Indices, Any]:
    """About the ``most`` cheapest cells around a target, and what keeps their lines' totals.

    Returns int64[k], the cells, and a sparse matrix [lines, k]: a change of the cells that it maps
    to 0 leaves every total as it is.
    """
    from scipy import sparse

    # 1. A block: along each axis the cheapest places of the target's line, its own, and the total.
    at, d, room = np.unravel_index(target, search.shape), len(search.shape), most
    places: list[Indices] = [np.empty(0, np.int64)] * d
    for turn, axis in enumerate(np.argsort(search.shape)):
        n = search.shape[axis]
        line = target + (np.arange(n) - at[axis]) * search.strides[axis]
        side = max(2, int(room ** (1 / (d - turn))) - 2)
        cheapest = np.argsort(search.price[line], kind="stable")[:side]
        places[axis] = np.unique([*cheapest, at[axis], n - 1])
        room /= len(places[axis])
    # 2. Of the block, what can move.
    block = np.ravel_multi_index(np.ix_(*places), search.shape)
    index = np.nonzero(np.isfinite(search.price[block]))
    cell = block[index]
    # 3. For each line of the block one equation: the sum of its cells less its total.
    equations = []
    for axis, n in enumerate(search.shape):
        sign = np.where(places[axis][index[axis]] == n - 1, -1.0, 1.0)
        lines = _without(block.shape, axis)
        line = np.ravel_multi_index(_without(index, axis), lines)
        form = (int(np.prod(lines)), len(cell))
        equations.append(sparse.csr_array((sign, (line, np.arange(len(cell)))), shape=form))
    return cell, sparse.vstack(equations)
