"""``lab bench``: what a user asks about on his own machine, each a ratio measured in one run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from lab.errors import ConfigurationError

#: Each a module beside this one, loaded when it is asked for: ``figures`` are its rows, whose
#: docstring is printed below them.
BENCHES = (
    "paillier", "masks", "alignment", "product", "link", "glm", "grid", "query", "trees", "parties",
    "quality", "joined-trees", "steps", "exchange",
)  # fmt: skip


#: Those of joined sides, which have a folder of their own.
JOINED = ("alignment", "product", "joined-trees")


def module_of(name: str) -> ModuleType:
    """The module of a bench."""
    folder = "joined." if name in JOINED else ""
    return import_module(f"federated.bench.{folder}{name.removeprefix('joined-')}")


@dataclass(frozen=True)
class Bench:
    """A bench that has run. rows: (what, ours, against, ratio) each; words: what they mean."""

    name: str
    rows: list[tuple[str, ...]]
    words: str


def report(names: tuple[str, ...], path: Path | None, quick: bool) -> Iterator[Bench]:
    """The benches named (or all), each run when it is taken.

    path: freMTPL2freq.csv(.gz), for the figures that need it; of ``quality`` also a folder of tables
    or an experiment's file. Raises :class:`ConfigurationError`
    for a name that is none of ``BENCHES``, at once.
    """
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise ConfigurationError(f"no bench '{unknown[0]}'; there are {', '.join(BENCHES)}")
    return (_measured(name, path, quick) for name in names or BENCHES)


def _measured(name: str, path: Path | None, quick: bool) -> Bench:
    figures = module_of(name).figures
    rows = [tuple(row) for row in figures(path, quick)]
    return Bench(name, rows, " ".join((figures.__doc__ or "").split()))
