"""The command line as its users meet it: real processes, exit codes, one line for an error."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from federated.deployment.node.rules.settings import NodeSettings
from federated.run import run
from federated.study.run_folder import log
from lab.report import tracking
from lab.tables.sources import SOURCES, load

ROOT = Path(__file__).parents[3]
RAND = ROOT / "experiments" / "rand_hie.toml"
SMALL = [
    "--set",
    "protection.sums=clear",
    "--set",
    "arms.replicates=10",
    "--set",
    'arms.run=["federated"]',
    "--set",
    "query=[]",
]


def lab(
    *arguments: object, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-c",
        "from federated.cli.main import main; main()",
        *map(str, arguments),
    ]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    return subprocess.run(
        command,
        cwd=cwd,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_every_command_has_help_with_an_example() -> None:
    for command in (
        [],
        ["run"],
        ["data", "describe"],
        ["data", "check"],
        ["data", "draft"],
        ["runs", "rm"],
        ["market", "make"],
        ["market", "flags"],
        ["score"],
        ["runs"],
        ["ui"],
        ["bench"],
        *(["charter", name] for name in ("init", "add", "sign", "show")),
        *(["audit", name] for name in ("verify", "show", "extract", "export")),
    ):
        done = lab(*command, "--help")
        assert done.returncode == 0
        assert (
            f"lab {' '.join(command)}".strip()
            in done.stdout.split("Options")[0].split("\n\n", 1)[1]
        )


def test_help_imports_none_of_the_heavy_packages() -> None:
    code = (
        "import sys, federated.cli.main; "
        "print([m for m in ('torch','mlflow','flwr','pandas','numpy','sklearn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_json_prints_one_object_and_nothing_else(tmp_path: Path) -> None:
    done = lab("run", RAND, *SMALL, "--json", "--no-track", "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    fit = result["arms"]["federated"]["fit"]
    assert {"name", "estimate", "standard_error"} <= set(fit["coefficients"][0])
    assert {"log_likelihood", "deviance", "null_deviance"} <= set(fit)
    assert len(result["arms"]["federated"]["model_hash"]) == 64
    assert Path(result["paths"]["report"]).exists()
    assert result["receipt_totals"]["messages"] > 0


def test_a_run_is_logged_listed_and_its_model_loads_from_mlflow(tmp_path: Path) -> None:
    done = lab("run", RAND, *SMALL, "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MLflow run" in done.stdout
    assert "UserWarning" not in done.stderr
    listed = lab("runs", "--runs", tmp_path)
    heading, line = listed.stdout.rstrip().splitlines()
    assert heading.split()[-3:] == ["federated", "size", "MLflow"]
    assert "visits, RAND HIE" in line
    size, *rest = line.split()[-3:]
    assert 0.1 < float(size) < 1 and rest == ["MB", "yes"]
    code = (
        "import mlflow, sys, pandas as pd; mlflow.set_tracking_uri(sys.argv[1]);"
        "runs = mlflow.search_runs(experiment_names=['insurance-privacy-lab']);"
        "parent = runs[runs['tags.mlflow.parentRunId'].isna()].iloc[0];"
        "model = mlflow.pyfunc.load_model(f'runs:/{parent.run_id}/model');"
        "from lab.tables.sources import load; rows = load('rand_hie').frame.head(5);"
        "print(model.predict(rows[model.metadata.get_input_schema().input_names()]).round(6).tolist())"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'mlflow.db'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert loaded.returncode == 0, loaded.stderr
    (folder,) = tmp_path.glob("2*")
    from lab.models.files import read

    ours = read(folder / "models" / "federated.json").predict(load("rand_hie").frame.head(5))
    assert json.loads(loaded.stdout.splitlines()[-1]) == [round(float(v), 6) for v in ours]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's own, in this process
def test_a_tracking_server_that_is_down_or_locked_is_told_and_costs_nothing(tmp_path: Path) -> None:
    changes = {"protection.sums": "clear", "arms.run": '["federated"]', "query": "[]"}
    study = run(RAND, changes, runs=tmp_path, track=False)
    assert lab("runs", "--runs", tmp_path).stdout.rstrip().endswith(" no")
    assert log(study.folder, "http://127.0.0.1:9").startswith("not logged to MLflow at http")
    lock = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    try:
        told = log(study.folder, tracking.address(tmp_path, None))
    finally:
        lock.rollback()
        lock.close()
    assert told.startswith("not logged to MLflow at sqlite")
    assert "MLflow run" in lab("runs", "--runs", tmp_path, "--send").stdout
    assert lab("runs", "--runs", tmp_path).stdout.rstrip().endswith(" yes")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "nowhere.toml"], 2, "nowhere.toml: no such file"),
        (["run", RAND, "--set", "model.rigde=1"], 2, "did you mean 'ridge'"),
        (["run", RAND, "--set", "model.ridge"], 2, "key=value"),
        (["data", "describe", "rand_hei"], 2, "did you mean 'rand_hie'"),
        (["data", "check", "nowhere.csv", "--contract", "rand_hie"], 2, "no such file"),
        (["run", RAND, "--set", "query=[]", "--set", "parties.count=2"], 1, "at least 3 parties"),
        (["run", ROOT / "experiments" / "fremtpl2_frequency.toml"], 2, "OpenML"),
        (["rnu"], 2, "No such command"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[object], code: int, words: str, tmp_path: Path
) -> None:
    done = lab(*arguments, LAB_RUNS=str(tmp_path))
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_describe_and_check_show_a_source_and_every_violation(tmp_path: Path) -> None:
    shown = lab("data", "describe", "rand_hie").stdout
    for words in ("20,190", "public domain", "mdvis", "statsmodels"):
        assert words in shown
    listed = lab("data", "describe").stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["source", *SOURCES]
    contract = tmp_path / "c.toml"
    contract.write_text('name = "c"\n[columns]\nn = { type = "integer", minimum = 0 }\n')
    table = tmp_path / "t.csv"
    table.write_text("n\n1\n-2\n-3\n")
    bad = lab("data", "check", table, "--contract", contract)
    assert bad.returncode == 2
    assert "rows 2, 3: n must be a whole number at least 0, got -2" in bad.stderr
    table.write_text("n\n1\n2\n")
    assert "2 rows keep contract c" in lab("data", "check", table, "--contract", contract).stdout


def test_ctrl_c_ends_cleanly_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also with &
    code = f"{heard}\nfrom federated.cli.main import main; main()"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "run",
            str(RAND),
            "--runs",
            str(tmp_path),
            "--set",
            "arms.replicates=50000",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(9)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().endswith("stopped")
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("2*"))


def test_the_bench_prints_ratios() -> None:
    done = lab("bench", "glm", "--quick")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.rstrip().endswith(" x")]
    assert len(lines) == 2


@pytest.mark.slow
def test_flowers_own_engine_gives_the_same_model(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the ray extra is not installed")
    hashes = []
    for engine in ("grid", "ray"):
        done = lab(
            "run", RAND, *SMALL, "--json", "--no-track", "--runs", tmp_path, "--engine", engine
        )
        assert done.returncode == 0, done.stderr
        hashes.append(json.loads(done.stdout)["arms"]["federated"]["model_hash"])
    assert hashes[0] == hashes[1]


def test_a_market_is_made_described_and_never_made_over(tmp_path: Path) -> None:
    folder = tmp_path / "city"
    made = lab("market", "make", folder, "--persons", 4000, "--insurers", 2, "--seed", 3)
    assert made.returncode == 0, made.stderr
    assert "insurer-2/policies.parquet" in made.stdout
    assert f"{folder}, seed 3, " in made.stdout
    page = lab("data", "describe", "market", "--path", folder)
    assert page.returncode == 0, page.stderr
    assert "PUBLISHED NUMBERS THAT A MADE MARKET IS HELD TO, AND THIS ONE'S" in page.stdout
    assert "columns: 51" in page.stdout
    again = lab("market", "make", folder)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == f"lab: {folder}: is not empty; name a new folder\n"


def test_a_node_s_caps_stand_in_its_settings(tmp_path: Path) -> None:
    common = ("--name", "ping-an", "--role", "commercial", "--data", "rand_hie", "--cap")
    done = lab("node", "init", tmp_path / "node", *common, "mdvis=50", "--cap", "income=1000000.5")
    assert done.returncode == 0, done.stderr
    data = NodeSettings.read(tmp_path / "node").data
    assert data is not None and data.caps == {"mdvis": 50.0, "income": 1000000.5}
    for cap in ("mdvis", "mdvis=few", "mdvis=inf"):
        done = lab("node", "init", tmp_path / "another", *common, cap)
        assert done.returncode == 2 and "needs the form COLUMN=LIMIT" in done.stderr


def test_a_node_reads_its_csv_in_the_encoding_it_is_given(tmp_path: Path) -> None:
    table = tmp_path / "claims.csv"
    table.write_bytes("city,claims\nZürich,1\nBern,0\n".encode("cp1252"))
    common = ("--name", "css", "--role", "commercial", "--data", table, "--encoding", "cp1252")
    done = lab("node", "init", tmp_path / "node", *common)
    assert done.returncode == 0, done.stderr
    data = NodeSettings.read(tmp_path / "node").data
    assert data is not None
    frame = load(data.source, data.path, encoding=data.encoding).frame
    assert list(frame["city"]) == ["Zürich", "Bern"]
