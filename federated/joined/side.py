"""A side of joined pairs as a party: its own columns, its rows' places on spines, its shares of sums."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from flwr.app import RecordDict
from numpy.typing import NDArray

from federated.joined.by_paillier import by_paillier
from federated.joined.letters import LETTER, purpose, sealed, unsealed
from federated.joined.product import (
    Products,
    Spine,
    Talking,
    answer_alone,
    by_triples,
    contribution,
    joined_sum,
    telling,
)
from federated.joined.sums.cuts import CommonRows, Cut, cut_of, pads, text_of
from federated.joined.sums.factors import Knowledge, Role
from federated.joined.sums.trees import refuse_untold
from federated.messages import Request, message_of, read
from federated.party.party import Party
from federated.party.state import NodeState, Released
from lab.errors import PeerError, PolicyError
from lab.models.glm import Task
from lab.models.tree_model import Cuts
from lab.statistics import Part
from lab.sums import Sums
from secure_agg import wire
from secure_agg.arithmetic.ring import Integers, Ring
from secure_agg.errors import SecureAggError
from secure_agg.keys import PrivateKey, generate

#: Bytes that name a letter of cuts.
NONCE = 16
#: What a receipt calls cuts that were told.
CUTS = "trees_cuts"
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
    label of an own row, ``sizes``, how many the spine has, ``persons``, how many both have, ``met``, where
    this side was told, which rows, and ``row_keys``, (rows, 32) where one side was; ``key_bits``: of its own key for products.
    The fund's rows are all there for training and for testing: which count is the insurer's to say.
    ``known``: what sides know of common rows, and count by themselves;
    ``tells_cuts``: whether the fund tells an insurer who is on which side of a cut on its columns.
    """

    role: Role = "insurer"
    columns: frozenset[str] = frozenset()
    places: dict[str, pd.Series] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    persons: dict[str, int] = field(default_factory=dict)
    met: dict[str, pd.Series] = field(default_factory=dict)
    row_keys: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    known: Knowledge = Knowledge.NOTHING
    tells_cuts: bool = True
    product: str = "paillier"
    key_bits: int = 3072
    fewest: int = 2  # a share tells nothing, so two sides hide each other's

    def __post_init__(self) -> None:
        super().__post_init__()
        self.work: dict[tuple[str, str], Conversation] = {}
        self.shares: dict[str, Integers] = {}
        self.rings: dict[str, Ring] = {}
        self.told: dict[str, bytes] = {}  # cuts on the fund's columns; what each told an insurer
        self.kept: dict[bytes, bytes] = {}
        self._common: CommonRows | None = None
        self._key: PrivateKey | None = None

    def own_key(self) -> PrivateKey:
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

    @property
    def common(self) -> CommonRows:
        """An insurer's rows that the fund has as well."""
        if self._common is None:
            ((peer, place),) = self.places.items()
            if peer not in self.met:
                raise PolicyError("this party was not told which of its persons are common")
            self._common = CommonRows(self, place.where(self.met[peer], -1))
        return self._common

    @property
    def spine_size(self) -> int:
        """Rows of an insurer's one spine."""
        (size,) = self.sizes.values()
        return size

    def tell(self, peer: str, chosen: list[Cut], cuts: tuple[Cuts, ...]) -> bytes:
        """The fund: a bit for each of these cuts and each row of the spine with an insurer.

        Raises :class:`PolicyError` where this party tells no cuts."""
        if chosen and not self.tells_cuts:
            raise refuse_untold()
        place, keys, nonce = self.places[peer], self.row_keys.get(peer), b""
        if keys is None and peer not in self.met:
            raise PolicyError(
                "no keys hide what would be told of persons that the other side lacks"
            )
        frame, at = self.train.loc[place.index], place.to_numpy()
        own, codes = np.zeros((len(chosen), len(at)), dtype=bool), np.empty(len(at), dtype=np.uint8)
        for k, (feature, goes_left) in enumerate(chosen):
            cuts[feature].codes(frame, codes)
            own[k] = np.array(goes_left)[codes]
            self.told[text_of(cuts[feature], goes_left)] = b""
        bits = np.zeros((len(chosen), self.sizes[peer]), dtype=bool)
        if keys is not None:  # what stands where this side has no row must look like what does
            drawn = np.frombuffer(secrets.token_bytes(bits.size), dtype=np.uint8)
            bits, nonce = drawn.reshape(bits.shape) > 127, secrets.token_bytes(NONCE)
            own ^= pads(keys, nonce, len(chosen))
        bits[:, at[at >= 0]] = own[:, at >= 0]
        return nonce + np.packbits(bits, axis=1).tobytes()

    def listen(self, chosen: list[Cut], cuts: tuple[Cuts, ...], data: bytes) -> None:
        """An insurer: take up what the fund tells of these cuts. Raises :class:`PeerError`."""
        ((peer, place),) = self.places.items()
        size, keys = self.sizes[peer], self.row_keys.get(peer)
        nonce, data = (data[:NONCE], data[NONCE:]) if keys is not None else (b"", data)
        if len(data) != len(chosen) * -(-size // 8):
            raise PeerError(f"{peer}: tells of other cuts than were chosen", peer)
        packed = np.frombuffer(data, dtype=np.uint8).reshape(len(chosen), -(-size // 8))
        bits = np.unpackbits(packed, axis=1, count=size).astype(bool)
        if keys is not None:
            ours = self.met[peer].to_numpy()
            at = place.to_numpy()[ours]
            own = bits[:, at] ^ pads(keys[ours], nonce, len(chosen))
            bits = np.zeros_like(bits)
            bits[:, at] = own
        for row, (feature, goes_left) in zip(np.packbits(bits, axis=1), chosen, strict=True):
            self.take_up(text_of(cuts[feature], goes_left), row.tobytes())

    def take_up(self, text: str, data: bytes) -> None:
        """What was told of a cut, now or before a restart."""
        if self.role == "insurer":
            bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=self.spine_size)
            self.common.hear(*cut_of(text), bits.astype(bool))
        self.told[text] = data

    def begin(self, request: Request, dealt: Mapping[str, bytes]) -> dict[str, bytes]:
        """The first letter to each other side. dealt: what the dealer gave, by the other's name."""
        self.work.clear()  # of a sum that another side was lost from
        self.shares.clear()
        total = joined_sum(request, self.owner)
        letters = {}
        for peer in self.places:
            layout = Products(f"{request.query} {self._pair(peer)}", self.sizes[peer], total)
            spine = self._spine(request, peer)
            talk = (
                by_triples(layout, self, spine, dealt[peer])
                if total.form.made_by(self.product) == "triples"
                else by_paillier(layout, self, spine, self.own_key, self.key_bits)
            )
            talk = telling(layout, self, peer, talk)
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
            ring = work.layout.ring
            self.rings[query] = ring
            whole = share if before is None else (before + share) % ring.modulus
            self.shares[query] = np.asarray(whole, dtype=object)
            return None

    def take(self, request: Request) -> Sums:
        """The side's share of a sum that was made with the others, once; it can't be read alone."""
        answer, arguments = answer_alone(request, self.owner, self.known)
        if answer is not None:
            sums = answer(self, arguments, request.arrays)
            self.check_rows(request.statistic, sums)
            return sums
        share = self.shares.pop(request.query, None)
        if share is None or any(query == request.query for query, _ in self.work):
            raise PeerError("coordinator: asks for a share of a sum that was not made")
        return contribution(share, self.rings.pop(request.query))

    def is_dealt(self, request: Request) -> bool:
        """Whether a dealer gives this side something for each turn of a sum."""
        made_by = joined_sum(request, self.owner).form.made_by(self.product)
        return self.role == "fund" and made_by == "triples"

    def _pair(self, peer: str) -> str:
        return " & ".join((self.name, peer) if self.role == "insurer" else (peer, self.name))

    def _spine(self, request: Request, peer: str) -> Spine:
        task = Task.model_validate(request.arguments.get("task", {"target": ""}))  # else all rows
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
        before = len(holder.told)
        letters: dict[str, bytes | None] = dict(holder.begin(request, dealt))
        if (new := len(holder.told) - before) > 0:
            memory.note(_of_cuts(holder, request, new))
    else:
        letters, dealt_to_it = {}, holder.is_dealt(request)
        for peer in holder.places:
            kind = purpose(request.query, turn - 1, peer, holder.name)
            letter = unsealed(identity, roster[peer], kind, read(message, f"from {peer}"))
            try:
                if dealt_to_it:
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


def _of_cuts(fund: JoinedSide, request: Request, cuts: int) -> Released:
    """The receipt's line of cuts told: a bit for each person that an insurer has in common."""
    persons = sum(fund.persons.values())
    size = cuts * sum(-(-size // 8) for size in fund.sizes.values())
    return Released(request.query, CUTS, "told", cuts, cuts * persons, size, persons, 0)


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
