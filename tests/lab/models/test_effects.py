"""What each feature adds to a row's score: Shapley values, and equal to their definition."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lab.errors import ModelError
from lab.models.design import Encoding, Feature, Levels, Number
from lab.models.files import Product
from lab.models.glm import GLM, Task
from lab.models.tree_model import LEAF, Cuts, Tree, Trees, binned

CUTS = tuple(Cuts(feature=Feature(column=c), edges=(1.0, 2.0, 3.0)) for c in "abcd")
TASK = Task(target="n")


def tree_of(rng: np.random.Generator, leaves: int) -> Tree:
    """A tree whose cuts may come back to a feature that was cut before."""
    feature, left = [LEAF], [0]
    while feature.count(LEAF) < leaves:
        at = int(rng.choice([k for k, f in enumerate(feature) if f == LEAF]))
        feature[at], left[at] = int(rng.integers(3)), len(feature)  # d is never cut
        feature, left = [*feature, LEAF, LEAF], [*left, 0, 0]
    cut = [f != LEAF for f in feature]
    return Tree(
        feature=tuple(feature),
        left=tuple(left),
        bins=tuple(f"{int(rng.integers(1, 31)):x}" if c else "0" for c in cut),
        value=tuple(rng.normal(size=len(feature)).tolist()),
        share=tuple(float(rng.uniform(0.1, 0.9)) if c else 0.0 for c in cut),
    )


def known(tree: Tree, codes: Any, features: set[int], at: int = 0) -> float:
    """What the tree says where some features are known, and shares decide about the others."""
    if tree.feature[at] == LEAF:
        return tree.value[at]
    left, right = (known(tree, codes, features, tree.left[at] + k) for k in (0, 1))
    if tree.feature[at] in features:
        return left if tree.goes_left[at][codes[tree.feature[at]]] else right
    return tree.share[at] * left + (1 - tree.share[at]) * right


def shapley(worth: Callable[[set[int]], float], players: int) -> list[float]:
    """By definition: over all sets of the others."""
    values = []
    for one in range(players):
        others = [k for k in range(players) if k != one]
        sets = [set(s) for n in range(players) for s in combinations(others, n)]
        values.append(
            sum(
                factorial(len(s))
                * factorial(players - len(s) - 1)
                / factorial(players)
                * (worth(s | {one}) - worth(s))
                for s in sets
            )
        )
    return values


@pytest.mark.parametrize("leaves", [1, 2, 5, 12])
def test_effects_of_trees_are_shapley_values(leaves: int) -> None:
    rng = np.random.default_rng(leaves)
    trees = tuple(tree_of(rng, leaves) for _ in range(3))
    model = Trees(task=TASK, cuts=CUTS, intercept=-1.0, trees=trees)
    frame = pd.DataFrame(rng.choice([0.5, 1.5, 2.5, 3.5, np.nan], (6, 4)), columns=list("abcd"))
    effects, codes = model.effects(frame), binned(frame, CUTS)
    assert effects.base == pytest.approx(-1 + sum(known(t, codes[0], set()) for t in trees))
    np.testing.assert_allclose(
        effects.base + effects.values.sum(axis=1), model.eta(frame), rtol=0, atol=1e-12
    )
    for row, found in zip(codes, effects.values, strict=True):
        right = shapley(lambda s, row=row: sum(known(t, row, s) for t in trees), 4)  # type: ignore[misc]
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-12)


def test_a_path_of_the_greatest_depth_is_followed() -> None:
    cuts = tuple(Cuts(feature=Feature(column=f"x{k}"), edges=(0.0,)) for k in range(10))
    feature, left = chain(10)
    cut = [f != LEAF for f in feature]
    value = np.random.default_rng(1).normal(size=len(feature))
    tree = Tree(
        feature=feature,
        left=left,
        bins=tuple("1" if c else "0" for c in cut),
        value=tuple(value.tolist()),
        share=tuple(0.25 if c else 0.0 for c in cut),
    )
    model = Trees(task=TASK, cuts=cuts, intercept=0.0, trees=(tree,))
    frame = pd.DataFrame([[1.0] * 10, [1.0, -1.0] * 5], columns=[f"x{k}" for k in range(10)])
    effects, codes = model.effects(frame), binned(frame, cuts)
    for row, found in zip(codes, effects.values, strict=True):
        right = shapley(lambda s, row=row: known(tree, row, s), 10)  # type: ignore[misc]
        np.testing.assert_allclose(found, right, rtol=0, atol=1e-12)


def chain(depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Cuts of one feature after the other, each on the right child of the one before."""
    feature, left = [0], [1]
    for k in range(1, depth + 1):
        feature += [LEAF, k if k < depth else LEAF]
        left += [0, len(feature) if k < depth else 0]
    return tuple(feature), tuple(left)


def glm() -> GLM:
    number = Number(feature=Feature(column="age"), mean=40.0, scale=10.0)
    region = Levels(feature=Feature(column="region"), levels=("east", "north", "west"))
    encoding = Encoding(numbers=(number,), categories=(region,))
    return GLM(task=TASK, encoding=encoding, beta=(-1.0, 0.5, 0.2, -0.4), means=(0.1, 0.3, 0.2))


def test_effects_of_a_glm_are_slopes_times_what_differs_from_the_mean() -> None:
    frame = pd.DataFrame({"age": [40.0, 60.0, np.nan], "region": ["east", "west", "north"]})
    effects = glm().effects(frame.astype({"region": "category"}))
    assert effects.base == pytest.approx(-1 + 0.5 * 0.1 + 0.2 * 0.3 - 0.4 * 0.2)
    assert effects.names == ("age", "region")
    region = np.array([0.0, -0.4, 0.2]) - (0.2 * 0.3 - 0.4 * 0.2)
    age = 0.5 * (np.array([0.0, 2.0, 0.0]) - 0.1)
    np.testing.assert_allclose(effects.values, np.column_stack([age, region]), atol=1e-15)


def test_effects_of_a_product_are_those_of_both_models_together() -> None:
    frame = pd.DataFrame({"age": [60.0], "region": pd.Categorical(["west"])})
    one, product = glm().effects(frame), Product(frequency=glm(), severity=glm()).effects(frame)
    np.testing.assert_allclose(product.values, 2 * one.values)
    assert product.base == pytest.approx(2 * one.base)


def test_a_model_without_means_or_shares_gives_no_effects() -> None:
    frame = pd.DataFrame({"age": [60.0], "region": pd.Categorical(["west"])})
    with pytest.raises(ModelError, match="no means of its columns; run its experiment again"):
        glm().model_copy(update={"means": ()}).effects(frame)
    tree = tree_of(np.random.default_rng(1), 3).model_copy(update={"share": ()})
    model = Trees(task=TASK, cuts=CUTS, intercept=0.0, trees=(tree,))
    with pytest.raises(ModelError, match="which share goes left; run its experiment again"):
        model.effects(pd.DataFrame())
    with pytest.raises(ValueError, match="means: needs 3 values, got 2"):
        GLM.model_validate(glm().model_dump() | {"means": (0.1, 0.2)})
    with pytest.raises(ValueError, match="share must be numbers from 0 to 1"):
        Tree.model_validate(tree.model_dump() | {"share": (2.0,) * len(tree.feature)})
