"""What stands in an experiment's file: keys that the command line sets, files that lie beside it."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

from lab.errors import ConfigurationError
from lab.records import nearest, read_toml

#: Experiments that come with the package.
SHIPPED = Path(__file__).parents[1] / "experiments"
#: Keys that name files, by the table they stand in.
FILES = {
    "data": ("path", "contract", "test_rows"),
    "protection": ("disclosure",),
    "profile": ("register_file",),
}


def experiment_file(name: str | Path) -> Path:
    """An experiment's file by its path, or by the name of one that is shipped.

    Raises :class:`ConfigurationError` where there is neither.
    """
    path = Path(name)
    if path.is_file() or path.suffix or path.name != str(name):
        return path
    files = shipped()
    if path.name not in files:
        near = nearest(path.name, list(files))
        hint = f"did you mean '{near}'?" if near else f"shipped are {', '.join(files)}"
        raise ConfigurationError(f"{name}: no such file and no shipped experiment; {hint}")
    return files[path.name]


def shipped() -> dict[str, Path]:
    """The files of the experiments that come with the package, by name."""
    return {file.stem: file for file in sorted(SHIPPED.glob("*.toml"))}


def experiment_text(name: str) -> str:
    """The text of an experiment's file, its last line end left out.

    Raises :class:`ConfigurationError`.
    """
    path = experiment_file(name)
    read_toml(path)
    return path.read_text(encoding="utf-8").removesuffix("\n")


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
