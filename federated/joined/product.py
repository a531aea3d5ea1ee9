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

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from federated.joined.factors import CurvedSum, Format, Groups, Half, JoinedSum, Owner, Role, Shares
from federated.joined.statistics import JOINED
from federated.messages import Request
from federated.party import statistics
from lab.errors import ModelError, PeerError
from lab.sums import Floats, Limit, Sums
from secure_agg import encrypted_product, triples, wire
from secure_agg.arithmetic.ring import Digits, Integers, Ring
from secure_agg.encrypted_product import Packing
from secure_agg.errors import MalformedMessage, SecureAggError
from secure_agg.identity import Card, Identity
from secure_agg.keys import PrivateKey, PublicKey
from secure_agg.triples import ProductTerms

#: Numbers of either side below 2**44 on a grid of 2**-44, products of up to 2**30 rows: 89 bits each and
#: 30 bits more.
RING = Ring(208)
NUMBER_BITS = 90
#: A share as float64 numbers, lowest first; sums of them over 2**27 sides are exact.
PIECE_BITS, PIECES = 26, 8
PIECE = Limit(bound=2.0**PIECE_BITS, resolution=1.0)
SHARES = "shares"
LETTER, ENCRYPTED = b"SAGGJL01", b"SAGGJE01"
#: The total of rows that both sides have; every statistic opens it.
BOTH = "both sides' rows"
#: And of those among them whose numbers are within their bounds.
WITHIN = "rows within bounds"


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
    return make(row.read(request.arguments, request.arrays), request.arrays, owner)


@dataclass(frozen=True)
class Products:
    """The products of a statistic that have columns on both sides, with their sizes."""

    query: str
    rows: int
    total: JoinedSum

    @property
    def products(self) -> list[tuple[tuple[str, ...], tuple[str, ...], ProductTerms]]:
        """Groups of the left side, groups of the right side, terms."""
        left, right = self.total.widths()
        found = []
        for at, (ours, theirs) in enumerate(self.total.products()):
            a, b = sum(left[g] for g in ours), sum(right[g] for g in theirs)
            if a and b:
                terms = ProductTerms(f"{self.query}/{at}", self.rows, a, b, RING)
                found.append((ours, theirs, terms))
        return found

    def on_spine(self, groups: Groups, spine: Spine) -> dict[str, Digits]:
        """A side's groups on the rows of the spine."""
        return {name: _placed(columns, spine, self.total.form) for name, columns in groups.items()}

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
        shares = Shares(RING, (left, right), blocks, own)
        values = self.total.combined(shares)
        parts = [values[name].ravel() for name in sorted(values)]
        counts = [shares(g, g).ravel() for g in ("here", "valid")]
        return np.asarray(np.concatenate([*parts, *counts]) % RING.modulus, dtype=object)

    def sizes(self) -> dict[str, int]:
        """The numbers of each array that is opened, in their order."""
        values = self.total.combined(Shares(RING, self.total.widths(), {}, {}))
        return {name: values[name].size for name in sorted(values)} | {BOTH: 1, WITHIN: 1}

    @property
    def curves(self) -> ProductTerms | None:
        """The terms of the curves that are made first, row by row."""
        total = self.total
        if not total.curves:
            return None
        terms = cast(CurvedSum, total).terms
        return ProductTerms(
            f"{self.query}/curves", self.rows, len(total.curves) * terms, terms, RING
        )


def _placed(columns: Floats, spine: Spine, form: Format) -> Digits:
    there = spine.place >= 0
    matrix = np.zeros((spine.size, columns.shape[1], RING.digits), dtype=np.uint16)
    matrix[spine.place[there]] = RING.encoded(columns[there], form.bound, form.resolution)
    return matrix


# Shares as contributions.


def contribution(share: Integers) -> Sums:
    """A share as sums: (numbers, pieces) of whole numbers below 2**26. Of rows it tells nothing."""
    pieces = np.zeros((len(share), PIECES))
    for k in range(PIECES):
        pieces[:, k] = [float(v >> (PIECE_BITS * k) & (2**PIECE_BITS - 1)) for v in share]
    return Sums({SHARES: pieces}, {SHARES: PIECE}, 0)


def joined_total(total: JoinedSum, sums: Sums, query: str = "total") -> Sums:
    """The statistic's total, of the sum of all sides' contributions. Raises :class:`PeerError`."""
    sizes = Products(query, 1, total).sizes()
    pieces = sums[SHARES]
    if pieces.shape != (sum(sizes.values()), PIECES):
        raise PeerError("the sides' shares are not of the form that the question asks for")
    whole = [sum(int(v) << (PIECE_BITS * k) for k, v in enumerate(row)) for row in pieces]
    numbers = RING.signed(np.array(whole, dtype=object) % RING.modulus)
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


def by_triples(layout: Products, half: Half, spine: Spine, secret: bytes) -> Talking:
    """With dealt randomness. secret: what the dealer gave this side; what the fund's side hears ends
    with what was dealt for it."""
    side: triples.Side = "left" if half.role == "insurer" else "right"
    own = layout.on_spine(_groups(layout.total, half), spine)
    if (curves := layout.curves) is not None:
        share = yield from _curves_by_triples(layout, curves, half, spine, secret)
        own = _with_curves(layout.total, own, share)
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
        matrix = _placed(factors.reshape(len(factors), -1), spine, total.form)
        heard = yield wire.join(LETTER, [triples.masked(terms, seed, "left", matrix)])
        (part,), _ = _heard(heard, 1, "left")
        return triples.left_rows(terms, seed, matrix, part)
    matrix = _placed(total.right_curves(half), spine, total.form)
    heard = yield wire.join(LETTER, [triples.masked(terms, seed, "right", matrix)])
    (part,), (dealt,) = _heard(heard, 1, "right")
    return triples.right_rows(terms, seed, part, dealt)


