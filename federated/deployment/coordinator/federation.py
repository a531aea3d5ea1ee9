"""The coordinator's side of a study: a federation of nodes reached by signed messages.

Solvers ask through ``sum`` as they do in a simulation. A party that does not answer in time, sends
an unusable answer or refuses by a rule is left out of the rest of the run, by name and with the
reason, where the charter says that parties may leave and as long as its minimum of parties remains.
Else the run ends with the reason; started again, it resumes after its last total.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from federated.deployment.audit_logs import log_outcome, vouched
from federated.deployment.charter import Charter
from federated.deployment.coordinator.delivery import Delivery
from federated.deployment.coordinator.exchange import Settings
from federated.deployment.coordinator.participation import (
    Absent,
    Outlook,
    Silent,
    in_one_line,
    outlook,
    too_few,
)
from federated.deployment.coordinator.protection import RemoteAuthority
from federated.deployment.coordinator.resumable_run import ResumableRun
from federated.deployment.coordinator.sides import BEGUN_ANEW
from federated.deployment.enrolment import INSURERS
from federated.deployment.node.profiles import releaser
from federated.deployment.node.solver import total_message
from federated.deployment.node.supervisor import volume_of
from federated.federation import (
    Participant,
    Progress,
    agreement,
    levels_request,
    merged_levels,
    receipt_of,
)
from federated.hiding.protocol import Protection
from federated.joined.protection import INTERRUPTED
from federated.message_kinds import MessageKind
from federated.messages import UNREADABLE, Request, message_of, read
from federated.party import statistics
from federated.party.state import Released
from federated.party.statistics import RELEASED
from federated.study.outcome import Outcome
from federated.study.plan import StudyPlan
from federated.transport.exchange_grid import ExchangeGrid
from lab.audit.log_format import Checkpoint
from lab.audit.log_writer import Log
from lab.errors import LabError, ModelError, PeerError, PolicyError
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.profile import Profile, ProfileCells
from lab.privacy.disclosure import Rules
from lab.privacy.joining import Opened
from lab.sums import Floats, Sums
from secure_agg.errors import Blame
from secure_agg.identity import Identity


class DeployedFederation:
    """All parties of a run, reached by signed messages; what solvers see is a `Parties`."""

    alone = False
    least_parties = 1  # its solver is elsewhere, and goes by the plan

    def __init__(
        self,
        grid: ExchangeGrid,
        protection: Protection,
        folder: Path,
        charter: Charter,
        identity: Identity,
        resumable_run: ResumableRun,
        log: Log,
        plan: StudyPlan,
        insurers: int,
        progress: Progress | None = None,
    ) -> None:
        self.grid: ExchangeGrid = grid
        self.protection, self._progress = protection, progress
        self._folder, self._settings = folder, Settings.read(folder)
        self.charter, self.resumable_run, self._log = charter, resumable_run, log
        self._run, self._sums = resumable_run.run, 0
        self.silent: list[tuple[str, str]] = []
        self.opened = self.openings = list[Opened]()
        self.checkpoints: dict[str, Checkpoint] = {}
        self._since: dict[str, str] = {}
        self._delivery = Delivery(grid, folder, charter, identity, resumable_run, log)
        split = charter.key is not None and charter.key.opens == "split"
        joined = bool(plan.experiment.joined)  # sides are all there, or no total is
        self._together = joined or plan.kind == "questions" or not charter.parties_may_leave
        self._everyone, self._least = insurers, 0 if joined else charter.minimum_parties
        if split or self._together:
            self._least = max(len(charter.roster.names) if split else insurers, self._least)
        opens = charter.key.by if charter.key and charter.key.opens == "authority" else ()
        self._holders = tuple(opens) if protection.hiding == "paillier" else ()
        self.members: tuple[Participant, ...] = ()
        self.members = self._gather(self._settings.gather_seconds)
        self._begin(plan)
        protection.check_parties(len(self.members))
        protection.enrol(self, charter.roster)

    @property
    def names(self) -> tuple[str, ...]:
        """Insurers that take part, in seat order."""
        return tuple(member.name for member in self.members)

    @property
    def everybody(self) -> bool:
        """Whether all parties see every total."""
        return self.protection.everybody

    def _gather(self, patience: float) -> tuple[Participant, ...]:
        """Wait for all members, and at the deadline go on with those who are here."""
        insurers = [
            m.name
            for m in self.charter.members
            if m.role in INSURERS and m.name not in self.resumable_run.absent
        ]
        deadline = time.monotonic() + patience
        here, everybody = self._delivery.here(deadline), {*insurers, *self._holders}
        while not everybody <= set(here) and time.monotonic() < deadline:
            time.sleep(0.2)
            here = self._delivery.here(deadline)
        for name in self._holders:
            if name not in here:
                raise PeerError(
                    f"{name}: must open totals, but did not connect within {patience:g} s", name
                )
        late = [name for name in insurers if name not in here]
        self._leave({name: f"{name}: did not connect within {patience:g} s" for name in late}, here)
        self._since = {name: presence.since for name, presence in here.items()}
        cards = {card.name: card for card in self.charter.roster.cards}
        seats = list(self.charter.roster.names)
        return tuple(
            Participant(name, here[name].node, seats.index(name), cards[name])
            for name in insurers
            if name in here
        )

    def _leave(self, reasons: Mapping[str, str], among: Iterable[str]) -> None:
        """Note who is left out from now on. Raises :class:`PeerError` where too few would be left;
        then nobody is noted, and the run can be taken up again with all."""
        remainder = {c.name for c in self.charter.roster.cards if c.name in among} - set(reasons)
        if len(remainder) < self._least:
            absent = {**self.resumable_run.absent, **reasons}
            raise too_few(len(remainder), self._least, absent, together=self._together)
        for name, reason in reasons.items():
            self.resumable_run.leave(name, reason)
            self._log.append("fault", run=self._run, what=f"the run continues without {reason}")
            if self._progress:
                self._progress(f"without {reason}", self._sums)

    def _go_on_without(self, reasons: Mapping[str, str]) -> None:
        """Leave parties out of the rest of the run. Raises :class:`PeerError` below the minimum."""
        for name in self._holders:
            if name in reasons:
                raise PeerError(reasons[name], name)
        self._leave(reasons, self.names)
        self.members = tuple(m for m in self.members if m.name not in reasons)

    def _begin(self, plan: StudyPlan) -> None:
        announcement = message_of(study=plan.to_json().encode())
        while True:
            everyone = dict.fromkeys((*self.names, *self._holders), announcement)
            try:
                self.ask(MessageKind.BEGIN, everyone)
                return
            except Absent as absent:
                self._go_on_without(absent.reasons)

    def ask(
        self, action: str, contents: Mapping[str, RecordDict], *, patient: bool = False
    ) -> dict[str, RecordDict]:
        """Send each party its message; the answers by name, in seat order.

        Raises :class:`Absent` with the reason for each party that did not answer, answered what
        cannot be used, or refused; with ``patient``, where parties may leave, only for refusals.
        """
        here = {*self.names, *self._holders}
        messages = self._delivery.messages(
            action, {name: content for name, content in contents.items() if name in here}
        )
        replies = self._delivery.replies(messages)
        answers: dict[str, RecordDict] = {}
        reasons: dict[str, str] = {}
        for name in contents:
            try:
                if name not in replies:
                    raise Silent
                answers[name] = self._delivery.answer(name, messages[name], replies[name])
            except Silent:
                self.silent.append((name, action))
                if not patient or (self._together and name in here):
                    seconds = self._settings.answer_seconds
                    reasons[name] = f"{name}: did not answer within {seconds:g} s"
            except LabError as error:
                if isinstance(error, ModelError) or error.rule == INTERRUPTED:
                    raise
                reasons |= self._at_fault(name, error)
        if reasons:
            raise Absent(reasons, answers)
        return answers

    def _at_fault(self, name: str, error: LabError) -> dict[str, str]:
        """Why somebody gave no answer, by who is to blame for it: the parties that an opener of
        totals names, else whoever did not answer."""
        culprits = error.culprits if isinstance(error, PeerError) else ()
        blamed = set(culprits) & set(self.names) if name in self._holders else ()
        text = str(error).removeprefix(f"{name}: ") if blamed else str(error)
        return dict.fromkeys(blamed or (name,), text)

    def sum(
        self, statistic: str, arrays: Mapping[str, Floats] | None = None, **arguments: Any
    ) -> Sums:
        """The total of a statistic over all parties that take part, or as it was opened before."""
        return self.total(
            statistics.request(
                statistic,
                arguments,
                arrays or {},
                query="",
                hiding=self.protection.hiding,
                charter=self.charter.digest,
            )
        )

    def total(self, request: Request) -> Sums:
        """The total that answers a request, of all parties that take part, or as it was opened
        before; empty where it stays with whoever signs the plan's questions."""
        self._sums += 1
        if self._progress:
            self._progress(request.statistic, self._sums)
        totals, question = self.resumable_run.totals, request.question.hex()
        if not request.signature and (earlier := totals.read(self._sums, question)) is not None:
            return earlier
        query, total = self._new_total(request)
        self._log_release(query, request, total)
        if not request.signature:
            totals.write(self._sums, question, total, self.protection.proof)
        return total

    def tell(self, question: Request) -> None:
        """Tell every party the total of a step, so that it can open it for itself; who does not
        take it leaves the run."""
        proof = self.resumable_run.totals.proof(question.step)
        self._asked_of_all(MessageKind.TOTAL, self.names, total_message(question, proof))

    def agree(self, levels: Mapping[str, Sequence[str]]) -> None:
        """Tell all parties the names of levels by column that they have together."""
        self._asked_of_all(MessageKind.AGREED, self.names, agreement(levels))

    def _new_total(self, request: Request) -> tuple[str, Sums]:
        """The query and the total of those who are left when all of them have answered it."""
        self._all_behind(request.statistic, {})
        begun_anew = 0
        while True:
            query = f"{self._run}-{self._delivery.last_number + 1}"
            with_masks = self.protection.hiding == "masks"  # which takes off what is not there
            parties = self.charter.roster.names if with_masks else self.names
            try:
                query_request = replace(request, query=query, parties=parties)
                return query, self.protection.total(self, query_request)
            except Absent as absent:
                reasons = absent.reasons
            except PolicyError as error:
                begun_anew += 1
                if error.rule != INTERRUPTED or begun_anew > BEGUN_ANEW:
                    raise
                self._log.append("fault", run=self._run, query=query, what=str(error))
                continue
            except (PeerError, Blame) as error:
                reasons = {name: str(error) for name in error.culprits if name in self.names}
                if not reasons:
                    raise
            self._all_behind(request.statistic, reasons)
            self._go_on_without(reasons)

    def _log_release(self, query: str, request: Request, total: Sums) -> None:
        """The line of a total that was opened, here or at a supervisor that keeps it."""
        opener = getattr(self.protection, "opener", None)
        volume: dict[str, Any] = {**volume_of(total), "rows": total.rows}
        if request.signature and isinstance(opener, RemoteAuthority):
            volume = {**opener.opened, "rows": "not told"}
        self._log.append(
            "release",
            run=self._run,
            query=query,
            statistic=request.statistic,
            hiding=self.protection.hiding,
            **volume,
            key_bits=self.charter.key.public.bits if self.charter.key else 0,
            parties=list(self.names),
        )

    def _all_behind(self, statistic: str, absent: Mapping[str, str]) -> None:
        """Raises :class:`PeerError` where what is released by rules would be of fewer than were
        meant: no question or profile of all would be opened after it, in no run."""
        if statistic in RELEASED and len(set(self.names) - set(absent)) < self._everyone:
            summary = in_one_line({**self.resumable_run.absent, **absent})
            raise PeerError(
                f"'{statistic}' needs all parties: {summary}. --without NAME leaves one out"
            )

    def join(self, profiles: Sequence[Profile]) -> None:
        """Give every party the profiles that features come from, and their releaser's word."""
        for profile in profiles:
            parts = {"profile": profile.model_dump_json().encode()}
            if self.protection.hiding != "clear":
                digest = message_of(digest=profile.digest.encode())
                (answer,) = self._asked_of_all(MessageKind.VOUCH, (releaser(self.charter),), digest)
                parts["voucher"] = read(answer, "voucher")
            self._asked_of_all(MessageKind.JOIN, self.names, message_of(**parts))

    def _asked_of_all(
        self, action: str, names: tuple[str, ...], content: RecordDict
    ) -> Iterable[RecordDict]:
        """What they answer to one message; who does not leaves the run."""
        try:
            return self.ask(action, dict.fromkeys(names, content)).values()
        except Absent as absent:
            self._go_on_without(absent.reasons)
            return absent.answers.values()

    def profile(self, cells: ProfileCells, rules: Rules) -> Profile:
        """What the rules leave of the parties' sums by provider and period."""
        return Profile.of(cells, self.sum("profile", cells=cells, rules=rules))

    def levels(self, task: Task, features: tuple[Feature, ...]) -> list[tuple[str, ...]]:
        """Names of the levels of each feature; who does not answer readably leaves the run."""
        request = levels_request(task, features)
        while True:
            try:
                answers = self.ask(MessageKind.LEVELS, dict.fromkeys(self.names, request))
                return merged_levels(answers, features)
            except Absent as absent:
                self._go_on_without(absent.reasons)
            except PeerError as error:
                if not error.culprits:
                    raise
                self._go_on_without(dict.fromkeys(error.culprits, str(error)))

    def _of_those_who_answer(
        self, action: str, names: tuple[str, ...], content: RecordDict | None = None
    ) -> dict[str, RecordDict]:
        try:
            return self.ask(action, dict.fromkeys(names, content or RecordDict()))
        except Absent as absent:
            return absent.answers

    def receipts(self) -> dict[str, list[Released]]:
        """What left each party that shows it; a party that does not is no fault."""
        answers = self._of_those_who_answer(MessageKind.RECEIPT, self.names)
        receipts = {}
        for name, answer in answers.items():
            try:
                receipts[name] = receipt_of(name, answer)
            except PeerError as error:
                self._log.append("fault", run=self._run, what=str(error))
        return receipts

    def deliver(self, content: RecordDict, outcome: Outcome) -> None:
        """Give every party the model; one that does not take it has done its part all the same.

        content: the outcome as it travels.
        """
        log_outcome(self._log, self._run, self.resumable_run.plan, outcome)
        recipients = self._of_those_who_answer(MessageKind.DELIVER, self.names, content)
        for name in self.names:
            if name not in recipients:
                what = f"{name}: did not confirm the model"
                self._log.append("fault", run=self._run, what=what)

    def take_checkpoints(self) -> None:
        """Have every party sign the end of its log, and keep that as a witness."""
        answers = self._of_those_who_answer(MessageKind.CHECKPOINT, (*self.names, *self._holders))
        for name, answer in answers.items():
            try:
                fields = json.loads(str(answer.config_records["checkpoint"]["fields"]))
                checkpoint = Checkpoint.of(fields)
                vouched(checkpoint, self.charter.member(name).card)
            except (LabError, *UNREADABLE) as error:
                self._log.append("fault", run=self._run, what=f"{name}: no checkpoint: {error}")
                continue
            self._log.witness(checkpoint, run=self._run)
            self.checkpoints[name] = checkpoint

    def outlook(self, receipts: Mapping[str, list[Released]]) -> list[Outlook]:
        """Who was here, since when, the rows behind their sums, and why who left."""
        return outlook(self.charter, self.resumable_run.absent, self._since, receipts)
