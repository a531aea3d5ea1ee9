"""A person's word that one question may be asked about it, once, and the receipts of it.

A consent names who may ask whom, for what purpose, about which group of conditions, before which
date, until when, and has a number that is used once. It is signed by the person's key, which the
fund knows, or by that of a desk that the charter names, where persons sign.

Where the look-up is oblivious, the fund must not learn who signed: the desk puts a handle in the
person's place, the same for as long as it counts questions, and the digest of the blinded question,
which it made itself for this person, group and date. So the fund answers what was consented to and
nothing else, and does not see about whom.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Container, Mapping
from datetime import date, timedelta
from typing import ClassVar, Literal, Self

from pydantic import Field, ValidationError

from federated.link.charter import ConditionTerms
from federated.link.lookup import blinded, question_digest
from lab.errors import ConfigurationError, PolicyError
from lab.files import canonical
from lab.records import Strict
from secure_agg.identity import Identity, signed_by

PERSON = "the person"
#: Signs of a text in a consent, at most: it stands in a line of a log.
LONGEST = 500
Answer = Literal["yes", "no", "refer", "not told"]
Hex32 = Field(pattern=r"^[0-9a-f]{64}$")
Hex64 = Field(pattern=r"^[0-9a-f]{128}$")


class SignedRecord(Strict):
    """A record with a signature of all else that it holds. domain: what the signature is for."""

    domain: ClassVar[bytes]
    signature: str = Field(default="", pattern=r"^([0-9a-f]{128})?$")

    @property
    def statement(self) -> bytes:
        """What is signed."""
        return canonical(self.model_dump(mode="json", exclude={"signature"}))

    def signed(self, identity: Identity) -> Self:
        """The record with this identity's signature."""
        signature = identity.sign(self.domain, self.statement).hex()
        return self.model_copy(update={"signature": signature})

    def holds(self, verifying: bytes) -> bool:
        """Whether the owner of this key says so."""
        signature = bytes.fromhex(self.signature)
        return signed_by(verifying, self.domain, self.statement, signature)


class ConsentToken(SignedRecord):
    """One consent, signed.

    signer: a desk of the charter, or "the person"; person: its identifier, or a desk's handle
    question: SHA-256 of the blinded question, empty where the fund sees the person
    """

    domain: ClassVar[bytes] = b"link consent"
    format: Literal["insurance-privacy-lab link consent 1"] = "insurance-privacy-lab link consent 1"
    signer: str = Field(max_length=LONGEST)
    insurer: str = Field(max_length=LONGEST)
    fund: str = Field(max_length=LONGEST)
    person: str = Field(min_length=1, max_length=LONGEST)
    purpose: str = Field(max_length=LONGEST)
    group: str = Field(max_length=LONGEST)
    before: date
    expires: date
    number: str = Hex32
    question: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    signature: str = Hex64

    @property
    def digest(self) -> str:
        """Its name in logs and receipts."""
        return hashlib.sha256(self.statement).hexdigest()


class SignedQuestion(Strict):
    """What a desk hands an insurer: a consent, and what the question is made of.

    person: its identifier; blinding, question: where the fund must not see the person, hexadecimal
    """

    format: Literal["insurance-privacy-lab link question 1"] = (
        "insurance-privacy-lab link question 1"
    )
    consent: ConsentToken
    person: str = Field(min_length=1)
    blinding: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    question: str = Field(default="", pattern=r"^([0-9a-f]{2})*$", max_length=4096)


class Receipt(SignedRecord):
    """What one side says was asked and answered; for the person too.

    by: who says it; answer: "not told" where the look-up is oblivious and the fund says it
    """

    domain: ClassVar[bytes] = b"link receipt"
    format: Literal["insurance-privacy-lab link receipt 1"] = "insurance-privacy-lab link receipt 1"
    consent: str = Hex32
    by: str
    insurer: str
    purpose: str
    group: str
    before: date
    day: date
    answer: Answer


def consented(
    signer: Identity,
    name: str,
    wanted: Mapping[str, object],
    randomness: Callable[[int], bytes] = secrets.token_bytes,
) -> ConsentToken:
    """A consent, signed with the person's identity or a desk's.

    name: the signer's in the charter; wanted: the fields of `ConsentToken` but format, number, signature

    Raises ConfigurationError.
    """
    fields = {"signer": name, "number": randomness(32).hex(), **wanted}
    try:
        draft = ConsentToken.model_validate(fields | {"signature": "0" * 128})
    except ValidationError as error:
        places = ", ".join(".".join(map(str, item["loc"])) for item in error.errors())
        raise ConfigurationError(f"consent: not a valid {places}") from None
    return draft.signed(signer)


