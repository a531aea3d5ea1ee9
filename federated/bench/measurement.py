"""How the benchmarks take time, and the rows of figures that they give."""

from __future__ import annotations

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
