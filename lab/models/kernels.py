"""The inner loops of boosted trees, compiled by numba; all of them release Python's lock.

Sums are of integers, so that no order of rows and no split of them changes a bit. Longer than 400 lines because
numba compiles and keeps a file's functions together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Nodes = NDArray[np.int32]
Starts = NDArray[np.uint64]
#: What draws the value of a leaf: L1, L2, smoothing, the value of its parent.
Pull = tuple[float, float, float, float]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: Objectives by number, as compiled code compares them.
GAUSSIAN, POISSON, GAMMA, TWEEDIE, BINOMIAL = range(5)
OBJECTIVES = {
    "gaussian": GAUSSIAN,
    "poisson": POISSON,
    "gamma": GAMMA,
    "tweedie": TWEEDIE,
    "binomial": BINOMIAL,
}


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, compiled when first called and kept on disk if there is a place to keep it."""
    try:
        kernel: Callable[Parameters, Result] = njit(nogil=True, cache=True)(function)
    except RuntimeError:  # numba found no folder it may write to
        kernel = njit(nogil=True)(function)
    return kernel


@compiled
def bins(values: Floats, edges: Floats, out: Bytes) -> None:  # pragma: no cover
    """The number of edges below each value into ``out`` (rows,); one more than all where missing."""
    for i in range(values.shape[0]):
        value = values[i]
        if value != value:
            out[i] = edges.shape[0] + 1
            continue
        low, size = 0, edges.shape[0]
        while size > 0:
            half = size >> 1
            if edges[low + half] < value:
                low += size - half
            size = half
        out[i] = low


@compiled
def behind(
    group: Nodes | Bytes, order: Ints, unit: Ints, home: Ints, persons: Floats, parties: Floats
) -> None:  # pragma: no cover
    """Add to ``persons`` and ``parties`` (groups,) the distinct units and homes of each group.

    group: (rows,) of each row, -1 for none. order: the rows, those of a unit one after the other and
    those of a home as well; unit, home: (rows,) of the rows in that order.
    """
    last_unit = np.full(persons.shape[0], -1, dtype=np.int64)
    last_home = np.full(persons.shape[0], -1, dtype=np.int64)
    for k in range(order.shape[0]):
        at = group[order[k]]
        if at < 0 or last_unit[at] == unit[k]:
            continue
        last_unit[at] = unit[k]
        persons[at] += 1.0
        if last_home[at] != home[k]:
            last_home[at] = home[k]
            parties[at] += 1.0


@compiled
def descend(
    codes: Bytes, node: Nodes, feature: Ints, left: Ints, goes_left: Bools
) -> None:  # pragma: no cover
    """Move each row from its node down to the leaf below it; changes ``node`` (rows,)."""
    for i in range(node.shape[0]):
        at = node[i]
        while feature[at] >= 0:
            at = left[at] if goes_left[at, codes[i, feature[at]]] else left[at] + 1
        node[i] = at


@compiled
def derivatives(
    objective: int,
    power: float,
    y: Floats,
    weight: Floats,
    eta: Floats,
    scales: Floats,
    out: Ints,
) -> tuple[float, float, float]:  # pragma: no cover
    """First and second derivatives of half the deviance of each row at ``eta``.

    scales: (3,) factors of first and second derivatives and of the deviance, each rounded to a
    whole number once scaled. out: (rows, 2), changed. Returns the sums of the deviance, of the
    first derivatives' magnitudes and of the second ones; where one is not a number, or too large
    for an int64, ``out`` holds nothing of use.

    Friedman, "Greedy function approximation" (2001), section 4; second order as in Chen &
    Guestrin, "XGBoost" (2016), section 2.2. The Tweedie second derivative is the observed one.
    """
    loss, gross, total = 0.0, 0.0, 0.0
    for i in range(y.shape[0]):
        if objective == BINOMIAL:
            g, h, d = _binomial(y[i], eta[i])
        elif objective == POISSON:
            g, h, d = _poisson(y[i], eta[i])
        elif objective == GAMMA:
            g, h, d = _gamma(y[i], eta[i])
        elif objective == TWEEDIE:
            g, h, d = _tweedie(y[i], eta[i], power)
        else:
            g, h, d = _gaussian(y[i], eta[i])
        g = np.rint(g * weight[i] * scales[0])
        h = np.rint(h * weight[i] * scales[1])
        out[i, 0], out[i, 1] = g, h
        loss += np.rint(d * weight[i] * scales[2])
        gross += abs(g)
        total += h
    return loss, gross, total


