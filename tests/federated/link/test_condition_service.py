"""Known before, through the exchange: restarts, one use of a consent, approval, limits, wrong letters."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from federated.link.charter import LinkCharter
from federated.link.consent import SignedQuestion, consented, consented_unseen
from federated.link.letters import Letter, packed, unpacked
from federated.link.lookup import Condition
from federated.link.own_terms import OwnLink
from federated.link.party_log import party_log
from federated.link.services.approvals import approve_question, question_lines, waiting_questions
from federated.link.services.condition_service import (
    CONDITION,
    QUESTION,
    REPLY,
    Answered,
    FundService,
    InsurerService,
    asked_about,
)
from federated.link.services.fund_record import fund_record, read_conditions, read_person_keys
from federated.link.services.process import LinkMember, ask, own_box, serve
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError, ContractError, PeerError, PolicyError
from secure_agg.identity import Identity
from tests.federated.link.test_condition import (
    BLINDING,
    DESK,
    FUND,
    NORTH,
    RECORDS,
    SECRET,
    TODAY,
    WANTED,
    terms_of,
)
from tests.rigs.relayed import Post, post

CHARTER = "c" * 64
IDENTITIES = {"fund": FUND, "north": NORTH}
CARDS = {name: identity.card for name, identity in IDENTITIES.items()}


def signed(person: str = "anna", look_up: str = "oblivious", **changes: Any) -> SignedQuestion:
    """What a desk hands north."""
    wanted = {k: v for k, v in (WANTED | changes).items() if k != "person"}
    if look_up == "open":
        return SignedQuestion(
            consent=consented(DESK, "desk", {**wanted, "person": person}), person=person
        )
    word, question = consented_unseen(DESK, "desk", wanted, person, SECRET, BLINDING)
    return SignedQuestion(
        consent=word, person=person, blinding=BLINDING.hex(), question=question.hex()
    )


class Sides:
    """A fund and an insurer, each as its process is, in folders; each may be stopped and started."""

    def __init__(self, opened: Post, folder: Path, **changes: Any) -> None:
        self.post, self.folder = opened, folder
        self.terms = terms_of(**{"look_up": "oblivious", **changes})
        self._stacks: dict[str, ExitStack] = {}
        self.fund: FundService
        self.insurer: InsurerService

    def start(
        self,
        name: str,
        records: list[Condition] = RECORDS,
        own: OwnLink | None = None,
        tamper: Any = None,
    ) -> None:
        stack = self._stacks[name] = ExitStack()
        home, identity, own = self.folder / name, IDENTITIES[name], own or OwnLink()
        log = stack.enter_context(party_log(identity, home, CHARTER))
        member = LinkMember(identity, CARDS, self.post.line(name), log, CHARTER)
        handlers: Mapping[str, Any]
        if name == "fund":
            terms = own.tightened(self.terms)
            record = fund_record(home, tuple(records), terms)
            approval = own.approval == "always"
            self.fund = FundService(home, member, terms, record, {}, approval, lambda: TODAY)
            handlers = self.fund.handlers()
            if tamper is not None:
                handlers = {
                    **handlers,
                    CONDITION: lambda data: tamper(handlers_of(self.fund), data),
                }
        else:
            self.insurer = InsurerService(home, member, self.terms, lambda: TODAY)
            handlers = self.insurer.handlers(own_box(identity))
        stop, told = threading.Event(), list[str]()
        thread = threading.Thread(target=serve, args=(member.line, handlers, stop, told.append, 1))
        thread.start()
        stack.callback(thread.join)
        stack.callback(stop.set)
        self.post.until_there(name, CONDITION if name == "fund" else QUESTION)

    def stop(self, name: str) -> None:
        self._stacks.pop(name).close()

    def close(self) -> None:
        self.post.shut()
        for name in list(self._stacks):
            self.stop(name)

    def ask(self, question: SignedQuestion) -> Answered:
        return asked_about(NORTH, self.post.line("north"), question)

    def letter(self, question: SignedQuestion) -> Path:
        return self.folder / "north" / "asked" / f"{question.consent.digest}.letter"

    def kinds(self, name: str) -> list[tuple[str, Any]]:
        lines = entries(read_lines(self.folder / name / "log.jsonl"))
        wanted = ("request", "approval", "refusal", "answer")
        return [(line.kind, line.told) for line in lines if line.kind in wanted]


def handlers_of(fund: FundService) -> Mapping[str, Any]:
    return fund.handlers()


@contextmanager
def sides(folder: Path, **changes: Any) -> Iterator[Sides]:
    with post() as opened:
        pair = Sides(opened, folder, **changes)
        try:
            yield pair
        finally:
            pair.close()


@pytest.mark.parametrize("look_up", ["open", "oblivious"])
def test_an_insurer_asks_through_its_process_and_both_sign_a_receipt(
    tmp_path: Path, look_up: str
) -> None:
    question = signed(look_up=look_up)
    with sides(tmp_path, look_up=look_up) as pair:
        pair.start("fund")
        pair.start("north")
        told = pair.ask(question)
        assert told.answer == told.insurer.answer == "yes" and not told.before
        assert told.fund.answer == ("yes" if look_up == "open" else "not told")
        assert told.fund.holds(FUND.card.verifying) and told.insurer.holds(NORTH.card.verifying)
        again = pair.ask(question)
        assert again.before and again.insurer == told.insurer
        assert pair.ask(signed("bert", look_up, group="cancer")).answer == "no"
    assert [kind for kind, _ in pair.kinds("fund")] == ["request", "answer"] * 2
    assert [kind for kind, _ in pair.kinds("north")] == ["request", "answer"] * 2
    assert [told["answer"] for _, told in pair.kinds("north")[1::2]] == ["yes", "no"]
    for name in IDENTITIES:
        assert "anna" not in (tmp_path / name / "log.jsonl").read_text()
    assert not list((tmp_path / "north" / "asked").iterdir())


def test_a_question_whose_answer_was_lost_is_answered_after_a_restart_and_counted_once(
    tmp_path: Path,
) -> None:
    question = signed()
    with sides(tmp_path) as pair:
        pair.start("fund")
        pair.start("north")
        pair.insurer._current_list()
        pair.stop("fund")
        with pytest.raises(PeerError, match="fund: does not answer"):
            pair.insurer._brought(question, pair.insurer._list[0])
        data = pair.letter(question).read_bytes()
        pair.start("fund")
        ask(pair.post.line("anybody"), "fund", CONDITION, data)  # and north is killed meanwhile
        pair.stop("fund")
        pair.stop("north")
        pair.start("fund")
        pair.start("north")
        assert pair.ask(question).answer == "yes"
        requests = [told for kind, told in pair.kinds("fund") if kind == "request"]
        assert len(requests) == 1
        assert [kind for kind, _ in pair.kinds("fund")] == ["request", "answer", "answer"]


def test_a_consent_is_good_for_one_letter_also_after_a_crash(tmp_path: Path) -> None:
    question = signed()
    with sides(tmp_path) as pair:
        pair.start("fund")
        pair.start("north")
        pair.ask(question)
        (tmp_path / "north" / "receipts" / f"{question.consent.digest}.json").unlink()
        pair.stop("fund")
        pair.start("fund")
        with pytest.raises(PolicyError, match=r"\[consent\] the consent was used before"):
            pair.ask(question)
    assert [kind for kind, _ in pair.kinds("fund")] == ["request", "answer", "refusal"]
    assert pair.kinds("north")[-1][0] == "refusal"


def test_another_record_has_another_list_and_a_waiting_question_is_asked_by_it(
    tmp_path: Path,
) -> None:
    question = signed("carl")
    with sides(tmp_path) as pair:
        pair.start("fund")
        pair.start("north")
        name, table = pair.insurer._current_list()
        pair.stop("fund")
        with pytest.raises(PeerError, match="fund: does not answer"):
            pair.insurer._brought(question, name)
        pair.start("fund", [*RECORDS, Condition("carl", "diabetes", date(2020, 1, 1))])
        assert pair.ask(question).answer == "yes"
        other, table_now = pair.insurer._current_list()
        assert other != name and table is not None and table_now is not None
        assert len(table.names) == len(table_now.names)
        assert not set(table.names.tolist()) & set(table_now.names.tolist())
    rules = [told["rule"] for kind, told in pair.kinds("fund") if kind == "refusal"]
    assert rules == ["list"]


def test_the_same_record_has_the_same_list_after_a_restart(tmp_path: Path) -> None:
    terms = terms_of(look_up="oblivious")
    first = fund_record(tmp_path, tuple(RECORDS), terms)
    assert fund_record(tmp_path, tuple(reversed(RECORDS)), terms).digest == first.digest
    (tmp_path / "list.bin").unlink()
    assert fund_record(tmp_path, tuple(RECORDS), terms).digest == first.digest
    assert fund_record(tmp_path, tuple(RECORDS[1:]), terms).key != first.key


def test_a_question_waits_for_a_person_and_keeps_its_consent(tmp_path: Path) -> None:
    question, always = signed(), OwnLink(approval="always")
    with sides(tmp_path) as pair:
        pair.start("fund", own=always)
        pair.start("north")
        with pytest.raises(PolicyError, match=r"\[approval\] question \w{12} waits for a person"):
            pair.ask(question)
        (digest,) = waiting_questions(tmp_path / "fund")
        text = "\n".join(question_lines(question.consent, "oblivious"))
        assert "asked by   north, to settle a claim" in text and "anna" not in text
        with pytest.raises(ConfigurationError, match="0 waiting questions have a digest"):
            approve_question(tmp_path / "fund", "0" * 12, "Li Wei")
        assert approve_question(tmp_path / "fund", digest[:12], "Li Wei") == digest
        assert pair.ask(question).answer == "yes"
        assert waiting_questions(tmp_path / "fund") == {}
    lines = pair.kinds("fund")
    assert [kind for kind, _ in lines] == ["refusal", "approval", "request", "answer"]
    assert lines[1][1]["by"] == "Li Wei" and lines[1][1]["consent"] == digest


def test_a_members_own_limits_are_kept_and_never_looser_than_the_charters(tmp_path: Path) -> None:
    own = OwnLink(groups=("cancer",), insurer_a_day=1, person_a_day=99)
    assert own.tightened(terms_of()).person_a_day == terms_of().person_a_day
    shipped = LinkCharter.read()
    asks = [OwnLink(asks_a_day=n).asks(shipped) for n in (None, 5, 10**9)]
    assert asks == [shipped.desk.asks_a_day, 5, shipped.desk.asks_a_day]
    with sides(tmp_path) as pair:
        pair.start("fund", own=own)
        pair.start("north")
        with pytest.raises(
            PolicyError, match=r"\[group\] 'diabetes' is no group that may be asked"
        ):
            pair.ask(signed())
        assert pair.ask(signed(group="cancer")).answer == "no"
        with pytest.raises(PolicyError, match=r"\[rate\] north has asked 1 questions today"):
            pair.ask(signed("bert", group="cancer"))
    with pytest.raises(ConfigurationError, match=r"link\.groups: 'asthma' is not in the charter"):
        OwnLink(groups=("asthma",)).tightened(terms_of())


def test_a_probing_insurer_is_found_by_the_funds_rule_and_stands_in_its_log(
    tmp_path: Path,
) -> None:
    with sides(tmp_path, groups_of_a_person=2) as pair:
        pair.start("fund")
        pair.start("north")
        for group in ("diabetes", "cancer"):
            pair.ask(signed(group=group))
        pair.stop("fund")
        pair.start("fund")
        with pytest.raises(
            PolicyError, match=r"\[probing\] north asks about one group after another"
        ):
            pair.ask(signed(group="copd"))
    assert pair.kinds("fund")[-1][1]["rule"] == "probing"


# --- letters that no honest member sends -----------------------------------------------------------


def _letter(sender: str, claims: str, content: dict[str, bytes], pair: Sides) -> bytes:
    """A letter to the fund by a sender that claims to be another. The session is the members'."""
    session = Letter(**vars(_sample(pair))).session
    letter = Letter(session, 5, claims, "fund", CONDITION, packed(content))
    identity = IDENTITIES.get(sender) or Identity.generate(sender)
    return letter.sealed(identity, FUND.card)


