"""Persons are bounded, noise is what is claimed, and a budget is never spent twice or forgotten."""

from __future__ import annotations

import json
import math
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binom, chisquare

from lab.errors import TRAVELLING, BudgetError, ConfigurationError, PolicyError
from lab.privacy.budget import PrivacyBudget, event, spent
from lab.privacy.noise import (
    LARGEST,
    Mechanism,
    Noise,
    Release,
    _measurement,
    audited_epsilon,
    bounded,
    clamped,
    deviation,
    draws,
    grid,
    noised,
    plan,
    sensitivity,
)

ROOT = Path(__file__).parents[3]
#: A test on random noise may fail by chance this often.
CHANCE = 1e-9
costs = st.floats(1e-6, 5.0)
laplace_events = costs.map(lambda e: {"mechanism": "laplace", "epsilon": e})
gaussian_events = st.floats(1e-6, 1.0).map(lambda r: {"mechanism": "gaussian", "rho": r})


def noise(mechanism: Mechanism, epsilon: float = 1.0, delta: float = 1e-6) -> Noise:
    return Noise(
        mechanism=mechanism, epsilon=epsilon, delta=delta if mechanism == "gaussian" else 0.0
    )


def laplace(epsilon: float) -> dict[str, Any]:
    return {"mechanism": "laplace", "epsilon": epsilon}


def gaussian(rho: float) -> dict[str, Any]:
    return {"mechanism": "gaussian", "rho": rho}


# ----------------------------------------------------------------------- what a person adds


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon": 0.0},
        {"epsilon": math.inf},
        {"epsilon": 1.0, "delta": 1e-6},
        {"epsilon": 1.0, "mechanism": "gaussian"},
        {"epsilon": 1.0, "mechanism": "gaussian", "delta": 0.01},
        {"epsilon": 1.0, "mechanism": "staircase"},
        {"epsilon": 1.0, "rows_per_person": 0},
        {"epsilon": 1.0, "scale": 3.0},
    ],
)
def test_noise_that_guarantees_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Noise(**wrong)


@given(st.lists(st.integers(-1, 4), max_size=40), st.integers(1, 4))
def test_the_first_rows_of_each_person_count(codes: list[int], most: int) -> None:
    seen: Counter[int] = Counter()
    expected = []
    for code in codes:
        seen[code] += 1
        expected.append(code >= 0 and seen[code] <= most)
    mask = bounded(np.array(codes, dtype=np.int64), most, len(codes))
    assert mask.dtype == np.bool_
    assert mask.tolist() == expected


def test_without_a_person_column_every_row_counts() -> None:
    assert bounded(None, 1, 3).tolist() == [True, True, True]
    with pytest.raises(ValueError, match="for 3 rows"):
        bounded([1, 2], 1, 3)


@given(st.data())
@settings(max_examples=60)
def test_a_person_changes_a_vector_of_sums_by_at_most_its_sensitivity(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 30))
    persons = np.array(data.draw(st.lists(st.integers(0, 5), min_size=rows, max_size=rows)))
    cells = np.array(data.draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)))
    anything = st.floats(allow_nan=True, allow_infinity=True)
    values = np.array(data.draw(st.lists(anything, min_size=rows, max_size=rows)))
    low = data.draw(st.floats(-1e6, 1e6))
    high = low + data.draw(st.floats(1e-3, 1e6))
    most = data.draw(st.integers(1, 4))
    step = grid(low, high)

    def sums(present: np.ndarray) -> np.ndarray:
        kept = bounded(persons[present], most, int(present.sum()))
        whole = clamped(values[present], low, high, step)[kept]
        total = np.zeros(4, dtype=np.int64)
        np.add.at(total, cells[present][kept], whole)
        return total

    gone = persons != data.draw(st.integers(0, 5))
    change = sums(np.ones(rows, dtype=bool)) - sums(gone)
    most_change = sensitivity(most, low, high, step)
    assert np.abs(change).sum() <= most_change
    assert math.sqrt(float(change @ change)) <= most_change


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.lists(st.floats(-1e10, 1e10)))
def test_values_are_clamped_and_rounded_to_the_grid(
    low: float, width: float, values: list[float]
) -> None:
    high = low + width
    if not low < high:
        return
    step = grid(low, high)
    assert 2**19 <= sensitivity(1, low, high, step) <= 2**20
    off = clamped(values, low, high, step) * step - np.clip(values, low, high)
    assert np.abs(off).max(initial=0.0) <= step / 2


