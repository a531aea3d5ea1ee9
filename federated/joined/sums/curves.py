"""The logistic function of a sum of two numbers, as a short sum of products of one function of each.

Interpolation in the fund's part b at Chebyshev points t_k of [-R, R]: f(a + b) = sum_k f(a + t_k) l_k(b),
with Lagrange's polynomials l_k (Berrut and Trefethen, "Barycentric Lagrange interpolation", SIAM Review 46
(2004), section 5). The functions have their nearest poles at +-i pi, so that the error falls by the sum of
the half-axes of the ellipse around [-R, R] that goes near them (Trefethen, Approximation Theory and
Approximation Practice, theorem 8.2). What the insurer knows, a, is not bounded.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from lab.sums import Floats

#: How far the fund's part of a linear predictor may go, and the points that it is interpolated at.
REACH, TERMS = 8.0, 72
#: How near to the poles the ellipse goes, as a part of the way.
NEAR = 0.9


def points() -> Floats:
    """(terms,) Chebyshev points of the second kind."""
    return np.asarray(REACH * np.cos(np.pi * np.arange(TERMS) / (TERMS - 1)))


def polynomials(b: Floats) -> Floats:
    """(rows, terms) Lagrange's polynomials at b; they add up to 1.

    >>> polynomials(np.array([0.3])).sum().round(12)
    np.float64(1.0)
    """
    t = points()
    weights = np.where(np.arange(TERMS) % 2 == 0, 1.0, -1.0)
    weights[[0, -1]] /= 2
    apart = b[:, None] - t
    at = np.isclose(apart, 0.0, atol=1e-13)
    terms = weights / np.where(at, 1.0, apart)
    values = terms / terms.sum(axis=1, keepdims=True)
    exact = at.any(axis=1)
    values[exact] = at[exact].astype(np.float64)
    return np.asarray(values)


def shifted(a: Floats, curve: str) -> Floats:
    """(rows, terms) a curve at a + t_k: ``mean``, its derivative ``slope``, its integral ``softplus``."""
    eta = a[:, None] + points()
    match curve:
        case "mean":
            return np.asarray(special.expit(eta))
        case "slope":
            return np.asarray(special.expit(eta) * special.expit(-eta))
    return np.asarray(np.logaddexp(0.0, eta))


def error_bound() -> float:
    """The largest error of a mean, for any a and |b| <= :data:`REACH`.

    >>> error_bound() < 2e-9
    True
    """
    height = NEAR * np.pi / REACH
    rho = height + np.sqrt(height**2 + 1)
    largest = 1 / (2 * np.cos(NEAR * np.pi / 2))
    return float(4 * largest * rho ** -(TERMS - 1) / (rho - 1))
