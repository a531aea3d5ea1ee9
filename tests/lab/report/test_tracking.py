"""What MLflow gets of a run: its name, its time, its table without a row, a model that reads tables."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest

from federated.run import run
from federated.study.result import Study
from lab.report import tracking

ROOT = Path(__file__).parents[3]
CONTRACT = """name = "claims"
[columns]
region = { type = "category", levels = ["1", "2", "3"] }
age = { type = "integer", minimum = 18, maximum = 80 }
claims = { type = "integer", role = "target", minimum = 0 }
"""
EXPERIMENT = """name = "claims by region"
[data]
path = "claims.csv"
contract = "claims.toml"
target = "claims"
[parties]
split = "uniform"
count = 3
[model]
kind = "glm"
family = "poisson"
[protection]
sums = "clear"
[arms]
run = ["federated", "pooled"]
replicates = 0
"""
pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own, in this process


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("claims")
    rng = np.random.default_rng(5)
    region, age = rng.integers(1, 4, 600), rng.integers(18, 81, 600)
    claims = rng.poisson(np.exp(0.3 * region - 0.01 * age))
    pd.DataFrame({"region": region, "age": age, "claims": claims}).to_csv(
        folder / "claims.csv", index=False
    )
    (folder / "claims.toml").write_text(CONTRACT)
    (folder / "experiment.toml").write_text(EXPERIMENT)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        study = run(folder / "experiment.toml", runs=folder / "runs")
        assert "MLFLOW_TRACKING_URI" not in os.environ  # a later run may keep its runs elsewhere
        return study


def client(study: Study):  # type: ignore[no-untyped-def]
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=tracking.address(study.folder.parent, None))


def identity(study: Study) -> str:
    return str((study.folder / "mlflow_run_id").read_text())


def test_a_run_has_a_name_of_its_own_and_takes_as_long_as_the_study(study: Study) -> None:
    info = client(study).get_run(identity(study)).info
    assert info.run_name == f"{study.folder.name[:15]} claims by region"
    assert datetime.strptime(info.run_name[:15], "%Y%m%d-%H%M%S")
    seconds = json.loads((study.folder / "result.json").read_text())["seconds"]["run"]
    assert info.end_time - info.start_time == pytest.approx(1000 * seconds, abs=2)
    place = client(study).search_runs(
        [info.experiment_id], f"tags.`mlflow.parentRunId` = '{info.run_id}'"
    )
    arms = {arm.info.run_name: arm.info for arm in place}
    assert info.start_time <= arms["federated"].start_time
    assert arms["federated"].end_time <= arms["pooled"].start_time + 1
    assert arms["pooled"].end_time == info.end_time


def test_the_table_is_logged_by_its_digest_and_none_of_its_rows(study: Study) -> None:
    (line,) = client(study).get_run(identity(study)).inputs.dataset_inputs
    table = line.dataset
    assert study.market.digest.startswith(table.digest)
    assert (table.name, table.profile) == ("claims.csv", None)
    columns = json.loads(table.schema)["mlflow_colspec"]
    assert {c["name"]: c["type"] for c in columns} == {"region": "string", "age": "long"}


def test_the_model_reads_whole_numbers_and_codes_as_text_or_as_numbers(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    place = tracking.address(study.folder.parent, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)  # which MLflow sets for good
    mlflow.set_tracking_uri(place)
    model = mlflow.pyfunc.load_model("models:/claims by region/1")
    rows = pd.DataFrame({"region": ["1", "3", "2"], "age": [20, 40, 60]}, index=[7, 8, 9])
    ours = study.arms["federated"].models["all"]["model"].model.predict(rows)
    for types in ({}, {"region": "int64"}, {"region": "category"}, {"age": "float64"}):
        values = model.predict(rows.astype(types))
        np.testing.assert_allclose(values, ours, rtol=0)
        assert list(values.index) == [7, 8, 9]
    with pytest.raises(Exception, match="age must be a number"):
        model.predict(rows.assign(age="old"))


@pytest.mark.slow
def test_the_page_opens_on_the_runs_and_sigterm_leaves_no_process(study: Study) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from federated.cli.main import main; main()"
    command = [sys.executable, "-c", code, "ui", "--runs", study.folder.parent, "--port", port]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    with subprocess.Popen(
        list(map(str, command)),
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as ui:
        assert ui.stdout is not None
        experiment = client(study).get_experiment_by_name(tracking.EXPERIMENT).experiment_id
        first = f"MLflow: http://127.0.0.1:{port}/#/experiments/{experiment}/runs"
        assert ui.stdout.readline().startswith(first)
        (server,) = wait_for(lambda: children(ui.pid))
        wait_for(lambda: answers(port))
        ui.send_signal(signal.SIGTERM)
        assert ui.wait(60) == 0
    wait_for(lambda: not members(server))


def wait_for(condition):  # type: ignore[no-untyped-def]
    """What the condition gives once it is true."""
    deadline = time.monotonic() + 90
    while not (result := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return result


def answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as page:
            return bool(page.status == 200)
    except OSError:
        return False


def processes() -> list[list[str]]:
    """Number, parent's, group's and state of all processes."""
    listing = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,pgid=,stat="], capture_output=True, text=True, check=True
    )
    return [line.split() for line in listing.stdout.splitlines()]


def children(parent: int) -> list[int]:
    return [int(line[0]) for line in processes() if line[1] == str(parent)]


def members(group: int) -> list[str]:
    """Processes of a group that are not over."""
    return [line[0] for line in processes() if line[2] == str(group) and line[3][0] != "Z"]
