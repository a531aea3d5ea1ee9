"""A run on disk: one folder that holds all of it, written whole or not at all; MLflow gets a copy."""

from __future__ import annotations

import json
import math
import platform
import re
import secrets
import shutil
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lab.errors import ConfigurationError
from lab.models.design import Feature
from lab.report import page as report
from lab.report import tracking
from lab.scores import accuracy as scoring
from lab.scores import detection, groups
from lab.text import slugs

if TYPE_CHECKING:
    from federated.study.result import ArmResult, Study
    from federated.study.rows import StudiedMarket
    from federated.study.scoring import Detected
    from federated.study.settings import Query

PACKAGES = (
    "insurance-privacy-lab",
    "flwr",
    "torch",
    "phe",
    "pandas",
    "scikit-learn",
    "mlflow",
    "numpy",
)
#: A file of this name in a run's folder holds the id of its MLflow run.
LOGGED = "mlflow_run_id"


def try_folder(runs: Path) -> None:
    """Raises ConfigurationError unless a run can be written here, before there is one to lose."""
    trial = runs / f".{secrets.token_hex(4)}"
    try:
        trial.mkdir(parents=True)
        trial.rmdir()
    except OSError as error:
        raise ConfigurationError(
            f"{runs}: a run cannot be written there: {error.strerror}; choose another folder"
        ) from None


def keep(study: Study, runs: Path, *, tracking_uri: str | None, track: bool) -> None:
    """Write the run's folder, then log it; a tracking server that fails is told and costs nothing."""
    name = re.sub(r"[^a-z0-9]+", "-", study.experiment.name.lower()).strip("-") or "run"
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = runs.resolve() / f"{stamp}-{name[:40]}-{secrets.token_hex(2)}"
    draft = folder.with_name(f".{folder.name}")
    try:
        (draft / "models").mkdir(parents=True)
        result = summary(study) | {"folder": folder.name, "date": _now()}
        _write(draft, study, result)
        draft.rename(folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise ConfigurationError(f"{runs}: the run cannot be written: {error.strerror}") from None
    study.folder = folder
    if track:
        study.tracking = log(folder, tracking.address(runs, tracking_uri))


def _now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def log(folder: Path, uri: str) -> str:
    """Log a kept run to MLflow and note its id. Returns what to tell the user."""
    try:
        identity, registered = tracking.log(folder, uri)
    except Exception as error:  # whatever the tracking server does, the run is kept
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        return f"not logged to MLflow at {public(uri)} ({reason}); 'lab runs --send' tries again"
    (folder / LOGGED).write_text(identity)
    return f"MLflow run {identity}" + (f", {registered}" if registered else "")


def public(uri: str) -> str:
    """A tracking address without a password."""
    return re.sub(r"//[^@/]*@", "//", uri)


def _write(folder: Path, study: Study, result: dict[str, Any]) -> None:
    for arm in study.arms.values():
        names = slugs(holder for holder in arm.models if holder != "all")
        for holder, parts in arm.models.items():
            if study.part in parts:
                name = arm.name if holder == "all" else f"{arm.name}-{names[holder]}"
                (folder / "models" / f"{name}.json").write_text(parts[study.part].file)
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "result.json").write_text(text, encoding="utf-8")
    for name, data in study.evidence.items():
        (folder / name).write_bytes(data)
    study.receipt.to_csv(folder / "receipt.csv", index=False)
    (folder / "report.html").write_text(report.render(result), encoding="utf-8")


def kept(runs: Path) -> list[dict[str, Any]]:
    """Runs in a folder, newest first: folder, name, end (local time), headline and its scores by arm,
    bytes on disk, MLflow's id if it is logged, and the beginning of its name that no other has."""
    runs_in_folder: list[dict[str, Any]] = []
    for path in sorted(runs.glob("[0-9]*/result.json"), reverse=True):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            scores = {a: v["scores"].get("all", {}) for a, v in result["arms"].items()}
        except (OSError, ValueError, KeyError):
            continue  # a folder of something else
        runs_in_folder.append(
            {
                "folder": path.parent,
                "name": result["experiment"]["name"],
                "end": datetime.fromtimestamp(path.stat().st_mtime).isoformat(" ", "minutes"),
                "headline": result["headline"],
                "scores": {a: s.get(result["headline"]) for a, s in scores.items()},
                "bytes": sum(f.stat().st_size for f in path.parent.rglob("*") if f.is_file()),
                "logged": _logged(path.parent),
            }
        )
    names = [item["folder"].name for item in runs_in_folder]
    for item in runs_in_folder:
        item["short"] = _beginning(item["folder"].name, names)
    return runs_in_folder


