"""Sums hidden by pairwise masks: fast for long vectors, and nobody holds a key afterwards.

Every two parties agree on a secret stream; one adds it to its vector, the other subtracts it, so
the streams vanish from the sum of all. Each party also adds a stream of its own. Secrets are shared
among the parties, so that the streams of those who drop out half-way, and the own streams of those
who do not, can be removed from the sum, and never both for one party. Bonawitz et al., "Practical
secure aggregation for privacy-preserving machine learning", CCS 2017, figure 4, with signed keys
and the consistency check, against a coordinator that may do as it likes:

    0  party        advertise                       two fresh X25519 keys, signed
    1  party        share                           Shamir shares of its secrets, sealed to each other
    2  party        mask                            its vector, masked
    3  party        confirm                         its signature on who sent a masked vector
    4  party        reveal                          one share of a secret of each party
    -  coordinator  total                           the sum
    -  anybody      Opening.total                   the same sum, from what parties signed

A party does each step once in a sum, for which it must keep its state where no crash, copy or
second process takes it back; all its secrets are fresh for each sum, and everything is
signed or keyed for one query, one question and one roster. `run` below plays all roles.

Threat model: parties are honest but curious; the coordinator may do as it likes. With the threshold
of more than half of the parties, a coordinator that works with no party (or, for an even number of
them, one) learns only the sum over the parties it has confirmed, of which there are at least three;
in general it may work with fewer than 2 * threshold - parties of them (Bonawitz, section 6): raise
the threshold to withstand more, and fewer may drop out. Parties that send false shares or a false
masked vector spoil the sum: that is noticed where it breaks a count or a bound, and the liar is
not always named. A sum of three tells two who put their numbers together the third's, and two sums
that differ by who dropped out tell what that party added, if the question is the same.

Numbers are integers modulo a power of two, so sums are exact, and streams have full 256-bit keys:
see `secure_agg.arithmetic.lanes`.

Longer than 400 lines because it is one protocol: its messages and the steps of both roles, in the order
in which they are spoken.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from secure_agg import wire
from secure_agg.arithmetic.lanes import Lanes, added, apply_streams, decoded, encoded, vector_lanes
from secure_agg.errors import (
    Blame,
    FaultyCoordinator,
    FaultyParty,
    InconsistentSum,
    InvalidIdentity,
    MalformedMessage,
    TooFewParties,
)
from secure_agg.identity import Identity, Roster, check_name, degenerate, derived
from secure_agg.packing import Field
from secure_agg.transcript import FEWEST

TERMS, KEYS, DEALT, MASKED, SEAT, REVEALED, OPENING = (
    b"SAGGMT01", b"SAGGMK01", b"SAGGMD01", b"SAGGMV01", b"SAGGMP01", b"SAGGMR01", b"SAGGMO01"
)  # fmt: skip
PRIME = 2**256 + 297  # Shamir shares: the field of the smallest prime above every secret
SHARE_BYTES = 33

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MaskTerms:
    """What one masked sum is about; every key and signature in it is bound to this.

    query: identifies the sum; a party takes part in it once
    question: 32 bytes, a digest of what was asked
    roster: of everybody who may take part
    threshold: this many parties must stay to the end; more than half of the roster

    Raises TooFewParties and InvalidIdentity.
    """

    query: str
    question: bytes
    roster: Roster
    threshold: int

    def __post_init__(self) -> None:
        parties = len(self.roster.cards)
        if parties < FEWEST:
            raise TooFewParties(
                f"a sum of {parties} parties hides nobody; at least {FEWEST} are needed"
            )
        if type(self.threshold) is not int or not parties // 2 < self.threshold <= parties:
            raise TooFewParties(
                f"the threshold must be above half of {parties} parties and at most all of them, "
                f"got {self.threshold}"
            )
        check_name(self.query)
        if len(self.question) != 32:
            raise InvalidIdentity("a question is named by a digest of 32 bytes")

    @property
    def least(self) -> int:
        """The fewest parties a sum may be over."""
        return max(self.threshold, FEWEST)

    @cached_property
    def digest(self) -> bytes:
        return wire.digest(
            TERMS,
            [
                self.query.encode(),
                self.question,
                self.roster.digest,
                self.threshold.to_bytes(4, "big"),
            ],
        )


def majority(parties: int) -> int:
    """The smallest threshold above half."""
    return parties // 2 + 1


@dataclass(frozen=True)
class Keys:
    """Step 0: a party's two public keys of this sum, for sealing and for masks, signed."""

    sealing: bytes
    masking: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        return wire.join(KEYS, [self.sealing, self.masking, self.signature])

    @classmethod
    def from_bytes(cls, data: bytes) -> Keys:
        """Raises MalformedMessage."""
        sealing, masking, signature = wire.split(KEYS, data, 3)
        if (len(sealing), len(masking)) != (32, 32):
            raise MalformedMessage("a party's keys must have 32 bytes each")
        return cls(sealing, masking, signature)


