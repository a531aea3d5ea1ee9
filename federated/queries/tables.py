"""What is made of released totals: a table of cells, a triangle, a curve, a matrix."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pandas as pd

from federated.queries.quantiles import Answering, quantile
from lab.errors import ConfigurationError, ContractError
from lab.privacy.noise import draws
from lab.queries import actuarial, cells
from lab.queries import sql_plan as sql
from lab.queries.questions import ROWS, Question
from lab.queries.sql_functions import Formula
from lab.sums import Floats
from lab.tables.checks import broken

#: Draws of the noise behind an interval, and cells times draws held at once.
DRAWS, HELD = 2_000, 4_000_000


def finished(desk: Answering, plan: sql.Plan) -> pd.DataFrame:
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


def _table(desk: Answering, plan: sql.Plan) -> pd.DataFrame:
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
        low, high = quantile(desk, question, rung)
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


def _spread(desk: Answering, question: Question, totals: list[Floats]) -> list[Floats]:
    """What each total might be without its noise: (draws, cells)."""
    columns, parties = desk.contract.columns, desk.parties
    size = int(np.clip(HELD // question.cells, 200, DRAWS))
    rng = np.random.default_rng(0)
    spread = []
    for k, release in cells.releases(question, columns).items():
        step = cells.step_of(question.totals[k], columns)
        noise = draws(release, parties, size * question.cells, rng).reshape(size, question.cells)
        spread.append(totals[k] - noise * step)
    return spread


def _interval(formula: Formula, spread: list[Floats]) -> tuple[Floats, Floats]:
    """Ends of the middle 95 % of what an output might be without the noise."""
    values = np.broadcast_to(formula.value(spread), spread[0].shape)
    low, high = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    known = ~np.isnan(values).all(axis=0)
    low[known], high[known] = np.nanquantile(values[:, known], [0.025, 0.975], axis=0)
    return low, high


def _violations(desk: Answering, plan: sql.Plan) -> pd.DataFrame:
    rules = list(broken(pd.DataFrame(), desk.contract))
    found = desk.sum("violations", plan.question, flags=len(rules))
    table = pd.DataFrame(rules, columns=["column", "rule"])
    table["rows"] = np.where(found["shown"] > 0, found["rows"], np.nan)
    table.attrs |= {"cells": len(rules), "hidden": int((found["shown"] == 0).sum())}
    return table


def _missing(desk: Answering, plan: sql.Plan) -> pd.DataFrame:
    """Empty values by column, each asked by itself: one that few have hides no other."""
    found = dict.fromkeys(plan.outputs, 0.0)
    for total in plan.question.totals[1:]:
        asked = plan.question.model_copy(update={"totals": (ROWS, total)})
        shown, (rows, filled) = desk.totals(asked)
        found[total.columns[0]] = float(rows[0] - filled[0]) if shown[0] else np.nan
    table = pd.DataFrame({"column": list(found), "missing": list(found.values())})
    table.attrs |= {"cells": len(table), "hidden": int(table["missing"].isna().sum())}
    return table


def _drift(desk: Answering, plan: sql.Plan) -> pd.DataFrame:
    """The stability index of the parties against the market: its mean, and how many are beyond a line."""
    shown, (counts, *_) = desk.totals(plan.question)
    if not shown.any():
        raise ContractError("drift: no cell of this column may be shown; take wider intervals")
    shares = counts / counts.sum()
    found = desk.sum("drift", plan.question, {"shares": shares})
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
