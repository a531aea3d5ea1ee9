"""What each side has for scores of one person, and what it signs and logs of a question.

    asker.question   a consent that the person signed, and a blinded place
    asked.answer     the other side: checks consent and rations, logs, and helps with one place of its bands
    asker.read       the band, in the asker's log, with a receipt for the person

Of a GLM each side has a part of the score. Of trees it first has to get a share of it, by a question about
leaves before that about the band.

A consent is that of `federated.link.consent`: its `insurer` is who asks, its `fund` who is asked, its
group the digest of the model. Who is asked learns who asks about whom and for what, and neither the
asker's part nor the band; the asker learns the band, or where the terms say so the exact score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import ClassVar, Literal

import numpy as np

from federated.joined.sums.factors import Role
from federated.link.charter import Spelling
from federated.link.consent import ConsentToken, SignedRecord
from federated.link.keys import one_identifier
from federated.queries.person.leaves import SharedTrees
from federated.queries.person.terms import ScoreTerms
from lab.audit.log_writer import Log
from lab.errors import ConfigurationError, PolicyError
from lab.models.families import Family
from secure_agg.identity import Identity

#: What a question is about: the band, and of trees the leaves before.
Step = Literal["leaves", "band"]
STATISTIC, HANDLE, ROW = "score", b"score of a person", b"score row"
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
class Linear:
    """A side's part of each person's linear predictor of a GLM. persons: by their key."""

    persons: Mapping[str, float]


@dataclass(frozen=True)
class ScoredSide:
    """What a side has for scores: who it is, the model, and what it holds of it, for each person by key.
    model: its digest; log: the side's own; spelling: of persons' identifiers, as its contract has it."""

    identity: Identity
    role: Role
    terms: ScoreTerms
    model: str
    law: Family
    holding: Linear | SharedTrees
    log: Log
    spelling: Spelling = "normal"

    @property
    def name(self) -> str:
        return self.identity.card.name

    @property
    def kind(self) -> str:
        """The kind of the model."""
        return "trees" if isinstance(self.holding, SharedTrees) else "glm"

    @property
    def steps(self) -> tuple[Step, ...]:
        """What is asked about, in this order."""
        return ("leaves", "band") if isinstance(self.holding, SharedTrees) else ("band",)

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

    def key(self, person: str) -> str:
        """A person's key at this side. Raises :class:`PolicyError` where it has no row of the person that
        can be scored."""
        try:
            key = one_identifier(person, self.spelling)
        except ConfigurationError as error:
            raise PolicyError(f"{self.name}: {error}", "person") from None
        if key not in self.holding.persons:
            raise PolicyError(f"{self.name} has no complete row of this person", "person")
        return key

    def handle(self, person: str) -> str:
        """What this side's log says in the place of a person's key; it tells others nothing."""
        return self.derived(HANDLE, person.encode()).hex()

    def row(self, key: str, salt: bytes) -> str:
        """What stands for a person's row in this side's log; another where the row has changed."""
        return self.derived(ROW, salt + np.asarray(self.holding.persons[key]).tobytes()).hex()

    def derived(self, purpose: bytes, of: bytes) -> bytes:
        """32 bytes that this side alone can make, the same each time."""
        return hashlib.sha256(self.identity.sign(purpose, of)).digest()


def about(side: ScoredSide, consent: ConsentToken, asker: str) -> dict[str, str]:
    """What a log says of a question; in the person's place a handle."""
    told = {"by": asker, "purpose": consent.purpose, "group": consent.group}
    told |= {"person": side.handle(side.key(consent.person)), "consent": consent.digest}
    return {"statistic": STATISTIC, **told}
