"""`lab data draft`: a contract and an experiment to start from, written for a table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from federated.cli.console import say

if TYPE_CHECKING:
    from lab.tables.contracts import Column
    from lab.tables.drafts import Draft

#: The fewest rows of which some are kept for testing, and of which five parties are made.
TESTED_ROWS, ROWS_OF_FIVE = 100, 1000


@click.command("draft")
@click.argument("table_file", metavar="TABLE")
@click.option("--target", help="The column to model; default: guessed.")
@click.option("--table", help="The table, where TABLE is the address of a database.")
@click.option("--query", help="Or a query.")
@click.option("--encoding", help="Of a CSV that is not UTF-8, as gb18030 or cp1252.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    show_default=True,
    help="The folder to write to.",
)
def draft(
    table_file: str,
    target: str | None,
    table: str | None,
    query: str | None,
    encoding: str | None,
    out: Path,
) -> None:
    """Write a contract and an experiment for a table, with what was guessed and why.

    Nothing is overwritten. Read both files before you rely on them: the contract is what others see.

    \b
    lab data draft claims.csv
    lab data draft claims.csv --target claim_count --out claims
    """
    from lab.errors import ConfigurationError
    from lab.files import write_whole
    from lab.tables.drafts import drafted
    from lab.tables.sources import unchecked

    frame, types, origin = unchecked(path=table_file, table=table, query=query, encoding=encoding)
    name = re.sub(r"\.(csv|csv\.gz|parquet|gz)$", "", origin)
    stem = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "table"
    contract, experiment = out / f"{stem}-contract.toml", out / f"{stem}-experiment.toml"
    for path in (contract, experiment):
        if path.exists():
            raise ConfigurationError(f"{path}: is there already; name another folder with --out")
    guesses = drafted(frame, types, target)
    place: dict[str, str | None] = {"path": _beside(table_file, out), "contract": contract.name}
    place |= {"table": table, "query": query, "encoding": encoding}
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        contract: contract_lines(guesses, name, origin),
        experiment: experiment_lines(guesses, name, origin, place, len(frame)),
    }
    for path, lines in texts.items():  # an address may hold a password
        write_whole(path, ("\n".join(lines) + "\n").encode(), 0o600)
    kind = f"{guesses.family.value}: {guesses.family.reason}"
    say(f"models {guesses.target.value} ({guesses.target.reason}; {kind})")
    say(f"by {', '.join(guesses.features)}")
    say(f"contract    {contract}")
    say(f"experiment  {experiment}")
    say(f"next: read both, then lab run {experiment}")


def _beside(table_file: str, out: Path) -> str:
    """A table's file as it is named from a folder that it lies in, else its whole path; an address
    of a database as it stands."""
    if "://" in table_file:
        return table_file
    file, folder = Path(table_file).resolve(), out.resolve()
    return str(file.relative_to(folder) if file.is_relative_to(folder) else file)


def contract_lines(guesses: Draft, name: str, origin: str) -> Iterator[str]:
    """The text of the contract file."""
    yield _comment(f"Drafted from {origin}, to be read and corrected: what is guessed says why.")
    yield "# Others see this file. So no largest value stands in it, which may be one person's, and no"
    yield "# level of few persons. Add maximum, unit and description; `lab data check` holds a table to it."
    yield f"name = {_toml(name)}"
    yield f"title = {_toml(f'drafted from {origin}')}"
    yield ""
    yield "[columns]"
    reasons = {each.value: each.reason for each in (guesses.target, guesses.exposure) if each}
    for column, (rules, note) in guesses.columns.items():
        why = reasons.get(column, note)
        part = f"{rules.role}: " if rules.role != "feature" else ""
        if why:
            yield _comment(f"{part}{why}")
        yield f"{_key(column)} = {_rules(rules)}"


def experiment_lines(
    guesses: Draft, name: str, origin: str, place: dict[str, str | None], rows: int
) -> Iterator[str]:
    """The text of the experiment file. place: keys that say where the rows are."""
    yield _comment(f"Drafted from {origin}, to be read and corrected: what is guessed says why.")
    yield "# `lab config` shows every key of such a file."
    yield f"name = {_toml(f'{guesses.target.value}, {name}')}"
    yield "seed = 1"
    yield ""
    yield "[data]"
    yield from (f"{key} = {_toml(value)}" for key, value in place.items() if value)
    parts = {"target": guesses.target, "exposure": guesses.exposure, "person": guesses.person}
    parts["missing"] = guesses.missing
    for key, guess in parts.items():
        if guess is not None:
            yield f"{key} = {_toml(guess.value)}  {_comment(guess.reason)}"
    yield "features = ["
    yield from (f"    {_toml(feature)}," for feature in guesses.features)
    yield "]"
    for column, why in guesses.left_out.items():
        yield _comment(f"not a feature: {column} {why}")
    if rows < TESTED_ROWS:
        yield f"test = 0  # {rows} rows are too few to keep some for testing: scores are in sample"
    else:
        yield "test = 0.2"
    yield ""
    yield '[parties]  # simulated: each gets a share of the rows; or split = "column" and a column'
    yield 'split = "uniform"'
    yield f"count = {5 if rows >= ROWS_OF_FIVE else 3}"
    yield ""
    yield "[model]"
    yield 'kind = "glm"'
    yield f"family = {_toml(guesses.family.value)}  {_comment(f'the target: {guesses.family.reason}')}"
    if guesses.family.value == "tweedie":
        yield "power = 1.5"
    elif guesses.family.value == "gamma":
        yield 'link = "log"'
    yield "ridge = 0.01  # for a first run with whatever columns; 0 is the plain fit, which says"
    yield "              # where columns follow from each other or tell all of the target"


def _rules(column: Column) -> str:
    """A column's rules as a TOML table on one line."""
    values = column.model_dump(mode="json", exclude_defaults=True)
    return f"{{ {', '.join(f'{key} = {_toml(value)}' for key, value in values.items())} }}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    """Text, a number, true or false, or a list of these; JSON's form of them is TOML's too."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    from lab.text import printable

    return f"# {printable(text)}"
