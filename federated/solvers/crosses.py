"""Interactions of two features: columns of a design that are products of two others.

A product of two levels is the cell of both. A cell has a factor of its own where it, and the cells of each of
its levels with the other's base, and that of both bases, stand on enough persons: the four that its factor is
told by. The rows of all others go by the factors of their two levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from federated.federation import ModelTotals
from lab.errors import ConfigurationError, ModelError
from lab.models.agreement import LevelPairs
from lab.models.design import Encoding, Feature
from lab.models.glm import Task
from lab.privacy.joining import Opened, by_parties
from lab.records import nearest
from lab.sums import Floats

#: Two features that act together.
Pair = tuple[Feature, Feature]
#: Which cells stand on enough persons, (left levels, right levels).
Standing = NDArray[np.bool_]


def crossed(features: tuple[Feature, ...], texts: tuple[str, ...]) -> tuple[Pair, ...]:
    """The features of ``a:b``, or ``a*b``, which is the same where both are features themselves.

    Raises :class:`ConfigurationError`.

    >>> pairs = crossed((Feature(column="age"), Feature(column="power", log=True)), ("age:log(power)",))
    >>> [one.name for one in pairs[0]]
    ['age', 'log(power)']
    """
    pairs: list[Pair] = []
    for text in texts:
        names = [name.strip() for name in text.replace("*", ":").split(":")]
        where = f"model.interactions: '{text}'"
        if len(names) != 2:
            raise ConfigurationError(f"{where} must name two features, as 'age:region'")
        one, other = (_named(features, name, where) for name in names)
        if one == other:
            raise ConfigurationError(
                f"{where} is a feature with itself; bend it with spline or pieces"
            )
        pair = (one, other) if features.index(one) < features.index(other) else (other, one)
        if pair in pairs:
            raise ConfigurationError(f"{where} is there twice; leave one out")
        pairs.append(pair)
    return tuple(pairs)


def _named(features: tuple[Feature, ...], name: str, where: str) -> Feature:
    """The feature of a name, or the only one of a column."""
    found = [f for f in features if name == f.name] or [f for f in features if name == f.column]
    if len(found) == 1:
        return found[0]
    names = [feature.name for feature in features]
    if found:
        raise ConfigurationError(
            f"{where}: {len(found)} features are called '{name}'; take another"
        )
    near = nearest(name, names)
    hint = f"; did you mean '{near}'?" if near else f"; these are: {', '.join(names)}"
    raise ConfigurationError(f"{where}: '{name}' is no feature of the model{hint}")


def crossed_columns(
    federation: ModelTotals,
    task: Task,
    encoding: Encoding,
    pairs: tuple[Pair, ...],
    least: int,
) -> tuple[list[tuple[int, int]], list[str]]:
    """The products of columns that interactions are made of, and the interactions that have none: no cell
    of them stands, or a feature of theirs was left out."""
    terms = {term.feature: term for term in encoding.categories}
    both = [pair for pair in pairs if pair[0] in terms and pair[1] in terms]
    cells = tuple(LevelPairs(left=terms[one], right=terms[other]) for one, other in both)
    standing = dict(zip(both, _standing(federation, task, cells, least), strict=True))
    own = {pair: list(_products(encoding, pair, standing)) for pair in pairs}
    without = [":".join(f.name for f in pair) for pair, products in own.items() if not products]
    return [product for each in own.values() for product in each], without


def _products(
    encoding: Encoding, pair: Pair, standing: Mapping[Pair, Standing]
) -> Iterator[tuple[int, int]]:
    """Products of the columns of two features, of two categories those whose four cells stand."""
    left, right = (
        [k for k, feature in enumerate(encoding.features, start=1) if feature == one]
        for one in pair
    )
    own = np.ones((len(left), len(right)), dtype=bool)
    if pair in standing:
        stands = standing[pair]
        own = stands[1:, 1:] & stands[1:, :1] & stands[:1, 1:] & stands[0, 0]
    for k, i in enumerate(left):
        for m, j in enumerate(right):
            if own[k, m]:
                yield min(i, j), max(i, j)


def _standing(
    federation: ModelTotals, task: Task, cells: tuple[LevelPairs, ...], least: int
) -> list[Standing]:
    """Which cells of two categories have ``least`` persons: by the persons in each, which whoever opens
    totals keeps to itself, or, where everybody sees the totals, by the parties that have enough."""
    if not cells:
        return []
    if federation.everybody:
        totals = federation.sum("level_parties", task=task, features=cells, least=least)
        enough = totals["parties"] >= max(1, federation.least_parties)
    else:
        totals = federation.sum("level_counts", task=task, features=cells)
        persons = by_parties(totals, federation.least_parties)
        enough = persons >= max(least, 1)
        federation.opened.append(Opened.cells("level_counts", int(enough.sum()), persons[enough]))
    shapes = [(len(each.left.levels), len(each.right.levels)) for each in cells]
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    return [own.reshape(shape) for own, shape in zip(np.split(enough, ends), shapes, strict=True)]


def refuse_few(persons: Floats, encoding: Encoding, least: int) -> None:
    """Refuse levels, and cells of two, that few persons tell from all other columns together.

    persons: the entries of X'X at ``encoding.pairs``. A combination of columns with whole coefficients that
    is not 0 for k persons alone shows their targets. By Cauchy and Schwarz each coefficient in it then has
    at most the information of k persons, given all others: 1 / (X'X)^-1[j, j]. A level of ``least`` persons
    beside a base of n has 1 / (1 / least + 1 / n), a cell of two beside its three others the same with all
    of them, and either may lose a fifth of that to other columns.
    """
    matrix = np.zeros((encoding.width, encoding.width))
    matrix[encoding.pairs] = persons
    matrix += np.triu(matrix, 1).T
    inverse = np.diag(np.linalg.pinv(matrix, hermitian=True))
    few = [
        encoding.names[j]
        for j, others in _beside(matrix, encoding)
        if inverse[j] * 0.8 > 1 / least + sum(1 / max(n, 1.0) for n in others)
    ]
    if few:
        raise ModelError(
            f"fewer than {least} persons tell {', '.join(few)} from the other columns together, so "
            "that the coefficients would show their targets; join levels or leave a feature out"
        )


def _beside(matrix: Floats, encoding: Encoding) -> Iterator[tuple[int, list[float]]]:
    """Each column of a level or a cell, and the persons of what it is told by."""
    levels = dict[int, slice]()  # of each column of a level, those of its category
    start = 1 + len(encoding.numbers)
    for term in encoding.categories:
        whole = slice(start, start + len(term.levels) - 1)
        start = whole.stop
        for j in range(whole.start, whole.stop):
            levels[j] = whole
            yield j, [matrix[0, 0] - np.diag(matrix)[whole].sum()]
    for k, (i, j) in enumerate(encoding.crosses, start=start):
        if i in levels:
            together = matrix[levels[i], levels[j]]
            of_one, of_other = (
                matrix[i, i] - matrix[i, levels[j]].sum(),
                matrix[j, j] - matrix[levels[i], j].sum(),
            )
            alone = [np.diag(matrix)[levels[c]].sum() for c in (i, j)]
            yield k, [of_one, of_other, matrix[0, 0] - sum(alone) + together.sum()]
