"""What a table's columns may be, guessed with a reason for each: a contract and a model to start from.

A contract is shown to others. So a draft holds no largest value, which may be one person's, and no
level of few persons.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lab.errors import ConfigurationError
from lab.tables.contracts import (
    SHORT_LIST,
    Column,
    Contract,
    Role,
    identifying,
    plain_name,
    unsuited,
)
from lab.tables.values import code

#: Persons (or rows) behind each level that a draft lists.
LEAST_PERSONS = 10
#: Whole numbers of so few values may be codes.
FEW_VALUES = 10
#: Whole numbers up to this are counts, larger ones amounts.
LARGEST_COUNT = 100
#: Words of a name that tell what a column is, the likeliest first.
TARGETS = {
    "a count of events": r"(n_?|number_of_|no_of_)?(claims?|visits?|events?|accidents?)"
    r"(_?(nb|no|nr|num|number|count|counts|freq))?|claim_?count|counts?|frequency",
    "what is to be detected": r"(is_?)?(fraud|default|churn|lapse|died|death|event)(ed|_?flag)?",
    "an amount": r"(total_?|claim_?|paid_?|mean_?)?(paid|amounts?|costs?|charges?|loss(es)?|claims_paid)"
    r"(_?(paid|amount|cents|eur|usd|cny))?",
    "what is modelled": r"target|response|outcome|label|y",
}
EXPOSURE = r"expo(sure)?(_years?)?|(person|policy|member|insured|earned)_?years?|duration(_years?)?"
PERSONS = (
    r"(person|patient|member|customer|client|insured|insuree|beneficiary|claimant|user|subject)"
    r"(_?(id|no|nr|num|number|key))?|(policy|contract|policyholder)_?(id|no|nr|num|number)|id_?pol"
)


@dataclass(frozen=True)
class Guess:
    """What was guessed, and why."""

    value: str
    reason: str


@dataclass(frozen=True)
class Draft:
    """A table as it may be modelled. columns: of the contract, each with the reasons for it;
    features: names; left_out: why each other column that has no part is no feature."""

    columns: dict[str, tuple[Column, str]]
    target: Guess
    family: Guess
    exposure: Guess | None
    person: Guess | None
    features: tuple[str, ...]
    left_out: dict[str, str]
    missing: Guess | None


#: The columns of a table by name.
Values = Mapping[str, pd.Series]


def drafted(frame: pd.DataFrame, types: Contract, target: str | None = None) -> Draft:
    """Guess what each column is. types: the table's contract of types alone; target: as its reader
    says. Raises :class:`ConfigurationError` where there is nothing to model."""
    table = {str(name): frame[name] for name in frame}
    person = _person(table)
    owners = table[person.value] if person else None
    identifiers = _identifiers(table, owners)
    response = _target(table, identifiers, target)
    identifiers.pop(response.value, None)
    family = _family(table[response.value])
    exposure = _exposure(table, {*identifiers, response.value}, family)
    roles: dict[str, Role] = dict.fromkeys(identifiers, "identifier")
    roles[response.value] = "target"
    if exposure:
        roles[exposure.value] = "exposure"
    left_out = identifiers | {n: why for n, why in _unsuited(table).items() if n not in roles}
    features = tuple(name for name in table if name not in {*roles, *left_out})
    if not features:
        listing = "; ".join(f"{name} {why}" for name, why in left_out.items())
        raise ConfigurationError(f"no column is left to model '{response.value}' by: {listing}")
    columns = {
        name: _column(values, types.columns[name].type, roles.get(name, "feature"), owners)
        for name, values in table.items()
    }
    columns |= {name: (columns[name][0], why) for name, why in identifiers.items()}
    needed = [guess.value for guess in (response, exposure, person) if guess]
    missing = _missing(table, needed, features)
    return Draft(columns, response, family, exposure, person, features, left_out, missing)


def _identifiers(table: Values, owners: pd.Series | None) -> dict[str, str]:
    """Columns that tell rows or persons apart, each with the reason."""
    reasons = {name: identifying(name, values, owners) for name, values in table.items()}
    if owners is not None and reasons[str(owners.name)] is None:
        reasons[str(owners.name)] = "says whose row it is"
    return {name: why for name, why in reasons.items() if why is not None}


def _person(table: Values) -> Guess | None:
    """The column of who a row belongs to, where several rows are one person's."""
    for name in table:
        there = table[name].dropna()
        if re.fullmatch(PERSONS, plain_name(name)) and 1 < there.nunique() < len(there):
            return Guess(name, f"is named like a person's, {there.nunique():,} have rows")
    return None


