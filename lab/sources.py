"""Where a party's table comes from: a built-in source, a file, or a database."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from lab import market
from lab.contracts import Contract, check, draft, nearest
from lab.errors import ConfigurationError, ContractError

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = Path(__file__).parent / "tables"
NULLS = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]
BAD_ROWS_SHOWN = 5


@dataclass(frozen=True)
class Table:
    """A checked table. ``digest`` is the SHA-256 of its typed columns, for the record of a run."""

    frame: pd.DataFrame
    contract: Contract
    origin: str
    digest: str


def load(
    source: str | None = None,
    path: str | None = None,
    *,
    contract: Contract | None = None,
    table: str | None = None,
    query: str | None = None,
    columns: list[str] | None = None,
) -> Table:
    """Read a table and check it against its contract.

    ``columns`` limits a table without a contract to what a study uses. Raises
    :class:`ContractError` with every violation, :class:`ConfigurationError` for a source or a
    path that cannot be read.
    """
    frame, agreed, origin = unchecked(
        source, path, contract=contract, table=table, query=query, columns=columns
    )
    frame = check(frame, agreed, where=origin)
    return Table(frame, agreed, origin, digest(frame))


def unchecked(
    source: str | None = None,
    path: str | None = None,
    *,
    contract: Contract | None = None,
    table: str | None = None,
    query: str | None = None,
    columns: list[str] | None = None,
) -> tuple[pd.DataFrame, Contract, str]:
    """The rows as they come, the contract they should keep, and where they are from."""
    if source is not None:
        agreed = contract or built_in(source)
        frame = _READERS[source](path, agreed)
        origin = source if path is None else f"{source} from {Path(path).name}"
    elif path is not None:
        frame = read_sql(path, table, query) if "://" in path else read_file(Path(path))
        origin = path.rsplit("@", 1)[-1] if "://" in path else Path(path).name
        agreed = contract or draft(_chosen(frame, columns, origin), Path(origin).name)
    else:
        raise ConfigurationError("data: give a source or a path")
    return frame, agreed, origin


def digest(frame: pd.DataFrame) -> str:
    """SHA-256 over the columns' names and values, independent of how they are stored."""
    sha = hashlib.sha256(",".join(frame.columns).encode())
    for name in frame.columns:
        values = frame[name]
        plain = values.astype("str") if isinstance(values.dtype, pd.CategoricalDtype) else values
        sha.update(pd.util.hash_pandas_object(plain, index=False).to_numpy().tobytes())
    return sha.hexdigest()


def built_in(source: str) -> Contract:
    """The contract of a built-in source."""
    if source not in _READERS:
        near = nearest(source, sorted(_READERS))
        hint = f"; did you mean '{near}'?" if near else ""
        raise ConfigurationError(
            f"data.source: no source '{source}'{hint}; there are {', '.join(_READERS)}"
        )
    if source == "market":
        return market.contract("market")
    return Contract.read(TABLES / f"{source}.toml")


def _chosen(frame: pd.DataFrame, columns: list[str] | None, origin: str) -> pd.DataFrame:
    if columns is None:
        return frame
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        near = nearest(missing[0], [str(name) for name in frame.columns])
        hint = f"; did you mean '{near}'?" if near else ""
        raise ConfigurationError(f"{origin}: there is no column '{missing[0]}'{hint}")
    return frame[columns]


def _rand_hie(path: str | None, contract: Contract) -> pd.DataFrame:
    if path is not None:
        return read_file(Path(path))
    from statsmodels.datasets import randhie

    frame: pd.DataFrame = randhie.load_pandas().data
    return frame


def _published(path: str | None, contract: Contract) -> pd.DataFrame:
    return read_file(_given(path, contract))


def _fremtpl2_claims(path: str | None, contract: Contract) -> pd.DataFrame:
    folder = _given(path, contract)
    policies = read_file(_either(folder, "freMTPL2freq"))
    claims = read_file(_either(folder, "freMTPL2sev"))
    paid = claims.groupby("IDpol")["ClaimAmount"].agg(PaidNb="size", ClaimAmount="sum")
    return policies.join(paid, on="IDpol").fillna({"PaidNb": 0, "ClaimAmount": 0.0})


def _default_credit(path: str | None, contract: Contract) -> pd.DataFrame:
    folder = _given(path, contract)
    guest = read_file(_either(folder, "default_credit_hetero_guest"))
    host = read_file(_either(folder, "default_credit_hetero_host"))
    guest.columns = guest.columns.str.replace("x", "g")
    host.columns = host.columns.str.replace("x", "h")
    return guest.merge(host, on="id")


def _market(path: str | None, contract: Contract) -> pd.DataFrame:
    if path is None:
        raise ConfigurationError(
            "data.path is needed for market: the folder of one; make it with: "
            "lab market make FOLDER --persons 50000"
        )
    return market.pool(Path(path))


