"""Who is who: a party's own keys, the card it shows, and the roster of all cards.

A party signs with Ed25519 (RFC 8032) and receives secrets sealed to its X25519 key by HPKE
(RFC 9180: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20-Poly1305). Every signature and every
seal is for one purpose and is worthless for another.

Whoever makes the roster decides who is a party: it must reach every party and every key holder
by a way that the coordinator can't bend.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_agg import wire
from secure_agg.errors import InvalidIdentity, MalformedMessage

CARD, ROSTER, SIGNED = b"SAGGCD01", b"SAGGRO01", b"SAGGSI01"
SEED_BYTES = 32
LONGEST_NAME = 200
_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


@dataclass(frozen=True)
class Card:
    """What others know of a party: its name, the key it signs with, the key it receives with.

    Raises InvalidIdentity.
    """

    name: str
    verifying: bytes
    receiving: bytes

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.verifying) != 32 or len(self.receiving) != 32:
            raise InvalidIdentity(f"card of {self.name}: a public key must have 32 bytes")
        if degenerate(self.receiving) or degenerate(_montgomery(self.verifying)):
            raise InvalidIdentity(
                f"card of {self.name}: a public key is of small order, so that anybody could "
                "sign or read as this party"
            )

    def signed(self, purpose: bytes, message: bytes, signature: bytes) -> bool:
        """Whether this party signed this message for this purpose."""
        return signed_by(self.verifying, purpose, message, signature)

    def seal(self, purpose: bytes, secret: bytes) -> bytes:
        """The secret, for this party's eyes and this purpose alone."""
        key = X25519PublicKey.from_public_bytes(self.receiving)
        return _SUITE.encrypt(secret, key, purpose)

    def to_bytes(self) -> bytes:
        return wire.join(CARD, [self.name.encode(), self.verifying, self.receiving])

    @classmethod
    def from_bytes(cls, data: bytes) -> Card:
        """The card that `to_bytes` wrote. Raises MalformedMessage and InvalidIdentity."""
        name, verifying, receiving = wire.split(CARD, data, 3)
        return cls(wire.text(name), verifying, receiving)


class Identity:
    """A party's secret keys, all from one seed of 32 random bytes; never shown, never pickled."""

    __slots__ = ("_card", "_receiving", "_signing")

    def __init__(self, name: str, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise InvalidIdentity(f"an identity's seed must have {SEED_BYTES} bytes")
        self._signing = Ed25519PrivateKey.from_private_bytes(derived(seed, b"signing"))
        self._receiving = X25519PrivateKey.from_private_bytes(derived(seed, b"receiving"))
        self._card = Card(
            name,
            self._signing.public_key().public_bytes_raw(),
            self._receiving.public_key().public_bytes_raw(),
        )

    @classmethod
    def generate(cls, name: str) -> Identity:
        """A fresh identity, from the system's randomness."""
        return cls(name, secrets.token_bytes(SEED_BYTES))

    @property
    def card(self) -> Card:
        """What others may know of it."""
        return self._card

    def __repr__(self) -> str:
        return f"Identity({self.card.name!r})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an Identity can't be copied or pickled; keep its seed where it is safe")

    def sign(self, purpose: bytes, message: bytes) -> bytes:
        """64 bytes that `Card.signed` accepts for this purpose and message."""
        return self._signing.sign(wire.join(SIGNED, [purpose, message]))

    def unseal(self, purpose: bytes, ciphertext: bytes) -> bytes:
        """What `Card.seal` hid. Raises MalformedMessage."""
        try:
            return _SUITE.decrypt(ciphertext, self._receiving, purpose)
        except (InvalidTag, ValueError):
            raise MalformedMessage(
                f"what was sealed is not for {self.card.name}, not for this purpose, or altered"
            ) from None


@dataclass(frozen=True)
class Roster:
    """The cards of all parties, in the agreed order; no two share a name or a key.

    Raises InvalidIdentity.
    """

    cards: tuple[Card, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "cards", tuple(self.cards))
        kinds = ("name", [c.name for c in self.cards]), ("key", self._keys())
        for what, values in kinds:
            if len(set(values)) != len(values):
                raise InvalidIdentity(f"two cards of a roster have the same {what}")

    def _keys(self) -> list[bytes]:
        return [key for card in self.cards for key in (card.verifying, card.receiving)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(card.name for card in self.cards)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Card:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Card]:
        return {card.name: card for card in self.cards}

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of this roster; it goes into everything that is signed."""
        return wire.digest(ROSTER, (card.to_bytes() for card in self.cards))

    def to_bytes(self) -> bytes:
        return wire.join(ROSTER, (card.to_bytes() for card in self.cards))

    @classmethod
    def from_bytes(cls, data: bytes) -> Roster:
        """The roster that `to_bytes` wrote. Raises MalformedMessage and InvalidIdentity."""
        return cls(tuple(map(Card.from_bytes, wire.split(ROSTER, data, 0, wire.MOST_PARTS))))


def signed_by(verifying: bytes, purpose: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the holder of this Ed25519 key signed this message for this purpose."""
    try:
        key = Ed25519PublicKey.from_public_bytes(verifying)
        key.verify(signature, wire.join(SIGNED, [purpose, message]))
    except (InvalidSignature, ValueError):
        return False
    return True


def check_name(name: str) -> None:
    """Raises InvalidIdentity unless a party may have this name: people read it in messages."""
    if not name.isprintable() or not 1 <= len(name.encode()) <= LONGEST_NAME:
        raise InvalidIdentity(
            f"a party's name must be printable and 1 to {LONGEST_NAME} bytes long in UTF-8"
        )


def degenerate(key: bytes) -> bool:
    """Whether an X25519 key is of small order: whatever the secret, the agreement is zero."""
    try:
        X25519PrivateKey.from_private_bytes(bytes(32)).exchange(
            X25519PublicKey.from_public_bytes(key)
        )
    except ValueError:
        return True
    return False


def _montgomery(key: bytes) -> bytes:
    """An Ed25519 key as the X25519 key of the same order (RFC 7748, section 4.1)."""
    prime = 2**255 - 19
    y = int.from_bytes(key, "little") % 2**255 % prime
    u = (1 + y) * pow(1 - y, prime - 2, prime) % prime
    return u.to_bytes(32, "little")


def derived(secret: bytes, purpose: bytes) -> bytes:
    """32 bytes for one purpose from a secret (HKDF-SHA256, RFC 5869)."""
    return HKDF(hashes.SHA256(), 32, None, b"secure_agg/1 " + purpose).derive(secret)
