"""Elastic net: coefficients that are drawn to 0, some of them all the way, and how strongly.

A path tries penalties from the least that leaves every coefficient out, each from where the one before ended,
and takes the one by which held-out rows have the least deviance (Friedman, Hastie & Tibshirani,
"Regularization paths for generalized linear models via coordinate descent", 2010). The steps ask what those of
any fit ask, over the rows of all persons but those who judge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from federated.solvers.fisher import Problem, constant, scoring
from federated.solvers.shapes import roughness
from lab.errors import ModelError
from lab.privacy.joining import Opened
from lab.sums import Floats, Sums

#: Penalties of a path that the rows set, and the last of them as a part of the first.
STEPS, LAST = 20, 1e-3
#: Penalty and held-out deviance of each step of a path.
Path = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Penalty:
    """alpha * (l1 * |b| + (1 - l1) / 2 * |b|²) beside the mean half deviance, intercept left free.

    alphas: one, or several to choose from, or None for those that the rows set; share: of persons who judge.
    """

    alphas: tuple[float, ...] | None = (0.0,)
    l1: float = 0.0
    share: float = 0.0

    @property
    def chooses(self) -> bool:
        return self.alphas is None or len(self.alphas) > 1

    def on(self, problem: Problem, alpha: float, weight: float) -> Problem:
        """The problem with this alpha. weight: of all rows that it is over."""
        squared = alpha * (1 - self.l1) * np.diag(np.sign(np.arange(problem.encoding.width)))
        penalty = weight * (squared + roughness(problem.encoding))
        return replace(problem, penalty=penalty, absolute=alpha * self.l1 * weight)


#: No penalty at all.
NONE = Penalty()


def choose(problem: Problem, penalty: Penalty, start: float, weight: float, least: int) -> Path:
    """Penalties and what held-out rows say of each. problem: over all rows; weight: of all of them.

    Raises :class:`ModelError` where fewer than ``least`` persons judge.
    """
    null = constant(problem.encoding, start)
    judges = _held_out(problem, penalty, null[None])
    if judges.total("persons") < max(least, 1) or judges.rows >= problem.rows:
        raise ModelError(
            f"fewer than {least} persons judge alpha, or none is left to fit on; change model.validation_share"
        )
    part = replace(problem, rows=problem.rows - judges.rows, share=penalty.share)
    weight *= part.rows / problem.rows
    alphas = penalty.alphas or _of_rows(part, penalty, null, weight)
    beta, betas, told = null, [], 0
    for alpha in sorted(alphas, reverse=True):
        beta, *_, trace = scoring(penalty.on(part, alpha, weight), beta)
        betas.append(beta)
        told += (len(trace) + 1) * len(beta) + 2 * len(trace)
    judged = _held_out(problem, penalty, np.array(betas))
    deviance = np.where(judged["valid"] < judged.rows, np.inf, judged["deviance"])
    problem.federation.opened.append(Opened("glm_step", told))
    judges_told = Opened.cells("glm_held_out", len(betas) + 2, judged["persons"])
    problem.federation.opened.append(judges_told)
    if not np.isfinite(deviance).any():
        raise ModelError(
            "no alpha gives held-out rows a mean within the family's range; change model.alpha"
        )
    return tuple(zip(sorted(alphas, reverse=True), deviance.tolist(), strict=True))


def best(path: Path) -> float:
    """The penalty of the least held-out deviance; of equals the strongest."""
    return min(path, key=lambda step: step[1])[0]


def _of_rows(part: Problem, penalty: Penalty, null: Floats, weight: float) -> tuple[float, ...]:
    """From the least penalty that leaves every coefficient out, down."""
    score = part.at(null)["score"][1:]
    first = float(np.abs(score).max()) / (weight * penalty.l1)
    return tuple(float(f"{alpha:.6g}") for alpha in np.geomspace(first, LAST * first, STEPS))


def _held_out(problem: Problem, penalty: Penalty, betas: Floats) -> Sums:
    """What the rows of those who judge say of these models. betas: (models, p)."""
    return problem.federation.sum(
        "glm_held_out",
        {"betas": betas},
        task=problem.task,
        encoding=problem.encoding,
        scale=problem.scale,
        share=penalty.share,
    )
