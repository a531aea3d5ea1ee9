"""What a supervisor opened so far, for ever: a file that only grows, and outlasts the audit log.

Totals over sets of parties that differ by one show that party's own sum (`federated.party.party_sets`).
So all openings are remembered, whatever becomes of the log: it may be moved away when it has grown
long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from federated.deployment.audit_logs import LOG_NAME
from federated.deployment.charter import Charter
from federated.party.party_sets import check_apart
from federated.party.release import RELEASED
from lab.audit import log_format as audit
from lab.errors import ConfigurationError, PolicyError
from lab.files import add_line, added_lines, write_whole
from secure_agg.errors import FaultyParty

OPENINGS = "openings.jsonl"
#: What all openings are about that only a release answers, where parties may leave.
RELEASE = "released"
#: What a query is about that nobody could open.
UNOPENED = "unopened"
#: What a line is about by which a party is let in again.
READMISSION = "readmission"
#: A naming is one bit about a number, of whoever's making: a coordinator could give a party another's
#: ciphertext, changed, to sign. So there are few for each party, over all runs.
MOST_NAMINGS = 3


class OpeningLine(NamedTuple):
    """One line of the file. named: parties that left the layout, so that nothing was opened."""

    run: str
    query: str
    subject: str
    parties: tuple[str, ...]
    named: tuple[str, ...] = ()


class Openings:
    """What was opened with a supervisor's key. folder: the supervisor's.

    Openings that only the log there tells of are taken over from it. Raises
    :class:`ConfigurationError` where the file is damaged, or gone with the log.
    """

    def __init__(self, folder: Path) -> None:
        self.queries: set[str] = set()
        self._path = folder / OPENINGS
        self._sets: dict[str, set[frozenset[str]]] = {}
        self._runs: dict[str, frozenset[str]] = {}
        self._namings = Counter[str]()
        log = folder / LOG_NAME
        if self._path.exists():
            for opening in _read(self._path):
                self._remember(opening)
        elif not log.exists():
            raise ConfigurationError(
                f"{self._path}: missing, and so is the log; without either, what was opened before "
                "could be opened again for other parties: put one back, or make a new key with: "
                "lab keys deal"
            )
        self.begin(folder)
        for opening in _logged(log) if log.exists() else ():
            if opening.query not in self.queries:
                self._note(opening)

    @staticmethod
    def begin(folder: Path) -> None:
        """A memory of nothing, beside a new key; one that is there stays."""
        if not (folder / OPENINGS).exists():
            write_whole(folder / OPENINGS, b"", 0o600)

    def note(self, run: str, query: str, subject: str, parties: frozenset[str]) -> None:
        """Remember an opening, on disk when this returns. Raises :class:`LogError`."""
        self._note(OpeningLine(run, query, subject, tuple(sorted(parties))))

    def _note(self, opening: OpeningLine) -> None:
        add_line(self._path, opening)
        self._remember(opening)

    def note_fault(
        self, run: str, query: str, parties: frozenset[str], named: Iterable[str]
    ) -> None:
        """A query that was not opened, the parties that kept to its layout, with whom alone a run
        goes on, and those that did not."""
        self._note(OpeningLine(run, query, UNOPENED, tuple(sorted(parties)), tuple(sorted(named))))

    def readmit(self, name: str) -> None:
        """Forget how often a party was named."""
        self._note(OpeningLine("", "", READMISSION, (name,)))

    def _remember(self, opening: OpeningLine) -> None:
        if opening.subject == READMISSION:
            self._namings[opening.parties[0]] = 0
            return
        parties = frozenset(opening.parties)
        self.queries.add(opening.query)
        self._sets.setdefault(opening.subject, set()).add(parties)
        self._runs[opening.run] = parties
        self._namings.update(opening.named)

    def _check_namings(self, parties: Iterable[str]) -> None:
        names = sorted(name for name in parties if self._namings[name] >= MOST_NAMINGS)
        if names:
            raise FaultyParty(
                f"{', '.join(names)}: named {MOST_NAMINGS} times for encrypted numbers that are not "
                "of the form all agreed on, and in no total any more; once it is repaired, stop the "
                f"supervisor and run lab holder readmit FOLDER '{names[0]}' --by NAME",
                *names,
            )

    def check(self, run: str, subject: str, parties: frozenset[str], charter: Charter) -> None:
        """Raises :class:`PolicyError` where this opening, with those before, would show a party,
        :class:`FaultyParty` for a party that was named too often.

        All openings count as one question's, whatever their contract: the rows are the same. Where
        the charter lets parties leave, those of one subject do.
        """
        if not parties <= self._runs.get(run, parties):
            raise PolicyError(
                "a party that left this run may not come back into it; begin anew with --fresh",
                "parties",
            )
        subjects = {subject} if charter.parties_may_leave else self._sets.keys() - {UNOPENED}
        self._check_namings(parties)
        before = set[frozenset[str]]().union(*(self._sets.get(each, ()) for each in subjects))
        check_apart(before, parties, charter.minimum_parties)


def _read(path: Path) -> list[OpeningLine]:
    """The openings of a file. Raises :class:`ConfigurationError`."""
    try:
        openings = []
        for run, query, subject, *names in added_lines(path):
            parties, named = (tuple(map(str, each)) for each in (*names, ())[:2])
            openings.append(OpeningLine(str(run), str(query), str(subject), parties, named))
        return openings
    except (ValueError, TypeError):
        raise ConfigurationError(
            f"{path}: is damaged, so that nobody knows what was opened before; put a whole copy "
            "back, or make a new key with: lab keys deal"
        ) from None


def _logged(log: Path) -> Iterable[OpeningLine]:
    for entry in audit.entries(audit.read_lines(log)):
        if entry.kind == "fault" and "parties" in entry.told:
            parties, named = (tuple(entry.told.get(key, ())) for key in ("parties", "named"))
            yield OpeningLine(entry.run, entry.query, UNOPENED, parties, named)
        if entry.kind == "release" and "question" in entry.told:
            subject = subject_of(entry.told["statistic"], entry.told["question"])
            yield OpeningLine(entry.run, entry.query, subject, tuple(entry.told["parties"]))


def subject_of(statistic: str, question: str) -> str:
    """What an opening is about: the question; all that are released count as one, for the margins
    of one may be another."""
    return RELEASE if statistic in RELEASED else question
