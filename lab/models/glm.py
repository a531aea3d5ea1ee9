"""One party's sums for a generalised linear model, and the model itself once it is fitted.

Fisher scoring (McCullagh & Nelder 1989, section 2.5) needs from the rows only the curvature
X'WX, the score X'W(z - eta) and the deviance at given coefficients: sums over rows, all three.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lab.errors import ContractError
from lab.models.design import Design, Encoding
from lab.models.effects import Effects, Exposures, spreads
from lab.models.families import Family, FamilyName, LinkName, Scale
from lab.records import Strict
from lab.statistics import Arrays, Holding, Statistic
from lab.sums import COUNT, Floats, Limit, Sums, limit_of
from lab.tables.checks import refuse_rows
from lab.tables.partition import drawn

#: How far sums at other coefficients may be beyond those of the constant model.
REACH = 2**8
#: Persons with a pair of columns, a fraction of them where a person has many rows.
PERSON_PAIRS = Limit(bound=2.0**40, resolution=2.0**-12)


class Task(Strict):
    """What is modelled: ``target`` in ``family``, on the log link with ``exposure`` as offset, or,
    where ``exposure_as`` says so, ``target / exposure`` with exposure as a weight.

    ``per``: the target is the total of so many claims; the model is of the amount per claim,
    weighted by their number, over the rows that have any. ``profiles``: digests of the profiles
    that are joined to the rows (`lab.models.profile`).
    """

    target: str
    exposure: str | None = None
    exposure_as: Literal["offset", "weight"] = "offset"
    weight: str | None = None
    per: str | None = None
    family: FamilyName = "poisson"
    link: LinkName | None = None
    power: float | None = None
    profiles: tuple[str, ...] = ()

    @property
    def law(self) -> Family:
        return Family.make(self.family, self.link, self.power)

    @property
    def counts_with_exposure(self) -> bool:
        """Whether the target counts events over an exposure that rows differ in."""
        return self.family == "poisson" and bool(self.exposure) and self.exposure_as == "offset"

    def columns(self) -> list[str]:
        columns = [self.target, self.exposure, self.weight, self.per]
        return [name for name in columns if name is not None]

    def rows(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows this task is about."""
        return frame if self.per is None else frame[frame[self.per] > 0]

    def check_claims(self, frame: pd.DataFrame) -> None:
        """Refuse rows whose amount and number of claims do not go together, and claims without an
        amount where the family takes none: a frequency would count what a severity leaves out."""
        if self.per is None:
            return
        claims, amount = frame[self.per], frame[self.target]
        refuse_rows(
            (claims < 0) | ((claims == 0) & (amount != 0)),
            f"column '{self.per}' must count the claims behind '{self.target}': 0 or more, and not 0 "
            "where there is an amount",
        )
        if self.family == "gamma":
            refuse_rows(
                (claims > 0) & (amount == 0),
                f"'{self.target}' is 0 for claims of '{self.per}', which no gamma model takes: fit a "
                f"family that does (tweedie), or let '{self.per}' count paid claims alone, here and "
                "as the target of a frequency",
            )


class Response:
    """Per row: y (a rate or a mean amount for one unit of weight), weight, and log exposure.

    With exposure as offset the mean of the target is exposure * exp(eta); ``y`` stays the target and
    ``offset`` is log(exposure). With exposure as weight ``y`` is the target for one unit of it.
    """

    def __init__(self, frame: pd.DataFrame, task: Task) -> None:
        self.y = frame[task.target].to_numpy(dtype=np.float64)
        ones = np.ones(len(frame))
        self.weight = _positive(frame, task.weight) if task.weight else ones
        self.exposure = _positive(frame, task.exposure) if task.exposure else ones
        if task.per:
            self._divide(_positive(frame, task.per))
        if task.exposure_as == "weight":
            self._divide(self.exposure)
            self.exposure = ones
        self.offset: Floats = np.log(self.exposure)
        wrong = task.law.check_target(self.y)
        if wrong:
            raise ContractError(f"target '{task.target}' {wrong}")

    def _divide(self, units: Floats) -> None:
        """Let y be for one unit, and the row weigh as much as it has of them."""
        self.y, self.weight = self.y / units, self.weight * units


