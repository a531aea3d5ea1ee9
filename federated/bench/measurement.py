"""How the benchmarks take time, and the rows of figures that they give."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

Result = TypeVar("Result")

#: What was measured, ours, what it is held against, the ratio; as text.
Row = tuple[str, str, str, str]


def timed(work: Callable[[], Result], times: int = 1) -> tuple[float, Result]:
    """(median seconds, last result) of so many runs of ``work``, at least one."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return median(seconds), result


def row(what: str, ours: float, name: str, theirs: float, ratio: str) -> Row:
    """Our seconds against those of ``name``, and the ratio as the caller words it."""
    return what, f"{ours:.2f} s", f"{name}: {theirs:,.2f} s", ratio


def processor_timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """(seconds of processor time of this process, result)."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def processor_row(what: str, ours: float, name: str, theirs: float) -> Row:
    """Our processor time against that of ``name``."""
    return what, f"{ours:.2f} s", f"{name}: {theirs:.2f} s", f"{ours / theirs:.2f} x"


def busy() -> list[Row]:
    """A row that says so where others use this machine: figures are then not to be trusted."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < cores / 4:
        return []
    words = f"load {load:.1f} on {cores} cores before it began"
    return [("other work on this machine", words, "measure again when it is idle", "")]
