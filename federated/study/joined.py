"""The tables of joined sides in a simulation: the table that must not exist, and each side's part of it."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from federated.joined.sums.curves import REACH, error_bound
from federated.joined.sums.factors import Owner
from federated.study.experiment import Experiment
from federated.study.rows import Features
from federated.study.settings import BLOCK, KEY, MADE, JoinedTable
from lab.errors import ConfigurationError, ContractError
from lab.market.make import make
from lab.queries.sql_join import JoinedNames, SideTable
from lab.records import nearest
from lab.scores.places import COUNT
from lab.tables.contracts import Column, Contract
from lab.tables.identifiers import KeyTexts, key_texts
from lab.tables.sources import Table, load

SEVERAL = (
    "what is across sides is asked of one insurer and the fund, and this experiment has several insurers; "
    "name an experiment with one"
)
#: Who is told of the common persons, in words.
LEARNS = {
    "hidden": "no side is told",
    "both": "both sides are told by name",
    "insurer": "the insurers are told by name",
    "fund": "the fund is told by name",
}


@dataclass(frozen=True)
class JoinedTables:
    """The tables of both sides, each row with its :data:`KEY`, and their inner join.

    ``insurers``: of all insurers one under the other, with :data:`BLOCK`; ``names``: of the insurers'
    blocks; ``fund_columns``: those that the fund holds; ``notes``: what took no part, for people.
    """

    whole: Table
    insurers: pd.DataFrame
    fund: pd.DataFrame
    names: tuple[str, ...]
    fund_name: str
    fund_columns: frozenset[str]
    notes: tuple[str, ...]
    drafted: bool

    def owner(self) -> Owner:
        """Who holds a column."""
        return lambda column: "fund" if column in self.fund_columns else "insurer"

    def check(self, experiment: Experiment, features: Features) -> None:
        """Refuse trees that would tell what the plan refuses to tell, or need what the insurer lacks."""
        if experiment.model.kind != "trees":
            return
        at_fund = [
            f.name for own in features.values() for f in own if f.column in self.fund_columns
        ]
        if at_fund and experiment.protection.cuts == "refused":
            raise ConfigurationError(
                f"protection.cuts: is 'refused', and trees on {at_fund[0]} would tell cuts on a column of the "
                "fund; drop the fund's columns from data.features, or set 'told'"
            )
        detection = experiment.detection
        columns = detection.columns() if detection else []
        if theirs := [c for c in columns if c in self.fund_columns]:
            raise ConfigurationError(
                f"detection.groups: '{theirs[0]}' stands at the fund; groups, amounts and kinds of joined sides "
                "are columns of the insurer"
            )


def joined_tables(experiment: Experiment, texts: Sequence[str]) -> JoinedTables:
    """Read both sides and join them by their key. Raises :class:`ContractError` for keys that name two
    rows of a table, columns of one name at both sides, and sides without a person in common."""
    blocks = [table for table in experiment.joined if table.role == "insurer"]
    (fund_block,) = (table for table in experiment.joined if table.role == "fund")
    with _made(experiment) as market:
        loaded = [_read(block, texts, market) for block in (*blocks, fund_block)]
    *insurers, (fund, fund_keys) = loaded
    notes = [
        note
        for block, (_, keys) in zip((*blocks, fund_block), loaded, strict=True)
        for note in _left_out(block, keys)
    ]
    own = _one_under_the_other(insurers)
    fund, both = _apart(own, fund, fund_block)
    if both:
        notes.append(
            f"both sides have {', '.join(both)}: the fund's are called fund.{both[0]} and so on"
        )
    theirs = _keyed(fund.frame, fund_keys)
    theirs = theirs.drop(columns=[k for k in fund_block.keys if k in theirs])
    whole = own.merge(theirs, on=KEY, how="inner", sort=False, validate="one_to_one")
    if whole.empty:
        raise ContractError(
            f"joined: no person of {fund.origin} is in {', '.join(t.origin for t, _ in insurers)}; "
            "check joined.key, and how both tables spell it"
        )
    refuse_at_fund(experiment, [str(name) for name in theirs if name != KEY])
    contract = contract_of_sides(blocks[0], insurers[0][0].contract, fund.contract, fund_block)
    digest = hashlib.sha256("".join(table.digest for table, _ in loaded).encode()).hexdigest()
    origin = f"{', '.join(table.origin for table, _ in insurers)} joined to {fund.origin}"
    return JoinedTables(
        whole=Table(whole, contract, origin, digest),
        insurers=own,
        fund=theirs,
        names=tuple(block.name or block.role for block in blocks),
        fund_name=fund_block.name or "fund",
        fund_columns=frozenset(theirs.columns) - {KEY},
        notes=(
            *notes,
            f"joined by {' and '.join(blocks[0].keys)}: {len(own):,} persons of the insurers, {len(theirs):,} "
            f"of the fund, {len(whole):,} of both, which {LEARNS[experiment.alignment.learns]}",
            *_approximations(experiment),
        ),
        drafted=any(block.contract is None and block.source is None for block in experiment.joined),
    )


def refuse_at_fund(experiment: Experiment, columns: Sequence[str]) -> None:
    """Raises :class:`ConfigurationError` where one of the fund's columns is what the insurer's must be."""
    for name in experiment.columns_besides_features():
        if name in columns:
            raise ConfigurationError(
                f"data: '{name}' stands at the fund; target, exposure, weight, person and the column for "
                "testing are the insurer's"
            )


def _approximations(experiment: Experiment) -> Iterator[str]:
    """What is not exact, and by how much."""
    if experiment.model.kind == "trees":
        return
    yield (
        f"Gini and tenths are of predictions in at most {COUNT} even bins, as each side rounds its part"
    )
    if experiment.model.family == "binomial":
        yield (
            f"each row's mean is right to {error_bound():.0e}, for parts of the fund's columns within "
            f"{REACH:g} on the logit scale"
        )


@contextmanager
def _made(experiment: Experiment) -> Iterator[str | None]:
    """The folder of a market that is made for this run, gone once it is read."""
    if experiment.data.market is None:
        yield None
        return
    with TemporaryDirectory() as folder:
        settings = experiment.data.market.model_dump()
        yield str(make(Path(folder) / "market", **settings).folder)


def _read(block: JoinedTable, texts: Sequence[str], market: str | None) -> tuple[Table, KeyTexts]:
    contract = Contract.read(Path(block.contract)) if block.contract else None
    table = load(
        *(block.source, block.path or (market if block.source in MADE else None)),
        contract=contract,
        table=block.table,
        query=block.query,
        texts=[*texts, *block.keys],
        encoding=block.encoding,
    )
    (keys,) = key_texts(table.frame, [block.keys], table.contract, table.origin)
    if block.columns is not None:
        table = _selected(table, [*block.keys, *block.columns])
    return table, keys


def _selected(table: Table, columns: Sequence[str]) -> Table:
    """A table with some of its columns."""
    for name in columns:
        if name not in table.frame:
            near = nearest(name, list(table.frame.columns))
            hint = f"; did you mean '{near}'?" if near else ""
            raise ConfigurationError(f"joined.columns: {table.origin} has no column '{name}'{hint}")
    held = {name: table.contract.columns[name] for name in columns}
    contract = table.contract.model_copy(update={"columns": held})
    return replace(table, frame=table.frame[list(columns)], contract=contract)


def _keyed(frame: pd.DataFrame, keys: KeyTexts) -> pd.DataFrame:
    """The rows that have a key, with it."""
    named = frame.assign(**{KEY: pd.Series(keys.texts, index=frame.index, dtype="str")})
    present: pd.DataFrame = named.loc[keys.texts != ""].reset_index(drop=True)
    return present


def _left_out(block: JoinedTable, keys: KeyTexts) -> Iterator[str]:
    name = block.name or block.role
    if keys.missing:
        yield f"{name}: {keys.missing:,} rows without {' and '.join(keys.columns)} take no part"
    if keys.invalid:
        yield f"{name}: {keys.invalid:,} rows whose {' and '.join(keys.columns)} is wrong take no part"


def _one_under_the_other(insurers: Sequence[tuple[Table, KeyTexts]]) -> pd.DataFrame:
    """All insurers' rows. Raises :class:`ContractError` for a person at two of them."""
    parts = [
        _keyed(table.frame, keys).assign(**{BLOCK: at}) for at, (table, keys) in enumerate(insurers)
    ]
    own = pd.concat(parts, ignore_index=True)
    if (count := int(own[KEY].duplicated(keep=False).sum())) > 0:
        raise ContractError(
            f"joined: {count:,} rows of the insurers' tables have a key that another insurer's row has; "
            "a person is at one insurer here"
        )
    return own