def _positive(frame: pd.DataFrame, name: str) -> Floats:
    values = frame[name]
    refuse_rows(
        ~(values > 0),
        f"column '{name}' must be above 0 to be an exposure or a weight; leave out the other rows",
    )
    return np.asarray(values, dtype=np.float64)


#: What :func:`totals` sums beside the numbers of rows, in the order of their bounds.
SUMMED = ("weight", "target", "exposure", "square")


def totals(response: Response, most: tuple[float, ...]) -> Sums:
    """Rows, total weight, weighted target, exposure and squared target: what the constant model and
    the bounds of all later sums need. most: a bound for each of :data:`SUMMED`."""
    r = response
    sums = (r.weight.sum(), r.weight @ r.y, r.weight @ r.exposure, r.weight @ r.y**2)
    arrays = {name: np.array([float(value)]) for name, value in zip(SUMMED, sums, strict=True)}
    limits = {name: limit_of(bound) for name, bound in zip(SUMMED, most, strict=True)}
    arrays |= {
        "rows": np.array([float(len(r.y))]),
        "positive": np.array([float((r.y > 0).sum())]),
    }
    return Sums(arrays, limits | {"rows": COUNT, "positive": COUNT}, len(r.y))


def start(design: Design, response: Response, owners: Floats, most: tuple[float, ...]) -> Sums:
    """:func:`totals`, and in ``persons`` X'X over the design, in which every person counts for one
    however many rows are hers. owners: (rows,) who each row belongs to."""
    rows = totals(response, most)
    _, person, count = np.unique(owners, return_inverse=True, return_counts=True)
    matrix = np.zeros((design.width, design.width))
    for part, x in design.blocks():
        matrix += (x / count[person[part]][:, None]).T @ x
    arrays = {**rows.arrays, "persons": matrix[design.pairs]}
    return Sums(arrays, {**rows.limits, "persons": PERSON_PAIRS}, rows.rows)


def step(design: Design, response: Response, *, family: Family, beta: Floats, scale: Scale) -> Sums:
    """Deviance, score and curvature at ``beta`` (shape (p,), standardised columns).

    ``curvature`` holds the entries of X'WX that can differ from zero (``Encoding.pairs``), in units
    of an average row; ``score`` is X'W(z - eta), p values; ``deviance`` and ``pearson`` are weighted
    totals. ``valid`` is the number of rows whose mean lies within the family's range: none where a
    sum is beyond its bound, which is :data:`REACH` times that of the constant model.
    """
    p = design.width
    hessian, score = np.zeros((p, p)), np.zeros(p)
    deviance = pearson = valid = 0.0
    for part, x in design.blocks():
        y, weight = response.y[part], response.weight[part]
        eta = x @ beta + response.offset[part]
        with np.errstate(all="ignore"):
            mu = family.mean(eta)
            inside = np.isfinite(mu) & ((mu > 0) | (family.name == "gaussian"))
        if not inside.all():  # a step too long: say so, the coordinator halves it
            valid += float(inside.sum())
            continue
        valid += len(y)
        slope, variance = family.slope(eta, mu), family.variance(mu)
        residual = y - mu
        ratio = np.divide(slope, variance, out=np.zeros_like(mu), where=variance > 0)
        score += x.T @ (weight * residual * ratio)
        deviance += float(weight @ family.deviance(y, mu))
        pearson += float(
            weight
            @ (residual * np.divide(residual, variance, where=variance > 0, out=np.zeros_like(mu)))
        )
        root = np.multiply(x, np.sqrt(weight * slope * ratio)[:, None], out=x)
        hessian += root.T @ root
    arrays = {
        "score": score,
        "deviance": np.array([deviance]),
        "pearson": np.array([pearson]),
        "valid": np.array([valid]),
    }
    arrays["curvature"] = hessian[design.pairs] / scale.curvature(family)
    limits = limits_of(family, scale)
    if any(not np.all(np.abs(array) <= limits[name].bound) for name, array in arrays.items()):
        arrays = {name: np.zeros_like(array) for name, array in arrays.items()}
    return Sums(arrays, limits, design.rows)