def test_what_is_no_number_adds_nothing() -> None:
    assert clamped([math.nan, math.inf, -math.inf, 1.0], 0.5, 2.0, 0.5).tolist() == [0, 4, 1, 2]


@pytest.mark.parametrize(
    ("low", "high", "step"),
    [(1.0, 1.0, 1.0), (0.0, math.inf, 1.0), (2.0, 1.0, 1.0), (math.nan, 1.0, 1.0)]
    + [(0.0, 1.0, s) for s in (0.3, 0.0, -1.0, 4.0, 2.0**-40, math.nan)],
)
def test_bounds_and_grids_that_bound_nothing_are_refused(
    low: float, high: float, step: float
) -> None:
    with pytest.raises(ConfigurationError):
        clamped([1.0], low, high, step)


# ----------------------------------------------------------------------------------- noise


@given(
    st.sampled_from(["laplace", "gaussian"]),
    st.floats(1e-3, 20.0),
    st.lists(st.integers(1, 2**24), min_size=1, max_size=7),
)
@settings(max_examples=40, deadline=None)
def test_the_loss_of_planned_noise_never_exceeds_its_cost(
    mechanism: Mechanism, epsilon: float, sensitivities: list[int]
) -> None:
    releases = plan(noise(mechanism, epsilon), {str(k): s for k, s in enumerate(sensitivities)})
    for release in releases.values():
        assert _measurement(release).map(release.sensitivity) <= release.cost
        less = replace(release, scale=release.scale * (1 - 1e-9))
        assert _measurement(less).map(release.sensitivity) > release.cost
    events = [event(r) for r in releases.values()]
    if mechanism == "laplace":
        assert sum(Fraction(r.cost) for r in releases.values()) <= Fraction(epsilon)
        assert spent(events, 0.0) == pytest.approx(epsilon, rel=1e-15)
    else:
        assert epsilon * 0.999 < spent(events, 1e-6) <= epsilon


def test_no_vectors_need_no_noise() -> None:
    assert plan(noise("laplace"), {}) == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: plan(noise("laplace", 1e-12), {"a": 2**40}),
        lambda: plan(noise("laplace"), {"a": 0}),
        lambda: plan(noise("gaussian"), {"a": -1}),
        lambda: plan(noise("laplace"), {"a": 2**60}),
        lambda: Release("laplace", 1, 1.0, math.nan),
        lambda: Release("none", 1, 1.0, 1.0),  # type: ignore[arg-type]
    ],
)
def test_noise_that_cannot_be_made_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError):
        make()


def test_a_sensitivity_between_integers_is_refused() -> None:
    with pytest.raises(TypeError):
        plan(noise("laplace"), {"a": 1.5})  # type: ignore[dict-item]


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
def test_noise_smaller_than_its_cost_is_not_made(mechanism: Mechanism) -> None:
    release = plan(noise(mechanism), {"a": 100})["a"]
    with pytest.raises(PolicyError, match="too small"):
        noised(np.zeros(3, dtype=np.int64), replace(release, scale=release.scale * 0.999))


def theory(release: Release, reach: int) -> np.ndarray:
    """Probabilities of -reach … reach, by the definition of the two distributions."""
    x = np.abs(np.arange(-reach, reach + 1)) / release.scale
    mass = np.exp(-x if release.mechanism == "laplace" else -(x**2) / 2)
    return np.asarray(mass / mass.sum())


