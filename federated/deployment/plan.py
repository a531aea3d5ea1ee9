"""What a run is about, as the coordinator announces it to every party."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from federated.solvers.glm import GLMSettings
from federated.study.experiment import Experiment
from federated.study.plan import StudyPlan
from federated.study.rows import Features, named_apart
from federated.study.scoring import public_comparisons
from federated.study.simulation import public_cells
from lab.errors import ConfigurationError
from lab.privacy.disclosure import Rules
from lab.tables.contracts import Contract
from lab.tables.partition import Split
from lab.tables.sources import built_in
from secure_agg.transcript import FEWEST


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
    data = experiment.data
    if data.contract is not None:
        contract = Contract.read(Path(data.contract))
    elif data.source is not None:
        contract = built_in(data.source)
    else:
        raise ConfigurationError("data.contract: required, because the rows are at the parties")
    if data.test_rows is not None:
        raise ConfigurationError(
            "data.test_rows: not possible, the rows are at the parties; use data.test_column"
        )
    for profile in experiment.profile:
        profile.check(contract)
    nowhere = dict.fromkeys(("source", "contract", "encoding", "table", "query", "market"))
    public = data.model_copy(update={**nowhere, "path": "at the parties"})
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
    file = experiment.protection.disclosure
    rules = Rules.read(None if file is None else Path(file))
    fewest = rules.minimum_parties.parties
    return StudyPlan(
        experiment=public_experiment, contract=contract, rules=rules, least_parties=fewest
    )
