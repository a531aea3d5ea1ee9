"""Was something on record before a date? Looked up without showing about whom, or before when.

The fund makes a list of what it would answer: for each record the days for which the answer is yes,
and those for which a person must judge, as ranges of 1, 2, 4, … days that cover them. A question is
for one day: the ranges of each length that it lies in, of which one at most is in the list. A range
is found by its value under the fund's OPRF (RFC 9497), which nobody knows without the fund's help,
and what is to be answered is hidden under the same value. So the list tells nothing to whoever
keeps it; the fund helps with one question and sees random elements.

(Prefixes of a range: Bonomi and others; a labelled set by an OPRF: Chen, Huang, Laine and Rindal,
CCS 2018, with a group in place of lattices.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lab.errors import ConfigurationError
from secure_agg import wire
from secure_agg.ristretto import (
    ORDER,
    SIZE,
    Elements,
    blind,
    derived_key,
    finalize,
    hashed,
)

#: Days are counted from here; what was on record before counts as of this day.
FIRST = date(1930, 1, 1)
LEVELS = 17
LAST_DAY = (1 << (LEVELS - 1)) - 1  # in 2109
SHORT = 16
Verdict = Literal["yes", "no", "refer"]
LABELS: tuple[Verdict, ...] = ("no", "yes", "refer")


@dataclass(frozen=True)
class Condition:
    """One line of a record. first: the first day it was on record, None where that is not known."""

    person: str
    group: str
    first: date | None


@dataclass(frozen=True)
class HiddenList:
    """What the fund hands out: names (n,) of ranges, sorted, and labels (n,), each under its name."""

    names: NDArray[np.bytes_]
    labels: NDArray[np.uint8]


def verdict(first: date | None, before: date, refer_days: int) -> Verdict:
    """The answer to a record's first day. refer_days: so shortly before a date a person judges.

    >>> verdict(date(2020, 1, 1), date(2021, 1, 1), 30), verdict(None, date(2021, 1, 1), 30)
    ('yes', 'refer')
    """
    if first is None:
        return "refer"
    if first >= before:
        return "no"
    return "yes" if (before - first).days > refer_days else "refer"


def earliest(records: Iterable[Condition]) -> dict[tuple[str, str], date | None]:
    """Each person's and group's first day; None, not known, only where no line has a day."""
    first: dict[tuple[str, str], date | None] = {}
    for line in records:
        key, day = (line.person, line.group), line.first
        other = first.get(key)
        first[key] = min(day, other) if day and other else day or other
    return first


def hidden_list(
    records: Iterable[Condition],
    refer_days: int,
    cap: int,
    key: bytes,
    randomness: Callable[[int], bytes],
) -> HiddenList:
    """The fund's list, filled up to the cap. key: its scalar. Raises ConfigurationError."""
    texts, labels = [], []
    for (person, group), first in earliest(records).items():
        for low, high, label in _spans(first, refer_days):
            for level, prefix in ranges(low, high):
                texts.append(_text(person, group, level, prefix))
                labels.append(LABELS.index(label))
    if len(texts) > cap:
        raise ConfigurationError(
            f"the fund's records need {len(texts):,} ranges, more than condition.cap of {cap:,}; agree "
            "on a higher one"
        )
    values = finalize(texts, _inverse(key), hashed(texts)) if texts else []
    rows = b"".join(v[:SHORT] + bytes([v[SHORT] ^ n]) for v, n in zip(values, labels, strict=True))
    rows += randomness((SHORT + 1) * (cap - len(texts)))
    table = np.frombuffer(rows, dtype=np.uint8).reshape(-1, SHORT + 1)
    names = np.ascontiguousarray(table[:, :SHORT]).view(f"S{SHORT}").ravel()
    order = np.argsort(names, kind="stable")
    return HiddenList(names[order], table[order, SHORT])


def question_texts(person: str, group: str, before: date) -> list[bytes]:
    """The ranges that a day lies in, one of each length. Raises ConfigurationError."""
    day = _day(before)
    if not person or not 0 < day <= LAST_DAY:
        raise ConfigurationError(f"a question needs a person and a day after {FIRST}, before 2109")
    return [_text(person, group, level, day >> level) for level in range(LEVELS)]


def blinded(person: str, group: str, before: date, blinding: bytes) -> Elements:
    """The question as the fund sees it. blinding: 32 fresh random bytes."""
    return blind(question_texts(person, group, before), derived_key(blinding, b"condition"))


def question_digest(elements: bytes) -> str:
    """What a consent says of a blinded question."""
    return hashlib.sha256(elements).hexdigest()


def looked_up(
    table: HiddenList, person: str, group: str, before: date, blinding: bytes, helped: Elements
) -> Verdict:
    """The answer, from the blinded question that the fund has multiplied. Raises InvalidElement."""
    texts = question_texts(person, group, before)
    for value in finalize(texts, derived_key(blinding, b"condition"), helped):
        name = np.array([value[:SHORT]], dtype=f"S{SHORT}")
        at = int(np.searchsorted(table.names, name)[0])
        if at < len(table.names) and table.names[at] == name[0]:
            return LABELS[int(table.labels[at]) ^ value[SHORT]]
    return "no"


def ranges(low: int, high: int) -> Iterator[tuple[int, int]]:
    """(level, prefix) of ranges of 2**level days that cover low to high, both included, once.

    >>> list(ranges(3, 8))
    [(0, 3), (2, 1), (0, 8)]
    """
    while low <= high:
        level = 0
        while low % (2 << level) == 0 and low + (2 << level) - 1 <= high and level < LEVELS - 1:
            level += 1
        yield level, low >> level
        low += 1 << level


def _spans(first: date | None, refer_days: int) -> Iterator[tuple[int, int, Verdict]]:
    """The days for which a record is answered by refer, and by yes."""
    if first is None:
        yield 0, LAST_DAY, "refer"
        return
    day = max(_day(first), 0)
    if refer_days:
        yield day + 1, min(day + refer_days, LAST_DAY), "refer"
    yield day + refer_days + 1, LAST_DAY, "yes"


def _day(day: date) -> int:
    return (day - FIRST).days


def _text(person: str, group: str, level: int, prefix: int) -> bytes:
    numbers = [level.to_bytes(1, "big"), prefix.to_bytes(4, "big")]
    return wire.join(b"LABCND01", [person.encode(), group.encode(), *numbers])


def _inverse(scalar: bytes) -> bytes:
    return pow(int.from_bytes(scalar, "little"), -1, ORDER).to_bytes(SIZE, "little")