def _sample(pair: Sides) -> Letter:
    from federated.link.services.condition_service import _session

    return Letter(_session(pair.fund.member), 0, "north", "fund", CONDITION, b"")


def test_wrong_letters_are_refused_their_senders_named_and_nothing_is_told(tmp_path: Path) -> None:
    word = json.dumps(signed(insurer="south").consent.model_dump(mode="json")).encode()
    with sides(tmp_path) as pair:
        pair.start("fund")
        line, name = pair.post.line("anybody"), pair.fund.record.digest.encode()
        good = {"consent": word, "question": b"", "list": name}
        cases = {
            "a letter came from nobody": _letter("stranger", "stranger", good, pair),
            "north: a letter in its name was altered": _letter("stranger", "north", good, pair),
            "north: sent what is no ConsentToken": _letter("north", "north", {"list": name}, pair),
            "is not for north to ask fund": _letter("north", "north", good, pair),
            "north: a letter in its name was altered, or sealed": _letter(
                "north", "north", good, pair
            )[:-1]
            + b"\0",
            "not a LABLTR message": b"{}",
        }
        for words, data in cases.items():
            with pytest.raises((PeerError, PolicyError), match=words):
                ask(line, "fund", CONDITION, data)
        kinds = [kind for kind, _ in pair.kinds("fund")]
    assert kinds == ["refusal"] * len(cases)


