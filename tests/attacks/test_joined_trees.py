"""What the fund could learn of labels while trees grow over its columns, and what an insurer learns of them.

Each attack has a twin that works where the guard is not: on derivatives in the clear, and on the nodes that
rows are at (Takahashi, Liu and Liu, "Eliminating label leakage in tree-based vertical federated
learning", arXiv 2307.10318: ID2Graph).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from federated.joined import product
from federated.joined.sums.told import ToldColumn
from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from lab.models.design import Feature
from lab.models.tree_model import Cuts, binned
from secure_agg import wire

PERSONS = 1000


def tables() -> pd.DataFrame:
    """A label that mostly follows from the insurer's own columns, which the fund knows nothing of."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(PERSONS, 4))
    frame = pd.DataFrame(x.round(3), columns=["a", "b", "stays", "dose"]).assign(id=range(PERSONS))
    eta = 5 * frame.a + 2 * frame.b + 2 * frame.stays
    frame["fraud"] = (rng.random(PERSONS) < 1 / (1 + np.exp(-eta))).astype(int)
    return frame


def written(folder: Path, **model: object) -> Experiment:
    frame = tables()
    for role, columns in (
        ("insurer", ["id", "fraud", "a", "b"]),
        ("fund", ["id", "stays", "dose"]),
    ):
        frame[columns].to_csv(folder / f"{role}.csv", index=False)
    return Experiment.model_validate(
        {
            "name": "attack",
            "data": {"target": "fraud", "features": ["a", "b", "stays", "dose"], "test": 0.0},
            "joined": [
                {"role": role, "path": str(folder / f"{role}.csv"), "key": "id"}
                for role in ("insurer", "fund")
            ],
            "alignment": {"learns": "both"},
            "model": {"kind": "trees", "trees": 5, "depth": 3, "bins": 16} | model,
            "protection": {"key_bits": 2048},
            "arms": {"run": ["federated"], "replicates": 0},
        }
    )


def guessed(frame: pd.DataFrame, groups: np.ndarray) -> float:
    """The share of labels that are right where one guess is made for each group of rows, at best."""
    return float(
        frame.fraud.groupby(groups).transform(lambda y: max(y.mean(), 1 - y.mean())).mean()
    )


def trees_of(study: Study):
    return study.arms["federated"].models["all"]["model"].model


def leaves(model, codes: np.ndarray) -> np.ndarray:
    """(rows, trees) the leaf of each row."""
    nodes = []
    for tree in model.trees:
        node = np.zeros(len(codes), dtype=np.int32)
        tree.descend(codes, node)
        nodes.append(node)
    return np.column_stack(nodes)


def test_unprotected_the_sign_of_a_derivative_is_the_label():
    labels = tables().fraud.to_numpy()
    derivatives = 1 / (1 + np.exp(0.0)) - labels  # of a logistic loss, shown to the fund
    assert ((derivatives < 0) == (labels > 0)).all()


def test_what_the_fund_hears_of_derivatives_goes_with_no_label(tmp_path, monkeypatch):
    heard: list[bytes] = []
    masked = product.triples.masked

    def listening(terms, seed, side, matrix):
        message = masked(terms, seed, side, matrix)
        if side == "left" and terms.query.endswith("/0") and terms.left == 2:
            heard.append(message)
        return message

    monkeypatch.setattr(product.triples, "masked", listening)
    perform(written(tmp_path, trees=2))
    *_, data = wire.split(product.triples.MASKED, heard[0], 3)
    numbers = np.frombuffer(data, dtype="<u8").reshape(PERSONS, 2)
    high = (numbers[:, 0] >> np.uint64(63)).astype(int)
    assert (
        0.4 < (high == tables().fraud).mean() < 0.6
    )  # of 1,000 fair bits, six standard deviations


def test_unprotected_nodes_of_rows_tell_labels_apart(tmp_path):
    """ID2Graph: rows that are often at one leaf have one label."""
    frame, model = tables(), trees_of(perform(written(tmp_path)))
    at = leaves(model, binned(frame, model.cuts))
    shown = guessed(frame, at[:, 0])
    assert shown > 0.8
    assert guessed(frame, np.zeros(PERSONS)) < 0.6


def test_what_the_fund_knows_of_nodes_by_its_own_columns_tells_little(tmp_path):
    """It knows cuts on its own columns, and follows its rows no further than the first other cut."""
    frame, model = tables(), trees_of(perform(written(tmp_path)))
    at = leaves(model, binned(frame, model.cuts))
    theirs = {j for j, cut in enumerate(model.cuts) if cut.feature.column in ("stays", "dose")}
    known = np.zeros(PERSONS, dtype=np.int32)
    tree, codes = model.trees[0], binned(frame, model.cuts)
    for row in range(PERSONS):
        node = 0
        while tree.feature[node] in theirs:
            left = tree.goes_left[node, codes[row, tree.feature[node]]]
            node = tree.left[node] + (0 if left else 1)
        known[row] = node
    assert guessed(frame, at[:, 0]) - guessed(frame, known) > 0.2


@pytest.mark.parametrize(("own_trees", "told"), [(5, False), (0, True)])
def test_trees_of_own_columns_tell_the_insurer_nothing(tmp_path, own_trees, told):
    study = perform(written(tmp_path, own_trees=own_trees))
    lines = [line for line in study.receipts["fund"] if line.statistic == "trees_cuts"]
    assert bool(lines) == told


def test_an_insurer_knows_of_a_column_the_cuts_that_were_told_and_no_more():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"stays": rng.normal(size=PERSONS)})
    cut = Cuts(feature=Feature(column="stays"), edges=tuple(np.linspace(-2, 2, 31)))
    codes = binned(frame, (cut,))[:, 0]
    column = ToldColumn("told 0", cut, PERSONS)
    for last in (7, 15, 23):
        goes_left = np.arange(cut.bins) <= last
        column.hear(goes_left, goes_left[codes])
        assert (goes_left[column.codes] == goes_left[codes]).all()
    assert len(np.unique(column.codes)) == 4 < len(np.unique(codes))
