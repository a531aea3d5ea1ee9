"""How many numbers were opened that depend on each column of a side, ever.

An opened number is one equation about a column's values. A side keeps their number far below that of
its persons, as the history of questions does: a sum that would go beyond is not begun.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from federated.deployment.audit_logs import LOG_NAME
from federated.deployment.node.rules.refusals import Refusal
from lab.audit import log_format as audit
from lab.errors import ConfigurationError
from lab.files import add_line, added_lines, write_whole

EQUATIONS = "equations.jsonl"
#: What lines of a log tell of, in words.
TOLD_OF = {"alignment": "alignments", "cuts": "cuts that were told"}


class Equations:
    """The sums that a side took part in, in a file that only grows. folder: the node's.

    Raises :class:`ConfigurationError` for a damaged file.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / EQUATIONS
        self._sums: set[tuple[str, str]] = set()
        self.opened = Counter[str]()
        begin_memory(self._path, folder / LOG_NAME)
        try:
            for table, question, numbers in added_lines(self._path):
                self._remember(str(table), str(question), numbers)
        except (ValueError, TypeError, AttributeError):
            raise ConfigurationError(
                f"{self._path}: is damaged, so that nobody knows how many numbers were opened; put a "
                "whole copy back"
            ) from None

    def note(self, table: str, question: str, numbers: Mapping[str, int], most: int) -> None:
        """A sum of so many numbers about each column, on disk when this returns.

        table: digest of its state; question: of what is asked, which counts once; most: numbers that
        may ever be opened about a column. Raises :class:`Refusal`.
        """
        if (table, question) in self._sums:
            return
        for column, own in sorted(numbers.items()):
            if self.opened[column] + own > most:
                raise Refusal(
                    "equations",
                    f"{self.opened[column]:,} numbers about '{column}' were opened so far, this sum has "
                    f"{own:,}, and joined.equations_per_person of node.toml allows {most:,}, ever",
                )
        add_line(self._path, [table, question, dict(sorted(numbers.items()))])
        self._remember(table, question, numbers)

    def _remember(self, table: str, question: str, numbers: Mapping[str, int]) -> None:
        self._sums.add((table, question))
        self.opened.update({str(column): int(own) for column, own in numbers.items()})


def begin_memory(path: Path, log: Path, kind: str = "alignment") -> None:
    """An empty memory of a side; one that is there stays.

    Raises :class:`ConfigurationError` where it is gone, for the log has lines of this kind.
    """
    if path.exists():
        return
    if log.exists() and any(e.kind == kind for e in audit.entries(audit.read_lines(log))):
        raise ConfigurationError(
            f"{path}: missing, while {log.name} tells of {TOLD_OF[kind]}; without it, more could be learned of "
            "this side than node.toml allows: put a copy back"
        )
    write_whole(path, b"", 0o600)
