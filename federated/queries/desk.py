"""Questions to all parties: SQL in, a DataFrame of what may be shown out.

>>> from federated.queries.desk import Desk
>>> with Desk.on("experiments/rand_hie.toml") as desk:                            # doctest: +SKIP
...     desk.ask("select idp, count(*), avg(mdvis) from rand_hie group by idp")  # doctest: +SKIP

The parties are simulated on this machine as in ``lab run``; they remember what they were asked, and
what they spent, in a folder each.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pandas as pd

from federated.app import client_app
from federated.federation import Federation
from federated.hiding.protocol import Protection
from federated.party.party import Party, Policy
from federated.study.experiment import Experiment
from federated.transport.in_process import InProcessGrid
from lab.errors import ConfigurationError, ContractError
from lab.models.design import Feature
from lab.models.glm import Task
from lab.privacy.disclosure import Rules, words
from lab.privacy.noise import Noise, draws
from lab.queries import actuarial, cells
from lab.queries import sql_plan as sql
from lab.queries.query_table import Budget, QueryTable
from lab.queries.questions import ROWS, Axis, Question, Total
from lab.sums import Floats
from lab.tables.contracts import Contract, broken, check
from lab.tables.partition import deal
from lab.tables.sources import digest, unchecked

#: Rungs of a quantile's first ladder and of each later one, most of them, and their outer ends.
RUNGS = (16, *[4] * 24)
BEYOND = 1e300
#: The rule of a noised answer, in words.
NOISED = "Shown where the noised count is at least {}; every party's own noise protects the rest."
#: Draws of the noise behind an interval, and cells times draws held at once.
DRAWS, HELD = 2_000, 4_000_000


@dataclass(frozen=True)
class Holdings:
    """Who is asked: parties that each hold a part of one table, under one contract and one set of
    rules. fault: what is wrong with the table; then only its violations can be asked about."""

    parties: tuple[Party, ...]
    contract: Contract
    rules: Rules
    person: str | None = None
    fault: ContractError | None = None

    @classmethod
    def of(
        cls,
        tables: Mapping[str, pd.DataFrame],
        contract: Contract,
        rules: Rules | None = None,
        *,
        person: str | None = None,
        folder: Path | None = None,
        budget: Budget | None = None,
        noised: bool = False,
    ) -> Holdings:
        """Parties by name with their rows as they come.

        folder: where each keeps its history, its budget and its receipt; None for memory alone.
        """
        rules, fault = rules or Rules.read(), None
        parties: list[Party] = []
        announces = tuple(
            name
            for name, column in contract.columns.items()
            if column.type == "category" and not column.levels and column.role == "feature"
        )
        policy = Policy(
            minimum_rows=1, announces=announces, shows_receipt=True, answers="questions"
        )
        for name, raw in tables.items():
            raw = raw.reset_index(drop=True)
            try:
                frame = check(raw, contract, where=name)
            except ContractError as error:
                fault, frame = error, raw
            place = folder / re.sub(r"[^\w-]+", "-", name) if folder else None
            if place is not None and any(
                place == p.query_table.folder for p in parties if p.query_table
            ):
                raise ConfigurationError(f"{name}: another party's name gives the same folder")
            holding = QueryTable(frame, contract, rules, person, raw, place, budget, noised)
            parties.append(Party(name, frame[:0], frame[:0], policy=policy, query_table=holding))
        return cls(tuple(parties), contract, rules, person, fault)

    @classmethod
    def of_experiment(cls, experiment: Experiment, folder: Path | None) -> Holdings:
        """The whole table of an experiment, dealt as its study deals it."""
        data, protection = experiment.data, experiment.protection
        own = Contract.read(Path(data.contract)) if data.contract else None
        raw, contract, origin = unchecked(
            data.source, data.path, contract=own, table=data.table, query=data.query
        )
        if raw.empty:
            raise ContractError(f"{origin}: the table has no rows")
        partition = np.random.default_rng(np.random.SeedSequence(experiment.seed).spawn(2)[1])
        owners = deal(raw, experiment.parties, data.person, partition)
        if folder is not None:
            dealt = [
                digest(raw.astype("str")),
                experiment.seed,
                experiment.parties.model_dump(mode="json"),
            ]
            folder = folder / hashlib.sha256(json.dumps(dealt).encode()).hexdigest()[:12]
        rules = Rules.read(Path(protection.disclosure) if protection.disclosure else None)
        tables = {name: raw.iloc[rows] for name, rows in owners.items()}
        return cls.of(
            tables,
            contract,
            rules,
            person=data.person,
            folder=folder,
            budget=protection.budget,
            noised=protection.noised,
        )


class Desk:
    """Where an analyst asks questions of all parties; open it with ``with``.

    federation: the parties, wherever they are; contract, rules, person: what they agreed on; fault:
    what is wrong with the table, if anybody knows. Raises :class:`~lab.errors.LabError` for all that
    can be explained.
    """

    def __init__(
        self,
        federation: Federation,
        contract: Contract,
        rules: Rules,
        person: str | None,
        fault: ContractError | None = None,
    ) -> None:
        self.federation, self.contract, self.rules = federation, contract, rules
        self.person, self._fault = person, fault
        self._grid: InProcessGrid | None = None

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
        desk = cls(federation, holdings.contract, holdings.rules, holdings.person, holdings.fault)
        desk._grid = grid
        return desk

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
        from federated.study.simulation import protected

        if not isinstance(experiment, Experiment):
            experiment = Experiment.read(experiment, changes)
        if experiment.protection.sums == "masks":
            raise ConfigurationError(
                "protection.sums = 'masks': the coordinator would see every total before the "
                "rules are kept; questions need 'paillier'"
            )
        place = Path(runs) / "parties" if runs is not None else None
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

        Its ``attrs`` tell ``hidden`` and ``cells``, ``rules`` in words, ``hiding``, ``noise``,
        ``seconds``, and ``receipt``: what left each party for this question.
        """
        started = time.perf_counter()
        before = {party: len(lines) for party, lines in self.federation.receipts().items()}
        plan = self._plan(text, noise)
        if self._fault is not None and plan.finish != "violations":
            raise self._fault
        answer = _finished(self, plan)
        seconds = time.perf_counter() - started
        answer.attrs |= {
            "sql": text,
            "rules": NOISED.format(self.rules.minimum_count.persons)
            if noise
            else words(self.rules),
            "hiding": self.federation.protection.hiding,
            "noise": noise.model_dump() if noise else None,
            "seconds": seconds,
            "receipt": [
                {"party": party, **asdict(line)}
                for party, lines in self.federation.receipts().items()
                for line in lines[before.get(party, 0) :]
            ],
        }
        return answer

    def _plan(self, text: str, noise: Noise | None) -> sql.Plan:
        contract, person = self.contract, self.person
        plan = sql.compile(text, contract, person, levels=self._levels)
        if plan.centred:
            centres = self._centres(plan, noise)
            plan = sql.compile(text, contract, person, levels=self._levels, centres=centres)
        rounded = self.rules.rounding.base > 1
        if rounded and any(f.operation != "total" for f in plan.formulas.values()):
            raise ConfigurationError(
                "query: counts are rounded by the rules, so no ratio of them is answered; ask for "
                "counts and sums"
            )
        if noise is not None:
            if plan.rungs or plan.finish in ("drift", "violations"):
                raise ConfigurationError("query: noise is for counts and sums; ask this without")
            plan.question = plan.question.model_copy(update={"noise": noise})
            cells.releases(plan.question, contract.columns)  # needs bounds: say so before asking
        return plan

    def _levels(self, column: str) -> tuple[str, ...]:
        (found,) = self.federation.levels(Task(target=column), (Feature(column=column),))
        return found

    def _centres(self, plan: sql.Plan, noise: Noise | None) -> dict[str, float]:
        """Public numbers near the middle: of the declared range under noise, else of the rows."""
        if noise is not None:
            columns = self.contract.columns
            ends = {c: (columns[c].minimum or 0.0, columns[c].maximum or 0.0) for c in plan.centred}
            return {c: (low + high) / 2 for c, (low, high) in ends.items()}
        totals = [ROWS]
        for column in plan.centred:
            totals.append(Total(kind="count", columns=(column,)))
            totals.append(Total(kind="sum", columns=(column,), centres=(0.0,)))
        asked = plan.question.model_copy(update={"axes": (), "totals": tuple(totals)})
        shown, found = self.totals(asked)
        means = {
            column: float(found[2 + 2 * k][0] / max(found[1 + 2 * k][0], 1.0))
            for k, column in enumerate(plan.centred)
        }
        return {c: float(f"{m:.9g}") if shown[0] else 0.0 for c, m in means.items()}

    # Rounds of messages.

    def _sum(self, statistic: str, question: Question, arrays: Any = None, **more: Any) -> Any:
        rules = json.loads(self.rules.model_dump_json())
        asked = json.loads(question.model_dump_json())
        return self.federation.sum(statistic, arrays, question=asked, rules=rules, **more)

    def totals(self, question: Question) -> tuple[Any, list[Floats]]:
        """Which cells are shown, and each total in them (0 where hidden)."""
        released = self._sum("cells", question)
        return released["shown"] > 0, [released[f"total {k}"] for k in range(len(question.totals))]

    def quantile(self, question: Question, rung: sql.Rung) -> tuple[Floats, Floats]:
        """Ends of the interval that holds the quantile of each cell, NaN where hidden.

        Everything follows from tables that are released like any other. The rank is moved from the
        ends until the minimum of persons lies on either side: 0 and 1 ask for bounds, and not for
        somebody's value.
        """
        within = Total(kind="count", columns=(rung.column,))
        shown, counts = self.totals(question.model_copy(update={"totals": (ROWS, within)}))
        least = self.rules.minimum_count.persons
        low, high = np.full(len(shown), np.nan), np.full(len(shown), np.nan)
        for cell in np.flatnonzero(shown & (counts[1] >= least)):
            held = float(counts[1][cell])
            rank = min(max(np.ceil(rung.share * held), least), max(held - least + 1, 1))
            low[cell], high[cell] = self._climbed(question.within(int(cell)), rung, rank, held)
        return low, high

    def _climbed(
        self, question: Question, rung: sql.Rung, rank: float, held: float
    ) -> tuple[float, float]:
        """The interval of a rank among ``held`` rows, narrowed by ladders of released counts.

        Each round puts a ladder where the rank is, until that is narrow enough or rungs are
        hidden, whose rows may be anywhere among them.
        """
        own = self.contract.columns[rung.column]  # which every row keeps
        low = -np.inf if own.minimum is None else own.minimum
        high = np.inf if own.maximum is None else float(np.nextafter(own.maximum, np.inf))
        start, end = rung.low, float(np.nextafter(rung.high, np.inf))
        for rungs in RUNGS:
            inner = np.linspace(start, end, rungs + 1)
            axis = Axis(column=rung.column, edges=(-BEYOND, *inner.tolist(), BEYOND))
            shown, (rows,) = self.totals(question.model_copy(update={"axes": (axis,)}))
            ends = np.concatenate([[-np.inf], inner, [np.inf]])
            sure = np.cumsum(rows)  # rows up to the end of each rung, at least and at most
            most = sure + np.where(np.cumsum(~shown) > 0, held - sure[-1], 0)
            low = max(low, ends[(most < rank).sum()])
            high = min(high, ends[min((sure < rank).sum() + 1, len(rows))])
            inside = max(low, start), min(high, end)
            narrowed = 0 < inside[1] - inside[0] <= (end - start) / 2
            if high - low <= rung.width or not narrowed:
                break
            start, end = inside
        return float(low), float(high)


