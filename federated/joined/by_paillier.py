"""Products between two sides with Paillier, without anybody who deals randomness.

    1  the side of fewer columns, of each product   its rows, encrypted under a key of its own
    2  the other side                               powers of them, hidden by masks
    3  the first                                    opens its share

Curves are made before, row by row, in two turns of their own. A share of a curve is any number of the
ring, so that products with it are of longer numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, cast

from federated.joined.letters import LETTER
from federated.joined.product import (
    Product,
    Products,
    Spine,
    Talking,
    groups_of,
    placed,
    with_shares,
)
from federated.joined.sums.factors import CurvedSum, Half, JoinedSum
from secure_agg import encrypted_product, encrypted_sums, wire
from secure_agg.arithmetic.ring import Digits, Integers
from secure_agg.encrypted_product import Packing, Vectors
from secure_agg.encrypted_sums import Blocks
from secure_agg.errors import MalformedMessage
from secure_agg.keys import PrivateKey, PublicKey
from secure_agg.triples import ProductTerms

ENCRYPTED = b"SAGGJE01"
Key = Callable[[], PrivateKey]


def by_paillier(layout: Products, half: Half, spine: Spine, key: Key, key_bits: int) -> Talking:
    """With Paillier. key: this side's own, made where it encrypts; in each product the side of fewer
    columns does."""
    own = layout.on_spine(groups_of(layout.total, half), spine)
    if (curves := layout.curves) is not None:
        vectors = Vectors(curves, (layout.total.form.bits, layout.total.form.bits), key_bits)
        curved = yield from _curves(layout.total, vectors, half, spine, key)
        own = with_shares(layout.total, own, curved)
    matrices, ring = layout.matrices(half.role, own), layout.ring
    ways = [_way(layout.total, product, key, key_bits) for product in layout.products]
    encrypts = [way.left == (half.role == "insurer") for way in ways]
    numbers: list[Any] = [
        ring.signed(ring.integers(m)) if ours or not way.adds else m[..., 0]
        for m, way, ours in zip(matrices, ways, encrypts, strict=True)
    ]
    rows = [
        way.encrypted(n, half.kept) if ours else b""
        for way, n, ours in zip(ways, numbers, encrypts, strict=True)
    ]
    heard = yield wire.join(ENCRYPTED, [_modulus(key, key_bits) if any(encrypts) else b"", *rows])
    theirs, *asked = wire.split(ENCRYPTED, heard, 1 + len(ways))
    answers, shares = [], []
    for way, n, ours, message in zip(ways, numbers, encrypts, asked, strict=True):
        answer, share = (b"", n) if ours else way.evaluated(theirs, n, message)
        answers.append(answer)
        shares.append(share)
    heard = yield wire.join(LETTER, answers)
    messages = wire.split(LETTER, heard, len(ways))
    made = [
        way.opened(n, message) if ours else share
        for way, n, ours, message, share in zip(
            ways, numbers, encrypts, messages, shares, strict=True
        )
    ]
    turned = [m if way.left else m.T for way, m in zip(ways, made, strict=True)]
    return layout.shared(turned, own)


def _curves(
    total: JoinedSum, vectors: Vectors, half: Half, spine: Spine, key: Key
) -> Generator[bytes, bytes, Digits]:
    """A side's share of each row's curves, (spine's rows, curves): the insurer's side encrypts."""
    ring, curved = total.form.ring, cast(CurvedSum, total)
    if half.role == "insurer":
        factors = curved.left_curves(half)
        matrix = placed(factors.reshape(len(factors), -1), spine, total.form)
        numbers = ring.signed(ring.integers(matrix))
        message = encrypted_product.encrypted_vectors(vectors, key().public, numbers)
        yield wire.join(ENCRYPTED, [_modulus(key, vectors.key_bits), message])
        heard = yield wire.join(LETTER, [])
        (answer,) = wire.split(LETTER, heard, 1)
        return ring.from_integers(encrypted_product.opened_vectors(vectors, key(), numbers, answer))
    matrix = placed(curved.right_curves(half), spine, total.form)
    heard = yield wire.join(LETTER, [])
    modulus, message = wire.split(ENCRYPTED, heard, 2)
    public, numbers = _public(modulus, vectors.key_bits), ring.signed(ring.integers(matrix))
    answer, share = encrypted_product.raised_vectors(vectors, public, numbers, message)
    wire.split(LETTER, (yield wire.join(LETTER, [answer])), 0)
    return ring.from_integers(share)


def encrypted_bytes(layout: Products, key_bits: int) -> tuple[int, int]:
    """The largest letters of the insurer's side and of the fund's, about."""
    ciphertext, curves, sizes = key_bits // 4, layout.curves, [0, 0]
    for product in layout.products:
        left, how = _packed(layout.total, product, key_bits)
        sizes[not left] += how.ciphertexts * ciphertext
    if curves is not None:
        vectors = Vectors(curves, (layout.total.form.bits, layout.total.form.bits), key_bits)
        sizes[0] = max(sizes[0], vectors.ciphertexts * ciphertext)
    return sizes[0], sizes[1]


def _modulus(key: Key, key_bits: int) -> bytes:
    return int(key().public.n).to_bytes(key_bits // 8, "big")


def _public(modulus: bytes, key_bits: int) -> PublicKey:
    public = PublicKey(wire.number(modulus))
    if public.bits != key_bits:
        raise MalformedMessage("the other side's key is of another length than the plan's")
    return public


@dataclass(frozen=True)
class _Way:
    """How one product is made with Paillier. left: whether the insurer's side encrypts; how: its rows'
    packing, of sums where the fund's numbers are 0 or 1; key: this side's own."""

    left: bool
    how: Packing | Blocks
    key: Key

    @property
    def adds(self) -> bool:
        return isinstance(self.how, Blocks)

    def encrypted(self, numbers: Integers, kept: dict[bytes, bytes]) -> bytes:
        public = self.key().public
        if isinstance(self.how, Blocks):
            return encrypted_sums.encrypted_rows(self.how, public, numbers, kept=kept)
        return encrypted_product.encrypted_rows(self.how, public, numbers)

    def evaluated(
        self, modulus: bytes, numbers: Integers, message: bytes
    ) -> tuple[bytes, Integers]:
        public = _public(modulus, self.how.key_bits)
        if isinstance(self.how, Blocks):
            return encrypted_sums.added(self.how, public, numbers, message)
        return encrypted_product.raised(self.how, public, numbers, message)

    def opened(self, numbers: Integers, message: bytes) -> Integers:
        if isinstance(self.how, Blocks):
            return encrypted_sums.opened(self.how, self.key(), message)
        return encrypted_product.opened(self.how, self.key(), numbers, message)


def _way(total: JoinedSum, product: Product, key: Key, key_bits: int) -> _Way:
    return _Way(*_packed(total, product, key_bits), key)


def _packed(total: JoinedSum, product: Product, key_bits: int) -> tuple[bool, Packing | Blocks]:
    """Whether the insurer's side encrypts, and how. The side of fewer columns does; of indicators, the
    insurer's. It stands on the left of a packing."""
    (ours, theirs, terms), form = product, total.form
    left = form.indicators or terms.left <= terms.right
    if form.indicators:
        return left, Blocks(terms, form.bits_over(terms.rows), key_bits, form.encrypted)
    share = terms.ring.bits + 1  # with its sign
    bits = [share if set(groups) & set(total.shared) else form.bits for groups in (ours, theirs)]
    if not left:
        terms = ProductTerms(terms.query, terms.rows, terms.right, terms.left, terms.ring)
        bits.reverse()
    return left, Packing(terms, (bits[0], bits[1]), key_bits)
