"""Known before, as processes: the fund answers letters of insurers, an insurer asks for its owner.

    list       the insurer: which hidden list it has              -> the fund's, if that is another
    condition  the insurer: consent, blinded question, the list   -> the fund's reply and receipt
    question   an insurer's owner: what a desk signed             -> answer, receipts of both sides

An insurer keeps the letter of a question until the answer is there, and brings the same one after a
restart. The fund's log holds the letter's digest with the consent's number: so a consent is good for
one question, whatever was killed when, and its letter, brought again, gets the same answer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from threading import Lock

from federated.link.charter import ConditionTerms
from federated.link.condition import STATISTIC, FundSide, InsurerSide, history_of
from federated.link.consent import Answer, ConsentToken, Receipt, SignedQuestion
from federated.link.letters import Letter, LetterBox, number_of, packed, record_of, unpacked
from federated.link.lookup import HiddenList
from federated.link.party_log import LOG
from federated.link.services.approvals import approved_by
from federated.link.services.fund_record import FundRecord, list_digest, listed
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
from federated.transport.relay_line import PATIENCE_SECONDS, RelayLine
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError, PolicyError
from lab.files import canonical, read_json, write_whole
from lab.records import parse
from secure_agg.errors import FaultyParty
from secure_agg.identity import Identity

#: Services: the fund's two, and an insurer's for its owner.
CONDITION, LISTING, QUESTION = "condition", "list", "question"
REPLY = "told"
LIST_STATISTIC = "condition_list"
ASKED, RECEIPTS, LIST = "asked", "receipts", "list.bin"
#: Seconds for the fund's list, which is large.
LIST_PATIENCE_SECONDS = 20.0
#: Bytes of a list's entry and of an element, for the log.
ENTRY, ELEMENT = 17, 32


class Answered(KeptAnswer):
    """An answer and what both sides sign of it, for the person too."""

    answer: Answer
    fund: Receipt
    insurer: Receipt


class FundService:
    """The fund's process. person_keys: of persons who sign themselves, hexadecimal."""

    def __init__(
        self,
        folder: Path,
        member: LinkMember,
        terms: ConditionTerms,
        record: FundRecord,
        person_keys: Mapping[str, str],
        approval: bool,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        self.member, self.record, self._today, self._turn = member, record, today, Lock()
        past = entries(read_lines(folder / LOG)) if (folder / LOG).exists() else ()
        self.side = FundSide(
            member.identity,
            terms,
            record.conditions,
            record.key,
            record.secret,
            member.log,
            history_of(list(past)),
            person_keys,
            partial(approved_by, folder) if approval else None,
        )
        self._box = _box(member)

    def handlers(self) -> dict[str, Handler]:
        listing = self.member.noting(LIST_STATISTIC, self.listing)
        return {CONDITION: self.answer, LISTING: listing}

    def listing(self, data: bytes) -> bytes:
        """The hidden list, for whoever has another one."""
        letter = self._box.read(data, LISTING)
        known = unpacked(letter.content, letter.sender).get("known", b"")
        content = {"digest": self.record.digest.encode(), "list": b""}
        if known != content["digest"]:
            content["list"] = self.record.entries
            size = len(self.record.entries)
            self.member.log_release(LIST_STATISTIC, size // ENTRY, size, to=letter.sender)
        return self._reply(letter, content)

    def answer(self, data: bytes) -> bytes:
        """The answer to one question, and a receipt."""
        letter, consent, question = self.member.noting(STATISTIC, self._question)(data)
        with self._turn:
            digest = hashlib.sha256(data).hexdigest()
            today = self._today()
            reply, receipt = self.side.answer(consent, letter.sender, today, question, digest)
        content = {"reply": reply, "receipt": canonical(receipt.model_dump(mode="json"))}
        return self._reply(letter, content)

    def _question(self, data: bytes) -> tuple[Letter, ConsentToken, bytes]:
        letter = self._box.read(data, CONDITION)
        content = unpacked(letter.content, letter.sender)
        consent = record_of(ConsentToken, content.get("consent", b""), letter.sender)
        if content.get("list") != self.record.digest.encode():
            raise PolicyError("the record has changed, and so has its list; fetch it anew", "list")
        return letter, consent, content.get("question", b"")

    def _reply(self, letter: Letter, content: Mapping[str, bytes]) -> bytes:
        reply = Letter(
            letter.session, letter.number, self.member.name, letter.sender, REPLY, packed(content)
        )
        return reply.sealed(self.member.identity, self.member.cards[letter.sender])


class InsurerService:
    """An insurer's process: asks the fund what its owner brings a consent for."""

    def __init__(
        self,
        folder: Path,
        member: LinkMember,
        terms: ConditionTerms,
        today: Callable[[], date] = lambda: datetime.now(UTC).date(),
    ) -> None:
        self.folder, self.member, self.terms, self._today = folder, member, terms, today
        self._box, self._numbers, self._turn = _box(member), LetterNumbers(), Lock()
        self._list: tuple[str, HiddenList | None] = ("", None)
        for name in (ASKED, RECEIPTS):
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def handlers(self, own: LetterBox) -> dict[str, Handler]:
        """What it answers. own: takes its owner's letters."""
        handler = own_handler(own, QUESTION, self.ask)
        return {QUESTION: self.member.noting(STATISTIC, handler, self.member.name)}

    def ask(self, data: bytes) -> bytes:
        """The answer to what a desk signed. Raises the fund's refusal, and PeerError."""
        signed = record_of(SignedQuestion, data, self.member.name)
        place = self.folder / RECEIPTS / f"{signed.consent.digest}.json"
        with self._turn:
            told = told_once(place, Answered, lambda: self._ask(signed))
            self._letter_file(signed).unlink(missing_ok=True)
            return told

    def _ask(self, signed: SignedQuestion) -> Answered:
        name, table = self._current_list()
        try:
            content = self._brought(signed, name)
        except PolicyError as error:
            if error.rule != "list":
                raise
            self._letter_file(signed).unlink()  # it was of an older list, and never answered
            content = self._brought(signed, name)
        side, fund = (
            InsurerSide(self.member.identity, self.terms, self.member.log, table),
            self.terms.fund,
        )
        theirs = record_of(Receipt, content.get("receipt", b""), fund)
        verifying = self.member.cards[fund].verifying
        if theirs.consent != signed.consent.digest or not theirs.holds(verifying):
            raise FaultyParty(
                f"{fund}: sent a receipt of another question, or did not sign it", fund
            )
        blinding = bytes.fromhex(signed.blinding)
        answer, ours = side.read(
            signed.consent, content.get("reply", b""), self._today(), signed.person, blinding
        )
        if theirs.answer not in (answer, "not told"):
            raise FaultyParty(f"{fund}: sent a receipt of another answer", fund)
        return Answered(answer=answer, fund=theirs, insurer=ours)

    def _brought(self, signed: SignedQuestion, name: str) -> dict[str, bytes]:
        """The fund's reply to the letter of this question, which is made once."""
        place = self._letter_file(signed)
        if not place.exists():
            InsurerSide(self.member.identity, self.terms, self.member.log).asks(signed.consent)
            content = {
                "consent": canonical(signed.consent.model_dump(mode="json")),
                "question": bytes.fromhex(signed.question),
                "list": name.encode(),
            }
            size = len(content["question"])
            self.member.log_release(STATISTIC, size // ELEMENT, size, to=self.terms.fund)
            write_whole(place, self._letter(CONDITION, content), 0o600)
        data = place.read_bytes()
        return self._told(CONDITION, data)

    def _letter_file(self, signed: SignedQuestion) -> Path:
        return self.folder / ASKED / f"{signed.consent.digest}.letter"

    def _current_list(self) -> tuple[str, HiddenList | None]:
        """The fund's list and its name, fetched if it is another than the last one."""
        if self.terms.look_up == "open":
            return list_digest(b""), None
        place = self.folder / LIST
        if not self._list[0] and place.exists():
            data = place.read_bytes()
            self._list = list_digest(data), listed(data)
        fund, known = self.terms.fund, self._list[0].encode()
        letter = self._letter(LISTING, {"known": known})
        reply = self._told(LISTING, letter, LIST_PATIENCE_SECONDS)
        digest, data = reply.get("digest", b"").decode("ascii", "replace"), reply.get("list", b"")
        if digest != self._list[0]:
            table = listed(data)
            if list_digest(data) != digest or (self.terms.look_up == "oblivious") == (
                table is None
            ):
                raise FaultyParty(f"{fund}: sent what is no list", fund)
            write_whole(place, data, 0o600)
            self._list = digest, table
        return self._list

    def _letter(self, kind: str, content: Mapping[str, bytes]) -> bytes:
        member, fund = self.member, self.terms.fund
        number = self._numbers.next()
        letter = Letter(_session(member), number, member.name, fund, kind, packed(content))
        return letter.sealed(member.identity, member.cards[fund])

    def _told(
        self, service: str, data: bytes, patience: float = PATIENCE_SECONDS
    ) -> dict[str, bytes]:
        """What the fund replies to a letter. Raises its refusal, and PeerError."""
        fund = self.terms.fund
        reply = self._box.read(ask(self.member.line, fund, service, data, patience), REPLY, fund)
        if reply.number != number_of(data):
            raise FaultyParty("the exchange: brings the reply to another letter", "the exchange")
        return unpacked(reply.content, fund)


def asked_about(identity: Identity, line: RelayLine, signed: SignedQuestion) -> Answered:
    """One question, asked through the insurer's own process. Raises its refusal, and PeerError."""
    content = canonical(signed.model_dump(mode="json"))
    return record_of(Answered, ask_own(identity, line, QUESTION, content), identity.card.name)


def _session(member: LinkMember) -> bytes:
    """What letters about conditions are bound to: the charter."""
    return hashlib.sha256(b"link condition " + member.charter.encode()).digest()


def _box(member: LinkMember) -> LetterBox:
    return LetterBox(member.identity, _session(member), member.cards)


def read_question(path: Path) -> SignedQuestion:
    """What a desk wrote. Raises ConfigurationError."""
    try:
        return parse(SignedQuestion, read_json(path), where=str(path))
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}; it must be a file of lab link consent") from None
