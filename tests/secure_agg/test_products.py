"""Shares of a product, by dealt randomness and by Paillier: exact, alone uniform, and not to be bent."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg import encrypted_product, triples, wire
from secure_agg.arithmetic.ring import Ring
from secure_agg.encrypted_product import Packing, Vectors
from secure_agg.errors import InvalidCiphertext, InvalidLayout, MalformedMessage
from secure_agg.triples import ProductTerms

RING = Ring(128)


def matrices(rows: int, a: int, b: int, bits: int = 50, seed: int = 1):
    rng, most = np.random.default_rng(seed), 2 ** (bits - 1)
    return [rng.integers(-most + 1, most, (rows, n)).astype(object) for n in (a, b)]


def by_triples(terms: ProductTerms, left, right):
    """Every role of the protocol, in order: both shares."""
    seeds = [secrets.token_bytes(32) for _ in range(2)]
    dealt = triples.deal(terms, *seeds)
    ours, theirs = terms.ring.from_integers(left), terms.ring.from_integers(right)
    to_right = triples.masked(terms, seeds[0], "left", ours)
    to_left = triples.masked(terms, seeds[1], "right", theirs)
    return (
        triples.left_share(terms, seeds[0], ours, to_left),
        triples.right_share(terms, seeds[1], to_right, dealt),
    )


def by_paillier(packing: Packing, private, left, right):
    """Every role of the protocol, in order: both shares."""
    rows = encrypted_product.encrypted_rows(packing, private.public, left, workers=1)
    answer, share = encrypted_product.raised(packing, private.public, right, rows, workers=1)
    return encrypted_product.opened(packing, private, left, answer), share


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9))
def test_dealt_shares_add_up_to_the_product(rows, a, b, seed):
    left, right = matrices(rows, a, b, seed=seed)
    shares = by_triples(ProductTerms("q", rows, a, b, RING), left, right)
    assert (RING.signed(sum(shares)) == left.T @ right).all()


@settings(max_examples=15)
@given(st.data(), st.integers(1, 5), st.integers(1, 13), st.integers(1, 2), st.integers(2, 50))
def test_encrypted_shares_add_up_to_the_product(private, data, rows, a, b, bits):
    most = 2 ** (bits - 1) - 1
    numbers = st.sampled_from([-most, 0, 1, most]) | st.integers(-most, most)
    left, right = (
        np.array([[data.draw(numbers) for _ in range(n)] for _ in range(rows)], dtype=object)
        for n in (a, b)
    )
    packing = Packing(ProductTerms("q", rows, a, b, RING), (bits, bits), 2048)
    shares = by_paillier(packing, private, left, right)
    assert (RING.signed(sum(shares)) == left.T @ right).all()


def test_many_rows_and_rows_that_repeat_give_the_product(private):
    left, right = matrices(300, 2, 3)
    right[:200] = right[0]
    packing = Packing(ProductTerms("q", 300, 2, 3, RING), (50, 50), 2048)
    assert (RING.signed(sum(by_paillier(packing, private, left, right))) == left.T @ right).all()


@pytest.mark.parametrize(("a", "b"), [(1, 1), (9, 2)])
def test_products_with_shares_of_any_size_add_up_modulo_the_ring(private, a, b):
    left, right = matrices(5, a, b)
    right = right * 2**79 + 12345
    terms = ProductTerms("q", 5, a, b, RING)
    for packing, matrix in (
        (Packing(terms, (50, RING.bits + 1), 2048), (left, right)),
        (Packing(ProductTerms("q", 5, b, a, RING), (RING.bits + 1, 50), 2048), (right, left)),
    ):
        shares = by_paillier(packing, private, *matrix)
        assert ((sum(shares) - matrix[0].T @ matrix[1]) % RING.modulus == 0).all()


def row_by_row(vectors: Vectors, private, left, right):
    """Every role of the protocol, in order: both shares."""
    rows = encrypted_product.encrypted_vectors(vectors, private.public, left, workers=1)
    answer, share = encrypted_product.raised_vectors(
        vectors, private.public, right, rows, workers=1
    )
    return encrypted_product.opened_vectors(vectors, private, left, answer), share


@settings(max_examples=10)
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 5), st.integers(0, 9))
def test_encrypted_shares_of_each_row_add_up_to_its_inner_products(private, rows, v, k, seed):
    left, right = (m[0] for m in (matrices(rows, v * k, 1, seed=seed), matrices(rows, k, 1)))
    vectors = Vectors(ProductTerms("q", rows, v * k, k, RING), (50, 50), 2048)
    shares = row_by_row(vectors, private, left, right)
    whole = (left.reshape(rows, v, k) * right[:, None, :]).sum(axis=2)
    assert (RING.signed(sum(shares)) == whole).all()


def test_messages_row_by_row_that_were_bent_are_refused(private):
    left, right = matrices(2, 3, 3)
    terms, other = (ProductTerms(name, 2, 3, 3, RING) for name in ("one", "two"))
    vectors = Vectors(terms, (50, 50), 2048)
    rows = encrypted_product.encrypted_vectors(vectors, private.public, left, workers=1)
    size = private.public.ciphertext_bytes
    for bad, error in (
        (rows[:-size] + bytes(size), InvalidCiphertext),
        (rows[:-1], MalformedMessage),
    ):
        with pytest.raises(error):
            encrypted_product.raised_vectors(vectors, private.public, right, bad, workers=1)
    with pytest.raises(MalformedMessage, match="another product"):
        encrypted_product.raised_vectors(
            Vectors(other, (50, 50), 2048), private.public, right, rows, workers=1
        )
    answer, _ = encrypted_product.raised_vectors(vectors, private.public, right, rows, workers=1)
    with pytest.raises(MalformedMessage, match="outside every slot"):
        encrypted_product.opened_vectors(vectors, private, left, changed(answer, len(answer) - 9))


@given(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 9))
def test_in_a_ring_of_machine_words_shares_add_up_as_well(rows, a, b, seed):
    words = Ring(64)
    left, right = matrices(rows, a, b, bits=60, seed=seed)
    shares = by_triples(ProductTerms("q", rows, a, b, words), left, right)
    difference = sum(shares) - left.T @ right
    assert (difference % words.modulus == 0).all()


def test_a_share_and_a_message_alone_are_uniform():
    left, right = matrices(1, 1, 1)
    terms = ProductTerms("q", 1, 1, 1, RING)
    highest = [[int(s[0, 0]) >> 120 for s in by_triples(terms, left, right)] for _ in range(400)]
    for values in zip(*highest, strict=True):
        assert 100 < np.mean(values) < 155  # a byte's mean is 127.5, its error here 3.7
        assert len(set(values)) > 150


def test_masks_of_an_encrypted_product_cover_its_range_by_40_bits(private):
    left, right = matrices(4, 1, 1, bits=8)
    packing = Packing(ProductTerms("q", 4, 1, 1, RING), (8, 8), 2048)
    largest = max(int(by_paillier(packing, private, left, right)[0][0, 0]) for _ in range(8))
    assert packing.range + 30 < largest.bit_length() <= RING.bits
    assert packing.slot == packing.range + 41


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_message_of_another_product_side_or_size_is_refused():
    left, right = matrices(3, 2, 2)
    terms, other = (ProductTerms(name, 3, 2, 2, RING) for name in ("one", "two"))
    seed = secrets.token_bytes(32)
    ours, theirs = RING.from_integers(left), RING.from_integers(right)
    message = triples.masked(terms, seed, "right", theirs)
    with pytest.raises(MalformedMessage, match="another product"):
        triples.left_share(other, seed, ours, message)
    with pytest.raises(MalformedMessage, match="wrong side"):
        triples.left_share(terms, seed, ours, triples.masked(terms, seed, "left", ours))
    with pytest.raises(MalformedMessage):
        triples.left_share(terms, seed, ours, message[:-1])
    with pytest.raises(MalformedMessage, match="another product"):
        triples.right_share(terms, seed, message, triples.deal(other, seed, seed))
    with pytest.raises(InvalidLayout, match="shape"):
        triples.masked(terms, seed, "left", ours[:2])


def test_a_bent_ciphertext_or_answer_is_refused(private):
    left, right = matrices(2, 1, 1)
    terms = ProductTerms("q", 2, 1, 1, RING)
    packing = Packing(terms, (50, 50), 2048)
    rows = encrypted_product.encrypted_rows(packing, private.public, left, workers=1)
    size = private.public.ciphertext_bytes
    with pytest.raises(MalformedMessage, match="cut off"):
        encrypted_product.raised(packing, private.public, right, rows[:-1], workers=1)
    longer = wire.join(encrypted_product.ROWS, [terms.digest, rows[-2 * size :] + rows[-size:]])
    with pytest.raises(MalformedMessage, match="ciphertexts it should have"):
        encrypted_product.raised(packing, private.public, right, longer, workers=1)
    zero = rows[:-size] + bytes(size)
    with pytest.raises(InvalidCiphertext, match="of a product"):
        encrypted_product.raised(packing, private.public, right, zero, workers=1)
    answer, _ = encrypted_product.raised(packing, private.public, right, rows, workers=1)
    with pytest.raises(MalformedMessage, match="outside every slot"):
        encrypted_product.opened(packing, private, left, changed(answer, len(answer) - 9))


def test_numbers_that_do_not_fit_are_refused(private):
    left, right = matrices(2, 1, 1)
    terms = ProductTerms("q", 2, 1, 1, RING)
    with pytest.raises(InvalidLayout, match="more than 40 bits"):
        by_paillier(Packing(terms, (40, 40), 2048), private, left, right)
    with pytest.raises(InvalidLayout, match="can't hold"):
        Packing(terms, (80, 80), 2048)
    with pytest.raises(InvalidLayout, match="larger key"):
        Packing(ProductTerms("q", 2, 1, 1, Ring(1024)), (500, 500), 1024)
