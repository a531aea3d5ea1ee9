"""What an analyst types, as a question to the parties and arithmetic on the totals that come back.

The text is parsed and never executed: it becomes a :class:`~lab.queries.questions.Question`, or it
is refused with the reason. A party sees the question alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from sqlglot import exp

from lab.errors import ConfigurationError, PolicyError
from lab.queries.questions import (
    Axis,
    Condition,
    Empty,
    Every,
    Not,
    Question,
    check,
    constants,
)
from lab.queries.sql_functions import Formula, Rung, SelectItems, Totals
from lab.queries.sql_parse import (
    MOST_LEVELS,
    Scope,
    call,
    function_name,
    never_empty,
    refusal,
    statement_of,
)
from lab.tables.contracts import Contract

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


@dataclass
class Plan:
    """A question, what is computed from its totals, and how the answer is laid out."""

    question: Question
    outputs: dict[str, Formula | Rung] = field(default_factory=dict)
    finish: Finish = "table"
    arguments: tuple[str, ...] = ()
    centred: tuple[str, ...] = ()  # columns whose mean should be the centre of their sums
    order: tuple[str, bool] | None = None  # an output's name, descending
    limit: int | None = None

    @property
    def formulas(self) -> dict[str, Formula]:
        """The outputs that the question's totals give a value."""
        return {name: one for name, one in self.outputs.items() if isinstance(one, Formula)}

    @property
    def rungs(self) -> dict[str, Rung]:
        """The outputs that are looked for by further questions."""
        return {name: rung for name, rung in self.outputs.items() if isinstance(rung, Rung)}


def compile(
    text: str,
    contract: Contract,
    person: str | None = None,
    *,
    levels: Callable[[str], tuple[str, ...]] | None = None,
    centres: Mapping[str, float] | None = None,
) -> Plan:
    """Read SQL. Raises :class:`ConfigurationError` with the place and the reason.

    levels: finds the levels of a text column for which the contract lists none; centres: the public
    numbers that sums of squares are taken around (else 0).
    """
    select = statement_of(text)
    scope = Scope(contract, person, levels or (lambda column: ()))
    try:
        plan = _plan(select, scope, centres or {})
        check(plan.question, contract, person)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"query: {reason}") from None
    except PolicyError as error:
        raise ConfigurationError(f"query: {error}") from None
    except RecursionError:
        raise ConfigurationError("query: nested too deeply") from None
    return plan


def columns_of(text: str, contract: Contract, person: str | None) -> set[str]:
    """The columns that a question in SQL looks at. Raises :class:`ConfigurationError`."""
    plan = compile(text, contract, person, levels=lambda column: ("",))
    return plan.question.columns | {rung.column for rung in plan.rungs.values()}


def belongs(
    question: Question,
    text: str,
    contract: Contract,
    person: str | None,
    statistic: str = "cells",
) -> bool:
    """Whether a question is asked on the way to the answer of this SQL.

    It is about the same rows in the same cells, with totals of the same columns, around 0 where the
    answer needs no other centre; violations and drift are asked for by their names. A quantile asks
    beside that for counts of its column, by intervals, within one of the cells. Levels of a column
    for which the contract lists none are those of the question. Raises
    :class:`ConfigurationError` for SQL that is not answered.
    """
    # 1. What the SQL asks as a whole, with the question's own values for levels.
    levels: dict[str, tuple[Any, ...]] = {axis.column: axis.levels for axis in question.axes}
    for column, value, _ in constants(question.where):
        levels[column] = (*levels.get(column, ()), value)
    plan = compile(text, contract, person, levels=lambda column: levels.get(column, ("",)))
    whole = plan.question
    # 2. The question is made for nothing else, and takes no totals that the answer does not need.
    if statistic != "cells" and statistic != plan.finish:
        return False
    if any(c and column not in plan.centred for c, column in _centres(question)):
        return False
    quantiles = {rung.column for rung in plan.rungs.values()}
    totals = {(total.kind, total.columns) for total in whole.totals}
    totals |= {(kind, (c,)) for kind in ("count", "sum") for c in plan.centred}
    totals |= {("count", (column,)) for column in quantiles}
    if not {(total.kind, total.columns) for total in question.totals} <= totals:
        return False
    # 3. Its rows are those of the whole, or those of one cell by intervals of a quantile's column.
    if question.where == whole.where and question.axes in ((), whole.axes):
        return True
    ladder = all(axis.column in quantiles for axis in question.axes)
    cells = (whole.within(cell).where for cell in range(whole.cells))
    return bool(quantiles) and ladder and any(question.where == where for where in cells)


def _centres(question: Question) -> Iterator[tuple[float, str]]:
    for total in question.totals:
        yield from zip(total.centres, total.columns, strict=False)  # a count has no centre


