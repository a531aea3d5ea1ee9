"""A GLM's steps over joined rows: score, curvature, deviance and log-likelihood as products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from federated.joined.sums.factors import (
    Arguments,
    Groups,
    Half,
    Halves,
    Multiplied,
    Shares,
    Widths,
    within,
)
from federated.joined.sums.laws import NONE, KnownRows, Law, columns_of, names_of, picked
from lab.models import glm
from lab.models.glm import Response
from lab.sums import Floats, Sums, limit_of
from secure_agg.arithmetic.ring import Integers


@dataclass(frozen=True)
class _AtCoefficients(Arguments):
    """What a fit asks at coefficients: the encoding in halves, the family as sums of products."""

    a: glm.OfStep | glm.OfLikelihood

    @property
    def _halves(self) -> Halves:
        return Halves(self.a.encoding, self.owner)

    @property
    def _law(self) -> Law:
        return Law(self.a.law, self.a.scale)


@dataclass(frozen=True)
class Step(_AtCoefficients):
    """``glm_step``: score, curvature, deviance and Pearson's statistic at coefficients."""

    a: glm.OfStep

    def products(self) -> Multiplied:
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

    def left(self, side: Half) -> Groups:
        rows, task = side.rows(self.a.task, "train"), self.a.task
        halves, law, response = self._halves, self._law, Response(rows, task)
        x = halves.matrix("insurer", rows)
        with np.errstate(all="ignore"):
            own = x @ self.arrays["beta"][halves.places["insurer"]] + response.offset
            known = KnownRows(response.y, response.weight, own)
            curvature = law.curvature(known)[:, None]
            groups = {
                "xx": halves.squares("insurer", x) * curvature,
                "curvature": curvature,
                "x curvature": x * curvature,
                "deviance": columns_of(law.deviance(known)),
                "pearson": columns_of(law.pearson(known)),
            }
            for k, (score, _) in enumerate(law.score(known)):
                groups |= {f"x score {k}": x * score[:, None], f"score {k}": score[:, None]}
        return within(groups, len(rows))

    def right(self, side: Half) -> Groups:
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
            "deviance": picked(shares, "deviance", law, names_of(law.deviance(NONE))).reshape(1),
            "pearson": picked(shares, "pearson", law, names_of(law.pearson(NONE))).reshape(1),
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
class Likelihood(_AtCoefficients):
    """``glm_likelihood``: the log-likelihood at coefficients."""

    a: glm.OfLikelihood

    def products(self) -> Multiplied:
        return [(("terms", "here", "valid"), ("loss", "here", "valid"))]

    def widths(self) -> Widths:
        left = {"terms": len(self._law.log_likelihood(NONE, 1.0)), "here": 1, "valid": 1}
        return left, {"loss": len(self._law.loss_rights), "here": 1, "valid": 1}

    def left(self, side: Half) -> Groups:
        rows, halves = side.rows(self.a.task, "train"), self._halves
        response = Response(rows, self.a.task)
        own = halves.matrix("insurer", rows) @ self.arrays["beta"][halves.places["insurer"]]
        known = KnownRows(response.y, response.weight, own + response.offset)
        terms = self._law.log_likelihood(known, self.a.dispersion)
        return within({"terms": columns_of(terms)}, len(rows))

    def right(self, side: Half) -> Groups:
        rows, halves = side.rows(self.a.task, "train"), self._halves
        part = halves.matrix("fund", rows) @ self.arrays["beta"][halves.places["fund"]]
        rights = self._law.rights(part)
        columns = [rights[name] for name in self._law.loss_rights]
        return within({"loss": np.column_stack(columns)}, len(rows))

    def combined(self, shares: Shares) -> dict[str, Integers]:
        names = names_of(self._law.log_likelihood(NONE, 1.0))
        return {"log_likelihood": picked(shares, "terms", self._law, names).reshape(1)}

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        scale, law = self.a.scale, self.a.task.law
        most = scale.rows * glm.REACH * scale.likelihood(law, self.a.dispersion)
        total = values["log_likelihood"] * self._law.unit("deviance")
        return Sums({"log_likelihood": total}, {"log_likelihood": limit_of(most)}, rows)
