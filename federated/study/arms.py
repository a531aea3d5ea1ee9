"""The arms of a study: each party alone, the federation, and the pool it is measured against.

An arm is a federation: *alone* has one party, *pooled* has one party that holds all rows. The
same solver runs in all three, so a difference between them is never an accident of code.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial

import pandas as pd
from flwr.serverapp import Grid

from federated.app import client_app, server_app
from federated.federation import Federation, single_threaded_blas
from federated.hiding.protocol import Clear, Protection
from federated.party.party import Party
from federated.solvers import glm
from federated.solvers.encoding import agree
from federated.solvers.glm import GLMSettings
from federated.solvers.trees import TreesSettings
from federated.study.experiment import Experiment
from federated.study.result import ArmResult, Fitted, Study
from federated.study.scoring import Scorer
from federated.study.simulation import in_process, market_of, protected
from federated.transport import in_process as grid
from lab.errors import ModelError
from lab.models.glm import Product
from lab.models.profile import Profile
from lab.privacy.disclosure import Rules

#: Called with (arm, what is being done, step, of how many or None).
Progress = Callable[[str, str, int, int | None], None]


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
        from lab.models.network import single_threaded

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
    from federated.solvers.network import personal

    experiment, shared = study.experiment, study.arms["federated"].models["all"]["model"]
    assert experiment.model.kind == "network"
    for party in study.market.parties:
        own = personal(party, shared.model, experiment.model.personal, experiment.seed)
        fitted = Fitted(own, None, pd.DataFrame(), shared.profiles)
        result.models[party.name] = {"model": fitted}


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
        if isinstance(experiment.model, TreesSettings):
            from federated.solvers import trees

            told = (market.features[part], market.contract, experiment.model, experiment.seed)
            grown, losses = trees.train(federation, task, *told, watch)
            fitted[part] = Fitted(grown, None, losses, tuple(profiles))
            continue
        encoding = agree(federation, task, market.features[part], market.contract, left_out)
        if isinstance(experiment.model, GLMSettings):
            fit = glm.fit(federation, task, encoding, experiment.model.ridge)
            trace = pd.DataFrame(fit.trace, columns=["deviance", "largest_step"])
            steps = trace.rename_axis("step").reset_index()
            fitted[part] = Fitted(fit.model, fit, steps, tuple(profiles))
        else:
            from federated.solvers.network import train

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
