"""`lab config`: the keys of an experiment file, printed from the schema that checks them."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from federated.cli.console import plain_table, say, say_json, say_lines, screen

if TYPE_CHECKING:
    from federated.study.experiment import Experiment

Node = dict[str, Any]


class ConfigKey(NamedTuple):
    """One key of an experiment file: (key, what it may be, default, what it is)."""

    name: str
    values: str
    default: str
    meaning: str


@click.command()
@click.argument("experiment", required=False)
@click.option("--list", "as_list", is_flag=True, help="List the experiments that are shipped.")
@click.option("--json-schema", is_flag=True, help="Print the JSON Schema, for editors.")
def config(experiment: str | None, as_list: bool, json_schema: bool) -> None:
    """Show every key of an experiment file: what it may be, its default, what it is.

    With EXPERIMENT print that file, to start one of your own from.

    \b
    lab config
    lab config --list
    lab config rand_hie > mine.toml
    lab config --json-schema > experiment.schema.json

    An editor that knows TOML schemas completes keys in a file whose first line is
    "#:schema experiment.schema.json".
    """
    if as_list:
        screen().print(_shipped())
    elif experiment is not None:
        from federated.shipped import experiment_text

        say_lines(experiment_text(experiment))
    elif json_schema:
        say_json(experiment_schema(), indent=2)
    else:
        for heading, keys in sections(experiment_schema()):
            say()
            say(heading, bold=True)
            _print_keys(keys)


def _shipped() -> Any:
    """The shipped experiments as a table, with what each needs besides."""
    from federated.shipped import shipped
    from federated.study.experiment import Experiment

    table = plain_table("experiment", "what", "data")
    for name, path in shipped().items():
        settings = Experiment.read(path)
        table.add_row(name, settings.name, _rows_of(settings))
    return table


def _rows_of(experiment: Experiment) -> str:
    """Where an experiment's rows come from, in a few words."""
    from lab.tables.sources import INSTALLED

    data = experiment.data
    if data.market is not None and experiment.joined:
        return " and ".join(str(side.source) for side in experiment.joined)
    if experiment.joined:
        return f"{', '.join(Path(side.path or '').name for side in experiment.joined)}, beside it"
    if data.market is not None or data.source in INSTALLED:
        return str(data.source)
    return f"{data.source}, by --set data.path=…"


def experiment_schema() -> Node:
    """The JSON Schema of an experiment file, as it stands in TOML (which has no null)."""
    from federated.study.experiment import Experiment

    schema = Experiment.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    # A kind that a package adds has keys of its own, which no schema of ours knows: it is left out.
    model = schema["properties"]["model"]
    model["oneOf"] = [kind for kind in model["oneOf"] if "$ref" in kind]
    return schema


def sections(schema: Node) -> Iterator[tuple[str, list[ConfigKey]]]:
    """The tables of a file in order, each with its own keys; a table within a table follows it."""
    yield from _table(schema, schema, "", "the file itself")


def _table(
    schema: Node, table: Node, prefix: str, heading: str
) -> Iterator[tuple[str, list[ConfigKey]]]:
    keys, within = [], []
    required = table.get("required", [])
    for name, node in table["properties"].items():
        place = f"{prefix}{name}"
        tables = list(_tables(schema, node))
        if not prefix and tables:
            within += [(inner, place, _is_list(node)) for inner in tables]
            continue
        keys.append(_key(schema, name, node, name in required))
        within += [(inner, place, _is_list(node)) for inner in tables]
    yield heading, keys
    for inner, place, in_list in within:
        kind = inner["properties"].get("kind", {})
        of_kind = f", kind = '{kind['const']}'" if "const" in kind and place == "model" else ""
        title = f"[[{place}]]" if in_list and "." not in place else f"[{place}]{of_kind}"
        yield from _table(schema, inner, f"{place}.", title)


def _key(schema: Node, name: str, node: Node, required: bool) -> ConfigKey:
    default = node.get("default")
    if required:
        text = "required"
    elif default is None or default in ({}, []):
        text = "none"
    elif isinstance(default, dict):
        text = "see its table"
    else:
        text = json.dumps(default, ensure_ascii=False)
    return ConfigKey(name, _allowed(schema, node), text, node.get("description", ""))


def _allowed(schema: Node, node: Node) -> str:
    """What a value may be, in words: ``number above 0, at most 1``."""
    if "$ref" in node:
        return "table"
    if "const" in node:
        return json.dumps(node["const"])
    if "enum" in node:
        return " | ".join(json.dumps(value) for value in node["enum"])
    for union in ("anyOf", "oneOf"):
        if union in node:
            kinds = [_allowed(schema, n) for n in node[union] if n.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if node.get("type") == "array":
        return f"list of {_allowed(schema, node['items'])}"
    if node.get("type") == "object":
        return f"table of {_allowed(schema, node['additionalProperties'])}"
    kind = {"integer": "whole number", "string": "text", "boolean": "true | false"}
    limits = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "exclusiveMaximum": "below",
        "maximum": "at most",
        "pattern": "like",
        "maxLength": "of at most so many characters:",
    }
    bounds = [f"{word} {node[limit]}" for limit, word in limits.items() if limit in node]
    first = [str(kind.get(node["type"], node["type"])), *bounds[:1]]
    return ", ".join([" ".join(first), *bounds[1:]])


def _tables(schema: Node, node: Node) -> Iterator[Node]:
    """The tables that a key may hold, itself or in a list or under free names."""
    if "$ref" in node:
        yield schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    for union in ("anyOf", "oneOf"):
        for one in node.get(union, []):
            yield from _tables(schema, one)
    for inner in ("items", "additionalProperties"):
        if isinstance(node.get(inner), dict):
            yield from _tables(schema, node[inner])


def _is_list(node: Node) -> bool:
    return node.get("type") == "array"


def _print_keys(keys: list[ConfigKey]) -> None:
    width = max(100, shutil.get_terminal_size().columns)
    name = max(len(key.name) for key in keys)
    indent = " " * (name + 4)
    for key in keys:
        facts = f"{key.values}; {_default_words(key)}"
        for at, line in enumerate(textwrap.wrap(facts, width - len(indent))):
            say(f"  {key.name:<{name}}  {line}" if at == 0 else indent + line)
        for line in textwrap.wrap(key.meaning, width - len(indent)):
            say(line, mark=indent, dim=True)


def _default_words(key: ConfigKey) -> str:
    return key.default if key.default == "required" else f"default {key.default}"
