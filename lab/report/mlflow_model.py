"""The model as MLflow loads it: this file is its code, the JSON beside it its numbers. No pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from lab.models.files import read
from lab.models.prediction import input_rows


class LoggedModel(PythonModel):  # type: ignore[misc]
    """Expected target for one unit of exposure, one for each row of the table.

    Columns are read as `lab score` reads them: whole numbers are numbers, a code may be text or a
    number. Raises :class:`~lab.errors.ContractError` for what the model cannot read.
    """

    def load_context(self, context: Any) -> None:
        self.model = read(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.Series:
        rows = input_rows(self.model, model_input, where="the table")
        return pd.Series(self.model.predict(rows), index=model_input.index, name="prediction")


set_model(LoggedModel())
