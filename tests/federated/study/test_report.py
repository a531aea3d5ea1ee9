"""The page of a run that was carried out, as its readers meet it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from federated.run import run
from federated.study.experiment import Experiment
from federated.study.result import Study
from lab.report import page, tables
from lab.report.finished_run import FinishedRun
from tests.federated.study.test_rows import experiment, table
from tests.lab.report.test_page import Outline


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("report")
    region = np.random.default_rng(1).choice(["east", "north", "west"], 600)
    table(600).assign(region=region).to_csv(folder / "t.csv", index=False)
    values = experiment(folder / "t.csv", {"test": 0.3, "features": ["age", "region"]}).model_dump()
    values["arms"] = {"run": ["alone", "federated", "pooled"], "replicates": 10}
    return run(Experiment.model_validate(values), runs=folder / "runs", track=False)


def html(study: Study) -> str:
    return (Path(study.folder) / "report.html").read_text(encoding="utf-8")


def test_date_seed_and_run_stand_on_top(study: Study) -> None:
    head = html(study).partition("<h2>")[0]
    assert re.search(r"\d{1,2} \w+ 20\d\d, \d\d:\d\d UTC, seed", head)
    assert Path(study.folder).name in head
    assert re.search(r"percentage points (more|less) of the deviance than alone", head)


def test_every_figure_has_a_title_and_says_what_is_seen(study: Study) -> None:
    outline = Outline()
    outline.feed(text := html(study))
    assert len(outline.figures) >= 6 and outline.headless_rows == 0
    assert len(set(outline.identities)) == len(outline.identities)
    named = [str(figure["aria-labelledby"]).split() for figure in outline.figures]
    assert all(figure["role"] == "img" for figure in outline.figures)
    assert {identity for names in named for identity in names} <= set(outline.identities)
    assert re.search(r"<desc [^>]*>whole market: alone -?0\.\d+, federated -?0\.\d+", text)
    assert not re.search(r'style="[^"]*#(1f2a33|0f766e|a6561f)', text)


def test_the_experiment_is_there_to_be_pasted_back(study: Study, tmp_path: Path) -> None:
    import html as entities

    text = re.search(r"<pre[^>]*>(.*?)</pre>", html(study), re.DOTALL)
    assert text is not None
    (tmp_path / "again.toml").write_text(entities.unescape(text[1]))
    assert Experiment.read(tmp_path / "again.toml") == study.experiment


def test_features_are_shown_by_how_much_the_model_goes_by_them(study: Study) -> None:
    result = json.loads((Path(study.folder) / "result.json").read_text())
    importance = result["arms"]["federated"]["importance"]
    model = study.arms["federated"].models["all"]["model"].model
    (number,) = model.encoding.numbers
    assert importance[number.feature.column] == pytest.approx(abs(model.beta[1]))
    levels = result["curves"]["federated"]["levels"]["region"]
    own = dict(zip(model.encoding.categories[0].levels, [0.0, *model.beta[2:]], strict=True))
    effects = np.array([own[level] for level in levels["levels"]])
    mean = np.average(effects, weights=levels["size"])
    wanted = np.sqrt(np.average((effects - mean) ** 2, weights=levels["size"]))
    assert importance["region"] == pytest.approx(wanted)
    assert "What the model goes by" in html(study)


def test_relativities_are_on_the_page_with_their_base_and_what_was_exposed(study: Study) -> None:
    lines = study.relativities
    own = lines[(lines["arm"] == "federated") & (lines["feature"] == "region")]
    kept = FinishedRun(study.folder)
    pd.testing.assert_frame_equal(kept.relativities, lines, check_dtype=False)
    (name, table), *_ = tables.relativities(kept.result)
    rows = [row for row in table.rows if row[0] == "region"]
    assert name == "federated" and [row[1] for row in rows] == own["level"].tolist()
    assert rows[0][2:5] == ("1.000", "–", "–") and all(row[5] != "–" for row in rows)
    assert "Relativities, federated" in html(study)


def test_a_result_of_before_still_makes_a_page(study: Study) -> None:
    """Runs that were kept without date, folder and importance."""
    result = json.loads((Path(study.folder) / "result.json").read_text())
    del result["date"], result["folder"]
    for arm in result["arms"].values():
        arm.pop("importance", None)
    text = page.render(result)
    assert "seed" in text and "What the model goes by" not in text


def test_a_party_where_nothing_happened_has_no_gini_and_costs_no_figure(tmp_path: Path) -> None:
    frame = table(400).assign(party=np.arange(400) % 4, late=np.arange(400) % 5 == 0)
    frame.loc[frame["late"], "claims"] = 0
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = {"test_column": "late", "test_value": 1}
    values = experiment(tmp_path / "t.csv", data).model_dump()
    values |= {"parties": {"split": "column", "column": "party"}, "arms": {"replicates": 5}}
    study = run(Experiment.model_validate(values), runs=tmp_path / "runs", track=False)
    result = json.loads((Path(study.folder) / "result.json").read_text())
    scores = result["arms"]["federated"]["scores"].values()
    assert {each["gini"] for each in scores} == {each["balance"] for each in scores} == {None}
    assert "could not be drawn" not in html(study)
