"""Shares of sums of few columns over the rows of many groups: one side knows the columns, one the groups.

As `secure_agg.encrypted_product` where the evaluating side's numbers are 0 or 1, so that nothing is raised
to a power and several rows share a ciphertext:

    1  encrypting  rows      rows r, r + 1, ... side by side in blocks of slots: c_k
    2  evaluating  added     for each of its columns and each place p in a ciphertext the product of those c_k
                             whose row there counts; these, each shifted so that the blocks that count
                             lie upon each other, times an encryption of a mask
    3  encrypting  opened    its share: what the blocks that count hold; the other's share is minus the mask

Of the other blocks, which hold other rows' numbers, the encrypting side sees masked numbers as well: a
mask is uniform in 40 bits more than a slot's number needs. Where a row has more columns than a ciphertext
has room for, some of the columns are added after the others.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

import gmpy2
import numpy as np
from gmpy2 import mpz
from numpy.typing import NDArray

from secure_agg import wire
from secure_agg.arithmetic.ring import Integers
from secure_agg.encrypted_product import MASK_BITS, ciphertexts_of, read_all, read_ciphertexts
from secure_agg.errors import InvalidLayout, MalformedMessage
from secure_agg.keys import PrivateKey, PublicKey
from secure_agg.paillier import decrypt_raw
from secure_agg.triples import ProductTerms

ROWS, ADDED = b"SAGGES01", b"SAGGEA01"
#: Multiplications that an encryption takes, about.
ENCRYPTION = 100


@dataclass(frozen=True)
class Blocks:
    """How rows are packed. terms: left is the side that encrypts; bits: of a sum of a column's
    magnitudes over all rows, with its sign. Raises InvalidLayout."""

    terms: ProductTerms
    bits: int
    key_bits: int

    def __post_init__(self) -> None:
        if self.slot >= self.key_bits:
            raise InvalidLayout(
                f"a sum needs {self.slot} bits, more than a key of {self.key_bits} has; use a larger key"
            )
        if self.bits >= self.terms.ring.bits:
            raise InvalidLayout(
                f"a ring of {self.terms.ring.bits} bits can't hold sums of {self.bits} bits"
            )

    @property
    def parts(self) -> list[tuple[slice, Blocks]]:
        """The columns that fit one ciphertext, one after the other; all at once where they do."""
        room, terms = (self.key_bits - 1) // self.slot, self.terms
        columns = [slice(at, min(at + room, terms.left)) for at in range(0, terms.left, room)]
        return [(c, replace(self, terms=replace(terms, left=c.stop - c.start))) for c in columns]

    @property
    def slot(self) -> int:
        return self.bits + MASK_BITS + 2

    @property
    def width(self) -> int:
        """Bits of a block, which holds a row."""
        return self.terms.left * self.slot

    @property
    def rows(self) -> int:
        """Of a ciphertext: those that cost the fewest multiplications, while shifted blocks have room."""
        terms = self.terms
        cheapest = round((ENCRYPTION * terms.rows / (terms.right * self.width)) ** 0.5)
        most = ((self.key_bits - 1) // self.width + 1) // 2
        return int(max(1, min(cheapest, most)))

    @property
    def ciphertexts(self) -> int:
        return -(-self.terms.rows // self.rows)


def encrypted_rows(
    blocks: Blocks, public: PublicKey, matrix: Integers, *, workers: int = 2
) -> bytes:
    """Step 1. matrix: (rows, left) whole numbers; a column's magnitudes add up to less than
    ``2**(bits - 1)``."""
    terms = blocks.terms
    if matrix.shape != (terms.rows, terms.left):
        raise InvalidLayout("the matrix is not of the shape that was agreed on")
    if np.abs(matrix).sum(axis=0).max() >= 1 << (blocks.bits - 1):
        raise InvalidLayout(f"the numbers of a column add up to more than {blocks.bits} bits")
    plaintexts = [
        plaintext for part, few in blocks.parts for plaintext in _plaintexts(few, matrix[:, part])
    ]
    reduced = [plaintext % public.n for plaintext in plaintexts]
    return wire.join(ROWS, [terms.digest, ciphertexts_of(public, reduced, workers)])


def _plaintexts(blocks: Blocks, matrix: Integers) -> list[mpz]:
    numbers, size = matrix.ravel().tolist(), blocks.rows * blocks.terms.left
    return [_packed(numbers[at : at + size], blocks.slot) for at in range(0, len(numbers), size)]


def _packed(values: list[int], slot: int) -> mpz:
    """Numbers of either sign side by side: a negative one borrows from its neighbour."""
    half = 1 << (slot - 1)
    shifted = gmpy2.pack([mpz(v + half) for v in values], slot)
    return shifted - gmpy2.pack([mpz(half)] * len(values), slot)


def added(
    blocks: Blocks, public: PublicKey, matrix: Integers, message: bytes, *, workers: int = 2
) -> tuple[bytes, Integers]:
    """Step 2: what goes back, and the evaluating side's share, (left, right).

    matrix: (rows, right) of 0 and 1. message: of step 1. Raises MalformedMessage, InvalidCiphertext.
    """
    terms = blocks.terms
    if matrix.shape != (terms.rows, terms.right):
        raise InvalidLayout("the matrix is not of the shape that was agreed on")
    if not np.isin(matrix, (0, 1)).all():
        raise InvalidLayout("an indicator is neither 0 nor 1")
    parts = [few for _, few in blocks.parts]
    rows = read_ciphertexts(ROWS, terms, public, message, sum(few.ciphertexts for few in parts))
    columns = np.ascontiguousarray(matrix.T, dtype=np.uint8)
    sums, masks, shares, at = list[mpz](), list[mpz](), list[Integers](), 0
    for few in parts:
        own, at = rows[at : at + few.ciphertexts], at + few.ciphertexts
        sums += [_sum(few, own, column, public.n_squared) for column in columns]
        hiding = [_mask(few) for _ in columns]
        masks += [gmpy2.pack(mask, few.slot) for mask in hiding]
        shares.append(-np.array([_counted(few, mask) for mask in hiding], dtype=object).T)
    fresh = read_all(public, ciphertexts_of(public, masks, workers))
    answers = [a * b % public.n_squared for a, b in zip(sums, fresh, strict=True)]
    data = b"".join(c.to_bytes(public.ciphertext_bytes, "big") for c in answers)
    share = np.concatenate(shares) % terms.ring.modulus
    return wire.join(ADDED, [terms.digest, data]), np.asarray(share)


def _sum(blocks: Blocks, rows: list[mpz], column: NDArray[np.uint8], modulus: mpz) -> mpz:
    """The encrypted sum of a column's rows, in the block that counts."""
    total = mpz(1)
    for place in range(blocks.rows):
        if place:
            total = gmpy2.powmod(total, mpz(1) << blocks.width, modulus)
        for k in np.flatnonzero(column[place :: blocks.rows]).tolist():
            total = total * rows[k] % modulus
    return total


