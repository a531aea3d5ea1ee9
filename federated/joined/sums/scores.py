"""Scores of a GLM over joined test rows: no side knows a row's prediction."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from scipy import special

from federated.joined.sums.factors import (
    COARSE,
    Arguments,
    Format,
    Groups,
    Half,
    Halves,
    Multiplied,
    Shares,
    Widths,
    indicators,
    within,
)
from federated.joined.sums.laws import (
    NONE,
    KnownRows,
    Law,
    columns_of,
    names_of,
    picked,
    power_of_two,
)
from lab.errors import ConfigurationError
from lab.models.families import Family, Scale
from lab.models.files import Product, from_json
from lab.models.glm import GLM, Response
from lab.privacy.joining import PERSONS
from lab.scores import accuracy
from lab.sums import Floats, Sums
from secure_agg.arithmetic.ring import Digits, Integers, Ring

#: Groups of persons that resamples are drawn of.
BAGS = 64


def bags_of(side: Half, task: Any, seed: int) -> Floats:
    """(rows, BAGS) the bag of each row, drawn from the side's secret; all rows of a person in one."""
    owners = side.owners(task, "test")
    key = [seed, *hmac.digest(side.secret, b"bags", "sha256")]
    _, person = np.unique(owners.to_numpy(), return_inverse=True)
    bag = np.random.default_rng(key).permutation(int(person.max(initial=-1)) + 1) % BAGS
    return np.asarray(bag[person][:, None] == np.arange(BAGS), dtype=np.float64)


def model_of(text: str) -> GLM:
    """The GLM that is scored, of a pure premium its parts as one. Raises :class:`ConfigurationError` for
    another kind of model."""
    model = from_json(text)
    if isinstance(model, Product):
        return model.as_one()
    if not isinstance(model, GLM):
        raise ConfigurationError(
            f"model: a {type(model).__name__} can't be scored over joined parties"
        )
    return model


@dataclass(frozen=True)
class JoinedFit(Arguments):
    """``score_fit``: deviance, actual and expected of a model on test rows, without resamples."""

    @property
    def _model(self) -> GLM:
        return model_of(self.a.model)

    @property
    def _halves(self) -> Halves:
        return Halves(self._model.encoding, self.owner)

    @property
    def _family(self) -> Family:
        law: Family = self.a.task.law
        return law

    @property
    def _law(self) -> Law:
        return Law(self._family, self.a.scale)

    @property
    def _names(self) -> list[str]:
        law = self._law
        return [*names_of(law.deviance(NONE)), *names_of(law.mean(NONE)), "one", "one", "one"]

    @property
    def _counts(self) -> bool:
        return bool(self.a.task.counts_with_exposure)

    def products(self) -> Multiplied:
        return [(("terms", "weighted", "here", "valid"), ("loss", "here", "valid"))]

    def widths(self) -> Widths:
        ones = {"here": 1, "valid": 1}
        terms = len(self._names)
        weighted = len(self._law.deviance(NONE)) + 2 if self._counts else 0
        left = {"terms": terms, "weighted": weighted} | ones
        return left, {"loss": len(self._law.loss_rights)} | ones

    def left(self, side: Half) -> Groups:
        task, scale = self.a.task, self.a.scale
        rows, law, halves, model = side.rows(task, "test"), self._law, self._halves, self._model
        r = Response(rows, task)
        own = halves.matrix("insurer", rows) @ np.array(model.beta)[halves.places["insurer"]]
        known = KnownRows(r.y, r.weight, own + r.offset)
        null = r.weight * self._family.deviance(r.y, scale.rate * r.exposure)
        alone = [null / law.unit("deviance"), r.weight * r.y / law.unit("mean")]
        size = r.weight * r.exposure / _size_unit(scale)
        terms = np.column_stack(
            [columns_of(law.deviance(known)), columns_of(law.mean(known)), *alone, size]
        )
        return within({"terms": terms, "weighted": self._weighted(known, r)}, len(rows))

    def _weighted(self, known: KnownRows, r: Response) -> Floats:
        """Each row weighing as much as its exposure; see `lab.scores.accuracy.counts_explained`."""
        if not self._counts:
            return np.zeros((len(r.y), 0))
        size, unit = r.weight * r.exposure, self._law.unit("mean")
        deviance = columns_of(self._law.deviance(KnownRows(r.y, size, known.own)))
        logarithm = size * special.xlogy(r.y, r.y)
        return np.column_stack([deviance, size * r.y / unit, logarithm / unit])

    def right(self, side: Half) -> Groups:
        rows, halves = side.rows(self.a.task, "test"), self._halves
        part = halves.matrix("fund", rows) @ np.array(self._model.beta)[halves.places["fund"]]
        rights = self._law.rights(part)
        columns = [rights[name] for name in self._law.loss_rights]
        return within({"loss": np.column_stack(columns)}, len(rows))

    def combined(self, shares: Shares) -> dict[str, Integers]:
        law, at = self._law, 0
        values = {}
        for name, rights in _terms_of(law).items():
            values[name] = picked(shares, "terms", law, rights, at).reshape(1)
            at += len(rights)
        return values | self._weighted_sums(shares)

    def _weighted_sums(self, shares: Shares) -> dict[str, Integers]:
        law, values = self._law, dict[str, Integers]()
        if self._counts:
            names = names_of(law.deviance(NONE))
            ends = {"weighted_actual": len(names), "weighted_logarithm": len(names) + 1}
            values["weighted_deviance"] = picked(shares, "weighted", law, names).reshape(1)
            for name, at in ends.items():
                values[name] = picked(shares, "weighted", law, ["one"], at).reshape(1)
        return values

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        law, scale = self._law, self.a.scale
        units = dict.fromkeys(("deviance", "null_deviance", "weighted_deviance"), "deviance")
        limits = accuracy.limits_of(self._family, scale)
        if self._counts:
            limits |= accuracy.weighted_limits(self._family, scale)
        arrays = {"rows": np.array([float(rows)])}
        for name, total in values.items():
            unit = _size_unit(scale) if name == "size" else law.unit(units.get(name, "mean"))
            arrays[name] = np.clip(total * unit, -limits[name].bound, limits[name].bound)
        return Sums(arrays, limits, rows)


