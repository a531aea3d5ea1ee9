"""Functions that are a whole answer: survival, a triangle, matrices, drift, violations.

Each becomes a :class:`Plan`: the question to the parties, what is computed from its totals, and how
the answer is finished. Errors are those of `lab.queries.sql_parse`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from sqlglot import exp

from lab.errors import ConfigurationError
from lab.queries.actuarial import LONGEST
from lab.queries.formulas import Formula
from lab.queries.questions import Axis, Question
from lab.queries.sql_functions import Rung, Totals
from lab.queries.sql_parse import MOST_LEVELS, Scope, call, function_name

#: The end of an interval that holds everything from its start on; JSON has no infinity.
ENDLESS = 1e300
#: How an answer is finished: as a table of cells, or as what is made of the whole table.
Finish = Literal[
    "table",
    "matrix",
    "correlation",
    "missing",
    "triangle",
    "survival",
    "log_rank",
    "drift",
    "violations",
]
#: Finishes that are curves over time.
CURVES = ("survival", "log_rank")


@dataclass
class Plan:
    """A question, what is computed from its totals, and how the answer is laid out.

    everybody: the rows of WHERE in one cell, asked where some of them may stand in no cell of the
    answer; open_end: who leaves in each interval of a curve, the last one without an end.
    """

    question: Question
    outputs: dict[str, Formula | Rung] = field(default_factory=dict)
    finish: Finish = "table"
    arguments: tuple[str, ...] = ()
    centred: tuple[str, ...] = ()  # columns whose mean should be the centre of their sums
    order: tuple[str, bool] | None = None  # an output's name, descending
    limit: int | None = None
    having: Formula | None = None  # 1 in the cells that stay, of released totals
    names: dict[str, str] = field(
        default_factory=dict
    )  # grouping columns that are called otherwise
    everybody: Question | None = None
    open_end: Question | None = None

    @property
    def formulas(self) -> dict[str, Formula]:
        """The outputs that the question's totals give a value."""
        return {name: one for name, one in self.outputs.items() if isinstance(one, Formula)}

    @property
    def rungs(self) -> dict[str, Rung]:
        """The outputs that are looked for by further questions."""
        return {name: rung for name, rung in self.outputs.items() if isinstance(rung, Rung)}


Axes = tuple[Axis, ...]


def whole_answer(nodes: list[Any]) -> exp.Anonymous | None:
    """The item that is a whole answer, if there is one. Raises where anything stands beside it."""
    items = [node.unalias() for node in nodes]
    wholes: list[exp.Anonymous] = [
        n for n in items if function_name(n) in WHOLE or _of_all_columns(n)
    ]
    if not wholes:
        return None
    name = function_name(wholes[0])
    groups = name in BY_GROUP
    others = [n for n in nodes if not (groups and isinstance(n.unalias(), exp.Column))]
    if len(others) > 1:
        raise ConfigurationError(f"query: {name}() is a whole answer; ask it alone")
    return wholes[0]


def _of_all_columns(node: Any) -> bool:
    """missing(*), of every column."""
    if function_name(node) != "missing":
        return False
    return any(isinstance(argument, exp.Star) for argument in node.expressions)


def alone(totals: Totals, node: exp.Anonymous, axes: Axes) -> Plan:
    name, arguments = call(node)
    most = 1 if name in BY_GROUP else 0
    if len(axes) > most:
        raise ConfigurationError(f"query: {name}() goes with at most {most} grouping columns")
    return WHOLE.get(name, _missing)(totals, arguments, axes)


def _laid_out(totals: Totals, finish: Finish, axes: Axes = (), *arguments: str) -> Plan:
    question = Question(table=totals.scope.contract.name, axes=axes)
    return Plan(question, finish=finish, arguments=arguments)


