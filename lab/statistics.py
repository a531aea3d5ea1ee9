"""A statistic is what a party may be asked for: one typed row, from which everything else follows.

The row names the record of its arguments, the analysis it belongs to, what must stand behind it and
the function that takes it from a party's rows. Who may ask for it, what its messages look like and
what a receipt says of it are read off the row; an argument that the record does not know is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeVar

import pandas as pd
from pydantic import ValidationError

from lab.errors import PeerError
from lab.records import Strict
from lab.sums import Floats, Sums

Part = Literal["train", "test"]
Arrays = Mapping[str, Floats]
#: What a function makes of a party's rows.
Product = TypeVar("Product")
#: Analyses beside the kinds of model: statistics that every model asks for, questions, profiles, and
#: what questions across joined sides are made from.
ANY_MODEL, QUESTIONS, PROFILES, ACROSS = "any model", "questions", "profiles", "across sides"


class Holding(Protocol):
    """A party as its statistics see it: its rows for a task, and what was computed from them before.

    secret: what the party alone draws resamples, orders and dropout from; rows_secret: what it
    draws the rows from that judge a model while it is fitted.
    """

    name: str
    person: str | None
    secret: bytes
    rows_secret: bytes
    query_table: Any
    finished: dict[str, Any]

    def rows(self, task: Any, part: Part) -> pd.DataFrame:
        """The rows a task is about, without who they belong to."""

    def owners(self, task: Any, part: Part) -> pd.Series:
        """Who each of these rows belongs to: its person, or its own number."""

    def units(self, task: Any, part: Part) -> Floats:
        """The same as numbers, `lab.privacy.joining.HOME` apart from party to party."""

    def claims(self) -> pd.DataFrame:
        """All rows, with who they belong to."""

    def once(self, make: Callable[..., Product], *key: Any, at_hand: int = 8) -> Product:
        """``make(self, *key)``, computed once and kept among the last ``at_hand`` of its kind."""

    def forget(self, make: Callable[..., object]) -> None:
        """Drop what this function made."""


@dataclass(frozen=True)
class Statistic:
    """One row. function: (holding, arguments, arrays) -> the party's sums.

    analysis: a kind of model, or one of :data:`ANY_MODEL`, :data:`QUESTIONS`, :data:`PROFILES`, :data:`ACROSS`;
    arrays: the names of the arrays that are sent along, None where the model names them;
    persons: how the fewest persons behind it are set, by the party's minimum of rows for the whole
    or by rules of disclosure cell by cell; cells: its numbers stand on parts of the rows, some
    perhaps on few persons, so that it is not asked where everybody sees the totals; message:
    Flower's type for the request.
    """

    name: str
    arguments: type[Strict]
    function: Callable[[Holding, Any, Arrays], Sums]
    analysis: str
    arrays: tuple[str, ...] | None = ()
    persons: Literal["minimum rows", "rules, cell by cell"] = "minimum rows"
    cells: bool = False
    message: Literal["query", "train"] = "query"

    @property
    def released(self) -> bool:
        """Whether whoever opens its totals shows only what the rules of disclosure leave."""
        return self.analysis in (QUESTIONS, PROFILES)

    def written(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments in the one form in which they travel. Raises :class:`PeerError`."""
        return self.record(arguments).model_dump(mode="json")

    def read(self, text: str, arrays: Arrays) -> Any:
        """The record of arguments that came as this text, exactly the one in which they are written.

        The same question in two forms would count as two. Raises :class:`PeerError`.
        """
        record = _read(self, text)
        if self.arrays is not None and set(arrays) != set(self.arrays):
            names = ", ".join(self.arrays) or "none"
            raise PeerError(f"request: {self.name} must come with exactly these arrays: {names}")
        return record

    def record(self, arguments: Mapping[str, Any]) -> Strict:
        """The record of these arguments. Raises :class:`PeerError`."""
        try:
            return self.arguments.model_validate(dict(arguments))
        except ValidationError as error:
            raise PeerError(f"request: {self.name}: {_reason(error)}") from None


def text_of(arguments: Mapping[str, Any]) -> str:
    """Arguments as the one text that is signed and sent."""
    return json.dumps(dict(arguments), sort_keys=True, allow_nan=False)


@lru_cache(8)
def _read(row: Statistic, text: str) -> Strict:
    """The record of a text; parties in one process, who are asked the same, read it once."""
    record = row.record(json.loads(text))
    if text_of(record.model_dump(mode="json")) != text:
        raise PeerError(f"request: {row.name}: its arguments are not in canonical form")
    return record


def _reason(error: ValidationError) -> str:
    """The first mistake, by the name of the argument and without the value that came."""
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"])) or "its arguments"
    if first["type"] == "extra_forbidden":
        return f"there is no argument '{name[:60]}'"
    return f"argument '{name[:60]}' is invalid ({first['type']})"
