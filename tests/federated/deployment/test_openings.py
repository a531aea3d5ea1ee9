"""What a supervisor opened is remembered for ever, whatever becomes of its audit log."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from federated.deployment.audit_logs import LOG_NAME, open_log
from federated.deployment.charter import Charter
from federated.deployment.coordinator.study import ask_questions
from federated.deployment.node import supervisor
from federated.deployment.node.openings import OPENINGS, RELEASE, Openings
from federated.deployment.node.roles import refuse_lost
from federated.deployment.node.rules.settings import SETTINGS
from federated.party.party_sets import check_apart
from lab.audit.log_format import head_file
from lab.errors import ConfigurationError, LogError, PeerError, PolicyError
from secure_agg.identity import Identity
from tests.rigs.members import members
from tests.rigs.trial import Trial, hash_of, started

NAMES = ("insurer 1", "insurer 2", "insurer 3", "insurer 4")
ALL, THREE = frozenset(NAMES), frozenset(NAMES[:3])


@pytest.fixture
def charters(tmp_path: Path, authority_key: Any) -> tuple[Charter, Charter]:
    """One under which all totals count as one question's, and one that lets parties leave."""
    (tmp_path / "members").mkdir()
    charter = members(tmp_path / "members", authority_key.public).charter
    return charter, charter.model_copy(update={"parties_may_leave": True})


def started_with(folder: Path) -> Openings:
    Openings.begin(folder)
    openings = Openings(folder)
    openings.note("ab" * 8, "q1", "asked", ALL)
    return openings


def test_openings_are_remembered_by_the_next_process(
    tmp_path: Path, charters: tuple[Charter, Charter]
) -> None:
    started_with(tmp_path)
    openings, (together, by_question) = Openings(tmp_path), charters
    assert openings.queries == {"q1"}
    for subject in ("asked", "another", RELEASE):
        openings.check("cd" * 8, subject, ALL, together)
        with pytest.raises(
            PolicyError, match=r"insurer 4's own sum; .* the same parties as before"
        ):
            openings.check("cd" * 8, subject, THREE, together)
    openings.check("cd" * 8, "another", THREE, by_question)
    with pytest.raises(PolicyError, match="would show insurer 4's own sum"):
        openings.check("cd" * 8, "asked", THREE, by_question)
    openings.note("cd" * 8, "q2", "another", THREE)
    with pytest.raises(PolicyError, match="left this run may not come back"):
        openings.check("cd" * 8, "more", ALL, by_question)


@pytest.mark.parametrize(
    ("before", "parties", "few"),
    [
        (["1234"], "123", "4"),
        (["123"], "1234", "4"),
        (["123456"], "1234", "5 and 6"),
        (["1234", "5678"], "3456", "1 and 2"),
        (["1234567", "1234"], "4567", "4"),  # the first, less the two others
        (["123", "456"], "123456", ""),
        (["123456789"], "123456", ""),
        ([], "123", ""),
        (["1234"], "1234", ""),
    ],
)
def test_sets_from_which_a_sum_of_few_follows_are_not_opened(
    before: list[str], parties: str, few: str
) -> None:
    sets = [frozenset(each) for each in before]
    if not few:
        check_apart(sets, frozenset(parties), 3)
        return
    with pytest.raises(PolicyError, match=f"would show {few}'s own sum") as refusal:
        check_apart(sets, frozenset(parties), 3)
    assert refusal.value.rule == "parties"
    check_apart(sets, frozenset(parties), 1)


def test_openings_that_the_log_alone_tells_of_are_taken_over(
    tmp_path: Path, charters: tuple[Charter, Charter]
) -> None:
    with open_log(tmp_path / LOG_NAME, Identity("supervisor", bytes(32))) as log:
        line = {"statistic": "cells", "hiding": "released by rules", "arrays": 1, "values": 1}
        line |= {"bytes": 8, "rows": 9, "key_bits": 2048, "question": "ab", "parties": [*NAMES]}
        log.append("release", run="ab" * 8, query="q1", **line)
    Openings(tmp_path)
    (tmp_path / LOG_NAME).unlink()
    with pytest.raises(PolicyError, match="would show insurer 4's own sum"):
        Openings(tmp_path).check("cd" * 8, RELEASE, THREE, charters[1])


