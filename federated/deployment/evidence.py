"""The evidence package of one run, for a supervisor: charter, plan, approvals, releases, scores, proofs.

A zip of readable files and a manifest of their hashes; the same inputs give the same bytes. Whoever
exports it holds no key but their own, so nothing in it rests on their word: it can be checked by
anybody who holds it, on any machine.

    charter.json, its signatures     by the members' signatures over its hash
    logs                             by each party's signed checkpoints
    approvals, refusals, receipts    read out of the logs again
    plan.json                        by its hash in the line of each node that approved it, and of
                                     the coordinator that announced it
    scores.json                      by its hash in the lines of whoever opened totals, or of the
                                     insurers that arrived at it too
    manifest.json                    follows from all others
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from federated.deployment import charter as charters
from federated.deployment.audit_logs import check, verify_together
from federated.deployment.charter import Charter, Signatures
from federated.deployment.enrolment import INSURERS
from lab.audit import log_format as audit
from lab.audit.log_format import LINE_OF_RUN, Entry
from lab.errors import ConfigurationError, LogError
from lab.files import canonical
from lab.records import Strict, parse

MANIFEST, CHARTER, SIGNATURES = "manifest.json", "charter.json", "charter.signatures.json"
PLAN, SCORES = "plan.json", "scores.json"
#: Files that are read out of the logs, by the kind of line.
SUMMARIES = {"approval": "approvals.json", "refusal": "refusals.json", "release": "receipts.json"}
LARGEST_BYTES = 2**30
WHEN = (1980, 1, 1, 0, 0, 0)  # a zip holds a time for each file; this one says nothing


class Manifest(Strict):
    """What a package says of itself. charter: its digest; without: members whose log is left out;
    files: SHA-256 by name."""

    format: Literal["insurance-privacy-lab package 2"] = "insurance-privacy-lab package 2"
    run: str
    charter: str
    without: tuple[str, ...]
    files: dict[str, str]


def export(
    folder: Path,
    charter_file: Path,
    logs: Iterable[Path],
    without: Iterable[str] = (),
) -> bytes:
    """The package of a run, as the bytes of a zip file.

    folder: where the run was kept; logs: a log or an extract of every member; without: members
    whose log is knowingly left out. Raises ConfigurationError and LogError for what is missing or
    does not hold together.
    """
    run = _run_of(folder)
    charter = charters.read_signed(charter_file)
    keys = {member.name: bytes.fromhex(member.verifying) for member in charter.members}
    extracts = _extracts(logs, keys, run)
    absent = [name for name in keys if name not in extracts]
    unexpected = [name for name in absent if name not in set(without)]
    if unexpected:
        raise ConfigurationError(
            f"run {run}: no log of {', '.join(unexpected)}; ask for an extract "
            f"(lab audit extract LOG --run {run}), or leave it out with --without"
        )
    files = {
        CHARTER: charter_file.read_bytes(),
        SIGNATURES: charters.signatures_beside(charter_file).read_bytes(),
        **{name: _file_of(folder, name) for name in (PLAN, SCORES)},
        **_summaries(extracts, run),
        **{log_name(charter, name): extracts[name] for name in keys if name in extracts},
    }
    manifest = _manifest(run, charter, absent, files)
    return zipped({MANIFEST: pretty(manifest.model_dump(mode="json")), **files})


def _extracts(logs: Iterable[Path], keys: Mapping[str, bytes], run: str) -> dict[str, bytes]:
    """Each party's lines of the run, from logs that hold together."""
    extracts: dict[str, bytes] = {}
    for log in verify_together(logs, keys):
        party, fault = log.verdict.party, log.verdict.fault
        if fault or party in extracts:
            raise LogError(f"{log.path}: {fault or f'is a second log of {party}'}")
        extracts[party] = b"".join(audit.extract(audit.read_lines(log.path), run))
    return extracts


