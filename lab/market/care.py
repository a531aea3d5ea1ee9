"""Visits and stays of the simulated market, what they cost, and who honestly pays for them.

Tables are columns by name, all equally long. The fund settles an encounter first; commercial
policies then reimburse what it has left of the same invoice, one product after the other, so that
no bill is honestly paid twice. Some visits the fund never hears of: private clinics, travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.market.assumptions import (
    CHAPTER_OF,
    CONDITIONS,
    LEVELS,
    PRODUCTS,
    REIMBURSING,
    Assumptions,
)
from lab.market.population import (
    DAYS,
    RETIRED,
    YEAR,
    YEARS,
    Bools,
    Cover,
    Ints,
    Population,
    World,
    pick,
)
from lab.sums import Floats

Rows = dict[str, NDArray[Any]]

ITEMS = ("drugs", "examinations", "treatment", "consumables")
OUTCOMES = ("paid", "reduced", "declined")
PAID, REDUCED, DECLINED = range(3)
#: The smallest bill in yuan, large enough to be divided, and the largest.
LEAST, DEAREST = 40, 3_000_000
#: A visit for no chronic condition.
ACUTE = -1
#: Of those told that a condition is excluded, how many claim for it all the same.
CLAIM_THE_EXCLUDED = 0.2
#: Conditions that a critical illness policy pays for.
CRITICAL = [CONDITIONS.index(name) for name in ("heart_disease", "cancer", "kidney_disease")]


class Numbers:
    """Hands out numbers that are not in use yet."""

    def __init__(self) -> None:
        self._next = 1

    def new(self, count: int) -> NDArray[np.int64]:
        first, self._next = self._next, self._next + count
        return np.arange(first, self._next)

    def shuffled(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """What each number so far becomes, so that none tells when it was handed out."""
        return np.append(0, 1 + rng.permutation(self._next - 1))


def take(rows: Rows, at: Ints | Bools) -> Rows:
    """A copy of some rows: by position or by mask."""
    return {name: column[at] for name, column in rows.items()}


def join(parts: Sequence[Rows]) -> Rows:
    """Rows one after the other; a table without columns has no rows."""
    parts = [part for part in parts if part]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def encounters(w: World, invoices: Numbers, rng: np.random.Generator) -> Rows:
    """Every honest visit and stay of three years. ``own``: on own account, unknown to the fund."""
    usual = rng.random((3, w.pop.size))
    years = []
    for year in range(YEARS):
        rows = _visits(w.a, w.pop, year, rng)
        _go_somewhere(w, usual, rows, rng)
        _on_own_account(w, rows, rng)
        _stay_for_days(w.a, rows, rng)
        rows = join([rows, _transfers(w, rows, rng)])
        _cost(w, rows, rng)
        rows["fund"] = funded(w, rows, rng)
        years.append(rows)
    rows = join(years)
    size = len(rows["person"])
    rows["invoice"] = invoices.new(size)
    rows["typology"] = np.zeros(size, dtype=np.int8)
    rows["scheme"] = np.zeros(size, dtype=np.int32)
    return rows


def _visits(a: Assumptions, pop: Population, year: int, rng: np.random.Generator) -> Rows:
    """Who seeks care on which day, and what for."""
    age = pop.age + year
    ill = pop.first_day < year * YEAR + YEAR // 2
    burden = ill.sum(axis=0).astype(np.int8)

    def counts(lean: Floats, each: float, a_month: float) -> Ints:
        weight = lean * pop.frailty * (1 + each * burden)
        return np.asarray(rng.poisson(weight / weight.mean() * 12 * a_month / 1000))

    out = counts(
        a.use.outpatient.at(age), a.use.conditions, a.visits.institutions * a.kept.outpatient
    )
    stays = counts(a.use.inpatient.at(age), a.use.conditions_stays, a.visits.hospitalised)
    everyone = np.arange(pop.size, dtype=np.int32)
    person = np.concatenate([np.repeat(everyone, out), np.repeat(everyone, stays)])
    size = len(person)
    burden = burden[person]
    reason = _reason(a, ill, person, burden, rng)
    quantile = rng.random(size) ** (1 / (1 + a.severity.conditions * burden))
    return {
        "person": person,
        "stay": np.arange(size) >= out.sum(),
        "day": (year * YEAR + rng.integers(0, YEAR, size)).astype(np.int16),
        "reason": reason,
        "chapter": _chapter(a, pop, age, person, reason, rng),
        "severity": pick(a.severity.share, quantile),
    }


def _reason(
    a: Assumptions, ill: Bools, person: Ints, burden: Ints, rng: np.random.Generator
) -> NDArray[np.int8]:
    """The condition that a visit is for: any one that the person has, or none."""
    which = (rng.random(len(person)) * burden).astype(np.int8)
    chronic = np.flatnonzero((burden > 0) & (rng.random(len(person)) < a.use.for_a_condition))
    who, which = person[chronic], which[chronic]
    so_far = np.cumsum(ill, axis=0, dtype=np.int8)
    condition = np.zeros(len(chronic), dtype=np.int8)
    for rank in np.asarray(so_far[:, who]):
        condition += rank <= which
    reason = np.full(len(person), ACUTE, dtype=np.int8)
    reason[chronic] = condition
    return reason


def _chapter(
    a: Assumptions,
    pop: Population,
    age: Ints,
    person: Ints,
    reason: Ints,
    rng: np.random.Generator,
) -> NDArray[np.int8]:
    code = list(a.chapters.code)
    chapter = pick(a.chapters.share, rng.random(len(person)))
    expecting = ~pop.male[person] & (age[person] >= 18) & (age[person] < 46)
    chapter[(chapter == code.index("O")) & ~expecting] = code.index("R")
    of_condition = np.array([code.index(CHAPTER_OF[name]) for name in CONDITIONS], dtype=np.int8)
    return np.where(reason >= 0, of_condition[reason], chapter)


def _go_somewhere(w: World, usual: Floats, rows: Rows, rng: np.random.Generator) -> None:
    """A provider for each encounter: mostly the usual one of its level, often in the district."""
    a, prov = w.a, w.prov
    person, stay = rows["person"], rows["stay"]
    size, primary = len(person), a.visits.primary / a.visits.institutions
    secondary = (1 - primary) * a.use.secondary
    level = pick([primary, secondary, 1 - primary - secondary], rng.random(size))
    level[stay] = pick(a.use.stays, rng.random(int(stay.sum())))
    as_usual = rng.random(size) < a.providers.usual
    u = np.where(as_usual, usual[level, person], rng.random(size))
    provider = np.empty(size, dtype=np.int32)
    for k in range(3):
        first, last = prov.of_level(k + 1)
        at = level == k
        provider[at] = first + u[at] * (last - first)
        if k < 2:  # there is a usual one in every district
            at &= as_usual
            home = w.pop.district[person[at]]
            provider[at] = prov.start[k, home] + u[at] * prov.count[k, home]
    rows["provider"] = provider


def _on_own_account(w: World, rows: Rows, rng: np.random.Generator) -> None:
    """Some visits of policyholders bypass the fund, most of them to providers it does not know."""
    products = [k for k, name in enumerate(PRODUCTS) if name != "city_supplement"]
    holder = np.asarray((w.cover.insurer[products] >= 0).any(axis=0))
    size = len(rows["person"])
    own = holder[rows["person"]] & (rng.random(size) < w.a.own_account.share)
    away = np.flatnonzero(own)
    away = away[rng.random(len(away)) >= w.a.own_account.in_the_city]
    rows["provider"][away] = rng.integers(*w.prov.of_level(0), len(away))
    rows["own"] = own


def _stay_for_days(a: Assumptions, rows: Rows, rng: np.random.Generator) -> None:
    """Length of stay, 0 for outpatients: one day and a negative binomial number of others."""
    at = np.flatnonzero(rows["stay"])
    severity, chapter = rows["severity"][at], rows["chapter"][at]
    factor = np.array(a.severity.days)[severity] * np.array(a.chapters.days)[chapter]
    mean = np.maximum(a.stay.days * factor / factor.mean() - 1, 0.2)
    days = np.zeros(len(rows["person"]), dtype=np.int16)
    days[at] = 1 + rng.poisson(rng.gamma(2.0, mean / 2))
    rows["days"] = days
    # Honest, and looks like two places at once: while somebody lies in hospital, drugs are bought
    # outside, or relatives fetch the usual ones with the card.
    lying = np.full(int(rows["person"].max()) + 1, -1)
    lying[rows["person"][at]] = at
    chance = np.where(rows["own"], a.own_account.during_a_stay, a.use.fetched)
    chance[rows["stay"] | (~rows["own"] & (rows["reason"] == ACUTE))] = 0
    errands = np.flatnonzero(rng.random(len(chance)) < chance)
    errands = errands[lying[rows["person"][errands]] >= 0]
    bed = lying[rows["person"][errands]]
    day = rows["day"][bed] + rng.integers(0, days[bed] + 1)
    rows["day"][errands] = np.minimum(day, DAYS - 1)


def _transfers(w: World, rows: Rows, rng: np.random.Generator) -> Rows:
    """Stays that go on from the day of discharge: in a hospital of the third level, or in the same.

    The latter, in another department, look like one stay billed as two.
    """
    at = np.flatnonzero(rows["stay"] & ~rows["own"])
    at = at[rng.random(len(at)) < w.a.use.transfers]
    transfers = take(rows, at)
    transfers["day"] = np.minimum(transfers["day"] + transfers["days"], DAYS - 1)
    other = rng.random(len(at)) >= w.a.use.same_hospital
    transfers["provider"][other] = rng.integers(*w.prov.of_level(3), int(other.sum()))
    return transfers


def _cost(w: World, rows: Rows, rng: np.random.Generator) -> None:
    """Bills in whole yuan; the mean of each level is the assumed one, the tail is heavy."""
    a, size = w.a, len(rows["stay"])
    factor = np.array(a.chapters.cost)[rows["chapter"]]
    factor *= np.array(a.severity.cost)[rows["severity"]]
    factor *= np.maximum(rows["days"], 1) ** a.spread.days
    factor *= np.exp(w.prov.style[rows["provider"]])
    kind, mean = _kind(w, rows["stay"], rows["provider"]), _means(a)
    usual = np.bincount(kind, factor, 2 * len(LEVELS)) / np.maximum(
        np.bincount(kind, minlength=2 * len(LEVELS)), 1
    )
    sigma = np.where(rng.random(size) < a.spread.heavy_share, a.spread.heavy, a.spread.bills)
    noise = np.exp(sigma * rng.standard_normal(size) - sigma**2 / 2)
    billed = np.maximum(mean[kind] * factor / usual[kind] * noise, LEAST)
    rows["billed"] = np.minimum(billed, DEAREST).astype(np.int32)
    _itemise(w, rows, rng)


def _kind(w: World, stay: Bools, provider: Ints) -> Ints:
    """Places of outpatient visits, then stays, at each level, in :func:`_means`."""
    return np.asarray(stay * len(LEVELS) + w.prov.level[provider])


def _means(a: Assumptions) -> Floats:
    return np.array([table[x].mean for table in (a.outpatient_yuan, a.stay_yuan) for x in LEVELS])


def _itemise(w: World, rows: Rows, rng: np.random.Generator) -> None:
    """The four items of each bill; providers differ in their liking for drugs."""
    a, billed, stay = w.a, rows["billed"], rows["stay"]
    share = np.where(stay, np.array(a.items.stay)[:, None], np.array(a.items.outpatient)[:, None])
    share = share * np.exp(a.spread.items * rng.standard_normal((len(ITEMS), len(stay))))
    share[0] *= np.exp(w.prov.drugs[rows["provider"]])
    share /= share.sum(axis=0)
    for k, item in enumerate(ITEMS[:-1]):
        rows[item] = (billed * share[k]).astype(np.int32)
    rows[ITEMS[-1]] = billed - rows["drugs"] - rows["examinations"] - rows["treatment"]


def charge(w: World, rows: Rows, provider: Ints, factor: Floats, rng: np.random.Generator) -> None:
    """Bill such care anew, at another provider and its level's prices, and settle it with the fund."""
    means = _means(w.a)
    before, after = (means[_kind(w, rows["stay"], p)] for p in (rows["provider"], provider))
    billed = np.clip(rows["billed"] * factor * after / before, LEAST, DEAREST)
    rows["provider"], rows["billed"] = provider.astype(np.int32), billed.astype(np.int32)
    _itemise(w, rows, rng)
    rows["fund"] = funded(w, rows, rng)


