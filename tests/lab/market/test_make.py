"""The simulated market: reproducible, under contract, near published numbers, with noisy labels."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lab.errors import ConfigurationError
from lab.market.assumptions import SHIPPED, TYPOLOGIES, Assumptions
from lab.market.facts import describe, measures
from lab.market.make import make
from lab.tables.checks import check
from lab.tables.market_folder import contract, payers, pool
from lab.tables.sources import load

FACTS = {fact.name: fact for fact in Assumptions.read().facts}
#: Of the kinds that are planted in every insurer's own claims alone, how far from the rate
#: assumed the whole market of 60,000 may be; some are too rare to be nearer.
AT_INSURERS = {
    "double_reimbursement": 0.35,
    "phantom_billing": 0.15,
    "ring": 0.35,
    "non_disclosure": 0.25,
    "identity_lending": 0.35,
}


def read(folder: Path, party: str, table: str) -> pd.DataFrame:
    return pd.read_parquet(folder / party / f"{table}.parquet")


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# --- made -------------------------------------------------------------------------------------


def test_the_same_seed_makes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    one, two, three = (
        files(make(tmp_path / name, persons=2000, seed=seed).folder)
        for name, seed in (("one", 5), ("two", 5), ("three", 6))
    )
    assert one == two
    assert set(one) == set(three)
    assert all(one[name] != three[name] for name in one)


@pytest.mark.parametrize("insurers", [1, 8])
def test_every_table_keeps_its_contract(tmp_path: Path, insurers: int) -> None:
    made = make(tmp_path / "m", persons=6000, insurers=insurers, seed=1)
    assert len(payers(made.folder)) == insurers + 1
    for name, path in made.tables.items():
        kind = "truth" if name.startswith("truth") else path.stem
        frame = check(pd.read_parquet(path), contract(kind), where=name)
        assert len(frame) == made.rows[name]
        assert list(frame.columns) == list(pd.read_parquet(path).columns)
        assert frame[next(iter(contract(kind).columns))].is_unique or kind not in {
            "claims",
            "truth",
            "persons",
            "providers",
        }


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"persons": 999}, "persons must be 1000 to 20000000, got 999"),
        ({"persons": 2000, "insurers": 0}, "insurers must be 1 to 8, got 0"),
        ({"persons": 2000, "insurers": 9}, "insurers must be 1 to 8, got 9"),
        ({"persons": 2000, "seed": -1}, "seed must be 0 to .*, got -1"),
    ],
)
def test_sizes_that_make_no_market_are_refused_and_leave_nothing(
    tmp_path: Path, sizes: dict[str, int], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make(tmp_path / "m", **sizes)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_insurer_without_claims_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    shipped = Assumptions.read()
    tiny = shipped.insurers[1].model_copy(update={"products": {"critical_illness": 1e-9}})
    changed = shipped.model_copy(update={"insurers": (shipped.insurers[0], tiny)})
    with pytest.raises(
        ConfigurationError, match="insurer-2 would have no claims; raise the number"
    ):
        make(tmp_path / "m", persons=2000, insurers=2, assumptions=changed)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(ConfigurationError, match="is not empty; name a new folder"):
        make(tmp_path, persons=2000)
    assert files(tmp_path) == {"kept.txt": b"kept"}


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    assert make(tmp_path / "new", persons=1000, insurers=1).folder == tmp_path / "new"


def test_a_disk_that_takes_no_more_leaves_nothing_behind(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(ConfigurationError, match=r"cannot be written: .*nothing was left"):
            make(tmp_path / "m", persons=5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


# --- one market, seen by several parties ------------------------------------------------------


def test_a_person_is_the_same_at_every_party(city: Path, pooled: pd.DataFrame) -> None:
    persons = read(city, "public", "persons").set_index("person")
    told = persons.loc[pooled["person"]].reset_index(drop=True)
    for name in ("sex", "district", "employment"):
        assert (told[name].astype("str") == pooled[name].astype("str")).all()
    assert (pooled["age"] == (told["age"] + pooled["year"] - 2021)).all()
    assert read(city, "public", "conditions")["person"].isin(persons.index).all()
    for insurer in payers(city)[1:]:
        policies = read(city, insurer, "policies").set_index("policy")
        assert policies["person"].isin(persons.index).all()
        claims = pooled[pooled["payer"] == insurer]
        assert (policies.loc[claims["policy"], "person"].to_numpy() == claims["person"]).all()


def test_a_provider_has_one_number_and_one_level_at_every_party(
    city: Path, pooled: pd.DataFrame
) -> None:
    register = read(city, "register", "providers").set_index("provider")
    told = register.loc[pooled["provider"]].reset_index(drop=True)
    assert told["level"].fillna(0).eq(pooled["provider_level"].fillna(0)).all()
    assert register["district"].isna().any()
    assert (register.loc[register["district"].isna(), "level"].isna()).all()


def test_most_bills_that_the_fund_paid_part_of_are_in_its_files(pooled: pd.DataFrame) -> None:
    fund = pooled[pooled["payer"] == "public"].drop_duplicates("invoice").set_index("invoice")
    honest = pooled[(pooled["typology"] == "none") & (pooled["payer"] != "public")]
    shared = honest[(honest["fund_paid"] > 0) & honest["invoice"].isin(fund.index)]
    assert len(shared) > 0.95 * (honest["fund_paid"] > 0).sum()
    same = fund.loc[shared["invoice"]]
    for name in ("person", "provider", "billed", "fund_paid", "drug_cost"):
        assert (same[name].to_numpy() == shared[name].to_numpy()).all()


def test_conditions_come_on_record_in_every_year(city: Path) -> None:
    found = read(city, "public", "conditions")
    before = (found["first_day"] < 0).sum()
    for year in range(3):
        assert 0.02 < (found["first_day"] // 365 == year).sum() / before < 0.15


def test_sums_and_years_of_a_claim_agree(pooled: pd.DataFrame) -> None:
    items = ["drug_cost", "examination_cost", "treatment_cost", "consumable_cost"]
    assert (pooled[items].sum(axis=1) == pooled["billed"]).all()
    assert (pooled["personal_payment"] + pooled["fund_paid"] == pooled["billed"]).all()
    assert (pooled["year"] == 2021 + pooled["admission_day"] // 365).all()
    assert set(pooled["year"]) == {2021, 2022, 2023}


# --- near what is published -------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(city: Path) -> dict[str, float]:
    return measures(city)


@pytest.mark.parametrize("name", FACTS)
def test_a_market_comes_near_what_is_published(measured: dict[str, float], name: str) -> None:
    assert measured[name] == pytest.approx(FACTS[name].value, abs=FACTS[name].tolerance)


def test_no_number_is_measured_without_a_published_one(measured: dict[str, float]) -> None:
    assert set(measured) == set(FACTS)


def test_the_page_fits_a_terminal_and_names_every_origin(city: Path) -> None:
    page = describe(city)
    assert max(map(len, page.splitlines())) <= 100
    text = " ".join(page.split())
    for place, group in Assumptions.read().groups():
        assert place in text
        if group.source:
            assert " ".join(group.source.split()) in text


def test_numbers_that_are_neither_published_nor_invented_are_refused(tmp_path: Path) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    (tmp_path / "a.toml").write_text(text.replace("invented = true\n", "", 1), encoding="utf-8")
    with pytest.raises(ConfigurationError, match="oldest: say source = '…'"):
        Assumptions.read(tmp_path / "a.toml")


# --- fraud, and what is known of it -----------------------------------------------------------


@pytest.mark.parametrize("kind", AT_INSURERS)
def test_fraud_at_insurers_is_as_frequent_as_assumed(pooled: pd.DataFrame, kind: str) -> None:
    expected = found = 0.0
    for k, insurer in enumerate(Assumptions.read().insurers):
        claims = pooled[pooled["payer"] == f"insurer-{k + 1}"]
        expected += insurer.fraud[kind] * (claims["outcome"] != "declined").sum()  # type: ignore[index]
        found += (claims["typology"] == kind).sum()
    assert found == pytest.approx(expected, rel=AT_INSURERS[kind])


def test_fraud_at_the_fund_is_as_frequent_as_assumed(pooled: pd.DataFrame) -> None:
    claims = pooled.loc[pooled["payer"] == "public", "typology"]
    rates = {str(kind): rate for kind, rate in Assumptions.read().public.fraud.items()}
    for kind in TYPOLOGIES[1:]:
        assert (claims == kind).mean() == pytest.approx(rates.get(kind, 0.0), rel=0.2)


def test_parties_differ_in_how_much_fraud_they_have(pooled: pd.DataFrame) -> None:
    rate = pooled.groupby("payer", observed=True)["fraud"].mean()
    assert rate["insurer-2"] > 1.3 * rate["insurer-1"]
    assert set(pooled["typology"].unique()) == set(TYPOLOGIES)


def test_every_kind_of_fraud_has_several_cases(city: Path) -> None:
    truth = read(city, "truth", "claims")
    assert ((truth["scheme_id"] == 0) == (truth["typology"] == "none")).all()
    cases = truth[truth["fraud"] == 1].groupby("typology", observed=True)["scheme_id"].nunique()
    assert (cases >= 2).all()


@pytest.mark.parametrize("party", ["public", "insurers"])
def test_labels_are_noisy_and_incomplete_but_informative(pooled: pd.DataFrame, party: str) -> None:
    claims = pooled[(pooled["payer"] == "public") == (party == "public")]
    confirmed, fraud = claims["confirmed"] == 1, claims["fraud"] == 1
    assert (claims.loc[confirmed, "investigated"] == 1).all()
    assert 0.15 < fraud[~confirmed].sum() / fraud.sum() < 0.9  # much is never proved
    assert 0.7 < fraud[confirmed].mean() < 1.0  # some is proved wrongly
    looked = claims["investigated"] == 1
    assert fraud[looked].mean() > 5 * fraud.mean()
    dear = claims["cost_to_drg_mean"] > claims["cost_to_drg_mean"].quantile(0.95)
    assert looked[dear].mean() > 2 * looked.mean()  # selective: the odd are looked into


# --- for a study --------------------------------------------------------------------------------


def test_what_would_tell_the_answer_or_link_rows_is_no_feature() -> None:
    features = {n for n, c in contract("market").columns.items() if c.role == "feature"}
    targets = {n for n, c in contract("market").columns.items() if c.role == "target"}
    assert targets == {"investigated", "confirmed", "fraud", "typology"}
    linking = {"claim", "person", "provider", "invoice", "policy", "payer", "admission_day", "year"}
    assert not features & (linking | targets)
    assert len(features) >= 35


def test_the_pooled_table_is_every_partys_claims_with_the_truth(
    city: Path, pooled: pd.DataFrame
) -> None:
    truth = read(city, "truth", "claims").set_index("claim")
    assert len(pooled) == len(truth)
    for payer in payers(city):
        own = read(city, payer, "claims")
        there = pooled[pooled["payer"] == payer].reset_index(drop=True)
        for name, values in own.items():
            assert there[name].equals(values.astype(there[name].dtype))
        assert (truth.loc[own["claim"], "fraud"].to_numpy() == there["fraud"]).all()
    for name, column in contract("market").columns.items():
        if column.levels is not None:
            assert tuple(pooled[name].cat.categories) == column.levels


def test_the_built_in_source_market_reads_a_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "m", persons=3000, insurers=2).folder
    table = load("market", str(folder))
    assert table.contract.name == "market"
    assert len(table.frame) == len(pool(folder))
    with pytest.raises(
        ConfigurationError, match="not the folder of a market; make one with: lab market make"
    ):
        load("market", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"a path is needed for market"):
        load("market")


# --- nothing tells the truth by accident -------------------------------------------------------


def leaks(claims: pd.DataFrame) -> dict[str, float]:
    """How strongly accidents of making tell fraud from honest claims, in standard errors.

    Simple attacks on one payer's file: where a row lies, how its numbers run, bills that were
    copied (among large bills alone, small ones are equal by chance), and settlements that the
    fund's own rules do not allow. Frauds of one case are not independent: 5 is little.
    """
    fraud = claims["fraud"].to_numpy() == 1
    row = np.arange(len(claims))
    place = pd.Series(row).groupby(claims["admission_day"].to_numpy()).rank(pct=True)
    items = ["drug_cost", "examination_cost", "treatment_cost", "consumable_cost"]
    shares = claims[items].div(claims["billed"], axis=0).round(3)
    large, dear = (claims["billed"] > yuan for yuan in (300, 3000))
    signals = {
        "place within its day": place.to_numpy(),
        "claim number, last digit": claims["claim"].to_numpy() % 10,
        "claim number beside its day": claims["claim"].rank().to_numpy() - row,
        "invoice number": claims["invoice"].to_numpy(),
        "invoice number, odd": claims["invoice"].to_numpy() % 2,
        "policy number": claims["policy"].fillna(0).to_numpy(),
        "bill copied": copied(claims[items], claims["invoice"]).where(large),
        "bill scaled": copied(shares, claims["invoice"]).where(dear),
        "paid by no rule of the fund": beyond_the_rules(claims),
    }
    return {name: _difference(np.asarray(x, dtype=float), fraud) for name, x in signals.items()}


def copied(values: pd.DataFrame, invoice: pd.Series) -> pd.Series:
    """1 where another invoice has the same values, 0 elsewhere."""
    same = invoice.groupby([values[name] for name in values]).transform("nunique")
    return (same > 1).astype(float)


def beyond_the_rules(claims: pd.DataFrame) -> np.ndarray:
    f = Assumptions.read().fund
    stay = (claims["inpatient"] == 1).to_numpy()
    highest = np.where(stay, max(f.retired_stay), max(f.retired_outpatient))
    deducted = np.where(stay, min(f.stay_deductible), 0)
    most = highest * (claims["billed"] - deducted).clip(lower=0) + 1
    by_city = (claims["cover"] == "city_supplement") & (claims["fund_paid"] == 0)
    return np.asarray((claims["fund_paid"] > most) | (by_city & (claims["billed"] > 9000)))


def _difference(signal: np.ndarray, fraud: np.ndarray) -> float:
    """Of the mean ranks of frauds and of honest claims, in standard errors."""
    told = ~np.isnan(signal)
    rank, fraud = pd.Series(signal[told]).rank().to_numpy(), fraud[told]
    error = rank.std() / np.sqrt(fraud.sum()) if rank.std() else 1.0
    return float((rank[fraud].mean() - rank[~fraud].mean()) / error)


PARTIES = ["public", "insurer-1", "insurer-2", "insurer-3", "insurer-4"]


@pytest.mark.parametrize("payer", PARTIES)
def test_simple_attacks_on_a_file_do_not_find_fraud(pooled: pd.DataFrame, payer: str) -> None:
    found = leaks(pooled[pooled["payer"] == payer])
    assert {name: z for name, z in found.items() if abs(z) > 5} == {}


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("place within its day", lambda c: c.sort_values(["admission_day", "fraud"])),
        ("invoice number", lambda c: c.assign(invoice=c["invoice"] + 10**7 * c["fraud"])),
        ("claim number, last digit", lambda c: c.assign(claim=c["claim"] * 10 + 5 * c["fraud"])),
        (
            "claim number beside its day",
            lambda c: c.assign(claim=c["claim"] + len(c) * c["fraud"]),
        ),
        ("paid by no rule of the fund", lambda c: c.assign(fund_paid=c["billed"] * c["fraud"])),
        ("policy number", lambda c: c.assign(policy=c["fraud"])),
    ],
)
def test_a_planted_leak_is_found(pooled: pd.DataFrame, name: str, plant: object) -> None:
    claims = pooled[pooled["payer"] == "insurer-1"]
    assert abs(leaks(plant(claims))[name]) > 5  # type: ignore[operator]


@pytest.mark.parametrize(("name", "factor"), [("bill copied", 1), ("bill scaled", 7)])
def test_a_planted_copy_of_a_bill_is_found(pooled: pd.DataFrame, name: str, factor: int) -> None:
    claims = pooled[pooled["payer"] == "insurer-1"].copy()
    fraud, stays = claims["fraud"] == 1, claims[(claims["billed"] > 5000) & (claims["fraud"] == 0)]
    donors = stays.sample(int(fraud.sum()), random_state=0)
    for column in ("drug_cost", "examination_cost", "treatment_cost", "consumable_cost", "billed"):
        claims.loc[fraud, column] = donors[column].to_numpy() * factor
    assert leaks(claims)[name] > 5
