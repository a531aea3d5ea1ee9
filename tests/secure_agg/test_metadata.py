"""What a message shows to somebody without a key: nothing that tells values apart.

An observer has everything but the keys: lengths, headers, numbers of ciphertexts, every byte. Two
classifiers learn from messages of which the values are known, zeros or something else, and then
guess for messages they have not seen.
"""

from __future__ import annotations

import json
import zlib
from functools import cache

import gmpy2
import numpy as np
import pytest
from scipy.stats import binom
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from secure_agg import masks, wire
from secure_agg.identity import Identity, Roster
from secure_agg.keys import PrivateKey
from secure_agg.packing import Field, Layout
from secure_agg.paillier import Batch, encrypt
from secure_agg.shares import deal, prove_part, seal_share
from secure_agg.transcript import Terms, contribute

BOUND = 1e6
FORM = (Field(30, BOUND, 2.0**-10), Field(10, 2.0**70, 1.0))
LAYOUT = Layout(FORM, 3, 2048)  # one ciphertext
NAMES = ("Alba", "Bora", "Cima")
PEOPLE = {name: Identity.generate(name) for name in NAMES}
ROSTER = Roster(tuple(person.card for person in PEOPLE.values()))
OTHERS = ("values at the bound", "claims")
CHANCE = 1e-8  # that guesses by a coin are taken for knowledge, each of the 24 times it is asked


def arrays_of(what: str, generator: np.random.Generator) -> list[np.ndarray]:
    """One party's values: nothing but zeros, or as far from zeros as they may be, or claims."""
    if what == "zeros":
        return [np.zeros(field.size) for field in FORM]
    if what == "values at the bound":
        return [np.full(field.size, field.bound) for field in FORM]
    claims = [
        (generator.random(f.size) < 0.2) * generator.lognormal(7.0, 1.5, f.size) for f in FORM
    ]
    return [np.minimum(np.round(paid, 2), f.bound) for paid, f in zip(claims, FORM, strict=True)]


# What is seen


def of_message(message: bytes) -> list[float]:
    """Its length, how far it can be compressed, and its first and last bytes."""
    counts = np.bincount(np.frombuffer(message, np.uint8), minlength=256)
    ends = message[:160].ljust(160, b"\0") + message[-16:]
    return [len(message), len(zlib.compress(message)), counts[0], counts.argmax(), *ends]


def of_number(number: gmpy2.mpz, n: gmpy2.mpz) -> list[float]:
    """What anybody can compute of a number below n or n**2."""
    residue, bits = number % n, number.bit_length()
    shape = [bits, number & 1, number >> max(0, bits - 8), number >> 4088, number.bit_count()]
    return [float(x) for x in (*shape, number % 3, residue >> 2040, gmpy2.jacobi(residue, n))]


def of_batch(batch: Batch, private: PrivateKey) -> list[float]:
    n = private.public.n
    shown = [len(batch.ciphertexts), batch.contributions]
    return shown + [x for number in batch.ciphertexts for x in of_number(number, n)]


def contribution(private, generator, what):
    """A party's signed batch, as the coordinator and every holder see it."""
    batch = encrypt(private.public, LAYOUT, arrays_of(what, generator), workers=1, series=True)
    key = private.public.fingerprint
    terms = Terms("claims 2031", bytes(32), ROSTER.digest, NAMES, key, LAYOUT)
    message = contribute(PEOPLE["Alba"], terms, batch.to_bytes()).to_bytes()
    return [message], of_batch(batch, private)


def part(private, generator, what):
    """A holder's part of opening such a batch."""
    split, share = dealt(private)
    batch = encrypt(private.public, LAYOUT, arrays_of(what, generator), workers=1, series=True)
    made = prove_part(share, batch.ciphertexts, b"", workers=1)
    numbers = [*made.numbers, made.challenge, made.response]
    shown = [x for number in numbers for x in of_number(number, split.public.n)]
    return [made.to_bytes(split)], [len(made.numbers), *shown]


@cache
def dealt(private):
    split, shares = deal(private, NAMES)
    return split, shares["Alba"]


