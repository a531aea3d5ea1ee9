"""Fitting a generalised linear model from sums.

The solver sees totals only and the totals do not depend on who holds which row, so the fit is
the pooled maximum-likelihood fit for any split (McCullagh & Nelder 1989, section 2.5; for sums
over parties: Wu et al., "Grid Binary LOgistic REgression", 2012).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from scipy import stats

from federated.federation import ModelTotals
from federated.solvers.crosses import crossed, refuse_few
from federated.solvers.encoding import agree, magnitudes
from federated.solvers.fisher import Problem, scoring
from federated.solvers.solution import ModelSettings, Solution, Watch
from lab.errors import ConfigurationError, ModelError
from lab.models.design import Encoding, Feature
from lab.models.families import Family, FamilyName, LinkName, Scale
from lab.models.glm import GLM, Task
from lab.privacy.joining import Opened
from lab.records import Strict
from lab.scores.relativities import MULTIPLY, contrasts, table
from lab.sums import Floats, Sums
from lab.tables.contracts import Contract


@dataclass(frozen=True)
class Fit:
    """A fitted model with what an actuary expects to read; all totals are over training rows.

    ``errors`` (p,), standard errors, belong to the table's own units, in the order of
    ``encoding.names``, ``contrast_errors`` to the lines of `lab.scores.relativities`. The covariances of
    coefficients are told to nobody: with them the curvature would be, whose entries for two levels are
    sums over the rows that have both.
    """

    model: GLM
    rows: int
    ridge: float
    deviance: float
    null_deviance: float
    log_likelihood: float
    dispersion: float
    scale: Scale
    errors: Floats
    contrast_errors: Floats
    trace: tuple[tuple[float, float], ...]  # (deviance, largest step) after each step

    @property
    def aic(self) -> float:
        return -2 * self.log_likelihood + 2 * self.model.encoding.width

    @property
    def deviance_explained(self) -> float:
        return 1 - self.deviance / self.null_deviance

    def coefficients(self, level: float = 0.95) -> pd.DataFrame:
        """name, estimate, standard_error, z, p_value, low, high; in the table's own units."""
        encoding = self.model.encoding
        estimate = encoding.raw_transform() @ np.array(self.model.beta)
        error = self.errors
        width = stats.norm.ppf(0.5 + level / 2) * error
        return pd.DataFrame(
            {
                "name": encoding.names,
                "estimate": estimate,
                "standard_error": error,
                "z": estimate / error,
                "p_value": 2 * stats.norm.sf(np.abs(estimate / error)),
                "low": estimate - width,
                "high": estimate + width,
            }
        )

    def relativities(self, level: float = 0.95) -> pd.DataFrame:
        """feature, level, relativity, low, high; no line where effects do not multiply."""
        model = self.model
        lines = contrasts(model.encoding) if model.task.law.link in MULTIPLY else ()
        errors = self.contrast_errors[: len(lines)]
        return table(lines, np.array(model.beta), errors, float(stats.norm.ppf(0.5 + level / 2)))


def solve(
    federation: ModelTotals,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    settings: GLMSettings,
    seed: int,
    watch: Watch | None = None,
    left_out: list[str] | None = None,
) -> Solution:
    """The exact fit, with its coefficient table. There is nothing to draw, so ``seed`` is not used."""
    if federation.everybody and settings.joint_cells == "refuse" and len(features) > 1:
        raise ConfigurationError(
            "model.joint_cells = 'refuse': with a split key and under masks all parties see a GLM's curvature, "
            "whose entries for two columns may stand on few persons; use protection.sums = 'paillier' with "
            "protection.key = 'authority', or a single feature"
        )
    pairs = crossed(features, settings.interactions_of(task))
    encoding = agree(federation, task, features, contract, settings.min_persons, left_out, pairs)
    fitted = fit(federation, task, encoding, settings.ridge, settings.min_persons)
    steps = pd.DataFrame(fitted.trace, columns=["deviance", "largest_step"])
    return Solution(fitted.model, steps.rename_axis("step").reset_index(), fitted)


def fit(
    federation: ModelTotals, task: Task, encoding: Encoding, ridge: float = 0.0, least: int = 1
) -> Fit:
    """The maximum-likelihood fit, or with ``ridge`` the minimum of
    mean half deviance + ridge / 2 * |beta|^2 over standardised columns, intercept left free.

    Raises :class:`ModelError` for collinear columns, separation and non-convergence, each with
    the columns concerned, and for coefficients of levels that fewer than about ``least`` persons
    tell apart from all others.
    """
    # 1. The constant model, from which bounds of all later sums follow.
    totals = _start(federation, task, encoding, least)
    rows = round(totals.total("rows"))
    if rows <= encoding.width:
        raise ModelError(f"{rows} training rows cannot carry {encoding.width} coefficients")
    start, scale = constant_predictor(task.law, totals), Scale.of(totals)
    # 2. Fisher scoring from there.
    problem = Problem(federation, task, encoding, scale, ridge * totals.total("weight"))
    beta, state, matrix, trace = scoring(problem, start)
    # 3. What is printed beside the coefficients.
    dispersion = state.total("pearson") / (rows - encoding.width) if task.law.dispersed else 1.0
    profiled = task.law.name == "gaussian" and task.law.link == "identity"
    likelihood = federation.sum(
        "glm_likelihood",
        {"beta": beta},
        task=task,
        encoding=encoding,
        dispersion=state.total("deviance") / rows if profiled else dispersion,
        scale=scale,
    )
    covariance, lines = dispersion * np.linalg.inv(matrix), contrasts(encoding)
    # Coefficients after each step, their errors and those of curves, and what the fit prints.
    told = (len(trace) + 1) * len(beta) + 2 * len(trace) + sum(line.own for line in lines)
    federation.opened.append(Opened("glm_step", told))
    federation.opened.append(Opened("glm_likelihood", 5))
    return Fit(
        model=GLM(task=task, encoding=encoding, beta=tuple(beta.tolist())),
        rows=rows,
        ridge=ridge,
        deviance=state.total("deviance"),
        null_deviance=_null_deviance(problem, start, trace[0][0]),
        log_likelihood=likelihood.total("log_likelihood"),
        dispersion=dispersion,
        scale=scale,
        errors=_errors(covariance, encoding.raw_transform()),
        contrast_errors=_errors(covariance, np.array([line.place for line in lines])),
        trace=tuple(trace),
    )


