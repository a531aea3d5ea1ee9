"""A side of joined pairs as a party: its own columns, its rows' places on spines, its shares of sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from flwr.app import RecordDict

from federated.joined.factors import Groups, Role
from federated.joined.product import (
    LETTER,
    RING,
    Products,
    Spine,
    Talking,
    by_paillier,
    by_triples,
    contribution,
    joined_sum,
    purpose,
    sealed,
    unsealed,
)
from federated.joined.statistics import LOCAL
from federated.messages import Request, message_of, read
from federated.party import statistics
from federated.party.party import Party
from federated.party.state import NodeState
from lab.errors import PeerError, PolicyError
from lab.models.glm import Task
from lab.statistics import Part
from lab.sums import Sums
from secure_agg import wire
from secure_agg.arithmetic.ring import Integers
from secure_agg.errors import SecureAggError
from secure_agg.keys import PrivateKey, generate

OTHER: Mapping[Role, Role] = {"insurer": "fund", "fund": "insurer"}


@dataclass(frozen=True)
class Conversation:
    """A sum that a side is at with one other side."""

    layout: Products
    talk: Talking


@dataclass
class JoinedSide(Party):
    """An insurer or the fund, joined to others that know the same persons.

    ``columns``: those that it holds; ``places``: for each other side the rows of their spine, by the
    label of an own row, and ``sizes``, how many the spine has; ``key_bits``: of its own key for products.
    The fund's rows are all there for training and for testing: which count is the insurer's to say.
    """

    role: Role = "insurer"
    columns: frozenset[str] = frozenset()
    places: dict[str, pd.Series] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    product: str = "paillier"
    key_bits: int = 3072
    fewest: int = 2  # a share tells nothing, so two sides hide each other's

    def __post_init__(self) -> None:
        super().__post_init__()
        self.work: dict[tuple[str, str], Conversation] = {}
        self.shares: dict[str, Integers] = {}
        self._key: PrivateKey | None = None

    @property
    def key(self) -> PrivateKey:
        """This side's own key for products, made when first needed."""
        if self._key is None:
            self._key = generate(self.key_bits)
        return self._key

    def owner(self, column: str) -> Role:
        """Who holds a column."""
        return self.role if column in self.columns else OTHER[self.role]

    def holds(self, column: str) -> bool:
        return column in self.columns

    def rows(self, task: Task, part: Part) -> pd.DataFrame:
        """The rows a task is about; at the fund's side all."""
        return super().rows(task, part) if self.role == "insurer" else self._own_rows(part)

    def owners(self, task: Task, part: Part) -> pd.Series:
        if self.role == "insurer":
            return super().owners(task, part)
        return self._own_rows(part).index.to_series()

    def _own_rows(self, part: Part) -> pd.DataFrame:
        frame = self._frame(part)
        return frame if self.person is None else frame.drop(columns=self.person)

    def begin(self, request: Request, secrets: Mapping[str, bytes]) -> dict[str, bytes]:
        """The first letter to each other side. secrets: what the dealer gave, by the other's name."""
        self.work.clear()  # of a sum that another side was lost from
        self.shares.clear()
        total = joined_sum(request, self.owner)
        letters = {}
        for peer in self.places:
            layout = Products(f"{request.query} {self._pair(peer)}", self.sizes[peer], total)
            spine = self._spine(request, peer)
            talk = (
                by_triples(layout, self, spine, secrets[peer])
                if self.product == "triples"
                else by_paillier(layout, self, spine, self.key)
            )
            self.work[request.query, peer] = Conversation(layout, talk)
            letters[peer] = next(talk)
        return letters

    def hear(self, query: str, peer: str, letter: bytes) -> bytes | None:
        """Take another side's letter: the next one to it, or None where the share is made."""
        work = self.work.get((query, peer))
        if work is None:
            raise PeerError("coordinator: passes on a letter for a sum that was not begun")
        try:
            return work.talk.send(letter)
        except StopIteration as end:
            del self.work[query, peer]
            share: Integers = end.value
            before = self.shares.get(query)
            whole = share if before is None else (before + share) % RING.modulus
            self.shares[query] = np.asarray(whole, dtype=object)
            return None

    def take(self, request: Request) -> Sums:
        """The side's share of a sum that was made with the others, once; it can't be read alone."""
        if request.statistic in LOCAL:
            row = statistics.find(request.statistic)
            return LOCAL[request.statistic](self, row.read(request.arguments, request.arrays))
        share = self.shares.pop(request.query, None)
        if share is None or any(query == request.query for query, _ in self.work):
            raise PeerError("coordinator: asks for a share of a sum that was not made")
        return contribution(share)

    def _pair(self, peer: str) -> str:
        return " & ".join((self.name, peer) if self.role == "insurer" else (peer, self.name))

    def _spine(self, request: Request, peer: str) -> Spine:
        task = Task.model_validate(request.arguments["task"])
        part: Part = "test" if request.statistic.startswith("score") else "train"
        part = request.arguments.get("part", part)
        labels = self.rows(task, part).index
        place = self.places[peer].reindex(labels, fill_value=-1).to_numpy(dtype=np.int64)
        return Spine(place, self.sizes[peer])


def answer_product(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """A turn of a product: letters from other sides come, letters to them go.

    The first turn is held against the plan, as the question itself is later."""
    if not isinstance(holder, JoinedSide):
        raise PolicyError("this party is joined to no other")
    request = Request.from_record(message)
    turn = int(str(message.config_records["turn"]["turn"]))
    roster, identity = memory.paired(), memory.identity()
    if turn == 0:
        if holder.binding is not None:
            holder.binding.check(request, memory.standing())
        memory.begin_product(request.query)
        dealt = {peer: memory.dealt(peer) for peer in holder.places}
        letters: dict[str, bytes | None] = dict(holder.begin(request, dealt))
    else:
        letters = {}
        for peer in holder.places:
            kind = purpose(request.query, turn - 1, peer, holder.name)
            letter = unsealed(identity, roster[peer], kind, read(message, f"from {peer}"))
            try:
                if holder.product == "triples" and holder.role == "fund":
                    dealt_parts = wire.split(LETTER, read(message, f"dealt {peer}"), 0, 99)
                    letter = wire.join(LETTER, [*wire.split(LETTER, letter, 0, 99), *dealt_parts])
                letters[peer] = holder.hear(request.query, peer, letter)
            except SecureAggError as error:
                raise PeerError(f"{peer}: sent a letter that does not fit: {error}", peer) from None
    parts = {
        f"to {peer}": sealed(
            identity, roster[peer], purpose(request.query, turn, holder.name, peer), letter
        )
        for peer, letter in letters.items()
        if letter is not None
    }
    return message_of(**parts)


def pair(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Take up who the other sides are, and what was dealt to this one for a run."""
    if not isinstance(holder, JoinedSide):
        raise PolicyError("this party is joined to no other")
    identity = memory.identity()
    dealt = {}
    if holder.product == "triples":
        for peer in holder.places:
            dealt[peer] = identity.unseal(
                dealt_to(holder.name, peer), read(message, f"dealt {peer}")
            )
    memory.pair(read(message, "roster"), dealt)
    return RecordDict()


def dealt_to(name: str, peer: str) -> bytes:
    """What a dealer's secret is sealed for."""
    return wire.join(LETTER, [b"dealt", name.encode(), peer.encode()])


def groups_of(side: JoinedSide, request: Request) -> Groups:
    """A side's columns for a request; for tests and attacks."""
    total = joined_sum(request, side.owner)
    return total.left(side) if side.role == "insurer" else total.right(side)
