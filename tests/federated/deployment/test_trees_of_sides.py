"""Trees over joined sides as real processes: the oracle is the simulation of the same file."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from federated.deployment.audit_logs import LOG_NAME, open_log
from federated.deployment.coordinator.sides import RemoteJoined
from federated.deployment.node.approval import request_lines
from federated.deployment.node.checks import examine
from federated.deployment.node.process import Node
from federated.deployment.node.rules.refusals import Refusal
from federated.deployment.node.sides.cuts import CUTS, CutsTold
from federated.deployment.pairs import agreed
from federated.deployment.plan import announced
from federated.deployment.signed_messages import claimed
from federated.joined.side import JoinedSide
from lab.errors import ConfigurationError, PeerError, PolicyError
from secure_agg.identity import Identity
from tests.federated.deployment.test_sides import policy_of, simulated
from tests.rigs.sides import BOTH, Sides
from tests.rigs.trial import hash_of, started

# What a node allows.


@pytest.fixture(scope="module")
def sides(tmp_path_factory: Any, authority_key: Any) -> Sides:
    """A pair of which nothing runs."""
    return Sides(tmp_path_factory.mktemp("sides"), authority_key, learns="both")


def plan_of(made: Sides, **changes: Any) -> Any:
    return announced(agreed(made.trees().model_copy(update=changes), made.charter.pairs))


@pytest.mark.parametrize(
    ("joined", "message"),
    [
        (
            {"cuts": {}},
            r"\[cuts\] trees would tell insurer 1 .* cuts on chronic, stays, and joined",
        ),
        ({"cuts": {"insurer 1": ("stays",)}}, r"\[cuts\] .* cuts on chronic, and joined.cuts of"),
        ({"bits_per_person": 0}, r"\[cuts\] insurer 1 was told 0 cuts .* allows 0, ever"),
    ],
)
def test_a_fund_tells_cuts_on_the_columns_that_its_settings_name(
    sides: Sides, joined: dict[str, Any], message: str
) -> None:
    policy_of(sides, "fund").consider(plan_of(sides))
    policy_of(sides, "fund", cuts={"insurer 1": ("stays", "chronic")}).consider(plan_of(sides))
    with pytest.raises(Refusal, match=message):
        policy_of(sides, "fund", **joined).consider(plan_of(sides))
    policy_of(sides, "insurer 1", **joined).consider(plan_of(sides))  # who tells none


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "fund",
            r"\[equations\] these trees may open some [\d,]+ numbers about '(chronic|stays)' of 300",
        ),
        (
            "insurer 1",
            r"\[equations\] .* about '(age|region)' of 280 persons, .* is 0.5; they need \d",
        ),
    ],
)
def test_what_trees_may_open_is_refused_before_anything_is(
    sides: Sides, name: str, message: str
) -> None:
    policy_of(sides, name).consider(plan_of(sides))
    with pytest.raises(Refusal, match=message):
        policy_of(sides, name, equations_per_person=0.5).consider(plan_of(sides))


def test_a_plan_that_refuses_cuts_has_no_trees_on_the_fund_s_columns(sides: Sides) -> None:
    plan = plan_of(sides)
    refused = plan.experiment.protection.model_copy(update={"cuts": "refused"})
    with pytest.raises(ConfigurationError, match=r"protection\.cuts: is 'refused'"):
        plan_of(sides, protection=refused)
    experiment = plan.experiment.model_copy(update={"protection": refused})
    with pytest.raises(ConfigurationError, match=r"protection\.cuts: is 'refused'"):
        policy_of(sides, "fund").consider(plan.model_copy(update={"experiment": experiment}))
    own = plan.experiment.data.model_copy(update={"features": ("age", "region")})
    policy_of(sides, "fund", cuts={}).consider(plan_of(sides, protection=refused, data=own))


def test_who_approves_sees_what_cuts_would_tell(sides: Sides) -> None:
    text = "\n".join(request_lines(plan_of(sides), sides.charter))
    assert "fund tells the insurers: on chronic, stays: one bit each about every person" in text


def test_a_check_says_what_may_be_told_and_what_was(sides: Sides) -> None:
    found = {finding.what: finding.text for finding in examine(sides.root / "fund")}
    assert found["joined"].endswith("insurer 1 may be told cuts on all columns, 0 of 100 so far")
    found = {finding.what: finding.text for finding in examine(sides.root / "insurer 1")}
    assert "cuts" not in found["joined"]


def test_cuts_are_counted_over_restarts_each_once(tmp_path: Path) -> None:
    for _ in range(2):
        told = CutsTold(tmp_path)  # as after a restart
        told.note("insurer 1", ["rows a", "rows b", "rows a"], 3)
    assert (told.count("insurer 1"), told.count("insurer 2")) == (2, 0)
    with pytest.raises(
        Refusal, match=r"\[cuts\] insurer 1 was told 2 .* 2 more, .* allows 3, ever"
    ):
        told.note("insurer 1", ["rows b", "rows c", "other rows a"], 3)
    assert told.note("insurer 1", ["rows b", "other rows a"], 3) == 1
    assert told.note("insurer 2", ["rows a"], 1) == 1
    assert CutsTold(tmp_path).count("insurer 1") == 3


def test_a_side_that_told_cuts_does_not_start_without_its_memory(tmp_path: Path) -> None:
    CutsTold(tmp_path)
    with open_log(tmp_path / LOG_NAME, Identity.generate("fund")) as log:
        about = {"peer": "insurer 1", "columns": ["stays"], "cuts": 1, "persons": 9}
        log.append("cuts", statistic="trees_level", **about)
    (tmp_path / CUTS).write_text("[1]\n")
    with pytest.raises(ConfigurationError, match=r"cuts.jsonl: is damaged"):
        CutsTold(tmp_path)
    (tmp_path / CUTS).unlink()
    with pytest.raises(ConfigurationError, match=r"missing, while log.jsonl tells of cuts that"):
        CutsTold(tmp_path)


# Processes.


@dataclass(frozen=True)
class DiesAt:
    """Is killed when a message about a statistic comes, after it answered so many of them."""

    statistic: str
    answered: int

    def __call__(self, node: Node) -> None:
        handle, left = node.handle, [self.answered]

        def wrapped(line: Any, message: Any) -> Any:
            content = claimed(message.content).content
            header = content.config_records.get("request", {})
            if header.get("statistic") == self.statistic:
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
            return handle(line, message)

        node.handle = wrapped  # type: ignore[method-assign]


@dataclass(frozen=True)
class TellsOfNothing:
    """Tells an insurer of no cut, whatever the plan chose."""

    def __call__(self, node: Node) -> None:
        JoinedSide.tell = lambda *asked: b""  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any, authority_key: Any) -> Iterator[Sides]:
    with started(Sides(tmp_path_factory.mktemp("pair"), authority_key, learns="both")) as made:
        made.settings(answer_seconds=120.0)
        yield made


def cuts_in(made: Sides, run: str) -> int:
    return sum(e.told["cuts"] for e in made.logged("fund", "cuts") if e.run == run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "model"),
    [
        ({}, {}),
        ({}, {"validation_share": 0.2, "patience": 1, "trees": 1, "depth": 2}),
        ({"exposure": ""}, {"family": "gaussian", "own_trees": 1, "features": 0.7}),
        ({}, {"family": "tweedie", "power": 1.5, "monotone": {"stays": 1}}),
    ],
)
def test_a_pair_of_real_sides_grows_the_trees_of_the_simulation(
    pair: Sides, data: dict[str, Any], model: dict[str, Any]
) -> None:
    experiment = pair.trees(f"trees {model}", data, **model)
    found, told = pair.run(experiment), simulated(experiment, pair)
    assert hash_of(found) == hash_of(told)
    ours, theirs = (s.scores.loc[("federated", "all")] for s in (found, told))
    assert ours[found.headline] == pytest.approx(theirs[found.headline], rel=1e-9)
    lines = [line for line in found.receipts["fund"] if line.statistic == "trees_cuts"]
    expected = [line for line in told.receipts["fund"] if line.statistic == "trees_cuts"]
    assert sum(line.arrays for line in lines) == sum(line.arrays for line in expected) > 0
    assert {line.rows for line in lines} == {BOTH}
    before = {e.run for e in pair.logged("fund", "cuts")} - {found.run}
    assert before or cuts_in(pair, found.run) == sum(line.arrays for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("insurers", "test", "target", "pairs"),
    [
        (2, 0.4, "claims", {"learns": "both"}),
        (2, 0.0, "claims", {"learns": "insurer"}),
        (1, 0.4, "any", {"learns": "insurer", "product": "paillier"}),
    ],
    ids=["two insurers", "who alone know who is common", "by Paillier, binomial"],
)
def test_the_trees_are_the_simulation_s_whoever_is_told_who_is_common(
    tmp_path: Path,
    authority_key: Any,
    insurers: int,
    test: float,
    target: str,
    pairs: dict[str, Any],
) -> None:
    with started(Sides(tmp_path, authority_key, insurers, test, target, **pairs)) as made:
        made.settings(answer_seconds=120.0)
        family = "poisson" if target == "claims" else "binomial"
        experiment = made.trees(trees=1, family=family)
        found, told = made.run(experiment), simulated(experiment, made)
        assert hash_of(found) == hash_of(told)
        ours, theirs = (s.scores.loc[("federated", "all")] for s in (found, told))
        assert ours[found.headline] == pytest.approx(theirs[found.headline], rel=1e-9)
        assert cuts_in(made, found.run) > 0
        telling = pairs["learns"] == "both"
        for path in (made.root / "fund" / "alignments").glob("*.npz"):
            assert (b"common" in path.read_bytes()) == telling


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "answered"),
    [
        ("fund", "trees_level", 4),
        ("fund", "trees_bins", 2),
        ("insurer 1", "trees_level", 5),
        ("insurer 1", "trees_level", 15),
        ("supervisor", "trees_level", 3),
    ],
)
def test_who_is_killed_in_a_histogram_and_back_grows_the_same_trees(
    pair: Sides, name: str, kind: str, answered: int
) -> None:
    experiment = pair.trees(f"killed {name} {kind} {answered}")
    pair.kill(name, signal.SIGTERM)
    dying = pair.start(name, DiesAt(kind, answered))
    conductor = pair.conduct(experiment, experiment.name)
    dying.join(120)
    assert dying.exitcode == -signal.SIGKILL
    pair.start(name)
    conductor.join(240)
    told = simulated(experiment, pair)
    assert f"model {hash_of(told)}" in pair.out(experiment.name)
    deals = [(e.query, e.told["turn"]) for e in pair.logged("supervisor", "deal")]
    assert len(set(deals)) == len(deals)


@pytest.mark.slow
def test_a_run_goes_on_after_its_coordinator_was_killed_in_a_histogram(pair: Sides) -> None:
    experiment = pair.trees("taken up")
    before = len(pair.logged("fund", "release"))
    pair.conduct(experiment)

    def at_a_histogram() -> bool:
        lines = pair.logged("fund", "release")[before:]
        return any(line.told["statistic"] == "trees_level" for line in lines)

    pair.until(at_a_histogram, 120)
    pair.kill("conductor")
    found = pair.run(experiment, fresh=False)
    assert hash_of(found) == hash_of(simulated(experiment, pair))


@pytest.mark.slow
def test_a_fund_that_tells_of_other_cuts_is_named(pair: Sides) -> None:
    pair.kill("fund", signal.SIGTERM)
    pair.start("fund", TellsOfNothing())
    with pytest.raises(PeerError, match=r"insurer 1: fund: tells of other cuts than were chosen"):
        pair.run(pair.trees("told of nothing"))
    pair.kill("fund", signal.SIGTERM)
    pair.start("fund")


@pytest.mark.slow
def test_a_triple_of_a_histogram_is_used_once(pair: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = RemoteJoined.multiply

    def again(self: Any, talk: Any, request: Any, total: Any) -> None:
        multiply(self, talk, request, total)
        if request.statistic == "trees_level":
            multiply(self, talk, request, total)

    monkeypatch.setattr(RemoteJoined, "multiply", again)
    with pytest.raises((PeerError, PolicyError), match="this product was begun before"):
        pair.run(pair.trees("multiplied twice"))
