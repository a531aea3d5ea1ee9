"""Joined sides as real processes: the oracle is the simulation of the same file."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from federated.deployment.folders import seed_of
from federated.deployment.node.roles import rows_secret
from federated.study import arms, result
from federated.study.experiment import Experiment
from federated.study.simulation import SimulatedMarket
from tests.rigs.sides import BOTH, Sides
from tests.rigs.trial import hash_of, started


def simulated(experiment: Experiment, made: Sides) -> result.Study:
    """The same file without an exchange, its sides with the secrets of the real ones."""
    market = SimulatedMarket(experiment)
    for side in market.nodes:
        side.secret = rows_secret(seed_of(made.root / side.name))
        side.rows_secret = hmac.digest(side.secret, b"rows", "sha256")
    with patch.object(arms, "market_of", lambda text, run: market):
        return arms.perform(experiment)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any, authority_key: Any) -> Iterator[Sides]:
    with started(Sides(tmp_path_factory.mktemp("pair"), authority_key)) as made:
        yield made


def test_a_pair_of_real_sides_gives_the_model_and_the_scores_of_the_simulation(pair: Sides) -> None:
    experiment = pair.study()
    found, told = pair.run(experiment), simulated(experiment, pair)
    assert hash_of(found) == hash_of(told)
    assert {p.state for p in found.outlook} == {"took part"}
    fit = found.arms["federated"].models["all"]["model"].fit
    assert fit is not None and fit.rows == BOTH
    ours, theirs = (s.scores.loc[("federated", "all")] for s in (found, told))
    assert ours[found.headline] == pytest.approx(theirs[found.headline], rel=1e-9)
