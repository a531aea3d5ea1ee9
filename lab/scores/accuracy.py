"""How good predictions are: every score is made from sums over rows.

Deviance explained: 1 - D(model) / D(constant rate). Gini: Frees, Meyers & Cummings,
"Insurance ratemaking and a Gini index" (2014), section 2, from the Lorenz curve of the target
over exposure ordered by predicted rate. Bootstrap: every row (or person) gets Poisson(1)
weights, so that a replicate is a sum too (Chamandy et al., "Estimating uncertainty for massive
data streams", 2012).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from lab.models.families import FAR, Family, Scale
from lab.privacy.joining import PARTIES, PERSONS, behind
from lab.sums import COUNT, SCORE, Floats, Limit, Sums, limit_of

Codes = NDArray[np.int64]
#: Bins of the predicted rate: a coarse grid first, then as many of about equal exposure.
BINS = 256
GRID = np.linspace(-40.0, 40.0, 4 * BINS + 1)


@dataclass(frozen=True)
class Scored:
    """Rows with a prediction. ``rate`` and ``y / exposure`` are for one unit of exposure."""

    y: Floats
    rate: Floats
    exposure: Floats
    weight: Floats
    unit: Floats  # rows of one unit are resampled together

    @property
    def size(self) -> Floats:
        return self.weight * self.exposure


def fit_sums(
    rows: Scored,
    *,
    family: Family,
    scale: Scale,
    replicates: int,
    seed: list[int],
    counts: bool = False,
) -> Sums:
    """Deviance of the model and of the constant rate, actual and expected, with replicates.

    Index 0 of each array is the sample itself, 1..replicates are resamples; the same seed gives
    the same resamples for every model, so differences between models are paired. ``seed`` holds
    the study's seed and numbers only the party knows: resamples that others could repeat would be
    equations for single rows. counts: with the sums of :func:`counts_explained`.

    The sums of two parties add up to the sums of all rows, and so do the scores made from them:

    >>> from lab.sums import combine
    >>> def party(y: list[float], rate: list[float]) -> Sums:
    ...     ones = np.ones(len(y))
    ...     rows = Scored(np.array(y), np.array(rate), ones, ones, np.arange(len(y)))
    ...     scale = Scale(rows=4, weight=1, exposure=1, target=0.75, square=1.25)
    ...     law = Family.make("poisson")
    ...     return fit_sums(rows, family=law, scale=scale, replicates=0, seed=[1])
    >>> one, other = party([0, 1], [0.2, 0.6]), party([0, 2], [0.3, 1.5])
    >>> both = party([0, 1, 0, 2], [0.2, 0.6, 0.3, 1.5])
    >>> [round(scores(sums).deviance_explained, 4) for sums in (combine([one, other]), both)]
    [0.6949, 0.6949]
    """
    expected = rows.rate * rows.exposure
    columns = np.column_stack(
        [
            rows.weight * family.deviance(rows.y, expected),
            rows.weight * family.deviance(rows.y, scale.rate * rows.exposure),
            rows.weight * rows.y,
            rows.weight * expected,
            rows.size,
        ]
    )
    totals = resampled(columns, rows.unit, replicates, seed).T
    names = ("deviance", "null_deviance", "actual", "expected", "size")
    arrays = {name: total.copy() for name, total in zip(names, totals, strict=True)}
    arrays["rows"] = np.array([float(len(rows.y))])
    limits = limits_of(family, scale)
    if counts:
        arrays, limits = arrays | _weighted(rows, family), limits | weighted_limits(family, scale)
    arrays = {k: np.clip(v, -limits[k].bound, limits[k].bound) for k, v in arrays.items()}
    return Sums(arrays, limits, len(rows.y))


def _weighted(rows: Scored, family: Family) -> dict[str, Floats]:
    """What :func:`counts_explained` is made of, each row weighing as much as its exposure."""
    deviance = family.deviance(rows.y, rows.rate * rows.exposure)
    values = {
        "weighted_deviance": rows.size @ deviance,
        "weighted_actual": rows.size @ rows.y,
        "weighted_logarithm": rows.size @ special.xlogy(rows.y, rows.y),
    }
    return {name: np.array([float(value)]) for name, value in values.items()}


def weighted_limits(family: Family, scale: Scale) -> dict[str, Limit]:
    reach = FAR * scale.rows * scale.exposure / scale.weight
    return {
        "weighted_deviance": limit_of(reach * scale.deviance(family)),
        "weighted_actual": limit_of(reach * np.sqrt(scale.square * scale.weight)),
        "weighted_logarithm": limit_of(reach * scale.square),
    }


def resampled(columns: Floats, units: Floats, replicates: int, seed: list[int]) -> Floats:
    """(replicates + 1, columns) sums of the sample itself, then of resamples by unit."""
    totals = np.zeros((replicates + 1, columns.shape[1]))
    totals[0] = columns.sum(axis=0)
    if replicates and len(columns):
        _, unit = np.unique(units, return_inverse=True)
        by_unit = np.zeros((int(unit.max()) + 1, columns.shape[1]))
        np.add.at(by_unit, unit, columns)
        rng = np.random.default_rng(seed)
        for b in range(1, replicates + 1):
            totals[b] = rng.poisson(1.0, len(by_unit)).astype(float) @ by_unit
    return totals


def limits_of(family: Family, scale: Scale) -> dict[str, Limit]:
    """The formats of :func:`fit_sums`: a model that is further off than :data:`FAR` has scores
    that say nothing, and its sums are cut off."""
    reach = FAR * scale.rows
    deviance = limit_of(reach * scale.deviance(family))
    target = limit_of(reach * np.sqrt(scale.square * scale.weight))
    size = limit_of(reach * scale.exposure)
    return {
        "deviance": deviance,
        "null_deviance": deviance,
        "actual": target,
        "expected": target,
        "size": size,
        "rows": COUNT,
    }


def lorenz_sums(rows: Scored, *, edges: Floats) -> Sums:
    """Exposure, actual, expected and persons by bin of the log predicted rate; ``edges`` has bins - 1 values."""
    with np.errstate(divide="ignore"):
        place = np.log(np.maximum(rows.rate, 0.0))
    return _by_group(rows, np.searchsorted(edges, place), len(edges) + 1)


def level_sums(rows: Scored, *, codes: NDArray[np.int32], count: int) -> Sums:
    """Exposure, actual, expected and persons by level of one feature; code -1 is left out."""
    keep = codes >= 0
    part = Scored(*(getattr(rows, f)[keep] for f in ("y", "rate", "exposure", "weight", "unit")))
    return _by_group(part, codes[keep].astype(np.int64), count)


def _by_group(rows: Scored, group: Codes, count: int) -> Sums:
    values = {
        "size": rows.size,
        "actual": rows.weight * rows.y,
        "expected": rows.weight * rows.rate * rows.exposure,
    }
    arrays = {
        name: np.bincount(group, value, count).astype(np.float64) for name, value in values.items()
    }
    persons = behind(group, rows.unit, count)
    limits = level_limits() | {PARTIES: COUNT}
    return Sums(arrays | persons, limits, len(rows.y))


def level_limits() -> dict[str, Limit]:
    """The formats of sums by bin or level."""
    return dict.fromkeys(("size", "actual", "expected"), SCORE) | {PERSONS: COUNT}


def finer_edges(coarse: Sums, edges: Floats, bins: int = BINS) -> Floats:
    """Edges that cut the exposure of a coarse histogram into about equal parts.

    Within a coarse bin the exposure is taken as evenly spread; equal edges are merged.

    Six of eight years lie between 0 and 1, so two of three edges do:

    >>> coarse = Sums({"size": np.array([1.0, 6.0, 1.0])}, {"size": COUNT}, rows=8)
    >>> finer_edges(coarse, np.array([0.0, 1.0]), bins=4).round(2).tolist()
    [0.17, 0.5, 0.83]
    """
    size = coarse["size"]
    low = np.concatenate([[edges[0] - 1], edges])
    high = np.concatenate([edges, [edges[-1] + 1]])
    cumulative = np.concatenate([[0.0], np.cumsum(size)])
    targets = np.linspace(0, cumulative[-1], bins + 1)[1:-1]
    at = np.clip(np.searchsorted(cumulative, targets, side="left") - 1, 0, len(size) - 1)
    share = np.divide(
        targets - cumulative[at], size[at], out=np.zeros_like(targets), where=size[at] > 0
    )
    return np.asarray(np.unique(low[at] + share * (high[at] - low[at])))


@dataclass(frozen=True)
class Scores:
    """The scores of one model on one set of rows."""

    rows: int
    deviance: float  # mean, for one unit of exposure times weight
    deviance_explained: float
    gini: float | None  # None where it was not looked for
    balance: float  # expected over actual, 1 is in balance


def scores(fit: Sums, lorenz: Sums | None = None) -> Scores:
    """Scores from opened totals."""
    size, actual = float(fit["size"][0]), float(fit["actual"][0])
    null = float(fit["null_deviance"][0])
    return Scores(
        rows=round(fit.total("rows")),
        deviance=float(fit["deviance"][0]) / size if size else float("nan"),
        deviance_explained=1 - float(fit["deviance"][0]) / null if null else float("nan"),
        gini=gini(lorenz) if lorenz is not None else None,
        balance=float(fit["expected"][0]) / actual if actual else float("nan"),
    )


def counts_explained(fit: Sums) -> float | None:
    """The deviance of counts that is explained, with exposure as the rows' weight, against the same
    count for every row: what scikit-learn's ``d2_tweedie_score(y, mean, sample_weight=exposure,
    power=1)`` is. Published figures of claim frequencies are often in this measure, which is another
    than ``deviance_explained``: there the rate is constant, and a row weighs by its deviance alone.

    None without the sums for it. The constant is the mean of the rows themselves.
    """
    if "weighted_deviance" not in fit.arrays:
        return None
    actual, size = fit.total("weighted_actual"), float(fit["size"][0])
    if not actual > 0:
        return None
    constant = 2 * (fit.total("weighted_logarithm") - actual * np.log(actual / size))
    return 1 - fit.total("weighted_deviance") / constant if constant > 0 else None


def balance(fit: Sums, level: float = 0.95) -> tuple[float, float, float]:
    """(expected over actual, low, high) by bootstrap percentiles; low and high are not numbers
    without replicates."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = fit["expected"] / fit["actual"]
    if len(ratios) == 1 or not np.isfinite(ratios).all():
        return float(ratios[0]), float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(ratios[1:], [tail, 1 - tail])
    return float(ratios[0]), float(low), float(high)


