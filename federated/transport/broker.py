"""The broker: Flower's SuperLink, its state and its handlers, behind a public and a local listener.

Flower serves nodes, runs and its unauthenticated control of both on one port. Here one process
opens two. The public listener speaks TLS 1.3 to holders of a client certificate and passes on the
node routes alone, for keys that are registered and not revoked. The local listener is a socket in
the exchange's folder, for callers that also know its secret. Check and router read the same parsed
request, so they cannot disagree about a path, as a proxy and a server can.

A pull that finds nothing is held until something is pushed, so that nobody polls.
"""

from __future__ import annotations

import asyncio
import binascii
import hmac
import json
import logging
import ssl
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from socket import socket as Socket
from typing import TYPE_CHECKING, Any, Literal, Protocol

from federated.transport.connections import (
    PEER_END,
    PEER_KEY,
    PEER_LINE,
    ConnectionGuard,
    GuardedListener,
    ListenerLimits,
    freeze_memory,
    peer_protocol,
)
from federated.transport.node_line import BARRED
from federated.transport.reply_quota import ReplyQuota

if TYPE_CHECKING:
    import uvicorn

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET, RUNTIME = "/v1/fleet/", "/v1/runtime/"
PULLS = (f"{FLEET}pull-messages", f"{RUNTIME}pull-messages")
HEALTH = "/health"
SECRET, KEY, LAST, HOLD = b"lab-secret", b"flwr-public-key", b"lab-last", b"lab-hold"
#: Seconds an empty pull is held; seconds within which a body must have come.
HELD, BODY_SECONDS = 20.0, 60.0
LARGEST_INSIDE = 2**31
#: Status, headers and body of an answer.
Answer = tuple[int, list[tuple[bytes, bytes]], bytes]
Ask = Callable[[Scope, bytes], Awaitable[Answer]]


class Register(Protocol):
    """Who may come in, as the exchange's folder says at this moment."""

    def standing(self, key: bytes) -> str:
        """``admitted``, ``revoked`` or ``unknown``; looked up anew for every request."""

    def note(self, kind: str, **details: Any) -> None:
        """Write down what the listener refused."""


@dataclass
class News:
    """Wakes those who wait for something to be pushed."""

    event: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self) -> None:
        self.event.set()
        self.event = asyncio.Event()


