"""`lab sweep`: an experiment over seeds and settings, each a run with all its arms.

A seed decides who holds which rows, which rows are kept for testing and what training draws, so
the spread over seeds is that of splits of one table, and says nothing of another table's rows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from federated.search.folder import SearchFolder
from federated.search.proposals import Settings
from federated.search.trials import varied, words, written
from federated.study.arms import Progress, perform
from federated.study.experiment import Experiment
from federated.study.result import NOTHING
from federated.study.run_folder import plain, try_folder
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError, LabError, ModelError
from lab.report.figures_search import spread
from lab.report.tracking import address
from secure_agg.errors import SecureAggError

#: Runs of a sweep, at most.
MOST_RUNS = 1_000


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep. scores: the headline score on all test rows by arm; reason: why there are
    none."""

    settings: Settings
    seed: int
    scores: dict[str, float]
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Swept:
    """What a sweep found, over all its runs."""

    experiment: Experiment
    runs: list[SweptRun]
    kept: SearchFolder

    @property
    def judged(self) -> str:
        """Which rows the scores are of."""
        data = self.experiment.data
        held_out = data.test or data.test_rows or data.test_column
        return "on test rows" if held_out else "in sample"

    @property
    def folder(self) -> Path:
        return self.kept.path

    def log(self, runs: Path, uri: str | None) -> str:
        """Log to MLflow; returns what to tell."""
        return self.kept.log(address(runs, uri))

    @property
    def table(self) -> pd.DataFrame:
        """settings, arm, seeds, mean, spread, low, high: over seeds, a row for each arm and for the
        federated one minus each other.

        spread is the standard deviation; low and high are the 95 % interval of the mean by
        Student's t, differences paired by seed. Not numbers where there is one seed.
        """
        rows: list[dict[str, Any]] = []
        for settings in _distinct(self.runs):
            runs = [run.scores for run in self.runs if run.settings == settings and run.scores]
            series = {
                arm: [scores[arm] for scores in runs if arm in scores]
                for arm in dict.fromkeys(arm for scores in runs for arm in scores)
            }
            rows += [
                {"settings": words(settings), "arm": arm} | _over_seeds(values)
                for arm, values in (series | _differences(runs)).items()
            ]
        columns = ["settings", "arm", "seeds", "mean", "spread", "low", "high"]
        return pd.DataFrame(rows, columns=columns)

    def result(self) -> dict[str, Any]:
        """As ``result.json``: rows for each run, the table, metrics of the whole."""
        table = self.table.to_dict("records")
        result = {
            "kind": "sweep",
            "experiment": self.experiment.model_dump(mode="json"),
            "headline": self.experiment.headline,
            "judged": self.judged,
            "table": table,
            "rows": [
                {
                    "name": words({"seed": run.seed} | run.settings),
                    "settings": {"seed": run.seed} | run.settings,
                    "metrics": run.scores | {"seconds": run.seconds},
                    "reason": run.reason,
                }
                for run in self.runs
            ],
            "metrics": {
                " ".join([row["arm"], row["settings"]]).strip(): row["mean"] for row in table
            },
            "files": ["figure.svg"],
        }
        return plain(result)  # type: ignore[no-any-return]


def _distinct(runs: Sequence[SweptRun]) -> list[Settings]:
    settings: list[Settings] = []
    for run in runs:
        if run.settings not in settings:
            settings.append(run.settings)
    return settings


