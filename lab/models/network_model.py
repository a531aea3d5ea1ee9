"""A claims network as a file: knots, embeddings and weights, all that is needed to score a table."""

from __future__ import annotations

import base64
import itertools
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
from lab.models.glm import Task
from lab.records import Strict
from lab.sums import Floats

PREDICT_AT_ONCE = 20_000


#: Logits beyond this are as good as certain.
CERTAIN = 500.0


Imbalance = Literal["none", "weights", "focal"]


class NetworkRecipe(Strict):
    """How a network is built and trained at a party in one round.

    ``batches``: mini-batches to an epoch, the same number at every party, so that a small party
    takes as many steps as a large one. ``intercept``: the linear predictor of the constant model,
    from the totals of all parties; it is not trained, so that weight decay pulls towards the
    constant model and not towards 0. ``imbalance`` and ``own_rate`` are for 0 and 1 alone.
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
    own_rate: bool = False

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
            raise ValueError("knots must be strictly increasing")
        return self

    @property
    def width(self) -> int:
        return sum(len(k) - 1 for k in self.knots)


def inputs(frame: pd.DataFrame, encoding: Encoding, bends: Bends) -> tuple[Tensor, Tensor]:
    """Bent numbers in [-1/2, 1/2] and level codes; a level nobody trained on is the last code."""
    columns = []
    for term, knots in zip(encoding.numbers, bends.knots, strict=True):
        x = np.nan_to_num(term.standardised(frame))
        for low, high in itertools.pairwise(knots):
            columns.append(np.clip((x - low) / (high - low), 0, 1) - 0.5)
    numbers = np.stack(columns, 1) if columns else np.zeros((len(frame), 0))
    codes = [codes_of(t.feature.texts(frame), t.levels) for t in encoding.categories]
    level = np.stack(codes, 1) if codes else np.zeros((len(frame), 0), dtype=np.int16)
    sizes = np.array([len(t.levels) for t in encoding.categories], dtype=np.int64)
    embedding_row = np.where(level < 0, sizes, level).astype(np.int64)
    return torch.from_numpy(numbers.astype(np.float32)), torch.from_numpy(embedding_row)


def shapes(encoding: Encoding, bends: Bends, recipe: NetworkRecipe) -> dict[str, tuple[int, ...]]:
    """The shape of each weight: an embedding for each category, then the layers."""
    sizes: dict[str, tuple[int, ...]] = {}
    width = bends.width
    for k, term in enumerate(encoding.categories):
        size = min(recipe.embedding, len(term.levels) - 1)
        sizes[f"embedding.{k}"] = (len(term.levels) + 1, size)
        width += size
    for k, out in enumerate((*recipe.hidden, 1)):
        sizes |= {f"layer.{k}.weight": (out, width), f"layer.{k}.bias": (out,)}
        width = out
    return sizes


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
            mask = torch.rand(x.shape, generator=generator) >= recipe.dropout
            x = x * mask / (1 - recipe.dropout)
    out = F.linear(x, weights[f"layer.{last}.weight"], weights[f"layer.{last}.bias"])
    return out.squeeze(1) + recipe.start


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
            raise ValueError(
                f"bends: needs knots for each of {len(self.encoding.numbers)} numbers, "
                f"got {len(self.bends.knots)}"
            )
        try:
            weights = self.weights
        except (SafetensorError, ValueError, KeyError) as error:
            raise ValueError(f"the weights cannot be read: {error}") from None
        layers = shapes(self.encoding, self.bends, self.recipe)
        if {k: tuple(v.shape) for k, v in weights.items()} != layers:
            raise ValueError("the shapes of the weights are not those of the layers")
        if not all(v.dtype == torch.float32 and v.isfinite().all() for v in weights.values()):
            raise ValueError("the weights must be finite 32-bit floats")
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


def single_threaded() -> None:
    """One torch thread for each node: the work is spread over nodes, and bits stay the same."""
    torch.set_num_threads(1)
