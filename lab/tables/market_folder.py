"""The folder of a simulated market, as others read it: who pays, all claims together, the contracts of its tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lab.errors import ConfigurationError
from lab.tables.contracts import Contract

#: Most insurers that a market may have.
MOST_INSURERS = 8


PAYERS = ("public", *(f"insurer-{k + 1}" for k in range(MOST_INSURERS)))


CONTRACTS = Path(__file__).parent / "published" / "market"


#: The public register of providers in a market's folder.
REGISTER = "register/providers.parquet"


def contract(name: str) -> Contract:
    """The contract of a table: claims, conditions, insured, members, persons, policies, providers or truth.

    ``market`` is that of :func:`pool`: the columns of claims, and ``fraud`` and ``typology``.
    """
    if name != "market":
        return Contract.read(CONTRACTS / f"{name}.toml")
    claims, truth = contract("claims"), contract("truth")
    columns = claims.columns | {key: truth.columns[key] for key in ("fraud", "typology")}
    differences = {
        "name": "market",
        "title": "Simulated market, claims of all payers in one table, with the truth about each",
        "notes": claims.notes + " Here the truth stands beside it: fraud, typology.",
        "columns": columns,
    }
    return claims.model_copy(update=differences)


def payers(folder: Path) -> list[str]:
    """The payers of a market, the public insurer first.

    Raises :class:`ConfigurationError` for a folder that is no market.
    """
    members = [payer for payer in PAYERS if (folder / payer / "claims.parquet").is_file()]
    if not (folder / "market.toml").is_file() or len(members) < 2:
        raise ConfigurationError(
            f"{folder}: not the folder of a market; make one with: lab market make FOLDER --persons 50000"
        )
    return members


def pool(folder: Path) -> pd.DataFrame:
    """Claims of all payers of a market in one table, with the truth: what no party may do.

    Columns are those of ``contract("market")``, categories have its levels. Raises
    :class:`ConfigurationError` for a folder that is no market.
    """
    tables = [folder / payer / "claims.parquet" for payer in payers(folder)]
    claims = pd.concat([pd.read_parquet(table) for table in tables], ignore_index=True)
    truth = pd.read_parquet(folder / "truth" / "claims.parquet")
    pooled = claims.merge(truth, on="claim", how="left", validate="one_to_one")
    return pooled[list(contract("market").columns)]


# One row for each person, as the two sides of a joined market know them.

#: Days of a year, the first day of the market's last year, and that year.
YEAR_DAYS, LAST_YEAR_FROM, LAST_YEAR = 365, 730, 2023


def insured(folder: Path) -> pd.DataFrame:
    """Persons with a commercial policy in the market's last year, at the insurer with which they have it
    longest: policy, exposure, claims of that year and of the years before.

    Raises :class:`ConfigurationError` for a folder that is no market.
    """
    tables = [_insured_by(folder / payer).assign(insurer=payer) for payer in payers(folder)[1:]]
    rows = pd.concat(tables, ignore_index=True).sort_values(
        ["person", "exposure_years", "insurer"], kind="stable"
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


CONDITIONS = ("hypertension", "diabetes", "heart_disease", "copd", "cancer", "kidney_disease")
