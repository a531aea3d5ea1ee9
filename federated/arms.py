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

import pandas as pd
from flwr.serverapp import Grid

from federated import glm, grid
from federated.apps import client_app, server_app
from federated.encrypted import KeyAuthority, KeyHolders, Paillier
from federated.experiment import Arm, Experiment, GLMModel, Protected, Query, TreesModel
from federated.features import agree
from federated.federation import Federation, single_threaded_blas
from federated.masked import Masks
from federated.memory import Released
from federated.node import Party
from federated.parties import Market, market_of
from federated.protection import Clear, Protection
from federated.scoring import Evaluation, Scorer, scored
from lab import detection, scoring
from lab.disclosure import Rules
from lab.errors import ModelError
from lab.glm import Product
from lab.models import digest
from lab.profile import Profile, Profiled

#: A difference in deviance explained that is rounding, not a difference.
NOTHING = 1e-12
#: Called with (arm, what is being done, step, of how many or None).
Progress = Callable[[str, str, int, int | None], None]


@dataclass(frozen=True)
class Fitted:
    """One model of one arm, with its record. ``fit`` is None for a network."""

    model: Any
    fit: glm.Fit | None
    trace: pd.DataFrame  # step, deviance (or loss)
    profiles: tuple[Profile, ...] = ()

    @property
    def file(self) -> str:
        """The model as it is kept: with the profiles that its features come from."""
        if not self.profiles:
            return self.json
        whole = Profiled(profiles=self.profiles, model=self.model)
        return whole.model_dump_json()

    @property
    def json(self) -> str:
        return str(self.model.model_dump_json())

    @property
    def hash(self) -> str:
        return digest(self.file)


@dataclass
class ArmResult:
    """An arm: its models (one, or one for each party), its scores, what went wrong, its time."""

    name: Arm
    models: dict[str, dict[str, Fitted]] = field(default_factory=dict)  # holder -> part -> model
    failures: dict[str, str] = field(default_factory=dict)  # holder -> why there is no model
    notes: dict[str, str] = field(default_factory=dict)  # holder -> what to know of its model
    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)  # part -> holder
    others: dict[str, Evaluation] = field(default_factory=dict)  # holder -> on all rows but its own
    seconds: float = 0.0


@dataclass
class Study:
    """What a run found. Tables come as DataFrames; ``folder`` and ``tracking`` once it is kept."""

    experiment: Experiment
    market: Market
    arms: dict[str, ArmResult]
    receipts: dict[str, list[Released]]
    seconds: dict[str, float]
    silent: list[tuple[str, str]] = field(default_factory=list)  # (party, message) unanswered
    answers: list[tuple[Query, pd.DataFrame]] = field(default_factory=list)
    not_run: tuple[Arm, ...] = ()  # arms of the experiment that real parties have no rows for
    unanswered: str = ""  # why real parties did not answer the questions
    run: str = ""  # its name in the parties' logs, where the parties are real
    outlook: list[Any] = field(default_factory=list)  # who took part, where they are
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
            {"arm": arm.name, "party": holder, **self.scored(evaluation)}
            for arm in self.arms.values()
            for holder, evaluation in arm.evaluations.get(part or self.part, {}).items()
        ]
        return pd.DataFrame(rows).set_index(["arm", "party"])

    def scored(self, evaluation: Evaluation) -> dict[str, Any]:
        """All scores of an evaluation by name; those of a detector among them."""
        return scored(self.experiment, evaluation)

    @property
    def headline(self) -> str:
        """The score that arms are compared by."""
        return "average_precision" if self.experiment.detection else "deviance_explained"

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
        """Federated minus the other arms in the headline score, with 95 % bootstrap intervals."""
        rows: list[dict[str, Any]] = []
        ours = self.arms.get("federated")
        if ours is None or not self.experiment.arms.replicates:
            return pd.DataFrame(rows)
        for other in self.arms.values():
            for holder, evaluation in other.evaluations.get(self.part, {}).items():
                mine = ours.evaluations[self.part].get(holder)
                if other is not ours and mine is not None:
                    found = _difference(mine, evaluation)
                    change, low, high = (0.0 if abs(v) < NOTHING else v for v in found)
                    row = {"against": other.name, "party": holder}
                    rows.append(row | {"difference": change, "low": low, "high": high})
        return pd.DataFrame(rows)

    @property
    def joining(self) -> pd.DataFrame:
        """What each party and the others lose when it stays away: the headline score on its rows
        and on theirs, of the federated model and of the one without it."""
        whole, without = self.arms.get("federated"), self.arms.get("without")
        if whole is None or without is None:
            return pd.DataFrame()
        rows = []
        for holder, theirs in without.others.items():
            own = whole.evaluations[self.part][holder], without.evaluations[self.part][holder]
            pairs = {"own_rows": own, "others_rows": (whole.others[holder], theirs)}
            row: dict[str, Any] = {"party": holder}
            for place, (joined, away) in pairs.items():
                row[f"{place}_federated"] = self.scored(joined)[self.headline]
                row[f"{place}_without"] = self.scored(away)[self.headline]
                change, low, high = _difference(joined, away)
                row |= {f"{place}_gain": change, f"{place}_low": low, f"{place}_high": high}
            rows.append(row)
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


