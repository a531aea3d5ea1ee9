"""The supervisor's package: everybody who holds it can check it, and nothing in it can be altered."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from federated.cli.main import lab
from federated.deployment import charter as charters
from federated.deployment.audit_logs import open_log
from federated.deployment.evidence import MANIFEST, PLAN, SCORES, export, verify_package
from lab.audit import log_format as audit
from lab.errors import ConfigurationError, LabError, LogError
from lab.files import canonical
from secure_agg.keys import PrivateKey
from tests.federated.deployment.test_audit_logs import RELEASE, fill
from tests.rigs.members import Members, members

RUN = "20261126-210000-visits-ab12"
PLANNED = b'{"experiment":{"name":"visits","seed":7}}'
SCORED = b'{"models":{"model":"ab"},"scores":{"model":{"gini":0.3125}}}'
VOUCHED = {
    "plan": hashlib.sha256(PLANNED).hexdigest(),
    "scores": hashlib.sha256(SCORED).hexdigest(),
}


def write_log(folder: Path, members: Members, name: str, **vouched: str) -> None:
    """A member's log of the run. vouched: what the hashes in it are, if not the package's."""
    hashes = VOUCHED | vouched
    with open_log(
        folder / "log.jsonl", members.identities[name], charter=members.charter.digest
    ) as log:
        if name == members.charter.coordinator:
            log.append("request", run=RUN, statistic="visits", by=name, plan=hashes["plan"])
        else:
            log.append("approval", run=RUN, statistic="glm", by="an actuary", plan=hashes["plan"])
        fill(log, RUN, "another run", RUN)
        log.append("refusal", run=RUN, statistic="cells", rule="minimum_rows", text="too few")
        log.append("outcome", run=RUN, model="ab", **hashes)


@pytest.fixture
def deployed(tmp_path: Path, authority_key: PrivateKey) -> Members:
    """A run as it lies at the members: their charter, their logs, the run's folder."""
    five = members(tmp_path, authority_key.public)
    five.sign(tmp_path / "charter.json")
    for name in five.identities:
        (tmp_path / "logs" / name).mkdir(parents=True)
        write_log(tmp_path / "logs" / name, five, name)
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"run": RUN, "arms": {}}))
    (folder / PLAN).write_bytes(PLANNED)
    (folder / SCORES).write_bytes(SCORED)
    return five


def logs(folder: Path) -> list[Path]:
    return sorted((folder / "logs").rglob("log.jsonl"))


def packed(folder: Path) -> Path:
    path = folder / "package.zip"
    path.write_bytes(export(folder / "runs" / RUN, folder / "charter.json", logs(folder)))
    return path


