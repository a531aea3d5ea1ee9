"""Names for texts that only all parties together can make, and what meets under them.

Each payer hashes its texts to ristretto255, multiplies them by a secret of its own and sends them
round: every other payer multiplies them by its secret, and last the coordinator. Under the product
of all secrets the same text has one name, whoever sent it, and nobody can make a name alone. So the
coordinator compares what it can't read (Meadows, S&P 1986; the product of more than two keys as in
De Cristofaro, Kim and Tsudik, ASIACRYPT 2010), and tells each payer which of its own rows met.

    0  start    a payer: its sets, multiplied, filled up and shuffled        -> the next payer
    s  pass     a payer: another's sets, multiplied (payers - 1 times)       -> the next, at last
                                                                                the coordinator
    c  close    the coordinator: multiplies, compares                        -> each payer
    r  result   a payer: which of its rows met, and, if agreed, whose

Who learns what: a payer, of its own rows alone, by which keys another has them, and the other's
name where `tells` is "payer"; of all else nothing, not how many rows another has. The coordinator
learns, for each key and each set of payers, how many names they share; not whose rows, nor a text:
to try a guess it needs every payer. Sizes are the cap's.

Pairs of payers could compare by two secrets each, without a third; then each names the other with
every match, the work is twice that, and nobody can ask about one claim without naming whom.

Threat model: honest but curious; the coordinator and payers other than the one whose rows are
guessed at can't try guesses together. A payer can put guesses into its own set, as many as the cap
allows: an answer is an answer. What is no element, of another size or repeated is refused, and who
sent it named. Multiplying by something else spoils matches and is not noticed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lab.errors import ConfigurationError
from secure_agg import wire
from secure_agg.errors import FaultyParty, InvalidElement
from secure_agg.ristretto import SIZE, WIDE, Elements, derived_key, hashed, mapped, multiplied

TERMS = b"LABRNG01"
COORDINATOR = "coordinator"
MOST_PAYERS = 16
Masks = NDArray[np.uint16]
Ids = NDArray[np.bytes_]
#: What one role sends another: names, each with bytes.
Message = Mapping[str, bytes]
Tells = Literal["match", "payer"]


@dataclass(frozen=True)
class RingTerms:
    """What one comparison is about; every secret and every letter is bound to it.

    payers: in the order of the ring
    batches: sets that each payer sends, compared one by one
    caps: texts that each payer's sets are filled up to
    session: 32 bytes that name this comparison, used once

    Raises ConfigurationError.
    """

    payers: tuple[str, ...]
    batches: int
    caps: tuple[int, ...]
    tells: Tells
    session: bytes

    def __post_init__(self) -> None:
        if not 2 <= len(self.payers) <= MOST_PAYERS:
            raise ConfigurationError(
                f"2 to {MOST_PAYERS} payers compare their claims, got {len(self.payers)}"
            )
        if len({*self.payers, COORDINATOR}) <= len(self.payers):
            raise ConfigurationError(f"payers need names of their own, none '{COORDINATOR}'")
        if len(self.session) != 32 or self.batches < 1 or min(self.caps) < 1:
            raise ConfigurationError("a comparison needs 32 bytes of name, a batch and caps")
        if len(self.caps) != len(self.payers):
            raise ConfigurationError("a comparison needs a cap for each payer")

    @cached_property
    def digest(self) -> bytes:
        numbers = [n.to_bytes(4, "big") for n in (self.batches, *self.caps)]
        names = [name.encode() for name in self.payers]
        return wire.digest(TERMS, [self.session, self.tells.encode(), *numbers, *names])

    def after(self, payer: str, steps: int = 1) -> str:
        """Who stands so many places further in the ring."""
        return self.payers[(self.payers.index(payer) + steps) % len(self.payers)]

    def cap(self, payer: str) -> int:
        """Texts that each set of this payer is filled up to."""
        return self.caps[self.payers.index(payer)]

    def key(self, seed: bytes) -> bytes:
        """The secret scalar of whoever has this seed."""
        return derived_key(seed, self.digest)


@dataclass(frozen=True)
class RingPayer:
    """What a payer remembers. Secret; never shown.

    seed: 32 random bytes for this comparison; all that is secret follows from it
    sizes: own texts in each batch
    hops: other payers' sets that it has multiplied
    met: for each batch (texts,) bits of the payers that have the text too, in the ring's order; bit
        0 alone where nobody's name is told. There when all is done
    """

    terms: RingTerms
    name: str
    seed: bytes
    sizes: tuple[int, ...]
    hops: int = 0
    met: tuple[Masks, ...] | None = None

    def __repr__(self) -> str:
        return f"RingPayer({self.name}, {self.hops} of {len(self.terms.payers) - 1} passed)"

    def shuffled(self, batch: int) -> NDArray[np.int64]:
        """The secret order of a batch."""
        stream = _stream(self.seed, self.terms, f"order/{batch}", 8 * self.terms.cap(self.name))
        return np.argsort(np.frombuffer(stream, dtype="<u8"), kind="stable")


@dataclass(frozen=True)
class Meetings:
    """What the coordinator learns: for each batch, how many names each set of payers shares.

    names: for each batch and payer (cap,): its names, which the coordinator keeps for the desk
    """

    counts: tuple[Mapping[frozenset[str], int], ...]
    names: tuple[Mapping[str, Ids], ...] = field(repr=False)


def start(
    terms: RingTerms, name: str, batches: Sequence[Sequence[bytes]], seed: bytes
) -> tuple[RingPayer, Message]:
    """Step 0: a payer's own sets, for the next in the ring. Raises ConfigurationError."""
    if name not in terms.payers or len(seed) != 32 or len(batches) != terms.batches:
        raise ConfigurationError(f"'{name}' is no payer of this comparison, or its sets are not")
    cap = terms.cap(name)
    if max(map(len, batches)) > cap or any(len(set(b)) < len(b) for b in batches):
        raise ConfigurationError(f"{name}: each set has a text once, and at most {cap:,}")
    payer, message = RingPayer(terms, name, seed, tuple(map(len, batches))), {}
    for at, texts in enumerate(batches):
        padding = _stream(seed, terms, f"padding/{at}", WIDE * (cap - len(texts)))
        drawn = mapped(np.frombuffer(padding, dtype=np.uint8).reshape(-1, WIDE))
        elements = np.concatenate([hashed(texts), drawn])[payer.shuffled(at)]
        message[str(at)] = multiplied(terms.key(seed), elements).tobytes()
    return payer, message


