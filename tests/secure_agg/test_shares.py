"""A key that nobody holds alone: who can open, who lied, and what is never shown."""

from __future__ import annotations

import copy
import hashlib
import pickle
import random
import stat
from dataclasses import replace
from itertools import combinations

import gmpy2
import numpy as np
import pytest
from gmpy2 import mpz

from secure_agg import keys, shares, wire
from secure_agg.errors import (
    FaultyCoordinator,
    FaultyHolder,
    InvalidKey,
    KeyFileRefused,
    MalformedMessage,
    MissingHolder,
)
from secure_agg.identity import Identity, Roster
from secure_agg.keys import PrivateKey
from secure_agg.packing import Field, Layout
from secure_agg.paillier import decrypt, decrypt_raw, encrypt
from secure_agg.shares import (
    KeyShare,
    Part,
    SplitKey,
    combine,
    deal,
    give_part,
    holds,
    load_share,
    open_share,
    open_with,
    prove_part,
    save_share,
    seal_share,
)
from secure_agg.transcript import Terms, Transcript, contribute, examine

NAMES = ("Alba", "Bora", "Cima", "Dora", "Enna")
IDENTITIES = {name: Identity(name, name.encode() * 8) for name in NAMES}
ROSTER = Roster(tuple(identity.card for identity in IDENTITIES.values()))
PARTIES = NAMES[:3]
HOLDERS = NAMES[1:4]
LAYOUT = Layout((Field(20, 2.0**60, 2.0**-64),), 3, 2048)
CONTEXT = b"context"


@pytest.fixture(scope="module")
def shown(private):
    """A function from a query and one of two sets of batches to an honest transcript."""
    generator = np.random.default_rng(1)
    batches = [
        [encrypt(private.public, LAYOUT, [generator.normal(size=20)]).to_bytes() for _ in PARTIES]
        for _ in range(2)
    ]

    def transcript(query="claims 2031", batches_of=0):
        key = private.public.fingerprint
        terms = Terms(query, bytes(32), ROSTER.digest, PARTIES, key, LAYOUT)
        signed = zip(PARTIES, batches[batches_of], strict=True)
        return Transcript(terms, tuple(contribute(IDENTITIES[p], terms, b) for p, b in signed))

    return transcript


@pytest.fixture(scope="module")
def total(private, shown):
    """The product of the contributions."""
    return examine(ROSTER, shown(), private.public, ())


@pytest.fixture(scope="module")
def dealt(private):
    return deal(private, HOLDERS)


@pytest.fixture(scope="module")
def parts(dealt, shown):
    """Every holder's true part."""
    return {h: give_part(s, ROSTER, frozenset(), shown())[1] for h, s in dealt[1].items()}


@pytest.fixture(scope="module")
def small(private, dealt):
    """One ciphertext, its plaintext, and the true parts: for what is tried often."""
    ciphertexts = encrypt(private.public, Layout((Field(1, 9.0, 1.0),), 3, 2048), [[7]]).ciphertexts
    true = {h: prove_part(s, ciphertexts, CONTEXT) for h, s in dealt[1].items()}
    return ciphertexts, decrypt_raw(private, ciphertexts), true