@dataclass(frozen=True)
class Revealed:
    """Step 4: one share of the own secret of each party in the sum, of the masking key of each
    that dropped out."""

    own: Mapping[str, int]
    masking: Mapping[str, int]

    def to_bytes(self) -> bytes:
        shares = [_shares_out(self.own), _shares_out(self.masking)]
        return wire.join(REVEALED, shares)

    @classmethod
    def from_bytes(cls, data: bytes) -> Revealed:
        """Raises MalformedMessage."""
        own, masking = wire.split(REVEALED, data, 2)
        return cls(_shares_in(own), _shares_in(masking))


@dataclass(frozen=True)
class Seat:
    """What a party remembers between the steps of one sum. Secret; never shown.

    seed: 32 random bytes from which its keys, its own secret and its shares follow
    step: number of steps done
    keys: everybody's keys, as this party was shown them
    sealed_shares: of the others' secrets, not opened yet
    members: who is in the sum, as this party confirmed it
    """

    seed: bytes
    step: int = 0
    keys: Mapping[str, Keys] = field(default_factory=dict)
    sealed_shares: Mapping[str, bytes] = field(default_factory=dict)
    members: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Seat(after step {self.step})"

    def to_bytes(self) -> bytes:
        keys = {name: item.to_bytes() for name, item in self.keys.items()}
        tables = [pairs_out(keys), pairs_out(self.sealed_shares)]
        names = wire.join(SEAT, [name.encode() for name in self.members])
        return wire.join(SEAT, [self.seed, bytes([self.step]), *tables, names])

    @classmethod
    def from_bytes(cls, data: bytes) -> Seat:
        """The seat that `to_bytes` wrote. Raises MalformedMessage."""
        seed, step, keys, sealed_shares, names = wire.split(SEAT, data, 5)
        if len(seed) != 32 or len(step) != 1:
            raise MalformedMessage("a seat needs a seed of 32 bytes and a step of one byte")
        members = wire.split(SEAT, names, 0, wire.MOST_PARTS)
        return cls(
            seed,
            step[0],
            {name: Keys.from_bytes(item) for name, item in pairs_in(keys).items()},
            pairs_in(sealed_shares),
            tuple(map(wire.text, members)),
        )


# The steps of a party. Each takes what it remembers and what it was sent, and gives what it
# remembers now and what it sends.


def advertise(identity: Identity, terms: MaskTerms, seed: bytes) -> tuple[Seat, Keys]:
    """Step 0. seed: 32 fresh random bytes, for this sum alone."""
    if identity.card.name not in terms.roster:
        raise FaultyCoordinator(f"query {terms.query} is under a roster without this party")
    sealing, masking = (_public(_private(seed, use)) for use in (b"sealing", b"masking"))
    signature = identity.sign(KEYS, terms.digest + sealing + masking)
    return Seat(seed, 1), Keys(sealing, masking, signature)


