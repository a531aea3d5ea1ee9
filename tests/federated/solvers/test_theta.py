"""Negative binomial counts: the pooled fit of statsmodels, at a given theta and at that of most likelihood."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from statsmodels.discrete.discrete_model import NegativeBinomial

from federated.joined.sums.laws import check_law
from federated.solvers.glm import Fit, GLMSettings
from lab.errors import ConfigurationError, ModelError
from lab.models.families import Family
from lab.models.glm import Task
from tests.conftest import fit_glm, split


def policies(n: int = 3000, theta: float = 1.5, seed: int = 6) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"age": rng.normal(45, 12, n), "years": rng.uniform(0.2, 1, n)})
    frame["region"] = pd.Categorical(rng.choice(["east", "north"], n, p=[0.6, 0.4]))
    mu = np.exp(0.3 + 0.02 * (frame.age - 45) + 0.4 * (frame.region == "north")) * frame.years
    return frame.assign(y=rng.poisson(mu * rng.gamma(theta, 1 / theta, n)).astype(float))


def design(frame: pd.DataFrame) -> pd.DataFrame:
    return sm.add_constant(frame[["age"]].assign(north=(frame.region == "north") * 1.0))


def fitted(frame: pd.DataFrame, theta: Any, parties: int = 4, **more: Any) -> Fit:
    task = Task(target="y", exposure="years")
    return fit_glm(split(frame, parties), task, ["age", "region"], theta=theta, **more)


def test_a_fit_at_a_given_theta_is_that_of_statsmodels() -> None:
    frame = policies()
    ours = fitted(frame, 2.0)
    law = sm.families.NegativeBinomial(alpha=0.5)
    theirs = sm.GLM(frame.y, design(frame), family=law, exposure=frame.years).fit(tol=1e-14)
    table = ours.coefficients()
    np.testing.assert_allclose(table["estimate"], theirs.params, rtol=1e-8)
    np.testing.assert_allclose(table["standard_error"], theirs.bse, rtol=1e-8)
    assert ours.deviance == pytest.approx(theirs.deviance, rel=1e-9)
    assert ours.null_deviance == pytest.approx(theirs.null_deviance, rel=1e-8)
    assert ours.log_likelihood == pytest.approx(theirs.llf, rel=1e-9)


def test_theta_of_most_likelihood_is_that_of_statsmodels() -> None:
    frame = policies().assign(age=lambda f: (f.age - 45) / 12)  # its optimiser needs the units
    ours = fitted(frame, "fit")
    model = NegativeBinomial(frame.y, design(frame), loglike_method="nb2", exposure=frame.years)
    theirs = model.fit(disp=False, maxiter=200, method="newton", tol=1e-12)
    assert ours.theta == pytest.approx(1 / theirs.params["alpha"], rel=1e-6)
    np.testing.assert_allclose(ours.coefficients()["estimate"], theirs.params[:-1], rtol=1e-6)
    assert ours.log_likelihood == pytest.approx(theirs.llf, rel=1e-9)
    assert ours.log_likelihood >= theirs.llf - 1e-9 * abs(theirs.llf)
    assert ours.aic == pytest.approx(theirs.aic, rel=1e-8)


def test_no_theta_beside_that_of_the_fit_is_more_likely() -> None:
    frame = policies(800)
    best = fitted(frame, "fit")
    for factor in (0.999, 1.001):
        assert fitted(frame, best.theta * factor).log_likelihood < best.log_likelihood


def test_any_split_and_paillier_give_the_same_theta(paillier: Any) -> None:
    frame = policies(600)
    one, four = fitted(frame, "fit", 1), fitted(frame, "fit", 4)
    hidden = fitted(frame, "fit", 3, protection=paillier)
    for other in (four, hidden):
        assert other.theta == pytest.approx(one.theta, rel=1e-8)
        np.testing.assert_allclose(other.model.beta, one.model.beta, rtol=1e-7)


def test_counts_that_vary_no_more_than_poisson_s_are_refused() -> None:
    rng = np.random.default_rng(3)
    frame = policies(900).assign(y=lambda f: rng.binomial(3, 0.3, len(f)) * 1.0)
    with pytest.raises(ModelError, match=r"no more than Poisson's.*drop model.theta"):
        fitted(frame, "fit")


def test_a_large_theta_is_poisson_and_its_density_adds_up_to_1() -> None:
    y, mu, ones = np.arange(60.0), np.full(60, 2.5), np.ones(60)
    poisson, law = Family.make("poisson"), Family("poisson", "log", 1.0, 1e9)
    for name in ("deviance", "variance"):
        arguments = (mu,) if name == "variance" else (y, mu)
        np.testing.assert_allclose(
            getattr(law, name)(*arguments), getattr(poisson, name)(*arguments), rtol=1e-6
        )
    assert np.exp(
        Family("poisson", "log", 1.0, 0.8).log_likelihood(
            np.arange(400.0), np.full(400, 2.5), np.ones(400), 1.0
        )
    ).sum() == pytest.approx(1)
    np.testing.assert_allclose(
        law.log_likelihood(y, mu, ones, 1.0), poisson.log_likelihood(y, mu, ones, 1.0), atol=1e-5
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"theta": "fit", "family": "gamma"}, "theta belongs to counts"),
        ({"theta": 0.0}, "theta must be above 0"),
        ({"theta": "fit", "alpha": 0.1}, "drop alpha or theta"),
    ],
)
def test_a_theta_that_can_t_be_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GLMSettings.model_validate({"kind": "glm", **values})


def test_joined_sides_refuse_theta_in_one_line() -> None:
    with pytest.raises(ConfigurationError, match=r"^model.theta: joined sides fit Poisson counts"):
        check_law(Family("poisson", "log", 1.0, 2.0))
