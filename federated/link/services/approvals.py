"""A person at a member approves a question about a condition or a score before it is answered.

A question that waits is refused and kept in a file; the person approves it by its digest, and whoever
asked asks again with the same consent, which is not used by waiting.
"""

from __future__ import annotations

from pathlib import Path

from federated.link.consent import ConsentToken
from lab.audit import approvals
from lab.errors import PolicyError
from lab.files import canonical, read_json
from lab.records import parse
from lab.text import printable


def approved_by(folder: Path, consent: ConsentToken) -> str:
    """Who approved a question. Raises PolicyError, and keeps the question, where nobody did.

    folder: the service's
    """
    if (who := approvals.approver(folder, consent.digest)) is not None:
        return who
    approvals.keep(folder, consent.digest, canonical(consent.model_dump(mode="json")))
    raise PolicyError(
        f"question {consent.digest[:12]} waits for a person at {consent.fund} to approve it; ask again "
        "later with the same consent",
        "approval",
    )


def waiting_questions(folder: Path) -> dict[str, ConsentToken]:
    """Questions that wait for a person's approval, by digest. Raises ConfigurationError."""
    return approvals.waiting(
        folder, "question", lambda path: parse(ConsentToken, read_json(path), where=str(path))
    )


def approve_question(folder: Path, digest: str, who: str) -> str:
    """A person's approval; the fund writes it in its log when it answers. digest: as it begins."""
    return approvals.approve(folder, digest, who, waiting_questions(folder), "question")


def question_lines(consent: ConsentToken, look_up: str, *, score: bool = False) -> list[str]:
    """A question as a person reads it before approving. score: whether it is about a person's score."""
    who = printable(consent.person)
    person = who if score or look_up == "open" else f"not told; handle {who[:12]}"
    if score:
        what, question = "score of one person", f"a score by model {consent.group[:16]}"
    else:
        what, question = (
            "condition known before",
            f"{consent.group} on record before {consent.before}?",
        )
    return [
        f"{consent.digest[:12]}  {what}",
        f"  asked by   {consent.insurer}, to {consent.purpose}",
        f"  question   {question}",
        f"  person     {person}",
        f"  consent    signed at {consent.signer}, good until {consent.expires}",
        f"  digest     {consent.digest}",
    ]
