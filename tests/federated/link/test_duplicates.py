"""Paid twice: who learns what of claims that two payers have, and who is named when one deviates."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated.link import ring
from federated.link.charter import LinkCharter
from federated.link.duplicates import Comparison, compared, ring_terms
from federated.link.keys import one_claim, payer_claims
from federated.link.ring import COORDINATOR, RingTerms
from lab.errors import ConfigurationError, ContractError
from lab.records import parse
from secure_agg.errors import FaultyParty
from secure_agg.ristretto import SIZE

PAYERS = ("fund", "north", "south")
SEEDS = {name: hashlib.sha256(name.encode()).digest() for name in (*PAYERS, COORDINATOR)}
INVOICE = ["invoice", "provider", "day", "claimed"]
VISIT = ["person", "provider", "day", "claimed"]


def charter(**changes: Any) -> LinkCharter:
    keys = [{"name": "invoice", "columns": INVOICE}, {"name": "visit", "columns": VISIT}]
    values = {"name": "test", "cap": 8, "rows": {"paid": "paid"}, "key": keys, "tells": "payer"}
    return parse(LinkCharter, values | changes, where="test")


def table(*rows: tuple[Any, ...]) -> pd.DataFrame:
    """person, invoice, provider, day, claimed; all of it paid."""
    frame = pd.DataFrame(rows, columns=["person", "invoice", "provider", "day", "claimed"])
    return frame.astype(object).assign(paid=frame["claimed"])


def matches(comparison: Comparison, payer: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in comparison.payers[payer].matches.to_numpy().tolist()]


BILL = (7, "A1", "P1", 20, 500)
CLAIM = dict(zip(["person", "invoice", "provider", "day", "claimed"], BILL, strict=True))


def three(**changes: Any) -> Comparison:
    tables = {
        "fund": table((1, "F9", "P1", 3, 80), (2, "F8", "P2", 4, 90)),
        "north": table(BILL, (1, "N2", "P1", 3, 80)),
        "south": table((9, "S1", "P4", 9, 10), BILL, (7, "A2", "P1", 20, 500)),
    }
    return compared(tables, charter(**changes))


def test_each_payer_learns_which_own_claims_another_has_by_which_key_and_whose() -> None:
    comparison = three()
    assert matches(comparison, "fund") == [(0, "visit", "north")]
    assert matches(comparison, "north") == [(0, "invoice", "south"), (1, "visit", "fund")]
    assert matches(comparison, "south") == [(1, "invoice", "north"), (2, "visit", "north")]


def test_where_the_charter_tells_a_match_alone_nobody_is_named() -> None:
    comparison = three(tells="match")
    assert list(comparison.payers["north"].matches) == ["row", "key"]
    assert matches(comparison, "south") == [(1, "invoice"), (2, "visit")]


def test_the_coordinator_learns_how_many_names_each_set_of_payers_shares() -> None:
    assert three().counts.to_numpy().tolist() == [
        ["invoice", 0, "north, south", 1],
        ["visit", 0, "fund, north", 1],
        ["visit", 0, "north, south", 1],
    ]


def test_repeated_missing_unpaid_and_excluded_rows_are_counted_and_tell_nothing() -> None:
    rows = table(
        BILL, BILL, (None, "A3", "P1", 20, 500), (8, "", "P1", 20, 500), (8, "A4", "P1", 1, 0)
    )
    rows["cover"] = ["group", "group", "group", "group", "group"]
    other = rows.assign(cover=["cash"] * 5)
    without = {"paid": "paid", "without": {"cover": ["cash"]}}
    comparison = compared({"north": rows, "south": other}, charter(rows=without))
    north, south = (comparison.payers[name].claims for name in ("north", "south"))
    assert (north.unpaid, north.without, south.without) == (1, 0, 4)
    assert [(c.missing, c.repeated) for c in north.counts] == [(1, 1), (1, 1)]
    assert matches(comparison, "north") == matches(comparison, "south") == []


def test_empty_tables_compare_and_match_nothing() -> None:
    comparison = compared({"north": table(), "south": table(BILL)}, charter())
    assert matches(comparison, "north") == matches(comparison, "south") == []
    assert len(comparison.counts) == 0


@given(first=st.integers(-10_000, 10_000), apart=st.integers(0, 300), width=st.integers(2, 100))
@settings(max_examples=60, deadline=None)
def test_amounts_meet_within_half_a_band_and_never_a_band_apart(
    first: int, apart: int, width: int
) -> None:
    key = {"name": "near", "columns": ["person", "claimed"], "bands": {"claimed": width}}
    terms, texts = charter(key=[key]), []
    for amount in (first, first + apart):
        texts.append(one_claim({"person": 1, "claimed": amount}, terms))
    meet = any(a == b for a, b in zip(*texts, strict=True))
    assert meet or apart >= width / 2
    assert not meet or apart < width


def test_two_bands_make_four_grids_and_neighbours_meet_in_one_of_them() -> None:
    bands = {"day": 4, "claimed": 20}
    key = {"name": "near", "columns": VISIT, "bands": bands}
    tables = {"north": table((7, "", "P1", 19, 501)), "south": table((7, "", "P1", 20, 499))}
    comparison = compared(tables, charter(key=[key]))
    assert matches(comparison, "north") == [(0, "near", "south")]
    assert len(charter(key=[key]).batches) == 4


def test_a_payer_with_more_claims_than_its_cap_is_refused() -> None:
    many = table(*((n, f"I{n}", "P", 1, 1) for n in range(9)))
    with pytest.raises(ContractError, match="north: more claims than its cap of 8"):
        payer_claims(many, charter(), "north")
    assert len(payer_claims(many, charter(caps={"north": 9}), "north").batches[0].texts) == 9


def test_a_table_without_a_column_of_the_charter_is_refused() -> None:
    with pytest.raises(ContractError, match="north: has no column 'invoice'"):
        payer_claims(table(BILL).drop(columns="invoice"), charter(), "north")


def test_a_single_claim_with_mistakes_is_refused_with_all_of_them_and_no_value() -> None:
    terms = charter(spelling={"person": "resident"})
    good = {"person": "11010519491231002X", "invoice": "A", "provider": "P", "day": 1, "claimed": 5}
    assert len(one_claim(good, terms)) == 2
    with pytest.raises(ConfigurationError, match="person is no resident number") as error:
        one_claim(good | {"person": "110105194912310021"}, terms)
    assert "110105194912310021" not in str(error.value)
    with pytest.raises(
        ConfigurationError, match=r"no column 'sex' is in a key; invoice is missing"
    ):
        one_claim({k: v for k, v in good.items() if k != "invoice"} | {"sex": "F"}, terms)


def test_a_number_is_the_same_however_it_is_written_and_other_texts_are_none() -> None:
    terms = charter(numbers=["claimed", "day"])
    texts = {
        tuple(one_claim(CLAIM | {"claimed": amount, "day": "20"}, terms))
        for amount in (500, 500.0, "500", "500.00", " 500 ")
    }
    assert len(texts) == 1
    assert one_claim(CLAIM | {"claimed": "500.01"}, terms)[0] not in next(iter(texts))
    with pytest.raises(ConfigurationError, match="day must be a text or a number"):
        one_claim(CLAIM | {"day": [20]}, terms)
    with pytest.raises(ConfigurationError, match="day must be a number") as error:
        one_claim(CLAIM | {"day": "20 May"}, terms)
    assert "20 May" not in str(error.value)
    rows = table(BILL, (7, "A1", "P1", "twenty", 500))
    assert [c.invalid for c in payer_claims(rows, terms, "north").counts] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"key": [{"name": "k", "columns": ["a"], "bands": {"b": 2}}]}, "'b' is none of a"),
        ({"key": [{"name": "k", "columns": ["a"]}] * 2}, "two keys are named 'k'"),
        ({"key": [{"name": "k", "columns": ["a"], "bands": {"a": 0}}]}, "must be above 0"),
        ({"cap": 0}, "cap: "),
        ({"tels": "payer"}, "did you mean 'tells'"),
    ],
)
def test_a_charter_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        charter(**changes)


# --- messages --------------------------------------------------------------------------------


def sent() -> tuple[RingTerms, dict[str, Any], dict[str, Any]]:
    terms = ring_terms(charter(cap=3), PAYERS, bytes(32))
    texts = {"fund": [[b"a"], []], "north": [[b"a", b"b"], [b"c"]], "south": [[b"d"], [b"c"]]}
    started = {name: ring.start(terms, name, texts[name], SEEDS[name]) for name in PAYERS}
    payers = {name: payer for name, (payer, _) in started.items()}
    return terms, payers, {name: message for name, (_, message) in started.items()}


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda data: data[:-1], "of another size than agreed"),
        (lambda data: data[:SIZE] + data[:-SIZE], "sent an element twice"),
        (lambda data: b"\xff" * SIZE + data[SIZE:], "no element of the group"),
        (lambda data: bytes(SIZE) + data[SIZE:], "no element of the group"),
    ],
)
def test_a_set_that_no_honest_payer_sends_is_refused_and_its_sender_named(
    broken: Any, words: str
) -> None:
    _, payers, messages = sent()
    message = {**messages["fund"], "0": broken(messages["fund"]["0"])}
    with pytest.raises(FaultyParty, match=words) as error:
        ring.onward(payers["north"], message)
    assert error.value.culprits == ("fund",)


def test_an_answer_about_padding_or_from_nobody_names_the_coordinator() -> None:
    terms, payers, _ = sent()
    for mask, words in ((0b1000, "names a payer that is none"), (0b001, "padding met something")):
        answer = {at: np.full(terms.cap("south"), mask, "<u2").tobytes() for at in ("0", "1")}
        with pytest.raises(FaultyParty, match=words) as error:
            ring.result(payers["south"], answer)
        assert error.value.culprits == (COORDINATOR,)


def test_sets_that_did_not_come_and_one_set_too_many_are_refused() -> None:
    terms, payers, messages = sent()
    with pytest.raises(FaultyParty, match="south: its sets did not come"):
        ring.close(terms, {n: messages[n] for n in ("fund", "north")}, SEEDS[COORDINATOR])
    north, _ = ring.onward(payers["north"], messages["fund"])
    north, _ = ring.onward(north, messages["south"])
    with pytest.raises(FaultyParty, match="more sets than there are payers"):
        ring.onward(north, messages["fund"])


def test_no_message_shows_how_many_texts_a_payer_has_or_repeats_a_name_of_another_session() -> None:
    terms, _, messages = sent()
    assert {len(data) for message in messages.values() for data in message.values()} == {3 * SIZE}
    other = RingTerms(terms.payers, terms.batches, terms.caps, terms.tells, b"s" * 32)
    _, again = ring.start(other, "south", [[b"d"], [b"c"]], SEEDS["south"])
    assert again["0"] != messages["south"]["0"]


def test_names_of_equal_texts_are_equal_only_after_everybody_has_multiplied() -> None:
    terms, payers, messages = sent()

    def elements(message: Any) -> set[bytes]:
        return {message["0"][at : at + SIZE] for at in range(0, 3 * SIZE, SIZE)}

    seen = [elements(message) for message in messages.values()]
    for hop in (1, 2):
        for origin in PAYERS:
            at = terms.after(origin, hop)
            payers[at], messages[origin] = ring.onward(payers[at], messages[origin])
        if hop == 1:
            seen += [elements(message) for message in messages.values()]
    assert len(set().union(*seen)) == sum(map(len, seen))
    assert len(elements(messages["fund"]) & elements(messages["north"])) == 1
    meetings, _ = ring.close(terms, messages, SEEDS[COORDINATOR])
    assert meetings.counts == (
        {frozenset({"fund", "north"}): 1},
        {frozenset({"north", "south"}): 1},
    )
