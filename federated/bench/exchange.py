"""`lab bench exchange`: a round trip of letters among real processes, against Flower's own path."""

from __future__ import annotations

import json
import os
import secrets
import shutil
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
from typing import Any

from federated.bench.measurement import Row, row, timed
from federated.deployment import charter as charters
from federated.deployment import enrolment, plan
from federated.deployment.coordinator import exchange
from federated.deployment.coordinator import study as conduct
from federated.deployment.enrolment import Enrolment
from federated.deployment.folders import identity_of
from federated.deployment.node import settings as node_folder
from federated.deployment.node import supervisor
from federated.study.experiment import Experiment
from federated.study.simulation import MARK, deal_tables
from federated.transport import node_line as fleet
from lab.errors import PeerError
from secure_agg.keys import generate, save_private

PARTIES, BITS = 3, 3072


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Three insurers as processes on loopback with TLS and a supervisor; each waits for nothing but
    letters. Flower's own path: flower-superlink, three flower-supernodes, flwr run, without TLS, a
    client app that answers two numbers; it starts a process for every message and sleeps 3 s
    between looks. An encrypted total takes two exchanges: insurers, then the supervisor."""
    seconds = _medians(8 if quick else 20)
    stock = seconds["stock"]
    rows = (
        ("an exchange of letters", seconds["letter"]),
        ("a small encrypted total, 3072 bits, opened by the supervisor", seconds["sum"]),
    )
    return [
        row(what, ours, "Flower's path, one exchange", stock, f"{stock / ours:.1f} × faster")
        for what, ours in rows
    ]


def _medians(rounds: int) -> dict[str, float]:
    """Seconds of one exchange with three nodes: ``sum``, ``letter`` and ``stock``.

    sum: an encrypted total of a small statistic, opened by a supervisor, which is two exchanges;
    letter: one exchange alone; stock: one exchange of Flower's SuperLink and SuperNodes.
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
    folder, commands, environment = rehearsal(place, experiment)
    with running(commands, environment):
        until(lambda: (folder / exchange.INNER).exists())
        with conduct.gathered(experiment, plan.announced(experiment), folder) as federation:
            task = experiment.tasks()["model"]

            def total() -> Any:
                return federation.sum("totals", task=task, part="test")

            total()  # the first one makes tables for the key
            sums = [timed(total)[0] for _ in range(rounds)]
            letters = [timed(federation.receipts)[0] for _ in range(rounds)]
    return {"sum": median(sums), "letter": median(letters)}


LAB = [sys.executable, "-c", "from federated.cli.main import main; main()"]


def rehearsal(
    place: Path, experiment: Experiment, bits: int = BITS
) -> tuple[Path, list[list[str]], dict[str, str]]:
    """An exchange, the experiment's insurers and a supervisor in folders below ``place``: the
    exchange's folder, the commands that start all of them, and the environment for these."""
    tables = deal_tables(experiment, place / "tables")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, passphrase = place / "exchange", secrets.token_hex(16)
    exchange.init(folder, "exchange", f"127.0.0.1:{port}", "127.0.0.1")
    for name, table in tables.items():
        rows, contract = str(table / "table.parquet"), str(table / "contract.toml")
        node_folder.init(place / name, name, "commercial", rows, contract)
        settings = place / name / node_folder.SETTINGS
        settings.write_text(settings.read_text().replace("# test_", "test_"))
        assert MARK in settings.read_text()
    node_folder.init(place / "supervisor", "supervisor", "supervisor", None, None)
    names = [*tables, "supervisor"]
    made = charters.new(
        "bench",
        Enrolment.read(folder / "enrolment.json"),
        analyses=["glm"],
        contracts={"rand_hie": 1},
    )
    for name in names:
        made = charters.with_member(made, Enrolment.read(place / name / "enrolment.json"))
    private = generate(bits)
    save_private(place / "supervisor" / supervisor.KEY_FILE, private, passphrase)
    made = charters.with_key(made, private.public, "supervisor")
    folders = {"exchange": folder, **{name: place / name for name in names}}
    signed = {name: charters.sign(made, identity_of(at)) for name, at in folders.items()}
    for at in folders.values():
        charters.write(at / "charter.json", made, signed)
    for name in names:
        admission = exchange.register(folder, Enrolment.read(place / name / "enrolment.json"))
        shutil.copy(admission, place / name / enrolment.ADMISSION)
    commands = [[*LAB, "exchange", "serve", str(folder)]]
    commands += [[*LAB, "node", "join", str(place / name)] for name in names]
    return folder, commands, {**os.environ, "LAB_KEY_PASSPHRASE": passphrase}


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
        question = RecordDict({"q": ConfigRecord({"round": round})})
        replies = list(grid.send_and_receive([Message(question, n, "query") for n in nodes]))
        assert len(replies) == len(nodes) and not any(m.has_error() for m in replies)
        seconds.append(time.perf_counter() - start)
    with open(%r, "w") as file:
        file.write(repr(seconds))
"""


def _stock(place: Path, rounds: int) -> float:
    """The same exchange by flower-superlink, flower-supernode and flwr run, on loopback."""
    times, app, home = place / "stock.json", place / "app", place / "home"
    app.mkdir()
    home.mkdir()
    project = fleet.PYPROJECT.replace("federated.app:server_app", "stock:server")
    (app / "pyproject.toml").write_text(project.replace("federated.app:client_app", "stock:client"))
    (app / "stock.py").write_text(STOCK % (PARTIES, rounds, str(times)))
    port = _free_port()
    runtime = [_free_port() for _ in range(PARTIES)]
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
            until(times.exists, 120)
        except PeerError:
            output = (run.stdout + run.stderr).decode(errors="replace")[-400:]
            raise PeerError(f"Flower's own path did not answer: {output}") from None
        time.sleep(0.2)
        seconds: list[float] = json.loads(times.read_text())
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


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0
