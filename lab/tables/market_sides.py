"""The two sides of a joined market: a row for each person, as an insurer and as the public insurer know it.

`insured` and `members` stand before the market's last year, `claimants` and `care` after all of it.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lab.tables.market_folder import contract, payers, pool

#: Days of a year, the first day of the market's last year, and that year.
YEAR_DAYS, LAST_YEAR_FROM, LAST_YEAR = 365, 730, 2023
CONDITIONS = ("hypertension", "diabetes", "heart_disease", "copd", "cancer", "kidney_disease")
#: A claim, or a stay, so many days after one at the same provider comes again.
AGAIN = 45


def insured(folder: Path) -> pd.DataFrame:
    """Persons with a commercial policy in the market's last year, at the insurer with which they have it
    longest: policy, exposure, claims of that year and of the years before.

    Raises :class:`ConfigurationError` for a folder that is no market.
    """
    tables = [_insured_by(folder / payer).assign(payer=payer) for payer in payers(folder)[1:]]
    rows = pd.concat(tables, ignore_index=True).sort_values(
        ["person", "exposure_years", "payer"], kind="stable"
    )
    rows = rows.drop_duplicates("person", keep="last").sort_values("person")
    return rows[list(contract("insured").columns)].reset_index(drop=True)


def _insured_by(folder: Path) -> pd.DataFrame:
    policies = pd.read_parquet(folder / "policies.parquet")
    days = policies["end_day"] - policies["inception_day"].clip(lower=LAST_YEAR_FROM)
    policies["exposure_years"] = days.clip(lower=0) / YEAR_DAYS
    policies = policies[policies["exposure_years"] > 0]
    rows = policies.groupby("person", as_index=False).agg(
        product=("product", "last"),
        sum_insured=("sum_insured", "max"),
        deductible=("deductible", "min"),
        premium=("premium", "sum"),
        exposure_years=("exposure_years", "sum"),
    )
    rows["exposure_years"] = rows["exposure_years"].clip(upper=1.0)
    claims = pd.read_parquet(folder / "claims.parquet")
    now = claims[claims["year"] == LAST_YEAR].groupby("person")
    before = claims[claims["year"] < LAST_YEAR].groupby("person").size()
    rows["claims"] = rows["person"].map(now.size()).fillna(0).astype("int64")
    rows["paid"] = rows["person"].map(now["paid"].sum()).fillna(0.0)
    paid = claims[(claims["year"] == LAST_YEAR) & (claims["paid"] > 0)].groupby("person").size()
    rows["paid_claims"] = rows["person"].map(paid).fillna(0).astype("int64")
    rows["claims_before"] = rows["person"].map(before).fillna(0).astype("int64")
    return rows


def members(folder: Path) -> pd.DataFrame:
    """All persons as the public insurer knows them before the market's last year: who they are, chronic
    conditions, visits, stays and their cost.

    Raises :class:`ConfigurationError` for a folder that is no market.
    """
    public = folder / payers(folder)[0]
    rows = pd.read_parquet(public / "persons.parquet")
    conditions = pd.read_parquet(public / "conditions.parquet")
    known = conditions[conditions["first_day"] < LAST_YEAR_FROM]
    for name in CONDITIONS:
        rows[name] = rows["person"].isin(known.loc[known["condition"] == name, "person"])
    claims = pd.read_parquet(public / "claims.parquet")
    claims = claims[claims["year"] < LAST_YEAR]
    stays = claims["inpatient"].astype(bool)
    care = {
        "visits": claims[~stays].groupby("person").size(),
        "stays": claims[stays].groupby("person").size(),
        "cost": claims.groupby("person")["billed"].sum() / 1000,
    }
    for name, values in care.items():
        rows[name] = rows["person"].map(values).fillna(0)
    rows[list(CONDITIONS)] = rows[list(CONDITIONS)].astype("int64")
    return rows[list(contract("members").columns)]


# What was claimed and what care there was, added up over the market's years.


def claimants(folder: Path) -> pd.DataFrame:
    """Persons with a commercial claim, at the insurer with which they have most: what its claims department
    knows of them, and the truth about their claims.

    ``typology`` is the kind of fraud that most was paid for, ``fraud_paid`` what was paid for all.
    Raises :class:`ConfigurationError` for a folder that is no market.
    """
    claims = pool(folder)
    claims = claims[claims["payer"] != payers(folder)[0]].astype({"payer": "str"})
    most = claims.groupby(["person", "payer"], as_index=False).size()
    most = most.sort_values(["person", "size", "payer"], kind="stable")
    most = most.drop_duplicates("person", keep="last")
    claims = claims.merge(most[["person", "payer"]], on=["person", "payer"])
    rows = _added_up(claims).join(most.set_index("person")["payer"]).join(_truth(claims))
    by_person = claims.groupby("person")
    for name in ("deductible", "sum_insured", "days_since_inception"):
        rows[name] = by_person[name].min()
    rows["declared_conditions"] = by_person["declared_conditions"].max()
    rows["age"], rows["sex"] = by_person["age"].max(), by_person["sex"].first()
    rows["cover"] = by_person["cover"].last()
    rows["claimed"], rows["paid"] = (by_person[n].sum() / 1000 for n in ("claimed", "paid"))
    rows["fund_share"] = by_person["fund_paid"].sum() / by_person["billed"].sum()
    rows["unfunded"] = (claims["fund_paid"] == 0).groupby(claims["person"]).sum()
    rows["without_level"] = claims["provider_level"].isna().groupby(claims["person"]).sum()
    rows["reduced"] = (claims["outcome"] != "paid").groupby(claims["person"]).sum()
    rows = rows.rename(columns={"count": "claims"}).reset_index()
    return rows[list(contract("claimants").columns)]


def care(folder: Path) -> pd.DataFrame:
    """All persons as the public insurer knows them after the market's years: chronic conditions and
    since when they are on record, visits, stays, providers and their cost.

    Raises :class:`ConfigurationError` for a folder that is no market.
    """
    public = folder / payers(folder)[0]
    persons = pd.read_parquet(public / "persons.parquet").set_index("person")
    conditions = pd.read_parquet(public / "conditions.parquet")
    claims = pd.read_parquet(public / "claims.parquet")
    for name in CONDITIONS:
        persons[name] = persons.index.isin(
            conditions.loc[conditions["condition"] == name, "person"]
        ).astype("int64")
    persons["on_record_since"] = conditions.groupby("person")["first_day"].min() / YEAR_DAYS
    rows = persons.join(_added_up(claims))
    by_person = claims.groupby("person")
    rows["cost"], rows["fund_paid"] = (by_person[n].sum() / 1000 for n in ("billed", "fund_paid"))
    rows["visits_in_bed"] = _visits_in_bed(claims)
    rows["bed_days"] = by_person["length_of_stay"].sum()
    rows["visits"] = rows.pop("count") - rows["stays"]
    counts = ["visits", "stays", "again", "providers", "visits_in_bed", "bed_days", "cost"]
    rows[[*counts, "fund_paid"]] = rows[[*counts, "fund_paid"]].fillna(0)
    return rows.reset_index()[list(contract("care").columns)]


def _added_up(claims: pd.DataFrame) -> pd.DataFrame:
    """By person, what any payer makes of its own claims at settlement."""
    claims = claims.sort_values(["person", "provider", "admission_day"], kind="stable")
    same = claims["person"].eq(claims["person"].shift()) & claims["provider"].eq(
        claims["provider"].shift()
    )
    again = same & (claims["admission_day"].diff() <= AGAIN)
    gravest = claims["drg"].astype("str").str[1:].astype("int64")
    by_person = claims.assign(again=again, gravest=gravest).groupby("person")
    billed = by_person["billed"].sum()
    return pd.DataFrame(
        {
            "count": by_person.size(),
            "stays": by_person["inpatient"].sum(),
            "again": by_person["again"].sum(),
            "providers": by_person["provider"].nunique(),
            "gravest": by_person["gravest"].max(),
            "drug_share": by_person["drug_cost"].sum() / billed,
            "examination_share": by_person["examination_cost"].sum() / billed,
            "cost_to_drg_mean": by_person["cost_to_drg_mean"].max(),
            "days_to_drg_mean": by_person["days_to_drg_mean"].min(),
            "provider_cost": by_person["provider_cost"].max(),
        }
    )


def _truth(claims: pd.DataFrame) -> pd.DataFrame:
    """By person, whether any claim was proved and whether any was planted, of which kind, for how much."""
    by_person = claims.groupby("person")
    frauds = claims[claims["fraud"] == 1].sort_values("paid", kind="stable").groupby("person")
    truth = by_person[["confirmed", "fraud"]].max()
    truth["typology"] = frauds["typology"].last().astype("str").reindex(truth.index).fillna("none")
    truth["fraud_paid"] = frauds["paid"].sum().reindex(truth.index).fillna(0)
    return truth


def _visits_in_bed(claims: pd.DataFrame) -> pd.Series:
    """By person, visits on days between admission to another provider and discharge."""
    days = ["person", "provider", "admission_day", "length_of_stay"]
    beds = claims.loc[claims["length_of_stay"] >= 2, days]
    visits = claims.loc[claims["inpatient"] == 0, days[:3]].reset_index()
    pairs = visits.merge(beds, on="person", suffixes=("", "_bed"))
    day = pairs["admission_day"] - pairs["admission_day_bed"]
    inside = (
        (day > 0) & (day < pairs["length_of_stay"]) & (pairs["provider"] != pairs["provider_bed"])
    )
    return pairs[inside].groupby("person")["index"].nunique()


#: By the name of their contract; a source is called ``market_`` and the name.
TABLES = {"insured": insured, "members": members, "claimants": claimants, "care": care}
