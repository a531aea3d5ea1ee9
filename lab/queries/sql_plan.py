"""What an analyst types, as a question to the parties and arithmetic on the totals that come back.

The text is parsed by sqlglot and never executed: it becomes a :class:`~lab.queries.questions.Question`,
or it is refused with the reason. A party sees the question alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ValidationError
from sqlglot import errors, exp, parse, parser
from sqlglot.dialects.dialect import Dialect

from lab.errors import ConfigurationError, PolicyError
from lab.queries.actuarial import rate
from lab.queries.questions import (
    ROWS,
    Axis,
    Compare,
    Condition,
    Empty,
    Every,
    Not,
    OneOf,
    Question,
    Some,
    Total,
    Value,
    allowed,
    check,
    constants,
)
from lab.records import nearest
from lab.sums import Floats
from lab.tables.contracts import Contract

#: A column of whole numbers groups by its values where its range has no more of them.
MOST_LEVELS = 1000
#: Operations in one output; the arithmetic is nested.
MOST_OPERATIONS = 200
#: No interval is narrower than so many neighbouring numbers: its ladder must rise.
FINEST = 1024
#: How narrow a quantile's interval is asked for, as a share of its range.
FINE = 1e-4


class _Plain(Dialect):
    """SQL in which every function is just a name with arguments."""

    class Parser(parser.Parser):
        FUNCTIONS: ClassVar[dict[str, Any]] = {}
        FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {}
        NO_PAREN_FUNCTIONS: ClassVar[dict[Any, Any]] = {}

        def _warn_unsupported(self) -> None:
            """What is no SELECT is refused; nothing is printed about it."""


@dataclass(frozen=True)
class Formula:
    """Arithmetic on totals: a total's place, a number, or an operation on formulas."""

    operation: str
    parts: tuple[Formula | float, ...]

    def value(self, totals: Sequence[Floats]) -> Floats:
        """Its value in each cell, NaN where it is undefined."""
        if self.operation == "total":
            (place,) = self.parts
            assert not isinstance(place, Formula)
            return totals[int(place)]
        parts = [p.value(totals) if isinstance(p, Formula) else np.float64(p) for p in self.parts]
        with np.errstate(all="ignore"):
            value = np.asarray(_ARITHMETIC[self.operation](*parts), dtype=np.float64)
        return np.where(np.isfinite(value), value, np.nan)

    def __add__(self, other: Formula | float) -> Formula:
        return Formula("+", (self, other))

    def __sub__(self, other: Formula | float) -> Formula:
        return Formula("-", (self, other))

    def __mul__(self, other: Formula | float) -> Formula:
        return Formula("*", (self, other))

    def __truediv__(self, other: Formula | float) -> Formula:
        return Formula("/", (self, other))


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "number": lambda value: value,
    "root": lambda value: np.sqrt(np.maximum(value, 0)),
    "at least 0": lambda value: np.maximum(value, 0),
    "rate low": lambda events, exposure, per: rate(events, exposure, float(per))["low"],
    "rate high": lambda events, exposure, per: rate(events, exposure, float(per))["high"],
}


@dataclass(frozen=True)
class Rung:
    """A quantile to be found: the value below which a ``share`` of a column's rows lies."""

    column: str
    share: float
    low: float
    high: float
    width: float


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
        return {name: one for name, one in self.outputs.items() if isinstance(one, Formula)}

    @property
    def rungs(self) -> dict[str, Rung]:
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
    select = _select(text)
    reader = _Reader(contract, person, levels or (lambda column: ()), centres or {})
    try:
        plan = reader.read(select)
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
    told: dict[str, tuple[Any, ...]] = {axis.column: axis.levels for axis in question.axes}
    for column, value, _ in constants(question.where):
        told[column] = (*told.get(column, ()), value)
    plan = compile(text, contract, person, levels=lambda column: told.get(column, ("",)))
    whole = plan.question
    if statistic != "cells" and statistic != plan.finish:
        return False
    if any(c and column not in plan.centred for c, column in _centres(question)):
        return False
    climbed = {rung.column for rung in plan.rungs.values()}
    totals = {(total.kind, total.columns) for total in whole.totals}
    totals |= {(kind, (c,)) for kind in ("count", "sum") for c in plan.centred}
    totals |= {("count", (column,)) for column in climbed}
    if not {(total.kind, total.columns) for total in question.totals} <= totals:
        return False
    if question.where == whole.where and question.axes in ((), whole.axes):
        return True
    ladder = all(axis.column in climbed for axis in question.axes)
    cells = (whole.within(cell).where for cell in range(whole.cells))
    return bool(climbed) and ladder and any(question.where == where for where in cells)


