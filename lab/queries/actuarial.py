"""What an analyst computes from released totals: reserves, survival, rates, stability.

Every input is a table of totals over all parties, cell by cell. A cell that disclosure control hid
is NaN: where one cell is one answer (a rate) NaN passes through; where an answer needs every cell
(a triangle, a survival curve) it is an error that names the cell, because a guess in its place
would be taken for a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lab.errors import ContractError, ModelError
from lab.sums import Floats

#: How many hidden cells an error names.
CELLS_SHOWN = 5
#: What is rounding in a share of persons.
ROUNDING = 1e-12

#: Most periods of a triangle: the library's calendar ends in 2261.
LONGEST = 500


@dataclass(frozen=True)
class Triangle:
    """A run-off triangle and its chain ladder, in the unit of the values.

    ``incremental``, ``cumulative``: origin × age, NaN after the ``latest`` calendar period, origin
    + age less the first age. ``factors``: by age, ``factor`` to the next age and ``to_ultimate``;
    the table's last age is ultimate, there is no tail. ``ultimates``: by origin, ``latest``,
    ``ultimate``, ``reserve``, Mack's ``standard_error``; NaN for the ``unpaid``, of which nothing
    is paid yet. ``reserve``, ``standard_error``: of all other origins; the errors of
    origins share the factors and do not add up as squares.
    """

    incremental: pd.DataFrame
    cumulative: pd.DataFrame
    factors: pd.DataFrame
    ultimates: pd.DataFrame
    reserve: float
    standard_error: float
    latest: int
    unpaid: tuple[int, ...] = ()


def triangle(totals: pd.DataFrame, development: Literal["age", "calendar"] = "age") -> Triangle:
    """The volume-weighted chain ladder of incremental totals.

    ``totals``: columns ``origin``, ``development``, ``value``; periods of one width, numbered by
    whole numbers. ``development`` is the age, of which the least is an origin's first, or the
    ``calendar`` period of payment. The latest period is the last one with a value other than 0:
    zeros and NaN after it are the future. Standard errors are NaN in a triangle too small for
    Mack's σ, where fewer than two origins reach age 2 (or the last age, if that is 1), and where an
    origin starts at 0, for which he has no variance.

    Raises :class:`ModelError` for a hidden or missing cell up to the latest period, for totals below
    0, and for an origin that has paid at an age at which none before it had; :class:`ContractError` for a table of another form. Source: Mack, "Distribution-free
    calculation of the standard error of chain ladder reserve estimates", ASTIN Bulletin 23 (1993),
    with his σ of the last factor; computed by chainladder.
    """
    incremental, latest = _observed(totals, development)
    cumulative = incremental.cumsum(axis=1)
    steps = cumulative.shape[1] - 1
    if steps == 0:
        raise ModelError("the totals reach only one age; a factor needs two")
    if negative := _places(cumulative < 0):
        raise ModelError(
            f"totals below 0 up to {_listed(negative)}: no factor leads on from there; ask for"
            " wider periods or other origins"
        )
    paid = cumulative[cumulative.ffill(axis=1).iloc[:, -1] > 0]
    factors = _factors(paid)
    if (cumulative == 0).any(axis=None):
        errors, total_error = pd.Series(np.nan, paid.index), float("nan")
    else:
        errors, total_error = _mack(cumulative, latest)
    ultimates = _ultimates(paid, factors).assign(standard_error=errors).reindex(cumulative.index)
    unpaid = cumulative.index.difference(paid.index)
    ultimates.loc[unpaid, "latest"] = 0.0
    return Triangle(
        incremental,
        cumulative,
        factors,
        ultimates,
        reserve=float(ultimates["reserve"].sum()),
        standard_error=total_error,
        latest=latest,
        unpaid=tuple(int(origin) for origin in unpaid),
    )


def _factors(cumulative: pd.DataFrame) -> pd.DataFrame:
    """Volume-weighted factors by age, each of the origins that have reached the next age; NaN where
    none of them has paid anything yet."""
    steps = cumulative.columns[:-1]
    values = cumulative.to_numpy()
    reached = ~np.isnan(values[:, 1:])
    start = np.where(reached, values[:, :-1], 0.0).sum(axis=0)
    factor = np.nansum(values[:, 1:], axis=0) / np.where(start > 0, start, np.nan)
    to_ultimate = np.cumprod(factor[::-1])[::-1]
    return pd.DataFrame({"factor": factor, "to_ultimate": to_ultimate}, index=steps)


def _ultimates(cumulative: pd.DataFrame, factors: pd.DataFrame) -> pd.DataFrame:
    """By origin: the latest total, the ultimate one, the reserve between them. Raises
    :class:`ModelError` where an origin has paid earlier than all before it."""
    latest = cumulative.ffill(axis=1).iloc[:, -1]
    age = cumulative.notna().sum(axis=1).to_numpy() - 1
    ultimate = latest * np.append(factors["to_ultimate"], 1.0)[age]
    if early := ultimate.index[ultimate.isna()].tolist():
        raise ModelError(
            f"no factor leads on from origin {early[0]}: no origin before it had paid at its age; "
            "ask for wider periods"
        )
    return pd.DataFrame({"latest": latest, "ultimate": ultimate, "reserve": ultimate - latest})


def _mack(cumulative: pd.DataFrame, latest: int) -> tuple[pd.Series[float], float]:
    """Mack's standard errors by origin, and of all."""
    fit = _chain_ladder(cumulative.set_axis(range(cumulative.shape[1]), axis=1), latest)
    # The library takes a σ it cannot estimate for 0, and writes an error of 0 as NaN.
    if cumulative.iloc[:, min(2, cumulative.shape[1] - 1)].count() < 2:
        return pd.Series(np.nan, cumulative.index), float("nan")
    errors = np.nan_to_num(_estimates(fit, "mack_std_err_")[: len(cumulative), -1])
    total = np.nan_to_num(fit.total_mack_std_err_.to_numpy()).item()
    return pd.Series(errors, cumulative.index), total


