"""Red flags: one plain rule for each kind of fraud, a number for each claim, high is suspect.

The rules are the same for one party and for all of them; what differs is what can be view. They
are yardsticks for federated detectors, and :func:`compare` pools what no party may pool.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.market.assumptions import CHAPTER_OF, CONDITIONS
from lab.sums import Floats
from lab.tables.market_folder import payers, pool

#: Of these covers, and of the public insurer's, every payment is for the bill.
AGREED_SUMS = ("critical_illness", "hospital_cash")
PUBLIC = "public"
INSURERS = "insurers"
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
    absent = ~claims["invoice"].isin(fund["invoice"])
    for off in (-1, 0, 1):
        absent &= ~_visit(claims, off).isin(_visit(fund, 0))
    absent &= claims["provider"].isin(fund["provider"])
    return _numbers(absent * (1 + (claims["fund_paid"] > 0)))


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
    """Drugs and examinations for each yuan of treatment, beside the same group elsewhere.

    Logarithms: five times the provider's mean, drawn towards 0, and the claim's own.
    """
    amount = np.log(claims["drug_cost"] + claims["examination_cost"] + 1.0)
    amount -= np.log(claims["treatment_cost"] + claims["consumable_cost"] + 1.0)
    alike = [claims["drg"], claims["inpatient"], claims["provider_level"].fillna(0)]
    above = amount - amount.groupby(alike, observed=True).transform("median")
    of_provider = above.groupby(claims["provider"])
    mean = of_provider.transform("sum") / (of_provider.transform("size") + PRIOR)
    return _numbers(5 * mean + above)


def claimants_in_company(claims: pd.DataFrame) -> Floats:
    """How many come to this provider again and again in the same weeks, times their insurers.

    Counted are visits that no fund has paid for. Other visits there of the same persons, in the
    same weeks, have the number too; whoever does not come again has 0.
    """
    unfunded = claims[(claims["payer"] != PUBLIC) & (claims["fund_paid"] == 0)]
    unfunded = unfunded[unfunded["inpatient"] == 0].sort_values("admission_day", kind="stable")
    same = unfunded.groupby(["person", "provider"])["admission_day"]
    returns = unfunded[(same.diff() <= AROUND) | (-same.diff(-1) <= AROUND)]
    score = pd.Series(0.0, index=claims.index)
    for _, visits in returns.groupby("provider"):
        day, person = visits["admission_day"].to_numpy(), visits["person"].to_numpy()
        payer = visits["payer"].cat.codes.to_numpy()
        near = np.abs(day[:, None] - day) <= AROUND
        here = [len(np.unique(person[row])) * len(np.unique(payer[row])) for row in near]
        score.loc[visits.index] = np.array(here, dtype=float)
    place = ["person", "provider", "admission_day"]
    company = returns[place].assign(score=score[returns.index])
    pairs = claims[place].reset_index().merge(company, on=place[:2], suffixes=("", "_company"))
    near = (pairs["admission_day"] - pairs["admission_day_company"]).abs() <= AROUND
    return _numbers(pairs[near].groupby("index")["score"].max().reindex(claims.index, fill_value=0))


def known_before_inception(
    claims: pd.DataFrame, policies: pd.DataFrame, conditions: pd.DataFrame
) -> Floats:
    """Whether a claim is for a condition that was on record before inception and not declared.

    1 and, the earlier after inception, up to 1 more; without ``conditions`` the latter alone,
    where the product asks.
    """
    diagnoses = claims[["policy", "person", "icd_chapter"]].reset_index()
    terms = policies.drop(columns=["person", "product"])
    records = diagnoses.merge(terms, on="policy").merge(conditions, on="person")
    chapter = records["condition"].astype("str").map(CHAPTER_OF)
    declaration = pd.Series(0.0, index=records.index)
    for name in CONDITIONS:
        declaration = declaration.where(records["condition"] != name, records[f"declared_{name}"])
    before = records["first_day"] < records["inception_day"]
    concealments = records[
        before & (chapter == records["icd_chapter"].astype("str")) & (declaration == 0)
    ]
    early = np.exp(-claims["days_since_inception"] / 365).where(
        claims["declared_conditions"].notna()
    )
    return _numbers(claims.index.isin(concealments["index"]) + early.fillna(0))


def in_two_places(claims: pd.DataFrame, register: pd.DataFrame) -> Floats:
    """Whether the person was elsewhere: in another provider's bed that day, or in another city.

    A bed counts on the days between admission and discharge; ``register`` tells which providers
    are outside the city.
    """
    outside = register.loc[register["district"].isna(), "provider"]
    away = claims[["person", "provider"]].copy()
    away["first"] = claims["admission_day"] + claims["inpatient"]
    away["last"] = claims["admission_day"] + claims["length_of_stay"] - 1
    abroad = away["provider"].isin(outside)
    away["first"] -= claims["inpatient"].where(abroad, 0)
    away["last"] = away["last"].where(~abroad, np.maximum(away["first"], away["last"]))
    away = away[away["first"] <= away["last"]]
    visits = claims[["person", "provider", "admission_day"]].reset_index()
    pairs = visits.merge(away, on="person", suffixes=("", "_away"))
    there = pairs["admission_day"].between(pairs["first"], pairs["last"])
    elsewhere = pairs.loc[there & (pairs["provider"] != pairs["provider_away"]), "index"]
    return _numbers(pd.Series(claims.index.isin(elsewhere), index=claims.index))


def _numbers(values: pd.Series) -> Floats:
    return values.to_numpy(dtype=np.float64)


@dataclass(frozen=True)
class PartyClaims:
    """What somebody sees: tables under the contracts of the market, any of them without rows."""

    claims: pd.DataFrame
    policies: pd.DataFrame
    conditions: pd.DataFrame
    register: pd.DataFrame


FLAGS: dict[str, Callable[[PartyClaims], Floats]] = {
    "double_reimbursement": lambda view: invoice_paid_twice(view.claims),
    "phantom_billing": lambda view: fund_knows_nothing(view.claims),
    "upcoding": lambda view: (
        coded_higher_than_elsewhere(view.claims) + graver_than_its_days(view.claims)
    ),
    "unbundling": lambda view: stay_billed_apart(view.claims),
    "excessive_treatment": lambda view: provider_in_excess(view.claims),
    "ring": lambda view: claimants_in_company(view.claims),
    "non_disclosure": lambda view: known_before_inception(
        view.claims, view.policies, view.conditions
    ),
    "identity_lending": lambda view: in_two_places(view.claims, view.register),
}


def compare(folder: Path) -> pd.DataFrame:
    """What joining shows: each red flag from a party's own tables, and from all of them.

    A row for each typology and party: ``frauds``, how many of its claims are such fraud; ``alone``
    and ``together``, the average precision of the flag among these and its honest claims. What
    chance would score is ``base``. Party ``insurers`` is each insurer for itself, counted
    together. No row where a party has no such claims: there it sees nothing of them at all.
    """
    claims = pool(folder)
    parties = payers(folder)
    whole = _view(folder, claims, parties)
    together = {kind: flag(whole) for kind, flag in FLAGS.items()}
    alone = {kind: np.zeros(len(claims)) for kind in FLAGS}
    for payer in parties:
        at = (claims["payer"] == payer).to_numpy()
        view = _view(folder, claims[at].reset_index(drop=True), [payer])
        for kind, flag in FLAGS.items():
            alone[kind][at] = flag(view)
    public = (claims["payer"] == PUBLIC).to_numpy()
    masks = {PUBLIC: public, INSURERS: ~public}
    masks |= {payer: (claims["payer"] == payer).to_numpy() for payer in parties[1:]}
    rows = []
    for kind in FLAGS:
        fraud = (claims["typology"] == kind).to_numpy()
        comparable = fraud | (claims["typology"] == "none").to_numpy()
        for party, mask in masks.items():
            at = comparable & mask
            if fraud[at].any():
                scores = (_precision(fraud[at], s[kind][at]) for s in (alone, together))
                rows.append((kind, party, int(fraud[at].sum()), fraud[at].mean(), *scores))
    names = ["typology", "party", "frauds", "base", "alone", "together"]
    return pd.DataFrame(rows, columns=names)


def _view(folder: Path, claims: pd.DataFrame, parties: list[str]) -> PartyClaims:
    """What these payers have in their files, and the register, which is public."""
    conditions = pd.read_parquet(folder / PUBLIC / "conditions.parquet")
    policies = pd.read_parquet(folder / "insurer-1" / "policies.parquet")[:0]
    homes = [folder / payer for payer in parties if payer != PUBLIC]
    if homes:
        policies = pd.concat([pd.read_parquet(home / "policies.parquet") for home in homes])
    register = pd.read_parquet(folder / "register" / "providers.parquet")
    return PartyClaims(
        claims, policies, conditions if PUBLIC in parties else conditions[:0], register
    )


def _precision(fraud: NDArray[np.bool_], score: Floats) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(fraud, score))
