"""Fraud planted into insurers' claims, and what comes of it at the fund.

The record against which most of it can be seen lies elsewhere: at the fund, which settled the
true invoice, knows the person's conditions and the days in hospital, or at other insurers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.market.assumptions import (
    CHAPTER_OF,
    CONDITIONS,
    PRODUCTS,
    REIMBURSING,
    TYPOLOGIES,
    Fraud,
    InsurerAssumptions,
    Product,
)
from lab.market.care import DECLINED, ITEMS, PAID, Rows, charge, due, join, take
from lab.market.fraud_at_providers import (
    At,
    Scene,
    case_of_each_provider,
    excess,
    free,
    mark,
    times,
    upcode,
)
from lab.market.population import DAYS, Bools, Ints

GROUP, CITY, HIGH, CASH = (
    PRODUCTS.index(name)
    for name in ("group_medical", "city_supplement", "high_deductible", "hospital_cash")
)
#: Concealed conditions by product: where claims are few, fraud is not half of them.
CONCEALED = {HIGH: 0.15, CASH: 0.85}
#: How often, at most, a stay is billed anew until enough of it is left for a claim.
ROUNDS = 30
#: A ring works for so many days at one provider.
RING_DAYS = 45
#: So long before inception, at least, a condition that is concealed was on record.
KNOWN_FOR = 30


def by_claimants(
    s: Scene, insurers: tuple[InsurerAssumptions, ...], rows: Rows, claims: Rows
) -> tuple[Rows, Rows]:
    """All that is done to insurers; returns encounters and claims, with what was added."""
    size = np.bincount(claims["payer"], minlength=len(insurers) + 1)[1:]
    sham = [i.fraud.get("ring", 0) * n for i, n in zip(insurers, size, strict=True)]
    rings = _gatherings(s, sum(sham), s.crooked["ring"])
    clinics = _gatherings(s, s.a.noise.popular * float(size.sum()), _first_level(s), honest=True)
    visits, filings = [rows], [claims]
    for k, insurer in enumerate(insurers):
        stays, honest, frauds = _at_insurer(s, k, insurer, (rings, clinics), rows, claims)
        filings += [honest, *frauds]
        visits += [stays, with_card(s, rows, honest, round(s.a.noise.card * len(honest["day"])))]
    rate, total = s.a.public.fraud, int((~rows["own"]).sum())
    everything = join(filings)
    members = take(everything, everything["typology"] == TYPOLOGIES.index("ring"))
    visits.append(with_card(s, rows, members, round(rate.get("ring", 0) * total)))
    visits.append(lent_card(s, rows, claims, round(rate.get("identity_lending", 0) * total)))
    return join(visits), join(filings)


def _at_insurer(
    s: Scene,
    k: int,
    insurer: InsurerAssumptions,
    gatherings: tuple[Gatherings, Gatherings],
    rows: Rows,
    claims: Rows,
) -> tuple[Rows, Rows, list[Rows]]:
    """Every kind of fraud at one insurer; ``claims`` is altered.

    To be added are stays, claims of honest gatherings, and planted claims of each kind.
    ``gatherings``: the rings and the popular clinics of the market, which all insurers' holders go to.
    """
    rings, clinics = gatherings
    mine = (claims["payer"] == k + 1) & (claims["outcome"] != DECLINED)
    bills = mine & (claims["product"] < len(REIMBURSING))
    # The city supplement is settled from the fund's own record, which nobody can conceal from it.
    on_paper = bills & (claims["product"] != CITY)
    private = s.prov.level[claims["provider"]] == 0

    def many(kind: Fraud) -> int:
        return round(insurer.fraud.get(kind, 0) * int(mine.sum()))

    refile(s, claims, upcode(s, claims, bills & ~claims["own"], many("upcoding")))
    refile(s, claims, excess(s, claims, bills & private, many("excessive_treatment")))
    bill_apart(s, claims, on_paper, many("unbundling"))
    company, popular = (round(x * int(mine.sum())) for x in (s.a.noise.company, s.a.noise.popular))
    hosts = _gatherings(s, company, _first_level(s), honest=True)
    stays, concealments = conceal(s, rows, k, many("non_disclosure"))
    honest = [gather(s, claims, mine, hosts, company), gather(s, claims, mine, clinics, popular)]
    return (
        stays,
        join(honest),
        [
            double(s, claims, on_paper, many("double_reimbursement")),
            phantom(s, claims, mine, many("phantom_billing")),
            gather(s, claims, mine, rings, many("ring")),
            lent_policy(s, rows, claims, k, many("identity_lending")),
            concealments,
        ],
    )


def refile(s: Scene, claims: Rows, at: At) -> None:
    """Claim all that the fund left of a bill, and pay what is due on it."""
    claims["claimed"][at] = claims["billed"][at] - claims["fund"][at]
    product, days = claims["product"][at], claims["days"][at]
    paid = due(s.a, product, claims["claimed"][at], days)
    fixed_benefit = product >= len(REIMBURSING)
    claims["claimed"][at] = np.where(fixed_benefit, paid, claims["claimed"][at])
    claims["paid"][at] = paid
    claims["outcome"][at] = PAID


def double(s: Scene, claims: Rows, bills: Bools, count: int) -> Rows:
    """Double reimbursement: the fund's part is concealed, or two insurers pay the same remainder."""
    second = _second_cover(s, claims)
    twice = s.choose(bills & free(claims) & (second >= 0), count // 3)
    candidates = bills & free(claims) & (claims["fund"] > 0)
    candidates[twice] = False
    understatements = s.choose(candidates, count - 2 * len(twice))
    claims["fund"][understatements] = 0
    at = np.concatenate([twice, understatements])
    refile(s, claims, at)
    mark(claims, at, "double_reimbursement", s.cases.new(len(at)))
    copy = _under_policy(s, take(claims, twice), second[twice])
    renumber = np.flatnonzero(s.rng.random(len(twice)) < s.a.schemes.altered)
    copy["invoice"][renumber] = s.invoices.new(len(renumber))
    return copy


def _second_cover(s: Scene, claims: Rows) -> NDArray[np.int8]:
    """A product of another insurer that would pay for the same bill, -1 for none."""
    product = np.full(len(claims["person"]), -1, dtype=np.int8)
    remainder = claims["billed"] - claims["fund"]
    for k, name in enumerate(REIMBURSING):
        terms = s.a.terms[name]
        other = s.cover.in_force(k, claims["person"], claims["day"])
        other &= s.cover.insurer[k, claims["person"]] != claims["payer"] - 1
        other &= (claims["stay"] | terms.outpatient) & (remainder > terms.deductible + 100)
        other &= (k != CITY) | ~claims["own"]
        product[other] = k
    return product


def _under_policy(s: Scene, claims: Rows, product: NDArray[np.int8]) -> Rows:
    """The same claims, filed under each person's policy of this product."""
    person = claims["person"]
    claims["payer"] = s.cover.insurer[product, person] + np.int8(1)
    claims["product"] = product
    claims["policy"] = s.cover.number[product, person]
    refile(s, claims, np.arange(len(person)))
    return claims


def phantom(s: Scene, claims: Rows, mine: Bools, count: int) -> Rows:
    """Phantom billing: a visit that never was, on the paper of a provider the fund knows."""
    phantoms = take(claims, s.choose(mine & free(claims) & (claims["product"] == GROUP), count))
    size, person = len(phantoms["person"]), phantoms["person"]
    low = np.maximum(s.cover.start[GROUP, person], 0)
    high = np.minimum(s.cover.end[GROUP, person], DAYS)
    phantoms["day"] = (low + s.rng.random(size) * (high - low)).astype(np.int16)
    phantoms["own"][:] = False
    phantoms["invoice"] = s.invoices.new(size)
    everything = np.arange(size)
    provider = s.rng.choice(s.crooked["phantom_billing"], size)
    charge(s, phantoms, provider, s.between((0.8, 1.6), size), s.rng)
    phantoms["fund"][s.rng.random(size) >= s.a.schemes.forged_slip] = 0
    refile(s, phantoms, everything)
    mark(phantoms, everything, "phantom_billing", case_of_each_provider(s, phantoms, everything))
    return phantoms


def bill_apart(s: Scene, claims: Rows, bills: Bools, count: int) -> None:
    """Unbundling: the insurer gets part of a stay as an invoice that the fund never saw."""
    long = claims["stay"] & ~claims["own"] & (claims["days"] >= 2)
    at = s.choose(bills & free(claims) & long, count)
    inside = claims["day"][at] + s.rng.integers(0, claims["days"][at])
    claims["day"][at] = np.minimum(inside, DAYS - 1)
    claims["days"][at] = np.maximum(claims["days"][at] // 2, 1)
    times(s, claims, at, dict.fromkeys(ITEMS, s.between((0.4, 0.9), len(at))))
    claims["invoice"][at], claims["fund"][at] = s.invoices.new(len(at)), 0
    refile(s, claims, at)
    mark(claims, at, "unbundling", s.cases.new(len(at)))


@dataclass(frozen=True)
class Gatherings:
    """Where patients are brought together, from which day, and the case; 0 for honest reasons."""

    provider: NDArray[np.int64]
    begin: NDArray[np.int64]
    case: NDArray[np.int64]


def _gatherings(s: Scene, claims: float, places: Ints, honest: bool = False) -> Gatherings:
    """As many gatherings as this number of claims calls for, each at one of these providers."""
    each = np.mean(s.a.schemes.ring_patients) * np.mean(s.a.schemes.ring_visits)
    count = max(1, round(claims / each))
    cases = np.zeros(count, dtype=np.int64) if honest else s.cases.new(count)
    begin = s.rng.integers(0, DAYS - RING_DAYS, count)
    return Gatherings(s.rng.choice(places, count), begin, cases)


def _first_level(s: Scene) -> NDArray[np.int64]:
    return np.arange(*s.prov.of_level(1))


def gather(s: Scene, claims: Rows, mine: Bools, where: Gatherings, count: int) -> Rows:
    """Holders of group policies who come to one provider again and again for some weeks.

    A ring spreads over payers, so that each has a few of its patients. Honest gatherings look like
    rings to an insurer: most belong to it alone (an employer has a physiotherapist in), some are
    of all insurers (a clinic is popular).
    """
    low, high = s.a.schemes.ring_visits
    visits = mine & free(claims) & (claims["product"] == GROUP) & ~claims["stay"]
    patient_count = round(2 * count / (low + high))
    patients = s.choose(visits, 4 * patient_count)
    which = s.rng.integers(0, len(where.case), len(patients))
    begin, person = where.begin[which], claims["person"][patients]
    in_force = s.cover.in_force(GROUP, person, begin)
    in_force &= s.cover.in_force(GROUP, person, begin + RING_DAYS)
    come = np.flatnonzero(in_force)[:patient_count]
    patients, which = patients[come], which[come]
    visits = s.rng.integers(low, high + 1, len(patients))
    filings, which = take(claims, np.repeat(patients, visits)), np.repeat(which, visits)
    size = len(which)
    everything = np.arange(size)
    filings["day"] = (where.begin[which] + s.rng.integers(0, RING_DAYS, size)).astype(np.int16)
    filings["invoice"] = s.invoices.new(size)
    filings["own"][:] = True
    charge(s, filings, where.provider[which], s.between((0.8, 1.3), size), s.rng)
    refile(s, filings, everything)
    if where.case.any():
        mark(filings, everything, "ring", where.case[which])
    return filings


def with_card(s: Scene, rows: Rows, members: Rows, count: int) -> Rows:
    """Members of a gathering show the fund's card there for other visits of the same weeks."""
    members = take(members, s.rng.permutation(len(members["person"])))
    size = len(members["person"])
    again = np.resize(np.arange(size), count if size else 0)
    visits = take(rows, s.choose(_visits_of_the_fund(s, rows), len(again)))
    again = again[: len(visits["person"])]
    visits["person"] = members["person"][again]
    charge(s, visits, members["provider"][again], s.between((0.8, 1.3), len(again)), s.rng)
    day = members["day"][again] + s.rng.integers(-10, 11, len(again))
    visits["day"] = np.clip(day, 0, DAYS - 1).astype(np.int16)
    visits["invoice"] = s.invoices.new(len(again))
    if members["scheme"].any():
        mark(visits, slice(None), "ring", members["scheme"][again])
    return visits


def _visits_of_the_fund(s: Scene, rows: Rows) -> Bools:
    """Honest outpatient visits, such as anybody could make."""
    of_anybody = rows["chapter"] != s.a.chapters.code.index("O")
    return np.asarray(~rows["own"] & ~rows["stay"] & free(rows) & of_anybody)


def conceal(s: Scene, rows: Rows, k: int, count: int) -> tuple[Rows, Rows]:
    """Non-disclosure: a condition on the fund's record is concealed, and soon claimed for.

    The stay is a true one and the fund settles it; the claim under the policy is the fraud.
    """
    stays, claims = [], []
    for product, share in CONCEALED.items():
        candidates = _could_conceal(s, product, k)
        person, condition = (part[: round(count * share)] for part in candidates)
        stay = take(rows, _stays_for(s, rows, condition, PRODUCTS[product]))
        size = len(person)
        stay["person"], stay["invoice"] = person.astype(np.int32), s.invoices.new(size)
        charge(s, stay, stay["provider"], s.between((0.9, 1.1), size), s.rng)
        stay["reason"] = condition.astype(np.int8)
        stay["chapter"] = np.array([s.a.chapters.code.index(CHAPTER_OF[c]) for c in CONDITIONS])[
            condition
        ].astype(np.int8)
        early = s.rng.integers(*s.a.schemes.early, size)
        day = s.cover.start[product, person] + early
        stay["day"] = np.clip(day, 0, DAYS - 1).astype(np.int16)
        in_force = s.cover.in_force(product, person, stay["day"])
        s.cover.declared[product, person[in_force]] &= ~(1 << condition[in_force]).astype(np.int8)
        stay = take(stay, in_force)
        size = int(in_force.sum())
        _worth_claiming(s, stay, product)
        stays.append(stay)
        claim = take(stay, np.arange(size)) | _blank(size)
        claim = _under_policy(s, claim, np.full(size, product, dtype=np.int8))
        mark(claim, slice(None), "non_disclosure", s.cases.new(size))
        claims.append(claim)
    return join(stays), join(claims)


def _blank(size: int) -> Rows:
    """The columns that a claim has and an encounter lacks."""
    amounts = {name: np.zeros(size, dtype=np.int32) for name in ("claimed", "paid")}
    return amounts | {"outcome": np.zeros(size, dtype=np.int8)}


def _worth_claiming(s: Scene, stays: Rows, product: int) -> None:
    """Bill a little more, and settle with the fund anew, until enough is left above the deductible."""
    least = s.a.terms[PRODUCTS[product]].deductible + 100
    for _ in range(ROUNDS):
        short = np.flatnonzero(stays["billed"] - stays["fund"] <= least)
        if len(short) and least > 100:
            times(s, stays, short, dict.fromkeys(ITEMS, s.between((1.0, 1.15), len(short))))


def _could_conceal(s: Scene, product: int, k: int) -> tuple[At, At]:
    """(person, condition) of holders whose condition was on record well before inception."""
    start = s.cover.start[product]
    holder = s.cover.insurer[product] == k
    holder &= (start > -s.a.schemes.early[0]) & (start < DAYS - s.a.schemes.early[1])
    condition, person = np.nonzero(holder & (s.pop.first_day < start - KNOWN_FOR))
    order = s.rng.permutation(len(person))
    condition, person = condition[order], person[order]
    once = np.sort(np.unique(person, return_index=True)[1])
    return person[once], condition[once]


def _stays_for(s: Scene, rows: Rows, condition: At, product: Product) -> At:
    """For each condition an honest stay to copy, if possible one that is worth a claim."""
    at = np.zeros(len(condition), dtype=np.intp)
    honest = rows["stay"] & ~rows["own"] & free(rows)
    worth = honest & (rows["billed"] - rows["fund"] > s.a.terms[product].deductible)
    for c in range(len(CONDITIONS)):
        place = condition == c
        for among in (worth & (rows["reason"] == c), worth, honest):
            if among.any():
                at[place] = s.rng.choice(np.flatnonzero(among), int(place.sum()))
                break
    return at


def lent_policy(s: Scene, rows: Rows, claims: Rows, k: int, count: int) -> Rows:
    """Identity lending: another is treated on a policy whose holder lies in hospital elsewhere."""
    mine = claims["payer"] == k + 1
    in_bed = ~rows["own"] & rows["stay"] & (rows["days"] >= 3)
    in_bed &= (s.cover.insurer[GROUP, rows["person"]] == k) & ~np.isin(
        rows["invoice"], claims["invoice"][mine]
    )
    in_bed &= s.cover.in_force(GROUP, rows["person"], rows["day"] + np.int16(1))
    holder = take(rows, s.choose(in_bed, count))
    alike = mine & free(claims) & claims["own"] & (claims["product"] == GROUP)
    like = s.choose(alike, len(holder["person"]))
    filings, holder = take(claims, like), take(holder, np.arange(len(like)))
    size = len(like)
    inside = s.rng.integers(1, holder["days"])
    filings["day"] = np.minimum(holder["day"] + inside, DAYS - 1).astype(np.int16)
    filings["person"], filings["invoice"] = holder["person"], s.invoices.new(size)
    charge(
        s, filings, s.rng.integers(0, len(s.prov.level), size), s.between((0.8, 1.3), size), s.rng
    )
    filings = _under_policy(s, filings, np.full(size, GROUP, dtype=np.int8))
    mark(filings, slice(None), "identity_lending", s.cases.new(size))
    return filings


def lent_card(s: Scene, rows: Rows, claims: Rows, count: int) -> Rows:
    """The same with the fund's card, whose holder lies in a bed or is in another city on own account."""
    outside = s.prov.district[claims["provider"]] < 0
    in_bed = claims["stay"] & (claims["days"] >= 3)
    away = claims["own"] & free(claims) & (in_bed | outside)
    holder = take(claims, s.choose(away, count))
    visits = take(rows, s.choose(_visits_of_the_fund(s, rows), len(holder["person"])))
    size = len(visits["person"])
    holder = take(holder, np.arange(size))
    inside = np.where(holder["days"] >= 3, s.rng.integers(1, np.maximum(holder["days"], 2)), 0)
    visits["day"] = np.minimum(holder["day"] + inside, DAYS - 1).astype(np.int16)
    visits["person"], visits["invoice"] = holder["person"], s.invoices.new(size)
    first, last = s.prov.of_level(1)[0], s.prov.of_level(3)[1]
    charge(s, visits, s.rng.integers(first, last, size), s.between((0.8, 1.3), size), s.rng)
    mark(visits, slice(None), "identity_lending", s.cases.new(size))
    return visits
