"""One sum over joined rows, between the two sides of a pair: from columns to shares, and to a total.

    1  each side   columns      what it knows of its rows, on the rows of the spine
    2  both        letters      a product of the two, by dealt randomness or by Paillier: shares of it
    3  each side   shared       what it makes of its shares, as small whole numbers in float64
    4  opener      joined_total adds the shares of all sides modulo the ring: the statistic's total

A share is uniform whatever the rows are, so it enters a sum of parties as any contribution does, and
two sides are enough to hide it. Letters go from side to side, sealed and signed, through somebody who
learns their sizes.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from federated.joined.letters import LETTER
from federated.joined.sums.factors import (
    BOTH,
    WITHIN,
    CurvedSum,
    Format,
    Groups,
    Half,
    JoinedSum,
    Knowledge,
    Owner,
    Role,
    Shares,
    TellingSum,
)
from federated.joined.sums.statistics import JOINED, Answer, alone
from federated.messages import Request
from federated.party import statistics
from lab.errors import ModelError, PeerError
from lab.sums import Floats, Limit, Sums
from secure_agg import triples, wire
from secure_agg.arithmetic.ring import Digits, Integers, Ring
from secure_agg.identity import derived
from secure_agg.triples import ProductTerms

#: A share as float64 numbers, lowest first; sums of them over 2**27 sides are exact.
PIECE_BITS = 26
PIECE = Limit(bound=2.0**PIECE_BITS, resolution=1.0)
SHARES = "shares"


@dataclass(frozen=True)
class Spine:
    """Rows in an order that both sides know. place: (rows,) where each of a side's rows stands, or -1."""

    place: NDArray[np.int64]
    size: int


def joined_sum(request: Request, owner: Owner) -> JoinedSum:
    """What a request asks of joined rows. Raises :class:`PeerError` for what can't be asked of them."""
    make = JOINED.get(request.statistic)
    if make is None:
        raise PeerError(f"'{request.statistic[:60]}' can't be asked of joined parties")
    row = statistics.find(request.statistic)
    return make(row.read(request.text, request.arrays), request.arrays, owner)


def answer_alone(request: Request, owner: Owner, known: Knowledge) -> tuple[Answer | None, Any]:
    """How a side answers a request by itself, if it does, and the arguments."""
    a = statistics.find(request.statistic).read(request.text, request.arrays)
    return alone(request.statistic, a, owner, known), a


def is_alone(request: Request, owner: Owner, known: Knowledge) -> bool:
    """Whether each side answers a request by itself."""
    return answer_alone(request, owner, known)[0] is not None


#: Groups of the left side, groups of the right side, terms.
Product = tuple[tuple[str, ...], tuple[str, ...], ProductTerms]


@dataclass(frozen=True)
class Products:
    """The products of a statistic that have columns on both sides, with their sizes."""

    query: str
    rows: int
    total: JoinedSum

    @property
    def ring(self) -> Ring:
        return self.total.form.ring

    @property
    def tells(self) -> bool:
        """Whether the fund's side tells something before the products."""
        return isinstance(self.total, TellingSum)

    @property
    def products(self) -> list[Product]:
        """Those of which each side has a column."""
        left, right = self.total.widths()
        found = []
        for at, (ours, theirs) in enumerate(self.total.products()):
            a, b = sum(left[g] for g in ours), sum(right[g] for g in theirs)
            if a and b:
                terms = ProductTerms(f"{self.query}/{at}", self.rows, a, b, self.ring)
                found.append((ours, theirs, terms))
        return found

    def on_spine(self, groups: Groups, spine: Spine) -> dict[str, Digits]:
        """A side's groups on the rows of the spine."""
        return {name: placed(columns, spine, self.total.form) for name, columns in groups.items()}

    def matrices(self, role: Role, own: Mapping[str, Digits]) -> list[Digits]:
        """A side's matrix in each product."""
        return [
            np.concatenate([own[g] for g in (ours if role == "insurer" else theirs)], axis=1)
            for ours, theirs, _ in self.products
        ]

    def shared(self, matrices: Sequence[Integers], own: Mapping[str, Digits]) -> Integers:
        """What a side makes of its shares of the products, as one vector."""
        left, right = self.total.widths()
        blocks: dict[tuple[str, str], Integers] = {}
        for (ours, theirs, _), matrix in zip(self.products, matrices, strict=True):
            row = 0
            for g in ours:
                column = 0
                for h in theirs:
                    part = matrix[row : row + left[g], column : column + right[h]]
                    blocks[g, h] = part
                    column += right[h]
                row += left[g]
        shares = Shares(self.ring, (left, right), blocks, own)
        values = self.total.combined(shares)
        parts = [values[name].ravel() for name in sorted(values)]
        counts = [shares(g, g).ravel() for g in ("here", "valid")]
        return np.asarray(np.concatenate([*parts, *counts]) % self.ring.modulus, dtype=object)

    def joined(self, values: Mapping[str, Integers]) -> Integers:
        """Arrays by name as one vector, in the order of :meth:`shared`; what is not named is 0."""
        none = np.zeros(0, dtype=object)
        parts = [
            own if len(own := values.get(name, none).ravel()) else np.zeros(size, dtype=object)
            for name, size in self.sizes().items()
        ]
        return np.concatenate(parts)

    def sizes(self) -> dict[str, int]:
        """The numbers of each array that is opened, in their order."""
        values = self.total.combined(Shares(self.ring, self.total.widths(), {}, {}))
        return {name: values[name].size for name in sorted(values)} | {BOTH: 1, WITHIN: 1}

    @property
    def curves(self) -> ProductTerms | None:
        """The terms of the curves that are made first, row by row."""
        total = self.total
        if not total.curves:
            return None
        terms = cast(CurvedSum, total).terms
        return ProductTerms(
            f"{self.query}/curves", self.rows, len(total.curves) * terms, terms, self.ring
        )


