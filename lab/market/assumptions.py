"""What the simulated market is made from: numbers, and beside each group where they come from.

A group of numbers was published and says where, or was invented and says so. There is no third
kind, and a file with one is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from lab.records import Strict, parse, read_toml
from lab.sums import Floats

SHIPPED = Path(__file__).with_name("assumptions.toml")
Condition = Literal["hypertension", "diabetes", "heart_disease", "copd", "cancer", "kidney_disease"]
#: In the order in which they settle an invoice: each sees what the one before has left.
Product = Literal[
    "group_medical", "city_supplement", "high_deductible", "critical_illness", "hospital_cash"
]
Level = Literal["private", "first", "second", "third"]
#: Done to the fund by providers and card holders; the fund itself is the record of the rest.
PublicFraud = Literal["upcoding", "unbundling", "excessive_treatment", "ring", "identity_lending"]
Fraud = Literal[
    "double_reimbursement",
    "phantom_billing",
    "upcoding",
    "unbundling",
    "excessive_treatment",
    "ring",
    "non_disclosure",
    "identity_lending",
]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
PRODUCTS: tuple[Product, ...] = get_args(Product)
LEVELS: tuple[Level, ...] = get_args(Level)
TYPOLOGIES: tuple[str, ...] = ("none", *get_args(Fraud))
#: The chapter of ICD-10 that a visit for each condition is filed under.
CHAPTER_OF = dict(zip(CONDITIONS, "IEIJCN", strict=True))
#: These reimburse a bill; the others pay what was agreed, whatever the bill.
REIMBURSING = PRODUCTS[:3]


class Group(Strict):
    """Numbers with one origin: ``source`` says where they were published, or they are ``invented``."""

    source: str | None = Field(default=None, min_length=1)
    invented: bool = False
    note: str = ""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.invented == (self.source is not None):
            raise ValueError("say source = '…' where it was published, or invented = true")
        return self

    def numbers(self) -> dict[str, Any]:
        """What is assumed, without where it is from."""
        own = self.model_dump(exclude=set(Group.model_fields))
        return {key: own[key] for key in own if not isinstance(getattr(self, key), Group)}


class ByAge(Group):
    """A value for each band of ages; ``ages`` are the bands' first years, from 0."""

    ages: tuple[int, ...]
    values: tuple[float, ...]

    @model_validator(mode="after")
    def _bands(self) -> Self:
        if len(self.ages) != len(self.values) or self.ages[:1] != (0,):
            raise ValueError("needs as many values as ages, and ages from 0")
        if sorted(set(self.ages)) != list(self.ages):
            raise ValueError("ages must be strictly increasing")
        return self

    def at(self, age: NDArray[np.integer[Any]]) -> Floats:
        return np.asarray(self.values)[np.searchsorted(self.ages, age, side="right") - 1]


Share = Field(ge=0, le=1)
Shares = tuple[float, ...]


class Oldest(Group):
    mean_years_above_65: float = Field(gt=0)


class Sex(Group):
    male: float = Share


class Districts(Group):
    persons: dict[str, int]


class Work(Group):
    student: float = Share
    employed: float = Share
    self_employed: float = Share
    retired: float = Share


class Income(Group):
    bands: Shares
    not_earning: float = Share


class Known(Group):
    share: float = Share


class Onset(Group):
    a_year: dict[Condition, float]


class Frailty(Group):
    shape: float = Field(gt=0)


class Visits(Group):
    """Of 1,000 persons in a month: in any institution, of these primary, and hospitalised."""

    institutions: float
    primary: float
    hospitalised: float


class Kept(Group):
    outpatient: float = Share


class Use(Group):
    conditions: float
    conditions_stays: float
    for_a_condition: float = Share
    secondary: float = Share
    fetched: float = Share
    stays: tuple[float, float, float]
    transfers: float = Share
    same_hospital: float = Share
    outpatient: ByAge
    inpatient: ByAge


class Chapters(Group):
    code: tuple[str, ...]
    share: Shares
    cost: Shares
    days: Shares

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if len({len(self.code), len(self.share), len(self.cost), len(self.days)}) > 1:
            raise ValueError("code, share, cost and days must have the same length")
        missing = {*CHAPTER_OF.values(), "O", "R"} - {*self.code}
        if missing:
            raise ValueError(f"code lacks chapters {', '.join(sorted(missing))}")
        return self


class SeverityAssumptions(Group):
    share: tuple[float, float, float]
    cost: tuple[float, float, float]
    days: tuple[float, float, float]
    conditions: float


class Stay(Group):
    days: float = Field(gt=1)


class Amount(Group):
    mean: float = Field(gt=0)


class Spread(Group):
    bills: float
    heavy: float
    heavy_share: float = Share
    days: float
    items: float


class Items(Group):
    outpatient: tuple[float, float, float, float]
    stay: tuple[float, float, float, float]


