"""A study whose questions are signed where its totals are opened, and carried by somebody else."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from federated.federation import Federation, Parties
from federated.messages import Request
from federated.party.binding import SignedSteps, sign_step
from federated.solvers.solution import Watch
from federated.study.outcome import Outcome, carry_out
from federated.study.plan import StudyPlan
from federated.study.steps import Steps, carried_out
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.profile import Profile, ProfileCells
from lab.sums import Sums
from secure_agg.identity import Identity


@dataclass(frozen=True)
class SignedStudy:
    """A plan in the hands of whoever opens its totals. run: the name under which it is carried out."""

    plan: StudyPlan
    identity: Identity
    run: str
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", self.plan.digest)

    @property
    def binding(self) -> SignedSteps:
        """What parties hold this study's questions against."""
        return SignedSteps(self.identity.card.verifying, self.digest, self.run)

    def carried_out(self, federation: Federation, watch: Watch | None = None) -> Outcome:
        """Ask all its questions. Raises what the solver and the parties raise."""
        levels = agreed_levels(self.plan, federation)
        names = json.dumps(levels, sort_keys=True)

        def ask(question: Request) -> Sums:
            signed = sign_step(self.identity, self.digest, self.run, names, question)
            total = federation.total(signed)
            join_released(federation, question, total)
            return total

        steps = Steps(
            lambda parties: carry_out(self.plan, parties, watch),
            federation.protection.hiding,
            everybody=federation.everybody,
            levels=levels,
        )
        return carried_out(steps, ask)


def agreed_levels(plan: StudyPlan, federation: Parties) -> dict[str, tuple[str, ...]]:
    """The names of levels that parties announce for columns whose contract lists none; each party
    sees that none of its own is left out."""
    task, features = unlisted_levels(plan)
    if not features:
        return {}
    names = federation.levels(task, features)
    levels = {f.column: own for f, own in zip(features, names, strict=True)}
    federation.agree(levels)
    return levels


def unlisted_levels(plan: StudyPlan) -> tuple[Task, tuple[Feature, ...]]:
    """What every party announces the names of levels of: the rows of a task, and features."""
    return next(iter(plan.experiment.tasks().values())), tuple(plan.unlisted.values())


def join_released(federation: Parties, question: Request, total: Sums) -> None:
    """Give all parties the profile that was just released, if it is one."""
    if question.statistic == "profile":
        cells = ProfileCells.model_validate(question.arguments["cells"])
        federation.join((Profile.of(cells, total),))