def placed(columns: Floats, spine: Spine, form: Format) -> Digits:
    ring, there = form.ring, spine.place >= 0
    rows, flags = columns[there], columns.dtype == np.bool_  # which are added up as they are
    values = rows[..., None] if flags else ring.encoded(rows, form.bound, form.resolution)
    matrix = np.zeros((spine.size, *values.shape[1:]), dtype=values.dtype)
    matrix[spine.place[there]] = values
    return matrix


# Shares as contributions.


def contribution(share: Integers, ring: Ring) -> Sums:
    """A share as sums: (numbers, pieces) of whole numbers below 2**26. Of rows it tells nothing."""
    pieces = np.zeros((len(share), -(-ring.bits // PIECE_BITS)))
    for k in range(pieces.shape[1]):
        pieces[:, k] = [float(v >> (PIECE_BITS * k) & (2**PIECE_BITS - 1)) for v in share]
    return Sums({SHARES: pieces}, {SHARES: PIECE}, 0)


def joined_total(total: JoinedSum, sums: Sums, query: str = "total") -> Sums:
    """The statistic's total, of the sum of all sides' contributions. Raises :class:`PeerError`."""
    sizes, ring = Products(query, 1, total).sizes(), total.form.ring
    pieces = sums[SHARES]
    if pieces.shape != (sum(sizes.values()), -(-ring.bits // PIECE_BITS)):
        raise PeerError("the sides' shares are not of the form that the question asks for")
    whole = [sum(int(v) << (PIECE_BITS * k) for k, v in enumerate(row)) for row in pieces]
    numbers = ring.signed(np.array(whole, dtype=object) % ring.modulus)
    values, at = {}, 0
    for name, size in sizes.items():
        part = numbers[at : at + size]
        values[name] = np.array([float(v) for v in part]) * total.form.resolution**2
        at += size
    rows, within = (round(float(values.pop(name)[0])) for name in (BOTH, WITHIN))
    if within < rows and "valid" not in values:  # a step of a fit says so itself, and is halved
        raise ModelError(
            f"{rows - within:,} of {rows:,} joined rows have numbers beyond all bounds: cap those far larger than "
            "all others, or take the logarithm of a feature"
        )
    return total.opened(values, rows)


# Between the sides. A side is a generator: it gives a letter and takes the other side's, in turns, and
# returns its share of the sum.

Talking = Generator[bytes, bytes, Integers]


def telling(layout: Products, half: Half, peer: str, talk: Talking) -> Talking:
    """A conversation with peer, with its turn of telling first, where it has one: what the insurer's side adds by
    itself is hidden by a number that the fund's side takes off again."""
    total, ring = layout.total, layout.ring
    if not isinstance(total, TellingSum):
        return (yield from talk)
    insurer = half.role == "insurer"
    own = secrets.token_bytes(32) if insurer else total.told(half, peer)
    heard = yield wire.join(LETTER, [own])
    (theirs,) = wire.split(LETTER, heard, 1)
    if insurer:
        total.hear(half, theirs)
    share = yield from talk
    parts = ring.stream(derived(own if insurer else theirs, b"alone"), (len(share), 1))
    mask = ring.integers(np.concatenate([digits for _, digits in parts]))[:, 0]
    whole = share + layout.joined(total.alone(half)) + mask if insurer else share - mask
    return np.asarray(whole % ring.modulus, dtype=object)


def by_triples(layout: Products, half: Half, spine: Spine, secret: bytes) -> Talking:
    """With dealt randomness. secret: what the dealer gave this side; what the fund's side hears ends
    with what was dealt for it."""
    side: triples.Side = "left" if half.role == "insurer" else "right"
    own = layout.on_spine(groups_of(layout.total, half), spine)
    if (curves := layout.curves) is not None:
        share = yield from _curves_by_triples(layout, curves, half, spine, secret)
        own = with_shares(layout.total, own, share)
    products = [terms for _, _, terms in layout.products]
    matrices = layout.matrices(half.role, own)
    seeds = [triples.seed_of(secret, terms) for terms in products]
    steps = list(zip(products, seeds, matrices, strict=True))
    heard = yield wire.join(LETTER, [triples.masked(t, s, side, m) for t, s, m in steps])
    parts, dealt = _heard(heard, len(products), side)
    if side == "left":
        shares = [
            triples.left_share(t, s, m, part) for (t, s, m), part in zip(steps, parts, strict=True)
        ]
    else:
        shares = [
            triples.right_share(t, s, part, given)
            for (t, s, _), part, given in zip(steps, parts, dealt, strict=True)
        ]
    return layout.shared(shares, own)


def _curves_by_triples(
    layout: Products, terms: ProductTerms, half: Half, spine: Spine, secret: bytes
) -> Generator[bytes, bytes, Digits]:
    """A side's share of each row's curves, (spine's rows, curves)."""
    total, seed = cast(CurvedSum, layout.total), triples.seed_of(secret, terms)
    if half.role == "insurer":
        factors = total.left_curves(half)
        matrix = placed(factors.reshape(len(factors), -1), spine, total.form)
        heard = yield wire.join(LETTER, [triples.masked(terms, seed, "left", matrix)])
        (part,), _ = _heard(heard, 1, "left")
        return triples.left_rows(terms, seed, matrix, part)
    matrix = placed(total.right_curves(half), spine, total.form)
    heard = yield wire.join(LETTER, [triples.masked(terms, seed, "right", matrix)])
    (part,), (dealt,) = _heard(heard, 1, "right")
    return triples.right_rows(terms, seed, part, dealt)


def _heard(heard: bytes, count: int, side: triples.Side) -> tuple[list[bytes], list[bytes]]:
    """The other side's parts of a letter, and what was dealt beside them."""
    parts = wire.split(LETTER, heard, count if side == "left" else 2 * count)
    return parts[:count], parts[count:]


def groups_of(total: JoinedSum, half: Half) -> Groups:
    with np.errstate(all="ignore"):  # what is no number is told by `within`
        return total.left(half) if half.role == "insurer" else total.right(half)


def with_shares(total: JoinedSum, own: dict[str, Digits], share: Digits) -> dict[str, Digits]:
    """A side's groups, with its shares of the curves as columns of their names."""
    columns = {name: share[:, k : k + 1] for k, name in enumerate(total.curves)}
    return cast(CurvedSum, total).with_curves(total.form.ring, {**own, **columns})


def masked_bytes(layout: Products) -> tuple[int, int]:
    """The largest letters of the insurer's side and of the fund's, by dealt randomness, about."""
    sizes = [(terms.left, terms.right) for _, _, terms in layout.products]
    both = [tuple(map(sum, zip(*sizes, strict=True)))] if sizes else []
    if (curves := layout.curves) is not None:
        both.append((curves.left, curves.right))
    each = layout.rows * layout.ring.bits // 8
    left, right = (max((one[side] for one in both), default=0) * each for side in (0, 1))
    return left, right


def deal(layout: Products, turn: int, left_secret: bytes, right_secret: bytes) -> list[bytes]:
    """The dealer's part: what the right side needs beside the letter that it hears in a turn."""
    curves, turn = layout.curves, turn - layout.tells
    if turn == 0:
        return []
    if curves is not None and turn == 1:
        seeds = [triples.seed_of(s, curves) for s in (left_secret, right_secret)]
        return [triples.deal_rows(curves, *seeds)]
    products = [terms for _, _, terms in layout.products]
    return [
        triples.deal(t, triples.seed_of(left_secret, t), triples.seed_of(right_secret, t))
        for t in products
    ]


def turns(total: JoinedSum, product: str) -> int:
    """Turns in which letters go to and fro, by the way of making products."""
    each = {"triples": 1, "paillier": 2}[total.form.made_by(product)]
    return each * (1 + bool(total.curves)) + isinstance(total, TellingSum)
