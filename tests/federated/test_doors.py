"""What the exchange's outer door lets through: TLS, certificates, routes, sizes; and what is on the wire."""

from __future__ import annotations

import base64
import datetime
import http.client
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node

from federated import certificates, exchange
from federated.doctor import examine
from federated.fleet import LineError, NodeLine
from federated.insurer import AUTHORITY, CERTIFICATE, KEY, admission_of
from federated.superlink import MOST_LINES
from tests.federated.trial import Trial, started


@pytest.fixture(scope="session")
def door(tmp_path_factory: Any, authority_key: Any) -> Iterator[Trial]:
    made = Trial(tmp_path_factory.mktemp("door"), authority_key, insurers=3, rows=60)
    made.start("exchange")
    made.until(lambda: (made.exchange / exchange.INNER).exists(), 60)
    for name in made.names:
        admission_of(made.root / name, name)
    yield made
    made.stop()


def tls(trial: Trial, name: str = "insurer 1") -> ssl.SSLContext:
    folder = trial.root / name
    return certificates.client_side(folder / AUTHORITY, folder / CERTIFICATE, folder / KEY)


def ask(trial: Trial, context: ssl.SSLContext | None, path: str, **headers: str) -> int:
    """Status of a POST, or an error of TLS or the line."""
    kind = http.client.HTTPSConnection if context else http.client.HTTPConnection
    options = {"context": context} if context else {}
    line = kind("127.0.0.1", trial.port, timeout=5, **options)  # type: ignore[arg-type]
    try:
        line.request("POST", path, body=b"", headers=headers)
        return line.getresponse().status
    finally:
        line.close()


NOTHING = (ssl.SSLError, ConnectionError, http.client.HTTPException, TimeoutError)
ROUTES = ("/health", "/v1/fleet/pull-messages", "/v1/control/list-nodes", "/docs", "/openapi.json")


@pytest.mark.parametrize("path", ROUTES)
def test_no_route_answers_a_peer_without_a_certificate(door: Trial, path: str) -> None:
    bare = ssl.create_default_context(cafile=str(door.root / "insurer 1" / AUTHORITY))
    with pytest.raises(NOTHING):
        ask(door, bare, path)


@pytest.mark.parametrize("path", ROUTES)
def test_no_route_answers_plain_http(door: Trial, path: str) -> None:
    with pytest.raises(NOTHING):
        ask(door, None, path)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "//v1/control/list-nodes",
        "/docs",
    ],
)
def test_a_peer_with_a_certificate_reaches_the_node_routes_alone(door: Trial, path: str) -> None:
    assert ask(door, tls(door), path, **{"lab-secret": "x" * 64}) == 404


def test_a_certificate_of_another_authority_or_one_that_ended_does_not_come_in(
    door: Trial, tmp_path: Path
) -> None:
    key = certificates.read_key(door.root / "insurer 1" / KEY)
    line = certificates.openssh_line(key)
    certificates.make_authority(tmp_path, "somebody", ("127.0.0.1",))
    (tmp_path / "other.pem").write_text(certificates.admit(tmp_path, "insurer 1", line))
    (tmp_path / "ended.pem").write_text(certificates.admit(door.exchange, "insurer 1", line, -1))
    own = door.root / "insurer 1"
    for name in ("other.pem", "ended.pem"):
        context = certificates.client_side(own / AUTHORITY, tmp_path / name, own / KEY)
        with pytest.raises(NOTHING):
            ask(door, context, "/v1/fleet/pull-messages")
    stranger = certificates.client_side(tmp_path / "ca.pem", own / CERTIFICATE, own / KEY)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(door, stranger, "/health")


