"""The package of a link: what a supervisor reads in it follows from the members' logs."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from federated.cli.main import lab
from federated.deployment.charter import Charter
from federated.deployment.evidence import unzipped, zipped
from federated.deployment.link.member import LinkFolder, link_folder
from federated.deployment.link.package import (
    QUESTIONS,
    RATES,
    LinkManifest,
    export_link,
    verify_any,
    verify_link,
)
from federated.deployment.link.signer import read_receipts, sign_question
from federated.deployment.link.trial import EXCHANGE, SIGNER, make_trial
from federated.link.charter import LinkCharter
from federated.link.condition import FundSide, InsurerSide
from federated.link.lookup import Condition
from federated.link.party_log import party_log
from federated.link.services.condition_service import Answered
from lab.errors import ConfigurationError, LogError, PeerError, PolicyError
from lab.records import parse
from tests.federated.deployment.link.test_processes import TERMS

PAYERS = ("fund", "north", "south")
TODAY = datetime.now(UTC).date()
RECORD = [Condition("1", "diabetes", date(2020, 5, 1))]
OPEN = TERMS | {"condition": {**TERMS["condition"], "look_up": "open"}}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members of a trial with logs: north asks once, and once more with the same consent."""
    root = tmp_path_factory.mktemp("package") / "trial"
    claims = {name: root.parent / f"{name}.csv" for name in PAYERS}
    make_trial(root, claims, parse(LinkCharter, OPEN, where="test"), RECORD, 9)
    folders = {name: link_folder(root / name) for name in (*PAYERS, EXCHANGE)}
    with ExitStack() as stack:
        logs = {name: stack.enter_context(_log(one, name)) for name, one in folders.items()}
        terms = folders["fund"].condition_terms()
        assert terms is not None
        secret = b"s" * 32
        fund = FundSide(folders["fund"].identity, terms, RECORD, secret, secret, logs["fund"])
        north = InsurerSide(folders["north"].identity, terms, logs["north"])
        wanted = {"insurer": "north", "person": "1", "group": "diabetes"}
        word = sign_question(root / SIGNER, before=date(2023, 1, 1), today=TODAY, **wanted).consent
        north.asks(word)
        reply, theirs = fund.answer(word, "north", TODAY)
        answer, ours = north.read(word, reply, TODAY)
        told = Answered(answer=answer, fund=theirs, insurer=ours)
        (root / "receipts.json").write_text(told.model_dump_json())
        with pytest.raises(PolicyError):
            fund.answer(word, "north", TODAY)
    return root


def _log(folder: LinkFolder, name: str):  # type: ignore[no-untyped-def]
    return party_log(folder.identity, folder.home, folder.charter.digest, name)


def _logs(root: Path) -> list[Path]:
    return [root / name / "link" / "log.jsonl" for name in (*PAYERS, EXCHANGE)]


def test_a_package_shows_rates_and_each_question_as_both_sides_noted_it(root: Path) -> None:
    file = root.parent / "link.zip"
    file.write_bytes(export_link(root / "fund" / "charter.json", _logs(root)))
    manifest = verify_any(file)
    assert isinstance(manifest, LinkManifest) and manifest.without == ()
    assert manifest.charter == Charter.read(root / "fund" / "charter.json").digest
    files = unzipped(file)
    (line,) = json.loads(files[RATES])
    assert (line["asker"], line["questions"], line["persons"], line["refused"]) == (
        "north",
        1,
        1,
        1,
    )
    (sides,) = json.loads(files[QUESTIONS]).values()
    assert {name: side["answer"] for name, side in sides.items()} == {"fund": "yes", "north": "yes"}
    assert file.read_bytes() == export_link(root / "fund" / "charter.json", _logs(root))


def test_a_person_checks_what_both_sides_signed(root: Path) -> None:
    file, charter = root / "receipts.json", root / "fund" / "charter.json"
    assert read_receipts(file, charter).answer == "yes"
    done = CliRunner().invoke(lab, ["link", "receipt", str(file), "--charter", str(charter)])
    assert (
        "diabetes on record before 2023-01-01? yes\nsigned by both; fund answered so" in done.output
    )
    content = json.loads(file.read_text())
    changes = {
        "receipt of fund was altered": {"fund": content["fund"] | {"group": "cancer"}},
        "receipt of north was altered": {"insurer": content["insurer"] | {"answer": "no"}},
        "the answer is not that": {"answer": "no"},
    }
    for words, change in changes.items():
        altered = root / "altered.json"
        altered.write_text(json.dumps(content | change))
        with pytest.raises(PeerError, match=words):
            read_receipts(altered, charter)


def test_a_log_that_is_missing_is_named_or_left_out_knowingly(root: Path) -> None:
    charter, (_, *others) = root / "fund" / "charter.json", _logs(root)
    with pytest.raises(ConfigurationError, match=r"no link's log of fund; ask for it"):
        export_link(charter, others)
    files = _files(export_link(charter, others, ["fund"]), root)
    assert verify_link(files).without == ("fund",)
    assert json.loads(files[RATES]) == []


def _files(data: bytes, root: Path) -> dict[str, bytes]:
    file = root.parent / "some.zip"
    file.write_bytes(data)
    return unzipped(file)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (RATES, b'"questions": 1', b'"questions": 0'),
        (QUESTIONS, b"diabetes", b"cancer"),
        ("charter.json", b"three payers", b"other payers"),
        ("logs/02-fund.jsonl", b"diabetes", b"cancer"),
    ],
)
def test_a_file_that_was_changed_is_named(root: Path, name: str, old: bytes, new: bytes) -> None:
    files = _files(export_link(root / "fund" / "charter.json", _logs(root)), root)
    changed = files | {name: files[name].replace(old, new, 1)}
    with pytest.raises(LogError, match=name):
        verify_link(changed)
    manifest = json.loads(changed["manifest.json"])
    manifest["files"][name] = hashlib.sha256(changed[name]).hexdigest()
    changed["manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(LogError, match=r"does not match|was changed|do not match"):
        verify_link(changed)
    file = root.parent / "changed.zip"
    file.write_bytes(zipped(changed))
    with pytest.raises(LogError, match=r"changed\.zip: "):
        verify_any(file)


def test_a_log_whose_end_is_not_signed_is_refused(root: Path) -> None:
    path = root / "north" / "link" / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    short = root.parent / "short" / "log.jsonl"
    short.parent.mkdir(exist_ok=True)
    short.write_bytes(b"".join(lines[:-1]))
    logs = [short if each == path else each for each in _logs(root)]
    files = _files(export_link(root / "fund" / "charter.json", logs), root)
    with pytest.raises(LogError, match="does not end with a checkpoint; stop lab link serve"):
        verify_link(files)
