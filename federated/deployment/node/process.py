"""The process of a node: it takes one message at a time, checks it, logs it and replies.

An insurer and a supervisor differ in the role that answers (`InsurerRole`, `SupervisorRole`); the
rest is the same. The order is what matters: the request is logged, the policy is checked, the reply
is computed, what is to leave is logged and the state is on disk, and only then the reply leaves.

Nothing is ever loaded from an app that travels: a run whose app is not the approved bundle is
refused by its hash, before the bundle would be fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from flwr.app import ConfigRecord, Message, RecordDict

from federated.deployment.audit_logs import LOG_NAME, open_log
from federated.deployment.charter import same
from federated.deployment.enrolment import INSURERS
from federated.deployment.folders import charter_of, identity_of, seed_of
from federated.deployment.node import run_state as run_states
from federated.deployment.node.roles import (
    SECRETS,
    InsurerRole,
    NodeRole,
)
from federated.deployment.node.rules.policy import InsurerPolicy
from federated.deployment.node.rules.refusals import Refusal
from federated.deployment.node.rules.settings import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    STATE,
    NodeSettings,
    admission_of,
)
from federated.deployment.node.run_state import RunState
from federated.deployment.node.supervisor_role import SupervisorRole
from federated.deployment.signed_messages import SignedMessage, claimed, received
from federated.federation import single_threaded_blas
from federated.message_kinds import MessageKind
from federated.messages import read, refuse
from federated.party.release import RELEASED
from federated.party.state import Released
from federated.study.plan import StudyPlan
from federated.transport.node_line import LineError, NodeLine, bundle
from lab.audit.approvals import approver
from lab.errors import ConfigurationError, LabError, LogError, PeerError
from lab.files import write_whole
from lab.packages import restrict
from lab.text import printable
from secure_agg.errors import Blame, SecureAggError
from secure_agg.identity import Identity
from secure_agg.keys import PrivateKey

#: What a release cost, which has a line of its own in the log.
NOISE = ("epsilon", "delta")
#: Seconds between two tries to come in, at first and at most.
FIRST_WAIT, LONGEST_WAIT = 0.2, 20.0
Tell = Callable[[str], None]


class Node:
    """The process. ``serve`` runs it until it is told to stop."""

    def __init__(self, folder: Path, tell: Tell, unlock: Callable[[], PrivateKey]) -> None:
        self.folder, self._say = folder, tell
        self.settings = NodeSettings.read(folder)
        restrict(self.settings.limits.analyses)
        self.identity: Identity = identity_of(folder)
        name = self.settings.name
        if self.identity.card.name != name:
            raise ConfigurationError(
                f"{folder}: node.toml names {name}, identity.json another party"
            )
        self.charter = charter_of(folder, name)
        self.admission = admission_of(folder, name)
        self._answers: NodeRole
        if self.settings.role in INSURERS:
            insurer = InsurerPolicy(folder, self.settings, self.charter)
            insurer.table()  # a table that breaks its contract is told now, not in the first run
            self._answers = InsurerRole(folder, insurer, seed_of(folder), self._tell)
        else:
            rules = self.settings.rules(folder)
            self._answers = SupervisorRole(folder, self.charter, unlock(), rules)
        self._bundle = hashlib.sha256(bundle()).hexdigest()
        self._apps: dict[int, str] = {}
        self._stop, self._waiting, self._wait = threading.Event(), False, FIRST_WAIT

    def serve(self, ready: Callable[[], None] | None = None) -> None:
        """Take part until SIGINT or SIGTERM. Raises ConfigurationError where nobody lets it in."""
        with (
            open_log(
                self.folder / LOG_NAME, self.identity, charter=self.charter.digest
            ) as self.log,
            self._signals(),
            single_threaded_blas(),  # as in a simulation: the same bits for any number of cores
        ):
            if (key := self.charter.key) is not None:
                insurer = self.settings.role in INSURERS
                event = "sums are encrypted to it" if insurer else "totals are opened with it"
                self.log.append("key", event=event, fingerprint=key.public.fingerprint)
            while not self._stop.is_set():
                line = self._line()
                try:
                    self._take_part(line, ready)
                except LineError as error:
                    self._explain(error)
                    with suppress(StopSignal), self._interruptible():
                        self._stop.wait(self._wait)
                    self._wait = min(LONGEST_WAIT, self._wait * 1.6)
                except StopSignal:
                    break
                finally:
                    line.close()

    def _tell(self, text: str) -> None:
        """Tell whoever looks on, in one line; where nobody can, the work goes on."""
        with suppress(OSError):
            self._say(printable(" ".join(map(str.strip, text.splitlines()))))

    def _line(self) -> NodeLine:
        from federated.deployment import certificates

        key = self.folder / KEY
        tls = certificates.client_side(self.folder / AUTHORITY, self.folder / CERTIFICATE, key)
        return NodeLine(self.admission.address, certificates.read_key(key), tls)

    def _explain(self, error: LineError) -> None:
        if error.barred:
            self._tell(f"{error}; ask the coordinator to register this node")
            self.log.append("fault", what=str(error))
        else:
            self._tell(f"{error}; retrying")

    def _take_part(self, line: NodeLine, ready: Callable[[], None] | None) -> None:
        place = self.folder / "last_node"
        last_node = place.read_text() if place.exists() else ""
        before = int(last_node) if last_node.isdecimal() else 0
        node, self._apps = line.open(before), {}  # an exchange started anew may name other runs so
        write_whole(place, str(node).encode())
        self._wait = FIRST_WAIT
        self._tell(f"{self.settings.name} is in the exchange at {self.admission.address}")
        if ready is not None:
            ready()
        while not self._stop.is_set():
            try:
                with self._interruptible():
                    message = line.pull()
            except PeerError as error:
                if isinstance(error, LineError):
                    raise
                self.log.append("fault", what=str(error))
                continue
            if message is not None:
                self._send(line, Message(self.handle(line, message), reply_to=message))

    def _send(self, line: NodeLine, reply: Message) -> None:
        """Send a reply. Where the line breaks, the message comes again and gets the same one; a run
        that is over takes none."""
        try:
            line.push(reply)
        except LineError as error:
            if error.passing:
                raise
            what = f"the exchange did not take a reply: {error}"
            self._tell(what)
            self.log.append("fault", what=what)

    def handle(self, line: NodeLine, message: Message) -> RecordDict:
        """The records of a reply, signed; whatever goes wrong is a typed refusal.

        A line that breaks is no refusal: :class:`LineError` is raised, and the message comes again.
        """
        signed_message: SignedMessage | None = None
        try:
            signed_message = self._verify(line, message)
            return self._handle(signed_message, message)
        except LineError:
            raise
        except LogError as error:
            self._tell(str(error))
            failure: LabError = LogError("this party cannot write its log; nothing leaves it")
        except LabError as error:
            failure = error
        except Blame as error:
            failure = PeerError(str(error), *error.culprits)
        except SecureAggError as error:
            failure = PeerError(str(error))
        except Exception as error:  # a defect: its type may leave, its text may not
            if os.environ.get("LAB_TRACEBACK"):
                traceback.print_exc()
            failure = PeerError(f"failed with {type(error).__name__}")
        return self._refuse(signed_message, message, failure)

    def _verify(self, line: NodeLine, message: Message) -> SignedMessage:
        """The signed message in one of Flower's, its app, sender, charter and recipients checked."""
        run = message.metadata.run_id
        if run not in self._apps:
            self._apps = {run: line.app_of(run)}
        if self._apps[run] != self._bundle:
            raise Refusal(
                "app", f"app {self._apps[run][:16]} is not the approved app {self._bundle[:16]}"
            )
        sender = self.charter.member(claimed(message.content).sender)
        signed_message = received(message.content, sender.card)
        same(self.charter.digest, signed_message.charter, signed_message.sender)
        if self.settings.name not in signed_message.to:
            raise PeerError(f"{signed_message.sender}: sent a message that is addressed to others")
        self._answers.allow_asker(signed_message.sender)
        return signed_message

    def _handle(self, signed_message: SignedMessage, message: Message) -> RecordDict:
        run_state = run_states.load(self.folder / STATE, signed_message.run)
        if (before := run_state.before(signed_message.number, signed_message.digest)) is not None:
            return before
        query, statistic = _about(signed_message)
        self.log.append(
            "request",
            run=signed_message.run,
            query=query,
            statistic=statistic,
            by=signed_message.sender,
        )
        receipt = len(_lines(run_state.records))
        content = self._content_of_reply(run_state, signed_message, message)
        refusal = content.config_records.get("refusal")
        if refusal is not None:
            self._log_refusal(
                signed_message, query, statistic, str(refusal["rule"]), str(refusal["text"])
            )
        for line in _lines(run_state.records)[receipt:]:
            release = Released(**json.loads(line))
            details = {k: v for k, v in vars(release).items() if k not in ("query", *NOISE)}
            if release.statistic in RELEASED:  # a filter's rows would tell more than its total
                details["rows"] = "not told"
            self.log.append("release", run=signed_message.run, query=release.query, **details)
            if release.epsilon:
                noise = {"epsilon": release.epsilon, "delta": release.delta}
                self.log.append("budget", run=signed_message.run, query=release.query, **noise)
        reply = signed_message.reply(self.settings.name, content).signed(self.identity)
        run_state.answer(signed_message.number, signed_message.digest, reply)
        run_state.save(self.folder / STATE, SECRETS)
        return reply

    def _content_of_reply(
        self, run_state: RunState, signed_message: SignedMessage, message: Message
    ) -> RecordDict:
        if signed_message.kind == MessageKind.BEGIN:
            return self._begin(run_state, signed_message)
        if signed_message.kind == MessageKind.CHECKPOINT:
            return RecordDict(
                {"checkpoint": ConfigRecord({"fields": json.dumps(vars(self.log.checkpoint()))})}
            )
        inner = Message(signed_message.content, reply_to=message)
        inner.metadata.message_type = signed_message.kind
        return self._answers.answer(run_state, signed_message, inner, self.log)

    def _begin(self, run_state: RunState, signed_message: SignedMessage) -> RecordDict:
        text = read(signed_message.content, "study").decode()
        study = StudyPlan.from_json(text)
        if run_state.study and run_state.study != text:
            raise PeerError("coordinator: announces another study within a run")
        self._answers.begin(run_state, study)
        if not run_state.study:
            who = approver(self.folder, study.digest) or "its own rules"
            details = {"statistic": study.title, "by": who, "plan": study.digest}
            self.log.append("approval", run=run_state.run, **details)
        run_state.study = text
        self._tell(f"run {run_state.run}: {study.title}, asked by {signed_message.sender}")
        return RecordDict({"acknowledgement": ConfigRecord({"party": self.settings.name})})

    def _log_refusal(
        self, signed_message: SignedMessage | None, query: str, statistic: str, rule: str, text: str
    ) -> None:
        run = (
            signed_message.run
            if signed_message and run_states.RUN.fullmatch(signed_message.run)
            else ""
        )
        self.log.append("refusal", run=run, query=query, statistic=statistic, rule=rule, text=text)
        self._tell(f"refused: {text}")

    def _refuse(
        self, signed_message: SignedMessage | None, message: Message, failure: LabError
    ) -> RecordDict:
        query, statistic = (
            _about(signed_message) if signed_message else ("", message.metadata.message_type)
        )
        if not isinstance(failure, LogError):
            with suppress(LogError):
                self._log_refusal(signed_message, query, statistic, failure.rule, str(failure))
        content = refuse(failure, self.settings.name)
        if signed_message is None:
            signed_message = self._as_it_says(message)
        return signed_message.reply(self.settings.name, content).signed(self.identity)

    def _as_it_says(self, message: Message) -> SignedMessage:
        """What is refused unopened: the refusal is for this place in this run, and for no other."""
        nothing = SignedMessage(self.charter.digest, "", -1, "", (), "", b"")
        with suppress(LabError):
            says = claimed(message.content)
            return replace(nothing, run=says.run, number=says.number, sender=says.sender)
        return nothing

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            self._stop.set()
            if self._waiting:
                raise StopSignal

        before = {sign: signal.signal(sign, stop) for sign in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """While nothing is half-done, a signal ends the waiting at once."""
        self._waiting = True
        try:
            if self._stop.is_set():
                raise StopSignal
            yield
        finally:
            self._waiting = False


class StopSignal(BaseException):
    """A signal came while nothing was half-done."""


def _about(signed_message: SignedMessage) -> tuple[str, str]:
    """The query of a message and what it asks for, for the log."""
    with suppress(LabError):
        request = signed_message.content.config_records.get("request")
        if request is not None:
            return str(request.get("query", "")), str(request.get("statistic", ""))
    return "", signed_message.kind


def _lines(records: RecordDict) -> list[str]:
    """The receipt in a node's state."""
    receipt = records.config_records.get("receipt", {})
    return str(receipt.get("lines", "")).splitlines()
