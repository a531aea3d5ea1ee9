"""What a party announces of levels that no contract lists, as a whole study shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.study.arms import perform
from federated.study.experiment import Experiment
from lab.privacy.joining import RARE


def experiment(tmp_path: Path, model: dict[str, Any], few: int = 4) -> Experiment:
    """Three parties; of brand z each has a few rows."""
    rng = np.random.default_rng(0)
    brand = [*["a"] * 100, *["b"] * 60, *["z"] * few] * 3
    frame = pd.DataFrame(
        {
            "claims": rng.poisson(1.0, len(brand)),
            "brand": brand,
            "insurer": np.repeat(["one", "two", "three"], len(brand) // 3),
        }
    )
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    return Experiment.model_validate(
        {
            "name": "t",
            "data": {"path": str(path), "target": "claims", "features": ["brand"], "test": 0.0},
            "parties": {"split": "column", "column": "insurer"},
            "protection": {"sums": "clear"},
            "model": model,
            "arms": {"run": ["federated"], "replicates": 0},
        }
    )


@pytest.mark.parametrize("kind", ["glm", "trees"])
def test_a_level_of_few_rows_at_each_party_is_in_no_model(tmp_path: Path, kind: str) -> None:
    study = perform(experiment(tmp_path, {"kind": kind, "family": "poisson"}))
    file = study.arms["federated"].models["all"]["model"].file
    assert f'"{RARE}"' in file
    assert '"z"' not in file


@pytest.mark.parametrize("kind", ["glm", "trees"])
def test_a_level_of_two_parties_of_three_is_in_no_model(tmp_path: Path, kind: str) -> None:
    made = experiment(tmp_path, {"kind": kind, "family": "poisson"}, few=40)
    frame = pd.read_csv(str(made.data.path))
    frame.loc[(frame.insurer == "three") & (frame.brand == "z"), "brand"] = "a"
    frame.to_csv(str(made.data.path), index=False)
    arms = {"arms": made.arms.model_copy(update={"run": ("alone", "federated", "pooled")})}
    study = perform(made.model_copy(update=arms))
    files = {
        name: arm.models["all"]["model"].file for name, arm in study.arms.items() if name != "alone"
    }
    assert '"b"' in files["federated"] and '"z"' not in files["federated"]
    assert '"z"' in study.arms["alone"].models["insurer one"]["model"].file
    if kind == "trees":
        assert files["federated"] == files["pooled"]


def test_what_is_rare_is_not_the_base_level(tmp_path: Path) -> None:
    study = perform(experiment(tmp_path, {"kind": "glm"}))
    assert list(study.coefficients["name"]) == ["intercept", "brand[T.b]", f"brand[T.{RARE}]"]


@pytest.mark.parametrize("kind", ["glm", "trees"])
def test_a_level_of_few_persons_at_all_parties_together_has_no_coefficient(
    tmp_path: Path, kind: str
) -> None:
    study = perform(experiment(tmp_path, {"kind": kind, "family": "poisson"}, few=3))
    file = study.arms["federated"].models["all"]["model"].file
    assert RARE not in file and '"z"' not in file and '"b"' in file
