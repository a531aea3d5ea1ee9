"""The rows of a table that a study uses: the columns it reads, capped, without the rows left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from federated.solvers.glm import GLMSettings
from federated.study.experiment import Experiment
from federated.study.settings import BLOCK, KEY
from lab.errors import ConfigurationError, ContractError
from lab.models.agreement import check_features
from lab.models.design import Feature
from lab.models.glm import Response
from lab.records import nearest
from lab.tables.contracts import Column, Contract, identifying, unsuited
from lab.tables.sources import Table

Features = Mapping[str, tuple[Feature, ...]]


def columns_needed(experiment: Experiment, features: Features) -> list[str]:
    """The columns that a study reads at a party."""
    detected = experiment.detection.columns() if experiment.detection else ()
    names = [
        *experiment.columns_besides_features(),
        *(f.column for f in sorted(_own(experiment, features), key=str)),
        *(column for profile in experiment.profile for column in profile.reads()),
        *([experiment.parties.column] if experiment.parties.column else []),
        *detected,
        *([KEY, BLOCK] if experiment.joined else []),
    ]
    return list(dict.fromkeys(names))


def _own(experiment: Experiment, features: Features) -> set[Feature]:
    """The features that stand in a party's table; profiles are joined later."""
    profile_columns = {column for profile in experiment.profile for column in profile.columns()}
    return {f for task in features.values() for f in task if f.column not in profile_columns}


def sifted(experiment: Experiment, table: Table, *, drafted: bool) -> tuple[Table, dict[str, str]]:
    """A table in whose contract only what may be a feature has that role, of the columns for which
    nobody stated one; and why each of the others has not.

    drafted: the contract was drafted from the table; then a column needs more than not to be an
    identifier. Raises ConfigurationError for an identifier that is listed nevertheless.
    """
    features, data = _listed(experiment), experiment.data
    inputs = {*experiment.columns_besides_features(), experiment.parties.column}
    besides = experiment.detection.columns() if experiment.detection else []
    owners = table.frame.get(data.person) if data.person else None
    columns, left_out = dict(table.contract.columns), {}
    open_roles = [n for n, c in columns.items() if n not in inputs and _is_open(c)]
    for name in open_roles:
        values = table.frame[name]
        reason = identifying(name, values, owners)
        if reason is not None and name in features:
            raise ConfigurationError(_refusal(features[name], name, reason))
        why = reason
        if drafted and reason is None and name not in features:
            why = unsuited(name, values)
        if why is not None:
            role = "identifier" if reason or name not in besides else "target"
            columns[name] = columns[name].model_copy(update={"role": role})
            left_out[name] = why
    if data.features is not None:
        left_out = {}
    elif left_out and not any(c.role == "feature" for n, c in columns.items() if n not in inputs):
        reasons = ", ".join(f"'{name}' {why}" for name, why in left_out.items())
        raise ConfigurationError(
            f"data.features: no column is taken as a feature unless it is listed: {reasons}"
        )
    contract = table.contract.model_copy(update={"columns": columns})
    return replace(table, contract=contract), left_out


def _is_open(column: Column) -> bool:
    """Whether nobody stated the column's role."""
    return "role" not in column.model_fields_set


def _refusal(where: str, name: str, reason: str) -> str:
    return (
        f"{where}: '{name}' {reason}, and what tells rows or persons apart is no feature; leave it "
        "out, or describe it in a contract with role = 'feature' and give that as data.contract"
    )


def named_apart(experiment: Experiment, contract: Contract) -> Contract:
    """A contract whose rows are elsewhere, without the role of a feature where the name of a column
    for which nobody stated one is that of an identifier. Raises ConfigurationError if it is listed."""
    features, columns, nothing = _listed(experiment), dict(contract.columns), pd.Series(dtype=float)
    inputs = experiment.columns_besides_features()
    for name, column in columns.items():
        reason = identifying(name, nothing, None)
        if reason is None or name in inputs or not _is_open(column):
            continue
        if name in features:
            raise ConfigurationError(_refusal(features[name], name, reason))
        columns[name] = column.model_copy(update={"role": "identifier"})
    return contract.model_copy(update={"columns": columns})


def unused(
    experiment: Experiment, contract: Contract, features: Features, left_out: Mapping[str, str]
) -> dict[str, str]:
    """Why each column of a contract that has no other part in the study is no feature."""
    parts = {
        *experiment.columns_besides_features(),
        *(f.column for t in features.values() for f in t),
    }
    reasons = {}
    for name, column in contract.columns.items():
        if name in parts or name in (KEY, BLOCK):
            continue
        if name in left_out:
            reasons[name] = left_out[name]
        elif column.role != "feature":
            reasons[name] = f"has the role '{column.role}'"
        elif name == experiment.parties.column:
            reasons[name] = "deals the rows to the parties"
        else:
            reasons[name] = "is not listed"
    return reasons


