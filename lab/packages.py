"""Kinds of model in packages of the user's own, by entry point.

A package names a module for each kind that it adds, under :data:`GROUP`; the module has ``MODEL``, ``STATISTICS``,
``Settings`` and ``solve``, as the two files of a kind here have (`lab.models.files`, `federated.solvers.kinds`).
A module is imported when an experiment, a model file or a question names its kind. On a node that is code in
reach of its data: there only kinds that its owner named are loaded, see :func:`restrict`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from lab.errors import ConfigurationError

GROUP = "insurance_privacy_lab.models"
PARTS = ("MODEL", "STATISTICS", "Settings", "solve")

#: Kinds that may be loaded in this process; None: any that is installed.
_allowed: frozenset[str] | None = None


def restrict(kinds: Iterable[str]) -> None:
    """From now on load none but these kinds in this process."""
    global _allowed
    _allowed = frozenset(kinds)


def installed() -> Mapping[str, EntryPoint]:
    """The kinds that packages on this machine add, by name; nothing of them is loaded."""
    return _found(tuple(sys.path))


@lru_cache(4)
def _found(path: tuple[str, ...]) -> Mapping[str, EntryPoint]:
    """The same, looked up once: every question asks, and every package on the machine is read."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name.isalpha()}


def load(kind: str) -> ModuleType:
    """The module of a kind. Raises :class:`ConfigurationError` where it can't be, or must not be, loaded."""
    point = installed().get(kind)
    if point is None:
        raise ConfigurationError(f"no package here adds a kind of model '{kind:.40}'")
    if _allowed is not None and kind not in _allowed:
        raise ConfigurationError(
            f"kind '{kind}': its package is installed, but this party's owner did not name it; list it in "
            "limits.analyses of node.toml"
        )
    try:
        module: ModuleType = point.load()
    except Exception as error:  # whatever somebody's package does when it is imported
        raise ConfigurationError(
            f"kind '{kind}': {point.value} can't be loaded: {type(error).__name__}"
        ) from error
    if missing := [name for name in PARTS if not hasattr(module, name)]:
        raise ConfigurationError(f"kind '{kind}': {point.value} has no {', '.join(missing)}")
    return module


def version_of(kind: str) -> str:
    """The version of the package that adds a kind; empty where none does."""
    point = installed().get(kind)
    return "" if point is None or point.dist is None else f"{point.dist.name} {point.dist.version}"
