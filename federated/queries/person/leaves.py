"""A person's leaves in trees that two sides know, each with the bins of its own columns: shares of their sum.

A leaf is reached where all cuts on the way to it lead there: those on the asker's columns, and those on the
other side's. Leaves of a tree with the same cuts of the other side form a group, of which the asker's cuts
lead to one or none. For each group the other side writes down, for each of the asker's choices, the leaf's
value where its own cuts lead there and 0 where not, plus a random number; hidden as in `bands`, by a key of
the group alone, so that the asker reads one line of each group and no other. The lines read add up to the
asker's share of the sum, the random numbers subtracted are the other side's: neither tells a leaf.

    asked        the asker: an element for each group
    answered     the other side: a line for each choice of each group, hidden
    read         the asker: what it adds to its share
    asked_share  the other side's share

Leaves that one side reaches by itself are in its own share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from federated.joined.sums.factors import Role
from federated.queries.person.bands import STEP
from lab.errors import ConfigurationError, PeerError
from lab.models.tree_model import LEAF, Tree, Trees
from secure_agg import wire
from secure_agg.errors import InvalidElement
from secure_agg.ristretto import (
    ORDER,
    SIZE,
    Elements,
    blind,
    derived_key,
    encoded,
    finalize,
    hashed,
    multiplied,
)

#: Shares are whole numbers modulo 2**32 in this unit: sums from -16 to 16.
UNIT, MODULUS, REACH = 2.0**-27, 2**32, 16.0
FORMAT, PURPOSE, LINE = b"LABLEA01", b"leaves", 4
Codes = NDArray[np.uint8]
#: By feature, which bins lead on.
Way = tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class LeafGroup:
    """Leaves of a tree behind the same cuts of the other side. ways: the asker's to each; values: in units."""

    theirs: Way
    ways: tuple[Way, ...]
    values: tuple[int, ...]


@dataclass(frozen=True)
class SharedTrees:
    """Trees of two sides, as one of them has them. own: the columns that it holds; persons: by their key,
    the bins of all features, of which only its own are right.

    Raises ConfigurationError where a score may be beyond the shares.
    """

    model: Trees
    role: Role
    own: frozenset[str]
    persons: Mapping[str, Codes]

    def __post_init__(self) -> None:
        most = abs(self.model.intercept) + sum(
            max(abs(v) for v in tree.value) for tree in self.model.trees
        )
        if most >= REACH - STEP:
            raise ConfigurationError(
                f"these trees may add up to {most:.3g} on the link's scale, and scores of one person are "
                f"shared up to {REACH:g}"
            )

    @cached_property
    def asker_groups(self) -> list[LeafGroup]:
        """All groups where this side asks."""
        return [g for tree in self.model.trees for g in self._groups(tree, asker=True)]

    @cached_property
    def asked_groups(self) -> list[LeafGroup]:
        """All groups where this side is asked."""
        return [g for tree in self.model.trees for g in self._groups(tree, asker=False)]

    @property
    def base(self) -> int:
        """The intercept, which is the insurer's."""
        return _units(self.model.intercept) if self.role == "insurer" else 0

    def choices(self, person: str) -> tuple[int, list[int]]:
        """(this side's own share, its choice in each group that has to be asked about)."""
        codes, own, choices = self.persons[person], self.base, []
        for group in self.asker_groups:
            here = _first(group.ways, codes)
            if _is_asked(group):
                choices.append(here)
            elif not group.theirs and here < len(group.values):
                own += group.values[here]
        return own % MODULUS, choices

    def _groups(self, tree: Tree, *, asker: bool) -> Iterator[LeafGroup]:
        leaves: dict[Way, list[tuple[Way, int]]] = {}
        for node, way in _ways(tree):
            mine, theirs = self._split(way)
            ours, others = (mine, theirs) if asker else (theirs, mine)
            leaves.setdefault(others, []).append((ours, _units(tree.value[node])))
        for theirs, group in leaves.items():
            yield LeafGroup(theirs, tuple(way for way, _ in group), tuple(v for _, v in group))

    def _split(self, way: Way) -> tuple[Way, Way]:
        """The part of a way on this side's columns, and the other side's."""
        cuts = self.model.cuts
        mine = tuple(step for step in way if cuts[step[0]].feature.column in self.own)
        return mine, tuple(step for step in way if step not in mine)


def asked(choices: Sequence[int], session: bytes, blinding: bytes) -> bytes:
    """What the asker sends: an element for each choice. blinding: 32 fresh random bytes."""
    texts = [_text(session, number, choice) for number, choice in enumerate(choices)]
    return blind(texts, derived_key(blinding, PURPOSE)).tobytes() if texts else b""


def asked_share(leaves: SharedTrees, person: str, secret: bytes) -> int:
    """The share of the side that is asked. secret: 32 bytes, of this session alone."""
    codes, share, number = leaves.persons[person], leaves.base, 0
    for group in leaves.asked_groups:
        if _is_asked(group):
            share -= _mask(secret, number)
            number += 1
        elif group.theirs and _leads(group.theirs, codes):
            share += group.values[0]  # where the asker's cuts lead in any case
    return share % MODULUS


