"""`lab runs`: what is listed, what is removed, what a finished run holds when it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner, Result
from pandas.testing import assert_frame_equal

from federated.cli.main import lab
from federated.run import load, run
from federated.study.result import Study
from lab.errors import ConfigurationError

ROOT = Path(__file__).parents[3]
CHANGES = {
    "protection.sums": "clear",
    "arms.replicates": 10,
    "arms.run": '["alone", "federated", "without"]',
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    runs = tmp_path_factory.mktemp("runs")
    return run(ROOT / "experiments" / "rand_hie.toml", CHANGES, runs=runs, track=False)


@pytest.fixture
def runs(study: Study, tmp_path: Path) -> Path:
    """Three runs, two of which ended in the same second."""
    for name in ("20261129-130000-a-11", "20261129-130000-b-22", "20261130-130000-a-33"):
        shutil.copytree(study.folder, tmp_path / name)
    return tmp_path


def shown(*arguments: object, answer: str = "") -> Result:
    return CliRunner().invoke(lab, ["runs", *map(str, arguments)], input=answer)


def test_a_listing_names_its_columns_and_shows_the_newest_run_first(runs: Path) -> None:
    heading, *lines = shown("--runs", runs).output.splitlines()
    words = "run (date-time) experiment score alone federated without size MLflow"
    assert heading.split() == words.split()
    assert [line.split()[0] for line in lines] == [
        "20261130-130000",
        "20261129-130000-b",
        "20261129-130000-a",
    ]


def test_a_listing_is_one_json_list(runs: Path, study: Study) -> None:
    newest, *_ = json.loads(shown("--json", "--runs", runs).output)
    assert newest["folder"] == str(runs / "20261130-130000-a-33")
    whole = study.scores.loc[("federated", "all"), "deviance_explained"]
    assert newest["scores"]["federated"] == pytest.approx(whole)
    files = (f for f in (runs / "20261130-130000-a-33").rglob("*") if f.is_file())
    assert newest["bytes"] == sum(file.stat().st_size for file in files)
    assert newest["logged"] is None
    assert json.loads(shown("--json", "--runs", runs / "none").output) == []


def test_relativities_of_a_run_are_printed_and_an_arm_without_any_is_refused(runs: Path) -> None:
    lines = shown("--runs", runs, "relativities", "20261130").output.splitlines()
    assert lines[0].split() == ["feature", "level", "relativity", "low", "high"]
    assert any(line.split()[-1] == "1.000" for line in lines)
    written = shown("--runs", runs, "relativities", "20261130", "--json").output
    assert len(json.loads(written)) == len(lines) - 1
    refused = shown("--runs", runs, "relativities", "20261130", "--arm", "pool")
    assert "no relativities of 'pool'; there are those of" in str(refused.exception)


def test_a_run_is_removed_after_a_yes(runs: Path) -> None:
    folder = runs / "20261130-130000-a-33"
    assert "delete" in shown("--runs", runs, "rm", "20261130", answer="n\n").output
    assert folder.exists()
    assert shown("--runs", runs, "rm", "20261130", answer="y\n").exit_code == 0
    assert not folder.exists()
    assert shown("rm", "20261129-130000-b", "--yes", "--runs", runs).exit_code == 0
    assert [path.name for path in runs.iterdir()] == ["20261129-130000-a-11"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("2026", "3 runs begin so"), ("2025", "no such run"), ("..", "no such run"), ("", "begin so")],
)
def test_nothing_is_removed_where_a_name_is_not_of_one_run(
    runs: Path, name: str, words: str
) -> None:
    done = shown("rm", name, "20261130", "--yes", "--runs", runs)
    assert isinstance(done.exception, ConfigurationError)
    assert words in str(done.exception)
    assert len(list(runs.iterdir())) == 3


@pytest.mark.parametrize(
    "table", ["coefficients", "convergence", "differences", "joining", "receipt"]
)
def test_a_finished_run_loads_with_the_tables_of_its_study(study: Study, table: str) -> None:
    ours: Any = getattr(study, table)
    assert_frame_equal(getattr(load(study.folder), table), ours, check_dtype=False)


def test_scores_openings_answers_and_models_load_too(study: Study) -> None:
    finished = load(str(study.folder)[:-3])
    assert_frame_equal(finished.scores[list(study.scores)], study.scores)
    assert_frame_equal(finished.opened, pd.DataFrame(map(vars, study.opened)))
    titles = [(answer.attrs["title"], len(answer)) for answer in finished.answers]
    assert titles == [(query.title, len(answer)) for query, answer in study.answers]
    assert finished.model() == study.arms["federated"].models["all"]["model"].model
    with pytest.raises(ConfigurationError, match=r"there are alone-insurer-1, .*federated"):
        finished.model("pooled")
    with pytest.raises(ConfigurationError, match="no such run"):
        load(study.folder / "models" / "federated")


def test_a_study_and_a_finished_run_are_one_line_and_one_table(study: Study) -> None:
    finished = load(study.folder)
    assert repr(study) == repr(finished)
    assert "\n" not in repr(study) and len(repr(study)) < 250
    assert repr(study).startswith("<visits, RAND HIE: deviance explained alone 0.0")
    assert finished._repr_html_() == study._repr_html_()
    assert study._repr_html_().count("<tr>") == len(study.market.sizes) + 1
    finished.result["arms"] = {}
    assert "not told" in repr(finished) and "<table" in finished._repr_html_()
    finished.name = "<script>"
    assert "<script>" not in finished._repr_html_()
