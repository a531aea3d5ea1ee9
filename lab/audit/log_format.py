"""A party's log: what was asked of it, what it refused, what left it; one file that only grows.

Each line is a JSON object in its one encoding, and carries a hash over the line before and its own
content, so that no line can be changed, removed, added or moved without breaking the chain:

    digest = H("line", content)          chain = H("chain", chain of the line before, digest)

with H = SHA-256 over parts with their lengths. Every so often the party signs the end of the chain
(a checkpoint, Ed25519), in a line of its own and in a small file beside the log. What that proves:

* whoever alters the log and does not hold the party's key is found out, up to the last checkpoint;
* lines after the last checkpoint are chained but not signed: nobody notices if they are cut off, so
  a checkpoint is made at every stop and whenever a reply should be vouched for;
* an extract shows lines of other runs as digests alone; lines of a run are numbered within it, so
  that one that is hidden among them is found out, though not one behind the last that is shown;
* whoever cuts the log *and* the file beside it back to an older checkpoint, or holds the key and
  writes the log anew, is found out by checkpoints that others keep. So parties give each other
  their checkpoints, and note those of others as lines of kind ``witness``.

A line is on disk before what it records leaves: after a power loss the log may show a release that
did not happen, and never lack one that did. The content carries a random salt, so that an
extract can show a line as its digest alone and betray nothing (`extract`).

Chained logs: Schneier and Kelsey, "Secure audit logs to support computer forensics", ACM TISSEC 2,
1999, section 3; witnessed heads: Crosby and Wallach, USENIX Security 2009, section 2.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import ConfigurationError, LogError
from lab.files import canonical, read_json

#: What a line of each kind tells at least. A party's values are never among them.
KINDS: Mapping[str, tuple[str, ...]] = {
    "start": ("party", "key", "version"),
    "stop": ("reason",),
    "request": ("statistic", "by"),
    "approval": ("statistic", "by"),
    "refusal": ("statistic", "rule", "text"),
    "outcome": ("plan", "scores", "model"),
    "answer": ("statistic", "by", "answer"),
    "release": ("statistic", "hiding", "arrays", "values", "bytes", "rows", "key_bits"),
    "key": ("event", "fingerprint"),
    "alignment": ("peer", "session", "learns", "cap", "spine", "learned"),
    "cuts": ("statistic", "peer", "columns", "cuts", "persons"),
    "deal": ("statistic", "pair", "rows", "products"),
    "budget": ("epsilon", "delta"),
    "fault": ("what",),
    "checkpoint": ("signature",),
    "witness": ("party", "seq", "head", "time", "signature"),
}
FIELDS: Mapping[str, type] = {
    **dict.fromkeys(("time", "kind", "charter", "run", "query", "salt", "chain"), str),
    "seq": int,
    "told": dict,
}
START = bytes(32)
#: What every line of a run tells beside: its number among the run's lines in this log, from 1.
LINE_OF_RUN = "line_of_run"
#: No line is longer; what is longer is damage.
LONGEST_LINE = 2**20

#: Whether this public key (32 bytes) made this signature over this message: (key, message, signature).
Check = Callable[[bytes, bytes, bytes], bool]


def _hash(purpose: bytes, *parts: bytes) -> bytes:
    sha = hashlib.sha256()
    for part in (b"insurance-privacy-lab log 1", purpose, *parts):
        sha.update(struct.pack(">Q", len(part)) + part)
    return sha.digest()


def chained(before: bytes, digest: bytes) -> bytes:
    """The chain after a line of this digest."""
    return _hash(b"chain", before, digest)


@dataclass(frozen=True)
class Entry:
    """One line. ``told`` holds what its kind tells; ``time`` is UTC; ``chain`` is in hexadecimal."""

    seq: int
    time: str
    kind: str
    charter: str
    run: str
    query: str
    told: Mapping[str, Any]
    salt: str
    chain: str = ""

    @property
    def digest(self) -> bytes:
        """32 bytes over the content."""
        content = {name: value for name, value in vars(self).items() if name != "chain"}
        return _hash(b"line", canonical(content))

    def line(self) -> bytes:
        """The line without its end."""
        return canonical(vars(self))


@dataclass(frozen=True)
class Checkpoint:
    """A party's word for the end of its log: the chain after line ``seq`` was ``head`` (hex)."""

    party: str
    seq: int
    head: str
    time: str
    signature: str

    def message(self) -> bytes:
        """What is signed."""
        content = {name: value for name, value in vars(self).items() if name != "signature"}
        return _hash(b"checkpoint", canonical(content))

    def entry(self) -> Entry:
        """Its line in the party's own log, unchained; nothing in it is left unsigned."""
        details = {"signature": self.signature}
        return Entry(self.seq + 1, self.time, "checkpoint", "", "", "", details, "")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Checkpoint:
        """A checkpoint of JSON's values. Raises :class:`LogError` if it can't be one."""
        try:
            checkpoint = cls(**{name: values[name] for name in KINDS["witness"]})
            sizes = len(bytes.fromhex(checkpoint.head)), len(bytes.fromhex(checkpoint.signature))
            if sizes != (32, 64) or type(checkpoint.seq) is not int or checkpoint.seq < 0:
                raise ValueError
            checkpoint.message()
        except (KeyError, TypeError, ValueError):
            raise LogError("a checkpoint is not readable") from None
        return checkpoint


