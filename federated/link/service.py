"""A role's service at the desk: helps others to ask about a claim, and asks for its own desk.

It answers on this machine alone, to letters (`letters`) of the desk's roles and, with the folder's
password, to its own desk. Every question, answer and refusal is in its log before it leaves; rates
are counted from the log, so that a service that was killed goes on counting.
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
from functools import partial
from hmac import compare_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from federated.link import desk
from federated.link.desk import DeskAnswer
from federated.link.desk_folder import DeskFolder
from federated.link.keys import one_claim
from federated.link.letters import Letter, LetterBox, eight_bytes, packed, unpacked
from federated.link.ring import COORDINATOR
from lab.audit.log_format import entries, read_lines
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError, LabError, PeerError, PolicyError
from secure_agg import wire
from secure_agg.errors import Blame, FaultyParty, MalformedMessage, SecureAggError
from secure_agg.identity import Identity, signed_by

ASK, ANSWER, TICKET = "ask", "answer", b"link ask"
STATISTIC = "link_ask"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
PATIENCE_SECONDS = 10.0
LARGEST = 2**16
LOG = "log.jsonl"
#: A proxy of the environment gets no letter.
DIRECT = build_opener(ProxyHandler({}))


class DeskService:
    """One role's part of the desk, without its line. Raises ConfigurationError."""

    def __init__(self, folder: DeskFolder, identity: Identity) -> None:
        self.folder, self.identity, self.name = folder, identity, identity.card.name
        self.shared, self.terms = folder.shared, folder.shared.terms
        self.cards = self.shared.roster()
        if self.cards.get(self.name) != identity.card:
            raise ConfigurationError(f"{folder.path}: this identity takes no part in the desk")
        if folder.names is None and self.name != COORDINATOR:
            raise ConfigurationError(f"{folder.path}: holds no list of names")
        blank = [b""] * self.terms.batches
        desk.question(self.terms, folder.seed, blank, bytes(32))  # nobody waits for libsodium later
        self.asks = counted(folder) if (folder.path / LOG).exists() else Counter()
        self.box = LetterBox(identity, self.terms.digest, self.cards, time.time_ns())
        self._number, self._turn = time.time_ns(), threading.Lock()
        self.log = party_log(identity, folder.path)

    def ask(self, claim: Mapping[str, object]) -> DeskAnswer:
        """One claim of its own desk. Raises ConfigurationError, PeerError and PolicyError."""
        texts, blinding = one_claim(claim, self.shared.charter), secrets.token_bytes(32)
        elements = desk.question(self.terms, self.folder.seed, texts, blinding)
        number = self._next()
        self._count(self.name, number)
        ticket = {
            "asker": self.name.encode(),
            "number": number.to_bytes(8, "big"),
            "ticket": self.identity.sign(TICKET, _ticket(self.terms.digest, self.name, number)),
        }
        self._release(self.name, number)
        reply = self._send(
            self._after(self.name), packed({**ticket, "elements": elements.tobytes()})
        )
        letter = self.box.opened(reply, ANSWER, COORDINATOR)
        content = unpacked(letter.content, COORDINATOR)
        if content.get("number") != ticket["number"]:
            raise FaultyParty("coordinator: answers another question", COORDINATOR)
        assert self.folder.names is not None
        names = self.folder.names
        return desk.answer(self.terms, names, content.get("elements", b""), blinding, COORDINATOR)

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
            session = self.terms.digest
            reply = Letter(session, self._next(), self.name, asker, ANSWER, answer)
            return reply.sealed(self.identity, self.cards[asker])
        return self._send(self._after(asker), packed({**content, "elements": product}))

    def refused(self, error: Exception) -> None:
        """Note in the log what was refused, and why."""
        rule = getattr(error, "rule", "letter")
        by = ", ".join(getattr(error, "culprits", ())) or "unknown"
        self.log.append("refusal", statistic=STATISTIC, rule=rule, text=str(error), by=by)

    def _asker(self, letter: Letter, content: Mapping[str, bytes]) -> tuple[str, int]:
        """Who asks, by its own signature, and that the letter came the way of the ring."""
        sender = letter.sender
        try:
            asker = wire.text(content["asker"])
            number, ticket = eight_bytes(content["number"]), content["ticket"]
            card = self.cards[asker]
        except (KeyError, MalformedMessage):
            raise FaultyParty(f"{sender}: sent a question of nobody", sender) from None
        if asker not in self.terms.payers or not card.signed(
            TICKET, _ticket(self.terms.digest, asker, number), ticket
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
        """Note a question; refuse it above the charter's rate."""
        limit = self.shared.charter.desk.asks_a_day
        with self._turn:
            day = datetime.now(UTC).date().isoformat()
            if self.asks[asker, day] >= limit:
                raise PolicyError(
                    f"{self.name}: {asker} has asked {limit:,} times today, as often as the charter "
                    "lets it; ask tomorrow",
                    "rate",
                )
            self.asks[asker, day] += 1
        self.log.append("request", statistic=STATISTIC, by=asker, number=number)

    def _release(self, asker: str, number: int) -> None:
        count = self.terms.batches
        sizes: dict[str, int] = {
            "arrays": 1,
            "values": count,
            "bytes": 32 * count,
            "rows": 0,
            "key_bits": 252,
        }
        told: dict[str, Any] = {"statistic": STATISTIC, "hiding": "ristretto255", **sizes}
        self.log.append("release", by=asker, number=number, **told)

    def _next(self) -> int:
        with self._turn:
            self._number = max(self._number + 1, time.time_ns())
            return self._number

    def _send(self, to: str, content: bytes) -> bytes:
        letter = Letter(self.terms.digest, self._next(), self.name, to, ASK, content)
        data = letter.sealed(self.identity, self.cards[to])
        return posted(self.shared.addresses[to], "/letter", data, to)


@dataclass(frozen=True)
class DeskReply:
    """What a service says to its own desk. key: that matches, empty for none."""

    key: str = ""
    payers: tuple[str, ...] = ()


def party_log(identity: Identity, folder: Path) -> Log:
    """A role's log in its folder, signed by its own key, as `lab audit verify` reads it."""

    def check(key: bytes, message: bytes, signature: bytes) -> bool:
        return signed_by(key, b"log", message, signature)

    folder.mkdir(parents=True, exist_ok=True)
    card = identity.card
    sign = partial(identity.sign, b"log")
    return Log(folder / LOG, card.name, card.verifying, sign, check)


def counted(folder: DeskFolder) -> Counter[tuple[str, str]]:
    """How often each payer asked on each day, by a role's log."""
    lines = entries(read_lines(folder.path / LOG))
    return Counter(
        (str(line.told["by"]), line.time[:10])
        for line in lines
        if line.kind == "request" and line.told.get("statistic") == STATISTIC
    )


def served(service: DeskService) -> ThreadingHTTPServer:
    """The service at its address, not yet running. Raises ConfigurationError."""
    address = service.shared.addresses[service.name]
    host, _, port = address.rpartition(":")
    if host not in LOOPBACK or not port.isdigit():
        raise ConfigurationError(
            f"{address}: a desk's service answers on this machine alone, as 127.0.0.1:7101; between "
            "machines its letters go through a tunnel with TLS"
        )
    password = service.folder.secrets.password

    class Handler(BaseHTTPRequestHandler):
        timeout = PATIENCE_SECONDS

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            size = int(length) if length.isascii() and length.isdigit() else 0
            if not 0 < size <= LARGEST:
                return self._say(413, b"{}")
            data = self.rfile.read(size)
            if self.path == "/letter":
                return self._say(*_letter(service, data))
            if self.path == "/claim" and compare_digest(
                self.headers.get("X-Password", ""), password
            ):
                return self._say(*_claim(service, data))
            return self._say(404, b"{}")

        def _say(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: the log is the service's."""

    return ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)


def asked(folder: DeskFolder, name: str, claim: Mapping[str, object]) -> DeskReply:
    """One claim, asked through the service of its own folder.

    Raises ConfigurationError and PeerError, each with the service's one line.
    """
    body = json.dumps(dict(claim)).encode()
    password = {"X-Password": folder.secrets.password}
    reply = posted(folder.shared.addresses[name], "/claim", body, name, password)
    values = json.loads(reply)
    return DeskReply(values["key"], tuple(values["payers"]))


def posted(
    address: str, path: str, data: bytes, to: str, headers: Mapping[str, str] | None = None
) -> bytes:
    """The body of the answer. Raises PeerError and what the other refuses by."""
    request = Request(f"http://{address}{path}", data=data, headers=dict(headers or {}))
    try:
        with DIRECT.open(request, timeout=PATIENCE_SECONDS) as response:
            return bytes(response.read())
    except HTTPError as error:
        _raise(error.read(), to)
    except (URLError, OSError):
        raise PeerError(
            f"{to}: does not answer at {address}; start it with: lab link serve", to
        ) from None


def _raise(body: bytes, to: str) -> NoReturn:
    try:
        values = json.loads(body)
        text, kind = str(values["error"]), values["kind"]
    except (ValueError, KeyError, TypeError):
        raise PeerError(f"{to}: refuses, and does not say why", to) from None
    kinds: dict[str, type[LabError]] = {
        "configuration": ConfigurationError,
        "policy": PolicyError,
    }
    raise kinds.get(kind, PeerError)(text)


def _letter(service: DeskService, data: bytes) -> tuple[int, bytes]:
    try:
        return 200, service.help(data)
    except (LabError, SecureAggError) as error:
        service.refused(error)
        return _error(error)


def _claim(service: DeskService, data: bytes) -> tuple[int, bytes]:
    try:
        claim = json.loads(data)
        if not isinstance(claim, dict):
            raise ValueError
    except ValueError:
        return _error(ConfigurationError("the claim must be one JSON object"))
    try:
        answer = service.ask(claim)
    except (LabError, SecureAggError) as error:
        service.refused(error)
        return _error(error)
    key = service.shared.charter.batches[answer.batch][0].name if answer.batch >= 0 else ""
    return 200, json.dumps({"key": key, "payers": answer.payers}).encode()


def _error(error: Exception) -> tuple[int, bytes]:
    kind = "peer"
    if isinstance(error, ConfigurationError):
        kind = "configuration"
    elif isinstance(error, PolicyError):
        kind = "policy"
    elif not isinstance(error, Blame | LabError):
        kind = "peer"
    return 409, json.dumps({"kind": kind, "error": str(error)}).encode()


def _ticket(session: bytes, asker: str, number: int) -> bytes:
    """What an asker signs for one question."""
    return wire.join(b"LABTKT01", [session, asker.encode(), number.to_bytes(8, "big")])