def _centres(question: Question) -> Iterator[tuple[float, str]]:
    for total in question.totals:
        yield from zip(total.centres, total.columns, strict=False)  # a count has no centre


def _select(text: str) -> exp.Select:
    try:
        found = parse(text, read=_Plain)
        statements = [s for s in found if s is not None and not isinstance(s, exp.Semicolon)]
    except (errors.ParseError, errors.TokenError) as error:
        place = error.errors[0] if isinstance(error, errors.ParseError) and error.errors else {}
        where = f" at column {place['col']}, near '{place['highlight']}'" if place else ""
        raise ConfigurationError(f"query: not readable SQL{where}") from None
    except RecursionError:
        raise ConfigurationError("query: nested too deeply") from None
    statement = statements[0] if len(statements) == 1 else None
    if not isinstance(statement, exp.Select):
        raise ConfigurationError("query: one SELECT is answered, and nothing else")
    for key, value in statement.args.items():
        if value and key not in _ANSWERED:
            raise ConfigurationError(
                f"query: {_REASONS.get(key, f'{key.upper()} is not answered')}"
            )
    return statement


_ANSWERED = {"expressions", "from_", "where", "group", "order", "limit"}
_REASONS = {
    "joins": "JOIN needs rows of two tables side by side; parties hold one table each",
    "having": "HAVING looks at totals before they are released; take it from the answer",
    "distinct": "DISTINCT lists values; group by the column instead",
    "with_": "WITH makes a table of rows; only sums over the party's own table leave it",
    "qualify": "QUALIFY looks at single rows",
    "windows": "WINDOW looks at single rows",
    "laterals": "LATERAL looks at single rows",
    "offset": "OFFSET is not answered; take it from the answer",
}
_SHAPES: dict[type[exp.Expression], str] = {
    exp.Case: "CASE inside a sum picks rows that no rule has counted; put the condition into WHERE",
    exp.Filter: "FILTER picks rows that no rule has counted; put the condition into WHERE",
    exp.Window: "OVER looks at single rows",
    exp.Subquery: "a subquery makes a table of rows; only sums over the party's own table leave it",
    exp.Distinct: "distinct values cannot be added: one may be at two parties",
    exp.Star: "* would list rows; only sums leave a party",
    exp.WithinGroup: "write quantile(column, share)",
    exp.Like: "LIKE is not answered; list the values with IN",
    exp.Cast: "casts and dates are not answered; compare with a number or a text",
}
_COMPARISONS: dict[type[exp.Expression], Literal["=", "<>", "<", "<=", ">", ">="]] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
_MIRRORED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_SIGNS: dict[type[exp.Expression], str] = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/"}


def _refused(node: Any) -> ConfigurationError:
    text = node.sql() if isinstance(node, exp.Expression) else str(node)
    reason = _SHAPES.get(type(node), "cannot be written as sums over rows")
    return ConfigurationError(f"query: '{text[:60]}': {reason}")


