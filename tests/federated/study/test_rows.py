"""The rows of a study are those that its files hold and number, at the time it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.study.arms import BoundParties, perform
from federated.study.experiment import Experiment
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError, LabError


def experiment(path: Path, data: dict[str, Any] | None = None) -> Experiment:
    """A Poisson model of the column claims, three parties, the federated arm alone."""
    values = {"path": str(path), "target": "claims", "features": ["age"], "test": 0.0}
    return Experiment.model_validate(
        {
            "name": "t",
            "data": values | (data or {}),
            "parties": {"split": "uniform", "count": 3},
            "protection": {"sums": "clear"},
            "model": {"kind": "glm", "family": "poisson"},
            "arms": {"run": ["federated"], "replicates": 0},
        }
    )


def table(rows: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame({"claims": rng.poisson(1.0, rows), "age": rng.integers(18, 80, rows) * 1.0})


def test_numbers_of_test_rows_count_the_rows_of_the_file_dropped_ones_too(tmp_path: Path) -> None:
    frame = table().assign(claims=np.arange(300))
    frame.loc[:29, "age"] = np.nan
    frame.to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"row": np.arange(100)}).to_csv(tmp_path / "rows.csv", index=False)
    data = {"missing": "drop", "test_rows": str(tmp_path / "rows.csv")}
    market = SimulatedMarket(experiment(tmp_path / "t.csv", data))
    claims = np.sort(np.concatenate([party.test["claims"] for party in market.parties]))
    np.testing.assert_array_equal(claims, np.arange(30, 100))


def test_a_second_run_reads_the_file_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    studies = []
    for frame in (table(), table().assign(claims=lambda t: t["claims"] + 1)):
        frame.to_csv(path, index=False)
        studies.append(perform(experiment(path)))
    first, second = (study.fits("model")["federated"] for study in studies)
    assert studies[0].market.digest != studies[1].market.digest
    assert second.model.beta[0] > first.model.beta[0] + 0.5


def test_a_table_that_changes_during_a_run_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    table().to_csv(path, index=False)
    market = SimulatedMarket(experiment(path))
    table(200).to_csv(path, index=False)
    text = experiment(path).model_dump_json()
    parties = BoundParties(text, "run", market.digest, binding=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="changed during the run"):
        parties(0)


def test_files_are_looked_for_beside_the_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "study"
    place.mkdir()
    table().to_csv(place / "t.csv", index=False)
    (place / "c.toml").write_text(
        'name = "c"\n[columns]\nclaims = { type = "integer" }\nage = { type = "integer" }\n'
    )
    (place / "e.toml").write_text(
        'name = "t"\n[data]\npath = "t.csv"\ncontract = "c.toml"\ntarget = "claims"\n'
        '[model]\nfamily = "poisson"\n[protection]\nsums = "clear"\n'
        '[arms]\nrun = ["federated"]\nreplicates = 0\n'
    )
    monkeypatch.chdir(tmp_path)
    beside = perform(Experiment.read("study/e.toml"))
    assert beside.market.contract.name == "c"
    monkeypatch.chdir(place)
    assert perform(Experiment.read("e.toml")).market.digest == beside.market.digest
    with pytest.raises(LabError, match="no such file"):
        perform(Experiment.read("e.toml", {"data.path": "u.csv"}))


@pytest.mark.parametrize("key", ["target", "exposure", "weight"])
def test_text_where_numbers_must_be_is_refused_without_a_value(key: str, tmp_path: Path) -> None:
    table().assign(smoker=np.tile(["Y", "N"], 150)).to_csv(tmp_path / "t.csv", index=False)
    study = experiment(tmp_path / "t.csv", {key: "smoker"})
    with pytest.raises(ConfigurationError, match=f"data.{key}: 'smoker' holds text, not numbers"):
        perform(study)


def test_true_and_false_are_a_target_also_where_some_are_missing(tmp_path: Path) -> None:
    frame = table()
    frame["claims"] = np.where(frame["claims"] > 0, "True", "False")
    whole, gaps = tmp_path / "t.csv", tmp_path / "gaps.csv"
    frame.iloc[10:].to_csv(whole, index=False)
    frame.loc[:9, "claims"] = None
    frame.to_csv(gaps, index=False)
    fits = [
        perform(experiment(path, {"missing": "drop"})).fits("model")["federated"]
        for path in (whole, gaps)
    ]
    np.testing.assert_allclose(fits[0].model.beta, fits[1].model.beta)


def test_words_for_missing_values_are_explained_where_they_are_refused(tmp_path: Path) -> None:
    frame = table().assign(plan=np.tile(["NA", "basic", "full"], 100))
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(LabError, match="where NA or None is a level, list it in a contract"):
        perform(experiment(tmp_path / "t.csv", {"features": ["age", "plan"]}))


def test_a_column_that_is_read_as_levels_is_read_as_it_is_written(tmp_path: Path) -> None:
    rows = table().assign(icd=np.tile(["01882", "1882", "1E3"], 100))
    rows.to_csv(tmp_path / "t.csv", index=False)
    feature = {"column": "icd", "category": True}
    study = perform(experiment(tmp_path / "t.csv", {"features": [feature]}))
    levels = study.market.parties[0].train["icd"].cat.categories
    assert list(levels) == ["01882", "1882", "1E3"]