# First and second derivative of half the deviance of one row, and its deviance, by family.


@compiled
def _gaussian(y: float, eta: float) -> tuple[float, float, float]:  # pragma: no cover
    g = eta - y
    return g, 1.0, g * g


@compiled
def _poisson(y: float, eta: float) -> tuple[float, float, float]:  # pragma: no cover
    mean = np.exp(eta)
    d = 2.0 * (mean - y)
    if y > 0.0:
        d += 2.0 * y * (np.log(y) - eta)
    return mean - y, mean, d


@compiled
def _gamma(y: float, eta: float) -> tuple[float, float, float]:  # pragma: no cover
    ratio = y * np.exp(-eta)
    return 1.0 - ratio, ratio, 2.0 * (eta - np.log(y) + ratio - 1.0)


@compiled
def _tweedie(y: float, eta: float, power: float) -> tuple[float, float, float]:  # pragma: no cover
    a = np.exp((2.0 - power) * eta)
    b = y * np.exp((1.0 - power) * eta)
    whole = y ** (2.0 - power) / ((1.0 - power) * (2.0 - power))
    d = 2.0 * (whole - b / (1.0 - power) + a / (2.0 - power))
    return a - b, (2.0 - power) * a - (1.0 - power) * b, d


@compiled
def _binomial(y: float, eta: float) -> tuple[float, float, float]:  # pragma: no cover
    small = np.exp(-abs(eta))
    mean = (1.0 if eta >= 0.0 else small) / (1.0 + small)
    d = 2.0 * (np.log1p(small) + max(eta, 0.0) - y * eta)
    return mean - y, small / ((1.0 + small) * (1.0 + small)), d


@compiled
def histograms(
    codes: Bytes, node: Nodes, slot: Ints, derivatives: Ints, start: Starts, out: Ints, gross: Ints
) -> None:  # pragma: no cover
    """Add the derivatives of each row to the bins of its node.

    slot: (nodes,) the place of a node in ``out``, -1 for a node not asked about. start: (features,)
    the first bin of each. derivatives: (rows, 2). out: (places, 2 bins), first and second
    derivatives in turn; gross: (places,) magnitudes of first derivatives. Indices are unsigned,
    which spares a test for negative ones in the innermost loop.
    """
    rows = np.empty(node.shape[0], dtype=np.uint32)
    place = np.empty(node.shape[0], dtype=np.uint32)
    count = 0
    for i in range(node.shape[0]):
        at = slot[node[i]]
        rows[count] = i
        place[count] = at
        count += at >= 0
    one, two = np.uint64(1), np.uint64(2)
    for k in range(count):
        row = np.uint64(rows[k])
        sums = out[np.uint64(place[k])]
        g, h = derivatives[row, 0], derivatives[row, 1]
        gross[place[k]] += abs(g)
        for j in range(np.uint64(codes.shape[1])):
            b = (start[np.uint64(j)] + np.uint64(codes[row, np.uint64(j)])) * two
            sums[b] += g
            sums[b + one] += h


