"""What several tests need: tables that are published elsewhere, a key, a federation of frames."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.app import client_app, server_app
from federated.federation import Federation, single_threaded_blas
from federated.hiding.paillier import KeyAuthority, Paillier
from federated.hiding.protocol import Clear, Protection
from federated.party.party import Party, Policy
from federated.solvers import glm
from federated.solvers.crosses import crossed
from federated.solvers.elastic import Penalty
from federated.solvers.encoding import agree
from federated.transport import in_process as grid
from lab.models.design import Feature
from lab.models.glm import Task
from lab.privacy.disclosure import Rules
from lab.tables.contracts import Contract, draft
from tests.rigs.postgresql import Server, server

TABLES = Path(os.environ.get("LAB_TABLES", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def published() -> Callable[[str], Path]:
    """Path of a published table, or a skip that says which one is missing."""

    def path(name: str) -> Path:
        found = TABLES / name
        if not found.exists():
            pytest.skip(f"{name} is not here; put the published table below $LAB_TABLES")
        return found

    return path


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A PostgreSQL server of its own for this session, or a skip that says what to install."""
    with server() as running:
        yield running


@pytest.fixture(scope="session")
def authority_key() -> Any:
    from secure_agg.keys import generate

    return generate(2048)


@pytest.fixture
def paillier(authority_key: Any) -> Paillier:
    return Paillier(KeyAuthority(authority_key))


def split(frame: pd.DataFrame, parties: int, seed: int = 0) -> list[pd.DataFrame]:
    """Rows at random, in unequal shares."""
    rng = np.random.default_rng(seed)
    owner = rng.choice(parties, len(frame), p=rng.dirichlet(np.full(parties, 2.0)))
    owner[:parties] = np.arange(parties)
    return [frame[owner == k] for k in range(parties)]


def federate(
    frames: list[pd.DataFrame],
    work: Callable[[Federation], Any],
    protection: Protection | None = None,
    workers: int = 2,
) -> Any:
    """Run ``work`` on a federation whose parties hold these training rows."""
    policy = Policy(
        announces=tuple(frames[0].columns),
        shows_receipt=True,
        rules=Rules.of_own_rows(),  # levels of few rows are named too
    )
    parties = [
        Party(
            f"insurer {k + 1}",
            f,
            f.iloc[:0],
            policy=policy,
            secret=f"insurer {k + 1}".encode(),
            rows_secret=b"rows",
        )
        for k, f in enumerate(frames)
    ]
    found: list[Any] = []
    hiding = (protection or Clear()).hiding
    app = server_app(
        lambda nodes: found.append(work(Federation(nodes, protection or Clear(), len(parties))))
    )
    with single_threaded_blas():
        grid.run_in_process(app, client_app(parties.__getitem__, hiding), len(parties), workers)
    return found[0]


def fit_glm(
    frames: list[pd.DataFrame],
    task: Task,
    features: list[str | Feature],
    *,
    contract: Contract | None = None,
    protection: Protection | None = None,
    ridge: float = 0.0,
    workers: int = 2,
    least: int = 1,
    interactions: tuple[str, ...] = (),
    penalty: Penalty | None = None,
    theta: Any = None,
) -> glm.Fit:
    """A GLM over these parties."""
    agreed = contract or draft(frames[0], "test")
    chosen = tuple(Feature(column=f) if isinstance(f, str) else f for f in features)

    def work(federation: Federation) -> glm.Fit:
        pairs = crossed(chosen, interactions)
        encoding = agree(federation, task, chosen, agreed, least, None, pairs)
        return glm.fit(federation, task, encoding, penalty or Penalty((ridge,)), least, theta)

    fit: glm.Fit = federate(frames, work, protection, workers)
    return fit