class ProviderAssumptions(Group):
    a_thousand_persons: float = Field(gt=0)
    fewest: int = Field(ge=40)
    level: tuple[float, float, float]
    private: float = Field(gt=0)
    style: float
    drugs: float
    usual: float = Share


class Fund(Group):
    employee_outpatient: tuple[float, float, float]
    employee_stay: tuple[float, float, float]
    retired_outpatient: tuple[float, float, float]
    retired_stay: tuple[float, float, float]
    resident_outpatient: tuple[float, float, float]
    resident_stay: tuple[float, float, float]
    stay_deductible: tuple[float, float, float]
    not_covered: float = Share


class OwnAccount(Group):
    share: float = Share
    in_the_city: float = Share
    during_a_stay: float = Share


class MarketAssumptions(Group):
    penetration: float = Share
    premium: tuple[float, float, float]


class TermsAssumptions(Group):
    ages: tuple[int, int]
    deductible: float
    pays: float
    sum_insured: float
    outpatient: bool
    asks: bool
    claimed: float = Share
    older: float
    start: tuple[int, int]


class Policies(Group):
    lapse: float = Share
    declared: float = Share


class NoiseAssumptions(Group):
    mistyped: float = Share
    recoded: float = Share
    day: float = Share
    cut: float = Share
    late: float = Share
    late_days: int = Field(ge=0)
    company: float = Share
    popular: float = Share
    card: float = Field(ge=0)
    documents: float = Share


class Public(Group):
    investigated: float = Share
    fraud: dict[PublicFraud, float]


class InsurerAssumptions(Group):
    """``older``: how its holders lean to high ages; ``products``: its weight in each market."""

    older: float
    products: dict[Product, float]
    investigated: float = Share
    fraud: dict[Fraud, float]


class Schemes(Group):
    crooked: float = Share
    upcoded: tuple[float, float]
    unbundled: tuple[float, float]
    excessive: tuple[float, float]
    ring_patients: tuple[int, int]
    ring_visits: tuple[int, int]
    early: tuple[int, int]
    altered: float = Share
    forged_slip: float = Share


class InvestigationAssumptions(Group):
    cost: float
    provider: float
    early: float
    tip_off: float = Share
    proved: float = Share
    wrongly: float = Share


class Fact(Strict):
    """A published number that a made market must come near: by no more than ``tolerance``."""

    name: str
    value: float
    tolerance: float = Field(gt=0)
    source: str = Field(min_length=1)


class Assumptions(Strict):
    """Everything the market is made from. Equal assumptions, equal digest."""

    version: int
    age: ByAge
    oldest: Oldest
    sex: Sex
    districts: Districts
    work: Work
    income: Income
    prevalence: dict[Condition, ByAge]
    known: dict[Condition, Known]
    onset: Onset
    frailty: Frailty
    visits: Visits
    kept: Kept
    use: Use
    chapters: Chapters
    severity: SeverityAssumptions
    stay: Stay
    outpatient_yuan: dict[Level, Amount]
    stay_yuan: dict[Level, Amount]
    spread: Spread
    items: Items
    providers: ProviderAssumptions
    fund: Fund
    own_account: OwnAccount
    products: dict[Product, MarketAssumptions]
    terms: dict[Product, TermsAssumptions]
    policies: Policies
    noise: NoiseAssumptions
    public: Public
    insurers: tuple[InsurerAssumptions, ...] = Field(min_length=1)
    schemes: Schemes
    investigation: InvestigationAssumptions
    facts: tuple[Fact, ...]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, keys in (
            ("prevalence", CONDITIONS),
            ("known", CONDITIONS),
            ("outpatient_yuan", LEVELS),
            ("stay_yuan", LEVELS),
            ("products", PRODUCTS),
            ("terms", PRODUCTS),
        ):
            missing = [key for key in keys if key not in getattr(self, name)]
            if missing:
                raise ValueError(f"{name} lacks {', '.join(missing)}")
        if set(self.onset.a_year) != set(CONDITIONS):
            raise ValueError("onset.a_year must name every condition")
        return self

    @classmethod
    def read(cls, path: Path | None = None) -> Assumptions:
        """Read a file, the shipped one for None; ConfigurationError lists every mistake."""
        path = path or SHIPPED
        return parse(cls, read_toml(path), where=str(path))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def groups(self) -> Iterator[tuple[str, Group]]:
        """Every group of numbers with its place in the file."""
        yield from _groups(self, "")


def _groups(record: BaseModel, place: str) -> Iterator[tuple[str, Group]]:
    if isinstance(record, Group):
        yield place, record
    for name in type(record).model_fields:
        value = getattr(record, name)
        parts = {"": value} if isinstance(value, BaseModel) else {}
        if isinstance(value, dict):
            parts = {f".{key}": part for key, part in value.items()}
        elif isinstance(value, tuple):
            parts = {f" {k + 1}": part for k, part in enumerate(value)}
        for end, part in parts.items():
            if isinstance(part, BaseModel):
                yield from _groups(part, f"{place}.{name}{end}".lstrip("."))
