"""Joined sides as real processes: the oracle is the simulation of the same file."""

from __future__ import annotations

import hmac
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
from flwr.app import ConfigRecord, RecordDict

from federated.deployment.audit_logs import LOG_NAME, open_log
from federated.deployment.folders import identity_of, seed_of
from federated.deployment.node.approval import request_lines
from federated.deployment.node.roles import rows_secret
from federated.deployment.node.rules.refusals import Refusal
from federated.deployment.node.rules.settings import NodeSettings
from federated.deployment.node.sides.alignments import Alignments
from federated.deployment.node.sides.equations import EQUATIONS, Equations
from federated.deployment.node.sides.policy import SidePolicy
from federated.deployment.pairs import agreed, check_pairs
from federated.deployment.plan import announced
from federated.solvers.trees import TreesSettings
from federated.study import arms, result
from federated.study.experiment import Experiment
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError, PeerError, PolicyError
from secure_agg.identity import Identity
from tests.rigs import sides as rig
from tests.rigs.sides import BOTH, CAP, Sides
from tests.rigs.trial import hash_of, started


def simulated(experiment: Experiment, made: Sides) -> result.Study:
    """The same file without an exchange, its sides with the secrets of the real ones."""
    market = SimulatedMarket(experiment)
    for side in market.nodes:
        side.secret = rows_secret(seed_of(made.root / side.name))
        side.rows_secret = hmac.digest(side.secret, b"rows", "sha256")
    with patch.object(arms, "market_of", lambda text, run: market):
        return arms.perform(experiment)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any, authority_key: Any) -> Iterator[Sides]:
    with started(Sides(tmp_path_factory.mktemp("pair"), authority_key)) as made:
        yield made


def test_a_pair_of_real_sides_gives_the_model_and_the_scores_of_the_simulation(pair: Sides) -> None:
    experiment = pair.study()
    found, told = pair.run(experiment), simulated(experiment, pair)
    assert hash_of(found) == hash_of(told)
    assert {p.state for p in found.outlook} == {"took part"}
    fit = found.arms["federated"].models["all"]["model"].fit
    assert fit is not None and fit.rows == BOTH
    for name in pair.insurers:
        releases = [e.told for e in pair.logged(name, "release") if e.run == found.run]
        letters = [each for each in releases if each["hiding"] == "letters to other sides"]
        assert {"query.align", "glm_step", "score_fit"} <= {each["statistic"] for each in letters}
        assert all(each["bytes"] > 0 for each in letters)
    ours, theirs = (s.scores.loc[("federated", "all")] for s in (found, told))
    assert ours[found.headline] == pytest.approx(theirs[found.headline], rel=1e-9)


@pytest.mark.slow
def test_an_alignment_outlives_its_run_until_the_keys_change(pair: Sides) -> None:
    pair.run(pair.study(name="again"))
    pair.run(pair.study(name="and again"))
    for name in pair.insurers:
        (line,) = pair.logged(name, "alignment")
        assert line.told["learns"] == "hidden" and line.told["cap"] == CAP
        assert line.told["spine"] == 2 * CAP - BOTH
    path = pair.root / "tables" / "insurer 1" / "table.parquet"
    table = pd.read_parquet(path)
    table.iloc[::-1].to_parquet(path, index=False)
    try:
        pair.run(pair.study(name="in another order"))
    finally:
        table.to_parquet(path, index=False)
    assert [len(pair.logged(name, "alignment")) for name in pair.insurers] == [2, 2]


def policy_of(made: Sides, name: str, **joined: Any) -> SidePolicy:
    """The policy of a side, with other settings than in its file."""
    settings = NodeSettings.read(made.root / name)
    assert settings.joined is not None
    own = settings.joined.model_copy(update=joined)
    settings = settings.model_copy(update={"joined": own})
    return SidePolicy(made.root / name, settings, made.charter)