def _estimates(fit: Any, name: str) -> Floats:
    """A table of the fit, origin × age, without the library's index."""
    return np.asarray(getattr(fit, name).set_backend("numpy").values[0, 0], dtype=np.float64)


def _observed(totals: pd.DataFrame, development: str) -> tuple[pd.DataFrame, int]:
    """Increments, origin × age, up to the latest calendar period; and that period."""
    cells = _numbers(totals, ("origin", "development", "value"))
    value, place = cells["value"].to_numpy(), cells[["origin", "development"]].to_numpy()
    if (place % 1).any() or len(np.unique(place, axis=0)) < len(place):
        raise ContractError("origin and development must be whole numbers, each pair in one row")
    origin, age = place.astype(np.int64).T
    first_age = 0 if development == "calendar" else int(age.min())
    if development == "calendar":
        age = age - origin
    if age.min() < 0:
        raise ContractError("development must not come before its origin")
    paid = np.nan_to_num(value) != 0
    if not paid.any():
        raise ModelError("every cell of the triangle is 0 or hidden; ask for wider periods")
    age = age - first_age
    latest, first = int((origin + age)[paid].max()), int(origin.min())
    if latest - first >= LONGEST:
        raise ModelError(
            f"a triangle has at most {LONGEST} periods, got {latest - first + 1}; ask for wider ones"
        )
    origins = pd.RangeIndex(first, min(int(origin.max()), latest) + 1, name="origin")
    ages = pd.RangeIndex(min(int(age.max()), latest - first) + 1, name="age")
    table = np.full((len(origins), len(ages)), np.nan)
    past = origin + age <= latest
    table[origin[past] - first, age[past]] = value[past]
    frame = pd.DataFrame(table, origins, (ages + first_age).rename("age"))
    reached = np.add.outer(np.asarray(origins), np.asarray(ages)) <= latest
    if hidden := _places(frame.isna() & reached):
        raise ModelError(
            f"hidden or missing in the triangle up to period {latest}: {_listed(hidden)}; ask for"
            " wider periods, fewer ages or more parties"
        )
    return frame, latest


