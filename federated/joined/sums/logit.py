"""A logistic model over joined rows. Its mean is no product of what the sides know, so that shares of each
row's curves (`federated.joined.sums.curves`) are made first and enter the products as columns of both sides.

With m the weighted mean of a row and s its weighted slope, of which each side has a share:

    score      X'(w y - m)      curvature  X'diag(s)X      deviance  -2 (w y (a + b) - w softplus(a + b))

Numbers are on a coarser grid than elsewhere, as three of them are multiplied in a joint column of X'diag(s)X.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from federated.joined.sums.curves import REACH, TERMS, polynomials, shifted
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
from federated.joined.sums.scores import BAGS, bags_of, model_of
from lab.models import glm
from lab.models.design import Encoding
from lab.models.glm import Response
from lab.privacy.joining import PERSONS
from lab.scores import accuracy
from lab.statistics import Part
from lab.sums import Floats, Sums, limit_of
from secure_agg.arithmetic.ring import Digits, Integers, Ring

#: What a number on the grid is as a whole number, for sums of products of two and three of them.
ONE = round(1 / COARSE.resolution)


@dataclass(frozen=True)
class Logit(Arguments):
    """What all statistics of a logistic model have in common: halves, curves, the insurer's numbers."""

    form: ClassVar[Format] = COARSE
    curves: ClassVar[tuple[str, ...]] = ("mean", "slope", "softplus")
    part: ClassVar[Part] = "train"
    terms: ClassVar[int] = TERMS

    @property
    def encoding(self) -> Encoding:
        encoding: Encoding = self.a.encoding
        return encoding

    @property
    def beta(self) -> Floats:
        return self.arrays["beta"]

    @property
    def halves(self) -> Halves:
        return Halves(self.encoding, self.owner)

    def known(self, side: Half) -> tuple[Any, Floats, Response, Floats]:
        """The insurer's rows, its columns, the response, its part of the linear predictor."""
        rows = side.rows(self.a.task, self.part)
        x = self.halves.matrix("insurer", rows)
        return rows, x, Response(rows, self.a.task), x @ self.beta[self.halves.places["insurer"]]

    def reached(self, side: Half) -> tuple[Any, Floats, Floats]:
        """The fund's rows, its columns, its part of the linear predictor."""
        rows = side.rows(self.a.task, self.part)
        z = self.halves.matrix("fund", rows)
        return rows, z, z @ self.beta[self.halves.places["fund"]]

    def left_curves(self, side: Half) -> Floats:
        _, _, response, own = self.known(side)
        factors = [response.weight[:, None] * shifted(own, curve) for curve in self.curves]
        return np.stack(factors, axis=1)

    def right_curves(self, side: Half) -> Floats:
        _, _, part = self.reached(side)
        inside = np.abs(part) <= REACH
        return np.where(inside[:, None], polynomials(np.where(inside, part, 0.0)), 0.0)

    def with_curves(self, ring: Ring, own: dict[str, Digits]) -> dict[str, Digits]:
        return own

    @staticmethod
    def deviance_columns(response: Response, own: Floats) -> tuple[Floats, Floats]:
        """What the deviance has beside softplus: for rows, and for the fund's part."""
        wy = response.weight * response.y
        return -2 * wy * own, -2 * wy

    def fund_within(self, groups: Groups, part: Floats) -> Groups:
        """The fund's groups; a row beyond the reach of the curves is not valid."""
        inside = np.where(np.abs(part) <= REACH, part, np.inf)
        return within({**groups, "b": inside[:, None]}, len(part), self.form)


def _deviance(shares: Shares, rows: str, by_part: str, all_rows: str) -> Integers:
    """(columns,) -2 times the log-likelihood, on the grid of three numbers; by columns of rows."""
    plain = shares(rows, "here")[:, 0] + shares(by_part, "b")[:, 0]
    soft = shares(all_rows, "softplus")[:, 0] + shares.local(all_rows, "softplus")[:, 0]
    return np.asarray(plain * ONE + 2 * soft)


