"""What a value means, by itself: the same in CSV, Parquet and a database, whatever stands beside it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

#: Texts that mean a missing value, unless a contract lists them as levels.
NULLS = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
#: Whole numbers beyond it are not told apart by float64.
EXACT = 2**53
DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
#: A number with a decimal comma or with thousands signs.
GROUPED = r"[+-]?(?:\d{1,3}(?:[ .,'\u2019\u00a0\u202f]\d{3})+(?:[.,]\d+)?|\d+,\d+)"
_PLAIN = re.compile(r"[!-~]+(?: [!-~]+)*")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d(:?\d\d)?)?")
_DIGITS = re.compile(r"\s*[+-]?\d+(\.0*)?\s*")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))


def level_of(number: float) -> str:
    """A number as the name of a level: the shortest digits that mean it, without exponent."""
    return np.format_float_positional(number + 0.0, trim="-")


def normal(text: str) -> str:
    """Text in one spelling: NFC, one width, ordinary single spaces, none at the ends."""
    if _PLAIN.fullmatch(text):
        return text
    text = "".join(map(_one_width, text.translate(_INVISIBLE)))
    return " ".join(unicodedata.normalize("NFC", text).split())


def _one_width(sign: str) -> str:
    wide = unicodedata.decomposition(sign).startswith(("<wide>", "<narrow>"))
    return unicodedata.normalize("NFKC", sign) if wide else sign


def code(value: Any, *, exact: bool = False) -> str:
    """The text of a category's value.

    Text stays as it is written, in one spelling (`normal`; ``exact`` leaves that out too); true and
    false in any case are ``True`` and ``False``. A number has the shortest digits that mean it. A
    moment is told in UTC, at midnight by its date.
    """
    match value:
        case str():
            return value if exact else _written(normal(value))
        case bool() | np.bool_():
            return str(bool(value))
        case float() | np.floating():
            return level_of(float(value))
        case Decimal():
            digits = f"{value:f}"
            digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
            return "0" if digits == "-0" else digits
        case datetime():
            return _moment(value)
        case date():
            return value.isoformat()
        case _:
            return str(value)


def _written(text: str) -> str:
    if text.lower() in ("true", "false"):
        return text.capitalize()
    if _MOMENT.fullmatch(text):
        try:
            return _moment(datetime.fromisoformat(text))
        except ValueError:
            return text
    return text


def _moment(moment: datetime) -> str:
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC).replace(tzinfo=None)
    text = moment.isoformat(sep=" ")
    return text.removesuffix(" 00:00:00")


def factorized(part: pd.Series) -> tuple[NDArray[np.intp], Sequence[Any]]:
    """(the number of each row's value, -1 where it is missing; the different values)."""
    if part.dtype != object:
        codes, values = pd.factorize(part)
        return codes, list(values)
    numbers: dict[tuple[type, Any], int] = {}  # True, 1 and 1.0 are equal, and are different values
    missing = part.isna().to_numpy()
    codes = np.array(
        [
            -1 if gap else numbers.setdefault((type(v), v), len(numbers))
            for v, gap in zip(part, missing, strict=True)
        ],
        dtype=np.intp,
    )
    return codes, [value for _, value in numbers]


def as_numbers(
    part: pd.Series,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """(numbers, NaN where there is none; where a value is missing; where it is a whole number
    beyond 2^53, which float64 would mix up with its neighbours). Dates are no numbers."""
    if isinstance(part.dtype, pd.CategoricalDtype):
        part = part.astype(object)
    if isinstance(part.dtype, pd.StringDtype):
        return _texts_as_numbers(part)
    empty = part.isna().to_numpy()
    if part.dtype == object:
        return _objects_as_numbers(part, empty)
    if not pd.api.types.is_numeric_dtype(part) or pd.api.types.is_complex_dtype(part):
        return np.full(len(part), np.nan), empty, np.zeros(len(part), dtype=bool)
    values = part.to_numpy(dtype=np.float64, na_value=np.nan, copy=True)
    whole = pd.api.types.is_integer_dtype(part)
    return values, empty, (np.abs(values) > EXACT) & whole


def pointed(part: pd.Series, decimal: str, thousands: str) -> pd.Series:
    """A column whose texts write numbers with these signs, with a decimal point and no others instead.

    A text in another way of writing becomes one that is no number: 1.467 says nothing where the
    decimal sign is a comma. A space stands for all spaces that do not break.
    """
    if isinstance(part.dtype, pd.CategoricalDtype):
        part = part.astype(object)
    texts = part.map(lambda value: isinstance(value, str)).to_numpy(dtype=bool)
    if not texts.any():
        return part
    space = "[ \u00a0\u202f]"
    group = space if thousands == " " else re.escape(thousands)
    whole = rf"(?:\d+|\d{{1,3}}(?:{group}\d{{3}})+)" if thousands else r"\d+"
    form = re.compile(rf"[+-]?{whole}(?:{re.escape(decimal)}\d*)?(?:[eE][+-]?\d+)?")

    def plain(text: str) -> str:
        text = text.strip()
        if text in NULLS or text.lower() in ("true", "false"):
            return text
        if not form.fullmatch(text):
            return "no number"
        return (
            re.sub(group, "", text).replace(decimal, ".")
            if thousands
            else text.replace(decimal, ".")
        )

    column = part.astype(object)
    column[texts] = column[texts].map(plain)
    return column.astype("str") if texts.all() else column


def _texts_as_numbers(
    part: pd.Series,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.utf8_trim_whitespace(pa.array(part, pa.string(), from_pandas=True))
    texts = pc.if_else(pc.is_in(texts, pa.array(NULLS, pa.string())), None, texts)
    empty = np.array(texts.is_null().to_numpy(zero_copy_only=False))
    try:
        numbers = texts.cast(pa.float64()).to_numpy(zero_copy_only=False)
        values = np.array(numbers, dtype=np.float64)
    except pa.ArrowInvalid:  # not all are numbers; which, the slower way tells
        column = texts.to_pandas().astype("object")
        truth = column.str.lower().map({"true": 1.0, "false": 0.0})
        column = pd.to_numeric(column, errors="coerce").astype("float64").fillna(truth)
        values = np.array(column.to_numpy())
    beyond = np.zeros(len(values), dtype=bool)
    for row in np.flatnonzero(np.abs(values) > EXACT):
        beyond[row] = _DIGITS.fullmatch(texts[row].as_py()) is not None
    return values, empty, beyond


def _objects_as_numbers(
    part: pd.Series, empty: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    values, beyond = np.full(len(part), np.nan), np.zeros(len(part), dtype=bool)
    empty, column = empty.copy(), part.to_numpy()
    texts = np.array([isinstance(value, str) for value in column], dtype=bool)
    if texts.any():
        strings = pd.Series(column[texts], dtype="str")
        values[texts], empty[texts], beyond[texts] = _texts_as_numbers(strings)
    for row in np.flatnonzero(~(texts | empty)):
        value = column[row]
        if isinstance(value, int | float | Decimal | np.integer | np.floating | np.bool_):
            values[row] = float(value)
            fraction = isinstance(value, float | np.floating) or (
                isinstance(value, Decimal) and value % 1 != 0
            )
            beyond[row] = abs(values[row]) > EXACT and not fraction
    return values, empty, beyond


def frame_of(table: pa.Table) -> pd.DataFrame:
    """An Arrow table in pandas; whole numbers and truth values with gaps stay what they are."""
    import pyarrow as pa

    masked: dict[pa.DataType, Any] = {pa.bool_(): pd.BooleanDtype()}
    for bits, signed, unsigned in (
        (pa.int8(), pd.Int8Dtype(), pd.UInt8Dtype()),
        (pa.int16(), pd.Int16Dtype(), pd.UInt16Dtype()),
        (pa.int32(), pd.Int32Dtype(), pd.UInt32Dtype()),
        (pa.int64(), pd.Int64Dtype(), pd.UInt64Dtype()),
    ):
        masked |= {bits: signed, pa.type_for_alias(f"u{bits}"): unsigned}
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        columns[name] = column.to_pandas(types_mapper=masked.get if column.null_count else None)
    return pd.DataFrame(columns, index=pd.RangeIndex(table.num_rows), copy=False)


def typed_objects(column: pd.Series) -> pd.Series:
    """A column of Python values with the type they share; as it is where they share none."""
    import pyarrow as pa

    try:
        array = pa.chunked_array([pa.array(column.tolist())])
    except (pa.ArrowException, OverflowError):
        return column
    return frame_of(pa.table({"values": array}))["values"]


def typed_texts(column: pa.ChunkedArray) -> pd.Series:
    """A CSV's column with the type that all its values have: whole numbers, numbers, truth values.

    Else text, as it is written: codes with a leading zero, whole numbers that no type holds, dates.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = pc.utf8_trim_whitespace(column)
    texts = pc.if_else(pc.is_in(texts, pa.array(NULLS, pa.string())), None, texts)
    there = texts.drop_null()

    def every(pattern: str) -> bool:
        return bool(pc.all(pc.match_substring_regex(there, f"^(?:{pattern})$")).as_py())

    def some(pattern: str) -> bool:
        return bool(pc.any(pc.match_substring_regex(there, pattern)).as_py())

    kind: pa.DataType | None = None
    if not len(there) or some(r"^[+-]?0\d"):
        kind = None
    elif every(r"-?\d+"):
        kind = pa.int64()
    elif every("(?i)true|false"):
        kind, texts = pa.bool_(), pc.utf8_lower(texts)
    elif not some(r"^[+-]?\d{17,}(?:\.0*)?$"):
        kind = pa.float64()
    try:
        values = column if kind is None else texts.cast(kind)
    except pa.ArrowInvalid:
        values = column
    return frame_of(pa.table({"values": values}))["values"]