def _terms_of(law: Law) -> dict[str, list[str]]:
    """What is scored, each with the fund's factors of its terms, in the order of the insurer's."""
    means = names_of(law.mean(NONE))
    return {
        "deviance": names_of(law.deviance(NONE)),
        "expected": means,
        "null_deviance": ["one"],
        "actual": ["one"],
        "size": ["one"],
    }


@dataclass(frozen=True)
class ResampledFit(JoinedFit):
    """``score_fit`` with resamples: of :data:`BAGS` bags of persons that the insurer's side draws. Shares
    of what a row adds are made first, row by row; the sums of bags are opened, and every resample is a
    sum of them."""

    form: ClassVar[Format] = COARSE
    curves: ClassVar[tuple[str, ...]] = ("deviance", "expected", "null_deviance", "actual", "size")

    @property
    def terms(self) -> int:
        return len(self._law.loss_rights)

    def products(self) -> Multiplied:
        return [
            (("bags",), self.curves),
            (("weighted", "here", "valid"), ("loss", "here", "valid")),
        ]

    def widths(self) -> Widths:
        left, right = super().widths()
        curves = dict.fromkeys(self.curves, 1)
        return {**left, "bags": BAGS} | curves, right | curves

    def left(self, side: Half) -> Groups:
        groups = super().left(side)
        bags = bags_of(side, self.a.task, self.a.seed)
        rest = {name: groups[name] for name in ("terms", "weighted")}
        return within({**rest, "bags": bags}, len(bags), self.form)

    def right(self, side: Half) -> Groups:
        loss = super().right(side)["loss"]
        return within({"loss": loss}, len(loss), self.form)

    def left_curves(self, side: Half) -> Floats:
        terms, rights, at = self.left(side)["terms"], self._law.loss_rights, 0
        factors = np.zeros((len(terms), len(self.curves), len(rights)))
        for k, names in enumerate(_terms_of(self._law).values()):
            for name in names:
                factors[:, k, rights.index(name)] += terms[:, at]
                at += 1
        return factors

    def right_curves(self, side: Half) -> Floats:
        return self.right(side)["loss"]

    def with_curves(self, ring: Ring, own: dict[str, Digits]) -> dict[str, Digits]:
        return own

    def combined(self, shares: Shares) -> dict[str, Integers]:
        values = {
            name: shares("bags", name)[:, 0] + shares.local("bags", name)[:, 0]
            for name in self.curves
        }
        return values | self._weighted_sums(shares)

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        draws = np.random.default_rng(self.a.seed).poisson(1.0, (self.a.replicates, BAGS))
        one = {name: values[name] for name in values if name not in self.curves}
        for name in self.curves:
            by_bag = values[name] * self.form.resolution
            one[name] = np.concatenate([[by_bag.sum()], draws @ by_bag])
        return super().opened(one, rows)


