"""What a party sends in the clear is looked at before it is added, and whoever is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from federated.hiding.protocol import Clear
from federated.messages import Reply, Request
from lab.errors import PeerError
from lab.sums import COUNT, Sums


@dataclass(frozen=True)
class Answers:
    """Three parties that answer what they are given."""

    given: dict[str, RecordDict]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.given)

    def ask(self, action: str, messages: Any, *, patient: bool = False) -> dict[str, RecordDict]:
        return self.given


def reply(party: str) -> Reply:
    sums = Sums({"claims": np.array([1.0, 2.0])}, {"claims": COUNT}, 10)
    return Reply.of(party, sums, None)


def total(wrong: Callable[[Reply], Reply]) -> Sums:
    given = {name: reply(name).to_record() for name in ("one", "three")}
    given = {"one": given["one"], "two": wrong(reply("two")).to_record(), "three": given["three"]}
    request = Request("q", "totals", {}, {}, "clear", tuple(given))
    return Clear().total(Answers(given), request)


def arrays(**named: list[float]) -> Callable[[Reply], Reply]:
    """The reply with other arrays, under a form that says what they are."""
    clear = {name: np.array(values) for name, values in named.items()}
    form = {name: (array.shape, COUNT) for name, array in clear.items()}
    return lambda made: replace(made, clear=clear, form=form)


@pytest.mark.parametrize(
    "wrong",
    [
        arrays(claims=[1.0, float("nan")]),
        arrays(claims=[1.0, float("inf")]),
        arrays(claims=[1.0, 2.0**41]),
        arrays(claims=[1.0, 2.0, 3.0]),
        arrays(claim=[1.0, 2.0]),
        arrays(claims=[1.0, 2.0], more=[1.0]),
        lambda made: replace(made, rows=2**50),
        lambda made: replace(made, rows=-1),
        lambda made: replace(made, party="three"),
    ],
    ids=[
        "nan",
        "inf",
        "beyond",
        "shape",
        "name",
        "more",
        "many rows",
        "rows below 0",
        "other name",
    ],
)
def test_a_wrong_contribution_is_refused_and_its_party_is_named(
    wrong: Callable[[Reply], Reply],
) -> None:
    with pytest.raises(PeerError, match=r"two|three") as refused:
        total(wrong)
    assert refused.value.culprits == ("two",)


def test_right_contributions_are_added() -> None:
    found = total(lambda made: made)
    assert found["claims"].tolist() == [3.0, 6.0] and found.rows == 30
