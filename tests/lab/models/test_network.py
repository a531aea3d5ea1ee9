"""Losses for few frauds: known values, and a probability at their minimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from lab.models.network import Tensors, loss
from lab.models.network_model import NetworkRecipe, unfocused


def recipe(imbalance: str, gamma: float = 2.0, rate: float = 0.1) -> NetworkRecipe:
    shape = {"hidden": (2,), "embedding": 1, "dropout": 0.0, "epochs": 1, "batches": 1}
    return NetworkRecipe(
        **shape,
        weight_decay=0.0,
        intercept=float(logit(rate)),
        imbalance=imbalance,
        focal_gamma=gamma,
    )


def mean_loss(how: NetworkRecipe, eta: float, p: float, shift: float = 0.0) -> float:
    """Of rows with this logit, a share p of them fraud."""
    y, weight = torch.tensor([1.0, 0.0]), torch.tensor([p, 1 - p], dtype=torch.float64)
    etas = torch.full((2,), eta, dtype=torch.float64)
    return float(loss("binomial", how, etas, y, weight, shift))


def test_the_focal_loss_has_its_published_values() -> None:
    q = np.array([0.9, 0.968, 0.1])  # Lin et al., section 3.2: 100 and 1000 times lower at gamma 2
    ours = [mean_loss(recipe("focal"), logit(v), 1.0) for v in q]
    np.testing.assert_allclose(ours, -((1 - q) ** 2) * np.log(q), rtol=1e-12)
    entropy = [mean_loss(recipe("none"), logit(v), 1.0) for v in q]
    np.testing.assert_allclose(np.divide(entropy, ours)[:2], [100, 977], rtol=1e-3)
    assert mean_loss(recipe("focal", 0.0), 0.3, 0.2) == pytest.approx(
        mean_loss(recipe("none"), 0.3, 0.2)
    )


def test_a_weighted_loss_counts_both_classes_alike() -> None:
    rate, eta = 0.02, -1.0
    q = expit(eta - logit(rate))
    by_hand = [-np.log(q) / (2 * rate), -np.log(1 - q) / (2 * (1 - rate))]
    ours = [mean_loss(recipe("weights", rate=rate), eta, p) for p in (1.0, 0.0)]
    np.testing.assert_allclose(ours, by_hand, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    p=st.floats(0.002, 0.998),
    rate=st.floats(0.002, 0.5),
    gamma=st.floats(0.0, 6.0),
    imbalance=st.sampled_from(["none", "weights", "focal"]),
)
def test_every_loss_is_least_at_the_probability(
    p: float, rate: float, gamma: float, imbalance: str
) -> None:
    how = recipe(imbalance, gamma, rate)
    least = minimize_scalar(
        lambda eta: mean_loss(how, eta, p),
        bounds=(-15, 15),
        method="bounded",
        options={"xatol": 1e-9},
    ).x
    found = unfocused(np.array([least]), gamma)[0] if imbalance == "focal" else least
    assert expit(found) == pytest.approx(p, rel=2e-3)


@pytest.mark.parametrize("imbalance", ["none", "weights"])
@pytest.mark.parametrize("shift", [-3.0, 0.5, 4.0])
def test_a_loss_that_knows_the_own_rate_is_least_at_the_log_odds_of_all(
    imbalance: str, shift: float
) -> None:
    how, p = recipe(imbalance), 0.03
    own = float(expit(logit(p) + shift))  # of a party whose frauds are alike, but more or fewer
    least = minimize_scalar(
        lambda eta: mean_loss(how, eta, own, shift),
        bounds=(-15, 15),
        method="bounded",
        options={"xatol": 1e-9},
    ).x
    assert least == pytest.approx(logit(p), abs=1e-4)


def test_rows_say_their_own_rate_and_count_by_what_they_say() -> None:
    def rows(ones: int, zeros: int) -> Tensors:
        y = torch.tensor([1.0] * ones + [0.0] * zeros)
        none = torch.zeros(len(y), 0)
        return Tensors(none, none.long(), y, torch.ones(len(y)), torch.zeros(len(y)))

    everybody = float(logit(0.1))  # one 1 at that rate comes with nine 0
    half = rows(51, 43).at_own_rate(everybody)
    assert half.shift == pytest.approx(0 - everybody)
    assert half.information(everybody) == round(94 * 0.25 / 0.09)
    assert rows(10, 90).at_own_rate(everybody).shift == pytest.approx(0)
    assert rows(10, 90).at_own_rate(everybody).information(everybody) == 100
    pure = rows(0, 991).at_own_rate(everybody)
    assert pure.shift == pytest.approx(-np.log(1000) - everybody)
    assert pure.information(everybody) == round(991 * (1000 / 1001**2) / 0.09)
    assert rows(0, 0).information(everybody) == 0


@given(gamma=st.floats(0.0, 10.0), rate=st.floats(0.001, 0.999))
def test_a_focal_network_starts_from_the_constant_probability(gamma: float, rate: float) -> None:
    start = recipe("focal", gamma, rate).start
    assert expit(unfocused(np.array(start), gamma)) == pytest.approx(rate, rel=1e-9)


@given(gamma=st.floats(0.0, 10.0))
def test_the_correction_keeps_the_ranking(gamma: float) -> None:
    eta = np.linspace(-600, 600, 2001)
    found = unfocused(eta, gamma)
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()
