"""Bühlmann-Straub credibility from sums by group: the premium of a group between its own mean and all groups'.

Bühlmann and Gisler, A Course in Credibility Theory and its Applications (2005), section 4.8. A kind of model in a
package of one's own: ``MODEL`` is what its file holds, ``STATISTICS`` what it asks of a party, ``Settings`` what
``[model]`` may say, ``solve`` how it is found from totals.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from federated.federation import ModelTotals
from federated.solvers.encoding import levelled
from federated.solvers.solution import ModelSettings, Solution, Watch
from lab.errors import ModelError
from lab.models.design import Feature, Levels, codes_of
from lab.models.families import FamilyName
from lab.models.glm import Response, Task
from lab.privacy.joining import PARTIES, PERSONS, Opened, behind
from lab.records import Strict
from lab.statistics import Arrays, Holding, Statistic
from lab.sums import COUNT, SCORE, Sums
from lab.tables.contracts import Contract


class Settings(ModelSettings):
    """``[model]`` with ``kind = "credibility"``: the one feature is the group."""

    kind: Literal["credibility"]
    family: FamilyName = Field("poisson", description="How predictions are scored.")


class MODEL(Strict):
    """What scoring needs: the premium for one unit of exposure of each group, and of all together."""

    kind: Literal["credibility"] = "credibility"
    task: Task
    group: Levels
    premiums: tuple[float, ...]
    collective: float
    within: float
    between: float

    @property
    def terms(self) -> tuple[Levels, ...]:
        """What it reads."""
        return (self.group,)

    def predict(self, frame: pd.DataFrame) -> Any:
        """The premium of each row's group; of a group that nobody had, the collective one."""
        codes = codes_of(self.group.feature.texts(frame), self.group.levels)
        return np.append(self.premiums, self.collective)[codes]


class OfGroups(Strict):
    """Arguments of ``credibility_groups``."""

    task: Task
    group: Levels


def groups(holding: Holding, a: OfGroups, arrays: Arrays) -> Sums:
    """By group: rows, weight, weighted rate and its square. A row's weight is its exposure."""
    rows = holding.rows(a.task, "train")
    r, codes = Response(rows, a.task), codes_of(a.group.feature.texts(rows), a.group.levels)
    keep, count = codes >= 0, len(a.group.levels)
    weight = (r.weight * r.exposure)[keep]
    rate, code = (r.y / r.exposure)[keep], codes[keep].astype(np.int64)
    values = {
        "rows": np.ones(len(code)),
        "weight": weight,
        "first": weight * rate,
        "second": weight * rate**2,
    }
    sums = {
        name: np.bincount(code, value, count).astype(np.float64) for name, value in values.items()
    }
    persons = behind(code, holding.units(a.task, "train")[keep], count)
    limits = dict.fromkeys(sums, SCORE) | dict.fromkeys((PERSONS, PARTIES), COUNT)
    return Sums(sums | persons, limits, len(rows))


STATISTICS = (Statistic("credibility_groups", OfGroups, groups, "credibility", cells=True),)


def solve(
    federation: ModelTotals,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    settings: Settings,
    seed: int,
    watch: Watch | None = None,
    left_out: list[str] | None = None,
) -> Solution:
    """Premiums from totals by group. Groups of few persons are one group, as levels of a GLM are."""
    if len(features) != 1:
        raise ModelError(f"credibility: takes one feature, the group; got {len(features)}")
    groups = levelled(federation, task, list(features), contract, settings.min_persons, None)
    group = groups[0]
    total = federation.sum("credibility_groups", task=task, group=group)
    rows, weight, first, second = (total[k] for k in ("rows", "weight", "first", "second"))
    mean, whole = first / weight, weight.sum()
    # 1. The variance within groups, then between them: unbiased, and no less than 0.
    within = (second - weight * mean**2).sum() / (rows - 1).sum()
    spread = (weight * (mean - first.sum() / whole) ** 2).sum()
    between = (spread - (len(weight) - 1) * within) * whole / (whole**2 - (weight**2).sum())
    # 2. How far each group is believed, and the mean that the others are drawn to.
    share = weight / (weight + within / between) if between > 0 else np.zeros(len(weight))
    collective = (share @ mean / share.sum()) if between > 0 else first.sum() / whole
    premiums = share * mean + (1 - share) * collective
    federation.opened.append(Opened.cells("credibility_groups", len(premiums) + 3, total[PERSONS]))
    model = MODEL(
        task=task,
        group=group,
        premiums=tuple(premiums.tolist()),
        collective=float(collective),
        within=float(within),
        between=float(max(between, 0.0)),
    )
    return Solution(model, pd.DataFrame({"step": [1], "loss": [float(within)]}))