def onward(payer: RingPayer, message: Message) -> tuple[RingPayer, Message]:
    """Step s: another's sets, for the next in the ring or the coordinator. Raises FaultyParty."""
    terms = payer.terms
    sender = terms.after(payer.name, -1)
    if payer.hops == len(terms.payers) - 1:
        raise FaultyParty(f"{sender}: sent more sets than there are payers", sender)
    origin = terms.after(payer.name, -1 - payer.hops)
    sets = _times(terms, origin, message, payer.seed, sender)
    return replace(payer, hops=payer.hops + 1), {at: s.tobytes() for at, s in sets.items()}


def close(
    terms: RingTerms, messages: Mapping[str, Message], seed: bytes
) -> tuple[Meetings, Mapping[str, Message]]:
    """Step c, of the coordinator: what meets, and the answer to each payer.

    messages: by whose sets they are; each came from the payer before it in the ring
    Raises FaultyParty.
    """
    if set(messages) != set(terms.payers):
        absent = min(set(terms.payers) - set(messages))
        raise FaultyParty(f"{absent}: its sets did not come", absent)
    sets = {
        name: _times(terms, name, messages[name], seed, terms.after(name, -1))
        for name in terms.payers
    }
    replies: dict[str, dict[str, bytes]] = {name: {} for name in terms.payers}
    counts, names = [], []
    for at in map(str, range(terms.batches)):
        ids = {name: _ids(sets[name][at]) for name in terms.payers}
        masks, shares = _compared(terms, ids)
        for name in terms.payers:
            replies[name][at] = masks[name].astype("<u2").tobytes()
        counts.append(shares)
        names.append(ids)
    return Meetings(tuple(counts), tuple(names)), replies


