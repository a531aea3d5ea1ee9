"""Scores made from sums equal scores made from rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import d2_tweedie_score, mean_poisson_deviance

from lab.models.families import Family, Scale
from lab.scores import accuracy as scoring
from lab.scores.accuracy import Scored
from lab.sums import combine

FAMILY = Family.make("poisson")


def rows(n: int = 4000, seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    rate = rng.gamma(2, 0.1, n)
    exposure = rng.uniform(0.1, 1, n)
    y = rng.poisson(rate * exposure).astype(float)
    return Scored(y, rate, exposure, np.ones(n), np.arange(n, dtype=float))


SCALE = Scale(rows=4000, weight=1, exposure=1, target=0.2, square=0.3)


def part(r: Scored, keep: object) -> Scored:
    return Scored(*(getattr(r, f)[keep] for f in ("y", "rate", "exposure", "weight", "unit")))


def fit(r: Scored, replicates: int = 0, constant: float = 0.2) -> scoring.Sums:
    return scoring.fit_sums(
        r,
        family=FAMILY,
        scale=SCALE.model_copy(update={"target": constant}),
        replicates=replicates,
        seed=[1, 2],
    )


def test_deviance_is_the_exposure_weighted_one_of_scikit_learn() -> None:
    r = rows()
    found = scoring.scores(fit(r))
    expected = mean_poisson_deviance(r.y / r.exposure, r.rate, sample_weight=r.exposure)
    assert found.deviance == pytest.approx(expected, rel=1e-12)


def test_deviance_explained_against_the_samples_own_mean_is_d2_of_scikit_learn() -> None:
    r = rows()
    mean = r.y.sum() / r.exposure.sum()
    found = scoring.scores(fit(r, constant=mean)).deviance_explained
    expected = d2_tweedie_score(r.y / r.exposure, r.rate, sample_weight=r.exposure, power=1)
    assert found == pytest.approx(expected, rel=1e-10)


def lorenz(r: Scored) -> scoring.Sums:
    coarse = scoring.lorenz_sums(r, edges=scoring.GRID)
    return scoring.lorenz_sums(r, edges=scoring.finer_edges(coarse, scoring.GRID))


def test_gini_from_bins_is_the_gini_from_rows() -> None:
    r = rows(20000)
    order = np.argsort(r.rate)
    x = np.concatenate([[0], np.cumsum(r.exposure[order])]) / r.exposure.sum()
    y = np.concatenate([[0], np.cumsum(r.y[order])]) / r.y.sum()
    assert scoring.gini(lorenz(r)) == pytest.approx(1 - 2 * np.trapezoid(y, x), abs=2e-3)


def test_a_constant_prediction_has_no_gini() -> None:
    r = rows()
    flat = Scored(r.y, np.full_like(r.rate, 0.2), r.exposure, r.weight, r.unit)
    assert scoring.gini(lorenz(flat)) == pytest.approx(0.0, abs=1e-12)


def test_sums_of_parts_are_sums_of_the_whole() -> None:
    r = rows()
    left = np.arange(4000) < 1000
    whole, parts = fit(r), combine([fit(part(r, left)), fit(part(r, ~left))])
    np.testing.assert_allclose(parts["deviance"], whole["deviance"], rtol=1e-12)


def test_tenths_hold_equal_exposure_and_all_claims() -> None:
    r = rows()
    table = scoring.deciles(lorenz(r))
    assert len(table) == 10
    assert table["actual"].sum() == pytest.approx(r.y.sum())
    assert table["size"].max() / table["size"].min() < 1.2


def test_a_model_differs_from_itself_by_nothing_and_from_a_worse_one_for_sure() -> None:
    r = rows()
    worse = Scored(r.y, np.full_like(r.rate, 0.2), r.exposure, r.weight, r.unit)
    same = scoring.interval(fit(r, 100), fit(r, 100))
    better = scoring.interval(fit(r, 100), fit(worse, 100))
    assert same == (0.0, 0.0, 0.0)
    assert 0 < better[1] < better[0] < better[2]


def test_resampling_takes_persons_whole() -> None:
    r = rows(400)
    twice = Scored(
        *(np.repeat(getattr(r, f), 2) for f in ("y", "rate", "exposure", "weight", "unit"))
    )
    one, two = fit(r, 50), fit(twice, 50)
    np.testing.assert_allclose(two["deviance"], 2 * one["deviance"], rtol=1e-12)


def test_an_interval_covers_about_as_often_as_it_says() -> None:
    big = fit(rows(200_000, seed=99))
    truth = 1 - big["deviance"][0] / big["null_deviance"][0]
    inside = 0
    for seed in range(60):
        sums = fit(rows(600, seed=seed), 200)
        explained = 1 - sums["deviance"][1:] / sums["null_deviance"][1:]
        low, high = np.quantile(explained, [0.025, 0.975])
        inside += low <= truth <= high
    assert 50 <= inside <= 60


def few(y: scoring.Floats, rate: scoring.Floats) -> Scored:
    ones = np.ones(len(y))
    return Scored(y, rate, ones, ones, np.arange(len(y), dtype=float))


@pytest.mark.parametrize("y", [[0.0, 0.0, 0.0], []])
def test_where_nothing_was_observed_there_is_no_gini(y: list[float]) -> None:
    """Not 1, as of a ranking that finds everything."""
    observed = few(np.array(y), np.linspace(0.1, 0.3, len(y)))
    sums = scoring.lorenz_sums(observed, edges=np.linspace(-3, 0, 5))
    assert np.isnan(scoring.gini(sums))
    assert scoring.deciles(sums)["actual"].sum() == 0


def test_resamples_without_a_row_are_no_part_of_an_interval() -> None:
    """Of two persons one in seven resamples draws none."""
    better, worse = (few(np.array([0.0, 1.0]), np.array(r)) for r in ([0.2, 0.8], [0.5, 0.5]))
    fits = [fit(each, 50) for each in (better, worse)]
    assert (fits[0]["null_deviance"] == 0).any()
    gain, low, high = scoring.interval(*fits)
    assert low <= gain <= high
    alone = fit(few(np.zeros(0), np.zeros(0)), 5)
    assert np.isnan(scoring.interval(alone, alone)).all()
