"""Matrices modulo powers of two: exact against whole numbers of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_agg.arithmetic import ring
from secure_agg.arithmetic.ring import Ring
from secure_agg.errors import InvalidLayout, ValueOutOfBounds

BITS = st.sampled_from([16, 48, 64, 128, 224])


def matrix(draw, bits: int, rows: int, columns: int):
    numbers = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    values = draw(st.lists(numbers, min_size=rows * columns, max_size=rows * columns))
    return np.array(values, dtype=object).reshape(rows, columns)


@given(st.data(), BITS, st.integers(1, 7), st.integers(1, 3), st.integers(1, 3))
def test_a_product_is_that_of_whole_numbers(data, bits, rows, a, b):
    numbers = Ring(bits)
    left, right = matrix(data.draw, bits, rows, a), matrix(data.draw, bits, rows, b)
    product = numbers.product(numbers.from_integers(left), numbers.from_integers(right))
    assert (product == (left.T @ right) % numbers.modulus).all()


@given(st.data(), BITS)
def test_sums_and_differences_carry(data, bits):
    numbers = Ring(bits)
    one, two = (matrix(data.draw, bits, 3, 2) for _ in range(2))
    digits, others = numbers.from_integers(one), numbers.from_integers(two)
    plus, minus = numbers.added(digits, others), numbers.subtracted(digits, others)
    assert (numbers.integers(plus) == (one + two) % numbers.modulus).all()
    assert (numbers.integers(minus) == (one - two) % numbers.modulus).all()


@given(st.lists(st.floats(-(2.0**40), 2.0**40), min_size=1, max_size=9), st.integers(-44, 10))
def test_a_number_becomes_the_nearest_grid_point(values, shift):
    numbers, resolution = Ring(128), 2.0**shift
    digits = numbers.encoded(np.array([values]), bound=2.0**40, resolution=resolution)
    signed = numbers.signed(numbers.integers(digits))[0]
    assert [int(v) for v in signed] == [int(np.rint(v / resolution)) for v in values]


def test_pieces_of_many_rows_add_up(monkeypatch):
    numbers, rng = Ring(64), np.random.default_rng(1)
    left, right = (rng.integers(-(2**20), 2**20, (1000, 3)) for _ in range(2))
    digits = [numbers.encoded(m.astype(float), 2.0**20, 1.0) for m in (left, right)]
    whole = numbers.product(*digits)
    monkeypatch.setattr(ring, "PIECE", 7)
    assert (numbers.product(*digits) == whole).all()
    assert (numbers.signed(whole) == left.T @ right).all()


def test_the_largest_digits_do_not_overflow():
    numbers = Ring(128)
    full = np.full((2 * ring.PIECE, 1, numbers.digits), ring.BASE - 1, dtype=np.uint16)
    value = numbers.modulus - 1
    assert numbers.product(full, full)[0, 0] == 2 * ring.PIECE * value**2 % numbers.modulus


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5, -1.5])
def test_what_exceeds_its_bound_is_refused(value):
    with pytest.raises(ValueOutOfBounds, match="exceeds the bound"):
        Ring(64).encoded(np.array([[value]]), bound=1.0, resolution=0.5)


@pytest.mark.parametrize("bits", [0, 8, 100, 2048])
def test_a_ring_has_whole_digits(bits):
    with pytest.raises(InvalidLayout, match="multiple of 16"):
        Ring(bits)