def _errors(covariance: Any, places: Floats) -> Floats:
    """Standard errors of linear functions of the coefficients. places: (functions, p)."""
    return np.asarray(np.sqrt(np.einsum("ij,jk,ik->i", places, covariance, places)))


def _null_deviance(problem: Problem, start: float, first: float) -> float:
    """The deviance of the constant model. first: that from which the iteration started, which is the
    one where its mean is a ratio."""
    if problem.task.exposure is None or problem.task.law.name == "poisson":
        return first
    empty = replace(problem, encoding=Encoding(), penalty=0.0)
    return scoring(empty, start)[1].total("deviance")


def _start(federation: ModelTotals, task: Task, encoding: Encoding, least: int) -> Sums:
    """The totals of the training rows. Raises :class:`ModelError` where coefficients would show few
    persons to others; where everybody sees the totals, cells of two levels are not asked for."""
    terms = tuple(t.model_copy(update={"mean": 0.0, "scale": 1.0}) for t in encoding.numbers)
    most = magnitudes(federation, task, terms)[1]
    if federation.alone or federation.everybody or least <= 1 or not encoding.categories:
        return federation.sum("totals", task=task, part="train", most=most)
    totals = federation.sum("glm_start", task=task, encoding=encoding, most=most)
    refuse_few(totals["persons"], encoding, least)
    return totals


def constant_predictor(family: Family, totals: Sums) -> float:
    """The linear predictor of the constant model, from the ``totals`` of the training rows."""
    positive, rows = round(totals.total("positive")), round(totals.total("rows"))
    if family.name != "gaussian" and positive == 0:
        raise ModelError("the target is 0 in every training row; there is nothing to model")
    if family.name == "binomial" and positive == rows:
        raise ModelError("the target is 1 in every training row; there is nothing to model")
    by = "exposure" if family.link == "log" else "weight"
    mean = totals.total("target") / totals.total(by)
    if family.link == "log" and mean <= 0:
        raise ModelError("the mean of the target must be above 0 on the log link")
    return family.eta(mean)


class SeveritySettings(Strict):
    """``[model.severity]``: a second GLM of the amount per claim; the product is the pure premium."""

    target: str = Field(description="The total amount paid.")
    per: str = Field(description="The number of claims that it was paid for.")
    family: Literal["gamma", "gaussian", "tweedie"] = Field(
        "gamma", description="Distribution of the amount per claim."
    )
    power: float | None = Field(None, description="Power of the variance, for tweedie.")
    features: tuple[str | Feature, ...] | None = Field(
        None, description="As data.features; default: the same."
    )
    interactions: tuple[str, ...] | None = Field(
        None, description="As model.interactions; default: the same."
    )


class GLMSettings(ModelSettings):
    """``[model] kind = "glm"``."""

    kind: Literal["glm"] = Field("glm", description="A generalised linear model; the default kind.")
    family: FamilyName = Field("poisson", description="Distribution of the target.")
    link: LinkName | None = Field(None, description="The family's canonical link, or log.")
    power: float | None = Field(None, description="Power of the variance, for tweedie.")
    ridge: float = Field(
        0.0, ge=0, description="λ of: mean half deviance + λ/2·‖β‖² over standardised columns."
    )
    interactions: tuple[str, ...] = Field(
        (),
        description="Pairs of features that act together, as 'age:region'; each has what it does alone besides.",
    )
    joint_cells: Literal["tell", "refuse"] = Field(
        "tell",
        description="Where all parties see totals: fit nevertheless, though entries of the curvature for two columns may stand on few persons, or refuse.",
    )
    severity: SeveritySettings | None = Field(
        None,
        description="A second GLM of the amount per claim; the product of both is the pure premium.",
    )

    def law(self) -> dict[str, Any]:
        return {"family": self.family, "link": self.link, "power": self.power}

    @property
    def crosses(self) -> bool:
        """Whether any part has interactions."""
        return bool(self.interactions or (self.severity and self.severity.interactions))

    def interactions_of(self, task: Task) -> tuple[str, ...]:
        """The interactions of one part of the model."""
        severity = self.severity
        own = severity is not None and (task.target, task.per) == (severity.target, severity.per)
        if severity is None or not own or severity.interactions is None:
            return self.interactions
        return severity.interactions


Settings = GLMSettings
