"""Curves over time from released totals: Kaplan–Meier, and the test that compares groups."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd

from federated.queries.quantiles import Answering
from lab.errors import ConfigurationError, ModelError
from lab.queries import actuarial
from lab.queries.questions import ROWS
from lab.queries.whole_answers import Plan
from lab.sums import Floats


def completed(desk: Answering, plan: Plan, table: pd.DataFrame) -> tuple[pd.DataFrame, Floats]:
    """The table of who leaves, with everybody at risk in it; and who leaves in each cell.

    Who leaves after the last edge is at risk up to it, and censored there. Raises
    :class:`ModelError` for times below 0, of which no curve tells anything.
    """
    if plan.open_end is not None:
        visible, (leaving,) = desk.totals(plan.open_end)
        hidden = table.attrs["hidden"] + int((~visible & table["leaving"].notna()).sum())
        table = table.assign(leaving=np.where(visible, leaving, np.nan))
        table.attrs["hidden"] = hidden
    rows = table["leaving"].to_numpy()
    if plan.everybody is None or table[["leaving", "events"]].isna().to_numpy().any():
        return table, rows
    margin = plan.question.model_copy(update={"axes": plan.question.axes[:-1], "totals": (ROWS,)})
    visible, (everybody,) = desk.totals(margin)
    before = everybody.sum() - rows.sum()
    if not visible.all() or before:
        time = plan.question.axes[-1].column
        number = f"{before:,.0f}" if visible.all() else "some"
        raise ModelError(
            f"{number} rows stand in no interval or group: a curve starts at 0, and '{time}' may "
            f"be below; add where {time} >= 0"
        )
    return table, rows


def _intervals(table: pd.DataFrame, plan: Plan) -> tuple[pd.DataFrame, str | None]:
    """Totals with the start and the end of each interval of time, and the grouping column."""
    *groups, time = plan.question.axes
    bounds = [float(edge) for edge in plan.arguments]
    intervals = dict(zip(time.names, pairwise(bounds), strict=False))
    ends = [intervals.get(cell) or (cell - 1, cell) for cell in table[time.column]]
    start, end = zip(*ends, strict=True)
    totals = table.drop(columns=time.column).assign(start=start, end=end)
    return totals, groups[0].column if groups else None


def survival(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """The curve of each group, its medians in ``attrs``."""
    totals, group = _intervals(table, plan)
    fit = actuarial.survival(totals, group)
    curve = fit.curve.rename(columns={"group": group}) if group else fit.curve.drop(columns="group")
    curve.attrs["medians"] = {str(name): float(median) for name, median in fit.medians.items()}
    return curve


def log_rank(table: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """The test statistic, its degrees of freedom and its p."""
    totals, group = _intervals(table, plan)
    if group is None:
        raise ConfigurationError("query: log_rank(time, event) compares groups: add GROUP BY")
    statistic, df, p = actuarial.log_rank(totals, group)
    return pd.DataFrame({"chi2": statistic, "df": df, "p": p}, index=range(1))
