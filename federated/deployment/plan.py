"""What a run is about, as the coordinator announces it to every party."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from federated.solvers.glm import GLMSettings
from federated.study.experiment import Experiment
from federated.study.joined import contract_of_sides, refuse_at_fund
from federated.study.plan import StudyPlan
from federated.study.rows import Features, named_apart
from federated.study.scoring import public_comparisons
from federated.study.settings import KEY, JoinedTable
from federated.study.simulation import public_cells
from lab.errors import ConfigurationError
from lab.packages import version_of
from lab.privacy.disclosure import Rules
from lab.tables.contracts import Contract
from lab.tables.partition import Split
from lab.tables.sources import built_in
from secure_agg.transcript import FEWEST

#: Where rows are, in a plan.
NOWHERE = {
    **dict.fromkeys(("source", "contract", "encoding", "table", "query")),
    "path": "at the parties",
}


def announced(experiment: Experiment) -> StudyPlan:
    """The plan of an experiment's model, as all parties are told it."""
    plan = _public(experiment)
    public, _ = plan.experiment.under(plan.contract)
    contract = named_apart(public, plan.contract)
    plan = plan.model_copy(update={"experiment": public, "contract": contract})
    features = plan.features
    by_level, groups = public_comparisons(plan.experiment, plan.joined, features)
    return plan.model_copy(
        update={
            "experiment": _with_features(plan.experiment, features),
            "by_level": by_level,
            "groups": groups,
            "cells": public_cells(experiment, plan.contract),
        }
    )


def _with_features(experiment: Experiment, features: Features) -> Experiment:
    """The experiment with its features listed, in order: what follows from a default is not read
    out of a contract by every party."""
    first, *others = features.values()
    data = experiment.data.model_copy(update={"features": first})
    changes: dict[str, Any] = {"data": data}
    if others and isinstance(experiment.model, GLMSettings) and experiment.model.severity:
        severity = experiment.model.severity.model_copy(update={"features": others[0]})
        changes["model"] = experiment.model.model_copy(update={"severity": severity})
    return experiment.model_copy(update=changes)


def questions_of(experiment: Experiment) -> StudyPlan:
    """The plan of an experiment's questions: their texts, and no model's features."""
    plan = _public(experiment.model_copy(update={"profile": (), "detection": None}))
    with_questions = plan.experiment.model_copy(update={"query": experiment.query})
    return plan.model_copy(update={"experiment": with_questions})


def _public(experiment: Experiment) -> StudyPlan:
    """What parties are told of an experiment: no path, no arm but the federated."""
    if experiment.joined:
        return _public_sides(experiment)
    data = experiment.data
    contract = _contract_of(data.contract, data.source, "data")
    if data.test_rows is not None:
        raise ConfigurationError(
            "data.test_rows: not possible, the rows are at the parties; use data.test_column"
        )
    for profile in experiment.profile:
        profile.check(contract)
    public = data.model_copy(update={**NOWHERE, "market": None})
    arm = experiment.arms.model_copy(update={"run": ("federated",)})
    public_experiment = experiment.model_copy(
        update={
            "data": public,
            "arms": arm,
            "query": (),
            "parties": Split(count=FEWEST),
            "profile": tuple(
                p.model_copy(update={"register_file": None}) for p in experiment.profile
            ),
            "protection": experiment.protection.model_copy(update={"disclosure": None}),
        }
    )
    rules = _rules(experiment)
    return StudyPlan(
        package=version_of(experiment.model.kind),
        experiment=public_experiment,
        contract=contract,
        rules=rules,
        least_parties=rules.minimum_parties.parties,
    )


def _public_sides(experiment: Experiment) -> StudyPlan:
    """What joined sides are told: whose column is whose, by the contracts of both."""
    blocks = [block for block in experiment.joined if block.role == "insurer"]
    (fund,) = (block for block in experiment.joined if block.role == "fund")
    own, theirs = (
        _of_columns(block, _contract_of(block.contract, block.source, f"joined ({block.name})"))
        for block in (blocks[0], fund)
    )
    held = {name for name in theirs.columns if name not in fund.keys}
    if both := sorted(held & (set(own.columns) - set(blocks[0].keys))):
        raise ConfigurationError(
            f"joined: both sides have a column '{both[0]}'; rename it at one of them, or leave it out"
        )
    refuse_at_fund(experiment, sorted(held))
    data = experiment.data
    public = data.model_copy(update={"person": data.person or KEY})
    joined = tuple(
        b.model_copy(update=NOWHERE | {"name": b.name or b.role}) for b in experiment.joined
    )
    arm = experiment.arms.model_copy(update={"run": ("federated",)})
    protection = experiment.protection.model_copy(update={"disclosure": None})
    changes = {"data": public, "arms": arm, "joined": joined, "protection": protection}
    return StudyPlan(
        experiment=experiment.model_copy(update=changes),
        contract=contract_of_sides(blocks[0], own, theirs, fund),
        rules=_rules(experiment),
        fund_columns=tuple(sorted(held)),
    )


def _of_columns(block: JoinedTable, contract: Contract) -> Contract:
    """A side's contract with the columns that take part."""
    if block.columns is None:
        return contract
    names = [n for n in contract.columns if n in (*block.keys, *block.columns)]
    columns = {name: contract.columns[name] for name in names}
    return contract.model_copy(update={"columns": columns})


def _rules(experiment: Experiment) -> Rules:
    file = experiment.protection.disclosure
    return Rules.read(None if file is None else Path(file))


def _contract_of(file: str | None, source: str | None, where: str) -> Contract:
    """The contract of tables that are elsewhere. Raises ConfigurationError where none is named."""
    if file is not None:
        return Contract.read(Path(file))
    if source is not None:
        return built_in(source)
    raise ConfigurationError(f"{where}.contract: required, because the rows are at the parties")
