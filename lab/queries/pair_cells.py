"""What each side takes from its rows for a question across two sides, and what their totals say.

A kind of rows is all of a side's that stand in the same places of every question so far. How many persons
are of an insurer's kind and of a fund's kind together is a product of indicators, an amount by cell one
of amounts with indicators. From the first follow the rows of every cell and what `lab.privacy.query_audit`
needs to know; from how many persons' amounts are in each class, by size, whether one dominates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from lab.errors import PolicyError
from lab.privacy.disclosure import Rules, sensitivity_bound
from lab.privacy.history import CellParts, TableRows
from lab.privacy.query_audit import OUTSIDE
from lab.queries.across import (
    PLACES,
    AcrossSides,
    Ints,
    Place,
    magnitudes_of,
    measures,
    split_codes,
)
from lab.queries.questions import Question
from lab.records import Strict
from lab.sums import COUNT, Floats, Sums

#: Kinds of a side's rows that questions may tell apart, in all.
MOST_KINDS = 256
#: Classes of amounts by size, and how much smaller each is than the one before.
CLASSES, STEP = 16, 2.0**-0.5
#: What is added to the binary exponent of a largest amount, so that none is below 1.
EXPONENT = 1100


class OfPairKinds(Strict):
    """questions: all that joined sides answered so far, and the one that is asked; nullable: columns
    that may be empty."""

    questions: tuple[Question, ...] = Field(min_length=1)
    nullable: tuple[str, ...]


class OfPairCells(OfPairKinds):
    """kinds: room for the insurer's kinds of rows and for the fund's."""

    kinds: tuple[int, int]


@dataclass(frozen=True)
class AskedOfPair:
    """All questions that a pair answered and the one that is asked, which is the last.

    nullable: columns that may be empty; owner: who holds a column. Raises :class:`PolicyError` for a
    question that is no product of what each side knows."""

    asked: tuple[Question, ...]
    nullable: tuple[str, ...]
    owner: Callable[[str], Place]

    def __post_init__(self) -> None:
        _ = self.questions

    @property
    def arguments(self) -> dict[str, Any]:
        """As the sides are asked."""
        questions = [question.model_dump(mode="json") for question in self.asked]
        return {"questions": questions, "nullable": list(self.nullable)}

    @cached_property
    def questions(self) -> tuple[AcrossSides, ...]:
        return tuple(AcrossSides(question, self.owner) for question in self.asked)

    @property
    def now(self) -> AcrossSides:
        """The question that is asked."""
        return self.questions[-1]

    @property
    def columns(self) -> list[str]:
        """All that was asked about."""
        return sorted(set().union(*(question.columns for question in self.asked)))

    @property
    def splits(self) -> list[tuple[AcrossSides, tuple[Place, str] | None]]:
        """Every question with each of its splits."""
        may_be_empty = frozenset(self.nullable).__contains__
        return [(each, split) for each in self.questions for split in each.splits(may_be_empty)]

    @property
    def magnitudes(self) -> dict[Place, list[int]]:
        """Which of the magnitudes of the question's totals are of whose columns."""
        found: dict[Place, list[int]] = {"insurer": [], "fund": []}
        at = 0
        for total in self.now.question.totals:
            for _ in range(magnitudes_of(total)):
                if total.columns:
                    found[self.owner(total.columns[0])].append(at)
                at += 1
        return found

    def columns_added(self, place: Place) -> int:
        """What is added up of a side's amounts in each of its places."""
        own = [total for _, total in self.now.amounts(place)]
        return sum(1 + (1 + CLASSES) * magnitudes_of(total) for total in own)


# What a side takes from its rows.


def kinds(pair: AskedOfPair, place: Place, frame: pd.DataFrame) -> tuple[Ints, Ints]:
    """((kinds, splits) the places of each kind of a side's rows, (rows,) the kind of each row).

    Raises :class:`PolicyError` for a column that is empty where none may be, and for more kinds than a
    side lets questions tell apart."""
    for column in pair.columns:
        if column in frame and column not in pair.nullable and frame[column].isna().any():
            raise PolicyError(f"'{column}' is empty in rows of this side, which no contract allows")
    codes = [
        split_codes(question.codes(place, frame), place, split, frame)
        for question, split in pair.splits
    ]
    table, kind = np.unique(np.column_stack(codes), axis=0, return_inverse=True)
    if len(table) > MOST_KINDS:
        raise PolicyError(
            f"with this question all that were asked tell rows of this side apart in {len(table):,} "
            f"ways, and it lets them tell {MOST_KINDS} apart; ask with fewer groups",
            "kinds",
        )
    return table, kind.ravel()


def own_word(pair: AskedOfPair, place: Place, frame: pd.DataFrame, persons: pd.Series) -> Sums:
    """What a side says of itself, 0 where it is the other's: its kinds, how large its amounts are to a
    power of two, digests of whom it has and of its columns, and which columns it holds.

    persons: (rows,) who each row is."""
    at, (table, _) = PLACES.index(place), kinds(pair, place, frame)
    codes = np.zeros((len(PLACES), MOST_KINDS, table.shape[1]))
    codes[at, : len(table)] = table + 2  # 0: there is no such kind, 1: in no place
    reach = np.zeros(sum(magnitudes_of(total) for total in pair.now.question.totals))
    sizes = (s for _, total in pair.now.amounts(place) for s in measures(total, frame)[1])
    for k, size in zip(pair.magnitudes[place], sizes, strict=True):
        reach[k] = _exponent(size) + EXPONENT
    state = np.zeros(len(PLACES) + len(pair.columns))
    state[at] = _digest(persons.to_frame("person"))
    for k, column in enumerate(pair.columns, len(PLACES)):
        if column in frame:
            state[k] = _digest(pd.DataFrame({"person": persons, "value": frame[column]}))
    held = np.array([float(column in frame) for column in pair.columns] or [1.0])
    told = {"codes": codes, "reach": reach, "state": state, "held": held}
    return Sums(told, dict.fromkeys(told, COUNT), 0)


