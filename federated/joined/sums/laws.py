"""Families whose sums over a joined table are inner products of what each side knows.

The insurer's side knows a row's target y, its weight w and its part a of the linear predictor (with the
offset), the fund's side its part b. On the log link the mean is exp(a) exp(b), and with V(mu) = mu**p

    score      w (y mu**(1-p) - mu**(2-p))              p = 0 gaussian, 1 poisson, 2 gamma
    curvature  w mu**(2-p)
    pearson    w (y**2 mu**-p - 2 y mu**(1-p) + mu**(2-p))

so each is a sum of few products, one factor at each side, and nothing is approximated; deviance and
log-likelihood the same, whose only other part is log(mu) = a + b. The identity link of a gaussian model
needs powers of b instead of exponentials.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import special

from federated.joined.sums.factors import Shares
from lab.errors import ConfigurationError
from lab.models.families import Family, Scale
from lab.sums import Floats
from secure_agg.arithmetic.ring import Integers

#: A sum of products: for each, the insurer's factor (rows,) and the name of the fund's.
Terms = list[tuple[Floats, str]]


@dataclass(frozen=True)
class KnownRows:
    """What the insurer's side knows of rows: target, weight, its part of the linear predictor."""

    y: Floats
    weight: Floats
    own: Floats


@dataclass(frozen=True)
class Law:
    """A family as sums of products. ``scale``: what an average row is like, which sets units.

    Raises :class:`ConfigurationError` for a family whose sums are no inner products.

    rights: the fund's factors by name, each a function of its part of the linear predictor; the names
    of those that a sum needs are ``score_rights`` and so on, which both sides know.
    """

    family: Family
    scale: Scale

    def __post_init__(self) -> None:
        check_law(self.family)

    @property
    def _spread(self) -> float:
        """A power of two that is about the size of a target, for the identity link."""
        return power_of_two(np.sqrt(self.scale.square / self.scale.weight))

    @property
    def is_log(self) -> bool:
        return self.family.link == "log"

    @property
    def power(self) -> float:
        return 0.0 if self.family.name == "gaussian" else float(self.family.power)

    def rights(self, b: Floats) -> Mapping[str, Floats]:
        """The fund's factors at its part of the linear predictor."""
        if not self.is_log:
            unit = b / self._spread
            return {"one": np.ones_like(b), "b": unit, "bb": unit**2}
        p = self.power
        return {
            "one": np.ones_like(b),
            "b": b,
            "mean": np.exp(b),
            "e1": np.exp((1 - p) * b),
            "e2": np.exp((2 - p) * b),
            "em": np.exp(-p * b),
        }

    @property
    def score_rights(self) -> tuple[str, ...]:
        return ("e1", "e2") if self.is_log else ("one", "b")

    @property
    def curvature_right(self) -> str:
        return "e2" if self.is_log else "one"

    @property
    def loss_rights(self) -> tuple[str, ...]:
        """Of deviance, Pearson's statistic, log-likelihood and mean."""
        return ("one", "b", "mean", "e1", "e2", "em") if self.is_log else ("one", "b", "bb")

    def score(self, rows: KnownRows) -> Terms:
        """Derivative of the log-likelihood by the linear predictor, in units of :meth:`unit`."""
        y, w, a = rows.y, rows.weight, rows.own
        if not self.is_log:
            unit = self.unit("score")
            return [(w * (y - a) / unit, "one"), (-w * self._spread / unit, "b")]
        return [(w * y * self._power(a, 1), "e1"), (-w * self._power(a, 2), "e2")]

    def curvature(self, rows: KnownRows) -> Floats:
        """The insurer's factor of Fisher's weights; the fund's is :attr:`curvature_right`."""
        if not self.is_log:
            return rows.weight / self.unit("curvature")
        return rows.weight * self._power(rows.own, 2)

    def pearson(self, rows: KnownRows) -> Terms:
        y, w, a = rows.y, rows.weight, rows.own
        if not self.is_log:
            return self.deviance(rows)
        return [
            (w * y**2 * self._power(a, 0), "em"),
            (-2 * w * y * self._power(a, 1), "e1"),
            (w * self._power(a, 2), "e2"),
        ]

    def deviance(self, rows: KnownRows) -> Terms:
        y, w, a, p = rows.y, rows.weight, rows.own, self.power
        unit = self.unit("deviance")
        match self.family.name, self.is_log:
            case "gaussian", False:
                s = self._spread
                rest = w * (y - a) / unit
                return [(rest * (y - a), "one"), (-2 * s * rest, "b"), (s**2 * w / unit, "bb")]
            case "gaussian", True:
                return self.pearson(rows)
            case "poisson", _:
                fixed = special.xlogy(y, y) - y * a - y
                mean = 2 * w * self._power(a, 2)
                return [(2 * w * fixed / unit, "one"), (-2 * w * y / unit, "b"), (mean, "e2")]
            case "gamma", _:
                ratio = 2 * w * y * self._power(a, 1)
                return [
                    (2 * w * (a - np.log(y) - 1) / unit, "one"),
                    (2 * w / unit, "b"),
                    (ratio, "e1"),
                ]
        fixed = y ** (2 - p) / ((1 - p) * (2 - p))
        return [
            (2 * w * fixed / unit, "one"),
            (-2 * w * y * self._power(a, 1) / (1 - p), "e1"),
            (2 * w * self._power(a, 2) / (2 - p), "e2"),
        ]

    def log_likelihood(self, rows: KnownRows, dispersion: float) -> Terms:
        """As `lab.models.families.Family.log_likelihood`, in units of the deviance's."""
        y, a, p = rows.y, rows.own, self.power
        phi, unit = dispersion / rows.weight, self.unit("deviance")
        w = 1 / phi
        if self.family.name == "gaussian":
            lone = -0.5 * np.log(2 * np.pi * phi) / unit
            part = KnownRows(y, w, a)
            return [(lone, "one"), *((-0.5 * left, right) for left, right in self.deviance(part))]
        match self.family.name:
            case "poisson":
                fixed = (y * a - special.gammaln(y + 1)) * w
                return [
                    (fixed / unit, "one"),
                    (w * y / unit, "b"),
                    (-w * self._power(a, 2), "e2"),
                ]
            case "gamma":
                fixed = w * (np.log(w * y) - a) - np.log(y) - special.gammaln(w)
                return [(fixed / unit, "one"), (-w / unit, "b"), (-w * y * self._power(a, 1), "e1")]
        at_one = self.family.log_likelihood(y, np.ones_like(y), rows.weight, dispersion)
        fixed = at_one - (y / (1 - p) - 1 / (2 - p)) * w  # what does not depend on the mean
        return [
            (fixed / unit, "one"),
            (w * y * self._power(a, 1) / (1 - p), "e1"),
            (-w * self._power(a, 2) / (2 - p), "e2"),
        ]

    def mean(self, rows: KnownRows) -> Terms:
        """Weighted means, in units of ``unit("mean")``."""
        w, a = rows.weight, rows.own
        unit = self.unit("mean")
        if not self.is_log:
            return [(w * a / unit, "one"), (w * self._spread / unit, "b")]
        return [(w * np.exp(a) / unit, "mean")]

    def unit(self, of: str) -> float:
        """What a sum's numbers are divided by: a power of two, about what an average row adds."""
        scale, law = self.scale, self.family
        match of:
            case "mean":
                return power_of_two(np.sqrt(scale.square * scale.weight))
            case "curvature":
                return scale.curvature(law)
            case _ if self.is_log:
                return scale.curvature(law)
            case "score":
                return power_of_two(scale.score(law))
        return power_of_two(scale.deviance(law))

    def _power(self, a: Floats, plus: int) -> Floats:
        """exp((plus - p) a), in units of a sum: with w (and y for 1, y**2 for 0) an average row is 1."""
        factor: Floats = np.exp((plus - self.power) * a) / self.unit("score")
        return factor


