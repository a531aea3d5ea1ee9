"""A claims network: one party's training step, and the model as a file.

Numbers enter piecewise linearly between agreed knots (Gorishniy, Rubachev & Babenko, "On
embeddings for numerical features in tabular deep learning", 2022, section 3.1), categories as
embeddings, exposure as a log offset (Schelldorfer & Wüthrich, "Nesting classical actuarial models
into neural networks", 2019). Nothing here uses torch's global randomness.

Where frauds are few, both classes may weigh the same, or rows that are told apart easily may weigh
less (Lin et al., "Focal loss for dense object detection", 2017, section 3). Either loss is smallest
at another number than the probability; what :meth:`Network.predict` gives is the probability.

Where parties' frauds are alike and only their rates differ (label skew), a party's log odds are those of
all parties and a shift that its own rate gives away (Zhang et al., "Federated learning with label
distribution skew via logits calibration", 2022; Saerens et al., "Adjusting the outputs of a classifier to
new a priori probabilities", 2002). With the shift in the loss the weights need not carry it.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from lab.models.design import Encoding
from lab.models.families import FAR, Scale
from lab.models.glm import Response, Task
from lab.models.network_model import (
    Bends,
    Network,
    NetworkRecipe,
    forward,
    head,
    inputs,
    single_threaded,
)
from lab.records import Strict
from lab.statistics import Arrays, Holding, Statistic
from lab.sums import COUNT, Floats, Limit, Sums, limit_of

#: Format of a weighted parameter change: |change| * rows below 2**28, kept to 2**-24.
CHANGE = Limit(bound=2.0**28, resolution=2.0**-24)


@dataclass(frozen=True)
class Tensors:
    """A party's training rows: bent numbers (n, w), codes (n, c), target, weight, log exposure.

    shift: by how much the log odds of all of them are above those of all parties' rows, where the loss is
    told so.
    """

    numbers: Tensor
    codes: Tensor
    y: Tensor
    weight: Tensor
    offset: Tensor
    shift: float = 0.0

    def at_own_rate(self, intercept: float) -> Tensors:
        """The same rows, whose loss knows their own rate of 1; intercept: the log odds of all parties.

        One 1 at the rate of all is added, so that a party without any has a rate too.
        """
        ones = float((self.weight * self.y).sum()) + 1
        zeros = float((self.weight * (1 - self.y)).sum()) + math.exp(-intercept)
        return replace(self, shift=math.log(ones / zeros) - intercept)

    def information(self, intercept: float) -> int:
        """For how many rows they count: as what they say of log odds, beside rows at the rate of all."""
        own, everybody = (
            1 / math.cosh(eta / 2) ** 2 for eta in (intercept + self.shift, intercept)
        )
        return max(1, round(len(self.y) * own / everybody)) if len(self.y) else 0


def tensors(frame: pd.DataFrame, response: Response, encoding: Encoding, bends: Bends) -> Tensors:
    """What a party trains on."""
    numbers, codes = inputs(frame, encoding, bends)
    y, weight, offset = (
        torch.from_numpy(a.astype(np.float32))
        for a in (response.y, response.weight, response.offset)
    )
    return Tensors(numbers, codes, y, weight, offset)


def loss(
    family: str,
    recipe: NetworkRecipe,
    eta: Tensor,
    y: Tensor,
    weight: Tensor,
    shift: float = 0.0,
) -> Tensor:
    """Mean negative log-likelihood up to constants, on the log link (logit for binomial).

    With ``weights`` a class weighs 1 / (2 share) and ``eta`` stays the logit of the probability:
    the loss sees it less the intercept, by which weighting shifts the best logit (King & Zeng,
    "Logistic regression in rare events data", 2001, section 4). With ``focal`` a row weighs
    (1 - q)**gamma, q being what is predicted for what happened. With ``shift`` a party's rows have other
    log odds than ``eta`` says, all by as much.
    """
    match family, recipe.imbalance:
        case "poisson", _:
            terms = torch.exp(eta) - y * eta
        case "gamma", _:
            terms = y * torch.exp(-eta) + eta
        case _, "weights":
            share = torch.sigmoid((2 * y - 1) * (recipe.intercept + shift))
            shifted = eta - recipe.intercept
            terms = (F.softplus(shifted) - y * shifted) / (2 * share)
        case _, "focal":
            right = (2 * y - 1) * eta
            terms = torch.exp(recipe.focal_gamma * F.logsigmoid(-right)) * F.softplus(-right)
        case _:
            terms = F.softplus(eta + shift) - y * (eta + shift)
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
    most: float,
) -> Sums:
    """Local training from ``start``: the change of each weight times the rows, the rows, the loss. With
    ``own_rate`` rows count by :meth:`Tensors.information`.

    most: a bound of the loss, at which it is cut off. With ``proximal_mu`` the loss gets mu / 2 |w - start|^2 (Li et al., "Federated optimization in
    heterogeneous networks", 2020).
    """
    n = len(rows.y)
    if recipe.own_rate:
        rows = rows.at_own_rate(recipe.intercept)
        n = rows.information(recipe.intercept)
    weights, mean_loss = trained(
        rows, recipe, family, start, start, learning_rate, proximal_mu, seed
    )
    arrays = {k: n * (weights[k] - start[k]) for k in sorted(weights)}
    limits: dict[str, Limit] = dict.fromkeys(arrays, CHANGE)
    loss = limit_of(most)
    total_loss = np.clip([n * mean_loss], -loss.bound, loss.bound)
    arrays |= {"rows": np.array([float(n)]), "loss": total_loss}
    return Sums(arrays, limits | {"rows": COUNT, "loss": loss}, len(rows.y))


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
    scale: Scale


def tensors_of(holding: Holding, encoding: Encoding, bends: Bends, task: Task) -> Tensors:
    """A party's training rows as tensors."""
    single_threaded()
    rows = holding.rows(task, "train")
    return tensors(rows, Response(rows, task), encoding, bends)


def _own_seed(holding: Holding, seed: int, round_: int) -> int:
    """The seed of a party's order of rows and dropout in a round, which the party alone can draw."""
    digest = hmac.digest(holding.secret, f"order {seed} {round_}".encode(), "sha256")
    return int.from_bytes(digest[:7], "big")


def _update(holding: Holding, a: OfUpdate, arrays: Arrays) -> Sums:
    return update(
        holding.once(tensors_of, a.encoding, a.bends, a.task, at_hand=1),
        a.recipe,
        a.task.family,
        dict(arrays),
        learning_rate=a.learning_rate,
        proximal_mu=a.proximal_mu,
        seed=_own_seed(holding, a.seed, a.round),
        most=FAR * a.scale.rows * a.scale.deviance(a.task.law),
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
            parts = (eta + rows.offset[at], rows.y[at], rows.weight[at])
            value = loss(family, recipe, *parts, rows.shift)
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
    layer, family = head(recipe), model.task.family
    weights, _ = trained(rows, recipe, family, start, layer, learning_rate, pull, seed)
    return Network(**model.model_dump() | {"safetensors": Network.pack(weights)})


#: What a file of this kind holds.
MODEL = Network
