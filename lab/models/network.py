"""A claims network: one party's training step, and the model as a file.

Numbers enter piecewise linearly between agreed knots (Gorishniy, Rubachev & Babenko, "On
embeddings for numerical features in tabular deep learning", 2022, section 3.1), categories as
embeddings, exposure as a log offset (Schelldorfer & Wüthrich, "Nesting classical actuarial models
into neural networks", 2019). Nothing here uses torch's global randomness.

Where frauds are few, both classes may weigh the same, or rows that are told apart easily may weigh
less (Lin et al., "Focal loss for dense object detection", 2017, section 3). Either loss is smallest
at another number than the probability; what :meth:`Network.predict` gives is the probability.
"""

from __future__ import annotations

import base64
import itertools
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
import pandas as pd
import torch
from pydantic import Field, model_validator
from scipy import optimize, special
from torch import Tensor
from torch.nn import functional as F

from lab.models.design import Encoding, codes_of
from lab.models.glm import Response, Task
from lab.records import Strict
from lab.statistics import Arrays, Holding, Statistic
from lab.sums import COUNT, PRECISE, Floats, Limit, Sums

#: Format of a weighted parameter change: |change| * rows below 2**34, kept to 2**-30.
CHANGE = Limit(bound=2.0**32, resolution=2.0**-26)
PREDICT_AT_ONCE = 20_000
#: Logits beyond this are as good as certain.
CERTAIN = 500.0
Imbalance = Literal["none", "weights", "focal"]


class NetworkRecipe(Strict):
    """How a network is built and trained at a party in one round.

    ``batches``: mini-batches to an epoch, the same number at every party, so that a small party
    takes as many steps as a large one. ``intercept``: the linear predictor of the constant model,
    from the totals of all parties; it is not trained, so that weight decay pulls towards the
    constant model and not towards 0. ``imbalance`` is for 0 and 1 alone.
    """

    hidden: tuple[int, ...]
    embedding: int
    dropout: float
    intercept: float
    epochs: int
    batches: int
    weight_decay: float
    imbalance: Imbalance = "none"
    focal_gamma: float = Field(2.0, ge=0, le=10)

    @cached_property
    def start(self) -> float:
        """What the network's output is added to: the loss of the constant model is least here."""
        if self.imbalance != "focal":
            return self.intercept

        def gap(eta: float) -> float:
            return float(unfocused(np.array(eta), self.focal_gamma)) - self.intercept

        return float(optimize.brentq(gap, -CERTAIN, CERTAIN, xtol=1e-12))


def unfocused(eta: Floats, gamma: float) -> Floats:
    """The logit of the probability, from the logit at which the focal loss is smallest.

    The closed form of Charoenphakdee et al., "On focal loss for class-posterior probability
    estimation" (2021): p : 1-p = q / phi(q) : (1-q) / phi(1-q) with
    phi(q) = (1-q)**gamma - gamma (1-q)**(gamma-1) q log q. Both shapes are that of ``eta``.
    """
    eta = np.clip(eta, -CERTAIN, CERTAIN)

    def log_phi(z: Floats) -> Floats:
        inner = special.expit(-z) - gamma * special.expit(z) * special.log_expit(z)
        return np.asarray((gamma - 1) * special.log_expit(-z) + np.log(inner))

    return np.asarray(eta - log_phi(eta) + log_phi(-eta))


class Bends(Strict):
    """Knots of each number of an encoding, in its standardised units, rising."""

    knots: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if any(low >= high for k in self.knots for low, high in itertools.pairwise(k)):
            raise ValueError("knots must rise")
        return self

    @property
    def width(self) -> int:
        return sum(len(k) - 1 for k in self.knots)


@dataclass(frozen=True)
class Tensors:
    """A party's training rows: bent numbers (n, w), codes (n, c), target, weight, log exposure."""

    numbers: Tensor
    codes: Tensor
    y: Tensor
    weight: Tensor
    offset: Tensor


