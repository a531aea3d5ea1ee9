"""Parties behind a grid, and the only way a solver reaches them: ``federation.sum``."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from pydantic import TypeAdapter

from federated.hiding.protocol import Protection
from federated.message_kinds import MessageKind
from federated.messages import Request, message_of, read, refusal
from federated.party import statistics
from federated.party.state import Released
from lab.errors import PeerError
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.profile import Profile, ProfileCells
from lab.privacy.disclosure import Rules
from lab.privacy.joining import RARE, Opened
from lab.sums import Floats, Sums
from secure_agg.identity import Card, Roster

#: Called once for each sum taken: (statistic, number of sums so far).
Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class Participant:
    """A party as the coordinator knows it."""

    name: str
    node: int
    seat: int
    card: Card


class ModelTotals(Protocol):
    """What a solver needs of a federation: totals of statistics, and nothing of single parties.

    opened: what of the totals is told to others than whoever opens them, noted by who tells it.
    """

    opened: list[Opened]
    least_parties: int  # that every cell stands on which is told

    @property
    def alone(self) -> bool:
        """Whether all rows are one party's, so that nothing is told of them to another."""

    @property
    def openings(self) -> list[Opened]:
        """What others than whoever opens totals have seen of them."""

    @property
    def everybody(self) -> bool:
        """Whether all parties see every total, so that nothing is asked for whose cells may stand
        on few persons."""

    def sum(
        self, statistic: str, arrays: Mapping[str, Floats] | None = None, **arguments: Any
    ) -> Sums:
        """The total of a statistic over all parties."""

    def profile(self, cells: ProfileCells, rules: Rules) -> Profile:
        """What the rules leave of the parties' sums by provider and period."""

    def join(self, profiles: Sequence[Profile]) -> None:
        """Give every party the profiles that features come from."""

    def levels(self, task: Task, features: tuple[Feature, ...]) -> list[tuple[str, ...]]:
        """Names of the levels of each feature that any party holds; numbers in their order."""