def share(
    identity: Identity, terms: MaskTerms, seat: Seat, keys: Mapping[str, Keys]
) -> tuple[Seat, dict[str, bytes]]:
    """Step 1: for each other party, sealed, a share of this party's two secrets.

    keys: what each party advertised, this one among them

    Raises FaultyCoordinator and TooFewParties.
    """
    name = _at(seat, 1, identity, terms)
    _check_keys(terms, name, seat, keys)
    x = {other: at for at, other in enumerate(terms.roster.names, start=1)}
    secret_shares = {
        use: _deal(_secret(seat.seed, use), seat.seed, use, terms.threshold, [x[o] for o in keys])
        for use in (b"own", b"masking")
    }
    sealed_shares = {}
    for at, other in enumerate(keys):
        if other != name:
            parts = [
                secret_shares[use][at].to_bytes(SHARE_BYTES, "big") for use in (b"own", b"masking")
            ]
            box = ChaCha20Poly1305(_sealing_key(terms, seat, keys[other], name, other))
            sealed_shares[other] = box.encrypt(bytes(12), b"".join(parts), _names(name, other))
    return replace(seat, step=2, keys=dict(keys)), sealed_shares


def mask(
    identity: Identity,
    terms: MaskTerms,
    seat: Seat,
    sealed_shares: Mapping[str, bytes],
    fields: Sequence[Field],
    arrays: Sequence[npt.ArrayLike],
) -> tuple[Seat, bytes]:
    """Step 2: this party's vector under its masks.

    sealed_shares: from other parties, each sealed to this one; with those it shares masks
    fields, arrays: the values and their public format, as in `packing`

    Raises FaultyCoordinator, TooFewParties, LayoutMismatch and ValueOutOfBounds.
    """
    name = _at(seat, 2, identity, terms)
    if not set(sealed_shares) <= set(seat.keys) - {name}:
        raise FaultyCoordinator(
            f"query {terms.query} brings shares from somebody who showed no keys"
        )
    _enough(terms, len(sealed_shares) + 1)
    vector = encoded(fields, arrays, len(terms.roster.cards))
    form = _form(terms, fields)
    streams = [(_own_key(form, _secret(seat.seed, b"own")), True)]
    private = X25519PrivateKey.from_private_bytes(_secret(seat.seed, b"masking"))
    for other in sealed_shares:
        key = _pair_key(terms, form, private, seat.keys[other].masking, name, other)
        streams.append((key, name < other))
    apply_streams(vector, streams, fields, len(terms.roster.cards))
    return replace(seat, step=3, sealed_shares=dict(sealed_shares)), vector.astype("<u8").tobytes()


def confirm(
    identity: Identity, terms: MaskTerms, seat: Seat, present: Sequence[str]
) -> tuple[Seat, bytes]:
    """Step 3: this party's signature on who sent a masked vector.

    Raises FaultyCoordinator and TooFewParties.
    """
    name = _at(seat, 3, identity, terms)
    if len(set(present)) != len(present) or not set(present) <= {name, *seat.sealed_shares}:
        raise FaultyCoordinator(
            f"query {terms.query} counts a party twice, or one that shared no secrets"
        )
    if name not in present:
        raise FaultyCoordinator(f"query {terms.query} leaves out {name}, which sent its vector")
    _enough(terms, len(present))
    members = tuple(sorted(present))
    return replace(seat, step=4, members=members), identity.sign(MASKED, _present(terms, members))


def reveal(
    identity: Identity, terms: MaskTerms, seat: Seat, confirmations: Mapping[str, bytes]
) -> tuple[Seat, Revealed]:
    """Step 4: shares that remove what masks are left in the sum.

    confirmations: signatures of step 3, from enough of those that are in the sum; each must be on
        the very parties that this party confirmed

    A party's own secret and its masking key are never both revealed: the first for those in the
    sum, the second for those not in it. Raises FaultyCoordinator, TooFewParties and Blame.
    """
    name = _at(seat, 4, identity, terms)
    statement = _present(terms, seat.members)
    for other, signature in confirmations.items():
        is_member = other in seat.members and other in terms.roster
        if not is_member or not terms.roster[other].signed(MASKED, statement, signature):
            raise FaultyCoordinator(
                f"query {terms.query} shows {other} and {name} different lists of who is present"
            )
    if len(confirmations) < terms.threshold:
        raise TooFewParties(
            f"query {terms.query}: {len(confirmations)} parties confirmed who is in the sum, "
            f"{terms.threshold} are needed"
        )
    own, masking = {}, {}
    x = {other: at for at, other in enumerate(terms.roster.names, start=1)}
    mine = _deal(_secret(seat.seed, b"own"), seat.seed, b"own", terms.threshold, [x[name]])
    own[name] = mine[0]
    for other, ciphertext in seat.sealed_shares.items():
        box = ChaCha20Poly1305(_sealing_key(terms, seat, seat.keys[other], other, name))
        try:
            plain = box.decrypt(bytes(12), ciphertext, _names(other, name))
        except InvalidTag:
            plain = b""
        if len(plain) != 2 * SHARE_BYTES:
            raise Blame(
                f"{other} or the coordinator: {other}'s shares for {name} can't be opened",
                other,
                "coordinator",
            )
        if other in seat.members:
            own[other] = int.from_bytes(plain[:SHARE_BYTES], "big")
        else:
            masking[other] = int.from_bytes(plain[SHARE_BYTES:], "big")
    return replace(seat, step=5, seed=bytes(32), sealed_shares={}, keys={}), Revealed(own, masking)


