"""`lab bench trees`: boosted trees of five parties, in the clear and under encryption."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

from federated.app import client_app
from federated.bench.measurement import Row, row, timed
from federated.federation import Federation
from federated.hiding import paillier as hiding
from federated.hiding.paillier import KeyAuthority, Paillier
from federated.hiding.protocol import Clear, Protection
from federated.party.party import Party
from federated.solvers.trees import TreesSettings, train
from federated.transport.in_process import InProcessGrid
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.tree_model import Trees
from lab.tables.contracts import Column, Contract
from secure_agg import paillier
from secure_agg.keys import generate

#: Seconds, the model, its last training loss.
Boosting = tuple[float, Trees, float]


def figures(path: Path | None, quick: bool) -> list[Row]:
    """A hundred trees of depth 6 on 40 features in 64 bins, binning included, five parties against
    LightGBM on all rows with as many threads (pip install '.[bench]'). Under Paillier a few trees
    are grown and the rest is extrapolated; it is the model in the clear, to the bit."""
    rows, count, few = (50_000, 20, 1) if quick else (1_000_000, 100, 2)
    frame = _suspicious(rows)
    _boosted(frame.head(5_000), 1, Clear())  # numba compiles
    clear, _, loss = _boosted(frame, count, Clear())
    start, *_ = _boosted(frame, few, Clear())
    private = generate(2048)  # an authority serves one federation
    first, model, _ = _boosted(frame, few, Paillier(KeyAuthority(private)))
    protection = Paillier(KeyAuthority(private))
    (more, same, _), parts = _parts(lambda: _boosted(frame, 2 * few, protection))
    if model.trees != same.trees[:few] or same != _boosted(frame, 2 * few, Clear())[1]:
        raise AssertionError("the trees under Paillier are not the trees in the clear")
    hidden = first + (count - few) * (more - first) / few
    what = f"{rows:,} rows, {count} trees, five parties"
    under_encryption = [
        row(
            f"{what}, Paillier 2048, extrapolated",
            hidden,
            "in the clear",
            clear,
            f"{hidden / clear:.0f} x",
        ),
        row(
            f"of it bins, keys and the first {few} trees",
            first,
            "in the clear",
            start,
            f"{first / start:.0f} x",
        ),
        *(
            (f"of {2 * few} trees, {where}", f"{seconds:.2f} s", "", f"{seconds / more:.0%}")
            for where, seconds in parts.items()
        ),
    ]
    return [*_pooled(what, frame, count, clear, loss), *under_encryption]


def _pooled(what: str, frame: pd.DataFrame, count: int, clear: float, loss: float) -> list[Row]:
    """LightGBM on all rows against our seconds in the clear and our last training loss."""
    try:
        import lightgbm
    except ImportError:
        return [row(what, clear, "LightGBM is not installed", float("nan"), "")]
    settings = {
        "objective": "binary", "max_depth": 6, "num_leaves": 64, "learning_rate": 0.1,
        "max_bin": 64, "num_threads": os.cpu_count() or 1, "verbose": -1,
    }  # fmt: skip
    columns, target = frame.drop(columns="fraud").to_numpy(), frame["fraud"].to_numpy()

    def theirs() -> Any:
        return lightgbm.train(settings, lightgbm.Dataset(columns, target), count)

    seconds, booster = timed(theirs)
    rate = booster.predict(columns)
    other = -2 * float(np.mean(np.where(target > 0, np.log(rate), np.log1p(-rate))))
    return [
        row(
            f"{what}, in the clear", clear, "LightGBM, pooled", seconds, f"{clear / seconds:.2f} x"
        ),
        ("deviance on the training rows", f"{loss:.5f}", f"LightGBM: {other:.5f}", ""),
    ]


def _parts(work: Callable[[], Boosting]) -> tuple[Boosting, dict[str, float]]:
    """What a study under Paillier found, and where its seconds went. Nodes work side by side: what
    they do is counted by its share of the time that the coordinator waited for them."""
    seconds_of, turn = dict.fromkeys(("ask_sums", "take", "encrypt", "open"), 0.0), Lock()

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def with_clock(*values: Any, **keywords: Any) -> Any:
            seconds, result = timed(lambda: function(*values, **keywords))
            with turn:
                seconds_of[name] += seconds
            return result

        return with_clock

    with ExitStack() as stack:
        for place, name in (
            (hiding, "ask_sums"), (Party, "take"), (paillier, "encrypt"),
            (hiding.KeyAuthority, "open"),
        ):  # fmt: skip
            function = clocked(name, getattr(place, name))
            stack.enter_context(patch.object(place, name, function))
        result = work()
    whole, together = result[0], min(os.cpu_count() or 1, 5)
    parts = {
        "parties encrypting": seconds_of["encrypt"] / together,
        "parties adding up histograms and counts": seconds_of["take"] / together,
        "checking, adding and opening": seconds_of["open"],
        "packing of messages and moving": seconds_of["ask_sums"]
        - (seconds_of["encrypt"] + seconds_of["take"]) / together,
    }
    return result, parts | {"choosing cuts and all else": whole - sum(parts.values())}


def _suspicious(rows: int) -> pd.DataFrame:
    """Forty columns, half of them skewed amounts, and one claim in forty fraudulent."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 40))
    x[:, 20:] = np.round(100 * np.exp(x[:, 20:]), 2)
    eta = -5 + x[:, 0] * x[:, 1] + x[:, 2] + np.sin(2 * x[:, 3]) + np.log(x[:, 21] / 100)
    frame = pd.DataFrame(x, columns=[f"x{j}" for j in range(40)])
    return frame.assign(fraud=(rng.random(rows) < 1 / (1 + np.exp(-eta))).astype(float))


def _boosted(frame: pd.DataFrame, count: int, protection: Protection) -> Boosting:
    """(seconds, model, last training loss) of five parties that grow so many trees."""
    names = [name for name in frame.columns if name != "fraud"]
    contract = Contract(name="bench", columns={n: Column(type="number") for n in frame.columns})
    parties = [Party(f"insurer {k + 1}", frame.iloc[k::5], frame.iloc[:1]) for k in range(5)]
    nodes = InProcessGrid(
        client_app(lambda k: parties[k], protection.hiding), 5, os.cpu_count() or 1
    )
    try:
        federation = Federation(nodes, protection, 5)
        settings = TreesSettings(kind="trees", trees=count)
        features = tuple(Feature(column=name) for name in names)
        start = time.perf_counter()
        model, trace = train(
            federation, Task(target="fraud", family="binomial"), features, contract, settings, 0
        )
        return time.perf_counter() - start, model, float(trace["loss"].iloc[-1])
    finally:
        nodes.close()
