"""CSV files, read strictly and in parts: what is not plainly a table is refused, with the row.

Refused: NUL bytes, an encoding other than UTF-8 or GB18030, a duplicated or empty column name, a
row with more or fewer values than the header. Read as missing: empty, NA, NaN, null.
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

if TYPE_CHECKING:
    from pyarrow import csv as arrow

NULLS = ["", "NA", "N/A", "NaN", "nan", "NULL", "null", "None"]
BAD_ROWS_SHOWN = 5
#: Bytes of a file that are looked at together; a row is never longer.
BLOCK = 2**23
LONGEST_HEADER = 2**20


@dataclass
class Delimited:
    """A CSV: how to open it from its start, and what to call it in errors."""

    open: Callable[[], io.BufferedIOBase]
    where: str
    ragged: bool = field(default=False, init=False)

    @classmethod
    def file(cls, path: Path) -> Delimited:
        """A file, optionally compressed (.gz)."""
        if path.suffix == ".gz":
            return cls(lambda: gzip.open(path, "rb"), path.name)
        return cls(lambda: path.open("rb"), path.name)

    @classmethod
    def data(cls, data: bytes, where: str) -> Delimited:
        return cls(lambda: io.BytesIO(data), where)

    def parts(self, columns: list[str]) -> Iterator[pd.DataFrame]:
        """The rows in parts: those of ``columns`` that the file has, every value as it is written.

        Raises :class:`ContractError`.
        """
        import pyarrow as pa
        from pyarrow import csv as arrow

        selection = [name for name in self.header if name in set(columns)] or self.header[:1]
        types = dict.fromkeys(selection, pa.string())
        options = self._options(
            column_types=types, include_columns=selection, strings_can_be_null=True
        )
        try:
            with self.open() as stream:
                for batch in arrow.open_csv(stream, **options):
                    yield batch.to_pandas()
        except pa.ArrowInvalid as error:
            self._unless_empty(error)
        if self.ragged:
            raise ContractError(f"{self.where}: {self._ragged_rows()}")

    def whole(self, texts: Collection[str] = (), *, as_written: bool = False) -> pd.DataFrame:
        """All rows, with the types that their values have.

        texts: columns whose values are codes and stay as they are written; as_written: all are,
        and none is missing. Raises :class:`ContractError`.
        """
        import pyarrow as pa
        from pyarrow import csv as arrow

        frame = pd.DataFrame(columns=self.header)
        text_columns = [name for name in self.header if as_written or name in texts]
        types = dict.fromkeys(text_columns, pa.string())
        options = self._options(column_types=types, strings_can_be_null=not as_written)
        try:
            with self.open() as stream:
                frame = arrow.read_csv(stream, **options).to_pandas()
        except pa.ArrowInvalid as error:
            self._unless_empty(error)
        if self.ragged:
            raise ContractError(f"{self.where}: {self._ragged_rows()}")
        return frame

    def _unless_empty(self, error: Exception) -> None:
        """Raises ContractError unless the error only says that nothing follows the header."""
        if not str(error).startswith(("Empty CSV file", "Could not skip initial 1 rows")):
            raise ContractError(f"{self.where}: not a readable CSV: {error}") from None

    def _options(self, **convert: Any) -> dict[str, Any]:
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
                newlines_in_values=True, invalid_row_handler=self._note
            ),
            "convert_options": arrow.ConvertOptions(
                null_values=NULLS, timestamp_parsers=["-"], **convert
            ),
        }

    def _note(self, row: arrow.InvalidRow) -> str:
        self.ragged = True
        return "skip"

    @cached_property
    def encoding(self) -> str:
        """UTF-8, with or without a mark, or GB18030, which holds GBK. Raises ContractError."""
        for name in ("utf-8", "gb18030"):
            if self._decodes(name):
                return name
        raise ContractError(f"{self.where}: neither UTF-8 nor GB18030 text; save it as UTF-8")

    def _decodes(self, encoding: str) -> bool:
        decoder, row = codecs.getincrementaldecoder(encoding)(), 0
        try:
            with self.open() as stream:
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
        encoding = "utf-8-sig" if self.encoding == "utf-8" else self.encoding
        with self.open() as stream:
            line = stream.readline(LONGEST_HEADER)
        if len(line) == LONGEST_HEADER:
            raise ContractError(f"{self.where}: the first line is too long to be a header")
        first = line.decode(encoding, "replace").strip("\r\n")
        names = [name.strip() for name in next(csv.reader([first]), [])]
        if not any(names):
            raise ContractError(f"{self.where}: no header; the first line must name the columns")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ContractError(
                f"{self.where}: column {', '.join(repr(n) for n in twice)} appears twice; "
                "rename or drop one"
            )
        return names

    def _ragged_rows(self) -> str:
        """Which rows have more or fewer values than the header, counted with the csv module."""
        bad: list[str] = []
        width, more = len(self.header), 0
        with codecs.getreader(self.encoding)(self.open()) as text:
            for at, row in enumerate(csv.reader(text)):
                if at and row and len(row) != width:
                    more += len(bad) >= BAD_ROWS_SHOWN
                    bad += [f"row {at} has {len(row)}"][: BAD_ROWS_SHOWN - len(bad)]
        rest = f" and {more} more rows" if more else ""
        return f"every row needs {width} values, {', '.join(bad)}{rest}; a comma in a text must be quoted"
