"""`lab bench parties`: the same rows held by few parties and by many."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from federated.app import client_app
from federated.bench.measurement import Row, busy, processor_row, processor_timed
from federated.bench.trees import LEVELS, suspicious
from federated.federation import Federation, single_threaded_blas
from federated.hiding.paillier import KeyAuthority, Paillier
from federated.hiding.protocol import Clear, Protection
from federated.party.party import Party
from federated.solvers import glm, trees
from federated.transport.in_process import InProcessGrid
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.tree_model import Trees
from lab.tables.contracts import Column, Contract
from secure_agg.keys import generate

PARTIES = (10, 50, 200)
#: Features, and how trees are grown: in the clear, and where every cell is encrypted by every party.
OPEN: tuple[int, dict[str, Any]] = (20, LEVELS | {"trees": 10})
HIDDEN: tuple[int, dict[str, Any]] = (5, LEVELS | {"trees": 2, "depth": 3, "bins": 16})
TASK = Task(target="fraud", family="binomial")


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Trees and a GLM of the same rows, dealt to 10, 50 and 200 parties in one process; seconds of
    processor time, so that the number of cores plays no part. In the clear 100,000 rows (quick:
    20,000), 20 features, 10 trees of depth 6; under the default protection, Paillier 3072, 20,000
    rows, 5 features, 2 trees of depth 3 in 16 bins: there every party encrypts every cell, and a
    study's cost rises with its parties. Trees are the same to the bit, coefficients to nine digits."""
    rows = 20_000 if quick else 100_000
    warning, few = busy(), PARTIES[: 2 if quick else 3]
    frame, small = suspicious(rows), suspicious(20_000)
    private = generate(3072)
    lines = []
    for words, table, (width, settings), protection in (
        ("in the clear", frame, OPEN, Clear),
        ("Paillier 3072", small, HIDDEN, lambda: Paillier(KeyAuthority(private))),
    ):
        columns = [f"x{j}" for j in range(40 - width, 40)]
        some = table[[*columns, "fraud"]]
        for what, solved in (
            ("trees", partial(_trees, trees.TreesSettings(kind="trees", **settings))),
            ("GLM", _coefficients),
        ):
            solved(Dealt(some.head(2_000), 3, protection()))  # numba compiles, tables for the key
            study = f"{what}, {len(some):,} rows, {words}"
            lines += _by_parties(study, some, few, protection, solved)
    return [*lines, *warning]


class Dealt:
    """A table dealt to so many parties, row by row, behind a grid of this process."""

    def __init__(self, frame: pd.DataFrame, parties: int, protection: Protection) -> None:
        self.parties, self.protection = parties, protection
        self.columns = [name for name in frame.columns if name != TASK.target]
        types = {name: Column(type="number") for name in frame.columns}
        self.contract = Contract(name="bench", columns=types)
        self.features = tuple(Feature(column=name) for name in self.columns)
        self._parties = [
            Party(f"insurer {k + 1}", frame.iloc[k::parties], frame.iloc[:1], workers=1)
            for k in range(parties)
        ]

    def asked(self, work: Callable[[Federation], Any]) -> Any:
        """What ``work`` makes of a federation of these parties."""
        node = client_app(self._parties.__getitem__, self.protection.hiding)
        with single_threaded_blas(), closing(InProcessGrid(node, self.parties, 1)) as grid:
            return work(Federation(grid, self.protection, self.parties))


def _trees(settings: trees.TreesSettings, dealt: Dealt) -> Trees:
    def grow(federation: Federation) -> Trees:
        terms = (TASK, dealt.features, dealt.contract, settings, 0)
        return trees.train(federation, *terms)[0]

    model: Trees = dealt.asked(grow)
    return model


def _coefficients(dealt: Dealt) -> tuple[float, ...]:
    """Coefficients rounded to nine digits: sums of floats depend on who adds what."""

    def fit(federation: Federation) -> tuple[float, ...]:
        settings = glm.Settings(kind="glm", family="binomial")
        terms = (TASK, dealt.features, dealt.contract, settings, 0)
        model: Any = glm.solve(federation, *terms).model
        return tuple(float(f"{value:.8e}") for value in model.beta)

    beta: tuple[float, ...] = dealt.asked(fit)
    return beta


def _by_parties(
    study: str,
    frame: pd.DataFrame,
    parties: tuple[int, ...],
    protection: Callable[[], Protection],
    solved: Callable[[Dealt], Any],
) -> list[Row]:
    """Each number of parties against the first of them."""
    seconds, models = {}, []
    for count in parties:
        dealt = Dealt(frame, count, protection())
        seconds[count], model = processor_timed(partial(solved, dealt))
        models.append(model)
    if any(model != models[0] for model in models[1:]):
        raise AssertionError(f"{study}: another model from as many rows of other parties")
    first = parties[0]
    return [
        processor_row(
            f"{study}, {count} parties", seconds[count], f"{first} parties", seconds[first]
        )
        for count in parties[1:]
    ]
