"""The band of a score that two sides have a part of each, told to one of them and to nobody else.

A score's linear predictor is the asker's part and the other's. The asker's, rounded to a grid, is one
of 512 places. The other side writes down the band at every place, each hidden by the value of the place
under an OPRF (RFC 9497) with a key made for this question alone, and helps with one blinded place: a look-up
of one in 512 by oblivious transfer (Naor and Pinkas, "Oblivious transfer with adaptive queries", CRYPTO
1999). It sees a random element; the asker reads one band and no part.

The band is that of the rounded part: it is another than the score's where the score is within half a
step of an edge, which on the log link is 3.2 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lab.errors import PeerError
from lab.models.families import Family
from secure_agg import wire
from secure_agg.errors import InvalidElement
from secure_agg.ristretto import (
    ORDER,
    SIZE,
    blind,
    derived_key,
    encoded,
    finalize,
    hashed,
    multiplied,
)

Bands = NDArray[np.int64]
#: Places of the asker's part, and how far apart they are: from -16 to 16 on the link's scale.
PLACES, STEP = 512, 1 / 16
PURPOSE = b"score"


def place_of(part: float) -> int:
    """The place of the asker's part. Raises ValueError beyond the grid.

    >>> place_of(0.0), place_of(-16.0)
    (256, 0)
    """
    place = round(part / STEP) + PLACES // 2
    if not 0 <= place < PLACES:
        raise ValueError
    return place


def bands_at(part: float, edges: Sequence[float], law: Family, *, wraps: bool = False) -> Bands:
    """(places,) the band at each place of the asker's part, for a part of the other's.

    wraps: whether sums of the two parts go on at the other end of the grid
    """
    sums = part + STEP * (np.arange(PLACES) - PLACES // 2)
    if wraps:
        reach = STEP * PLACES / 2
        sums = (sums + reach) % (2 * reach) - reach
    return np.searchsorted([law.eta(edge) for edge in edges], sums, side="right").astype(np.int64)


def asked(place: int, session: bytes, blinding: bytes) -> bytes:
    """What the asker sends. blinding: 32 fresh random bytes."""
    return blind([_text(session, place)], derived_key(blinding, PURPOSE)).tobytes()


def answered(bands: Bands, session: bytes, secret: bytes, question: bytes) -> bytes:
    """What the other side sends back. secret: 32 fresh random bytes. Raises InvalidElement, and
    ValueError for anything but one element: with two the asker would read two bands."""
    if len(question) != SIZE:
        raise ValueError
    key = derived_key(secret, PURPOSE)
    inverse = pow(int.from_bytes(key, "little"), -1, ORDER).to_bytes(SIZE, "little")
    texts = [_text(session, place) for place in range(PLACES)]
    values = finalize(texts, inverse, hashed(texts))  # multiplied by the key
    hidden = bytes(v[0] ^ int(band) for v, band in zip(values, bands, strict=True))
    return multiplied(key, encoded(question), 1).tobytes() + hidden


def read(reply: bytes, place: int, session: bytes, blinding: bytes, sender: str) -> int:
    """The band at the asker's place. Raises :class:`PeerError` for a reply that is none."""
    if len(reply) != SIZE + PLACES:
        raise PeerError(f"{sender}: sent what is no table of bands", sender)
    try:
        (value,) = finalize(
            [_text(session, place)], derived_key(blinding, PURPOSE), encoded(reply[:SIZE])
        )
    except InvalidElement:
        raise PeerError(f"{sender}: sent what is no element of the group", sender) from None
    return value[0] ^ reply[SIZE + place]


def _text(session: bytes, place: int) -> bytes:
    return wire.join(b"LABBND01", [session, place.to_bytes(2, "big")])