def _missing(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    plan = _laid_out(totals, "missing")
    for name, column in totals.scope.contract.columns.items():
        if column.role not in ("identifier", "never_leaves") and name != totals.scope.person:
            plan.outputs[name] = totals.rows() - totals.count(name)
    return plan


def _violations(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    return _laid_out(totals, "violations")


def _drift(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    if len(arguments) == 1:
        axis = totals.scope.axis(arguments[0])
    else:
        axis = totals.scope.axis(exp.Anonymous(this="cut", expressions=arguments))
    return _laid_out(totals, "drift", (axis.model_copy(update={"missing": False}),), axis.column)


def _histogram(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    if len(arguments) < 2:
        raise ConfigurationError(
            "query: histogram(column, bins) or histogram(column, edge, edge, …)"
        )
    scope = totals.scope
    column = scope.column(arguments[0], number=True)
    edges = tuple(scope.number(edge) for edge in arguments[1:])
    if len(edges) == 1:
        own = scope.contract.columns[column]
        low, high = own.minimum if own.above is None else own.above, own.maximum
        if low is None or high is None or not 1 <= edges[0] <= MOST_LEVELS:
            raise ConfigurationError(
                f"query: '{column}' needs a range in its contract, or edges: histogram({column}, 0, 10, 20)"
            )
        edges = tuple(np.linspace(low, high, int(edges[0]) + 1).tolist())
    axis = Axis(column=column, edges=edges, missing=scope.nullable(column))
    plan = _laid_out(totals, "table", (axis,))
    plan.outputs["count"] = totals.rows()
    return plan


def _covariance(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    return _matrix(totals, "matrix", arguments)


def _correlation(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    return _matrix(totals, "correlation", arguments)


def _matrix(totals: Totals, finish: Finish, arguments: list[Any]) -> Plan:
    names = totals.scope.columns(arguments, max(len(arguments), 2), finish)
    plan = _laid_out(totals, finish, (), *names)
    for a, b in itertools.combinations_with_replacement(names, 2):
        plan.outputs[f"{a} {b}"] = totals.comoment(a, b) / (totals.count(a, b) - 1.0)
    return plan


def _triangle(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    if len(arguments) != 3:
        raise ConfigurationError("query: triangle(amount, accident period, development period)")
    scope = totals.scope
    periods = [scope.axis(node).model_copy(update={"missing": False}) for node in arguments[1:]]
    for axis in periods:
        if not axis.levels or scope.contract.columns[axis.column].type != "integer":
            raise ConfigurationError(
                f"query: periods of a triangle are whole numbers with a range; '{axis.column}' has "
                f"none in contract {scope.contract.name}"
            )
    plan = _laid_out(totals, "triangle", tuple(periods))
    plan.outputs["value"] = totals.sum(scope.column(arguments[0], number=True))
    return plan


def is_calendar(origin: Axis, development: Axis) -> bool:
    """Whether development is the calendar period of payment and not a lag: its numbers start with
    those of the origins, or reach them where no lag does."""
    origins, periods = ([float(v) for v in axis.levels] for axis in (origin, development))
    first = min(origins)
    return min(periods) >= first > 1 or max(periods) >= first > LONGEST


def _survival(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    if len(arguments) < 2:
        raise ConfigurationError(
            "query: survival(time, event) or survival(time, event, edge, edge, …)"
        )
    scope = totals.scope
    time = _time(scope, arguments[0], [scope.number(edge) for edge in arguments[2:]])
    event = scope.column(arguments[1], number=True)
    own = scope.contract.columns[event]
    if own.type != "integer" or (own.minimum, own.maximum) != (0, 1):
        raise ConfigurationError(
            f"query: '{event}' must be 1 for the event and 0 for none; give it type = 'integer', "
            f"minimum = 0 and maximum = 1 in contract {scope.contract.name}"
        )
    plan = _laid_out(totals, "survival", (*axes, time), *map(str, time.edges))
    plan.outputs["leaving"] = totals.rows()
    plan.outputs["events"] = totals.sum(event)
    last = scope.contract.columns[time.column].maximum
    if time.edges and (last is None or last > time.edges[-1]):
        endless = time.model_copy(update={"edges": (*time.edges[:-1], ENDLESS)})
        plan.open_end = plan.question.model_copy(update={"axes": (*axes, endless)})
    return plan


def _time(scope: Scope, node: Any, edges: list[float]) -> Axis:
    """The intervals of a curve: time starts at 0, an edge is a time for which it is told."""
    if not edges:
        axis = scope.axis(node)
        levels = tuple(v for v in axis.levels if isinstance(v, str) or v >= 0)
        return axis.model_copy(update={"levels": levels, "missing": False})
    if edges[0] < 0:
        raise ConfigurationError("query: survival(time, event, edge, …): time starts at 0")
    starts = [0.0] * (edges[0] > 0)
    return Axis(column=scope.column(node, number=True), edges=(*starts, *edges))


def _log_rank(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    if len(axes) != 1:
        raise ConfigurationError("query: log_rank(time, event) compares groups: add GROUP BY")
    return replace(_survival(totals, arguments, axes), finish="log_rank")


#: What plans each function that is a whole answer; those of them that go with GROUP BY, and those
#: about the rows in which no column is empty.
WHOLE: dict[str, Callable[[Totals, list[Any], Axes], Plan]] = {
    "violations": _violations,
    "drift": _drift,
    "histogram": _histogram,
    "covariance": _covariance,
    "correlation": _correlation,
    "triangle": _triangle,
    "survival": _survival,
    "log_rank": _log_rank,
}
BY_GROUP = CURVES
OF_COMPLETE_ROWS = ("covariance", "correlation", *CURVES)
