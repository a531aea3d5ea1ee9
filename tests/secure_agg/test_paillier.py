"""Batches: exact sums, exchange with phe, and everything that must be refused."""

from __future__ import annotations

import hashlib
import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import gmpy2
import numpy as np
import phe
import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg.errors import (
    InconsistentSum,
    InvalidCiphertext,
    LayoutMismatch,
    MalformedBatch,
    SecureAggError,
    TooManyContributions,
    ValueOutOfBounds,
    WrongKey,
)
from secure_agg.packing import Field, Layout, pack, unpack
from secure_agg.paillier import Batch, add, check_ciphertexts, decrypt, decrypt_raw, encrypt

LAYOUT = Layout((Field(40, 1000.0, 2.0**-20), Field(9, 2.0**60, 2.0**-64)), 5, 2048)
ONE = Layout((Field(2, 10.0, 1.0),), 3, 2048)


def arrays_of(generator, layout=LAYOUT):
    return [
        generator.uniform(-f.bound, f.bound, f.size) // f.resolution * f.resolution
        for f in layout.fields
    ]


@given(st.integers(1, 5), st.integers(0, 2**32), st.sampled_from([1, 2, 3]))
@settings(max_examples=15)
def test_a_decrypted_sum_is_the_sum_of_the_parties(private, parties, seed, workers):
    generator = np.random.default_rng(seed)
    contributions = [arrays_of(generator) for _ in range(parties)]
    batches = [encrypt(private.public, LAYOUT, arrays, workers=workers) for arrays in contributions]
    total = add(private.public, batches)
    assert total.contributions == parties
    packed = [pack(LAYOUT, arrays) for arrays in contributions]
    clear = unpack(LAYOUT, [sum(column) for column in zip(*packed, strict=True)], parties)
    for opened, expected in zip(decrypt(private, total, workers=workers), clear, strict=True):
        assert opened.tobytes() == expected.tobytes()


def test_sums_of_sums_count_their_contributions(private):
    generator = np.random.default_rng(1)
    batches = [encrypt(private.public, LAYOUT, arrays_of(generator)) for _ in range(5)]
    once = add(private.public, batches)
    nested = add(
        private.public, [add(private.public, batches[3:]), add(private.public, batches[:3])]
    )
    assert nested == once
    with pytest.raises(TooManyContributions):
        add(private.public, [nested, batches[0]])
    with pytest.raises(TooManyContributions):
        add(private.public, [*batches, batches[0]])


def test_one_batch_and_a_fresh_key_work(fresh):
    batch = encrypt(fresh.public, ONE, [[3, -4]])
    assert decrypt(fresh, add(fresh.public, [batch]))[0].tolist() == [3, -4]


def test_phe_reads_what_we_write(private):
    arrays = arrays_of(np.random.default_rng(2))
    batch = encrypt(private.public, LAYOUT, arrays)
    theirs = private.to_phe()
    assert [theirs.raw_decrypt(int(c)) for c in batch.ciphertexts] == pack(LAYOUT, arrays)
    number = phe.EncryptedNumber(private.public.to_phe(), int(batch.ciphertexts[0]))
    assert theirs.raw_decrypt((number + 7).ciphertext()) == pack(LAYOUT, arrays)[0] + 7