def check_law(family: Family) -> None:
    """Raises :class:`ConfigurationError` for a family whose sums are no inner products."""
    if family.theta < np.inf:
        raise ConfigurationError("model.theta: joined sides fit Poisson counts; drop it")
    if family.link == "log" and family.name in ("poisson", "gamma", "tweedie", "gaussian"):
        return
    if (family.name, family.link) in (("gaussian", "identity"), ("binomial", "logit")):
        return
    raise ConfigurationError(
        f"model: a {family.name} model with the {family.link} link can't be fitted over joined parties; "
        "gaussian, poisson, gamma and tweedie on the log link can, gaussian with the identity link, and binomial with the logit"
    )


def power_of_two(value: float) -> float:
    return float(2.0 ** np.round(np.log2(value)))


#: No row: what names the terms of a law.
NONE = KnownRows(np.zeros(0), np.zeros(0), np.zeros(0))


def columns_of(terms: Terms) -> Floats:
    return np.column_stack([left for left, _ in terms])


def names_of(terms: Terms) -> list[str]:
    return [right for _, right in terms]


def picked(shares: Shares, group: str, law: Law, names: list[str], at: int = 0) -> Integers:
    """The sum of a law's terms: each of its columns with the fund's factor of its name."""
    matrix, rights = shares(group, "loss"), law.loss_rights
    return np.asarray(sum(matrix[at + k, rights.index(name)] for k, name in enumerate(names)))
