"""Faults of machines and lines, with real processes: the oracle is the model and what the logs say."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from federated.deployment.audit_logs import LOG_NAME, verify_together
from federated.deployment.node.process import Node
from federated.deployment.signed_messages import claimed
from federated.messages import refuse
from lab.errors import PolicyError
from tests.rigs.faults import KINDS, Faults
from tests.rigs.malformed import LeavesTheLayout, Sabotaged
from tests.rigs.trial import Trial, hash_of, started


@pytest.fixture(scope="module")
def lines() -> dict[str, Faults]:
    """Between every node and the exchange; they pass everything on until they are told otherwise."""
    return {}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: Any, authority_key: Any, lines: dict[str, Faults]) -> Iterator[Trial]:
    made = Trial(tmp_path_factory.mktemp("faulty"), authority_key, parties_may_leave=True)
    for name in made.names:
        lines[name] = Faults(made.port)
        made.reroute(name, lines[name].port)
    with started(made):
        yield made
    for line in lines.values():
        line.close()


@pytest.fixture(autouse=True)
def _whole(faulty: Trial, lines: dict[str, Faults]) -> Iterator[None]:
    """Every test leaves the exchange as it found it."""
    faulty.settings(answer_seconds=30.0, again_seconds=3.0, gather_seconds=30.0)
    yield
    for line in lines.values():
        line.rest()
    for name in ("exchange", *faulty.names):
        if name not in faulty.processes or not faulty.processes[name].is_alive():
            faulty.start(name)


def states(study: Any) -> dict[str, str]:
    return {party.name: party.state for party in study.outlook}


def test_a_run_outlives_the_exchange_that_is_killed_and_started_again(faulty: Trial) -> None:
    experiment = faulty.experiment(0)
    conductor = faulty.conduct(experiment)
    faulty.until(lambda: faulty.totals(experiment.name) >= 2, 60)
    faulty.kill("exchange")
    faulty.start("exchange")
    conductor.join(60)
    assert f"model {faulty.pooled_hash(experiment)}" in faulty.out("conductor")
    assert any(
        "no connection to the exchange" in e.told["what"]
        for e in faulty.logged("exchange", "fault")
    )
    assert not [
        e for e in faulty.logged("exchange", "fault") if "continues without" in e.told["what"]
    ]


@pytest.mark.slow
def test_a_run_whose_exchange_does_not_come_back_ends_in_time_and_goes_on_later(
    faulty: Trial,
) -> None:
    faulty.settings(answer_seconds=2.0)
    experiment = faulty.experiment(1)
    conductor = faulty.conduct(experiment, "alone")
    faulty.until(lambda: faulty.totals(experiment.name) >= 2, 60)
    faulty.kill("exchange")
    conductor.join(15)
    assert conductor.exitcode == 1
    (reason,) = faulty.out("alone").splitlines()
    assert reason.startswith("PeerError: ") and "no connection to the exchange" in reason
    assert (
        "serve the exchange with: lab exchange serve" in reason
        and "resumes after its last total" in reason
    )
    before = faulty.totals(experiment.name)
    faulty.start("exchange")
    faulty.settings(answer_seconds=30.0)
    faulty.until(lambda: (faulty.exchange / "local.sock").exists())
    study = faulty.run(experiment, fresh=False)
    assert hash_of(study) == faulty.pooled_hash(experiment)
    assert faulty.totals(experiment.name) > before >= 2


@pytest.mark.parametrize(
    ("kinds", "seed", "target"),
    [
        pytest.param(KINDS, 1, 2, marks=pytest.mark.slow),
        *(
            pytest.param((kind,), seed, 3 + at, marks=pytest.mark.slow)
            for at, (kind, seed) in enumerate((k, s) for k in KINDS for s in (2, 3))
        ),
    ],
)
def test_the_model_is_the_same_over_lines_that_fail(
    faulty: Trial, lines: dict[str, Faults], kinds: tuple[str, ...], seed: int, target: int
) -> None:
    faulty.settings(answer_seconds=90.0)
    for at, line in enumerate(lines.values()):
        line.fail(kinds, seed=100 * seed + at, times=3)
    experiment = faulty.experiment(target)
    study = faulty.run(experiment)
    assert sum(line.failed for line in lines.values()) >= 4
    assert hash_of(study) == faulty.pooled_hash(experiment)
    assert set(states(study).values()) == {"took part"}


@pytest.mark.slow
def test_a_run_goes_on_without_a_party_whose_line_stands_still_past_the_deadline(
    faulty: Trial, lines: dict[str, Faults]
) -> None:
    faulty.settings(answer_seconds=5.0)
    experiment = faulty.experiment(20)
    lines["insurer 4"].stand_still()
    study = faulty.run(experiment)
    assert states(study)["insurer 4"] == "insurer 4: did not answer within 5 s"
    others = tuple(name for name in faulty.insurers if name != "insurer 4")
    assert hash_of(study) == faulty.pooled_hash(experiment, others)


@dataclass(frozen=True)
class Answers:
    """Answers some kind of message with something of its own, signed."""

    kind: str
    as_of: int
    content: RecordDict

    def __call__(self, node: Node) -> None:
        handle = node.handle

        def wrapped(line: Any, message: Any) -> Any:
            request = claimed(message.content)
            if request.kind != self.kind:
                return handle(line, message)
            of = replace(request, number=request.number + self.as_of)
            return of.reply(node.settings.name, self.content).signed(node.identity)

        node.handle = wrapped  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_refusal_counts_for_its_message_alone_and_no_answer_ends_a_run(faulty: Trial) -> None:
    old = refuse(PolicyError("[never_leaves] of another message"), "insurer 3")
    unreadable = RecordDict({"receipt": ConfigRecord({"lines": '{"rows": "many"}'})})
    for name, does in (
        ("insurer 3", Answers("query", -1, old)),
        ("insurer 2", Answers("query.receipt", 0, unreadable)),
    ):
        faulty.kill(name, signal.SIGTERM)
        faulty.start(name, does)
    study = faulty.run(faulty.experiment(21))
    for name in ("insurer 2", "insurer 3"):
        faulty.kill(name, signal.SIGTERM)
    assert states(study)["insurer 3"] == "insurer 3: replays a message of another round or run"
    assert states(study)["insurer 2"] == "took part" and "insurer 2" not in study.receipts
    faults = [e.told["what"] for e in faulty.logged("exchange", "fault") if e.run == study.run]
    assert "insurer 2: its receipt is not readable" in faults


def test_a_run_goes_on_without_a_party_that_encrypts_nonsense(faulty: Trial) -> None:
    assert faulty.charter.key is not None
    culprit = LeavesTheLayout("insurer 3", faulty.charter.key.public)
    faulty.kill("insurer 3", signal.SIGTERM)
    faulty.start("insurer 3", Sabotaged(culprit))
    experiment = faulty.experiment(26)
    study = faulty.run(experiment)
    faulty.kill("insurer 3", signal.SIGTERM)
    words = (
        "insurer 3: encrypted numbers that are not of the form all agreed on; no total was opened"
    )
    assert states(study)["insurer 3"] == words
    assert states(study)["supervisor"] == "took part"
    others = tuple(name for name in faulty.insurers if name != "insurer 3")
    assert hash_of(study) == faulty.pooled_hash(experiment, others)
    (fault,) = [e for e in faulty.logged("supervisor", "fault") if e.run == study.run]
    assert fault.told["what"] == words and fault.told["parties"] == sorted(others)
    assert {e.run for e in faulty.logged("supervisor", "refusal")} >= {study.run}


@dataclass(frozen=True)
class Dies:
    """Is killed when a question comes, after it answered so many."""

    answered: int

    def __call__(self, node: Node) -> None:
        handle, left = node.handle, [self.answered]

        def wrapped(line: Any, message: Any) -> Any:
            if claimed(message.content).kind == "query":
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
            return handle(line, message)

        node.handle = wrapped  # type: ignore[method-assign]


@pytest.mark.slow
def test_torn_state_leaves_a_party_out_in_mid_run_and_a_torn_log_does_not(faulty: Trial) -> None:
    experiment = faulty.experiment(22)
    faulty.kill("insurer 4", signal.SIGTERM)
    dying = faulty.start("insurer 4", Dies(answered=1))  # before the rows of the fit are counted
    conductor = faulty.conduct(experiment, "torn")
    dying.join(60)
    assert dying.exitcode == -signal.SIGKILL
    faulty.kill("insurer 1")
    state = max((faulty.root / "insurer 4" / "runs").glob("*.state"), key=os.path.getmtime)
    os.truncate(state, state.stat().st_size // 2)
    log = faulty.root / "insurer 1" / LOG_NAME
    os.truncate(log, log.stat().st_size - 7)
    for name in ("insurer 1", "insurer 4"):
        faulty.start(name)
    conductor.join(60)
    assert faulty.out("torn").startswith("model ")  # of all before, of the others after
    damaged = "is damaged; it answers no more in this run"
    assert any(damaged in e.told["text"] for e in faulty.logged("insurer 4", "refusal"))
    assert any(damaged in e.told["text"] for e in faulty.logged("exchange", "refusal"))
    assert any("was cut off" in e.told["what"] for e in faulty.logged("insurer 1", "fault"))
    assert not (found := examined(faulty, "insurer 1")), found


def examined(trial: Trial, name: str) -> str:
    """What is wrong with a party's log."""
    (checked,) = verify_together([trial.root / name / LOG_NAME], {})
    return checked.verdict.fault


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """A folder on a disk of its own of 8 MiB; what is given fills it."""
    kept = folder.with_name(f"{folder.name} kept")
    folder.rename(kept)
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        folder.rmdir()
        kept.rename(folder)
        pytest.skip("needs the right to mount a small disk (CAP_SYS_ADMIN)")
    shutil.copytree(kept, folder, dirs_exist_ok=True)

    def fill() -> None:
        with suppress(OSError), (folder / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    try:
        yield fill
    finally:
        shutil.rmtree(kept)
        shutil.copytree(folder, kept, ignore=lambda *_: ["fill", "local.sock"])
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()
        kept.rename(folder)


@pytest.mark.slow
def test_nothing_leaves_a_party_on_a_full_disk_and_it_comes_back_when_there_is_room(
    faulty: Trial,
) -> None:
    folder = faulty.root / "insurer 3"
    faulty.kill("insurer 3", signal.SIGTERM)
    with small_disk(folder) as fill:
        faulty.start("insurer 3")
        faulty.until(lambda: "is in the exchange" in faulty.out("insurer 3").splitlines()[-1])
        fill()
        released = len(faulty.logged("insurer 3", "release"))
        full = faulty.run(faulty.experiment(23))
        assert states(full)["insurer 3"] == (
            "insurer 3: this party cannot write its log; nothing leaves it"
        )
        assert len(faulty.logged("insurer 3", "release")) == released
        (folder / "fill").unlink()
        assert states(faulty.run(faulty.experiment(24)))["insurer 3"] == "took part"
        faulty.kill("insurer 3", signal.SIGTERM)


@pytest.mark.slow
def test_a_coordinator_on_a_full_disk_ends_with_the_reason_and_goes_on_later(
    faulty: Trial,
) -> None:
    experiment = faulty.experiment(25)
    with small_disk(faulty.exchange / "runs") as fill:
        conductor = faulty.conduct(experiment, "full")
        faulty.until(lambda: faulty.totals(experiment.name) >= 2, 60)
        fill()
        conductor.join(60)
        assert conductor.exitcode == 1
        assert "cannot be written: No space left on device" in faulty.out("full")
        (faulty.exchange / "runs" / "fill").unlink()
        study = faulty.run(experiment, fresh=False)
    assert hash_of(study) == faulty.pooled_hash(experiment)
    assert set(states(study).values()) == {"took part"}
