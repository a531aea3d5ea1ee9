"""What a side holds of a model that two sides have: its part of each person's score, or its bins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from federated.joined.sums.factors import Halves, Owner, Role
from federated.queries.person.leaves import SharedTrees
from federated.queries.person.sides import Linear
from federated.queries.person.terms import ScoreTerms
from federated.study.settings import KEY
from lab.errors import ConfigurationError
from lab.models import files
from lab.models.glm import GLM
from lab.models.tree_model import Trees, binned


def scored_model(run: Path) -> GLM | Trees:
    """The model of a run's two sides together. Raises ConfigurationError."""
    model = files.read(run)
    if not isinstance(model, GLM | Trees):
        raise ConfigurationError(
            f"{run}: scores of one person are of a glm or of trees; this is a {model.kind}"
        )
    return model


def check_bands(terms: ScoreTerms, model: GLM | Trees) -> None:
    """Raises ConfigurationError for edges that no score of this model can have."""
    law = model.task.law
    low = 0.0 if law.link != "identity" else -np.inf
    high = 1.0 if law.name == "binomial" else np.inf
    if not all(low < edge < high for edge in terms.bands):
        raise ConfigurationError(
            f"bands: edges of a {law.name} score must lie between {low:g} and {high:g}, got "
            f"{list(terms.bands)}"
        )


def holding_of(
    model: GLM | Trees,
    frame: pd.DataFrame,
    owner: Owner,
    caps: Mapping[str, float],
    role: Role,
) -> Linear | SharedTrees:
    """What a side holds. frame: its rows, each with its person's key; caps: the most of a column."""
    limits = {c: most for c, most in caps.items() if c in frame}
    frame = frame.assign(**{c: frame[c].clip(upper=most) for c, most in limits.items()})
    if isinstance(model, GLM):
        return _linear(model, frame, owner, role)
    columns = {cut.feature.column for cut in model.cuts}
    own = frozenset(column for column in columns if owner(column) == role)
    cuts = tuple(cut for cut in model.cuts if cut.feature.column in own)
    codes = np.zeros((len(frame), len(model.cuts)), dtype=np.uint8)
    codes[:, [cut in cuts for cut in model.cuts]] = binned(frame, cuts)
    return SharedTrees(model, role, own, dict(zip(frame[KEY], codes, strict=True)))


def _linear(model: GLM, frame: pd.DataFrame, owner: Owner, role: Role) -> Linear:
    """The side's part of the linear predictor; the intercept is the insurer's."""
    halves = Halves(model.encoding, owner)
    features = [term.feature for term in model.encoding.numbers]
    features += [term.feature for term in model.encoding.categories]
    own = [each.column for each in features if halves.owner(each.column) == role]
    frame = frame[frame[own].notna().all(axis=1)]
    beta = np.array(model.beta)[halves.places[role]]
    parts = (halves.matrix(role, frame) @ beta).tolist()
    return Linear(dict(zip(frame[KEY], parts, strict=True)))
