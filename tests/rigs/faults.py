"""A TCP proxy on loopback that fails as lines do, by a seeded generator."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import numpy as np

KINDS = ("delay", "drop", "cut", "flip", "double", "stall")
#: Seconds of a delay and of a stall; of chunks that come by, the share that fails.
DELAY, STALL, SHARE = 0.2, 1.5, 0.1
#: Chunks of a connection that are let through first: the handshake.
FIRST = 3


class Faults:
    """Passes connections on to a port; `fail` has it fail, `rest` has it stop."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._kinds: tuple[str, ...] = ()
        self._seed, self._left, self.failed, self._made = 0, 0, 0, 0
        self._still, self._lock = threading.Event(), threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def fail(self, kinds: tuple[str, ...], seed: int, times: int) -> None:
        """Fail so often from now on, in these ways."""
        with self._lock:
            self._kinds, self._seed, self._left, self.failed = kinds, seed, times, 0

    def stand_still(self) -> None:
        """Take everything and pass nothing on, until `rest`."""
        self._still.set()

    def rest(self) -> None:
        self._left = 0
        self._still.clear()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._made += 1
            for way, ends in enumerate(((near, far), (far, near))):
                work = (*ends, self._made, way)
                threading.Thread(target=self._pass, args=work, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, number: int, way: int) -> None:
        seen = 0
        try:
            while data := source.recv(16384):
                while self._still.is_set():
                    time.sleep(0.05)
                seen += 1
                kind = self._kind(number, way, seen)
                if not self._sent(sink, data, kind):
                    break
        except OSError:
            pass
        finally:
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _kind(self, number: int, way: int, seen: int) -> str:
        """How this chunk of this connection fails, if it does; the same for the same seed."""
        with self._lock:
            if self._left <= 0 or seen <= FIRST:
                return ""
            rng = np.random.default_rng([self._seed, number, way, seen])
            if rng.random() >= SHARE:
                return ""
            self._left, self.failed = self._left - 1, self.failed + 1
            return str(rng.choice(self._kinds))

    @staticmethod
    def _sent(sink: socket.socket, data: bytes, kind: str) -> bool:
        """Pass a chunk on, as this kind of failure has it; whether the connection goes on."""
        match kind:
            case "delay":
                time.sleep(DELAY)
            case "stall":
                time.sleep(STALL)
            case "drop":
                return False
            case "cut":
                sink.sendall(data[: len(data) // 2])
                return False
            case "flip":
                at = len(data) // 2
                data = data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :]
            case "double":
                data += data
        sink.sendall(data)
        return True
