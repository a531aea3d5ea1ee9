"""A table keeps its contract or every violation is told at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lab.errors import ConfigurationError, ContractError
from lab.tables.checks import check
from lab.tables.contracts import Column, Contract, draft, identifying, unsuited

CONTRACT = Contract(
    name="claims-v1",
    columns={
        "policy": Column(type="category", role="identifier"),
        "claims": Column(
            type="integer", role="target", minimum=0, advice="reversals go in adjustments.csv"
        ),
        "years": Column(type="number", role="exposure", above=0, maximum=1),
        "region": Column(type="category", levels=("north", "south")),
        "score": Column(type="number", nullable=True),
    },
)


def good(n: int = 4) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "policy": [f"P{k}" for k in range(n)],
            "claims": [0, 1, 2, 0][:n],
            "years": [1.0, 0.5, 0.25, 1.0][:n],
            "region": ["north", "south", "north", "south"][:n],
            "score": [1.0, None, 3.0, 4.0][:n],
        }
    )


def test_a_good_table_comes_back_typed() -> None:
    table = check(good(), CONTRACT, where="claims.csv")
    assert table["claims"].dtype == np.float64
    assert isinstance(table["region"].dtype, pd.CategoricalDtype)


def test_every_violation_is_told_at_once_with_row_rule_value_and_advice() -> None:
    bad = good()
    bad.loc[1, "claims"] = -350
    bad.loc[2, "years"] = 0
    bad.loc[3, "region"] = "west"
    with pytest.raises(ContractError) as caught:
        check(bad, CONTRACT, where="claims.csv")
    text = str(caught.value)
    assert "claims.csv: 3 violations of contract claims-v1" in text
    assert "row 2: claims must be a whole number at least 0, got -350; reversals go in" in text
    assert "row 3: years must be a number above 0 and at most 1, got 0" in text
    assert "row 4: region must be one of north, south, got west" in text


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("claims", 1.5, "whole number"),
        ("years", np.inf, "must be finite"),
        ("years", np.nan, "must not be empty"),
        ("years", "soon", "must be a number"),
        ("claims", -1, "at least 0"),
        ("years", -0.1, "above 0"),
    ],
)
def test_a_bad_value_is_refused_with_its_rule(column: str, value: object, words: str) -> None:
    bad = good().astype(object)
    bad.loc[2, column] = value
    with pytest.raises(ContractError, match=f"row 3: {column} .*{words}"):
        check(bad, CONTRACT, where="t")


def test_a_missing_column_is_named_with_the_nearest() -> None:
    with pytest.raises(ContractError, match=r"column 'years' .* missing; is it 'year' in this"):
        check(good().rename(columns={"years": "year"}), CONTRACT, where="t")


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(ContractError, match="no rows"):
        check(good().iloc[:0], CONTRACT, where="t")


def test_columns_without_a_contract_take_part_in_nothing() -> None:
    assert "extra" not in check(good().assign(extra=1), CONTRACT, where="t")


def test_a_draft_holds_nothing_of_the_values() -> None:
    contract = draft(good(), "t")
    assert all(c.minimum is None and c.levels is None for c in contract.columns.values())


def test_mistakes_in_a_contract_file_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        'name = "x"\n[columns.a]\ntype = "integr"\n[columns.b]\ntype = "number"\nminimun = 0\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        Contract.read(path)
    assert "columns.a.type" in str(caught.value)
    assert "unknown key 'columns.b.minimun'; did you mean 'minimum'?" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "id",
        "ID",
        "IDpol",
        "patient_id",
        "PatientID",
        "policy_no",
        "Policy Number",
        "member-nr",
        "old_claim_id",
        "ssn",
        "e-mail",
        "rownames",
        "index",
        "Unnamed: 0",
    ],
)
def test_a_column_named_like_an_identifier_is_one_whatever_it_holds(name: str) -> None:
    assert identifying(name, pd.Series([0.5, 0.5, 0.5]), None) is not None


@pytest.mark.parametrize(
    "name", ["age", "idle", "paid", "ClaimNb", "claims", "number_of_claims", "plan_id", "candid"]
)
def test_a_name_that_only_looks_like_an_identifiers_is_none(name: str) -> None:
    assert identifying(name, pd.Series([1, 2] * 50), None) is None


def test_whole_numbers_and_texts_that_hardly_repeat_are_identifiers_and_measurements_are_not() -> (
    None
):
    numbers = pd.Series(np.random.default_rng(0).permutation(1000) + 5)
    for values in (numbers, numbers.astype(float), numbers.astype(str)):
        assert "1,000 different values" in (identifying("x", values, None) or "")
    assert identifying("x", numbers / 7, None) is None
    assert identifying("x", numbers // 2, None) is None


@pytest.mark.parametrize("first", [0, 1])
def test_numbers_in_the_order_of_the_rows_are_row_numbers(first: int) -> None:
    values = pd.Series(np.arange(first, first + 50), index=range(100, 150))
    assert identifying("x", values, None) == "numbers the rows"
    assert identifying("x", values.sample(frac=1, random_state=0), None) != "numbers the rows"


def test_a_feature_that_nobody_listed_repeats_and_has_few_levels() -> None:
    assert unsuited("x", pd.Series([1, 2, 3] * 10)) is None
    assert "seldom repeat" in (unsuited("x", pd.Series([1, 2, 3] * 9)) or "")
    levels = pd.Series([f"level {k}" for k in range(65)] * 10)
    assert unsuited("x", levels) == "has 65 levels, more than 64"
    assert unsuited("x", levels[levels != "level 0"]) is None
    assert unsuited("siteId", pd.Series([1, 2] * 50)) == "is named like the number of something"
