"""Training a network from sums: Flower's strategies over totals that hide single contributions.

Each round is one sum of weighted parameter changes (McMahan et al., "Communication-efficient
learning of deep networks from decentralized data", 2017). The opened total goes to the strategy
as a single reply; a strategy that takes a mean over replies cannot tell the difference.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from pydantic import Field, model_validator

from federated.federation import ModelTotals
from federated.party.party import Party
from federated.solvers.encoding import agree, totals_of
from federated.solvers.glm import constant_predictor
from federated.solvers.solution import ModelSettings, Solution, Watch
from federated.transport.in_process import identify_once
from lab.errors import ConfigurationError
from lab.models.design import Encoding, Feature
from lab.models.families import Scale
from lab.models.glm import Task
from lab.privacy.joining import Opened
from lab.records import Strict
from lab.sums import Floats, Sums
from lab.tables.contracts import Contract

if TYPE_CHECKING:
    from lab.models.network_model import Network

#: Weights after a round, from those before it and the opened total of its updates.
Combine = Callable[[dict[str, Floats], Sums], dict[str, Floats]]
#: Histogram over which knots are found: standard deviations either side, and bins.
REACH, BINS = 6.0, 960
#: Two knots closer than this share of their feature's range become one.
CLOSEST = 0.02


def train(
    federation: ModelTotals,
    task: Task,
    encoding: Encoding,
    settings: NetworkSettings,
    seed: int,
    watch: Watch | None = None,
    *,
    statistic: str = "network_update",
    combine: Combine | None = None,
) -> tuple[Network, pd.DataFrame]:
    """(model, loss by round). Same seed and same rows give the same bits.

    statistic: what a party adds up in a round; combine: how a round ends, by default as Flower's
    strategy in the settings says. A package gives others (`lab.packages`).
    """
    from lab.models import network_model  # torch is loaded for networks alone

    network_model.single_threaded()
    # 1. What all parties agree on: the knots of each number, the intercept, first weights.
    bends = network_model.Bends(knots=_knots(federation, task, encoding, settings))
    totals = totals_of(federation, task)
    recipe = network_model.NetworkRecipe(
        intercept=constant_predictor(task.law, totals),
        **settings.model_dump(include=set(network_model.NetworkRecipe.model_fields)),
    )
    weights = network_model.initial(encoding, bends, recipe, seed)
    parts: dict[str, Any] = {"task": task, "encoding": encoding, "bends": bends, "recipe": recipe}
    # 2. Rounds: one sum each, and a step of the strategy.
    strategy, trace = _strategy(settings), []
    for at in range(1, settings.rounds + 1):
        if watch:
            watch(f"round {at} of {settings.rounds}", at, settings.rounds)
        total = federation.sum(
            statistic,
            weights,
            **parts,
            learning_rate=_learning_rate(settings, at),
            proximal_mu=_proximal_mu(strategy, weights, at),
            round=at,
            seed=seed,
            scale=Scale.of(totals),
        )
        weights = combine(weights, total) if combine else _combined(strategy, weights, total, at)
        trace.append({"step": at, "loss": total.total("loss") / total.total("rows")})
    numbers = 1 + sum(array.size for array in weights.values())  # after each round, and its loss
    federation.opened.append(Opened(statistic, settings.rounds * numbers))
    model = network_model.Network(**parts, safetensors=network_model.Network.pack(weights))
    return model, pd.DataFrame(trace)


def _proximal_mu(strategy: Any, weights: dict[str, Floats], at: int) -> float:
    """The weight of the proximal term that the strategy tells the parties in round ``at``; it notes
    the weights that the round starts from."""
    messages = strategy.configure_train(at, _record(weights), ConfigRecord(), _OneReply())
    return float(next(iter(messages)).content["config"].get("proximal-mu", 0.0))


def _combined(strategy: Any, weights: dict[str, Floats], total: Sums, at: int) -> dict[str, Floats]:
    """Weights after round ``at``: the opened mean goes to the strategy as a single reply."""
    rows = total.total("rows")
    mean = {name: weights[name] + total[name] / rows for name in weights}
    reply = RecordDict({"arrays": _record(mean), "metrics": MetricRecord({"num-examples": rows})})
    message = Message(reply, dst_node_id=0, message_type="train")
    arrays, _ = strategy.aggregate_train(at, [message])
    return {name: np.asarray(a.numpy(), dtype=np.float64) for name, a in arrays.items()}


def solve(
    federation: ModelTotals,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    settings: NetworkSettings,
    seed: int,
    watch: Watch | None = None,
    left_out: list[str] | None = None,
) -> Solution:
    """The network after all rounds, and its loss by round."""
    least = settings.min_persons
    encoding = agree(federation, task, features, contract, least, left_out)
    model, losses = train(federation, task, encoding, settings, seed, watch)
    return Solution(model, losses)


def personal(party: Party, model: Network, settings: PersonalSettings, seed: int) -> Network:
    """The model with the party's own last layer, from its own rows; nothing of it passes the gate."""
    from lab.models import network, network_model

    network_model.single_threaded()
    parts = (model.encoding, model.bends, model.task)
    return network.personal(
        model,
        party.once(network.tensors_of, *parts, at_hand=1),
        seed=zlib.crc32(f"personal {seed} {party.name}".encode()),
        **settings.model_dump(),
    )


