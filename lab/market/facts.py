"""Which numbers of the simulated market are published and which invented, and how near a market comes."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd

from lab.market.assumptions import TYPOLOGIES, Assumptions, Group, InsurerAssumptions, Public
from lab.market.population import YEARS
from lab.tables.market_folder import payers

WIDTH = 98
OPENING = """\
A simulated insurance market like Shanghai's: one public insurer and several commercial ones, three
years of claims on the same persons, fraud of eight kinds. Nobody in it lives. It is good for trying
methods and for comparing them with each other; its amounts and rates of fraud say nothing about any
real insurer. What follows is all it is made from: numbers that were published, with the place, and
numbers that were invented. How they act together (who falls ill, who pays, how fraud is done) is
invented throughout; the code is in lab/market."""


def describe(folder: Path | None = None, assumptions: Assumptions | None = None) -> str:
    """A plain page, a hundred columns wide: what is published and where, and what is invented.

    With the folder of a market, its own numbers stand beside the published ones it is held to.
    """
    a = assumptions or Assumptions.read()
    lines = [OPENING, "", *_beside(a, folder), "", "PUBLISHED, AND BUILT IN"]
    for place, group in a.groups():
        if group.source:
            lines += _wrapped(f"{place}: {_short(group)}", 2) + _wrapped(group.source, 6)
    lines += ["", "INVENTED"]
    for place, group in a.groups():
        if group.invented:
            lines += _wrapped(f"{place}: {_short(group)}", 2)
            lines += _wrapped(group.note, 6) if group.note else []
    return "\n".join([*lines, "", *_frauds(a)]) + "\n"


def _beside(a: Assumptions, folder: Path | None) -> list[str]:
    here = measures(folder) if folder else {}
    head = "PUBLISHED NUMBERS THAT A MADE MARKET IS HELD TO" + ", AND THIS ONE'S" * bool(folder)
    lines = [head, f"  {'':<48}{'published':>12}{'within':>12}{'here' if folder else '':>12}"]
    for fact in a.facts:
        own = f"{here[fact.name]:,.4g}" if folder else ""
        lines += [
            f"  {fact.name:<48}{fact.value:>12,.5g}{fact.tolerance:>12,.4g}{own:>12}".rstrip()
        ]
        lines += _wrapped(fact.source, 6)
    return lines


def _frauds(a: Assumptions) -> list[str]:
    """The rates of fraud of each payer, as a table."""
    holders: list[Public | InsurerAssumptions] = [a.public, *a.insurers]
    names = ["public", *(f"insurer-{k + 1}" for k in range(len(a.insurers)))]
    lines = ["INVENTED: PLANTED FRAUD, SHARE OF EACH PAYER'S CLAIMS; INVESTIGATED, THE SAME"]
    lines += ["  " + f"{'':<24}" + "".join(f"{name:>12}" for name in names)]
    fraud_rates = [{str(kind): share for kind, share in p.fraud.items()} for p in holders]
    rows = {kind: [rates.get(kind, 0.0) for rates in fraud_rates] for kind in TYPOLOGIES[1:]}
    rows["investigated"] = [p.investigated for p in holders]
    for kind, shares in rows.items():
        cells = "".join(f"{f'{x:.2%}' if x else '-':>12}" for x in shares)
        lines += [f"  {kind:<24}{cells}"]
    note = (
        "At the public insurer the share is of what is billed to it; policies reimburse the same "
        "bills, so some of that fraud is in commercial claims too."
    )
    return lines + _wrapped(note, 2)


def _wrapped(text: str, indent: int) -> list[str]:
    first, rest = " " * indent, " " * (indent + 4)
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=rest)


def _short(group: Group) -> str:
    """The numbers of a group in a line; rates of fraud have a table of their own."""
    numbers = {key: value for key, value in group.numbers().items() if key != "fraud"}
    return ", ".join(f"{key} {_one(value)}" for key, value in numbers.items())


def _one(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_one(v)}" for key, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_one, value)) + "]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def measures(folder: Path) -> dict[str, float]:
    """The numbers of a made market that have published ones beside them, by their names."""
    insurers = payers(folder)[1:]
    persons = pd.read_parquet(folder / "public" / "persons.parquet")
    conditions = pd.read_parquet(folder / "public" / "conditions.parquet")
    columns = ["inpatient", "provider_level", "billed", "length_of_stay"]
    claims = pd.read_parquet(folder / "public" / "claims.parquet", columns=columns)
    age, size = persons["age"], len(persons)
    early = conditions[conditions["first_day"] < 0]
    ill = {
        name: persons["person"].isin(early.loc[early["condition"] == name, "person"])
        for name in ("hypertension", "diabetes")
    }
    stays, visits = claims[claims["inpatient"] == 1], claims[claims["inpatient"] == 0]
    third = claims["provider_level"] == 3
    second = visits["provider_level"] == 2
    values = {
        "persons aged 0 to 14": (age < 15).mean(),
        "persons aged 15 to 59": ((age >= 15) & (age < 60)).mean(),
        "persons aged 60 and over": (age >= 60).mean(),
        "men": (persons["sex"] == "M").mean(),
        "persons in Pudong": (persons["district"] == "Pudong").mean(),
        "hypertension on record, 60 and over": ill["hypertension"][age >= 60].mean(),
        "diabetes on record, adults": ill["diabetes"][age >= 18].mean(),
        "outpatient visits at the first level": (visits["provider_level"] == 1).mean(),
        "stays a person a year": len(stays) / size / YEARS,
        "mean days of a stay": stays["length_of_stay"].mean(),
        "yuan for an outpatient visit at the second level": visits.loc[second, "billed"].mean(),
        "yuan for an outpatient visit at the third level": visits.loc[third, "billed"].mean(),
        "yuan for a stay at the third level": stays.loc[third, "billed"].mean(),
    }
    return {name: float(value) for name, value in values.items()} | _sold(
        [folder / insurer for insurer in insurers], size
    )


def _sold(homes: list[Path], persons: int) -> dict[str, float]:
    """The same of commercial cover, over all insurers."""
    policies = pd.concat([pd.read_parquet(home / "policies.parquet") for home in homes])
    columns = ["cover", "outcome", "paid", "age"]
    claims = pd.concat(
        [pd.read_parquet(home / "claims.parquet", columns=columns) for home in homes]
    )
    city = policies[policies["product"] == "city_supplement"]
    city_claims = claims[(claims["cover"] == "city_supplement") & (claims["outcome"] != "declined")]
    high = policies[policies["product"] == "high_deductible"]
    return {
        "persons with the city supplement": len(city) / persons,
        "city supplement, claims a policy year": len(city_claims)
        / float(city["exposure_years"].sum()),
        "city supplement, yuan a claim": float(city_claims["paid"].mean()),
        "city supplement, claims of those over 65": float((city_claims["age"] > 65).mean()),
        "persons with a high-deductible policy": len(high) / persons,
    }
