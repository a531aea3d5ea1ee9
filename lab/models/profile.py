"""What all parties together know of a provider: sums by provider and period, joined to claims.

Each party adds up its own claims; the totals are released under the rules of disclosure, and every
party joins what was released to its claims as columns. A period is known when it is over: claims
are scored at its end, not at settlement. Persons are counted once at each party, so that one who
claims at two parties counts twice.

Every count is a cell: what is told of a provider in a period stands on enough persons of enough
parties, and so do those whom it leaves out: who came once, who did not come at a weekend. Shares are
told one after the other, as long as whoever they tell apart together are enough persons; one that
holds for nobody or for everybody is not told, because many shares would count down to one claim.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, SerializeAsAny, model_validator

from lab.errors import ConfigurationError, PeerError
from lab.privacy.disclosure import Rules
from lab.queries.questions import Compare, Question
from lab.records import Strict, parse
from lab.sums import AMOUNT, COUNT, FLAG, Floats, Limit, Sums
from lab.tables.contracts import Column, Contract

Measure = Literal["claims", "persons", "returning", "parties", "returning_parties"]
#: A whole market in small pieces; more is a list of claims, not a profile.
MOST_CELLS = 1_000_000
#: Persons are counted by every pattern of the shares that hold.
MOST_SHARES = 6


class Profiling(Strict):
    """``[[profile]]``: what is counted, by whom and in which periods.

    ``by``: the number of the provider; ``day``: the day of a claim, a whole number with a range in
    its contract; ``every``: days of a period. ``measures``: claims a day, persons, persons who
    come again in the period, parties with a claim, parties with persons who come again.
    ``means``: columns averaged over claims. ``shares``: the share of claims for which a comparison
    holds. ``where``: the claims that all of these are about.
    """

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$", description="Prefix of the columns that are joined to claims."
    )
    by: str = Field(description="Column with the provider's number.")
    day: str = Field(
        description="Column with the day of a claim, a whole number with a range in its contract."
    )
    every: int = Field(30, ge=1, description="Days of a period.")
    register_file: str | None = Field(
        None, description="A file with the numbers of all providers; default: the market's own."
    )
    measures: tuple[Measure, ...] = Field(
        get_args(Measure),
        description="claims: claims a day. persons. returning: persons who come again in the period. parties: parties with a claim. returning_parties: parties with persons who come again.",
    )
    means: tuple[str, ...] = Field((), description="Columns averaged over claims.")
    shares: dict[str, Compare] = Field(
        default_factory=dict,
        max_length=MOST_SHARES,
        description="By name, a comparison: the share of claims for which it holds.",
    )
    where: Compare | None = Field(None, description="The claims that all of these are about.")

    @model_validator(mode="after")
    def _something(self) -> Profiling:
        if len(set(self.columns())) != len(self.columns()):
            raise ValueError("two of its columns have the same name")
        return self

    def columns(self) -> list[str]:
        """The columns that are joined to claims."""
        names = (*self.measures, *(f"mean_{column}" for column in self.means), *self.shares)
        return [f"{self.name}_{measure}" for measure in names]

    def reads(self) -> list[str]:
        """The columns of claims that it looks at."""
        compared = [c.column for c in (*self.shares.values(), self.where) if c is not None]
        return [self.by, self.day, *self.means, *compared]

    def check(self, contract: Contract) -> None:
        """Refuse what this contract does not carry. Raises :class:`ConfigurationError`."""
        where = f"profile '{self.name}'"
        for column in self.reads():
            if column not in contract.columns or contract.columns[column].role == "never_leaves":
                raise ConfigurationError(
                    f"{where}: contract {contract.name} has no column '{column}' that a profile may read"
                )
        day = contract.columns[self.day]
        if day.type != "integer" or day.minimum is None or day.maximum is None:
            raise ConfigurationError(
                f"{where}: '{self.day}' must be a whole number with minimum and maximum in contract "
                f"{contract.name}, so that all parties have the same periods"
            )
        for column in self.columns():
            if column in contract.columns:
                raise ConfigurationError(
                    f"{where}: the table has a column '{column}' already; give another name"
                )


class ProfileCells(Strict):
    """The cells of a profile: every provider of the public register in every period."""

    asked: Profiling
    numbers: tuple[int, ...]
    first: int
    periods: int = Field(ge=1)

    @model_validator(mode="after")
    def _whole(self) -> ProfileCells:
        if sorted(set(self.numbers)) != list(self.numbers):
            raise ValueError("numbers must be strictly increasing")
        if not 0 < self.count <= MOST_CELLS:
            raise ValueError(f"{self.count:,} cells; there must be 1 to {MOST_CELLS:,}")
        return self

    @property
    def count(self) -> int:
        return len(self.numbers) * self.periods

    def cell(self, frame: pd.DataFrame) -> NDArray[np.int64]:
        """The cell of each row, -1 for a provider that is not registered or a day outside."""
        number = frame[self.asked.by].to_numpy(dtype=np.float64)
        numbers = np.array(self.numbers, dtype=np.float64)
        at = np.searchsorted(numbers, number).clip(max=len(numbers) - 1)
        days = frame[self.asked.day].to_numpy(dtype=np.float64) - self.first
        period = np.nan_to_num(days // self.asked.every, nan=-1).astype(np.int64)
        inside = (numbers[at] == number) & (period >= 0) & (period < self.periods)
        return np.where(inside, at * self.periods + period, -1)

    def form(self) -> dict[str, tuple[int, Limit]]:
        """(values, format) of each sum, by name; it follows from the question alone."""
        profiling = self.asked
        groups = [*GROUPS, *(("others",) if profiling.where is not None else ())]
        groups += [f"{side} {column}" for column in profiling.means for side in ("with", "without")]
        patterns = range(2 ** len(profiling.shares)) if profiling.shares else ()
        groups += [f"pattern {pattern}" for pattern in patterns]
        counts = ["claims", *(f"of {column}" for column in profiling.means)]
        counts += [f"claims {pattern}" for pattern in patterns]
        form = dict.fromkeys((*groups, *counts), (self.count, COUNT))
        form |= dict.fromkeys((f"parties {group}" for group in groups), (self.count, FLAG))
        return form | {f"sum {column}": (self.count, AMOUNT) for column in profiling.means}


#: Persons of a cell: all patients; those with a claim that is meant; of these, who came again, or once.
GROUPS = ("population", "persons", "returning", "single")
PARTIES = {"parties": "parties persons", "returning_parties": "parties returning"}


def cells_of(profiling: Profiling, contract: Contract, numbers: Iterable[int]) -> ProfileCells:
    """The cells over these providers; periods follow from the contract.

    Where the register lies is nobody's but the coordinator's. Raises :class:`ConfigurationError`.
    """
    profiling.check(contract)
    day = contract.columns[profiling.day]
    assert day.minimum is not None and day.maximum is not None  # checked with the contract
    return parse(
        ProfileCells,
        {
            "asked": profiling.model_copy(update={"register_file": None}),
            "numbers": tuple(numbers),
            "first": int(day.minimum),
            "periods": int((day.maximum - day.minimum) // profiling.every) + 1,
        },
        where=f"profile '{profiling.name}'",
    )


def sums(frame: pd.DataFrame, cells: ProfileCells, person: str) -> Sums:
    """One party's sums by cell, in the `form` of the cells."""
    profiling, arrays = cells.asked, dict[str, Floats]()
    cell = cells.cell(frame)
    frame, cell = frame[cell >= 0], cell[cell >= 0]

    def counted(at: NDArray[np.int64], value: Floats | None = None) -> Floats:
        return np.bincount(at, value, cells.count).astype(np.float64)

    def group(name: str, at: NDArray[np.int64]) -> None:
        """Persons by cell, and whether there are any."""
        arrays[name] = counted(at)
        arrays[f"parties {name}"] = (arrays[name] > 0).astype(np.float64)

    def persons(rows: NDArray[np.bool_]) -> NDArray[np.int64]:
        return _visits(cell[rows], frame[person][rows])["cell"].to_numpy()

    # 1. All patients, and those that `where` leaves out.
    group("population", persons(np.ones(len(frame), dtype=bool)))
    if profiling.where is not None:
        subject = _holds(profiling.where, frame)
        group("others", persons(~subject))
        frame, cell = frame[subject], cell[subject]
    # 2. Claims and patients, by how often they came.
    visits = _visits(cell, frame[person])
    again = (visits["count"] > 1).to_numpy()
    arrays["claims"] = counted(cell)
    group("persons", visits["cell"].to_numpy())
    group("returning", visits["cell"].to_numpy()[again])
    group("single", visits["cell"].to_numpy()[~again])
    # 3. Each claim has a pattern of shares that hold; a patient counts for that of its first claim.
    if profiling.shares:
        pattern = np.zeros(len(frame), dtype=np.int64)
        for k, condition in enumerate(profiling.shares.values()):
            pattern += _holds(condition, frame) * 2**k
        once = pd.DataFrame({"cell": cell, "person": frame[person].to_numpy()}).duplicated()
        for k in range(2 ** len(profiling.shares)):
            arrays[f"claims {k}"] = counted(cell[pattern == k])
            group(f"pattern {k}", cell[(pattern == k) & ~once.to_numpy()])
    # 4. Columns that are averaged, over claims that have a value.
    for column in profiling.means:
        value = frame[column].to_numpy(dtype=np.float64)
        there = ~np.isnan(value)
        arrays[f"sum {column}"] = counted(cell[there], value[there])
        arrays[f"of {column}"] = counted(cell[there])
        group(f"with {column}", persons(there))
        group(f"without {column}", persons(~there))
    limits = {name: limit for name, (_, limit) in cells.form().items()}
    return Sums(arrays, limits, len(frame))


