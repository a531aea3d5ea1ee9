"""Masked sums: exact, through drop-outs, and against a coordinator that does as it likes."""

from __future__ import annotations

import hashlib
import math
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import chain, combinations, product
from types import SimpleNamespace

import gmpy2
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from secure_agg import masks, wire
from secure_agg.arithmetic.lanes import added, apply_streams, decoded, encoded, vector_lanes
from secure_agg.errors import (
    Blame,
    FaultyCoordinator,
    FaultyParty,
    InconsistentSum,
    InvalidIdentity,
    LayoutMismatch,
    MalformedMessage,
    SecureAggError,
    TooFewParties,
    ValueOutOfBounds,
)
from secure_agg.identity import Identity, Roster, derived
from secure_agg.masks import Keys, MaskTerms, Revealed, Seat, majority, run
from secure_agg.packing import Field, Layout, pack, unpack

FORM = (Field(3, 100.0, 0.25), Field(2, 2.0**70, 1.0))  # values of one lane, values of two
NAMES = tuple(f"insurer {k}" for k in (7, 1, 4, 2, 9, 3, 10, 5, 11, 8, 6, 12))
A, B, C, D, E = NAMES[:5]
PEOPLE = {
    name: Identity(name, hashlib.sha256(name.encode()).digest()) for name in (*NAMES, "nobody")
}
# X25519 public keys that give the same secret with every private key (RFC 7748, section 6.1).
LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


def terms_of(parties, threshold=None, query="paid 2024", question=bytes(32)):
    roster = Roster(tuple(PEOPLE[name].card for name in NAMES[:parties]))
    return MaskTerms(query, question, roster, threshold or majority(parties))


def whole_numbers(generator):
    """Values on FORM's grid, whose sums are exact."""
    return [generator.integers(-400, 401, 3) / 4, generator.integers(-(2**40), 2**40, 2)]


def play(terms, seed=0, leaves=None, arrays=None, passed=lambda item: item, until=4):
    """An honest sum: all that is said in it, and the seats after each step.

    leaves: from which step on a party is silent; passed: what becomes of seats and messages
    """
    generator, leaves, all_names = np.random.default_rng(seed), leaves or {}, terms.roster.names
    seeds = {name: hashlib.sha256(f"{seed} {name}".encode()).digest() for name in all_names}
    arrays = arrays or {name: whole_numbers(generator) for name in all_names}
    said = SimpleNamespace(terms=terms, arrays=arrays, seeds=seeds, seats=[], dealers=[])
    said.keys, said.sealed, said.dealt = {}, {}, {}
    said.masked, said.confirmations, said.revealed = {}, {}, {}
    for step in range(until + 1):
        said.seats.append({})
        for name in all_names:
            if leaves.get(name, 5) <= step:
                continue
            if step == 2:
                said.dealt[name] = {o: said.sealed[o][name] for o in said.sealed if o != name}
            seat, message = ask(said, step, name)
            said.seats[step][name] = passed(seat)
            sent = (said.keys, said.sealed, said.masked, said.confirmations, said.revealed)[step]
            sent[name] = passed(message)
            said.dealers = list(said.sealed)
    return said


def ask(said, step, name, shown=None, seat=None, terms=None):
    """A party's answer at one step, to what the coordinator showed or to something else."""
    terms, person = terms or said.terms, PEOPLE[name]
    if step == 0:
        return masks.advertise(person, terms, said.seeds[name])
    seat = seat or said.seats[step - 1][name]
    match step:
        case 1:
            return masks.share(person, terms, seat, said.keys if shown is None else shown)
        case 2:
            dealt = said.dealt[name] if shown is None else shown
            return masks.mask(person, terms, seat, dealt, FORM, said.arrays[name])
        case 3:
            return masks.confirm(person, terms, seat, list(said.masked) if shown is None else shown)
    return masks.reveal(person, terms, seat, said.confirmations if shown is None else shown)


def total(said, form=FORM, **others):
    """The coordinator's sum, of what was said or of something else."""
    parts = {**vars(said), **others}
    masked = {
        name: masks.checked_masked(said.terms, name, form, data)
        for name, data in parts["masked"].items()
    }
    return masks.total(said.terms, parts["keys"], parts["dealers"], masked, parts["revealed"], form)


def plain_sum(arrays):
    return [sum(column).tolist() for column in zip(*arrays, strict=True)]


def lists(sums):
    return [values.tolist() for values in sums]


@contextmanager
def blamed(culprit, words):
    """Somebody alone is blamed, in these words."""
    kind = FaultyCoordinator if culprit == "coordinator" else FaultyParty
    with pytest.raises(kind, match=words) as caught:
        yield
    assert caught.value.culprits == (culprit,)


@contextmanager
def suspected(name):
    """What a party sealed does not open, be it its own doing or the coordinator's."""
    with pytest.raises(Blame, match=f"^{name} or the coordinator: .* can't be opened") as caught:
        yield
    assert type(caught.value) is Blame
    assert caught.value.culprits == (name, "coordinator")


@pytest.fixture(scope="module")
def four_of_five():
    """A sum of five in which E shared its secrets and then fell silent."""
    return play(terms_of(5), leaves={E: 2})


# Sums.


