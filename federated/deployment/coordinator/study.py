"""A study among the parties of an exchange, from the experiment's file to its result.

The arms *alone* and *pooled* do not exist here: nobody has the rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from flwr.app import RecordDict

from federated.deployment.audit_logs import LOG_NAME, open_log
from federated.deployment.charter import Charter
from federated.deployment.coordinator import exchange
from federated.deployment.coordinator.federation import DeployedFederation
from federated.deployment.coordinator.protection import (
    RemoteAuthority,
    protection_of,
    rules_of,
)
from federated.deployment.coordinator.resumable_run import ResumableRun
from federated.deployment.enrolment import INSURERS
from federated.deployment.evidence import PLAN, SCORES
from federated.deployment.folders import charter_of, identity_of
from federated.deployment.pairs import agreed
from federated.deployment.plan import announced, questions_of
from federated.federation import agreement, single_threaded_blas
from federated.messages import Request, message_of, read
from federated.study.bound import agreed_levels, join_released
from federated.study.experiment import Experiment
from federated.study.outcome import Outcome, carry_out
from federated.study.plan import StudyPlan
from federated.study.result import ArmResult, Study
from federated.study.rows import RemoteMarket
from federated.study.settings import Query
from federated.study.steps import Steps, carried_out
from federated.transport import node_line as fleet
from federated.transport.exchange_grid import ExchangeGrid
from lab.errors import ConfigurationError
from lab.queries import sql_plan as sql
from lab.sums import Sums


def _actual_protection(experiment: Experiment, charter: Charter) -> dict[str, Any]:
    """The protection as it is: who opens, and by a key of how many bits, the charter says."""
    key = charter.key if experiment.protection.sums == "paillier" else None
    key_settings = {"key": key.opens, "key_bits": key.public.bits} if key else {}
    return {"protection": experiment.protection.model_copy(update=key_settings)}


def _insurers_of(
    experiment: Experiment, plan: StudyPlan, charter: Charter, without: tuple[str, ...]
) -> tuple[str, ...]:
    """The insurers that a run asks. Raises :class:`ConfigurationError` for what the charter bars."""
    for kind in plan.kinds:
        if kind not in charter.analyses:
            raise ConfigurationError(
                f"{experiment.name}: the charter allows {', '.join(charter.analyses)}, not '{kind}'"
            )
    names = charter.roster.names
    if without and experiment.joined:
        raise ConfigurationError("--without: a total of joined sides is of all of them, or of none")
    if unknown := sorted(set(without) - set(names)):
        raise ConfigurationError(
            f"--without {unknown[0]}: is no insurer; the charter's insurers are {', '.join(names)}"
        )
    return tuple(name for name in names if name not in without)


@contextmanager
def gathered(
    experiment: Experiment,
    plan: StudyPlan,
    folder: Path,
    *,
    fresh: bool = False,
    without: Iterable[str] = (),
    progress: Any = None,
) -> Iterator[DeployedFederation]:
    """The parties of an exchange, gathered for a run that ends well where the block does.

    experiment: what the coordinator wants; plan: what parties are told of it; folder: the
    exchange's, which is served; without: insurers that are not asked. Raises
    :class:`~lab.errors.LabError`.
    """
    identity = identity_of(folder)
    charter = charter_of(folder, identity.card.name)
    secret, without = exchange.secret_of(folder), tuple(without)
    insurers = _insurers_of(experiment, plan, charter, without)
    protection = protection_of(experiment, charter, folder, plan.owner)
    watch = partial(progress or (lambda arm, what, step, of: None), "federated")
    with (
        closing(
            ResumableRun.take_up(folder / exchange.RUNS, plan.digest, charter.digest, fresh)
        ) as run,
        open_log(folder / LOG_NAME, identity, charter=charter.digest) as log,
        exchange.short(folder) as short_path,
        closing(
            ExchangeGrid(f"{short_path}/{exchange.LOCAL_SOCKET}", secret, fleet.bundle())
        ) as grid,
        single_threaded_blas(),
    ):
        question = {"statistic": plan.title, "by": identity.card.name, "plan": plan.digest}
        log.append("request", run=run.run, **question)
        for name in without:
            run.leave(name, f"{name}: left out by --without")
        federation = DeployedFederation(
            grid, protection, folder, charter, identity, run, log, plan, len(insurers),
            lambda what, step: watch(what, step, None),
        )  # fmt: skip
        yield federation
        federation.take_checkpoints()
        run.end()


def run_study(
    experiment: Experiment,
    folder: Path,
    *,
    fresh: bool = False,
    without: Iterable[str] = (),
    progress: Any = None,
) -> Study:
    """Run the federated arm of an experiment with the parties of an exchange, as `gathered`."""
    charter, start = charter_of(folder, identity_of(folder).card.name), time.perf_counter()
    experiment = agreed(experiment, charter.pairs)
    plan = announced(experiment)
    tell = progress or (lambda arm, what, step, of: None)
    with gathered(
        experiment, plan, folder, fresh=fresh, without=without, progress=progress
    ) as federation:
        study = _perform(experiment, plan, federation, partial(tell, "federated"))
    study.arms["federated"].seconds = time.perf_counter() - start
    return study


def _perform(
    experiment: Experiment, plan: StudyPlan, federation: DeployedFederation, watch: Any
) -> Study:
    market = RemoteMarket(experiment, plan.joined, plan.features)
    changes = {"query": experiment.query, **_actual_protection(experiment, federation.charter)}
    study = Study(plan.experiment.model_copy(update=changes), market, {}, {}, {})
    study.not_run = tuple(arm for arm in experiment.arms.run if arm != "federated")
    result = study.arms["federated"] = ArmResult("federated")
    outcome, delivery = _carried_out(plan, federation, watch)
    result.models["all"], result.opened = outcome.models, outcome.opened
    result.evaluations = {part: {"all": each} for part, each in outcome.evaluations.items()}
    federation.deliver(delivery, outcome)
    study.evidence = {PLAN: plan.to_json().encode(), SCORES: outcome.scorecard}
    study.receipts, study.silent = federation.receipts(), federation.silent
    study.outlook = federation.outlook(study.receipts)
    study.run = federation.resumable_run.run
    for party in study.outlook:
        if party.role in INSURERS:
            rows = None if experiment.joined else party.rows  # of sides, the same persons' at each
            market.sizes[party.name] = {"train": rows, "test": None}
        if party.state != "took part":
            result.notes[party.name] = party.state.removeprefix(f"{party.name}: ")
    return study


def _carried_out(
    plan: StudyPlan, federation: DeployedFederation, watch: Any
) -> tuple[Outcome, RecordDict]:
    """The outcome of a plan, and the message in which every insurer is given it.

    With a key authority the solver is there, and what passes here are its signed questions; else
    it runs here as at every insurer, each of which is told the opened totals.
    """
    levels = agreed_levels(plan, federation)
    opener = getattr(federation.protection, "opener", None)
    if isinstance(opener, RemoteAuthority):
        answer = opener.first(federation, agreement(levels))
        while "request" in answer.config_records:
            question = Request.from_record(answer)
            total = federation.total(question)
            answer = opener.answer
            join_released(federation, question, total)
        return Outcome.from_bytes(read(answer, "outcome")), answer

    def ask(question: Request) -> Sums:
        total = federation.total(question)
        join_released(federation, question, total)
        federation.tell(question)
        return total

    steps = Steps(
        lambda parties: carry_out(plan, parties, watch),
        federation.protection.hiding,
        everybody=federation.everybody,
        levels=levels,
        charter=federation.charter.digest,
    )
    outcome = carried_out(steps, ask)
    return outcome, message_of(outcome=outcome.to_bytes())


def ask_questions(
    experiment: Experiment,
    folder: Path,
    *,
    fresh: bool = False,
    without: Iterable[str] = (),
    progress: Any = None,
) -> list[tuple[Query, pd.DataFrame]]:
    """The questions of an experiment, answered by the insurers of an exchange, as `gathered`.

    All of them answer, or none: the same question to fewer would show who was left out.
    """
    from federated.queries.desk import Desk

    charter = charter_of(folder, identity_of(folder).card.name)
    experiment = agreed(experiment, charter.pairs)
    if experiment.protection.sums == "masks":
        hidden = experiment.protection.model_copy(update={"sums": "paillier"})
        experiment = experiment.model_copy(update={"protection": hidden})
    plan, rules = questions_of(experiment), rules_of(experiment)
    if experiment.joined:
        rules = rules.of_joined_sides()
    for query in experiment.query:  # say what is wrong before anybody is asked
        sql.columns_of(query.sql, plan.contract, plan.person, plan.names)
    with gathered(
        experiment, plan, folder, fresh=fresh, without=without, progress=progress
    ) as federation:
        desk = Desk(federation, plan.contract, rules, plan.person, joined=plan.names)
        return [(query, desk.ask(query.sql, noise=query.noise)) for query in experiment.query]
