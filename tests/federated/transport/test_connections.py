"""What somebody without a certificate can hold open at the public listener, on real sockets."""

from __future__ import annotations

import functools
import http.client
import multiprocessing
import os
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from federated.deployment import certificates
from federated.deployment.coordinator import exchange
from federated.deployment.node.rules.settings import AUTHORITY, CERTIFICATE, KEY, admission_of
from federated.transport import broker, connections
from federated.transport.connections import (
    MOST_CONNECTIONS,
    MOST_OF_ADDRESS,
    MOST_PENDING,
    MOST_PENDING_OF_ADDRESS,
    PENDING_SECONDS,
    RESERVED_DESCRIPTORS,
    ConnectionLimits,
)
from lab.errors import ConfigurationError
from tests.rigs.trial import Trial

#: Silent connections of the test; seconds within which a member's request must have succeeded.
SILENT, SOON_SECONDS = 300, 2.0
#: The descriptors of a process that nobody configured, and the connections that shut it.
DESCRIPTORS, SHUT = 1024, 1224
_fork = multiprocessing.get_context("forkserver")


def serve(folder: Path, guarded: bool) -> None:
    """An exchange, as ``lab exchange serve`` runs it, with as few descriptors as is usual."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    broker.Broker = functools.partial(broker.Broker, guarded=guarded)  # type: ignore[misc,assignment]
    exchange.serve(folder)


@contextmanager
def serving(trial: Trial, guarded: bool) -> Iterator[Trial]:
    process = _fork.Process(target=serve, args=(trial.exchange, guarded))
    process.start()
    trial.until(lambda: (trial.exchange / exchange.LOCAL_SOCKET).exists(), 60)
    try:
        yield trial
    finally:
        process.terminate()
        process.join(20)


@pytest.fixture(scope="module")
def founded(tmp_path_factory: Any, authority_key: Any) -> Trial:
    made = Trial(tmp_path_factory.mktemp("guard"), authority_key, insurers=3, rows=60)
    admission_of(made.root / "insurer 1", "insurer 1")
    return made


@pytest.fixture(scope="module")
def guarded(founded: Trial) -> Iterator[Trial]:
    with serving(founded, guarded=True) as trial:
        yield trial


def member_tls(trial: Trial) -> ssl.SSLContext:
    folder = trial.root / "insurer 1"
    return certificates.client_side(folder / AUTHORITY, folder / CERTIFICATE, folder / KEY)


def silent(trial: Trial, stack: ExitStack, count: int, first: int = 1) -> list[socket.socket]:
    """Connections from 127.0.0.`first` that never say a word."""
    lines = []
    for _ in range(count):
        line = socket.create_connection(
            ("127.0.0.1", trial.port), timeout=5, source_address=(f"127.0.0.{first}", 0)
        )
        line.setblocking(False)
        lines.append(stack.enter_context(line))
    return lines


def still_open(lines: list[socket.socket]) -> int:
    """How many of them the exchange has not closed."""
    return sum(_is_open(line) for line in lines)


def _is_open(line: socket.socket) -> bool:
    try:
        return bool(line.recv(1))
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    except OSError:
        return False


def seconds_of_a_request(trial: Trial) -> float:
    """What a member's request takes, from its connection to the answer."""
    start = time.monotonic()
    context = member_tls(trial)
    line = http.client.HTTPSConnection("127.0.0.1", trial.port, timeout=10, context=context)
    line.request("POST", broker.HEALTH, body=b"")
    assert line.getresponse().status == 200
    line.close()
    return time.monotonic() - start


@pytest.mark.parametrize("first", [1, 2], ids=["the member's address", "another address"])
def test_silent_connections_shut_out_no_member_and_are_closed(guarded: Trial, first: int) -> None:
    with ExitStack() as stack:
        lines = silent(guarded, stack, SILENT, first)
        assert seconds_of_a_request(guarded) < SOON_SECONDS
        time.sleep(0.2)
        assert 0 < still_open(lines) <= MOST_PENDING_OF_ADDRESS
        time.sleep(PENDING_SECONDS)
        assert still_open(lines) == 0
        assert seconds_of_a_request(guarded) < SOON_SECONDS


