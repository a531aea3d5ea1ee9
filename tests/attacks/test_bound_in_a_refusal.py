"""A coordinator reads each insurer's own number out of refusals, though sums are hidden.

A request may state bounds. An insurer that compares its own number with one, and refuses, has
answered a question of one bit under its own name; halving reads the number.
"""

from __future__ import annotations

import pytest

from lab.errors import PolicyError
from lab.models import trees
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.tree_model import Cuts
from lab.models.tree_rows import Rows
from lab.models.trees import Ask
from lab.sums import Sums
from tests.attacks.setting import bisected, federation_of, insurers

CUTS = (Cuts(feature=Feature(column="age"), edges=(200.0,)),)
RECIPE = {"intercept": 0.0, "unit": 1.0, "rows": 400}
TASK = Task(target="claims")
SIZES = (100, 90, 70, 60)


def refused_by(most: float) -> str:
    """Who refuses the second derivatives of all its rows, each of which is 1, under a bound.

    Every attempt is a run of its own: refusals count for one.
    """
    ask = {"place": {}, "nodes": [0], "features": [0], "most": [[1024.0, most]]}
    parties = insurers(bound=False)
    for party, size in zip(parties, SIZES, strict=True):
        party.train = party.test = party.train.iloc[:size]
    with federation_of(parties) as federation:
        try:
            federation.sum("trees_level", task=TASK, cuts=CUTS, ask=ask, recipe=RECIPE)
        except PolicyError as refusal:
            return str(refusal).partition(":")[0]
    return ""


def test_where_a_bound_is_refused_halving_reads_an_insurers_own_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The unprotected twin: what is beyond its bound is refused instead of cut off and flagged."""
    level = trees.level

    def refusing(rows: Rows, ask: Ask) -> Sums:
        sums = level(rows, ask)
        if sums.total("beyond"):
            raise PolicyError("a sum is beyond its bound")
        return sums

    monkeypatch.setattr(trees, "level", refusing)
    count = bisected(1.0, 512.0, lambda most: refused_by(most) == "insurer 1", 0.5)
    assert int(count) == SIZES[0]


def test_no_bound_makes_an_insurer_refuse() -> None:
    assert {refused_by(most) for most in (1.0, 64.0, 89.5, 99.5, 100.0)} == {""}
