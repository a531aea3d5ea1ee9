"""Red flags: one plain rule for each kind of fraud, a number for each claim, high is suspect.

``claims`` are the claims of any parties, one table after the other, under the contract
market_claims. The rules are the same for one party and for all of them; what differs is what can
be seen. They are yardsticks for federated detectors, and pool what no party may pool.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from lab.assumptions import CHAPTER_OF, CONDITIONS
from lab.sums import Floats

#: Of these covers, and of the public insurer's, every payment is for the bill.
AGREED_SUMS = ("critical_illness", "hospital_cash")
PUBLIC = "public"
#: Days around a claim within which a ring is looked for.
AROUND = 45
#: Claims that a provider's mean is drawn towards the market's by.
PRIOR = 30.0


def invoice_paid_twice(claims: pd.DataFrame) -> Floats:
    """Share of the bill that was paid beyond the bill, over all claims with the same invoice."""
    for_the_bill = ~claims["cover"].isin(AGREED_SUMS)
    paid = claims["paid"].where(for_the_bill, 0).groupby(claims["invoice"]).transform("sum")
    bill = claims["billed"].groupby(claims["invoice"]).transform("max")
    return _numbers((paid / bill - 1).clip(lower=0).where(for_the_bill, 0))


def fund_knows_nothing(claims: pd.DataFrame) -> Floats:
    """2 where the fund is said to have paid, and 1 where it could have, but has no such visit.

    0 where the fund has the invoice, or the person at this provider a day before or after; 0
    everywhere without the public insurer's claims.
    """
    fund = claims[claims["payer"] == PUBLIC]
    missing = ~claims["invoice"].isin(fund["invoice"])
    for off in (-1, 0, 1):
        missing &= ~_visit(claims, off).isin(_visit(fund, 0))
    missing &= claims["provider"].isin(fund["provider"])
    return _numbers(missing * (1 + (claims["fund_paid"] > 0)))


def _visit(claims: pd.DataFrame, off: int) -> pd.Series:
    """A number for person, provider and day."""
    who = claims["person"].astype("int64") * 2**20 + claims["provider"].astype("int64")
    return who * 2**12 + claims["admission_day"].astype("int64") + off


def coded_higher_than_elsewhere(claims: pd.DataFrame) -> Floats:
    """Grades of severity above the lowest that any payer has for the same invoice."""
    grade = claims["drg"].astype("str").str[1:].astype(int)
    return _numbers(grade - grade.groupby(claims["invoice"]).transform("min"))


def graver_than_its_days(claims: pd.DataFrame) -> Floats:
    """Severity above that of stays as long for the same chapter: the provider's mean and its own."""
    grade = claims["drg"].astype("str").str[1:].astype(int)
    long = claims["length_of_stay"].clip(upper=20)
    alike = [claims["icd_chapter"], claims["inpatient"], long]
    above = grade - grade.groupby(alike, observed=True).transform("mean")
    above = above.where(claims["inpatient"] == 1, 0)
    stays = claims["inpatient"].groupby(claims["provider"]).transform("sum")
    mean = above.groupby(claims["provider"]).transform("sum") / (stays + PRIOR)
    return _numbers(3 * mean + above)


def stay_billed_apart(claims: pd.DataFrame) -> Floats:
    """How many other invoices there are for the same person's stay at the same provider."""
    stays = claims.loc[claims["inpatient"] == 1, ["person", "provider", "invoice"]].copy()
    stays["begin"] = claims["admission_day"]
    stays["end"] = stays["begin"] + claims["length_of_stay"]
    pairs = stays.reset_index().merge(stays, on=["person", "provider"])
    touching = (pairs["begin_x"] <= pairs["end_y"]) & (pairs["begin_y"] <= pairs["end_x"])
    other = pairs[touching & (pairs["invoice_x"] != pairs["invoice_y"])]
    return _numbers(
        other.groupby("index")["invoice_y"].nunique().reindex(claims.index, fill_value=0)
    )


def provider_in_excess(claims: pd.DataFrame) -> Floats:
    """How far a provider's drugs and examinations lie above those of the same group elsewhere.

    Logarithms: ten times the provider's mean, drawn towards 0, and the claim's own.
    """
    amount = np.log(claims["drug_cost"] + claims["examination_cost"] + 1.0)
    alike = [claims["drg"], claims["inpatient"], claims["provider_level"].fillna(0)]
    above = amount - amount.groupby(alike, observed=True).transform("median")
    of_provider = above.groupby(claims["provider"])
    mean = of_provider.transform("sum") / (of_provider.transform("size") + PRIOR)
    return _numbers(10 * mean + above)


def claimants_in_company(claims: pd.DataFrame) -> Floats:
    """How many come to this provider again and again in the same weeks, times their insurers.

    0 for a claim of somebody who does not come again. The public insurer's claims are left out.
    """
    filed = claims[claims["payer"] != PUBLIC].sort_values("admission_day", kind="stable")
    same = filed.groupby(["person", "provider"])["admission_day"]
    again = filed[(same.diff() <= AROUND) | (-same.diff(-1) <= AROUND)]
    score = pd.Series(0.0, index=claims.index)
    for _, visits in again.groupby("provider"):
        day, person = visits["admission_day"].to_numpy(), visits["person"].to_numpy()
        payer = visits["payer"].cat.codes.to_numpy()
        near = np.abs(day[:, None] - day) <= AROUND
        here = [len(np.unique(person[row])) * len(np.unique(payer[row])) for row in near]
        score.loc[visits.index] = np.array(here, dtype=float)
    return _numbers(score)


def known_before_inception(
    claims: pd.DataFrame, policies: pd.DataFrame, conditions: pd.DataFrame
) -> Floats:
    """Whether a claim is for a condition that was on record before inception and not declared.

    1 and, the earlier after inception, up to 1 more; without ``conditions`` the latter alone,
    where the product asks.
    """
    held = claims[["policy", "person", "icd_chapter"]].reset_index()
    terms = policies.drop(columns=["person", "product"])
    known = held.merge(terms, on="policy").merge(conditions, on="person")
    chapter = known["condition"].astype("str").map(CHAPTER_OF)
    told = pd.Series(0.0, index=known.index)
    for name in CONDITIONS:
        told = told.where(known["condition"] != name, known[f"declared_{name}"])
    before = known["first_day"] < known["inception_day"]
    concealed = known[before & (chapter == known["icd_chapter"].astype("str")) & (told == 0)]
    early = np.exp(-claims["days_since_inception"] / 365).where(
        claims["declared_conditions"].notna()
    )
    return _numbers(claims.index.isin(concealed["index"]) + early.fillna(0))


def in_two_places(claims: pd.DataFrame) -> Floats:
    """Whether the person lay in another provider's bed on a day well within that stay."""
    beds = claims.loc[claims["inpatient"] == 1, ["person", "provider", "admission_day"]].copy()
    beds["leaves"] = beds["admission_day"] + claims["length_of_stay"]
    visits = claims[["person", "provider", "admission_day", "inpatient"]].reset_index()
    pairs = visits.merge(beds, on="person", suffixes=("", "_bed"))
    within = (pairs["admission_day_bed"] < pairs["admission_day"]) & (
        pairs["admission_day"] < pairs["leaves"]
    )
    there = pairs[within & (pairs["provider"] != pairs["provider_bed"])]
    return _numbers(pd.Series(claims.index.isin(there["index"]), index=claims.index))


def _numbers(values: pd.Series) -> Floats:
    return values.to_numpy(dtype=np.float64)
