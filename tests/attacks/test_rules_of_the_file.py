"""An analyst's file names the rules by which cells of few persons are joined, or undoes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.deployment.node.rules import policy
from federated.deployment.node.rules.policy import InsurerPolicy
from federated.deployment.node.rules.refusals import Refusal
from federated.deployment.plan import announced
from federated.study.plan import StudyPlan
from lab.privacy import disclosure
from tests.attacks.setting import nodes_of, outcome_of
from tests.rigs.trial import Trial

#: Trees whose leaves may stand on one person.
LEAVES = {
    "kind": "trees",
    "family": "gaussian",
    "trees": 1,
    "depth": 10,
    "learning_rate": 1.0,
    "bins": 254,
    "l2": 0.0,
    "min_child_rows": 1e-6,
    "leaves": 1024,
    "min_gain": 0.0,
    "validation_share": 0.0,
    "min_persons": 1,
}
NAMES_OF_KINDS = '["glm", "trees"]'


class TrialOfTrees(Trial):
    analyses = ("glm", "trees")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: Any, authority_key: Any) -> Trial:
    made = TrialOfTrees(tmp_path_factory.mktemp("rules"), authority_key, insurers=3, rows=150)
    for name in made.insurers:
        made.limits(name, analyses=NAMES_OF_KINDS)
    return made


@pytest.fixture
def nodes(trial: Trial) -> list[InsurerPolicy]:
    return nodes_of(trial)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard off: an insurer does not compare the plan's rules with its own."""
    monkeypatch.setattr(policy, "check_disclosure", lambda study, rules: None)


def plan_of_leaves(trial: Trial) -> StudyPlan:
    data = {"target": "x2", "features": ["x1"], "test": 0.2}
    plan = announced(trial.experiment(0, data=data, model=LEAVES))
    return plan.model_copy(update={"least_parties": 1})


def loose_plan(trial: Trial, folder: Path) -> StudyPlan:
    """Under a file of rules that ask for one person at each cell."""
    rules = Path(disclosure.__file__).with_suffix(".toml").read_text()
    (folder / "loose.toml").write_text(rules.replace("persons = 10", "persons = 1"))
    changes = {"disclosure": str(folder / "loose.toml")}
    plan = announced(trial.experiment(0, data={"test": 0.2}, protection=changes))
    return plan.model_copy(update={"least_parties": 1})


def leaves_of_one(nodes: list[InsurerPolicy], plan: StudyPlan) -> tuple[Any, Any]:
    """What leaves of one training row predict, and the targets of these rows."""
    model = outcome_of(nodes, plan).models["model"].model
    parties = [node.party(plan, node.settings.name.encode()) for node in nodes]
    rows = pd.concat([party.train for party in parties])
    values = model.predict(rows)
    _, leaf, size = np.unique(values, return_inverse=True, return_counts=True)
    alone = size[leaf] == 1
    return values[alone], rows["x2"].to_numpy()[alone]


@pytest.mark.usefixtures("unchecked")
def test_where_the_file_says_how_few_persons_a_leaf_holds_its_value_is_hers(
    trial: Trial, nodes: list[InsurerPolicy]
) -> None:
    values, targets = leaves_of_one(nodes, plan_of_leaves(trial))
    assert len(values) > 20
    np.testing.assert_allclose(values, targets, atol=2e-3)


def test_an_insurer_grows_no_leaf_of_fewer_persons_than_its_rules_say(
    trial: Trial, nodes: list[InsurerPolicy]
) -> None:
    with pytest.raises(Refusal, match=r"\[disclosure\] .* on 1 persons .* ask for 10; raise"):
        leaves_of_one(nodes, plan_of_leaves(trial))


@pytest.mark.usefixtures("unchecked")
def test_where_the_file_names_the_rules_score_bins_hold_one_person(
    trial: Trial, nodes: list[InsurerPolicy], tmp_path: Path
) -> None:
    curve = outcome_of(nodes, loose_plan(trial, tmp_path)).evaluations["model"].lorenz
    assert (curve["size"] == 1).sum() > 20


def test_an_insurer_takes_part_in_no_model_whose_cells_are_of_fewer_parties(
    trial: Trial, nodes: list[InsurerPolicy]
) -> None:
    plan = announced(trial.experiment(0, data={"test": 0.2}))
    with pytest.raises(Refusal, match=r"\[disclosure\] .* stand on 1 parties .* ask for 3"):
        outcome_of(nodes, plan.model_copy(update={"least_parties": 1}))


def test_an_insurer_takes_part_under_its_own_rules_alone(
    trial: Trial, nodes: list[InsurerPolicy], tmp_path: Path
) -> None:
    with pytest.raises(Refusal, match=r"\[disclosure\] the plan has other rules of disclosure"):
        outcome_of(nodes, loose_plan(trial, tmp_path))