# What is made of the totals.


def _finished(desk: Desk, plan: sql.Plan) -> pd.DataFrame:
    match plan.finish:
        case "violations":
            return _violations(desk, plan)
        case "drift":
            return _drift(desk, plan)
        case "missing":
            return _missing(desk, plan)
    table = _table(desk, plan)
    told = dict(table.attrs)
    if plan.finish != "table":
        table = _MADE[plan.finish](table, plan)
        table.attrs |= told
    return table


def _table(desk: Desk, plan: sql.Plan) -> pd.DataFrame:
    """A row for each cell, a column for each group and each output."""
    question = plan.question
    names = [axis.names for axis in question.axes]
    table = pd.DataFrame(list(product(*names)), columns=[a.column for a in question.axes])
    if not question.axes:
        table = pd.DataFrame(index=range(1))
    formulas = plan.formulas
    shown = np.ones(question.cells, dtype=bool)
    if formulas:
        shown, totals = desk.totals(question)
        masked = [np.where(shown, total, np.nan) for total in totals]
        spread = _spread(desk, question, masked) if question.noise else None
        for name, formula in formulas.items():
            table[name] = formula.value(masked)
            if spread is not None:
                low, high = _interval(formula, spread)
                table[f"{name} from"], table[f"{name} to"] = low, high
    for name, rung in plan.rungs.items():
        low, high = desk.quantile(question, rung)
        whole = desk.contract.columns[rung.column].type == "integer"
        shown &= ~np.isnan(low)
        table[name] = _middle(low, high, whole)
        table[f"{name} from"], table[f"{name} to"] = low, high
    if plan.outputs:
        table = table[[*table.columns[: len(question.axes)], *_ordered(plan, table)]]
    if plan.order is not None:
        name, falling = plan.order
        table = table.sort_values(name, ascending=not falling, kind="stable", ignore_index=True)
    if plan.limit is not None:
        table = table.head(plan.limit)
    table.attrs |= {"cells": question.cells, "hidden": int((~shown).sum())}
    return table


