"""The one record every layer speaks: named sums over a party's rows, each with a public bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.errors import ModelError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Limit:
    """The fixed-point format of an array, fixed by the question and never by the data.

    ``bound``: the largest magnitude one party may contribute. ``resolution``: the spacing
    of the grid its values are rounded to under encryption, a power of two.
    """

    bound: float
    resolution: float


#: Binary digits from a bound down to its grid: as many as float64 has, so that no party's numbers
#: stand apart in the last digits of a total (`lab.models.agreement`).
DIGITS = 52


def limit_of(most: float) -> Limit:
    """The format of sums of at most this magnitude at a party."""
    bound = 2.0 ** float(np.ceil(np.log2(most)))
    return Limit(bound, bound * 2.0**-DIGITS)


#: Formats of counts, and of amounts that nobody sees but whoever opens them.
COUNT = Limit(bound=2.0**40, resolution=1.0)
SCORE = Limit(bound=2.0**48, resolution=2.0**-30)
MOMENT = Limit(bound=2.0**100, resolution=2.0**-60)
#: Formats of an answer's cells: heads and rows, yes or no, amounts, products of two amounts.
HEADS = Limit(bound=2.0**31, resolution=1.0)
FLAG = Limit(bound=1.0, resolution=1.0)
AMOUNT = Limit(bound=2.0**60, resolution=2.0**-44)
SENSITIVITY = Limit(bound=2.0**60, resolution=2.0**-20)


@dataclass(frozen=True)
class Sums:
    """Named float64 arrays, each a sum over ``rows`` rows, each with its :class:`Limit`.

    Raises :class:`ModelError` when a value is not finite: a sum that overflowed or met a
    missing value is not a sum.
    """

    arrays: Mapping[str, Floats]
    limits: Mapping[str, Limit]
    rows: int

    def __post_init__(self) -> None:
        if set(self.arrays) != set(self.limits):
            raise ValueError(f"sums {sorted(self.arrays)} but limits {sorted(self.limits)}")
        for name, array in self.arrays.items():
            if not np.isfinite(array).all():
                raise ModelError(
                    f"the sum '{name}' is not a finite number; check the rows for extreme values"
                )

    def __getitem__(self, name: str) -> Floats:
        return self.arrays[name]

    def total(self, name: str) -> float:
        """The single value of an array of length one."""
        return float(self.arrays[name].reshape(()))


def combine(parts: list[Sums]) -> Sums:
    """Add contributions array by array, in the order given; all must have the same form.

    >>> part = Sums({"claims": np.array([1.0, 2.0])}, {"claims": COUNT}, rows=3)
    >>> total = combine([part, part])
    >>> total["claims"].tolist(), total.rows
    ([2.0, 4.0], 6)
    """
    first = parts[0]
    for part in parts[1:]:
        if part.limits != first.limits or any(
            part[name].shape != first[name].shape for name in first.arrays
        ):
            raise ValueError(
                "contributions must have the same arrays, shapes and limits to be added"
            )
    arrays = {name: sum_in_order([part[name] for part in parts]) for name in first.arrays}
    return Sums(arrays, first.limits, sum(part.rows for part in parts))


def sum_in_order(arrays: list[Floats]) -> Floats:
    """Left-to-right sum, so that the same order gives the same bits."""
    total = arrays[0].copy()
    for array in arrays[1:]:
        total += array
    return total
