"""Tables where insurers have them: big ones in parts, databases without a password in any text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from lab.errors import ConfigurationError, ContractError, LabError
from lab.tables.checks import Checker, check
from lab.tables.contracts import Column, Contract
from lab.tables.delimited import Delimited
from lab.tables.sources import load, read_csv
from tests.rigs.postgresql import USER, Server

ROOT = Path(__file__).parents[3]
ROWS = 6_000
CONTRACT = Contract(
    name="claims-v1",
    columns={
        "policy": Column(type="category", role="identifier"),
        "region": Column(type="category", levels=("east", "north", "south")),
        "age": Column(type="integer", minimum=0, maximum=110),
        "years": Column(type="number", above=0, maximum=1),
        "paid": Column(type="number", minimum=0, nullable=True),
    },
)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts so small that these tables have many."""
    monkeypatch.setattr("lab.tables.delimited.BLOCK", 2**16)
    monkeypatch.setattr("lab.tables.databases.ROWS", 1_000)
    monkeypatch.setattr("lab.tables.sources.PART_ROWS", 1_000)


def claims(rows: int = ROWS, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    paid = rng.gamma(2, 500, rows).round(2)
    return pd.DataFrame(
        {
            "policy": [f"{k:010d}" for k in range(rows)],
            "region": rng.choice(["east", "north", "south"], rows),
            "age": rng.integers(0, 111, rows),
            "years": rng.uniform(0.01, 1, rows).round(4),
            "paid": np.where(rng.uniform(size=rows) < 0.1, np.nan, paid),
            "note": "left out",
        }
    )


def filled(server: Server, frame: pd.DataFrame, name: str) -> None:
    """A table with a primary key, its rows stored in another order."""
    engine = sa.create_engine(server.address.replace("postgresql:", "postgresql+psycopg:"))
    columns = (
        "policy text primary key, region text, age int, years numeric(6, 4), "
        "paid double precision, note text"
    )
    with engine.begin() as connection:
        connection.execute(sa.text(f"create table {name} ({columns})"))
        raw = connection.connection.driver_connection
        assert raw is not None
        with raw.cursor().copy(f"copy {name} from stdin with (format csv)") as rows:
            rows.write(frame.sample(frac=1, random_state=0).to_csv(index=False, header=False))
    engine.dispose()


@pytest.fixture(scope="module")
def stored(postgresql: Server) -> Iterator[Server]:
    filled(postgresql, claims(), "claims")
    engine = sa.create_engine(postgresql.address.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("create sequence numbers"))
    engine.dispose()
    yield postgresql


def written(folder: Path, frame: pd.DataFrame) -> dict[str, dict[str, str]]:
    """The same rows in every kind of file, as arguments of `load`."""
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_csv(folder / "t.csv.gz", index=False)
    frame.to_parquet(folder / "t.parquet")
    engine = sa.create_engine(f"sqlite:///{folder / 't.db'}")
    frame.to_sql("claims", engine, index=False)
    engine.dispose()
    files = {name: {"path": str(folder / name)} for name in ("t.csv", "t.csv.gz", "t.parquet")}
    return files | {"sqlite": {"path": f"sqlite:///{folder / 't.db'}", "table": "claims"}}


def test_every_kind_of_file_gives_the_rows_that_a_check_of_all_at_once_gives(
    tmp_path: Path,
) -> None:
    frame = claims()
    whole = check(frame, CONTRACT, where="t")
    for name, place in written(tmp_path, frame).items():
        pd.testing.assert_frame_equal(load(contract=CONTRACT, **place).frame, whole, obj=name)


def test_postgresql_gives_the_same_rows_in_the_order_of_the_key(
    stored: Server, tmp_path: Path
) -> None:
    claims().to_csv(tmp_path / "t.csv", index=False)
    file = load(path=str(tmp_path / "t.csv"), contract=CONTRACT)
    table = load(path=stored.address, table="claims", contract=CONTRACT)
    assert table.digest == file.digest
    schema = load(path=stored.address, table="public.claims", contract=CONTRACT)
    assert schema.digest == file.digest
    asked = "select * from claims order by policy"
    assert load(path=stored.address, query=asked, contract=CONTRACT).digest == file.digest
    assert load(path=stored.address, query=asked).frame["note"].eq("left out").all()


def test_violations_have_the_rows_of_the_whole_table_wherever_they_fall(tmp_path: Path) -> None:
    frame = claims()
    frame.loc[[3, 4_000], "age"] = -1
    frame.loc[5_999, "years"] = 2
    frame.loc[4_500, "region"] = "west"
    frame.loc[3_000, "policy"] = None
    with pytest.raises(ContractError) as at_once:
        check(frame, CONTRACT, where="t")
    assert at_once.value.violations == (
        "  row 3001: policy must not be empty",
        "  row 4501: region must be one of east, north, south, got west",
        "  rows 4, 4001: age must be a whole number at least 0 and at most 110, got -1",
        "  row 6000: years must be a number above 0 and at most 1, got 2.0",
    )
    for place in written(tmp_path, frame).values():
        with pytest.raises(ContractError) as in_parts:
            load(contract=CONTRACT, **place)
        assert in_parts.value.violations == at_once.value.violations


@pytest.mark.parametrize("size", [1, 3, 7])
def test_parts_of_any_size_are_checked_as_the_whole(size: int) -> None:
    frame = pd.DataFrame(
        {
            "policy": [1.0, 2.5, None, "x", 4, 5.0, "y"],
            "region": ["east", "west", "north", None, "south", "west", "up"],
            "age": [1, "two", 3, 4.5, None, 200, np.inf],
            "years": [1, 1, 0, 1, 1, 1, 1],
            "paid": [1, None, -1, 2, "3", "x", 4],
        }
    )
    with pytest.raises(ContractError) as at_once:
        check(frame, CONTRACT, where="t")
    checker = Checker(CONTRACT, "t")
    for start in range(0, len(frame), size):
        checker.add(frame.iloc[start : start + size])
    with pytest.raises(ContractError) as in_parts:
        checker.table()
    assert str(in_parts.value) == str(at_once.value)
    assert len(at_once.value.violations) == 10


def test_codes_and_identifiers_keep_their_zeros_and_all_their_digits(tmp_path: Path) -> None:
    contract = Contract(
        name="c", columns={n: Column(type="category", nullable=True) for n in ("id", "icd", "n")}
    )
    path = tmp_path / "t.csv"
    path.write_text("id,icd,n\n00123,250.0,3.0\n310101199001011234567,250.00,4\n7,250.1,\n")
    frame = load(path=str(path), contract=contract).frame
    assert frame["id"].tolist() == ["00123", "310101199001011234567", "7"]
    assert frame["icd"].tolist() == ["250.0", "250.00", "250.1"]
    assert frame["n"].tolist()[:2] == ["3.0", "4"]  # as it is written, where no level is listed


def test_a_csv_is_read_in_parts_and_gbk_over_their_borders(tmp_path: Path) -> None:
    path, count = tmp_path / "t.csv", 40_000
    path.write_bytes("地区,件数\n".encode("gbk") + "上海浦东新区,3\n".encode("gbk") * count)
    parts = list(Delimited.file(path, "gbk").parts(["地区", "件数"]))
    assert len(parts) > 1
    assert sum(map(len, parts)) == count
    assert all(part["地区"].eq("上海浦东新区").all() for part in parts)


def test_ragged_rows_are_named_wherever_they_fall(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("policy,age\n" + "P,1\n" * 50_000 + "P\n" + 'P,"1\n2"\n' + "P,2,3\n")
    with pytest.raises(ContractError, match="row 50001 has 1, row 50003 has 3"):
        list(Delimited.file(path).parts(["policy", "age"]))


@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_a_header_without_rows_is_an_empty_table(tmp_path: Path, end: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text("policy,region,age,years,paid" + end)
    with pytest.raises(ContractError, match="the table has no rows"):
        load(path=str(path), contract=CONTRACT)
    assert read_csv(b"a,b" + end.encode(), "t").empty


def test_a_damaged_parquet_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    claims(100).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ContractError, match=r"t\.parquet: cannot be read"):
        load(path=str(path), contract=CONTRACT)


def refused(path: str, **more: str) -> str:
    with pytest.raises(LabError) as caught:
        load(path=path, contract=CONTRACT, **(more or {"table": "claims"}))
    return str(caught.value)


def test_no_error_and_no_origin_shows_a_password(stored: Server) -> None:
    port, right = stored.port, stored.password
    texts = [
        refused(f"postgresql://{USER}:wr0ng-secret@127.0.0.1:{port}/postgres"),
        refused(f"postgresql://{USER}:{right}@127.0.0.1:{port}/nowhere"),
        refused(f"postgresql://{USER}:{right}@127.0.0.1:1/postgres"),
        refused(f"postgresql://127.0.0.1:{port}/postgres?user={USER}&password=wr0ng-secret"),
        refused(f"postgresql://{USER}:{right}@127.0.0.1:port/postgres"),
        refused(f"postgresql://{USER}:wr0ng@secret@127.0.0.1/postgres"),
        refused(f"postgresql+nowhere://{USER}:{right}@127.0.0.1/postgres"),
        refused(stored.address, query="select nothing from claims"),
        refused(stored.address, table="clams"),
        load(path=stored.address, table="claims", contract=CONTRACT).origin,
        load(path=stored.address, query="select 1 as a").origin,
    ]
    for text in texts:
        assert not any(word in text for word in (right, "wr0ng", "secret")), text
        assert "\n" not in text
    assert "password authentication failed" in texts[0]
    assert "did you mean 'claims'?" in texts[8]


def test_a_query_cannot_write(stored: Server) -> None:
    assert "syntax error" in refused(stored.address, query="delete from claims returning *")
    told = refused(stored.address, query="select nextval('numbers') as age")
    assert "read-only transaction" in told
    assert len(load(path=stored.address, table="claims", contract=CONTRACT).frame) == ROWS


def test_a_database_needs_a_table_or_a_query_and_a_sqlite_file_must_be_there(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigurationError, match="a table of the database or a query"):
        load(path="postgresql://host/database", contract=CONTRACT)
    assert "no such file" in refused(f"sqlite:///{tmp_path}/t.db")
    assert not list(tmp_path.iterdir())


PEAK = """
import pathlib, re, sys
from tests.lab.tables.test_databases import CONTRACT
from lab.tables.sources import load
frame = load(path=sys.argv[1], table=sys.argv[2] or None, contract=CONTRACT).frame
status = pathlib.Path("/proc/self/status").read_text()  # its own; ru_maxrss keeps its parent's
print(len(frame), int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1024)
"""


def peak_mib(path: str, table: str = "") -> int:
    """What a process that reads a million rows takes at most, in MiB."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEAK, path, table],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows, peak = map(int, done.stdout.split())
    assert rows == 1_000_000
    return peak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the high-water mark that Linux keeps")
def test_a_million_rows_stay_under_a_gib(postgresql: Server, tmp_path: Path) -> None:
    frame = claims(1_000_000)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    filled(postgresql, frame, "million")
    del frame
    assert peak_mib(str(tmp_path / "t.csv")) < 1024
    assert peak_mib(str(tmp_path / "t.parquet")) < 1024
    assert peak_mib(postgresql.address, "million") < 1024