def test_a_key_that_is_not_registered_or_is_revoked_does_not_come_in(door: Trial) -> None:
    address = f"127.0.0.1:{door.port}"
    line = NodeLine(address, certificates.new_key(), tls(door))
    with pytest.raises(LineError, match="answers 403 this node's key is unknown here"):
        line.open()
    line.close()
    exchange.revoke(door.exchange, "insurer 3")
    own = NodeLine(
        address, certificates.read_key(door.root / "insurer 3" / KEY), tls(door, "insurer 3")
    )
    with pytest.raises(LineError, match="answers 403 this node's key is revoked here"):
        own.open()
    own.close()


def test_a_registered_key_without_its_signature_does_not_come_in(door: Trial) -> None:
    key = certificates.pem(door.enrolment(door.root / "insurer 1").member.flower_key)
    now = datetime.datetime.now(datetime.UTC).isoformat()
    headers = {
        "flwr-public-key": base64.b64encode(key).decode(),
        "flwr-signature": base64.b64encode(b"no").decode(),
        "flwr-timestamp": now,
    }
    assert ask(door, tls(door), "/v1/fleet/pull-messages", **headers) == 401


def called(line: http.client.HTTPSConnection, trial: Trial, name: str) -> tuple[int, str]:
    """What the door says to a call in a registered node's name."""
    key = certificates.pem(trial.enrolment(trial.root / name).member.flower_key)
    headers = {"flwr-public-key": base64.b64encode(key).decode()}
    line.request("POST", "/v1/fleet/pull-messages", body=b"", headers=headers)
    answer = line.getresponse()
    return answer.status, answer.read().decode()


def test_an_open_connection_does_not_outlive_its_certificate(door: Trial, tmp_path: Path) -> None:
    own = door.root / "insurer 2"
    key = certificates.openssh_line(certificates.read_key(own / KEY))
    brief = tmp_path / "brief.pem"
    brief.write_text(certificates.admit(door.exchange, "insurer 2", key, 3 / 86400))
    end = certificates.read_certificate(brief.read_bytes()).not_valid_after_utc.timestamp()
    context = certificates.client_side(own / AUTHORITY, brief, own / KEY)
    line = http.client.HTTPSConnection("127.0.0.1", door.port, timeout=5, context=context)
    assert called(line, door, "insurer 2")[0] == 401  # let through; there is no signature
    time.sleep(max(0.0, end - time.time()) + 0.1)
    status, text = called(line, door, "insurer 2")
    assert status == 403 and "its certificate ended" in text
    line.close()


def test_a_key_is_not_called_by_the_certificate_of_another(door: Trial) -> None:
    context = tls(door, "insurer 2")
    line = http.client.HTTPSConnection("127.0.0.1", door.port, timeout=5, context=context)
    status, text = called(line, door, "insurer 1")
    assert status == 403 and "another than its certificate's" in text
    line.close()


def test_a_member_cannot_hold_all_connections(door: Trial) -> None:
    context, held = tls(door, "insurer 2"), []
    for _ in range(3 * MOST_LINES):
        bare = socket.create_connection(("127.0.0.1", door.port), timeout=5)
        held.append(context.wrap_socket(bare, server_hostname="127.0.0.1"))
    with pytest.raises(NOTHING):
        held[-1].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        if not held[-1].recv(100):
            raise ConnectionError
    assert ask(door, tls(door), "/health") == 200
    for line in held:
        line.close()


def test_a_node_pushes_nothing_in_the_name_of_another(door: Trial) -> None:
    line = NodeLine(
        f"127.0.0.1:{door.port}",
        certificates.read_key(door.root / "insurer 1" / KEY),
        tls(door),
    )
    own = line.open()
    try:
        for source, answered in ((own + 1, "a" * 64), (1, ""), (own, "")):
            told = Metadata(src_node_id=source, reply_to_message_id=answered)
            request = PushMessagesRequest(
                node=Node(node_id=own), messages_list=[ProtoMessage(metadata=told)]
            )
            with pytest.raises(httpx.HTTPStatusError, match="403"):
                line._client.PushMessages(request)
    finally:
        line.close()


