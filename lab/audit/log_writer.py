"""A party's log on disk, open for writing. `lab.audit.log_format` says what its lines prove."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from lab.audit.log_format import (
    KINDS,
    LINE_OF_RUN,
    LONGEST_LINE,
    Check,
    Checkpoint,
    Entry,
    chained,
    entries,
    head_file,
    known_head,
    read_lines,
    verify,
)
from lab.errors import ConfigurationError, LogError
from lab.files import canonical, sync_folder, write_whole

#: Lines between two checkpoints at most.
EVERY = 64
CLOSED = "it is closed"

Sign = Callable[[bytes], bytes]
Clock = Callable[[], datetime]


def _now() -> datetime:
    return datetime.now(UTC)


class Log:
    """A party's log, open for writing by this process alone; everything that is there is verified.

    path: made with mode 0600 if there is none; key: the party's Ed25519 public key, 32 bytes; sign:
    its signature over a message; check: see `Check`; charter: digest of the charter in force;
    version: of the software. Raises :class:`LogError` if another process writes it, if it does not
    hold together, or was cut back. A last line torn by a power loss is set aside in a file of its
    own and told in a line of kind ``fault``.
    """

    def __init__(
        self,
        path: Path,
        party: str,
        key: bytes,
        sign: Sign,
        check: Check,
        *,
        charter: str = "",
        version: str = "",
        every: int = EVERY,
        clock: Clock = _now,
    ) -> None:
        self.path, self.party, self.charter = path, party, charter
        self._sign, self._every, self._clock = sign, every, clock
        self._turn = threading.RLock()
        self._broken = ""
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            sync_folder(path.parent)
        except OSError as error:
            raise LogError(f"{path}: the log cannot be opened: {error.strerror}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            torn = self._take_up(key, check)
            self.append("start", party=party, key=key.hex(), version=version)
            if torn:
                self.append("fault", **torn)
        except BlockingIOError:
            os.close(self._file)
            raise LogError(f"{path}: another process writes this log; stop it first") from None
        except BaseException:
            os.close(self._file)
            raise

    def _take_up(self, key: bytes, check: Check) -> dict[str, Any]:
        """Go on where the file ends; returns what to tell of a torn last line, if there is one."""
        verdict = verify(read_lines(self.path), check, key=key, checkpoints=known_head(self.path))
        if verdict.fault and not verdict.torn:
            raise LogError(
                f"{self.path}: {verdict.fault}; nothing leaves without a log that holds together: "
                "look into it, move it away with its head file, and start a new one"
            )
        if verdict.lines and verdict.party != self.party:
            raise LogError(f"{self.path}: is the log of {verdict.party}, not of {self.party}")
        self._seq, self._chain, self._unsigned = verdict.lines, verdict.chain, verdict.unsigned
        self._lines_of_run = Counter(e.run for e in entries(read_lines(self.path)) if e.run)
        self._size = os.fstat(self._file).st_size - len(verdict.torn)
        if not verdict.torn:
            return {}
        sha = hashlib.sha256(verdict.torn).hexdigest()
        aside = self.path.with_name(f"{self.path.stem}.torn-{verdict.lines + 1}-{sha[:8]}")
        write_whole(aside, verdict.torn, 0o600)
        os.ftruncate(self._file, self._size)
        os.fsync(self._file)
        what = f"line {verdict.lines + 1} was cut off in the middle and is kept in {aside.name}"
        return {"what": what, "bytes": len(verdict.torn), "sha256": sha}

    def append(self, kind: str, /, *, run: str = "", query: str = "", **details: Any) -> Entry:
        """Write a line, on disk when this returns.

        kind: one of `KINDS`, with what it tells at least. A line of a run is numbered within it, so
        that an extract that hides one is found out. Raises :class:`LogError` if the line is not
        known to be on disk: then nothing it tells of may happen.
        """
        lacking = [name for name in KINDS.get(kind, ("a known kind",)) if name not in details]
        if lacking:
            raise LogError(f"a line of kind {kind} must tell {', '.join(lacking)}")
        with self._turn:
            if run:
                details[LINE_OF_RUN] = self._lines_of_run[run] + 1
            entry = Entry(
                self._seq,
                self._time(),
                kind,
                self.charter,
                run,
                query,
                details,
                secrets.token_hex(16),
            )
            entry = self._write(entry)
            if run:
                self._lines_of_run[run] += 1
            if self._unsigned >= self._every:
                self.checkpoint()
            return entry

    def checkpoint(self) -> Checkpoint:
        """Sign all there is; give the result to others, so that they can vouch for it.

        Raises :class:`LogError`.
        """
        with self._turn:
            checkpoint = Checkpoint(self.party, self._seq - 1, self._chain.hex(), self._time(), "")
            checkpoint = replace(checkpoint, signature=self._sign(checkpoint.message()).hex())
            self._write(checkpoint.entry())
            try:
                write_whole(head_file(self.path), canonical(asdict(checkpoint)) + b"\n", 0o600)
            except ConfigurationError as error:
                raise LogError(f"log of {self.party}: {error}") from None
            return checkpoint

    def witness(self, checkpoint: Checkpoint, *, run: str = "") -> None:
        """Note another party's checkpoint, which the caller has verified."""
        self.append("witness", run=run, **asdict(checkpoint))

    def _time(self) -> str:
        return self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _write(self, blank: Entry) -> Entry:
        if self._broken:
            raise LogError(f"log of {self.party}: {self._broken}; start again")
        try:
            chain = chained(self._chain, blank.digest)
        except (TypeError, ValueError):
            raise LogError(f"a line of kind {blank.kind} holds what is not JSON") from None
        entry = replace(blank, chain=chain.hex())
        line = entry.line() + b"\n"
        if len(line) > LONGEST_LINE:
            raise LogError(f"a line of {len(line)} bytes is too long for a log")
        self._store(line)
        self._seq, self._chain, self._size = self._seq + 1, chain, self._size + len(line)
        self._unsigned = 0 if entry.kind == "checkpoint" else self._unsigned + 1
        return entry

    def _store(self, line: bytes) -> None:
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self._broken = "a line was written in part"
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
                self._broken = ""
            raise self._unwritten(error) from None
        try:
            os.fsync(self._file)
        except OSError as error:
            self._broken = "the last line may not be on disk"  # a second fsync would not tell
            raise self._unwritten(error) from None

    def _unwritten(self, error: OSError) -> LogError:
        return LogError(
            f"log of {self.party}: cannot be written ({error.strerror}); nothing leaves without a "
            "line in it: make room and ask again"
        )

    def close(self, reason: str = "closed") -> None:
        """Write a line of kind ``stop`` and a checkpoint, and let others write."""
        with self._turn:
            if self._broken == CLOSED:
                return
            try:
                if not self._broken:
                    self.append("stop", reason=reason)
                    if self._unsigned:
                        self.checkpoint()
            finally:
                self._broken = CLOSED
                os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            return self.close()
        with suppress(LogError):  # the first error is the one to tell
            self.close(f"stopped by {kind.__name__}")
        return None