def _mask(blocks: Blocks) -> list[mpz]:
    """Of each slot, also of blocks that do not count; above 0 by what a negative sum may be."""
    least = 1 << (blocks.bits - 1)
    count = (2 * blocks.rows - 1) * blocks.terms.left
    return [mpz(secrets.randbits(blocks.bits + MASK_BITS) + least) for _ in range(count)]


def _counted(blocks: Blocks, slots: list[mpz]) -> list[int]:
    """The slots of the block that counts."""
    start = (blocks.rows - 1) * blocks.terms.left
    return [int(v) for v in slots[start : start + blocks.terms.left]]


def opened(blocks: Blocks, private: PrivateKey, message: bytes) -> Integers:
    """Step 3: the encrypting side's share, (left, right). Raises MalformedMessage, InvalidCiphertext."""
    terms, parts = blocks.terms, [few for _, few in blocks.parts]
    count = len(parts) * terms.right
    ciphertexts = read_ciphertexts(ADDED, terms, private.public, message, count)
    plaintexts = list(decrypt_raw(private, ciphertexts))
    shares = []
    for k, few in enumerate(parts):
        own = plaintexts[k * terms.right : (k + 1) * terms.right]
        shares.append(np.array([_opened(few, plaintext) for plaintext in own], dtype=object).T)
    return np.asarray(np.concatenate(shares) % terms.ring.modulus)


def _opened(blocks: Blocks, plaintext: int) -> list[int]:
    """The slots that count."""
    if plaintext >> ((2 * blocks.rows - 1) * blocks.width):
        raise MalformedMessage("a sum's answer has bits outside every slot")
    slots = gmpy2.unpack(plaintext, blocks.slot)
    slots += [mpz(0)] * ((2 * blocks.rows - 1) * blocks.terms.left - len(slots))
    return _counted(blocks, slots)
