"""A coefficient that stands on one person: two features of one column, cut on either side of her.

Each level has many persons, and what both cuts leave between them is her alone: intercept and
coefficient add up to her target.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from federated.federation import Federation
from federated.solvers import glm
from federated.solvers.encoding import agree
from lab.errors import ModelError
from lab.models.design import Feature
from lab.models.glm import Task
from lab.tables.contracts import draft
from tests.conftest import federate, split

TASK = Task(target="paid", family="gaussian")


def claims() -> pd.DataFrame:
    rng = np.random.default_rng(6)
    age = rng.permutation(np.arange(300)) / 4
    return pd.DataFrame({"age": age, "region": rng.choice(["n", "s"], 300), "paid": age * 7 + 1})


def fitted(features: tuple[Feature, ...], least: int) -> glm.Fit:
    frame = claims()

    def fit(federation: Federation) -> glm.Fit:
        encoding = agree(federation, TASK, features, draft(frame, "t"), least)
        return glm.fit(federation, TASK, encoding, least=least)

    found: glm.Fit = federate(split(frame, 3), fit)
    return found


HER = claims().sort_values("age").iloc[150]
AROUND_HER = tuple(Feature(column="age", cut=(float(HER.age) + d,)) for d in (-0.1, 0.1))


def test_without_the_check_her_target_is_read() -> None:
    """The unprotected twin."""
    beta = fitted(AROUND_HER, least=1).model.beta
    assert beta[0] + beta[1] == pytest.approx(HER.paid, rel=1e-9)


def test_a_fit_whose_coefficients_stand_on_one_person_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"fewer than 10 persons tell age.* from the other columns"
    ):
        fitted(AROUND_HER, least=10)


def test_cuts_between_which_enough_persons_are_pass() -> None:
    wide = (Feature(column="age", cut=(20.0,)), Feature(column="age", cut=(23.0,)))
    beside = Feature(column="region", category=True)
    assert fitted((*wide, beside), least=10).model.encoding.width == 4


def test_a_party_that_fits_alone_is_told_of_its_own_rows() -> None:
    frame = claims()

    def fit(federation: Federation) -> glm.Fit:
        encoding = agree(federation, TASK, AROUND_HER, draft(frame, "t"), 10)
        return glm.fit(federation, TASK, encoding, least=10)

    alone: glm.Fit = federate([frame], fit)
    assert alone.model.beta[0] + alone.model.beta[1] == pytest.approx(HER.paid, rel=1e-9)