def funded(w: World, rows: Rows, rng: np.random.Generator) -> NDArray[np.int32]:
    """What the fund pays: a share of covered costs by scheme and level, nothing on own account."""
    person, f = rows["person"], w.a.fund
    scheme = np.where(w.pop.employment == RETIRED, 1, np.where(w.pop.employee, 0, 2))
    status = scheme[person]
    rates = np.array(
        [
            [f.employee_outpatient, f.employee_stay],
            [f.retired_outpatient, f.retired_stay],
            [f.resident_outpatient, f.resident_stay],
        ]
    )
    level = np.maximum(w.prov.level[rows["provider"]] - 1, 0)
    eligible = rows["billed"] * (1 - f.not_covered * rng.random(len(person)) ** 2)
    eligible -= np.where(rows["stay"], np.array(f.stay_deductible)[status], 0.0)
    rate = np.where(rows["own"], 0.0, rates[status, rows["stay"].astype(int), level])
    return np.asarray(rate * np.maximum(eligible, 0), dtype=np.int32)


def due(a: Assumptions, product: Ints, claimed: Ints, days: Ints) -> NDArray[np.int32]:
    """What each policy owes by its terms, in whole yuan; ``product`` by its place in PRODUCTS."""
    terms = [a.terms[name] for name in PRODUCTS]
    pays = np.array([t.pays for t in terms])[product]
    limit = np.array([t.sum_insured for t in terms])[product]
    over = np.maximum(claimed - np.array([t.deductible for t in terms])[product], 0)
    amount = pays * over
    cash, critical = PRODUCTS.index("hospital_cash"), PRODUCTS.index("critical_illness")
    amount = np.where(product == cash, pays * days, amount)
    amount = np.where(product == critical, limit, amount)
    return np.asarray(np.minimum(amount, limit), dtype=np.int32)


