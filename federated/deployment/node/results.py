"""The fitted model at an insurer: delivered at the end of a run and scored on the insurer's rows.

The scores stay with the insurer, so that nobody compares insurers by them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from federated.deployment.plan import AnnouncedPlan
from federated.messages import message_of, read
from federated.party.party import Party, Policy
from federated.study.market import RemoteMarket
from federated.study.run_folder import plain
from federated.study.scoring import remote_scorer, scored
from federated.study.simulation import in_process
from lab.errors import LabError, PeerError
from lab.files import canonical, write_whole
from lab.models import files as models
from lab.privacy.disclosure import Rules

#: Where a node keeps what it was given: a folder for each run, as `lab score` reads it.
RESULTS = "results"
MODEL, SCORES = Path("models", "federated.json"), "scores.json"


def model_content(
    file: str, parts: Mapping[str, str], constants: Mapping[str, float]
) -> RecordDict:
    """What every insurer is given: the model as it is kept, each part of it, and the mean of all
    training rows that each part is measured against."""
    scoring = {"parts": dict(parts), "constants": dict(constants)}
    return message_of(model=file.encode(), scoring=json.dumps(scoring).encode())


def take(folder: Path, run: str, study: AnnouncedPlan, party: Party, content: RecordDict) -> str:
    """Keep the model, and this party's scores beside it; returns a line for whoever looks on.

    Raises :class:`PeerError` for what is no model of this study.
    """
    file = read(content, "model").decode()
    try:
        models.from_json(file)
        scoring = json.loads(read(content, "scoring"))
        parts = {str(part): str(text) for part, text in scoring["parts"].items()}
        constants = {str(part): float(mean) for part, mean in scoring["constants"].items()}
    except (LabError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise PeerError(
            f"coordinator: the delivered model is not readable ({type(error).__name__})"
        ) from None
    place = folder / RESULTS / run
    record: dict[str, Any] = {"experiment": study.experiment.name, "hash": models.digest(file)}
    record["rows"] = 0 if party.test is party.train else len(party.test)
    try:
        record["scores"] = _scores(study, party, parts, constants)
    except LabError as error:  # too few test rows, or none that a score can be taken of
        record["scores"], record["why"] = {}, str(error)
    (place / MODEL).parent.mkdir(parents=True, exist_ok=True)
    write_whole(place / MODEL, file.encode(), 0o600)
    write_whole(place / SCORES, canonical(plain(record)) + b"\n", 0o600)
    return f"run {run}: model {record['hash'][:16]} is in {place}; {_headline(record)}"


def _scores(
    study: AnnouncedPlan, party: Party, parts: Mapping[str, str], constants: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """The scores of each part on this party's own test rows."""
    own = Rules.of_own_rows()
    alone = replace(party, policy=Policy(minimum_rows=1, rules=own))
    alone.profiles = party.profiles
    market = RemoteMarket(study.experiment, study.joined_contract, study.features)
    with in_process([alone], 1, own) as one:
        scorer = remote_scorer(study.experiment, market, one, constants)
        evaluations = scorer.shared(dict(parts), one)
    return {part: scored(study.experiment, each["all"]) for part, each in evaluations.items()}


def _headline(record: Mapping[str, Any]) -> str:
    if not record["scores"]:
        return f"no score on own rows: {record['why']}"
    last = list(record["scores"].values())[-1]
    names = {"average_precision": "PR-AUC", "deviance_explained": "deviance explained"}
    key = next(name for name in names if name in last)
    return f"{names[key]} on {record['rows']:,} own test rows {last[key]:.4f}"
