"""Training a network from sums: Flower's strategies over totals that hide single contributions.

Each round is one sum of weighted parameter changes (McMahan et al., "Communication-efficient
learning of deep networks from decentralized data", 2017). The opened total goes to the strategy
as a single reply; a strategy that takes a mean over replies cannot tell the difference.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from federated.experiment import NetworkModel, Personal
from federated.federation import Federation
from federated.glm import constant_predictor
from federated.node import Party
from lab.features import Encoding
from lab.glm import Task
from lab.sums import Floats

if TYPE_CHECKING:
    from lab.network import Network

#: Histogram over which knots are found: standard deviations either side, and bins.
REACH, BINS = 6.0, 960
#: Two knots closer than this share of their feature's range become one.
CLOSEST = 0.02


def train(
    federation: Federation,
    task: Task,
    encoding: Encoding,
    settings: NetworkModel,
    seed: int,
    watch: Callable[[str, int, int | None], None] | None = None,
) -> tuple[Network, pd.DataFrame]:
    """(model, loss by round). Same seed and same rows give the same bits."""
    from lab import network

    bends = network.Bends(knots=_knots(federation, task, encoding, settings.knots))
    totals = federation.sum("means", task=task.model_dump_json(), part="train")
    recipe = network.Recipe(
        intercept=constant_predictor(task.law, totals),
        **settings.model_dump(include=set(network.Recipe.model_fields)),
    )
    weights = network.initial(encoding, bends, recipe, seed)
    strategy, trace = _strategy(settings), []
    for at in range(1, settings.rounds + 1):
        if watch:
            watch(f"round {at} of {settings.rounds}", at, settings.rounds)
        told = next(
            iter(strategy.configure_train(at, _record(weights), ConfigRecord(), federation.grid))
        )
        total = federation.sum(
            "network_update",
            weights,
            task=task.model_dump_json(),
            encoding=encoding.model_dump_json(),
            bends=bends.model_dump_json(),
            recipe=recipe.model_dump_json(),
            learning_rate=_learning_rate(settings, at),
            proximal_mu=float(told.content["config"].get("proximal-mu", 0.0)),
            round=at,
            seed=seed,
        )
        rows = total.total("rows")
        mean = {name: weights[name] + total[name] / rows for name in weights}
        reply = RecordDict(
            {"arrays": _record(mean), "metrics": MetricRecord({"num-examples": rows})}
        )
        arrays, _ = strategy.aggregate_train(
            at, [Message(reply, dst_node_id=0, message_type="train")]
        )
        weights = {name: np.asarray(a.numpy(), dtype=np.float64) for name, a in arrays.items()}
        trace.append({"step": at, "loss": total.total("loss") / rows})
    model = network.Network(
        task=task,
        encoding=encoding,
        bends=bends,
        recipe=recipe,
        safetensors=network.Network.pack(weights),
    )
    return model, pd.DataFrame(trace)


def personal(party: Party, model: Network, settings: Personal, seed: int) -> Network:
    """The model with the party's own last layer, from its own rows; nothing of it passes the gate."""
    from lab import network

    parts = (model.encoding, model.bends, model.task)
    return network.personal(
        model,
        party.tensors(*(part.model_dump_json() for part in parts)),
        seed=zlib.crc32(f"personal {seed} {party.name}".encode()),
        **settings.model_dump(),
    )


def _record(weights: dict[str, Floats]) -> ArrayRecord:
    return ArrayRecord({name: Array(values) for name, values in weights.items()})


def _learning_rate(settings: NetworkModel, at: int) -> float:
    """Cosine from the full rate in the first round to a fiftieth in the last."""
    share = (at - 1) / max(1, settings.rounds - 1)
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def _strategy(settings: NetworkModel) -> Any:
    """Flower's own strategy object; it sees one reply, the opened mean."""
    import logging

    from flwr.serverapp import strategy

    logging.getLogger("flwr").setLevel(logging.ERROR)
    chosen = getattr(strategy, settings.strategy.name)
    parameters: dict[str, Any] = settings.strategy.parameters()
    return chosen(min_train_nodes=1, min_available_nodes=1, **parameters)


def _knots(
    federation: Federation, task: Task, encoding: Encoding, count: int
) -> tuple[tuple[float, ...], ...]:
    """Knots of each number: quantiles and an even grid together, from one federated histogram."""
    if not encoding.numbers:
        return ()
    edges = np.linspace(-REACH, REACH, BINS + 1)
    counts = federation.sum(
        "histogram",
        {"edges": edges},
        task=task.model_dump_json(),
        features=[term.model_dump() for term in encoding.numbers],
    )["count"]
    return tuple(_placed(row, edges, count) for row in counts)


def _placed(counts: Floats, edges: Floats, count: int) -> tuple[float, ...]:
    held = np.flatnonzero(counts)
    low, high = edges[held[0]], edges[held[-1] + 1]
    reached = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    quantiles = np.interp(np.linspace(0, 1, count + 1), reached, edges)
    even = np.linspace(low, high, count + 1)
    points = np.unique(np.clip(np.concatenate([quantiles, even]), low, high))
    kept = [points[0]]
    for point in points[1:]:
        if point - kept[-1] > CLOSEST * (high - low):
            kept.append(point)
    return tuple(float(k) for k in kept)