@dataclass(frozen=True)
class LogitStep(Logit):
    """``glm_step`` of a logistic model."""

    a: glm.OfStep

    def products(self) -> Multiplied:
        return [
            (("x", "xx", "all"), ("mean", "slope", "softplus")),
            (("mean", "slope"), ("z", "zz")),
            (("x slope",), ("z",)),
            (("x",), ("z slope",)),
            (
                ("x wy", "wy", "rows", "by b", "up", "down", "valid", "here"),
                ("here", "b", "z", "valid", "rise", "fall"),
            ),
        ]

    def widths(self) -> Widths:
        places, pairs = self.halves.places, self.halves.pairs
        a, b = len(places["insurer"]), len(places["fund"])
        ones = dict.fromkeys((*self.curves, "here", "valid"), 1)
        left = {"x": a, "xx": len(pairs["insurer", "insurer"][0]), "x slope": a, "x wy": a}
        left |= dict.fromkeys(("wy", "rows", "by b", "up", "down", "all"), 1)
        right = {"z": b, "zz": len(pairs["fund", "fund"][0]), "z slope": b}
        return left | ones, right | ones | dict.fromkeys(("b", "rise", "fall"), 1)

    def left(self, side: Half) -> Groups:
        rows, x, response, own = self.known(side)
        w, y = response.weight[:, None], response.y[:, None]
        plain, by_part = self.deviance_columns(response, own)
        with np.errstate(over="ignore"):
            groups = {
                "x": x,
                "all": np.ones((len(rows), 1)),
                "xx": self.halves.squares("insurer", x),
                "x wy": x * w * y,
                "wy": w * y,
                "rows": plain[:, None],
                "by b": by_part[:, None],
                "up": w * y * np.exp(-own)[:, None],
                "down": w * (1 - y) * np.exp(own)[:, None],
            }
        return within(groups, len(rows), self.form)

    def right(self, side: Half) -> Groups:
        _, z, part = self.reached(side)
        zz = self.halves.squares("fund", z)
        within_reach = np.clip(part, -REACH, REACH)[:, None]
        groups = {"z": z, "zz": zz, "rise": np.exp(-within_reach), "fall": np.exp(within_reach)}
        return self.fund_within(groups, part)

    def with_curves(self, ring: Ring, own: dict[str, Digits]) -> dict[str, Digits]:
        name = "x" if "x" in own else "z"
        columns, slope = own[name], own["slope"]
        each = ring.dots(columns[:, :, None], slope)
        return {**own, f"{name} slope": each}

    @property
    def shared(self) -> tuple[str, ...]:
        return (*self.curves, "x slope", "z slope")

    def combined(self, shares: Shares) -> dict[str, Integers]:
        places, pairs, width = self.halves.places, self.halves.pairs, self.encoding.width
        score = np.zeros(width, dtype=object)
        mean_x = shares("x", "mean")[:, 0] + shares.local("x", "mean")[:, 0]
        mean_z = shares("mean", "z")[0] + shares.local("mean", "z")[0]
        score[places["insurer"]] = shares("x wy", "here")[:, 0] * ONE - mean_x
        score[places["fund"]] = shares("wy", "z")[0] * ONE - mean_z
        curvature = np.zeros(len(self.encoding.pairs[0]), dtype=object)
        own = shares("xx", "slope")[:, 0] + shares.local("xx", "slope")[:, 0]
        curvature[pairs["insurer", "insurer"][0]] = own * ONE
        theirs = shares("slope", "zz")[0] + shares.local("slope", "zz")[0]
        curvature[pairs["fund", "fund"][0]] = theirs * ONE
        at, (one, two) = pairs["insurer", "fund"]
        curvature[at] = (shares("x slope", "z") + shares("x", "z slope"))[one, two]
        return {
            "score": score,
            "curvature": curvature,
            "deviance": _deviance(shares, "rows", "by b", "all"),
            "pearson": (shares("up", "rise") + shares("down", "fall"))[0],
            "valid": shares("valid", "valid")[0],
        }

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        scale, law = self.a.scale, self.a.task.law
        units = {
            "score": self.form.resolution,
            "deviance": self.form.resolution,
            "curvature": self.form.resolution**2 / scale.curvature(law),
        }
        arrays = {name: np.asarray(value * units.get(name, 1.0)) for name, value in values.items()}
        return Sums(arrays, glm.limits_of(law, scale), rows)


