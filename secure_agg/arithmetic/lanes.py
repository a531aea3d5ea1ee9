"""Vectors of whole numbers modulo powers of two, and the streams that hide them.

A value is on the fixed-point grid of `secure_agg.packing`, in two's complement, in as many lanes of
64 bits as the sum of all parties needs: modulo 2**64 almost always, with carries where a field
is wider. In front stands a lane with the number of contributions. Nothing is rounded before the
sum, which is rounded once, to the nearest float64.

A stream is AES-256 in counter mode (NIST SP 800-38A) under a key of full length that is used for
one stream and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_agg.errors import InconsistentSum
from secure_agg.packing import Field, checked, scaled, slot_bits

LANE_BITS = 64
PIECE = 2**15  # lanes of a stream that are made at a time, so that they stay in the cache

Lanes = npt.NDArray[np.uint64]
Vector = npt.NDArray[np.float64]


def lanes_of(field: Field, parties: int) -> int:
    """Lanes of 64 bits that a value needs so that the sum of all parties keeps its sign."""
    return -(-slot_bits(field, parties) // LANE_BITS)


def vector_lanes(fields: Sequence[Field], parties: int) -> int:
    """Lanes of a whole vector, the count among them."""
    return 1 + sum(field.size * lanes_of(field, parties) for field in fields)


def encoded(fields: Sequence[Field], arrays: Sequence[npt.ArrayLike], parties: int) -> Lanes:
    """A vector in the clear: the count 1, then the lanes of each field, lowest lane first."""
    vector = np.empty(vector_lanes(fields, parties), dtype=np.uint64)
    vector[0] = 1
    parts = _parts(fields, vector, parties)
    for (field, part), values in zip(parts, checked(fields, arrays), strict=True):
        grid = np.rint(scaled(values, field.shift))
        if len(part) == 1:
            part[0] = grid.astype(np.int64).view(np.uint64)
            continue
        size = 8 * len(part)
        data = b"".join(int(v).to_bytes(size, "little", signed=True) for v in grid.tolist())
        part[:] = np.frombuffer(data, dtype="<u8").reshape(-1, len(part)).T
    return vector


def decoded(
    fields: Sequence[Field], vector: Lanes, contributions: int, parties: int
) -> list[Vector]:
    """The sums a vector holds. Raises InconsistentSum."""
    if vector[0] != contributions:
        raise InconsistentSum(
            f"masks are left in the sum, or it is not of {contributions} contributions; "
            "a party sent a false vector or a false share"
        )
    sums = []
    for field, part in _parts(fields, vector, parties):
        most = contributions * field.limit
        if len(part) == 1:
            whole = part[0].view(np.int64)
            outside = bool(len(whole)) and (int(whole.max()) > most or int(whole.min()) < -most)
            values = whole.astype(np.float64)
        else:
            data, size = np.ascontiguousarray(part.T).tobytes(), 8 * len(part)
            starts = range(0, len(data), size)
            exact = [int.from_bytes(data[s : s + size], "little", signed=True) for s in starts]
            outside = max(map(abs, exact)) > most
            values = np.array([float(v) for v in exact])
        if outside:
            raise InconsistentSum(
                "a sum is beyond what its bound allows; a party sent a false vector or share"
            )
        sums.append(scaled(values, -field.shift))
    return sums


def added(vectors: Sequence[Lanes], fields: Sequence[Field], parties: int) -> Lanes:
    """The sum of vectors, lane by lane with carries."""
    result = np.array(vectors[0], dtype=np.uint64)
    for vector in vectors[1:]:
        _accumulate(result, vector, True, _wide(fields, parties), 0)
    return result


def apply_streams(
    vector: Lanes, streams: Sequence[tuple[bytes, bool]], fields: Sequence[Field], parties: int
) -> None:
    """Add each key's stream to the vector, or subtract it, in place.

    streams: pairs of a key of 32 bytes, used for nothing else, and whether to add
    """
    wide = _wide(fields, parties)
    pieces = _pieces(wide, len(vector))
    longest = max(stop - start for start, stop in pieces)
    zeros, buffer = memoryview(bytes(8 * longest)), bytearray(8 * longest)
    stream, view = np.frombuffer(buffer, dtype="<u8"), memoryview(buffer)
    ciphers = [
        (Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor(), add)
        for key, add in streams
    ]
    for start, stop in pieces:
        size = 8 * (stop - start)
        for cipher, add in ciphers:
            cipher.update_into(zeros[:size], view[:size])
            _accumulate(vector[start:stop], stream[: stop - start], add, wide, start)


def _parts(fields: Sequence[Field], vector: Lanes, parties: int) -> Iterator[tuple[Field, Lanes]]:
    """Each field with its part of the vector, shape (lanes, size)."""
    at = 1
    for field in fields:
        lanes = lanes_of(field, parties)
        yield field, vector[at : at + lanes * field.size].reshape(lanes, field.size)
        at += lanes * field.size


def _wide(fields: Sequence[Field], parties: int) -> list[tuple[int, int, int]]:
    """(start, size, lanes) of the fields that need more than one lane."""
    at, wide = 1, []
    for field in fields:
        lanes = lanes_of(field, parties)
        if lanes > 1:
            wide.append((at, field.size, lanes))
        at += lanes * field.size
    return wide


def _pieces(wide: Sequence[tuple[int, int, int]], length: int) -> list[tuple[int, int]]:
    """Cuts of a vector at which no carry is lost: a field of several lanes stays whole."""
    cuts = [0]
    for start, size, lanes in [*wide, (length, 0, 1)]:
        cuts += range(cuts[-1] + PIECE, start, PIECE)
        cuts += [at for at in (start, start + size * lanes) if at > cuts[-1]]
    return list(pairwise(cuts))


def _accumulate(
    into: Lanes, other: Lanes, add: bool, wide: Sequence[tuple[int, int, int]], offset: int
) -> None:
    """into += other or into -= other, modulo 2**64 in single lanes, with carries in wide fields.

    offset: where in the vector these lanes begin
    """
    operate = np.add if add else np.subtract
    at = 0
    for begin, size, lanes in wide:
        start = begin - offset
        if not at <= start < len(into):
            continue
        operate(into[at:start], other[at:start], out=into[at:start])
        carry = np.zeros(size, dtype=np.uint64)
        for low in range(start, start + size * lanes, size):
            before = into[low : low + size]
            once = operate(before, other[low : low + size])
            twice = operate(once, carry)
            overflow = (once < before) | (twice < once) if add else (once > before) | (twice > once)
            carry = overflow.astype(np.uint64)
            into[low : low + size] = twice
        at = start + size * lanes
    operate(into[at:], other[at:], out=into[at:])
