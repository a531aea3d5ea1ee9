"""Alignment of a joined pair: which row of the insurer's and of the fund's is the same person.

Each side's part is a pair of functions, from what it remembers and what it was sent to what it
remembers and sends: `begin`, then `advance` until there is a result. What is protected how stands in
`secure_agg.intersection`; here are a pair's roles, and keys that are tried one after another.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lab.errors import ConfigurationError
from lab.tables.identifiers import KeyTexts, key_texts
from secure_agg import intersection
from secure_agg.intersection import Alignment, AlignmentSide, AlignmentTerms, Message

__all__ = [
    "Agreement",
    "Alignment",
    "Message",
    "PairedSide",
    "advance",
    "aligned",
    "begin",
    "common_of",
]

INSURER, FUND = "insurer", "fund"
Role = Literal["insurer", "fund"]
Learns = Literal["hidden", "both", "insurer", "fund", "size"]
Texts = NDArray[np.object_]


@dataclass(frozen=True)
class Agreement:
    """What the charter says of an alignment.

    learns: who learns which rows are common; "hidden": nobody, "size": nobody, and no spine
    cap: rows that each side's set is filled up to, so that no message tells how many it has
    session: 32 bytes that name this alignment, used once
    keys: number of keys that are tried one after another

    Raises ConfigurationError for several keys where somebody may not learn who is common: a
    row that met by the first key must take no part in the second.
    """

    learns: Learns
    cap: int
    session: bytes
    keys: int = 1

    def __post_init__(self) -> None:
        if self.keys != 1 and (self.keys < 1 or self.learns != "both"):
            raise ConfigurationError(
                f"alignment.learns = '{self.learns}' takes one key, got {self.keys}: only where "
                "both sides learn who is common ('both') can rows that met leave the next key"
            )

    def terms(self, key: int) -> AlignmentTerms:
        """The terms of one key's alignment; each has a session of its own."""
        session = hashlib.sha256(self.session + bytes([key])).digest()
        return AlignmentTerms((INSURER, FUND), self.learns, self.cap, session)


@dataclass(frozen=True)
class PairedSide:
    """What one side remembers between messages. Secret; never shown.

    texts: (rows,) for each key, "" where a row takes no part
    past: the alignments by earlier keys, each of all rows
    side: what it remembers of the present key's
    result: when all keys are done
    """

    agreement: Agreement
    role: Role
    texts: tuple[Texts, ...]
    seed: bytes
    side: AlignmentSide
    rows: NDArray[np.int64]
    past: tuple[Alignment, ...] = ()
    result: Alignment | None = None

    def __repr__(self) -> str:
        return f"PairedSide({self.role}, key {len(self.past) + 1} of {self.agreement.keys})"


def begin(
    agreement: Agreement, role: Role, keys: Sequence[KeyTexts], seed: bytes
) -> tuple[PairedSide, Message]:
    """The first message of a side.

    keys: its identifiers (`lab.tables.identifiers.key_texts`), as many keys as agreed
    seed: 32 fresh random bytes; all secrets of this alignment follow from it

    Raises ConfigurationError and LayoutMismatch.
    """
    if len(keys) != agreement.keys:
        raise ConfigurationError(f"{role}: {agreement.keys} keys were agreed on, got {len(keys)}")
    texts = tuple(key.texts for key in keys)
    side, message, rows = _by_key(agreement, role, texts, seed, 0, np.zeros(len(texts[0]), bool))
    return PairedSide(agreement, role, texts, seed, side, rows), message


def advance(state: PairedSide, message: Message) -> tuple[PairedSide, Message]:
    """What a side remembers now, and its next message, from the other's. Done when there is a result.

    Raises FaultyParty, which names the other side.
    """
    side, reply = intersection.advance(state.side, message)
    if side.result is None:
        return replace(state, side=side), reply
    past = (*state.past, _of_all_rows(side.result, state.rows, len(state.texts[0])))
    if len(past) == state.agreement.keys:
        return replace(state, side=side, past=past, result=_one_spine(past)), reply
    met = _one_spine(past).common
    assert met is not None
    side, reply, rows = _by_key(
        state.agreement, state.role, state.texts, state.seed, len(past), met
    )
    return replace(state, side=side, rows=rows, past=past), reply


def aligned(
    insurer_ids: ArrayLike | Sequence[KeyTexts],
    fund_ids: ArrayLike | Sequence[KeyTexts],
    learns: Learns,
    cap: int,
    randomness: Callable[[int], bytes] = secrets.token_bytes,
) -> tuple[Alignment, Alignment]:
    """Both sides in one process, for a simulation: (the insurer's, the fund's).

    ids: (rows,) one identifier a row, or what `key_texts` made of a table
    cap: see `Agreement`
    randomness: so many fresh random bytes

    Raises ConfigurationError, ContractError and LayoutMismatch.
    """
    keys = {INSURER: _keys(insurer_ids, INSURER), FUND: _keys(fund_ids, FUND)}
    agreement = Agreement(learns, cap, randomness(32), len(keys[INSURER]))
    insurer, forth = begin(agreement, "insurer", keys[INSURER], randomness(32))
    fund, back = begin(agreement, "fund", keys[FUND], randomness(32))
    while insurer.result is None or fund.result is None:
        (insurer, forth), (fund, back) = advance(insurer, back), advance(fund, forth)
    return insurer.result, fund.result


def common_of(learns: str, cap: int, size: int) -> int:
    """Rows that both sides have, where their spine has so many."""
    return size if learns == "both" else 2 * cap - size


def _keys(ids: Any, where: str) -> tuple[KeyTexts, ...]:
    if isinstance(next(iter(ids), None), KeyTexts):
        return tuple(ids)
    return key_texts(pd.DataFrame({"identifier": ids}), [["identifier"]], None, where)


def _by_key(
    agreement: Agreement,
    role: Role,
    texts: tuple[Texts, ...],
    seed: bytes,
    key: int,
    met: NDArray[np.bool_],
) -> tuple[AlignmentSide, Message, NDArray[np.int64]]:
    """One key's first step, over the rows that take part by it and have not met before."""
    rows = np.flatnonzero((texts[key] != "") & ~met)
    identifiers = [text.encode() for text in texts[key][rows]]
    side, message = intersection.start(agreement.terms(key), role, identifiers, seed)
    return side, message, rows


def _of_all_rows(alignment: Alignment, rows: NDArray[np.int64], count: int) -> Alignment:
    """An alignment of some rows as one of all, of which the others are nowhere."""
    place = np.full(count, -1, dtype=np.int64)
    place[rows] = alignment.place
    if alignment.keys is not None:
        keys = np.zeros((count, alignment.keys.shape[1]), dtype=np.uint8)
        keys[rows] = alignment.keys
        alignment = replace(alignment, keys=keys)
    if alignment.common is None:
        return replace(alignment, place=place)
    common = np.zeros(count, dtype=bool)
    common[rows] = alignment.common
    return replace(alignment, place=place, common=common)


def _one_spine(alignments: Sequence[Alignment]) -> Alignment:
    """The spines of all keys, one after another."""
    total = alignments[0]
    for each in alignments[1:]:
        place = np.where(each.place >= 0, each.place + total.size, total.place)
        assert total.common is not None and each.common is not None
        common, records = total.common | each.common, total.records + each.records
        total = Alignment(total.size + each.size, place, common, records)
    return total
