"""What a side of a joined pair could read of the other, and what stops it.

Each attack has a twin that works where the guard is not: on gradients and cross products that a side is
shown, and on messages whose sizes follow from its set.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from federated.joined import side
from federated.joined.product import contribution
from federated.joined.sums.factors import RING
from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.sides import in_the_clear
from federated.study.simulation import SimulatedMarket
from lab.errors import LabError, ModelError, PolicyError
from secure_agg import intersection
from secure_agg.errors import LayoutMismatch
from secure_agg.intersection import AlignmentTerms

ROWS, COLUMNS = 32, 40


def written(folder, persons: int, columns: int) -> Experiment:
    """An insurer that knows a target, and a fund that knows many columns of the same persons."""
    rng = np.random.default_rng(7)
    names = [f"c{k}" for k in range(columns)]
    own = pd.DataFrame(
        {
            "id": range(persons),
            "claims": rng.poisson(0.7, persons),
            "age": rng.integers(20, 70, persons),
        }
    )
    fund = pd.DataFrame(rng.normal(size=(persons, columns)).round(2), columns=names)
    own.to_csv(folder / "own.csv", index=False)
    fund.assign(id=range(persons)).to_csv(folder / "fund.csv", index=False)
    return Experiment.model_validate(
        {
            "name": "attack",
            "data": {"target": "claims", "features": ["age", *names], "test": 0.0},
            "joined": [
                {"role": "insurer", "path": str(folder / "own.csv"), "key": "id"},
                {"role": "fund", "path": str(folder / "fund.csv"), "key": "id"},
            ],
            "model": {"kind": "glm"},
            "protection": {"sums": "clear"},
            "arms": {"run": ["federated"], "replicates": 0},
        }
    )


def test_unprotected_a_gradient_of_a_small_batch_is_every_label():
    """The residue attack: with more own columns than rows, z'r has one solution r."""
    rng = np.random.default_rng(1)
    z, labels = rng.normal(size=(ROWS, COLUMNS)), rng.integers(0, 2, ROWS)
    shown = z.T @ (labels - 0.5)  # the gradient of a logistic model at 0, which the fund is shown
    residuals = np.linalg.lstsq(z.T, shown, rcond=None)[0]
    assert ((residuals > 0) == labels).all()


def test_no_fit_has_as_many_columns_as_rows_and_no_side_sees_a_gradient(tmp_path):
    with pytest.raises(ModelError, match=f"{ROWS} training rows cannot carry"):
        perform(written(tmp_path, ROWS, COLUMNS))


def test_unprotected_cross_products_of_few_persons_are_the_other_side_s_columns():
    rng = np.random.default_rng(2)
    own, theirs = rng.normal(size=(8, 12)), rng.integers(0, 5, (8, 3))
    shown = own.T @ theirs  # 12 x 3 numbers about 8 persons
    assert np.allclose(np.linalg.lstsq(own.T, shown, rcond=None)[0], theirs)


def test_a_total_of_fewer_persons_than_the_rules_say_is_not_opened(tmp_path):
    market = SimulatedMarket(written(tmp_path, 8, 3))
    task = market.experiment.tasks()["model"]
    with in_the_clear(market.sides, market.tables.owner(), 1, market.rules) as federation:
        federation.protection._least = market.rules.minimum_count.persons
        with pytest.raises(PolicyError, match="both sides have fewer than 10 rows"):
            federation.sum("totals", task=task, part="train", most=(2.0**20,) * 4)


def test_a_side_s_share_of_a_sum_is_another_every_time(tmp_path, monkeypatch):
    market = SimulatedMarket(written(tmp_path, 60, 3))
    task, shares = market.experiment.tasks()["model"], []
    monkeypatch.setattr(
        side, "contribution", lambda share, ring: shares.append(share) or contribution(share, ring)
    )
    with in_the_clear(market.sides, market.tables.owner(), 1, market.rules) as federation:
        totals = [
            federation.sum("totals", task=task, part="train", most=(2.0**20,) * 4).arrays
            for _ in range(2)
        ]
    assert all(np.array_equal(totals[0][name], totals[1][name]) for name in totals[0])
    assert len({tuple(share) for share in shares}) == 4
    assert min(min(int(v).bit_length() for v in share) for share in shares) > RING.bits - 40


def _terms(cap: int) -> AlignmentTerms:
    return AlignmentTerms(("insurer", "fund"), "hidden", cap, bytes(32))


def sizes(own: int, theirs: int, cap: int) -> list[int]:
    """The sizes of the first messages of both sides."""
    terms = _terms(cap)
    lengths = []
    for name, count in (("insurer", own), ("fund", theirs)):
        _, message = intersection.start(
            terms, name, [f"{name} {k}".encode() for k in range(count)], bytes(32)
        )
        lengths.append(sum(len(part) for part in message.values()))
    return lengths


def test_unprotected_a_set_sent_as_it_is_tells_how_many_it_has():
    assert (
        len(intersection.start(_terms(5), "fund", [b"%d" % k for k in range(5)], bytes(32))[0].own)
        == 5
    )
    with pytest.raises(LayoutMismatch, match="cap"):
        sizes(20, 5, 10)


def test_messages_of_an_alignment_have_one_size_whoever_is_in_the_tables():
    assert sizes(3, 9, 12) == sizes(12, 1, 12)


def test_a_refusal_names_no_row(tmp_path):
    experiment = written(tmp_path, ROWS, COLUMNS)
    with pytest.raises(LabError) as refusal:
        perform(experiment)
    assert "c0" not in str(refusal.value)