def _apart(own: pd.DataFrame, theirs: Table, fund: JoinedTable) -> tuple[Table, list[str]]:
    """The fund's table with columns that the insurers have too under names of their own; and which."""
    both = [str(c) for c in theirs.frame if c in own and c not in (*fund.keys, KEY)]
    names = {c: f"fund.{c}" for c in both}
    columns = {names.get(c, c): column for c, column in theirs.contract.columns.items()}
    contract = theirs.contract.model_copy(update={"columns": columns})
    return replace(theirs, frame=theirs.frame.rename(columns=names), contract=contract), both


def names_of(
    blocks: Sequence[JoinedTable], contract: Contract, fund_columns: Collection[str]
) -> JoinedNames:
    """What SQL calls an insurer and the fund and their columns; those that identify somebody or never
    leave are no question's. Raises :class:`ConfigurationError` for several insurers."""
    sides = {block.role: block for block in blocks}
    if len(blocks) != len(sides):
        raise ConfigurationError(SEVERAL)
    asked = [n for n, c in contract.columns.items() if c.role not in ("identifier", "never_leaves")]
    own, theirs = sides["insurer"], sides["fund"]
    return JoinedNames(
        contract.name,
        SideTable(own.name or own.role, {n: n for n in asked if n not in fund_columns}, own.keys),
        SideTable(
            theirs.name or theirs.role,
            {n.removeprefix("fund."): n for n in asked if n in fund_columns},
            theirs.keys,
        ),
    )


def contract_of_sides(
    block: JoinedTable, own: Contract, theirs: Contract, fund: JoinedTable
) -> Contract:
    """The columns of both sides; keys are identifiers."""
    identifier = Column(type="category", role="identifier")
    columns = {n: identifier if n in block.keys else c for n, c in own.columns.items()}
    columns |= {
        n: c.model_copy(update={"holder": "fund"})
        for n, c in theirs.columns.items()
        if n not in fund.keys
    }
    columns |= {KEY: identifier, BLOCK: Column(type="integer", role="identifier")}
    name = f"{own.name} and {theirs.name}"
    return own.model_copy(update={"name": name, "columns": columns})
