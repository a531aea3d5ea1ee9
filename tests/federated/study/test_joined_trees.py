"""Trees of joined sides are those of the table that nobody has, cut for cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from federated.study.arms import perform
from federated.study.result import Study
from tests.federated.study.test_joined import BOTH, experiment, written

MODEL = {"kind": "trees", "family": "poisson", "trees": 3, "depth": 3, "bins": 8, "min_child_rows": 5}


def trees(folder: Any, insurers: int = 1, **tables: dict[str, Any]) -> dict[str, Any]:
    values = written(folder, insurers)
    values |= {"model": MODEL, "alignment": {"learns": "both"}}
    return {name: {**values.get(name, {}), **tables.get(name, {})} if name in tables else values[name] for name in values | tables}


def check_equal(study: Study) -> None:
    ours, pooled = (study.arms[arm].models["all"]["model"] for arm in ("federated", "pooled"))
    assert ours.json == pooled.json
    assert any(max(tree.feature) >= 0 for tree in ours.model.trees)
    one, other = (study.arms[arm].evaluations["model"]["all"] for arm in ("federated", "pooled"))
    for name, array in one.fit.arrays.items():
        np.testing.assert_allclose(array, other.fit[name], rtol=1e-9)
    assert one.fit.total("rows") == BOTH


def test_the_trees_of_joined_sides_are_the_pooled_ones(tmp_path):
    study = perform(experiment(trees(tmp_path)))
    check_equal(study)
    used = {cut.feature.column for cut in study.arms["federated"].models["all"]["model"].model.cuts}
    assert used >= {"age", "stays"}
