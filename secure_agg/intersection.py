"""Which rows of two tables belong to the same person, told to nobody more than was agreed.

Each side hashes its identifiers to ristretto255 and multiplies them by a secret of its own. What
both have multiplied is equal where the identifiers are, whatever the order (Meadows, S&P 1986;
Huberman, Franklin and Hogg, EC 1999). Multiplied by one side alone an identifier can't be told
from a random element, nor be tried out, however few identifiers there are.

What is learned is chosen beforehand, and named after who learns it:

    both        both sides learn which of their rows are common; the spine is the common rows
    size        both learn how many are common, and nothing of which
    hidden      nobody learns which: the spine is the union (Private-ID: Buddhavarapu, Knox,
                Mohassel, Sengupta, Taubeneck and Vlaskin, eprint 2020/599), on which each side
                can place its own rows; its length, so how many are common, is told to both
    a side      as hidden, and that side alone learns which of its rows are common; the other can
                write to it about those, and it can't read what is said of rows that it lacks

A *spine* is a list of rows that both sides number alike: its identifiers are random to both, and
it is in their order. The steps of both sides, with what each sends:

    0  start      a commitment to its own elements, multiplied and shuffled
    1  reveal     the elements
    2  cross      the other's elements, multiplied by its own secret too
    3  match      a digest of the spine
    4  confirm    nothing: the digests agree

and for a spine of the union, after the first two:

    2  multiply   the other's elements, multiplied by one secret more, and by two; to a side that
                  learns also by a third
    3  divide     the leader: what is in one table alone
    4  exchange   the other: the same, multiplied by its secret of the spine
    5  unite      a digest of the spine
    6  confirm    nothing

Under a spine of the union, one side *leads*: the one that learns, or else the first. It alone sees
both sets multiplied by both secrets, in an order that says nothing about whose row is which, takes
one from the other, and hands on the differences. A second secret of each side makes the
identifiers of the spine, so that they can't be matched with anything seen before. Where a side learns,
the other's third secret, which no row of the other's is multiplied by before its eyes, makes a *key* of
each row: both arrive at the same for a common row, and the side that learns at none for any other row of
the other's.

Sizes: every set is filled up with random elements to a number that is announced beforehand, the
cap, and every message to that many elements. Sealed, messages tell who carries them nothing more.
Commitments keep a side from choosing its set after it has seen the other's. Each element that comes
in is checked.

Threat model: sides are honest but curious, the decisional Diffie-Hellman assumption holds in the
group, and the hash is a random oracle. A side that deviates can put identifiers into its set that
it only guesses, as many as the cap allows: an answer is an answer. What it can't do is change its
set after it has seen something, repeat an element, or send what is no element: it is named.
Multiplying by something else spoils the result, and is not proved or always noticed. A side that
was killed starts again from its seed and the messages it kept, and arrives at the same.

Longer than 400 lines because it is one protocol: what is agreed, what a side remembers, and the
steps in the order in which they are spoken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from secure_agg import wire
from secure_agg.errors import FaultyParty, InvalidElement, LayoutMismatch, MalformedMessage
from secure_agg.identity import check_name
from secure_agg.ristretto import (
    SIZE,
    WIDE,
    Elements,
    checked,
    derived_key,
    encoded,
    hashed,
    mapped,
    multiplied,
)

TERMS, SET = b"SAGGIT01", b"SAGGIS01"
CHUNK = 2**16  # elements in one piece of a message
MOST = 2**26  # elements of a set
EVERYBODY = ("both", "size", "hidden")

#: What one side sends another in one step: names, each with bytes.
Message = Mapping[str, bytes]
Ids = npt.NDArray[np.bytes_]
Number = TypeVar("Number", np.int64, np.bool_, np.uint8)

OTHER_SIZE = "sent a message of another size than agreed"
NO_ELEMENT = "sent what is no element of the group, or the neutral one"


@dataclass(frozen=True)
class AlignmentTerms:
    """What one alignment is about; commitments and hashes are bound to it.

    sides: names of the two
    learns: "both", "size", "hidden" or the name of the side that alone learns who is common
    cap: rows that each side's set is filled up to
    session: 32 bytes that name this alignment, used once

    Raises InvalidIdentity and LayoutMismatch.
    """

    sides: tuple[str, str]
    learns: str
    cap: int
    session: bytes

    def __post_init__(self) -> None:
        for side in self.sides:
            check_name(side)
        if self.sides[0] == self.sides[1] or set(self.sides) & set(EVERYBODY):
            raise LayoutMismatch(f"the sides need two names, and none of {', '.join(EVERYBODY)}")
        if self.learns not in (*EVERYBODY, *self.sides):
            allowed = ", ".join((*EVERYBODY, *self.sides))
            raise LayoutMismatch(f"who learns must be one of {allowed}, got '{self.learns}'")
        if type(self.cap) is not int or not 1 <= self.cap <= MOST:
            raise LayoutMismatch(f"the cap must be 1 to {MOST:,} rows, got {self.cap}")
        if len(self.session) != 32:
            raise LayoutMismatch("an alignment is named by 32 bytes")

    @cached_property
    def digest(self) -> bytes:
        names = [side.encode() for side in self.sides]
        numbers = [self.learns.encode(), self.cap.to_bytes(4, "big"), self.session]
        return wire.digest(TERMS, [*names, *numbers])

    @property
    def leader(self) -> str:
        """Who takes the differences under a spine of the union."""
        return self.learns if self.learns in self.sides else self.sides[0]

    def other(self, side: str) -> str:
        return self.sides[1] if side == self.sides[0] else self.sides[0]


@dataclass(frozen=True)
class Alignment:
    """What one side learns of which rows are whose.

    size: rows of the spine; the number in common where only that is told
    place: (n,) the spine's row of each own row, -1 for none
    common: (n,) whether the other side has the row's person too; None where this side isn't told
    keys: (n, 32) where a side learns, of each row a key that the other side has too if it has the row
    records: for a log, one for each set of identifiers: what was agreed, both commitments, what
        this side learned; no row
    """

    size: int
    place: npt.NDArray[np.int64]
    common: npt.NDArray[np.bool_] | None
    records: tuple[Mapping[str, Any], ...] = ()
    keys: Elements | None = None


@dataclass(frozen=True)
class AlignmentSide:
    """What one side remembers between the steps of one alignment. Secret; never shown.

    rows: number of own rows
    step: the next one
    own: own elements, in an order drawn for it; once they stand on a spine, its identifiers
    theirs: the other's elements, multiplied by both
    rest: identifiers of the spine of rows that the other side alone has
    keys: of own rows
    spine: its digest, and what will be the result if the other side has the same
    result: what was learned; there when all steps are done
    """

    terms: AlignmentTerms
    name: str
    seed: bytes
    rows: int
    step: int = 1
    commitments: Mapping[str, bytes] = field(default_factory=dict)
    own: Elements = field(default_factory=encoded)
    theirs: Elements = field(default_factory=encoded)
    rest: Elements = field(default_factory=encoded)
    common: npt.NDArray[np.bool_] | None = None
    keys: Elements | None = None
    spine: tuple[bytes, Alignment] | None = None
    result: Alignment | None = None

    def __repr__(self) -> str:
        return f"AlignmentSide({self.name}, before step {self.step})"

    @property
    def peer(self) -> str:
        return self.terms.other(self.name)

    @property
    def leads(self) -> bool:
        return self.name == self.terms.leader

    @property
    def has_keys(self) -> bool:
        """Whether rows get keys."""
        return self.terms.learns in self.terms.sides

    def stream(self, use: bytes, size: int) -> bytes:
        """Secret bytes for one use (SHAKE-256)."""
        return hashlib.shake_256(wire.join(TERMS, [self.seed, self.terms.digest, use])).digest(size)

    def shuffled(self, use: bytes, size: int) -> npt.NDArray[np.int64]:
        """A secret order of so many rows."""
        return np.argsort(np.frombuffer(self.stream(use, 8 * size), dtype="<u8"), kind="stable")


def start(
    terms: AlignmentTerms, name: str, texts: Sequence[bytes], seed: bytes
) -> tuple[AlignmentSide, Message]:
    """Step 0: the commitment to one's own set.

    texts: own identifiers, each once, at most as many as the cap
    seed: 32 fresh random bytes, for this alignment alone; all secrets and orders follow from it

    Raises LayoutMismatch.
    """
    if name not in terms.sides or len(seed) != 32:
        raise LayoutMismatch(f"'{name}' is no side of this alignment, or its seed not of 32 bytes")
    if len(texts) > terms.cap:
        raise LayoutMismatch(
            f"{name} has more identifiers than the cap of {terms.cap:,}; agree on a higher one"
        )
    if len(set(texts)) < len(texts):
        raise LayoutMismatch(f"{name}: identifiers are repeated; each may stand there once")
    side = AlignmentSide(terms, name, seed, len(texts))
    padding = side.stream(b"padding", WIDE * (terms.cap - len(texts)))
    drawn = mapped(np.frombuffer(padding, dtype=np.uint8).reshape(-1, WIDE))
    elements = np.concatenate([hashed(texts), drawn])[side.shuffled(b"own", terms.cap)]
    own = multiplied(_key(side, b"blinding"), elements)
    commitment = _commitment(terms, name, own)
    return replace(side, own=own, commitments={name: commitment}), {"commitment": commitment}


def advance(side: AlignmentSide, message: Message) -> tuple[AlignmentSide, Message]:
    """The next step: what a side remembers now, and what it sends, from what the other sent.

    Done when `side.result` is there. Raises FaultyParty, which names the other side, and
    MalformedMessage.
    """
    steps = STEPS[side.terms.learns not in ("both", "size")]
    if side.result is not None:
        raise MalformedMessage(f"{side.name}: this alignment is over")
    after, reply = steps[side.step - 1](side, message)
    return replace(after, step=side.step + 1), reply


def run(
    terms: AlignmentTerms, texts: Mapping[str, Sequence[bytes]], seeds: Mapping[str, bytes]
) -> dict[str, Alignment]:
    """All steps of both sides in order, as a reference: what each learns."""
    first, second = terms.sides
    sides, sent = {}, {}
    for name in terms.sides:
        sides[name], sent[name] = start(terms, name, texts[name], seeds[name])
    while sides[first].result is None:
        forth, back = sent[first], sent[second]
        sides[first], sent[first] = advance(sides[first], back)
        sides[second], sent[second] = advance(sides[second], forth)
    return {name: side.result for name, side in sides.items() if side.result is not None}


# The steps that all ways have in common.


def _reveal(side: AlignmentSide, message: Message) -> tuple[AlignmentSide, Message]:
    commitment = message.get("commitment", b"")
    if set(message) != {"commitment"} or len(commitment) != 32:
        raise _faulty(side, "sent no commitment of 32 bytes")
    commitments = {**side.commitments, side.peer: commitment}
    return replace(side, commitments=commitments), _pieces(side, "elements", side.own)


def _crossed(side: AlignmentSide, message: Message) -> Elements:
    """The other side's set times one's own secret, if it is the one committed to."""
    (theirs,) = _whole(side, message, "elements")
    if _commitment(side.terms, side.peer, theirs) != side.commitments[side.peer]:
        raise _faulty(side, "changed its set after it had committed to it")
    return _times(side, b"blinding", theirs)


def _confirm(side: AlignmentSide, message: Message) -> tuple[AlignmentSide, Message]:
    assert side.spine is not None
    digest, result = side.spine
    if message != {"spine": digest}:
        raise _faulty(side, "arrived at another spine; nothing was aligned")
    return replace(side, own=encoded(), theirs=encoded(), rest=encoded(), result=result), {}


# `both` and `size`.


def _cross(side: AlignmentSide, message: Message) -> tuple[AlignmentSide, Message]:
    theirs = _crossed(side, message)
    order = side.shuffled(b"theirs", len(theirs))
    sent = theirs[order] if side.terms.learns == "size" else theirs
    return replace(side, theirs=theirs), _pieces(side, "crossed", sent)


def _match(side: AlignmentSide, message: Message) -> tuple[AlignmentSide, Message]:
    (crossed,) = _whole(side, message, "crossed")
    own = _ids(_checked(side, crossed))
    spine = np.intersect1d(own, _ids(side.theirs), assume_unique=True)
    if side.terms.learns == "size":
        return _at_spine(side, spine, np.full(side.rows, -1, dtype=np.int64), None)
    place = _by_row(side, _found(spine, own))
    return _at_spine(side, spine, place, place >= 0)


# A spine of the union.


def _multiply(side: AlignmentSide, message: Message) -> tuple[AlignmentSide, Message]:
    theirs = _crossed(side, message)
    sent = _pieces(side, "placed", _times(side, b"spine", theirs))
    if side.leads:
        return replace(side, theirs=theirs), sent
    if side.has_keys:
        sent |= _pieces(side, "keyed", _times(side, b"keys", theirs))
    else:
        theirs = theirs[side.shuffled(b"theirs", len(theirs))]
    return side, {**sent, **_pieces(side, "crossed", theirs)}


def _divide(side: AlignmentSide, message: Message) -> tuple[AlignmentSide, Message]:
    if not side.leads:
        (placed,) = _whole(side, message, "placed")
        keys = _by_row(side, _times(side, b"keys", placed)) if side.has_keys else None
        return replace(side, own=_times(side, b"spine", placed), keys=keys), {}
    names = ("placed", "crossed", *(["keyed"] if side.has_keys else []))
    placed, crossed, *keyed = _whole(side, message, *names)
    crossed, theirs = _checked(side, crossed), side.theirs
    keys = _by_row(side, _times(side, b"spine", keyed[0])) if keyed else None
    shared = np.isin(_ids(crossed), _ids(theirs), assume_unique=True)
    alone, others = crossed[~shared], theirs[~np.isin(_ids(theirs), _ids(crossed))]
    common = _by_row(side, shared) if side.terms.learns == side.name else None
    alone = _times(side, b"spine", alone[side.shuffled(b"alone", len(alone))])
    sent = {
        **_pieces(side, "alone", alone),
        **_pieces(side, "others", others[side.shuffled(b"others", len(others))]),
    }
    own = _times(side, b"spine", placed)
    return replace(side, own=own, theirs=others, common=common, keys=keys), sent


def _exchange(side: AlignmentSide, message: Message) -> tuple[AlignmentSide, Message]:
    if side.leads:
        _received(side, message)
        return side, {}
    alone, others = _received(side, message, "alone", "others")
    if len(alone) != len(others):
        raise _faulty(side, OTHER_SIZE)
    rest = _times(side, b"spine", alone)
    return replace(side, rest=rest), _pieces(side, "others", _times(side, b"spine", others))


def _unite(side: AlignmentSide, message: Message) -> tuple[AlignmentSide, Message]:
    rest = side.rest
    if side.leads:
        (others,) = _received(side, message, "others")
        if len(others) != len(side.theirs):
            raise _faulty(side, OTHER_SIZE)
        rest = _times(side, b"spine", others)
    else:
        _received(side, message)
    own = _ids(side.own)
    if np.isin(_ids(rest), own).any():
        raise _faulty(side, "sent rows of its own alone that are common")
    spine = np.sort(np.concatenate([own, _ids(rest)]))
    return _at_spine(side, spine, _by_row(side, _found(spine, own)), side.common)


STEPS: dict[bool, tuple[Callable[[AlignmentSide, Message], tuple[AlignmentSide, Message]], ...]] = {
    False: (_reveal, _cross, _match, _confirm),
    True: (_reveal, _multiply, _divide, _exchange, _unite, _confirm),
}


# What the steps are made of.


def _at_spine(
    side: AlignmentSide,
    spine: Ids,
    place: npt.NDArray[np.int64],
    common: npt.NDArray[np.bool_] | None,
) -> tuple[AlignmentSide, Message]:
    digest = wire.digest(SET, [side.terms.digest, spine.tobytes()])
    record = {
        "learns": side.terms.learns,
        "cap": side.terms.cap,
        "spine": len(spine),
        "commitments": {name: value.hex() for name, value in sorted(side.commitments.items())},
        "learned": "how many rows are common" if common is None else "which rows are common",
    }
    result = Alignment(len(spine), place, common, (record,), side.keys)
    return replace(side, spine=(digest, result)), {"spine": digest}


def _received(side: AlignmentSide, message: Message, *names: str) -> list[Elements]:
    """The arrays of a message without what fills them up, no element twice. Raises FaultyParty."""
    cap, arrays = side.terms.cap, []
    sizes = {
        f"{name}/{at // CHUNK}": SIZE * min(CHUNK, cap - at)
        for name in names
        for at in range(0, cap, CHUNK)
    }
    if {name: len(piece) for name, piece in message.items()} != sizes:
        raise _faulty(side, OTHER_SIZE)
    for name in names:
        data = b"".join(message[f"{name}/{at}"] for at in range(-(-cap // CHUNK)))
        elements = np.frombuffer(data, dtype=np.uint8).reshape(-1, SIZE)
        elements = elements[: np.flatnonzero(elements.any(axis=1)).max(initial=-1) + 1]
        ids = np.sort(_ids(elements))
        if (ids[1:] == ids[:-1]).any():
            raise _faulty(side, "sent an element twice")
        arrays.append(elements)
    return arrays


def _whole(side: AlignmentSide, message: Message, *names: str) -> list[Elements]:
    """The arrays of a message, each with as many elements as the cap."""
    arrays = _received(side, message, *names)
    if any(len(elements) < side.terms.cap for elements in arrays):
        raise _faulty(side, OTHER_SIZE)
    return arrays


def _pieces(side: AlignmentSide, name: str, elements: Elements) -> dict[str, bytes]:
    """An array as it travels: filled up to the cap with zeros, which are no element."""
    data = elements.tobytes().ljust(SIZE * side.terms.cap, b"\0")
    return {
        f"{name}/{at}": data[SIZE * CHUNK * at : SIZE * CHUNK * (at + 1)]
        for at in range(-(-side.terms.cap // CHUNK))
    }


def _times(side: AlignmentSide, use: bytes, elements: Elements) -> Elements:
    try:
        return multiplied(_key(side, use), elements)
    except InvalidElement:
        raise _faulty(side, NO_ELEMENT) from None


def _checked(side: AlignmentSide, elements: Elements) -> Elements:
    try:
        return checked(elements)
    except InvalidElement:
        raise _faulty(side, NO_ELEMENT) from None


def _key(side: AlignmentSide, use: bytes) -> bytes:
    return derived_key(side.seed, side.terms.digest + use)


def _ids(elements: Elements) -> Ids:
    """Elements as texts of 32 bytes, which numpy sorts and compares whole."""
    return np.ascontiguousarray(elements).view(f"S{SIZE}").ravel()


def _found(spine: Ids, ids: Ids) -> npt.NDArray[np.int64]:
    """The row of each in a sorted spine, -1 for none."""
    if not len(spine):
        return np.full(len(ids), -1, dtype=np.int64)
    rows = np.searchsorted(spine, ids).clip(max=len(spine) - 1)
    return np.where(spine[rows] == ids, rows, -1).astype(np.int64)


def _by_row(side: AlignmentSide, values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Values in the order that own elements were shuffled to, for each own row."""
    by_row = np.empty_like(values)
    by_row[side.shuffled(b"own", len(values))] = values
    return by_row[: side.rows]


def _commitment(terms: AlignmentTerms, name: str, elements: Elements) -> bytes:
    return wire.digest(SET, [terms.digest, name.encode(), elements.tobytes()])


def _faulty(side: AlignmentSide, deed: str) -> FaultyParty:
    return FaultyParty(f"{side.peer}: {deed}", side.peer)
