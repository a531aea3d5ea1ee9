"""How large sums may be, from public numbers alone, so that their fixed-point grid is no finer than it
must be.

A party's float64 numbers end at a digit that depends on their size. On a grid that is finer than the
last digits of the larger parties, those of the smallest party would stand alone in the total. So a
grid has :data:`~lab.sums.DIGITS` binary digits below the largest sum that a party may have, and that
bound follows from what all parties know: first in which power of 2**8 the parties' sums lie, then
from means over all rows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lab.models.design import Number
from lab.models.glm import Response, Task
from lab.records import Strict
from lab.statistics import Arrays, Holding
from lab.sums import FLAG, Floats, Sums

#: Sizes that sums are told apart by.
CLASSES = 2.0 ** np.arange(-96, 105, 8)
STEP = 2.0**8


def magnitudes(frame: pd.DataFrame, response: Response, features: tuple[Number, ...]) -> Sums:
    """1 for each size that this party's sums reach: ``features`` (features, sizes) of the magnitudes
    of each number, ``task`` (4, sizes) of weights, targets, exposures and squared targets."""
    r = response
    of_task = [r.weight, r.weight * np.abs(r.y), r.weight * r.exposure, r.weight * r.y**2]
    arrays = {"task": _sizes(of_task)}
    if features:
        arrays["features"] = of_features(frame, features)
    return Sums(arrays, dict.fromkeys(arrays, FLAG), len(frame))


def of_features(frame: pd.DataFrame, features: tuple[Number, ...]) -> Floats:
    """(features, sizes) 1 for each size that the magnitudes of a number add up to."""
    return _sizes([np.abs(term.feature.numbers(frame, term.levels)) for term in features])


def _sizes(quantities: list[Floats]) -> Floats:
    return np.array([np.nansum(values) >= CLASSES for values in quantities], dtype=np.float64)


def bounds(parties: Floats) -> Floats:
    """(quantities,) what no party's sum reaches. parties: (quantities, sizes) how many reach each."""
    highest = np.where(parties.any(axis=1), (parties > 0).sum(axis=1) - 1, 0)
    return np.asarray(STEP * CLASSES[highest], dtype=np.float64)


class OfMagnitudes(Strict):
    """Arguments of :func:`magnitudes`."""

    task: Task
    features: tuple[Number, ...]


def of_party(holding: Holding, a: OfMagnitudes, arrays: Arrays) -> Sums:
    """:func:`magnitudes` of a party's training rows."""
    rows = holding.rows(a.task, "train")
    return magnitudes(rows, Response(rows, a.task), a.features)
