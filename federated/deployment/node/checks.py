"""`lab node check`: what keeps a node from taking part in the exchange, and how to put it right."""

from __future__ import annotations

import hashlib
import shutil
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path

from pandas.api.types import is_numeric_dtype

from federated.deployment import certificates
from federated.deployment.audit_logs import LOG_NAME, verify_together
from federated.deployment.enrolment import INSURERS
from federated.deployment.folders import IDENTITY, charter_of, identity_of
from federated.deployment.node.results import joined_runs
from federated.deployment.node.rules.policy import InsurerPolicy
from federated.deployment.node.rules.settings import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    NodeSettings,
    admission_of,
)
from federated.deployment.node.sides.policy import ALL, SidePolicy
from federated.link.own_terms import OwnLink
from federated.link.services.fund_record import read_conditions
from federated.transport.node_line import LineError, NodeLine, bundle
from lab.errors import LabError, PeerError

#: What a node needs on disk, MiB; the clock may be off by, seconds; a certificate ends soon, days.
FREE_MIB, CLOCK_SECONDS, SOON_DAYS = 256, 60.0, 30


@dataclass(frozen=True)
class Finding:
    """One line of the checks. ``text`` says what is wrong and what to do, or what is well."""

    what: str
    good: bool
    text: str


def examine(folder: Path) -> list[Finding]:
    """All findings, in the order in which a node would stumble over them."""
    checks = _Checks(folder)
    steps: tuple[tuple[str, Callable[[], str]], ...] = (
        ("settings", checks.settings),
        ("private files", checks.private),
        ("package", checks.package),
        ("disk", checks.disk),
        ("charter", checks.charter),
        ("data", checks.data),
        ("joined", checks.joined),
        ("scores", checks.scores),
        ("link", checks.link),
        ("log", checks.log),
        ("admission", checks.admission),
        ("certificate", checks.certificate),
        ("name", checks.name),
        ("port", checks.port),
        ("clock", checks.clock),
        ("registration", checks.registration),
    )
    findings = []
    for what, step in steps:
        try:
            findings.append(Finding(what, True, step()))
        except LabError as error:
            findings.append(Finding(what, False, str(error)))
        except _NotYet as error:
            findings.append(Finding(what, False, f"not checked: {error}"))
        except (OSError, ValueError) as error:
            findings.append(Finding(what, False, f"{type(error).__name__}: {error}"))
    return findings


def _cuts_of(side: SidePolicy, peers: Sequence[str]) -> str:
    """What trees may tell of this side's columns, and how much of it they told."""
    if side.role != "fund" or "trees" not in side.limits.analyses:
        return ""
    most, lines = side.own.bits_per_person, []
    for peer in peers:
        columns, told = ", ".join(side.own.cuts.get(peer, ())), side.cuts_told.count(peer)
        lines.append(
            f"{peer} may be told cuts on {columns.replace(ALL, 'all columns')}, {told:,} of {most:,} so far"
            if columns
            else f"{peer} is told no cuts"
        )
    return f"; {'; '.join(lines)}"


class _NotYet(Exception):
    """A step needs one that failed."""


