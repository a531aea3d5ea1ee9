"""Exponential-dispersion families of a generalised linear model, row by row.

Notation of McCullagh & Nelder, Generalized Linear Models (1989), chapter 2: mean mu, linear
predictor eta, link g(mu) = eta, variance function V(mu), unit deviance d(y, mu).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from scipy import special

from lab.errors import ConfigurationError
from lab.records import Strict
from lab.sums import Floats, Sums

FamilyName = Literal["gaussian", "poisson", "gamma", "tweedie", "binomial"]
LinkName = Literal["canonical", "log"]

#: Power of the variance function V(mu) = mu**p; binomial has mu (1 - mu).
POWERS = {"gaussian": 0.0, "poisson": 1.0, "gamma": 2.0}
#: The smallest and the largest probability that float64 tells from 0 and from 1.
WITHIN = np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg
CANONICAL = {"gaussian": "identity", "poisson": "log", "gamma": "inverse", "binomial": "logit"}


@dataclass(frozen=True)
class Family:
    """A family with its link; ``power`` is the variance power p, which Tweedie alone asks for (1 < p < 2).
    Counts with a finite ``theta`` vary by mu + mu**2 / theta: negative binomial (NB2).

    The default link is ``log``, the actuaries' choice, for Poisson, Gamma and Tweedie, and the
    canonical one for Gaussian and binomial.

    >>> Family.make("gamma").link, Family.make("gamma", "canonical").link
    ('log', 'inverse')
    """

    name: FamilyName
    link: Literal["identity", "log", "inverse", "logit"]
    power: float
    theta: float = np.inf

    @staticmethod
    def make(name: FamilyName, link: LinkName | None = None, power: float | None = None) -> Family:
        if name == "tweedie":
            if power is None or not 1 < power < 2:
                raise ConfigurationError(
                    f"model.power must lie strictly between 1 and 2 for tweedie, got {power}"
                )
            if link == "canonical":
                raise ConfigurationError("model.link for tweedie is 'log'; drop the key")
            return Family("tweedie", "log", power)
        if power is not None:
            raise ConfigurationError(f"model.power belongs to tweedie, not to {name}; drop the key")
        default = "canonical" if name in ("gaussian", "binomial") else "log"
        link_function = CANONICAL[name] if (link or default) == "canonical" else "log"
        return Family(name, link_function, POWERS.get(name, float("nan")))  # type: ignore[arg-type]

    @property
    def dispersed(self) -> bool:
        """True where the dispersion is estimated (Pearson), False where it is 1 by definition."""
        return self.name not in ("poisson", "binomial")

    def check_target(self, y: Floats) -> str | None:
        """What is wrong with these responses for this family, or None."""
        if self.name == "binomial" and not np.isin(y, (0.0, 1.0)).all():
            return "must be 0 or 1 for a binomial model"
        if self.name == "gamma" and not (y > 0).all():
            return "must be above 0 for a gamma model; leave out rows without an amount"
        if self.name in ("poisson", "tweedie") and not (y >= 0).all():
            return f"must be 0 or more for a {self.name} model"
        return None

    def eta(self, mu: float) -> float:
        """The linear predictor of a mean."""
        match self.link:
            case "identity":
                return mu
            case "log":
                return float(np.log(mu))
            case "inverse":
                return 1.0 / mu
            case "logit":
                return float(np.log(mu / (1 - mu)))

    def mean(self, eta: Floats) -> Floats:
        """The mean mu; not a number where eta lies outside the link's range."""
        match self.link:
            case "identity":
                return eta
            case "log":
                mu: Floats = np.exp(eta)
                return np.where(mu < 1, mu, np.nan) if self.name == "binomial" else mu
            case "inverse":
                return np.divide(1.0, eta, out=np.full_like(eta, np.nan), where=eta > 0)
            case "logit":
                return np.asarray(special.expit(eta))

    def slope(self, eta: Floats, mu: Floats) -> Floats:
        """d mu / d eta."""
        match self.link:
            case "identity":
                return np.ones_like(mu)
            case "log":
                return mu
            case "inverse":
                return -(mu**2)
            case "logit":
                return np.asarray(mu * special.expit(-eta))

    def variance(self, mu: Floats) -> Floats:
        """V(mu)."""
        match self.name:
            case "gaussian":
                return np.ones_like(mu)
            case "poisson":
                return mu + mu**2 / self.theta
            case "gamma":
                return mu**2
            case "tweedie":
                return mu**self.power
            case "binomial":
                return mu * (1 - mu)

    def deviance(self, y: Floats, mu: Floats) -> Floats:
        """Unit deviance d(y, mu) of each row; infinite where mu is outside the family's range.

        A probability that is 0 or 1 by rounding counts as the nearest number between them.

        A frequency model pays little for no claim where half a claim was expected, nothing where it
        is right, and most for three claims where one was expected:

        >>> claims, expected = np.array([0.0, 1.0, 3.0]), np.array([0.5, 1.0, 1.0])
        >>> Family.make("poisson").deviance(claims, expected).round(2).tolist()
        [1.0, 0.0, 2.59]
        """
        p = self.power
        if self.name == "binomial":
            mu = np.where((mu >= 0) & (mu <= 1), np.clip(mu, *WITHIN), mu)
        with np.errstate(all="ignore"):
            match self.name:
                case "gaussian":
                    d = (y - mu) ** 2
                case "poisson" if self.theta < np.inf:
                    t = self.theta
                    d = 2 * (special.xlogy(y, y / mu) - (y + t) * np.log1p((y - mu) / (mu + t)))
                case "poisson":
                    d = 2 * (special.xlogy(y, y / mu) - (y - mu))
                case "gamma":
                    d = 2 * (np.log(mu / y) + (y - mu) / mu)
                case "tweedie":
                    d = 2 * (
                        y ** (2 - p) / ((1 - p) * (2 - p))
                        - y * mu ** (1 - p) / (1 - p)
                        + mu ** (2 - p) / (2 - p)
                    )
                case "binomial":
                    d = -2 * (special.xlogy(y, mu) + special.xlog1py(1 - y, -mu))
        return np.where(np.isnan(d), np.inf, d)

    def log_likelihood(self, y: Floats, mu: Floats, weight: Floats, dispersion: float) -> Floats:
        """Log density of each row; ``weight`` divides the dispersion.

        The Tweedie density is Wright's generalised Bessel function: Dunn & Smyth,
        "Series evaluation of Tweedie exponential dispersion model densities" (2005), section 2.

        The probability of 0, 1 and 2 claims at a frequency of 0.1:

        >>> claims, mu, weight = np.array([0.0, 1.0, 2.0]), np.full(3, 0.1), np.ones(3)
        >>> np.exp(Family.make("poisson").log_likelihood(claims, mu, weight, 1.0)).round(4).tolist()
        [0.9048, 0.0905, 0.0045]
        """
        return np.asarray(self._log_density(y, mu, dispersion / weight))

    def _log_density(self, y: Floats, mu: Floats, phi: Floats) -> Floats:
        p = self.power
        density: Floats
        match self.name:
            case "gaussian":
                density = -0.5 * ((y - mu) ** 2 / phi + np.log(2 * np.pi * phi))
            case "poisson" if self.theta < np.inf:
                t = self.theta
                chosen = special.gammaln(y + t) - special.gammaln(t) - special.gammaln(y + 1)
                share = special.xlogy(y, mu / (mu + t)) - t * np.log1p(mu / t)
                density = (chosen + share) / phi
            case "poisson":
                density = (special.xlogy(y, mu) - mu - special.gammaln(y + 1)) / phi
            case "gamma":
                k = 1 / phi
                density = special.xlogy(k, k * y / mu) - k * y / mu - np.log(y) - special.gammaln(k)
            case "binomial":
                density = (special.xlogy(y, mu) + special.xlog1py(1 - y, -mu)) / phi
            case "tweedie":
                alpha = (2 - p) / (p - 1)
                canonical = (y * mu ** (1 - p) / (1 - p) - mu ** (2 - p) / (2 - p)) / phi
                density = canonical.copy()
                positive = y > 0  # a claim amount of zero has its mass in the canonical part
                log_t = (
                    alpha * (np.log(y[positive]) - np.log(p - 1))
                    - (1 + alpha) * np.log(phi[positive])
                    - np.log(2 - p)
                )
                series = special.log_wright_bessel(alpha, 0.0, np.exp(log_t))
                density[positive] += series - np.log(y[positive])
        return density

    def by_theta(self, y: Floats, mu: Floats) -> tuple[Floats, Floats]:
        """First and second derivative of each row's log-density of NB2 by log(theta).

        Lawless, "Negative binomial and mixed Poisson regression" (1987), section 2.
        """
        t = self.theta
        part = mu + t
        first = special.digamma(y + t) - special.digamma(t) - np.log1p(mu / t) + (mu - y) / part
        second = special.polygamma(1, y + t) - special.polygamma(1, t) + 1 / t - 2 / part
        second += (y + t) / part**2
        return t * first, t**2 * second + t * first


