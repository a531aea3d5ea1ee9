"""Bins of a prediction that two sides know a part of each: even ones, around the market's mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.errors import PeerError
from lab.models.families import Family, Scale
from lab.sums import Floats, Sums

#: Bins, and how far a part of the linear predictor counts: what lies beyond is moved to there.
COUNT, REACH = 64, 19.0
#: How often bins are made finer, with the first time.
QUESTIONS = 3


@dataclass(frozen=True)
class Places:
    """Bins of step * whole number, from first * step on. count: of them; numbers go around."""

    first: int
    step: float
    count: int

    @classmethod
    def of(cls, edges: Floats) -> Places:
        """Of the edges between them. Raises :class:`PeerError` for edges that are not even."""
        steps = np.diff(edges)
        if not (1 < len(edges) < 2 * COUNT and np.ptp(steps) <= 1e-9 * steps[0] and steps[0] > 0):
            raise PeerError("score_lorenz: over joined sides bins are even, and at most 128")
        step = float(edges[-1] - edges[0]) / (len(edges) - 1)
        return cls(round(float(edges[0]) / step - 0.5), step, len(edges) + 1)

    @property
    def edges(self) -> Floats:
        return np.asarray(self.step * (self.first + 0.5 + np.arange(self.count - 1)))

    @property
    def middles(self) -> Floats:
        return np.asarray(self.step * (self.first + np.arange(self.count)))

    def numbers(self, part: Floats) -> NDArray[np.int64]:
        """(rows,) a side's part of a prediction, rounded; what is no number is 0."""
        inside = np.clip(np.nan_to_num(part, nan=0.0), -REACH, REACH)
        return np.rint(inside / self.step).astype(np.int64)


#: Bins that hold every sum of two parts.
WHOLE = Places(-COUNT // 2, (4 * REACH + 4) / COUNT, COUNT)


def curve(ask: Callable[[Places], Sums], by: str) -> Sums:
    """Sums by bin, asked for in finer bins until those with anything are half of them."""
    bins = WHOLE
    for _ in range(QUESTIONS):
        sums = ask(bins)
        filled = np.flatnonzero(sums[by] > 0)
        if not len(filled) or 2 * np.ptp(filled) >= bins.count:
            break
        bins = _around(bins, int(filled[0]), int(filled[-1]))
    return sums


def _around(bins: Places, low: int, high: int) -> Places:
    """As many bins for those from low to high. The sum of two rounded parts is off by up to a step, so
    there is room for one at either end, before and after."""
    start, end = bins.step * (bins.first + low - 1), bins.step * (bins.first + high + 1)
    step = (end - start) / (bins.count - 5)
    return Places(int(np.floor(start / step)) - 1, step, bins.count)


@dataclass(frozen=True)
class Middle:
    """Where bins are counted from, the linear predictor of the market's mean, and in what unit."""

    of_market: float
    unit: float

    @classmethod
    def of(cls, law: Family, scale: Scale) -> Middle:
        spread = float(np.sqrt(scale.square / scale.weight))
        return cls(law.eta(scale.rate), spread if law.link == "identity" else 1.0)
