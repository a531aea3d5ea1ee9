"""A member's process at the exchange: it answers others' calls and its own owner's.

Its owner asks through it, for it alone writes the log. A question of its own is a letter of the
member to itself, sealed and signed as any: who carries it can't read it, and nobody else can ask.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any, NoReturn, TypeVar

from federated.link.letters import Letter, LetterBox
from federated.transport.relay_line import (
    HELD_SECONDS,
    PATIENCE_SECONDS,
    IncomingCall,
    RelayLine,
    Unreachable,
)
from lab.audit.log_writer import Log
from lab.errors import TRAVELLING, LabError, PeerError, PolicyError
from lab.files import read_json, write_whole
from lab.records import Strict, parse
from lab.text import printable
from secure_agg.errors import Blame, FaultyParty, SecureAggError
from secure_agg.identity import Card, Identity

Brought = TypeVar("Brought")
Told = TypeVar("Told")
#: What answers a call: bytes for bytes.
Handler = Callable[[bytes], bytes]
#: Calls that are worked on at a time; each may wait for another member.
WORKERS = 6
#: Seconds until the exchange is tried again.
AGAIN_SECONDS = 1.0
#: Seconds that an owner waits for its own process, which waits for others.
OWN_PATIENCE_SECONDS = 45.0
OWN_SESSION = hashlib.sha256(b"a member's own question").digest()
REPLY = "reply"
DONE, REFUSED = b"\x00", b"\x01"


@dataclass(frozen=True)
class LinkMember:
    """Who a process is. cards: of all members, by role; charter: digest of what all signed."""

    identity: Identity
    cards: Mapping[str, Card]
    line: RelayLine
    log: Log
    charter: str = ""

    @property
    def name(self) -> str:
        return self.identity.card.name

    def log_refusal(self, statistic: str, error: Exception, by: str = "unknown") -> None:
        """Note what was refused, by which rule, and who is to blame. by: where the error names nobody."""
        rule = getattr(error, "rule", "letter")
        culprits = ", ".join(getattr(error, "culprits", ())) or by
        self.log.append("refusal", statistic=statistic, rule=rule, text=str(error), by=culprits)

    def log_release(self, statistic: str, values: int, size: int, **told: Any) -> None:
        """Note, before it leaves, what leaves: elements of the group, and no row."""
        counts: dict[str, Any] = {"arrays": 1, "values": values, "bytes": size, "rows": 0}
        told |= {"statistic": statistic, "hiding": "ristretto255", "key_bits": 252}
        self.log.append("release", **told, **counts)

    def noting(
        self, statistic: str, step: Callable[[Brought], Told], by: str = "unknown"
    ) -> Callable[[Brought], Told]:
        """The step, with a line in the log for what it refuses. by: whom, where nobody is to blame."""

        def noted(data: Brought) -> Told:
            try:
                return step(data)
            except (LabError, SecureAggError) as error:
                self.log_refusal(statistic, error, by)
                raise

        return noted


class LetterNumbers:
    """LetterNumbers of letters, each used once, also after a restart."""

    def __init__(self) -> None:
        self._last, self._turn = time.time_ns(), Lock()

    def next(self) -> int:
        with self._turn:
            self._last = max(self._last + 1, time.time_ns())
            return self._last


def serve(
    line: RelayLine,
    handlers: Mapping[str, Handler],
    stop: Event,
    tell: Callable[[str], None],
    hold: int = HELD_SECONDS,
) -> None:
    """Answer calls, each by its service, until it is told to stop.

    hold: seconds between two looks at whether it is
    """
    lost = False
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            while not stop.is_set():
                try:
                    call = line.next(handlers, hold)
                except PeerError as error:
                    if not lost and not stop.is_set():
                        tell(f"{error}; retrying")
                    lost = True
                    stop.wait(AGAIN_SECONDS)
                    continue
                if lost:
                    tell("back at the exchange")
                    lost = False
                if call is not None:
                    pool.submit(_answer, line, call, handlers[call.service], tell)
        finally:
            line.gone(handlers)


def ask(
    line: RelayLine, to: str, service: str, data: bytes, patience: float = PATIENCE_SECONDS
) -> bytes:
    """What a member's service answers. Raises its refusal, and PeerError."""
    reply = line.call(to, service, data, patience)
    if reply[:1] != DONE:
        _raise(reply[1:], to)
    return reply[1:]