def _heard(heard: bytes, count: int, side: triples.Side) -> tuple[list[bytes], list[bytes]]:
    """The other side's parts of a letter, and what was dealt beside them."""
    parts = wire.split(LETTER, heard, count if side == "left" else 2 * count)
    return parts[:count], parts[count:]


def _groups(total: JoinedSum, half: Half) -> Groups:
    with np.errstate(all="ignore"):  # what is no number is told by `within`
        return total.left(half) if half.role == "insurer" else total.right(half)


def _with_curves(total: JoinedSum, own: dict[str, Digits], share: Digits) -> dict[str, Digits]:
    """A side's groups, with its shares of the curves as columns of their names."""
    columns = {name: share[:, k : k + 1] for k, name in enumerate(total.curves)}
    return cast(CurvedSum, total).with_curves(RING, {**own, **columns})


def deal(layout: Products, turn: int, left_secret: bytes, right_secret: bytes) -> list[bytes]:
    """The dealer's part: what the right side needs beside the letter that it hears in a turn."""
    curves = layout.curves
    if curves is not None and turn == 1:
        seeds = [triples.seed_of(s, curves) for s in (left_secret, right_secret)]
        return [triples.deal_rows(curves, *seeds)]
    products = [terms for _, _, terms in layout.products]
    return [
        triples.deal(t, triples.seed_of(left_secret, t), triples.seed_of(right_secret, t))
        for t in products
    ]


def by_paillier(layout: Products, half: Half, spine: Spine, key: PrivateKey) -> Talking:
    """With Paillier. key: of this side; in each product the side of fewer columns encrypts."""
    if layout.curves is not None:
        raise PeerError("a binomial model over joined sides needs protection.product = 'triples'")
    role = half.role
    own_groups = layout.on_spine(_groups(layout.total, half), spine)
    matrices = layout.matrices(role, own_groups)
    numbers = [RING.signed(RING.integers(m)) for m in matrices]
    products = [terms for _, _, terms in layout.products]
    encrypts = [(t.left <= t.right) == (role == "insurer") for t in products]
    packings = [_packing(t, key.public.bits) for t in products]
    rows = [
        encrypted_product.encrypted_rows(p, key.public, n) if own else b""
        for p, n, own in zip(packings, numbers, encrypts, strict=True)
    ]
    modulus = int(key.public.n).to_bytes(key.public.bits // 8, "big")
    heard = yield wire.join(ENCRYPTED, [modulus, *rows])
    theirs, *asked = wire.split(ENCRYPTED, heard, 1 + len(products))
    public = PublicKey(wire.number(theirs))
    if public.bits != key.public.bits:
        raise MalformedMessage("the other side's key is of another length than the plan's")
    answers, shares = [], []
    for p, n, own, message in zip(packings, numbers, encrypts, asked, strict=True):
        answer, share = (b"", n) if own else encrypted_product.raised(p, public, n, message)
        answers.append(answer)
        shares.append(share)
    heard = yield wire.join(LETTER, answers)
    messages = wire.split(LETTER, heard, len(products))
    made = [
        _turned(
            encrypted_product.opened(p, key, n, message) if own else share, terms, left_encrypts
        )
        for p, n, own, message, share, terms, left_encrypts in zip(
            packings,
            numbers,
            encrypts,
            messages,
            shares,
            products,
            (t.left <= t.right for t in products),
            strict=True,
        )
    ]
    return layout.shared(made, own_groups)


def _packing(terms: ProductTerms, key_bits: int) -> Packing:
    """The side that encrypts stands on the left of a packing."""
    if terms.left > terms.right:
        terms = ProductTerms(terms.query, terms.rows, terms.right, terms.left, terms.ring)
    return Packing(terms, NUMBER_BITS, key_bits)


def _turned(share: Integers, terms: ProductTerms, left_encrypts: bool) -> Integers:
    return share if left_encrypts else share.T


# Letters.


def sealed(identity: Identity, to: Card, purpose: bytes, letter: bytes) -> bytes:
    """A letter for one side's eyes, signed by the one that wrote it."""
    secret = to.seal(purpose, letter)
    return wire.join(LETTER, [secret, identity.sign(purpose, secret)])


def unsealed(identity: Identity, sender: Card, purpose: bytes, data: bytes) -> bytes:
    """Raises :class:`PeerError` that blames the sender, or whoever passed it on."""
    try:
        secret, signature = wire.split(LETTER, data, 2)
        if not sender.signed(purpose, secret, signature):
            raise PeerError(f"coordinator: passed on a letter that {sender.name} did not sign")
        return identity.unseal(purpose, secret)
    except SecureAggError as error:
        raise PeerError(
            f"{sender.name}: its letter is not readable: {error}", sender.name
        ) from None


def purpose(query: str, phase: int, sender: str, receiver: str) -> bytes:
    """What a letter is for; worthless for anything else."""
    return wire.join(
        LETTER, [b"product", query.encode(), bytes([phase]), sender.encode(), receiver.encode()]
    )


def turns(total: JoinedSum, product: str) -> int:
    """Turns in which letters go to and fro, by the way of making products."""
    return {"triples": 1, "paillier": 2}[product] + bool(total.curves)
