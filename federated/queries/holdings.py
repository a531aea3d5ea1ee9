"""Who is asked in a simulation: parties that each hold a part of one table."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from federated.party.party import Party, Policy
from federated.shipped import experiment_file
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError, ContractError
from lab.privacy.disclosure import Rules
from lab.queries.query_table import Budget, QueryTable
from lab.queries.sql_join import JoinedNames
from lab.records import read_toml
from lab.tables.checks import check
from lab.tables.contracts import Contract
from lab.tables.partition import deal
from lab.tables.sources import unchecked

#: What a file must say for a model, and need not for a question.
OF_A_MODEL = {"model": {"kind": "glm"}, "data": {"target": ""}}


def experiment_of(path: str | Path, changes: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment file of a question, which needs neither ``[model]`` nor ``data.target``.

    changes: dotted keys, as ``--set``. Raises as :meth:`Experiment.read`.
    """
    values, more = read_toml(experiment_file(path)), dict(changes or {})
    for table, keys in OF_A_MODEL.items():
        part = values.get(table, {})
        for key, value in keys.items():
            if isinstance(part, dict) and key not in part:
                more.setdefault(f"{table}.{key}", value)
    return Experiment.read(path, more)


@dataclass(frozen=True)
class Holdings:
    """Who is asked: parties that each hold a part of one table, under one contract and one set of
    rules. fault: what is wrong with the table; then only its violations can be asked about; joined: the
    names of two sides, which together are the table."""

    parties: tuple[Party, ...]
    contract: Contract
    rules: Rules
    person: str | None = None
    fault: ContractError | None = None
    joined: JoinedNames | None = None

    @classmethod
    def of(
        cls,
        tables: Mapping[str, pd.DataFrame],
        contract: Contract,
        rules: Rules | None = None,
        *,
        person: str | None = None,
        folder: Path | None = None,
        budget: Budget | None = None,
        noised: bool = False,
    ) -> Holdings:
        """Parties by name with their rows as they come.

        folder: where each keeps its history, its budget and its receipt; None for memory alone.
        """
        rules, fault = rules or Rules.read(), None
        parties: list[Party] = []
        announces = tuple(
            name
            for name, column in contract.columns.items()
            if column.type == "category" and not column.levels and column.role == "feature"
        )
        policy = Policy(
            minimum_rows=1, announces=announces, shows_receipt=True, answers="questions"
        )
        for name, raw in tables.items():
            raw = raw.reset_index(drop=True)
            try:
                frame = check(raw, contract, where=name)
            except ContractError as error:
                fault, frame = error, raw
            place = folder / re.sub(r"[^\w-]+", "-", name) if folder else None
            if place is not None and any(
                place == p.query_table.folder for p in parties if p.query_table
            ):
                raise ConfigurationError(f"{name}: another party's name gives the same folder")
            holding = QueryTable(frame, contract, rules, person, raw, place, budget, noised)
            parties.append(Party(name, frame[:0], frame[:0], policy=policy, query_table=holding))
        return cls(tuple(parties), contract, rules, person, fault)

    @classmethod
    def of_experiment(cls, experiment: Experiment, folder: Path | None) -> Holdings:
        """The whole table of an experiment, dealt as its study deals it."""
        data, protection = experiment.data, experiment.protection
        own = Contract.read(Path(data.contract)) if data.contract else None
        raw, contract, origin = unchecked(
            *(data.source, data.path),
            contract=own,
            table=data.table,
            query=data.query,
            encoding=data.encoding,
        )
        if raw.empty:
            raise ContractError(f"{origin}: the table has no rows")
        partition = np.random.default_rng(np.random.SeedSequence(experiment.seed).spawn(2)[1])
        owners = deal(raw, experiment.parties, data.person, partition)
        if folder is not None:
            dealt = [
                data.model_dump(mode="json", include={"source", "path", "table", "query"}),
                [contract.name, experiment.seed],
                experiment.parties.model_dump(mode="json"),
            ]
            folder = folder / hashlib.sha256(json.dumps(dealt).encode()).hexdigest()[:12]
        rules = Rules.read(Path(protection.disclosure) if protection.disclosure else None)
        tables = {name: raw.iloc[rows] for name, rows in owners.items()}
        return cls.of(
            tables,
            contract,
            rules,
            person=data.person,
            folder=folder,
            budget=protection.budget,
            noised=protection.noised,
        )
