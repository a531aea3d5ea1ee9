"""Experiments that come with the package, found by name wherever it is installed."""

from __future__ import annotations

from pathlib import Path

from lab.errors import ConfigurationError
from lab.records import nearest, read_toml

FOLDER = Path(__file__).with_name("experiments")


def shipped() -> dict[str, Path]:
    """The files of the experiments that come with the package, by name."""
    return {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}


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


def experiment_text(name: str) -> str:
    """The text of an experiment's file, its last line end left out.

    Raises :class:`ConfigurationError` for a file that cannot be read or is not TOML.
    """
    path = experiment_file(name)
    read_toml(path)
    return path.read_text(encoding="utf-8").removesuffix("\n")
