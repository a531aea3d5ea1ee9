"""ristretto255 in vector code gives what libsodium and RFC 9496 give, and refuses what they refuse."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import rbcl
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg import ristretto
from secure_agg.arithmetic import curve
from secure_agg.arithmetic.field import P, limbs_of
from secure_agg.errors import InvalidElement, WrongArithmetic
from secure_agg.ristretto import CHUNK, ORDER, SIZE, encoded, multiplied
from tests.secure_agg.test_ristretto import DIGEST, MAPPED, MULTIPLES, NO_ELEMENTS

GENERATOR = bytes.fromhex(MULTIPLES[0])


def bytes_of(number: int) -> bytes:
    return number.to_bytes(SIZE, "little")


def random_bytes(name: str, *shape: int) -> np.ndarray:
    stream = hashlib.shake_256(name.encode()).digest(int(np.prod(shape)))
    return np.frombuffer(stream, dtype=np.uint8).reshape(shape)


def test_multiples_of_the_generator_are_those_of_rfc_9496() -> None:
    for times, multiple in enumerate(MULTIPLES, start=1):
        product, good = curve.products(times, encoded(GENERATOR))
        assert good.all() and product.tobytes().hex() == multiple


def test_what_rfc_9496_calls_invalid_is_none_and_its_multiples_are_elements() -> None:
    bad = encoded(*map(bytes.fromhex, NO_ELEMENTS))
    assert not curve.are_elements(bad).any()
    assert not curve.products(5, bad)[1].any()
    assert curve.are_elements(encoded(*map(bytes.fromhex, MULTIPLES))).all()


def test_digests_are_mapped_as_by_rfc_9496_and_libsodium() -> None:
    digests = random_bytes("digests", 500, 64)
    theirs = [rbcl.crypto_core_ristretto255_from_hash(row.tobytes()) for row in digests]
    assert (curve.mapped(digests) == encoded(*theirs)).all()
    answer = np.frombuffer(bytes.fromhex(DIGEST), dtype=np.uint8).reshape(1, -1)
    assert curve.mapped(answer).tobytes().hex() == MAPPED


# Halves of a digest where limbs are all ones or none, and where p is passed.
CORNERS = [
    0,
    1,
    2,
    P - 2,
    P - 1,
    P,
    P + 1,
    2**255 - 1,
    2**256 - 1,
    2**254,
    sum((2**26 - 1) << 51 * k for k in range(5)),
    sum((2**25 - 1) << 51 * k + 26 for k in range(5)),
    int("01" * 127, 2),
]


def test_digests_of_extreme_limbs_are_mapped_as_by_libsodium() -> None:
    digests = [
        one.to_bytes(SIZE, "little") + two.to_bytes(SIZE, "little")
        for one in CORNERS
        for two in CORNERS
    ]
    theirs = [rbcl.crypto_core_ristretto255_from_hash(digest) for digest in digests]
    rows = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 64)
    assert (curve.mapped(rows) == encoded(*theirs)).all()


def test_encodings_of_extreme_limbs_are_elements_where_libsodium_says_so() -> None:
    near = [*range(600), *range(P - 600, P + 19), *(c + k for c in CORNERS for k in range(-9, 9))]
    numbers = [number % 2**256 for number in near]
    ours = curve.are_elements(encoded(*map(bytes_of, numbers)))
    theirs = [
        0 < number < 2**255 and bool(rbcl.crypto_core_ristretto255_is_valid_point(bytes_of(number)))
        for number in numbers
    ]
    assert ours.tolist() == theirs
    elements = encoded(*(bytes_of(n) for n, good in zip(numbers, theirs, strict=True) if good))
    assert len(elements) > 100
    scalar = ORDER - 2
    products, _ = curve.products(scalar, elements)
    assert (products == multiplied(bytes_of(scalar), elements)).all()


scalars = st.one_of(
    st.integers(1, ORDER - 1),
    st.sampled_from([1, 2, 7, 8, 9, 15, 16, 17, ORDER - 1, ORDER // 2, 2**252, 2**252 - 1]),
    st.lists(st.sampled_from("0789f"), min_size=1, max_size=62).map(
        lambda digits: int("".join(digits), 16) or 1
    ),
)


@given(scalar=scalars, seed=st.integers(0, 2**32), count=st.integers(1, 17))
@settings(max_examples=60, deadline=None)
def test_products_are_libsodiums(scalar: int, seed: int, count: int) -> None:
    elements = curve.mapped(random_bytes(str(seed), count, 64))
    products, good = curve.products(scalar, elements)
    assert good.all()
    assert (products == multiplied(bytes_of(scalar), elements)).all()


@given(st.integers(0, 2**253 - 1))
def test_digits_make_up_the_scalar(scalar: int) -> None:
    digits = curve._digits(scalar)
    assert all(-7 <= digit <= 8 for digit in digits)
    assert sum(digit * 16**at for at, digit in enumerate(reversed(digits))) == scalar


@given(st.integers(0, P - 1))
def test_limbs_make_up_the_number(number: int) -> None:
    row = encoded(bytes_of(number))
    assert curve._packed(row)[0, :, 0].tolist() == limbs_of(number)
    assert curve._unpacked(curve._packed(row))[0].tobytes() == bytes_of(number)


def test_no_elements_have_no_products() -> None:
    none = encoded()
    assert curve.products(3, none)[0].shape == (0, SIZE)
    assert curve.mapped(np.empty((0, 64), dtype=np.uint8)).shape == (0, SIZE)


# As `secure_agg.ristretto` uses it.


@pytest.fixture
def vector_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ristretto, "MANY", 1)


@pytest.mark.usefixtures("vector_code")
def test_many_elements_are_multiplied_in_vector_code_and_a_bad_one_is_named() -> None:
    elements = ristretto.mapped(random_bytes("many", CHUNK + 9, 64))
    products = multiplied(bytes_of(77), elements)
    for row in (0, CHUNK - 1, CHUNK, CHUNK + 8):
        single = rbcl.crypto_scalarmult_ristretto255(bytes_of(77), elements[row].tobytes())
        assert products[row].tobytes() == single
    elements[CHUNK + 3] = 0
    for use in (ristretto.checked, lambda rows: multiplied(bytes_of(77), rows)):
        with pytest.raises(InvalidElement) as refusal:
            use(elements)
        assert refusal.value.row == CHUNK + 3


@pytest.mark.usefixtures("vector_code")
def test_a_machine_whose_vector_code_is_wrong_sends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elements = ristretto.mapped(random_bytes("wrong", 8, 64))
    monkeypatch.setattr(curve, "products", lambda scalar, rows: (rows, np.ones(len(rows), bool)))
    with pytest.raises(WrongArithmetic, match="do not agree"):
        multiplied(bytes_of(77), elements)
