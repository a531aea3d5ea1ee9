"""The statistics of models over joined rows, each as products of what the two sides hold."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from federated.joined.factors import (
    Groups,
    Halves,
    JoinedSum,
    Owner,
    Shares,
    Side,
    indicators,
    within,
)
from federated.joined.laws import Law, Rows, Terms, law_of
from lab.errors import ConfigurationError
from lab.models import glm
from lab.models.design import Number
from lab.models.families import Family, Scale
from lab.models.files import from_json
from lab.models.glm import GLM, PERSON_PAIRS, SUMMED, Response
from lab.models.magnitudes import CLASSES, OfMagnitudes, magnitudes, of_features
from lab.privacy.joining import PERSONS
from lab.scores import accuracy
from lab.sums import COUNT, FLAG, Floats, Sums, limit_of
from secure_agg.arithmetic.ring import Integers

#: No row: what names the terms of a law.
NONE = Rows(np.zeros(0), np.zeros(0), np.zeros(0))
Products = list[tuple[tuple[str, ...], tuple[str, ...]]]
Widths = tuple[dict[str, int], dict[str, int]]
#: Groups of persons that resamples are drawn of.
BAGS = 64


def _columns(terms: Terms) -> Floats:
    return np.column_stack([left for left, _ in terms])


def _names(terms: Terms) -> list[str]:
    return [right for _, right in terms]


def _picked(shares: Shares, group: str, law: Law, names: list[str], at: int = 0) -> Integers:
    """The sum of a law's terms: each of its columns with the fund's factor of its name."""
    matrix, rights = shares(group, "loss"), law.loss_rights
    return np.asarray(sum(matrix[at + k, rights.index(name)] for k, name in enumerate(names)))


@dataclass(frozen=True)
class Step:
    """``glm_step``: score, curvature, deviance and Pearson's statistic at coefficients."""

    a: glm.OfStep
    arrays: Mapping[str, Floats]
    owner: Owner

    @property
    def _halves(self) -> Halves:
        return Halves(self.a.encoding, self.owner)

    @property
    def _law(self) -> Law:
        return law_of(self.a.task.law, self.a.scale)

    def products(self) -> Products:
        scores = tuple(f"score {k}" for k in range(len(self._law.score_rights)))
        return [
            ((*(f"x {s}" for s in scores), "xx"), ("narrow",)),
            ((*scores, "curvature"), ("z", "zz")),
            (("x curvature",), ("z curved",)),
            (("deviance", "pearson", "valid", "here"), ("loss", "valid", "here")),
        ]

    def widths(self) -> Widths:
        halves, law = self._halves, self._law
        a, b = (len(halves.places[role]) for role in ("insurer", "fund"))
        entries = {k: len(at) for k, (at, _) in halves.pairs.items()}
        left = {"xx": entries["insurer", "insurer"], "curvature": 1, "x curvature": a}
        for k in range(len(law.score_rights)):
            left |= {f"x score {k}": a, f"score {k}": 1}
        left |= {"deviance": len(law.deviance(NONE)), "pearson": len(law.pearson(NONE))}
        right = {"narrow": len(law.loss_rights), "loss": len(law.loss_rights)}
        right |= {"z": b * len(law.score_rights), "zz": entries["fund", "fund"], "z curved": b}
        ones = {"valid": 1, "here": 1}
        return left | ones, right | ones

    def left(self, side: Side) -> Groups:
        rows, task = side.rows(self.a.task, "train"), self.a.task
        halves, law, response = self._halves, self._law, Response(rows, task)
        x = halves.matrix("insurer", rows)
        with np.errstate(all="ignore"):
            own = x @ self.arrays["beta"][halves.places["insurer"]] + response.offset
            known = Rows(response.y, response.weight, own)
            curvature = law.curvature(known)[:, None]
            groups = {
                "xx": halves.squares("insurer", x) * curvature,
                "curvature": curvature,
                "x curvature": x * curvature,
                "deviance": _columns(law.deviance(known)),
                "pearson": _columns(law.pearson(known)),
            }
            for k, (score, _) in enumerate(law.score(known)):
                groups |= {f"x score {k}": x * score[:, None], f"score {k}": score[:, None]}
        return within(groups, len(rows))

    def right(self, side: Side) -> Groups:
        rows, halves, law = side.rows(self.a.task, "train"), self._halves, self._law
        z = halves.matrix("fund", rows)
        with np.errstate(all="ignore"):
            rights = law.rights(z @ self.arrays["beta"][halves.places["fund"]])
            narrow = np.column_stack([rights[name] for name in law.loss_rights])
            curved = rights[law.curvature_right][:, None]
            groups = {
                "narrow": narrow,
                "loss": narrow,
                "z": np.hstack([z * rights[name][:, None] for name in law.score_rights]),
                "zz": halves.squares("fund", z) * curved,
                "z curved": z * curved,
            }
        return within(groups, len(rows))

    def combined(self, shares: Shares) -> dict[str, Integers]:
        halves, law, width = self._halves, self._law, self.a.encoding.width
        score = np.zeros(width, dtype=object)
        b = len(halves.places["fund"])
        for k, name in enumerate(law.score_rights):
            own = shares(f"x score {k}", "narrow")[:, law.loss_rights.index(name)]
            score[halves.places["insurer"]] += own
            score[halves.places["fund"]] += shares(f"score {k}", "z")[0, k * b : (k + 1) * b]
        curvature = np.zeros(len(self.a.encoding.pairs[0]), dtype=object)
        middle = law.loss_rights.index(law.curvature_right)
        curvature[halves.pairs["insurer", "insurer"][0]] = shares("xx", "narrow")[:, middle]
        curvature[halves.pairs["fund", "fund"][0]] = shares("curvature", "zz")[0]
        at, (one, two) = halves.pairs["insurer", "fund"]
        curvature[at] = shares("x curvature", "z curved")[one, two]
        return {
            "score": score,
            "curvature": curvature,
            "deviance": _picked(shares, "deviance", law, _names(law.deviance(NONE))).reshape(1),
            "pearson": _picked(shares, "pearson", law, _names(law.pearson(NONE))).reshape(1),
            "valid": shares("valid", "valid").reshape(1),
        }

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        law, limits = self._law, glm.limits_of(self.a.task.law, self.a.scale)
        units = {"score": "score", "deviance": "deviance", "pearson": "deviance"}
        arrays = {
            name: np.asarray(value * law.unit(units[name]) if name in units else value)
            for name, value in values.items()
        }
        return Sums(arrays, limits, rows)