class _Checks:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._address = ""
        self._tls: ssl.SSLContext | None = None
        self._node_settings: NodeSettings | None = None
        self._ahead: float | None = None

    @property
    def _settings(self) -> NodeSettings:
        if self._node_settings is None:
            raise _NotYet("node.toml cannot be read")
        return self._node_settings

    def settings(self) -> str:
        if not self._folder.is_dir():
            raise PeerError("no such folder; make it with lab node init")
        self._node_settings = NodeSettings.read(self._folder)
        if identity_of(self._folder).card.name != self._node_settings.name:
            raise PeerError(
                f"node.toml names {self._node_settings.name}, identity.json another party; "
                "correct the name"
            )
        return f"{self._node_settings.name}, {self._node_settings.role}"

    def private(self) -> str:
        if not (self._folder / IDENTITY).exists():
            raise _NotYet("there are no keys")
        open_to_others = [
            path.name
            for path in (self._folder / IDENTITY, self._folder / KEY, self._folder)
            if path.exists() and path.stat().st_mode & 0o077
        ]
        if open_to_others:
            raise PeerError(f"{', '.join(open_to_others)}: readable by others; run chmod go= on it")
        return "for their owner alone"

    def package(self) -> str:
        app = hashlib.sha256(bundle()).hexdigest()
        return f"insurance-privacy-lab {version('insurance-privacy-lab')}, approved app {app[:16]}"

    def disk(self) -> str:
        if not self._folder.is_dir():
            raise _NotYet("there is no folder")
        free = shutil.disk_usage(self._folder).free // 2**20
        if free < FREE_MIB:
            raise PeerError(f"{free} MiB are free, {FREE_MIB} are needed; make room")
        return f"{free:,} MiB are free"

    def charter(self) -> str:
        charter = charter_of(self._folder, self._settings.name)
        own = charter.member(self._settings.name).card
        if own != identity_of(self._folder).card:
            raise PeerError(
                "the charter has other keys for this party; ask the coordinator which enrolment "
                "it added"
            )
        return f"{charter.name} version {charter.version}, {charter.digest[:16]}, signed by all"

    def data(self) -> str:
        if self._settings.role not in INSURERS:
            return "a supervisor holds none"
        charter = charter_of(self._folder, self._settings.name)
        insurer = InsurerPolicy(self._folder, self._settings, charter)
        table, contract = insurer.table(), insurer.contract()
        if not charter.holds(contract.name, contract.version):
            raise PeerError(
                f"contract {contract.name} version {contract.version} is not one of the charter's: "
                + ", ".join(f"{k} version {v}" for k, v in charter.contracts.items())
            )
        for name in insurer.data.caps:
            if name not in table.frame or not is_numeric_dtype(table.frame[name]):
                raise PeerError(
                    f"data.caps of node.toml: '{name}' is no numeric column of the table; correct it"
                )
        belong = {None: "", "": ", each of another person"}.get(
            insurer.data.person, f" and belong to {insurer.data.person}"
        )
        caps = ", ".join(f"{name} at {limit:.12g}" for name, limit in insurer.data.caps.items())
        capped = f"; capped: {caps}" if caps else ""
        return f"{len(table.frame):,} rows keep contract {contract.name}{belong}{capped}"

    def joined(self) -> str:
        charter = charter_of(self._folder, self._settings.name)
        if self._settings.role not in INSURERS or charter.pairs is None:
            return "to nobody"
        side = SidePolicy(self._folder, self._settings, charter)
        peers, (table, keys) = side.pairs.peers(side.settings.name), side.keyed()
        barred = [peer for peer in peers if not side.own.products.get(peer)]
        if side.own.key != side.pairs.keys[side.settings.name] or barred:
            raise PeerError(
                f"the charter has the key {', '.join(side.pairs.keys[side.settings.name])}, and products "
                f"with {', '.join(peers)}; correct joined.key and joined.products of node.toml"
            )
        made = side.alignments.made(keys)
        aligned = [f"{peer}{'' if peer in made else ', not aligned yet'}" for peer in peers]
        return (
            f"{len(table.frame):,} rows by {' and '.join(side.own.key)} to {'; '.join(aligned)}"
            f"{_cuts_of(side, peers)}"
        )

    def scores(self) -> str:
        charter, own = charter_of(self._folder, self._settings.name), self._settings.scores
        if charter.scores is None or own is None:
            return "of one person: tells none"
        terms, models = own.tightened(charter.scores), joined_runs(self._folder)
        approval = ", each approved by a person" * (own.approval == "always")
        return (
            f"of one person: {terms.asker_a_month:,} an asker in 30 days, {terms.scores_of_a_person:,} of a "
            f"person in {terms.period_days} days, to {', '.join(terms.purposes)}; "
            f"models here: {len(models):,}{approval}"
        )

    def link(self) -> str:
        charter = charter_of(self._folder, self._settings.name)
        if self._settings.role not in INSURERS or charter.link is None:
            return "with nobody"
        own, terms = self._settings.link or OwnLink(), charter.link.condition
        text = f"{own.asks(charter.link):,} asks of a payer a day"
        if terms is None:
            return text
        kept = own.tightened(terms)
        if terms.fund != self._settings.name:
            return f"{text}; conditions are asked of {terms.fund}"
        if own.conditions is None:
            raise PeerError(
                "link.conditions of node.toml is missing: the table that it answers from"
            )
        spelling = charter.link.spelling.get("person", "normal")
        lines = read_conditions(self._folder / own.conditions, spelling)
        approval = ", each approved by a person" * (own.approval == "always")
        return f"{text}; {len(lines):,} conditions, asked by {', '.join(kept.groups)}{approval}"

    def log(self) -> str:
        path = self._folder / LOG_NAME
        if not path.exists():
            return "none yet"
        (log,) = verify_together([path], {})
        if log.verdict.fault:
            raise PeerError(f"verification fails: {log.verdict.fault}; see lab audit verify")
        return f"{log.verdict.lines:,} lines, verified"

    def admission(self) -> str:
        self._address = admission_of(self._folder, self._settings.name).address
        return f"to the exchange at {self._address}"

    def certificate(self) -> str:
        if not self._address:
            raise _NotYet("there is no admission")
        certificate = certificates.read_certificate((self._folder / CERTIFICATE).read_bytes())
        validity = certificate.not_valid_after_utc - datetime.now(UTC)
        if validity < timedelta(0):
            raise PeerError(
                f"ended on {certificate.not_valid_after_utc:%Y-%m-%d}; ask the coordinator to register "
                "this node again, and put the new admission here"
            )
        self._tls = certificates.client_side(
            self._folder / AUTHORITY, self._folder / CERTIFICATE, self._folder / KEY
        )
        soon = "; ask for a new one" if validity < timedelta(days=SOON_DAYS) else ""
        return f"good until {certificate.not_valid_after_utc:%Y-%m-%d}{soon}"

    def _host(self) -> tuple[str, int]:
        if not self._address:
            raise _NotYet("there is no admission")
        host, port = self._address.rsplit(":", 1)
        return host.strip("[]"), int(port)

    def name(self) -> str:
        host, port = self._host()
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError:
            raise PeerError(f"{host}: cannot be resolved; check the name and the network") from None
        return f"{host} is {addresses[0][4][0]}"

    def port(self) -> str:
        host, port = self._host()
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            raise PeerError(
                f"{self._address}: does not answer ({error.strerror or error}); check that the "
                "exchange is served and that no firewall blocks the connection"
            ) from None
        return f"{self._address} answers"

    def clock(self) -> str:
        import httpx

        if self._tls is None:
            raise _NotYet("there is no certificate")
        try:
            with httpx.Client(verify=self._tls, timeout=5) as client:
                response = client.get(f"https://{self._address}/health")
        except httpx.HTTPError as error:
            raise PeerError(
                f"TLS: {error}; check the exchange's certificate and this node's"
            ) from None
        if "date" not in response.headers:
            raise PeerError("the exchange's answer has no date")
        ahead = (
            datetime.now(UTC) - parsedate_to_datetime(response.headers["date"])
        ).total_seconds()
        if abs(ahead) > CLOCK_SECONDS:
            raise PeerError(
                f"is {ahead:+.0f} s off the exchange's; synchronise it, for example with chrony"
            )
        return f"within {CLOCK_SECONDS:.0f} s of the exchange's"

    def registration(self) -> str:
        if self._tls is None:
            raise _NotYet("there is no certificate")
        line = NodeLine(self._address, certificates.read_key(self._folder / KEY), self._tls)
        try:
            line.open()
        except LineError as error:
            if error.barred:
                raise PeerError(f"{error}; ask the coordinator") from None
            if error.status:  # it is known and in already, or was and is not missed yet
                return "registered, and in the exchange already"
            raise
        finally:
            line.close()
        return "registered"