@compiled
def best_cuts(
    g: Floats,
    h: Floats,
    start: Ints,
    is_number: Bools,
    direction: Ints,
    smooth: float,
    noise: float,
    least: float,
    pull: Pull,
    low: float,
    high: float,
) -> tuple[Floats, Ints, Bools]:  # pragma: no cover
    """(gain, last bin that goes left, whether missing goes left) of each feature's best cut.

    g, h: (bins,) derivatives in a node, feature k in bins start[k] to start[k + 1], of which the
    last is for missing values. is_number: (features,) false for categories, whose bins are taken by
    rising g / (h + smooth) as if ordered (Fisher, "On grouping for maximum homogeneity", 1958).
    direction: (features,) 1 where leaf values must rise, -1 fall, 0 free; they are kept between
    ``low`` and ``high``. least: the least sum of ``h`` on either side. pull: see :func:`leaf_value`,
    towards the node's value. Gain: Chen & Guestrin (2016), equation 7, without its complexity term;
    from that of categories is taken what their order would bring by chance.
    """
    count = start.shape[0] - 1
    gain, cut, missing_left = np.zeros(count), np.full(count, -1), np.zeros(count, dtype=np.bool_)
    # 1. What the node holds, and what it is worth uncut.
    g_all, h_all = g[start[0] : start[1]].sum(), h[start[0] : start[1]].sum()
    whole = _fall(g_all, h_all, pull[3], pull)
    for k in range(count):
        # 2. The order of the feature's bins, and the gain that chance alone would bring.
        first, last = start[k], start[k + 1] - 1
        order, luck = np.arange(last - first), 0.0
        if not is_number[k]:
            order, luck = _by_risk(g[first : last + 1], h[first : last + 1], smooth, h_all, noise)
        # 3. Every cut in this order; of numbers with missing values, on the right and on the left.
        ways = 2 if is_number[k] and (h[last] != 0.0 or g[last] != 0.0) else 1
        for way in range(ways):
            g_left, h_left = (g[last], h[last]) if way == 1 else (0.0, 0.0)
            for b in range(order.shape[0]):
                g_left += g[first + order[b]]
                h_left += h[first + order[b]]
                g_right, h_right = g_all - g_left, h_all - h_left
                if h_left < least or h_right < least:
                    continue
                sides = (g_left, h_left, g_right, h_right)
                worth = _gain(sides, direction[k], pull, low, high) - whole - luck
                if worth > gain[k]:
                    gain[k], cut[k], missing_left[k] = worth, b, way == 1
    return gain, cut, missing_left


@compiled
def _by_risk(
    g: Floats, h: Floats, smooth: float, h_all: float, noise: float
) -> tuple[Ints, float]:  # pragma: no cover
    """The bins of a category by rising g / (h + smooth), and what their order gains by chance.

    Levels without effect have g of mean 0 and variance ``noise`` times h. The best of their cuts in
    this order divides them by the sign of g, for a gain of noise times 2/pi (sum of roots of h)^2 /
    sum of h.
    """
    roots = 0.0
    for b in range(h.shape[0]):
        roots += np.sqrt(h[b])
    luck = max(2.0 / np.pi * roots * roots / h_all - 1.0, 0.0) * noise
    return np.argsort(g / (h + smooth), kind="mergesort"), luck


@compiled
def _gain(
    sides: tuple[float, float, float, float], direction: int, pull: Pull, low: float, high: float
) -> float:  # pragma: no cover
    """Twice the fall of the loss with both leaves, or minus infinity where their values step against
    the feature's direction. sides: derivatives of the left, of the right."""
    g_left, h_left, g_right, h_right = sides
    left = leaf_value(g_left, h_left, pull, low, high)
    right = leaf_value(g_right, h_right, pull, low, high)
    if (right - left) * direction < 0:
        return -np.inf
    return _fall(g_left, h_left, left, pull) + _fall(g_right, h_right, right, pull)


@compiled
def leaf_value(
    g: float, h: float, pull: Pull, low: float, high: float
) -> float:  # pragma: no cover
    """The value of a leaf with these sums of derivatives, between ``low`` and ``high``.

    pull: (l1, l2, smoothing, parent). l1 is taken from the magnitude of ``g`` and l2 added to ``h``
    (Chen & Guestrin, 2016, and their XGBoost's ``alpha``); smoothing is the ``h`` of a leaf that goes
    half the way to the value of its parent (LightGBM's ``path_smooth``, by curvature instead of rows).
    """
    l1, l2, smoothing, parent = pull
    value = -np.sign(g) * max(abs(g) - l1, 0.0) / (h + l2)
    if smoothing > 0.0:
        value = (h * value + smoothing * parent) / (h + smoothing)
    bounded: float = min(max(value, low), high)
    return bounded


