"""Shares of a product of two matrices, of which each side holds one: with dealt randomness.

Two sides know the same rows in other columns. Of ``left.T @ right`` each gets a share, and the shares
add up to it modulo a power of two; a share alone is uniform. Beaver, "Efficient multiparty protocols
using circuit randomization", CRYPTO 1991, for matrices:

    0  dealer  deal       U, W from one seed, V from another; U.T @ V - W goes to the right side
    1  sides   masked     left - U to the right side, right - V to the left one
    2  left    share      left.T @ (right - V) + W
       right   share      (left - U).T @ V + (U.T @ V - W)

The dealer learns the sizes and nothing else. It must not work with a side: the seed of the other one
opens what that side sent. A triple is used once: a second use with other numbers shows their difference.
A side therefore notes the query where no crash takes it back before it calls `masked`, and asks for
the same product again under another name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from secure_agg import wire
from secure_agg.arithmetic.ring import PIECE, Digits, Integers, Ring
from secure_agg.errors import InvalidLayout, MalformedMessage
from secure_agg.identity import check_name, derived

TERMS, DEALT, MASKED = b"SAGGPT01", b"SAGGPD01", b"SAGGPM01"
Side = Literal["left", "right"]


@dataclass(frozen=True)
class ProductTerms:
    """What one product is about: its name, the rows, the columns of both sides, the ring.

    Raises InvalidIdentity and InvalidLayout.
    """

    query: str
    rows: int
    left: int
    right: int
    ring: Ring

    def __post_init__(self) -> None:
        check_name(self.query)
        if min(self.rows, self.left, self.right) < 1:
            raise InvalidLayout("a product needs a row, and a column of each side")

    @property
    def digest(self) -> bytes:
        sizes = (self.rows, self.left, self.right, self.ring.bits)
        return wire.digest(TERMS, [self.query.encode(), *(n.to_bytes(8, "big") for n in sizes)])

    @property
    def piece(self) -> int:
        """Rows that are worked on at a time: few where they are long."""
        return max(1, min(PIECE, 2**22 // max(self.left, self.right)))

    @property
    def vectors(self) -> int:
        """Row by row: how many vectors of the right side's length a row of the left side has."""
        return self.left // self.right

    def shape(self, side: Side) -> tuple[int, int]:
        return self.rows, self.left if side == "left" else self.right


def seed_of(secret: bytes, terms: ProductTerms) -> bytes:
    """A side's seed of one triple. secret: 32 bytes that the dealer gave this side for a run."""
    return derived(secret, b"triple " + terms.digest)


def deal(terms: ProductTerms, left_seed: bytes, right_seed: bytes) -> bytes:
    """Step 0, the dealer: what the right side's share is corrected by."""
    total = -_own_share(terms, left_seed)
    masks = zip(_masks(terms, left_seed, "left"), _masks(terms, right_seed, "right"), strict=True)
    for (_, u), (_, v) in masks:
        total = total + terms.ring.product(u, v)
    return wire.join(DEALT, [terms.digest, _out(terms.ring, total)])


def masked(terms: ProductTerms, seed: bytes, side: Side, matrix: Digits) -> bytes:
    """Step 1: a side's matrix for the other side, which can't read it."""
    if matrix.shape != (*terms.shape(side), terms.ring.digits):
        raise InvalidLayout("the matrix is not of the shape that was agreed on")
    pieces = [
        terms.ring.to_bytes(terms.ring.subtracted(matrix[part], mask))
        for part, mask in _masks(terms, seed, side)
    ]
    return wire.join(MASKED, [terms.digest, side.encode(), b"".join(pieces)])


def left_share(terms: ProductTerms, seed: bytes, matrix: Digits, message: bytes) -> Integers:
    """Step 2, left: its share, (a, b). message: the right side's. Raises MalformedMessage."""
    other = _matrix(terms, "right", message)
    return _reduced(terms, terms.ring.product(matrix, other) + _own_share(terms, seed))


