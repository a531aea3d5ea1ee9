"""A SELECT over two joined tables, read as one over the table that nobody has.

The rows of an insurer and of the fund are joined by the key that both agreed on, one row of each for
a person, so `insurer JOIN fund` says all there is to say; USING and ON may repeat the key. Every other
join is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlglot import exp

from lab.errors import ConfigurationError
from lab.queries.across import Place
from lab.queries.sql_parse import nearest_case
from lab.records import nearest


@dataclass(frozen=True)
class SideTable:
    """What one side holds. columns: how the joined table calls them, by how the side does."""

    name: str
    columns: Mapping[str, str]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class JoinedNames:
    """The names that a question across two sides may use. whole: the joined table's."""

    whole: str
    insurer: SideTable
    fund: SideTable

    def owner(self, column: str) -> Place:
        """Who holds a column of the joined table."""
        return "fund" if column in self.fund.columns.values() else "insurer"

    @property
    def example(self) -> str:
        """How the two are named in SQL."""
        return f"FROM {_quoted(self.insurer.name)} JOIN {_quoted(self.fund.name)}"


@dataclass
class _Tables:
    """Both sides by what this SELECT calls them."""

    names: JoinedNames
    called: dict[str, SideTable] = field(default_factory=dict)

    def take(self, table: Any) -> None:
        """Note a table after FROM or JOIN."""
        if not isinstance(table, exp.Table):
            raise ConfigurationError(f"query: say {self.names.example}")
        sides = (self.names.insurer, self.names.fund)
        name = nearest_case(str(table.name), [side.name for side in sides])
        side = next((one for one in sides if one.name == name), None)
        if side is None:
            raise ConfigurationError(
                f"query: there is no table '{name}' here; say {self.names.example}"
            )
        if side in self.called.values():
            raise ConfigurationError(
                f"query: '{name}' stands there twice; say {self.names.example}"
            )
        self.called[str(table.alias or name).lower()] = side

    def column(self, node: exp.Column) -> str:
        """How the joined table calls a column. Raises :class:`ConfigurationError`."""
        name, table = str(node.name), str(node.table)
        sides = list(self.called.values())
        if table:
            if table.lower() not in self.called:
                raise ConfigurationError(
                    f"query: '{table}.{name}': there is no table '{table}' here; there are "
                    f"{' and '.join(self.called)}"
                )
            sides = [self.called[table.lower()]]
        found = [
            side.columns[own]
            for side in sides
            if (own := nearest_case(name, side.columns)) in side.columns
        ]
        if len(found) > 1:
            first, second = self.called
            raise ConfigurationError(
                f"query: both sides have '{name}'; say {first}.{name} or {second}.{name}"
            )
        if not found:
            raise ConfigurationError(_unknown(name, table, sides))
        return found[0]

    def check_key(self, join: exp.Join) -> None:
        """Refuse a join by anything but the agreed key."""
        keys = {(a.lower(), b.lower()) for a, b in _pairs(self.names)}
        if using := join.args.get("using"):
            if {(str(n.name).lower(),) * 2 for n in using} == keys:
                return
        elif (on := join.args.get("on")) is None or set(self._equal(on)) == keys:
            return
        agreed = ", ".join(f"{a} = {b}" if a != b else a for a, b in _pairs(self.names))
        raise ConfigurationError(
            f"query: the sides are joined by the key that they agreed on ({agreed}) and by nothing "
            "else; leave out ON and USING"
        )

    def _equal(self, on: Any) -> Iterable[tuple[str, str]]:
        """The columns that an ON says are equal, the insurer's first."""
        while isinstance(on, exp.Paren):
            on = on.this
        for part in on.flatten() if isinstance(on, exp.And) else [on]:
            ends = {
                self.called[str(node.table).lower()].name: str(node.name).lower()
                for node in (part.this, part.expression) * isinstance(part, exp.EQ)
                if isinstance(node, exp.Column) and str(node.table).lower() in self.called
            }
            yield ends.get(self.names.insurer.name, ""), ends.get(self.names.fund.name, "")


def unjoined(select: exp.Select, names: JoinedNames) -> exp.Select:
    """The same SELECT over the joined table, under its names of columns.

    Raises :class:`ConfigurationError` for other tables, other joins and columns that neither has.
    """
    tables, source = _Tables(names), select.args.get("from_")
    joins = select.args.get("joins") or []
    if source is None or len(joins) != 1:
        raise ConfigurationError(f"query: a question across sides is of both; say {names.example}")
    (join,) = joins
    odd = [str(join.args[key]) for key in ("side", "kind", "method") if join.args.get(key)]
    if [word for word in odd if word != "INNER"]:
        raise ConfigurationError(
            f"query: {' '.join(odd)} JOIN is not answered: rows that one side lacks count nowhere; "
            f"say {names.example}"
        )
    tables.take(source.this)
    tables.take(join.this)
    tables.check_key(join)
    titles = [item.sql(normalize_functions=False) for item in select.expressions]
    select = select.copy()
    select.set("joins", None)
    for node in list(select.find_all(exp.Column)):
        if not isinstance(node.this, exp.Star) and not _is_alias(node, select):
            node.replace(exp.column(exp.to_identifier(tables.column(node))))
    for item, title in zip(list(select.expressions), titles, strict=True):
        if not isinstance(item, exp.Column | exp.Alias):
            item.replace(exp.alias_(item.copy(), title, quoted=True))  # as the analyst wrote it
    select.args["from_"].set("this", exp.Table(this=exp.to_identifier(names.whole, quoted=True)))
    return select


def _is_alias(node: exp.Column, select: exp.Select) -> bool:
    """Whether a name is that of an output, after GROUP BY, HAVING or ORDER BY."""
    outputs = {item.alias.lower() for item in select.expressions if item.alias}
    clause = node.find_ancestor(exp.Group, exp.Having, exp.Order)
    return clause is not None and not node.table and str(node.name).lower() in outputs


def _pairs(names: JoinedNames) -> list[tuple[str, str]]:
    return list(zip(names.insurer.keys, names.fund.keys, strict=True))


def _unknown(name: str, table: str, sides: list[SideTable]) -> str:
    if any(name.lower() in map(str.lower, side.keys) for side in sides):
        return f"query: no question is about '{name}': it names a person"
    near = nearest(name, [column for side in sides for column in side.columns])
    hint = f"; did you mean '{near}'?" if near else ""
    return f"query: there is no column '{f'{table}.' * bool(table)}{name}'{hint}"


def _quoted(name: str) -> str:
    """A name as SQL takes it."""
    return name if name.isidentifier() else f'"{name}"'
