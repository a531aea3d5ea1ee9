"""Trees of joined sides are those of the table that nobody has, cut for cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from lab.errors import ConfigurationError
from lab.models.tree_model import LEAF
from tests.federated.study.test_joined import BOTH, experiment, written

FUND = ("stays", "chronic")
MODEL: dict[str, Any] = {
    "kind": "trees",
    "family": "poisson",
    "trees": 3,
    "depth": 3,
    "bins": 8,
    "min_child_rows": 5,
    "learning_rate": 0.3,
    "validation_share": 0.0,
}


def trees(folder: Path, insurers: int = 1, **tables: dict[str, Any]) -> Experiment:
    values = written(folder, insurers)
    values |= {"model": MODEL, "alignment": {"learns": "both"}}
    return experiment(values, **{"arms": {}, **tables})


def model_of(study: Study, arm: str) -> Any:
    return study.arms[arm].models["all"]["model"]


def check_equal(study: Study) -> None:
    """The same trees, which cut columns of the fund, and the same scores."""
    ours, pooled = model_of(study, "federated"), model_of(study, "pooled")
    assert ours.json == pooled.json
    columns = [cut.feature.column for cut in ours.model.cuts]
    used = {columns[f] for tree in ours.model.trees for f in tree.feature if f != LEAF}
    assert used & set(FUND)
    one, other = (study.arms[arm].evaluations["model"]["all"] for arm in ("federated", "pooled"))
    for name, array in one.fit.arrays.items():
        np.testing.assert_allclose(array, other.fit[name], rtol=1e-9, err_msg=name)
    assert one.scores.gini == pytest.approx(other.scores.gini, abs=1e-8)
    for column, (names, sums) in one.levels.items():
        assert names == other.levels[column][0]
        for name, array in sums.arrays.items():
            np.testing.assert_allclose(array, other.levels[column][1][name], rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({}, {}),
        ({"family": "gaussian"}, {"exposure": None, "target": "paid"}),
        pytest.param(
            {"family": "tweedie", "power": 1.5}, {"target": "paid"}, marks=pytest.mark.slow
        ),
        ({"family": "binomial"}, {"target": "any", "exposure": None, "test": 0.3}),
        pytest.param(
            {"family": "gamma"}, {"target": "size", "exposure": None}, marks=pytest.mark.slow
        ),
        ({"validation_share": 0.3, "patience": 1, "monotone": {"stays": 1}}, {}),
        ({"features": 0.5, "min_persons": 40}, {"test": 0.2}),
    ],
)
def test_the_trees_of_joined_sides_are_the_pooled_ones(tmp_path, model, data):
    check_equal(perform(trees(tmp_path, model=model, data=data)))


@pytest.mark.parametrize(("insurers", "learns"), [(3, "both"), (2, "insurer")])
def test_the_trees_of_a_hybrid_are_the_pooled_ones(tmp_path, insurers, learns):
    check_equal(
        perform(trees(tmp_path, insurers, data={"test": 0.2}, alignment={"learns": learns}))
    )


def test_products_by_paillier_give_the_same_trees(tmp_path):
    check_equal(
        perform(trees(tmp_path, protection={"product": "paillier"}, model={"trees": 1, "depth": 2}))
    )


def test_missing_values_have_a_bin_at_either_side(tmp_path):
    values = trees(tmp_path, data={"missing": "keep"})
    for name, column in (("own0", "age"), ("fund", "stays")):
        table = pd.read_csv(tmp_path / f"{name}.csv")
        table.loc[::5, column] = np.nan
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    check_equal(perform(values))


def test_the_first_trees_can_keep_to_the_insurers_own_columns(tmp_path):
    study = perform(trees(tmp_path, model={"own_trees": 2}))
    check_equal(study)
    model = model_of(study, "federated").model
    columns = [cut.feature.column for cut in model.cuts]
    used = [{columns[f] for f in tree.feature if f != LEAF} for tree in model.trees]
    assert not (used[0] | used[1]) & set(FUND) and used[2] & set(FUND)


def test_what_cuts_told_is_in_the_funds_receipt_and_printed(tmp_path):
    study = perform(trees(tmp_path))
    receipt = study.receipt.set_index(["party", "statistic"])
    line = receipt.loc[("fund", "trees_cuts")]
    model = model_of(study, "federated").model
    at_fund = [cut.feature.column in FUND for cut in model.cuts]
    chosen = {
        (feature, bins)
        for tree in model.trees
        for feature, bins in zip(tree.feature, tree.bins, strict=True)
        if feature != LEAF and at_fund[feature]
    }
    assert line["rows"] == BOTH and line["arrays"] >= len(chosen)
    assert line["values"] == line["arrays"] * BOTH
    (text,) = (text for text in study.notices if "cuts" in text)
    assert (
        f"{line['arrays']} cuts on the fund's columns" in text
        and f"{line['values']:,} bits" in text
    )


def test_a_plan_that_refuses_cuts_takes_none_of_the_funds_columns(tmp_path):
    refused = {"cuts": "refused"}
    with pytest.raises(ConfigurationError, match=r"protection\.cuts"):
        perform(trees(tmp_path, protection=refused))
    own = {"features": ["age", "region"]}
    study = perform(trees(tmp_path, protection=refused, data=own))
    assert model_of(study, "federated").json == model_of(study, "pooled").json


def test_a_detector_of_joined_sides_is_judged_as_the_pooled_one(tmp_path):
    data = {"target": "any", "exposure": None, "test": 0.4}
    tables = {"data": data, "model": {"family": "binomial"}, "arms": {"replicates": 20}}
    study = perform(trees(tmp_path, detection={"budget": 0.2, "groups": ["region"]}, **tables))
    check_equal(study)
    one, other = (study.scores.loc[(arm, "all")] for arm in ("federated", "pooled"))
    for name in ("average_precision", "recall"):
        assert one[name] == pytest.approx(other[name], rel=1e-9)
    with pytest.raises(ConfigurationError, match=r"detection\.groups"):
        perform(trees(tmp_path, detection={"groups": ["chronic"]}, **tables))


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"alignment": {"learns": "hidden"}}, "need 'insurer' or 'both', got 'hidden'"),
        ({"alignment": {"learns": "fund"}}, "need 'insurer' or 'both', got 'fund'"),
        ({"data": {"per": "claims", "target": "paid"}}, "data.per"),
        ({"model": {"own_trees": 4}}, "model.own_trees"),
    ],
)
def test_what_trees_of_joined_sides_can_not_do_is_refused(tmp_path, tables, text):
    with pytest.raises(ConfigurationError, match=text):
        trees(tmp_path, **tables)
