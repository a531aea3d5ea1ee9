"""How contributions are hidden: what every way has in common, and the clear way.

Three roles. A *node* hides its sums. The *coordinator* passes on what it cannot read. Whoever can
open a total opens it once, and only a total: see `federated.hiding.paillier` and `federated.hiding.masks`. The
clear way is there for arms of one party and for comparison, and says its name in every receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Protocol, TypeVar

import numpy as np
from flwr.app import RecordDict

from federated.messages import Form, Hiding, Reply, Request, agreed_form
from federated.party.party import Party
from federated.party.release import release
from federated.party.state import NodeState, Released
from federated.party.statistics import RELEASED, find
from lab.errors import PeerError, PolicyError
from lab.privacy.disclosure import Rules
from lab.sums import Sums, combine
from secure_agg.errors import FaultyParty, SecureAggError
from secure_agg.identity import Roster
from secure_agg.packing import Field
from secure_agg.transcript import FEWEST


class Talk(Protocol):
    """How the coordinator's side of a protection reaches the parties."""

    @property
    def names(self) -> tuple[str, ...]:
        """All parties, in seat order."""

    def ask(
        self, action: str, contents: Mapping[str, RecordDict], *, patient: bool = False
    ) -> dict[str, RecordDict]:
        """Send each party its message and return the answers by name, in seat order.

        With ``patient`` a party that does not answer is left out; else it is an error.
        """


class Protection(Protocol):
    """The coordinator's side of a way of hiding."""

    hiding: Hiding

    @property
    def everybody(self) -> bool:
        """Whether all parties see every total, though none sees a contribution."""

    def check_parties(self, parties: int) -> None:
        """Refuse a federation too small for this way."""

    def enrol(self, talk: Talk, roster: Roster) -> None:
        """Make known who takes part, and the keys that are needed, before the first question."""

    def total(self, talk: Talk, request: Request) -> Sums:
        """Ask all parties, and open the total."""

    @property
    def proof(self) -> RecordDict:
        """What a party needs to open the last total for itself, and take nobody's word for it:
        nothing where one party opens, and in the clear the total alone."""


class Clear:
    """No hiding: the coordinator reads every contribution."""

    hiding: Hiding = "clear"
    everybody = False  # it hides nothing from anybody, and says so

    def __init__(self, rules: Rules | None = None) -> None:
        self.rules = rules or Rules.read()
        self._total: Sums | None = None

    @property
    def proof(self) -> RecordDict:
        return RecordDict() if self._total is None else Reply.of("", self._total, None).to_record()

    def check_parties(self, parties: int) -> None:
        return

    def enrol(self, talk: Talk, roster: Roster) -> None:
        return

    def total(self, talk: Talk, request: Request) -> Sums:
        replies = ask_sums(talk, request)
        agreed_form(replies)
        total = combine([_clear(name, reply) for name, reply in replies.items()])
        if request.statistic in RELEASED:
            total = release(request, total, self.rules)
        self._total = total
        return total


def _clear(name: str, reply: Reply) -> Sums:
    """A readable contribution, if it is one. Raises :class:`PeerError`."""
    if reply.clear is None:
        raise PeerError(f"{name}: hid its answer where an answer in the clear was asked for", name)
    for key, (_, limit) in reply.form.items():
        if not np.all(np.abs(reply.clear[key]) <= limit.bound):  # what is no number is not either
            raise PeerError(f"{name}: sent a number that is not finite or beyond its bound", name)
    limits = {key: limit for key, (_, limit) in reply.form.items()}
    return Sums(reply.clear, limits, reply.rows)


def check_run(query: str, run: str) -> None:
    """Raises :class:`PeerError` for a query of another run: the same question may have had another
    total there."""
    if not query.startswith(f"{run}-"):
        raise PeerError("coordinator: shows a total of another run")


def check_enough(hiding: Hiding, parties: int) -> None:
    """Refuse a federation in which nothing can be hidden."""
    if parties < FEWEST:
        raise PolicyError(
            f"protection.sums = '{hiding}' needs at least {FEWEST} parties, got {parties}: with "
            "two, the total minus one's own is the other's secret"
        )


def ask_sums(talk: Talk, request: Request) -> dict[str, Reply]:
    """Everybody's answer to a request, under the name it belongs to."""
    record = request.to_record()
    answers = talk.ask(find(request.statistic).message, dict.fromkeys(request.parties, record))
    return {name: named_reply(name, answer) for name, answer in answers.items()}


def named_reply(name: str, answer: RecordDict) -> Reply:
    """A reply, if it comes under the name of the party it comes from."""
    try:
        reply = Reply.from_record(answer)
    except PeerError as error:
        raise PeerError(str(error), name) from None
    if reply.party != name:
        raise PeerError(f"{name}: answered under the name {reply.party}", name)
    return reply


Decoded = TypeVar("Decoded")


def decoded(name: str, decode: Callable[[bytes], Decoded], data: bytes) -> Decoded:
    """What a party sent, or an error that blames it."""
    try:
        return decode(data)
    except SecureAggError as error:
        raise FaultyParty(f"{name}: {error}", name) from None


def fields_of(form: Form) -> tuple[Field, ...]:
    """The public fixed-point format of a contribution; the same for every party."""
    return tuple(
        Field(int(np.prod(shape)), limit.bound, limit.resolution) for shape, limit in form.values()
    )


def taken(holder: Party, memory: NodeState, request: Request) -> Sums:
    """The party's sums, if the question is one that its plan asks now. Raises what it refuses with."""
    if holder.binding is not None:
        holder.binding.check(request, memory.standing())
        memory.note_step(request)
    return holder.take(request)


def note(
    holder: Party, memory: NodeState, request: Request, sums: Sums, size: int, key_bits: int = 0
) -> None:
    """Write the receipt for sums that leave in so many bytes, before they do.

    The rows behind an answer to a question are for the party's own eyes.
    """
    noise = (request.arguments.get("question") or {}).get("noise") or {}
    line = Released(
        query=request.query,
        statistic=request.statistic,
        hiding=request.hiding,
        arrays=len(sums.arrays),
        values=sum(array.size for array in sums.arrays.values()),
        bytes=size,
        rows=sums.rows,
        key_bits=key_bits,
        epsilon=float(noise.get("epsilon", 0.0)),
        delta=float(noise.get("delta", 0.0)),
    )
    if holder.query_table is not None:
        holder.query_table.keep(asdict(line))
    memory.remember(request.query, request.statistic)
    memory.note(replace(line, rows=0) if request.statistic in RELEASED else line)


def answer_clear(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """The node's step: its sums, readable."""
    request = Request.from_record(message)
    memory.allow("clear")
    sums = taken(holder, memory, request)
    note(holder, memory, request, sums, sum(array.nbytes for array in sums.arrays.values()))
    return Reply.of(holder.name, sums, None).to_record()
