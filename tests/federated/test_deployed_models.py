"""Every kind of model among real processes: the oracle is the simulation of the same file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated import arms
from federated.experiment import Experiment
from federated.parties import deal_tables
from tests.federated.trial import Trial, hash_of, started

CONTRACT = """name = "trial"
[columns]
person = { type = "integer", role = "identifier", minimum = 1 }
provider = { type = "integer", role = "identifier", minimum = 1 }
day = { type = "integer", role = "identifier", minimum = 0, maximum = 59 }
late = { type = "integer", role = "identifier", minimum = 0, maximum = 1 }
payer = { type = "category", role = "identifier", levels = ["a", "b", "c", "d"] }
age = { type = "integer", minimum = 0, maximum = 110 }
cost = { type = "number", nullable = true }
weekday = { type = "integer", minimum = 0, maximum = 6 }
clinic = { type = "category" }
sex = { type = "category", levels = ["F", "M"] }
fraud = { type = "integer", role = "target", minimum = 0, maximum = 1 }
"""
FEATURES = ["age", "cost", "weekday", "clinic", "sex"]
TREES = {"kind": "trees", "trees": 6, "depth": 2, "least": 5.0, "bins": 8, "learning_rate": 0.4}
STOPPED = {**TREES, "held": 0.3, "patience": 2, "features": 0.6}
NETWORK = {"kind": "network", "family": "binomial", "hidden": [4], "rounds": 3, "epochs": 1}


def claims(rows: int = 800) -> pd.DataFrame:
    """Claims of four payers, with a category nobody lists, missing costs, and frauds that are few."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "person": rng.integers(1, 200, rows),
            "provider": rng.choice([11, 12, 15], rows, p=[0.6, 0.37, 0.03]),
            "day": rng.integers(0, 60, rows),
            "late": (rng.random(rows) < 0.25).astype(int),
            "payer": rng.choice(["a", "b", "c", "d"], rows, p=[0.4, 0.3, 0.2, 0.1]),
            "age": rng.integers(0, 90, rows),
            "cost": np.where(rng.random(rows) < 0.1, np.nan, rng.gamma(2.0, 100.0, rows)),
            "weekday": rng.integers(0, 7, rows),
            "clinic": rng.choice(["north", "south", "east"], rows),
            "sex": rng.choice(["F", "M"], rows),
        }
    )
    odds = 0.1 + 0.2 * (frame["provider"] == 12) + 0.2 * (frame["age"] > 60)
    return frame.assign(fraud=(rng.random(rows) < odds).astype(int))


def study(root: Path, model: dict[str, Any], **changes: Any) -> Experiment:
    """An experiment on the claims of all payers, as a simulation has it."""
    data = {
        "path": str(root / "claims.parquet"),
        "contract": str(root / "claims.toml"),
        "target": "fraud",
        "features": FEATURES,
        "missing": "keep" if model["kind"] == "trees" else "mean",
        "test_column": "late",
        "test_value": 1,
        "together": False,
    }
    values: dict[str, Any] = {
        "name": "claims",
        "seed": 5,
        "data": data | changes.pop("data", {}),
        "parties": {"split": "column", "column": "payer"},
        "model": model,
        "protection": {"key_bits": 2048} | changes.pop("protection", {}),
        "arms": {"run": ["federated"], "replicates": 0},
    }
    return Experiment.model_validate(values | changes)


class Payers(Trial):
    """A trial exchange whose insurers hold the tables that a simulation deals."""

    analyses = ("glm", "network", "trees", "profiles")

    def _tables(self, insurers: int, rows: int) -> dict[str, tuple[Path, Path]]:
        self.contract = self.root / "claims.toml"
        self.contract.write_text(CONTRACT)
        claims(rows * insurers).to_parquet(self.root / "claims.parquet", index=False)
        everything = {"person": "person", "features": FEATURES}
        detected = {"groups": ["sex"], "amount": "cost", "truth": "fraud"}
        whole = study(self.root, TREES, data=everything, detection=detected, profile=[PROFILE])
        dealt = deal_tables(whole, self.root / "tables")
        return {n: (at / "table.parquet", at / "contract.toml") for n, at in dealt.items()}

    def open_up(self) -> None:
        """Nodes take part in every analysis."""
        for name in self.insurers:
            self.limits(
                name,
                analyses='["glm", "network", "trees", "profiles"]',
                announces='["clinic"]',
                minimum_rows="1",
            )


PROFILE = {
    "name": "known",
    "by": "provider",
    "day": "day",
    "every": 30,
    "measures": ["claims", "persons", "returning"],
    "means": ["cost"],
    "shares": {"weekend": {"column": "weekday", "operation": ">=", "value": 5}},
}


@pytest.fixture(scope="module")
def payers(tmp_path_factory: Any, authority_key: Any) -> Iterator[Payers]:
    root = tmp_path_factory.mktemp("payers")
    register = pd.DataFrame({"provider": [11, 12, 15, 16]})
    register.to_csv(root / "register.csv", index=False)
    PROFILE["register_file"] = str(root / "register.csv")
    made = Payers(root, authority_key, insurers=4, rows=200)
    made.open_up()
    with started(made):
        yield made


def simulated(experiment: Experiment) -> arms.Study:
    """The same file without an exchange."""
    return arms.perform(experiment)


@pytest.mark.parametrize(
    "model",
    [STOPPED, {**NETWORK, "imbalance": "weights"}, {"kind": "glm", "family": "binomial"}],
    ids=lambda m: m["kind"],
)
def test_real_parties_give_the_model_and_the_scores_of_the_simulation(
    payers: Payers, model: dict[str, Any]
) -> None:
    detection = {"groups": ["sex"], "amount": None}
    experiment = study(payers.root, model, detection=detection)
    found, told = payers.run(experiment), simulated(experiment)
    assert hash_of(found) == hash_of(told)
    assert {p.state for p in found.outlook} == {"took part"}
    ours, theirs = (s.scores.loc[("federated", "all")] for s in (found, told))
    assert ours["average_precision"] == theirs["average_precision"]


def profiled(payers: Payers, **changes: Any) -> Experiment:
    data = {"person": "person", "features": [*FEATURES, "known_claims", "known_weekend"]}
    return study(payers.root, TREES, data=data, profile=[PROFILE], **changes)


def test_a_profile_among_real_parties_gives_the_model_of_the_simulation(payers: Payers) -> None:
    experiment = profiled(payers)
    found, told = payers.run(experiment), simulated(experiment)
    assert hash_of(found) == hash_of(told)
    assert 0 < found.arms["federated"].models["all"]["model"].profiles[0].shown < 8
