"""`lab bench link`: claims that more than one payer paid, at night and one by one at the desk."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from federated.bench.measurement import Row, row, timed
from federated.deployment.enrolment import new_identity
from federated.link.charter import LinkCharter
from federated.link.desk_folder import read_desk
from federated.link.night import desk_of
from federated.link.ring import COORDINATOR
from federated.link.service import asked
from lab.records import parse

PAYERS = ("public", "insurer-1", "insurer-2")
QUICK, FULL = 20_000, 1_000_000
ASKS = 60
COLUMNS = ["invoice", "provider", "admission_day", "claimed"]
LIMIT_SECONDS = 1.0
PATIENCE_SECONDS = 120.0


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Three payers' invoices by one exact key, one in a thousand at two of them. At night: reading,
    hashing, all steps of all payers and the coordinator one after another on the cores there are, the
    lists for the desk; twice the keys or grids take twice as long. In the clear: the same join by
    pandas. At the desk: services of four processes on loopback, from the asker's desk to the answer,
    every line of every log on disk; half of the claims asked about are at another payer."""
    count = QUICK if quick else FULL
    tables = _tables(count)
    with tempfile.TemporaryDirectory() as draft:
        folder = Path(draft)
        seconds, shared = timed(lambda: _night(tables, folder, count))
        clear, expected = timed(lambda: _in_the_clear(tables))
        if shared != expected:
            raise AssertionError(f"{shared} claims at two payers is wrong, {expected} is right")
        with _services(folder):
            asks = _asks(tables, folder)
    size = f"3 x {count:,} invoices"
    slow = asks[int(0.95 * len(asks))]
    return [
        row(f"{size}, at night", seconds, "in the clear", clear, f"{seconds / clear:,.0f} x"),
        _desk_row(f"{size}, one claim at the desk, median of {ASKS}", median(asks)),
        _desk_row("the same, the slowest twentieth from", slow),
    ]


def _desk_row(what: str, seconds: float) -> Row:
    ratio = f"{LIMIT_SECONDS / seconds:.1f} x below"
    return what, f"{seconds:.3f} s", f"at most: {LIMIT_SECONDS:.0f} s", ratio


def _tables(count: int) -> dict[str, pd.DataFrame]:
    """Invoices of which each payer shares one in a thousand with the next."""
    generator, tables = np.random.default_rng(1), {}
    for at, name in enumerate(PAYERS):
        table = pd.DataFrame(
            {
                "invoice": np.arange(count) + at * count + 10**11,
                "provider": generator.integers(1000, 9999, count),
                "admission_day": generator.integers(0, 365, count),
                "claimed": generator.integers(10, 20_000, count),
            }
        )
        tables[name] = table.assign(paid=table["claimed"])
    some = max(count // 1000, 2 * ASKS)
    for at, name in enumerate(PAYERS):
        other = tables[PAYERS[(at + 1) % len(PAYERS)]]
        tables[name].iloc[-some:] = other.iloc[:some].to_numpy()
    return tables


def _charter(count: int) -> LinkCharter:
    key = {"name": "invoice", "columns": COLUMNS}
    values = {"name": "bench", "cap": count, "rows": {"paid": "paid"}, "key": [key]}
    return parse(LinkCharter, values | {"tells": "payer"}, where="bench")


def _night(tables: Mapping[str, pd.DataFrame], folder: Path, count: int) -> int:
    """Compare and write the desk's folders; how many rows met."""
    cards, addresses = {}, {}
    for name in (*PAYERS, COORDINATOR):
        (folder / name).mkdir()
        cards[name] = new_identity(folder / name / "identity.json", name).card
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            addresses[name] = f"127.0.0.1:{holder.getsockname()[1]}"
    comparison = desk_of(tables, _charter(count), folder, cards, addresses)
    return sum(len(answer.matches) for answer in comparison.payers.values())


def _in_the_clear(tables: Mapping[str, pd.DataFrame]) -> int:
    everything = pd.concat([table[COLUMNS].assign(payer=name) for name, table in tables.items()])
    return int(everything.duplicated(COLUMNS, keep=False).sum())


@contextmanager
def _services(folder: Path) -> Iterator[None]:
    """The desk's services as processes of their own, until the block is left."""
    command = [sys.executable, "-c", "from federated.cli.main import main; main()"]
    processes = [
        subprocess.Popen(  # noqa: S603  our own command
            [*command, "link", "serve", str(folder / name)], stdout=subprocess.DEVNULL
        )
        for name in (*PAYERS, COORDINATOR)
    ]
    try:
        for name in (*PAYERS, COORDINATOR):
            _wait(read_desk(folder / name).shared.addresses[name])
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()


def _wait(address: str) -> None:
    host, _, port = address.rpartition(":")
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, int(port)), 1):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no service at {address} after {PATIENCE_SECONDS:.0f} s")


def _asks(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[float]:
    """Seconds of each question, sorted; every answer is checked."""
    desk, name, seconds = read_desk(folder / PAYERS[1]), PAYERS[1], []
    rows = tables[name][COLUMNS].astype("str")
    half, middle = ASKS // 2, len(rows) // 2
    elsewhere, nowhere = rows.iloc[-half:], rows.iloc[middle : middle + half]
    claims = [*elsewhere.to_dict("records"), *nowhere.to_dict("records")]
    for at, claim in enumerate(claims):
        start = time.perf_counter()
        reply = asked(desk, name, {str(k): v for k, v in claim.items()})
        seconds.append(time.perf_counter() - start)
        if bool(reply.key) != (at < half):
            raise AssertionError(f"a claim's answer is wrong: '{reply.key}'")
    return sorted(seconds)
