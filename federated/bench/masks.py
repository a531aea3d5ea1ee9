"""`lab bench masks`: one sum under masks, in the clear and under encryption."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from flwr.serverapp import Grid

from federated.app import client_app, server_app
from federated.bench.measurement import Row, row, timed
from federated.federation import Federation
from federated.hiding.masks import Masks
from federated.hiding.paillier import KeyAuthority, Paillier
from federated.hiding.protocol import Clear, Protection
from federated.messages import Request
from federated.party.party import Party
from federated.transport.in_process import run_in_process
from lab.models.glm import Task
from lab.sums import Floats, Limit, Sums

#: As a network's weight changes travel; `lab.models.network` has its own, which needs torch.
CHANGE = Limit(bound=2.0**32, resolution=2.0**-26)


def figures(path: Path | None, quick: bool) -> list[Row]:
    """One sum with all its messages, nothing computed but the sum. Paillier is measured on a
    twentieth of the values and extrapolated."""
    parties, size = 10, 50_000 if quick else 1_000_000
    clear, plain = _aggregated(Clear(), parties, size)
    hidden, total = _aggregated(Masks(), parties, size)
    if np.abs(plain - total).max() > parties * CHANGE.resolution:
        raise AssertionError("the sum under masks is not the sum")
    slow, _ = _aggregated(Paillier(KeyAuthority.with_new_key(3072)), parties, size // 20)
    what, paillier_seconds = f"{parties} x {size:,} parameters under masks", 20 * slow
    faster = f"{paillier_seconds / hidden:.0f} x faster"
    return [
        row(what, hidden, "in the clear", clear, f"{hidden / clear:.2f} x"),
        row(what, hidden, "Paillier 3072", paillier_seconds, faster),
    ]


def _aggregated(protection: Protection, parties: int, size: int) -> tuple[float, Floats]:
    """(seconds, total) of one sum, the best of three; nothing is computed but the sum."""

    class Fixed(Party):
        """A party whose answer is there already."""

        def take(self, request: Request) -> Sums:
            return self.sums  # type: ignore[attr-defined, no-any-return]

    rng, holders = np.random.default_rng(1), []
    empty = pd.DataFrame({"x": []})
    for k in range(parties):
        holder = Fixed(f"insurer {k + 1}", empty, empty)
        change = {"weights": rng.normal(scale=1e3, size=size)}
        holder.sums = Sums(change, {"weights": CHANGE}, 1000)  # type: ignore[attr-defined]
        holders.append(holder)
    sums_taken: list[tuple[float, Floats]] = []

    def study(nodes: Grid) -> None:
        federation = Federation(nodes, protection, parties)

        def total() -> Floats:  # the question does not matter, Fixed answers any
            return federation.sum("totals", task=Task(target="x"), part="train", most=(1.0,) * 4)[
                "weights"
            ]

        total()  # warm
        for _ in range(3):
            sums_taken.append(timed(total))

    run_in_process(
        server_app(study), client_app(holders.__getitem__, protection.hiding), parties, 2
    )
    return min(sums_taken, key=lambda one: one[0])
