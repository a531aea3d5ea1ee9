"""What a party adds up so that all agree on a design: how large sums may be, then moments, levels, counts.

Sizes come first and from public numbers alone, so that the grid of sums is no finer than it must be. A party's float64 numbers end at a digit that depends on their size. On a grid that is finer than the
last digits of the larger parties, those of the smallest party would stand alone in the total. So a
grid has :data:`~lab.sums.DIGITS` binary digits below the largest sum that a party may have, and that
bound follows from what all parties know: first in which power of 2**8 the parties' sums lie, then
from means over all rows.
"""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.errors import ConfigurationError, ContractError
from lab.models.design import Feature, Levels, Number
from lab.models.glm import Response, Task
from lab.privacy.joining import PARTIES, PERSONS, RARE, behind, in_order, persons_by
from lab.records import Strict
from lab.statistics import Arrays, Holding
from lab.sums import COUNT, FLAG, Floats, Sums, limit_of


class LevelPairs(Strict):
    """Levels of two categories together, as they are counted."""

    kind: Literal["pairs"] = "pairs"
    left: Levels
    right: Levels

    @property
    def levels(self) -> tuple[str, ...]:
        """Each level of the left with all of the right."""
        return tuple(
            ":".join(both) for both in itertools.product(self.left.levels, self.right.levels)
        )

    def codes(self, frame: pd.DataFrame) -> NDArray[np.int32]:
        """The place of each row's levels, -1 where one of them is not among them."""
        left, right = self.left.codes(frame), self.right.codes(frame)
        return np.where((left < 0) | (right < 0), -1, left * len(self.right.levels) + right)


#: What is counted by level.
Counted = Levels | LevelPairs
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
    return _sizes([np.abs(term.values(frame)) for term in features])


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


def moments(frame: pd.DataFrame, features: tuple[Number, ...], most: float) -> Sums:
    """Count, sum and sum of squares of each numeric feature around a public ``mean``, in units of a
    public ``scale``. most: a bound of the sums."""
    count, first, second = (np.zeros(len(features)) for _ in range(3))
    for j, term in enumerate(features):
        values = term.standardised(frame)
        values = values[~np.isnan(values)]
        count[j], first[j], second[j] = len(values), values.sum(), (values**2).sum()
    arrays = {"count": count, "first": first, "second": second}
    limit = limit_of(most)
    return Sums(arrays, {"count": COUNT, "first": limit, "second": limit}, len(frame))


def histogram(
    frame: pd.DataFrame, features: tuple[Number, ...], edges: Floats, owners: Floats, least: int
) -> Sums:
    """Rows by interval of each standardised feature, (features, intervals); the ends are open.

    owners: (rows,) who each row belongs to. Neighbours are joined, at that of them which is nearest
    to the middle, until ``least`` persons of this party stand behind them: no interval shows fewer.
    """
    size = len(edges) - 1
    counts = np.zeros((len(features), len(edges) - 1))
    for j, term in enumerate(features):
        values = term.standardised(frame)
        valid = ~np.isnan(values)
        inside = np.clip(values[valid], edges[0], edges[-1])
        place = np.clip(np.searchsorted(edges, inside, side="right") - 1, 0, size - 1)
        places = in_order(persons_by(place, owners[valid], size), least)
        first, end = (np.searchsorted(places, places, side=side) for side in ("left", "right"))
        nearest = np.clip(size // 2, first, end - 1)
        counts[j] = np.bincount(nearest[place], minlength=size)
    return Sums({"count": counts}, {"count": COUNT}, len(frame))


def level_counts(frame: pd.DataFrame, features: tuple[Counted, ...], owners: Floats) -> Sums:
    """Rows and persons at each level of each categorical feature, or of two together, one after the other.

    owners: (rows,) who each row belongs to.
    """
    rows = [np.zeros(0)]
    persons: dict[str, list[Floats]] = {PERSONS: [np.zeros(0)], PARTIES: [np.zeros(0)]}
    for term in features:
        codes, size = term.codes(frame), len(term.levels)
        there = codes >= 0
        rows.append(np.bincount(codes[there], minlength=size).astype(float))
        for name, values in behind(codes[there].astype(np.int64), owners[there], size).items():
            persons[name].append(values)
    arrays = {"count": np.concatenate(rows)}
    arrays |= {name: np.concatenate(values) for name, values in persons.items()}
    return Sums(arrays, dict.fromkeys(arrays, COUNT), len(frame))


def level_parties(
    frame: pd.DataFrame, features: tuple[Counted, ...], owners: Floats, least: int
) -> Sums:
    """1 for each level at which this party has ``least`` persons, 0 for the others.

    What is told of levels where everybody sees the totals: no count of few persons.
    """
    persons = level_counts(frame, features, owners)[PERSONS]
    return Sums({"parties": (persons >= least).astype(float)}, {"parties": FLAG}, len(frame))


def seen_levels(
    frame: pd.DataFrame, feature: Feature, owners: pd.Series | None = None, minimum: int = 1
) -> list[str]:
    """Level names present at this party, sorted: what a party announces where no contract lists them.

    owners: who each row belongs to, else every row is somebody's own. A level of fewer than
    ``minimum`` persons is not named; where there is one, :data:`RARE` stands for all of them.
    """
    texts = feature.texts(frame)
    unit = (
        np.arange(len(frame)) if owners is None else pd.factorize(owners, use_na_sentinel=False)[0]
    )
    pairs = pd.DataFrame({"level": texts.cat.codes.to_numpy(), "unit": unit}).drop_duplicates()
    level = pairs["level"].to_numpy()
    persons = np.bincount(level[level >= 0], minlength=len(texts.cat.categories))
    counts = zip(texts.cat.categories, persons, strict=True)
    return sorted({str(name) if n >= minimum else RARE for name, n in counts if n > 0})


def check_features(frame: pd.DataFrame, features: tuple[Feature, ...], missing: str) -> None:
    """Refuse missing values in features, unless the experiment says that they take the mean, or
    that they are kept."""
    for feature in features:
        empty = frame[feature.column].isna()
        number = pd.api.types.is_numeric_dtype(frame[feature.column])
        takes_mean = number and not (feature.category or feature.cut)
        if empty.any() and missing != "keep" and (missing == "refuse" or not takes_mean):
            rows = ", ".join(str(i + 1) for i in frame.index[empty][:5])
            raise ContractError(
                f"feature '{feature.column}' is missing in some rows; "
                "set data.missing = 'drop' to leave these rows out, or 'keep' for trees"
                + (", or 'mean' to fill in the mean" if takes_mean else "")
                + ("" if number else "; where NA or None is a level, list it in a contract"),
                (
                    f"missing in {int(empty.sum())} rows (first: {rows})",
                ),  # for the party's own eyes
            )
        if feature.ordinal and number:
            raise ConfigurationError(
                f"feature '{feature.column}': ordinal needs a category whose levels a contract lists; "
                "this column holds numbers, drop the key"
            )
