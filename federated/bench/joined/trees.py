"""`lab bench joined-trees`: trees over two sides that know the same persons in other columns."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from federated.app import client_app
from federated.bench.measurement import Row, row
from federated.federation import Federation
from federated.hiding.protocol import Clear
from federated.solvers.trees import train
from federated.study.experiment import Experiment
from federated.study.simulation import SimulatedMarket
from federated.transport.in_process import InProcessGrid
from lab.models.tree_model import Trees
from secure_agg.arithmetic import blinding

#: Core seconds that follow from what was published for this job on two cores.
PUBLISHED = {"FATE": 2 * 164.5, "SecretFlow": 2 * 17.1}
#: Their job: two trees and no more, of all rows.
TREES = {"kind": "trees", "trees": 2, "depth": 3, "bins": 32, "validation_share": 0.0}


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Two trees of depth 3 in 32 bins on 20 columns, ten a side, Paillier of 2048 bits: bins, letters
    of both sides, totals opened under a key of the authority's; the trees are the pooled ones, to the bit.
    What FATE (164.5 s) and SecretFlow (17.1 s) took is as published for 10,000 persons, two trees
    and two cores, and not measured here. Core seconds: processor time of all sides, helpers
    that encrypt included, against both cores of theirs."""
    persons = 2_000 if quick else 10_000
    with TemporaryDirectory() as folder:
        values = _pair(Path(folder), persons)
        pooled, model = _pooled(values)
        rows = [(f"{persons:,} persons, 2 trees, pooled", f"{pooled:.2f} s", "", "")]
        for product in ("paillier", "triples"):
            seconds, cores, same = _joined(values, product)
            if same != model:
                raise AssertionError("the trees of joined sides are not the pooled ones")
            what = f"{persons:,} persons, 2 trees, {product}"
            rows.append(row(what, seconds, "pooled", pooled, f"{seconds / pooled:.0f} x"))
            if not quick:
                rows += [
                    row(
                        "the same, core seconds",
                        cores,
                        name,
                        theirs,
                        f"{theirs / cores:.1f} x faster",
                    )
                    for name, theirs in PUBLISHED.items()
                ]
    return rows


def _pair(folder: Path, persons: int) -> dict[str, Any]:
    """An experiment over the tables of both sides."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(persons, 20))
    eta = x[:, 0] - x[:, 1] * x[:, 10] + np.sin(2 * x[:, 11]) + 0.5 * x[:, 12] - 1
    names = [f"x{j}" for j in range(20)]
    frame = pd.DataFrame(x.round(4), columns=names).assign(id=np.arange(persons))
    frame["y"] = (rng.random(persons) < 1 / (1 + np.exp(-eta))).astype(int)
    sides = {"insurer": ["id", "y", *names[:10]], "fund": ["id", *names[10:]]}
    tables = []
    for role, columns in sides.items():
        frame[columns].to_csv(folder / f"{role}.csv", index=False)
        tables.append({"role": role, "path": str(folder / f"{role}.csv"), "key": "id"})
    return {
        "name": "bench",
        "data": {"target": "y", "features": names, "test": 0.0},
        "joined": tables,
        "alignment": {"learns": "both"},
        "model": TREES,
    }


def _trained(market: SimulatedMarket, federation: Federation) -> tuple[float, float, Trees]:
    """Seconds, core seconds and the trees."""
    (task,) = market.experiment.tasks().values()
    settings: Any = market.experiment.model
    blinding.forget()
    wall, cores = time.perf_counter(), _core_seconds()
    model, _ = train(federation, task, market.features["model"], market.contract, settings, 0)
    seconds = time.perf_counter() - wall
    blinding.forget()  # helpers that have ended are counted
    return seconds, _core_seconds() - cores, model


def _core_seconds() -> float:
    """Processor time of this process and of helpers that have ended."""
    return sum(os.times()[:4])


def _pooled(values: dict[str, Any]) -> tuple[float, Trees]:
    market = SimulatedMarket(Experiment.model_validate(values))
    pool = market.pooled()
    nodes = InProcessGrid(client_app(lambda k: pool, "clear"), 1, 1)
    try:
        for _ in range(2):  # numba compiles the first time
            seconds, _, model = _trained(market, Federation(nodes, Clear(), 1))
        return seconds, model
    finally:
        nodes.close()


def _joined(values: dict[str, Any], product: str) -> tuple[float, float, Trees]:
    protection = {"product": product, "key_bits": 2048}
    market = SimulatedMarket(Experiment.model_validate(values | {"protection": protection}))
    sides, workers = market.nodes, os.cpu_count() or 1
    nodes = InProcessGrid(client_app(lambda k: sides[k], "paillier"), len(sides), workers)
    try:
        return _trained(market, Federation(nodes, market.protection(), len(sides)))
    finally:
        nodes.close()