# The steps of the coordinator.


def checked_keys(terms: MaskTerms, name: str, keys: Keys) -> Keys:
    """The keys a party advertised, if it signed them for this sum. Raises FaultyParty."""
    statement = terms.digest + keys.sealing + keys.masking
    if name not in terms.roster:
        raise FaultyParty(f"{name}: is not on the roster of query {terms.query}", name)
    if keys.sealing == keys.masking or degenerate(keys.sealing) or degenerate(keys.masking):
        raise FaultyParty(f"{name}: shows a degenerate key for query {terms.query}", name)
    if not terms.roster[name].signed(KEYS, statement, keys.signature):
        raise FaultyParty(
            f"{name}: its signature does not cover these keys for query {terms.query}", name
        )
    return keys


def checked_confirmation(
    terms: MaskTerms, name: str, present: Sequence[str], signature: bytes
) -> bytes:
    """A confirmation, if the party signed these parties for this sum. Raises FaultyParty."""
    statement = _present(terms, tuple(sorted(present)))
    if name not in present or not terms.roster[name].signed(MASKED, statement, signature):
        raise FaultyParty(
            f"{name}: signed a different list of parties from the one it was shown", name
        )
    return signature


def checked_masked(terms: MaskTerms, name: str, fields: Sequence[Field], data: bytes) -> Lanes:
    """A masked vector as it travels. Raises FaultyParty."""
    size = vector_lanes(fields, len(terms.roster.cards))
    if len(data) != 8 * size:
        raise FaultyParty(f"{name}: its masked vector does not have the agreed size", name)
    return np.frombuffer(data, dtype="<u8")


def total(
    terms: MaskTerms,
    keys: Mapping[str, Keys],
    dealers: Sequence[str],
    masked: Mapping[str, Lanes],
    revealed: Mapping[str, Revealed],
    fields: Sequence[Field],
) -> list[Vector]:
    """The coordinator's last step: the sums, one float64 array for each field, rounded once.

    dealers: who shared secrets in step 1; masked: vectors of step 2; revealed: of step 4

    Raises TooFewParties, FaultyParty and InconsistentSum.
    """
    names, parties = terms.roster.names, len(terms.roster.cards)
    for stranger in {*masked, *revealed} - set(names):
        raise FaultyParty(f"{stranger}: is not on the roster of query {terms.query}", stranger)
    if len(masked) < terms.least or len(revealed) < terms.threshold:
        raise TooFewParties(
            f"query {terms.query}: {len(masked)} parties sent their vector and {len(revealed)} "
            f"stayed to the end; {terms.least} and {terms.threshold} are needed"
        )
    x = {name: at for at, name in enumerate(names, start=1)}
    streams, form = [], _form(terms, fields)
    for name in masked:
        secret = _joined(terms, x, {h: r.own[name] for h, r in revealed.items() if name in r.own})
        streams.append((_own_key(form, secret), False))
    for absent in [name for name in dealers if name not in masked]:
        shares = {h: r.masking[absent] for h, r in revealed.items() if absent in r.masking}
        secret = _joined(terms, x, shares)
        private = X25519PrivateKey.from_private_bytes(secret)
        if _public(private) != keys[absent].masking:
            raise InconsistentSum(
                f"query {terms.query}: the shares of {absent}'s secret do not fit its key; "
                "one of the parties that stayed gave a false share"
            )
        for name in masked:
            key = _pair_key(terms, form, private, keys[name].masking, absent, name)
            streams.append((key, absent < name))
    vector = added(list(masked.values()), fields, parties)
    apply_streams(vector, streams, fields, parties)
    return decoded(fields, vector, len(masked), parties)


