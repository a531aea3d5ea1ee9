"""`lab bench quality`: our trees beside LightGBM on tables that it is given."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from federated.bench import quality
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError
from lab.models.glm import Task

CLAIMS = """
name = "claims"
[data]
path = "claims.csv"
target = "claims"
exposure = "years"
[parties]
split = "uniform"
count = 3
[model]
kind = "glm"
family = "poisson"
"""


def claims(rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"age": rng.integers(18, 90, rows), "sex": rng.choice(["f", "m"], rows)})
    frame["years"] = rng.uniform(0.2, 1, rows)
    rate = np.exp(0.04 * (frame.age - 50) + 0.5 * (frame.sex == "m"))
    return frame.assign(claims=rng.poisson(rate * frame.years))


def test_an_experiment_of_ones_own_is_compared_whatever_its_model(tmp_path: Path) -> None:
    claims(900).to_csv(tmp_path / "claims.csv", index=False)
    (tmp_path / "claims.toml").write_text(CLAIMS)
    (line,) = quality.figures(tmp_path / "claims.toml", quick=True)
    assert line[0] == "claims, deviance explained"
    assert 0.05 < float(line[1]) < 0.6
    assert (line[2] == "LightGBM is not installed") == (find_spec("lightgbm") is None)


def test_published_tables_are_found_below_a_folder_and_as_a_file(tmp_path: Path) -> None:
    place = tmp_path / "freMTPL2" / "freMTPL2freq.csv.gz"
    place.parent.mkdir()
    place.touch()
    shipped = list(quality.SHIPPED)
    motor = ["frequency, French motor"]
    assert [n for n, _ in quality.tables(place)] == shipped + motor
    below = [n for n, _ in quality.tables(tmp_path)]
    assert below == [*shipped, *motor, "pure premium, French motor"]
    for _, values in quality.tables(place):
        assert Experiment.model_validate(values).model.kind == "trees"
    (tmp_path / "other.csv").touch()
    with pytest.raises(ConfigurationError, match=r"other.csv: quality takes a folder"):
        list(quality.tables(tmp_path / "other.csv"))


@pytest.mark.parametrize("law", ["poisson", "tweedie"])
def test_rates_under_weights_have_the_deviance_of_targets_with_an_offset(law: str) -> None:
    frame = claims(50)
    task = Task(target="claims", exposure="years", family=law, power=1.5 if law == "tweedie" else None)  # fmt: skip
    pool, rate = quality.Pool.of(frame, task, ["age"], None), np.full(50, 0.7)
    ours = task.law.deviance(frame.claims.to_numpy(), rate * frame.years.to_numpy())
    np.testing.assert_allclose(pool.weight * task.law.deviance(pool.y, rate), ours)
