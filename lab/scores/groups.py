"""Who is flagged, by group: fairness between groups of persons, and frauds found by their kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lab.privacy.joining import behind
from lab.scores.detection import RESAMPLED, Codes, counted, frauds_of, resampled
from lab.sums import COUNT, SCORE, Floats, Sums

#: Rates of a group: what is counted, among what.
RATES = {
    "flagged_share": ("flagged", "rows"),
    "recall": ("flagged_fraud", "fraud"),
    "false_positive_rate": ("flagged_honest", "honest"),
    "precision": ("flagged_fraud", "flagged"),
}


def group_sums(
    truth: Floats,
    score: Floats,
    amount: Floats,
    unit: Floats,
    *,
    codes: Codes,
    count: int,
    threshold: float,
    replicates: int = 0,
    seed: list[int] | None = None,
) -> Sums:
    """Claims by group when every score of at least ``threshold``, a probability, is flagged.

    truth, score, amount, unit: as in :func:`rank_sums`. codes: (rows,) 0 to count - 1, or -1 for a row
    that is left out; groups of persons, or typologies of fraud. ``rows``, ``fraud``, ``flagged``,
    ``flagged_fraud`` and ``saved`` (amount of flagged frauds, yuan) have shape (count,); with replicates,
    ``resampled`` holds frauds and flagged frauds, and ``resampled_amount`` what was saved, of each resample.

    Raises :class:`ModelError` as :func:`rank_sums` does.
    """
    member = codes >= 0
    fraud, flag, code = frauds_of(truth, score)[member], score[member] >= threshold, codes[member]
    hit = fraud & flag
    arrays = {
        "rows": counted(code, None, count),
        "fraud": counted(code[fraud], None, count),
        "flagged": counted(code[flag], None, count),
        "flagged_fraud": counted(code[hit], None, count),
        "saved": counted(code[hit], amount[member][hit], count),
        **behind(code, unit[member], count),
    }
    limits = dict.fromkeys(arrays, COUNT) | {"saved": SCORE}
    if replicates:
        saved: Floats = np.where(hit, amount[member], 0.0)
        counts = fraud.astype(np.float64), hit.astype(np.float64)
        arrays |= resampled(code, (*counts, saved), unit[member], count, replicates, seed or [])
        limits |= RESAMPLED
    return Sums(arrays, limits, len(code))


def fairness(sums: Sums, levels: Sequence[str], smallest: int = 10) -> pd.DataFrame:
    """The :data:`RATES` of each group, with difference and ratio to the group of most rows.

    Equal recall is equal opportunity with fraud as the outcome, and with equal false-positive
    rates, which are what honest claimants feel, equalised odds (Hardt, Price & Srebro, "Equality
    of opportunity in supervised learning", 2016, section 2). A ratio below 4/5, or above 5/4 as being
    flagged is no favour, asks for a look; the four-fifths rule itself (29 CFR 1607.4 D) compares
    with the most favoured group.

    A group of fewer than ``smallest`` rows is not a number throughout, and so is a rate among
    fewer than ``smallest`` claims (recall: frauds; false positives: honest; precision: flagged).
    That keeps chance from being read as a finding; what may be opened is decided elsewhere.
    """
    counts = _table(sums, levels, "group")
    counts["honest"] = counts["rows"] - counts["fraud"]
    counts["flagged_honest"] = counts["flagged"] - counts["flagged_fraud"]
    largest = int(np.argmax(sums["rows"]))
    table = counts[["rows", "fraud"]].where(counts["rows"] >= smallest)
    for rate, (part, whole) in RATES.items():
        table[rate] = (counts[part] / counts[whole]).where(counts[whole] >= smallest)
    for rate in RATES:
        reference = float(table[rate].iloc[largest])
        table[f"{rate}_difference"] = table[rate] - reference
        table[f"{rate}_ratio"] = table[rate] / (reference if reference > 0 else np.nan)
    return table


def by_typology(sums: Sums, levels: Sequence[str], smallest: int = 10) -> pd.DataFrame:
    """Frauds, those flagged, recall and the amount saved (yuan) of each typology of fraud.

    Not a number for a typology of fewer than ``smallest`` frauds.
    """
    counts = _table(sums, levels, "typology")
    columns = ["fraud", "flagged_fraud", "saved"]
    table = counts[columns].where(counts["fraud"] >= smallest)
    table = table.rename(columns={"flagged_fraud": "found"})
    table.insert(2, "recall", table["found"] / table["fraud"])
    return table


def _table(sums: Sums, levels: Sequence[str], name: str) -> pd.DataFrame:
    counts = {key: array for key, array in sums.arrays.items() if array.shape == (len(levels),)}
    return pd.DataFrame(counts, index=pd.Index(list(levels), name=name))
