"""One way into the broker: checks a request by its head, reads its body, holds what waits.

Check and router read the same parsed request, so they cannot disagree about a path, as a proxy and
a server can. A pull that finds nothing is held until something is pushed, so that nobody polls.
"""

from __future__ import annotations

import asyncio
import binascii
import hmac
import json
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from federated.transport.connections import PEER_END, PEER_KEY, PEER_LINE
from federated.transport.node_line import BARRED
from federated.transport.relay import LINK, WAITING, News, Relay, RelayRefusal

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET, RUNTIME = "/v1/fleet/", "/v1/runtime/"
PULLS = (f"{FLEET}pull-messages", f"{RUNTIME}pull-messages", *WAITING)
HEALTH = "/health"
SECRET, KEY, LAST, HOLD = b"lab-secret", b"flwr-public-key", b"lab-last", b"lab-hold"
#: Seconds an empty pull is held; seconds within which a body must have come.
HELD, BODY_SECONDS = 20.0, 60.0
#: Status, headers and body of an answer.
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
Ask = Callable[[Scope, bytes], Awaitable[Answer]]


class Register(Protocol):
    """Who may come in, as the exchange's folder says at this moment."""

    def standing(self, key: bytes) -> str:
        """``admitted``, ``revoked`` or ``unknown``; looked up anew for every request."""

    def name_of(self, key: bytes) -> str:
        """The member whose key this is."""

    def note(self, kind: str, **details: Any) -> None:
        """Write down what the listener refused."""


class HttpRefusal(Exception):
    """What a listener answers instead of passing a request on."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Listener:
    """One way into the broker: checks a request by its head, reads its body, holds empty pulls."""

    def __init__(
        self, app: App, check: Callable[[Scope], None], ask: Ask, limit: int, relayed: News
    ) -> None:
        self._app, self._check, self._ask, self._limit = app, check, ask, limit
        self.hears, self.tells, self.relayed = News(), News(), relayed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        try:
            if scope["type"] != "http":
                raise HttpRefusal(404, "no such route")
            self._check(scope)
            body = await self._body(scope, receive)
            status, headers, answer = await self._held(scope, receive, body)
        except HttpRefusal as error:
            await _answer(send, error.status, json.dumps({"detail": str(error)}).encode())
            return
        if status == 200 and _header(scope, LAST):
            self.tells.tell()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body; one that is too long is refused before any of it is read."""
        if scope["method"] in ("GET", "HEAD"):
            return b""
        length = _header(scope, b"content-length")
        if not length.isdigit():
            raise HttpRefusal(411, "a request with a body needs the header content-length")
        if int(length) > self._limit:
            raise HttpRefusal(413, f"the body has {int(length)} bytes, the limit is {self._limit}")
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while (event := await receive())["type"] == "http.request":
                    body += event.get("body", b"")
                    if not event.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise HttpRefusal(408, f"the body did not arrive within {BODY_SECONDS:g} s") from None
        raise HttpRefusal(400, "the body is incomplete")

    async def _held(self, scope: Scope, receive: Receive, body: bytes) -> Answer:
        """The broker's answer; to a pull that finds nothing, the one after the next push."""
        hold = _header(scope, HOLD)
        end = asyncio.get_running_loop().time() + (min(int(hold), HELD) if hold.isdigit() else HELD)
        departure: asyncio.Future[Event] | None = None
        try:
            while True:
                news = self.relayed if scope["path"].startswith(LINK) else self.hears
                wake_event = news.event
                status, headers, answer = await self._ask(scope, body)
                seconds_left = end - asyncio.get_running_loop().time()
                if (
                    not scope["path"].startswith(PULLS)
                    or status != 200
                    or answer
                    or seconds_left <= 0
                ):
                    return status, headers, answer
                departure = departure or asyncio.ensure_future(receive())
                wake = asyncio.ensure_future(wake_event.wait())
                futures: set[asyncio.Future[Any]] = {departure, wake}
                done, _ = await asyncio.wait(
                    futures, timeout=seconds_left, return_when=asyncio.FIRST_COMPLETED
                )
                wake.cancel()
                if (
                    departure in done
                ):  # whoever waited has left; what comes now is not for a closed line
                    return status, headers, answer
        finally:
            if departure is not None:
                departure.cancel()


def _header(scope: Scope, name: bytes) -> bytes:
    values = [value for key, value in scope["headers"] if key == name]
    if len(values) > 1:
        raise HttpRefusal(400, f"the header {name.decode()} occurs twice")
    return bytes(values[0]) if values else b""


def headers_of(scope: Scope) -> dict[str, str]:
    """Headers by name; one that comes twice is refused, so that nobody reads another than we do."""
    names = [name for name, _ in scope["headers"]]
    if len(set(names)) != len(names):
        raise HttpRefusal(400, "a header occurs twice")
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def passed_on(relay: Relay, caller: str, scope: Scope, body: bytes) -> Answer:
    """The relay's answer to a call of this member."""
    try:
        return typed((200, relay.handle(caller, scope["path"], body)))
    except RelayRefusal as error:
        raise HttpRefusal(error.status, str(error)) from None


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def outer_check(register: Register) -> Callable[[Scope], None]:
    """Node routes alone, for keys in good standing; that the key is the peer's, Flower checks."""

    def check(scope: Scope) -> None:
        from federated.transport.handlers import NODES

        if scope["state"][PEER_END] < time.time():  # TLS looked at it when the connection was made
            register.note("fault", rule="certificate", what="call with an expired certificate")
            raise HttpRefusal(
                403, f"{BARRED} not certified any more: its certificate has expired; renew it"
            )
        scope["state"][PEER_LINE].settle()
        if scope["path"] == HEALTH:
            return
        if scope["path"].startswith(LINK):
            _admit(register, scope, scope["state"][PEER_KEY])
            return
        if scope["path"].removeprefix(FLEET) not in NODES or not scope["path"].startswith(FLEET):
            register.note("fault", rule="route", what="call to a route that is not open to nodes")
            raise HttpRefusal(404, "no such route")
        try:
            key = b64decode(_header(scope, KEY), validate=True)
        except binascii.Error:
            key = b""
        _admit(register, scope, key)
        if key != scope["state"][PEER_KEY]:
            register.note(
                "fault", rule="certificate", what="call with the certificate of another key"
            )
            raise HttpRefusal(403, f"{BARRED} not the key of its certificate")

    return check


def _admit(register: Register, scope: Scope, key: bytes) -> None:
    """A POST of a key in good standing, or a refusal."""
    if scope["method"] != "POST":
        raise HttpRefusal(405, "node routes take POST alone")
    if (standing := register.standing(key)) != "admitted":
        register.note("fault", rule="registration", what=f"call with a key that is {standing}")
        raise HttpRefusal(403, f"{BARRED} {standing} here")


def inner_check(secret: str) -> Callable[[Scope], None]:
    """Every route, for who knows the secret."""

    def check(scope: Scope) -> None:
        if not hmac.compare_digest(_header(scope, SECRET), secret.encode()):
            raise HttpRefusal(403, "the header lab-secret must hold the exchange's secret")

    return check


def typed(result: tuple[int, bytes]) -> Answer:
    status, body = result
    kind = b"application/protobuf" if status == 200 else b"application/json"
    return status, [(b"content-type", kind), (b"content-length", str(len(body)).encode())], body
