"""`lab tune`: the settings of an experiment's model that do best in federated cross-validation.

A nested loop says what the whole procedure is worth: the score of chosen settings over the folds
they were chosen by is too good, the more so the more were tried (Cawley & Talbot, "On over-fitting
in model selection", JMLR 2010).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from federated.party.party import Party
from federated.search.folder import Line, SearchFolder
from federated.search.folds import check_folds, fold_fit, parts
from federated.search.proposals import Proposals, Settings
from federated.search.trials import check_trials, values_of, varied, words, written
from federated.study.arms import Progress
from federated.study.experiment import Experiment
from federated.study.run_folder import try_folder
from federated.study.settings import Tune
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError, LabError, ModelError
from lab.models.files import digest
from lab.report.page import toml
from secure_agg.errors import SecureAggError

#: The place of trials over all training rows, and the word by which folds within it are drawn.
ALL, FOLDS, OUTER = "all training rows", "cross-validation", "nested cross-validation"


@dataclass(frozen=True)
class Trial:
    """Settings and what they came to. folds: (gain, size) of each, as in
    :class:`~federated.search.folds.FoldFit`; reason: why there is no score."""

    settings: Settings
    folds: tuple[tuple[float, float], ...]
    seconds: float
    totals: int
    bytes: int
    numbers: int
    reason: str = ""

    @property
    def score(self) -> float | None:
        """The headline score over all folds; None where there is none."""
        return None if self.reason else _ratio(self.folds)

    @property
    def error(self) -> float:
        """The standard error of the score over folds; not a number for one fold."""
        values = [_ratio([fold]) for fold in self.folds]
        return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else nan


def _ratio(folds: Sequence[tuple[float, float]]) -> float:
    """Gains over sizes."""
    size = sum(size for _, size in folds)
    return sum(gain for gain, _ in folds) / size if size else nan


@dataclass(frozen=True)
class Cost:
    """What a search costs from here on. fits: to be made, at most; kept: trials that are there
    already; seconds, totals: of one fit, once one was made."""

    fits: int
    kept: int
    seconds: float | None = None
    totals: int | None = None


@dataclass(frozen=True)
class Tuned:
    """What a search came to. trials: the experiment's own settings first; nested: for each outer
    fold, what the search without it chose, judged on it; file: the best as an experiment."""

    experiment: Experiment
    origin: str
    headline: str
    trials: list[Trial]
    nested: list[Trial]
    folder: Path
    file: Path
    tracking: str = ""

    @property
    def best(self) -> int:
        """The place of the trial with the best score, the first of several."""
        return _best(self.trials)

    @property
    def nested_score(self) -> float | None:
        """The score of the whole procedure on rows that it has not seen."""
        return _ratio([fold for each in self.nested for fold in each.folds]) if self.nested else None

    @property
    def toml(self) -> str:
        """The best settings as they are pasted into the file."""
        nested: dict[str, Any] = {}
        for key, value in self.trials[self.best].settings.items():
            *path, last = key.split(".")
            table = nested
            for part in path:
                table = table.setdefault(part, {})
            table[last] = value
        return toml(nested)

    def result(self) -> dict[str, Any]:
        """As ``result.json``: rows for each trial, and metrics of the whole."""
        best = self.trials[self.best]
        metrics = {"best": best.score, "own": self.trials[0].score, "nested": self.nested_score}
        whole = [*self.trials, *self.nested]
        return {
            "kind": "tune",
            "experiment": self.experiment.model_dump(mode="json"),
            "data": self.origin,
            "headline": self.headline,
            "rows": [_row(f"trial {k}", trial) for k, trial in enumerate(self.trials)],
            "nested": [_row(f"outer fold {k + 1}", each) for k, each in enumerate(self.nested)],
            "best": {"trial": self.best, "settings": best.settings, "score": best.score},
            "metrics": {k: v for k, v in metrics.items() if v is not None},
            "cost": {
                "fits": sum(len(t.folds) for t in whole),
                "seconds": sum(t.seconds for t in whole),
                "totals": sum(t.totals for t in whole),
                "bytes": sum(t.bytes for t in whole),
                "opened": sum(t.numbers for t in whole),
            },
            "files": [self.file.name],
        }


def _row(name: str, trial: Trial) -> dict[str, Any]:
    metrics = {} if trial.reason else {"score": trial.score, "error": trial.error}
    return {
        "name": name,
        "settings": trial.settings,
        "metrics": metrics | {"seconds": trial.seconds},
        "folds": [_ratio([fold]) for fold in trial.folds],
        "reason": trial.reason,
    }


def _best(trials: Sequence[Trial]) -> int:
    scores = [-np.inf if trial.score is None else trial.score for trial in trials]
    if max(scores) == -np.inf:
        raise ModelError(f"tune: no trial has a score; the first failed because: {trials[0].reason}")
    return int(np.argmax(scores))


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
    _check_all_folds(market, settings)
    base = written(market.experiment, {"arms.replicates": 0})
    folds = {"folds": settings.folds, "outer": settings.outer, "table": market.digest}
    folder = SearchFolder(runs, "tune", experiment.name, [base, folds])
    cores = workers or os.cpu_count() or 1
    search = Search(
        market, Experiment.model_validate(base), settings, folder, cores, progress, told
    )
    nested = [search.outer_fold(at) for at in range(settings.outer or 0)]
    trials = search.trials(ALL, market.parties)
    best = trials[_best(trials)].settings
    values = written(experiment, best) | {"name": f"{experiment.name}, tuned"}
    file = folder.write(f"best-{digest(words(best))[:8]}.toml", toml(values))
    headline = "average_precision" if experiment.detection else "deviance_explained"
    tuned = Tuned(experiment, market.origin, headline, trials, nested, folder.path, file)
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


def _check_all_folds(market: SimulatedMarket, tune: Tune) -> None:
    outer = tune.outer or 0
    if outer:
        check_folds(market, market.parties, outer, OUTER)
    for at in range(outer):
        check_folds(market, parts(market.parties, outer, at, OUTER), tune.folds, FOLDS)
    check_folds(market, market.parties, tune.folds, FOLDS)


@dataclass
class Search:
    """One search at work. base: the experiment without its ``[tune]``."""

    market: SimulatedMarket
    base: Experiment
    tune: Tune
    folder: SearchFolder
    workers: int
    watch: Progress | None = None
    told: Callable[[Cost], None] | None = None
    fits: int = field(default=0, init=False)  # made since it began
    planned: int = field(init=False)  # when it began, at most

    def __post_init__(self) -> None:
        outer, proposals = self.tune.outer or 0, Proposals(self.tune, self.base.seed).count
        whole = (1 + proposals) * self.tune.folds * (1 + outer) + outer
        self.planned = max(whole - self.folder.fits, 0)

    def trials(self, place: str, parties: Sequence[Party]) -> list[Trial]:
        """The experiment's own settings, then all that is proposed, each once."""
        cuts = self.tune.folds
        trials = [self._judged(place, {}, cuts, lambda at: parts(parties, cuts, at, FOLDS))]
        proposals = Proposals(self.tune, self.base.seed)
        for settings in proposals:
            trial = self._judged(
                place, settings, cuts, lambda at: parts(parties, cuts, at, FOLDS)
            )
            proposals.tell(trial.score)
            if trial.settings not in [each.settings for each in trials]:
                trials.append(trial)
        return trials

    def outer_fold(self, at: int) -> Trial:
        """The whole procedure without an outer fold, judged on it."""
        count = self.tune.outer or 0
        parties = parts(self.market.parties, count, at, OUTER)
        trials = self.trials(f"without outer fold {at + 1} of {count}", parties)
        best = trials[_best(trials)].settings
        judged = self._judged(f"outer fold {at + 1} of {count}", best, 1, lambda _: parties)
        if judged.reason:
            raise ModelError(f"tune: outer fold {at + 1} has no score: {judged.reason}")
        return judged

    def _judged(
        self, place: str, settings: Settings, count: int, cut: Callable[[int], list[Party]]
    ) -> Trial:
        """Settings over folds; read from the folder where they were tried before."""
        keys = tuple(self.tune.vary)
        try:
            trial = varied(self.base, settings, words(settings))
            settings = values_of(trial, keys)
        except ConfigurationError as error:  # of tpe, which nobody could foresee
            return Trial(settings, (), 0.0, 0, 0, 0, str(error))
        line = self.folder.get(place, settings)
        if line is None:
            line = self.folder.add(place, settings, self._fitted(place, trial, count, cut))
        values = {name: value for name, value in line.items() if name != "trial"}
        folds = tuple((gain, size) for gain, size in values.pop("folds"))
        return Trial(settings, folds, **values)

    def _fitted(
        self, place: str, trial: Experiment, count: int, cut: Callable[[int], list[Party]]
    ) -> Line:
        fits, reason = [], ""
        for at in range(count):
            self._tell(place)
            try:
                fits.append(fold_fit(self.market, trial, cut(at), self.workers))
            except (LabError, SecureAggError) as error:
                reason = f"fold {at + 1}: {error}"
                break
            self.fits += 1
            if self.fits == 1 and self.told:
                self.told(Cost(self.left, len(self.folder), fits[0].seconds, fits[0].totals))
        sums = {
            name: sum(asdict(fit)[name] for fit in fits)
            for name in ("seconds", "totals", "bytes", "numbers")
        }
        folds = [(fit.gain, fit.size) for fit in fits]
        if not reason and not isfinite(_ratio(folds)):
            reason = "its score is not a number"
        return {"folds": folds, "reason": reason, **sums}

    def _tell(self, place: str) -> None:
        if self.fits == 0 and self.told:
            self.told(Cost(self.left, len(self.folder)))
        if self.watch:
            self.watch(place, "fits", self.fits + 1, self.fits + self.left)

    @property
    def left(self) -> int:
        """Fits that are still to be made, at most."""
        return max(self.planned - self.fits, 0)
