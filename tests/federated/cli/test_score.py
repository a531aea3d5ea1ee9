"""lab score: a table and a model file in, the table with predictions out, or one clear line."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from federated.cli.main import main
from federated.run import run
from federated.study.arms import perform
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError, ModelError
from lab.models import files as models
from lab.models import prediction
from lab.report import tracking

ROOT = Path(__file__).parents[3]
KINDS: dict[str, dict[str, Any]] = {
    "glm": {"kind": "glm"},
    "product": {"kind": "glm", "severity": {"target": "paid", "per": "n"}},
    "network": {"kind": "network", "rounds": 1, "hidden": [3]},
    "trees": {
        "kind": "trees",
        "family": "poisson",
        "trees": 4,
        "depth": 3,
        "min_child_rows": 5,
        "min_gain": 0.0,
        "validation_share": 0.0,
    },
}


def policies() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    n = 400
    claims = rng.poisson(0.6, n)
    return pd.DataFrame(
        {
            "policy": [f"{i:05d}" for i in range(n)],
            "age": rng.integers(18, 90, n),
            "income": rng.normal(50, 9, n),
            "share": rng.choice([0.0, 0.25, 1.0], n),
            "region": rng.choice(["east", "north", "华东"], n),
            "years": rng.uniform(0.2, 1, n),
            "n": claims,
            "paid": [rng.gamma(2, 500, k).sum() for k in claims],
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table and a model of each kind."""
    place = tmp_path_factory.mktemp("score")
    policies().to_csv(place / "t.csv", index=False)
    for name in KINDS:
        study = perform(experiment(place / "t.csv", name))
        fitted = study.arms["federated"].models["all"][study.part]
        (place / f"{name}.json").write_text(fitted.json)
        dealt = study.market.pooled().train.set_index("income")  # no two are alike
        rows = dealt.loc[policies()["income"]].reset_index()
        np.save(place / f"{name}.npy", fitted.model.predict(rows))
    return place


def experiment(table: Path, kind: str) -> Experiment:
    share = {"column": "share", "category": True}
    age = {"column": "age", "cut": [30, 60]}
    data = {"path": str(table), "target": "n", "exposure": "years", "test": 0.0}
    return Experiment.model_validate(
        {
            "name": f"n/{kind}",
            "data": data | {"features": [age, "income", share, "region"]},
            "parties": {"split": "uniform", "count": 3},
            "model": KINDS[kind],
            "protection": {"sums": "clear"},
            "arms": {"run": ["federated"], "replicates": 0},
        }
    )


