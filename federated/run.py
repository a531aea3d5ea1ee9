"""Run an experiment or ask its questions, in simulation or among real parties: one file knows both.
A finished run is loaded here too.

>>> from federated.run import run
>>> study = run("rand_hie", {"model.ridge": 0.1})   # doctest: +SKIP
>>> study.scores                                                      # doctest: +SKIP
>>> load(study.folder).scores                                         # doctest: +SKIP
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd

from federated.queries.desk import Desk
from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from federated.study.run_folder import finished, keep, try_folder
from federated.study.settings import Query
from lab.errors import LabError
from lab.privacy.noise import Noise
from lab.report.finished_run import FinishedRun


def run(
    path: str | Path | Experiment,
    changes: dict[str, Any] | None = None,
    *,
    engine: str = "grid",
    runs: str | Path = "runs",
    workers: int | None = None,
    tracking_uri: str | None = None,
    track: bool = True,
    progress: Any = None,
    exchange: str | Path | None = None,
    fresh: bool = False,
    without: tuple[str, ...] = (),
) -> Study:
    """Run an experiment: its arms, its questions, the report, the MLflow run.

    ``runs``: the folder that keeps runs and MLflow's database; ``exchange``: the folder of an
    exchange whose parties take part; ``fresh``: start anew instead of resuming an unfinished run
    there; ``without``: insurers there that are not asked. Returns a
    :class:`~federated.study.result.Study`, whose ``scores``, ``coefficients``, ``convergence`` and
    ``receipt`` are DataFrames. Raises :class:`~lab.errors.LabError` for all that can be explained.
    """
    experiment = path if isinstance(path, Experiment) else Experiment.read(path, changes)
    try_folder(Path(runs))
    start = time.perf_counter()
    if exchange is None:
        answers = _simulated_answers(experiment, Path(runs))
        study = perform(experiment, engine=engine, workers=workers, progress=progress)
        study.answers = answers
    else:
        from federated.deployment.coordinator.study import ask_questions, run_study

        folder = Path(exchange)
        study = run_study(experiment, folder, fresh=fresh, without=without, progress=progress)
        if experiment.query:
            try:
                study.answers = ask_questions(
                    experiment, folder, fresh=fresh, without=without, progress=progress
                )
            except LabError as error:  # the model is there, and is kept
                study.unanswered = str(error)
    study.seconds["run"] = time.perf_counter() - start
    if progress is not None:
        progress("report", "writing and logging", 0, None)
    keep(study, Path(runs), tracking_uri=tracking_uri, track=track)
    return study


def load(folder: str | Path) -> FinishedRun:
    """A finished run by its folder, with its tables as DataFrames under the names of a study.

    folder: ``runs/20261129-131057-visits-rand-hie-b9bc``, or a beginning that no other run has.
    Raises :class:`~lab.errors.ConfigurationError` where there is none.
    """
    path = Path(folder)
    return FinishedRun(path if path.is_dir() else finished(path.parent, path.name))


def ask(
    path: str | Path | Experiment,
    sql: str,
    changes: dict[str, Any] | None = None,
    *,
    noise: Noise | None = None,
    runs: str | Path | None = "runs",
    exchange: str | Path | None = None,
    without: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Ask the parties of an experiment one question; `federated.queries.desk.Desk` takes several.

    ``runs``: the folder in which simulated parties keep what they were asked, None for memory
    alone; ``exchange``, ``without``: as in :func:`run`. Raises :class:`~lab.errors.LabError`.
    """
    experiment = path if isinstance(path, Experiment) else Experiment.read(path, changes)
    if exchange is None:
        with Desk.on(experiment, runs=runs) as desk:
            return desk.ask(sql, noise=noise)
    from federated.deployment.coordinator.study import ask_questions

    only = experiment.model_copy(update={"query": (Query(sql=sql, noise=noise),)})
    ((_, answer),) = ask_questions(only, Path(exchange), without=without)
    return answer


def _simulated_answers(experiment: Experiment, runs: Path) -> list[tuple[Query, pd.DataFrame]]:
    """Each question of the experiment with its answer; under Paillier where models are under masks,
    because then the coordinator opens every total and nothing could be held back."""
    if not experiment.query:
        return []
    if experiment.protection.sums == "masks":
        hidden = experiment.protection.model_copy(update={"sums": "paillier"})
        experiment = experiment.model_copy(update={"protection": hidden})
    with Desk.on(experiment, runs=runs) as desk:
        return [(query, desk.ask(query.sql, noise=query.noise)) for query in experiment.query]