def _visits(cell: NDArray[np.int64], person: pd.Series) -> pd.DataFrame:
    """How often (``count``) each person was in each cell."""
    pairs = pd.DataFrame({"cell": cell, "person": person.to_numpy()})
    return pairs.value_counts(sort=False).reset_index()


def _holds(condition: Compare, frame: pd.DataFrame) -> NDArray[np.bool_]:
    return Question(table="", where=condition).rows(frame)


def release(cells: ProfileCells, rules: Rules, totals: Sums) -> Sums:
    """What the columns of a profile are made of, each with ``shown`` and its name: 1 where it is
    shown; 0 elsewhere.

    Of those who came again and those who came once, few are joined to the others. Concentration
    rules are not applied: a mean over ten persons can be mostly one of theirs.
    """

    least = (rules.minimum_count.persons, rules.minimum_parties.parties)

    def enough(group: str) -> NDArray[np.bool_]:
        return np.asarray((totals[group] >= least[0]) & (totals[f"parties {group}"] >= least[1]))

    profiling = cells.asked
    whole = enough("population")
    if profiling.where is not None:
        whole &= enough("persons") & (enough("others") | (totals["others"] == 0))
    again, once = enough("returning"), enough("single")
    arrays, visible = dict[str, Floats](), dict[str, NDArray[np.bool_]]()
    for measure in get_args(Measure):
        values, visible[measure] = totals[PARTIES.get(measure, measure)], whole
        if measure.startswith("returning"):
            everybody = totals["parties persons" if measure in PARTIES else "persons"]
            values = np.where(again, np.where(once, values, everybody), 0.0)
            visible[measure] = whole & (again | once)
        arrays[measure] = np.where(visible[measure], values, 0.0)
    shares = _shares(profiling, rules, totals) if profiling.shares else {}
    for name, (mask, claims) in shares.items():
        visible[name] = mask & whole
        arrays[f"share {name}"] = np.where(visible[name], claims, 0.0)
    for column in profiling.means:
        without = enough(f"without {column}") | (totals[f"without {column}"] == 0)
        visible[f"mean_{column}"] = mask = whole & enough(f"with {column}") & without
        for part in (f"sum {column}", f"of {column}"):
            arrays[part] = np.where(mask, totals[part], 0.0)
    arrays |= {f"shown {name}": mask.astype(np.float64) for name, mask in visible.items()}
    arrays["shown"] = whole.astype(np.float64)
    return Sums(arrays, dict.fromkeys(arrays, AMOUNT), 0)