def _exponent(size: Floats) -> int:
    """A power of two that all magnitudes are below."""
    return int(np.frexp(size.max(initial=0.0))[1])


def _digest(frame: pd.DataFrame) -> float:
    """39 bits of a digest of a table, in whatever order its rows are."""
    rows = np.sort(TableRows.of(frame, None).key).astype("<u8").tobytes()
    return float(int.from_bytes(hashlib.sha256(rows).digest()[:5], "big") >> 1)


def side_columns(
    pair: AskedOfPair, place: Place, frame: pd.DataFrame, room: int
) -> dict[str, Floats]:
    """A side's columns by group: which kind a row is of, amounts in its places, the places themselves
    where the other side has amounts. room: for kinds."""
    _, kind = kinds(pair, place, frame)
    if kind.max(initial=0) >= room:
        raise PolicyError("this side has more kinds of rows than there is room for")
    inside = pair.now.codes(place, frame)[:, None] == np.arange(pair.now.size(place))
    added = [np.zeros((len(frame), 0))]
    for _, total in pair.now.amounts(place):
        values, sizes = measures(total, frame)
        added.append(inside * values[:, None])
        for size in sizes:
            added += [inside * part[:, None] for part in (size, *_by_class(size))]
    wanted = pair.columns_added(PLACES[1 - PLACES.index(place)]) > 0
    return {
        "kinds": np.asarray(kind[:, None] == np.arange(room), dtype=np.float64),
        "amounts": np.hstack(added),
        "places": inside.astype(np.float64) if wanted else np.zeros((len(frame), 0)),
    }


def widths_of(pair: AskedOfPair, place: Place, room: int) -> dict[str, int]:
    """The columns in each group of `side_columns`."""
    size, own = pair.now.size(place), pair.columns_added(place)
    theirs = pair.columns_added(PLACES[1 - PLACES.index(place)])
    return {"kinds": room, "amounts": size * own, "places": size * (theirs > 0)}


def _ends(exponent: float) -> Floats:
    """(classes,) the largest magnitude of each class, by the exponent of the largest of all."""
    return np.asarray(2.0**exponent * STEP ** np.arange(CLASSES))


def _by_class(size: Floats) -> list[Floats]:
    """Whether each row's magnitude is in each class, the largest first."""
    ends = np.append(_ends(_exponent(size)), 0.0)
    return [((size > ends[k + 1]) & (size <= ends[k])).astype(np.float64) for k in range(CLASSES)]


# What totals say.


def room_of(word: Sums) -> tuple[int, int]:
    """Room for each side's kinds, the next power of two. word: of both sides, added."""
    ours, theirs = (int(n) for n in (word["codes"][:, :, 0] > 0).sum(axis=1))
    return 1 << (ours - 1).bit_length(), 1 << (theirs - 1).bit_length()


def persons_of(pair: AskedOfPair, word: Sums, persons: Floats) -> tuple[list[list[CellParts]], int]:
    """(the parts of every question's cells in each of its splits, over persons numbered by kind; how
    many persons). persons: by an insurer's kind and a fund's."""
    codes = word["codes"].astype(np.int64) - 2
    count = np.rint(persons).astype(np.int64).reshape(room_of(word))
    ours, theirs = np.nonzero(count)
    each = count[ours, theirs]
    found: list[list[CellParts]] = []
    for at, (question, split) in enumerate(pair.splits):
        places = {"insurer": codes[0, ours, at], "fund": codes[1, theirs, at]}
        if split is None:
            found.append([])
            half, width = np.zeros_like(each), 1
        else:
            own, width = places[split[0]], 2
            half = np.where(own == OUTSIDE, 0, own % 2)
            places[split[0]] = np.where(own == OUTSIDE, OUTSIDE, own // 2)
        cell = question.cell(places["insurer"], places["fund"])
        part = np.where(cell == OUTSIDE, OUTSIDE, cell * width + half)
        of = np.repeat(np.arange(question.question.cells), width)
        found[-1].append(CellParts(np.repeat(part, each), of))
    return found, int(each.sum())


def amounts_of(
    pair: AskedOfPair, place: Place, word: Sums, opened: Floats, rules: Rules
) -> Mapping[str, Floats]:
    """Totals of a side's columns and their sensitivities, by their names in an answer.

    opened: of one side's amounts, in its places and the other's."""
    now, other = pair.now, PLACES[1 - PLACES.index(place)]
    own, theirs = now.size(place), now.size(other)
    wanted = now.amounts(place)
    if not wanted:
        return {}
    matrix = opened.reshape(-1, theirs) if place == "insurer" else opened.reshape(theirs, -1).T
    at, across = (axis.ravel() for axis in np.indices((own, theirs)))
    to = now.cell(at, across) if place == "insurer" else now.cell(across, at)
    blocks = iter(np.split(matrix, len(matrix) // own))

    def by_cell() -> Floats:
        values = np.zeros(own * theirs)
        values[to] = next(blocks).ravel()
        return values

    arrays, reach = {}, iter(word["reach"][pair.magnitudes[place]] - EXPONENT)
    for k, total in wanted:
        arrays[f"total {k}"], bounds = by_cell(), []
        for _ in range(magnitudes_of(total)):
            size, classes = by_cell(), np.rint([by_cell() for _ in range(CLASSES)])
            bounds.append(sensitivity_bound(classes, _ends(next(reach)), size, rules))
        arrays[f"sensitivity {k}"] = np.max(bounds, axis=0)
    return arrays
