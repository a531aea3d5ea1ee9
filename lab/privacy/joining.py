"""Cells of a model's scores that stand on few persons are joined before anybody sees them.

The rule is public and looks at the numbers of persons alone: neighbours in an order are joined until
each cell has enough; levels without an order that have too few become one level, :data:`RARE`, with
the next smallest ones if it needs them. Persons are distinct within a party: a person at two
parties counts twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.sums import Floats, Sums

Indices = NDArray[np.int64]
#: The one level for all that stand on too few persons, or whose names no party announces.
RARE = "(rare)"
#: The arrays that carry the persons behind each cell, and the parties that have any of them.
PERSONS, PARTIES = "persons", "parties"
#: Numbers of units from one party to the next, where rows of several parties are in one place.
HOME = 2.0**32
#: What persons of too few parties count for: more than nobody, and never enough.
HARDLY = 2.0**-24


class Least(NamedTuple):
    """The fewest persons, and the fewest parties, that a cell stands on which is told."""

    persons: int
    parties: int


#: What a party keeps to towards itself.
NO_RULE = Least(1, 1)


@dataclass(frozen=True)
class Opened:
    """How many numbers of a statistic, or made of it, were told to others than whoever opens totals.

    fewest_persons: behind the smallest cell among them; None where all stand on all rows.
    """

    statistic: str
    numbers: int
    fewest_persons: int | None = None

    @classmethod
    def cells(cls, statistic: str, numbers: int, persons: Floats) -> Opened:
        """Of cells with these persons; empty ones tell of nobody."""
        filled = persons[persons > 0]
        return cls(statistic, numbers, int(filled.min()) if len(filled) else None)


def by_statistic(openings: Iterable[Opened]) -> list[Opened]:
    """One line for each statistic, in order of their names."""
    lines: dict[str, Opened] = {}
    for one in openings:
        before = lines.get(one.statistic, Opened(one.statistic, 0))
        fewest = [n for n in (before.fewest_persons, one.fewest_persons) if n is not None]
        numbers = before.numbers + one.numbers
        lines[one.statistic] = Opened(one.statistic, numbers, min(fewest, default=None))
    return [lines[name] for name in sorted(lines)]


def persons_by(group: Indices, unit: Floats, count: int) -> Floats:
    """(count,) distinct units in each group. group, unit: (rows,)."""
    names, unit_code = np.unique(unit, return_inverse=True)
    width = max(len(names), 1)
    pairs = np.unique(group.astype(np.int64) * width + unit_code)
    return np.bincount(pairs // width, minlength=count).astype(np.float64)


def behind(group: Indices, unit: Floats, count: int) -> dict[str, Floats]:
    """(count,) persons and parties behind each group. unit: (rows,) of persons, :data:`HOME` apart from
    party to party."""
    home = np.floor(unit / HOME)
    return {PERSONS: persons_by(group, unit, count), PARTIES: persons_by(group, home, count)}


def by_parties(sums: Sums, parties: int) -> Floats:
    """(cells,) the persons behind each cell, as far as they are of so many parties: those of fewer
    count for nothing, whatever they are joined with."""
    persons = sums[PERSONS]
    if parties <= 1:
        return persons
    few = (persons > 0) & (sums[PARTIES] < parties)
    return np.where(few, HARDLY, persons)


def in_order(persons: Floats, least: int) -> Indices:
    """(cells,) the joined cell of each: neighbours until ``least`` persons are reached; what is
    left at the end goes to the last one.

    >>> in_order(np.array([3.0, 8, 0, 20, 2]), 10).tolist()
    [0, 0, 1, 1, 1]
    """
    group, at, behind = np.empty(len(persons), dtype=np.int64), 0, 0.0
    for k, number in enumerate(persons):
        if behind >= least:
            at, behind = at + 1, 0.0
        group[k] = at
        behind += number
    if behind < least and at:
        group[group == at] = at - 1
    return group


def of_levels(persons: Floats, names: Sequence[str], least: int) -> tuple[Indices, tuple[str, ...]]:
    """(levels,) the joined level of each, and the names of those that are left; levels of nobody
    are left out of the joining and keep their names.

    >>> of_levels(np.array([30.0, 4, 12, 3]), ["a", "b", "c", "d"], 10)
    (array([0, 1, 1, 1]), ('a', '(rare)'))
    """
    few = (persons > 0) & (persons < least)
    few |= few.any() & (np.array(names, dtype=object) == RARE)
    for level in np.argsort(persons, kind="stable"):
        if not few.any() or persons[few].sum() >= least:
            break
        few[level] |= persons[level] > 0
    if not few.any():
        return np.arange(len(names)), tuple(names)
    frequent = np.flatnonzero(~few)
    group = np.full(len(names), len(frequent), dtype=np.int64)
    group[frequent] = np.arange(len(frequent))
    return group, (*(names[int(k)] for k in frequent), RARE)


def apply(sums: Sums, group: Indices) -> Sums:
    """Sums whose arrays have one number for each cell along their last axis, joined; how many
    parties are behind a joined cell nobody knows."""
    count = int(group.max(initial=-1)) + 1
    arrays = {}
    for name, array in sums.arrays.items():
        if name == PARTIES:
            continue
        total = np.zeros((count, *array.shape[:-1]))
        np.add.at(total, group, np.moveaxis(array, -1, 0))
        arrays[name] = np.moveaxis(total, 0, -1)
    return Sums(arrays, {name: sums.limits[name] for name in arrays}, sums.rows)
