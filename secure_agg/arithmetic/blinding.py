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
so neither a thread nor a fork can see one twice.

Python's threads do not multiply side by side, so a big job, or many small ones, start helpers. A helper runs
this very file, is told the public modulus, and writes blinding factors to a pipe until nobody has
read from it for a while. What one thread reads from the pipe no other reads. (A fork would be
cheaper to start but is not safe in a process with threads, and `multiprocessing` imports the
caller's main module.)
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import gmpy2
from gmpy2 import mpz

log = logging.getLogger(__name__)

LARGEST_WINDOW = 12
LARGEST_TABLE_BYTES = 2**28
MOST_MODULI = 2  # moduli with a table at the same time
BUILD_COST = 2  # making a table entry costs about twice a multiplication by one
AGAIN = 4  # who encrypts so many will probably encrypt several times as many in all
SERIES = 2000  # about so many in all where many small batches follow each other
CHUNK = 64  # blinding factors made side by side
HELPER_PAYS_AT = 4e11  # bit products per process: about a quarter of a second
PIPE_BYTES = 2**18  # what a helper may have made ahead
IDLE_SECONDS = 120  # after which a helper ends


@dataclass(frozen=True)
class PowerTable:
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
        return table_bytes(bits, window) <= LARGEST_TABLE_BYTES

    return min(filter(fits, range(present or 1, LARGEST_WINDOW + 1)), key=cost)


def table_bytes(bits: int, window: int) -> int:
    """Memory of a table: an a takes the bytes of n, an l about twice as many, being what is left of
    a division, and each some 75 more."""
    entries: int = windows(bits, window) * 2**window
    return entries * (3 * bits // 8 + 150)


def windows(bits: int, window: int) -> int:
    """How many windows cover an exponent of half the bits of n."""
    return -(-bits // (2 * window))


def processes_worth(bits: int, count: int) -> int:
    """How many processes, at least 1, `count` blinding factors are worth."""
    multiplications = count * windows(bits, best_window(bits, count))
    return max(1, int(multiplications * bits**2 / HELPER_PAYS_AT)) if os.name == "posix" else 1


def build(n: mpz, h: mpz, window: int) -> PowerTable:
    """The table of H = h**n mod n**2."""
    quotients, residue = gmpy2.f_divmod(gmpy2.powmod(h, n, n * n), n)
    inverse = gmpy2.invert(residue, n)
    part = quotients * inverse % n
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
    return PowerTable(n, window, rows)


def draw(table: PowerTable, count: int) -> list[mpz]:
    """Fresh blinding factors, numbers below n**2, each with an exponent that is used once."""
    return powers(table, [array("H", secrets.token_bytes(2 * count)) for _ in table.rows])


def powers(table: PowerTable, digits: Sequence[Sequence[int]]) -> list[mpz]:
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


class Helper:
    """A process that makes blinding factors for one modulus ahead of their use."""

    def __init__(self, n: mpz, window: int) -> None:
        """Start it. Raises OSError."""
        self.width = factor_bytes(n)
        self.lock = threading.RLock()
        self.rest = b""
        self.alive = True
        self.process = subprocess.Popen(  # noqa: S603  our own file and public numbers
            [sys.executable, "-P", __file__, f"{n:x}", str(window)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            pipesize=PIPE_BYTES,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert self.process.stdout is not None
        self.pipe = self.process.stdout
        os.set_blocking(self.pipe.fileno(), False)

    def take(self, most: int) -> list[mpz]:
        """At most so many factors, as many as are ready; never waits."""
        if not self.lock.acquire(blocking=False):
            return []
        try:
            if not self.alive:
                return []
            data = self.pipe.read(most * self.width - len(self.rest))
            if data == b"":
                self.stop()
                return []
            data = self.rest + (data or b"")
            end = len(data) - len(data) % self.width
            self.rest = data[end:]
            starts = range(0, end, self.width)
            return [mpz.from_bytes(data[at : at + self.width], "big") for at in starts]
        finally:
            self.lock.release()

    def stop(self) -> None:
        """End the process and forget what it made."""
        with self.lock:
            if self.alive and (self.process.poll() or 0) > 0:
                code = self.process.returncode
                log.warning("a helper process failed with code %s; going on alone", code)
            self.alive = False
            self.process.kill()
            self.process.wait()
            self.pipe.close()

    def disown(self) -> None:
        """Let go of it in a forked child: it is the parent's."""
        self.alive = False
        self.process.returncode = 0
        self.pipe.close()


@dataclass
class _Stock:
    """For one modulus: the table, the helpers, and what was asked of them.

    draws: number of factors drawn from the table since it was built
    recent: number of factors since a helper last ended
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    table: PowerTable | None = None
    draws: int = 0
    recent: int = 0
    helpers: list[Helper] = field(default_factory=list)


class _Cache:
    """What this process keeps for each modulus; the least recently used is dropped."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.stocks: OrderedDict[mpz, _Stock] = OrderedDict()

    def prepared(
        self, n: mpz, count: int, workers: int, series: bool = False
    ) -> tuple[PowerTable, list[Helper]]:
        """A table and helpers for `count` more factors; threads that need the same wait."""
        with self.lock:
            stock = self.stocks.setdefault(n, _Stock())
            self.stocks.move_to_end(n)
            surplus = [
                self.stocks.popitem(last=False)[1] for _ in range(len(self.stocks) - MOST_MODULI)
            ]
        for helper in (helper for other in surplus for helper in other.helpers):
            helper.stop()
        bits = n.bit_length()
        with stock.lock:
            if not all(helper.alive for helper in stock.helpers):
                stock.helpers = [helper for helper in stock.helpers if helper.alive]
                stock.recent = 0
            stock.recent += count
            demand = max(stock.recent, SERIES if series else 0)
            processes = min(workers, processes_worth(bits, demand))
            forecast = AGAIN * -(-count // processes)
            with contextlib.suppress(OSError):
                while len(stock.helpers) < processes - 1:
                    stock.helpers.append(Helper(n, best_window(bits, max(forecast, demand))))
            forecast = max(forecast, stock.draws)  # as many again as were drawn so far
            window = best_window(bits, forecast, stock.table.window if stock.table else 0)
            if stock.table is None or window > stock.table.window:
                stock.table, stock.draws = build(n, random_base(n), window), 0
            return stock.table, stock.helpers[: workers - 1]

    def drew(self, n: mpz, count: int) -> None:
        """Note that so many factors were drawn from the table."""
        with self.lock:
            if n in self.stocks:
                self.stocks[n].draws += count

    def close(self) -> None:
        """Stop every helper."""
        for helper in (helper for stock in self.stocks.values() for helper in stock.helpers):
            helper.stop()


_cache = _Cache()


def _start_over() -> None:
    """Give a forked child a cache of its own: a lock it inherits may be held for ever."""
    global _cache
    for helper in (helper for stock in _cache.stocks.values() for helper in stock.helpers):
        helper.disown()
    _cache = _Cache()


def helper_processes() -> list[int]:
    """Process identifiers of the helpers at work."""
    stocks = _cache.stocks.values()
    return [helper.process.pid for stock in stocks for helper in stock.helpers if helper.alive]


def forget() -> None:
    """Stop all helpers and drop all tables; what comes next begins anew."""
    global _cache
    _cache.close()
    _cache = _Cache()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)
atexit.register(lambda: _cache.close())


def random_base(n: mpz) -> mpz:
    """h = -x**2 mod n for a random x prime to n."""
    while True:
        x = mpz(secrets.randbelow(int(n)))
        if gmpy2.gcd(x, n) == 1:
            return -x * x % n


def factors(n: mpz, count: int, workers: int, series: bool = False) -> Generator[mpz, None, None]:
    """`count` fresh blinding factors, in no particular order, made by up to `workers` processes.

    The caller's thread always works too, and goes on alone should a helper fail.
    """
    table, helpers = _cache.prepared(n, count, workers, series)
    while count > 0:
        chunk = next(filter(None, (helper.take(count) for helper in helpers)), None)
        if chunk is None:
            chunk = draw(table, min(CHUNK, count))
            _cache.drew(n, len(chunk))
        yield from chunk
        count -= len(chunk)


def serve(modulus: str, window: str) -> None:
    """What a helper process does: blinding factors to standard output until nobody reads."""
    n = mpz(modulus, 16)
    width = factor_bytes(n)
    table = build(n, random_base(n), int(window))
    with contextlib.suppress(BrokenPipeError):
        while True:
            chunk = b"".join(factor.to_bytes(width, "big") for factor in draw(table, CHUNK))
            signal.alarm(IDLE_SECONDS)  # ends this process if the write takes longer
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()
            signal.alarm(0)


def factor_bytes(n: mpz) -> int:
    """Bytes of a number below n**2, as ciphertexts travel."""
    size: int = 2 * -(-n.bit_length() // 8)
    return size


if __name__ == "__main__":
    serve(*sys.argv[1:])
