"""Run an experiment or ask its questions, in simulation or among real parties: one file knows both.

>>> from federated.run import run
>>> study = run("experiments/rand_hie.toml", {"model.ridge": 0.1})   # doctest: +SKIP
>>> study.scores                                                      # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError

if TYPE_CHECKING:
    import pandas as pd

    from federated.study.result import Study
from federated.study.experiment import Experiment, Query


def _answers(experiment: Experiment, runs: Path) -> list[tuple[Query, pd.DataFrame]]:
    """Each question of the experiment with its answer; under Paillier where models are under masks,
    because then the coordinator opens every total and nothing could be held back."""
    if not experiment.query:
        return []
    from federated.queries.desk import Desk

    if experiment.protection.sums == "masks":
        hidden = experiment.protection.model_copy(update={"sums": "paillier"})
        experiment = experiment.model_copy(update={"protection": hidden})
    with Desk.on(experiment, runs=runs) as desk:
        return [(query, desk.ask(query.sql, noise=query.noise)) for query in experiment.query]


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
    """Run an experiment: its arms, the report, the MLflow run.

    ``runs``: the folder that keeps runs and MLflow's database; ``exchange``: the folder of an
    exchange whose parties take part, ``fresh``: not to go on with an unfinished run there,
    ``without``: insurers there that are not asked. Returns a
    :class:`~federated.study.arms.Study`, whose ``scores``, ``coefficients``, ``convergence`` and
    ``receipt`` are DataFrames. Raises :class:`~lab.errors.LabError` for all that can be explained.
    """
    from federated.study.arms import perform
    from federated.study.run_folder import keep

    experiment = path if isinstance(path, Experiment) else Experiment.read(path, changes)
    if exchange is not None:
        from federated.deployment.coordinator.study import ask_questions, run_study

        told: Any = {"fresh": fresh, "without": without, "progress": progress}
        study = run_study(experiment, Path(exchange), **told)
        if experiment.query:
            try:
                study.answers = ask_questions(experiment, Path(exchange), **told)
            except LabError as error:  # the model is there, and is kept
                study.unanswered = str(error)
        keep(study, Path(runs), tracking_uri=tracking_uri, track=track)
        return study
    answers = _answers(experiment, Path(runs))
    study = perform(experiment, engine=engine, workers=workers, progress=progress)
    study.answers = answers
    keep(study, Path(runs), tracking_uri=tracking_uri, track=track)
    return study