@dataclass(frozen=True)
class Likelihood:
    """``glm_likelihood``: the log-likelihood at coefficients."""

    a: glm.OfLikelihood
    arrays: Mapping[str, Floats]
    owner: Owner

    @property
    def _halves(self) -> Halves:
        return Halves(self.a.encoding, self.owner)

    @property
    def _law(self) -> Law:
        return law_of(self.a.task.law, self.a.scale)

    def products(self) -> Products:
        return [(("terms", "here"), ("loss", "here"))]

    def widths(self) -> Widths:
        left = {"terms": len(self._law.log_likelihood(NONE, 1.0)), "here": 1, "valid": 1}
        return left, {"loss": len(self._law.loss_rights), "here": 1, "valid": 1}

    def left(self, side: Side) -> Groups:
        rows, halves = side.rows(self.a.task, "train"), self._halves
        response = Response(rows, self.a.task)
        own = halves.matrix("insurer", rows) @ self.arrays["beta"][halves.places["insurer"]]
        known = Rows(response.y, response.weight, own + response.offset)
        terms = self._law.log_likelihood(known, self.a.dispersion)
        return within({"terms": _columns(terms)}, len(rows))

    def right(self, side: Side) -> Groups:
        rows, halves = side.rows(self.a.task, "train"), self._halves
        part = halves.matrix("fund", rows) @ self.arrays["beta"][halves.places["fund"]]
        rights = self._law.rights(part)
        columns = [rights[name] for name in self._law.loss_rights]
        return within({"loss": np.column_stack(columns)}, len(rows))

    def combined(self, shares: Shares) -> dict[str, Integers]:
        names = _names(self._law.log_likelihood(NONE, 1.0))
        return {"log_likelihood": _picked(shares, "terms", self._law, names).reshape(1)}

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        scale, law = self.a.scale, self.a.task.law
        most = scale.rows * glm.REACH * scale.likelihood(law, self.a.dispersion)
        total = values["log_likelihood"] * self._law.unit("deviance")
        return Sums({"log_likelihood": total}, {"log_likelihood": limit_of(most)}, rows)


