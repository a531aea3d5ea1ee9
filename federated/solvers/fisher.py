"""Fisher scoring with step halving, from totals of score and curvature, and theta of a negative binomial.

McCullagh & Nelder 1989, section 2.5; columns that follow from each other, and coefficients that grow without
end, are named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from federated.federation import ModelTotals
from federated.solvers.shapes import Monotone
from lab.errors import ModelError, PeerError
from lab.models.design import Encoding
from lab.models.families import Family, Scale
from lab.models.glm import REACH, Task
from lab.privacy.joining import Opened
from lab.sums import Floats, Sums

MAX_STEPS = 60
MAX_HALVINGS = 25
#: A step this small, in standard errors, is the last; the sums at its start differ from those at its
#: end by less than float64 shows in a standard error.
STEP_TOLERANCE = 1e-8
#: So is one this small that is not half of the one before: what is left is the error of the sums, which
#: joined sides make of curves.
STALLED = 1e-6
#: What parties' rounding to the grid of the score may add up to, in its resolution.
ROUNDING = 64
#: Steps that gain less than this part of what chance gains while they still are long: the
#: coefficient goes to infinity.
NO_GAIN = 1e-3
#: On the log and logit links one step changes no coefficient by more: a factor of 4.5.
LONGEST_STEP = 1.5
#: Smallest eigenvalue of the scaled curvature, below which columns count as collinear.
COLLINEAR = 1e-11
#: Sweeps over all coordinates, and a change in standard errors that is the last.
MOST_SWEEPS, SWEPT = 10_000, 1e-9


@dataclass(frozen=True)
class Problem:
    """What Fisher scoring minimises: deviance / 2 + beta' penalty beta / 2 + absolute * |beta|, of which the
    intercept is no part, where some coefficients may have to rise. rows: that it is over, all but those of a
    share of persons."""

    federation: ModelTotals
    task: Task
    encoding: Encoding
    scale: Scale
    rows: int
    penalty: Floats
    absolute: float = 0.0
    monotone: Monotone | None = None
    theta: float | None = None
    share: float = 0.0

    @property
    def law(self) -> Family:
        law = self.task.law
        return law if self.theta is None else replace(law, theta=self.theta)

    def at(self, beta: Floats) -> Sums:
        """The sums at beta. Raises :class:`PeerError` if parties left since the fit began."""
        sums = self.federation.sum(
            "glm_step",
            {"beta": beta},
            task=self.task,
            encoding=self.encoding,
            scale=self.scale,
            theta=self.theta,
            share=self.share,
        )
        if sums.rows != self.rows:
            raise PeerError(
                f"a fit began over {self.rows:,} rows and is now over {sums.rows:,}: a party left "
                "or came back. All steps of a fit need the same parties; run it again"
            )
        return sums

    def curvature(self, sums: Sums) -> Floats:
        matrix = np.zeros((self.encoding.width, self.encoding.width))
        unit = self.scale.curvature(self.law)
        matrix[self.encoding.pairs] = unit * sums["curvature"]
        matrix += np.triu(matrix, 1).T
        return matrix + self.penalty

    def score(self, beta: Floats, sums: Sums) -> Floats:
        return sums["score"] - self.penalty @ beta

    def value(self, beta: Floats, sums: Sums) -> float:
        if sums.total("valid") < self.rows:
            return float("inf")
        size = 2 * self.absolute * np.abs(beta[1:]).sum()
        return sums.total("deviance") + float(beta @ self.penalty @ beta + size)

    def target(self, beta: Floats, gradient: Floats, matrix: Floats) -> Floats:
        """The coefficients that the sums at beta point to. Raises LinAlgError."""
        if self.monotone is not None:
            return self.monotone.target(beta, gradient, matrix)
        if self.absolute:
            return descended(beta, gradient, matrix, self.absolute)
        return beta + np.asarray(np.linalg.solve(matrix, gradient))

    def length(self, move: Floats, matrix: Floats, sums: Sums) -> float:
        """A step in standard errors, less what rounding may add to it. A standard error is at least the
        root of dispersion / curvature, whatever the units."""
        information = np.sqrt(np.diag(matrix))
        rounding = ROUNDING * sums.limits["score"].resolution / information
        dispersion = sums.total("pearson") / self.rows
        beyond = float((np.abs(move) * information - rounding).max())
        return beyond / float(np.sqrt(max(dispersion, np.finfo(float).tiny)))


#: (beta, the sums there, curvature, trace of (deviance, next step)) at an optimum.
Found = tuple[Floats, Sums, Floats, list[tuple[float, float]]]


def constant(encoding: Encoding, intercept: float) -> Floats:
    """The coefficients of the constant model."""
    return np.array([intercept, *[0.0] * (encoding.width - 1)])


def descended(beta: Floats, gradient: Floats, matrix: Floats, absolute: float) -> Floats:
    """The minimum of half (b - beta)' matrix (b - beta) - gradient'(b - beta) + absolute * |b|, the first of b
    left free: coordinates in turn (Friedman, Hastie & Tibshirani, "Regularization paths for generalized linear
    models via coordinate descent", 2010), then those that are not 0 at once, to every digit."""
    found, curvature = beta.copy(), np.diag(matrix)
    least = np.array([0.0] + [absolute] * (len(beta) - 1))
    rest = gradient.copy()  # of the slope at what is found
    for _ in range(MOST_SWEEPS):
        largest = 0.0
        for j in range(len(beta)):
            there = rest[j] + curvature[j] * found[j]
            to = np.sign(there) * max(abs(there) - least[j], 0.0) / curvature[j]
            if (change := to - found[j]) != 0:
                rest -= change * matrix[:, j]
                largest = max(largest, abs(change) * np.sqrt(curvature[j]))
                found[j] = to
        if largest <= SWEPT * np.sqrt(np.abs(gradient @ beta) + 1.0):
            break
    at = np.flatnonzero((found != 0) | (least == 0))
    slope = gradient + matrix @ beta - least * np.sign(found)
    exact = np.zeros_like(beta)
    exact[at] = np.linalg.solve(matrix[np.ix_(at, at)], slope[at])
    return exact if (np.sign(exact) == np.sign(found))[1:].all() else found


def scoring(problem: Problem, start: Floats) -> Found:
    """The optimum. start: (p,)."""
    names, beta = problem.encoding.names, start
    state = problem.at(beta)
    if state.total("valid") < problem.rows:
        raise ModelError(
            f"some rows weigh more than {REACH} times all rows of an average model: cap the target "
            "or the weight, or take the logarithm of a feature"
        )
    _refuse_collinear(problem.curvature(state), names)
    trace: list[tuple[float, float]] = []
    drifting, length = 0, np.inf
    for _ in range(MAX_STEPS):
        gradient, matrix = problem.score(beta, state), problem.curvature(state)
        try:
            target = problem.target(beta, gradient, matrix)
        except np.linalg.LinAlgError:
            raise _diverged(names, gradient) from None
        move = target - beta
        largest = float(np.abs(move).max())
        trace.append((state.total("deviance"), largest))
        length, last = problem.length(move, matrix, state), length
        if length <= STEP_TOLERANCE or last / 2 < length <= STALLED:
            return target, state, matrix, trace
        before, gain = problem.value(beta, state), float(gradient @ move)
        chance = NO_GAIN * state.total("pearson") / problem.rows
        drifting = drifting + 1 if gain < chance and largest > 0.3 else 0
        if drifting >= 4:
            raise _diverged(names, move)
        reach = 1.0
        if problem.task.law.link in ("log", "logit"):  # longer steps overshoot, and cost a round
            reach = min(1.0, LONGEST_STEP / max(largest, LONGEST_STEP))
        for _ in range(MAX_HALVINGS):
            trial = target if reach == 1 else beta + reach * move
            reached = problem.at(trial)
            if problem.value(trial, reached) <= before + 1e-10 * trace[0][0]:
                break
            reach /= 2
        else:
            raise _diverged(names, move)
        beta, state = trial, reached
    raise _diverged(names, move)


def _refuse_collinear(matrix: Floats, names: tuple[str, ...]) -> None:
    scale = np.sqrt(np.diag(matrix))
    flat = [name for name, s in zip(names, scale, strict=True) if not s > 0]
    if flat:
        raise ModelError(f"column {', '.join(flat)} is 0 in every training row; leave it out")
    values, vectors = np.linalg.eigh(matrix / np.outer(scale, scale))
    if values[0] > COLLINEAR * values[-1]:
        return
    share = np.abs(vectors[:, 0])
    together = [name for name, s in zip(names, share, strict=True) if s > 0.05 * share.max()]
    raise ModelError(
        f"columns {', '.join(together)} are collinear: one follows from the others; "
        "leave one out or set model.ridge"
    )


def _diverged(names: tuple[str, ...], move: Any) -> ModelError:
    worst = names[int(np.abs(move).argmax())]
    return ModelError(
        f"no finite estimate: the coefficient of '{worst}' grows without end, its rows are "
        "separated (all or none of them have the event); join its level to others of few persons by a "
        "higher model.min_persons, leave it out or set model.ridge"
    )


# Theta of a negative binomial.


MOST_TURNS = 60
#: A step of log(theta) that is the last, and the longest.
SETTLED, LONGEST = 1e-9, 1.0
#: Beyond so many times the mean a count of theta is Poisson's to three digits.
POISSON = 1e3


def fitted_theta(problem: Problem, found: Found) -> tuple[Problem, Found]:
    """The problem at the theta of the greatest likelihood of NB2, and its optimum. found: that of Poisson.

    Coefficients at theta, then theta at the coefficients by Newton's steps on its logarithm, and again: their
    information is orthogonal, so that few turns do (Lawless, "Negative binomial and mixed Poisson regression",
    1987, section 2). Raises :class:`ModelError` where counts vary no more than Poisson's.
    """
    beta, state, _, _ = found
    mean = problem.scale.target / problem.scale.weight
    excess = state.total("pearson") / (problem.rows - len(beta)) - 1
    theta = mean / max(excess, 1 / POISSON)
    for _ in range(MOST_TURNS):
        problem = replace(problem, theta=theta)
        found = scoring(problem, found[0])
        slopes = problem.federation.sum(
            "glm_theta",
            {"beta": found[0]},
            task=problem.task,
            encoding=problem.encoding,
            scale=problem.scale,
            theta=theta,
        )
        first, second = slopes.total("first"), slopes.total("second")
        steps = len(found[3])
        told = (steps + 1) * len(beta) + 2 * steps + 1  # as any fit, and theta
        problem.federation.opened.append(Opened("glm_step", told))
        step = -first / second if second < 0 else np.sign(first) * LONGEST
        step = float(np.clip(step, -LONGEST, LONGEST))
        if abs(step) <= SETTLED:
            return problem, found
        theta *= float(np.exp(step))
        if theta > POISSON * mean:
            break
    raise ModelError(
        "counts vary no more than Poisson's, so that theta grows without end; drop model.theta"
    )
