"""Differential privacy of a party's sums: bounded contributions, noise, and a budget on disk.

Each party adds the whole noise to its own contribution before it is encrypted, so its guarantee
depends on nobody else. Protected is a person's presence: all rows of one person at this party, or
one row where no column says who is who. The order of work: bound, clamp, sum, plan, charge, and
only then noise and release. Noise is OpenDP's, exact on integers, from randomness that cannot be
seeded; what releases cost together is dp_accounting's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from lab.errors import ConfigurationError, PolicyError
from lab.records import Strict

Integers = NDArray[np.int64]
Mechanism = Literal["laplace", "gaussian"]
#: One release as the privacy budget keeps it: ``{"mechanism": "laplace", "epsilon": 0.5}`` or
#: ``{"mechanism": "gaussian", "rho": 0.01}``.
Event = dict[str, Any]
#: What a release of each mechanism costs: epsilon, or the rho of zero-concentrated privacy.
KINDS: dict[Mechanism, str] = {"laplace": "epsilon", "gaussian": "rho"}
#: In grid units: cells are clipped to the first, rows, persons and scales stay far below it.
LARGEST, LARGEST_ROW, LARGEST_PERSON, LARGEST_SCALE = 2**62, 2**32, 2**48, 2.0**53
LARGEST_DELTA = 1e-3
#: Orders of Rényi divergence, spaced evenly in the logarithm of order - 1.
ORDERS = tuple(1 + 2 ** (k / 4) for k in range(-8, 73))
#: Above this scale a discrete Gaussian is taken for a rounded one: 1/12 more variance.
WIDE = 64.0


class Noise(Strict):
    """The noise of one party's whole answer to one question.

    epsilon, delta: the guarantee of that answer, all its vectors together; delta is 0 for
    laplace. rows_per_person: at most so many rows of a person count.
    """

    mechanism: Mechanism = Field("laplace", description="Discrete Laplace or Gaussian noise.")
    epsilon: float = Field(gt=0, le=100, description="Privacy loss of the whole answer.")
    delta: float = Field(0.0, description="For gaussian; 0 for laplace.")
    rows_per_person: int = Field(
        default=1, ge=1, le=2**16, description="At most so many rows of a person count."
    )

    @model_validator(mode="after")
    def _delta_belongs_to_gaussian(self) -> Self:
        if self.mechanism == "laplace" and self.delta != 0:
            raise ValueError("laplace noise has delta 0; leave it out or choose gaussian")
        if self.mechanism == "gaussian" and not 0 < self.delta <= LARGEST_DELTA:
            raise ValueError(f"gaussian noise needs a delta above 0, at most {LARGEST_DELTA}")
        return self


def bounded(persons: ArrayLike | None, rows_per_person: int, rows: int) -> NDArray[np.bool_]:
    """Which rows count: the first ``rows_per_person`` of each person, in table order.

    persons: (rows,) integer codes, negative where the person is unknown, whose rows are left
    out; or None, where every row stands for itself.
    """
    if persons is None:
        return np.ones(rows, dtype=np.bool_)
    codes = np.asarray(persons)
    if codes.shape != (rows,):
        raise ValueError(f"codes of shape {codes.shape} for {rows} rows")
    order = np.argsort(codes, kind="stable")
    ranked, place = codes[order], np.arange(rows)
    first = np.r_[True, ranked[1:] != ranked[:-1]][:rows]
    selection = np.empty(rows, dtype=np.bool_)
    selection[order] = place - np.maximum.accumulate(np.where(first, place, 0)) < rows_per_person
    return selection & (codes >= 0)


def grid(low: float, high: float) -> float:
    """The spacing of the public grid for values in [low, high]: a power of two, 2⁻¹⁹ to 2⁻²⁰ of
    the largest magnitude."""
    step = math.ldexp(1.0, math.frexp(max(-low, high))[1] - 20)
    sensitivity(1, low, high, step)
    return step


def clamped(values: ArrayLike, low: float, high: float, step: float) -> Integers:
    """Values clamped to [low, high] and rounded to multiples of ``step``, in units of ``step``.

    What is not a number contributes 0: an error would tell that a row has none.
    """
    sensitivity(1, low, high, step)
    numbers = np.asarray(values, dtype=np.float64)
    inside = np.where(np.isnan(numbers), 0.0, np.clip(numbers, low, high))
    return np.rint(inside / step).astype(np.int64)


def sensitivity(rows_per_person: int, low: float, high: float, step: float) -> int:
    """By how much a person can change a vector of sums of clamped values, in units of ``step``.

    In L1 and in L2 alike: each row counts in one cell, and all rows of a person may be in one.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigurationError(
            f"bounds must be finite, the first below the second, got [{low}, {high}]"
        )
    if not (step > 0 and math.isfinite(step) and math.frexp(step)[0] == 0.5):
        raise ConfigurationError(f"the spacing of a grid is a power of two, got {step}")
    reach = round(max(abs(low), abs(high)) / step)
    if not 1 <= reach <= LARGEST_ROW:
        raise ConfigurationError(f"a grid of spacing {step:g} does not fit [{low:g}, {high:g}]")
    return rows_per_person * reach


