"""The exchange: the coordinator's folder, the nodes admitted to it, and the process that serves it.

init      folder, keys, a certificate authority
register  a member's enrolment becomes an admission: address, certificates, what it hands back
revoke    takes effect with the node's next request, as the deletion of an admission does
serve     the broker behind its two listeners
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator

from federated.deployment import certificates
from federated.deployment.audit_logs import open_log
from federated.deployment.enrolment import (
    ADDRESS,
    CERTIFICATE_REQUEST,
    Admission,
    Enrolment,
)
from federated.deployment.folders import CHARTER, charter_of, identity_of, make_folder, make_party
from federated.transport.connections import (
    MOST_CONNECTIONS,
    MOST_LINES,
    MOST_OF_ADDRESS,
    MOST_PENDING,
    MOST_PENDING_OF_ADDRESS,
    PENDING_SECONDS,
    ConnectionLimits,
    ListenerLimits,
)
from federated.transport.reply_quota import STORED_BODIES
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError
from lab.files import read_json, write_whole
from lab.records import Strict, parse, read_toml

SETTINGS, SECRET, ADMITTED, REVOKED = "exchange.toml", "secret", "admitted", "revoked.json"
LOCAL_SOCKET, RUNS, CONNECTION_LOG = "local.sock", "runs", "connections.jsonl"


#: What a new ``exchange.toml`` holds beside its name and address: every limit, at its default.
TEMPLATE = f"""answer_seconds = 120.0         # a party may take for an answer
again_seconds = 15.0           # until it is asked again, for the first time
gather_seconds = 60.0          # a run waits for parties to come
body_megabytes = 64            # the largest body from outside
stored_bodies = {STORED_BODIES:<15}# so many of these may wait of one node until they are fetched
connections = {MOST_CONNECTIONS:<17}# from outside; fewer where the system allows fewer
connections_of_address = {MOST_OF_ADDRESS:<6}# a node needs two
connections_of_node = {MOST_LINES:<9}# with one certificate's key
pending_connections = {MOST_PENDING:<9}# that have made no request yet
pending_of_address = {MOST_PENDING_OF_ADDRESS:<10}# of these, from one address
pending_seconds = {PENDING_SECONDS:<13}# for a handshake and a request"""


class Settings(Strict):
    """``exchange.toml``. address: host:port that nodes call; listen: the public listener's interface.

    answer_seconds: how long a party may take for an answer; again_seconds: after how long it is
    asked again, for the first time; gather_seconds: how long a run waits for parties to come;
    body_megabytes: the largest body from outside; stored_bodies: how many of these a node's replies
    may fill that nobody has fetched.

    Connections from outside: in all (or what the process's descriptors allow), of one address, of
    one node; pending, until a valid certificate was shown and a request made, in all, of one address
    and for how long.
    """

    name: str
    address: str = Field(pattern=ADDRESS)
    listen: str = "0.0.0.0"  # noqa: S104  (the listener for peers; TLS with client certificates)
    answer_seconds: float = Field(default=120.0, gt=0)
    again_seconds: float = Field(default=15.0, gt=0)
    gather_seconds: float = Field(default=60.0, gt=0)
    body_megabytes: int = Field(default=64, ge=1, le=1024)
    stored_bodies: int = Field(default=STORED_BODIES, ge=2, le=64)
    connections: int = Field(default=MOST_CONNECTIONS, ge=32, le=65_536)
    connections_of_address: int = Field(default=MOST_OF_ADDRESS, ge=4, le=65_536)
    connections_of_node: int = Field(default=MOST_LINES, ge=2, le=256)
    pending_connections: int = Field(default=MOST_PENDING, ge=8, le=16_384)
    pending_of_address: int = Field(default=MOST_PENDING_OF_ADDRESS, ge=2, le=16_384)
    pending_seconds: float = Field(default=PENDING_SECONDS, ge=1, le=60)

    @field_validator("listen")
    @classmethod
    def _an_interface(cls, listen: str) -> str:
        if listen.count(":") == 1:
            raise ValueError("is a host without a port, as 10.0.0.5; the port is that of address")
        return listen

    @classmethod
    def read(cls, folder: Path) -> Self:
        return parse(cls, read_toml(folder / SETTINGS), where=str(folder / SETTINGS))

    @property
    def limits(self) -> ListenerLimits:
        """What the public listener takes."""
        connections = ConnectionLimits(
            self.connections,
            self.connections_of_address,
            self.pending_connections,
            self.pending_of_address,
            self.pending_seconds,
            self.connections_of_node,
        )
        return ListenerLimits(self.body_megabytes * 2**20, self.stored_bodies, connections)

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])


