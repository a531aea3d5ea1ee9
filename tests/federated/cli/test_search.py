"""`lab tune` and `lab sweep` as they are typed: what is printed, kept, logged and refused."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from federated.cli.main import lab
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError
from tests.federated.search.conftest import claims  # noqa: F401  a fixture

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own, in this process


def shown(command: str, path: Path, *arguments: object) -> Result:
    place = ["--runs", str(path.parent / "runs")]
    return CliRunner().invoke(lab, [command, str(path), *place, *map(str, arguments)])


def children(path: Path, name: str) -> list[dict[str, float]]:
    """Metrics of the children of the one parent run of this name."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{path.parent / 'runs' / 'mlflow.db'}")
    place = client.get_experiment_by_name("insurance-privacy-lab").experiment_id
    runs = client.search_runs([place])
    (parent,) = [run for run in runs if run.info.run_name == name]
    return [
        run.data.metrics
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]


def test_tune_tells_its_cost_prints_the_best_and_logs_a_parent_with_children(
    claims: Path,  # noqa: F811
) -> None:
    done = shown("tune", claims, "--to", claims.parent / "tuned.toml")
    assert done.exit_code == 0, done.exception
    assert "at most 12 fits" in done.stderr and "and opened" in done.stderr
    settings = tomllib.loads(done.stdout[done.stdout.index("[model]") :].split("\n\n")[0])
    assert Experiment.read(claims.parent / "tuned.toml").model.ridge == settings["model"]["ridge"]
    assert "tune.outer = 5" in done.stdout
    assert [sorted(run) for run in children(claims, "tune claims")] == [
        ["error", "score", "seconds"]
    ] * 3
    again = shown("tune", claims, "--to", claims.parent / "tuned.toml")
    assert isinstance(again.exception, ConfigurationError) and "is there already" in str(
        again.exception
    )


def test_tune_says_its_cost_alone(claims: Path) -> None:  # noqa: F811
    done = shown("tune", claims, "--cost")
    assert done.exit_code == 0 and not done.stdout
    assert "totals for 11 more like it" in done.stderr
    assert not list((claims.parent / "runs").glob("tune*/result.json"))


@pytest.mark.slow
def test_tune_is_one_json_object(claims: Path) -> None:  # noqa: F811
    done = shown("tune", claims, "--json", "--no-track", "--set", "tune.outer=2")
    result = json.loads(done.stdout)
    assert [row["name"] for row in result["rows"]] == ["trial 0", "trial 1", "trial 2"]
    assert result["metrics"].keys() == {"best", "own", "nested"}
    assert result["paths"]["tracking"] == "off"


def test_sweep_prints_one_table_and_logs_a_parent_with_children(
    claims: Path,  # noqa: F811
) -> None:
    done = shown("sweep", claims, "--seeds", 2, "--set", "model.ridge=[0.0, 0.1]")
    assert done.exit_code == 0, done.exception
    lines = [line for line in done.stdout.splitlines() if line.startswith("model.ridge")]
    assert len(lines) == 2 * 3 and "federated minus alone" in lines[2]
    assert len(children(claims, "sweep claims")) == 4


def test_sweep_is_one_json_object(claims: Path) -> None:  # noqa: F811
    done = shown("sweep", claims, "--seeds", 1, "--json", "--no-track")
    result = json.loads(done.stdout)
    assert [row["arm"] for row in result["table"]] == [
        "alone",
        "federated",
        "federated minus alone",
    ]
    assert result["table"][0]["low"] is None and len(result["rows"]) == 1
    assert Path(result["paths"]["folder"], "figure.svg").exists()
