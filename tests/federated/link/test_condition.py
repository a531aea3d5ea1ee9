"""Known before: what an insurer learns of a person who signed, and what is refused, by which rule."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federated.link.charter import ConditionTerms
from federated.link.condition import FundSide, InsurerSide, history_of, rates
from federated.link.consent import (
    PERSON,
    ConsentToken,
    consented,
    consented_unseen,
    handle,
)
from federated.link.lookup import (
    LEVELS,
    Condition,
    HiddenList,
    blinded,
    hidden_list,
    question_digest,
    ranges,
    verdict,
)
from lab.audit.log_format import entries, read_lines
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError, PeerError, PolicyError
from lab.records import parse
from secure_agg.identity import Identity, signed_by
from secure_agg.ristretto import SIZE, derived_key

TODAY = date(2024, 3, 1)
DESK, FUND, NORTH, ANNA = (
    Identity(n, n.encode().ljust(32)) for n in ("desk", "fund", "north", "a")
)
RECORDS = [
    Condition("anna", "diabetes", date(2020, 5, 1)),
    Condition("anna", "diabetes", date(2019, 5, 1)),
    Condition("bert", "diabetes", None),
    Condition("bert", "cancer", date(2024, 2, 20)),
]
KEY, SECRET, BLINDING = derived_key(b"k" * 32, b"fund"), b"s" * 32, b"b" * 32


def terms_of(**changes: Any) -> ConditionTerms:
    values = {
        "fund": "fund",
        "groups": ["diabetes", "cancer", "copd"],
        "look_up": "open",
        "purposes": ["settle a claim"],
        "refused_purposes": ["raise the premium"],
        "signers": {"desk": DESK.card.verifying.hex()},
        "refer_days": 30,
        "cap": 512,
    }
    return parse(ConditionTerms, values | changes, where="test")


def log_of(identity: Identity, folder: Path) -> Log:
    def check(key: bytes, message: bytes, signature: bytes) -> bool:
        return signed_by(key, b"log", message, signature)

    path, name = folder / f"{identity.card.name}.jsonl", identity.card.name
    return Log(path, name, identity.card.verifying, lambda m: identity.sign(b"log", m), check)


class Both:
    """A fund and an insurer, with logs in a folder."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.terms, self.folder = terms_of(**changes), folder
        lines = (
            [*entries(read_lines(folder / "fund.jsonl"))]
            if folder.joinpath("fund.jsonl").exists()
            else []
        )
        self.logs = log_of(FUND, folder), log_of(NORTH, folder)
        keys = {"anna": ANNA.card.verifying.hex()}
        table = hidden_list(
            RECORDS, self.terms.refer_days, self.terms.cap, KEY, lambda n: b"\7" * n
        )
        self.fund = FundSide(
            FUND, self.terms, RECORDS, KEY, SECRET, self.logs[0], history_of(lines), keys
        )
        self.insurer = InsurerSide(NORTH, self.terms, self.logs[1], table)

    def close(self) -> None:
        for log in self.logs:
            log.close()

    def kinds(self, name: str) -> list[Any]:
        lines = entries(read_lines(self.folder / f"{name}.jsonl"))
        return [line for line in lines if line.kind in ("request", "answer", "refusal")]


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    pair = Both(tmp_path)
    yield pair
    pair.close()


@pytest.fixture
def unseen(tmp_path: Path) -> Iterator[Both]:
    pair = Both(tmp_path, look_up="oblivious")
    yield pair
    pair.close()


WANTED = {
    "insurer": "north",
    "fund": "fund",
    "person": "anna",
    "purpose": "settle a claim",
    "group": "diabetes",
    "before": date(2023, 1, 1),
    "expires": TODAY + timedelta(days=10),
}


def consent(signer: Identity = DESK, name: str = "desk", **changes: Any) -> ConsentToken:
    return consented(signer, name, WANTED | changes)


