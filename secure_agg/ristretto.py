"""ristretto255 (RFC 9496) over whole arrays, and the OPRF on it (RFC 9497, ristretto255-SHA512).

A group of prime order, in which every element has one encoding of 32 bytes: no small subgroup, no
twist, nothing to clear or to check but the encoding. libsodium does the arithmetic, in constant
time, through rbcl, whose calls let go of Python's lock, so that threads use all cores.

Elements travel as one array (n, 32) of bytes. The neutral element is none of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rbcl

from secure_agg.errors import InvalidElement

SIZE = 32  # bytes of an element, and of a scalar
WIDE = 64  # bytes of a hash that is mapped to the group
ORDER = 2**252 + 27742317777372353535851937790883648493
CONTEXT = b"OPRFV1-\x00-ristretto255-SHA512"
CHUNK = 4096  # elements that a thread works on in one go

Elements = npt.NDArray[np.uint8]

# rbcl writes libsodium to a file of its own at each import and leaves it there. Loaded, it is not
# needed any more, and where a system does not let go of it before, it stays.
if os.name == "posix":
    Path(rbcl._sodium._name).unlink(missing_ok=True)


def encoded(*elements: bytes) -> Elements:
    """Elements of 32 bytes each as one array (n, 32)."""
    return np.frombuffer(b"".join(elements), dtype=np.uint8).reshape(-1, SIZE)


def multiplied(scalar: bytes, elements: Elements, workers: int = 2) -> Elements:
    """Each element times a scalar, (n, 32).

    scalar: 32 bytes, little endian, between 1 and the order

    Raises InvalidElement with the row of the first that is not an element. Multiplying checks
    the encoding, so what was multiplied needs no other check.
    """

    def times(element: bytes) -> bytes:
        return bytes(rbcl.crypto_scalarmult_ristretto255(scalar, element))

    return _side_by_side(times, elements, workers)


def checked(elements: Elements, workers: int = 2) -> Elements:
    """The elements as they are. Raises InvalidElement with the row of the first that is none."""

    def same(element: bytes) -> bytes:
        if not rbcl.crypto_core_ristretto255_is_valid_point(element) or element == bytes(SIZE):
            raise ValueError
        return element

    return _side_by_side(same, elements, workers)


def mapped(digests: npt.NDArray[np.uint8], workers: int = 2) -> Elements:
    """The one-way map of RFC 9496, section 4.3.4: (n, 64) bytes to (n, 32)."""
    return _side_by_side(rbcl.crypto_core_ristretto255_from_hash, digests, workers)


def hashed(texts: Sequence[bytes], context: bytes = CONTEXT, workers: int = 2) -> Elements:
    """HashToGroup of RFC 9497, section 4.1: n texts to (n, 32).

    The discrete logarithm of what comes out is known to nobody.
    """
    tag = b"HashToGroup-" + context
    digests = np.empty((len(texts), WIDE), dtype=np.uint8)
    for row, text in enumerate(texts):
        digests[row] = np.frombuffer(expanded(text, tag), dtype=np.uint8)
    return mapped(digests, workers)


def expanded(text: bytes, tag: bytes) -> bytes:
    """64 bytes by expand_message_xmd with SHA-512 (RFC 9380, section 5.3.1)."""
    suffix = tag + bytes([len(tag)])
    first = hashlib.sha512(bytes(128) + text + WIDE.to_bytes(2, "big") + b"\0" + suffix).digest()
    return hashlib.sha512(first + b"\1" + suffix).digest()


# The OPRF: who has the text learns a pseudorandom function of it under a key that another has,
# and that one learns nothing.


def derived_key(seed: bytes, info: bytes) -> bytes:
    """A scalar, never zero, from 32 random bytes and a purpose (RFC 9497, section 3.2.1)."""
    tag = b"DeriveKeyPair" + CONTEXT
    for counter in range(256):
        text = seed + len(info).to_bytes(2, "big") + info + bytes([counter])
        scalar = int.from_bytes(expanded(text, tag), "little") % ORDER
        if scalar:
            return scalar.to_bytes(SIZE, "little")
    raise AssertionError("256 hashes in a row are multiples of the order")


def blind(texts: Sequence[bytes], scalar: bytes) -> Elements:
    """The first message: the texts, hashed to the group and multiplied by a secret scalar."""
    return multiplied(scalar, hashed(texts))


def finalize(texts: Sequence[bytes], scalar: bytes, evaluated: Elements) -> list[bytes]:
    """64 bytes for each text, from its element, that the key's owner has multiplied.

    scalar: the one it was blinded with. Raises InvalidElement.
    """
    inverse = pow(int.from_bytes(scalar, "little"), -1, ORDER).to_bytes(SIZE, "little")
    elements = multiplied(inverse, evaluated)
    return [
        hashlib.sha512(
            b"".join(
                [
                    len(text).to_bytes(2, "big"),
                    text,
                    SIZE.to_bytes(2, "big"),
                    element.tobytes(),
                    b"Finalize",
                ]
            )
        ).digest()
        for text, element in zip(texts, elements, strict=True)
    ]


def _side_by_side(
    work: Callable[[bytes], bytes], rows: npt.NDArray[np.uint8], workers: int
) -> Elements:
    """The work on each row of bytes. It says by an error that a row is no element."""
    out = np.empty((len(rows), SIZE), dtype=np.uint8)

    def chunk(start: int) -> None:
        width, data = rows.shape[1], rows[start : start + CHUNK].tobytes()
        results = []
        for at in range(0, len(data), width):
            try:
                results.append(work(data[at : at + width]))
            except (ValueError, RuntimeError):
                raise InvalidElement(start + at // width) from None
        out[start : start + CHUNK] = encoded(*results)

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(chunk, range(0, len(rows), CHUNK)):
            pass
    return out
