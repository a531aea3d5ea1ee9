"""What can be asked of joined rows: the table of statistics, and those that every model asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from federated.joined.sums import trees
from federated.joined.sums.cuts import COUNTED, Bins, Persons
from federated.joined.sums.factors import (
    Arguments,
    Groups,
    Half,
    Halves,
    JoinedSum,
    Knowledge,
    Multiplied,
    Owner,
    Shares,
    Widths,
    indicators,
    within,
)
from federated.joined.sums.logit import LogitByLevel, LogitFit, LogitLikelihood, LogitStep
from federated.joined.sums.lorenz import JoinedLorenz
from federated.joined.sums.scores import ByLevel, JoinedFit, ResampledFit
from federated.joined.sums.steps import Likelihood, Step
from lab.models.agreement import CLASSES, OfMagnitudes, magnitudes, of_features
from lab.models.design import Number
from lab.models.glm import PERSON_PAIRS, SUMMED, Response, Task
from lab.privacy.joining import PERSONS
from lab.queries.across import PLACES
from lab.queries.pair_cells import AskedOfPair, own_word, side_columns, widths_of
from lab.sums import COUNT, FLAG, MOMENT, Floats, Sums, limit_of
from secure_agg.arithmetic.ring import Integers

#: All rows of a side.
ALL_ROWS = Task(target="")
Maker = Callable[[Any, Mapping[str, Floats], Owner], JoinedSum]


@dataclass(frozen=True)
class JoinedTotals(Arguments):
    """``totals``: what the constant model needs, over rows that both sides have; with an encoding,
    ``glm_start``, and the persons behind each pair of columns."""

    @property
    def _halves(self) -> Halves | None:
        encoding = getattr(self.a, "encoding", None)
        return None if encoding is None else Halves(encoding, self.owner)

    def products(self) -> Multiplied:
        sums: Multiplied = [(("sums", "here", "valid"), ("here", "valid"))]
        if self._halves is None:
            return sums
        return [*sums, (("xx",), ("here",)), (("here",), ("zz",)), (("x",), ("z",))]

    def widths(self) -> Widths:
        left, right = {"sums": len(SUMMED) + 2, "here": 1, "valid": 1}, {"here": 1, "valid": 1}
        if (halves := self._halves) is not None:
            left["x"], right["z"] = len(halves.places["insurer"]), len(halves.places["fund"])
            left["xx"] = len(halves.pairs["insurer", "insurer"][0])
            right["zz"] = len(halves.pairs["fund", "fund"][0])
        return left, right

    def left(self, side: Half) -> Groups:
        rows = side.rows(self.a.task, getattr(self.a, "part", "train"))
        r, most = Response(rows, self.a.task), self.a.most
        columns = (r.weight, r.weight * r.y, r.weight * r.exposure, r.weight * r.y**2)
        sums = [column / bound for column, bound in zip(columns, most, strict=True)]
        groups = {"sums": np.column_stack([*sums, np.ones_like(r.y), (r.y > 0).astype(float)])}
        if (halves := self._halves) is not None:
            x = halves.matrix("insurer", rows)
            groups |= {"x": x, "xx": halves.squares("insurer", x)}
        return within(groups, len(rows))

    def right(self, side: Half) -> Groups:
        rows = side.rows(self.a.task, getattr(self.a, "part", "train"))
        groups: Groups = {}
        if (halves := self._halves) is not None:
            z = halves.matrix("fund", rows)
            groups = {"z": z, "zz": halves.squares("fund", z)}
        return within(groups, len(rows))

    def combined(self, shares: Shares) -> dict[str, Integers]:
        sums = shares("sums", "here")[:, 0]
        names = (*SUMMED, "rows", "positive")
        values = {name: sums[k : k + 1] for k, name in enumerate(names)}
        if (halves := self._halves) is not None:
            persons = np.zeros(len(halves.encoding.pairs[0]), dtype=object)
            persons[halves.pairs["insurer", "insurer"][0]] = shares("xx", "here")[:, 0]
            persons[halves.pairs["fund", "fund"][0]] = shares("here", "zz")[0]
            at, (one, two) = halves.pairs["insurer", "fund"]
            persons[at] = shares("x", "z")[one, two]
            values["persons"] = persons
        return values

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        units = dict(zip(SUMMED, self.a.most, strict=True))
        arrays = {name: np.asarray(value * units.get(name, 1.0)) for name, value in values.items()}
        limits = {name: limit_of(units[name]) if name in units else COUNT for name in arrays}
        if "persons" in limits:
            limits["persons"] = PERSON_PAIRS
        return Sums(arrays, limits, rows)


@dataclass(frozen=True)
class Moments(Arguments):
    """``moments`` of numbers at either side, over rows that both have."""

    def _own(self, role: str) -> list[int]:
        terms = enumerate(self.a.features)
        return [k for k, term in terms if self.owner(term.feature.column) == role]

    def products(self) -> Multiplied:
        return [(("powers", "here", "valid"), ("here", "powers", "valid"))]

    def widths(self) -> Widths:
        ones = {"here": 1, "valid": 1}
        left, right = ({"powers": 3 * len(self._own(role))} for role in ("insurer", "fund"))
        return left | ones, right | ones

    def _powers(self, side: Half) -> Groups:
        rows = side.rows(self.a.task, "train")
        columns = [_powers_of(self.a.features[k], rows) for k in self._own(side.role)]
        return within({"powers": np.hstack([np.zeros((len(rows), 0)), *columns])}, len(rows))

    left = right = _powers

    def combined(self, shares: Shares) -> dict[str, Integers]:
        values = {name: np.zeros(len(self.a.features), dtype=object) for name in POWERS}
        sides = {"insurer": shares("powers", "here")[:, 0], "fund": shares("here", "powers")[0]}
        for role, own in sides.items():
            for at, k in enumerate(self._own(role)):
                for power, name in enumerate(POWERS):
                    values[name][k] = own[3 * at + power]
        return values

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        limit = limit_of(self.a.most)
        return Sums(dict(values), {"count": COUNT, "first": limit, "second": limit}, rows)


POWERS = ("count", "first", "second")


def _powers_of(term: Number, rows: Any) -> Floats:
    values = term.standardised(rows)
    there = ~np.isnan(values)
    known = np.where(there, values, 0.0)
    return np.column_stack([there.astype(float), known, known**2])


@dataclass(frozen=True)
class LevelCounts(Arguments):
    """``level_counts``: rows, which are persons here, at each level of features at either side."""

    def _own(self, role: str) -> list[int]:
        return [k for k, t in enumerate(self.a.features) if self.owner(t.feature.column) == role]

    def products(self) -> Multiplied:
        return [(("levels", "here", "valid"), ("here", "levels", "valid"))]

    def widths(self) -> Widths:
        ones = {"here": 1, "valid": 1}
        left, right = (
            {"levels": sum(len(self.a.features[k].levels) for k in self._own(role))}
            for role in ("insurer", "fund")
        )
        return left | ones, right | ones

    def _levels(self, side: Half) -> Groups:
        rows = side.rows(self.a.task, "train")
        terms = [self.a.features[k] for k in self._own(side.role)]
        columns = [indicators(rows, term.feature, term.levels) for term in terms]
        return within({"levels": np.hstack([np.zeros((len(rows), 0)), *columns])}, len(rows))

    left = right = _levels

    def combined(self, shares: Shares) -> dict[str, Integers]:
        sides = {"insurer": shares("levels", "here")[:, 0], "fund": shares("here", "levels")[0]}
        counts: list[Integers] = [np.zeros(0, dtype=object)] * len(self.a.features)
        for role, own in sides.items():
            at = 0
            for k in self._own(role):
                size = len(self.a.features[k].levels)
                counts[k] = own[at : at + size]
                at += size
        return {"count": np.concatenate(counts)}

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        arrays = {"count": values["count"], PERSONS: values["count"]}
        return Sums(arrays, dict.fromkeys(arrays, COUNT), rows)


@dataclass(frozen=True)
class PairCells(Arguments):
    """``pair_cells``: persons by the kinds of both sides' rows, and each side's amounts in its places
    by the other's."""

    @cached_property
    def _pair(self) -> AskedOfPair:
        return AskedOfPair(self.a.questions, self.a.nullable, self.owner)

    def products(self) -> Multiplied:
        persons: Multiplied = [(("kinds", "here", "valid"), ("kinds", "here", "valid"))]
        return [*persons, (("amounts",), ("places",)), (("places",), ("amounts",))]

    def widths(self) -> Widths:
        ones = {"here": 1, "valid": 1}
        ours, theirs = (
            widths_of(self._pair, place, room) | ones
            for place, room in zip(PLACES, self.a.kinds, strict=True)
        )
        return ours, theirs

    def _columns(self, side: Half) -> Groups:
        frame, room = side.rows(ALL_ROWS, "train"), self.a.kinds[PLACES.index(side.role)]
        return within(side_columns(self._pair, side.role, frame, room), len(frame))

    left = right = _columns

    def combined(self, shares: Shares) -> dict[str, Integers]:
        return {
            "persons": shares("kinds", "kinds").ravel(),
            "insurer": shares("amounts", "places").ravel(),
            "fund": shares("places", "amounts").ravel(),
        }

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        return Sums(dict(values), dict.fromkeys(values, MOMENT), rows)


