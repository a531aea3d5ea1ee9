"""Scores of a fraud detector made from sums equal scores made from rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from lab.errors import ConfigurationError, ModelError
from lab.scores import detection, groups
from lab.scores.detection import Sums
from lab.sums import COUNT, SCORE, Floats, combine

#: Four bins, cut at probabilities of 0.25, 0.5 and 0.75.
CUTS = np.log([1 / 3, 1.0, 3.0])
Claims = tuple[Floats, Floats, Floats, Floats]
CLAIMS = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 9), st.integers(0, 5)),
    min_size=1,
    max_size=60,
)


def claims(n: int = 6000, seed: int = 0) -> Claims:
    """Truth, score, whole yuan, and persons of three claims; about 4 % are frauds."""
    rng = np.random.default_rng(seed)
    score = expit(rng.normal(-4.0, 1.5, n))
    truth = (rng.random(n) < score).astype(float)
    return truth, score, np.round(rng.gamma(2, 2000, n)), np.arange(n) // 3.0


def ranked(rows: Claims, edges: Floats = CUTS, replicates: int = 0, seed: int = 1) -> Sums:
    return detection.rank_sums(*rows, edges=edges, replicates=replicates, seed=[seed, 2])


def fine(rows: Claims, replicates: int = 0) -> Sums:
    edges = detection.ranking_edges(ranked(rows, detection.GRID), detection.GRID)
    return ranked(rows, edges, replicates)


def part(rows: Claims, keep: NDArray[np.bool_]) -> Claims:
    truth, score, amount, unit = (column[keep] for column in rows)
    return truth, score, amount, unit


def drawn(listed: list[tuple[int, int, int, int]]) -> tuple[Claims, Floats, NDArray[np.int64]]:
    """Claims with many ties, edges between their scores, and the owner of each."""
    truth, level, amount, owner = np.array(listed).T
    rows = (truth.astype(float), expit(level - 3.0), amount.astype(float), owner // 2.0)
    return rows, np.arange(-2.5, 3.0), owner % 3


@settings(max_examples=60, deadline=None)
@given(CLAIMS)
def test_scores_from_bins_are_those_of_scikit_learn(
    listed: list[tuple[int, int, int, int]],
) -> None:
    rows, edges, _ = drawn([*listed, (0, 2, 0, 0), (1, 3, 1, 0)])
    sums = ranked(rows, edges)
    truth, score = rows[:2]
    found = sums["rows"], sums["fraud"]
    expected = average_precision_score(truth, score), roc_auc_score(truth, score)
    assert detection.average_precision(*found) == pytest.approx(expected[0], abs=1e-12)
    assert detection.roc_auc(*found) == pytest.approx(expected[1], abs=1e-12)
    precision, recall, _ = precision_recall_curve(truth, score)
    curve = detection.precision_recall(sums)
    np.testing.assert_allclose(curve, (precision[-2::-1], recall[-2::-1]), atol=1e-12)
    share, lift = detection.lift_curve(sums)
    np.testing.assert_allclose(lift * truth.mean(), curve[0], atol=1e-12)
    assert share[-1] == 1 and lift[-1] == pytest.approx(1, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(CLAIMS)
@example([(1, 3, 2, 1)])
def test_sums_over_any_split_are_the_pooled_sums(listed: list[tuple[int, int, int, int]]) -> None:
    rows, edges, owner = drawn(listed)
    parts = [part(rows, owner == k) for k in range(3)]
    pooled, together = ranked(rows, edges), combine([ranked(p, edges) for p in parts])
    for name in ("rows", "fraud", "amount"):
        np.testing.assert_array_equal(together[name], pooled[name])
    np.testing.assert_allclose(together["expected"], pooled["expected"], rtol=1e-12)
    assert together.rows == pooled.rows == len(listed)


def test_a_party_without_rows_contributes_zeros() -> None:
    rows, edges = claims(), detection.GRID
    nothing = part(rows, np.zeros(6000, dtype=bool))
    whole, empty = ranked(rows, edges, 3), ranked(nothing, edges, 3)
    assert not any(array.any() for array in empty.arrays.values()) and empty.rows == 0
    assert {name for name, limit in empty.limits.items() if limit == SCORE} == {
        "amount",
        "expected",
        "resampled_amount",
    }
    total = combine([whole, empty])
    assert all((total[name] == whole[name]).all() for name in whole.arrays)
    flags = groups.group_sums(
        *nothing[:4], codes=np.array([], dtype=np.int64), count=2, threshold=0.5
    )
    assert not any(array.any() for array in flags.arrays.values()) and flags.rows == 0


@pytest.mark.parametrize("truth", [np.zeros(5), np.zeros(0)])
def test_without_frauds_scores_are_not_numbers(truth: Floats) -> None:
    rows = (truth, np.linspace(0, 1, len(truth)), truth, np.arange(len(truth), dtype=float))
    sums = ranked(rows, replicates=4)
    assert np.isnan(detection.average_precision(sums["rows"], sums["fraud"]))
    assert np.isnan(detection.roc_auc(sums["rows"], sums["fraud"]))
    assert np.isnan([detection.interval(sums), detection.difference(sums, sums)]).all()
    assert np.isnan(detection.precision_recall(sums)[1]).all()
    assert np.isnan(detection.lift_curve(sums)[1]).all()
    found = detection.at_budget(sums, 0.5, investigation_cost=1.0)
    assert np.isnan([found.recall, found.lift]).all() and found.found == 0
    assert detection.calibration(sums)["fraud"].sum() == 0


def test_with_frauds_alone_precision_is_one_and_there_is_no_auc() -> None:
    ones = np.ones(4)
    sums = ranked((ones, np.array([0.0, 0.3, 0.6, 1.0]), ones, ones))
    assert detection.average_precision(sums["rows"], sums["fraud"]) == 1
    assert np.isnan(detection.roc_auc(sums["rows"], sums["fraud"]))


def test_certain_scores_lie_in_the_outer_bins_and_a_bin_holds_its_lower_edge() -> None:
    score = np.array([0.0, 0.5, 1.0])
    sums = ranked((np.ones(3), score, np.ones(3), np.ones(3)))
    assert sums["rows"].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("score", [np.array([0.2, 1.5]), np.array([-0.1, 0.2]), np.array([np.nan])])
def test_a_score_that_is_no_probability_is_refused(score: Floats) -> None:
    zeros = np.zeros(len(score))
    with pytest.raises(ModelError, match="must be a probability") as refused:
        ranked((zeros, score, zeros, zeros))
    assert "1.5" not in str(refused.value)
    with pytest.raises(ModelError, match="truth must be 0 or 1"):
        ranked((zeros + 2, zeros, zeros, zeros))


def test_the_amount_of_an_honest_claim_is_not_read() -> None:
    amount = np.array([np.nan, 7.0])
    sums = ranked((np.array([0.0, 1.0]), np.array([0.9, 0.9]), amount, amount))
    assert sums["amount"].sum() == 7


def test_edges_cut_small_budgets_finely_and_keep_the_scores_of_rows() -> None:
    rows = claims(100_000)
    sums = fine(rows)
    truth, score, amount, _ = rows
    assert len(sums["rows"]) <= detection.BINS
    order = np.argsort(-score)
    for share in (0.1, 0.01, 0.001):
        top = order[: round(share * 100_000)]
        found = detection.at_budget(sums, share, investigation_cost=0)
        assert found.found == pytest.approx(truth[top].sum(), rel=0.02)
        assert found.saved == pytest.approx((truth * amount)[top].sum(), rel=0.05)
        reached = np.cumsum(sums["rows"][::-1]) / 100_000
        assert np.abs(reached / share - 1).min() < 0.06
    by_rows = average_precision_score(truth, score), roc_auc_score(truth, score)
    assert detection.average_precision(sums["rows"], sums["fraud"]) == pytest.approx(
        by_rows[0], rel=0.015
    )
    assert detection.roc_auc(sums["rows"], sums["fraud"]) == pytest.approx(by_rows[1], abs=3e-4)


def test_edges_of_equal_place_are_merged() -> None:
    few = fine((np.array([0.0, 1.0]), np.array([0.4, 0.6]), np.ones(2), np.ones(2)))
    assert few["rows"].sum() == 2 and len(few["rows"]) < 80
    empty = detection.ranking_edges(ranked(part(claims(), np.zeros(6000, bool))), CUTS)
    assert len(empty) == 1


@settings(max_examples=60, deadline=None)
@given(CLAIMS, st.lists(st.floats(0.01, 1), min_size=2, max_size=2).map(sorted))
def test_a_larger_budget_finds_no_less_and_the_whole_finds_all(
    listed: list[tuple[int, int, int, int]], shares: list[float]
) -> None:
    rows, edges, _ = drawn(listed)
    sums = ranked(rows, edges)
    less, more, whole = (
        detection.at_budget(sums, share, investigation_cost=1.0) for share in (*shares, 1.0)
    )
    assert less.found <= more.found + 1e-9 and less.saved <= more.saved + 1e-9
    assert less.investigated == max(1, round(shares[0] * len(listed)))
    assert (whole.investigated, whole.found) == (len(listed), rows[0].sum())
    assert whole.saved == (rows[0] * rows[2]).sum()
    if whole.found:
        assert (whole.recall, whole.lift) == (1, pytest.approx(1))


BINNED = Sums(
    {
        "rows": np.array([60.0, 0.0, 30.0, 10.0]),
        "fraud": np.array([1.0, 0.0, 3.0, 4.0]),
        "amount": np.array([500.0, 0.0, 9000.0, 8000.0]),
        "expected": np.array([2.0, 0.0, 3.0, 5.0]),
    },
    {"rows": COUNT, "fraud": COUNT, "amount": SCORE, "expected": SCORE},
    100,
)


def test_money_of_a_budget_by_hand() -> None:
    """A fifth of 100 claims is the top bin of 10, and 10 of the 30 in the next."""
    found = detection.at_budget(BINNED, 0.2, investigation_cost=300.0)
    assert (found.share, found.investigated, found.found) == (0.2, 20, 5)
    assert found.precision == pytest.approx(0.25)
    assert found.recall == pytest.approx(5 / 8)
    assert found.lift == pytest.approx(0.25 / 0.08)
    assert (found.saved, found.cost, found.net) == (11_000, 6_000, 5_000)


def test_a_budget_pays_for_whole_claims() -> None:
    """168 claims of 16,785 at 300 each cost 50,400, not 50,355."""
    arrays = {name: np.array([16_785.0]) for name in BINNED.arrays}
    sums = Sums(arrays, dict(BINNED.limits), 16_785)
    whole = detection.at_budget(sums, 0.01, investigation_cost=300.0)
    assert (whole.investigated, whole.cost) == (168, 50_400)


@pytest.mark.parametrize(("cost", "claims"), [(0.0, 100), (100.0, 40), (700.0, 10), (801.0, 0)])
def test_the_best_budget_ends_where_a_bin_saves_less_than_it_costs(
    cost: float, claims: int
) -> None:
    investigated, net = detection.best_budget(BINNED, investigation_cost=cost)
    assert investigated == claims
    saved = {0: 0, 10: 8000, 40: 17_000, 100: 17_500}[claims]
    assert net == saved - claims * cost


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_budget_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigurationError, match="a share above 0 and at most 1"):
        detection.at_budget(BINNED, share, investigation_cost=300.0)


def test_tenths_by_hand() -> None:
    table = detection.calibration(BINNED)
    assert table.loc[1].tolist() == [10, 4, 5, 0.8]
    assert table.loc[2].tolist() == pytest.approx([10, 1, 1, 1])
    assert table["rows"].tolist() == pytest.approx([10] * 10)
    assert table["expected"].sum() == pytest.approx(10)


def test_a_threshold_flags_the_budget_it_was_taken_for() -> None:
    rows = claims(50_000)
    edges = detection.ranking_edges(ranked(rows, detection.GRID), detection.GRID)
    sums = ranked(rows, edges)
    threshold = detection.threshold_at(sums, edges, 0.01)
    flags = groups.group_sums(
        *rows[:4], codes=np.zeros(50_000, dtype=np.int64), count=1, threshold=threshold
    )
    flagged = flags.total("flagged")
    assert flagged == pytest.approx(500, rel=0.05)
    there = detection.at_budget(sums, flagged / 50_000, investigation_cost=1.0)
    assert flags.total("flagged_fraud") == pytest.approx(there.found, abs=1e-6)
    assert flags.total("saved") == pytest.approx(there.saved, rel=1e-9)


def test_resamples_are_reproducible_and_of_whole_persons() -> None:
    rows = claims(600)
    one, again, other = (ranked(rows, replicates=20, seed=seed) for seed in (1, 1, 9))
    np.testing.assert_array_equal(one["resampled"], again["resampled"])
    assert one["resampled"].shape == (20, 2, 4) and (one["resampled"] != other["resampled"]).any()
    truth, score, amount, unit = (np.repeat(column, 2) for column in rows)
    twice = ranked((truth, score, amount, unit), replicates=20)
    np.testing.assert_array_equal(twice["resampled"], 2 * one["resampled"])


def test_a_resample_is_the_sample_with_the_weights_of_its_persons() -> None:
    truth, score, amount, unit = claims(600)
    sums = ranked((truth, score, amount, unit), replicates=1)
    weight = np.random.default_rng([1, 2]).poisson(1.0, 200)[unit.astype(int)]
    tied = np.searchsorted(CUTS, np.log(score / (1 - score)), side="right")
    expected = average_precision_score(truth, tied, sample_weight=weight)
    rows, fraud = sums["resampled"][0]
    assert detection.average_precision(rows, fraud) == pytest.approx(expected, abs=1e-12)
    assert "resampled" not in ranked((truth, score, amount, unit)).arrays


def test_resamples_of_two_models_are_paired() -> None:
    truth, score, amount, unit = claims()
    shuffled = np.random.default_rng(5).permutation(score)
    model = fine((truth, score, amount, unit), 100)
    worse = fine((truth, shuffled, amount, unit), 100)
    np.testing.assert_array_equal(model["resampled"].sum(axis=2), worse["resampled"].sum(axis=2))
    assert detection.difference(model, model) == (0, 0, 0)
    difference, low, high = detection.difference(model, worse)
    assert 0 < low < difference < high
    assert detection.interval(model)[0] - detection.interval(worse)[0] == difference


def test_an_interval_is_of_percentiles_of_resamples_that_hold_a_fraud() -> None:
    sums = ranked(claims(90), replicates=200)
    assert (sums["resampled"][:, 1].sum(axis=1) == 0).any()
    precisions = [detection.average_precision(*both) for both in sums["resampled"]]
    sample = detection.average_precision(sums["rows"], sums["fraud"])
    expected = (sample, *np.nanquantile(precisions, [0.1, 0.9]))
    assert detection.interval(sums, level=0.8) == pytest.approx(expected, rel=1e-12)


def test_an_interval_covers_about_as_often_as_it_says() -> None:
    """Persons file the same claim three times, so that rows taken singly would promise too much."""

    def covers(unit: Floats, rows: Claims) -> bool:
        truth, score, amount, _ = (np.repeat(column, 3) for column in rows)
        _, low, high = detection.interval(ranked((truth, score, amount, unit), edges, 120))
        return low <= expected <= high

    edges = np.linspace(-8.0, 1.0, 40)
    big = ranked(claims(400_000, seed=99), edges)
    expected = detection.average_precision(big["rows"], big["fraud"])
    samples = [claims(1500, seed=seed) for seed in range(60)]
    by_person = sum(covers(np.arange(4500) // 3.0, rows) for rows in samples)
    by_row = sum(covers(np.arange(4500.0), rows) for rows in samples)
    assert 52 <= by_person <= 60
    assert by_row < by_person - 3


TRUTH = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 1.0])
FLAGGED = np.array([1, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1.0])
CODES = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, -1])


def grouped(keep: NDArray[np.bool_] | None = None) -> Sums:
    kept = np.ones(12, dtype=bool) if keep is None else keep
    columns = TRUTH[kept], 0.3 + 0.2 * FLAGGED[kept], 100.0 * np.arange(1, 13)[kept]
    return groups.group_sums(
        *columns, np.flatnonzero(kept) * 1.0, codes=CODES[kept], count=3, threshold=0.5
    )


def test_groups_by_hand() -> None:
    left = np.arange(12) % 2 == 0
    sums = combine([grouped(left), grouped(~left)])
    assert sums.rows == 11
    assert {name: array.tolist() for name, array in sums.arrays.items()} == {
        "rows": [7, 4, 0],
        "fraud": [3, 2, 0],
        "flagged": [3, 2, 0],
        "flagged_fraud": [2, 1, 0],
        "saved": [300, 800, 0],
        "persons": [7, 4, 0],
        "parties": [2, 2, 0],
    }


def test_fairness_by_hand() -> None:
    table = groups.fairness(grouped(), ("city", "county", "abroad"), smallest=2)
    rates = ["rows", "fraud", *groups.RATES]
    assert table.loc["city", rates].tolist() == [7, 3, 3 / 7, 2 / 3, 1 / 4, 2 / 3]
    assert table.loc["county", rates].tolist() == [4, 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2]
    assert table.loc["abroad"].isna().all()
    assert table.loc["county", "recall_difference"] == pytest.approx(-1 / 6)
    assert table.loc["county", "recall_ratio"] == pytest.approx(3 / 4)
    assert table.loc["county", "false_positive_rate_ratio"] == pytest.approx(2)
    assert (table.loc["city", [f"{rate}_ratio" for rate in groups.RATES]] == 1).all()


def test_few_rows_or_frauds_show_no_rate() -> None:
    table = groups.fairness(grouped(), ("city", "county", "abroad"), smallest=4)
    assert np.isnan(table.loc["city", "recall"]) and table.loc["city", "rows"] == 7
    assert table.loc["city", "false_positive_rate"] == 1 / 4
    assert np.isnan(table.loc["county", "false_positive_rate"]) and table.loc["county", "rows"] == 4
    assert table.loc["county", "flagged_share_ratio"] == pytest.approx(7 / 6)
    assert groups.fairness(grouped(), "abc").isna().all(axis=None)
    assert groups.fairness(grouped(), "abc", smallest=0).loc["c", "rows"] == 0


def test_a_rate_of_nothing_has_no_ratio() -> None:
    truth, score = np.zeros(40), np.repeat([0.1, 0.9], 20)
    sums = groups.group_sums(
        truth, score, truth, np.arange(40.0), codes=np.repeat([0, 1], 20), count=2, threshold=0.5
    )
    table = groups.fairness(sums, ("a", "b"))
    assert table["flagged_share_difference"].tolist() == [0, 1]
    assert table["flagged_share_ratio"].isna().all()


def test_recall_by_typology_by_hand() -> None:
    table = groups.by_typology(grouped(), ("phantom", "upcoding", "ring"), smallest=2)
    assert table.loc["phantom"].tolist() == [3, 2, 2 / 3, 300]
    assert table.loc["upcoding"].tolist() == [2, 1, 1 / 2, 800]
    assert table.loc["ring"].isna().all()
    fewer = groups.by_typology(grouped(), ("phantom", "upcoding", "ring"), smallest=3)
    assert fewer["recall"].notna().tolist() == [True, False, False]
    assert groups.by_typology(grouped(), "abc").isna().all(axis=None)


def test_claims_of_one_bin_are_flagged_together() -> None:
    sums = Sums({"rows": np.array([12.0])}, {"rows": COUNT}, 12)
    assert detection.threshold_at(sums, np.array([]), 0.01) == 0.0
