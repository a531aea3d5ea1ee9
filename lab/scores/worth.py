"""What one detector finds and saves more than another at the same budget, with intervals.

Both are judged on the same rows by the same resamples of persons (`lab.scores.detection`), so that
differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lab.scores.detection import from_top, percentiles, ratio
from lab.sums import Floats, Sums


def net_difference(
    model: Sums, other: Sums, share: float, *, investigation_cost: float
) -> tuple[float, float, float]:
    """(difference, low, high) in net savings of investigating the top ``share`` of claims, model minus other.

    model, other: of `rank_sums` over the same rows, with the same seed and number of replicates.

    Half of the claims are investigated; one detector ranks the fraud of 700 first, the other last:

    >>> from lab.sums import COUNT, SCORE
    >>> def sums(amount):
    ...     arrays = {"rows": [1, 1], "fraud": [0.5, 0.5], "amount": amount}
    ...     limits = {"rows": COUNT, "fraud": COUNT, "amount": SCORE}
    ...     return Sums({k: np.array(v, dtype=float) for k, v in arrays.items()}, limits, 2)
    >>> net_difference(sums([0, 700]), sums([700, 0]), 0.5, investigation_cost=100.0)[0]
    700.0
    """
    nets = [_net(sums, share, investigation_cost) for sums in (model, other)]
    return percentiles(nets[0] - nets[1], 0.95)


def _net(sums: Sums, share: float, cost: float) -> Floats:
    """Net savings of the sample itself, then of each resample."""
    rows, amount = sums["rows"][None], sums["amount"][None]
    if "resampled" in sums.arrays:
        rows = np.concatenate([rows, sums["resampled"][:, 0]])
        amount = np.concatenate([amount, sums["resampled_amount"]])
    net = np.empty(len(rows))
    for b, (claims, saved) in enumerate(zip(from_top(rows), from_top(amount), strict=True)):
        investigated = min(max(round(share * claims[-1]), 1), claims[-1])
        net[b] = np.interp(investigated, claims, saved) - cost * investigated
    return net


def found_differences(
    model: Sums, other: Sums, typologies: Sequence[str], smallest: int = 10
) -> pd.DataFrame:
    """For each typology of at least ``smallest`` frauds, in the share found and in the amount saved (yuan),
    model minus other: columns typology, measure (``recall`` or ``saved``), difference, low, high.

    model, other: of `group_sums` by typology over the same rows, with the same seed and replicates.
    """
    rows = [
        (typology, measure, *percentiles(values, 0.95))
        for at, typology in enumerate(typologies)
        if model["fraud"][at] >= smallest
        for measure, values in _of_typology(model, other, at).items()
    ]
    return pd.DataFrame(rows, columns=["typology", "measure", "difference", "low", "high"])


def _of_typology(model: Sums, other: Sums, at: int) -> dict[str, Floats]:
    """Differences of the sample itself, then of each resample."""
    (recall, saved), (recall_there, saved_there) = (_found(sums, at) for sums in (model, other))
    return {"recall": recall - recall_there, "saved": saved - saved_there}


def _found(sums: Sums, at: int) -> tuple[Floats, Floats]:
    """Recall and amount saved of one typology: of the sample itself, then of each resample."""
    fraud, found, saved = (sums[name][at : at + 1] for name in ("fraud", "flagged_fraud", "saved"))
    if "resampled" in sums.arrays:
        fraud = np.append(fraud, sums["resampled"][:, 0, at])
        found = np.append(found, sums["resampled"][:, 1, at])
        saved = np.append(saved, sums["resampled_amount"][:, at])
    return np.asarray(ratio(found, fraud)), saved