def by_hand(public, ciphertexts, some):
    """What whoever has these parts finds by multiplying and lifting them; both signs are tried."""
    n, n_squared = public.n, public.n_squared
    found = set()
    for index, ciphertext in enumerate(ciphertexts):
        root = mpz(1)
        for part in some:
            root = root * part.numbers[index] % n
        lifted = gmpy2.powmod(root, n, n_squared)
        for factor in (lifted, -lifted):
            found.add((ciphertext * gmpy2.invert(factor, n_squared) % n_squared - 1) // n)
    return found


def proved(split, holder, exponent, ciphertexts, numbers, context=CONTEXT):
    """A part with these numbers, and as good a proof as knowing the exponent allows."""
    n = split.public.n
    bases = [c % n for c in ciphertexts]
    statement, (base, _) = shares._statement(split, holder, bases, numbers, context)
    nonce = mpz(random.Random(statement).getrandbits(2048 + 256))
    commitments = [gmpy2.powmod(of, nonce, n) for of in (split.base, base)]
    challenge = shares._challenge(statement, commitments, n)
    return Part(tuple(numbers), challenge, nonce + challenge * exponent)


# Who can open


def test_all_roles_in_order_give_the_exact_total(private):
    arrays = {name: [[k, -1.5 * k], [2**k]] for k, name in enumerate(IDENTITIES)}
    fields = (Field(2, 100.0, 0.5), Field(1, 2.0**60, 1.0))
    opened = shares.run(private, IDENTITIES, fields, arrays)
    for total, *each in zip(opened, *arrays.values(), strict=True):
        assert total.tolist() == np.sum(each, axis=0).tolist()


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_all_holders_open_the_exact_total_and_no_other_coalition_does(private, shown, total, count):
    holders = NAMES[:count]
    split, dealt = deal(private, holders)
    parts = {h: give_part(dealt[h], ROSTER, frozenset(), shown())[1] for h in holders}
    (opened,) = combine(split, ROSTER, shown(), parts)
    assert opened.tobytes() == decrypt(private, total)[0].tobytes()
    plaintexts = set(decrypt_raw(private, total.ciphertexts))
    assert plaintexts < by_hand(private.public, total.ciphertexts, parts.values())
    coalitions = [c for size in range(count) for c in combinations(holders, size)]
    assert len(coalitions) == 2**count - 1
    for coalition in coalitions:
        some = {holder: parts[holder] for holder in coalition}
        absent = [holder for holder in holders if holder not in coalition]
        with pytest.raises(MissingHolder, match=f"^{', '.join(absent)} gave no part"):
            combine(split, ROSTER, shown(), some)
        assert not plaintexts & by_hand(private.public, total.ciphertexts, some.values())


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_nothing_made_up_stands_in_for_a_missing_holder(private, small, count):
    ciphertexts, _, _ = small
    holders, n = NAMES[:count], private.public.n
    split, dealt = deal(private, holders)
    true = {h: prove_part(dealt[h], ciphertexts, CONTEXT) for h in holders}
    choose = random.Random(count)
    for absent in holders:
        exponent = mpz(choose.randrange(1, int(n)))
        powers = [gmpy2.powmod(c, exponent, n) for c in ciphertexts]
        for made_up in (
            Part((), mpz(0), mpz(0)),
            Part((mpz(1),), mpz(0), mpz(0)),
            proved(split, absent, exponent, ciphertexts, powers),
        ):
            with pytest.raises(FaultyHolder) as caught:
                open_with(split, ciphertexts, {**true, absent: made_up}, CONTEXT)
            assert caught.value.culprits == (absent,)
        with pytest.raises(InvalidKey, match="not the one announced"):
            KeyShare(split, absent, exponent)


def test_shares_are_spread_below_lambda_and_make_up_the_key(private):
    n, order = private.public.n, gmpy2.lcm(private.p - 1, private.q - 1)
    seen = []
    for _ in range(20):
        _, dealt = deal(private, HOLDERS)
        exponents = [dealt[holder].exponent for holder in HOLDERS]
        assert all(0 < exponent < order < n for exponent in exponents)
        assert sum(exponents) * n % order == 1
        seen += exponents
    assert len(set(seen)) == 60
    for at in range(3):
        assert 0.2 < np.mean([float(exponent / order) for exponent in seen[at::3]]) < 0.8


@pytest.mark.parametrize("holders", [[], ["Alba"], ["Alba", "Alba"], ["Alba", "Bora", "Alba"]])
def test_a_key_is_split_among_two_or_more_different_holders(private, holders):
    with pytest.raises(InvalidKey, match="at least two holders"):
        deal(private, holders)


def test_a_key_whose_bits_fill_no_whole_bytes_splits_too(private):
    private = PrivateKey(2 * private.p + 2005, 2 * private.q + 2001)
    split, dealt = deal(private, HOLDERS)
    batch = encrypt(private.public, Layout((Field(2, 10.0, 1.0),), 3, 2050), [[3, -4]])
    parts = {
        holder: Part.from_bytes(prove_part(share, batch.ciphertexts, b"").to_bytes(split), split)
        for holder, share in dealt.items()
    }
    assert open_with(split, batch.ciphertexts, parts, b"") == decrypt_raw(
        private, batch.ciphertexts
    )
    assert SplitKey.from_bytes(split.to_bytes()) == split


def test_many_ciphertexts_and_any_number_of_threads_open_to_the_same(private, dealt):
    split, shares_of = dealt
    factor = gmpy2.powmod(12345, split.public.n, split.public.n_squared)
    ciphertexts = [factor * (1 + m * split.public.n) % split.public.n_squared for m in range(20)]
    one, three = (
        {h: prove_part(s, ciphertexts, CONTEXT, workers=w) for h, s in shares_of.items()}
        for w in (1, 3)
    )
    assert one == three
    assert open_with(split, ciphertexts, one, CONTEXT, workers=3) == list(range(20))


# What a holder answers


def test_a_refused_transcript_leaves_the_query_to_be_answered_and_answered_once(
    private, shown, total, dealt
):
    split, shares_of = dealt
    good = shown()
    two = Transcript(good.terms, good.contributions[:2])
    swapped = [replace(good.contributions[0], batch=good.contributions[1].batch)]
    bent = Transcript(good.terms, (*swapped, *good.contributions[1:]))
    before = frozenset({"claims 2030"})
    parts = {}
    for holder, share in shares_of.items():
        for bad, words in ((two, "leaves out Cima"), (bent, "Alba: its signature")):
            with pytest.raises(FaultyCoordinator, match=words) as caught:
                give_part(share, ROSTER, before, bad)
            assert caught.value.culprits == ("coordinator",)
        after, parts[holder] = give_part(share, ROSTER, before, good)
        assert after == {"claims 2030", "claims 2031"}
        for again in (good, two, bent, Transcript(good.terms, ())):
            with pytest.raises(FaultyCoordinator, match="answered before"):
                give_part(share, ROSTER, after, again)
        assert give_part(share, ROSTER, after, shown("claims 2032"))[0] == after | {"claims 2032"}
    (opened,) = combine(split, ROSTER, good, parts)
    assert opened.tobytes() == decrypt(private, total)[0].tobytes()


def test_a_coordinator_cannot_combine_what_a_holder_would_refuse(dealt, shown, parts):
    for bad in (Transcript(shown().terms, shown().contributions[:2]), shown("claims 2033", 1)):
        with pytest.raises((FaultyCoordinator, FaultyHolder)):
            combine(dealt[0], ROSTER, bad, parts)


# Who lied


def lies(private, dealt, liar, transcript, other_transcript, parts):
    """False parts of one holder, of every kind."""
    split, shares_of = dealt
    n, p, context = private.public.n, private.p, transcript.terms.digest
    ciphertexts = examine(ROSTER, transcript, private.public, ()).ciphertexts
    true, share = parts[liar], shares_of[liar]
    first, second = true.numbers
    neighbour = HOLDERS[HOLDERS.index(liar) - 1]

    def anew(*numbers, exponent=share.exponent):
        return proved(split, liar, exponent, ciphertexts, numbers, context)

    yield "one number", replace(true, numbers=(first, second + 1))
    yield "one number, proved", anew(first, 2 * second % n)
    yield "all numbers", replace(true, numbers=(first + 1, second + 1))
    yield "all numbers, proved", anew(2 * first % n, 2 * second % n)
    yield "wrong order, proved", anew(second, first)
    yield "ones", anew(mpz(1), mpz(1))
    yield "other ciphertexts", prove_part(share, ciphertexts[::-1], context)
    yield "other transcript", give_part(share, ROSTER, frozenset(), other_transcript)[1]
    yield "other holder's part", parts[neighbour]
    stolen = shares_of[neighbour].exponent
    yield "other holder's share", anew(*parts[neighbour].numbers, exponent=stolen)
    yield "own part, other share's proof", anew(2 * first % n, second, exponent=stolen)
    yield "too few", replace(true, numbers=(first,))
    yield "too many", replace(true, numbers=(first, second, mpz(1)))
    yield "none", replace(true, numbers=())
    yield "zero", anew(mpz(0), second)
    yield "n", anew(n, second)
    yield "not prime to n", anew(p, second)
    yield "none prime to n", anew(p * first % n, p * second % n)


@pytest.mark.parametrize("liar", HOLDERS)
def test_a_holder_that_gives_a_false_part_is_named(private, dealt, shown, total, parts, liar):
    split, other = dealt[0], shown("claims 2032", 1)
    for kind, false in lies(private, dealt, liar, shown(), other, parts):
        with pytest.raises(FaultyHolder, match=f"^{liar}: gave a false part") as caught:
            combine(split, ROSTER, shown(), {**parts, liar: false})
        assert caught.value.culprits == (liar,), kind
    (opened,) = combine(split, ROSTER, shown(), parts)
    assert opened.tobytes() == decrypt(private, total)[0].tobytes()


@pytest.mark.parametrize("liars", [*combinations(HOLDERS, 2), HOLDERS])
def test_all_liars_are_named_and_nobody_else(dealt, small, liars):
    ciphertexts, _, true = small
    parts = {**true, **{h: replace(true[h], numbers=(true[h].numbers[0] + 1,)) for h in liars}}
    for order in (HOLDERS, HOLDERS[::-1]):
        with pytest.raises(FaultyHolder) as caught:
            open_with(dealt[0], ciphertexts, {h: parts[h] for h in order}, CONTEXT)
        assert set(caught.value.culprits) == set(liars)
        assert len(caught.value.culprits) == len(liars)


def test_no_honest_holder_is_ever_blamed(dealt, small):
    split, _ = dealt
    ciphertexts, plaintexts, true = small
    choose = random.Random(2)
    for _ in range(30):
        parts = dict(true)
        for liar in choose.sample(HOLDERS, choose.randrange(1, 4)):
            data = bytearray(true[liar].to_bytes(split))
            data[choose.randrange(20, len(data))] ^= choose.randrange(1, 256)
            try:
                parts[liar] = Part.from_bytes(bytes(data), split)
            except MalformedMessage:
                continue
        changed = {holder for holder in HOLDERS if parts[holder] != true[holder]}
        wrong = {holder for holder in changed if parts[holder].numbers != true[holder].numbers}
        if not wrong:
            assert open_with(split, ciphertexts, parts, CONTEXT) == plaintexts
            continue
        with pytest.raises(FaultyHolder) as caught:
            open_with(split, ciphertexts, parts, CONTEXT)
        assert set(caught.value.culprits) == changed


def test_a_stranger_s_part_is_refused_and_named(dealt, shown, total, parts):
    for name in ("Enna", "Nobody"):
        with pytest.raises(FaultyHolder, match=f"^{name}: holds no share of this key") as caught:
            combine(dealt[0], ROSTER, shown(), {**parts, name: parts["Bora"]})
        assert caught.value.culprits == (name,)
    bereft = {holder: part for holder, part in parts.items() if holder != "Bora"}
    with pytest.raises(MissingHolder, match=r"^Bora gave no part"):
        combine(dealt[0], ROSTER, shown(), {**bereft, "Enna": parts["Bora"]})


def test_true_numbers_open_whatever_proof_comes_with_them(private, dealt, shown, total, parts):
    split, context = dealt[0], shown().terms.digest
    true = parts["Cima"]
    unproved = {
        "challenge": replace(true, challenge=true.challenge ^ 1),
        "response": replace(true, response=true.response ^ 1),
        "none": replace(true, challenge=mpz(0), response=mpz(0)),
        "another holder's": replace(parts["Bora"], numbers=true.numbers),
        "another query's": prove_part(dealt[1]["Cima"], total.ciphertexts, bytes(32)),
    }
    assert holds(split, "Cima", total.ciphertexts, true, context)
    for kind, part in unproved.items():
        (opened,) = combine(split, ROSTER, shown(), {**parts, "Cima": part})
        assert opened.tobytes() == decrypt(private, total)[0].tobytes(), kind
        assert not holds(split, "Cima", total.ciphertexts, part, context), kind


def test_a_proof_is_for_one_holder_one_key_one_context_and_these_ciphertexts(private, dealt, small):
    split, _ = dealt
    ciphertexts, _, true = small
    again, _ = deal(private, HOLDERS)
    assert holds(split, "Bora", ciphertexts, true["Bora"], CONTEXT)
    assert not holds(split, "Cima", ciphertexts, true["Bora"], CONTEXT)
    assert not holds(again, "Bora", ciphertexts, true["Bora"], CONTEXT)
    assert not holds(split, "Bora", ciphertexts, true["Bora"], b"another context")
    assert not holds(split, "Bora", [ciphertexts[0] + 1], true["Bora"], CONTEXT)
    assert not holds(split, "Bora", [*ciphertexts, mpz(1)], true["Bora"], CONTEXT)


def test_minus_x_opens_as_x_does(private, dealt, shown, total, parts):
    split, shares_of = dealt
    n, context = split.public.n, shown().terms.digest
    first, second = parts["Dora"].numbers
    share = shares_of["Dora"]
    for numbers in ((n - first, second), (first, n - second), (n - first, n - second)):
        for part in (
            replace(parts["Dora"], numbers=numbers),
            proved(split, "Dora", share.exponent, total.ciphertexts, numbers, context),
        ):
            (opened,) = combine(split, ROSTER, shown(), {**parts, "Dora": part})
            assert opened.tobytes() == decrypt(private, total)[0].tobytes()
        assert holds(split, "Dora", total.ciphertexts, part, context)


def test_lies_that_cancel_out_change_nothing(dealt, small):
    split, _ = dealt
    ciphertexts, plaintexts, true = small
    n = split.public.n
    half = gmpy2.invert(2, n)
    parts = {
        **true,
        "Bora": replace(true["Bora"], numbers=(true["Bora"].numbers[0] * 2 % n,)),
        "Cima": replace(true["Cima"], numbers=(true["Cima"].numbers[0] * half % n,)),
    }
    assert open_with(split, ciphertexts, parts, CONTEXT) == plaintexts


# Who dealt


def made(private, base, exponents):
    """A split key and shares with these exponents, as a dealer of any kind would make them."""
    n = private.public.n
    images = {h: gmpy2.powmod(base, e, n) for h, e in zip(HOLDERS, exponents, strict=True)}
    split = SplitKey(private.public, base, images)
    return split, {h: KeyShare(split, h, e) for h, e in zip(HOLDERS, exponents, strict=True)}


def exponents_of(private, order):
    return [mpz(3), mpz(5), (gmpy2.invert(private.public.n, order) - 8) % order]


def test_images_that_do_not_make_up_the_key_are_refused(private, dealt):
    split, _ = dealt
    again, _ = deal(private, HOLDERS)
    for holder in HOLDERS:
        for image in (split.images[holder] + 1, again.images[holder], split.base):
            with pytest.raises(InvalidKey, match=r"the dealer made an error|squares modulo n"):
                SplitKey(split.public, split.base, {**split.images, holder: image})
        rest = {name: image for name, image in split.images.items() if name != holder}
        with pytest.raises(InvalidKey, match=r"the dealer made an error|squares modulo n"):
            SplitKey(split.public, split.base, rest)
    with pytest.raises(InvalidKey, match=r"the dealer made an error|squares modulo n"):
        SplitKey(split.public, again.base, split.images)
    true = exponents_of(private, gmpy2.lcm(private.p - 1, private.q - 1))
    assert made(private, mpz(4), true)[0].holders == HOLDERS
    with pytest.raises(InvalidKey, match=r"the dealer made an error|squares modulo n"):
        made(private, mpz(4), [*true[:2], true[2] + 1])


def test_images_out_of_range_are_refused(private, dealt):
    split, _ = dealt
    n, p = private.public.n, private.p
    for bad in (mpz(0), mpz(1), n, n + 4, -split.base, p, 3 * p):
        with pytest.raises(InvalidKey, match="squares modulo n") as caught:
            SplitKey(split.public, bad, split.images)
        assert str(p)[:9] not in str(caught.value)
        with pytest.raises(InvalidKey, match="squares modulo n"):
            SplitKey(split.public, split.base, {**split.images, "Bora": bad})
    for few in ({}, {"Bora": split.base}):
        with pytest.raises(InvalidKey, match=f"got {len(few)}"):
            SplitKey(split.public, split.base, few)


def test_a_dealer_that_deals_true_images_of_a_false_key_is_found_out(private, small):
    """Its base is 1 modulo q, so that shares need to be right modulo p - 1 alone."""
    ciphertexts, _, _ = small
    base = 1 + (4 - 1) * private.q * gmpy2.invert(private.q, private.p)  # 4 mod p, 1 mod q
    split, shares_of = made(private, base % private.public.n, exponents_of(private, private.p - 1))
    parts = {h: prove_part(share, ciphertexts, CONTEXT) for h, share in shares_of.items()}
    assert all(holds(split, h, ciphertexts, part, CONTEXT) for h, part in parts.items())
    with pytest.raises(InvalidKey, match="the dealer made an error"):
        open_with(split, ciphertexts, parts, CONTEXT)


def test_a_false_share_is_refused_by_its_holder(dealt):
    split, shares_of = dealt
    exponent = shares_of["Bora"].exponent
    n = split.public.n
    others = [exponent + 1, shares_of["Cima"].exponent, exponent + n, -exponent, n, mpz(0), mpz(1)]
    for bad in others:
        with pytest.raises(InvalidKey, match=r"^Bora: the share is not the one") as caught:
            KeyShare(split, "Bora", bad)
        assert str(exponent)[:9] not in str(caught.value)
    with pytest.raises(InvalidKey, match="Alba holds no share"):
        KeyShare(split, "Alba", exponent)


def sealed_by_a_dealer(split, holder, exponent, name):
    """What a dealer of any kind seals for a holder: a share said to be of `name`."""
    inside = wire.join(b"SAGGSH01", [name.encode(), exponent.to_bytes(256, "big")])
    return IDENTITIES[holder].card.seal(b"key share " + split.digest, inside)


def test_a_share_travels_sealed_to_its_holder_alone(private, dealt):
    split, shares_of = dealt
    for holder, share in shares_of.items():
        sealed = seal_share(share, ROSTER[holder])
        assert open_share(IDENTITIES[holder], split, sealed).exponent == share.exponent
        for other in set(NAMES) - {holder}:
            with pytest.raises(MalformedMessage, match=f"not for {other}"):
                open_share(IDENTITIES[other], split, sealed)
        with pytest.raises(MalformedMessage, match="not for this purpose"):
            open_share(IDENTITIES[holder], deal(private, HOLDERS)[0], sealed)
        for purpose in (b"", b"key share ", b"key share", split.digest):
            with pytest.raises(MalformedMessage, match="not for this purpose"):
                IDENTITIES[holder].unseal(purpose, sealed)
        for at in (0, 31, 32, 100, len(sealed) - 1):
            bad = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
            with pytest.raises(MalformedMessage, match="altered"):
                open_share(IDENTITIES[holder], split, bad)


def test_a_dealer_that_sends_a_holder_a_wrong_share_is_refused(dealt):
    split, shares_of = dealt
    own, other = shares_of["Bora"].exponent, shares_of["Cima"].exponent
    bora = IDENTITIES["Bora"]
    assert open_share(bora, split, sealed_by_a_dealer(split, "Bora", own, "Bora")).exponent == own
    for exponent in (other, own + 1, mpz(0)):
        with pytest.raises(InvalidKey, match="Bora: the share is not the one announced"):
            open_share(bora, split, sealed_by_a_dealer(split, "Bora", exponent, "Bora"))
    with pytest.raises(InvalidKey, match="Bora: was dealt somebody else's share"):
        open_share(bora, split, seal_share(shares_of["Cima"], bora.card))
    with pytest.raises(InvalidKey, match="Alba holds no share"):
        open_share(IDENTITIES["Alba"], split, sealed_by_a_dealer(split, "Alba", own, "Alba"))
    for inside in (b"", b"SAGGSH01", b"SAGGSH02", wire.join(b"SAGGSH01", [b"Bora"])):
        sealed = bora.card.seal(b"key share " + split.digest, inside)
        with pytest.raises(MalformedMessage):
            open_share(bora, split, sealed)


# What is never shown, and what never drifts


def test_nothing_prints_pickles_copies_or_changes_a_share(dealt):
    split, shares_of = dealt
    for holder, share in shares_of.items():
        text = f"KeyShare(of {holder}, key {split.public.fingerprint})"
        assert repr(share) == str(share) == f"{share}" == text
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="pickled"):
                pickle.dumps(share, protocol)
        for copier in (copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="copied"):
                copier(share)
        with pytest.raises(AttributeError):
            share.exponent = mpz(3)
        with pytest.raises(TypeError):
            vars(share)