def masked(private, generator, what):
    """All that a party says in a masked sum: keys, sealed shares, its vector, what it reveals."""
    terms = masks.MaskTerms("claims 2031", bytes(32), ROSTER, 2)
    seats, keys, sealed, vectors, signed = {}, {}, {}, {}, {}
    for name in NAMES:
        seats[name], keys[name] = masks.advertise(PEOPLE[name], terms, generator.bytes(32))
    for name in NAMES:
        seats[name], sealed[name] = masks.share(PEOPLE[name], terms, seats[name], keys)
    for name in NAMES:
        mine = {other: sealed[other][name] for other in NAMES if other != name}
        arrays = arrays_of(what, generator)
        seats[name], vectors[name] = masks.mask(
            PEOPLE[name], terms, seats[name], mine, FORM, arrays
        )
    for name in NAMES:
        seats[name], signed[name] = masks.confirm(PEOPLE[name], terms, seats[name], NAMES)
    _, revealed = masks.reveal(PEOPLE["Alba"], terms, seats["Alba"], signed)
    messages = [keys["Alba"].to_bytes(), masks.pairs_out(sealed["Alba"])]
    lanes = np.frombuffer(vectors["Alba"], "<u8")
    shown = [*(lanes >> 56), *(lanes & 1), lanes.mean(), (lanes >> 63).mean()]
    return [*messages, vectors["Alba"], signed["Alba"], revealed.to_bytes()], shown


# Guessing


def guessed(zeros: np.ndarray, others: np.ndarray) -> tuple[list[float], int]:
    """The share of right guesses of each classifier for every second message, and their number.

    Half of the messages to learn from and half of those to guess are of either kind. So guesses
    that know nothing are right as often as a coin, and no more scattered.
    """
    assert zeros.shape == others.shape
    features, labels = np.concatenate([zeros, others]), np.arange(2).repeat(len(zeros))
    learn = np.arange(len(labels)) % 2 == 0
    models = [
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)),
        DecisionTreeClassifier(max_depth=5, random_state=1),
    ]
    right = [m.fit(features[learn], labels[learn]).predict(features[~learn]) for m in models]
    return [float((found == labels[~learn]).mean()) for found in right], int((~learn).sum())


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "count"), [(contribution, 300), (masked, 200), (part, 200)])
def test_who_sees_messages_guesses_no_better_than_a_coin(private, sent, count):
    generator = np.random.default_rng(2031)
    seen, sizes = {what: [] for what in ("zeros", *OTHERS)}, set()
    for _ in range(count):
        for what, rows in seen.items():
            messages, shown = sent(private, generator, what)
            sizes.add(tuple(map(len, messages)))
            rows.append([*shown, *(x for message in messages for x in of_message(message))])
    assert len(sizes) == 1
    for other in OTHERS:
        rates, size = guessed(*(np.array(seen[what], dtype=float) for what in ("zeros", other)))
        most = binom.isf(CHANCE, size, 0.5) / size
        assert all(1 - most <= rate <= most for rate in rates), (other, rates, most)


@pytest.mark.parametrize("other", OTHERS)
def test_who_sees_exponents_or_text_knows(private, other):
    """The twin without a fixed scale: each number on its own, as phe encrypts it, or as text."""
    theirs = private.public.to_phe()
    generator = np.random.default_rng(2031)
    exponents, texts = {"zeros": [], other: []}, {"zeros": [], other: []}
    for what in (*exponents,) * 200:
        values = arrays_of(what, generator)[0].tolist()
        # Not hidden by a random factor, which would take time and hide no exponent.
        shown = [theirs.encrypt(value, r_value=1).exponent for value in values]
        exponents[what].append([min(shown), max(shown), sum(shown)])
        texts[what].append([len(json.dumps(values))])
    for features in (exponents, texts):
        rates, _ = guessed(*(np.array(rows, dtype=float) for rows in features.values()))
        assert all(rate > 0.95 for rate in rates), rates


def test_headers_and_sealed_shares_are_the_same_whatever_the_values(private):
    generator = np.random.default_rng(1)
    split, shares = deal(private, NAMES)
    headers, sizes = set(), set()
    for what in ("zeros", *OTHERS):
        (message,), _ = contribution(private, generator, what)
        _, batch, signature = wire.split(message[:8], message, 3)
        headers.add((message[:16], batch[:64], len(batch), len(signature)))
    for name in NAMES:
        sizes.add(len(seal_share(shares[name], PEOPLE[name].card)) - len(name))
    assert len(headers) == len(sizes) == 1
    assert split.public == private.public
