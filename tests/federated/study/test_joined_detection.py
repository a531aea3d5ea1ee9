"""What the fund's columns find and save, by party and by kind of fraud, and how the report says it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from federated.study.arms import perform
from federated.study.result import Study
from federated.study.run_folder import summary
from lab.report import tables_detection
from lab.report.page import render
from tests.federated.study.test_joined_trees import trees


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two insurers joined to a fund; who claimed is the fraud, of kinds that the fund sees or not."""
    folder = tmp_path_factory.mktemp("sides")
    values = trees(
        folder,
        insurers=2,
        data={"target": "any", "exposure": None, "test": 0.5},
        model={"family": "binomial"},
        protection={"sums": "clear"},
        detection={"typology": "kind", "amount": "paid", "budget": 0.2, "investigation_cost": 50},
        arms={"run": ["insurer", "fund", "federated"], "replicates": 40},
    )
    for table in folder.glob("own*.csv"):
        frame = pd.read_csv(table)
        frame["kind"] = np.where(
            frame["any"] == 0, "none", np.where(frame["age"] > 50, "old", "young")
        )
        frame.to_csv(table, index=False)
    return perform(values)


def test_what_a_side_s_columns_are_worth_is_the_difference_of_both_nets(study: Study) -> None:
    worth = study.worth.set_index(["against", "party", "measure"])
    nets = study.scores["net"]
    for against in ("insurer", "fund"):
        for party in ("all", "insurer 1", "insurer 2"):
            line = worth.loc[(against, party, "net")].squeeze()
            apart = nets[("federated", party)] - nets[(against, party)]
            assert line["difference"] == pytest.approx(apart, abs=1e-6)
            assert line["low"] <= line["difference"] <= line["high"]


def test_each_kind_of_fraud_is_compared_and_honest_persons_are_none(study: Study) -> None:
    worth = study.worth.dropna(subset="kind")
    assert set(worth["kind"]) == {"old", "young"} and set(worth["measure"]) == {"recall", "saved"}
    assert set(worth["party"]) == {"all"}


def test_the_report_says_what_the_fund_s_columns_are_worth(study: Study, tmp_path: Path) -> None:
    result = summary(study)
    money = tables_detection.worth_by_party(result)
    assert money is not None and "the fund's columns (95 % interval)" in money.columns
    assert [row[0] for row in money.rows] == ["whole market", "insurer 1", "insurer 2"]
    kinds = tables_detection.worth_by_kind(result)
    assert kinds is not None and [row[0] for row in kinds.rows] == ["old", "young"]
    assert set(result["data"]["fund_columns"]) == {"stays", "chronic"}
    page = render(result)
    assert "columns of the fund" in page and "test persons with" in page
    assert "test claims" not in page and 'data-column="the fund&#39;s columns, saved"' in page