def test_a_share_file_gives_the_share_back_to_its_owner_only(dealt, tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "SCRYPT", {"n": 2, "r": 1, "p": 1})
    share = dealt[1]["Bora"]
    path = tmp_path / "share.json"
    save_share(path, share, "correct horse")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    back = load_share(path, "correct horse")
    assert (back.exponent, back.holder, back.split) == (share.exponent, "Bora", share.split)
    content = path.read_text()
    assert f"{share.exponent:x}"[:16] not in content
    assert str(share.exponent)[:16] not in content
    with pytest.raises(KeyFileRefused, match="wrong passphrase"):
        load_share(path, "incorrect horse")
    with pytest.raises(KeyFileRefused, match="exists"):
        save_share(path, share, "another")
    for mode in (0o640, 0o604, 0o660, 0o777):
        path.chmod(mode)
        with pytest.raises(KeyFileRefused, match="chmod 600"):
            load_share(path, "correct horse")
    path.chmod(0o600)
    for old, new in (('"Bora"', '"Cima"'), ("key_share/1", "key_share/2"), (content[-40:], "")):
        path.write_text(content.replace(old, new))
        with pytest.raises(KeyFileRefused):
            load_share(path, "correct horse")


def test_a_share_file_and_a_key_file_are_not_taken_for_each_other(
    private, dealt, tmp_path, monkeypatch
):
    monkeypatch.setattr(keys, "SCRYPT", {"n": 2, "r": 1, "p": 1})
    keys.save_private(tmp_path / "key.json", private, "horse")
    save_share(tmp_path / "share.json", dealt[1]["Bora"], "horse")
    with pytest.raises(KeyFileRefused, match="key_share"):
        load_share(tmp_path / "key.json", "horse")
    with pytest.raises(KeyFileRefused, match="private_key"):
        keys.load_private(tmp_path / "share.json", "horse")


