"""A trial exchange on loopback, in processes that tests start, stop, sabotage and watch.

Processes are forked from one that has imported everything, so that starting one takes no second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from federated.bench.loopback import LoopbackExchange
from federated.deployment.audit_logs import LOG_NAME
from federated.deployment.coordinator import exchange
from federated.deployment.coordinator.study import run_study
from federated.deployment.node import supervisor
from federated.deployment.node.process import Node
from federated.deployment.node.rules import policy as insurer
from federated.deployment.node.rules import settings as node_folder
from federated.deployment.plan import announced
from federated.study.experiment import Experiment
from federated.study.result import Study
from lab.audit import log_format as audit
from lab.files import read_json
from lab.tables.contracts import Contract
from secure_agg.keys import PrivateKey
from tests.rigs.capture import catch, enter

PASSPHRASE = "of a test"
TARGETS = 40
CONTRACT = """name = "trial"
[columns]
x1 = {{ type = "number" }}
x2 = {{ type = "number" }}
secret = {{ type = "number", role = "never_leaves" }}
held_out = {{ type = "integer", role = "identifier", minimum = 0, maximum = 1 }}
{targets}
"""
#: What a test does to a node in its process, before it takes part.
Sabotage = Callable[[Node], None]
_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(
    [
        "tests.rigs.trial",
        "federated.transport.broker",
        "flwr.superlink.main",
        "lab.models.network",
        "lab.models.trees",
    ]
)


def _quiet(folder: Path, name: str, network: str = "") -> None:
    if network:
        enter(network)
    out = os.open(folder / f"{name}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)


def _serve(folder: Path, out: Path, name: str, network: str) -> None:
    _quiet(out, name, network)
    exchange.serve(folder)


def _join(folder: Path, out: Path, name: str, network: str, sabotage: Sabotage | None) -> None:
    _quiet(out, name, network)
    node = Node(folder, lambda text: print(text, flush=True), lambda: _key(folder))
    if sabotage is not None:
        sabotage(node)
    node.serve()


def _catch(out: Path, root: Path) -> None:
    _quiet(root, "packets")
    catch(out)


def _key(folder: Path) -> PrivateKey:
    return supervisor.unlocked(folder, PASSPHRASE)


def _conduct(folder: Path, out: Path, name: str, network: str, experiment: Experiment) -> None:
    _quiet(out, name, network)
    try:
        print(f"model {hash_of(run_study(experiment, folder))}", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        sys.exit(1)


class Trial(LoopbackExchange):
    """An exchange with `insurers` and a supervisor; nothing runs until it is started."""

    analyses: tuple[str, ...] = ("glm", "questions")
    contract: Path

    def __init__(
        self,
        root: Path,
        key: PrivateKey,
        insurers: int = 4,
        rows: int = 150,
        hiding: str = "paillier",
        split: bool = False,
        parties_may_leave: bool = False,
    ) -> None:
        self.root, self.network = root, ""
        self.processes: dict[str, Any] = {}
        super().__init__(
            root,
            key,
            PASSPHRASE,
            self._tables(insurers, rows),
            analyses=self.analyses,
            contracts={"trial": 1},
            hiding=hiding,
            split=split,
            parties_may_leave=parties_may_leave,
        )
        self.settings(answer_seconds=30.0, gather_seconds=20.0)

    def _tables(self, insurers: int, rows: int) -> dict[str, tuple[Path, Path]]:
        """(table, contract) of each insurer, made here; sets the contract that is announced."""
        self.contract = self.root / "trial.toml"
        names = [
            f'y{k} = {{ type = "integer", role = "target", minimum = 0 }}' for k in range(TARGETS)
        ]
        self.contract.write_text(CONTRACT.format(targets="\n".join(names)))
        found = {}
        for at in range(insurers):
            path = self.root / f"insurer {at + 1}.parquet"
            self._table(path, at, rows)
            found[path.stem] = (path, self.contract)
        return found

    def _table(self, path: Path, seed: int, rows: int) -> None:
        rng = np.random.default_rng(seed)
        frame = pd.DataFrame({"x1": rng.normal(size=rows), "x2": rng.normal(size=rows)})
        frame["secret"] = 1.0
        frame["held_out"] = (rng.random(rows) < 0.2).astype(int)
        for k in range(TARGETS):
            frame[f"y{k}"] = rng.poisson(np.exp(0.3 + 0.4 * frame.x1 - 0.2 * frame.x2))
        frame.to_parquet(path, index=False)

    def reroute(self, name: str, port: int) -> None:
        """Have a node call the exchange by another port, where a proxy is."""
        path = self.root / name / "admission.json"
        path.write_text(path.read_text().replace(f":{self.port}", f":{port}"))

    def settings(self, **values: float) -> None:
        """Change the exchange's settings; the next run reads them."""
        path = self.exchange / "exchange.toml"
        kept = [line for line in path.read_text().splitlines() if line.split(" ")[0] not in values]
        path.write_text("\n".join([*kept, *(f"{k} = {v}" for k, v in values.items())]) + "\n")

    def limits(self, name: str, **values: str) -> None:
        """Change an insurer's limits; it must be started again."""
        path = self.root / name / "node.toml"
        kept = [line for line in path.read_text().splitlines() if line.split(" ")[0] not in values]
        at = kept.index("[limits]") + 1
        told = [f"{k} = {v}" for k, v in values.items()]
        path.write_text("\n".join([*kept[:at], *told, *kept[at:]]) + "\n")

    # Processes.

    def start(self, name: str, sabotage: Sabotage | None = None) -> Any:
        """Start a party, or ``exchange``, or again after it was stopped."""
        if name == "exchange":
            made = _fork.Process(target=_serve, args=(self.exchange, self.root, name, self.network))
        else:
            folder = self.root / name
            made = _fork.Process(
                target=_join, args=(folder, self.root, name, self.network, sabotage)
            )
        made.start()
        self.processes[name] = made
        if name == "exchange":  # a killed one leaves its socket behind, and nobody answers there
            self.until(self.serving, 60)
        return made

    def serving(self) -> bool:
        """Whether the exchange answers at its local socket."""
        with socket.socket(socket.AF_UNIX) as caller, exchange.short(self.exchange) as path:
            try:
                caller.connect(f"{path}/{exchange.LOCAL_SOCKET}")
            except OSError:
                return False
            return True

    def start_all(self) -> None:
        self.start("exchange")
        names = self.insurers if self.split else self.names
        for name in names:
            self.start(name)
        for name in names:
            self.until(lambda name=name: "is in the exchange" in self.out(name), 60)

    def catch(self) -> Path:
        """Have all processes from now on live in a network of its own, and catch its packets there.

        Returns where they are written. Raises OSError where the system does not allow it.
        """
        out = self.root / "packets"
        made = _fork.Process(target=_catch, args=(out, self.root))
        made.start()
        self.processes["packets"] = made
        self.until(lambda: out.with_suffix(".ready").exists() or not made.is_alive())
        if not made.is_alive():
            raise OSError(self.out("packets").splitlines()[-1])
        self.network = f"/proc/{made.pid}/ns/net"
        return out

    def in_network(self, work: Callable[..., None], *arguments: Any) -> None:
        """Do something in a process of its own in the network whose packets are caught."""
        made = _fork.Process(target=work, args=(self.root, self.network, *arguments))
        made.start()
        made.join(20)
        assert made.exitcode == 0

    def conduct(self, experiment: Experiment, name: str = "conductor") -> Any:
        """Start a coordinator's run in a process of its own."""
        made = _fork.Process(
            target=_conduct, args=(self.exchange, self.root, name, self.network, experiment)
        )
        made.start()
        self.processes[name] = made
        return made

    def run(self, experiment: Experiment, **options: Any) -> Study:
        """Run in this process, anew unless told otherwise."""
        return run_study(experiment, self.exchange, **{"fresh": True, **options})

    def kill(self, name: str, sign: int = signal.SIGKILL) -> None:
        """End a process with this signal, and wait."""
        process = self.processes.pop(name)
        os.kill(process.pid, sign)
        process.join(20)
        assert process.exitcode is not None, f"{name} does not stop"

    def signal(self, name: str, sign: int) -> None:
        os.kill(self.processes[name].pid, sign)

    def stop(self) -> None:
        for name, process in reversed(list(self.processes.items())):
            if process.is_alive():
                os.kill(process.pid, signal.SIGCONT)
                self.kill(name, signal.SIGTERM)

    @staticmethod
    def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)

    def totals(self, study: str) -> int:
        """How many totals of a study's run were opened; 0 before it began. study: its name."""
        digest = announced(self.experiment(int(study.split()[1]))).digest
        for place in (self.exchange / "runs").glob("*/run.json"):
            if (record := read_json(place))["plan"] == digest:
                if not (self.exchange / LOG_NAME).exists():
                    return 0
                releases = self.logged("exchange", "release")
                return len({each.query for each in releases if each.run == record["run"]})
        return 0

    def logged(self, name: str, kind: str) -> list[audit.Entry]:
        """The lines of this kind in a party's log."""
        folder = self.exchange if name == "exchange" else self.root / name
        return [e for e in audit.entries(audit.read_lines(folder / LOG_NAME)) if e.kind == kind]

    def out(self, name: str) -> str:
        path = self.root / f"{name}.out"
        return path.read_text() if path.exists() else ""

    # Experiments.

    def experiment(self, target: int, **changes: Any) -> Experiment:
        """A small study; each test has its own target, so that no two ask the same question."""
        values: dict[str, Any] = {
            "name": f"trial {target}",
            "data": {
                "path": "at the parties",
                "contract": str(self.contract),
                "target": f"y{target}",
                "features": ["x1", "x2"],
            },
            "model": {"kind": "glm", "family": "gaussian"},  # solved in few totals
            "protection": {"key_bits": 2048, "sums": self.hiding},
            "arms": {"run": ["federated"], "replicates": 0},
        }
        for key, value in changes.items():
            values[key] = values.get(key, {}) | value if isinstance(value, dict) else value
        return Experiment.model_validate(values)

    def pooled_hash(self, experiment: Experiment, names: tuple[str, ...] | None = None) -> str:
        """The model that the same parties give in process: the oracle."""
        from federated.federation import Federation
        from federated.hiding.paillier import KeyAuthority, Paillier
        from federated.solvers import glm
        from federated.solvers.encoding import agree
        from lab.models.files import digest

        read = Contract.read(self.contract)
        parties = []
        for name in names or self.insurers:
            settings = node_folder.NodeSettings.read(self.root / name)
            party = insurer.InsurerPolicy(self.root / name, settings, self.charter)
            parties.append(party.party(announced(experiment), b"a" * 32))
        from federated.app import client_app
        from federated.federation import single_threaded_blas
        from federated.transport.in_process import InProcessGrid

        protection = Paillier(KeyAuthority(_key(self.root / "supervisor")))
        grid = InProcessGrid(client_app(parties.__getitem__, "paillier"), len(parties), 2)
        try:
            with single_threaded_blas():
                federation = Federation(grid, protection, len(parties))
                (task,) = experiment.tasks().values()
                features = experiment.features(read, "model")
                encoding = agree(federation, task, features, read, 10)
                assert experiment.model.kind == "glm"
                fit = glm.fit(federation, task, encoding, experiment.model.penalty)
                return digest(str(fit.model.model_dump_json()))
        finally:
            grid.close()


@contextmanager
def started(trial: Trial) -> Iterator[Trial]:
    trial.start_all()
    try:
        yield trial
    finally:
        trial.stop()


def hash_of(study: Study) -> str:
    return study.arms["federated"].models["all"]["model"].hash
