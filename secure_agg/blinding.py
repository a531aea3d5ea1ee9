"""The random factor that hides a plaintext, made fast.

An encryption of m is (1 + n*m) * b mod n**2, where b is a random n-th power. Following Damgård,
Jurik and Nielsen (Int. J. Inf. Secur. 9, 2010), b = H**r with H = h**n, h = -x**2 for a
random x, and r uniform in an interval of at least 2**(bits of n / 2): half as long as n. That
exponents of half the length can't be told from full ones is shown from the hardness of factoring
(Goldreich and Rosen, "On the security of modular exponentiation", J. Cryptology 16, 2003).
Anything shorter would rest on a further assumption and is not done here.

H stays the same, so H**r is a product of table entries, one for every window of w bits of r
(Brickell, Gordon, McCurley and Wilson, EUROCRYPT 1992). An entry t is kept as two numbers below
n, its residue a = t mod n and its part l with t = a * (1 + n*l) mod n**2: the l's merely add up,
and multiplying by an a is half the work of multiplying by a t. No power is ever computed per
ciphertext.

Tables are public (they follow from n and x), cached for each modulus and replaced by a
bigger one when more is asked for. The exponents come from `secrets` for every single ciphertext,
so neither a thread nor a fork can see one twice. A big job also starts helper processes, since
Python's threads do not multiply side by side. A helper runs this very file, is told the public
modulus, and writes blinding factors to its standard output. (A fork would be cheaper to start but
is not safe in a process with threads, and `multiprocessing` imports the caller's main module.)
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import subprocess
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import gmpy2
from gmpy2 import mpz

log = logging.getLogger(__name__)

LARGEST_WINDOW = 12
LARGEST_TABLE_BYTES = 2**27
TABLES_KEPT = 2
BUILD_COST = 2  # making a table entry costs about twice a multiplication by one
CHUNK = 128  # blinding factors made side by side: so many, and a row, fit a processor's cache
HELPER_PAYS_AT = 4e11  # number of limb products, roughly, that takes a quarter of a second


@dataclass(frozen=True)
class Table:
    """H**(d * 2**(w*i)) for every window i and every digit d of w bits, each as a * (1 + n*l).

    rows: for every window the a's and the l's, each in the order of d
    """

    n: mpz
    window: int
    rows: list[tuple[list[mpz], list[mpz]]]


def best_window(bits: int, count: int, present: int = 0) -> int:
    """Bits of the window that makes `count` blinding factors cheapest, a new table included.

    present: window of a table that is there already and costs nothing; 0 if there is none
    """

    def cost(window: int) -> int:
        entries = 0 if window == present else 2**window
        return (count + BUILD_COST * entries) * windows(bits, window)

    def fits(window: int) -> bool:
        entries = windows(bits, window) * 2**window
        return bool(entries * bits // 4 <= LARGEST_TABLE_BYTES)

    return min(filter(fits, range(present or 1, LARGEST_WINDOW + 1)), key=cost)


def windows(bits: int, window: int) -> int:
    """How many windows cover an exponent of half the bits of n."""
    return -(-bits // (2 * window))


def build(n: mpz, h: mpz, window: int) -> Table:
    """The table of H = h**n mod n**2."""
    lifted, residue = gmpy2.f_divmod(gmpy2.powmod(h, n, n * n), n)
    inverse = gmpy2.invert(residue, n)
    part = lifted * inverse % n
    rows = []
    for _ in range(windows(n.bit_length(), window)):
        # Powers of one entry: the quotient by n of each product, over the product, joins the part.
        residues, parts, back = [mpz(1)], [mpz(0)], mpz(1)
        for _ in range(2**window):
            quotient, product = gmpy2.f_divmod(residues[-1] * residue, n)
            back = back * inverse % n
            residues.append(product)
            parts.append((parts[-1] + part + quotient * back) % n)
        residue, part, inverse = residues.pop(), parts.pop(), back  # where the next row starts
        rows.append((residues, parts))
    return Table(n, window, rows)


def draw(table: Table, count: int) -> list[mpz]:
    """Fresh blinding factors, numbers below n**2, each with an exponent that is used once."""
    return powers(table, [array("H", secrets.token_bytes(2 * count)) for _ in table.rows])


def powers(table: Table, digits: Sequence[Sequence[int]]) -> list[mpz]:
    """H**r mod n**2 for every exponent r.

    digits: for every window of the table, one integer for each exponent; of these the lowest w
        bits count, as bits i*w to i*w + w - 1 of r for window i
    """
    n, n_squared, mask = table.n, table.n * table.n, 2**table.window - 1
    products = [mpz(1)] * len(digits[0])
    sums = [mpz(0)] * len(digits[0])
    for (residues, parts), column in zip(table.rows, digits, strict=True):
        at = [digit & mask for digit in column]
        products = [x * residues[d] % n_squared for x, d in zip(products, at, strict=True)]
        sums = [x + parts[d] for x, d in zip(sums, at, strict=True)]
    return [with_part(x, part, n, n_squared) for x, part in zip(products, sums, strict=True)]


def with_part(value: mpz, part: mpz, n: mpz, n_squared: mpz) -> mpz:
    """value * (1 + n*part) mod n**2."""
    result = value + n * (value % n * (part % n) % n)
    return result - n_squared if result >= n_squared else result


@dataclass
class _Kept:
    """The table of one modulus, and how often it was used since it was built."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    table: Table | None = None
    used: int = 0


