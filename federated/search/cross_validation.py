"""Trials of settings in federated cross-validation, each fitted once in the life of its folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite, nan

import numpy as np

from federated.party.party import Party
from federated.search.folder import Line, SearchFolder
from federated.search.folds import check_folds, fold_fit, parts
from federated.search.proposals import Proposals, Settings
from federated.search.trials import values_of, varied, words
from federated.study.arms import Progress
from federated.study.experiment import Experiment
from federated.study.settings import Tune
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError, LabError, ModelError
from secure_agg.errors import SecureAggError

#: The place of trials over all training rows, and the words by which folds are drawn.
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
        return None if self.reason else ratio(self.folds)

    @property
    def error(self) -> float:
        """The standard error of the score over folds; not a number for one fold."""
        values = [ratio([fold]) for fold in self.folds]
        return float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else nan


def ratio(folds: Sequence[tuple[float, float]]) -> float:
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


def best(trials: Sequence[Trial]) -> int:
    """The place of the best score, the first of several. Raises ModelError without any."""
    scores = [-np.inf if trial.score is None else trial.score for trial in trials]
    if max(scores) == -np.inf:
        raise ModelError(
            f"tune: no trial has a score; the first failed because: {trials[0].reason}"
        )
    return int(np.argmax(scores))


def check_all_folds(market: SimulatedMarket, tune: Tune) -> None:
    """Refuse folds, outer or inner, in which too few persons are judged or fitted."""
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
    judged: dict[tuple[str, str], Trial] = field(default_factory=dict, init=False)

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
            trial = self._judged(place, settings, cuts, lambda at: parts(parties, cuts, at, FOLDS))
            proposals.tell(trial.score)
            if trial.settings not in [each.settings for each in trials]:
                trials.append(trial)
        return trials

    def outer_fold(self, at: int) -> Trial:
        """The whole procedure without an outer fold, judged on it."""
        count = self.tune.outer or 0
        parties = parts(self.market.parties, count, at, OUTER)
        trials = self.trials(f"without outer fold {at + 1} of {count}", parties)
        chosen = trials[best(trials)].settings
        judged = self._judged(f"outer fold {at + 1} of {count}", chosen, 1, lambda _: parties)
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
        return self.judged.setdefault((place, repr(settings)), Trial(settings, folds, **values))

    def _fitted(
        self, place: str, trial: Experiment, count: int, cut: Callable[[int], list[Party]]
    ) -> Line:
        """A trial's fits, until one fails."""
        fits, reason = [], ""
        for at in range(count):
            if self.watch:
                self.watch(place, "fits", self.fits + 1, self.fits + self.left)
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
        if not reason and not isfinite(ratio(folds)):
            reason = "its score is not a number"
        return {"folds": folds, "reason": reason, **sums}

    @property
    def left(self) -> int:
        """Fits that are still to be made, at most."""
        return max(self.planned - self.fits, 0)
