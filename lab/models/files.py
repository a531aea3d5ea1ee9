"""Models as files: JSON that anybody can load without running code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import ConfigurationError
from lab.models.glm import GLM, Product
from lab.models.profile import Profiled
from lab.records import Strict, parse

if TYPE_CHECKING:
    from lab.models.network import Network
    from lab.models.trees import Trees

    Model = GLM | Product | Network | Trees | Profiled

_KINDS: dict[str, type[Strict]] = {"glm": GLM, "product": Product}
#: Bytes of a model file that are read at all.
LARGEST = 1 << 28


def from_json(text: str | bytes, where: str = "model") -> Model:
    """The model of a JSON text; raises :class:`ConfigurationError` for anything else."""
    try:
        values: Any = json.loads(text)
        kind = values["kind"]
        inside = values["model"] if kind == "profiled" else {}
        if inside.get("kind") == "profiled":
            raise ValueError("one in another")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigurationError(
            f"{where}: is not a model file of this laboratory, or not all of one"
        ) from None
    if kind == "network":  # torch is loaded for networks alone
        from lab.models.network import Network

        return parse(Network, values, where=where)
    if kind == "trees":  # and numba for trees
        from lab.models.trees import Trees

        return parse(Trees, values, where=where)
    if kind == "profiled":
        inner = from_json(json.dumps(inside), where)
        return parse(Profiled, values | {"model": inner}, where=where)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigurationError(
            f"{where}: no model of kind {kind!r:.40}; there are glm, product, network, trees, "
            "profiled"
        )
    model: Any = parse(_KINDS[kind], values, where=where)
    return model  # type: ignore[no-any-return]


def read(path: Path) -> Model:
    """The model in a file; of a run's folder, the federated one."""
    if path.is_dir():
        path = path / "models" / "federated.json"
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > LARGEST:
        raise ConfigurationError(f"{path}: is larger than a model, {LARGEST >> 20} MB, can be")
    return from_json(data, str(path))


def digest(text: str) -> str:
    """SHA-256 of a model's JSON: same seed and same rows, same digest."""
    return hashlib.sha256(text.encode()).hexdigest()
