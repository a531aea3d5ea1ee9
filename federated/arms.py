"""The arms of a study: each party alone, the federation, and the pool it is measured against.

An arm is a federation: *alone* has one party, *pooled* has one party that holds all rows. The
same solver runs in all three, so a difference between them is never an accident of code.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from flwr.serverapp import Grid

from federated import glm, grid
from federated.apps import client_app, server_app
from federated.experiment import Arm, Experiment, GLMModel, Market, market_of
from federated.features import agree, is_category
from federated.federation import Federation, single_threaded_blas
from federated.node import Party, Released
from federated.protection import Clear, KeyAuthority, Paillier, Protection
from lab import scoring
from lab.errors import ModelError
from lab.features import Feature, Levels
from lab.glm import Product, Task
from lab.models import digest
from lab.sums import Sums, combine

#: A difference in deviance explained that is rounding, not a difference.
NOTHING = 1e-12
#: Where numeric features are cut for the table of actual against expected, in standard deviations.
CUTS = (-1.5, -0.5, 0.5, 1.5)
#: Called with (arm, what is being done, step, of how many or None).
Progress = Callable[[str, str, int, int | None], None]
Ask = Callable[..., Sums]


@dataclass(frozen=True)
class Fitted:
    """One model of one arm, with its record. ``fit`` is None for a network."""

    model: Any
    fit: glm.Fit | None
    trace: pd.DataFrame  # step, deviance (or loss)

    @property
    def json(self) -> str:
        return str(self.model.model_dump_json())

    @property
    def hash(self) -> str:
        return digest(self.json)


@dataclass(frozen=True)
class Evaluation:
    """Opened totals of one model on one set of rows."""

    fit: Sums
    lorenz: Sums
    levels: dict[str, tuple[tuple[str, ...], Sums]]

    @property
    def scores(self) -> scoring.Scores:
        return scoring.scores(self.fit, self.lorenz)


@dataclass
class ArmResult:
    """An arm: its models (one, or one for each party), its scores, what went wrong, its time."""

    name: Arm
    models: dict[str, dict[str, Fitted]] = field(default_factory=dict)  # holder -> part -> model
    failures: dict[str, str] = field(default_factory=dict)  # holder -> why there is no model
    notes: dict[str, str] = field(default_factory=dict)  # holder -> what to know of its model
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)  # part -> holder
    seconds: float = 0.0


@dataclass
class Study:
    """What a run found. Tables come as DataFrames; ``folder`` and ``tracking`` once it is kept."""

    experiment: Experiment
    market: Market
    arms: dict[str, ArmResult]
    receipts: dict[str, list[Released]]
    seconds: dict[str, float]
    folder: Any = None
    tracking: str | None = None

    @property
    def part(self) -> str:
        """The part that the headline scores belong to."""
        return "pure premium" if "severity" in self.experiment.tasks() else "model"

    @property
    def parts(self) -> tuple[str, ...]:
        tasks = tuple(self.experiment.tasks())
        return (*tasks, "pure premium") if "severity" in tasks else tasks

    def table(self, part: str | None = None) -> pd.DataFrame:
        """Scores by arm and party; ``all`` is the whole market's test rows."""
        rows = [
            {"arm": arm.name, "party": holder, **vars(evaluation.scores)}
            for arm in self.arms.values()
            for holder, evaluation in arm.evaluations.get(part or self.part, {}).items()
        ]
        return pd.DataFrame(rows).set_index(["arm", "party"])

    @property
    def scores(self) -> pd.DataFrame:
        return self.table()

    def fits(self, part: str) -> dict[str, glm.Fit]:
        """GLM fits of one part by arm, or ``alone: party``."""
        found = {}
        for arm in self.arms.values():
            for holder, models in arm.models.items():
                fitted = models.get(part)
                if fitted is not None and fitted.fit is not None:
                    found[arm.name if holder == "all" else f"{arm.name}: {holder}"] = fitted.fit
        return found

    @property
    def coefficients(self) -> pd.DataFrame:
        """The coefficient tables of all GLM fits, one under the other."""
        tables = [
            fit.coefficients().assign(part=part, arm=arm)
            for part in self.experiment.tasks()
            for arm, fit in self.fits(part).items()
        ]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()

    @property
    def convergence(self) -> pd.DataFrame:
        """Deviance (or loss) after each step or round, by arm, holder and part."""
        traces = [
            fitted.trace.assign(arm=arm.name, holder=holder, part=part)
            for arm in self.arms.values()
            for holder, models in arm.models.items()
            for part, fitted in models.items()
            if len(fitted.trace)
        ]
        return pd.concat(traces, ignore_index=True) if traces else pd.DataFrame()

    @property
    def differences(self) -> pd.DataFrame:
        """Federated minus the other arms in deviance explained, with 95 % bootstrap intervals."""
        rows: list[dict[str, Any]] = []
        ours = self.arms.get("federated")
        if ours is None or not self.experiment.arms.replicates:
            return pd.DataFrame(rows)
        for other in self.arms.values():
            for holder, evaluation in other.evaluations.get(self.part, {}).items():
                mine = ours.evaluations[self.part].get(holder)
                if other is not ours and mine is not None:
                    found = scoring.interval(mine.fit, evaluation.fit)
                    change, low, high = (0.0 if abs(v) < NOTHING else v for v in found)
                    row = {"against": other.name, "party": holder}
                    rows.append(row | {"difference": change, "low": low, "high": high})
        return pd.DataFrame(rows)

    @property
    def receipt(self) -> pd.DataFrame:
        """What left each party in the federated arm, by statistic."""
        lines = [
            {"party": party, **vars(line)} for party, kept in self.receipts.items() for line in kept
        ]
        if not lines:
            return pd.DataFrame()
        grouped = pd.DataFrame(lines).groupby(["party", "statistic", "hiding"], sort=False)
        return grouped.agg(
            messages=("query", "size"),
            arrays=("arrays", "sum"),
            values=("values", "sum"),
            bytes=("bytes", "sum"),
            rows=("rows", "max"),
            key_bits=("key_bits", "max"),
        ).reset_index()


