"""The side that asks for a score of one person."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import date

import numpy as np
from pydantic import ConfigDict, Field

from federated.link.consent import ConsentToken
from federated.queries.person import bands, leaves
from federated.queries.person.leaves import SharedTrees
from federated.queries.person.sides import STATISTIC, ScoredSide, ScoreReceipt, Step, about
from lab.errors import PeerError, PolicyError
from lab.records import Strict


class ScoreQuestion(Strict):
    """A question that was sent, as the asker keeps it until it is answered. part: its own, of the score, or
    of trees before the leaves are read; choices: in each group of leaves; blinding: 32 bytes; all secret."""

    model_config = ConfigDict(ser_json_bytes="hex", val_json_bytes="hex")
    consent: ConsentToken
    step: Step
    part: float = Field(repr=False)
    choices: tuple[int, ...] = Field(default=(), repr=False)
    blinding: bytes = Field(repr=False)
    sent: bytes


def question(
    side: ScoredSide,
    consent: ConsentToken,
    randomness: Callable[[int], bytes] = secrets.token_bytes,
) -> ScoreQuestion:
    """The asker's first step. Raises :class:`PolicyError` for a person whom it does not have, or whose
    part is beyond the grid."""
    side.terms.check_asker(consent.purpose, side.role)
    if consent.group != side.model:
        raise PolicyError("the consent is for scores of another model than this one", "consent")
    person = side.key(consent.person)
    if isinstance(side.holding, SharedTrees):
        own, choices = side.holding.choices(person)
        blinding = randomness(32)
        sent = leaves.asked(choices, bytes.fromhex(consent.digest), blinding)
        first = ScoreQuestion(
            consent=consent,
            step="leaves",
            part=leaves.amount(own),
            choices=tuple(choices),
            blinding=blinding,
            sent=sent,
        )
    else:
        first = _about_band(side, consent, side.holding.persons[person], randomness(32))
    side.log.append("request", **about(side, consent, side.name))
    return first


def go_on(
    side: ScoredSide,
    asked: ScoreQuestion,
    reply: bytes,
    randomness: Callable[[int], bytes] = secrets.token_bytes,
) -> ScoreQuestion:
    """The asker's second step, of trees: the question about the band. Raises :class:`PeerError` for a reply
    that is none."""
    assert isinstance(side.holding, SharedTrees)
    consent = asked.consent
    share = leaves.read(
        side.holding.asker_groups,
        asked.choices,
        reply,
        bytes.fromhex(consent.digest),
        asked.blinding,
        consent.fund,
    )
    part = leaves.wrapped(asked.part + leaves.amount(share))
    return _about_band(side, consent, part, randomness(32))


def _about_band(
    side: ScoredSide, consent: ConsentToken, part: float, blinding: bytes
) -> ScoreQuestion:
    place = _place(side, part)
    sent = bands.asked(place, bytes.fromhex(consent.digest), blinding)
    return ScoreQuestion(consent=consent, step="band", part=part, blinding=blinding, sent=sent)


def _place(side: ScoredSide, part: float) -> int:
    try:
        if isinstance(side.holding, SharedTrees):
            part = leaves.wrapped(round(part / bands.STEP) * bands.STEP)
        return bands.place_of(part)
    except (ValueError, OverflowError):
        raise PolicyError(
            f"{side.name}: its part of this person's score is beyond the grid of bands", "person"
        ) from None


def read(
    side: ScoredSide, asked: ScoreQuestion, reply: bytes, today: date
) -> tuple[str, ScoreReceipt]:
    """The asker's last step: the band in words, or the exact score, logged; and its receipt.

    Raises :class:`PeerError` for a reply that is none."""
    consent, other = asked.consent, asked.consent.fund
    if side.terms.exact:
        if len(reply) != 8:
            raise PeerError(f"{other}: sent what is no part of a score", other)
        total = asked.part + float(np.frombuffer(reply, "<f8")[0])
        total = leaves.wrapped(total) if isinstance(side.holding, SharedTrees) else total
        with np.errstate(over="ignore", invalid="ignore"):
            score = float(side.law.mean(np.array([total]))[0])
        if not np.isfinite(score):
            raise PeerError(f"{other}: sent what is no part of a score", other)
        said = f"{score:.6g}"
    else:
        session, place = bytes.fromhex(consent.digest), _place(side, asked.part)
        band = bands.read(reply, place, session, asked.blinding, other)
        if band > len(side.terms.bands):
            raise PeerError(f"{other}: sent what is no table of bands", other)
        said = side.terms.band(band)
    told = {"by": side.name, "answer": said, "consent": consent.digest}
    side.log.append("answer", statistic=STATISTIC, **told)
    return said, side.receipt(consent, today, said)