class _Reader:
    """Reads one SELECT; keeps the totals that its outputs need."""

    def __init__(
        self,
        contract: Contract,
        person: str | None,
        levels: Callable[[str], tuple[str, ...]],
        centres: Mapping[str, float],
    ) -> None:
        self.contract, self.person, self.levels, self.centres = contract, person, levels, centres
        self.totals: list[Total] = [ROWS]
        self.centred: list[str] = []
        self.filled: set[str] = set()  # columns that the condition wants filled

    def read(self, select: exp.Select) -> Plan:
        table = self._table(select)
        where = self._condition(select.args["where"].this) if select.args.get("where") else None
        self.filled = set(_filled(where))
        group = select.args.get("group") or exp.Group()
        if any(value for key, value in group.args.items() if key != "expressions"):
            raise _refused(group)
        grouped = group.expressions
        axes = [self._axis(node) for node in grouped]
        whole = self._whole(select.expressions)
        if whole is not None:
            plan = self._special(whole, tuple(axes))
        else:
            plan = Plan(Question(table=table), self._outputs(select.expressions, grouped))
            plan.question = Question(table=table, axes=tuple(axes))
            if twice := [axis.column for axis in axes if axis.column in plan.outputs]:
                raise ConfigurationError(
                    f"query: '{twice[0]}' is a group; call the output otherwise"
                )
        asked = plan.question.model_copy(
            update={
                "where": where,
                "totals": tuple(self.totals),
                "person": self.person,
                "table": table,
            }
        )
        plan.question = Question.model_validate(asked.model_dump())
        plan.centred = tuple(dict.fromkeys(self.centred))
        return self._presented(plan, select)

    def _table(self, select: exp.Select) -> str:
        source = select.args.get("from_")
        if source is None or not isinstance(source.this, exp.Table):
            raise ConfigurationError(f"query: say FROM {self.contract.name}")
        if any(value for key, value in source.this.args.items() if key not in ("this", "alias")):
            raise _refused(source.this)
        name = str(source.this.name)
        if name != self.contract.name:
            raise ConfigurationError(
                f"query: there is no table '{name}' here; the parties hold {self.contract.name}"
            )
        return name

    # Conditions.

    def _condition(self, node: Any) -> Condition:
        match node:
            case exp.Paren():
                return self._condition(node.this)
            case exp.And():
                return Every(of=tuple(self._condition(part) for part in node.flatten()))
            case exp.Or():
                return Some(of=tuple(self._condition(part) for part in node.flatten()))
            case exp.Not():
                return Not(of=self._condition(node.this))
            case exp.Is() if isinstance(node.expression, exp.Null):
                return Empty(column=self._column(node.this))
            case exp.In() if node.expressions:
                values = tuple(self._value(v) for v in node.expressions)
                return OneOf(column=self._column(node.this), values=values)
            case exp.Between() if not node.args.get("symmetric"):
                column = self._column(node.this)
                low = Compare(column=column, operation=">=", value=self._value(node.args["low"]))
                high = Compare(column=column, operation="<=", value=self._value(node.args["high"]))
                return Every(of=(low, high))
            case _ if type(node) in _COMPARISONS:
                operation, left, right = _COMPARISONS[type(node)], node.this, node.expression
                if isinstance(right, exp.Column):
                    left, right = right, left
                    operation = _MIRRORED[operation]  # type: ignore[assignment]
                return Compare(
                    column=self._column(left), operation=operation, value=self._value(right)
                )
        raise _refused(node)

    def _value(self, node: Any) -> Value:
        if isinstance(node, exp.Neg):
            value = self._value(node.this)
            if isinstance(value, float):
                return -value
        if isinstance(node, exp.Literal):
            value = str(node.this) if node.is_string else float(node.this)
            if value not in (np.inf, -np.inf):
                return value
        if isinstance(node, exp.Paren):
            return self._value(node.this)
        raise ConfigurationError(
            f"query: '{node.sql()[:60]}': a condition compares a column with a number or a text"
        )

    def _number(self, node: Any) -> float:
        value = self._value(node)
        if isinstance(value, str):
            raise ConfigurationError(f"query: '{value}' must be a number")
        return value

    def _column(self, node: Any, *, number: bool = False) -> str:
        if not isinstance(node, exp.Column):
            raise _refused(node)
        name, known = str(node.name), self.contract.columns
        if name not in known:
            near = nearest(name, list(known))
            hint = f"; did you mean '{near}'?" if near else ""
            raise ConfigurationError(f"query: there is no column '{name}'{hint}")
        allowed(name, self.contract, self.person)
        if number and known[name].type == "category":
            raise ConfigurationError(f"query: '{name}' is text and has no sum")
        return name

    # Groups.

    def _axis(self, node: Any) -> Axis:
        if isinstance(node, exp.Anonymous):
            name, arguments = _call(node)
            if name != "cut" or len(arguments) < 3:
                raise ConfigurationError(
                    f"query: group by columns or cut(column, edge, edge, …), not {node.sql()[:60]}"
                )
            cut = self._column(arguments[0], number=True)
            edges = tuple(self._number(edge) for edge in arguments[1:])
            return Axis(column=cut, edges=edges, missing=self._nullable(cut))
        name = self._column(node)
        column = self.contract.columns[name]
        allowed(name, self.contract, self.person)
        levels: tuple[Value, ...] = column.levels or ()
        if not levels and column.type == "category":
            levels = self.levels(name)
        if not levels and column.type == "integer":
            levels = _whole_numbers(column.minimum, column.maximum)
        if not levels:
            how = (
                f"give the contract its levels: '{name}'"
                if column.type == "category"
                else f"write cut({name}, edge, edge, …)"
            )
            raise ConfigurationError(
                f"query: contract {self.contract.name} does not list the values of '{name}'; {how}"
            )
        return Axis(column=name, levels=levels, missing=self._nullable(name))

    # Outputs.

    def _outputs(self, nodes: list[Any], grouped: list[Any]) -> dict[str, Formula | Rung]:
        axes = {node.sql() for node in grouped}
        outputs: dict[str, Formula | Rung] = {}
        for node in nodes:
            bare = node.unalias()
            if bare.sql() in axes:
                continue
            if isinstance(bare, exp.Column):
                raise ConfigurationError(
                    f"query: '{bare.name}' is a value of single rows; sum it or group by it"
                )
            name = node.alias or bare.sql(normalize_functions=False)
            if name in outputs:
                raise ConfigurationError(f"query: two outputs are called '{name}'; say AS")
            outputs |= self._output(name, bare)
        if not outputs:
            raise ConfigurationError("query: ask for a sum, as count(*)")
        return outputs

    def _output(self, name: str, node: Any) -> dict[str, Formula | Rung]:
        if isinstance(node, exp.Anonymous):
            function, arguments = _call(node)
            if function in ("quantile", "median", "min", "max"):
                return {name: self._rung(function, arguments)}
            if function == "rate":
                events, exposure, per = self._rate_parts(arguments)
                parts = (events, exposure, per)
                return {
                    name: events / exposure * per,
                    f"{name} low": Formula("rate low", parts),
                    f"{name} high": Formula("rate high", parts),
                }
        if sum(1 for _ in node.find_all(exp.Binary, exp.Unary)) > MOST_OPERATIONS:
            raise ConfigurationError("query: nested too deeply")
        return {name: self._formula(node)}

    def _rate_parts(self, arguments: list[Any]) -> tuple[Formula, Formula, float]:
        if not 1 <= len(arguments) <= 3:
            raise ConfigurationError(
                "query: rate(events, exposure, per) has one to three arguments"
            )
        events = self._sum(self._column(arguments[0], number=True))
        exposure = self._sum(self._role("exposure", arguments[1:2]))
        return events, exposure, self._number(arguments[2]) if len(arguments) > 2 else 1000.0

    def _rung(self, function: str, arguments: list[Any]) -> Rung:
        if not arguments:
            raise ConfigurationError(f"query: {function}(column) needs a column")
        column, rest = self._column(arguments[0], number=True), arguments[1:]
        if function == "quantile":
            if not rest:
                raise ConfigurationError("query: quantile(column, share) needs a share, as 0.9")
            share, rest = self._number(rest[0]), rest[1:]
        else:
            share = {"median": 0.5, "min": 0.0, "max": 1.0}[function]
        own = self.contract.columns[column]
        low, high = own.minimum if own.above is None else own.above, own.maximum
        if len(rest) >= 2:
            low, high, rest = self._number(rest[0]), self._number(rest[1]), rest[2:]
        if low is None or high is None:
            raise ConfigurationError(
                f"query: contract {self.contract.name} gives '{column}' no range; write where to "
                f"look for it: {function}({column}, … low, high)"
            )
        width = self._number(rest[0]) if rest else FINE * (high - low)
        finest = FINEST * float(np.spacing(max(abs(low), abs(high))))
        if len(rest) > 1 or not (0 <= share <= 1 and finest < high - low < np.inf and width > 0):
            raise ConfigurationError(
                f"query: {function}(column, …): a share is between 0 and 1, low below high, a "
                "width above 0"
            )
        if own.type == "integer":  # an interval of width 1 holds one whole number
            finest = max(finest, 1.0)
        return Rung(column, share, low, high, max(width, finest))

    def _formula(self, node: Any) -> Formula:
        match node:
            case exp.Paren():
                return self._formula(node.this)
            case exp.Neg():
                return self._formula(node.this) * -1.0
            case exp.Literal() if not node.is_string:
                return Formula("number", (self._number(node),))
            case exp.Anonymous():
                return self._function(*_call(node))
            case _ if type(node) in _SIGNS:
                parts = (self._formula(node.this), self._formula(node.expression))
                return Formula(_SIGNS[type(node)], parts)
            case exp.Column():
                raise ConfigurationError(
                    f"query: '{node.name}' is a value of single rows; sum it or group by it"
                )
        raise _refused(node)

    def _function(self, name: str, arguments: list[Any]) -> Formula:
        if name == "count":
            if len(arguments) == 1 and isinstance(arguments[0], exp.Star):
                return self._total(ROWS)
            return self._count(*self._columns(arguments, 1, name, number=False))
        if name == "sum" and len(arguments) == 1 and isinstance(arguments[0], exp.Mul):
            factors = [arguments[0].this, arguments[0].expression]
            return self._sum(*self._columns(factors, 2, name))
        if name == "missing":
            return self._total(ROWS) - self._count(*self._columns(arguments, 1, name, number=False))
        if name in _RATIOS:
            return self._ratio(name, arguments)
        if name in ("quantile", "median", "min", "max", "rate", *_WHOLE):
            raise ConfigurationError(
                f"query: {name}() stands alone: arithmetic on it is not answered"
            )
        if name not in _FUNCTIONS:
            near = nearest(
                name, [*_FUNCTIONS, *_RATIOS, *_WHOLE, "count", "missing", "quantile", "rate"]
            )
            hint = f"; did you mean {near}()?" if near else ""
            raise ConfigurationError(f"query: {name}() cannot be written as sums over rows{hint}")
        size, build = _FUNCTIONS[name]
        return build(self, *self._columns(arguments, size, name))

    def _columns(
        self, nodes: list[Any], size: int, function: str, *, number: bool = True
    ) -> list[str]:
        for node in nodes:
            if type(node) in _SHAPES:
                raise _refused(node)
        if len(nodes) != size:
            raise ConfigurationError(f"query: {function}() takes {size} column{'s' * (size > 1)}")
        for node in nodes:
            if not isinstance(node, exp.Column):
                raise ConfigurationError(
                    f"query: '{node.sql()[:60]}': a sum is over a column or a product of two; "
                    "do arithmetic outside, as sum(a) - sum(b)"
                )
        return [self._column(node, number=number) for node in nodes]

    def _ratio(self, name: str, arguments: list[Any]) -> Formula:
        """Two sums, one divided by the other; a column left out is found by its role."""
        roles = _RATIOS[name]
        if len(arguments) > len(roles):
            raise ConfigurationError(f"query: {name}() takes at most {len(roles)} columns")
        parts = [self._sum(self._role(r, arguments[k : k + 1])) for k, r in enumerate(roles)]
        return parts[0] if len(parts) == 1 else parts[0] / parts[1]

    def _role(self, role: str, given: list[Any]) -> str:
        if given:
            return self._column(given[0], number=True)
        found = [name for name, column in self.contract.columns.items() if column.role == role]
        if len(found) != 1:
            raise ConfigurationError(
                f"query: contract {self.contract.name} has {len(found)} columns with the role "
                f"'{role}'; name the column"
            )
        return found[0]

    # Totals.

    def _total(self, total: Total) -> Formula:
        if total not in self.totals:
            self.totals.append(total)
        return Formula("total", (float(self.totals.index(total)),))

    def _count(self, *columns: str) -> Formula:
        filled = tuple(sorted({c for c in columns if self._nullable(c)}))
        return self._total(Total(kind="count", columns=filled) if filled else ROWS)

    def _nullable(self, column: str) -> bool:
        return self.contract.columns[column].nullable and column not in self.filled

    def _sum(self, *columns: str) -> Formula:
        return self._total(Total(kind="sum", columns=columns, centres=(0.0,) * len(columns)))

    def _around(self, *columns: str) -> Formula:
        """A sum of products around the columns' public centres."""
        self.centred += columns
        centres = tuple(self.centres.get(column, 0.0) for column in columns)
        return self._total(Total(kind="sum", columns=columns, centres=centres))

    def comoment(self, a: str, b: str) -> Formula:
        """Sum of (a - mean)(b - mean) over rows that have both."""
        n = self._count(a, b)
        if a == b or not any(self._nullable(c) for c in (a, b)):
            return self._around(a, b) - self._around(a) * self._around(b) / n
        raise ConfigurationError(
            f"query: '{a}' and '{b}' may be empty in different rows; add where {a} is not null "
            f"and {b} is not null"
        )

    # Questions that are a whole answer.

    def _whole(self, nodes: list[Any]) -> exp.Anonymous | None:
        found = [n.unalias() for n in nodes if _name(n.unalias()) in _WHOLE or _lists(n.unalias())]
        grouped = bool(found) and _name(found[0]) in ("survival", "log_rank")
        others = [n for n in nodes if not (grouped and isinstance(n, exp.Column))]
        if found and len(others) > 1:
            raise ConfigurationError(f"query: {_name(found[0])}() is a whole answer; ask it alone")
        return found[0] if found else None

    def _special(self, node: exp.Anonymous, axes: tuple[Axis, ...]) -> Plan:
        name, arguments = _call(node)
        most = 1 if name in ("survival", "log_rank") else 0
        if len(axes) > most:
            raise ConfigurationError(f"query: {name}() goes with at most {most} grouping columns")
        build = getattr(self, f"_{name}")
        plan: Plan = build(arguments, axes)
        return plan

    def _plan(self, finish: Finish, axes: tuple[Axis, ...] = (), *arguments: str) -> Plan:
        return Plan(Question(table=self.contract.name, axes=axes), {}, finish, arguments)

    def _missing(self, arguments: list[Any], axes: tuple[Axis, ...]) -> Plan:
        plan = self._plan("missing")
        for name, column in self.contract.columns.items():
            if column.role not in ("identifier", "never_leaves") and name != self.person:
                plan.outputs[name] = self._total(ROWS) - self._count(name)
        return plan

    def _violations(self, arguments: list[Any], axes: tuple[Axis, ...]) -> Plan:
        return self._plan("violations")

    def _drift(self, arguments: list[Any], axes: tuple[Axis, ...]) -> Plan:
        if len(arguments) == 1:
            axis = self._axis(arguments[0])
        else:
            axis = self._axis(exp.Anonymous(this="cut", expressions=arguments))
        return self._plan("drift", (axis.model_copy(update={"missing": False}),), axis.column)

    def _histogram(self, arguments: list[Any], axes: tuple[Axis, ...]) -> Plan:
        if len(arguments) < 2:
            raise ConfigurationError(
                "query: histogram(column, bins) or histogram(column, edge, edge, …)"
            )
        column = self._column(arguments[0], number=True)
        edges = tuple(self._number(edge) for edge in arguments[1:])
        if len(edges) == 1:
            own = self.contract.columns[column]
            low, high = own.minimum if own.above is None else own.above, own.maximum
            if low is None or high is None or not 1 <= edges[0] <= MOST_LEVELS:
                raise ConfigurationError(
                    f"query: '{column}' needs a range in its contract, or edges: histogram({column}, 0, 10, 20)"
                )
            edges = tuple(np.linspace(low, high, int(edges[0]) + 1).tolist())
        axis = Axis(column=column, edges=edges, missing=self._nullable(column))
        plan = self._plan("table", (axis,))
        plan.outputs["count"] = self._total(ROWS)
        return plan

    def _covariance(self, arguments: list[Any], axes: tuple[Axis, ...]) -> Plan:
        return self._matrix("matrix", arguments)

    def _correlation(self, arguments: list[Any], axes: tuple[Axis, ...]) -> Plan:
        return self._matrix("correlation", arguments)

    def _matrix(self, finish: Finish, arguments: list[Any]) -> Plan:
        names = self._columns(arguments, max(len(arguments), 2), finish)
        plan = self._plan(finish, (), *names)
        for a, b in itertools.combinations_with_replacement(names, 2):
            plan.outputs[f"{a} {b}"] = self.comoment(a, b) / (self._count(a, b) - 1.0)
        return plan

    def _triangle(self, arguments: list[Any], axes: tuple[Axis, ...]) -> Plan:
        if len(arguments) != 3:
            raise ConfigurationError("query: triangle(amount, accident period, development period)")
        plan = self._plan("triangle", (self._axis(arguments[1]), self._axis(arguments[2])))
        plan.outputs["value"] = self._sum(self._column(arguments[0], number=True))
        return plan

    def _survival(self, arguments: list[Any], axes: tuple[Axis, ...]) -> Plan:
        if len(arguments) < 2:
            raise ConfigurationError(
                "query: survival(time, event) or survival(time, event, edge, edge, …)"
            )
        edges = [self._number(edge) for edge in arguments[2:]]
        if edges:  # who leaves at an edge leaves at the end of an interval
            just_after = [float(np.nextafter(edge, np.inf)) for edge in edges[1:]]
            name = self._column(arguments[0], number=True)
            time = Axis(column=name, edges=(edges[0], *just_after))
        else:
            time = self._axis(arguments[0]).model_copy(update={"missing": False})
        plan = self._plan("survival", (*axes, time), *map(str, edges))
        plan.outputs["leaving"] = self._total(ROWS)
        plan.outputs["events"] = self._sum(self._column(arguments[1], number=True))
        return plan

    def _log_rank(self, arguments: list[Any], axes: tuple[Axis, ...]) -> Plan:
        if len(axes) != 1:
            raise ConfigurationError("query: log_rank(time, event) compares groups: add GROUP BY")
        return replace(self._survival(arguments, axes), finish="log_rank")

    # Presentation.

    def _presented(self, plan: Plan, select: exp.Select) -> Plan:
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
        return plan


