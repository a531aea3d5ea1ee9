"""The rows of an experiment, dealt to simulated parties."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from federated.experiment import Experiment, GLMModel
from federated.features import is_category
from federated.node import Party, Policy
from lab.contracts import Contract, nearest, parse
from lab.disclosure import Rules
from lab.errors import ConfigurationError, ContractError
from lab.features import check_features
from lab.glm import Response
from lab.partition import deal, test_mask
from lab.profile import Cells, Profiling, profiled
from lab.sources import Table, built_in, load, read_file


class Market:
    """The rows of an experiment, dealt to parties and split for training and testing."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        data = experiment.data
        own = Contract.read(Path(data.contract)) if data.contract else None
        agreed = own or (built_in(data.source) if data.source else None)
        wanted = _wanted(experiment, agreed)
        table = load(
            data.source, data.path, contract=own, table=data.table, query=data.query, columns=wanted
        )
        self.origin, self.digest = table.origin, table.digest
        for asked in experiment.profile:
            asked.check(table.contract)
        self.cells = tuple(_cells(asked, table.contract) for asked in experiment.profile)
        self.contract = profiled(table.contract, experiment.profile)
        self.rules = Rules.read(_path(experiment.protection.disclosure))
        self.features = {t: experiment.features(self.contract, t) for t in experiment.tasks()}
        frame = self._usable(table)
        split, partition = (
            np.random.default_rng(child)
            for child in np.random.SeedSequence(experiment.seed).spawn(2)
        )
        test = test_mask(
            frame,
            fraction=data.test,
            rows_file=data.test_rows,
            column=data.test_column,
            value=None if data.test_value is None else str(data.test_value),
            person=data.person,
            rng=split,
            together=data.together,
        )
        if test.all():
            raise ConfigurationError("data.test: no training rows are left")
        self.in_sample = not test.any()
        owners = deal(frame, experiment.parties, data.person, partition, together=data.together)
        self.parties = [self._party(name, frame, rows, test) for name, rows in owners.items()]

    def _usable(self, table: Table) -> pd.DataFrame:
        """The columns a study needs, capped, without the rows left out for missing values."""
        data, frame = self.experiment.data, table.frame
        for name in self.experiment.columns_besides_features():
            self._check_column(frame, name)
        for name, limit in data.cap.items():
            if name not in frame.columns or not pd.api.types.is_numeric_dtype(frame[name]):
                raise ConfigurationError(f"data.cap: '{name}' is not a numeric column")
            frame[name] = frame[name].clip(upper=limit)
        joined = {column for asked in self.experiment.profile for column in asked.columns()}
        features = {
            f for listed in self.features.values() for f in listed if f.column not in joined
        }
        needed = dict.fromkeys(
            [
                *self.experiment.columns_besides_features(),
                *(f.column for f in sorted(features, key=str)),
                *(column for asked in self.experiment.profile for column in asked.reads()),
            ]
        )
        if self.experiment.parties.column:
            needed[self.experiment.parties.column] = None
        for name in self.experiment.detection.columns() if self.experiment.detection else ():
            self._check_column(frame, name)
            needed[name] = None
        frame = frame[list(needed)]
        if data.missing == "drop":
            frame = frame.dropna().reset_index(drop=True)
            if frame.empty:
                raise ContractError(f"{self.origin}: no row is left after dropping missing values")
        for name in self.experiment.columns_besides_features():
            if frame[name].isna().any():
                raise ContractError(
                    f"{self.origin}: column '{name}' is missing in {int(frame[name].isna().sum())} "
                    "rows; set data.missing = 'drop' to leave them out"
                )
        check_features(frame, tuple(sorted(features, key=str)), data.missing)
        for task in self.experiment.tasks().values():  # here, where rows may be named
            Response(task.rows(frame), task)
        return frame

    def _check_column(self, frame: pd.DataFrame, name: str) -> None:
        if name not in frame.columns:
            near = nearest(name, list(frame.columns))
            hint = f"; did you mean '{near}'?" if near else ""
            raise ConfigurationError(f"{self.origin}: there is no column '{name}'{hint}")

    def _party(self, name: str, frame: pd.DataFrame, rows: Any, test: Any) -> Party:
        train = frame.iloc[rows[~test[rows]]]
        if train.empty:
            raise ConfigurationError(
                f"{name} would have no training rows; change parties or data.test"
            )
        held = train if self.in_sample else frame.iloc[rows[test[rows]]]
        features = {f for listed in self.features.values() for f in listed}
        unlisted = {
            f.column
            for f in features
            if is_category(f, self.contract)
            and not f.cut
            and not self.contract.columns[f.column].levels
        }
        return Party(
            name,
            train,
            held,
            self.experiment.data.person,
            Policy(
                minimum_rows=self.experiment.protection.minimum_rows,
                announces=tuple(sorted(unlisted)),
                shows_receipt=True,
                rules=self.rules,
            ),
            secret=f"{self.experiment.seed} {name}".encode(),  # simulated: same seed, same bits
        )

    def pooled(self) -> Party:
        """One party that holds all rows; what a federation is measured against."""
        train = pd.concat([party.train for party in self.parties])
        test = train if self.in_sample else pd.concat([party.test for party in self.parties])
        return Party("pooled", train, test, self.experiment.data.person, self.parties[0].policy)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _cells(asked: Profiling, contract: Contract) -> Cells:
    """The cells of a profile: the numbers of the public register, the days of the contract."""
    where = f"profile '{asked.name}'"
    if asked.register_file is None:
        raise ConfigurationError(f"{where}: register_file must name the public register of '{asked.by}'")
    listed = read_file(Path(asked.register_file))
    if asked.by not in listed.columns:
        raise ConfigurationError(f"{where}: {asked.register_file} has no column '{asked.by}'")
    day = contract.columns[asked.day]
    assert day.minimum is not None and day.maximum is not None  # checked with the contract
    periods = int((day.maximum - day.minimum) // asked.every) + 1
    numbers = sorted({int(number) for number in listed[asked.by]})
    found = {"asked": asked, "numbers": numbers, "first": int(day.minimum), "periods": periods}
    return parse(Cells, found, where=where)


def _wanted(experiment: Experiment, contract: Contract | None) -> list[str] | None:
    """The columns to read of a table without a contract: those the experiment names."""
    if contract is not None or experiment.data.features is None:
        return None
    listed = [f if isinstance(f, str) else f.column for f in experiment.data.features]
    if isinstance(experiment.model, GLMModel) and experiment.model.severity:
        more = experiment.model.severity.features or ()
        listed += [f if isinstance(f, str) else f.column for f in more]
    extra = [experiment.parties.column] if experiment.parties.column else []
    extra += experiment.detection.columns() if experiment.detection else []
    return list(dict.fromkeys([*experiment.columns_besides_features(), *extra, *listed]))


@lru_cache(2)
def market_of(experiment: str) -> Market:
    """The market of an experiment given as JSON; one for each process."""
    return Market(Experiment.model_validate_json(experiment))