class Parties(ModelTotals, Protocol):
    """What questions and protections need besides, wherever the parties run."""

    protection: Protection
    silent: list[tuple[str, str]]
    members: tuple[Participant, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All parties that take part, in seat order."""

    def ask(
        self, action: str, contents: Mapping[str, RecordDict], *, patient: bool = False
    ) -> dict[str, RecordDict]:
        """Send each party its message; the answers by name, in seat order."""

    def agree(self, levels: Mapping[str, Sequence[str]]) -> None:
        """Tell all parties the names of levels by column that they have together."""

    def receipts(self) -> dict[str, list[Released]]:
        """What passed each party's gate so far, as the parties wrote it down."""


class Federation:
    """All parties of a study. Replies are added in seat order whatever order they come in."""

    def __init__(
        self, grid: Grid, protection: Protection, parties: int, progress: Progress | None = None
    ) -> None:
        self.grid, self.protection, self._progress = grid, protection, progress
        self.run, self._sums = secrets.token_hex(8), 0
        self.silent: list[tuple[str, str]] = []  # (party, message) left unanswered
        self.opened = self.openings = list[Opened]()
        self.least_parties = 1
        self.members = self._gather(parties)
        protection.check_parties(parties)
        protection.enrol(self, Roster(tuple(member.card for member in self.members)))

    @property
    def names(self) -> tuple[str, ...]:
        """All parties, in seat order."""
        return tuple(member.name for member in self.members)

    @property
    def everybody(self) -> bool:
        """Whether all parties see every total."""
        return self.protection.everybody

    @property
    def alone(self) -> bool:
        """Whether all rows are one party's, so that nothing is told of them to another."""
        return len(self.members) == 1

    def _gather(self, parties: int, patience: float = 60.0) -> tuple[Participant, ...]:
        """Wait until so many nodes are here, and ask each who it is."""
        deadline = time.monotonic() + patience
        while len(nodes := list(self.grid.get_node_ids())) < parties:
            if time.monotonic() > deadline:
                raise PeerError(
                    f"{len(nodes)} of {parties} nodes connected within {patience:.0f} s"
                )
            time.sleep(0.1)
        members = []
        for node, answer in self._exchange(MessageKind.HELLO, dict.fromkeys(nodes, RecordDict())):
            hello, card = answer.config_records["hello"], Card.from_bytes(read(answer, "card"))
            if card.name != hello["party"]:
                raise PeerError(f"{hello['party']}: shows the card of {card.name}")
            members.append(Participant(card.name, node, int(hello["seat"]), card))
        return tuple(sorted(members, key=lambda member: member.seat))

    def _exchange(
        self, kind: str, contents: Mapping[int, RecordDict], patient: bool = False
    ) -> list[tuple[int, RecordDict]]:
        """(node, answer) in the order of the messages. Raises what the first refusal stands for."""
        messages = [Message(content, node, kind) for node, content in contents.items()]
        replies = {m.metadata.src_node_id: m for m in self.grid.send_and_receive(messages)}
        answers = []
        for node in contents:
            reply = replies.get(node)
            if reply is not None and not reply.has_error():
                if "refusal" in reply.content.config_records:
                    raise refusal(reply.content)
                answers.append((node, reply.content))
            elif patient:
                self.silent.append((self._name(node), kind))
            elif reply is None:
                raise PeerError(f"{self._name(node)}: did not answer")
            else:  # not from our guard: Flower's own text may hold anything
                code = reply.error.code
                raise PeerError(f"{self._name(node)}: failed outside its app, code {code}")
        return answers

    def _name(self, node: int) -> str:
        names = {member.node: member.name for member in getattr(self, "members", ())}
        return str(names.get(node, f"node {node}"))

    def ask(
        self, action: str, contents: Mapping[str, RecordDict], *, patient: bool = False
    ) -> dict[str, RecordDict]:
        """Send each party its message; the answers by name, in seat order.

        With ``patient`` a party that does not answer is left out; else it is an error. Raises the
        typed error of the first party that refuses.
        """
        nodes = {m.node: contents[m.name] for m in self.members if m.name in contents}
        answers = self._exchange(action, nodes, patient)
        return {self._name(node): answer for node, answer in answers}

    def sum(
        self, statistic: str, arrays: Mapping[str, Floats] | None = None, **arguments: Any
    ) -> Sums:
        """The total of a statistic over all parties.

        Raises the typed error of the first party that refuses, :class:`PeerError` for one that
        fails, and what the protection raises when it does not open.
        """
        hiding = self.protection.hiding
        return self.total(
            statistics.request(statistic, arguments, arrays or {}, query="", hiding=hiding)
        )

    def total(self, request: Request) -> Sums:
        """The total that answers a request, asked of all parties; raises as :meth:`sum`."""
        self._sums += 1
        if self._progress:
            self._progress(request.statistic, self._sums)
        query = f"{self.run}-{self._sums}"
        return self.protection.total(self, replace(request, query=query, parties=self.names))

    def profile(self, cells: ProfileCells, rules: Rules) -> Profile:
        """What the rules leave of the parties' sums by provider and period."""
        return Profile.of(cells, self.sum("profile", cells=cells, rules=rules))

    def join(self, profiles: Sequence[Profile]) -> None:
        """Give every party the profiles that features come from."""
        for one in profiles:
            data = one.model_dump_json().encode()
            self.ask(MessageKind.JOIN, dict.fromkeys(self.names, message_of(profile=data)))

    def levels(self, task: Task, features: tuple[Feature, ...]) -> list[tuple[str, ...]]:
        """Names of the levels of each feature that any party holds; numbers in their order."""
        request = levels_request(task, features)
        return merged_levels(
            self.ask(MessageKind.LEVELS, dict.fromkeys(self.names, request)), features
        )

    def agree(self, levels: Mapping[str, Sequence[str]]) -> None:
        """Tell all parties the names of levels by column that they have together."""
        self.ask(MessageKind.AGREED, dict.fromkeys(self.names, agreement(levels)))

    def receipts(self) -> dict[str, list[Released]]:
        """What passed each party's gate so far, as the parties wrote it down."""
        answers = self.ask(
            MessageKind.RECEIPT, dict.fromkeys(self.names, RecordDict()), patient=True
        )
        return {name: receipt_of(name, answer) for name, answer in answers.items()}


def levels_request(task: Task, features: tuple[Feature, ...]) -> RecordDict:
    """What every party is sent when it is asked for the names of its levels."""
    header = ConfigRecord(
        {
            "task": task.model_dump_json(),
            "features": json.dumps([feature.model_dump() for feature in features]),
        }
    )
    return RecordDict({"levels": header})


def agreement(levels: Mapping[str, Sequence[str]]) -> RecordDict:
    """What every party is told of the names of levels that all have together."""
    return message_of(levels=json.dumps(levels, sort_keys=True).encode())


def merged_levels(
    answers: Mapping[str, RecordDict], features: tuple[Feature, ...]
) -> list[tuple[str, ...]]:
    """Names of the levels of each feature that any party holds; numbers in their order.

    Raises :class:`PeerError` that blames the party whose answer is not readable.
    """
    level_sets: list[set[str]] = [set() for _ in features]
    for name, answer in answers.items():
        for level_set, names in zip(
            level_sets, _levels_of(name, answer, len(features)), strict=True
        ):
            level_set.update(names)
    return [tuple(sorted(level_set, key=_in_order)) for level_set in level_sets]


_NAMES, _LINE = TypeAdapter(list[list[str]]), TypeAdapter(Released)


def receipt_of(name: str, answer: RecordDict) -> list[Released]:
    """The receipt in a party's answer. Raises :class:`PeerError` that blames the party."""
    try:
        text = str(answer.config_records["receipt"]["lines"])
        return [_LINE.validate_json(line) for line in text.splitlines()]
    except (KeyError, ValueError):
        raise PeerError(f"{name}: its receipt is not readable", name) from None


def _levels_of(name: str, answer: RecordDict, features: int) -> list[list[str]]:
    try:
        names = _NAMES.validate_json(str(answer.config_records["levels"]["names"]))
        if len(names) != features:
            raise ValueError
        return names
    except (KeyError, ValueError):
        raise PeerError(f"{name}: its names of levels are not readable", name) from None


def _in_order(level: str) -> tuple[int, float, str]:
    """Numbers by value, then texts in alphabetical order; what is rare is last and never the base."""
    try:
        return (0, float(level), level)
    except ValueError:
        return (1 + (level == RARE), 0.0, level)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """One BLAS thread for each node: the work is spread over nodes, and bits stay the same."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), np.errstate(all="warn"):
        yield
