"""Faults of joined sides, with real processes: the oracle is the model, and who is named."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flwr.app import RecordDict

from federated.deployment.coordinator.sides import RemoteJoined
from federated.deployment.node.process import Node
from federated.deployment.signed_messages import claimed
from federated.joined.letters import purpose, sealed
from federated.message_kinds import MessageKind
from federated.messages import Request, blobs
from lab.errors import PeerError, PolicyError
from tests.federated.deployment.test_sides import simulated
from tests.rigs.sides import Sides
from tests.rigs.trial import hash_of, started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any, authority_key: Any) -> Iterator[Sides]:
    with started(Sides(tmp_path_factory.mktemp("pair"), authority_key)) as made:
        yield made


@dataclass(frozen=True)
class Dies:
    """Is killed when a message of a kind comes, after it answered so many."""

    kind: MessageKind
    answered: int

    def __call__(self, node: Node) -> None:
        handle, left = node.handle, [self.answered]

        def wrapped(line: Any, message: Any) -> Any:
            if claimed(message.content).kind == self.kind:
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
            return handle(line, message)

        node.handle = wrapped  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("kind", "answered"),
    [(MessageKind.ALIGN, 2), (MessageKind.PRODUCT, 5), (MessageKind.PRODUCT, 6)],
    ids=["in an alignment", "before its letter was taken", "before a sum was begun"],
)
@pytest.mark.parametrize("name", ["fund", "insurer 1"])
def test_a_side_that_is_killed_and_back_gives_the_same_model(
    pair: Sides, kind: MessageKind, answered: int, name: str
) -> None:
    experiment = pair.study(name=f"killed {name} {answered}")
    for side in pair.insurers:
        for path in (pair.root / side / "alignments").glob("*.npz"):
            path.unlink()
    pair.kill(name, signal.SIGTERM)
    dying = pair.start(name, Dies(kind, answered))
    conductor = pair.conduct(experiment, experiment.name)
    dying.join(60)
    assert dying.exitcode == -signal.SIGKILL
    pair.start(name)
    conductor.join(120)
    told = simulated(experiment, pair)
    assert f"model {hash_of(told)}" in pair.out(experiment.name)
    deals = [(e.query, e.told["turn"]) for e in pair.logged("supervisor", "deal")]
    assert len(set(deals)) == len(deals)


@dataclass(frozen=True)
class WritesNonsense:
    """Sends another side a letter that it sealed and signed, of nothing."""

    def __call__(self, node: Node) -> None:
        answer = node._answers.answer

        def wrapped(run_state: Any, signed_message: Any, message: Any, log: Any) -> RecordDict:
            reply = answer(run_state, signed_message, message, log)
            if signed_message.kind == MessageKind.PRODUCT:
                query = Request.from_record(signed_message.content).query
                meant = purpose(query, 0, "insurer 1", "fund")
                letter = sealed(node.identity, node.charter.roster["fund"], meant, b"nonsense")
                reply["message"] = blobs(**{"to fund": letter})
            return reply

        node._answers.answer = wrapped  # type: ignore[method-assign]


@dataclass(frozen=True)
class CountsOneMore:
    """Says that its spine has a row more than it has."""

    def __call__(self, node: Node) -> None:
        answer = node._answers.answer

        def wrapped(run_state: Any, signed_message: Any, message: Any, log: Any) -> RecordDict:
            reply = answer(run_state, signed_message, message, log)
            if signed_message.kind == MessageKind.ALIGN:
                size = int(str(reply.config_records["aligned"]["size"]))
                reply.config_records["aligned"]["size"] = size + (size > 0)
            return reply

        node._answers.answer = wrapped  # type: ignore[method-assign]


@dataclass(frozen=True)
class StandsElsewhere:
    """Multiplies on a spine of a row more than the other side's."""

    def __call__(self, node: Node) -> None:
        side = node._answers._side  # type: ignore[attr-defined]
        party = side.policy.party

        def wrapped(study: Any, secret: bytes) -> Any:
            made = party(study, secret)
            made.sizes = {peer: size + 1 for peer, size in made.sizes.items()}
            return made

        side.policy.party = wrapped


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        (WritesNonsense(), r"fund: insurer 1: sent a letter that does not fit"),
        (StandsElsewhere(), r"insurer 1: sent a letter that does not fit: .*another product"),
        (CountsOneMore(), r"insurer 1 and fund: arrived at spines of insurer 1 \d+ and fund \d+"),
    ],
)
def test_whoever_breaks_a_product_is_named(pair: Sides, sabotage: Any, message: str) -> None:
    for path in (pair.root / "insurer 1" / "alignments").glob("*.npz"):
        path.unlink()
    pair.kill("insurer 1", signal.SIGTERM)
    pair.start("insurer 1", sabotage)
    with pytest.raises(PeerError, match=message):
        pair.run(pair.study(name=type(sabotage).__name__))
    pair.kill("insurer 1", signal.SIGTERM)
    pair.start("insurer 1")


def test_a_triple_is_used_once(pair: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply, dealt = RemoteJoined.multiply, RemoteJoined.dealt

    def twice(self: Any, *arguments: Any) -> Any:
        dealt(self, *arguments)
        return dealt(self, *arguments)

    monkeypatch.setattr(RemoteJoined, "dealt", twice)
    with pytest.raises(PeerError, match="asks for a deal that was made before"):
        pair.run(pair.study(name="dealt twice"))
    monkeypatch.setattr(RemoteJoined, "dealt", dealt)

    def again(self: Any, *arguments: Any) -> None:
        multiply(self, *arguments)
        multiply(self, *arguments)

    monkeypatch.setattr(RemoteJoined, "multiply", again)
    with pytest.raises((PeerError, PolicyError), match="this product was begun before"):
        pair.run(pair.study(name="multiplied twice"))


def test_a_run_goes_on_after_its_coordinator_was_killed_in_a_product(pair: Sides) -> None:
    experiment = pair.study(name="taken up")
    before = len(pair.logged("supervisor", "deal"))
    pair.conduct(experiment)
    pair.until(lambda: len(pair.logged("supervisor", "deal")) > before + 4, 60)
    pair.kill("conductor")
    found = pair.run(experiment, fresh=False)
    assert hash_of(found) == hash_of(simulated(experiment, pair))
    deals = [(e.query, e.told["turn"]) for e in pair.logged("supervisor", "deal")]
    assert len(set(deals)) == len(deals)


@pytest.mark.parametrize("kind", [MessageKind.DEAL, MessageKind.OPEN])
def test_a_dealer_that_is_killed_and_back_gives_the_same_model(
    pair: Sides, kind: MessageKind
) -> None:
    experiment = pair.study(name=f"killed at {kind}")
    pair.kill("supervisor", signal.SIGTERM)
    dying = pair.start("supervisor", Dies(kind, 4))
    conductor = pair.conduct(experiment, experiment.name)
    dying.join(60)
    assert dying.exitcode == -signal.SIGKILL
    pair.start("supervisor")
    conductor.join(120)
    assert f"model {hash_of(simulated(experiment, pair))}" in pair.out(experiment.name)
