"""Sums under pairwise masks: the node's five steps and the coordinator's.

`secure_agg.masks` is the protocol; here it is carried by messages. A node keeps its state of the
protocol, and notes a query as used, before anything leaves it. That holds as far as Flower keeps
a node's state: under the in-process grid and the simulation engine, which run one message of a node
at a time. Nodes on machines of their own need a store that survives a crash.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import RecordDict

from federated.hiding.protocol import (
    Talk,
    check_enough,
    check_run,
    decoded,
    fields_of,
    named_reply,
    note,
    taken,
)
from federated.message_kinds import MessageKind
from federated.messages import (
    Form,
    Hiding,
    Reply,
    Request,
    blobs,
    form_from_json,
    form_of,
    form_to_json,
    message_of,
    one_form,
    opened,
    read,
    with_rows,
)
from federated.party.party import Party
from federated.party.state import NodeState, Released
from federated.party.statistics import find
from lab.errors import PeerError, PolicyError
from lab.sums import Sums
from secure_agg import masks, wire
from secure_agg.identity import Roster
from secure_agg.masks import (
    MASKED,
    REVEALED,
    Keys,
    MaskTerms,
    Opening,
    Seat,
    Signed,
    pairs_in,
    pairs_out,
)

OPENING, NAMES, KEPT = b"LABOPN01", b"LABNAM01", b"LABKPT01"
MASKS: Hiding = "masks"


def _refuse_cells(request: Request) -> None:
    """At the node and at the coordinator: nobody could hold back what the rules hide."""
    if find(request.statistic).cells:
        raise PolicyError(
            f"'{request.statistic}' is of cells that may stand on few persons, and under masks "
            "everybody sees every total; questions, profiles, trees and scores by bin need "
            "protection.sums = 'paillier'",
            "cells",
        )


# The node. Every step takes up the state where the last one left it.


@dataclass(frozen=True)
class _Seated:
    """A node in the midst of one masked sum."""

    memory: NodeState
    terms: MaskTerms
    seat: Seat

    def keep(self, seat: Seat) -> None:
        parts = [self.terms.query.encode(), self.terms.question, seat.to_bytes()]
        self.memory.keep(MASKS, wire.join(KEPT, parts))

    def note(self, size: int) -> None:
        """A line of the receipt for what goes along with a masked vector."""
        what = "keys and shares of masks"
        self.memory.note(Released(self.terms.query, what, MASKS, 0, 0, size, 0, 0))


def _terms(query: str, question: bytes, roster: Roster) -> MaskTerms:
    return MaskTerms(query, question, roster, masks.majority(len(roster.cards)))


def _seated(memory: NodeState) -> _Seated:
    query, question, seat = wire.split(KEPT, memory.kept(MASKS), 3)
    terms = _terms(wire.text(query), question, memory.roster())
    return _Seated(memory, terms, Seat.from_bytes(seat))


def advertise(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Step 0: fresh public keys."""
    memory.allow(MASKS)
    query, question = wire.split(OPENING, read(message, "opening"), 2)
    terms = _terms(wire.text(query), question, memory.roster())
    seat, keys = masks.advertise(memory.identity(), terms, secrets.token_bytes(32))
    memory.answer(terms.query)
    seated, data = _Seated(memory, terms, seat), keys.to_bytes()
    seated.keep(seat)
    seated.note(len(data))
    return message_of(keys=data)


