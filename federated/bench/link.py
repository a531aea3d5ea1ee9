"""`lab bench link`: claims that more than one payer paid, at night and one by one at the desk."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from federated.bench.loopback import LAB, free_port
from federated.bench.measurement import Row, row, timed
from federated.deployment.link.member import link_folder
from federated.deployment.link.trial import EXCHANGE, make_trial, one_night
from federated.link.charter import LinkCharter
from federated.link.services.desk_service import asked
from lab.records import parse

PAYERS = ("public", "insurer-1", "insurer-2")
QUICK, FULL = 20_000, 1_000_000
ASKS = 60
COLUMNS = ["invoice", "provider", "admission_day", "claimed"]
LIMIT_SECONDS = 1.0


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Three payers' invoices by one exact key, one in a thousand at two of them. At night: reading,
    hashing, all steps of all payers and the coordinator one after another on the cores there are, the
    lists for the desk; twice the keys or grids take twice as long. In the clear: the same join by
    pandas. At the desk: processes of three payers, the coordinator and the exchange on loopback, over
    TLS, from the asker's desk to the answer, every line of every log on disk; half of the claims asked about are at another payer."""
    count = QUICK if quick else FULL
    tables = _tables(count)
    with tempfile.TemporaryDirectory() as draft:
        trial = Path(draft) / "trial"
        _agree(tables, trial, count)
        seconds, shared = timed(lambda: _night(tables, trial))
        clear, expected = timed(lambda: _in_the_clear(tables))
        if shared != expected:
            raise AssertionError(f"{shared} claims at two payers is wrong, {expected} is right")
        with _services(trial):
            asks = _asks(tables, trial)
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


def _agree(tables: Mapping[str, pd.DataFrame], trial: Path, count: int) -> None:
    """Folders of all members; the tables are compared from memory."""
    make_trial(trial, dict.fromkeys(tables, trial), _charter(count), [], free_port())


def _charter(count: int) -> LinkCharter:
    key = {"name": "invoice", "columns": COLUMNS}
    values = {"name": "bench", "cap": count, "rows": {"paid": "paid"}, "key": [key]}
    return parse(LinkCharter, values | {"tells": "payer"}, where="bench")


def _night(tables: Mapping[str, pd.DataFrame], trial: Path) -> int:
    """Compare, and write what the members' processes need; how many rows met."""
    comparison = one_night(trial, tables)
    return sum(len(answer.matches) for answer in comparison.payers.values())


def _in_the_clear(tables: Mapping[str, pd.DataFrame]) -> int:
    everything = pd.concat([table[COLUMNS].assign(payer=name) for name, table in tables.items()])
    return int(everything.duplicated(COLUMNS, keep=False).sum())


@contextmanager
def _services(trial: Path) -> Iterator[None]:
    """The exchange and the members' processes, until the block is left."""
    members = [["link", "serve", str(trial / name)] for name in (*PAYERS, EXCHANGE)]
    processes: list[subprocess.Popen[str]] = []
    try:
        for command in (["exchange", "serve", str(trial / EXCHANGE)], *members):
            processes.append(
                subprocess.Popen([*LAB, *command], stdout=subprocess.PIPE, text=True)  # noqa: S603
            )
            _wait(processes[-1], "exchange is open" if len(processes) == 1 else " answers: ")
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
            process.communicate()


def _wait(process: subprocess.Popen[str], text: str) -> None:
    """Until a process says that it is ready."""
    for line in iter(process.stdout.readline, "") if process.stdout else ():
        if text in line:
            return
    raise AssertionError(f"a process ended with {process.wait()} before it was ready")


def _asks(tables: Mapping[str, pd.DataFrame], trial: Path) -> list[float]:
    """Seconds of each question, sorted; every answer is checked."""
    name, seconds = PAYERS[1], []
    place = link_folder(trial / name)
    rows = tables[name][COLUMNS].astype("str")
    half, middle = ASKS // 2, len(rows) // 2
    elsewhere, nowhere = rows.iloc[-half:], rows.iloc[middle : middle + half]
    claims = [*elsewhere.to_dict("records"), *nowhere.to_dict("records")]
    with place.line() as line:
        for at, claim in enumerate(claims):
            start = time.perf_counter()
            reply = asked(place.identity, line, {str(k): v for k, v in claim.items()})
            seconds.append(time.perf_counter() - start)
            if bool(reply.key) != (at < half):
                raise AssertionError(f"a claim's answer is wrong: '{reply.key}'")
    return sorted(seconds)
