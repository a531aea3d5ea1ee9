"""Records that input from outside is parsed into.

Every mistake in a file is reported at once, an unknown key with the nearest known one.
"""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lab.errors import ConfigurationError
from lab.text import printable

Model = TypeVar("Model", bound=BaseModel)


#: Stands among known keys where a table's keys are free, as the names of columns are.
ANY = "*"


MISTAKES_SHOWN = 20


class Strict(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dictionary, or a ConfigurationError that names the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"{path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested tables; text that is TOML is read as TOML."""
    if isinstance(value, str):
        value = toml_value(value)
    *path, last = key.split(".")
    for part in path:
        if isinstance(values, list):
            values = _numbered(values, part, key)
        else:
            values = values.setdefault(part, {})
        if not isinstance(values, dict | list):
            raise ConfigurationError(f"--set {key}: '{part}' is not a table")
    if isinstance(values, list):
        raise ConfigurationError(
            f"--set {key}: name a key of one of its tables, as {path[0]}.0.path"
        )
    values[last] = value


def toml_value(text: str) -> Any:
    """The value that a text is in TOML; the text itself where it is none.

    >>> toml_value("[3, 6]"), toml_value("clear")
    ([3, 6], 'clear')
    """
    with contextlib.suppress(tomllib.TOMLDecodeError):
        return tomllib.loads(f"x = {text}")["x"]
    return text


def _numbered(tables: list[Any], number: str, key: str) -> Any:
    """One of several tables of a name, counted from 0."""
    if not number.isdecimal() or int(number) >= len(tables):
        raise ConfigurationError(
            f"--set {key}: '{number}' must be a number from 0 to {len(tables) - 1}, one for each table"
        )
    return tables[int(number)]


def parse(model: type[Model], values: object, *, where: str) -> Model:
    """Check ``values`` against a model; all mistakes in one error, unknown keys with the nearest known."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        mistakes = error.errors()
        lines = [printable(_mistake(model, dict(item))) for item in mistakes[:MISTAKES_SHOWN]]
        if len(mistakes) > MISTAKES_SHOWN:
            lines.append(f"and {len(mistakes) - MISTAKES_SHOWN} more")
        raise ConfigurationError("\n  ".join([f"{where}:", *lines])) from None


def _mistake(model: type[BaseModel], item: dict[str, Any]) -> str:
    place: list[str] = []
    for at, part in enumerate(map(str, item["loc"])):  # tags of unions are no keys of the file
        last = at == len(item["loc"]) - 1
        keys = _known_keys(model, place)
        if last or part.isdigit() or part in keys or ANY in keys:
            place.append(part)
    key = ".".join(place) or "the file"
    if item["type"] == "extra_forbidden":
        near = nearest(place[-1], _known_keys(model, place[:-1]))
        return f"unknown key '{key}'" + (f"; did you mean '{near}'?" if near else "")
    value = "" if isinstance(item["input"], dict | list) else f", got {item['input']!r:.60}"
    return f"{key}: {item['msg'].removeprefix('Value error, ').lower()}{value}"


def nearest(word: str, words: list[str]) -> str | None:
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, words, 1, 0.4)), None)


def _known_keys(model: type[BaseModel], place: list[str]) -> list[str]:
    """The keys allowed at a place of a model, found in its JSON schema."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for part in place:
        children = []
        for node in _resolve(nodes, definitions):
            children += [
                child
                for child in (
                    node.get("properties", {}).get(part),
                    node.get("additionalProperties") or None,
                    node.get("items") if part.isdigit() else None,
                )
                if isinstance(child, dict)
            ]
        nodes = children or nodes
    tables = _resolve(nodes, definitions)
    free = [ANY for node in tables if isinstance(node.get("additionalProperties"), dict)]
    return [key for node in tables for key in node.get("properties", {})] + free


def _resolve(nodes: list[dict[str, Any]], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for node in nodes:
        if "$ref" in node:
            out += _resolve([definitions[node["$ref"].rsplit("/", 1)[1]]], definitions)
        elif "anyOf" in node or "oneOf" in node:
            out += _resolve(node.get("anyOf") or node["oneOf"], definitions)
        else:
            out.append(node)
    return out
