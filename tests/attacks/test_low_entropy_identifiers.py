"""The other side tries out every identifier there is, and picks its set after it saw the first one.

An identifier has few values: a birth date and a serial number, a policy number. Whoever is sent a
plain hash of one hashes them all and looks. Multiplied by the sender's secret there is nothing to
compare with; what a side still can do is put guesses into its own set, which the cap bounds and a
commitment fixes before anything is seen.
"""

from __future__ import annotations

import hashlib
import secrets

import pytest

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


def test_without_a_commitment_a_set_is_chosen_after_the_others_was_seen() -> None:
    """The unprotected twin: nobody holds a side to the set it named, and it copies the other's.

    Its copies are multiplied by the insurer's secret once more, and meet nothing the fund has;
    but under `size` the insurer would count whatever the copy was made to hold.
    """
    insurer, _, forth, _ = blinded("size")
    held_to_nothing = {**insurer.commitments, FUND: _commitment_of(insurer, forth)}
    trusting = AlignmentSide(**{**insurer.__dict__, "commitments": held_to_nothing})
    after, _ = advance(trusting, forth)
    assert len(after.theirs) == CAP


def test_a_set_that_is_chosen_after_the_others_was_seen_is_refused_and_named() -> None:
    insurer, _, forth, _ = blinded("size")
    with pytest.raises(FaultyParty, match="fund: changed its set after") as refusal:
        advance(insurer, forth)
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


def _commitment_of(side: AlignmentSide, message: Message) -> bytes:
    """What the other side would have had to commit to."""
    from secure_agg.intersection import _commitment
    from secure_agg.ristretto import encoded

    return _commitment(side.terms, FUND, encoded(*message.values()))