def _chain_ladder(cumulative: pd.DataFrame, latest: int) -> Any:
    """The library's Mack model. It wants dates: origins counted from 0 become years from 1700."""
    cl: Any = import_module("chainladder")  # 4 s, and its annotations hide what it exports
    periods = latest - int(cumulative.index[0]) + 1
    # It wants a column for every calendar period: nothing is paid after the table's last age.
    wide = cumulative.reindex(columns=range(periods)).ffill(axis=1).to_numpy()
    origin, age = np.nonzero(np.add.outer(np.arange(len(wide)), np.arange(periods)) < periods)
    start = np.datetime64("1700", "Y") + origin
    cells = {
        "origin": start.astype("datetime64[s]"),
        "end": (start + age + 1).astype("datetime64[s]") - np.timedelta64(1, "D"),
        "value": wide[origin, age],
    }
    with np.errstate(all="ignore"):  # it divides by the σ of a factor with one origin
        table = cl.Triangle(
            pd.DataFrame(cells),
            origin="origin",
            development="end",
            columns="value",
            cumulative=True,
        )
        factors = cl.Development(average="volume", sigma_interpolation="mack").fit_transform(table)
        for error in (factors.sigma_, factors.std_err_):
            error.values[..., cumulative.shape[1] - 1 :] = 0.0  # it extrapolates into what is added
        return cl.MackChainladder().fit(factors)


@dataclass(frozen=True)
class Survival:
    """Kaplan–Meier curves; times are in the unit of ``start`` and ``end``.

    ``curve``: a row for each group ("all" without groups) and interval: ``group``, ``start``,
    ``end``, ``at_risk``, ``events``, ``censored``, ``survival`` past ``end``, Greenwood's
    ``standard_error``, ``low``, ``high``. ``medians``: by group, the first ``end`` at which S is
    one half or less; NaN where it never is.
    """

    curve: pd.DataFrame
    medians: pd.Series[float]


def survival(totals: pd.DataFrame, group: str | None = None, level: float = 0.95) -> Survival:
    """S(t) = Π (1 - events / at risk) from the numbers that leave observation in each interval.

    ``totals``: columns ``start``, ``end``, ``leaving``, ``events`` and the ``group``; one row for
    each interval (start, end], without a gap. Of those leaving, ``events`` had the event and the
    rest were censored, after the events. Everybody leaves once, in the last interval at the
    latest. Equals the curve from rows if all times are ends of intervals; in wider ones the
    censored count as at risk to the end, so S is a little high. The interval, on the log-log
    scale, is NaN at S = 1 and S = 0; S is NaN where nobody is at risk.

    Raises :class:`ModelError` for a hidden cell. There is no curve up to it: who is at risk is
    counted back from the last interval, so a hidden number is missing in all before it, and a
    curve that stops where events become few is biased. Raises :class:`ContractError` for counts
    or intervals that cannot be. Source: Kalbfleisch & Prentice, "The Statistical Analysis of
    Failure Time Data" (2002), section 1.4.
    """
    from scipy.stats import norm

    cells = _intervals(totals, group)
    at_risk, events, by = cells["at_risk"], cells["events"], cells["group"]
    with np.errstate(divide="ignore", invalid="ignore"):  # S = 1, S = 0, nobody at risk
        curve = (1 - events / at_risk).groupby(by).cumprod()
        variance = (events / (at_risk * (at_risk - events))).groupby(by).cumsum()
        spread = np.exp(norm.isf((1 - level) / 2) * np.sqrt(variance) / -np.log(curve))
        cells = cells.drop(columns="leaving").assign(
            censored=cells["leaving"] - events,
            survival=curve,
            standard_error=curve * np.sqrt(variance),
            low=curve.mask(curve == 1) ** spread,
            high=curve.mask(curve == 1) ** (1 / spread),
        )
    below = cells["end"].where(curve <= 0.5 + ROUNDING)
    return Survival(cells, below.groupby(by).min().rename("median"))


