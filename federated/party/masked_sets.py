"""The sets of parties behind each question that a party took part in under masks, for ever.

Under masks the coordinator opens every total. Two totals of one question over sets that differ by a
party show that party's own sums, so a question has one set of parties: whoever is missing the first
time is missing every time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from lab.errors import LogError, PolicyError


class MaskedSets:
    """The first set of parties of each question. path: a file that only grows; None: memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        self._path, self._sets = path, dict[str, list[str]]()
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                question, names = json.loads(line)
                self._sets[question] = names

    def allow(self, question: bytes, present: Iterable[str], least: int) -> None:
        """Note the parties behind a question, on disk when this returns.

        question: its digest; least: the fewest parties that a sum may have. Raises
        :class:`PolicyError` for fewer, and for another set than the question had before.
        """
        key, names = question.hex(), sorted(present)
        if len(names) < least:
            raise PolicyError(
                f"a sum has at least {least} parties here, not {len(names)}", "parties"
            )
        if (known := self._sets.get(key)) == names:
            return
        if known is not None:
            raise PolicyError(
                "this question was asked of other parties before; both totals together would show "
                "who makes the difference",
                "parties",
            )
        if self._path is not None:
            self._write(key, names)
        self._sets[key] = names

    def _write(self, key: str, names: list[str]) -> None:
        assert self._path is not None
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, names]) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LogError(f"{self._path}: cannot be written: {error.strerror}") from None
