"""The role of a supervisor's node: it opens totals, solves what it opens, and deals for joined sides."""

from __future__ import annotations

from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict

from federated.deployment.audit_logs import LOG_NAME, log_outcome
from federated.deployment.charter import Charter
from federated.deployment.folders import identity_of
from federated.deployment.node import profiles, solver
from federated.deployment.node.openings import Openings
from federated.deployment.node.roles import AT_HAND
from federated.deployment.node.rules.refusals import Refusal, check_disclosure
from federated.deployment.node.rules.settings import STATE
from federated.deployment.node.run_state import RunState
from federated.deployment.node.sides.dealer import PairDealer
from federated.deployment.node.sides.pair_questions import HISTORY, PairQuestions
from federated.deployment.node.solver import ReleaserSteps
from federated.deployment.node.supervisor import opened_total, volume_of
from federated.deployment.pairs import check_pairs
from federated.deployment.signed_messages import SignedMessage
from federated.message_kinds import MessageKind
from federated.messages import Reply, Request, read
from federated.party.statistics import RELEASED
from federated.study.outcome import Outcome
from federated.study.plan import StudyPlan
from federated.study.sides import known_of
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError, PeerError, PolicyError
from lab.privacy.disclosure import Rules
from lab.statistics import QUESTIONS
from secure_agg.keys import PrivateKey

#: Kinds of messages that a supervisor answers.
OF_SUPERVISOR = (
    MessageKind.NEXT,
    MessageKind.OPEN,
    MessageKind.VOUCH,
    MessageKind.DEALER,
    MessageKind.DEAL,
)


class SupervisorRole:
    """A supervisor opens totals by the rule of the key authority, and remembers all it opened."""

    def __init__(self, folder: Path, charter: Charter, private: PrivateKey, rules: Rules) -> None:
        self._charter, self._private, self._rules = charter, private, rules
        if charter.key is None or charter.key.public.n != private.public.n:
            raise ConfigurationError(f"{folder}: its key is not the charter's key")
        self._openings, self._identity = Openings(folder), identity_of(folder)
        self._state, self._solvers = folder / STATE, dict[str, ReleaserSteps]()
        self._questions = dict[str, PairQuestions]()

    def begin(self, run_state: RunState, study: StudyPlan) -> None:
        check_pairs(study, self._charter.pairs)
        check_disclosure(study, self._rules)
        for kind in study.kinds:
            if kind not in self._charter.analyses:
                raise Refusal("analyses", f"the charter does not allow '{kind}'")

    def allow_asker(self, name: str) -> None:
        if name != self._charter.coordinator:
            raise Refusal("askers", f"'{name}' is not the coordinator of the charter")

    def answer(
        self, run_state: RunState, signed_message: SignedMessage, message: Message, log: Log
    ) -> RecordDict:
        kind, run = signed_message.kind, signed_message.run
        if kind not in OF_SUPERVISOR:
            raise PeerError(f"coordinator: sends a supervisor '{kind}', which insurers answer")
        if not run_state.study:
            raise PolicyError("this run was not announced here; nothing in it is answered")
        if kind == MessageKind.VOUCH:
            return profiles.vouch(run_state, self._charter, self._identity, message.content)
        study = StudyPlan.from_json(run_state.study)
        if study.kind == QUESTIONS:
            if study.experiment.joined:
                return self._across(run_state, study, kind, message.content, log)
            return self._opened(run_state, study, message.content, log)
        if kind == MessageKind.DEALER:
            return self._dealer.begin(run, run_state.records, message.content)
        if kind == MessageKind.NEXT:
            levels = read(message.content, "levels").decode()
            record = run_state.records.config_records.setdefault("levels", ConfigRecord())
            if record.setdefault("agreed", levels) != levels:
                raise PeerError("coordinator: other names of levels were agreed on before")
            return self._next(run, study, self._solver(run_state, study), log)
        steps, request = self._solver(run_state, study), Request.from_record(message.content)
        steps.check(request)
        if kind == MessageKind.DEAL:
            turn = message.content.config_records.get("turn", {}).get("turn")
            return self._dealer.deal(run, run_state.records, study, request, turn, log)
        reply = self._opened(run_state, study, message.content, log)
        total = Reply.from_record(reply)
        steps.give(total.sums)
        sums = total.sums if request.statistic in RELEASED else solver.NOTHING
        answer = Reply.of(total.party, sums, None).to_record()
        answer["opened"] = ConfigRecord(dict(volume_of(total.sums)))
        answer.update(self._next(run, study, steps, log))
        return answer

    @property
    def _dealer(self) -> PairDealer:
        return PairDealer(self._charter, self._identity)

    def _across(
        self, run_state: RunState, study: StudyPlan, kind: str, content: RecordDict, log: Log
    ) -> RecordDict:
        """A question across joined sides: what they are asked for it, randomness, what is released."""
        if kind == MessageKind.DEALER:
            return self._dealer.begin(run_state.run, run_state.records, content)
        if (asked := self._questions.get(run_state.run)) is None:
            files = self._state / HISTORY, self._state.parent / LOG_NAME
            asked = PairQuestions(*files, self._charter, self._rules, study)
            self._questions[run_state.run] = asked
        if kind == MessageKind.NEXT:
            return asked.begin(Request.from_record(content))
        request = Request.from_record(content)
        asked.check(request)
        if kind == MessageKind.DEAL:
            turn = content.config_records.get("turn", {}).get("turn")
            return self._dealer.deal(run_state.run, run_state.records, study, request, turn, log)
        total = Reply.from_record(self._opened(run_state, study, content, log))
        told = asked.told(request, total.sums)
        if "shown" in told.arrays:
            log.append(
                "release",
                run=run_state.run,
                query=request.query,
                statistic="cells",
                hiding="released by rules",
                **volume_of(told),
                rows=told.rows,
                key_bits=self._private.public.bits,
                shown=int(told["shown"].sum()),
            )
        return Reply.of(total.party, told, None).to_record()

    def _next(self, run: str, study: StudyPlan, steps: ReleaserSteps, log: Log) -> RecordDict:
        """What follows from the totals so far, signed; the outcome has a line before it leaves."""
        answer = steps.next()
        if "request" not in answer.config_records:
            outcome = Outcome.from_bytes(read(answer, "outcome"))
            log_outcome(log, run, study.digest, outcome)
        return answer

    def _solver(self, run_state: RunState, study: StudyPlan) -> ReleaserSteps:
        run = run_state.run
        if run not in self._solvers:
            levels = run_state.records.config_records.get("levels", {})
            if "agreed" not in levels:
                raise PeerError("coordinator: asks for a step before levels were agreed on")
            self._solvers[run] = ReleaserSteps(
                self._state, run, study, self._charter, self._identity, str(levels["agreed"])
            )
            for old in list(self._solvers)[:-AT_HAND]:
                self._solvers.pop(old).close()
        return self._solvers[run]

    def _opened(
        self, run_state: RunState, study: StudyPlan, content: RecordDict, log: Log
    ) -> RecordDict:
        """The total of a transcript, or what the rules leave of it, as a reply."""
        reply = opened_total(
            self._charter,
            self._private,
            self._rules,
            self._openings,
            log,
            run_state.run,
            content,
            study.owner if study.experiment.joined else None,
            known=known_of(study.experiment),
        )
        profiles.note_released(run_state, content, reply)
        return reply
