"""What every kind of model has in common: its settings in an experiment, and what its solver gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import Field

from lab.models.families import FamilyName
from lab.models.files import Model
from lab.records import Strict

#: Called with (what is being done, step, of how many or None).
Watch = Callable[[str, int, int | None], None]


class ModelSettings(Strict):
    """``[model]``. missing: how this kind takes missing values, as ``data.missing`` names it."""

    missing: ClassVar[Literal["mean", "keep"]] = "mean"

    kind: str
    family: FamilyName
    min_persons: int = Field(
        10, ge=1, description="Persons behind each level, bin and leaf, at least; fewer are joined."
    )

    def law(self) -> dict[str, Any]:
        """Family, and link and power where they can be set."""
        return {"family": self.family}

    def check(self) -> None:
        """Raises :class:`~lab.errors.ConfigurationError` for what no solver can do."""


@dataclass(frozen=True)
class Solution:
    """A model and how it was found. trace: step, and deviance or loss; fit: a GLM's, with errors."""

    model: Model
    trace: pd.DataFrame
    fit: Any = None
