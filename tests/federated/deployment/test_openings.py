"""What a supervisor opened is remembered for ever, whatever becomes of its audit log."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from federated.deployment.audit_logs import LOG_NAME, open_log
from federated.deployment.coordinator.study import ask_questions
from federated.deployment.node import supervisor
from federated.deployment.node.openings import OPENINGS, RELEASE, Openings
from federated.deployment.node.settings import SETTINGS
from lab.audit.log_format import head_file
from lab.errors import ConfigurationError, LogError, PeerError, PolicyError
from secure_agg.identity import Identity, Roster
from tests.rigs.trial import Trial, started

NAMES = ("insurer 1", "insurer 2", "insurer 3", "insurer 4")
ALL, THREE = frozenset(NAMES), frozenset(NAMES[:3])
ROSTER = Roster(tuple(Identity(name, bytes([at]) * 32).card for at, name in enumerate(NAMES)))


def started_with(folder: Path) -> Openings:
    Openings.begin(folder)
    openings = Openings(folder)
    openings.note("ab" * 8, "q1", "asked", ALL)
    return openings


def test_openings_are_remembered_by_the_next_process(tmp_path: Path) -> None:
    started_with(tmp_path)
    openings = Openings(tmp_path)
    assert openings.queries == {"q1"}
    openings.check("cd" * 8, "asked", ALL, ROSTER)
    openings.check("cd" * 8, "another", THREE, ROSTER)
    with pytest.raises(PolicyError, match="would show insurer 4's own sum"):
        openings.check("cd" * 8, "asked", THREE, ROSTER)
    openings.note("cd" * 8, "q2", "another", THREE)
    with pytest.raises(PolicyError, match="left this run may not come back"):
        openings.check("cd" * 8, "more", ALL, ROSTER)


def test_openings_that_the_log_alone_tells_of_are_taken_over(tmp_path: Path) -> None:
    with open_log(tmp_path / LOG_NAME, Identity("supervisor", bytes(32))) as log:
        line = {"statistic": "cells", "hiding": "released by rules", "arrays": 1, "values": 1}
        line |= {"bytes": 8, "rows": 9, "key_bits": 2048, "question": "ab", "parties": [*NAMES]}
        log.append("release", run="ab" * 8, query="q1", **line)
    Openings(tmp_path)
    (tmp_path / LOG_NAME).unlink()
    with pytest.raises(PolicyError, match="would show insurer 4's own sum"):
        Openings(tmp_path).check("cd" * 8, RELEASE, THREE, ROSTER)


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
