"""One file, three arms, one record: what a researcher relies on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from federated.messages import refuse
from federated.run import run
from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError, ContractError, PolicyError

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
RAND = EXPERIMENTS / "rand_hie.toml"
CLEAR = {"protection.sums": "clear", "arms.replicates": 20}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("runs")
    return run(RAND, {"protection.key_bits": 2048, "arms.replicates": 20}, runs=folder, track=False)


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_experiment_is_well_formed(path: Path) -> None:
    assert Experiment.read(path).name


def test_federated_equals_pooled_and_both_beat_small_parties_alone(study: Study) -> None:
    scores = study.scores["deviance_explained"]
    assert scores["federated", "all"] == pytest.approx(scores["pooled", "all"], abs=1e-10)
    smallest = study.market.parties[-1].name
    assert scores["federated", smallest] > scores["alone", smallest]


def test_federated_fit_equals_statsmodels_on_the_same_training_rows(study: Study) -> None:
    frame = study.market.pooled().train
    x = sm.add_constant(frame.drop(columns="mdvis"))
    theirs = sm.GLM(frame.mdvis, x, family=sm.families.Poisson()).fit(tol=1e-14)
    ours = study.fits("model")["federated"].coefficients().set_index("name")
    names = ["intercept", *x.columns[1:]]
    np.testing.assert_allclose(ours.loc[names, "estimate"], theirs.params, rtol=1e-8)
    np.testing.assert_allclose(ours.loc[names, "standard_error"], theirs.bse, rtol=1e-8)


def test_the_record_is_whole_and_self_contained(study: Study) -> None:
    names = {p.name for p in study.folder.iterdir()}
    assert names == {"result.json", "report.html", "receipt.csv", "models"}
    result = json.loads((study.folder / "result.json").read_text())
    assert result["receipt_totals"]["hiding"] == ["paillier"]
    assert result["receipt_totals"]["raw_records"] == 0
    assert set(result["arms"]) == {"alone", "federated", "pooled"}
    assert result["arms"]["federated"]["fit"]["coefficients"][0]["name"] == "intercept"
    page = (study.folder / "report.html").read_text()
    assert "under Paillier encryption, 2048 bits" in page
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in page.replace("http://www.w3.org/", "").replace("url(#", "")


def test_a_run_in_the_clear_says_so_in_large_letters(tmp_path: Path) -> None:
    study = run(RAND, CLEAR, runs=tmp_path, track=False)
    assert "IN THE CLEAR" in (study.folder / "report.html").read_text()
    assert set(study.receipt["hiding"]) == {"clear"}


def test_same_seed_same_model_and_another_seed_another_split(tmp_path: Path) -> None:
    def digest(**changes: object) -> str:
        study = perform(Experiment.read(RAND, CLEAR | changes), workers=changes.pop("w", None))
        return study.arms["federated"].models["all"]["model"].hash

    assert digest() == digest()
    assert digest() != digest(seed=8)


def test_changing_the_test_rows_changes_nothing_in_the_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 900
    frame = pd.DataFrame(
        {
            "y": rng.poisson(1.0, n),
            "age": rng.normal(40, 9, n),
            "plan": rng.choice(["a", "b", "c"], n),
            "fold": np.where(np.arange(n) < 200, "test", "train"),
        }
    )
    other = frame.copy()
    at = other.fold == "test"
    other.loc[at, "age"] = 1000.0 * rng.random(at.sum())
    other.loc[at, "plan"] = "z"
    other.loc[at, "y"] = 50
    hashes = []
    for k, table in enumerate((frame, other)):
        path = tmp_path / f"t{k}.csv"
        table.to_csv(path, index=False)
        for kind in ({}, {"kind": "network", "rounds": 2, "hidden": [4]}):
            hashes.append((k, bool(kind), fitted_hash(path, kind)))
    by_kind = {network: {h for _, n_, h in hashes if n_ == network} for network in (False, True)}
    assert all(len(found) == 1 for found in by_kind.values())


def fitted_hash(path: Path, model: dict[str, object]) -> str:
    experiment = Experiment.model_validate(
        {
            "name": "t",
            "data": {
                "path": str(path),
                "target": "y",
                "features": ["age", "plan"],
                "test_column": "fold",
                "test_value": "test",
            },
            "parties": {"split": "uniform", "count": 3},
            "model": {"kind": "glm", **model},
            "protection": {"sums": "clear"},
            "arms": {"run": ["federated"], "replicates": 0},
        }
    )
    return perform(experiment).arms["federated"].models["all"]["model"].hash


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.targt": "x"}, "unknown key 'data.targt'; did you mean 'target'"),
        ({"model.ridge": -1}, "model.glm.ridge|model.ridge"),
        ({"model.family": "poison"}, "family"),
        ({"parties.count": 0}, "parties.count must be at least 1"),
        ({"model.power": 1.5}, "power belongs to tweedie"),
        ({"data.test": 1.0}, "data.test"),
        ({"protection.sums": "rot13"}, "protection.sums"),
        ({"protection.key_bits": 1024}, "key_bits"),
        ({"data.exposure": "lpi", "model.family": "gaussian"}, "needs the log link"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Experiment.read(RAND, changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.features": '["lncons"]'}, "no column 'lncons'; did you mean 'lncoins'"),
        ({"data.features": '["mdvis"]'}, "cannot be a feature"),
        ({"data.target": "mdvi"}, "did you mean 'mdvis'"),
        ({"data.cap": "{ nothing = 3 }"}, "data.cap"),
    ],
)
def test_a_column_that_is_not_there_is_refused_by_name(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        SimulatedMarket(Experiment.read(RAND, changes))


def user_table(tmp_path: Path, **columns: object) -> dict[str, object]:
    n = 60
    frame = pd.DataFrame({"y": np.arange(n) % 3, "x": np.linspace(0, 1, n)} | columns)
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = {"path": str(tmp_path / "t.csv"), "target": "y", "features": ["x"]}
    return {
        "name": "t",
        "data": data,
        "model": {"kind": "glm"},
        "parties": {"split": "uniform", "count": 3},
    }


def test_a_missing_feature_is_refused_or_treated_as_the_file_says(tmp_path: Path) -> None:
    x = np.linspace(0, 1, 60)
    x[5] = np.nan
    values = user_table(tmp_path, x=x)
    with pytest.raises(ContractError, match="feature 'x' is missing in some rows") as refusal:
        SimulatedMarket(Experiment.model_validate(values))
    assert refusal.value.violations == ("missing in 1 rows (first: 6)",)
    left = refuse(refusal.value, "insurer 1").config_records["refusal"]["text"]
    assert "in 1 rows" not in str(left) and "6" not in str(left)
    for way, rows in (("drop", 59), ("mean", 60)):
        values["data"]["missing"] = way
        market = SimulatedMarket(Experiment.model_validate(values))
        assert sum(len(p.train) + len(p.test) for p in market.parties) == rows


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("exposure", 0.0, "above 0"), ("target", -1, "0 or more")],
)
def test_exposures_and_counts_out_of_range_are_refused(
    tmp_path: Path, column: str, value: float, words: str
) -> None:
    values = user_table(tmp_path, e=np.ones(60))
    values["data"]["exposure"] = "e"
    values["protection"] = {"sums": "clear"}
    frame = pd.read_csv(values["data"]["path"]).astype(float)
    frame.loc[7, {"exposure": "e", "target": "y"}[column]] = value
    frame.to_csv(values["data"]["path"], index=False)
    with pytest.raises(ContractError, match=words):
        perform(Experiment.model_validate(values))


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ({"protection.key": "split"}, "The key is split among all 3 parties"),
        ({"protection.sums": "masks"}, "under pairwise masks"),
    ],
    ids=["split", "masks"],
)
def test_the_model_is_the_same_however_it_is_hidden(
    way: dict[str, str], words: str, tmp_path: Path
) -> None:
    few = {"parties.count": 3, "arms.run": '["federated"]', "arms.replicates": 0}
    changes = {"protection.key_bits": 2048, **few, **way}
    hidden = run(RAND, changes, runs=tmp_path, track=False)
    clear = perform(Experiment.read(RAND, {**few, "protection.sums": "clear"}))
    ours, theirs = (s.coefficients["estimate"] for s in (hidden, clear))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert words in (hidden.folder / "report.html").read_text()
    (steps,) = (line for line in hidden.opened if line.statistic == "glm_step")
    assert steps.fewest_persons == 1  # a curvature's entries for two columns, which all parties see
    with pytest.raises(ConfigurationError, match=r"model\.joint_cells = 'refuse': .* few persons"):
        perform(Experiment.read(RAND, {**few, **way, "model.joint_cells": "refuse"}))


def test_two_parties_under_paillier_are_refused() -> None:
    with pytest.raises(PolicyError, match="at least 3 parties"):
        perform(Experiment.read(RAND, {"parties.count": 2, "arms.run": '["federated"]'}))


def test_frequency_times_severity_is_the_pure_premium(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    n = 3000
    claims = rng.poisson(0.4, n)
    frame = pd.DataFrame({"n": claims, "x": rng.normal(size=n), "e": rng.uniform(0.2, 1, n)})
    frame["paid"] = [rng.gamma(2, 500, k).sum() for k in claims]
    frame.to_csv(tmp_path / "t.csv", index=False)
    experiment = Experiment.model_validate(
        {
            "name": "t",
            "data": {
                "path": str(tmp_path / "t.csv"),
                "target": "n",
                "exposure": "e",
                "features": ["x"],
            },
            "model": {"kind": "glm", "severity": {"target": "paid", "per": "n"}},
            "parties": {"split": "uniform", "count": 3},
            "protection": {"sums": "clear"},
        }
    )
    study = perform(experiment)
    models = study.arms["federated"].models["all"]
    rows = study.market.pooled().test
    product = models["frequency"].model.predict(rows) * models["severity"].model.predict(rows)
    np.testing.assert_allclose(models["pure premium"].model.predict(rows), product)
    assert study.parts == ("frequency", "severity", "pure premium")
    assert 0.9 < study.scores["balance"]["federated", "all"] < 1.1


def test_noll_split_gives_the_published_deviances(published) -> None:
    folder = published("freMTPL2")
    changes = {
        "data.path": str(folder / "freMTPL2freq.csv.gz"),
        "data.test_rows": str(folder / "split_noll_R_seed100_rounding_test_rows0.csv.gz"),
        "arms.run": '["federated"]',
        **CLEAR,
    }
    study = perform(Experiment.read(EXPERIMENTS / "fremtpl2_frequency.toml", changes))
    fit = study.fits("model")["federated"]
    test = study.arms["federated"].evaluations["model"]["all"].fit
    rows = test.total("rows")
    assert len(fit.model.beta) == 49
    assert 100 * fit.deviance / fit.rows == pytest.approx(31.26738, abs=1e-5)
    assert 100 * fit.null_deviance / fit.rows == pytest.approx(32.93518, abs=1e-5)
    assert 100 * test["deviance"][0] / rows == pytest.approx(32.17123, abs=1e-5)
    assert 100 * test["null_deviance"][0] / rows == pytest.approx(33.86149, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"kind": "glm", "family": "poisson"}, {"level_counts", "score_levels", "score_lorenz"}),
        (
            {
                "kind": "trees",
                "family": "poisson",
                "trees": 2,
                "min_gain": 0.0,
                "validation_share": 0.0,
            },
            {"trees_persons", "trees_leaves", "score_levels", "score_lorenz"},
        ),
    ],
    ids=["glm", "trees"],
)
def test_what_was_opened_is_counted_and_none_of_it_stands_on_few(
    tmp_path: Path, model: dict[str, Any], told: set[str]
) -> None:
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"age": rng.integers(20, 80, 900), "claims": rng.poisson(1.0, 900)})
    frame["region"] = rng.choice(["a", "b", "c", "d"], 900, p=[0.5, 0.3, 0.195, 0.005])
    frame.to_csv(tmp_path / "t.csv", index=False)
    values = {
        "name": "t",
        "data": {"path": str(tmp_path / "t.csv"), "target": "claims"},
        "parties": {"count": 3},
        "protection": {"key_bits": 2048},
        "model": model,
        "arms": {"run": ["federated"], "replicates": 2},
    }
    study = run(Experiment.model_validate(values), runs=tmp_path / "runs", track=False)
    result = json.loads((study.folder / "result.json").read_text())
    fewest = {line["statistic"]: line["fewest_persons"] for line in result["opened"]}
    assert {name for name, persons in fewest.items() if persons is not None} == told
    assert min(persons for persons in fewest.values() if persons is not None) >= 10
    assert all(line["numbers"] > 0 for line in result["opened"])
    assert "What was opened" in (study.folder / "report.html").read_text()


def test_under_masks_each_number_that_was_opened_is_over_all_rows(tmp_path: Path) -> None:
    few = {"parties.count": 3, "arms.run": '["federated"]', "arms.replicates": 0}
    study = perform(Experiment.read(RAND, {**few, "protection.sums": "masks"}))
    fewest = {line.statistic: line.fewest_persons for line in study.opened}
    assert fewest.pop("glm_step") == 1  # entries of the curvature for two columns
    assert set(fewest.values()) == {None}
    clear = perform(Experiment.read(RAND, {**few, "protection.sums": "clear"}))
    assert min(line.fewest_persons for line in clear.opened if line.fewest_persons) == 1
    assert {"moments", "level_parties"} & set(fewest)
    assert study.arms["federated"].evaluations["model"]["all"].lorenz is None
