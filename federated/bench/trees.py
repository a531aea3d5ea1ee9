"""`lab bench trees`: boosted trees of five parties, in the clear and under encryption."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd

from federated.app import client_app
from federated.bench.measurement import Row, busy, processor_row, processor_timed, row, timed
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

#: Every level of a tree cut in full, nothing held out.
LEVELS: dict[str, Any] = {
    "depth": 6, "leaves": 64, "learning_rate": 0.1, "bins": 64, "min_gain": 0.0, "validation_share": 0.0,
}  # fmt: skip


class Boosting(NamedTuple):
    """Trees that were grown: seconds of all, of processor time, before the first tree, and of each tree."""

    seconds: float
    processor: float
    before: float
    each: tuple[float, ...]
    model: Trees
    loss: float


class Extrapolation(NamedTuple):
    """Seconds of more trees than were grown, and the least and the most that they can be where every
    further tree takes as long as the fastest, or the slowest, of those that were."""

    seconds: float
    least: float
    most: float

    @classmethod
    def of(cls, before: float, each: tuple[float, ...], count: int) -> Extrapolation:
        rest, measured = count - len(each), before + sum(each)
        pace = (sum(each) / len(each), min(each), max(each))
        return cls(*(measured + rest * seconds for seconds in pace))


def figures(path: Path | None, quick: bool) -> list[Row]:
    """A hundred trees of depth 6 on 40 features in 64 bins, binning included, five parties against
    LightGBM on all rows with as many threads (pip install '.[bench]'); and by processor time, which
    other work on the machine changes less, against LightGBM with one thread. Under Paillier a few trees
    are grown, of which the model in the clear is the same to the bit; for the rest it takes their
    mean, between the fastest and the slowest of them."""
    few, warning = 4, busy()
    rows, count = (50_000, 20) if quick else (1_000_000, 100)
    frame = suspicious(rows)
    _boosted(frame.head(5_000), 1, Clear())  # numba compiles
    clear, start = _boosted(frame, count, Clear()), _boosted(frame, few, Clear())
    protection = Paillier(KeyAuthority(generate(2048)))
    hidden, parts = _parts(lambda: _boosted(frame, few, protection))
    if hidden.model != start.model:
        raise AssertionError("the trees under Paillier are not the trees in the clear")
    what = f"{rows:,} rows, {count} trees, five parties"
    whole = Extrapolation.of(hidden.before, hidden.each, count)
    under_encryption = [
        row(
            f"{what}, Paillier 2048, extrapolated",
            whole.seconds,
            "in the clear",
            clear.seconds,
            f"{whole.seconds / clear.seconds:.0f} x",
        ),
        ("of it, least to most", f"{whole.least:.2f} to {whole.most:.2f} s", "", ""),
        row(
            f"of it bins, keys and the first {few} trees",
            hidden.seconds,
            "in the clear",
            start.seconds,
            f"{hidden.seconds / start.seconds:.0f} x",
        ),
        *(
            (f"of {few} trees, {where}", f"{seconds:.2f} s", "", f"{seconds / hidden.seconds:.0%}")
            for where, seconds in parts.items()
        ),
    ]
    return [*_pooled(what, frame, count, clear), *under_encryption, *warning]


def _pooled(what: str, frame: pd.DataFrame, count: int, ours: Boosting) -> list[Row]:
    """LightGBM on all rows against our seconds in the clear and our last training loss."""
    try:
        import lightgbm
    except ImportError:
        return [row(what, ours.seconds, "LightGBM is not installed", float("nan"), "")]
    settings = {
        "objective": "binary", "max_depth": 6, "num_leaves": 64, "learning_rate": 0.1,
        "max_bin": 64, "verbose": -1,
    }  # fmt: skip
    columns, target = frame.drop(columns="fraud").to_numpy(), frame["fraud"].to_numpy()

    def theirs(threads: int) -> Any:
        more = {**settings, "num_threads": threads}
        return lightgbm.train(more, lightgbm.Dataset(columns, target), count)

    seconds, booster = timed(partial(theirs, os.cpu_count() or 1))
    processor, _ = processor_timed(partial(theirs, 1))
    rate = booster.predict(columns)
    other = -2 * float(np.mean(np.where(target > 0, np.log(rate), np.log1p(-rate))))
    ratio = f"{ours.seconds / seconds:.2f} x"
    return [
        row(f"{what}, in the clear", ours.seconds, "LightGBM, pooled", seconds, ratio),
        processor_row(
            "the same, processor time", ours.processor, "LightGBM, one thread", processor
        ),
        ("deviance on the training rows", f"{ours.loss:.5f}", f"LightGBM: {other:.5f}", ""),
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
    whole, together = result.seconds, min(os.cpu_count() or 1, 5)
    parts = {
        "parties encrypting": seconds_of["encrypt"] / together,
        "parties adding up histograms and counts": seconds_of["take"] / together,
        "checking, adding and opening": seconds_of["open"],
        "packing of messages and moving": seconds_of["ask_sums"]
        - (seconds_of["encrypt"] + seconds_of["take"]) / together,
    }
    return result, parts | {"choosing cuts and all else": whole - sum(parts.values())}


def suspicious(rows: int) -> pd.DataFrame:
    """Forty columns, half of them skewed amounts, and one claim in forty fraudulent."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 40))
    x[:, 20:] = np.round(100 * np.exp(x[:, 20:]), 2)
    eta = -5 + x[:, 0] * x[:, 1] + x[:, 2] + np.sin(2 * x[:, 3]) + np.log(x[:, 21] / 100)
    frame = pd.DataFrame(x, columns=[f"x{j}" for j in range(40)])
    return frame.assign(fraud=(rng.random(rows) < 1 / (1 + np.exp(-eta))).astype(float))


def _boosted(frame: pd.DataFrame, count: int, protection: Protection) -> Boosting:
    """Five parties that grow so many trees."""
    names = [name for name in frame.columns if name != "fraud"]
    contract = Contract(name="bench", columns={n: Column(type="number") for n in frame.columns})
    parties = [Party(f"insurer {k + 1}", frame.iloc[k::5], frame.iloc[:1]) for k in range(5)]
    nodes = InProcessGrid(
        client_app(lambda k: parties[k], protection.hiding), 5, os.cpu_count() or 1
    )
    task = Task(target="fraud", family="binomial")
    try:
        federation = Federation(nodes, protection, 5)
        settings = TreesSettings(kind="trees", trees=count, **LEVELS)
        features = tuple(Feature(column=name) for name in names)
        clock, processor = [time.perf_counter()], time.process_time()
        model, trace = train(
            federation, task, features, contract, settings, 0,
            lambda *_: clock.append(time.perf_counter()),
        )  # fmt: skip
    finally:
        nodes.close()
    seconds, processor = time.perf_counter() - clock[0], time.process_time() - processor
    before, *each = np.diff(clock).tolist()
    return Boosting(seconds, processor, before, tuple(each), model, float(trace["loss"].iloc[-1]))
