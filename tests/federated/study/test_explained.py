"""What a model makes of its features, from sums: the same as of all rows in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from federated.study.run_folder import summary
from lab.errors import ConfigurationError
from lab.models.design import Encoding, Feature, Number
from lab.models.glm import GLM, Task
from lab.report.page import render
from lab.scores.explanation import partial_sums, values_of


def written(folder: Path, n: int = 900) -> Path:
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "age": rng.uniform(20, 80, n).round(1),
            "smoker": rng.integers(0, 2, n),
            "region": rng.choice(["east", "north", "west"], n),
            "noise": rng.normal(0, 1, n).round(3),
            "years": rng.uniform(0.5, 1, n).round(2),
        }
    )
    rate = np.exp(0.3 + 0.03 * (frame.age - 50) + 0.5 * frame.smoker + (frame.region == "north"))
    frame["claims"] = rng.poisson(frame.years * rate)
    frame.to_csv(folder / "claims.csv", index=False)
    return folder / "claims.csv"


def study(path: Path, model: dict[str, Any], **explain: Any) -> Study:
    experiment = Experiment.model_validate(
        {
            "name": "explained",
            "data": {
                "path": str(path),
                "target": "claims",
                "exposure": "years",
                "features": ["age", "smoker", "region", "noise"],
                "test": 0.3,
            },
            "parties": {"split": "uniform", "count": 3},
            "model": model,
            "explain": explain,
            "protection": {"sums": "clear"},
            "arms": {"run": ["federated"], "replicates": 60},
        }
    )
    return perform(experiment)


MODELS = [
    {"kind": "glm"},
    {"kind": "trees", "family": "poisson", "trees": 12, "bins": 16},
    {"kind": "network", "rounds": 2},
]


@pytest.mark.parametrize("model", MODELS, ids=[m["kind"] for m in MODELS])
def test_partial_dependence_is_that_of_all_rows_in_one_place(
    tmp_path: Path, model: dict[str, Any]
) -> None:
    made = study(written(tmp_path), model, points=5)
    fitted = made.arms["federated"].models["all"]["model"].model
    rows = pd.concat([party.test for party in made.market.parties])
    explained = made.arms["federated"].evaluations["model"]["all"].explained
    assert set(explained) == {"age", "smoker", "region", "noise"}
    assert explained["smoker"].values == (0.0, 1.0) or model["kind"] != "glm"
    levels = explained["region"].values
    assert sorted(levels) == ["east", "north", "west"]
    assert levels[0] == (
        "north" if model["kind"] == "glm" else "east"
    )  # of most rows: a GLM's base
    for column, each in explained.items():
        for value, rate in zip(each.values, each.expected, strict=True):
            whole = fitted.predict(rows.assign(**{column: value}))
            assert rate == pytest.approx(np.average(whole, weights=rows.years), rel=1e-6)


def test_what_matters_is_told_from_noise_by_intervals(tmp_path: Path) -> None:
    made = study(written(tmp_path), {"kind": "glm"})
    evaluation = made.arms["federated"].evaluations["model"]["all"]
    lost = {c: e.importance(evaluation.fit) for c, e in evaluation.explained.items()}
    assert all(lost[c][1] > 0.01 for c in ("age", "region"))
    assert lost["noise"][1] < 0.005 and abs(lost["noise"][0]) < 0.01
    page = render(summary(made))
    assert "What is lost without a feature" in page and "What a feature makes of the rate" in page


def test_an_ordinal_category_is_set_to_its_levels() -> None:
    band = Number(
        feature=Feature(column="band", ordinal=True), mean=2.0, scale=1.0, levels=("a", "b", "c")
    )
    model = GLM(task=Task(target="y"), encoding=Encoding(numbers=(band,)), beta=(0.0, 1.0))
    values = values_of(model, "band", 12)
    frame = pd.DataFrame({"band": ["a", "c"]})
    rates = [partial_sums(model, frame, np.ones(2), "band", (v,)).total("expected") for v in values]
    assert values == ("a", "b", "c")
    np.testing.assert_allclose(rates, 2 * np.exp([-1.0, 0.0, 1.0]))


def test_a_feature_that_is_none_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"explain\.features: 'agee' is no feature"):
        study(written(tmp_path), {"kind": "glm"}, features=["agee"])


def test_a_column_that_a_model_does_not_read_has_no_values(tmp_path: Path) -> None:
    made = study(written(tmp_path), {"kind": "glm"}, features=["age"])
    fitted = made.arms["federated"].models["all"]["model"].model
    assert values_of(fitted, "years", 5) == ()
    assert list(made.arms["federated"].evaluations["model"]["all"].explained) == ["age"]
