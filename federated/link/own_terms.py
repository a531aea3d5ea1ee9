"""What a member itself allows others to ask, whatever the charter does: `[link]` of node.toml."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from federated.link.charter import ConditionTerms, LinkCharter
from lab.errors import ConfigurationError
from lab.records import Strict


class OwnLink(Strict):
    """``[link]``. Limits are each at most the charter's; what is not set is the charter's.

    claims: a table, compared at night; conditions: the fund's table of `person`, `group`, `first`;
    person_keys: a table of `person` and `key`, Ed25519, hexadecimal, where persons sign themselves;
    asks_a_day: of each other payer, about single claims; approval: whether a person approves each
    question about a condition.
    """

    claims: str | None = None
    conditions: str | None = None
    person_keys: str | None = None
    asks_a_day: int | None = Field(default=None, ge=0)
    groups: tuple[str, ...] | None = None
    purposes: tuple[str, ...] | None = None
    insurer_a_day: int | None = Field(default=None, ge=0)
    person_a_day: int | None = Field(default=None, ge=0)
    groups_of_a_person: int | None = Field(default=None, ge=0)
    persons_of_a_group: int | None = Field(default=None, ge=0)
    approval: Literal["never", "always"] = "never"

    def asks(self, charter: LinkCharter) -> int:
        """How often a day this member lets another payer ask about a claim."""
        return tighter(charter.desk.asks_a_day, self.asks_a_day)

    def tightened(self, terms: ConditionTerms) -> ConditionTerms:
        """The charter's terms as this member keeps them.

        Raises ConfigurationError for a group or purpose that the charter does not have.
        """
        for name, own, theirs in (
            ("groups", self.groups, terms.groups),
            ("purposes", self.purposes, terms.purposes),
        ):
            unknown = set(own or ()) - set(theirs)
            if unknown:
                raise ConfigurationError(
                    f"node.toml: link.{name}: '{min(unknown)}' is not in the charter; there are "
                    f"{', '.join(theirs)}"
                )
        return terms.model_copy(
            update={
                "groups": terms.groups if self.groups is None else self.groups,
                "purposes": terms.purposes if self.purposes is None else self.purposes,
                "insurer_a_day": tighter(terms.insurer_a_day, self.insurer_a_day),
                "person_a_day": tighter(terms.person_a_day, self.person_a_day),
                "groups_of_a_person": tighter(terms.groups_of_a_person, self.groups_of_a_person),
                "persons_of_a_group": tighter(terms.persons_of_a_group, self.persons_of_a_group),
            }
        )


def tighter(charter: int, own: int | None) -> int:
    """The lower of two limits; the charter's where a member sets none."""
    return charter if own is None else min(charter, own)
