"""Every kind of model among real processes: the oracle is the simulation of the same file."""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest

from federated.deployment.audit_logs import LOG_NAME
from federated.deployment.coordinator.federation import DeployedFederation
from federated.deployment.dealt_tables import deal_tables
from federated.deployment.folders import seed_of
from federated.deployment.node.roles import rows_secret
from federated.deployment.node.rules import policy as insurer
from federated.deployment.node.rules import settings as node_folder
from federated.deployment.node.solver import total_message
from federated.deployment.plan import announced
from federated.message_kinds import MessageKind
from federated.messages import Reply, Request
from federated.study import arms, result
from federated.study.experiment import Experiment
from federated.study.simulation import SimulatedMarket
from lab.audit import log_format as audit
from lab.errors import ConfigurationError, PeerError, PolicyError
from lab.files import read_json
from tests.rigs.trial import Trial, hash_of, started

CONTRACT = """name = "trial"
[columns]
person = { type = "integer", role = "identifier", minimum = 1 }
provider = { type = "integer", role = "identifier", minimum = 1 }
day = { type = "integer", role = "identifier", minimum = 0, maximum = 59 }
late = { type = "integer", role = "identifier", minimum = 0, maximum = 1 }
payer = { type = "category", role = "identifier", levels = ["a", "b", "c"] }
age = { type = "integer", minimum = 0, maximum = 110 }
cost = { type = "number", nullable = true }
weekday = { type = "integer", minimum = 0, maximum = 6 }
clinic = { type = "category" }
sex = { type = "category", levels = ["F", "M"] }
fraud = { type = "integer", role = "target", minimum = 0, maximum = 1 }
"""
FEATURES = ["age", "cost", "weekday", "clinic", "sex"]
TREES = {
    "kind": "trees",
    "trees": 3,
    "depth": 2,
    "min_child_rows": 5.0,
    "bins": 8,
    "learning_rate": 0.4,
    "validation_share": 0.0,
}
STOPPED = {**TREES, "validation_share": 0.3, "patience": 1, "features": 0.6}
NETWORK = {"kind": "network", "family": "binomial", "hidden": [4], "rounds": 2, "epochs": 1}

GLM = {"kind": "glm", "family": "binomial"}
CROSSED = {**GLM, "interactions": ["sex:clinic", "age:sex"]}