def asked(pair: Both, person: str = "anna", **changes: Any) -> str:
    """One question through all steps."""
    if pair.terms.look_up == "open":
        word = consent(person=person, **changes)
        pair.insurer.asks(word)
        reply, _ = pair.fund.answer(word, "north", TODAY)
        return pair.insurer.read(word, reply, TODAY)[0]
    wanted = {k: v for k, v in (WANTED | changes).items() if k != "person"}
    word, question = consented_unseen(DESK, "desk", wanted, person, SECRET, BLINDING)
    pair.insurer.asks(word)
    reply, _ = pair.fund.answer(word, "north", TODAY, question)
    return pair.insurer.read(word, reply, TODAY, person, BLINDING)[0]


# --- answers ---------------------------------------------------------------------------------

CASES = [
    ("anna", "diabetes", date(2023, 1, 1), "yes"),
    ("anna", "diabetes", date(2019, 5, 1), "no"),
    ("anna", "diabetes", date(2019, 5, 2), "refer"),
    ("anna", "diabetes", date(2019, 5, 31), "refer"),
    ("anna", "diabetes", date(2019, 6, 1), "yes"),
    ("anna", "cancer", date(2023, 1, 1), "no"),
    ("bert", "diabetes", date(2023, 1, 1), "refer"),
    ("nobody", "diabetes", date(2023, 1, 1), "no"),
]


@pytest.mark.parametrize(("person", "group", "before", "answer"), CASES)
@pytest.mark.parametrize("look_up", ["open", "oblivious"])
def test_the_answer_is_yes_no_or_refer_and_the_same_seen_or_unseen(
    tmp_path: Path, look_up: str, person: str, group: str, before: date, answer: str
) -> None:
    pair = Both(tmp_path, look_up=look_up)
    assert asked(pair, person, group=group, before=before) == answer
    pair.close()


@given(
    first=st.dates(date(1940, 1, 1), date(2024, 1, 1)),
    before=st.dates(date(1940, 1, 1), date(2024, 3, 1)),
    refer=st.integers(0, 400),
)
@settings(max_examples=40, deadline=None)
def test_the_hidden_list_holds_the_verdict_of_every_day(
    first: date, before: date, refer: int
) -> None:
    from federated.link.lookup import looked_up
    from secure_agg.ristretto import multiplied

    table = hidden_list([Condition("p", "g", first)], refer, 64, KEY, lambda n: b"\7" * n)
    helped = multiplied(KEY, blinded("p", "g", before, BLINDING))
    assert looked_up(table, "p", "g", before, BLINDING, helped) == verdict(first, before, refer)


@given(low=st.integers(0, 2**16 - 1), size=st.integers(0, 2**16))
def test_ranges_cover_every_day_once(low: int, size: int) -> None:
    high = min(low + size, 2**16 - 1)
    days = [(p << level, (p + 1) << level) for level, p in ranges(low, high)]
    assert days[0][0] == low and days[-1][1] == high + 1
    assert all(a[1] == b[0] for a, b in itertools.pairwise(days))
    assert len(days) <= 2 * LEVELS


def test_receipts_of_both_sides_hold_and_are_for_the_person(both: Both) -> None:
    word = consent()
    reply, theirs = both.fund.answer(word, "north", TODAY)
    answer, ours = both.insurer.read(word, reply, TODAY)
    assert answer == theirs.answer == ours.answer == "yes"
    assert theirs.holds(FUND.card.verifying) and ours.holds(NORTH.card.verifying)
    assert not ours.model_copy(update={"answer": "no"}).holds(NORTH.card.verifying)
    assert theirs.consent == word.digest


def test_a_person_signs_with_a_key_that_the_fund_knows(both: Both) -> None:
    reply, _ = both.fund.answer(consent(ANNA, PERSON), "north", TODAY)
    assert reply == b"yes"
    with pytest.raises(PolicyError, match="signed by nobody whose key is known"):
        both.fund.answer(consent(ANNA, PERSON, person="bert"), "north", TODAY)


# --- what the fund does not see ----------------------------------------------------------------


def test_unseen_the_fund_has_neither_person_nor_answer_in_message_or_log(unseen: Both) -> None:
    assert asked(unseen) == "yes"
    request, answer = unseen.kinds("fund")
    assert answer.told["answer"] == "not told"
    assert "anna" not in json.dumps([line.told for line in (request, answer)])
    assert [line.told["answer"] for line in unseen.kinds("north")[1:]] == ["yes"]