#: How far sums of a model may be beyond those of the constant model, before they are cut off.
FAR = 2.0**12


class Scale(Strict):
    """What a row of a task is like on average over all parties: means of weight, of weighted
    exposure, target and squared target."""

    rows: int = Field(gt=0)
    weight: float
    exposure: float
    target: float
    square: float

    @classmethod
    def of(cls, totals: Sums) -> Scale:
        """From the opened ``totals`` of the training rows."""
        rows = round(totals.total("rows"))
        means = {name: totals.total(name) / rows for name in ("weight", "exposure", "target")}
        return cls(rows=rows, square=totals.total("square") / rows, **means)

    @property
    def rate(self) -> float:
        """The target for one unit of exposure: the model that explains nothing."""
        return self.target / self.exposure

    def row_curvature(self, law: Family) -> float:
        """About what one row adds to the intercept's curvature."""
        slope, variance = self._at_mean(law)
        return slope**2 / variance * self.weight

    def curvature(self, law: Family) -> float:
        """:meth:`row_curvature` as a power of two: a public unit."""
        return float(2.0 ** np.round(np.log2(self.row_curvature(law))))

    def noise(self, law: Family) -> float:
        """About the variance of what one row of average weight says of its linear predictor: of its
        target, and no less than the family's where that has no dispersion, over the squared slope."""
        slope, least = self._at_mean(law)
        variance = self.square / self.weight - (self.target / self.weight) ** 2
        return max(variance, 0.0 if law.dispersed else least) / slope**2

    def _at_mean(self, law: Family) -> tuple[float, float]:
        """Slope and variance function at the mean target."""
        mean = np.array([self.target / self.weight])
        slope = law.slope(np.array([law.eta(float(mean[0]))]), mean)
        return float(slope[0]), float(law.variance(mean)[0])

    def score(self, law: Family) -> float:
        """About the magnitude of what one row adds to a score."""
        slope, variance = self._at_mean(law)
        return float(self.weight * np.sqrt(self.square / self.weight) * abs(slope / variance))

    def deviance(self, law: Family) -> float:
        """About the magnitude of what one row adds to a deviance, or to Pearson's statistic."""
        return self.square / self._at_mean(law)[1]

    def likelihood(self, law: Family, dispersion: float) -> float:
        """About the magnitude of what one row adds to a log-likelihood."""
        return max(64.0, 64.0 * self.weight, self.deviance(law) / dispersion)
