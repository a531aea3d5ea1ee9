"""A node's refusals by rules of its own, and what insurers and supervisors check alike."""

from __future__ import annotations

from typing import Any

from federated.study.plan import StudyPlan
from lab.errors import PolicyError
from lab.privacy.disclosure import Rules
from lab.tables.contracts import Column, Contract


class Refusal(PolicyError):
    """A node's refusal by a rule of its own."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text, rule)


def check_disclosure(study: StudyPlan, rules: Rules) -> None:
    """Raises :class:`Refusal` where a plan lets out what stands on fewer persons than a party's
    rules say: by rules of its own, or by the levels, bins and leaves of its model."""
    if study.rules != rules:
        raise Refusal("disclosure", "the plan has other rules of disclosure than this party")
    least, persons = rules.minimum_count.persons, study.experiment.model.min_persons
    if persons < least:
        raise Refusal(
            "disclosure",
            f"the plan lets a model stand on {persons} persons and this party's rules ask for "
            f"{least}; raise model.min_persons",
        )
    parties = rules.minimum_parties.parties
    if study.least_parties < parties and not study.experiment.joined:
        few = f"the plan lets a cell of a model stand on {study.least_parties} parties"
        raise Refusal("disclosure", f"{few} and this party's rules ask for {parties}")


def check_columns(ours: Contract, theirs: Contract, names: set[str]) -> None:
    """Raises :class:`Refusal` for a column that the two contracts describe differently."""
    for name in sorted(names):
        here, there = ours.columns.get(name), theirs.columns.get(name)
        if here is None or there is None or _rule_of(here) != _rule_of(there):
            raise Refusal(
                "contract",
                f"column '{name}' is not the same in this party's contract as in {theirs.name}",
            )


def _rule_of(column: Column) -> dict[str, Any]:
    """What a column must be, without what a contract says for people, and its role."""
    return column.model_dump(exclude={"description", "advice", "unit", "role"})
