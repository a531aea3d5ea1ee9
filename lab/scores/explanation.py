"""What a model makes of one feature, from sums over rows whose column is set to a value, or shuffled.

What a model makes of one where it lies stands in `lab.scores.local_effects`, of two together in
`lab.scores.interaction`. Partial dependence: Friedman, "Greedy function approximation: a gradient boosting machine" (2001), section
8.2. Importance by shuffling: Breiman, "Random forests" (2001), section 10; here by the deviance explained
that is lost where a column is shuffled among the test rows of each party. Neither says what would happen
if the column were changed: columns that go together are taken apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lab.models.design import Feature, Number, codes_of, rounded
from lab.models.files import terms_of
from lab.records import Strict
from lab.scores import accuracy
from lab.scores.local_effects import LocalEffects, Value
from lab.sums import SCORE, Floats, Sums

#: Features whose pairs are looked at, at most, where they are not listed.
MOST_PAIRED = 8


class Explain(Strict):
    """``[explain]``: which features are looked at, at how many values of a number, and how."""

    features: tuple[str, ...] | None = Field(
        None, description="Columns to look at; default: all features of the model."
    )
    points: int = Field(12, ge=2, le=50, description="Values of a number that are looked at.")
    local: bool = Field(
        False,
        description="Accumulated local effects besides, of numbers and ordinal categories.",
    )
    pairs: int | tuple[tuple[str, ...], ...] = Field(
        0,
        description="Interactions: all pairs of so many features, those that matter most, or these pairs.",
    )

    @model_validator(mode="after")
    def _two_in_a_pair(self) -> Self:
        if isinstance(self.pairs, int):
            if self.pairs and not 2 <= self.pairs <= MOST_PAIRED:
                raise ValueError(
                    f"pairs: takes 0, 2 to {MOST_PAIRED} features, or a list of pairs, got {self.pairs}"
                )
        elif wrong := [pair for pair in self.pairs if len(pair) != 2 or len(set(pair)) != 2]:
            raise ValueError(f"pairs: a pair is two features, got {', '.join(wrong[0]) or 'none'}")
        return self

    @property
    def listed_pairs(self) -> tuple[tuple[str, str], ...]:
        return () if isinstance(self.pairs, int) else tuple((one, two) for one, two in self.pairs)


@dataclass(frozen=True)
class Explained:
    """Opened totals of one feature. values: that the column was set to; expected: (values,) the expected
    rate there; shuffled: of :func:`~lab.scores.accuracy.fit_sums`, with the column shuffled; local:
    where they were asked for, and the column has an order."""

    values: tuple[Value, ...]
    expected: tuple[float, ...]
    shuffled: Sums
    local: LocalEffects | None = None

    def importance(self, fit: Sums) -> tuple[float, float, float]:
        """(deviance explained that shuffling loses, low, high). fit: of the same rows and resamples."""
        return accuracy.interval(fit, self.shuffled)

    def curves(self, fit: Sums) -> dict[str, Any]:
        """What is drawn; accumulated local effects are around the mean predicted rate."""
        curves: dict[str, Any] = {
            "values": list(self.values),
            "rates": list(self.expected),
            "importance": list(self.importance(fit)),
        }
        if self.local is not None:
            mean = float(fit["expected"][0] / fit["size"][0])
            rates = [mean + effect for effect in self.local.accumulated]
            curves["local"] = {"values": list(self.local.edges), "rates": rates}
        return curves


def values_of(model: Any, column: str, points: int) -> tuple[Value, ...]:
    """Values of a column that a model tells apart, rising; from the model alone, which is public.

    Empty for a column that it does not read, such as one of a profile.
    """
    numbers: set[float] = set()
    read = [t for part in _parts(model) for t in terms_of(part) if t.feature.column == column]
    for term in read:
        edges = term.feature.cut or getattr(term, "edges", None)
        if term.feature.ordinal or (edges is None and not isinstance(term, Number)):
            return tuple(term.levels)
        if edges is not None:
            numbers |= set(_between(np.array(edges or (0.0,))))
        elif term.bend is None:
            numbers |= set(_around(term.feature, term.mean, term.scale, points))
        else:
            ends = term.bend.knots[0], term.bend.knots[-1]
            numbers |= set(_in_units(term.feature, np.linspace(*ends, points)))
    return tuple(_few(np.array(sorted(numbers)), points))


def is_ordered(model: Any, column: str) -> bool:
    """Whether the values of :func:`values_of` have an order: those of numbers and ordinal categories."""
    read = [t for part in _parts(model) for t in terms_of(part) if t.feature.column == column]
    return all(
        term.feature.ordinal
        or isinstance(term, Number)
        or (term.feature.cut or getattr(term, "edges", None)) is not None
        for term in read
    )


def columns_of(model: Any) -> tuple[str, ...]:
    """The columns that a model reads of a row, but those that it looks up in profiles."""
    terms = [term for part in _parts(model) for term in terms_of(part)]
    looked_up = {c for profile in getattr(model, "profiles", ()) for c in profile.columns}
    return tuple(
        dict.fromkeys(t.feature.column for t in terms if t.feature.column not in looked_up)
    )


def _parts(model: Any) -> list[Any]:
    """The models behind a product, or one that looks features up."""
    inner = getattr(model, "model", model)
    return [inner.frequency, inner.severity] if hasattr(inner, "severity") else [inner]


def _between(edges: Floats) -> Floats:
    """A value in each interval that is closed on the right."""
    return np.append(edges, edges[-1] + max(1.0, float(np.ptp(edges)) / len(edges)))


def _around(feature: Feature, mean: float, scale: float, points: int) -> Floats:
    """Within two standard deviations; of 0 and 1, which a mean and a deviation give away, both."""
    if not feature.log and abs(scale**2 - mean * (1 - mean)) < 1e-9:
        return np.array([0.0, 1.0])
    return _in_units(feature, np.linspace(mean - 2 * scale, mean + 2 * scale, points))


def _in_units(feature: Feature, values: Floats) -> Floats:
    """In the units of the column, to three digits of their range."""
    whole = np.exp(values) if feature.log else values
    return rounded(whole, float(np.ptp(whole)))


def _few(values: Floats, points: int) -> list[float]:
    if len(values) > points:
        values = values[np.unique(np.linspace(0, len(values) - 1, points).round().astype(int))]
    return [float(v) for v in values]


def with_value(frame: pd.DataFrame, column: str, value: Value) -> pd.DataFrame:
    """Rows whose column has one value."""
    return with_values(frame, column, [value] * len(frame))


def with_values(frame: pd.DataFrame, column: str, values: Sequence[Value]) -> pd.DataFrame:
    """Rows whose column has these values, one for each."""
    named = any(isinstance(value, str) for value in values)
    new = pd.Series(values, index=frame.index, dtype="str" if named else np.float64)
    return frame.assign(**{column: new.astype("category") if named else new})


def places_of(frame: pd.DataFrame, column: str, values: tuple[Value, ...]) -> NDArray[np.int64]:
    """(rows,) which of the values stands for each row: of numbers the least that is not below its own,
    or the last; -1 where the row has none, or a level that is not among them."""
    if any(isinstance(value, str) for value in values):
        codes = codes_of(Feature(column=column).texts(frame), tuple(map(str, values)))
        return codes.astype(np.int64)
    own = frame[column].to_numpy(dtype=np.float64)
    place = np.searchsorted(np.array(values, dtype=np.float64), own, side="left")
    return np.where(np.isnan(own), -1, np.minimum(place, len(values) - 1)).astype(np.int64)


def partial_sums(
    model: Any, frame: pd.DataFrame, size: Floats, column: str, values: tuple[Value, ...]
) -> Sums:
    """``expected`` (values,), the predicted total over the rows with the column set to each value, and
    ``size`` (1,). size: (rows,) exposure times weight."""
    expected = [size @ model.predict(with_value(frame, column, value)) for value in values]
    arrays = {"expected": np.array(expected, dtype=np.float64), "size": np.array([size.sum()])}
    return Sums(arrays, dict.fromkeys(arrays, SCORE), len(frame))


def shuffled(frame: pd.DataFrame, column: str, seed: list[int]) -> pd.DataFrame:
    """Rows with one column in another order."""
    order = np.random.default_rng(seed).permutation(len(frame))
    values = frame[column].take(order).set_axis(frame.index)
    return frame.assign(**{column: values})