def limits_of(family: Family, scale: Scale) -> dict[str, Limit]:
    """The formats of :func:`step`."""
    reach = float(scale.rows * REACH)
    size = limit_of(reach * scale.deviance(family))
    return {
        "score": limit_of(reach * scale.score(family)),
        "deviance": size,
        "pearson": size,
        "valid": COUNT,
        "curvature": limit_of(reach),
    }


def likelihood(
    design: Design,
    response: Response,
    family: Family,
    beta: Floats,
    dispersion: float,
    scale: Scale,
) -> Sums:
    """The log-likelihood at ``beta`` for a known dispersion."""
    total = 0.0
    for part, x in design.blocks():
        mu = family.mean(x @ beta + response.offset[part])
        terms = family.log_likelihood(response.y[part], mu, response.weight[part], dispersion)
        total += float(terms.sum())
    limit = limit_of(scale.rows * REACH * scale.likelihood(family, dispersion))
    return Sums({"log_likelihood": np.array([total])}, {"log_likelihood": limit}, design.rows)


def held_out(
    design: Design, response: Response, owners: Floats, family: Family, betas: Floats, scale: Scale
) -> Sums:
    """``deviance`` (models,) of rows that judge models, their number in ``valid`` where each mean of the model
    lies within the family's range, and the ``persons`` behind them. betas: (models, p)."""
    deviance = np.zeros(len(betas))
    for part, x in design.blocks():
        with np.errstate(all="ignore"):
            for k, eta in enumerate(betas @ x.T + response.offset[part]):
                unit = family.deviance(response.y[part], family.mean(eta))
                deviance[k] += float(response.weight[part] @ unit)
    limits = {"deviance": limits_of(family, scale)["deviance"], "valid": COUNT, "persons": COUNT}
    within = deviance <= limits["deviance"].bound
    deviance, valid = np.where(within, deviance, 0.0), np.where(within, float(design.rows), 0.0)
    persons = np.array([float(len(np.unique(owners)))])
    arrays = {"deviance": deviance, "valid": valid, "persons": persons}
    return Sums(arrays, limits, design.rows)


def by_theta(
    design: Design, response: Response, *, family: Family, beta: Floats, scale: Scale
) -> Sums:
    """``first`` and ``second`` derivative of NB2's log-likelihood by log(theta), at ``beta``."""
    slopes = np.zeros(2)
    for part, x in design.blocks():
        mu = family.mean(x @ beta + response.offset[part])
        slopes += [float(response.weight[part] @ d) for d in family.by_theta(response.y[part], mu)]
    limit = limit_of(scale.rows * REACH * scale.likelihood(family, 1.0))
    arrays = {"first": slopes[:1], "second": slopes[1:]}
    return Sums(arrays, dict.fromkeys(arrays, limit), design.rows)


class OfStart(Strict):
    """Arguments of :func:`start`."""

    task: Task
    encoding: Encoding
    most: tuple[float, float, float, float]


class OfFamily(Strict):
    """What is modelled, in which columns. theta: of counts that are negative binomial."""

    task: Task
    encoding: Encoding
    scale: Scale
    theta: float | None = Field(None, gt=0)

    @property
    def law(self) -> Family:
        law = self.task.law
        return law if self.theta is None else replace(law, theta=self.theta)


class OfStep(OfFamily):
    """Arguments of :func:`step`, with the coefficients beside them. share: of persons who judge models, and
    whose rows are not in the sums."""

    share: float = Field(0.0, ge=0, lt=1)


class OfLikelihood(OfFamily):
    """Arguments of :func:`likelihood`, with the coefficients beside them."""

    dispersion: float


def _chosen(holding: Holding, task: Task, share: float, judging: bool) -> NDArray[np.bool_]:
    """Training rows of all persons but a share, or of those who are to judge; nobody but the party can draw
    them."""
    owners = holding.owners(task, "train")
    return np.asarray(drawn(owners, share, holding.rows_secret, "held out") == judging)