def claims(rows: int) -> pd.DataFrame:
    """Claims of three payers, with a category nobody lists, missing costs, and frauds that are few."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(
        {
            "person": rng.integers(1, 200, rows),
            "provider": rng.choice([11, 12, 15], rows, p=[0.62, 0.37, 0.01]),
            "day": rng.integers(0, 60, rows),
            "late": (rng.random(rows) < 0.25).astype(int),
            "payer": rng.choice(["a", "b", "c"], rows, p=[0.5, 0.3, 0.2]),
            "age": rng.integers(0, 90, rows),
            "cost": np.where(rng.random(rows) < 0.1, np.nan, rng.gamma(2.0, 100.0, rows)),
            "weekday": rng.integers(0, 7, rows),
            "clinic": rng.choice(["north", "south", "east"], rows),
            "sex": rng.choice(["F", "M"], rows),
        }
    )
    odds = 0.1 + 0.2 * (frame["provider"] == 12) + 0.2 * (frame["age"] > 60)
    return frame.assign(fraud=(rng.random(rows) < odds).astype(int))


def study(root: Path, model: dict[str, Any], **changes: Any) -> Experiment:
    """An experiment on the claims of all payers, as a simulation has it."""
    data = {
        "path": str(root / "claims.parquet"),
        "contract": str(root / "claims.toml"),
        "target": "fraud",
        "features": FEATURES,
        "missing": "keep" if model["kind"] == "trees" else "mean",
        "test_column": "late",
        "test_value": 1,
        "group_by_person": False,
    }
    values: dict[str, Any] = {
        "name": "claims",
        "seed": 5,
        "data": data | changes.pop("data", {}),
        "parties": {"split": "column", "column": "payer"},
        "model": model,
        "protection": {"key_bits": 2048} | changes.pop("protection", {}),
        "arms": {"run": ["federated"], "replicates": 0},
    }
    return Experiment.model_validate(values | changes)


class Payers(Trial):
    """A trial exchange whose insurers hold the tables that a simulation deals."""

    analyses = ("glm", "network", "trees", "profiles")

    def _tables(self, insurers: int, rows: int) -> dict[str, tuple[Path, Path]]:
        self.contract = self.root / "claims.toml"
        self.contract.write_text(CONTRACT)
        claims(rows * insurers).to_parquet(self.root / "claims.parquet", index=False)
        register = pd.DataFrame({"provider": [11, 12, 15, 16]})
        register.to_csv(self.root / "register.csv", index=False)
        dealt = deal_tables(profiled(self.root), self.root / "tables")
        return {n: (at / "table.parquet", at / "contract.toml") for n, at in dealt.items()}

    def start_all(self) -> None:
        for name in self.insurers:
            analyses = json.dumps(self.analyses)
            self.limits(name, analyses=analyses, announces='["clinic"]', minimum_rows="1")
            path = self.root / name / node_folder.SETTINGS
            text = path.read_text().replace('# person = ""', 'person = "person"')
            text = text.replace("validation_share = 0.2", "validation_share = 0.3")
            path.write_text(text.replace('test_column = "held_out"', 'test_column = "late"'))
        super().start_all()


def profiled(root: Path, **changes: Any) -> Experiment:
    """An experiment with features that are known of providers at all payers together."""
    known = {
        "name": "known",
        "by": "provider",
        "day": "day",
        "every": 30,
        "register_file": str(root / "register.csv"),
        "measures": ["claims", "persons", "returning"],
        "means": ["cost"],
        "shares": {"weekend": {"column": "weekday", "operation": ">=", "value": 5}},
    }
    data = {"person": "person", "features": [*FEATURES, "known_claims", "known_weekend"]}
    return study(root, changes.pop("model", TREES), data=data, profile=[known], **changes)


@pytest.fixture(scope="module")
def payers(tmp_path_factory: Any, authority_key: Any) -> Iterator[Payers]:
    with started(Payers(tmp_path_factory.mktemp("payers"), authority_key, insurers=3)) as made:
        yield made


def simulated(experiment: Experiment, made: Payers) -> result.Study:
    """The same file without an exchange, its parties with the secrets that real ones draw rows by."""
    market = SimulatedMarket(experiment)
    for party in market.parties:
        party.secret = rows_secret(seed_of(made.root / party.name))
        party.rows_secret = hmac.digest(party.secret, b"rows", "sha256")
    with patch.object(arms, "market_of", lambda text, run: market):
        return arms.perform(experiment)


@pytest.mark.parametrize(
    ("model", "detection"),
    [
        pytest.param(STOPPED, None, id="trees"),
        pytest.param(
            {**NETWORK, "imbalance": "weights"}, None, id="network", marks=pytest.mark.slow
        ),
        pytest.param(CROSSED, {"groups": ["sex"]}, id="glm", marks=pytest.mark.slow),
    ],
)
def test_real_parties_give_the_model_and_the_scores_of_the_simulation(
    payers: Payers, model: dict[str, Any], detection: dict[str, Any] | None
) -> None:
    experiment = study(payers.root, model, detection=detection)
    found, told = payers.run(experiment), simulated(experiment, payers)
    assert hash_of(found) == hash_of(told)
    assert {p.state for p in found.outlook} == {"took part"}
    ours, theirs = (s.scores.loc[("federated", "all")] for s in (found, told))
    assert ours[found.headline] == pytest.approx(theirs[found.headline], rel=1e-9)


def growing(payers: Payers, experiment: Experiment) -> bool:
    """Whether a run's second tree grows."""
    if not (payers.exchange / LOG_NAME).exists():
        return False
    digest = announced(experiment).digest
    for place in (payers.exchange / "runs").glob("*/run.json"):
        told = read_json(place)
        if told["plan"] == digest and not told["end"]:
            lines = payers.logged("exchange", "release")
            levels = [e for e in lines if e.run == told["run"]]
            return sum(e.told["statistic"] == "trees_level" for e in levels) > 3
    return False


@pytest.mark.slow
def test_a_profile_gives_the_model_of_the_simulation_though_all_but_the_releaser_come_and_go(
    payers: Payers,
) -> None:
    experiment = profiled(payers.root)
    payers.conduct(experiment)
    payers.until(lambda: growing(payers, experiment), 90)
    for name in ("conductor", "payer b"):
        payers.kill(name)
    payers.start("payer b")
    found = payers.run(experiment, fresh=False)
    assert hash_of(found) == hash_of(simulated(experiment, payers))
    assert shown_by(payers, "supervisor", found.run) == [4]
    assert {p.state for p in found.outlook} == {"took part"}


