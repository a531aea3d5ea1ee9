"""Lanes against Python's integers: carries, streams, and what does not decode."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from secure_agg.arithmetic.lanes import (
    PIECE,
    added,
    apply_streams,
    decoded,
    encoded,
    lanes_of,
    vector_lanes,
)
from secure_agg.errors import InconsistentSum, LayoutMismatch, ValueOutOfBounds
from secure_agg.packing import Field, Layout, pack, unpack

NARROW, DOUBLE, TRIPLE = Field(3, 100.0, 0.25), Field(2, 2.0**70, 1.0), Field(2, 2.0**100, 2.0**-60)
MIXED = (NARROW, DOUBLE, Field(1, 9.0, 1.0), TRIPLE, NARROW)
KEYS = st.binary(min_size=32, max_size=32)


@st.composite
def fields(draw, largest_size=4):
    exponent = draw(st.integers(-60, 99))
    resolution = math.ldexp(1.0, draw(st.integers(-60, exponent)))
    bound = math.ldexp(draw(st.floats(1.0, 2.0)), exponent)
    return Field(draw(st.integers(1, largest_size)), bound, resolution)


@st.composite
def jobs(draw):
    """Fields, how many parties add, and the arrays of each, with bounds among the values."""
    some, parties = draw(st.lists(fields(), min_size=1, max_size=4)), draw(st.integers(3, 12))

    def values(field):
        ends = [0.0, -0.0, field.bound, -field.bound, field.resolution, field.resolution / 2]
        value = st.sampled_from(ends) | st.floats(-field.bound, field.bound)
        return st.lists(value, min_size=field.size, max_size=field.size)

    return some, parties, [[draw(values(f)) for f in some] for _ in range(parties)]


def grid_sum(field, values):
    """The exact sum of the values rounded to the field's grid, half to even."""
    resolution = Fraction(field.resolution)
    return sum(round(Fraction(float(value)) / resolution) for value in values) * resolution


def numbers(some, vector, parties):
    """The count and the values of a vector as whole numbers modulo a power of two."""
    plain, at = [(int(vector[0]), 64)], 1
    for field in some:
        lanes = lanes_of(field, parties)
        part = vector[at : at + lanes * field.size].reshape(lanes, field.size)
        whole = [0] * field.size
        for low, row in enumerate(part.tolist()):
            whole = [value + (lane << 64 * low) for value, lane in zip(whole, row, strict=True)]
        plain += [(value, 64 * lanes) for value in whole]
        at += lanes * field.size
    assert at == len(vector)
    return plain


def vector_of(some, plain, parties):
    """The vector of such numbers."""
    vector, at, values = np.empty(vector_lanes(some, parties), np.uint64), 1, list(plain)
    vector[0] = values.pop(0) % 2**64
    for field in some:
        for low in range(lanes_of(field, parties)):
            for index in range(field.size):
                vector[at] = (values[index] >> 64 * low) % 2**64
                at += 1
        values = values[field.size :]
    return vector


def stream(key, lanes):
    """AES-256 in counter mode from a counter of zero, as lanes."""
    cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(8 * lanes)), dtype="<u8")


@given(jobs())
@settings(max_examples=80)
def test_added_vectors_decode_to_the_exact_sum_rounded_once(job):
    some, parties, contributions = job
    total = added([encoded(some, arrays, parties) for arrays in contributions], some, parties)
    sums = decoded(some, total, parties, parties)
    for index, field in enumerate(some):
        columns = zip(*(arrays[index] for arrays in contributions), strict=True)
        assert sums[index].dtype == np.float64
        assert sums[index].tolist() == [float(grid_sum(field, column)) for column in columns]


@given(jobs())
@settings(max_examples=40)
def test_lanes_and_slots_of_a_plaintext_hold_the_same_sums(job):
    some, parties, contributions = job
    layout = Layout(tuple(some), parties, 2048)
    packed = [sum(column) for column in zip(*(pack(layout, a) for a in contributions), strict=True)]
    total = added([encoded(some, arrays, parties) for arrays in contributions], some, parties)
    opened = unpack(layout, packed, parties)
    for ours, theirs in zip(decoded(some, total, parties, parties), opened, strict=True):
        assert ours.tobytes() == theirs.tobytes()


