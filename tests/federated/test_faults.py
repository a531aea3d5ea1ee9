"""Faults of machines and lines, with real processes: the oracle is the model and what the logs say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from federated.ledger import LOG_NAME
from lab import audit
from tests.federated.faults import KINDS, Faults
from tests.federated.trial import Trial, hash_of, started


@pytest.fixture(scope="module")
def lines() -> dict[str, Faults]:
    """Between every node and the exchange; they pass everything on until they are told otherwise."""
    return {}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: Any, authority_key: Any, lines: dict[str, Faults]) -> Iterator[Trial]:
    made = Trial(tmp_path_factory.mktemp("faulty"), authority_key)
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


def told(trial: Trial, name: str, kind: str) -> list[audit.Entry]:
    folder = trial.exchange if name == "exchange" else trial.root / name
    found = audit.entries(audit.read_lines(folder / LOG_NAME))
    return [entry for entry in found if entry.kind == kind]


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
        "no line to the exchange" in e.told["what"] for e in told(faulty, "exchange", "fault")
    )
    assert not [e for e in told(faulty, "exchange", "fault") if "goes on without" in e.told["what"]]


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
    assert reason.startswith("PeerError: ") and "no line to the exchange" in reason
    assert "serve it with: lab exchange serve" in reason and "when it is started again" in reason
    before = faulty.totals(experiment.name)
    faulty.start("exchange")
    faulty.settings(answer_seconds=30.0)
    faulty.until(lambda: (faulty.exchange / "inner.sock").exists())
    study = faulty.run(experiment, fresh=False)
    assert hash_of(study) == faulty.pooled_hash(experiment)
    assert faulty.totals(experiment.name) > before >= 2


@pytest.mark.parametrize(
    ("kinds", "seed", "target"),
    [
        (KINDS, 1, 2),
        *(
            pytest.param((kind,), seed, 3 + at, marks=pytest.mark.slow)
            for at, (kind, seed) in enumerate((k, s) for k in KINDS for s in (2, 3))
        ),
    ],
)
def test_the_model_is_the_same_over_lines_that_fail(
    faulty: Trial, lines: dict[str, Faults], kinds: tuple[str, ...], seed: int, target: int
) -> None:
    for at, line in enumerate(lines.values()):
        line.fail(kinds, seed=100 * seed + at, times=3)
    experiment = faulty.experiment(target)
    study = faulty.run(experiment)
    assert sum(line.failed for line in lines.values()) >= 4
    assert hash_of(study) == faulty.pooled_hash(experiment)
    assert set(states(study).values()) == {"took part"}


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
