"""Sums over joined parties, as the coordinator carries them: letters between sides, then their shares."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from federated.hiding.protocol import Protection, Talk
from federated.joined.by_paillier import encrypted_bytes
from federated.joined.letters import LETTER
from federated.joined.product import (
    Products,
    deal,
    is_alone,
    joined_sum,
    joined_total,
    masked_bytes,
    turns,
)
from federated.joined.side import dealt_to
from federated.joined.sums.factors import JoinedSum, Knowledge, Owner
from federated.message_kinds import MessageKind
from federated.messages import Hiding, Request, message_of, read
from federated.party.statistics import RELEASED, find
from lab.errors import PeerError, PolicyError
from lab.privacy.disclosure import Rules
from lab.privacy.query_audit import OUTSIDE
from lab.queries import cells
from lab.queries.across import PLACES
from lab.queries.pair_cells import AskedOfPair, amounts_of, persons_of, room_of
from lab.queries.pair_history import PairHistory
from lab.sums import Sums
from secure_agg import wire
from secure_agg.identity import Roster

#: The rule by which a side refuses to go on with what it lost in a restart; it is begun anew.
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Pair:
    """An insurer and the fund, and how many rows their spine has."""

    insurer: str
    fund: str
    rows: int

    @property
    def name(self) -> str:
        return f"{self.insurer} & {self.fund}"

    def layout(self, request: Request, total: JoinedSum) -> Products:
        """The products of a sum between the two."""
        return Products(f"{request.query} {self.name}", self.rows, total)


@dataclass
class TripleDealer:
    """Deals the randomness of products; it is neither a side nor the coordinator."""

    _secrets: dict[str, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)

    def secrets_of(self, pair: Pair) -> tuple[bytes, bytes]:
        """What the insurer's side and the fund's side get for a run."""
        if pair.name not in self._secrets:
            self._secrets[pair.name] = secrets.token_bytes(32), secrets.token_bytes(32)
        return self._secrets[pair.name]

    def dealt(self, pair: Pair, layout: Products, turn: int) -> bytes:
        """What the fund's side needs for one turn of a sum."""
        return wire.join(LETTER, deal(layout, turn, *self.secrets_of(pair)))


@dataclass
class PairReleaser:
    """Releases answers to questions across a pair: whoever opens their totals.

    nullable: columns that may be empty, by the contract; owner: who holds a column."""

    rules: Rules
    history: PairHistory
    nullable: tuple[str, ...]
    owner: Owner

    def asked(self, request: Request) -> AskedOfPair:
        """The question after all that were answered. Raises :class:`PolicyError` for other rules, and
        :class:`PeerError` for what is no question."""
        a = find("cells").read(request.text, request.arrays)
        if a.rules != self.rules:
            raise PolicyError(
                "the question was asked under other disclosure rules than the releaser's"
            )
        self.history.refresh()
        return AskedOfPair((*self.history.questions, a.question), self.nullable, self.owner)

    def room(self, pair: AskedOfPair, word: Sums) -> tuple[int, int]:
        """Room for each side's kinds: their number is told to a power of two. Raises
        :class:`PolicyError` for columns that no side has, and tables that changed."""
        for column, holders in zip(pair.columns, word["held"], strict=bool(pair.columns)):
            if holders != 1:
                raise PolicyError(f"no question is about '{column}' across these sides")
        names = [*(f"who is at the {place}" for place in PLACES), *(f"'{c}'" for c in pair.columns)]
        self.history.check_state(dict(zip(names, map(int, word["state"]), strict=True)))
        return room_of(word)

    def released(self, pair: AskedOfPair, word: Sums, total: Sums, sides: int) -> Sums:
        """What may be shown of a question's totals; sides: how many counters are added over."""
        question = pair.now.question
        parts, persons = persons_of(pair, word, total["persons"])
        least = self.rules.minimum_difference.persons
        vetoed, counters = self.history.admit(question, parts, persons, least)
        rows = parts[-1][0].part
        count = np.bincount(rows[rows != OUTSIDE], minlength=question.cells).astype(np.float64)
        arrays = {"total 0": count, "parties": np.sign(count), "vetoes": vetoed.astype(np.float64)}
        for place in PLACES:
            arrays |= amounts_of(pair, place, word, total[place], self.rules)
        arrays |= {name: np.array([value * sides]) for name, value in counters.items()}
        return cells.release(question, self.rules, cells.sums(cells.form(question), arrays, 0))