@dataclass(frozen=True)
class Release:
    """One noised vector. sensitivity: of a person, L1 for laplace, L2 for gaussian, in grid units.

    scale: of the noise, in grid units. cost: what is charged, of the kind in :data:`KINDS`.
    """

    mechanism: Mechanism
    sensitivity: int
    scale: float
    cost: float

    def __post_init__(self) -> None:
        if not (
            self.mechanism in KINDS
            and 1 <= self.sensitivity <= LARGEST_PERSON
            and 0 < self.scale <= LARGEST_SCALE
            and 0 < self.cost < math.inf
        ):
            raise ConfigurationError(
                f"{self.mechanism} noise of scale {self.scale:g} for sensitivity "
                f"{self.sensitivity} cannot be made; choose a coarser grid or a larger epsilon"
            )


def plan(noise: Noise, sensitivities: Mapping[str, int]) -> dict[str, Release]:
    """The noise of every vector of one answer, which share its guarantee evenly.

    sensitivities: in grid units, by vector. Epsilons of laplace add up. Gaussian vectors share
    the largest rho that dp_accounting converts to the answer's epsilon and delta.
    """
    if not sensitivities:
        return {}
    count = len(sensitivities)
    if noise.mechanism == "laplace":
        cost = noise.epsilon / count
        while Fraction(cost) * count > Fraction(noise.epsilon):
            cost = math.nextafter(cost, 0.0)
    else:
        cost = _rho(noise.epsilon, noise.delta, count)
    return {
        name: _smallest(noise.mechanism, operator.index(s), cost)
        for name, s in sensitivities.items()
    }


def _smallest(mechanism: Mechanism, sensitivity: int, cost: float) -> Release:
    """The least noise whose own account of its loss, rounded up, does not exceed the cost."""
    scale = sensitivity / (cost if mechanism == "laplace" else math.sqrt(2 * cost))
    release = Release(mechanism, sensitivity, scale, cost)
    while _measurement(release).map(sensitivity) > cost:
        release = Release(mechanism, sensitivity, math.nextafter(release.scale, math.inf), cost)
    return release


@lru_cache(64)
def _rho(epsilon: float, delta: float, count: int) -> float:
    """The largest rho such that so many releases of it are (epsilon, delta)-private together."""
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    tail = math.log(1 / delta)  # the closed form of Bun and Steinke (2016), to start from
    start = (epsilon / (math.sqrt(tail + epsilon) + math.sqrt(tail))) ** 2 / count
    return float(
        dp.calibrate_dp_mechanism(
            lambda: RdpAccountant(ORDERS),
            lambda rho: dp.SelfComposedDpEvent(dp.ZCDpEvent(rho), count),
            epsilon * (1 - 1e-6),  # room for the rounding of sums
            delta,
            dp.LowerEndpointAndGuess(0.0, start),
            tol=start * 1e-7,
        )
    )


def _measurement(release: Release) -> Any:
    """OpenDP's discrete Laplace or discrete Gaussian on vectors of 64-bit integers."""
    from opendp.domains import atom_domain, vector_domain
    from opendp.measurements import make_gaussian, make_laplace
    from opendp.metrics import l1_distance, l2_distance
    from opendp.mod import enable_features

    enable_features("contrib")
    domain = vector_domain(atom_domain(T="i64"))
    if release.mechanism == "laplace":
        return make_laplace(domain, l1_distance(T="i64"), scale=release.scale)
    return make_gaussian(domain, l2_distance(T="i64"), scale=release.scale)