def _beginning(name: str, names: list[str]) -> str:
    """As much of a run's name as tells it from the others, its date and time at least."""
    least = len("20261129-131057")
    lengths = range(least, len(name))
    return next(
        (name[:n] for n in lengths if sum(x.startswith(name[:n]) for x in names) == 1), name
    )


def _logged(folder: Path) -> str | None:
    path = folder / LOGGED
    return path.read_text() if path.exists() else None


def finished(runs: Path, name: str) -> Path:
    """The folder of a finished run by its name, or by a beginning that no other has.

    Raises :class:`ConfigurationError`.
    """
    names: list[str] = [item["folder"].name for item in kept(runs)]
    matches = [each for each in names if each == name] or [n for n in names if n.startswith(name)]
    if len(matches) == 1 and name:
        return runs / matches[0]
    trouble = f"{len(matches)} runs begin so" if matches else "no such run"
    raise ConfigurationError(f"{runs / name}: {trouble}; `lab runs` lists them by name")


def remove(folder: Path) -> None:
    """Delete a finished run: gone at once, whatever happens while its files are deleted."""
    aside = folder.with_name(f".{folder.name}")
    folder.rename(aside)
    shutil.rmtree(aside)


def summary(study: Study) -> dict[str, Any]:
    """The run as one JSON-able table; its form is documented in the README."""
    arms: dict[str, Any] = {}
    for arm in study.arms.values():
        entry: dict[str, Any] = {"scores": _scores(study, arm.name, study.part)}
        entry |= _models(study, arm.name, study.part)
        if len(study.parts) > 1:
            entry["parts"] = {
                part: {"scores": _scores(study, arm.name, part), **_models(study, arm.name, part)}
                for part in study.parts
            }
        entry |= {"failures": arm.failures, "notes": arm.notes}
        entry["seconds"] = round(arm.seconds, 3)
        arms[arm.name] = entry
    receipt = study.receipt
    result = {
        "experiment": study.experiment.model_dump(mode="json"),
        "data": _data(study.market),
        "headline": study.headline,
        "notices": study.notices,
        **({"run": study.run, "outlook": list(map(vars, study.outlook))} if study.run else {}),
        "arms": arms,
        "differences": _records(study.differences),
        "joining": _records(study.joining),
        "worth": _records(study.worth),
        "told": _records(pd.DataFrame(study.market.told)),
        "convergence": _records(study.convergence),
        "curves": {arm.name: _curves(study, arm.name) for arm in study.arms.values()},
        "answers": [_answer(query, answer) for query, answer in study.answers],
        **({"not_run": study.not_run} if study.not_run else {}),
        **({"unanswered": study.unanswered} if study.unanswered else {}),
        "receipt": _records(receipt),
        "receipt_totals": _receipt_totals(study),
        "opened": [vars(line) for line in study.opened],
        "seconds": {k: round(v, 3) for k, v in study.seconds.items()},
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }
    return plain(result)  # type: ignore[no-any-return]


def _data(market: StudiedMarket) -> dict[str, Any]:
    """Where rows come from, the columns that models read, those that the fund holds, rows of each party."""
    columns = {c: market.contract.columns[c] for c in market.inputs}
    return {
        "origin": market.origin,
        "digest": market.digest,
        "contract": market.contract.name,
        "in_sample": market.in_sample,
        "inputs": {name: column.type for name, column in columns.items()},
        "fund_columns": [name for name, column in columns.items() if column.holder == "fund"],
        "features": {part: [f.name for f in each] for part, each in market.features.items()},
        "unused": market.unused,
        "parties": market.sizes,
    }


def _scores(study: Study, arm: str, part: str) -> dict[str, Any]:
    evaluations = study.arms[arm].evaluations.get(part, {})
    return {
        holder: {
            **study.scored(e),
            "deviance_total": float(e.fit["deviance"][0]),
            "actual": float(e.fit["actual"][0]),
            "expected": float(e.fit["expected"][0]),
            "exposure": float(e.fit["size"][0]),
        }
        for holder, e in evaluations.items()
    }


def _models(study: Study, arm: str, part: str) -> dict[str, Any]:
    """Fits and hashes: one for a shared model, one for each party where every party has its own."""
    models = {h: parts[part] for h, parts in study.arms[arm].models.items() if part in parts}
    fits = {h: m.fit.record() for h, m in models.items() if m.fit is not None}
    hashes = {h: m.hash for h, m in models.items()}
    if "all" in models:
        importance = _importance(study.arms[arm], models["all"].model, part)
        return {"fit": fits.get("all"), "model_hash": hashes["all"], "importance": importance}
    return {"fits": fits, "model_hashes": hashes}


