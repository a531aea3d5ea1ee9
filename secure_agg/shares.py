"""A Paillier key that nobody holds alone: n-of-n shares, parts of a decryption, who lied.

Threat model and what follows from it
-------------------------------------
Parties are honest but curious: they follow the protocol and put together what they saw. The
coordinator may do as it likes, within what the transcript binds (`secure_agg.transcript`). Up to
all holders but one may pool their shares and still open nothing, learn nothing of a total and
nothing of the missing share: any n-1 shares look like
independent uniform numbers below n / 2, whatever the key. What is opened is the total of at
least three signed contributions to one new query, once for each query.

Not protected, said plainly:

* Whoever brings the roster brings the parties: it must come by a way the coordinator can't bend. Three
  names under one owner are one party.
* A contributor that deviates *and* works with the coordinator: shown another party's ciphertext it
  can send its inverse or a copy, re-randomised, and so take that party out of a total or count it
  twice. Proofs that contributors know their plaintexts would stop it; they are not here.
* Two totals that differ by one party or by a few rows, subtracted. That is for disclosure control, above this package.
* Two of three contributors who put their own numbers together know the third's. No cryptography
  changes that: a sum hides a party among those that do not collude.
* Time: Paillier has no forward secrecy. Recorded ciphertexts open if all shares leak later, and
  a quantum computer opens them alone.
* Availability: one holder that is gone, or refuses, and nothing opens.
* The dealer. It knew the whole key, and Python does not wipe memory: deal on a machine that is
  switched off afterwards. (Making the key without a dealer was considered, see README.md.)

How it works
------------
A Paillier ciphertext is c = (1 + n*m) * r**n mod n**2, so c mod n = r**n: with d = 1/n modulo
lambda, r = (c mod n)**d mod n, and r gives m = ((c * r**-n mod n**2) - 1) / n. That is decryption
by recovering the randomness, as Paillier inverts his trapdoor permutation (EUROCRYPT 1999,
section 5). The exponent d is cut into d_1 + ... + d_k = d modulo lambda, each part uniform; holder i gives
(c mod n)**d_i mod n, and the product of all parts is r. Against the usual way, powers modulo n**2
with exponents twice as long (Fouque, Poupard and Stern, FC 2000), a part costs a seventh and is half
as long; whoever combines raises r to the n-th power once.

Opening r beside m gives nothing away: for two contributions of which the other parties know the
sum, the second is (1 + n*M) * r**n / c_1 for r chosen by anybody, so the pair can be simulated from
one ciphertext alone. (For the short exponents of `secure_agg.arithmetic.blinding`: under the assumption made
there.)

r**n mod n = c mod n is checked for every ciphertext, so a total that opens is right. If it does not
hold, the proof that comes with every part tells who lied: one proof for a whole batch, that the
discrete logarithms of the holder's public image and of a random combination of its parts are
equal (Chaum and Pedersen, CRYPTO 1992; in groups of unknown order Shoup, EUROCRYPT 2000; random
combination: Bellare, Garay and Rabin, EUROCRYPT 1998, with Boyd and Pavlovski, ASIACRYPT 2000,
on signs). Signs are left out of the
proof, where they cost soundness, and repaired by whoever combines. A liar who could prove a false
part would know an element of small order, and with it a factor of n.

Longer than 400 lines because the threat model, the scheme and the proof of a part are one argument,
and a reader checks the code against each.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NoReturn

import gmpy2
import numpy as np
import numpy.typing as npt
from gmpy2 import mpz

from secure_agg import wire
from secure_agg.arithmetic.modexp import secret_powers
from secure_agg.errors import (
    FaultyHolder,
    InconsistentSum,
    InvalidKey,
    KeyFileRefused,
    MalformedMessage,
    MissingHolder,
)
from secure_agg.identity import Card, Identity, Roster, check_name
from secure_agg.keys import PrivateKey, PublicKey, load_secret, save_secret
from secure_agg.packing import Field, Layout, unpack
from secure_agg.paillier import encrypt
from secure_agg.transcript import Terms, Transcript, contribute, examine, received

SPLIT, SHARE, PART = b"SAGGSP01", b"SAGGSH01", b"SAGGPA01"
FILE_FORMAT = "secure_agg.key_share/1"
CHALLENGE_BITS = 128
STATISTICAL_BITS = 128  # by how much a proof's nonce is longer than what it hides
CHUNK = 16  # ciphertexts that a thread works on in one go


@dataclass(frozen=True)
class SplitKey:
    """What everybody knows of a key that is split: the modulus, and an image of every share.

    base: v, a square modulo n
    images: for every holder, v to the power of its share, modulo n

    Raises InvalidKey, also if the shares behind the images do not make up the key.
    """

    public: PublicKey
    base: mpz
    images: Mapping[str, mpz]

    def __post_init__(self) -> None:
        n = self.public.n
        numbers = [self.base, *self.images.values()]
        for name in self.images:
            check_name(name)
        if len(self.images) < 2:
            raise InvalidKey(
                f"a key must be split among at least two holders, got {len(self.images)}"
            )
        if any(not 1 < v < n - 1 or gmpy2.jacobi(v, n) != 1 for v in numbers):
            raise InvalidKey("split key: base and images must be squares modulo n, and not 1 or -1")
        if gmpy2.powmod(_product(self.images.values(), n), n, n) != self.base:
            raise InvalidKey(
                "split key: the shares do not add up to the key; the dealer made an error"
            )

    @property
    def holders(self) -> tuple[str, ...]:
        return tuple(self.images)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of this key and its images; every proof is bound to it."""
        return hashlib.sha256(self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        n = self.public.n
        pairs = ((name.encode(), _padded(image, n)) for name, image in self.images.items())
        return wire.join(SPLIT, [_padded(n, n), _padded(self.base, n), *chain(*pairs)])

    @classmethod
    def from_bytes(cls, data: bytes) -> SplitKey:
        """What `to_bytes` wrote. Raises MalformedMessage and InvalidKey."""
        n, base, *pairs = wire.split(SPLIT, data, 2, wire.MOST_PARTS)
        names = tuple(map(wire.text, pairs[::2]))
        if len(pairs) % 2 or len(set(names)) != len(names):
            raise MalformedMessage("split key: holders and images do not pair up")
        images = dict(zip(names, map(wire.number, pairs[1::2]), strict=True))
        split = cls(PublicKey(wire.number(n)), wire.number(base), images)
        if split.to_bytes() != data:
            raise MalformedMessage("split key: not in canonical encoding")
        return split


class KeyShare:
    """One holder's share: an exponent nobody else knows; never shown, never pickled.

    Raises InvalidKey if the share is not the one behind the holder's image.
    """

    __slots__ = ("exponent", "holder", "split")

    exponent: mpz
    holder: str
    split: SplitKey

    def __init__(self, split: SplitKey, holder: str, exponent: mpz) -> None:
        if holder not in split.images:
            raise InvalidKey(f"{holder} holds no share of key {split.public.fingerprint}")
        n = split.public.n
        if not 0 < exponent < n or secret_powers([split.base], exponent, n) != [
            split.images[holder]
        ]:
            raise InvalidKey(f"{holder}: the share is not the one announced; ask the dealer")
        object.__setattr__(self, "split", split)
        object.__setattr__(self, "holder", holder)
        object.__setattr__(self, "exponent", exponent)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a KeyShare can't be changed")

    def __repr__(self) -> str:
        return f"KeyShare(of {self.holder}, key {self.split.public.fingerprint})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a KeyShare can't be copied or pickled; use seal_share")


