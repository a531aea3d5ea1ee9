"""A coordinator asks one insurer for names of levels over rows of its choosing.

Names are of levels with persons enough. Over rows with a claim they tell, under the insurer's name,
which levels have so many; and an insurer that has last named few of them misses none of the others.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from federated.deployment.node.solver import check_levels
from federated.federation import Federation, agreement, levels_request
from federated.message_kinds import MessageKind
from federated.party.binding import UnboundQuestion
from federated.party.party import Party, Policy, numbered
from federated.study.bound import unlisted_levels
from federated.study.plan import StudyPlan
from lab.models.design import RARE, Feature
from lab.models.glm import Task
from tests.attacks.setting import federation_of, plan_of

TOWN = (Feature(column="town"),)
ROWS, WITH_CLAIMS = Task(target="claims"), Task(target="claims", per="claims")


def insurer() -> Party:
    """Thirty persons of town A, four of them with claims, and twenty of B, all with claims."""
    claims = np.repeat([0.0, 1.0], [26, 24])
    frame = numbered("insurer 1", pd.DataFrame({"town": ["A"] * 30 + ["B"] * 20, "claims": claims}))
    return Party("insurer 1", frame, frame, policy=Policy(announces=("town",)))


def named(federation: Federation, task: Task) -> str:
    """The names of levels that the insurer answers with."""
    request = levels_request(task, TOWN)
    answer = federation.ask(MessageKind.LEVELS, {"insurer 1": request})["insurer 1"]
    return str(answer.config_records["levels"]["names"])


def test_names_of_levels_over_chosen_rows_tell_of_these_rows() -> None:
    """The unprotected twin: the handler alone, without a node before it."""
    with federation_of([insurer()]) as federation:
        assert named(federation, ROWS) == '[["A", "B"]]'
        assert named(federation, WITH_CLAIMS) == f'[["{RARE}", "B"]]'
        federation.agree({"town": (RARE, "B")})  # without A, which the insurer named at first


def plan() -> StudyPlan:
    """The plan of a study of claims by town."""
    other = plan_of()
    columns = {**other.contract.columns, "town": other.contract.columns["region"].model_copy()}
    columns["town"] = columns["town"].model_copy(update={"type": "category"})
    data = other.experiment.data.model_copy(update={"features": ("town",)})
    return other.model_copy(
        update={
            "contract": other.contract.model_copy(update={"columns": columns}),
            "experiment": other.experiment.model_copy(update={"data": data}),
        }
    )


def test_a_node_names_levels_of_the_plans_features_over_the_plans_rows_alone() -> None:
    assert unlisted_levels(plan()) == (ROWS, TOWN)
    check_levels(plan(), levels_request(ROWS, TOWN))
    for content in (
        levels_request(WITH_CLAIMS, TOWN),
        levels_request(Task(target="town"), TOWN),
        levels_request(ROWS, ()),
        levels_request(ROWS, (Feature(column="town", category=True),)),
        agreement({"town": ("A",)}),
    ):
        with pytest.raises(UnboundQuestion, match=r"\[plan\] names of levels are asked of other"):
            check_levels(plan(), content)
