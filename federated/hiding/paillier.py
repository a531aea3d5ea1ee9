"""Sums under Paillier encryption: the node, the coordinator, and who can open a total.

The key is held by one authority that is not the coordinator, or cut into shares of which every
party holds one. Either way whoever opens is shown the signed contributions and the terms that
all parties signed, never a product: `secure_agg.transcript` says what is checked, and
`secure_agg.shares` what a split key protects and what not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from flwr.app import RecordDict

from federated.hiding.protocol import (
    Talk,
    ask_sums,
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
from federated.party.release import expected, release
from federated.party.state import NodeState, Released
from federated.party.statistics import RELEASED, find
from lab.errors import PeerError, PolicyError
from lab.privacy.disclosure import Rules
from lab.sums import Floats, Sums
from secure_agg import paillier, shares
from secure_agg.errors import FaultyCoordinator, InconsistentSum
from secure_agg.identity import Roster
from secure_agg.keys import PrivateKey, PublicKey, generate
from secure_agg.masks import pairs_in, pairs_out
from secure_agg.packing import Layout
from secure_agg.transcript import (
    FEWEST,
    Contribution,
    Terms,
    Transcript,
    blame_layout,
    contribute,
    examine,
    received,
)

# The node.


def answer_encrypted(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """The node's step: its sums, encrypted and signed for this question and these parties."""
    request = Request.from_record(message)
    memory.allow("paillier")
    roster, key = memory.roster(), memory.public_key()
    memory.allow_parties(request.parties)
    sums = taken(holder, memory, request)
    hidden = with_rows(sums)
    form = form_of(hidden)
    layout = Layout(fields_of(form), len(request.parties), key.bits)
    terms = terms_of(request, roster, key, layout, of_shares=holder.fewest < FEWEST)
    arrays = [hidden[name].ravel() for name in form]
    batch = paillier.encrypt(key, terms.layout, arrays, workers=holder.workers, series=True)
    contribution = contribute(memory.identity(), terms, batch.to_bytes()).to_bytes()
    note(holder, memory, request, sums, len(contribution), key.bits)
    return Reply.of(holder.name, hidden, contribution).to_record()


