"""The rows of an experiment, dealt to simulated parties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from federated.app import client_app
from federated.federation import Federation
from federated.hiding.masks import Masks
from federated.hiding.paillier import Dealer, KeyAuthority, Paillier
from federated.hiding.protocol import Clear, Protection
from federated.joined.side import JoinedSide
from federated.party.party import Party, Policy, numbered
from federated.solvers.encoding import is_category
from federated.study.experiment import Experiment
from federated.study.joined import JoinedTables, joined_tables
from federated.study.plan import StudyPlan
from federated.study.rows import (
    declared_categories,
    sifted,
    unused,
    usable,
    wanted_columns,
)
from federated.study.settings import KEY, Data, ProtectionSettings
from federated.study.sides import dealt_blocks, joined_protection, sides_of
from federated.transport import in_process as grid
from lab.errors import ConfigurationError
from lab.market.make import make
from lab.models.design import Levels
from lab.models.profile import ProfileCells, Profiling, cells_of, profiled
from lab.packages import version_of
from lab.privacy.disclosure import Rules
from lab.tables.contracts import Contract
from lab.tables.market_folder import REGISTER
from lab.tables.partition import Rows, deal, test_mask
from lab.tables.sources import Table, built_in, load, read_file
from secure_agg.keys import generate


class SimulatedMarket:
    """The rows of an experiment, dealt to parties and split for training and testing."""

    def __init__(self, experiment: Experiment) -> None:
        experiment.check()
        data = experiment.data
        own = Contract.read(Path(data.contract)) if data.contract else None
        public_contract = own or (built_in(data.source) if data.source else None)
        self.by_contract: tuple[str, ...] = ()
        if public_contract is not None:
            experiment, self.by_contract = experiment.under(public_contract)
            data = experiment.data
        self.tables: JoinedTables | None = None
        if experiment.joined:
            self.tables = joined_tables(experiment, declared_categories(experiment))
            self.by_contract = self.tables.notes
            data = data.model_copy(update={"person": data.person or KEY})
            experiment = experiment.model_copy(update={"data": data})
        self.experiment = experiment
        with _place(data) as path:
            table = self._sifted(path, own, public_contract)
            self.cells = _all_cells(experiment, table.contract, path)
        self.digest = table.digest
        self.origin = _origin(data) or table.origin
        self._own_contract = table.contract
        self.contract = profiled(table.contract, experiment.profile)
        self.rules = Rules.read(_path(experiment.protection.disclosure))
        self.features = {t: experiment.features(self.contract, t) for t in experiment.tasks()}
        if self.tables is not None:
            self.tables.check(experiment, self.features)
        self.unused = unused(experiment, self.contract, self.features, self.left_out)
        frame, row_numbers = usable(experiment, self.features, table)
        split, partition = (
            np.random.default_rng(child)
            for child in np.random.SeedSequence(experiment.seed).spawn(2)
        )
        test = self._tested(frame, row_numbers, len(table.frame), split)
        if test.all():
            raise ConfigurationError("data.test: no training rows are left")
        self.in_sample = not test.any()
        self._check_judged(frame, test)
        self.parties = [
            self._party(name, frame, rows, test)
            for name, rows in self._dealt(frame, partition).items()
        ]

    def _tested(
        self, frame: pd.DataFrame, row_numbers: Rows, total: int, rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        """(rows,) true for rows kept for testing."""
        data = self.experiment.data
        return test_mask(
            frame,
            fraction=data.test,
            rows_file=data.test_rows,
            column=data.test_column,
            value=None if data.test_value is None else str(data.test_value),
            person=data.person,
            rng=rng,
            together=data.group_by_person,
            row_numbers=row_numbers,
            total=total,
        )

    def _sifted(self, path: str | None, own: Contract | None, public: Contract | None) -> Table:
        """The table, with the roles of its columns; what is no feature by default is noted."""
        self.left_out: dict[str, str] = {}  # columns that are no features by default, and why
        drafted = own is None
        if self.tables is not None:
            table, drafted = self.tables.whole, self.tables.drafted
        else:
            table = _table(self.experiment, path, own, public)
            if own is None and public is not None:
                return table
        table, self.left_out = sifted(self.experiment, table, drafted=drafted)
        return table

    def _dealt(self, frame: pd.DataFrame, rng: np.random.Generator) -> dict[str, Rows]:
        """The rows of each party; a table of its own stays one."""
        data, tables, parties = self.experiment.data, self.tables, self.experiment.parties
        if tables is not None and (len(tables.names) > 1 or parties.count == 1):
            return dealt_blocks(frame, tables)
        return deal(frame, parties, data.person, rng, together=data.group_by_person)

    @cached_property
    def nodes(self) -> Sequence[Party]:
        """Who takes part in the federated arm: the parties, or the sides that they are joined from."""
        if self.tables is None:
            return self.parties
        return sides_of(self.experiment, self.tables, self.parties)

    def protection(self) -> Protection:
        """The coordinator's side of the federated arm's way of hiding."""
        settings, least = self.experiment.protection, self.rules.minimum_count.persons
        if self.tables is None:
            return protected(settings, self.rules)
        inner: Protection = Clear(self.rules)
        if settings.sums == "paillier":
            authority = KeyAuthority.with_new_key(settings.key_bits, self.rules)
            inner = Paillier(authority, of_shares=True)
        owner, sides = self.tables.owner(), self.sides
        return joined_protection(inner, sides, owner, settings.product, least)

    @property
    def sides(self) -> list[JoinedSide]:
        """The nodes of a joined market."""
        return [node for node in self.nodes if isinstance(node, JoinedSide)]

    def _check_judged(self, frame: pd.DataFrame, test: Any) -> None:
        """Refuse a share for testing in which fewer persons are judged than the rules show."""
        person, least = self.experiment.data.person, self.rules.minimum_count.persons
        persons = int(test.sum()) if person is None else frame.loc[test, person].nunique()
        if not self.in_sample and persons < least:
            raise ConfigurationError(
                f"data.test: {persons} persons would be judged and the rules of disclosure ask for "
                f"{least}; keep a larger share for testing, or 0 to score in sample"
            )

    def _party(self, name: str, frame: pd.DataFrame, rows: Any, test: Any) -> Party:
        own, is_test = numbered(name, frame.iloc[rows]), test[rows]
        train = own[~is_test]
        if train.empty:
            raise ConfigurationError(
                f"{name} would have no training rows; change parties or data.test"
            )
        test_rows = train if self.in_sample else own[is_test]
        features = {f for chosen_features in self.features.values() for f in chosen_features}
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
            test_rows,
            self.experiment.data.person,
            Policy(
                minimum_rows=self.experiment.protection.minimum_rows,
                announces=tuple(sorted(unlisted)),
                shows_receipt=True,
                rules=self.rules,
            ),
            secret=f"{self.experiment.seed} {name}".encode(),  # simulated: same seed, same bits
            rows_secret=self._rows_secret,
        )

    @property
    def inputs(self) -> list[str]:
        """The columns that models read."""
        columns = {f.column for chosen_features in self.features.values() for f in chosen_features}
        return [name for name in self.parties[0].train.columns if name in columns]

    @property
    def sizes(self) -> dict[str, dict[str, int | None]]:
        """Rows for training and for testing of each party."""
        return {
            p.name: {"train": len(p.train), "test": 0 if self.in_sample else len(p.test)}
            for p in self.parties
        }

    def plan(
        self, by_level: dict[str, tuple[Levels, ...]], groups: tuple[Levels, ...]
    ) -> StudyPlan:
        """The plan of the federated arm."""
        return StudyPlan(
            package=version_of(self.experiment.model.kind),
            experiment=self.experiment,
            contract=self._own_contract,
            rules=self.rules,
            least_parties=self.least_parties,
            cells=self.cells,
            by_level=by_level,
            groups=groups,
            fund_columns=tuple(sorted(self.tables.fund_columns)) if self.tables else (),
        )

    @property
    def least_parties(self) -> int:
        """Parties that each cell of a model stands on, at least: as the rules say, in the clear no more
        than there are. Joined sides are one party, whose persons are common to both."""
        if self.tables is not None:
            return 1
        least = self.rules.minimum_parties.parties
        clear = self.experiment.protection.sums == "clear"
        return min(least, len(self.parties)) if clear else least

    def pooled(self) -> Party:
        """One party that holds all rows; what a federation is measured against."""
        train = pd.concat([party.train for party in self.parties])
        test = train if self.in_sample else pd.concat([party.test for party in self.parties])
        return Party(
            "pooled",
            train,
            test,
            self.experiment.data.person,
            self.parties[0].policy,
            secret=f"{self.experiment.seed} pooled".encode(),
            rows_secret=self._rows_secret,
        )

    @property
    def _rows_secret(self) -> bytes:
        """One for all simulated parties, so that the pool holds out the rows that they do."""
        return f"rows {self.experiment.seed}".encode()


def _table(
    experiment: Experiment, path: str | None, own: Contract | None, public: Contract | None
) -> Table:
    """The table of an experiment, checked; own: the contract it names, public: that or its source's."""
    data = experiment.data
    return load(
        *(data.source, path),
        contract=own,
        table=data.table,
        query=data.query,
        columns=wanted_columns(experiment, public),
        texts=declared_categories(experiment),
        encoding=data.encoding,
    )


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
    market = data.market
    return (
        f"a simulated market of {market.persons:,} persons, seed {market.seed}" if market else None
    )


