"""An experiment is one TOML file, and this is its form: every table, every key, what each may be.

>>> values = {"name": "visits", "data": {"source": "rand_hie", "target": "mdvis"}}
>>> experiment = Experiment.model_validate(values | {"model": {"kind": "glm"}})
>>> list(experiment.tasks()), experiment.protection.sums
(['model'], 'paillier')
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from federated.solvers.glm import GLMSettings
from federated.solvers.kinds import AnySettings
from federated.study.experiment_file import experiment_file, look_beside, set_key
from lab.errors import ConfigurationError
from lab.models.design import Feature
from lab.models.families import Family
from lab.models.glm import Task
from lab.models.profile import Profiling
from lab.privacy.noise import Noise
from lab.queries.query_table import Budget
from lab.records import Strict, nearest, parse, read_toml
from lab.tables.contracts import Contract
from lab.tables.partition import Split

Arm = Literal["alone", "without", "federated", "personal", "pooled"]


class MarketSettings(Strict):
    """``[data.market]``: a simulated market that is made for the run."""

    persons: int = Field(50_000, description="Persons in the market.")
    insurers: int = Field(4, description="Commercial insurers beside the public one.")
    seed: int = Field(0, description="Same seed, same market, bit for bit.")


class Data(Strict):
    """``[data]``: where the rows are, what is modelled, what is kept for testing.

    ``group_by_person``: the rows of a person are at one party and on one side of the split for testing;
    if not, a person may be at several parties, and before and after a split by time.
    """

    source: str | None = Field(
        None,
        description="A built-in source; `lab data describe SOURCE` says what it holds. One that is not shipped takes its file by path.",
    )
    path: str | None = Field(
        None,
        description="A CSV (.gz) or Parquet file, a folder for sources of several files, or a SQLAlchemy URL with table or query.",
    )
    market: MarketSettings | None = Field(
        None,
        description="With source = 'market' and no path: a simulated market, made for the run.",
    )
    contract: str | None = Field(
        None,
        description="A contract file, or the name of a built-in contract. Without one the columns have types only.",
    )
    encoding: str | None = Field(
        None, description="Encoding of a CSV that is not UTF-8, as gb18030 or cp1252."
    )
    table: str | None = Field(None, description="The table to read where path is a database.")
    query: str | None = Field(None, description="Rows to read where path is a database: SQL.")
    target: str = Field(description="The column that is modelled.")
    exposure: str | None = Field(
        None, description="Exposure column, in years: enters as a log offset."
    )
    weight: str | None = Field(None, description="Weight column: divides the dispersion.")
    per: str | None = Field(
        None,
        description="The target is the total of so many claims (a column of counts): models the amount per claim.",
    )
    features: tuple[str | Feature, ...] | None = Field(
        None,
        description="Column names, or tables such as { column = 'age', cut = [20, 30] }; default: every feature column of the contract; without one, numbers that repeat and short lists of levels.",
    )
    person: str | None = Field(None, description="Column that says whose row it is.")
    group_by_person: bool = Field(
        True, description="Rows of one person stay at one party and on one side of the test split."
    )
    cap: dict[str, float] = Field(
        default_factory=dict,
        description="Largest value by column, as { ClaimNb = 4 }: larger values become it.",
    )
    missing: Literal["refuse", "drop", "mean", "keep"] = Field(
        "refuse",
        description="Rows with missing values: refuse the table, drop the rows, fill in the training mean (not for trees), or keep them in a bin of their own (trees only).",
    )
    test: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of rows kept for testing; 0 fits on every row and scores in sample.",
    )
    test_rows: str | None = Field(
        None,
        description="A file of zero-based numbers of test rows, counted in the table as it lies there: rows dropped for missing values keep their numbers.",
    )
    test_column: str | None = Field(
        None, description="Test rows are those where this column has test_value."
    )
    test_value: str | int | None = Field(None, description="See test_column.")

    @model_validator(mode="after")
    def _one_place_and_one_split(self) -> Self:
        if self.source is None and self.path is None:
            raise ValueError("give source or path")
        if self.market is not None and (self.source != "market" or self.path is not None):
            raise ValueError("market is made where source = 'market' and no path is given")
        if (self.test_column is None) != (self.test_value is None):
            raise ValueError("test_column and test_value go together")
        if self.test_rows is not None and self.test_column is not None:
            raise ValueError("give test_rows or test_column, not both")
        return self


class ProtectionSettings(Strict):
    """``[protection]``: how contributions are hidden, who can open a total, the least rows a party
    lets out a sum of; for questions the file of disclosure rules (the lab's own if none), what a
    party may spend on noised answers, and whether it answers with noise alone."""

    sums: Literal["clear", "paillier", "masks"] = Field(
        "paillier",
        description="How contributions are hidden: Paillier encryption, pairwise masks (three parties or more), or not at all.",
    )
    key: Literal["authority", "split"] = Field(
        "authority",
        description="With paillier, who can open totals: a key authority, or all parties together.",
    )
    key_bits: int = Field(3072, ge=2048, description="Length of the Paillier modulus.")
    minimum_rows: int = Field(1, ge=1, description="The fewest rows a party lets out a sum of.")
    disclosure: str | None = Field(
        None, description="A file of disclosure rules for questions; default: the lab's own."
    )
    budget: Budget | None = Field(
        None, description="What each party may ever spend on noised answers."
    )
    noised: bool = Field(False, description="Answer questions with noise alone.")


class Detection(Strict):
    """``[detection]``: how a fraud detector is scored.

    ``truth``: the column of 0 and 1 that it is judged by, the target if none. ``typology``: the
    kind of each fraud. ``amount``: what is saved where a fraud is stopped. ``groups``: who is
    compared for fairness. ``budget``: the share of claims that can be investigated, each at
    ``investigation_cost``. The columns named here are read on test rows alone.
    """

    truth: str | None = Field(
        None, description="Column of 0 and 1 that the detector is judged by; default: the target."
    )
    typology: str | None = Field(None, description="Column that says which kind of fraud a row is.")
    amount: str | None = Field(
        None, description="Column of what is saved where a fraud is stopped."
    )
    groups: tuple[str | Feature, ...] = Field(
        (),
        description="Columns, or features with cut points, whose groups are compared for fairness.",
    )
    budget: float = Field(0.01, gt=0, le=1, description="Share of claims that can be investigated.")
    investigation_cost: float = Field(
        0.0, ge=0, description="Cost of investigating one claim, in the unit of amount."
    )

    def columns(self) -> list[str]:
        """All columns that it reads."""
        groups = [g if isinstance(g, str) else g.column for g in self.groups]
        return [c for c in (self.truth, self.typology, self.amount, *groups) if c is not None]


class Query(Strict):
    """One of ``[[query]]``: a question in SQL, with noise if an epsilon is given."""

    sql: str = Field(max_length=20_000, description="The question.")
    title: str = Field("", description="Its heading in the report.")
    noise: Noise | None = Field(None, description="Noise that every party adds; default: none.")


class Arms(Strict):
    """``[arms]``: which arms run, and how many bootstrap resamples stand behind the intervals.

    ``without`` leaves one party out at a time: what it gets of the others' model, and what they
    lose without its rows.
    """

    run: tuple[Arm, ...] = Field(
        ("alone", "federated", "pooled"),
        description="Arms to run: each party alone, all but one party (without), all of them (federated), federated and then each party's own last layer (personal, networks only), all rows in one place (pooled).",
    )
    replicates: int = Field(200, ge=0, description="Bootstrap resamples behind the intervals.")


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
        """Read an experiment file, or one that is shipped by its name; ``changes`` are dotted keys,
        as ``--set`` on the command line.

        A relative path in the file is looked for beside the file, then where the program runs; one
        in ``changes`` only there.
        """
        path = experiment_file(path)
        values = read_toml(path)
        look_beside(values, path.parent)
        for key, value in (changes or {}).items():
            set_key(values, key, value)
        if isinstance(values.get("model"), dict):
            values["model"].setdefault("kind", "glm")
        experiment = parse(cls, values, where=str(path))
        experiment.parties.check()
        experiment.tasks()
        experiment.check_detection()
        experiment.check_profiles()
        return experiment

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
            exposure=data.exposure,
            weight=data.weight,
            per=data.per,
            **model.law(),
        )
        if data.missing in ("mean", "keep") and data.missing != model.missing:
            raise ConfigurationError(
                f"data.missing = '{data.missing}' does not fit {model.kind}: trees keep missing values "
                "in a bin of their own ('keep'), other models fill in the mean ('mean')"
            )
        link = family.law.link
        if data.exposure is not None and link != "log":
            raise ConfigurationError(
                f"data.exposure enters as a log offset and needs the log link; {model.family} has "
                f"'{link}' here: set model.link = 'log' or use data.weight"
            )
        if not isinstance(model, GLMSettings) or model.severity is None:
            model.check()
            return {"model": family}
        severity = model.severity
        amount = Task(
            target=severity.target,
            per=severity.per,
            family=severity.family,
            power=severity.power,
            link="log" if severity.family == "gaussian" else None,
        )
        Family.make(severity.family, amount.link, severity.power)
        return {"frequency": family, "severity": amount}

    def all_tasks(self) -> dict[str, Task]:
        """What is scored by name: the models to fit, and their product where there are two."""
        tasks = self.tasks()
        return tasks | ({"pure premium": self.premium_task()} if "severity" in tasks else {})

    def premium_task(self) -> Task:
        """The pure premium as a response: the amount with the frequency's exposure, Tweedie 1.5."""
        assert isinstance(self.model, GLMSettings) and self.model.severity is not None
        return Task(
            target=self.model.severity.target,
            exposure=self.data.exposure,
            family="tweedie",
            power=1.5,
        )

    def features(self, contract: Contract, task: str) -> tuple[Feature, ...]:
        """The features of a task; without a list, every feature column of the contract."""
        choice = self.data.features
        if task == "severity" and isinstance(self.model, GLMSettings) and self.model.severity:
            choice = self.model.severity.features or choice
        self._check_person()
        other_roles = set(self.columns_besides_features())
        if choice is None:
            choice = tuple(
                name
                for name, column in contract.columns.items()
                if column.role == "feature" and name not in {*other_roles, self.parties.column}
            )
        features = tuple(Feature(column=f) if isinstance(f, str) else f for f in choice)
        for feature in features:
            self._check_feature(feature, contract, other_roles)
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

    def _check_feature(self, feature: Feature, contract: Contract, other_roles: set[str]) -> None:
        name = feature.column
        if name not in contract.columns:
            near = nearest(name, list(contract.columns))
            hint = f"; did you mean '{near}'?" if near else ""
            raise ConfigurationError(f"data.features: there is no column '{name}'{hint}")
        column = contract.columns[name]
        if name in other_roles:
            raise ConfigurationError(
                f"data.features: '{name}' is the target, exposure, weight or person and cannot be a feature"
            )
        if column.role in ("identifier", "never_leaves"):
            raise ConfigurationError(
                f"data.features: '{name}' has the role '{column.role}' in contract {contract.name}"
            )
        if column.type == "category" and (feature.log or feature.cut):
            raise ConfigurationError(
                f"data.features: '{name}' is a category; log and cut are for numbers"
            )

    def columns_besides_features(self) -> list[str]:
        """The target and what belongs to it, the person and the test column."""
        d, columns = self.data, []
        columns += [d.target, d.exposure, d.weight, d.per, d.person, d.test_column]
        if isinstance(self.model, GLMSettings) and self.model.severity:
            columns += [self.model.severity.target, self.model.severity.per]
        if self.detection is not None:
            columns += [self.detection.truth, self.detection.typology]
        return [name for name in columns if name is not None]