def give_part(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """The step of a node that holds a share: its part of opening a total it has checked."""
    share, transcript = memory.key_share(), Transcript.from_bytes(read(message, "transcript"))
    query, roster = transcript.terms.query, memory.roster()
    statistic = memory.asked(query)
    if find(statistic).cells and statistic not in RELEASED:
        raise PolicyError(
            f"'{statistic}' is of cells that may stand on few persons, and with a split key "
            "everybody sees every total of a model; trees and scores by bin need "
            "protection.key = 'authority'",
            "cells",
        )
    terms = transcript.terms
    holder.party_sets.allow(terms.question, terms.parties, memory.minimum_parties)
    _, part = shares.give_part(share, roster, memory.answered(), transcript, workers=holder.workers)
    data = part.to_bytes(share.split)
    memory.answer(query)
    count, bits = len(part.numbers), share.split.public.bits
    memory.note(Released(query, "part of a decryption", "paillier", 1, count, len(data), 0, bits))
    if statistic in RELEASED:  # a total that nobody sees before the rules have been kept
        return message_of(sealed=roster[releaser(roster)].seal(_purpose(query), data))
    return message_of(part=data)


def releaser(roster: Roster) -> str:
    """Who opens and releases answers where the key is split: the party in the first seat."""
    return roster.names[0]


def release_answer(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """The step of the releaser: it opens a total from all parts, and shows what its rules leave."""
    share, roster, identity = memory.key_share(), memory.roster(), memory.identity()
    transcript, request = (
        Transcript.from_bytes(read(message, "transcript")),
        Request.from_record(message),
    )
    query = transcript.terms.query
    if request.question != transcript.terms.question or memory.asked(query) != request.statistic:
        raise PeerError("coordinator: shows another question than the one that was signed")
    if request.statistic not in RELEASED:
        raise PolicyError("this party releases answers to questions and profiles alone")
    parts = {
        name: identity.unseal(_purpose(query), read(message, f"sealed {name}"))
        for name in share.split.holders
    }
    arrays = _combined(share.split, roster, transcript, parts)
    answer = _released(request, transcript, arrays, holder.rules)
    return Reply.of(holder.name, answer, None).to_record()


def _released(request: Request, transcript: Transcript, arrays: list[Floats], rules: Rules) -> Sums:
    """What the rules leave of a total that was just opened, if it is of the question's form."""
    form = expected(request)
    if fields_of(form) != transcript.terms.layout.fields:
        raise PeerError("contributions are not of the form that the question asks for")
    return release(request, opened(form, arrays), rules)


def _purpose(query: str) -> bytes:
    return b"part of the answer to " + query.encode()


def terms_of(
    request: Request, roster: Roster, key: PublicKey, layout: Layout, *, of_shares: bool = False
) -> Terms:
    """What everybody signs; computed by each from what it was asked."""
    return Terms(
        request.query,
        request.question,
        roster.digest,
        request.parties,
        key.fingerprint,
        layout,
        of_shares,
    )


# Who can open.


class Opener(Protocol):
    """Whoever can open a total, as the coordinator reaches it."""

    @property
    def public(self) -> PublicKey:
        """The key that parties encrypt to."""

    def enrol(self, roster: Roster) -> dict[str, dict[str, bytes]]:
        """Take up the roster; what each party must be told beside it."""

    def open(self, talk: Talk, transcript: Transcript, request: Request, form: Form) -> Sums:
        """The total of a model's sums, which are of this form; what may be shown of a question's."""

    @property
    def everybody(self) -> bool:
        """Whether all parties see every total."""

    @property
    def proof(self) -> RecordDict:
        """What the last total of a model's sums was opened from, where anybody may open it."""


class KeyAuthority:
    """Holds the whole key, is not the coordinator, and opens what its checks allow, once."""

    everybody = False

    def __init__(
        self, private: PrivateKey, rules: Rules | None = None, queries: Iterable[str] = ()
    ) -> None:
        self._private, self._rules = private, rules or Rules.read()
        self._roster: Roster | None = None
        self._answered: set[str] = set(queries)
        self.proof = RecordDict()  # nobody else can open

    @classmethod
    def with_new_key(cls, bits: int, rules: Rules | None = None) -> KeyAuthority:
        return cls(generate(bits), rules)

    @property
    def public(self) -> PublicKey:
        return self._private.public

    def enrol(self, roster: Roster) -> dict[str, dict[str, bytes]]:
        if self._roster not in (None, roster):
            raise PolicyError("key authority: it serves one roster, and this is another")
        self._roster = roster
        return {}

    def open(self, talk: object, transcript: Transcript, request: Request, form: Form) -> Sums:
        """Raises :class:`~secure_agg.errors.FaultyCoordinator` for anything but a new, complete
        and signed sum of parties of its roster, :class:`~secure_agg.errors.FaultyParty` for
        contributions that hold something else than numbers of the layout."""
        if self._roster is None:
            raise PolicyError("key authority: it knows no roster and opens nothing")
        if request.question != transcript.terms.question:
            raise FaultyCoordinator("it shows another question than the parties signed")
        own = examine(self._roster, transcript, self.public, self._answered)
        self._answered.add(transcript.terms.query)
        try:
            arrays = paillier.decrypt(self._private, own)
        except InconsistentSum:
            raise blame_layout(self._private, transcript) from None
        if request.statistic in RELEASED:
            return _released(request, transcript, arrays, self._rules)
        return opened(form, arrays)


class KeyHolders:
    """Every party holds a share, and all of them must agree to open."""

    everybody = True

    def __init__(self, split: shares.SplitKey, roster: Roster) -> None:
        self.public, self._split, self._roster = split.public, split, roster
        self.proof = RecordDict()

    def enrol(self, roster: Roster) -> dict[str, dict[str, bytes]]:
        if roster != self._roster:
            raise PolicyError("the key was dealt to another roster; make a new one")
        return {}

    def open(self, talk: Talk, transcript: Transcript, request: Request, form: Form) -> Sums:
        """Raises :class:`~secure_agg.errors.FaultyHolder`, and what a holder refuses with."""
        data = transcript.to_bytes()
        answers = talk.ask(
            MessageKind.PART, dict.fromkeys(self._split.holders, message_of(transcript=data))
        )
        if request.statistic in RELEASED:
            sealed = {f"sealed {name}": read(a, "sealed") for name, a in answers.items()}
            question = message_of(transcript=data, **sealed)
            question.update(request.to_record())
            name = releaser(self._roster)
            answer = talk.ask(MessageKind.RELEASE, {name: question})[name]
            self.proof = answer
            return named_reply(name, answer).sums
        parts = {name: read(answer, "part") for name, answer in answers.items()}
        total = opened(form, _combined(self._split, self._roster, transcript, parts))
        self.proof = message_of(
            transcript=data, form=form_to_json(form).encode(), parts=pairs_out(parts)
        )
        return total


def _combined(
    split: shares.SplitKey, roster: Roster, transcript: Transcript, parts: Mapping[str, bytes]
) -> list[Floats]:
    """The arrays of a total, from every holder's part of its decryption."""
    readable = {
        name: decoded(name, lambda data: shares.Part.from_bytes(data, split), part)
        for name, part in parts.items()
    }
    return shares.combine(split, roster, transcript, readable)


def proven(memory: NodeState, run: str, question: bytes, proof: RecordDict) -> Sums:
    """The total of a question, opened from the parts that all holders gave in this run.

    question: the digest of what this node was asked. Raises what the parts do not open with.
    """
    transcript = Transcript.from_bytes(read(proof, "transcript"))
    check_run(transcript.terms.query, run)
    if transcript.terms.question != question:
        raise PeerError("coordinator: shows the total of another question than it asked")
    form = form_from_json(read(proof, "form").decode())
    if fields_of(form) != transcript.terms.layout.fields:
        raise PeerError("coordinator: shows a total in another form than its parties signed")
    split, parts = memory.key_share().split, pairs_in(read(proof, "parts"))
    return opened(form, _combined(split, memory.roster(), transcript, parts))


class Dealer:
    """Deals the shares of a key to the parties of a roster and forgets it; then they open."""

    everybody = True

    def __init__(self, private: PrivateKey) -> None:
        self.public, self._private = private.public, [private]
        self._holders: KeyHolders | None = None
        self.proof = RecordDict()

    def enrol(self, roster: Roster) -> dict[str, dict[str, bytes]]:
        """Each party's share, sealed to it."""
        if not self._private:
            raise PolicyError("the key was dealt before and is forgotten; make a new one")
        split, parts = shares.deal(self._private.pop(), roster.names)
        self._holders = KeyHolders(split, roster)
        return {
            name: {"split": split.to_bytes(), "share": shares.seal_share(share, roster[name])}
            for name, share in parts.items()
        }

    def open(self, talk: Talk, transcript: Transcript, request: Request, form: Form) -> Sums:
        if self._holders is None:
            raise PolicyError("the key was not dealt; nobody can open anything")
        total = self._holders.open(talk, transcript, request, form)
        self.proof = self._holders.proof
        return total


# The coordinator.


class Paillier:
    """Contributions encrypted to a key that the coordinator does not hold."""

    hiding: Hiding = "paillier"

    def __init__(self, opener: Opener, *, of_shares: bool = False) -> None:
        """of_shares: of joined parties, each contribution of which is uniform by itself."""
        self.opener, self._of_shares = opener, of_shares
        self._roster: Roster | None = None

    @property
    def everybody(self) -> bool:
        return self.opener.everybody

    @property
    def proof(self) -> RecordDict:
        return self.opener.proof

    def check_parties(self, parties: int) -> None:
        check_enough(self.hiding, parties)

    def enrol(self, talk: Talk, roster: Roster) -> None:
        self._roster = roster
        n = self.opener.public.n
        public = {"roster": roster.to_bytes(), "key": n.to_bytes(-(-n.bit_length() // 8), "big")}
        secrets = self.opener.enrol(roster)
        messages = {name: message_of(**public, **secrets.get(name, {})) for name in roster.names}
        talk.ask(MessageKind.ENROL, messages)

    def total(self, talk: Talk, request: Request) -> Sums:
        assert self._roster is not None
        public, replies = self.opener.public, ask_sums(talk, request)
        form = one_form(replies)
        layout = Layout(fields_of(form), len(replies), public.bits)
        terms = terms_of(request, self._roster, public, layout, of_shares=self._of_shares)
        contributions = tuple(
            decoded(name, Contribution.from_bytes, reply.hidden or b"")
            for name, reply in replies.items()
        )
        for name, contribution in zip(replies, contributions, strict=True):
            if contribution.party != name:
                raise PeerError(f"{name}: signed as {contribution.party}", name)
        for contribution in contributions:
            received(self._roster, terms, public, contribution)
        return self.opener.open(talk, Transcript(terms, contributions), request, form)
