"""What a model makes of its features, from sums: the same as of all rows in one place."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from federated.study.run_folder import summary
from federated.study.scoring import Evaluation
from lab.errors import ConfigurationError, PeerError
from lab.models.design import Encoding, Feature, Number
from lab.models.glm import GLM, Task
from lab.report.page import render
from lab.scores.accuracy import Scored
from lab.scores.explanation import partial_sums, places_of, values_of
from lab.scores.interaction import excess_sums, functions_of, grid_sums, share_of


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


CLEAR = {"sums": "clear"}


def study(path: Path, model: dict[str, Any], hiding: Any = CLEAR, **explain: Any) -> Study:
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
            "protection": hiding,
            "arms": {"run": ["federated"], "replicates": 60},
        }
    )
    return perform(experiment)


MODELS = [
    {"kind": "glm"},
    {"kind": "trees", "family": "poisson", "trees": 12, "bins": 16},
    {"kind": "network", "rounds": 2},
]


@pytest.fixture(scope="module", params=MODELS, ids=[m["kind"] for m in MODELS])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Study:
    path = written(tmp_path_factory.mktemp("explained"))
    pairs = [["age", "region"], ["smoker", "noise"]]
    return study(path, request.param, points=5, local=True, pairs=pairs)


def parts(made: Study) -> tuple[Any, pd.DataFrame, Evaluation]:
    """The federated model, all test rows in one place, and what was opened of them."""
    arm = made.arms["federated"]
    rows = pd.concat([party.test for party in made.market.parties], ignore_index=True)
    return arm.models["all"]["model"].model, rows, arm.evaluations["model"]["all"]


def test_partial_dependence_is_that_of_all_rows_in_one_place(made: Study) -> None:
    fitted, rows, evaluation = parts(made)
    explained = evaluation.explained
    assert set(explained) == {"age", "smoker", "region", "noise"}
    assert explained["smoker"].values == (0.0, 1.0) or fitted.kind != "glm"
    assert explained["region"].values == ("east", "north", "west")
    for column, each in explained.items():
        for value, rate in zip(each.values, each.expected, strict=True):
            whole = fitted.predict(rows.assign(**{column: value}))
            assert rate == pytest.approx(np.average(whole, weights=rows.years), rel=1e-6)


def test_local_effects_are_those_of_all_rows_in_one_place(made: Study) -> None:
    fitted, rows, evaluation = parts(made)
    assert evaluation.explained["region"].local is None  # its levels have no order
    for column in ("age", "smoker", "noise"):
        local = evaluation.explained[column].local
        assert local is not None and set(local.edges) <= set(evaluation.explained[column].values)
        steps, sizes = [], []
        for low, high in itertools.pairwise(local.edges):
            first, last = low == local.edges[0], high == local.edges[-1]
            here = rows[((rows[column] > low) | first) & ((rows[column] <= high) | last)]
            change = fitted.predict(here.assign(**{column: high}))
            change = change - fitted.predict(here.assign(**{column: low}))
            steps.append(np.average(change, weights=here.years))
            sizes.append(here.years.sum())
            assert len(here) >= 10
        curve = np.cumsum([0, *steps])
        curve -= np.average((curve[1:] + curve[:-1]) / 2, weights=sizes)
        np.testing.assert_allclose(local.accumulated, curve, rtol=1e-6, atol=1e-7)


def test_interactions_are_those_of_all_rows_in_one_place(made: Study) -> None:
    fitted, rows, evaluation = parts(made)
    assert [pair.columns for pair in evaluation.pairs] == [("age", "region"), ("smoker", "noise")]
    for pair in evaluation.pairs:
        values = [evaluation.explained[column].values for column in pair.columns]
        at = [on_grid(rows[c], v) for c, v in zip(pair.columns, values, strict=True)]

        def mean(values: dict[str, Any]) -> float:
            return float(np.average(fitted.predict(rows.assign(**values)), weights=rows.years))

        grid = list(itertools.product(*values))
        joint = {cell: mean(dict(zip(pair.columns, cell, strict=True))) for cell in grid}
        alone = [
            {value: mean({column: value}) for value in own}
            for column, own in zip(pair.columns, values, strict=True)
        ]
        whole = np.array([joint[cell] for cell in zip(*at, strict=True)])
        both = np.array([alone[0][a] + alone[1][b] for a, b in zip(*at, strict=True)])
        spread = np.cov(np.array([whole - both, whole]), aweights=rows.years, ddof=0)
        assert pair.share == pytest.approx(spread[0, 0] / spread[1, 1], rel=1e-5, abs=1e-9)
        assert pair.low <= pair.share * 1.1 + 1e-6 and pair.high >= pair.share * 0.9


def on_grid(column: pd.Series, values: tuple[Any, ...]) -> list[Any]:
    """The least value that is not below a row's own, or the last; a level is its own."""
    if isinstance(values[0], str):
        return column.astype(str).tolist()
    return [next((v for v in values if v >= own), values[-1]) for own in column]


