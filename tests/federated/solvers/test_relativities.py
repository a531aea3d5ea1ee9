"""Relativities are the factors and intervals of the pooled fit, against a base that is 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import patsy
import pytest
import statsmodels.api as sm

from federated.solvers.features import check_feature
from lab.errors import ConfigurationError, ModelError
from lab.models.design import Feature
from lab.models.glm import Task
from lab.tables.contracts import draft
from tests.conftest import fit_glm, split


def policies(n: int = 3000, seed: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": rng.uniform(18, 80, n),
            "diesel": (rng.random(n) < 0.3).astype(float),
            "area": pd.Categorical(rng.choice(list("ABC"), n, p=[0.2, 0.5, 0.3])),
            "years": rng.uniform(0.1, 1, n),
        }
    )
    mu = np.exp(-1 + 0.3 * np.cos(frame.age / 15) + 0.4 * (frame.area == "C") + 0.2 * frame.diesel)
    return frame.assign(y=rng.poisson(mu * frame.years).astype(float))


def relativities(frame: pd.DataFrame, *features: str | Feature, **task: Any) -> pd.DataFrame:
    fit = fit_glm(split(frame, 3), Task(target="y", **task), list(features))
    return fit.relativities().set_index(["feature", "level"])


def statsmodels(frame: pd.DataFrame, formula: str) -> Any:
    model = sm.GLM.from_formula(
        formula, frame, family=sm.families.Poisson(), offset=np.log(frame.years)
    )
    return model.fit(tol=1e-14)


def test_levels_stand_against_the_base_with_the_intervals_of_statsmodels() -> None:
    frame = policies()
    ours = relativities(frame, "diesel", Feature(column="area", base="B"), exposure="years")
    theirs = statsmodels(frame, "y ~ diesel + C(area, Treatment('B'))")
    assert ours.loc["area"].index.tolist() == ["B", "A", "C"]
    for level in "AC":
        name = f"C(area, Treatment('B'))[T.{level}]"
        wanted = np.exp([theirs.params[name], *theirs.conf_int().loc[name]])
        np.testing.assert_allclose(ours.loc["area", level], wanted, rtol=1e-8)
    base = ours.loc["area", "B"]
    assert base["relativity"] == 1.0 and base[["low", "high"]].isna().all()
    assert ours.loc["diesel"].index.tolist() == ["0", "1"]
    wanted = np.exp([theirs.params["diesel"], *theirs.conf_int().loc["diesel"]])
    np.testing.assert_allclose(ours.loc["diesel", "1"], wanted, rtol=1e-8)


def test_a_curve_is_read_at_its_knots_with_the_intervals_of_statsmodels() -> None:
    frame, knots = policies(), (20.0, 35.0, 50.0, 75.0)
    ours = relativities(frame, Feature(column="age", spline=knots, base=35), exposure="years")
    curve = "cr(age, knots=[35, 50], lower_bound=20, upper_bound=75, constraints='center')"
    design = patsy.dmatrix(curve, frame)
    model = sm.GLM(frame.y, design, family=sm.families.Poisson(), exposure=frame.years)
    theirs = model.fit(tol=1e-14)
    at = pd.DataFrame({"age": knots})
    contrast = np.asarray(patsy.build_design_matrices([design.design_info], at)[0])
    contrast = contrast - contrast[1]
    estimate = contrast @ theirs.params
    error = np.sqrt(np.einsum("ij,jk,ik->i", contrast, theirs.cov_params(), contrast))
    assert ours.loc["age"].index.tolist() == ["20", "35", "50", "75"]
    np.testing.assert_allclose(ours["relativity"], np.exp(estimate), rtol=1e-7)
    others = [0, 2, 3]
    low = np.exp(estimate - 1.959963984540054 * error)
    np.testing.assert_allclose(ours["low"].iloc[others], low[others], rtol=1e-7)


def test_a_line_is_1_at_its_base_value_and_read_two_deviations_around_its_mean() -> None:
    frame = policies()
    ours = relativities(frame, Feature(column="age", base=40), exposure="years").loc["age"]
    slope = statsmodels(frame, "y ~ age").params["age"]
    ages = ours.index.astype(float)
    np.testing.assert_allclose(ours["relativity"], np.exp(slope * (ages - 40)), rtol=1e-8)
    assert ours.loc["40", "relativity"] == 1.0 and len(ours) == 6
    assert ages[0] == pytest.approx(frame.age.mean() - 2 * frame.age.std(), abs=0.1)
    log = relativities(frame, Feature(column="age", log=True), exposure="years").loc["log(age)"]
    assert (log["relativity"] == 1.0).sum() == 1 and float(log.index[0]) > 0


def test_a_logarithm_is_read_at_two_digits_of_each_place_however_wide_it_is() -> None:
    frame = policies().assign(density=lambda f: np.exp((f.age - 50) / 5))
    ours = relativities(frame, Feature(column="density", log=True)).loc["log(density)"]
    places = ours.index.astype(float)
    assert (places > 0).all() and places.max() / places.min() > 1e4
    slope = np.log(ours["relativity"]) / np.log(places / float(ours.index[ours["low"].isna()][0]))
    np.testing.assert_allclose(slope.dropna(), slope.dropna().iloc[0], rtol=1e-9)


def test_intervals_stand_as_they_rise_with_the_base_in_its_place() -> None:
    cut = Feature(column="age", cut=(30.0, 60.0), base="30-60")
    lines = relativities(policies(), cut, exposure="years").loc["age"]
    assert lines.index.tolist() == ["<=30", "30-60", ">60"] and lines["low"].isna().tolist()[1]


def test_the_base_of_a_category_can_be_named_and_changes_no_prediction() -> None:
    frame = policies()
    fits = [
        fit_glm(split(frame, 3), Task(target="y"), [Feature(column="area", base=base)])
        for base in (None, "B")
    ]
    assert [list(fit.relativities()["level"]) for fit in fits] == [list("ABC"), list("BAC")]
    one, other = (fit.model.predict(frame) for fit in fits)
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_a_base_that_is_no_level_is_refused_with_those_that_are() -> None:
    with pytest.raises(ModelError, match=r"base 'D' is no level .* these are: A, B, C"):
        relativities(policies(), Feature(column="area", base="D"))


@pytest.mark.parametrize(
    ("feature", "kind", "words"),
    [
        (Feature(column="age", base="old"), "glm", "base of 'age' must be a number, got 'old'"),
        (Feature(column="age", log=True, base=0), "glm", "must be above 0"),
        (Feature(column="age", base=30), "trees", "'age' has base, which a GLM takes"),
        (Feature(column="age", spline=4), "network", "'age' has spline, which a GLM takes"),
    ],
)
def test_a_base_that_can_t_be_is_refused(feature: Feature, kind: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        check_feature(feature, draft(policies(), "test"), set(), None, kind)


def test_where_effects_add_up_there_is_no_relativity() -> None:
    assert relativities(policies(), "age", family="gaussian").empty