def _listed(experiment: Experiment) -> dict[str, str]:
    """The columns whose values or levels a model or a comparison shows, and where they are listed."""
    lists = {"data.features": experiment.data.features}
    if isinstance(experiment.model, GLMSettings) and experiment.model.severity:
        lists["model.severity.features"] = experiment.model.severity.features
    lists["detection.groups"] = experiment.detection.groups if experiment.detection else ()
    return {
        f if isinstance(f, str) else f.column: where
        for where, features in lists.items()
        for f in features or ()
    }


def usable(
    experiment: Experiment, features: Features, table: Table
) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """The columns a study needs, capped, without the rows left out for missing values; and which
    rows of the table are left. Raises ConfigurationError and ContractError."""
    data, frame = experiment.data, table.frame
    columns = columns_needed(experiment, features)
    for name in columns:
        if name not in frame.columns:
            near = nearest(name, list(frame.columns))
            hint = f"; did you mean '{near}'?" if near else ""
            raise ConfigurationError(f"{table.origin}: there is no column '{name}'{hint}")
    for key, name in _numeric(experiment):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise ConfigurationError(
                f"{key}: '{name}' holds text, not numbers; write numbers in the table, 1 and 0 for "
                "yes and no"
            )
    for name, limit in data.cap.items():
        if name not in frame.columns or not pd.api.types.is_numeric_dtype(frame[name]):
            raise ConfigurationError(f"data.cap: '{name}' is not a numeric column")
        frame[name] = frame[name].clip(upper=limit)
    frame = frame[columns]
    row_numbers = np.arange(len(frame))
    if data.missing == "drop":
        row_numbers = np.flatnonzero(frame.notna().all(axis=1))
        frame = frame.iloc[row_numbers]  # which rows of the file they are stands in the index
        if frame.empty:
            raise ContractError(f"{table.origin}: no row is left after dropping missing values")
    for name in experiment.columns_besides_features():
        if frame[name].isna().any():
            raise ContractError(
                f"{table.origin}: column '{name}' is missing in some rows; set data.missing = "
                "'drop' to leave them out",
                (f"missing in {int(frame[name].isna().sum())} rows",),  # for the party's own eyes
            )
    own = _own(experiment, features)
    check_features(frame, tuple(sorted(own, key=str)), data.missing)
    for task in experiment.tasks().values():  # here, where rows may be named
        task.check_claims(frame)
        Response(task.rows(frame), task)
    return frame.reset_index(drop=True), row_numbers


def _numeric(experiment: Experiment) -> list[tuple[str, str]]:
    """The columns that must hold numbers, each with the key that names it."""
    data, detection = experiment.data, experiment.detection
    places = {"target": data.target, "exposure": data.exposure, "weight": data.weight}
    pairs = [(f"data.{key}", name) for key, name in (places | {"per": data.per}).items()]
    if isinstance(experiment.model, GLMSettings) and experiment.model.severity:
        severity = experiment.model.severity
        pairs += [
            ("model.severity.target", severity.target),
            ("model.severity.per", severity.per),
        ]
    if detection is not None:
        pairs += [("detection.truth", detection.truth), ("detection.amount", detection.amount)]
    return [(key, name) for key, name in pairs if name]


def wanted_columns(experiment: Experiment, contract: Contract | None) -> list[str] | None:
    """The columns to read of a table without a contract: those the experiment names."""
    if contract is not None or experiment.data.features is None:
        return None
    columns = [f if isinstance(f, str) else f.column for f in experiment.data.features]
    if isinstance(experiment.model, GLMSettings) and experiment.model.severity:
        more = experiment.model.severity.features or ()
        columns += [f if isinstance(f, str) else f.column for f in more]
    extra = [experiment.parties.column] if experiment.parties.column else []
    extra += experiment.detection.columns() if experiment.detection else []
    return list(dict.fromkeys([*experiment.columns_besides_features(), *extra, *columns]))


def declared_categories(experiment: Experiment) -> list[str]:
    """The columns whose values the experiment takes as levels, which are read as they are written."""
    features = [*(experiment.data.features or ())]
    if isinstance(experiment.model, GLMSettings) and experiment.model.severity:
        features += experiment.model.severity.features or ()
    features += experiment.detection.groups if experiment.detection else ()
    return [f.column for f in features if isinstance(f, Feature) and (f.category or f.ordinal)]


# What is public of a market.


class StudiedMarket(Protocol):
    """A study's market: where it comes from, its contract, the features and sizes of its parties.

    by_contract: what the experiment left to the contract, in words; unused: why each other column
    of the contract is no feature; told: what payers of a simulated market find by telling each other.
    """

    origin: str
    digest: str
    in_sample: bool
    contract: Contract
    by_contract: tuple[str, ...]
    unused: dict[str, str]
    told: tuple[dict[str, Any], ...]

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
    told: tuple[dict[str, Any], ...] = ()

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
