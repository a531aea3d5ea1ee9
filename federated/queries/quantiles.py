"""Quantiles from released counts alone: ladders of intervals, finer where the rank is."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from lab.privacy.disclosure import Rules
from lab.queries.questions import ROWS, Axis, Question, Total
from lab.queries.sql_functions import Rung
from lab.sums import Floats, Sums
from lab.tables.contracts import Contract

#: Rungs on each side of a quantile's first ladder, each half as wide as the next one inside: the
#: rows of skewed columns lie near one end. Rungs of each later one, most ladders, their outer ends.
SIDE, RUNGS, LADDERS = 8, 4, 24
BEYOND = 1e300


class Answering(Protocol):
    """Whoever gets released totals from the parties."""

    contract: Contract
    rules: Rules

    @property
    def parties(self) -> int:
        """How many are asked."""

    def sum(self, statistic: str, question: Question, arrays: Any = None, **more: Any) -> Sums:
        """What is released of a statistic of a question."""

    def totals(self, question: Question) -> tuple[Any, list[Floats]]:
        """Which cells are shown, and each total in them (0 where hidden)."""


def quantile(desk: Answering, question: Question, rung: Rung) -> tuple[Floats, Floats]:
    """Ends of the interval that holds the quantile of each cell, NaN where hidden, or where the
    interval would say no more than the range in which it was looked for.

    Everything follows from tables that are released like any other. The rank is moved from the
    ends until the minimum of persons lies on either side: 0 and 1 ask for bounds, and not for
    somebody's value.
    """
    within = Total(kind="count", columns=(rung.column,))
    visible, counts = desk.totals(question.model_copy(update={"totals": (ROWS, within)}))
    least = desk.rules.minimum_count.persons
    low, high = np.full(len(visible), np.nan), np.full(len(visible), np.nan)
    for cell in np.flatnonzero(visible & (counts[1] >= least)):
        rows = float(counts[1][cell])
        rank = min(max(np.ceil(rung.share * rows), least), max(rows - least + 1, 1))
        ends = _climbed(desk, question.within(int(cell)), rung, rank, rows)
        if ends[0] > rung.low or ends[1] <= rung.high:
            low[cell], high[cell] = ends
    return low, high


def _climbed(
    desk: Answering, question: Question, rung: Rung, rank: float, count: float
) -> tuple[float, float]:
    """The interval of a rank among ``count`` rows, narrowed by ladders of released counts.

    Each round puts a ladder where the rank is, or one of fewer rungs where too many were hidden,
    whose rows may be anywhere among them, until it is narrow enough or nothing helps.
    """
    own = desk.contract.columns[rung.column]  # which every row keeps
    low = -np.inf if own.minimum is None else own.minimum
    high = np.inf if own.maximum is None else float(np.nextafter(own.maximum, np.inf))
    start, end = rung.low, float(np.nextafter(rung.high, np.inf))
    inner = _first(start, end)
    for _ in range(LADDERS):
        with np.errstate(under="ignore"):  # below 0 is the least number that there is
            below = np.nextafter(inner, -np.inf)  # (below a, below b] is [a, b)
        axis = Axis(column=rung.column, edges=(-BEYOND, *below.tolist(), BEYOND))
        visible, (rows,) = desk.totals(question.model_copy(update={"axes": (axis,)}))
        ends = np.concatenate([[-np.inf], inner, [np.inf]])
        sure = np.cumsum(rows)  # rows up to the end of each rung, at least and at most
        most = sure + np.where(np.cumsum(~visible) > 0, count - sure[-1], 0)
        low = max(low, ends[(most < rank).sum()])
        high = min(high, ends[min((sure < rank).sum() + 1, len(rows))])
        inside = max(low, start), min(high, end)
        if high - low <= rung.width:
            break
        if 0 < inside[1] - inside[0] <= (end - start) / 2:
            start, end = inside
            inner = np.linspace(start, end, RUNGS + 1)
        elif len(inner) > 3:  # rungs of few persons hide others: join them by twos
            inner = np.append(inner[:-1:2], inner[-1])
        else:
            break
    return float(low), float(high)


def _first(start: float, end: float) -> Floats:
    """Edges of the first ladder."""
    steps = (end - start) * 0.5 ** np.arange(SIDE, 0, -1)
    return np.concatenate([[start], start + steps, end - steps[-2::-1], [end]])
