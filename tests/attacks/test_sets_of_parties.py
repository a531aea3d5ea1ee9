"""A coordinator asks once more without an insurer, with one key of the plan changed, and subtracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from federated.study.result import Study
from lab.errors import PeerError
from tests.rigs.trial import Trial, started


def told(study: Study) -> dict[str, float]:
    """What a run of a model tells of rows and claims."""
    result = study.arms["federated"]
    scores = result.evaluations["model"]["all"].fit
    return {
        "training rows": result.models["all"]["model"].fit.rows,
        "test rows": scores["size"][0],
        "test claims": scores["actual"][0],
    }


def difference(trial: Trial, name: str) -> dict[str, float]:
    """What two runs tell of an insurer: one of all, and one of another family without it."""
    experiment = trial.experiment(3)
    poisson = experiment.model.model_copy(update={"family": "poisson"})
    with started(trial):
        everybody = told(trial.run(experiment))
        near = experiment.model_copy(update={"model": poisson})
        others = told(trial.run(near, without=(name,)))
    return {what: everybody[what] - others[what] for what in everybody}


@pytest.mark.slow
def test_where_parties_may_leave_two_near_runs_show_an_insurer_s_own_sums(
    tmp_path: Path, authority_key: Any
) -> None:
    """The unprotected twin."""
    trial = Trial(tmp_path, authority_key, parties_may_leave=True)
    rows = pd.read_parquet(tmp_path / "insurer 4.parquet")
    test = rows[rows["held_out"] == 1]
    own = {"training rows": len(rows) - len(test), "test rows": len(test)}
    own["test claims"] = test["y3"].sum()
    assert difference(trial, "insurer 4") == pytest.approx(own)


def test_no_run_is_of_fewer_parties_than_the_one_before(tmp_path: Path, authority_key: Any) -> None:
    with pytest.raises(PeerError, match=r"insurer 4's own sum; totals are of the same parties"):
        difference(Trial(tmp_path, authority_key), "insurer 4")
