"""`lab config`: the table of keys and the JSON Schema come from what checks the files."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from federated.cli.config import config, experiment_schema, sections

EXPERIMENTS = sorted((Path(__file__).parents[3] / "experiments").glob("*.toml"))


def test_every_key_says_what_it_is() -> None:
    silent = [
        f"{heading} {key.name}"
        for heading, keys in sections(experiment_schema())
        for key in keys
        if not key.meaning and key.name != "kind"
    ]
    assert silent == []


def test_a_key_is_printed_with_its_limits_and_its_default() -> None:
    printed = CliRunner().invoke(config).output
    assert "[protection]" in printed
    assert "key_bits      whole number at least 2048; default 3072" in printed
    assert "[model], kind = 'trees'" in printed


def test_the_json_schema_is_one_json_object() -> None:
    printed = CliRunner().invoke(config, ["--json-schema"]).output
    assert json.loads(printed) == experiment_schema()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_table_names_every_key_of_a_shipped_experiment(path: Path) -> None:
    names: dict[str, set[str]] = {}
    for heading, keys in sections(experiment_schema()):
        place = heading.split(",")[0].strip("[]")
        names.setdefault(place, set()).update(key.name for key in keys)
    names["the file itself"] |= {"data", "parties", "model", "detection", "profile"}
    names["the file itself"] |= {"protection", "arms", "query", "joined", "alignment"}
    values: dict[str, Any] = tomllib.loads(path.read_text())
    assert set(values) <= names["the file itself"]
    for place, table in values.items():
        for one in table if isinstance(table, list) else [table]:
            if isinstance(one, dict):
                assert set(one) <= names[place]