@compiled
def _fall(g: float, h: float, value: float, pull: Pull) -> float:  # pragma: no cover
    """Twice the fall of the loss, penalties included, with a leaf of this value."""
    return -(2.0 * g * value + (h + pull[1]) * value * value + 2.0 * pull[0] * abs(value))


class Paths(NamedTuple):
    """The ways to the leaves of a tree. features, weights: (leaves, most) what is cut on the way, each
    once, and the share of rows that its cuts let through; bins: (leaves, most, 256) whether they let a bin
    through; lengths: (leaves,) features on the way; values: (leaves,)."""

    features: Ints
    weights: Floats
    bins: Bools
    lengths: Ints
    values: Floats

    @property
    def mean(self) -> float:
        """Of an average row."""
        return float(self.values @ self.weights.prod(axis=1))


def paths(ways: Sequence[Mapping[int, tuple[Bools, float]]], values: Sequence[float]) -> Paths:
    """ways: of each leaf, by feature the bins that its cuts let through, and the share of rows."""
    most = max((len(way) for way in ways), default=0)
    features, weights = np.zeros((len(ways), most), np.int64), np.ones((len(ways), most))
    bins = np.zeros((len(ways), most, 256), dtype=bool)
    for k, way in enumerate(ways):
        for j, (feature, (through, share)) in enumerate(way.items()):
            features[k, j], weights[k, j], bins[k, j] = feature, share, through
    lengths = np.array([len(way) for way in ways], dtype=np.int64)
    return Paths(features, weights, bins, lengths, np.array(values, dtype=np.float64))


#: Features on the way to a leaf, at most: depth 10, and one more for good measure.
MOST_ON_A_WAY = 11
#: [m, s] how many of the orders of m features put a given one behind s given others: s! (m - s - 1)! / m!
SUBSETS = np.array(
    [
        [1 / (m * comb(m - 1, s)) if s < m else 0.0 for s in range(MOST_ON_A_WAY + 1)]
        for m in range(MOST_ON_A_WAY + 1)
    ]
)


@compiled
def shapley(
    codes: Bytes,
    features: Ints,
    weights: Floats,
    bins: Bools,
    lengths: Ints,
    values: Floats,
    subsets: Floats,
    out: Floats,
) -> None:  # pragma: no cover
    """Add to ``out`` (rows, features) the Shapley values of a tree whose rows go on by share where a
    feature is not known: Lundberg et al., "From local explanations to global understanding with explainable
    AI for trees" (2020), algorithm 2, leaf by leaf.

    A leaf's game is a product over the features on its way, of 1 or 0 where one is known (it lets the row
    through or not), else of its share. ``sums[s]`` adds up, over all s of those that let the row through,
    the shares of the others of them.
    """
    sums, open_ = np.zeros(subsets.shape[0] + 1), np.zeros(subsets.shape[0], np.int64)
    for i in range(codes.shape[0]):
        for k in range(values.shape[0]):
            m, through, shut = lengths[k], 0, values[k]
            for j in range(m):
                if bins[k, j, codes[i, features[k, j]]]:
                    open_[through] = j
                    through += 1
                else:
                    shut *= weights[k, j]
            sums[0] = 1.0
            for n in range(through):
                share = weights[k, open_[n]]
                sums[n + 1] = sums[n]
                for s in range(n, 0, -1):
                    sums[s] = sums[s] * share + sums[s - 1]
                sums[0] *= share
            if through < m:
                total = 0.0
                for s in range(through + 1):
                    total += subsets[m, s] * sums[s]
                for j in range(m):
                    if not bins[k, j, codes[i, features[k, j]]]:
                        out[i, features[k, j]] -= shut * total
            for n in range(through):
                share = weights[k, open_[n]]
                without, total = 0.0, 0.0  # the sums without this feature, from the last down
                for s in range(through, 0, -1):
                    without = sums[s] - share * without
                    total += subsets[m, s - 1] * without
                out[i, features[k, open_[n]]] += shut * (1 - share) * total
