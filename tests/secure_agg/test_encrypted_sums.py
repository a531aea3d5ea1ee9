"""Sums of encrypted rows over groups: exact, masked, and not to be bent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg import encrypted_sums, wire
from secure_agg.arithmetic.ring import Ring
from secure_agg.encrypted_sums import Blocks
from secure_agg.errors import InvalidCiphertext, InvalidLayout, MalformedMessage
from secure_agg.triples import ProductTerms

RING = Ring(64)


def blocks(rows: int, a: int, b: int, bits: int = 40, query: str = "q") -> Blocks:
    return Blocks(ProductTerms(query, rows, a, b, RING), bits, 2048)


def shares(how: Blocks, private, left, right):
    """Every role of the protocol, in order: both shares."""
    rows = encrypted_sums.encrypted_rows(how, private.public, left, workers=1)
    answer, share = encrypted_sums.added(how, private.public, right, rows, workers=1)
    return encrypted_sums.opened(how, private, answer), share


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(1, 3), st.integers(0, 9))
def test_shares_add_up_to_the_sums_of_groups(private, rows, a, b, seed):
    rng = np.random.default_rng(seed)
    left = rng.integers(-(2**29), 2**29, (rows, a)).astype(object)
    right = rng.integers(0, 2, (rows, b))
    ours, theirs = shares(blocks(rows, a, b), private, left, right)
    assert (RING.signed(ours + theirs) == left.T @ right.astype(object)).all()


def test_rows_share_a_ciphertext_where_that_saves_multiplications():
    assert blocks(10_000, 2, 330).rows > 2
    assert blocks(10, 2, 330).rows == 1
    assert blocks(10_000, 24, 330).rows == 1
    for how in (blocks(10_000, 2, 330), blocks(1_000_000, 2, 10)):
        assert (2 * how.rows - 1) * how.width < how.key_bits


def test_what_is_opened_is_masked_by_40_bits_in_every_slot(private):
    left, right = np.ones((4000, 1), dtype=object), np.ones((4000, 1), dtype=np.int64)
    how = blocks(4000, 1, 1, bits=14)
    assert how.rows > 1
    share = max(int(shares(how, private, left, right)[0][0, 0]) for _ in range(5))
    assert share.bit_length() > 14 + 30


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [([2**39], [1], "more than 40 bits"), ([1], [2], "neither 0 nor 1"), ([1, 1], [1], "shape")],
)
def test_numbers_that_do_not_fit_are_refused(private, left, right, text):
    columns = [np.array(v, dtype=object)[:, None] for v in (left, right)]
    with pytest.raises(InvalidLayout, match=text):
        shares(blocks(1, 1, 1), private, *columns)


def test_a_message_of_another_sum_or_with_another_ciphertext_is_refused(private):
    one = np.ones((1, 1), dtype=object)
    rows = encrypted_sums.encrypted_rows(blocks(1, 1, 1), private.public, one, workers=1)
    with pytest.raises(MalformedMessage, match="another product"):
        encrypted_sums.added(blocks(1, 1, 1, query="other"), private.public, one, rows)
    digest, data = wire.split(encrypted_sums.ROWS, rows, 2)
    for bad, error in ((bytes(len(data)), InvalidCiphertext), (data[:-1], MalformedMessage)):
        message = wire.join(encrypted_sums.ROWS, [digest, bad])
        with pytest.raises(error):
            encrypted_sums.added(blocks(1, 1, 1), private.public, one, message)
