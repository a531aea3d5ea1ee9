"""The solver of every kind of model, as `lab.models.files` lists them.

A solver's file holds the ``Settings`` of its kind, which are ``[model]`` in an experiment, and
``solve(federation, task, features, contract, settings, seed, watch, left_out) -> Solution``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, PlainValidator, SerializeAsAny, Tag

from federated.solvers.solution import ModelSettings
from lab import packages
from lab.errors import ConfigurationError
from lab.models.files import KINDS

SOLVERS: Mapping[str, ModuleType] = {
    kind: import_module(f"federated.solvers.{kind}") for kind in KINDS
}


def solver_of(kind: str) -> ModuleType:
    """The module with the ``Settings`` and ``solve`` of a kind, of ours or of a package."""
    return SOLVERS[kind] if kind in SOLVERS else packages.load(kind)


def _tag(values: Any) -> str:
    kind = values.get("kind") if isinstance(values, dict) else getattr(values, "kind", None)
    return str(kind) if kind in SOLVERS or kind not in packages.installed() else "of a package"


def _of_a_package(values: Any) -> ModelSettings:
    """Settings of a kind that a package adds, checked by that package."""
    if isinstance(values, ModelSettings):
        return values
    try:
        settings: ModelSettings = packages.load(values["kind"]).Settings.model_validate(values)
    except ConfigurationError as error:
        raise ValueError(str(error)) from None
    return settings


if TYPE_CHECKING:
    AnySettings = ModelSettings
else:
    _PACKAGED = Annotated[
        SerializeAsAny[ModelSettings], PlainValidator(_of_a_package), Tag("of a package")
    ]
    #: The settings of any kind, told apart by ``kind``.
    AnySettings = Annotated[
        Union[(*(Annotated[one.Settings, Tag(kind)] for kind, one in SOLVERS.items()), _PACKAGED)],
        Discriminator(
            _tag,
            custom_error_type="kind",
            custom_error_message=f"kind must be one of {', '.join(KINDS)}, or one that an installed package adds",
        ),
    ]
