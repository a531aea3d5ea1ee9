"""The side that asks for a score of one person, and the side that is asked.

    question   the asker: a consent that the person signed, and its blinded place
    answer     the other: checks consent and rations, logs, and helps with one place of its bands
    read       the asker: the band, in its log, with a receipt for the person

A consent is that of `federated.link.consent`: its `insurer` is who asks, its `fund` who is asked, its
group the digest of the model. Who is asked learns who asks about whom and for what, and neither the
asker's part nor the band; the asker learns the band, or where the terms say so the exact score.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import ClassVar, Literal

import numpy as np

from federated.joined.sums.factors import Role
from federated.link.consent import ConsentToken, SignedRecord, check_consent
from federated.queries.person import bands
from federated.queries.person.terms import ScoreTerms
from lab.audit.log_format import Entry
from lab.audit.log_writer import Log
from lab.errors import PeerError, PolicyError
from lab.models.families import Family
from secure_agg.errors import InvalidElement
from secure_agg.identity import Identity

STATISTIC, HANDLE = "score", b"score of a person"
NOT_TOLD = "not told"


class ScoreReceipt(SignedRecord):
    """What one side says was asked and answered; for the person too. answer: "not told" by who is asked."""

    domain: ClassVar[bytes] = b"score receipt"
    format: Literal["insurance-privacy-lab score receipt 1"] = (
        "insurance-privacy-lab score receipt 1"
    )
    consent: str
    by: str
    asker: str
    asked: str
    purpose: str
    model: str
    day: date
    answer: str


@dataclass(frozen=True)
class ToldScore:
    """One score that was told. person: a handle of the log's owner."""

    day: date
    asker: str
    person: str
    number: str


@dataclass(frozen=True)
class ScoredSide:
    """What a side has for scores: who it is, the model, and its part of each person's linear predictor,
    by the person's key. model: its digest; log: the side's own."""

    identity: Identity
    role: Role
    terms: ScoreTerms
    model: str
    law: Family
    parts: Mapping[str, float]
    log: Log

    @property
    def name(self) -> str:
        return self.identity.card.name

    def receipt(self, consent: ConsentToken, day: date, answer: str) -> ScoreReceipt:
        """What this side says was asked and answered."""
        draft = ScoreReceipt(
            consent=consent.digest,
            by=self.name,
            asker=consent.insurer,
            asked=consent.fund,
            purpose=consent.purpose,
            model=self.model,
            day=day,
            answer=answer,
        )
        return draft.signed(self.identity)

    def handle(self, person: str) -> str:
        """What this side's log says in a person's place; it tells others nothing."""
        return hashlib.sha256(self.identity.sign(HANDLE, person.encode())).hexdigest()


# The asker.


@dataclass(frozen=True)
class ScoreQuestion:
    """A question that was sent. place: the asker's, secret; blinding: 32 bytes, secret."""

    consent: ConsentToken
    place: int
    blinding: bytes
    sent: bytes


def question(
    side: ScoredSide,
    consent: ConsentToken,
    randomness: Callable[[int], bytes] = secrets.token_bytes,
) -> ScoreQuestion:
    """The asker's first step. Raises :class:`PolicyError` for a person whom it does not have, or whose
    part is beyond the grid."""
    side.terms.check_asker(consent.purpose, side.role)
    try:
        place = bands.place_of(_part(side, consent.person))
    except ValueError:
        raise PolicyError(
            f"{side.name}: its part of this person's score is beyond the grid of bands", "person"
        ) from None
    blinding = randomness(32)
    sent = bands.asked(place, bytes.fromhex(consent.digest), blinding)
    told = {"by": side.name, "purpose": consent.purpose, "person": side.handle(consent.person)}
    side.log.append("request", statistic=STATISTIC, consent=consent.digest, **told)
    return ScoreQuestion(consent, place, blinding, sent)


def read(
    side: ScoredSide, asked: ScoreQuestion, reply: bytes, today: date
) -> tuple[str, ScoreReceipt]:
    """The asker's last step: the band in words, or the exact score, logged; and its receipt.

    Raises :class:`PeerError` for a reply that is none."""
    consent, other = asked.consent, asked.consent.fund
    if side.terms.exact:
        if len(reply) != 8:
            raise PeerError(f"{other}: sent what is no part of a score", other)
        total = _part(side, consent.person) + float(np.frombuffer(reply, "<f8")[0])
        said = f"{float(side.law.mean(np.array([total]))[0]):.6g}"
    else:
        session = bytes.fromhex(consent.digest)
        place = bands.read(reply, asked.place, session, asked.blinding, other)
        if place > len(side.terms.bands):
            raise PeerError(f"{other}: sent what is no table of bands", other)
        said = side.terms.band(place)
    told = {"by": side.name, "answer": said, "consent": consent.digest}
    side.log.append("answer", statistic=STATISTIC, **told)
    return said, side.receipt(consent, today, said)


