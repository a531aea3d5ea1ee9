"""The policy and the rows of a side of joined pairs, which holds some of a plan's columns."""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from federated.deployment.charter import Charter
from federated.deployment.folders import identity_of
from federated.deployment.node.rules.policy import InsurerPolicy
from federated.deployment.node.rules.refusals import Refusal, check_columns, check_disclosure
from federated.deployment.node.rules.settings import SETTINGS, NodeSettings
from federated.deployment.node.sides.alignments import Alignments
from federated.deployment.node.sides.cuts import CutsTold
from federated.deployment.pairs import RULE, check_pairs
from federated.joined.side import JoinedSide
from federated.joined.sums.factors import Role
from federated.party.party import Policy, numbered
from federated.party.statistics import find
from federated.solvers.bins import bins_of, most_rungs
from federated.solvers.trees import TreesSettings, most_histograms
from federated.study.experiment import Experiment
from federated.study.plan import StudyPlan
from federated.study.rows import Features, columns_needed, usable
from federated.study.settings import KEY
from federated.study.sides import known_of
from lab.errors import ConfigurationError, ContractError
from lab.models.agreement import check_features
from lab.queries.pair_cells import OfPairKinds
from lab.statistics import ACROSS, QUESTIONS, text_of
from lab.tables.identifiers import KeyTexts, key_texts
from lab.tables.sources import Table

#: All columns that may take part in anything, in ``joined.products``.
ALL = "*"


