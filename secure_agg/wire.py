"""How the small messages of this package travel: a kind with its version, then parts with lengths.

    message = kind (8 bytes) | length of part 0 (4 bytes) | part 0 | length of part 1 | ...

Nothing is interpreted here, nothing is unpickled, and there is one encoding of a message.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable

from gmpy2 import mpz

from secure_agg.errors import MalformedMessage

_LENGTH = struct.Struct(">I")
MOST_PARTS = 2**20


def join(kind: bytes, parts: Iterable[bytes]) -> bytes:
    """One message of its parts. kind: 8 bytes, the last two the version."""
    return b"".join([kind, *(piece for part in parts for piece in (_LENGTH.pack(len(part)), part))])


def split(kind: bytes, data: bytes, least: int, most: int | None = None) -> list[bytes]:
    """The parts of a message of this kind: from `least` to `most`, or exactly `least`.

    Raises MalformedMessage.
    """
    name = kind[:6].decode()
    if data[:6] != kind[:6]:
        raise MalformedMessage(f"these bytes are not a {name} message; check what was sent")
    if data[6:8] != kind[6:]:
        raise MalformedMessage(
            f"this {name} message is of another version; all parties need the same release"
        )
    parts: list[bytes] = []
    at = len(kind)
    most = least if most is None else most
    while at < len(data) and len(parts) <= most:
        if at + _LENGTH.size > len(data):
            raise MalformedMessage(f"a {name} message is cut off")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + length > len(data):
            raise MalformedMessage(f"a {name} message is cut off")
        parts.append(bytes(data[at : at + length]))
        at += length
    if at != len(data) or not least <= len(parts) <= most:
        raise MalformedMessage(f"a {name} message does not have the parts it should have")
    return parts


def text(part: bytes) -> str:
    """A part that is text. Raises MalformedMessage."""
    try:
        return part.decode()
    except UnicodeDecodeError:
        raise MalformedMessage("a part of a message is not UTF-8 text") from None


def number(part: bytes) -> mpz:
    """A part that is a number of any size, big endian."""
    return mpz.from_bytes(part, "big")


def width(modulus: mpz) -> int:
    """Bytes of a number below the modulus."""
    return -(-int(modulus.bit_length()) // 8)


def digest(kind: bytes, parts: Iterable[bytes]) -> bytes:
    """SHA-256 of a message; different parts never give the same bytes."""
    return hashlib.sha256(join(kind, parts)).digest()
