"""`lab data draft`: both files say why, are never written over, and make a run that runs."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from federated.cli.main import lab
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError
from lab.tables.contracts import Contract
from lab.tables.sources import load

ROWS = 600


def shown(*arguments: object) -> Result:
    return CliRunner().invoke(lab, [str(a) for a in arguments])


def claims() -> pd.DataFrame:
    rng = np.random.default_rng(9)
    frame = pd.DataFrame(
        {
            "Member No": [f"M{k // 2:04d}" for k in range(ROWS)],
            "Ort\x1b[2J": rng.choice(["Zürich", "Bern", 'Genève "rive"'], ROWS),
            "smoker": rng.choice(["true", "false"], ROWS),
            "bmi": rng.normal(25, 4, ROWS).round(1),
            "postcode": [f"{k:05d}" for k in rng.integers(0, 99999, ROWS)],
            "exposure": rng.choice([0.5, 1.0], ROWS),
            "claims": rng.poisson(0.4, ROWS),
        }
    )
    frame.loc[::9, "bmi"] = np.nan
    return frame


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_the_drafted_contract_is_kept_and_the_drafted_experiment_runs(
    tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"claims.{ending}"
    if ending == "parquet":
        claims().to_parquet(path, index=False)
    else:
        text = claims().to_csv(index=False, sep=";").encode()
        path.write_bytes(gzip.compress(text) if ending == "csv.gz" else text)
    done = shown("data", "draft", path, "--out", tmp_path / "drafts")
    assert done.exit_code == 0, done.exception
    assert "models claims (is named like a count of events; poisson: " in done.output
    contract = Contract.read(tmp_path / "drafts" / "claims-contract.toml")
    assert len(load(path=str(path), contract=contract).frame) == ROWS
    experiment = tmp_path / "drafts" / "claims-experiment.toml"
    settings = Experiment.read(experiment)
    assert (settings.data.exposure, settings.data.person) == ("exposure", "Member No")
    assert settings.data.features == ("Ort\x1b[2J", "smoker", "bmi")
    text = experiment.read_text()
    assert "# not a feature: postcode has" in text
    assert 'missing = "mean"  # missing in some rows: bmi' in text
    changes = ("--set", "protection.sums=clear", "--set", "arms.replicates=0")
    run = shown("run", experiment, *changes, "--no-track", "--runs", tmp_path / "runs")
    assert run.exit_code == 0, run.exception
    assert "whole market" in run.output


def test_a_draft_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    claims().to_csv("claims.csv", index=False)
    assert shown("data", "draft", "claims.csv").exit_code == 0
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert Experiment.read("claims-experiment.toml").data.path == "claims.csv"
    (tmp_path / "claims-contract.toml").unlink()
    again = shown("data", "draft", "claims.csv")
    assert isinstance(again.exception, ConfigurationError)
    assert "claims-experiment.toml: is there already" in str(again.exception)
    assert not (tmp_path / "claims-contract.toml").exists()
    (tmp_path / "claims-contract.toml").write_bytes(files[tmp_path / "claims-contract.toml"])
    assert files == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_few_rows_are_scored_in_sample_and_a_stated_target_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    claims().head(60).to_csv(path, index=False)
    assert shown("data", "draft", path, "--target", "bmi", "--out", tmp_path).exit_code == 0
    settings = Experiment.read(tmp_path / "few-experiment.toml")
    assert (settings.data.target, settings.data.test, settings.parties.count) == ("bmi", 0, 3)
    assert settings.model.family == "gamma" and settings.data.missing == "drop"
