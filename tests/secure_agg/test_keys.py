"""Keys: what is refused, what is never shown, and how a key file is kept."""

from __future__ import annotations

import copy
import json
import pickle
import stat

import gmpy2
import phe
import pytest
from gmpy2 import mpz

from secure_agg import keys
from secure_agg.errors import InvalidKey, KeyFileRefused
from secure_agg.keys import PrivateKey, PublicKey, generate, load_private, save_private


def test_generated_primes_are_what_the_blinding_needs(fresh):
    p, q = fresh.p, fresh.q
    assert fresh.public.bits == 2048
    assert p.bit_length() == q.bit_length() == 1024
    assert gmpy2.is_prime(p, 50)
    assert gmpy2.is_prime(q, 50)
    assert p % 4 == q % 4 == 3
    assert gmpy2.gcd(p - 1, q - 1) == 2
    odd_primes = gmpy2.primorial(2**16) // 2
    assert gmpy2.gcd((p - 1) * (q - 1), odd_primes) == 1
    assert abs(p - q) > 2**900


def test_a_key_has_exactly_the_bits_asked_for():
    assert generate(2050).public.bits == 2050


@pytest.mark.parametrize("bits", [0, 1024, 2046, 2049, 3071, 2048.0, "2048", True])
def test_no_key_is_made_below_2048_bits_or_of_odd_size(bits):
    with pytest.raises(InvalidKey):
        generate(bits)


def test_unsafe_primes_are_refused_and_not_shown(private):
    p, q = private.p, private.q
    twin = gmpy2.next_prime(p)
    while twin % 4 != 3:
        twin = gmpy2.next_prime(twin)
    one_mod_four = gmpy2.next_prime(q)
    while one_mod_four % 4 != 1:
        one_mod_four = gmpy2.next_prime(one_mod_four)
    bad = {
        "same": (p, p),
        "close": (p, twin),
        "small": (gmpy2.mpz(7), gmpy2.mpz(11)),
        "uneven": (p << 1, q >> 1),
        "1 mod 4": (p, one_mod_four),
        "composite": (p, q + 4),
        "negative": (-p, -q),
        "zero": (0, q),
        "shared factor": (p, 2 * p + 1),
    }
    for name, (a, b) in bad.items():
        with pytest.raises(InvalidKey) as caught:
            PrivateKey(a, b)
        text = str(caught.value)
        assert "safe key" in text, name
        for secret in (p, q, twin, one_mod_four):
            assert str(secret)[:9] not in text


@pytest.mark.parametrize(
    "n", [0, 1, -(2**2048) - 1, 2**2048, 2**2047 - 1, mpz(2) ** 16384 + 1, 1.5, "n", None, True]
)
def test_numbers_that_are_no_modulus_are_refused(n):
    with pytest.raises(InvalidKey):
        PublicKey(n)


def test_a_prime_modulus_is_refused():
    with pytest.raises(InvalidKey, match="prime"):
        PublicKey(gmpy2.next_prime(gmpy2.mpz(1) << 2047))


def test_nothing_prints_pickles_copies_or_changes_a_private_key(private):
    for text in (repr(private), str(private), f"{private}", repr([private]), repr({1: private})):
        for secret in (private.p, private.q):
            assert str(secret)[:9] not in text
            assert f"{secret:x}"[:9] not in text
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="pickled"):
            pickle.dumps(private, protocol)
    for copier in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="copied"):
            copier(private)
    with pytest.raises(AttributeError):
        private.p = 3
    with pytest.raises(TypeError):
        vars(private)


def test_a_public_key_travels(private):
    public = private.public
    assert pickle.loads(pickle.dumps(public)) == public
    assert PublicKey(int(public.n)) == public
    assert public.fingerprint == "71680fdd12be77b8ec5010e3a4d3f2fd"
    assert public.ciphertext_bytes == 512
    assert str(public.n) not in repr(public)


def test_phe_and_this_package_exchange_keys(private):
    assert PublicKey.from_phe(private.public.to_phe()) == private.public
    theirs = private.to_phe()
    assert theirs.raw_decrypt(theirs.public_key.raw_encrypt(12345)) == 12345
    assert isinstance(theirs, phe.PaillierPrivateKey)
    with pytest.raises(InvalidKey):
        PublicKey.from_phe(phe.generate_paillier_keypair(n_length=1024)[0])


def test_a_key_file_gives_the_key_back_to_its_owner_only(private, tmp_path):
    path = tmp_path / "key.json"
    save_private(path, private, "correct horse")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_private(path, "correct horse") == private
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.json"]
    content = path.read_text()
    assert f"{private.p:x}"[:16] not in content
    with pytest.raises(KeyFileRefused, match="wrong passphrase"):
        load_private(path, "incorrect horse")
    with pytest.raises(KeyFileRefused, match="exists"):
        save_private(path, private, "another")
    assert path.read_text() == content
    for mode in (0o640, 0o604, 0o660, 0o620, 0o610, 0o777):
        path.chmod(mode)
        with pytest.raises(KeyFileRefused, match="chmod 600"):
            load_private(path, "correct horse")
    path.chmod(0o400)
    assert load_private(path, "correct horse").public == private.public


def test_an_empty_passphrase_is_refused(private, tmp_path):
    with pytest.raises(KeyFileRefused, match="passphrase"):
        save_private(tmp_path / "key.json", private, "")
    assert not list(tmp_path.iterdir())


def test_an_altered_key_file_is_refused(private, tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "SCRYPT", {"n": 2, "r": 1, "p": 1})
    path = tmp_path / "key.json"
    save_private(path, private, "horse")
    good = json.loads(path.read_text())
    assert load_private(path, "horse") == private

    def refused(content):
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        with pytest.raises(KeyFileRefused):
            load_private(path, "horse")

    for name in good:
        refused({key: value for key, value in good.items() if key != name})
        refused({**good, name: 7})
        refused({**good, name: None})
    refused({**good, "format": "secure_agg.private_key/2"})
    refused({**good, "more": 1})
    refused({**good, "fingerprint": "0" * 32})
    refused({**good, "sealed": good["sealed"][:-8]})
    refused({**good, "scrypt": {**good["scrypt"], "n": 2**40}})
    refused({**good, "scrypt": {**good["scrypt"], "n": 3}})
    refused({**good, "scrypt": {**good["scrypt"], "r": 0}})
    for content in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'"sealed"', b"0" * 2**17):
        refused(content)
