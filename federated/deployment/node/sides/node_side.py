"""A side of joined pairs at its node: which messages between sides it takes, and what it checks first.

What a product is made of stands in `federated.joined.side`; here a node sees that a question is the
plan's and that no column has too many equations opened about it, and opens what the supervisor dealt.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from federated.deployment.charter import Charter
from federated.deployment.node.rules.refusals import Refusal
from federated.deployment.node.sides.equations import Equations
from federated.deployment.node.sides.policy import SidePolicy
from federated.deployment.pairs import correction_purpose, secret_purpose
from federated.joined.letters import unsealed
from federated.joined.product import Products, is_alone, joined_sum
from federated.joined.protection import INTERRUPTED
from federated.joined.side import JoinedSide
from federated.joined.sums.cuts import text_of
from federated.joined.sums.trees import told_by
from federated.message_kinds import MessageKind
from federated.messages import Request, blobs, read
from federated.party.state import NodeState
from federated.study.plan import StudyPlan
from lab.audit.log_writer import Log
from lab.errors import PeerError
from lab.privacy.counters import Counters
from lab.queries.query_table import COUNTERS
from lab.queries.questions import Question
from lab.statistics import QUESTIONS
from secure_agg.identity import Card


class NodeSide:
    """What a node of a pair keeps beside its runs: alignments and equations. folder: the node's."""

    def __init__(self, folder: Path, policy: SidePolicy) -> None:
        self.policy, self._charter = policy, policy.charter
        self._name, self._peers = policy.settings.name, policy.pairs.peers(policy.settings.name)
        self._equations = Equations(folder)
        (folder / QUESTIONS).mkdir(exist_ok=True)
        self._counters = Counters(folder / QUESTIONS / COUNTERS)
        policy.keyed()  # keys that name two rows are told now, not in the first run

    def aligned(self) -> RecordDict:
        """Which alignments stand: by the other side their name and the size of the spine."""
        _, keys = self.policy.keyed()
        made = self.policy.alignments.made(keys)
        standing = {peer: [one.session, one.size] for peer, one in made.items()}
        return RecordDict({"aligned": ConfigRecord({"standing": json.dumps(standing)})})

    def align(self, content: RecordDict, run: str, log: Log) -> RecordDict:
        """A turn of an alignment."""
        reply = self.policy.alignments.turn(lambda: self.policy.keyed()[1], content, run, log)
        log_letters(log, run, "", MessageKind.ALIGN, reply)
        return reply

    def pair(self, memory: NodeState, content: RecordDict, run: str) -> None:
        """Take up the secrets that the supervisor dealt to this side for a run."""
        dealt = {}
        if self.policy.pairs.product == "triples":
            for peer in self._peers:
                purpose = secret_purpose(run, self._name, peer)
                dealt[peer] = unsealed(
                    memory.identity(), self._dealer, purpose, read(content, f"dealt {peer}")
                )
        memory.pair(self._charter.roster.to_bytes(), dealt)

    def product(
        self, party: JoinedSide, study: StudyPlan, memory: NodeState, content: RecordDict, log: Log
    ) -> RecordDict:
        """A turn of a product as the app takes it: checked, with what was dealt for it in the clear.

        Raises :class:`Refusal`, and what the plan's binding raises.
        """
        request, turn = Request.from_record(content), _turn_of(content)
        if set(party.places) != set(self._peers):
            raise Refusal("alignment", "this side's rows are not aligned with those of its pairs")
        if turn == 0:
            if party.binding is not None:
                party.binding.check(request, memory.standing())
            self._count(party, study, request)
            if party.role == "fund":
                self._note_cuts(party, request, log)
            return content
        if any((request.query, peer) not in party.work for peer in self._peers):
            raise Refusal(INTERRUPTED, "this side is at no such turn of a product; begin anew")
        if not party.is_dealt(request):
            return content
        letters = {f"from {peer}": read(content, f"from {peer}") for peer in self._peers}
        for peer in self._peers:
            purpose = correction_purpose(request.query, turn, self._name, peer)
            letters[f"dealt {peer}"] = unsealed(
                memory.identity(), self._dealer, purpose, read(content, f"dealt {peer}")
            )
        return RecordDict({**content, "message": blobs(**letters)})

    def check_share(self, party: JoinedSide, content: RecordDict) -> None:
        """Raises :class:`Refusal` where the share of a sum was lost, so that it is made anew."""
        request = Request.from_record(content)
        alone = is_alone(request, party.owner, party.known)
        if not alone and request.query not in party.shares:
            raise Refusal(INTERRUPTED, "this side has no share of this sum; begin it anew")

    def _count(self, party: JoinedSide, study: StudyPlan, request: Request) -> None:
        total = joined_sum(request, party.owner)
        size = sum(Products("count", 1, total).sizes().values())
        pairs, persons = self.policy.pairs, sum(party.persons.values())
        if persons < pairs.minimum_persons:
            raise Refusal(
                "persons",
                f"{persons} persons are common, and the charter asks for {pairs.minimum_persons}",
            )
        if study.kind == QUESTIONS:  # of which the supervisor keeps the history
            self._charge(request)
            return
        most = int(self.policy.own.equations_per_person * persons)
        numbers = {name: total.about(name, size) for name in self.policy.columns_of(study)}
        self._equations.note(party.once(_digest_of_rows), request.question.hex(), numbers, most)

    def _note_cuts(self, fund: JoinedSide, request: Request, log: Log) -> None:
        """What is told of this side's columns before a sum, in its memory and its log before it leaves."""
        cuts = told_by(joined_sum(request, fund.owner))
        columns = sorted({cut.feature.column for cut, _ in cuts})
        for peer in self._peers:
            self.policy.check_cuts(peer, columns)
            about = {name: fund.once(_digest_of_column, name, peer) for name in columns}
            texts = [f"{about[cut.feature.column]} {text_of(cut, left)}" for cut, left in cuts]
            new = self.policy.cuts_told.note(peer, texts, self.policy.own.bits_per_person)
            if new:
                log.append(
                    "cuts",
                    run=request.query.partition("-")[0],
                    query=request.query,
                    statistic=request.statistic,
                    peer=peer,
                    columns=columns,
                    cuts=new,
                    persons=fund.persons[peer],
                )

    def _charge(self, request: Request) -> None:
        """Count the cells of a question against the coordinator's quota."""
        question = Question.model_validate(request.arguments["questions"][-1])
        quota, asker = self.policy.limits.quota, self._charter.coordinator
        total = self._counters.add(f"cells {asker}", question.cells, quota)
        if total > quota:
            raise Refusal(
                "quota",
                f"{asker} may ask for {quota:,} cells here, ever; this question makes {total:,}",
            )

    @property
    def _dealer(self) -> Card:
        return dealer_of(self._charter)


