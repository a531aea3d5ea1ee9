"""Fraud detectors of an experiment: scored from sums, arm by arm, party by party."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from federated.run import run
from federated.study.result import Study

EXPERIMENT = """name = "detector"
[data]
path = "{path}"
target = "proved"
test = 0.4
features = ["amount", "visits"]
[parties]
split = "column"
column = "region"
[model]
kind = "trees"
trees = 8
depth = 3
min_child_rows = 5
[detection]
truth = "fraud"
typology = "kind"
amount = "amount"
groups = ["region"]
budget = 0.05
investigation_cost = 20
[protection]
key_bits = 2048
[arms]
run = ["alone", "without", "federated", "pooled"]
replicates = 10
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Four regions; in the last one nothing was ever proved, in all of them half of the frauds."""
    rng, rows = np.random.default_rng(4), 3000
    frame = pd.DataFrame(
        {
            "amount": np.round(rng.gamma(2.0, 500.0, rows), 2),
            "visits": rng.integers(0, 12, rows),
            "region": rng.choice(["east", "north", "south", "west"], rows),
        }
    )
    odds = 1 / (1 + np.exp(5 - 0.5 * frame["visits"] - frame["amount"] / 2000))
    frame["fraud"] = (rng.random(rows) < odds).astype(int)
    frame["proved"] = frame["fraud"] * (rng.random(rows) < 0.5) * (frame["region"] != "west")
    frame["kind"] = np.where(frame["fraud"] == 0, "none", rng.choice(["ring", "phantom"], rows))
    folder = tmp_path_factory.mktemp("detector")
    frame.to_csv(folder / "claims.csv", index=False)
    (folder / "detector.toml").write_text(EXPERIMENT.format(path=folder / "claims.csv"))
    return run(folder / "detector.toml", runs=folder / "runs", track=False)


def test_federated_scores_are_the_pooled_ones(study: Study) -> None:
    scores = study.scores.drop(columns=["deviance", "deviance_explained", "balance", "gini"])
    pd.testing.assert_frame_equal(scores.loc["federated"], scores.loc["pooled"], rtol=1e-9)
    gap = study.differences.query("against == 'pooled'")
    assert (gap[["difference", "low", "high"]] == 0).all(axis=None)


def test_scores_are_those_of_the_rows(study: Study) -> None:
    model = study.arms["federated"].models["all"]["model"].model
    for name, party in {p.name: p for p in study.market.parties}.items():
        truth, score = party.test["fraud"], model.predict(party.test)
        told = study.scores.loc["federated", name]
        assert told["roc_auc"] == pytest.approx(roc_auc_score(truth, score), abs=0.01)
        assert told["average_precision"] == pytest.approx(
            average_precision_score(truth, score), abs=0.02
        )
        assert told["frauds"] == truth.sum()
    whole = study.scores.loc["federated", "all"]
    assert whole["investigated"] == round(0.05 * whole["rows"])
    assert whole["net"] == pytest.approx(whole["saved"] - 20 * whole["investigated"])
    assert whole["best_net"] >= 0


def test_party_that_proved_nothing_has_no_detector_of_its_own_and_gains_one(study: Study) -> None:
    assert "region west" in study.arms["alone"].failures
    joined = study.scores.loc["federated", "region west"]
    assert joined["average_precision"] > 1.3 * joined["fraud_share"]


def test_who_stays_away_is_scored_on_own_rows_and_on_the_others(study: Study) -> None:
    joining = study.joining.set_index("party")
    assert set(joining.index) == {party.name for party in study.market.parties}
    for name, row in joining.iterrows():
        own = study.scores["average_precision"]
        assert row["own_rows_federated"] == own["federated", name]
        assert row["own_rows_without"] == own["without", name]
    away = study.arms["without"].models["region east"]["model"].model
    others = pd.concat([p.test for p in study.market.parties if p.name != "region east"])
    expected = average_precision_score(others["fraud"], away.predict(others))
    assert joining.loc["region east", "others_rows_without"] == pytest.approx(expected, abs=0.02)


def test_report_shows_money_kinds_and_groups(study: Study) -> None:
    page = (Path(study.folder) / "report.html").read_text(encoding="utf-8")
    for words in (
        "What a claims department gets", "If a party stays away", "By kind of fraud",
        "Who is flagged", "Precision and recall", "region west", "phantom",
    ):  # fmt: skip
        assert words in page
