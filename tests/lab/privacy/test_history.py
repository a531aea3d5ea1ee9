"""The file a party's history is kept in, and what it says of a table that changed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lab.errors import ConfigurationError, PolicyError
from lab.privacy.history import CellParts, History, TableRows
from lab.privacy.query_audit import OUTSIDE

Ints = np.ndarray


def state(rows: int = 30) -> TableRows:
    """A table in which each row is a person."""
    return TableRows(np.arange(rows, dtype=np.uint64), None)


HALF, MOST = np.where(np.arange(30) < 15, 0, OUTSIDE), np.where(np.arange(30) < 16, 0, OUTSIDE)


def asks(store: History, codes: Ints) -> bool:
    return not store.admit([whole(codes)], 1, 5)[0]


def whole(codes: Ints) -> CellParts:
    """A question's cells, each in one part."""
    return CellParts(codes, np.arange(codes.max(initial=0) + 1))


def test_a_history_in_memory_remembers() -> None:
    store = History(None, state())
    assert asks(store, HALF)
    assert not asks(store, MOST)


def test_a_history_survives_reopening(tmp_path: Path) -> None:
    assert asks(History(tmp_path / "h.db", state()), HALF)
    again = History(tmp_path / "h.db", state())
    assert not asks(again, MOST)
    assert asks(again, HALF)


def test_two_coordinators_share_one_history(tmp_path: Path) -> None:
    one, two = (History(tmp_path / "h.db", state()) for _ in range(2))
    assert asks(one, HALF)
    assert not asks(two, MOST)
    assert asks(two, np.where(HALF == 0, OUTSIDE, 0))
    assert asks(one, HALF)


def test_threads_are_answered_one_after_the_other(tmp_path: Path) -> None:
    """Fifteen filters that differ by a person each: whoever comes first is answered, alone."""
    shared = History(tmp_path / "h.db", state())
    answered: list[bool] = []

    def ask(store: History, size: int) -> None:
        answered.append(asks(store, np.where(np.arange(30) < size, 0, OUTSIDE)))

    stores = [shared if k % 2 else History(tmp_path / "h.db", state()) for k in range(4)]
    threads = [threading.Thread(target=ask, args=(s, 13 + k)) for k, s in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answered) == [False, False, False, True]