class Joined:
    """A protection of shares: the sides make them between each other, the inner protection adds them."""

    def __init__(
        self,
        inner: Protection,
        pairs: tuple[Pair, ...],
        owner: Owner,
        product: str,
        least: int,
        known: Knowledge = Knowledge.NOTHING,
        releaser: PairReleaser | None = None,
    ) -> None:
        """owner: who holds a column; least: rows that both sides must have behind a total; known:
        what sides know of common rows; releaser: of answers to questions, None: there are none."""
        self._releaser = releaser
        self.inner, self.pairs, self._owner = inner, pairs, owner
        self.hiding: Hiding = inner.hiding
        self._product, self._least, self._dealer = product, least, TripleDealer()
        self._known = known

    @property
    def everybody(self) -> bool:
        return self.inner.everybody

    @property
    def proof(self) -> RecordDict:
        return self.inner.proof

    def check_parties(self, parties: int) -> None:
        if parties < 2:
            raise PolicyError("joined parties are two sides at least")

    def enrol(self, talk: Talk, roster: Roster) -> None:
        self.inner.enrol(talk, roster)
        parts: dict[str, dict[str, bytes]] = {name: {} for name in roster.names}
        for pair in self.pairs:
            left, right = self._dealer.secrets_of(pair)
            for name, peer, secret in (
                (pair.insurer, pair.fund, left),
                (pair.fund, pair.insurer, right),
            ):
                parts[name][f"dealt {peer}"] = roster[name].seal(dealt_to(name, peer), secret)
        data = roster.to_bytes()
        talk.ask(
            MessageKind.PAIR, {n: message_of(roster=data, **dealt) for n, dealt in parts.items()}
        )

    def total(self, talk: Talk, request: Request) -> Sums:
        """The total over all joined rows. Raises :class:`PolicyError` for fewer rows than the rules say."""
        if request.statistic in RELEASED:
            return self._released(talk, request)
        total = None
        if not is_alone(request, self._owner, self._known):
            total = joined_sum(request, self._owner)
            self.multiply(talk, request, total)
        return checked_total(total, self.inner.total(talk, request), request.statistic, self._least)

    def letters(self, request: Request, total: JoinedSum, key_bits: int) -> dict[str, int]:
        """Bytes of the largest message of letters that each side sends for a sum, about."""
        sizes: Counter[str] = Counter()
        for pair in self.pairs:
            layout = pair.layout(request, total)
            by_paillier = total.form.made_by(self._product) == "paillier"
            both = encrypted_bytes(layout, key_bits) if by_paillier else masked_bytes(layout)
            sizes.update({pair.insurer: both[0], pair.fund: both[1]})
        return dict(sizes)

    def _released(self, talk: Talk, request: Request) -> Sums:
        """What the rules and the history of this pair leave of the totals of a question."""
        if self._releaser is None or len(self.pairs) != 1 or request.statistic != "cells":
            raise PolicyError(f"'{request.statistic}' is not asked of joined sides")
        pair = self._releaser.asked(request)

        def total(statistic: str, **more: Any) -> Sums:
            query = f"{request.query}-{statistic}"
            own = replace(
                request, query=query, statistic=statistic, arguments=pair.arguments | more
            )
            return self.total(talk, own)

        word = total("pair_kinds")
        totals = total("pair_cells", kinds=list(self._releaser.room(pair, word)))
        return self._releaser.released(pair, word, totals, len(request.parties))

    def multiply(self, talk: Talk, request: Request, total: JoinedSum) -> None:
        """Carry letters between the sides until each has its share of a sum."""
        letters: dict[str, dict[str, bytes]] = {name: {} for name in request.parties}
        last = turns(total, self._product)
        for turn in range(last + 1):
            if turn and total.form.made_by(self._product) == "triples":
                for pair, dealt in self.dealt(talk, request, total, turn).items():
                    letters[pair.fund][f"dealt {pair.insurer}"] = dealt
            answers = talk.ask(MessageKind.PRODUCT, _turn(request, turn, letters))
            letters = self._carried(answers, last=turn == last)

    def dealt(self, talk: Talk, request: Request, total: JoinedSum, turn: int) -> dict[Pair, bytes]:
        """What was dealt for the fund's side of each product of a sum, for one turn of it."""
        return {
            pair: self._dealer.dealt(pair, pair.layout(request, total), turn) for pair in self.pairs
        }

    def _carried(
        self, answers: Mapping[str, RecordDict], *, last: bool
    ) -> dict[str, dict[str, bytes]]:
        """Each side's letters, given to whom they are for."""
        letters: dict[str, dict[str, bytes]] = {name: {} for name in answers}
        for pair in () if last else self.pairs:
            for sender, receiver in ((pair.insurer, pair.fund), (pair.fund, pair.insurer)):
                try:
                    letter = read(answers[sender], f"to {receiver}")
                except PeerError as error:
                    raise PeerError(f"{sender}: {error}", sender) from None
                letters[receiver][f"from {sender}"] = letter
        return letters


def checked_total(total: JoinedSum | None, sums: Sums, statistic: str, least: int) -> Sums:
    """What shares add up to, or what sides answered alone, without a total.

    Raises :class:`PolicyError` for fewer rows than ``least``, but where a sum is of no rows.
    """
    if total is not None:
        sums = joined_total(total, sums)
    if sums.rows < least and (total is not None or sums.rows):
        raise PolicyError(
            f"{statistic}: both sides have fewer than {least} rows behind it", "persons"
        )
    return sums


def _turn(
    request: Request, turn: int, letters: Mapping[str, Mapping[str, bytes]]
) -> dict[str, RecordDict]:
    """What each side is sent in a turn."""
    contents = {}
    for name, parts in letters.items():
        record = request.to_record()
        record.update(message_of(**parts))
        record["turn"] = ConfigRecord({"turn": turn})
        contents[name] = record
    return contents