@dataclass(frozen=True)
class Totals:
    """``totals``: what the constant model needs, over rows that both sides have; with an encoding,
    ``glm_start``, and the persons behind each pair of columns."""

    a: Any
    arrays: Mapping[str, Floats]
    owner: Owner

    @property
    def _halves(self) -> Halves | None:
        encoding = getattr(self.a, "encoding", None)
        return None if encoding is None else Halves(encoding, self.owner)

    def products(self) -> Products:
        sums: Products = [(("sums", "here"), ("here",))]
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

    def left(self, side: Side) -> Groups:
        rows = side.rows(self.a.task, getattr(self.a, "part", "train"))
        r, most = Response(rows, self.a.task), self.a.most
        columns = (r.weight, r.weight * r.y, r.weight * r.exposure, r.weight * r.y**2)
        sums = [column / bound for column, bound in zip(columns, most, strict=True)]
        groups = {"sums": np.column_stack([*sums, np.ones_like(r.y), (r.y > 0).astype(float)])}
        if (halves := self._halves) is not None:
            x = halves.matrix("insurer", rows)
            groups |= {"x": x, "xx": halves.squares("insurer", x)}
        return within(groups, len(rows))

    def right(self, side: Side) -> Groups:
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
class Moments:
    """``moments`` of numbers at either side, over rows that both have."""

    a: Any
    arrays: Mapping[str, Floats]
    owner: Owner

    def _own(self, role: str) -> list[int]:
        terms = enumerate(self.a.features)
        return [k for k, term in terms if self.owner(term.feature.column) == role]

    def products(self) -> Products:
        return [(("powers", "here"), ("here", "powers"))]

    def widths(self) -> Widths:
        ones = {"here": 1, "valid": 1}
        left, right = ({"powers": 3 * len(self._own(role))} for role in ("insurer", "fund"))
        return left | ones, right | ones

    def _powers(self, side: Side) -> Groups:
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
    values = (term.feature.numbers(rows, term.levels) - term.mean) / term.scale
    there = ~np.isnan(values)
    known = np.where(there, values, 0.0)
    return np.column_stack([there.astype(float), known, known**2])


@dataclass(frozen=True)
class LevelCounts:
    """``level_counts``: rows, which are persons here, at each level of features at either side."""

    a: Any
    arrays: Mapping[str, Floats]
    owner: Owner

    def _own(self, role: str) -> list[int]:
        return [k for k, t in enumerate(self.a.features) if self.owner(t.feature.column) == role]

    def products(self) -> Products:
        return [(("levels", "here"), ("here", "levels"))]

    def widths(self) -> Widths:
        ones = {"here": 1, "valid": 1}
        left, right = (
            {"levels": sum(len(self.a.features[k].levels) for k in self._own(role))}
            for role in ("insurer", "fund")
        )
        return left | ones, right | ones

    def _levels(self, side: Side) -> Groups:
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