def _call(node: exp.Anonymous) -> tuple[str, list[Any]]:
    return str(node.name).lower(), list(node.expressions)


def _name(node: Any) -> str:
    return _call(node)[0] if isinstance(node, exp.Anonymous) else ""


def _lists(node: Any) -> bool:
    """missing(*), of every column."""
    return _name(node) == "missing" and any(isinstance(n, exp.Star) for n in node.expressions)


def _filled(condition: Condition | None) -> Iterator[str]:
    """Columns that are not empty in any row for which the condition is true."""
    match condition:
        case Not(of=Empty(column=column)) | Compare(column=column) | OneOf(column=column):
            yield column
        case Every(of=parts):
            for part in parts:
                yield from _filled(part)


def _whole_numbers(low: float | None, high: float | None) -> tuple[float, ...]:
    if low is None or high is None or high - low >= MOST_LEVELS:
        return ()
    return tuple(float(value) for value in range(int(np.ceil(low)), int(high) + 1))


_WHOLE = (
    "violations",
    "drift",
    "histogram",
    "covariance",
    "correlation",
    "triangle",
    "survival",
    "log_rank",
)
#: Ratios of sums: the roles that stand in for a column that is not named.
_RATIOS: dict[str, tuple[str, ...]] = {
    "exposure": ("exposure",),
    "frequency": ("claims", "exposure"),
    "severity": ("paid", "claims"),
    "pure_premium": ("paid", "exposure"),
    "loss_ratio": ("paid", "premium"),
    "actual_expected": ("actual", "expected"),
}