def log_letters(log: Log, run: str, query: str, statistic: str, reply: RecordDict) -> None:
    """The line of letters that leave a side, sealed to the others."""
    letters = reply.array_records.get("message", ArrayRecord())
    if letters:
        log.append(
            "release",
            run=run,
            query=query,
            statistic=statistic,
            hiding="letters to other sides",
            arrays=len(letters),
            values=0,
            bytes=sum(len(letter.data) for letter in letters.values()),
            rows="not told",
            key_bits=0,
        )


def _turn_of(content: RecordDict) -> int:
    turn = content.config_records.get("turn", ConfigRecord()).get("turn")
    if type(turn) is not int:
        raise PeerError("coordinator: does not say which turn of a product it is")
    return turn


def _digest_of_rows(side: JoinedSide) -> str:
    """SHA-256 of all rows of a side that take part."""
    hashes = pd.util.hash_pandas_object(side.claims(), index=False)
    return hashlib.sha256(hashes.to_numpy().tobytes()).hexdigest()


def _digest_of_column(side: JoinedSide, column: str, peer: str) -> str:
    """SHA-256 of a column, and of who of its rows stands where on a spine."""
    values = pd.util.hash_pandas_object(side.train[column], index=False).to_numpy()
    return hashlib.sha256(values.tobytes() + side.places[peer].to_numpy().tobytes()).hexdigest()


def dealer_of(charter: Charter) -> Card:
    """The supervisor's card: it deals, and opens totals. Raises :class:`PeerError`."""
    if charter.key is None or charter.key.opens != "authority":
        raise PeerError("joined sides need a key authority; make its key with: lab keys deal")
    return charter.member(charter.key.by[0]).card
