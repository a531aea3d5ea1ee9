"""What a node must not forget between messages, kept where Flower keeps a node's state.

Its secret identity, the roster and the keys it was enrolled with, which it never changes, the
queries it answered, and the receipt of what passed its gate.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

from flwr.app import ConfigRecord, Context
from gmpy2 import mpz

from federated.messages import Hiding, Request
from federated.party.binding import Standing
from lab.errors import PeerError, PolicyError
from secure_agg.identity import SEED_BYTES, Identity, Roster
from secure_agg.keys import PublicKey
from secure_agg.shares import KeyShare, SplitKey, open_share
from secure_agg.transcript import FEWEST

#: A refusal says something about the rows; an honest study ends at the first.
MOST_REFUSALS = 3


@dataclass(frozen=True)
class Released:
    """One line of the receipt: what passed the gate."""

    query: str
    statistic: str
    hiding: str
    arrays: int
    values: int
    bytes: int
    rows: int
    key_bits: int
    epsilon: float = 0.0
    delta: float = 0.0


class NodeState:
    """A view of one node's state; two views of the same context are the same memory."""

    def __init__(self, context: Context, name: str, hiding: Hiding) -> None:
        self._name, self._hiding = name, hiding
        # Not context.state.config_records, which copies all of them for every message.
        self._records = cast(MutableMapping[str, ConfigRecord], context.state)
        self.seat = int(context.node_config["partition-id"])
        self.minimum_parties = int(context.node_config.get("minimum-parties", 0))

    def allow(self, hiding: Hiding) -> None:
        """Raises :class:`PolicyError` unless this node hides its sums in this way."""
        if hiding != self._hiding:
            raise PolicyError(f"this party answers '{self._hiding}' alone, not '{hiding}'")

    def refuse(self) -> None:
        """Count a refusal: each can tell one bit of the rows, so there are few."""
        count = int.from_bytes(self._get("refused", "count"), "big") + 1
        self._set("refused", count=count.to_bytes(4, "big"))

    def check_refusals(self) -> None:
        """Raises :class:`PolicyError` if this node has refused too often to answer any more."""
        refused = int.from_bytes(self._get("refused", "count"), "big")
        if self._hiding != "clear" and refused >= MOST_REFUSALS:
            raise PolicyError(f"this party has refused {refused} times and answers no more")

    def identity(self) -> Identity:
        """This node's keys, made when first asked for."""
        seed = self._get("identity", "seed") or secrets.token_bytes(SEED_BYTES)
        self._set("identity", seed=seed)
        return Identity(self._name, seed)

    def enrol(
        self, roster: bytes, key: bytes, split: bytes, sealed_share: bytes, *, fewest: int = FEWEST
    ) -> None:
        """Take up the roster and the keys, once and for all this state is kept.

        key: the Paillier modulus, or nothing; split, sealed_share: a split key and this node's
        share of it, or nothing; fewest: parties that hide each other. Raises :class:`PolicyError` for a
        second, different enrolment.
        """
        values = {"roster": roster, "key": key, "split": split, "sealed": sealed_share}
        if former := self._get("enrolled", "roster"):
            if former != roster or any(self._get("enrolled", k) != v for k, v in values.items()):
                raise PolicyError(
                    "this node is enrolled under another roster or key, and keeps those"
                )
            return
        members = _roster(roster)
        if len(members.cards) < fewest:
            raise PolicyError(
                f"a roster of {len(members.cards)} parties hides nobody, at least {fewest} do"
            )
        if key:
            _public(key)
        own = self.identity()
        if self._name not in members or members[self._name] != own.card:
            raise PolicyError("the roster does not carry this node's own keys")
        if split:
            public_part = SplitKey.from_bytes(split)
            if public_part.public != _public(key):
                raise PolicyError("the split key is not the key this node encrypts to")
            share = open_share(own, public_part, sealed_share)
            self._set("share", exponent=int(share.exponent).to_bytes(len(key), "big"))
        self._set("enrolled", **values)

    def roster(self) -> Roster:
        """All parties. Raises :class:`PolicyError` before enrolment."""
        cards = self._get("enrolled", "roster")
        if not cards:
            raise PolicyError("this node is not enrolled; nothing can be hidden without a roster")
        return _roster(cards)

    def pair(self, roster: bytes, dealt: Mapping[str, bytes]) -> None:
        """Take up the other sides of joined pairs, and what a dealer gave for products with each."""
        own = _roster(roster)
        if self._name not in own or own[self._name] != self.identity().card:
            raise PolicyError("the roster does not carry this node's own keys")
        self._set("paired", roster=roster, **{f"dealt {peer}": d for peer, d in dealt.items()})

    def paired(self) -> Roster:
        """All sides. Raises :class:`PolicyError` before they are known."""
        cards = self._get("paired", "roster")
        if not cards:
            raise PolicyError("this node was told of no other side")
        return _roster(cards)

    def dealt(self, peer: str) -> bytes:
        """What a dealer gave for products with another side; nothing where none deals."""
        return self._get("paired", f"dealt {peer}")

    def begin_product(self, query: str) -> None:
        """Note a product before its first letter leaves: what was dealt for it is used once.

        Raises :class:`PolicyError` for one that was begun before."""
        if query in self._listed("products"):
            raise PolicyError("this product was begun before; ask for it under another name")
        self._listed("products")[query] = True

    def allow_parties(self, parties: tuple[str, ...]) -> None:
        """Raises :class:`PolicyError` unless a sum may be over these parties.

        In a simulation it is over all parties of the roster, or none. Where the parties agreed on a
        minimum, a run may go on without a party that is gone, and never take one back: two sums of
        one question that differ by a party show that party.
        """
        names, least = self.roster().names, self.minimum_parties
        if not least:
            if parties != names:
                raise PolicyError("a sum is over all parties of the roster, or none")
            return
        if parties != tuple(name for name in names if name in set(parties)):
            raise PolicyError("a sum is over parties of the roster, in its order")
        if len(parties) < least:
            raise PolicyError(f"a sum has at least {least} parties here, not {len(parties)}")
        before = self._get("behind", "parties").decode()
        if before and not set(parties) <= set(before.split("\n")):
            raise PolicyError("a party that left this run does not come back into its sums")
        self._set("behind", parties="\n".join(parties).encode())

    def public_key(self) -> PublicKey:
        """The key this node encrypts to, whoever asks. Raises :class:`PolicyError`."""
        key = self._get("enrolled", "key")
        if not key:
            raise PolicyError("this node was enrolled without a Paillier key")
        return _public(key)

    def key_share(self) -> KeyShare:
        """This node's share of the key. Raises :class:`PolicyError` if it holds none."""
        exponent = self._get("share", "exponent")
        if not exponent:
            raise PolicyError("this node holds no share of the key")
        return _share(self._get("enrolled", "split"), self._name, exponent)

    def answered(self) -> frozenset[str]:
        """Queries this node gave a part for, or took part in under masks."""
        return frozenset(self._listed("answered"))

    def answer(self, query: str) -> None:
        """Note a query as answered; it must be noted before the answer leaves."""
        if query in self._listed("answered"):
            raise PeerError(f"coordinator: query {query} was answered before and is replayed")
        self._listed("answered")[query] = True

    def keep(self, name: str, data: bytes) -> None:
        """Keep the state of a protocol between its steps."""
        self._set(name, data=data)

    def kept(self, name: str) -> bytes:
        """The state of a protocol. Raises :class:`PeerError` if there is none."""
        data = self._get(name, "data")
        if not data:
            raise PeerError("coordinator: a step of a protocol that was not begun here")
        return data

    def standing(self) -> Standing:
        """Where this node stands in its plan."""
        number = int.from_bytes(self._get("step", "number"), "big")
        levels = self._get("levels", "agreed").decode() or "{}"
        return Standing(number, self._get("step", "question"), levels)

    def note_step(self, request: Request) -> None:
        """Note the step that is answered now."""
        number = request.step.to_bytes(8, "big")
        self._set("step", number=number, question=request.question)

    def announce(self, names: Mapping[str, Sequence[str]]) -> None:
        """Note the names of levels by column that this node made known."""
        earlier = json.loads(self._get("levels", "announced") or b"{}")
        self._set("levels", announced=json.dumps(earlier | dict(names)).encode())

    def agree(self, levels: str) -> None:
        """Take up the names of levels that all parties have together, once.

        Raises :class:`PeerError` where a name that this node made known was left out, which would
        leave out its rows.
        """
        data = self._get("levels", "announced") or b"{}"
        own, together = json.loads(data), json.loads(levels)
        if self._get("levels", "agreed") not in (b"", levels.encode()):
            raise PeerError("coordinator: other names of levels were agreed on before")
        if own.keys() != together.keys():
            raise PeerError("coordinator: agrees on levels of other columns than were announced")
        if any(not set(names) <= set(together[column]) for column, names in own.items()):
            raise PeerError("coordinator: leaves out a level that this party has")
        self._set("levels", announced=data, agreed=levels.encode())

    def keep_profile(self, digest: str, data: bytes) -> None:
        """Keep a released profile."""
        self._listed("profiles")[digest] = data

    def profiles(self) -> list[tuple[str, bytes]]:
        """Profiles kept, by digest."""
        return [(d, v) for d, v in self._listed("profiles").items() if isinstance(v, bytes)]

    def keep_tree(self, chain: str, data: str) -> None:
        """Keep a finished tree, under the digest of all trees up to it."""
        self._listed("trees")[chain] = data

    def trees(self) -> Mapping[str, object]:
        """Trees kept, as text, by digest."""
        kept: Mapping[str, object] = self._listed("trees")
        return kept

    def keep_told(self, cut: str, bits: bytes) -> None:
        """Keep a cut on a column of the fund, and the bits that it told of persons."""
        self._listed("told")[cut] = bits

    def told(self) -> list[tuple[str, bytes]]:
        """Cuts kept, with their bits."""
        return [(cut, v) for cut, v in self._listed("told").items() if isinstance(v, bytes)]

    def remember(self, query: str, statistic: str) -> None:
        """Note what a query was about, before its answer leaves: a name stands for one statistic,
        or what is released by rules could be opened as what is not. Raises :class:`PeerError`."""
        statistics = self._listed("asked")
        if statistics.get(query, statistic) != statistic:
            raise PeerError(f"coordinator: query {query} was about another statistic before")
        statistics[query] = statistic

    def asked(self, query: str) -> str:
        """The statistic a query was about. Raises :class:`PeerError` for one not answered here."""
        statistics = self._listed("asked")
        if query not in statistics:
            raise PeerError(f"coordinator: query {query} was not answered here; nothing to open")
        return str(statistics[query])

    def note(self, released: Released) -> None:
        """Write a line of the receipt."""
        lines = f"{self.receipt()}{json.dumps(vars(released))}\n"
        self._listed("receipt")["lines"] = lines

    def receipt(self) -> str:
        """What passed the gate so far, one JSON object to a line."""
        return str(self._listed("receipt").get("lines", ""))

    def _listed(self, name: str) -> ConfigRecord:
        """A record that grows by queries; written in place, for it is written often."""
        if name not in self._records:
            self._records[name] = ConfigRecord()
        return self._records[name]

    def _get(self, record: str, key: str) -> bytes:
        value = self._records[record].get(key, b"") if record in self._records else b""
        assert isinstance(value, bytes)
        return value

    def _set(self, record: str, **values: bytes) -> None:
        self._records[record] = ConfigRecord(dict(values))


@lru_cache(4)
def _roster(cards: bytes) -> Roster:
    """A roster; its keys are checked once, not with every message."""
    return Roster.from_bytes(cards)


@lru_cache(4)
def _public(modulus: bytes) -> PublicKey:
    """A public key; its checks take a while and are made once."""
    return PublicKey(mpz.from_bytes(modulus, "big"))


@lru_cache(64)
def _share(split: bytes, holder: str, exponent: bytes) -> KeyShare:
    """A key share, checked against its image once."""
    return KeyShare(SplitKey.from_bytes(split), holder, mpz.from_bytes(exponent, "big"))