# Who is asked.


class AskedSide:
    """Answers for one person at a time. history: what was told before, by its log."""

    def __init__(
        self, side: ScoredSide, person_keys: Mapping[str, str], history: Sequence[ToldScore] = ()
    ) -> None:
        self.side, self.person_keys, self.history = side, person_keys, list(history)

    def answer(
        self, consent: ConsentToken, asker: str, role: Role, sent: bytes, today: date
    ) -> tuple[bytes, ScoreReceipt]:
        """(what the asker reads, this side's receipt). asker, role: who brought the question.

        Raises :class:`PolicyError` by the rule "consent", "purpose", "ration" or "person", and
        :class:`PeerError` for what is no question; each is logged, and nothing is told."""
        side = self.side
        try:
            line = self._admitted(consent, asker, role, today)
            reply = self._reply(consent, asker, sent)
        except (PolicyError, PeerError) as error:
            told = {"rule": error.rule, "text": str(error), "by": asker, "day": today.isoformat()}
            side.log.append("refusal", statistic=STATISTIC, **told)
            raise
        told = {"by": asker, "purpose": consent.purpose, "person": line.person}
        told |= {"number": line.number, "day": today.isoformat()}
        side.log.append("request", statistic=STATISTIC, consent=consent.digest, **told)
        self.history.append(line)
        how = "exact" if side.terms.exact else f"one of {len(side.terms.bands) + 1} bands"
        side.log.append("answer", statistic=STATISTIC, by=asker, answer=how, number=line.number)
        return reply, side.receipt(consent, today, NOT_TOLD)

    def _admitted(self, consent: ConsentToken, asker: str, role: Role, today: date) -> ToldScore:
        side, terms = self.side, self.side.terms
        terms.check_asker(consent.purpose, role)
        if consent.group != side.model:
            raise PolicyError("the consent is for scores of another model than this one", "consent")
        spent = {line.number for line in self.history}
        held = terms.consent_terms(side.name, side.model)
        check_consent(consent, held, asker, today, spent, self.person_keys)
        person = side.handle(consent.person)
        own = [line for line in self.history if line.asker == asker]
        if sum(line.day == today for line in own) >= terms.asker_a_day:
            raise PolicyError(
                f"{asker} has asked for {terms.asker_a_day:,} scores today, as many as the terms let "
                "it; ask tomorrow",
                "ration",
            )
        since = today - timedelta(days=terms.period_days)
        lately = [line.day for line in own if line.person == person and line.day > since]
        if len(lately) >= terms.scores_of_a_person:
            again = min(lately) + timedelta(days=terms.period_days)
            raise PolicyError(
                f"{asker} was told {len(lately)} of this person's scores in {terms.period_days} days, as "
                f"many as the terms let it; ask from {again} on",
                "ration",
            )
        return ToldScore(today, asker, person, consent.number)

    def _reply(self, consent: ConsentToken, asker: str, sent: bytes) -> bytes:
        side, part = self.side, _part(self.side, consent.person)
        if side.terms.exact:
            return np.array([part], dtype="<f8").tobytes()
        table = bands.bands_at(part, side.terms.bands, side.law)
        try:
            session = bytes.fromhex(consent.digest)
            return bands.answered(table, session, secrets.token_bytes(32), sent)
        except (InvalidElement, ValueError):
            raise PeerError(f"{asker}: sent what is no blinded place", asker) from None


def _part(side: ScoredSide, person: str) -> float:
    if person not in side.parts:
        raise PolicyError(f"{side.name} has no complete row of this person", "person")
    return side.parts[person]


def history_of(lines: Iterable[Entry]) -> list[ToldScore]:
    """What was told, by the log of the side that is asked: one that was restarted goes on counting."""
    return [
        ToldScore(
            date.fromisoformat(line.told["day"]),
            line.told["by"],
            line.told["person"],
            line.told["number"],
        )
        for line in lines
        if line.kind == "request"
        and line.told.get("statistic") == STATISTIC
        and "number" in line.told
    ]
