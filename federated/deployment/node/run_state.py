"""A node's state of one run, on disk before a reply leaves: one file for each run.

It holds the app's state, the announced study, and the last replies with the messages they answer,
so that a message that arrives twice gets the same bytes and is not computed twice. A damaged file is
not used: a node that lost its replies must not answer in that run any more.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import RecordDict

from federated.transport.node_line import packed, unpacked
from lab.errors import ConfigurationError, LogError, PeerError
from lab.files import write_whole
from secure_agg import wire
from secure_agg.errors import MalformedMessage

STATE = b"LABSTA01"
#: Answers kept of a run; messages come one after the other, so that the last would do.
ANSWERS_KEPT = 4
RUN = re.compile(r"[0-9a-f]{16}")


@dataclass
class RunState:
    """One run at a node. answers: number of a message -> (digest of it, the reply's records)."""

    run: str
    study: str = ""
    records: RecordDict = field(default_factory=RecordDict)
    answers: dict[int, tuple[str, RecordDict]] = field(default_factory=dict)
    last: int = -1

    def before(self, number: int, digest: str) -> RecordDict | None:
        """The reply that this message already got. Raises :class:`PeerError` for a replay."""
        entry = self.answers.get(number)
        if entry is not None and entry[0] == digest:
            return entry[1]
        if number <= self.last:
            raise PeerError("coordinator: replays a message of an earlier round")
        return None

    def answer(self, number: int, digest: str, reply: RecordDict) -> None:
        """Note a reply."""
        self.answers[number], self.last = (digest, reply), number
        for old in sorted(self.answers)[:-ANSWERS_KEPT]:
            del self.answers[old]

    def save(self, folder: Path, secret_records: tuple[str, ...]) -> None:
        """Write it, on disk when this returns; secrets that stand elsewhere are left out.

        Raises :class:`~lab.errors.LogError` where it can't be written.
        """
        secret = {n: r for n, r in self.records.items() if n in secret_records}
        for name in secret:
            del self.records[name]
        try:
            parts = [self.run.encode(), self.study.encode(), packed(self.records)]
            parts.append(str(self.last).encode())
            for number, (digest, reply) in self.answers.items():
                parts += [str(number).encode(), digest.encode(), packed(reply)]
        finally:
            self.records.update(secret)
        data = wire.join(STATE, parts)
        try:
            write_whole(_path(folder, self.run), hashlib.sha256(data).digest() + data, 0o600)
        except ConfigurationError as error:
            raise LogError(
                f"{error}; nothing leaves this party until the file can be written"
            ) from None


def load(folder: Path, run: str) -> RunState:
    """A run's state; a new one if the node does not know the run. Raises :class:`PeerError`."""
    if not RUN.fullmatch(run):
        raise PeerError("coordinator: a run's identifier must be 16 hexadecimal digits")
    path = _path(folder, run)
    if not path.exists():
        return RunState(run)
    damage = PeerError(
        f"this party's state of run {run} is damaged; it answers no more in this run"
    )
    try:
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise damage
        name, study, records, last, *rest = wire.split(STATE, content[32:], 4, wire.MOST_PARTS)
        if name.decode() != run or len(rest) % 3:
            raise damage
        run_state = RunState(run, study.decode(), unpacked(records), {}, int(last))
        for number, digest, reply in zip(*[iter(rest)] * 3, strict=True):
            run_state.answers[int(number)] = (digest.decode(), unpacked(reply))
        return run_state
    except (OSError, MalformedMessage, ValueError):
        raise damage from None


def _path(folder: Path, run: str) -> Path:
    return folder / f"{run}.state"
