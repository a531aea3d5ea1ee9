"""What each side of a joined market knows of a person, added up from its own files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lab.tables.market_folder import payers
from lab.tables.market_sides import TABLES
from lab.tables.sources import load


@pytest.fixture(scope="module")
def claimants(city: Path) -> pd.DataFrame:
    return load("market_claimants", str(city)).frame.set_index("person")


@pytest.fixture(scope="module")
def care(city: Path) -> pd.DataFrame:
    return load("market_care", str(city)).frame.set_index("person")


def test_a_person_has_one_row_at_each_side(city: Path) -> None:
    for name in TABLES:
        assert load(f"market_{name}", str(city)).frame["person"].is_unique


def test_claimants_are_added_up_from_the_insurer_of_most_claims(
    claimants: pd.DataFrame, pooled: pd.DataFrame
) -> None:
    own = pooled[pooled["payer"] != "public"]
    assert set(claimants.index) == set(own["person"])
    mine = own[own["payer"].astype(str) == own["person"].map(claimants["payer"].astype(str))]
    sums = mine.groupby("person")
    pd.testing.assert_series_equal(sums.size(), claimants["claims"], **SAME)
    pd.testing.assert_series_equal(sums["paid"].sum() / 1000, claimants["paid"], **SAME)
    pd.testing.assert_series_equal(sums["fraud"].max(), claimants["fraud"], **SAME)
    frauds = mine[mine["fraud"] == 1].groupby("person")["paid"].sum()
    assert claimants["fraud_paid"].sum() == pytest.approx(frauds.sum())
    most = own.groupby(["person", "payer"], observed=True).size().groupby("person").max()
    pd.testing.assert_series_equal(most, claimants["claims"], **SAME)


def test_care_is_what_the_fund_settled_and_nothing_else(city: Path, care: pd.DataFrame) -> None:
    claims = pd.read_parquet(city / payers(city)[0] / "claims.parquet")
    assert len(care) == 60_000
    for column, total in {
        "visits": (claims["inpatient"] == 0).sum(),
        "stays": claims["inpatient"].sum(),
        "bed_days": claims["length_of_stay"].sum(),
        "cost": claims["billed"].sum() / 1000,
        "fund_paid": claims["fund_paid"].sum() / 1000,
    }.items():
        assert care[column].sum() == pytest.approx(float(total))
    without = care[care["visits"] + care["stays"] == 0]
    assert without["providers"].max() == 0 and without["gravest"].isna().all()


def test_the_truth_stands_at_no_side_but_as_a_target(city: Path) -> None:
    for name in TABLES:
        columns = load(f"market_{name}", str(city)).contract.columns
        truths = {"confirmed", "fraud", "typology", "fraud_paid"} & set(columns)
        assert all(columns[truth].role == "target" for truth in truths)
        assert not truths or name == "claimants"


#: Numbers alone are compared.
SAME = {"check_names": False, "check_dtype": False, "check_index_type": False}
