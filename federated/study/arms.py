"""The arms of a study: each party alone, the federation, and the pool it is measured against.

An arm is a federation: *alone* has one party, *pooled* has one party that holds all rows. The
same solver runs in all three, so a difference between them is never an accident of code.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
from flwr.serverapp import Grid

from federated.app import client_app, server_app
from federated.federation import Federation, ModelTotals, single_threaded_blas
from federated.hiding.protocol import Clear, Protection
from federated.joined.sums.factors import Role
from federated.party.binding import Binding
from federated.party.party import Party
from federated.party.state import Released
from federated.solvers.solution import Watch
from federated.solvers.trees import TreesSettings
from federated.study.bound import SignedStudy
from federated.study.experiment import Experiment
from federated.study.outcome import Outcome, fit_models
from federated.study.plan import StudyPlan
from federated.study.result import ArmResult, Fitted, Study
from federated.study.scoring import Scorer, simulated_comparisons, simulated_scorer
from federated.study.settings import Arm
from federated.study.sides import in_the_clear
from federated.study.simulation import SimulatedMarket, in_process, market_of
from federated.transport.in_process import ENGINES
from lab.errors import ConfigurationError, ModelError
from lab.models.profile import Profile
from lab.privacy.disclosure import Rules
from lab.privacy.joining import Least
from secure_agg.identity import Identity

#: Called with (arm, what is being done, step, of how many or None).
Progress = Callable[[str, str, int, int | None], None]


@dataclass(frozen=True)
class Stage:
    """What every arm of one study works with.

    text: the experiment as it was given, by which every thread knows the market; whole: of joined sides,
    by which every arm's model is scored, so that resamples are the same; alone: a federation of each party by itself, in the clear and within this process; own: the
    rules a party keeps towards itself, which hide nothing of its own rows.
    """

    study: Study
    market: SimulatedMarket
    run: str
    plan: StudyPlan
    scorer: Scorer
    alone: dict[str, Federation]
    protection: Protection
    own: Rules
    engine: str
    workers: int
    text: str
    whole: Federation | None = None

    def profiles_of(self, federation: Federation, rules: Rules) -> list[Profile]:
        """The experiment's profiles, released by these rules."""
        return [federation.profile(cells, rules) for cells in self.market.cells]