def _ordered(plan: sql.Plan, table: pd.DataFrame) -> list[str]:
    """Outputs in the order in which they were asked, each with its interval."""
    return [
        column
        for name in plan.outputs
        for column in (name, f"{name} from", f"{name} to")
        if column in table.columns
    ]


def _middle(low: Floats, high: Floats, whole: bool) -> Floats:
    """The middle of each interval; the whole number in it where there is just one."""
    with np.errstate(invalid="ignore"):
        middle = np.where(np.isfinite(high - low), (low + high) / 2, np.nan)
    first = np.ceil(low)
    alone = whole & (first < high) & (first + 1 >= high)
    return np.where(alone, first, middle)


def _spread(desk: Desk, question: Question, totals: list[Floats]) -> list[Floats]:
    """What each total might be without its noise: (draws, cells)."""
    columns, parties = desk.contract.columns, len(desk.federation.members)
    size = int(np.clip(HELD // question.cells, 200, DRAWS))
    rng = np.random.default_rng(0)
    spread = []
    for k, release in cells.releases(question, columns).items():
        step = cells.step_of(question.totals[k], columns)
        noise = draws(release, parties, size * question.cells, rng).reshape(size, question.cells)
        spread.append(totals[k] - noise * step)
    return spread


def _interval(formula: sql.Formula, spread: list[Floats]) -> tuple[Floats, Floats]:
    """Ends of the middle 95 % of what an output might be without the noise."""
    values = np.broadcast_to(formula.value(spread), spread[0].shape)
    low, high = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    known = ~np.isnan(values).all(axis=0)
    low[known], high[known] = np.nanquantile(values[:, known], [0.025, 0.975], axis=0)
    return low, high


def _violations(desk: Desk, plan: sql.Plan) -> pd.DataFrame:
    rules = list(broken(pd.DataFrame(), desk.contract))
    found = desk._sum("violations", plan.question, flags=len(rules))
    table = pd.DataFrame(rules, columns=["column", "rule"])
    table["rows"] = np.where(found["shown"] > 0, found["rows"], np.nan)
    table.attrs |= {"cells": len(rules), "hidden": int((found["shown"] == 0).sum())}
    return table


def _missing(desk: Desk, plan: sql.Plan) -> pd.DataFrame:
    """Empty values by column, each asked by itself: one that few have hides no other."""
    found = dict.fromkeys(plan.outputs, 0.0)
    for total in plan.question.totals[1:]:
        asked = plan.question.model_copy(update={"totals": (ROWS, total)})
        shown, (rows, filled) = desk.totals(asked)
        found[total.columns[0]] = float(rows[0] - filled[0]) if shown[0] else np.nan
    table = pd.DataFrame({"column": list(found), "missing": list(found.values())})
    table.attrs |= {"cells": len(table), "hidden": int(table["missing"].isna().sum())}
    return table


def _drift(desk: Desk, plan: sql.Plan) -> pd.DataFrame:
    """The stability index of the parties against the market: its mean, and how many are beyond a line."""
    shown, (counts, *_) = desk.totals(plan.question)
    if not shown.any():
        raise ContractError("drift: no cell of this column may be shown; take wider intervals")
    shares = counts / counts.sum()
    found = desk._sum("drift", plan.question, {"shares": shares})
    parties = found.total("parties")
    table = pd.DataFrame(
        {
            "column": plan.arguments[0],
            "parties": int(parties),
            "mean index": found.total("index") / parties,
            **{f"above {line}": int(found.total(name)) for name, line in cells.DRIFTS.items()},
        },
        index=range(1),
    )
    table.attrs |= {"cells": plan.question.cells, "hidden": int((~shown).sum())}
    return table


def _triangle(table: pd.DataFrame, plan: sql.Plan) -> pd.DataFrame:
    """Latest, ultimate and reserve by origin; the factors and the triangle are in ``attrs``."""
    origin, development = (axis.column for axis in plan.question.axes)
    named = {origin: "origin", development: "development"}
    first = table[origin].min()
    calendar = table[development].min() >= first > 1
    if calendar:
        table = table[table[development] >= table[origin]]
    found = actuarial.triangle(table.rename(columns=named), "calendar" if calendar else "age")
    made = found.ultimates.reset_index(names=origin)
    made.attrs["factors"] = found.factors.reset_index().to_dict("records")
    made.attrs["reserve"] = {"reserve": found.reserve, "standard_error": found.standard_error}
    made.attrs["cumulative"] = found.cumulative.to_dict("split")
    return made


def _intervals(table: pd.DataFrame, plan: sql.Plan) -> tuple[pd.DataFrame, str | None]:
    """Totals with the start and the end of each interval of time, and the grouping column."""
    *groups, time = plan.question.axes
    bounds = [float(edge) for edge in plan.arguments]
    named = dict(zip(time.names, pairwise(bounds), strict=False))
    ends = [named.get(cell) or (cell - 1, cell) for cell in table[time.column]]
    start, end = zip(*ends, strict=True)
    totals = table.drop(columns=time.column).assign(start=start, end=end)
    return totals, groups[0].column if groups else None


def _survival(table: pd.DataFrame, plan: sql.Plan) -> pd.DataFrame:
    totals, group = _intervals(table, plan)
    found = actuarial.survival(totals, group)
    made = (
        found.curve.rename(columns={"group": group}) if group else found.curve.drop(columns="group")
    )
    made.attrs["medians"] = {str(name): float(median) for name, median in found.medians.items()}
    return made


def _log_rank(table: pd.DataFrame, plan: sql.Plan) -> pd.DataFrame:
    totals, group = _intervals(table, plan)
    if group is None:
        raise ConfigurationError("query: log_rank(time, event) compares groups: add GROUP BY")
    statistic, df, p = actuarial.log_rank(totals, group)
    return pd.DataFrame({"chi2": statistic, "df": df, "p": p}, index=range(1))


def _matrix(table: pd.DataFrame, plan: sql.Plan) -> pd.DataFrame:
    names = list(plan.arguments)
    values = {name: float(table[name].iloc[0]) for name in plan.outputs}
    full = [[values.get(f"{a} {b}", values.get(f"{b} {a}")) for b in names] for a in names]
    return pd.DataFrame(full, index=pd.Index(names), columns=names, dtype=float)


def _correlation(table: pd.DataFrame, plan: sql.Plan) -> pd.DataFrame:
    covariance = _matrix(table, plan)
    spread = np.sqrt(np.diag(covariance))
    with np.errstate(all="ignore"):
        made = covariance.div(spread, axis=0).div(spread, axis=1)
    return made.clip(-1, 1)


_MADE = {
    "triangle": _triangle,
    "survival": _survival,
    "log_rank": _log_rank,
    "matrix": _matrix,
    "correlation": _correlation,
}
