"""Scoring models on test rows: a party scores its own rows for itself, a federation the market's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from federated.experiment import Experiment
from federated.features import is_category
from federated.federation import Federation
from federated.parties import Market
from lab import scoring
from lab.features import Feature, Levels
from lab.glm import Task
from lab.sums import Sums, combine

#: Where numeric features are cut for the table of actual against expected, in standard deviations.
CUTS = (-1.5, -0.5, 0.5, 1.5)
Ask = Callable[..., Sums]


@dataclass(frozen=True)
class Evaluation:
    """Opened totals of one model on one set of rows."""

    fit: Sums
    lorenz: Sums
    levels: dict[str, tuple[tuple[str, ...], Sums]]

    @property
    def scores(self) -> scoring.Scores:
        return scoring.scores(self.fit, self.lorenz)


def _cuts(values: pd.Series) -> tuple[float, ...]:
    """Two significant digits around the mean; a column of two values is cut between them."""
    low, high = float(values.min()), float(values.max())
    if values.isin((low, high)).all():
        return ((low + high) / 2,)
    mean, deviation = float(values.mean()), float(values.std())
    cuts = {float(f"{mean + c * deviation:.2g}") for c in CUTS}
    return tuple(sorted(c for c in cuts if low < c < high)) or (mean,)


class Scorer:
    """Scores models on test rows: a party's own rows are scored at that party, in the clear and
    for itself; the whole market's totals go through the federation where there is one."""

    def __init__(self, experiment: Experiment, market: Market, ones: dict[str, Federation]) -> None:
        self.experiment, self.market, self.ones = experiment, market, ones
        self.tasks: dict[str, Task] = dict(experiment.tasks())
        if "severity" in self.tasks:
            self.tasks["pure premium"] = experiment.premium_task()
        self.constants = {part: self._constant(task) for part, task in self.tasks.items()}
        self.by_level = self._features_by_level()

    def _constant(self, task: Task) -> float:
        """The mean of all training rows for one unit of exposure: the model that explains nothing."""
        text = task.model_dump_json()
        totals = combine([one.sum("means", task=text, part="train") for one in self.ones.values()])
        return totals.total("target") / totals.total("exposure")

    def _features_by_level(self) -> dict[str, tuple[Levels, ...]]:
        """Each feature as levels: its own, or intervals around the mean in standard deviations."""
        market = self.market
        found = {}
        for part, features in market.features.items():
            terms = []
            for f in features:
                if is_category(f, market.contract):
                    values = pd.concat([f.texts(p.train) for p in market.parties])
                    levels = (
                        f.intervals()
                        if f.cut
                        else (
                            market.contract.columns[f.column].levels
                            or tuple(sorted(values.dropna().astype(str).unique()))
                        )
                    )
                    terms.append(Levels(feature=f, levels=tuple(levels)))
                elif not f.ordinal:
                    values = pd.concat([p.train[f.column] for p in market.parties])
                    cut = Feature(column=f.column, cut=_cuts(values))
                    terms.append(Levels(feature=cut, levels=cut.intervals()))
            found[part] = tuple(terms)
        if "severity" in market.features:
            found["pure premium"] = found["frequency"]
        return found

    def alone(self, models: dict[str, dict[str, str]]) -> dict[str, dict[str, Evaluation]]:
        """Every party's own model on its own test rows, and all of them together; by part."""
        evaluations = {}
        for part in self.tasks:
            own = {name: texts[part] for name, texts in models.items()}
            asks = {name: self._ask(part, {name: text}) for name, text in own.items()}
            if len(own) == len(self.ones):
                asks = {"all": self._ask(part, own), **asks}
            evaluations[part] = {name: self._evaluate(part, ask) for name, ask in asks.items()}
        return evaluations

    def shared(
        self, model: dict[str, str], federation: Federation | None
    ) -> dict[str, dict[str, Evaluation]]:
        """One model on everybody's test rows; ``federation`` gives the market's totals."""
        evaluations = {}
        for part, task in self.tasks.items():
            asks = {name: self._ask(part, {name: model[part]}) for name in self.ones}
            everybody = self._ask(part, dict.fromkeys(self.ones, model[part]))
            if federation is not None:
                text = task.model_dump_json()
                everybody = partial(federation.sum, model=model[part], task=text)
            asks = {"all": everybody, **asks}
            evaluations[part] = {name: self._evaluate(part, ask) for name, ask in asks.items()}
        return evaluations

    def _ask(self, part: str, models: dict[str, str]) -> Ask:
        """Totals over these parties, each with its model, taken at each party for itself."""
        task = self.tasks[part].model_dump_json()

        def ask(statistic: str, arrays: Any = None, **arguments: Any) -> Sums:
            return combine(
                [
                    self.ones[name].sum(statistic, arrays, model=text, task=task, **arguments)
                    for name, text in models.items()
                ]
            )

        return ask

    def _evaluate(self, part: str, ask: Ask) -> Evaluation:
        experiment = self.experiment
        fit = ask(
            "score_fit",
            constant=self.constants[part],
            replicates=experiment.arms.replicates,
            seed=experiment.seed,
        )
        coarse = ask("score_lorenz", {"edges": scoring.GRID})
        edges = scoring.finer_edges(coarse, scoring.GRID)
        lorenz = ask("score_lorenz", {"edges": np.asarray(edges)})
        levels = {
            term.feature.column: (
                term.levels,
                ask("score_levels", feature=term.model_dump()),
            )
            for term in self.by_level[part]
        }
        return Evaluation(fit, lorenz, levels)
