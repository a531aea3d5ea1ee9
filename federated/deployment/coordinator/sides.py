"""The coordinator's part among joined sides: it carries letters that it can't read, and learns sizes.

Sides are aligned pair by pair, unless what they have on disk still stands. The supervisor deals what
products need, and opens the totals of their shares.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, RecordDict

from federated.deployment.pairs import Pairs
from federated.hiding.paillier import Opener, Paillier
from federated.hiding.protocol import Talk
from federated.joined.product import is_alone, joined_sum
from federated.joined.protection import INTERRUPTED, Joined, Pair
from federated.joined.sums.factors import JoinedSum, Knowledge, Owner
from federated.message_kinds import MessageKind
from federated.messages import Request, message_of, read
from federated.party.statistics import RELEASED
from federated.transport.connections import ListenerLimits
from lab.errors import ConfigurationError, LabError, PeerError
from lab.sums import Sums
from secure_agg.identity import Roster

MEGABYTE = 2**20
#: Flower sends arrays in pieces of 5 MB; a body that has room for them takes letters of any size.
PIECE_BYTES, MOST_MEGABYTES = 6 * MEGABYTE, 1024
#: How often what a side lost in a restart is begun anew, each time.
BEGUN_ANEW = 3


@dataclass(frozen=True)
class Letters:
    """What the exchange takes of a side at a time. key_bits: of a side's own key for products."""

    limits: ListenerLimits
    key_bits: int

    def check(self, sizes: Mapping[str, int], statistic: str) -> None:
        """Raises :class:`ConfigurationError` for letters that the exchange would not take."""
        body, stored = self.limits.body_bytes, self.limits.stored_bodies
        room = body * (stored if body > PIECE_BYTES else 1)
        name = max(sizes, key=lambda side: sizes[side])
        if sizes[name] <= room:
            return
        least = -(-sizes[name] // (stored * MEGABYTE))
        raise ConfigurationError(
            f"body_megabytes of exchange.toml: the letters of {name} for {statistic} have "
            f"{sizes[name] / MEGABYTE:,.0f} MB, and the exchange takes {room / MEGABYTE:,.0f} MB of a side; set "
            f"{max(least + 1, 6)} or more"
            + ("" if least < MOST_MEGABYTES else f", with more than {stored} stored_bodies")
        )


class RemoteJoined(Joined):
    """Sums of shares among sides that run processes of their own.

    inner: Paillier whose totals the supervisor opens; owner: who holds a column; room: for letters; known:
    what sides know of common rows.
    """

    def __init__(
        self,
        inner: Paillier,
        pairs: Pairs,
        owner: Owner,
        supervisor: str,
        room: Letters,
        *,
        known: Knowledge,
    ) -> None:
        super().__init__(inner, (), owner, pairs.product, pairs.minimum_persons, known)
        self.opener: Opener = inner.opener
        self._sides, self._supervisor, self._room = pairs, supervisor, room

    def enrol(self, talk: Talk, roster: Roster) -> None:
        """Align the sides where they are not aligned, and have the secrets of the run dealt."""
        self.inner.enrol(talk, roster)
        fund = self._sides.fund
        standing = self._standing(talk)
        pairs = []
        for insurer in self._sides.peers(fund):
            ours, theirs = standing[insurer].get(fund), standing[fund].get(insurer)
            rows = ours[1] if ours and ours == theirs else self._align(talk, insurer)
            pairs.append(Pair(insurer, fund, rows))
        self.pairs = tuple(pairs)
        talk.ask(MessageKind.PAIR, self._dealt_secrets(talk))

    def total(self, talk: Talk, request: Request) -> Sums:
        """What may be shown of the total over all joined rows, which the supervisor opens."""
        if request.statistic in RELEASED:
            return self._answer(talk, request)
        if not is_alone(request, self._owner, self._known):
            total = joined_sum(request, self._owner)
            self._room.check(self.letters(request, total, self._room.key_bits), request.statistic)
            self.multiply(talk, request, total)
        return self.inner.total(talk, request)

    def _answer(self, talk: Talk, request: Request) -> Sums:
        """What the supervisor releases of a question, in two sums that it says the arguments of."""
        told = talk.ask(MessageKind.NEXT, {self._supervisor: request.to_record()})
        try:
            arguments = json.loads(read(told[self._supervisor], "arguments"))
            own = replace(request, query=f"{request.query}-kinds", statistic="pair_kinds")
            word = self.total(talk, replace(own, arguments=arguments))
            room = {"kinds": [int(size) for size in word["room"]]}
        except (ValueError, TypeError, KeyError):
            name = self._supervisor
            raise PeerError(f"{name}: does not say what a question is made of", name) from None
        cells = replace(request, query=f"{request.query}-cells", statistic="pair_cells")
        return self.total(talk, replace(cells, arguments=arguments | room))

    def dealt(self, talk: Talk, request: Request, total: JoinedSum, turn: int) -> dict[Pair, bytes]:
        asked = request.to_record()
        asked["turn"] = ConfigRecord({"turn": turn})
        parts = talk.ask(MessageKind.DEAL, {self._supervisor: asked})[self._supervisor]
        return {pair: read(parts, f"dealt {pair.insurer}") for pair in self.pairs}

    def _dealt_secrets(self, talk: Talk) -> dict[str, RecordDict]:
        """For each side what the supervisor sealed to it; nothing where it deals none."""
        if self._sides.product != "triples":
            return {name: RecordDict() for name in self._sides.keys}
        rows = json.dumps({pair.insurer: pair.rows for pair in self.pairs})
        asked = RecordDict({"sizes": ConfigRecord({"rows": rows})})
        answer = talk.ask(MessageKind.DEALER, {self._supervisor: asked})[self._supervisor]
        return {
            name: message_of(
                **{
                    f"dealt {peer}": read(answer, f"{name} with {peer}")
                    for peer in self._sides.peers(name)
                }
            )
            for name in self._sides.keys
        }

    # Alignment.

    def _standing(self, talk: Talk) -> dict[str, dict[str, tuple[str, int]]]:
        """The alignments that stand at each side, by the other."""
        asked = dict.fromkeys(self._sides.keys, RecordDict())
        return {
            name: _alignments(name, a) for name, a in talk.ask(MessageKind.ALIGNED, asked).items()
        }

    def _align(self, talk: Talk, insurer: str) -> int:
        """Align a pair, anew where a side lost its part; the rows of their spine."""
        for attempt in range(BEGUN_ANEW + 1):
            try:
                return self._aligned(talk, insurer, secrets.token_hex(16))
            except LabError as error:
                if error.rule != INTERRUPTED or attempt == BEGUN_ANEW:
                    raise
        raise AssertionError

    def _aligned(self, talk: Talk, insurer: str, session: str) -> int:
        peers, turn = {insurer: self._sides.fund, self._sides.fund: insurer}, 0
        letters: dict[str, dict[str, bytes]] = {name: {} for name in peers}
        while True:
            messages = {}
            for name, peer in peers.items():
                messages[name] = message_of(**letters[name])
                head = {"peer": peer, "session": session, "turn": turn}
                messages[name]["align"] = ConfigRecord(head)
            answers = talk.ask(MessageKind.ALIGN, messages)
            sizes = {name: _size(name, answer) for name, answer in answers.items()}
            if min(sizes.values()) >= 0:
                return _one_size(sizes)
            letters = {
                name: {"letter": read(answers[peer], "letter")} for name, peer in peers.items()
            }
            turn += 1


def _alignments(name: str, answer: RecordDict) -> dict[str, tuple[str, int]]:
    try:
        values = json.loads(str(answer.config_records["aligned"]["standing"]))
        return {str(peer): (str(session), int(size)) for peer, (session, size) in values.items()}
    except (KeyError, ValueError, TypeError, AttributeError):
        raise PeerError(f"{name}: does not say what it is aligned with", name) from None


def _size(name: str, answer: RecordDict) -> int:
    size = answer.config_records.get("aligned", ConfigRecord()).get("size")
    if type(size) is not int:
        raise PeerError(f"{name}: does not say where it is in an alignment", name)
    return size


def _one_size(sizes: Mapping[str, int]) -> int:
    if len(set(sizes.values())) > 1:
        said = " and ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise PeerError(f"{' and '.join(sizes)}: arrived at spines of {said} rows; begin anew")
    return next(iter(sizes.values()))
