"""The model as MLflow loads it: this file is its code, the JSON beside it its numbers. No pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from lab.models import read


class Scorer(PythonModel):  # type: ignore[misc]
    """Expected target for one unit of exposure, one for each row of the table."""

    def load_context(self, context: Any) -> None:
        self.model = read(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
        return pd.Series(self.model.predict(pd.DataFrame(model_input)), name="prediction")


set_model(Scorer())
