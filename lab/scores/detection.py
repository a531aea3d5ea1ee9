"""How good a fraud detector is, as a claims department reads it: every score is made from sums.

Rows are claims, counted in bins of their predicted probability of fraud; the bins stand in for
the ranking, and claims of one bin are ties. First the claims are counted on the public
:data:`GRID`, then between :func:`ranking_edges`, which are fine where claims are investigated.
Precision and recall: Davis & Goadrich, "The relationship between precision-recall and ROC
curves" (ICML 2006). Bootstrap by whole persons with Poisson(1) weights, as in `lab.scores.accuracy`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from lab.errors import ConfigurationError, ModelError
from lab.privacy.joining import PARTIES, PERSONS, behind
from lab.sums import COUNT, SCORE, Floats, Sums

Codes = NDArray[np.int64]

#: Bins of a ranking, and the smallest share of claims that an edge is made for.
BINS = 256
FINEST = 1e-5
#: Where the logit of a probability is cut at first; what lies beyond is moved to its ends.
GRID: Floats = np.linspace(-40.0, 40.0, 4 * BINS + 1)


def rank_sums(
    truth: Floats,
    score: Floats,
    amount: Floats,
    unit: Floats,
    *,
    edges: Floats,
    replicates: int,
    seed: list[int],
) -> Sums:
    """Claims and frauds by bin of the logit of the score, from the lowest up, and their resamples.

    truth: (rows,) 1 for fraud, 0 for honest. score: (rows,) predicted probability of fraud.
    amount: (rows,) yuan saved if the claim is stopped, read for frauds alone. unit: (rows,) rows
    of one person are resampled together. edges: (bins - 1,) rising; a bin holds its lower edge.

    ``rows``, ``fraud``, ``amount`` (of frauds, yuan) and ``expected`` (sum of probabilities) have
    shape (bins,). ``resampled``, (replicates, 2, bins), holds rows and frauds of each resample, and
    ``resampled_amount``, (replicates, bins), the amount; they are left out where there are none. The same seed gives every model the same resamples, so
    that differences are paired; ``seed`` must hold numbers only the party knows, because
    resamples that others could repeat would be equations for single rows.

    Raises :class:`ModelError` for a truth that is not 0 or 1 and a score that is no probability.

    Four claims in bins cut at one half and at four fifths:

    >>> truth, score = np.array([0.0, 0, 0, 1]), np.array([0.1, 0.2, 0.6, 0.9])
    >>> amount, edges = np.array([50.0, 20, 90, 700]), special.logit([0.5, 0.8])
    >>> sums = rank_sums(truth, score, amount, np.arange(4.0), edges=edges, replicates=0, seed=[1])
    >>> sums["rows"].tolist(), sums["fraud"].tolist(), sums["amount"].tolist()
    ([2.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 700.0])
    """
    fraud, bins = frauds_of(truth, score), len(edges) + 1
    place = np.searchsorted(edges, np.clip(special.logit(score), GRID[0], GRID[-1]), side="right")
    arrays = {
        "rows": counted(place, None, bins),
        "fraud": counted(place, truth, bins),
        "amount": counted(place, np.where(fraud, amount, 0.0), bins),
        "expected": counted(place, score, bins),
        **behind(place, unit, bins),
    }
    limits = {"rows": COUNT, "fraud": COUNT, "amount": SCORE, "expected": SCORE, PERSONS: COUNT}
    limits[PARTIES] = COUNT
    if replicates:
        columns = (np.ones(len(truth)), truth, np.where(fraud, amount, 0.0))
        arrays |= resampled(place, columns, unit, bins, replicates, seed)
        limits |= RESAMPLED
    return Sums(arrays, limits, len(truth))


def frauds_of(truth: Floats, score: Floats) -> NDArray[np.bool_]:
    """True for frauds."""
    if not np.isin(truth, (0.0, 1.0)).all():
        raise ModelError("detection: truth must be 0 or 1 in every row; recode the target")
    if not ((score >= 0) & (score <= 1)).all():
        raise ModelError(
            "detection: a score must be a probability, from 0 to 1, in every row; "
            "turn a score that only ranks into 1 / (1 + exp(-score))"
        )
    return np.asarray(truth == 1)


def counted(code: NDArray[np.int64], value: Floats | None, count: int) -> Floats:
    return np.bincount(code, value, count).astype(np.float64)


#: Limits of resamples: of two counts, and of an amount.
RESAMPLED = {"resampled": COUNT, "resampled_amount": SCORE}


def resampled(
    code: Codes,
    columns: tuple[Floats, Floats, Floats],
    unit: Floats,
    count: int,
    replicates: int,
    seed: list[int],
) -> dict[str, Floats]:
    """Two counts, (replicates, 2, count), and an amount, (replicates, count), of each resample of units,
    by code. columns: what each row adds, (rows,) each."""
    persons, person = np.unique(unit, return_inverse=True)
    rng = np.random.default_rng(seed)
    samples = np.empty((replicates, len(columns), count))
    for b in range(replicates):
        weight = rng.poisson(1.0, len(persons)).astype(np.float64)[person]
        samples[b] = [counted(code, weight * column, count) for column in columns]
    return {"resampled": samples[:, :2], "resampled_amount": samples[:, 2]}


def ranking_edges(coarse: Sums, edges: Floats, bins: int = BINS) -> Floats:
    """Edges, at most bins - 1, that are fine at the top of the ranking; from a coarse histogram.

    A quarter of the bins hold equal counts. The others cut shares of the top that fall
    geometrically to :data:`FINEST`, by default about twelve to each halving, since a budget is a
    small share of claims. Within a coarse bin the claims are taken as evenly spread; equal edges
    are merged, and no edge is made for less than one claim. Average precision comes out up to
    about a hundredth of itself below that of single claims, as claims of one bin are ties.

    A bin may hold a single claim: bins of few persons are joined before anybody sees them
    (`lab.privacy.joining`).
    """
    cumulative, even = from_top(coarse["rows"]), bins // 4
    shares = np.arange(1, even) / even
    tail = FINEST ** (np.arange(1, bins - even + 1) / (bins - even))
    ranks = np.maximum(np.concatenate([shares, tail]) * cumulative[-1], 1.0)
    bounds = np.concatenate([[edges[0] - 1], edges, [edges[-1] + 1]])
    return np.asarray(np.unique(np.interp(ranks, cumulative, bounds[::-1])))


def from_top(values: Floats) -> Floats:
    """Sums of the highest 0, 1, 2, … bins, along the last axis."""
    sums = np.cumsum(values[..., ::-1], axis=-1)
    return np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)


def ratio(part: Any, whole: Any) -> Any:
    """part / whole, not a number where there is nothing to divide by."""
    return np.divide(part, np.where(np.asarray(whole) > 0, whole, np.nan))


def average_precision(rows: Floats, fraud: Floats) -> float:
    """Mean over all frauds of the precision down to the fraud's bin.

    rows, fraud: (bins,) from the lowest score up. Points are not joined by lines, which promise
    precision that no threshold reaches (Davis & Goadrich, section 4). Not a number without
    frauds, 1 with frauds alone; a ranking at random has the share of frauds.

    One fraud in a top bin of frauds alone, one in the next, down to which half the claims are:

    >>> average_precision(rows=np.array([4.0, 3.0, 1.0]), fraud=np.array([0.0, 1.0, 1.0]))
    0.75
    """
    return float(_average_precisions(rows, fraud))


def _average_precisions(rows: Floats, fraud: Floats) -> Floats:
    """For each leading index."""
    precision = np.nan_to_num(ratio(from_top(fraud)[..., 1:], from_top(rows)[..., 1:]))
    total = (fraud[..., ::-1] * precision).sum(axis=-1)
    return np.asarray(ratio(total, fraud.sum(axis=-1)))


def roc_auc(rows: Floats, fraud: Floats) -> float:
    """The probability that a fraud ranks above an honest claim, with a half for ties.

    rows, fraud: (bins,) from the lowest score up. Not a number without frauds or without honest
    claims. Source: Fawcett, "An introduction to ROC analysis" (2006), section 7, by trapezoids.

    >>> round(roc_auc(rows=np.array([4.0, 3.0, 1.0]), fraud=np.array([0.0, 1.0, 1.0])), 4)
    0.9167
    """
    honest = rows - fraud
    below = np.cumsum(honest) - honest / 2
    return float(ratio(fraud @ below, fraud.sum() * honest.sum()))


def interval(sums: Sums, level: float = 0.95) -> tuple[float, float, float]:
    """(average precision, low, high), by percentiles of the resamples.

    Resamples without any fraud are left out; where none is left the limits are not a number. With
    few frauds it covers less than it says: 91 % instead of 95 % at 22 frauds in a simulation, 93 %
    at 260.
    """
    return percentiles(_with_resamples(sums), level)


def difference(model: Sums, other: Sums, level: float = 0.95) -> tuple[float, float, float]:
    """(difference, low, high) of average precision, model minus other, by paired percentiles.

    Both must be of the same rows, with the same seed and number of replicates.
    """
    return percentiles(_with_resamples(model) - _with_resamples(other), level)


def _with_resamples(sums: Sums) -> Floats:
    """Average precision of the sample itself, then of each resample."""
    one = np.stack([sums["rows"], sums["fraud"]])[None]
    samples = np.concatenate([one, sums.arrays.get("resampled", one[:0])])
    return _average_precisions(samples[:, 0], samples[:, 1])


def percentiles(values: Floats, level: float) -> tuple[float, float, float]:
    samples = values[1:][~np.isnan(values[1:])]
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail]) if len(samples) else (np.nan, np.nan)
    return float(values[0]), float(low), float(high)


@dataclass(frozen=True)
class Investigation:
    """What comes of investigating the claims that rank highest; amounts in yuan."""

    share: float
    investigated: float  # claims
    found: float  # frauds among them
    precision: float
    recall: float
    lift: float  # precision over the share of frauds in all claims
    saved: float  # amount of the frauds found
    cost: float
    net: float


def at_budget(sums: Sums, share: float, *, investigation_cost: float) -> Investigation:
    """What comes of investigating the top ``share`` of claims, for ``investigation_cost`` yuan each.

    Whole claims are investigated: the nearest number to the share, one at least. Where the budget cuts through a bin, the bin counts pro rata: what is expected when its claims
    are taken in random order. Every fraud investigated is taken as proved and its amount as saved.
    Raises :class:`ConfigurationError` unless 0 < share <= 1.

    A quarter of eight claims is two: the top bin and one of three in the next.

    >>> bins = {"rows": [4, 3, 1], "fraud": [0, 1, 1], "amount": [0, 300, 700], "expected": [0, 1, 1]}
    >>> arrays = {name: np.array(values, dtype=float) for name, values in bins.items()}
    >>> sums = Sums(arrays, dict.fromkeys(arrays, SCORE), rows=8)
    >>> result = at_budget(sums, 0.25, investigation_cost=100.0)
    >>> round(result.found, 2), round(result.precision, 2), round(result.saved), round(result.net)
    (1.33, 0.67, 800, 600)
    """
    if not 0 < share <= 1:
        raise ConfigurationError(f"a budget must be a share above 0 and at most 1, got {share:g}")
    rows, fraud = float(sums["rows"].sum()), float(sums["fraud"].sum())
    investigated = float(min(max(round(share * rows), 1), rows))
    part = np.array([investigated / rows if rows else 0.0])
    top = {name: float(values[0]) for name, values in _tops(sums, part).items()}
    precision = float(ratio(top["fraud"], investigated))
    cost = investigated * investigation_cost
    return Investigation(
        share=share,
        investigated=investigated,
        found=top["fraud"],
        precision=precision,
        recall=float(ratio(top["fraud"], fraud)),
        lift=float(ratio(precision * rows, fraud)),
        saved=top["amount"],
        cost=cost,
        net=top["amount"] - cost,
    )


def best_budget(sums: Sums, *, investigation_cost: float) -> tuple[float, float]:
    """(claims, net yuan): how many claims, from the top down to the end of a bin, save the most for
    ``investigation_cost`` yuan each; none where no number of them saves more than it costs.

    It is chosen on the rows that it is judged by, and so flatters.

    >>> bins = {"rows": [4, 3, 1], "amount": [0, 300, 700]}
    >>> arrays = {name: np.array(values, dtype=float) for name, values in bins.items()}
    >>> sums = Sums(arrays, dict.fromkeys(arrays, SCORE), rows=8)
    >>> best_budget(sums, investigation_cost=90.0), best_budget(sums, investigation_cost=200.0)
    ((4.0, 640.0), (1.0, 500.0))
    """
    rows = from_top(sums["rows"])
    net = from_top(sums["amount"]) - investigation_cost * rows
    best = int(np.argmax(net))
    return float(rows[best]), float(net[best])


def scores(sums: Sums, share: float, *, investigation_cost: float) -> dict[str, float]:
    """The headline scores of a ranking by name; see the functions they come from."""
    claims, net = best_budget(sums, investigation_cost=investigation_cost)
    precision, low, high = interval(sums)
    return {
        "average_precision": precision,
        "average_precision_low": low,
        "average_precision_high": high,
        "roc_auc": roc_auc(sums["rows"], sums["fraud"]),
        "frauds": float(sums["fraud"].sum()),
        "fraud_share": float(ratio(sums["fraud"].sum(), sums["rows"].sum())),
        "best_investigated": claims,
        "best_net": net,
    } | vars(at_budget(sums, share, investigation_cost=investigation_cost))


def _tops(sums: Sums, shares: Floats) -> dict[str, Floats]:
    """Sums over the top ``shares`` of claims, pro rata within a bin."""
    cumulative = from_top(sums["rows"])
    names = ("rows", "fraud", "amount", "expected")
    return {n: np.interp(shares * cumulative[-1], cumulative, from_top(sums[n])) for n in names}


def threshold_at(sums: Sums, edges: Floats, share: float) -> float:
    """The probability from which on about ``share`` of claims lie: that of the nearest bin edge, 0
    where all claims are in one bin."""
    if not len(edges):
        return 0.0
    above = from_top(sums["rows"])
    nearest = np.argmin(np.abs(above[1:-1] - share * above[-1]))
    return float(special.expit(edges[::-1][nearest]))


def calibration(sums: Sums, parts: int = 10) -> pd.DataFrame:
    """Frauds and expected frauds by tenths of the ranking; tenth 1 is the most suspicious.

    Columns rows, fraud, expected, ratio (fraud over expected, 1 is calibrated). A bin that lies
    in two tenths counts in both, pro rata.
    """
    tops = _tops(sums, np.linspace(0.0, 1.0, parts + 1))
    table = pd.DataFrame({name: np.diff(tops[name]) for name in ("rows", "fraud", "expected")})
    table.index = pd.RangeIndex(1, parts + 1, name="tenth")
    return table.assign(ratio=ratio(table["fraud"].to_numpy(), table["expected"].to_numpy()))


def precision_recall(sums: Sums) -> tuple[Floats, Floats]:
    """Precision and recall of stopping at each bin, from the top down; bins without rows left out.

    Draw them as steps: lines between the points promise too much (see `average_precision`).
    """
    has_rows = sums["rows"] > 0
    rows, fraud = (from_top(sums[name][has_rows])[1:] for name in ("rows", "fraud"))
    return ratio(fraud, rows), ratio(fraud, sums["fraud"].sum())


def lift_curve(sums: Sums) -> tuple[Floats, Floats]:
    """Share of claims investigated and lift, at the points of :func:`precision_recall`."""
    rows = sums["rows"][sums["rows"] > 0]
    share = np.asarray(ratio(from_top(rows)[1:], rows.sum()))
    return share, ratio(precision_recall(sums)[1], share)
