"""How parties agree on a design without showing rows: an encoding made from sums over training rows."""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from federated.federation import ModelTotals
from federated.solvers.crosses import Pair, crossed_columns
from lab.errors import ConfigurationError, ModelError
from lab.models.agreement import bounds
from lab.models.design import Encoding, Feature, Levels, Number, bends, rounded
from lab.models.glm import Task
from lab.privacy.joining import RARE, Opened, by_parties
from lab.sums import Floats, Sums
from lab.tables.contracts import Contract
from lab.tables.values import DECIMAL, code, level_of

#: Intervals that quantiles are read off, and how far they reach, in standard deviations.
INTERVALS, REACH = 1024, 8.0
#: About what rounding to the grid can add to a sum of squares whose largest is 1.
ROUNDED = 2.0**-44


def agree(
    federation: ModelTotals,
    task: Task,
    features: tuple[Feature, ...],
    contract: Contract,
    least: int,
    left_out: list[str] | None = None,
    interactions: tuple[Pair, ...] = (),
) -> Encoding:
    """The encoding of ``features``: levels, means and scales over all parties' training rows.

    Levels come from the contract; where it lists none, every party announces the names of the
    levels it holds (names, no counts). A level without a training row is left out, levels of fewer
    than ``least`` persons become one. The base comes first where the feature names it, so that a
    model is the same however sums are hidden. Means and scales are exact for any split of the rows. Raises :class:`ModelError` for a column
    that is the same in every training row; given a list ``left_out``, such a column is left out instead
    and its name noted there.
    """
    for feature in features:
        if feature.ordinal and contract.columns[feature.column].levels is None:
            raise ConfigurationError(
                f"features: '{feature.column}' is ordinal but contract {contract.name} lists no levels"
            )
    categorical = [f for f in features if is_category(f, contract)]
    numeric = [f for f in features if not is_category(f, contract)]
    encoding = Encoding(
        numbers=_standardised(
            federation, task, _bent(federation, task, numeric, contract, least), left_out
        ),
        categories=levelled(federation, task, categorical, contract, least, left_out),
    )
    crosses, without = crossed_columns(federation, task, encoding, interactions, least)
    for name in without:
        leave_out(name, left_out)
    return encoding.model_copy(update={"crosses": tuple(crosses)}) if crosses else encoding


def is_category(feature: Feature, contract: Contract) -> bool:
    """True where a feature enters as levels."""
    if feature.ordinal or feature.log:
        return False
    column = contract.columns[feature.column]
    return feature.category or feature.cut is not None or column.type == "category"


def _standardised(
    federation: ModelTotals,
    task: Task,
    terms: tuple[Number, ...],
    left_out: list[str] | None,
) -> tuple[Number, ...]:
    if not terms:
        return ()
    # 1. In what power of two the parties' sums lie: a scale on which no sum is above 1.
    largest = magnitudes(federation, task, terms)[0]
    # 2. The mean, and a scale on which the squares around it sum up to the rows at most.
    around_zero = _moments(federation, task, _around(terms, 0 * largest, largest), 1.0)
    count = np.maximum(around_zero["count"], 1)
    means = largest * around_zero["first"] / count
    square = largest**2 * around_zero["second"] / count
    guess = np.sqrt(np.maximum(square - means**2, 0) + largest**2 * ROUNDED / count)
    # 3. The deviation from the mean, to every digit.
    terms, most = _around(terms, means, guess), 4.0 * float(count.max())
    spread = guess * np.sqrt(_moments(federation, task, terms, most)["second"] / count)
    numbers = []
    for term, mean, scale in zip(terms, means, spread, strict=True):
        if scale > 1e-9 * abs(mean):
            numbers.append(term.model_copy(update={"scale": float(scale)}))
        else:
            leave_out(term.name, left_out)
    federation.opened.append(Opened("moments", 2 * len(numbers)))
    return tuple(numbers)


def _bent(
    federation: ModelTotals,
    task: Task,
    features: list[Feature],
    contract: Contract,
    least: int,
) -> tuple[Number, ...]:
    """The columns of each number, one or those of its curve, not standardised yet."""
    lines = {
        f: Number(feature=f, mean=0.0, scale=1.0, levels=contract.columns[f.column].levels or ())
        for f in features
    }
    counted = {f: f.knots for f in features if isinstance(f.knots, int)}
    knots = {f: f.knots for f in features if isinstance(f.knots, tuple)}
    knots |= _at_quantiles(federation, task, [lines[f] for f in counted], least)
    return tuple(
        line.model_copy(update={"bend": bend})
        for f, line in lines.items()
        for bend in (bends(f.curve, knots[f]) if f in knots else (None,))
    )