def log_rank(totals: pd.DataFrame, group: str) -> tuple[float, int, float]:
    """Do the groups leave alike? (χ², degrees of freedom, p) of (O - E)' V⁻¹ (O - E).

    ``totals`` as for :func:`survival`, with the same intervals in every group; V is the
    hypergeometric variance. Raises :class:`ModelError` for a hidden cell, and where no event
    tells the groups apart. Source: Kalbfleisch & Prentice (2002), section 1.5.
    """
    from scipy.stats import chi2

    parts = [part for _, part in _intervals(totals, group).groupby("group")]
    ends = [part["end"].tolist() for part in parts]
    if any(end != ends[0] for end in ends):
        raise ContractError("all groups must have the same intervals, 0 where nobody left")
    at_risk = np.column_stack([part["at_risk"] for part in parts])
    events = np.column_stack([part["events"] for part in parts])
    everybody, all_events = at_risk.sum(axis=1), events.sum(axis=1)
    share = at_risk / np.maximum(everybody, 1)[:, None]
    weight = all_events * (everybody - all_events) / np.maximum(everybody - 1, 1)
    variance = (np.diag(weight @ share) - (share * weight[:, None]).T @ share)[1:, 1:]
    excess = (events.sum(axis=0) - all_events @ share)[1:]
    df = len(excess)
    if df == 0 or np.linalg.matrix_rank(variance) < df:
        raise ModelError(
            "the groups cannot be compared: each needs persons at risk while events happen, and"
            " there must be two; join groups or ask for a longer time"
        )
    statistic = float(excess @ np.linalg.solve(variance, excess))
    return statistic, df, float(chi2.sf(statistic, df))


def _intervals(totals: pd.DataFrame, group: str | None) -> pd.DataFrame:
    """Checked intervals by group and time, with the number at risk: all who have not yet left."""
    cells = _numbers(totals, ("start", "end", "leaving", "events"))
    if group is not None and (group not in totals or totals[group].isna().any()):
        raise ContractError(f"every row of the totals needs its '{group}'")
    cells.insert(0, "group", "all" if group is None else totals[group].to_numpy())
    cells = cells.sort_values(["group", "start"], ignore_index=True)
    before = cells.groupby("group")["end"].shift()
    if not ((cells["start"] < cells["end"]) & (before.isna() | (before == cells["start"]))).all():
        raise ContractError(
            "the intervals of a group must follow one another without gap or overlap: 0 where"
            " nobody left, NaN where the number is hidden"
        )
    hidden = cells[cells["leaving"].isna() | cells["events"].isna()]
    if len(hidden):
        places = zip(hidden["group"], hidden["start"], hidden["end"], strict=True)
        raise ModelError(
            f"hidden: {_listed([f'{name} ({start:g}, {end:g}]' for name, start, end in places])};"
            " ask for wider intervals, fewer groups or more parties"
        )
    if not ((cells["events"] >= 0) & (cells["events"] <= cells["leaving"])).all():
        raise ContractError("events must be at least 0 and at most the number leaving")
    cells.insert(3, "at_risk", cells.iloc[::-1].groupby("group")["leaving"].cumsum())
    return cells


def rate(
    events: ArrayLike, exposure: ArrayLike, per: float = 1000, level: float = 0.95
) -> pd.DataFrame:
    """Events for ``per`` units of exposure: ``rate``, ``low``, ``high``, cell by cell.

    Arrays, or Series joined by their index. The exact Poisson interval: low = χ²(α/2; 2d) / 2 and
    high = χ²(1 - α/2; 2d + 2) / 2 over the exposure, α = 1 - level. NaN passes through; without
    exposure there is no rate. Raises :class:`ContractError` for events that are no counts.
    Source: Garwood, "Fiducial limits for the Poisson distribution", Biometrika 28 (1936).
    """
    return per * _poisson(events, exposure, level).rename(columns={"ratio": "rate"})