def share(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Step 1: sealed shares for the other parties."""
    seated = _seated(memory)
    keys = {name: Keys.from_bytes(k) for name, k in pairs_in(read(message, "keys")).items()}
    seat, sealed = masks.share(memory.identity(), seated.terms, seated.seat, keys)
    seated.keep(seat)
    data = pairs_out(sealed)
    seated.note(len(data))
    return message_of(sealed=data)


def mask(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Step 2: the sums, masked. They are of the question for which the keys were made."""
    seated, request = _seated(memory), Request.from_record(message)
    terms = seated.terms
    if (request.query, request.question) != (terms.query, terms.question):
        raise PeerError("coordinator: asks another question than it opened the masks for")
    if request.hiding != MASKS or set(request.parties) != set(terms.roster.names):
        raise PeerError("coordinator: names other parties than the roster")
    _refuse_cells(request)
    sums = taken(holder, memory, request)
    hidden = with_rows(sums)
    form = form_of(hidden)
    seat, vector = masks.mask(
        memory.identity(),
        terms,
        seated.seat,
        pairs_in(read(message, "dealt")),
        fields_of(form),
        [hidden[name].ravel() for name in form],
    )
    seated.keep(seat)
    envelope = masks.signed(memory.identity(), terms, MASKED, vector)
    note(holder, memory, request, sums, len(vector) + len(envelope.signature))
    reply = Reply.of(holder.name, hidden, vector).to_record()
    reply["message"] = blobs(signature=envelope.signature)
    return reply


def confirm(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Step 3: a signature on who is in the sum."""
    seated = _seated(memory)
    present = list(map(wire.text, wire.split(NAMES, read(message, "present"), 0, wire.MOST_PARTS)))
    seat, signature = masks.confirm(memory.identity(), seated.terms, seated.seat, present)
    holder.party_sets.allow(seated.terms.question, present, memory.minimum_parties)
    seated.keep(seat)
    seated.note(len(signature))
    return message_of(signature=signature)


def reveal(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Step 4: shares of what has to be taken off the sum."""
    seated = _seated(memory)
    confirmations = pairs_in(read(message, "confirmations"))
    seat, shares = masks.reveal(memory.identity(), seated.terms, seated.seat, confirmations)
    seated.keep(seat)
    data = shares.to_bytes()
    envelope = masks.signed(memory.identity(), seated.terms, REVEALED, data)
    seated.note(len(data) + len(envelope.signature))
    return message_of(revealed=data, signature=envelope.signature)


def proven(memory: NodeState, run: str, question: bytes, proof: RecordDict) -> Sums:
    """The total of a question, added up from what its parties signed in this run.

    question: the digest of what this node was asked. Raises what the sum is not with.
    """
    query = wire.text(read(proof, "query"))
    check_run(query, run)
    terms = _terms(query, question, memory.roster())
    form = form_from_json(read(proof, "form").decode())
    opening = Opening.from_bytes(read(proof, "opening"))
    return opened(form, opening.total(terms, fields_of(form)))


# The coordinator.


class Masks:
    """Contributions under pairwise masks; a minority of the parties may drop out at any step."""

    hiding: Hiding = "masks"
    everybody = True

    def __init__(self) -> None:
        self._roster: Roster | None = None
        self._opened: tuple[str, Form, Opening] | None = None

    @property
    def proof(self) -> RecordDict:
        if self._opened is None:
            return RecordDict()
        query, form, opening = self._opened
        return message_of(
            query=query.encode(), form=form_to_json(form).encode(), opening=opening.to_bytes()
        )

    def check_parties(self, parties: int) -> None:
        check_enough(self.hiding, parties)

    def enrol(self, talk: Talk, roster: Roster) -> None:
        self._roster = roster
        roster_message = message_of(roster=roster.to_bytes())
        talk.ask(MessageKind.ENROL, dict.fromkeys(roster.names, roster_message))

    def total(self, talk: Talk, request: Request) -> Sums:
        _refuse_cells(request)
        return self.run(talk, request)

    def run(self, talk: Talk, request: Request) -> Sums:
        """The five steps of the protocol, for whatever is asked; nodes refuse by themselves."""
        assert self._roster is not None
        terms = _terms(request.query, request.question, self._roster)
        opening = message_of(opening=wire.join(OPENING, [terms.query.encode(), terms.question]))
        answers = self._ask(talk, MessageKind.ADVERTISE, dict.fromkeys(request.parties, opening))
        keys = {
            name: masks.checked_keys(
                terms, name, decoded(name, Keys.from_bytes, read(answer, "keys"))
            )
            for name, answer in answers.items()
        }
        public_keys = {name: key.to_bytes() for name, key in keys.items()}
        message = message_of(keys=pairs_out(public_keys))
        answers = self._ask(talk, MessageKind.SHARE, dict.fromkeys(keys, message))
        sealed = {n: decoded(n, pairs_in, read(answer, "sealed")) for n, answer in answers.items()}
        questions = {name: _question(request, sealed, name) for name in sealed}
        answers = self._ask(talk, _mask_kind(request), questions)
        replies = {name: named_reply(name, answer) for name, answer in answers.items()}
        if len(replies) < terms.least:
            raise PeerError(f"{len(replies)} parties answered, {terms.least} are needed")
        form = one_form(replies)
        vectors = {
            name: _vector(terms, name, form, answers[name], replies[name]) for name in replies
        }
        present = list(vectors)
        message = message_of(present=wire.join(NAMES, [name.encode() for name in present]))
        answers = self._ask(talk, MessageKind.CONFIRM, dict.fromkeys(present, message))
        confirmations = {
            name: masks.checked_confirmation(terms, name, present, read(answer, "signature"))
            for name, answer in answers.items()
        }
        message = message_of(confirmations=pairs_out(confirmations))
        answers = self._ask(talk, MessageKind.REVEAL, dict.fromkeys(confirmations, message))
        revealed = {
            n: Signed(read(a, "revealed"), read(a, "signature")) for n, a in answers.items()
        }
        opening = Opening(public_keys, tuple(sealed), vectors, revealed)
        total = opened(form, opening.total(terms, fields_of(form)))
        self._opened = (request.query, form, opening)
        return total

    def _ask(
        self, talk: Talk, action: str, messages: Mapping[str, RecordDict]
    ) -> dict[str, RecordDict]:
        return talk.ask(action, messages, patient=True)


def _vector(terms: MaskTerms, name: str, form: Form, answer: RecordDict, reply: Reply) -> Signed:
    """A party's masked vector. Raises :class:`~secure_agg.errors.FaultyParty`."""
    data = reply.hidden or b""
    masks.checked_masked(terms, name, fields_of(form), data)
    return Signed(data, read(answer, "signature"))


def _mask_kind(request: Request) -> MessageKind:
    training = find(request.statistic).message == "train"
    return MessageKind.MASK_TRAINING if training else MessageKind.MASK


def _question(request: Request, sealed: Mapping[str, Mapping[str, bytes]], name: str) -> RecordDict:
    """The request to one party, with the shares that others sealed to it."""
    dealt = {other: shares[name] for other, shares in sealed.items() if name in shares}
    record = request.to_record()
    record["message"] = blobs(dealt=pairs_out(dealt))
    return record
