"""A coordinator that chooses what model is scored reads every record, out of exact totals.

Encryption does not help: totals of chosen questions are records, whoever adds them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from federated.federation import Federation
from federated.study.experiment import Experiment
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError, PolicyError
from lab.models.design import Encoding, Feature, Number
from lab.models.families import Scale
from lab.models.glm import GLM, Task
from lab.records import parse
from tests.attacks.setting import AGES, REGIONS, federation_of, insurers, persons


def read_records(federation: Federation) -> pd.DataFrame:
    """Every record that stands alone in its cell of age and region, with its claims.

    A "model" whose linear predictor numbers the cells, and a score curve cut between the numbers:
    the counts and the target of each cell, exactly.
    """
    task = Task(target="claims")
    numbers = tuple(
        Number(feature=Feature(column=c), mean=0.0, scale=1.0) for c in ("age", "region")
    )
    cell = 1 / (AGES * REGIONS)
    model = GLM(
        task=task, encoding=Encoding(numbers=numbers), beta=(0.0, REGIONS * cell, cell)
    ).model_dump_json()
    scale = Scale(rows=1, weight=1, exposure=1, target=1, square=1)
    edges = (np.arange(AGES * REGIONS - 1) + 0.5) * cell
    curve = federation.sum("score_lorenz", {"edges": edges}, model=model, task=task, scale=scale)
    alone = np.flatnonzero(curve["size"] == 1)
    return pd.DataFrame(
        {"age": alone // REGIONS, "region": alone % REGIONS, "claims": curve["actual"][alone]}
    )


def test_whoever_chooses_a_model_to_score_reads_single_records() -> None:
    """The unprotected twin: nothing binds the parties to a plan."""
    with federation_of(insurers(bound=False)) as federation:
        records = read_records(federation)
    rows = persons()
    single = rows[~rows.duplicated(["age", "region"], keep=False)]
    expected = single.sort_values(["age", "region"]).reset_index(drop=True)
    assert len(expected) > 100
    pd.testing.assert_frame_equal(records, expected, check_dtype=False)


def test_a_bound_party_scores_no_model_of_the_coordinators_choosing() -> None:
    with (
        federation_of(insurers(bound=True)) as federation,
        pytest.raises(PolicyError, match=r"\[plan\] .* not signed"),
    ):
        read_records(federation)


def test_a_share_for_testing_of_fewer_persons_than_the_rules_show_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "persons.csv"
    persons().to_csv(path, index=False)
    values = {
        "name": "few",
        "data": {"path": str(path), "target": "claims", "test": 0.01},
        "model": {"kind": "glm"},
    }
    experiment = parse(Experiment, values, where="a test")
    with pytest.raises(ConfigurationError, match=r"data.test: \d persons would be judged"):
        SimulatedMarket(experiment)