def perform(
    experiment: Experiment,
    *,
    engine: str = "grid",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Study:
    """Run the arms of an experiment and score every model on every party's test rows."""
    workers = workers or os.cpu_count() or 1
    tell = progress or (lambda arm, what, step, of: None)
    started = time.perf_counter()
    market = market_of(experiment.model_dump_json())
    seconds = {"data": time.perf_counter() - started}
    study = Study(experiment, market, {}, {}, seconds)
    protection: Protection = Clear()
    if experiment.protection.sums == "paillier" and "federated" in experiment.arms.run:
        tell("federated", "making the key", 0, None)
        started = time.perf_counter()
        protection = Paillier(KeyAuthority.with_new_key(experiment.protection.key_bits))
        seconds["key"] = time.perf_counter() - started
    if experiment.model.kind == "network":
        from lab.network import single_threaded

        single_threaded()
    with single_threaded_blas(), ExitStack() as stack:
        ones = {
            party.name: stack.enter_context(_in_process([party], 1)) for party in market.parties
        }
        scorer = _Scorer(study, ones)
        for arm in experiment.arms.run:
            result = study.arms[arm] = ArmResult(arm)
            started = time.perf_counter()
            watch = partial(tell, arm)
            if arm == "alone":
                for at, (name, one) in enumerate(ones.items(), start=1):
                    watch(name, at, len(ones))
                    try:
                        unused: list[str] = []
                        result.models[name] = fit_models(study, one, left_out=unused)
                        if unused:
                            result.notes[name] = f"constant here, left out: {', '.join(unused)}"
                    except ModelError as error:
                        result.failures[name] = str(error).removeprefix(f"{name}: ")
                scorer.alone(result)
            elif arm == "pooled":
                watch("all rows", 0, None)
                with _in_process([market.pooled()], 1) as pool:
                    result.models["all"] = fit_models(study, pool, watch)
                scorer.shared(result, None)
            else:
                _federated(study, result, protection, scorer, engine, workers, watch)
            result.seconds = time.perf_counter() - started
    return study


def _federated(
    study: Study,
    result: ArmResult,
    protection: Protection,
    scorer: _Scorer,
    engine: str,
    workers: int,
    watch: Callable[[str, int, int | None], None],
) -> None:
    market, text = study.market, study.experiment.model_dump_json()

    def conduct(nodes: Grid) -> None:
        federation = Federation(
            nodes, protection, len(market.parties), lambda what, step: watch(what, step, None)
        )
        result.models["all"] = fit_models(study, federation, watch)
        scorer.shared(result, federation)
        study.receipts = federation.receipts()

    def seat(k: int) -> Party:
        return market_of(text).parties[k]

    grid.ENGINES[engine](server_app(conduct), client_app(seat), len(market.parties), workers)


@contextmanager
def _in_process(parties: Sequence[Party], workers: int) -> Iterator[Federation]:
    """A federation in the clear that never leaves one party (or the pool)."""
    nodes = grid.InProcessGrid(client_app(lambda k: parties[k]), len(parties), workers)
    try:
        yield Federation(nodes, Clear(), len(parties))
    finally:
        nodes.close()


def fit_models(
    study: Study,
    federation: Federation,
    watch: Callable[[str, int, int | None], None] | None = None,
    left_out: list[str] | None = None,
) -> dict[str, Fitted]:
    """Fit every part of the experiment's model with this federation.

    A column that never varies is an error, or with ``left_out`` is left out and named there.
    """
    experiment, market = study.experiment, study.market
    fitted: dict[str, Fitted] = {}
    for part, task in experiment.tasks().items():
        encoding = agree(federation, task, market.features[part], market.contract, left_out)
        if isinstance(experiment.model, GLMModel):
            fit = glm.fit(federation, task, encoding, experiment.model.ridge)
            trace = pd.DataFrame(fit.trace, columns=["deviance", "largest_step"])
            fitted[part] = Fitted(fit.model, fit, trace.rename_axis("step").reset_index())
        else:
            from federated.network import train

            model, trace = train(
                federation, task, encoding, experiment.model, experiment.seed, watch
            )
            fitted[part] = Fitted(model, None, trace)
    if "severity" in fitted:
        product = Product(frequency=fitted["frequency"].model, severity=fitted["severity"].model)
        fitted["pure premium"] = Fitted(product, None, pd.DataFrame())
    return fitted


def _cuts(values: pd.Series) -> tuple[float, ...]:
    """Two significant digits around the mean; a column of two values is cut between them."""
    low, high = float(values.min()), float(values.max())
    if values.isin((low, high)).all():
        return ((low + high) / 2,)
    mean, deviation = float(values.mean()), float(values.std())
    cuts = {float(f"{mean + c * deviation:.2g}") for c in CUTS}
    return tuple(sorted(c for c in cuts if low < c < high)) or (mean,)


class _Scorer:
    """Scores models on test rows: a party's own rows are scored at that party, in the clear and
    for itself; the whole market's totals go through the federation where there is one."""

    def __init__(self, study: Study, ones: dict[str, Federation]) -> None:
        self.study, self.ones = study, ones
        experiment = study.experiment
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
        market = self.study.market
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

    def alone(self, result: ArmResult) -> None:
        """Every party's own model on its own test rows, and all of them together."""
        for part in self.tasks:
            models = {name: kept[part].json for name, kept in result.models.items()}
            asks = {name: self._ask(part, {name: text}) for name, text in models.items()}
            found = {name: self._evaluate(part, ask) for name, ask in asks.items()}
            if len(models) == len(self.ones):
                found = {"all": self._evaluate(part, self._ask(part, models)), **found}
            result.evaluations[part] = found

    def shared(self, result: ArmResult, federation: Federation | None) -> None:
        """One model on everybody's test rows; ``federation`` gives the market's totals."""
        for part, task in self.tasks.items():
            text = result.models["all"][part].json
            everybody = self._ask(part, dict.fromkeys(self.ones, text))
            if federation is not None:
                everybody = partial(federation.sum, model=text, task=task.model_dump_json())
            found = {"all": self._evaluate(part, everybody)}
            for name in self.ones:
                found[name] = self._evaluate(part, self._ask(part, {name: text}))
            result.evaluations[part] = found

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
        experiment = self.study.experiment
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
