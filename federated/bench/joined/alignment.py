"""`lab bench alignment`: who is in two tables, found by both sides without showing either."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from federated.bench.measurement import Row, row
from secure_agg import intersection
from secure_agg.intersection import AlignmentTerms

INSURER, FUND = "insurer", "fund"
QUICK, FULL = 50_000, 1_000_000


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Identifiers of 18 digits at two sides, half of them common, to the result at both: all steps
    of both sides one after another on the cores there are, each way in a process of its own, its
    start and compiling counted. openmined-psi 2.0 (C++, P-256; its client alone learns who is
    common, exact, no commitments, messages not serialised) uses one core. It has wheels for Python
    3.11 to 3.13 and pins a protobuf that Flower does not take, so it is no extra: pip install
    --no-deps openmined-psi."""
    count = QUICK if quick else FULL
    size = f"{count:,} x {count:,}"
    both, hidden = _measured("both", count), _measured("hidden", count)
    rows = []
    if find_spec("private_set_intersection") is None:
        rows.append((f"{size}, both learn", f"{both['seconds']:.1f} s", "openmined-psi: none", ""))
    else:
        theirs = _measured("openmined", count)
        for what, measure in (
            (f"{size}, both learn", "seconds"),
            ("the same, processor time", "processor"),
        ):
            ratio = f"{theirs[measure] / both[measure]:.1f} x faster"
            rows.append(row(what, both[measure], "openmined-psi", theirs[measure], ratio))
        memory = f"openmined-psi: {theirs['peak']:,.0f} MB"
        rows.append(("both sides' peak memory", f"{both['peak']:,.0f} MB", memory, ""))
    ratio = f"{hidden['seconds'] / both['seconds']:.2f} x"
    rows.append(
        row(f"{size}, nobody learns", hidden["seconds"], "both learn", both["seconds"], ratio)
    )
    rows.append(("both sides' peak memory", f"{hidden['peak']:,.0f} MB", "", ""))
    return rows


def _measured(way: str, count: int) -> dict[str, float]:
    """seconds, processor: its seconds, peak: MB, of one way in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, way, str(count)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE)  # noqa: S603  our own file
    measures: dict[str, float] = json.loads(process.stdout)
    return measures


def _tables(count: int) -> tuple[list[str], list[str]]:
    """18 digits each, in an order that tells nothing; half of the persons are in both."""
    generator = np.random.default_rng(1)
    people = generator.permutation(10 * count)[: count + count // 2] + 10**17
    insured, members = people[:count], generator.permutation(people[count // 2 :])[:count]
    return [str(number) for number in insured], [str(number) for number in members]


def _ours(way: str, insured: list[str], members: list[str]) -> int:
    terms = AlignmentTerms((INSURER, FUND), way, len(insured), bytes(32))
    texts = {INSURER: [t.encode() for t in insured], FUND: [t.encode() for t in members]}
    results = intersection.run(terms, texts, {INSURER: b"i" * 32, FUND: b"f" * 32})
    size = results[INSURER].size
    return size if way == "both" else 2 * len(insured) - size


def _openmined(insured: list[str], members: list[str]) -> int:
    import private_set_intersection.python as psi

    client, server = psi.client.CreateWithNewKey(True), psi.server.CreateWithNewKey(True)
    count = len(insured)
    setup = server.CreateSetupMessage(0.0, count, members, psi.DataStructure.RAW)
    response = server.ProcessRequest(client.CreateRequest(insured))
    return len(client.GetIntersection(setup, response))


def _peak() -> float:
    """MB of memory that this process had at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return float("nan")


def _report(way: str, count: int) -> None:
    insured, members = _tables(count)
    work: Callable[[], int] = lambda: (  # noqa: E731
        _openmined(insured, members) if way == "openmined" else _ours(way, insured, members)
    )
    start, processor = time.perf_counter(), time.process_time()
    common = work()
    measures = {
        "seconds": time.perf_counter() - start,
        "processor": time.process_time() - processor,
        "peak": _peak(),
    }
    if common != len(set(insured) & set(members)):
        raise AssertionError(f"{way}: {common} persons in common is wrong")
    print(json.dumps(measures))


if __name__ == "__main__":
    _report(sys.argv[1], int(sys.argv[2]))
