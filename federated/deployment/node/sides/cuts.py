"""Which cuts on its columns a side told each other side, ever: of each, one bit about every common person."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from federated.deployment.audit_logs import LOG_NAME
from federated.deployment.node.rules.refusals import Refusal
from federated.deployment.node.sides.equations import begin_memory
from lab.errors import ConfigurationError
from lab.files import add_line, added_lines

CUTS = "cuts.jsonl"


class CutsTold:
    """The cuts that a side told, in a file that only grows. folder: the node's.

    Raises :class:`ConfigurationError` for a damaged file.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CUTS
        self._told: dict[str, set[str]] = {}
        begin_memory(self._path, folder / LOG_NAME, "cuts")
        try:
            for peer, digest in added_lines(self._path):
                self._told.setdefault(str(peer), set()).add(str(digest))
        except (ValueError, TypeError):
            raise ConfigurationError(
                f"{self._path}: is damaged, so that nobody knows which cuts were told; put a whole copy back"
            ) from None

    def count(self, peer: str) -> int:
        """Cuts that another side was told, ever."""
        return len(self._told.get(peer, ()))

    def note(self, peer: str, cuts: Iterable[str], most: int) -> int:
        """Cuts that are told next, on disk when this returns; how many of them are new.

        cuts: each with a digest of the rows that it is about, for of others it tells anew; most: that may
        ever be told. Raises :class:`Refusal`.
        """
        digests = [hashlib.sha256(cut.encode()).hexdigest() for cut in cuts]
        told = self._told.setdefault(peer, set())
        new = [digest for digest in dict.fromkeys(digests) if digest not in told]
        if len(told) + len(new) > most:
            raise Refusal(
                "cuts",
                f"{peer} was told {len(told):,} cuts on columns of this side, this step tells {len(new):,} "
                f"more, and joined.bits_per_person of node.toml allows {most:,}, ever",
            )
        for digest in new:
            add_line(self._path, [peer, digest])
            told.add(digest)
        return len(new)
