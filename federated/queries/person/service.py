"""Scores of single persons, as a side's process: it answers other sides' letters, and asks for its owner.

    score     another side: a consent, and a blinded place (or leaves)     -> this side's reply and receipt
    askscore  this side's owner: a consent that the person signed          -> the score, receipts of both sides

A side keeps a question until its answer is there, and brings the same one after a restart. Who is asked has
the digest of what was asked in its log, with the consent's number: so a consent is good for one score,
whatever was killed when, and the same question, brought again, gets the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from threading import Lock

from pydantic import ValidationError

from federated.joined.sums.factors import Role
from federated.link.consent import ConsentToken, check_consent
from federated.link.letters import Letter, LetterBox, packed, record_of, unpacked
from federated.link.services.approvals import approved_by
from federated.link.services.process import (
    Handler,
    KeptAnswer,
    LetterNumbers,
    LinkMember,
    ask,
    ask_own,
    own_handler,
    told_once,
)
from federated.queries.person import asker
from federated.queries.person.asked import AskedSide, BroughtQuestion, ToldScore
from federated.queries.person.asker import ScoreQuestion
from federated.queries.person.sides import NOT_TOLD, STATISTIC, ScoredSide, ScoreReceipt, Step
from federated.queries.person.terms import ScoreTerms
from federated.transport.relay_line import PATIENCE_SECONDS, RelayLine
from lab.errors import ConfigurationError, ContractError, ModelError, PeerError, PolicyError
from lab.files import canonical, write_whole
from secure_agg.errors import FaultyParty
from secure_agg.identity import Identity
from secure_agg.ristretto import SIZE

SCORE, ASK_SCORE, REPLY = "score", "askscore", "scored"
ASKED, RECEIPTS = "asked", "receipts"
#: How many letters were answered, beside the log that says which.
COUNTED = "answered"
#: In place of a question whose answer was none.
VOID = b"void"
#: Replies that are kept for letters that are brought again.
REPLIES_KEPT = 64
#: Seconds for a reply about leaves, of which there may be thousands.
LEAVES_PATIENCE_SECONDS = 20.0
#: Errors whose texts may hold values and paths, which stay here.
UNTOLD = (ConfigurationError, ContractError, ModelError)
STEPS: Mapping[bytes, Step] = {b"leaves": "leaves", b"band": "band"}


class ScoreAnswer(KeptAnswer):
    """A score, and what both sides sign of it, for the person too."""

    score: str
    asker: ScoreReceipt
    asked: ScoreReceipt


@dataclass(frozen=True)
class ScoreRules:
    """What a side answers. roles: by name, of the other sides of its pairs; terms: by which it answers;
    answers: whether it answers at all; approval: whether a person approves each; person_keys: of persons who
    sign themselves."""

    roles: Mapping[str, Role]
    terms: ScoreTerms
    answers: bool
    approval: bool = False
    person_keys: Mapping[str, str] = field(default_factory=dict)


class ScoreService:
    """A side's process. folder: its own; side_of: what it has of a model with another side, by the model's
    digest and the side's name, raises PolicyError; history: what it told before, by its log."""

    def __init__(
        self,
        folder: Path,
        member: LinkMember,
        rules: ScoreRules,
        side_of: Callable[[str, str], ScoredSide],
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
        self._replies: dict[str, bytes] = {}
        for name in (ASKED, RECEIPTS):
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_history(folder / COUNTED, len(history))

    def handlers(self, own: LetterBox) -> dict[str, Handler]:
        """What it answers. own: takes its owner's letters."""
        handler = own_handler(own, ASK_SCORE, self.ask)
        asks = {ASK_SCORE: self.member.noting(STATISTIC, handler, self.member.name)}
        return asks | ({SCORE: self.answer} if self.rules.answers else {})

    # Who is asked.

    def answer(self, data: bytes) -> bytes:
        """The reply to another side's letter, with a receipt."""
        letter, brought = self.member.noting(STATISTIC, self._brought)(data)
        with self._answering:
            if (content := self._replies.get(brought.letter)) is None:
                side = self.member.noting(STATISTIC, self._scored, brought.asker)(brought)
                content = self._replies[brought.letter] = self._answered(side, brought)
                write_whole(self.folder / COUNTED, str(len(self._history)).encode(), 0o600)
                for old in list(self._replies)[:-REPLIES_KEPT]:
                    del self._replies[old]
        sender, card = letter.sender, self.member.cards[letter.sender]
        reply = Letter(letter.session, letter.number, self.member.name, sender, REPLY, content)
        return reply.sealed(self.member.identity, card)

    def _answered(self, side: ScoredSide, brought: BroughtQuestion) -> bytes:
        approval = partial(approved_by, self.folder) if self.rules.approval else None
        asked = AskedSide(side, self.rules.person_keys, self._history, approval)
        reply, receipt = asked.answer(brought, self._today())
        return packed({"reply": reply, "receipt": canonical(receipt.model_dump(mode="json"))})

    def _brought(self, data: bytes) -> tuple[Letter, BroughtQuestion]:
        letter = self._box.read(data, SCORE)
        content, sender = unpacked(letter.content, letter.sender), letter.sender
        consent = record_of(ConsentToken, content.get("consent", b""), sender)
        step = STEPS.get(content.get("step", b""))
        if step is None:
            raise FaultyParty(f"{sender}: sent a question about neither leaves nor a band", sender)
        digest = hashlib.sha256(sender.encode() + letter.content).hexdigest()
        sent, role = content.get("sent", b""), self.rules.roles[sender]
        return letter, BroughtQuestion(consent, sender, role, step, sent, digest)

    def _scored(self, brought: BroughtQuestion) -> ScoredSide:
        """What this side has of the model, once somebody signed that it may be asked."""
        consent, terms = brought.consent, self.rules.terms
        began = [line.day for line in self._history if line.consent == consent.digest]
        day = began[0] if began else self._today()
        held = terms.consent_terms(self.member.name, consent.group)
        check_consent(consent, held, brought.asker, day, (), self.rules.person_keys)
        try:
            side = self._side_of(consent.group, brought.asker)
        except UNTOLD:
            raise PolicyError(
                f"{self.member.name} can't score by this model now; its owner finds why with lab node check",
                "model",
            ) from None
        terms.check_kind(side.kind)
        return replace(side, terms=terms)

    # Who asks.

    def ask(self, data: bytes) -> bytes:
        """The score that a consent is for. Raises the other side's refusal, and PeerError."""
        consent = record_of(ConsentToken, data, self.member.name)
        place = self.folder / RECEIPTS / f"{consent.digest}.json"
        with self._asking:
            told = told_once(place, ScoreAnswer, lambda: self._ask(consent))
            self._state(consent).unlink(missing_ok=True)
            return told

    def _ask(self, consent: ConsentToken) -> ScoreAnswer:
        if consent.insurer != self.member.name or consent.fund not in self.rules.roles:
            raise PolicyError(
                f"the consent is for {consent.insurer} to ask {consent.fund}; {self.member.name} is joined to "
                f"{', '.join(self.rules.roles)}",
                "consent",
            )
        side, state = self._side_of(consent.group, consent.fund), self._state(consent)
        question = _kept(state) if state.exists() else self._keep(asker.question(side, consent))
        reply, theirs = self._bring(question)
        if question.step == "leaves":
            with _void_where_faulty(state):
                question = asker.go_on(side, question, reply)
            reply, theirs = self._bring(self._keep(question))
        with _void_where_faulty(state):
            score, ours = asker.read(side, question, reply, self._today())
        return ScoreAnswer(score=score, asker=ours, asked=theirs)

    def _keep(self, question: ScoreQuestion) -> ScoreQuestion:
        """A question, on disk before it leaves."""
        write_whole(self._state(question.consent), question.model_dump_json().encode(), 0o600)
        return question

    def _bring(self, question: ScoreQuestion) -> tuple[bytes, ScoreReceipt]:
        """The other side's reply, and its receipt, which is of this consent and signed by it."""
        # 1. The letter, sealed anew each time: it is known again by what it holds.
        consent, other, name = question.consent, question.consent.fund, self.member.name
        content = {
            "consent": canonical(consent.model_dump(mode="json")),
            "step": question.step.encode(),
            "sent": question.sent,
        }
        number = self._numbers.next()
        letter = Letter(self._session, number, name, other, SCORE, packed(content))
        data = letter.sealed(self.member.identity, self.member.cards[other])
        size = len(question.sent)
        self.member.log_release(STATISTIC, size // SIZE, size, to=other)
        # 2. Its reply.
        patience = LEAVES_PATIENCE_SECONDS if question.step == "leaves" else PATIENCE_SECONDS
        reply = self._box.read(ask(self.member.line, other, SCORE, data, patience), REPLY, other)
        if reply.number != number:
            raise FaultyParty("the exchange: brings the reply to another letter", "the exchange")
        answer = unpacked(reply.content, other)
        # 3. The receipt.
        receipt = record_of(ScoreReceipt, answer.get("receipt", b""), other)
        wanted = {"consent": consent.digest, "by": other, "answer": NOT_TOLD}
        wanted |= {"model": consent.group, "purpose": consent.purpose}
        wanted |= {"asker": name, "asked": other}
        said = receipt.model_dump(include=set(wanted))
        if said != wanted or not receipt.holds(self.member.cards[other].verifying):
            raise FaultyParty(
                f"{other}: sent a receipt of another question, or did not sign it", other
            )
        return answer.get("reply", b""), receipt

    def _state(self, consent: ConsentToken) -> Path:
        """Where a question is kept: by all of its consent, so that an altered copy is another."""
        digest = hashlib.sha256(consent.model_dump_json().encode()).hexdigest()
        return self.folder / ASKED / f"{digest}.json"


def _check_history(place: Path, lines: int) -> None:
    """Raises ConfigurationError where the log holds fewer answers than were given: rations and consents are
    counted from it."""
    text = place.read_text(encoding="utf-8") if place.exists() else "0"
    if not text.isdecimal() or int(text) > lines:
        raise ConfigurationError(
            f"{place}: {text} letters about scores were answered, and the log holds {lines:,}; put the log "
            "back, or remove this file: then rations begin anew, and consents that have not expired are good "
            "again"
        )


@contextmanager
def _void_where_faulty(state: Path) -> Iterator[None]:
    """A reply that is none is not asked for again: each time would tell its sender more than one bit."""
    try:
        yield
    except PeerError:
        write_whole(state, VOID, 0o600)
        raise


def _kept(path: Path) -> ScoreQuestion:
    data = path.read_bytes()
    if data == VOID:
        raise PolicyError(
            "the other side's answer to this consent was none, so it is not asked again; let the person "
            "sign another",
            "consent",
        )
    try:
        return ScoreQuestion.model_validate_json(data)
    except ValidationError:
        raise ConfigurationError(
            f"{path}: is damaged; this consent is used up, let the person sign another"
        ) from None


def asked_score(identity: Identity, line: RelayLine, consent: ConsentToken) -> ScoreAnswer:
    """One score, asked for through the side's own process. Raises its refusal, and PeerError."""
    content = canonical(consent.model_dump(mode="json"))
    return record_of(ScoreAnswer, ask_own(identity, line, ASK_SCORE, content), identity.card.name)