def right_share(terms: ProductTerms, seed: bytes, message: bytes, dealt: bytes) -> Integers:
    """Step 2, right: its share, (a, b). message: the left side's; dealt: the dealer's.

    Raises MalformedMessage.
    """
    digest, data = wire.split(DEALT, dealt, 2)
    _same(terms, digest)
    total = _in(terms, data)
    other = _matrix(terms, "left", message)
    for part, mask in _masks(terms, seed, "right"):
        total = total + terms.ring.product(other[part], mask)
    return _reduced(terms, total)


# Row by row: each row's inner products, as shares that stay with the row.


def deal_rows(terms: ProductTerms, left_seed: bytes, right_seed: bytes) -> bytes:
    """Step 0 for row-by-row products: as `deal`; the left side has ``left / right`` vectors a row."""
    masks = zip(_masks(terms, left_seed, "left"), _masks(terms, right_seed, "right"), strict=True)
    own = _row_shares(terms, left_seed)
    pieces = [
        terms.ring.to_bytes(
            terms.ring.subtracted(terms.ring.dots(_vectors(terms, u), v), own[part])
        )
        for (part, u), (_, v) in masks
    ]
    return wire.join(DEALT, [terms.digest, b"".join(pieces)])


def left_rows(terms: ProductTerms, seed: bytes, matrix: Digits, message: bytes) -> Digits:
    """Step 2, left: its share of each row's products, (rows, vectors, digits)."""
    other, ring = _matrix(terms, "right", message), terms.ring
    return ring.added(ring.dots(_vectors(terms, matrix), other), _row_shares(terms, seed))


def right_rows(terms: ProductTerms, seed: bytes, message: bytes, dealt: bytes) -> Digits:
    """Step 2, right: its share of each row's products, (rows, vectors, digits)."""
    digest, data = wire.split(DEALT, dealt, 2)
    _same(terms, digest)
    try:
        total = terms.ring.from_bytes(data, (terms.rows, terms.vectors))
    except InvalidLayout as error:
        raise MalformedMessage(f"what the dealer sent does not fit: {error}") from None
    other, result = _matrix(terms, "left", message), np.empty_like(total)
    for part, mask in _masks(terms, seed, "right"):
        products = terms.ring.dots(_vectors(terms, other[part]), mask)
        result[part] = terms.ring.added(products, total[part])
    return result


def _vectors(terms: ProductTerms, matrix: Digits) -> Digits:
    return matrix.reshape(len(matrix), terms.vectors, terms.right, terms.ring.digits)


def _row_shares(terms: ProductTerms, seed: bytes) -> Digits:
    parts = terms.ring.stream(derived(seed, b"share"), (terms.rows, terms.vectors), terms.piece)
    return np.concatenate([digits for _, digits in parts])


def _masks(terms: ProductTerms, seed: bytes, side: Side) -> Iterator[tuple[slice, Digits]]:
    return terms.ring.stream(derived(seed, b"rows"), terms.shape(side), terms.piece)


def _own_share(terms: ProductTerms, seed: bytes) -> Integers:
    shape = (terms.left, terms.right)
    parts = [digits for _, digits in terms.ring.stream(derived(seed, b"share"), shape)]
    return terms.ring.integers(parts[0])


def _reduced(terms: ProductTerms, total: Integers) -> Integers:
    result: Integers = total % terms.ring.modulus
    return result


def _out(ring: Ring, values: Integers) -> bytes:
    return ring.to_bytes(ring.from_integers(values))


def _in(terms: ProductTerms, data: bytes) -> Integers:
    try:
        return terms.ring.integers(terms.ring.from_bytes(data, (terms.left, terms.right)))
    except InvalidLayout as error:
        raise MalformedMessage(f"what the dealer sent does not fit: {error}") from None


def _matrix(terms: ProductTerms, side: Side, message: bytes) -> Digits:
    digest, name, data = wire.split(MASKED, message, 3)
    _same(terms, digest)
    if name != side.encode():
        raise MalformedMessage("a product's message is of the wrong side")
    try:
        return terms.ring.from_bytes(data, terms.shape(side))
    except InvalidLayout as error:
        raise MalformedMessage(f"a product's message does not fit: {error}") from None


def _same(terms: ProductTerms, digest: bytes) -> None:
    if digest != terms.digest:
        raise MalformedMessage("a product's message is of another product")
