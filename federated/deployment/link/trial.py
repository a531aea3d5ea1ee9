"""Folders of all members of a link on this machine, on tables that are here: to try it out.

What real members do one by one (`lab exchange init`, `lab node init`, `lab charter`), in one step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from federated.deployment import charter as charters
from federated.deployment.coordinator import exchange
from federated.deployment.enrolment import ADMISSION, Enrolment, Role
from federated.deployment.folders import CHARTER, ENROLMENT, identity_of
from federated.deployment.link.member import link_folder
from federated.deployment.link.signer import make_signer
from federated.deployment.node.rules import settings as node_folder
from federated.link.charter import LinkCharter
from federated.link.duplicates import Comparison
from federated.link.lookup import Condition
from federated.link.ring import COORDINATOR
from federated.link.services.night import desk_of
from lab.errors import ConfigurationError
from lab.files import write_whole

EXCHANGE, SIGNER, CONDITIONS = "exchange", "clinic", "conditions.csv"


def make_trial(
    root: Path,
    claims: Mapping[str, Path],
    terms: LinkCharter,
    conditions: Iterable[Condition],
    port: int,
) -> None:
    """An exchange, a node for each payer, and a desk at which persons sign, all agreed.

    claims: each payer's table by its name, the fund's first; conditions: the fund's, if the charter
    has a fund. Raises ConfigurationError.
    """
    if root.exists():
        raise ConfigurationError(f"{root}: exists; name a new folder")
    fund = terms.condition.fund if terms.condition else next(iter(claims))
    if fund not in claims:
        raise ConfigurationError(
            f"the charter's fund is {fund}; the payers are {', '.join(claims)}"
        )
    exchange.init(root / EXCHANGE, EXCHANGE, f"127.0.0.1:{port}", "127.0.0.1")
    for name, table in claims.items():
        role: Role = "public" if name == fund else "commercial"
        node_folder.init(root / name, name, role, str(table.resolve()))
        _allow(root / name, table, name == fund and terms.condition is not None)
    if terms.condition is not None:
        key = make_signer(root / SIGNER, SIGNER).card.verifying.hex()
        signed = terms.condition.model_copy(update={"signers": {SIGNER: key}})
        terms = terms.model_copy(update={"condition": signed})
        _write_conditions(root / fund / CONDITIONS, conditions)
    _sign(root, list(claims), terms)
    for name in claims:
        enrolment = Enrolment.read(root / name / ENROLMENT)
        shutil.copy(exchange.register(root / EXCHANGE, enrolment), root / name / ADMISSION)


def one_night(root: Path, tables: Mapping[str, pd.DataFrame]) -> Comparison:
    """The night of a trial in this process, for all its members at once.

    Raises ConfigurationError and ContractError.
    """
    folders = {name: link_folder(root / name) for name in tables}
    agreed = next(iter(folders.values())).agreed
    homes = {name: folder.home for name, folder in folders.items()}
    homes[COORDINATOR] = link_folder(root / EXCHANGE).home
    return desk_of({name: tables[name] for name in agreed.payers}, agreed, homes)


def _allow(folder: Path, claims: Path, is_fund: bool) -> None:
    """The section of node.toml."""
    lines = ["[link]", f"claims = {json.dumps(str(claims.resolve()), ensure_ascii=False)}"]
    lines += [f'conditions = "{CONDITIONS}"'] if is_fund else []
    path = folder / node_folder.SETTINGS
    text = path.read_text(encoding="utf-8") + "\n" + "\n".join(lines) + "\n"
    write_whole(path, text.encode(), 0o600)


def _write_conditions(path: Path, conditions: Iterable[Condition]) -> None:
    rows = [f"{c.person},{c.group},{c.first or ''}" for c in conditions]
    write_whole(path, "\n".join(["person,group,first", *rows, ""]).encode(), 0o600)


def _sign(root: Path, payers: list[str], terms: LinkCharter) -> None:
    """The charter, signed by all its members, in every folder."""
    charter = charters.new(
        terms.name,
        Enrolment.read(root / EXCHANGE / ENROLMENT),
        analyses=["glm"],
        contracts={"claims": 1},
    )
    for name in payers:
        charter = charters.with_member(charter, Enrolment.read(root / name / ENROLMENT))
    charter = charters.with_terms(charter, link=terms)
    members = {name: root / name for name in (EXCHANGE, *payers)}
    signatures = {n: charters.sign(charter, identity_of(at)) for n, at in members.items()}
    signer = [root / SIGNER] if (root / SIGNER).exists() else []
    for folder in (*members.values(), *signer):
        charters.write(folder / CHARTER, charter, signatures)
