"""The model as MLflow loads it: this file is its code, the JSON beside it its numbers. No pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from lab.models.files import read


class LoggedModel(PythonModel):  # type: ignore[misc]
    """Expected target for one unit of exposure, one for each row of the table."""

    def load_context(self, context: Any) -> None:
        self.model = read(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.Series:
        return pd.Series(self.model.predict(model_input), name="prediction")


set_model(LoggedModel())
