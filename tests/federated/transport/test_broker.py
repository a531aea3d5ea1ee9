"""What the exchange's public listener lets through: TLS, certificates, routes, sizes; and what is on the wire."""

from __future__ import annotations

import base64
import datetime
import http.client
import shutil
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from cryptography import x509
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node

from federated.deployment import certificates
from federated.deployment.coordinator import exchange
from federated.deployment.enrolment import Admission
from federated.deployment.node.checks import examine
from federated.deployment.node.rules import settings as node_folder
from federated.deployment.node.rules.settings import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    SETTINGS,
    admission_of,
)
from federated.transport.connections import MOST_LINES
from federated.transport.node_line import LineError, NodeLine
from lab.audit import log_format as audit
from lab.errors import ConfigurationError
from tests.rigs.capture import enter, packets, streams
from tests.rigs.trial import Trial, started


@pytest.fixture(scope="session")
def loopback(tmp_path_factory: Any, authority_key: Any) -> Iterator[Trial]:
    made = Trial(tmp_path_factory.mktemp("exchange"), authority_key, insurers=3, rows=60)
    made.start("exchange")
    made.until(lambda: (made.exchange / exchange.LOCAL_SOCKET).exists(), 60)
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
def test_no_route_answers_a_peer_without_a_certificate(loopback: Trial, path: str) -> None:
    bare = ssl.create_default_context(cafile=str(loopback.root / "insurer 1" / AUTHORITY))
    with pytest.raises(NOTHING):
        ask(loopback, bare, path)


@pytest.mark.parametrize("path", ROUTES)
def test_no_route_answers_plain_http(loopback: Trial, path: str) -> None:
    with pytest.raises(NOTHING):
        ask(loopback, None, path)


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
def test_a_peer_with_a_certificate_reaches_the_node_routes_alone(
    loopback: Trial, path: str
) -> None:
    assert ask(loopback, tls(loopback), path, **{"lab-secret": "x" * 64}) == 404


def test_a_certificate_of_another_authority_or_one_that_ended_does_not_come_in(
    loopback: Trial, tmp_path: Path
) -> None:
    key = certificates.read_key(loopback.root / "insurer 1" / KEY)
    line = certificates.openssh_line(key)
    certificates.make_authority(tmp_path, "somebody", ("127.0.0.1",))
    (tmp_path / "other.pem").write_text(certificates.admit(tmp_path, "insurer 1", line))
    (tmp_path / "ended.pem").write_text(
        certificates.admit(loopback.exchange, "insurer 1", line, -1)
    )
    own = loopback.root / "insurer 1"
    for name in ("other.pem", "ended.pem"):
        context = certificates.client_side(own / AUTHORITY, tmp_path / name, own / KEY)
        with pytest.raises(NOTHING):
            ask(loopback, context, "/v1/fleet/pull-messages")
    stranger = certificates.client_side(tmp_path / "ca.pem", own / CERTIFICATE, own / KEY)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(loopback, stranger, "/health")


def test_certificates_of_an_authority_elsewhere_are_as_good(tmp_path: Path) -> None:
    """A company's own authority issues the exchange's and, by its request, the node's."""
    elsewhere, other = tmp_path / "elsewhere", tmp_path / "other"
    for place in (elsewhere, other):
        place.mkdir()
        certificates.make_authority(place, place.name, ("127.0.0.1",))
    brought = [elsewhere / name for name in ("server.pem", "server.key", "ca.pem")]
    folder, node = tmp_path / "exchange", tmp_path / "node"
    with pytest.raises(ConfigurationError, match="TLS cannot be set up"):
        mixed = (brought[0], other / "server.key", brought[2])
        exchange.init(folder, "exchange", "127.0.0.1:9443", None, mixed)
    assert not folder.exists()
    exchange.init(folder, "exchange", "127.0.0.1:9443", None, tuple(brought))  # type: ignore[arg-type]
    enrolment = node_folder.init(node, "insurer", "commercial", "rows.parquet")
    with pytest.raises(ConfigurationError, match=r"issued for the node's node\.csr"):
        exchange.register(folder, enrolment)
    asked = x509.load_pem_x509_csr((node / "node.csr").read_bytes())
    assert asked.is_signature_valid
    line = certificates.openssh_line(certificates.read_key(node / KEY))
    wrong = certificates.openssh_line(certificates.new_key())
    for place, over, days, reason in (
        (other, line, 30, "not issued by the exchange's authority"),
        (elsewhere, wrong, 30, "for another key"),
        (elsewhere, line, -1, "not today"),
    ):
        (tmp_path / "node.pem").write_text(certificates.admit(place, "insurer", over, days))
        with pytest.raises(ConfigurationError, match=reason):
            exchange.register(folder, enrolment, certificate_file=tmp_path / "node.pem")
    (tmp_path / "node.pem").write_text(certificates.admit(elsewhere, "insurer", line))
    shutil.copy(
        exchange.register(folder, enrolment, certificate_file=tmp_path / "node.pem"),
        node / "admission.json",
    )
    admission_of(node, "insurer")
    client = certificates.client_side(node / AUTHORITY, node / CERTIFICATE, node / KEY)
    assert shaken(certificates.server_side(folder), client) == "TLSv1.3"


