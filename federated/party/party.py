"""One party's side: its rows, the statistics it knows how to take, and the gate everything passes.

Adding a statistic is adding a pure function from rows to :class:`~lab.sums.Sums` and its line in
:data:`STATISTICS`. Nothing else at the node can produce an answer.
"""

from __future__ import annotations

import hmac
import secrets
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, TypeAdapter

from federated.messages import Request
from federated.party.release import QUESTIONS
from lab.errors import PeerError, PolicyError
from lab.models import design as features
from lab.models import files as models
from lab.models import glm, profile
from lab.privacy.disclosure import Rules
from lab.queries.query_table import QueryTable
from lab.records import Strict
from lab.scores import accuracy as scoring
from lab.scores import detection
from lab.sums import Floats, Sums

Part = Literal["train", "test"]
#: Designs and predictions a party keeps at hand; all can be made again.
KEPT = 8


class Policy(Strict):
    """What a party's gate lets through."""

    minimum_rows: int = 10
    announces: tuple[str, ...] = ()  # columns whose level names may leave
    shows_receipt: bool = False  # with the rows behind a model's sums, which are hidden otherwise
    answers: Literal["models", "questions"] = "models"
    rules: Rules = Field(default_factory=Rules.read)  # by which it releases what it opens


@dataclass
class Party:
    """A party's rows, split for training and testing, and the rule of its gate."""

    name: str
    train: pd.DataFrame
    test: pd.DataFrame
    person: str | None = None
    policy: Policy = field(default_factory=Policy)
    workers: int = 2  # processes that may make blinding factors
    secret: bytes = field(default_factory=partial(secrets.token_bytes, 32), repr=False)
    query_table: QueryTable | None = None  # what questions are answered from
    profiles: dict[str, profile.Profile] = field(default_factory=dict)  # released, by digest
    finished: dict[str, Any] = field(default_factory=dict)  # trees, as lab.trees.Finished

    @property
    def rules(self) -> Rules:
        """The rules of disclosure by which this party releases what it opens."""
        return self.policy.rules if self.query_table is None else self.query_table.rules

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop designs, predictions and tensors at hand."""
        self.design = lru_cache(KEPT)(self._design)
        self.response = lru_cache(KEPT)(self._response)
        self.scored = lru_cache(KEPT)(self._scored)
        self.tensors = lru_cache(1)(self._tensors)
        self.boosted = lru_cache(1)(self._boosted)
        self.in_order = lru_cache(1)(self._in_order)

    def __reduce__(self) -> tuple[Any, ...]:
        """As the rows alone: what is at hand can be made again where the party is sent."""
        data = (self.name, self.train, self.test, self.person)
        return Party, (*data, self.policy, self.workers, self.secret, self.query_table)

    def rows(self, task: str, part: Part) -> pd.DataFrame:
        """The rows a task is about, without who they belong to: no question is about persons."""
        frame = self.train if part == "train" else self.test
        visible = frame if self.person is None else frame.drop(columns=self.person)
        asked = _task(task)
        rows = asked.rows(visible)
        for digest in asked.profiles:
            if digest not in self.profiles:
                raise PeerError("coordinator: names a profile that was not released to this party")
            rows = self.profiles[digest].join(rows)
        return rows

    def claims(self) -> pd.DataFrame:
        """All rows, for training and for testing, with who they belong to."""
        parts = [self.train] if self.test is self.train else [self.train, self.test]
        return pd.concat(parts)

    def _design(self, encoding: str, task: str, part: Part) -> features.Design:
        agreed = features.Encoding.model_validate_json(encoding)
        return features.Design(self.rows(task, part), agreed)

    def _response(self, task: str, part: Part) -> glm.Response:
        return glm.Response(self.rows(task, part), _task(task))

    def _scored(self, model: str, task: str) -> scoring.Scored:
        rows = self.rows(task, "test")
        response = glm.Response(rows, _task(task))
        rate = models.from_json(model).predict(rows)
        unit = np.arange(len(rows))
        if self.person is not None:
            unit = pd.factorize(_task(task).rows(self.test)[self.person])[0]
        return scoring.Scored(
            response.y, rate, response.exposure, response.weight, np.asarray(unit, dtype=float)
        )

    def _tensors(self, encoding: str, bends: str, task: str) -> Any:
        from lab.models import network

        return network.tensors(
            self.rows(task, "train"),
            self.response(task, "train"),
            features.Encoding.model_validate_json(encoding),
            network.Bends.model_validate_json(bends),
        )

    def _in_order(self, task: str, cuts: str) -> list[Floats]:
        from lab.models import trees

        terms: tuple[trees.Cuts, ...] = trees.told(tuple[trees.Cuts, ...], cuts)
        return trees.in_order(self.rows(task, "train"), terms)

    def _boosted(self, cuts: str, task: str, recipe: str) -> Any:
        """Rows that trees grow from; which are held out goes by their person, or their number."""
        from lab.models import trees  # numba is loaded for trees alone

        self.in_order.cache_clear()  # bins are agreed by now
        rows = _task(task).rows(self.train)
        keys = rows.index.to_series() if self.person is None else rows[self.person]
        return trees.Rows(
            self.rows(task, "train"),
            self.response(task, "train"),
            keys,
            trees.told(tuple[trees.Cuts, ...], cuts),
            _task(task),
            trees.told(trees.TreesRecipe, recipe),
            self.finished,
        )

    def take(self, request: Request) -> Sums:
        """The gate: the statistic asked for, over this party's rows.

        Raises :class:`PolicyError` for a sum over fewer rows than the party's minimum; a party
        without any row for a question contributes zeros.
        """
        if request.statistic not in STATISTICS:
            raise PeerError(f"no statistic '{request.statistic}' here")
        if (request.statistic in QUESTIONS) != (self.policy.answers == "questions"):
            raise PolicyError(f"this party answers {self.policy.answers} alone")
        take = STATISTICS[request.statistic]
        sums = take(self, dict(request.arguments), request.arrays)
        if 0 < sums.rows < self.policy.minimum_rows:
            raise PolicyError(
                f"{request.statistic}: fewer rows behind the sum than this party's minimum "
                f"of {self.policy.minimum_rows}"
            )
        return sums


def numbered(party: str, rows: pd.DataFrame) -> pd.DataFrame:
    """A party's rows by their numbers: its name's CRC-32 and their place among its rows.

    Every party makes them by itself, and they are the same in a simulation, at a node, and where
    rows of several parties are pooled.
    """
    first = zlib.crc32(party.encode()) << 31
    return rows.set_axis(pd.RangeIndex(first, first + len(rows)), axis="index")


def _task(text: str) -> glm.Task:
    return glm.Task.model_validate_json(text)


Arguments = dict[str, Any]
Arrays = Mapping[str, Floats]


def _numbers(a: Arguments) -> tuple[features.Number, ...]:
    return TypeAdapter(tuple[features.Number, ...]).validate_python(a["features"])


def _levels(a: Arguments) -> tuple[features.Levels, ...]:
    return TypeAdapter(tuple[features.Levels, ...]).validate_python(a["features"])


def _moments(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    return features.moments(party.rows(a["task"], "train"), _numbers(a))


def _level_counts(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    return features.level_counts(party.rows(a["task"], "train"), _levels(a))


def _means(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    return glm.means(party.response(a["task"], a["part"]))


def _glm_step(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    return glm.step(
        party.design(a["encoding"], a["task"], "train"),
        party.response(a["task"], "train"),
        family=_task(a["task"]).law,
        beta=arrays["beta"],
        unit=float(a["unit"]),
    )


def _glm_likelihood(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    return glm.likelihood(
        party.design(a["encoding"], a["task"], "train"),
        party.response(a["task"], "train"),
        family=_task(a["task"]).law,
        beta=arrays["beta"],
        dispersion=float(a["dispersion"]),
    )


def _resamples(party: Party, a: Arguments) -> list[int]:
    """The seed of a party's resamples: nobody else can draw them."""
    return [int(a["seed"]), *hmac.digest(party.secret, b"resamples", "sha256")]


