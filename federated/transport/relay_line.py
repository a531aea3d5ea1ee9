"""A member's line to the exchange for calls of other members, and for its own (`relay`)."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import httpx

from federated.transport.relay import FRAME, LINK, place_of
from lab.errors import PeerError
from lab.text import printable
from secure_agg import wire
from secure_agg.errors import MalformedMessage

#: Seconds that a request may take, which is longer than one that waits is held.
REQUEST_SECONDS = 60.0
#: Seconds to wait for another member's reply.
PATIENCE_SECONDS = 10.0
#: Seconds that the exchange holds a request that waits.
HELD_SECONDS = 20
#: Connections at a time: the exchange takes some more of one certificate, for a node that runs too.
MOST_CONNECTIONS = 8


@dataclass(frozen=True)
class IncomingCall:
    """A call for this member. caller: by its certificate, as the exchange says."""

    number: str
    caller: str
    service: str
    data: bytes = field(repr=False)


class Unreachable(PeerError):
    """Nobody answered; trying again may help."""


class RelayLine:
    """Calls to and from other members. where: the exchange, in words."""

    def __init__(self, make: Callable[[], httpx.Client], where: str) -> None:
        self._make, self._client, self._where = make, make(), where

    @classmethod
    def over_tls(cls, address: str, tls: ssl.SSLContext) -> RelayLine:
        """The line of a node, by the certificate that it shows."""
        make = partial(
            httpx.Client,
            base_url=f"https://{address}",
            verify=tls,
            timeout=REQUEST_SECONDS,
            limits=httpx.Limits(max_connections=MOST_CONNECTIONS),
            trust_env=False,  # a proxy of the environment gets no letter
        )
        return cls(make, f"the exchange at {address}")

    @classmethod
    def inside(cls, listener: str, headers: dict[str, str]) -> RelayLine:
        """The line of the exchange's own folder, by its local socket."""

        def make() -> httpx.Client:
            transport = httpx.HTTPTransport(uds=listener)
            return httpx.Client(
                base_url="http://exchange",
                transport=transport,
                headers=headers,
                timeout=REQUEST_SECONDS,
            )

        return cls(make, "the exchange")

    def another(self) -> RelayLine:
        """A line of the same member, with connections of its own."""
        return RelayLine(self._make, self._where)

    def call(self, to: str, service: str, data: bytes, patience: float = PATIENCE_SECONDS) -> bytes:
        """Another member's reply. Raises Unreachable, which names it, and PeerError."""
        end = time.monotonic() + patience
        number = self._post(f"call/{service}/{place_of(to)}", data, to).decode()
        while time.monotonic() < end:
            hold = max(1, min(HELD_SECONDS, round(end - time.monotonic())))
            if reply := self._post(f"answer/{number}", b"", to, hold):
                return reply
        self._post(f"drop/{number}", b"", to)
        raise _silent(to)

    def next(self, services: Iterable[str], hold: int = HELD_SECONDS) -> IncomingCall | None:
        """The next call of these services, None after a while without one. Raises PeerError.

        hold: seconds of a while, at most 20
        """
        data = self._post(f"next/{','.join(services)}", b"", "", hold)
        if not data:
            return None
        try:
            *texts, content = wire.split(FRAME, data, 4)
            number, caller, service = map(wire.text, texts)
        except MalformedMessage:
            raise PeerError(f"{self._where}: passes on what is no call") from None
        return IncomingCall(number, caller, service, content)

    def reply(self, call: IncomingCall, data: bytes) -> None:
        """Answer a call; nothing happens where its caller waits no more."""
        try:
            self._post(f"reply/{call.number}", data, call.caller)
        except Unreachable:
            return

    def gone(self, services: Iterable[str]) -> None:
        """Say that nobody waits here any more, if anybody listens."""
        with suppress(PeerError):
            self._post(f"gone/{','.join(services)}", b"", "")

    def close(self) -> None:
        self._client.close()

    def _post(self, route: str, data: bytes, to: str, hold: int = HELD_SECONDS) -> bytes:
        headers = {"lab-hold": str(hold), "content-length": str(len(data))}
        try:
            response = self._client.post(f"{LINK}{route}", content=data, headers=headers)
        except (httpx.HTTPError, RuntimeError) as error:  # the latter: the line was closed
            reason = printable(str(error)[:200]) or type(error).__name__
            raise Unreachable(f"{self._where} does not answer ({reason}); is it served?") from None
        if response.status_code == httpx.codes.OK:
            return response.content
        if to and response.status_code in (404, 503):
            raise _silent(to)
        raise PeerError(f"{self._where} answers {response.status_code}: {_detail(response)}")


def _silent(to: str) -> Unreachable:
    return Unreachable(f"{to}: does not answer; it must run lab link serve, or lab link night", to)


def _detail(response: httpx.Response) -> str:
    try:
        return printable(str(response.json()["detail"])[:200])
    except (ValueError, KeyError, TypeError):
        return "without a reason"
