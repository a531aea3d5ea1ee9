"""Shares of a product of two matrices, of which each side holds one: with Paillier encryption.

As `secure_agg.triples` without a dealer, and slower by thousands. The side that encrypts sends each row
packed into a few ciphertexts under a key of its own; the other side raises them to its numbers:

    1  encrypting  rows      row i, all columns side by side in slots: c_i
    2  evaluating  raised    for each of its columns prod_i c_i ** r_ij, times an encryption of a mask
    3  encrypting  opened    its share: what the slots hold; the other's share is minus the mask

A mask is uniform in 40 bits more than a slot's number needs, so what is opened tells of the product
to 2**-40 in statistical distance and nothing else; the mask's encryption is a fresh one, so the
ciphertext tells neither. Numbers are shifted to be 0 or more, which keeps slots apart; both
sides take the shift out of their shares.

The powers of all rows are taken together: rows with the same numbers at the evaluating side are
multiplied first, then digits of exponents go to buckets (Pippenger, FOCS 1976; Bernstein, Doumen, Lange
and Oosterwijk, "Faster batch forgery identification", INDOCRYPT 2012, section 4).
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import gmpy2
import numpy as np
from gmpy2 import mpz

from secure_agg import wire
from secure_agg.arithmetic import blinding
from secure_agg.arithmetic.ring import Integers
from secure_agg.errors import InvalidCiphertext, InvalidLayout, MalformedMessage
from secure_agg.keys import PrivateKey, PublicKey
from secure_agg.paillier import check_ciphertexts, decrypt_raw
from secure_agg.triples import ProductTerms

ROWS, RAISED = b"SAGGPE01", b"SAGGPX01"
MASK_BITS = 40


@dataclass(frozen=True)
class Packing:
    """How rows are packed. terms: left is the side that encrypts; bits: of a number of either side with
    its sign, so that magnitudes stay below ``2**(bits - 1)``; more than the ring has where a side's
    numbers are shares, of which only the product modulo the ring counts. Raises InvalidLayout."""

    terms: ProductTerms
    bits: tuple[int, int]
    key_bits: int

    def __post_init__(self) -> None:
        if self.slot + 1 >= self.key_bits:
            raise InvalidLayout(
                f"a slot needs {self.slot} bits, more than a key of {self.key_bits} has; use a larger key"
            )
        if self.range >= self.terms.ring.bits >= max(self.bits):
            raise InvalidLayout(
                f"a ring of {self.terms.ring.bits} bits can't hold sums of {self.range} bits"
            )

    @property
    def range(self) -> int:
        """Bits of a sum of all rows, after the shift."""
        return sum(self.bits) + self.terms.rows.bit_length()

    @property
    def slot(self) -> int:
        return self.range + MASK_BITS + 1

    @property
    def slots(self) -> int:
        """In one ciphertext."""
        return min(self.terms.left, (self.key_bits - 1) // self.slot)

    @property
    def groups(self) -> int:
        """Ciphertexts of a row."""
        return -(-self.terms.left // self.slots)

    @property
    def ciphertexts(self) -> int:
        """Of all rows."""
        return self.terms.rows * self.groups

    @property
    def shifts(self) -> tuple[int, int]:
        """What is added to the numbers of either side."""
        left, right = self.bits
        return 1 << (left - 1), 1 << (right - 1)

    def shifted(self, matrix: Integers, side: int) -> Integers:
        """The numbers of one side, 0 for the one that encrypts, as 0 or more. matrix: (…, columns)."""
        if np.abs(matrix).max() >= self.shifts[side]:
            raise InvalidLayout(f"a number has more than {self.bits[side]} bits")
        return np.asarray(matrix + self.shifts[side], dtype=object)

    def packed(self, numbers: Integers) -> list[mpz]:
        """Shifted rows of the side that encrypts, each a few plaintexts. numbers: (rows, left)."""
        width = self.slots
        return [
            gmpy2.pack([mpz(v) for v in row[at : at + width]], self.slot)
            for row in numbers.tolist()
            for at in range(0, self.terms.left, width)
        ]

    def masks(self, each: int) -> list[list[int]]:
        """Of the slots of so many answers of each group of columns."""
        widths = [min(self.slots, self.terms.left - g * self.slots) for g in range(self.groups)]
        bits = self.range + MASK_BITS
        return [
            [secrets.randbits(bits) for _ in range(width)] for width in widths for _ in range(each)
        ]

    def unpacked(self, plaintext: int, group: int) -> list[int]:
        """The slots of an answer. Raises MalformedMessage for bits outside of them."""
        width = min(self.slots, self.terms.left - group * self.slots)
        if plaintext >> (width * self.slot):
            raise MalformedMessage("a product's answer has bits outside every slot")
        values = [int(v) for v in gmpy2.unpack(plaintext, self.slot)]
        return values + [0] * (width - len(values))


def encrypted_rows(
    packing: Packing, public: PublicKey, matrix: Integers, *, workers: int = 2
) -> bytes:
    """Step 1. matrix: (rows, left) whole numbers of magnitude below ``2**(bits - 1)``."""
    terms = packing.terms
    _agreed(matrix, terms.rows, terms.left)
    plaintexts = packing.packed(packing.shifted(matrix, 0))
    return wire.join(ROWS, [terms.digest, ciphertexts_of(public, plaintexts, workers)])


def raised(
    packing: Packing, public: PublicKey, matrix: Integers, message: bytes, *, workers: int = 2
) -> tuple[bytes, Integers]:
    """Step 2: what goes back, and the evaluating side's share, (left, right).

    matrix: (rows, right). message: of step 1. Raises MalformedMessage and InvalidCiphertext.
    """
    terms, groups = packing.terms, packing.groups
    _agreed(matrix, terms.rows, terms.right)
    exponents = packing.shifted(matrix, 1)
    ciphertexts = read_ciphertexts(ROWS, terms, public, message, packing.ciphertexts)
    firsts, place = _groups(exponents)
    n_squared = public.n_squared
    powers = []
    for group in range(groups):
        bases = _multiplied(ciphertexts[group::groups], place, len(firsts), n_squared)
        powers += [
            _power_product(bases, exponents[firsts, j].tolist(), packing.bits[1], n_squared)
            for j in range(terms.right)
        ]
    masks = packing.masks(terms.right)
    answers = _masked(packing, public, powers, masks, workers)
    share = -_matrix(packing, masks) - packing.shifts[0] * exponents.sum(axis=0)[None, :]
    return wire.join(RAISED, [terms.digest, answers]), np.asarray(
        share % terms.ring.modulus, dtype=object
    )


def _masked(
    packing: Packing, public: PublicKey, powers: list[mpz], masks: list[list[int]], workers: int
) -> bytes:
    """Powers times encryptions of masks, which is what goes back."""
    plaintexts = [gmpy2.pack([mpz(v) for v in mask], packing.slot) for mask in masks]
    fresh = read_all(public, ciphertexts_of(public, plaintexts, workers))
    answers = [a * b % public.n_squared for a, b in zip(powers, fresh, strict=True)]
    return _bytes(public, answers)


def opened(packing: Packing, private: PrivateKey, matrix: Integers, message: bytes) -> Integers:
    """Step 3: the encrypting side's share, (left, right). Raises MalformedMessage, InvalidCiphertext."""
    terms, count = packing.terms, packing.groups * packing.terms.right
    ciphertexts = read_ciphertexts(RAISED, terms, private.public, message, count)
    slots = [
        packing.unpacked(plaintext, at // terms.right)
        for at, plaintext in enumerate(decrypt_raw(private, ciphertexts))
    ]
    share = _matrix(packing, slots) - packing.shifts[1] * matrix.sum(axis=0)[:, None]
    return np.asarray(share % terms.ring.modulus, dtype=object)


def _agreed(matrix: Integers, rows: int, columns: int) -> None:
    """Raises InvalidLayout for a matrix of another shape."""
    if matrix.shape != (rows, columns):
        raise InvalidLayout("the matrix is not of the shape that was agreed on")


def _matrix(packing: Packing, slots: Sequence[Sequence[int]]) -> Integers:
    """(left, right) of the slots of each group and each column of the right side."""
    right = packing.terms.right
    columns = [
        [v for group in range(packing.groups) for v in slots[group * right + j]]
        for j in range(right)
    ]
    return np.array(columns, dtype=object).T


def _groups(exponents: Integers) -> tuple[list[int], list[int]]:
    """The first row of each group of equal rows, and the group of each row."""
    found: dict[tuple[int, ...], int] = {}
    firsts: list[int] = []
    place: list[int] = []
    for at, row in enumerate(map(tuple, exponents.tolist())):
        if row not in found:
            found[row] = len(firsts)
            firsts.append(at)
        place.append(found[row])
    return firsts, place


def _multiplied(bases: Sequence[mpz], place: list[int], count: int, modulus: mpz) -> list[mpz]:
    if count == len(bases):
        return list(bases)
    products = [mpz(1)] * count
    for at, base in zip(place, bases, strict=True):
        products[at] = products[at] * base % modulus
    return products


def multiplications(rows: int, bits: int) -> int:
    """Modular multiplications of one column's powers, about: exponents of so many bits."""
    window = _window(rows, bits)
    digits: int = -(-bits // window)
    each: int = rows + 2 ** (window + 1)
    return digits * each + bits


def _window(rows: int, bits: int) -> int:
    """Bits of a digit that cost the fewest multiplications."""
    cost = {w: -(-bits // w) * (rows + 2 ** (w + 1)) for w in range(1, 17)}
    best: int = min(cost, key=cost.__getitem__)
    return best


def _power_product(bases: list[mpz], exponents: list[int], bits: int, modulus: mpz) -> mpz:
    """prod_i bases[i] ** exponents[i] mod modulus, exponents of so many bits."""
    window = _window(len(bases), bits)
    digits, total = (1 << window) - 1, mpz(1)
    for low in reversed(range(0, bits, window)):
        for _ in range(window):
            total = total * total % modulus
        buckets: list[mpz | None] = [None] * (digits + 1)
        for base, exponent in zip(bases, exponents, strict=True):
            if digit := exponent >> low & digits:
                before = buckets[digit]
                buckets[digit] = base if before is None else before * base % modulus
        running, part = mpz(1), mpz(1)
        for bucket in reversed(buckets[1:]):
            if bucket is not None:
                running = running * bucket % modulus
            part = part * running % modulus
        total = total * part % modulus
    return total


def ciphertexts_of(public: PublicKey, plaintexts: list[mpz], workers: int) -> bytes:
    n, n_squared = public.n, public.n_squared
    with closing(blinding.factors(n, len(plaintexts), workers)) as factors:
        pairs = zip(plaintexts, factors, strict=True)
        return _bytes(public, [blinding.with_part(f, m, n, n_squared) for m, f in pairs])


def _bytes(public: PublicKey, ciphertexts: Sequence[mpz]) -> bytes:
    return b"".join(c.to_bytes(public.ciphertext_bytes, "big") for c in ciphertexts)


def read_all(public: PublicKey, data: bytes) -> list[mpz]:
    size = public.ciphertext_bytes
    return [mpz.from_bytes(data[at : at + size], "big") for at in range(0, len(data), size)]


def read_ciphertexts(
    kind: bytes, terms: ProductTerms, public: PublicKey, message: bytes, count: int
) -> list[mpz]:
    """The ciphertexts of a message. Raises MalformedMessage and InvalidCiphertext."""
    digest, data = wire.split(kind, message, 2)
    if digest != terms.digest:
        raise MalformedMessage("a product's message is of another product")
    if len(data) != count * public.ciphertext_bytes:
        raise MalformedMessage("a product's message does not have the ciphertexts it should have")
    ciphertexts = read_all(public, data)
    try:
        check_ciphertexts(public, ciphertexts)
    except InvalidCiphertext as error:
        raise InvalidCiphertext(f"of a product: {error}") from None
    return ciphertexts


# Row by row: each row's inner products, as shares that stay with the row. One row's terms stand in the place of
# the rows of a product, and many of them in one message.


@dataclass(frozen=True)
class Vectors:
    """How rows are packed. terms: of the side that encrypts, left, ``terms.vectors`` vectors of a row, each as
    long as the one of the other side; bits: as of a `Packing`. Raises InvalidLayout."""

    terms: ProductTerms
    bits: tuple[int, int]
    key_bits: int

    def __post_init__(self) -> None:
        _ = self.packing

    @property
    def packing(self) -> Packing:
        """Of one row: its terms are the rows of a product."""
        terms = self.terms
        one = ProductTerms(terms.query, terms.right, terms.vectors, 1, terms.ring)
        return Packing(one, self.bits, self.key_bits)

    @property
    def ciphertexts(self) -> int:
        return self.terms.rows * self.terms.right * self.packing.groups


def encrypted_vectors(
    vectors: Vectors, public: PublicKey, matrix: Integers, *, workers: int = 2
) -> bytes:
    """Step 1. matrix: (rows, vectors * terms)."""
    packing, terms = vectors.packing, vectors.terms
    _agreed(matrix, terms.rows, terms.left)
    by_term = _by_vector(terms, packing.shifted(matrix, 0)).transpose(0, 2, 1)
    plaintexts = packing.packed(by_term.reshape(-1, terms.vectors))
    return wire.join(ROWS, [terms.digest, ciphertexts_of(public, plaintexts, workers)])


def raised_vectors(
    vectors: Vectors, public: PublicKey, matrix: Integers, message: bytes, *, workers: int = 2
) -> tuple[bytes, Integers]:
    """Step 2: what goes back, and the evaluating side's share, (rows, vectors). matrix: (rows, terms).

    Raises MalformedMessage and InvalidCiphertext.
    """
    packing, terms = vectors.packing, vectors.terms
    _agreed(matrix, terms.rows, terms.right)
    exponents = packing.shifted(matrix, 1)
    ciphertexts = read_ciphertexts(ROWS, terms, public, message, vectors.ciphertexts)
    powers, masks = [], []
    for row, bases in zip(exponents.tolist(), _rows(vectors, ciphertexts), strict=True):
        for group in range(packing.groups):
            own = bases[group :: packing.groups]
            powers.append(_power_product(own, row, packing.bits[1], public.n_squared))
        masks += packing.masks(1)
    answers = _masked(packing, public, powers, masks, workers)
    share = -_by_row(vectors, masks) - packing.shifts[0] * exponents.sum(axis=1)[:, None]
    return wire.join(RAISED, [terms.digest, answers]), np.asarray(
        share % terms.ring.modulus, dtype=object
    )


def opened_vectors(
    vectors: Vectors, private: PrivateKey, matrix: Integers, message: bytes
) -> Integers:
    """Step 3: the encrypting side's share, (rows, vectors). Raises MalformedMessage, InvalidCiphertext."""
    packing, terms = vectors.packing, vectors.terms
    count = terms.rows * packing.groups
    ciphertexts = read_ciphertexts(RAISED, terms, private.public, message, count)
    slots = [
        packing.unpacked(plaintext, at % packing.groups)
        for at, plaintext in enumerate(decrypt_raw(private, ciphertexts))
    ]
    sums = _by_vector(terms, matrix).sum(axis=2)
    share = _by_row(vectors, slots) - packing.shifts[1] * sums
    return np.asarray(share % terms.ring.modulus, dtype=object)


def _by_vector(terms: ProductTerms, matrix: Integers) -> Integers:
    return matrix.reshape(terms.rows, terms.vectors, terms.right)


def _rows(vectors: Vectors, ciphertexts: list[mpz]) -> Iterator[list[mpz]]:
    size = vectors.terms.right * vectors.packing.groups
    for at in range(0, len(ciphertexts), size):
        yield ciphertexts[at : at + size]


def _by_row(vectors: Vectors, slots: list[list[int]]) -> Integers:
    """(rows, vectors) of the slots of each row's groups."""
    values = [value for group in slots for value in group]
    return np.array(values, dtype=object).reshape(vectors.terms.rows, vectors.terms.vectors)
