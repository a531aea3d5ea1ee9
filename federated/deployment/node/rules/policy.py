"""An insurer's own policy, which nothing outside can loosen, and the rows it gives to a run.

The policy is ``node.toml``; the charter may be stricter. What a coordinator asks is checked against
both, and a refusal names its rule.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from federated.deployment.charter import Charter
from federated.deployment.node.rules.refusals import Refusal, check_columns, check_disclosure
from federated.deployment.node.rules.settings import (
    QUESTIONS,
    SETTINGS,
    NodeSettings,
)
from federated.party.party import Party, Policy, numbered
from federated.party.statistics import belongs, find
from federated.study.experiment import Experiment
from federated.study.plan import StudyPlan
from federated.study.rows import columns_needed, usable
from lab.audit.approvals import approver, keep
from lab.errors import ConfigurationError
from lab.files import canonical, read_json, write_whole
from lab.models.glm import Task
from lab.packages import version_of
from lab.queries import sql_plan as sql
from lab.queries.query_table import Budget, QueryTable
from lab.queries.questions import Question
from lab.records import parse
from lab.statistics import PROFILES
from lab.tables.contracts import Contract
from lab.tables.partition import drawn
from lab.tables.sources import SOURCES, Table, built_in, load

#: Ways in which rows were capped or left out, profiles, and how many of each there may be.
VARIANTS, MOST_VARIANTS = "row_variants.json", 5


class InsurerPolicy:
    """The node's own rules and rows."""

    def __init__(self, folder: Path, settings: NodeSettings, charter: Charter) -> None:
        self.folder, self.settings, self.charter = folder, settings, charter
        if settings.data is None:
            raise ConfigurationError(
                f"{folder / SETTINGS}: the section [data] is missing; an insurer needs it"
            )
        self.limits, self.data = settings.limits, settings.data

    def table(self) -> Table:
        """The insurer's table, checked against its contract."""
        return load(
            self.data.source,
            self.data.path,
            contract=self.contract(),
            table=self.data.table,
            query=self.data.query,
            encoding=self.data.encoding,
        )

    def contract(self) -> Contract:
        """The insurer's contract, of its file or of a built-in source."""
        name = self.data.contract or self.data.source
        if name is None:
            raise ConfigurationError(f"{self.folder / SETTINGS}: data.contract is needed")
        if name in SOURCES:
            return built_in(name)
        return Contract.read(self.folder / name if not Path(name).is_absolute() else Path(name))

    @property
    def minimum_parties(self) -> int:
        return max(self.limits.minimum_parties, self.charter.minimum_parties)

    def allow_asker(self, name: str) -> None:
        """Raises :class:`Refusal` for somebody who may not ask."""
        askers = self.limits.askers or (self.charter.coordinator,)
        if name not in askers:
            raise Refusal("askers", f"'{name}' is not among the askers that this party allows")

    def allow_statistic(self, study: StudyPlan, statistic: str, arguments: str) -> None:
        """Raises :class:`Refusal` for a statistic that is no part of what was announced.

        arguments: of the request, JSON.
        """
        if not belongs(statistic, study.kinds):
            raise Refusal("analyses", f"'{statistic}' is not part of the announced study")
        self._allow(study)
        if study.kind == "questions":
            question = parse(Question, json.loads(arguments)["question"], where="the question")
            if not study.announces(question, statistic):
                raise Refusal("analyses", "this question was not announced")
        elif find(statistic).analysis != PROFILES:
            task = parse(Task, json.loads(arguments)["task"], where="the task")
            if (
                task.model_copy(update={"profiles": ()})
                not in study.experiment.all_tasks().values()
            ):
                raise Refusal("analyses", "this target was not announced")

    def _columns(self, study: StudyPlan) -> set[str]:
        """The columns that a study looks at."""
        experiment = study.experiment
        if study.kind != "questions":
            return set(columns_needed(experiment, study.features))
        column_sets = [
            sql.columns_of(query.sql, study.contract, study.person, study.names)
            for query in experiment.query
        ]
        return set().union(*column_sets)

    def consider(self, study: StudyPlan) -> None:
        """Raises :class:`Refusal` for an experiment that breaks a rule, or waits for a person."""
        experiment = study.experiment
        self._allow(study)
        if {"questions", "profiles"} & set(study.kinds):
            self._check_person(experiment)
            self._check_minimum(experiment)
        self._check_marks(experiment)
        if study.kind != "questions":
            check_disclosure(study, self.settings.rules(self.folder))
            self._check_shares(experiment)
        experiment.check_profiles()
        for profile in experiment.profile:
            profile.check(study.contract)
        columns = self._columns(study)
        withheld = sorted(columns & self._withheld_columns(study))
        if withheld:
            raise Refusal(
                "never_leaves", f"{', '.join(withheld)} may not be used in any study at this party"
            )
        self._check_contract(study, columns)
        if study.kind != "questions":
            self._check_caps(experiment.data.cap, columns)
        if experiment.protection.sums != self.limits.hiding:
            raise Refusal("hiding", f"this party's sums must be hidden by '{self.limits.hiding}'")
        if self.limits.approval == "always" and approver(self.folder, study.digest) is None:
            keep(self.folder, study.digest, study.to_json().encode())
            raise Refusal(
                "approval",
                f"waits for a person's approval as {study.digest[:12]}; run it again after that",
            )
        if study.kind != "questions":
            self._note_variants(experiment)

    def _allow(self, study: StudyPlan) -> None:
        for kind in study.kinds:
            if kind not in self.limits.analyses or kind not in self.charter.analyses:
                raise Refusal("analyses", f"this party does not take part in '{kind}'")
        if study.package != (here := version_of(study.experiment.model.kind)):
            raise Refusal(
                "package",
                f"the plan's kind of model is of {study.package or 'no package'}, and here it is of "
                f"{here or 'none'}",
            )

    def _withheld_columns(self, study: StudyPlan) -> set[str]:
        """Columns of the negative list and of the contract's; whose rows are a person's is known,
        and by which provider on which day where profiles are made of them."""
        columns, data = self.contract().columns, study.experiment.data
        never = {name for name, column in columns.items() if column.role == "never_leaves"}
        identifiers = {name for name, column in columns.items() if column.role == "identifier"}
        identifiers -= {
            name for profile in study.experiment.profile for name in (profile.by, profile.day)
        }
        identifiers -= {data.person, self.data.test_column}
        return {*self.limits.never_leaves, *never, *identifiers}

    def _check_person(self, experiment: Experiment) -> None:
        """Rules of disclosure count persons: who a row belongs to is this party's to say."""
        if self.data.person is None:
            raise Refusal("person", "node.toml does not say who a row belongs to; set data.person")
        if (self.data.person or None) != experiment.data.person:
            raise Refusal("person", "the study counts persons by another column than data.person")

    def _check_minimum(self, experiment: Experiment) -> None:
        """Rules of disclosure show no cell of fewer persons than this party's minimum."""
        rules, least = self.settings.rules(self.folder), self._minimum_rows(experiment)
        if rules.minimum_count.persons < least:
            raise Refusal(
                "minimum_rows",
                f"the rules of disclosure show cells of {rules.minimum_count.persons} persons, and "
                f"{least} are the fewest here; raise minimum_count.persons of the rules, or lower "
                "minimum_rows of node.toml, of the charter or of the plan",
            )

    def _minimum_rows(self, experiment: Experiment) -> int:
        limits, charter = self.limits, self.charter.limits
        return max(limits.minimum_rows, charter.minimum_rows, experiment.protection.minimum_rows)

    def _check_marks(self, experiment: Experiment) -> None:
        """Which rows are held out is this party's to say: two totals that differ by a person's row
        would show it."""
        theirs, own = experiment.data, self.data
        marks = (theirs.test_column, str(theirs.test_value))
        if theirs.test_column is not None and marks != (own.test_column, str(own.test_value)):
            raise Refusal("rows", f"node.toml does not mark test rows by '{theirs.test_column}'")

    def _check_shares(self, experiment: Experiment) -> None:
        """Shares are fixed here: rows that two of them differ by would show in two totals."""
        data, own = experiment.data, self.data
        if own.test_column is None and data.test != own.test_share:
            raise Refusal(
                "rows",
                f"data.test_share of node.toml is {own.test_share:g}; "
                f"the plan has data.test = {data.test:g}",
            )
        if own.test_column is not None and data.test_column is None and data.test == 0:
            raise Refusal("rows", f"rows marked by '{own.test_column}' are for testing here")
        share = getattr(experiment.model, "validation_share", 0.0)
        if share not in (0.0, own.validation_share):
            raise Refusal(
                "rows",
                f"data.validation_share of node.toml is {own.validation_share:g}; "
                f"the plan has model.validation_share = {share:g}",
            )

    def _check_caps(self, caps: Mapping[str, float], columns: set[str]) -> None:
        """Caps are fixed here: a cap between the two largest values shows the largest, in the
        difference to a total with another cap or none."""
        own = self.data.caps
        for name in sorted(columns | set(caps)):
            here, there = own.get(name), caps.get(name)
            if here == there or (there is None and name not in columns):
                continue
            raise Refusal(
                "rows",
                f"the plan has {_cap_of(name, there)} in data.cap; this party's node.toml allows "
                f"{_cap_of(name, here)} in data.caps",
            )

    def _note_variants(self, experiment: Experiment) -> None:
        """What changes or leaves out rows is a question of its own, as a profile is: what two of
        them differ by may be one claim. So there are few, ever."""
        data = experiment.data
        rows = json.dumps([sorted(data.cap.items()), data.missing])
        definitions = (
            one.model_dump_json(exclude={"name", "register_file"}) for one in experiment.profile
        )
        noted = {
            "variants": ({rows}, "data.cap and data.missing"),
            "profiles": (set(definitions), "[[profile]]"),
        }
        path = self.folder / VARIANTS
        before = read_json(path) if path.exists() else {}
        after = dict(before)
        for kind, (values, key) in noted.items():
            after[kind] = [*before.get(kind, []), *sorted(values - set(before.get(kind, [])))]
            if len(after[kind]) > max(MOST_VARIANTS, len(before.get(kind, []))):
                raise Refusal(
                    "rows",
                    f"this party answers {MOST_VARIANTS} variants of {key}, ever, and had others; "
                    "use one of those",
                )
        if after != before:
            write_whole(path, canonical(after), 0o600)

    def _check_contract(self, study: StudyPlan, columns: set[str]) -> None:
        """Every column that is used must be the same here; this party may have more."""
        ours, theirs = self.contract(), study.contract
        if not self.charter.holds(theirs.name, theirs.version):
            version = f"{theirs.name} version {theirs.version}"
            raise Refusal("contract", f"contract {version} is not in force by the charter")
        person = study.experiment.data.person
        check_columns(ours, theirs, columns | ({person} if person else set()))

    def party(self, study: StudyPlan, secret: bytes) -> Party:
        """This insurer's rows for one run, and the gate before them."""
        if study.kind == "questions":
            return self._question_party(study)
        experiment, table = study.experiment, self.table()
        marks = self._marks(table.frame, experiment, secret)
        frame, usable_rows = usable(experiment, study.features, table)
        frame, test = numbered(self.settings.name, frame), marks[usable_rows]
        if experiment.data.test == 0 and experiment.data.test_column is None:
            test = np.zeros(len(frame), dtype=bool)
        train = frame.iloc[~test]
        if train.empty:
            raise Refusal("rows", "this party has no row for training")
        return Party(
            self.settings.name,
            train,
            train if not test.any() else frame.iloc[test],
            experiment.data.person,
            Policy(
                minimum_rows=self._minimum_rows(experiment),
                announces=self.limits.announces,
                shows_receipt=self.limits.shows_receipt,
                rules=self.settings.rules(self.folder),
            ),
            secret=secret,
            rows_secret=hmac.digest(secret, b"rows", "sha256"),
        )

    def _question_party(self, study: StudyPlan) -> Party:
        """This insurer's whole table, for questions; its history and its budget outlast a run."""
        frame, contract = self.table().frame, self.contract()
        columns = {
            name: column.model_copy(update={"role": "never_leaves"})
            for name, column in contract.columns.items()
            if name in self.limits.never_leaves
        }
        query_table = QueryTable(
            frame,
            contract.model_copy(update={"columns": contract.columns | columns}),
            self.settings.rules(self.folder),
            study.experiment.data.person,
            folder=self.folder / QUESTIONS,
            budget=self._budget(),
            noised=self.limits.noised,
            quota=self.limits.quota,
        )
        policy = Policy(
            minimum_rows=1,  # rules of disclosure hold here, which count persons cell by cell
            announces=self.limits.announces,
            shows_receipt=self.limits.shows_receipt,
            answers="questions",
        )
        none = frame.iloc[:0]
        return Party(self.settings.name, none, none, policy=policy, query_table=query_table)

    def _budget(self) -> Budget | None:
        """What noised answers may cost: this party's budget, and no more than the charter's."""
        own, most = self.settings.budget, self.charter.limits
        if own is None or not most.epsilon:
            return own
        return Budget(epsilon=min(own.epsilon, most.epsilon), delta=min(own.delta, most.delta))

    def _marks(
        self, frame: pd.DataFrame, experiment: Experiment, secret: bytes
    ) -> NDArray[np.bool_]:
        """Rows for testing: by this party's own column, else by a hash with a key of its own, so
        that nobody can have one person's row left out."""
        data, column = experiment.data, self.data.test_column
        if column is not None:
            if column not in frame.columns:
                raise Refusal("rows", "data.test_column is not in this party's table")
            mask = _equal(frame[column], str(self.data.test_value))
            if not mask.any():
                raise Refusal("rows", "data.test_column marks no row of this party's table")
            return mask
        who = pd.Series(np.arange(len(frame))) if data.person is None else frame[data.person]
        return drawn(who, self.data.test_share, secret, "for testing")


def _cap_of(name: str, limit: float | None) -> str:
    return f"no cap of '{name}'" if limit is None else f"'{name}' capped at {limit:.12g}"


def _equal(column: pd.Series[Any], value: str) -> NDArray[np.bool_]:
    """Rows of a value; in a column of numbers 1 and 1.0 are one."""
    if pd.api.types.is_numeric_dtype(column):
        try:
            return np.asarray(column.to_numpy() == float(value), dtype=bool)
        except ValueError:
            return np.zeros(len(column), dtype=bool)
    return np.asarray(column.astype("str").to_numpy() == value, dtype=bool)
