"""Alignment by blinded identifiers: what each side learns, and who is named when it deviates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg import intersection, ristretto
from secure_agg.errors import FaultyParty, LayoutMismatch, MalformedMessage
from secure_agg.intersection import (
    Alignment,
    AlignmentSide,
    AlignmentTerms,
    Message,
    advance,
    run,
    start,
)
from secure_agg.ristretto import ORDER, SIZE, encoded, multiplied

LEFT, RIGHT = "left", "right"
WAYS = ("both", "size", "hidden", LEFT, RIGHT)
SEEDS = {name: hashlib.sha256(name.encode()).digest() for name in (LEFT, RIGHT)}


def terms_of(learns: str, cap: int = 12) -> AlignmentTerms:
    return AlignmentTerms((LEFT, RIGHT), learns, cap, bytes(32))


def texts(*names: str) -> list[bytes]:
    return [name.encode() for name in names]


def aligned(learns: str, left: list[bytes], right: list[bytes], cap: int = 12):
    results = run(terms_of(learns, cap), {LEFT: left, RIGHT: right}, SEEDS)
    return results[LEFT], results[RIGHT]


def met(mine: Alignment, theirs: Alignment, left: list[bytes], right: list[bytes]) -> set[bytes]:
    """The identifiers that stand in one row of the spine."""
    rows = {int(row): text for row, text in zip(theirs.place, right, strict=True) if row >= 0}
    pairs = zip(mine.place, left, strict=True)
    both = {text: rows[int(row)] for row, text in pairs if int(row) in rows}
    assert all(text == other for text, other in both.items())
    return set(both)


sets = st.lists(st.integers(0, 9), unique=True, max_size=10).map(
    lambda numbers: [str(number).encode() for number in numbers]
)


@given(left=sets, right=sets, learns=st.sampled_from(WAYS))
@settings(max_examples=60)
def test_each_side_places_its_rows_and_learns_what_was_agreed(
    left: list[bytes], right: list[bytes], learns: str
) -> None:
    mine, theirs = aligned(learns, left, right)
    common = set(left) & set(right)
    sides = ((LEFT, mine, left), (RIGHT, theirs, right))
    for name, result, own in sides:
        if learns in ("both", name):
            assert result.common is not None
            assert [t in common for t in own] == result.common.tolist()
        else:
            assert result.common is None
        assert result.place.shape == (len(own),)
        assert result.place.max(initial=-1) < result.size
    if learns == "size":
        assert mine.size == theirs.size == len(common)
        assert (mine.place == -1).all() and (theirs.place == -1).all()
        return
    assert met(mine, theirs, left, right) == common
    if learns == "both":
        assert mine.size == theirs.size == len(common)
        assert ((mine.place >= 0) == mine.common).all()
    else:
        assert mine.size == theirs.size == 2 * 12 - len(common)
        for _, result, own in sides:
            assert len(set(result.place)) == len(own) and (result.place >= 0).all()


@pytest.mark.parametrize("learns", WAYS)
def test_the_order_of_a_table_changes_no_row_of_the_spine(learns: str) -> None:
    left, right = texts("a", "b", "c", "d"), texts("c", "x", "a")
    mine, theirs = aligned(learns, left, right)
    turned, same = aligned(learns, left[::-1], right)
    assert turned.size == mine.size and same.size == theirs.size
    assert met(turned, same, left[::-1], right) == met(mine, theirs, left, right)


@pytest.mark.parametrize("learns", WAYS)
def test_both_sides_have_one_key_of_a_common_row_and_others_of_all_else(learns: str) -> None:
    left, right = texts("a", "b", "c", "d"), texts("x", "c", "a")
    results = aligned(learns, left, right)
    if learns not in (LEFT, RIGHT):
        assert [result.keys for result in results] == [None, None]
        return
    mine, theirs = (
        dict(zip(own, (key.tobytes() for key in result.keys), strict=True))
        for own, result in zip((left, right), results, strict=True)
    )
    assert all(mine[text] == theirs[text] for text in texts("a", "c"))
    assert not {mine[b"b"], mine[b"d"]} & set(theirs.values())


@pytest.mark.parametrize("learns", [LEFT, RIGHT])
def test_no_message_holds_the_key_of_a_row_that_the_side_that_learns_lacks(learns: str) -> None:
    left, right = texts("a", "b", "c"), texts("c", "x", "y")
    said, *sides = play(learns, left, right)
    (other,) = (side for side in sides if side.name != learns)
    keys = {key.tobytes() for key in other.result.keys}
    heard = [message[other.name == RIGHT] for message in said]
    pieces = [piece for message in heard for piece in message.values()]
    assert not any(key in piece for key in keys for piece in pieces)


def test_another_session_gives_another_spine() -> None:
    left = texts("a", "b", "c", "d", "e", "f")
    results = [
        run(
            AlignmentTerms((LEFT, RIGHT), "hidden", 6, bytes([session]) * 32),
            {LEFT: left, RIGHT: left},
            SEEDS,
        )[LEFT].place.tolist()
        for session in range(4)
    ]
    assert len(set(map(tuple, results))) > 1


# Messages.


def play(
    learns: str,
    left: list[bytes],
    right: list[bytes],
    change: Callable[[int, AlignmentSide, Message], Message] = lambda step, side, message: message,
    cap: int = 12,
) -> tuple[list[tuple[Message, Message]], AlignmentSide, AlignmentSide]:
    """All that is said, where what the right side says is changed before it arrives."""
    terms, said = terms_of(learns, cap), []
    one, forth = start(terms, LEFT, left, SEEDS[LEFT])
    two, back = start(terms, RIGHT, right, SEEDS[RIGHT])
    step = 0
    while one.result is None:
        back = change(step, two, back)
        said.append((forth, back))
        (one, forth), (two, back) = advance(one, back), advance(two, forth)
        step += 1
    return said, one, two


def sizes(said: list[tuple[Message, Message]]) -> list[list[dict[str, int]]]:
    return [
        [{name: len(piece) for name, piece in message.items()} for message in pair] for pair in said
    ]


@pytest.mark.parametrize("learns", WAYS)
def test_no_message_has_a_size_that_tells_how_many_rows_there_are_or_are_common(
    learns: str,
) -> None:
    few = play(learns, texts("a"), texts("b"))[0]
    many = play(learns, texts(*"abcdefgh"), texts(*"hijklmno"))[0]
    assert sizes(few) == sizes(many)


@pytest.mark.parametrize("learns", ["both", "hidden", LEFT, RIGHT])
def test_messages_travel_in_pieces(monkeypatch: pytest.MonkeyPatch, learns: str) -> None:
    monkeypatch.setattr(intersection, "CHUNK", 5)
    left, right = texts(*"abcdefg"), texts(*"defghij")
    said, one, two = play(learns, left, right)
    assert sorted(said[1][0]) == ["elements/0", "elements/1", "elements/2"]
    assert one.result is not None and two.result is not None
    assert met(one.result, two.result, left, right) == set(texts(*"defg"))


def test_what_is_said_does_not_depend_on_the_identifiers_but_by_secrets() -> None:
    """No element of any message is one that a side could have computed from identifiers alone."""
    left, right = texts(*"abc"), texts(*"bcd")
    plain = {row.tobytes() for row in ristretto.hashed(texts(*"abcd"))}
    for learns in WAYS:
        for pair in play(learns, left, right)[0]:
            for message in pair:
                for piece in message.values():
                    rows = {piece[at : at + SIZE] for at in range(0, len(piece), SIZE)}
                    assert not rows & plain


def test_under_size_crossed_elements_come_in_another_order() -> None:
    left = texts(*"abcdefghijkl")
    said, _, _ = play("size", left, left)
    sent, crossed = said[1][0]["elements/0"], said[2][1]["crossed/0"]
    side = start(terms_of("size"), RIGHT, left, SEEDS[RIGHT])[0]
    in_order = multiplied(intersection._key(side, b"blinding"), encoded(sent))
    rows = {row.tobytes() for row in in_order}
    assert rows == {crossed[at : at + SIZE] for at in range(0, len(crossed), SIZE)}
    assert in_order.tobytes() != crossed


# Deviations.

Change = Callable[[int, AlignmentSide, Message], Message]


def at(step: int, change: Callable[[Message], Message]) -> Change:
    return lambda now, side, message: change(message) if now == step else message


def with_piece(name: str, change: Callable[[bytes], bytes]) -> Callable[[Message], Message]:
    def changed(message: Message) -> Message:
        return {**message, name: change(message[name])} if name in message else message

    return changed


def other_element(piece: bytes) -> bytes:
    fresh = ristretto.hashed([b"somebody else"])
    return fresh.tobytes() + piece[SIZE:]


def other_elements(piece: bytes) -> bytes:
    return ristretto.hashed([b"%d" % row for row in range(len(piece) // SIZE)]).tobytes()


def repeated(piece: bytes) -> bytes:
    return piece[:SIZE] + piece[: len(piece) - SIZE]


def shorter(piece: bytes) -> bytes:
    return piece[SIZE:]


def negative(piece: bytes) -> bytes:
    return (1).to_bytes(SIZE, "little") + piece[SIZE:]


def neutral(piece: bytes) -> bytes:
    return bytes(SIZE) + piece[SIZE:]


DEVIATIONS = [
    ("both", at(1, with_piece("elements/0", other_element)), "changed its set"),
    ("both", at(1, with_piece("elements/0", repeated)), "an element twice"),
    ("both", at(1, with_piece("elements/0", shorter)), "another size"),
    ("both", at(2, with_piece("crossed/0", negative)), "no element"),
    ("both", at(2, with_piece("crossed/0", neutral)), "no element"),
    ("both", at(2, with_piece("crossed/0", repeated)), "an element twice"),
    ("both", at(2, with_piece("crossed/0", other_elements)), "another spine"),
    ("both", at(0, lambda message: {"commitment": b""}), "no commitment"),
    ("both", at(0, lambda message: {**message, "more": b""}), "no commitment"),
    ("both", at(2, lambda message: {**message, "more/0": b""}), "another size"),
    ("both", at(3, lambda message: {"spine": bytes(32)}), "another spine"),
    ("size", at(1, with_piece("elements/0", repeated)), "an element twice"),
    ("hidden", at(1, with_piece("elements/0", other_element)), "changed its set"),
    ("hidden", at(2, with_piece("placed/0", negative)), "no element"),
    ("hidden", at(2, with_piece("crossed/0", neutral)), "no element"),
    ("hidden", at(2, with_piece("crossed/0", shorter)), "another size"),
    ("hidden", at(4, with_piece("others/0", shorter)), "another size"),
    ("hidden", at(4, with_piece("others/0", other_element)), "another spine"),
    (
        "hidden",
        at(2, with_piece("placed/0", lambda piece: piece[:SIZE].ljust(len(piece), b"\0"))),
        "another size",
    ),
    (
        "hidden",
        at(4, with_piece("others/0", lambda piece: piece[:SIZE].ljust(len(piece), b"\0"))),
        "another size",
    ),
    (
        RIGHT,
        at(3, with_piece("alone/0", lambda piece: piece[:SIZE].ljust(len(piece), b"\0"))),
        "another size",
    ),
    (RIGHT, at(3, with_piece("alone/0", shorter)), "another size"),
    (RIGHT, at(3, with_piece("alone/0", negative)), "no element"),
    (RIGHT, at(2, with_piece("placed/0", repeated)), "an element twice"),
]


@pytest.mark.parametrize(("learns", "change", "deed"), DEVIATIONS)
def test_a_side_that_deviates_is_named_with_what_it_did(
    learns: str, change: Change, deed: str
) -> None:
    with pytest.raises(FaultyParty, match=deed) as refusal:
        play(learns, texts(*"abcd"), texts(*"cdef"), change)
    assert refusal.value.culprits == (RIGHT,)


def test_own_rows_sent_back_as_the_others_are_refused() -> None:
    """A leader that says that common rows are its own alone would make two rows of one person."""

    def lie(step: int, side: AlignmentSide, message: Message) -> Message:
        if step != 3 or "alone/0" not in message:
            return message
        count = 12 - len(texts(*"cd"))
        key = intersection._key(start(terms_of(RIGHT), LEFT, [], SEEDS[LEFT])[0], b"spine")
        inverse = pow(int.from_bytes(key, "little"), -1, ORDER).to_bytes(SIZE, "little")
        honest, _ = side_before(4)
        return {
            **message,
            "alone/0": multiplied(inverse, honest.own[:count]).tobytes().ljust(12 * SIZE, b"\0"),
        }

    def side_before(step: int) -> tuple[AlignmentSide, AlignmentSide]:
        terms = terms_of(RIGHT)
        one, forth = start(terms, LEFT, texts(*"abcd"), SEEDS[LEFT])
        two, back = start(terms, RIGHT, texts(*"cdef"), SEEDS[RIGHT])
        while one.step < step:
            (one, forth), (two, back) = advance(one, back), advance(two, forth)
        return one, two

    with pytest.raises(FaultyParty, match="that are common"):
        play(RIGHT, texts(*"abcd"), texts(*"cdef"), lie)


# Refusals at one's own side.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learns": "everybody"}, "must be one of both, size, hidden, left, right"),
        ({"cap": 0}, "the cap must be"),
        ({"cap": 2**40}, "the cap must be"),
        ({"session": b""}, "32 bytes"),
        ({"sides": (LEFT, LEFT)}, "two names"),
        ({"sides": (LEFT, "both")}, "two names"),
    ],
)
def test_terms_that_can_not_be_honoured_are_refused(
    change: Mapping[str, object], words: str
) -> None:
    with pytest.raises(LayoutMismatch, match=words):
        replace(terms_of("both"), **change)  # type: ignore[arg-type]


def test_more_identifiers_than_the_cap_and_repeated_ones_are_refused() -> None:
    with pytest.raises(LayoutMismatch, match="left has more identifiers than the cap of 2"):
        start(terms_of("both", 2), LEFT, texts(*"abc"), SEEDS[LEFT])
    with pytest.raises(LayoutMismatch, match="left: identifiers are repeated") as refusal:
        start(terms_of("both"), LEFT, texts(*"abab"), SEEDS[LEFT])
    assert "'a'" not in str(refusal.value)
    with pytest.raises(LayoutMismatch, match="is no side"):
        start(terms_of("both"), "middle", [], SEEDS[LEFT])


def test_an_alignment_that_is_over_takes_no_message() -> None:
    _, one, _ = play("both", texts("a"), texts("a"))
    with pytest.raises(MalformedMessage, match="is over"):
        advance(one, {})


@pytest.mark.parametrize("learns", WAYS)
def test_a_side_that_starts_again_with_the_messages_it_kept_says_the_same(learns: str) -> None:
    left, right = texts(*"abcd"), texts(*"cdef")
    said, one, _ = play(learns, left, right)
    again, message = start(terms_of(learns), LEFT, left, SEEDS[LEFT])
    for forth, back in said:
        assert message == forth
        again, message = advance(again, back)
    assert one.result is not None and again.result is not None
    assert np.array_equal(again.result.place, one.result.place)


def test_a_side_shows_none_of_its_secrets() -> None:
    side, _ = start(terms_of("both"), LEFT, texts("a"), SEEDS[LEFT])
    assert repr(side) == "AlignmentSide(left, before step 1)"


def test_a_record_for_the_log_holds_both_commitments_and_no_row() -> None:
    said, one, two = play("both", texts(*"abc"), texts(*"cd"))
    assert one.result is not None and two.result is not None
    assert one.result.records == two.result.records
    (record,) = one.result.records
    assert record == {
        "learns": "both",
        "cap": 12,
        "spine": 1,
        "commitments": {
            LEFT: said[0][0]["commitment"].hex(),
            RIGHT: said[0][1]["commitment"].hex(),
        },
        "learned": "which rows are common",
    }
    assert np.array_equal(one.result.place, [-1, -1, 0])
