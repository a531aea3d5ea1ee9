"""The rows of an experiment, dealt to simulated parties."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from federated.experiment import Data, Experiment, GLMModel
from federated.features import is_category
from federated.node import Party, Policy, numbered
from lab.contracts import Column, Contract, nearest
from lab.disclosure import Rules
from lab.errors import ConfigurationError, ContractError
from lab.features import Feature, check_features
from lab.glm import Response
from lab.market import REGISTER, make
from lab.partition import deal, test_mask
from lab.profile import Cells, Profiling, cells_of, profiled
from lab.sources import Table, built_in, load, read_file


class Market:
    """The rows of an experiment, dealt to parties and split for training and testing."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        data = experiment.data
        own = Contract.read(Path(data.contract)) if data.contract else None
        agreed = own or (built_in(data.source) if data.source else None)
        wanted = _wanted(experiment, agreed)
        with _place(data) as path:
            table = load(
                data.source, path, contract=own, table=data.table, query=data.query, columns=wanted
            )
            self.cells = _all_cells(experiment, table.contract, path)
        self.digest = table.digest
        self.origin = _origin(data) or table.origin
        self.contract = profiled(table.contract, experiment.profile)
        self.rules = Rules.read(_path(experiment.protection.disclosure))
        self.features = {t: experiment.features(self.contract, t) for t in experiment.tasks()}
        frame, _ = usable(experiment, self.features, table)
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

    def _party(self, name: str, frame: pd.DataFrame, rows: Any, test: Any) -> Party:
        own, marked = numbered(name, frame.iloc[rows]), test[rows]
        train = own[~marked]
        if train.empty:
            raise ConfigurationError(
                f"{name} would have no training rows; change parties or data.test"
            )
        held = train if self.in_sample else own[marked]
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

    @property
    def inputs(self) -> list[str]:
        """The columns that models read."""
        used = {f.column for listed in self.features.values() for f in listed}
        return [name for name in self.parties[0].train.columns if name in used]

    @property
    def sizes(self) -> dict[str, dict[str, int | None]]:
        """Rows for training and for testing of each party."""
        return {
            p.name: {"train": len(p.train), "test": 0 if self.in_sample else len(p.test)}
            for p in self.parties
        }

    def pooled(self) -> Party:
        """One party that holds all rows; what a federation is measured against."""
        train = pd.concat([party.train for party in self.parties])
        test = train if self.in_sample else pd.concat([party.test for party in self.parties])
        return Party("pooled", train, test, self.experiment.data.person, self.parties[0].policy)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


@contextmanager
def _place(data: Data) -> Iterator[str | None]:
    """Where the table lies; a market that is made for this run is gone once it is read."""
    if data.market is None:
        yield data.path
        return
    with TemporaryDirectory() as folder:
        yield str(make(Path(folder) / "market", **data.market.model_dump()).folder)


def _origin(data: Data) -> str | None:
    made = data.market
    return f"a simulated market of {made.persons:,} persons, seed {made.seed}" if made else None


def _register(data: Data, path: str | None) -> Path | None:
    """The register of providers that a simulated market brings along."""
    return Path(path, REGISTER) if data.source == "market" and path is not None else None


def public_cells(experiment: Experiment, contract: Contract) -> tuple[Cells, ...]:
    """The cells of each profile, from what is public: the register and the contract."""
    if not experiment.profile:
        return ()
    with _place(experiment.data) as path:
        return _all_cells(experiment, contract, path)


def _all_cells(experiment: Experiment, contract: Contract, path: str | None) -> tuple[Cells, ...]:
    for asked in experiment.profile:
        asked.check(contract)
    register = _register(experiment.data, path)
    return tuple(_cells(asked, contract, register) for asked in experiment.profile)


def _cells(asked: Profiling, contract: Contract, register: Path | None) -> Cells:
    """The cells of a profile: the numbers of the public register, the days of the contract."""
    where = f"profile '{asked.name}'"
    path = _path(asked.register_file) or register
    if path is None:
        raise ConfigurationError(
            f"{where}: register_file must name the public register of '{asked.by}'"
        )
    listed = read_file(path)
    if asked.by not in listed.columns:
        raise ConfigurationError(f"{where}: {path.name} has no column '{asked.by}'")
    return cells_of(asked, contract, sorted({int(number) for number in listed[asked.by]}))