@pytest.mark.parametrize(
    ("name", "joined", "message"),
    [
        (
            "fund",
            {"products": {}},
            r"\[products\] .*chronic.* may not enter products with insurer 1",
        ),
        ("fund", {"products": {"insurer 1": ("stays",)}}, r"\[products\] chronic may not enter"),
        ("insurer 1", {"key": ("region",)}, r"\[pairs\] joined.key of node.toml is another key"),
    ],
)
def test_a_side_gives_into_products_what_its_settings_say(
    pair: Sides, name: str, joined: dict[str, Any], message: str
) -> None:
    plan = announced(agreed(pair.study(), pair.charter.pairs))
    policy_of(pair, name).consider(plan)
    with pytest.raises(Refusal, match=message):
        policy_of(pair, name, **joined).consider(plan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"alignment.learns": "both"},
            "alignment.learns: must be 'hidden' by the charter, got 'both'",
        ),
        ({"alignment.cap": 9999}, "alignment.cap: must be '400' by the charter, got '9999'"),
        (
            {"protection.product": "paillier"},
            "protection.product: must be 'triples' by the charter",
        ),
        ({"protection.sums": "clear"}, "protection.sums: must be 'paillier' by the charter"),
    ],
)
def test_a_plan_of_other_sides_than_the_charter_s_is_refused(
    pair: Sides, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        pair.run(pair.study(**changes))
    plan = announced(agreed(pair.study(), pair.charter.pairs))
    section, key = next(iter(changes)).split(".")
    part = getattr(plan.experiment, section).model_copy(update={key: changes[f"{section}.{key}"]})
    other = plan.model_copy(
        update={"experiment": plan.experiment.model_copy(update={section: part})}
    )
    with pytest.raises(PolicyError, match=message):
        policy_of(pair, "fund").consider(other)
    with pytest.raises(PolicyError, match="the charter names no pairs"):
        check_pairs(plan, None)


def test_trees_are_refused_where_the_insurer_is_not_told_who_is_common(pair: Sides) -> None:
    trees = TreesSettings(kind="trees", family="poisson")
    plan = announced(agreed(pair.study(), pair.charter.pairs))
    experiment = plan.experiment.model_copy(update={"model": trees})
    with pytest.raises(ConfigurationError, match="need 'insurer' or 'both', got 'hidden'"):
        check_pairs(plan.model_copy(update={"experiment": experiment}), pair.charter.pairs)


def test_no_more_is_opened_about_a_column_than_a_node_allows(tmp_path: Path) -> None:
    for table in ("first", "second"):
        equations = Equations(tmp_path)  # as after a restart
        equations.note(table, "a", {"age": 40}, 100)
        equations.note(table, "a", {"age": 40}, 100)  # the same equations again
    assert equations.opened == {"age": 80}
    with pytest.raises(
        Refusal, match=r"\[equations\] 80 numbers about 'age' .* has 21, .* allows 100"
    ):
        equations.note("second", "b", {"age": 21, "sex": 9}, 100)
    equations.note("second", "b", {"age": 20, "sex": 9}, 100)
    assert Equations(tmp_path).opened == {"age": 100, "sex": 9}


def test_a_side_does_not_start_without_its_memory(tmp_path: Path) -> None:
    Equations(tmp_path)
    with open_log(tmp_path / LOG_NAME, Identity.generate("fund")) as log:
        told = {"peer": "insurer 1", "session": "1", "learns": "hidden", "cap": 9}
        log.append("alignment", spine=9, learned="how many", **told)
    Equations(tmp_path)
    (tmp_path / EQUATIONS).unlink()
    with pytest.raises(
        ConfigurationError, match=r"equations.jsonl: missing, while log.jsonl tells"
    ):
        Equations(tmp_path)


def test_alignments_are_few_and_each_is_begun_once(tmp_path: Path, pair: Sides) -> None:
    identity = identity_of(pair.root / "fund")
    alignments = Alignments(tmp_path, identity, pair.charter, 2)
    _, keys = policy_of(pair, "fund").keyed()

    def begin(session: str) -> None:
        content = RecordDict()
        content["align"] = ConfigRecord({"peer": "insurer 1", "session": session, "turn": 0})
        alignments.turn(lambda: keys, content, "run", None)  # type: ignore[arg-type]

    begin("first")
    with pytest.raises(Refusal, match=r"\[alignment\] this alignment was begun before"):
        begin("first")
    begin("second")
    with pytest.raises(Refusal, match=r"2 alignments with insurer 1 were begun, .* allows 2, ever"):
        begin("third")


def test_who_approves_sees_whose_rows_are_joined(pair: Sides) -> None:
    plan = announced(agreed(pair.study(), pair.charter.pairs))
    text = "\n".join(request_lines(plan, pair.charter))
    assert "fund: fund; insurers: insurer 1; 10 persons or more" in text
    assert "no side is told who is common; sets filled up to 400" in text
    assert "by randomness that the supervisor deals; the fund's columns are chronic, stays" in text


@pytest.mark.slow
def test_a_column_too_many_ends_the_run_before_a_letter_leaves(pair: Sides) -> None:
    pair.settle("fund", "equations_per_person = 50", "equations_per_person = 0.5")
    pair.kill("fund", signal.SIGTERM)
    pair.start("fund")
    try:
        with pytest.raises(PeerError, match=r"\[equations\] .* allows 120, ever"):
            pair.run(pair.study(name="too many", seed=9))
    finally:
        pair.settle("fund", "equations_per_person = 0.5", "equations_per_person = 50")
        pair.kill("fund", signal.SIGTERM)
        pair.start("fund")


@pytest.mark.slow
def test_nothing_is_multiplied_for_fewer_persons_than_the_charter_says(
    tmp_path: Path, authority_key: Any
) -> None:
    with started(Sides(tmp_path, authority_key, minimum_persons=BOTH + 1)) as made:
        with pytest.raises(PeerError, match=r"\[persons\] 240 persons are common, .* asks for 241"):
            made.run(made.study())
        assert not made.logged("supervisor", "deal")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("insurers", "test", "pairs"),
    [
        (3, 0.4, {"learns": "both"}),
        (1, 0.4, {"learns": "insurer"}),
        (1, 0.0, {"learns": "fund", "product": "paillier"}),
    ],
    ids=["three insurers", "persons for testing", "by Paillier"],
)
def test_the_model_is_the_simulation_s_whoever_learns_what(
    tmp_path: Path, authority_key: Any, insurers: int, test: float, pairs: dict[str, Any]
) -> None:
    with started(Sides(tmp_path, authority_key, insurers, test, **pairs)) as made:
        made.settings(answer_seconds=120.0)
        experiment = made.study()
        found, told = made.run(experiment), simulated(experiment, made)
        assert hash_of(found) == hash_of(told)
        ours, theirs = (s.scores.loc[("federated", "all")] for s in (found, told))
        assert ours[found.headline] == pytest.approx(theirs[found.headline], rel=1e-9)


@pytest.mark.slow
def test_letters_that_the_exchange_would_not_take_are_refused_before_they_leave(
    tmp_path: Path, authority_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("BOTH", 1800), ("CAP", 3000)):
        monkeypatch.setattr(rig, name, value)
    made = Sides(tmp_path, authority_key)
    made.settings(body_megabytes=1)
    with started(made) as large:
        message = "the letters of insurer 1 for glm_start have 2 MB, and the exchange takes 1 MB"
        with pytest.raises(ConfigurationError, match=f"body_megabytes .*{message}.* set 6 or more"):
            large.run(large.study())
