"""What others wrote is printed without what a terminal acts on, by every command and in the report."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from federated.cli import console
from federated.cli.main import _explain, lab
from federated.deployment import charter as charters
from federated.deployment.audit_logs import PURPOSE
from federated.deployment.audit_logs import check as verified
from federated.deployment.charter import Charter
from federated.deployment.coordinator import exchange
from federated.deployment.enrolment import Admission
from federated.deployment.signed_messages import SignedMessage, claimed
from federated.messages import Reply, Request, refusal
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError, PeerError
from lab.sums import Sums
from lab.text import printable, printable_lines
from secure_agg.identity import Identity
from tests.rigs.members import members

ROOT = Path(__file__).parents[3]
#: Clears the screen, erases a line, starts another, turns the direction, changes colour, is unseen.
HOSTILE = "x\x1b[2J\x1b[1G\r\nok   all well\u202egnp\u2066\x9b31m\x07\u200b[red]y[/]"
SEEN = "x\\x1b[2J\\x1b[1G\\r\\nok   all well\\u202egnp\\u2066\\x9b31m\\x07\\u200b[red]y[/]"


def shown(*arguments: object) -> str:
    """What a command prints, line by line checked."""
    done = CliRunner().invoke(lab, [str(a) for a in arguments])
    text = done.output
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        text += printed_error(done.exception)
    check(text)
    return text


def printed_error(error: Any) -> str:
    runner = CliRunner()
    with runner.isolation() as (_, _, output):
        _explain(error)
        return output.getvalue().decode()


def test_a_package_that_is_missing_is_named() -> None:
    told = printed_error(ModuleNotFoundError("No module named 'rbcl.x'", name="rbcl.x"))
    assert told == "lab: the package 'rbcl.x' is not installed; install this one again\n"


def check(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), repr(text)
    assert not any(line.startswith("ok   all well") for line in text.split("\n"))


@given(st.text())
def test_a_printable_text_is_one_line_and_tells_all(text: str) -> None:
    assert printable(text).isprintable()
    assert printable_lines(text).count("\n") == text.count("\n")
    if text.isprintable():
        assert printable(text) == text


def test_everything_is_printed_at_the_one_edge() -> None:
    """No command prints by itself, so that none can forget."""
    for path in sorted((ROOT / "federated" / "cli").glob("*.py")):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in ("click.echo", "click.secho", "print", "Console"), path


def test_a_line_a_table_and_json_of_a_hostile_text(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(HOSTILE, bold=False)
    table = console.plain_table(HOSTILE)
    table.add_row(HOSTILE)
    wide = console.screen()
    wide.width = 400
    wide.print(table)
    console.print_heading(wide, HOSTILE, HOSTILE)
    out = capsys.readouterr().out
    check(out)
    assert out.count(SEEN) == 5
    console.say_json({HOSTILE: [HOSTILE, 1]})
    out = capsys.readouterr().out
    check(out)
    assert json.loads(out) == {HOSTILE: [HOSTILE, 1]}


def test_no_table_is_wrapped_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = console.plain_table("what", "ratio")
    table.add_row("x" * 300, "2 x")
    console.screen().print(table)
    assert capsys.readouterr().out.splitlines()[1] == "x" * 300 + "  2 x  "


def test_a_command_to_go_on_with_works_where_lab_is_on_no_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/lab", "run"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert console.own_command() == ".venv/bin/lab"
    (tmp_path / "lab").touch(mode=0o755)
    assert console.own_command() == "lab"


def test_an_arm_is_ticked_when_the_next_one_begins_and_not_before() -> None:
    bars = Progress(disable=True)
    tell = console.arm_lines(bars)

    def ticked() -> dict[str, bool]:
        return {task.description: task.finished for task in bars.tasks}

    tell("alone", "insurer 2", 2, 2)
    assert ticked() == {"alone": False}
    tell("federated", "glm_start", 40, None)
    tell("federated", "tree 3 of 3", 3, 3)
    tell("federated", "tree_leaves", 90, None)
    assert ticked() == {"alone": True, "federated": False}
    assert (bars.tasks[1].completed, bars.tasks[1].total) == (2, 3)
    tell("report", "writing", 0, None)
    assert ticked() == {"alone": True, "federated": True, "report": False}


def test_what_is_decoded_from_others_is_printable() -> None:
    fields = {"kind": HOSTILE, "party": HOSTILE, "text": HOSTILE, "rule": HOSTILE}
    error = refusal(RecordDict({"refusal": ConfigRecord(fields)}))
    assert str(error) == f"{SEEN}: {SEEN}"
    assert error.rule.isprintable()
    for values in ({"query": HOSTILE}, {"statistic": HOSTILE}, {"parties": (HOSTILE,)}):
        record = Request(**({"query": "q", "statistic": "s"} | values), arguments={}, arrays={})  # type: ignore[arg-type]
        with pytest.raises(PeerError, match="names must be printable"):
            Request.from_record(record.to_record())
    assert Reply.from_record(Reply.of(HOSTILE, Sums({}, {}, 0), None).to_record()).party == SEEN
    message = SignedMessage("ab", "cd", 1, HOSTILE, ("exchange",), "query", b"")
    with pytest.raises(PeerError, match="is not readable") as caught:
        claimed(message.signed(Identity("exchange", bytes(32))))
    check(str(caught.value))


def test_a_charter_and_an_admission_hold_nothing_hostile(
    tmp_path: Path, authority_key: Any
) -> None:
    five = members(tmp_path, authority_key.public)
    path = tmp_path / "charter.json"
    values = five.charter.model_dump(mode="json")
    for change in ({"name": HOSTILE}, {"contracts": {HOSTILE: 1}}, {HOSTILE: 1}):
        path.write_text(json.dumps(values | change))
        assert SEEN.lower() in shown("charter", "show", path).lower()
    path.write_text(json.dumps(values))
    shown("charter", "show", path)
    signatures = {name: charters.sign(five.charter, i) for name, i in five.identities.items()}
    charters.write(path, five.charter, {**signatures, HOSTILE: signatures["exchange"]})
    shown("charter", "show", path)
    shown("charter", "add", path, charters.signatures_beside(path))
    member = five.charter.member("ping-an")
    with pytest.raises(ValueError, match="address"):
        Admission(member=member, address=HOSTILE, authority="", certificate="")
    assert Charter.read(path) == five.charter


def test_a_log_of_somebody_else_prints_no_lines_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    own = Identity("ping-an", bytes(range(32)))

    def sign(message: bytes) -> bytes:
        return own.sign(PURPOSE, message)

    with Log(path, HOSTILE, own.card.verifying, sign, verified) as log:
        log.append("fault", run=HOSTILE, query=HOSTILE, what=HOSTILE, **{HOSTILE: 1})
    assert "x\\x1b[2J" in shown("audit", "show", path)
    assert "x\\u001b[2J" in shown("audit", "show", "--json", path)
    assert f"log of {SEEN} holds" in shown("audit", "verify", path)
    with path.open("ab") as file:
        file.write(HOSTILE.encode() + b"\n")
    assert "DOES NOT HOLD" in shown("audit", "verify", path)


def test_runs_and_the_exchange_list_hostile_names(tmp_path: Path) -> None:
    folder = tmp_path / "exchange"
    exchange.init(folder, "exchange", "127.0.0.1:9443")
    run = folder / exchange.RUNS / "20261128-ab"
    run.mkdir()
    record = {"run": HOSTILE, "end": HOSTILE, "absent": {HOSTILE: HOSTILE}}
    (run / "run.json").write_text(json.dumps(record))
    assert "\\x1b" in shown("exchange", "status", folder)
    place = tmp_path / "runs" / "20261128-visits"
    place.mkdir(parents=True)
    result = {"experiment": {"name": HOSTILE}, "arms": {}, "headline": ""}
    (place / "result.json").write_text(json.dumps(result))
    assert SEEN in shown("runs", "--runs", tmp_path / "runs")


def test_an_error_of_a_hostile_file_is_told_in_lines_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(f"{json.dumps(HOSTILE)} = 1\nseed = {json.dumps(HOSTILE)}\n")
    text = shown("run", path)
    assert f"unknown key '{SEEN}'" in text
    check(printed_error(ConfigurationError(f"a: {HOSTILE}")))


def test_the_report_and_the_screen_of_a_run_show_hostile_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"kind": rng.choice(["a", "b\u202ec\x1b[31m"], 300)})
    frame["claims"] = rng.poisson(0.5, 300)
    table, contract = tmp_path / "claims.parquet", tmp_path / "claims.toml"
    frame.to_parquet(table, index=False)
    contract.write_text(
        'name = "claims"\n[columns]\n'
        'kind = { type = "category", levels = ["a", "b\\u202ec\\u001b[31m"] }\n'
        'claims = { type = "integer", role = "target", minimum = 0 }\n'
    )
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(
        f"name = {json.dumps(HOSTILE)}\n[data]\npath = '{table}'\ncontract = '{contract}'\n"
        "target = 'claims'\n[model]\nkind = 'glm'\n[protection]\nsums = 'clear'\n"
        "[arms]\nrun = ['federated']\nreplicates = 0\n[parties]\nsplit = 'uniform'\ncount = 3\n"
    )
    text = shown("run", experiment, "--no-track", "--runs", tmp_path / "runs")
    assert "IN THE CLEAR" in text
    (report,) = (tmp_path / "runs").glob("*/report.html")
    page = report.read_text(encoding="utf-8")
    assert "\\u202e" in page
    assert not [c for c in set(page) - set("\n\t") if not c.isprintable()]
    shown("run", experiment, "--no-track", "--runs", tmp_path / "runs", "--json")


def test_leaving_an_insurer_out_says_what_that_means_before_anybody_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console.leave_out(())
    assert capsys.readouterr() == ("", "")
    console.leave_out(("insurer 3", "insurer 4\x1b[2J"))
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("without insurer 3, insurer 4")
    assert "stays out of all of them" in shown.err and "\x1b" not in shown.err
