"""What a detector is worth beside another: differences of what single claims say, paired by person."""

from __future__ import annotations

import numpy as np
import pytest

from lab.scores import detection, groups, worth
from lab.sums import Floats, Sums

KINDS = ("none", "upcoding", "ring")
Claims = tuple[Floats, Floats, Floats, Floats, Floats]


def claims() -> Claims:
    """Truth, a good score, one at random, amounts and persons of 3,000 claims."""
    rng = np.random.default_rng(8)
    truth = (rng.random(3000) < 0.1).astype(float)
    good = np.round(0.02 + 0.9 * (0.5 * truth + 0.5 * rng.random(3000)), 3)
    return (
        truth,
        good,
        rng.random(3000).round(3),
        rng.uniform(100, 900, 3000),
        np.arange(3000) // 2.0,
    )


def ranked(rows: Claims, score: Floats, replicates: int = 50) -> Sums:
    truth, _, _, amount, unit = rows
    edges = np.log(np.arange(1, 1000) / np.arange(999, 0, -1))
    return detection.rank_sums(
        truth, score, amount, unit, edges=edges, replicates=replicates, seed=[3]
    )


def by_kind(rows: Claims, score: Floats) -> Sums:
    truth, _, _, amount, unit = rows
    codes = (truth * (1 + np.arange(len(truth)) % 2)).astype(np.int64)
    return groups.group_sums(
        truth, score, amount, unit, codes=codes, count=3, threshold=0.5, replicates=50, seed=[3]
    )


def test_net_savings_differ_by_what_the_claims_investigated_say() -> None:
    rows = claims()
    truth, good, _, amount, _ = rows
    saved = []
    for score in rows[1:3]:
        top = np.argsort(-score, kind="stable")[:300]
        saved.append((truth * amount)[top].sum())
    value, low, high = worth.net_difference(
        ranked(rows, good), ranked(rows, rows[2]), 0.1, investigation_cost=50.0
    )
    assert value == pytest.approx(saved[0] - saved[1], rel=0.03)  # claims of one score are ties
    assert 0 < low < value < high


def test_a_detector_is_worth_nothing_beside_itself() -> None:
    rows = claims()
    one = ranked(rows, rows[1])
    assert worth.net_difference(one, one, 0.05, investigation_cost=10.0) == (0.0, 0.0, 0.0)
    table = worth.found_differences(by_kind(rows, rows[1]), by_kind(rows, rows[1]), KINDS)
    assert not table[["difference", "low", "high"]].to_numpy().any()


def test_kinds_differ_by_the_frauds_flagged_of_each() -> None:
    rows = claims()
    truth, good, random, amount, _ = rows
    table = worth.found_differences(by_kind(rows, good), by_kind(rows, random), KINDS)
    assert list(table["typology"].unique()) == ["upcoding", "ring"]  # honest claims are no kind
    lines = table.set_index(["typology", "measure"])
    for at, kind in enumerate(("upcoding", "ring")):
        own = (truth == 1) & (np.arange(len(truth)) % 2 == at)
        found = [(score[own] >= 0.5).mean() for score in (good, random)]
        saved = [amount[own & (score >= 0.5)].sum() for score in (good, random)]
        for measure, (ours, theirs) in (("recall", found), ("saved", saved)):
            line = lines.loc[(kind, measure)]
            assert line["difference"] == pytest.approx(ours - theirs)
            assert line["low"] < line["difference"] < line["high"]


def test_without_resamples_there_is_no_interval() -> None:
    rows = claims()
    one, other = (ranked(rows, score, replicates=0) for score in rows[1:3])
    value, low, high = worth.net_difference(one, other, 0.1, investigation_cost=0.0)
    assert value > 0 and np.isnan([low, high]).all()
