"""SQL as analysts write it: what SQLite answers on the pooled rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from federated.hiding.protocol import Clear
from federated.queries.desk import Desk
from federated.queries.holdings import Holdings
from lab.errors import ConfigurationError
from lab.privacy.disclosure import Rules
from lab.queries.sql_plan import belongs
from lab.queries.sql_plan import compile as read
from lab.tables.contracts import Contract
from tests.federated.queries.test_desk import OPEN, dealt

CONTRACT = Contract.model_validate(
    {
        "name": "motor-2024",
        "columns": {
            "year": {"type": "integer", "minimum": 2015, "maximum": 2018},
            "plan": {"type": "category", "levels": ["0", "1", "01"]},
            "paid": {"type": "number"},
            "Sex": {"type": "category", "levels": ["f", "m"]},
        },
    }
)


def rows() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "year": rng.integers(2015, 2019, 300),
            "plan": rng.choice(["0", "1", "01"], 300, p=[0.7, 0.2, 0.1]),
            "paid": rng.normal(100, 300, 300),
            "Sex": rng.choice(["f", "m"], 300),
        }
    )


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    with Desk.simulated(Holdings.of(dealt(rows()), CONTRACT, OPEN), Clear(OPEN)) as opened:
        yield opened


@pytest.mark.parametrize(
    "text",
    [
        "select count(1) from motor-2024",
        "select count(1) as n from Motor-2024 where plan = '1'",
        "select count(*) from \"motor-2024\" where plan = 'from motor-2024' or year > 2016",
        "select year, count(*) from motor-2024 group by 1",
        "select count(*), plan, year from motor-2024 where year > 2016 group by 3, 2",
        "select YEAR, round(avg(PAID), 2) from motor-2024 group by Year",
        "select round(sum(paid) / 1000.0), round(avg(paid), 0), sex from motor-2024 group by sex",
        "select year as y, count(*) n from motor-2024 group by y order by Y desc",
        "select year as paid, count(*) n from motor-2024 group by 1 order by 2",
        "select plan, sum(paid) from motor-2024 group by plan order by sum(paid) desc limit 2",
        "select year, count(*) as n from motor-2024 group by year having n > 70",
        "select year from motor-2024 group by year having count(*) > 70 and avg(paid) between 0 and 1e3",
        "select year, avg(paid) a from motor-2024 group by year having not (a < 100 or 75 <= count(*))",
        "select plan, count(*) from motor-2024 where plan = 1 group by plan having count(*) > 0",
        "select plan, count(*) from motor-2024 where plan in (01, 1) group by plan having 1 <= count(*)",
        "select m.year, sum(m.paid) from motor-2024 m group by m.year",
        "select m.year, sum(m.paid) from motor-2024 as m group by year order by m.year",
    ],
)
def test_an_answer_is_sqlites(text: str, desk: Desk) -> None:
    if text.startswith("select year from"):
        text = text.replace("select year", "select year, count(*) n")
    got = desk.ask(text)
    store = sqlite3.connect(":memory:")
    rows().to_sql("motor-2024", store, index=False)
    quoted = text.replace("from Motor-2024", "from motor-2024")
    if '"' not in text:
        quoted = quoted.replace("from motor-2024", 'from "motor-2024"')
    quoted = quoted.replace("plan = 1 ", "plan = '1' ").replace("(01, 1)", "('01', '1')")
    wanted = pd.read_sql(quoted, store)
    store.close()
    key = [c for c in got.columns if c in ("year", "plan", "Sex", "y")]
    got = got[got.notna().all(axis=1)]
    assert sorted(c.lower() for c in got.columns) == sorted(c.lower() for c in wanted.columns)
    by = {c.lower(): c for c in wanted.columns}
    wanted = wanted[[by[c.lower()] for c in got.columns]].set_axis(got.columns, axis=1)
    if "order by" not in text and key:
        got, wanted = got.sort_values(key), wanted.sort_values(key)
    for column in got.columns:
        if pd.api.types.is_numeric_dtype(wanted[column]):
            np.testing.assert_allclose(got[column].astype(float), wanted[column], rtol=1e-9)
        else:
            assert got[column].tolist() == wanted[column].tolist()


def test_having_sees_what_is_released_alone() -> None:
    """A hidden cell is unknown to it, whatever the condition says."""
    frame = rows()
    frame.loc[frame.index[:295], "plan"], frame.loc[frame.index[295:], "plan"] = "0", "1"
    rules = Rules.read()
    with Desk.simulated(Holdings.of(dealt(frame), CONTRACT, rules), Clear(rules)) as opened:
        for condition in ("count(*) < 10", "count(*) >= 10", "not count(*) < 10", "sum(paid) = 0"):
            answer = opened.ask(
                f"select plan, count(*) n from motor-2024 group by plan having {condition}"
            )
            assert answer["n"].notna().all()
            assert answer.attrs["hidden"] == 3 and answer.attrs["cells"] == 3


def test_a_number_without_quotes_is_the_level_that_is_written(desk: Desk) -> None:
    with pytest.raises(ConfigurationError, match=r"has no level 1\.0; put a level in quotes"):
        desk.ask("select count(*) from motor-2024 where plan = 1.0")


def test_letters_tell_two_columns_apart_where_both_are_there() -> None:
    columns = {"age": {"type": "number"}, "AGE": {"type": "number"}}
    both = Contract.model_validate({"name": "t", "columns": columns})
    assert read("select sum(AGE) from t", both).question.columns == {"AGE"}
    with pytest.raises(ConfigurationError, match="no column 'Age'"):
        read("select sum(Age) from t", both)


def test_totals_that_having_needs_belong_to_the_answer() -> None:
    text = "select year y, count(*) n from motor-2024 group by 1 having sum(paid) > 1"
    assert belongs(read(text, CONTRACT).question, text, CONTRACT, None)
    without = text.partition(" having")[0]
    assert not belongs(read(text, CONTRACT).question, without, CONTRACT, None)
