"""What a run is about, as the coordinator announces it to every party."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from federated.deployment.charter import Analysis
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError
from lab.files import canonical
from lab.models.design import Feature
from lab.models.profile import profiled
from lab.records import parse
from lab.tables.contracts import Contract
from lab.tables.partition import Split
from lab.tables.sources import built_in
from secure_agg.transcript import FEWEST


@dataclass(frozen=True)
class AnnouncedPlan:
    """What a run is about, as the coordinator announces it to every party."""

    experiment: Experiment
    contract: Contract

    def to_json(self) -> str:
        fields = {
            "experiment": self.experiment.model_dump(mode="json"),
            "contract": self.contract.model_dump(mode="json"),
        }
        return canonical(fields).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises :class:`ConfigurationError`."""
        try:
            fields = json.loads(text)
            experiment, contract = fields["experiment"], fields["contract"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ConfigurationError("the announced experiment is not readable") from None
        return cls(
            parse(Experiment, experiment, where="the announced experiment"),
            parse(Contract, contract, where="the announced contract"),
        )

    @property
    def kind(self) -> Analysis:
        """The analysis it is: questions, where it holds any, or a kind of model."""
        return "questions" if self.experiment.query else self.experiment.model.kind

    @property
    def title(self) -> str:
        """What it is, for people: the experiment's name, or the questions."""
        return printable("; ".join(q.sql for q in self.experiment.query) or self.experiment.name)

    @property
    def kinds(self) -> tuple[Analysis, ...]:
        """All analyses it takes."""
        return (self.kind, "profiles") if self.experiment.profile else (self.kind,)

    @property
    def joined_contract(self) -> Contract:
        """The contract with the columns of profiles, as models see it."""
        return profiled(self.contract, self.experiment.profile)

    @property
    def features(self) -> dict[str, tuple[Feature, ...]]:
        """The features of each task."""
        tasks = self.experiment.tasks()
        return {task: self.experiment.features(self.joined_contract, task) for task in tasks}

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: what a person approves."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def printable(text: str) -> str:
    """Somebody else's text on one line, without what a terminal would act on: what a person
    approves is what stands there."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def announced(experiment: Experiment) -> AnnouncedPlan:
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
    nowhere = dict.fromkeys(("source", "contract", "table", "query", "market"))
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
    return AnnouncedPlan(public_experiment, contract)


def asked_of(experiment: Experiment) -> AnnouncedPlan:
    """What parties are told of an experiment's questions: their texts, and no model's features."""
    plan = announced(experiment.model_copy(update={"profile": (), "detection": None}))
    queries = {"query": experiment.query}
    return AnnouncedPlan(plan.experiment.model_copy(update=queries), plan.contract)