def answered(
    leaves: SharedTrees, person: str, session: bytes, secret: bytes, question: bytes
) -> bytes:
    """What the side that is asked sends back. secret: as of its share.

    Raises InvalidElement, and ValueError for anything but one element for each group."""
    codes, sent = leaves.persons[person], bytearray()
    groups = [group for group in leaves.asked_groups if _is_asked(group)]
    if len(question) != SIZE * len(groups):
        raise ValueError
    for number, group in enumerate(groups):
        mask, there = _mask(secret, number), _leads(group.theirs, codes)
        lines = [(there * value + mask) % MODULUS for value in (*group.values, 0)]
        element = encoded(question[SIZE * number : SIZE * (number + 1)])
        sent += _hidden(lines, session, number, secret, element)
    return bytes(sent)


def read(
    groups: Sequence[LeafGroup],
    choices: Sequence[int],
    reply: bytes,
    session: bytes,
    blinding: bytes,
    sender: str,
) -> int:
    """The asker's share of what the groups add up to. Raises :class:`PeerError` for a reply that is none."""
    asked_about = [group for group in groups if _is_asked(group)]
    sizes = [SIZE + LINE * (len(group.values) + 1) for group in asked_about]
    if len(reply) != sum(sizes):
        raise PeerError(f"{sender}: sent what are no lines of leaves", sender)
    if not sizes:
        return 0
    starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    texts = [_text(session, number, choice) for number, choice in enumerate(choices)]
    elements = encoded(b"".join(reply[start : start + SIZE] for start in starts))
    try:
        values = finalize(texts, derived_key(blinding, PURPOSE), elements)
    except InvalidElement:
        raise PeerError(f"{sender}: sent what is no element of the group", sender) from None
    share = 0
    for start, choice, value in zip(starts, choices, values, strict=True):
        line = start + SIZE + LINE * choice
        share += _unhidden(reply[line : line + LINE], value)
    return share % MODULUS


def amount(share: int) -> float:
    """A share on the link's scale."""
    return wrapped(share * UNIT)


def wrapped(sums: float) -> float:
    """Sums of shares, from -16 to 16.

    >>> wrapped(15.0 + 3.0), wrapped(-0.5)
    (-14.0, -0.5)
    """
    return (sums + REACH) % (2 * REACH) - REACH


def _ways(tree: Tree) -> Iterator[tuple[int, Way]]:
    """Each leaf with the way to it."""
    ways: list[dict[int, NDArray[np.bool_]]] = [{} for _ in tree.feature]
    for node, feature in enumerate(tree.feature):
        if feature == LEAF:
            yield node, tuple((f, bins.tobytes()) for f, bins in sorted(ways[node].items()))
            continue
        before = ways[node].get(feature, np.ones(256, dtype=bool))
        for child, leads in ((0, tree.goes_left[node]), (1, ~tree.goes_left[node])):
            ways[tree.left[node] + child] = ways[node] | {feature: before & leads}


def _is_asked(group: LeafGroup) -> bool:
    """Whether both sides have cuts on the way."""
    return bool(group.theirs) and any(group.ways)


def _leads(way: Way, codes: Codes) -> bool:
    return all(bins[codes[feature]] for feature, bins in way)


def _first(ways: Sequence[Way], codes: Codes) -> int:
    """The one that leads on, or how many there are."""
    return next((k for k, way in enumerate(ways) if _leads(way, codes)), len(ways))


def _hidden(
    lines: Sequence[int], session: bytes, group: int, secret: bytes, element: Elements
) -> bytes:
    key = _key(secret, group)
    inverse = pow(int.from_bytes(key, "little"), -1, ORDER).to_bytes(SIZE, "little")
    texts = [_text(session, group, choice) for choice in range(len(lines))]
    values = finalize(texts, inverse, hashed(texts, workers=1))
    hidden = (
        _unhidden(line.to_bytes(LINE, "little"), v) for line, v in zip(lines, values, strict=True)
    )
    sent = b"".join(each.to_bytes(LINE, "little") for each in hidden)
    return multiplied(key, element, 1).tobytes() + sent


def _key(secret: bytes, group: int) -> bytes:
    """A key of this group alone: with one for several, elements of one group read lines of another."""
    return derived_key(secret, wire.join(FORMAT, [PURPOSE, group.to_bytes(4, "big")]))


def _unhidden(line: bytes, value: bytes) -> int:
    return int.from_bytes(line, "little") ^ int.from_bytes(value[:LINE], "little")


def _mask(secret: bytes, group: int) -> int:
    digest = hashlib.sha256(wire.join(FORMAT, [b"mask", secret, group.to_bytes(4, "big")])).digest()
    return int.from_bytes(digest[:LINE], "little")


def _text(session: bytes, group: int, choice: int) -> bytes:
    return wire.join(FORMAT, [session, group.to_bytes(4, "big"), choice.to_bytes(2, "big")])


def _units(value: float) -> int:
    return round(value / UNIT)
