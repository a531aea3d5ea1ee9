"""The broker: Flower's SuperLink, its state and its handlers, behind a public and a local listener.

Flower serves nodes, runs and its unauthenticated control of both on one port. Here one process
opens two. The public listener speaks TLS 1.3 to holders of a client certificate and passes on the
node routes and members' calls of each other alone, for keys that are registered and not revoked.
The local listener is a socket in the exchange's folder, for callers that also know its secret.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from socket import socket as Socket
from typing import TYPE_CHECKING, Literal

from federated.transport.connections import (
    PEER_KEY,
    ConnectionGuard,
    GuardedListener,
    ListenerLimits,
    freeze_memory,
    peer_protocol,
)
from federated.transport.listener import (
    FLEET,
    HEALTH,
    RUNTIME,
    Answer,
    App,
    Event,
    Listener,
    Register,
    Scope,
    headers_of,
    inner_check,
    outer_check,
    passed_on,
    typed,
)
from federated.transport.relay import COORDINATOR, LINK, Relay
from federated.transport.reply_quota import ReplyQuota

if TYPE_CHECKING:
    import uvicorn

LARGEST_INSIDE = 2**31


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

    async def _for_nodes(
        self, register: Register, relay: Relay, quota: ReplyQuota, scope: Scope, body: bytes
    ) -> Answer:
        from federated.transport import handlers

        if scope["path"] == HEALTH:
            return 200, [], b""
        if scope["path"].startswith(LINK):
            return passed_on(relay, register.name_of(scope["state"][PEER_KEY]), scope, body)
        name = scope["path"].removeprefix(FLEET)
        return typed(handlers.of_node(name, self._app, headers_of(scope), body, quota))

    async def _for_runs(self, relay: Relay, scope: Scope, body: bytes) -> Answer:
        from federated.transport import handlers

        if scope["path"].startswith(LINK):
            return passed_on(relay, COORDINATOR, scope, body)
        name = scope["path"].removeprefix(RUNTIME)
        if scope["path"].startswith(RUNTIME) and name in handlers.RUNS:
            return typed(handlers.of_run(name, self._app, headers_of(scope), body))
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
        relay, quota = Relay(size), ReplyQuota(limits.stored_bodies * size)
        for_nodes = partial(self._for_nodes, register, relay, quota)
        for_runs = partial(self._for_runs, relay)
        outside = Listener(self._app, outer_check(register), for_nodes, size, relay.news)
        inside = Listener(
            self._app, inner_check(self._secret), for_runs, LARGEST_INSIDE, relay.news
        )
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
