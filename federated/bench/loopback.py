"""An exchange set up on loopback, for `lab bench exchange` and tests: real folders, keys and TLS.

Each insurer holds a table of its own, a supervisor holds the key, and all members have signed the
charter and are registered. Nothing runs yet; `commands` says what starts each process.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from federated.deployment import charter as charters
from federated.deployment.certificates import LEAF_DAYS
from federated.deployment.charter import Charter
from federated.deployment.coordinator import exchange
from federated.deployment.enrolment import ADMISSION, Enrolment, Role
from federated.deployment.folders import CHARTER, ENROLMENT, identity_of
from federated.deployment.node import supervisor
from federated.deployment.node.rules import settings as node_folder
from secure_agg.keys import PrivateKey

LAB = [sys.executable, "-c", "from federated.cli.main import main; main()"]
EXCHANGE: Final = "exchange"
SUPERVISOR: Final = "supervisor"


class LoopbackExchange:
    """An exchange, its insurers and a supervisor in folders below ``root``.

    tables: each insurer's table and its contract file, by its name; contracts: data contracts in
    force; split: whether the insurers open totals together, instead of the supervisor;
    parties_may_leave: of the charter.
    """

    def __init__(
        self,
        root: Path,
        key: PrivateKey,
        passphrase: str,
        tables: Mapping[str, tuple[Path, Path]],
        *,
        analyses: Iterable[str],
        contracts: Mapping[str, int],
        hiding: str = "paillier",
        split: bool = False,
        parties_may_leave: bool = False,
    ) -> None:
        self.root, self.port, self.exchange = root, free_port(), root / EXCHANGE
        self.hiding, self.split, self._passphrase = hiding, split, passphrase
        self._parties_may_leave = parties_may_leave
        self.insurers = tuple(tables)
        self.names = (*self.insurers, SUPERVISOR)
        exchange.init(self.exchange, EXCHANGE, f"127.0.0.1:{self.port}", "127.0.0.1")
        for seat, (name, (table, contract)) in enumerate(tables.items()):
            role: Role = "commercial" if seat else "public"
            node_folder.init(root / name, name, role, str(table), str(contract))
            path = root / name / node_folder.SETTINGS
            text = path.read_text().replace("# test_", "test_")
            path.write_text(text.replace('hiding = "paillier"', f'hiding = "{hiding}"'))
        node_folder.init(root / SUPERVISOR, SUPERVISOR, SUPERVISOR, None, None)
        supervisor.keep_key(root / SUPERVISOR, key, passphrase)
        self.charter = self._charter(key, tuple(analyses), contracts)
        self.sign(self.charter, (EXCHANGE, *self.names))
        for name in self.names:
            self.admit(name)

    def _charter(
        self, key: PrivateKey, analyses: tuple[str, ...], contracts: Mapping[str, int]
    ) -> Charter:
        charter = charters.new(
            "loopback",
            self.enrolment(self.exchange),
            analyses=analyses,
            contracts=contracts,
            parties_may_leave=self._parties_may_leave,
            limits=charters.CharterLimits(key_bits=key.public.bits),
        )
        for name in self.names:
            charter = charters.with_member(charter, self.enrolment(self.root / name))
        if self.split:
            return self._with_split_key(charter, key.public.bits)
        return charters.with_key(charter, key.public, SUPERVISOR)

    def _with_split_key(self, charter: Charter, bits: int) -> Charter:
        draft = self.root / "draft.json"
        charters.write(draft, charter, {})
        charter = supervisor.deal_shares(draft, self.root / "shares", bits)
        for number, name in enumerate(self.insurers, start=1):
            share = self.root / "shares" / f"{number}-{supervisor.SHARE_FILE}"
            shutil.copy(share, self.root / name / supervisor.SHARE_FILE)
            shutil.copy(share, self.exchange / supervisor.SHARE_FILE)
        return charter

    def sign(self, charter: Charter, names: Iterable[str]) -> None:
        """Have all members sign a charter, and put it into the folders of these."""
        folders = {name: self.root / name for name in (EXCHANGE, *self.names)}
        signatures = {n: charters.sign(charter, identity_of(at)) for n, at in folders.items()}
        for name in names:
            charters.write(folders[name] / CHARTER, charter, signatures)

    def enrolment(self, folder: Path) -> Enrolment:
        """The enrolment in a member's folder."""
        return Enrolment.read(folder / ENROLMENT)

    def admit(self, name: str, days: float = LEAF_DAYS) -> None:
        """Register a node, and put its admission into its folder."""
        admission = exchange.register(self.exchange, self.enrolment(self.root / name), days)
        shutil.copy(admission, self.root / name / ADMISSION)

    @property
    def commands(self) -> list[list[str]]:
        """The command lines that start the exchange and all nodes."""
        joins = [[*LAB, "node", "join", str(self.root / name)] for name in self.names]
        return [[*LAB, "exchange", "serve", str(self.exchange)], *joins]

    @property
    def environment(self) -> dict[str, str]:
        """The environment for `commands`."""
        return {**os.environ, "LAB_KEY_PASSPHRASE": self._passphrase}


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
