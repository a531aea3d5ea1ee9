"""A person at the fund approves a question before it is answered.

A question that waits is refused and kept in a file; the person approves it by its digest, and the
insurer asks again with the same consent, which is not used by waiting.
"""

from __future__ import annotations

from pathlib import Path

from federated.link.consent import ConsentToken
from lab.errors import ConfigurationError, PolicyError
from lab.files import canonical, read_json, write_whole
from lab.records import parse
from lab.text import printable

REQUESTS, APPROVED = "requests", "approved"


def approved_by(folder: Path, consent: ConsentToken) -> str:
    """Who approved a question. Raises PolicyError, and keeps the question, where nobody did.

    folder: of the fund's link
    """
    place = folder / APPROVED / consent.digest
    if place.exists():
        return str(read_json(place)["by"])
    (folder / REQUESTS).mkdir(mode=0o700, exist_ok=True)
    content = canonical(consent.model_dump(mode="json"))
    write_whole(folder / REQUESTS / f"{consent.digest}.json", content, 0o600)
    raise PolicyError(
        f"question {consent.digest[:12]} waits for a person at {consent.fund} to approve it; ask again "
        "later with the same consent",
        "approval",
    )


def waiting_questions(folder: Path) -> dict[str, ConsentToken]:
    """Questions that wait for a person's approval, by digest. Raises ConfigurationError."""
    questions = {}
    for path in sorted((folder / REQUESTS).glob("*.json")):
        if not (folder / APPROVED / path.stem).exists():
            consent = parse(ConsentToken, read_json(path), where=str(path))
            if consent.digest != path.stem:
                raise ConfigurationError(
                    f"{path}: holds another question than its name says; remove it"
                )
            questions[path.stem] = consent
    return questions


def approve_question(folder: Path, digest: str, who: str) -> str:
    """A person's approval; the fund writes it in its log when it answers. digest: as it begins."""
    matches = [full for full in waiting_questions(folder) if full.startswith(digest)]
    if len(matches) != 1 or len(digest) < 8:
        raise ConfigurationError(
            f"{digest}: {len(matches)} waiting questions have a digest that begins so; give at least "
            "its first 8 digits; lab node requests lists them"
        )
    (folder / APPROVED).mkdir(mode=0o700, exist_ok=True)
    write_whole(folder / APPROVED / matches[0], canonical({"by": who}), 0o600)
    return matches[0]


def question_lines(consent: ConsentToken, look_up: str) -> list[str]:
    """A question as a person reads it before approving."""
    who = printable(consent.person)
    person = who if look_up == "open" else f"not told; handle {who[:12]}"
    return [
        f"{consent.digest[:12]}  condition known before",
        f"  asked by   {consent.insurer}, to {consent.purpose}",
        f"  question   {consent.group} on record before {consent.before}?",
        f"  person     {person}",
        f"  consent    signed at {consent.signer}, good until {consent.expires}",
        f"  digest     {consent.digest}",
    ]
