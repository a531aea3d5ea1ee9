"""A study is not lost by a name, by what its files are called, or by where it is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federated.cli.main import _explain
from federated.run import run
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError
from lab.report import figures, tracking
from lab.text import slugs
from tests.federated.study.test_rows import experiment, table

NAMES = ["A/B", "A&B's (new), 5 % + more", "../../up", "保险", ". ", "A/b"]


def test_a_run_is_kept_and_tracked_under_any_name(tmp_path: Path) -> None:
    frame = table(360).assign(insurer=np.repeat(NAMES, 60))
    frame["$25k_to_$50k, & more"] = np.tile(["under $1", "$1 to $2"], 180)
    frame.to_csv(tmp_path / "t.csv", index=False)
    values = experiment(tmp_path / "t.csv").model_dump()
    values["data"]["features"] = ["age", "$25k_to_$50k, & more"]
    values["data"]["cap"] = {"age": 70.0}
    values["parties"] = {"split": "column", "column": "insurer"}
    values["arms"]["run"] = ["alone", "federated"]
    study = run(Experiment.model_validate(values), runs=tmp_path / "runs")
    assert study.tracking.startswith("MLflow run ")
    files = sorted(path.name for path in (study.folder / "models").iterdir())
    assert len(files) == 1 + len(NAMES)
    result = json.loads((study.folder / "result.json").read_text())
    assert set(result["data"]["parties"]) == {f"insurer {name}".rstrip() for name in NAMES}
    page = (study.folder / "report.html").read_text()
    assert "could not be drawn" not in page
    assert "$1 to $2</text>" in page
    metrics = tracking.arm_metrics("alone", result["arms"]["alone"], result)
    series = [(name, step) for name, _, step in metrics]
    assert len(set(series)) == len(series)


def test_slugs_differ_where_names_do() -> None:
    assert list(slugs(NAMES).values()) == [
        "A-B",
        "A-B-s-new-5-more",
        "up",
        "保险",
        "unnamed",
        "A-b-2",
    ]


def test_a_figure_that_fails_costs_its_place_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(result: Any, axes: Any) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(figures, "_RATES", [("Lift", "what it shows", fails)])
    (figure,) = figures.figures({"experiment": {"detection": None}})
    assert figure["text"] == "This figure could not be drawn (ZeroDivisionError)."


def test_a_folder_that_takes_no_runs_is_refused_before_the_first_arm(tmp_path: Path) -> None:
    table().to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "runs").write_text("a file")
    began = []
    with pytest.raises(
        ConfigurationError, match=r"runs: a run cannot be written there: .*director"
    ):
        run(
            experiment(tmp_path / "t.csv"),
            runs=tmp_path / "runs",
            progress=lambda *step: began.append(step),
        )
    assert not began


def test_what_nobody_foresaw_is_told_by_its_type_and_a_file_by_its_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _explain(ValueError("could not convert '1,467.45'")) == 1
    assert _explain(PermissionError(13, "Permission denied", "/runs/x")) == 2
    text = capsys.readouterr().err
    assert "1,467.45" not in text
    assert "lab: /runs/x: permission denied" in text
