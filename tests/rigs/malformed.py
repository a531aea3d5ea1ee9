"""A party that encrypts and signs what no honest one packs: the coordinator can't see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from federated.deployment.node.process import Node
from federated.hiding import paillier
from secure_agg.identity import Identity
from secure_agg.keys import PublicKey
from secure_agg.packing import Layout
from secure_agg.paillier import Batch
from secure_agg.transcript import Contribution, Terms, contribute

#: What is added to a party's first plaintext, by how it leaves the layout.
CHANGES: dict[str, Callable[[Layout], int]] = {
    "another count inside": lambda layout: 1,
    "a slot beyond its bound": lambda layout: 4 * layout.fields[0].limit << layout.count_bits,
    "bits outside every slot": lambda layout: 1 << layout.plaintext_bits - 1,
}


def malformed(batch: Batch, public: PublicKey, change: str) -> Batch:
    """A batch whose first plaintext is changed so."""
    first, *others = batch.ciphertexts
    added = 1 + public.n * CHANGES[change](batch.layout)
    return replace(batch, ciphertexts=(first * added % public.n_squared, *others))


@dataclass(frozen=True)
class LeavesTheLayout:
    """Contributes like `contribute`, but for one party, whose batch is malformed."""

    party: str
    public: PublicKey
    change: str = "another count inside"

    def __call__(self, identity: Identity, terms: Terms, data: bytes) -> Contribution:
        if identity.card.name == self.party:
            batch = Batch.from_bytes(data, self.public, terms.layout)
            data = malformed(batch, self.public, self.change).to_bytes()
        return contribute(identity, terms, data)


@dataclass(frozen=True)
class Sabotaged:
    """A node that contributes so."""

    contribution: LeavesTheLayout

    def __call__(self, node: Node) -> None:
        paillier.contribute = self.contribution
