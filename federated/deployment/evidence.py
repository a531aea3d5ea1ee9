"""The evidence package of one run, for a supervisor: charter, approvals, releases, scores, proofs.

A zip of readable files and a manifest of their hashes; the same inputs give the same bytes. It can
be checked by anybody who holds it, on any machine: the charter by its members' signatures, each
party's extract by the party's signed checkpoints, the summaries by the extracts.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from federated.deployment import charter as charters
from federated.deployment.audit_logs import check, verify_together
from federated.deployment.charter import Charter, Signatures
from lab.audit import log_format as audit
from lab.audit.log_format import Entry
from lab.errors import ConfigurationError, LogError
from lab.files import canonical
from lab.records import parse

FORMAT = "insurance-privacy-lab package 1"
LARGEST_BYTES = 2**30
WHEN = (1980, 1, 1, 0, 0, 0)  # a zip holds a time for each file; this one says nothing


def export(
    folder: Path,
    charter_file: Path,
    logs: Iterable[Path],
    without: Iterable[str] = (),
) -> bytes:
    """The package of a run, as the bytes of a zip file.

    folder: where the run was kept; logs: a log or an extract of every member; without: members
    whose log is knowingly left out. The run's identifier in the logs is "run" of its result, or
    the folder's name. Raises ConfigurationError and LogError for what is missing or does not hold
    together.
    """
    result = _result(folder)
    run = str(result.get("run", folder.resolve().name))
    charter = charters.read_signed(charter_file)
    keys = {member.name: bytes.fromhex(member.verifying) for member in charter.members}
    extracts = _extracts(logs, keys, run)
    absent = [name for name in keys if name not in extracts]
    unexpected = [name for name in absent if name not in set(without)]
    if unexpected:
        raise ConfigurationError(
            f"run {run}: no log of {', '.join(unexpected)}; ask for an extract "
            f"(lab audit extract LOG --run {run}), or leave it out by --without"
        )
    files = {
        "charter.json": charter_file.read_bytes(),
        "charter.signatures.json": charters.signatures_beside(charter_file).read_bytes(),
        "experiment.json": _pretty(result["experiment"]),
        "scores.json": _pretty(_scores(result)),
        **_summaries(extracts, run),
        **{_log_name(charter, name): extracts[name] for name in keys if name in extracts},
    }
    manifest = {
        "format": FORMAT,
        "run": run,
        "charter": charter.digest,
        "without": sorted(absent),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    return _zipped({"manifest.json": _pretty(manifest), **files})


def _extracts(logs: Iterable[Path], keys: Mapping[str, bytes], run: str) -> dict[str, bytes]:
    """Each party's lines of the run, from logs that hold together."""
    extracts: dict[str, bytes] = {}
    for log in verify_together(logs, keys):
        party, fault = log.verdict.party, log.verdict.fault
        if fault or party in extracts:
            raise LogError(f"{log.path}: {fault or f'is a second log of {party}'}")
        extracts[party] = b"".join(audit.extract(audit.read_lines(log.path), run))
    return extracts


def _result(folder: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return {"experiment": result["experiment"], "arms": result["arms"], **result}
    except (OSError, ValueError, KeyError):
        raise ConfigurationError(f"{folder}: holds no run; lab runs lists what there is") from None


def _scores(result: Mapping[str, Any]) -> dict[str, Any]:
    """Scores and hashes of every arm; models stay where they are."""
    names = ("scores", "model_hash", "model_hashes", "failures", "notes")
    return {
        "arms": {
            arm: {name: arm_result[name] for name in names if name in arm_result}
            for arm, arm_result in result["arms"].items()
        },
        **{name: result[name] for name in ("differences", "receipt_totals") if name in result},
    }


def _summaries(extracts: Mapping[str, bytes], run: str) -> dict[str, bytes]:
    """What was approved, what was refused and what left, by party, as the logs have it."""
    summaries: dict[str, dict[str, list[Any]]] = {"approval": {}, "refusal": {}, "release": {}}
    for party, data in sorted(extracts.items()):
        for entry in audit.entries(data.splitlines(keepends=True)):
            if entry.run == run and entry.kind in summaries:
                summaries[entry.kind].setdefault(party, []).append(_line(entry))
    names = {"approval": "approvals", "refusal": "refusals", "release": "receipts"}
    return {f"{names[kind]}.json": _pretty(lines) for kind, lines in summaries.items()}


def _line(entry: Entry) -> dict[str, Any]:
    return {"line": entry.seq + 1, "time": entry.time, "query": entry.query, **entry.told}


def _log_name(charter: Charter, party: str) -> str:
    seat = [member.name for member in charter.members].index(party) + 1
    name = re.sub(r"[^\w.-]", "_", party)
    return f"logs/{seat:02}-{name}.jsonl"


def _pretty(content: Any) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as package:
        for name, data in files.items():
            item = zipfile.ZipInfo(name, WHEN)
            item.external_attr = 0o644 << 16
            item.create_system = 3
            package.writestr(item, data)
    return buffer.getvalue()


def verify_package(path: Path) -> dict[str, Any]:
    """The manifest of a package in which everything holds together.

    Raises :class:`ConfigurationError` for a file that is no package, and :class:`LogError` that
    says what in it does not hold.
    """
    files = _unzipped(path)
    manifest = _json(path, files.pop("manifest.json", b""))
    if manifest.get("format") != FORMAT:
        raise ConfigurationError(f"{path}: is no package of a run")
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    listing = manifest.get("files")
    wrong = sorted(set(hashes.items()) ^ set(dict(listing).items() if listing else ()))
    if wrong:
        raise LogError(f"{path}: {wrong[0][0]} does not match the manifest")
    charter = parse(Charter, _json(path, files["charter.json"]), where=f"{path}: charter.json")
    signatures = parse(
        Signatures, _json(path, files["charter.signatures.json"]), where=f"{path}: signatures"
    ).by
    for name, reason in charters.missing(charter, signatures).items():
        raise LogError(f"{path}: charter.json: {name} {reason}")
    if manifest["charter"] != charter.digest:
        raise LogError(f"{path}: the manifest is of charter {manifest['charter']}")
    run = str(manifest["run"])
    extracts = {}
    for member in charter.members:
        if member.name not in manifest["without"]:
            data = files.get(_log_name(charter, member.name), b"")
            _check_extract(path, charter, member.name, data, run)
            extracts[member.name] = data
    for name, data in _summaries(extracts, run).items():
        if files.get(name) != data:
            raise LogError(f"{path}: {name} does not match the logs")
    return manifest


def _check_extract(path: Path, charter: Charter, party: str, data: bytes, run: str) -> None:
    where = f"{path}: log of {party}"
    lines = data.splitlines(keepends=True)
    key = bytes.fromhex(charter.member(party).verifying)
    verdict = audit.verify(lines, check, key=key)
    if verdict.fault or not verdict.lines or verdict.unsigned:
        raise LogError(f"{where}: {verdict.fault or 'does not end with a checkpoint'}")
    if verdict.party != party:
        raise LogError(f"{where}: is the log of {verdict.party}")
    for entry in audit.entries(lines):
        if entry.run == run and entry.charter != charter.digest:
            raise LogError(
                f"{where}: line {entry.seq + 1} was written under charter {entry.charter}, "
                f"the package holds {charter.digest}"
            )


def _unzipped(path: Path) -> dict[str, bytes]:
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


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
        canonical(content)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: is no package of a run, or is damaged")
    return content
