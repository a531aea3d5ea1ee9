"""One claim at the desk: whether another payer has it, before it is paid.

After a nightly comparison (`ring`) the coordinator hands each payer the names of all claims of the
others, in one list that is filled up and sorted, so that it tells nothing. A name can be made of a
claim only with the help of everybody, and is asked for one claim at a time:

    0  question   the asker: the claim's texts, multiplied by its secret and by a fresh blinding
    s  helped     every other payer in the ring, last the coordinator: times its secret
    r  answer     the asker: the blinding taken off, the names looked up in its list

Who helps sees random elements: not the claim, nor the answer. The asker learns, of the claim asked
about alone, by which key another payer has it, and whose it is where the charter tells. Each who
helps counts what each asker asks, and refuses what is above the charter's rate; a list without help
is worthless. (An OPRF as in RFC 9497 with a key of many, looked up as in Kiss, Liu, Schneider,
Asokan and Pinkas, PoPETs 2017.)

A list is of the night it was made: claims of the same day are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federated.link.ring import Ids, Meetings, RingTerms
from lab.errors import ConfigurationError
from secure_agg.errors import FaultyParty, InvalidElement
from secure_agg.ristretto import ORDER, SIZE, Elements, derived_key, hashed, multiplied

#: Bytes of a name that a list keeps: enough that no two claims are taken for one.
SHORT = 16


@dataclass(frozen=True)
class NameList:
    """The names of all claims that other payers have, for one payer.

    names: (n,) sorted, shortened; owners: (n,) bits of the payers that have each, in the ring's
        order; 1 where the charter tells nobody's name, 0 for what fills the list up
    """

    names: Ids
    owners: NDArray[np.uint16]


@dataclass(frozen=True)
class DeskAnswer:
    """What an asker learns about one claim.

    batch: the first of the charter's batches that matches, -1 for none
    payers: who has it, where the charter tells
    """

    batch: int
    payers: tuple[str, ...]


def name_lists(
    terms: RingTerms, meetings: Meetings, randomness: Callable[[int], bytes]
) -> dict[str, NameList]:
    """What the coordinator hands each payer after a comparison."""
    lists = {}
    for payer in terms.payers:
        others = [name for name in terms.payers if name != payer]
        parts = [_short(batch[name]) for batch in meetings.names for name in others]
        bit = dict(zip(terms.payers, (1 << at for at in range(len(terms.payers))), strict=True))
        bits = [
            bit[name] if terms.tells == "payer" else 1 for _ in meetings.names for name in others
        ]
        owners = np.repeat(bits, [len(part) for part in parts]).astype(np.uint16)
        names, inverse = np.unique(np.concatenate(parts), return_inverse=True)
        together = np.zeros(len(names), dtype=np.uint16)
        np.bitwise_or.at(together, inverse, owners)
        lists[payer] = _filled(names, together, len(owners), randomness)
    return lists


def question(terms: RingTerms, seed: bytes, texts: Sequence[bytes], blinding: bytes) -> Elements:
    """Step 0. texts: of one claim, one for each batch; blinding: 32 fresh random bytes."""
    if len(texts) != terms.batches:
        raise ConfigurationError(f"a claim has {terms.batches} texts, got {len(texts)}")
    return multiplied(_product(terms.key(seed), derived_key(blinding, b"ask")), hashed(texts))


def helped(terms: RingTerms, seed: bytes, elements: bytes, sender: str) -> Elements:
    """Step s, of every other payer and the coordinator. Raises FaultyParty."""
    return multiplied_from(terms.key(seed), elements, terms.batches, sender)


def answer(
    terms: RingTerms, names: NameList, elements: bytes, blinding: bytes, sender: str
) -> DeskAnswer:
    """Step r. Raises FaultyParty."""
    scalar = int.from_bytes(derived_key(blinding, b"ask"), "little")
    inverse = pow(scalar, -1, ORDER).to_bytes(SIZE, "little")
    whole = multiplied_from(inverse, elements, terms.batches, sender)
    ids = _short(np.ascontiguousarray(whole).view(f"S{SIZE}").ravel())
    at = np.searchsorted(names.names, ids).clip(max=len(names.names) - 1)
    bits = np.where(names.names[at] == ids, names.owners[at], 0)
    if not bits.any():
        return DeskAnswer(-1, ())
    who = int(np.bitwise_or.reduce(bits)) if terms.tells == "payer" else 0
    payers = tuple(name for bit, name in enumerate(terms.payers) if who >> bit & 1)
    return DeskAnswer(int(np.flatnonzero(bits)[0]), payers)


def multiplied_from(scalar: bytes, elements: bytes, count: int, sender: str) -> Elements:
    """So many elements that a sender sent, times a scalar. Raises FaultyParty."""
    if len(elements) != SIZE * count:
        raise FaultyParty(f"{sender}: sent a message of another size than agreed", sender)
    try:
        return multiplied(scalar, np.frombuffer(elements, dtype=np.uint8).reshape(-1, SIZE), 1)
    except InvalidElement:
        raise FaultyParty(f"{sender}: sent what is no element of the group", sender) from None


def _short(names: Ids) -> Ids:
    return names.astype(f"S{SHORT}")


def _filled(
    names: Ids, owners: NDArray[np.uint16], size: int, randomness: Callable[[int], bytes]
) -> NameList:
    """A list filled up to a size that tells nothing of what payers share."""
    random = np.frombuffer(randomness(SHORT * (size - len(names))), dtype=f"S{SHORT}")
    everything = np.concatenate([names, random])
    owners = np.concatenate([owners, np.zeros(len(random), dtype=np.uint16)])
    order = np.argsort(everything, kind="stable")
    return NameList(everything[order], owners[order])


def _product(one: bytes, other: bytes) -> bytes:
    number = int.from_bytes(one, "little") * int.from_bytes(other, "little") % ORDER
    return number.to_bytes(SIZE, "little")
