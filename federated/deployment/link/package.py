"""The package of a link, for a supervisor: charter, members' logs, who asked how often, what both say.

    charter.json, its signatures     by the members' signatures over its hash
    logs                             by each member's signed checkpoints
    rates.json                       read again out of the logs of those who are asked
    questions.json                   each question about a condition or a score, as the logs of both sides
                                     have it
    manifest.json                    follows from all others

Nothing in it rests on the word of whoever exports it. The logs name no person: handles, consents by
their digests, groups, purposes; and an insurer's own holds its answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from federated.deployment import charter as charters
from federated.deployment.audit_logs import check, verify_together
from federated.deployment.charter import Charter, Signatures
from federated.deployment.enrolment import INSURERS
from federated.deployment.evidence import (
    CHARTER,
    MANIFEST,
    SIGNATURES,
    Manifest,
    log_name,
    pretty,
    unzipped,
    verify_package,
    zipped,
)
from federated.link.condition import RATES as COUNTED
from federated.link.condition import STATISTIC, rates
from federated.link.party_log import OF_LINK
from federated.queries.person.sides import STATISTIC as SCORE
from lab.audit import log_format as audit
from lab.audit.log_format import Entry
from lab.errors import ConfigurationError, LogError
from lab.records import Strict, parse

ABOUT = (STATISTIC, SCORE)
RATES, QUESTIONS = "rates.json", "questions.json"
FORMAT: Literal["insurance-privacy-lab link package 1"] = "insurance-privacy-lab link package 1"


class LinkManifest(Strict):
    """What a package says of itself. charter: its digest; without: members whose log is left out."""

    format: Literal["insurance-privacy-lab link package 1"] = FORMAT
    charter: str
    without: tuple[str, ...]
    files: dict[str, str]


def export_link(charter_file: Path, logs: Iterable[Path], without: Iterable[str] = ()) -> bytes:
    """The package, as the bytes of a zip file. logs: of every payer and the coordinator.

    Raises ConfigurationError and LogError for what is missing or does not hold together.
    """
    charter = charters.read_signed(charter_file)
    keys = {member.name: bytes.fromhex(member.verifying) for member in charter.members}
    contents: dict[str, bytes] = {}
    for log in verify_together(logs, keys):
        party = log.verdict.party.removesuffix(OF_LINK)
        if party == log.verdict.party and not log.verdict.fault:
            continue  # a node's own log, which is of studies
        if log.verdict.fault:
            raise LogError(f"{log.path}: {log.verdict.fault}")
        contents[log_name(charter, party)] = log.path.read_bytes()
    absent = [name for name in _members(charter) if log_name(charter, name) not in contents]
    unexpected = [name for name in absent if name not in set(without)]
    if unexpected:
        raise ConfigurationError(
            f"no link's log of {', '.join(unexpected)}; ask for it, or leave it out with --without"
        )
    files = {
        CHARTER: charter_file.read_bytes(),
        SIGNATURES: charters.signatures_beside(charter_file).read_bytes(),
        **contents,
    }
    files |= _summaries(charter, files)
    manifest = _manifest(charter, absent, files)
    return zipped({MANIFEST: pretty(manifest.model_dump(mode="json")), **files})


def verify_link(files: Mapping[str, bytes]) -> LinkManifest:
    """The manifest of a package in which everything holds together. Raises as `export_link`."""
    manifest = parse(LinkManifest, _json(files, MANIFEST), where=MANIFEST)
    charter = parse(Charter, _json(files, CHARTER), where=CHARTER)
    signatures = parse(Signatures, _json(files, SIGNATURES), where=SIGNATURES).by
    for name, reason in charters.missing(charter, signatures).items():
        raise LogError(f"{CHARTER} and {SIGNATURES} do not match: {name} {reason}")
    others = {name: data for name, data in files.items() if name != MANIFEST}
    for name, digest in _hashes(others).items():
        if manifest.files.get(name) != digest:
            raise LogError(f"{name}: does not match {MANIFEST}")
    logs = {log_name(charter, m): m for m in _members(charter) if m not in manifest.without}
    wanted = {CHARTER, SIGNATURES, RATES, QUESTIONS, *logs}
    for name in sorted(wanted ^ set(others)):
        raise LogError(f"{name}: {'is missing' if name in wanted else 'is no file of a package'}")
    for name, party in logs.items():
        _check_log(name, files[name], charter, party)
    for name, data in _summaries(charter, files).items():
        if files[name] != data:
            raise LogError(f"{name}: does not match the logs")
    if manifest != _manifest(charter, manifest.without, others):
        raise LogError(f"{MANIFEST}: does not match the other files")
    return manifest


def verify_any(path: Path) -> Manifest | LinkManifest:
    """The manifest of a package of a run or of a link. Raises ConfigurationError and LogError."""
    files = unzipped(path)
    if FORMAT.encode() not in files.get(MANIFEST, b""):
        return verify_package(path)
    try:
        return verify_link(files)
    except (ConfigurationError, LogError) as error:
        raise type(error)(f"{path}: {error}") from None


def _members(charter: Charter) -> list[str]:
    """Who keeps a log of a link: payers and the coordinator."""
    return [m.name for m in charter.members if m.role in (*INSURERS, "coordinator")]


def _check_log(name: str, data: bytes, charter: Charter, party: str) -> None:
    key = bytes.fromhex(charter.member(party).verifying)
    verdict = audit.verify(data.splitlines(keepends=True), check, key=key)
    if verdict.fault or not verdict.lines or verdict.unsigned:
        fault = (
            verdict.fault or "does not end with a checkpoint; stop lab link serve, and export anew"
        )
        raise LogError(f"{name}: {fault}")
    if verdict.party != f"{party}{OF_LINK}":
        raise LogError(f"{name}: is the log of {verdict.party}")


def _summaries(charter: Charter, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """How often each asker asked on each day, and each question as both sides noted it."""
    lines = {
        party: list(audit.entries(files[log_name(charter, party)].splitlines(keepends=True)))
        for party in _members(charter)
        if log_name(charter, party) in files
    }
    columns = ("asker", "day", *COUNTED)
    counted = [
        {"asked": party, "about": about, **dict(zip(columns, row, strict=True))}
        for party, entries in lines.items()
        for about in ABOUT
        for row in rates(entries, about)
        if row[0] != party
    ]
    questions: dict[str, dict[str, Any]] = {}
    for party, entries in lines.items():
        for line in entries:
            if line.told.get("statistic") in ABOUT and "consent" in line.told:
                _note(questions.setdefault(str(line.told["consent"]), {}), party, line)
    return {RATES: pretty(counted), QUESTIONS: pretty(dict(sorted(questions.items())))}


def _note(question: dict[str, Any], party: str, line: Entry) -> None:
    """One side's word of a question: that it was asked, who approved it, what was answered."""
    side = question.setdefault(party, {})
    if line.kind == "request":
        side |= {name: line.told[name] for name in ("by", "group", "purpose")}
        side["asked"] = line.time
    elif line.kind in ("approval", "answer"):
        side[line.kind] = line.told["by" if line.kind == "approval" else "answer"]


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def _manifest(charter: Charter, absent: Iterable[str], files: Mapping[str, bytes]) -> LinkManifest:
    return LinkManifest(charter=charter.digest, without=tuple(sorted(absent)), files=_hashes(files))


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        content = json.loads(files[name])
    except (KeyError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{name}: is missing or damaged; this is no package of a link")
    return content
