"""A coordinator that knows a policy number reads that person's record.

Trees keep a share of persons out to judge by. Where the draw is a public hash, whoever knows her
number knows at what share she changes sides: two requests whose shares lie around it differ by her.
"""

from __future__ import annotations

import hmac
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.federation import Federation
from lab.errors import PeerError, PolicyError
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.tree_model import Cuts
from lab.sums import Sums
from tests.attacks.setting import federation_of, insurers

CUTS = (Cuts(feature=Feature(column="age"), edges=(200.0,)),)
RECIPE = {"intercept": 0.0, "unit": 1.0, "rows": 400}
PUBLIC = b"in every copy of the program"


def grown_from(federation: Federation, share: float, **more: Any) -> Sums:
    """Derivatives of all rows that are grown from, at a prediction of one claim for everybody."""
    place = {"place": {}, "nodes": [0], "features": [0], "most": [[1024.0, 1024.0]]}
    recipe = {**RECIPE, "validation_share": share, **more}
    task = Task(target="claims")
    return federation.sum("trees_level", task=task, cuts=CUTS, ask=place, recipe=recipe)


def claims_of(federation: Federation, number: int) -> tuple[float, float]:
    """How many rows two requests differ by, and their claims; number: of her policy."""
    key = hmac.digest(PUBLIC, b"held out", "sha256").hex()[:16]
    number_text = pd.Series([number]).astype("str")
    place = pd.util.hash_pandas_object(number_text, index=False, hash_key=key)[0] / 2.0**64
    around = [grown_from(federation, place + side * 1e-9) for side in (-1, 1)]
    with_her, without_her = around
    rows = with_her["size"][0] - without_her["size"][0]
    gradient = with_her["gradient 0"].sum() - without_her["gradient 0"].sum()
    return rows, 1 - gradient  # the derivative of a row: prediction less claims


def test_where_the_draw_is_public_a_policy_number_is_enough_to_read_a_record() -> None:
    """The unprotected twin: every insurer draws by a hash that anybody can repeat."""
    parties = insurers(bound=False, rows_secret=PUBLIC)
    with federation_of(parties) as federation:
        for party in parties:
            number, row = next(party.train.iterrows())
            assert claims_of(federation, int(str(number))) == (1, row["claims"])


def test_insurers_draw_by_a_secret_and_the_two_requests_differ_by_nobody() -> None:
    parties = insurers(bound=False)
    with federation_of(parties) as federation:
        numbers = np.concatenate([party.train.index[:3] for party in parties])
        assert {claims_of(federation, int(number))[0] for number in numbers} == {0}


def test_a_bound_insurer_answers_neither_of_the_two_requests() -> None:
    with (
        federation_of(insurers(bound=True, kind="trees", rows_secret=PUBLIC)) as federation,
        pytest.raises(PolicyError, match=r"\[plan\] .* not signed"),
    ):
        claims_of(federation, 1)


def test_no_request_can_say_by_what_seed_rows_are_drawn() -> None:
    with (
        federation_of(insurers(bound=False)) as federation,
        pytest.raises(PeerError, match=r"no argument 'recipe.seed'"),
    ):
        grown_from(federation, 0.5, seed=1234)
