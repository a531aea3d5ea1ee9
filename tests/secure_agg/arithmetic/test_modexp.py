"""Powers with a secret exponent, by OpenSSL and without it."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from gmpy2 import mpz
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg.arithmetic import modexp
from secure_agg.arithmetic.modexp import secret_powers

SIZES = st.sampled_from([2, 63, 64, 65, 1024, 2048, 2050, 3072])


@given(st.data())
@settings(max_examples=150)
def test_powers_are_those_of_exact_integers(data):
    modulus = data.draw(SIZES.flatmap(lambda bits: st.integers(1, 2**bits))) * 2 + 1
    exponent = data.draw(st.integers(1, 2**1024) | st.integers(1, 3))
    bases = data.draw(st.lists(st.integers(0, 4 * modulus), max_size=4))
    expected = [pow(base, exponent, modulus) for base in bases]
    assert secret_powers([mpz(base) for base in bases], mpz(exponent), mpz(modulus)) == expected


def test_threads_do_not_disturb_each_other(private):
    p, modulus = private.p, private.p**2

    def job(start):
        bases = [mpz(start + index) for index in range(8)]
        return secret_powers(bases, p - 1, modulus) == [
            pow(int(base), int(p) - 1, int(modulus)) for base in bases
        ]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(job, range(2, 10)))


@pytest.fixture
def forgotten():
    modexp._openssl.cache_clear()
    yield
    modexp._openssl.cache_clear()


def test_without_openssl_the_answer_is_the_same(forgotten, monkeypatch):
    monkeypatch.setitem(sys.modules, "_hashlib", None)
    assert modexp._openssl() is None
    assert secret_powers([mpz(7), mpz(0)], mpz(5), mpz(1001)) == [pow(7, 5, 1001), 0]


def test_an_openssl_that_errs_is_not_used(forgotten, monkeypatch):
    monkeypatch.setattr(modexp, "_by_openssl", lambda *_: [mpz(1)])
    assert modexp._openssl() is None