def _register(data: Data, path: str | None) -> Path | None:
    """The register of providers that a simulated market brings along."""
    return Path(path, REGISTER) if data.source == "market" and path is not None else None


def public_cells(experiment: Experiment, contract: Contract) -> tuple[ProfileCells, ...]:
    """The cells of each profile, from what is public: the register and the contract."""
    if not experiment.profile:
        return ()
    with _place(experiment.data) as path:
        return _all_cells(experiment, contract, path)


def _all_cells(
    experiment: Experiment, contract: Contract, path: str | None
) -> tuple[ProfileCells, ...]:
    for profile in experiment.profile:
        profile.check(contract)
    register = _register(experiment.data, path)
    return tuple(_cells(profile, contract, register) for profile in experiment.profile)


def _cells(profile: Profiling, contract: Contract, register: Path | None) -> ProfileCells:
    """The cells of a profile: the numbers of the public register, the days of the contract."""
    where = f"profile '{profile.name}'"
    path = _path(profile.register_file) or register
    if path is None:
        raise ConfigurationError(
            f"{where}: register_file must name the public register of '{profile.by}'"
        )
    providers = read_file(path)
    if profile.by not in providers.columns:
        raise ConfigurationError(f"{where}: {path.name} has no column '{profile.by}'")
    return cells_of(profile, contract, sorted({int(number) for number in providers[profile.by]}))


@lru_cache(2)
def market_of(experiment: str, run: str) -> SimulatedMarket:
    """The market of an experiment given as JSON; read once in each process for a run of this name."""
    return SimulatedMarket(Experiment.model_validate_json(experiment))


def protected(settings: ProtectionSettings, rules: Rules | None = None) -> Protection:
    """The coordinator's side of the way of hiding that an experiment asks for.

    rules: what answers to questions are released by, else the lab's own.
    """
    match settings.sums, settings.key:
        case "clear", _:
            return Clear(rules)
        case "masks", _:
            return Masks()
        case _, "authority":
            return Paillier(KeyAuthority.with_new_key(settings.key_bits, rules))
        case _:
            return Paillier(Dealer(generate(settings.key_bits)))


@contextmanager
def in_process(parties: Sequence[Party], workers: int, rules: Rules) -> Iterator[Federation]:
    """A federation in the clear that never leaves one party (or the pool, or this process)."""
    nodes = grid.InProcessGrid(client_app(lambda k: parties[k], "clear"), len(parties), workers)
    try:
        yield Federation(nodes, Clear(rules), len(parties))
    finally:
        nodes.close()