def test_questions_about_two_persons_have_one_size_and_nothing_in_common() -> None:
    one, two = (blinded(who, "diabetes", TODAY, BLINDING).tobytes() for who in ("anna", "bert"))
    assert len(one) == len(two) == SIZE * LEVELS
    again = blinded("anna", "diabetes", TODAY, b"c" * 32).tobytes()
    assert not {one[at : at + SIZE] for at in range(0, len(one), SIZE)} & {
        again[at : at + SIZE] for at in range(0, len(again), SIZE)
    }


def test_the_list_is_as_long_as_its_cap_and_without_the_fund_nothing_is_in_it() -> None:
    table = hidden_list(RECORDS, 30, 512, KEY, lambda n: b"\7" * n)
    assert len(table.names) == len(table.labels) == 512
    with pytest.raises(ConfigurationError, match=r"more than condition.cap of 5"):
        hidden_list(RECORDS, 30, 5, KEY, lambda n: b"\7" * n)


def test_the_fund_helps_with_no_other_question_than_the_desk_signed_for(unseen: Both) -> None:
    wanted = {k: v for k, v in WANTED.items() if k != "person"}
    word, _ = consented_unseen(DESK, "desk", wanted, "anna", SECRET, BLINDING)
    other = blinded("bert", "diabetes", WANTED["before"], BLINDING).tobytes()  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match=r"\[consent\] the question is not the one"):
        unseen.fund.answer(word, "north", TODAY, other)
    forged = bytes(SIZE * LEVELS)
    hidden = {"person": handle(SECRET, "anna", "2024-03"), "question": question_digest(forged)}
    with pytest.raises(PeerError, match="north: sent what is no element"):
        unseen.fund.answer(consent(**hidden), "north", TODAY, forged)
    assert not unseen.fund.history
    assert [line.kind for line in unseen.kinds("fund")] == ["refusal", "refusal"]


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"group": "asthma"},
            r"\[group\] 'asthma' is no group that may be asked about; there are diabetes",
        ),
        ({"purpose": "raise the premium"}, r"\[purpose\] the charter refuses the purpose"),
        ({"purpose": "curiosity"}, r"\[purpose\] 'curiosity' is no purpose that is allowed"),
        ({"before": TODAY + timedelta(days=1)}, "asks about a date in the future, 2024-03-02"),
        ({"expires": TODAY - timedelta(days=1)}, "expired on 2024-02-29; let the person sign"),
        ({"expires": TODAY + timedelta(days=31)}, "good for more than the charter's 30 days"),
        ({"insurer": "south"}, "is not for north to ask fund"),
        ({"question": "0" * 64}, "is not for a look-up that is open"),
    ],
)
def test_a_consent_that_is_not_good_is_refused_in_one_line_and_nothing_is_told(
    both: Both, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(PolicyError, match=words) as error:
        both.fund.answer(consent(**changes), "north", TODAY)
    assert "\n" not in str(error.value) and "anna" not in str(error.value)
    (line,) = both.kinds("fund")
    assert (line.kind, line.told["by"], line.told["text"]) == ("refusal", "north", str(error.value))


def test_a_consent_is_used_once_also_after_a_restart(tmp_path: Path) -> None:
    word = consent()
    for again in (False, True):
        pair = Both(tmp_path)
        if again:
            with pytest.raises(PolicyError, match="was used before"):
                pair.fund.answer(word, "north", TODAY)
        else:
            pair.fund.answer(word, "north", TODAY)
        pair.close()


def test_every_altered_field_of_a_consent_is_noticed(both: Both) -> None:
    word = consent()
    changes = {"person": "bert", "group": "cancer", "before": date(2022, 1, 1), "number": "0" * 64}
    for field, value in changes.items():
        with pytest.raises(PolicyError, match="altered, or lacks its signer's signature"):
            both.fund.answer(word.model_copy(update={field: value}), "north", TODAY)
    stranger = Identity("stranger", b"x" * 32)
    with pytest.raises(PolicyError, match="altered, or lacks"):
        both.fund.answer(consent(stranger), "north", TODAY)
    with pytest.raises(PolicyError, match="signed by nobody whose key is known"):
        both.fund.answer(consent(stranger, "elsewhere"), "north", TODAY)


def test_a_consent_of_a_wrong_form_is_not_signed() -> None:
    with pytest.raises(ConfigurationError, match="not a valid before"):
        consent(before="2023-13-01")
    with pytest.raises(ConfigurationError, match="not a valid person"):
        consent(person="")


def test_what_is_no_answer_names_the_fund(both: Both, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="fund: sent what is no answer") as error:
        both.insurer.read(consent(), b"perhaps", TODAY)
    assert error.value.culprits == ("fund",)
    hidden = InsurerSide(NORTH, terms_of(look_up="oblivious"), both.logs[1], HiddenList(*_empty()))
    for reply in (b"", bytes(SIZE * LEVELS)):
        with pytest.raises(PeerError, match="fund: sent what is no answer"):
            hidden.read(consent(question="0" * 64), reply, TODAY, "anna", BLINDING)


def _empty() -> tuple[Any, Any]:
    table = hidden_list([], 0, 1, KEY, lambda n: b"\7" * n)
    return table.names, table.labels


# --- rates and probing ---------------------------------------------------------------------------


def test_an_insurer_that_asks_one_group_after_another_of_a_person_is_refused(both: Both) -> None:
    asked(both, group="diabetes")
    asked(both, group="cancer")
    with pytest.raises(PolicyError, match=r"\[probing\] north asks about one group after another"):
        asked(both, group="copd")
    assert asked(both, person="bert", group="copd") == "no"


def test_an_insurer_that_asks_one_group_of_everybody_is_refused(tmp_path: Path) -> None:
    pair = Both(tmp_path, persons_of_a_group=3)
    for n in range(3):
        asked(pair, person=f"person {n}")
    with pytest.raises(PolicyError, match=r"\[probing\] north asks about one group of one person"):
        asked(pair, person="person 3")
    asked(pair, person="person 3", group="cancer")
    pair.close()


def test_unseen_probing_is_seen_by_the_desks_handles(tmp_path: Path) -> None:
    pair = Both(tmp_path, look_up="oblivious", groups_of_a_person=1)
    asked(pair)
    with pytest.raises(PolicyError, match=r"\[probing\]"):
        asked(pair, group="cancer")
    pair.close()


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"insurer_a_day": 2}, r"\[rate\] north has asked 2 questions today"),
        ({"person_a_day": 2}, r"\[rate\] this person was asked about 2 times today"),
    ],
)
def test_rates_are_counted_from_the_log_also_after_a_restart(
    tmp_path: Path, limit: dict[str, int], words: str
) -> None:
    pair = Both(tmp_path, **limit)
    asked(pair)
    asked(pair)
    pair.close()
    pair = Both(tmp_path, **limit)
    with pytest.raises(PolicyError, match=words):
        asked(pair)
    pair.fund.answer(
        consent(expires=TODAY + timedelta(days=20)), "north", TODAY + timedelta(days=1)
    )
    pair.close()


def test_rates_are_questions_persons_the_most_about_one_groups_and_refusals(both: Both) -> None:
    for person, group in (("anna", "diabetes"), ("anna", "cancer"), ("bert", "diabetes")):
        asked(both, person=person, group=group)
    with pytest.raises(PolicyError, match=r"\[probing\]"):
        asked(both, group="copd")
    with pytest.raises(PolicyError, match=r"\[group\]"):
        asked(both, group="asthma")
    (line,) = rates(list(entries(read_lines(both.folder / "fund.jsonl"))))
    assert line == ("north", "2024-03-01", 3, 2, 2, 2, 2, 1)


def test_a_charter_whose_purposes_or_keys_contradict_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is a purpose too"):
        terms_of(refused_purposes=["settle a claim"])
    with pytest.raises(ConfigurationError, match="a key has 64 hexadecimal digits"):
        terms_of(signers={"desk": "abc"})