def _at_quantiles(
    federation: ModelTotals, task: Task, lines: list[Number], least: int
) -> dict[Feature, tuple[float, ...]]:
    """Knots of each number, to three digits of its deviation: with as many rows between any two of them.

    A spline's first and last knot are at the ends of what most rows have (Harrell, Regression Modeling
    Strategies (2015), section 2.4.6). Raises :class:`ModelError` where values are too few for the knots.
    """
    if not lines:
        return {}
    terms = _standardised(federation, task, tuple(lines), None)
    edges = np.linspace(-REACH, REACH, INTERVALS + 1)
    sums = federation.sum("histogram", {"edges": edges}, task=task, features=terms, least=least)
    knots = {}
    for term, counts in zip(terms, sums["count"], strict=True):
        count = term.feature.knots
        assert isinstance(count, int)  # asked for by their number
        reached = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
        ends = (
            (0.05, 0.95)
            if term.feature.spline is not None
            else (1 / (count + 1), count / (count + 1))
        )
        places = np.interp(np.linspace(*ends, count), reached, edges)
        if np.diff(places).min(initial=np.inf) < 2 * (edges[1] - edges[0]):
            raise ModelError(
                f"feature '{term.feature.name}': {count} knots do not lie apart, since many rows have the same "
                "value; take fewer, list them, or take the logarithm of the column"
            )
        values = rounded(term.mean + term.scale * places, term.scale)
        knots[term.feature] = tuple(values.tolist())
    federation.opened.append(Opened("histogram", sum(map(len, knots.values()))))
    return knots


def leave_out(name: str, left_out: list[str] | None) -> None:
    """Note a feature that never varies. Raises :class:`ModelError` where there is no list for it."""
    if left_out is None:
        raise ModelError(
            f"feature '{name}' is the same in every training row but few; leave it out, or set "
            "data.constant = 'drop'"
        )
    left_out.append(name)


def _around(terms: tuple[Number, ...], means: Floats, scales: Floats) -> tuple[Number, ...]:
    return tuple(
        term.model_copy(update={"mean": float(mean), "scale": float(scale)})
        for term, mean, scale in zip(terms, means, scales, strict=True)
    )


def _moments(
    federation: ModelTotals, task: Task, terms: tuple[Number, ...], most: float
) -> dict[str, Floats]:
    return dict(federation.sum("moments", task=task, features=terms, most=most).arrays)


def magnitudes(
    federation: ModelTotals, task: Task, terms: tuple[Number, ...] = ()
) -> tuple[Floats, tuple[float, ...]]:
    """What no party's sum of magnitudes reaches: of each number (terms,), and of each of
    `lab.models.glm.SUMMED`."""
    parties = federation.sum("magnitudes", task=task, features=terms)
    of_terms = bounds(parties["features"]) if terms else np.zeros(0)
    return of_terms, tuple(bounds(parties["task"]).tolist())


def totals_of(federation: ModelTotals, task: Task) -> Sums:
    """The ``totals`` of a task's training rows, on a grid that fits them."""
    most = magnitudes(federation, task)[1]
    return federation.sum("totals", task=task, part="train", most=most)


def levelled(
    federation: ModelTotals,
    task: Task,
    features: list[Feature],
    contract: Contract,
    least: int,
    left_out: list[str] | None,
) -> tuple[Levels, ...]:
    """Levels that stand on ``least`` persons, all others joined into one (:data:`RARE`).

    Where even those together are too few, their rows take the base level.
    """
    terms = _named_levels(federation, task, features, contract)
    if not terms:
        return ()
    standing = _present if federation.everybody else _counted
    categories = []
    for term in standing(federation, task, terms, least):
        if len(term.levels) < 2:
            leave_out(term.feature.name, left_out)
        else:
            categories.append(term if term.feature.base is None else _from_base(term))
    return tuple(categories)


