"""What a claims department has before it at settlement: a row for each claim, from its own files.

A party sees its own claims only: when this person last claimed here, from how many providers,
what a case of this group costs here. Categories are places in the levels of their contract;
what is missing is -1.
"""

from __future__ import annotations

import numpy as np

from lab.market.assumptions import CONDITIONS, PRODUCTS, Assumptions
from lab.market.care import Rows
from lab.market.population import YEAR, Bools, Ints, Population, World
from lab.sums import Floats

COVERS = ("employee", "resident", *PRODUCTS)
MISSING = -1
FIRST_YEAR, FIRST_PROVIDER = 2021, 1001
OF_POLICIES = (
    "policy",
    "deductible",
    "sum_insured",
    "days_since_inception",
    "declared_conditions",
)
QUARTER = 90
#: Claims that a provider's mean is drawn towards the usual by.
FEW = 20
#: More days than the market has, so that a day never reaches into another group.
WIDE = 4096


def settled(w: World, rows: Rows) -> Rows:
    """The columns of one payer's claims."""
    pop, prov = w.pop, w.prov
    person, day, provider = rows["person"], rows["day"].astype(np.int32), rows["provider"]
    level, severity, chapter = prov.level[provider], rows["severity"], rows["chapter"]
    group = chapter.astype(np.int32) * 3 + severity
    billed, days, stay = rows["billed"], rows["days"], rows["stay"]
    cost = billed / _mean_of_group(billed, group * 2 + stay)
    long = np.where(stay, days / _mean_of_group(days, group * 2 + stay), np.nan)
    columns: Rows = {
        "person": person + 1,
        "provider": FIRST_PROVIDER + provider,
        "invoice": rows["invoice"],
        "admission_day": day,
        "year": FIRST_YEAR + day // YEAR,
        "age": np.minimum(pop.age[person] + day // YEAR, 103),
        "sex": pop.male[person].astype(np.int8),
        "district": pop.district[person],
        "employment": pop.employment[person],
        "income_band": pop.income[person],
        "cover": _cover_of(pop, rows),
        "provider_level": np.where(level == 0, MISSING, level),
        "near_home": (prov.district[provider] == pop.district[person]).astype(np.int8),
        "inpatient": stay.astype(np.int8),
        "icd_chapter": chapter,
        "drg": group.astype(np.int8),
        "length_of_stay": days,
        "drug_cost": rows["drugs"],
        "examination_cost": rows["examinations"],
        "treatment_cost": rows["treatment"],
        "consumable_cost": rows["consumables"],
        "billed": billed,
        "fund_paid": rows["fund"],
        "personal_payment": billed - rows["fund"],
        "claimed": rows["claimed"],
        "paid": rows["paid"],
        "outcome": rows["outcome"],
        "personal_share": 1 - rows["fund"] / billed,
        "drug_share": rows["drugs"] / billed,
        "examination_share": rows["examinations"] / billed,
        "cost_a_day": billed / np.maximum(days, 1),
        "cost_to_drg_mean": cost,
        "days_to_drg_mean": long,
        "weekday": (day + 4) % 7,
        "month": _month(day),
    }
    return columns | _policy(w, rows) | _history(rows, cost)


def _mean_of_group(values: Ints | Floats, group: Ints) -> Floats:
    """For each row the mean of its group at this payer."""
    count = np.maximum(np.bincount(group), 1)
    return np.asarray(np.maximum(np.bincount(group, values) / count, 1e-9)[group])


def _cover_of(pop: Population, rows: Rows) -> Ints:
    if "product" in rows:
        return np.asarray(rows["product"] + COVERS.index(PRODUCTS[0]), dtype=np.int8)
    return np.where(pop.employee[rows["person"]], 0, 1).astype(np.int8)


def _month(day: Ints) -> Ints:
    calendar = np.datetime64(f"{FIRST_YEAR}-01-01") + np.arange(int(day.max()) + 1)
    months = calendar.astype("datetime64[M]").astype(np.int64) % 12 + 1
    return np.asarray(months[day], dtype=np.int8)


def _policy(w: World, rows: Rows) -> Rows:
    """What the policy says; the public insurer has none."""
    if "policy" not in rows:
        none = np.full(len(rows["person"]), MISSING)
        return dict.fromkeys(OF_POLICIES, none)
    product, person = rows["product"], rows["person"]
    terms = [w.a.terms[name] for name in PRODUCTS]
    bits = w.cover.declared[product, person]
    declarations = sum((bits >> c & 1) for c in range(len(CONDITIONS)))
    asks = np.array([t.asks for t in terms])[product]
    since = np.maximum(rows["day"] - w.cover.start[product, person], 0)
    values = (
        rows["policy"],
        np.array([t.deductible for t in terms], dtype=np.int32)[product],
        np.array([t.sum_insured for t in terms], dtype=np.int32)[product],
        since,
        np.where(asks, declarations, MISSING),
    )
    return dict(zip(OF_POLICIES, values, strict=True))


def _history(rows: Rows, cost: Floats) -> Rows:
    """What this payer knows of the person and of the provider from earlier claims."""
    person, provider, day = rows["person"], rows["provider"], rows["day"]
    order, previous, last_year = _earlier(person, day, YEAR)
    by_provider, _, busy = _earlier(provider, day, QUARTER)
    visit = person[order].astype(np.int64) * 2**20 + provider[order]
    new = np.zeros(len(order), dtype=np.int64)
    new[np.unique(visit, return_index=True)[1]] = 1
    so_far = np.cumsum(new)
    begin = np.searchsorted(person[order], person[order])
    providers = np.empty_like(so_far)
    providers[order] = so_far - so_far[begin] + 1
    return {
        "days_since_previous": previous,
        "claims_last_year": last_year,
        "providers_so_far": providers,
        "provider_claims_quarter": busy,
        "provider_cost": _mean_so_far(cost, provider, by_provider),
    }


def _mean_so_far(values: Floats, group: Ints, order: Ints) -> Floats:
    """For each row the mean of the earlier ones of its group, drawn towards 1."""
    series, key = values[order], group[order]
    total = np.cumsum(series) - series
    begin = np.searchsorted(key, key)
    mean = (total - total[begin] + FEW) / (np.arange(len(key)) - begin + FEW)
    out = np.empty_like(mean)
    out[order] = mean
    return out


def _earlier(group: Ints, day: Ints, span: int) -> tuple[Ints, Ints, Ints]:
    """The order by group and day, days since the one before, and how many in the last ``span`` days."""
    key = group.astype(np.int64) * WIDE + day + span
    order = np.argsort(key, kind="stable")
    times = key[order]
    gap = np.diff(times, prepend=-WIDE)
    gap[np.diff(group[order], prepend=-1) != 0] = MISSING
    place = np.arange(len(order))
    within = np.maximum(
        np.searchsorted(times, times - span), np.searchsorted(times, times // WIDE * WIDE)
    )
    previous, count = np.empty_like(gap), np.empty_like(place)
    previous[order], count[order] = gap, place - within
    return order, previous, count


def investigation(
    a: Assumptions, rate: float, oddness: Rows, fraud: Bools, rng: np.random.Generator
) -> tuple[Bools, Bools]:
    """(investigated, confirmed): odd claims are looked into more often, and not all fraud is proved.

    ``oddness``: columns ``cost`` and ``provider`` in standard deviations, ``early`` 0 or 1.
    """
    weights = {"cost": a.investigation.cost, "provider": a.investigation.provider}
    weights["early"] = a.investigation.early
    odds = np.exp(sum(weight * oddness[name] for name, weight in weights.items()))
    odds = np.minimum(odds, np.quantile(odds, 0.999))
    inquiry = rng.random(len(fraud)) < rate * odds / odds.mean()
    inquiry |= fraud & (rng.random(len(fraud)) < a.investigation.tip_off)
    chance = np.where(fraud, a.investigation.proved, a.investigation.wrongly)
    return inquiry, inquiry & (rng.random(len(fraud)) < chance)
