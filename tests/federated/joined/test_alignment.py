"""A pair's alignment: what each side learns of its own rows, over every way and table."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated.joined.alignment import Agreement, Alignment, Learns, advance, aligned, begin
from lab.errors import ConfigurationError, ContractError
from lab.tables.identifiers import KeyTexts, key_texts
from secure_agg.errors import FaultyParty, LayoutMismatch

WAYS: tuple[Learns, ...] = ("hidden", "both", "insurer", "fund", "size")


def counted(seed: int = 0) -> Callable[[int], bytes]:
    """Bytes that are the same in each run, none twice."""
    drawn = iter(range(10**6))
    return lambda size: hashlib.shake_256(f"{seed} {next(drawn)}".encode()).digest(size)


def both(insurer: list[str], fund: list[str], learns: Learns, cap: int = 12):
    return aligned(insurer, fund, learns, cap, counted())


def pairs(mine: Alignment, theirs: Alignment) -> set[tuple[int, int]]:
    """(row, row) of the two tables that stand in one row of the spine."""
    others = {int(place): row for row, place in enumerate(theirs.place) if place >= 0}
    return {
        (row, others[int(place)]) for row, place in enumerate(mine.place) if int(place) in others
    }


persons = st.lists(st.integers(0, 9).map(str), unique=True, max_size=8)


@given(insurer=persons, fund=persons, learns=st.sampled_from(WAYS))
@settings(max_examples=40, deadline=None)
def test_rows_meet_where_their_identifiers_are_equal(
    insurer: list[str], fund: list[str], learns: Learns
) -> None:
    mine, theirs = both(insurer, fund, learns)
    right = {(i, fund.index(p)) for i, p in enumerate(insurer) if p in fund}
    assert pairs(mine, theirs) == (set() if learns == "size" else right)
    assert mine.size == theirs.size
    assert mine.size == (len(right) if learns in ("both", "size") else 24 - len(right))
    for role, result, own, other in (
        ("insurer", mine, insurer, fund),
        ("fund", theirs, fund, insurer),
    ):
        if learns in ("both", role):
            assert result.common is not None
            assert result.common.tolist() == [person in other for person in own]
        else:
            assert result.common is None


@pytest.mark.parametrize("learns", WAYS)
@pytest.mark.parametrize(("insurer", "fund"), [([], ["a"]), (["a"], []), ([], [])])
def test_where_a_side_is_empty_nobody_is_common(
    learns: Learns, insurer: list[str], fund: list[str]
) -> None:
    mine, theirs = both(insurer, fund, learns)
    assert pairs(mine, theirs) == set()
    assert (len(mine.place), len(theirs.place)) == (len(insurer), len(fund))
    assert mine.size == (0 if learns in ("both", "size") else 24)


def test_rows_without_an_identifier_take_no_part() -> None:
    mine, theirs = aligned(["a", None, "", "b"], [None, "b", "c"], "both", 4, counted())
    assert pairs(mine, theirs) == {(3, 1)}
    assert mine.place.tolist() == [-1, -1, -1, 0]
    hidden, _ = aligned(["a", None, "", "b"], [None, "b", "c"], "hidden", 4, counted())
    assert (hidden.place >= 0).tolist() == [True, False, False, True]


def test_identifiers_may_be_numbers_here_and_texts_there() -> None:
    mine, theirs = aligned(
        np.array([3, 1, 2]), pd.Series([" 2", "３"], index=[7, 8]), "both", 4, counted()
    )
    assert pairs(mine, theirs) == {(0, 1), (2, 0)}


def test_repeated_identifiers_are_refused_at_the_side_that_has_them() -> None:
    with pytest.raises(ContractError, match="fund: 2 rows share a value"):
        both(["a"], ["b", "b"], "hidden")


def test_a_table_larger_than_the_cap_is_refused_without_its_size() -> None:
    with pytest.raises(LayoutMismatch, match="insurer has more identifiers than the cap of 2"):
        both(["a", "b", "c"], ["a"], "both", cap=2)


# Keys one after another.


def keys_of(rows: list[tuple[str, str, str]], where: str) -> tuple[KeyTexts, ...]:
    table = pd.DataFrame(rows, columns=["id", "name", "born"])
    return key_texts(table, [["id"], ["name", "born"]], None, where)


INSURED = [("1", "Li", "1980"), ("", "Ma", "1970"), ("3", "Wu", "1960"), ("", "Wu", "1960")]
MEMBERS = [("9", "Ma", "1970"), ("1", "Xu", "1990"), ("8", "Li", "1980"), ("", "Yu", "1950")]


def test_the_first_key_that_meets_wins_and_its_row_leaves_the_next() -> None:
    mine, theirs = aligned(
        keys_of(INSURED, "insurer"), keys_of(MEMBERS, "fund"), "both", 5, counted()
    )
    # Row 0 met by its number, so its name and birth do not meet the fund's row 2 any more.
    assert pairs(mine, theirs) == {(0, 1), (1, 0)}
    assert mine.size == theirs.size == 2
    assert mine.common is not None and theirs.common is not None
    assert mine.common.tolist() == [True, True, False, False]
    assert theirs.common.tolist() == [True, True, False, False]
    assert len(mine.records) == 2


@pytest.mark.parametrize("learns", ["hidden", "insurer", "fund", "size"])
def test_several_keys_need_both_sides_to_learn_who_met(learns: Learns) -> None:
    with pytest.raises(ConfigurationError, match="takes one key, got 2"):
        aligned(keys_of(INSURED, "insurer"), keys_of(MEMBERS, "fund"), learns, 5)


def test_both_sides_need_as_many_keys_as_agreed() -> None:
    with pytest.raises(ConfigurationError, match="fund: 2 keys were agreed on, got 1"):
        aligned(keys_of(INSURED, "insurer"), keys_of(MEMBERS, "fund")[:1], "both", 5)


# Roles.


def test_a_side_that_changes_its_set_after_the_commitment_is_named() -> None:
    agreement = Agreement("hidden", 4, bytes(32))
    (key,) = key_texts(pd.DataFrame({"id": ["a", "b"]}), [["id"]], None, "insurer")
    (other,) = key_texts(pd.DataFrame({"id": ["c", "d"]}), [["id"]], None, "fund")
    insurer, forth = begin(agreement, "insurer", [key], b"1" * 32)
    _, back = begin(agreement, "fund", [key], b"2" * 32)
    changed, _ = begin(agreement, "fund", [other], b"2" * 32)
    insurer, _ = advance(insurer, back)
    _, other_set = advance(changed, forth)
    with pytest.raises(FaultyParty, match="fund: changed its set") as refusal:
        advance(insurer, other_set)
    assert refusal.value.culprits == ("fund",)


def test_a_side_shows_no_secret() -> None:
    (key,) = key_texts(pd.DataFrame({"id": ["a"]}), [["id"]], None, "insurer")
    side, _ = begin(Agreement("both", 2, bytes(32)), "insurer", [key], b"1" * 32)
    assert repr(side) == "PairedSide(insurer, key 1 of 1)"