def _shares(
    profiling: Profiling, rules: Rules, totals: Sums
) -> dict[str, tuple[NDArray[np.bool_], Floats]]:
    """Of each share the cells in which it may be told, and the claims for which it holds.

    It may where all that it tells apart, with the shares that are told already, are enough persons
    of enough parties: then so is whatever any combination of them is about.
    """
    patterns = np.arange(2 ** len(profiling.shares))
    claims, persons, parties = (
        np.stack([totals[f"{name} {k}"] for k in patterns])
        for name in ("claims", "pattern", "parties pattern")
    )
    bits = np.zeros(claims.shape[1], dtype=np.int64)  # shares that are told, of each cell
    result = {}
    for k, name in enumerate(profiling.shares):
        holds = patterns & 2**k > 0
        mask = (claims[holds].sum(axis=0) > 0) & (claims[~holds].sum(axis=0) > 0)
        for pattern in patterns:
            alike = ((patterns[:, None] ^ pattern) & (bits | 2**k)) == 0
            few = (persons * alike).sum(axis=0) < rules.minimum_count.persons
            few |= (parties * alike).max(axis=0) < rules.minimum_parties.parties
            mask &= ~few | ((claims * alike).sum(axis=0) == 0)
        bits |= mask * 2**k
        result[name] = mask, claims[holds].sum(axis=0)
    return result


