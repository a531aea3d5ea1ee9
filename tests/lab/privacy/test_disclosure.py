"""A reader with linear programming cannot narrow a hidden cell; the rules are those of the file."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from lab.errors import ConfigurationError
from lab.privacy.disclosure import (
    RULES,
    Cells,
    Rules,
    primary,
    rounded,
    sensitivity,
    sensitivity_bound,
    words,
)
from lab.privacy.suppression import FEW, suppressed
from lab.privacy.suppression import with_totals as hidden_with_totals
from lab.sums import Floats

SHIPPED = Rules.read()
#: What an amount must stay open to: p% or, if wider, what (n,k) asks for, of its value.
SHARE = 100 / 85 - 1
seeds = st.integers(0, 10_000)


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = RULES.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "rules.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def without(*rules: str) -> Rules:
    return SHIPPED.model_copy(update=dict.fromkeys(rules))


def counts(persons: object, parties: float = 5.0, vetoes: object = 0.0) -> Cells:
    """A table without amounts."""
    array = np.array(persons, dtype=float)
    full = np.zeros_like(array)
    return Cells(array, np.minimum(array, parties), full + vetoes, {}, {})


def market(seed: int, shape: tuple[int, ...], empty: float = 0.15) -> Cells:
    """A random table: large and small cells, empty ones, few parties, vetoes, dominated amounts."""
    rng = np.random.default_rng([seed, *shape])
    persons = rng.integers(10, 120, shape).astype(float)
    small = rng.random(shape) < 0.15
    persons[small] = rng.integers(1, 10, shape)[small]
    persons[rng.random(shape) < empty] = 0
    parties = np.where(rng.random(shape) < 0.1, rng.integers(1, 4, shape), 5)
    vetoes = (rng.random(shape) < 0.03) & (persons > 0)
    paid = np.round(persons * rng.lognormal(4, 1, shape))
    dominated = np.where(rng.random(shape) < 0.05, 0.2 * paid, -paid)
    return Cells(
        persons,
        np.minimum(persons, parties),
        vetoes.astype(float),
        {"paid": paid},
        {"paid": dominated},
    )


def totalled(values: Floats) -> Floats:
    for axis in range(values.ndim):
        values = np.concatenate([values, values.sum(axis, keepdims=True)], axis)
    return values


def widths(values: Floats, hidden: np.ndarray, asked: np.ndarray) -> Floats:
    """How far apart the reader must leave the least and the greatest value of each cell asked.

    ``hidden`` covers the table with its totals; the reader knows every other one, that empty
    cells are empty and that nothing is negative, and solves two linear programs for each.
    """
    table = totalled(values)
    unknown = hidden & (table > 0)
    column = np.cumsum(unknown).reshape(table.shape) - 1
    rows, right = [], []
    for axis in range(table.ndim):
        others = [range(n) for a, n in enumerate(table.shape) if a != axis]
        for place in product(*others):
            line = (*place[:axis], slice(None), *place[axis:])
            sign = np.append(np.ones(table.shape[axis] - 1), -1.0)
            row = np.zeros(unknown.sum())
            row[column[line][unknown[line]]] = sign[unknown[line]]
            rows.append(row)
            right.append(-(sign * table[line])[~unknown[line]].sum())
    found = []
    for cell in column[(slice(-1),) * table.ndim][asked]:
        aim = np.zeros(unknown.sum())
        aim[cell] = 1.0
        ends = []
        for sign in (1.0, -1.0):
            end = linprog(sign * aim, A_eq=np.array(rows), b_eq=right, method="highs")
            assert end.status in (0, 3)
            ends.append(end.fun if end.status == 0 else -np.inf)
        found.append(-ends[1] - ends[0])
    return np.array(found)


# The rules file


def test_shipped_rules_name_their_sources_and_travel_as_json() -> None:
    again = Rules.model_validate_json(SHIPPED.model_dump_json())
    assert again == SHIPPED
    assert hash(again) == hash(SHIPPED)
    assert all(len(rule["source"]) > 20 for rule in SHIPPED.model_dump().values())
    assert (SHIPPED.minimum_count.persons, SHIPPED.minimum_parties.parties) == (10, 3)


def test_an_unknown_key_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'largest'"):
        Rules.read(changed(tmp_path, "largest = 2", "larges = 2"))
    with pytest.raises(ConfigurationError, match="did you mean 'p_percent'"):
        Rules.read(changed(tmp_path, "[p_percent]", "[p_percents]"))


def test_a_rule_without_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"rounding.source: field required"):
        Rules.read(changed(tmp_path, 'source = "NHS', '# "NHS'))
    with pytest.raises(ConfigurationError, match=r"rounding.source: .* at least 1 character"):
        Rules.read(changed(tmp_path, 'source = "NHS', 'source = "" # "NHS'))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("persons = 10", "persons = 0", "minimum_count.persons: .* greater than or equal to 1"),
        ("parties = 3", 'parties = "many"', "minimum_parties.parties: .* valid integer"),
        ("percent = 85", "percent = 100", "dominance.percent: .* less than 100"),
        ("percent = 10", "percent = 0", "p_percent.percent: .* greater than 0"),
        ("[minimum_parties]", "[other]", "minimum_parties: field required"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Rules.read(changed(tmp_path, old, new))


def test_an_absent_concentration_rule_is_off(tmp_path: Path) -> None:
    text = RULES.read_text(encoding="utf-8")
    path = tmp_path / "rules.toml"
    path.write_text(text[: text.index("[dominance]")] + text[text.index("[rounding]") :])
    rules = Rules.read(path)
    assert rules.dominance is None
    assert rules.p_percent is None
    one = np.array([5.0])
    assert sensitivity(one, np.array([1]), 2, rules).tolist() == [0.0, 0.0]
    assert "estimated" not in words(rules)


def test_words_are_one_line_and_keep_concentration_parameters_secret() -> None:
    line = words(SHIPPED)
    assert line.startswith("Shown where: at least 10 persons, at least 3 parties, ")
    assert line.endswith("; empty cells are hidden.")
    base = SHIPPED.rounding.model_copy(update={"base": 5})
    assert "multiples of 5" in words(SHIPPED.model_copy(update={"rounding": base}))
    assert "\n" not in line
    assert "85" not in line
    assert "%" not in line


def test_counts_are_rounded_to_the_nearest_multiple_ties_away_from_zero() -> None:
    base = SHIPPED.rounding.model_copy(update={"base": 5})
    rules = SHIPPED.model_copy(update={"rounding": base})
    values = np.array([0.0, 2.0, 2.5, 7.0, 7.5, 12.4, -2.5])
    assert rounded(values, rules).tolist() == [0, 0, 5, 5, 10, 10, -5]
    assert rounded(values[[0, 1, 3]], SHIPPED).tolist() == [0, 2, 7]


# Sensitivity

amounts = st.lists(st.integers(0, 1000).map(float), max_size=12)


def one_cell(values: list[float], rules: Rules) -> float:
    contributions = np.array(values, dtype=float)
    return float(sensitivity(contributions, np.zeros(len(values), dtype=np.int64), 1, rules)[0])


@given(amounts)
def test_sensitivity_says_what_the_rules_say(values: list[float]) -> None:
    ordered = sorted(values, reverse=True)
    total, largest, two = sum(ordered), sum(ordered[:1]), sum(ordered[:2])
    assert (one_cell(values, without("dominance")) > 0) == (total - two < 0.1 * largest)
    assert (one_cell(values, without("p_percent")) > 1e-6) == (100 * two > 85 * total)
    both = max(one_cell(values, without(name)) for name in ("dominance", "p_percent"))
    assert one_cell(values, SHIPPED) == both


@given(amounts, amounts)
def test_sensitivity_is_subadditive(one: list[float], other: list[float]) -> None:
    apart = one_cell(one, SHIPPED) + one_cell(other, SHIPPED)
    assert one_cell(one + other, SHIPPED) <= apart + 1e-9 * (1 + abs(apart))


@given(amounts, st.integers(1, 6))
def test_sensitivity_of_classes_alone_is_never_below_that_of_the_amounts(
    values: list[float], count: int
) -> None:
    each = np.array(values)
    ends = max(values, default=1.0) * 0.5 ** np.arange(count)
    below = np.append(ends[1:], 0.0)
    classes = ((each > below[:, None]) & (each <= ends[:, None])).sum(axis=1, keepdims=True)
    bound = sensitivity_bound(classes.astype(float), ends, each.sum(keepdims=True), SHIPPED)
    assert bound[0] >= one_cell(values, SHIPPED) - 1e-9 * sum(values)


def test_sensitivity_keeps_cells_apart_and_nothing_is_safe() -> None:
    contributions = np.array([0.0, 9.0, 1.0, 1.0, 1.0, 0.0, 7.0])
    cell = np.array([0, 2, 3, 3, 3, 0, 2])
    found = sensitivity(contributions, cell, 5, SHIPPED)
    assert found[[0, 1, 4]].tolist() == [0, 0, 0]
    assert found[2] == one_cell([9.0, 7.0], SHIPPED) > 0
    assert found[3] == one_cell([1.0, 1.0, 1.0], SHIPPED) < 0


# Which cells are hidden


def test_nothing_is_hidden_where_nothing_is_sensitive() -> None:
    for shape in ((7,), (4, 5), (3, 4, 2), ()):
        assert not suppressed(counts(np.full(shape, 12.0)), SHIPPED).any()


def test_every_rule_hides() -> None:
    large = np.full(6, 50.0)
    cells = Cells(
        np.array([50.0, 9.0, 50.0, 50.0, 50.0, 0.0]),
        np.array([5.0, 5.0, 2.0, 5.0, 5.0, 0.0]),
        np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
        {"paid": large},
        {"paid": np.array([-1.0, -1.0, -1.0, -1.0, 0.5, 0.0])},
    )
    assert primary(cells, SHIPPED).tolist() == [False, True, True, True, True, False]
    assert suppressed(cells, SHIPPED)[1:].all()


def test_hidden_cells_of_a_line_may_be_shown_as_one() -> None:
    assert suppressed(counts([3, 40, 12, 90]), SHIPPED).tolist() == [True, False, True, False]
    # Two small cells together are enough, two cells of two parties are not.
    assert suppressed(counts([4, 40, 6, 90]), SHIPPED).tolist() == [True, False, True, False]
    few = Cells(
        np.array([50.0, 60.0, 70.0, 80.0]), np.array([2.0, 2.0, 5.0, 5.0]), np.zeros(4), {}, {}
    )
    assert suppressed(few, SHIPPED).tolist() == [True, True, True, False]
    # A vetoed cell follows from an earlier answer and protects nothing.
    vetoed = counts([50, 60, 70, 80], vetoes=[1, 0, 0, 0])
    assert suppressed(vetoed, SHIPPED).tolist() == [True, True, False, False]


def test_a_table_of_one_cell_and_axes_of_one_place() -> None:
    assert suppressed(counts(9.0), SHIPPED).tolist() is True
    assert suppressed(counts([[[9.0]]]), SHIPPED).tolist() == [[[True]]]
    assert suppressed(counts([[[10.0]]]), SHIPPED).tolist() == [[[False]]]
    cells = market(1, (4, 5))
    flat = suppressed(cells, SHIPPED)
    for shape in ((4, 1, 5), (1, 4, 5), (4, 5, 1)):
        assert (
            suppressed(cells.each(lambda a, s=shape: a.reshape(s)), SHIPPED) == flat.reshape(shape)
        ).all()


def test_empty_cells_are_hidden_and_a_triangle_keeps_its_upper_half() -> None:
    years = np.add.outer(np.arange(6), np.arange(6))
    triangle = np.where(years < 6, 80.0 - 10 * years, 0.0)
    assert (suppressed(counts(triangle), SHIPPED) == (years >= 6)).all()
    triangle[0, 5] = 4.0  # alone in its column, whose total is hidden with another one
    hidden = suppressed(counts(triangle), SHIPPED)
    assert hidden[0, 5]
    assert hidden[years < 6].sum() == 2


def test_where_nothing_protects_everything_is_hidden() -> None:
    assert suppressed(counts([[3, 50], [40, 0]]), SHIPPED).all()
    assert suppressed(counts([3, 5]), SHIPPED).all()
    assert suppressed(counts([3, 50]), SHIPPED).all()


@pytest.mark.parametrize("shape", [(6,), (4, 5), (7, 3), (3, 3, 3), (4, 3, 2)])
@settings(max_examples=5, deadline=None)
@given(seed=seeds)
def test_no_reader_narrows_a_hidden_cell(shape: tuple[int, ...], seed: int) -> None:
    cells = market(seed, shape, empty=0.15 if len(shape) < 3 else 0.05)
    hidden, asked = hidden_with_totals(cells, SHIPPED), primary(cells, SHIPPED)
    inside = hidden[(slice(-1),) * len(shape)]
    assert (inside == suppressed(cells, SHIPPED)).all()
    assert inside[asked].all()
    assert inside[cells.persons == 0].all()
    paid = cells.amounts["paid"]
    narrow = widths(cells.persons, hidden, asked) < 10 - 1e-4
    narrow |= widths(paid, hidden, asked) < SHARE * paid[asked] * (1 - 1e-4)
    assert inside.all() or not narrow.any()  # where all is hidden, nothing more can be


@pytest.mark.parametrize("shape", [(12,), (6, 6), (3, 4, 3)])
@settings(max_examples=6, deadline=None)
@given(seed=seeds)
def test_no_reader_who_knows_every_total_narrows_a_hidden_cell(
    shape: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng([seed, *shape])
    persons = np.where(rng.random(shape) < 0.1, 1, 10) * rng.integers(1, 10, shape)
    cells = counts(persons)
    hidden, asked = hidden_with_totals(cells, SHIPPED), primary(cells, SHIPPED)
    inside = (slice(-1),) * len(shape)
    assume(asked.any() and hidden.sum() == hidden[inside].sum() and not hidden[inside].all())
    assert (widths(cells.persons, hidden, asked) >= 10 - 1e-4).all()
    alone = np.zeros_like(hidden)
    alone[inside] = asked
    assert (widths(cells.persons, alone, asked) <= widths(cells.persons, hidden, asked)).all()


def test_protection_costs_about_as_many_cells_as_it_protects() -> None:
    lost = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        small = rng.random((10, 10)) < 0.1
        persons = np.where(small, rng.integers(1, 10, (10, 10)), rng.integers(10, 300, (10, 10)))
        lost.append(suppressed(counts(persons), SHIPPED)[~small].mean())
    assert np.mean(lost) < 0.15


@pytest.mark.parametrize(("shape", "large"), [((40, 30), 20), ((11, 9, 6), 10)])
def test_many_primary_cells_are_protected_by_boxes(shape: tuple[int, ...], large: int) -> None:
    rng = np.random.default_rng(5)
    small = rng.random(shape) < 0.3
    cells = counts(np.where(small, rng.integers(1, 4, shape), rng.integers(large, 90, shape)))
    hidden, asked = hidden_with_totals(cells, SHIPPED), primary(cells, SHIPPED)
    inside = hidden[(slice(-1),) * len(shape)]
    assert asked.sum() > FEW
    assert inside.mean() < 0.7
    some = np.zeros_like(asked)
    some.flat[np.flatnonzero(asked)[:: asked.sum() // 25]] = True
    assert (widths(cells.persons, hidden, some) >= 10 - 1e-4).all()


def test_primary_cells_alone_would_be_found_out() -> None:
    cells = counts([[3, 50, 20], [40, 30, 60], [25, 35, 45]])
    hidden = np.zeros((4, 4), dtype=bool)
    hidden[0, 0] = True
    assert widths(cells.persons, hidden, primary(cells, SHIPPED)).tolist() == [0.0]
    # Four corners alone are not enough either: two of them are too small.
    cells = counts([[3, 4, 20], [5, 30, 60], [25, 35, 45]])
    hidden[:2, :2] = True
    assert (widths(cells.persons, hidden, primary(cells, SHIPPED)) < 10).all()
    found = hidden_with_totals(cells, SHIPPED)
    assert (widths(cells.persons, found, primary(cells, SHIPPED)) >= 10 - 1e-4).all()


@settings(max_examples=10, deadline=None)
@given(seeds, st.sampled_from([(9,), (6, 5), (3, 4, 3)]))
def test_the_hidden_of_every_line_may_be_shown_as_one(seed: int, shape: tuple[int, ...]) -> None:
    cells = market(seed, shape)
    hidden = suppressed(cells, SHIPPED) & (cells.persons > 0)
    for axis in range(len(shape)):
        left = ((cells.persons > 0) & ~hidden).sum(axis)
        open_line = (left > 0) & hidden.any(axis)
        assert (np.where(hidden, cells.persons, 0).sum(axis)[open_line] >= 10).all()
        assert (np.where(hidden, cells.parties, 0).max(axis)[open_line] >= 3).all()
        assert (np.where(hidden, cells.sensitivity["paid"], 0).sum(axis)[open_line] <= 0).all()


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_totals_asked_by_themselves_are_hidden_as_the_table_takes_them_to_be(seed: int) -> None:
    cells = market(seed, (5, 4))
    cells = Cells(cells.persons, cells.parties, np.zeros((5, 4)), {}, {})
    found = hidden_with_totals(cells, SHIPPED)
    for axis in (0, 1):
        totals = cells.each(lambda array, axis=axis: array.sum(axis))
        assert (suppressed(totals, SHIPPED) == found.take(-1, axis)[:-1]).all()


def test_same_totals_same_answer_and_nothing_is_changed() -> None:
    cells, again = market(3, (8, 7)), market(3, (8, 7))
    first = suppressed(cells, SHIPPED)
    assert (first == suppressed(again, SHIPPED)).all()
    assert (cells.persons == market(3, (8, 7)).persons).all()
    assert (cells.amounts["paid"] == market(3, (8, 7)).amounts["paid"]).all()


def test_amounts_below_zero_are_bounded_by_nothing() -> None:
    cells = counts(np.where(np.eye(5) > 0, 4.0, 50.0))
    paid = {"paid": np.where(np.eye(5) > 0, -1.0, 3.0)}
    mixed = Cells(cells.persons, cells.parties, cells.vetoes, paid, {"paid": -np.ones((5, 5))})
    assert (suppressed(mixed, SHIPPED) == suppressed(cells, SHIPPED)).all()


def test_cells_of_different_shape_and_four_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="different shape"):
        Cells(np.zeros(3), np.zeros(3), np.zeros(3), {"paid": np.zeros(4)}, {})
    with pytest.raises(ValueError, match="at most 3"):
        counts(np.zeros((2, 2, 2, 2)))