def _own_word(side: Any, a: Any, arrays: Mapping[str, Floats]) -> Sums:
    """What a side says of itself for a question across sides."""
    pair = AskedOfPair(a.questions, a.nullable, side.owner)
    frame, whole = side.rows(ALL_ROWS, "train"), side.claims()
    persons = whole.index.to_series() if side.person is None else whole[side.person]
    return own_word(pair, side.role, frame, persons)


def _magnitudes(side: Any, a: OfMagnitudes) -> Sums:
    """1 for each size that the sums of a side's own columns reach; of the others it knows nothing."""
    rows, insurer = side.rows(a.task, "train"), side.role == "insurer"
    sizes = {"features": np.zeros((len(a.features), len(CLASSES)))} if a.features else {}
    sizes["task"] = np.zeros((len(SUMMED), len(CLASSES)))
    own = [k for k, term in enumerate(a.features) if side.owner(term.feature.column) == side.role]
    if own:
        chosen = tuple(a.features[k] for k in own)
        sizes["features"][own] = of_features(rows, chosen)
    if insurer:
        sizes["task"] = magnitudes(rows, Response(rows, a.task), ())["task"]
    return Sums(sizes, dict.fromkeys(sizes, FLAG), 0)


#: What a side answers without the other, of its arguments and arrays.
Answer = Callable[[Any, Any, Mapping[str, Floats]], Sums]


