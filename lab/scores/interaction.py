"""Whether a model makes more of two features together than of each alone, from sums.

Friedman and Popescu, "Predictive learning via rule ensembles" (2008), section 8.1: the share of the
variance of two features' joint partial dependence that is not the sum of their own,
H\² = sum (F_jk - F_j - F_k)\² / sum F_jk\², each centred over the rows. Partial dependence stands on a
grid of values, and a row counts at its place on it. The grid is opened first; how far its functions are
apart is then one sum over each party's rows, so that no cell of two features is seen by anybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.errors import PeerError
from lab.scores import accuracy
from lab.scores.accuracy import Scored
from lab.scores.explanation import with_value
from lab.scores.local_effects import Value
from lab.sums import SCORE, Floats, Sums

#: Values of a number in a pair, at most.
VALUES_IN_A_PAIR = 6
#: Numbers of a grid with its resamples, at most: of a larger one no resamples are taken.
MOST_NUMBERS = 2**17
#: Columns of predictions that are held at once.
AT_ONCE = 64
Pair = tuple[str, str]
Grid = tuple[tuple[Value, ...], tuple[Value, ...]]


@dataclass(frozen=True)
class Interaction:
    """H\² of two features with its interval; not numbers where the model makes nothing of either, or
    nothing was resampled. told: numbers of the grid that parties were told."""

    columns: Pair
    told: int
    share: float
    low: float
    high: float

    @property
    def drawn(self) -> dict[str, Any]:
        return {"features": list(self.columns), "interaction": [self.share, self.low, self.high]}


def replicates_of(grid: Grid, replicates: int) -> int:
    """Resamples that are taken of a grid."""
    cells = len(grid[0]) * len(grid[1])
    return replicates if cells * (replicates + 1) <= MOST_NUMBERS else 0


def grid_sums(
    model: Any,
    frame: pd.DataFrame,
    rows: Scored,
    columns: Pair,
    grid: Grid,
    *,
    replicates: int,
    seed: list[int],
) -> Sums:
    """``expected`` (replicates + 1, cells), the predicted total with both columns set to each pair of
    values, then with one column set to each of its own; ``size`` (replicates + 1,)."""

    def predicted() -> Iterator[Floats]:
        yield rows.size
        for value in grid[0]:
            first = with_value(frame, columns[0], value)
            for other in grid[1]:
                yield rows.size * model.predict(with_value(first, columns[1], other))
        for column, values in zip(columns, grid, strict=True):
            for value in values:
                yield rows.size * model.predict(with_value(frame, column, value))

    totals = _totals(predicted(), rows, replicates, seed)
    arrays = {"size": totals[:, 0].copy(), "expected": totals[:, 1:].copy()}
    return Sums(arrays, dict.fromkeys(arrays, SCORE), len(frame))


def excess_sums(
    rows: Scored,
    places: tuple[NDArray[np.int64], NDArray[np.int64]],
    joint: Floats,
    excess: Floats,
    *,
    replicates: int,
    seed: list[int],
) -> Sums:
    """Each (replicates + 1,): ``size``, and ``joint`` and ``excess`` at the rows' places, with their squares.

    joint, excess: (replicates + 1, values, values) of each resample; places: (rows,) on either side of the
    grid, -1 where a row has none. Raises :class:`PeerError` for grids of another form.
    """
    if joint.shape != excess.shape or joint.ndim != 3 or len(joint) != replicates + 1:
        raise PeerError("request: the grids must have one layer for each resample, and one more")
    cells = joint.shape[1] * joint.shape[2]
    cell = np.where((places[0] < 0) | (places[1] < 0), -1, places[0] * joint.shape[2] + places[1])
    here = (np.where(cell == at, rows.size, 0.0) for at in range(cells))
    size = _totals(here, rows, replicates, seed)
    arrays = {"size": size.sum(axis=1)}
    for name, values in (("joint", joint), ("excess", excess)):
        flat = values.reshape(len(values), cells)
        arrays[name] = (size * flat).sum(axis=1)
        arrays[f"{name}_square"] = (size * flat**2).sum(axis=1)
    return Sums(arrays, dict.fromkeys(arrays, SCORE), len(cell))


def _totals(columns: Iterator[Floats], rows: Scored, replicates: int, seed: list[int]) -> Floats:
    """(replicates + 1, columns) sums of the rows, then of the same resamples for each column."""
    parts = []
    while some := list(islice(columns, AT_ONCE)):
        parts.append(accuracy.resampled(np.column_stack(some), rows.unit, replicates, seed))
    return np.hstack(parts)


def functions_of(grid: Grid, sums: Sums) -> tuple[Floats, Floats]:
    """(joint, excess), each (replicates + 1, values, values): the joint partial dependence, and how far it
    is above the sum of both single ones; in units of the joint one's spread, around 0.

    sums: the total of :func:`grid_sums`. Of a resample without rows both are 0.
    """
    size = sums["size"][:, None]
    mean = np.divide(sums["expected"], size, out=np.zeros_like(sums["expected"]), where=size > 0)
    shape = (len(grid[0]), len(grid[1]))
    cells = shape[0] * shape[1]
    joint = mean[:, :cells].reshape(-1, *shape)
    one, other = mean[:, cells : cells + shape[0]], mean[:, cells + shape[0] :]
    excess = joint - one[:, :, None] - other[:, None, :]
    centred = [each - each.mean(axis=(1, 2), keepdims=True) for each in (joint, excess)]
    unit = float(centred[0][0].std()) or 1.0
    return centred[0] / unit, centred[1] / unit


def share_of(sums: Sums, level: float = 0.95) -> tuple[float, float, float]:
    """(H\², low, high) by bootstrap percentiles. sums: the total of :func:`excess_sums`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        joint, excess = (
            sums[f"{name}_square"] - sums[name] ** 2 / sums["size"] for name in ("joint", "excess")
        )
        flat = joint <= FLAT * sums["size"]
        share = np.where(flat, np.nan, np.maximum(excess, 0.0) / joint)
    samples = share[1:][np.isfinite(share[1:])]
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail]) if len(samples) else (np.nan, np.nan)
    return float(share[0]), float(low), float(high)


#: A joint function of less variance, in units of its own spread, is flat where the rows are.
FLAT = 1e-9
