"""What is public of the market that a study is about, whether its rows are here or at real parties."""

from __future__ import annotations

from typing import Protocol

from federated.study.experiment import Experiment
from federated.study.rows import Features, columns_needed, unused
from lab.tables.contracts import Contract


class StudiedMarket(Protocol):
    """A study's market: where it comes from, its contract, the features and sizes of its parties.

    by_contract: what the experiment left to the contract, in words; unused: why each other column
    of the contract is no feature.
    """

    origin: str
    digest: str
    in_sample: bool
    contract: Contract
    by_contract: tuple[str, ...]
    unused: dict[str, str]

    @property
    def features(self) -> Features:
        """The features of each task."""

    @property
    def inputs(self) -> list[str]:
        """The columns that models read."""

    @property
    def sizes(self) -> dict[str, dict[str, int | None]]:
        """Rows for training and for testing of each party, None where a party does not tell."""


class RemoteMarket:
    """A market whose rows are at real parties."""

    origin, digest = "each party's own table", ""

    def __init__(self, experiment: Experiment, contract: Contract, features: Features) -> None:
        experiment, self.by_contract = experiment.under(contract)
        self.experiment, self.contract, self.features = experiment, contract, features
        self.in_sample = experiment.data.test == 0 and experiment.data.test_column is None
        self.unused = unused(experiment, contract, features, {})
        self.sizes: dict[str, dict[str, int | None]] = {}

    @property
    def inputs(self) -> list[str]:
        columns = {f.column for features in self.features.values() for f in features}
        return [name for name in columns_needed(self.experiment, self.features) if name in columns]