Features = Mapping[str, tuple[Feature, ...]]


def columns_needed(experiment: Experiment, features: Features) -> list[str]:
    """The columns that a study reads at a party."""
    detected = experiment.detection.columns() if experiment.detection else ()
    names = [
        *experiment.columns_besides_features(),
        *(f.column for f in sorted(_own(experiment, features), key=str)),
        *(column for asked in experiment.profile for column in asked.reads()),
        *([experiment.parties.column] if experiment.parties.column else []),
        *detected,
    ]
    return list(dict.fromkeys(names))


def _own(experiment: Experiment, features: Features) -> set[Feature]:
    """The features that stand in a party's table; profiles are joined later."""
    joined = {column for asked in experiment.profile for column in asked.columns()}
    return {f for task in features.values() for f in task if f.column not in joined}


def usable(
    experiment: Experiment, features: Features, table: Table
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """The columns a study needs, capped, without the rows left out for missing values; and which
    rows of the table are left. Raises ConfigurationError and ContractError."""
    data, frame = experiment.data, table.frame
    needed = columns_needed(experiment, features)
    for name in needed:
        if name not in frame.columns:
            near = nearest(name, list(frame.columns))
            hint = f"; did you mean '{near}'?" if near else ""
            raise ConfigurationError(f"{table.origin}: there is no column '{name}'{hint}")
    for name, limit in data.cap.items():
        if name not in frame.columns or not pd.api.types.is_numeric_dtype(frame[name]):
            raise ConfigurationError(f"data.cap: '{name}' is not a numeric column")
        frame[name] = frame[name].clip(upper=limit)
    frame = frame[needed]
    kept = np.arange(len(frame))
    if data.missing == "drop":
        kept = np.flatnonzero(frame.notna().all(axis=1))
        frame = frame.iloc[kept].reset_index(drop=True)
        if frame.empty:
            raise ContractError(f"{table.origin}: no row is left after dropping missing values")
    for name in experiment.columns_besides_features():
        if frame[name].isna().any():
            raise ContractError(
                f"{table.origin}: column '{name}' is missing in {int(frame[name].isna().sum())} "
                "rows; set data.missing = 'drop' to leave them out"
            )
    own = _own(experiment, features)
    check_features(frame, tuple(sorted(own, key=str)), data.missing)
    for task in experiment.tasks().values():  # here, where rows may be named
        Response(task.rows(frame), task)
    return frame, kept


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


#: The column that marks rows for testing in a dealt table.
MARK = "held_out"


def deal_tables(experiment: Experiment, folder: Path) -> dict[str, Path]:
    """The simulated parties' tables as files, so that real nodes can be started on the same rows.

    A folder for each party with ``table.parquet`` and ``contract.toml``; rows for testing are
    marked in the column :data:`MARK`. Raises :class:`ConfigurationError` for a folder in use.
    """
    import tomli_w

    market = Market(experiment)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder}: is not empty; choose a new folder")
    found = {}
    mark = Column(type="integer", role="identifier", minimum=0, maximum=1)
    for party in market.parties:
        place = found[party.name] = folder / party.name
        place.mkdir(parents=True, mode=0o700)
        held = party.test.iloc[:0] if market.in_sample else party.test
        parts = [party.train.assign(**{MARK: 0}), held.assign(**{MARK: 1})]
        rows = pd.concat(parts).sort_index(kind="stable")
        columns = {name: market.contract.columns[name] for name in party.train.columns}
        contract = market.contract.model_copy(update={"columns": columns | {MARK: mark}})
        rows.to_parquet(place / "table.parquet", index=False)
        told = contract.model_dump(mode="json", exclude_defaults=True)
        (place / "contract.toml").write_text(tomli_w.dumps(told), encoding="utf-8")
    return found