def contents(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as package:
        return {name: package.read(name) for name in package.namelist()}


def test_a_package_holds_what_a_supervisor_asks_for_and_verifies(
    deployed: Members, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    assert verify_package(path).run == RUN
    files = contents(path)
    assert (files[PLAN], files[SCORES]) == (PLANNED, SCORED)
    receipts = json.loads(files["receipts.json"])
    assert set(receipts) == set(deployed.identities)
    assert [line["bytes"] for line in receipts["ping-an"]] == [RELEASE["bytes"]] * 2
    assert json.loads(files["approvals.json"])["太保"][0]["by"] == "an actuary"
    assert json.loads(files["refusals.json"])["太保"][0]["rule"] == "minimum_rows"
    assert not any(b"another run" in data for data in files.values())


def test_the_same_inputs_give_the_same_bytes(deployed: Members, tmp_path: Path) -> None:
    first = packed(tmp_path).read_bytes()
    assert packed(tmp_path).read_bytes() == first


def repacked(path: Path, files: dict[str, bytes]) -> None:
    """A package whose manifest fits its files again, as a forger would make it."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {
        name: hashlib.sha256(data).hexdigest()
        for name, data in files.items()
        if name != "manifest.json"
    }
    path.write_bytes(zipped(files | {MANIFEST: json.dumps(manifest).encode()}))


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        for name, data in files.items():
            package.writestr(name, data)
    return buffer.getvalue()


def forgeries(data: bytes) -> Iterator[bytes]:
    """A file with one letter or digit changed, in places all over it; cut short; and emptied."""
    places = [at for at, sign in enumerate(data) if chr(sign).isalnum() and sign < 128]
    for at in places[:: max(1, len(places) // 12)]:
        other = b"1" if data[at : at + 1] != b"1" else b"2"
        yield data[:at] + other + data[at + 1 :]
    yield data[: len(data) // 2]
    yield b""
    yield b"{}\n"


def test_whoever_alters_any_file_and_the_manifest_is_told_which(
    deployed: Members, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    files = contents(path)
    assert len(files) == 7 + 1 + len(deployed.identities)
    for name in set(files) - {MANIFEST}:
        for forgery in forgeries(files[name]):
            repacked(path, files | {name: forgery})
            with pytest.raises(LabError, match=re.escape(name)):
                verify_package(path)


def test_whoever_leaves_a_file_out_or_adds_one_is_told_which(
    deployed: Members, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    files = contents(path)
    for name in set(files) - {MANIFEST}:
        repacked(path, {k: v for k, v in files.items() if k != name})
        with pytest.raises(LabError, match=rf"{re.escape(name)}: is missing"):
            verify_package(path)
    for name in ("note.txt", "logs/09-nobody.jsonl"):
        repacked(path, files | {name: b"x"})
        with pytest.raises(LogError, match=rf"{name}: is no file of a package"):
            verify_package(path)
    path.write_bytes(zipped({k: v for k, v in files.items() if k != MANIFEST}))
    with pytest.raises(ConfigurationError, match=r"manifest\.json: is missing"):
        verify_package(path)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "another"},
        {"charter": "0" * 64},
        {"without": ["nobody"]},
        {"format": "insurance-privacy-lab package 1"},
        {"note": "more"},
    ],
)
def test_whoever_alters_the_manifest_is_told_so(
    deployed: Members, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = packed(tmp_path)
    files = contents(path)
    manifest = json.loads(files[MANIFEST]) | change
    path.write_bytes(zipped(files | {MANIFEST: json.dumps(manifest).encode()}))
    with pytest.raises(LabError, match=r"manifest\.json"):
        verify_package(path)


@pytest.mark.parametrize("file", [PLAN, SCORES])
def test_an_exporter_who_signs_its_own_log_anew_is_contradicted_by_the_others(
    deployed: Members, tmp_path: Path, file: str
) -> None:
    forgery = tmp_path / "runs" / RUN / file
    forgery.write_bytes(b'{"forged":true}')
    own = tmp_path / "logs" / "exchange"
    for each in own.iterdir():
        each.unlink()
    digest = hashlib.sha256(forgery.read_bytes()).hexdigest()
    write_log(own, deployed, "exchange", **{file.removesuffix(".json"): digest})
    with pytest.raises(LogError, match=rf"{file}: .*logs/02-city_fund\.jsonl"):
        verify_package(packed(tmp_path))


def hidden(data: bytes, kind: str) -> bytes:
    """An extract in which the first line of a kind is shown as its digest alone."""
    lines = data.splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if f'"kind":"{kind}"'.encode() in line)
    entry = audit.parsed(lines[at])
    assert isinstance(entry, audit.Entry)
    lines[at] = canonical({"seq": entry.seq, "digest": entry.digest.hex()}) + b"\n"
    return b"".join(lines)


@pytest.mark.parametrize("kind", ["approval", "request", "release", "refusal"])
def test_a_line_of_the_run_that_an_extract_hides_is_missed(
    deployed: Members, tmp_path: Path, kind: str
) -> None:
    path = packed(tmp_path)
    files, name = contents(path), "logs/03-ping-an.jsonl"
    repacked(path, files | {name: hidden(files[name], kind)})
    with pytest.raises(LogError, match=rf"{name}: .*a line of it is hidden"):
        verify_package(path)


def test_scores_that_whoever_opened_totals_does_not_vouch_for_are_refused(
    deployed: Members, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    files, name = contents(path), "logs/05-supervisor.jsonl"
    repacked(path, files | {name: hidden(files[name], "outcome")})
    with pytest.raises(LogError, match=r"scores\.json: the log of supervisor vouches for no"):
        verify_package(path)


def test_without_the_supervisors_log_insurers_vouch_for_the_scores(
    deployed: Members, tmp_path: Path
) -> None:
    run, charter = tmp_path / "runs" / RUN, tmp_path / "charter.json"
    few = [log for log in logs(tmp_path) if log.parent.name != "supervisor"]
    path = tmp_path / "package.zip"
    path.write_bytes(export(run, charter, few, without=["supervisor"]))
    assert verify_package(path).without == ("supervisor",)
    files, name = contents(path), "logs/03-ping-an.jsonl"
    repacked(path, files | {name: hidden(files[name], "outcome")})
    with pytest.raises(LogError, match=r"scores\.json: the logs of 2 insurers vouch .* 3 must"):
        verify_package(path)


def test_a_file_that_the_manifest_does_not_know_is_refused(
    deployed: Members, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    with zipfile.ZipFile(path, "a") as package:
        package.writestr("note.txt", b"")
    with pytest.raises(LogError, match=r"note\.txt: does not match manifest"):
        verify_package(path)


def test_a_missing_log_is_named_and_may_be_left_out_knowingly(
    deployed: Members, tmp_path: Path
) -> None:
    run, charter = tmp_path / "runs" / RUN, tmp_path / "charter.json"
    few = [path for path in logs(tmp_path) if "ping-an" not in str(path)]
    with pytest.raises(ConfigurationError, match="no log of ping-an"):
        export(run, charter, few)
    path = tmp_path / "package.zip"
    path.write_bytes(export(run, charter, few, without=["ping-an"]))
    assert verify_package(path).without == ("ping-an",)


def test_a_log_that_does_not_hold_or_comes_twice_is_not_packed(
    deployed: Members, tmp_path: Path
) -> None:
    run, charter = tmp_path / "runs" / RUN, tmp_path / "charter.json"
    with pytest.raises(LogError, match="second log of"):
        export(run, charter, [*logs(tmp_path), logs(tmp_path)[0]])
    spoilt = logs(tmp_path)[0]
    spoilt.write_bytes(spoilt.read_bytes().replace(b":4096", b":4097"))
    with pytest.raises(LogError, match="line 4: does not follow"):
        export(run, charter, logs(tmp_path))


def test_lines_under_another_charter_do_not_pass_for_this_one(
    deployed: Members, tmp_path: Path
) -> None:
    changed = deployed.charter.model_dump() | {"version": 99}
    deployed.sign(tmp_path / "charter.json", charters.Charter.model_validate(changed))
    with pytest.raises(LogError, match="was written under charter"):
        verify_package(packed(tmp_path))


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip" * 99])
def test_what_is_no_package_is_told_in_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "package.zip"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError, match="no package of a run"):
        verify_package(path)


def command(*arguments: object) -> Result:
    done = CliRunner().invoke(lab, [str(a) for a in arguments])
    if isinstance(done.exception, LabError):
        raise done.exception
    return done


def test_the_commands_verify_show_extract_and_export(deployed: Members, tmp_path: Path) -> None:
    charter, ping_an = tmp_path / "charter.json", tmp_path / "logs" / "ping-an" / "log.jsonl"
    done = command("audit", "verify", tmp_path / "logs", "--charter", charter)
    assert done.exit_code == 0
    assert done.output.count(" holds: ") == 5
    shown = command("audit", "show", ping_an, "--run", RUN, "--kind", "release").output
    assert shown.count("  release  ") == 2
    extract = tmp_path / "ping-an.jsonl"
    assert command("audit", "extract", ping_an, "--run", RUN, "--out", extract).exit_code == 0
    done = command("audit", "verify", extract, "--charter", charter)
    assert "as a digest alone" in done.output
    others = [x for path in logs(tmp_path) if path != ping_an for x in ("--log", path)]
    package = tmp_path / "run.zip"
    done = command(
        *("audit", "export", "--run", RUN, "--runs", tmp_path / "runs", "--charter", charter),
        *("--log", extract, *others, "--out", package),
    )
    assert "verified" in done.output
    assert "holds" in command("audit", "verify", package).output


def test_the_command_exits_with_1_for_a_log_that_does_not_hold(
    deployed: Members, tmp_path: Path
) -> None:
    path = tmp_path / "logs" / "ping-an" / "log.jsonl"
    path.write_bytes(path.read_bytes().replace(b":4096", b":4097"))
    done = command("audit", "verify", tmp_path / "logs")
    assert done.exit_code == 1
    assert "ping-an/log.jsonl: DOES NOT HOLD: line 4: does not follow" in done.output
    key = deployed.identities["太保"].card.verifying.hex()
    assert (
        command("audit", "verify", tmp_path / "logs" / "太保" / "log.jsonl", "--key", key).exit_code
        == 0
    )
    with pytest.raises(ConfigurationError, match="64 hexadecimal digits"):
        command("audit", "verify", path, "--key", "abc")
    with pytest.raises(ConfigurationError, match="holds no log"):
        command("audit", "verify", tmp_path / "runs")
