"""What payers of a simulated market find by telling each other, computed in the clear.

The answers are those of `lab link duplicates` and `lab link condition`, whose steps hide what is
compared; where the truth is at hand anyway they take a second, for a report beside what models find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from federated.link.charter import ConditionTerms, LinkCharter
from federated.link.disclosure import KIND, claims_to_ask_about, market_records
from federated.link.keys import payer_claims
from federated.link.lookup import earliest, verdict
from federated.link.planted import TWICE, DetectionScore, detection, of_kind, payer_tables
from lab.tables.market_folder import payers


def told(market: Path, charter: LinkCharter) -> list[DetectionScore]:
    """What is found of each kind among the claims of all insurers: paid twice, known before.

    Raises ConfigurationError and ContractError.
    """
    charter = charter.model_copy(update={"cap": 2**26, "caps": {}})  # nothing is filled up here
    tables = payer_tables(market, charter)
    insurers = payers(market)[1:]
    claims = pd.concat([tables[name][["claim", "paid"]] for name in insurers], ignore_index=True)
    twice = _at_another(tables, charter)
    reports = {TWICE: np.concatenate([twice[name] for name in insurers])}
    if charter.condition is not None:
        known = {claim for name in insurers for claim in _known(market, name, charter.condition)}
        reports[KIND] = claims["claim"].isin(known).to_numpy()
    return [
        detection(kind, claims["paid"], of_kind(market, claims["claim"], kind), found)
        for kind, found in reports.items()
    ]


def _at_another(
    tables: Mapping[str, pd.DataFrame], charter: LinkCharter
) -> dict[str, NDArray[np.bool_]]:
    """For each payer, whether another has each of its claims."""
    rows = _candidates(tables, charter)
    found = {name: np.zeros(len(table), dtype=bool) for name, table in tables.items()}
    claims = {
        name: payer_claims(table[rows[name]], charter, name) for name, table in tables.items()
    }
    for at in range(len(charter.batches)):
        batches = {name: each.batches[at] for name, each in claims.items()}
        holders = Counter(text for batch in batches.values() for text in batch.texts)
        for name, batch in batches.items():
            shared = np.array([holders[text] > 1 for text in batch.texts] + [False], dtype=bool)
            found[name][np.flatnonzero(rows[name])] |= shared[batch.place]
    return found


def _candidates(
    tables: Mapping[str, pd.DataFrame], charter: LinkCharter
) -> dict[str, NDArray[np.bool_]]:
    """The claims that another payer may have: with its values in the columns of all keys."""
    first, *others = (set(key.columns) - set(key.bands) for key in charter.key)
    columns = sorted(first.intersection(*others))
    if not columns:
        return {name: np.ones(len(table), dtype=bool) for name, table in tables.items()}
    values = {
        name: pd.MultiIndex.from_frame(table[columns].astype("str"))
        for name, table in tables.items()
    }
    holders = Counter(value for each in values.values() for value in each.unique())
    many = [value for value, times in holders.items() if times > 1]
    return {name: each.isin(many) for name, each in values.items()}


def _known(market: Path, insurer: str, terms: ConditionTerms) -> list[str]:
    """The claims for whose question the fund answers yes."""
    asked = claims_to_ask_about(market, insurer, terms.groups)
    first = earliest(market_records(market))
    columns = (asked[name].tolist() for name in ("person", "group", "before"))
    answers = [
        verdict(first.get((str(person), group), date.max), before, terms.refer_days)
        for person, group, before in zip(*columns, strict=True)
    ]
    yes: list[str] = asked["claim"][np.array(answers, dtype=object) == "yes"].tolist()
    return yes
