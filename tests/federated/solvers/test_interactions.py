"""Interactions are the pooled fit of statsmodels with the same formula; cells of few persons have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from federated.federation import Federation
from federated.solvers import glm
from federated.solvers.crosses import crossed
from federated.solvers.encoding import agree
from federated.study.arms import perform
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError, ModelError
from lab.models.design import Design, Encoding, Feature
from lab.models.files import from_json
from lab.models.glm import Task
from lab.tables.contracts import draft
from tests.conftest import federate, fit_glm, split

FUEL = Feature(column="fuel", base="petrol")
FORMULAS = {
    ("age:income",): "age * income",
    ("region:age",): "income + C(region, Treatment('east')) * age",
    ("region:fuel",): "age + C(region, Treatment('east')) * C(fuel, Treatment('petrol'))",
    ("region*fuel", "age:fuel"): "C(region, Treatment('east')) * C(fuel, Treatment('petrol')) + "
    "age * C(fuel, Treatment('petrol'))",
}


def policies(n: int = 3000, seed: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": rng.uniform(18, 80, n),
            "income": rng.gamma(2, 30_000, n),
            "region": pd.Categorical(rng.choice(["east", "north", "west"], n, p=[0.5, 0.3, 0.2])),
            "fuel": pd.Categorical(rng.choice(["diesel", "petrol"], n, p=[0.4, 0.6])),
            "years": rng.uniform(0.1, 1, n),
        }
    )
    eta = -0.5 + 0.01 * (frame.age - 45) * (1 + (frame.region == "north")) - 3e-6 * frame.income
    eta += 0.4 * ((frame.region == "west") & (frame.fuel == "diesel"))
    return frame.assign(y=rng.poisson(np.exp(eta) * frame.years).astype(float))


def used(formula: str) -> list[str | Feature]:
    names = [name for name in ("age", "income", "region") if name in formula]
    return [*names, *([FUEL] if "fuel" in formula else [])]


def named(name: str) -> str:
    """A column of statsmodels as ours is called."""
    for column, base in (("region", "east"), ("fuel", "petrol")):
        name = name.replace(f"C({column}, Treatment('{base}'))", column)
    return name


@pytest.mark.parametrize("interactions", FORMULAS)
def test_interactions_are_the_formula_of_statsmodels_on_the_pooled_rows(
    interactions: tuple[str, ...],
) -> None:
    frame, formula = policies(), FORMULAS[interactions]
    task = Task(target="y", exposure="years")
    ours = fit_glm(split(frame, 4), task, used(formula), interactions=interactions, least=10)
    model = sm.GLM.from_formula(
        f"y ~ {formula}", frame, family=sm.families.Poisson(), offset=np.log(frame.years)
    )
    theirs = model.fit(tol=1e-14, maxiter=300)
    ours_by_name = ours.coefficients().set_index("name")
    names = {frozenset(name.split(":")): name for name in ours_by_name.index}
    at = [
        names[frozenset(named(n).replace("Intercept", "intercept").split(":"))]
        for n in theirs.params.index
    ]
    assert len(at) == len(ours_by_name)
    np.testing.assert_allclose(ours_by_name["estimate"][at], theirs.params, rtol=1e-7)
    np.testing.assert_allclose(ours_by_name["standard_error"][at], theirs.bse, rtol=1e-7)
    assert ours.deviance == pytest.approx(theirs.deviance, rel=1e-10)
    assert ours.log_likelihood == pytest.approx(theirs.llf, rel=1e-9)
    again = from_json(ours.model.model_dump_json())
    np.testing.assert_allclose(again.predict(frame) * frame.years, theirs.fittedvalues, rtol=1e-8)


def test_interactions_through_paillier_are_those_in_the_clear(paillier: Any) -> None:
    frame, task = policies(1200), Task(target="y", exposure="years")
    two = ("region:fuel", "age:region")
    fits = [
        fit_glm(split(frame, 3), task, ["age", "region", FUEL], interactions=two, protection=how)
        for how in (None, paillier)
    ]
    np.testing.assert_allclose(fits[1].model.beta, fits[0].model.beta, rtol=1e-8)


def test_an_interaction_with_a_curve_takes_all_its_columns() -> None:
    frame, task = policies(), Task(target="y")
    features = [Feature(column="age", spline=(20.0, 40.0, 60.0, 75.0)), FUEL]
    ours = fit_glm(split(frame, 3), task, features, interactions=("age:fuel",))
    by_fuel = [
        fit_glm(split(frame[frame.fuel == fuel], 2), task, features[:1])
        for fuel in ("petrol", "diesel")
    ]
    for fuel, alone in zip(("petrol", "diesel"), by_fuel, strict=True):
        rows = frame[frame.fuel == fuel]
        np.testing.assert_allclose(ours.model.predict(rows), alone.model.predict(rows), rtol=1e-7)


def test_entries_that_are_not_asked_for_are_zero() -> None:
    frame = policies(400)
    pairs = ("region:fuel", "age:region")
    encoding = fit_glm(
        split(frame, 2), Task(target="y"), ["age", "region", FUEL], interactions=pairs
    ).model.encoding
    x = Design(frame, encoding).matrix()
    whole, asked = np.triu(x.T @ x), np.zeros((encoding.width, encoding.width))
    asked[encoding.pairs] = whole[encoding.pairs]
    assert np.array_equal(whole, asked) and len(encoding.pairs[0]) < encoding.width**2 / 2


def test_a_cell_of_few_persons_goes_by_its_levels_alone() -> None:
    frame = policies()
    cell = (frame.region == "west") & (frame.fuel == "diesel")
    frame = pd.concat([frame[~cell], frame[cell].iloc[:6]])
    fit = fit_glm(
        split(frame, 3),
        Task(target="y"),
        ["region", FUEL],
        interactions=("region:fuel",),
        least=10,
    )
    assert fit.model.encoding.names[-1] == "region[T.north]:fuel[T.diesel]"
    assert len(fit.model.encoding.crosses) == 1
    few = fit.relativities()
    assert "west:diesel" not in few["level"].tolist()


def test_where_the_base_of_a_level_is_few_persons_it_has_no_interaction() -> None:
    frame = policies()
    corner = (frame.region == "west") & (frame.fuel == "petrol")
    frame = pd.concat([frame[~corner], frame[corner].iloc[:6]])
    left_out: list[str] = []

    def work(federation: Federation) -> Encoding:
        features = (Feature(column="region"), FUEL)
        pairs = crossed(features, ("region:fuel",))
        contract = draft(frame, "test")
        return agree(federation, Task(target="y"), features, contract, 10, left_out, pairs)

    encoding = federate(split(frame, 3), work)
    assert encoding.names[4:] == ("region[T.north]:fuel[T.diesel]",) and not left_out
    frame = frame[(frame.region != "north")]
    frame["region"] = frame.region.cat.remove_unused_categories()
    assert federate(split(frame, 3), work).crosses == () and left_out == ["region:fuel"]


def test_the_cell_s_relativity_is_what_both_levels_do_beyond_their_own() -> None:
    frame = policies()
    fit = fit_glm(
        split(frame, 3), Task(target="y"), ["region", FUEL], interactions=("region:fuel",)
    )
    lines = fit.relativities().set_index(["feature", "level"])["relativity"]
    rate = frame.groupby(["region", "fuel"], observed=True)["y"].mean()
    beyond = rate["west", "diesel"] * rate["east", "petrol"]
    beyond /= rate["west", "petrol"] * rate["east", "diesel"]
    assert lines["region:fuel", "west:diesel"] == pytest.approx(beyond, rel=1e-8)


def test_a_level_that_a_cell_takes_all_persons_of_is_refused() -> None:
    """Cuts within cells may still leave few persons who tell a level from all columns together."""
    frame = policies()
    frame["same"] = pd.Categorical(np.where(frame.region == "west", "yes", "no"))
    frame.loc[frame.index[frame.region == "west"][:3], "same"] = "no"
    task = Task(target="y")

    def work(federation: Federation) -> glm.Fit:
        features = (Feature(column="region"), Feature(column="same"))
        encoding = agree(federation, task, features, draft(frame, "test"), 10)
        return glm.fit(federation, task, encoding, least=10)

    with pytest.raises(ModelError, match="fewer than 10 persons tell"):
        federate(split(frame, 3), work)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("age", "must name two features"),
        ("age:region:fuel", "must name two features"),
        ("age:regoin", "'regoin' is no feature of the model; did you mean 'region'"),
        ("age:age", "a feature with itself"),
        ("density:age", "2 features are called 'density'"),
    ],
)
def test_an_interaction_that_can_t_be_is_refused_in_one_line(text: str, words: str) -> None:
    features = (
        *(Feature(column=name) for name in ("age", "region", "fuel")),
        Feature(column="density", cut=(1.0,)),
        Feature(column="density", cut=(5.0,)),
    )
    with pytest.raises(ConfigurationError, match=words):
        crossed(features, (text,))
    with pytest.raises(ConfigurationError, match="is there twice"):
        crossed(features, ("age:fuel", "fuel*age"))


def experiment(path: Path, **tables: Any) -> Experiment:
    values: dict[str, Any] = {
        "name": "t",
        "data": {
            "path": str(path),
            "target": "y",
            "exposure": "years",
            "features": ["age", "region", "fuel"],
        },
        "parties": {"split": "uniform", "count": 3},
        "model": {"kind": "glm", "interactions": ["region:fuel", "age:region"]},
        "protection": {"key_bits": 2048},
        "arms": {"run": ["federated", "pooled"], "replicates": 0},
    }
    made = Experiment.model_validate(values | tables)
    made.check()
    return made


@pytest.mark.parametrize("sums", ["paillier", "masks"])
def test_a_bound_study_with_interactions_is_the_pooled_one(tmp_path: Path, sums: str) -> None:
    path = tmp_path / "t.csv"
    policies(900).to_csv(path, index=False)
    study = perform(experiment(path, protection={"sums": sums, "key_bits": 2048}))
    ours, pooled = (study.arms[arm].models["all"]["model"].fit for arm in ("federated", "pooled"))
    names = list(ours.coefficients()["name"])
    assert sum(":" in name for name in names) == 4
    other = pooled.coefficients().set_index("name")["estimate"]
    np.testing.assert_allclose(ours.coefficients()["estimate"], other[names], rtol=1e-7)


def test_joined_sides_refuse_interactions_in_one_line(tmp_path: Path) -> None:
    joined = [
        {"role": role, "path": str(tmp_path / f"{role}.csv"), "key": "id"}
        for role in ("insurer", "fund")
    ]
    with pytest.raises(ConfigurationError, match=r"^model.interactions: .* drop them"):
        experiment(
            tmp_path,
            joined=joined,
            data={"target": "y"},
            parties={"split": "uniform", "count": 1},
            arms={"run": ["federated"]},
        )