def alone(name: str, a: Any, owner: Owner, known: Knowledge) -> Answer | None:
    """How each side answers for its own columns or rows by itself; None where it takes both sides.

    known: what sides know of common rows.
    """
    if name in COUNTED and known == Knowledge.ALL:
        return lambda side, a, arrays: COUNTED[name](a, arrays, side.owner).known(side)
    if name == "totals" and known:
        return trees.totals_alone
    if name == "magnitudes":  # public sizes, no sums
        return lambda side, a, arrays: _magnitudes(side, a)
    if name == "pair_kinds":
        return _own_word
    if name not in trees.SCORES or not trees.is_trees(a.model):
        return None
    if name == "score_levels" and owner(a.feature.feature.column) == "fund":
        return None
    return trees.scored_alone(name)


def _fit_of(a: Any, arrays: Mapping[str, Floats], owner: Owner) -> JoinedSum:
    """The score of a model on test rows, with resamples or without."""
    if a.task.law.name == "binomial":
        return LogitFit(a, arrays, owner)
    return (ResampledFit if a.replicates else JoinedFit)(a, arrays, owner)


def _by_family(plain: Any, logit: Any, of_trees: Any = None) -> Maker:
    """A statistic of models, which for a logistic one has curves, and of trees is another."""

    def make(a: Any, arrays: Mapping[str, Floats], owner: Owner) -> JoinedSum:
        kind = logit if a.task.law.name == "binomial" else plain
        if of_trees is not None and trees.is_trees(a.model):
            kind = of_trees
        total: JoinedSum = kind(a, arrays, owner)
        return total

    return make


#: What can be asked of joined rows, by the name of the statistic.
JOINED: Mapping[str, Maker] = {
    "glm_start": JoinedTotals,
    "glm_step": _by_family(Step, LogitStep),
    "glm_likelihood": _by_family(Likelihood, LogitLikelihood),
    "totals": JoinedTotals,
    "moments": Moments,
    "level_counts": LevelCounts,
    "score_fit": _fit_of,
    "score_lorenz": JoinedLorenz,
    "score_levels": _by_family(ByLevel, LogitByLevel, trees.LevelsOfFund),
    "trees_bins": Bins,
    "trees_persons": Persons,
    "pair_cells": PairCells,
    "trees_level": trees.Level,
    "trees_leaves": trees.Leaves,
}
