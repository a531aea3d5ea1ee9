"""A desk at which persons sign: its folder, what it hands an insurer, what a person gets back."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path

from federated.deployment import charter as charters
from federated.deployment.charter import Charter
from federated.deployment.enrolment import new_identity
from federated.deployment.folders import CHARTER, IDENTITY, identity_of, make_folder
from federated.link.charter import ConditionTerms
from federated.link.consent import (
    ConsentToken,
    Receipt,
    SignedQuestion,
    check_consent,
    consented,
    consented_unseen,
)
from federated.link.keys import one_identifier
from federated.link.services.condition_service import Answered
from federated.queries.person.service import ScoreAnswer
from federated.queries.person.sides import NOT_TOLD, ScoreReceipt
from federated.queries.person.terms import DAYS, consent_to_score
from lab.errors import ConfigurationError, PeerError
from lab.files import canonical, read_json, write_whole
from lab.records import parse
from secure_agg.identity import Identity

HANDLES = "handles.json"


def make_signer(folder: Path, name: str) -> Identity:
    """A new desk in a new folder. Its key goes into the charter's link.condition.signers."""
    make_folder(folder)
    identity = new_identity(folder / IDENTITY, name)
    write_whole(folder / HANDLES, canonical({"secret": secrets.token_hex(32)}), 0o600)
    return identity


def sign_question(
    folder: Path,
    *,
    insurer: str,
    person: str,
    group: str,
    before: date,
    today: date,
    purpose: str = "",
    days: int = DAYS,
) -> SignedQuestion:
    """A person's consent to one question, signed by the desk, and what the question is made of.

    purpose: the charter's first if empty. Raises ConfigurationError, and PolicyError for what the
    charter does not allow.
    """
    identity, charter = identity_of(folder), charters.read_signed(folder / CHARTER)
    terms, name = _terms(charter), identity.card.name
    _check_signer(identity, terms.signers, "condition.signers of the file of lab charter link")
    if insurer == terms.fund or insurer not in charter.roster:
        others = ", ".join(n for n in charter.roster.names if n != terms.fund)
        raise ConfigurationError(f"--insurer {insurer}: there are {others}")
    assert charter.link is not None
    identifier = one_identifier(person, charter.link.spelling.get("person", "normal"))
    wanted = {
        "insurer": insurer,
        "fund": terms.fund,
        "purpose": purpose or terms.purposes[0],
        "group": group,
        "before": before,
        "expires": today + timedelta(days=days),
    }
    if terms.look_up == "open":
        consent = consented(identity, name, {**wanted, "person": identifier})
        check_consent(consent, terms, insurer, today, (), {})
        return SignedQuestion(consent=consent, person=identifier)
    blinding, secret = secrets.token_bytes(32), bytes.fromhex(read_json(folder / HANDLES)["secret"])
    consent, question = consented_unseen(identity, name, wanted, identifier, secret, blinding)
    check_consent(consent, terms, insurer, today, (), {})
    return SignedQuestion(
        consent=consent, person=identifier, blinding=blinding.hex(), question=question.hex()
    )


def sign_score(
    folder: Path,
    *,
    asker: str,
    asked: str,
    person: str,
    model: str,
    today: date,
    purpose: str = "",
    days: int = DAYS,
) -> ConsentToken:
    """A person's consent to one score of two sides, signed by the desk.

    asked: the other side, "" where the asker is joined to one alone; model: its digest; purpose: the
    charter's first if empty. Raises ConfigurationError, and PolicyError for what the charter does not allow.
    """
    identity, charter = identity_of(folder), charters.read_signed(folder / CHARTER)
    terms, pairs = charter.scores, charter.pairs
    if terms is None or pairs is None:
        raise ConfigurationError(
            f"charter {charter.name}: says nothing of scores; agree on them with lab charter scores"
        )
    _check_signer(identity, terms.signers, "signers of the file of lab charter scores")
    if asker not in pairs.keys:
        raise ConfigurationError(f"--insurer {asker}: there are {', '.join(pairs.keys)}")
    peers = pairs.peers(asker)
    if (asked or len(peers) > 1) and asked not in peers:
        raise ConfigurationError(f"--of {asked}: {asker} is joined to {', '.join(peers)}")
    what = purpose or next(iter(terms.purposes))
    terms.check_asker(what, pairs.role(asker))
    consent = consent_to_score(
        identity,
        terms,
        asker=asker,
        asked=asked or peers[0],
        person=person.strip(),
        purpose=what,
        model=model,
        today=today,
        days=days,
    )
    held = terms.consent_terms(consent.fund, model)
    check_consent(consent, held, asker, today, (), {})
    return consent


def _check_signer(identity: Identity, signers: Mapping[str, str], where: str) -> None:
    name = identity.card.name
    if signers.get(name) != identity.card.verifying.hex():
        raise ConfigurationError(
            f"the charter names no signer '{name}' with this desk's key; it must stand in {where}"
        )


def is_of_score(path: Path) -> bool:
    """Whether receipts are of a score, by the file's form."""
    content = read_json(path)
    return isinstance(content, dict) and "score" in content


def read_score_receipts(path: Path, charter_file: Path) -> ScoreAnswer:
    """What both sides signed of one score. Raises as `read_receipts`."""
    charter = charters.read_signed(charter_file)
    told = parse(ScoreAnswer, read_json(path), where=str(path))
    names = told.asker.asker, told.asker.asked
    _check_receipts(path, charter, dict(zip(names, (told.asker, told.asked), strict=True)))
    if (told.score, NOT_TOLD) != (told.asker.answer, told.asked.answer):
        raise PeerError(f"{path}: the answer is not that of the receipts")
    return told


def read_receipts(path: Path, charter_file: Path) -> Answered:
    """What both sides signed of one answer. Raises ConfigurationError, and PeerError, which names who
    did not sign it or says something else."""
    charter = charters.read_signed(charter_file)
    told = parse(Answered, read_json(path), where=str(path))
    names = _terms(charter).fund, told.insurer.insurer
    _check_receipts(path, charter, dict(zip(names, (told.fund, told.insurer), strict=True)))
    if told.fund.answer not in (told.insurer.answer, "not told"):
        raise PeerError(f"{path}: the two receipts are of different questions or answers")
    if told.answer != told.insurer.answer:
        raise PeerError(f"{path}: the answer is not that of the receipts")
    return told


def _check_receipts(
    path: Path, charter: Charter, receipts: Mapping[str, Receipt | ScoreReceipt]
) -> None:
    """Raises :class:`PeerError` unless each is signed by whom it is named by, and all are of one question."""
    for name, receipt in receipts.items():
        if receipt.by != name or not receipt.holds(charter.member(name).card.verifying):
            raise PeerError(
                f"{path}: the receipt of {name} was altered, or lacks its signature", name
            )
    ours, theirs = (
        each.model_dump(exclude={"by", "answer", "day", "signature"}) for each in receipts.values()
    )
    if ours != theirs:
        raise PeerError(f"{path}: the two receipts are of different questions or answers")


def _terms(charter: Charter) -> ConditionTerms:
    if charter.link is None or charter.link.condition is None:
        raise ConfigurationError(
            f"charter {charter.name}: says nothing of conditions, so nothing may be asked"
        )
    return charter.link.condition