@dataclass(frozen=True)
class Signed:
    """What a party sent at a step of a sum, and its signature over that (`signed`)."""

    data: bytes
    signature: bytes


def signed(identity: Identity, terms: MaskTerms, step: bytes, data: bytes) -> Signed:
    """What a party sends, so that others than the coordinator can tell that it did.

    step: :data:`MASKED` for its vector, :data:`REVEALED` for the shares that it reveals.
    """
    return Signed(data, identity.sign(OPENING, _sent(terms, step, data)))


@dataclass(frozen=True)
class Opening:
    """All that a masked sum is opened from, signed by the parties it is of: whoever holds it adds
    up for itself, and needs nobody's word for the sum.

    keys: of step 0, as bytes; dealers: who shared secrets in step 1; vectors: of step 2; revealed:
    of step 4
    """

    keys: Mapping[str, bytes]
    dealers: tuple[str, ...]
    vectors: Mapping[str, Signed]
    revealed: Mapping[str, Signed]

    def to_bytes(self) -> bytes:
        dealers = wire.join(OPENING, [name.encode() for name in self.dealers])
        return wire.join(
            OPENING,
            [pairs_out(self.keys), dealers, *map(_signed_out, (self.vectors, self.revealed))],
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Opening:
        """The opening that `to_bytes` wrote. Raises MalformedMessage."""
        keys, dealers, vectors, revealed = wire.split(OPENING, data, 4)
        names = wire.split(OPENING, dealers, 0, wire.MOST_PARTS)
        return cls(
            pairs_in(keys), tuple(map(wire.text, names)), _signed_in(vectors), _signed_in(revealed)
        )

    def total(self, terms: MaskTerms, fields: Sequence[Field]) -> list[Vector]:
        """The sums, as :func:`total`.

        Raises FaultyParty and FaultyCoordinator for what is not signed or does not belong
        together, and what :func:`total` raises.
        """
        keys = {
            name: checked_keys(terms, name, Keys.from_bytes(data))
            for name, data in self.keys.items()
        }
        if not set(self.vectors) <= set(self.dealers) <= set(keys):
            raise FaultyCoordinator(f"query {terms.query} counts a party without keys or shares")
        vectors = {
            name: checked_masked(terms, name, fields, _checked(terms, name, MASKED, message))
            for name, message in self.vectors.items()
        }
        revealed = {
            name: Revealed.from_bytes(_checked(terms, name, REVEALED, message))
            for name, message in self.revealed.items()
        }
        if any(set(shares.own) != set(vectors) for shares in revealed.values()):
            raise FaultyCoordinator(
                f"query {terms.query} adds up parties other than those confirmed"
            )
        return total(terms, keys, self.dealers, vectors, revealed, fields)


def _sent(terms: MaskTerms, step: bytes, data: bytes) -> bytes:
    return wire.digest(step, [terms.digest, data])


def _checked(terms: MaskTerms, name: str, step: bytes, message: Signed) -> bytes:
    """What a party sent, if it did. Raises FaultyParty."""
    statement = _sent(terms, step, message.data)
    if name not in terms.roster or not terms.roster[name].signed(
        OPENING, statement, message.signature
    ):
        raise FaultyParty(f"{name}: did not sign what it is said to have sent", name)
    return message.data


def _signed_out(messages: Mapping[str, Signed]) -> bytes:
    return pairs_out({n: wire.join(OPENING, [s.data, s.signature]) for n, s in messages.items()})


def _signed_in(data: bytes) -> dict[str, Signed]:
    return {name: Signed(*wire.split(OPENING, item, 2)) for name, item in pairs_in(data).items()}


def run(
    identities: Mapping[str, Identity],
    terms: MaskTerms,
    fields: Sequence[Field],
    arrays: Mapping[str, Sequence[npt.ArrayLike]],
    gone: Callable[[int, str], bool] = lambda step, name: False,
) -> list[Vector]:
    """All roles in order, as a reference: the sum over the parties that send their vector.

    gone: whether a party is silent from this step (0 to 4) on
    """
    here = list(terms.roster.names)
    here = [name for name in here if not gone(0, name)]
    seats, keys = {}, {}
    for name in here:  # 0: everybody shows fresh keys, the coordinator checks and passes on
        seats[name], party_keys = advertise(identities[name], terms, secrets.token_bytes(32))
        keys[name] = checked_keys(terms, name, party_keys)
    here = [name for name in here if not gone(1, name)]
    sealed = {}
    for name in here:  # 1: everybody seals shares of its secrets to everybody else
        seats[name], sealed[name] = share(identities[name], terms, seats[name], keys)
    dealers = here
    here = [name for name in here if not gone(2, name)]
    masked = {}
    for name in here:  # 2: everybody masks its vector against all who sealed shares to it
        sealed_shares = {other: sealed[other][name] for other in dealers if other != name}
        seats[name], data = mask(
            identities[name], terms, seats[name], sealed_shares, fields, arrays[name]
        )
        masked[name] = checked_masked(terms, name, fields, data)
    here = [name for name in here if not gone(3, name)]
    confirmations = {}
    for name in here:  # 3: everybody signs the same list of who is in the sum
        seats[name], signature = confirm(identities[name], terms, seats[name], list(masked))
        confirmations[name] = checked_confirmation(terms, name, list(masked), signature)
    here = [name for name in here if not gone(4, name)]
    revealed = {}
    for name in here:  # 4: everybody reveals, for each party, a share of one secret or the other
        seats[name], revealed[name] = reveal(identities[name], terms, seats[name], confirmations)
    return total(terms, keys, dealers, masked, revealed, fields)


# Secrets.


def _secret(seed: bytes, use: bytes) -> bytes:
    return derived(seed, b"masks " + use)


def _private(seed: bytes, use: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(_secret(seed, use))


def _public(private: X25519PrivateKey) -> bytes:
    return private.public_key().public_bytes_raw()


def _form(terms: MaskTerms, fields: Sequence[Field]) -> bytes:
    """What a stream is for: the terms and the form of the vector. Masks of parties that disagree
    on either do not vanish from the sum."""
    formats = [f"{f.size} {f.bound.hex()} {f.resolution.hex()}".encode() for f in fields]
    return wire.digest(MASKED, [terms.digest, *formats])


def _agreed(terms: MaskTerms, private: X25519PrivateKey, public: bytes, use: bytes) -> bytes:
    """32 bytes that both sides of a pair derive. Raises FaultyCoordinator for a degenerate key."""
    try:
        common = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise FaultyCoordinator(f"query {terms.query} brings a degenerate public key") from None
    return derived(common, use + terms.digest)


def _pair_key(
    terms: MaskTerms, form: bytes, private: X25519PrivateKey, public: bytes, one: str, other: str
) -> bytes:
    return _agreed(terms, private, public, b"pair " + form + _names(*sorted((one, other))))


def _sealing_key(terms: MaskTerms, seat: Seat, keys: Keys, sender: str, receiver: str) -> bytes:
    """The key under which one party seals its shares to another; used once."""
    private = _private(seat.seed, b"sealing")
    return _agreed(terms, private, keys.sealing, b"sealing " + _names(sender, receiver))


def _own_key(form: bytes, secret: bytes) -> bytes:
    return derived(secret, b"own " + form)


def _names(one: str, other: str) -> bytes:
    return wire.join(DEALT, [one.encode(), other.encode()])


def _deal(secret: bytes, seed: bytes, use: bytes, threshold: int, at: Sequence[int]) -> list[int]:
    """Shamir's shares of a secret at these places (Shamir, CACM 1979).

    The coefficients above the secret follow from the seed, so a party need not store its shares.
    """
    coefficients = [int.from_bytes(secret, "big")]
    for degree in range(1, threshold):
        label = b"coefficient %d " % degree + use
        wide = derived(seed, label) + derived(seed, label + b" more")
        coefficients.append(int.from_bytes(wide, "big") % PRIME)
    return [sum(c * pow(x, k, PRIME) for k, c in enumerate(coefficients)) % PRIME for x in at]


def _joined(terms: MaskTerms, x: Mapping[str, int], shares: Mapping[str, int]) -> bytes:
    """The secret behind at least `threshold` shares. Raises TooFewParties, InconsistentSum."""
    if len(shares) < terms.threshold:
        raise TooFewParties(
            f"query {terms.query}: {len(shares)} shares of a secret, {terms.threshold} are needed"
        )
    points = sorted((x[name], value) for name, value in shares.items())[: terms.threshold]
    secret = 0
    for at, value in points:
        numerator = denominator = 1
        for other, _ in points:
            if other != at:
                numerator = numerator * -other % PRIME
                denominator = denominator * (at - other) % PRIME
        secret += value * numerator * pow(denominator, -1, PRIME)
    secret %= PRIME
    if secret >> 256:
        raise InconsistentSum(
            f"query {terms.query}: the shares of a secret do not fit together; one of the parties "
            "that stayed gave a false share"
        )
    return secret.to_bytes(32, "big")


# Checks.


def _at(seat: Seat, step: int, identity: Identity, terms: MaskTerms) -> str:
    if seat.step != step:
        raise FaultyCoordinator(
            f"query {terms.query} asks for step {step} of a party that is at step {seat.step}"
        )
    return identity.card.name


def _enough(terms: MaskTerms, count: int) -> None:
    if count < terms.least:
        raise TooFewParties(
            f"query {terms.query}: {count} parties are left, at least {terms.least} are needed"
        )


def _check_keys(terms: MaskTerms, name: str, seat: Seat, keys: Mapping[str, Keys]) -> None:
    _enough(terms, len(keys))
    for other, party_keys in keys.items():
        if other not in terms.roster:
            raise FaultyCoordinator(
                f"query {terms.query} brings keys of {other}, which is not on the roster"
            )
        try:
            checked_keys(terms, other, party_keys)
        except FaultyParty as error:
            raise FaultyCoordinator(
                f"query {terms.query} passes on what it should have refused: {error}"
            ) from None
    mine = [_public(_private(seat.seed, use)) for use in (b"sealing", b"masking")]
    if name not in keys or [keys[name].sealing, keys[name].masking] != mine:
        raise FaultyCoordinator(
            f"query {terms.query} shows keys of {name} other than those it sent"
        )
    every = [
        key for party_keys in keys.values() for key in (party_keys.sealing, party_keys.masking)
    ]
    if len(set(every)) != len(every):
        raise FaultyCoordinator(f"query {terms.query} brings the same key twice")


def _present(terms: MaskTerms, names: Sequence[str]) -> bytes:
    return wire.join(MASKED, [terms.digest, *(name.encode() for name in names)])


# Encodings.


def pairs_out(pairs: Mapping[str, bytes]) -> bytes:
    """Bytes by name, as they travel."""
    return wire.join(
        DEALT, [part for name, item in pairs.items() for part in (name.encode(), item)]
    )


def pairs_in(data: bytes) -> dict[str, bytes]:
    """What `pairs_out` wrote. Raises MalformedMessage."""
    parts = wire.split(DEALT, data, 0, wire.MOST_PARTS)
    names = list(map(wire.text, parts[::2]))
    if len(parts) % 2 or len(set(names)) != len(names):
        raise MalformedMessage("names and values do not pair up")
    return dict(zip(names, parts[1::2], strict=True))


def _shares_out(shares: Mapping[str, int]) -> bytes:
    return pairs_out({name: value.to_bytes(SHARE_BYTES, "big") for name, value in shares.items()})


def _shares_in(data: bytes) -> dict[str, int]:
    pairs = pairs_in(data)
    shares = {name: int.from_bytes(value, "big") for name, value in pairs.items()}
    if (
        any(len(v) != SHARE_BYTES for v in pairs.values())
        or max(shares.values(), default=0) >= PRIME
    ):
        raise MalformedMessage(f"a share must be a number below the prime, in {SHARE_BYTES} bytes")
    return shares