def _importance(arm: ArmResult, model: Any, part: str) -> dict[str, float] | None:
    """How much the model goes by each column; None for a model that does not say."""
    if not hasattr(model, "importance"):
        return None
    evaluation = arm.evaluations.get(part, {}).get("all")
    levels = evaluation.levels if evaluation else {}
    exposures = {
        column: dict(zip(names, sums["size"].tolist(), strict=True))
        for column, (names, sums) in levels.items()
    }
    sizes: dict[str, float] = model.importance(exposures)
    return sizes


def _curves(study: Study, arm: str) -> dict[str, Any]:
    evaluation = study.arms[arm].evaluations.get(study.part, {}).get("all")
    if evaluation is None:
        return {}
    lorenz = evaluation.lorenz
    x, y = scoring.lorenz_curve(lorenz) if lorenz else (np.zeros(0), np.zeros(0))
    levels = {
        column: {
            "levels": list(names),
            **{k: sums[k].tolist() for k in ("size", "actual", "expected")},
        }
        for column, (names, sums) in evaluation.levels.items()
    }
    return {
        "lorenz": {"exposure": x.tolist(), "target": y.tolist()},
        "tenths": _records(scoring.deciles(lorenz).reset_index()) if lorenz else [],
        "levels": levels,
        "explained": [
            {"feature": column} | each.curves(evaluation.fit)
            for column, each in evaluation.explained.items()
        ],
        "pairs": [pair.drawn for pair in evaluation.pairs],
        "detection": None
        if evaluation.detected is None
        else _detection(study, evaluation.detected),
    }


def _detection(study: Study, detected: Detected) -> dict[str, Any]:
    """What is drawn of a fraud detector: curves, tenths, groups and kinds of fraud."""
    precision, recall = detection.precision_recall(detected.rank)
    share, lift = detection.lift_curve(detected.rank)
    settings = study.experiment.detection
    kind = settings.typology if settings else None
    return {
        "precision": precision.tolist(),
        "recall": recall.tolist(),
        "share": share.tolist(),
        "lift": lift.tolist(),
        "tenths": _records(detection.calibration(detected.rank).reset_index()),
        "typologies": _records(
            groups.by_typology(detected.groups[kind][1], detected.groups[kind][0]).reset_index()
            if kind in detected.groups
            else pd.DataFrame()
        ),
        "groups": {
            column: _records(groups.fairness(sums, levels).reset_index())
            for column, (levels, sums) in detected.groups.items()
            if column != kind
        },
    }


def _answer(query: Query, answer: pd.DataFrame) -> dict[str, Any]:
    """A question and its answer: the table as columns and rows, and what is to know of it."""
    from federated.study.result import with_names

    attributes = {str(k): v for k, v in answer.attrs.items() if k != "receipt"}
    table = with_names(answer)
    attributes["columns"] = [str(name) for name in table.columns]
    attributes["rows"] = table.astype(object).to_numpy().tolist()
    receipt = answer.attrs["receipt"]
    volume = {k: sum(line[k] for line in receipt) for k in ("values", "bytes")}
    return {"title": query.title, **attributes, "left": {"messages": len(receipt), **volume}}


def _hiding(study: Study) -> list[str]:
    """How sums were hidden where no party shows its receipt."""
    return [study.experiment.protection.sums] if study.run else []


def _receipt_totals(study: Study) -> dict[str, Any]:
    lines = [line for receipt in study.receipts.values() for line in receipt]
    return {
        "parties": len(study.receipts),
        "messages": len(lines),
        "arrays": sum(line.arrays for line in lines),
        "values": sum(line.values for line in lines),
        "bytes": sum(line.bytes for line in lines),
        "hiding": sorted({line.hiding for line in lines}) or _hiding(study),
        "key_bits": max((line.key_bits for line in lines), default=0),
        "key": study.experiment.protection.key,
        "silent": len({party for party, _ in study.silent}),
        "raw_records": 0,
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]


def plain(value: Any) -> Any:
    """JSON's own types; a number that is not finite becomes null."""
    match value:
        case dict():
            return {str(k): plain(v) for k, v in value.items()}
        case list() | tuple():
            return [plain(v) for v in value]
        case Feature():
            return plain(value.model_dump())
        case pd.Interval():
            return str(value)
        case bool() | str() | None:
            return value
        case _ if hasattr(value, "item"):
            return plain(value.item())
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value
