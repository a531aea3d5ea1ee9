"""ristretto255 (RFC 9496) over whole arrays, and the OPRF on it (RFC 9497, ristretto255-SHA512).

A group of prime order, in which every element has one encoding of 32 bytes: no small subgroup, no
twist, nothing to clear or to check but the encoding. libsodium does the arithmetic, in constant
time, through rbcl. Where there are many elements it is done eight at a time
(`secure_agg.arithmetic.curve`), and a row of each chunk compared with libsodium's. Both let go of
Python's lock, so that threads use all cores.

Elements travel as one array (n, 32) of bytes. The neutral element is none of them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_agg.arithmetic import curve
from secure_agg.errors import InvalidElement, UnusableLibrary, WrongArithmetic

SIZE = 32  # bytes of an element, and of a scalar
WIDE = 64  # bytes of a hash that is mapped to the group
ORDER = 2**252 + 27742317777372353535851937790883648493
CONTEXT = b"OPRFV1-\x00-ristretto255-SHA512"
CHUNK = 4096  # elements that a thread works on in one go
WORKERS = os.cpu_count() or 1
MANY = 20_000  # elements from which on vector code pays; it takes a second to be compiled

Elements = npt.NDArray[np.uint8]


def encoded(*elements: bytes) -> Elements:
    """Elements of 32 bytes each as one array (n, 32)."""
    return np.frombuffer(b"".join(elements), dtype=np.uint8).reshape(-1, SIZE)


def multiplied(scalar: bytes, elements: Elements, workers: int = WORKERS) -> Elements:
    """Each element times a scalar, (n, 32).

    scalar: 32 bytes, little endian, between 1 and the order

    Raises InvalidElement with the row of one that is not an element. Multiplying checks the
    encoding, so what was multiplied needs no other check.
    """
    _encoded_by_255_bits(elements)

    def times(element: bytes) -> bytes:
        return bytes(_libsodium().crypto_scalarmult_ristretto255(scalar, element))

    def many(rows: Elements) -> Elements:
        products, good = curve.products(int.from_bytes(scalar, "little"), rows)
        if not good.all():
            raise InvalidElement(int(good.argmin()))
        return products

    return _side_by_side(times, many, elements, workers)


def checked(elements: Elements, workers: int = WORKERS) -> Elements:
    """The elements as they are. Raises InvalidElement with the row of one that is none."""
    _encoded_by_255_bits(elements)

    def same(element: bytes) -> bytes:
        if not _libsodium().crypto_core_ristretto255_is_valid_point(element) or element == bytes(
            SIZE
        ):
            raise ValueError
        return element

    def many(rows: Elements) -> Elements:
        good = curve.are_elements(rows)
        if not good.all():
            raise InvalidElement(int(good.argmin()))
        return rows

    return _side_by_side(same, many, elements, workers)


def mapped(digests: npt.NDArray[np.uint8], workers: int = WORKERS) -> Elements:
    """The one-way map of RFC 9496, section 4.3.4: (n, 64) bytes to (n, 32)."""

    def one(digest: bytes) -> bytes:
        return bytes(_libsodium().crypto_core_ristretto255_from_hash(digest))

    return _side_by_side(one, curve.mapped, digests, workers)


def hashed(texts: Sequence[bytes], context: bytes = CONTEXT, workers: int = WORKERS) -> Elements:
    """HashToGroup of RFC 9497, section 4.1: n texts to (n, 32).

    The discrete logarithm of what comes out is known to nobody.
    """
    data = b"".join(expanded(texts, b"HashToGroup-" + context))
    return mapped(np.frombuffer(data, dtype=np.uint8).reshape(-1, WIDE), workers)


def expanded(texts: Iterable[bytes], tag: bytes) -> Iterator[bytes]:
    """64 bytes of each text by expand_message_xmd with SHA-512 (RFC 9380, section 5.3.1)."""
    suffix = tag + bytes([len(tag)])
    start, middle, end = hashlib.sha512(bytes(128)), b"\0\x40\0" + suffix, b"\1" + suffix
    for text in texts:
        first = start.copy()
        first.update(text + middle)
        yield hashlib.sha512(first.digest() + end).digest()


# The OPRF: who has the text learns a pseudorandom function of it under a key that another has,
# and that one learns nothing.


def derived_key(seed: bytes, info: bytes) -> bytes:
    """A scalar, never zero, from 32 random bytes and a purpose (RFC 9497, section 3.2.1)."""
    prefix = seed + len(info).to_bytes(2, "big") + info
    texts = (prefix + bytes([counter]) for counter in range(256))
    for wide in expanded(texts, b"DeriveKeyPair" + CONTEXT):
        scalar = int.from_bytes(wide, "little") % ORDER
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


@cache
def _libsodium() -> Any:
    """rbcl, when it is first needed: it writes libsodium to a temporary file and leaves that there.

    Loaded, the file is not needed; a system that holds on to it (Windows) keeps it. Raises
    UnusableLibrary.
    """
    try:
        import rbcl
    except (ImportError, OSError):
        raise UnusableLibrary(
            "libsodium can't be loaded: rbcl is not installed, or files in the folder of temporary "
            "files may not be executed; set TMPDIR to one where they may"
        ) from None
    if os.name == "posix":
        Path(rbcl._sodium._name).unlink(missing_ok=True)
    return rbcl


def _encoded_by_255_bits(elements: Elements) -> None:
    """Refuses a last bit, which libsodium 1.0.18 overlooks: a second encoding of an element."""
    above = elements[:, -1] >= 128
    if above.any():
        raise InvalidElement(int(above.argmax()))


def _side_by_side(
    one: Callable[[bytes], bytes],
    many: Callable[[Elements], Elements],
    rows: npt.NDArray[np.uint8],
    workers: int,
) -> Elements:
    """The same work on each row of bytes, by libsodium or, on many rows, by vector code.

    one: says by an error of its own that a row is no element; many: by InvalidElement
    """
    work = _one_by_one(one) if len(rows) < MANY else _compared(one, many)
    out = np.empty((len(rows), SIZE), dtype=np.uint8)

    def chunk(start: int) -> None:
        try:
            out[start : start + CHUNK] = work(rows[start : start + CHUNK])
        except InvalidElement as error:
            raise InvalidElement(start + error.row) from None

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(chunk, range(0, len(rows), CHUNK)):
            pass
    return out


def _one_by_one(one: Callable[[bytes], bytes]) -> Callable[[Elements], Elements]:
    def work(rows: Elements) -> Elements:
        results = []
        for row, element in enumerate(rows):
            try:
                results.append(one(element.tobytes()))
            except (ValueError, RuntimeError):
                raise InvalidElement(row) from None
        return encoded(*results)

    return work


def _compared(
    one: Callable[[bytes], bytes], many: Callable[[Elements], Elements]
) -> Callable[[Elements], Elements]:
    """Vector code, of which a row drawn by chance is compared with libsodium's."""

    def work(rows: Elements) -> Elements:
        results, row = many(rows), secrets.randbelow(len(rows))
        if one(rows[row].tobytes()) != results[row].tobytes():
            raise WrongArithmetic(
                "this machine's vector arithmetic and libsodium do not agree; "
                "nothing was sent. Report it with the machine's kind"
            )
        return results

    return work
