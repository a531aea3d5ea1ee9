"""How much one node may have stored at the exchange that nobody has fetched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field

#: A node's limit, in largest bodies. A reply's parts are pushed one by one, each in a body, and the
#: coordinator fetches a reply as soon as it is whole: this leaves room for one of several parts.
STORED_BODIES = 4
#: Bytes that an object takes beside its content: its entry, its identity, its place in a run.
OBJECT_BYTES = 1024
#: Pushes after which what was fetched is forgotten, so that accounts do not grow with a run.
PUSHES_A_CLEARANCE = 256


class QuotaExceeded(Exception):
    """A node's push would bring what is stored for it above its limit."""


@dataclass
class _Account:
    """What a node pushed: bytes by object, by root of a tree, in all; pushes since a clearance."""

    objects: dict[str, int] = field(default_factory=dict)
    trees: dict[str, int] = field(default_factory=dict)
    total: int = 0
    pushes: int = 0

    def clear(self, store: Container[str]) -> None:
        """Forget what the store holds no more, because it was fetched or its run ended."""
        self.objects = {i: size for i, size in self.objects.items() if i in store}
        self.trees = {i: size for i, size in self.trees.items() if i in store}
        self.total = sum(self.objects.values()) + sum(self.trees.values())
        self.pushes = 0


class ReplyQuota:
    """Counts what each node has pushed, and forgets what the store no longer holds.

    limit: bytes of one node. The store is Flower's, which says what is there, but not whose it is.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._accounts: defaultdict[int, _Account] = defaultdict(_Account)

    def check(self, node: int, size: int, store: Container[str], identity: str = "") -> None:
        """Let a push of this many bytes pass. Raises :class:`QuotaExceeded`.

        identity: of the object that is pushed; it takes the place of what was counted under its name.
        """
        account = self._accounts[node]
        account.pushes += 1
        if account.total + size > self._limit or account.pushes >= PUSHES_A_CLEARANCE:
            account.clear(store)
        if account.total - account.objects.get(identity, 0) + size > self._limit:
            raise QuotaExceeded(
                f"{account.total} bytes of this node's replies are stored and were not fetched; "
                f"{size} more would exceed the limit of {self._limit}"
            )

    def add_object(self, node: int, identity: str, size: int) -> None:
        """Count an object that was stored; the store holds one of a name. size: bytes."""
        account = self._accounts[node]
        account.total += size - account.objects.get(identity, 0)
        account.objects[identity] = size

    def add_tree(self, node: int, root: str, size: int) -> None:
        """Count a message and the entries of its tree, which add up under one root. size: bytes."""
        account = self._accounts[node]
        account.total += size
        account.trees[root] = account.trees.get(root, 0) + size
