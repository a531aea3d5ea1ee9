"""A coordinator asks the same question twice, once with a word added and without one insurer.

The rule of sets goes by a question's digest. Where a statistic ignores arguments that it does not
know, the second is another question, and the difference of the totals is one insurer's own sum.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import Message

from federated.federation import Federation
from federated.hiding.masks import Masks
from federated.party import statistics
from lab.errors import PeerError, PolicyError
from lab.statistics import Statistic
from lab.sums import Sums
from tests.conftest import split
from tests.federated.hiding.test_protection import TASK, on_a_road
from tests.federated.solvers.test_glm import table

INSURERS = 5


def own_sums(word: dict[str, Any]) -> Sums:
    """The last insurer's sums: of all, less those asked again with a word, as if it were silent."""
    silent: list[int] = []

    def out(message: Message) -> Message | None:
        return None if message.metadata.dst_node_id in silent else message

    def work(federation: Federation) -> Sums:
        arguments = {"task": TASK, "part": "train", "most": (2.0**40,) * 4}
        question = statistics.request("totals", arguments, {}, query="", hiding="masks")
        everybody = federation.total(question)
        silent.append(federation.members[-1].node)
        again = replace(question, arguments={**question.arguments, **word})
        others = federation.total(again)
        arrays = {name: everybody[name] - others[name] for name in everybody.arrays}
        return Sums(arrays, everybody.limits, everybody.rows - others.rows)

    sums: Sums = on_a_road(Masks(), work, parties=INSURERS, out=out)
    return sums


def test_where_words_are_ignored_one_added_shows_an_insurers_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The unprotected twin: a statistic reads what it knows of its arguments, and answers."""

    def lenient(row: Statistic, text: str, arrays: Any) -> Any:
        arguments, names = json.loads(text), row.arguments.model_fields
        return row.arguments.model_validate({k: v for k, v in arguments.items() if k in names})

    monkeypatch.setattr(Statistic, "read", lenient)
    own = split(table("poisson"), INSURERS)[-1]
    sums = own_sums({"please": 1})
    assert sums.rows == len(own)
    assert sums.total("target") == pytest.approx(own["y"].sum())


def test_a_word_that_nobody_knows_is_refused() -> None:
    with pytest.raises(PeerError, match=r"insurer \d: .* there is no argument 'please'"):
        own_sums({"please": 1})


def test_without_it_the_question_is_the_same_and_has_one_set_of_parties() -> None:
    with pytest.raises(PolicyError, match="would show insurer 5's own sum"):
        own_sums({})
