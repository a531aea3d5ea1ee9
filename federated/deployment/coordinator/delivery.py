"""Delivery of signed messages to nodes and of their replies, over an exchange that may fail.

A message is sent again to a node that reconnected, to any node after a while, and to all when the
exchange was restarted and lost it. It keeps its number, so that a node that gets it twice gives the
same reply, byte for byte.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Message, RecordDict

from federated.deployment import certificates
from federated.deployment.charter import Charter, same
from federated.deployment.coordinator import exchange
from federated.deployment.coordinator.exchange import Settings
from federated.deployment.coordinator.resumable_run import ResumableRun
from federated.deployment.signed_messages import SignedMessage, answering, received
from federated.messages import refusal
from federated.transport.exchange_grid import ExchangeGrid, NodePresence
from federated.transport.node_line import LineError, packed
from lab.audit.log_writer import Log
from lab.errors import PeerError
from secure_agg.identity import Identity

#: Numbers of messages that each attempt of a run has to itself, so that none is used twice.
NUMBERS = 2**32


class Delivery:
    """Writes, carries and reads a run's messages. folder: the exchange's, with its revocations."""

    def __init__(
        self,
        grid: ExchangeGrid,
        folder: Path,
        charter: Charter,
        identity: Identity,
        resumable_run: ResumableRun,
        log: Log,
    ) -> None:
        self._grid, self._folder, self._settings = grid, folder, Settings.read(folder)
        self._charter, self._identity, self._log = charter, identity, log
        self._run, self.last_number = resumable_run.run, resumable_run.attempt * NUMBERS
        self._keys = {
            m.name: certificates.pem(m.flower_key) for m in charter.members if m.flower_key
        }

    def here(self, deadline: float) -> dict[str, NodePresence]:
        """Members whose node is here now and not revoked. Raises :class:`PeerError` where the
        exchange does not answer until the deadline."""
        while True:
            try:
                return self._nodes()
            except LineError as error:
                self._reconnect(error, deadline)

    def _nodes(self) -> dict[str, NodePresence]:
        admissible = exchange.admissible(self._folder)
        online = {presence.key: presence for presence in self._grid.presences() if presence.online}
        return {
            name: online[key]
            for name, key in self._keys.items()
            if key in online and name in admissible
        }

    def _reconnect(self, failure: LineError, deadline: float) -> None:
        """Find the exchange again, which may have been started anew and know nothing of the run."""
        if not failure.lost:
            raise failure
        self._log.append("fault", run=self._run, what=str(failure))
        try:
            if time.monotonic() > deadline:
                raise failure
            self._grid.open_again(deadline)
        except LineError as error:
            raise PeerError(
                f"{error}; serve the exchange with: lab exchange serve {self._folder}. Then start "
                "the run again; it resumes after its last total"
            ) from None

    def messages(self, kind: str, contents: Mapping[str, RecordDict]) -> dict[str, SignedMessage]:
        """The next messages of the run, by recipient: one for all parties with the same content."""
        groups: dict[int, list[str]] = {}
        for name, content in contents.items():
            groups.setdefault(id(content), []).append(name)
        messages = {}
        for names in groups.values():
            self.last_number += 1
            message = SignedMessage(
                self._charter.digest,
                self._run,
                self.last_number,
                self._identity.card.name,
                tuple(names),
                kind,
                packed(contents[names[0]]),
            )
            messages.update(dict.fromkeys(names, message))
        return messages

    def answer(self, name: str, message: SignedMessage, reply: Message) -> RecordDict:
        """What a party's reply holds, if it is the party's answer to this message.

        Raises :class:`PeerError` where it is not, and the refusal where it is one.
        """
        if not reply.has_content():
            raise PeerError(f"{name}: sent a reply without content", name)
        signed_reply = received(reply.content, self._charter.member(name).card)
        same(self._charter.digest, signed_reply.charter, name)
        content = answering(signed_reply, message).content
        if "refusal" in content.config_records:
            error = refusal(content)
            self._log.append(
                "refusal",
                run=self._run,
                query="",
                statistic=message.kind,
                rule=error.rule,
                text=str(error),
                party=name,
            )
            raise error
        return content

    def replies(self, messages: Mapping[str, SignedMessage]) -> dict[str, Message]:
        """Replies by name, of those who answered in time."""
        records = {one.number: one.signed(self._identity) for one in messages.values()}
        deadline = time.monotonic() + self._settings.answer_seconds
        replies: dict[str, Message] = {}
        while True:
            try:
                self._exchange(messages, records, replies, deadline)
                return replies
            except LineError as error:
                self._reconnect(error, deadline)

    def _exchange(
        self,
        messages: Mapping[str, SignedMessage],
        records: Mapping[int, RecordDict],
        replies: dict[str, Message],
        deadline: float,
    ) -> None:
        """Add to the replies, by messages of one Flower run. Raises :class:`LineError`."""
        waiting: dict[str, str] = {}
        attempts: dict[str, tuple[float, str, float]] = {}
        look = 0.0
        while set(replies) < set(messages) and time.monotonic() < deadline:
            if time.monotonic() >= look:
                look, here = time.monotonic() + 1.0, self._nodes()
                admissible = exchange.admissible(self._folder)
                if all(name in replies or name not in admissible for name in messages):
                    break
                due = [
                    name
                    for name in messages
                    if name not in replies and name in here and _due(attempts.get(name), here[name])
                ]
                outgoing = [
                    Message(records[messages[n].number], here[n].node, messages[n].kind)
                    for n in due
                ]
                if outgoing:
                    for name, identity in zip(due, self._grid.push_messages(outgoing), strict=True):
                        wait = (
                            attempts[name][2] * 2
                            if name in attempts
                            else self._settings.again_seconds
                        )
                        waiting[identity] = name
                        attempts[name] = (time.monotonic(), here[name].since, wait)
            for reply in self._grid.pull_messages(list(waiting)) if waiting else ():
                name = waiting.pop(reply.metadata.reply_to_message_id, "")
                if name and reply.has_error():  # the broker's word that the node went away with it
                    attempts.pop(name, None)
                elif name:
                    replies.setdefault(name, reply)
            if not waiting:
                time.sleep(0.05)


def _due(attempt: tuple[float, str, float] | None, presence: NodePresence) -> bool:
    """Whether a message should go out: never sent, to a node that came back since, or long ago."""
    if attempt is None:
        return True
    when, since, wait = attempt
    return presence.since != since or time.monotonic() > when + wait
