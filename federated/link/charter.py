"""What the payers of an exchange signed about asking each other: keys, caps, groups, rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lab.records import Strict, parse, read_toml

SHIPPED = Path(__file__).with_name("link.toml")
Spelling = Literal["exact", "normal", "code", "resident"]


class MatchKey(Strict):
    """Columns whose values name one claim together.

    bands: width of a numeric column's band. Values less than half a width apart always meet, values
        a width or more apart never: two grids, half a width from each other, are both tried
    """

    name: str = Field(min_length=1)
    columns: tuple[str, ...] = Field(min_length=1)
    bands: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bands_are_of_its_columns(self) -> Self:
        for column, width in self.bands.items():
            if column not in self.columns:
                raise ValueError(f"bands: '{column}' is none of {', '.join(self.columns)}")
            if not width > 0:
                raise ValueError(f"bands: the width of '{column}' must be above 0")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("columns: each may stand there once")
        return self

    @property
    def grids(self) -> int:
        return 1 << len(self.bands)


class LinkedRows(Strict):
    """Which rows take part: those with something paid, and none with these values.

    paid: column of what was paid; rows of 0 are left out
    without: column to values whose rows are left out
    """

    paid: str
    without: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class DeskLimits(Strict):
    """How often a payer may ask the others about a single claim."""

    asks_a_day: int = Field(default=10_000, ge=1)


class ConditionTerms(Strict):
    """What an insurer may ask the fund about a person who signed, and how often.

    look_up: "open": the fund sees the person; "oblivious": it does not
    refer_days: a condition recorded so shortly before the date is for a person to judge
    purposes, refused_purposes: what an answer may and may not be used for
    signers: name to Ed25519 key (hexadecimal) of the desks at which persons sign
    token_days: a token is good for so many days at most
    insurer_a_day, person_a_day: questions of one insurer, and about one person, a day
    groups_of_a_person: an insurer that asks for more groups of one person within `window_days` probes
    persons_of_a_group: an insurer that asks for one group of more persons within `window_days` probes
    """

    fund: str
    groups: tuple[str, ...] = Field(min_length=1)
    look_up: Literal["open", "oblivious"] = "oblivious"
    refer_days: int = Field(default=30, ge=0)
    purposes: tuple[str, ...] = Field(min_length=1)
    refused_purposes: tuple[str, ...] = ()
    signers: dict[str, str] = Field(default_factory=dict)
    token_days: int = Field(default=30, ge=1)
    cap: int = Field(default=2**20, ge=1)
    insurer_a_day: int = Field(default=200, ge=1)
    person_a_day: int = Field(default=3, ge=1)
    window_days: int = Field(default=30, ge=1)
    groups_of_a_person: int = Field(default=2, ge=1)
    persons_of_a_group: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _consents_can_be_checked(self) -> Self:
        check_consents(self.purposes, self.refused_purposes, self.signers)
        return self


def check_consents(
    purposes: Iterable[str], refused: Iterable[str], signers: Mapping[str, str]
) -> None:
    """Raises ValueError for a purpose that is refused too, and a signer whose key is none."""
    if both := set(purposes) & set(refused):
        raise ValueError(f"refused_purposes: '{min(both)}' is a purpose too")
    for name, key in signers.items():
        if len(key) != 64 or not set(key) <= set("0123456789abcdef"):
            raise ValueError(f"signers.{name}: a key has 64 hexadecimal digits")


class LinkCharter(Strict):
    """One document for all payers.

    tells: what a payer learns of a match: "match": that another has the claim, "payer": also who
    cap: distinct claims that each payer's set is filled up to, by each key; caps: for payers that
        have many more
    key: tried in this order; the first that matches is reported
    spelling: column to its rule (`lab.tables.identifiers`); columns not named are `normal`
    numbers: columns that hold numbers: 3896, 3896.00 and "3896" are the same, other texts none
    """

    name: str = Field(min_length=1)
    tells: Literal["match", "payer"] = "match"
    cap: int = Field(ge=1, le=2**26)
    caps: dict[str, int] = Field(default_factory=dict)
    rows: LinkedRows
    key: tuple[MatchKey, ...] = Field(min_length=1)
    spelling: dict[str, Spelling] = Field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    desk: DeskLimits = DeskLimits()
    condition: ConditionTerms | None = None

    @model_validator(mode="after")
    def _keys_have_names_of_their_own(self) -> Self:
        if any(not 1 <= cap <= 2**26 for cap in self.caps.values()):
            raise ValueError(f"caps: must be 1 to {2**26:,}")
        for name, times in Counter(key.name for key in self.key).items():
            if times > 1:
                raise ValueError(f"two keys are named '{name}'")
        return self

    def cap_of(self, payer: str) -> int:
        return self.caps.get(payer, self.cap)

    @property
    def batches(self) -> tuple[tuple[MatchKey, int], ...]:
        """Each key with each of its grids: what is compared, in this order."""
        return tuple((key, grid) for key in self.key for grid in range(key.grids))

    @classmethod
    def read(cls, path: Path = SHIPPED, changes: dict[str, Any] | None = None) -> LinkCharter:
        """The charter of a TOML file. Raises ConfigurationError with every mistake in it."""
        return parse(cls, read_toml(path) | (changes or {}), where=str(path))
