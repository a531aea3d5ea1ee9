"""One question has one form: what a statistic does not know is refused, at both ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.messages import Request
from federated.party import statistics
from federated.party.party import Party
from lab.errors import PeerError
from lab.models.files import KINDS, statistics_of
from lab.models.glm import Task

TASK = Task(target="y")


def party() -> Party:
    rows = pd.DataFrame({"y": np.arange(20.0), "x": 1.0})
    return Party("insurer 1", rows, rows)


def totals(**arguments: Any) -> Request:
    values = {"task": TASK, "part": "train", "most": (2.0**40,) * 4, **arguments}
    return statistics.request("totals", values, {}, query="q-1", hiding="clear")


def test_the_statistic_is_taken_where_its_arguments_are_its_own() -> None:
    assert party().take(totals()).rows == 20


def test_the_asker_cannot_write_an_argument_that_the_statistic_does_not_know() -> None:
    with pytest.raises(PeerError, match="totals: there is no argument 'please'"):
        totals(please=True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"please": True}, "there is no argument 'please'"),
        ({"task": {"target": "y"}}, "not in canonical form"),
        ({"task": TASK.model_dump(mode="json") | {"please": 1}}, "no argument 'task.please'"),
        ({"part": "all"}, "argument 'part' is invalid"),
    ],
)
def test_a_party_refuses_the_same_question_in_another_form(
    change: dict[str, Any], says: str
) -> None:
    request = totals()
    altered = replace(request, arguments={**request.arguments, **change})
    assert altered.question != request.question, "else there would be nothing to refuse"
    with pytest.raises(PeerError, match=says):
        party().take(altered)


def test_a_party_refuses_arrays_that_the_statistic_does_not_take() -> None:
    with pytest.raises(PeerError, match="exactly these arrays: none"):
        party().take(replace(totals(), arrays={"please": np.zeros(1)}))


def test_a_refusal_shows_no_value_that_came() -> None:
    with pytest.raises(PeerError) as refused:
        totals(part="secret value")
    assert "secret" not in str(refused.value)


def test_rows_of_a_kind_are_named_after_it() -> None:
    for kind in KINDS:
        for row in statistics_of(kind):
            assert row.name.startswith(f"{kind}_")
            assert row.analysis == kind
