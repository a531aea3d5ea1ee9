"""What the items of a SELECT are made of: arithmetic on totals, functions of columns, quantiles.

An item becomes a :class:`Formula`, which the totals that come back give a value, or a
:class:`Rung`, which is looked for by more questions. The totals that formulas need are collected on
the way. Errors are those of `lab.queries.sql_parse`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlglot import exp

from lab.errors import ConfigurationError
from lab.queries.formulas import Formula
from lab.queries.questions import ROWS, Total
from lab.queries.sql_parse import COMPARISONS, Scope, call, nearest_case, refusal
from lab.records import nearest

#: Operations in one output; the arithmetic is nested.
MOST_OPERATIONS = 200
#: Digits that round() keeps or cuts off.
MOST_DIGITS = 12
#: No interval is narrower than so many neighbouring numbers: its ladder must rise.
FINEST = 1024
#: How narrow a quantile's interval is asked for, as a share of its range.
FINE = 1e-4


_SIGNS: dict[type[exp.Expression], str] = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/"}


@dataclass(frozen=True)
class Rung:
    """A quantile to be found: the value below which a ``share`` of a column's rows lies.

    low, high, width: where it is looked for, and to within what, in units of the column.
    """

    column: str
    share: float
    low: float
    high: float
    width: float


@dataclass(frozen=True)
class Totals:
    """The totals that formulas need, collected as they are read: the number of rows comes first.

    centres: the public numbers that sums of squares are taken around, else 0; moments: the columns
    of such sums, with repeats.
    """

    scope: Scope
    centres: Mapping[str, float]
    entries: list[Total] = field(default_factory=lambda: [ROWS])
    moments: list[str] = field(default_factory=list)

    def rows(self) -> Formula:
        """The number of rows."""
        return self._total(ROWS)

    def count(self, *columns: str) -> Formula:
        """The number of rows that have a value in every one of the columns."""
        nullable = tuple(sorted({c for c in columns if self.scope.nullable(c)}))
        return self._total(Total(kind="count", columns=nullable) if nullable else ROWS)

    def sum(self, *columns: str) -> Formula:
        """The sum of a column, or of a product of two, around 0."""
        return self._total(Total(kind="sum", columns=columns, centres=(0.0,) * len(columns)))

    def comoment(self, a: str, b: str) -> Formula:
        """Sum of (a - mean)(b - mean) over rows that have both.

        Raises :class:`ConfigurationError` for two columns that may be empty in different rows.
        """
        n = self.count(a, b)
        if a == b or not any(self.scope.nullable(c) for c in (a, b)):
            return self._around(a, b) - self._around(a) * self._around(b) / n
        raise ConfigurationError(
            f"query: '{a}' and '{b}' may be empty in different rows; add where {a} is not null "
            f"and {b} is not null"
        )

    def _around(self, *columns: str) -> Formula:
        """A sum of products around the columns' public centres."""
        self.moments.extend(columns)
        centres = tuple(self.centres.get(column, 0.0) for column in columns)
        return self._total(Total(kind="sum", columns=columns, centres=centres))

    def _total(self, total: Total) -> Formula:
        if total not in self.entries:
            self.entries.append(total)
        return Formula("total", (float(self.entries.index(total)),))


# Functions.

#: A function of its totals, its name and its arguments unread.
Function = Callable[[Totals, str, list[Any]], Formula]


def _count(totals: Totals, name: str, arguments: list[Any]) -> Formula:
    if len(arguments) == 1 and isinstance(arguments[0], exp.Star | exp.Literal):
        return totals.rows()
    return totals.count(*totals.scope.columns(arguments, 1, name, number=False))


def _missing(totals: Totals, name: str, arguments: list[Any]) -> Formula:
    return totals.rows() - totals.count(*totals.scope.columns(arguments, 1, name, number=False))


def _sum(totals: Totals, name: str, arguments: list[Any]) -> Formula:
    if len(arguments) == 1 and isinstance(arguments[0], exp.Mul):
        factors = [arguments[0].this, arguments[0].expression]
        return totals.sum(*totals.scope.columns(factors, 2, name))
    return totals.sum(*totals.scope.columns(arguments, 1, name))


def _ratio(*roles: str) -> Function:
    """One sum, or the first of two divided by the second; roles: what finds columns left out."""

    def function(totals: Totals, name: str, arguments: list[Any]) -> Formula:
        if len(arguments) > len(roles):
            raise ConfigurationError(f"query: {name}() takes at most {len(roles)} columns")
        parts = [
            totals.sum(totals.scope.column_or_role(role, arguments[k : k + 1]))
            for k, role in enumerate(roles)
        ]
        return parts[0] if len(parts) == 1 else parts[0] / parts[1]

    return function