@st.composite
def jobs(draw):
    """Fields of one to three lanes and everybody's arrays, with bounds among the values."""
    fields = []
    for _ in range(draw(st.integers(1, 3))):
        exponent = draw(st.integers(-60, 99))
        bound = math.ldexp(draw(st.floats(1.0, 2.0)), exponent)
        resolution = math.ldexp(1.0, draw(st.integers(-60, exponent)))
        fields.append(Field(draw(st.integers(1, 3)), bound, resolution))

    def values(field):
        ends = [0.0, field.bound, -field.bound, field.resolution, field.resolution / 2]
        value = st.sampled_from(ends) | st.floats(-field.bound, field.bound)
        return st.lists(value, min_size=field.size, max_size=field.size)

    names = NAMES[: draw(st.integers(3, 12))]
    return tuple(fields), {name: [draw(values(field)) for field in fields] for name in names}


@given(jobs())
@settings(max_examples=25)
def test_a_masked_sum_is_the_exact_sum_rounded_once_and_that_of_packing(job):
    fields, arrays = job
    sums = run(PEOPLE, terms_of(len(arrays)), fields, arrays)
    for index, field in enumerate(fields):
        resolution = Fraction(field.resolution)
        columns = zip(*(given[index] for given in arrays.values()), strict=True)
        exact = [sum(round(Fraction(v) / resolution) for v in values) for values in columns]
        assert sums[index].tolist() == [float(value * resolution) for value in exact]
    layout = Layout(fields, len(arrays), 2048)
    packed = [pack(layout, given) for given in arrays.values()]
    opened = unpack(layout, map(sum, zip(*packed, strict=True)), len(arrays))
    for ours, theirs in zip(sums, opened, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def outcome(parties, leaves, threshold=None):
    """What a run gives if parties leave at these steps, and what it should give."""
    terms, generator = terms_of(parties, threshold), np.random.default_rng(parties)
    arrays = {name: whole_numbers(generator) for name in terms.roster.names}
    stay = [[n for n in arrays if leaves.get(n, 5) > step] for step in range(5)]
    need = [terms.least] * 3 + [terms.threshold] * 2
    enough = all(len(here) >= least for here, least in zip(stay, need, strict=True))
    right = plain_sum(arrays[name] for name in stay[2]) if enough else TooFewParties
    try:
        sums = run(PEOPLE, terms, FORM, arrays, lambda step, name: leaves.get(name, 5) <= step)
    except TooFewParties:
        return TooFewParties, right
    return lists(sums), right


SIX = pytest.param(6, marks=pytest.mark.slow)


@pytest.mark.parametrize("parties", [3, 4, 5, SIX])
def test_a_minority_may_leave_at_any_step_and_the_rest_is_summed_exactly(parties):
    for gone in range(1, (parties + 1) // 2):
        for leavers, step in product(combinations(NAMES[:parties], gone), range(5)):
            got, right = outcome(parties, dict.fromkeys(leavers, step))
            assert got == right
            # Three parties are the fewest that hide anybody, so of three none may leave early.
            assert (got is TooFewParties) == (parties == 3 and step < 3)


@pytest.mark.parametrize("parties", [3, 4, 5, SIX])
def test_when_half_or_more_leave_at_any_step_nothing_is_summed(parties):
    some = combinations(NAMES[:parties], -(-parties // 2))
    for leavers, step in product([*some, NAMES[:parties]], range(5)):
        assert outcome(parties, dict.fromkeys(leavers, step))[0] is TooFewParties


@given(st.data())
@settings(max_examples=60)
def test_whoever_leaves_when_the_sum_is_that_of_the_rest_or_there_is_none(data):
    parties = data.draw(st.integers(3, 6))
    threshold = data.draw(st.integers(majority(parties), parties))
    steps = st.sampled_from([0, 1, 2, 3, 4, 5, 5, 5, 5, 5, 5])  # 5: stays
    leaves = {name: data.draw(steps) for name in NAMES[:parties]}
    got, right = outcome(parties, leaves, threshold)
    assert got == right


def test_any_threshold_of_those_who_stay_open_the_same_sum_and_one_less_open_none(four_of_five):
    said, right = four_of_five, plain_sum(four_of_five.arrays[n] for n in four_of_five.masked)
    for count in range(5):
        for some in combinations(said.revealed, count):
            revealed = {name: said.revealed[name] for name in some}
            if count >= said.terms.threshold:
                assert lists(total(said, revealed=revealed)) == right
            else:
                with pytest.raises(TooFewParties, match=f"{count} stayed to the end; 3 and 3"):
                    total(said, revealed=revealed)
    with pytest.raises(TooFewParties, match="2 parties sent their vector"):
        total(said, masked={name: said.masked[name] for name in (A, B)})


@pytest.mark.parametrize(
    ("parties", "threshold", "error"),
    [(2, 2, "2 parties hides nobody"), (4, 2, "above half"), (5, 2, "above half"), (4, 5, "above")],
)
def test_terms_that_would_hide_nobody_are_refused(parties, threshold, error):
    with pytest.raises(TooFewParties, match=error):
        terms_of(parties, threshold)


def test_terms_without_a_name_or_a_digest_of_the_question_are_refused():
    bad = {"query": ["", "a\nb", "q" * 201], "question": [b"", bytes(33)]}
    for other in [{what: value} for what, values in bad.items() for value in values]:
        with pytest.raises(InvalidIdentity):
            terms_of(3, **other)


def test_values_that_do_not_fit_are_refused_before_anything_is_masked(four_of_five):
    for bad, error in (([[1, 2, 100.5], [0, 0]], ValueOutOfBounds), ([[1, 2, 3]], LayoutMismatch)):
        with pytest.raises(error):
            ask(SimpleNamespace(**{**vars(four_of_five), "arrays": {A: bad}}), 2, A)


# The coordinator as attacker: what it shows at each step.


def other_keys(name, **terms):
    """Keys that a party made for a sum under other terms."""
    return masks.advertise(PEOPLE[name], terms_of(**{"parties": 5, **terms}), bytes(32))[1]


def signed_keys(terms, name, sealing, masking):
    """Keys that a party signed though it should not have."""
    return Keys(sealing, masking, PEOPLE[name].sign(masks.KEYS, terms.digest + sealing + masking))


NOT_SIGNED = f"passes on what it should have refused: {B}: its signature does not cover these keys"


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (lambda k: {**k, B: replace(k[B], masking=k[C].masking)}, NOT_SIGNED),
        (lambda k: {**k, B: replace(k[B], sealing=bytes(range(32)))}, NOT_SIGNED),
        (lambda k: {**k, B: replace(k[B], sealing=k[B].masking, masking=k[B].sealing)}, NOT_SIGNED),
        (lambda k: {**k, B: replace(k[B], signature=b"")}, NOT_SIGNED),
        (lambda k: {**k, B: replace(k[B], signature=k[C].signature)}, NOT_SIGNED),
        (lambda k: {**k, B: replace(k[B], signature=bytes(64))}, NOT_SIGNED),
        (lambda k: {**k, B: k[C], C: k[B]}, NOT_SIGNED),
        (lambda k: {**k, B: k[C]}, NOT_SIGNED),
        (lambda k: {**k, B: k[A]}, NOT_SIGNED),
        (lambda k: {**k, B: signed_keys(terms_of(5), "nobody", b"s" * 32, b"m" * 32)}, NOT_SIGNED),
        (lambda k: {**k, B: other_keys(B, query="paid 2025")}, NOT_SIGNED),
        (lambda k: {**k, B: other_keys(B, question=b"\1" * 32)}, NOT_SIGNED),
        (lambda k: {**k, B: other_keys(B, parties=4)}, NOT_SIGNED),
        (lambda k: {**k, B: other_keys(B, threshold=4)}, NOT_SIGNED),
        (lambda k: {**k, "nobody": k[B]}, "keys of nobody, which is not on the roster"),
        (lambda k: {n: k[n] for n in k if n != A}, f"keys of {A} other than those it sent"),
        (lambda k: {**k, A: other_keys(A)}, f"keys of {A} other than those it sent"),
    ],
    ids=[
        "masking key of another", "sealing key of nobody", "swapped", "unsigned", "signed by C",
        "zeros as signature", "B and C swapped", "C's as B's", "A's as B's", "a stranger's",
        "another query", "another question", "another roster", "another threshold",
        "on no roster", "own left out", "own of an earlier day",
    ],
)  # fmt: skip
def test_keys_that_are_not_those_of_the_parties_in_this_sum_are_refused(four_of_five, lie, words):
    with blamed("coordinator", words):
        ask(four_of_five, 1, A, lie(four_of_five.keys))


def test_one_key_in_two_places_is_refused(four_of_five):
    keys, terms = four_of_five.keys, four_of_five.terms
    for sealing, masking in (
        (keys[B].masking, keys[B].masking),
        (keys[B].sealing, keys[C].masking),
        (keys[A].masking, keys[B].masking),
        (keys[D].sealing, keys[B].masking),
    ):
        with blamed("coordinator", "the same key twice|degenerate key"):
            ask(four_of_five, 1, A, {**keys, B: signed_keys(terms, B, sealing, masking)})


@pytest.mark.parametrize("low", LOW_ORDER, ids=lambda key: key[::-1].hex()[:8])
def test_a_public_key_of_low_order_is_refused_before_anything_is_masked(four_of_five, low):
    keys, terms = four_of_five.keys, four_of_five.terms
    for sealing, masking in ((low, keys[B].masking), (keys[B].sealing, low)):
        with blamed("coordinator", "degenerate"):
            bad = {**keys, B: signed_keys(terms, B, sealing, masking)}
            seat, _ = ask(four_of_five, 1, A, bad)
            ask(four_of_five, 2, A, seat=seat)


def test_no_party_goes_on_with_fewer_than_the_sum_needs(four_of_five):
    said = four_of_five
    for step, shown in (
        (1, {name: said.keys[name] for name in (A, B)}),
        (2, {B: said.dealt[A][B]}),
        (3, [A, B]),
    ):
        with pytest.raises(TooFewParties, match="2 parties are left, at least 3 are needed"):
            ask(said, step, A, shown)
    for count in range(3):
        confirmations = dict(list(said.confirmations.items())[:count])
        with pytest.raises(TooFewParties, match=f"{count} parties confirmed .* 3 are needed"):
            ask(said, 4, A, confirmations)


def test_a_sum_under_a_roster_without_the_party_is_refused():
    with blamed("coordinator", "a roster without this party"):
        masks.advertise(PEOPLE["nobody"], terms_of(3), bytes(32))


@pytest.mark.parametrize(
    ("done", "asked"), [(d, s) for d, s in product(range(6), range(1, 5)) if d != s]
)
def test_a_step_out_of_order_or_asked_twice_is_refused(four_of_five, done, asked):
    seat = four_of_five.seats[done - 1][A] if done else Seat(bytes(32))
    with blamed("coordinator", f"asks for step {asked} of a party that is at step {done}$"):
        ask(four_of_five, asked, A, seat=seat)


def test_shares_of_somebody_without_keys_are_refused():
    said = play(terms_of(5), leaves={E: 0}, until=2)
    for name in ("nobody", A, E):
        with blamed("coordinator", "shares from somebody who showed no keys"):
            ask(said, 2, A, {**said.dealt[A], name: bytes(82)})


def test_a_false_list_of_who_sent_a_vector_is_refused():
    said = play(terms_of(5), leaves={E: 1}, until=2)
    twice = "counts a party twice, or one that shared no secrets"
    for present, words in (
        ([B, C, D], f"leaves out {A}, which sent its vector"),
        ([A, B, C, C], twice),
        ([A, A, B, C], twice),
        ([A, B, C, "nobody"], twice),
        ([A, B, C, E], twice),  # who showed keys, but shared nothing
    ):
        with blamed("coordinator", words):
            ask(said, 3, A, present)


def confirmation(name, terms, present):
    """What a party signs to confirm who is in a sum."""
    parts = [terms.digest, *(other.encode() for other in sorted(present))]
    return PEOPLE[name].sign(masks.MASKED, wire.join(masks.MASKED, parts))


@pytest.mark.parametrize(
    ("name", "lie"),
    [
        (B, lambda said: confirmation(B, said.terms, [A, B, C])),
        (B, lambda said: confirmation(B, said.terms, [A, B, C, D, E])),
        (B, lambda said: said.confirmations[C]),
        (B, lambda said: said.keys[B].signature),
        (B, lambda said: b""),
        (B, lambda said: confirmation(B, terms_of(5, query="paid 2025"), said.masked)),
        (B, lambda said: confirmation(B, terms_of(5, threshold=4), said.masked)),
        (B, lambda said: confirmation(E, said.terms, said.masked)),
        (E, lambda said: confirmation(E, said.terms, said.masked)),
        ("nobody", lambda said: confirmation("nobody", said.terms, said.masked)),
    ],
    ids=[
        "D gone", "E present", "C's as B's", "signed for another purpose", "unsigned",
        "another query", "another threshold", "E's as B's", "of one not in the sum", "a stranger's",
    ],
)  # fmt: skip
def test_a_confirmation_that_is_not_of_this_very_sum_is_refused(four_of_five, name, lie):
    honest = four_of_five.confirmations
    assert honest[B] == confirmation(B, four_of_five.terms, four_of_five.masked)
    confirmations = {**honest, name: lie(four_of_five)}
    with blamed("coordinator", f"shows {name} and {A} different lists of who is present$"):
        ask(four_of_five, 4, A, confirmations)


def shares_got(said, victim, told, colluders=()):
    """How many shares of the victim's two secrets are revealed if some are told that it is gone.

    A colluder confirms and reveals whatever the coordinator wants.
    """
    shares = {"own": 0, "masking": 0}
    for gone in (False, True):
        present = [name for name in said.masked if not gone or name != victim]
        group = [n for n in present if n in colluders or (n in told) == gone]
        try:
            answers = {name: ask(said, 3, name, present) for name in group}
            confirmations = {name: signed for name, (_, signed) in answers.items()}
            revealed = [ask(said, 4, n, confirmations, s)[1] for n, (s, _) in answers.items()]
        except TooFewParties:
            continue
        shares["own"] += sum(victim in each.own for each in revealed)
        shares["masking"] += sum(victim in each.masking for each in revealed)
    return min(shares.values())


def most_shares(parties, threshold, colluders=()):
    """Of the secret of which fewer shares are got, in the best split for the coordinator."""
    said = play(terms_of(parties, threshold), until=2)
    others = [name for name in said.masked if name != A and name not in colluders]
    splits = chain.from_iterable(combinations(others, k) for k in range(len(others) + 1))
    return max(shares_got(said, A, told, colluders) for told in splits)


@pytest.mark.parametrize("parties", [3, 4, 5, 6])
def test_a_party_said_alive_to_some_and_gone_to_others_keeps_one_secret_whole(parties):
    assert most_shares(parties, majority(parties)) == 0


@pytest.mark.parametrize(
    ("parties", "threshold", "safe"),
    [(4, 3, True), (6, 4, True), (5, 3, False), (5, 4, True)],
)
def test_a_colluder_is_withstood_by_thresholds_above_half_of_the_parties_and_it(
    parties, threshold, safe
):
    assert safe == (2 * threshold - parties > 1)
    assert (most_shares(parties, threshold, [B]) < threshold) == safe


def revealed_after(said, lie):
    """What A reveals at the end if the coordinator changed the shares sealed to it."""
    seat, _ = ask(said, 2, A, {**said.dealt[A], **lie})
    seat, _ = ask(said, 3, A, seat=seat)
    return ask(said, 4, A, seat=seat)[1]


@pytest.mark.parametrize(
    "lie",
    [
        lambda said: {B: said.dealt[A][C], C: said.dealt[A][B]},
        lambda said: {B: said.dealt[C][B]},
        lambda said: {B: said.dealt[B][A]},
        lambda said: {B: said.dealt[A][B][:-1] + bytes([said.dealt[A][B][-1] ^ 1])},
        lambda said: {B: bytes([said.dealt[A][B][0] ^ 128]) + said.dealt[A][B][1:]},
        lambda said: {B: said.dealt[A][B][:-1]},
        lambda said: {B: b""},
        lambda said: {B: play(terms_of(5, query="paid 2025"), until=1).sealed[B][A]},
        lambda said: {B: play(terms_of(5), seed=1, until=1).sealed[B][A]},
    ],
    ids=[
        "swapped", "sealed to C", "A's own to B", "tag altered", "altered", "cut off", "nothing",
        "of another query", "of another day",
    ],
)  # fmt: skip
def test_with_altered_shares_a_party_stops_before_it_reveals_anything(four_of_five, lie):
    with suspected(B):
        revealed_after(four_of_five, lie(four_of_five))


def test_a_party_shown_other_terms_at_the_last_step_reveals_nothing(four_of_five):
    said = four_of_five
    for terms in (terms_of(5, query="paid 2025"), terms_of(5, threshold=4), terms_of(6, 4)):
        confirmations = {name: confirmation(name, terms, said.masked) for name in said.masked}
        with suspected(B):
            ask(said, 4, A, confirmations, terms=terms)


# Parties that lie, and the coordinator that finds them.


def names(one, other):
    return wire.join(masks.DEALT, [one.encode(), other.encode()])


def agreed(said, one, other, kind, use):
    """The key that two parties derive, from the seed of one and the public key of the other."""
    private = X25519PrivateKey.from_private_bytes(derived(said.seeds[one], b"masks " + kind))
    public = X25519PublicKey.from_public_bytes(getattr(said.keys[other], kind.decode()))
    return derived(private.exchange(public), use + said.terms.digest)


def box(said, sender, receiver):
    key = agreed(said, sender, receiver, b"sealing", b"sealing " + names(sender, receiver))
    return ChaCha20Poly1305(key)


def sealed_anew(said, sender, receiver, change):
    """Shares as a party that lies about them seals them."""
    sealed, aad = said.sealed[sender][receiver], names(sender, receiver)
    plain = box(said, sender, receiver).decrypt(bytes(12), sealed, aad)
    return box(said, sender, receiver).encrypt(bytes(12), change(plain), aad)


def test_keys_and_confirmations_that_a_party_did_not_sign_are_refused(four_of_five):
    terms, keys = four_of_five.terms, four_of_five.keys
    assert masks.checked_keys(terms, B, keys[B]) == keys[B]
    for bad in (keys[C], replace(keys[B], masking=keys[C].masking), other_keys(B, query="2025")):
        with blamed(B, f"{B}: its signature does not cover these keys for query paid 2024"):
            masks.checked_keys(terms, B, bad)
    signed, present = four_of_five.confirmations[B], list(four_of_five.masked)
    assert masks.checked_confirmation(terms, B, present[::-1], signed) == signed
    for others, bad in ((present[:-1], signed), ([*present, E], signed), (present, bytes(64))):
        with blamed(B, f"{B}: signed a different list of parties"):
            masks.checked_confirmation(terms, B, others, bad)


def test_a_masked_vector_of_another_size_is_refused(four_of_five):
    data = four_of_five.masked[B]
    for bad in (b"", data[:-1], data[:-8], data + b"\0", data + bytes(8), data * 2):
        with blamed(B, f"{B}: its masked vector does not have the agreed size"):
            masks.checked_masked(four_of_five.terms, B, FORM, bad)


@pytest.mark.parametrize(
    ("lane", "more", "words"),
    [
        (0, 1, "contributions"),
        (0, 2**64 - 1, "contributions"),
        (2, 2**20, "bound"),
        (2, 2**64 - 2**20, "bound"),
        (6, 2**20, "bound"),
        (7, 2**64 - 2**20, "bound"),
    ],
)
def test_a_vector_with_a_false_count_or_beyond_its_bound_is_noticed(
    four_of_five, lane, more, words
):
    vector = np.frombuffer(four_of_five.masked[B], dtype="<u8").copy()
    vector[lane : lane + 1] += np.uint64(more)
    with pytest.raises(InconsistentSum, match=words):
        total(four_of_five, masked={**four_of_five.masked, B: vector.tobytes()})


@pytest.mark.parametrize("change", [lambda v: v + 1, lambda v: 0, lambda v: v ^ 1 << 255])
@pytest.mark.parametrize("liar", [A, B, C])
def test_a_false_share_is_noticed(four_of_five, liar, change):
    three = {name: four_of_five.revealed[name] for name in (A, B, C)}
    for use, of, words in (("own", D, "false"), ("masking", E, f"{E}'s secret do not fit its key")):
        told = getattr(three[liar], use)
        lie = replace(three[liar], **{use: {**told, of: change(told[of])}})
        with pytest.raises(InconsistentSum, match=words):
            total(four_of_five, revealed={**three, liar: lie})


def test_shares_of_a_secret_longer_than_any_are_refused(four_of_five):
    three = {name: four_of_five.revealed[name] for name in (A, B, C)}
    shares = [three[name].own[D] for name in three]
    weight = secret_of([1, 0, 0], [1, 2, 3])
    more = (2**256 - secret_of(shares, [1, 2, 3])) * pow(weight, -1, masks.PRIME)
    own = {**three[A].own, D: (shares[0] + more) % masks.PRIME}
    with pytest.raises(InconsistentSum, match="do not fit together"):
        total(four_of_five, revealed={**three, A: replace(three[A], own=own)})


def test_a_share_that_is_withheld_is_noticed(four_of_five):
    three = {name: four_of_five.revealed[name] for name in (A, B, C)}
    for use, of in (("own", D), ("masking", E)):
        held = {name: share for name, share in getattr(three[B], use).items() if name != of}
        with pytest.raises(TooFewParties, match="2 shares of a secret, 3 are needed"):
            total(four_of_five, revealed={**three, B: replace(three[B], **{use: held})})


def test_a_party_that_deals_false_shares_is_noticed():
    said = play(terms_of(3))
    right = plain_sum(said.arrays.values())

    def revealed(change):
        return {**said.revealed, A: revealed_after(said, {B: sealed_anew(said, B, A, change)})}

    assert lists(total(said, revealed=revealed(lambda plain: plain))) == right
    with pytest.raises(InconsistentSum, match="false"):
        total(said, revealed=revealed(lambda plain: bytes([plain[0], plain[1] ^ 1]) + plain[2:]))
    for change in (lambda plain: plain[:-1], lambda plain: plain + b"\0", lambda plain: b""):
        with suspected(B):
            revealed(change)


# Secrecy, measured beside a twin without protection.


@pytest.fixture(scope="module")
def zeros_and_bounds():
    """Two hundred sums in which everybody holds zeros, or everybody the bound."""
    labels = np.random.default_rng(1).permutation(200) % 2 == 1
    terms, views = terms_of(3), {"clear": [], "masked": [], "added": []}
    for seed, label in enumerate(labels):
        values = [np.full(field.size, field.bound * label) for field in FORM]
        said = play(terms, seed, arrays=dict.fromkeys(NAMES[:3], values), until=2)
        vectors = [np.frombuffer(data, dtype="<u8") for data in said.masked.values()]
        views["clear"].append(encoded(FORM, values, 3))
        views["masked"].append(vectors[seed % 3])
        views["added"].append(added(vectors, FORM, 3))
    return labels, {view: np.array(vectors).view(np.uint8) for view, vectors in views.items()}


def right_guesses(labels, data):
    """How many of the second half are told apart by the mean bits of the first."""
    bits, half = np.unpackbits(data, axis=1).astype(float), len(labels) // 2
    means = [bits[:half][labels[:half] == label].mean(axis=0) for label in (False, True)]
    away = [((bits[half:] - mean) ** 2).sum(axis=1) for mean in means]
    return int(((away[1] < away[0]) == labels[half:]).sum())


def test_masked_vectors_of_zeros_and_of_bounds_are_told_apart_no_better_than_by_a_coin(
    zeros_and_bounds,
):
    labels, views = zeros_and_bounds
    assert right_guesses(labels, views["clear"]) == 100
    for view in ("masked", "added"):  # added: masks of pairs have gone, own masks have not
        assert binom.ppf(1e-4, 100, 0.5) <= right_guesses(labels, views[view])
        assert right_guesses(labels, views[view]) <= binom.ppf(1 - 1e-4, 100, 0.5)


def test_bytes_of_masked_vectors_are_spread_evenly(zeros_and_bounds):
    def spread(data):
        seen, expected = np.bincount(data.ravel(), minlength=256), data.size / 256
        return ((seen - expected) ** 2 / expected).sum()

    low, high = chi2.ppf([1e-4, 1 - 1e-4], 255)
    labels, views = zeros_and_bounds
    assert spread(views["clear"]) > 100 * high
    for label in (False, True):
        for view in ("masked", "added"):
            assert low < spread(views[view][labels == label]) < high


def test_lengths_of_messages_do_not_depend_on_values():
    def sizes(values, seed):
        said = play(terms_of(4), seed, {D: 2}, dict.fromkeys(NAMES[:4], values))
        return [
            {name: len(keys.to_bytes()) for name, keys in said.keys.items()},
            {name: list(map(len, sealed.values())) for name, sealed in said.sealed.items()},
            {name: len(data) for name, data in said.masked.items()},
            {name: len(signed) for name, signed in said.confirmations.items()},
            {name: len(revealed.to_bytes()) for name, revealed in said.revealed.items()},
            {name: len(seat.to_bytes()) for seats in said.seats for name, seat in seats.items()},
        ]

    bounds = [np.full(field.size, field.bound) for field in FORM]
    random = whole_numbers(np.random.default_rng(2))
    first = sizes([np.zeros(3), np.zeros(2)], 0)
    assert first[0][A] == 148
    assert first[1][A] == [82] * 3
    assert first[2][A] == 8 * vector_lanes(FORM, 4) == 64
    for seed, values in enumerate([bounds, [-b for b in bounds], random, random]):
        assert sizes(values, seed) == first


def test_two_sums_of_the_same_values_share_no_bytes():
    values = [np.full(field.size, field.bound) for field in FORM]
    seen = []
    for seed in (0, 1):
        said = play(terms_of(4), seed, arrays=dict.fromkeys(NAMES[:4], values), until=2)
        seen += [data[at : at + 8] for data in said.masked.values() for at in range(57)]
    assert len(set(seen)) == len(seen) == 2 * 4 * 57


def test_masked_vectors_add_up_to_the_sum_only_without_their_own_masks():
    said = play(terms_of(4))
    right = plain_sum(said.arrays.values())
    vector = added([np.frombuffer(data, "<u8") for data in said.masked.values()], FORM, 4)
    clear = added([encoded(FORM, arrays, 4) for arrays in said.arrays.values()], FORM, 4)
    assert (vector != clear).all()
    with pytest.raises(InconsistentSum):
        decoded(FORM, vector, 4, 4)
    own = [(next(streams(said, name))[0], False) for name in said.masked]
    for count in range(1, 5):
        less = vector.copy()
        apply_streams(less, own[:count], FORM, 4)
        assert (less == clear).all() == (count == 4)
    assert lists(decoded(FORM, less, 4, 4)) == right == lists(total(said))


def test_no_party_ever_reveals_both_secrets_of_anybody():
    for leaves in ({}, {E: 1}, {E: 2}, {E: 3}, {E: 4}, {D: 2, E: 3}, {D: 1, E: 2}, {D: 2, E: 2}):
        said = play(terms_of(5), leaves=leaves)
        assert len(said.revealed) >= 3
        for revealed in said.revealed.values():
            assert not set(revealed.own) & set(revealed.masking)
            assert set(revealed.own) == set(said.masked)
            assert set(revealed.masking) == set(said.dealers) - set(said.masked)


def test_a_seat_shows_no_secret_and_keeps_none_after_the_last_step(four_of_five):
    for seats in four_of_five.seats:
        for name, seat in seats.items():
            assert repr(seat) == str(seat) == f"Seat(after step {seat.step})"
            assert (seat.seed == four_of_five.seeds[name]) == (seat.step < 5)
    for last in four_of_five.seats[4].values():
        assert not last.seed.strip(b"\0")
        assert not last.sealed_shares


# Keys of streams.


def streams(said, name):
    """Key, whose it is, and whether it is added: of each stream of a party, its own first."""
    own = derived(said.seeds[name], b"masks own")
    said_of = [f"{f.size} {f.bound.hex()} {f.resolution.hex()}".encode() for f in FORM]
    form = wire.digest(b"SAGGMV01", [said.terms.digest, *said_of])
    yield derived(own, b"own " + form), name, True
    for other in said.dealt[name]:
        pair = tuple(sorted((name, other)))
        yield (
            agreed(said, name, other, b"masking", b"pair " + form + names(*pair)),
            pair,
            name < other,
        )


def test_a_masked_vector_is_the_vector_under_its_streams_and_nothing_else(four_of_five):
    said = four_of_five
    for name, data in said.masked.items():
        vector = encoded(FORM, said.arrays[name], 5)
        apply_streams(vector, [(key, add) for key, _, add in streams(said, name)], FORM, 5)
        assert vector.tobytes() == data


def test_no_key_is_used_for_two_streams_or_seals_in_one_sum_or_several():
    used = {}
    for sum_number, said in enumerate(
        [
            play(terms_of(6), until=2),
            play(terms_of(6), seed=1, until=2),
            play(terms_of(6, query="paid 2025"), until=2),
            play(terms_of(6, question=b"\1" * 32), until=2),
            play(terms_of(6, threshold=5), until=2),
            play(terms_of(5), until=2),
            play(terms_of(4), until=2),
        ]
    ):
        signs = {}
        for name in said.masked:
            for key, label, add in streams(said, name):
                assert used.setdefault(key, (sum_number, label)) == (sum_number, label)
                signs.setdefault(label, []).append(add)
            for other in said.dealt[name]:
                use = b"sealing " + names(name, other)
                key = agreed(said, name, other, b"sealing", use)
                sealed = said.sealed[name][other]
                ChaCha20Poly1305(key).decrypt(bytes(12), sealed, names(name, other))
                assert used.setdefault(key, (sum_number, use)) == (sum_number, use)
        # Each pair's stream is added once and subtracted once, each own one added.
        assert all(
            sorted(found) == ([True] if isinstance(label, str) else [False, True])
            for label, found in signs.items()
        )
    assert len(used) == 5 * (6 + 15 + 30) + (5 + 10 + 20) + (4 + 6 + 12)


def test_the_same_seeds_give_other_streams_for_another_query_question_or_roster():
    arrays, lanes = {name: [np.zeros(3), np.zeros(2)] for name in NAMES[:5]}, []
    for terms in (
        terms_of(5),
        terms_of(5, query="paid 2025"),
        terms_of(5, question=b"\1" * 32),
        terms_of(5, threshold=4),
        terms_of(4),
    ):
        said = play(terms, arrays=arrays, until=2)
        lanes += np.frombuffer(said.masked[A], dtype="<u8").tolist()
    assert len(set(lanes)) == len(lanes) == 5 * 8


def secret_of(shares, at):
    """What Shamir's shares at these places hold, modulo the prime above 2**256."""
    prime, secret = int(gmpy2.next_prime(2**256)), Fraction(0)
    for x, share in zip(at, shares, strict=True):
        secret += share * math.prod(Fraction(-o, x - o) for o in at if o != x)
    return secret.numerator * pow(secret.denominator, -1, prime) % prime


def test_shares_open_the_secret_from_the_threshold_on_and_not_below(four_of_five):
    at = {name: place for place, name in enumerate(NAMES[:5], start=1)}
    for use, of in (("own", A), ("own", C), ("masking", E)):
        secret = int.from_bytes(derived(four_of_five.seeds[of], b"masks " + use.encode()), "big")
        for count in range(1, 5):
            for some in combinations(four_of_five.revealed, count):
                shares = [getattr(four_of_five.revealed[name], use)[of] for name in some]
                found = secret_of(shares, [at[name] for name in some])
                assert (found == secret) == (count >= 3)


# Bytes.


def through_bytes(item):
    """The item as it comes back from bytes, which are the same again."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, dict):
        return masks.pairs_in(masks.pairs_out(item))
    again = type(item).from_bytes(item.to_bytes())
    assert again.to_bytes() == item.to_bytes()
    return again


@pytest.mark.parametrize("leaves", [{}, {E: 1}, {E: 2}, {D: 2, E: 3}, {E: 4}])
def test_a_sum_whose_seats_and_messages_all_travel_as_bytes_is_the_same_sum(leaves):
    there = play(terms_of(5), leaves=leaves, passed=through_bytes)
    here = play(terms_of(5), leaves=leaves)
    for said in ("keys", "sealed", "masked", "confirmations", "revealed"):
        assert getattr(there, said) == getattr(here, said)
    right = plain_sum(here.arrays[name] for name in here.masked)
    assert lists(total(there)) == lists(total(here)) == right


def messages(said):
    return [said.keys[B], said.revealed[B], *(seats[B] for seats in said.seats)]


def test_bytes_that_are_cut_extended_or_of_another_version_are_refused(four_of_five):
    for item in messages(four_of_five):
        data, read = item.to_bytes(), type(item).from_bytes
        for bad in [data[:size] for size in range(len(data))] + [data + b"\0", data * 2, b""]:
            with pytest.raises(MalformedMessage):
                read(bad)
        for version in (b"00", b"02", b"99", b"\0\0"):
            with pytest.raises(MalformedMessage, match="version"):
                read(data[:6] + version + data[8:])
        for other in messages(four_of_five):
            if type(other) is not type(item):
                with pytest.raises(MalformedMessage):
                    read(other.to_bytes())


def test_parts_of_other_sizes_and_names_that_do_not_pair_up_are_refused(four_of_five):
    share, dealt = bytes(33), masks.DEALT
    none, nobody = wire.join(dealt, []), wire.join(masks.SEAT, [])
    keys = wire.join(dealt, [b"A", four_of_five.keys[B].to_bytes()[:-1]])
    tables = [
        wire.join(dealt, [b"A", share, b"A", share]),
        wire.join(dealt, [b"A", share, b"B"]),
        wire.join(dealt, [b"A"]),
        wire.join(dealt, [b"\xff", share]),
    ]
    sizes = [wire.join(dealt, [b"A", bytes(size)]) for size in (0, 32, 34)]
    for kind, head, parts in [
        (Keys, masks.KEYS, [bytes(31), bytes(33), bytes(64)]),
        (Keys, masks.KEYS, [bytes(33), bytes(31), bytes(64)]),
        (Keys, masks.KEYS, [bytes(32), bytes(32)]),
        (Seat, masks.SEAT, [bytes(31), b"\1", none, none, nobody]),
        (Seat, masks.SEAT, [bytes(32), b"", none, none, nobody]),
        (Seat, masks.SEAT, [bytes(32), b"\1\1", none, none, nobody]),
        (Seat, masks.SEAT, [bytes(32), b"\1", none, none, wire.join(masks.SEAT, [b"\xff"])]),
        (Seat, masks.SEAT, [bytes(32), b"\1", keys, none, nobody]),
        *[(Revealed, masks.REVEALED, [table, none]) for table in tables + sizes],
        *[(Revealed, masks.REVEALED, [none, table]) for table in tables + sizes],
    ]:
        with pytest.raises(MalformedMessage):
            kind.from_bytes(wire.join(head, parts))


def mutated(data, generator):
    """A few bytes changed, left out, doubled or put elsewhere."""
    at, to = sorted(generator.integers(0, len(data) + 1, 2))
    match generator.integers(4):
        case 0:
            return data[:at] + data[to:]
        case 1:
            return data[:to] + data[at:]
        case 2:
            return data[:at] + generator.bytes(generator.integers(1, 9)) + data[at:]
    changed = np.frombuffer(data, np.uint8).copy()
    places = generator.integers(0, len(data), generator.integers(1, 4))
    changed[places] ^= generator.integers(1, 256, len(places)).astype(np.uint8)
    return changed.tobytes()


def test_mutated_bytes_are_refused_or_have_one_meaning(four_of_five):
    generator = np.random.default_rng(3)
    for item in messages(four_of_five):
        data, refused = item.to_bytes(), 0
        for _ in range(800):
            bad = mutated(data, generator)
            try:
                again = type(item).from_bytes(bad)
            except SecureAggError:
                refused += 1
            else:
                assert again.to_bytes() == bad
        assert refused > 200


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(data):
    for kind, head in ((Keys, masks.KEYS), (Revealed, masks.REVEALED), (Seat, masks.SEAT)):
        for bad in (data, head + data):
            with pytest.raises(SecureAggError):
                kind.from_bytes(bad)


def test_mutated_keys_are_nobodys_and_mutated_shares_give_no_false_sum(four_of_five):
    said, generator = four_of_five, np.random.default_rng(4)
    right = plain_sum(said.arrays[name] for name in said.masked)
    keys, revealed = said.keys[B].to_bytes(), said.revealed[B].to_bytes()
    for _ in range(300):
        bad = mutated(keys, generator)
        if bad != keys:
            with pytest.raises((MalformedMessage, FaultyParty)):
                masks.checked_keys(said.terms, B, Keys.from_bytes(bad))
        try:
            lie = Revealed.from_bytes(mutated(revealed, generator))
            sums = total(said, revealed={**said.revealed, B: lie})
        except SecureAggError:
            continue
        assert lists(sums) == right


def test_known_bytes():
    arrays = {name: [[-100, 0.25, 99.75], [-1, 2.0**70]] for name in NAMES[:3]}
    said = play(terms_of(3), arrays=arrays)
    seat, revealed = said.seats[2][A], said.revealed[A]
    known = {
        said.terms.digest: "f41535ab101756fa3be540af6bed0d35dc415bba187d32689580533ce6eeaeed",
        said.keys[A].to_bytes(): "97161a95a05a06b255ca0c85d3a45c4de6ace05f1314e50789d018b65d5073e6",
        said.sealed[A][B]: "f16a5b81ebabfd1275a0fd4fc70454c4c006af9d7b1570b9d5edd941df1be2e3",
        said.masked[A]: "91f649a3c6323be54e854e37a0fe8cbaeec48f1b367260c52f86228e98e62f47",
        said.confirmations[A]: "93cc2290b655068f67169ace4c6f5fe4614c7b0839b61942e8fe00a99b84f4f0",
        revealed.to_bytes(): "c650378c558b01916850788ff10c59f3b61300e3de8f48482df98eb84fe36446",
        seat.to_bytes(): "ec45d80255b4ac6934c357b46236a418e6367d611794486ae09c4d3ad5ede2ab",
    }
    for data, digest in known.items():
        assert hashlib.sha256(data).hexdigest() == digest
    assert gmpy2.next_prime(2**256) == masks.PRIME
