"""`lab bench paillier`: how fast encrypted sums are, against phe, HEU and a bound.

Every figure is a ratio of two measurements in the same run on the same machine. phe is measured on
a few values and extrapolated. HEU (SecretFlow's library in C++) is measured where it is installed.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gmpy2
import numpy as np
from gmpy2 import mpz

from secure_agg import paillier, shares
from secure_agg.arithmetic import blinding
from secure_agg.arithmetic.modexp import secret_powers
from secure_agg.keys import PrivateKey, generate
from secure_agg.packing import Field, Layout

Row = tuple[str, str, str, str]  # what, ours, against, ratio
PARTIES = 5
PHE_VALUES = 20
FORMATS = (("64-bit slots", 2.0**40, 2.0**-20), ("counts < 1e6", 1e6, 1.0))


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Encrypted sums, each with the making of its tables unless it says that they were kept from
    sums before, and the parts of a split key. phe is measured on 20 values and extrapolated; HEU
    (pip install '.[bench]') has its tables made before. Paillier is not the fastest way to add: masks are far faster for long vectors
    (lab bench masks), and so are lattice schemes such as BFV. It needs one message from each
    party, and a total can be opened without the parties."""
    return [*sums(quick), *memory(quick), *parts(quick)]


def sums(quick: bool) -> Iterator[Row]:
    """Five parties add vectors of 100,000 values: encrypt, send, add, decrypt once."""
    count = 5_000 if quick else 100_000
    for bits in (2048, 3072):
        private = generate(bits)
        phe = phe_seconds(private, count)
        for words, largest, resolution in FORMATS:
            layout = Layout((Field(count, largest, resolution),), PARTIES, bits)
            what = f"{PARTIES} x {count:,}, {bits} bits, {words}"
            before = _bound_seconds(private, layout.plaintexts)
            blinding.forget()
            start = _processor_seconds()
            seconds, size = _job(private, layout)
            blinding.forget()  # a helper's time counts once it has ended
            processor = _processor_seconds() - start
            floor = (before + _bound_seconds(private, layout.plaintexts)) / 2
            yield f"{what}: all", *_faster(seconds, phe, "phe value by value")
            if resolution < 1 and importlib.util.find_spec("heu"):
                heu = _child("heu", bits, layout.plaintexts)
                yield f"{what}: all", *_faster(seconds, heu, "HEU, same packing")
            against = f"bare multiplications: {floor:.2f} s"
            yield (
                f"{what}: processor",
                f"{processor:.2f} s",
                against,
                f"{floor / processor:.2f} of bound",
            )
            yield f"{what}: a value", f"{size / count:.1f} bytes", "", ""
            if resolution == 1:
                _job(private, layout)
                seconds, _ = _job(private, layout)
                yield f"{what}: tables kept", *_faster(seconds, phe, "phe value by value")


def memory(quick: bool) -> Iterator[Row]:
    """Peak memory of encrypting and opening a vector, above what stood there before."""
    count = 50_000 if quick else 1_000_000
    above, ciphertexts, helper = (x / 1e6 for x in _child("memory", 2048, count))
    what = f"{count:,} values of 64 bits, 2048 bits: peak memory"
    yield (
        what,
        f"{above:.0f} MB",
        f"ciphertexts alone: {ciphertexts:.0f} MB",
        f"helper {helper:.0f} MB",
    )


def parts(quick: bool) -> Iterator[Row]:
    """One holder's part of opening a ciphertext, against the usual way and the whole key."""
    for bits in (2048, 3072):
        yield from _parts(bits, 16 if quick else 64)


def _parts(bits: int, count: int) -> Iterator[Row]:
    private = generate(bits)
    public = private.public
    split, key_shares = shares.deal(private, ("a", "b", "c"))
    base = mpz(secrets.randbelow(int(public.n))) ** 2 + 1
    ciphertexts = [base ** (k + 1) % public.n_squared for k in range(count)]
    exponent = public.n**2  # as long as n * lambda, modulo which the usual way shares
    usual = _each(lambda: secret_powers(ciphertexts[:4], exponent, public.n_squared), 4)
    whole = _each(lambda: paillier.decrypt_raw(private, ciphertexts, workers=1), count)
    part = _each(lambda: shares.prove_part(key_shares["a"], ciphertexts, b"", workers=1), count)
    holder_parts = {
        h: shares.prove_part(share, ciphertexts, b"") for h, share in key_shares.items()
    }
    combining = _each(
        lambda: shares.open_with(split, ciphertexts, holder_parts, b"", workers=1), count
    )
    what = f"a ciphertext, {bits} bits: a holder's part"
    yield what, *_faster(part, usual, "shares of n * lambda", "ms")
    yield what, *_slower(part, whole, "whole key")
    yield f"a ciphertext, {bits} bits: combining", *_slower(combining, whole, "whole key")


def _job(private: PrivateKey, layout: Layout) -> tuple[float, int]:
    """(seconds, bytes one party sends) of the whole job."""
    public, field = private.public, layout.fields[0]
    generator = np.random.default_rng(1)
    arrays = [generator.integers(0, 1_000_000, field.size).astype(float) for _ in range(PARTIES)]
    with _quiet():
        start = time.perf_counter()
        messages = [paillier.encrypt(public, layout, [array]).to_bytes() for array in arrays]
        batches = [paillier.Batch.from_bytes(data, public, layout) for data in messages]
        (total,) = paillier.decrypt(private, paillier.add(public, batches))
        seconds = time.perf_counter() - start
    if not np.array_equal(total, np.sum(arrays, axis=0)):
        raise AssertionError("the opened total is not the sum")
    return seconds, len(messages[0])


