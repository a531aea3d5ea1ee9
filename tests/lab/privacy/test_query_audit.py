"""What a party's history lets pass, by brute force over small tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lab.privacy import elimination
from lab.privacy.query_audit import OUTSIDE, Answers, admit, independent_cells

Ints = np.ndarray
Rows = list[list[Fraction]]


def reduced(matrix: Ints) -> tuple[Rows, list[int]]:
    """The reduced row echelon form in exact numbers, and the columns of its pivots."""
    rows, pivots = [[Fraction(int(v)) for v in row] for row in matrix], []
    width = len(rows[0]) if rows else 0
    for column in range(width):
        at = len(pivots)
        pivot = next((k for k in range(at, len(rows)) if rows[k][column]), None)
        if pivot is None:
            continue
        rows[at], rows[pivot] = rows[pivot], rows[at]
        first = rows[at][column]
        rows[at] = [v / first if v else v for v in rows[at]]
        for k, row in enumerate(rows):
            if k != at and (factor := row[column]):
                rows[k] = [a - factor * b if b else a for a, b in zip(row, rows[at], strict=True)]
        pivots.append(column)
    return rows[: len(pivots)], pivots


def narrow(vectors: Sequence[Ints], persons: Ints, minimum: int) -> set[int] | None:
    """Fewer persons than the minimum who are all that some combination is about, or None.

    vectors: bool (rows,), what was answered; persons: (rows,) who each row belongs to. A
    combination is about nobody but some persons T exactly if the rank is smaller without their
    rows. All T of minimum - 1 persons are tried; with the pivots in front, the rank without T is
    the full one exactly if the rows of the pivots in T are independent on what is not in T.
    """
    kinds, place = np.unique(np.array(vectors, dtype=int), axis=1, return_inverse=True)
    rows, pivots = reduced(kinds)
    home = {person: set(place[persons == person].tolist()) for person in np.unique(persons)}
    for few in combinations(home, min(minimum - 1, len(home))):
        left = {kind for person, own in home.items() if person not in few for kind in own}
        lost = [k for k, pivot in enumerate(pivots) if pivot not in left]
        if not lost:
            continue
        outside = sorted(left - set(pivots))
        rest = np.array([[rows[k][j] for j in outside] for k in lost], dtype=object)
        if not outside or len(_rank(rest)) < len(lost):
            return set(map(int, few))
    return None


def _rank(matrix: Ints) -> list[int]:
    """Columns of pivots, of a matrix of few rows."""
    rows, pivots = [list(row) for row in matrix], []
    for column in range(len(rows[0])):
        at = len(pivots)
        pivot = next((k for k in range(at, len(rows)) if rows[k][column]), None)
        if pivot is None:
            continue
        rows[at], rows[pivot] = rows[pivot], rows[at]
        for k in range(at + 1, len(rows)):
            factor = rows[k][column] / rows[at][column]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[at], strict=True)]
        pivots.append(column)
        if len(pivots) == len(rows):
            break
    return pivots


def partition(rng: np.random.Generator, before: list[Ints], rows: int) -> Ints:
    return rng.integers(OUTSIDE, rng.integers(1, 5), rows)


def nested(rng: np.random.Generator, before: list[Ints], rows: int) -> Ints:
    """Less than an earlier question by some rows."""
    codes = before[rng.integers(len(before))].copy()
    codes[rng.random(rows) < 0.2] = OUTSIDE
    return codes


def one_off(rng: np.random.Generator, before: list[Ints], rows: int) -> Ints:
    """An earlier question in which one row has changed its cell."""
    codes = before[rng.integers(len(before))].copy()
    at = rng.integers(rows)
    codes[at] = OUTSIDE if codes[at] != OUTSIDE else 0
    return codes


def complement(rng: np.random.Generator, before: list[Ints], rows: int) -> Ints:
    codes = before[rng.integers(len(before))]
    return np.where(codes == OUTSIDE, 0, OUTSIDE)


def union(rng: np.random.Generator, before: list[Ints], rows: int) -> Ints:
    """A tracker: rows of either of two earlier questions, or of just one of them."""
    one, two = (before[rng.integers(len(before))] != OUTSIDE for _ in range(2))
    return np.where((one | two) if rng.random() < 0.5 else (one ^ two), 0, OUTSIDE)


def joined(rng: np.random.Generator, before: list[Ints], rows: int) -> Ints:
    """A group-by over two earlier questions at once."""
    one, two = (before[rng.integers(len(before))] for _ in range(2))
    return np.where((one == OUTSIDE) | (two == OUTSIDE), OUTSIDE, one * 5 + two)


KINDS: list[Callable[[np.random.Generator, list[Ints], int], Ints]] = [
    partition,
    nested,
    one_off,
    complement,
    union,
    joined,
]


def questions(seed: int, kinds: Sequence[int], rows: int) -> Iterator[Ints]:
    rng = np.random.default_rng(seed)
    before = [np.zeros(rows, dtype=np.int64)]
    for kind in kinds:
        codes = KINDS[kind](rng, before, rows).astype(np.int64)
        before.append(codes)
        yield codes


def shown(codes: Ints, cells: int, vetoed: Ints) -> list[Ints]:
    return [codes == c for c in range(cells) if not vetoed[c] and (codes == c).any()]


ASKED = st.tuples(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, len(KINDS) - 1), min_size=3, max_size=8),
    st.integers(10, 32),
    st.integers(2, 4),
)


@settings(max_examples=120, deadline=None)
@given(ASKED, st.booleans())
def test_no_combination_of_answers_is_about_fewer_persons_than_the_minimum(
    asked: tuple[int, list[int], int, int], several: bool
) -> None:
    seed, kinds, rows, minimum = asked
    persons = np.arange(rows)
    if several:
        persons = np.random.default_rng(seed).integers(0, 2 * rows // 3, rows)
        persons = np.unique(persons, return_inverse=True)[1]
    assume(persons.max() + 1 >= minimum)  # else the total itself is about too few
    known, answered = Answers.nothing(rows), [np.ones(rows, dtype=bool)]
    for codes in questions(seed, kinds, rows):
        cells = int(codes.max(initial=0)) + 1
        vetoed, known = admit(known, codes, cells, persons if several else None, minimum)
        answered += shown(codes, cells, vetoed)
    assert narrow(answered, persons, minimum) is None


def test_the_brute_force_finds_what_an_unprotected_twin_lets_pass() -> None:
    broken = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        answered = [np.ones(24, dtype=bool)]
        for codes in questions(seed, rng.integers(0, len(KINDS), 6).tolist(), 24):
            counts = np.bincount(codes[codes != OUTSIDE], minlength=1)
            answered += [codes == c for c in range(len(counts)) if counts[c] >= 3]
        broken += narrow(answered, np.arange(24), 3) is not None
    assert broken > 10
    one, all_but_one = np.ones(9, dtype=bool), np.arange(9) > 0
    assert narrow([one, all_but_one], np.arange(9), 2) == {0}


@settings(max_examples=60, deadline=None)
@given(ASKED)
def test_a_repeated_question_is_answered_again_and_what_is_the_same_adds_nothing(
    asked: tuple[int, list[int], int, int],
) -> None:
    seed, kinds, rows, minimum = asked
    known = Answers.nothing(rows)
    for codes in questions(seed, kinds, rows):
        cells = int(codes.max(initial=0)) + 1
        vetoed, known = admit(known, codes, cells, None, minimum)
        again, after = admit(known, codes, cells, None, minimum)
        assert not (again & ~vetoed).any()  # seldom more is answered, as groups are found greedily
        assert after is known or not (again == vetoed).all()


def test_large_cells_are_all_answered() -> None:
    known, codes = Answers.nothing(60), np.arange(60) % 6
    for step in (1, 2, 3):
        vetoed, known = admit(known, codes // step, 6, None, 10)
        assert not vetoed.any()


def test_empty_cells_are_not_vetoed() -> None:
    vetoed, _ = admit(Answers.nothing(20), np.full(20, OUTSIDE), 3, None, 5)
    assert not vetoed.any()
    vetoed, _ = admit(Answers.nothing(20), np.zeros(20, dtype=np.int64), 3, None, 5)
    assert not vetoed.any()


def test_a_tracker_is_stopped() -> None:
    """x + A + B, A + C, B + C and C are large, and the first less (second + third - 2 fourth) is x."""
    x, a, b, c = (np.isin(np.arange(40) // 10, group) for group in (0, 1, 2, 3))
    x &= np.arange(40) == 0  # one person; the other nine of its ten are in no filter
    known, answered = Answers.nothing(40), []
    for rows in (x | a | b, a | c, b | c, c):
        vetoed, known = admit(known, np.where(rows, 0, OUTSIDE), 1, None, 5)
        answered.append(not vetoed[0])
    assert answered == [True, True, True, False]


@pytest.mark.parametrize("persons", [None, np.arange(30)])
def test_a_difference_of_few_persons_is_stopped_from_both_sides(persons: Ints | None) -> None:
    for less in (1, 4):
        inner, outer = np.arange(30) < 15, np.arange(30) < 15 + less
        for first, second in ((inner, outer), (outer, inner)):
            known = Answers.nothing(30)
            vetoed, known = admit(known, np.where(first, 0, OUTSIDE), 1, persons, 5)
            assert not vetoed[0]
            vetoed, after = admit(known, np.where(second, 0, OUTSIDE), 1, persons, 5)
            assert vetoed[0]
            assert after is known


def test_with_the_total_known_a_small_cell_takes_another_with_it() -> None:
    codes = np.repeat([0, 1, 2], [1, 5, 20])
    vetoed, known = admit(Answers.nothing(26), codes, 3, None, 3)
    assert vetoed.tolist() == [True, True, False]
    vetoed, _ = admit(known, np.where(codes == 2, OUTSIDE, 0), 1, None, 3)
    assert not vetoed[0]  # the two together are what is left of the total


def test_the_complement_of_a_small_cell_is_vetoed() -> None:
    vetoed, _ = admit(Answers.nothing(30), np.where(np.arange(30) < 28, 0, OUTSIDE), 1, None, 3)
    assert vetoed[0]


def test_a_person_with_several_rows_counts_once() -> None:
    persons = np.array([0, 0, 0, 0, 0, 0, *range(1, 15)])
    codes = np.where(np.arange(20) < 6, 0, 1)  # six rows of one person
    assert admit(Answers.nothing(20), codes, 2, persons, 3)[0].tolist() == [True, True]
    assert admit(Answers.nothing(20), codes, 2, None, 3)[0].tolist() == [False, False]


@pytest.mark.parametrize("several", [False, True])
def test_a_histogram_of_601_bins_leaves_later_questions_answerable(several: bool) -> None:
    """It ended them all: at most 600 cells were told apart. It takes seconds, and not minutes."""
    rng, size = np.random.default_rng(0), 200_000
    persons = rng.integers(0, 60_000, size) if several else None
    paid = np.minimum(rng.gamma(2.0, 60.0, size).astype(np.int64), 600)
    sex, region = rng.integers(0, 2, size), rng.integers(0, 8, size)
    known, start = Answers.nothing(size), time.process_time()
    vetoed, known = admit(known, paid, 601, persons, 10)
    assert 0 < vetoed.sum() < 150  # those of few persons
    for codes, cells in ((sex, 2), (region, 8), (sex * 8 + region, 16), (paid // 20, 31)):
        vetoed, known = admit(known, codes, cells, persons, 10)
        assert vetoed.sum() <= 1
    vetoed, known = admit(known, rng.integers(0, 601, size), 601, persons, 10)
    assert not vetoed.any()
    assert independent_cells(known) > 1_000
    assert time.process_time() - start < 60


def test_where_too_much_is_known_what_is_new_is_vetoed(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.arange(20) % 2
    _, known = admit(Answers.nothing(20), codes, 2, None, 3)
    monkeypatch.setattr(elimination, "MOST_STEPS", -1)
    vetoed, after = admit(known, np.where(np.arange(20) < 5, 0, OUTSIDE), 1, None, 3)
    assert vetoed[0]
    assert after is known
    assert not admit(known, codes, 2, None, 3)[0].any()
