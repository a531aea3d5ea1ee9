"""Signed messages between parties: each is bound to one charter, one run and one place in it.

Flower only carries messages. The sender signs the charter's hash, the run, the message's number, its
recipients, its kind and its content; a reply carries the number of the message it answers. So no
message can be replayed in another run, at another place in it, to another party or under another
charter, whoever controls the broker.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from federated.message_kinds import MessageKind
from federated.messages import UNREADABLE, blobs, unblob
from federated.transport.node_line import packed, unpacked
from lab.errors import PeerError
from secure_agg import wire
from secure_agg.identity import Card, Identity

FORMAT, PURPOSE = b"LABMSG01", b"message"
#: A body of at most so many bytes is sent in one piece.
ONE_PIECE = 2**20


@dataclass(frozen=True)
class SignedMessage:
    """One message. number: its place in the run, never used twice; body: Flower records as bytes."""

    charter: str
    run: str
    number: int
    sender: str
    to: tuple[str, ...]
    kind: str
    body: bytes

    @property
    def statement(self) -> bytes:
        """What its sender signs."""
        return wire.join(
            FORMAT,
            [
                bytes.fromhex(self.charter),
                self.run.encode(),
                str(self.number).encode(),
                self.sender.encode(),
                self.kind.encode(),
                hashlib.sha256(self.body).digest(),
                *(name.encode() for name in self.to),
            ],
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the statement: the message's name in logs."""
        return hashlib.sha256(self.statement).hexdigest()

    @property
    def content(self) -> RecordDict:
        """The records of the body. Raises :class:`PeerError`."""
        return unpacked(self.body)

    def reply(self, sender: str, content: RecordDict) -> SignedMessage:
        """The answer to this message."""
        return SignedMessage(
            self.charter,
            self.run,
            self.number,
            sender,
            (self.sender,),
            MessageKind.REPLY,
            packed(content),
        )

    def signed(self, identity: Identity) -> RecordDict:
        """The message as it travels."""
        head = ConfigRecord(
            {
                "charter": self.charter,
                "run": self.run,
                "number": self.number,
                "sender": self.sender,
                "to": list(self.to),
                "kind": self.kind,
                "signature": identity.sign(PURPOSE, self.statement),
            }
        )
        if len(self.body) <= ONE_PIECE:
            head["body"] = self.body
            return RecordDict({"message": head})
        return RecordDict({"message": head, "body": blobs(body=self.body)})


def claimed(record: RecordDict, whose: str = "coordinator") -> SignedMessage:
    """The message that a record says it is; who wrote it is not checked. Raises :class:`PeerError`."""
    try:
        head = record.config_records["message"]
        body = head["body"] if "body" in head else unblob(record.array_records["body"], "body")
        to, number = head["to"], head["number"]
        if not isinstance(to, list) or type(number) is not int or not isinstance(body, bytes):
            raise TypeError
        charter, run, sender, kind = (str(head[k]) for k in ("charter", "run", "sender", "kind"))
        if not all(map(str.isprintable, [charter, run, sender, kind, *map(str, to)])):
            raise ValueError  # they stand in lines that people read
        return SignedMessage(charter, run, number, sender, tuple(map(str, to)), kind, body)
    except UNREADABLE as error:
        reason = f"sent a message that is not readable ({type(error).__name__})"
        raise PeerError(f"{whose}: {reason}", whose) from None


def received(record: RecordDict, card: Card) -> SignedMessage:
    """A message that this sender signed, under whatever charter. Raises :class:`PeerError`."""
    message, ours = claimed(record, card.name), False
    with suppress(*UNREADABLE):
        signature = record.config_records["message"]["signature"]
        ours = isinstance(signature, bytes) and card.signed(PURPOSE, message.statement, signature)
    if message.sender != card.name or not ours:
        raise PeerError(f"{card.name}: a message in its name lacks its signature", card.name)
    return message


def answering(message: SignedMessage, request: SignedMessage) -> SignedMessage:
    """This message, if it is the answer to that one. Raises :class:`PeerError`."""
    if (message.run, message.number) != (
        request.run,
        request.number,
    ) or message.kind != MessageKind.REPLY:
        raise PeerError(
            f"{message.sender}: replays a message of another round or run", message.sender
        )
    if message.to != (request.sender,) or message.sender not in request.to:
        raise PeerError(
            f"{message.sender}: answers a message that was not addressed to it", message.sender
        )
    return message
