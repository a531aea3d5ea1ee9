"""Letters between the roles of a link: signed, sealed, each for one session and one place in it.

The sender signs the session, a number that it never uses twice, sender, recipient, kind and
content, and seals the content for the recipient. So whoever carries a letter can't read it, change
it, or bring it a second time, in another session or to somebody else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from lab.records import Strict
from secure_agg import wire
from secure_agg.errors import FaultyParty, MalformedMessage
from secure_agg.identity import Card, Identity

Record = TypeVar("Record", bound=Strict)
FORMAT, PARTS, PURPOSE = b"LABLTR01", b"LABPRT01", b"link letter"


@dataclass(frozen=True)
class Letter:
    """One letter, opened. number: its place among its sender's, 0 or more."""

    session: bytes
    number: int
    sender: str
    to: str
    kind: str
    content: bytes = field(repr=False)

    @property
    def statement(self) -> bytes:
        """What its sender signs."""
        texts = [self.sender.encode(), self.to.encode(), self.kind.encode()]
        body = hashlib.sha256(self.content).digest()
        return wire.join(FORMAT, [self.session, self.number.to_bytes(8, "big"), *texts, body])

    def sealed(self, identity: Identity, recipient: Card) -> bytes:
        """The letter as it travels."""
        signature = identity.sign(PURPOSE, self.statement)
        content = recipient.seal(PURPOSE, wire.join(PARTS, [signature, self.content]))
        texts = [self.sender.encode(), self.to.encode(), self.kind.encode()]
        return wire.join(FORMAT, [self.session, self.number.to_bytes(8, "big"), *texts, content])


@dataclass
class LetterBox:
    """Who takes letters: what has been taken is not taken again.

    cards: of all who may write
    since: letters of a lower number are not taken
    taken: sender and number of each letter that was
    """

    identity: Identity
    session: bytes
    cards: Mapping[str, Card]
    since: int = 0
    taken: set[tuple[str, int]] = field(default_factory=set)
    turn: Lock = field(default_factory=Lock, repr=False)

    def opened(self, data: bytes, kind: str, sender: str | None = None) -> Letter:
        """A letter of this kind that came, taken once; as `read`."""
        letter = self.read(data, kind, sender)
        self.take(letter.sender, letter.number)
        return letter

    def read(self, data: bytes, kind: str, sender: str | None = None) -> Letter:
        """A letter of this kind that came, which may come again.

        sender: who must have written it, where that is known
        Raises FaultyParty, which names who is to blame, and MalformedMessage.
        """
        session, number, *texts, sealed = wire.split(FORMAT, data, 6)
        name, to, what = map(wire.text, texts)
        card = self.cards.get(name)
        if card is None or (sender is not None and name != sender):
            raise MalformedMessage("a letter came from nobody who takes part here")
        if session != self.session or to != self.identity.card.name or what != kind:
            _refuse(name, "sent a letter of another session, kind or recipient")
        signature, content = self._unsealed(name, sealed)
        place = eight_bytes(number)
        letter = Letter(session, place, name, to, what, content)
        if not card.signed(PURPOSE, letter.statement, signature):
            _refuse(name, "a letter in its name was altered, or lacks its signature")
        return letter

    def take(self, name: str, place: int) -> None:
        """Note a number that a sender used. Raises FaultyParty where it was used before."""
        with self.turn:
            if place < self.since or (name, place) in self.taken:
                _refuse(name, f"replays number {place}")
            self.taken.add((name, place))

    def _unsealed(self, name: str, sealed: bytes) -> list[bytes]:
        try:
            return wire.split(PARTS, self.identity.unseal(PURPOSE, sealed), 2)
        except MalformedMessage:
            _refuse(name, "a letter in its name was altered, or sealed for somebody else")


def number_of(data: bytes) -> int:
    """The number of a sealed letter, as its head says. Raises MalformedMessage."""
    return eight_bytes(wire.split(FORMAT, data, 6)[1])


def eight_bytes(data: bytes) -> int:
    """A number of 8 bytes. Raises MalformedMessage."""
    if len(data) != 8:
        raise MalformedMessage("a number of a letter has not 8 bytes")
    return int.from_bytes(data, "big")


def packed(message: Mapping[str, bytes]) -> bytes:
    """A step's message as a letter's content."""
    return wire.join(PARTS, [part for name in message for part in (name.encode(), message[name])])


def unpacked(content: bytes, sender: str) -> dict[str, bytes]:
    """What `packed` made. Raises FaultyParty, which names the sender."""
    try:
        parts = wire.split(PARTS, content, 0, wire.MOST_PARTS)
        names = [wire.text(name) for name in parts[::2]]
    except MalformedMessage:
        _refuse(sender, "sent a letter that is not readable")
    if len(parts) % 2 or len(set(names)) < len(names):
        _refuse(sender, "sent a letter that is not readable")
    return dict(zip(names, parts[1::2], strict=True))


def record_of(record: type[Record], data: bytes, sender: str) -> Record:
    """A record of JSON that came. Raises FaultyParty, without a value."""
    try:
        content: Any = json.loads(data)
        return record.model_validate(content)
    except (ValueError, ValidationError, RecursionError):
        raise FaultyParty(f"{sender}: sent what is no {record.__name__}", sender) from None


def _refuse(name: str, deed: str) -> NoReturn:
    raise FaultyParty(f"{name}: {deed}; nothing was answered", name)