def interval(model: Sums, other: Sums, level: float = 0.95) -> tuple[float, float, float]:
    """(difference, low, high) of deviance explained, model minus other, by paired percentiles.

    Resamples without any row are left out; where none is left the limits are not a number.
    """

    def explained(sums: Sums) -> Floats:
        null = sums["null_deviance"]
        return np.asarray(1 - sums["deviance"] / np.where(null > 0, null, np.nan))

    difference = explained(model) - explained(other)
    samples = difference[1:][~np.isnan(difference[1:])]
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail]) if len(samples) else (np.nan, np.nan)
    return float(difference[0]), float(low), float(high)


def lorenz_curve(sums: Sums) -> tuple[Floats, Floats]:
    """Cumulative shares of exposure and of the target, from the lowest predicted rate up; not
    numbers where there is none of either to share."""
    size = np.concatenate([[0.0], np.cumsum(sums["size"])])
    actual = np.concatenate([[0.0], np.cumsum(sums["actual"])])
    return size / (size[-1] or np.nan), actual / (actual[-1] or np.nan)


def gini(sums: Sums) -> float:
    """Twice the area between the diagonal and the Lorenz curve; 0 orders nothing, and it is not a
    number where nothing was observed.

    sums: bins in the order of the predicted rate, with their exposure and what was observed.

    >>> claims = {"size": np.ones(4), "actual": np.array([0.0, 0.0, 1.0, 3.0])}
    >>> gini(Sums(claims, dict.fromkeys(claims, COUNT), rows=4))
    0.625
    """
    x, y = lorenz_curve(sums)
    return float(1 - 2 * np.trapezoid(y, x))


def deciles(sums: Sums, parts: int = 10) -> pd.DataFrame:
    """Exposure, actual and expected rate by tenths of exposure, from the lowest predicted rate up."""
    size = sums["size"]
    middle = np.cumsum(size) - size / 2
    tenth = np.minimum((middle / (size.sum() or 1.0) * parts).astype(int), parts - 1)
    table = pd.DataFrame({name: sums[name] for name in ("size", "actual", "expected")})
    tenths = table.groupby(tenth).sum()
    tenths.index = tenths.index + 1
    return tenths.rename_axis("tenth").assign(
        actual_over_expected=tenths["actual"] / tenths["expected"]
    )
