"""The nightly comparison with what the desk keeps of it: a folder for each role."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from federated.link import ring
from federated.link.charter import LinkCharter
from federated.link.desk import name_lists
from federated.link.desk_folder import DeskTerms, write_desk
from federated.link.duplicates import Comparison, coordinator_counts, paid_twice
from federated.link.keys import payer_claims
from federated.link.ring import COORDINATOR
from secure_agg.identity import Card


def desk_of(
    tables: Mapping[str, pd.DataFrame],
    charter: LinkCharter,
    folder: Path,
    cards: Mapping[str, Card],
    addresses: Mapping[str, str],
) -> Comparison:
    """Compare all tables and write each role's folder for the next day, in one process.

    cards, addresses: of the payers and the coordinator

    Raises ConfigurationError and ContractError.
    """
    shared = DeskTerms(
        charter=charter,
        payers=tuple(tables),
        session=secrets.token_hex(32),
        addresses=dict(addresses),
        cards={name: card.to_bytes().hex() for name, card in cards.items()},
    )
    terms, seeds = shared.terms, {name: secrets.token_bytes(32) for name in cards}
    claims = {name: payer_claims(table, charter, name) for name, table in tables.items()}
    batches = {name: [batch.texts for batch in each.batches] for name, each in claims.items()}
    meetings, payers = ring.run(terms, batches, seeds)
    lists = name_lists(terms, meetings, secrets.token_bytes)
    for name in (*terms.payers, COORDINATOR):
        write_desk(folder / name, shared, seeds[name], lists.get(name))
    answers = {name: paid_twice(payers[name], claims[name], charter) for name in terms.payers}
    return Comparison(answers, coordinator_counts(meetings, charter))
