"""Names of levels that a party announces, and the codes of those that it does not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lab.models.agreement import seen_levels
from lab.models.design import Design, Encoding, Feature, Levels, codes_of
from lab.privacy.joining import RARE

BRAND = Feature(column="brand")


def brands(**rows: int) -> pd.DataFrame:
    return pd.DataFrame({"brand": np.repeat(list(rows), list(rows.values()))})


def test_a_level_of_too_few_rows_is_not_named() -> None:
    assert seen_levels(brands(a=12, b=10, c=9), BRAND, minimum=10) == [RARE, "a", "b"]


def test_a_level_of_many_rows_of_few_persons_is_not_named() -> None:
    frame = brands(a=12, b=30)
    owners = pd.Series([*range(12), *np.repeat([0, 1, 2], 10)])
    assert seen_levels(frame, BRAND, owners, 10) == [RARE, "a"]
    assert seen_levels(frame, BRAND, minimum=10) == ["a", "b"]


def test_where_every_level_has_enough_persons_none_is_called_rare() -> None:
    assert seen_levels(brands(a=12, b=10), BRAND, minimum=10) == ["a", "b"]


def test_a_missing_value_and_a_level_without_a_row_are_no_levels() -> None:
    frame = brands(a=12, b=1).replace("b", None).astype("category")
    frame["brand"] = frame["brand"].cat.add_categories("c")
    assert seen_levels(frame, BRAND, minimum=10) == ["a"]


def test_rows_of_unnamed_levels_are_rare_and_missing_ones_are_not() -> None:
    values = pd.Series(["a", "z", None, "b"], dtype="category")
    assert codes_of(values, (RARE, "a", "b")).tolist() == [1, 0, -1, 2]
    assert codes_of(values, ("a", "b")).tolist() == [0, -1, -1, 1]


def test_rare_levels_have_a_column_of_their_own_and_not_the_base_level() -> None:
    term = Levels(feature=BRAND, levels=("a", "b", RARE))
    design = Design(brands(a=1, b=1, y=1, z=1), Encoding(categories=(term,)))
    assert design.matrix().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1]]


def test_a_product_of_columns_that_are_not_there_is_refused() -> None:
    term = Levels(feature=BRAND, levels=("a", "b", "c"))
    for places in ((0, 1), (2, 1), (1, 3)):
        with pytest.raises(ValueError, match="crosses: each takes the places of two columns"):
            Encoding(categories=(term,), crosses=(places,))
