"""Matrices of whole numbers modulo a power of two, and their products.

A real number is on a fixed-point grid, in two's complement, cut into digits of 16 bits, lowest first:
an array of shape (rows, columns, digits). Digits of 16 bits make every product of two matrices a few
products of float64 matrices that are exact, so that it runs as fast as they do. Of 64 bits the machine's
own whole numbers are the ring, and runs as such.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg.errors import InvalidLayout, ValueOutOfBounds

DIGIT_BITS = 16
BASE = 2**DIGIT_BITS
#: Rows that are multiplied at a time: so many products of two digits, each below 2**32, add up to less
#: than 2**53 and are exact.
PIECE = 2**16
MOST_DIGITS = 2**6

Digits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.object_]
Words = npt.NDArray[np.uint64]
WORD_BITS = 64


@dataclass(frozen=True)
class Ring:
    """Whole numbers modulo 2**bits. bits: a multiple of 16, up to 1,024. Raises InvalidLayout."""

    bits: int

    def __post_init__(self) -> None:
        if self.bits % DIGIT_BITS or not 0 < self.bits <= MOST_DIGITS * DIGIT_BITS:
            raise InvalidLayout(
                f"a ring has a multiple of {DIGIT_BITS} bits, at most {MOST_DIGITS * DIGIT_BITS}, "
                f"got {self.bits}"
            )

    @property
    def digits(self) -> int:
        return self.bits // DIGIT_BITS

    @property
    def modulus(self) -> int:
        return 1 << self.bits

    def encoded(self, values: Floats, bound: float, resolution: float) -> Digits:
        """(rows, columns, digits) of (rows, columns) numbers of at most this magnitude.

        resolution: a power of two; a number is rounded to the nearest multiple of it. Raises
        ValueOutOfBounds.
        """
        if not np.all(np.abs(values) <= bound):  # what is no number is not either
            raise ValueOutOfBounds(f"a value is no number or exceeds the bound {bound!r}")
        rest = np.rint(values / resolution)
        if self.bits == WORD_BITS and bound / resolution < 2**63:
            return _digits(rest.astype(np.int64).astype(np.uint64))
        digits = np.empty((*values.shape, self.digits), dtype=np.uint16)
        for k in range(self.digits):
            above = np.floor(rest / BASE)
            digits[..., k] = rest - above * BASE
            rest = above
        return digits

    def from_integers(self, values: Integers) -> Digits:
        """Digits of whole numbers of any size, modulo 2**bits."""
        size = self.bits // 8
        data = b"".join((int(v) % self.modulus).to_bytes(size, "little") for v in values.ravel())
        return self.from_bytes(data, values.shape)

    def integers(self, digits: Digits) -> Integers:
        """The numbers, from 0 up, one for each element."""
        size, data = self.bits // 8, self.to_bytes(digits)
        whole = np.empty(digits.shape[:-1], dtype=object)
        flat = whole.ravel()
        for k in range(len(flat)):
            flat[k] = int.from_bytes(data[k * size : (k + 1) * size], "little")
        return flat.reshape(whole.shape)

    def to_bytes(self, digits: Digits) -> bytes:
        return np.ascontiguousarray(digits, dtype="<u2").tobytes()

    def from_bytes(self, data: bytes, shape: tuple[int, ...]) -> Digits:
        """What `to_bytes` wrote. Raises InvalidLayout for another size."""
        size = int(np.prod(shape)) * self.bits // 8
        if len(data) != size:
            raise InvalidLayout(f"a matrix of this shape has {size} bytes, got {len(data)}")
        return np.frombuffer(data, dtype="<u2").reshape(*shape, self.digits)

    def added(self, left: Digits, right: Digits) -> Digits:
        """left + right, element by element."""
        return self._carried(left, right, 1)

    def subtracted(self, left: Digits, right: Digits) -> Digits:
        """left - right, element by element."""
        return self._carried(left, right, -1)

    def _carried(self, left: Digits, right: Digits, sign: int) -> Digits:
        if self.bits == WORD_BITS:
            ours, theirs = _words(left), _words(right)
            return _digits(ours + theirs if sign > 0 else ours - theirs)
        result = np.empty(left.shape, dtype=np.uint16)
        carry = np.zeros(left.shape[:-1], dtype=np.int32)
        for k in range(self.digits):
            total = left[..., k].astype(np.int32) + sign * right[..., k].astype(np.int32) + carry
            carry = total >> DIGIT_BITS
            result[..., k] = total & (BASE - 1)
        return result

    def product(self, left: Digits, right: Digits) -> Integers:
        """left.T @ right, as numbers from 0 up. left: (rows, a, digits), right: (rows, b, digits)."""
        (rows, a, m), b = left.shape, right.shape[1]
        if self.bits == WORD_BITS:
            whole = np.ascontiguousarray(_words(left).T) @ _words(right)
            return np.asarray(whole.astype(object), dtype=object)
        total = np.zeros((a, b), dtype=object)
        for start in range(0, rows, PIECE):
            part = slice(start, start + PIECE)
            low = left[part].reshape(-1, a * m).astype(np.float64)
            high = right[part].reshape(-1, b * m).astype(np.float64)
            pairs = (
                (low.T @ high).reshape(a, m, b, m).astype(np.int64)
            )  # every digit by every digit
            for s in range(m):
                place = np.zeros((a, b), dtype=object)
                for k in range(s + 1):
                    place += pairs[:, k, :, s - k]
                total += place << (DIGIT_BITS * s)
        return np.asarray(total % self.modulus, dtype=object)

    def dots(self, left: Digits, right: Digits) -> Digits:
        """Inner products row by row, (rows, a, digits): left (rows, a, terms, digits) with right
        (rows, terms, digits), up to 2**16 terms."""
        (rows, a, terms, m), result = (
            left.shape,
            np.empty((*left.shape[:2], left.shape[3]), np.uint16),
        )
        piece = max(1, 2**22 // (a * terms * m))
        for start in range(0, rows, piece):
            part = slice(start, start + piece)
            low = np.moveaxis(left[part], 3, 2).reshape(-1, a * m, terms).astype(np.float64)
            pairs = (low @ right[part].astype(np.float64)).reshape(-1, a, m, m)
            carry = np.zeros(pairs.shape[:2])
            for s in range(m):
                total = carry + sum(pairs[:, :, k, s - k] for k in range(s + 1))
                carry = np.floor(total / BASE)
                result[part, :, s] = total - carry * BASE
        return result

    def signed(self, values: Integers) -> Integers:
        """Numbers modulo 2**bits as the nearest ones to 0."""
        half = self.modulus >> 1
        return np.asarray((values + half) % self.modulus - half, dtype=object)

    def stream(
        self, key: bytes, shape: tuple[int, int], piece: int = PIECE
    ) -> Iterator[tuple[slice, Digits]]:
        """Uniform elements of a (rows, columns) matrix, so many rows at a time.

        key: 32 bytes, used for this stream and nothing else. AES-256 in counter mode (NIST SP 800-38A).
        """
        cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
        rows, columns = shape
        for start in range(0, rows, piece):
            part = slice(start, min(start + piece, rows))
            size = (part.stop - part.start) * columns * self.bits // 8
            yield (
                part,
                self.from_bytes(cipher.update(bytes(size)), (part.stop - part.start, columns)),
            )


def _words(digits: Digits) -> Words:
    """(rows, columns) numbers of one machine word each."""
    return np.ascontiguousarray(digits, dtype="<u2").view("<u8")[..., 0]


def _digits(words: Words) -> Digits:
    return np.ascontiguousarray(words, dtype="<u8")[..., None].view("<u2")