def test_we_read_what_phe_writes(private):
    arrays = arrays_of(np.random.default_rng(3))
    theirs = private.public.to_phe()
    ciphertexts = tuple(theirs.raw_encrypt(int(plaintext)) for plaintext in pack(LAYOUT, arrays))
    batch = Batch(LAYOUT, private.public.fingerprint, ciphertexts, 1)
    ours = encrypt(private.public, LAYOUT, arrays)
    opened = decrypt(private, add(private.public, [batch, ours]))
    assert all((sums == 2 * array).all() for sums, array in zip(opened, arrays, strict=True))
    edge = [0, 1, 2, int(private.public.n) - 1, int(private.public.n) // 2]
    assert decrypt_raw(private, [mpz(theirs.raw_encrypt(m)) for m in edge]) == edge


def test_known_ciphertext_and_known_bytes(private):
    from secure_agg.arithmetic.blinding import with_part

    n, n_squared = private.public.n, private.public.n_squared
    plaintext = pack(ONE, [[7, -9]])[0]
    ciphertext = with_part(gmpy2.powmod(12345, n, n_squared), plaintext, n, n_squared)
    assert ciphertext == private.public.to_phe().raw_encrypt(int(plaintext), r_value=12345)
    assert decrypt_raw(private, [ciphertext]) == [plaintext]
    data = Batch(ONE, private.public.fingerprint, (ciphertext,), 1).to_bytes()
    assert data[:8] == b"SAGGPB01"
    assert len(data) == 64 + 512
    assert (
        hashlib.sha256(data).hexdigest()
        == "789bb49e25e75dcc57f1b7fefe3a7a680a426b6005af193f07d070e4d06b28b7"
    )
    assert decrypt(private, Batch.from_bytes(data, private.public, ONE))[0].tolist() == [7, -9]


def test_encrypting_the_same_twice_gives_unrelated_bytes_of_one_size(private):
    sizes, seen = set(), set()
    for value in (0, 0, 10, -10, 1):
        batch = encrypt(private.public, ONE, [[value, 0]])
        sizes.add(len(batch.to_bytes()))
        seen.add(batch.ciphertexts)
    assert len(seen) == 5
    assert sizes == {64 + 512}
    total = add(private.public, [batch, batch])
    assert len(total.to_bytes()) == 64 + 512
    small = Batch(ONE, private.public.fingerprint, (mpz(1),), 1)
    assert len(small.to_bytes()) == 64 + 512


def test_threads_in_a_pool_encrypt_add_and_decrypt_side_by_side(private):
    def job(seed):
        generator = np.random.default_rng(seed)
        contributions = [arrays_of(generator) for _ in range(3)]
        batches = [encrypt(private.public, LAYOUT, arrays) for arrays in contributions]
        total = add(private.public, batches)
        opened = decrypt(private, total)
        exact = [sum(a[0] for a in contributions), opened[0]]
        return np.array_equal(*exact), [c for batch in batches for c in batch.ciphertexts]

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(job, range(12)))
    assert all(right for right, _ in results)
    ciphertexts = [c for _, made in results for c in made]
    assert len(set(ciphertexts)) == len(ciphertexts)


def degenerate(private, count):
    """Numbers that are no ciphertexts, of every kind."""
    n, n_squared, p, q = private.public.n, private.public.n_squared, private.p, private.q
    choose = random.Random(4)
    fixed = [mpz(0), n, n_squared, n_squared + 1, n_squared - n, 2 * n_squared, -n, mpz(-1), p, q]
    fixed += [p * p, q * q, p * n, n_squared - p, mpz(2) ** 4096, mpz(2) ** 5000, -(mpz(2) ** 4096)]
    yield from fixed
    kinds = [
        lambda: n * choose.randrange(1, int(n)),
        lambda: p * choose.randrange(1, int(q * n)),
        lambda: q * choose.randrange(1, int(p * n)),
        lambda: -mpz(choose.randrange(1, int(n_squared))),
        lambda: n_squared + choose.randrange(int(n_squared)),
        lambda: n_squared * choose.randrange(1, 1000),
    ]
    for index in range(count - len(fixed)):
        yield kinds[index % len(kinds)]()


def test_ten_thousand_degenerate_ciphertexts_never_reach_the_key(private):
    public = private.public
    good = encrypt(public, ONE, [[1, 2]])
    seen = 0
    for bad in degenerate(private, 10_000):
        batch = Batch(ONE, public.fingerprint, (bad,), 1)
        with pytest.raises(InvalidCiphertext) as caught:
            decrypt(private, batch)
        assert str(bad)[:9] not in str(caught.value) or abs(bad) < 10
        with pytest.raises(InvalidCiphertext):
            add(public, [good, batch])
        with pytest.raises(InvalidCiphertext):
            Batch.from_bytes(batch.to_bytes(), public, ONE)
        seen += 1
    assert seen == 10_000


