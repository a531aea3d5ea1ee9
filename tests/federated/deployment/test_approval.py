"""Whoever approves a plan sees all of it: no field can be changed without the screen changing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from federated.cli.main import lab
from federated.deployment import charter as charters
from federated.deployment.charter import Charter
from federated.deployment.enrolment import IDENTITY_FORMAT
from federated.deployment.folders import CHARTER, IDENTITY
from federated.deployment.node.approval import MOST_VALUES, plan_lines, request_lines, waiting
from federated.study.plan import StudyPlan
from lab.audit.approvals import APPROVED, REQUESTS
from lab.errors import ConfigurationError
from lab.files import canonical, write_whole
from lab.models.profile import ProfileCells, Profiling
from lab.queries.questions import Compare
from tests.federated.study.test_bound_questions import plan_of
from tests.rigs.members import Members, members

HOSTILE = "visits\x1b[2K\x1b[1Gharmless\n\u202etxet\x9b31m"


def rich_plan() -> StudyPlan:
    """A plan in which most of what can be set is set."""
    plan = plan_of(
        "trees",
        seed=7,
        data={
            "path": "at the parties",
            "target": "claims",
            "cap": {"claims": 4},
            "missing": "drop",
            "features": ["age", {"column": "bonus", "cut": [60.0, 90.0]}],
        },
        query=[{"sql": "select count(*) from t", "noise": {"epsilon": 0.5}}],
    )
    where = Compare(column="age", operation=">", value=30)
    asked = Profiling(name="k", by="provider", day="day", means=("bonus",), where=where)
    cells = ProfileCells(asked=asked, numbers=tuple(range(200)), first=0, periods=2)
    experiment = plan.experiment.model_copy(update={"profile": (asked,)})
    return plan.model_copy(update={"cells": (cells,), "experiment": experiment})


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value, of empty lists and tables, and of those that are not set."""
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    if not list(pairs):
        yield place
        return
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(each, (*place, key))


def changed(values: dict[str, Any], place: tuple[Any, ...]) -> dict[str, Any]:
    """The values with another one at a place."""
    other = copy.deepcopy(values)
    table: Any = other
    for key in place[:-1]:
        table = table[key]
    match table[place[-1]]:
        case bool(value):
            table[place[-1]] = not value
        case int(value) | float(value):
            table[place[-1]] = value + 1
        case str(value):
            table[place[-1]] = f"{value}x"
        case _:
            table[place[-1]] = 1
    return other


def test_every_field_of_a_plan_is_on_the_screen() -> None:
    values = rich_plan().model_dump(mode="json")
    lines, places = plan_lines(values), list(leaves(values))
    assert len(places) > 150
    for place in places:
        assert plan_lines(changed(values, place)) != lines, place
        if isinstance(place[-1], int):  # left out of its list
            shorter = copy.deepcopy(values)
            table: Any = shorter
            for key in place[:-1]:
                table = table[key]
            del table[place[-1]]
            assert plan_lines(shorter) != lines, place


def test_what_a_person_asks_about_a_plan_stands_in_words(
    tmp_path: Path, authority_key: Any
) -> None:
    five, plan = members(tmp_path, authority_key.public), rich_plan()
    text = "\n".join(request_lines(plan, five.charter))
    for shown in (
        "city fund, ping-an, 太保; 3 or more behind a sum, the same behind all sums",
        "10 or more behind every cell",
        "opened by supervisor, who keeps those of models",
        "asked by   exchange",
        "experiment.seed = 7",
        "experiment.data.test = 0.2",
        'experiment.data.missing = "drop"',
        "experiment.data.cap = { claims = 4.0 }",
        'experiment.protection.sums = "paillier"',
        "cut = [60.0, 90.0]",
        f"… {200 - MOST_VALUES} more, SHA-256",
        plan.digest,
    ):
        assert shown in text, shown


@pytest.mark.parametrize(
    ("sums", "words"),
    [("masks", "told to all parties"), ("clear", "IN THE CLEAR: the coordinator reads every")],
)
def test_a_weaker_protection_is_told(
    tmp_path: Path, authority_key: Any, sums: str, words: str
) -> None:
    five = members(tmp_path, authority_key.public)
    plan = plan_of("glm", protection={"sums": sums})
    assert words in "\n".join(request_lines(plan, five.charter))


def asked_of(folder: Path, five: Members, plan: StudyPlan) -> Charter:
    """The folder of ping-an's node, of which a plan was asked."""
    for name in (REQUESTS, APPROVED):
        (folder / name).mkdir(parents=True)
    write_whole(folder / REQUESTS / f"{plan.digest}.json", plan.to_json().encode())
    (identity,) = (
        p for p in folder.parent.glob("*.identity.json") if b'"ping-an"' in p.read_bytes()
    )
    assert IDENTITY_FORMAT.encode() in identity.read_bytes()
    write_whole(folder / IDENTITY, identity.read_bytes(), 0o600)
    return five.sign(folder / CHARTER)


def test_the_command_shows_a_plan_without_what_a_terminal_acts_on(
    tmp_path: Path, authority_key: Any
) -> None:
    five = members(tmp_path, authority_key.public)
    plan = plan_of("glm", name=HOSTILE)
    folder = tmp_path / "ping-an"
    asked_of(folder, five, plan)
    done = CliRunner().invoke(lab, ["node", "requests", str(folder)], catch_exceptions=False)
    assert plan.digest in done.output
    assert all(line.isprintable() for line in done.output.splitlines())
    assert not any(line.startswith("txet") for line in done.output.splitlines())
    digest = plan.digest[:12]
    approve = ["node", "approve", str(folder), digest, "--by", "Li Wei"]
    done = CliRunner().invoke(lab, approve, catch_exceptions=False)
    assert done.output == f"approved {plan.digest}\n"
    assert not waiting(folder)


def test_a_request_whose_plan_was_changed_on_disk_is_not_shown(
    tmp_path: Path, authority_key: Any
) -> None:
    five, plan = members(tmp_path, authority_key.public), plan_of("glm")
    folder = tmp_path / "ping-an"
    asked_of(folder, five, plan)
    other = canonical(plan_of("trees").model_dump(mode="json"))
    (folder / REQUESTS / f"{plan.digest}.json").write_bytes(other)
    with pytest.raises(ConfigurationError, match="holds another plan than its name says"):
        waiting(folder)
    assert charters.read_signed(folder / CHARTER) == five.charter
