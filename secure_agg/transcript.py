"""What a key holder is shown before it opens anything: everything, signed.

A holder that decrypts what it is handed decrypts a single party's batch for whoever asks. So it is
handed no product. It gets the *terms* that all parties answered under (the query, the question
itself, who takes part, the roster, the key, the layout) and from each party its batch with a
signature over batch and terms; it checks all of it and multiplies the batches itself.

    party        contribute(identity, terms, batch)                 -> Contribution
    coordinator  received(roster, terms, public, contribution)      blames the party
    holder       examine(roster, transcript, public, past_queries)  blames the coordinator
    authority    blame_layout(private, transcript)                  blames the party

An honest coordinator passes on nothing that `received` refused. So what a holder finds wrong is the
coordinator's doing, and the error says so. What a ciphertext holds the coordinator can't see: where
a total turns out to be none of this layout, the holder of the whole key says whose doing it is.

What this does not stop: a party that copies or inverts another's ciphertext with the coordinator's
help, and parties that leave so few others that the total speaks of one. See `secure_agg.shares`. Who
is named by `blame_layout` tells one bit of what such a copy holds, and must lose its place for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from secure_agg import paillier, wire
from secure_agg.errors import (
    FaultyCoordinator,
    FaultyParty,
    InvalidIdentity,
    InvalidLayout,
    MalformedMessage,
    SecureAggError,
    TooFewParties,
)
from secure_agg.identity import Identity, Roster, check_name
from secure_agg.keys import PrivateKey, PublicKey
from secure_agg.packing import Layout
from secure_agg.paillier import Batch

TERMS, CONTRIBUTION, TRANSCRIPT = b"SAGGTE01", b"SAGGCO01", b"SAGGTR01"
TERMS_OF_SHARES = b"SAGGTS01"
PURPOSE = b"contribution"
#: With two contributors, the total minus one's own is the other's secret.
FEWEST = 3
LONGEST_QUERY = 200


@dataclass(frozen=True)
class Terms:
    """What every contributor of one sum signs beside its batch.

    query: identifies this sum; a holder answers it once
    question: 32 bytes, a digest of what was asked, as each party computes it from what it was asked
    roster: 32 bytes, the digest of the roster
    parties: names of who contributes, each once, at least three
    key: fingerprint of the Paillier key
    layout: how the batches are packed, for exactly so many parties
    of_shares: whether a batch alone is uniform whatever its party knows, so that two hide each other

    Raises InvalidIdentity, TooFewParties and InvalidLayout.
    """

    query: str
    question: bytes
    roster: bytes
    parties: tuple[str, ...]
    key: str
    layout: Layout
    of_shares: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parties", tuple(self.parties))
        if not self.query.isprintable() or not 1 <= len(self.query.encode()) <= LONGEST_QUERY:
            raise InvalidIdentity(
                f"a query's identifier must be printable and 1 to {LONGEST_QUERY} bytes long"
            )
        if len(self.question) != 32 or len(self.roster) != 32:
            raise InvalidIdentity("question and roster must be digests of 32 bytes")
        for name in self.parties:
            check_name(name)
        if len(set(self.parties)) != len(self.parties):
            raise InvalidIdentity(f"query {self.query}: a party is named twice")
        fewest = 2 if self.of_shares else FEWEST
        if len(self.parties) < fewest:
            raise TooFewParties(
                f"query {self.query}: a sum of {len(self.parties)} parties hides nobody; at least "
                f"{fewest} are needed"
            )
        if self.layout.parties != len(self.parties):
            raise InvalidLayout(
                f"query {self.query}: the layout is for {self.layout.parties} parties, "
                f"{len(self.parties)} take part"
            )

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of these terms."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        layout = json.dumps(self.layout.to_dict(), sort_keys=True, separators=(",", ":"))
        names = [name.encode() for name in self.parties]
        kind = TERMS_OF_SHARES if self.of_shares else TERMS
        head = [self.query.encode(), self.question, self.roster, self.key.encode()]
        return wire.join(kind, [*head, layout.encode(), *names])

    @classmethod
    def from_bytes(cls, data: bytes) -> Terms:
        """The terms that `to_bytes` wrote. Raises MalformedMessage and what the class raises."""
        of_shares = data[:6] == TERMS_OF_SHARES[:6]
        kind = TERMS_OF_SHARES if of_shares else TERMS
        query, question, roster, key, layout, *parties = wire.split(kind, data, 5, wire.MOST_PARTS)
        try:
            form = json.loads(wire.text(layout))
        except (ValueError, RecursionError):
            raise MalformedMessage("terms: the layout is not JSON") from None
        names = tuple(map(wire.text, parties))
        agreed = Layout.from_dict(form)
        terms = cls(wire.text(query), question, roster, names, wire.text(key), agreed, of_shares)
        if terms.to_bytes() != data:
            raise MalformedMessage("terms: not in canonical encoding")
        return terms


@dataclass(frozen=True)
class Contribution:
    """One party's batch, as bytes, and its signature over batch and terms."""

    party: str
    batch: bytes
    signature: bytes

    def __post_init__(self) -> None:
        check_name(self.party)

    def to_bytes(self) -> bytes:
        return wire.join(CONTRIBUTION, [self.party.encode(), self.batch, self.signature])

    @classmethod
    def from_bytes(cls, data: bytes) -> Contribution:
        """The contribution that `to_bytes` wrote. Raises MalformedMessage and InvalidIdentity."""
        party, batch, signature = wire.split(CONTRIBUTION, data, 3)
        return cls(wire.text(party), batch, signature)


