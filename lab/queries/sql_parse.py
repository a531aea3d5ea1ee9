"""From the text of a query to parts that the table's contract allows: conditions, groups, columns.

sqlglot parses the text and nothing executes it. What is no part of one plain SELECT, or speaks of
what is not in the contract, is refused with the reason: every error is a
:class:`~lab.errors.ConfigurationError`, or :class:`~lab.errors.PolicyError` for a column that no
question may look at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from sqlglot import TokenType, errors, exp, parse, parser
from sqlglot.dialects.dialect import Dialect

from lab.errors import ConfigurationError
from lab.queries.questions import (
    Axis,
    Compare,
    Condition,
    Empty,
    Every,
    Not,
    OneOf,
    Some,
    Value,
    allowed,
)
from lab.records import nearest
from lab.tables.contracts import Contract

#: A column of whole numbers groups by its values where its range has no more of them.
MOST_LEVELS = 1000


class _Plain(Dialect):
    """SQL in which every function is just a name with arguments."""

    class Parser(parser.Parser):
        FUNCTIONS: ClassVar[dict[str, Any]] = {}
        FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {}
        NO_PAREN_FUNCTIONS: ClassVar[dict[Any, Any]] = {}

        def _warn_unsupported(self) -> None:
            """What is no SELECT is refused; nothing is printed about it."""


_ANSWERED = {"expressions", "from_", "where", "group", "having", "order", "limit"}
_REASONS = {
    "joins": "JOIN needs rows of two tables side by side; parties hold one table each",
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
COMPARISONS: dict[type[exp.Expression], Literal["=", "<>", "<", "<=", ">", ">="]] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
_MIRRORED = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def statement_of(text: str, table: str = "", *, joined: bool = False) -> exp.Select:
    """The one SELECT that a text holds, of no clauses but those that are answered.

    table: a name that may stand after FROM without quotes, whatever signs it has; joined: whether
    JOIN is answered. Raises :class:`ConfigurationError` for text that is not readable, with the place; for another
    statement or several; for a clause that is not answered; for one nested too deeply.
    """
    try:
        trees = parse(_with_quotes(text, table), read=_Plain)
        statements = [s for s in trees if s is not None and not isinstance(s, exp.Semicolon)]
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
        if value and key not in _ANSWERED and not (joined and key == "joins"):
            raise ConfigurationError(
                f"query: {_REASONS.get(key, f'{key.upper()} is not answered')}"
            )
    return statement


def _with_quotes(text: str, table: str) -> str:
    """The text with quotes around the table's name after FROM, where SQL wants them."""
    if table.isidentifier():
        return text
    for token in _Plain().tokenize(text):
        start = token.end + 1
        if token.token_type == TokenType.FROM:
            start += len(text[start:]) - len(text[start:].lstrip())
            name, rest = text[start : start + len(table)], text[start + len(table) :]
            if name.lower() == table.lower() and not re.match(r"[\w-]", rest):
                return f'{text[:start]}"{table}"{rest}'
    return text


def refusal(node: Any) -> ConfigurationError:
    """The error, to be raised, for a part that cannot be asked, with the reason for its shape."""
    text = node.sql() if isinstance(node, exp.Expression) else str(node)
    reason = _SHAPES.get(type(node), "cannot be written as sums over rows")
    return ConfigurationError(f"query: '{text[:60]}': {reason}")


def call(node: exp.Anonymous) -> tuple[str, list[Any]]:
    """The name of the function that is called, in small letters, and its arguments unread."""
    return str(node.name).lower(), list(node.expressions)


def function_name(node: Any) -> str:
    """The name of the function that is called, in small letters; "" where nothing is."""
    return call(node)[0] if isinstance(node, exp.Anonymous) else ""


def nearest_case(name: str, names: Iterable[str]) -> str:
    """The name as it is spelled among ``names``; large and small letters are the same, as in SQL,
    unless that leaves several."""
    names = list(names)
    same = [one for one in names if one.lower() == name.lower()]
    return same[0] if name not in names and len(same) == 1 else name