def _design(
    holding: Holding, encoding: Encoding, task: Task, share: float = 0.0, judging: bool = False
) -> Design:
    rows = holding.rows(task, "train")
    return Design(rows[_chosen(holding, task, share, judging)] if share else rows, encoding)


def _response(holding: Holding, task: Task, share: float = 0.0, judging: bool = False) -> Response:
    rows = holding.rows(task, "train")
    return Response(rows[_chosen(holding, task, share, judging)] if share else rows, task)


def _held_out(holding: Holding, a: OfStep, arrays: Arrays) -> Sums:
    return held_out(
        holding.once(_design, a.encoding, a.task, a.share, True),
        holding.once(_response, a.task, a.share, True),
        holding.units(a.task, "train")[_chosen(holding, a.task, a.share, True)],
        family=a.law,
        betas=arrays["betas"],
        scale=a.scale,
    )


def _step(holding: Holding, a: OfStep, arrays: Arrays) -> Sums:
    design = holding.once(_design, a.encoding, a.task, a.share)
    response = holding.once(_response, a.task, a.share)
    return step(design, response, family=a.law, beta=arrays["beta"], scale=a.scale)


def _likelihood(holding: Holding, a: OfLikelihood, arrays: Arrays) -> Sums:
    design, response = holding.once(_design, a.encoding, a.task), holding.once(_response, a.task)
    law, beta, phi = a.law, arrays["beta"], a.dispersion
    return likelihood(design, response, family=law, beta=beta, dispersion=phi, scale=a.scale)


def _by_theta(holding: Holding, a: OfFamily, arrays: Arrays) -> Sums:
    design, response = holding.once(_design, a.encoding, a.task), holding.once(_response, a.task)
    return by_theta(design, response, family=a.law, beta=arrays["beta"], scale=a.scale)


def _start(holding: Holding, a: OfStart, arrays: Arrays) -> Sums:
    owners = holding.units(a.task, "train")
    design = holding.once(_design, a.encoding, a.task)
    return start(design, holding.once(_response, a.task), owners, a.most)


STATISTICS = (
    Statistic("glm_start", OfStart, _start, "glm", cells=True),
    Statistic("glm_step", OfStep, _step, "glm", ("beta",)),
    Statistic("glm_held_out", OfStep, _held_out, "glm", ("betas",)),
    Statistic("glm_theta", OfFamily, _by_theta, "glm", ("beta",)),
    Statistic("glm_likelihood", OfLikelihood, _likelihood, "glm", ("beta",)),
)


class GLM(Strict):
    """A fitted model: all that is needed to score a table, as plain numbers.

    ``beta``: of the standardised columns of ``encoding``; ``means``: of these but the intercept, over the
    training rows as they weigh in the fit; empty where a file does not say.
    """

    kind: Literal["glm"] = "glm"
    task: Task
    encoding: Encoding
    beta: tuple[float, ...]
    means: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _one_for_each_column(self) -> Self:
        width = self.encoding.width
        for name, own, needed in (("beta", self.beta, width), ("means", self.means, width - 1)):
            if len(own) != needed and (own or name == "beta"):
                raise ValueError(f"{name}: needs {needed} values, got {len(own)}")
        return self

    def predict(self, frame: pd.DataFrame) -> Floats:
        """The mean for one unit of exposure (or for one claim), one for each row."""
        family, design = self.task.law, Design(frame, self.encoding)
        out = np.empty(len(frame))
        for part, x in design.blocks():
            out[part] = family.mean(x @ np.array(self.beta))
        return out

    def effects(self, frame: pd.DataFrame) -> Effects:
        """The Shapley value of each column for each row; raises :class:`ModelError` without means."""
        x = (x[:, 1:] for _, x in Design(frame, self.encoding).blocks())
        return Effects.linear(self.beta, self.means, self.encoding.columns, x)

    def importance(self, exposures: Exposures) -> dict[str, float]:
        """Standard deviation of what each column adds; of a category over ``exposures``, if they are told."""
        return spreads(self.encoding, np.array(self.beta), exposures)


#: What a file of this kind holds.
MODEL = GLM
