"""A GLM as actuaries read it: by what factor each level and each value of a feature multiplies the mean.

A relativity is exp(c'b) for a contrast c of two rows that differ in one feature, the second of which is
its base, and its interval exp(c'b ± 1.96 s) with s² = c'Vc (Werner & Modlin, Basic Ratemaking (2016),
chapter 10). On the logit link the same numbers are ratios of odds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lab.models.design import Bend, Encoding, Number, rounded
from lab.sums import Floats

#: Links on which what features add to the linear predictor multiplies.
MULTIPLY = ("log", "logit")
#: Where a straight line is read, in standard deviations from the mean.
PLACES = (-2.0, -1.0, 0.0, 1.0, 2.0)


@dataclass(frozen=True)
class Contrast:
    """One line of the table. level: of the feature, or its value; place: (p,) by how much the standardised
    columns of the line's row differ from those of the base; own: it takes more than one coefficient, so that
    its error is told beside theirs; base: nothing differs."""

    feature: str
    level: str
    place: Floats
    own: bool = False

    @property
    def base(self) -> bool:
        return not self.place.any()


def contrasts(encoding: Encoding) -> tuple[Contrast, ...]:
    """A line for each level of a category, for some values of a number, in the order of the encoding.

    A line of an interaction is what both do beyond their own factors: two levels together, or a number that
    is above its mean by its standard deviation. One with a curve has no line.
    """
    return (*_of_numbers(encoding), *_of_levels(encoding), *_of_crosses(encoding))


def table(lines: tuple[Contrast, ...], beta: Floats, errors: Floats, width: float) -> pd.DataFrame:
    """feature, level, relativity, low, high; the base of a feature is 1 and has no interval.

    errors: (lines,) standard errors of the contrasts; width: of the interval, in them.
    """
    places = np.array([line.place for line in lines]).reshape(len(lines), len(beta))
    estimate, half = places @ beta, np.where([line.base for line in lines], np.nan, width * errors)
    columns = {"relativity": estimate, "low": estimate - half, "high": estimate + half}
    return pd.DataFrame(
        {"feature": [line.feature for line in lines], "level": [line.level for line in lines]}
        | {name: np.exp(values) for name, values in columns.items()}
    )


def _of_levels(encoding: Encoding) -> Iterator[Contrast]:
    at = len(encoding.numbers)
    for term in encoding.categories:
        joined = [k for k in range(len(term.levels)) if k not in term.order]
        for k in (*term.order, *joined):
            place = np.zeros(encoding.width)
            if k:
                place[at + k] = 1.0
            yield Contrast(term.feature.column, term.levels[k], place)
        at += len(term.levels) - 1


def _of_numbers(encoding: Encoding) -> Iterator[Contrast]:
    """Lines of each number; the columns of a curve stand one after the other."""
    whole = enumerate(encoding.numbers, start=1)
    for feature, columns in itertools.groupby(whole, key=lambda one: one[1].feature):
        own = list(columns)
        values, base = _values(own[0][1])
        for value in values:
            place = np.zeros(encoding.width)
            for at, term in own:
                there, here = term.standardised(_column(term, [value, base]))
                place[at] = there - here
            yield Contrast(feature.name, _shown(value), place, own=len(own) > 1)


def _of_crosses(encoding: Encoding) -> Iterator[Contrast]:
    """A line for each product."""
    marks: list[tuple[str, float] | None] = [
        None
    ]  # of each column, and how much of it the line has
    for number in encoding.numbers:
        step = float(rounded(np.array([number.scale]), number.scale)[0])
        marks.append(None if number.bend else (f"{step:+.12g}", step / number.scale))
    marks += [(level, 1.0) for term in encoding.categories for level in term.levels[1:]]
    for at, (i, j) in enumerate(encoding.crosses, start=len(marks)):
        one, other = marks[i], marks[j]
        if one and other:
            place = np.zeros(encoding.width)
            place[at] = one[1] * other[1]
            yield Contrast(encoding.columns[at - 1], f"{one[0]}:{other[0]}", place)


def _column(term: Number, values: list[float | str]) -> pd.DataFrame:
    return pd.DataFrame({term.feature.column: values})


def _values(term: Number) -> tuple[list[float | str], float | str]:
    """The values at which a number is read, its base among them, in the units of its column."""
    feature = term.feature
    if feature.ordinal:
        return list(term.levels), term.levels[0] if feature.base is None else feature.base
    ends = term.mean + term.scale * np.array(
        PLACES
    )  # of the first column, which is the value itself
    if term.bend is not None:
        own, middle = _of_curve(term.bend, ends), float(term.bend.knots[len(term.bend.knots) // 2])
    elif not feature.log and abs(term.scale**2 - term.mean * (1 - term.mean)) < 1e-9:
        own, middle = np.array([0.0, 1.0]), 0.0  # which a mean and a deviation give away
    else:
        own, middle = ends, term.mean
    if feature.log:  # two digits each: places on a logarithm are not of one width
        own = np.array([float(f"{value:.1e}") for value in np.exp(own)])
        middle = float(f"{np.exp(middle):.1e}")
    else:
        own, (middle,) = (rounded(x, float(np.ptp(own))) for x in (own, np.array([middle])))
    base = float(middle) if feature.base is None else float(feature.base)
    return [float(value) for value in np.unique([*own, base])], base


def _of_curve(bend: Bend, ends: Floats) -> Floats:
    """Its knots, and of straight pieces the ends of what most rows have."""
    knots = np.array(bend.knots)
    return knots if bend.kind == "natural" else np.array([ends[0], *knots, ends[-1]])


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.12g}"
