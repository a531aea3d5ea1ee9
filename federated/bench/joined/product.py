"""`lab bench product`: shares of a product of two matrices, each known to one side."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

import gmpy2
import numpy as np

from federated.bench.measurement import Row, row
from secure_agg import encrypted_product, triples
from secure_agg.arithmetic.ring import Digits, Integers, Ring
from secure_agg.encrypted_product import Packing
from secure_agg.keys import PublicKey, generate
from secure_agg.triples import ProductTerms

RING = Ring(128)
#: Bits of a number with its sign: what float64 holds.
BITS = 53


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Numbers of 53 bits, all steps of dealer and both sides one after another, checked against
    whole numbers (Paillier) or float64 (triples). Multiplications: those modulo n**2 that raising
    needs, at the time one takes by itself here; encrypting makes blinding factors in two processes."""
    persons, columns = (2_000 if quick else 20_000), 10
    encrypt, raised, multiply = _by_paillier(persons, columns)
    size = f"{persons:,} persons, {columns} x {columns} columns"
    share = f"{100 * multiply / raised:.0f} % of it"
    rows = [
        row(f"{size}, Paillier 2048: raising", raised, "its multiplications", multiply, share),
        (f"the same, encrypting {persons:,} rows and opening", f"{encrypt:.1f} s", "", ""),
    ]
    many, wide = (100_000 if quick else 1_000_000), 20
    dealt, sides, plain = _by_triples(many, wide)
    size = f"{many:,} persons, {wide} x {wide} columns"
    ratio = f"{(dealt + sides) / plain:.0f} x"
    rows.append(row(f"{size}, triples", dealt + sides, "float64 in the clear", plain, ratio))
    rows.append((f"the same, {many:,} persons, the dealer alone", f"{dealt:.1f} s", "", ""))
    slow = (encrypt + raised) / persons * many * wide / columns
    ratio = f"{slow / (dealt + sides):,.0f} x faster"
    rows.append(row("triples", dealt + sides, "Paillier at that size, at least", slow, ratio))
    return rows


def _integers(rows: int, columns: int) -> Integers:
    rng, most = np.random.default_rng(rows + columns), 2 ** (BITS - 1)
    return np.asarray(rng.integers(-most + 1, most, (rows, columns)).astype(object))


def _by_paillier(persons: int, columns: int) -> tuple[float, float, float]:
    """Seconds of encrypting and opening, of raising, and of the multiplications that raising needs."""
    left, right, key = _integers(persons, columns), _integers(persons, columns), generate(2048)
    packing = Packing(ProductTerms("bench", persons, columns, columns, RING), (BITS, BITS), 2048)
    start = time.perf_counter()
    message = encrypted_product.encrypted_rows(packing, key.public, left)
    middle = time.perf_counter()
    answer, theirs = encrypted_product.raised(packing, key.public, right, message)
    end = time.perf_counter()
    ours = encrypted_product.opened(packing, key, left, answer)
    opening = time.perf_counter() - end
    if not (RING.signed(ours + theirs) == left.T @ right).all():
        raise AssertionError("the shares do not add up to the product")
    needed = encrypted_product.multiplications(persons, BITS) * columns * packing.groups
    return middle - start + opening, end - middle, needed * _multiplication(key.public)


def _multiplication(public: PublicKey, count: int = 2000) -> float:
    """Seconds of one modulo n**2."""
    numbers = [gmpy2.mpz(secrets.randbelow(int(public.n_squared))) for _ in range(count)]
    total, start = numbers[0], time.perf_counter()
    for number in numbers:
        total = total * number % public.n_squared
    return (time.perf_counter() - start) / count


def _by_triples(persons: int, columns: int) -> tuple[float, float, float]:
    """Seconds of the dealer, of both sides, and of the same product in float64."""
    rng = np.random.default_rng(1)
    left, right = (rng.normal(size=(persons, columns)) for _ in range(2))
    terms = ProductTerms("bench", persons, columns, columns, RING)
    ours, theirs = secrets.token_bytes(32), secrets.token_bytes(32)
    start = time.perf_counter()
    plain = left.T @ right
    clear = time.perf_counter() - start
    start = time.perf_counter()
    dealt = triples.deal(terms, ours, theirs)
    middle = time.perf_counter()
    digits: list[Digits] = [RING.encoded(m, 2.0**12, 2.0**-40) for m in (left, right)]
    to_right = triples.masked(terms, ours, "left", digits[0])
    to_left = triples.masked(terms, theirs, "right", digits[1])
    total = triples.left_share(terms, ours, digits[0], to_left)
    total = total + triples.right_share(terms, theirs, to_right, dealt)
    end = time.perf_counter()
    numbers = RING.signed(total).astype(np.float64) * 2.0**-80
    if np.abs(numbers - plain).max() > 1e-6 * persons:
        raise AssertionError("the shares do not add up to the product")
    return middle - start, end - middle, clear