def init(
    folder: Path,
    name: str,
    address: str,
    listen: str | None = None,
    tls_files: tuple[Path, Path, Path] | None = None,
) -> Enrolment:
    """A new exchange in a new folder. Returns the coordinator's enrolment.

    tls_files: certificate and key of its server, and the authority of all, PEM; else made here.
    """
    host = address.rsplit(":", 1)[0].strip("[]")
    settings = {"name": name, "address": address} | ({"listen": listen} if listen else {})
    parse(Settings, settings, where="lab exchange init")
    if tls_files is not None:
        certificates.server_context(*tls_files)
    make_folder(folder)
    for subfolder in (ADMITTED, RUNS):
        (folder / subfolder).mkdir(mode=0o700)
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in settings.items()]
    text = "\n".join(
        [
            "# The exchange: where nodes call, and what it takes from them and from strangers.",
            *lines,
            *TEMPLATE.splitlines(),
            "",
        ]
    )
    write_whole(folder / SETTINGS, text.encode())
    write_whole(folder / SECRET, secrets.token_hex(32).encode(), 0o600)
    hosts = tuple(dict.fromkeys([host, "localhost", "127.0.0.1"]))
    if tls_files is None:
        certificates.make_authority(folder, name, hosts)
    else:
        certificates.bring(folder, *tls_files)
    return make_party(folder, name, "coordinator")


def register(
    folder: Path,
    enrolment: Enrolment,
    days: float = certificates.LEAF_DAYS,
    certificate_file: Path | None = None,
) -> Path:
    """Admit a member: its admission is written, to be handed to it. Returns the file's path.

    certificate_file: the node's certificate by an authority elsewhere, PEM; else one is made here.
    """
    settings, member = Settings.read(folder), enrolment.member
    if not member.flower_key:
        raise ConfigurationError(f"{member.name}: runs no node, so there is nothing to register")
    if enrolment.member.name in revoked(folder):
        raise ConfigurationError(
            f"{member.name}: was revoked; to come back it must enrol with new keys under a new name"
        )
    if certificate_file is not None:
        certificate = certificates.adopt(folder, member.flower_key, certificate_file)
    elif (folder / certificates.CA_KEY).exists():
        certificate = certificates.admit(folder, member.name, member.flower_key, days)
    else:
        raise ConfigurationError(
            f"{member.name}: the authority's key is not in {folder}; pass the certificate that the "
            f"authority issued for the node's {CERTIFICATE_REQUEST} with --certificate"
        )
    admission = Admission(
        member=member,
        address=settings.address,
        authority=(folder / certificates.CA).read_text(),
        certificate=certificate,
    )
    path = folder / ADMITTED / f"{member.fingerprint.replace(' ', '')}.json"
    for other in admitted(folder).values():
        if other.member.name == member.name and other.member != member:
            raise ConfigurationError(
                f"{member.name}: is registered with other keys; revoke it first"
            )
    write_whole(path, admission.model_dump_json(indent=1).encode() + b"\n")
    return path


def revoke(folder: Path, name: str) -> None:
    """Let a node in no more. It holds from the node's next request."""
    admissions = [a for a in admitted(folder).values() if a.member.name == name]
    if not admissions:
        raise ConfigurationError(f"{name}: is not registered here; lab exchange status lists all")
    revocations = {**revoked(folder), name: datetime.now(UTC).isoformat(timespec="seconds")}
    write_whole(folder / REVOKED, json.dumps(revocations, ensure_ascii=False, indent=1).encode())


def admitted(folder: Path) -> dict[bytes, Admission]:
    """Every admission by the key that Flower names the node by, revoked or not."""
    admissions = [Admission.read(path) for path in sorted((folder / ADMITTED).glob("*.json"))]
    return {certificates.pem(a.member.flower_key): a for a in admissions}


def revoked(folder: Path) -> dict[str, str]:
    """Names of revoked members, and since when."""
    path = folder / REVOKED
    return {k: str(v) for k, v in read_json(path).items()} if path.exists() else {}


def admissible(folder: Path) -> set[str]:
    """Names of members whose nodes may come in: registered, and neither revoked nor deleted."""
    names = {admission.member.name for admission in admitted(folder).values()}
    return names - revoked(folder).keys()


