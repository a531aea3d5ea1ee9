"""`lab bench query`: questions in SQL, from the text to the released answer."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd

from federated.bench.measurement import Row, row, timed
from federated.bench.paillier import phe_seconds
from federated.hiding.paillier import KeyAuthority, Paillier
from federated.hiding.protocol import Clear
from federated.queries.desk import Desk
from federated.queries.holdings import Holdings
from lab.tables.contracts import Column, Contract
from secure_agg.keys import PrivateKey, generate


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Questions from SQL to the released answer, tables of rows made before. phe is measured on 20
    values and extrapolated to the counts and sums that the answer shows; ours sends more beside
    them: who is there, vetoes, how sensitive an amount is."""
    parties, few = 5, 10 if quick else 1
    rows: list[Row] = []
    shape: tuple[int, ...] = (100 // few, 50, 20)
    size = 2_000_000 // few
    private, holdings = generate(2048), _holdings(parties, size, shape)
    text = "select count(*), sum(paid) from market group by a, b, c"
    cells = int(np.prod(shape))
    hidden, answers = _question(holdings, text, private)
    clear, _ = _question(holdings, text, None)
    what = f"{parties} x {size:,} rows, {cells:,} cells, 2048 bits"
    phe = phe_seconds(private, 2 * cells)
    rows.append(row(what, hidden, "phe value by value", phe, f"{phe / hidden:.0f} x faster"))
    rows.append(row(what, hidden, "in the clear", clear, f"{hidden / clear:.1f} x"))
    rows.append((f"{what}: shown", f"{answers:,} cells", "", f"{answers / cells:.1%}"))
    private, size, shape = generate(3072), 1_000_000 // few, (100, 10)
    holdings = _holdings(parties, size, shape)
    text = "select count(*), sum(paid) from market group by a, b"
    hidden, _ = _question(holdings, text, private)
    clear, _ = _question(holdings, text, None)
    what = f"{parties} x {size:,} rows, 1,000 cells, 3072 bits"
    rows.append(row(what, hidden, "in the clear", clear, f"{hidden / clear:.1f} x"))
    one = _holdings(1, size, shape)
    query_table = one.parties[0].query_table
    assert query_table is not None
    table = query_table.frame.memory_usage().sum() / 1e6
    tracemalloc.start()
    _question(one, text, None)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    rows.append(
        (f"{size:,} rows: a party's peak", f"{peak:.0f} MB", f"its table: {table:.0f} MB", "")
    )
    return rows


def _holdings(parties: int, size: int, shape: tuple[int, ...]) -> Holdings:
    """Parties with so many rows each, evenly over the cells of a table of this shape."""
    rng, names = np.random.default_rng(1), "abc"[: len(shape)]
    columns = {
        name: Column(type="integer", minimum=0, maximum=n - 1)
        for name, n in zip(names, shape, strict=True)
    }
    contract = Contract(name="market", columns={**columns, "paid": Column(type="number")})
    tables = {}
    for k in range(parties):
        table = {c: rng.integers(0, n, size) for c, n in zip(names, shape, strict=True)}
        tables[f"insurer {k + 1}"] = pd.DataFrame({**table, "paid": rng.gamma(2.0, 500.0, size)})
    return Holdings.of(tables, contract)


def _question(holdings: Holdings, text: str, private: PrivateKey | None) -> tuple[float, int]:
    """(seconds, cells shown) of a question under this key, or in the clear without one."""
    protection = Paillier(KeyAuthority(private)) if private is not None else Clear()
    with Desk.simulated(holdings, protection) as desk:
        seconds, answer = timed(lambda: desk.ask(text))
    return seconds, answer.attrs["cells"] - answer.attrs["hidden"]
