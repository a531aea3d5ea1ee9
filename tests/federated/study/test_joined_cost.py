"""Claim frequency times mean claim amount over joined sides is the product of the joined table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm

from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from lab.errors import ConfigurationError, ContractError
from tests.federated.study.test_joined import BOTH, experiment, persons, written

SEVERITY = {
    "target": "paid",
    "per": "claims",
    "family": "gamma",
    "features": ["age", {"column": "chronic", "base": "no"}],
}


def cost(folder: Path, insurers: int = 1, **tables: dict[str, Any]) -> Experiment:
    tables["model"] = {"severity": SEVERITY} | tables.get("model", {})
    return experiment(written(folder, insurers), **tables)


def of(study: Study, part: str, arm: str = "federated") -> Any:
    return study.arms[arm].models["all"][part]


def check_equal(study: Study) -> None:
    for part in ("frequency", "severity"):
        ours, pooled = (of(study, part, arm).fit.coefficients() for arm in ("federated", "pooled"))
        for name in ("estimate", "standard_error"):
            np.testing.assert_allclose(ours[name], pooled[name], rtol=1e-8)
    for part in study.parts:
        scores = study.table(part).xs("all", level="party")
        for name in ("deviance", "deviance_explained", "balance"):
            assert scores.loc["federated", name] == pytest.approx(
                scores.loc["pooled", name], rel=1e-7
            )


def test_both_parts_are_statsmodels_on_the_joined_table(tmp_path):
    study = perform(cost(tmp_path))
    check_equal(study)
    frame = persons().iloc[:BOTH]
    claims = frame[frame.claims > 0]
    x = np.column_stack([np.ones(len(claims)), claims.age, claims.chronic == "yes"]).astype(float)
    right = sm.GLM(
        claims.paid / claims.claims,
        x,
        family=sm.families.Gamma(sm.families.links.Log()),
        var_weights=claims.claims,
    ).fit(tol=1e-12, tol_criterion="params")
    fit = of(study, "severity").fit
    assert fit.rows == len(claims) and of(study, "frequency").fit.rows == BOTH
    np.testing.assert_allclose(fit.coefficients().estimate, right.params, rtol=1e-8)


def test_the_product_of_a_hybrid_is_judged_as_the_pooled_one(tmp_path):
    tables = {"data": {"test": 0.4}, "arms": {"replicates": 30}, "protection": {"sums": "clear"}}
    study = perform(cost(tmp_path, insurers=2, **tables))
    check_equal(study)
    (line,) = (text for text in study.notices if text.startswith("federated, pure premium"))
    assert "times the actual total (95 % interval" in line
    product, frame = of(study, "pure premium").model, persons()
    one = product.as_one()
    assert one.task == study.experiment.premium_task()
    np.testing.assert_allclose(one.predict(frame), product.predict(frame), rtol=1e-12)
    row = study.differences.set_index(["against", "party"]).loc[("pooled", "all")]
    assert row[["difference", "low", "high"]].abs().max() < 1e-9


def test_parts_that_do_not_stand_on_the_same_claims_are_refused_with_their_number(tmp_path):
    values = cost(tmp_path)
    table = pd.read_csv(tmp_path / "own0.csv")
    at = table.index[table.claims > 0][:7]
    table.loc[at, "paid"] = 0.0
    table.to_csv(tmp_path / "own0.csv", index=False)
    with pytest.raises(ContractError, match=r"'paid' is 0 for claims of 'claims'") as refusal:
        perform(values)
    assert refusal.value.violations[0].startswith("7 of 240 rows")
    with pytest.raises(ConfigurationError, match=r"'any' counts other claims than data\.target"):
        cost(tmp_path, model={"severity": SEVERITY | {"per": "any"}})


def test_a_part_on_another_link_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="takes the log link in both of its parts"):
        cost(tmp_path, model={"family": "gaussian"}, data={"exposure": None})
