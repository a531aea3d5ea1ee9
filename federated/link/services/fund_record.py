"""The fund's record of conditions, read from its table, and the hidden list that it hands out.

The list's key is of this record: another record has another key, so that nobody finds in a new list
what it was helped to ask of an old one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

from federated.link.charter import ConditionTerms, Spelling
from federated.link.lookup import SHORT, Condition, HiddenList, hidden_list
from lab.errors import ContractError
from lab.files import canonical, read_json, write_whole
from lab.tables.identifiers import spellings
from lab.tables.sources import read_file
from secure_agg.ristretto import derived_key

COLUMNS, SECRET, LIST = ("person", "group", "first"), "secret.json", "list.bin"
#: Bytes of an entry of the list: a name, and a label.
ENTRY = SHORT + 1


@dataclass(frozen=True)
class FundRecord:
    """What the fund answers from.

    key: of the hidden list; secret: for handles; entries: the list in bytes, empty where the fund
    sees the person
    """

    conditions: tuple[Condition, ...] = field(repr=False)
    key: bytes = field(repr=False)
    secret: bytes = field(repr=False)
    entries: bytes = field(repr=False)

    @property
    def digest(self) -> str:
        """Names the list."""
        return list_digest(self.entries)


def list_digest(entries: bytes) -> str:
    """The name of a list in bytes."""
    return hashlib.sha256(entries).hexdigest()


def listed(entries: bytes) -> HiddenList | None:
    """The list of these bytes, if it is one."""
    if not entries or len(entries) % ENTRY:
        return None
    count = len(entries) // ENTRY
    names = np.frombuffer(entries, dtype=f"S{SHORT}", count=count)
    return HiddenList(names, np.frombuffer(entries, dtype=np.uint8, offset=SHORT * count))


def fund_record(
    folder: Path, conditions: tuple[Condition, ...], terms: ConditionTerms
) -> FundRecord:
    """The record with its list, made once for the same conditions and terms. folder: of the link."""
    place = folder / SECRET
    if not place.exists():
        write_whole(place, canonical({"secret": secrets.token_hex(32)}), 0o600)
    secret = bytes.fromhex(read_json(place)["secret"])
    lines = [[c.person, c.group, None if c.first is None else str(c.first)] for c in conditions]
    content = canonical([sorted(lines, key=str), terms.refer_days, terms.cap])
    seed = hashlib.sha256(secret + content).digest()
    key, handles = derived_key(seed, b"condition"), hashlib.sha256(b"handles" + secret).digest()
    entries = b"" if terms.look_up == "open" else _entries(folder, conditions, terms, key, seed)
    return FundRecord(conditions, key, handles, entries)


def _entries(
    folder: Path,
    conditions: tuple[Condition, ...],
    terms: ConditionTerms,
    key: bytes,
    seed: bytes,
) -> bytes:
    """The list in bytes, from its file if that is of this seed."""
    place, mark = folder / LIST, hashlib.sha256(b"list" + seed).digest()
    if place.exists() and (data := place.read_bytes())[:32] == mark:
        return data[32:]

    def padding(size: int) -> bytes:
        return hashlib.shake_256(b"padding" + seed).digest(size)

    table = hidden_list(conditions, terms.refer_days, terms.cap, key, padding)
    entries = table.names.tobytes() + table.labels.tobytes()
    write_whole(place, mark + entries, 0o600)
    return entries


def read_conditions(file: Path, spelling: Spelling = "normal") -> tuple[Condition, ...]:
    """A table of conditions. `first` is a day as 2022-03-01, empty where it is not known.

    Raises ConfigurationError and ContractError, which names rows and no value.
    """
    frame = read_file(file, texts=set(COLUMNS))
    absent = [name for name in COLUMNS if name not in frame]
    if absent:
        raise ContractError(f"{file}: has no column '{absent[0]}'; needs {', '.join(COLUMNS)}")
    persons, valid = spellings(frame["person"], spelling, f"{file} column 'person'")
    groups = frame["group"].fillna("").astype("str").str.strip()
    found, mistakes = [], []
    for row, (person, good, group, day) in enumerate(
        zip(persons, valid, groups, frame["first"], strict=True), start=1
    ):
        first, readable = _day(day)
        if not (person and good and group and readable):
            mistakes.append(
                f"row {row}: needs a person, a group, and a day as 2022-03-01 or nothing"
            )
        found.append(Condition(person, group, first))
    if mistakes:
        raise ContractError(f"{file}: {len(mistakes):,} rows are not usable", tuple(mistakes[:20]))
    return tuple(found)


def read_person_keys(file: Path, spelling: Spelling = "normal") -> Mapping[str, str]:
    """A table of `person` and `key`. Raises ConfigurationError and ContractError."""
    frame = read_file(file, texts={"person", "key"})
    if not {"person", "key"} <= set(frame):
        raise ContractError(f"{file}: needs the columns person, key")
    persons, _ = spellings(frame["person"], spelling, f"{file} column 'person'")
    keys = frame["key"].fillna("").astype("str")
    if not keys.str.fullmatch("[0-9a-f]{64}").all():
        raise ContractError(f"{file}: each key must have 64 hexadecimal digits")
    return dict(zip(persons, keys, strict=True))


def _day(value: object) -> tuple[date | None, bool]:
    """A day and whether the value is one, or nothing."""
    if value is None or value == "" or pd.isna(value):  # type: ignore[call-overload]
        return None, True
    try:
        return date.fromisoformat(str(value)[:10]), True
    except ValueError:
        return None, False
