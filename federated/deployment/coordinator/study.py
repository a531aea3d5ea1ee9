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
from federated.deployment.coordinator.resumable_run import ResumableRun
from federated.deployment.enrolment import INSURERS
from federated.deployment.folders import charter_of, identity_of
from federated.deployment.node.roles import split_of
from federated.deployment.node.supervisor import SHARE_FILE, with_form
from federated.deployment.plan import announced, questions_of
from federated.federation import agreement, single_threaded_blas
from federated.hiding.masks import Masks
from federated.hiding.paillier import Paillier
from federated.hiding.protocol import Clear, Protection, Talk, named_reply
from federated.message_kinds import MessageKind
from federated.messages import Form, Request, message_of, read
from federated.study.bound import agreed_levels, join_released
from federated.study.experiment import Experiment, Query
from federated.study.market import RemoteMarket
from federated.study.outcome import Outcome, carry_out
from federated.study.plan import StudyPlan
from federated.study.result import ArmResult, Study
from federated.study.steps import Steps, carried_out
from federated.transport import node_line as fleet
from federated.transport.exchange_grid import ExchangeGrid
from lab.errors import ConfigurationError
from lab.privacy.disclosure import Rules
from lab.queries import sql_plan as sql
from lab.sums import Sums
from secure_agg.identity import Roster
from secure_agg.keys import PublicKey
from secure_agg.transcript import Transcript


class RemoteAuthority:
    """The supervisor, as the coordinator reaches it: it is shown transcripts and gives the next step."""

    everybody = False

    def __init__(self, public: PublicKey, name: str) -> None:
        self.public, self._name = public, name
        self.answer = RecordDict()  # to the last opening
        self.proof = RecordDict()

    def enrol(self, roster: Roster) -> dict[str, dict[str, bytes]]:
        return {}

    def first(self, talk: Talk, levels: RecordDict) -> RecordDict:
        """The step that the plan is at, signed. levels: the names that were agreed on."""
        return talk.ask(MessageKind.NEXT, {self._name: levels})[self._name]

    def open(self, talk: Talk, transcript: Transcript, request: Request, form: Form) -> Sums:
        """What may be shown of the total; of a model's nothing, but the step that follows.

        Raises what the supervisor refuses with.
        """
        content = message_of(transcript=transcript.to_bytes(), form=with_form(form))
        content.update(request.to_record())
        self.answer = talk.ask(MessageKind.OPEN, {self._name: content})[self._name]
        return named_reply(self._name, self.answer).sums


class EnrolledPaillier(Paillier):
    """Paillier among parties that know roster and key from the charter and are told neither."""

    def enrol(self, talk: Talk, roster: Roster) -> None:
        self._roster = roster


class EnrolledMasks(Masks):
    """Masks among parties that know the roster from the charter."""

    def enrol(self, talk: Talk, roster: Roster) -> None:
        self._roster = roster


def _actual_protection(experiment: Experiment, charter: Charter) -> dict[str, Any]:
    """The protection as it is: who opens, and by a key of how many bits, the charter says."""
    key = charter.key if experiment.protection.sums == "paillier" else None
    key_settings = {"key": key.opens, "key_bits": key.public.bits} if key else {}
    return {"protection": experiment.protection.model_copy(update=key_settings)}


def _rules(experiment: Experiment) -> Rules:
    """The rules of disclosure that the coordinator asks under."""
    file = experiment.protection.disclosure
    return Rules.read(None if file is None else Path(file))


def protection_of(experiment: Experiment, charter: Charter, folder: Path) -> Protection:
    """The coordinator's side of the protection that experiment and charter agree on."""
    settings, key = experiment.protection, charter.key
    if settings.sums == "masks":
        return EnrolledMasks()
    if settings.sums == "clear":
        return Clear(_rules(experiment))
    if key is None:
        raise ConfigurationError("the charter has no key; make one with: lab keys deal")
    if key.public.bits < settings.key_bits:
        raise ConfigurationError(
            f"protection.key_bits: must be at most the bits of the charter's key, {key.public.bits}"
        )
    if key.opens == "authority":
        return EnrolledPaillier(RemoteAuthority(key.public, key.by[0]))
    return EnrolledPaillier(Holders(charter.roster, folder / SHARE_FILE, key.split))


class Holders:
    """All insurers together open totals; the dealer's public part says how their parts combine."""

    everybody = True

    def __init__(self, roster: Roster, path: Path, digest: str) -> None:
        from federated.hiding.paillier import KeyHolders

        self._holders = KeyHolders(split_of(path, digest), roster)
        self.public = self._holders.public

    @property
    def proof(self) -> RecordDict:
        return self._holders.proof

    def enrol(self, roster: Roster) -> dict[str, dict[str, bytes]]:
        return {}

    def open(self, talk: Talk, transcript: Transcript, request: Request, form: Form) -> Sums:
        return self._holders.open(talk, transcript, request, form)


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
    protection = protection_of(experiment, charter, folder)
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
        log.append("request", run=run.run, statistic=experiment.name, by=identity.card.name)
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
    plan, start = announced(experiment), time.perf_counter()
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
    federation.deliver(delivery)
    study.receipts, study.silent = federation.receipts(), federation.silent
    study.outlook = federation.outlook(study.receipts)
    study.run = federation.resumable_run.run
    for party in study.outlook:
        if party.role in INSURERS:
            market.sizes[party.name] = {"train": party.rows, "test": None}
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

    if experiment.protection.sums == "masks":
        hidden = experiment.protection.model_copy(update={"sums": "paillier"})
        experiment = experiment.model_copy(update={"protection": hidden})
    plan, rules, person = questions_of(experiment), _rules(experiment), experiment.data.person
    for query in experiment.query:
        sql.columns_of(
            query.sql, plan.contract, person
        )  # say what is wrong before anybody is asked
    with gathered(
        experiment, plan, folder, fresh=fresh, without=without, progress=progress
    ) as federation:
        desk = Desk(federation, plan.contract, rules, person)
        return [(query, desk.ask(query.sql, noise=query.noise)) for query in experiment.query]
