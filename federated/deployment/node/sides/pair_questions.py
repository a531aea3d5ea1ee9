"""The supervisor's part in questions across joined sides: what they are asked, and what is released.

What was answered before is told to the sides with every question, because they say in which of its cells
their rows are; the history stays with the supervisor, over all runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from federated.deployment.charter import Charter
from federated.deployment.node.rules.refusals import Refusal
from federated.joined.protection import PairReleaser
from federated.messages import Request, message_of
from federated.study.plan import StudyPlan
from lab.audit import log_format as audit
from lab.errors import PeerError
from lab.files import canonical
from lab.privacy.disclosure import Rules
from lab.queries.pair_cells import AskedOfPair
from lab.queries.pair_history import PairHistory
from lab.sums import HEADS, Sums

HISTORY = "pair_history.json"


class PairQuestions:
    """The questions of one run. history: the file of all runs' answers; log: the supervisor's; rules: its own."""

    def __init__(
        self, history: Path, log: Path, charter: Charter, rules: Rules, study: StudyPlan
    ) -> None:
        pairs, least = charter.pairs, rules.minimum_count.persons
        if pairs is None or least < pairs.minimum_persons:
            raise Refusal(
                "persons",
                f"the rules of disclosure show cells of {least} persons, and the charter's pairs ask for "
                f"{0 if pairs is None else pairs.minimum_persons}",
            )
        nullable = tuple(n for n, column in study.contract.columns.items() if column.nullable)
        self._study, self._history, self._log = study, history, log
        self._rules, self._nullable = rules.of_joined_sides(), nullable
        self._releaser: PairReleaser | None = None
        self._pair: AskedOfPair | None = None
        self._word: Sums | None = None

    def begin(self, request: Request) -> RecordDict:
        """What the sides are asked for a question. Raises what speaks against it."""
        if request.statistic != "cells":
            raise Refusal("analyses", f"'{request.statistic}' is not asked of joined sides")
        self._check_kept()
        history = PairHistory(self._history)
        self._releaser = PairReleaser(self._rules, history, self._nullable, self._study.owner)
        self._pair, self._word = self._releaser.asked(request), None
        if not self._study.announces(self._pair.now.question):
            raise Refusal("analyses", "this question was not announced")
        return message_of(arguments=canonical(self._pair.arguments))

    def _check_kept(self) -> None:
        """Raises :class:`Refusal` where answers are forgotten that the log tells of."""
        log = self._log
        if self._history.exists() or not log.exists():
            return
        lines = audit.entries(audit.read_lines(log))
        if any(line.kind == "release" and line.told["statistic"] == "pair_cells" for line in lines):
            raise Refusal(
                "history",
                f"{self._history.name} of the supervisor is missing, while its log tells of answers across the two "
                "sides; without it they could be asked what differs by few: put a copy back",
            )

    def check(self, request: Request) -> None:
        """Raises :class:`PeerError` for a sum that is not the one that the question needs now."""
        if self._pair is None or self._releaser is None:
            raise PeerError("coordinator: asks for a sum of a question that was not begun here")
        wanted: dict[str, Any] = self._pair.arguments
        if request.statistic == "pair_cells" and self._word is not None:
            wanted = wanted | {"kinds": list(self._releaser.room(self._pair, self._word))}
        elif request.statistic != "pair_kinds":
            raise PeerError("coordinator: asks for a sum that the question does not need")
        if request.arguments != wanted:
            raise PeerError("coordinator: asks the sides for something else than the question")

    def told(self, request: Request, total: Sums) -> Sums:
        """What leaves the supervisor of a total that was checked: room for kinds, or the answer."""
        assert self._pair is not None and self._releaser is not None
        if request.statistic == "pair_kinds":
            self._word = total
            room = np.array(self._releaser.room(self._pair, total), dtype=np.float64)
            return Sums({"room": room}, {"room": HEADS}, 0)
        assert self._word is not None
        return self._releaser.released(self._pair, self._word, total, len(request.parties))
