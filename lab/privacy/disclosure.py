"""Statistical disclosure control: which cells of a table of totals a rule forbids to show.

The table is the sum over parties of what each sent hidden: persons in a cell, 1 if it has any, a
veto, amounts, and the *sensitivity* of each amount. A cell is **primary** when a rule of the rules
file forbids it by itself; which others are hidden for its sake is `lab.privacy.suppression`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lab.records import Strict, parse, read_toml
from lab.sums import Floats

Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]

RULES = Path(__file__).with_name("disclosure.toml")


class Rule(Strict):
    """``source``: the office or the paper that the rule and its value are taken from."""

    source: str = Field(min_length=1)


class MinimumPersons(Rule):
    persons: int = Field(ge=1)


class MinimumParties(Rule):
    parties: int = Field(ge=1)


class Dominance(Rule):
    """(n,k): sensitive when the ``largest`` persons hold more than ``percent`` of an amount."""

    largest: int = Field(ge=1)
    percent: float = Field(gt=0, lt=100)


class PPercent(Rule):
    """p%: sensitive when the second largest can tell the largest amount to within ``percent``."""

    percent: float = Field(gt=0, le=100)


class Rounding(Rule):
    base: int = Field(ge=1)


class Rules(Strict):
    """The rules of a rules file; an absent concentration rule is off. Equal files, equal hash."""

    minimum_count: MinimumPersons
    minimum_parties: MinimumParties
    minimum_difference: MinimumPersons
    dominance: Dominance | None = None
    p_percent: PPercent | None = None
    rounding: Rounding

    @classmethod
    def read(cls, path: Path | None = None) -> Rules:
        """Read a rules file, the shipped one for None; ConfigurationError lists every mistake."""
        path = path or RULES
        return parse(cls, read_toml(path), where=str(path))

    def of_joined_sides(self) -> Rules:
        """These for a table that two sides make together, which are one party: who holds an amount
        learns its sums over groups of the other side's, which is what is asked."""
        source = "an insurer and the fund are one party, whose persons are common to both"
        one = MinimumParties(source=source, parties=1)
        return self.model_copy(update={"minimum_parties": one})

    @classmethod
    def of_own_rows(cls) -> Rules:
        """What a party may see of its own rows: everything."""
        source = "a party's own rows"
        least = MinimumPersons(source=source, persons=1)
        return cls(
            minimum_count=least,
            minimum_parties=MinimumParties(source=source, parties=1),
            minimum_difference=least,
            rounding=Rounding(source=source, base=1),
        )


def words(rules: Rules) -> str:
    """One line for the reader: which rules were applied.

    The parameters of concentration rules are told to nobody who reads tables, because with them a
    hidden amount can be bounded (Handbook on Statistical Disclosure Control, ESSnet, section 4.2).
    """
    clauses = [f"at least {rules.minimum_count.persons} persons"]
    if rules.minimum_parties.parties > 1:
        clauses.append(f"at least {rules.minimum_parties.parties} parties")
    if rules.dominance or rules.p_percent:
        clauses.append("no person's amount can be estimated closely")
    clauses.append(
        "nothing that falls short follows from margins, nor anything of few from all answers"
    )
    rounding = f"; counts are multiples of {rules.rounding.base}" if rules.rounding.base > 1 else ""
    return f"Shown where: {', '.join(clauses)}; empty cells are hidden{rounding}."


