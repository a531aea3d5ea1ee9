"""The sums behind an answer: what a party takes from its rows, and what is released of the totals.

Beside every total travel, for each cell: how many persons are in it, whether the party has anybody
there, whether its history vetoes the cell, and how sensitive its amounts are. All of it is added
under encryption; whoever opens the totals releases only what `lab.privacy.suppression` leaves of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.errors import PolicyError
from lab.privacy.disclosure import Cells, Rules, rounded, sensitivity
from lab.privacy.noise import Release, grid, plan
from lab.privacy.noise import sensitivity as sensitivity_of
from lab.privacy.query_audit import OUTSIDE
from lab.privacy.suppression import suppressed
from lab.queries.questions import ROWS, Question, Total
from lab.sums import AMOUNT, FLAG, HEADS, MOMENT, SENSITIVITY, Floats, Limit, Sums
from lab.tables.contracts import Column

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
#: Name, size and format of each array of a contribution.
Form = dict[str, tuple[int, Limit]]
#: Lines of the population stability index that people act on: some drift, much drift.
DRIFTS = {"some": 0.1, "much": 0.25}


def form(question: Question) -> Form:
    """What a contribution to this question must look like."""
    arrays: Form = {}
    size = question.cells
    for k, total in enumerate(question.totals):
        arrays[f"total {k}"] = (size, _limit(total))
        if question.noise is None and total != ROWS:
            arrays[f"sensitivity {k}"] = (size, SENSITIVITY)
    if question.noise is None:
        arrays |= {"parties": (size, FLAG), "vetoes": (size, FLAG), "left": (1, HEADS)}
        if question.person is not None:
            arrays["persons"] = (size, HEADS)
    return arrays


def _limit(total: Total) -> Limit:
    if total.kind == "count":
        return HEADS
    return AMOUNT if len(total.columns) == 1 else MOMENT


def sums(agreed: Form, arrays: Mapping[str, Floats], rows: int) -> Sums:
    """Arrays as a contribution of the agreed form."""
    limits = {name: limit for name, (_, limit) in agreed.items()}
    return Sums({name: arrays[name] for name in agreed}, limits, rows)


# What a party takes from its rows.


def plain(
    question: Question,
    frame: pd.DataFrame,
    persons: Ints | None,
    codes: Ints,
    vetoed: Mask,
    rules: Rules,
) -> dict[str, Floats]:
    """A contribution without noise.

    frame: all rows; persons: who each belongs to (None: each row is a person); codes: the cell of
    each row; vetoed: bool (cells,). Returns the arrays of `form` but ``left``.
    """
    inside, cells = codes != OUTSIDE, question.cells
    at = codes[inside]
    member, home = _members(at, None if persons is None else persons[inside])
    heads = np.bincount(home, minlength=cells).astype(float)
    arrays = {"parties": (heads > 0).astype(float), "vetoes": vetoed.astype(float)}
    if persons is not None:
        arrays["persons"] = heads
    for k, total in enumerate(question.totals):
        values = total.values(frame)[inside]
        arrays[f"total {k}"] = np.bincount(at, values, cells).astype(np.float64)
        if total != ROWS:
            found = _sensitivity(values, member, home, cells, rules)
            if len(total.columns) == 1 and any(total.centres):  # which is public, and so is the
                plain = total.model_copy(update={"centres": (0.0,)})  # sum around 0 with the rows
                own = plain.values(frame)[inside]
                found = np.maximum(found, _sensitivity(own, member, home, cells, rules))
            arrays[f"sensitivity {k}"] = _upwards(found)
    return arrays


def _sensitivity(values: Floats, member: Ints, home: Ints, cells: int, rules: Rules) -> Floats:
    """The sensitivity of a sum in each cell, of what each member adds to it."""
    each = np.bincount(member, np.abs(values), len(home)).astype(np.float64)
    return sensitivity(each, home, cells, rules)


def _members(at: Ints, persons: Ints | None) -> tuple[Ints, Ints]:
    """For each row its member, a person in a cell, and for each member its cell."""
    if persons is None:
        return np.arange(len(at)), at
    width = int(persons.max(initial=0)) + 1
    member, pairs = pd.factorize(at * width + persons)
    return member, np.asarray(pairs) // width


def _upwards(values: Floats) -> Floats:
    """Rounded up to the grid they travel on, and no lower than they can travel."""
    step = SENSITIVITY.resolution
    return np.maximum(np.ceil(values / step) * step, -SENSITIVITY.bound)


def bounds(total: Total, columns: Mapping[str, Column]) -> tuple[float, float]:
    """The least and the largest that one row may add, by the contract. Raises :class:`PolicyError`."""
    if total.kind == "count":
        return 0.0, 1.0
    ranges = []
    for name, centre in zip(total.columns, total.centres, strict=True):
        low, high = columns[name].minimum, columns[name].maximum
        if low is None or high is None:
            raise PolicyError(
                f"a noised sum of '{name}' needs a minimum and a maximum in the contract; "
                "values beyond them are clamped"
            )
        ranges.append((low - centre, high - centre))
    if len(ranges) == 1:
        return ranges[0]
    corners = [a * b for a in ranges[0] for b in ranges[1]]
    return min(corners), max(corners)


def step_of(total: Total, columns: Mapping[str, Column]) -> float:
    """The public grid that a noised total is made on."""
    return 1.0 if total.kind == "count" else grid(*bounds(total, columns))


def releases(question: Question, columns: Mapping[str, Column]) -> dict[int, Release]:
    """The noise of each total, by its place, for the question's epsilon as a whole."""
    assert question.noise is not None
    rows = question.noise.rows_per_person
    most = {
        str(k): sensitivity_of(rows, *bounds(total, columns), step_of(total, columns))
        for k, total in enumerate(question.totals)
    }
    planned = plan(question.noise, most)
    return {k: planned[str(k)] for k in range(len(question.totals))}