def _mean(reader: _Reader, column: str) -> Formula:
    return reader._sum(column) / reader._count(column)


def _variance(reader: _Reader, a: str, b: str, less: float) -> Formula:
    moment = reader.comoment(a, b)
    if a == b:  # the last bits of a difference may fall below 0
        moment = Formula("at least 0", (moment,))
    return moment / (reader._count(a, b) - less)


def _root(formula: Formula) -> Formula:
    return Formula("root", (formula,))


def _correlation(reader: _Reader, a: str, b: str) -> Formula:
    spread = _root(reader.comoment(a, a)) * _root(reader.comoment(b, b))
    return reader.comoment(a, b) / spread


#: Functions of columns: how many they take, and what they are as arithmetic on totals.
_FUNCTIONS: dict[str, tuple[int, Callable[..., Formula]]] = {
    "sum": (1, lambda reader, a: reader._sum(a)),
    "avg": (1, _mean),
    "mean": (1, _mean),
    "variance": (1, lambda reader, a: _variance(reader, a, a, 1.0)),
    "var_samp": (1, lambda reader, a: _variance(reader, a, a, 1.0)),
    "var_pop": (1, lambda reader, a: _variance(reader, a, a, 0.0)),
    "stddev": (1, lambda reader, a: _root(_variance(reader, a, a, 1.0))),
    "stddev_samp": (1, lambda reader, a: _root(_variance(reader, a, a, 1.0))),
    "stddev_pop": (1, lambda reader, a: _root(_variance(reader, a, a, 0.0))),
    "covar_samp": (2, lambda reader, a, b: _variance(reader, a, b, 1.0)),
    "covar_pop": (2, lambda reader, a, b: _variance(reader, a, b, 0.0)),
    "corr": (2, _correlation),
}