@dataclass(frozen=True)
class LogitLikelihood(Logit):
    """``glm_likelihood`` of a logistic model: minus half its deviance."""

    a: glm.OfLikelihood
    curves: ClassVar[tuple[str, ...]] = ("softplus",)

    def products(self) -> Multiplied:
        return [
            (("rows", "by b", "here", "valid"), ("here", "b", "valid")),
            (("all",), ("softplus",)),
        ]

    def widths(self) -> Widths:
        ones = dict.fromkeys((*self.curves, "here", "valid"), 1)
        return {"rows": 1, "by b": 1, "all": 1} | ones, {"b": 1} | ones

    def left(self, side: Half) -> Groups:
        rows, _, response, own = self.known(side)
        plain, by_part = self.deviance_columns(response, own)
        groups = {"rows": plain[:, None], "by b": by_part[:, None], "all": np.ones((len(rows), 1))}
        return within(groups, len(rows), self.form)

    def right(self, side: Half) -> Groups:
        _, _, part = self.reached(side)
        return self.fund_within({}, part)

    def combined(self, shares: Shares) -> dict[str, Integers]:
        return {"log_likelihood": _deviance(shares, "rows", "by b", "all")}

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        scale, dispersion = self.a.scale, self.a.dispersion
        most = scale.rows * glm.REACH * scale.likelihood(self.a.task.law, dispersion)
        total = -0.5 * self.form.resolution * values["log_likelihood"] / dispersion
        return Sums({"log_likelihood": total}, {"log_likelihood": limit_of(most)}, rows)


@dataclass(frozen=True)
class OfTestRows(Logit):
    """A model's statistics on test rows."""

    part: ClassVar[Part] = "test"
    curves: ClassVar[tuple[str, ...]] = ("mean", "softplus")

    @property
    def encoding(self) -> Encoding:
        return model_of(self.a.model).encoding

    @property
    def beta(self) -> Floats:
        return np.array(model_of(self.a.model).beta)


@dataclass(frozen=True)
class LogitFit(OfTestRows):
    """``score_fit`` of a logistic model; resamples as `federated.joined.sums.scores.JoinedFit`."""

    def products(self) -> Multiplied:
        return [
            (("rows", "by b", "alone", "bags", "here", "valid"), ("here", "b", "valid")),
            (("bags",), ("mean", "softplus")),
        ]

    @property
    def _bags(self) -> int:
        return BAGS if self.a.replicates else 1

    def widths(self) -> Widths:
        ones, bags = dict.fromkeys((*self.curves, "here", "valid"), 1), self._bags
        left = {"rows": bags, "by b": bags, "alone": 3 * bags, "bags": bags}
        return left | ones, {"b": 1} | ones

    def left(self, side: Half) -> Groups:
        rows, _, r, own = self.known(side)
        scale, family = self.a.scale, self.a.task.law
        bags = bags_of(side, self.a.task, self.a.seed) if self.a.replicates else None
        bags = np.ones((len(rows), 1)) if bags is None else bags
        plain, by_part = self.deviance_columns(r, own)
        null = r.weight * family.deviance(r.y, np.full(len(r.y), scale.rate))
        alone = (null, r.weight * r.y, r.weight * r.exposure)
        groups = {
            "rows": bags * plain[:, None],
            "by b": bags * by_part[:, None],
            "alone": np.hstack([bags * values[:, None] for values in alone]),
            "bags": bags,
        }
        return within(groups, len(rows), self.form)

    def right(self, side: Half) -> Groups:
        _, _, part = self.reached(side)
        return self.fund_within({}, part)

    def combined(self, shares: Shares) -> dict[str, Integers]:
        alone, bags = shares("alone", "here")[:, 0], self._bags
        expected = shares("bags", "mean")[:, 0] + shares.local("bags", "mean")[:, 0]
        return {
            "deviance": _deviance(shares, "rows", "by b", "bags"),
            "expected": expected,
            "null_deviance": alone[:bags],
            "actual": alone[bags : 2 * bags],
            "size": alone[2 * bags :],
        }

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        limits = accuracy.limits_of(self.a.task.law, self.a.scale)
        draws = np.random.default_rng(self.a.seed).poisson(1.0, (self.a.replicates, BAGS))
        arrays = {"rows": np.array([float(rows)])}
        for name, by_bag in values.items():
            unit = self.form.resolution if name in ("deviance", "expected") else 1.0
            resampled = draws @ by_bag if self.a.replicates else np.zeros(0)
            total = np.concatenate([[by_bag.sum()], resampled]) * unit
            arrays[name] = np.clip(total, -limits[name].bound, limits[name].bound)
        return Sums(arrays, limits, rows)


