"""Tables of a simulation's parties as files, so that real nodes can be started on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from federated.joined.side import JoinedSide
from federated.study.experiment import Experiment
from federated.study.settings import BLOCK, KEY, MARK
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError
from lab.tables.contracts import Column, Contract

#: The file of an experiment on dealt tables.
DEALT = "experiment.toml"


def deal_tables(experiment: Experiment, folder: Path) -> dict[str, Path]:
    """The simulated parties' tables as files, so that real nodes can be started on the same rows.

    A folder for each party with ``table.parquet`` and ``contract.toml``; rows for testing are
    marked in the column :data:`MARK`. Of joined sides also :data:`DEALT`, the experiment on these
    tables. Raises :class:`ConfigurationError` for a folder in use.
    """
    import tomli_w

    market = SimulatedMarket(experiment)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder}: is not empty; choose a new folder")
    folders, keys = {}, dealt_keys(experiment, [node.name for node in market.nodes])
    mark = Column(type="integer", role="identifier", minimum=0, maximum=1)
    for party in market.nodes:
        place = folders[party.name] = folder / party.name
        place.mkdir(parents=True, mode=0o700)
        without = party.test is party.train
        test_rows = party.test.iloc[:0] if without else party.test
        parts = [party.train.assign(**{MARK: 0}), test_rows.assign(**{MARK: 1})]
        rows = pd.concat(parts).sort_index(kind="stable")
        columns = {n: c for n, c in market.contract.columns.items() if n in rows} | {MARK: mark}
        contract = market.contract.model_copy(update={"columns": columns})
        if isinstance(party, JoinedSide):
            rows, contract = dealt_side(party, keys[party.name], rows, contract)
        rows.to_parquet(place / "table.parquet", index=False)
        contract_values = contract.model_dump(mode="json", exclude_defaults=True)
        (place / "contract.toml").write_text(tomli_w.dumps(contract_values), encoding="utf-8")
    if keys:
        (folder / DEALT).write_text(
            tomli_w.dumps(dealt_experiment(experiment, in_sample=market.in_sample)),
            encoding="utf-8",
        )
    return folders


def dealt_experiment(experiment: Experiment, *, in_sample: bool) -> dict[str, Any]:
    """The experiment of joined sides on their dealt tables, for a simulation and for real sides."""
    values = experiment.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    values["data"].pop("market", None)  # whose tables these are
    if not in_sample and experiment.data.test_column is None:
        values["data"] |= {"test_column": MARK, "test_value": 1}
    values["joined"] = [
        {
            "role": block.role,
            "name": block.name or block.role,
            "path": f"{block.name or block.role}/table.parquet",
            "contract": f"{block.name or block.role}/contract.toml",
            "key": list(block.keys),
        }
        for block in experiment.joined
    ]
    return values


def dealt_side(
    side: JoinedSide, key: str, rows: pd.DataFrame, contract: Contract
) -> tuple[pd.DataFrame, Contract]:
    """A side's table and contract under names of its own; the insurer alone marks rows for testing."""
    rows = rows.drop(columns=[BLOCK, MARK] if side.role == "fund" else BLOCK, errors="ignore")
    rows = rows.rename(columns={KEY: key})
    columns = {key if name == KEY else name: c for name, c in contract.columns.items()}
    columns = {name: column for name, column in columns.items() if name in rows}
    return rows, contract.model_copy(update={"name": side.name, "columns": columns})


def dealt_keys(experiment: Experiment, names: Sequence[str]) -> dict[str, str]:
    """The column that names a person in the dealt table of each of these sides."""
    if not experiment.joined:
        return {}
    keys = {block.name or block.role: block.keys for block in experiment.joined}
    if set(names) != set(keys) or any(len(key) > 1 for key in keys.values()):
        raise ConfigurationError(
            "joined: tables are dealt to sides of one table each, whose key is one column"
        )
    return {name: key for name, (key,) in keys.items()}
