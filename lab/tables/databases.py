"""Rows of any database that SQLAlchemy reaches, in parts that fit in memory; nothing is written.

PostgreSQL is read through a cursor on the server, in a transaction that can't write. A password
belongs in the driver's own file (PGPASSFILE); one in an address is never shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lab.errors import ConfigurationError

if TYPE_CHECKING:
    import sqlalchemy as sa

#: Rows that are held as Python objects at a time.
ROWS = 20_000


def parts(
    address: str, table: str | None, query: str | None, columns: list[str] | None = None
) -> Iterator[pd.DataFrame]:
    """The rows of a table, in the order of its primary key, or of a query, in the order it gives:
    values as the driver gives them, so that no whole number becomes a floating one beside a gap.

    table: a name, or schema.name; columns: those wanted of a table, None for all. Raises
    :class:`ConfigurationError` of one line that holds no password.
    """
    import sqlalchemy as sa

    if (table is None) == (query is None):
        raise ConfigurationError(
            "name either a table of the database or a query: data.table, or data.query (--query)"
        )
    url = _url(address)
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            reading = {"stream_results": True, "max_row_buffer": ROWS}
            if url.get_backend_name() == "postgresql":
                reading["postgresql_readonly"] = True
            connection = connection.execution_options(**reading)
            statement = sa.text(query) if query is not None else _rows(connection, table, columns)
            rows = connection.execute(statement)
            names, empty = list(rows.keys()), True
            for part in rows.partitions(ROWS):
                yield pd.DataFrame(map(tuple, part), columns=names, dtype=object)
                empty = False
            if empty:
                yield pd.DataFrame(columns=names, dtype=object)
    except (sa.exc.SQLAlchemyError, ImportError) as error:
        raise ConfigurationError(
            f"data.path: the database cannot be read: {_why(error, url)}"
        ) from None


def origin(address: str) -> str:
    """Where a database is, without who reads it."""
    url = _url(address)
    return url.set(username=None, password=None, query={}).render_as_string()


def _url(address: str) -> sa.URL:
    import sqlalchemy as sa

    try:
        url = sa.make_url(address)
    except (sa.exc.ArgumentError, ValueError):
        kind = address.split("://", 1)[0]
        raise ConfigurationError(
            f"data.path: not a valid {kind} address; the form is "
            "postgresql://user@host:5432/database"
        ) from None
    if "@" in (url.host or ""):
        raise ConfigurationError("data.path: write an @ in a user name or a password as %40")
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    file = url.database or ""
    if url.get_backend_name() == "sqlite" and file != ":memory:" and not Path(file).is_file():
        raise ConfigurationError(f"{file}: no such file")  # SQLite would make it
    return url


def _rows(
    connection: sa.Connection, table: str | None, columns: list[str] | None
) -> sa.Select[Any]:
    """All rows of a table; columns that it lacks are left out, and the contract reports them."""
    import sqlalchemy as sa

    from lab.records import nearest

    schema, _, name = (table or "").rpartition(".")
    inspector = sa.inspect(connection)
    try:
        names = [str(column["name"]) for column in inspector.get_columns(name, schema or None)]
        key = inspector.get_pk_constraint(name, schema or None)["constrained_columns"]
    except sa.exc.NoSuchTableError:
        near = nearest(name, inspector.get_table_names(schema or None))
        hint = f"; did you mean '{near}'?" if near else ""
        raise ConfigurationError(f"data.table: there is no table '{table}'{hint}") from None
    selection = [c for c in names if columns is None or c in columns] or names[:1]
    source = sa.table(name, *map(sa.column, names), schema=schema or None)
    return sa.select(*(source.c[c] for c in selection)).order_by(*(source.c[c] for c in key))


def _why(error: Exception, url: sa.URL) -> str:
    """The first line of a driver's error, without the password."""
    cause = getattr(error, "orig", None) or error
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    if isinstance(error, ImportError) and "psycopg" in reason:
        reason = "the driver is missing: pip install 'insurance-privacy-lab[postgres]'"
    secrets = [str(url.password or ""), *(str(value) for value in url.query.values())]
    for secret in secrets:
        reason = reason.replace(secret, "•••") if secret else reason
    return reason
