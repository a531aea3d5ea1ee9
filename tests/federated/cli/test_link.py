"""`lab link` as its users call it: what it prints, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from federated.cli.main import lab
from lab.errors import ConfigurationError, PolicyError
from lab.market.make import make


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(
        tmp_path_factory.mktemp("link") / "market", persons=1500, insurers=2, seed=17
    ).folder


@pytest.fixture(scope="module")
def terms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped charter with caps for a small market, and exact keys alone."""
    from federated.link.charter import SHIPPED

    text = SHIPPED.read_text().replace("10_000  ", "500 ").replace("300_000", "6_500")
    head, near = text.split('[[key]]\nname = "near visit"')
    file = tmp_path_factory.mktemp("charter") / "link.toml"
    file.write_text(head + near[near.index("[desk]") :])
    return file


def run(*arguments: Any) -> str:
    outcome = CliRunner().invoke(lab, ["link", *map(str, arguments)], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome.output


def test_duplicates_prints_counts_scores_and_writes_each_payers_matches(
    market: Path, terms: Path, tmp_path: Path
) -> None:
    out = tmp_path / "matches"
    content = json.loads(run("duplicates", market, "--charter", terms, "--out", out, "--json"))
    everything = next(s for s in content["detected"] if s["name"] == "all insurers")
    assert everything["hits"] == everything["claims"] > 0
    assert everything["false_alarms"] == 0
    claims = pd.read_parquet(market / "insurer-1" / "claims.parquet")
    mine = pd.read_csv(out / "insurer-1.csv")
    assert len(mine) == sum(content["payers"]["insurer-1"]["matches"].values())
    assert mine["row"].max() < len(claims)
    assert "person" not in json.dumps(content["payers"])


def test_a_folder_without_payers_and_a_charter_with_a_mistake_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs a folder for each payer"):
        run("duplicates", tmp_path)
    file = tmp_path / "link.toml"
    file.write_text('name = "x"\ncapp = 3\n')
    with pytest.raises(ConfigurationError, match="unknown key 'capp'; did you mean 'cap'"):
        run("duplicates", tmp_path, "--charter", file)


def test_a_table_of_csv_meets_one_of_parquet(terms: Path, tmp_path: Path) -> None:
    rows = {
        "person": ["7"],
        "invoice": ["0012"],
        "provider": ["P1"],
        "admission_day": [5],
        "claimed": [90],
        "paid": [40],
        "cover": ["group_medical"],
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "one" / "claims.parquet")
    pd.DataFrame(rows).to_csv(tmp_path / "two" / "claims.csv", index=False)
    text = run("duplicates", tmp_path, "--charter", terms)
    assert "invoice     0  one, two             1" in text


def test_condition_prints_what_is_detected_and_how_many_honest_persons_were_asked_about(
    terms: Path, tmp_path: Path
) -> None:
    logs, market = tmp_path / "logs", make(tmp_path / "m", persons=10_000, seed=3).folder
    text = run("condition", market, "--charter", terms, "--look-up", "open", "--logs", logs)
    assert "had concealed nothing" in text and "planted non_disclosure" in text
    rates = json.loads(run("rates", logs / "public" / "log.jsonl", "--json"))["rates"]
    assert rates and all(line["questions"] >= line["persons"] > 0 for line in rates)
    with pytest.raises(ConfigurationError, match="exists; name a new folder"):
        run("condition", market, "--charter", terms, "--logs", logs)


def test_one_question_says_what_the_fund_saw(market: Path, terms: Path) -> None:
    record = pd.read_parquet(market / "public" / "conditions.parquet").iloc[0]
    question = ["--insurer", "insurer-1", "--person", record["person"], "--before", "2023-12-31"]
    question += ["--group", record["condition"], "--charter", terms]
    assert "on record before 2023-12-31: yes" in run("condition", market, *question)
    content = json.loads(run("condition", market, *question, "--look-up", "open", "--json"))
    assert content["receipts"]["fund"]["answer"] == content["answer"] == "yes"
    hidden = json.loads(run("condition", market, *question, "--json"))
    assert hidden["receipts"]["fund"]["answer"] == "not told"
    assert str(record["person"]) not in json.dumps(hidden["receipts"]["fund"]["answer"])


QUESTION = {"insurer": "insurer-1", "person": "7", "group": "diabetes", "before": "2023-01-01"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group": "asthma"}, r"\[group\] 'asthma' is no group that may be asked about"),
        ({"before": "2025-01-01"}, r"\[consent\] the consent asks about a date in the future"),
        ({"before": "31.12.2022"}, "needs a day, as 2022-03-01"),
        ({"insurer": "insurer-9"}, "there are insurer-1, insurer-2"),
        ({"purpose": "raise the premium"}, r"\[purpose\] the charter refuses the purpose"),
        ({"person": " "}, "the person's identifier is no"),
        ({"group": ""}, "one question needs --group too"),
    ],
)
def test_a_question_with_a_mistake_is_refused_in_one_line(
    market: Path, terms: Path, changes: dict[str, str], words: str
) -> None:
    options = [part for k, v in (QUESTION | changes).items() for part in (f"--{k}", v)]
    with pytest.raises((ConfigurationError, PolicyError), match=words):
        run("condition", market, "--charter", terms, "--look-up", "open", *options)