def test_no_error_shows_a_share_or_a_plaintext(private, dealt, small):
    split, shares_of = dealt
    ciphertexts, plaintexts, true = small
    secret = [shares_of["Bora"].exponent, *plaintexts, private.p, private.q]
    bad = replace(true["Bora"], numbers=(true["Bora"].numbers[0] + 1,))
    for parts in ({}, {**true, "Bora": bad}, {**true, "Nobody": bad}):
        with pytest.raises((MissingHolder, FaultyHolder)) as caught:
            open_with(split, ciphertexts, parts, CONTEXT)
        for number in secret:
            assert str(number)[:9] not in str(caught.value)
            assert f"{number:x}"[:9] not in str(caught.value)


def test_known_split_key_and_known_part(private):
    n, order = private.public.n, gmpy2.lcm(private.p - 1, private.q - 1)
    split, shares_of = made(private, mpz(4), exponents_of(private, order))
    assert split.digest.hex() == "9dc212d5b6ca991bb3c5f63b307f2b3467a5d4ed1b9a3e31a3fc9f00a74d4014"
    assert split.images["Bora"] == 4**3
    ciphertexts = [mpz(12345), mpz(67890)]
    part = prove_part(shares_of["Cima"], ciphertexts, b"known")
    assert part == prove_part(shares_of["Cima"], ciphertexts, b"known")
    assert part.numbers == tuple(c**5 % n for c in ciphertexts)
    data = part.to_bytes(split)
    assert data[:8] == b"SAGGPA01"
    assert (
        hashlib.sha256(data).hexdigest()
        == "332554b40137532656407fffc412e31ac3b09ca0bdbfbbf8029670b10a39479f"
    )
    assert open_with(
        split,
        ciphertexts,
        {h: prove_part(share, ciphertexts, b"known") for h, share in shares_of.items()},
        b"known",
    ) == decrypt_raw(private, ciphertexts)


