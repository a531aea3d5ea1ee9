"""Parties behind a grid, and the only way a solver reaches them: ``federation.sum``."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from federated.messages import Reply, Request, refusal
from federated.node import Released
from federated.protection import Protection
from lab.errors import PeerError
from lab.features import Feature
from lab.glm import Task
from lab.sums import Floats, Sums

#: Called once for each sum taken: (statistic, number of sums so far).
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Member:
    """A party as the coordinator knows it."""

    name: str
    node: int
    seat: int
    rows: int


class Federation:
    """All parties of a study. Replies are added in seat order whatever order they come in."""

    def __init__(
        self, grid: Grid, protection: Protection, parties: int, progress: Progress | None = None
    ) -> None:
        self.grid, self.protection, self._progress = grid, protection, progress
        self._run, self._asked = secrets.token_hex(8), 0
        self.members = self._gather(parties)
        protection.check_parties(parties)

    def _gather(self, parties: int, patience: float = 60.0) -> tuple[Member, ...]:
        """Wait until so many nodes are here, and ask each who it is."""
        deadline = time.monotonic() + patience
        while len(nodes := list(self.grid.get_node_ids())) < parties:
            if time.monotonic() > deadline:
                raise PeerError(f"{len(nodes)} of {parties} nodes came within {patience:.0f} s")
            time.sleep(0.1)
        members = []
        for reply in self._exchange(RecordDict(), "query.hello", nodes):
            card = reply.content.config_records["hello"]
            members.append(
                Member(
                    name=str(card["party"]),
                    node=reply.metadata.src_node_id,
                    seat=int(card["seat"]),
                    rows=int(card["rows"]),
                )
            )
        return tuple(sorted(members, key=lambda m: m.seat))

    def _exchange(self, content: RecordDict, kind: str, nodes: list[int]) -> list[Message]:
        messages = [Message(content, node, kind) for node in nodes]
        replies = list(self.grid.send_and_receive(messages))
        if len(replies) < len(nodes):
            raise PeerError(f"{len(nodes) - len(replies)} of {len(nodes)} nodes did not answer")
        for reply in replies:
            if reply.has_error():  # not from our guard: Flower's own text may hold anything
                name = self._name(reply.metadata.src_node_id)
                raise PeerError(f"{name}: failed outside its app, code {reply.error.code}")
            if "refusal" in reply.content.config_records:
                raise refusal(reply.content)
        return replies

    def _name(self, node: int) -> str:
        known = {member.node: member.name for member in getattr(self, "members", ())}
        return str(known.get(node, f"node {node}"))

    def sum(
        self, statistic: str, arrays: Mapping[str, Floats] | None = None, **arguments: Any
    ) -> Sums:
        """The total of a statistic over all parties.

        Raises the typed error of the first party that refuses, :class:`PeerError` for one that
        fails, and what the protection raises when it does not open.
        """
        self._asked += 1
        if self._progress:
            self._progress(statistic, self._asked)
        request = Request(
            query=f"{self._run}-{self._asked}",
            statistic=statistic,
            arguments=arguments,
            arrays=arrays or {},
            parties=len(self.members),
            hiding=self.protection.hiding,
            public_key=self.protection.public_key,
        )
        kind = "train" if statistic == "network_update" else "query"
        order = {member.node: member.seat for member in self.members}
        messages = self._exchange(request.to_record(), kind, list(order))
        messages.sort(key=lambda message: order[message.metadata.src_node_id])
        replies = [Reply.from_record(message.content) for message in messages]
        for reply, member in zip(replies, self.members, strict=True):
            if reply.party != member.name:
                raise PeerError(f"{member.name}: answered under the name {reply.party}")
        return self.protection.open(request.query, replies)

    def levels(self, task: Task, features: tuple[Feature, ...]) -> list[tuple[str, ...]]:
        """Names of the levels of each feature that any party holds; numbers in their order."""
        asked = ConfigRecord(
            {
                "task": task.model_dump_json(),
                "features": json.dumps([feature.model_dump() for feature in features]),
            }
        )
        nodes = [member.node for member in self.members]
        replies = self._exchange(RecordDict({"levels": asked}), "query.levels", nodes)
        heard: list[set[str]] = [set() for _ in features]
        for reply in replies:
            names = json.loads(str(reply.content.config_records["levels"]["names"]))
            for known, added in zip(heard, names, strict=True):
                known.update(str(name) for name in added)
        return [tuple(sorted(names, key=_in_order)) for names in heard]

    def receipts(self) -> dict[str, list[Released]]:
        """What passed each party's gate so far, as the parties wrote it down."""
        replies = self._exchange(RecordDict(), "query.receipt", [m.node for m in self.members])
        lines = {
            self._name(reply.metadata.src_node_id): [
                json.loads(line)
                for line in str(reply.content.config_records["receipt"]["lines"]).splitlines()
            ]
            for reply in replies
        }
        return {m.name: [Released(**line) for line in lines[m.name]] for m in self.members}


def _in_order(level: str) -> tuple[bool, float, str]:
    """Numbers by value, then texts by letter."""
    try:
        return (False, float(level), level)
    except ValueError:
        return (True, 0.0, level)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """One BLAS thread for each node: the work is spread over nodes, and bits stay the same."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), np.errstate(all="warn"):
        yield
