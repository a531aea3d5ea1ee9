"""Blinding factors: the right group element, and never the same twice."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import gmpy2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg import blinding
from secure_agg.blinding import best_window, build, factors, powers, random_base, windows


@pytest.fixture
def cold(monkeypatch):
    """A process that has made no table yet."""
    monkeypatch.setattr(blinding, "_cache", blinding._Cache())
    return blinding._cache


@given(st.data())
@settings(max_examples=30)
def test_a_power_from_the_table_is_the_power(private, data):
    n = private.public.n
    window = data.draw(st.integers(1, 6))
    h = random_base(n)
    table = build(n, h, window)
    assert len(table.rows) == windows(2048, window) == -(-1024 // window)
    largest = 2**window - 1
    digits = data.draw(
        st.sampled_from([[0] * len(table.rows), [largest] * len(table.rows)])
        | st.lists(st.integers(0, largest), min_size=len(table.rows), max_size=len(table.rows))
    )
    exponent = sum(digit << (window * index) for index, digit in enumerate(digits))
    n_squared = n * n
    expected = gmpy2.powmod(gmpy2.powmod(h, n, n_squared), exponent, n_squared)
    columns = [(digit, 0, digit) for digit in digits]
    assert powers(table, columns) == [expected, 1, expected]


def test_bits_of_a_digit_beyond_the_window_do_not_count(private):
    n = private.public.n
    table = build(n, random_base(n), 3)
    digits = [5] * len(table.rows)
    (once, again) = powers(table, [(digit, digit + 8) for digit in digits])
    assert once == again


def test_known_power(private):
    n = private.public.n
    table = build(n, -(gmpy2.mpz(12345) ** 2) % n, 2)
    digits = [[index % 4] for index in range(512)]
    assert f"{powers(table, digits)[0]:x}"[:32] == "526704378446620a4cd0c8b09c6bd109"


def test_exponents_cover_at_least_half_the_bits_of_n():
    for bits in (2048, 2049, 3071, 3072, 4096):
        for window in range(1, 13):
            assert window * windows(bits, window) >= bits / 2


def test_the_base_is_a_non_square_of_jacobi_symbol_one(private):
    n, p, q = private.public.n, private.p, private.q
    bases = [random_base(n) for _ in range(50)]
    assert len(set(bases)) == 50
    for h in bases:
        assert 0 < h < n
        assert gmpy2.jacobi(h, p) == gmpy2.jacobi(h, q) == -1


def test_factors_are_nth_powers_below_n_squared(private):
    n, n_squared = private.public.n, private.public.n_squared
    order = (private.p - 1) * (private.q - 1)
    for factor in factors(n, 20, 1):
        assert 0 < factor < n_squared
        assert gmpy2.powmod(factor, order, n_squared) == 1


@given(st.integers(2048, 4096), st.integers(1, 10**6))
def test_a_table_is_never_larger_than_its_limit_and_grows_with_the_job(bits, count):
    window = best_window(bits, count)
    assert windows(bits, window) * 2**window * bits // 4 <= blinding.LARGEST_TABLE_BYTES
    assert best_window(bits, 10 * count) >= window
    assert best_window(bits, count, present=window) == window


def test_ten_values_do_not_pay_for_a_hundred_thousand(cold, private):
    n = private.public.n
    small = cold.table(n, 10)
    assert small.window <= 4
    assert cold.table(n, 10) is small
    large = cold.table(n, 500)
    assert large.window > small.window
    assert cold.table(n, 10) is large


def test_only_so_many_tables_are_kept(cold, private):
    moduli = [private.public.n + 2 * index for index in range(blinding.TABLES_KEPT + 3)]
    for n in moduli:
        if gmpy2.gcd(n, 12345) == 1:
            cold.kept[n] = blinding._Kept()
    cold.table(private.public.n, 1)
    assert len(cold.kept) == blinding.TABLES_KEPT
    assert private.public.n in cold.kept


def test_no_factor_is_used_twice_by_many_threads(cold, private):
    n = private.public.n
    with ThreadPoolExecutor(8) as pool:
        made = [f for job in pool.map(lambda _: list(factors(n, 40, 1)), range(16)) for f in job]
    assert len(made) == len(set(made)) == 640


def test_no_factor_is_used_twice_by_helper_processes(cold, private, monkeypatch):
    monkeypatch.setattr(blinding, "HELPER_PAYS_AT", 1)
    n, n_squared = private.public.n, private.public.n_squared
    before = threading.active_count()
    here = []

    def slow_draw(table, count):
        time.sleep(0.003 * count)
        here.extend(powers(table, [os.urandom(count) for _ in table.rows]))
        return here[-count:]

    monkeypatch.setattr(blinding, "draw", slow_draw)
    made = list(factors(n, 600, 3))
    assert len(made) == len(set(made)) == 600
    assert set(made) - set(here), "the helpers made none"
    order = (private.p - 1) * (private.q - 1)
    assert all(gmpy2.powmod(factor, order, n_squared) == 1 for factor in made[::60])
    assert threading.active_count() == before


def test_helpers_stop_when_the_caller_does(cold, private, monkeypatch):
    monkeypatch.setattr(blinding, "HELPER_PAYS_AT", 1)
    before = threading.active_count()
    stream = factors(private.public.n, 2000, 2)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("program", ["/nonexistent", "/bin/false"])
def test_a_helper_that_fails_is_done_without(cold, private, monkeypatch, program, caplog):
    monkeypatch.setattr(blinding, "HELPER_PAYS_AT", 1)
    monkeypatch.setattr(sys, "executable", program)
    assert len(set(factors(private.public.n, 100, 2))) == 100
    assert "helper process" in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_uses_no_factor_of_its_parent_and_waits_for_no_lock_of_it(cold, private):
    n = private.public.n
    table = cold.table(n, 30)
    size = blinding.factor_bytes(n)
    read, write = os.pipe()
    with cold.lock, cold.kept[n].lock:  # as if another thread were building just now
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for factor in (*factors(n, 30, 1), *blinding.draw(table, 30)):
                    os.write(write, factor.to_bytes(size, "big"))
                status = 0
            finally:
                os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    theirs = [gmpy2.mpz.from_bytes(data[i : i + size], "big") for i in range(0, len(data), size)]
    ours = [*factors(n, 30, 1), *blinding.draw(table, 30)]
    assert len({*theirs, *ours}) == 120