def shown_by(payers: Payers, name: str, run: str) -> list[int]:
    """How many cells of each profile a party released in a run, by its log."""
    entries = audit.entries(audit.read_lines(payers.root / name / LOG_NAME))
    released = [e for e in entries if e.run == run and e.told.get("hiding") == "released by rules"]
    return [e.told["shown"] for e in released if e.told["statistic"] == "profile"]


def test_no_profile_is_made_against_the_charter_or_a_node(payers: Payers) -> None:
    experiment = profiled(payers.root, name="refused")
    told, name = announced(experiment), "payer a"
    settings = node_folder.NodeSettings.read(payers.root / name)
    node = insurer.InsurerPolicy(payers.root / name, settings, payers.charter)
    node.consider(told)
    node.allow_statistic(told, "profile", "{}")
    with pytest.raises(
        PolicyError, match=r"\[analyses\] 'profile' is not part of the announced study"
    ):
        node.allow_statistic(announced(study(payers.root, TREES)), "profile", "{}")
    node.data = node.data.model_copy(update={"person": None})
    with pytest.raises(
        PolicyError, match=r"\[person\] node.toml does not say who a row belongs to"
    ):
        node.consider(told)
    node.data = settings.data
    node.limits = settings.limits.model_copy(update={"analyses": ("trees",)})
    for refused in (node.consider, lambda study: node.allow_statistic(study, "profile", "{}")):
        with pytest.raises(
            PolicyError, match=r"\[analyses\] this party does not take part in 'profiles'"
        ):
            refused(told)
    node.limits = settings.limits.model_copy(update={"never_leaves": ("provider",)})
    with pytest.raises(PolicyError, match=r"\[never_leaves\] provider may not be used in any"):
        node.consider(told)
    other = payers.charter.model_copy(update={"analyses": ("trees",)})
    with pytest.raises(
        PolicyError, match=r"\[analyses\] this party does not take part in 'profiles'"
    ):
        insurer.InsurerPolicy(payers.root / name, settings, other).consider(told)
    payers.sign(other, ("exchange",))
    try:
        with pytest.raises(ConfigurationError, match="the charter allows trees, not 'profiles'"):
            payers.run(experiment)
    finally:
        payers.sign(payers.charter, ("exchange",))


@pytest.mark.slow
def test_the_insurer_in_the_first_seat_releases_a_profile_under_a_split_key(
    tmp_path: Path, authority_key: Any
) -> None:
    with started(Payers(tmp_path, authority_key, insurers=3, split=True)) as made:
        experiment = profiled(made.root, model=GLM)
        found = made.run(experiment)
        assert hash_of(found) == hash_of(simulated(experiment, made))
        assert shown_by(made, "payer a", found.run) == [4]


@pytest.mark.slow
def test_masks_hide_a_model_of_real_parties_who_open_each_total_for_themselves(
    tmp_path: Path, authority_key: Any
) -> None:
    with started(Payers(tmp_path, authority_key, insurers=3, hiding="masks")) as made:
        for kind in (GLM, NETWORK):
            experiment = study(made.root, kind, protection={"sums": "masks"})
            assert hash_of(made.run(experiment)) == hash_of(simulated(experiment, made))
        trees = study(made.root, STOPPED, protection={"sums": "masks"})
        with pytest.raises(ConfigurationError, match="all parties see every total"):
            made.run(trees)


@pytest.mark.slow
def test_a_coordinator_that_tells_another_total_under_replay_loses_its_parties(
    tmp_path: Path, authority_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lying(self: DeployedFederation, question: Request) -> None:
        total = self.resumable_run.totals.read(question.step, question.question.hex())
        assert total is not None
        more = {name: 1.5 * array for name, array in total.arrays.items()}
        proof = Reply.of("", replace(total, arrays=more), None).to_record()
        content = total_message(question, proof)
        self._asked_of_all(MessageKind.TOTAL, self.names, content)

    monkeypatch.setattr(DeployedFederation, "tell", lying)
    with started(Payers(tmp_path, authority_key, insurers=3, hiding="masks")) as made:
        experiment = study(made.root, GLM, protection={"sums": "masks"})
        with pytest.raises(PeerError, match="0 parties are left"):
            made.run(experiment)
