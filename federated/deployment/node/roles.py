"""The role of an insurer's node: it answers from its rows; a supervisor's opens totals."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from flwr.app import ConfigRecord, Context, Message, RecordDict

from federated.app import client_app
from federated.deployment.audit_logs import LOG_NAME, log_outcome
from federated.deployment.charter import same
from federated.deployment.node import profiles, solver
from federated.deployment.node.results import take
from federated.deployment.node.rules.policy import InsurerPolicy
from federated.deployment.node.rules.refusals import Refusal
from federated.deployment.node.rules.settings import STATE
from federated.deployment.node.run_state import RunState
from federated.deployment.node.sides.node_side import NodeSide, log_letters
from federated.deployment.node.sides.policy import SidePolicy
from federated.deployment.node.supervisor import SHARE_FILE, log_opened
from federated.deployment.signed_messages import SignedMessage
from federated.deployment.totals import TotalsOnDisk
from federated.joined.side import JoinedSide
from federated.message_kinds import MessageKind
from federated.messages import Reply, Request, read
from federated.party.binding import Binding, SignedSteps
from federated.party.party import Party
from federated.party.party_sets import PartySets
from federated.party.state import NodeState
from federated.study.plan import StudyPlan
from federated.study.steps import Replay
from lab.audit import log_format as audit
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError, PeerError, PolicyError
from lab.files import read_json
from lab.statistics import QUESTIONS
from secure_agg.errors import SecureAggError
from secure_agg.identity import Identity
from secure_agg.shares import SplitKey
from secure_agg.transcript import Transcript

#: Records of a state that stand in files of their own and are put back when a run is taken up.
SECRETS = ("identity", "enrolled", "share", "profiles")
#: Runs whose rows are kept at hand.
AT_HAND = 4


class NodeRole(Protocol):
    """What answers a message."""

    def begin(self, run_state: RunState, study: StudyPlan) -> None:
        """Take part in a run, or raise what speaks against it."""

    def allow_asker(self, name: str) -> None:
        """Raises :class:`Refusal` for somebody who may not ask."""

    def answer(
        self, run_state: RunState, signed_message: SignedMessage, message: Message, log: Log
    ) -> RecordDict:
        """The reply, which may be a refusal; changes what is kept of the run."""


def refuse_lost(sets: Path, log: Path) -> None:
    """Raises :class:`ConfigurationError` where sums were released and nobody knows of which parties."""
    if sets.exists() or not log.exists():
        return
    if any(entry.kind == "release" for entry in audit.entries(audit.read_lines(log))):
        raise ConfigurationError(
            f"{sets}: missing, while {log.name} tells of released sums; without it, totals of other parties "
            "than before would be allowed: put a copy back"
        )


class InsurerRole:
    """An insurer answers by the same client app as in a simulation, on its own rows."""

    def __init__(
        self, folder: Path, insurer: InsurerPolicy, seed: bytes, tell: Callable[[str], None]
    ) -> None:
        self._folder, self._insurer, self._seed, self._tell = folder, insurer, seed, tell
        self._charter, self._name = insurer.charter, insurer.settings.name
        self._side: NodeSide | None = None
        if self._charter.pairs is not None and insurer.settings.joined is not None:
            self._side = NodeSide(folder, SidePolicy(folder, insurer.settings, self._charter))
        self._parties: dict[str, Party] = {}
        sets = folder / STATE / "party_sets.jsonl"
        refuse_lost(sets, folder / LOG_NAME)
        self._party_sets = PartySets(
            sets,
            apart=insurer.minimum_parties,
            by_question=self._charter.parties_may_leave,
        )
        self._now = ""
        self._app = client_app(lambda seat: self._parties[self._now], insurer.limits.hiding)

    def begin(self, run_state: RunState, study: StudyPlan) -> None:
        self._policy(study).consider(study)
        self._take_up(run_state, study)
        self._memory(run_state, study)

    def _policy(self, study: StudyPlan) -> InsurerPolicy:
        """The rules by which this node takes part in a plan."""
        return self._side_of(study).policy if study.experiment.joined else self._insurer

    def _side_of(self, study: StudyPlan) -> NodeSide:
        if self._side is None or not study.experiment.joined:
            raise Refusal("pairs", "this party is joined to no other in this plan")
        return self._side

    def _take_up(self, run_state: RunState, study: StudyPlan) -> None:
        party = self._policy(study).party(study, rows_secret(self._seed))
        self._parties[run_state.run] = party
        party.party_sets = self._party_sets
        party.profiles |= profiles.load_profiles(self._folder / STATE, run_state.run)
        if study.kind != QUESTIONS:  # each of which is announced by its text
            party.binding = self._binding(run_state.run, study)
        for old in list(self._parties)[:-AT_HAND]:
            binding = self._parties.pop(old).binding
            if isinstance(binding, Replay):
                binding.close()

    def _party(self, run_state: RunState, study: StudyPlan, asker: str) -> Party:
        """This insurer's rows in a run, for whoever asks."""
        if run_state.run not in self._parties:
            self._take_up(run_state, study)
        party = self._parties[run_state.run]
        if party.query_table is not None:
            party.query_table.asker = asker
        return party

    def _binding(self, run: str, study: StudyPlan) -> Binding:
        """What the questions of a run are held against."""
        charter, hiding = self._charter, self._insurer.limits.hiding
        if charter.key is not None and solver.signed_steps(charter) and hiding == "paillier":
            releaser = charter.member(charter.key.by[0]).card.verifying
            return SignedSteps(releaser, study.digest, run)
        totals = self._totals(run)
        return Replay(lambda levels: solver.taken_up(study, levels, hiding, charter, totals))

    def _totals(self, run: str) -> TotalsOnDisk:
        return TotalsOnDisk(self._folder / STATE / f"{run}.totals")

    def _state(self, memory: Context) -> NodeState:
        return NodeState(memory, self._name, self._insurer.limits.hiding)

    def _take_total(self, run: str, state: NodeState, party: Party, content: RecordDict) -> None:
        """A total of the plan that this party replays, on disk before its solver goes on."""
        if not isinstance(party.binding, Replay):
            raise PeerError("coordinator: sends a total to a party that replays nothing")
        levels = state.standing().levels
        own = party.binding.steps(levels).question
        if own is not None and own.step == solver.step_of(content):
            try:
                total = solver.total_of(content, run, own, party, state)
            except SecureAggError as error:
                raise PeerError(f"coordinator: shows a total that does not open: {error}") from None
            self._totals(run).write(own.step, own.question.hex(), total)
            party.binding.give(own.step, total, levels)

    def _memory(self, run_state: RunState, study: StudyPlan) -> Context:
        """The app's state, with the secrets that stand elsewhere put back."""
        seat = self._charter.roster.names.index(self._name)
        context = Context(
            run_id=0,
            node_id=0,
            node_config={
                "partition-id": seat,
                "minimum-parties": self._least(study),
            },
            state=run_state.records,
            run_config={},
        )
        if "identity" not in run_state.records:
            run_state.records["identity"] = ConfigRecord({"seed": self._seed})
            key = self._charter.key
            if key is not None:
                modulus = key.public.n.to_bytes(-(-key.public.bits // 8), "big")
                split, share = share_of(self._folder, key.split, self._name)
                roster = self._charter.roster.to_bytes()
                NodeState(context, self._name, "paillier").enrol(
                    roster, modulus, split, share, fewest=self._charter.fewest
                )
            else:
                roster = self._charter.roster.to_bytes()
                NodeState(context, self._name, "masks").enrol(roster, b"", b"", b"")
        return context

    def _least(self, study: StudyPlan) -> int:
        """Parties behind a sum at least. Who holds a share of the key sees no other opening, so that
        with a split key nobody but all parties together can tell what sets of them would show; and of
        joined sides each has a share of every sum."""
        split = self._charter.key is not None and self._charter.key.opens == "split"
        whole = split or bool(study.experiment.joined)
        return len(self._charter.roster.names) if whole else self._insurer.minimum_parties

    def allow_asker(self, name: str) -> None:
        self._insurer.allow_asker(name)

    def answer(
        self, run_state: RunState, signed_message: SignedMessage, message: Message, log: Log
    ) -> RecordDict:
        if not run_state.study:
            raise PolicyError("this run was not announced here; nothing in it is answered")
        study = StudyPlan.from_json(run_state.study)
        party = self._party(run_state, study, signed_message.sender)
        memory = self._memory(run_state, study)
        acknowledgement = RecordDict({"acknowledgement": ConfigRecord({"party": self._name})})
        if signed_message.kind == MessageKind.TOTAL:
            self._take_total(run_state.run, self._state(memory), party, message.content)
            return acknowledgement
        if signed_message.kind == MessageKind.DELIVER:
            self._deliver(run_state.run, study, party, memory, message.content, log)
            return acknowledgement
        header = message.content.config_records.get("request", {})
        if "statistic" in header:
            arguments = str(header.get("arguments", "{}"))
            self._policy(study).allow_statistic(study, str(header["statistic"]), arguments)
            if not str(header.get("query", "")).startswith(f"{run_state.run}-"):
                raise PeerError("coordinator: sends a query of another run")
            same(self._charter.digest, str(header.get("charter", "")), signed_message.sender)
        if isinstance(party, JoinedSide):
            reply = self._between_sides(run_state.run, study, party, memory, message, log)
            if reply is not None:
                return reply
        match signed_message.kind, header.get("statistic"):
            case MessageKind.VOUCH, _:
                own = Identity(self._name, self._seed)
                return profiles.vouch(run_state, self._charter, own, message.content)
            case MessageKind.LEVELS, _ if study.kind != QUESTIONS:
                solver.check_levels(study, message.content)
            case MessageKind.JOIN, _:
                profiles.check_joined(run_state, self._charter, study, message.content)
            case _, "profile":
                request = Request.from_record(message.content)
                profiles.consider(run_state, study, party.rules, request)
        self._now = run_state.run
        reply = self._app(message, memory).content
        if signed_message.kind == MessageKind.PRODUCT:
            query, statistic = str(header.get("query", "")), str(header.get("statistic", ""))
            log_letters(log, run_state.run, query, statistic, reply)
        if signed_message.kind == MessageKind.JOIN:
            profiles.save_profiles(self._folder / STATE, run_state.run, party.profiles)
        if signed_message.kind == MessageKind.RELEASE and "reply" in reply.config_records:
            profiles.note_released(run_state, message.content, reply)
            _log_release(log, run_state.run, message.content, reply)
        return reply

    def _deliver(
        self,
        run: str,
        study: StudyPlan,
        party: Party,
        memory: Context,
        content: RecordDict,
        log: Log,
    ) -> None:
        """Take the model home, if it is what the plan comes to."""
        own_steps = None
        if isinstance(party.binding, Replay):
            own_steps = party.binding.steps(self._state(memory).standing().levels)
        outcome = solver.check_outcome(self._charter, study, run, content, own_steps)
        log_outcome(log, run, study.digest, outcome)
        self._tell(take(self._folder, run, study, party, outcome))

    def _between_sides(
        self,
        run: str,
        study: StudyPlan,
        party: JoinedSide,
        memory: Context,
        message: Message,
        log: Log,
    ) -> RecordDict | None:
        """The reply to what sides say to each other; None where the app answers, with what the
        message then holds."""
        side, state, content = self._side_of(study), self._state(memory), message.content
        match message.metadata.message_type:
            case MessageKind.ALIGNED:
                return side.aligned()
            case MessageKind.ALIGN:
                reply = side.align(content, run, log)
                if int(str(reply.config_records["aligned"]["size"])) >= 0:
                    self._parties.pop(run)  # its rows have places now
                return reply
            case MessageKind.PAIR:
                side.pair(state, content, run)
                return RecordDict()
            case MessageKind.PRODUCT:
                message.content = side.product(party, study, state, content, log)
            case "query":
                side.check_share(party, content)
        return None


def rows_secret(seed: bytes) -> bytes:
    """What an insurer draws rows, orders and resamples by. seed: of its keys."""
    return hashlib.sha256(b"rows " + seed).digest()


def _log_release(log: Log, run: str, content: RecordDict, reply: RecordDict) -> None:
    """The line of an insurer that released what its rules left of a total."""
    transcript, request = (
        Transcript.from_bytes(read(content, "transcript")),
        Request.from_record(content),
    )
    log_opened(log, run, transcript, request.statistic, Reply.from_record(reply).sums)


def share_of(folder: Path, digest: str, name: str) -> tuple[bytes, bytes]:
    """The public part of a split key and this holder's sealed share, from the dealer's file."""
    if not digest:
        return b"", b""
    path = folder / SHARE_FILE
    split = split_of(path, digest)
    try:
        return split.to_bytes(), bytes.fromhex(read_json(path)["share"])
    except (KeyError, ValueError, TypeError):
        raise ConfigurationError(f"{path}: holds no share for {name}") from None


def split_of(path: Path, digest: str) -> SplitKey:
    """The public part of a split key. Raises :class:`ConfigurationError`."""
    if not path.exists():
        raise ConfigurationError(
            f"{path}: missing; put this insurer's file from lab keys deal here"
        )
    try:
        split = SplitKey.from_bytes(bytes.fromhex(read_json(path)["split"]))
    except (KeyError, ValueError, TypeError, SecureAggError):
        raise ConfigurationError(f"{path}: holds no public part of a split key") from None
    if split.digest.hex() != digest:
        raise ConfigurationError(f"{path}: belongs to another key than the charter's")
    return split
