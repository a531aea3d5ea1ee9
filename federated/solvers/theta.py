"""Counts that vary more than Poisson's: theta of a negative binomial, NB2, by its profile likelihood.

Coefficients at theta, then theta at the coefficients by Newton's steps on its logarithm, and again: their
information is orthogonal, so that few turns do (Lawless, "Negative binomial and mixed Poisson regression",
1987, section 2).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from federated.solvers.fisher import Found, Problem, scoring
from lab.errors import ModelError
from lab.privacy.joining import Opened

MOST_TURNS = 60
#: A step of log(theta) that is the last, and the longest.
SETTLED, LONGEST = 1e-9, 1.0
#: Beyond so many times the mean a count of theta is Poisson's to three digits.
POISSON = 1e3


def fitted_theta(problem: Problem, found: Found) -> tuple[Problem, Found]:
    """The problem at the theta of the greatest likelihood, and its optimum. found: that of Poisson.

    Raises :class:`ModelError` where counts vary no more than Poisson's.
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