def fits(sample: np.ndarray, chances: np.ndarray) -> bool:
    """Chi-square of integers against probabilities around 0; rare cells go to the ends."""
    reach = len(chances) // 2
    inner = int(np.sum(chances * len(sample) >= 20)) // 2
    counts = np.bincount(np.clip(sample, -inner, inner) + inner, minlength=2 * inner + 1)
    expected = chances[reach - inner : reach + inner + 1].copy()
    expected[0] += chances[: reach - inner].sum()
    expected[-1] += chances[reach + inner + 1 :].sum()
    return bool(chisquare(counts, expected * len(sample)).pvalue > CHANCE)


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
@pytest.mark.parametrize("scale", [0.7, 3.3])
def test_noise_is_distributed_as_claimed(mechanism: Mechanism, scale: float) -> None:
    release = Release(mechanism, 1, scale, 10.0)
    sample = noised(np.full(8_000, 7, dtype=np.int64), release) - 7
    assert fits(sample, theory(release, 200))
    assert not fits(sample, theory(replace(release, scale=scale * 1.2), 200))


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
def test_wide_noise_has_the_claimed_deviation_and_no_memory(mechanism: Mechanism) -> None:
    release = plan(noise(mechanism), {"a": 2**20})["a"]
    sample = noised(np.zeros(8_000, dtype=np.int64), release) / deviation(release)
    off = 7 * math.sqrt((5 if mechanism == "laplace" else 2) / len(sample))  # seven deviations
    assert abs(sample.std() ** 2 - 1) < off
    assert abs(sample.mean()) < 7 / math.sqrt(len(sample))
    assert abs(np.mean(sample[1:] * sample[:-1])) < 7 / math.sqrt(len(sample))


def test_noise_cannot_be_seeded() -> None:
    release = plan(noise("laplace"), {"a": 2**20})["a"]
    made = []
    for _ in range(2):
        np.random.seed(1)  # noqa: NPY002
        made.append(noised(np.zeros(8, dtype=np.int64), release).tolist())
    assert made[0] != made[1]


def test_noised_vectors_keep_their_shape_and_stay_in_range() -> None:
    release = plan(noise("laplace"), {"a": 1})["a"]
    assert noised(np.zeros((2, 0, 3), dtype=np.int64), release).shape == (2, 0, 3)
    ends = np.array([[2**63 - 1, -(2**63)], [LARGEST, -LARGEST]])
    out = noised(ends, release)
    assert out.shape == (2, 2)
    assert out.dtype == np.int64
    assert (np.abs(out) <= LARGEST).all()
    assert (np.abs(out) > LARGEST - 1000).all()
    with pytest.raises(TypeError, match="float64"):
        noised(np.zeros(3), release)


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
@pytest.mark.parametrize("scale", [0.4, 2.5])
@pytest.mark.parametrize("parties", [1, 3])
def test_draws_are_the_sum_of_the_parties_noise(
    mechanism: Mechanism, scale: float, parties: int
) -> None:
    release = Release(mechanism, 1, scale, 100.0)
    one = theory(release, 120)
    chances = one
    for _ in range(parties - 1):
        chances = np.convolve(chances, one)
    sample = draws(release, parties, 20_000, np.random.default_rng(5))
    assert fits(sample, chances)
    spread = np.arange(-120, 121) ** 2 @ one
    assert deviation(release) == pytest.approx(math.sqrt(spread), rel=1e-9)


@pytest.mark.parametrize("mechanism", ["laplace", "gaussian"])
@pytest.mark.parametrize("scale", [65.0, 1e6, 2.0**40])
def test_wide_draws_have_the_deviation_of_the_sum(mechanism: Mechanism, scale: float) -> None:
    release = Release(mechanism, 1, scale, 100.0)
    sample = draws(release, 4, (100, 300), np.random.default_rng(5))
    assert sample.shape == (100, 300)
    assert sample.dtype == np.int64
    assert sample.std() == pytest.approx(2 * deviation(release), rel=0.03)


