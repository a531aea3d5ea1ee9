"""Fraud planted into a clean market, each kind so that some party alone sees little of it.

Here is what providers do to bills. What they do to the fund is planted before commercial claims
are filed, so that those who reimburse the same invoice are cheated too; what is done to insurers
is in ``lab/market/fraud_at_insurers.py``. Planted rows carry a typology and the number of their case.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lab.market.assumptions import TYPOLOGIES
from lab.market.care import ITEMS, Numbers, Rows, charge, funded, join, take
from lab.market.population import DAYS, Bools, Ints, World
from lab.sums import Floats

At = NDArray[np.intp]
#: The levels of the providers that each kind of fraud has accomplices at; 0 is private.
ACCOMPLICES = {
    "upcoding": (1, 2, 3),
    "excessive_treatment": (0, 1, 2, 3),
    "phantom_billing": (1, 2, 3),
    "ring": (1, 2),
}


@dataclass(frozen=True)
class Scene(World):
    """What every kind of fraud needs: the world, where numbers come from, the generator."""

    invoices: Numbers
    cases: Numbers
    rng: np.random.Generator

    @cached_property
    def crooked(self) -> dict[str, NDArray[np.intp]]:
        """The providers that take part in each kind of fraud, some of every level."""
        accomplices = {}
        for kind, levels in ACCOMPLICES.items():
            parts = [np.flatnonzero(self.prov.level == level) for level in levels]
            many = [max(1, round(self.a.schemes.crooked * len(part))) for part in parts]
            accomplices[kind] = np.concatenate(
                [self.rng.permutation(part)[:n] for part, n in zip(parts, many, strict=True)]
            )
        return accomplices

    def choose(self, among: Bools, count: int) -> At:
        """Positions of at most ``count`` rows where ``among`` holds, at random."""
        at = np.flatnonzero(among)
        return self.rng.permutation(at)[:count]

    def between(self, ends: tuple[float, float], size: int) -> Floats:
        return self.rng.uniform(*ends, size)


def free(rows: Rows) -> Bools:
    """Rows with nothing planted yet."""
    return np.asarray(rows["typology"] == 0)


def mark(rows: Rows, at: At | slice, typology: str, cases: Ints) -> None:
    rows["typology"][at] = TYPOLOGIES.index(typology)
    rows["scheme"][at] = cases


def times(s: Scene, rows: Rows, at: At, factors: dict[str, Floats]) -> None:
    """Multiply items of bills; the fund pays its part of what it is shown."""
    for item, factor in factors.items():
        rows[item][at] = np.minimum(rows[item][at] * factor, 1e8)
    rows["billed"][at] = sum(rows[item][at] for item in ITEMS)
    rows["fund"][at] = funded(s, take(rows, at), s.rng)


def by_providers(s: Scene, rows: Rows) -> Rows:
    """Upcoding, excessive treatment and unbundling of encounters that the fund settles."""
    fund_bills = ~rows["own"]
    rate, total = s.a.public.fraud, int(fund_bills.sum())
    excess(s, rows, fund_bills, round(rate.get("excessive_treatment", 0) * total))
    accomplices = np.isin(rows["provider"], s.crooked["upcoding"])
    upcode(s, rows, fund_bills & accomplices, round(rate.get("upcoding", 0) * total))
    return unbundle(s, rows, fund_bills, round(rate.get("unbundling", 0) * total))


def excess(s: Scene, rows: Rows, among: Bools, count: int) -> At:
    """Excessive treatment: some providers prescribe and examine far beyond need."""
    where = np.isin(rows["provider"], s.crooked["excessive_treatment"])
    at = s.choose(among & free(rows) & where, count)
    factors = {item: s.between(s.a.schemes.excessive, len(at)) for item in ITEMS[:2]}
    times(s, rows, at, factors)
    mark(rows, at, "excessive_treatment", case_of_each_provider(s, rows, at))
    return at


def upcode(s: Scene, rows: Rows, among: Bools, count: int) -> At:
    """Upcoding: a stay is billed as graver than its days and its care were."""
    at = s.choose(among & free(rows) & rows["stay"] & (rows["severity"] < 2), count)
    graver = rows["severity"][at] + s.rng.integers(1, 3, len(at))
    rows["severity"][at] = np.minimum(graver, 2)
    factor = s.between(s.a.schemes.upcoded, len(at))
    times(s, rows, at, dict.fromkeys(ITEMS, factor))
    mark(rows, at, "upcoding", case_of_each_provider(s, rows, at))
    return at


def unbundle(s: Scene, rows: Rows, among: Bools, count: int) -> Rows:
    """Unbundling: one stay becomes two or three in a row, which cost more together."""
    long = rows["stay"] & (rows["days"] >= 4)
    at = s.choose(among & free(rows) & long, round(count / 2.5))
    mark(rows, at, "unbundling", s.cases.new(len(at)))
    parts = s.rng.integers(2, 4, len(at))
    factor = s.between(s.a.schemes.unbundled, len(at)) / parts
    times(s, rows, at, dict.fromkeys(ITEMS, factor))
    rows["days"][at] = rows["days"][at] // parts
    more = np.repeat(at, parts - 1)
    part = np.concatenate([np.arange(1, n) for n in parts]) if len(at) else parts
    rest = take(rows, more)
    rest["day"] = np.minimum(rest["day"] + part * rest["days"], DAYS - 1)
    rest["invoice"] = s.invoices.new(len(more))
    charge(s, rest, rest["provider"], s.between((0.8, 1.2), len(more)), s.rng)
    return join([rows, rest])


def case_of_each_provider(s: Scene, rows: Rows, at: At) -> NDArray[np.int64]:
    providers, which = np.unique(rows["provider"][at], return_inverse=True)
    return s.cases.new(len(providers))[which]
