"""Cross-validation in a federation: each party draws its own folds, and what they add up to is
totals over all parties."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from federated.federation import single_threaded_blas
from federated.party.party import Party
from federated.party.party_sets import PartySets
from federated.study.arms import over_apps
from federated.study.bound import SignedStudy
from federated.study.experiment import Experiment
from federated.study.outcome import Outcome
from federated.study.scoring import scored
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError
from lab.models.design import Levels
from lab.tables.partition import folds
from secure_agg.identity import Identity


@dataclass(frozen=True)
class FoldFit:
    """One fit, judged on the fold that it has not seen.

    The score is ``gain / size``, and that of several folds is the sum of gains over the sum of
    sizes: deviance explained and the deviance of the constant rate, or for a fraud detector average
    precision times frauds, and frauds. seconds: of this machine; totals: opened, over all parties;
    bytes: that left the parties; numbers: told to others than whoever opens totals.
    """

    gain: float
    size: float
    seconds: float
    totals: int
    bytes: int
    numbers: int


def fold_fit(
    market: SimulatedMarket, trial: Experiment, parties: Sequence[Party], workers: int
) -> FoldFit:
    """Fit a trial on these parties' rows for training and judge it on those for testing: by the
    questions of a plan, and under the experiment's protection, with a key of its own.

    market: whose rows they are; workers: threads. Raises :class:`LabError`.
    """
    start = time.perf_counter()
    by_level: dict[str, tuple[Levels, ...]] = dict.fromkeys(trial.all_tasks(), ())
    plan = market.plan(by_level, ()).model_copy(update={"experiment": trial})
    bound = SignedStudy(plan, Identity.generate("releaser"), secrets.token_hex(8))
    nodes = [replace(party, binding=bound.binding) for party in parties]
    with single_threaded_blas():
        outcome, receipts, _ = over_apps(
            *(bound, nodes.__getitem__, len(nodes), market.protection()), workers=workers
        )
    gain, size = _judged(trial, outcome)
    lines = [line for receipt in receipts.values() for line in receipt]
    return FoldFit(
        gain,
        size,
        time.perf_counter() - start,
        len({line.query for line in lines}),
        sum(line.bytes for line in lines),
        sum(line.numbers for line in outcome.opened),
    )


def _judged(trial: Experiment, outcome: Outcome) -> tuple[float, float]:
    """(gain, size) of a fit, by the headline score of its experiment."""
    evaluation = next(reversed(outcome.evaluations.values()))
    if evaluation.detected is None:
        null = float(evaluation.fit["null_deviance"][0])
        return null - float(evaluation.fit["deviance"][0]), null
    scores = scored(trial, evaluation)
    return scores["average_precision"] * scores["frauds"], scores["frauds"]


def parts(parties: Sequence[Party], count: int, at: int, purpose: str) -> list[Party]:
    """The parties with fold ``at`` of their training rows for testing and the others for training.

    Each party draws its own folds by whole persons, under its own secret; purpose: a word for the
    drawing, so that folds within a fold are drawn anew.
    """
    return [_part(party, count, at, purpose) for party in parties]


def _part(party: Party, count: int, at: int, purpose: str) -> Party:
    rows = party.train
    owners = rows.index.to_series() if party.person is None else rows[party.person]
    inside = folds(owners, count, party.rows_secret, purpose) == at
    return replace(
        party,
        train=rows[~inside],
        test=rows[inside],
        profiles={},
        finished={},
        party_sets=PartySets(),
    )


def check_folds(
    market: SimulatedMarket, parties: Sequence[Party], count: int, purpose: str
) -> None:
    """Refuse folds in which fewer persons are judged than the rules show, or none are fitted."""
    least = market.rules.minimum_count.persons
    for at in range(count):
        cut = parts(parties, count, at, purpose)
        persons = sum(len(p.test) if p.person is None else p.test[p.person].nunique() for p in cut)
        if persons < least:
            raise ConfigurationError(
                f"tune.folds: {persons} persons would be judged in fold {at + 1} of {count}, and the "
                f"rules of disclosure ask for {least}; cut fewer folds"
            )
        if empty := [party.name for party in cut if party.train.empty]:
            raise ConfigurationError(
                f"tune.folds: {', '.join(empty)} would have no training rows without fold "
                f"{at + 1} of {count}; cut fewer folds, or set fewer parties"
            )
