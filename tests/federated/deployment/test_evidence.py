"""The supervisor's package: everybody who holds it can check it, and nothing in it can be altered."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from federated.cli.main import lab
from federated.deployment import charter as charters
from federated.deployment.audit_logs import open_log
from federated.deployment.evidence import export, verify_package
from lab.errors import ConfigurationError, LabError, LogError
from secure_agg.keys import PrivateKey
from tests.federated.deployment.test_audit_logs import RELEASE, fill
from tests.rigs.members import Members, members

RUN = "20261126-210000-visits-ab12"


@pytest.fixture
def deployed(tmp_path: Path, authority_key: PrivateKey) -> Members:
    """A run as it lies at the members: their charter, their logs, the run's folder."""
    five = members(tmp_path, authority_key.public)
    agreed = five.sign(tmp_path / "charter.json")
    for name, identity in five.identities.items():
        folder = tmp_path / "logs" / name
        folder.mkdir(parents=True)
        with open_log(folder / "log.jsonl", identity, charter=agreed.digest) as log:
            log.append("approval", run=RUN, statistic="glm", by="actuary on duty")
            fill(log, RUN, "another run", RUN)
            log.append("refusal", run=RUN, statistic="cells", rule="minimum_rows", text="too few")
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True)
    result = {
        "experiment": {"name": "visits"},
        "arms": {
            "federated": {
                "scores": {"all": {"gini": 0.3}},
                "model_hash": "ab",
                "fit": {"coefficients": [1.25]},
            }
        },
        "receipt_totals": {"messages": 10},
    }
    (folder / "result.json").write_text(json.dumps(result))
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
    assert verify_package(path)["run"] == RUN
    files = contents(path)
    assert json.loads(files["experiment.json"]) == {"name": "visits"}
    assert json.loads(files["scores.json"])["arms"]["federated"]["model_hash"] == "ab"
    receipts = json.loads(files["receipts.json"])
    assert set(receipts) == set(deployed.identities)
    assert [line["bytes"] for line in receipts["ping-an"]] == [RELEASE["bytes"]] * 2
    assert json.loads(files["approvals.json"])["太保"][0]["by"] == "actuary on duty"
    assert json.loads(files["refusals.json"])["太保"][0]["rule"] == "minimum_rows"
    assert not any(b"another run" in data for data in files.values())
    assert b"1.25" not in files["scores.json"]


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
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        for name, data in (files | {"manifest.json": json.dumps(manifest).encode()}).items():
            package.writestr(name, data)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("receipts.json", lambda d: d.replace(b"4096", b"4097"), "does not match the logs"),
        ("approvals.json", lambda d: b"{}\n", "does not match the logs"),
        ("logs/03-ping-an.jsonl", lambda d: d.replace(b"4096", b"4097"), "does not follow"),
        (
            "logs/03-ping-an.jsonl",
            lambda d: b"".join(d.splitlines(True)[:-1]),
            "not end with a checkpoint",
        ),
        ("logs/03-ping-an.jsonl", lambda d: b"", "does not end with a checkpoint"),
        ("charter.json", lambda d: d.replace(b'": 10,', b'": 99,'), "and this charter is"),
        ("charter.signatures.json", lambda d: d.replace(b"ping-an", b"ping an"), "has not signed"),
    ],
)
def test_a_package_altered_with_a_fitting_manifest_is_refused(
    deployed: Members,
    tmp_path: Path,
    file: str,
    change: Callable[[bytes], bytes],
    words: str,
) -> None:
    path = packed(tmp_path)
    files = contents(path)
    assert change(files[file]) != files[file]
    repacked(path, files | {file: change(files[file])})
    with pytest.raises(LogError, match=words):
        verify_package(path)


def test_a_file_that_the_manifest_does_not_know_is_refused(
    deployed: Members, tmp_path: Path
) -> None:
    path = packed(tmp_path)
    with zipfile.ZipFile(path, "a") as package:
        package.writestr("note.txt", b"")
    with pytest.raises(LogError, match=r"note\.txt does not match the manifest"):
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
    assert verify_package(path)["without"] == ["ping-an"]


def test_a_log_that_does_not_hold_or_comes_twice_is_not_packed(
    deployed: Members, tmp_path: Path
) -> None:
    run, charter = tmp_path / "runs" / RUN, tmp_path / "charter.json"
    with pytest.raises(LogError, match="second log of"):
        export(run, charter, [*logs(tmp_path), logs(tmp_path)[0]])
    spoilt = logs(tmp_path)[0]
    spoilt.write_bytes(spoilt.read_bytes().replace(b"4096", b"4097"))
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
