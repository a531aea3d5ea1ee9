"""Joined sides in a simulation: each with its part of the table that must not exist, and their spine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd

from federated.app import client_app
from federated.federation import Federation
from federated.hiding.protocol import Clear, Protection
from federated.joined.alignment import aligned, common_of
from federated.joined.protection import Joined, Pair, PairReleaser
from federated.joined.side import JoinedSide
from federated.joined.sums.factors import Knowledge, Owner
from federated.party.party import Party, numbered
from federated.study.experiment import Experiment
from federated.study.joined import JoinedTables
from federated.study.settings import BLOCK, KEY
from federated.transport import in_process as grid
from lab.errors import ConfigurationError
from lab.privacy.disclosure import Rules


def dealt_blocks(frame: pd.DataFrame, tables: JoinedTables) -> dict[str, np.ndarray]:
    """The rows of each insurer's table."""
    rows = {
        name: np.flatnonzero(frame[BLOCK].to_numpy() == at) for at, name in enumerate(tables.names)
    }
    if empty := [name for name, own in rows.items() if not len(own)]:
        raise ConfigurationError(f"joined: no person of {empty[0]} is at the fund")
    return rows


def sides_of(
    experiment: Experiment, tables: JoinedTables, parties: Sequence[Party]
) -> list[JoinedSide]:
    """Each insurer with its own columns, rows that the fund lacks among them, then the fund.

    parties: the insurers' parts of the joined table, with the columns of both sides.
    """
    columns = [c for c in parties[0].train.columns if c not in tables.fund_columns]
    fund = _fund(experiment, tables, parties)
    insurers = []
    alone = _unmatched(experiment, tables, columns, parties)
    for party, more in zip(parties, alone, strict=True):
        start = max(party.train.index.max(), party.test.index.max()) + 1
        more = more.set_axis(pd.RangeIndex(start, start + len(more)), axis="index")
        train = pd.concat([party.train[columns], more])
        test = train if party.test is party.train else party.test[columns]
        side = _side(party, "insurer", train, test, frozenset(columns), experiment)
        insurers.append(side)
        align(experiment, side, fund)
    return [*insurers, fund]


def _side(
    party: Party,
    role: str,
    train: pd.DataFrame,
    test: pd.DataFrame,
    columns: frozenset[str],
    experiment: Experiment,
) -> JoinedSide:
    return JoinedSide(
        party.name,
        train,
        test,
        party.person,
        party.policy,
        secret=party.secret,
        rows_secret=party.rows_secret,
        role=role,  # type: ignore[arg-type]
        columns=columns,
        product=experiment.protection.product,
        known=known_of(experiment),
        tells_cuts=experiment.protection.cuts == "told",
        key_bits=experiment.protection.key_bits,
    )


def _fund(experiment: Experiment, tables: JoinedTables, parties: Sequence[Party]) -> JoinedSide:
    columns = [c for c in parties[0].train.columns if c in tables.fund_columns]
    frame = tables.fund[[*columns, KEY]].copy()
    for name, limit in experiment.data.cap.items():
        if name in columns:
            frame[name] = frame[name].clip(upper=limit)
    if experiment.data.missing == "drop":
        frame = frame[frame.notna().all(axis=1)]
    frame = numbered(tables.fund_name, frame)
    secret = f"{experiment.seed} {tables.fund_name}".encode()
    party = replace(parties[0], name=tables.fund_name, secret=secret, person=KEY)
    return _side(party, "fund", frame, frame, frozenset(columns), experiment)


def _unmatched(
    experiment: Experiment,
    tables: JoinedTables,
    columns: Sequence[str],
    parties: Sequence[Party],
) -> list[pd.DataFrame]:
    """The rows of each insurer whose persons the fund does not know, without gaps."""
    common = set().union(*(set(p.train[KEY]) | set(p.test[KEY]) for p in parties))
    rows = tables.insurers[~tables.insurers[KEY].isin(common)]
    rows = rows[rows[list(columns)].notna().all(axis=1)]
    of_block = len(tables.names) == len(parties)
    at = rows[BLOCK].to_numpy() if of_block else np.arange(len(rows)) % len(parties)
    return [rows[at == k][list(columns)] for k in range(len(parties))]


def align(experiment: Experiment, insurer: JoinedSide, fund: JoinedSide) -> None:
    """Give both sides their places on a spine, by the protocol that real sides use."""
    settings = experiment.alignment
    both = [insurer.train, *([] if insurer.test is insurer.train else [insurer.test])]
    keys = [pd.concat([part[KEY] for part in both]), fund.train[KEY]]
    cap = settings.cap or max(map(len, keys))
    ours, theirs = (k.to_numpy(dtype=object) for k in keys)
    drawing = np.random.default_rng(
        [experiment.seed, *insurer.name.encode()]
    )  # same seed, same spine
    results = aligned(ours, theirs, settings.learns, cap, drawing.bytes)
    pairs = ((insurer, fund), (fund, insurer))
    for (side, peer), own, result in zip(pairs, keys, results, strict=True):
        side.places[peer.name] = pd.Series(result.place, index=own.index)
        side.sizes[peer.name] = result.size
        side.persons[peer.name] = common_of(settings.learns, cap, result.size)
        if result.common is not None:
            side.met[peer.name] = pd.Series(result.common, index=own.index)
        if result.keys is not None:
            side.row_keys[peer.name] = result.keys


def known_of(experiment: Experiment) -> Knowledge:
    """What sides know of the rows that they both have: of trees, whose rows an insurer follows."""
    if experiment.model.kind != "trees":
        return Knowledge.NOTHING
    data, both = experiment.data, experiment.alignment.learns == "both"
    whole = data.test == 0 and data.test_column is None and data.test_rows is None
    return Knowledge.ALL if both and whole else Knowledge.INSURERS


def joined_protection(
    inner: Protection,
    sides: Sequence[JoinedSide],
    owner: Owner,
    product: str,
    least: int,
    releaser: PairReleaser | None = None,
) -> Joined:
    """Sums of shares under an inner protection; releaser: of answers to questions."""
    *insurers, fund = sides
    known = min(side.known for side in sides)
    pairs = tuple(Pair(one.name, fund.name, one.sizes[fund.name]) for one in insurers)
    return Joined(inner, pairs, owner, product, least, known, releaser)


@contextmanager
def in_the_clear(
    sides: Sequence[JoinedSide], owner: Owner, workers: int, rules: Rules
) -> Iterator[Federation]:
    """All sides in this process: what arms are scored by that nobody could run."""
    here = [replace(side, product="triples", binding=None) for side in sides]
    nodes = grid.InProcessGrid(client_app(lambda k: here[k], "clear"), len(here), workers)
    protection = joined_protection(Clear(rules), here, owner, "triples", 1)
    try:
        yield Federation(nodes, protection, len(here))
    finally:
        nodes.close()


# Tables for real sides.