def perform(
    experiment: Experiment,
    *,
    engine: str = "grid",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Study:
    """Run the arms of an experiment and score every model on every party's test rows."""
    tell = progress or (lambda arm, what, step, of: None)
    start = time.perf_counter()
    run = secrets.token_hex(8)
    text = experiment.model_dump_json()
    market = market_of(text, run)
    experiment = market.experiment  # with what its contract says of it
    study = Study(experiment, market, {}, {}, {"data": time.perf_counter() - start})
    protection, own = _key(study, market, tell), Rules.of_own_rows()
    with single_threaded_blas(), ExitStack() as stack:
        alone = {
            party.name: stack.enter_context(in_process([party], 1, own)) for party in market.parties
        }
        whole = None
        if market.tables is not None:
            whole = stack.enter_context(_all_sides(market, workers or 1))
        comparisons = simulated_comparisons(experiment, market)
        least = Least(market.rules.minimum_count.persons, market.least_parties)
        scorer = simulated_scorer(experiment, comparisons, alone, least)
        plan, cores = market.plan(*comparisons), workers or os.cpu_count() or 1
        stage = Stage(
            study, market, run, plan, scorer, alone, protection, own, engine, cores, text, whole
        )
        for arm in experiment.arms.run:
            result = study.arms[arm] = ArmResult(arm)
            start = time.perf_counter()
            ARMS[arm](stage, result, partial(tell, arm))
            result.seconds = time.perf_counter() - start
    return study


def _all_sides(market: SimulatedMarket, workers: int) -> AbstractContextManager[Federation]:
    """All joined rows in this process. Of trees the insurers know each row's score, as if they had both
    sides' columns."""
    if market.experiment.model.kind == "trees":
        return in_process(market.parties, workers, market.rules)
    assert market.tables is not None
    return in_the_clear(market.sides, market.tables.owner(), workers, market.rules)


def _key(study: Study, market: SimulatedMarket, tell: Progress) -> Protection:
    """The protection of the federated arm, with its key, where there is such an arm."""
    if "federated" not in study.experiment.arms.run:
        return Clear()
    tell("keys", "making keys", 0, None)
    start = time.perf_counter()
    protection = market.protection()
    study.seconds["key"] = time.perf_counter() - start
    return protection


# The arms.


def _alone(stage: Stage, result: ArmResult, watch: Watch) -> None:
    """Every party fits its own rows."""
    for at, (name, federation) in enumerate(stage.alone.items(), start=1):
        watch(name, at, len(stage.alone))
        profiles = stage.profiles_of(federation, stage.own)
        _fit_for(stage.study, result, name, federation, profiles)
    if (without := len(result.failures)) and len(result.models) > 1:
        result.notes["whole market"] = (
            f"scored over the {len(result.models)} parties that have a model; without one: {without}"
        )
    result.evaluations = stage.scorer.alone(_texts(result))


def _without(stage: Stage, result: ArmResult, watch: Watch) -> None:
    """All parties but one, for each of them."""
    rules = stage.market.rules
    for at, name in enumerate(stage.alone, start=1):
        watch(f"without {name}", at, len(stage.alone))
        others = [party for party in stage.market.parties if party.name != name]
        with in_process(others, stage.workers, rules) as rest:
            rest.least_parties = min(stage.market.least_parties, len(others))
            profiles = stage.profiles_of(rest, rules)
            _join(stage.alone, profiles)
            _fit_for(stage.study, result, name, rest, profiles)
    result.evaluations = stage.scorer.alone(_texts(result))
    result.others = stage.scorer.others(_texts(result))


def _federated(stage: Stage, result: ArmResult, watch: Watch) -> None:
    """All parties, through Flower's apps and under the experiment's protection, bound to the plan."""
    study, market, scorer = stage.study, stage.market, stage.scorer
    bound = SignedStudy(stage.plan, Identity.generate("releaser"), stage.run)
    nodes = BoundParties(stage.text, stage.run, market.digest, bound.binding)
    outcome, study.receipts, study.silent = over_apps(
        *(bound, nodes, len(market.nodes), stage.protection),
        engine=stage.engine,
        workers=stage.workers,
        watch=watch,
    )
    result.models["all"], result.opened = outcome.models, outcome.opened
    _join(stage.alone, outcome.models[study.part].profiles)
    result.evaluations = scorer.beside(outcome.texts, outcome.evaluations)
    if "without" in study.experiment.arms.run:
        result.others = scorer.others(dict.fromkeys(stage.alone, _texts(result)["all"]))


def over_apps(
    bound: SignedStudy,
    nodes: Callable[[int], Party],
    count: int,
    protection: Protection,
    *,
    engine: str = "grid",
    workers: int = 1,
    watch: Watch | None = None,
) -> tuple[Outcome, dict[str, list[Released]], list[tuple[str, str]]]:
    """A bound study over so many simulated nodes, each by its seat: its outcome, what passed each
    party's gate, and (party, message) of what was left unanswered."""
    outcomes, tell = [], watch or (lambda what, step, of: None)

    def coordinate(grid: Grid) -> None:
        federation = Federation(grid, protection, count, lambda what, step: tell(what, step, None))
        outcome = bound.carried_out(federation, watch)
        outcomes.append((outcome, federation.receipts(), federation.silent))

    node = client_app(nodes, bound.plan.experiment.protection.sums)
    ENGINES[engine](server_app(coordinate), node, count, workers)
    (result,) = outcomes
    return result


class BoundParties:
    """The parties of a market by seat, bound to a plan; made anew wherever the app is sent."""

    def __init__(self, experiment: str, run: str, digest: str, binding: Binding) -> None:
        """digest: of the table that the run began with."""
        self._source, self._digest, self._binding = (experiment, run), digest, binding
        self._parties: dict[int, Party] = {}

    def __call__(self, seat: int) -> Party:
        if seat not in self._parties:
            market = market_of(*self._source)
            if market.digest != self._digest:
                raise ConfigurationError("data: the table has changed during the run; run it again")
            self._parties[seat] = replace(market.nodes[seat], binding=self._binding)
        return self._parties[seat]

    def __reduce__(self) -> tuple[type[BoundParties], tuple[str, str, str, Binding]]:
        return BoundParties, (*self._source, self._digest, self._binding)


def _personal(stage: Stage, result: ArmResult, watch: Watch) -> None:
    """The federated network with each party's own last layer, made at that party."""
    from federated.solvers.network import NetworkSettings, personal

    study = stage.study
    settings, shared = study.experiment.model, study.arms["federated"].models["all"]["model"]
    assert isinstance(settings, NetworkSettings)  # checked with the experiment
    for party in stage.market.parties:
        own = personal(party, shared.model, settings.personal, study.experiment.seed)
        result.models[party.name] = {"model": Fitted(own, None, pd.DataFrame(), shared.profiles)}
    result.evaluations = stage.scorer.alone(_texts(result))


def _pooled(stage: Stage, result: ArmResult, watch: Watch) -> None:
    """One party that holds all rows."""
    watch("all rows", 0, None)
    market = stage.market
    with in_process(market.parties, stage.workers, market.rules) as federation:
        profiles = stage.profiles_of(federation, market.rules)
    _join(stage.alone, profiles)
    with in_process([market.pooled()], 1, stage.own) as pool:
        pool.least_parties = market.least_parties
        result.models["all"] = _fit(stage.study, pool, watch, profiles=profiles)
    result.evaluations = stage.scorer.shared(_texts(result)["all"], stage.whole)


def _one_side(role: Role, stage: Stage, result: ArmResult, watch: Watch) -> None:
    """The columns of one side alone, over the rows that both have."""
    watch(f"columns of the {role}", 0, None)
    market, tables = stage.market, stage.market.tables
    assert tables is not None  # checked with the experiment
    owner = tables.owner()
    features = {
        part: tuple(f for f in chosen if owner(f.column) == role)
        for part, chosen in market.features.items()
    }
    if not all(features.values()):
        raise ConfigurationError(f"data.features: the {role} has none; drop '{role}' from arms.run")
    experiment = stage.study.experiment
    if isinstance(experiment.model, TreesSettings):  # one side alone has no first trees of its own
        model = experiment.model.model_copy(update={"own_trees": 0})
        experiment = experiment.model_copy(update={"model": model})
    with in_process([market.pooled()], 1, stage.own) as pool:
        result.models["all"] = fit_models(experiment, features, market.contract, pool, watch)
    result.evaluations = stage.scorer.shared(_texts(result)["all"], stage.whole)


ARMS: Mapping[Arm, Callable[[Stage, ArmResult, Watch], None]] = {
    "alone": _alone,
    "without": _without,
    "insurer": partial(_one_side, "insurer"),
    "fund": partial(_one_side, "fund"),
    "federated": _federated,
    "personal": _personal,
    "pooled": _pooled,
}


# Fits.


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
        constant_columns: list[str] = []
        result.models[holder] = _fit(
            study, federation, left_out=constant_columns, profiles=profiles
        )
        if constant_columns:
            result.notes[holder] = f"constant here, left out: {', '.join(constant_columns)}"
    except ModelError as error:
        result.failures[holder] = str(error).removeprefix(f"{holder}: ")


def _fit(study: Study, federation: ModelTotals, watch: Watch | None = None, **more: Any) -> Any:
    experiment, market = study.experiment, study.market
    return fit_models(experiment, market.features, market.contract, federation, watch, **more)


def _texts(result: ArmResult) -> dict[str, dict[str, str]]:
    """The models of an arm as they travel: holder, part, JSON."""
    return {
        holder: {part: fitted.json for part, fitted in parts.items()}
        for holder, parts in result.models.items()
    }
