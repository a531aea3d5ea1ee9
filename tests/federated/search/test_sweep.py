"""A sweep: right intervals, runs that are those of `lab run`, one table and one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from federated.run import run
from federated.search.sweep import Swept, sweep
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError, ModelError
from tests.federated.study.test_joined import written


def swept(path: Path, vary: dict[str, Any], seeds: int = 3, **changes: Any) -> Swept:
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    experiment = Experiment.read(path, settings)
    return sweep(experiment, vary, seeds=seeds, runs=path.parent / "runs", workers=2)


def test_a_run_of_a_sweep_is_the_run_of_its_seed(claims: Path) -> None:
    result = swept(claims, {"parties.count": [2, 4]}, protection__sums="clear", seeds=2)
    assert [(r.seed, r.settings["parties.count"]) for r in result.runs] == [
        (3, 2),
        (4, 2),
        (3, 4),
        (4, 4),
    ]
    changes = {"seed": 4, "parties.count": 4}
    study = run(claims, changes, runs=claims.parent / "runs", track=False)
    scores = study.scores["deviance_explained"]
    assert result.runs[-1].scores == {arm: scores[arm, "all"] for arm in ("alone", "federated")}


def test_intervals_are_students_over_seeds_and_differences_are_paired(claims: Path) -> None:
    result = swept(claims, {})
    table = result.table.set_index("arm")
    values = {arm: [r.scores[arm] for r in result.runs] for arm in ("alone", "federated")}
    values["federated minus alone"] = list(np.subtract(values["federated"], values["alone"]))
    for arm, each in values.items():
        low, high = stats.t.interval(0.95, 2, np.mean(each), stats.sem(each))
        row = table.loc[arm]
        expected = [np.mean(each), np.std(each, ddof=1), low, high]
        assert list(row[["mean", "spread", "low", "high"]]) == pytest.approx(expected)


def test_one_seed_has_no_interval(claims: Path) -> None:
    table = swept(claims, {}, seeds=1).table
    assert table["mean"].notna().all() and table[["spread", "low", "high"]].isna().all(axis=None)


def test_a_sweep_goes_on_and_takes_more_seeds(claims: Path) -> None:
    first = swept(claims, {}, seeds=2)
    more = swept(claims, {}, seeds=3)
    assert more.runs[:2] == first.runs  # their seconds too: nothing ran again
    assert len((more.folder / "trials.jsonl").read_text().splitlines()) == 3
    table = pd.read_csv(claims.parent / "claims.csv")
    table.iloc[::-1].to_csv(claims.parent / "claims.csv", index=False)
    assert swept(claims, {}, seeds=1).folder != first.folder


def test_a_run_that_fails_is_a_row_with_its_reason(claims: Path) -> None:
    features = '["age", "years"]'
    vary = {"model.ridge": [0.0, 0.1]}
    failed, fitted = swept(claims, vary, seeds=1, data__features=features).runs
    assert "collinear" in failed.reason and not failed.scores and fitted.scores
    with pytest.raises(ModelError, match="no run has a score"):
        swept(claims, {"model.ridge": [0.0]}, seeds=1, data__features=features)


def test_the_figure_says_what_it_shows(claims: Path) -> None:
    result = swept(claims, {"model.ridge": [0.0, 0.1]}, seeds=2)
    svg = ElementTree.parse(result.folder / "figure.svg").getroot()
    words = svg.find("{http://www.w3.org/2000/svg}desc")
    assert words is not None and words.text is not None
    assert words.text.count("federated") == 2 and "model.ridge = 0.1 alone" in words.text


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ({"model.ridg": [1]}, "seed = 3, model.ridg = 1.*did you mean 'ridge'"),
        ({"parties.count": [2, 0]}, "seed = 3, parties.count = 0.*at least 1"),
        ({"seed": [1]}, "counted by --seeds"),
        ({"model.ridge": []}, "from 1 to 1,000 runs"),
        ({"model.ridge": list(range(400))}, "these are 1,200"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    claims: Path, vary: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s){words}"):
        swept(claims, vary)
    assert not list((claims.parent / "runs").glob("sweep*"))


def test_joined_sides_are_swept_too(tmp_path: Path) -> None:
    values = written(tmp_path)
    values["arms"] = {"run": ["insurer", "pooled"], "replicates": 0}
    experiment = Experiment.model_validate(values)
    result = sweep(experiment, {"model.ridge": [0.0, 0.1]}, seeds=1, runs=tmp_path / "runs")
    assert result.judged == "in sample"
    assert [set(each.scores) for each in result.runs] == [{"insurer", "pooled"}] * 2
