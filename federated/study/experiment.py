"""An experiment is one TOML file, and this is its form: every table, every key, what each may be.

>>> values = {"name": "visits", "data": {"source": "rand_hie", "target": "mdvis"}}
>>> experiment = Experiment.model_validate(values | {"model": {"kind": "glm"}})
>>> list(experiment.tasks()), experiment.protection.sums
(['model'], 'paillier')
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from federated.joined.sums.laws import check_law
from federated.shipped import experiment_file
from federated.solvers.crosses import crossed
from federated.solvers.features import check_feature
from federated.solvers.glm import GLMSettings
from federated.solvers.kinds import AnySettings
from federated.solvers.trees import TreesSettings
from federated.study.settings import (
    ARMS_OF_SIDES,
    AlignmentSettings,
    Arms,
    Data,
    Detection,
    JoinedTable,
    ProtectionSettings,
    Query,
    Tune,
    check_places,
    look_beside,
)
from lab.errors import ConfigurationError
from lab.models.design import Feature
from lab.models.families import Family
from lab.models.files import premium_task
from lab.models.glm import Task
from lab.models.profile import Profiling
from lab.records import Strict, parse, read_toml, set_key
from lab.scores.explanation import Explain
from lab.tables.contracts import Column, Contract
from lab.tables.partition import Split


class Experiment(Strict):
    """The one definition of an experiment file."""

    name: str = Field(description="Name of the run, and of the registered model.")
    seed: int = Field(0, ge=0, description="Same seed, same bits.")
    data: Data = Field(description="Where the rows are and what is modelled.")
    parties: Split = Field(
        Split(split="uniform", count=5), description="How rows are dealt to simulated parties."
    )
    model: AnySettings = Field(description="What is fitted.")
    detection: Detection | None = Field(
        None, description="How a fraud detector is scored; default: not at all."
    )
    explain: Explain | None = Field(
        None, description="What the federated model makes of its features; default: not asked."
    )
    profile: tuple[Profiling, ...] = Field(
        (), description="Profiles of providers that all parties share, as features."
    )
    protection: ProtectionSettings = Field(
        ProtectionSettings(), description="How contributions are hidden."
    )
    arms: Arms = Field(Arms(), description="Which arms run.")
    query: tuple[Query, ...] = Field(
        (), description="Questions asked before the arms run; their answers enter the report."
    )
    joined: tuple[JoinedTable, ...] = Field(
        (), description="The tables of two sides that know the same persons in other columns."
    )
    alignment: AlignmentSettings = Field(
        AlignmentSettings(), description="Who learns which persons joined sides have in common."
    )
    tune: Tune | None = Field(None, description="What `lab tune` searches; other commands do not.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_joined_sides(cls, values: Any) -> Any:
        """One insurer and the fund, unless the file says more."""
        if not isinstance(values, dict) or not values.get("joined"):
            return values
        arms = values.get("arms", {})
        if isinstance(arms, dict):
            arms = {"run": list(ARMS_OF_SIDES)} | arms
            if values.get("protection", {}).get("product") == "paillier":
                arms = {"replicates": 0} | arms  # which are made row by row, at some cost
        return {"parties": {"split": "uniform", "count": 1}} | values | {"arms": arms}

    @model_validator(mode="after")
    def _rows_come_from_one_place(self) -> Self:
        check_places(self.data, self.joined, self.arms.run)
        return self

    @model_validator(mode="after")
    def _personal_follows_federated(self) -> Self:
        arms = self.arms.run
        if "personal" not in arms:
            return self
        if self.model.kind != "network":
            raise ValueError(
                "arms.run: 'personal' tunes the last layer of a network and needs "
                f"model.kind = 'network', got '{self.model.kind}'"
            )
        if "federated" not in arms[: arms.index("personal")]:
            raise ValueError("arms.run: list 'federated' before 'personal', which starts from it")
        return self

    @classmethod
    def read(cls, path: str | Path, changes: dict[str, Any] | None = None) -> Experiment:
        """Read an experiment file, or a shipped one by name; ``changes``: dotted keys, as ``--set``.

        A relative path is looked for beside the file, then here; one of ``changes`` only here.
        """
        values = read_toml(path := experiment_file(path))
        look_beside(values, path.parent)
        for key, value in (changes or {}).items():
            set_key(values, key, value)
        if isinstance(values.get("model"), dict):
            values["model"].setdefault("kind", "glm")
        experiment = parse(cls, values, where=str(path))
        experiment.check()
        return experiment

    def check(self) -> None:
        """Refuse what no single table forbids."""
        self.parties.check()
        self.tasks()
        self.check_detection()
        self.check_profiles()
        self.check_joined()

    def check_joined(self) -> None:
        """Refuse what can't be done over joined sides, or over no others."""
        if not self.joined:
            if getattr(self.model, "own_trees", 0):
                raise ConfigurationError("model.own_trees: is for joined sides; drop it")
            return
        choices = {
            "model.kind": (self.model.kind, ("glm", "trees")),
            "protection.sums": (self.protection.sums, ("paillier", "clear")),
            "protection.key": (self.protection.key, ("authority",)),
        }
        for key, (value, allowed) in choices.items():
            if value not in allowed:
                raise ConfigurationError(
                    f"{key}: joined sides take {' or '.join(map(repr, allowed))}, got '{value}'"
                )
        if self.profile or self.explain:
            raise ConfigurationError("joined: takes a model, without [[profile]] and [explain]")
        for feature in self.data.features or ():
            if isinstance(feature, Feature) and isinstance(feature.knots, int):
                raise ConfigurationError(
                    f"data.features: '{feature.column}' has knots at quantiles, which joined sides do not look "
                    "up; list the knots, as spline = [20.0, 40.0, 60.0]"
                )
        if self.model.kind == "trees":
            self._check_joined_trees()
            return
        if isinstance(self.model, GLMSettings) and self.model.crosses:
            raise ConfigurationError(
                "model.interactions: are not made of columns of two sides; drop them over joined sides"
            )
        if isinstance(self.model, GLMSettings) and self.model.theta is not None:
            raise ConfigurationError("model.theta: joined sides fit Poisson counts; drop it")
        if isinstance(self.model, GLMSettings) and self.model.penalty.chooses:
            raise ConfigurationError(
                "model.alpha: joined sides hold out no persons to choose it by; give one number"
            )
        if self.detection:
            raise ConfigurationError(
                "detection: ranking takes each row's score, which over joined sides the insurer knows of "
                "trees alone; set model.kind = 'trees'"
            )
        tasks = self.tasks()
        if len(tasks) > 1 and any(task.law.link != "log" for task in tasks.values()):
            raise ConfigurationError(
                "model.severity: over joined sides a pure premium takes the log link in both of its parts"
            )
        for task in tasks.values():
            check_law(task.law)

    def _check_joined_trees(self) -> None:
        """Refuse what trees can't do over joined sides."""
        assert isinstance(self.model, TreesSettings)
        if (own := self.model.own_trees) > self.model.trees:
            raise ConfigurationError(
                f"model.own_trees: at most model.trees, {self.model.trees}, got {own}"
            )
        if (learns := self.alignment.learns) not in ("both", "insurer"):
            raise ConfigurationError(
                f"alignment.learns: trees over joined sides need 'insurer' or 'both', got '{learns}': the "
                "insurer follows its rows through cuts, so it knows which are common"
            )
        if self.data.per:
            raise ConfigurationError(
                "data.per: trees over joined sides take no amounts per claim: which rows have claims would be "
                "told to the fund"
            )

    def check_detection(self) -> None:
        """Refuse ``[detection]`` where the model gives no probability of fraud."""
        if self.detection is not None and (
            self.model.family != "binomial" or self.data.exposure or self.data.per
        ):
            raise ConfigurationError(
                "detection: is for a probability of fraud; it needs model.family = 'binomial', "
                "without data.exposure and data.per"
            )

    def check_profiles(self) -> None:
        """Refuse profiles where persons cannot be counted or totals cannot be held back."""
        if not self.profile:
            return
        if self.data.person is None:
            raise ConfigurationError(
                "profile: profiles count distinct persons; set data.person to the column of who a row belongs to"
            )
        if self.protection.sums == "masks":
            raise ConfigurationError(
                "profile: under masks the coordinator opens every total, so small cells cannot be "
                "held back; set protection.sums = 'paillier'"
            )
        if isinstance(self.model, GLMSettings) and self.model.severity:
            raise ConfigurationError(
                "profile: cannot be combined with model.severity; leave one of them out"
            )

    def tasks(self) -> dict[str, Task]:
        """The models to fit by name: ``model``, or ``frequency`` and ``severity``."""
        data, model = self.data, self.model
        family = Task(
            target=data.target,
            exposure=data.exposure or None,
            exposure_as=data.exposure_as,
            weight=data.weight or None,
            per=data.per,
            **model.law(),
        )
        if data.missing in ("mean", "keep") and data.missing != model.missing:
            raise ConfigurationError(
                f"data.missing = '{data.missing}' does not fit {model.kind}: trees keep missing values "
                "in a bin of their own ('keep'), other models fill in the mean ('mean')"
            )
        law = family.law
        if data.exposure and not self._takes_exposure(law):
            raise ConfigurationError(
                f"data.exposure enters as a log offset and needs the log link; {model.family} has "
                f"'{law.link}' here: set model.link = 'log', or data.exposure_as = 'weight' for "
                "amounts for one unit of exposure"
            )
        if not isinstance(model, GLMSettings) or model.severity is None:
            model.check()
            return {"model": family}
        severity = model.severity
        if severity.per != data.target:
            raise ConfigurationError(
                f"model.severity.per: '{severity.per}' counts other claims than data.target, "
                f"'{data.target}'; a pure premium is of one count of claims: give one column for both"
            )
        amount = Task(
            target=severity.target,
            per=severity.per,
            family=severity.family,
            power=severity.power,
            link="log" if severity.family == "gaussian" else None,
        )
        Family.make(severity.family, amount.link, severity.power)
        return {"frequency": family, "severity": amount}

    @property
    def headline(self) -> str:
        """The score that arms and settings are compared by."""
        return "average_precision" if self.detection else "deviance_explained"

    def all_tasks(self) -> dict[str, Task]:
        """What is scored by name: the models to fit, and their product where there are two."""
        tasks = self.tasks()
        return tasks | ({"pure premium": self.premium_task()} if "severity" in tasks else {})

    def premium_task(self) -> Task:
        """The pure premium as a response."""
        tasks = self.tasks()
        return premium_task(tasks["frequency"], tasks["severity"])

    def under(self, contract: Contract) -> tuple[Experiment, tuple[str, ...]]:
        """The experiment with the exposure and the weight that its contract names where it names
        none itself, and what was taken from there, in words.

        Raises ConfigurationError where it names other columns than the contract has for a role.
        """
        taken = {}
        for role in ("target", "exposure", "weight"):
            columns = [name for name, column in contract.columns.items() if column.role == role]
            named = getattr(self.data, role)
            if named is None and columns and not (role == "exposure" and self.data.per):
                taken[role] = self._only(role, columns, contract)
            elif (
                named in contract.columns
                and columns
                and not self._may_be(role, contract.columns[named])
            ):
                raise ConfigurationError(
                    f"data.{role}: '{named}' has another role in contract {contract.name}, where "
                    f"{' or '.join(map(repr, columns))} is the {role}; name that, or change the contract"
                )
        if not taken:
            return self, ()
        data = self.data.model_copy(update=taken)
        words = [f"{role} {name}, by contract {contract.name}" for role, name in taken.items()]
        return self.model_copy(update={"data": data}), tuple(words)

    def _may_be(self, role: str, column: Column) -> bool:
        """Whether a column may play a role: its own, and what is a feature may be modelled."""
        return column.role == role or (role == "target" and column.role == "feature")

    def _only(self, role: str, columns: list[str], contract: Contract) -> str:
        """The one column that a contract has for a role, if it can play it here."""
        where = (
            f"data.{role}: contract {contract.name} has {' and '.join(map(repr, columns))} for it"
        )
        leave_out = f"set data.{role} = '' to leave it out"
        if role == "exposure" and not self._takes_exposure(
            Task(target=self.data.target, **self.model.law()).law
        ):
            raise ConfigurationError(
                f"{where}, which this model takes neither as an offset nor as a weight; {leave_out}"
            )
        if len(columns) > 1:
            raise ConfigurationError(f"{where}; name one of them, or {leave_out}")
        return columns[0]

    def _takes_exposure(self, law: Family) -> bool:
        """Whether a column of exposure can enter the model as the experiment says it enters."""
        return law.name != "binomial" and (law.link == "log" or self.data.exposure_as == "weight")

    def features(self, contract: Contract, task: str) -> tuple[Feature, ...]:
        """The features of a task; without a list, every feature column of the contract."""
        choice = self.data.features
        if task == "severity" and isinstance(self.model, GLMSettings) and self.model.severity:
            choice = self.model.severity.features or choice
        self._check_person()
        if self.data.exposure_as == "weight" and not self.data.exposure:
            raise ConfigurationError(
                "data.exposure_as = 'weight' needs a column: set data.exposure"
            )
        other_roles = set(self.columns_besides_features())
        if choice is None:
            choice = tuple(
                name
                for name, column in contract.columns.items()
                if column.role == "feature" and name not in {*other_roles, self.parties.column}
            )
        features = tuple(Feature(column=f) if isinstance(f, str) else f for f in choice)
        for feature in features:
            check_feature(feature, contract, other_roles, self.data.exposure, self.model.kind)
        if isinstance(self.model, GLMSettings):
            if self.model.alpha is not None and any(f.monotone for f in features):
                raise ConfigurationError(
                    "model.alpha: a fit with monotone features takes model.ridge alone; drop one of them"
                )
            crossed(features, self.model.interactions_of(self.tasks()[task]))
        if not features:
            raise ConfigurationError("data.features: there is no feature to model with")
        return features

    def _check_person(self) -> None:
        """Refuse the person as a source of anything that a model is made of or compared by."""
        columns = [column for profile in self.profile for column in profile.reads()]
        columns += self.detection.columns() if self.detection else []
        if self.data.person in columns:
            raise ConfigurationError(
                f"data.person: '{self.data.person}' names the person of a row; leave it out of profiles "
                "and of detection"
            )

    def columns_besides_features(self) -> list[str]:
        """The target and what belongs to it, the person and the test column."""
        d, columns = self.data, []
        columns += [d.target, d.exposure, d.weight, d.per, d.person, d.test_column]
        if isinstance(self.model, GLMSettings) and self.model.severity:
            columns += [self.model.severity.target, self.model.severity.per]
        if self.detection is not None:
            columns += [self.detection.truth, self.detection.typology]
        return [name for name in columns if name]
