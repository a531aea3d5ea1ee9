"""Every row has one holder; persons stay together; same seed, same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.errors import ConfigurationError
from lab.tables.partition import Split, deal
from lab.tables.partition import test_mask as rows_for_testing


def frame(n: int = 400) -> pd.DataFrame:
    return pd.DataFrame(
        {"person": np.arange(n) // 4, "site": np.arange(n) // 4 % 3, "y": np.arange(n) % 2}
    )


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["uniform", "size_skew", "dirichlet"]),
    st.integers(1, 6),
    st.booleans(),
    st.integers(0, 99),
)
def test_every_row_has_one_holder_and_persons_stay_together(
    way: str, count: int, by_person: bool, seed: int
) -> None:
    table = frame()
    split = Split(split=way, count=count, column="y" if way == "dirichlet" else None, alpha=50.0)
    person = "person" if by_person else None
    parties = deal(table, split, person, np.random.default_rng(seed))
    rows = np.concatenate(list(parties.values()))
    assert sorted(rows) == list(range(len(table)))
    if by_person:
        holders = [set(table["person"].iloc[r]) for r in parties.values()]
        assert sum(map(len, holders)) == table["person"].nunique()
    again = deal(table, split, person, np.random.default_rng(seed))
    assert all((again[k] == parties[k]).all() for k in parties)


def test_a_column_makes_a_party_of_each_value() -> None:
    parties = deal(
        frame(), Split(split="column", column="site"), "person", np.random.default_rng(0)
    )
    assert list(parties) == ["site 0", "site 1", "site 2"]


def test_values_that_share_six_digits_are_different_parties() -> None:
    days = pd.DataFrame({"day": np.repeat([20190107.0, 20190114.0], 5)})
    parties = deal(days, Split(split="column", column="day"), None, np.random.default_rng(0))
    assert list(parties) == ["day 20190107", "day 20190114"]


def test_a_column_that_tears_persons_apart_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="persons at more than one party"):
        deal(frame(), Split(split="column", column="y"), "person", np.random.default_rng(0))


def test_a_party_without_rows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="would get none"):
        deal(frame(8), Split(split="size_skew", count=6, skew=4.0), None, np.random.default_rng(0))


def mask(table: pd.DataFrame, **kwargs: object) -> np.ndarray:
    settings_ = {"fraction": 0.25, "rows_file": None, "column": None, "value": None, "person": None}
    return rows_for_testing(table, **(settings_ | kwargs), rng=np.random.default_rng(1))


def test_test_rows_keep_persons_whole() -> None:
    table = frame()
    chosen = mask(table, person="person")
    assert chosen.mean() == 0.25
    assert set(pd.Series(chosen).groupby(table["person"]).mean()) == {0.0, 1.0}


def test_test_rows_from_a_file_and_from_a_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("row0\n3\n5\n")
    assert np.flatnonzero(mask(frame(), rows_file=str(path))).tolist() == [3, 5]
    assert mask(frame(), column="site", value="1").sum() == (frame()["site"] == 1).sum()


def test_a_row_number_out_of_range_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("row0\n400\n")
    with pytest.raises(ConfigurationError, match="zero-based row numbers below 400"):
        mask(frame(), rows_file=str(path))
