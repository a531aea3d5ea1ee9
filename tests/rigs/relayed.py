"""A relay of real HTTP on a local socket, for tests of who calls through it; TLS alone is missing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from federated.transport.listener import Listener, passed_on
from federated.transport.relay import Relay
from federated.transport.relay_line import RelayLine

LIMIT = 2**22


class Post:
    """Lines of any member, by the name it says in place of its certificate."""

    def __init__(self, socket: Path) -> None:
        self._socket, self._lines = socket, []  # type: ignore[var-annotated]

    def line(self, name: str) -> RelayLine:
        line = RelayLine.inside(str(self._socket), {"x-name": name.encode().hex()})
        self._lines.append(line)
        return line

    def close(self) -> None:
        for line in self._lines:
            line.close()


async def _nobody(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no other application is here")


@contextmanager
def post(folder: Path) -> Iterator[Post]:
    """The relay, until the block is left. folder: with a short path, for a socket."""
    relay = Relay(LIMIT)

    async def ask(scope: Any, body: bytes) -> Any:
        name = dict(scope["headers"])[b"x-name"]
        return passed_on(relay, bytes.fromhex(name.decode()).decode(), scope, body)

    listener = Listener(_nobody, lambda scope: None, ask, LIMIT, relay.news)
    socket = folder / "post.sock"
    config = uvicorn.Config(
        listener,
        uds=str(socket),
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=1,
        http="h11",
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the relay did not start"
        threading.Event().wait(0.005)
    opened = Post(socket)
    try:
        yield opened
    finally:
        opened.close()
        server.should_exit = True
        thread.join()
