"""CSV files, read strictly and in parts: what is not plainly a table is refused, with the row.

Refused: NUL bytes, text that is not in the encoding given (UTF-8 if none is), a duplicated or empty
column name, a row with more or fewer values than the header. Values are separated by commas, or by
the semicolons, tabs or bars of a header that has no comma.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from lab.errors import ContractError
from lab.tables.values import typed_texts

if TYPE_CHECKING:
    from pyarrow import csv as arrow

BAD_ROWS_SHOWN = 5
#: Bytes of a file that are looked at together; a row is never longer.
BLOCK = 2**23
LONGEST_HEADER = 2**20
DELIMITERS = (",", ";", "\t", "|")
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass
class Delimited:
    """A CSV: how to open it from its start, what to call it in errors, and its encoding, UTF-8 if
    none is given."""

    open: Callable[[], io.BufferedIOBase]
    where: str
    stated: str | None = None
    ragged: bool = field(default=False, init=False)

    @classmethod
    def file(cls, path: Path, encoding: str | None = None) -> Delimited:
        """A file, optionally compressed (.gz)."""
        if path.suffix == ".gz":
            return cls(lambda: gzip.open(path, "rb"), path.name, encoding)
        return cls(lambda: path.open("rb"), path.name, encoding)

    @classmethod
    def data(cls, data: bytes, where: str, encoding: str | None = None) -> Delimited:
        return cls(lambda: io.BytesIO(data), where, encoding)

    def parts(self, columns: list[str]) -> Iterator[pd.DataFrame]:
        """The rows in parts: those of ``columns`` that the file has, every value as it is written.

        Raises :class:`ContractError`.
        """
        import pyarrow as pa
        from pyarrow import csv as arrow

        selection = [name for name in self.header if name in set(columns)] or self.header[:1]
        options = self._options(selection)
        try:
            with self.open() as stream:
                for batch in arrow.open_csv(stream, **options):
                    yield batch.to_pandas()
        except pa.ArrowInvalid as error:
            self._unless_empty(error)
        if self.ragged:
            raise ContractError(f"{self.where}: {self._ragged_rows()}")

    def whole(self, texts: Collection[str] = (), *, as_written: bool = False) -> pd.DataFrame:
        """All rows, with the types that their values have (`lab.tables.values.typed_texts`).

        texts: columns whose values are codes and stay as they are written; as_written: all do.
        Raises :class:`ContractError`.
        """
        import pyarrow as pa
        from pyarrow import csv as arrow

        frame = pd.DataFrame(columns=self.header)
        try:
            with self.open() as stream:
                table = arrow.read_csv(stream, **self._options(self.header))
            columns = zip(self.header, table.columns, strict=True)
            as_text = set(self.header if as_written else texts)
            frame = pd.DataFrame(
                {k: c.to_pandas() if k in as_text else typed_texts(c) for k, c in columns},
                copy=False,
            )
        except pa.ArrowInvalid as error:
            self._unless_empty(error)
        if self.ragged:
            raise ContractError(f"{self.where}: {self._ragged_rows()}")
        return frame

    def _unless_empty(self, error: Exception) -> None:
        """Raises ContractError unless the error only says that nothing follows the header."""
        if not str(error).startswith(("Empty CSV file", "Could not skip initial 1 rows")):
            raise ContractError(f"{self.where}: not a readable CSV: {error}") from None

    def _options(self, selection: list[str]) -> dict[str, Any]:
        """How Arrow reads these columns: every value as it is written, none missing."""
        import pyarrow as pa
        from pyarrow import csv as arrow

        return {
            "read_options": arrow.ReadOptions(
                column_names=self.header,
                skip_rows=1,
                use_threads=False,
                block_size=BLOCK,
                encoding=self.encoding,
            ),
            "parse_options": arrow.ParseOptions(
                delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=self._note
            ),
            "convert_options": arrow.ConvertOptions(
                column_types=dict.fromkeys(selection, pa.string()), include_columns=selection
            ),
        }

    def _note(self, row: arrow.InvalidRow) -> str:
        self.ragged = True
        return "skip"

    @cached_property
    def encoding(self) -> str:
        """The encoding stated, or UTF-8, with or without a mark. Raises ContractError: no encoding
        is guessed, for one that reads every byte reads most of them wrong."""
        name = self.stated or "utf-8"
        try:
            if codecs.lookup(name).name == "utf-8-sig":
                name = "utf-8"  # the mark is seen where it stands
            plain = "a,\n".encode(name) == b"a,\n"
        except LookupError:
            plain = False
        if not plain:
            raise ContractError(
                f"{self.where}: encoding must be one that keeps ASCII, as utf-8, gb18030, cp1252, "
                f"latin-1 do, got '{name}'; save the table as UTF-8"
            )
        if not self._decodes(name):
            raise ContractError(
                f"{self.where}: is not {name.upper()} text; save it as UTF-8, or state its encoding: "
                'encoding = "gb18030", "cp1252", "latin-1" …'
            )
        return name

    def _decodes(self, encoding: str) -> bool:
        decoder, row = codecs.getincrementaldecoder(encoding)(), 0
        try:
            with self.open() as stream:
                if stream.read(2) in UTF_16:
                    raise ContractError(f"{self.where}: is UTF-16 text; save it as UTF-8")
                stream.seek(0)
                while block := stream.read(BLOCK):
                    if b"\x00" in block:
                        row += block[: block.index(b"\x00")].count(b"\n")
                        self._refuse_nul(row)
                    decoder.decode(block)
                    row += block.count(b"\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
        except (OSError, EOFError, zlib.error) as error:
            raise ContractError(f"{self.where}: cannot be read: {error}") from None
        return True

    def _refuse_nul(self, row: int) -> None:
        place = f"row {row}" if row else "the header"
        raise ContractError(
            f"{self.where} {place}: holds a NUL byte; the file is damaged or is not text, "
            "export it again"
        )

    @cached_property
    def header(self) -> list[str]:
        """The columns' names. Raises :class:`ContractError`."""
        names = [name.strip() for name in self._split(self.delimiter)]
        if not any(names):
            raise ContractError(f"{self.where}: no header; the first line must name the columns")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ContractError(
                f"{self.where}: column {', '.join(repr(n) for n in twice)} appears twice; "
                "rename or drop one"
            )
        return names

    @cached_property
    def delimiter(self) -> str:
        """What separates the values: the first of commas, semicolons, tabs, bars in the header."""
        return next((d for d in DELIMITERS if len(self._split(d)) > 1), ",")

    def _split(self, delimiter: str) -> list[str]:
        return next(csv.reader([self._first], delimiter=delimiter), [])

    @cached_property
    def _first(self) -> str:
        """The first line."""
        encoding = "utf-8-sig" if codecs.lookup(self.encoding).name == "utf-8" else self.encoding
        with self.open() as stream:
            line = stream.read(LONGEST_HEADER).replace(b"\r", b"\n").partition(b"\n")[0]
        if len(line) == LONGEST_HEADER:
            raise ContractError(f"{self.where}: the first line is too long to be a header")
        return line.decode(encoding, "replace")

    def _ragged_rows(self) -> str:
        """Which rows have more or fewer values than the header, counted with the csv module."""
        bad: list[str] = []
        width, more = len(self.header), 0
        with codecs.getreader(self.encoding)(self.open()) as text:
            for at, row in enumerate(csv.reader(text, delimiter=self.delimiter)):
                if at and row and len(row) != width:
                    more += len(bad) >= BAD_ROWS_SHOWN
                    bad += [f"row {at} has {len(row)}"][: BAD_ROWS_SHOWN - len(bad)]
        rest = f" and {more} more rows" if more else ""
        return f"every row needs {width} values, {', '.join(bad)}{rest}; a comma in a text must be quoted"
