"""Fitting a generalised linear model from sums.

The solver sees totals only and the totals do not depend on who holds which row, so the fit is
the pooled maximum-likelihood fit for any split (McCullagh & Nelder 1989, section 2.5; for sums
over parties: Wu et al., "Grid Binary LOgistic REgression", 2012).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy import stats

from federated.federation import ModelTotals
from federated.solvers.crosses import crossed, refuse_few
from federated.solvers.elastic import NONE, Path, Penalty, best, choose
from federated.solvers.encoding import agree, magnitudes
from federated.solvers.fisher import Found, Problem, constant, fitted_theta, scoring
from federated.solvers.shapes import Monotone
from federated.solvers.solution import ModelSettings, Solution, Watch
from lab.errors import ConfigurationError, ModelError
from lab.models.design import Encoding, Feature
from lab.models.effects import told_mean
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
    theta: float | None  # of counts that are negative binomial
    alpha: float
    path: Path  # where alpha was chosen: each alpha, and the deviance of held-out rows
    deviance: float
    null_deviance: float
    log_likelihood: float
    dispersion: float
    scale: Scale
    errors: Floats
    contrast_errors: Floats
    trace: tuple[tuple[float, float], ...]  # (deviance, largest step) after each step

    @property
    def drawn(self) -> str:
        """How many coefficients a penalty drew to 0, in words; empty where it draws none so far."""
        slopes = np.array(self.model.beta[1:])
        without = int((slopes == 0).sum())
        if not self.path and not (without and np.isnan(self.errors).all()):
            return ""  # levels that are held equal to their base are there
        chosen = f", chosen of {len(self.path)} by held-out persons" if self.path else ""
        return f"{without} of {len(slopes)} coefficients left out at alpha {self.alpha:g}{chosen}"

    def record(self) -> dict[str, Any]:
        """As a run keeps it."""
        names = (
            "rows",
            "log_likelihood",
            "deviance",
            "null_deviance",
            "dispersion",
            "theta",
            "aic",
            "alpha",
            "drawn",
        )
        return {
            "coefficients": self.coefficients().to_dict("records"),
            "relativities": self.relativities().to_dict("records"),
            **{name: getattr(self, name) for name in names},
            "deviance_explained": self.deviance_explained,
            "path": [list(step) for step in self.path],
            "steps": len(self.trace),
        }

    @property
    def aic(self) -> float:
        own = len(np.flatnonzero(self.model.beta)) + (self.theta is not None)
        return -2 * self.log_likelihood + 2 * own

    @property
    def deviance_explained(self) -> float:
        return 1 - self.deviance / self.null_deviance

    def coefficients(self, level: float = 0.95) -> pd.DataFrame:
        """name, estimate, standard_error, z, p_value, low, high; in the table's own units. What was drawn to
        0 is left out; where coefficients may be, none has an error."""
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
    theta = settings.theta if task.family == "poisson" else None
    fitted = fit(federation, task, encoding, settings.penalty, settings.min_persons, theta)
    steps = pd.DataFrame(fitted.trace, columns=["deviance", "largest_step"])
    return Solution(fitted.model, steps.rename_axis("step").reset_index(), fitted)


def fit(
    federation: ModelTotals,
    task: Task,
    encoding: Encoding,
    penalty: Penalty = NONE,
    least: int = 1,
    theta: float | Literal["fit"] | None = None,
) -> Fit:
    """The maximum-likelihood fit, or the least mean half deviance + penalty over standardised columns.
    theta: of counts that are negative binomial.

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
    free, shape = np.zeros((encoding.width, encoding.width)), Monotone.of(encoding)
    problem = Problem(federation, task, encoding, scale, rows, free, monotone=shape)
    weight = totals.total("weight")
    # 2. How strongly coefficients are drawn to 0, by rows that the path is not fitted on.
    path = choose(problem, penalty, start, weight, least) if penalty.chooses else ()
    alpha = best(path) if path else (penalty.alphas or (0.0,))[0]
    # 3. Fisher scoring over all rows.
    fixed = None if theta == "fit" else theta
    problem = replace(penalty.on(problem, alpha, weight), theta=fixed)
    found = scoring(problem, constant(encoding, start))
    if theta == "fit":
        problem, found = fitted_theta(problem, found)
    # 4. What is printed beside the coefficients.
    return _fitted(problem, found, start, alpha, path)