def test_one_degenerate_ciphertext_among_many_is_found_and_named(private):
    good = list(encrypt(private.public, LAYOUT, arrays_of(np.random.default_rng(5))).ciphertexts)
    check_ciphertexts(private.public, good)
    for index in range(len(good)):
        bad = [*good]
        bad[index] = bad[index] * private.p % private.public.n_squared
        with pytest.raises(InvalidCiphertext, match=f"ciphertext {index} "):
            check_ciphertexts(private.public, bad)
    # A factor of one and a factor of the other must not hide in their product.
    bad = [good[0] * private.p % private.public.n_squared, gmpy2.invert(private.p, private.q)]
    with pytest.raises(InvalidCiphertext):
        check_ciphertexts(private.public, bad)


@pytest.mark.parametrize("bad", [1.5, "7", None, b"7"])
def test_a_ciphertext_that_is_no_integer_is_refused(private, bad):
    with pytest.raises(InvalidCiphertext):
        Batch(ONE, private.public.fingerprint, (bad,), 1)


def test_another_key_is_refused(private, fresh):
    batch = encrypt(private.public, ONE, [[1, 2]])
    with pytest.raises(WrongKey):
        decrypt(fresh, batch)
    with pytest.raises(WrongKey):
        add(fresh.public, [batch])
    with pytest.raises(WrongKey):
        Batch.from_bytes(batch.to_bytes(), fresh.public, ONE)
    with pytest.raises(WrongKey):
        Batch(ONE, "not a fingerprint", batch.ciphertexts, 1)
    relabelled = Batch(ONE, fresh.public.fingerprint, batch.ciphertexts, 1)
    with pytest.raises((InconsistentSum, InvalidCiphertext)):
        decrypt(fresh, relabelled)


def test_another_layout_is_refused(private):
    other = Layout((Field(2, 11.0, 1.0),), 3, 2048)
    large = Layout(ONE.fields, 3, 3072)
    batch = encrypt(private.public, ONE, [[1, 2]])
    with pytest.raises(LayoutMismatch, match="batch 1"):
        add(private.public, [batch, encrypt(private.public, other, [[1, 2]])])
    with pytest.raises(LayoutMismatch):
        Batch.from_bytes(batch.to_bytes(), private.public, other)
    for refused in (
        lambda: add(private.public, []),
        lambda: encrypt(private.public, large, [[1, 2]]),
        lambda: Batch.from_bytes(batch.to_bytes(), private.public, large),
        lambda: Batch(ONE, private.public.fingerprint, batch.ciphertexts * 2, 1),
        lambda: Batch(ONE, private.public.fingerprint, (), 1),
        lambda: encrypt(private.public, ONE, [[1, 2, 3]]),
    ):
        with pytest.raises(LayoutMismatch):
            refused()
    for contributions in (0, -1, 4):
        with pytest.raises(TooManyContributions):
            Batch(ONE, private.public.fingerprint, batch.ciphertexts, contributions)


def test_values_out_of_bounds_are_refused_before_anything_is_encrypted(private):
    for bad in (np.nan, np.inf, 10.5, -11):
        with pytest.raises(ValueOutOfBounds):
            encrypt(private.public, ONE, [[bad, 1]])


def test_a_false_count_of_contributions_is_noticed(private):
    batch = encrypt(private.public, ONE, [[1, 2]])
    total = add(private.public, [batch, batch])
    for claimed in (1, 3):
        with pytest.raises(InconsistentSum):
            decrypt(private, Batch(ONE, total.key, total.ciphertexts, claimed))


