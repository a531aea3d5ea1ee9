"""The elastic net is that of scikit-learn and statsmodels on the pooled rows; a path takes what judges best."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn.linear_model import ElasticNet

from federated.solvers.elastic import Penalty
from federated.solvers.fisher import descended
from federated.solvers.glm import Fit, GLMSettings
from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.outcome import Outcome
from lab.errors import ConfigurationError, ModelError
from lab.models.design import Design
from lab.models.families import Family
from lab.models.glm import Task
from lab.tables.partition import drawn
from tests.conftest import fit_glm, split

NUMBERS = [f"x{k}" for k in range(8)]


def rows(family: str = "poisson", n: int = 2500, seed: int = 2) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8)) @ (np.eye(8) + 0.4 * np.eye(8, k=1))
    frame = pd.DataFrame(x, columns=NUMBERS)
    frame["years"] = rng.uniform(0.2, 1, n)
    mu = np.exp(-0.6 + x @ [0.4, -0.3, 0.15, 0, 0, 0, 0, 0.05])
    frame["y"] = {
        "poisson": lambda: rng.poisson(mu * frame.years),
        "gaussian": lambda: np.log(mu) + rng.normal(size=n),
        "binomial": lambda: rng.random(n) < 1 / (1 + 1 / mu),
        "gamma": lambda: rng.gamma(2, mu / 2),
    }[family]() * 1.0
    return frame


def standardised(frame: pd.DataFrame) -> np.ndarray:
    x = frame[NUMBERS].to_numpy()
    return (x - x.mean(0)) / x.std(0)


@pytest.mark.parametrize("l1", [1.0, 0.4])
def test_a_gaussian_fit_is_scikit_learn_s_elastic_net(l1: float) -> None:
    frame = rows("gaussian")
    ours = fit_glm(
        split(frame, 4), Task(target="y", family="gaussian"), NUMBERS, penalty=Penalty((0.1,), l1)
    )
    theirs = ElasticNet(alpha=0.1, l1_ratio=l1, tol=1e-14, max_iter=100_000)
    theirs.fit(standardised(frame), frame.y)
    np.testing.assert_allclose(ours.model.beta[1:], theirs.coef_, rtol=1e-8, atol=1e-10)
    left_out = np.flatnonzero(theirs.coef_ == 0)
    assert len(left_out) and not np.array(ours.model.beta[1:])[left_out].any()


def test_a_poisson_fit_with_exposure_is_that_of_statsmodels() -> None:
    frame = rows()
    ours = fit_glm(
        split(frame, 4), Task(target="y", exposure="years"), NUMBERS, penalty=Penalty((0.02,), 0.7)
    )
    design = sm.add_constant(standardised(frame))
    model = sm.GLM(frame.y, design, family=sm.families.Poisson(), exposure=frame.years)
    alphas = np.array([0.0, *[0.02] * 8])
    theirs = model.fit_regularized(
        alpha=alphas, L1_wt=0.7, cnvrg_tol=1e-12, zero_tol=1e-10, maxiter=500
    )
    np.testing.assert_allclose(ours.model.beta, theirs.params, rtol=1e-6, atol=1e-8)
    assert (theirs.params == 0).any()


@pytest.mark.parametrize("family", ["poisson", "gamma", "binomial", "gaussian"])
def test_no_coefficient_can_be_better_by_the_conditions_of_karush_kuhn_and_tucker(
    family: str,
) -> None:
    """At the least, the score of a coefficient that is not 0 equals its penalty, that of others is no more."""
    frame, alpha, l1 = rows(family), 0.03, 0.6
    task = Task(target="y", family=family)
    fit = fit_glm(split(frame, 3), task, NUMBERS, penalty=Penalty((alpha,), l1))
    x, beta = Design(frame, fit.model.encoding).matrix(), np.array(fit.model.beta)
    law = Family.make(family)
    eta = x @ beta
    mu = law.mean(eta)
    score = x.T @ ((frame.y - mu) * law.slope(eta, mu) / law.variance(mu)) / len(frame)
    score -= alpha * (1 - l1) * np.array([0, *beta[1:]])
    there = np.flatnonzero(beta)
    wanted = alpha * l1 * np.sign(beta)
    wanted[0] = 0
    np.testing.assert_allclose(score[there], wanted[there], atol=1e-9)
    assert (np.abs(score) <= alpha * l1 + 1e-9).all() and len(there) < len(beta)


def test_coordinates_in_turn_reach_the_least_of_a_square() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(30, 6))
    matrix, gradient, beta = root.T @ root, rng.normal(size=6) * 20, rng.normal(size=6)
    found = descended(beta, gradient, matrix, 8.0)

    def value(b: np.ndarray) -> float:
        step = b - beta
        return float(step @ matrix @ step / 2 - gradient @ step + 8.0 * np.abs(b[1:]).sum())

    for _ in range(200):
        assert value(found) <= value(found + 1e-3 * rng.normal(size=6)) + 1e-12
    np.testing.assert_allclose(
        descended(beta, gradient, matrix, 1e-12),
        beta + np.linalg.solve(matrix, gradient),
        rtol=1e-9,
    )


def test_what_is_left_out_is_0_and_no_error_is_told() -> None:
    fit = fit_glm(split(rows(), 3), Task(target="y"), NUMBERS, penalty=Penalty((0.05,), 1.0))
    table = fit.coefficients()
    assert (table["estimate"][1:] == 0).sum() >= 3 and table["standard_error"].isna().all()
    assert "coefficients left out at alpha 0.05" in fit.drawn
    assert fit.aic == pytest.approx(-2 * fit.log_likelihood + 2 * np.count_nonzero(fit.model.beta))


def path(
    frame: pd.DataFrame, parties: int, alphas: tuple[float, ...] | None = None, **more: Any
) -> Fit:
    penalty = Penalty(alphas, 1.0, 0.25)
    return fit_glm(split(frame, parties), Task(target="y"), NUMBERS, penalty=penalty, **more)


def test_the_path_takes_the_alpha_by_which_held_out_rows_have_the_least_deviance() -> None:
    frame = rows(n=900)
    fit = path(frame, 3)
    # the pooled answer: rows are drawn by the party's secret, which all parties of the test share
    apart = drawn(pd.Series(frame.index.astype("str")), 0.25, b"rows", "held out")
    law, deviances = Family.make("poisson"), []
    x = sm.add_constant(standardised(frame))
    for alpha, _ in fit.path:
        # statsmodels on the rows that are not held out, in the columns that all rows agreed on
        alphas = np.array([0.0, *[alpha] * 8])
        model = sm.GLM(frame.y[~apart], x[~apart], family=sm.families.Poisson())
        params = model.fit_regularized(alpha=alphas, L1_wt=1.0, cnvrg_tol=1e-12, maxiter=500).params
        mu = np.exp(x[apart] @ np.asarray(params))
        deviances.append(law.deviance(frame.y[apart].to_numpy(), mu).sum())
    np.testing.assert_allclose([told for _, told in fit.path], deviances, rtol=1e-6)
    assert fit.alpha == fit.path[int(np.argmin(deviances))][0]
    score = np.abs(x[~apart, 1:].T @ (frame.y[~apart] - frame.y.mean())) / (~apart).sum()
    assert fit.path[0][0] == pytest.approx(score.max(), rel=1e-5)  # which leaves all of them out
    assert len(fit.path) == 20 and "chosen of 20 by held-out persons" in fit.drawn


def test_any_split_and_paillier_take_the_same_path(paillier: Any) -> None:
    frame = rows(n=600)
    few = (0.1, 0.02)
    fits = [path(frame, 1, few), path(frame, 4, few), path(frame, 3, few, protection=paillier)]
    for fit in fits[1:]:
        assert fit.alpha == fits[0].alpha
        np.testing.assert_allclose(fit.path, fits[0].path, rtol=1e-8)
        np.testing.assert_allclose(fit.model.beta, fits[0].model.beta, rtol=1e-7, atol=1e-12)


def test_few_persons_who_judge_are_refused() -> None:
    with pytest.raises(ModelError, match="fewer than 200 persons judge alpha"):
        path(rows(n=400), 2, least=200)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"l1": 0.5}, "l1 and validation_share belong to alpha"),
        ({"alpha": 0.1, "ridge": 0.1}, "ridge and alpha are one penalty"),
        ({"alpha": -1.0}, "alpha must be above 0"),
        ({"alpha": [0.1, 0.1]}, "in a list each once"),
        ({"alpha": []}, "alpha must be above 0, in a list"),
        ({"alpha": "path", "validation_share": 0.0}, "set validation_share above 0"),
        ({"alpha": "auto"}, "path"),
        ({"alpha": 0.1, "l1": 0.0}, "greater than 0"),
    ],
)
def test_a_penalty_that_can_t_be_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GLMSettings.model_validate({"kind": "glm", **values})


def experiment(folder: Path, **tables: Any) -> Experiment:
    rows(n=900).to_csv(folder / "t.csv", index=False)
    values: dict[str, Any] = {
        "name": "t",
        "data": {"path": str(folder / "t.csv"), "target": "y", "features": NUMBERS},
        "parties": {"split": "uniform", "count": 3},
        "model": {"kind": "glm", "alpha": [0.1, 0.02]},
        "protection": {"sums": "masks"},
        "arms": {"run": ["federated", "pooled"], "replicates": 0},
    }
    made = Experiment.model_validate(values | tables)
    made.check()
    return made


def test_a_bound_study_with_a_path_is_the_pooled_one_and_says_what_is_left_out(
    tmp_path: Path,
) -> None:
    study = perform(experiment(tmp_path))
    ours, pooled = (study.arms[arm].models["all"]["model"].fit for arm in ("federated", "pooled"))
    assert [alpha for alpha, _ in ours.path] == [0.1, 0.02]
    assert ours.alpha == pooled.alpha and study.experiment.model.validation_share == 0.2
    np.testing.assert_allclose(ours.model.beta, pooled.model.beta, rtol=1e-8, atol=1e-12)
    assert any("coefficients left out at alpha" in line for line in study.notices)
    assert "glm_held_out" in {line.statistic for line in study.opened}
    outcome = Outcome(study.arms["federated"].models["all"], {}, {}, {})
    again = Outcome.from_bytes(outcome.to_bytes()).models["model"].fit
    assert again.path == ours.path and json.dumps(again.record()["path"])


def test_joined_sides_refuse_a_path_in_one_line(tmp_path: Path) -> None:
    joined = [
        {"role": role, "path": str(tmp_path / f"{role}.csv"), "key": "id"}
        for role in ("insurer", "fund")
    ]
    with pytest.raises(ConfigurationError, match=r"^model.alpha: joined sides hold out no persons"):
        experiment(
            tmp_path,
            joined=joined,
            data={"target": "y"},
            parties={"split": "uniform", "count": 1},
            arms={"run": ["federated"]},
            protection={},
        )
