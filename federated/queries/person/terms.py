"""What both sides signed about scores of one person: purposes, bands, how many and how often."""

from __future__ import annotations

import itertools
from datetime import date, timedelta
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from federated.joined.sums.factors import Role
from federated.link.charter import ConditionTerms, check_consents
from federated.link.consent import ConsentToken, consented
from federated.link.own_terms import tighter
from lab.errors import ConfigurationError, PolicyError
from lab.records import Strict, parse, read_toml
from secure_agg.identity import Identity

SHIPPED = Path(__file__).with_name("scores.toml")
#: Most edges: a place in a table of bands is one byte.
MOST_EDGES = 16
Kind = Literal["glm", "trees"]
#: Days that a consent is good for, where nobody says another number.
DAYS = 7


class ScoreTerms(Strict):
    """purposes: each with the side that asks; bands: rising edges of the score, in the model's unit;
    exact: the score itself is told, and with it the other side's part of it
    kinds: of models; of trees an asker that makes up its own columns reads more of the other side's
    scores_of_a_person: of one asker within period_days; asker_a_month: within 30 days
    signers: name to Ed25519 key (hexadecimal) of the desks at which persons sign
    """

    purposes: dict[str, Role] = Field(min_length=1)
    refused_purposes: tuple[str, ...] = ()
    bands: tuple[float, ...] = Field(min_length=1, max_length=MOST_EDGES)
    exact: bool = False
    kinds: tuple[Kind, ...] = Field(default=("glm",), min_length=1)
    scores_of_a_person: int = Field(default=1, ge=1)
    period_days: int = Field(default=365, ge=1, le=3_660)
    asker_a_day: int = Field(default=100, ge=1)
    asker_a_month: int = Field(default=1_000, ge=1)
    token_days: int = Field(default=30, ge=1, le=366)
    signers: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _terms_can_be_kept(self) -> Self:
        if list(self.bands) != sorted(set(self.bands)):
            raise ValueError(f"bands: edges must rise, got {list(self.bands)}")
        check_consents(self.purposes, self.refused_purposes, self.signers)
        return self

    def check_kind(self, kind: str) -> None:
        """Raises :class:`PolicyError` for a kind of model of which no scores are told."""
        if kind not in self.kinds:
            raise PolicyError(
                f"scores are told of {', '.join(self.kinds) or 'no kind'}, and this model is of kind {kind}; kinds of the "
                "terms and of node.toml must both have it",
                "kind",
            )

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
        edges = [f"{edge:.15g}" for edge in self.bands]
        words = [f"{low} to {high}" for low, high in itertools.pairwise(edges)]
        return [f"below {edges[0]}", *words, f"{edges[-1]} and above"][place]


class OwnScores(Strict):
    """``[scores]`` of node.toml: what this side answers others, each at most what both sides signed; without
    the section it answers nobody. a_month: to each asker, within 30 days; of_a_person: within the terms'
    period; purposes: by which it may be asked; kinds: of models; approval: whether a person approves each.
    """

    a_month: int = Field(ge=1)
    of_a_person: int | None = Field(default=None, ge=1)
    purposes: tuple[str, ...] | None = Field(default=None, min_length=1)
    kinds: tuple[Kind, ...] = Field(default=("glm",), min_length=1)
    approval: Literal["never", "always"] = "never"

    def tightened(self, terms: ScoreTerms) -> ScoreTerms:
        """The terms as this side keeps them. Raises ConfigurationError for a purpose that is none of them."""
        own = terms.purposes if self.purposes is None else self.purposes
        if unknown := set(own) - set(terms.purposes):
            raise ConfigurationError(
                f"node.toml: scores.purposes: '{min(unknown)}' is not in the charter; there are "
                f"{', '.join(terms.purposes)}"
            )
        return terms.model_copy(
            update={
                "purposes": {name: terms.purposes[name] for name in own},
                "kinds": tuple(kind for kind in terms.kinds if kind in self.kinds),
                "asker_a_month": tighter(terms.asker_a_month, self.a_month),
                "scores_of_a_person": tighter(terms.scores_of_a_person, self.of_a_person),
            }
        )


def consent_to_score(
    signer: Identity,
    terms: ScoreTerms,
    *,
    asker: str,
    asked: str,
    person: str,
    purpose: str,
    model: str,
    today: date,
    days: int = DAYS,
) -> ConsentToken:
    """A person's consent to one score by one model, signed at a desk. model: its digest."""
    wanted: dict[str, object] = {
        "insurer": asker,
        "fund": asked,
        "person": person,
        "purpose": purpose,
        "group": model,
        "before": today,
        "expires": today + timedelta(days=min(days, terms.token_days)),
    }
    return consented(signer, signer.card.name, wanted)
