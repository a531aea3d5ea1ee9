"""A table without a contract: every column was a feature, and a model held its patients' numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from federated import app
from federated.study import simulation
from federated.study.arms import perform
from federated.study.experiment import Experiment
from lab.models.agreement import seen_levels

PATIENTS = 90
TREES = {"kind": "trees", "family": "poisson", "trees": 3, "min_child_rows": 4.0}


def patients() -> pd.DataFrame:
    """Four visits each, at one of three insurers."""
    rng = np.random.default_rng(3)
    number = np.repeat(np.arange(PATIENTS), 4)
    return pd.DataFrame(
        {
            "visits": rng.poisson(1.0, len(number)),
            "age": rng.integers(20, 32, len(number)),
            "patient_id": [f"P{k:03d}" for k in number],
            "insurer": np.array(["one", "two", "three"])[number % 3],
        }
    )


def model_file(folder: Path, **model: int) -> str:
    """The federated model of an experiment that names no feature."""
    path = folder / "visits.csv"
    patients().to_csv(path, index=False)
    experiment = Experiment.model_validate(
        {
            "name": "visits",
            "data": {"path": str(path), "target": "visits", "test": 0.0},
            "parties": {"split": "column", "column": "insurer"},
            "protection": {"sums": "clear"},
            "model": {**TREES, **model},
            "arms": {"run": ["federated"], "replicates": 0},
        }
    )
    return perform(experiment).arms["federated"].models["all"]["model"].file


def numbers_in(text: str) -> int:
    return sum(f"P{k:03d}" in text for k in range(PATIENTS))


@pytest.fixture
def unsifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first guard off: whatever stands in a table is a feature."""
    monkeypatch.setattr(simulation, "sifted", lambda experiment, table, drafted: (table, {}))


@pytest.mark.usefixtures("unsifted")
def test_where_every_column_is_a_feature_a_model_holds_all_patients_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unprotected twin; two more guards are off: every level's name is announced, and no level
    is joined to others for standing on few persons."""
    monkeypatch.setattr(
        app, "seen_levels", lambda rows, feature, *least: seen_levels(rows, feature)
    )
    assert numbers_in(model_file(tmp_path, min_persons=1)) == PATIENTS


@pytest.mark.usefixtures("unsifted")
def test_a_level_of_few_persons_has_no_name_even_where_it_is_a_feature(tmp_path: Path) -> None:
    assert numbers_in(model_file(tmp_path)) == 0


def test_a_number_of_patients_is_no_feature(tmp_path: Path) -> None:
    text = model_file(tmp_path)
    assert '"age"' in text and "patient_id" not in text
