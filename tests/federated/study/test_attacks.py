"""What a coordinator that chooses its questions reads, and that a bound party gives it nothing.

Encryption does not help here: exact totals of chosen questions are records, whoever adds them.
"""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from federated.app import client_app
from federated.federation import Federation
from federated.hiding.protocol import Clear
from federated.party.party import Party, numbered
from federated.study.bound import SignedStudy
from federated.study.experiment import Experiment
from federated.study.plan import StudyPlan
from federated.study.simulation import SimulatedMarket
from federated.transport.in_process import InProcessGrid
from lab.errors import ConfigurationError, PeerError, PolicyError
from lab.models.design import Encoding, Feature, Number
from lab.models.glm import GLM, Task
from lab.privacy.disclosure import Rules
from lab.records import parse
from lab.tables.contracts import draft
from secure_agg.identity import Identity

AGES, REGIONS = 90, 8


def persons(count: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(17)
    return pd.DataFrame(
        {
            "age": rng.integers(0, AGES, count),
            "region": rng.integers(0, REGIONS, count),
            "claims": rng.poisson(1.5, count).astype(float),
        }
    )


def federation_of(bound: bool) -> Federation:
    values = {
        "name": "attacked",
        "data": {"path": "at the parties", "target": "claims"},
        "model": {"kind": "glm"},
    }
    plan = StudyPlan(
        experiment=parse(Experiment, values, where="a test"),
        contract=draft(persons(), "attacked"),
        rules=Rules.read(),
    )
    study = SignedStudy(plan, Identity.generate("releaser"), "0" * 16)
    parties = []
    for k, rows in enumerate(np.array_split(np.arange(400), 4)):
        name = f"insurer {k + 1}"
        frame = numbered(name, persons().iloc[rows])
        parties.append(Party(name, frame, frame, binding=study.binding if bound else None))
    grid = InProcessGrid(client_app(parties.__getitem__, "clear"), 4, 1)
    return Federation(grid, Clear(), 4)


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
    edges = (np.arange(AGES * REGIONS - 1) + 0.5) * cell
    curve = federation.sum("score_lorenz", {"edges": edges}, model=model, task=task)
    alone = np.flatnonzero(curve["size"] == 1)
    return pd.DataFrame(
        {"age": alone // REGIONS, "region": alone % REGIONS, "claims": curve["actual"][alone]}
    )


def test_whoever_chooses_a_model_to_score_reads_single_records() -> None:
    """The unprotected twin."""
    federation = federation_of(bound=False)
    with closing(federation.grid):
        read = read_records(federation)
    rows = persons()
    single = rows[~rows.duplicated(["age", "region"], keep=False)]
    expected = single.sort_values(["age", "region"]).reset_index(drop=True)
    assert len(expected) > 100
    pd.testing.assert_frame_equal(read, expected, check_dtype=False)


def test_a_bound_party_scores_no_model_of_the_coordinators_choosing() -> None:
    federation = federation_of(bound=True)
    with closing(federation.grid), pytest.raises(PolicyError, match=r"\[plan\] .* not signed"):
        read_records(federation)


def test_no_request_can_say_who_is_held_out() -> None:
    """A seed in the request picked rows by a public hash: one was searched under which a person
    was grown from alone. Parties draw with a secret of their own; there is nothing to send."""
    task, recipe = Task(target="claims"), {"intercept": 0.0, "unit": 0.5, "rows": 400}
    ask = {"place": {}, "nodes": [0], "features": [0], "most": [[64.0, 64.0]]}
    federation = federation_of(bound=False)
    with closing(federation.grid), pytest.raises(PeerError, match=r"no argument 'recipe.seed'"):
        federation.sum("trees_level", task=task, cuts=(), ask=ask, recipe={**recipe, "seed": 1234})


def test_a_share_for_testing_of_fewer_persons_than_the_rules_show_is_refused(
    tmp_path: pytest.TempPathFactory,
) -> None:
    path = f"{tmp_path}/persons.csv"
    persons().to_csv(path, index=False)
    values = {
        "name": "few",
        "data": {"path": path, "target": "claims", "test": 0.01},
        "model": {"kind": "glm"},
    }
    experiment = parse(Experiment, values, where="a test")
    with pytest.raises(ConfigurationError, match=r"data.test: \d persons would be judged"):
        SimulatedMarket(experiment)