@given(fields(), st.integers(3, 12), st.sampled_from([1, -1]))
def test_lanes_hold_the_largest_sum_of_all_parties(field, parties, sign):
    one = encoded([field], [np.full(field.size, sign * field.bound)], parties)
    (sums,) = decoded([field], added([one] * parties, [field], parties), parties, parties)
    assert (sums == float(grid_sum(field, [sign * field.bound] * parties))).all()


def test_a_known_vector():
    some = (Field(2, 3.0, 0.5), Field(2, 2.0**70, 1.0))
    vector = encoded(some, [[-1.5, 3], [-1, 2.0**64 + 2.0**20]], 3)
    assert vector.tolist() == [1, 2**64 - 3, 6, 2**64 - 1, 2**20, 2**64 - 1, 1]


@pytest.mark.parametrize(
    ("bound", "parties", "lanes"),
    [
        (1.0, 3, 1),
        (2.0**61, 3, 1),  # a sum of 63 bits and its sign
        (2.0**61, 4, 2),
        (2.0**62, 3, 2),
        (2.0**125, 3, 2),
        (2.0**126, 3, 3),
    ],
)
def test_a_value_has_the_fewest_lanes_that_hold_the_largest_sum(bound, parties, lanes):
    field = Field(1, bound, 1.0)
    assert lanes_of(field, parties) == lanes
    assert vector_lanes([field, NARROW], parties) == 1 + lanes + 3
    for sign in (1, -1):
        total = added([encoded([field], [[sign * bound]], parties)] * parties, [field], parties)
        assert decoded([field], total, parties, parties)[0][0] == sign * parties * bound


ENDS = [0, 1, 2**64 - 1, 2**64, 2**64 + 1, 2**128 - 1, 2**128, 2**191, 2**192 - 1, 2**192 - 2**64]


@given(st.data())
@settings(max_examples=120)
def test_vectors_add_like_integers_whatever_the_carries(data):
    size = 1 + sum(field.size for field in MIXED)
    number = st.sampled_from(ENDS) | st.integers(0, 2**192 - 1)
    some = [data.draw(st.lists(number, min_size=size, max_size=size)) for _ in range(3)]
    vectors = [vector_of(MIXED, plain, 3) for plain in some]
    before = [vector.copy() for vector in vectors]
    total = numbers(MIXED, added(vectors, MIXED, 3), 3)
    for at, (value, bits) in enumerate(total):
        assert value == sum(plain[at] for plain in some) % 2**bits
    for vector, copy in zip(vectors, before, strict=True):
        assert (vector == copy).all()


@given(KEYS, st.booleans(), st.data())
@settings(max_examples=120)
@example(bytes(32), True, None)
@example(bytes(32), False, None)
def test_a_stream_is_added_and_subtracted_with_every_carry(key, add, data):
    mask = numbers(MIXED, stream(key, vector_lanes(MIXED, 3)), 3)
    # What is left after the stream is drawn, not what was before, so that carries run far.
    ends = st.sampled_from([0, 1, -1, 2**64, -(2**64), 2**64 - 1, 2**128, -(2**128), 2**191])
    left = [data.draw(ends) if data else -1 for _ in mask]
    sign = 1 if add else -1
    vector = vector_of(MIXED, [end - sign * m for end, (m, _) in zip(left, mask, strict=True)], 3)
    apply_streams(vector, [(key, add)], MIXED, 3)
    assert numbers(MIXED, vector, 3) == [
        (end % 2**bits, bits) for end, (_, bits) in zip(left, mask, strict=True)
    ]


@given(st.lists(st.tuples(KEYS, st.booleans()), min_size=1, max_size=5), st.randoms())
@settings(max_examples=60)
def test_streams_taken_away_again_in_any_order_leave_the_vector(streams, order):
    vector = encoded(MIXED, [np.full(f.size, -f.bound) for f in MIXED], 3)
    before = vector.copy()
    apply_streams(vector, streams, MIXED, 3)
    back = [(key, not add) for key, add in streams]
    order.shuffle(back)
    apply_streams(vector, back, MIXED, 3)
    assert (vector == before).all()


def test_known_stream():
    # NIST's known answer test of AES-256 for the key and the block of zeros, then counter 1.
    vector = np.zeros(4, np.uint64)
    apply_streams(vector, [(bytes(32), True)], [NARROW], 3)
    assert vector[:2].astype("<u8").tobytes().hex() == "dc95c078a2408989ad48a21492842087"
    assert vector[2:].astype("<u8").tobytes().hex() == "530f8afbc74536b9a963b4f1c4cb738b"


