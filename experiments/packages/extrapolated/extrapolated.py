"""A network whose rounds go further than the mean of the parties' changes, the more they disagree.

FedExP: Jhunjhunwala, Wang and Joshi, "FedExP: speeding up federated averaging via extrapolation" (2023),
section 3. Its step needs one number more than the mean, the squared lengths of the changes added up; a
strategy that looked at each party's reply could not do it over hidden totals. A statistic and a strategy of
one's own, in a package: all else is that of the laboratory's network.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from federated.federation import ModelTotals
from federated.solvers.encoding import agree
from federated.solvers.network import NetworkSettings, StrategySettings, train
from federated.solvers.solution import Solution, Watch
from lab.errors import ConfigurationError
from lab.models import network
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.network_model import Network
from lab.statistics import Arrays, Holding
from lab.sums import Floats, Sums
from lab.tables.contracts import Contract

#: Added to the squared length of the mean change, so that a step is finite where all stand still.
LEAST = 1e-8


class Settings(NetworkSettings):
    """``[model]`` with ``kind = "extrapolated"``: all that a network takes, but another's strategy."""

    kind: Literal["extrapolated"]  # type: ignore[assignment]

    def check(self) -> None:
        if self.strategy != StrategySettings():
            raise ConfigurationError("model.strategy: an extrapolated network has its own; drop it")


class MODEL(Network):
    """The network as a file; it predicts as any."""

    kind: Literal["extrapolated"] = "extrapolated"  # type: ignore[assignment]


(UPDATE,) = network.STATISTICS


def update(holding: Holding, a: Any, arrays: Arrays) -> Sums:
    """A party's update, and ``square``, its squared length times the rows."""
    own = UPDATE.function(holding, a, arrays)
    rows = own.total("rows")
    square = sum(float(((own[name] / max(rows, 1)) ** 2).sum()) for name in arrays)
    limits = {**own.limits, "square": network.CHANGE}
    return Sums({**own.arrays, "square": np.array([rows * square])}, limits, own.rows)


STATISTICS = (
    replace(UPDATE, name="extrapolated_update", function=update, analysis="extrapolated"),
)


def extrapolate(weights: dict[str, Floats], total: Sums) -> dict[str, Floats]:
    """Weights after a round: a step of 1 or more along the mean change."""
    rows = total.total("rows")
    mean = {name: total[name] / rows for name in weights}
    length = sum(float((change**2).sum()) for change in mean.values())
    step = max(1.0, total.total("square") / rows / (2 * (length + LEAST)))
    return {name: weights[name] + step * change for name, change in mean.items()}


def solve(
    federation: ModelTotals,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    settings: Settings,
    seed: int,
    watch: Watch | None = None,
    left_out: list[str] | None = None,
) -> Solution:
    """The network after all rounds, and its loss by round."""
    encoding = agree(federation, task, features, contract, settings.min_persons, left_out)
    known = (federation, task, encoding, settings, seed, watch)
    model, losses = train(*known, statistic="extrapolated_update", combine=extrapolate)
    return Solution(MODEL(**model.model_dump() | {"kind": "extrapolated"}), losses)
