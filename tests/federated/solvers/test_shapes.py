"""Smoothed and monotone levels are the pooled penalised, and the isotonic, fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import optimize
from sklearn.isotonic import IsotonicRegression

from federated.solvers.features import check_feature
from federated.solvers.glm import Fit
from lab.errors import ConfigurationError
from lab.models.design import Design, Feature
from lab.models.glm import Task
from lab.tables.contracts import draft
from tests.conftest import fit_glm, split

CUT = tuple(np.arange(25.0, 76.0, 5.0))


def policies(n: int = 2000, seed: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": rng.uniform(18, 85, n),
            "bonus": rng.integers(0, 9, n),
            "fuel": pd.Categorical(rng.choice(["diesel", "petrol"], n)),
            "years": rng.uniform(0.2, 1, n),
        }
    )
    eta = -0.5 + 0.5 * np.cos(frame.age / 12) + 0.06 * frame.bonus + 0.2 * (frame.fuel == "diesel")
    frame["claims"] = rng.poisson(np.exp(eta) * frame.years).astype(float)
    return frame.assign(cost=eta + rng.normal(size=n))


def fitted(
    frame: pd.DataFrame, *features: Feature, parties: int = 3, protection: Any = None, **task: Any
) -> Fit:
    return fit_glm(split(frame, parties), Task(**task), list(features), protection=protection)


def second_differences(order: list[int]) -> np.ndarray:
    return np.diff(np.eye(len(order))[order], 2, axis=0)


@pytest.mark.parametrize("differences", [1, 2])
def test_smoothed_levels_are_least_squares_with_the_differences_as_rows(differences: int) -> None:
    frame, strength = policies(), 0.5
    age = Feature(column="age", cut=CUT, smooth=strength, differences=differences)
    ours = fitted(frame, age, Feature(column="fuel"), target="cost", family="gaussian")
    encoding = ours.model.encoding
    x = Design(frame, encoding).matrix()
    names = list(encoding.categories[0].levels)
    order = [names.index(name) for name in age.intervals()]
    steps = np.diff(np.eye(len(names))[order], differences, axis=0)[:, 1:]
    more = np.zeros((len(steps), x.shape[1]))
    more[:, 1 : len(names)] = np.sqrt(strength * len(frame)) * steps
    theirs = sm.OLS(np.append(frame.cost, np.zeros(len(more))), np.vstack([x, more])).fit()
    np.testing.assert_allclose(ours.model.beta, theirs.params, rtol=1e-8)


def test_smoothed_levels_of_a_frequency_are_the_least_of_the_penalised_deviance() -> None:
    frame, strength = policies(), 0.02
    age = Feature(column="age", cut=CUT, smooth=strength)
    ours = fitted(frame, age, target="claims", exposure="years")
    x, encoding = Design(frame, ours.model.encoding).matrix(), ours.model.encoding
    names = list(encoding.categories[0].levels)
    steps = np.diff(np.eye(len(names))[[names.index(n) for n in age.intervals()]], 2, axis=0)[:, 1:]

    def value(beta: np.ndarray) -> tuple[float, np.ndarray]:
        mu = np.exp(x @ beta) * frame.years
        rough = steps @ beta[1:]
        score = x.T @ (mu - frame.claims)
        score[1:] += strength * len(frame) * steps.T @ rough
        loss = (mu - frame.claims * (x @ beta)).sum() + strength * len(frame) / 2 * rough @ rough
        return loss, score

    right = optimize.minimize(value, np.zeros(x.shape[1]), jac=True, tol=1e-13, method="BFGS")
    np.testing.assert_allclose(ours.model.beta, right.x, atol=1e-5)
    assert np.abs(value(np.array(ours.model.beta))[1]).max() < 1e-6


def test_the_stronger_levels_are_smoothed_the_nearer_they_are_to_a_line() -> None:
    frame = policies()
    bends = []
    for strength in (1e-6, 1.0, 1000.0):
        fit = fitted(frame, Feature(column="age", cut=CUT, smooth=strength), target="claims")
        names = list(fit.model.encoding.categories[0].levels)
        order = [names.index(n) for n in Feature(column="age", cut=CUT).intervals()]
        bends.append(np.abs(second_differences(order) @ [0.0, *fit.model.beta[1:]]).max())
    assert bends[0] > bends[1] > bends[2] and bends[2] < 1e-3


@pytest.mark.parametrize("way", ["rising", "falling"])
def test_monotone_levels_are_the_isotonic_regression_of_scikit_learn(way: Any) -> None:
    frame = policies()
    ours = fitted(
        frame,
        Feature(column="bonus", category=True, monotone=way),
        target="claims",
        exposure="years",
    )
    by = frame.groupby("bonus")[["claims", "years"]].sum()
    theirs = IsotonicRegression(increasing=way == "rising").fit(
        by.index, by.claims / by.years, sample_weight=by.years
    )
    rates = ours.model.predict(pd.DataFrame({"bonus": by.index}))
    np.testing.assert_allclose(rates, theirs.predict(by.index), rtol=1e-7)


def test_monotone_levels_beside_other_features_are_the_least_of_the_deviance() -> None:
    frame = policies()
    features = (Feature(column="age", cut=CUT, monotone="falling"), Feature(column="fuel"))
    ours = fitted(frame, *features, target="claims", exposure="years")
    x, names = Design(frame, ours.model.encoding).matrix(), ours.model.encoding.categories[0].levels
    order = [names.index(name) for name in features[0].intervals()]
    steps = np.diff(np.eye(len(names))[order], axis=0)[:, 1:]

    def value(beta: np.ndarray) -> tuple[float, np.ndarray]:
        mu = np.exp(x @ beta) * frame.years
        return (mu - frame.claims * (x @ beta)).sum(), x.T @ (mu - frame.claims)

    right = optimize.minimize(
        value,
        np.zeros(x.shape[1]),
        jac=True,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda b: -steps @ b[1 : len(names)]},
        options={"ftol": 1e-15, "maxiter": 500},
    )
    beta = np.array(ours.model.beta)
    assert value(beta)[0] <= right.fun + 1e-9 * abs(right.fun)
    assert (steps @ beta[1 : len(names)] <= 1e-12).all()
    np.testing.assert_allclose(beta, right.x, atol=1e-4)


def test_what_rises_by_itself_is_the_free_fit_with_its_errors_and_what_is_held_has_none() -> None:
    frame = policies()
    free, rising, falling = (
        fitted(
            frame,
            Feature(column="fuel", base="petrol"),
            Feature(column="up", cut=(1.0, 2.0), monotone=way),
            target="claims",
        )
        for frame in [frame.assign(up=np.round(frame.bonus / 4.0))]
        for way in (None, "rising", "falling")
    )
    np.testing.assert_allclose(rising.model.beta, free.model.beta, rtol=1e-8)
    np.testing.assert_allclose(rising.errors, free.errors, rtol=1e-8)
    table = falling.coefficients().set_index("name")["standard_error"]
    assert table[[n for n in table.index if n.startswith("up")]].isna().all()
    assert table["fuel[T.diesel]"] > 0 and falling.drawn == ""


def test_a_shape_through_paillier_is_that_in_the_clear(paillier: Any) -> None:
    frame = policies(600)
    features = (
        Feature(column="age", cut=(30.0, 45.0, 60.0), monotone="falling"),
        Feature(column="bonus", category=True, smooth=0.01),
    )
    one, other = (
        fitted(frame, *features, parties=n, protection=how, target="claims", exposure="years")
        for n, how in ((1, None), (4, paillier))
    )
    np.testing.assert_allclose(other.model.beta, one.model.beta, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("feature", "kind", "words"),
    [
        (Feature(column="fuel", smooth=1.0), "glm", "no levels in an order"),
        (Feature(column="age", monotone="rising"), "glm", "give cut points"),
        (Feature(column="age", cut=CUT, smooth=1.0), "trees", "has smooth, which a GLM takes"),
    ],
)
def test_levels_without_an_order_are_refused(feature: Feature, kind: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_feature(feature, draft(policies(), "test"), set(), None, kind)
