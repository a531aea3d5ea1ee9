"""Paid twice: each payer's claims that another has too, by the first key that matches.

`ring` compares; here are a payer's table, what it is told in the charter's words, and all roles in
one process for a simulation.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from federated.link import ring
from federated.link.charter import LinkCharter
from federated.link.keys import PayerClaims, payer_claims
from federated.link.ring import COORDINATOR, Meetings, RingPayer, RingTerms
from lab.errors import ConfigurationError

Randomness = Callable[[int], bytes]


@dataclass(frozen=True)
class PaidTwice:
    """What one payer learns about its own claims.

    claims: its table as it was compared
    matches: a row for each claim that another payer has: `row` of its table, the first `key` that
        matches, and `payers`, the others' names, where the charter tells them
    """

    claims: PayerClaims
    matches: pd.DataFrame


@dataclass(frozen=True)
class Comparison:
    """All of a simulation: what each payer and what the coordinator learns.

    counts: what the coordinator knows: `key`, `grid`, `payers` that share names, how many
    """

    payers: Mapping[str, PaidTwice]
    counts: pd.DataFrame


def ring_terms(charter: LinkCharter, payers: tuple[str, ...], session: bytes) -> RingTerms:
    """What the charter says of one comparison. session: 32 fresh bytes."""
    caps = tuple(map(charter.cap_of, payers))
    return RingTerms(payers, len(charter.batches), caps, charter.tells, session)


def paid_twice(payer: RingPayer, claims: PayerClaims, charter: LinkCharter) -> PaidTwice:
    """What a payer learned, for the rows of its table."""
    if payer.met is None:
        raise ConfigurationError(f"{payer.name}: the comparison is not over")
    first = np.full(claims.rows, -1, dtype=np.int64)
    who = np.zeros(claims.rows, dtype=np.uint16)
    for at, (batch, masks) in enumerate(zip(claims.batches, payer.met, strict=True)):
        if not len(masks):
            continue
        here = np.where(batch.place >= 0, masks[batch.place], 0).astype(np.uint16)
        first[(first < 0) & (here > 0)] = at
        who |= here
    rows = np.flatnonzero(first >= 0)
    columns = {"row": rows, "key": [claims.batches[at].key for at in first[rows]]}
    if charter.tells == "payer":
        columns["payers"] = [_names(payer.terms, mask) for mask in who[rows]]
    return PaidTwice(claims, pd.DataFrame(columns))


def _names(terms: RingTerms, mask: int) -> str:
    return ", ".join(name for at, name in enumerate(terms.payers) if int(mask) >> at & 1)


def compared(
    tables: Mapping[str, pd.DataFrame],
    charter: LinkCharter,
    randomness: Randomness = secrets.token_bytes,
) -> Comparison:
    """All payers and the coordinator in one process.

    tables: by payer, with the columns that the charter names
    randomness: so many fresh random bytes

    Raises ConfigurationError and ContractError.
    """
    terms = ring_terms(charter, tuple(tables), randomness(32))
    claims = {name: payer_claims(table, charter, name) for name, table in tables.items()}
    batches = {name: [b.texts for b in each.batches] for name, each in claims.items()}
    seeds = {name: randomness(32) for name in (*terms.payers, COORDINATOR)}
    meetings, payers = ring.run(terms, batches, seeds)
    answers = {name: paid_twice(payers[name], claims[name], charter) for name in terms.payers}
    return Comparison(answers, coordinator_counts(meetings, charter))


def coordinator_counts(meetings: Meetings, charter: LinkCharter) -> pd.DataFrame:
    """What the coordinator knows: names shared, by key, grid and set of payers."""
    rows = [
        (key.name, grid, ", ".join(sorted(payers)), count)
        for (key, grid), shares in zip(charter.batches, meetings.counts, strict=True)
        for payers, count in sorted(shares.items(), key=lambda item: sorted(item[0]))
    ]
    return pd.DataFrame(rows, columns=["key", "grid", "payers", "names"])