def lab(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command, which never shows a traceback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lab", *map(str, arguments)])
        patch.delenv("LAB_TRACEBACK", raising=False)
        code = 0
        try:
            main()
        except SystemExit as ending:
            code = int(ending.code or 0)
    out, err = capsys.readouterr()
    assert "defect" not in err
    return code, out, err


@pytest.mark.parametrize("kind", KINDS)
def test_a_scored_table_has_its_rows_as_they_came_and_the_models_predictions(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = lab(capsys, "score", folder / f"{kind}.json", folder / "t.csv")
    assert code == 0, err
    came = (folder / "t.csv").read_text().splitlines()
    assert [line.rpartition(",")[0] for line in out.splitlines()] == came
    found = pd.read_csv(io.StringIO(out))["prediction"]
    assert found.to_numpy().tobytes() == np.load(folder / f"{kind}.npy").tobytes()
    assert "for one unit of years; multiply by it" in err


def test_every_form_of_a_table_gives_the_same_predictions(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import sqlalchemy as sa

    wanted = np.load(folder / "network.npy")
    model = folder / "network.json"
    policies().to_parquet(tmp_path / "t.parquet")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 't.db'}")
    policies().to_sql("t", engine, index=False)
    engine.dispose()
    query = ("--query", "select * from t order by policy")
    for k, table in enumerate(([tmp_path / "t.parquet"], [engine.url, *query])):
        out = tmp_path / f"{k}.parquet"
        assert lab(capsys, "score", model, *table, "--out", out)[0] == 0
        found = pd.read_parquet(out)
        assert found["prediction"].to_numpy().tobytes() == wanted.tobytes()
        assert found["policy"].iloc[7] == "00007"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="income").assign(incomes=1), "'income' .* is it 'incomes'"),
        (lambda t: t.assign(income="much"), "income must be a number, got much"),
        (lambda t: t.assign(prediction=1), "has a column 'prediction' already"),
        (lambda t: t.assign(income=1e300), "no finite prediction for 400 rows"),
        (lambda t: t.iloc[:0], "no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_and_nothing_is_written(
    change: Any, words: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(policies()).to_csv(tmp_path / "bad.csv", index=False)
    out = tmp_path / "out.csv"
    out.write_text("what was there")
    table = (folder / "glm.json", tmp_path / "bad.csv")
    code, _, err = lab(capsys, "score", *table, "--out", out)
    assert code in (1, 2)
    assert pd.Series([err]).str.contains(words).all(), err
    assert out.read_text() == "what was there"
    assert {p.name for p in tmp_path.iterdir()} == {"bad.csv", "out.csv"}


def test_unknown_levels_and_missing_numbers_are_scored_and_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = policies()
    table.loc[:1, "region"] = "mars"
    table.loc[2, "income"] = np.nan
    table.to_csv(tmp_path / "t.csv", index=False)
    for kind in KINDS:
        code, _, err = lab(capsys, "score", folder / f"{kind}.json", tmp_path / "t.csv")
        assert code == 0
        assert "region: 2 rows have a level that no training row had (mars)" in err
        assert "income: missing in 1 rows" in err


def test_a_contract_and_a_bad_ending_are_refused_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = tmp_path / "c.toml"
    rule.write_text('name = "c"\n[columns]\nage = { type = "integer", maximum = 40 }\n')
    table = (folder / "glm.json", folder / "t.csv")
    code, _, err = lab(capsys, "score", *table, "--contract", rule)
    assert code == 2
    assert "age must be a whole number at most 40" in err
    code, _, err = lab(capsys, "score", *table, "--out", "x.xlsx")
    assert code == 2
    assert "must end in .csv, .csv.gz or .parquet" in err


def changed(folder: Path, kind: str, change: Any) -> bytes:
    values = json.loads((folder / f"{kind}.json").read_text())
    change(values)
    return json.dumps(values).encode()


def weights(change: Any) -> Any:
    def work(values: dict[str, Any]) -> None:
        held = dict(load(base64.b64decode(values["safetensors"])))
        change(held)
        values["safetensors"] = base64.b64encode(save(held)).decode()

    return work


def tree(**changes: Any) -> Any:
    return lambda values: values["trees"][0].update(changes)


HOSTILE: dict[str, Any] = {
    "not JSON": lambda f: b"\x80\x04\x95pickle",
    "empty": lambda f: b"",
    "a list": lambda f: b"[1]",
    "deep": lambda f: b'{"kind":' + b"[" * 200_000,
    "kind is a list": lambda f: b'{"kind": ["glm"]}',
    "another kind": lambda f: b'{"kind": "pickle"}',
    "truncated": lambda f: (f / "network.json").read_bytes()[:-900],
    "a key too many": lambda f: changed(f, "glm", lambda v: v.update(code="import os")),
    "NaN": lambda f: changed(f, "glm", lambda v: v["beta"].__setitem__(0, float("nan"))),
    "too few coefficients": lambda f: changed(f, "glm", lambda v: v["beta"].pop()),
    "100,000 mistakes": lambda f: changed(f, "glm", lambda v: v.update(beta=["x"] * 100_000)),
    "a scale of 0": lambda f: changed(
        f, "glm", lambda v: v["encoding"]["numbers"][0].update(scale=0)
    ),
    "no levels": lambda f: changed(
        f, "network", lambda v: v["encoding"]["categories"][0].update(levels=[])
    ),
    "absurd layers": lambda f: changed(
        f, "network", lambda v: v["recipe"].update(hidden=[10**9, 10**9])
    ),
    "negative layers": lambda f: changed(f, "network", lambda v: v["recipe"].update(hidden=[-3])),
    "knots that fall": lambda f: changed(f, "network", lambda v: v["bends"].update(knots=[[1, 0]])),
    "weights are not base64": lambda f: changed(
        f, "network", lambda v: v.update(safetensors="é" * 40)
    ),
    "weights with an absurd header": lambda f: changed(
        f, "network", lambda v: v.update(safetensors=base64.b64encode(b"\xff" * 64).decode())
    ),
    "a weight is NaN": lambda f: changed(
        f, "network", weights(lambda w: w["layer.1.bias"].fill(np.nan))
    ),
    "a weight is gone": lambda f: changed(f, "network", weights(lambda w: w.pop("layer.1.bias"))),
    "a weight of another shape": lambda f: changed(
        f, "network", weights(lambda w: w.update({"layer.1.bias": np.zeros(2, "float32")}))
    ),
    "a tree that goes round": lambda f: changed(
        f, "trees", tree(feature=[0, -1, -1], left=[0, 0, 0], bins=["1"] * 3, value=[0, 0, 0])
    ),
    "a tree that leads out": lambda f: changed(
        f, "trees", tree(feature=[0, -1], left=[9, 0], bins=["1"] * 2, value=[0, 0])
    ),
    "a tree of unequal lists": lambda f: changed(f, "trees", tree(value=[])),
    "a tree with a feature that is not there": lambda f: changed(
        f, "trees", tree(feature=[9, -1, -1], left=[1, 0, 0], bins=["1"] * 3, value=[0, 0, 0])
    ),
    "bins that are no numbers": lambda f: changed(f, "trees", tree(bins=["no"] * 15)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_sound_model_is_refused_in_a_few_lines(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(HOSTILE[name](folder))
    code, out, err = lab(capsys, "score", path, folder / "t.csv")
    assert (code, out) == (2, "")
    assert str(path) in err
    assert len(err) < 3000


def test_a_model_that_is_not_there_or_too_large_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        code, _, err = lab(capsys, "score", path, folder / "t.csv")
        assert code == 2
        assert "No such file" in err
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(models.LARGEST + 2)
    code, _, err = lab(capsys, "score", large, folder / "t.csv")
    assert code == 2
    assert "larger than a model file" in err


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), kind=st.sampled_from(sorted(KINDS)))
def test_a_damaged_file_is_refused_or_is_a_sound_model(
    at: int, byte: int, kind: str, folder: Path
) -> None:
    data = bytearray((folder / f"{kind}.json").read_bytes())
    data[at % len(data)] = byte
    try:
        model = models.from_json(bytes(data))
    except ConfigurationError:
        return
    assert model.kind == kind


@pytest.mark.slow
def test_a_registered_model_scores_in_a_fresh_process_as_lab_score_does(
    folder: Path, tmp_path: Path
) -> None:
    study = run(experiment(folder / "t.csv", "network"), runs=tmp_path)
    assert study.tracking is not None
    assert study.tracking.endswith("model 'n-network' version 1")
    assert study.folder is not None
    scored, _ = prediction.predict(study.folder, str(folder / "t.csv"))
    code = (
        "import mlflow, sys, pandas as pd; mlflow.set_tracking_uri(sys.argv[1]);"
        "model = mlflow.pyfunc.load_model('models:/n-network/1');"
        "rows = pd.read_csv(sys.argv[2], dtype={'share': str}).astype({'age': float});"
        "found = model.predict(rows[model.metadata.get_input_schema().input_names()]);"
        "print(found.to_numpy().tobytes().hex());"
        "tags = mlflow.MlflowClient().get_model_version('n-network', '1').tags;"
        "print(tags['lab.model.sha256'], tags['lab.data.sha256'])"
    )
    uri = tracking.address(tmp_path, None)
    done = subprocess.run(
        [sys.executable, "-c", code, uri, str(folder / "t.csv")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, digests = done.stdout.strip().splitlines()[-2:]
    assert bytes.fromhex(found) == scored["prediction"].to_numpy().tobytes()
    text = (study.folder / "models" / "federated.json").read_text()
    assert digests == f"{models.digest(text)} {study.market.digest}"


def test_a_store_without_a_registry_costs_a_note(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    def none(*_: Any, **__: Any) -> None:
        raise MlflowException("no registry here")

    monkeypatch.setattr(MlflowClient, "create_registered_model", none)
    monkeypatch.setattr(MlflowClient, "create_model_version", none)
    study = run(experiment(folder / "t.csv", "glm"), runs=tmp_path)
    assert study.tracking is not None
    assert study.tracking.startswith("MLflow run ")
    assert study.tracking.endswith("not registered (no registry here)")


def linear_predictor(model: Any, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
    """On the log link, of which all models here are."""
    return np.log(model.predict(rows))


@pytest.mark.parametrize("kind", ["glm", "product", "trees"])
def test_reasons_are_the_largest_effects_and_all_effects_make_the_score(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = lab(capsys, "score", folder / f"{kind}.json", folder / "t.csv", "--reasons")
    assert code == 0, err
    assert "exp(effect) multiplies the prediction" in err
    table = pd.read_csv(io.StringIO(out))
    model: Any = models.read(folder / f"{kind}.json")
    rows = policies()
    rows["region"] = rows["region"].astype("category")
    effects = model.effects(rows)
    total = effects.base + effects.values.sum(axis=1)
    np.testing.assert_allclose(total, linear_predictor(model, rows), rtol=0, atol=1e-12)
    for at in (0, 57, 399):
        order = np.argsort(-np.abs(effects.values[at]))
        assert table["reason_1"][at] == effects.names[order[0]]
        assert table["effect_1"][at] == pytest.approx(effects.values[at, order[0]], rel=1e-12)


def test_an_effect_of_a_glm_is_its_coefficient_times_what_differs_from_the_mean(
    folder: Path,
) -> None:
    model: Any = models.read(folder / "glm.json")
    terms = {term.feature.column: term for term in model.encoding.categories}
    rows = policies().assign(region=terms["region"].levels[0])
    rows["region"] = rows["region"].astype("category")
    effects = model.effects(rows)
    (number,) = model.encoding.numbers
    slope = model.beta[1] / number.scale
    wanted = slope * (rows["income"] - number.mean)
    at = effects.names.index("income")
    np.testing.assert_allclose(effects.values[:, at], wanted, rtol=1e-12, atol=1e-15)
    assert not effects.values[:, effects.names.index("region")].any()  # the base level


def test_a_cut_of_a_tree_is_the_reason_where_it_is_the_only_one() -> None:
    from lab.models.design import Feature
    from lab.models.glm import Task
    from lab.models.tree_model import LEAF, Cuts, Tree, Trees

    tree = Tree(
        feature=(0, LEAF, 1, LEAF, LEAF),
        left=(1, 0, 3, 0, 0),
        bins=("1", "0", "1", "0", "0"),
        value=(0.1, -0.4, 0.5, 0.2, 0.9),
    )
    cuts = tuple(Cuts(feature=Feature(column=c), edges=(1.0,)) for c in ("age", "visits"))
    model = Trees(task=Task(target="n"), cuts=cuts, intercept=-1.0, trees=(tree,))
    effects = model.effects(pd.DataFrame({"age": [0.0, 2.0], "visits": [5.0, 5.0]}))
    assert effects.base == pytest.approx(-0.9)
    np.testing.assert_allclose(effects.values, [[-0.5, 0.0], [0.4, 0.4]], atol=1e-15)
    assert effects.reasons(2)["reason_2"].fillna("").tolist() == ["", "visits"]
    older = tree.model_copy(update={"value": (0.0, -0.4, 0.0, 0.2, 0.9)})
    with pytest.raises(ModelError, match="run its experiment again"):
        model.model_copy(update={"trees": (older,)}).effects(pd.DataFrame())


def test_a_network_gives_no_reasons_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = lab(capsys, "score", folder / "network.json", folder / "t.csv", "--reasons")
    assert (code, out) != (0, "")
    assert "has no exact reasons; leave out --reasons, or use a glm or trees" in err
