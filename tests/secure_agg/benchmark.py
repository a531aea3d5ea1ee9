"""How fast a sum is, against phe value by value, and against the multiplications it needs.

    python tests/secure_agg/benchmark.py [key bits] [values] [slot bits] [parties]

One line of JSON. phe is measured on a few values and extrapolated.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import gmpy2
import numpy as np
import phe

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from secure_agg import blinding, keys, paillier
from secure_agg.packing import Field, Layout

PHE_VALUES = 20


def phe_seconds(key: keys.PrivateKey, values: int, parties: int) -> float:
    """Seconds phe needs to encrypt, add and decrypt the same sum one value at a time."""
    public, private = key.public.to_phe(), key.to_phe()
    start = time.process_time()
    batches = [[public.encrypt(1.5 * i) for i in range(PHE_VALUES)] for _ in range(parties)]
    totals = batches[0]
    for batch in batches[1:]:
        totals = [a + b for a, b in zip(totals, batch, strict=True)]
    for total in totals:
        private.decrypt(total)
    assert isinstance(totals[0], phe.EncryptedNumber)
    return (time.process_time() - start) / PHE_VALUES * values


def bound_seconds(key: keys.PrivateKey, ciphertexts: int, parties: int) -> float:
    """Processor seconds of the multiplications and powers alone: no Python, no checks, no wire."""
    n, n_squared, p = key.public.n, key.public.n_squared, key.p
    window = blinding.best_window(key.public.bits, ciphertexts * parties)
    per_factor = blinding.windows(key.public.bits, window)
    x, a = n_squared // 3, n // 5 * 2 + 1
    start = time.process_time()
    for _ in range(5000):
        x = x * a % n_squared
    multiplication = (time.process_time() - start) / 5000
    bases = [x % (p * p) + i for i in range(100)]
    start = time.process_time()
    gmpy2.powmod_base_list(bases, p - 1, p * p)
    power = (time.process_time() - start) / 100
    table = per_factor * 2**window * blinding.BUILD_COST
    factors = ciphertexts * parties * per_factor
    additions = 2 * ciphertexts * (parties - 1)
    return (table + factors + additions) * multiplication + 2 * ciphertexts * power


def processor_seconds() -> float:
    """Seconds of processor time so far, of this process and of helpers that have ended."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main(bits: int = 2048, values: int = 100_000, slot_bits: int = 64, parties: int = 5) -> None:
    """Measure one job: every party encrypts, the batches travel, are added and opened."""
    key = keys.generate(bits)
    largest = 2.0 ** (slot_bits - (2 * parties).bit_length())
    layout = Layout((Field(values, largest, 1.0),), parties, bits)
    generator = np.random.default_rng(1)
    arrays = [np.floor(generator.uniform(-1e5, 1e5, values)) for _ in range(parties)]
    before = bound_seconds(key, layout.plaintexts, parties)
    at, used = [time.perf_counter()], processor_seconds()
    batches = [paillier.encrypt(key.public, layout, [array]) for array in arrays]
    at.append(time.perf_counter())
    sent = [batch.to_bytes() for batch in batches]
    batches = [paillier.Batch.from_bytes(data, key.public, layout) for data in sent]
    total = paillier.add(key.public, batches)
    at.append(time.perf_counter())
    (opened,) = paillier.decrypt(key, total)
    at.append(time.perf_counter())
    blinding._cache.close()  # a helper's time counts once it has ended
    used = processor_seconds() - used
    assert (opened == sum(arrays)).all()
    seconds = at[-1] - at[0]
    reference = phe_seconds(key, values, parties)
    bound = (before + bound_seconds(key, layout.plaintexts, parties)) / 2
    print(
        json.dumps(
            {
                "key_bits": bits,
                "slot_bits": layout.widths[0],
                "ciphertexts": layout.plaintexts,
                "seconds": {
                    "encrypt": round(at[1] - at[0], 2),
                    "wire and add": round(at[2] - at[1], 2),
                    "decrypt": round(at[3] - at[2], 2),
                    "all": round(seconds, 2),
                    "processor": round(used, 2),
                    "phe": round(reference),
                    "bound": round(bound, 2),
                },
                "times faster than phe": round(reference / seconds),
                "times faster, in processor time on two idle cores": round(2 * reference / used),
                "share of the bound": round(bound / used, 2),
                "ciphertext bytes a value": round(len(sent[0]) / values, 2),
            }
        )
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
