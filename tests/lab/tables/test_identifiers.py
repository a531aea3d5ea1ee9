"""Identifiers of two tables in one spelling, and the rows that take no part."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.errors import ConfigurationError, ContractError
from lab.records import parse
from lab.tables.contracts import Column, Contract
from lab.tables.identifiers import (
    CHECK_DIGITS,
    WEIGHTS,
    key_texts,
    letters_and_digits,
    resident_number,
)

# The example of GB 11643-1999, and one whose check digit is a digit.
VALID = ("11010519491231002X", "440524188001010014")


def texts_of(values: list[Any], rule: str = "normal") -> list[str]:
    column = Column(type="category", role="identifier", spelling=rule)  # type: ignore[arg-type]
    contract = Contract(name="persons", columns={"id": column})
    (key,) = key_texts(pd.DataFrame({"id": values}), [["id"]], contract, "persons.csv")
    return key.texts.tolist()


@pytest.mark.parametrize(
    ("rule", "one", "other", "alike"),
    [
        ("normal", "１２３", "123", True),
        ("normal", " 12\u00a03 ", "12 3", True),
        ("normal", "cafe\u0301", "café", True),
        ("normal", "ab", "AB", False),
        ("normal", "12-3", "123", False),
        ("exact", "１２３", "123", False),
        ("exact", "123 ", "123", False),
        ("code", "ab-12 3", "AB123", True),
        ("code", "ＡＢ‐１２．３", "ab123", True),
        ("code", "٣٤", "34", True),
        ("code", "0123", "123", False),
        ("code", "o1", "01", False),
        ("resident", "110105 19491231 002x", VALID[0], True),
        ("resident", "１１０１０５１９４９１２３１００２Ｘ", VALID[0], True),
    ],
)
def test_a_rule_says_which_spellings_are_one(rule: str, one: str, other: str, alike: bool) -> None:
    assert (texts_of([one], rule) == texts_of([other], rule)) is alike


def test_a_value_is_the_same_in_every_type_of_column() -> None:
    for values in (
        ["250"],
        [250],
        [250.0],
        [Decimal("250.00")],
        pd.array([250], dtype="Int64"),
        pd.Categorical(["250"]),
    ):
        assert texts_of(list(values)) == ["250"]
    assert texts_of([date(2024, 1, 2)]) == texts_of(["2024-01-02"])
    number = 110105194912310021
    assert texts_of([number, number + 1]) == [str(number), str(number + 1)]


def test_numbers_that_floating_point_mixes_up_are_refused_without_a_value() -> None:
    with pytest.raises(ContractError, match="column 'id' holds numbers above 2") as refusal:
        texts_of([1.10105194912310021e17])
    assert "1101" not in str(refusal.value)


@given(st.integers(0, 10**17 - 1), st.integers(1, 10))
def test_another_check_digit_is_no_residents_number(number: int, shift: int) -> None:
    digits = f"{number:017d}"[:6] + "19491231" + f"{number:017d}"[14:]
    place = sum(w * int(d) for w, d in zip(WEIGHTS, digits, strict=True)) % 11
    assert resident_number(digits + CHECK_DIGITS[place])
    assert not resident_number(digits + CHECK_DIGITS[(place + shift) % 11])


@pytest.mark.parametrize(
    "bad", ["", "1", VALID[0][:17], VALID[0] + "0", "x" * 18, "11010519491331002X"]
)
def test_what_is_no_residents_number_takes_no_part_and_is_counted(bad: str) -> None:
    column = Column(type="category", role="identifier", spelling="resident")
    contract = Contract(name="persons", columns={"id": column})
    table = pd.DataFrame({"id": [*VALID, bad]})
    (key,) = key_texts(table, [["id"]], contract, "persons.csv")
    assert key.texts.tolist() == [*VALID, ""]
    assert (key.missing, key.invalid) == ((1, 0) if not bad else (0, 1))


@pytest.mark.parametrize("empty", [None, np.nan, pd.NA, "", "  ", "NA", "null"])
def test_an_empty_value_takes_no_part_and_is_counted(empty: Any) -> None:
    table = pd.DataFrame({"id": pd.Series(["a", empty, empty], dtype=object)})
    (key,) = key_texts(table, [["id"]], None, "persons.csv")
    assert key.texts.tolist() == ["a", "", ""]
    assert (key.missing, key.invalid, key.ambiguous) == (2, 0, 0)


def test_rows_that_share_the_first_key_are_refused_with_their_number_and_no_value() -> None:
    table = pd.DataFrame({"id": ["a-1", "A1 ", "b", "b", "c"]})
    with pytest.raises(ContractError, match=r"persons\.csv: 2 rows share a value of id") as refusal:
        key_texts(table, [["id"]], None, "persons.csv")
    assert "'b'" not in str(refusal.value)


def test_by_a_later_key_rows_that_share_a_value_take_no_part_and_are_counted() -> None:
    table = pd.DataFrame(
        {
            "id": ["1", "2", "3", None],
            "name": ["Li Wei", "Li Wei", "Ma Li", "Ma Li"],
            "born": ["1980-01-02", "1980-01-02", "1970-05-06", "1971-05-06"],
        }
    )
    first, second = key_texts(table, [["id"], ["name", "born"]], None, "persons.csv")
    assert first.texts.tolist() == ["1", "2", "3", ""]
    assert second.columns == ("name", "born")
    assert (second.texts == "").tolist() == [True, True, False, False]
    assert second.ambiguous == 2


@given(st.lists(st.tuples(st.text(max_size=3), st.text(max_size=3)), min_size=2, max_size=2))
def test_composite_keys_are_equal_only_where_all_their_parts_are(
    rows: list[tuple[str, str]],
) -> None:
    contract = Contract(
        name="persons",
        columns={n: Column(type="category", spelling="exact") for n in ("a", "b")},
    )
    keys = [
        key_texts(pd.DataFrame({"a": [a], "b": [b]}), [["a", "b"]], contract, "t")[0].texts[0]
        for a, b in rows
    ]
    if all(keys):
        assert (keys[0] == keys[1]) == (rows[0] == rows[1])


def test_a_row_without_one_part_of_a_key_takes_no_part() -> None:
    table = pd.DataFrame({"name": ["a", "b"], "born": ["1980", None]})
    (key,) = key_texts(table, [["name", "born"]], None, "t")
    assert (key.texts == "").tolist() == [False, True] and key.missing == 1


def test_an_empty_table_has_keys_without_rows() -> None:
    (key,) = key_texts(pd.DataFrame({"id": pd.Series([], dtype="str")}), [["id"]], None, "t")
    assert key.texts.shape == (0,) and key.ambiguous == 0


@pytest.mark.parametrize(
    ("keys", "words"),
    [([], "needs a key"), ([[]], "needs a key"), ([["idd"]], "has no column 'idd'; its columns")],
)
def test_a_key_that_is_not_there_is_refused(keys: list[list[str]], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        key_texts(pd.DataFrame({"id": ["a"]}), keys, None, "persons.csv")


def test_a_key_that_the_contract_does_not_know_is_refused() -> None:
    contract = Contract(name="persons", columns={"x": Column(type="number")})
    with pytest.raises(ContractError, match="contract 'persons' has no column 'id'"):
        key_texts(pd.DataFrame({"id": ["a"]}), [["id"]], contract, "persons.csv")


def test_only_an_identifier_is_spelled_by_a_rule_of_identifiers() -> None:
    table = {"name": "t", "columns": {"id": {"type": "category", "spelling": "resident"}}}
    with pytest.raises(ConfigurationError, match="only an identifier"):
        parse(Contract, table, where="t.toml")


@given(st.text(max_size=12))
def test_a_code_of_a_code_is_itself(text: str) -> None:
    assert letters_and_digits(letters_and_digits(text)) == letters_and_digits(text)