@pytest.fixture(scope="module")
def trial(market: Path, terms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial's folders on this market; nothing runs."""
    folder = tmp_path_factory.mktemp("trial") / "trial"
    text = run("init", folder, market, "--charter", terms, "--port", 9)
    assert "lab link night" in text and "lab link serve" in text
    return folder


def test_a_trials_members_have_a_charter_that_all_signed_and_nodes_of_their_own(
    trial: Path, market: Path, tmp_path: Path
) -> None:
    from federated.deployment.link.member import link_folder
    from federated.link.ring import COORDINATOR

    payers = ("insurer-1", "insurer-2", "public")
    folders = [link_folder(trial / name) for name in (*payers, "exchange")]
    assert [folder.name for folder in folders] == [*payers, COORDINATOR]
    assert len({folder.charter.digest for folder in folders}) == 1
    assert folders[0].agreed == folders[-1].agreed and folders[0].agreed.payers == payers
    with pytest.raises(ConfigurationError, match="exists; name a new folder"):
        run("init", trial, market)
    with pytest.raises(ConfigurationError, match="needs a folder for each payer"):
        run("init", tmp_path / "other", tmp_path)


CONSENT = QUESTION | {"insurer": "insurer-1"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group": "asthma"}, r"\[group\] 'asthma' is no group that may be asked about"),
        ({"purpose": "renewal"}, r"\[purpose\] the charter refuses the purpose 'renewal'"),
        ({"before": "2099-01-01"}, r"\[consent\] the consent asks about a date in the future"),
        ({"before": "yesterday"}, "needs a day, as 2022-03-01"),
        ({"days": "31"}, "good for more than the charter's 30 days"),
        ({"days": "-1"}, "the consent expired on"),
        ({"insurer": "public"}, "--insurer public: there are insurer-1, insurer-2"),
        ({"person": " "}, "the person's identifier is no normal number"),
    ],
)
def test_a_desk_signs_for_nothing_that_the_charter_does_not_allow(
    trial: Path, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    options = [part for k, v in (CONSENT | changes).items() for part in (f"--{k}", v)]
    with pytest.raises((ConfigurationError, PolicyError), match=words):
        run("consent", trial / "clinic", *options, "--out", tmp_path / "consent.json")
    assert not (tmp_path / "consent.json").exists()


def test_a_consent_is_a_file_for_its_insurer_and_a_stranger_signs_nothing(
    trial: Path, tmp_path: Path
) -> None:
    options = [part for k, v in CONSENT.items() for part in (f"--{k}", v)]
    out = tmp_path / "consent.json"
    text = run("consent", trial / "clinic", *options, "--out", out)
    assert "insurer-1 may ask public once, until " in text
    content = json.loads(out.read_text())
    assert content["consent"]["person"] != content["person"] == "7"
    assert out.stat().st_mode & 0o077 == 0
    assert "signers = {" in run("signer", tmp_path / "elsewhere", "--name", "clinic")
    for name in ("charter.json", "charter.signatures.json"):
        (tmp_path / "elsewhere" / name).write_bytes((trial / "clinic" / name).read_bytes())
    with pytest.raises(ConfigurationError, match="the charter names no signer 'clinic' with this"):
        run("consent", tmp_path / "elsewhere", *options, "--out", tmp_path / "another.json")


def test_who_asks_before_the_night_or_without_an_exchange_is_told_what_to_do(
    trial: Path, tmp_path: Path
) -> None:
    from lab.errors import PeerError

    with pytest.raises(PeerError, match=r"exchange at 127.0.0.1:9 does not answer .* is it served"):
        run("ask", trial / "insurer-1", "invoice=1")
    with pytest.raises(ConfigurationError, match="the exchange is not served; start it with"):
        run("serve", trial / "exchange")
    with pytest.raises(ConfigurationError, match="lab link consent"):
        run("condition", trial / "insurer-1", "--consent", trial / "insurer-1" / "charter.json")
