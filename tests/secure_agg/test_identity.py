"""Who is who, and how every small message travels: known bytes, one encoding, typed refusals."""

from __future__ import annotations

import copy
import hashlib
import pickle
import random

import pytest
from gmpy2 import mpz
from hypothesis import given
from hypothesis import strategies as st

from secure_agg import wire
from secure_agg.errors import InvalidIdentity, MalformedMessage, SecureAggError
from secure_agg.identity import Card, Identity, Roster, derived
from secure_agg.packing import Field, Layout
from secure_agg.shares import Part, SplitKey, deal, prove_part
from secure_agg.transcript import Contribution, Terms, Transcript

SEED = bytes(range(32))
ALBA, BORA, CIMA = (Identity(name, bytes([k]) * 32) for k, name in enumerate(("Alba", "Børa", "C")))
ROSTER = Roster((ALBA.card, BORA.card, CIMA.card))
ONE = Layout((Field(2, 10.0, 1.0),), 3, 2048)
KINDS = ["card", "roster", "terms", "contribution", "transcript", "split key", "part"]
LISTS = ["roster", "transcript"]  # of which a shorter one is a message too


@pytest.fixture(scope="module")
def messages(private):
    """One message of every kind, what writes it and what reads it."""
    key = private.public.fingerprint
    terms = Terms("claims 2031", bytes(32), ROSTER.digest, ROSTER.names, key, ONE)
    given = tuple(Contribution(name, bytes(range(100)), bytes(64)) for name in ROSTER.names)
    split, shares = deal(private, ROSTER.names)
    part = prove_part(shares["Alba"], [mpz(7), mpz(8)], b"context")
    return {
        "card": (ALBA.card, Card.to_bytes, Card.from_bytes),
        "roster": (ROSTER, Roster.to_bytes, Roster.from_bytes),
        "terms": (terms, Terms.to_bytes, Terms.from_bytes),
        "contribution": (given[1], Contribution.to_bytes, Contribution.from_bytes),
        "transcript": (Transcript(terms, given), Transcript.to_bytes, Transcript.from_bytes),
        "split key": (split, SplitKey.to_bytes, SplitKey.from_bytes),
        "part": (part, lambda p: p.to_bytes(split), lambda data: Part.from_bytes(data, split)),
    }


