"""Boosted trees over joined rows: an insurer's derivatives by node, added up by the fund's bins.

The insurer's side knows target, derivatives and the node of each row; the fund's side knows the bins of
its own columns. Histograms of the insurer's columns are sums of its own rows, those of the fund's are
products of derivatives with indicators of bins. All are whole numbers, so that cuts and trees are those
of the joined table to the bit. The insurer knows which of its persons are common; the fund learns of none
whether it is for training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from federated.joined.sums.cuts import ONES, Cut, cuts_of
from federated.joined.sums.factors import (
    BOTH,
    WITHIN,
    Arguments,
    Format,
    Groups,
    JoinedSum,
    Multiplied,
    Shares,
    Widths,
    indicators,
    within,
)
from federated.party import scores, statistics
from federated.party.party import Party
from lab.errors import PeerError, PolicyError
from lab.models.files import from_json
from lab.models.glm import Task
from lab.models.tree_model import Cuts, Trees, binned
from lab.models.tree_rows import GRAIN, LOSS, Place
from lab.models.trees import OfLeaves, OfLevel, growing_rows, level, persons_at, trees_terms
from lab.privacy.joining import PERSONS
from lab.scores import accuracy
from lab.sums import COUNT, FLAG, HEADS, Floats, Limit, Sums
from secure_agg.arithmetic.ring import Integers


@dataclass(frozen=True)
class _Place(Arguments):
    """What questions have in common that stand at a tree that grows."""

    @property
    def place(self) -> Place:
        raise NotImplementedError

    def chosen(self) -> list[Cut]:
        """The cuts on the fund's columns that it tells."""
        last, growing = self.place.last, self.place.growing
        trees = [growing] if last is None else [last, growing]
        return cuts_of(trees, self.a.cuts, lambda column: self.owner(column) == "fund")

    def told(self, side: Any, peer: str) -> bytes:
        """A bit for each cut and row of the spine."""
        return bytes(side.tell(peer, self.chosen(), self.a.cuts))

    def hear(self, side: Any, data: bytes) -> None:
        side.listen(self.chosen(), self.a.cuts, data)

    def rows(self, side: Any) -> Any:
        """The insurer's common rows, at the leaves of the tree that grows."""
        common, a = side.common, self.a
        terms = trees_terms(a.task, common.terms(a.cuts), a.recipe)
        rows = common.party.once(growing_rows, terms, at_hand=1)
        for j, cut in enumerate(a.cuts):
            if self.owner(cut.feature.column) == "fund":
                rows.recode(j, common.codes(cut, "train"))
        rows.follow(self.place)
        return rows


def told_by(total: JoinedSum) -> list[tuple[Cuts, tuple[bool, ...]]]:
    """The cuts on the fund's columns that are told before a sum is made."""
    if not isinstance(total, _Place):
        return []
    return [(total.a.cuts[feature], goes_left) for feature, goes_left in total.chosen()]


