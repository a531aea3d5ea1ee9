"""Shares of inner products row by row: each side knows a vector of every row, or one side several.

As `secure_agg.encrypted_product` with one row's terms in the place of rows, and many of them in one message.
A share stays with its row, so that sums of what only both sides together know can be made of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from gmpy2 import mpz

from secure_agg import wire
from secure_agg.arithmetic.ring import Integers
from secure_agg.encrypted_product import (
    RAISED,
    ROWS,
    Packing,
    agreed,
    ciphertexts_of,
    masked,
    power_product,
    read_ciphertexts,
)
from secure_agg.keys import PrivateKey, PublicKey
from secure_agg.paillier import decrypt_raw
from secure_agg.triples import ProductTerms


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


def encrypted(vectors: Vectors, public: PublicKey, matrix: Integers, *, workers: int = 2) -> bytes:
    """Step 1. matrix: (rows, vectors * terms)."""
    packing, terms = vectors.packing, vectors.terms
    agreed(matrix, terms.rows, terms.left)
    by_term = _by_vector(terms, packing.shifted(matrix, 0)).transpose(0, 2, 1)
    plaintexts = packing.packed(by_term.reshape(-1, terms.vectors))
    return wire.join(ROWS, [terms.digest, ciphertexts_of(public, plaintexts, workers)])


def raised(
    vectors: Vectors, public: PublicKey, matrix: Integers, message: bytes, *, workers: int = 2
) -> tuple[bytes, Integers]:
    """Step 2: what goes back, and the evaluating side's share, (rows, vectors). matrix: (rows, terms).

    Raises MalformedMessage and InvalidCiphertext.
    """
    packing, terms = vectors.packing, vectors.terms
    agreed(matrix, terms.rows, terms.right)
    exponents = packing.shifted(matrix, 1)
    ciphertexts = read_ciphertexts(ROWS, terms, public, message, vectors.ciphertexts)
    powers, masks = [], []
    for row, bases in zip(exponents.tolist(), _rows(vectors, ciphertexts), strict=True):
        for group in range(packing.groups):
            own = bases[group :: packing.groups]
            powers.append(power_product(own, row, packing.bits[1], public.n_squared))
        masks += packing.masks(1)
    answers = masked(packing, public, powers, masks, workers)
    share = -_by_row(vectors, masks) - packing.shifts[0] * exponents.sum(axis=1)[:, None]
    return wire.join(RAISED, [terms.digest, answers]), np.asarray(
        share % terms.ring.modulus, dtype=object
    )


def opened(vectors: Vectors, private: PrivateKey, matrix: Integers, message: bytes) -> Integers:
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