def mangled(choose, data):
    """A message with one thing wrong: bytes changed, cut, added, or whole parts moved."""
    start, stop = sorted(choose.randrange(len(data) + 1) for _ in range(2))
    noise = choose.randbytes(choose.randrange(1, 9))
    parts = wire.split(data[:8], data, 0, wire.MOST_PARTS)
    one, other = choose.choices(range(len(parts)), k=2)
    match choose.randrange(9):
        case 0:
            return data[:start] + noise + data[start:]
        case 1:
            return data[:start] + data[stop:]
        case 2:
            return data[:start] + noise + data[start + len(noise) :]
        case 3:
            return data[:stop] + data[start:]
        case 4:
            parts[one], parts[other] = parts[other], parts[one]
        case 5:
            parts.insert(one, parts[other])
        case 6:
            parts[one] = noise[1:]
        case 7:
            del parts[one]
        case 8 if parts[one].startswith(b"SAGG"):
            parts[one] = mangled(choose, parts[one])
        case _:
            at = choose.randrange(len(parts[one]) + 1)
            parts[one] = parts[one][:at] + noise + parts[one][at + len(noise) :]
    return wire.join(data[:8], parts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_comes_back_as_it_was(messages, kind):
    made, write, read = messages[kind]
    for data in (write(made), bytearray(write(made)), memoryview(write(made))):
        assert read(data) == made
    assert write(read(write(made))) == write(made)


@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_or_version_is_refused(messages, kind):
    made, write, read = messages[kind]
    data = write(made)
    for version in (b"00", b"02", b"99", b"\0\0", b"\xff\xff"):
        with pytest.raises(MalformedMessage, match="another version"):
            read(data[:6] + version + data[8:])
    for other, (thing, write_other, _) in messages.items():
        if other != kind:
            with pytest.raises(MalformedMessage, match=r"are not a SAGG.. message"):
                read(write_other(thing))


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_cut_off_anywhere_is_refused_or_is_a_shorter_list(messages, kind):
    made, write, read = messages[kind]
    data = write(made)
    whole = []
    for size in range(len(data)):
        try:
            whole.append(read(data[:size]))
        except SecureAggError:
            continue
    assert len(whole) == (3 if kind in LISTS else 0)
    assert made not in whole


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_after_a_message_are_refused(messages, kind):
    made, write, read = messages[kind]
    data = write(made)
    for more in (b"\0", b"\0" * 4, b"\0\0\0\1", b"\0\0\0\1x", b"\xff" * 4, b"\xff" * 600, data):
        with pytest.raises(SecureAggError):
            read(data + more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mangled_message_is_refused_or_says_something_else(messages, kind):
    made, write, read = messages[kind]
    data = write(made)
    choose = random.Random(kind)
    for _ in range(1000 if kind == "split key" else 4000):  # its checks cost 6 ms each
        candidate = mangled(choose, data)
        try:
            found = read(candidate)
        except SecureAggError:
            continue
        assert write(found) == candidate
        assert (found == made) == (candidate == data)


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_parts_come_back_in_order(parts):
    data = wire.join(b"SAGGXX01", parts)
    assert wire.split(b"SAGGXX01", data, len(parts)) == parts
    assert wire.split(b"SAGGXX01", data, 0, 8) == parts
    for least, most in ((len(parts) + 1, 0), (len(parts) + 1, 20), (0, len(parts) - 1)):
        if parts:
            with pytest.raises(MalformedMessage):
                wire.split(b"SAGGXX01", data, least, most)


def test_what_ends_within_a_part_is_called_cut_off():
    data = wire.join(b"SAGGXX01", [b"part"])
    for size in range(9, len(data)):
        with pytest.raises(MalformedMessage, match="SAGGXX message is cut off"):
            wire.split(b"SAGGXX01", data[:size], 0, 9)


def test_no_message_has_more_parts_than_the_most(monkeypatch):
    monkeypatch.setattr(wire, "MOST_PARTS", 20)
    data = b"SAGGXX01" + bytes(4 * wire.MOST_PARTS)
    assert len(wire.split(b"SAGGXX01", data, 0, wire.MOST_PARTS)) == wire.MOST_PARTS
    for more in (b"\0", bytes(4), bytes(8)):
        with pytest.raises(MalformedMessage):
            wire.split(b"SAGGXX01", data + more, 0, wire.MOST_PARTS)


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_have_one_reading(data):
    with pytest.raises(MalformedMessage):
        wire.split(b"SAGGXX01", data, 0, 99)
    try:
        parts = wire.split(b"SAGGXX01", b"SAGGXX01" + data, 0, 99)
    except MalformedMessage:
        return
    assert wire.join(b"SAGGXX01", parts) == b"SAGGXX01" + data


def test_known_card_signature_and_roster():
    known = Identity("Alba", SEED)
    assert known.card.to_bytes().hex() == (
        "534147474344303100000004416c626100000020d725eef020b70da8192bb69048540ce40588b8d0"
        "f514790e39386206d37bfecf000000206fa849656e77b4bdf2e01c31f8cdeb9ca863e4102c70b5ef"
        "bb5b6e903cdf6a30"
    )
    assert known.sign(b"purpose", b"message").hex() == (
        "c0cd4f3314cb2ce096b0ed951fb204b6a24c98fa6fc92bb83f895706dfe2acee383b958ffec12bef"
        "df2454ecc85116d2f884da5a5c1c11cee9febc7ff46f4405"
    )
    assert ROSTER.digest.hex() == "7da131f4adbb78c7608ab5877ff8cdb21b23cc669ae08021b8eb501fa7553f4c"
    assert hashlib.sha256(ROSTER.to_bytes()).digest() == ROSTER.digest
    assert (
        derived(SEED, b"purpose").hex()
        == "2f6a2da8acd8f37e22ab60e9aa5fff84150b7de727537e9a2efd7aa3c9d98422"
    )


def test_a_known_seal_opens():
    sealed = bytes.fromhex(
        "ebfd7ee0c0905f3beae6c05be4ca5a5508e4ad92c0169e2ccc9c50d65daa7152ffe997b08bc7fdaf"
        "65d502b10c5d1534e97b893cf565"
    )
    assert Identity("Alba", SEED).unseal(b"purpose", sealed) == b"secret"


def test_a_signature_is_for_one_signer_one_purpose_and_one_message():
    signature = ALBA.sign(b"purpose", b"message")
    assert len(signature) == 64
    assert ALBA.card.signed(b"purpose", b"message", signature)
    assert not BORA.card.signed(b"purpose", b"message", signature)
    for purpose, message in (
        (b"purpose", b"massage"),
        (b"porpoise", b"message"),
        (b"purposem", b"essage"),
        (b"purpos", b"emessage"),
        (b"", b"purposemessage"),
        (b"message", b"purpose"),
    ):
        assert not ALBA.card.signed(purpose, message, signature)
    for at in range(64):
        bad = bytearray(signature)
        bad[at] ^= 1
        assert not ALBA.card.signed(b"purpose", b"message", bytes(bad))
    for bad in (b"", signature[:-1], signature + b"\0", bytes(64), b"\xff" * 64):
        assert not ALBA.card.signed(b"purpose", b"message", bad)


def test_a_seal_opens_for_one_receiver_and_one_purpose():
    sealed = ALBA.card.seal(b"purpose", b"secret")
    assert ALBA.unseal(b"purpose", sealed) == b"secret"
    assert sealed != ALBA.card.seal(b"purpose", b"secret")
    with pytest.raises(MalformedMessage, match="not for Børa"):
        BORA.unseal(b"purpose", sealed)
    for purpose in (b"", b"purpos", b"purpose\0"):
        with pytest.raises(MalformedMessage, match="not for this purpose"):
            ALBA.unseal(purpose, sealed)
    for at in range(len(sealed)):
        bad = bytearray(sealed)
        bad[at] ^= 1
        for altered in (bytes(bad), sealed[:at], sealed[at + 1 :]):
            with pytest.raises(MalformedMessage, match="altered"):
                ALBA.unseal(b"purpose", altered)


@pytest.mark.parametrize("length", [0, 1, 6, 1000])
def test_a_seal_is_48_bytes_longer_than_what_it_hides(length):
    assert len(ALBA.card.seal(b"purpose", bytes(length))) == length + 48


@pytest.mark.parametrize(
    "name", ["", "a\nb", "\0", "\x1b[2J", "\u202eabc", "\ud800", "x" * 201, "ø" * 101]
)
def test_a_name_that_can_not_be_printed_on_a_line_is_refused(name):
    with pytest.raises(InvalidIdentity, match="printable"):
        Identity(name, SEED)
    with pytest.raises(InvalidIdentity, match="printable"):
        Card(name, ALBA.card.verifying, ALBA.card.receiving)


def test_keys_and_seeds_of_another_size_are_refused():
    good = ALBA.card.verifying
    for bad in (b"", good[:-1], good + b"\0"):
        for keys in ((bad, good), (good, bad)):
            with pytest.raises(InvalidIdentity, match="32 bytes"):
                Card("Alba", *keys)
        with pytest.raises(InvalidIdentity, match="32 bytes"):
            Identity("Alba", bad)


def test_a_name_on_a_card_must_be_utf8():
    with pytest.raises(MalformedMessage, match="UTF-8"):
        Card.from_bytes(wire.join(b"SAGGCD01", [b"\xff", bytes(32), bytes(32)]))


def test_no_two_cards_share_a_name_or_a_key():
    a, b = ALBA.card, BORA.card
    with pytest.raises(InvalidIdentity, match="same name"):
        Roster((a, Card("Alba", b.verifying, b.receiving)))
    for verifying, receiving in (
        (a.verifying, b.receiving),
        (b.verifying, a.receiving),
        (a.receiving, b.receiving),
        (b.verifying, a.verifying),
        (b.verifying, b.verifying),
    ):
        with pytest.raises(InvalidIdentity, match="same key"):
            Roster((a, Card("Børa", verifying, receiving)))
    with pytest.raises(InvalidIdentity):
        Roster((a, a))


def test_a_roster_finds_cards_by_name():
    assert ROSTER.names == ("Alba", "Børa", "C")
    assert "Børa" in ROSTER
    assert "Bora" not in ROSTER
    assert ROSTER["C"] == CIMA.card


def test_a_roster_s_digest_changes_with_its_order_and_every_card():
    cards = list(ROSTER.cards)
    other = Identity("Alba", SEED).card
    others = [
        cards[::-1],
        cards[:2],
        [*cards, other.__class__("D", other.verifying, other.receiving)],
    ]
    others += [[other, *cards[1:]], []]
    digests = {Roster(tuple(some)).digest for some in others}
    assert len(digests | {ROSTER.digest}) == 6


def test_nothing_prints_pickles_or_copies_an_identity():
    identity = Identity("Alba", SEED)
    secrets = [SEED, derived(SEED, b"signing"), derived(SEED, b"receiving")]
    for text in (repr(identity), str(identity), f"{identity}", repr([identity])):
        assert text.strip("[]") == "Identity('Alba')"
    for secret in secrets:
        assert secret not in identity.card.to_bytes()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(identity, protocol)
    for copier in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="copied"):
            copier(identity)
    with pytest.raises(TypeError):
        vars(identity)


def test_one_seed_gives_one_identity_and_every_purpose_its_own_bytes():
    assert Identity("Alba", SEED).card == Identity("Alba", SEED).card
    assert len({Identity.generate("Alba").card.verifying for _ in range(20)}) == 20
    card = ALBA.card
    assert len({card.verifying, card.receiving, derived(SEED, b"a"), derived(SEED, b"b")}) == 4


ORDER_EIGHT = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"


@pytest.mark.parametrize(
    "verifying",
    ["01" + 31 * "00", "ec" + 30 * "ff" + "7f", 32 * "00", ORDER_EIGHT],
    ids=["order 1", "order 2", "order 4", "order 8"],
)
def test_a_card_whose_key_anybody_can_use_is_refused(verifying):
    sound = Identity("Alba", bytes(32)).card
    with pytest.raises(InvalidIdentity, match="small order"):
        Card("Alba", bytes.fromhex(verifying), sound.receiving)
    with pytest.raises(InvalidIdentity, match="small order"):
        Card("Alba", sound.verifying, bytes(32))
