"""Scores of single persons, as a side's process: it answers other sides' letters, and asks for its owner.

    score     another side: a consent, and a blinded place (or leaves)     -> this side's reply and receipt
    askscore  this side's owner: a consent that the person signed          -> the score, receipts of both sides

A side keeps the letter of a question until its answer is there, and brings the same one after a restart.
Who is asked has the letter's digest in its log, with the consent's number: so a consent is good for one
score, whatever was killed when, and its letter, brought again, gets the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from threading import Lock

from pydantic import ConfigDict, ValidationError

from federated.joined.sums.factors import Role
from federated.link.consent import ConsentToken
from federated.link.letters import Letter, LetterBox, number_of, packed, record_of, unpacked
from federated.link.services.approvals import approved_by
from federated.link.services.process import (
    Handler,
    LetterNumbers,
    LinkMember,
    ask,
    ask_own,
    own_handler,
)
from federated.queries.person import asker
from federated.queries.person.asked import AskedSide, BroughtQuestion, ToldScore
from federated.queries.person.asker import ScoreQuestion
from federated.queries.person.sides import NOT_TOLD, STATISTIC, ScoredSide, ScoreReceipt, Step
from federated.transport.relay_line import PATIENCE_SECONDS, RelayLine
from lab.errors import ConfigurationError, PolicyError
from lab.files import canonical, read_json, write_whole
from lab.records import Strict, parse
from secure_agg.errors import FaultyParty
from secure_agg.identity import Identity
from secure_agg.ristretto import SIZE

SCORE, ASK_SCORE, REPLY = "score", "askscore", "scored"
ASKED, RECEIPTS = "asked", "receipts"
#: Seconds for a reply about leaves, of which there may be thousands.
LEAVES_PATIENCE_SECONDS = 20.0
STEPS: Mapping[bytes, Step] = {b"leaves": "leaves", b"band": "band"}


class ScoreAnswer(Strict):
    """A score, and what both sides sign of it, for the person too. before: it was told earlier."""

    score: str
    asker: ScoreReceipt
    asked: ScoreReceipt
    before: bool = False


class OpenQuestion(Strict):
    """A question that waits for its answer, with the letter that brings it."""

    model_config = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")
    question: ScoreQuestion
    letter: bytes


@dataclass(frozen=True)
class ScoreRules:
    """What a side answers. roles: by name, of the other sides of its pairs; answers: whether it answers at
    all; approval: whether a person approves each; person_keys: of persons who sign themselves."""

    roles: Mapping[str, Role]
    answers: bool
    approval: bool = False
    person_keys: Mapping[str, str] = field(default_factory=dict)


class ScoreService:
    """A side's process. folder: its own; side_of: what it has of a model, by the model's digest, raises
    PolicyError for one that it does not have; history: what it told before, by its log."""

    def __init__(
        self,
        folder: Path,
        member: LinkMember,
        rules: ScoreRules,
        side_of: Callable[[str], ScoredSide],
        history: list[ToldScore],
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        self.folder, self.member, self.rules = folder, member, rules
        self._side_of, self._history, self._today = side_of, history, today
        cards = {name: member.cards[name] for name in rules.roles}
        self._session = hashlib.sha256(b"scores " + member.charter.encode()).digest()
        self._box = LetterBox(member.identity, self._session, cards)
        self._numbers = LetterNumbers()
        self._answering, self._asking = Lock(), Lock()
        for name in (ASKED, RECEIPTS):
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def handlers(self, own: LetterBox) -> dict[str, Handler]:
        """What it answers. own: takes its owner's letters."""
        handler = own_handler(own, ASK_SCORE, self.ask)
        asks = {ASK_SCORE: self.member.noting(STATISTIC, handler, self.member.name)}
        return asks | ({SCORE: self.answer} if self.rules.answers else {})

    # Who is asked.

    def answer(self, data: bytes) -> bytes:
        """The reply to another side's letter, with a receipt."""
        letter, brought, side = self.member.noting(STATISTIC, self._brought)(data)
        approval = partial(approved_by, self.folder) if self.rules.approval else None
        with self._answering:
            asked = AskedSide(side, self.rules.person_keys, self._history, approval)
            reply, receipt = asked.answer(brought, self._today())
        content = {"reply": reply, "receipt": canonical(receipt.model_dump(mode="json"))}
        sender, card = letter.sender, self.member.cards[letter.sender]
        answer = Letter(
            letter.session, letter.number, self.member.name, sender, REPLY, packed(content)
        )
        return answer.sealed(self.member.identity, card)

    def _brought(self, data: bytes) -> tuple[Letter, BroughtQuestion, ScoredSide]:
        letter = self._box.read(data, SCORE)
        content, sender = unpacked(letter.content, letter.sender), letter.sender
        consent = record_of(ConsentToken, content.get("consent", b""), sender)
        step = STEPS.get(content.get("step", b""))
        if step is None:
            raise FaultyParty(f"{sender}: sent a question about neither leaves nor a band", sender)
        side, role = self._side_of(consent.group), self.rules.roles[sender]
        digest = hashlib.sha256(data).hexdigest()
        sent = content.get("sent", b"")
        return letter, BroughtQuestion(consent, sender, role, step, sent, digest), side

    # Who asks.

    def ask(self, data: bytes) -> bytes:
        """The score that a consent is for. Raises the other side's refusal, and PeerError."""
        consent = record_of(ConsentToken, data, self.member.name)
        place = self.folder / RECEIPTS / f"{consent.digest}.json"
        with self._asking:
            if place.exists():
                told = parse(ScoreAnswer, read_json(place), where=str(place))
                return told.model_copy(update={"before": True}).model_dump_json().encode()
            answer = self._ask(consent)
            write_whole(place, answer.model_dump_json(indent=1).encode() + b"\n", 0o600)
            self._state(consent).unlink()
            return answer.model_dump_json().encode()

    def _ask(self, consent: ConsentToken) -> ScoreAnswer:
        if consent.insurer != self.member.name or consent.fund not in self.rules.roles:
            raise PolicyError(
                f"the consent is for {consent.insurer} to ask {consent.fund}; {self.member.name} is joined to "
                f"{', '.join(self.rules.roles)}",
                "consent",
            )
        side, state = self._side_of(consent.group), self._state(consent)
        if state.exists():
            open_question = _read_state(state)
        else:
            open_question = self._keep(state, asker.question(side, consent))
        reply, theirs = self._bring(consent, open_question)
        if open_question.question.step == "leaves":
            second = asker.go_on(side, open_question.question, reply)
            open_question = self._keep(state, second)
            reply, theirs = self._bring(consent, open_question)
        score, ours = asker.read(side, open_question.question, reply, self._today())
        return ScoreAnswer(score=score, asker=ours, asked=theirs)

    def _keep(self, state: Path, question: ScoreQuestion) -> OpenQuestion:
        """A question with its letter, on disk before it leaves."""
        consent, sent, other = question.consent, question.sent, question.consent.fund
        content = {
            "consent": canonical(consent.model_dump(mode="json")),
            "step": question.step.encode(),
            "sent": sent,
        }
        number, name = self._numbers.next(), self.member.name
        letter = Letter(self._session, number, name, other, SCORE, packed(content))
        data = letter.sealed(self.member.identity, self.member.cards[other])
        self.member.log_release(STATISTIC, len(sent) // SIZE, len(sent), to=other)
        open_question = OpenQuestion(question=question, letter=data)
        write_whole(state, open_question.model_dump_json().encode(), 0o600)
        return open_question

    def _bring(
        self, consent: ConsentToken, open_question: OpenQuestion
    ) -> tuple[bytes, ScoreReceipt]:
        """The other side's reply, and its receipt, which is of this consent and signed by it."""
        other, letter = consent.fund, open_question.letter
        of_leaves = open_question.question.step == "leaves"
        patience = LEAVES_PATIENCE_SECONDS if of_leaves else PATIENCE_SECONDS
        data = ask(self.member.line, other, SCORE, letter, patience)
        reply = self._box.read(data, REPLY, other)
        if reply.number != number_of(letter):
            raise FaultyParty("the exchange: brings the reply to another letter", "the exchange")
        content = unpacked(reply.content, other)
        receipt = record_of(ScoreReceipt, content.get("receipt", b""), other)
        if (
            (receipt.consent, receipt.by, receipt.answer) != (consent.digest, other, NOT_TOLD)
            or receipt.model != consent.group
            or not receipt.holds(self.member.cards[other].verifying)
        ):
            raise FaultyParty(
                f"{other}: sent a receipt of another question, or did not sign it", other
            )
        return content.get("reply", b""), receipt

    def _state(self, consent: ConsentToken) -> Path:
        return self.folder / ASKED / f"{consent.digest}.json"


def _read_state(path: Path) -> OpenQuestion:
    try:
        return OpenQuestion.model_validate_json(path.read_bytes())
    except ValidationError:
        raise ConfigurationError(
            f"{path}: is damaged; this consent is used up, let the person sign another"
        ) from None


def asked_score(identity: Identity, line: RelayLine, consent: ConsentToken) -> ScoreAnswer:
    """One score, asked for through the side's own process. Raises its refusal, and PeerError."""
    content = canonical(consent.model_dump(mode="json"))
    return record_of(ScoreAnswer, ask_own(identity, line, ASK_SCORE, content), identity.card.name)