def noised(ints: Integers, release: Release) -> Integers:
    """The integers with fresh noise, same shape, within ±2⁶².

    Cells beyond ±2⁶² are clipped before and after, which changes no guarantee. Takes some tens
    of microseconds a cell. Raises :class:`PolicyError` for noise that would lose more than its
    release is charged for.
    """
    if ints.dtype != np.int64:
        raise TypeError(f"noise is added to int64, not {ints.dtype}")
    measurement = _measurement(release)
    if measurement.map(release.sensitivity) > release.cost:
        raise PolicyError("this noise is too small for what it is charged; nothing is released")
    if not ints.size:
        return ints.copy()
    cells = np.clip(ints, -LARGEST, LARGEST).ravel().tolist()
    out = np.array(measurement(cells), dtype=np.int64).reshape(ints.shape)
    return np.clip(out, -LARGEST, LARGEST)


def deviation(release: Release) -> float:
    """The standard deviation of one cell's noise, in grid units."""
    if release.mechanism == "laplace":
        return 1 / (math.sqrt(2) * math.sinh(1 / (2 * release.scale)))
    if release.scale > WIDE:
        return release.scale
    cells, chances = _table(release.scale)
    return math.sqrt(float(cells**2 @ chances))


def draws(
    release: Release, parties: int, size: int | tuple[int, ...], rng: np.random.Generator
) -> Integers:
    """Samples of the sum of so many parties' noise, in grid units, for an analyst's intervals.

    Never for protection: ``rng`` can be seeded and guessed. Discrete Laplace is the difference of
    two geometric variables; a discrete Gaussian above scale 64 is drawn as a rounded Gaussian.
    """
    if release.mechanism == "laplace":
        stop = -math.expm1(-1 / release.scale)
        up, down = (rng.negative_binomial(parties, stop, size) for _ in range(2))
        return np.asarray(up - down, dtype=np.int64)
    if release.scale > WIDE:
        wide = rng.normal(0.0, release.scale * math.sqrt(parties), size)
        return np.asarray(np.rint(wide), dtype=np.int64)
    cells, chances = _table(release.scale)
    total = sum(rng.choice(cells, size, p=chances) for _ in range(parties))
    return np.asarray(total, dtype=np.int64)


def _table(scale: float) -> tuple[Integers, NDArray[np.float64]]:
    """The cells a discrete Gaussian can fall into, to 12 scales, and their probabilities."""
    reach = math.ceil(12 * scale)
    cells = np.arange(-reach, reach + 1)
    chances = np.exp(-((cells / scale) ** 2) / 2)
    return cells, chances / chances.sum()


def audited_epsilon(
    correct: int, guesses: int, canaries: int, delta: float = 0.0, confidence: float = 0.95
) -> float:
    """A lower bound on a mechanism's epsilon, from one run of it.

    Each of ``canaries`` persons was in the table with probability ½, independently; an auditor
    who saw only what was released guessed ``guesses`` of them, ``correct`` rightly, and abstained
    on the rest. A mechanism with a smaller epsilon at this delta does so well with a probability
    of at most 1 - ``confidence``. Source: Steinke, Nasr and Jagielski, Privacy Auditing with One
    (1) Training Run, 2023, Theorem 5.2.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} of {guesses} guesses correct, of {canaries} canaries")
    from scipy.stats import binom

    def chance(epsilon: float) -> float:
        """The most probable this many correct guesses can be for an honest mechanism."""
        right = 1 / (1 + math.exp(-epsilon))
        tail = float(binom.sf(correct - 1, guesses, right))
        if not (delta and correct):
            return tail
        below = np.cumsum(binom.pmf(np.arange(correct)[::-1], guesses, right))
        return tail + 2 * canaries * delta * float(np.max(below / np.arange(1, correct + 1)))

    low, high = 0.0, 32.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if chance(middle) < 1 - confidence else (low, middle)
    return low
