"""Units rescale a model and change nothing else: of target, exposure, weight and numeric features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated.solvers import network, trees
from federated.solvers.encoding import agree
from lab.models.design import Feature
from lab.models.families import FamilyName
from lab.models.glm import Task
from lab.tables.contracts import Contract, draft
from tests.conftest import federate, fit_glm, split

FACTORS = (1e-9, 1e-6, 1 / 3, 7.0, 1000.0, 1e6)
FEATURES = ("age", "deductible", "clinic")
#: Families, and whether their targets have a unit that is free.
FAMILIES: dict[FamilyName, bool] = {
    "gaussian": True,
    "gamma": True,
    "tweedie": True,
    "poisson": False,
    "binomial": False,
}


def table(family: str, rows: int = 600) -> pd.DataFrame:
    rng = np.random.default_rng(11)
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 80, rows).astype(float),
            "deductible": rng.choice([100.0, 300.0, 500.0, 1500.0], rows),
            "clinic": rng.choice([f"c{k}" for k in range(12)], rows),
            "years": rng.uniform(0.2, 1.0, rows),
            "size": rng.uniform(0.5, 3.0, rows),
        }
    )
    mu = np.exp(0.02 * (frame["age"] - 45) + 0.7 * (frame["clinic"] == "c1")) * frame["years"]
    draws = {
        "gaussian": lambda: 3.0 + mu + rng.normal(size=rows),
        "gamma": lambda: rng.gamma(2.0, mu),
        "tweedie": lambda: rng.poisson(mu, rows) * rng.gamma(2.0, 3.0, rows),
        "poisson": lambda: rng.poisson(mu, rows).astype(float),
        "binomial": lambda: (rng.random(rows) < mu / (1 + mu)).astype(float),
    }
    return frame.assign(y=draws[family]())


def task_of(family: FamilyName, **more: Any) -> Task:
    exposure = None if family in ("gaussian", "binomial") else "years"
    power = 1.5 if family == "tweedie" else None
    return Task(target="y", family=family, power=power, weight="size", exposure=exposure, **more)


def rescaled(frame: pd.DataFrame, unit: str, factor: float) -> pd.DataFrame:
    return frame.assign(**{unit: frame[unit] * factor})


def after(unit: str, factor: float) -> float:
    """What a prediction for one unit of exposure is multiplied by."""
    return {"y": factor, "years": 1 / factor}.get(unit, 1.0)


cases = st.fixed_dictionaries(
    {
        "family": st.sampled_from(sorted(FAMILIES)),
        "unit": st.sampled_from(["y", "years", "size", "deductible"]),
        "factor": st.sampled_from(FACTORS),
    }
).filter(
    lambda c: (
        (c["unit"] != "y" or FAMILIES[c["family"]])
        and (c["unit"] != "years" or task_of(c["family"]).exposure is not None)
    )
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(cases)
def test_a_glm_is_rescaled_and_else_the_same(case: dict[str, Any]) -> None:
    frame, task = table(case["family"]), task_of(case["family"])
    other = rescaled(frame, case["unit"], case["factor"])
    ours, theirs = (fit_glm(split(rows, 3), task, list(FEATURES)) for rows in (frame, other))
    means = after(case["unit"], case["factor"]) * ours.model.predict(frame)
    np.testing.assert_allclose(theirs.model.predict(other), means, rtol=1e-7)
    assert theirs.deviance_explained == pytest.approx(ours.deviance_explained, rel=1e-7)
    if task.law.dispersed:
        z = ours.coefficients()["z"][1:]
        np.testing.assert_allclose(theirs.coefficients()["z"][1:], z, rtol=1e-6)


def grown(parts: list[pd.DataFrame], task: Task, **more: Any) -> Any:
    values = {"kind": "trees", "trees": 4, "depth": 3, "min_child_rows": 5.0, **more}
    chosen, contract = trees.TreesSettings(**values), draft(parts[0], "test")
    features = tuple(Feature(column=name) for name in FEATURES)
    return federate(parts, lambda f: trees.train(f, task, features, contract, chosen, seed=1)[0])


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(cases)
def test_trees_are_rescaled_and_else_the_same(case: dict[str, Any]) -> None:
    frame, task = table(case["family"]), task_of(case["family"])
    other = rescaled(frame, case["unit"], case["factor"])
    ours, theirs = (grown(split(rows, 3), task) for rows in (frame, other))
    assert [t.feature for t in ours.trees] == [t.feature for t in theirs.trees]
    assert [t.bins for t in ours.trees] == [t.bins for t in theirs.trees]
    means = after(case["unit"], case["factor"]) * ours.predict(frame)
    np.testing.assert_allclose(theirs.predict(other), means, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("unit", ["size", "deductible", "age"])
def test_a_power_of_two_changes_no_bit_of_the_trees(family: FamilyName, unit: str) -> None:
    frame, task = table(family), task_of(family)
    ours = grown(split(frame, 3), task)
    theirs = grown(split(rescaled(frame, unit, 2.0**-21), 3), task)
    assert [t.value for t in ours.trees] == [t.value for t in theirs.trees]


def test_categories_are_cut_whatever_the_unit_of_weights() -> None:
    """Weights of one n-th, as libraries that normalise them have: a level's effect is still found."""
    frame = table("poisson").assign(size=1.0)
    task = task_of("poisson")
    n = float(len(frame))
    plain, nth = grown([frame], task), grown([rescaled(frame, "size", 1 / n)], task)
    assert 2 in plain.trees[0].feature
    np.testing.assert_allclose(nth.predict(frame), plain.predict(frame), rtol=1e-5)


def trained(frame: pd.DataFrame, task: Task) -> Any:
    contract: Contract = draft(frame, "test")
    chosen = network.NetworkSettings(kind="network", family=task.family, rounds=3, hidden=(4,))  # type: ignore[arg-type]
    features = tuple(Feature(column=name) for name in FEATURES)

    def work(federation: Any) -> Any:
        encoding = agree(federation, task, features, contract, 1)
        return network.train(federation, task, encoding, chosen, seed=1)[0]

    return federate(split(frame, 3), work)


@pytest.mark.parametrize("unit", ["y", "years", "size", "deductible"])
@pytest.mark.parametrize("factor", [1e-6, 1000.0])
def test_a_network_is_rescaled_and_else_the_same(unit: str, factor: float) -> None:
    frame, task = table("gamma"), task_of("gamma")
    other = rescaled(frame, unit, factor)
    ours, theirs = trained(frame, task), trained(other, task)
    means = after(unit, factor) * ours.predict(frame)
    np.testing.assert_allclose(theirs.predict(other), means, rtol=1e-3)
