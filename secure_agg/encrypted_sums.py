"""Shares of sums of few columns over the rows of many groups: one side knows the columns, one the groups.

As `secure_agg.encrypted_product` where the evaluating side's numbers are 0 or 1, so that nothing is raised
to a power and several rows share a ciphertext:

    1  encrypting  rows      rows r, r + 1, ... side by side in blocks of slots: c_k
    2  evaluating  added     for each of its columns and each place p in a ciphertext the product of those c_k
                             whose row there counts; these, each shifted so that the blocks that count
                             lie upon each other, times an encryption of a mask
    3  encrypting  opened    its share: what the blocks that count hold; the other's share is minus the mask

Of the other blocks, which hold other rows' numbers, the encrypting side sees masked numbers as well: a
mask is uniform in 40 bits more than a slot's number needs. Where a ciphertext holds one row, there are
none, and the sums of several columns share an answer, block by block. Where a row has more columns than a
ciphertext has room for, some of the columns are added after the others.
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
#: Multiplications that an encryption and a decryption take, about.
ENCRYPTION, DECRYPTION = 100, 700


@dataclass(frozen=True)
class Blocks:
    """How rows are packed. terms: left is the side that encrypts; bits: of a sum of a column's
    magnitudes over all rows, with its sign; again: whether the same rows are summed up again and again, so
    that they are encrypted once. Raises InvalidLayout."""

    terms: ProductTerms
    bits: int
    key_bits: int
    again: bool = False

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
        if self.again:
            return 1
        terms, answer = self.terms, ENCRYPTION + DECRYPTION
        cheapest = round((ENCRYPTION * terms.rows / (terms.right * self.width)) ** 0.5)
        several = int(max(1, min(cheapest, (self._room + 1) // 2)))
        encrypted = ENCRYPTION * terms.rows / several
        of_several = encrypted + terms.right * ((several - 1) * self.width + answer)
        of_one = ENCRYPTION * terms.rows + terms.right * (self.width + answer / self._room)
        return several if of_several < of_one else 1

    @property
    def _room(self) -> int:
        """Blocks that a ciphertext has room for."""
        return (self.key_bits - 1) // self.width

    @property
    def ciphertexts(self) -> int:
        """Of all rows and columns."""
        return sum(-(-self.terms.rows // few.rows) for _, few in self.parts)

    @property
    def sums(self) -> int:
        """Of an answer: those of so many columns."""
        return self._room if self.rows == 1 else 1

    @property
    def blocks(self) -> int:
        """Of an answer."""
        return max(self.sums, 2 * self.rows - 1)

    @property
    def answers(self) -> list[int]:
        """The sums in each answer."""
        most, right = self.sums, self.terms.right
        return [min(most, right - at) for at in range(0, right, most)]


def encrypted_rows(
    blocks: Blocks,
    public: PublicKey,
    matrix: Integers,
    *,
    workers: int = 2,
    kept: dict[bytes, bytes] | None = None,
) -> bytes:
    """Step 1. matrix: (rows, left) whole numbers; a column's magnitudes add up to less than
    ``2**(bits - 1)``; kept: ciphertexts of rows that are summed up again."""
    terms = blocks.terms
    if matrix.shape != (terms.rows, terms.left):
        raise InvalidLayout("the matrix is not of the shape that was agreed on")
    if np.abs(matrix).sum(axis=0).max() >= 1 << (blocks.bits - 1):
        raise InvalidLayout(f"the numbers of a column add up to more than {blocks.bits} bits")
    if not blocks.again or kept is None:
        kept = {}
    numbers = matrix.ravel().tolist()
    name = wire.digest(ROWS, [str((blocks.slot, public.n, numbers)).encode()])
    if name not in kept:
        kept.clear()
        plaintexts = [p for part, few in blocks.parts for p in _plaintexts(few, matrix[:, part])]
        reduced = [plaintext % public.n for plaintext in plaintexts]
        kept[name] = ciphertexts_of(public, reduced, workers)
    return wire.join(ROWS, [terms.digest, kept[name]])


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
    if matrix.min() < 0 or matrix.max() > 1:
        raise InvalidLayout("an indicator is neither 0 nor 1")
    parts = [few for _, few in blocks.parts]
    rows = read_ciphertexts(ROWS, terms, public, message, blocks.ciphertexts)
    columns = np.ascontiguousarray(matrix.T, dtype=np.uint8)
    packed, masks, shares, at = list[mpz](), list[mpz](), list[Integers](), 0
    for few in parts:
        own, at = rows[at : at + few.ciphertexts], at + few.ciphertexts
        sums = [_sum(few, own, column, public.n_squared) for column in columns]
        hiding = [_mask(few) for _ in few.answers]
        packed += [_side_by_side(few, sums, k, public.n_squared) for k in range(len(hiding))]
        masks += [gmpy2.pack(mask, few.slot) for mask in hiding]
        shares.append(-_counted(few, hiding))
    fresh = read_all(public, ciphertexts_of(public, masks, workers))
    answers = [a * b % public.n_squared for a, b in zip(packed, fresh, strict=True)]
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


def _side_by_side(blocks: Blocks, sums: list[mpz], answer: int, modulus: mpz) -> mpz:
    """The encrypted sums of one answer, the first lowest."""
    first, *others = sums[answer * blocks.sums : (answer + 1) * blocks.sums][::-1]
    for one in others:
        first = gmpy2.powmod(first, mpz(1) << blocks.width, modulus) * one % modulus
    return first


def _mask(blocks: Blocks) -> list[mpz]:
    """Of each slot, also of blocks that do not count; above 0 by what a negative sum may be."""
    least = 1 << (blocks.bits - 1)
    count = blocks.blocks * blocks.terms.left
    return [mpz(secrets.randbits(blocks.bits + MASK_BITS) + least) for _ in range(count)]


def _counted(blocks: Blocks, answers: list[list[mpz]]) -> Integers:
    """(left, right) the slots of the blocks that count, of all slots of all answers."""
    left, columns = blocks.terms.left, []
    for slots, count in zip(answers, blocks.answers, strict=True):
        start = (blocks.rows - 1) * left
        counted = [int(v) for v in slots[start : start + count * left]]
        columns += [counted[at : at + left] for at in range(0, count * left, left)]
    return np.array(columns, dtype=object).T


def opened(blocks: Blocks, private: PrivateKey, message: bytes) -> Integers:
    """Step 3: the encrypting side's share, (left, right). Raises MalformedMessage, InvalidCiphertext."""
    terms, parts = blocks.terms, [few for _, few in blocks.parts]
    count = sum(len(few.answers) for few in parts)
    ciphertexts = read_ciphertexts(ADDED, terms, private.public, message, count)
    plaintexts, shares = iter(decrypt_raw(private, ciphertexts)), []
    for few in parts:
        answers = [_slots(few, next(plaintexts)) for _ in few.answers]
        shares.append(_counted(few, answers))
    return np.asarray(np.concatenate(shares) % terms.ring.modulus)


def _slots(blocks: Blocks, plaintext: int) -> list[mpz]:
    """All slots of an answer. Raises MalformedMessage for bits outside of them."""
    if plaintext >> (blocks.blocks * blocks.width):
        raise MalformedMessage("a sum's answer has bits outside every slot")
    slots: list[mpz] = gmpy2.unpack(plaintext, blocks.slot)
    return slots + [mpz(0)] * (blocks.blocks * blocks.terms.left - len(slots))