class _OneReply:
    """The nodes as a strategy sees them: one, which answers with the opened mean."""

    def get_node_ids(self) -> list[int]:
        return [0]


def _record(weights: dict[str, Floats]) -> ArrayRecord:
    return ArrayRecord({name: Array(values) for name, values in weights.items()})


def _learning_rate(settings: NetworkSettings, at: int) -> float:
    """Cosine from the full rate in the first round to a fiftieth in the last."""
    share = (at - 1) / max(1, settings.rounds - 1)
    return settings.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def _strategy(settings: NetworkSettings) -> Any:
    """Flower's own strategy object; it sees one reply, the opened mean."""
    import logging

    from flwr.serverapp import strategy

    logging.getLogger("flwr").setLevel(logging.ERROR)
    identify_once()
    strategy_class = getattr(strategy, settings.strategy.name)
    parameters: dict[str, Any] = settings.strategy.parameters()
    return strategy_class(min_train_nodes=1, min_available_nodes=1, **parameters)


def _knots(
    federation: ModelTotals, task: Task, encoding: Encoding, settings: NetworkSettings
) -> tuple[tuple[float, ...], ...]:
    """Knots of each number: quantiles and an even grid together, from one federated histogram."""
    if not encoding.numbers:
        return ()
    edges = np.linspace(-REACH, REACH, BINS + 1)
    counts = federation.sum(
        "histogram",
        {"edges": edges},
        task=task,
        features=encoding.numbers,
        least=settings.min_persons,
    )["count"]
    federation.opened.append(Opened("histogram", len(counts) * settings.knots))
    return tuple(_placed(row, edges, settings.knots) for row in counts)


def _placed(counts: Floats, edges: Floats, count: int) -> tuple[float, ...]:
    occupied = np.flatnonzero(counts)
    low, high = edges[occupied[0]], edges[occupied[-1] + 1]
    reached = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
    quantiles = np.interp(np.linspace(0, 1, count + 1), reached, edges)
    even = np.linspace(low, high, count + 1)
    points = np.unique(np.clip(np.concatenate([quantiles, even]), low, high))
    knots = [points[0]]
    for point in points[1:]:
        if point - knots[-1] > CLOSEST * (high - low):
            knots.append(point)
    return tuple(float(k) for k in knots)


