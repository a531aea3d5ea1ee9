"""Models as files: JSON that anybody can load without running code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import pandas as pd

from lab import packages
from lab.errors import ConfigurationError, ContractError
from lab.models.design import Encoding
from lab.models.effects import Effects
from lab.models.glm import GLM, Task
from lab.models.profile import Profiled
from lab.records import Strict, parse
from lab.statistics import Statistic
from lab.sums import Floats


def premium_task(frequency: Task, severity: Task) -> Task:
    """The pure premium as a response: the amount with the frequency's exposure, Tweedie 1.5."""
    exposure = {"exposure": frequency.exposure, "exposure_as": frequency.exposure_as}
    return Task(target=severity.target, family="tweedie", power=1.5, **exposure)


class Product(Strict):
    """Pure premium: claim frequency times mean claim amount."""

    kind: Literal["product"] = "product"
    frequency: GLM
    severity: GLM

    def predict(self, frame: pd.DataFrame) -> Floats:
        """Expected amount for one unit of exposure, one for each row."""
        return self.frequency.predict(frame) * self.severity.predict(frame)

    def effects(self, frame: pd.DataFrame) -> Effects:
        """What each column adds to the logarithm of the pure premium of each row."""
        return self.frequency.effects(frame).plus(self.severity.effects(frame))

    def as_one(self) -> GLM:
        """The same predictions as one model of the amount: on the log link linear predictors add up.

        Raises ContractError where a part has another link, or products of columns.
        """
        parts = (self.frequency, self.severity)
        if any(part.task.law.link != "log" or part.encoding.crosses for part in parts):
            raise ContractError(
                "a product is one model on the log link alone, without interactions"
            )
        numbers, categories = [], []
        for part in parts:
            slopes, end = part.beta[1:], len(part.encoding.numbers)
            numbers.append(slopes[:end])
            categories.append(slopes[end:])
        encoding = Encoding(
            numbers=tuple(term for part in parts for term in part.encoding.numbers),
            categories=tuple(term for part in parts for term in part.encoding.categories),
        )
        beta = (sum(part.beta[0] for part in parts), *chain(*numbers), *chain(*categories))
        task = premium_task(self.frequency.task, self.severity.task)
        return GLM(task=task, encoding=encoding, beta=beta)


#: Every kind of model of ours; packages may add others (`lab.packages`). A kind has two files of its name: ``lab/models/KIND.py`` with its ``MODEL``, a
#: party's sums and their ``STATISTICS``, and ``federated/solvers/KIND.py`` with its ``Settings`` and
#: ``solve``.
KINDS = ("glm", "network", "trees")
#: What else a model file may hold: a product of two models, a model with its profiles.
COMPOSED: Mapping[str, type[Strict]] = {"product": Product, "profiled": Profiled}


#: Models of the columns of one side alone, which a run of joined sides makes beside the federated one.
ONE_SIDED = ("insurer", "fund")


class Model(Protocol):
    """What every model can do: predict the mean for one unit of exposure, and be written as JSON."""

    @property
    def kind(self) -> str:
        """What the file says it is."""

    def predict(self, frame: pd.DataFrame) -> Floats:
        """One number for each row."""

    def model_dump_json(self) -> str:
        """The model as its file has it."""


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
            f"{where}: not a model file of this laboratory, or an incomplete one"
        ) from None
    if kind == "profiled":
        values = values | {"model": from_json(json.dumps(inside), where)}
    known = (*kinds(), *COMPOSED)
    if not isinstance(kind, str) or kind not in known:
        raise ConfigurationError(
            f"{where}: unknown kind of model {kind!r:.40}; there are {', '.join(known)}"
        )
    form: Any = COMPOSED.get(kind) or _module(kind).MODEL
    model: Model = parse(form, values, where=where)
    return model


def kinds() -> tuple[str, ...]:
    """Every kind that can be loaded here, those of the user's own packages last."""
    return (*KINDS, *(kind for kind in packages.installed() if kind not in (*KINDS, *COMPOSED)))


def _module(kind: str) -> ModuleType:
    """The file of a kind, read when a model of it is first needed: torch and numba take a second."""
    return import_module(f"lab.models.{kind}") if kind in KINDS else packages.load(kind)


def statistics_of(kind: str) -> tuple[Statistic, ...]:
    """What this kind of model asks of a party, beside what every model asks."""
    rows: tuple[Statistic, ...] = _module(kind).STATISTICS
    return rows


def terms_of(model: Any) -> tuple[Any, ...]:
    """What a model reads, each with its ``feature``: terms of an encoding, cuts of trees, or the ``terms`` of a
    package's own model, numbers and levels of `lab.models.design`."""
    if hasattr(model, "cuts"):
        return tuple(model.cuts)
    if hasattr(model, "encoding"):
        return (*model.encoding.numbers, *model.encoding.categories)
    return tuple(model.terms)


def model_file(path: Path, side: str | None = None) -> Path:
    """A model's file; of a run's folder the federated one, or that of a side's columns alone.

    Raises :class:`ConfigurationError` for a side without one."""
    if side is None:
        return path / "models" / "federated.json" if path.is_dir() else path
    file = path / "models" / f"{side}.json"
    if side not in ONE_SIDED or not file.is_file():
        raise ConfigurationError(
            f"{path}: has no model of one side's columns for '{side}'; a run of joined sides makes "
            f"{' and '.join(ONE_SIDED)} where arms.run lists them"
        )
    return file


def read(path: Path) -> Model:
    """The model in a file; of a run's folder, the federated one."""
    path = model_file(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > LARGEST:
        raise ConfigurationError(f"{path}: larger than a model file may be, {LARGEST >> 20} MB")
    return from_json(data, str(path))


def digest(text: str) -> str:
    """SHA-256 of a model's JSON: same seed and same rows, same digest."""
    return hashlib.sha256(text.encode()).hexdigest()
