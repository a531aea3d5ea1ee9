"""A study with real parties: the coordinator's side.

Solvers ask through ``sum`` as they do in a simulation; behind it are signed messages to processes
that may be slow, gone, wrong or unwilling. A party that does not answer in time, answers what cannot be
used, or refuses by a rule is left out of the rest of the run where the charter's minimum allows it,
and is named; below the minimum the run ends with the reason, and goes on from its last total when
it is started again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict

from federated.deployment.audit_logs import vouched
from federated.deployment.charter import Charter, same
from federated.deployment.coordinator.delivery import Delivery
from federated.deployment.coordinator.exchange import Settings
from federated.deployment.coordinator.participation import (
    Absent,
    Outlook,
    Silent,
    in_one_line,
    outlook,
)
from federated.deployment.coordinator.resumable_run import ResumableRun, question_of
from federated.deployment.enrolment import INSURERS
from federated.deployment.node.profiles import releaser
from federated.deployment.plan import AnnouncedPlan
from federated.deployment.signed_messages import SignedMessage, answering, received
from federated.federation import (
    Participant,
    Progress,
    levels_request,
    merged_levels,
    receipt_of,
)
from federated.hiding.protocol import Protection
from federated.message_kinds import MessageKind
from federated.messages import UNREADABLE, message_of, read, refusal
from federated.party import statistics
from federated.party.state import Released
from federated.party.statistics import RELEASED
from federated.transport.exchange_grid import ExchangeGrid
from federated.transport.node_line import packed
from lab.audit.log_format import Checkpoint
from lab.audit.log_writer import Log
from lab.errors import LabError, ModelError, PeerError
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.profile import Profile, ProfileCells
from lab.privacy.disclosure import Rules
from lab.sums import Floats, Sums
from secure_agg.errors import Blame
from secure_agg.identity import Identity

#: Replies of a run's attempts do not meet: numbers of messages of different attempts differ.
ATTEMPTS = 2**32


class DeployedFederation:
    """All parties of a run, reached by signed messages; what solvers see is a `Parties`."""

    def __init__(
        self,
        grid: ExchangeGrid,
        protection: Protection,
        folder: Path,
        charter: Charter,
        identity: Identity,
        journal: ResumableRun,
        log: Log,
        announced: AnnouncedPlan,
        asked: int,
        progress: Progress | None = None,
    ) -> None:
        self.grid: ExchangeGrid = grid
        self.protection, self._progress = protection, progress
        self._folder, self._settings = folder, Settings.read(folder)
        self.charter, self._identity = charter, identity
        self.journal, self._log = journal, log
        self._run, self._asked, self._letters = journal.run, 0, journal.attempt * ATTEMPTS
        self.silent: list[tuple[str, str]] = []
        self.checkpoints: dict[str, Checkpoint] = {}
        self._since: dict[str, str] = {}
        self._post = Delivery(grid, folder, charter, identity, journal.run, log)
        split = charter.key is not None and charter.key.opens == "split"
        self._together, self._everyone = announced.kind == "questions", asked
        self._least = charter.minimum_parties
        if split or self._together:
            self._least = max(len(charter.roster.names) if split else asked, self._least)
        opens = charter.key.by if charter.key and charter.key.opens == "authority" else ()
        self._holders = tuple(opens) if protection.hiding == "paillier" else ()
        self.members: tuple[Participant, ...] = ()
        self.members = self._come(self._settings.gather_seconds)
        self._begin(announced)
        protection.check_parties(len(self.members))
        protection.enrol(self, charter.roster)

    @property
    def names(self) -> tuple[str, ...]:
        """Insurers that take part, in seat order."""
        return tuple(member.name for member in self.members)

    def _come(self, patience: float) -> tuple[Participant, ...]:
        """Wait for all members, and at the deadline go on with those who are here."""
        insurers = [
            m.name
            for m in self.charter.members
            if m.role in INSURERS and m.name not in self.journal.out
        ]
        deadline = time.monotonic() + patience
        here, wanted = self._post.here(deadline), {*insurers, *self._holders}
        while not wanted <= set(here) and time.monotonic() < deadline:
            time.sleep(0.2)
            here = self._post.here(deadline)
        for name in self._holders:
            if name not in here:
                raise PeerError(
                    f"{name}: opens totals and did not come within {patience:g} s", name
                )
        late = [name for name in insurers if name not in here]
        self._leave({name: f"{name}: did not come within {patience:g} s" for name in late}, here)
        self._since = {name: seen.since for name, seen in here.items()}
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
        left = {c.name for c in self.charter.roster.cards if c.name in among} - set(reasons)
        if len(left) < self._least:
            told = in_one_line({**self.journal.out, **reasons})
            again = (
                "All insurers answer a question, or none; --without leaves one out of all questions"
                if self._together
                else "The run goes on from its last total when it is started again"
            )
            raise PeerError(
                f"{len(left)} parties are left and {self._least} are needed: {told}. {again}"
            )
        for name, reason in reasons.items():
            self.journal.leave(name, reason)
            self._log.append("fault", run=self._run, what=f"the run goes on without {reason}")
            if self._progress:
                self._progress(f"without {reason}", self._asked)

    def _go_on_without(self, reasons: Mapping[str, str]) -> None:
        """Leave parties out of the rest of the run. Raises :class:`PeerError` below the minimum."""
        for name in self._holders:
            if name in reasons:
                raise PeerError(reasons[name], name)
        self._leave(reasons, self.names)
        self.members = tuple(m for m in self.members if m.name not in reasons)

    def _begin(self, announced: AnnouncedPlan) -> None:
        told = message_of(study=announced.to_json().encode())
        while True:
            everyone = dict.fromkeys((*self.names, *self._holders), told)
            try:
                self.ask(MessageKind.BEGIN, everyone)
                return
            except Absent as gone:
                self._go_on_without(gone.reasons)

    def ask(
        self, action: str, letters: Mapping[str, RecordDict], *, patient: bool = False
    ) -> dict[str, RecordDict]:
        """Send each party its message; the answers by name, in seat order.

        Raises :class:`Absent` with the reason for each party that did not answer, answered what
        cannot be used, or refused; with ``patient`` only for refusals.
        """
        here = {*self.names, *self._holders}
        sent = self._written(action, {n: one for n, one in letters.items() if n in here})
        heard = self._post.exchanged(sent)
        answers: dict[str, RecordDict] = {}
        reasons: dict[str, str] = {}
        for name in letters:
            try:
                if name not in sent:
                    raise Silent
                answers[name] = self._content(name, sent[name], heard.get(name))
            except Silent:
                self.silent.append((name, action))
                if not patient:
                    seconds = self._settings.answer_seconds
                    reasons[name] = f"{name}: did not answer within {seconds:g} s"
            except ModelError:
                raise
            except LabError as error:
                reasons[name] = str(error)
        if reasons:
            raise Absent(reasons, answers)
        return answers

    def _written(self, action: str, letters: Mapping[str, RecordDict]) -> dict[str, SignedMessage]:
        """One message for all parties that are told the same."""
        groups: dict[int, list[str]] = {}
        for name, content in letters.items():
            groups.setdefault(id(content), []).append(name)
        written = {}
        for names in groups.values():
            self._letters += 1
            one = SignedMessage(
                self.charter.digest,
                self._run,
                self._letters,
                self._identity.card.name,
                tuple(names),
                action,
                packed(letters[names[0]]),
            )
            written.update(dict.fromkeys(names, one))
        return written

    def _content(self, name: str, asked: SignedMessage, heard: Message | None) -> RecordDict:
        """What a party answers, if it is its answer to this message."""
        if heard is None:
            raise Silent
        if not heard.has_content():
            raise PeerError(f"{name}: answers with nothing", name)
        reply = received(heard.content, self._card(name))
        same(self.charter.digest, reply.charter, name)
        content = answering(reply, asked).content
        if "refusal" in content.config_records:
            error = refusal(content)
            self._log.append(
                "refusal",
                run=self._run,
                query="",
                statistic=asked.kind,
                rule=error.rule,
                text=str(error),
                party=name,
            )
            raise error
        return content

    def _card(self, name: str) -> Any:
        return self.charter.member(name).card

    def sum(
        self, statistic: str, arrays: Mapping[str, Floats] | None = None, **arguments: Any
    ) -> Sums:
        """The total of a statistic over all parties that take part, or as it was opened before."""
        self._asked += 1
        if self._progress:
            self._progress(statistic, self._asked)
        request = statistics.request(
            statistic,
            arguments,
            arrays or {},
            query="",
            hiding=self.protection.hiding,
            charter=self.charter.digest,
        )
        question = question_of(statistic, request.question)
        known = self.journal.total(self._asked, question)
        if known is not None:
            return known
        self._all_behind(statistic, {})
        while True:
            query = f"{self._run}-{self._letters + 1}"
            masked = self.protection.hiding == "masks"  # which takes off what is not there
            parties = self.charter.roster.names if masked else self.names
            asked = replace(request, query=query, parties=parties)
            try:
                total = self.protection.total(self, asked)
                break
            except Absent as gone:
                self._all_behind(statistic, gone.reasons)
                self._go_on_without(gone.reasons)
            except (PeerError, Blame) as error:
                culprits = [name for name in error.culprits if name in self.names]
                if not culprits:
                    raise
                reasons = dict.fromkeys(culprits, str(error))
                self._all_behind(statistic, reasons)
                self._go_on_without(reasons)
        self._log.append(
            "release",
            run=self._run,
            query=query,
            statistic=statistic,
            hiding=self.protection.hiding,
            arrays=len(total.arrays),
            values=sum(array.size for array in total.arrays.values()),
            bytes=sum(array.nbytes for array in total.arrays.values()),
            rows=total.rows,
            key_bits=self.charter.key.public.bits if self.charter.key else 0,
            parties=list(self.names),
        )
        self.journal.commit(self._asked, question, total)
        return total

    def _all_behind(self, statistic: str, gone: Mapping[str, str]) -> None:
        """Raises :class:`PeerError` where what is released by rules would be of fewer than were
        meant: no question or profile of all would be opened after it, in no run."""
        if statistic in RELEASED and len(set(self.names) - set(gone)) < self._everyone:
            told = in_one_line({**self.journal.out, **gone})
            raise PeerError(
                f"'{statistic}' is of all parties or of none: {told}. --without leaves one out"
            )

    def join(self, profiles: Sequence[Profile]) -> None:
        """Give every party the profiles that features come from, and their releaser's word."""
        for one in profiles:
            given = {"profile": one.model_dump_json().encode()}
            if self.protection.hiding != "clear":
                told = message_of(digest=one.digest.encode())
                (answer,) = self._asked_of_all(MessageKind.VOUCH, (releaser(self.charter),), told)
                given["vouched"] = read(answer, "vouched")
            self._asked_of_all(MessageKind.JOIN, self.names, message_of(**given))

    def _asked_of_all(
        self, action: str, names: tuple[str, ...], told: RecordDict
    ) -> Iterable[RecordDict]:
        """What they answer to one message; who does not leaves the run."""
        try:
            return self.ask(action, dict.fromkeys(names, told)).values()
        except Absent as gone:
            self._go_on_without(gone.reasons)
            return gone.answers.values()

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
            except Absent as gone:
                self._go_on_without(gone.reasons)
            except PeerError as error:
                if not error.culprits:
                    raise
                self._go_on_without(dict.fromkeys(error.culprits, str(error)))

    def _of_those_who_answer(
        self, action: str, names: tuple[str, ...], told: RecordDict | None = None
    ) -> dict[str, RecordDict]:
        try:
            return self.ask(action, dict.fromkeys(names, told or RecordDict()))
        except Absent as gone:
            return gone.answers

    def receipts(self) -> dict[str, list[Released]]:
        """What left each party that shows it; a party that does not is no fault."""
        answers = self._of_those_who_answer(MessageKind.RECEIPT, self.names)
        found = {}
        for name, answer in answers.items():
            try:
                found[name] = receipt_of(name, answer)
            except PeerError as error:
                self._log.append("fault", run=self._run, what=str(error))
        return found

    def deliver(self, parcel: RecordDict) -> None:
        """Give every party the model; one that does not take it has done its part all the same."""
        taken = self._of_those_who_answer(MessageKind.DELIVER, self.names, parcel)
        for name in self.names:
            if name not in taken:
                what = f"{name}: did not take the model"
                self._log.append("fault", run=self._run, what=what)

    def take_checkpoints(self) -> None:
        """Have every party sign the end of its log, and keep that as a witness."""
        answers = self._of_those_who_answer(MessageKind.CHECKPOINT, (*self.names, *self._holders))
        for name, answer in answers.items():
            try:
                told = json.loads(str(answer.config_records["checkpoint"]["told"]))
                checkpoint = Checkpoint.of(told)
                vouched(checkpoint, self._card(name))
            except (LabError, *UNREADABLE) as error:
                self._log.append("fault", run=self._run, what=f"{name}: no checkpoint: {error}")
                continue
            self._log.witness(checkpoint, run=self._run)
            self.checkpoints[name] = checkpoint

    def outlook(self, receipts: Mapping[str, list[Released]]) -> list[Outlook]:
        """Who was here, since when, the rows behind their sums, and why who left."""
        return outlook(self.charter, self.journal.out, self._since, receipts)