def inputs(frame: pd.DataFrame, encoding: Encoding, bends: Bends) -> tuple[Tensor, Tensor]:
    """Bent numbers in [-1/2, 1/2] and level codes; a level nobody trained on is the last code."""
    columns = []
    for term, knots in zip(encoding.numbers, bends.knots, strict=True):
        x = np.nan_to_num((term.feature.numbers(frame, term.levels) - term.mean) / term.scale)
        for low, high in itertools.pairwise(knots):
            columns.append(np.clip((x - low) / (high - low), 0, 1) - 0.5)
    numbers = np.stack(columns, 1) if columns else np.zeros((len(frame), 0))
    codes = [codes_of(t.feature.texts(frame), t.levels) for t in encoding.categories]
    known = np.stack(codes, 1) if codes else np.zeros((len(frame), 0), dtype=np.int16)
    sizes = np.array([len(t.levels) for t in encoding.categories], dtype=np.int64)
    placed = np.where(known < 0, sizes, known).astype(np.int64)
    return torch.from_numpy(numbers.astype(np.float32)), torch.from_numpy(placed)


def tensors(frame: pd.DataFrame, response: Response, encoding: Encoding, bends: Bends) -> Tensors:
    """What a party trains on."""
    numbers, codes = inputs(frame, encoding, bends)
    y, weight, offset = (
        torch.from_numpy(a.astype(np.float32))
        for a in (response.y, response.weight, response.offset)
    )
    return Tensors(numbers, codes, y, weight, offset)


def single_threaded() -> None:
    """One torch thread for each node: the work is spread over nodes, and bits stay the same."""
    torch.set_num_threads(1)


def shapes(encoding: Encoding, bends: Bends, recipe: NetworkRecipe) -> dict[str, tuple[int, ...]]:
    """The shape of each weight: an embedding for each category, then the layers."""
    found: dict[str, tuple[int, ...]] = {}
    width = bends.width
    for k, term in enumerate(encoding.categories):
        size = min(recipe.embedding, len(term.levels) - 1)
        found[f"embedding.{k}"] = (len(term.levels) + 1, size)
        width += size
    for k, out in enumerate((*recipe.hidden, 1)):
        found |= {f"layer.{k}.weight": (out, width), f"layer.{k}.bias": (out,)}
        width = out
    return found


def head(recipe: NetworkRecipe) -> tuple[str, str]:
    """The names of the last layer's weights."""
    last = len(recipe.hidden)
    return f"layer.{last}.weight", f"layer.{last}.bias"


def initial(
    encoding: Encoding, bends: Bends, recipe: NetworkRecipe, seed: int
) -> dict[str, Floats]:
    """First weights: He-uniform layers, small embeddings, an output that is the constant model."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Floats] = {}
    reach = 0.0
    for name, shape in shapes(encoding, bends, recipe).items():
        if name.startswith("embedding"):
            draw = 0.3 * torch.randn(shape, generator=generator)
            draw[-1] = 0.0
        else:
            if name.endswith("weight"):
                reach = 0.0 if name in head(recipe) else (1.0 / shape[1]) ** 0.5
            draw = reach * (2 * torch.rand(shape, generator=generator) - 1)
        weights[name] = draw.double().numpy()
    return weights


def forward(
    weights: dict[str, Tensor],
    numbers: Tensor,
    codes: Tensor,
    recipe: NetworkRecipe,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The linear predictor without offset, (n,); dropout only where a generator is given."""
    parts = [numbers]
    parts += [F.embedding(codes[:, k], weights[f"embedding.{k}"]) for k in range(codes.shape[1])]
    x = torch.cat(parts, 1)
    last = len(recipe.hidden)
    for k in range(last):
        x = torch.relu(F.linear(x, weights[f"layer.{k}.weight"], weights[f"layer.{k}.bias"]))
        if generator is not None and recipe.dropout:
            kept = torch.rand(x.shape, generator=generator) >= recipe.dropout
            x = x * kept / (1 - recipe.dropout)
    out = F.linear(x, weights[f"layer.{last}.weight"], weights[f"layer.{last}.bias"])
    return out.squeeze(1) + recipe.start