def _bags(side: Side, task: Any, seed: int) -> Floats:
    """(rows, BAGS) the bag of each row, drawn from the side's secret; all rows of a person in one."""
    owners = side.owners(task, "test")
    key = [seed, *hmac.digest(side.secret, b"bags", "sha256")]
    _, person = np.unique(owners.to_numpy(), return_inverse=True)
    bag = np.random.default_rng(key).permutation(int(person.max(initial=-1)) + 1) % BAGS
    return np.asarray(bag[person][:, None] == np.arange(BAGS), dtype=np.float64)


@dataclass(frozen=True)
class Fit:
    """``score_fit``: deviance, actual and expected of a model on test rows.

    Resamples are of :data:`BAGS` bags of persons that the insurer's side draws: their sums are opened,
    and every resample is a sum of them.
    """

    a: Any
    arrays: Mapping[str, Floats]
    owner: Owner

    @property
    def _model(self) -> GLM:
        model = from_json(self.a.model)
        if not isinstance(model, GLM):
            raise ConfigurationError(
                f"model: a {type(model).__name__} can't be scored over joined parties"
            )
        return model

    @property
    def _halves(self) -> Halves:
        return Halves(self._model.encoding, self.owner)

    @property
    def _family(self) -> Family:
        law: Family = self.a.task.law
        return law

    @property
    def _law(self) -> Law:
        return law_of(self._family, self.a.scale)

    @property
    def _names(self) -> list[str]:
        law = self._law
        return [*_names(law.deviance(NONE)), *_names(law.mean(NONE)), "one", "one", "one"]

    @property
    def _counts(self) -> bool:
        return bool(self.a.task.counts_with_exposure)

    def products(self) -> Products:
        return [(("terms", "weighted", "here"), ("loss", "here"))]

    def widths(self) -> Widths:
        ones = {"here": 1, "valid": 1}
        terms = len(self._names) * (BAGS if self.a.replicates else 1)
        weighted = len(self._law.deviance(NONE)) + 2 if self._counts else 0
        left = {"terms": terms, "weighted": weighted} | ones
        return left, {"loss": len(self._law.loss_rights)} | ones

    def left(self, side: Side) -> Groups:
        task, scale = self.a.task, self.a.scale
        rows, law, halves, model = side.rows(task, "test"), self._law, self._halves, self._model
        r = Response(rows, task)
        own = halves.matrix("insurer", rows) @ np.array(model.beta)[halves.places["insurer"]]
        known = Rows(r.y, r.weight, own + r.offset)
        null = r.weight * self._family.deviance(r.y, scale.rate * r.exposure)
        alone = [null / law.unit("deviance"), r.weight * r.y / law.unit("mean")]
        size = r.weight * r.exposure / _size_unit(scale)
        terms = np.column_stack(
            [_columns(law.deviance(known)), _columns(law.mean(known)), *alone, size]
        )
        if self.a.replicates:
            bags = _bags(side, task, self.a.seed)
            terms = (bags[:, :, None] * terms[:, None, :]).reshape(len(rows), -1)
        return within({"terms": terms, "weighted": self._weighted(known, r)}, len(rows))

    def _weighted(self, known: Rows, r: Response) -> Floats:
        """Each row weighing as much as its exposure; see `lab.scores.accuracy.counts_explained`."""
        if not self._counts:
            return np.zeros((len(r.y), 0))
        size, unit = r.weight * r.exposure, self._law.unit("mean")
        deviance = _columns(self._law.deviance(Rows(r.y, size, known.own)))
        logarithm = size * special.xlogy(r.y, r.y)
        return np.column_stack([deviance, size * r.y / unit, logarithm / unit])

    def right(self, side: Side) -> Groups:
        rows, halves = side.rows(self.a.task, "test"), self._halves
        part = halves.matrix("fund", rows) @ np.array(self._model.beta)[halves.places["fund"]]
        rights = self._law.rights(part)
        columns = [rights[name] for name in self._law.loss_rights]
        return within({"loss": np.column_stack(columns)}, len(rows))

    def combined(self, shares: Shares) -> dict[str, Integers]:
        law, bags = self._law, BAGS if self.a.replicates else 1
        lists = {
            "deviance": _names(law.deviance(NONE)),
            "expected": _names(law.mean(NONE)),
            "null_deviance": ["one"],
            "actual": ["one"],
            "size": ["one"],
        }
        values = {name: np.zeros(bags, dtype=object) for name in lists}
        for bag in range(bags):
            at = bag * len(self._names)
            for name, rights in lists.items():
                values[name][bag] = _picked(shares, "terms", law, rights, at)
                at += len(rights)
        if self._counts:
            names = _names(law.deviance(NONE))
            ends = {"weighted_actual": len(names), "weighted_logarithm": len(names) + 1}
            values["weighted_deviance"] = _picked(shares, "weighted", law, names).reshape(1)
            for name, at in ends.items():
                values[name] = _picked(shares, "weighted", law, ["one"], at).reshape(1)
        return values

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        law, scale = self._law, self.a.scale
        units = dict.fromkeys(("deviance", "null_deviance", "weighted_deviance"), "deviance")
        limits = accuracy.limits_of(self._family, scale)
        if self._counts:
            limits |= accuracy.weighted_limits(self._family, scale)
        draws = np.random.default_rng(self.a.seed).poisson(1.0, (self.a.replicates, BAGS))
        arrays = {"rows": np.array([float(rows)])}
        for name, by_bag in values.items():
            unit = _size_unit(scale) if name == "size" else law.unit(units.get(name, "mean"))
            resampled = draws @ by_bag if self.a.replicates and len(by_bag) > 1 else np.zeros(0)
            total = np.concatenate([[by_bag.sum()], resampled]) * unit
            arrays[name] = np.clip(total, -limits[name].bound, limits[name].bound)
        return Sums(arrays, limits, rows)


