"""`lab bench exchange`: a round trip of messages among real processes, against Flower's own path."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from federated.bench.loopback import LoopbackExchange, free_port
from federated.bench.measurement import Row, row, timed
from federated.deployment import plan
from federated.deployment.coordinator import exchange
from federated.deployment.coordinator.study import gathered
from federated.deployment.dealt_tables import deal_tables
from federated.study.experiment import Experiment
from federated.transport import node_line
from lab.errors import PeerError
from lab.sums import Sums
from secure_agg.keys import generate

PARTIES, BITS = 3, 3072


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Three insurers as processes on loopback with TLS and a supervisor; each waits for nothing but
    messages. Flower's own path: flower-superlink, three flower-supernodes, flwr run, without TLS, a
    client app that answers two numbers; it starts a process for every message and sleeps 3 s
    between looks. An encrypted total takes two exchanges: insurers, then the supervisor."""
    seconds = _medians(8 if quick else 20)
    stock = seconds["stock"]
    rows = (
        ("an exchange of messages", seconds["message"]),
        ("a small encrypted total, 3072 bits, opened by the supervisor", seconds["sum"]),
    )
    return [
        row(what, ours, "Flower's path, one exchange", stock, f"{stock / ours:.1f} × faster")
        for what, ours in rows
    ]


def _medians(rounds: int) -> dict[str, float]:
    """Seconds of one exchange with three nodes: ``sum``, ``message`` and ``stock``.

    sum: an encrypted total of a small statistic, opened by a supervisor, which is two exchanges;
    message: one exchange alone; stock: one exchange of Flower's SuperLink and SuperNodes.
    """
    with TemporaryDirectory() as place:
        return {**_ours(Path(place), rounds), "stock": _stock(Path(place), max(2, rounds // 4))}


def _ours(place: Path, rounds: int) -> dict[str, float]:
    experiment = Experiment.model_validate(
        {
            "name": "bench",
            "data": {"source": "rand_hie", "target": "mdvis"},
            "parties": {"split": "uniform", "count": PARTIES},
            "model": {"kind": "glm"},
        }
    )
    loopback = rehearsal(place, experiment)
    folder = loopback.exchange
    with running(loopback.commands, loopback.environment):
        until(lambda: (folder / exchange.LOCAL_SOCKET).exists())
        with gathered(experiment, plan.announced(experiment), folder) as federation:
            task = experiment.tasks()["model"]

            def total() -> Sums:
                return federation.sum("totals", task=task, part="test", most=(2.0**40,) * 4)

            total()  # the first one makes tables for the key
            sums = [timed(total)[0] for _ in range(rounds)]
            messages = [timed(federation.receipts)[0] for _ in range(rounds)]
    return {"sum": median(sums), "message": median(messages)}


def rehearsal(place: Path, experiment: Experiment, bits: int = BITS) -> LoopbackExchange:
    """An exchange below ``place`` whose insurers hold the tables that a simulation deals."""
    folders = deal_tables(experiment, place / "tables")
    tables = {n: (at / "table.parquet", at / "contract.toml") for n, at in folders.items()}
    return LoopbackExchange(
        place,
        generate(bits),
        secrets.token_hex(16),
        tables,
        analyses=["glm"],
        contracts={"rand_hie": 1},
    )


STOCK = """
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client = ClientApp()
server = ServerApp()

@client.query()
def answer(message, context):
    return Message(RecordDict({"a": ConfigRecord({"sum": [1.0, 2.0]})}), reply_to=message)

@server.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < %d:
        time.sleep(0.2)
    seconds = []
    for round in range(%d):
        start = time.perf_counter()
        content = RecordDict({"q": ConfigRecord({"round": round})})
        replies = list(grid.send_and_receive([Message(content, n, "query") for n in nodes]))
        assert len(replies) == len(nodes) and not any(m.has_error() for m in replies)
        seconds.append(time.perf_counter() - start)
    with open(%r, "w") as file:
        file.write(repr(seconds))
"""


def _stock(place: Path, rounds: int) -> float:
    """The same exchange by flower-superlink, flower-supernode and flwr run, on loopback."""
    result, app, home = place / "stock.json", place / "app", place / "home"
    app.mkdir()
    home.mkdir()
    pyproject = node_line.PYPROJECT.replace("federated.app:server_app", "stock:server")
    (app / "pyproject.toml").write_text(
        pyproject.replace("federated.app:client_app", "stock:client")
    )
    (app / "stock.py").write_text(STOCK % (PARTIES, rounds, str(result)))
    port = free_port()
    runtime = [free_port() for _ in range(PARTIES)]
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "bench"\n'
        f'[superlink.bench]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    bin_ = Path(sys.executable).parent
    environment["PATH"] = f"{bin_}:{environment.get('PATH', '')}"
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port)]
    joins = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"]
    nodes = [[*joins, "--port", str(own)] for own in runtime]
    with running([link, *nodes], environment):
        until(lambda: _answers(port))
        command = [str(bin_ / "flwr"), "run", str(app)]
        run = subprocess.run(command, env=environment, capture_output=True, timeout=120)  # noqa: S603
        try:
            until(result.exists, 120)
        except PeerError:
            output = (run.stdout + run.stderr).decode(errors="replace")[-400:]
            raise PeerError(f"Flower's own path did not answer: {output}") from None
        time.sleep(0.2)
        seconds: list[float] = json.loads(result.read_text())
    return median(seconds)


@contextmanager
def running(commands: list[list[str]], environment: dict[str, str]) -> Iterator[None]:
    """Processes, each the head of a group of its own, ended with all they started."""
    processes = [
        subprocess.Popen(  # noqa: S603
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for command in commands
    ]
    try:
        yield
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    continue
            time.sleep(1.0)
        for process in processes:
            process.wait()


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise PeerError("a process of the bench did not come up in time")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0