def loss(family: str, recipe: NetworkRecipe, eta: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Mean negative log-likelihood up to constants, on the log link (logit for binomial).

    With ``weights`` a class weighs 1 / (2 share) and ``eta`` stays the logit of the probability:
    the loss sees it less the intercept, by which weighting shifts the best logit (King & Zeng,
    "Logistic regression in rare events data", 2001, section 4). With ``focal`` a row weighs
    (1 - q)**gamma, q being what is predicted for what happened.
    """
    match family, recipe.imbalance:
        case "poisson", _:
            terms = torch.exp(eta) - y * eta
        case "gamma", _:
            terms = y * torch.exp(-eta) + eta
        case _, "weights":
            share = torch.sigmoid((2 * y - 1) * recipe.intercept)
            shifted = eta - recipe.intercept
            terms = (F.softplus(shifted) - y * shifted) / (2 * share)
        case _, "focal":
            right = (2 * y - 1) * eta
            terms = torch.exp(recipe.focal_gamma * F.logsigmoid(-right)) * F.softplus(-right)
        case _:
            terms = F.softplus(eta) - y * eta
    return (weight * terms).sum() / weight.sum()


def update(
    rows: Tensors,
    recipe: NetworkRecipe,
    family: str,
    start: dict[str, Floats],
    *,
    learning_rate: float,
    proximal_mu: float,
    seed: int,
) -> Sums:
    """Local training from ``start``: the change of each weight times the rows, the rows, the loss.

    With ``proximal_mu`` the loss gets mu / 2 |w - start|^2 (Li et al., "Federated optimization in
    heterogeneous networks", 2020).
    """
    n = len(rows.y)
    weights, mean_loss = trained(
        rows, recipe, family, start, start, learning_rate, proximal_mu, seed
    )
    arrays = {k: n * (weights[k] - start[k]) for k in sorted(weights)}
    limits: dict[str, Limit] = dict.fromkeys(arrays, CHANGE)
    arrays |= {"rows": np.array([float(n)]), "loss": np.array([n * mean_loss])}
    return Sums(arrays, limits | {"rows": COUNT, "loss": PRECISE}, n)


class OfUpdate(Strict):
    """Arguments of :func:`update`, with the weights beside them; the round draws its order anew."""

    task: Task
    encoding: Encoding
    bends: Bends
    recipe: NetworkRecipe
    learning_rate: float
    proximal_mu: float
    round: int
    seed: int


def tensors_of(holding: Holding, encoding: Encoding, bends: Bends, task: Task) -> Tensors:
    """A party's training rows as tensors."""
    single_threaded()
    rows = holding.rows(task, "train")
    return tensors(rows, Response(rows, task), encoding, bends)


def _update(holding: Holding, a: OfUpdate, arrays: Arrays) -> Sums:
    return update(
        holding.once(tensors_of, a.encoding, a.bends, a.task, at_hand=1),
        a.recipe,
        a.task.family,
        dict(arrays),
        learning_rate=a.learning_rate,
        proximal_mu=a.proximal_mu,
        seed=zlib.crc32(f"{a.seed} {a.round} {holding.name}".encode()),
    )


STATISTICS = (
    Statistic("network_update", OfUpdate, _update, "network", arrays=None, message="train"),
)


def trained(
    rows: Tensors,
    recipe: NetworkRecipe,
    family: str,
    start: dict[str, Floats],
    names: Collection[str],
    learning_rate: float,
    proximal_mu: float,
    seed: int,
) -> tuple[dict[str, Floats], float]:
    """(weights, mean loss) after ``recipe.epochs`` of AdamW with a fresh state; only the weights
    of these ``names`` change."""
    generator = torch.Generator().manual_seed(seed)
    origin = {k: torch.from_numpy(v).float() for k, v in start.items()}
    weights = {k: v.clone().requires_grad_(k in names) for k, v in origin.items()}
    moving = [weights[k] for k in weights if k in names]
    optimiser = torch.optim.AdamW(
        moving, lr=learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    n, total, steps = len(rows.y), 0.0, 0
    for _ in range(recipe.epochs if n else 0):
        order = torch.randperm(n, generator=generator)
        for at in order.tensor_split(min(recipe.batches, n)):
            eta = forward(weights, rows.numbers[at], rows.codes[at], recipe, generator)
            value = loss(family, recipe, eta + rows.offset[at], rows.y[at], rows.weight[at])
            total, steps = total + float(value.detach()), steps + 1
            if proximal_mu:
                gaps = [((weights[k] - origin[k]) ** 2).sum() for k in weights]
                value = value + proximal_mu / 2 * torch.stack(gaps).sum()
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    after = {k: v.detach().double().numpy() for k, v in weights.items()}
    return after, total / max(steps, 1)


def personal(
    model: Network,
    rows: Tensors,
    *,
    epochs: int,
    learning_rate: float,
    credibility: float,
    seed: int,
) -> Network:
    """The model with its last layer tuned on a party's own rows, at that party.

    The body stays that of all parties (Collins et al., "Exploiting shared representations for
    personalized federated learning", 2021; Oh et al., "FedBABU", 2022). The layer is pulled
    towards the shared one as if that stood for ``credibility`` rows.
    """
    recipe = model.recipe.model_copy(update={"epochs": epochs, "weight_decay": 0.0})
    start = {k: v.double().numpy() for k, v in model.weights.items()}
    pull = credibility / max(len(rows.y), 1)
    told = (start, head(recipe), learning_rate, pull, seed)
    weights, _ = trained(rows, recipe, model.task.family, *told)
    return Network(**model.model_dump() | {"safetensors": Network.pack(weights)})


class Network(Strict):
    """A trained network as plain JSON; the weights are safetensors in base64."""

    kind: Literal["network"] = "network"
    task: Task
    encoding: Encoding
    bends: Bends
    recipe: NetworkRecipe
    safetensors: str

    @staticmethod
    def pack(weights: dict[str, Floats]) -> str:
        """Weights as text."""
        from safetensors.numpy import save

        return base64.b64encode(save({k: np.float32(v) for k, v in weights.items()})).decode()

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        from safetensors.torch import load

        return dict(load(base64.b64decode(self.safetensors, validate=True)))

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Nothing is built from sizes that the file names, only compared with what it holds."""
        from safetensors import SafetensorError

        if len(self.bends.knots) != len(self.encoding.numbers):
            raise ValueError("needs knots for each number")
        try:
            held = self.weights
        except (SafetensorError, ValueError, KeyError) as error:
            raise ValueError(f"the weights cannot be read: {error}") from None
        wanted = shapes(self.encoding, self.bends, self.recipe)
        if {k: tuple(v.shape) for k, v in held.items()} != wanted:
            raise ValueError("the weights do not fit the layers")
        if not all(v.dtype == torch.float32 and v.isfinite().all() for v in held.values()):
            raise ValueError("the weights must be finite numbers of 32 bits")
        return self

    def predict(self, frame: pd.DataFrame) -> Floats:
        """The mean for one unit of exposure, one for each row."""
        single_threaded()
        numbers, codes = inputs(frame, self.encoding, self.bends)
        with torch.no_grad():
            parts = [
                forward(
                    self.weights,
                    numbers[k : k + PREDICT_AT_ONCE],
                    codes[k : k + PREDICT_AT_ONCE],
                    self.recipe,
                )
                for k in range(0, len(frame), PREDICT_AT_ONCE)
            ]
        eta = torch.cat(parts).double().numpy() if parts else np.zeros(0)
        if self.recipe.imbalance == "focal":
            eta = unfocused(eta, self.recipe.focal_gamma)
        return self.task.law.mean(eta)


#: What a file of this kind holds.
MODEL = Network