def _swapped_receipt(handlers: Mapping[str, Any], data: bytes) -> bytes:
    """A fund that signs for another question."""
    reply: bytes = handlers[CONDITION](data)
    letter = _opened(reply)
    content = unpacked(letter.content, "fund")
    receipt = json.loads(content["receipt"]) | {"group": "cancer"}
    content["receipt"] = json.dumps(receipt).encode()
    return _sealed(letter, content)


def _no_answer(handlers: Mapping[str, Any], data: bytes) -> bytes:
    letter = _opened(handlers[CONDITION](data))
    return _sealed(letter, unpacked(letter.content, "fund") | {"reply": bytes(17 * 32)})


def _of_another_letter(handlers: Mapping[str, Any], data: bytes) -> bytes:
    """An exchange that brings a reply that the fund gave elsewhere."""
    letter = _opened(handlers[CONDITION](data))
    return _sealed(replace(letter, number=letter.number - 1), unpacked(letter.content, "fund"))


def _opened(reply: bytes) -> Letter:
    from federated.link.letters import LetterBox
    from federated.link.services.condition_service import _session

    session = _session(LinkMember(NORTH, CARDS, None, None, CHARTER))  # type: ignore[arg-type]
    return LetterBox(NORTH, session, CARDS).read(reply, REPLY)