class StrategySettings(Strict):
    """``[model.strategy]``: one of Flower's mean-based strategies, with its own parameters."""

    name: Literal["FedAvg", "FedAvgM", "FedProx", "FedAdam", "FedYogi", "FedAdagrad"] = Field(
        "FedAvg", description="One of Flower's strategies."
    )
    proximal_mu: float | None = Field(None, description="FedProx: weight of the proximal term.")
    server_learning_rate: float | None = Field(None, description="FedAvgM: step of the server.")
    server_momentum: float | None = Field(None, description="FedAvgM: momentum of the server.")
    eta: float | None = Field(None, description="FedAdam, FedYogi, FedAdagrad: step of the server.")
    beta_1: float | None = Field(None, description="FedAdam, FedYogi: decay of the first moment.")
    beta_2: float | None = Field(None, description="FedAdam, FedYogi: decay of the second moment.")
    tau: float | None = Field(
        None, description="FedAdam, FedYogi, FedAdagrad: degree of adaptivity."
    )

    def parameters(self) -> dict[str, float]:
        """The parameters given; one that the strategy does not have is refused."""
        names = {
            "FedAvg": (),
            "FedAvgM": ("server_learning_rate", "server_momentum"),
            "FedProx": ("proximal_mu",),
            "FedAdam": ("eta", "beta_1", "beta_2", "tau"),
            "FedYogi": ("eta", "beta_1", "beta_2", "tau"),
            "FedAdagrad": ("eta", "tau"),
        }[self.name]
        values = {k: v for k, v in self.model_dump().items() if k != "name" and v is not None}
        for key in values:
            if key not in names:
                listing = ", ".join(names) or "none"
                raise ConfigurationError(
                    f"model.strategy: {self.name} has no '{key}'; its parameters: {listing}"
                )
        return values


class PersonalSettings(Strict):
    """``[model.personal]``: how each party tunes a copy of the last layer on its own rows.

    ``credibility``: the shared layer counts as much as so many rows of the party's own.
    """

    epochs: int = Field(10, ge=1, description="Passes over the party's own rows.")
    learning_rate: float = Field(0.005, gt=0, description="Step of the last layer.")
    credibility: float = Field(
        100.0,
        ge=0,
        description="The shared layer counts as much as so many rows of the party's own.",
    )


class NetworkSettings(ModelSettings):
    """``[model] kind = "network"``: layers, local training in each round, Flower's strategy.

    ``imbalance`` is for frauds that are few: ``weights`` lets both classes weigh the same,
    ``focal`` lets rows that are told apart easily weigh less, the more so the higher
    ``focal_gamma``. Scores stay probabilities. ``own_rate`` is for parties whose frauds are alike, but
    for how many they are.
    """

    kind: Literal["network"] = Field(description="A feed-forward network, trained in rounds.")
    family: Literal["poisson", "gamma", "binomial"] = Field(
        "poisson", description="Distribution of the target."
    )
    hidden: tuple[int, ...] = Field((32, 16), description="Units of each hidden layer.")
    embedding: int = Field(3, ge=1, description="Numbers that stand for a level of a category.")
    knots: int = Field(8, ge=1, description="Piecewise-linear knots of each number.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of hidden units left out in a step.")
    rounds: int = Field(20, ge=1, description="Rounds of training.")
    epochs: int = Field(2, ge=1, description="Passes over a party's rows in a round.")
    batches: int = Field(25, ge=1, description="Mini-batches of a pass, at each party.")
    learning_rate: float = Field(
        0.006, gt=0, description="Step of local training in the first round."
    )
    weight_decay: float = Field(0.3, ge=0, description="Decay of weights in local training.")
    imbalance: Literal["none", "weights", "focal"] = Field(
        "none",
        description="For few frauds: weights lets both classes weigh the same, focal lets rows that are easily told apart weigh less (Lin et al. 2017).",
    )
    focal_gamma: float = Field(2.0, ge=0, le=10, description="How much less they weigh.")
    own_rate: bool = Field(
        False,
        description="For label skew, where parties' frauds are alike and only their rates differ: each trains with its own rate as given, and counts by what its rows say.",
    )
    strategy: StrategySettings = Field(StrategySettings(), description="How rounds are combined.")
    personal: PersonalSettings = Field(
        PersonalSettings(),
        description="For the arm 'personal': how each party tunes its last layer.",
    )

    def check(self) -> None:
        self.strategy.parameters()

    @model_validator(mode="after")
    def _classes_are_two(self) -> Self:
        if self.imbalance != "none" and self.family != "binomial":
            raise ValueError(
                f"imbalance = '{self.imbalance}' needs family = 'binomial', got '{self.family}'"
            )
        if self.own_rate and (self.family != "binomial" or self.imbalance == "focal"):
            raise ValueError(
                "own_rate = true needs family = 'binomial' and imbalance = 'none' or 'weights', "
                f"got '{self.family}' and '{self.imbalance}'"
            )
        return self


Settings = NetworkSettings
