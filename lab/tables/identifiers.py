"""Identifiers by which two tables are aligned: one spelling, keys in order, what takes no part.

A *key* is one column or several together. Keys are tried in order: the first by which a row meets
one of the other table wins. How a column's values are spelled is said in the contract
(`lab.tables.contracts.Column.spelling`), the same at both tables:

    exact       as they are written
    normal      in one Unicode spelling, as levels of a category are
    code        letters and digits alone, in capitals: width, hyphens, spaces and points don't count
    resident    as code; and a resident's number of 18 signs, its date and check digit right
                (GB 11643-1999), or the row takes no part

What can't be matched takes no part and is counted: a row without a value, a number that is wrong,
and by a second key and those after it, values that more than one row has, because nothing tells
which is meant. The first key names persons: there such rows are refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.errors import ContractError
from lab.tables.contracts import Contract
from lab.tables.values import EXACT, NULLS, code

WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
CHECK_DIGITS = "10X98765432"


@dataclass(frozen=True)
class KeyTexts:
    """A key's values, in one spelling, and how many rows take no part by it.

    columns: the key's
    texts: (rows,) str, "" where a row takes no part
    missing: rows without a value in one of the columns
    invalid: rows whose value breaks its rule
    ambiguous: rows whose value another row has too
    """

    columns: tuple[str, ...]
    texts: NDArray[np.object_]
    missing: int
    invalid: int
    ambiguous: int


def key_texts(
    table: pd.DataFrame, keys: Sequence[Sequence[str]], contract: Contract | None, where: str
) -> tuple[KeyTexts, ...]:
    """Each key's values of a table, in the order of its rows.

    keys: names of columns, one list for each key
    contract: says how columns are spelled; without one all are `normal`
    where: the table's name, for errors

    Raises ContractError: no key, a column that is not there, rows that share a value of the first
    key, numbers that float64 mixes up with their neighbours.
    """
    names = [name for key in keys for name in key]
    unknown = [name for name in names if name not in table]
    if unknown or not keys or not all(keys):
        what = f"has no column '{unknown[0]}'" if unknown else "needs a key of one column or more"
        raise ContractError(f"{where}: {what}; its columns are {', '.join(map(str, table))}")
    spelled = {
        name: spellings(table[name], _rule(contract, name), f"{where} column '{name}'")
        for name in dict.fromkeys(names)
    }
    all_texts = tuple(_joined(tuple(key), [spelled[name] for name in key]) for key in keys)
    first = all_texts[0]
    if first.ambiguous:
        raise ContractError(
            f"{where}: {first.ambiguous:,} rows share a value of {' and '.join(first.columns)} with "
            "another row; a table that is aligned has one row for each person, so add them up first"
        )
    return all_texts


def resident_number(text: str) -> bool:
    """Whether 18 signs are a resident's number: digits, a day that was, and the check digit.

    The check digit is that of ISO 7064, MOD 11-2, as GB 11643-1999 has it.

    >>> resident_number("11010519491231002X"), resident_number("110105194912310021")
    (True, False)
    """
    digits, check = text[:17], text[17:]
    if len(text) != 18 or not (digits.isascii() and digits.isdigit()):
        return False
    try:
        date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(WEIGHTS, digits, strict=True))
    return check == CHECK_DIGITS[total % 11]


def letters_and_digits(text: str) -> str:
    """Text in capitals, digits of any script and width as 0 to 9, and nothing else.

    >>> letters_and_digits("ａb-12．３ ４")
    'AB1234'
    """
    if text.isascii():
        return "".join(filter(str.isalnum, text)).upper()
    signs = unicodedata.normalize("NFKC", text).upper()
    return "".join(
        str(unicodedata.digit(sign)) if sign.isdecimal() else sign
        for sign in signs
        if sign.isalnum()
    )


#: What a rule makes of a value.
RULES: dict[str, Callable[[Any], str]] = {
    "exact": lambda value: code(value, exact=True),
    "normal": code,
    "code": lambda value: letters_and_digits(code(value)),
    "resident": lambda value: letters_and_digits(code(value)),
}


def _rule(contract: Contract | None, name: str) -> str:
    if contract is None:
        return "normal"
    if name not in contract.columns:
        raise ContractError(f"contract '{contract.name}' has no column '{name}', which is a key")
    return contract.columns[name].spelling


def spellings(values: pd.Series, rule: str, where: str) -> tuple[list[str], list[bool]]:
    """A column in one spelling: (texts, "" where there is none; whether each keeps its rule).

    rule: a name of `RULES`. Raises ContractError for numbers that float64 mixes up.
    """
    if pd.api.types.is_float_dtype(values) and (values.abs() > EXACT).any():
        raise ContractError(
            f"{where} holds numbers above 2^53 as floating point, which does not tell them apart; "
            "read it as text"
        )
    spelling, gaps = RULES[rule], values.isna().to_numpy()
    there = values.to_numpy(dtype=object)[~gaps].tolist()
    texts = np.full(len(values), "", dtype=object)
    texts[~gaps] = ["" if text.strip() in NULLS else text for text in map(spelling, there)]
    valid = [not text or rule != "resident" or resident_number(text) for text in texts]
    return texts.tolist(), valid


def _joined(columns: tuple[str, ...], parts: list[tuple[list[str], list[bool]]]) -> KeyTexts:
    """A key of its columns: no two lists of values give one text."""
    rows = zip(*(texts for texts, _ in parts), strict=True)
    missing, texts = 0, []
    valid = np.logical_and.reduce([keeps for _, keeps in parts])
    for row in rows:
        texts.append(row[0] if len(row) == 1 else "".join(f"{len(part)} {part} " for part in row))
        if not all(row):
            texts[-1] = ""
            missing += 1
    out = np.array(texts, dtype=object)
    invalid = (out != "") & ~valid
    out[invalid] = ""
    ambiguous = pd.Series(out).duplicated(keep=False).to_numpy() & (out != "")
    out[ambiguous] = ""
    return KeyTexts(columns, out, missing, int(invalid.sum()), int(ambiguous.sum()))