def _sealed(letter: Letter, content: dict[str, bytes]) -> bytes:
    changed = Letter(letter.session, letter.number, "fund", "north", REPLY, packed(content))
    return changed.sealed(FUND, NORTH.card)


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (_swapped_receipt, "fund: sent a receipt of another question, or did not sign it"),
        (_no_answer, "fund: sent what is no answer"),
        (_of_another_letter, "the exchange: brings the reply to another letter"),
    ],
)
def test_who_answers_something_else_is_named(tmp_path: Path, tamper: Any, words: str) -> None:
    with sides(tmp_path) as pair:
        pair.start("fund", tamper=tamper)
        pair.start("north")
        with pytest.raises(PeerError, match=words) as error:
            pair.ask(signed())
        assert error.value.culprits == (words.partition(":")[0],)
    assert pair.kinds("north")[-1][1]["by"] == words.partition(":")[0]


# --- the fund's table --------------------------------------------------------------------------------


def test_a_funds_table_is_read_in_the_charters_spelling_with_every_mistake_by_its_row(
    tmp_path: Path,
) -> None:
    file = tmp_path / "record.csv"
    file.write_text("person,group,first\n 07 ,diabetes,2020-05-01\n8,cancer,\n")
    assert read_conditions(file) == (
        Condition("07", "diabetes", date(2020, 5, 1)),
        Condition("8", "cancer", None),
    )
    file.write_text("person,group,first\n7,diabetes,1.5.2020\n,cancer,\n9,,\n")
    with pytest.raises(ContractError, match="3 rows are not usable") as error:
        read_conditions(file)
    assert "row 1: needs a person, a group, and a day as 2022-03-01 or nothing" in str(error.value)
    assert "1.5.2020" not in str(error.value)
    file.write_text("person,condition\n7,diabetes\n")
    with pytest.raises(ContractError, match="has no column 'group'"):
        read_conditions(file)
    file.write_text(f"person,key\n7,{'a' * 64}\n")
    assert read_person_keys(file) == {"7": "a" * 64}
    file.write_text("person,key\n7,abc\n")
    with pytest.raises(ContractError, match="64 hexadecimal digits"):
        read_person_keys(file)