def test_a_memory_that_is_gone_or_damaged_opens_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"openings\.jsonl: missing, and so is the log"):
        Openings(tmp_path)
    openings, path = started_with(tmp_path), tmp_path / OPENINGS
    whole = path.read_bytes()
    path.write_bytes(whole + b'["cd", "q2", "as')  # a power loss: that total never left
    assert Openings(tmp_path).queries == {"q1"}
    assert path.read_bytes() == whole
    path.write_bytes(b"[1]\n" + whole)
    with pytest.raises(ConfigurationError, match=r"openings\.jsonl: is damaged"):
        Openings(tmp_path)
    path.unlink()
    with pytest.raises(LogError, match="cannot be written"):
        openings.note("ab" * 8, "q2", "asked", ALL)


def test_a_new_key_forgets_no_opening(tmp_path: Path, authority_key: Any) -> None:
    started_with(tmp_path)
    supervisor.keep_key(tmp_path, authority_key, "of a test")
    assert Openings(tmp_path).queries == {"q1"}


def count(trial: Trial, **options: Any) -> int:
    """The rows of all parties that are asked."""
    experiment = trial.experiment(0, query=[{"sql": "select count(*) from trial"}])
    ((_, answer),) = ask_questions(experiment, trial.exchange, fresh=True, **options)
    return int(answer["count(*)"].item())


@pytest.mark.slow
def test_a_rotated_log_opens_no_question_again_for_fewer(
    tmp_path: Path, authority_key: Any
) -> None:
    """The attack: all parties' answer, then, the log moved away, the answer without insurer 4. Its
    twin has lost its memory as well, and the difference is insurer 4's own number of rows."""
    made = Trial(tmp_path, authority_key, rows=120)
    for name in made.insurers:
        made.limits(name, analyses='["questions"]')
        settings = made.root / name / SETTINGS
        settings.write_text(settings.read_text().replace("# person = ", "person = "))
    folder = made.root / "supervisor"

    def rotate() -> None:
        made.kill("supervisor", signal.SIGTERM)
        for path in (folder / LOG_NAME, head_file(folder / LOG_NAME)):
            path.rename(path.with_suffix(f".{len(list(folder.iterdir()))}"))

    with started(made):
        everybody = count(made)
        rotate()
        made.start("supervisor")
        with pytest.raises(PeerError, match="would show insurer 4's own sum"):
            count(made, without=["insurer 4"])
        rotate()
        (folder / OPENINGS).write_bytes(b"")
        made.start("supervisor")
        rows = len(pd.read_parquet(made.root / "insurer 4.parquet"))
        assert everybody - count(made, without=["insurer 4"]) == rows


@pytest.mark.slow
def test_a_run_that_misses_a_party_waits_for_it_and_none_begins_without_it(
    tmp_path: Path, authority_key: Any
) -> None:
    made = Trial(tmp_path, authority_key)
    with started(made):
        made.run(made.experiment(0))
        made.settings(answer_seconds=5.0)
        made.signal("insurer 4", signal.SIGSTOP)
        try:
            with pytest.raises(
                PeerError, match=r"insurer 4: did not answer .* Start the run again"
            ):
                made.run(made.experiment(1))
        finally:
            made.signal("insurer 4", signal.SIGCONT)
        made.settings(answer_seconds=30.0)
        with pytest.raises(PeerError, match="would show insurer 4's own sum"):
            made.run(made.experiment(2), without=("insurer 4",))
        study = made.run(made.experiment(1), fresh=False)
        assert hash_of(study) == made.pooled_hash(made.experiment(1))


def test_a_node_that_forgot_of_which_parties_its_sums_were_does_not_start(tmp_path: Path) -> None:
    sets, log = tmp_path / "party_sets.jsonl", tmp_path / LOG_NAME
    refuse_lost(sets, log)  # a new node has neither
    with open_log(log, Identity.generate("insurer 1"), charter="ab" * 32) as lines:
        lines.append("fault", what="nothing was released yet")
        refuse_lost(sets, log)
        details = {"statistic": "totals", "hiding": "paillier", "arrays": 1, "values": 1}
        sizes = {"bytes": 900, "rows": 40, "key_bits": 2048}
        lines.append("release", run="ab" * 8, query="q1", **details, **sizes)
        with pytest.raises(
            ConfigurationError, match=r"party_sets\.jsonl: missing, while .* released"
        ):
            refuse_lost(sets, log)
    sets.touch()
    refuse_lost(sets, log)
