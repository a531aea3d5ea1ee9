"""Who lives in the simulated market: persons, their conditions, the providers, the policies.

Everything is an array with a place for each person (or provider), drawn at once from the
generator passed in. Days are counted from 2021-01-01; the market lasts three years.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.market.assumptions import CONDITIONS, PRODUCTS, Assumptions, InsurerAssumptions, Product
from lab.sums import Floats

Ints = NDArray[np.signedinteger[Any]]
Bools = NDArray[np.bool_]

YEARS, YEAR = 3, 365
DAYS = YEARS * YEAR
#: Later than any day of the market.
NEVER = 32_000
#: How long before the market a condition on record at its start was found, on average.
LONG_AGO = 1500.0
EMPLOYMENT = ("child", "student", "employed", "self_employed", "not_working", "retired")
CHILD, STUDENT, EMPLOYED, SELF_EMPLOYED, NOT_WORKING, RETIRED = range(6)
EMPLOYEE_SCHEME = (EMPLOYED, SELF_EMPLOYED, RETIRED)


@dataclass(frozen=True)
class Population:
    """``age`` at the start; ``first_day``[condition, person]: since when it is on record."""

    age: Ints
    male: Bools
    district: Ints
    employment: Ints
    income: Ints
    frailty: Floats
    first_day: Ints

    @property
    def size(self) -> int:
        return len(self.age)

    @property
    def employee(self) -> Bools:
        """Whether in the employees' scheme; the others are in the residents'."""
        return np.isin(self.employment, EMPLOYEE_SCHEME)


@dataclass(frozen=True)
class Providers:
    """In the order first level, second, third, private; the first two sorted by district.

    ``district`` is -1 outside the city; ``start``[level, district] is where a district's
    providers of the first or second level begin, ``count`` how many they are.
    """

    level: Ints
    district: Ints
    style: Floats
    drugs: Floats
    start: Ints
    count: Ints

    def of_level(self, level: int) -> tuple[int, int]:
        """First and one past the last provider of a level."""
        at = np.flatnonzero(self.level == level)
        return int(at[0]), int(at[-1]) + 1


@dataclass(frozen=True)
class Cover:
    """Commercial policies, [product, person]: the insurer (-1: none), days, what was declared.

    ``declared`` has a bit for each condition; ``number`` is the policy's.
    """

    insurer: Ints
    start: Ints
    end: Ints
    declared: Ints
    number: Ints

    def in_force(self, product: int, person: Ints, day: Ints) -> Bools:
        """Whether these persons are covered on these days."""
        return np.asarray(
            (self.insurer[product, person] >= 0)
            & (self.start[product, person] <= day)
            & (day < self.end[product, person])
        )


@dataclass(frozen=True)
class World:
    """Who and what there is, and the assumptions it was made from."""

    a: Assumptions
    pop: Population
    prov: Providers
    cover: Cover


def world(
    a: Assumptions, insurers: tuple[InsurerAssumptions, ...], size: int, rng: np.random.Generator
) -> World:
    """``size`` persons, their providers, and their policies with these insurers."""
    pop = people(a, size, rng)
    return World(a, pop, providers(a, size, rng), cover(a, insurers, pop, rng))


def pick(shares: Sequence[float], u: Floats) -> NDArray[np.int8]:
    """A category for each uniform number, in proportion to ``shares``."""
    edges = np.cumsum(np.asarray(shares, dtype=float))
    return np.searchsorted(edges[:-1] / edges[-1], u, side="right").astype(np.int8)


def people(a: Assumptions, size: int, rng: np.random.Generator) -> Population:
    """Persons as they are on the first day, and the days their conditions come on record."""
    age = _ages(a, size, rng)
    employment = _employment(a, age, rng.random(size))
    rank = rng.random(size)
    rank[np.isin(employment, (NOT_WORKING, RETIRED))] *= a.income.not_earning
    frailty = rng.gamma(a.frailty.shape, 1 / a.frailty.shape, size)
    return Population(
        age=age,
        male=rng.random(size) < a.sex.male,
        district=pick(list(a.districts.persons.values()), rng.random(size)),
        employment=employment,
        income=pick(a.income.bands, rank) + np.int8(1),
        frailty=frailty.astype(np.float32),
        first_day=_conditions(a, age, frailty, rng),
    )


def _ages(a: Assumptions, size: int, rng: np.random.Generator) -> NDArray[np.int16]:
    band = pick(a.age.values, rng.random(size))
    low = np.array(a.age.ages)
    width = np.append(np.diff(low), 0)
    years = low[band] + rng.random(size) * width[band]
    oldest = band == len(low) - 1
    years[oldest] += rng.exponential(a.oldest.mean_years_above_65, int(oldest.sum()))
    return np.asarray(np.minimum(years, 100), dtype=np.int16)


def _employment(a: Assumptions, age: Ints, u: Floats) -> NDArray[np.int8]:
    out = np.full(len(age), NOT_WORKING, dtype=np.int8)
    work = a.work
    out[u < work.employed + work.self_employed] = SELF_EMPLOYED
    out[u < work.employed] = EMPLOYED
    out[(age < 23) & (u >= 1 - work.student)] = STUDENT
    out[age < 18] = STUDENT
    out[age < 6] = CHILD
    out[age >= 60] = np.where(u[age >= 60] < work.retired, RETIRED, NOT_WORKING)
    return out


def _conditions(
    a: Assumptions, age: Ints, frailty: Floats, rng: np.random.Generator
) -> NDArray[np.int16]:
    """The day each condition comes on record; frail persons have more of all of them."""
    first_day = np.full((len(CONDITIONS), len(age)), NEVER, dtype=np.int16)
    for k, name in enumerate(CONDITIONS):
        share = a.prevalence[name].at(age) * a.known[name].share * frailty
        u = rng.random(len(age))
        ill = u < share
        before = rng.exponential(LONG_AGO, int(ill.sum()))
        first_day[k, ill] = -1 - np.minimum(before, 9_000).astype(np.int16)
        later = share * a.onset.a_year[name] * YEARS
        new = ~ill & (u < share + later)
        first_day[k, new] = rng.integers(0, DAYS, int(new.sum()))
    return first_day


def providers(a: Assumptions, persons: int, rng: np.random.Generator) -> Providers:
    """Where people go; every district has at least one provider of the first two levels."""
    p = a.providers
    total = max(p.fewest, round(persons / 1000 * p.a_thousand_persons))
    share = np.array(list(a.districts.persons.values()), dtype=float)
    share /= share.sum()
    districts = np.arange(len(share))
    count = np.array([np.maximum(1, np.round(total * part * share)) for part in p.level[:2]])
    count = count.astype(np.int64)
    third, private = max(4, round(total * p.level[2])), max(4, round(total * p.private))
    where = [np.repeat(districts, n) for n in count]
    where += [rng.integers(0, len(share), third), rng.integers(-1, len(share), private)]
    where[3][: private // 2] = -1
    level = np.repeat([1, 2, 3, 0], [len(part) for part in where]).astype(np.int8)
    ends = np.cumsum(count.ravel()).reshape(count.shape)
    return Providers(
        level=level,
        district=np.concatenate(where).astype(np.int8),
        style=rng.normal(0, p.style, len(level)),
        drugs=rng.normal(0, p.drugs, len(level)),
        start=ends - count,
        count=count,
    )


def cover(
    a: Assumptions,
    insurers: tuple[InsurerAssumptions, ...],
    pop: Population,
    rng: np.random.Generator,
) -> Cover:
    """Who holds which product, from whom, since when, and what was declared at inception."""
    shape = (len(PRODUCTS), pop.size)
    insurer = np.full(shape, -1, dtype=np.int8)
    start = np.zeros(shape, dtype=np.int16)
    end = np.zeros(shape, dtype=np.int16)
    declaration = np.zeros(shape, dtype=np.int8)
    for k, name in enumerate(PRODUCTS):
        holder = np.flatnonzero(rng.random(pop.size) < _wish(a, name, pop))
        insurer[k, holder] = _insurer(name, insurers, pop.age[holder], rng)
        first, last = a.terms[name].start
        start[k, holder] = rng.integers(first, last + 1, len(holder))
        if name == "city_supplement":  # everybody's starts on the first of July
            start[k, holder] = np.where(rng.random(len(holder)) < 0.9, first, last)
        years = np.minimum(rng.exponential(1 / a.policies.lapse, len(holder)), 20)
        end[k, holder] = np.minimum(start[k, holder] + YEAR + years * YEAR, DAYS)
        if a.terms[name].asks:
            for c in range(len(CONDITIONS)):
                disclosure = rng.random(len(holder)) < a.policies.declared
                before = pop.first_day[c, holder] < start[k, holder]
                declaration[k, holder] |= ((disclosure & before) << c).astype(np.int8)
    number = np.zeros(shape, dtype=np.int64)
    number[insurer >= 0] = 1 + rng.permutation(int((insurer >= 0).sum()))
    return Cover(insurer, start, end, declaration, number)


def _wish(a: Assumptions, name: Product, pop: Population) -> Floats:
    """How likely each person is to hold a product; over all persons the mean is its penetration."""
    terms = a.terms[name]
    lean = np.exp(terms.older * (pop.age - 45) / 20)
    lean *= (terms.ages[0] <= pop.age) & (pop.age < terms.ages[1])
    if name == "group_medical":
        lean *= pop.employment == EMPLOYED
    mean: float = lean.mean()
    return np.asarray(a.products[name].penetration * lean / mean)


def _insurer(
    name: Product, insurers: tuple[InsurerAssumptions, ...], age: Ints, rng: np.random.Generator
) -> NDArray[np.int8]:
    weights = np.array(
        [i.products.get(name, 0.0) * np.exp(i.older * (age - 45) / 20) for i in insurers]
    )
    bounds = np.cumsum(weights, axis=0)
    u = rng.random(len(age)) * bounds[-1]
    return np.asarray((u >= bounds[:-1]).sum(axis=0), dtype=np.int8)
