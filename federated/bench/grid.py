"""`lab bench grid`: rounds of a network through the grid, by a plain loop, and on Ray."""

from __future__ import annotations

import importlib.util
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flwr.serverapp import Grid

from federated.app import client_app, server_app
from federated.bench.measurement import Row, row, timed
from federated.federation import Federation
from federated.hiding.protocol import Clear
from federated.party.party import Party
from federated.solvers.network import NetworkSettings
from federated.transport.in_process import ENGINES
from lab.models import network_model
from lab.models.design import Encoding, Feature, Number
from lab.models.glm import Task
from lab.models.network import OfUpdate, _update
from lab.sums import Floats, combine
from lab.tables.contracts import draft

Weights = dict[str, Floats]


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Training rounds of a small network through the grid, against a plain loop over the parties
    and Flower's own engine (pip install '.[ray]')."""
    network_model.single_threaded()
    rows = []
    size, rounds = (20_000, 3) if quick else (100_000, 10)
    for parties in (5, 100):
        job = _Rounds(parties, size, rounds)
        job.loop(1)  # both warm
        job.grid("grid", 1)
        loop, first = timed(job.loop)
        ours, second = timed(partial(job.grid, "grid"))
        if first.keys() != second.keys() or any((first[k] != second[k]).any() for k in first):
            raise AssertionError("the grid and the loop end with different weights")
        what = f"{parties} parties, {size:,} rows, {rounds} rounds"
        rows.append(row(what, ours, "a plain loop", loop, f"{ours / loop:.2f} x"))
        if parties == 5 and importlib.util.find_spec("ray"):
            ray, _ = timed(partial(job.grid, "ray"))
            rows.append(row(what, ours, "Ray", ray, f"{ray / ours:.1f} x faster"))
    return rows


class _Rounds:
    """The same training rounds by a loop and through a grid; one thread in both."""

    def __init__(self, parties: int, size: int, rounds: int) -> None:

        rng = np.random.default_rng(3)
        frame = pd.DataFrame(rng.normal(size=(size, 6)), columns=[f"x{k}" for k in range(6)])
        frame["y"] = rng.poisson(np.exp(-1 + 0.3 * frame["x0"])).astype(float)
        self.rounds = rounds
        self.parties = [
            Party(f"p{k}", part, part.iloc[:0]) for k, part in enumerate(_shares(frame, parties))
        ]
        self.contract = draft(frame, "bench")
        self.settings = NetworkSettings(kind="network", rounds=rounds, epochs=1)

    def loop(self, rounds: int | None = None) -> Weights:
        """Weights after the rounds, without messages: the statistic called party by party."""

        weights, arguments = self._start()
        for at in range(1, (rounds or self.rounds) + 1):
            request = arguments | {"round": at}
            total = combine([_update(p, OfUpdate(**request), weights) for p in self.parties])
            weights = {k: weights[k] + total[k] / total.total("rows") for k in weights}
        return weights

    def grid(self, engine: str, rounds: int | None = None) -> Weights:
        """The same through Flower's apps."""

        results: list[Weights] = []

        def study(nodes: Grid) -> None:
            federation = Federation(nodes, Clear(), len(self.parties))
            weights, arguments = self._start()
            for at in range(1, (rounds or self.rounds) + 1):
                total = federation.sum("network_update", weights, **arguments | {"round": at})
                weights = {k: weights[k] + total[k] / total.total("rows") for k in weights}
            results.append(weights)

        parties = self.parties
        node = client_app(lambda k: parties[k], "clear")
        ENGINES[engine](server_app(study), node, len(parties), 1)
        return results[0]

    def _start(self) -> tuple[Weights, dict[str, Any]]:

        numbers = [Number(feature=Feature(column=f"x{k}"), mean=0.0, scale=1.0) for k in range(6)]
        encoding = Encoding(numbers=tuple(numbers))
        bends = network_model.Bends(knots=((-3.0, -1.0, 0.0, 1.0, 3.0),) * 6)
        fields = set(network_model.NetworkRecipe.model_fields)
        recipe = network_model.NetworkRecipe(
            intercept=-1.0, **self.settings.model_dump(include=fields)
        )
        weights = network_model.initial(encoding, bends, recipe, 1)
        arguments = {
            "task": Task(target="y"),
            "encoding": encoding,
            "bends": bends,
            "recipe": recipe,
            "learning_rate": 0.01,
            "proximal_mu": 0.0,
            "seed": 1,
        }
        return weights, arguments


def _shares(frame: pd.DataFrame, parties: int) -> list[pd.DataFrame]:
    """Equal shares of the rows, in order."""
    edges = np.linspace(0, len(frame), parties + 1).astype(int)
    return [frame.iloc[a:b] for a, b in pairwise(edges)]
