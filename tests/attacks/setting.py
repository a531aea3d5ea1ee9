"""What attacks are made on: insurers with rows of their own, in process, bound to a plan or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd

from federated.app import client_app
from federated.deployment.node.rules.policy import VARIANTS, InsurerPolicy
from federated.deployment.node.rules.settings import NodeSettings
from federated.federation import Federation
from federated.hiding.protocol import Clear
from federated.party.party import Party, numbered
from federated.study.bound import SignedStudy
from federated.study.experiment import Experiment
from federated.study.outcome import Outcome, carry_out
from federated.study.plan import StudyPlan
from federated.transport.in_process import InProcessGrid
from lab.privacy.disclosure import Rules
from lab.records import parse
from lab.tables.contracts import draft
from secure_agg.identity import Identity
from tests.rigs.trial import Trial

AGES, REGIONS, INSURERS = 90, 8, 4


def persons(count: int = 400) -> pd.DataFrame:
    """A row for each person."""
    rng = np.random.default_rng(17)
    return pd.DataFrame(
        {
            "age": rng.integers(0, AGES, count),
            "region": rng.integers(0, REGIONS, count),
            "claims": rng.poisson(1.5, count).astype(float),
        }
    )


def plan_of(kind: str = "glm") -> StudyPlan:
    """The plan that all insurers know."""
    values = {
        "name": "attacked",
        "data": {"path": "at the parties", "target": "claims"},
        "model": {"kind": kind},
    }
    experiment = parse(Experiment, values, where="a test")
    contract = draft(persons(), "attacked")
    return StudyPlan(experiment=experiment, contract=contract, rules=Rules.read())


def insurers(bound: bool, kind: str = "glm", **changes: Any) -> list[Party]:
    """Four of them with a hundred persons each. bound: to the plan, whose questions a releaser
    signs; changes: of each party's record."""
    study = SignedStudy(plan_of(kind), Identity.generate("releaser"), "0" * 16)
    parties = []
    for k, rows in enumerate(np.array_split(np.arange(400), INSURERS)):
        name = f"insurer {k + 1}"
        frame = numbered(name, persons().iloc[rows])
        binding = study.binding if bound else None
        parties.append(Party(name, frame, frame, binding=binding, **changes))
    return parties


@contextmanager
def federation_of(parties: list[Party]) -> Iterator[Federation]:
    """The parties as a coordinator reaches them, in the clear: totals are exact anyhow."""
    grid = InProcessGrid(client_app(parties.__getitem__, "clear"), len(parties), 1)
    try:
        yield Federation(grid, Clear(), len(parties))
    finally:
        grid.close()


def nodes_of(trial: Trial) -> list[InsurerPolicy]:
    """The insurers of an exchange, as they decide what to take part in; no column marks their rows
    for testing."""
    nodes = []
    for name in trial.insurers:
        folder = trial.root / name
        (folder / VARIANTS).unlink(missing_ok=True)
        settings = NodeSettings.read(folder)
        assert settings.data is not None
        data = settings.data.model_copy(update={"test_column": None, "test_value": None})
        drawing = settings.model_copy(update={"data": data})
        nodes.append(InsurerPolicy(folder, drawing, trial.charter))
    return nodes


def outcome_of(nodes: list[InsurerPolicy], plan: StudyPlan) -> Outcome:
    """What an honest run of a plan comes to, if all nodes take part."""
    parties = []
    for node in nodes:
        node.consider(plan)
        parties.append(node.party(plan, node.settings.name.encode()))
    with federation_of(parties) as federation:
        return carry_out(plan, federation)


def bisected(low: float, high: float, above: Callable[[float], bool], width: float) -> float:
    """Where ``above`` turns false, between ``low`` and ``high``, to within ``width``."""
    while high - low > width:
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return high
