"""The coordinator's delivery: signed messages to nodes, and answers, over an exchange that may break.

A message goes out again to a node that came back, after a while to any, and to all where the
exchange was started again and forgot it: under its number, so that whoever gets it twice gives
the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Message, RecordDict

from federated.deployment import certificates
from federated.deployment.charter import Charter
from federated.deployment.coordinator import exchange
from federated.deployment.coordinator.exchange import Settings
from federated.deployment.signed_messages import SignedMessage
from federated.transport.exchange_grid import ExchangeGrid, NodePresence
from federated.transport.node_line import LineError
from lab.audit.log_writer import Log
from lab.errors import PeerError
from secure_agg.identity import Identity


class Delivery:
    """Carries a run's messages. folder: the exchange's, which says who is revoked."""

    def __init__(
        self,
        grid: ExchangeGrid,
        folder: Path,
        charter: Charter,
        identity: Identity,
        run: str,
        log: Log,
    ) -> None:
        self._grid, self._folder, self._settings = grid, folder, Settings.read(folder)
        self._identity, self._run, self._log = identity, run, log
        self._keys = {
            m.name: certificates.pem(m.flower_key) for m in charter.members if m.flower_key
        }

    def here(self, deadline: float) -> dict[str, NodePresence]:
        """Members whose node is here now and not revoked. Raises :class:`PeerError` where the
        exchange does not answer until the deadline."""
        while True:
            try:
                return self._nodes()
            except LineError as lost:
                self._anew(lost, deadline)

    def _nodes(self) -> dict[str, NodePresence]:
        gone = exchange.revoked(self._folder)
        here = {seen.key: seen for seen in self._grid.seen() if seen.online}
        return {
            name: here[key] for name, key in self._keys.items() if key in here and name not in gone
        }

    def _anew(self, lost: LineError, deadline: float) -> None:
        """Find the exchange again, which may have been started anew and know nothing of the run."""
        if not lost.lost:
            raise lost
        self._log.append("fault", run=self._run, what=str(lost))
        try:
            if time.monotonic() > deadline:
                raise lost
            self._grid.open_again(deadline)
        except LineError as error:
            raise PeerError(
                f"{error}; serve it with: lab exchange serve {self._folder}. The run goes on from "
                "its last total when it is started again"
            ) from None

    def exchanged(self, letters: Mapping[str, SignedMessage]) -> dict[str, Message]:
        """Replies by name, of those who answered in time."""
        signed = {one.number: one.signed(self._identity) for one in letters.values()}
        deadline = time.monotonic() + self._settings.answer_seconds
        heard: dict[str, Message] = {}
        while True:
            try:
                self._exchange(letters, signed, heard, deadline)
                return heard
            except LineError as lost:
                self._anew(lost, deadline)

    def _exchange(
        self,
        letters: Mapping[str, SignedMessage],
        signed: Mapping[int, RecordDict],
        heard: dict[str, Message],
        deadline: float,
    ) -> None:
        """Add to what was heard, by messages of one Flower run. Raises :class:`LineError`."""
        waiting: dict[str, str] = {}
        sent: dict[str, tuple[float, str, float]] = {}
        look = 0.0
        while set(heard) < set(letters) and time.monotonic() < deadline:
            if time.monotonic() >= look:
                look, here = time.monotonic() + 1.0, self._nodes()
                gone = exchange.revoked(self._folder)
                if all(name in heard or name in gone for name in letters):
                    break
                due = [
                    name
                    for name in letters
                    if name not in heard and name in here and _due(sent.get(name), here[name])
                ]
                messages = [
                    Message(signed[letters[n].number], here[n].node, letters[n].kind) for n in due
                ]
                if messages:
                    for name, identity in zip(due, self._grid.push_messages(messages), strict=True):
                        wait = sent[name][2] * 2 if name in sent else self._settings.again_seconds
                        waiting[identity] = name
                        sent[name] = (time.monotonic(), here[name].since, wait)
            for reply in self._grid.pull_messages(list(waiting)) if waiting else ():
                name = waiting.pop(reply.metadata.reply_to_message_id, "")
                if name and reply.has_error():  # the broker's word that the node went away with it
                    sent.pop(name, None)
                elif name:
                    heard.setdefault(name, reply)
            if not waiting:
                time.sleep(0.05)


def _due(sent: tuple[float, str, float] | None, seen: NodePresence) -> bool:
    """Whether a message should go out: never sent, to a node that came back since, or long ago."""
    if sent is None:
        return True
    when, since, wait = sent
    return seen.since != since or time.monotonic() > when + wait
