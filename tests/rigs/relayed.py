"""A relay of real HTTP on a local socket, for tests of who calls through it; TLS alone is missing."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from federated.transport.listener import HttpRefusal, Listener, passed_on
from federated.transport.relay import Relay
from federated.transport.relay_line import RelayLine

LIMIT = 2**22


class Post:
    """Lines of any member, by the name it says in place of its certificate."""

    def __init__(self, socket: Path, relay: Relay, shut: Callable[[], None]) -> None:
        self._socket, self._relay, self.shut = socket, relay, shut
        self._lines: list[RelayLine] = []

    def line(self, name: str) -> RelayLine:
        line = RelayLine.inside(str(self._socket), {"x-name": name.encode().hex()})
        self._lines.append(line)
        return line

    def until_there(self, name: str, service: str) -> None:
        """Wait until a member waits for calls of a service."""
        end = time.monotonic() + 20
        while (name, service) not in self._relay._present:
            assert time.monotonic() < end, f"{name} does not come"
            time.sleep(0.002)

    def close(self) -> None:
        for line in self._lines:
            line.close()


async def _nobody(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no other application is here")


@contextmanager
def post() -> Iterator[Post]:
    """The relay, until the block is left; its socket has a short path, as sockets need."""
    relay, shut = Relay(LIMIT), threading.Event()

    async def ask(scope: Any, body: bytes) -> Any:
        if shut.is_set():
            raise HttpRefusal(410, "the test is over")
        name = dict(scope["headers"])[b"x-name"]
        return passed_on(relay, bytes.fromhex(name.decode()).decode(), scope, body)

    listener = Listener(_nobody, lambda scope: None, ask, LIMIT, relay.news)
    folder = tempfile.TemporaryDirectory()
    socket = Path(folder.name) / "post.sock"
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
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve()))
    thread.start()

    def close() -> None:
        """Let nobody wait any more."""
        shut.set()
        loop.call_soon_threadsafe(relay.news.tell)

    while not server.started:
        assert thread.is_alive(), "the relay did not start"
        threading.Event().wait(0.005)
    opened = Post(socket, relay, close)
    try:
        yield opened
    finally:
        opened.close()
        server.should_exit = True
        thread.join()
        loop.close()
        folder.cleanup()