def phe_seconds(private: PrivateKey, count: int) -> float:
    """Seconds phe would need for the same sum, value by value."""
    public, opener = private.public.to_phe(), private.to_phe()
    start = time.process_time()
    totals = [public.encrypt(1.5 * k) for k in range(PHE_VALUES)]
    for _ in range(PARTIES - 1):
        batch = [public.encrypt(1.5 * k) for k in range(PHE_VALUES)]
        totals = [a + b for a, b in zip(totals, batch, strict=True)]
    for total in totals:
        opener.decrypt(total)
    per_value: float = (time.process_time() - start) / PHE_VALUES
    return per_value * count


def _bound_seconds(private: PrivateKey, ciphertexts: int) -> float:
    """Processor seconds of the multiplications and powers alone: no Python, no checks, no wire."""
    n, n_squared, p = private.public.n, private.public.n_squared, private.p
    window = blinding.best_window(private.public.bits, ciphertexts * PARTIES)
    per_factor = blinding.windows(private.public.bits, window)
    x, a = n_squared // 3, n // 5 * 2 + 1
    start = time.process_time()
    for _ in range(5000):
        x = x * a % n_squared
    multiplication = (time.process_time() - start) / 5000
    bases = [x % (p * p) + k for k in range(100)]
    start = time.process_time()
    gmpy2.powmod_base_list(bases, p - 1, p * p)
    power = (time.process_time() - start) / 100
    table = per_factor * 2**window * blinding.BUILD_COST
    factors = ciphertexts * PARTIES * per_factor
    additions = 2 * ciphertexts * (PARTIES - 1)
    seconds: float = (table + factors + additions) * multiplication + 2 * ciphertexts * power
    return seconds


def _child(*arguments: object) -> Any:
    """What this file prints as a process of its own: HEU prints as it works and takes its number
    of threads once, and a process's peak memory is that of all it ever did."""
    process = subprocess.run(  # noqa: S603  our own file
        [sys.executable, "-P", __file__, *map(str, arguments)],
        env={
            **os.environ,
            "YACL_NUM_THREADS": str(os.cpu_count()),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def _memory(bits: int, count: int) -> tuple[int, int, int]:
    """Bytes: the peak above the start, of the ciphertexts, the peak of a helper process."""
    private = generate(bits)
    layout = Layout((Field(count, 2.0**40, 2.0**-20),), PARTIES, bits)
    values = np.arange(count, dtype=float)
    before = _peak("self")
    batch = paillier.encrypt(private.public, layout, [values])
    paillier.decrypt(private, batch)
    above, helpers = _peak("self") - before, blinding.helper_processes()
    helper = max(map(_peak, map(str, helpers)), default=0)
    return above, len(batch.ciphertexts) * private.public.ciphertext_bytes, helper


def _peak(process: str) -> int:
    """Bytes of a process's high-water mark; 0 where the system does not keep one."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _heu(bits: int, ciphertexts: int) -> float:
    """Seconds of the same sum by HEU's ZPaillier, its fastest. Key and tables are made before."""
    from functools import reduce

    from heu import numpy as hnp
    from heu import phe

    kit = hnp.setup(phe.SchemaType.ZPaillier, bits)
    n = 2 * kit.bigint_encoder().decode(kit.public_key().plaintext_bound()) + 1
    plaintexts = [n // (k + 3) for k in range(ciphertexts)]
    encrypt, add, decrypt = kit.encryptor().encrypt, kit.evaluator().add, kit.decryptor().decrypt
    start = time.perf_counter()
    batches = [encrypt(kit.array(np.array(plaintexts, dtype=object))) for _ in range(PARTIES)]
    total = decrypt(reduce(add, batches)).to_numpy()
    seconds = time.perf_counter() - start
    if [int(v) % n for v in total] != [PARTIES * m % n for m in plaintexts]:
        raise AssertionError("HEU's total is not the sum")
    return seconds


def _each(work: Callable[[], object], count: int) -> float:
    """Seconds for one of `count`, the best of three."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best / count


def _faster(ours: float, theirs: float, name: str, unit: str = "s") -> tuple[str, str, str]:
    ratio, scale = theirs / ours, {"s": 1, "ms": 1000}[unit]
    factor = f"{ratio:,.0f}" if ratio >= 20 else f"{ratio:.2f}"
    against = f"{name}: {theirs * scale:,.2f} {unit}"
    return f"{ours * scale:,.2f} {unit}", against, f"{factor} x faster"


def _slower(ours: float, theirs: float, name: str) -> tuple[str, str, str]:
    return f"{1000 * ours:.2f} ms", f"{name}: {1000 * theirs:.2f} ms", f"{ours / theirs:.2f} x"


def _processor_seconds() -> float:
    """Seconds of processor time so far, of this process and of helpers that have ended."""
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@contextmanager
def _quiet() -> Iterator[None]:
    """No garbage collection while the clock runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


if __name__ == "__main__":
    measure = {"heu": _heu, "memory": _memory}[sys.argv[1]]
    print(json.dumps(measure(*map(int, sys.argv[2:]))))
