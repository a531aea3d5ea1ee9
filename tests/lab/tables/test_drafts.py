"""What is guessed of a table, and what a draft of its contract keeps to itself."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lab.errors import ConfigurationError
from lab.tables.contracts import draft
from lab.tables.drafts import Draft, drafted

ROWS = 400


def table(**columns: object) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    region = rng.choice(["north", "south"], ROWS)
    return pd.DataFrame({"region": region, "age": rng.integers(18, 80, ROWS), **columns})


def guess(frame: pd.DataFrame, target: str | None = None) -> Draft:
    return drafted(frame, draft(frame, "table"), target)


def numbers(low: float, high: float, whole: bool = True) -> np.ndarray:
    values = np.linspace(low, high, ROWS)
    return np.floor(values) if whole else values


@pytest.mark.parametrize(
    ("name", "values", "family"),
    [
        ("claims", numbers(0, 4), "poisson"),
        ("ClaimNb", numbers(0, 4), "poisson"),
        ("is_fraud", numbers(0, 1.9), "binomial"),
        ("paid_cents", numbers(0, 90_000), "tweedie"),
        ("cost", numbers(0.5, 900, whole=False), "gamma"),
        ("y", numbers(-3, 3, whole=False), "gaussian"),
    ],
)
def test_the_target_is_guessed_by_its_name_and_its_family_by_its_values(
    name: str, values: np.ndarray, family: str
) -> None:
    guesses = guess(table(**{name: values, "score": numbers(1, 50)}))
    assert (guesses.target.value, guesses.family.value) == (name, family)
    assert guesses.target.reason.startswith("is named like")
    assert guesses.features == ("region", "age", "score")
    assert guesses.columns[name][0].role == "target"


def test_exposure_person_and_row_numbers_have_no_part_as_features() -> None:
    frame = table(
        member_id=np.arange(ROWS) // 2,
        exposure=numbers(0.1, 1, whole=False),
        rownames=np.arange(ROWS),
        plan="all",
        claims=numbers(0, 4),
    )
    guesses = guess(frame)
    assert guesses.exposure is not None and guesses.exposure.value == "exposure"
    assert guesses.person is not None and guesses.person.value == "member_id"
    assert guesses.features == ("region", "age")
    assert guesses.left_out == {
        "member_id": "is named like an identifier",
        "rownames": "is named like a row number",
        "plan": "never varies",
    }
    roles = {name: column.role for name, (column, _) in guesses.columns.items()}
    assert roles["member_id"] == roles["rownames"] == "identifier"
    assert roles["exposure"] == "exposure"


def test_a_draft_holds_no_largest_value_and_no_level_of_few_persons() -> None:
    regions = ["north"] * 200 + ["south"] * 191 + ["islet"] * 9
    frame = table(claims=numbers(0, 4)).assign(region=regions, plan=["a", "b"] * (ROWS // 2))
    guesses = guess(frame)
    columns = {name: column for name, (column, _) in guesses.columns.items()}
    assert all(column.maximum is None for column in columns.values())
    assert columns["age"].minimum == 0
    assert columns["plan"].levels == ("a", "b")
    assert columns["region"].levels is None
    assert guesses.columns["region"][1] == "3 levels, 1 of fewer than 10 persons: not listed"
    owned = frame.assign(region=["north"] * 200 + ["south"] * 200, member=[7] * 200 + [*range(200)])
    assert guess(owned).columns["region"][0].levels is None  # a level of one person's 200 rows


def test_what_cannot_be_drafted_is_told() -> None:
    with pytest.raises(ConfigurationError, match="no such column; there are region, age, claims"):
        guess(table(claims=numbers(0, 4)), "paid")
    with pytest.raises(ConfigurationError, match="holds text, not numbers; write 1 and 0"):
        guess(table(claims=numbers(0, 4)), "region")
    with pytest.raises(ConfigurationError, match="no column holds numbers that vary"):
        guess(pd.DataFrame({"region": ["a", "b"] * 20}))
    with pytest.raises(ConfigurationError, match=r"no column is left .*: id is named like"):
        guess(pd.DataFrame({"id": range(40), "claims": [0, 1] * 20}))
