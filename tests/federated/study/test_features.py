"""Which columns of a table without a contract a study takes as features, and which it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.study.experiment import Experiment
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError
from lab.tables.contracts import Contract

ROWS = 1016
DETECTOR = {"kind": "glm", "family": "binomial"}


def patients() -> pd.DataFrame:
    """254 patients of four visits each."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(254), 4)
    return pd.DataFrame(
        {
            "visits": rng.poisson(1.0, ROWS),
            "age": rng.integers(20, 60, ROWS),
            "plan": rng.choice(["a", "b", "c"], ROWS),
            "income": rng.normal(40.0, 9.0, ROWS),
            "town": [f"town {k}" for k in rng.integers(0, 90, ROWS)],
            "patient_id": [f"P{k:03d}" for k in person],
            "chart": [f"C{7919 * k % 100_000:05d}" for k in person],
            "receipt": rng.permutation(10**6)[:ROWS],
            "place": np.arange(1, ROWS + 1),
            "clinic_id": rng.integers(0, 5, ROWS),
        }
    )


def experiment(tmp_path: Path, data: dict[str, Any] | None = None, **values: Any) -> Experiment:
    path = tmp_path / "t.csv"
    patients().to_csv(path, index=False)
    return Experiment.model_validate(
        {
            "name": "t",
            "data": {"path": str(path), "target": "visits", **(data or {})},
            "model": {"kind": "glm"},
            "parties": {"split": "uniform", "count": 3},
            **values,
        }
    )


def columns(market: SimulatedMarket) -> list[str]:
    return [feature.column for feature in market.features["model"]]


def test_by_default_numbers_that_repeat_and_short_lists_of_levels_are_features(
    tmp_path: Path,
) -> None:
    market = SimulatedMarket(experiment(tmp_path, {"person": "patient_id"}))
    assert columns(market) == ["age", "plan"]
    assert market.parties[0].policy.announces == ("plan",)


def test_the_plan_has_the_features_of_the_market(tmp_path: Path) -> None:
    market = SimulatedMarket(experiment(tmp_path, {"person": "patient_id"}))
    assert market.plan({}, ()).features == market.features


def test_every_column_that_is_left_out_has_its_reason(tmp_path: Path) -> None:
    left_out = SimulatedMarket(experiment(tmp_path)).left_out
    assert left_out == {
        "income": "has 1,016 different values in 1,016 rows, which seldom repeat",
        "town": "has 90 levels, more than 64",
        "patient_id": "is named like an identifier",
        "chart": "has 254 levels, more than 64",
        "receipt": "has 1,016 different values for 1,016 rows or persons",
        "place": "numbers the rows",
        "clinic_id": "is named like the number of something",
    }


def test_with_features_listed_nothing_is_left_out(tmp_path: Path) -> None:
    market = SimulatedMarket(experiment(tmp_path, {"features": ["age", "income", "clinic_id"]}))
    assert columns(market) == ["age", "income", "clinic_id"]
    assert market.left_out == {}


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        ("patient_id", "is named like an identifier"),
        ("receipt", "has 1,016 different values"),
        ("place", "numbers the rows"),
    ],
)
def test_an_identifier_that_is_listed_is_refused_with_what_to_do(
    tmp_path: Path, column: str, reason: str
) -> None:
    words = f"data.features: '{column}' {reason}.*leave it out, or describe it in a contract"
    with pytest.raises(ConfigurationError, match=words):
        SimulatedMarket(experiment(tmp_path, {"features": ["age", column]}))
    with pytest.raises(ConfigurationError, match=f"model.severity.features: '{column}'"):
        severity = {"target": "income", "per": "visits", "features": [column]}
        SimulatedMarket(experiment(tmp_path, model={"kind": "glm", "severity": severity}))
    with pytest.raises(ConfigurationError, match=f"detection.groups: '{column}'"):
        detector = {"model": DETECTOR, "detection": {"groups": [column]}}
        SimulatedMarket(experiment(tmp_path, {"features": ["age"]}, **detector))


def test_a_column_with_one_value_for_each_person_is_an_identifier_of_persons(
    tmp_path: Path,
) -> None:
    data = {"features": ["age", "chart"]}
    SimulatedMarket(experiment(tmp_path, data))
    with pytest.raises(ConfigurationError, match="'chart' has 254 different values for 254"):
        SimulatedMarket(experiment(tmp_path, data | {"person": "patient_id"}))


def test_a_contract_may_say_that_such_a_column_is_a_feature(tmp_path: Path) -> None:
    contract = tmp_path / "contract.toml"
    contract.write_text(
        'name = "t"\n[columns]\nvisits = { type = "integer", role = "target" }\n'
        'receipt = { type = "integer", role = "feature" }\n'
    )
    assert Contract.read(contract).columns["receipt"].role == "feature"
    assert columns(SimulatedMarket(experiment(tmp_path, {"contract": str(contract)}))) == [
        "receipt"
    ]


def test_a_table_of_which_nothing_is_a_feature_says_why_of_each_column(tmp_path: Path) -> None:
    asked = experiment(tmp_path)
    patients()[["visits", "income", "patient_id"]].to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(
        ConfigurationError, match=r"unless it is listed: 'income' has .*'patient_id'"
    ):
        SimulatedMarket(asked)


def test_the_amount_of_a_detector_stays_readable_and_is_no_feature(tmp_path: Path) -> None:
    asked = experiment(tmp_path, model=DETECTOR, detection={"amount": "income"})
    patients().assign(visits=lambda f: f.visits.clip(upper=1)).to_csv(
        tmp_path / "t.csv", index=False
    )
    market = SimulatedMarket(asked)
    assert market.contract.columns["income"].role == "target"
    assert market.contract.columns["receipt"].role == "identifier"
    assert "income" in market.parties[0].train.columns
    assert columns(market) == ["age", "plan"]


@pytest.mark.parametrize(
    "more",
    [
        {"profile": [{"name": "p", "by": "clinic_id", "day": "age", "means": ["patient_id"]}]},
        {"profile": [{"name": "p", "by": "patient_id", "day": "age"}]},
        {"model": DETECTOR, "detection": {"groups": ["patient_id"]}},
    ],
    ids=["mean", "provider", "group"],
)
def test_the_person_is_no_source_of_features(tmp_path: Path, more: dict[str, Any]) -> None:
    contract = Contract.model_validate(
        {
            "name": "t",
            "columns": {
                "age": {"type": "integer"},
                "patient_id": {"type": "category", "role": "identifier"},
            },
        }
    )
    asked = experiment(tmp_path, {"person": "patient_id", "features": ["age"]}, **more)
    with pytest.raises(
        ConfigurationError, match=r"data\.person: 'patient_id' names the person of a row"
    ):
        asked.features(contract, "model")
