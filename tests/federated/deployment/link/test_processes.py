"""A link among real processes over TLS: a night, the desk, conditions; members killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from federated.bench.loopback import LAB, free_port
from federated.cli.main import lab
from federated.deployment.link.signer import sign_question
from federated.deployment.link.trial import CONDITIONS, EXCHANGE, SIGNER, make_trial
from federated.link.charter import LinkCharter
from federated.link.lookup import Condition
from lab.audit.log_format import entries, read_lines
from lab.errors import LabError
from lab.files import canonical, write_whole
from lab.records import parse
from tests.federated.link.test_night import TABLES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAYERS, THE_EXCHANGE = tuple(TABLES), "the exchange itself"
CLAIM = "person=1 provider=P1 day=3 claimed=80"
TODAY = datetime.now(UTC).date()
TERMS = {
    "name": "three payers",
    "tells": "payer",
    "cap": 4,
    "rows": {"paid": "paid"},
    "key": [{"name": "visit", "columns": ["person", "provider", "day", "claimed"]}],
    "condition": {
        "fund": "fund",
        "groups": ["diabetes", "cancer", "copd"],
        "purposes": ["settle a claim"],
        "cap": 512,
        "groups_of_a_person": 2,
    },
}
RECORD = [Condition("1", "diabetes", date(2020, 5, 1)), Condition("2", "cancer", None)]


class Members:
    """A trial whose processes are started, killed and asked by their commands."""

    def __init__(self, root: Path) -> None:
        self.root, self.running = root / "trial", dict[str, subprocess.Popen[str]]()
        claims = {}
        for name, table in TABLES.items():
            claims[name] = root / f"{name}.csv"
            table.to_csv(claims[name], index=False)
        terms = parse(LinkCharter, TERMS, where="test")
        make_trial(self.root, claims, terms, RECORD, free_port())
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start(self, name: str, *command: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*LAB, *map(str, command)], env=self.environment, stdout=subprocess.PIPE, text=True
        )
        self.running[name] = process
        return process

    def serve(self, *names: str) -> None:
        """Start these, and wait until all say that they are there."""
        if THE_EXCHANGE in names:
            self.start(THE_EXCHANGE, "exchange", "serve", self.root / EXCHANGE)
            self._heard(THE_EXCHANGE, "is open")
        members = [name for name in names if name != THE_EXCHANGE]
        for name in members:
            self.start(name, "link", "serve", self.root / name)
        for name in members:
            self._heard(name, " answers: ")

    def _heard(self, name: str, text: str) -> None:
        out = self.running[name].stdout
        assert out is not None and any(text in line for line in iter(out.readline, ""))

    def night(self, name: str) -> None:
        self.start(f"night {name}", "link", "night", self.root / name, "--patience", 120)

    def end(self, name: str, sign: int = signal.SIGKILL) -> str:
        process = self.running.pop(name)
        process.send_signal(sign)
        return process.communicate(timeout=60)[0]

    def run(self, *command: Any) -> str:
        """What a command says, here, beside the members' processes."""
        done = CliRunner().invoke(lab, [*map(str, command)])
        if isinstance(done.exception, LabError):
            return str(done.exception)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.output

    def ask(self, name: str, claim: str = CLAIM) -> str:
        return self.run("link", "ask", self.root / name, *claim.split())

    def consent(self, name: str = "north", today: date = TODAY, **changes: Any) -> Path:
        """A file of the desk at which persons sign."""
        wanted = {"insurer": name, "person": "1", "group": "diabetes", "before": date(2023, 1, 1)}
        signed = sign_question(self.root / SIGNER, today=today, **(wanted | changes))
        file = self.root / f"{signed.consent.digest}.json"
        write_whole(file, canonical(signed.model_dump(mode="json")))
        return file

    def condition(self, file: Path, name: str = "north") -> str:
        return self.run("link", "condition", self.root / name, "--consent", file)

    def lines(self, name: str, kind: str) -> list[Any]:
        path = self.root / name / "link" / "log.jsonl"
        return [line.told for line in entries(read_lines(path)) if line.kind == kind]

    def allow(self, name: str, **values: Any) -> None:
        """Change a member's own limits; it must be started again."""
        path = self.root / name / "node.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        path.write_text("\n".join([path.read_text(), *lines, ""]))

    def close(self) -> None:
        for name in reversed(list(self.running)):
            self.end(name, signal.SIGTERM)