@dataclass(frozen=True)
class Part:
    """A holder's part of the decryption of a batch: one number below n for each ciphertext, and
    the proof (challenge, response) that all come from its share."""

    numbers: tuple[mpz, ...]
    challenge: mpz
    response: mpz

    def to_bytes(self, split: SplitKey) -> bytes:
        """Its size depends on the key and the layout alone."""
        n = split.public.n
        challenge = self.challenge.to_bytes(CHALLENGE_BITS // 8, "big")
        response = self.response.to_bytes(_response_bytes(n), "big")
        return wire.join(PART, [challenge, response, b"".join(_padded(x, n) for x in self.numbers)])

    @classmethod
    def from_bytes(cls, data: bytes, split: SplitKey) -> Part:
        """The part that `to_bytes` wrote. Raises MalformedMessage."""
        n = split.public.n
        challenge, response, body = wire.split(PART, data, 3)
        size = wire.width(n)
        if (len(challenge), len(response)) != (CHALLENGE_BITS // 8, _response_bytes(n)):
            raise MalformedMessage("a part's proof has the wrong size")
        if len(body) % size:
            raise MalformedMessage("a part's numbers have the wrong size")
        numbers = tuple(wire.number(body[at : at + size]) for at in range(0, len(body), size))
        if any(x >= n for x in numbers):
            raise MalformedMessage("a part's numbers must be below n")
        return cls(numbers, wire.number(challenge), wire.number(response))


def deal(private: PrivateKey, holders: Sequence[str]) -> tuple[SplitKey, dict[str, KeyShare]]:
    """The dealer's step: cut the key, after which it must be forgotten.

    All shares but the last are drawn uniformly modulo lambda, and the last makes up the sum, so
    any n-1 of them are independent and uniform modulo lambda; that lambda is not n / 2 can't be
    told from them, it is off by one part in 2**(bits / 2 - 1). Raises InvalidKey.
    """
    if len(holders) < 2 or len(set(holders)) != len(holders):
        raise InvalidKey("a key must be split among at least two holders, each named once")
    n = private.public.n
    order = (private.p - 1) * (private.q - 1) // 2
    exponents = [mpz(1 + secrets.randbelow(int(order) - 1)) for _ in holders[1:]]
    last = (gmpy2.invert(n, order) - sum(exponents)) % order
    if last == 0:
        return deal(private, holders)
    exponents.append(last)
    base = mpz(secrets.randbelow(int(n))) ** 2 % n
    images = {h: secret_powers([base], e, n)[0] for h, e in zip(holders, exponents, strict=True)}
    split = SplitKey(private.public, base, images)
    shares = zip(holders, exponents, strict=True)
    return split, {holder: KeyShare(split, holder, exponent) for holder, exponent in shares}


def save_share(path: str | os.PathLike[str], share: KeyShare, passphrase: str) -> None:
    """Write a share to a new file of its holder's, as `keys.save_private` writes a key."""
    header = {"holder": share.holder, "split": share.split.to_bytes().hex()}
    save_secret(path, FILE_FORMAT, header, {"exponent": hex(share.exponent)}, passphrase)


def load_share(path: str | os.PathLike[str], passphrase: str) -> KeyShare:
    """The share that `save_share` wrote. Raises KeyFileRefused, MalformedMessage and InvalidKey."""
    header, secret = load_secret(path, FILE_FORMAT, passphrase)
    try:
        split, exponent = bytes.fromhex(header["split"]), int(secret["exponent"], 16)
        return KeyShare(SplitKey.from_bytes(split), header["holder"], mpz(exponent))
    except (KeyError, ValueError, TypeError):
        raise KeyFileRefused(f"{path} holds no key share") from None


def seal_share(share: KeyShare, card: Card) -> bytes:
    """The dealer's step: a share as it travels, for its holder's eyes alone."""
    exponent = _padded(share.exponent, share.split.public.n)
    return card.seal(_purpose(share.split), wire.join(SHARE, [share.holder.encode(), exponent]))


def open_share(identity: Identity, split: SplitKey, sealed: bytes) -> KeyShare:
    """The holder's step: its share, checked against its image. Raises MalformedMessage, InvalidKey."""
    holder, exponent = wire.split(SHARE, identity.unseal(_purpose(split), sealed), 2)
    if wire.text(holder) != identity.card.name:
        raise InvalidKey(f"{identity.card.name}: was dealt somebody else's share; ask the dealer")
    return KeyShare(split, identity.card.name, wire.number(exponent))


def give_part(
    share: KeyShare,
    roster: Roster,
    past_queries: frozenset[str],
    transcript: Transcript,
    *,
    workers: int = 2,
) -> tuple[frozenset[str], Part]:
    """The holder's step: (queries answered, this one among them; its part), or a refusal.

    past_queries: which this holder answered before. Keep what comes back *before* the part leaves,
        on something that survives a crash: a query is answered once.

    Raises FaultyCoordinator, see `transcript.examine`.
    """
    total = examine(roster, transcript, share.split.public, past_queries)
    hedge = secrets.token_bytes(32)
    part = prove_part(share, total.ciphertexts, _context(transcript), workers=workers, hedge=hedge)
    return past_queries | {transcript.terms.query}, part


def combine(
    split: SplitKey, roster: Roster, transcript: Transcript, parts: Mapping[str, Part]
) -> list[npt.NDArray[np.float64]]:
    """The coordinator's step: the arrays of the total.

    parts: from every holder

    Raises FaultyCoordinator, like a holder; MissingHolder; FaultyHolder with everybody whose part
    is false, if the total does not open; InvalidKey; InconsistentSum. A total that opens is
    right, whatever the proofs: a lie that does no harm names nobody.
    """
    total = examine(roster, transcript, split.public, ())
    plaintexts = open_with(split, total.ciphertexts, parts, _context(transcript))
    try:
        return unpack(total.layout, plaintexts, total.contributions)
    except InconsistentSum:
        raise InconsistentSum(
            f"query {transcript.terms.query}: a party encrypted numbers that are not of the form "
            "all agreed on. The key is split, so nobody can open a contribution to say whose; "
            "run it with a key authority to find out"
        ) from None


def run(
    private: PrivateKey,
    identities: Mapping[str, Identity],
    fields: Sequence[Field],
    arrays: Mapping[str, Sequence[npt.ArrayLike]],
) -> list[npt.NDArray[np.float64]]:
    """All roles in order, as a reference: the total of everybody's arrays, under a split key.

    Every party contributes and holds a share, which need not be so.
    """
    names, public = tuple(identities), private.public
    roster = Roster(tuple(identity.card for identity in identities.values()))
    # The dealer cuts the key, seals each holder's share to it, and forgets the key.
    split, secret_shares = deal(private, names)
    sealed = {name: seal_share(share, roster[name]) for name, share in secret_shares.items()}
    # Every holder opens its share and checks it against what everybody knows of it.
    key_shares = {name: open_share(identities[name], split, sealed[name]) for name in names}
    # Every party encrypts its arrays and signs them for this query, question and company.
    layout, question = Layout(tuple(fields), len(names), public.bits), bytes(32)
    terms = Terms("q-1", question, roster.digest, names, public.fingerprint, layout)
    batches = {name: encrypt(public, layout, arrays[name]).to_bytes() for name in names}
    contributions = [contribute(identities[name], terms, batches[name]) for name in names]
    # The coordinator checks what it received, and shows every holder all of it.
    for contribution in contributions:
        received(roster, terms, public, contribution)
    transcript = Transcript(terms, tuple(contributions))
    # Every holder checks again, multiplies, notes the query as answered and gives its part.
    parts = {
        name: give_part(key_shares[name], roster, frozenset(), transcript)[1] for name in names
    }
    # The coordinator combines all parts.
    return combine(split, roster, transcript, parts)


def prove_part(
    share: KeyShare,
    ciphertexts: Sequence[mpz],
    context: bytes,
    *,
    workers: int = 2,
    hedge: bytes = b"",
) -> Part:
    """A holder's part of opening these ciphertexts, with its proof. It asks nothing: see give_part.

    context: what the proof is bound to
    hedge: random bytes. The proof's nonce follows from share, statement and these, so poor
        randomness does not harm it, and a fault provoked in a repeated proof does not either.
    """
    split, n = share.split, share.split.public.n
    bases = [c % n for c in ciphertexts]
    numbers = tuple(_side_by_side(bases, share.exponent, n, workers))
    statement, (combined_base, _) = _statement(split, share.holder, bases, numbers, context)
    secret = _padded(share.exponent, n)
    nonce_bits = n.bit_length() + CHALLENGE_BITS + STATISTICAL_BITS
    nonce = _expanded([b"nonce", secret, hedge, statement], nonce_bits)
    commitments = secret_powers([split.base, combined_base], nonce, n)
    challenge = _challenge(statement, commitments, n)
    return Part(numbers, challenge, nonce + challenge * share.exponent)


def holds(
    split: SplitKey, holder: str, ciphertexts: Sequence[mpz], part: Part, context: bytes
) -> bool:
    """Whether a part is, up to signs, what the holder's share makes of these ciphertexts."""
    n = split.public.n
    if len(part.numbers) != len(ciphertexts) or not all(0 < x < n for x in part.numbers):
        return False
    if gmpy2.gcd(_product(part.numbers, n), n) != 1:
        return False
    bases = [c % n for c in ciphertexts]
    statement, (base, number) = _statement(split, holder, bases, part.numbers, context)
    commitments = [
        gmpy2.powmod(of, part.response, n) * gmpy2.powmod(image, -part.challenge, n) % n
        for of, image in ((split.base, split.images[holder]), (base, number))
    ]
    return bool(_challenge(statement, commitments, n) == part.challenge)


def open_with(
    split: SplitKey,
    ciphertexts: Sequence[mpz],
    parts: Mapping[str, Part],
    context: bytes,
    *,
    workers: int = 2,
) -> list[mpz]:
    """The plaintexts 0 <= m < n of ciphertexts that passed `paillier.check_ciphertexts`.

    Raises MissingHolder, FaultyHolder and InvalidKey.
    """
    missing = [holder for holder in split.holders if holder not in parts]
    if missing:
        raise MissingHolder(
            f"{', '.join(missing)} gave no part; all {len(split.holders)} holders are needed"
        )
    strangers = [name for name in parts if name not in split.images]
    if strangers:
        raise FaultyHolder(f"{strangers[0]}: holds no share of this key", strangers[0])
    n, n_squared = split.public.n, split.public.n_squared
    if all(len(part.numbers) == len(ciphertexts) for part in parts.values()):
        columns = zip(*(part.numbers for part in parts.values()), strict=True)
        roots = [_product(column, n) for column in columns]
        factors = _side_by_side(roots, n, n_squared, workers)
        results = [
            _plaintext(c, x, n, n_squared) for c, x in zip(ciphertexts, factors, strict=True)
        ]
        plaintexts = [m for m in results if m is not None]
        if len(plaintexts) == len(results):
            return plaintexts
    liars = [h for h, part in parts.items() if not holds(split, h, ciphertexts, part, context)]
    if not liars:  # SplitKey checks that the images make up the key, so a proof must have failed
        raise InvalidKey(
            "split key: true parts do not make up a decryption; the dealer made an error"
        )
    raise FaultyHolder(f"{', '.join(liars)}: gave a false part, so nothing was opened", *liars)


def _plaintext(ciphertext: mpz, factor: mpz, n: mpz, n_squared: mpz) -> mpz | None:
    """m, if `factor` is plus or minus the blinding factor of the ciphertext; None if it is not."""
    residue = ciphertext % n
    if factor % n != residue:
        factor = n_squared - factor
        if factor % n != residue:
            return None
    return (ciphertext * gmpy2.invert(factor, n_squared) % n_squared - 1) // n


def _statement(
    split: SplitKey, holder: str, bases: Sequence[mpz], numbers: Sequence[mpz], context: bytes
) -> tuple[bytes, tuple[mpz, mpz]]:
    """What is proved, as a digest, and (bases, numbers) each combined with random weights."""
    n = split.public.n
    encodings = [b"".join(_padded(x, n) for x in numbers) for numbers in (bases, numbers)]
    statement = wire.digest(PART, [split.digest, holder.encode(), context, *encodings])
    size = CHALLENGE_BITS // 8
    stream = hashlib.shake_256(b"weights" + statement).digest(size * len(bases))
    weights = [wire.number(stream[at : at + size]) for at in range(0, len(stream), size)]
    return statement, (_combined(bases, weights, n), _combined(numbers, weights, n))


def _combined(numbers: Sequence[mpz], weights: Sequence[mpz], n: mpz) -> mpz:
    """The product of number**weight modulo n, all squarings shared (Straus 1964)."""
    total = mpz(1)
    for bit in reversed(range(CHALLENGE_BITS)):
        total = total * total % n
        for number, weight in zip(numbers, weights, strict=True):
            if weight.bit_test(bit):
                total = total * number % n
    return total


def _challenge(statement: bytes, commitments: Sequence[mpz], n: mpz) -> mpz:
    """The challenge by hashing (Fiat and Shamir, CRYPTO 1986); plus and minus x count as one."""
    encodings = [_padded(min(x, n - x), n) for x in commitments]
    return wire.number(wire.digest(PART, [statement, *encodings])[: CHALLENGE_BITS // 8])


def _side_by_side(bases: Sequence[mpz], exponent: mpz, modulus: mpz, workers: int) -> list[mpz]:
    chunks = [bases[at : at + CHUNK] for at in range(0, len(bases), CHUNK)]
    if workers == 1 or len(chunks) == 1:
        return secret_powers(bases, exponent, modulus)
    with ThreadPoolExecutor(workers) as pool:
        powers = pool.map(lambda chunk: secret_powers(chunk, exponent, modulus), chunks)
        return list(chain.from_iterable(powers))


def _context(transcript: Transcript) -> bytes:
    return transcript.terms.digest


def _purpose(split: SplitKey) -> bytes:
    return b"key share " + split.digest


def _product(numbers: Collection[mpz], n: mpz) -> mpz:
    total = mpz(1)
    for number in numbers:
        total = total * number % n
    return total


def _padded(value: mpz, n: mpz) -> bytes:
    return bytes(value.to_bytes(wire.width(n), "big"))


def _expanded(parts: Sequence[bytes], bits: int) -> mpz:
    """A number of so many bits from a hash that can be as long as one likes (SHAKE-256)."""
    stream = hashlib.shake_256(wire.join(PART, parts)).digest(-(-bits // 8))
    return wire.number(stream) >> (-bits % 8)


def _response_bytes(n: mpz) -> int:
    return -(-(int(n.bit_length()) + CHALLENGE_BITS + STATISTICAL_BITS + 1) // 8)