def _of_columns(size: int, build: Callable[..., Formula]) -> Function:
    """A function whose arguments are ``size`` columns of numbers."""
    return lambda totals, name, arguments: build(
        totals, *totals.scope.columns(arguments, size, name)
    )


def _mean(totals: Totals, column: str) -> Formula:
    return totals.sum(column) / totals.count(column)


def _variance(totals: Totals, a: str, b: str, less: float) -> Formula:
    moment = totals.comoment(a, b)
    if a == b:  # the last bits of a difference may fall below 0
        moment = Formula("at least 0", (moment,))
    return moment / (totals.count(a, b) - less)


def _root(formula: Formula) -> Formula:
    return Formula("root", (formula,))


def _correlation(totals: Totals, a: str, b: str) -> Formula:
    spread = _root(totals.comoment(a, a)) * _root(totals.comoment(b, b))
    return totals.comoment(a, b) / spread


#: What each function is as arithmetic on totals.
_FUNCTIONS: dict[str, Function] = {
    "count": _count,
    "missing": _missing,
    "sum": _sum,
    "avg": _of_columns(1, _mean),
    "mean": _of_columns(1, _mean),
    "variance": _of_columns(1, lambda totals, a: _variance(totals, a, a, 1.0)),
    "var_samp": _of_columns(1, lambda totals, a: _variance(totals, a, a, 1.0)),
    "var_pop": _of_columns(1, lambda totals, a: _variance(totals, a, a, 0.0)),
    "stddev": _of_columns(1, lambda totals, a: _root(_variance(totals, a, a, 1.0))),
    "stddev_samp": _of_columns(1, lambda totals, a: _root(_variance(totals, a, a, 1.0))),
    "stddev_pop": _of_columns(1, lambda totals, a: _root(_variance(totals, a, a, 0.0))),
    "covar_samp": _of_columns(2, lambda totals, a, b: _variance(totals, a, b, 1.0)),
    "covar_pop": _of_columns(2, lambda totals, a, b: _variance(totals, a, b, 0.0)),
    "corr": _of_columns(2, _correlation),
    "exposure": _ratio("exposure"),
    "frequency": _ratio("claims", "exposure"),
    "severity": _ratio("paid", "claims"),
    "pure_premium": _ratio("paid", "exposure"),
    "loss_ratio": _ratio("paid", "premium"),
    "actual_expected": _ratio("actual", "expected"),
}
_QUANTILES = ("quantile", "median", "min", "max")


# Items.


