"""A small table of claims, several years of a person, and an experiment on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

CONTRACT = """name = "claims"
[columns]
person = { type = "integer", role = "identifier" }
age = { type = "integer", minimum = 18, maximum = 80 }
years = { type = "integer", minimum = 18, maximum = 80 }
bonus = { type = "number", minimum = -9, maximum = 9 }
claims = { type = "integer", role = "target", minimum = 0 }
"""
EXPERIMENT = """name = "claims"
seed = 3
[data]
path = "claims.csv"
contract = "claims.toml"
target = "claims"
person = "person"
features = ["age", "bonus"]
[parties]
split = "uniform"
count = 3
[model]
kind = "glm"
family = "poisson"
[protection]
sums = "clear"
[arms]
run = ["alone", "federated"]
replicates = 0
[tune]
method = "grid"
folds = 3
[tune.vary]
model.ridge = [0.0, 0.1, 1.0]
"""


@pytest.fixture
def claims(tmp_path: Path) -> Path:
    """The experiment's file; ``years`` is ``age`` again, which no GLM without ridge takes twice."""
    rng = np.random.default_rng(5)
    person = np.repeat(np.arange(300), 2)
    age, bonus = rng.integers(18, 81, 600), rng.normal(size=600)
    claims = rng.poisson(np.exp(0.5 * bonus - 0.01 * age))
    columns = {"person": person, "age": age, "years": age, "bonus": bonus, "claims": claims}
    pd.DataFrame(columns).to_csv(tmp_path / "claims.csv", index=False)
    (tmp_path / "claims.toml").write_text(CONTRACT)
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path