def result(payer: RingPayer, message: Message) -> RingPayer:
    """Step r: the coordinator's answer, for each own text. Raises FaultyParty."""
    terms = payer.terms
    sizes = {str(at): 2 * terms.cap(payer.name) for at in range(terms.batches)}
    if {at: len(data) for at, data in message.items()} != sizes:
        raise FaultyParty("coordinator: sent an answer of another size than agreed", COORDINATOR)
    own, met = np.uint16(1 << terms.payers.index(payer.name)), []
    for at, size in enumerate(payer.sizes):
        masks = np.frombuffer(message[str(at)], dtype="<u2").astype(np.uint16)
        high = 1 if terms.tells == "match" else (1 << len(terms.payers)) - 1
        if (masks > high).any() or (terms.tells == "payer" and (masks & own).any()):
            raise FaultyParty("coordinator: names a payer that is none", COORDINATOR)
        by_text = np.empty_like(masks)
        by_text[payer.shuffled(at)] = masks
        if by_text[size:].any():
            raise FaultyParty("coordinator: says that padding met something", COORDINATOR)
        met.append(by_text[:size])
    return replace(payer, met=tuple(met))


def run(
    terms: RingTerms, batches: Mapping[str, Sequence[Sequence[bytes]]], seeds: Mapping[str, bytes]
) -> tuple[Meetings, dict[str, RingPayer]]:
    """All steps of all roles in order, as a reference. seeds: of the payers and the coordinator."""
    payers, sent = {}, {}
    for name in terms.payers:
        payers[name], sent[name] = start(terms, name, batches[name], seeds[name])
    for hop in range(1, len(terms.payers)):
        for origin in terms.payers:
            at = terms.after(origin, hop)
            payers[at], sent[origin] = onward(payers[at], sent[origin])
    meetings, replies = close(terms, sent, seeds[COORDINATOR])
    return meetings, {name: result(payers[name], replies[name]) for name in terms.payers}


def _compared(
    terms: RingTerms, ids: Mapping[str, Ids]
) -> tuple[dict[str, Masks], dict[frozenset[str], int]]:
    """For each payer the bits of its names' other holders; how many names each set of payers shares."""
    everything = np.concatenate([ids[name] for name in terms.payers])
    bits = np.repeat([1 << n for n in range(len(terms.payers))], terms.caps).astype(np.uint16)
    names, inverse = np.unique(everything, return_inverse=True)
    holders = np.zeros(len(names), dtype=np.uint16)
    np.bitwise_or.at(holders, inverse, bits)
    shares = {}
    values, times = np.unique(holders, return_counts=True)
    for value, count in zip(values.tolist(), times.tolist(), strict=True):
        if value & (value - 1):
            held_by = (n for at, n in enumerate(terms.payers) if value >> at & 1)
            shares[frozenset(held_by)] = count
    others = holders[inverse] & ~bits
    if terms.tells == "match":
        others = (others > 0).astype(np.uint16)
    by_payer = np.split(others, np.cumsum(terms.caps)[:-1])
    return dict(zip(terms.payers, by_payer, strict=True)), shares


def _times(
    terms: RingTerms, origin: str, message: Message, seed: bytes, sender: str
) -> dict[str, Elements]:
    """A payer's sets that came in, checked and multiplied by one's own secret. Raises FaultyParty."""
    sizes = {str(at): SIZE * terms.cap(origin) for at in range(terms.batches)}
    if {at: len(data) for at, data in message.items()} != sizes:
        raise FaultyParty(f"{sender}: sent a message of another size than agreed", sender)
    products = {}
    for at in sizes:
        elements = np.frombuffer(message[at], dtype=np.uint8).reshape(-1, SIZE)
        ids = np.sort(_ids(elements))
        if (ids[1:] == ids[:-1]).any():
            raise FaultyParty(f"{sender}: sent an element twice", sender)
        try:
            products[at] = multiplied(terms.key(seed), elements)
        except InvalidElement:
            raise FaultyParty(f"{sender}: sent what is no element of the group", sender) from None
    return products


def _ids(elements: Elements) -> Ids:
    """Elements as texts of 32 bytes, which numpy sorts and compares whole."""
    return np.ascontiguousarray(elements).view(f"S{SIZE}").ravel()


def _stream(seed: bytes, terms: RingTerms, use: str, size: int) -> bytes:
    """Secret bytes for one use (SHAKE-256)."""
    parts = [seed, terms.digest, use.encode()]
    return hashlib.shake_256(wire.join(TERMS, parts)).digest(size)