def _target(table: Values, identifiers: dict[str, str], stated: str | None) -> Guess:
    """What is modelled: as stated, by its name, or the last column of numbers."""
    if stated is not None:
        if stated not in table:
            raise ConfigurationError(
                f"--target {stated}: no such column; there are {', '.join(map(str, table))}"
            )
        if not _is_number(table[stated]):
            raise ConfigurationError(
                f"--target {stated}: holds text, not numbers; write 1 and 0 for yes and no"
            )
        return Guess(stated, "as stated")
    numbers = [n for n, values in table.items() if _is_number(values) and values.nunique() > 1]
    for meaning, words in TARGETS.items():
        for name in numbers:
            if re.fullmatch(words, plain_name(name)) and not _named_apart(name):
                return Guess(name, f"is named like {meaning}")
    numbers = [name for name in numbers if name not in identifiers]
    if not numbers:
        raise ConfigurationError("no column holds numbers that vary, so there is nothing to model")
    return Guess(numbers[-1], "is the last column of numbers")


def _named_apart(name: str) -> bool:
    """Whether a column's name alone is that of an identifier."""
    return identifying(name, pd.Series(dtype=np.float64), None) is not None


def _family(values: pd.Series) -> Guess:
    """The family of a target, by its values."""
    y = values.dropna().to_numpy(dtype=np.float64)
    whole = bool((y % 1 == 0).all())
    if np.isin(y, (0.0, 1.0)).all():
        return Guess("binomial", "0 and 1")
    if (y < 0).any():
        return Guess("gaussian", "some are below 0")
    if whole and y.max() <= LARGEST_COUNT:
        return Guess("poisson", "whole numbers from 0")
    return (
        Guess("tweedie", "amounts, some of them 0") if (y == 0).any() else Guess("gamma", "amounts")
    )


def _exposure(table: Values, others: set[str], family: Guess) -> Guess | None:
    """A column of years insured, which counts and amounts grow with."""
    if family.value not in ("poisson", "tweedie"):
        return None
    for name in table:
        fits = re.fullmatch(EXPOSURE, plain_name(name)) and name not in others
        if fits and _is_number(table[name]) and (table[name] > 0).all():
            return Guess(name, "is named like the time insured, and is above 0")
    return None


def _unsuited(table: Values) -> dict[str, str]:
    """Why columns are no features: they never vary, or have levels that are too many or too rare."""
    reasons = {name: unsuited(name, v) for name, v in table.items() if not _is_number(v)}
    reasons |= {name: "never varies" for name, values in table.items() if values.nunique() < 2}
    return {name: why for name, why in reasons.items() if why is not None}


def _column(
    values: pd.Series, kind: str, role: Role, owners: pd.Series | None
) -> tuple[Column, str]:
    """A column of the contract, and what to know of it."""
    there = values.dropna()
    nullable = len(there) < len(values)
    if kind == "category":
        levels, note = _levels(there, owners) if role == "feature" else (None, "")
        return Column(type="category", role=role, nullable=nullable, levels=levels), note
    numbers = there.to_numpy(dtype=np.float64)
    whole = bool((numbers % 1 == 0).all())
    column = Column(
        type="integer" if whole else "number",
        role=role,
        nullable=nullable,
        above=0 if role == "exposure" else None,
        minimum=0 if role != "exposure" and (numbers >= 0).all() else None,
    )
    return column, _codes(there) if role == "feature" and whole else ""


def _levels(there: pd.Series, owners: pd.Series | None) -> tuple[tuple[str, ...] | None, str]:
    """The levels to list, if none is of few persons, and what to know of them."""
    texts = there.map(code)
    counts = (
        texts.value_counts() if owners is None else owners.loc[there.index].groupby(texts).nunique()
    )
    few = int((counts < LEAST_PERSONS).sum())
    if few or not 0 < len(counts) <= SHORT_LIST:
        return (
            None,
            f"{len(counts):,} levels, {few:,} of fewer than {LEAST_PERSONS} persons: not listed",
        )
    return tuple(sorted(map(str, counts.index))), ""


def _codes(values: pd.Series) -> str:
    """A hint where whole numbers may be codes."""
    if 2 < values.nunique() <= FEW_VALUES:
        return f'{values.nunique()} whole numbers: if they are codes, write type = "category"'
    return ""


def _missing(table: Values, parts: list[str], features: tuple[str, ...]) -> Guess | None:
    """What to do with missing values, where there are any."""
    lacking = [name for name in parts if table[name].isna().any()]
    if lacking:
        return Guess("drop", f"{', '.join(lacking)}: missing in some rows, which are left out")
    lacking = [name for name in features if table[name].isna().any()]
    if lacking:
        return Guess("mean", f"missing in some rows: {', '.join(lacking)}")
    return None


def _is_number(values: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(values))
