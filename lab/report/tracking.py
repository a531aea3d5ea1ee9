"""MLflow: the one file that imports it. A run is logged from its folder, now or later."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.report.style import Result
from lab.text import slug, slugs

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo
    from mlflow.tracking import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

EXPERIMENT = "insurance-privacy-lab"
#: Makes MLflow's page open on runs and metrics, not on traces of agents.
KIND = {"mlflow.experimentKind": "custom_model_development"}
#: MLflow's name of a column's type in a contract.
TYPES = {"integer": "long", "number": "double", "category": "string"}
#: Seconds in which MLflow's page has to end in order.
PATIENCE = 10
#: MLflow's own limits on one batch.
METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100
#: Characters of a data set's digest, likewise; the whole of it is a tag.
DIGEST_SHOWN = 36
#: Characters of a parameter, likewise.
LONGEST_PARAM = 6000


#: Where MLflow tracks, unless it is told.
VARIABLE = "MLFLOW_TRACKING_URI"


def address(runs: Path, uri: str | None) -> str:
    """Where runs are tracked: the flag, MLFLOW_TRACKING_URI, or SQLite in the runs folder."""
    return uri or os.environ.get(VARIABLE) or f"sqlite:///{(runs / 'mlflow.db').resolve()}"


def log(folder: Path, uri: str) -> tuple[str, str]:
    """Log a finished run: a parent run and a child for each arm. Returns the parent's id, and which
    version of a registered model the federated one became.

    Whatever MLflow raises passes on; the caller reports it, and nothing is lost: the folder stays
    as it is.
    """
    from mlflow.tracking import MlflowClient

    result: Result = json.loads((folder / "result.json").read_text())
    with _quiet():
        client = MlflowClient(tracking_uri=uri)
        place = _experiment(client, uri)
        end = int((folder / "result.json").stat().st_mtime * 1000)
        start = end - _milliseconds(result["seconds"].get("run", 0.0))
        tags = {"mlflow.runName": _run_name(folder, result), "lab.folder": str(folder)}
        parent = client.create_run(place, start, tags | _digests(result)).info.run_id
        try:
            _log_parameters(client, parent, result["experiment"])
            _log_table(client, parent, result)
            _log_arms(client, place, parent, result, end)
            for name in ("report.html", "result.json", "receipt.csv"):
                client.log_artifact(parent, str(folder / name))
            model = _log_model(folder, result, uri, parent)
        except BaseException:
            client.set_terminated(parent, "FAILED")
            raise
        client.set_terminated(parent, end_time=end)
        return str(parent), _register(client, model, result, parent)


def log_search(folder: Path, uri: str) -> str:
    """Log a search from its folder: a parent run and a child for each row. Returns the parent's id;
    whatever MLflow raises passes on."""
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

    result: Result = json.loads((folder / "result.json").read_text())
    now = int((folder / "result.json").stat().st_mtime * 1000)
    with _quiet():
        client = MlflowClient(tracking_uri=uri)
        place = _experiment(client, uri)
        name = f"{result['kind']} {result['experiment']['name']}"
        tags = {"mlflow.runName": name, "lab.folder": str(folder)}
        parent = str(client.create_run(place, now, tags).info.run_id)
        _log_parameters(client, parent, result["experiment"])
        metrics = [Metric(slug(k), v, now, 0) for k, v in result["metrics"].items()]
        client.log_batch(parent, metrics=metrics[:METRICS_AT_ONCE])
        for row in result["rows"]:
            tags = {"mlflow.runName": row["name"], "mlflow.parentRunId": parent}
            tags |= {"lab.reason": row["reason"][:LONGEST_PARAM]} if row["reason"] else {}
            child = client.create_run(place, now, tags).info.run_id
            _log_parameters(client, child, row["settings"])
            values = {slug(k): v for k, v in row["metrics"].items() if v is not None}
            client.log_batch(child, metrics=[Metric(k, v, now, 0) for k, v in values.items()])
            client.set_terminated(child, "FAILED" if row["reason"] else "FINISHED", now)
        for artifact in ("result.json", *result["files"]):
            client.log_artifact(parent, str(folder / artifact))
        client.set_terminated(parent, end_time=now)
    return parent


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what MLflow and its libraries say of themselves."""
    for name in ("mlflow", "alembic", "sqlalchemy"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _run_name(folder: Path, result: Result) -> str:
    """A name that no other run has: when it ended, and of what experiment it is."""
    return f"{folder.name[: len('20261129-131057')]} {result['experiment']['name']}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _experiment(client: MlflowClient, uri: str) -> str:
    """The id of MLflow's experiment, made if it is not there yet."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment:
        return str(experiment.experiment_id)
    place = _artifacts(uri)
    return str(client.create_experiment(EXPERIMENT, artifact_location=place, tags=KIND))


def _log_parameters(client: MlflowClient, run: str, experiment: dict[str, Any]) -> None:
    """The experiment's settings, in batches of MLflow's size."""
    from mlflow.entities import Param

    values = flatten(experiment)
    names = slugs(values)
    params = [Param(names[k], str(v)[:LONGEST_PARAM]) for k, v in values.items()]
    for at in range(0, len(params), PARAMS_AT_ONCE):
        client.log_batch(run, params=params[at : at + PARAMS_AT_ONCE])


def _log_table(client: MlflowClient, run: str, result: Result) -> None:
    """The table that the models learnt from: its name, digest and columns, and no row of it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types import ColSpec, Schema

    data = result["data"]
    if not data["digest"]:  # real parties tell none
        return
    digest = data["digest"][:DIGEST_SHOWN]
    source = json.dumps({"tags": _digests(result)})
    columns = Schema([ColSpec(TYPES[kind], name) for name, kind in data["inputs"].items()])
    schema = json.dumps({"mlflow_colspec": columns.to_dict()})
    table = Dataset(data["origin"], digest, "code", source, schema)
    context = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(run, [DatasetInput(table, context)])


def _log_arms(client: MlflowClient, place: str, parent: str, result: Result, end: int) -> None:
    """A child run for each arm, one after the other as they ran. end: of the last one, in ms."""
    starts, at = {}, end
    for arm, values in reversed(result["arms"].items()):
        at -= _milliseconds(values["seconds"])
        starts[arm] = at
    for arm in result["arms"]:
        _log_arm(client, place, parent, arm, result, starts[arm])


def _log_arm(
    client: MlflowClient, place: str, parent: str, arm: str, result: Result, start: int
) -> None:
    """A child run with all of an arm's metrics, and its scores over all parties in the parent."""
    from mlflow.entities import Metric

    values = result["arms"][arm]
    tags = {"mlflow.runName": arm, "mlflow.parentRunId": parent}
    child = client.create_run(place, start, tags).info.run_id
    end = start + _milliseconds(values["seconds"])
    series = [Metric(k, v, end, step) for k, v, step in arm_metrics(arm, values, result)]
    for at in range(0, len(series), METRICS_AT_ONCE):
        client.log_batch(child, metrics=series[at : at + METRICS_AT_ONCE])
    client.set_terminated(child, end_time=end)
    total = values["scores"].get("all", {})
    metrics = [
        Metric(f"{arm}.{k}", v, end, 0) for k, v in total.items() if isinstance(v, int | float)
    ]
    client.log_batch(parent, metrics=metrics)


def _artifacts(uri: str) -> str | None:
    """Artifacts lie beside a SQLite database; a server decides for itself."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).parent / "artifacts").resolve().as_uri()


def _digests(result: Result) -> dict[str, str]:
    data = result["data"]
    return {"lab.data": data["origin"], "lab.data.sha256": data["digest"]}


def _register(client: MlflowClient, model: ModelInfo | None, result: Result, parent: str) -> str:
    """A version of the registered model of the experiment's name; without a registry, a note."""
    digest = result["arms"].get("federated", {}).get("model_hash")
    if model is None or digest is None:
        return ""
    name = re.sub("[/:]", "-", result["experiment"]["name"])
    tags = _digests(result) | {"lab.model.sha256": digest}
    try:
        with contextlib.suppress(Exception):  # there already; the next call reports anything else
            client.create_registered_model(name)
        version = client.create_model_version(
            name, model.model_uri, parent, tags, model_id=model.model_id
        ).version
    except Exception as error:  # whatever the registry does, the run is logged
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return f"not registered ({reason})"
    return f"model '{name}' version {version}"


def _log_model(folder: Path, result: Result, uri: str, parent: str) -> ModelInfo | None:
    """The federated model (or the pooled one) with its signature, as code and JSON.

    Inputs are of any type: MLflow would refuse a whole number for a number and a number for a code,
    both of which the model reads.
    """
    path = folder / "models" / "federated.json"
    if not path.exists():
        path = folder / "models" / "pooled.json"
    if not path.exists():
        return None
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    inputs = Schema([ColSpec(AnyType(), name) for name in result["data"]["inputs"]])
    output = Schema([ColSpec("double", "prediction")])
    with _tracked_at(uri), mlflow.start_run(run_id=parent):
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("mlflow_model.py")),
            artifacts={"model": str(path)},
            signature=ModelSignature(inputs, output),
            pip_requirements=[
                f"insurance-privacy-lab=={result['versions']['insurance-privacy-lab']}"
            ],
        )


