"""The side that is asked for a score of one person: consents, rations, a log that it counts from."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np

from federated.joined.sums.factors import Role
from federated.link.consent import ConsentToken, check_consent
from federated.queries.person import bands, leaves
from federated.queries.person.leaves import SharedTrees
from federated.queries.person.sides import (
    NOT_TOLD,
    STATISTIC,
    ScoredSide,
    ScoreReceipt,
    Step,
    about,
)
from lab.audit.log_format import Entry
from lab.errors import PeerError, PolicyError
from secure_agg.errors import InvalidElement

MONTH, SALT = 30, 16
LEAVES = b"score leaves"


@dataclass(frozen=True)
class ToldScore:
    """A letter that was answered. person: a handle of the log's owner; consent, letter: their digests;
    salt: of the random numbers of its answer; row: stands for the person's row."""

    day: date
    asker: str
    person: str
    number: str
    consent: str
    step: Step
    letter: str
    salt: str
    row: str


@dataclass(frozen=True)
class BroughtQuestion:
    """A question as it came. asker, role: who brought it; letter: digest of the letter in which it came:
    the same one, brought again, is the same question."""

    consent: ConsentToken
    asker: str
    role: Role
    step: Step
    sent: bytes
    letter: str = ""


class AskedSide:
    """Answers for one person at a time.

    person_keys: of persons who sign themselves; history: what was told before, by its log; approval: where
    a person approves each score: who did; raises PolicyError while nobody has.
    """

    def __init__(
        self,
        side: ScoredSide,
        person_keys: Mapping[str, str],
        history: list[ToldScore],
        approval: Callable[[ConsentToken], str] | None = None,
    ) -> None:
        self.side, self.person_keys, self.history = side, person_keys, history
        self._approval = approval

    def answer(self, brought: BroughtQuestion, today: date) -> tuple[bytes, ScoreReceipt]:
        """(what the asker reads, this side's receipt).

        Raises :class:`PolicyError` by the rule "kind", "consent", "purpose", "ration", "person", "table" or
        "approval", and :class:`PeerError` for what is no question; each is logged, and nothing is told."""
        side, consent, asker = self.side, brought.consent, brought.asker
        try:
            line = self._admitted(brought, today)
            is_new = line not in self.history
            if self._approval is not None and is_new and line.step == side.steps[0]:
                by = self._approval(consent)
                side.log.append("approval", statistic=STATISTIC, by=by, consent=consent.digest)
            if is_new:  # before its answer is made: a letter that is no question is used up too
                self._note(line, brought)
            reply = self._reply(brought, bytes.fromhex(line.salt))
        except (PolicyError, PeerError) as error:
            told = {"rule": error.rule, "text": str(error), "by": asker, "day": today.isoformat()}
            side.log.append("refusal", statistic=STATISTIC, **told)
            raise
        how = "exact" if side.terms.exact else f"one of {len(side.terms.bands) + 1} bands"
        how = "shares of leaves" if line.step == "leaves" else how
        told = {"by": asker, "answer": how, "number": line.number, "consent": consent.digest}
        side.log.append("answer", statistic=STATISTIC, **told)
        return reply, side.receipt(consent, today, NOT_TOLD)

    def _note(self, line: ToldScore, brought: BroughtQuestion) -> None:
        names = ("number", "step", "letter", "salt", "row")
        told = {"day": line.day.isoformat(), **{name: getattr(line, name) for name in names}}
        about_it = about(self.side, brought.consent, brought.asker)
        self.side.log.append("request", **about_it, **told)
        self.history.append(line)

    def _admitted(self, brought: BroughtQuestion, today: date) -> ToldScore:
        """The line of a question that may be answered: the one before of a letter brought again."""
        # 1. What is asked, by whom, of which model.
        side, terms, consent = self.side, self.side.terms, brought.consent
        terms.check_asker(consent.purpose, brought.role)
        if consent.group != side.model:
            raise PolicyError("the consent is for scores of another model than this one", "consent")
        if brought.step not in side.steps:
            raise PeerError(f"{brought.asker}: asks about leaves of a model without", brought.asker)
        # 2. Whether the consent is good, and unused by this step. What it began it may end later.
        own = [each for each in self.history if each.consent == consent.digest]
        same = [each for each in own if each.step == brought.step]
        repeated = bool(same) and same[0].letter == brought.letter != ""
        others = {each.number for each in self.history if each.consent != consent.digest}
        spent = others | {each.number for each in same if not repeated}
        held, day = terms.consent_terms(side.name, side.model), own[0].day if own else today
        check_consent(consent, held, brought.asker, day, spent, self.person_keys)
        # 3. The person's row, the same as when the question began.
        key = side.key(consent.person)
        salt = own[0].salt if own else secrets.token_hex(SALT)
        row = side.row(key, bytes.fromhex(salt))
        if own and own[0].row != row:
            raise PolicyError(
                "this person's row has changed since the question began; let the person sign another consent",
                "table",
            )
        if repeated:
            return same[0]
        # 4. Rations, of a question that begins.
        line = ToldScore(
            day=today,
            asker=brought.asker,
            person=side.handle(key),
            number=consent.number,
            consent=consent.digest,
            step=brought.step,
            letter=brought.letter,
            salt=salt,
            row=row,
        )
        if brought.step == side.steps[0]:
            self._check_rations(line)
        elif not own:
            raise PolicyError("the consent was not used for a question about leaves", "consent")
        return line

    def _check_rations(self, line: ToldScore) -> None:
        """Raises :class:`PolicyError` for a score too many."""
        terms, today, asker = self.side.terms, line.day, line.asker
        own = {each.number: each for each in self.history if each.asker == asker}.values()
        for days, most, when, again in (
            (1, terms.asker_a_day, "today", "tomorrow"),
            (MONTH, terms.asker_a_month, f"in {MONTH} days", "later"),
        ):
            if sum(each.day > today - timedelta(days=days) for each in own) >= most:
                raise PolicyError(
                    f"{asker} was told {most:,} score{'s' * (most > 1)} {when}, as many as it may; ask {again}",
                    "ration",
                )
        since = today - timedelta(days=terms.period_days)
        lately = [each.day for each in own if each.person == line.person and each.day > since]
        if len(lately) >= terms.scores_of_a_person:
            again = (min(lately) + timedelta(days=terms.period_days)).isoformat()
            raise PolicyError(
                f"{asker} was told {len(lately)} of this person's scores in {terms.period_days} days, as "
                f"many as it may; ask from {again} on",
                "ration",
            )

    def _reply(self, brought: BroughtQuestion, salt: bytes) -> bytes:
        side, consent = self.side, brought.consent
        holding, session = side.holding, bytes.fromhex(consent.digest)
        person, secret = side.key(consent.person), side.derived(LEAVES, salt + session)
        try:
            if not isinstance(holding, SharedTrees):
                part = holding.persons[person]
            elif brought.step == "leaves":
                return leaves.answered(holding, person, session, secret, brought.sent)
            else:
                part = leaves.amount(leaves.asked_share(holding, person, secret))
            if side.terms.exact:
                return np.array([part], dtype="<f8").tobytes()
            wraps = isinstance(holding, SharedTrees)
            table = bands.bands_at(part, side.terms.bands, side.law, wraps=wraps)
            return bands.answered(table, session, secrets.token_bytes(32), brought.sent)
        except (InvalidElement, ValueError):
            raise PeerError(
                f"{brought.asker}: sent what is no blinded place", brought.asker
            ) from None


def history_of(lines: Iterable[Entry]) -> list[ToldScore]:
    """What was told, by the log of the side that is asked: one that was restarted goes on counting."""
    told = (line.told for line in lines if line.kind == "request")
    return [
        ToldScore(
            day=date.fromisoformat(line["day"]),
            **{name: line[name] for name in ("person", "number", "consent")},
            asker=line["by"],
            step=line.get("step", "band"),
            **{name: line.get(name, "") for name in ("letter", "salt", "row")},
        )
        for line in told
        if line.get("statistic") == STATISTIC and "number" in line
    ]