def ask_own(identity: Identity, line: RelayLine, service: str, content: bytes) -> bytes:
    """What the member's own process answers its owner. Raises its refusal, and PeerError."""
    name, number = identity.card.name, time.time_ns()
    letter = Letter(OWN_SESSION, number, name, name, service, content)
    data = letter.sealed(identity, identity.card)
    try:
        reply = ask(line, name, service, data, OWN_PATIENCE_SECONDS)
    except Unreachable as error:
        if name not in error.culprits:
            raise
        raise PeerError(f"{name}: its own process does not run; start it: lab link serve") from None
    box = LetterBox(identity, OWN_SESSION, {name: identity.card})
    answer = box.opened(reply, REPLY, name)
    if answer.number != number:
        raise FaultyParty("the exchange: brings the answer to another question", "the exchange")
    return answer.content


class KeptAnswer(Strict):
    """What a member was told, with the receipts of it. before: it was told earlier."""

    before: bool = False


Answer = TypeVar("Answer", bound=KeptAnswer)


def told_once(place: Path, form: type[Answer], make: Callable[[], Answer]) -> bytes:
    """What was told before, by the file at this place; else what is told now, once it is kept there."""
    if place.exists():
        told = parse(form, read_json(place), where=str(place)).model_copy(update={"before": True})
    else:
        told = make()
        write_whole(place, told.model_dump_json(indent=1).encode() + b"\n", 0o600)
    return told.model_dump_json().encode()


def own_box(identity: Identity) -> LetterBox:
    """Takes its owner's letters, each once, and none from before this process."""
    cards = {identity.card.name: identity.card}
    return LetterBox(identity, OWN_SESSION, cards, time.time_ns())


def own_handler(box: LetterBox, service: str, answer: Handler) -> Handler:
    """Answers letters of its owner alone, with letters."""
    identity, name = box.identity, box.identity.card.name

    def handler(data: bytes) -> bytes:
        letter = box.opened(data, service, name)
        reply = Letter(OWN_SESSION, letter.number, name, name, REPLY, answer(letter.content))
        return reply.sealed(identity, identity.card)

    return handler


def _answer(
    line: RelayLine, call: IncomingCall, handler: Handler, tell: Callable[[str], None]
) -> None:
    try:
        reply = DONE + handler(call.data)
    except (LabError, SecureAggError) as error:
        reply = REFUSED + _refusal(error)
    except Exception as error:  # a defect: its type may leave, its text may not
        tell(f"a call of {printable(call.caller)} failed with {type(error).__name__}")
        reply = REFUSED + _refusal(PeerError(f"failed with {type(error).__name__}"))
    try:
        line.reply(call, reply)
    except PeerError as error:
        tell(str(error))


def _refusal(error: Exception) -> bytes:
    kind = type(error).__name__ if type(error).__name__ in TRAVELLING else "PeerError"
    culprits = error.culprits if isinstance(error, Blame | PeerError) else ()
    rule = error.rule if isinstance(error, PolicyError) else "gate"
    text = str(error).removeprefix(f"[{rule}] ")
    content = {"kind": kind, "rule": rule, "text": text, "culprits": list(culprits)}
    return json.dumps(content).encode()


def _raise(body: bytes, to: str) -> NoReturn:
    try:
        content = json.loads(body)
        kind, rule, text = (printable(str(content[name])) for name in ("kind", "rule", "text"))
        culprits = [printable(str(name)) for name in content["culprits"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise PeerError(f"{to}: refuses, and does not say why", to) from None
    if kind == "PolicyError":
        raise PolicyError(text, rule)
    if kind == "PeerError" or kind not in TRAVELLING:
        raise PeerError(text, *culprits)
    raise TRAVELLING[kind](text)