# ------------------------------------------------------------------------------ what it costs


def test_nothing_released_costs_nothing() -> None:
    assert spent([], 0.0) == spent([], 1e-6) == 0.0


@pytest.mark.parametrize(
    "unknown",
    [
        {},
        {"mechanism": "none"},
        {"mechanism": "laplace"},
        {"mechanism": "laplace", "rho": 0.1},
        {"mechanism": "laplace", "epsilon": 0.1, "sampled": 0.01},
        {"mechanism": "gaussian", "epsilon": 0.1},
        *[laplace(e) for e in (0.0, -1.0, math.nan, math.inf, True, "0.1", None)],  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("delta", [0.0, 1e-6])
def test_a_release_of_unknown_kind_is_an_error_and_not_free(
    unknown: dict[str, Any], delta: float
) -> None:
    with pytest.raises(ConfigurationError, match="unknown kind"):
        spent([laplace(1.0), unknown], delta)


@given(st.lists(laplace_events, min_size=1, max_size=8))
def test_without_delta_laplace_adds_up_and_gaussian_is_unlimited(
    events: list[dict[str, Any]],
) -> None:
    assert spent(events, 0.0) == math.fsum(e["epsilon"] for e in events)
    assert spent([*events, gaussian(1e-9)], 0.0) == math.inf


@given(
    st.lists(laplace_events | gaussian_events, max_size=6),
    laplace_events | gaussian_events,
    st.sampled_from([1e-3, 1e-6, 1e-12]),
)
@settings(max_examples=30, deadline=None)
def test_a_further_release_never_lowers_what_is_spent(
    events: list[dict[str, Any]], more: dict[str, Any], delta: float
) -> None:
    together = spent([*events, more], delta)
    assert spent(events, delta) <= together
    assert together == pytest.approx(spent([more, *events[::-1]], delta), rel=1e-9)


@pytest.mark.parametrize("delta", [1e-3, 1e-6])
@pytest.mark.parametrize(("epsilon", "count"), [(1.0, 1), (0.5, 4), (0.1, 100), (5e-4, 10_000)])
def test_spent_is_no_less_than_randomised_response_really_costs(
    epsilon: float, count: int, delta: float
) -> None:
    # The worst of all epsilon-private releases, composed exactly (Kairouz, Oh, Viswanath 2015).
    told = spent([laplace(epsilon)] * count, delta)
    ones = np.arange(count + 1)
    loss = epsilon * (2 * ones - count)
    mass = binom.pmf(ones, count, 1 / (1 + math.exp(-epsilon)))
    assert mass @ np.maximum(0.0, -np.expm1(told - loss)) <= delta
    assert told <= epsilon * count * (1 + 1e-12)


@pytest.mark.parametrize("delta", [1e-3, 1e-6])
@pytest.mark.parametrize("scale", [0.6, 2.0, 10.0])
def test_spent_is_no_less_than_the_discrete_gaussian_really_costs(
    scale: float, delta: float
) -> None:
    told = spent([gaussian(1 / (2 * scale**2))], delta)
    mass = theory(Release("gaussian", 1, scale, 10.0), 400)
    assert np.maximum(0.0, mass[1:] - math.exp(told) * mass[:-1]).sum() <= delta
    rho = 1 / (2 * scale**2)
    assert told <= rho + 2 * math.sqrt(rho * math.log(1 / delta))  # Bun and Steinke 2016


def test_two_kinds_together_cost_at_most_what_they_cost_apart() -> None:
    pure, round_ = [laplace(1.0)], [gaussian(0.01)]
    apart = spent(pure, 1e-6) + spent(round_, 1e-6)
    assert spent(round_, 1e-6) < spent([*pure, *round_], 1e-6) <= apart


# -------------------------------------------------------------------------------- the ledger


def test_a_ledger_refuses_when_its_budget_is_spent(tmp_path: Path) -> None:
    ledger = PrivacyBudget(tmp_path / "ledger", 1.0)
    for k in range(10):
        assert ledger.charge("mean age", [laplace(0.1)]) == pytest.approx(0.1 * (k + 1))
    assert ledger.remaining() == 0.0
    with pytest.raises(BudgetError, match="budget: epsilon 1 of 1 is spent"):
        ledger.charge("mean age", [laplace(1e-9)])
    assert len(ledger.entries()) == 10
    again = PrivacyBudget(tmp_path / "ledger", 1.0)
    assert again.spent() == 1.0
    with pytest.raises(BudgetError):
        again.charge("another", [laplace(0.1)])


def test_a_refused_charge_leaves_nothing_and_a_smaller_one_fits(tmp_path: Path) -> None:
    ledger = PrivacyBudget(tmp_path / "ledger", 1.0)
    ledger.charge("first", [laplace(0.7)])
    with pytest.raises(BudgetError):
        ledger.charge("too much", [laplace(0.2), laplace(0.2)])
    ledger.charge("second", iter([laplace(0.2)]))  # type: ignore[arg-type]
    assert [e.question for e in ledger.entries()] == ["first", "second"]
    assert ledger.spent() == pytest.approx(0.9)


def test_the_same_question_again_is_charged_again(tmp_path: Path) -> None:
    ledger = PrivacyBudget(tmp_path / "ledger", 1.0, 1e-6)
    events = [event(r) for r in plan(noise("gaussian", 0.3), {"a": 1, "b": 2}).values()]
    assert 0 < ledger.charge("q", events) < ledger.charge("q", events) == ledger.spent()


def test_an_answer_of_the_whole_budget_fits_once(tmp_path: Path) -> None:
    for mechanism in ("laplace", "gaussian"):
        ledger = PrivacyBudget(tmp_path / mechanism, 2.0, 1e-6)
        releases = plan(noise(mechanism, 2.0), {"a": 1, "b": 7, "c": 2**20})
        events = [event(r) for r in releases.values()]
        assert ledger.charge("q", events) <= 2.0
        with pytest.raises(BudgetError):
            ledger.charge("q", events)


def test_many_small_releases_cost_less_than_their_sum(tmp_path: Path) -> None:
    ledger = PrivacyBudget(tmp_path / "ledger", 1.0, 1e-6)
    assert ledger.charge("q", [laplace(0.01)] * 300) < 1.0
    with pytest.raises(BudgetError):
        PrivacyBudget(tmp_path / "other", 1.0).charge("q", [laplace(0.01)] * 300)


def test_the_order_of_accounting_is_fixed_by_the_budget(tmp_path: Path) -> None:
    # Picked afterwards the best order would let this pass; noise chosen by looking at answers
    # could turn that into more than the budget.
    ledger = PrivacyBudget(tmp_path / "ledger", 2.0, 1e-6)
    ledger.charge("q", [laplace(1.0)])
    events = [event(r) for r in plan(noise("gaussian", 1.0), {"a": 1}).values()]
    assert spent([laplace(1.0), *events], 1e-6) < 2.0
    with pytest.raises(BudgetError):
        ledger.charge("q", events)


def test_a_budget_is_never_raised_and_may_be_tightened(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    PrivacyBudget(path, 2.0, 1e-6).charge("q", [laplace(0.9)])
    for more in ((2.1, 1e-6), (2.0, 1e-5), (1.0, 1e-5)):
        with pytest.raises(ConfigurationError, match="never raised"):
            PrivacyBudget(path, *more)
    tight = PrivacyBudget(path, 1.0, 1e-9)
    with pytest.raises(BudgetError):
        tight.charge("q", [laplace(0.2)])
    PrivacyBudget(path, 2.0, 1e-6).charge("q", [laplace(0.2)])


def test_an_unknown_release_is_not_charged(tmp_path: Path) -> None:
    ledger = PrivacyBudget(tmp_path / "ledger", 1.0)
    with pytest.raises(ConfigurationError, match="unknown kind"):
        ledger.charge("q", [{"mechanism": "free"}])
    with pytest.raises(ConfigurationError, match="cannot be used"):
        ledger.charge("\ud800", [laplace(0.1)])
    assert ledger.entries() == []
    assert ledger.charge("nothing", []) == 0.0


def test_a_refusal_may_travel(tmp_path: Path) -> None:
    assert TRAVELLING["BudgetError"] is BudgetError
    with pytest.raises(BudgetError) as refused:
        PrivacyBudget(tmp_path / "ledger", 1.0, 1e-6).charge("q", [gaussian(3.0)])
    assert str(tmp_path) not in str(refused.value)
    assert "smaller epsilon" in str(refused.value)


@pytest.mark.parametrize("wrong", [(0.0, 0.0), (math.inf, 0.0), (math.nan, 0.0), (1.0, 0.5)])
def test_a_budget_that_limits_nothing_is_refused(
    tmp_path: Path, wrong: tuple[float, float]
) -> None:
    with pytest.raises(ConfigurationError):
        PrivacyBudget(tmp_path / "ledger", *wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_needs_a_folder_and_leaves_only_itself_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be created"):
        PrivacyBudget(tmp_path / "no" / "ledger", 1.0)
    PrivacyBudget(tmp_path / "led ger?#%41", 1.0).charge("q", [laplace(0.5)])
    assert [p.name for p in tmp_path.iterdir()] == ["led ger?#%41"]


def test_a_vanished_ledger_is_not_begun_anew(tmp_path: Path) -> None:
    ledger = PrivacyBudget(tmp_path / "ledger", 1.0)
    ledger.path.unlink()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        ledger.charge("q", [laplace(0.5)])
    assert not ledger.path.exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 4096, 6000, -1])
def test_a_torn_ledger_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "ledger"
    PrivacyBudget(path, 1.0).charge("q", [laplace(0.5)])
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigurationError, match="cannot be used"):
        PrivacyBudget(path, 1.0)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries",
        "DELETE FROM entries WHERE number = 2",
        "UPDATE entries SET events = '[]'",
        "UPDATE entries SET events = 'x'",
        "UPDATE budget SET epsilon = 100.0",
        "UPDATE budget SET digest = NULL",
        "DELETE FROM budget",
        "INSERT INTO budget SELECT * FROM budget",
        "DROP TABLE entries",
        "UPDATE entries SET question = x'00'",
    ],
)
def test_an_edited_ledger_is_refused(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "ledger"
    ledger = PrivacyBudget(path, 1.0)
    for _ in range(2):
        ledger.charge("q", [laplace(0.25)])
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()
    with pytest.raises(ConfigurationError, match="cannot be used"):
        ledger.charge("q", [laplace(0.1)])
    with pytest.raises(ConfigurationError, match="cannot be used"):
        PrivacyBudget(path, 1.0)


def test_a_damaged_byte_is_found_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = PrivacyBudget(path, 1.0)
    for _ in range(3):
        ledger.charge("q", [laplace(0.25)])
    whole = path.read_bytes()
    found = 0
    rng = np.random.default_rng(2)
    used = np.flatnonzero(np.frombuffer(whole, dtype=np.uint8))
    for place in rng.choice(used, 150, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            assert PrivacyBudget(path, 1.0).spent() == 0.75
        except ConfigurationError:
            found += 1
    assert found > 100


# ------------------------------------------------------------------- several of them at once


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_crash_after_a_charge_is_charged_and_one_before_is_not(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from lab.privacy.budget import PrivacyBudget
ledger = PrivacyBudget(Path(sys.argv[1]), 1.0)
ledger.charge("answered", [{"mechanism": "laplace", "epsilon": 0.5}])
with ledger._transaction() as db:
    db.execute("PRAGMA cache_size = 1")
    db.execute("UPDATE budget SET digest = 'half done'")
    db.execute("INSERT INTO entries VALUES (2, '', ?, '[]')", ("x" * 100_000,))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = child(code, tmp_path / "ledger")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "ledger-journal").exists()
    ledger = PrivacyBudget(tmp_path / "ledger", 1.0)
    assert [e.question for e in ledger.entries()] == ["answered"]
    assert ledger.spent() == 0.5


def test_processes_and_threads_together_never_exceed_a_budget(tmp_path: Path) -> None:
    code = """
import sys, threading
from pathlib import Path
from lab.errors import BudgetError
from lab.privacy.budget import PrivacyBudget
print("ready", flush=True)
sys.stdin.readline()
charged = []
def work():
    ledger = PrivacyBudget(Path(sys.argv[1]), 2.0)
    while True:
        try:
            charged.append(ledger.charge("q", [{"mechanism": "laplace", "epsilon": 0.1}]))
        except BudgetError:
            return
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(charged)
"""
    path = tmp_path / "ledger"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in children:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    told: list[float] = []
    for process in children:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in children:
        out, _ = process.communicate(timeout=60)
        told += json.loads(out)
    ledger = PrivacyBudget(path, 2.0)
    assert len(told) == len(ledger.entries()) == 20
    assert sorted(told) == pytest.approx([0.1 * (k + 1) for k in range(20)])
    assert [e.number for e in ledger.entries()] == list(range(1, 21))
    assert [p.name for p in tmp_path.iterdir()] == ["ledger"]


def test_a_charge_is_fast_among_two_hundred(tmp_path: Path) -> None:
    ledger = PrivacyBudget(tmp_path / "ledger", 1000.0, 1e-6)
    for k in range(20):
        ledger.charge(f"q{k}", [laplace(0.1 + 0.1 * (k % 5)), gaussian(0.01)] * 5)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        ledger.charge("q", [laplace(0.1)])
        took.append(time.perf_counter() - start)
    assert min(took) < 0.25  # seconds; a hundredth of that on an idle machine


# ---------------------------------------------------------------------------- the auditor


def test_coin_flips_show_no_epsilon_and_perfect_guesses_a_known_one() -> None:
    assert audited_epsilon(500, 1000, 1000) == 0.0
    assert audited_epsilon(0, 0, 10) == 0.0
    rate = 0.05 ** (1 / 100)
    assert audited_epsilon(100, 100, 100) == pytest.approx(math.log(rate / (1 - rate)))
    with pytest.raises(ValueError, match="guesses"):
        audited_epsilon(3, 2, 10)


def test_an_audit_with_delta_equals_the_paper_s_sum() -> None:
    correct, guesses, canaries, delta = 90, 100, 150, 1e-5
    found = audited_epsilon(correct, guesses, canaries, delta)
    assert found < audited_epsilon(correct, guesses, canaries)
    right = 1 / (1 + math.exp(-found))
    tail = sum(binom.pmf(k, guesses, right) for k in range(correct, guesses + 1))
    slack, below = 0.0, 0.0
    for i in range(1, correct + 1):
        below += binom.pmf(correct - i, guesses, right)
        slack = max(slack, below / i)
    assert tail + 2 * canaries * delta * slack == pytest.approx(0.05, rel=1e-6)


def test_an_audit_of_randomised_response_stays_below_its_epsilon() -> None:
    rng = np.random.default_rng(3)
    right = 1 / (1 + math.exp(-1.0))
    bounds = [audited_epsilon(int(rng.binomial(2000, right)), 2000, 2000) for _ in range(60)]
    assert np.mean(np.array(bounds) > 1.0) < 0.25
    assert np.mean(bounds) > 0.85


def test_the_cost_of_noise_is_counted_where_every_underflow_is_told() -> None:
    with np.errstate(all="warn"):  # warnings are errors here
        assert 0 < spent([{"mechanism": "laplace", "epsilon": 0.37}], 1e-6) <= 0.37
