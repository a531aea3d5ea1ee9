"""One table is one fit: however it is stored, ordered, split and encoded."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from lab.errors import ModelError
from lab.privacy import disclosure
from tests.rigs.postgresql import Server

CONTRACT = """
name = "claims-v1"
[columns]
row = { type = "integer", role = "identifier" }
claims = { type = "integer", role = "target" }
years = { type = "number", role = "exposure" }
age = { type = "integer" }
town = { type = "category", levels = ["Zürich", "Genève", "Köln", "São Paulo"] }
held = { type = "integer" }
plan = { type = "category", levels = ["1", "2", "3"] }
insurer = { type = "category", role = "identifier" }
"""
MODELS = {
    "glm": {"kind": "glm"},
    "trees": {"kind": "trees", "family": "poisson", "trees": 4, "depth": 3, "min_child_rows": 5.0},
}


def table(rows: int = 500) -> pd.DataFrame:
    rng = np.random.default_rng(9)
    frame = pd.DataFrame(
        {
            "row": np.arange(rows),
            "years": (rng.integers(1, 33, rows) / 32.0),
            "age": rng.integers(18, 80, rows),
            "town": rng.choice(["Zürich", "Genève", "Köln", "São Paulo"], rows),
            "held": rng.integers(0, 2, rows),
            "plan": rng.integers(1, 4, rows),
            "insurer": rng.choice(["a", "b", "c"], rows),
        }
    )
    rate = np.exp(0.02 * (frame["age"] - 50) + 0.5 * (frame["plan"] == 2))
    return frame.assign(claims=rng.poisson(rate * frame["years"]))


def rules_without_parties(folder: Path) -> str:
    """Cells of one party are told, so that no split of the rows can join them."""
    rules = Path(disclosure.__file__).with_suffix(".toml").read_text()
    path = folder / "rules.toml"
    path.write_text(rules.replace("parties = 3", "parties = 1"))
    return str(path)


def study(folder: Path, data: dict[str, Any], kind: str, **values: Any) -> Study:
    contract = folder / "c.toml"
    contract.write_text(CONTRACT, encoding="utf-8")
    return perform(
        Experiment.model_validate(
            {
                "name": "t",
                "data": {"target": "claims", "contract": str(contract), "test": 0.0, **data},
                "model": MODELS[kind],
                "parties": {"split": "column", "column": "insurer"},
                "protection": {"sums": "clear", "disclosure": rules_without_parties(folder)},
                "arms": {"run": ["federated"], "replicates": 0},
                **values,
            }
        )
    )


def from_csv(folder: Path, frame: pd.DataFrame, kind: str = "glm", **data: Any) -> Study:
    path = folder / "t.csv"
    frame.to_csv(path, index=False, encoding=data.get("encoding", "utf-8"))
    return study(folder, {"path": str(path), **data}, kind)


def model_of(one: Study) -> str:
    return one.arms["federated"].models["all"]["model"].hash


def predictions(one: Study) -> Any:
    rows = table()
    return (
        one.arms["federated"]
        .models["all"]["model"]
        .model.predict(
            rows.assign(
                town=rows["town"].astype("category"),
                plan=rows["plan"].astype("str").astype("category"),
            )
        )
    )


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_csv_parquet_and_postgresql_give_one_fit(
    tmp_path: Path, postgresql: Server, kind: str
) -> None:
    frame = table()
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    engine = sa.create_engine(postgresql.address.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        frame.to_sql("one_fit", connection, index=False, if_exists="replace")
        connection.execute(sa.text('alter table one_fit add primary key ("row")'))
    engine.dispose()
    studies = [
        from_csv(tmp_path, frame, kind),
        study(tmp_path, {"path": str(tmp_path / "t.parquet")}, kind),
        study(tmp_path, {"path": postgresql.address, "table": "one_fit"}, kind),
    ]
    assert len({one.market.digest for one in studies}) == 1
    assert len({model_of(one) for one in studies}) == 1


@pytest.mark.parametrize("kind", ["glm", pytest.param("trees", marks=pytest.mark.slow)])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252", "latin-1", "gb18030", "mac-roman"])
def test_every_encoding_that_is_stated_gives_one_fit(
    tmp_path: Path, kind: str, encoding: str
) -> None:
    plain = from_csv(tmp_path, table(), kind)
    other = from_csv(tmp_path, table(), kind, encoding=encoding)
    assert model_of(plain) == model_of(other)


def test_every_spelling_of_a_letter_gives_one_fit(tmp_path: Path) -> None:
    frame = table()
    spelt = frame["town"].map(lambda town: unicodedata.normalize("NFD", town)) + "\u00a0"
    other = from_csv(tmp_path, frame.assign(town=spelt))
    assert model_of(other) == model_of(from_csv(tmp_path, frame))


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(sorted(MODELS)))
def test_the_order_of_columns_gives_one_fit_and_that_of_rows_the_same_to_rounding(
    tmp_path_factory: pytest.TempPathFactory, random: Any, kind: str
) -> None:
    folder, frame = tmp_path_factory.mktemp("order"), table()
    columns, rows = list(frame.columns), list(frame.index)
    random.shuffle(columns)
    random.shuffle(rows)
    plain = from_csv(folder, frame, kind)
    assert model_of(from_csv(folder, frame[columns], kind)) == model_of(plain)
    shuffled = from_csv(folder, frame.loc[rows], kind)
    if kind == "trees":
        assert model_of(shuffled) == model_of(plain)
    np.testing.assert_allclose(predictions(shuffled), predictions(plain), rtol=1e-9)


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.integers(3, 6), st.sampled_from(sorted(MODELS)))
def test_every_split_of_the_rows_gives_one_fit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, parties: int, kind: str
) -> None:
    folder, frame = tmp_path_factory.mktemp("split"), table()
    owner = np.random.default_rng(seed).choice([f"p{k}" for k in range(parties)], len(frame))
    owner[: 12 * parties] = np.repeat([f"p{k}" for k in range(parties)], 12)
    plain, other = (
        from_csv(folder, frame, kind),
        from_csv(folder, frame.assign(insurer=owner), kind),
    )
    if kind == "trees":
        assert model_of(other) == model_of(plain)
    np.testing.assert_allclose(predictions(other), predictions(plain), rtol=1e-9)


@pytest.mark.parametrize("kind", sorted(MODELS))
def test_codes_that_are_one_number_in_two_spellings_are_refused_by_name(
    tmp_path: Path, kind: str
) -> None:
    frame = table().drop(columns=["row", "town"])
    first = frame["insurer"] == "a"
    frame["plan"] = np.where(first, frame["plan"].astype("str") + ".0", frame["plan"].astype("str"))
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    feature = {"column": "plan", "category": True}
    data = {"path": str(path), "contract": None, "features": ["age", feature], "exposure": "years"}
    with pytest.raises(ModelError, match=r"levels '1' and '1.0' of 'plan' are one number"):
        study(tmp_path, data, kind)
