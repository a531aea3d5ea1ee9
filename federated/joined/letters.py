"""Letters between two sides: sealed for one, signed by the other, carried by somebody who learns their sizes."""

from __future__ import annotations

from lab.errors import PeerError
from secure_agg import wire
from secure_agg.errors import SecureAggError
from secure_agg.identity import Card, Identity

LETTER = b"SAGGJL01"


def sealed(identity: Identity, to: Card, purpose: bytes, letter: bytes) -> bytes:
    """A letter for one side's eyes, signed by the one that wrote it."""
    secret = to.seal(purpose, letter)
    return wire.join(LETTER, [secret, identity.sign(purpose, secret)])


def unsealed(identity: Identity, sender: Card, purpose: bytes, data: bytes) -> bytes:
    """Raises :class:`PeerError` that blames the sender, or whoever passed it on."""
    try:
        secret, signature = wire.split(LETTER, data, 2)
        if not sender.signed(purpose, secret, signature):
            raise PeerError(f"coordinator: passed on a letter that {sender.name} did not sign")
        return identity.unseal(purpose, secret)
    except SecureAggError as error:
        raise PeerError(
            f"{sender.name}: its letter is not readable: {error}", sender.name
        ) from None


def purpose(query: str, phase: int, sender: str, receiver: str) -> bytes:
    """What a letter is for; worthless for anything else."""
    return wire.join(
        LETTER, [b"product", query.encode(), bytes([phase]), sender.encode(), receiver.encode()]
    )
