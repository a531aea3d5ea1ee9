"""Peak memory: a million values take what is in flight, and nothing besides grows with them.

Run as a program, this file is the process that is measured. Its peak is the high-water mark that
Linux keeps for the memory it has: `ru_maxrss` would begin with the peak of whoever started it.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gmpy2 import mpz

from secure_agg.arithmetic import blinding
from secure_agg.arithmetic.lanes import PIECE, apply_streams, vector_lanes
from secure_agg.keys import PrivateKey
from secure_agg.packing import Field, Layout
from secure_agg.paillier import Batch, add, decrypt, encrypt
from tests.secure_agg.conftest import in_a_child

COUNT = 1_000_000
LAYOUT = Layout((Field(COUNT, 999_999.0, 1.0),), 3, 2048)  # slots of 23 bits
POINTER = 8
TABLE_BYTES = blinding.table_bytes(2048, blinding.best_window(2048, COUNT))
# Measured: at most 1.5 MB, for the 64 numbers a thread works on, its stack, further lists of
# references, and pages that are not full.
SLACK = 3 * 2**20


def main() -> None:
    """Everything that is done to a million counts; prints by how much each step raised the peak."""
    private = PrivateKey(*(int(number, 16) for number in sys.argv[1:]))
    public = private.public
    values = np.random.default_rng(1).integers(0, COUNT, COUNT)
    decrypt(private, encrypt(public, Layout((Field(1, 1.0, 1.0),), 3, 2048), [[1]]))  # imports
    raised: dict[str, int] = {}
    at_first = _now("VmRSS")
    highest = 0

    def step(name: str, act: Callable[[], Any]) -> Any:
        nonlocal highest
        ctypes.CDLL(None).malloc_trim(0)  # or memory that is free already is taken unnoticed
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is held
        before = _now("VmRSS")
        result = act()
        highest = max(highest, _now("VmHWM"))
        raised[name] = _now("VmHWM") - before
        return result

    factors = blinding.factors(public.n, LAYOUT.plaintexts, workers=2)
    step("table", lambda: next(factors))
    one = step("encrypt", lambda: encrypt(public, LAYOUT, [values]))
    data = step("to_bytes", one.to_bytes)
    two = step("from_bytes", lambda: Batch.from_bytes(data, public, LAYOUT))
    total = step("add", lambda: add(public, [one, two]))
    (opened,) = step("decrypt", lambda: decrypt(private, total))
    raised["all"] = highest - at_first
    print(json.dumps({"raised": raised, "right": bool((opened == 2 * values).all())}))


def _now(what: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark that Linux keeps")
def test_a_million_counts_take_their_ciphertexts_their_arrays_and_the_table(private):
    result = in_a_child(__file__, private)
    assert result["right"]
    array, flags = 8 * COUNT, COUNT
    plaintexts, ciphertexts = (LAYOUT.plaintexts * _held(size) for size in (256, 512))
    data = LAYOUT.plaintexts * 512
    pieces = LAYOUT.plaintexts * (sys.getsizeof(bytes(512)) + POINTER)
    needed = {
        "table": TABLE_BYTES,
        # While the values are checked: a copy, their absolute values, which are inside (twice).
        "encrypt": max(2 * array + 2 * flags, array + ciphertexts),
        "to_bytes": pieces + data,
        "from_bytes": ciphertexts,
        "add": ciphertexts,
        "decrypt": plaintexts + array,
        "all": result["raised"]["table"] + 3 * ciphertexts + data + plaintexts + array,
    }
    assert result["raised"].keys() == needed.keys()
    beyond = {name: result["raised"][name] - needed[name] for name in needed}
    assert {name: size for name, size in beyond.items() if size > SLACK} == {}


def _held(size: int) -> int:
    """Bytes that a list of numbers of so many bytes takes for each."""
    return sys.getsizeof(mpz.from_bytes(b"\xff" * size, "big")) + POINTER


def test_streams_are_applied_to_a_million_lanes_without_a_second_vector():
    fields = (Field(COUNT, 1e6, 1.0),)
    vector = np.arange(vector_lanes(fields, 5), dtype=np.uint64)
    streams = [(bytes([index]) * 32, index % 2 == 0) for index in range(5)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        apply_streams(vector, streams, fields, 5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A piece of a stream, and the zeros it is made of.
    assert 2 * 8 * PIECE <= peak - before < 2 * 8 * PIECE + 64 * 2**10 < vector.nbytes / 10
    assert (vector != np.arange(len(vector), dtype=np.uint64)).mean() > 0.999
    apply_streams(vector, [(key, not add) for key, add in streams], fields, 5)
    assert (vector == np.arange(len(vector), dtype=np.uint64)).all()


if __name__ == "__main__":
    main()