def _score_fit(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    return scoring.fit_sums(
        party.scored(a["model"], a["task"]),
        family=_task(a["task"]).law,
        constant=float(a["constant"]),
        replicates=int(a["replicates"]),
        seed=_resamples(party, a),
    )


def _score_lorenz(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    return scoring.lorenz_sums(party.scored(a["model"], a["task"]), edges=arrays["edges"])


def _score_levels(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    feature = features.Levels.model_validate(a["feature"])
    rows = party.rows(a["task"], "test")
    codes = features.codes_of(feature.feature.texts(rows), feature.levels)
    scored = party.scored(a["model"], a["task"])
    return scoring.level_sums(scored, codes=codes, count=len(feature.levels))


def _judged(party: Party, a: Arguments) -> tuple[Floats, Floats]:
    """Truth and amount of each test row; amounts are 0 where no column has them."""
    rows = party.rows(a["task"], "test")
    truth = rows[a["truth"]].to_numpy(dtype=np.float64)
    amount = rows[a["amount"]].to_numpy(dtype=np.float64) if a["amount"] else 0 * truth
    return truth, amount


def _detection_rank(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    scored, (truth, amount) = party.scored(a["model"], a["task"]), _judged(party, a)
    return detection.rank_sums(
        truth,
        scored.rate,
        amount,
        scored.unit,
        edges=arrays["edges"],
        replicates=int(a["replicates"]),
        seed=_resamples(party, a),
    )


def _detection_groups(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    group = features.Levels.model_validate(a["group"])
    texts = group.feature.texts(party.rows(a["task"], "test"))
    truth, amount = _judged(party, a)
    return detection.group_sums(
        truth,
        party.scored(a["model"], a["task"]).rate,
        amount,
        codes=features.codes_of(texts, group.levels).astype(np.int64),
        count=len(group.levels),
        threshold=float(a["threshold"]),
    )


def _histogram(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    return features.histogram(party.rows(a["task"], "train"), _numbers(a), arrays["edges"])


def _network_update(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    from lab.models import network

    return network.update(
        party.tensors(a["encoding"], a["bends"], a["task"]),
        network.NetworkRecipe.model_validate_json(a["recipe"]),
        _task(a["task"]).family,
        dict(arrays),
        learning_rate=float(a["learning_rate"]),
        proximal_mu=float(a["proximal_mu"]),
        seed=zlib.crc32(f"{a['seed']} {a['round']} {party.name}".encode()),
    )


def _bin_counts(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    from lab.models import trees

    rows, columns = len(party.rows(a["task"], "train")), party.in_order(a["task"], a["cuts"])
    return trees.counts(columns, edges=arrays["edges"], rows=rows, most=int(a["most"]))


def _tree_level(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    from lab.models import trees

    rows = party.boosted(a["cuts"], a["task"], a["recipe"])
    return trees.level(rows, trees.told(trees.Ask, a["ask"]))


def _profile(party: Party, a: Arguments, arrays: Arrays) -> Sums:
    if party.person is None:
        raise PolicyError("this party knows no persons, and a profile counts them")
    return profile.sums(
        party.claims(), profile.ProfileCells.model_validate(a["cells"]), party.person
    )


def _asked(party: Party) -> QueryTable:
    if party.query_table is None:
        raise PolicyError("this party has no table for questions")
    return party.query_table


STATISTICS: dict[str, Callable[[Party, Arguments, Arrays], Sums]] = {
    "moments": _moments,
    "level_counts": _level_counts,
    "means": _means,
    "histogram": _histogram,
    "glm_step": _glm_step,
    "glm_likelihood": _glm_likelihood,
    "score_fit": _score_fit,
    "score_lorenz": _score_lorenz,
    "score_levels": _score_levels,
    "detection_rank": _detection_rank,
    "detection_groups": _detection_groups,
    "network_update": _network_update,
    "bin_counts": _bin_counts,
    "tree_level": _tree_level,
    "profile": _profile,
    "cells": lambda party, a, arrays: _asked(party).answer(a),
    "violations": lambda party, a, arrays: _asked(party).violations(a),
    "drift": lambda party, a, arrays: _asked(party).drift(a, arrays["shares"]),
}
