"""Known before: an insurer asks the fund about one person who signed for it.

    question   the insurer: a consent, and where the look-up is oblivious the blinded question
    answer     the fund: checks the consent and the rates, logs, and answers or helps
    read       the insurer: the answer, in its log, with a receipt for the person

The answer is yes, no (nothing of this group is on the fund's record before this date), or refer: a
person at the fund must judge. It is never a history, a date, or another group.

Who learns what: the insurer, the answer. The fund, who asks, for which group and purpose, before
which date, and whether the desk's handle was asked about before; where the look-up is open also the
person and the answer, where it is oblivious neither, whatever the answer.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from federated.link.charter import ConditionTerms
from federated.link.consent import Answer, ConsentToken, Receipt, check_consent, receipt
from federated.link.lookup import (
    LEVELS,
    Condition,
    HiddenList,
    earliest,
    looked_up,
    question_digest,
    verdict,
)
from lab.audit.log_format import Entry
from lab.audit.log_writer import Log
from lab.errors import PeerError, PolicyError
from secure_agg.errors import InvalidElement
from secure_agg.identity import Identity
from secure_agg.ristretto import SIZE, multiplied

STATISTIC = "condition"


@dataclass(frozen=True)
class Asked:
    """One question that was admitted.

    person: a handle of the fund's own, for its log; letter: digest of the letter that brought it
    """

    day: date
    insurer: str
    person: str
    group: str
    number: str
    letter: str = ""


def admitted(
    consent: ConsentToken,
    insurer: str,
    terms: ConditionTerms,
    history: Sequence[Asked],
    person: str,
    today: date,
    person_keys: Mapping[str, str],
    letter: str = "",
) -> Asked:
    """The question of a consent, if it may be answered.

    history: all that was admitted before; person: the fund's handle of the consent's person;
    letter: digest of the letter that brought it. The same letter, brought again because its answer
    was lost, is the same question.

    Raises PolicyError by the rule "consent", "purpose", "group", "rate" or "probing".
    """
    same = [
        line for line in history if line.number == consent.number and line.letter == letter != ""
    ]
    spent = {line.number for line in history} if not same else ()
    check_consent(consent, terms, insurer, today, spent, person_keys)
    if same:
        return same[0]
    line = Asked(today, insurer, person, consent.group, consent.number, letter)
    _check_rates(line, terms, history)
    return line


def _check_rates(line: Asked, terms: ConditionTerms, history: Sequence[Asked]) -> None:
    """Raises PolicyError for a question too many, and for one by which an insurer probes."""
    today, insurer, person = line.day, line.insurer, line.person
    lately = [each for each in history if each.day > today - timedelta(days=terms.window_days)]
    now = [each for each in lately if each.day == today]
    if sum(each.insurer == insurer for each in now) >= terms.insurer_a_day:
        raise PolicyError(
            f"{insurer} has asked {terms.insurer_a_day:,} questions today, as many as it "
            "may; ask tomorrow",
            "rate",
        )
    if sum(each.person == person for each in now) >= terms.person_a_day:
        raise PolicyError(
            f"this person was asked about {terms.person_a_day:,} times today; ask tomorrow", "rate"
        )
    own = [each for each in lately if each.insurer == insurer]
    groups = {each.group for each in own if each.person == person} | {line.group}
    if len(groups) > terms.groups_of_a_person:
        raise PolicyError(
            f"{insurer} asks about one group after another of one person: more than "
            f"{terms.groups_of_a_person} in {terms.window_days} days",
            "probing",
        )
    persons = {each.person for each in own if each.group == line.group} | {person}
    if len(persons) > terms.persons_of_a_group:
        raise PolicyError(
            f"{insurer} asks about one group of one person after another: more than "
            f"{terms.persons_of_a_group:,} in {terms.window_days} days",
            "probing",
        )


class FundSide:
    """The fund's side: records, the key of the look-up, and a log that it counts from.

    key: the scalar of the hidden list; secret: 32 bytes, for the handles in its log
    person_keys: a person's Ed25519 key, hexadecimal, where persons sign themselves
    approval: where a person approves each question: who did; raises PolicyError while nobody has
    """

    def __init__(
        self,
        identity: Identity,
        terms: ConditionTerms,
        records: Sequence[Condition],
        key: bytes,
        secret: bytes,
        log: Log,
        history: Sequence[Asked] = (),
        person_keys: Mapping[str, str] | None = None,
        approval: Callable[[ConsentToken], str] | None = None,
    ) -> None:
        self.identity, self.terms, self.log, self.approval = identity, terms, log, approval
        self.person_keys = dict(person_keys or {})
        self.history = list(history)
        self._first, self._key, self._secret = earliest(records), key, secret

    def answer(
        self,
        consent: ConsentToken,
        insurer: str,
        today: date,
        question: bytes = b"",
        letter: str = "",
    ) -> tuple[bytes, Receipt]:
        """(what the insurer reads, the fund's receipt).

        insurer: who brought the question, by its signature; question: the blinded elements where
        the look-up is oblivious; letter: digest of the letter that brought it

        Raises PolicyError, and PeerError for a question that is not of the agreed form; each is
        logged before.
        """
        try:
            line = admitted(
                consent,
                insurer,
                self.terms,
                self.history,
                self._handle(consent.person),
                today,
                self.person_keys,
                letter,
            )
            reply, said = self._reply(consent, insurer, question)
            if self.approval is not None and line not in self.history:
                by = self.approval(consent)
                self.log.append("approval", statistic=STATISTIC, by=by, consent=consent.digest)
        except (PolicyError, PeerError) as error:
            rule, text = error.rule, str(error)
            day = today.isoformat()
            self.log.append(
                "refusal", statistic=STATISTIC, rule=rule, text=text, by=insurer, day=day
            )
            raise
        if line not in self.history:
            told = {"by": insurer, "group": line.group, "purpose": consent.purpose}
            told |= {"person": line.person, "number": line.number, "day": line.day.isoformat()}
            told |= {"consent": consent.digest, "letter": letter}
            self.log.append("request", statistic=STATISTIC, **told)
            self.history.append(line)
        told = {"by": insurer, "answer": said, "number": line.number, "consent": consent.digest}
        self.log.append("answer", statistic=STATISTIC, **told)
        return reply, receipt(self.identity, consent, today, said)

    def _reply(self, consent: ConsentToken, insurer: str, question: bytes) -> tuple[bytes, Answer]:
        if self.terms.look_up == "open":
            first = self._first.get((consent.person, consent.group), date.max)
            said = verdict(first, consent.before, self.terms.refer_days)
            return said.encode(), said
        if question_digest(question) != consent.question or len(question) != SIZE * LEVELS:
            raise PolicyError("the question is not the one that was consented to", "consent")
        elements = np.frombuffer(question, dtype=np.uint8).reshape(-1, SIZE)
        try:
            return multiplied(self._key, elements, 1).tobytes(), "not told"
        except InvalidElement:
            raise PeerError(f"{insurer}: sent what is no element of the group", insurer) from None

    def _handle(self, person: str) -> str:
        return hmac.new(self._secret, person.encode(), hashlib.sha256).hexdigest()


class InsurerSide:
    """The insurer's side: what it asks and reads, each in its log."""

    def __init__(
        self, identity: Identity, terms: ConditionTerms, log: Log, table: HiddenList | None = None
    ) -> None:
        self.identity, self.terms, self.log, self.table = identity, terms, log, table

    def asks(self, consent: ConsentToken) -> None:
        """Note a question before it leaves."""
        told = {"by": self.identity.card.name, "group": consent.group, "purpose": consent.purpose}
        self.log.append("request", statistic=STATISTIC, consent=consent.digest, **told)

    def read(
        self,
        consent: ConsentToken,
        reply: bytes,
        today: date,
        person: str = "",
        blinding: bytes = b"",
    ) -> tuple[Answer, Receipt]:
        """The answer, logged, and a receipt for the person.

        person, blinding: what the question was made of where the look-up is oblivious

        Raises PeerError for an answer that is none.
        """
        if self.terms.look_up == "open":
            words: dict[bytes, Answer] = {b"yes": "yes", b"no": "no", b"refer": "refer"}
            answer = words.get(reply)
        else:
            answer = self._looked_up(consent, reply, person, blinding)
        if answer is None:
            raise PeerError(f"{self.terms.fund}: sent what is no answer", self.terms.fund)
        by = self.identity.card.name
        self.log.append("answer", statistic=STATISTIC, by=by, answer=answer, consent=consent.digest)
        return answer, receipt(self.identity, consent, today, answer)

    def _looked_up(
        self, consent: ConsentToken, reply: bytes, person: str, blinding: bytes
    ) -> Answer | None:
        if self.table is None or len(reply) != SIZE * LEVELS:
            return None
        elements = np.frombuffer(reply, dtype=np.uint8).reshape(-1, SIZE)
        try:
            return looked_up(self.table, person, consent.group, consent.before, blinding, elements)
        except InvalidElement:
            return None


def history_of(lines: Sequence[Entry]) -> list[Asked]:
    """What was admitted, by the fund's log: a fund that was restarted goes on counting."""
    return [
        Asked(
            date.fromisoformat(line.told["day"]),
            line.told["by"],
            line.told["person"],
            line.told["group"],
            line.told["number"],
            line.told["letter"],
        )
        for line in lines
        if line.kind == "request" and line.told.get("statistic") == STATISTIC
    ]


KINDS = ("request", "refusal")
#: What `rates` counts for each asker and day; most_of_one: questions about the person asked about most.
RATES = ("questions", "persons", "most_of_one", "groups", "refused", "probing")


def rates(
    lines: Sequence[Entry], statistic: str = STATISTIC
) -> list[tuple[str, str, int, int, int, int, int, int]]:
    """(who asked, day, the counts of `RATES`) for each asker and day of the log of who is asked.

    A question of several letters is one, by its consent's number."""
    days: dict[tuple[str, str], list[Entry]] = {}
    for line in lines:
        mine = line.kind == "request" and "number" not in line.told  # that this member asked itself
        if line.told.get("statistic") == statistic and line.kind in KINDS and not mine:
            day = str(line.told.get("day", line.time[:10]))
            days.setdefault((str(line.told.get("by")), day), []).append(line)
    rows = []
    for (asker, day), entries in sorted(days.items()):
        requests = (line for line in entries if line.kind == "request")
        questions = list({line.told["number"]: line for line in requests}.values())
        refusals = [line for line in entries if line.kind == "refusal"]
        persons = Counter(line.told["person"] for line in questions)
        groups = {line.told["group"] for line in questions}
        probing = sum(line.told["rule"] == "probing" for line in refusals)
        most = max(persons.values(), default=0)
        counts = len(questions), len(persons), most, len(groups), len(refusals), probing
        rows.append((asker, day, *counts))
    return rows
