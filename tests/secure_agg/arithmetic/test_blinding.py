"""Blinding factors: the right group element, and never the same twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gmpy2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg.arithmetic import blinding
from secure_agg.arithmetic.blinding import (
    best_window,
    build,
    draw,
    factors,
    powers,
    random_base,
    windows,
)


@pytest.fixture
def cold(monkeypatch):
    """A process that has made no table yet."""
    monkeypatch.setattr(blinding, "_cache", blinding._Cache())
    yield blinding._cache
    blinding._cache.close()


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
    assert blinding.table_bytes(bits, window) <= blinding.LARGEST_TABLE_BYTES
    assert best_window(bits, 10 * count) >= window
    assert best_window(bits, count, present=window) == window


def test_ten_values_do_not_pay_for_a_hundred_thousand(cold, private):
    n = private.public.n

    def table(count):
        return cold.prepared(n, count, 1)[0]

    small = table(10)
    assert small.window <= 5
    assert table(1) is small
    large = table(500)
    assert large.window > small.window
    assert table(10) is large


def test_only_so_many_tables_are_kept(cold, fresh, private):
    for n in (private.public.n + 2, fresh.public.n, private.public.n):
        cold.prepared(n, 1, 1)
    assert list(cold.stocks) == [fresh.public.n, private.public.n]


def test_no_factor_is_used_twice_by_many_threads(cold, private):
    n = private.public.n
    with ThreadPoolExecutor(8) as pool:
        made = [f for job in pool.map(lambda _: list(factors(n, 40, 1)), range(16)) for f in job]
    assert len(made) == len(set(made)) == 640


def test_no_factor_is_used_twice_by_helper_processes(cold, private, monkeypatch):
    monkeypatch.setattr(blinding, "HELPER_PAYS_AT", 1)
    n, n_squared = private.public.n, private.public.n_squared
    here = []
    monkeypatch.setattr(
        blinding,
        "draw",
        lambda *asked: time.sleep(0.2) or here.extend(draw(*asked)) or here[-asked[1] :],
    )
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(lambda: list(factors(n, 200, 3))) for _ in range(6)]
        made = [factor for job in jobs for factor in job.result()]
    assert len(made) == len(set(made)) == 1200
    assert set(made) - set(here), "the helpers made none"
    order = (private.p - 1) * (private.q - 1)
    assert all(0 < factor < n_squared for factor in made)
    assert all(gmpy2.powmod(factor, order, n_squared) == 1 for factor in made[::60])
    assert len(cold.stocks[n].helpers) == 2


def test_many_small_jobs_get_a_helper_like_a_big_one(cold, private):
    n = private.public.n
    assert blinding.processes_worth(2048, 10) == 1
    assert blinding.processes_worth(2048, 5000) > 1
    for _ in range(5):
        assert cold.prepared(n, 10, 2)[1] == []
    cold.stocks[n].recent = 5000
    assert len(cold.prepared(n, 10, 2)[1]) == 1
    assert cold.prepared(n, 10, 1)[1] == []


def test_a_helper_waits_idly_ends_when_told_and_is_replaced(cold, private, monkeypatch):
    monkeypatch.setattr(blinding, "HELPER_PAYS_AT", 1)
    n = private.public.n
    first = cold.prepared(n, 10, 2)[1]
    while not (taken := first[0].take(3)):
        time.sleep(0.01)
    assert 1 <= len(taken) <= 3
    assert cold.prepared(n, 10, 2)[1] == first
    first[0].stop()
    assert first[0].process.returncode is not None
    assert first[0].take(3) == []
    second = cold.prepared(n, 10, 2)[1]
    assert second != first
    cold.close()
    assert second[0].process.returncode is not None


def test_a_helper_ends_by_itself_when_nobody_reads(private):
    code = "import secure_agg.arithmetic.blinding as b, sys; b.IDLE_SECONDS = 1; b.serve(*sys.argv[1:])"
    command = [sys.executable, "-c", code, f"{private.public.n:x}", "2"]
    root = Path(blinding.__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as process:
        assert process.wait(60) == -signal.SIGALRM
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root
    ) as process:
        process.stdout.close()
        assert b"Error" not in process.stderr.read().replace(b"BrokenPipeError", b"")
        process.wait(60)


@pytest.mark.parametrize("program", ["/nonexistent", "/bin/false"])
def test_a_helper_that_fails_is_done_without(cold, private, monkeypatch, program):
    monkeypatch.setattr(blinding, "HELPER_PAYS_AT", 1)
    monkeypatch.setattr(sys, "executable", program)
    for _ in range(2):
        assert len(set(factors(private.public.n, 100, 2))) == 100


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_uses_no_factor_of_its_parent_and_waits_for_no_lock_of_it(
    cold, private, monkeypatch
):
    n = private.public.n
    monkeypatch.setattr(blinding, "HELPER_PAYS_AT", 1)
    table, (helper,) = cold.prepared(n, 30, 2)
    while not helper.take(1):
        time.sleep(0.01)
    size = blinding.factor_bytes(n)
    read, write = os.pipe()
    with cold.lock, cold.stocks[n].lock, helper.lock:  # as if another thread were building just now
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for factor in (*factors(n, 30, 2), *blinding.draw(table, 30)):
                    os.write(write, factor.to_bytes(size, "big"))
                status = 0
            finally:
                os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    theirs = [gmpy2.mpz.from_bytes(data[i : i + size], "big") for i in range(0, len(data), size)]
    ours = [*factors(n, 30, 2), *blinding.draw(table, 30)]
    assert len({*theirs, *ours}) == 120


def test_a_series_of_small_batches_gets_a_helper_at_once(cold, private):
    n = private.public.n
    assert cold.prepared(n, 2, 1, series=True)[1] == []
    assert len(cold.prepared(n, 2, 2, series=True)[1]) == 1
    assert len(set(factors(n, 50, 2, series=True))) == 50
    cold.close()
