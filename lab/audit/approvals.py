"""What waits for a person's approval, a file each named by its digest, and who approved what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from lab.errors import ConfigurationError
from lab.files import canonical, read_json, write_whole

REQUESTS, APPROVED = "requests", "approved"
#: Digits of a digest that name what is approved, at least.
LEAST_DIGITS = 8


class Digested(Protocol):
    """What is approved as a whole."""

    @property
    def digest(self) -> str: ...


Waiting = TypeVar("Waiting", bound=Digested)


def keep(folder: Path, digest: str, content: bytes) -> None:
    """Keep what waits, for its owner's eyes alone."""
    (folder / REQUESTS).mkdir(mode=0o700, exist_ok=True)
    write_whole(folder / REQUESTS / f"{digest}.json", content, 0o600)


def approver(folder: Path, digest: str) -> str | None:
    """Who approved it; None where nobody did."""
    path = folder / APPROVED / digest
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or "by" not in content:
        raise ConfigurationError(f"{path}: is damaged; remove it, and approve again")
    return str(content["by"])


def waiting(folder: Path, what: str, read: Callable[[Path], Waiting]) -> dict[str, Waiting]:
    """What nobody approved yet, by digest. what: its kind in words.

    Raises :class:`ConfigurationError` for a file that holds another than its name says."""
    found = {}
    for path in sorted((folder / REQUESTS).glob("*.json")):
        if not (folder / APPROVED / path.stem).exists():
            found[path.stem] = read(path)
            if found[path.stem].digest != path.stem:
                raise ConfigurationError(
                    f"{path}: holds another {what} than its name says; remove it"
                )
    return found


def approve(folder: Path, digest: str, who: str, waits: Iterable[str], what: str) -> str:
    """Note a person's approval of what waits; its whole digest. digest: how it begins.

    Raises :class:`ConfigurationError` where that names none, or several."""
    matches = [full for full in waits if full.startswith(digest)]
    if len(matches) != 1 or len(digest) < LEAST_DIGITS:
        raise ConfigurationError(
            f"{digest}: {len(matches)} waiting {what}s have a digest that begins so; give at least its "
            f"first {LEAST_DIGITS} digits; lab node requests lists them"
        )
    (folder / APPROVED).mkdir(mode=0o700, exist_ok=True)
    write_whole(folder / APPROVED / matches[0], canonical({"by": who}), 0o600)
    return matches[0]