def test_a_part_s_size_does_not_depend_on_its_values(private, dealt, parts):
    split, _ = dealt
    sizes = {len(part.to_bytes(split)) for part in parts.values()}
    order = gmpy2.lcm(private.p - 1, private.q - 1)
    tiny, shares_of = made(private, mpz(4), exponents_of(private, order))
    for numbers in ([mpz(1), mpz(2)], [split.public.n_squared - 1] * 2):
        for share in shares_of.values():
            sizes.add(len(prove_part(share, numbers, CONTEXT).to_bytes(tiny)))
    sizes.add(len(Part((mpz(0), mpz(0)), mpz(0), mpz(0)).to_bytes(split)))
    assert sizes == {8 + 3 * 4 + 16 + (2048 + 256) // 8 + 1 + 2 * 256}


def test_a_sealed_share_s_size_does_not_depend_on_the_share(private):
    order = gmpy2.lcm(private.p - 1, private.q - 1)
    _, shares_of = made(private, mpz(4), exponents_of(private, order))
    sizes = {len(seal_share(share, ROSTER[holder])) for holder, share in shares_of.items()}
    assert sizes == {8 + 2 * 4 + len("Bora") + 256 + 48}


def test_parts_of_another_size_are_refused(dealt, parts):
    split, _ = dealt
    data = parts["Bora"].to_bytes(split)
    challenge, response, body = wire.split(b"SAGGPA01", data, 3)
    for some in (
        [challenge[1:], response, body],
        [b"\0" + challenge, response, body],
        [challenge, response[1:], body],
        [challenge, b"\0" + response, body],
        [challenge, response, body[1:]],
        [challenge, response, b"\0" + body],
        [challenge, response],
        [challenge, response, body, b""],
    ):
        with pytest.raises(MalformedMessage):
            Part.from_bytes(wire.join(b"SAGGPA01", some), split)


def test_a_split_key_s_holders_and_images_pair_up(dealt):
    split, _ = dealt
    n, base, *listed = wire.split(b"SAGGSP01", split.to_bytes(), 8)
    for some in (
        [n, base, *listed[:-1]],
        [n, base, *listed, b"Enna"],
        [n, base, *listed[:2], *listed],
        [n, base, *listed, listed[0], listed[1]],
        [n, base, b"\xff", *listed[1:]],
        [n],
    ):
        with pytest.raises(MalformedMessage):
            SplitKey.from_bytes(wire.join(b"SAGGSP01", some))
    for some in ([n, base], [n, base, *listed[:2]], [base, n, *listed], [n, n, *listed]):
        with pytest.raises(InvalidKey):
            SplitKey.from_bytes(wire.join(b"SAGGSP01", some))
