"""The guard of the public listener: how many connections it holds, for whom and for how long.

Anybody can open a connection, and each takes a descriptor and a buffer before TLS knows who calls.
A connection is *pending* until its peer has shown a valid client certificate and made a request.
Pending connections are few and end soon. Where there are too many, the one that has waited longest
is closed at once, and not the newest: a member is done within a few round trips, so that whoever
only holds connections open loses them before a member does. Where several addresses fill the
listener, the one with the most pending connections gives way.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from errno import EMFILE, ENFILE
from ipaddress import IPv6Address, IPv6Network, ip_address
from socket import SHUT_RDWR
from socket import socket as Socket
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from federated.transport.reply_quota import STORED_BODIES

#: Seconds from a connection's start to its first request. A handshake takes two round trips; this
#: leaves room for a packet that is lost twice, and is short for somebody who only waits.
PENDING_SECONDS = 5.0
#: Pending connections of all addresses: at about 300 KB of buffers each, some 80 MB, and up to as
#: much again for those that are closing.
MOST_PENDING = 256
#: Pending connections of one address. Behind one there may be several members that start together.
MOST_PENDING_OF_ADDRESS = 32
#: Connections of one address, pending or not. A node needs two, so 32 nodes may share an address.
MOST_OF_ADDRESS = 64
#: Connections that one certificate's key may hold; a node needs two.
MOST_LINES = 16
#: Descriptors kept for the local socket and its callers, files, logs and the libraries' own.
RESERVED_DESCRIPTORS = 200
#: Connections in all: at 300 KB each, some 300 MB.
MOST_CONNECTIONS = 1024
#: Connections accepted before whoever is connected already is served again, so that a flood of
#: new ones holds the others up for some milliseconds and no longer.
ACCEPTED_A_TURN = 64
#: Connections closed without a request before their memory is freed. A handshake that fails leaves
#: its exception in a circle with its buffers, and Python looks for old circles once in a long while.
CLOSED_A_COLLECTION = 128
#: Leading bits of an IPv6 address that a provider gives; its customer chooses the rest at will.
IPV6_CUSTOMER_BITS = 64
#: What a request's state knows of its peer: the connection, the key of the certificate that it
#: shook hands with, and when that certificate ends, in Unix time.
PEER_LINE, PEER_KEY, PEER_END = "peer_line", "peer_key", "peer_end"

Note = Callable[[str], None]


def connection_capacity() -> int:
    """Connections from outside that this process may hold: its descriptors, less the reserve.

    At least half of its descriptors, so that a low limit does not shut the listener.
    """
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(descriptors - RESERVED_DESCRIPTORS, descriptors // 2)


@dataclass(frozen=True)
class ConnectionLimits:
    """Connections in all, of one address, pending, pending of one address; seconds of pending;
    connections of one certificate's key."""

    total: int = MOST_CONNECTIONS
    of_address: int = MOST_OF_ADDRESS
    pending: int = MOST_PENDING
    pending_of_address: int = MOST_PENDING_OF_ADDRESS
    pending_seconds: float = PENDING_SECONDS
    of_node: int = MOST_LINES

    def within_process(self) -> ConnectionLimits:
        """These limits where this process's descriptors allow them, else what these allow; at most
        half of all connections are pending."""
        total = min(self.total, connection_capacity())
        return replace(self, total=total, pending=min(self.pending, total // 2))


@dataclass(frozen=True)
class ListenerLimits:
    """What the public listener takes. body_bytes: of a request; stored_bodies: so many of these of
    one node's replies may be stored that nobody has fetched."""

    body_bytes: int
    stored_bodies: int = STORED_BODIES
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)


class GuardedLine(Socket):
    """An accepted connection, which counts until it is closed.

    address: whom it counts for; left: whether it was ended and counts for nobody any more.
    """

    def __init__(self, accepted: Socket, address: str, guard: ConnectionGuard) -> None:
        family, kind, protocol = accepted.family, accepted.type, accepted.proto
        super().__init__(family, kind, protocol, fileno=accepted.detach())
        self.address, self.left, self._guard = address, False, guard

    def settle(self) -> None:
        """Be pending no more: the peer has a valid certificate and made a request."""
        self._guard.settle(self)

    def close(self) -> None:
        self._guard.forget(self)
        super().close()


class GuardedListener(Socket):
    """A listening socket that hands out the connections that its guard admits, and no others."""

    def __init__(self, listener: Socket, guard: ConnectionGuard) -> None:
        family, kind, protocol = listener.family, listener.type, listener.proto
        super().__init__(family, kind, protocol, fileno=listener.detach())
        self._guard, self._accepted = guard, 0

    def accept(self) -> tuple[Socket, Any]:
        """The next connection and its peer. Raises BlockingIOError if there is none this turn."""
        while self._accepted < ACCEPTED_A_TURN:
            try:
                accepted, peer = super().accept()
            except OSError as error:
                self._accepted = 0
                if error.errno not in (EMFILE, ENFILE):
                    raise
                self._guard.yield_descriptor()
                raise BlockingIOError("no descriptor is free this turn") from None
            self._accepted += 1
            line = self._guard.admitted(accepted, str(peer[0]))
            if line is not None:
                return line, peer
        self._accepted = 0
        raise BlockingIOError("the others' turn")


class ConnectionGuard:
    """Counts the connections of one listener and ends what is too many or silent for too long.

    limits: None admits everybody for as long as they like. note: is told in words what was closed.
    """

    def __init__(self, limits: ConnectionLimits | None, note: Note = lambda what: None) -> None:
        self._limits, self._note = limits, note
        self._open: dict[int, GuardedLine] = {}
        self._pending: dict[GuardedLine, asyncio.TimerHandle | None] = {}  # the oldest first
        self._pending_of: Counter[str] = Counter()
        self._live_of: Counter[str] = Counter()  # without those that were ended and are closing
        self._closed = 0  # without a request, since their memory was freed

    def line(self, descriptor: int) -> GuardedLine:
        """The open connection with this descriptor."""
        return self._open[descriptor]

    def admitted(self, accepted: Socket, host: str) -> GuardedLine | None:
        """The connection, pending; None, and it is closed, where there is no room for it."""
        address = customer(host)
        if not self._has_room(address):
            accepted.close()
            return None
        line = GuardedLine(accepted, address, self)
        self._open[line.fileno()] = line
        self._pending_of[address] += 1
        self._live_of[address] += 1
        self._pending[line] = None
        if self._limits is not None:
            loop, seconds = asyncio.get_running_loop(), self._limits.pending_seconds
            self._pending[line] = loop.call_later(seconds, self._expire, line)
        return line

    def yield_descriptor(self) -> None:
        """Give up a pending connection, because others took the descriptors that were reserved.

        Left to it, asyncio would print a trace and set a timer for each try, and thousands of both.
        """
        self._end_oldest(None)

    def settle(self, line: GuardedLine) -> None:
        """Count a connection as pending no more; nothing to one that was ended."""
        if line not in self._pending:
            return
        if (timer := self._pending.pop(line)) is not None:
            timer.cancel()
        _decrease(self._pending_of, line.address)

    def forget(self, line: GuardedLine) -> None:
        """Count a connection no more, because it closes; again is nothing new."""
        if self._open.get(line.fileno()) is not line:
            return
        self._closed += line.left or line in self._pending
        self._leave(line)
        del self._open[line.fileno()]
        if self._closed >= CLOSED_A_COLLECTION:
            self._closed = 0
            gc.collect()

    def _has_room(self, address: str) -> bool:
        """Whether one more may come from an address; makes room by ending pending ones."""
        limits = self._limits
        if limits is None:
            return True
        if len(self._open) >= limits.total:
            self._end_oldest(None)  # its descriptor is free only after this turn
            self._note("connections closed: as many as this process may hold were open")
            return False
        if self._live_of[address] >= limits.of_address and not self._pending_of[address]:
            self._note("connections closed: as many as one address may hold were open")
            return False
        too_many = self._live_of[address] >= limits.of_address
        if too_many or self._pending_of[address] >= limits.pending_of_address:
            self._end_oldest(address)
        elif len(self._pending) >= limits.pending:
            self._end_oldest(None)
        return True

    def _end_oldest(self, address: str | None) -> None:
        """End the pending connection that waited longest; None: of the address with the most."""
        if address is None and self._pending_of:
            address = self._pending_of.most_common(1)[0][0]
        oldest = next((line for line in self._pending if line.address == address), None)
        if oldest is not None:
            self._end(oldest)
            self._note("connections closed: too many had made no request yet")

    def _expire(self, line: GuardedLine) -> None:
        if line in self._pending:
            self._end(line)
            self._note("connections closed: no request was made in time")

    def _end(self, line: GuardedLine) -> None:
        """Hang up; the event loop then finds the end of the stream, and closes the socket."""
        self._leave(line)
        with suppress(OSError):  # the peer was faster
            line.shutdown(SHUT_RDWR)

    def _leave(self, line: GuardedLine) -> None:
        """Take a connection off the counts of its address, once."""
        if line.left:
            return
        line.left = True
        self.settle(line)
        _decrease(self._live_of, line.address)


def freeze_memory() -> None:
    """Have the collections look no more at what is in memory now, which is libraries for the most
    part; one takes a few milliseconds then, and half a second otherwise."""
    gc.collect()
    gc.freeze()


def _decrease(counts: Counter[str], address: str) -> None:
    counts[address] -= 1
    if counts[address] <= 0:
        del counts[address]


def customer(host: str) -> str:
    """Whom an address counts for: itself, or in IPv6 the network that one customer is given."""
    address = ip_address(host.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((address, IPV6_CUSTOMER_BITS), strict=False))


def peer_protocol(guard: ConnectionGuard, of_node: int) -> type[asyncio.Protocol]:
    """HTTP as uvicorn speaks it, with the connection, key and certificate's end of each peer.

    of_node: connections that one key may hold.
    """
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Peer(H11Protocol):
        """A connection from outside whose handshake is done, so that it is known whose it is."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            key, end = certificate_of(transport)
            line = guard.line(transport.get_extra_info("socket").fileno())
            self.app_state = {**self.app_state, PEER_LINE: line, PEER_KEY: key, PEER_END: end}
            same = [c for c in self.connections if c.app_state.get(PEER_KEY) == key]
            if len(same) > of_node:
                transport.close()

    return Peer


def certificate_of(transport: asyncio.Transport) -> tuple[bytes, float]:
    """The public key of the peer's certificate, PEM, and when the certificate ends, in Unix time."""
    line = transport.get_extra_info("ssl_object")
    certificate = x509.load_der_x509_certificate(line.getpeercert(binary_form=True) or b"")
    key = certificate.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return key, certificate.not_valid_after_utc.timestamp()