def _fitted(problem: Problem, found: Found, start: float, alpha: float, path: Path) -> Fit:
    """The fit with its errors and its likelihood, and what was told of it."""
    federation, task, encoding = problem.federation, problem.task, problem.encoding
    rows, (beta, state, matrix, trace) = problem.rows, found
    free = rows - len(np.flatnonzero(beta))
    dispersion = state.total("pearson") / free if task.law.dispersed else 1.0
    profiled = task.law.name == "gaussian" and task.law.link == "identity"
    likelihood = federation.sum(
        "glm_likelihood",
        {"beta": beta},
        task=task,
        encoding=encoding,
        dispersion=state.total("deviance") / rows if profiled else dispersion,
        scale=problem.scale,
        theta=problem.theta,
    )
    lines, shape = contrasts(encoding), problem.monotone
    covariance = dispersion * (shape.covariance(beta, matrix) if shape else np.linalg.inv(matrix))
    held = np.full(len(beta), bool(problem.absolute))  # the same rows chose what they are equal to
    if shape is not None:
        held |= shape.held(beta)
    means = [told_mean(float(mean)) for mean in matrix[0, 1:] / matrix[0, 0]]
    model = GLM(task=task, encoding=encoding, beta=tuple(beta.tolist()), means=tuple(means))
    # Coefficients after each step, their errors and those of curves, means, and what the fit prints.
    told = (len(trace) + 2) * len(beta) + 2 * len(trace) + sum(line.own for line in lines)
    federation.opened.append(Opened("glm_step", told))
    federation.opened.append(Opened("glm_likelihood", 5))
    return Fit(
        model=model,
        rows=rows,
        theta=problem.theta,
        alpha=alpha,
        path=path,
        deviance=state.total("deviance"),
        null_deviance=_null_deviance(problem, start, trace[0][0]),
        log_likelihood=likelihood.total("log_likelihood"),
        dispersion=dispersion,
        scale=problem.scale,
        errors=_errors(covariance, encoding.raw_transform(), held),
        contrast_errors=_errors(covariance, np.array([line.place for line in lines]), held),
        trace=tuple(trace),
    )


def _errors(covariance: Any, places: Floats, held: NDArray[np.bool_]) -> Floats:
    """Standard errors of linear functions of the coefficients, none of those of coefficients that are held.
    places: (functions, p)."""
    errors = np.sqrt(np.einsum("ij,jk,ik->i", places, covariance, places))
    return np.where((places[:, held] != 0).any(axis=1), np.nan, errors)


def _null_deviance(problem: Problem, start: float, first: float) -> float:
    """The deviance of the constant model. first: that from which the iteration started, which is the
    one where its mean is a ratio."""
    poisson = problem.task.law.name == "poisson" and problem.theta is None
    if poisson or (problem.task.exposure is None and problem.theta is None):
        return first
    empty = replace(
        problem, encoding=Encoding(), penalty=np.zeros((1, 1)), absolute=0.0, monotone=None
    )
    return scoring(empty, np.array([start]))[1].total("deviance")


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
    theta: float | Literal["fit"] | None = Field(
        None,
        description="Counts are negative binomial, of variance μ + μ²/θ, instead of Poisson: θ, or 'fit' for the one of the greatest likelihood.",
    )
    alpha: float | tuple[float, ...] | Literal["path"] | None = Field(
        None,
        description="α of: mean half deviance + α·(l1·‖β‖₁ + (1 − l1)/2·‖β‖²); a list, or 'path' for 20 that the rows set: the one by which held-out rows have the least deviance.",
    )
    l1: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the penalty that draws coefficients all the way to 0; 1 unless said.",
    )
    validation_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of persons that judge alpha; 0.2 unless said where there is a choice.",
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

    @model_validator(mode="before")
    @classmethod
    def _judges(cls, values: Any) -> Any:
        """Persons judge where there is a choice."""
        if isinstance(values, dict) and isinstance(values.get("alpha"), str | list | tuple):
            return {"validation_share": 0.2} | values
        return values

    @model_validator(mode="after")
    def _one_penalty(self) -> Self:
        alphas = (self.alpha,) if isinstance(self.alpha, float) else self.alpha
        if self.alpha is None and (self.l1 is not None or self.validation_share):
            raise ValueError("l1 and validation_share belong to alpha; set it, or drop them")
        if self.theta is not None and self.family != "poisson":
            raise ValueError(
                f"theta belongs to counts, family poisson, not to {self.family}; drop it"
            )
        if isinstance(self.theta, float) and not 0 < self.theta < np.inf:
            raise ValueError(f"theta must be above 0 and finite, or 'fit', got {self.theta:g}")
        if self.theta is not None and self.alpha is not None:
            raise ValueError("a negative binomial takes ridge alone; drop alpha or theta")
        if self.alpha is not None and self.ridge:
            raise ValueError("ridge and alpha are one penalty; keep alpha, with l1 below 1")
        if isinstance(alphas, tuple) and (
            not alphas or min(alphas) <= 0 or len({*alphas}) < len(alphas)
        ):
            raise ValueError(f"alpha must be above 0, in a list each once, got {self.alpha}")
        if self.penalty.chooses and not self.validation_share:
            raise ValueError("alpha is chosen by held-out persons; set validation_share above 0")
        return self

    @property
    def penalty(self) -> Penalty:
        if self.alpha is None:
            return Penalty((self.ridge,))
        several = self.alpha if isinstance(self.alpha, tuple) else None
        alphas = (self.alpha,) if isinstance(self.alpha, float) else several
        return Penalty(alphas, 1.0 if self.l1 is None else self.l1, self.validation_share)

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