class Profile(Strict):
    """A released profile, as every party joins it to its claims: columns by cell, None if hidden."""

    cells: ProfileCells
    columns: dict[str, tuple[float | None, ...]]

    @model_validator(mode="after")
    def _complete(self) -> Profile:
        if list(self.columns) != self.cells.asked.columns():
            raise ValueError("columns must be those that the profile asks for")
        if any(len(values) != self.cells.count for values in self.columns.values()):
            raise ValueError(f"each column must have {self.cells.count:,} values")
        return self

    @classmethod
    def of(cls, cells: ProfileCells, totals: Sums) -> Profile:
        """From what was released."""
        profiling = cells.asked
        measures = {"claims": totals["claims"] / profiling.every}
        measures |= {name: totals[name] for name in get_args(Measure)[1:]}
        claims = np.maximum(totals["claims"], 1)
        measures |= {name: totals[f"share {name}"] / claims for name in profiling.shares}
        for column in profiling.means:
            there = totals[f"of {column}"]
            mean = totals[f"sum {column}"] / np.maximum(there, 1)
            measures[f"mean_{column}"] = np.where(there > 0, mean, np.nan)
        columns = {}
        for name in profiling.columns():
            measure = name.removeprefix(f"{profiling.name}_")
            values = np.where(totals[f"shown {measure}"] > 0, measures[measure], np.nan)
            columns[name] = tuple(None if v != v else float(v) for v in values)
        return cls(cells=cells, columns=columns)

    @property
    def shown(self) -> int:
        """ProfileCells that are not hidden."""
        return sum(value is not None for value in next(iter(self.columns.values()), ()))

    @cached_property
    def digest(self) -> str:
        """What a task names a profile by."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @cached_property
    def _table(self) -> Floats:
        """(columns, cells + 1), the last for rows in no cell."""
        rows = [[np.nan if v is None else v for v in (*c, None)] for c in self.columns.values()]
        return np.array(rows, dtype=np.float64)

    def join(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The claims with the columns of the profile."""
        for column in (self.cells.asked.by, self.cells.asked.day):
            if column not in frame.columns:
                raise ConfigurationError(
                    f"the model needs column '{column}' to look up what is known of a provider"
                )
        values = self._table[:, self.cells.cell(frame)]
        return frame.assign(**dict(zip(self.columns, values, strict=True)))


class Profiled(Strict):
    """A model with the profiles its features come from."""

    kind: Literal["profiled"] = "profiled"
    profiles: tuple[Profile, ...]
    model: SerializeAsAny[Strict]

    def predict(self, frame: pd.DataFrame) -> Floats:
        """The prediction of the model, one for each row."""
        for profile in self.profiles:
            frame = profile.join(frame)
        return np.asarray(self.model.predict(frame))  # type: ignore[attr-defined]


def profiled(contract: Contract, profilings: tuple[Profiling, ...]) -> Contract:
    """The contract with the columns that profiles add."""
    added = dict(_columns(profilings))
    return contract.model_copy(update={"columns": contract.columns | added})


def _columns(profilings: tuple[Profiling, ...]) -> Iterator[tuple[str, Column]]:
    for one in profilings:
        column = Column(type="number", nullable=True, description=f"of {one.by}, all parties")
        yield from ((name, column) for name in one.columns())


def read(data: bytes) -> Profile:
    """A profile as it travels. Raises :class:`PeerError`."""
    try:
        return Profile.model_validate(json.loads(data))
    except (ValueError, RecursionError):
        raise PeerError("coordinator: sent a profile that is not readable") from None
