"""How contributions are hidden: all roles of each way in one place.

Three roles. A *node* seals its sums. The *coordinator* adds what it cannot read. The *key
authority* opens a total, and only a total: it adds the contributions again itself, counts the
parties and answers each query once. The clear way is there for arms of one party and for
comparison, and says its name in every receipt.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

import numpy as np

from federated.messages import Hiding, Reply, Request
from lab.errors import PeerError, PolicyError
from lab.sums import Floats, Limit, Sums, combine
from secure_agg import packing, paillier
from secure_agg.keys import PrivateKey, PublicKey, generate

#: With two contributors the total minus one's own is the other's secret.
MINIMUM_PARTIES = 3

Form = Mapping[str, tuple[tuple[int, ...], Limit]]


def layout_of(form: Form, parties: int, key_bits: int) -> packing.Layout:
    """The public packing of a reply's form; the same for every party."""
    fields = tuple(
        packing.Field(int(np.prod(shape)), limit.bound, limit.resolution)
        for shape, limit in form.values()
    )
    return packing.Layout(fields, parties, key_bits)


def seal(sums: Sums, request: Request, workers: int) -> bytes | None:
    """The node's step: its sums as ciphertexts, or None where the request says ``clear``."""
    if request.hiding == "clear":
        return None
    if request.parties < MINIMUM_PARTIES:
        raise PolicyError(
            f"a sum of {request.parties} parties hides nobody; at least {MINIMUM_PARTIES} are needed"
        )
    key = _checked_key(request.public_key)
    form = {name: (sums[name].shape, sums.limits[name]) for name in sorted(sums.arrays)}
    layout = layout_of(form, request.parties, key.bits)
    batch = paillier.encrypt(
        key, layout, [sums[n].ravel() for n in form], workers=workers, series=True
    )
    return batch.to_bytes()


@lru_cache(4)
def _checked_key(modulus: str) -> PublicKey:
    """The public key of a request; its checks take a while and are made once."""
    try:
        return PublicKey(int(modulus, 16))
    except ValueError:
        raise PeerError("request: the public key is not a hexadecimal number") from None


class Protection(Protocol):
    """The coordinator's side of a way of hiding."""

    hiding: Hiding
    public_key: str  # in hexadecimal, "" where there is none

    def check_parties(self, parties: int) -> None:
        """Refuse a federation too small for this way."""

    def open(self, query: str, replies: list[Reply]) -> Sums:
        """The total over the replies."""


class Clear:
    """No hiding: the coordinator reads every contribution."""

    hiding: Hiding = "clear"
    public_key = ""

    def check_parties(self, parties: int) -> None:
        return

    def open(self, query: str, replies: list[Reply]) -> Sums:
        parts = []
        for reply in replies:
            if reply.clear is None:
                raise PeerError(f"{reply.party}: answered sealed where clear was asked")
            limits = {name: limit for name, (_, limit) in reply.form.items()}
            parts.append(Sums(reply.clear, limits, reply.rows))
        return combine(parts)


class KeyAuthority:
    """Holds the Paillier key, is not the coordinator, and opens only sums of enough parties."""

    def __init__(self, private: PrivateKey) -> None:
        self._private = private
        self._answered: set[str] = set()

    @classmethod
    def with_new_key(cls, bits: int) -> KeyAuthority:
        return cls(generate(bits))

    @property
    def public(self) -> PublicKey:
        return self._private.public

    def open(
        self, query: str, contributions: Mapping[str, paillier.Batch], total: paillier.Batch
    ) -> list[Floats]:
        """The arrays of the total.

        Raises :class:`PolicyError` for fewer than three parties, for a query already answered,
        and for a total that is not the sum of the contributions shown.
        """
        if len(contributions) < MINIMUM_PARTIES:
            raise PolicyError(
                f"key authority: {len(contributions)} contributions, at least "
                f"{MINIMUM_PARTIES} parties must stand behind a sum"
            )
        if query in self._answered:
            raise PolicyError(f"key authority: query {query} was answered before")
        own = paillier.add(self.public, list(contributions.values()))
        if own.to_bytes() != total.to_bytes():
            raise PolicyError(
                "key authority: the total is not the sum of the contributions; "
                "the coordinator changed it"
            )
        self._answered.add(query)
        return paillier.decrypt(self._private, own)


class Paillier:
    """Contributions encrypted to the key authority's public key."""

    hiding: Hiding = "paillier"

    def __init__(self, authority: KeyAuthority) -> None:
        self._authority = authority
        self.public_key = f"{authority.public.n:x}"

    def check_parties(self, parties: int) -> None:
        if parties < MINIMUM_PARTIES:
            raise PolicyError(
                f"protection.sums = 'paillier' needs at least {MINIMUM_PARTIES} parties, got "
                f"{parties}: with two, the total minus one's own is the other's secret"
            )

    def open(self, query: str, replies: list[Reply]) -> Sums:
        public, form = self._authority.public, replies[0].form
        layout = layout_of(form, len(replies), public.bits)
        batches: dict[str, paillier.Batch] = {}
        for reply in replies:
            if reply.sealed is None:
                raise PeerError(f"{reply.party}: answered in the clear where sealed was asked")
            if reply.form != form:
                raise PeerError(f"{reply.party}: sums of another form than {replies[0].party}'s")
            if reply.party in batches:
                raise PeerError(f"{reply.party}: contributed twice")
            batches[reply.party] = paillier.Batch.from_bytes(reply.sealed, public, layout)
        total = paillier.add(public, list(batches.values()))
        opened = self._authority.open(query, batches, total)
        arrays = {
            name: array.reshape(shape)
            for (name, (shape, _)), array in zip(form.items(), opened, strict=True)
        }
        limits = {name: limit for name, (_, limit) in form.items()}
        return Sums(arrays, limits, sum(reply.rows for reply in replies))