def _given(path: str | None, contract: Contract) -> Path:
    if path is None:
        raise ConfigurationError(
            f"data.path is needed for {contract.name}; the table is published: {contract.published}"
        )
    return Path(path)


def _either(folder: Path, stem: str) -> Path:
    found = [folder / f"{stem}{end}" for end in (".csv.gz", ".csv", ".parquet")]
    for path in found:
        if path.exists():
            return path
    raise ConfigurationError(f"{folder}: needs one of {', '.join(p.name for p in found)}")


_READERS: dict[str, Callable[[str | None, Contract], pd.DataFrame]] = {
    "rand_hie": _rand_hie,
    "rand_hie_full": _published,
    "fremtpl2_freq": _published,
    "fremtpl2_claims": _fremtpl2_claims,
    "default_credit": _default_credit,
    "market": _market,
}
SOURCES = tuple(_READERS)


def read_file(path: Path, *, as_text: bool = False) -> pd.DataFrame:
    """A CSV (optionally .gz; UTF-8 with or without a mark, or GB18030/GBK) or a Parquet file.

    ``as_text``: the values of a CSV as they are written.
    """
    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        raw = path.read_bytes()
        data = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, ValueError) as error:
        raise ContractError(f"{path.name}: cannot be read: {error}") from None
    return read_csv(data, path.name, as_text=as_text)


def read_csv(data: bytes, where: str, *, as_text: bool = False) -> pd.DataFrame:
    """A strict CSV reader: what is not plainly a table is refused, with the row.

    Refused: NUL bytes, an encoding other than UTF-8 or GB18030, a duplicated or empty column
    name, a row with more or fewer values than the header. Read as missing: empty, NA, NaN, null.
    """
    import pyarrow as pa
    from pyarrow import csv

    text = _decoded(data, where)
    header = _header(text, where)
    ragged: list[str] = []

    def note(row: csv.InvalidRow) -> str:
        ragged.append(f"{row.actual_columns} values")
        return "skip"

    try:
        table: pa.Table = csv.read_csv(
            io.BytesIO(text),
            read_options=csv.ReadOptions(column_names=header, skip_rows=1, use_threads=False),
            parse_options=csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()) if as_text else None,
                null_values=NULLS,
                strings_can_be_null=not as_text,
                timestamp_parsers=["-"],
            ),
        )
    except pa.ArrowInvalid as error:
        raise ContractError(f"{where}: not a readable CSV: {error}") from None
    if ragged:
        raise ContractError(f"{where}: {_ragged_rows(text, len(header))}")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _decoded(data: bytes, where: str) -> bytes:
    if b"\x00" in data:
        row = data[: data.index(b"\x00")].count(b"\n")
        place = f"row {row}" if row else "the header"
        raise ContractError(
            f"{where} {place}: holds a NUL byte; the file is damaged or is not text, export it again"
        )
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding).encode("utf-8")
        except UnicodeDecodeError:
            continue
    raise ContractError(f"{where}: is neither UTF-8 nor GB18030 text; save it as UTF-8")


def _header(text: bytes, where: str) -> list[str]:
    import csv

    first = text.split(b"\n", 1)[0].decode().strip("\r")
    names = [name.strip() for name in next(csv.reader([first]), [])]
    if not any(names):
        raise ContractError(f"{where}: has no header; the first line must name the columns")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ContractError(
            f"{where}: column {', '.join(repr(n) for n in twice)} appears twice; rename or drop one"
        )
    return names


def _ragged_rows(text: bytes, width: int) -> str:
    """Which rows have another number of values than the header, counted with the csv module."""
    import csv

    rows = csv.reader(io.StringIO(text.decode(), newline=""))
    bad = [(i, len(row)) for i, row in enumerate(rows) if row and len(row) != width and i]
    shown = ", ".join(f"row {i} has {n}" for i, n in bad[:BAD_ROWS_SHOWN])
    more = f" and {len(bad) - BAD_ROWS_SHOWN} more rows" if len(bad) > BAD_ROWS_SHOWN else ""
    return f"every row needs {width} values, {shown}{more}; a comma in a text must be quoted"


def read_sql(url: str, table: str | None, query: str | None) -> pd.DataFrame:
    """The rows of a table or a query of any database that SQLAlchemy reaches."""
    import sqlalchemy as sa

    if (table is None) == (query is None):
        raise ConfigurationError(
            "a database needs either a table or a query: data.table, data.query, --query"
        )
    try:
        engine = sa.create_engine(url)
        with engine.connect() as connection:
            if table is not None:
                selection = sa.select(sa.Table(table, sa.MetaData(), autoload_with=connection))
            return pd.read_sql(sa.text(query) if query is not None else selection, connection)
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigurationError(f"data.path: the database cannot be read: {reason}") from None
