"""Where a party's table comes from: a built-in source, a file, or a database."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from lab.errors import ConfigurationError, ContractError
from lab.records import nearest
from lab.tables import databases, market_folder, market_sides
from lab.tables.checks import Checker, check
from lab.tables.contracts import Contract, draft
from lab.tables.delimited import Delimited
from lab.tables.values import frame_of, typed_objects

TABLES = Path(__file__).with_name("published")
#: Rows that are looked at together.
PART_ROWS = 2**16


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
    texts: Collection[str] = (),
    encoding: str | None = None,
) -> Table:
    """Read a table and check it against its contract, in parts where it has one.

    ``columns`` limits a table without a contract to what a study uses, ``texts`` are those of its
    columns whose values are codes; ``encoding``: of a CSV that is not UTF-8. Raises
    :class:`ContractError` with every violation, :class:`ConfigurationError` for a source or a
    path that cannot be read.
    """
    contract = contract or (built_in(source) if source else None)
    if contract is None or path is None or source not in (None, *ONE_FILE):
        frame, contract, origin = unchecked(
            *(source, path),
            contract=contract,
            table=table,
            query=query,
            columns=columns,
            texts=texts,
            encoding=encoding,
        )
        frame = check(frame, contract, where=origin)
    else:
        origin = _origin(source, path)
        checker = Checker(contract, origin)
        for part in _parts(path, list(contract.columns), table, query, encoding):
            checker.add(part)
        frame = checker.table()
    return Table(frame, contract, origin, digest(frame))


def unchecked(
    source: str | None = None,
    path: str | None = None,
    *,
    contract: Contract | None = None,
    table: str | None = None,
    query: str | None = None,
    columns: list[str] | None = None,
    texts: Collection[str] = (),
    encoding: str | None = None,
) -> tuple[pd.DataFrame, Contract, str]:
    """The rows as they come, the contract they should keep, and where they are from.

    texts: columns of a file without a contract whose values are codes, read as they are written.
    """
    if source is not None:
        contract = contract or built_in(source)
        frame = _READERS[source](path, contract)
        origin = _origin(source, path)
    elif path is not None:
        if "://" in path:
            frame = read_sql(path, table, query)
        else:
            as_text = contract is not None and contract.writes_otherwise
            codes = _codes(contract) or texts
            frame = read_file(Path(path), codes, as_text=as_text, encoding=encoding)
        origin = _origin(None, path)
        contract = contract or draft(_selection(frame, columns, origin), Path(origin).name, texts)
    else:
        raise ConfigurationError("data: name a source or a path")
    return frame, contract, origin


def _origin(source: str | None, path: str | None) -> str:
    """What a table is called in errors and records; never with a password."""
    if path is None:
        return source or ""
    name = databases.origin(path) if "://" in path else Path(path).name
    return name if source is None else f"{source} from {name}"


def _parts(
    path: str, columns: list[str], table: str | None, query: str | None, encoding: str | None
) -> Iterator[pd.DataFrame]:
    """The rows in parts: those of ``columns`` that the table has."""
    if "://" in path:
        parts = databases.parts(path, table, query, columns)
        return (part.apply(typed_objects) for part in parts)
    file = Path(path)
    if not file.is_file():
        raise ConfigurationError(f"{path}: no such file")
    if file.suffix == ".parquet":
        return _parquet_parts(file, columns)
    return Delimited.file(file, encoding).parts(columns)


def _parquet_parts(path: Path, columns: list[str]) -> Iterator[pd.DataFrame]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            selection = [name for name in names if name in columns] or names[:1]
            for batch in file.iter_batches(PART_ROWS, columns=selection):
                yield frame_of(pa.Table.from_batches([batch]))
    except (OSError, pa.ArrowException) as error:
        raise ContractError(f"{path.name}: cannot be read: {error}") from None


def digest(frame: pd.DataFrame) -> str:
    """SHA-256 over the columns' names and values, independent of how they are stored."""
    sha = hashlib.sha256(",".join(frame.columns).encode())
    for name in frame.columns:
        for start in range(0, len(frame), PART_ROWS):
            values = frame[name].iloc[start : start + PART_ROWS]
            if isinstance(values.dtype, pd.CategoricalDtype):
                values = values.astype("str")
            sha.update(pd.util.hash_pandas_object(values, index=False).to_numpy().tobytes())
    return sha.hexdigest()


def built_in(source: str) -> Contract:
    """The contract of a built-in source."""
    if source not in _READERS:
        near = nearest(source, sorted(_READERS))
        hint = f"; did you mean '{near}'?" if near else ""
        raise ConfigurationError(
            f"data.source: no source '{source}'{hint}; there are {', '.join(_READERS)}"
        )
    if source.startswith("market"):
        return market_folder.contract(source.removeprefix("market_"))
    return Contract.read(TABLES / f"{source}.toml")


