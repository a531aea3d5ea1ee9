"""The package of a run among real parties holds, and says when it says more than they signed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from federated.cli.main import lab
from federated.deployment import evidence
from federated.deployment.audit_logs import LOG_NAME
from federated.run import run
from lab.errors import LabError
from lab.files import read_json
from tests.federated.deployment.test_evidence import contents, repacked
from tests.rigs.trial import Trial, started


@pytest.mark.parametrize(
    ("hiding", "split"),
    [
        pytest.param("paillier", False, marks=pytest.mark.slow),
        pytest.param("masks", False, marks=pytest.mark.slow),
        pytest.param("paillier", True, marks=pytest.mark.slow),
    ],
)
def test_what_a_package_of_real_parties_says_is_what_they_signed(
    tmp_path: Path, authority_key: Any, hiding: str, split: bool
) -> None:
    made = Trial(tmp_path, authority_key, insurers=3, rows=80, hiding=hiding, split=split)
    with started(made):
        experiment = made.experiment(0)
        study = run(
            experiment, exchange=made.exchange, runs=tmp_path / "runs", track=False, fresh=True
        )
    absent = ["supervisor"] if split or hiding == "masks" else []
    logs = [made.root / name / LOG_NAME for name in made.names if name not in absent]
    path = tmp_path / "package.zip"
    arguments: list[Any] = ["audit", "export", "--run", study.folder, "--out", path]
    arguments += ["--charter", made.exchange / "charter.json"]
    arguments += [x for log in [*logs, made.exchange / LOG_NAME] for x in ("--log", log)]
    arguments += [x for name in absent for x in ("--without", name)]
    done = CliRunner().invoke(lab, list(map(str, arguments)), catch_exceptions=False)
    assert "files, verified" in done.output

    own = {e.query: e.told for e in made.logged("exchange", "release") if e.run == study.run}
    assert own and all(line["values"] for line in own.values())
    if (
        not absent
    ):  # the supervisor keeps totals, and the coordinator says how much was opened there
        assert {line["opened_at"] for line in own.values()} == {"supervisor"}
        values = {e.query: e.told["values"] for e in made.logged("supervisor", "release")}
        assert {query: line["values"] for query, line in own.items()} == values

    files = contents(path)
    scores = json.loads(files[evidence.SCORES])
    arm = read_json(study.folder / "result.json")["arms"]["federated"]
    assert scores["models"]["model"] == arm["model_hash"]
    assert scores["opened"] == read_json(study.folder / "result.json")["opened"]
    assert scores["scores"]["model"].items() <= arm["scores"]["all"].items()
    plan = json.loads(files[evidence.PLAN])
    assert plan["experiment"]["data"]["target"] == experiment.data.target
    for name, forgery in (
        (evidence.PLAN, files[evidence.PLAN].replace(b'"y0"', b'"y1"')),
        (evidence.SCORES, files[evidence.SCORES].replace(b'"gini":', b'"gini":9')),
    ):
        assert forgery != files[name]
        repacked(path, files | {name: forgery})
        with pytest.raises(LabError, match=name):
            evidence.verify_package(path)