def actual_expected(actual: ArrayLike, expected: ArrayLike, level: float = 0.95) -> pd.DataFrame:
    """Actual over expected events: ``ratio``, ``low``, ``high``; ``expected`` taken as known.

    For counts, with the interval of :func:`rate`. Amounts are refused with
    :class:`ContractError`: their variance is not their mean.
    """
    return _poisson(actual, expected, level)


def _poisson(count: ArrayLike, base: ArrayLike, level: float) -> pd.DataFrame:
    """A Poisson count over a known base, with Garwood's limits."""
    from scipy.stats import chi2

    cells = _columns(count=count, base=base)
    counts, bases = cells["count"], cells["base"]
    if (counts < 0).any() or (counts % 1 > 0).any() or (bases < 0).any():
        raise ContractError(
            "an exact Poisson interval needs counts, whole numbers at least 0, over a base at least"
            " 0; it holds neither for amounts nor for totals with noise"
        )
    tail = (1 - level) / 2
    low = np.where(counts == 0, 0.0, chi2.ppf(tail, 2 * counts) / 2)
    high = chi2.isf(tail, 2 * counts + 2) / 2
    limits = pd.DataFrame({"ratio": counts, "low": low, "high": high}, index=cells.index)
    return limits.div(bases.where(bases > 0), axis=0)


def stability_index(expected_shares: ArrayLike, actual_shares: ArrayLike, rows: float) -> float:
    """The population stability index PSI = Σ (a - e) ln(a / e) over bins; 0 for the same shares.

    Shares or counts by bin, each divided by its sum; ``rows`` is the number of rows behind the
    actual ones. A share below half a row, 0.5 / rows, is taken as half a row on both sides, so
    that an empty bin counts and the index stays finite. Raises :class:`ModelError` for a hidden
    bin. Source: Siddiqi, "Credit Risk Scorecards" (2006); Kullback & Leibler (1951).
    """
    bins = _columns(expected=expected_shares, actual=actual_shares)
    if bins.isna().to_numpy().any():
        raise ModelError("a bin is hidden or missing on one side; join it with its neighbour")
    if (bins < 0).to_numpy().any() or not (bins.sum() > 0).all() or not rows > 0:
        raise ContractError("shares must be at least 0 with a sum above 0, over at least one row")
    shares = (bins / bins.sum()).clip(lower=0.5 / rows)
    a, e = shares["actual"].to_numpy(), shares["expected"].to_numpy()
    return float(((a - e) * np.log(a / e)).sum())


def _numbers(totals: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """These columns as numbers; the first two say where a cell is and are never missing."""
    if totals.empty or not set(names) <= set(totals.columns):
        raise ContractError(f"the totals need rows with the columns {', '.join(names)}")
    columns = {n: pd.to_numeric(totals[n].astype("object"), errors="coerce") for n in names}
    cells = pd.DataFrame(columns, dtype="float64").reset_index(drop=True)
    if cells[list(names[:2])].isna().to_numpy().any():
        raise ContractError(f"{names[0]} and {names[1]} must be numbers in every row of the totals")
    return cells


def _columns(**values: ArrayLike) -> pd.DataFrame:
    """Arrays, Series and single numbers side by side; Series are joined by their index."""
    single = all(np.ndim(value) == 0 for value in values.values())
    return pd.DataFrame(dict(values), index=[0] if single else None, dtype="float64")


def _places(mask: pd.DataFrame) -> list[str]:
    """Where a mask of origin × age is true."""
    at = np.argwhere(mask.to_numpy())
    return [f"origin {mask.index[i]} age {mask.columns[j]}" for i, j in at]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - CELLS_SHOWN} more" if len(names) > CELLS_SHOWN else ""
    return ", ".join(names[:CELLS_SHOWN]) + more