def head_file(log: Path) -> Path:
    """Where the last checkpoint of a log stands beside it."""
    return log.with_name(f"{log.stem}.head.json")


@dataclass
class Verdict:
    """What a log was found to be; ``fault`` is empty if it holds together.

    lines, omitted: how many there are, how many of them an extract shows as a digest alone;
    unsigned: how many stand after the last checkpoint; key: the party's public key, 32 bytes; torn:
    bytes of a last line without an end; heads: the chain after each line; lines_of_run: how many of
    each are shown.
    """

    party: str = ""
    key: bytes = b""
    lines: int = 0
    omitted: int = 0
    checkpoints: int = 0
    unsigned: int = 0
    chain: bytes = START
    torn: bytes = b""
    fault: str = ""
    heads: list[bytes] = field(default_factory=list, repr=False)
    lines_of_run: Counter[str] = field(default_factory=Counter, repr=False)


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a log with their ends. Raises :class:`ConfigurationError`."""
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE):
                yield line
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None


def entries(lines: Iterable[bytes]) -> Iterator[Entry]:
    """The lines that can be read, unverified; what was omitted or torn is left out."""
    for line in lines:
        with suppress(LogError):
            entry = parsed(line)
            if isinstance(entry, Entry):
                yield entry


def known_head(log: Path) -> list[Checkpoint]:
    """The checkpoint in the file beside a log, if there is one. Raises LogError if it is damaged."""
    path = head_file(log)
    if not path.exists():
        return []
    try:
        return [Checkpoint.of(read_json(path))]
    except (ConfigurationError, LogError) as error:
        raise LogError(f"{path}: the file beside the log is damaged: {error}") from None


def verify(
    lines: Iterable[bytes],
    check: Check,
    *,
    key: bytes = b"",
    checkpoints: Iterable[Checkpoint] = (),
) -> Verdict:
    """Whether a log or an extract holds together, and which line is the first that does not.

    key: the party's public key by another way; without it the log's own word is taken for it.
    checkpoints: of this party that others keep, or that stand beside the log: the log must
    agree with each of them and reach as far.
    """
    verdict = Verdict(key=key)
    for line in lines:
        if not line.endswith(b"\n"):
            verdict.torn = line
            verdict.fault = (
                f"line {verdict.lines + 1} is cut off in the middle: by a power loss, or by hand"
            )
            break
        try:
            _take(verdict, parsed(line), check)
        except LogError as error:
            verdict.fault = f"line {verdict.lines + 1}: {error}"
            break
    if not verdict.fault or verdict.torn:
        for checkpoint in checkpoints:
            if reason := _disagrees(verdict, checkpoint, check):
                verdict.fault, verdict.torn = reason, b""
                break
    return verdict


def parsed(line: bytes) -> Entry | bytes:
    """The entry of a line, or the digest that stands for one. Raises :class:`LogError`."""
    text = line.removesuffix(b"\n")
    try:
        content = json.loads(text)
        if canonical(content) != text or not isinstance(content, dict):
            raise ValueError
        if content.keys() == {"seq", "digest"}:
            return _digest_of(content)
        kinds = {name: type(value) for name, value in content.items()}
        if kinds != FIELDS:
            raise ValueError
        return Entry(**content)
    except (ValueError, RecursionError, TypeError):
        raise LogError("is not a line of a log") from None


def _digest_of(content: Mapping[str, Any]) -> bytes:
    digest = bytes.fromhex(content["digest"])
    if len(digest) != 32 or type(content["seq"]) is not int:
        raise ValueError
    return digest


def _take(verdict: Verdict, item: Entry | bytes, check: Check) -> None:
    """Check the next line against what was found before it. Raises :class:`LogError`."""
    chain = chained(verdict.chain, item if isinstance(item, bytes) else item.digest)
    if isinstance(item, Entry):
        if item.seq != verdict.lines:
            raise LogError(f"has number {item.seq} where {verdict.lines} belongs")
        if item.chain != chain.hex():
            raise LogError("does not follow from the line before: one of the two was changed")
        _check_entry(verdict, item, check)
    elif not verdict.lines:
        raise LogError("the first line must be there: it names the party and its key")
    verdict.lines += 1
    verdict.chain = chain
    verdict.heads.append(chain)
    verdict.omitted += isinstance(item, bytes)
    signed = isinstance(item, Entry) and item.kind == "checkpoint"
    verdict.unsigned = 0 if signed else verdict.unsigned + 1
    verdict.checkpoints += signed


def _check_entry(verdict: Verdict, entry: Entry, check: Check) -> None:
    if any(name not in entry.told for name in KINDS.get(entry.kind, ("",))):
        raise LogError("is of no known kind, or lacks a field of its kind")
    if entry.kind == "start":
        party, key = str(entry.told["party"]), str(entry.told["key"])
        if verdict.key and key != verdict.key.hex():
            raise LogError(f"names another key than {verdict.key.hex()[:16]}…")
        if verdict.lines and party != verdict.party:
            raise LogError(f"is of {party}, the lines before are of {verdict.party}")
        try:
            verdict.party, verdict.key = party, bytes.fromhex(key)
        except ValueError:
            raise LogError("names no key") from None
    elif not verdict.lines:
        raise LogError("a log begins with a start, which names the party and its key")
    if entry.kind == "checkpoint":
        head = {"party": verdict.party, "seq": verdict.lines - 1, "head": verdict.chain.hex()}
        details = {"time": entry.time, "signature": entry.told["signature"]}
        checkpoint = Checkpoint.of(head | details)
        _check_signature(verdict, checkpoint, check)
        if checkpoint.entry().digest != entry.digest:
            raise LogError("a checkpoint holds more than what is signed")
    if entry.run:
        verdict.lines_of_run[entry.run] += 1
        number, place = entry.told.get(LINE_OF_RUN), verdict.lines_of_run[entry.run]
        if number != place:
            raise LogError(
                f"is number {number} of run {entry.run} where {place} belongs: a line of it is "
                "hidden, or was added"
            )


def _check_signature(verdict: Verdict, checkpoint: Checkpoint, check: Check) -> None:
    if not check(verdict.key, checkpoint.message(), bytes.fromhex(checkpoint.signature)):
        raise LogError(
            f"a checkpoint after line {checkpoint.seq + 1} is not signed by the party's key"
        )


def _disagrees(verdict: Verdict, checkpoint: Checkpoint, check: Check) -> str:
    """Why a checkpoint from elsewhere and this log do not go together; empty if they do."""
    try:
        _check_signature(verdict, checkpoint, check)
    except LogError as error:
        return f"kept elsewhere: {error}"
    if checkpoint.seq + 1 >= verdict.lines:  # its own line follows it
        return (
            f"line {verdict.lines + 1} and what follows are gone: a checkpoint kept elsewhere was made "
            f"after line {checkpoint.seq + 1}"
        )
    if verdict.heads[checkpoint.seq].hex() != checkpoint.head:
        return (
            f"line {checkpoint.seq + 1} or one before was changed and signed anew: a checkpoint kept "
            "elsewhere says otherwise"
        )
    return ""


def extract(lines: Iterable[bytes], run: str) -> list[bytes]:
    """The lines of one run, and of all others their digest alone; it verifies like the whole log.

    Lines that belong to no run are shown where they prove something: starts and checkpoints. It
    ends with the first checkpoint after the run's last line. Raises :class:`LogError` for a log
    without a line of the run, or without a checkpoint after its last.
    """
    selection: list[bytes] = []
    end = 0
    last = -1
    for line in lines:
        entry = parsed(line)
        if isinstance(entry, bytes):
            selection.append(line)
            continue
        proves = entry.kind in ("start", "checkpoint")
        whole = proves or entry.run == run
        digest = {"seq": entry.seq, "digest": entry.digest.hex()}
        selection.append(line if whole else canonical(digest) + b"\n")
        if entry.run == run and not proves:
            last = len(selection)
        if entry.kind == "checkpoint" and end < last:
            end = len(selection)
    if last < 0:
        raise LogError(f"no line of run {run} in this log")
    if end < last:
        raise LogError(
            f"the last lines of run {run} are not signed yet; stop the party or checkpoint"
        )
    return selection[:end]