@contextmanager
def _tracked_at(uri: str) -> Iterator[None]:
    """MLflow's own functions log here; the variable that it sets for good is put back, because a later
    run in this process may keep its runs elsewhere."""
    import mlflow

    before = os.environ.get(VARIABLE)
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def arm_metrics(arm: str, values: dict[str, Any], result: Result) -> list[tuple[str, float, int]]:
    """(name, value, step): scores of each party, and the deviance or loss after each round; a
    party's name as far as MLflow takes it."""
    parties = slugs(["all", *values["scores"], *(line["holder"] for line in result["convergence"])])
    out = [
        (f"{parties[party]}.{name}".replace("=", " "), float(value), 0)
        for party, scores in values["scores"].items()
        for name, value in scores.items()
        if isinstance(value, int | float)
    ]
    for line in result["convergence"]:
        if line["arm"] == arm:
            series = f"{line['part']}.{parties[line['holder']]}"
            out += [
                (f"{series}.{key}", float(line[key]), int(line["step"]))
                for key in ("deviance", "loss")
                if line.get(key) is not None
            ]
    return out


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def page(runs: Path, uri: str | None, port: int) -> str:
    """The address at which MLflow's page shows the experiment's runs."""
    from mlflow.tracking import MlflowClient

    with _quiet():
        where = address(runs, uri)
        place = _experiment(MlflowClient(tracking_uri=where), where)
    return f"http://127.0.0.1:{port}/#/experiments/{place}/runs"


def serve(runs: Path, uri: str | None, port: int) -> int:
    """MLflow's page for these runs, on this machine alone, until Ctrl-C or SIGTERM. Returns its
    exit code; none of its processes is left."""
    where = address(runs, uri)
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", where]
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    for way in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C
        signal.signal(way, signal.default_int_handler)
    with subprocess.Popen([*command, *options], start_new_session=True) as server:  # noqa: S603
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            _end_group(server)


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: in order, and after a while by force."""
    for way in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):  # all of them are gone
            os.killpg(server.pid, way)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(PATIENCE)
