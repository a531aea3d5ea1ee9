"""The other side tries out every identifier there is, or has another set answered than it named.

An identifier has few values: a birth date and a serial number, a policy number. Whoever is sent a
plain hash of one hashes them all and looks. Multiplied by the sender's secret there is nothing to
compare with. What a side still can do is put guesses into its own set: the cap bounds it, and the
commitment that is logged fixes it before anything is seen.
"""

from __future__ import annotations

import hashlib
import secrets

import pytest

from secure_agg import intersection
from secure_agg.errors import FaultyParty
from secure_agg.intersection import AlignmentSide, AlignmentTerms, Message, advance, start
from secure_agg.ristretto import SIZE, hashed, multiplied

INSURER, FUND = "insurer", "fund"
EVERYBODY = [b"%04d" % number for number in range(1000)]
MEMBERS = EVERYBODY[100:110]
CAP = 12


def blinded(learns: str = "hidden") -> tuple[AlignmentSide, AlignmentSide, Message, Message]:
    """Both sides, and what each has sent when the sets lie open."""
    terms = AlignmentTerms((INSURER, FUND), learns, CAP, bytes(32))
    insurer, forth = start(terms, INSURER, EVERYBODY[:5], secrets.token_bytes(32))
    fund, back = start(terms, FUND, MEMBERS, secrets.token_bytes(32))
    (insurer, forth), (fund, back) = advance(insurer, back), advance(fund, forth)
    return insurer, fund, forth, back


def rows(message: Message) -> set[bytes]:
    data = b"".join(message.values())
    return {data[at : at + SIZE] for at in range(0, len(data), SIZE)}


def test_plain_hashes_of_identifiers_are_enumerated() -> None:
    """The unprotected twin: the fund sends hashes, under whatever salt both know."""
    salt = secrets.token_bytes(32)
    sent = {hashlib.sha256(salt + text).digest() for text in MEMBERS}
    seen = [text for text in EVERYBODY if hashlib.sha256(salt + text).digest() in sent]
    assert seen == MEMBERS


def test_blinded_identifiers_meet_no_guess() -> None:
    insurer, _, _, back = blinded()
    sent = rows(back)
    assert len(sent) == CAP
    guesses = hashed(EVERYBODY)
    assert not sent & {row.tobytes() for row in guesses}
    own_key = insurer.stream(b"a secret of the insurer's own", SIZE - 1) + b"\0"
    assert not sent & {row.tobytes() for row in multiplied(own_key, guesses)}


def swapped() -> list[bool]:
    """The fund commits to its members, then sends guesses: which of these it learns to be insured."""
    terms = AlignmentTerms((INSURER, FUND), FUND, CAP, bytes(32))
    seed = secrets.token_bytes(32)
    insurer, forth = start(terms, INSURER, EVERYBODY[:5], secrets.token_bytes(32))
    _, named = start(terms, FUND, MEMBERS, seed)
    fund, _ = start(terms, FUND, EVERYBODY[:CAP], seed)
    (insurer, forth), (fund, back) = advance(insurer, named), advance(fund, forth)
    while fund.result is None:
        (insurer, forth), (fund, back) = advance(insurer, back), advance(fund, forth)
    assert fund.result.common is not None
    return fund.result.common.tolist()


def test_unheld_to_its_commitment_a_side_has_another_set_answered_than_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The unprotected twin: a commitment that opens to any set."""
    monkeypatch.setattr(intersection, "_commitment", lambda terms, name, elements: bytes(32))
    assert swapped() == [True] * 5 + [False] * 7


def test_a_side_that_changes_its_set_after_the_commitment_is_named() -> None:
    with pytest.raises(FaultyParty, match="fund: changed its set after") as refusal:
        swapped()
    assert refusal.value.culprits == (FUND,)


def test_a_set_holds_no_more_guesses_than_the_cap() -> None:
    """The unprotected twin is a cap as large as the population: then all of it is answered."""
    for cap, guesses in ((CAP, EVERYBODY[:CAP]), (len(EVERYBODY), EVERYBODY)):
        terms = AlignmentTerms((INSURER, FUND), INSURER, cap, bytes(32))
        insurer, forth = start(terms, INSURER, guesses, secrets.token_bytes(32))
        fund, back = start(terms, FUND, MEMBERS, secrets.token_bytes(32))
        while insurer.result is None:
            (insurer, forth), (fund, back) = advance(insurer, back), advance(fund, forth)
        assert insurer.result.common is not None
        assert insurer.result.common.sum() == len(set(guesses) & set(MEMBERS))