class SidePolicy(InsurerPolicy):
    """The rules of a node for plans of joined sides. Raises :class:`ConfigurationError` where its
    settings have no section ``[joined]``."""

    def __init__(self, folder: Path, settings: NodeSettings, charter: Charter) -> None:
        super().__init__(folder, settings, charter)
        if settings.joined is None or charter.pairs is None:
            raise ConfigurationError(
                f"{folder / SETTINGS}: the section [joined] is missing; a side of the charter's pairs "
                "says there by which key and with which columns it takes part"
            )
        self.own, self.pairs = settings.joined, charter.pairs
        self.role: Role = charter.pairs.role(settings.name)
        self.cuts_told = CutsTold(folder)
        self.alignments = Alignments(folder, identity_of(folder), charter, self.own.alignments)

    def keyed(self) -> tuple[Table, KeyTexts]:
        """The rows that have a key, with it, and the keys. Raises :class:`ContractError`."""
        table = self.table()
        (keys,) = key_texts(table.frame, [self.own.key], self.contract(), table.origin)
        there = keys.texts != ""
        named = table.frame.assign(**{KEY: pd.Series(keys.texts, table.frame.index, dtype="str")})
        frame = named.loc[there].reset_index(drop=True)
        return replace(table, frame=frame), replace(keys, texts=keys.texts[there])

    def columns_of(self, study: StudyPlan) -> list[str]:
        """The columns of this side that a plan reads."""
        if study.kind == QUESTIONS:
            return sorted(n for n in super()._columns(study) if study.owner(n) == self.role)
        alone = study.experiment.model_copy(update={"joined": ()})
        names = columns_needed(alone, study.features)
        return [name for name in names if name != KEY and study.owner(name) == self.role]

    def consider(self, study: StudyPlan) -> None:
        check_pairs(study, self.pairs)
        if self.own.key != self.pairs.keys[self.settings.name]:
            raise Refusal(RULE, "joined.key of node.toml is another key than the charter's")
        for peer in self.pairs.peers(self.settings.name):
            allowed = self.own.products.get(peer, ())
            barred = set(self.columns_of(study)) - {*allowed, self.data.test_column}
            if barred and ALL not in allowed:
                raise Refusal(
                    "products",
                    f"{', '.join(sorted(barred))} may not enter products with {peer} by joined.products of "
                    "node.toml",
                )
        self._allow(study)
        if isinstance(settings := study.experiment.model, TreesSettings):
            if self.role == "fund":
                self._consider_cuts(study)
            self._consider_equations(study, settings)
        if study.kind == QUESTIONS:
            check_disclosure(study, self.settings.rules(self.folder))
            if self.limits.noised:
                raise Refusal(
                    "noise", "this party answers with noise alone, and none is made across sides"
                )
        super().consider(study)

    def _consider_equations(self, study: StudyPlan, settings: TreesSettings) -> None:
        """Refuse trees that may open more about a column than this side allows, before anything is."""
        _, keys = self.keyed()
        made = self.alignments.made(keys)
        aligned = set(made) == set(self.pairs.peers(self.settings.name))
        common = [self.pairs.common(one.size) for one in made.values()]
        persons = max(1, sum(common) if aligned else len(keys.texts))
        features = [f for own in study.features.values() for f in own]
        bins = {f.column: bins_of(f, study.contract, settings.bins) for f in features}
        each, whole = 2 * most_histograms(settings), sum(bins.values())
        numbers = {
            name: each * bins.get(name, whole) + most_rungs(settings.bins) * (name in bins)
            for name in self.columns_of(study)
        }
        column, most = max(numbers.items(), key=lambda item: item[1], default=("", 0))
        if most > self.own.equations_per_person * persons:
            raise Refusal(
                "equations",
                f"these trees may open some {most:,} numbers about '{column}' of {persons:,} persons, and "
                f"joined.equations_per_person of node.toml is {self.own.equations_per_person:g}; they need "
                f"{-(-10 * most // persons) / 10:g}, fewer or smaller ones less",
            )

    def _consider_cuts(self, study: StudyPlan) -> None:
        """Refuse trees that would tell cuts which this side does not tell."""
        features = [f for own in study.features.values() for f in own]
        columns = sorted({f.column for f in features if study.owner(f.column) == "fund"})
        for peer in self.pairs.peers(self.settings.name):
            self.check_cuts(peer, columns)
            told, most = self.cuts_told.count(peer), self.own.bits_per_person
            if columns and told >= most:
                raise Refusal(
                    "cuts",
                    f"{peer} was told {told:,} cuts on columns of this side, and joined.bits_per_person of "
                    f"node.toml allows {most:,}, ever",
                )

    def check_cuts(self, peer: str, columns: Sequence[str]) -> None:
        """Raises :class:`Refusal` for columns of which another side may be told no cuts."""
        allowed = self.own.cuts.get(peer, ())
        barred = [name for name in columns if name not in allowed]
        if barred and ALL not in allowed:
            raise Refusal(
                "cuts",
                f"trees would tell {peer} who is on which side of cuts on {', '.join(barred)}, and "
                "joined.cuts of node.toml does not allow it",
            )

    def _columns(self, study: StudyPlan) -> set[str]:
        return set(self.columns_of(study))

    def allow_statistic(self, study: StudyPlan, statistic: str, arguments: str) -> None:
        if study.kind != QUESTIONS:
            super().allow_statistic(study, statistic, arguments)
            return
        if find(statistic).analysis != ACROSS:
            raise Refusal("analyses", f"'{statistic}' is not asked of joined sides")
        self._allow(study)
        asked: OfPairKinds = find(statistic).read(text_of(json.loads(arguments)), {})
        if not study.announces(asked.questions[-1]):
            raise Refusal("analyses", "this question was not announced")

    def _check_person(self, experiment: Experiment) -> None:
        """Each row of a side is a person's, by its key."""

    def _asked_about(self, study: StudyPlan) -> list[str]:
        """All columns that questions to this side may be about, now or before."""
        names = study.names
        assert names is not None
        own = names.insurer if self.role == "insurer" else names.fund
        allowed = [self.own.products.get(peer, ()) for peer in self.pairs.peers(self.settings.name)]
        withheld = self._withheld_columns(study)
        return [
            name
            for name in own.columns.values()
            if name not in withheld and all(ALL in each or name in each for each in allowed)
        ]

    def _side_for_questions(self, study: StudyPlan, secret: bytes) -> JoinedSide:
        """All this side's rows, with the columns that questions may be about."""
        (table, keys), columns = self.keyed(), self._asked_about(study)
        frame = numbered(self.settings.name, table.frame[[*columns, KEY]])
        policy = Policy(
            minimum_rows=1,  # rules of disclosure hold, which count persons cell by cell
            announces=self.limits.announces,
            shows_receipt=self.limits.shows_receipt,
            answers="questions",
            rules=self.settings.rules(self.folder),
        )
        side = JoinedSide(
            self.settings.name,
            frame,
            frame,
            KEY,
            policy,
            secret=secret,
            role=self.role,
            columns=frozenset(columns),
            product=study.experiment.protection.product,
            key_bits=study.experiment.protection.key_bits,
            tells_cuts=False,
        )
        self._place(side, keys, np.arange(len(frame)), frame.index)
        return side

    def _place(
        self, side: JoinedSide, keys: KeyTexts, row_numbers: NDArray[np.int64], labels: pd.Index
    ) -> None:
        """Say where a side's rows stand on its spines. row_numbers: of its table, with labels."""
        for peer, alignment in self.alignments.made(keys).items():
            side.places[peer] = pd.Series(alignment.place[row_numbers], index=labels)
            side.sizes[peer] = alignment.size
            side.persons[peer] = self.pairs.common(alignment.size)
            if alignment.met is not None:
                side.met[peer] = pd.Series(alignment.met[row_numbers], index=labels)
            if alignment.row_keys is not None:
                side.row_keys[peer] = alignment.row_keys[row_numbers]

    def _check_marks(self, experiment: Experiment) -> None:
        if self.role == "insurer":  # which rows are for testing is the insurer's to say
            super()._check_marks(experiment)

    def _check_shares(self, experiment: Experiment) -> None:
        if self.role == "insurer":
            super()._check_shares(experiment)

    def _check_caps(self, caps: Mapping[str, float], columns: set[str]) -> None:
        super()._check_caps({n: limit for n, limit in caps.items() if n in columns}, columns)

    def _check_contract(self, study: StudyPlan, columns: set[str]) -> None:
        own, data = self.contract(), study.experiment.data
        if not self.charter.holds(own.name, own.version):
            raise Refusal(
                "contract",
                f"contract {own.name} version {own.version} is not in force by the charter",
            )
        person = set() if data.person == KEY or self.role == "fund" else {str(data.person)}
        check_columns(own, study.contract, columns | person)

    def party(self, study: StudyPlan, secret: bytes) -> JoinedSide:
        """This side's rows for one run; where they stand on spines is said by its alignments."""
        if study.kind == QUESTIONS:
            return self._side_for_questions(study, secret)
        experiment, (table, keys) = study.experiment, self.keyed()
        marks = np.zeros(len(table.frame), dtype=bool)
        data = experiment.data
        if self.role == "insurer" and (data.test > 0 or data.test_column is not None):
            marks = self._marks(table.frame, experiment, secret)
        frame, row_numbers = self._usable(study, table)
        frame, test = numbered(self.settings.name, frame), marks[row_numbers]
        train = frame.iloc[~test]
        if train.empty:
            raise Refusal("rows", "this party has no row for training")
        side = JoinedSide(
            self.settings.name,
            train,
            train if not test.any() else frame.iloc[test],
            data.person if self.role == "insurer" else KEY,
            Policy(
                minimum_rows=self._minimum_rows(experiment),
                announces=self.limits.announces,
                shows_receipt=self.limits.shows_receipt,
                rules=self.settings.rules(self.folder),
            ),
            secret=secret,
            rows_secret=hmac.digest(secret, b"rows", "sha256"),
            role=self.role,
            columns=frozenset(self.columns_of(study)),
            product=experiment.protection.product,
            key_bits=experiment.protection.key_bits,
            known=known_of(experiment),
            tells_cuts=experiment.protection.cuts == "told",
        )
        self._place(side, keys, row_numbers, frame.index)
        return side

    def _usable(self, study: StudyPlan, table: Table) -> tuple[pd.DataFrame, NDArray[np.int64]]:
        """The columns of this side, capped, without rows left out; and which rows are left."""
        experiment, columns = study.experiment, self.columns_of(study)
        features: Features = {
            task: tuple(f for f in chosen if study.owner(f.column) == self.role)
            for task, chosen in study.features.items()
        }
        cap = {n: limit for n, limit in experiment.data.cap.items() if n in columns}
        if self.role == "insurer":
            data = experiment.data.model_copy(update={"cap": cap})
            alone = experiment.model_copy(update={"joined": (), "data": data})
            return usable(alone, features, table)
        absent = [name for name in columns if name not in table.frame]
        if absent:
            raise ConfigurationError(f"{table.origin}: there is no column '{absent[0]}'")
        frame = table.frame[[*columns, KEY]].copy()
        for name, limit in cap.items():
            frame[name] = frame[name].clip(upper=limit)
        row_numbers = np.arange(len(frame))
        if experiment.data.missing == "drop":
            row_numbers = np.flatnonzero(frame.notna().all(axis=1))
            frame = frame.iloc[row_numbers]
        if frame.empty:
            raise ContractError(f"{table.origin}: no row is left after dropping missing values")
        check_features(
            frame, tuple(f for own in features.values() for f in own), experiment.data.missing
        )
        return frame.reset_index(drop=True), row_numbers