def text(path: Path) -> None:
    path.write_text("no database at all" * 100)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def scribbled(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * len(data[4096:])
    path.write_bytes(data)


def holding(piece: Any = -HALF, cells: Any = ((0, 0), (0, OUTSIDE))) -> Callable[[Path], None]:
    """Put this in place of what is kept, bytes or numbers."""

    def change(path: Path) -> None:
        kept = [
            v if isinstance(v, bytes | str | None) else np.array(v, "<i8").tobytes()
            for v in (piece, cells)
        ]
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE asked SET piece = ?, cells = ?", kept)
            db.commit()

    return change


DAMAGES = {
    "text": text,
    "torn": torn,
    "scribbled": scribbled,
    "pieces cut in a number": holding(piece=bytes(100)),
    "a row lost": holding(piece=-HALF[1:]),
    "cells lost": holding(cells=((0,), (0,), (0,))),
    "no cells": holding(cells=b""),
    "nothing": holding(piece=None),
    "letters": holding(cells="cells"),
    "a piece that has no cells": holding(piece=np.append(-HALF[1:], 7)),
    "a piece below 0": holding(piece=np.append(-HALF[1:], -1)),
    "a row in another piece": holding(piece=np.append(-HALF[:-1], 0)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_and_nothing_is_answered(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    assert asks(History(path, state()), HALF)
    DAMAGES[damage](path)
    with pytest.raises(ConfigurationError, match=r"history\.db: the history .* cannot be used"):
        asks(History(path, state()), HALF)


def test_the_same_put_in_place_of_what_is_kept_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "history.db"
    assert asks(History(path, state()), HALF)
    holding()(path)
    assert asks(History(path, state()), HALF)
    assert not asks(History(path, state()), MOST)


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be used"):
        asks(History(tmp_path, state()), HALF)


# A table that changed.


def visits(people: int = 40, years: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    person = np.repeat(np.arange(people), years)
    return pd.DataFrame(
        {
            "person": person,
            "year": np.tile(np.arange(years), people),
            "age": person % 50 + 20,
            "paid": rng.gamma(2.0, 100.0, people * years).round(2),
        }
    )


def answered(history: Path | History, frame: pd.DataFrame, person: str | None = "person") -> float:
    """What the rows of year 0 add up to, NaN where it is vetoed."""
    store = History(history, TableRows.of(frame, person)) if isinstance(history, Path) else history
    inside = frame["year"].to_numpy() == 0
    vetoed = store.admit([whole(np.where(inside, 0, OUTSIDE))], 1, 10)
    return np.nan if vetoed[0] else float(frame["paid"][inside].sum())


def with_one_more(frame: pd.DataFrame, paid: float = 123.45) -> pd.DataFrame:
    victim = pd.DataFrame({"person": [999], "year": [0], "age": [33], "paid": [paid]})
    return pd.concat([frame.iloc[:17], victim, frame.iloc[17:]], ignore_index=True)


def older(frame: pd.DataFrame) -> pd.DataFrame:
    """A column of everybody's changes, about which nobody asks."""
    return frame.assign(age=frame["age"] + 1)


@pytest.mark.parametrize("change", [lambda frame: frame, older])
def test_the_same_question_before_and_after_one_row_came_is_not_answered_twice(
    change: Callable[[pd.DataFrame], pd.DataFrame], tmp_path: Path
) -> None:
    before, after = visits(), change(with_one_more(visits()))
    first = answered(tmp_path / "h.db", before)
    assert first > 0
    assert np.isnan(answered(tmp_path / "h.db", after))
    # The unprotected twin: a history of its own for each state.
    assert answered(tmp_path / "other.db", after) - first == pytest.approx(123.45)


@pytest.mark.parametrize("change", [lambda frame: frame, older])
def test_a_row_that_changed_alone_is_not_told(
    change: Callable[[pd.DataFrame], pd.DataFrame], tmp_path: Path
) -> None:
    after = change(visits())
    after.loc[0, "paid"] += 500.0
    for person, name in (("person", "h.db"), (None, "rows.db")):
        first = answered(tmp_path / name, visits(), person)
        assert np.isnan(answered(tmp_path / name, after, person))
    assert answered(tmp_path / "other.db", after) - first == pytest.approx(500.0)


def test_a_cell_that_enough_persons_joined_is_answered_anew(tmp_path: Path) -> None:
    more = visits(52)
    more = pd.concat([visits(), more[more["person"] >= 40]], ignore_index=True)
    assert answered(tmp_path / "h.db", visits()) > 0
    assert np.isnan(answered(tmp_path / "h.db", more.iloc[: 120 + 9 * 3]))
    inside = more["year"] == 0
    assert answered(tmp_path / "h.db", more) == pytest.approx(more["paid"][inside].sum())


def test_an_order_of_rows_and_a_way_to_store_numbers_are_no_change(tmp_path: Path) -> None:
    first = answered(tmp_path / "h.db", visits())
    again = visits().sample(frac=1.0, random_state=1).astype({"year": float, "age": "int32"})
    assert answered(tmp_path / "h.db", again) == pytest.approx(first)
    assert answered(tmp_path / "h.db", with_one_more(visits()).query("person != 999")) > 0


def test_persons_who_left_are_still_guarded(tmp_path: Path) -> None:
    assert answered(tmp_path / "h.db", visits()) > 0
    assert np.isnan(answered(tmp_path / "h.db", visits().query("person != 3")))
    assert answered(tmp_path / "h.db", visits().query("person >= 10")) > 0


def test_without_persons_rows_that_changed_among_rows_that_came_are_refused(
    tmp_path: Path,
) -> None:
    assert answered(tmp_path / "h.db", visits(), None) > 0
    with pytest.raises(PolicyError, match=r"who each row belongs to \(data.person\)"):
        answered(tmp_path / "h.db", older(with_one_more(visits())), None)


def test_a_history_tells_how_many_cells_are_left(tmp_path: Path) -> None:
    store = History(tmp_path / "h.db", state(100))
    assert store.left(10) == 9  # the whole table is known
    assert not store.admit([whole(np.arange(100) % 4)], 4, 10).any()
    assert store.left(10) == 6
    assert not store.admit([whole(np.arange(100) % 4)], 4, 10).any()
    assert store.left(10) == 6


def test_a_cell_that_is_not_answered_leaves_the_history_untouched(tmp_path: Path) -> None:
    """The cell passes as a whole and not in the parts that a total splits it into."""
    store = History(tmp_path / "h.db", state(100))
    few = CellParts(
        np.where(np.arange(100) < 50, np.arange(100) // 47, OUTSIDE), np.zeros(2, np.int64)
    )
    cell = np.where(np.arange(100) < 50, 0, OUTSIDE)
    assert store.admit([whole(cell), few], 1, 10).all()
    assert store.left(10) == 9
    one_more = np.where(np.arange(100) < 51, 0, OUTSIDE)
    assert not store.admit([whole(one_more)], 1, 10).any()
