"""The sets of parties behind totals, and what all totals together would show of a few parties.

A total over insurers 1 to 4 and one over insurers 1 to 3 show insurer 4's own sums. That holds for
one question, and as well for questions that differ little: another family, another seed, a step of
the same fit. So all totals count as one, unless the charter says that parties may leave; then those
of one question do.

Where everybody sees totals, with a split key and under masks, every party keeps the sets that it
took part in; where a supervisor opens them, that keeps all (`federated.deployment.node.openings`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lab.errors import ConfigurationError, PolicyError
from lab.files import add_line, added_lines, write_whole
from secure_agg.transcript import FEWEST


def check_apart(before: Iterable[frozenset[str]], parties: frozenset[str], least: int) -> None:
    """Raises :class:`PolicyError` where a total over these parties, with totals over the sets
    before, would show the own sums of fewer parties than ``least``.

    Parties that are in the same of the sets have the same weight in every combination of totals, so
    that whatever follows is of whole groups of them.
    """
    sets = [*before]
    if not sets or parties in sets:
        return
    groups = dict[tuple[bool, ...], list[str]]()
    for name in sorted(parties.union(*sets)):
        groups.setdefault(tuple(name in members for members in (*sets, parties)), []).append(name)
    few, largest = min(groups.values(), key=len), max(map(sorted, sets), key=len)
    if len(few) < least:
        raise PolicyError(
            f"with what was opened before, this total would show {' and '.join(few)}'s own sum; "
            f"totals are of the same parties as before ({', '.join(largest)}), "
            f"or of {least} or more parties more or fewer",
            "parties",
        )


class PartySets:
    """The sets of parties behind the totals that a party took part in, for ever.

    path: a file that only grows; None: memory alone. apart: of fewer parties no own sum may follow;
    by_question: whether only totals of one question count as one.
    """

    def __init__(
        self, path: Path | None = None, *, apart: int = FEWEST, by_question: bool = True
    ) -> None:
        self._path, self._apart, self._by_question = path, apart, by_question
        self._sets, self._all = dict[str, set[frozenset[str]]](), set[frozenset[str]]()
        if path is None:
            return
        if not path.exists():
            write_whole(path, b"", 0o600)
        try:
            for question, names in added_lines(path):
                self._remember(str(question), frozenset(map(str, names)))
        except (ValueError, TypeError):
            raise ConfigurationError(
                f"{path}: is damaged, so that nobody knows which totals this party took part in; put "
                "a whole copy back"
            ) from None

    def allow(self, question: bytes, present: Iterable[str], least: int) -> None:
        """Note the parties behind a question, on disk when this returns.

        question: its digest; least: the fewest parties that a sum may have. Raises
        :class:`PolicyError` for fewer, and where a few parties' own sums would follow;
        :class:`LogError` where it cannot be noted.
        """
        key, names = question.hex(), frozenset(present)
        if len(names) < least:
            raise PolicyError(
                f"a sum has at least {least} parties here, not {len(names)}", "parties"
            )
        if names in self._sets.get(key, ()):
            return
        before = self._sets.get(key, ()) if self._by_question else self._all
        check_apart(before, names, self._apart)
        if self._path is not None:
            add_line(self._path, [key, sorted(names)])
        self._remember(key, names)

    def _remember(self, key: str, names: frozenset[str]) -> None:
        self._sets.setdefault(key, set()).add(names)
        self._all.add(names)
