"""A claims network: one party's training step, and the model as a file.

Numbers enter piecewise linearly between agreed knots (Gorishniy, Rubachev & Babenko, "On
embeddings for numerical features in tabular deep learning", 2022, section 3.1), categories as
embeddings, exposure as a log offset (Schelldorfer & Wüthrich, "Nesting classical actuarial models
into neural networks", 2019). Nothing here uses torch's global randomness.
"""

from __future__ import annotations

import base64
import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from lab.contracts import Strict
from lab.features import Encoding, codes_of
from lab.glm import Response, Task
from lab.sums import COUNT, PRECISE, Floats, Limit, Sums

#: Format of a weighted parameter change: |change| * rows below 2**34, kept to 2**-30.
CHANGE = Limit(bound=2.0**32, resolution=2.0**-26)
PREDICT_AT_ONCE = 20_000


class Recipe(Strict):
    """How a network is built and trained at a party in one round.

    ``batches``: mini-batches to an epoch, the same number at every party, so that a small party
    takes as many steps as a large one. ``intercept``: the linear predictor of the constant model;
    it is not trained, so that weight decay pulls towards the constant model and not towards 0.
    """

    hidden: tuple[int, ...]
    embedding: int
    dropout: float
    intercept: float
    epochs: int
    batches: int
    weight_decay: float


class Bends(Strict):
    """Knots of each number of an encoding, in its standardised units, rising."""

    knots: tuple[tuple[float, ...], ...]

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


def initial(encoding: Encoding, bends: Bends, recipe: Recipe, seed: int) -> dict[str, Floats]:
    """First weights: He-uniform layers, small embeddings, an output that is the constant model."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Floats] = {}
    width = bends.width
    for k, term in enumerate(encoding.categories):
        size = min(recipe.embedding, len(term.levels) - 1)
        draw = 0.3 * torch.randn(len(term.levels) + 1, size, generator=generator)
        draw[-1] = 0.0
        weights[f"embedding.{k}"] = draw.double().numpy()
        width += size
    for k, out in enumerate((*recipe.hidden, 1)):
        reach = 0.0 if k == len(recipe.hidden) else (1.0 / width) ** 0.5
        for name, shape in ((f"layer.{k}.weight", (out, width)), (f"layer.{k}.bias", (out,))):
            drawn = reach * (2 * torch.rand(shape, generator=generator) - 1)
            weights[name] = drawn.double().numpy()
        width = out
    return weights


def forward(
    weights: dict[str, Tensor],
    numbers: Tensor,
    codes: Tensor,
    recipe: Recipe,
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
    return out.squeeze(1) + recipe.intercept


def loss(family: str, eta: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Mean negative log-likelihood up to constants, on the log link (logit for binomial)."""
    match family:
        case "poisson":
            terms = torch.exp(eta) - y * eta
        case "gamma":
            terms = y * torch.exp(-eta) + eta
        case _:
            terms = F.softplus(eta) - y * eta
    return (weight * terms).sum() / weight.sum()


def update(
    rows: Tensors,
    recipe: Recipe,
    family: str,
    start: dict[str, Floats],
    *,
    learning_rate: float,
    proximal_mu: float,
    seed: int,
) -> Sums:
    """Local training from ``start``: the change of each weight times the rows, the rows, the loss.

    AdamW with a fresh state in every round; with ``proximal_mu`` the loss gets
    mu / 2 |w - start|^2 (Li et al., "Federated optimization in heterogeneous networks", 2020).
    """
    generator = torch.Generator().manual_seed(seed)
    origin = {k: torch.from_numpy(v).float() for k, v in start.items()}
    weights = {k: v.clone().requires_grad_() for k, v in origin.items()}
    optimiser = torch.optim.AdamW(
        weights.values(), lr=learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    n, total, steps = len(rows.y), 0.0, 0
    for _ in range(recipe.epochs if n else 0):
        order = torch.randperm(n, generator=generator)
        for at in order.tensor_split(min(recipe.batches, n)):
            eta = forward(weights, rows.numbers[at], rows.codes[at], recipe, generator)
            value = loss(family, eta + rows.offset[at], rows.y[at], rows.weight[at])
            total, steps = total + float(value.detach()), steps + 1
            if proximal_mu:
                gaps = [((weights[k] - origin[k]) ** 2).sum() for k in weights]
                value = value + proximal_mu / 2 * torch.stack(gaps).sum()
            optimiser.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    arrays: dict[str, Floats] = {
        k: n * (weights[k].detach().double().numpy() - start[k]) for k in sorted(weights)
    }
    limits: dict[str, Limit] = dict.fromkeys(arrays, CHANGE)
    arrays |= {"rows": np.array([float(n)]), "loss": np.array([n * total / max(steps, 1)])}
    return Sums(arrays, limits | {"rows": COUNT, "loss": PRECISE}, n)


class Network(Strict):
    """A trained network as plain JSON; the weights are safetensors in base64."""

    kind: Literal["network"] = "network"
    task: Task
    encoding: Encoding
    bends: Bends
    recipe: Recipe
    safetensors: str

    @staticmethod
    def pack(weights: dict[str, Floats]) -> str:
        """Weights as text."""
        from safetensors.numpy import save

        return base64.b64encode(save({k: np.float32(v) for k, v in weights.items()})).decode()

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        from safetensors.torch import load

        return dict(load(base64.b64decode(self.safetensors)))

    def predict(self, frame: pd.DataFrame) -> Floats:
        """The mean for one unit of exposure, one for each row."""
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
        return self.task.law.mean(eta)