@dataclass(frozen=True)
class Transcript:
    """All of one sum that a holder is shown: its terms, and every contribution to it."""

    terms: Terms
    contributions: tuple[Contribution, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "contributions", tuple(self.contributions))

    def to_bytes(self) -> bytes:
        parts = [self.terms.to_bytes(), *(c.to_bytes() for c in self.contributions)]
        return wire.join(TRANSCRIPT, parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Transcript:
        """The transcript that `to_bytes` wrote. Raises MalformedMessage and what Terms raises."""
        terms, *contributions = wire.split(TRANSCRIPT, data, 1, wire.MOST_PARTS)
        return cls(Terms.from_bytes(terms), tuple(map(Contribution.from_bytes, contributions)))


def contribute(identity: Identity, terms: Terms, batch: bytes) -> Contribution:
    """The party's step: its batch, signed for these terms alone."""
    name = identity.card.name
    if name not in terms.parties:
        raise FaultyCoordinator(f"query {terms.query} does not name {name} among its parties")
    return Contribution(name, batch, identity.sign(PURPOSE, _statement(terms, name, batch)))


def received(roster: Roster, terms: Terms, public: PublicKey, contribution: Contribution) -> Batch:
    """The coordinator's step: the batch of a contribution, or an error that blames its party.

    Raises FaultyParty.
    """
    party = contribution.party
    if party not in terms.parties or party not in roster:
        raise FaultyParty(f"{party}: is not a party to query {terms.query}", party)
    statement = _statement(terms, party, contribution.batch)
    if not roster[party].signed(PURPOSE, statement, contribution.signature):
        raise FaultyParty(
            f"{party}: its signature does not cover this batch and these terms", party
        )
    try:
        batch = Batch.from_bytes(contribution.batch, public, terms.layout)
    except SecureAggError as error:
        raise FaultyParty(f"{party}: {error}", party) from None
    if batch.contributions != 1:
        raise FaultyParty(f"{party}: its batch says that it holds several contributions", party)
    return batch


def examine(
    roster: Roster, transcript: Transcript, public: PublicKey, past_queries: Collection[str]
) -> Batch:
    """The holder's step: the product of all contributions, if this sum may be opened at all.

    past_queries: which this holder gave a part for before, in this process or any earlier one

    Raises FaultyCoordinator, with what is wrong.
    """
    terms = transcript.terms
    if terms.query in past_queries:
        raise FaultyCoordinator(f"query {terms.query} was answered before and is replayed")
    if terms.roster != roster.digest:
        raise FaultyCoordinator(
            f"query {terms.query} is under a different roster from this holder's"
        )
    if terms.key != public.fingerprint:
        raise FaultyCoordinator(f"query {terms.query} is under a different key from this holder's")
    strangers = [name for name in terms.parties if name not in roster]
    if strangers:
        raise FaultyCoordinator(
            f"query {terms.query} counts {strangers[0]}, who is not on the roster"
        )
    senders = [contribution.party for contribution in transcript.contributions]
    if len(set(senders)) != len(senders):
        twice = next(name for name in senders if senders.count(name) > 1)
        raise FaultyCoordinator(f"query {terms.query} shows {twice}'s contribution twice")
    if set(senders) != set(terms.parties):
        absent = [name for name in terms.parties if name not in senders]
        words = (
            f"leaves out {absent[0]}"
            if absent
            else "shows a contribution from somebody who is not a party to it"
        )
        raise FaultyCoordinator(f"query {terms.query} {words}")
    try:
        batches = [received(roster, terms, public, c) for c in transcript.contributions]
    except FaultyParty as error:
        raise FaultyCoordinator(
            f"query {terms.query} passes on what it should have refused: {error}"
        ) from None
    return paillier.add(public, batches)


def blame_layout(private: PrivateKey, transcript: Transcript) -> FaultyParty:
    """The authority's word for who made an examined total inconsistent. Raises nothing of its own.

    It looks at each contribution by itself and tells whether it keeps the layout, nothing else.
    Contributions that keep it add up to a total that does, so somebody is named.
    """
    terms = transcript.terms
    names = [
        contribution.party
        for contribution in transcript.contributions
        if not paillier.keeps_layout(
            private, Batch.from_bytes(contribution.batch, private.public, terms.layout)
        )
    ]
    return FaultyParty(
        f"{', '.join(names)}: encrypted numbers that are not of the form all agreed on; "
        "no total was opened",
        *names,
    )


def _statement(terms: Terms, party: str, batch: bytes) -> bytes:
    return wire.join(CONTRIBUTION, [terms.digest, party.encode(), hashlib.sha256(batch).digest()])
