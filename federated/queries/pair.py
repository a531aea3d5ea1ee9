"""Who is asked in a simulation where two sides know the same persons: the insurer and the fund."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from federated.hiding.protocol import Protection
from federated.joined.protection import PairReleaser
from federated.joined.side import JoinedSide
from federated.joined.sums.factors import Role
from federated.party.party import Policy, numbered
from federated.queries.holdings import Holdings
from federated.study.experiment import Experiment
from federated.study.joined import SEVERAL, JoinedTables, joined_tables, names_of
from federated.study.rows import declared_categories
from federated.study.settings import KEY
from federated.study.sides import align, joined_protection
from federated.study.simulation import of_shares
from lab.errors import ConfigurationError
from lab.privacy.disclosure import Rules
from lab.queries.across import PLACES
from lab.queries.pair_history import PairHistory
from lab.queries.sql_join import JoinedNames


def pair_of_experiment(experiment: Experiment, folder: Path | None) -> tuple[Holdings, Protection]:
    """The two sides of an experiment, and how their shares are added up and released.

    folder: where the pair's history is kept; None for memory alone. Raises
    :class:`ConfigurationError` for several insurers.
    """
    check_one_insurer(experiment)
    tables = joined_tables(experiment, declared_categories(experiment))
    contract, rules = tables.whole.contract, _rules(experiment)
    names = names_of(experiment.joined, contract, tables.fund_columns)
    sides = [_side(experiment, tables, place, names) for place in PLACES]
    align(experiment, *sides)
    holdings = Holdings(tuple(sides), contract, rules, joined=names)
    nullable = tuple(name for name, column in contract.columns.items() if column.nullable)
    history = PairHistory(None if folder is None else folder / _name(experiment))
    releaser = PairReleaser(rules, history, nullable, tables.owner())
    protection = experiment.protection
    inner, least = of_shares(protection, rules), rules.minimum_count.persons
    return holdings, joined_protection(
        inner, sides, tables.owner(), protection.product, least, releaser
    )


def check_one_insurer(experiment: Experiment) -> None:
    """Raises :class:`ConfigurationError` where the fund is joined to several insurers."""
    if experiment.parties.split != "uniform" or experiment.parties.count != 1:
        raise ConfigurationError(SEVERAL)
    if len(experiment.joined) != 2:
        raise ConfigurationError(SEVERAL)


def _rules(experiment: Experiment) -> Rules:
    file = experiment.protection.disclosure
    return Rules.read(Path(file) if file else None).of_joined_sides()


def _name(experiment: Experiment) -> str:
    """The file of a pair's history: a pair is its tables and their keys."""
    tables = [block.model_dump(mode="json") for block in experiment.joined]
    market = experiment.data.market and experiment.data.market.model_dump(mode="json")
    digest = hashlib.sha256(json.dumps([tables, market]).encode()).hexdigest()
    return f"pair-{digest[:12]}.json"


def _side(
    experiment: Experiment, tables: JoinedTables, role: Role, names: JoinedNames
) -> JoinedSide:
    """One side with all its rows and the columns that questions may be about."""
    whole = tables.insurers if role == "insurer" else tables.fund
    own = names.insurer if role == "insurer" else names.fund
    columns = list(own.columns.values())
    frame = numbered(own.name, whole[[*columns, KEY]])
    texts = [c for c in columns if tables.whole.contract.columns[c].type == "category"]
    policy = Policy(minimum_rows=1, announces=tuple(texts), shows_receipt=True, answers="questions")
    protection = experiment.protection
    return JoinedSide(
        own.name,
        frame,
        frame,
        KEY,
        policy,
        role=role,
        columns=frozenset(columns),
        product=protection.product,
        key_bits=protection.key_bits,
    )