def test_limits_are_those_of_the_settings_file(tmp_path_factory: Any, authority_key: Any) -> None:
    made = Trial(tmp_path_factory.mktemp("set"), authority_key, insurers=3, rows=60)
    assert exchange.Settings.read(made.exchange).limits.connections == ConnectionLimits()
    made.settings(pending_of_address=4, pending_seconds=1.0)
    admission_of(made.root / "insurer 1", "insurer 1")
    with serving(made, guarded=True), ExitStack() as stack:
        seconds_of_a_request(made)  # it serves
        lines = silent(made, stack, 20)
        time.sleep(0.3)
        assert 0 < still_open(lines) <= 4
        time.sleep(1.5)
        assert still_open(lines) == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pending_seconds", 0),
        ("pending_of_address", 1),
        ("connections", 10**6),
        ("connections_of_node", 1),
        ("stored_bodies", 0),
        ("conections", 64),
    ],
)
def test_a_limit_outside_its_bounds_is_told(tmp_path: Path, key: str, value: float) -> None:
    folder = tmp_path / "exchange"
    exchange.init(folder, "exchange", "127.0.0.1:9443")
    path = folder / exchange.SETTINGS
    whole = path.read_text()
    assert exchange.Settings.read(folder) == exchange.Settings(
        name="exchange", address="127.0.0.1:9443"
    )
    others = [line for line in whole.splitlines() if line.split(" ")[0] != key]
    path.write_text("\n".join([*others, f"{key} = {value}", ""]))
    with pytest.raises(ConfigurationError, match=key):
        exchange.Settings.read(folder)


@pytest.mark.slow
def test_silent_connections_of_an_unguarded_exchange_stay_open(
    tmp_path_factory: Any, authority_key: Any
) -> None:
    made = Trial(tmp_path_factory.mktemp("unguarded"), authority_key, insurers=3, rows=60)
    with serving(made, guarded=False), ExitStack() as stack:
        lines = silent(made, stack, SILENT)
        time.sleep(PENDING_SECONDS + 1.0)
        assert still_open(lines) == SILENT


def test_more_silent_connections_than_there_are_descriptors_shut_out_no_member(
    guarded: Trial,
) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < SHUT + DESCRIPTORS:
        pytest.skip(f"needs {SHUT + DESCRIPTORS} descriptors; raise the limit with ulimit -n")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, SHUT + DESCRIPTORS), most))
    try:
        with ExitStack() as stack:
            lines = []
            for address in range(2, 14):  # at each, more than one address may hold
                lines += silent(guarded, stack, SHUT // 12, address)
            assert seconds_of_a_request(guarded) < SOON_SECONDS
            time.sleep(0.2)
            assert 0 < still_open(lines) <= MOST_PENDING
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


def test_a_certificate_without_a_request_is_not_enough(guarded: Trial) -> None:
    with ExitStack() as stack:
        (bare,) = silent(guarded, stack, 1)
        bare.settimeout(5)
        line = stack.enter_context(
            member_tls(guarded).wrap_socket(bare, server_hostname="127.0.0.1")
        )
        line.sendall(b"POST /health HTTP/1.1\r\n")
        line.setblocking(False)
        time.sleep(PENDING_SECONDS / 2)
        assert _is_open(line)
        time.sleep(PENDING_SECONDS / 2 + 0.5)
        assert not _is_open(line)


def test_a_member_that_made_a_request_keeps_its_connection(guarded: Trial) -> None:
    context = member_tls(guarded)
    line = http.client.HTTPSConnection("127.0.0.1", guarded.port, timeout=10, context=context)
    with ExitStack() as stack:
        for wait in (0.0, PENDING_SECONDS + 1.0):
            time.sleep(wait)
            line.request("POST", broker.HEALTH, body=b"")
            answer = line.getresponse()
            assert answer.status == 200 and answer.read() == b""
            silent(guarded, stack, 2 * MOST_OF_ADDRESS)
        assert line.sock is not None  # it is the same connection
    line.close()


def test_what_was_closed_is_in_the_log(guarded: Trial) -> None:
    with ExitStack() as stack:
        silent(guarded, stack, MOST_PENDING_OF_ADDRESS + 1)
        guarded.until(
            lambda: (
                "too many had made no request"
                in (guarded.exchange / exchange.CONNECTION_LOG).read_text()
            )
        )


def test_where_no_descriptor_is_free_the_listener_waits_for_its_next_turn() -> None:
    guard = connections.ConnectionGuard(connections.ConnectionLimits().within_process())
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        server = socket.create_server(("127.0.0.1", 0))
        listener = stack.enter_context(connections.GuardedListener(server, guard))
        listener.setblocking(False)
        stack.enter_context(socket.create_connection(listener.getsockname()))
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, most))
        try:
            with pytest.raises(BlockingIOError, match="no descriptor is free"):
                listener.accept()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


@pytest.mark.parametrize(
    ("descriptors", "most"),
    [
        (256, 128),
        (DESCRIPTORS, DESCRIPTORS - RESERVED_DESCRIPTORS),
        (2**20, MOST_CONNECTIONS),
        (resource.RLIM_INFINITY, MOST_CONNECTIONS),
    ],
)
def test_descriptors_are_reserved(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, most: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (descriptors, descriptors))
    limits = connections.ConnectionLimits().within_process()
    assert limits.total == most
    assert limits.pending <= limits.total // 2


@pytest.mark.parametrize(
    ("host", "customer"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_a_customer_counts_once(host: str, customer: str) -> None:
    assert connections.customer(host) == customer