class FolderRegister:
    """Who may come in, as the folder says; looked at with every request, read when it changed."""

    def __init__(self, folder: Path, log: Log, broker: Any) -> None:
        self._folder, self._log, self._broker = folder, log, broker
        self._state: dict[bytes, str] = {}
        self._names: dict[bytes, str] = {}  # of all keys that were ever admitted here
        self._mtimes: tuple[int, ...] = ()
        self._last_notes: dict[str, float] = {}

    def standing(self, key: bytes) -> str:
        """``admitted``, ``revoked`` or ``unknown``."""
        self._look()
        return self._state.get(key, "unknown")

    def name_of(self, key: bytes) -> str:
        """The member whose key was admitted here, revoked or not."""
        return self._names.get(key, "")

    def _look(self) -> None:
        places = (self._folder / ADMITTED, self._folder / REVOKED)
        mtimes = tuple(path.stat().st_mtime_ns if path.exists() else 0 for path in places)
        if mtimes == self._mtimes:
            return
        revocations, self._mtimes = revoked(self._folder), mtimes
        admissions = {k: a.member.name for k, a in admitted(self._folder).items()}
        for key, name in admissions.items():
            self._settle(key, name, "revoked" if name in revocations else "")
        for key in self._names.keys() - admissions.keys():
            self._settle(key, self._names[key], "revoked: its admission was deleted")
        self._names |= admissions

    def _settle(self, key: bytes, name: str, reason: str) -> None:
        """Let a key in, or out for a reason. A deleted admission that is put back is one again."""
        before, now = self._state.get(key), "revoked" if reason else "admitted"
        self._state[key] = now
        if now == before:
            return
        if now == "revoked":
            self._broker.leave(key)
        else:
            self._broker.register(name, key)
        if before or reason:
            event = f"{name} {reason or 'admitted again'}"
            self._log.append("key", event=event, fingerprint=_short(key))

    def note(self, kind: str, **details: Any) -> None:
        """A line in the log for what the listener refused; at most one of a rule in ten seconds."""
        rule = str(details.get("rule", ""))
        if time.monotonic() - self._last_notes.get(rule, -60.0) > 10.0:
            self._last_notes[rule] = time.monotonic()
            self._log.append(kind, **details)


def _short(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]


def serve(folder: Path, ready: Any = None) -> None:
    """Serve until SIGINT or SIGTERM. ready: called with the address once both listeners are open."""
    settings, identity = Settings.read(folder), identity_of(folder)
    charter = charter_of(folder, identity.card.name) if (folder / CHARTER).exists() else None
    tls, secret = certificates.server_side(folder), (folder / SECRET).read_text()
    from federated.transport.broker import Broker

    try:
        public_listener = _public_socket(settings.listen, settings.port)
    except OSError as error:
        raise ConfigurationError(
            f"{settings.listen}:{settings.port}: cannot be opened: {error.strerror}"
        ) from None
    local_listener = _local_socket(folder)
    digest = charter.digest if charter else ""
    with open_log(
        folder / CONNECTION_LOG, identity, charter=digest
    ) as log:  # runs have a log of their own
        broker = Broker(secret)
        register_ = FolderRegister(folder, log, broker)
        try:
            asyncio.run(
                _serve(
                    broker,
                    register_,
                    public_listener,
                    local_listener,
                    tls,
                    settings,
                    ready,
                )
            )
        finally:
            with suppress(OSError):
                (folder / LOCAL_SOCKET).unlink()


async def _serve(
    broker: Any,
    register_: FolderRegister,
    public_listener: socket.socket,
    local_listener: socket.socket,
    tls: Any,
    settings: Settings,
    ready: Any,
) -> None:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for sign in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(sign, stop.set)
    register_.standing(b"")  # whoever is admitted is registered before the listeners open
    if ready is not None:
        loop.call_later(0.2, ready, settings.address)
    await broker.serve(
        register_,
        public_listener,
        local_listener,
        tls,
        settings.limits,
        stop,
    )


def _public_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's waits off for sockets that say they are TCP, 40 ms a call otherwise
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(128)
    return listener


def _local_socket(folder: Path) -> socket.socket:
    """A socket that is a file of the exchange's folder, which nobody else may enter."""
    (folder / LOCAL_SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short(folder) as short_path:
        listener.bind(f"{short_path}/{LOCAL_SOCKET}")
    (folder / LOCAL_SOCKET).chmod(0o600)
    listener.listen(128)
    return listener


@contextmanager
def short(folder: Path) -> Iterator[str]:
    """Another name of a folder, short enough for a socket's address, which ends after 107 bytes."""
    if len(bytes(folder.resolve())) < 80 or not Path("/proc/self/fd").is_dir():
        yield str(folder.resolve())
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)


def secret_of(folder: Path) -> str:
    """The secret of an exchange that serves. Raises :class:`ConfigurationError` if it does not."""
    if not (folder / LOCAL_SOCKET).exists():
        raise ConfigurationError(
            f"{folder}: the exchange is not served; start it with: lab exchange serve {folder}"
        )
    return (folder / SECRET).read_text()
