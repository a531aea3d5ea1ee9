"""Networks: Flower's strategies over hidden totals, the same bits every time."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit

from federated.federation import Federation
from federated.solvers.encoding import agree
from federated.solvers.network import NetworkSettings, StrategySettings, train
from lab.errors import ConfigurationError
from lab.models import files as models
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.network_model import single_threaded
from lab.tables.contracts import draft
from tests.conftest import federate, split
from tests.federated.solvers.test_glm import table

STRATEGIES = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.5, "server_learning_rate": 1.0},
    "FedProx": {"proximal_mu": 0.1},
    "FedAdam": {"eta": 0.02},
    "FedYogi": {"eta": 0.02},
    "FedAdagrad": {"eta": 0.05},
}


def fit(
    parts: list[pd.DataFrame],
    strategy: StrategySettings | None = None,
    protection=None,
    workers=2,
    **more,
):
    settings = NetworkSettings(
        kind="network",
        hidden=(8,),
        rounds=more.pop("rounds", 4),
        batches=5,
        strategy=strategy or StrategySettings(),
        **more,
    )
    single_threaded()
    family = settings.family
    task = Task(target="y", exposure="years" if family == "poisson" else None, family=family)
    features = tuple(Feature(column=c) for c in ("age", "income", "region"))

    def work(federation: Federation):
        encoding = agree(federation, task, features, draft(parts[0], "test"), 1)
        return train(federation, task, encoding, settings, seed=5)

    return federate(parts, work, protection, workers)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_learns_from_opened_totals(name: str) -> None:
    _, trace = fit(
        split(table("poisson", 3000), 3), StrategySettings(name=name, **STRATEGIES[name])
    )
    assert trace["loss"].iloc[-1] < trace["loss"].iloc[0]


def test_strategies_give_different_models() -> None:
    parts = split(table("poisson"), 3)
    models_ = {
        n: fit(parts, StrategySettings(name=n, **p))[0].safetensors for n, p in STRATEGIES.items()
    }
    assert len(set(models_.values())) == len(STRATEGIES)


def test_same_bits_for_any_number_of_threads() -> None:
    parts = split(table("poisson"), 4)
    texts = {fit(parts, workers=w, dropout=0.2)[0].model_dump_json() for w in (1, 2, 4)}
    assert len(texts) == 1


def test_paillier_gives_the_same_network(paillier) -> None:
    parts = split(table("poisson"), 3)
    clear, _ = fit(parts)
    hidden, _ = fit(parts, protection=paillier)
    frame = table("poisson", 500, seed=9)
    np.testing.assert_allclose(hidden.predict(frame), clear.predict(frame), rtol=1e-5)


def test_own_rates_bring_parties_of_other_rates_near_the_pooled_network() -> None:
    frame = table("binomial", 3000)
    ones, zeros = frame[frame.y == 1], frame[frame.y == 0]
    cut, half = len(ones) * 9 // 10, len(zeros) // 2
    parts = [
        pd.concat([ones[:cut], zeros[:100]]),
        pd.concat([ones[cut:], zeros[100:half]]),
        zeros[half:],
    ]

    def predictions(parts: list[pd.DataFrame], own_rate: bool) -> np.ndarray:
        model, _ = fit(parts, family="binomial", rounds=8, own_rate=own_rate)
        return logit(model.predict(frame))

    pooled = predictions([frame], False)
    off = {own: np.abs(predictions(parts, own) - pooled).mean() for own in (False, True)}
    assert off[True] < 0.5 * off[False]


@pytest.mark.parametrize("more", [{"family": "poisson"}, {"imbalance": "focal"}])
def test_an_own_rate_is_refused_where_it_means_nothing(more: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="own_rate = true needs family = 'binomial'"):
        NetworkSettings(kind="network", **({"family": "binomial", "own_rate": True} | more))


def test_a_parameter_of_another_strategy_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="FedAvg has no 'eta'"):
        StrategySettings(name="FedAvg", eta=0.1).parameters()


def test_a_saved_network_predicts_the_same_after_loading() -> None:
    model, _ = fit(split(table("poisson"), 3))
    frame = table("poisson", 100, seed=4)
    again = models.from_json(model.model_dump_json())
    assert again.predict(frame).tobytes() == model.predict(frame).tobytes()
    assert json.loads(model.model_dump_json())["kind"] == "network"


def test_an_unseen_level_and_an_extreme_value_are_scored_with_a_finite_number() -> None:
    model, _ = fit(split(table("poisson"), 3))
    frame = pd.DataFrame({"age": [1e6, 40.0], "income": [0.0, -5.0], "region": ["mars", "north"]})
    assert np.isfinite(model.predict(frame)).all()
