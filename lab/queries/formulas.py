"""Arithmetic and comparisons on totals, which an analyst makes of what is released."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lab.queries.actuarial import rate
from lab.sums import Floats


@dataclass(frozen=True)
class Formula:
    """Arithmetic on totals: a total's place, a number, or an operation on formulas.

    A comparison is 1 or 0, and NaN where it is unknown, as it is in SQL.
    """

    operation: str
    parts: tuple[Formula | float, ...]

    def value(self, totals: Sequence[Floats]) -> Floats:
        """Its value in each cell, NaN where it is undefined.

        totals: the question's, in its order, float64 of one shape each; returns float64 of that
        shape, or of none for a number.
        """
        if self.operation == "total":
            (place,) = self.parts
            assert not isinstance(place, Formula)
            return totals[int(place)]
        parts = [p.value(totals) if isinstance(p, Formula) else np.float64(p) for p in self.parts]
        with np.errstate(all="ignore"):
            value = np.asarray(_ARITHMETIC[self.operation](*parts), dtype=np.float64)
        return np.where(np.isfinite(value), value, np.nan)

    def __add__(self, other: Formula | float) -> Formula:
        return Formula("+", (self, other))

    def __sub__(self, other: Formula | float) -> Formula:
        return Formula("-", (self, other))

    def __mul__(self, other: Formula | float) -> Formula:
        return Formula("*", (self, other))

    def __truediv__(self, other: Formula | float) -> Formula:
        return Formula("/", (self, other))


def _compared(holds: Callable[..., Any]) -> Callable[..., Any]:
    """1 where a comparison holds, 0 where it does not, NaN where a total is hidden."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.nan, holds(a, b))


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "number": lambda value: value,
    "round": lambda value, scale: np.trunc(value * scale + np.copysign(0.5, value)) / scale,
    "root": lambda value: np.sqrt(np.maximum(value, 0)),
    "at least 0": lambda value: np.maximum(value, 0),
    "rate low": lambda events, exposure, per: rate(events, exposure, float(per))["low"],
    "rate high": lambda events, exposure, per: rate(events, exposure, float(per))["high"],
    "=": _compared(np.equal),
    "<>": _compared(np.not_equal),
    "<": _compared(np.less),
    "<=": _compared(np.less_equal),
    ">": _compared(np.greater),
    ">=": _compared(np.greater_equal),
    "and": lambda a, b: np.where((a == 0) | (b == 0), 0.0, a * b),
    "or": lambda a, b: np.where((a == 1) | (b == 1), 1.0, a + b),
    "not": lambda a: 1.0 - a,
}
