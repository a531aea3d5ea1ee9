"""Levels in an order: coefficients that change little from one to the next, or only rise, or only fall.

Differences of neighbours are penalised as in Eilers & Marx, "Flexible smoothing with B-splines and penalties"
(1996), section 3; rising coefficients are sums of steps that are not negative, whose least squares Stark &
Parker, "Bounded-variable least-squares" (1995), give exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize

from lab.models.design import Encoding, Levels
from lab.sums import Floats

#: A step between two levels that is 0 but for rounding.
FLAT = 1e-12


def roughness(encoding: Encoding) -> Floats:
    """(p, p) P with beta'P beta the sum of squared differences of neighbouring levels, each feature's by its
    strength."""
    penalty = np.zeros((encoding.width, encoding.width))
    for start, term in _ordered(encoding):
        if (strength := term.feature.smooth) is not None:
            steps = np.diff(np.eye(len(term.levels))[term.order], term.feature.differences, axis=0)
            own = slice(start, start + len(term.levels) - 1)
            penalty[own, own] = strength * steps[:, 1:].T @ steps[:, 1:]
    return penalty


@dataclass(frozen=True)
class Monotone:
    """Coefficients that rise from level to level: beta = steps @ theta, where theta is not negative at
    ``rises``. features: (p,) whose of these a column is, -1 for the others."""

    steps: Floats
    rises: NDArray[np.bool_]
    features: NDArray[np.intp]

    @staticmethod
    def of(encoding: Encoding) -> Monotone | None:
        """None where nothing has to rise or to fall."""
        size = encoding.width
        steps, rises, features = np.eye(size), np.zeros(size, dtype=bool), np.full(size, -1)
        for start, term in _ordered(encoding):
            if (way := term.feature.monotone) is None:
                continue
            order = term.order
            own = [start + place - 1 for place in order if place]
            differences = np.diff(np.eye(len(term.levels))[order], axis=0)[:, 1:]
            columns = np.array([place - 1 for place in order if place])
            inverse = np.linalg.inv(differences[:, columns]) * (1.0 if way == "rising" else -1.0)
            steps[np.ix_(own, own)], rises[own], features[own] = inverse, True, start
        return Monotone(steps, rises, features) if rises.any() else None

    def target(self, beta: Floats, gradient: Floats, matrix: Floats) -> Floats:
        """The least of half (b - beta)' matrix (b - beta) - gradient'(b - beta) among such b. Raises
        LinAlgError."""
        curved = self.steps.T @ matrix @ self.steps
        slope = self.steps.T @ (gradient + matrix @ beta)
        root = np.linalg.cholesky(curved).T
        wanted = linalg.solve_triangular(root, slope, trans="T")
        low = np.where(self.rises, 0.0, -np.inf)
        found = optimize.lsq_linear(root, wanted, (low, np.inf), method="bvls", tol=1e-14).x
        free = ~self.rises | (found > 0)
        theta = np.zeros_like(beta)
        theta[free] = np.linalg.solve(curved[np.ix_(free, free)], slope[free])
        exact = (theta[self.rises] >= 0).all()
        return np.asarray(self.steps @ (theta if exact else found))

    def covariance(self, beta: Floats, matrix: Floats) -> Floats:
        """Of coefficients that rise, given the steps that are 0."""
        free = self.steps[:, ~self._flat(beta)]
        return np.asarray(free @ np.linalg.inv(free.T @ matrix @ free) @ free.T)

    def held(self, beta: Floats) -> NDArray[np.bool_]:
        """(p,) the columns of features of which two neighbours are equal, because they may not fall."""
        return np.isin(self.features, np.unique(self.features[self._flat(beta)]))

    def _flat(self, beta: Floats) -> NDArray[np.bool_]:
        """The steps that are 0."""
        theta = np.linalg.solve(self.steps, beta)
        return np.asarray(
            self.rises & (np.abs(theta) <= FLAT * max(1.0, float(np.abs(beta).max())))
        )


def _ordered(encoding: Encoding) -> Iterator[tuple[int, Levels]]:
    """Categories that have a shape, each with its first column."""
    start = 1 + len(encoding.numbers)
    for term in encoding.categories:
        if term.feature.smooth is not None or term.feature.monotone is not None:
            yield start, term
        start += len(term.levels) - 1
