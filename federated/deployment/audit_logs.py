"""The members' audit logs: each written with its member's key, all verified against each other.

One log proves what its party cannot deny. Several prove more: each party notes the checkpoints that
others gave it, and a log that was cut back or rewritten contradicts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from federated.link.party_log import OF_LINK
from federated.study.outcome import Outcome
from lab.audit import log_format as audit
from lab.audit.log_format import Checkpoint, Entry, Verdict
from lab.audit.log_writer import EVERY, Log
from lab.errors import LogError
from secure_agg.identity import Card, Identity, signed_by

PURPOSE = b"log"
LOG_NAME = "log.jsonl"


def check(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether this is a signature for a log, by this key."""
    return signed_by(key, PURPOSE, message, signature)


def open_log(path: Path, identity: Identity, *, charter: str = "", every: int = EVERY) -> Log:
    """A member's log, to be written by this process alone.

    charter: digest of the charter in force; every: lines between two checkpoints at most. Raises
    :class:`LogError` for a log that does not hold together, or that another process writes.
    """
    return Log(
        path,
        identity.card.name,
        identity.card.verifying,
        lambda message: identity.sign(PURPOSE, message),
        check,
        charter=charter,
        version=version("insurance-privacy-lab"),
        every=every,
    )


def log_outcome(log: Log, run: str, plan: str, outcome: Outcome) -> None:
    """The line that vouches for the models and the scores that a plan came to. plan: its digest."""
    scores = hashlib.sha256(outcome.scorecard).hexdigest()
    model = list(outcome.models.values())[-1].hash
    log.append("outcome", run=run, plan=plan, scores=scores, model=model)


def vouched(checkpoint: Checkpoint, card: Card) -> None:
    """Raises :class:`LogError` unless a checkpoint that came from a peer is the peer's."""
    if checkpoint.party != card.name or not check(
        card.verifying, checkpoint.message(), bytes.fromhex(checkpoint.signature)
    ):
        raise LogError(f"{card.name}: gave a checkpoint of its log that it did not sign")


@dataclass(frozen=True)
class CheckedLog:
    """A log or an extract and what was found of it.

    key_known: whether the party's key came from elsewhere; beside: whether a head file is there;
    witnesses: how many checkpoints of it others noted
    """

    path: Path
    verdict: Verdict
    key_known: bool
    beside: bool
    witnesses: int


def logs_in(folder: Path) -> list[Path]:
    """The logs below a folder, in order of their paths."""
    return sorted(folder.rglob(LOG_NAME))


def verify_together(
    paths: Iterable[Path], keys: Mapping[str, bytes], key: bytes = b""
) -> list[CheckedLog]:
    """Verify logs, each with its head file and with what the others witnessed of it.

    keys: public keys by party, as a charter has them; key: that of whoever is not among them. A
    witnessed checkpoint that the party did not sign accuses nobody.
    Raises :class:`~lab.errors.ConfigurationError` for a file that can't be read.
    """
    paths = list(paths)
    checkpoints: dict[str, list[Checkpoint]] = {}
    for path in paths:
        for entry in audit.entries(audit.read_lines(path)):
            if entry.kind == "witness":
                with suppress(LogError):  # whether the line is sound is verified below
                    checkpoint = Checkpoint.of(entry.told)
                    checkpoints.setdefault(checkpoint.party, []).append(checkpoint)
    return [_verify(path, keys, key, checkpoints) for path in paths]


def _verify(
    path: Path, keys: Mapping[str, bytes], key: bytes, checkpoints: Mapping[str, list[Checkpoint]]
) -> CheckedLog:
    first = next(audit.entries(audit.read_lines(path)), None)
    party = str(first.told.get("party", "")) if first else ""
    key = keys.get(party.removesuffix(OF_LINK), key)  # a member's log of its link is another
    public_key = key or _own_word(first)
    witnesses = [
        c
        for c in checkpoints.get(party, [])
        if check(public_key, c.message(), bytes.fromhex(c.signature))
    ]
    try:
        beside = audit.known_head(path)
    except LogError as error:
        return CheckedLog(path, Verdict(party, fault=str(error)), bool(key), True, len(witnesses))
    verdict = audit.verify(
        audit.read_lines(path), check, key=key, checkpoints=[*beside, *witnesses]
    )
    if keys and not key and not verdict.fault:
        verdict.fault = f"{party} is not a member of the charter"
    if not verdict.lines and not verdict.fault:
        verdict.fault = "holds no line"
    return CheckedLog(path, verdict, bool(key), bool(beside), len(witnesses))


def _own_word(first: Entry | None) -> bytes:
    """The key that a log's first line names."""
    try:
        return bytes.fromhex(first.told["key"]) if first else b""
    except (KeyError, TypeError, ValueError):
        return b""