@pytest.mark.parametrize(
    "some",
    [
        (Field(PIECE - 1, 100.0, 1.0),),
        (Field(PIECE, 100.0, 1.0),),
        (
            Field(PIECE + 5, 9.0, 1.0),
            Field(PIECE // 2 + 1, 2.0**100, 1.0),
            Field(2 * PIECE + 3, 9.0, 1.0),
        ),
        (TRIPLE, Field(PIECE + 9, 9.0, 1.0), DOUBLE, TRIPLE, NARROW, DOUBLE),
    ],
    ids=["just one piece", "one lane more", "a wide field between", "wide fields at both ends"],
)
def test_vectors_of_many_pieces_carry_one_stream_from_end_to_end(some):
    generator = np.random.default_rng(1)
    arrays = [generator.uniform(-f.bound, f.bound, f.size) for f in some]
    vector = encoded(some, arrays, 3)
    before = numbers(some, vector, 3)
    keys = [generator.bytes(32) for _ in range(2)]
    apply_streams(vector, [(keys[0], True), (keys[1], False)], some, 3)
    plus, minus = (numbers(some, stream(key, len(vector)), 3) for key in keys)
    expected = [
        (value + p - m) % 2**bits
        for (value, bits), (p, _), (m, _) in zip(before, plus, minus, strict=True)
    ]
    assert [value for value, _ in numbers(some, vector, 3)] == expected
    apply_streams(vector, [(keys[1], True), (keys[0], False)], some, 3)
    assert numbers(some, vector, 3) == before


@given(KEYS, KEYS)
@settings(max_examples=30)
def test_two_keys_give_unrelated_streams(one, other):
    first, second = np.zeros(99, np.uint64), np.zeros(99, np.uint64)
    apply_streams(first, [(one, True)], [Field(98, 9.0, 1.0)], 3)
    apply_streams(second, [(other, True)], [Field(98, 9.0, 1.0)], 3)
    assert set(first.tolist()) & set(second.tolist()) == set(first.tolist() if one == other else ())


@pytest.mark.parametrize("count", [0, 1, 3, 2**32, 2**64 - 2])
def test_another_count_than_that_of_the_parties_is_refused(count):
    one = encoded(MIXED, [np.ones(f.size) for f in MIXED], 3)
    total = added([one, one], MIXED, 3)
    assert [sums.tolist() for sums in decoded(MIXED, total, 2, 3)] == [
        [2.0] * f.size for f in MIXED
    ]
    with pytest.raises(InconsistentSum, match="contributions"):
        decoded(MIXED, total, count, 3)
    total[0] = count
    with pytest.raises(InconsistentSum, match="contributions"):
        decoded(MIXED, total, 2, 3)


@pytest.mark.parametrize("field", [NARROW, DOUBLE, TRIPLE], ids=["one lane", "two", "three"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_just_beyond_the_bound_is_refused_and_one_at_it_is_not(field, sign):
    most = 2 * field.limit * sign
    for at in range(field.size):
        plain = [2] + [0] * field.size
        plain[1 + at] = most
        sums = decoded([field], vector_of([field], plain, 3), 2, 3)[0]
        assert sums[at] == 2 * field.bound * sign
        for beyond in (most + sign, 2 * most, sign * 2 ** (64 * lanes_of(field, 3) - 1) - sign):
            plain[1 + at] = beyond
            with pytest.raises(InconsistentSum, match="bound"):
                decoded([field], vector_of([field], plain, 3), 2, 3)


def test_the_most_negative_number_is_beyond_every_bound():
    for field in (NARROW, DOUBLE, TRIPLE):
        plain = [3] + [-(2 ** (64 * lanes_of(field, 3) - 1))] * field.size
        with pytest.raises(InconsistentSum):
            decoded([field], vector_of([field], plain, 3), 3, 3)


def test_values_and_arrays_that_do_not_fit_are_refused_as_packing_refuses_them():
    for bad in (100.25, -np.inf, np.nan, 1e308):
        with pytest.raises(ValueOutOfBounds) as caught:
            encoded([DOUBLE, NARROW], [[0, 0], [0, bad, 0]], 3)
        assert "field 1" in str(caught.value)
        assert repr(bad) not in str(caught.value)
    for arrays in ([], [[1, 2]], [[1, 2, 3], [1]], [[[1, 2, 3]]], [["1", "2", "3"]]):
        with pytest.raises(LayoutMismatch):
            encoded([NARROW], arrays, 3)