def _selection(frame: pd.DataFrame, columns: list[str] | None, origin: str) -> pd.DataFrame:
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
        return read_file(Path(path), _codes(contract))
    from statsmodels.datasets import randhie

    frame: pd.DataFrame = randhie.load_pandas().data
    return frame


def _published(path: str | None, contract: Contract) -> pd.DataFrame:
    return read_file(_required_path(path, contract), _codes(contract))


def _fremtpl2_claims(path: str | None, contract: Contract) -> pd.DataFrame:
    folder = _required_path(path, contract)
    policies = read_file(_either(folder, "freMTPL2freq"))
    claims = read_file(_either(folder, "freMTPL2sev"))
    payments = claims.groupby("IDpol")["ClaimAmount"].agg(PaidNb="size", ClaimAmount="sum")
    return policies.join(payments, on="IDpol").fillna({"PaidNb": 0, "ClaimAmount": 0.0})


def _default_credit(path: str | None, contract: Contract) -> pd.DataFrame:
    folder = _required_path(path, contract)
    guest = read_file(_either(folder, "default_credit_hetero_guest"))
    host = read_file(_either(folder, "default_credit_hetero_host"))
    guest.columns = guest.columns.str.replace("x", "g")
    host.columns = host.columns.str.replace("x", "h")
    return guest.merge(host, on="id")


def _market(path: str | None, contract: Contract) -> pd.DataFrame:
    return market_folder.pool(_folder("market", path))


def _folder(source: str, path: str | None) -> Path:
    """The folder of a market. Raises :class:`ConfigurationError` where none is named."""
    if path is None:
        raise ConfigurationError(
            f"a path is needed for {source}: the folder of a market; make it with: "
            "lab market make FOLDER --persons 50000"
        )
    return Path(path)


def _required_path(path: str | None, contract: Contract) -> Path:
    if path is None:
        raise ConfigurationError(
            f"data.path is needed for {contract.name}; the table is published: {contract.published}"
        )
    return Path(path)


def _either(folder: Path, stem: str) -> Path:
    candidates = [folder / f"{stem}{end}" for end in (".csv.gz", ".csv", ".parquet")]
    for path in candidates:
        if path.exists():
            return path
    raise ConfigurationError(f"{folder}: needs one of {', '.join(p.name for p in candidates)}")


def _sides(
    source: str, of: Callable[[Path], pd.DataFrame]
) -> Callable[[str | None, Contract], pd.DataFrame]:
    """The reader of one side's table of a joined market."""
    return lambda path, contract: of(_folder(source, path))


_READERS: dict[str, Callable[[str | None, Contract], pd.DataFrame]] = {
    "rand_hie": _rand_hie,
    "rand_hie_full": _published,
    "fremtpl2_freq": _published,
    "fremtpl2_claims": _fremtpl2_claims,
    "default_credit": _default_credit,
    "market": _market,
    **{f"market_{name}": _sides(f"market_{name}", of) for name, of in market_sides.TABLES.items()},
}
SOURCES = tuple(_READERS)
#: Sources that come with the installation; the others take their file by path.
INSTALLED = ("rand_hie",)


#: Sources whose path is one file as it is published.
ONE_FILE = ("rand_hie", "rand_hie_full", "fremtpl2_freq")


def read_file(
    path: Path,
    texts: Collection[str] = (),
    *,
    as_text: bool = False,
    encoding: str | None = None,
) -> pd.DataFrame:
    """A CSV (optionally .gz; in UTF-8 unless ``encoding`` says otherwise) or a Parquet file.

    texts: columns of a CSV whose values are codes and stay as they are written; ``as_text``: all.
    """
    import pyarrow as pa
    from pyarrow import parquet

    if not path.is_file():
        raise ConfigurationError(f"{path}: no such file")
    if path.suffix != ".parquet":
        return Delimited.file(path, encoding).whole(texts, as_written=as_text)
    try:
        frame = frame_of(parquet.ParquetFile(path).read())
        return frame.loc[:, ~frame.columns.str.startswith("__index_level_")]
    except (OSError, pa.ArrowException) as error:
        raise ContractError(f"{path.name}: cannot be read: {error}") from None


def _codes(contract: Contract | None) -> list[str]:
    """Columns of a contract whose values are codes, not numbers."""
    columns = contract.columns.items() if contract else ()
    return [name for name, column in columns if column.type == "category"]


def read_csv(data: bytes, where: str, encoding: str | None = None) -> pd.DataFrame:
    """The table of a CSV's bytes, as `lab.tables.delimited` reads it."""
    return Delimited.data(data, where, encoding).whole()


def read_sql(url: str, table: str | None, query: str | None) -> pd.DataFrame:
    """The rows of a table or a query of any database that SQLAlchemy reaches."""
    frame = pd.concat(databases.parts(url, table, query), ignore_index=True)
    return frame.apply(typed_objects)