def test_a_body_over_the_limit_is_refused_before_it_is_read(door: Trial) -> None:
    key = certificates.pem(door.enrolment(door.root / "insurer 1").member.flower_key)
    head = (
        "POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n"
        f"flwr-public-key: {base64.b64encode(key).decode()}\r\n"
        "Content-Length: {length}\r\n\r\n"
    )
    for length, status in (("999999999999", b" 413 "), ("70000000", b" 413 ")):
        with (
            socket.create_connection(("127.0.0.1", door.port), timeout=5) as bare,
            tls(door).wrap_socket(bare, server_hostname="127.0.0.1") as line,
        ):
            line.sendall(head.format(length=length).encode())  # and not a byte of the body
            assert status in line.recv(100)


class Wire:
    """A proxy on loopback that passes everything on and keeps what it saw."""

    def __init__(self, port: int) -> None:
        self._target, self.seen = port, list[bytearray]()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            for source, sink in ((near, far), (far, near)):
                taken = bytearray()
                self.seen.append(taken)
                threading.Thread(target=self._pass, args=(source, sink, taken), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket, taken: bytearray) -> None:
        try:
            while data := source.recv(65536):
                taken += data
                sink.sendall(data)
        except OSError:
            return
        finally:
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


CANARY = 1.234_567_891_234_5


def shapes(value: float) -> list[bytes]:
    """The value in every encoding that a message could carry it in."""
    raw = [struct.pack(f, value) for f in ("<d", ">d", "<f", ">f")]
    plain = [*raw, repr(value)[:9].encode(), value.hex()[:12].encode()]
    return [
        *plain,
        *(p.hex().encode() for p in plain),
        *(base64.b64encode(p)[:-3] for p in raw[:2]),
    ]


def test_nothing_but_tls_is_on_the_wire_and_no_canary(
    tmp_path_factory: pytest.TempPathFactory, authority_key: Any
) -> None:
    made = Trial(tmp_path_factory.mktemp("wire"), authority_key, insurers=3, rows=150)
    path = made.root / "insurer 1.parquet"
    frame = pd.read_parquet(path)
    frame.loc[0, "x1"] = CANARY
    frame.to_parquet(path, index=False)
    wire = Wire(made.port)
    for name in made.names:
        admission = made.root / name / "admission.json"
        text = admission.read_text().replace(f":{made.port}", f":{wire.port}")
        admission.write_text(text)
    try:
        with started(made):
            study = made.run(made.experiment(0))
    finally:
        wire.close()
    assert {party.state for party in study.outlook} == {"took part"}
    streams = [bytes(taken) for taken in wire.seen if taken]
    assert sum(map(len, streams)) > 100_000
    for stream in streams:
        assert_only_tls(stream)
        for shape in shapes(CANARY):
            assert shape not in stream


def assert_only_tls(stream: bytes) -> None:
    """The stream is whole TLS records, one after the other (the last may be cut off)."""
    at = 0
    while at + 5 <= len(stream):
        kind, major, _, length = struct.unpack(">BBBH", stream[at : at + 5])
        assert kind in (20, 21, 22, 23) and major == 3 and length <= 2**14 + 256
        at += 5 + length


def test_the_doctor_finds_what_is_wrong_and_says_what_to_do(door: Trial) -> None:
    folder = door.root / "insurer 2"
    assert all(finding.good for finding in examine(folder)), examine(folder)
    (folder / KEY).chmod(0o644)
    try:
        found = {f.what: f for f in examine(folder)}
    finally:
        (folder / KEY).chmod(0o600)
    assert not found["private files"].good and "chmod" in found["private files"].text
    charter = folder / "charter.json"
    kept = charter.read_text()
    charter.write_text(kept.replace('"minimum_parties": 3', '"minimum_parties": 4'))
    try:
        found = {f.what: f for f in examine(folder)}
    finally:
        charter.write_text(kept)
    assert not found["charter"].good and "not all members signed" in found["charter"].text
    gone = {f.what: f for f in examine(door.root / "insurer 3")}
    assert "revoked" in gone["registration"].text or gone["registration"].good