@dataclass(frozen=True)
class LogitByLevel(OfTestRows):
    """``score_levels`` of a logistic model, of a feature at either side."""

    curves: ClassVar[tuple[str, ...]] = ("mean",)

    @property
    def _at_insurer(self) -> bool:
        return self.owner(self.a.feature.feature.column) == "insurer"

    def products(self) -> Multiplied:
        if self._at_insurer:
            return [
                (("levels", "actual", "size", "here", "valid"), ("here", "valid")),
                (("levels",), ("mean",)),
            ]
        return [
            (("here", "actual", "size", "valid"), ("here", "levels", "valid")),
            (("mean",), ("levels",)),
        ]

    def widths(self) -> Widths:
        ones, levels = dict.fromkeys((*self.curves, "here", "valid"), 1), len(self.a.feature.levels)
        if self._at_insurer:
            return dict.fromkeys(("levels", "actual", "size"), levels) | ones, {"b": 1} | ones
        return {"actual": 1, "size": 1} | ones, {"levels": levels, "b": 1} | ones

    def left(self, side: Half) -> Groups:
        rows, _, r, _ = self.known(side)
        groups = {
            "actual": (r.weight * r.y)[:, None],
            "size": (r.weight * r.exposure)[:, None],
        }
        if self._at_insurer:
            levels = indicators(rows, self.a.feature.feature, self.a.feature.levels)
            groups = {name: levels * values for name, values in groups.items()}
            groups["levels"] = levels
        return within(groups, len(rows), self.form)

    def right(self, side: Half) -> Groups:
        rows, _, part = self.reached(side)
        groups: Groups = {}
        if not self._at_insurer:
            groups["levels"] = indicators(rows, self.a.feature.feature, self.a.feature.levels)
        return self.fund_within(groups, part)

    def combined(self, shares: Shares) -> dict[str, Integers]:
        if self._at_insurer:
            expected = shares("levels", "mean")[:, 0] + shares.local("levels", "mean")[:, 0]
            sums = {name: shares(name, "here")[:, 0] for name in ("actual", "size")}
            return {"expected": expected, PERSONS: shares("levels", "here")[:, 0], **sums}
        expected = shares("mean", "levels")[0] + shares.local("mean", "levels")[0]
        sums = {name: shares(name, "levels")[0] for name in ("actual", "size")}
        return {"expected": expected, PERSONS: shares("here", "levels")[0], **sums}

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        unit = {"expected": self.form.resolution}
        arrays = {name: np.asarray(v * unit.get(name, 1.0)) for name, v in values.items()}
        return Sums(arrays, accuracy.level_limits(), rows)
