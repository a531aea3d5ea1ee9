"""Code for vector units, run here on whole numbers: right modulo p, and never beyond 64 bits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir

from secure_agg.arithmetic.field import BITS, MOST, REDUCED, SHIFTS, P, Residues


def value(operand: Any) -> int:
    return operand.constant[0].constant if isinstance(operand, ir.Constant) else operand


class WholeNumbers:
    """What an instruction does, where its result fits a word; a mask of 32 bits loses nothing."""

    @staticmethod
    def word(result: int) -> int:
        assert 0 <= result < 2**64
        return result

    def add(self, x: Any, y: Any) -> int:
        return self.word(value(x) + value(y))

    def sub(self, x: Any, y: Any) -> int:
        return self.word(value(x) - value(y))

    def mul(self, x: Any, y: Any) -> int:
        assert value(x) < 2**32 and value(y) < 2**32
        return self.word(value(x) * value(y))

    def shl(self, x: Any, y: Any) -> int:
        return self.word(value(x) << value(y))

    def lshr(self, x: Any, y: Any) -> int:
        return value(x) >> value(y)

    def and_(self, x: Any, y: Any) -> int:
        assert value(y) != 2**32 - 1 or value(x) < 2**32
        return value(x) & value(y)


def number(residues: Residues) -> int:
    limbs = map(value, residues.limbs)
    return sum(limb << shift for limb, shift in zip(limbs, SHIFTS, strict=True)) % P


def within(residues: Residues) -> bool:
    limbs = map(value, residues.limbs)
    return all(x <= residues.weight * 2**n for x, n in zip(limbs, BITS, strict=True))


def residues(weight: float) -> st.SearchStrategy[Residues]:
    """Numbers with any limbs that a weight allows, the largest among them often."""
    limbs = [
        st.one_of(st.just(int(weight * 2**n)), st.integers(0, int(weight * 2**n)), st.just(0))
        for n in BITS
    ]
    return st.tuples(*limbs).map(lambda drawn: Residues(WholeNumbers(), drawn, weight))


weights = st.sampled_from([REDUCED, 2.02, 3.01, MOST])
numbers = weights.flatmap(residues)


@given(numbers, numbers)
def test_sums_differences_and_products_are_right_and_within_their_bounds(
    one: Residues, other: Residues
) -> None:
    x, y = number(one), number(other)
    for result, right in (
        (one + other, x + y),
        (one - other, x - y),
        (-one, -x),
        (one * other, x * y),
        (one.square(), x * x),
        (one.carried(), x),
        (one.constant(x), x),
    ):
        assert number(result) == right % P
        assert within(result)
        assert result.weight <= MOST


@given(numbers)
def test_the_canonical_form_is_the_number_below_p(one: Residues) -> None:
    limbs = map(value, one.canonical())
    assert sum(x << shift for x, shift in zip(limbs, SHIFTS, strict=True)) == number(one)


@pytest.mark.parametrize("near", [0, 1, P - 1, P, P + 1, 2 * P - 1, 2**255 - 1, 2**255])
def test_the_canonical_form_of_numbers_around_p_is_below_it(near: int) -> None:
    limbs = [near >> shift & (1 << bits) - 1 for shift, bits in zip(SHIFTS, BITS, strict=True)]
    limbs[-1] += near >> 255 << BITS[-1]
    one = Residues(WholeNumbers(), limbs, 2.02)
    assert sum(value(x) << s for x, s in zip(one.canonical(), SHIFTS, strict=True)) == near % P


def test_limbs_that_are_too_large_are_not_multiplied() -> None:
    large = Residues(WholeNumbers(), [2**28] * 10, 4.0)
    with pytest.raises(AssertionError, match="too large"):
        large * large
