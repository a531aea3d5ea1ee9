"""Calls between members that the exchange passes on; no member listens, each waits for its calls.

    call     a member: bytes for a service of another            -> a number
    next     a member: waits for the next call of its services   -> number, caller, service, bytes
    reply    that member: bytes for a number
    answer   the caller: waits for the reply to a number
    drop     the caller: waits no more
    gone     a member: waits for calls of its services no more

Callers are known by their certificates. What is passed on are letters, sealed and signed; the
exchange learns who calls whom, when, and how many bytes. It keeps nothing on disk, and nothing
longer than a caller waits: whoever was interrupted calls again.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from secure_agg import wire

LINK = "/v1/link/"
#: Calls that wait for something, and are held until it is there.
WAITING = (f"{LINK}next/", f"{LINK}answer/")
#: How the process of the exchange's own folder is called; it comes by the local listener.
COORDINATOR = "coordinator"
FRAME = b"LABRLY01"
SERVICE = re.compile(r"[a-z]{1,20}")
#: A call is forgotten after; a service counts as there since it last waited, which is longer than a
#: wait is held.
EXPIRES_SECONDS, PRESENT_SECONDS = 120.0, 25.0
#: Calls of one member that may be under way, and bytes of them, in largest bodies.
MOST_CALLS, STORED_BODIES = 64, 2


@dataclass
class News:
    """Wakes those who wait for something to be pushed."""

    event: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        self.event.set()
        self.event = asyncio.Event()


class RelayRefusal(Exception):
    """A call that is not passed on. status: of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class RelayedCall:
    """One call under way. at: when it came; taken: whether its recipient has it."""

    caller: str
    to: str
    service: str
    data: bytes
    at: float
    taken: bool = False
    reply: bytes = b""

    @property
    def size(self) -> int:
        return len(self.data) + len(self.reply)


class Relay:
    """All calls under way. limit: bytes of the largest body."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.news = News()
        self._limit, self._clock = limit, clock
        self._calls: dict[str, RelayedCall] = {}  # the oldest first
        self._present: dict[tuple[str, str], float] = {}

    def handle(self, caller: str, path: str, body: bytes) -> bytes:
        """The answer to one request; empty where what it waits for is not there yet.

        Raises RelayRefusal.
        """
        self._forget()
        match path.removeprefix(LINK).split("/"):
            case ["call", service, to] if SERVICE.fullmatch(service):
                return self._call(caller, service, _name(to), body)
            case ["next", services] if all(map(SERVICE.fullmatch, services.split(","))):
                return self._next(caller, services.split(","))
            case ["reply", number]:
                return self._reply(caller, number, body)
            case ["answer", number]:
                return self._answer(caller, number)
            case ["drop", number]:
                if self._of(caller, number):
                    del self._calls[number]
                return b"dropped"
            case ["gone", services]:
                for service in services.split(","):
                    self._present.pop((caller, service), None)
                return b"gone"
            case _:
                raise RelayRefusal(404, "no such route")

    def _call(self, caller: str, service: str, to: str, body: bytes) -> bytes:
        if (to, service) not in self._present:
            raise RelayRefusal(503, "nobody waits for this call")
        own = [call for call in self._calls.values() if call.caller == caller]
        stored = sum(call.size for call in own) + len(body)
        if len(own) >= MOST_CALLS or stored > STORED_BODIES * self._limit:
            raise RelayRefusal(429, "too many calls of this member are under way")
        number = secrets.token_hex(16)
        self._calls[number] = RelayedCall(caller, to, service, body, self._clock())
        self.news.tell()
        return number.encode()

    def _next(self, caller: str, services: list[str]) -> bytes:
        now = self._clock()
        self._present |= {(caller, service): now for service in services}
        for number, call in self._calls.items():
            if call.to == caller and call.service in services and not call.taken:
                call.taken = True
                texts = [number.encode(), call.caller.encode(), call.service.encode()]
                return wire.join(FRAME, [*texts, call.data])
        return b""

    def _reply(self, caller: str, number: str, body: bytes) -> bytes:
        call = self._calls.get(number)
        if call is None or call.to != caller or not call.taken or call.reply or not body:
            raise RelayRefusal(404, "no call under way has this number")
        call.data, call.reply = b"", body
        self.news.tell()
        return b"taken"

    def _answer(self, caller: str, number: str) -> bytes:
        call = self._of(caller, number)
        if call is None:
            raise RelayRefusal(404, "no call under way has this number")
        if call.reply:
            del self._calls[number]
        return call.reply

    def _of(self, caller: str, number: str) -> RelayedCall | None:
        call = self._calls.get(number)
        return call if call is not None and call.caller == caller else None

    def _forget(self) -> None:
        now = self._clock()
        for number, call in list(self._calls.items()):
            if call.at > now - EXPIRES_SECONDS:
                break
            del self._calls[number]
        for place, at in list(self._present.items()):
            if at < now - PRESENT_SECONDS:
                del self._present[place]


def place_of(name: str) -> str:
    """A member's name as it stands in a route."""
    return name.encode().hex()


def _name(place: str) -> str:
    try:
        return bytes.fromhex(place).decode()
    except ValueError:
        raise RelayRefusal(404, "no such route") from None
