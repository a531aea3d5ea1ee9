"""What a run says beside its scores: roles, features, claims without an amount, balance, measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn.metrics import d2_tweedie_score

from federated.deployment.plan import announced
from federated.run import run
from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError, ContractError, ModelError

ROWS = 1200
CONTRACT = """
name = "claims-v1"
[columns]
policy_no = { type = "integer" }
claims = { type = "integer", role = "target" }
years = { type = "number", role = "exposure" }
age = { type = "integer" }
region = { type = "category" }
"""


def policies(rows: int = ROWS) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "policy_no": 1000 + rng.permutation(rows),
            "years": rng.uniform(0.2, 1.0, rows).round(3),
            "age": rng.integers(18, 80, rows),
            "region": rng.choice(["a", "b", "c"], rows),
        }
    )
    rate = 0.3 * np.exp(0.01 * frame["age"])
    return frame.assign(claims=rng.poisson(rate * frame["years"]))


def experiment(
    folder: Path,
    frame: pd.DataFrame | None = None,
    data: dict[str, Any] | None = None,
    contract: str | None = CONTRACT,
    **values: Any,
) -> Experiment:
    table, file = folder / "t.csv", folder / "c.toml"
    (policies() if frame is None else frame).to_csv(table, index=False)
    named = {}
    if contract is not None:
        file.write_text(contract)
        named = {"contract": str(file)}
    return Experiment.model_validate(
        {
            "name": "t",
            "data": {"path": str(table), "target": "claims", **named, **(data or {})},
            "model": {"kind": "glm"},
            "parties": {"split": "uniform", "count": 3},
            "protection": {"sums": "clear"},
            "arms": {"run": ["federated"], "replicates": 20},
            **values,
        }
    )


def coefficients(study: Study) -> pd.Series:
    return study.fits("model")["federated"].coefficients().set_index("name")["estimate"]


def design(study: Study) -> pd.DataFrame:
    rows = study.market.pooled().train  # type: ignore[attr-defined]
    dummies = pd.get_dummies(rows["region"].astype("str"), drop_first=True, dtype=float)
    return sm.add_constant(pd.concat([rows["age"], dummies], axis=1))


# Roles.


def test_the_exposure_of_the_contract_is_taken_and_said(tmp_path: Path) -> None:
    study = perform(experiment(tmp_path))
    assert study.experiment.data.exposure == "years"
    assert "exposure years, by contract claims-v1" in study.notices
    rows = study.market.pooled().train  # type: ignore[attr-defined]
    theirs = sm.GLM(
        rows["claims"], design(study), sm.families.Poisson(), exposure=rows["years"]
    ).fit()
    np.testing.assert_allclose(coefficients(study), theirs.params, rtol=1e-8)


def test_exposure_can_be_an_input_beside_the_offset(tmp_path: Path) -> None:
    study = perform(experiment(tmp_path, data={"features": ["age", "region", "years"]}))
    assert "years, by contract claims-v1" in "".join(study.notices)
    rows = study.market.pooled().train  # type: ignore[attr-defined]
    own = design(study)
    own.insert(2, "years", rows["years"])
    theirs = sm.GLM(rows["claims"], own, sm.families.Poisson(), exposure=rows["years"]).fit()
    ours = coefficients(study)
    assert ours["years"] == pytest.approx(theirs.params["years"], rel=1e-7)
    assert ours.iloc[0] == pytest.approx(theirs.params.iloc[0], rel=1e-7)


def test_without_exposure_is_said_in_so_many_words(tmp_path: Path) -> None:
    study = perform(experiment(tmp_path, data={"exposure": ""}))
    rows = study.market.pooled().train  # type: ignore[attr-defined]
    theirs = sm.GLM(rows["claims"], design(study), sm.families.Poisson()).fit()
    np.testing.assert_allclose(coefficients(study), theirs.params, rtol=1e-8)
    assert study.market.unused["years"] == "has the role 'exposure'"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"exposure": "age"}, "data.exposure: 'age' has another role.*'years' is the exposure"),
        ({"target": "years"}, "data.target: 'years' has another role.*'claims' is the target"),
        ({"exposure": "", "features": ["age", "years"]}, "'years' has the role 'exposure'"),
        ({"features": ["age", "claims"]}, "'claims' is the target, weight or person"),
        ({"features": ["age", "policy_no"]}, "'policy_no' is named like an identifier"),
    ],
)
def test_a_key_that_contradicts_the_contract_is_refused(
    tmp_path: Path, data: dict[str, Any], words: str
) -> None:
    asked = experiment(tmp_path, data=data)
    with pytest.raises(ConfigurationError, match=words):
        SimulatedMarket(asked)
    with pytest.raises(ConfigurationError, match=words):
        announced(asked)


def test_one_of_several_exposures_has_to_be_named(tmp_path: Path) -> None:
    two = CONTRACT.replace('"integer" }\nregion', '"integer", role = "exposure" }\nregion')
    with pytest.raises(ConfigurationError, match="'years' and 'age' for it; name one of them, or"):
        SimulatedMarket(experiment(tmp_path, contract=two))


def test_an_exposure_that_cannot_enter_is_not_dropped_in_silence(tmp_path: Path) -> None:
    gaussian = {"kind": "glm", "family": "gaussian"}
    with pytest.raises(ConfigurationError, match="takes neither as an offset nor as a weight"):
        SimulatedMarket(experiment(tmp_path, model=gaussian))
    SimulatedMarket(experiment(tmp_path, model=gaussian, data={"exposure_as": "weight"}))


def test_the_plan_of_real_parties_has_the_roles_of_the_contract(tmp_path: Path) -> None:
    plan = announced(experiment(tmp_path))
    assert plan.experiment.data.exposure == "years"
    assert [f.column for f in plan.features["model"]] == ["age", "region"]


# Features.


def test_features_used_and_columns_not_used_are_told_with_their_reason(tmp_path: Path) -> None:
    study = run(experiment(tmp_path), runs=tmp_path / "runs", track=False)
    result = json.loads((study.folder / "result.json").read_text())
    assert result["data"]["features"] == {"model": ["age", "region"]}
    assert result["data"]["unused"] == {"policy_no": "is named like an identifier"}
    assert "features: age, region" in result["notices"]
    assert "not used: policy_no is named like an identifier" in result["notices"]


def test_the_column_that_deals_rows_is_no_feature_and_that_is_said(tmp_path: Path) -> None:
    study = perform(experiment(tmp_path, parties={"split": "column", "column": "region"}))
    assert [f.column for f in study.market.features["model"]] == ["age"]
    assert study.market.unused["region"] == "deals the rows to the parties"


@pytest.mark.parametrize("kind", ["glm", "trees"])
def test_a_feature_that_never_varies_is_left_out_with_a_line_or_refused(
    tmp_path: Path, kind: str
) -> None:
    frame, model = policies().assign(region="a"), {"kind": kind, "family": "poisson"}
    if kind == "trees":
        model["trees"] = 2  # type: ignore[assignment]
    study = perform(experiment(tmp_path, frame, model=model))
    assert "federated: left out, the same in all training rows but few: region" in study.notices
    with pytest.raises(ModelError, match="'region' is the same in every training row"):
        perform(experiment(tmp_path, frame, model=model, data={"constant": "refuse"}))


def test_a_rare_separated_level_is_joined_and_stops_no_run(tmp_path: Path) -> None:
    frame = policies()
    frame.loc[:4, ["region", "claims"]] = ["d", 0]
    frame.loc[5:11, "region"] = "e"
    study = perform(experiment(tmp_path, frame))
    assert "region[T.(rare)]" in coefficients(study).index


def test_a_separated_level_that_stops_a_run_is_joined_by_a_higher_least_number(
    tmp_path: Path,
) -> None:
    frame = policies()
    frame.loc[:29, ["region", "claims"]] = ["d", 0]
    frame.loc[30:59, "region"] = "e"
    with pytest.raises(ModelError, match=r"'region\[T.*\]' grows.*a higher model.min_persons"):
        perform(experiment(tmp_path, frame, FREE | {"features": ["age", "region"]}, None))
    joined = {"kind": "glm", "min_persons": 40}
    study = perform(experiment(tmp_path, frame, model=joined))
    assert "region[T.(rare)]" in coefficients(study).index


# The rows of a product.


def claims_with_amounts() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    frame = policies()
    paid = [rng.gamma(2.0, 500.0, n).sum() for n in frame["claims"]]
    return frame.assign(paid=np.round(paid, 2)).drop(columns="policy_no")


SEVERITY = {"target": "paid", "per": "claims"}
FREE = {"exposure": "years", "features": ["age"]}


def product(folder: Path, frame: pd.DataFrame, **severity: Any) -> Experiment:
    model = {"kind": "glm", "severity": {**SEVERITY, **severity}}
    return experiment(folder, frame, FREE, None, model=model)


def test_claims_without_an_amount_are_refused_with_their_number(tmp_path: Path) -> None:
    frame = claims_with_amounts()
    closed = frame.index[frame["claims"] > 0][:7]
    frame.loc[closed, "paid"] = 0.0
    words = r"'paid' is 0 for claims of 'claims'(.|\n)*7 of 1,200 rows \(first: "
    with pytest.raises(ContractError, match=words + str(closed[0] + 1)):
        perform(product(tmp_path, frame))


def test_a_family_that_takes_zeros_models_all_claims_and_is_in_balance(tmp_path: Path) -> None:
    frame = claims_with_amounts()
    closed = frame.index[frame["claims"] > 0][::4]
    frame.loc[closed, "paid"] = 0.0
    study = perform(product(tmp_path, frame, family="tweedie", power=1.5))
    fit = study.fits("severity")["federated"]
    assert fit.rows == (study.market.pooled().train["claims"] > 0).sum()  # type: ignore[attr-defined]
    rows = study.market.pooled().train  # type: ignore[attr-defined]
    models = study.arms["federated"].models["all"]
    expected = (models["pure premium"].model.predict(rows) * rows["years"]).sum()
    assert expected == pytest.approx(rows["paid"].sum(), rel=0.02)


def test_both_parts_of_a_product_count_the_same_claims(tmp_path: Path) -> None:
    frame = claims_with_amounts().assign(settled=1)
    with pytest.raises(ConfigurationError, match=r"'settled' counts other claims than data.target"):
        perform(product(tmp_path, frame, per="settled"))


def test_an_amount_without_a_claim_is_refused(tmp_path: Path) -> None:
    frame = claims_with_amounts()
    frame.loc[frame.index[frame["claims"] == 0][:2], "paid"] = 10.0
    with pytest.raises(ContractError, match="not 0 where there is an amount"):
        perform(product(tmp_path, frame))


def test_rows_in_an_error_are_numbered_as_in_the_file_dropped_ones_counted(tmp_path: Path) -> None:
    frame = claims_with_amounts()
    frame["age"] = frame["age"].astype("float")
    frame.loc[:9, "age"] = np.nan
    frame.loc[20, "years"] = 0.0
    data = {**FREE, "missing": "drop"}
    with pytest.raises(ContractError, match=r"1 of 1,190 rows \(first: 21\)"):
        perform(experiment(tmp_path, frame, data, None))


# Measures.


def test_a_model_out_of_balance_is_said_in_one_line(tmp_path: Path) -> None:
    frame = policies()
    frame["fold"] = np.arange(ROWS) % 5 == 0
    frame.loc[frame["fold"], "claims"] *= 2
    frame["fold"] = frame["fold"].astype("int")
    data = {**FREE, "test_column": "fold", "test_value": 1}
    study = perform(experiment(tmp_path, frame, data, None))
    (line,) = [line for line in study.notices if "expects" in line]
    assert line.startswith("federated: expects 0.4") and "on test rows" in line
    assert "95 % interval" in line


def test_scores_in_sample_are_named_so_and_get_no_interval(tmp_path: Path) -> None:
    arms = {"run": ["alone", "federated", "pooled"], "replicates": 20}
    study = perform(experiment(tmp_path, data={**FREE, "test": 0.0}, contract=None, arms=arms))
    assert study.judged == "in sample"
    assert any(line.startswith("scores are in sample") for line in study.notices)
    assert study.differences.empty


def test_a_party_is_scored_against_its_own_rate_too(tmp_path: Path) -> None:
    study = perform(experiment(tmp_path))
    party = study.market.parties[0]  # type: ignore[attr-defined]
    rows, law = party.test, study.experiment.tasks()["model"].law
    model = study.arms["federated"].models["all"]["model"].model
    y, years = rows["claims"].to_numpy(dtype=float), rows["years"].to_numpy()
    rate = party.train["claims"].sum() / party.train["years"].sum()
    ours = law.deviance(y, model.predict(rows) * years).sum()
    right = 1 - ours / law.deviance(y, rate * years).sum()
    scores = study.scores["deviance_explained_of_own_rate"]
    assert scores["federated", party.name] == pytest.approx(right, rel=1e-10)
    assert study.scores["deviance_explained"]["federated", party.name] != pytest.approx(right)


@pytest.mark.parametrize("sums", ["clear", "paillier"])
def test_counts_with_exposure_have_the_measure_of_scikit_learn(tmp_path: Path, sums: str) -> None:
    protection = {"sums": sums, "key_bits": 2048}
    study = perform(experiment(tmp_path, protection=protection))
    rows = study.market.pooled().test  # type: ignore[attr-defined]
    model = study.arms["federated"].models["all"]["model"].model
    mean = model.predict(rows) * rows["years"]
    right = d2_tweedie_score(rows["claims"], mean, sample_weight=rows["years"], power=1)
    scores = study.scores["deviance_explained_of_counts"]
    assert scores["federated", "all"] == pytest.approx(right, rel=1e-9)
    (line,) = [line for line in study.notices if "d2_tweedie_score" in line]
    assert line.endswith(f"federated {right:.4f}")


def test_exposure_as_a_weight_is_the_rate_form_of_statsmodels(tmp_path: Path) -> None:
    frame = claims_with_amounts()
    data = {"target": "paid", "exposure": "years", "exposure_as": "weight", "features": ["age"]}
    model = {"kind": "glm", "family": "tweedie", "power": 1.5}
    study = perform(experiment(tmp_path, frame, data, None, model=model))
    rows = study.market.pooled().train  # type: ignore[attr-defined]
    law = sm.families.Tweedie(var_power=1.5, link=sm.families.links.Log())
    theirs = sm.GLM(
        rows["paid"] / rows["years"], sm.add_constant(rows["age"]), law, var_weights=rows["years"]
    ).fit(tol=1e-14)
    ours = study.fits("model")["federated"]
    table = ours.coefficients().set_index("name")
    np.testing.assert_allclose(table["estimate"], theirs.params, rtol=1e-8)
    np.testing.assert_allclose(table["standard_error"], theirs.bse, rtol=1e-8)
    assert ours.deviance == pytest.approx(theirs.deviance, rel=1e-8)
    assert ours.null_deviance == pytest.approx(theirs.null_deviance, rel=1e-8)
    offset = perform(
        experiment(tmp_path, frame, data | {"exposure_as": "offset"}, None, model=model)
    )
    assert abs(coefficients(offset)["age"] - table["estimate"]["age"]) > 1e-6


def test_exposure_as_a_weight_needs_a_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"needs a column: set data.exposure"):
        SimulatedMarket(experiment(tmp_path, data={"exposure_as": "weight"}, contract=None))


def test_the_arm_alone_has_a_line_for_the_whole_market_where_one_party_has_no_fit(
    tmp_path: Path,
) -> None:
    frame = policies()
    frame["party"] = np.where(frame.index < 60, "small", np.where(frame.index < 600, "b", "c"))
    frame.loc[frame["party"] == "small", "claims"] = 0
    arms = {"run": ["alone", "federated"], "replicates": 20}
    parties = {"split": "column", "column": "party"}
    study = perform(experiment(tmp_path, frame, FREE, None, arms=arms, parties=parties))
    assert list(study.arms["alone"].failures) == ["party small"]
    assert ("alone", "all") in study.scores.index
    note = study.arms["alone"].notes["whole market"]
    assert note == "scored over the 2 parties that have a model; without one: 1"
    assert "all" not in set(study.differences["party"])


def test_a_party_all_of_whose_rows_are_frauds_is_scored(tmp_path: Path) -> None:
    frame = policies()
    frame["claims"] = (frame["claims"] > 0).astype(int)
    party = np.where(frame.index < 600, "b", "c")
    frame["party"] = np.where((frame.index < 120) & (frame["claims"] == 1), "frauds", party)
    study = perform(
        experiment(
            tmp_path,
            frame,
            {"target": "claims", "features": ["age"]},
            None,
            model={"kind": "glm", "family": "binomial"},
            arms={"run": ["federated"], "replicates": 0},
            parties={"split": "column", "column": "party"},
        )
    )
    evaluations = study.arms["federated"].evaluations["model"]
    assert evaluations["party frauds"].own_null is None
    assert evaluations["party b"].own_null is not None
