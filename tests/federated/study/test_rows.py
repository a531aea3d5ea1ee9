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
from lab.errors import ConfigurationError


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