class _Cache:
    """The tables of this process: one for each modulus, the least recently used dropped."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: OrderedDict[mpz, _Kept] = OrderedDict()

    def table(self, n: mpz, count: int) -> Table:
        """A table for `count` more factors, built by one thread while others that need it wait."""
        with self.lock:
            kept = self.kept.setdefault(n, _Kept())
            self.kept.move_to_end(n)
            while len(self.kept) > TABLES_KEPT:
                self.kept.popitem(last=False)
        with kept.lock:
            kept.used += count
            window = best_window(n.bit_length(), kept.used, kept.table.window if kept.table else 0)
            if kept.table is None or window > kept.table.window:
                kept.table, kept.used = build(n, random_base(n), window), count
            return kept.table


_cache = _Cache()


def _forget_locks() -> None:
    """A fork may copy a lock that another thread holds: the child starts with a new cache."""
    global _cache
    _cache = _Cache()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


def random_base(n: mpz) -> mpz:
    """h = -x**2 mod n for a random x prime to n."""
    while True:
        x = mpz(secrets.randbelow(int(n)))
        if gmpy2.gcd(x, n) == 1:
            return -x * x % n


def factors(n: mpz, count: int, workers: int) -> Generator[mpz, None, None]:
    """`count` fresh blinding factors, in no particular order, made by up to `workers` processes.

    The caller's thread always works too, and goes on alone should a helper fail.
    """
    bits = n.bit_length()
    effort = count * windows(bits, best_window(bits, count)) * bits**2
    share = max(1, min(workers, int(effort / HELPER_PAYS_AT)))
    size = CHUNK if share == 1 else max(1, min(CHUNK, count // (4 * share)))
    ready: queue.SimpleQueue[list[mpz]] = queue.SimpleQueue()
    with contextlib.ExitStack() as helpers:
        for _ in range(share - 1):
            helpers.enter_context(_helper(n, count, share, size, ready))
        table = _cache.table(n, -(-count // share))
        while count > 0:
            try:
                chunk = ready.get_nowait()
            except queue.Empty:
                chunk = draw(table, min(size, count))
            yield from chunk[:count]
            count -= len(chunk)


@contextlib.contextmanager
def _helper(
    n: mpz, count: int, share: int, size: int, ready: queue.SimpleQueue[list[mpz]]
) -> Iterator[None]:
    """A process that puts chunks of blinding factors into `ready` until it is stopped."""
    numbers = [f"{n:x}", str(-(-count // share)), str(-(-count // size)), str(size)]
    try:
        process = subprocess.Popen(  # noqa: S603  our own file and public numbers
            [sys.executable, "-P", __file__, *numbers],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except OSError as error:
        log.warning("no helper process for blinding factors, going on alone: %s", error)
        yield
        return
    source = process.stdout
    assert source is not None
    width = factor_bytes(n)

    def collect() -> None:
        while len(data := source.read(size * width)) == size * width:
            starts = range(0, len(data), width)
            ready.put([mpz.from_bytes(data[at : at + width], "big") for at in starts])

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    try:
        yield
    finally:
        if process.poll():
            log.warning("a helper process for blinding factors ended with %s", process.returncode)
        process.kill()
        process.wait()
        reader.join()
        source.close()


def serve(modulus: str, expected: str, chunks: str, size: str) -> None:
    """What a helper process does: chunks of blinding factors to standard output."""
    n = mpz(modulus, 16)
    width = factor_bytes(n)
    table = build(n, random_base(n), best_window(n.bit_length(), int(expected)))
    with contextlib.suppress(BrokenPipeError):
        for _ in range(int(chunks)):
            chunk = [factor.to_bytes(width, "big") for factor in draw(table, int(size))]
            sys.stdout.buffer.write(b"".join(chunk))
            sys.stdout.buffer.flush()


def factor_bytes(n: mpz) -> int:
    """Bytes of a number below n**2, as ciphertexts travel."""
    size: int = 2 * -(-n.bit_length() // 8)
    return size


if __name__ == "__main__":
    serve(*sys.argv[1:])
