"""What is made of released totals: a table of cells, a triangle, a curve, a matrix."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd

from federated.queries import curves
from federated.queries.quantiles import Answering, quantile
from lab.errors import ContractError, ModelError
from lab.privacy.noise import draws
from lab.queries import actuarial, cells
from lab.queries.formulas import Formula
from lab.queries.questions import ROWS, Question
from lab.queries.whole_answers import CURVES, Plan, is_calendar
from lab.sums import Floats
from lab.tables.checks import broken

#: Draws of the noise behind an interval, and cells times draws held at once.
DRAWS, HELD = 2_000, 4_000_000


def finished(desk: Answering, plan: Plan) -> pd.DataFrame:
    """The answer to a planned question, NaN where hidden.

    Its ``attrs`` tell ``cells``, ``hidden`` and ``left_out``: rows that are in no cell that is
    shown, None where their number is held back.
    """
    match plan.finish:
        case "violations":
            return _violations(desk, plan)
        case "drift":
            return _drift(desk, plan)
        case "missing":
            return _missing(desk, plan)
    table, rows = _table(desk, plan)
    if plan.finish in CURVES:
        table, rows = curves.completed(desk, plan, table)
    table.attrs["left_out"] = _left_out(desk, plan, rows)
    answer = table if plan.finish == "table" else _MADE[plan.finish](table, plan)
    answer.attrs |= table.attrs
    return answer.rename(columns=plan.names)


def _left_out(desk: Answering, plan: Plan, rows: Floats) -> int | None:
    """How many of the rows asked about are not among those of the cells; NaN is hidden."""
    if plan.everybody is None:
        return 0
    if plan.question.noise is not None or desk.rules.rounding.base > 1:
        return None
    visible, (everybody,) = desk.totals(plan.everybody)
    return int(everybody[0] - np.nansum(rows)) if visible[0] else None


def _table(desk: Answering, plan: Plan) -> tuple[pd.DataFrame, Floats]:
    """A row for each cell, a column for each group and each output; and the rows of each cell."""
    question = plan.question
    names = [axis.names for axis in question.axes]
    table = pd.DataFrame(list(product(*names)), columns=[a.column for a in question.axes])
    if not question.axes:
        table = pd.DataFrame(index=range(1))
    formulas = plan.formulas
    visible, rows = np.ones(question.cells, dtype=bool), np.zeros(question.cells)
    if formulas or plan.everybody is not None or plan.having is not None:
        visible, totals = desk.totals(question)
        masked = [np.where(visible, total, np.nan) for total in totals]
        rows = masked[0]
        spread = _spread(desk, question, masked) if question.noise else None
        for name, formula in formulas.items():
            table[name] = formula.value(masked)
            if spread is not None:
                low, high = _interval(formula, spread)
                table[f"{name} from"], table[f"{name} to"] = low, high
    for name, rung in plan.rungs.items():
        low, high = quantile(desk, question, rung)
        whole = desk.contract.columns[rung.column].type == "integer"
        visible &= ~np.isnan(low)
        table[name] = _middle(low, high, whole)
        table[f"{name} from"], table[f"{name} to"] = low, high
    if plan.outputs:
        table = table[[*table.columns[: len(question.axes)], *_ordered(plan, table)]]
    if plan.having is not None:
        holds = np.broadcast_to(plan.having.value(masked) == 1, rows.shape)
        table = table[holds].reset_index(drop=True)
    if plan.order is not None:
        name, falling = plan.order
        table = table.sort_values(name, ascending=not falling, kind="stable", ignore_index=True)
    if plan.limit is not None:
        table = table.head(plan.limit)
    table.attrs |= {"cells": question.cells, "hidden": int((~visible).sum())}
    return table, rows


def _ordered(plan: Plan, table: pd.DataFrame) -> list[str]:
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
    defined = ~np.isnan(values).all(axis=0)
    low[defined], high[defined] = np.nanquantile(values[:, defined], [0.025, 0.975], axis=0)
    return low, high


def _violations(desk: Answering, plan: Plan) -> pd.DataFrame:
    rules = list(broken(pd.DataFrame(), desk.contract))
    totals = desk.sum("violations", plan.question, flags=len(rules))
    table = pd.DataFrame(rules, columns=["column", "rule"])
    table["rows"] = np.where(totals["shown"] > 0, totals["rows"], np.nan)
    table.attrs |= {"cells": len(rules), "hidden": int((totals["shown"] == 0).sum())}
    return table


def _missing(desk: Answering, plan: Plan) -> pd.DataFrame:
    """Empty values by column, each asked by itself: one that few have hides no other."""
    totals = dict.fromkeys(plan.outputs, 0.0)
    for total in plan.question.totals[1:]:
        question = plan.question.model_copy(update={"totals": (ROWS, total)})
        visible, (rows, filled) = desk.totals(question)
        totals[total.columns[0]] = float(rows[0] - filled[0]) if visible[0] else np.nan
    table = pd.DataFrame({"column": list(totals), "missing": list(totals.values())})
    table.attrs |= {"cells": len(table), "hidden": int(table["missing"].isna().sum())}
    return table


def _drift(desk: Answering, plan: Plan) -> pd.DataFrame:
    """The stability index of the parties against the market: its mean, and how many are beyond a line."""
    visible, (counts, *_) = desk.totals(plan.question)
    if not visible.any():
        raise ContractError("drift: no cell of this column may be shown; take wider intervals")
    shares = counts / counts.sum()
    totals = desk.sum("drift", plan.question, {"shares": shares})
    parties = totals.total("parties")
    table = pd.DataFrame(
        {
            "column": plan.arguments[0],
            "parties": int(parties),
            "mean index": totals.total("index") / parties,
            **{f"above {line}": int(totals.total(name)) for name, line in cells.DRIFTS.items()},
        },
        index=range(1),
    )
    rows = np.where(visible, counts, np.nan)
    table.attrs |= {"cells": plan.question.cells, "hidden": int((~visible).sum())}
    table.attrs["left_out"] = _left_out(desk, plan, rows)
    return table


def _triangle(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Latest, ultimate and reserve by origin; the factors and the triangle are in ``attrs``."""
    origin, development = (axis.column for axis in plan.question.axes)
    cells = table.rename(columns={origin: "origin", development: "development"})
    calendar = is_calendar(*plan.question.axes)
    if calendar:
        early = cells["development"] < cells["origin"]
        if (cells[early]["value"].fillna(0) != 0).any():
            raise ModelError(
                f"amounts with a '{development}' before their '{origin}': a triangle starts with its "
                "origins; leave such rows out with WHERE"
            )
        cells = cells[~early]
    fit = actuarial.triangle(cells, "calendar" if calendar else "age")
    answer = fit.ultimates.reset_index(names=origin)
    answer.attrs["factors"] = fit.factors.reset_index().to_dict("records")
    answer.attrs["reserve"] = {"reserve": fit.reserve, "standard_error": fit.standard_error}
    answer.attrs["unpaid"] = fit.unpaid
    answer.attrs["cumulative"] = fit.cumulative.to_dict("split")
    return answer


def _matrix(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    names = list(plan.arguments)
    values = {name: float(table[name].iloc[0]) for name in plan.outputs}
    full = [[values.get(f"{a} {b}", values.get(f"{b} {a}")) for b in names] for a in names]
    return pd.DataFrame(full, index=pd.Index(names), columns=names, dtype=float)


def _correlation(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    covariance = _matrix(table, plan)
    spread = np.sqrt(np.diag(covariance))
    with np.errstate(all="ignore"):
        correlation = covariance.div(spread, axis=0).div(spread, axis=1)
    return correlation.clip(-1, 1)


_MADE = {
    "triangle": _triangle,
    "survival": curves.survival,
    "log_rank": curves.log_rank,
    "matrix": _matrix,
    "correlation": _correlation,
}
