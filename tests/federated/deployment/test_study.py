"""Real parties on loopback: processes, TLS, logs. The oracle is the model and what the logs say."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from federated.bench.exchange import rehearsal, running, until
from federated.deployment.audit_logs import LOG_NAME, verify_together
from federated.deployment.coordinator import exchange
from federated.deployment.coordinator.study import run_study
from federated.deployment.node import approval
from federated.deployment.node import results as delivery
from federated.deployment.node.process import Node
from federated.message_kinds import MessageKind
from federated.party.party import Party
from federated.run import run
from federated.study.experiment import Experiment
from federated.transport import node_line as fleet
from lab.errors import PeerError
from lab.files import read_json
from lab.models import files as models
from lab.sums import Sums
from tests.rigs.trial import Trial, hash_of, started


@pytest.fixture(scope="session")
def trial(tmp_path_factory: Any, authority_key: Any) -> Iterator[Trial]:
    with started(
        Trial(tmp_path_factory.mktemp("trial"), authority_key, parties_may_leave=True)
    ) as made:
        yield made


@pytest.fixture(autouse=True)
def _whole(trial: Trial) -> Iterator[None]:
    """Every test leaves the exchange as it found it."""
    yield
    trial.settings(answer_seconds=60.0, again_seconds=15.0, gather_seconds=30.0)
    for name in trial.names:
        if name not in trial.processes or not trial.processes[name].is_alive():
            trial.start(name)


def without(trial: Trial, name: str) -> tuple[str, ...]:
    return tuple(other for other in trial.insurers if other != name)


def again(trial: Trial, name: str, sabotage: Callable[[Node], None] | None = None) -> None:
    trial.kill(name, signal.SIGTERM)
    trial.start(name, sabotage)


def states(study: Any) -> dict[str, str]:
    return {party.name: party.state for party in study.outlook}


def test_real_parties_give_the_model_of_the_simulation(trial: Trial) -> None:
    experiment = trial.experiment(0)
    study = trial.run(experiment)
    assert hash_of(study) == trial.pooled_hash(experiment)
    assert set(states(study).values()) == {"took part"}
    released = [e for e in trial.logged("insurer 1", "release") if e.run == study.run]
    assert len(released) == len(study.receipts["insurer 1"])
    assert {entry.told["hiding"] for entry in released} == {"paillier"}
    assert {entry.charter for entry in released} == {trial.charter.digest}
    assert trial.charter.key is not None
    for name, event in (("insurer 1", "sums are encrypted to it"), ("supervisor", "totals are op")):
        told = trial.logged(name, "key")[0].told
        assert told["event"].startswith(event)
        assert told["fingerprint"] == trial.charter.key.public.fingerprint
    keys = {m.name: bytes.fromhex(m.verifying) for m in trial.charter.members}
    paths = [trial.root / name / LOG_NAME for name in trial.names]
    for checked in verify_together([*paths, trial.exchange / LOG_NAME], keys):
        assert not checked.verdict.fault
        assert checked.path.parent.name == "exchange" or checked.witnesses


def test_every_insurer_is_given_the_model_and_scores_it_for_itself(trial: Trial) -> None:
    study = trial.run(trial.experiment(30))
    folders = [trial.root / name / delivery.RESULTS / study.run for name in trial.insurers]
    told = [read_json(folder / delivery.SCORES) for folder in folders]
    for folder, own in zip(folders, told, strict=True):
        assert own["hash"] == hash_of(study)
        assert models.digest(models.read(folder).model_dump_json()) == hash_of(study)
    market = study.scores.loc[("federated", "all")]
    rows, deviance = zip(
        *((o["rows"], o["scores"]["model"]["deviance"]) for o in told), strict=True
    )
    assert sum(rows) == market.rows
    assert np.average(deviance, weights=rows) == pytest.approx(market.deviance)
    heard = {
        e.told["statistic"] for e in trial.logged("insurer 1", "request") if e.run == study.run
    }
    left = {e.told["statistic"] for e in trial.logged("insurer 1", "release") if e.run == study.run}
    assert MessageKind.DELIVER in heard and MessageKind.DELIVER not in left


@dataclass(frozen=True)
class DieWith:
    """Dies with a message that it has taken from the broker and not answered."""

    number: int

    def __call__(self, node: Node) -> None:
        handle, seen = node.handle, []

        def wrapped(line: Any, message: Any) -> Any:
            seen.append(1)
            if len(seen) == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
            return handle(line, message)

        node.handle = wrapped  # type: ignore[method-assign]


def test_a_party_killed_in_a_round_comes_back_and_the_model_is_the_same(trial: Trial) -> None:
    experiment = trial.experiment(1)
    again(trial, "insurer 2", DieWith(4))
    conductor = trial.conduct(experiment)
    trial.processes["insurer 2"].join(60)
    trial.start("insurer 2")
    conductor.join(90)
    assert f"model {trial.pooled_hash(experiment)}" in trial.out("conductor")


@pytest.mark.slow
def test_a_party_stopped_past_the_deadline_is_left_out_and_late(trial: Trial) -> None:
    experiment = trial.experiment(2)
    trial.settings(answer_seconds=5.0)
    trial.signal("insurer 4", signal.SIGSTOP)
    try:
        study = trial.run(experiment)
    finally:
        trial.signal("insurer 4", signal.SIGCONT)
    assert hash_of(study) == trial.pooled_hash(experiment, without(trial, "insurer 4"))
    assert states(study)["insurer 4"] == "insurer 4: did not answer within 5 s"
    assert any("insurer 4" in e.told["what"] for e in trial.logged("exchange", "fault"))
    assert states(trial.run(trial.experiment(3)))["insurer 4"] == "took part"


def test_a_killed_coordinator_goes_on_from_its_last_total(trial: Trial) -> None:
    experiment = trial.experiment(4)
    conductor = trial.conduct(experiment)
    trial.until(lambda: trial.totals(experiment.name) >= 4, 90)
    trial.kill("conductor")
    before = trial.totals(experiment.name)
    study = trial.run(experiment, fresh=False)
    assert not conductor.is_alive()
    assert hash_of(study) == trial.pooled_hash(experiment)
    asked = {e.query for e in trial.logged("exchange", "release") if e.run == study.run}
    assert len(asked) == trial.totals(experiment.name) > before >= 4


@dataclass(frozen=True)
class Replies:
    """Loses the first reply of a run, or sends each twice, or plays the first one again and again."""

    how: str

    def __call__(self, node: Node) -> None:
        handle, kept = node.handle, []

        def wrapped(line: Any, message: Any) -> Any:
            reply = handle(line, message)
            kept.append(reply)
            if self.how == "lost" and len(kept) == 2:
                line.push = lambda reply: setattr(line, "push", fleet.NodeLine.push.__get__(line))
            if self.how == "doubled":
                from flwr.app import Message

                line.push(Message(reply, reply_to=message))
            return kept[1] if self.how == "replayed" and len(kept) > 2 else reply

        node.handle = wrapped  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "target"), [("lost", 5), ("doubled", 6)])
def test_a_reply_lost_or_doubled_changes_nothing(trial: Trial, how: str, target: int) -> None:
    experiment = trial.experiment(target)
    trial.settings(again_seconds=2.0)
    again(trial, "insurer 3", Replies(how))
    study = trial.run(experiment)
    assert hash_of(study) == trial.pooled_hash(experiment)
    assert set(states(study).values()) == {"took part"}
    again(trial, "insurer 3")


def test_a_reply_played_again_leaves_its_party_out(trial: Trial) -> None:
    experiment = trial.experiment(7)
    again(trial, "insurer 3", Replies("replayed"))
    study = trial.run(experiment)
    assert states(study)["insurer 3"] == ("insurer 3: replays a message of another round or run")
    assert all(state == "took part" for n, state in states(study).items() if n != "insurer 3")
    again(trial, "insurer 3")


@dataclass(frozen=True)
class WrongNames:
    """Sends sums under other names than were asked for."""

    def __call__(self, node: Node) -> None:
        take = Party.take

        def renamed(party: Party, request: Any) -> Sums:
            sums = take(party, request)
            arrays = {f"{name} ": array for name, array in sums.arrays.items()}
            limits = {f"{name} ": limit for name, limit in sums.limits.items()}
            return replace(sums, arrays=arrays, limits=limits)

        Party.take = renamed  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_party_whose_sums_have_another_form_is_left_out(trial: Trial) -> None:
    experiment = trial.experiment(8)
    again(trial, "insurer 1", WrongNames())
    study = trial.run(experiment)
    assert hash_of(study) == trial.pooled_hash(experiment, without(trial, "insurer 1"))
    assert states(study)["insurer 1"] == "insurer 1: sums of another form than the others'"
    again(trial, "insurer 1")


def test_too_few_parties_end_the_run_with_the_reason(trial: Trial) -> None:
    trial.settings(gather_seconds=1.0)
    for name in ("insurer 1", "insurer 2"):
        trial.kill(name, signal.SIGTERM)
    with pytest.raises(
        PeerError, match=r"2 parties are left and 3 are required: insurer 1, insurer 2: did"
    ):
        trial.run(trial.experiment(9))


def test_a_party_refuses_by_a_rule_of_its_own_and_the_run_goes_on(trial: Trial) -> None:
    experiment = trial.experiment(10)
    trial.limits("insurer 2", never_leaves='["x2"]')
    again(trial, "insurer 2")
    study = trial.run(experiment)
    trial.limits("insurer 2", never_leaves="[]")
    again(trial, "insurer 2")
    assert hash_of(study) == trial.pooled_hash(experiment, without(trial, "insurer 2"))
    assert states(study)["insurer 2"] == (
        "insurer 2: [never_leaves] x2 may not be used in any study at this party"
    )
    for name in ("insurer 2", "exchange"):
        (refused,) = [e for e in trial.logged(name, "refusal") if e.run == study.run]
        assert refused.told["rule"] == "never_leaves"


@pytest.mark.slow
def test_a_person_approves_before_anything_leaves(trial: Trial) -> None:
    trial.limits("insurer 2", approval='"always"')
    again(trial, "insurer 2")
    first = trial.run(trial.experiment(11))
    assert "waits for a person's approval" in states(first)["insurer 2"]
    assert not [e for e in trial.logged("insurer 2", "release") if e.run == first.run]
    (digest,) = approval.waiting(trial.root / "insurer 2")
    approval.approve(trial.root / "insurer 2", digest[:12], "Li Wei")
    # the first run opened sums without insurer 2, so the same questions with it would show its own
    with pytest.raises(PeerError, match="would show insurer 2's own sum"):
        trial.run(trial.experiment(11))
    assert trial.logged("insurer 2", "approval")[-1].told["by"] == "Li Wei"
    trial.limits("insurer 2", approval='"never"')
    again(trial, "insurer 2")


@dataclass(frozen=True)
class FullDisk:
    """No file may grow, as on a disk that is full."""

    def __call__(self, node: Node) -> None:
        def full(kept: Any, study: Any) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

        node._answers.begin = full  # type: ignore[method-assign]


@pytest.mark.slow
def test_nothing_leaves_a_party_whose_disk_is_full(trial: Trial) -> None:
    experiment = trial.experiment(12)
    again(trial, "insurer 4", FullDisk())
    study = trial.run(experiment)
    assert states(study)["insurer 4"] == (
        "insurer 4: this party cannot write its log; nothing leaves it"
    )
    assert hash_of(study) == trial.pooled_hash(experiment, without(trial, "insurer 4"))
    trial.kill("insurer 4")


@pytest.mark.slow
def test_a_torn_log_is_set_aside_and_a_torn_memory_is_not_used(trial: Trial) -> None:
    trial.kill("insurer 1")
    log = trial.root / "insurer 1" / LOG_NAME
    with log.open("ab") as file:
        file.write(b'{"torn')
    trial.start("insurer 1")
    experiment = trial.experiment(13)
    study = trial.run(experiment)
    assert hash_of(study) == trial.pooled_hash(experiment)
    assert any("was cut off" in e.told["what"] for e in trial.logged("insurer 1", "fault"))
    (state,) = (trial.root / "insurer 1" / "runs").glob(f"{study.run}.state")
    state.write_bytes(state.read_bytes()[:-7])
    from federated.deployment.node import run_state as keeping

    with pytest.raises(PeerError, match=r"state of run \w+ is damaged; it answers no more"):
        keeping.load(state.parent, study.run)


def test_revoking_a_party_takes_effect_within_a_round(trial: Trial) -> None:
    experiment = trial.experiment(14)
    conductor = trial.conduct(experiment)
    trial.until(lambda: trial.totals(experiment.name) >= 2, 90)
    exchange.revoke(trial.exchange, "insurer 3")
    try:
        conductor.join(90)
        assert conductor.exitcode == 0, trial.out("conductor")
        told = [e.told["what"] for e in trial.logged("exchange", "fault")]
        assert any("insurer 3" in what for what in told)
    finally:
        (trial.exchange / exchange.REVOKED).unlink()
        again(trial, "insurer 3")


def test_a_party_with_another_charter_is_left_out_and_both_hashes_are_named(trial: Trial) -> None:
    other = trial.charter.model_copy(update={"version": trial.charter.version + 1})
    trial.sign(other, ("insurer 4",))
    again(trial, "insurer 4")
    try:
        study = trial.run(trial.experiment(16))
    finally:
        trial.sign(trial.charter, ("insurer 4",))
        again(trial, "insurer 4")
    reason = states(study)["insurer 4"]
    assert other.digest in reason and trial.charter.digest in reason
    refused = trial.logged("insurer 4", "refusal")[-1].told["text"]
    assert other.digest in refused and trial.charter.digest in refused


HOSTILE = """from pathlib import Path
Path({mark!r}).write_text("ran")
"""


def test_nothing_of_an_app_that_travels_ever_runs(
    trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = trial.root / "ran"
    code = HOSTILE.format(mark=str(mark))
    files = {"pyproject.toml": fleet.PYPROJECT, "lab/__init__.py": "", "lab/disclosure.py": code}
    hostile = fleet.bundle(files)
    monkeypatch.setattr(fleet, "bundle", lambda: hostile)
    with pytest.raises(PeerError, match=r"\[app\] app \w+ is not the approved"):
        trial.run(trial.experiment(15))
    assert not mark.exists()
    assert "app" in {e.told["rule"] for e in trial.logged("insurer 1", "refusal")}


@pytest.mark.slow
@pytest.mark.parametrize(("hiding", "split"), [("paillier", True), ("masks", False)])
def test_split_keys_and_masks_give_the_same_model_among_real_parties(
    tmp_path: Any, authority_key: Any, hiding: str, split: bool
) -> None:
    made = Trial(tmp_path, authority_key, insurers=3, hiding=hiding, split=split)
    with started(made):
        experiment = made.experiment(0)
        study = made.run(experiment)
    assert hash_of(study) == made.pooled_hash(experiment)


@pytest.mark.slow
def test_rand_hie_among_three_real_insurers_gives_the_model_of_the_simulation(
    tmp_path: Any,
) -> None:
    changes = {"parties.count": 3, "query": [], "arms.run": ["federated"], "arms.replicates": 0}
    experiment = Experiment.read("experiments/rand_hie.toml", changes)
    loopback = rehearsal(tmp_path, experiment)
    with running(loopback.commands, loopback.environment):
        until((loopback.exchange / exchange.LOCAL_SOCKET).exists, 120)
        study = run_study(experiment, loopback.exchange)
    simulated = run(experiment, runs=tmp_path / "runs", track=False)
    assert hash_of(study) == hash_of(simulated)


@pytest.mark.slow
def test_real_parties_explain_a_line_as_a_line(trial: Trial) -> None:
    explain = {"points": 5, "local": True, "pairs": [["x1", "x2"]]}
    experiment = trial.experiment(5, explain=explain, arms={"replicates": 10})
    study = trial.run(experiment)
    arm = study.arms["federated"]
    evaluation = arm.evaluations["model"]["all"]
    fitted = arm.models["all"]["model"].model
    (pair,) = evaluation.pairs
    assert pair.columns == ("x1", "x2") and abs(pair.share) < 1e-9
    for term, slope in zip(fitted.encoding.numbers, fitted.beta[1:], strict=True):
        local = evaluation.explained[term.feature.column].local
        rise = np.diff(local.accumulated) / np.diff(local.edges)
        np.testing.assert_allclose(rise, slope / term.scale, rtol=1e-5)
        assert (local.sums["persons"] >= 10).all()
