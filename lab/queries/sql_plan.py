"""What an analyst types, as a question to the parties and arithmetic on the totals that come back.

The text is parsed and never executed: it becomes a :class:`~lab.queries.questions.Question`, or it
is refused with the reason. A party sees the question alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from sqlglot import exp

from lab.errors import ConfigurationError, PolicyError
from lab.queries.across import AcrossSides
from lab.queries.questions import (
    Condition,
    Empty,
    Every,
    Not,
    Question,
    check,
    constants,
)
from lab.queries.sql_functions import SelectItems, Totals
from lab.queries.sql_join import JoinedNames, unjoined
from lab.queries.sql_parse import (
    Scope,
    call,
    function_name,
    nearest_case,
    never_empty,
    refusal,
    statement_of,
)
from lab.queries.whole_answers import (
    BY_GROUP,
    CURVES,
    OF_COMPLETE_ROWS,
    WHOLE,
    Plan,
    alone,
    whole_answer,
)
from lab.tables.contracts import Contract


def compile(
    text: str,
    contract: Contract,
    person: str | None = None,
    *,
    levels: Callable[[str], tuple[str, ...]] | None = None,
    centres: Mapping[str, float] | None = None,
    joined: JoinedNames | None = None,
) -> Plan:
    """Read SQL. Raises :class:`ConfigurationError` with the place and the reason.

    levels: finds the levels of a text column for which the contract lists none; centres: the public
    numbers that sums of squares are taken around (else 0); joined: the names of two sides, where the
    contract is that of the table that they would make together.
    """
    select = statement_of(text, contract.name, joined=joined is not None)
    if joined is not None:
        select = unjoined(select, joined)
    scope = Scope(contract, person, levels or (lambda column: ()))
    try:
        plan = _plan(select, scope, centres or {})
        check(plan.question, contract, person)
        if joined is not None:
            _check_across(plan, joined)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigurationError(f"query: {reason}") from None
    except PolicyError as error:
        raise ConfigurationError(f"query: {error}") from None
    except RecursionError:
        raise ConfigurationError("query: nested too deeply") from None
    return plan


def _check_across(plan: Plan, joined: JoinedNames) -> None:
    """Raises :class:`PolicyError` for what is not a product of what each side knows."""
    if plan.finish in ("violations", "drift"):
        raise PolicyError(f"{plan.finish}() is of a party's own table; there is none across sides")
    for question in (plan.question, plan.everybody, plan.open_end):
        if question is not None:
            AcrossSides(question, joined.owner)


def columns_of(
    text: str, contract: Contract, person: str | None, joined: JoinedNames | None = None
) -> set[str]:
    """The columns that a question in SQL looks at. Raises :class:`ConfigurationError`."""
    plan = compile(text, contract, person, levels=lambda column: ("",), joined=joined)
    return plan.question.columns | {rung.column for rung in plan.rungs.values()}


def belongs(
    question: Question,
    text: str,
    contract: Contract,
    person: str | None,
    statistic: str = "cells",
    joined: JoinedNames | None = None,
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
    plan = compile(
        text, contract, person, levels=lambda column: levels.get(column, ("",)), joined=joined
    )
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
    rows = [(whole.where, axes) for axes in ((), whole.axes)]
    rows += [(other.where, other.axes) for other in (plan.everybody, plan.open_end) if other]
    rows += [(whole.where, whole.axes[:-1])] * (plan.finish in CURVES)
    if (question.where, question.axes) in rows:
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
    whole, everybody = whole_answer(select.expressions), Question(table=table, where=where)
    if whole is not None and function_name(whole) in OF_COMPLETE_ROWS:
        where = _complete(scope, where, *call(whole))
        scope = replace(scope, never_empty=frozenset(never_empty(where)))
    group = select.args.get("group") or exp.Group()
    if any(value for key, value in group.args.items() if key != "expressions"):
        raise refusal(group)
    groups = [_item(node, select.expressions, scope) for node in group.expressions]
    axes = tuple(scope.axis(node) for node in groups)
    # 2. What of them, which collects the totals.
    totals = Totals(scope, centres)
    items, having = SelectItems(totals, WHOLE), select.args.get("having")
    if whole is not None and having is None:
        plan = alone(totals, whole, axes)
    else:
        outputs = items.outputs(select.expressions, groups)
        plan = Plan(Question(table=table, axes=axes), outputs)
        plan.having = items.having(having.this, outputs) if having else None
    _name_groups(plan, select.expressions, groups, scope)
    # 3. The question as the parties get it, checked again as a whole.
    question = plan.question.model_copy(
        update={"where": where, "totals": tuple(totals.entries), "person": scope.person}
    )
    plan.question = Question.model_validate(question.model_dump())
    partial = where != everybody.where or plan.finish == "triangle"
    if partial or any(scope.leaves_out(axis) for axis in plan.question.axes):
        plan.everybody = everybody.model_copy(update={"person": scope.person})
    if plan.open_end is not None:
        plan.open_end = plan.open_end.model_copy(update={"where": where, "person": scope.person})
    plan.centred = tuple(dict.fromkeys(totals.moments))
    _lay_out(plan, select, groups, scope)
    return plan


def _complete(
    scope: Scope, where: Condition | None, name: str, arguments: list[Any]
) -> Condition | None:
    """The rows that have a value in every one of the columns: all moments are of the same rows."""
    if name in BY_GROUP:  # what follows are edges
        arguments = arguments[:2]
    columns = scope.columns(arguments, max(len(arguments), 2), name)
    filled = [Not(of=Empty(column=column)) for column in columns if scope.nullable(column)]
    if not filled:
        return where
    return Every(of=(*filled, *(() if where is None else (where,))))


def _item(node: Any, items: list[Any], scope: Scope) -> Any:
    """The item that a node of GROUP BY or ORDER BY speaks of: by its place, its alias or itself."""
    if isinstance(node, exp.Literal) and not node.is_string:
        place = int(node.name) if node.name.isdecimal() else 0
        if not 1 <= place <= len(items):
            raise ConfigurationError(
                f"query: {node.name} is no place of an output; there are {len(items)}"
            )
        return items[place - 1].unalias()
    aliases = {item.alias: item.unalias() for item in items if item.alias}
    if isinstance(node, exp.Column):
        columns = scope.contract.columns
        if nearest_case(node.name, columns) not in columns:
            return aliases.get(nearest_case(node.name, aliases), node)
    return node


def _name_groups(plan: Plan, items: list[Any], groups: list[Any], scope: Scope) -> None:
    """Call groups as the analyst does."""
    aliases = {scope.key(item.unalias()): item.alias for item in items if item.alias}
    for axis, node in zip(plan.question.axes, groups, strict=False):  # a curve has one more
        if (name := aliases.get(scope.key(node))) and name != axis.column:
            plan.names[axis.column] = name
    columns = [axis.column for axis in plan.question.axes]
    names = [*columns, *plan.names.values()]
    if plan.finish == "table" and (same := [name for name in names if name in plan.outputs]):
        raise ConfigurationError(f"query: '{same[0]}' is a group; call the output otherwise")
    if len(set(names)) < len(names):
        raise ConfigurationError("query: two groups have one name; say AS")


def _lay_out(plan: Plan, select: exp.Select, groups: list[Any], scope: Scope) -> None:
    """Take ORDER BY and LIMIT into the plan."""
    if select.args.get("order"):
        first, *more = select.args["order"].expressions
        columns = {axis.column: axis.column for axis in plan.question.axes}
        labels = {scope.key(node): c for node, c in zip(groups, columns, strict=False)} | columns
        labels |= {alias: column for column, alias in plan.names.items()}
        for item in select.expressions:
            name = item.alias or item.sql(normalize_functions=False)
            labels |= {scope.key(item.unalias()): name, name: name} if name in plan.outputs else {}
        labels |= {name: name for name in plan.outputs}
        node = first.this
        if isinstance(node, exp.Literal):
            node = _item(node, select.expressions, scope)
        name = node.name if isinstance(node, exp.Column) else scope.key(node)
        name = labels.get(nearest_case(name, labels), "")
        if more or not name or plan.finish != "table":
            raise ConfigurationError("query: ORDER BY one column of the answer")
        plan.order = (name, bool(first.args.get("desc")))
    if select.args.get("limit"):
        count = select.args["limit"].args.get("expression")
        if not isinstance(count, exp.Literal) or not count.name.isdecimal():
            raise ConfigurationError("query: LIMIT takes one whole number")
        plan.limit = int(count.name)