def _differences(runs: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Federated minus each other arm, of the seeds that have both."""
    others = dict.fromkeys(arm for scores in runs for arm in scores if arm != "federated")
    pairs = {
        f"federated minus {arm}": [
            _rounded(scores["federated"] - scores[arm])
            for scores in runs
            if {arm, "federated"} <= scores.keys()
        ]
        for arm in others
    }
    return {name: values for name, values in pairs.items() if values}


def _rounded(difference: float) -> float:
    return 0.0 if abs(difference) < NOTHING else difference


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and the interval of the mean by Student's t.

    >>> {name: round(value, 3) for name, value in _over_seeds([1.0, 2.0, 3.0]).items()}
    {'seeds': 3, 'mean': 2.0, 'spread': 1.0, 'low': -0.484, 'high': 4.484}
    """
    count, mean = len(values), float(np.mean(values))
    spread = float(np.std(values, ddof=1)) if count > 1 else float("nan")
    reach = float(stats.t.ppf(0.975, count - 1)) * spread / count**0.5 if count > 1 else spread
    return {
        "seeds": count,
        "mean": mean,
        "spread": spread,
        "low": mean - reach,
        "high": mean + reach,
    }


def sweep(
    experiment: Experiment,
    vary: Mapping[str, Sequence[Any]],
    *,
    seeds: int,
    runs: Path,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Swept:
    """Run an experiment for each combination of the values that keys take, over so many seeds, from
    its own on. Simulated parties alone take part; its questions are not asked, and no report is
    written. A sweep that ended early goes on where it was; more seeds may be given.

    vary: values by dotted key. Raises :class:`LabError`, before anything runs for what no run can
    be.
    """
    try_folder(runs)
    if "seed" in vary:
        raise ConfigurationError(
            "sweep: seeds are counted by --seeds, from that of the experiment on"
        )
    points = [dict(zip(vary, values, strict=True)) for values in product(*vary.values())]
    if not points or len(points) * seeds > MOST_RUNS:
        raise ConfigurationError(
            f"sweep: takes from 1 to {MOST_RUNS:,} runs, these are {len(points) * seeds:,}"
        )
    own = [experiment.seed + k for k in range(seeds)]
    planned = [(point, seed, _run_of(experiment, point, seed)) for point in points for seed in own]
    digests = {_data(run): "" for *_, run in planned}
    for *_, run in planned:
        digests[_data(run)] = digests[_data(run)] or SimulatedMarket(run).digest
    base = written(experiment, {"arms.replicates": 0, "seed": 0})
    folder = SearchFolder(runs, "sweep", experiment.name, [base, points, sorted(digests.items())])
    done = []
    for number, (point, seed, run) in enumerate(planned, start=1):
        if progress:
            progress("runs", words({"seed": seed} | point), number, len(planned))
        line = folder.get("run", {"seed": seed} | point)
        if line is None:
            line = folder.add("run", {"seed": seed} | point, _performed(run, workers))
        done.append(SweptRun(point, seed, line["scores"], line["seconds"], line["reason"]))
    swept = Swept(experiment, done, folder)
    if not any(run.scores for run in done):
        raise ModelError(f"sweep: no run has a score; the first failed because: {done[0].reason}")
    folder.replace("figure.svg", spread(swept.result()))
    folder.finish(swept.result())
    return swept


def _run_of(experiment: Experiment, point: Settings, seed: int) -> Experiment:
    where = f"sweep, run of {words({'seed': seed} | point)}"
    return varied(experiment, {**point, "seed": seed, "arms.replicates": 0}, where)


def _data(experiment: Experiment) -> str:
    """What decides which table is read."""
    return experiment.model_dump_json(include={"data", "joined"})


def _performed(experiment: Experiment, workers: int | None) -> dict[str, Any]:
    """A run's scores by arm, or why it has none."""
    start, scores, reason = time.perf_counter(), {}, ""
    try:
        study = perform(experiment, workers=workers)
        column = study.scores[study.headline]
        whole = {arm: float(column[arm, "all"]) for arm in study.arms if (arm, "all") in column}
        scores = {arm: value for arm, value in whole.items() if isfinite(value)}
    except (LabError, SecureAggError) as error:
        reason = str(error)
    if not scores and not reason:
        reason = "no arm has a score on all test rows"
    return {"scores": scores, "seconds": time.perf_counter() - start, "reason": reason}
