"""What a side holds of a model that two sides have: its part of each person's score, or its bins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from federated.joined.sums.factors import Halves, Owner, Role
from federated.queries.person.leaves import Codes, SharedTrees
from federated.queries.person.sides import Linear
from federated.queries.person.terms import ScoreTerms
from federated.study.settings import KEY
from lab.errors import ConfigurationError, ContractError, ModelError, PolicyError
from lab.models import files
from lab.models.glm import GLM
from lab.models.tree_model import Trees, binned

Held = TypeVar("Held")


def scored_model(run: Path) -> GLM | Trees:
    """The model of a run's two sides together. Raises ConfigurationError."""
    model = files.read(run)
    if not isinstance(model, GLM | Trees):
        raise ConfigurationError(
            f"{run}: scores of one person are of a glm or of trees; this is a {model.kind}"
        )
    return model


def check_terms(terms: ScoreTerms, model: GLM | Trees) -> None:
    """Raises :class:`PolicyError` for a kind of model of which nothing is told, and ConfigurationError for
    edges that no score of this model can have."""
    terms.check_kind(model.kind)
    law = model.task.law
    low = 0.0 if law.link != "identity" else -np.inf
    high = 1.0 if law.name == "binomial" else np.inf
    if not all(low < edge < high for edge in terms.bands):
        raise ConfigurationError(
            f"bands: edges of a {law.name} score must lie between {low:g} and {high:g}, got "
            f"{list(terms.bands)}"
        )


class ByPerson(Mapping[str, Held]):
    """What a side holds of each person, made of the person's row when it is asked for.

    rows: by the person's key, capped; needed: columns that must not be empty."""

    def __init__(
        self,
        rows: pd.DataFrame,
        needed: Sequence[str],
        make: Callable[[pd.DataFrame], Held],
    ) -> None:
        self._rows, self._needed, self._make = rows, list(needed), make

    def __contains__(self, key: object) -> bool:
        if key not in self._rows.index:
            return False
        return bool(self._rows.loc[[key], self._needed].notna().all(axis=None))

    def __getitem__(self, key: str) -> Held:
        try:
            return self._make(self._rows.loc[[key]])
        except (ContractError, ModelError):
            raise PolicyError("this person's row can't be scored", "person") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows.index)

    def __len__(self) -> int:
        return len(self._rows)


def holding_of(
    model: GLM | Trees,
    frame: pd.DataFrame,
    owner: Owner,
    caps: Mapping[str, float],
    role: Role,
) -> Linear | SharedTrees:
    """What a side holds. frame: its rows, each with its person's key; caps: the most of a column.

    Raises ConfigurationError where its table lacks a column of the model."""
    limits = {c: most for c, most in caps.items() if c in frame}
    frame = frame.assign(**{c: frame[c].clip(upper=most) for c, most in limits.items()})
    if isinstance(model, GLM):
        features = [term.feature for term in model.encoding.numbers]
        features += [term.feature for term in model.encoding.categories]
    else:
        features = [cut.feature for cut in model.cuts]
    own = sorted({f.column for f in features if owner(f.column) == role})
    if absent := [name for name in own if name not in frame]:
        raise ConfigurationError(f"there is no column '{absent[0]}', which the model is made of")
    rows = frame.set_index(KEY, drop=False)
    if isinstance(model, Trees):
        codes = partial(_codes, model, [cut.feature.column in own for cut in model.cuts])
        return SharedTrees(model, role, frozenset(own), ByPerson(rows, [], codes))
    halves = Halves(model.encoding, owner)
    beta = np.array(model.beta)[halves.places[role]]  # the intercept is the insurer's

    def part(row: pd.DataFrame) -> float:
        return float((halves.matrix(role, row) @ beta)[0])

    return Linear(ByPerson(rows, own, part))


def _codes(model: Trees, mine: list[bool], row: pd.DataFrame) -> Codes:
    """The bins of a person's own columns, and 0 for the others."""
    codes = np.zeros(len(model.cuts), dtype=np.uint8)
    cuts = tuple(cut for cut, own in zip(model.cuts, mine, strict=True) if own)
    codes[mine] = binned(row, cuts)[0]
    return codes
