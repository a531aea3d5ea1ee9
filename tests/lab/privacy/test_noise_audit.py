"""An auditor who sees one run finds no more than is claimed, and finds every planted mistake.

Each of several thousand canaries, persons alone in a cell of their own, is in the table or not
by the toss of a coin. The auditor sees what was released, guesses the canaries it is surest of,
and the number of right guesses bounds epsilon from below (Steinke, Nasr and Jagielski 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from lab.privacy.budget import PrivacyBudget, event, spent
from lab.privacy.noise import (
    Integers,
    Noise,
    Release,
    audited_epsilon,
    bounded,
    clamped,
    grid,
    noised,
    plan,
    sensitivity,
)

CANARIES = 5_000
#: An honest mechanism is accused with a probability of at most this.
FALSE_ALARM = 1e-9
ROWS, LOW, HIGH = 2, 0.0, 1_000.0
STEP = grid(LOW, HIGH)
NOISE = Noise(epsilon=2.0, rows_per_person=ROWS)
Vectors = dict[str, Integers]


@dataclass(frozen=True)
class Canary:
    """What every canary brings, and with it the largest change its presence could make."""

    rows: int = ROWS
    value: float = HIGH

    def shifts(self) -> dict[str, float]:
        return {"rows": self.rows, "paid": self.rows * self.value / STEP}


def planned(noise: Noise = NOISE) -> dict[str, Release]:
    """One answer: a count of rows and a sum of amounts in each cell."""
    paid = sensitivity(noise.rows_per_person, LOW, HIGH, STEP)
    return plan(noise, {"rows": noise.rows_per_person, "paid": paid})


def cells(
    present: np.ndarray, canary: Canary, *, clamp: bool = True, bound: bool = True
) -> Vectors:
    """The exact sums over the canaries' rows; canary k is alone in cell k."""
    persons = np.repeat(np.flatnonzero(present), canary.rows)
    if bound:
        persons = persons[bounded(persons, ROWS, len(persons))]
    values = np.full(len(persons), canary.value)
    paid = clamped(values, LOW, HIGH, STEP) if clamp else np.rint(values / STEP).astype(np.int64)
    totals = {name: np.zeros(CANARIES, dtype=np.int64) for name in ("rows", "paid")}
    np.add.at(totals["rows"], persons, 1)
    np.add.at(totals["paid"], persons, paid)
    return totals


def release(vectors: Vectors, releases: dict[str, Release]) -> Vectors:
    return {name: noised(vectors[name], releases[name]) for name in vectors}


def score(seen: Vectors, canary: Canary) -> np.ndarray:
    """The logarithm of how much likelier each cell is with its canary than without."""
    total = np.zeros(CANARIES)
    for name, one in planned().items():
        shift = canary.shifts()[name]
        total += (np.abs(seen[name]) - np.abs(seen[name] - shift)) / one.scale
    return total


def audit(scores: np.ndarray, present: np.ndarray, share: float) -> float:
    """The lower bound on epsilon from guessing the given share of canaries, the surest first."""
    surest = np.argsort(-np.abs(scores), kind="stable")[: int(share * CANARIES)]
    correct = int(np.sum((scores[surest] > 0) == present[surest]))
    return audited_epsilon(correct, len(surest), CANARIES, 0.0, 1 - FALSE_ALARM)


Trial = Callable[[np.ndarray, bool, Path], tuple[float, float]]


def noise_left_out(present: np.ndarray, honest: bool, _: Path) -> tuple[float, float]:
    exact = cells(present, Canary())
    seen = release(exact, planned()) if honest else exact
    return audit(score(seen, Canary()), present, 0.3), NOISE.epsilon


def noise_of_half_the_scale(present: np.ndarray, honest: bool, _: Path) -> tuple[float, float]:
    releases = planned()
    claimed = spent([event(r) for r in releases.values()], 0.0)
    if not honest:  # noised() would refuse it unless it were charged for twice the epsilon
        releases = planned(NOISE.model_copy(update={"epsilon": 2 * NOISE.epsilon}))
        assert all(r.scale == pytest.approx(planned()[k].scale / 2) for k, r in releases.items())
    seen = release(cells(present, Canary()), releases)
    return audit(score(seen, Canary()), present, 0.3), claimed


