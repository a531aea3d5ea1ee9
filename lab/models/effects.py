"""Why a model scores a row as it does, and which features it goes by: both from the model alone.

A linear predictor is that of an average row and what each feature adds to it, its Shapley value: what it
changes where it becomes known, averaged over all orders in which features may (Shapley, 1953). GLM:
coefficient times (column - mean). Trees: Lundberg et al. (2020), where a row goes on by shares at a cut
whose feature is not known yet. A row counts in means and shares by the second derivative of its loss, as
in the fit: both follow from totals that the solver has. All add up to the linear predictor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lab.errors import ModelError
from lab.models.design import Encoding
from lab.sums import Floats

#: Reasons that are given for a row.
REASONS = 3
#: What to do about a model's file from before the reasons were Shapley values.
AGAIN = "run its experiment again, or leave out --reasons"
#: Means and shares are told to this fraction: how many persons are behind one does not follow to a person.
FRACTION = 2.0**-10
#: An effect below this share of a row's largest is none: it is rounding.
NOTHING = 1e-12


@dataclass(frozen=True)
class Effects:
    """What each feature adds to the linear predictor of each row.

    names: of the features; values: (rows, features). ``base + values.sum(axis=1)`` is the linear
    predictor of one unit of exposure.
    """

    base: float
    names: tuple[str, ...]
    values: Floats

    @classmethod
    def of(cls, base: float, columns: Sequence[str], values: Floats) -> Effects:
        """values: (rows, columns); those of one column are added."""
        names = tuple(dict.fromkeys(columns))
        totals = np.zeros((len(values), len(names)))
        for j, name in enumerate(columns):
            totals[:, names.index(name)] += values[:, j]
        return cls(base, names, totals)

    @classmethod
    def linear(
        cls,
        beta: Sequence[float],
        means: Sequence[float],
        columns: Sequence[str],
        blocks: Iterable[Floats],
    ) -> Effects:
        """Of an intercept and a slope for each column, whose means are over the rows of the fit.

        blocks: (rows, columns), one after the other, each gone when the next is read. Raises
        :class:`ModelError` for a model without means.
        """
        if len(means) != len(columns):
            raise ModelError(f"reasons: this model's file has no means of its columns; {AGAIN}")
        slopes, mean = np.array(beta[1:]), np.array(means)
        values = [np.zeros((0, len(columns))), *((x - mean) * slopes for x in blocks)]
        return cls.of(float(beta[0] + slopes @ mean), columns, np.vstack(values))

    def plus(self, other: Effects) -> Effects:
        """The effects of a product of two means on the log link."""
        values = np.hstack([self.values, other.values])
        return Effects.of(self.base + other.base, (*self.names, *other.names), values)

    def reasons(self, most: int = REASONS) -> pd.DataFrame:
        """The features that move each row most, the first most of all: ``reason_1`` names it and
        ``effect_1`` is what it adds; both are missing where nothing more moves the row.

        >>> effects = Effects(-2.0, ("age", "region"), np.array([[0.1, -0.4], [0.0, 0.3]]))
        >>> reasons = effects.reasons(most=2)
        >>> reasons["reason_1"].tolist(), reasons["effect_1"].tolist()
        (['region', 'region'], [-0.4, 0.3])
        >>> reasons["reason_2"].isna().tolist()
        [False, True]
        """
        absent = max(0, most - len(self.names))
        values = np.pad(self.values, ((0, 0), (0, absent)))
        names = pd.Index([*self.names, *[""] * absent], dtype="str")
        size = np.abs(values)
        order = np.argsort(-size, axis=1, kind="stable")[:, :most]
        least = NOTHING * size.max(axis=1, initial=0.0)
        table = {}
        for k in range(most):
            at = order[:, k]
            effect = pd.Series(values[np.arange(len(at)), at])
            some = effect.abs() > least
            table[f"reason_{k + 1}"] = names.take(at).to_series(index=effect.index).where(some)
            table[f"effect_{k + 1}"] = effect.where(some)
        return pd.DataFrame(table)


def told_share(share: float) -> float:
    """A share as the model's file has it: neither nobody nor everybody goes one way at a cut.

    >>> told_share(0.3), told_share(1.0)
    (0.2998046875, 0.9990234375)
    """
    return min(max(told_mean(share), FRACTION), 1 - FRACTION)


def told_mean(mean: float) -> float:
    """A mean as the model's file has it."""
    return round(mean / FRACTION) * FRACTION


def reason_columns(most: int = REASONS) -> list[str]:
    """Names of the columns of :meth:`Effects.reasons`, in order."""
    return [f"{kind}_{k}" for k in range(1, most + 1) for kind in ("reason", "effect")]


#: Exposure by column and level, of the columns where it is told.
Exposures = Mapping[str, Mapping[str, float]]


def spread(effects: Floats, exposure: Floats) -> float:
    """The standard deviation of a category's effects. effects, exposure: (levels,).

    >>> spread(np.array([0.0, 1.0]), np.array([3.0, 1.0]))
    0.4330127018922193
    """
    mean = np.average(effects, weights=exposure)
    return float(np.sqrt(np.average((effects - mean) ** 2, weights=exposure)))


def spreads(encoding: Encoding, beta: Floats, exposures: Exposures) -> dict[str, float]:
    """Standard deviation of what each column, or product of two, adds to a GLM's linear predictor; of a
    product as it is where the two are independent."""
    size = dict.fromkeys(encoding.columns, 0.0)
    share = [1.0, *(1.0 for _ in encoding.numbers)]  # of rows at a level; of a number's square
    for term in encoding.categories:
        column, at = term.feature.column, len(share)
        told = exposures.get(column, {})
        weight = np.array([told.get(level, 0.0) for level in term.levels])
        weight = weight if weight.any() else np.ones(len(weight))
        own = np.array([0.0, *beta[at : at + len(weight) - 1]])
        size[column] = float(np.hypot(size[column], spread(own, weight)))
        share += (weight[1:] / weight.sum()).tolist()
    for number, slope in zip(encoding.numbers, beta[1:], strict=False):
        column = number.feature.column
        size[column] = float(np.hypot(size[column], slope))
    return size | _of_products(encoding, beta, np.array(share))


def _of_products(encoding: Encoding, beta: Floats, share: Floats) -> dict[str, float]:
    """share: of each column of a term, the mean of its square."""
    squares, means, end = dict[str, float](), dict[str, float](), len(share)
    for at, (i, j) in enumerate(encoding.crosses, start=end):
        name, both = encoding.columns[at - 1], share[i] * share[j]
        squares[name] = squares.get(name, 0.0) + both * beta[at] ** 2
        if i > len(encoding.numbers):  # two levels; a number's mean is 0
            means[name] = means.get(name, 0.0) + both * beta[at]
    return {k: float(np.sqrt(max(v - means.get(k, 0.0) ** 2, 0.0))) for k, v in squares.items()}