def test_an_additive_model_has_no_interaction() -> None:
    rng = np.random.default_rng(3)
    rows = pd.DataFrame({"a": rng.normal(0, 1, 80), "b": rng.normal(0, 1, 80)})
    terms = tuple(Number(feature=Feature(column=c), mean=0.0, scale=1.0) for c in "ab")
    task = Task(target="y", family="gaussian")
    model = GLM(task=task, encoding=Encoding(numbers=terms), beta=(0.5, 1.0, -2.0))
    ones = np.ones(80)
    scored = Scored(ones, ones, ones, ones, np.arange(80.0))
    grid = ((-1.0, 0.0, 1.0), (-1.0, 1.0))
    sums = grid_sums(model, rows, scored, ("a", "b"), grid, replicates=20, seed=[1])
    joint, excess = functions_of(grid, sums)
    at = (places_of(rows, "a", grid[0]), places_of(rows, "b", grid[1]))
    found = share_of(excess_sums(scored, at, joint, excess, replicates=20, seed=[1]))
    np.testing.assert_allclose(found, 0, atol=1e-12)
    with pytest.raises(PeerError, match="one layer for each resample"):
        excess_sums(scored, at, joint, excess, replicates=3, seed=[1])


def test_rows_without_a_value_stand_nowhere() -> None:
    rows = pd.DataFrame({"age": [1.0, np.nan, 2.5, 9.0], "region": ["a", "b", "q", None]})
    assert places_of(rows, "age", (1.0, 2.0, 3.0)).tolist() == [0, -1, 2, 2]
    assert places_of(rows, "region", ("a", "b")).tolist() == [0, 1, -1, -1]


def test_what_matters_is_told_from_noise_by_intervals(tmp_path: Path) -> None:
    made = study(written(tmp_path), {"kind": "glm"}, pairs=3)
    evaluation = made.arms["federated"].evaluations["model"]["all"]
    lost = {c: e.importance(evaluation.fit) for c, e in evaluation.explained.items()}
    assert all(lost[c][1] > 0.01 for c in ("age", "region"))
    assert lost["noise"][1] < 0.005 and abs(lost["noise"][0]) < 0.01
    best = sorted(lost, key=lambda column: -lost[column][0])[:3]
    assert [p.columns for p in evaluation.pairs] == list(itertools.combinations(best, 2))
    page = render(summary(made))
    assert "Features that go together" in page
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
    with pytest.raises(ConfigurationError, match=r"explain\.pairs: 'agee' is no feature"):
        study(written(tmp_path), {"kind": "glm"}, pairs=[["age", "agee"]])


@pytest.mark.parametrize("pairs", [1, 9, [["age", "age"]]])
def test_pairs_that_are_none_are_refused(tmp_path: Path, pairs: Any) -> None:
    with pytest.raises(ValueError, match="pairs: "):
        study(written(tmp_path), {"kind": "glm"}, pairs=pairs)


def test_intervals_are_not_asked_for_where_everybody_sees_the_totals(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"explain\.local: .* all parties see every total"):
        study(written(tmp_path), {"kind": "glm"}, {"sums": "masks"}, local=True)


def test_a_column_that_a_model_does_not_read_has_no_values(tmp_path: Path) -> None:
    made = study(written(tmp_path), {"kind": "glm"}, features=["age"])
    fitted = made.arms["federated"].models["all"]["model"].model
    assert values_of(fitted, "years", 5) == ()
    assert list(made.arms["federated"].evaluations["model"]["all"].explained) == ["age"]