def amounts_not_clamped(present: np.ndarray, honest: bool, _: Path) -> tuple[float, float]:
    rich = Canary(value=30 * HIGH)
    seen = release(cells(present, rich, clamp=honest), planned())
    return audit(score(seen, rich), present, 0.3), NOISE.epsilon


def persons_not_bounded(present: np.ndarray, honest: bool, _: Path) -> tuple[float, float]:
    frequent = Canary(rows=30 * ROWS)
    seen = release(cells(present, frequent, bound=honest), planned())
    return audit(score(seen, frequent), present, 0.3), NOISE.epsilon


def noise_used_twice(present: np.ndarray, honest: bool, _: Path) -> tuple[float, float]:
    # The second year's table is the first one's without the canaries: it shows the noise.
    first = cells(present, Canary())
    seen = release(first, planned())
    second = cells(np.zeros(CANARIES, dtype=bool), Canary())
    if honest:
        again = release(second, planned())
    else:
        again = {name: second[name] + seen[name] - first[name] for name in seen}
    difference = {name: seen[name] - again[name] for name in seen}
    return audit(score(difference, Canary()), present, 1.0), 2 * NOISE.epsilon


def a_release_not_charged(present: np.ndarray, honest: bool, folder: Path) -> tuple[float, float]:
    ledger, scores = PrivacyBudget(folder / "ledger", 10.0), np.zeros(CANARIES)
    for counted in (True, honest):
        releases = planned()
        if counted:
            ledger.charge("rows and paid", [event(r) for r in releases.values()])
        scores += score(release(cells(present, Canary()), releases), Canary())
    return audit(scores, present, 0.2), ledger.spent()


TRIALS: tuple[Trial, ...] = (
    noise_left_out,
    noise_of_half_the_scale,
    amounts_not_clamped,
    persons_not_bounded,
    noise_used_twice,
    a_release_not_charged,
)


def coins(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(CANARIES) < 0.5


@pytest.mark.parametrize("trial", TRIALS, ids=lambda t: t.__name__)
def test_an_honest_release_shows_no_more_than_is_claimed(trial: Trial, tmp_path: Path) -> None:
    found, claimed = trial(coins(1), True, tmp_path)
    assert found <= claimed


@pytest.mark.parametrize("trial", TRIALS, ids=lambda t: t.__name__)
def test_the_auditor_finds_the_mistake(trial: Trial, tmp_path: Path) -> None:
    found, claimed = trial(coins(2), False, tmp_path)
    assert found > claimed


def test_the_auditor_sees_most_of_an_honest_epsilon(tmp_path: Path) -> None:
    found, claimed = noise_left_out(coins(3), True, tmp_path)
    assert found > 0.6 * claimed


def test_gaussian_noise_shows_no_more_than_is_claimed_and_none_is_found() -> None:
    noise = Noise(mechanism="gaussian", epsilon=2.0, delta=1e-6, rows_per_person=ROWS)
    present = coins(4)
    exact = cells(present, Canary())
    releases = planned(noise)
    for seen, flagged in ((release(exact, releases), False), (exact, True)):
        ranks = sum((seen[k] - exact[k].max() / 2) / releases[k].scale for k in seen)
        surest = np.argsort(-np.abs(ranks), kind="stable")[: CANARIES // 20]
        correct = int(np.sum((ranks[surest] > 0) == present[surest]))
        found = audited_epsilon(correct, len(surest), CANARIES, noise.delta, 0.95)
        assert (found > noise.epsilon) == flagged


def test_halved_noise_is_refused_unless_it_is_charged() -> None:
    from lab.errors import PolicyError

    half = {k: replace(r, scale=r.scale / 2) for k, r in planned().items()}
    with pytest.raises(PolicyError):
        release(cells(coins(5), Canary()), half)
