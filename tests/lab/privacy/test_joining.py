"""Cells of few persons are joined by a public rule, and nothing is lost by it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lab.privacy import joining
from lab.sums import COUNT, Sums

PERSONS = st.lists(st.integers(0, 30), min_size=1, max_size=60)


@given(PERSONS, st.integers(1, 20))
def test_joined_neighbours_have_enough_persons_where_all_together_have(
    persons: list[int], least: int
) -> None:
    counts = np.array(persons, dtype=float)
    joined = joining.in_order(counts, least)
    assert (np.diff(joined) >= 0).all() and (np.diff(joined) <= 1).all()
    sizes = np.bincount(joined, counts)
    assert sizes.sum() == counts.sum()
    assert len(sizes) == 1 or sizes.min() >= least


@given(PERSONS, st.integers(1, 20))
def test_joined_levels_have_nobody_or_enough_where_all_together_have(
    persons: list[int], least: int
) -> None:
    counts = np.array(persons, dtype=float)
    joined, names = joining.of_levels(counts, [str(k) for k in range(len(counts))], least)
    sizes = np.bincount(joined, counts, len(names))
    assert len(names) == len(sizes) and sizes.sum() == counts.sum()
    if counts.sum() >= least:
        assert all(size == 0 or size >= least for size in sizes)


def test_a_person_counts_once_in_a_cell_of_a_party() -> None:
    group, unit = np.array([0, 0, 1, 1, 1]), np.array([7.0, 7, 7, 8, 8])
    assert joining.persons_by(group, unit, 3).tolist() == [1, 2, 0]


def test_persons_of_too_few_parties_count_for_nothing_whatever_they_are_joined_with() -> None:
    group = np.array([0, 0, 1, 1, 1, 2])
    unit = np.array([1.0, joining.HOME + 1, 1, 2, 3, 1])
    behind = joining.behind(group, unit, 4)
    assert behind["persons"].tolist() == [2, 3, 1, 0]
    assert behind["parties"].tolist() == [2, 1, 1, 0]
    sums = Sums(behind, dict.fromkeys(behind, COUNT), 6)
    assert joining.by_parties(sums, 1).tolist() == [2, 3, 1, 0]
    counted = joining.by_parties(sums, 2)
    assert counted[[0, 3]].tolist() == [2, 0] and (counted[1:3] > 0).all()
    assert joining.in_order(counted, 2).tolist() == [0, 0, 0, 0]
    assert joining.of_levels(counted, ["a", "b", "c", "d"], 2)[1] == ("d", "(rare)")
    assert "parties" not in joining.apply(sums, np.zeros(4, dtype=np.int64)).arrays


def test_resamples_are_joined_like_the_sample() -> None:
    arrays = {"rows": np.arange(4.0), "resampled": np.arange(16.0).reshape(2, 2, 4)}
    sums = joining.apply(Sums(arrays, dict.fromkeys(arrays, COUNT), 6), np.array([0, 0, 1, 1]))
    assert sums["rows"].tolist() == [1, 5]
    assert sums["resampled"].tolist() == [[[1, 5], [9, 13]], [[17, 21], [25, 29]]]