def consented_unseen(
    signer: Identity,
    name: str,
    wanted: Mapping[str, object],
    person: str,
    secret: bytes,
    blinding: bytes,
) -> tuple[ConsentToken, bytes]:
    """(a desk's consent that hides the person, the blinded question it holds for).

    wanted: the fields of `ConsentToken` but person, question and those that `consented` fills in
    secret: of the desk, for handles; blinding: 32 fresh random bytes, which the insurer gets too

    The desk blinds the question itself, so that it signs for this person, group and date and no
    other. Raises ConfigurationError.
    """
    draft = consented(signer, name, {**wanted, "person": "hidden"})
    question = blinded(person, draft.group, draft.before, blinding).tobytes()
    epoch = f"{draft.expires:%Y-%m}"
    hidden = {"person": handle(secret, person, epoch), "question": question_digest(question)}
    return consented(signer, name, {**wanted, **hidden}), question


def handle(secret: bytes, person: str, epoch: str) -> str:
    """What a desk says in a person's place: the same for one epoch, and to nobody else a person."""
    return hmac.new(secret, f"{epoch} {person}".encode(), hashlib.sha256).hexdigest()


def receipt(identity: Identity, consent: ConsentToken, day: date, answer: Answer) -> Receipt:
    """What one side says was asked and answered."""
    draft = Receipt(
        consent=consent.digest,
        by=identity.card.name,
        insurer=consent.insurer,
        purpose=consent.purpose,
        group=consent.group,
        before=consent.before,
        day=day,
        answer=answer,
    )
    return draft.signed(identity)


def check_consent(
    consent: ConsentToken,
    terms: ConditionTerms,
    insurer: str,
    today: date,
    spent: Container[str],
    person_keys: Mapping[str, str],
) -> None:
    """Whether a consent is good for a question that an insurer brought today.

    spent: numbers that were used; person_keys: a person's Ed25519 key (hexadecimal), as the fund
        knows it

    Raises PolicyError by the rule "consent", "purpose" or "group": one line, no person in it.
    """
    if consent.group not in terms.groups:
        raise PolicyError(
            f"'{consent.group}' is no group that may be asked about; there are "
            f"{', '.join(terms.groups)}",
            "group",
        )
    if consent.purpose in terms.refused_purposes:
        raise PolicyError(
            f"the charter refuses the purpose '{consent.purpose}': an answer may not be used for it",
            "purpose",
        )
    if consent.purpose not in terms.purposes:
        raise PolicyError(
            f"'{consent.purpose}' is no purpose that is allowed; there are {', '.join(terms.purposes)}",
            "purpose",
        )
    reason = _void(consent, terms, insurer, today, spent) or _unsigned(consent, terms, person_keys)
    if reason:
        raise PolicyError(f"the consent {reason}", "consent")


def _void(
    consent: ConsentToken, terms: ConditionTerms, insurer: str, today: date, spent: Container[str]
) -> str:
    if (consent.insurer, consent.fund) != (insurer, terms.fund):
        return f"is not for {insurer} to ask {terms.fund}"
    if consent.before > today:
        return f"asks about a date in the future, {consent.before}; today is {today}"
    if consent.expires < today:
        return f"expired on {consent.expires}; let the person sign another"
    if consent.expires > today + timedelta(days=terms.token_days):
        return f"is good for more than the charter's {terms.token_days} days"
    if bool(consent.question) != (terms.look_up == "oblivious"):
        return f"is not for a look-up that is {terms.look_up}"
    if consent.number in spent:
        return "was used before; each is good for one question"
    return ""


def _unsigned(consent: ConsentToken, terms: ConditionTerms, person_keys: Mapping[str, str]) -> str:
    if consent.signer == PERSON and terms.look_up == "open":
        key = person_keys.get(consent.person, "")
    else:
        key = terms.signers.get(consent.signer, "")
    if not key:
        return "is signed by nobody whose key is known here"
    if not consent.holds(bytes.fromhex(key)):
        return "was altered, or lacks its signer's signature"
    return ""
