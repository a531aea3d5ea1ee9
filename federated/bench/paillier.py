"""`lab bench paillier`: sums under encryption."""

from __future__ import annotations

from pathlib import Path

from federated.bench import encryption as bench
from federated.bench.measurement import Row


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Encrypted sums, each with the making of its tables unless it says that they were kept from
    sums before, and the parts of a split key. phe is measured on 20 values and extrapolated; HEU
    (pip install '.[bench]') has its tables made before. Paillier is not the fastest way to add: masks are far faster for long vectors
    (lab bench masks), and so are lattice schemes such as BFV. It needs one message from each
    party, and a total can be opened without the parties."""
    return [*bench.sums(quick), *bench.memory(quick), *bench.parts(quick)]