def _size_unit(scale: Scale) -> float:
    return power_of_two(scale.exposure)


@dataclass(frozen=True)
class ByLevel(Arguments):
    """``score_levels``: exposure, actual and expected at each level of one feature of either side."""

    _fit: JoinedFit = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_fit", JoinedFit(self.a, self.arrays, self.owner))

    @property
    def _at_insurer(self) -> bool:
        return self.owner(self.a.feature.feature.column) == "insurer"

    @property
    def _terms(self) -> list[str]:
        return [*names_of(self._law.mean(NONE)), "one", "one"]

    @property
    def _law(self) -> Law:
        one = Scale(rows=1, weight=1.0, exposure=1.0, target=1.0, square=1.0)
        return Law(self.a.task.law, one)

    def products(self) -> Multiplied:
        return [(("terms", "here", "levels", "valid"), ("loss", "here", "levels", "valid"))]

    def widths(self) -> Widths:
        ones, levels = {"here": 1, "valid": 1}, len(self.a.feature.levels)
        inner, outer = len(self._terms), len(self._law.loss_rights)
        if self._at_insurer:
            return (
                {"terms": inner * levels, "levels": levels} | ones,
                {"loss": outer, "levels": 0} | ones,
            )
        return (
            {"terms": inner, "levels": 0} | ones,
            {"loss": outer * levels, "levels": levels} | ones,
        )

    def left(self, side: Half) -> Groups:
        task, model = self.a.task, self._fit._model
        rows, halves = side.rows(task, "test"), self._fit._halves
        r = Response(rows, task)
        own = halves.matrix("insurer", rows) @ np.array(model.beta)[halves.places["insurer"]]
        known = KnownRows(r.y, r.weight, own + r.offset)
        parts = [columns_of(self._law.mean(known)), r.weight * r.y, r.weight * r.exposure]
        return self._by_level(rows, np.column_stack(parts), "terms", self._at_insurer)

    def right(self, side: Half) -> Groups:
        rows, halves = side.rows(self.a.task, "test"), self._fit._halves
        part = halves.matrix("fund", rows) @ np.array(self._fit._model.beta)[halves.places["fund"]]
        rights = self._law.rights(part)
        columns = np.column_stack([rights[name] for name in self._law.loss_rights])
        return self._by_level(rows, columns, "loss", not self._at_insurer)

    def _by_level(self, rows: Any, columns: Floats, name: str, own: bool) -> Groups:
        if not own:
            return within({name: columns, "levels": np.zeros((len(rows), 0))}, len(rows))
        levels = indicators(rows, self.a.feature.feature, self.a.feature.levels)
        each = (levels[:, :, None] * columns[:, None, :]).reshape(len(rows), -1)
        return within({name: each, "levels": levels}, len(rows))

    def combined(self, shares: Shares) -> dict[str, Integers]:
        rights, inner = self._law.loss_rights, len(self._terms)
        means, levels = len(self._law.mean(NONE)), len(self.a.feature.levels)
        names = {"expected": range(means), "actual": [means], "size": [means + 1]}
        values = {name: np.zeros(levels, dtype=object) for name in names}
        matrix = shares("terms", "loss")
        for level in range(levels):
            for name, terms in names.items():
                for k in terms:
                    at = rights.index(self._terms[k])
                    values[name][level] += (
                        matrix[level * inner + k, at]
                        if self._at_insurer
                        else matrix[k, level * len(rights) + at]
                    )
        persons = (
            shares("levels", "here")[:, 0] if self._at_insurer else shares("here", "levels")[0]
        )
        return values | {PERSONS: persons}

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        unit = {"expected": self._law.unit("mean")}
        arrays = {name: np.asarray(v * unit.get(name, 1.0)) for name, v in values.items()}
        return Sums(arrays, accuracy.level_limits(), rows)