@dataclass(frozen=True)
class Level(_Place):
    """``trees_level``: derivatives by bin of the leaves that are asked about."""

    a: OfLevel

    @property
    def place(self) -> Place:
        return self.a.ask.place

    @property
    def form(self) -> Format:
        return Format.counted(max(most for pair in self.a.ask.most for most in pair) / GRAIN)

    @property
    def _starts(self) -> dict[int, int]:
        """Where the bins of each asked feature start."""
        ends = np.cumsum([self.a.cuts[j].bins for j in self.a.ask.features])
        starts = [0, *(int(end) for end in ends[:-1])]
        return dict(zip(self.a.ask.features, starts, strict=True))

    @property
    def _at_fund(self) -> list[int]:
        asked = self.a.ask.features
        return [j for j in asked if self.owner(self.a.cuts[j].feature.column) == "fund"]

    def _bins_of_fund(self) -> Any:
        """Which of the bins that are asked about are the fund's."""
        start, cuts = self._starts, self.a.cuts
        parts = [np.arange(start[j], start[j] + cuts[j].bins) for j in self._at_fund]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)

    def products(self) -> Multiplied:
        return [(("derivatives",), ("bins",))]

    def widths(self) -> Widths:
        bins = sum(self.a.cuts[j].bins for j in self._at_fund)
        return {"derivatives": 2 * len(self.a.ask.nodes)} | ONES, {"bins": bins} | ONES

    def left(self, side: Any) -> Groups:
        frame, rows = side.rows(self.a.task, "train"), self.rows(side)
        training = rows.training
        columns = np.zeros((len(rows.apart), 2 * len(self.a.ask.nodes)))
        for k, node in enumerate(self.a.ask.nodes):
            there = training.node == node
            columns[np.flatnonzero(~rows.apart)[there], 2 * k : 2 * k + 2] = training.derivatives[
                there
            ]
        whole = np.zeros((len(frame), columns.shape[1]))
        whole[frame.index.isin(side.common.party.train.index)] = columns
        return {"derivatives": whole}

    def right(self, side: Any) -> Groups:
        chosen = tuple(self.a.cuts[j] for j in self._at_fund)
        return {"bins": side.once(_indicators, self.a.task, chosen, at_hand=1)}

    def alone(self, side: Any) -> dict[str, Integers]:
        sums = level(self.rows(side), self.a.ask)
        values = _rows(sums)
        for name, array in sums.arrays.items():
            own = array.copy()
            if name.startswith(("gradient", "hessian")):
                own[self._bins_of_fund()] = 0.0
            values[name] = _whole(own, _unit(name))
        return values

    def combined(self, shares: Shares) -> dict[str, Integers]:
        nodes, bins = len(self.a.ask.nodes), sum(self.a.cuts[j].bins for j in self.a.ask.features)
        matrix, at = shares("derivatives", "bins"), self._bins_of_fund()
        values = {"gross": np.zeros(nodes, dtype=object), "beyond": np.zeros(1, dtype=object)}
        for k in range(nodes):
            for i, name in enumerate(("gradient", "hessian")):
                values[f"{name} {k}"] = np.zeros(bins, dtype=object)
                values[f"{name} {k}"][at] = matrix[2 * k + i]
        if len(self.place.growing.feature) == 1:
            values |= {name: np.zeros(2, dtype=object) for name in ("loss", "size")}
        return values

    def about(self, column: str, numbers: int) -> int:
        """Of a feature those by its own bins: which rows are at a node goes by cuts, which are counted by
        themselves."""
        own = [j for j, cut in enumerate(self.a.cuts) if cut.feature.column == column]
        bins = sum(self.a.cuts[j].bins for j in own if j in self.a.ask.features)
        return 2 * len(self.a.ask.nodes) * bins if own else numbers

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        most = self.a.ask.most
        limits = {"gross": Limit(max(bounds[0] for bounds in most), GRAIN), "beyond": FLAG}
        limits |= {"loss": LOSS, "size": COUNT}
        for k, bounds in enumerate(most):
            limits |= {f"gradient {k}": Limit(bounds[0], GRAIN)}
            limits |= {f"hessian {k}": Limit(bounds[1], GRAIN)}
        arrays = {name: np.asarray(value * _unit(name)) for name, value in values.items()}
        return Sums(arrays, {name: limits[name] for name in arrays}, rows)


def _unit(name: str) -> float:
    """What a whole number of an array stands for."""
    return {"loss": LOSS.resolution, "size": 1.0, "beyond": 1.0}.get(name, GRAIN)


def _rows(sums: Sums) -> dict[str, Integers]:
    """The common rows behind sums, all within their bounds."""
    return {name: np.array([sums.rows], dtype=object) for name in (BOTH, WITHIN)}


def _whole(values: Floats, unit: float) -> Integers:
    return np.array([int(v) for v in np.rint(values / unit)], dtype=object)


def _indicators(side: Any, task: Any, cuts: tuple[Cuts, ...]) -> Floats:
    """(rows, bins) 1 where a row of the fund is in a bin, one feature after the other."""
    frame = side.rows(task, "train")
    codes = binned(frame, cuts)
    columns = [codes[:, j, None] == np.arange(cut.bins) for j, cut in enumerate(cuts)]
    return np.hstack([np.zeros((len(frame), 0)), *columns]).astype(np.float64)


