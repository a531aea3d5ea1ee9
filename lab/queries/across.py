"""A question about a table that two sides would make together, as each side reads its part of it.

A cell is a place among the insurer's groups and a place among the fund's; a condition holds where each
side's part of it does. So all that is asked is a product of what one side knows of a row and what the
other knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.errors import PolicyError
from lab.privacy.query_audit import OUTSIDE
from lab.queries.questions import ROWS, Axis, Condition, Every, Question, Total, mentioned
from lab.sums import Floats

Ints = NDArray[np.int64]
Place = Literal["insurer", "fund"]
PLACES: tuple[Place, Place] = ("insurer", "fund")


@dataclass(frozen=True)
class AcrossSides:
    """A question and who holds its columns. Raises :class:`PolicyError` for what is no product."""

    question: Question
    owner: Callable[[str], Place]

    def __post_init__(self) -> None:
        if self.question.noise is not None:
            raise PolicyError("noise is not made across sides; ask without")
        _ = self._conditions
        for total in self.question.totals:
            if len(set(total.columns)) > 1:
                raise PolicyError(
                    f"a product of two columns ({', '.join(total.columns)}) is not asked across "
                    "sides; ask for sums, means and spreads of one"
                )

    @cached_property
    def _conditions(self) -> dict[Place, list[Condition]]:
        """Each side's parts of WHERE, all of which must hold."""
        found: dict[Place, list[Condition]] = {"insurer": [], "fund": []}
        for part in _parts(self.question.where):
            owners = {self.owner(column) for column in mentioned(part)}
            if len(owners) > 1:
                raise PolicyError(
                    "OR and NOT take columns of one side; between the sides there is AND: ask twice "
                    "and add"
                )
            found[owners.pop()].append(part)
        return found

    def _axes(self, place: Place) -> tuple[Axis, ...]:
        return tuple(a for a in self.question.axes if self.owner(a.column) == place)

    def size(self, place: Place) -> int:
        """A side's places."""
        return math.prod(axis.size for axis in self._axes(place))

    def codes(self, place: Place, frame: pd.DataFrame) -> Ints:
        """(rows,) the place of each of a side's rows among its groups, `OUTSIDE` for none."""
        parts = self._conditions[place]
        where = Every(of=tuple(parts)) if parts else None
        own = self.question.model_copy(
            update={"where": where, "axes": self._axes(place), "totals": (ROWS,)}
        )
        return own.codes(frame)

    def cell(self, ours: Ints, theirs: Ints) -> Ints:
        """The cell at a place of the insurer's groups and one of the fund's, `OUTSIDE` where either is."""
        inside = (ours != OUTSIDE) & (theirs != OUTSIDE)
        at = {
            place: dict(
                zip(
                    (axis.column for axis in self._axes(place)),
                    np.unravel_index(
                        np.where(inside, codes, 0),
                        [axis.size for axis in self._axes(place)] or [1],
                    ),
                    strict=False,
                )
            )
            for place, codes in zip(PLACES, (ours, theirs), strict=True)
        }
        cells = np.zeros(inside.shape, dtype=np.int64)
        for axis in self.question.axes:
            cells = cells * axis.size + at[self.owner(axis.column)][axis.column]
        return np.where(inside, cells, OUTSIDE)

    def amounts(self, place: Place) -> list[tuple[int, Total]]:
        """The totals of a side's columns, by their number in the question."""
        return [
            (k, total)
            for k, total in enumerate(self.question.totals)
            if total.columns and self.owner(total.columns[0]) == place
        ]

    def splits(self, nullable: Callable[[str], bool]) -> list[tuple[Place, str] | None]:
        """How totals split the cells: not at all, and by whether a column has a value."""
        columns = sorted({c for total in self.question.totals for c in total.columns})
        return [None, *((self.owner(c), c) for c in columns if nullable(c))]


def split_codes(
    codes: Ints, place: Place, split: tuple[Place, str] | None, frame: pd.DataFrame
) -> Ints:
    """(rows,) a side's places in one split: doubled at the side whose column may have no value."""
    if split is None or split[0] != place:
        return codes
    filled = frame[split[1]].notna().to_numpy()
    return np.where(codes == OUTSIDE, OUTSIDE, 2 * codes + ~filled)


def measures(total: Total, frame: pd.DataFrame) -> tuple[Floats, list[Floats]]:
    """(what each row adds to a total, its magnitudes: around the centre, and around 0)."""
    values = total.values(frame)
    sizes = [np.abs(values)]
    if any(total.centres):
        plain = total.model_copy(update={"centres": (0.0,) * len(total.columns)})
        sizes.append(np.abs(plain.values(frame)))
    return values, sizes


def magnitudes_of(total: Total) -> int:
    """How many magnitudes `measures` has."""
    return 2 if any(total.centres) else 1


def _parts(condition: Condition | None) -> Iterator[Condition]:
    """What must hold together."""
    match condition:
        case None:
            return
        case Every(of=parts):
            for part in parts:
                yield from _parts(part)
        case _:
            yield condition
