"""A study's plan: everything that decides its questions, known to every party before the first.

A study's solver is a deterministic function of its plan and of the totals opened so far. So whoever
has the plan and the totals knows the next question, and nobody has to take one on trust.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Self

from pydantic import Field

from federated.joined.sums.factors import Owner
from federated.solvers.encoding import is_category
from federated.study.experiment import Experiment
from federated.study.rows import Features
from lab.errors import ConfigurationError
from lab.files import canonical
from lab.models.design import Feature, Levels
from lab.models.profile import ProfileCells, profiled
from lab.privacy.disclosure import Rules
from lab.records import Strict, parse
from lab.statistics import PROFILES, QUESTIONS
from lab.tables.contracts import Contract
from lab.text import printable

#: The solvers that carry a plan out; other versions may arrive at other questions.
SOLVERS_VERSION = version("insurance-privacy-lab")


class StudyPlan(Strict):
    """One study, whole.

    package: with its version, that adds the kind of model, where it is not one of ours;
    contract: of the parties' tables, before profiles are joined; rules: of disclosure, the fewest
    persons and parties among them; least_parties: that each level, bin, leaf and cell of a score stands
    on, where parties know different persons; cells: of each profile, from a public register; by_level,
    groups: what actual and expected, and the decisions of a detector, are compared by, for each
    part of the model; fund_columns: those that the fund holds, where sides are joined.
    """

    version: str = SOLVERS_VERSION
    package: str = ""
    experiment: Experiment
    contract: Contract
    rules: Rules
    least_parties: int = Field(1, ge=1)
    cells: tuple[ProfileCells, ...] = ()
    by_level: dict[str, tuple[Levels, ...]] = Field(default_factory=dict)
    groups: tuple[Levels, ...] = ()
    fund_columns: tuple[str, ...] = ()

    @property
    def owner(self) -> Owner:
        """Which of two joined sides holds a column."""
        return lambda column: "fund" if column in self.fund_columns else "insurer"

    @property
    def kind(self) -> str:
        """The analysis it is: questions, where it holds any, or a kind of model."""
        return QUESTIONS if self.experiment.query else self.experiment.model.kind

    @property
    def kinds(self) -> tuple[str, ...]:
        """All analyses it takes."""
        return (self.kind, PROFILES) if self.experiment.profile else (self.kind,)

    @property
    def title(self) -> str:
        """What it is, for people: the experiment's name, or the questions."""
        return printable("; ".join(q.sql for q in self.experiment.query) or self.experiment.name)

    @property
    def joined(self) -> Contract:
        """The contract with the columns of profiles, as models see it."""
        return profiled(self.contract, self.experiment.profile)

    @property
    def features(self) -> Features:
        """The features of each task."""
        contract = self.joined
        return {task: self.experiment.features(contract, task) for task in self.experiment.tasks()}

    def to_json(self) -> str:
        """Its one canonical encoding."""
        return canonical(self.model_dump(mode="json")).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The plan that :meth:`to_json` wrote. Raises :class:`ConfigurationError`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigurationError("the announced plan is not readable") from None
        return parse(cls, values, where="the announced plan")

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: what is approved, and what every question is bound to."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def unlisted(self) -> dict[str, Feature]:
        """Features whose levels the contract does not list, by column: parties announce them."""
        contract = self.joined
        features = [f for task in self.features.values() for f in task]
        return {
            f.column: f
            for f in features
            if is_category(f, contract)
            and f.cut is None
            and contract.columns[f.column].levels is None
        }