def _size_unit(scale: Scale) -> float:
    return float(2.0 ** np.round(np.log2(scale.exposure)))


@dataclass(frozen=True)
class ByLevel:
    """``score_levels``: exposure, actual and expected at each level of one feature of either side."""

    a: Any
    arrays: Mapping[str, Floats]
    owner: Owner
    _fit: Fit = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_fit", Fit(self.a, self.arrays, self.owner))

    @property
    def _at_insurer(self) -> bool:
        return self.owner(self.a.feature.feature.column) == "insurer"

    @property
    def _terms(self) -> list[str]:
        return [*_names(self._law.mean(NONE)), "one", "one"]

    @property
    def _law(self) -> Law:
        one = Scale(rows=1, weight=1.0, exposure=1.0, target=1.0, square=1.0)
        return law_of(self.a.task.law, one)

    def products(self) -> Products:
        return [(("terms", "here", "levels"), ("loss", "here", "levels"))]

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

    def left(self, side: Side) -> Groups:
        task, model = self.a.task, self._fit._model
        rows, halves = side.rows(task, "test"), self._fit._halves
        r = Response(rows, task)
        own = halves.matrix("insurer", rows) @ np.array(model.beta)[halves.places["insurer"]]
        known = Rows(r.y, r.weight, own + r.offset)
        parts = [_columns(self._law.mean(known)), r.weight * r.y, r.weight * r.exposure]
        return self._by_level(rows, np.column_stack(parts), "terms", self._at_insurer)

    def right(self, side: Side) -> Groups:
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


#: What each side answers for its own columns, without the other: public sizes, no sums.
LOCAL: Mapping[str, Callable[[Any, Any], Sums]] = {"magnitudes": _magnitudes}
#: What can be asked of joined rows, by the name of the statistic.
JOINED: Mapping[str, Callable[[Any, Mapping[str, Floats], Owner], JoinedSum]] = {
    "glm_start": Totals,
    "glm_step": Step,
    "glm_likelihood": Likelihood,
    "totals": Totals,
    "moments": Moments,
    "level_counts": LevelCounts,
    "score_fit": Fit,
    "score_levels": ByLevel,
}