@pytest.fixture
def members(tmp_path: Path) -> Iterator[Members]:
    made = Members(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_a_night_and_the_desk_with_members_killed_in_the_middle(members: Members) -> None:
    members.serve(THE_EXCHANGE)
    for name in (EXCHANGE, "south"):
        members.night(name)
    sent = members.root / "south" / "link" / "post" / "ring-32.sent"
    members.night("fund")
    _until(sent.exists)
    members.end("night south")
    members.end(THE_EXCHANGE)
    members.serve(THE_EXCHANGE)
    for name in ("south", "north"):
        members.night(name)
    for name in (EXCHANGE, *PAYERS):
        process = members.running.pop(f"night {name}")
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    matches = pd.read_csv(members.root / "south" / "link" / "matches.csv")
    assert matches[["row", "payers"]].to_numpy().tolist() == [[0, "fund"], [1, "north"]]
    assert pd.read_csv(members.root / EXCHANGE / "link" / "counts.csv")["names"].tolist() == [1, 1]

    members.serve(EXCHANGE, *PAYERS)
    found = "another payer has this claim, by key 'visit': fund, south"
    assert members.ask("north").startswith(found)
    assert members.ask("north", f"{CLAIM} claimed=81").startswith("no other payer has this claim")
    assert "person is missing" in members.ask("north", "provider=P1")
    members.end("south")
    assert "south: does not answer" in members.ask("north")
    members.serve("south")
    members.end(THE_EXCHANGE)
    assert "does not answer" in members.ask("north")
    members.serve(THE_EXCHANGE)
    _until(lambda: members.ask("north").startswith(found))
    members.run("exchange", "revoke", members.root / EXCHANGE, "south")
    assert "answers 403: this node's key is revoked here" in members.ask("south")
    verified = members.run("audit", "verify", members.root, "--charter", _charter(members))
    assert verified.count(" holds: ") == 4 and "DOES NOT" not in verified


def test_conditions_are_asked_once_whatever_is_killed_when(members: Members) -> None:
    members.serve(THE_EXCHANGE, "fund", "north", "south")
    assert "diabetes on record before 2023-01-01: yes" in members.condition(members.consent())
    assert ": no\n" in members.condition(members.consent("south", person="9"), "south")

    file = members.consent(person="2", group="cancer")
    members.running["fund"].send_signal(signal.SIGSTOP)
    assert "fund: does not answer" in members.condition(file)
    members.end("fund")
    members.end("north")
    members.serve("fund", "north")
    assert "cancer on record before 2023-01-01: refer" in members.condition(file)
    assert "nothing was asked again" in members.condition(file)
    assert len(members.lines("fund", "request")) == 3

    members.end("fund")
    for receipt in (members.root / "north" / "link" / "receipts").iterdir():
        receipt.unlink()
    members.serve("fund")
    assert "[consent] the consent was used before" in members.condition(file)


def test_what_is_not_allowed_is_refused_in_one_line_and_stands_in_the_logs_of_both(
    members: Members,
) -> None:
    members.allow("fund", groups=["diabetes", "copd"], approval="always")
    members.serve(THE_EXCHANGE, "fund", "north", "south")
    long_ago = members.consent(today=TODAY - timedelta(days=20))
    altered = members.consent()
    content = json.loads(altered.read_text())
    content["consent"]["before"] = "2022-01-01"
    altered.write_text(json.dumps(content))
    refusals = {
        "[consent] the consent expired on": members.condition(long_ago),
        "[consent] the consent was altered": members.condition(altered),
        "is not for south to ask fund": members.condition(members.consent(), "south"),
        "[group] 'cancer' is no group that may": members.condition(members.consent(group="cancer")),
    }
    for words, text in refusals.items():
        assert words in text and len(text.splitlines()) == 1
    rules = [told["rule"] for told in members.lines("fund", "refusal")]
    assert rules == ["consent", "consent", "consent", "group"]
    assert [told["by"] for told in members.lines("fund", "refusal")][2] == "south"
    assert len(members.lines("north", "refusal")) == 3

    waits = members.consent()
    assert "[approval] question" in members.condition(waits)
    listed = members.run("node", "requests", members.root / "fund")
    assert "asked by   north, to settle a claim" in listed
    digest = listed.split()[0]
    assert "approved" in members.run("node", "approve", members.root / "fund", digest, "--by", "Li")
    assert ": yes" in members.condition(waits)
    assert members.lines("fund", "approval")[0]["by"] == "Li"
    rates = members.run("link", "rates", members.root / "fund" / "link" / "log.jsonl")
    assert "north" in rates and "south" in rates
    checked = members.run("node", "check", members.root / "fund")
    assert "2 conditions, asked by diabetes, copd, each approved by a person" in checked
    assert (members.root / "fund" / CONDITIONS).exists()


def _charter(members: Members) -> Path:
    return members.root / "fund" / "charter.json"


def _until(true: Any, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
