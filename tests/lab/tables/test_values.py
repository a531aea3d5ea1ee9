"""A value means the same in every file, whatever else stands there."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lab.errors import ConfigurationError, ContractError
from lab.models.design import Feature
from lab.records import parse
from lab.tables.checks import check
from lab.tables.contracts import Column, Contract
from lab.tables.sources import load, read_csv
from lab.tables.values import code, level_of, normal
from tests.rigs.postgresql import Server


def column(values: Any, **rules: Any) -> pd.Series:
    """A column under these rules of a contract, which may be empty."""
    contract = Contract(name="c", columns={"x": Column(nullable=True, **rules)})
    return check(pd.DataFrame({"x": values}), contract, where="t")["x"]


CODES = st.one_of(
    st.sampled_from(["250.0", "01882", "1E10", "12:30", "1.0", "401.9", "T", "NA ", "0", "-1.0"]),
    st.integers(-(2**62), 2**62).map(str),
    st.text("019.E-:Aé ", min_size=1, max_size=6).filter(lambda text: text.strip() != ""),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(CODES, min_size=1, max_size=8), st.lists(CODES, max_size=8))
def test_a_codes_level_does_not_depend_on_what_stands_beside_it(
    codes: list[str], others: list[str]
) -> None:
    alone = column(codes, type="category").astype("object")
    beside = column([*codes, *others], type="category").astype("object")
    assert alone.fillna("").tolist() == beside[: len(codes)].fillna("").tolist()


def test_a_declared_category_is_text_as_it_is_written() -> None:
    texts = ["01882", "1882", "1E10", "12:30", "250.0", "250", "2E05"]
    assert column(texts, type="category").tolist() == texts
    listed = tuple(texts)
    assert column(texts, type="category", levels=listed).tolist() == texts


#: The same value as the types of many programs, and its level.
EQUAL: list[tuple[str, list[Any]]] = [
    ("1", ["1", 1, 1.0, Decimal("1"), Decimal("1.00"), np.float32(1)]),
    ("250.5", ["250.5", 250.5, Decimal("250.5"), Decimal("250.50")]),
    ("True", ["true", "True", "TRUE", True, np.True_]),
    ("2024-01-02", ["2024-01-02", date(2024, 1, 2), datetime(2024, 1, 2), "2024-01-02 00:00:00"]),
    ("2024-01-02", [datetime(2024, 1, 2, 8, tzinfo=timezone(timedelta(hours=8)))]),
    ("2024-01-02 00:00:01", ["2024-01-02T00:00:01Z", datetime(2024, 1, 2, 0, 0, 1, tzinfo=UTC)]),
    ("756123456789012301", ["756123456789012301", 756123456789012301]),
    ("北京 1", ["北京 1", "北京\u30001", "北京\u00a01 ", "北京 \uff11", "\ufeff北京 1"]),
    ("café", ["café", "cafe\u0301"]),
]


@pytest.mark.parametrize(("level", "values"), EQUAL)
def test_equal_values_of_all_types_are_one_level(level: str, values: list[Any]) -> None:
    assert [code(value) for value in values] == [level] * len(values)


def test_a_listed_level_wins_over_missing_and_takes_numbers_by_value() -> None:
    levels = ("NA", "None", "250.0", "3")
    texts = ["NA", "None", "250.0", "3.0", "null"]
    assert column(texts, type="category", levels=levels).tolist()[:4] == [
        "NA",
        "None",
        "250.0",
        "3",
    ]
    assert column(texts, type="category", levels=levels).isna().tolist() == [False] * 4 + [True]
    assert column([250.0, 3.0], type="category", levels=levels).tolist() == ["250.0", "3"]
    with pytest.raises(ContractError, match=r"must be one of NA, None, 250\.0, 3, got 250"):
        column(["250"], type="category", levels=levels)


def test_what_is_read_as_missing_is_named_with_the_way_out() -> None:
    contract = Contract(name="c", columns={"x": Column(type="category")})
    with pytest.raises(ContractError, match="and NA is read as empty; list it in levels if it is"):
        check(pd.DataFrame({"x": ["a", "NA"]}), contract, where="t")


@pytest.mark.parametrize(
    "levels", [("café", "cafe\u0301"), ("a", "a "), ("\uff21", "A"), ("true", "True"), ("a", "a")]
)
def test_levels_that_look_alike_are_refused(levels: tuple[str, ...]) -> None:
    values = {"name": "c", "columns": {"x": {"type": "category", "levels": levels}}}
    with pytest.raises(ConfigurationError, match="two levels read as"):
        parse(Contract, values, where="c.toml")


def test_a_contract_may_ask_for_texts_exactly_as_they_are_written() -> None:
    rules = {"type": "category", "spelling": "exact", "levels": ("a", "a ")}
    assert column(["a ", "a"], **rules).tolist() == ["a ", "a"]


@settings(deadline=None)
@given(st.text(max_size=8))
@example("\uff76\uff9e")
def test_normal_text_stays_what_it_is(text: str) -> None:
    assert normal(normal(text)) == normal(text)


@pytest.mark.parametrize("kind", ["integer", "number"])
@pytest.mark.parametrize(
    "values", [["756123456789012301"], [756123456789012301], [Decimal("756123456789012301")]]
)
def test_whole_numbers_beyond_2_53_are_no_numbers(kind: str, values: list[Any]) -> None:
    with pytest.raises(ContractError, match=r"within 2\^53 to be a number"):
        column(values, type=kind)
    assert column([1e20, 2.5e17], type="number").tolist() == [1e20, 2.5e17]  # measured, no codes


def test_a_code_that_has_lost_digits_is_refused() -> None:
    with pytest.raises(ContractError, match="has lost digits"):
        column([7.561234567890123e17], type="category")


@pytest.mark.parametrize(
    "value", [date(2024, 1, 2), datetime(2024, 1, 2), pd.Timestamp("2024-01-02"), timedelta(1)]
)
def test_a_date_is_no_number(value: Any) -> None:
    with pytest.raises(ContractError, match="must be a number"):
        column([value], type="number")


@pytest.mark.parametrize("text", ["1,467.45", "1.467,45", "1467,45", "1 467", "1'467.45"])
def test_a_decimal_comma_and_thousands_signs_are_refused_by_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="a decimal point and without thousands signs"):
        column([text, "2"], type="number")
    path = tmp_path / "t.csv"
    path.write_text(f'x,y\n"{text}",1\n2,2\n')
    with pytest.raises(ContractError, match="column 'x' must be written with a decimal point") as e:
        load(path=str(path))
    assert text not in str(e.value)


ROWS = {
    "number": pa.array([1, None, 3], pa.int64()),
    "code": pa.array([756123456789012301, None, 756123456789012302], pa.int64()),
    "truth": pa.array([True, None, False]),
    "paid": pa.array([Decimal("1467.45"), Decimal("0.00"), None], pa.decimal128(12, 2)),
    "day": pa.array([date(2024, 1, 2), None, date(2024, 2, 29)]),
    "text": pa.array(["01882", "1E10", "é"]),
}
TYPES = {
    "number": "number",
    "code": "category",
    "truth": "category",
    "paid": "number",
    "day": "category",
    "text": "category",
}
FORMATS = ("csv", "parquet", "sqlite", "postgresql")


def place(
    table: pa.Table, kind: str, folder: Path, request: pytest.FixtureRequest
) -> dict[str, str]:
    """Where a table lies, written in a format."""
    if kind == "csv":
        names = [f'"{name}"' for name in table.column_names]
        lines = [
            ",".join("" if value is None else str(value) for value in row.values())
            for row in table.to_pylist()
        ]
        (folder / "t.csv").write_text("\n".join([",".join(names), *lines]) + "\n")
        return {"path": str(folder / "t.csv")}
    if kind == "parquet":
        parquet.write_table(table, folder / "t.parquet")
        return {"path": str(folder / "t.parquet")}
    if kind == "sqlite":
        url = f"sqlite:///{folder / 't.db'}"
    else:
        running: Server = request.getfixturevalue("postgresql")
        url = running.address
    types = {"number": sa.BigInteger, "code": sa.BigInteger, "truth": sa.Boolean}
    types |= {"paid": sa.Numeric(12, 2), "day": sa.Date, "text": sa.Text}
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    data = sa.Table("formats", sa.MetaData(), *(sa.Column(n, types[n]) for n in table.column_names))
    with engine.begin() as connection:
        data.drop(connection, checkfirst=True)
        data.create(connection)
        connection.execute(data.insert(), table.to_pylist())
    engine.dispose()
    return {"path": url, "table": "formats"}


@pytest.mark.filterwarnings("ignore:Dialect sqlite")
@pytest.mark.parametrize("contracted", [True, False])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_table(
    kind: str, contracted: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    rows = {k: v for k, v in ROWS.items() if contracted or k not in ("truth", "text")}
    if kind == "sqlite":  # has no truth values of its own
        rows.pop("truth", None)
    columns = {name: Column(type=TYPES[name], nullable=True) for name in rows}
    contract = Contract(name="c", columns=columns) if contracted else None
    table = load(contract=contract, **place(pa.table(rows), kind, tmp_path, request))
    assert {name: rule.type for name, rule in table.contract.columns.items()} == {
        name: TYPES[name] for name in rows
    }
    frame = table.frame.astype("object").astype(object).where(table.frame.notna(), None)
    expected = {
        "number": [1.0, None, 3.0],
        "code": ["756123456789012301", None, "756123456789012302"],
        "truth": ["True", None, "False"],
        "paid": [1467.45, 0.0, None],
        "day": ["2024-01-02", None, "2024-02-29"],
        "text": ["01882", "1E10", "é"],
    }
    assert {name: frame[name].tolist() for name in rows} == {name: expected[name] for name in rows}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x\n1\n2\n", [1, 2]),
        ("x\n1\n2.5\n", [1.0, 2.5]),
        ("x\n01882\n1882\n", ["01882", "1882"]),
        ("x\n12:30\n08:00\n", ["12:30", "08:00"]),
        ("x\n99999999999999999999\n1\n", ["99999999999999999999", "1"]),
        ("x\n1.5\n756123456789012301\n", ["1.5", "756123456789012301"]),
        ("x\nTrue\nfalse\n", [True, False]),
        ("x\nY\nN\n", ["Y", "N"]),
    ],
)
def test_a_csv_without_a_contract_has_the_types_that_all_its_values_have(
    text: str, values: list[Any]
) -> None:
    assert read_csv(text.encode(), "t")["x"].tolist() == values


def test_whole_numbers_and_truth_values_with_gaps_stay_what_they_are() -> None:
    frame = read_csv(b"n,b,t\n1,True,a\n,,b\n3,False,c\n", "t")
    assert [str(kind) for kind in frame.dtypes] == ["Int64", "boolean", "str"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_ends_of_lines_and_delimiters_are_recognised(end: str, delimiter: str) -> None:
    rows = [["a", "b"], ["1", '"x y"'], ["2", "z"]]
    frame = read_csv(end.join(map(delimiter.join, rows)).encode(), "t")
    assert frame.to_dict("list") == {"a": [1, 2], "b": ["x y", "z"]}


@pytest.mark.parametrize("text", ["Zürich", "Köln", "Müßig", "Ø", "Genève"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_no_encoding_is_guessed(text: str, encoding: str) -> None:
    data = f"kanton\n{text}\n".encode(encoding)
    with pytest.raises(ContractError, match="is not UTF-8 text; save it as UTF-8, or state its"):
        read_csv(data, "t.csv")
    assert read_csv(data, "t.csv", encoding)["kanton"].tolist() == [text]
    with pytest.raises(ContractError, match=r"must be one that keeps ASCII.*got 'nonsense'"):
        read_csv(data, "t.csv", "nonsense")


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=6, unique=True))
def test_intervals_have_names_of_their_own(cut: list[int]) -> None:
    names = Feature(column="x", cut=tuple(map(float, sorted(cut)))).intervals()
    assert len(set(names)) == len(cut) + 1
    assert level_of(float(max(cut))) in names[-1]
