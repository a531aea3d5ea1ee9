"""Tables as they come: what is not plainly a table is refused with the row."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pandas as pd
import pytest
import sqlalchemy as sa

from lab.errors import ConfigurationError, ContractError
from lab.tables.contracts import Column, Contract
from lab.tables.sources import SOURCES, built_in, load, read_csv, read_file


def test_the_built_in_table_has_its_known_size_and_digest() -> None:
    table = load("rand_hie")
    assert table.frame.shape == (20190, 10)
    assert table.digest == load("rand_hie").digest


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_states_provenance_and_licence(source: str) -> None:
    contract = built_in(source)
    assert contract.published
    assert contract.licence


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030"])
def test_encodings_insurers_send_are_read_where_they_are_stated(encoding: str) -> None:
    stated = None if encoding.startswith("utf-8") else encoding
    frame = read_csv("地区,件数\n上海,3\n北京,5\n".encode(encoding), "t.csv", stated)
    assert list(frame.columns) == ["地区", "件数"]
    assert frame["地区"].tolist() == ["上海", "北京"]


def test_ragged_rows_are_named() -> None:
    with pytest.raises(ContractError, match="needs 2 values, row 2 has 1, row 3 has 3"):
        read_csv(b"a,b\n1,2\n3\n4,5,6\n", "t.csv")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a,b\n1,\x002\n", "row 1: holds a NUL byte"),
        (b"a,a\n1,2\n", "column 'a' appears twice"),
        (b"", "no header"),
        (b"\x81\xff\n", "is not UTF-8 text; save it as UTF-8, or state its encoding"),
        ("a,b\n".encode("utf-16"), "is UTF-16 text"),
    ],
)
def test_damaged_files_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        read_csv(data, "t.csv")


def test_a_quoted_comma_and_a_line_break_stay_in_their_value() -> None:
    frame = read_csv(b'a,b\n1,"x, y\nz"\n', "t.csv")
    assert frame["b"].tolist() == ["x, y\nz"]


def test_a_damaged_gzip_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n" * 99)[:-9])
    with pytest.raises(ContractError, match="cannot be read"):
        read_file(path)


def test_parquet_and_sql_give_the_same_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1.5, 2.5], "b": ["x", "y"]})
    frame.to_parquet(tmp_path / "t.parquet")
    url = f"sqlite:///{tmp_path / 't.db'}"
    engine = sa.create_engine(url)
    frame.to_sql("claims", engine, index=False)
    engine.dispose()
    first = load(path=str(tmp_path / "t.parquet")).digest
    assert load(path=url, table="claims").digest == first
    assert load(path=url, query="select a, b from claims order by a").digest == first


def test_a_database_that_cannot_be_read_shows_no_password() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(path="postgresql+nowhere://me:secret@host/db", table="t")
    assert "secret" not in str(caught.value)


def test_a_published_table_without_a_path_says_where_it_is_published() -> None:
    with pytest.raises(ConfigurationError, match="OpenML data sets 41214"):
        load("fremtpl2_freq")


def test_an_unknown_source_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'rand_hie'"):
        load("randhie")


def test_claims_are_joined_to_their_policies(published) -> None:
    frame = load("fremtpl2_claims", str(published("freMTPL2"))).frame
    assert frame["PaidNb"].sum() == 26639 - 195


NUMBERS = """
name = "n"
decimal = ","
thousands = "."
[columns]
paid = { type = "number", nullable = true }
code = { type = "category" }
"""


def stated(folder: Path, table: str, signs: str = NUMBERS) -> pd.DataFrame:
    (folder / "c.toml").write_text(signs)
    (folder / "t.csv").write_text(table, encoding="utf-8")
    contract = Contract.read(folder / "c.toml")
    return load(path=str(folder / "t.csv"), contract=contract).frame


def test_a_decimal_comma_and_thousands_signs_are_read_where_the_contract_states_them(
    tmp_path: Path,
) -> None:
    table = "paid;code\n1.467,45;1,5\n-3;1.467\n;a\n1000,5;b\n1e3;c\n"
    frame = stated(tmp_path, table)
    assert frame["paid"].fillna(-1).tolist() == [1467.45, -3.0, -1.0, 1000.5, 1000.0]
    assert frame["code"].astype("str").tolist() == ["1,5", "1.467", "a", "b", "c"]


@pytest.mark.parametrize("sign", [" ", "\u00a0", "\u202f"])
def test_a_space_between_thousands_is_any_that_does_not_break(tmp_path: Path, sign: str) -> None:
    signs = NUMBERS.replace('thousands = "."', 'thousands = " "')
    frame = stated(tmp_path, f"paid;code\n1{sign}467{sign}000,5;a\n", signs)
    assert frame["paid"].tolist() == [1467000.5]


@pytest.mark.parametrize("value", ["1.46", "14.67,5", "1,467.45", "1,2,3"])
def test_a_number_written_in_another_way_than_stated_is_refused_as_it_is(
    tmp_path: Path, value: str
) -> None:
    with pytest.raises(
        ContractError, match=f"row 1: paid must be a number, got {re.escape(value)}"
    ):
        stated(tmp_path, f"paid;code\n{value};a\n")


def test_a_decimal_comma_that_nobody_stated_is_refused_with_what_to_do(tmp_path: Path) -> None:
    plain = NUMBERS.replace('decimal = ","\nthousands = "."\n', "")
    with pytest.raises(ContractError, match="state how numbers are written in the contract"):
        stated(tmp_path, "paid;code\n1,5;a\n", plain)


def test_two_signs_of_a_contract_differ() -> None:
    with pytest.raises(ValueError, match="decimal and thousands are both ','"):
        Contract(name="n", decimal=",", thousands=",", columns={"a": Column(type="number")})