def _run_of(folder: Path) -> str:
    """The run's name in the logs of real parties."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        result = None
    if not isinstance(result, dict):
        raise ConfigurationError(f"{folder}: holds no run; lab runs lists what there is")
    if "run" not in result:
        raise ConfigurationError(
            f"{folder}: is a simulation; a package is of a run among real parties"
        )
    return str(result["run"])


def _file_of(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{folder / name}: cannot be read: {error.strerror}") from None


def _manifest(
    run: str, charter: Charter, absent: Iterable[str], files: Mapping[str, bytes]
) -> Manifest:
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return Manifest(run=run, charter=charter.digest, without=tuple(sorted(absent)), files=hashes)


def _summaries(extracts: Mapping[str, bytes], run: str) -> dict[str, bytes]:
    """What was approved, what was refused and what left, by party, as the logs have it."""
    summaries: dict[str, dict[str, list[Any]]] = {kind: {} for kind in SUMMARIES}
    for party, data in sorted(extracts.items()):
        for entry in _lines(data, run):
            if entry.kind in summaries:
                summaries[entry.kind].setdefault(party, []).append(_line(entry))
    return {SUMMARIES[kind]: pretty(lines) for kind, lines in summaries.items()}


def _lines(extract: bytes, run: str) -> list[Entry]:
    entries = audit.entries(extract.splitlines(keepends=True))
    return [entry for entry in entries if entry.run == run]


def _line(entry: Entry) -> dict[str, Any]:
    details = {name: value for name, value in entry.told.items() if name != LINE_OF_RUN}
    return {"line": entry.seq + 1, "time": entry.time, "query": entry.query, **details}


def log_name(charter: Charter, party: str) -> str:
    seat = [member.name for member in charter.members].index(party) + 1
    name = re.sub(r"[^\w.-]", "_", party)
    return f"logs/{seat:02}-{name}.jsonl"


def pretty(content: Any) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as package:
        for name, data in files.items():
            item = zipfile.ZipInfo(name, WHEN)
            item.external_attr = 0o644 << 16
            item.create_system = 3
            package.writestr(item, data)
    return buffer.getvalue()


# Verification.


def verify_package(path: Path) -> Manifest:
    """The manifest of a package in which everything holds together.

    Raises :class:`ConfigurationError` for a file that is no package, and :class:`LogError` that
    names the file in it that does not hold.
    """
    files = unzipped(path)
    try:
        return _Package(files).verify()
    except (ConfigurationError, LogError) as error:
        raise type(error)(f"{path}: {error}") from None


@dataclass(frozen=True)
class _Package:
    """The files of a package, unverified; ``verify`` says whether they hold together."""

    files: Mapping[str, bytes]

    def verify(self) -> Manifest:
        manifest, charter = self.manifest, self.charter
        names = {MANIFEST, CHARTER, SIGNATURES, PLAN, SCORES, *SUMMARIES.values(), *self.logs}
        for name in sorted(names ^ set(self.files)):
            raise LogError(
                f"{name}: {'is missing' if name in names else 'is no file of a package'}"
            )
        for name, log in self.logs.items():
            self._check_log(name, log)
        if not any(self.lines.values()):
            raise LogError(f"{MANIFEST}: no log holds a line of run {manifest.run}")
        contents = {name: self.files[name] for name in names - {MANIFEST}}
        if manifest != _manifest(manifest.run, charter, manifest.without, contents):
            raise LogError(f"{MANIFEST}: does not match the other files")
        for name, data in _summaries(self.extracts, manifest.run).items():
            if self.files[name] != data:
                raise LogError(f"{name}: does not match the logs")
        self._check_plan()
        self._check_scores()
        return manifest

    @cached_property
    def manifest(self) -> Manifest:
        manifest = parse(Manifest, self._json(MANIFEST), where=MANIFEST)
        contents = {k: hashlib.sha256(v).hexdigest() for k, v in self.files.items()}
        del contents[MANIFEST]
        for name, _ in sorted(set(contents.items()) ^ set(manifest.files.items())):
            raise LogError(f"{name}: does not match {MANIFEST}")
        return manifest

    @cached_property
    def charter(self) -> Charter:
        charter = parse(Charter, self._json(CHARTER), where=CHARTER)
        signatures = parse(Signatures, self._json(SIGNATURES), where=SIGNATURES).by
        for name, reason in charters.missing(charter, signatures).items():
            raise LogError(f"{CHARTER} and {SIGNATURES} do not match: {name} {reason}")
        return charter

    @cached_property
    def logs(self) -> dict[str, str]:
        """The party of each log that must be there, by the log's name."""
        members, without = [m.name for m in self.charter.members], self.manifest.without
        for name in without:
            if name not in members:
                raise LogError(f"{MANIFEST}: leaves out the log of {name}, who is no member")
        return {log_name(self.charter, m): m for m in members if m not in without}

    @cached_property
    def extracts(self) -> dict[str, bytes]:
        return {party: self.files[name] for name, party in self.logs.items()}

    @cached_property
    def lines(self) -> dict[str, list[Entry]]:
        """The lines of the run in each party's log."""
        return {party: _lines(data, self.manifest.run) for party, data in self.extracts.items()}

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            raise ConfigurationError(f"{name}: is missing; this is no package of a run")
        try:
            content = json.loads(self.files[name])
            canonical(content)
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise ConfigurationError(f"{name}: is damaged, or this is no package of a run")
        return content

    def _check_log(self, name: str, party: str) -> None:
        lines = self.files[name].splitlines(keepends=True)
        key = bytes.fromhex(self.charter.member(party).verifying)
        verdict = audit.verify(lines, check, key=key)
        if verdict.fault or not verdict.lines or verdict.unsigned:
            raise LogError(f"{name}: {verdict.fault or 'does not end with a checkpoint'}")
        if verdict.party != party:
            raise LogError(f"{name}: is the log of {verdict.party}")
        for entry in self.lines[party]:
            if entry.charter != self.charter.digest:
                raise LogError(
                    f"{name}: line {entry.seq + 1} was written under charter {entry.charter}, "
                    f"the package holds {self.charter.digest}"
                )

    def _check_plan(self) -> None:
        """The plan is the one that the coordinator announced and that each node took part in."""
        digest = hashlib.sha256(self.files[PLAN]).hexdigest()
        approvals = 0
        for name, party in self.logs.items():
            announces = party == self.charter.coordinator
            kind = "request" if announces else "approval"
            lines = [e for e in self.lines[party] if e.kind == kind and "plan" in e.told]
            for entry in lines:
                if entry.told["plan"] != digest:
                    raise LogError(f"{PLAN}: is not the plan of {name}, line {entry.seq + 1}")
            if not lines and any(entry.kind == "release" for entry in self.lines[party]):
                raise LogError(f"{PLAN}: {party} released something, and its log names no plan")
            approvals += len(lines) * (not announces)
        if not approvals:
            raise LogError(f"{PLAN}: no log in this package says that a node approved it")

    def _check_scores(self) -> None:
        """The scores are those of whoever opened totals, and of every insurer that took a model."""
        scores = hashlib.sha256(self.files[SCORES]).hexdigest()
        plan = hashlib.sha256(self.files[PLAN]).hexdigest()
        parties = set()
        for name, party in self.logs.items():
            for entry in (e for e in self.lines[party] if e.kind == "outcome"):
                if (entry.told["plan"], entry.told["scores"]) != (plan, scores):
                    raise LogError(f"{SCORES}: are not the scores of {name}, line {entry.seq + 1}")
                parties.add(party)
        key, here = self.charter.key, set(self.logs.values())
        if key is not None and key.opens == "authority" and key.by[0] in here:
            if key.by[0] not in parties:
                raise LogError(f"{SCORES}: the log of {key.by[0]} vouches for no outcome")
            return
        insurers = {member.name for member in self.charter.members if member.role in INSURERS}
        least = max(1, min(self.charter.minimum_parties, len(insurers & here)))
        if len(parties & insurers) < least:
            raise LogError(
                f"{SCORES}: the logs of {len(parties & insurers)} insurers vouch for them, "
                f"those of {least} must"
            )


def unzipped(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as package:
            items = package.infolist()
            if sum(item.file_size for item in items) > LARGEST_BYTES:
                raise ConfigurationError(f"{path}: is larger than a package may be")
            if len({item.filename for item in items}) != len(items):
                raise LogError(f"{path}: holds a file twice")
            return {item.filename: package.read(item) for item in items}
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise ConfigurationError(f"{path}: is no package of a run, or is damaged") from error
