"""The tables of an experiment file besides its model: what each key may be, and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from lab.models.design import Feature
from lab.privacy.noise import Noise
from lab.queries.query_table import Budget
from lab.records import Strict
from lab.tables.market_sides import TABLES

Arm = Literal["alone", "without", "insurer", "fund", "federated", "personal", "pooled"]
#: Arms of the columns of one side alone.
SIDES: tuple[Arm, ...] = ("insurer", "fund")
#: What the arms are where sides know the same persons: each side's columns alone, both, one table.
ARMS_OF_SIDES: tuple[Arm, ...] = (*SIDES, "federated", "pooled")

#: Joined sources that come of a market, which is made for the run where no path is given.
MADE = tuple(f"market_{name}" for name in TABLES)
#: The column of a joined table that says whose row it is: the key, in one spelling.
KEY = "joined key"
#: The column that marks rows for testing in a dealt table.
MARK = "held_out"
#: The column that says whose insurer's table a row is from.
BLOCK = "joined table"


class MarketSettings(Strict):
    """``[data.market]``: a simulated market that is made for the run."""

    persons: int = Field(50_000, description="Persons in the market.")
    insurers: int = Field(4, description="Commercial insurers beside the public one.")
    seed: int = Field(0, description="Same seed, same market, bit for bit.")


class Data(Strict):
    """``[data]``: where the rows are, what is modelled, what is kept for testing.

    ``group_by_person``: the rows of a person are at one party and on one side of the split for testing;
    if not, a person may be at several parties, and before and after a split by time.
    """

    source: str | None = Field(
        None,
        description="A built-in source; `lab data describe SOURCE` says what it holds. One that is not shipped takes its file by path.",
    )
    path: str | None = Field(
        None,
        description="A CSV (.gz) or Parquet file, a folder for sources of several files, or a SQLAlchemy URL with table or query.",
    )
    market: MarketSettings | None = Field(
        None,
        description="With source = 'market' and no path: a simulated market, made for the run.",
    )
    contract: str | None = Field(
        None,
        description="A contract file, or the name of a built-in contract. Without one the columns have types only.",
    )
    encoding: str | None = Field(
        None, description="Encoding of a CSV that is not UTF-8, as gb18030 or cp1252."
    )
    table: str | None = Field(None, description="The table to read where path is a database.")
    query: str | None = Field(None, description="Rows to read where path is a database: SQL.")
    target: str = Field(description="The column that is modelled.")
    exposure: str | None = Field(
        None,
        description="Exposure column, in years; default: the contract's, '' for none. Named among the features too it is an input beside the offset.",
    )
    exposure_as: Literal["offset", "weight"] = Field(
        "offset",
        description="offset: its logarithm is added to the linear predictor. weight: the model is of target / exposure, weighted by exposure (log link not needed).",
    )
    weight: str | None = Field(
        None,
        description="Weight column: divides the dispersion; default: the contract's, '' for none.",
    )
    per: str | None = Field(
        None,
        description="The target is the total of so many claims (a column of counts): models the amount per claim.",
    )
    features: tuple[str | Feature, ...] | None = Field(
        None,
        description="Column names, or tables such as { column = 'age', cut = [20, 30] }; default: every feature column of the contract; without one, numbers that repeat and short lists of levels.",
    )
    person: str | None = Field(None, description="Column that says whose row it is.")
    group_by_person: bool = Field(
        True, description="Rows of one person stay at one party and on one side of the test split."
    )
    cap: dict[str, float] = Field(
        default_factory=dict,
        description="Largest value by column, as { ClaimNb = 4 }: larger values become it.",
    )
    missing: Literal["refuse", "drop", "mean", "keep"] = Field(
        "refuse",
        description="Rows with missing values: refuse the table, drop the rows, fill in the training mean (not for trees), or keep them in a bin of their own (trees only).",
    )
    constant: Literal["drop", "refuse"] = Field(
        "drop",
        description="A feature that is the same in every training row of all parties: leave it out and say so, or refuse it.",
    )
    test: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of rows kept for testing; 0 fits on every row and scores in sample.",
    )
    test_rows: str | None = Field(
        None,
        description="A file of zero-based numbers of test rows, counted in the table as it lies there: rows dropped for missing values keep their numbers.",
    )
    test_column: str | None = Field(
        None, description="Test rows are those where this column has test_value."
    )
    test_value: str | int | None = Field(None, description="See test_column.")

    @model_validator(mode="after")
    def _one_place_and_one_split(self) -> Self:
        if (self.test_column is None) != (self.test_value is None):
            raise ValueError("test_column and test_value go together")
        if self.test_rows is not None and self.test_column is not None:
            raise ValueError("give test_rows or test_column, not both")
        return self


class JoinedTable(Strict):
    """One of ``[[joined]]``: a table of one side, where two sides know the same persons in other columns."""

    role: Literal["insurer", "fund"] = Field(
        description="Whose table it is: the insurer's, whose rows carry the target, or the fund's."
    )
    name: str | None = Field(None, description="The party's name; default: its role.")
    source: str | None = Field(None, description="A built-in source.")
    path: str | None = Field(None, description="A CSV (.gz) or Parquet file, or a database's URL.")
    table: str | None = Field(None, description="The table to read where path is a database.")
    query: str | None = Field(None, description="Rows to read where path is a database: SQL.")
    contract: str | None = Field(None, description="A contract file, or a built-in contract.")
    encoding: str | None = Field(None, description="Encoding of a CSV that is not UTF-8.")
    key: str | tuple[str, ...] = Field(
        description="The column, or columns together, that name a person at both sides."
    )
    columns: tuple[str, ...] | None = Field(
        None,
        description="The columns of the table that this side holds beside its key; default: all.",
    )

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else self.key


class AlignmentSettings(Strict):
    """``[alignment]``: who learns which persons two sides have in common."""

    learns: Literal["hidden", "both", "insurer", "fund"] = Field(
        "hidden",
        description="hidden: nobody, rows stand on a spine over the union. both: both sides. insurer, fund: that side alone.",
    )
    cap: int | None = Field(
        None,
        ge=1,
        description="Rows that each side's set is filled up to, so that no message tells how many it has; default: the larger table's rows, which tells them.",
    )


class ProtectionSettings(Strict):
    """``[protection]``: how contributions are hidden, who can open a total, the least rows a party
    lets out a sum of; for questions the file of disclosure rules (the lab's own if none), what a
    party may spend on noised answers, and whether it answers with noise alone."""

    sums: Literal["clear", "paillier", "masks"] = Field(
        "paillier",
        description="How contributions are hidden: Paillier encryption, pairwise masks (three parties or more), or not at all.",
    )
    key: Literal["authority", "split"] = Field(
        "authority",
        description="With paillier, who can open totals: a key authority, or all parties together.",
    )
    key_bits: int = Field(3072, ge=2048, description="Length of the Paillier modulus.")
    minimum_rows: int = Field(1, ge=1, description="The fewest rows a party lets out a sum of.")
    disclosure: str | None = Field(
        None, description="A file of disclosure rules for questions; default: the lab's own."
    )
    budget: Budget | None = Field(
        None, description="What each party may ever spend on noised answers."
    )
    noised: bool = Field(False, description="Answer questions with noise alone.")
    product: Literal["paillier", "triples"] = Field(
        "triples",
        description="How joined sides multiply: with randomness that the supervisor deals beforehand (triples), or by Paillier encryption, without a dealer and much slower.",
    )
    cuts: Literal["told", "refused"] = Field(
        "told",
        description="Where trees are grown over joined sides, whether the fund tells an insurer which common persons are on which side of a cut on a column of the fund: one bit a person and cut.",
    )


class Detection(Strict):
    """``[detection]``: how a fraud detector is scored.

    ``truth``: the column of 0 and 1 that it is judged by, the target if none. ``typology``: the
    kind of each fraud. ``amount``: what is saved where a fraud is stopped. ``groups``: who is
    compared for fairness. ``budget``: the share of claims that can be investigated, each at
    ``investigation_cost``. The columns named here are read on test rows alone.
    """

    truth: str | None = Field(
        None, description="Column of 0 and 1 that the detector is judged by; default: the target."
    )
    typology: str | None = Field(None, description="Column that says which kind of fraud a row is.")
    amount: str | None = Field(
        None, description="Column of what is saved where a fraud is stopped."
    )
    groups: tuple[str | Feature, ...] = Field(
        (),
        description="Columns, or features with cut points, whose groups are compared for fairness.",
    )
    budget: float = Field(0.01, gt=0, le=1, description="Share of claims that can be investigated.")
    investigation_cost: float = Field(
        0.0, ge=0, description="Cost of investigating one claim, in the unit of amount."
    )

    def columns(self) -> list[str]:
        """All columns that it reads."""
        groups = [g if isinstance(g, str) else g.column for g in self.groups]
        return [c for c in (self.truth, self.typology, self.amount, *groups) if c is not None]


class Query(Strict):
    """One of ``[[query]]``: a question in SQL, with noise if an epsilon is given."""

    sql: str = Field(max_length=20_000, description="The question.")
    title: str = Field("", description="Its heading in the report.")
    noise: Noise | None = Field(None, description="Noise that every party adds; default: none.")


class Arms(Strict):
    """``[arms]``: which arms run, and how many bootstrap resamples stand behind the intervals.

    ``without`` leaves one party out at a time: what it gets of the others' model, and what they
    lose without its rows.
    """

    run: tuple[Arm, ...] = Field(
        ("alone", "federated", "pooled"),
        description="Arms to run: each party alone, all but one party (without), all of them (federated), federated and then each party's own last layer (personal, networks only), all rows in one place (pooled). Where sides are joined: insurer and fund, each with its own columns, federated, pooled.",
    )
    replicates: int = Field(200, ge=0, description="Bootstrap resamples behind the intervals.")


#: One of the values that a key may take.
Choice = bool | int | float | str | tuple[int | float | str, ...]


class Span(Strict):
    """One of ``[tune.vary]``: the numbers from low to high, whole ones if both ends are."""

    low: int | float = Field(description="The least.")
    high: int | float = Field(description="The largest.")
    log: bool = Field(False, description="Each tenfold is as likely as any other.")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and not self.low > 0:
            raise ValueError(f"log needs a low above 0, got {self.low}")
        return self


def _range_or_list(values: Any) -> str:
    return "range" if isinstance(values, dict | Span) else "list"


#: What a key varies over.
Values = Annotated[
    Annotated[tuple[Choice, ...], Tag("list")] | Annotated[Span, Tag("range")],
    Discriminator(_range_or_list),
]


class Tune(Strict):
    """``[tune]``: what a search varies, how it chooses what to try, by which folds it judges."""

    vary: dict[str, Values] = Field(
        description="Keys of the model with the values to try, as model.depth = [2, 3, 4], or a range, as model.l2 = { low = 1e-2, high = 100.0, log = true }.",
    )
    method: Literal["grid", "random", "tpe"] = Field(
        "tpe",
        description="grid: every combination. random: draws. tpe: Optuna's tree-structured Parzen estimator, which goes by the scores so far.",
    )
    trials: int | None = Field(
        None, ge=1, description="Draws of random and tpe, 20 unless said; a grid needs none."
    )
    folds: int = Field(5, ge=2, le=100, description="Folds of the training rows, by whole persons.")
    outer: int | None = Field(
        None,
        ge=2,
        le=100,
        description="Repeat the search without each of so many folds, and score what it chose there.",
    )

    @model_validator(mode="before")
    @classmethod
    def _dotted(cls, values: Any) -> Any:
        """``model.depth`` is one key, with quotes or as TOML's nested tables, in ``vary`` or beside it."""
        if not isinstance(values, dict) or not isinstance(values.get("vary", {}), dict):
            return values
        beside = {key: each for key, each in values.items() if key.split(".")[0] == "model"}
        others = {key: each for key, each in values.items() if key not in beside}
        return others | {"vary": _dotted_keys(values.get("vary", {}) | beside)}

    @model_validator(mode="after")
    def _can_be_tried(self) -> Self:
        if not self.vary:
            raise ValueError("vary: list what varies, as model.depth = [2, 3, 4]")
        for key, values in self.vary.items():
            if not key.startswith("model."):
                raise ValueError(
                    f"vary.{key}: a search varies keys of [model] alone, because scores are compared "
                    "over the same rows; for other keys there is `lab sweep`"
                )
            if values == ():
                raise ValueError(f"vary.{key}: list at least one value")
            if self.method == "grid" and isinstance(values, Span):
                raise ValueError(f"vary.{key}: a grid needs a list of values, not a range")
        if self.method == "grid" and self.trials is not None:
            raise ValueError("trials: a grid tries every combination; drop the key")
        return self


def _dotted_keys(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys; a range stays a table."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, dict) and not {"low", "high"} & value.keys()
        flat |= _dotted_keys(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def check_places(data: Data, joined: tuple[JoinedTable, ...], arms: tuple[Arm, ...]) -> None:
    """Raises ValueError where rows come from nowhere or from two places, or an arm has no rows."""
    of_sides = [arm for arm in arms if arm in SIDES]
    of_parties = [arm for arm in arms if arm in ("alone", "without", "personal")]
    if not joined:
        if data.source is None and data.path is None:
            raise ValueError("data: give source or path")
        if data.market is not None and (data.source != "market" or data.path is not None):
            raise ValueError("market is made where source = 'market' and no path is given")
        if of_sides:
            raise ValueError(f"arms.run: '{of_sides[0]}' is for sides that are joined, [[joined]]")
        return
    if data.source is not None or data.path is not None:
        raise ValueError("data: rows come from [[joined]]; drop data.source and data.path")
    if of_parties:
        raise ValueError(
            f"arms.run: '{of_parties[0]}' is not for joined sides; there are "
            f"{', '.join(ARMS_OF_SIDES)}"
        )
    roles = [table.role for table in joined]
    if roles.count("fund") != 1 or "insurer" not in roles:
        raise ValueError("joined: needs one table with role = 'fund' and one or more of 'insurer'")
    if any(table.source is None and table.path is None for table in joined):
        raise ValueError("joined: give source or path of each table")
    made = [table.source in MADE and table.path is None for table in joined]
    if data.market is not None and not all(made):
        raise ValueError(
            f"data.market is made for joined sources {', '.join(MADE)}, without a path"
        )
    names = [table.name or table.role for table in joined]
    if len(set(names)) < len(names):
        raise ValueError("joined: tables of several insurers need a name each")
    if len({len(table.keys) for table in joined}) > 1:
        raise ValueError("joined: the key needs as many columns at each side")


# What stands in its file.

#: Keys that name files, by the table they stand in.
FILES = {
    "data": ("path", "contract", "test_rows"),
    "protection": ("disclosure",),
    "profile": ("register_file",),
    "joined": ("path", "contract"),
}


def look_beside(values: dict[str, Any], folder: Path) -> None:
    """Let files that lie in the folder of an experiment be named from there."""
    for name, keys in FILES.items():
        content = values.get(name)
        tables = content if isinstance(content, list) else [content]
        for table in (each for each in tables if isinstance(each, dict)):
            for key in keys:
                file = table.get(key)
                if isinstance(file, str) and "://" not in file and (folder / file).exists():
                    table[key] = str(folder / file)