@dataclass(frozen=True)
class Leaves(_Place):
    """``trees_leaves``: persons at each leaf, which the insurer's side knows alone."""

    a: OfLeaves
    form: ClassVar[Format] = Format.counted(1.0)

    @property
    def place(self) -> Place:
        return self.a.place

    def products(self) -> Multiplied:
        return []

    def widths(self) -> Widths:
        return ONES, ONES

    def left(self, side: Any) -> Groups:
        return {}

    right = left

    def alone(self, side: Any) -> dict[str, Integers]:
        sums = persons_at(self.rows(side), self.place)
        return {PERSONS: _whole(sums[PERSONS], 1.0)} | _rows(sums)

    def combined(self, shares: Shares) -> dict[str, Integers]:
        return {PERSONS: np.zeros(len(self.place.growing.feature), dtype=object)}

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        return Sums({PERSONS: values[PERSONS]}, {PERSONS: HEADS}, rows)


@dataclass(frozen=True)
class LevelsOfFund(Arguments):
    """``score_levels`` of trees, by levels of one of the fund's features."""

    def products(self) -> Multiplied:
        return [(("terms", "here", "valid"), ("levels", "here", "valid"))]

    def widths(self) -> Widths:
        return {"terms": len(TERMS)} | ONES, {"levels": len(self.a.feature.levels)} | ONES

    def left(self, side: Any) -> Groups:
        frame, view = side.rows(self.a.task, "test"), side.common.party
        rows = scores.scored(view, told_model(side, self.a.model), self.a.task)
        terms = [rows.size, rows.weight * rows.y, rows.weight * rows.rate * rows.exposure]
        whole = np.zeros((len(frame), len(TERMS)))
        whole[frame.index.isin(view.test.index)] = np.column_stack(terms)
        return within({"terms": whole}, len(frame))

    def right(self, side: Any) -> Groups:
        rows = side.rows(self.a.task, "test")
        levels = indicators(rows, self.a.feature.feature, self.a.feature.levels)
        return within({"levels": levels}, len(rows))

    def combined(self, shares: Shares) -> dict[str, Integers]:
        matrix = shares("terms", "levels")
        values = {name: matrix[k] for k, name in enumerate(TERMS)}
        return values | {PERSONS: shares("here", "levels")[0]}

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        return Sums(dict(values), accuracy.level_limits(), rows)


TERMS = ("size", "actual", "expected")


# What a side answers by itself.


def told_model(side: Any, text: str) -> str:
    """Trees as an insurer's side can follow them."""
    model = _trees(text)
    told: Trees = model.model_copy(update={"cuts": side.common.terms(model.cuts)})
    return told.model_dump_json()


def _trees(text: str) -> Trees:
    model = from_json(text)
    if not isinstance(model, Trees):
        raise PeerError("coordinator: asks for trees' scores of another kind of model")
    return model


def totals_alone(side: Any, a: Any, arrays: Mapping[str, Floats]) -> Sums:
    """``totals`` of common rows, which the insurer's side knows by itself."""
    row = statistics.find("totals")
    if side.role == "insurer":
        return row.function(side.common.party, a, arrays)
    return row.function(_nobody(side, a.task), a, arrays)


def scored_alone(name: str) -> Callable[[Any, Any, Mapping[str, Floats]], Sums]:
    """A score of trees: the insurer's side knows the leaves of its rows, so all of it."""
    row = statistics.find(name)

    def of_side(side: Any, a: Any, arrays: Mapping[str, Floats]) -> Sums:
        if side.role == "insurer":
            model = told_model(side, a.model)
            return row.function(side.common.party, a.model_copy(update={"model": model}), arrays)
        names: list[str | None] = [cut.feature.column for cut in _trees(a.model).cuts]
        names += [getattr(a, "truth", None), getattr(a, "amount", None)]
        groups = [getattr(a, name, None) for name in ("group", "feature")]
        names += [levels.feature.column for levels in groups if levels is not None]
        return row.function(_nobody(side, a.task, names), a, arrays)

    return of_side


def _nobody(side: Any, task: Task, names: Sequence[str | None] = ()) -> Party:
    """A party without rows, whose sums have the form of any other's."""
    every: tuple[str | None, ...] = (task.target, task.exposure, task.weight, *names)
    columns = {name: pd.Series(dtype=np.float64) for name in every if name is not None}
    empty = pd.DataFrame(columns)
    return Party(side.name, empty, empty)


SCORES = ("score_fit", "score_lorenz", "score_levels", "detection_rank", "detection_groups")


def is_trees(text: str) -> bool:
    """Whether a model's text is one of trees."""
    return isinstance(from_json(text), Trees)


def refuse_untold() -> PolicyError:
    return PolicyError("this party tells no cuts on its columns; the plan may choose none", "cuts")
