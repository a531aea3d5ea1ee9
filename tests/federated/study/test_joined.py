"""Studies of joined sides: the fit is that of the table that nobody has, whoever learns what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError, ContractError

#: Persons of both tables, of the insurers' alone, of the fund's alone.
BOTH, OURS, THEIRS = 240, 40, 60


def persons() -> pd.DataFrame:
    rng, n = np.random.default_rng(11), BOTH + OURS + THEIRS
    frame = pd.DataFrame(
        {
            "person": [f"P-{k:04d}" for k in rng.permutation(n)],
            "years": rng.uniform(0.3, 1.0, n),
            "age": rng.integers(20, 80, n),
            "region": rng.choice(["east", "west"], n),
            "stays": rng.poisson(0.6, n),
            "chronic": rng.choice(["no", "yes"], n),
        }
    )
    rate = np.exp(
        -0.5 + 0.01 * (frame.age - 50) + 0.5 * frame.stays + 0.4 * (frame.chronic == "yes")
    )
    frame["claims"] = rng.poisson(frame.years * rate)
    frame["any"] = (frame.claims > 0).astype(int)
    frame["size"] = rng.gamma(2.0, rate * 100).round(2) + 1.0
    frame["paid"] = (frame.claims > 0) * rng.gamma(2.0, 300.0, n).round(2)
    return frame


def written(folder: Path, insurers: int = 1) -> dict[str, Any]:
    """The tables of both sides as files, and an experiment over them."""
    frame = persons()
    own = frame[["person", "claims", "any", "paid", "size", "years", "age", "region"]].iloc[
        : BOTH + OURS
    ]
    fund = frame[["person", "stays", "chronic"]].drop(index=range(BOTH, BOTH + OURS))
    fund = fund.sample(frac=1, random_state=3).rename(columns={"person": "card"})
    fund.to_csv(folder / "fund.csv", index=False)
    tables = []
    for k in range(insurers):
        own.iloc[k::insurers].to_csv(folder / f"own{k}.csv", index=False)
        name = {"name": f"insurer {k + 1}"} if insurers > 1 else {}
        tables.append(
            {"role": "insurer", "path": str(folder / f"own{k}.csv"), "key": "person", **name}
        )
    return {
        "name": "joined",
        "data": {
            "target": "claims",
            "exposure": "years",
            "features": ["age", "region", "stays", "chronic"],
            "test": 0.0,
        },
        "joined": [*tables, {"role": "fund", "path": str(folder / "fund.csv"), "key": "card"}],
        "model": {"kind": "glm"},
        "protection": {"key_bits": 2048},
        "arms": {"run": ["federated", "pooled"], "replicates": 0},
    }


def experiment(values: dict[str, Any], **tables: dict[str, Any]) -> Experiment:
    made = Experiment.model_validate(
        {name: {**values.get(name, {}), **more} for name, more in tables.items()}
        | {k: v for k, v in values.items() if k not in tables}
    )
    made.check()
    return made


def fitted(study: Study, arm: str) -> Any:
    return study.arms[arm].models["all"]["model"].fit


def check_equal(study: Study) -> None:
    ours, pooled = fitted(study, "federated"), fitted(study, "pooled")
    assert ours.rows == pooled.rows == BOTH
    for name in ("estimate", "standard_error"):
        one, other = (fit.coefficients()[name].to_numpy() for fit in (ours, pooled))
        np.testing.assert_allclose(one, other, rtol=1e-9)
    assert ours.log_likelihood == pytest.approx(pooled.log_likelihood, rel=1e-10)
    assert ours.deviance == pytest.approx(pooled.deviance, rel=1e-10)
    assert ours.null_deviance == pytest.approx(pooled.null_deviance, rel=1e-9)


def test_the_joined_fit_is_statsmodels_on_the_joined_table(tmp_path):
    study = perform(experiment(written(tmp_path)))
    check_equal(study)
    frame = persons().iloc[:BOTH]
    x = pd.DataFrame(
        {
            "intercept": 1.0,
            "age": frame.age,
            "stays": frame.stays,
            "region[T.west]": frame.region == "west",
            "chronic[T.yes]": frame.chronic == "yes",
        }
    ).astype(float)
    right = sm.GLM(frame.claims, x, family=sm.families.Poisson(), exposure=frame.years).fit(
        tol=1e-12, tol_criterion="params"
    )
    ours = fitted(study, "federated")
    table = ours.coefficients().set_index("name")
    np.testing.assert_allclose(table.estimate[x.columns], right.params, rtol=1e-8)
    np.testing.assert_allclose(table.standard_error[x.columns], right.bse, rtol=1e-8)
    assert ours.log_likelihood == pytest.approx(right.llf, rel=1e-10)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({"family": "gaussian"}, {"exposure": None}),
        ({"family": "tweedie", "power": 1.5}, {"target": "paid"}),
        ({"family": "poisson", "ridge": 0.01}, {}),
        ({"family": "poisson", "alpha": 0.05, "l1": 0.8}, {}),
        (
            {},
            {
                "features": [
                    {"column": "age", "cut": (35.0, 50.0, 65.0), "monotone": "falling"},
                    {"column": "stays", "cut": (0.0, 1.0), "smooth": 0.05},
                ]
            },
        ),
        (
            {},
            {
                "features": [
                    {"column": "age", "spline": (20.0, 40.0, 60.0, 80.0)},
                    {"column": "stays", "pieces": (1.0,)},
                ]
            },
        ),
    ],
)
def test_every_family_is_the_pooled_fit(tmp_path, model, data):
    check_equal(perform(experiment(written(tmp_path), model=model, data=data)))


def test_two_sides_of_dvisits_give_the_known_answers(published):
    folder = published("fate_vertical")
    files = {"insurer": "dvisits_hetero_guest.csv.gz", "fund": "dvisits_hetero_host.csv.gz"}
    sides = [{"role": role, "path": str(folder / name)} for role, name in files.items()]
    values = {
        "name": "dvisits",
        "data": {"target": "doctorco", "test": 0.0},
        "joined": [side | {"key": "id"} for side in sides],
        "model": {"kind": "glm", "family": "poisson"},
        "protection": {"sums": "clear"},
        "arms": {"run": ["federated"], "replicates": 0},
    }
    fit = fitted(perform(experiment(values)), "federated")
    assert fit.rows == 5190
    assert fit.log_likelihood == pytest.approx(-3355.5413, abs=5e-5)
    assert fit.deviance == pytest.approx(4379.5151, abs=5e-5)


@pytest.mark.parametrize("learns", ["both", "insurer", "fund"])
def test_the_fit_does_not_depend_on_who_learns_whom(tmp_path, learns):
    values = written(tmp_path) | {"alignment": {"learns": learns, "cap": 400}}
    check_equal(perform(experiment(values, protection={"sums": "clear"})))


def test_a_logistic_fit_is_statsmodels_on_the_joined_table(tmp_path):
    changes = {"target": "any", "exposure": None, "features": ["age", "stays", "chronic"]}
    study = perform(experiment(written(tmp_path), model={"family": "binomial"}, data=changes))
    frame = persons().iloc[:BOTH]
    x = np.column_stack([np.ones(BOTH), frame.age, frame.stays, frame.chronic == "yes"]).astype(
        float
    )
    right = sm.GLM(frame["any"], x, family=sm.families.Binomial()).fit(
        tol=1e-12, tol_criterion="params"
    )
    ours = fitted(study, "federated")
    np.testing.assert_allclose(ours.coefficients().estimate, right.params, rtol=1e-6)
    np.testing.assert_allclose(ours.coefficients().standard_error, right.bse, rtol=1e-6)
    assert ours.log_likelihood == pytest.approx(right.llf, rel=1e-8)
    assert any("each row's mean is right to 6e-10" in line for line in study.notices)


def test_one_fund_joined_to_three_insurers_is_one_fit(tmp_path):
    study = perform(experiment(written(tmp_path, insurers=3)))
    check_equal(study)
    assert [side.name for side in study.market.nodes] == [
        "insurer 1",
        "insurer 2",
        "insurer 3",
        "fund",
    ]


def test_an_insurer_s_table_can_be_dealt_to_several(tmp_path):
    values = written(tmp_path) | {"parties": {"split": "uniform", "count": 2}}
    check_equal(perform(experiment(values, protection={"sums": "clear"})))


@pytest.mark.slow
def test_the_fit_by_paillier_is_the_pooled_one(tmp_path):
    check_equal(perform(experiment(written(tmp_path), protection={"product": "paillier"})))


@pytest.mark.slow
def test_a_logistic_fit_and_intervals_by_paillier_are_those_of_the_joined_table(tmp_path):
    values, frame = written(tmp_path), persons().iloc[:80]
    for name, key in (("own0", "person"), ("fund", "card")):
        table = pd.read_csv(tmp_path / f"{name}.csv")
        table[table[key].isin(frame.person)].to_csv(tmp_path / f"{name}.csv", index=False)
    study = perform(
        experiment(
            values,
            model={"family": "binomial"},
            data={"target": "any", "exposure": None, "features": ["age", "stays"], "test": 0.3},
            protection={"product": "paillier"},
            arms={"replicates": 20},
        )
    )
    fits = [fitted(study, arm).coefficients() for arm in ("federated", "pooled")]
    np.testing.assert_allclose(fits[0].estimate, fits[1].estimate, rtol=1e-6)
    np.testing.assert_allclose(fits[0].standard_error, fits[1].standard_error, rtol=1e-6)
    (line,) = study.differences.query("party == 'all'").itertuples()
    assert abs(line.difference) < 1e-6 and -1e-3 < line.low <= line.high < 1e-3


def test_arms_of_sides_are_scored_on_the_same_persons(tmp_path):
    values = written(tmp_path)
    study = perform(
        experiment(
            values,
            data={"test": 0.4},
            arms={"run": ["insurer", "fund", "federated", "pooled"], "replicates": 50},
        )
    )
    scores = study.table().xs("all", level="party")
    assert scores.loc["federated", "deviance_explained"] == pytest.approx(
        scores.loc["pooled", "deviance_explained"], rel=1e-9
    )
    exact = study.table().xs("insurer", level="party")
    assert (scores.gini - exact.gini).abs().max() < 0.04  # 96 rows, ten persons a bin
    assert (
        scores.loc["insurer", "deviance_explained"] < scores.loc["federated", "deviance_explained"]
    )
    against = study.differences.set_index("against")
    whole = against[against.party == "all"]
    assert whole.loc["pooled", ["difference", "low", "high"]].abs().max() < 1e-9
    assert (
        whole.loc["insurer", "low"]
        < whole.loc["insurer", "difference"]
        < whole.loc["insurer", "high"]
    )
    assert all(line.fewest_persons is None or line.fewest_persons >= 10 for line in study.opened)


def test_rows_without_a_key_take_no_part_and_are_counted(tmp_path):
    values = written(tmp_path)
    table = pd.read_csv(tmp_path / "fund.csv")
    table.loc[:4, "card"] = ""
    table.to_csv(tmp_path / "fund.csv", index=False)
    market = SimulatedMarket(experiment(values))
    assert market.by_contract[0] == "fund: 5 rows without card take no part"
    assert "of both, which no side is told" in market.by_contract[-2]


def test_columns_of_one_name_at_both_sides_are_told_apart(tmp_path):
    values = written(tmp_path)
    table = pd.read_csv(tmp_path / "fund.csv")
    table.rename(columns={"stays": "age"}).to_csv(tmp_path / "fund.csv", index=False)
    study = perform(
        experiment(values, data={"features": ["age", "fund.age"]}, protection={"sums": "clear"})
    )
    check_equal(study)
    assert "both sides have age: the fund's are called fund.age and so on" in study.notices


def test_a_side_can_hold_some_columns_of_a_table(tmp_path):
    values = written(tmp_path)
    values["joined"][0]["columns"] = ["claims", "years", "region"]
    market = SimulatedMarket(experiment(values, data={"features": None}))
    assert [f.column for f in market.features["model"]] == ["region", "stays", "chronic"]
    values["joined"][0]["columns"] = ["claims", "years", "agee"]
    with pytest.raises(ConfigurationError, match="no column 'agee'; did you mean 'age'"):
        SimulatedMarket(experiment(values))


def test_a_key_of_one_of_several_tables_is_set_by_its_number():
    from lab.records import set_key

    values: dict[str, Any] = {"joined": [{"path": "a"}, {"path": "b"}]}
    set_key(values, "joined.1.path", "c")
    assert values["joined"][1]["path"] == "c"
    for key, message in (("joined.2.path", "from 0 to 1"), ("joined.path", "joined.0.path")):
        with pytest.raises(ConfigurationError, match=message):
            set_key(values, key, "d")


def test_keys_are_compared_in_one_spelling(tmp_path):
    values = written(tmp_path)
    table = pd.read_csv(tmp_path / "fund.csv")
    table["card"] = table["card"].str.replace("P", "Ｐ")
    table.to_csv(tmp_path / "fund.csv", index=False)
    assert len(SimulatedMarket(experiment(values)).tables.whole.frame) == BOTH


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: pd.concat([t, t.iloc[:2]]), "share a value of card"),
        (lambda t: t.assign(card=[f"X{k}" for k in range(len(t))]), "no person of fund.csv"),
    ],
)
def test_tables_that_can_t_be_joined_are_refused(tmp_path, change, message):
    values = written(tmp_path)
    change(pd.read_csv(tmp_path / "fund.csv")).to_csv(tmp_path / "fund.csv", index=False)
    with pytest.raises(ContractError, match=message):
        SimulatedMarket(experiment(values))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"arms": {"run": ["alone"]}}, "'alone' is not for joined sides"),
        ({"model": {"kind": "network"}}, "joined sides take 'glm' or 'trees'"),
        ({"protection": {"sums": "masks"}}, "joined sides take 'paillier' or 'clear'"),
        ({"data": {"features": [{"column": "age", "spline": 4}]}}, "list the knots"),
        ({"data": {"path": "x.csv"}}, r"rows come from \[\[joined\]\]"),
    ],
)
def test_what_joined_sides_can_t_do_is_refused_before_the_run(tmp_path, tables, message):
    with pytest.raises((ConfigurationError, ValueError), match=message):
        experiment(written(tmp_path), **tables)


def test_an_experiment_that_no_file_gave_is_checked_too(tmp_path):
    values = written(tmp_path) | {"protection": {"sums": "masks"}}
    with pytest.raises(ConfigurationError, match="joined sides take 'paillier' or 'clear'"):
        perform(Experiment.model_validate(values))


def test_arms_of_sides_need_sides():
    with pytest.raises(ValueError, match="is for sides that are joined"):
        Experiment.model_validate(
            {
                "name": "x",
                "data": {"source": "rand_hie", "target": "mdvis"},
                "model": {"kind": "glm"},
                "arms": {"run": ["fund"]},
            }
        )


def test_a_column_of_the_fund_that_carries_the_target_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="stands at the fund"):
        SimulatedMarket(
            experiment(written(tmp_path), data={"target": "stays", "features": ["age", "chronic"]})
        )