def sensitivity(contributions: Floats, cell: Indices, cells: int, rules: Rules) -> Floats:
    """One party's sensitivity of each cell: above 0 is unsafe, 0 where nothing is contributed.

    ``contributions``: float64[k], the absolute amount of one person in one cell each; ``cell``:
    int64[k], which cell; returns float64[cells] in units of the amount. With x1 >= x2 >= ... and
    the total X, p%: x1 - 100/p (X - x1 - x2), (n,k): x1 + ... + xn - k/(100-k) (X - x1 - ... - xn);
    the larger of the rules in force, 0 with none.

    Both are sums of the ordered contributions with weights that never rise, hence subadditive,
    S(A u B) <= S(A) + S(B) for disjoint A and B, and so is their maximum (Cox, J. Stat. Plan.
    Inference 5, 1981). So when the parties' numbers add up to 0 or less, the cell of all their
    persons is safe, and no party has shown who its largest are. The converse does not hold: a sum
    above 0 may belong to a safe cell.
    """
    # 1. The contributions of each cell side by side, the largest first, and their ranks.
    order = np.argsort(-contributions)
    order = order[np.argsort(cell[order], kind="stable")]
    value, cell = contributions[order], cell[order]
    rank = np.arange(len(cell)) - np.searchsorted(cell, cell)

    # 2. Sums by rank, weighted as each rule says.
    def total(mask: Bools) -> Floats:
        return np.asarray(np.bincount(cell[mask], value[mask], minlength=cells), dtype=float)

    measures = []
    if rules.p_percent:
        measures.append(total(rank < 1) - 100 / rules.p_percent.percent * total(rank >= 2))
    if rules.dominance:
        n, k = rules.dominance.largest, rules.dominance.percent
        measures.append(total(rank < n) - k / (100 - k) * total(rank >= n))
    return np.max(measures, axis=0) if measures else np.zeros(cells)


def sensitivity_bound(classes: Floats, ends: Floats, total: Floats, rules: Rules) -> Floats:
    """No less than `sensitivity`, where only classes of the contributions are known.

    classes: (classes, cells) how many contributions of a cell are in each class, the largest first;
    ends: (classes,) no contribution of a class is larger; total: (cells,) the sum of all. A sensitivity
    rises with each of the largest contributions, so it is taken as if they were at their classes' ends.
    """

    def largest(count: int) -> Floats:
        """The most that so many contributions of a cell can come to."""
        taken = np.minimum(np.cumsum(classes, axis=0), count)
        return np.minimum(np.diff(taken, axis=0, prepend=0.0).T @ ends, total)

    bounds = []
    if rules.p_percent:
        bounds.append(largest(1) - 100 / rules.p_percent.percent * (total - largest(2)))
    if rules.dominance:
        n, k = rules.dominance.largest, rules.dominance.percent
        bounds.append(largest(n) - k / (100 - k) * (total - largest(n)))
    return np.max(bounds, axis=0) if bounds else np.zeros_like(total)


def rounded(values: Floats, rules: Rules) -> Floats:
    """Counts as the nearest multiple of the base, ties away from zero. For counts only."""
    base = rules.rounding.base
    return np.asarray(np.copysign(np.floor(np.abs(values) / base + 0.5) * base, values))


@dataclass(frozen=True)
class Cells:
    """Totals of one table over all parties, every array of the same shape.

    ``persons``; ``parties``: how many have anybody there; ``vetoes``: how many forbid the cell;
    ``amounts`` by name, ``sensitivity`` by the same names. ValueError where shapes differ.
    """

    persons: Floats
    parties: Floats
    vetoes: Floats
    amounts: Mapping[str, Floats]
    sensitivity: Mapping[str, Floats]

    def __post_init__(self) -> None:
        measures = [*self.amounts.values(), *self.sensitivity.values()]
        if {array.shape for array in (self.parties, self.vetoes, *measures)} != {
            self.persons.shape
        }:
            raise ValueError("cells of different shape")
        if self.persons.ndim > 3:
            raise ValueError(f"a table has at most 3 grouping columns, not {self.persons.ndim}")

    def each(self, change: Callable[[Floats], Floats]) -> Cells:
        """The same change made to every array."""
        return Cells(
            change(self.persons),
            change(self.parties),
            change(self.vetoes),
            {name: change(array) for name, array in self.amounts.items()},
            {name: change(array) for name, array in self.sensitivity.items()},
        )


def primary(cells: Cells, rules: Rules) -> Bools:
    """Cells with persons that a rule forbids by themselves, bool of the table's shape."""
    forbidden = (
        (cells.persons < rules.minimum_count.persons)
        | (cells.parties < rules.minimum_parties.parties)
        | (cells.vetoes > 0)
    )
    for measure in cells.sensitivity.values():
        forbidden |= measure > 0
    return forbidden & (cells.persons > 0)