@dataclass(frozen=True)
class Scope:
    """What a query may speak of, and the reading of its parts against that.

    contract: of the one table; person: the column of who a row belongs to; levels: finds the levels
    of a text column for which the contract lists none; never_empty: columns that have a value in
    every row the query is about, by its condition.
    """

    contract: Contract
    person: str | None
    levels: Callable[[str], tuple[str, ...]]
    never_empty: frozenset[str] = frozenset()

    def table(self, statement: exp.Select) -> str:
        """The name after FROM. Raises :class:`ConfigurationError` unless it is the contract's."""
        source = statement.args.get("from_")
        if source is None or not isinstance(source.this, exp.Table):
            raise ConfigurationError(f"query: say FROM {self.contract.name}")
        if any(value for key, value in source.this.args.items() if key not in ("this", "alias")):
            raise refusal(source.this)
        name = nearest_case(str(source.this.name), [self.contract.name])
        if name != self.contract.name:
            raise ConfigurationError(
                f"query: there is no table '{name}' here; the parties hold {self.contract.name}"
            )
        return name

    # Conditions.

    def condition(self, node: Any) -> Condition:
        """A WHERE as a condition. Raises for what is not a column compared with constants."""
        match node:
            case exp.Paren():
                return self.condition(node.this)
            case exp.And():
                return Every(of=tuple(self.condition(part) for part in node.flatten()))
            case exp.Or():
                return Some(of=tuple(self.condition(part) for part in node.flatten()))
            case exp.Not():
                return Not(of=self.condition(node.this))
            case exp.Is() if isinstance(node.expression, exp.Null):
                return Empty(column=self.column(node.this))
            case exp.In() if node.expressions:
                column = self.column(node.this)
                values = tuple(self._compared(column, v) for v in node.expressions)
                return OneOf(column=column, values=values)
            case exp.Between() if not node.args.get("symmetric"):
                column = self.column(node.this)
                low = Compare(column=column, operation=">=", value=self._value(node.args["low"]))
                high = Compare(column=column, operation="<=", value=self._value(node.args["high"]))
                return Every(of=(low, high))
            case _ if type(node) in COMPARISONS:
                operation, subject, constant = COMPARISONS[type(node)], node.this, node.expression
                if isinstance(constant, exp.Column):
                    subject, constant = constant, subject
                    operation = _MIRRORED[operation]  # type: ignore[assignment]
                column = self.column(subject)
                value = self._compared(column, constant)
                return Compare(column=column, operation=operation, value=value)
        raise refusal(node)

    def _compared(self, column: str, node: Any) -> Value:
        """What a column is compared with; a number without quotes is a level as it is written."""
        value = self._value(node)
        own = self.contract.columns[column]
        if isinstance(value, str) or own.type != "category":
            return value
        text = str(node.sql())
        if own.levels is not None and text not in own.levels:
            raise ConfigurationError(
                f"query: '{column}' is text and has no level {text}; put a level in quotes, as "
                f"{column} = '{own.levels[0]}'"
            )
        return text

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

    def number(self, node: Any) -> float:
        """A finite number that is written out. Raises :class:`ConfigurationError` for all else."""
        value = self._value(node)
        if isinstance(value, str):
            raise ConfigurationError(f"query: '{value}' must be a number")
        return value

    # Columns.

    def key(self, node: Any) -> str:
        """What two spellings of one item share, whatever their quotes, letters and table's name."""

        def plain(part: Any) -> Any:
            if isinstance(part, exp.Column):
                return exp.column(nearest_case(part.name, self.contract.columns))
            if isinstance(part, exp.Anonymous):
                part.set("this", part.name.lower())
            return part

        return str(node.copy().transform(plain).sql())

    def column(self, node: Any, *, number: bool = False) -> str:
        """A column's name; number: text is refused, because it has no sum.

        Raises :class:`ConfigurationError` for what is no column of the contract, with the nearest;
        :class:`PolicyError` for one that no question may look at.
        """
        if not isinstance(node, exp.Column):
            raise refusal(node)
        columns = self.contract.columns
        name = nearest_case(str(node.name), columns)
        if name not in columns:
            near = nearest(name, list(columns))
            hint = f"; did you mean '{near}'?" if near else ""
            raise ConfigurationError(f"query: there is no column '{name}'{hint}")
        allowed(name, self.contract, self.person)
        if number and columns[name].type == "category":
            raise ConfigurationError(f"query: '{name}' is text and has no sum")
        return name

    def columns(
        self, nodes: list[Any], size: int, function: str, *, number: bool = True
    ) -> list[str]:
        """A function's ``size`` arguments, all of them columns. Raises as :meth:`column`."""
        for node in nodes:
            if type(node) in _SHAPES:
                raise refusal(node)
        if len(nodes) != size:
            raise ConfigurationError(f"query: {function}() takes {size} column{'s' * (size > 1)}")
        for node in nodes:
            if not isinstance(node, exp.Column):
                raise ConfigurationError(
                    f"query: '{node.sql()[:60]}': a sum is over a column or a product of two; "
                    "do arithmetic outside, as sum(a) - sum(b)"
                )
        return [self.column(node, number=number) for node in nodes]

    def column_or_role(self, role: str, nodes: list[Any]) -> str:
        """The column that is named first, else the one that has the role. Raises
        :class:`ConfigurationError` where none is named and not exactly one has it."""
        if nodes:
            return self.column(nodes[0], number=True)
        names = [name for name, column in self.contract.columns.items() if column.role == role]
        if len(names) != 1:
            raise ConfigurationError(
                f"query: contract {self.contract.name} has {len(names)} columns with the role "
                f"'{role}'; name the column"
            )
        return names[0]

    def nullable(self, column: str) -> bool:
        """Whether the column may be empty in a row that the query is about."""
        return self.contract.columns[column].nullable and column not in self.never_empty

    def leaves_out(self, axis: Axis) -> bool:
        """Whether a row may be in none of the cells of an axis, as far as the contract tells."""
        column = self.contract.columns[axis.column]
        if self.nullable(axis.column) and not axis.missing:
            return True
        if column.type == "category":
            return False
        numbers = axis.edges or tuple(v for v in axis.levels if not isinstance(v, str))
        low, high = column.minimum if column.above is None else column.above, column.maximum
        return low is None or high is None or low < min(numbers) or high > max(numbers)

    # Groups.

    def axis(self, node: Any) -> Axis:
        """A column to group by, or ``cut(column, edge, edge, …)``, with its cells.

        Raises :class:`ConfigurationError` for a column whose values nobody lists; pydantic's
        ``ValidationError`` for edges that do not rise.
        """
        # 1. Intervals.
        if isinstance(node, exp.Anonymous):
            function, arguments = call(node)
            if function != "cut" or len(arguments) < 3:
                raise ConfigurationError(
                    f"query: group by columns or cut(column, edge, edge, …), not {node.sql()[:60]}"
                )
            name = self.column(arguments[0], number=True)
            edges = tuple(self.number(edge) for edge in arguments[1:])
            return Axis(column=name, edges=edges, missing=self.nullable(name))
        # 2. A column, by its levels: the contract's, those that are looked up, whole numbers.
        name = self.column(node)
        column = self.contract.columns[name]
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
        return Axis(column=name, levels=levels, missing=self.nullable(name))


def _whole_numbers(low: float | None, high: float | None) -> tuple[float, ...]:
    if low is None or high is None or high - low >= MOST_LEVELS:
        return ()
    return tuple(float(value) for value in range(int(np.ceil(low)), int(high) + 1))


def never_empty(condition: Condition | None) -> Iterator[str]:
    """Columns that are not empty in any row for which the condition is true."""
    match condition:
        case Not(of=Empty(column=column)) | Compare(column=column) | OneOf(column=column):
            yield column
        case Every(of=parts):
            for part in parts:
                yield from never_empty(part)