class HttpRefusal(Exception):
    """What a listener answers instead of passing a request on."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Listener:
    """One way into the broker: checks a request by its head, reads its body, holds empty pulls."""

    def __init__(self, app: App, check: Callable[[Scope], None], ask: Ask, limit: int) -> None:
        self._app, self._check, self._ask, self._limit = app, check, ask, limit
        self.hears, self.tells = News(), News()

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
                wake_event = self.hears.event
                status, headers, answer = await self._ask(scope, body)
                seconds_left = end - asyncio.get_running_loop().time()
                if scope["path"] not in PULLS or status != 200 or answer or seconds_left <= 0:
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


def _headers(scope: Scope) -> dict[str, str]:
    """Headers by name; one that comes twice is refused, so that nobody reads another than we do."""
    names = [name for name, _ in scope["headers"]]
    if len(set(names)) != len(names):
        raise HttpRefusal(400, "a header occurs twice")
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _typed(result: tuple[int, bytes]) -> Answer:
    status, body = result
    kind = b"application/protobuf" if status == 200 else b"application/json"
    return status, [(b"content-type", kind), (b"content-length", str(len(body)).encode())], body


async def _call(app: App, scope: Scope, body: bytes) -> Answer:
    """One call of an application with a whole body, for a whole answer."""
    events: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]
    start: Event = {"status": 500, "headers": []}
    parts: list[bytes] = []
    never = asyncio.get_running_loop().create_future()

    async def receive() -> Event:
        if not events:
            await never
        return events.pop()

    async def send(event: Event) -> None:
        if event["type"] == "http.response.start":
            start.update(event)
        else:
            parts.append(event.get("body", b""))

    state = dict(scope.get("state", {}))
    await app({**scope, "state": state}, receive, send)
    return int(start["status"]), start["headers"], b"".join(parts)


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
        if scope["path"].removeprefix(FLEET) not in NODES or not scope["path"].startswith(FLEET):
            register.note("fault", rule="route", what="call to a route that is not open to nodes")
            raise HttpRefusal(404, "no such route")
        if scope["method"] != "POST":
            raise HttpRefusal(405, "node routes take POST alone")
        try:
            key = b64decode(_header(scope, KEY), validate=True)
        except binascii.Error:
            key = b""
        if (standing := register.standing(key)) != "admitted":
            register.note("fault", rule="registration", what=f"call with a key that is {standing}")
            raise HttpRefusal(403, f"{BARRED} {standing} here")
        if key != scope["state"][PEER_KEY]:
            register.note(
                "fault", rule="certificate", what="call with the certificate of another key"
            )
            raise HttpRefusal(403, f"{BARRED} not the key of its certificate")

    return check


def inner_check(secret: str) -> Callable[[Scope], None]:
    """Every route, for who knows the secret."""

    def check(scope: Scope) -> None:
        if not hmac.compare_digest(_header(scope, SECRET), secret.encode()):
            raise HttpRefusal(403, "the header lab-secret must hold the exchange's secret")

    return check


class Broker:
    """A SuperLink in this process: `register` its nodes, `serve` both listeners.

    guarded: whether the number of connections from outside and their silence are limited.
    """

    def __init__(self, secret: str, guarded: bool = True) -> None:
        from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
        from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
        from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
        from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
        from flwr.superlink.main import create_app

        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        config = SuperLinkLifespanConfig(
            control_address="127.0.0.1:0",
            health_server_address=None,
            host="127.0.0.1",
            port=0,
            insecure=True,  # TLS is the public listener's
            certificates=None,
            superexec_auth_secret=secret.encode(),
            authn_plugin=load_control_authn_plugin(),
            event_log_plugin=None,
            fleet_event_log_plugin=None,
            enable_event_log=False,
            artifact_provider=None,
            enable_supernode_auth=True,
            fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
            fleet_api_address=None,
            simulation=False,
            ssl_ca_certfile=None,
            ssl_certfile=None,
            ssl_keyfile=None,
            database=FLWR_IN_MEMORY_DB_NAME,
            isolation=ISOLATION_MODE_PROCESS,  # it starts no process of its own
            runtime_dependency_install=False,
        )
        self._app = create_app(config, SuperLinkLifespan)
        self._secret, self._guarded = secret, guarded

    def register(self, name: str, key: bytes) -> None:
        """Let a node's key be known to Flower; again is nothing new."""
        from flwr.common.constant import (
            HEARTBEAT_DEFAULT_INTERVAL,
            NOOP_ACCOUNT_NAME,
            NOOP_FLWR_AID,
        )

        state = self._app.state.linkstate_factory.state()
        if state.get_node_id_by_public_key(key) is None:
            state.create_node(
                NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_DEFAULT_INTERVAL, name=name
            )

    def leave(self, key: bytes) -> None:
        """Count a node as gone at once."""
        state = self._app.state.linkstate_factory.state()
        if (node := state.get_node_id_by_public_key(key)) is not None:
            state.deactivate_node(node)

    async def _for_nodes(self, quota: ReplyQuota, scope: Scope, body: bytes) -> Answer:
        from federated.transport import handlers

        if scope["path"] == HEALTH:
            return 200, [], b""
        name = scope["path"].removeprefix(FLEET)
        return _typed(handlers.of_node(name, self._app, _headers(scope), body, quota))

    async def _for_runs(self, scope: Scope, body: bytes) -> Answer:
        from federated.transport import handlers

        name = scope["path"].removeprefix(RUNTIME)
        if scope["path"].startswith(RUNTIME) and name in handlers.RUNS:
            return _typed(handlers.of_run(name, self._app, _headers(scope), body))
        return await _call(self._app, scope, body)

    async def serve(
        self,
        register: Register,
        outer: Socket,
        inner: Socket,
        tls: ssl.SSLContext,
        limits: ListenerLimits,
        stop: asyncio.Event,
    ) -> None:
        """Serve on two bound sockets until `stop` is set."""
        freeze_memory()
        size, connections = limits.body_bytes, limits.connections
        for_nodes = partial(self._for_nodes, ReplyQuota(limits.stored_bodies * size))
        outside = Listener(self._app, outer_check(register), for_nodes, size)
        inside = Listener(self._app, inner_check(self._secret), self._for_runs, LARGEST_INSIDE)
        outside.hears, outside.tells = inside.tells, inside.hears
        guard = ConnectionGuard(
            connections.within_process() if self._guarded else None,
            lambda what: register.note("fault", rule="connections", what=what),
        )
        protocol = peer_protocol(guard, connections.of_node)
        servers = [_server(inside, "on"), _server(outside, "off", tls, protocol)]
        work = [
            asyncio.create_task(server.serve([socket]))
            for server, socket in zip(servers, (inner, GuardedListener(outer, guard)), strict=True)
        ]
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait([*work, waiting], return_when=asyncio.FIRST_COMPLETED)
        for server in servers:
            server.should_exit = True
        waiting.cancel()
        await asyncio.gather(*work)


def _server(
    app: App,
    lifespan: Literal["on", "off"],
    tls: ssl.SSLContext | None = None,
    protocol: type[asyncio.Protocol] | Literal["h11"] = "h11",
) -> uvicorn.Server:
    """A server of one listener. protocol: what a connection is once its handshake is done."""
    import uvicorn

    class Quiet(uvicorn.Server):
        """A server that leaves signals to whoever runs it."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app,
        lifespan=lifespan,
        ssl_context_factory=(lambda config, default: tls) if tls else None,
        log_config=None,
        log_level=logging.CRITICAL,
        access_log=False,
        server_header=False,
        http=protocol,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=2,
        limit_concurrency=500,
    )
    return Quiet(config)
