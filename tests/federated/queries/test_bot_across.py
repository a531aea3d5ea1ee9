"""A bot that asks across an insurer and the fund: nothing follows about fewer persons than the minimum.

It knows every attribute of everybody at both sides, so that each cell it is shown is an equation of 0
and 1 over the persons that both sides know, of whom neither side knows all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from federated.queries.desk import Desk
from federated.study.experiment import Experiment
from lab.errors import PolicyError
from lab.privacy.disclosure import RULES, Rules
from lab.queries.questions import Axis, Compare, Condition, Every, Not, OneOf, Question
from tests.federated.queries.test_bot import lightest

BOTH, OURS, THEIRS, QUESTIONS = 130, 40, 60, 60
LEAST = Rules.read().minimum_difference.persons
REGIONS, PLANS = ("east", "north", "west"), ("a", "b", "c")
GROUPS = (Axis(column="region", levels=REGIONS), Axis(column="plan", levels=PLANS))


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    rng, n = np.random.default_rng(3), BOTH + OURS + THEIRS
    whole = pd.DataFrame(
        {
            "id": rng.permutation(n),
            "region": rng.choice(REGIONS, n, p=(0.5, 0.3, 0.2)),
            "age": rng.integers(20, 60, n),
            "plan": rng.choice(PLANS, n, p=(0.5, 0.3, 0.2)),
            "visits": rng.integers(0, 9, n),
        }
    )
    own = whole[["id", "region", "age"]].iloc[: BOTH + OURS]
    return own, whole[["id", "plan", "visits"]].drop(index=range(BOTH, BOTH + OURS))


def desk_of(folder: Path, rules: str) -> Desk:
    own, fund = frames()
    own.to_csv(folder / "own.csv", index=False)
    fund.to_csv(folder / "fund.csv", index=False)
    (folder / "rules.toml").write_text(rules)
    blocks = [
        {"role": role, "path": str(folder / file), "key": "id"}
        for role, file in (("insurer", "own.csv"), ("fund", "fund.csv"))
    ]
    values = {"name": "bot", "data": {"target": ""}, "joined": blocks, "model": {"kind": "glm"}}
    hiding = {"sums": "clear", "disclosure": str(folder / "rules.toml")}
    return Desk.on(Experiment.model_validate(values | {"protection": hiding}), runs=None)


def condition(rng: np.random.Generator) -> Condition:
    """Of one side's columns, or of one person's alone."""
    parts: tuple[Condition, ...] = (
        OneOf(column="region", values=tuple(rng.choice(REGIONS, rng.integers(1, 3), False))),
        Compare(column="age", operation="<", value=float(rng.integers(25, 60))),
        Not(of=Compare(column="age", operation="=", value=float(rng.integers(20, 60)))),
        Compare(column="plan", operation="<>", value=str(rng.choice(PLANS))),
        Compare(column="visits", operation="<=", value=float(rng.integers(1, 9))),
    )
    return parts[rng.integers(len(parts))]


def equations(desk: Desk) -> np.ndarray:
    """bool (cells shown, persons of both sides), and all of them."""
    own, fund = frames()
    known = own.merge(fund, on="id").astype({"region": "category", "plan": "category"})
    rng, found = np.random.default_rng(4), [np.ones(len(known), dtype=bool)]
    for _ in range(QUESTIONS):
        where = tuple(condition(rng) for _ in range(rng.integers(0, 3)))
        axes = tuple(axis for axis in GROUPS if rng.random() < 0.35)
        asked = Every(of=where) if where else None
        question = Question(table=desk.contract.name, where=asked, axes=axes)
        try:
            shown, (counts,) = desk.totals(question)
        except PolicyError as refusal:
            assert refusal.rule == "kinds"
            continue
        codes = question.codes(known)
        for cell in np.flatnonzero(shown):
            assert counts[cell] == (codes == cell).sum()
            found.append(codes == cell)
    return np.unique(np.array(found), axis=0)


@pytest.mark.slow
def test_a_bot_learns_nothing_of_fewer_persons_than_the_minimum_across_sides(tmp_path):
    with desk_of(tmp_path, RULES.read_text()) as desk:
        vectors = equations(desk)
    assert len(vectors) >= 6, "a bot that is shown nothing proves nothing"
    assert lightest(vectors, LEAST) is None


@pytest.mark.slow
def test_without_the_history_the_same_bot_is_told_of_few(tmp_path):
    whole = RULES.read_text()
    at = whole.index("[minimum_difference]")
    forgetful = whole[:at] + whole[at:].replace("persons = 10", "persons = 1", 1)
    with desk_of(tmp_path, forgetful) as desk:
        vectors = equations(desk)
    differences = {int((one != two).sum()) for one in vectors for two in vectors}
    assert min(differences - {0}) < LEAST
