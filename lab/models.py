"""Models as files: JSON that anybody can load without running code."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.contracts import Strict, parse
from lab.errors import ConfigurationError
from lab.glm import GLM, Product
from lab.profile import Profiled

if TYPE_CHECKING:
    from lab.network import Network
    from lab.trees import Trees

    Model = GLM | Product | Network | Trees | Profiled

_KINDS: dict[str, type[Strict]] = {"glm": GLM, "product": Product}


def from_json(text: str, where: str = "model") -> Model:
    """The model of a JSON text; raises :class:`ConfigurationError` for anything else."""
    try:
        values: Any = json.loads(text)
        kind = values["kind"]
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(f"{where}: is not a model file of this laboratory") from None
    if kind == "network":  # torch is loaded for networks alone
        from lab.network import Network

        return parse(Network, values, where=where)
    if kind == "trees":  # and numba for trees
        from lab.trees import Trees

        return parse(Trees, values, where=where)
    if kind == "profiled":
        inner = from_json(json.dumps(values.get("model")), where)
        return parse(Profiled, values | {"model": inner}, where=where)
    if kind not in _KINDS:
        raise ConfigurationError(
            f"{where}: no model of kind {kind!r}; there are glm, product, network, trees, profiled"
        )
    model: Any = parse(_KINDS[kind], values, where=where)
    return model  # type: ignore[no-any-return]


def read(path: Path) -> Model:
    """The model in a file."""
    return from_json(path.read_text(encoding="utf-8"), str(path))


def digest(text: str) -> str:
    """SHA-256 of a model's JSON: same seed and same rows, same digest."""
    return hashlib.sha256(text.encode()).hexdigest()