def shaken(server: ssl.SSLContext, client: ssl.SSLContext) -> str | None:
    """The version that both ends agree on."""
    near, far = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.wrap_socket, far, True)
        with client.wrap_socket(near, server_hostname="127.0.0.1") as line:
            with waiting.result(10) as end:
                assert end.getpeercert()
            return line.version()


def test_a_key_that_is_not_registered_or_is_revoked_does_not_come_in(loopback: Trial) -> None:
    address = f"127.0.0.1:{loopback.port}"
    line = NodeLine(address, certificates.new_key(), tls(loopback))
    with pytest.raises(LineError, match="answers 403 this node's key is unknown here"):
        line.open()
    line.close()
    exchange.revoke(loopback.exchange, "insurer 3")
    own = NodeLine(
        address,
        certificates.read_key(loopback.root / "insurer 3" / KEY),
        tls(loopback, "insurer 3"),
    )
    with pytest.raises(LineError, match="answers 403 this node's key is revoked here"):
        own.open()
    own.close()


def test_a_deleted_admission_is_a_revoked_one_and_comes_back_with_the_file(
    loopback: Trial,
) -> None:
    """The exchange runs all the while, and the node is in when its file goes."""
    line = NodeLine(
        f"127.0.0.1:{loopback.port}",
        certificates.read_key(loopback.root / "insurer 2" / KEY),
        tls(loopback, "insurer 2"),
    )
    line.open()
    (path,) = (
        path
        for path in (loopback.exchange / exchange.ADMITTED).iterdir()
        if Admission.read(path).member.name == "insurer 2"
    )
    aside = loopback.exchange / "aside.json"
    path.rename(aside)
    assert "insurer 2" not in exchange.admissible(loopback.exchange)
    with pytest.raises(LineError, match="answers 403 this node's key is revoked here"):
        line.pull()
    aside.rename(path)
    line.open()
    line.close()
    entries = audit.entries(audit.read_lines(loopback.exchange / exchange.CONNECTION_LOG))
    events = [entry.told["event"] for entry in entries if entry.kind == "key"]
    deleted = "insurer 2 revoked: its admission was deleted"
    assert [e for e in events if "insurer 2" in e] == [deleted, "insurer 2 admitted again"]


def test_a_registered_key_without_its_signature_does_not_come_in(loopback: Trial) -> None:
    key = certificates.pem(loopback.enrolment(loopback.root / "insurer 1").member.flower_key)
    now = datetime.datetime.now(datetime.UTC).isoformat()
    headers = {
        "flwr-public-key": base64.b64encode(key).decode(),
        "flwr-signature": base64.b64encode(b"no").decode(),
        "flwr-timestamp": now,
    }
    assert ask(loopback, tls(loopback), "/v1/fleet/pull-messages", **headers) == 401


def called(line: http.client.HTTPSConnection, trial: Trial, name: str) -> tuple[int, str]:
    """What the listener says to a call in a registered node's name."""
    key = certificates.pem(trial.enrolment(trial.root / name).member.flower_key)
    headers = {"flwr-public-key": base64.b64encode(key).decode()}
    line.request("POST", "/v1/fleet/pull-messages", body=b"", headers=headers)
    answer = line.getresponse()
    return answer.status, answer.read().decode()


def test_an_open_connection_does_not_outlive_its_certificate(
    loopback: Trial, tmp_path: Path
) -> None:
    own = loopback.root / "insurer 2"
    key = certificates.openssh_line(certificates.read_key(own / KEY))
    brief = tmp_path / "brief.pem"
    brief.write_text(certificates.admit(loopback.exchange, "insurer 2", key, 3 / 86400))
    end = certificates.read_certificate(brief.read_bytes()).not_valid_after_utc.timestamp()
    context = certificates.client_side(own / AUTHORITY, brief, own / KEY)
    line = http.client.HTTPSConnection("127.0.0.1", loopback.port, timeout=5, context=context)
    assert called(line, loopback, "insurer 2")[0] == 401  # let through; there is no signature
    time.sleep(max(0.0, end - time.time()) + 0.1)
    status, text = called(line, loopback, "insurer 2")
    assert status == 403 and "its certificate has expired" in text
    line.close()