def _from_base(term: Levels) -> Levels:
    """With the level that the feature names first. Raises :class:`ModelError` where there is none."""
    base = term.feature.base
    name = base if isinstance(base, str) else level_of(base or 0.0)
    if name not in term.levels:
        raise ModelError(
            f"feature '{term.feature.column}': base '{name}' is no level that enough persons have; these "
            f"are: {', '.join(term.levels)}"
        )
    others = (level for level in term.levels if level != name)
    return term.model_copy(update={"levels": (name, *others)})


def _counted(
    federation: ModelTotals, task: Task, terms: tuple[Levels, ...], least: int
) -> list[Levels]:
    """By the persons at each level, which whoever opens totals keeps to itself."""
    totals = federation.sum("level_counts", task=task, features=terms)
    standing = by_parties(totals, federation.least_parties)
    categories = []
    for term, rows, persons in zip(
        terms, _by_term(terms, totals["count"]), _by_term(terms, standing), strict=True
    ):
        names = np.array(term.levels, dtype=object)
        few = (persons < least) | (names == RARE)
        rare = (RARE,) if persons[few].sum() >= least else ()
        levels = (*names[~few & (rows > 0)], *rare)
        behind = np.append(persons[~few], persons[few].sum() if rare else 0)
        federation.opened.append(Opened.cells("level_counts", len(levels), behind))
        categories.append(term.model_copy(update={"levels": levels}))
    return categories


def _present(
    federation: ModelTotals, task: Task, terms: tuple[Levels, ...], least: int
) -> list[Levels]:
    """By the parties that have enough persons at each level; everybody sees how many they are.

    What no party has enough persons of becomes one level, if a party has enough of that.
    """

    fewest = max(1, federation.least_parties)

    def held(terms: tuple[Levels, ...]) -> list[Levels]:
        totals = federation.sum("level_parties", task=task, features=terms, least=least)
        parties = totals["parties"]
        return [
            term.model_copy(
                update={
                    "levels": tuple(n for n, p in zip(term.levels, by, strict=True) if p >= fewest)
                }
            )
            for term, by in zip(terms, _by_term(terms, parties), strict=True)
        ]

    first = held(terms)
    if all(len(one.levels) == len(term.levels) for one, term in zip(first, terms, strict=True)):
        return first
    with_rare = tuple(
        one.model_copy(update={"levels": (*(n for n in one.levels if n != RARE), RARE)})
        for one in first
    )
    return held(with_rare)


def _by_term(terms: tuple[Levels, ...], values: Floats) -> list[Floats]:
    """The values of each term's levels, which stand one after the other."""
    return np.split(values, np.cumsum([len(term.levels) for term in terms])[:-1])


def counted_levels(
    federation: ModelTotals, task: Task, features: list[Feature], contract: Contract
) -> list[tuple[Levels, Floats]]:
    """Each feature's levels, of the contract or announced, and the training rows at each."""
    terms = _named_levels(federation, task, features, contract)
    if not terms:
        return []
    counts = federation.sum("level_counts", task=task, features=terms)["count"]
    return list(zip(terms, _by_term(terms, counts), strict=True))


def _named_levels(
    federation: ModelTotals, task: Task, features: list[Feature], contract: Contract
) -> tuple[Levels, ...]:
    """Each feature with the names of its levels, of the contract or announced."""
    of_contract = [f.intervals() if f.cut else contract.columns[f.column].levels for f in features]
    unknown = tuple(f for f, levels in zip(features, of_contract, strict=True) if levels is None)
    of_parties = (
        dict(zip(unknown, federation.levels(task, unknown), strict=True)) if unknown else {}
    )
    for feature, levels in of_parties.items():
        _refuse_alike(feature, levels)
    return tuple(
        Levels(feature=f, levels=of_parties[f] if levels is None else levels)
        for f, levels in zip(features, of_contract, strict=True)
    )


def _refuse_alike(feature: Feature, levels: tuple[str, ...]) -> None:
    """Refuse announced levels that are one number, as 1 and 1.0: one level that parties store as
    text and as a number, or two codes; only a contract can say which."""
    names: dict[str, str] = {}
    for level in levels:
        if not DECIMAL.fullmatch(level):
            continue
        other = names.setdefault(code(Decimal(level)), level)
        if other != level:
            raise ModelError(
                f"levels '{other}' and '{level}' of '{feature.column}' are one number, written in two "
                "ways; list the column's levels in a contract, one of them or both"
            )
