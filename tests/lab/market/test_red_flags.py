"""Which red flag finds which fraud, with whose tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lab.market.assumptions import TYPOLOGIES
from lab.market.red_flags import FLAGS, INSURERS, PUBLIC, compare

#: Typology, a party to which it is weak or invisible alone, the most that its red flag scores from
#: that party's own tables, the least from all, and by what factor: average precision, on that
#: party's claims. Excess gains least: the fund's own bills show it, an insurer has few of a provider.
WEAK_ALONE = [
    ("double_reimbursement", INSURERS, 0.05, 0.5, 10),
    ("phantom_billing", INSURERS, 0.01, 0.1, 20),
    ("upcoding", INSURERS, 0.3, 0.35, 1.5),
    ("unbundling", INSURERS, 0.15, 0.2, 2),
    ("excessive_treatment", INSURERS, 0.35, 0.25, 1.1),
    ("ring", INSURERS, 0.15, 0.2, 2),
    ("ring", PUBLIC, 0.005, 0.4, 100),
    ("non_disclosure", INSURERS, 0.3, 0.6, 2),
    ("identity_lending", INSURERS, 0.01, 0.15, 20),
    ("identity_lending", PUBLIC, 0.001, 0.03, 50),
]
#: What the fund has no claims of at all.
UNSEEN_BY_THE_FUND = {"double_reimbursement", "phantom_billing", "non_disclosure"}


@pytest.fixture(scope="module")
def table(city: Path) -> pd.DataFrame:
    return compare(city).set_index(["typology", "party"])


@pytest.mark.parametrize(("kind", "party", "most", "least", "factor"), WEAK_ALONE)
def test_a_red_flag_that_is_weak_alone_finds_its_fraud_together(
    table: pd.DataFrame, kind: str, party: str, most: float, least: float, factor: float
) -> None:
    found = table.loc[kind, party]
    assert found["alone"] <= most
    assert found["together"] >= least
    assert found["together"] >= factor * found["alone"]


def test_every_typology_has_a_flag_and_a_party_that_sees_little_of_it() -> None:
    assert tuple(FLAGS) == TYPOLOGIES[1:]
    assert {kind for kind, *_ in WEAK_ALONE} == set(FLAGS)


def test_the_fund_has_no_claims_of_what_is_done_to_insurers_alone(table: pd.DataFrame) -> None:
    seen = {kind for kind, party in table.index if party == PUBLIC}
    assert set(FLAGS) - seen == UNSEEN_BY_THE_FUND


@pytest.mark.parametrize("kind", ["upcoding", "unbundling", "excessive_treatment"])
def test_what_is_done_to_the_fund_it_sees_about_as_well_alone(
    table: pd.DataFrame, kind: str
) -> None:
    found = table.loc[kind, PUBLIC]
    assert found["alone"] > 10 * found["base"]
    assert found["together"] == pytest.approx(found["alone"], rel=0.25)


@pytest.mark.parametrize("kind", FLAGS)
def test_every_flag_beats_chance_with_all_tables(table: pd.DataFrame, kind: str) -> None:
    found = table.loc[kind, INSURERS]
    assert found["together"] > 5 * found["base"]
