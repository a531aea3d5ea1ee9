"""Pairs of a charter: a fund, and the insurers whose persons it knows in other columns."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from federated.joined.letters import LETTER
from federated.joined.sums.factors import Role
from federated.study.experiment import Experiment
from federated.study.plan import StudyPlan
from lab.errors import ConfigurationError, PolicyError
from lab.records import Strict
from secure_agg import wire
from secure_agg.identity import LONGEST_NAME

#: The rule by which a plan is refused whose sides are not those of the charter.
RULE = "pairs"


class Pairs(Strict):
    """Who knows the same persons in other columns, and what each side may learn of the other.

    fund: a member, joined to each of the others; keys: by member the columns that name a person, as
    many at each; learns: who is told which persons are common; cap: rows that each set of identifiers
    is filled up to; product: how sides multiply; minimum_persons: of both sides, behind any total.
    """

    fund: str
    keys: dict[str, tuple[str, ...]]
    learns: Literal["hidden", "both", "insurer", "fund"] = "hidden"
    cap: int = Field(ge=1)
    product: Literal["triples", "paillier"] = "triples"
    minimum_persons: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _sides_fit_together(self) -> Self:
        if self.fund not in self.keys or len(self.keys) < 2:
            raise ValueError("keys: name the key of the fund and of each insurer joined to it")
        if len({len(columns) for columns in self.keys.values()}) > 1:
            raise ValueError("keys: the key needs as many columns at each side")
        if not all(columns and all(columns) for columns in self.keys.values()):
            raise ValueError("keys: a key is one column or several")
        if any(2 * len(name.encode()) > LONGEST_NAME - 60 for name in self.keys):
            raise ValueError("keys: names of sides are at most 70 bytes long")
        return self

    def role(self, name: str) -> Role:
        """What a member is in its pairs."""
        return "fund" if name == self.fund else "insurer"

    def common(self, size: int) -> int:
        """Persons that two sides have in common, on a spine of so many rows."""
        return size if self.learns == "both" else 2 * self.cap - size

    def peers(self, name: str) -> tuple[str, ...]:
        """The other sides of a member's pairs."""
        if name != self.fund:
            return (self.fund,)
        return tuple(side for side in self.keys if side != self.fund)


def agreed(experiment: Experiment, pairs: Pairs | None) -> Experiment:
    """The experiment of joined sides, with what the charter says where its file leaves that open.

    Raises :class:`ConfigurationError` where it is of other sides than the charter's.
    """
    if not experiment.joined:
        return experiment
    if pairs is None:
        raise ConfigurationError(
            "joined: the charter names no pairs; agree on them: lab charter pair"
        )
    cap = experiment.alignment.cap or pairs.cap
    settings = experiment.alignment.model_copy(update={"cap": cap})
    whole = experiment.model_copy(update={"alignment": settings})
    if text := _difference(whole, pairs):
        raise ConfigurationError(text)
    return whole


def check_pairs(plan: StudyPlan, pairs: Pairs | None) -> None:
    """Raises :class:`PolicyError` for a plan of joined sides that are not the charter's."""
    if not plan.experiment.joined:
        return
    if pairs is None:
        raise PolicyError("the charter names no pairs of sides", RULE)
    if text := _difference(plan.experiment, pairs):
        raise PolicyError(text, RULE)
    plan.experiment.check_joined()


def secret_purpose(run: str, name: str, peer: str) -> bytes:
    """What a dealer's secret is sealed for: a run, and a side's products with one other."""
    return _purpose(b"secret", run, name, peer)


def correction_purpose(query: str, turn: int, fund: str, insurer: str) -> bytes:
    """What is sealed to the fund for one turn of a sum."""
    return _purpose(b"correction", query, str(turn), fund, insurer)


def _purpose(what: bytes, *names: str) -> bytes:
    return wire.join(LETTER, [what, *(name.encode() for name in names)])


def _difference(experiment: Experiment, pairs: Pairs) -> str:
    """In what an experiment is of other sides than the charter's, in words."""
    if experiment.model.kind != "glm":
        return f"model.kind: real joined sides take 'glm', got '{experiment.model.kind}'"
    blocks = {block.name or block.role: (block.role, block.keys) for block in experiment.joined}
    sides = {name: (pairs.role(name), key) for name, key in pairs.keys.items()}
    if blocks != sides:
        return f"joined: {_sides(blocks)}; the charter's sides are {_sides(sides)}"
    alignment, protection = experiment.alignment, experiment.protection
    for key, here, there in (
        ("alignment.learns", alignment.learns, pairs.learns),
        ("alignment.cap", alignment.cap, pairs.cap),
        ("protection.product", protection.product, pairs.product),
        ("protection.sums", protection.sums, "paillier"),
    ):
        if here != there:
            return f"{key}: must be '{there}' by the charter, got '{here}'"
    return ""


def _sides(sides: dict[str, tuple[Role, tuple[str, ...]]]) -> str:
    return ", ".join(
        f"{name} ({role}, by {' and '.join(key)})" for name, (role, key) in sides.items()
    )
