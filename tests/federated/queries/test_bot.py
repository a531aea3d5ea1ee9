"""A bot that asks thousands of questions to learn what one known person was paid.

It knows every attribute of everybody but the amounts, so it knows who is behind each cell it is
shown: what it learns is a system of linear equations with 0 and 1. That nothing follows from them
about fewer persons than the minimum is proved in exact numbers; without the history the same bot
finds the amount to the cent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lab.privacy.disclosure import Rules
from lab.privacy.query_audit import OUTSIDE
from lab.queries import cells
from lab.queries.query_table import QueryTable
from lab.queries.questions import (
    ROWS,
    Axis,
    Compare,
    Condition,
    Every,
    Not,
    OneOf,
    Question,
    Some,
    Total,
)
from lab.sums import combine
from lab.tables.contracts import Column, Contract
from tests.lab.privacy.test_query_audit import reduced

RULES = Rules.read()
LEAST = RULES.minimum_difference.persons
ASKED_UNDER = json.loads(RULES.model_dump_json())
#: Half a minute; more with $BOT_QUESTIONS.
QUESTIONS, TWIN = int(os.environ.get("BOT_QUESTIONS", "500")), 400
VICTIM = 0
REGIONS = ("north", "east", "south", "west")
AXES = (
    Axis(column="region", levels=REGIONS),
    Axis(column="plan", levels=(0.0, 1.0, 2.0, 3.0)),
    Axis(column="sex", levels=(0.0, 1.0)),
    Axis(column="age", edges=(20.0, 30.0, 40.0, 50.0, 59.0)),
    Axis(column="age", edges=(20.0, 40.0, 59.0)),
)
PAID = (ROWS, Total(kind="sum", columns=("paid",), centres=(0.0,)))
CLAIMS = Contract(
    name="claims",
    columns={
        "region": Column(type="category", levels=REGIONS),
        "plan": Column(type="integer"),
        "sex": Column(type="integer"),
        "age": Column(type="integer"),
        "paid": Column(type="number", role="target"),
    },
)
#: Vectors over all persons and what was paid to them, or None where the cell is hidden.
Shown = list[tuple[np.ndarray, float] | None]


def claims(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "region": pd.Categorical(rng.choice(REGIONS, rows, p=(0.4, 0.3, 0.2, 0.1)), REGIONS),
            "plan": rng.choice(4, rows, p=(0.4, 0.3, 0.2, 0.1)).astype(float),
            "sex": rng.integers(0, 2, rows).astype(float),
            "age": rng.integers(20, 59, rows).astype(float),
            "paid": np.round(rng.gamma(4.0, 300.0, rows), 2),
        }
    )


class Bot:
    """Asks, remembers every equation, and asks again around what it was shown."""

    def __init__(
        self, frames: list[pd.DataFrame], answer: Callable[[Question], tuple[Any, Any]], seed: int
    ) -> None:
        self.known = pd.concat(frames, ignore_index=True).drop(columns="paid")
        self.answer, self.rng = answer, np.random.default_rng(seed)
        self.filters: dict[bytes, Condition] = {}  # that were answered, by who is in them
        self.asked: list[Question] = []
        self.target = VICTIM
        everybody = np.ones(len(self.known), dtype=bool)
        self.equations = {everybody.tobytes(): (everybody, np.nan)}

    def person(self, row: int) -> Condition:
        """A filter that nobody but this person, and who is just like it, passes."""
        own = self.known.iloc[row]
        return Every(
            of=tuple(
                Compare(column=c, operation="=", value=v if isinstance(v, str) else float(v))
                for c, v in own.items()
            )
        )

    def simple(self) -> Condition:
        match self.rng.integers(4):
            case 0:
                some = self.rng.choice(REGIONS, self.rng.integers(1, 4), replace=False)
                return OneOf(column="region", values=tuple(map(str, some)))
            case 1:
                plan = float(self.rng.integers(4))
                return Compare(column="plan", operation="<=", value=plan)
            case 2:
                return Compare(column="sex", operation="=", value=float(self.rng.integers(2)))
        age, way = float(self.rng.integers(22, 58)), self.rng.choice(["<", ">="])
        return Compare(column="age", operation=way, value=age)

    def condition(self) -> Condition:
        """A filter: new, or around one that was answered."""
        if not self.filters or self.rng.random() < 0.3:
            return Every(of=tuple(self.simple() for _ in range(self.rng.integers(1, 4))))
        answered = list(self.filters.values())
        base, other = (answered[self.rng.integers(len(answered))] for _ in range(2))
        one = self.person(self.target if self.rng.random() < 0.7 else self._anybody())
        match self.rng.integers(6):
            case 0:
                return Every(of=(base, self.simple()))
            case 1:
                return Not(of=base)
            case 2:
                return Some(of=(base, other))
            case 3:
                return Every(of=(base, Not(of=other)))
            case 4:
                return Every(of=(base, Not(of=one)))
        return Some(of=(base, one))

    def _anybody(self) -> int:
        return int(self.rng.integers(len(self.known)))

    def question(self) -> Question:
        if self.asked and self.rng.random() < 0.05:
            return self.asked[self.rng.integers(len(self.asked))]
        where = self.condition() if self.rng.random() < 0.9 else None
        grouped = self.rng.choice([0, 1, 2], p=(0.7, 0.2, 0.1))
        picked = [AXES[k] for k in self.rng.permutation(len(AXES))[:grouped]]
        axes = tuple({axis.column: axis for axis in picked}.values())
        return Question(table="claims", where=where, axes=axes, totals=PAID)

    def ask(self, questions: int) -> None:
        for number in range(questions):
            question = self.question()
            shown, paid = self.answer(question)
            codes = question.codes(self.known)
            self.asked.append(question)
            if not question.axes and question.where is not None and shown[0]:
                self.filters.setdefault((codes == 0).tobytes(), question.where)
            for cell in np.flatnonzero(shown):
                inside = codes == cell
                old = self.equations.setdefault(inside.tobytes(), (inside, paid[cell]))[1]
                if old != pytest.approx(paid[cell]):  # the total was not known before
                    assert np.isnan(old), "the same cell has two amounts"
                    self.equations[inside.tobytes()] = (inside, paid[cell])
            if number % 100 == 99:  # turn to whoever is nearest to being told
                near = np.argsort(self.residuals())
                self.target = VICTIM if self.rng.random() < 0.5 else int(near[0])

    @property
    def vectors(self) -> np.ndarray:
        """bool (equations, persons)."""
        return np.array([vector for vector, _ in self.equations.values()])

    def residuals(self) -> np.ndarray:
        """How far each person alone is from every combination of equations: 0 is told, 1 unknown."""
        _, sizes, right = np.linalg.svd(self.vectors.astype(float), full_matrices=False)
        basis = right[sizes > 1e-9 * sizes[0]]
        return np.sqrt(np.clip(1.0 - (basis**2).sum(axis=0), 0.0, 1.0))

    def derived(self, person: int) -> float:
        """What follows for a person from all equations with an amount, NaN if nothing does."""
        told = [(v, paid) for v, paid in self.equations.values() if not np.isnan(paid)]
        vectors, paid = (np.array(part, dtype=float) for part in zip(*told, strict=True))
        unit = np.arange(vectors.shape[1]) == person
        weights = np.linalg.lstsq(vectors.T, unit.astype(float), rcond=None)[0]
        exact = np.abs(weights @ vectors - unit).max() < 1e-9
        return float(weights @ paid) if exact else np.nan


def lightest(vectors: np.ndarray, below: int) -> int | None:
    """Persons behind the combination that is about the fewest, if they are fewer than ``below``.

    In exact numbers and of all combinations: the smallest is 0 on as many independent columns as
    it can be. The heaviest columns come first, so few pivots can be in a light combination.
    """
    kinds, count = np.unique(vectors.astype(int), axis=1, return_counts=True)
    order = np.argsort(-count)
    kinds, count = kinds[:, order], count[order].tolist()
    rows, pivots = reduced(kinds)
    light = [k for k, pivot in enumerate(pivots) if count[pivot] < below]
    rest = [j for j in range(kinds.shape[1]) if j not in pivots]
    found = below
    for size in range(1, len(light) + 1):
        for chosen in combinations(light, size):
            held = sum(count[pivots[k]] for k in chosen)
            if held >= found:
                continue
            for zeros in combinations(rest, size - 1):
                weights = _null([[rows[k][j] for k in chosen] for j in zeros], size)
                if weights is None or not all(weights):
                    continue
                on = [
                    sum(w * rows[k][j] for w, k in zip(weights, chosen, strict=True)) for j in rest
                ]
                found = min(found, held + sum(count[j] for j, v in zip(rest, on, strict=True) if v))
    return found if found < below else None


def _null(equations: list[list[Fraction]], size: int) -> list[Fraction] | None:
    """The one solution, up to its length, of one equation less than there are unknowns."""
    if not equations:
        return [Fraction(1)]
    rows, pivots = reduced(np.array(equations, dtype=object))
    if len(pivots) < size - 1:
        return None
    (free,) = set(range(size)) - set(pivots)
    weights = [Fraction(0)] * size
    weights[free] = Fraction(1)
    for row, pivot in zip(rows, pivots, strict=True):
        weights[pivot] = -row[free]
    return weights


def owners(frames: list[pd.DataFrame]) -> np.ndarray:
    return np.repeat(np.arange(len(frames)), [len(frame) for frame in frames])


@pytest.fixture
def frames() -> list[pd.DataFrame]:
    rng = np.random.default_rng(7)
    parties = [claims(rng, rows) for rows in (64, 80, 100)]
    parties[0].loc[VICTIM, "age"] = 59.0  # nobody else is, so that a filter can be about the victim
    return parties


@pytest.mark.slow
def test_a_bot_learns_nothing_of_fewer_persons_than_the_minimum(frames: list[pd.DataFrame]) -> None:
    parties = [QueryTable(frame, CLAIMS, RULES) for frame in frames]

    def answer(question: Question) -> tuple[Any, Any]:
        asked = {"question": json.loads(question.model_dump_json()), "rules": ASKED_UNDER}
        total = combine([party.answer(asked) for party in parties])
        released = cells.release(question, RULES, total)
        return released["shown"] > 0, released["total 1"]

    bot, owner, paid = Bot(frames, answer, 1), owners(frames), pd.concat(frames)["paid"].to_numpy()
    bot.ask(QUESTIONS)
    told = [(vector, amount) for vector, amount in bot.equations.values() if not np.isnan(amount)]
    assert len(told) >= 4, "a bot that is shown nothing proves nothing"
    for vector, amount in told:
        assert amount == pytest.approx(paid[vector].sum())

    assert np.isnan(bot.derived(VICTIM))
    assert bot.residuals().min() > 0.5
    assert lightest(bot.vectors, LEAST) is None
    for party in range(len(frames)):
        own = bot.vectors[:, owner == party].astype(int)
        assert lightest(own, LEAST) is None
        for one, two in combinations(own, 2):
            differ = int((one != two).sum())
            assert differ == 0 or differ >= LEAST


@pytest.mark.slow
def test_without_the_history_the_same_bot_learns_the_amount(frames: list[pd.DataFrame]) -> None:
    whole = pd.concat(frames, ignore_index=True)

    def answer(question: Question) -> tuple[Any, Any]:
        codes = question.codes(whole)
        inside = codes != OUTSIDE
        count = np.bincount(codes[inside], minlength=question.cells)
        paid = np.bincount(codes[inside], whole["paid"][inside], question.cells)
        return count >= RULES.minimum_count.persons, paid

    bot = Bot(frames, answer, 1)
    bot.ask(TWIN)
    assert bot.derived(VICTIM) == pytest.approx(frames[0]["paid"].iloc[VICTIM], abs=1e-6)
    assert bot.residuals()[VICTIM] < 1e-6


def test_contributions_are_added_whoever_has_no_rows(frames: list[pd.DataFrame]) -> None:
    parties = [QueryTable(frame, CLAIMS, RULES) for frame in frames]
    old = Compare(column="age", operation=">", value=99.0)
    young = Compare(column="age", operation="<", value=99.0)
    only_elsewhere = [old, young, young]
    parts = [
        party.answer(
            {
                "question": json.loads(
                    Question(table="claims", where=where, totals=PAID).model_dump_json()
                ),
                "rules": ASKED_UNDER,
            }
        )
        for party, where in zip(parties, only_elsewhere, strict=True)
    ]
    total = combine(parts)
    assert total["total 1"][0] == pytest.approx(sum(f["paid"].sum() for f in frames[1:]))


def test_the_lightest_combination_is_found() -> None:
    cells_of = np.array([[1] * 12 + [0] * 8, [0] * 8 + [1] * 12, [1] * 20], dtype=bool)
    assert lightest(cells_of, 20) == 4  # what is in both: the first and the second less all
    assert lightest(cells_of, 4) is None
    assert lightest(cells_of[:2], 20) == 12
