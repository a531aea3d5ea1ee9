"""Files that appear whole or not at all, and JSON that has one encoding."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from lab.errors import ConfigurationError, LogError

LARGEST_JSON_BYTES = 2**20


def write_whole(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file, so that a reader sees the old or the new one, and the new one is on disk.

    mode: 0o600 for what is its owner's alone. Raises :class:`ConfigurationError`.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to disk: a file that was synced may still lose its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def add_line(path: Path, content: object) -> None:
    """Add a line of JSON to a file that only grows, on disk when this returns; no new file is made.

    Raises :class:`LogError`, and leaves the file as it was.
    """
    try:
        with path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            try:
                file.write(json.dumps(content).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, end)
                raise
    except OSError as error:
        raise LogError(f"{path}: cannot be written: {error.strerror}") from None


def added_lines(path: Path) -> list[Any]:
    """What :func:`add_line` wrote. A last line that was cut off is taken off: nothing followed it.

    Raises :class:`ConfigurationError` where the file cannot be read, ValueError where it is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        write_whole(path, whole, 0o600)
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except RecursionError as error:
        raise ValueError(str(error)) from None


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object of at most a MiB. Raises ConfigurationError; no key may occur twice."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_JSON_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > LARGEST_JSON_BYTES:
        raise ConfigurationError(
            f"{path}: larger than {LARGEST_JSON_BYTES:,} bytes, the most that is read"
        )
    try:
        content = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: must be one JSON object")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key is named twice")
    return content


def canonical(content: object) -> bytes:
    """The one encoding of JSON content: sorted keys, no spaces, UTF-8. Raises ValueError."""
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