def test_a_key_is_not_called_by_the_certificate_of_another(loopback: Trial) -> None:
    context = tls(loopback, "insurer 2")
    line = http.client.HTTPSConnection("127.0.0.1", loopback.port, timeout=5, context=context)
    status, text = called(line, loopback, "insurer 1")
    assert status == 403 and "not the key of its certificate" in text
    line.close()


def test_a_member_cannot_hold_all_connections(loopback: Trial) -> None:
    context, held = tls(loopback, "insurer 2"), []
    for _ in range(3 * MOST_LINES):
        bare = socket.create_connection(("127.0.0.1", loopback.port), timeout=5)
        held.append(context.wrap_socket(bare, server_hostname="127.0.0.1"))
    with pytest.raises(NOTHING):
        held[-1].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        if not held[-1].recv(100):
            raise ConnectionError
    assert ask(loopback, tls(loopback), "/health") == 200
    for line in held:
        line.close()


def test_a_node_pushes_nothing_in_the_name_of_another(loopback: Trial) -> None:
    line = NodeLine(
        f"127.0.0.1:{loopback.port}",
        certificates.read_key(loopback.root / "insurer 1" / KEY),
        tls(loopback),
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


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("307 Elsewhere\r\nLocation: http://127.0.0.1:1/", "answers 307"),
        ("200 OK", "not readable"),
    ],
)
def test_a_node_follows_no_redirect_and_outlives_an_exchange_that_talks_nonsense(
    loopback: Trial, answer: str, told: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with certificates.server_side(loopback.exchange).wrap_socket(
                server.accept()[0], server_side=True
            ) as line:
                line.recv(65536)
                line.sendall(
                    f"HTTP/1.1 {answer}\r\nContent-Length: 3\r\n\r\n".encode() + b"\xff" * 3
                )
                line.recv(65536)

        threading.Thread(target=serve, daemon=True).start()
        key = certificates.read_key(loopback.root / "insurer 1" / KEY)
        line = NodeLine(f"127.0.0.1:{server.getsockname()[1]}", key, tls(loopback))
        with pytest.raises(LineError, match=told):
            line.open()
        line._client.close()


def test_a_body_over_the_limit_is_refused_before_it_is_read(loopback: Trial) -> None:
    key = certificates.pem(loopback.enrolment(loopback.root / "insurer 1").member.flower_key)
    head = (
        "POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\n"
        f"flwr-public-key: {base64.b64encode(key).decode()}\r\n"
        "Content-Length: {length}\r\n\r\n"
    )
    for length, status in (("999999999999", b" 413 "), ("70000000", b" 413 ")):
        with (
            socket.create_connection(("127.0.0.1", loopback.port), timeout=5) as bare,
            tls(loopback).wrap_socket(bare, server_hostname="127.0.0.1") as line,
        ):
            line.sendall(head.format(length=length).encode())  # and not a byte of the body
            assert status in line.recv(100)


CANARY = 1.234_567_891_234_5


def shapes(value: float) -> dict[str, bytes]:
    """The value in every encoding that a message could carry it in, by name."""
    plain = {f: struct.pack(f, value) for f in ("<d", ">d", "<f", ">f")}
    plain |= {"text": repr(value)[:9].encode(), "hexadecimal text": value.hex()[:12].encode()}
    for bits in (20, 24, 30, 32, 40, 48, 52):  # fixed point, as sums are packed
        fixed = round(value * 2**bits)
        size = (fixed.bit_length() + 7) // 8
        plain[f"2^{bits} <"] = fixed.to_bytes(size, "little")
        plain[f"2^{bits} >"] = fixed.to_bytes(size, "big")
    found = {name: data for name, data in plain.items() if len(data) >= 4}
    for name, data in plain.items():
        if len(data) >= 4:
            found |= {
                f"{name} hex": data.hex().encode(),
                f"{name} HEX": data.hex().upper().encode(),
            }
        if len(data) >= 7:
            for shift in range(3):
                whole = base64.b64encode(bytes(shift) + data)
                inner = whole[-(-8 * shift // 6) : (8 * (shift + len(data))) // 6]
                found[f"{name} base64 {shift}"] = inner
    return found


def deflated(stream: bytes) -> Iterator[bytes]:
    """Whatever in a stream can be read as zlib, gzip or raw deflate behind a zlib head."""
    for at in range(len(stream) - 2):
        if stream[at] == 0x78 and int.from_bytes(stream[at : at + 2], "big") % 31 == 0:
            with suppress(zlib.error):
                yield zlib.decompressobj().decompress(stream[at : at + 2**16])


def findings(found: list[bytes], port: int) -> list[str]:
    """What of the packets of a run must not be there."""
    told = []
    for packet in found:
        told += [f"{name} in a packet" for name, shape in shapes(CANARY).items() if shape in packet]
    for way, stream in streams(found):
        if port not in way:
            told.append("TCP that is not to or from the exchange")
        elif not only_tls(stream):
            told.append("what is not TLS, to or from the exchange")
        for data in (stream, *deflated(stream)):
            told += [
                f"{name} in a stream" for name, shape in shapes(CANARY).items() if shape in data
            ]
    return told


def only_tls(stream: bytes) -> bool:
    """Whether it is TLS records, one after the other (the last may be cut off)."""
    at = 0
    while at + 5 <= len(stream):
        kind, major, _, length = struct.unpack(">BBBH", stream[at : at + 5])
        if kind not in (20, 21, 22, 23) or major != 3 or length > 2**14 + 256:
            return False
        at += 5 + length
    return True


def betray(out: Path, network: str, port: int, data: bytes) -> None:
    """Send bytes in the clear, as a party must not; nobody needs to listen on the way."""
    enter(network)
    with socket.create_server(("127.0.0.1", port)) as server:
        line = socket.create_connection(("127.0.0.1", port))
        line.sendall(data)
        server.accept()[0].recv(len(data))
        line.close()


@pytest.mark.slow
def test_nothing_but_tls_is_on_the_loopback_of_a_run_and_no_canary(
    tmp_path_factory: pytest.TempPathFactory, authority_key: Any
) -> None:
    made = Trial(tmp_path_factory.mktemp("wire"), authority_key, insurers=3, rows=150)
    path = made.root / "insurer 1.parquet"
    frame = pd.read_parquet(path)
    frame.loc[0, "x1"] = CANARY
    frame.to_parquet(path, index=False)
    try:
        caught = made.catch()
    except OSError as error:
        pytest.skip(f"needs CAP_SYS_ADMIN and CAP_NET_RAW for a network of its own: {error}")
    with started(made):
        made.conduct(made.experiment(0)).join(60)
        honest = len(packets(caught))
        assert "model " in made.out("conductor")
        sent = {"text": repr(CANARY).encode(), "zlib": zlib.compress(struct.pack("<d", CANARY) * 9)}
        sent |= {name: shapes(CANARY)[name] for name in ("<d", ">f", "2^40 >", "<d base64 2")}
        for at, data in enumerate(sent.values()):
            made.in_network(betray, made.port + 1 + at, data)
    found = packets(caught)
    assert sum(len(stream) for _, stream in streams(found[:honest])) > 100_000
    assert findings(found[:honest], made.port) == []
    told = findings(found[honest:], made.port)
    assert told.count("TCP that is not to or from the exchange") == len(sent)
    for name in ("text", "<d", ">f", "2^40 >", "<d base64 2"):
        assert f"{name} in a packet" in told and f"{name} in a stream" in told
    unpacked = [data for way, s in streams(found[honest:]) for data in deflated(s)]
    assert any(shapes(CANARY)["<d"] in data for data in unpacked)


def test_node_check_finds_what_is_wrong_and_says_what_to_do(loopback: Trial) -> None:
    folder = loopback.root / "insurer 2"
    assert all(finding.good for finding in examine(folder)), examine(folder)
    settings = (folder / SETTINGS).read_text()
    for caps, text in (
        ("{ x1 = 1.5 }", "; capped: x1 at 1.5"),
        (
            "{ x9 = 1 }",
            "data.caps of node.toml: 'x9' is no numeric column of the table; correct it",
        ),
    ):
        (folder / SETTINGS).write_text(settings.replace("caps = {}", f"caps = {caps}"))
        (data,) = (f for f in examine(folder) if f.what == "data")
        assert data.text.endswith(text) and data.good == ("x1" in caps)
    (folder / SETTINGS).write_text(settings)
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
    assert not found["charter"].good and "some members did not sign" in found["charter"].text
    gone = {f.what: f for f in examine(loopback.root / "insurer 3")}
    assert "revoked" in gone["registration"].text or gone["registration"].good
