"""The nightly comparison as processes of their own, and what the desk keeps of it.

The coordinator announces a night and signs it; every role waits for the letters that it needs and
sends those that others need, sealed and signed, through the exchange, until they are taken. What a
role takes lies in a folder of its own, the post, each letter under a name that says its place. What
it sends follows from its table, its seed of this night, which it keeps, and the letters it took:
whoever is killed starts again where it was. A night that was announced before is refused.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pandas as pd

from federated.link import ring
from federated.link.charter import LinkCharter
from federated.link.desk import SHORT, NameList, name_lists
from federated.link.duplicates import Comparison, PaidTwice, coordinator_counts, paid_twice
from federated.link.keys import payer_claims
from federated.link.letters import Letter, LetterBox, packed, unpacked
from federated.link.ring import COORDINATOR
from federated.link.services.desk_folder import DeskTerms, write_desk
from federated.link.services.process import Handler, LinkMember, ask, serve
from federated.transport.relay_line import Unreachable
from lab.errors import ConfigurationError, PeerError
from lab.files import add_line, added_lines, canonical, read_json, write_whole
from secure_agg.errors import FaultyParty
from secure_agg.identity import Card

NIGHT = b"link night"
STATISTIC = "link_night"
#: Services, by what is brought: the coordinator's announcement, sets, the coordinator's answers.
ANNOUNCE, RING, ANSWER = "announce", "ring", "answer"
POST, ANNOUNCED, NIGHTS = "post", "night.json", "nights.jsonl"
ANSWERS = 2**16  # numbers of the coordinator's letters begin here
UNUSED = "0" * 64
#: Seconds for one try to bring a letter, between two tries, and between two looks into the post.
TRY_SECONDS, AGAIN_SECONDS, LOOK_SECONDS = 20.0, 0.5, 0.05


class NightRole:
    """One role of one night: its post, and what it remembers of the night.

    home: the role's folder; agreed: what all agreed on; patience: seconds to wait for a letter, or to
    have one taken; tell: is told for whom it waits

    Raises ConfigurationError, and FaultyParty for a night that its coordinator did not announce.
    """

    def __init__(
        self,
        home: Path,
        member: LinkMember,
        agreed: DeskTerms,
        patience: float = 3600.0,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.home, self.member, self.agreed, self.patience = home, member, agreed, patience
        self.tell = tell
        self.post, self.name, self.cards = home / POST, member.name, agreed.roster()
        if self.cards.get(self.name) != member.identity.card:
            raise ConfigurationError(f"{home}: this identity takes no part in the desk")
        self.post.mkdir(parents=True, exist_ok=True)
        self._begun = Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Learn the night's session, and take letters until the block is left."""
        handlers: dict[str, Handler] = {RING: partial(self.take_in, RING)}
        if self.name != COORDINATOR:
            handlers |= {ANSWER: partial(self.take_in, ANSWER), ANNOUNCE: self.hear}
        with self._taking(handlers):
            self._begin(self._announce() if self.name == COORDINATOR else self._announced())
            if self.name == COORDINATOR:
                self._announce_to_all()
            yield

    @contextmanager
    def _taking(self, handlers: Mapping[str, Handler]) -> Iterator[None]:
        stop, line = Event(), self.member.line.another()
        noted = {name: self.member.noting(STATISTIC, each) for name, each in handlers.items()}
        taking = Thread(target=serve, args=(line, noted, stop, self.tell, 1), daemon=True)
        taking.start()
        try:
            yield
        finally:
            stop.set()
            taking.join()
            line.close()

    def put(self, kind: str, number: int, to: str, message: Mapping[str, bytes]) -> None:
        """Bring a letter to whom it is for, until it is taken; once, with a line in the log before."""
        sent = self.post / f"{kind}-{number}.sent"
        if sent.exists() or self._over():
            return
        size = sum(map(len, message.values()))
        self.member.log_release(STATISTIC, size // 32, size, to=to)
        letter = Letter(self.terms.digest, number, self.name, to, kind, packed(message))
        data, end = letter.sealed(self.member.identity, self.cards[to]), self._end()
        while not self._brought(to, kind, data, end):
            pass
        write_whole(sent, b"")

    def take(self, kind: str, number: int, sender: str) -> dict[str, bytes]:
        """The message of a letter, when it is there. Raises PeerError and FaultyParty."""
        place = self.post / f"{kind}-{number}.letter"
        self._wait(
            place.is_file,
            f"{sender}: its letter did not come in {self.patience:,.0f} s; this role goes on where it "
            "is when it is started again",
            sender,
        )
        letter = self.box.opened(place.read_bytes(), kind, sender)
        if letter.number != number:
            raise FaultyParty(f"{sender}: replays letter {letter.number} as {number}", sender)
        return unpacked(letter.content, sender)

    def take_in(self, kind: str, data: bytes) -> bytes:
        """Keep a letter of this night that was brought. Raises FaultyParty and MalformedMessage."""
        if not self._begun.wait(TRY_SECONDS):
            raise PeerError(f"{self.name}: knows of no night yet", self.name)
        number = self._fresh_box().read(data, kind).number
        place = self.post / f"{kind}-{number}.letter"
        if not place.exists():
            write_whole(place, data, 0o600)
        return b"taken"

    def hear(self, data: bytes) -> bytes:
        """Keep the coordinator's announcement, the first one. Raises FaultyParty."""
        place = self.post / ANNOUNCED
        session = _check_announced(self.agreed, self.cards[COORDINATOR], data)
        if not place.exists():
            write_whole(place, data)
        elif read_json(place)["session"] != session:
            raise FaultyParty("coordinator: announces a second night in the first", COORDINATOR)
        return b"heard"

    def finish(self) -> None:
        """Note that the night is over, when all that it told is kept elsewhere."""
        add_line(self.home / NIGHTS, {"session": self.shared.session, "over": True})
        shutil.rmtree(self.post)

    def _begin(self, session: str) -> None:
        self.shared = self.agreed.model_copy(update={"session": session})
        self.terms = self.shared.terms
        self.seed = _remembered(self.home, session)
        self.box = self._fresh_box()
        self.member.log.append("request", statistic=STATISTIC, by=COORDINATOR, session=session)
        self._begun.set()

    def _fresh_box(self) -> LetterBox:
        return LetterBox(self.member.identity, self.terms.digest, self.cards)

    def _over(self) -> bool:
        """Whether the coordinator has answered: then it has all that this role had to send."""
        return self.name != COORDINATOR and (self.post / f"{ANSWER}-{self._seat}.letter").exists()

    @property
    def _seat(self) -> int:
        return ANSWERS + self.agreed.payers.index(self.name)

    def _announce(self) -> str:
        """The session of the night that was begun, or of a new one."""
        place = self.post / ANNOUNCED
        if not place.exists():
            session = secrets.token_hex(32)
            signature = self.member.identity.sign(NIGHT, _agreement(self.agreed, session)).hex()
            write_whole(place, canonical({"session": session, "signature": signature}))
        return str(read_json(place)["session"])

    def _announce_to_all(self) -> None:
        announcement = (self.post / ANNOUNCED).read_bytes()
        waiting = [
            (n, self.post / f"{ANNOUNCE}-{at}.sent") for at, n in enumerate(self.terms.payers)
        ]
        waiting = [(name, sent) for name, sent in waiting if not sent.exists()]
        end = self._end()
        while waiting:
            name, sent = waiting.pop(0)
            if self._brought(name, ANNOUNCE, announcement, end):
                write_whole(sent, b"")
            else:
                waiting.append((name, sent))

    def _announced(self) -> str:
        """The session that the coordinator announced, for what this role agreed on."""
        place = self.post / ANNOUNCED
        self._wait(place.is_file, f"{COORDINATOR}: announced no night", COORDINATOR)
        return _check_announced(self.agreed, self.cards[COORDINATOR], place.read_bytes())

    def _brought(self, to: str, service: str, data: bytes, end: float) -> bool:
        """Whether somebody took it now. Raises Unreachable where nobody did until the end."""
        try:
            ask(self.member.line, to, service, data, TRY_SECONDS)
        except Unreachable:
            if time.monotonic() > end:
                raise
            time.sleep(AGAIN_SECONDS)
            return False
        return True

    def _end(self) -> float:
        return time.monotonic() + self.patience

    def _wait(self, there: Callable[[], bool], otherwise: str, culprit: str) -> None:
        end = self._end()
        if not there():
            self.tell(f"waits for {culprit}")
        while not there():
            if time.monotonic() > end:
                raise PeerError(otherwise, culprit)
            time.sleep(LOOK_SECONDS)


def payer_night(role: NightRole, table: pd.DataFrame) -> PaidTwice:
    """All steps of a payer; its folder is ready for the next day when this returns.

    Raises ContractError, PeerError and FaultyParty.
    """
    terms, name, count = role.terms, role.name, len(role.terms.payers)
    claims = payer_claims(table, role.shared.charter, name)
    texts = [batch.texts for batch in claims.batches]
    payer, message = ring.start(terms, name, texts, role.seed)
    role.put(RING, _place(terms.payers.index(name), 0), terms.after(name), message)
    for hop in range(1, count):
        origin = terms.after(name, -hop)
        at = terms.payers.index(origin)
        incoming = role.take(RING, _place(at, hop - 1), terms.after(name, -1))
        payer, message = ring.onward(payer, incoming)
        to = COORDINATOR if hop == count - 1 else terms.after(name)
        role.put(RING, _place(at, hop), to, message)
    number = ANSWERS + terms.payers.index(name)
    reply = role.take(ANSWER, number, COORDINATOR)
    names, owners = reply.pop("names", b""), reply.pop("owners", b"")
    payer = ring.result(payer, reply)
    write_desk(role.home, role.shared, role.seed, _listed(names, owners))
    return paid_twice(payer, claims, role.shared.charter)


def coordinator_night(role: NightRole) -> pd.DataFrame:
    """All steps of the coordinator; what it counts (`coordinator_counts`). Raises as a payer's."""
    terms, last = role.terms, len(role.terms.payers) - 1
    sets = {
        name: role.take(RING, _place(at, last), terms.after(name, -1))
        for at, name in enumerate(terms.payers)
    }
    meetings, replies = ring.close(terms, sets, role.seed)
    lists = name_lists(terms, meetings, secrets.token_bytes)
    for at, name in enumerate(terms.payers):
        desk = {"names": lists[name].names.tobytes(), "owners": lists[name].owners.tobytes()}
        role.put(ANSWER, ANSWERS + at, name, {**replies[name], **desk})
    write_desk(role.home, role.shared, role.seed, None)
    return coordinator_counts(meetings, role.shared.charter)


def agreed_terms(
    charter: LinkCharter,
    payers: tuple[str, ...],
    cards: Mapping[str, Card],
    signed: str = "",
    session: str = UNUSED,
) -> DeskTerms:
    """What all roles agree on before a night, which has a session of its own.

    signed: digest of the charter of all members, where there is one
    """
    return DeskTerms(
        charter=charter,
        payers=payers,
        session=session,
        signed=signed,
        cards={name: card.to_bytes().hex() for name, card in cards.items()},
    )


def desk_of(
    tables: Mapping[str, pd.DataFrame],
    agreed: DeskTerms,
    folders: Mapping[str, Path],
) -> Comparison:
    """Compare all tables and write each role's folder for the next day, in one process.

    agreed: by all roles; folders: of the payers and the coordinator

    Raises ConfigurationError and ContractError.
    """
    shared = agreed.model_copy(update={"session": secrets.token_hex(32)})
    charter, terms = shared.charter, shared.terms
    seeds = {name: secrets.token_bytes(32) for name in folders}
    claims = {name: payer_claims(table, charter, name) for name, table in tables.items()}
    batches = {name: [batch.texts for batch in each.batches] for name, each in claims.items()}
    meetings, payers = ring.run(terms, batches, seeds)
    lists = name_lists(terms, meetings, secrets.token_bytes)
    for name in (*terms.payers, COORDINATOR):
        write_desk(folders[name], shared, seeds[name], lists.get(name))
    answers = {name: paid_twice(payers[name], claims[name], charter) for name in terms.payers}
    return Comparison(answers, coordinator_counts(meetings, charter))


def _place(origin: int, hop: int) -> int:
    """The number of a letter in the ring, by whose sets it holds and how far they came."""
    return origin * ring.MOST_PAYERS + hop


def _agreement(agreed: DeskTerms, session: str) -> bytes:
    """What a coordinator signs of a night: everything agreed on, and its session."""
    content = agreed.model_dump(mode="json") | {"session": session}
    return hashlib.sha256(canonical(content)).digest()


def _check_announced(agreed: DeskTerms, coordinator: Card, data: bytes) -> str:
    """The session of an announcement. Raises FaultyParty unless it is of what was agreed on here."""
    try:
        content = json.loads(data)
        session, signature = str(content["session"]), bytes.fromhex(content["signature"])
        statement = _agreement(agreed, session)
    except (KeyError, TypeError, ValueError, RecursionError):
        session, signature, statement = "", b"", b""
    if not coordinator.signed(NIGHT, statement, signature):
        raise FaultyParty(
            "coordinator: announced a night for other terms than were agreed on here, or did not sign "
            "it; compare the charters",
            COORDINATOR,
        )
    return session


def _remembered(home: Path, session: str) -> bytes:
    """This role's seed of a night. Raises FaultyParty for a night that was before."""
    place = home / NIGHTS
    if not place.exists():
        write_whole(place, b"", 0o600)
    nights: dict[str, str] = {}
    for line in added_lines(place):
        nights[str(line["session"])] = str(line.get("seed", ""))  # none of a night that is over
    if session in nights and (not nights[session] or session != list(nights)[-1]):
        raise FaultyParty("coordinator: announces a night that was before", COORDINATOR)
    if session not in nights:
        nights[session] = secrets.token_hex(32)
        add_line(place, {"session": session, "seed": nights[session]})
    return bytes.fromhex(nights[session])


def _listed(names: bytes, owners: bytes) -> NameList:
    """The list of names that came. Raises FaultyParty."""
    if len(names) != SHORT * (len(owners) // 2) or not owners or len(owners) % 2:
        raise FaultyParty("coordinator: sent a list of names of another size", COORDINATOR)
    return NameList(
        np.frombuffer(names, dtype=f"S{SHORT}"),
        np.frombuffer(owners, dtype="<u2").astype(np.uint16),
    )