def added(at: Ints, values: Ints, cells: int) -> Ints:
    """Exact integer sums by cell."""
    totals = np.zeros(cells, dtype=np.int64)
    np.add.at(totals, at, values)
    return totals


# What is released of the totals. Hidden cells are 0 in every array, and 0 in "shown".


def release(question: Question, rules: Rules, totals: Sums) -> Sums:
    """The totals of the cells that may be shown."""
    names = [f"total {k}" for k in range(len(question.totals))]
    rows = totals[names[0]]
    hidden = (
        rows < rules.minimum_count.persons if question.noise else _hidden(question, rules, totals)
    )
    released = {"shown": (~hidden).astype(float)}
    if question.noise is None:
        persons = totals["persons" if question.person is not None else names[0]][~hidden]
        released |= {"left": totals["left"], "fewest": np.array([persons.min(initial=np.inf)])}
        released["fewest"][np.isinf(released["fewest"])] = 0.0
    for name, total in zip(names, question.totals, strict=True):
        values = rounded(totals[name], rules) if total.kind == "count" else totals[name]
        released[name] = np.where(hidden, 0.0, values)
    return _public(released)


def _hidden(question: Question, rules: Rules, totals: Sums) -> Mask:
    shape = question.shape or (1,)
    marked = [k for k, total in enumerate(question.totals) if total != ROWS]
    cells = Cells(
        persons=totals["persons" if question.person is not None else "total 0"].reshape(shape),
        parties=totals["parties"].reshape(shape),
        vetoes=np.zeros(shape),
        amounts={str(k): totals[f"total {k}"].reshape(shape) for k in marked},
        sensitivity={str(k): totals[f"sensitivity {k}"].reshape(shape) for k in marked},
    )
    vetoed = totals["vetoes"] > 0  # guarded by each party's history, against margins as well
    return suppressed(cells, rules).ravel() | vetoed


def release_flags(rules: Rules, totals: Sums) -> Sums:
    """Rows by broken rule; a rule that few rows or few parties break is not shown, none is 0."""
    rows, parties = totals["rows"], totals["parties"]
    shown = (rows >= rules.minimum_count.persons) & (parties >= rules.minimum_parties.parties)
    shown |= rows == 0
    return _public({"shown": shown.astype(float), "rows": np.where(shown, rows, 0.0)})


def release_drift(rules: Rules, totals: Sums) -> Sums:
    """The sum of all parties' indices, and how many parties are beyond each line."""
    if totals.total("parties") < rules.minimum_parties.parties:
        raise PolicyError("fewer parties have rows here than an answer needs")
    return _public(dict(totals.arrays))


def flagged(counts: Mapping[tuple[str, str], int]) -> dict[str, Floats]:
    """A contribution to a question about violations: rows by rule, whether the party has any."""
    rows = np.array([float(count) for count in counts.values()])
    return {"rows": rows, "parties": (rows > 0).astype(float)}


def flag_form(rules: int) -> Form:
    return {"rows": (rules, HEADS), "parties": (rules, FLAG)}


DRIFT_FORM: Form = dict.fromkeys(("index", *DRIFTS), (1, AMOUNT)) | {"parties": (1, FLAG)}


def drifted(index: float | None) -> dict[str, Floats]:
    """A contribution to a question about drift: a party's own stability index, None without rows."""
    beyond = {name: float(index is not None and index > line) for name, line in DRIFTS.items()}
    values: dict[str, Any] = {"index": index or 0.0, **beyond, "parties": float(index is not None)}
    return {name: np.array([value]) for name, value in values.items()}


def _public(arrays: dict[str, Floats]) -> Sums:
    """What is released: no rows are told, and the format no longer matters."""
    return Sums(arrays, dict.fromkeys(arrays, MOMENT), 0)
