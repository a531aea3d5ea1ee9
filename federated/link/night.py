"""The nightly comparison as processes of their own, and what the desk keeps of it.

Each role has a folder with its identity and what all agreed on beforehand (`desk.json`). Letters lie
in a folder that all can reach, the post, sealed and signed, each under a name that says its place. The
coordinator announces a night there and signs it; every role waits for the letters that it needs
and writes those that others need. What a role sends follows from its table, its seed of this
night, which it keeps, and the letters it took: whoever is killed starts again where it was. A night
that was announced before is refused.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from federated.link import ring
from federated.link.charter import LinkCharter
from federated.link.desk import SHORT, NameList, name_lists
from federated.link.desk_folder import DeskTerms, write_desk
from federated.link.duplicates import Comparison, PaidTwice, coordinator_counts, paid_twice
from federated.link.keys import payer_claims
from federated.link.letters import Letter, LetterBox, packed, unpacked
from federated.link.ring import COORDINATOR
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError, PeerError
from lab.files import add_line, added_lines, canonical, read_json, write_whole
from lab.records import parse
from secure_agg.errors import FaultyParty
from secure_agg.identity import Card, Identity

NIGHT = b"link night"
STATISTIC = "link_night"
ANSWERS = 2**16  # numbers of the coordinator's letters begin here
UNUSED = "0" * 64


class NightRole:
    """One role of one night: where its letters lie and what it remembers of the night.

    patience: seconds to wait for a letter

    Raises ConfigurationError, and FaultyParty for a night that its coordinator did not announce.
    """

    def __init__(
        self, home: Path, identity: Identity, post: Path, log: Log, patience: float = 3600.0
    ) -> None:
        agreed = parse(DeskTerms, read_json(home / "desk.json"), where=str(home / "desk.json"))
        self.home, self.identity, self.post, self.patience = home, identity, post, patience
        self.log, self.cards, self.name = log, agreed.roster(), identity.card.name
        if self.cards.get(self.name) != identity.card:
            raise ConfigurationError(f"{home}: this identity takes no part in the desk")
        session = _announced(self, agreed) if self.name != COORDINATOR else _announce(self, agreed)
        self.shared = agreed.model_copy(update={"session": session})
        self.terms = self.shared.terms
        self.seed = _remembered(home, session)
        self.box = LetterBox(identity, self.terms.digest, self.cards)
        self.log.append("request", statistic=STATISTIC, by=COORDINATOR, session=session)

    def put(self, kind: str, number: int, to: str, message: Mapping[str, bytes]) -> None:
        """Write a letter, once, and its line in the log before."""
        place = self.post / f"{kind}-{number}.letter"
        if place.exists():
            return
        letter = Letter(self.terms.digest, number, self.name, to, kind, packed(message))
        size = sum(map(len, message.values()))
        counts: dict[str, Any] = {
            "arrays": len(message),
            "values": size // 32,
            "bytes": size,
            "rows": 0,
        }
        self.log.append(
            "release", statistic=STATISTIC, hiding="ristretto255", key_bits=252, to=to, **counts
        )
        write_whole(place, letter.sealed(self.identity, self.cards[to]))

    def take(self, kind: str, number: int, sender: str) -> dict[str, bytes]:
        """The message of a letter, when it is there. Raises PeerError and FaultyParty."""
        place = self.post / f"{kind}-{number}.letter"
        until = time.monotonic() + self.patience
        while not place.is_file():
            if time.monotonic() > until:
                raise PeerError(
                    f"{sender}: its letter did not come in {self.patience:,.0f} s; this role goes on "
                    "where it is when it is started again",
                    sender,
                )
            time.sleep(0.05)
        letter = self.box.opened(place.read_bytes(), kind, sender)
        if letter.number != number:
            raise FaultyParty(f"{sender}: replays letter {letter.number} as {number}", sender)
        return unpacked(letter.content, sender)


def payer_night(role: NightRole, table: pd.DataFrame) -> PaidTwice:
    """All steps of a payer; its folder is ready for the next day when this returns.

    Raises ContractError, PeerError and FaultyParty.
    """
    terms, name, count = role.terms, role.name, len(role.terms.payers)
    claims = payer_claims(table, role.shared.charter, name)
    texts = [batch.texts for batch in claims.batches]
    payer, message = ring.start(terms, name, texts, role.seed)
    role.put("ring", _place(terms.payers.index(name), 0), terms.after(name), message)
    for hop in range(1, count):
        origin = terms.after(name, -hop)
        at = terms.payers.index(origin)
        incoming = role.take("ring", _place(at, hop - 1), terms.after(name, -1))
        payer, message = ring.onward(payer, incoming)
        to = COORDINATOR if hop == count - 1 else terms.after(name)
        role.put("ring", _place(at, hop), to, message)
    number = ANSWERS + terms.payers.index(name)
    reply = role.take("answer", number, COORDINATOR)
    names, owners = reply.pop("names", b""), reply.pop("owners", b"")
    payer = ring.result(payer, reply)
    write_desk(role.home, role.shared, role.seed, _listed(names, owners))
    return paid_twice(payer, claims, role.shared.charter)


def coordinator_night(role: NightRole) -> pd.DataFrame:
    """All steps of the coordinator; what it counts (`coordinator_counts`). Raises as a payer's."""
    terms, last = role.terms, len(role.terms.payers) - 1
    sets = {
        name: role.take("ring", _place(at, last), terms.after(name, -1))
        for at, name in enumerate(terms.payers)
    }
    meetings, replies = ring.close(terms, sets, role.seed)
    lists = name_lists(terms, meetings, secrets.token_bytes)
    for at, name in enumerate(terms.payers):
        desk = {"names": lists[name].names.tobytes(), "owners": lists[name].owners.tobytes()}
        role.put("answer", ANSWERS + at, name, {**replies[name], **desk})
    write_desk(role.home, role.shared, role.seed, None)
    return coordinator_counts(meetings, role.shared.charter)


