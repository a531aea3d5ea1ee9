"""`lab config`: the table of keys and the JSON Schema come from what checks the files."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from federated.cli.config import config, experiment_schema, sections
from federated.shipped import shipped
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError

ROOT = Path(__file__).parents[3]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.toml"))


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


def test_every_shipped_experiment_is_found_by_its_name_and_listed() -> None:
    assert list(shipped()) == [path.stem for path in EXPERIMENTS]
    for path in EXPERIMENTS:
        assert Experiment.read(path.stem) == Experiment.read(path)
    heading, *lines = CliRunner().invoke(config, ["--list"]).output.splitlines()
    assert heading.split() == ["experiment", "what", "data"]
    assert [line.split()[0] for line in lines] == [path.stem for path in EXPERIMENTS]
    printed = CliRunner().invoke(config, ["rand_hie"]).output
    assert printed == (ROOT / "experiments" / "rand_hie.toml").read_text()


def test_shipped_experiments_are_in_the_wheel() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = [p for p in settings["package-data"]["federated"] if p.startswith("experiments/")]
    files = {file for pattern in patterns for file in (ROOT / "federated").glob(pattern)}
    assert files == set(shipped().values())


def test_a_file_comes_before_a_shipped_name_and_a_wrong_name_is_told_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rand_hie").write_text(EXPERIMENTS[0].read_text())
    assert Experiment.read("rand_hie") == Experiment.read(EXPERIMENTS[0])
    with pytest.raises(ConfigurationError, match="did you mean 'market_fraud'"):
        Experiment.read("market_fruad")
    with pytest.raises(ConfigurationError, match=r"rand_hie\.tml: no such file"):
        Experiment.read("rand_hie.tml")


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
    names["the file itself"] |= {"protection", "arms", "query", "joined", "alignment", "tune"}
    values: dict[str, Any] = tomllib.loads(path.read_text())
    assert set(values) <= names["the file itself"]
    for place, table in values.items():
        for one in table if isinstance(table, list) else [table]:
            if isinstance(one, dict):
                assert set(one) <= names[place]