def _plan(select: exp.Select, scope: Scope, centres: Mapping[str, float]) -> Plan:
    # 1. Which rows, in which cells.
    table = scope.table(select)
    clause = select.args.get("where")
    where = scope.condition(clause.this) if clause else None
    scope = replace(scope, never_empty=frozenset(never_empty(where)))
    whole = _whole_answer(select.expressions)
    if whole is not None and function_name(whole) in _OF_COMPLETE_ROWS:
        where = _complete(scope, where, *call(whole))
        scope = replace(scope, never_empty=frozenset(never_empty(where)))
    group = select.args.get("group") or exp.Group()
    if any(value for key, value in group.args.items() if key != "expressions"):
        raise refusal(group)
    axes = tuple(scope.axis(node) for node in group.expressions)
    # 2. What of them, which collects the totals.
    totals = Totals(scope, centres)
    if whole is not None:
        plan = _alone(totals, whole, axes)
    else:
        outputs = SelectItems(totals, _WHOLE).outputs(select.expressions, group.expressions)
        plan = Plan(Question(table=table, axes=axes), outputs)
        if names := [axis.column for axis in axes if axis.column in outputs]:
            raise ConfigurationError(f"query: '{names[0]}' is a group; call the output otherwise")
    # 3. The question as the parties get it, checked again as a whole.
    question = plan.question.model_copy(
        update={"where": where, "totals": tuple(totals.entries), "person": scope.person}
    )
    plan.question = Question.model_validate(question.model_dump())
    plan.centred = tuple(dict.fromkeys(totals.moments))
    _lay_out(plan, select)
    return plan


def _complete(
    scope: Scope, where: Condition | None, name: str, arguments: list[Any]
) -> Condition | None:
    """The rows that have a value in every one of the columns: all moments are of the same rows."""
    columns = scope.columns(arguments, max(len(arguments), 2), name)
    filled = [Not(of=Empty(column=column)) for column in columns if scope.nullable(column)]
    if not filled:
        return where
    return Every(of=(*filled, *(() if where is None else (where,))))


def _lay_out(plan: Plan, select: exp.Select) -> None:
    """Take ORDER BY and LIMIT into the plan."""
    if select.args.get("order"):
        first, *more = select.args["order"].expressions
        sql = first.this.sql(normalize_functions=False)
        name = first.this.name if isinstance(first.this, exp.Column) else sql
        names = [*plan.outputs, *(axis.column for axis in plan.question.axes)]
        if more or name not in names or plan.finish != "table":
            raise ConfigurationError("query: ORDER BY one column of the answer")
        plan.order = (name, bool(first.args.get("desc")))
    if select.args.get("limit"):
        count = select.args["limit"].args.get("expression")
        if not isinstance(count, exp.Literal) or not count.name.isdecimal():
            raise ConfigurationError("query: LIMIT takes one whole number")
        plan.limit = int(count.name)


# Functions that are a whole answer.

Axes = tuple[Axis, ...]


def _whole_answer(nodes: list[Any]) -> exp.Anonymous | None:
    """The item that is a whole answer, if there is one. Raises where anything stands beside it."""
    items = [node.unalias() for node in nodes]
    wholes: list[exp.Anonymous] = [
        n for n in items if function_name(n) in _WHOLE or _of_all_columns(n)
    ]
    if not wholes:
        return None
    name = function_name(wholes[0])
    groups = name in _BY_GROUP
    others = [n for n in nodes if not (groups and isinstance(n, exp.Column))]
    if len(others) > 1:
        raise ConfigurationError(f"query: {name}() is a whole answer; ask it alone")
    return wholes[0]


def _of_all_columns(node: Any) -> bool:
    """missing(*), of every column."""
    if function_name(node) != "missing":
        return False
    return any(isinstance(argument, exp.Star) for argument in node.expressions)


def _alone(totals: Totals, node: exp.Anonymous, axes: Axes) -> Plan:
    name, arguments = call(node)
    most = 1 if name in _BY_GROUP else 0
    if len(axes) > most:
        raise ConfigurationError(f"query: {name}() goes with at most {most} grouping columns")
    return _WHOLE.get(name, _missing)(totals, arguments, axes)


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
    plan = _laid_out(totals, "triangle", (scope.axis(arguments[1]), scope.axis(arguments[2])))
    plan.outputs["value"] = totals.sum(scope.column(arguments[0], number=True))
    return plan


def _survival(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    if len(arguments) < 2:
        raise ConfigurationError(
            "query: survival(time, event) or survival(time, event, edge, edge, …)"
        )
    scope = totals.scope
    edges = [scope.number(edge) for edge in arguments[2:]]
    if edges:  # who leaves at an edge leaves at the end of an interval
        just_after = [float(np.nextafter(edge, np.inf)) for edge in edges[1:]]
        name = scope.column(arguments[0], number=True)
        time = Axis(column=name, edges=(edges[0], *just_after))
    else:
        time = scope.axis(arguments[0]).model_copy(update={"missing": False})
    plan = _laid_out(totals, "survival", (*axes, time), *map(str, edges))
    plan.outputs["leaving"] = totals.rows()
    plan.outputs["events"] = totals.sum(scope.column(arguments[1], number=True))
    return plan


def _log_rank(totals: Totals, arguments: list[Any], axes: Axes) -> Plan:
    if len(axes) != 1:
        raise ConfigurationError("query: log_rank(time, event) compares groups: add GROUP BY")
    return replace(_survival(totals, arguments, axes), finish="log_rank")


#: What plans each function that is a whole answer; those of them that go with GROUP BY, and those
#: about the rows in which no column is empty.
_WHOLE: dict[str, Callable[[Totals, list[Any], Axes], Plan]] = {
    "violations": _violations,
    "drift": _drift,
    "histogram": _histogram,
    "covariance": _covariance,
    "correlation": _correlation,
    "triangle": _triangle,
    "survival": _survival,
    "log_rank": _log_rank,
}
_BY_GROUP = ("survival", "log_rank")
_OF_COMPLETE_ROWS = ("covariance", "correlation")