def agreed_terms(
    charter: LinkCharter,
    payers: tuple[str, ...],
    cards: Mapping[str, Card],
    addresses: Mapping[str, str],
    session: str = UNUSED,
) -> DeskTerms:
    """What all roles agree on before a night, which has a session of its own."""
    return DeskTerms(
        charter=charter,
        payers=payers,
        session=session,
        addresses=dict(addresses),
        cards={name: card.to_bytes().hex() for name, card in cards.items()},
    )


def desk_of(
    tables: Mapping[str, pd.DataFrame],
    charter: LinkCharter,
    folder: Path,
    cards: Mapping[str, Card],
    addresses: Mapping[str, str],
) -> Comparison:
    """Compare all tables and write each role's folder for the next day, in one process.

    cards, addresses: of the payers and the coordinator

    Raises ConfigurationError and ContractError.
    """
    shared = agreed_terms(charter, tuple(tables), cards, addresses, secrets.token_hex(32))
    terms, seeds = shared.terms, {name: secrets.token_bytes(32) for name in cards}
    claims = {name: payer_claims(table, charter, name) for name, table in tables.items()}
    batches = {name: [batch.texts for batch in each.batches] for name, each in claims.items()}
    meetings, payers = ring.run(terms, batches, seeds)
    lists = name_lists(terms, meetings, secrets.token_bytes)
    for name in (*terms.payers, COORDINATOR):
        write_desk(folder / name, shared, seeds[name], lists.get(name))
    answers = {name: paid_twice(payers[name], claims[name], charter) for name in terms.payers}
    return Comparison(answers, coordinator_counts(meetings, charter))


def _place(origin: int, hop: int) -> int:
    """The number of a letter in the ring, by whose sets it holds and how far they came."""
    return origin * ring.MOST_PAYERS + hop


def _agreement(agreed: DeskTerms, session: str) -> bytes:
    """What a coordinator signs of a night: everything agreed on, and its session."""
    content = agreed.model_dump(mode="json") | {"session": session}
    return hashlib.sha256(canonical(content)).digest()


def _announce(role: NightRole, agreed: DeskTerms) -> str:
    """The session of the night in the post, or of a new one."""
    place = role.post / "night.json"
    if place.exists():
        return _announced(role, agreed)
    session = secrets.token_hex(32)
    signature = role.identity.sign(NIGHT, _agreement(agreed, session)).hex()
    role.post.mkdir(parents=True, exist_ok=True)
    write_whole(place, canonical({"session": session, "signature": signature}))
    return session


def _announced(role: NightRole, agreed: DeskTerms) -> str:
    """The session that the coordinator announced, for what this role agreed on. Raises FaultyParty."""
    place, until = role.post / "night.json", time.monotonic() + role.patience
    while not place.is_file():
        if time.monotonic() > until:
            raise PeerError(f"{COORDINATOR}: announced no night in {role.post}", COORDINATOR)
        time.sleep(0.05)
    content = read_json(place)
    try:
        session, signature = str(content["session"]), bytes.fromhex(content["signature"])
        statement = _agreement(agreed, session)
    except (KeyError, TypeError, ValueError):
        session, signature, statement = "", b"", b""
    if not role.cards[COORDINATOR].signed(NIGHT, statement, signature):
        raise FaultyParty(
            "coordinator: announced a night for other terms than were agreed on here, or did not sign "
            "it; compare desk.json with the other roles",
            COORDINATOR,
        )
    return session


def _remembered(home: Path, session: str) -> bytes:
    """This role's seed of a night. Raises FaultyParty for a night that was before the last one."""
    place = home / "nights.jsonl"
    if not place.exists():
        write_whole(place, b"", 0o600)
    nights = {str(line["session"]): str(line["seed"]) for line in added_lines(place)}
    if session in nights and session != list(nights)[-1]:
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