def commercial(w: World, rows: Rows, invoices: Numbers, rng: np.random.Generator) -> Rows:
    """Honest claims at all insurers. ``payer``: from 1; ``product``: place in PRODUCTS.

    A claim copies its encounter; what is ``claimed`` of a bill is what fund and other policies
    have left of it.
    """
    remainder = rows["billed"] - rows["fund"]
    filings = []
    for k, name in enumerate(PRODUCTS):
        at = _claimable(w, k, rows, remainder, rng)
        claims = take(rows, at)
        person = claims["person"]
        product = np.full(len(at), k, dtype=np.int8)
        paid = due(w.a, product, remainder[at], claims["days"])
        claimed = remainder[at] if name in REIMBURSING else paid.copy()
        exclusion = _excluded(k, w.cover, claims)
        paid[exclusion] = 0
        if name in REIMBURSING:
            remainder[at] -= paid
        filings.append(
            claims
            | {
                "payer": w.cover.insurer[k, person] + np.int8(1),
                "product": product,
                "policy": w.cover.number[k, person],
                "claimed": claimed,
                "paid": paid,
                "outcome": np.where(exclusion, DECLINED, PAID).astype(np.int8),
            }
        )
    return _with_noise(w.a, join(filings), invoices, rng)


def _claimable(
    w: World, k: int, rows: Rows, remainder: Ints, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Positions of the encounters that a product's holders claim for."""
    name, terms, cover = PRODUCTS[k], w.a.terms[PRODUCTS[k]], w.cover
    at = np.flatnonzero(cover.insurer[k, rows["person"]] >= 0)
    some = {name: rows[name][at] for name in ("person", "day", "stay", "own", "reason")}
    may = cover.in_force(k, some["person"], some["day"]) & (rng.random(len(at)) < terms.claimed)
    may &= ~_excluded(k, cover, some) | (rng.random(len(at)) < CLAIM_THE_EXCLUDED)
    if not terms.outpatient:
        may &= some["stay"]
    if name in REIMBURSING:
        may &= remainder[at] > terms.deductible + 10
    if name == "city_supplement":
        may &= ~some["own"]
    if name == "critical_illness":  # once, and for what came after inception
        since = w.pop.first_day[some["reason"], some["person"]]
        may &= np.isin(some["reason"], CRITICAL) & (since >= cover.start[k, some["person"]])
        at = at[may]
        at = at[np.argsort(rows["day"][at], kind="stable")]
        return np.sort(at[np.unique(rows["person"][at], return_index=True)[1]])
    return at[may]


def _excluded(k: int, cover: Cover, rows: Rows) -> Bools:
    """Whether a visit is for a condition that was declared at inception."""
    declaration = cover.declared[k, rows["person"]] >> np.maximum(rows["reason"], 0) & 1
    return np.asarray((rows["reason"] >= 0) & (declaration == 1))


def _with_noise(a: Assumptions, claims: Rows, invoices: Numbers, rng: np.random.Generator) -> Rows:
    """Honest mistakes: numbers mistyped, severity recoded, days off by one."""
    size = len(claims["person"])
    wrong = np.flatnonzero(rng.random(size) < a.noise.mistyped)
    claims["invoice"][wrong] = invoices.new(len(wrong))
    again = np.flatnonzero(rng.random(size) < a.noise.recoded)
    step = rng.choice(np.array([-1, 1], dtype=np.int8), len(again))
    claims["severity"][again] = np.clip(claims["severity"][again] + step, 0, 2)
    off = np.flatnonzero(rng.random(size) < a.noise.day)
    step = rng.choice(np.array([-1, 1], dtype=np.int16), len(off))
    claims["day"][off] = np.clip(claims["day"][off] + step, 0, DAYS - 1)
    return claims


def assess(a: Assumptions, claims: Rows, rng: np.random.Generator) -> Rows:
    """What assessors do to any claim: cut some, send some back for papers, which come again."""
    size = len(claims["person"])
    cut = np.flatnonzero((rng.random(size) < a.noise.cut) & (claims["outcome"] == PAID))
    claims["paid"][cut] = claims["paid"][cut] * rng.uniform(0.5, 0.95, len(cut))
    claims["outcome"][cut] = REDUCED
    first = take(claims, np.flatnonzero(rng.random(size) < a.noise.documents))
    first["paid"][:], first["outcome"][:] = 0, DECLINED
    return join([claims, first])
