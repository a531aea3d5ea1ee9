"""What stands in an experiment's file: keys that the command line sets, files that lie beside it."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

from lab.errors import ConfigurationError

#: Keys that name files, by the table they stand in.
FILES = {
    "data": ("path", "contract", "test_rows"),
    "protection": ("disclosure",),
    "profile": ("register_file",),
    "joined": ("path", "contract"),
}


def look_beside(values: dict[str, Any], folder: Path) -> None:
    """Let files that lie in the folder of an experiment be named from there."""
    for name, keys in FILES.items():
        content = values.get(name)
        tables = content if isinstance(content, list) else [content]
        for table in (each for each in tables if isinstance(each, dict)):
            for key in keys:
                file = table.get(key)
                if isinstance(file, str) and "://" not in file and (folder / file).exists():
                    table[key] = str(folder / file)


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested tables; text that is TOML is read as TOML."""
    if isinstance(value, str):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            value = tomllib.loads(f"x = {value}")["x"]
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"--set {key}: '{part}' is not a table")
    values[last] = value
