"""The fitted model at an insurer: delivered at the end of a run and scored on the insurer's rows.

The scores stay with the insurer, so that nobody compares insurers by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from federated.party.party import Party, Policy
from federated.study.outcome import Outcome
from federated.study.plan import StudyPlan
from federated.study.run_folder import plain
from federated.study.scoring import Scorer, scored
from federated.study.simulation import in_process
from lab.errors import ConfigurationError, LabError
from lab.files import canonical, write_whole
from lab.models import files as models
from lab.privacy.disclosure import Rules
from lab.privacy.joining import NO_RULE

#: Where a node keeps what it was given: a folder for each run, as `lab score` reads it.
RESULTS = "results"
#: What is raised for results of another version, or damaged ones.
UNREADABLE = (ConfigurationError, OSError, UnicodeDecodeError)
MODEL, SCORES, PLAN = Path("models", "federated.json"), "scores.json", "plan.json"


def take(folder: Path, run: str, study: StudyPlan, party: Party, outcome: Outcome) -> str:
    """Keep the model with its plan, and this party's scores beside it; returns a line for whoever looks on."""
    file = list(outcome.models.values())[-1].file
    place = folder / RESULTS / run
    record: dict[str, Any] = {"experiment": study.experiment.name, "hash": models.digest(file)}
    record["rows"] = 0 if party.test is party.train else len(party.test)
    try:
        record["scores"] = _scores(study, party, outcome)
    except LabError as error:  # too few test rows, or none that a score can be taken of
        record["scores"], record["why"] = {}, str(error)
    (place / MODEL).parent.mkdir(parents=True, exist_ok=True)
    write_whole(place / PLAN, study.to_json().encode(), 0o600)
    write_whole(place / MODEL, file.encode(), 0o600)
    write_whole(place / SCORES, canonical(plain(record)) + b"\n", 0o600)
    return f"run {run}: model {record['hash'][:16]} is in {place}; {_headline(record)}"


def joined_runs(folder: Path) -> dict[str, Path]:
    """Folders of a node's results whose models are of joined sides, by the model's digest."""
    found = {}
    for model in sorted((folder / RESULTS).glob(f"*/{MODEL}")):
        run = model.parent.parent
        with suppress(*UNREADABLE):
            if plan_of(run).experiment.joined:
                found[models.digest(model.read_text(encoding="utf-8"))] = run
    return found


def plan_of(run: Path) -> StudyPlan:
    """The plan of a run in a node's results."""
    return StudyPlan.from_json((run / PLAN).read_text(encoding="utf-8"))


def _scores(study: StudyPlan, party: Party, outcome: Outcome) -> dict[str, dict[str, Any]]:
    """The scores of each part on this party's own test rows."""
    if study.experiment.joined:
        raise ConfigurationError("the other side's columns are not here")
    own = Rules.of_own_rows()
    alone = replace(party, policy=Policy(minimum_rows=1, rules=own), binding=None)
    alone.profiles = party.profiles
    with in_process([alone], 1, own) as one:
        scorer = Scorer(
            study.experiment, outcome.constants, study.by_level, study.groups, {}, NO_RULE
        )
        evaluations = scorer.shared(outcome.texts, one)
    return {part: scored(study.experiment, each["all"]) for part, each in evaluations.items()}


def _headline(record: Mapping[str, Any]) -> str:
    if not record["scores"]:
        return f"no score on own rows: {record['why']}"
    last = list(record["scores"].values())[-1]
    names = {"average_precision": "PR-AUC", "deviance_explained": "deviance explained"}
    key = next(name for name in names if name in last)
    rows = f"on {record['rows']:,} own test rows" if record["rows"] else "on own rows, in sample,"
    return f"{names[key]} {rows} {last[key]:.4f}"
