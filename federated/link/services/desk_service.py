"""A role's part of the desk: helps others to ask about a claim, and asks for its own desk.

It answers letters (`letters`) of the desk's roles, which the exchange passes on, and its owner's.
Every question, answer and refusal is in its log before it leaves; rates are counted from the log,
so that a service that was killed goes on counting.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from federated.link import desk
from federated.link.desk import DeskAnswer
from federated.link.keys import one_claim
from federated.link.letters import Letter, LetterBox, eight_bytes, packed, unpacked
from federated.link.party_log import LOG
from federated.link.ring import COORDINATOR
from federated.link.services.desk_folder import DeskFolder
from federated.link.services.process import (
    Handler,
    LetterNumbers,
    LinkMember,
    ask,
    ask_own,
    own_handler,
)
from federated.transport.relay_line import PATIENCE_SECONDS, RelayLine
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError, PolicyError
from secure_agg import wire
from secure_agg.errors import FaultyParty, MalformedMessage
from secure_agg.identity import Identity

#: Services: of others' questions, of its owner's.
ASK, CLAIM = "ask", "claim"
ANSWER, TICKET = "answer", b"link ask"
STATISTIC = "link_ask"
#: Seconds more for each member behind the one that is asked.
HOP_SECONDS = 2.0


@dataclass(frozen=True)
class DeskReply:
    """What a service says to its owner. key: that matches, empty for none."""

    key: str = ""
    payers: tuple[str, ...] = ()


class DeskService:
    """One role's part of the desk. asks_a_day: of each other payer. Raises ConfigurationError."""

    def __init__(self, folder: DeskFolder, member: LinkMember, asks_a_day: int) -> None:
        self.folder, self.member, self.name = folder, member, member.name
        self.shared, self.terms = folder.shared, folder.shared.terms
        self.cards, self.limit = self.shared.roster(), asks_a_day
        if (
            self.cards.get(self.name) != member.identity.card
            or self.shared.signed != member.charter
        ):
            raise ConfigurationError(
                f"{folder.path}: the last night was under another charter or other keys; its lists are "
                "of no use, let all take part in lab link night"
            )
        if folder.names is None and self.name != COORDINATOR:
            raise ConfigurationError(f"{folder.path}: holds no list of names")
        blank = [b""] * self.terms.batches
        desk.question(self.terms, folder.seed, blank, bytes(32))  # nobody waits for libsodium later
        self.asks = counted(folder.path)
        self.box = LetterBox(member.identity, self.terms.digest, self.cards, time.time_ns())
        self._numbers, self._turn = LetterNumbers(), threading.Lock()

    def handlers(self, own: LetterBox) -> dict[str, Handler]:
        """What it answers. own: takes its owner's letters."""
        handlers = {ASK: self.member.noting(STATISTIC, self.help)}
        if self.name != COORDINATOR:
            handler = own_handler(own, CLAIM, self.own_claim)
            handlers[CLAIM] = self.member.noting(STATISTIC, handler, self.name)
        return handlers

    def own_claim(self, data: bytes) -> bytes:
        """The answer to its owner's claim, both JSON."""
        try:
            claim = json.loads(data)
        except (ValueError, RecursionError):
            claim = None
        if not isinstance(claim, dict):
            raise ConfigurationError("the claim must be one JSON object")
        answer = self.ask(claim)
        key = self.shared.charter.batches[answer.batch][0].name if answer.batch >= 0 else ""
        return json.dumps({"key": key, "payers": answer.payers}).encode()

    def ask(self, claim: Mapping[str, object]) -> DeskAnswer:
        """One claim of its own desk. Raises ConfigurationError, PeerError and PolicyError."""
        texts, blinding = one_claim(claim, self.shared.charter), secrets.token_bytes(32)
        elements = desk.question(self.terms, self.folder.seed, texts, blinding)
        number = self._numbers.next()
        self._count(self.name, number)
        signature = self.member.identity.sign(TICKET, ticket(self.terms.digest, self.name, number))
        place = number.to_bytes(8, "big")
        letter = {"asker": self.name.encode(), "number": place, "ticket": signature}
        self._release(self.name, number)
        reply = self._send(self.name, letter | {"elements": elements.tobytes()})
        answer = self.box.opened(reply, ANSWER, COORDINATOR)
        content = unpacked(answer.content, COORDINATOR)
        if content.get("number") != place:
            raise FaultyParty("coordinator: answers another question", COORDINATOR)
        assert self.folder.names is not None
        names, elements_of_all = self.folder.names, content.get("elements", b"")
        return desk.answer(self.terms, names, elements_of_all, blinding, COORDINATOR)

    def help(self, data: bytes) -> bytes:
        """The answer to a letter, for whoever brought it.

        Raises FaultyParty, MalformedMessage, PeerError and PolicyError.
        """
        letter = self.box.opened(data, ASK)
        content = unpacked(letter.content, letter.sender)
        asker, number = self._asker(letter, content)
        self._count(asker, number)
        elements = content.get("elements", b"")
        product = desk.helped(self.terms, self.folder.seed, elements, letter.sender).tobytes()
        self._release(asker, number)
        if self.name == COORDINATOR:
            answer = packed({"number": content["number"], "elements": product})
            place = self._numbers.next()
            reply = Letter(self.terms.digest, place, self.name, asker, ANSWER, answer)
            return reply.sealed(self.member.identity, self.cards[asker])
        return self._send(asker, {**content, "elements": product})

    def _asker(self, letter: Letter, content: Mapping[str, bytes]) -> tuple[str, int]:
        """Who asks, by its own signature, and that the letter came the way of the ring."""
        sender = letter.sender
        try:
            asker = wire.text(content["asker"])
            number, signature = eight_bytes(content["number"]), content["ticket"]
            card = self.cards[asker]
        except (KeyError, MalformedMessage):
            raise FaultyParty(f"{sender}: sent a question of nobody", sender) from None
        if asker not in self.terms.payers or not card.signed(
            TICKET, ticket(self.terms.digest, asker, number), signature
        ):
            raise FaultyParty(f"{sender}: brings a question that {asker} did not sign", sender)
        before = self.terms.after(asker, -1)
        if self.name != COORDINATOR:
            before = self.terms.after(self.name, -1)
        if sender != before or asker == self.name:
            raise FaultyParty(f"{sender}: brings a question out of its turn", sender)
        self.box.take(f"question of {asker}", number)
        return asker, number

    def _after(self, asker: str) -> str:
        following = self.terms.after(self.name)
        return COORDINATOR if following == asker else following

    def _count(self, asker: str, number: int) -> None:
        """Note a question; refuse it above the rate."""
        with self._turn:
            day = datetime.now(UTC).date().isoformat()
            if self.asks[asker, day] >= self.limit:
                raise PolicyError(
                    f"{self.name}: {asker} has asked {self.limit:,} times today, as often as this "
                    "payer and the charter let it; ask tomorrow",
                    "rate",
                )
            self.asks[asker, day] += 1
        self.member.log.append("request", statistic=STATISTIC, by=asker, number=number)

    def _release(self, asker: str, number: int) -> None:
        count = self.terms.batches
        self.member.log_release(STATISTIC, count, 32 * count, by=asker, number=number)

    def _send(self, asker: str, message: Mapping[str, bytes]) -> bytes:
        """Bring a question to the next of the ring; whoever is nearer to its end waits less."""
        payers, to = self.terms.payers, self._after(asker)
        left = len(payers) - (payers.index(self.name) - payers.index(asker)) % len(payers)
        place, content = self._numbers.next(), packed(message)
        letter = Letter(self.terms.digest, place, self.name, to, ASK, content)
        data = letter.sealed(self.member.identity, self.cards[to])
        return ask(self.member.line, to, ASK, data, PATIENCE_SECONDS + HOP_SECONDS * left)


def counted(folder: Path) -> Counter[tuple[str, str]]:
    """How often each payer asked on each day, by a role's log."""
    if not (folder / LOG).exists():
        return Counter()
    return Counter(
        (str(line.told["by"]), line.time[:10])
        for line in entries(read_lines(folder / LOG))
        if line.kind == "request" and line.told.get("statistic") == STATISTIC
    )


def asked(identity: Identity, line: RelayLine, claim: Mapping[str, object]) -> DeskReply:
    """One claim, asked through the member's own process. Raises its refusal, and PeerError."""
    values = json.loads(ask_own(identity, line, CLAIM, json.dumps(dict(claim)).encode()))
    return DeskReply(values["key"], tuple(values["payers"]))


def ticket(session: bytes, asker: str, number: int) -> bytes:
    """What an asker signs for one question."""
    return wire.join(b"LABTKT01", [session, asker.encode(), number.to_bytes(8, "big")])