@dataclass(frozen=True)
class SelectItems:
    """Reads the items of a SELECT; whole: functions that are a whole answer, hence in no formula."""

    totals: Totals
    whole: Collection[str]

    def outputs(self, nodes: list[Any], groups: list[Any]) -> dict[str, Formula | Rung]:
        """The outputs by name, at least one; nodes: the items, groups: what it is grouped by.

        Raises :class:`ConfigurationError` for what is no sum and no quantile, for arithmetic that
        is nested too deeply, for two outputs of one name.
        """
        key = self.totals.scope.key
        axes = {key(node) for node in groups}
        outputs: dict[str, Formula | Rung] = {}
        for node in nodes:
            bare = node.unalias()
            if key(bare) in axes:
                continue
            if isinstance(bare, exp.Column):
                raise _single_row(bare)
            name = node.alias or bare.sql(normalize_functions=False)
            if name in outputs:
                raise ConfigurationError(f"query: two outputs are called '{name}'; say AS")
            outputs |= self._output(name, bare)
        if not outputs:
            raise ConfigurationError("query: ask for a sum, as count(*)")
        return outputs

    def _output(self, name: str, node: Any) -> dict[str, Formula | Rung]:
        if isinstance(node, exp.Anonymous):
            function, arguments = call(node)
            if function in _QUANTILES:
                return {name: self._rung(function, arguments)}
            if function == "rate":
                events, exposure, per = parts = self._rate_parts(arguments)
                return {
                    name: events / exposure * per,
                    f"{name} low": Formula("rate low", parts),
                    f"{name} high": Formula("rate high", parts),
                }
        return {name: self._shallow(node)}

    def _shallow(self, node: Any) -> Formula:
        if sum(1 for _ in node.find_all(exp.Binary, exp.Unary, exp.Anonymous)) > MOST_OPERATIONS:
            raise ConfigurationError("query: nested too deeply")
        return self._formula(node)

    def having(self, node: Any, outputs: Mapping[str, Formula | Rung]) -> Formula:
        """A condition on totals as they are released; outputs: what it may call by name.

        Raises :class:`ConfigurationError` for what is no comparison of totals with numbers or totals.
        """
        match node:
            case exp.Paren():
                return self.having(node.this, outputs)
            case exp.Not():
                return Formula("not", (self.having(node.this, outputs),))
            case exp.And() | exp.Or():
                sign = "and" if isinstance(node, exp.And) else "or"
                parts = (self.having(p, outputs) for p in (node.this, node.expression))
                return Formula(sign, tuple(parts))
            case exp.Between():
                value, low, high = (
                    self._compared(n, outputs)
                    for n in (node.this, *map(node.args.get, ("low", "high")))
                )
                return Formula("and", (Formula(">=", (value, low)), Formula("<=", (value, high))))
            case _ if type(node) in COMPARISONS:
                parts = (self._compared(p, outputs) for p in (node.this, node.expression))
                return Formula(COMPARISONS[type(node)], tuple(parts))
        raise refusal(node)

    def _compared(self, node: Any, outputs: Mapping[str, Formula | Rung]) -> Formula:
        if not isinstance(node, exp.Column):
            return self._shallow(node)
        output = outputs.get(nearest_case(node.name, outputs))
        if not isinstance(output, Formula):
            raise ConfigurationError(
                f"query: HAVING compares sums, and '{node.name}' is none; conditions on rows and "
                "groups go into WHERE"
            )
        return output

    def _rate_parts(self, arguments: list[Any]) -> tuple[Formula, Formula, float]:
        if not 1 <= len(arguments) <= 3:
            raise ConfigurationError(
                "query: rate(events, exposure, per) has one to three arguments"
            )
        scope = self.totals.scope
        events = self.totals.sum(scope.column(arguments[0], number=True))
        exposure = self.totals.sum(scope.column_or_role("exposure", arguments[1:2]))
        return events, exposure, scope.number(arguments[2]) if len(arguments) > 2 else 1000.0

    def _rung(self, function: str, arguments: list[Any]) -> Rung:
        scope = self.totals.scope
        # 1. Which column, and which share of its rows.
        if not arguments:
            raise ConfigurationError(f"query: {function}(column) needs a column")
        column, rest = scope.column(arguments[0], number=True), arguments[1:]
        if function == "quantile":
            if not rest:
                raise ConfigurationError("query: quantile(column, share) needs a share, as 0.9")
            share, rest = scope.number(rest[0]), rest[1:]
        else:
            share = {"median": 0.5, "min": 0.0, "max": 1.0}[function]
        # 2. Where to look for it: the range that is written, else the contract's.
        own = scope.contract.columns[column]
        low, high = own.minimum if own.above is None else own.above, own.maximum
        if len(rest) >= 2:
            low, high, rest = scope.number(rest[0]), scope.number(rest[1]), rest[2:]
        if low is None or high is None:
            raise ConfigurationError(
                f"query: contract {scope.contract.name} gives '{column}' no range; write where to "
                f"look for it: {function}({column}, … low, high)"
            )
        # 3. How narrow its interval shall be, and can be.
        width = scope.number(rest[0]) if rest else FINE * (high - low)
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
                return Formula("number", (self.totals.scope.number(node),))
            case exp.Anonymous():
                return self._function(*call(node))
            case _ if type(node) in _SIGNS:
                parts = (self._formula(node.this), self._formula(node.expression))
                return Formula(_SIGNS[type(node)], parts)
            case exp.Column():
                raise _single_row(node)
        raise refusal(node)

    def _function(self, name: str, arguments: list[Any]) -> Formula:
        if name == "round" and 1 <= len(arguments) <= 2:
            digits = self.totals.scope.number(arguments[1]) if len(arguments) == 2 else 0.0
            if digits % 1 or abs(digits) > MOST_DIGITS:
                raise ConfigurationError(
                    f"query: round(x, digits) takes whole digits, {MOST_DIGITS} at most"
                )
            return Formula("round", (self._formula(arguments[0]), 10.0**digits))
        if name in (*_QUANTILES, "rate", *self.whole):
            raise ConfigurationError(
                f"query: {name}() stands alone: arithmetic on it is not answered"
            )
        if name not in _FUNCTIONS:
            near = nearest(name, [*_FUNCTIONS, *self.whole, "quantile", "rate", "round"])
            hint = f"; did you mean {near}()?" if near else ""
            raise ConfigurationError(f"query: {name}() cannot be written as sums over rows{hint}")
        return _FUNCTIONS[name](self.totals, name, arguments)


def _single_row(node: exp.Column) -> ConfigurationError:
    return ConfigurationError(
        f"query: '{node.name}' is a value of single rows; sum it or group by it"
    )
