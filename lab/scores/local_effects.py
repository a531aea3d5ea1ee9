"""What a model makes of one feature where rows have it: accumulated local effects, from sums by interval.

Apley and Zhu, "Visualizing the effects of predictor variables in black box supervised learning models"
(2020), section 3. A row counts in the interval that it lies in, so that columns which go together are
not taken apart. Intervals of few persons are joined before the model is asked about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.privacy.joining import PARTIES, PERSONS, behind
from lab.sums import HEADS, SCORE, Floats, Sums

#: A value that a column is set to.
Value = float | str


@dataclass(frozen=True)
class LocalEffects:
    """Opened totals by interval of one feature. edges: (intervals + 1,) rising, an interval is closed on
    the right, and the outer two hold what is beyond; sums: of :func:`effect_sums`."""

    edges: tuple[Value, ...]
    sums: Sums

    @property
    def accumulated(self) -> tuple[float, ...]:
        """(edges,) by how much the expected rate at an edge is off its mean over the rows.

        >>> sums = {"effect": np.array([4.0, 3.0]), "size": np.array([2.0, 1.0])}
        >>> found = LocalEffects((0.0, 1.0, 2.0), Sums(sums, dict.fromkeys(sums, SCORE), 3))
        >>> [round(rate, 3) for rate in found.accumulated]
        [-1.833, 0.167, 3.167]
        """
        size = self.sums["size"]
        steps = np.divide(self.sums["effect"], size, out=np.zeros_like(size), where=size > 0)
        curve = np.concatenate([[0.0], np.cumsum(steps)])
        middle = (curve[1:] + curve[:-1]) / 2
        return tuple((curve - middle @ size / size.sum()).tolist())


def intervals_of(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """(rows,) the interval of each row, from its place among the edges; -1 where it has none."""
    return np.where(places < 0, -1, np.maximum(places - 1, 0))


def persons_by_interval(interval: NDArray[np.int64], unit: Floats, count: int) -> Sums:
    """Persons and parties behind each interval. unit: (rows,) who each row belongs to."""
    there = interval >= 0
    arrays = behind(interval[there], unit[there], count)
    return Sums(arrays, dict.fromkeys(arrays, HEADS), len(interval))


def effect_sums(
    model: Any,
    low: pd.DataFrame,
    high: pd.DataFrame,
    size: Floats,
    persons: Sums,
    interval: NDArray[np.int64],
) -> Sums:
    """``effect``, by how much the predicted total changes across each interval, ``size``, and persons.

    low, high: the rows that have a place, at the lower and the upper edge of their interval; size: (rows,)
    exposure times weight; interval: (rows,) of the same rows; persons: of :func:`persons_by_interval`.
    """
    count = len(persons[PERSONS])
    change = size * (model.predict(high) - model.predict(low))
    arrays = {
        "effect": np.bincount(interval, change, count).astype(np.float64),
        "size": np.bincount(interval, size, count).astype(np.float64),
        PERSONS: persons[PERSONS],
        PARTIES: persons[PARTIES],
    }
    limits = {"effect": SCORE, "size": SCORE, PERSONS: HEADS, PARTIES: HEADS}
    return Sums(arrays, limits, persons.rows)