def _difference(model: Evaluation, other: Evaluation) -> tuple[float, float, float]:
    """(difference, low, high) in average precision of detectors, else in deviance explained."""
    if model.detected is not None and other.detected is not None:
        return detection.difference(model.detected.rank, other.detected.rank)
    return scoring.interval(model.fit, other.fit)


def perform(
    experiment: Experiment,
    *,
    engine: str = "grid",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Study:
    """Run the arms of an experiment and score every model on every party's test rows."""
    workers = workers or os.cpu_count() or 1
    own = Rules.of_own_rows()
    tell = progress or (lambda arm, what, step, of: None)
    started = time.perf_counter()
    market = market_of(experiment.model_dump_json())
    seconds = {"data": time.perf_counter() - started}
    study = Study(experiment, market, {}, {}, seconds)
    protection: Protection = Clear()
    if "federated" in experiment.arms.run:
        tell("federated", "making keys", 0, None)
        started = time.perf_counter()
        protection = protected(experiment.protection, market.rules)
        seconds["key"] = time.perf_counter() - started
    if experiment.model.kind == "network":
        from lab.network import single_threaded

        single_threaded()
    with single_threaded_blas(), ExitStack() as stack:
        ones = {
            party.name: stack.enter_context(in_process([party], 1, own)) for party in market.parties
        }
        scorer = Scorer(experiment, market, ones)
        for arm in experiment.arms.run:
            result = study.arms[arm] = ArmResult(arm)
            started = time.perf_counter()
            watch = partial(tell, arm)
            if arm == "alone":
                for at, (name, one) in enumerate(ones.items(), start=1):
                    watch(name, at, len(ones))
                    profiles = [one.profile(cells, own) for cells in market.cells]
                    _fit_for(study, result, name, one, profiles)
                result.evaluations = scorer.alone(_texts(result))
            elif arm == "without":
                for at, name in enumerate(ones, start=1):
                    watch(f"without {name}", at, len(ones))
                    others = [party for party in market.parties if party.name != name]
                    with in_process(others, workers, market.rules) as rest:
                        profiles = [rest.profile(cells, market.rules) for cells in market.cells]
                        _join(ones, profiles)
                        _fit_for(study, result, name, rest, profiles)
                result.evaluations = scorer.alone(_texts(result))
                result.others = scorer.others(_texts(result))
            elif arm == "personal":
                _personal(study, result)
                result.evaluations = scorer.alone(_texts(result))
            elif arm == "pooled":
                watch("all rows", 0, None)
                with in_process(market.parties, workers, market.rules) as apart:
                    profiles = [apart.profile(cells, market.rules) for cells in market.cells]
                _join(ones, profiles)
                with in_process([market.pooled()], 1, own) as pool:
                    result.models["all"] = fit_models(study, pool, watch, profiles=profiles)
                result.evaluations = scorer.shared(_texts(result)["all"], None)
            else:
                _federated(study, result, protection, scorer, engine, workers, watch)
            result.seconds = time.perf_counter() - started
    return study


def protected(settings: Protected, rules: Rules | None = None) -> Protection:
    """The coordinator's side of the way of hiding that an experiment asks for.

    rules: what answers to questions are released by, else the lab's own.
    """
    match settings.sums, settings.key:
        case "clear", _:
            return Clear(rules)
        case "masks", _:
            return Masks()
        case _, "authority":
            return Paillier(KeyAuthority.with_new_key(settings.key_bits, rules))
        case _:
            return Paillier(KeyHolders.with_new_key(settings.key_bits))


def _federated(
    study: Study,
    result: ArmResult,
    protection: Protection,
    scorer: Scorer,
    engine: str,
    workers: int,
    watch: Callable[[str, int, int | None], None],
) -> None:
    market, text = study.market, study.experiment.model_dump_json()

    def conduct(nodes: Grid) -> None:
        federation = Federation(
            nodes, protection, len(market.parties), lambda what, step: watch(what, step, None)
        )
        profiles = [federation.profile(cells, market.rules) for cells in market.cells]
        _join(scorer.ones, profiles)
        result.models["all"] = fit_models(study, federation, watch, profiles=profiles)
        result.evaluations = scorer.shared(_texts(result)["all"], federation)
        study.receipts, study.silent = federation.receipts(), federation.silent

    def seat(k: int) -> Party:
        return market_of(text).parties[k]

    node = client_app(seat, study.experiment.protection.sums)
    grid.ENGINES[engine](server_app(conduct), node, len(market.parties), workers)
    if "without" in study.experiment.arms.run:
        result.others = scorer.others(dict.fromkeys(scorer.ones, _texts(result)["all"]))


def _personal(study: Study, result: ArmResult) -> None:
    """The federated network with each party's own last layer, made at that party."""
    from federated.network import personal

    experiment, shared = study.experiment, study.arms["federated"].models["all"]["model"]
    assert experiment.model.kind == "network"
    for party in study.market.parties:
        own = personal(party, shared.model, experiment.model.personal, experiment.seed)
        fitted = Fitted(own, None, pd.DataFrame(), shared.profiles)
        result.models[party.name] = {"model": fitted}


@contextmanager
def in_process(parties: Sequence[Party], workers: int, rules: Rules) -> Iterator[Federation]:
    """A federation in the clear that never leaves one party (or the pool, or this process)."""
    nodes = grid.InProcessGrid(client_app(lambda k: parties[k], "clear"), len(parties), workers)
    try:
        yield Federation(nodes, Clear(rules), len(parties))
    finally:
        nodes.close()


def _join(ones: dict[str, Federation], profiles: Sequence[Profile]) -> None:
    for one in ones.values():
        one.join(profiles)


def _fit_for(
    study: Study,
    result: ArmResult,
    holder: str,
    federation: Federation,
    profiles: Sequence[Profile],
) -> None:
    """Fit a holder's models, or note why there are none."""
    try:
        unused: list[str] = []
        result.models[holder] = fit_models(study, federation, left_out=unused, profiles=profiles)
        if unused:
            result.notes[holder] = f"constant here, left out: {', '.join(unused)}"
    except ModelError as error:
        result.failures[holder] = str(error).removeprefix(f"{holder}: ")


def fit_models(
    study: Study,
    federation: Federation,
    watch: Callable[[str, int, int | None], None] | None = None,
    left_out: list[str] | None = None,
    profiles: Sequence[Profile] = (),
) -> dict[str, Fitted]:
    """Fit every part of the experiment's model with this federation.

    A column that never varies is an error, or with ``left_out`` is left out and named there.
    """
    experiment, market = study.experiment, study.market
    federation.join(profiles)
    known = {"profiles": tuple(profile.digest for profile in profiles)}
    fitted: dict[str, Fitted] = {}
    for part, plain in experiment.tasks().items():
        task = plain.model_copy(update=known)
        if isinstance(experiment.model, TreesModel):
            from federated import trees

            told = (market.features[part], market.contract, experiment.model, experiment.seed)
            grown, losses = trees.train(federation, task, *told, watch)
            fitted[part] = Fitted(grown, None, losses, tuple(profiles))
            continue
        encoding = agree(federation, task, market.features[part], market.contract, left_out)
        if isinstance(experiment.model, GLMModel):
            fit = glm.fit(federation, task, encoding, experiment.model.ridge)
            trace = pd.DataFrame(fit.trace, columns=["deviance", "largest_step"])
            steps = trace.rename_axis("step").reset_index()
            fitted[part] = Fitted(fit.model, fit, steps, tuple(profiles))
        else:
            from federated.network import train

            model, trace = train(
                federation, task, encoding, experiment.model, experiment.seed, watch
            )
            fitted[part] = Fitted(model, None, trace, tuple(profiles))
    if "severity" in fitted:
        product = Product(frequency=fitted["frequency"].model, severity=fitted["severity"].model)
        fitted["pure premium"] = Fitted(product, None, pd.DataFrame())
    return fitted


def _texts(result: ArmResult) -> dict[str, dict[str, str]]:
    """The models of an arm as they travel: holder, part, JSON."""
    return {
        holder: {part: fitted.json for part, fitted in parts.items()}
        for holder, parts in result.models.items()
    }
