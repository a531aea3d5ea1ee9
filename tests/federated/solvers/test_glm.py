"""The federated fit is the pooled maximum-likelihood fit, for any split and any hiding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import patsy
import pytest
import statsmodels.api as sm
from statsmodels.genmod.families import links

from lab.errors import ModelError
from lab.models.design import Design, Feature
from lab.models.glm import Task
from lab.scores.explanation import values_of
from tests.conftest import fit_glm, split

FAMILIES = {
    ("gaussian", None): sm.families.Gaussian(),
    ("gaussian", "log"): sm.families.Gaussian(links.Log()),
    ("poisson", None): sm.families.Poisson(),
    ("gamma", None): sm.families.Gamma(links.Log()),
    ("gamma", "canonical"): sm.families.Gamma(),
    ("tweedie", None): sm.families.Tweedie(links.Log(), var_power=1.5),
    ("binomial", None): sm.families.Binomial(),
}


def table(family: str, n: int = 1500, seed: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": rng.normal(45, 15, n),
            "income": rng.gamma(2, 30_000, n),
            "region": pd.Categorical(rng.choice(["east", "north", "south"], n, p=[0.5, 0.3, 0.2])),
            "years": rng.uniform(0.1, 1, n),
            "size": rng.integers(1, 6, n).astype(float),
        }
    )
    eta = 0.4 + 0.01 * (frame.age - 45) - 2e-6 * frame.income + 0.3 * (frame.region == "north")
    mu = np.exp(eta)
    frame["y"] = {
        "gaussian": lambda: mu + 0.3 * rng.normal(size=n),
        "poisson": lambda: rng.poisson(mu * frame.years).astype(float),
        "gamma": lambda: rng.gamma(2, mu / 2),
        "tweedie": lambda: rng.poisson(mu, n) * rng.gamma(2, 0.5, n),
        "binomial": lambda: (rng.random(n) < 1 / (1 + np.exp(-eta + 1))).astype(float),
    }[family]()
    return frame


def pooled(frame: pd.DataFrame, family: sm.families.Family, **kwargs: object) -> object:
    x = pd.get_dummies(frame[["age", "income", "region"]], drop_first=True).astype(float)
    design = sm.add_constant(x)
    return sm.GLM(frame.y, design, family=family, **kwargs).fit(tol=1e-14, maxiter=300)


@pytest.mark.filterwarnings("ignore:The InversePower link")  # statsmodels, on Gamma
@pytest.mark.parametrize(("family", "link"), FAMILIES)
def test_federated_fit_equals_statsmodels_on_the_pooled_rows(family: str, link: str | None) -> None:
    frame = table(family)
    task = Task(target="y", family=family, link=link, power=1.5 if family == "tweedie" else None)
    ours = fit_glm(split(frame, 5), task, ["age", "income", "region"])
    theirs = pooled(frame, FAMILIES[family, link])
    table_ = ours.coefficients()
    assert list(table_["name"]) == [
        "intercept",
        "age",
        "income",
        "region[T.north]",
        "region[T.south]",
    ]
    np.testing.assert_allclose(table_["estimate"], theirs.params, rtol=1e-8)
    np.testing.assert_allclose(table_["standard_error"], theirs.bse, rtol=1e-8)
    np.testing.assert_allclose(table_["p_value"], theirs.pvalues, rtol=1e-6, atol=1e-300)
    np.testing.assert_allclose(table_[["low", "high"]], theirs.conf_int(), rtol=1e-8)
    assert ours.deviance == pytest.approx(theirs.deviance, rel=1e-10)
    assert ours.null_deviance == pytest.approx(theirs.null_deviance, rel=1e-8)
    assert ours.dispersion == pytest.approx(theirs.scale, rel=1e-8)
    assert ours.log_likelihood == pytest.approx(theirs.llf, rel=1e-8)
    assert ours.aic == pytest.approx(theirs.aic, rel=1e-8)


def test_offset_and_weights_enter_as_in_statsmodels() -> None:
    frame = table("poisson")
    task = Task(target="y", exposure="years", weight="size")
    ours = fit_glm(split(frame, 4), task, ["age", "income", "region"])
    theirs = pooled(
        frame, sm.families.Poisson(), exposure=frame.years, var_weights=frame["size"].to_numpy()
    )
    np.testing.assert_allclose(ours.coefficients()["estimate"], theirs.params, rtol=1e-8)
    np.testing.assert_allclose(ours.coefficients()["standard_error"], theirs.bse, rtol=1e-8)
    assert ours.null_deviance == pytest.approx(theirs.null_deviance, rel=1e-8)


def test_means_are_of_the_columns_as_rows_weigh_in_the_fit() -> None:
    frame = table("poisson")
    task = Task(target="y", exposure="years")
    model = fit_glm(split(frame, 4), task, ["age", "income", "region"]).model
    rows = frame.astype({"region": "category"})
    design = Design(rows, model.encoding).matrix()
    weight = model.predict(rows) * frame.years  # the second derivative of a Poisson's loss
    np.testing.assert_allclose(
        model.means, np.average(design[:, 1:], axis=0, weights=weight), rtol=0, atol=2**-11 + 1e-9
    )
    effects = model.effects(rows)
    mean = np.average(effects.values, axis=0, weights=weight)
    np.testing.assert_allclose(mean, 0, atol=1e-2)
    total = effects.base + effects.values.sum(axis=1)
    np.testing.assert_allclose(np.exp(total), model.predict(rows), rtol=1e-12)


def test_fit_through_paillier_equals_the_pooled_fit(paillier) -> None:
    frame = table("poisson")
    task = Task(target="y", exposure="years")
    ours = fit_glm(split(frame, 4), task, ["age", "income", "region"], protection=paillier)
    theirs = pooled(frame, sm.families.Poisson(), exposure=frame.years)
    np.testing.assert_allclose(ours.coefficients()["estimate"], theirs.params, rtol=1e-8)
    np.testing.assert_allclose(ours.coefficients()["standard_error"], theirs.bse, rtol=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_any_split_gives_the_same_model(seed: int) -> None:
    frame = table("poisson")
    task = Task(target="y", exposure="years")
    one = fit_glm([frame], task, ["age", "income", "region"])
    many = fit_glm(split(frame, 3 + seed, seed), task, ["age", "income", "region"])
    np.testing.assert_allclose(many.model.beta, one.model.beta, rtol=1e-10)


def test_a_party_may_lack_a_level_or_a_label_class() -> None:
    frame = table("binomial")
    by_region = [frame[frame.region == r] for r in ("east", "north", "south")]
    by_label = [frame[frame.y == v] for v in (0.0, 1.0)]
    task = Task(target="y", family="binomial")
    theirs = pooled(frame, sm.families.Binomial())
    for parts in (by_region, by_label):
        ours = fit_glm(parts, task, ["age", "income", "region"])
        np.testing.assert_allclose(ours.coefficients()["estimate"], theirs.params, rtol=1e-8)


def test_ridge_equals_the_penalised_fit_of_scikit_learn() -> None:
    from sklearn.linear_model import PoissonRegressor

    frame = table("poisson")
    ours = fit_glm(split(frame, 3), Task(target="y"), ["age", "income"], ridge=0.1)
    x = frame[["age", "income"]].to_numpy()
    x = (x - x.mean(0)) / x.std(0)
    theirs = PoissonRegressor(alpha=0.1, solver="newton-cholesky", tol=1e-12).fit(x, frame.y)
    np.testing.assert_allclose(ours.model.beta[1:], theirs.coef_, rtol=1e-8)


def test_randhie_log_likelihood_is_the_known_one() -> None:
    from statsmodels.datasets import randhie

    frame = randhie.load_pandas().data
    features = [c for c in frame.columns if c != "mdvis"]
    ours = fit_glm(split(frame, 6), Task(target="mdvis"), features)
    assert ours.log_likelihood == pytest.approx(-62419.5886, abs=5e-5)


def test_dvisits_joined_by_id_gives_the_known_answers(published) -> None:
    folder = published("fate_vertical")
    guest = pd.read_csv(folder / "dvisits_hetero_guest.csv.gz")
    frame = guest.merge(pd.read_csv(folder / "dvisits_hetero_host.csv.gz"), on="id").astype(float)
    features = [c for c in frame.columns if c not in ("id", "doctorco")]
    ours = fit_glm(split(frame, 5), Task(target="doctorco"), features)
    assert ours.log_likelihood == pytest.approx(-3355.5413, abs=5e-5)
    assert ours.deviance == pytest.approx(4379.5151, abs=5e-5)
    assert ours.null_deviance == pytest.approx(5634.8211, abs=5e-5)


def test_collinear_columns_are_named() -> None:
    frame = table("poisson").assign(months=lambda f: 12 * f.age + 3)
    with pytest.raises(ModelError, match=r"age, months are collinear"):
        fit_glm(split(frame, 3), Task(target="y"), ["age", "months", "income"])


def test_a_level_without_claims_is_named_as_separated() -> None:
    frame = table("poisson")
    frame.loc[frame.region == "south", "y"] = 0.0
    with pytest.raises(ModelError, match=r"'region\[T.south\]' grows without end"):
        fit_glm(split(frame, 3), Task(target="y"), ["age", "region"])


def test_a_number_that_separates_labels_is_named() -> None:
    frame = table("binomial")
    frame["y"] = (frame.age > 45).astype(float)
    with pytest.raises(ModelError, match=r"'age' grows without end"):
        fit_glm(split(frame, 3), Task(target="y", family="binomial"), ["age", "income"])


@pytest.mark.parametrize(
    ("value", "family", "words"),
    [
        (0.0, "poisson", "0 in every"),
        (1.0, "binomial", "1 in every"),
        (0.0, "binomial", "0 in every"),
    ],
)
def test_a_target_that_never_varies_is_refused(value: float, family: str, words: str) -> None:
    frame = table("poisson").assign(y=value)
    with pytest.raises(ModelError, match=words):
        fit_glm(split(frame, 3), Task(target="y", family=family), ["age"])


def test_a_constant_feature_is_refused_by_name() -> None:
    frame = table("poisson").assign(country=7.0)
    with pytest.raises(ModelError, match="'country' is the same in every training row"):
        fit_glm(split(frame, 3), Task(target="y"), ["age", "country"])


def test_same_bits_for_any_number_of_threads() -> None:
    frame = table("gamma", n=9000)
    parts = split(frame, 6)
    task = Task(target="y", family="gamma")
    betas = [
        fit_glm(parts, task, ["age", "income", "region"], workers=w).model.beta for w in (1, 2, 5)
    ]
    assert betas[0] == betas[1] == betas[2]


def test_amount_per_claim_is_weighted_by_claims_over_rows_that_have_any() -> None:
    frame = table("gamma").assign(claims=lambda f: np.arange(len(f)) % 3.0)
    frame["paid"] = frame.y * frame.claims
    task = Task(target="paid", per="claims", family="gamma")
    ours = fit_glm(split(frame, 3), task, ["age"])
    kept = frame[frame.claims > 0]
    theirs = sm.GLM(
        kept.paid / kept.claims,
        sm.add_constant(kept[["age"]]),
        family=sm.families.Gamma(links.Log()),
        var_weights=kept.claims,
    ).fit(tol=1e-14)
    np.testing.assert_allclose(ours.coefficients()["estimate"], theirs.params, rtol=1e-8)


def test_transforms_make_the_columns_they_name() -> None:
    frame = table("poisson")
    features = [
        Feature(column="income", log=True),
        Feature(column="age", cut=(30, 60), base="<=30"),
    ]
    ours = fit_glm(split(frame, 3), Task(target="y"), features)
    cut = pd.cut(frame.age, [-np.inf, 30, 60, np.inf])
    x = pd.concat(
        [np.log(frame.income), pd.get_dummies(cut, drop_first=True).astype(float)], axis=1
    )
    theirs = sm.GLM(frame.y.to_numpy(), sm.add_constant(x.to_numpy()), family=sm.families.Poisson())
    np.testing.assert_allclose(
        ours.coefficients()["estimate"], theirs.fit(tol=1e-14).params, rtol=1e-8
    )
    assert list(ours.coefficients()["name"])[1:] == ["log(income)", "age[T.30-60]", "age[T.>60]"]


@pytest.mark.parametrize("family", ["poisson", "gamma"])
def test_a_natural_spline_is_the_fit_of_statsmodels_with_patsy_s_cr(family: str) -> None:
    frame, knots = table(family), (15.0, 30.0, 45.0, 60.0, 80.0)
    features = [Feature(column="age", spline=knots), Feature(column="region")]
    ours = fit_glm(split(frame, 3), Task(target="y", family=family, link="log"), features)
    curve = "cr(age, knots=knots[1:-1], lower_bound=knots[0], upper_bound=knots[-1]) - 1"
    regions = pd.get_dummies(frame.region, drop_first=True).astype(float)
    design = np.hstack([np.asarray(patsy.dmatrix(curve, frame)), regions])
    law = {"poisson": sm.families.Poisson(), "gamma": sm.families.Gamma(links.Log())}[family]
    theirs = sm.GLM(frame.y.to_numpy(), design, family=law).fit(tol=1e-14)
    np.testing.assert_allclose(ours.model.predict(frame), theirs.fittedvalues, rtol=1e-7)
    assert ours.deviance == pytest.approx(theirs.deviance, rel=1e-10)
    assert ours.log_likelihood == pytest.approx(theirs.llf, rel=1e-8)
    names = list(ours.coefficients()["name"])
    assert names[1:5] == [f"age[spline {k}]" for k in (1, 2, 3, 4)]
    far = frame.iloc[:3].assign(age=[100.0, 110.0, 120.0], region="east")
    low, middle, high = np.log(ours.model.predict(far))
    assert high - middle == pytest.approx(middle - low, rel=1e-9)  # straight beyond the last knot


def test_straight_pieces_are_a_line_with_bends() -> None:
    frame = table("poisson")
    ours = fit_glm(split(frame, 3), Task(target="y"), [Feature(column="age", pieces=(30, 55))])
    columns = [np.ones(len(frame)), frame.age, *(np.maximum(frame.age - k, 0) for k in (30, 55))]
    theirs = sm.GLM(frame.y.to_numpy(), np.column_stack(columns), family=sm.families.Poisson())
    np.testing.assert_allclose(
        ours.coefficients()["estimate"], theirs.fit(tol=1e-14).params, rtol=1e-7
    )
    assert list(ours.coefficients()["name"])[1:] == ["age", "age[above 30]", "age[above 55]"]


def test_knots_are_at_the_quantiles_of_all_rows_however_they_are_split() -> None:
    frame = table("poisson", n=4000)
    features = [Feature(column="age", spline=4), Feature(column="income", pieces=1, log=True)]
    fits = [fit_glm(split(frame, n), Task(target="y"), features) for n in (1, 4)]
    knots = [[t.bend.knots for t in fit.model.encoding.numbers] for fit in fits]
    assert knots[0] == knots[1]
    wanted = np.quantile(frame.age, [0.05, 0.35, 0.65, 0.95])
    np.testing.assert_allclose(knots[0][0], wanted, atol=0.5)
    assert knots[0][-1][0] == pytest.approx(np.log(frame.income).median(), abs=0.05)
    assert fits[0].deviance == pytest.approx(fits[1].deviance, rel=1e-12)


def test_knots_of_years_lie_apart_though_years_differ_in_their_last_digit() -> None:
    frame = table("poisson").assign(year=lambda f: 2010 + f.age / 10)
    ours = fit_glm(split(frame, 3), Task(target="y"), [Feature(column="year", spline=4)])
    (first, *_) = ours.model.encoding.numbers
    wanted = np.quantile(frame.year, [0.05, 0.35, 0.65, 0.95])
    np.testing.assert_allclose(first.bend.knots, wanted, atol=0.1)
    values = values_of(ours.model, "year", 6)
    assert len(values) == 6 and np.ptp(values) == pytest.approx(np.ptp(first.bend.knots), rel=0.01)


def test_more_knots_than_values_lie_apart_are_refused() -> None:
    frame = table("poisson").assign(age=lambda f: (f.age > 45).astype(float))
    with pytest.raises(ModelError, match=r"feature 'age': 5 knots do not lie apart"):
        fit_glm(split(frame, 3), Task(target="y"), [Feature(column="age", spline=5)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"spline": 2}, "takes 3 to 20 knots, got 2"),
        ({"spline": (1.0, 2.0)}, "needs 3 knots or more"),
        ({"pieces": (2.0, 1.0)}, "strictly increasing"),
        ({"pieces": 1, "cut": (1.0,)}, "are for numbers, one of them"),
        ({"pieces": 1, "spline": 3}, "one of them"),
    ],
)
def test_a_curve_that_can_t_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Feature(column="age", **values)


UNITS = [("gaussian", None), ("gamma", "log"), ("gamma", "canonical"), ("tweedie", None)]


@pytest.mark.parametrize(("family", "link"), UNITS)
@pytest.mark.parametrize("unit", [1e-9, 9e8])
def test_a_target_in_another_unit_is_the_same_fit_in_that_unit(
    family: str, link: str | None, unit: float
) -> None:
    power = 1.5 if family == "tweedie" else None
    task = Task(target="y", family=family, link=link, power=power)
    one = fit_glm(split(table(family), 3), task, ["age", "region"])
    other = fit_glm(split(table(family).assign(y=lambda t: t.y * unit), 3), task, ["age", "region"])
    assert other.deviance_explained == pytest.approx(one.deviance_explained, rel=1e-7)
    np.testing.assert_allclose(
        other.coefficients()["z"][1:], one.coefficients()["z"][1:], rtol=1e-6
    )


@pytest.mark.parametrize("family", ["gaussian", "poisson", "gamma", "binomial"])
@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_weights_and_features_in_another_unit_change_no_estimate(family: str, unit: float) -> None:
    frame = table(family)
    changed = frame.assign(size=frame["size"] * unit, income=frame["income"] * unit)
    task = Task(target="y", family=family, weight="size")
    one, other = (fit_glm(split(f, 3), task, ["age", "income"]) for f in (frame, changed))
    estimates = other.coefficients()["estimate"] * [1, 1, unit]
    np.testing.assert_allclose(estimates, one.coefficients()["estimate"], rtol=1e-8)


def test_a_level_of_few_events_among_many_rows_converges() -> None:
    rng = np.random.default_rng(5)
    rare = np.repeat([0.0, 1.0], [36_000, 4_000])
    y = np.concatenate([rng.poisson(0.5, 36_000), np.repeat([1.0, 0.0], [3, 3_997])])
    frame = pd.DataFrame({"rare": pd.Categorical(np.where(rare, "yes", "no")), "y": y})
    fit = fit_glm(split(frame, 3), Task(target="y"), ["rare"])
    right = sm.GLM(y, sm.add_constant(rare), family=sm.families.Poisson()).fit(tol=1e-14)
    estimate, error = fit.coefficients().loc[1, ["estimate", "standard_error"]]
    assert estimate == pytest.approx(right.params[1], rel=1e-8)
    assert error == pytest.approx(right.bse[1], rel=1e-7)