def test_truncated_extended_and_relabelled_bytes_are_refused(private):
    public = private.public
    data = encrypt(public, LAYOUT, arrays_of(np.random.default_rng(6))).to_bytes()
    for size in [*range(70), len(data) // 2, len(data) - 512, len(data) - 1]:
        with pytest.raises(MalformedBatch):
            Batch.from_bytes(data[:size], public, LAYOUT)
    for more in (b"\0", b"\1" * 512, data):
        with pytest.raises(MalformedBatch):
            Batch.from_bytes(data + more, public, LAYOUT)
    for version in (b"00", b"02", b"99", b"\0\0"):
        with pytest.raises(MalformedBatch, match="version"):
            Batch.from_bytes(data[:6] + version + data[8:], public, LAYOUT)
    for contributions in (0, 6, 2**32 - 1):
        with pytest.raises(TooManyContributions):
            Batch.from_bytes(
                data[:56] + contributions.to_bytes(4, "big") + data[60:], public, LAYOUT
            )
    for count in (0, 1, 2**32 - 1):
        with pytest.raises(MalformedBatch):
            Batch.from_bytes(data[:60] + count.to_bytes(4, "big") + data[64:], public, LAYOUT)


@given(st.binary(max_size=700))
def test_random_bytes_are_refused(private, data):
    for candidate in (data, b"SAGGPB01" + data):
        with pytest.raises(SecureAggError):
            Batch.from_bytes(candidate, private.public, ONE)


@given(st.integers(0, 575), st.integers(1, 255))
@settings(max_examples=60)
def test_one_changed_byte_is_refused_when_read_or_when_opened(private, at, change):
    data = bytearray(encrypt(private.public, ONE, [[1, 2]]).to_bytes())
    data[at] ^= change
    with pytest.raises(SecureAggError):
        decrypt(private, Batch.from_bytes(bytes(data), private.public, ONE))


@given(st.integers(1, 3), st.integers(0, 2**32))
@settings(max_examples=20)
def test_bytes_give_the_same_batch_back(private, contributions, seed):
    arrays = arrays_of(np.random.default_rng(seed))
    batch = add(private.public, [encrypt(private.public, LAYOUT, arrays)] * contributions)
    for data in (batch.to_bytes(), bytearray(batch.to_bytes()), memoryview(batch.to_bytes())):
        assert Batch.from_bytes(data, private.public, LAYOUT) == batch
    assert pickle.loads(pickle.dumps(batch)) == batch


def test_a_batch_prints_no_ciphertext(private):
    batch = encrypt(private.public, ONE, [[1, 2]])
    assert str(batch.ciphertexts[0])[:9] not in repr(batch)


@pytest.mark.slow
def test_phe_opens_a_hundred_thousand_of_our_values(private):
    layout = Layout((Field(100_000, 2.0**40, 2.0**-18),), 5, 2048)
    generator = np.random.default_rng(7)
    arrays = [generator.normal(size=100_000) * 1e9 for _ in range(2)]
    total = add(private.public, [encrypt(private.public, layout, [array]) for array in arrays])
    theirs = private.to_phe()
    by_phe = [theirs.raw_decrypt(int(c)) for c in total.ciphertexts]
    (opened,) = unpack(layout, by_phe, 2)
    scaled = [np.rint(array * 2.0**18).astype(np.int64) for array in arrays]
    assert (opened == (scaled[0] + scaled[1]) / 2.0**18).all()
    assert decrypt(private, total)[0].tobytes() == opened.tobytes()


@pytest.mark.slow
def test_a_hundred_thousand_plaintexts_are_hidden_as_phe_hides_them(private):
    from secure_agg.arithmetic.blinding import factors, with_part

    n, n_squared = private.public.n, private.public.n_squared
    theirs = private.public.to_phe()
    choose = random.Random(8)
    edges = [0, 1, int(n) - 1, int(n) // 3, int(n) // 3 + 1, int(n) * 2 // 3, int(n) // 2]
    some = list(factors(n, 100, 1))
    for index in range(100_000):
        plaintext = edges[index] if index < len(edges) else choose.randrange(int(n))
        factor = some[index % 100]
        expected = theirs.raw_encrypt(plaintext, r_value=1) * factor % n_squared
        assert with_part(factor, mpz(plaintext), n, n_squared) == expected
