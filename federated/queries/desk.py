"""Questions to all parties: SQL in, a DataFrame of what may be shown out.

>>> from federated.queries.desk import Desk
>>> with Desk.on("rand_hie") as desk:                            # doctest: +SKIP
...     desk.ask("select idp, count(*), avg(mdvis) from rand_hie group by idp")  # doctest: +SKIP

The parties are simulated on this machine as in ``lab run``; they remember what they were asked, and
what they spent, in a folder each.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pandas as pd

from federated.app import client_app
from federated.federation import Federation, Parties
from federated.hiding.protocol import Protection
from federated.queries.holdings import Holdings, experiment_of
from federated.queries.pair import pair_of_experiment
from federated.queries.tables import finished
from federated.study.experiment import Experiment
from federated.study.simulation import protected
from federated.transport.in_process import InProcessGrid
from lab.errors import ConfigurationError, ContractError
from lab.models.design import Feature
from lab.models.glm import Task
from lab.privacy.disclosure import Rules, words
from lab.privacy.joining import Opened, by_statistic
from lab.privacy.noise import Noise
from lab.queries import cells
from lab.queries import sql_plan as sql
from lab.queries.questions import ROWS, Question, Total
from lab.queries.sql_join import JoinedNames
from lab.queries.whole_answers import CURVES, Plan
from lab.sums import Floats, Sums
from lab.tables.contracts import Contract

#: The rule of a noised answer, in words.
NOISED = "Shown where the noised count is at least {}; every party's own noise protects the rest."


class Desk:
    """Where an analyst asks questions of all parties; open it with ``with``.

    federation: the parties, wherever they are; contract, rules, person: what they agreed on; fault:
    what is wrong with the table, if anybody knows; grid: the parties' own, closed with the desk; joined:
    the names of two sides that the table is joined from. Raises :class:`~lab.errors.LabError` for all that
    can be explained.
    """

    def __init__(
        self,
        federation: Parties,
        contract: Contract,
        rules: Rules,
        person: str | None,
        fault: ContractError | None = None,
        grid: InProcessGrid | None = None,
        joined: JoinedNames | None = None,
    ) -> None:
        self.federation, self.contract, self.rules = federation, contract, rules
        self.person, self._fault, self._grid = person, fault, grid
        self._joined = joined
        self._counters: dict[str, int] = {}
        self._opened: list[Opened] = []

    @classmethod
    def simulated(
        cls, holdings: Holdings, protection: Protection, *, workers: int | None = None
    ) -> Desk:
        """A desk for parties of this process."""
        parties = holdings.parties
        node = client_app(lambda seat: parties[seat], protection.hiding)
        grid = InProcessGrid(node, len(parties), workers or os.cpu_count() or 1)
        try:
            federation = Federation(grid, protection, len(parties))
        except BaseException:
            grid.close()
            raise
        contract, rules, person = holdings.contract, holdings.rules, holdings.person
        return cls(federation, contract, rules, person, holdings.fault, grid, holdings.joined)

    @classmethod
    def on(
        cls,
        experiment: str | Path | Experiment,
        changes: dict[str, Any] | None = None,
        *,
        runs: str | Path | None = "runs",
    ) -> Desk:
        """A desk for the data, the parties and the protection of an experiment file.

        runs: the folder in which the parties keep what they were asked; None for memory alone.
        """
        if not isinstance(experiment, Experiment):
            experiment = experiment_of(experiment, changes)
        if experiment.protection.sums == "masks":
            raise ConfigurationError(
                "protection.sums = 'masks': the coordinator would see every total before the "
                "rules are kept; questions need 'paillier'"
            )
        place = Path(runs) / "parties" if runs is not None else None
        if experiment.joined:
            return cls.simulated(*pair_of_experiment(experiment, place))
        holdings = Holdings.of_experiment(experiment, place)
        return cls.simulated(holdings, protected(experiment.protection, holdings.rules))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send the parties of this process home."""
        if self._grid is not None:
            self._grid.close()

    def ask(self, text: str, *, noise: Noise | None = None) -> pd.DataFrame:
        """The answer: a row for each cell (or as the question's function says), NaN where hidden.

        Its ``attrs`` tell ``hidden`` and ``cells``, ``left_out``: rows in no cell that is shown,
        None where their number is held back, ``rules`` in words, ``hiding``, ``noise``,
        ``seconds``, ``asked``: for how many cells this asker has asked a party so far, and ``left``:
        how many more it can answer, at most, both on average and None under noise, ``hidden_by``:
        the kinds of rules that can have hidden a cell of it; which did is not told, because that
        would narrow what is hidden; ``opened``: what was told of the totals; ``sides``: whether it is
        across an insurer and the fund; and ``receipt``: what left each party for this question.
        """
        start = time.perf_counter()
        before = {party: len(lines) for party, lines in self.federation.receipts().items()}
        self._counters, self._opened = {}, []
        plan = self._plan(text, noise)
        if self._fault is not None and plan.finish != "violations":
            raise self._fault
        answer = finished(self, plan)
        seconds = time.perf_counter() - start
        answer.attrs |= {
            "left_out": answer.attrs.get("left_out", 0),
            "sql": text,
            "rules": NOISED.format(self.rules.minimum_count.persons)
            if noise
            else words(self.rules),
            "hiding": self.federation.protection.hiding,
            "noise": noise.model_dump() if noise else None,
            "seconds": seconds,
            **{name: self._counters.get(name) for name in cells.COUNTERS},
            "hidden_by": _kinds_of_rules(plan.question, self.rules),
            "sides": self._joined is not None,
            "opened": [vars(line) for line in by_statistic(self._opened)],
            "receipt": [
                {"party": party, **asdict(line)}
                for party, lines in self.federation.receipts().items()
                for line in lines[before.get(party, 0) :]
            ],
        }
        return answer

    def _plan(self, text: str, noise: Noise | None) -> Plan:
        contract, person = self.contract, self.person
        read = partial(
            sql.compile, text, contract, person, levels=self._levels, joined=self._joined
        )
        plan = read()
        if plan.centred:
            plan = read(centres=self._centres(plan, noise))
        formulas = [*plan.formulas.values(), *([plan.having] if plan.having else [])]
        ratios = any(formula.operation != "total" for formula in formulas)
        if self.rules.rounding.base > 1 and (ratios or plan.finish in CURVES):
            raise ConfigurationError(
                "query: counts are rounded by the rules, so no ratio and no HAVING of them is answered; ask for "
                "counts and sums"
            )
        if noise is not None:
            if plan.rungs or plan.finish in (*CURVES, "triangle", "drift", "violations"):
                raise ConfigurationError("query: noise is for counts and sums; ask this without")
            plan.question = plan.question.model_copy(update={"noise": noise})
            cells.releases(plan.question, contract.columns)  # needs bounds: say so before asking
        return plan

    def _levels(self, column: str) -> tuple[str, ...]:
        (levels,) = self.federation.levels(Task(target=column), (Feature(column=column),))
        return levels

    def _centres(self, plan: Plan, noise: Noise | None) -> dict[str, float]:
        """Public numbers near the middle: of the declared range under noise, else of the rows."""
        if noise is not None:
            columns = self.contract.columns
            ends = {c: (columns[c].minimum or 0.0, columns[c].maximum or 0.0) for c in plan.centred}
            return {c: (low + high) / 2 for c, (low, high) in ends.items()}
        totals = [ROWS]
        for column in plan.centred:
            totals.append(Total(kind="count", columns=(column,)))
            totals.append(Total(kind="sum", columns=(column,), centres=(0.0,)))
        question = plan.question.model_copy(update={"axes": (), "totals": tuple(totals)})
        visible, sums = self.totals(question)
        means = {
            column: float(sums[2 + 2 * k][0] / max(sums[1 + 2 * k][0], 1.0))
            for k, column in enumerate(plan.centred)
        }
        return {c: float(f"{m:.9g}") if visible[0] else 0.0 for c, m in means.items()}

    # Rounds of messages.

    @property
    def parties(self) -> int:
        """How many are asked."""
        return len(self.federation.names)

    def sum(self, statistic: str, question: Question, arrays: Any = None, **more: Any) -> Sums:
        """What is released of a statistic of a question."""
        released = self.federation.sum(
            statistic, arrays, question=question, rules=self.rules, **more
        )
        if "shown" in released.arrays:
            numbers = int(released["shown"].sum()) * max(len(question.totals), 1)
            fewest = int(released.total("fewest")) if "fewest" in released.arrays else 0
            self._opened.append(Opened(statistic, numbers, fewest or None))
        return released

    def totals(self, question: Question) -> tuple[Any, list[Floats]]:
        """Which cells are shown, and each total in them (0 where hidden)."""
        released = self.sum("cells", question)
        if question.noise is None:
            self._counters = {
                name: int(released.total(name)) // self.parties for name in cells.COUNTERS
            }
        return released["shown"] > 0, [released[f"total {k}"] for k in range(len(question.totals))]


def _kinds_of_rules(question: Question, rules: Rules) -> tuple[str, ...]:
    """The kinds of rules that can hide a cell of a question."""
    if question.noise is not None:
        return ("persons",)
    amounts = any(total.kind == "sum" for total in question.totals)
    parties = rules.minimum_parties.parties > 1
    kinds = {
        "persons": True,
        "parties": parties,
        "amounts": amounts,
        "margins": bool(question.axes),
    }
    return (*(kind for kind, holds in kinds.items() if holds), "earlier answers")
