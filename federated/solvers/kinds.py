"""The solver of every kind of model, as `lab.models.files` lists them.

A solver's file holds the ``Settings`` of its kind, which are ``[model]`` in an experiment, and
``solve(federation, task, features, contract, settings, seed, watch, left_out) -> Solution``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from federated.solvers.solution import ModelSettings
from lab.models.files import KINDS

SOLVERS: Mapping[str, ModuleType] = {
    kind: import_module(f"federated.solvers.{kind}") for kind in KINDS
}

if TYPE_CHECKING:
    AnySettings = ModelSettings
else:
    #: The settings of any kind, told apart by ``kind``.
    AnySettings = Annotated[
        Union[tuple(solver.Settings for solver in SOLVERS.values())],  # noqa: UP007
        Field(discriminator="kind"),
    ]
