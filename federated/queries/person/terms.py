"""What both sides signed about scores of one person: purposes, bands, how many and how often."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from federated.joined.sums.factors import Role
from federated.link.charter import ConditionTerms
from lab.errors import PolicyError
from lab.records import Strict, parse, read_toml

SHIPPED = Path(__file__).with_name("scores.toml")
#: Most edges: a place in a table of bands is one byte.
MOST_EDGES = 16


class ScoreTerms(Strict):
    """purposes: each with the side that asks; bands: rising edges of the score, in the model's unit;
    exact: the score itself is told, and with it the other side's part of it
    scores_of_a_person: of one asker within period_days; signers: desks at which persons sign
    """

    purposes: dict[str, Role] = Field(min_length=1)
    refused_purposes: tuple[str, ...] = ()
    bands: tuple[float, ...] = Field(min_length=1, max_length=MOST_EDGES)
    exact: bool = False
    scores_of_a_person: int = Field(default=1, ge=1)
    period_days: int = Field(default=365, ge=1)
    asker_a_day: int = Field(default=100, ge=1)
    token_days: int = Field(default=30, ge=1)
    signers: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _bands_rise(self) -> Self:
        if list(self.bands) != sorted(set(self.bands)):
            raise ValueError(f"bands: edges must rise, got {list(self.bands)}")
        return self

    @classmethod
    def read(cls, path: Path | None = None) -> Self:
        """Of a TOML file, the shipped one for None. Raises ConfigurationError with every mistake."""
        path = path or SHIPPED
        return parse(cls, read_toml(path), where=str(path))

    def consent_terms(self, asked: str, model: str) -> ConditionTerms:
        """What a consent to a score is held against: its group is the model's digest."""
        return ConditionTerms(
            fund=asked,
            groups=(model,),
            look_up="open",
            purposes=tuple(self.purposes),
            refused_purposes=self.refused_purposes,
            signers=self.signers,
            token_days=self.token_days,
        )

    def check_asker(self, purpose: str, role: Role) -> None:
        """Raises :class:`PolicyError` where a purpose is not this side's."""
        owner = self.purposes.get(purpose, role)
        if owner != role:
            raise PolicyError(
                f"'{purpose}' is a purpose of the {owner}, who asks for it", "purpose"
            )

    def band(self, place: int) -> str:
        """A band in words.

        >>> terms = ScoreTerms(purposes={"renew": "insurer"}, bands=(0.1, 0.4))
        >>> [terms.band(k) for k in range(3)]
        ['below 0.1', '0.1 to 0.4', '0.4 and above']
        """
        words = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(self.bands)]
        return [f"below {self.bands[0]:g}", *words, f"{self.bands[-1]:g} and above"][place]
