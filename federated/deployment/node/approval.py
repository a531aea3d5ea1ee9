"""A person approves a plan before this party takes part, and is shown all of it.

A node refuses a plan that waits for approval and keeps it in a file; the person sees every field of
it, approves it by its digest, and the coordinator asks again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from federated.deployment.charter import Charter
from federated.study.joined import LEARNS
from federated.study.plan import StudyPlan
from lab.audit import approvals
from lab.files import canonical
from lab.text import printable

#: Values of a list that are shown; of those after them the number and a hash.
MOST_VALUES = 60
#: Tables of this depth stand on one line.
ONE_LINE = 3


def waiting(folder: Path) -> dict[str, StudyPlan]:
    """Plans that wait for a person's approval, by digest. Raises :class:`ConfigurationError` for a
    file whose plan is another than its name says."""
    return approvals.waiting(
        folder, "plan", lambda path: StudyPlan.from_json(path.read_text(encoding="utf-8"))
    )


def approve(folder: Path, digest: str, who: str) -> str:
    """A person's approval of a plan; the node writes it in its log when it acts on it."""
    return approvals.approve(folder, digest, who, waiting(folder), "plan")


def request_lines(plan: StudyPlan, charter: Charter) -> list[str]:
    """A plan as a person reads it before approving: who asks and opens, then every field."""
    digest = plan.digest
    return [
        f"{digest[:12]}  {plan.title}  ({', '.join(plan.kinds)})",
        f"  asked by   {charter.coordinator}, under charter {charter.digest[:12]}",
        f"  parties    {', '.join(charter.roster.names)}; {charter.parties_line}",
        f"  persons    {plan.rules.minimum_count.persons} or more behind every cell that is told",
        f"  totals     {_opening(plan, charter)}",
        *_joined(plan, charter),
        f"  digest     {digest}",
        "  plan",
        *(f"    {line}" for line in plan_lines(plan.model_dump(mode="json"))),
    ]


def plan_lines(values: dict[str, Any]) -> list[str]:
    """Every field of a plan, JSON's values; what is not set stands in the last line by name."""
    absent: list[str] = []
    lines = list(_fields(values, (), absent))
    return [*lines, f"not set: {', '.join(absent)}"]


def _joined(plan: StudyPlan, charter: Charter) -> Iterator[str]:
    """Whose rows are joined to whose, who learns of whom, and how sides multiply."""
    pairs, alignment = charter.pairs, plan.experiment.alignment
    if not plan.experiment.joined or pairs is None:
        return
    insurers = ", ".join(pairs.peers(pairs.fund))
    least = f"{pairs.minimum_persons} persons or more"
    yield f"  joined     fund: {pairs.fund}; insurers: {insurers}; {least}"
    yield f"  alignment  {LEARNS[alignment.learns]} who is common; sets filled up to {pairs.cap:,}"
    how = "randomness that the supervisor deals" if pairs.product == "triples" else "Paillier"
    yield f"  products   by {how}; the fund's columns are {', '.join(map(_key, plan.fund_columns))}"
    if plan.kind == "trees":
        features = {f.column for own in plan.features.values() for f in own}
        cut = [_key(name) for name in plan.fund_columns if name in features]
        told = f"on {', '.join(cut)}: one bit each about every person in common" if cut else "none"
        yield f"  cuts       that the fund tells the insurers: {told}"


def _opening(plan: StudyPlan, charter: Charter) -> str:
    """How sums are hidden, who opens totals, and who is told them."""
    key = charter.key
    match plan.experiment.protection.sums:
        case "clear":
            return "IN THE CLEAR: the coordinator reads every party's own sums"
        case "masks":
            return "under masks; opened by the coordinator, and told to all parties"
        case _ if key is None:
            return "under Paillier, and the charter names no key: nobody can open them"
        case _ if key.opens == "split":
            who = f"opened by {', '.join(key.by)} together, and told to all parties"
        case _:
            who = f"opened by {key.by[0]}, who keeps those of models"
    return f"under Paillier, {key.public.bits} bits; {who}"


def _fields(value: Any, place: tuple[str, ...], absent: list[str]) -> Iterator[str]:
    """A line for every field, by its place; those that are not set are collected."""
    name = ".".join(place)
    if value is None or value in ("", [], {}):
        absent.append(name)
    elif isinstance(value, dict) and (len(place) < ONE_LINE or not _flat(value)):
        for key, each in value.items():
            yield from _fields(each, (*place, _key(key)), absent)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for at, each in enumerate(value[:MOST_VALUES], start=1):
            yield from _fields(each, (*place[:-1], f"{place[-1]}[{at}]"), absent)
        if rest := value[MOST_VALUES:]:
            yield f"{name}[{MOST_VALUES + 1}…] = {_rest(rest)}"
    else:
        yield f"{name} = {_text(value)}"


def _flat(table: dict[str, Any]) -> bool:
    return not any(
        isinstance(value, dict) or (isinstance(value, list) and any(map(_is_table, value)))
        for value in table.values()
    )


def _off(value: Any) -> bool:
    """Whether a value says nothing; zero and an empty list do."""
    return value is None or value is False or value == ""


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _text(value: Any) -> str:
    """A value as TOML writes it, on one line; of a table nothing that is false or not set."""
    match value:
        case dict():
            pairs = (f"{_key(k)} = {_text(v)}" for k, v in value.items() if not _off(v))
            return f"{{ {', '.join(pairs)} }}"
        case list():
            parts = [_text(each) for each in value[:MOST_VALUES]]
            if rest := value[MOST_VALUES:]:
                parts.append(_rest(rest))
            return f"[{', '.join(parts)}]"
        case _:
            return printable(json.dumps(value, ensure_ascii=False))


def _rest(values: list[Any]) -> str:
    digest = hashlib.sha256(canonical(values)).hexdigest()
    return f"… {len(values):,} more, SHA-256 {digest[:16]}"


def _key(key: str) -> str:
    return key if key.isidentifier() else printable(json.dumps(key, ensure_ascii=False))
