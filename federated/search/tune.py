"""`lab tune`: the settings of an experiment's model that do best in federated cross-validation.

A nested loop says what the whole procedure is worth: the score of chosen settings over the folds
they were chosen by is too good, the more so the more were tried (Cawley & Talbot, "On over-fitting
in model selection", JMLR 2010).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federated.search.cross_validation import (
    ALL,
    Cost,
    Search,
    Trial,
    best,
    check_all_folds,
    ratio,
)
from federated.search.folder import SearchFolder
from federated.search.trials import check_trials, written
from federated.study.arms import Progress
from federated.study.experiment import Experiment
from federated.study.run_folder import plain, try_folder
from federated.study.settings import Tune
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError
from lab.models.files import digest
from lab.records import set_key
from lab.report.page import toml
from lab.report.tracking import address


@dataclass(frozen=True)
class Tuned:
    """What a search came to. trials: the experiment's own settings first; nested: for each outer
    fold, what the search without it chose, judged on it; file: the best as an experiment."""

    experiment: Experiment
    origin: str
    trials: list[Trial]
    nested: list[Trial]
    judged: list[Trial]  # all of them, those without an outer fold too
    kept: SearchFolder
    file: Path

    @property
    def folder(self) -> Path:
        return self.kept.path

    def log(self, runs: Path, uri: str | None) -> str:
        """Log to MLflow; returns what to tell."""
        return self.kept.log(address(runs, uri))

    @property
    def best(self) -> int:
        """The place of the trial with the best score, the first of several."""
        return best(self.trials)

    @property
    def nested_score(self) -> float | None:
        """The score of the whole procedure on rows that it has not seen."""
        return ratio([fold for each in self.nested for fold in each.folds]) if self.nested else None

    @property
    def toml(self) -> str:
        """The best settings as they are pasted into the file."""
        tables: dict[str, Any] = {}
        for key, value in self.trials[self.best].settings.items():
            set_key(tables, key, value)
        return toml(tables)

    def result(self) -> dict[str, Any]:
        """As ``result.json``: rows for each trial, and metrics of the whole."""
        best = self.trials[self.best]
        metrics = {"best": best.score, "own": self.trials[0].score, "nested": self.nested_score}
        result = {
            "kind": "tune",
            "experiment": self.experiment.model_dump(mode="json"),
            "data": self.origin,
            "headline": self.experiment.headline,
            "rows": [_row(f"trial {k}", trial) for k, trial in enumerate(self.trials)],
            "nested": [_row(f"outer fold {k + 1}", each) for k, each in enumerate(self.nested)],
            "best": {"trial": self.best, "settings": best.settings, "score": best.score},
            "metrics": {k: v for k, v in metrics.items() if v is not None},
            "cost": {
                "fits": sum(len(t.folds) for t in self.judged),
                "seconds": sum(t.seconds for t in self.judged),
                "totals": sum(t.totals for t in self.judged),
                "bytes": sum(t.bytes for t in self.judged),
                "opened": sum(t.numbers for t in self.judged),
            },
            "files": [self.file.name],
        }
        return plain(result)  # type: ignore[no-any-return]


def _row(name: str, trial: Trial) -> dict[str, Any]:
    metrics = {} if trial.reason else {"score": trial.score, "error": trial.error}
    return {
        "name": name,
        "settings": trial.settings,
        "metrics": metrics | {"seconds": trial.seconds},
        "folds": [ratio([fold]) for fold in trial.folds],
        "reason": trial.reason,
    }


def tune(
    experiment: Experiment,
    *,
    runs: Path,
    workers: int | None = None,
    progress: Progress | None = None,
    told: Callable[[Cost], None] | None = None,
) -> Tuned:
    """Search what ``[tune]`` of an experiment lists, and score each trial over folds by persons.

    Simulated parties alone take part. told: called before the first fit, and again after it with
    what it took. A search that ended early goes on where it was; ``trials`` may be raised. Raises
    :class:`LabError`.
    """
    settings = _searched(experiment)
    check_trials(experiment, settings)
    try_folder(runs)
    market = SimulatedMarket(experiment)
    check_all_folds(market, settings)
    base = written(market.experiment, {"arms.replicates": 0})
    search_values = settings.model_dump(mode="json", exclude={"trials"})
    folder = SearchFolder(runs, "tune", experiment.name, [base, search_values, market.digest])
    cores = workers or os.cpu_count() or 1
    search = Search(
        market, Experiment.model_validate(base), settings, folder, cores, progress, told
    )
    if told and search.left:
        told(Cost(search.left, len(folder)))
    nested = [search.outer_fold(at) for at in range(settings.outer or 0)]
    trials = search.trials(ALL, market.parties)
    chosen = trials[best(trials)].settings
    values = written(experiment, chosen) | {"name": f"{experiment.name}, tuned"}
    file = folder.write(f"best-{digest(repr(chosen))[:8]}.toml", toml(values))
    judged = list(search.judged.values())
    tuned = Tuned(experiment, market.origin, trials, nested, judged, folder, file)
    folder.finish(tuned.result())
    return tuned


def _searched(experiment: Experiment) -> Tune:
    """The table of what is searched. Raises ConfigurationError where there can be no search."""
    if experiment.tune is None:
        raise ConfigurationError(
            "tune: the experiment has no [tune.vary]; list what varies there, as "
            '"model.ridge" = { low = 1e-6, high = 1.0, log = true }'
        )
    if experiment.joined:
        raise ConfigurationError(
            "tune: joined sides can't be searched, because folds of their common persons would need a "
            "new alignment each; compare settings by `lab sweep`"
        )
    return experiment.tune
