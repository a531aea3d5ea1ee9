"""One party's side of boosted trees: derivatives, bins, questions it answers and those it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lab.errors import ConfigurationError, PeerError
from lab.models import files as models
from lab.models import kernels, tree_model, tree_rows, trees
from lab.models.agreement import check_features
from lab.models.design import Feature
from lab.models.families import Family
from lab.models.glm import Response, Task
from lab.privacy.joining import HOME, behind
from lab.tables.partition import drawn

FAMILIES = [
    Family.make("gaussian"),
    Family.make("poisson"),
    Family.make("gamma"),
    Family.make("tweedie", power=1.6),
    Family.make("binomial"),
]
#: x below 0, up to 1, above; k is a, b or something else.
CUTS = (
    tree_model.Cuts(feature=Feature(column="x"), edges=(0.0, 1.0)),
    tree_model.Cuts(feature=Feature(column="k"), levels=("a", "b")),
)
#: x up to 0 left; the rest by k: a and what is unknown left.
TREE = tree_model.Tree(
    feature=(0, -1, 1, -1, -1),
    left=(1, 0, 3, 0, 0),
    bins=("1", "0", "5", "0", "0"),
    value=(0.0, 1.0, 0.0, 2.0, 3.0),
)
FRAME = pd.DataFrame(
    {
        "x": [-1.0, 0.5, 2.0, np.nan, 7.0, 0.0],
        "k": pd.Series(["a", "b", "a", "b", None, "mars"], dtype="category"),
        "y": [0.0, 1.0, 0.0, 1.0, 1.0, 0.0],
    }
)
TASK = Task(target="y", family="binomial")
RECIPE = tree_rows.TreesRecipe(intercept=0.0, unit=0.25, rows=6)


def targets(law: Family, size: int, rng: np.random.Generator) -> np.ndarray:
    match law.name:
        case "binomial":
            return rng.integers(0, 2, size).astype(float)
        case "gaussian":
            return rng.normal(size=size)
        case "gamma":
            return rng.gamma(2.0, 1.0, size)
        case _:
            return rng.poisson(1.0, size).astype(float)


def derived(law: Family, y, weight, eta, scale: float):
    out = np.zeros((len(y), 2), dtype=np.int64)
    told = (law.power, y, weight, eta, np.full(3, scale), out)
    return out, kernels.derivatives(kernels.OBJECTIVES[law.name], *told)


def rows(
    frame: pd.DataFrame = FRAME,
    recipe: tree_rows.TreesRecipe = RECIPE,
    task: Task = TASK,
    finished: tree_rows.Finished | None = None,
):
    keys = frame.index.to_series()
    codes = tree_model.binned(frame, CUTS)
    return tree_rows.Rows(codes, Response(frame, task), keys, CUTS, task, recipe, finished)


def ask(**changes):
    told = {"place": tree_rows.Place(), "nodes": (0,), "features": (0, 1), "most": ((64.0, 64.0),)}
    return trees.Ask(**told | changes)


@pytest.mark.parametrize("law", FAMILIES, ids=lambda law: law.name)
def test_derivatives_are_those_of_half_the_deviance(law: Family) -> None:
    rng = np.random.default_rng(1)
    y, weight, eta = targets(law, 200, rng), rng.uniform(0.5, 2, 200), rng.normal(size=200)
    scale, step = 2.0**40, 1e-4
    out, (loss, gross, total) = derived(law, y, weight, eta, scale)
    low, at, high = (weight * law.deviance(y, law.mean(eta + d)) / 2 for d in (-step, 0, step))
    np.testing.assert_allclose(out[:, 0] / scale, (high - low) / (2 * step), atol=1e-6)
    np.testing.assert_allclose(out[:, 1] / scale, (high - 2 * at + low) / step**2, atol=1e-5)
    assert loss / scale == pytest.approx(2 * at.sum(), rel=1e-12)
    assert (gross, total) == (np.abs(out[:, 0]).sum(), out[:, 1].sum())
    assert (out[:, 1] >= 0).all()


@pytest.mark.parametrize("law", FAMILIES, ids=lambda law: law.name)
def test_a_row_has_the_same_derivatives_wherever_it_stands(law: Family) -> None:
    rng = np.random.default_rng(2)
    y, weight, eta = targets(law, 1001, rng), rng.uniform(0.1, 9, 1001), 3 * rng.normal(size=1001)
    whole, (loss, *_) = derived(law, y, weight, eta, 2.0**30)
    order, parts = rng.permutation(1001), 0.0
    for part in np.split(order, [0, 1, 4, 500]):
        out, (share, *_) = derived(law, y[part], weight[part], eta[part], 2.0**30)
        assert (out == whole[part]).all()
        parts += share
    assert parts == loss


def test_a_loss_stays_finite_where_a_confident_model_is_wrong() -> None:
    y, eta = np.array([0.0, 1.0]), np.array([800.0, -800.0])
    out, (loss, *_) = derived(Family.make("binomial"), y, np.ones(2), eta, 1.0)
    assert loss == 3200 and out.tolist() == [[1, 0], [-1, 0]]


def test_rows_go_where_the_tree_sends_them() -> None:
    model = tree_model.Trees(task=TASK, cuts=CUTS, intercept=0.5, trees=(TREE, TREE))
    # x = NaN is in the last bin, not left of the first cut; None and mars share a bin, left
    assert model.eta(FRAME).tolist() == [2.5, 6.5, 4.5, 6.5, 4.5, 2.5]


def test_levels_never_seen_are_scored_as_missing() -> None:
    model = tree_model.Trees(task=TASK, cuts=CUTS, intercept=0.5, trees=(TREE,))
    strange = FRAME.assign(k=["venus"] * 6)
    missing = FRAME.assign(k=pd.Series([None] * 6, dtype="str"))
    assert model.predict(strange).tobytes() == model.predict(missing).tobytes()


def test_a_saved_model_predicts_the_same_bits() -> None:
    tree = TREE.model_copy(update={"value": (0.0, 0.1, 0.0, 1 / 3, -1e-17)})
    model = tree_model.Trees(task=TASK, cuts=CUTS, intercept=1 / 7, trees=(tree,))
    again = models.from_json(model.model_dump_json())
    assert again == model
    assert again.predict(FRAME).tobytes() == model.predict(FRAME).tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"left": (0, 0, 3, 0, 0)},  # round and round
        {"left": (1, 0, 1, 0, 0)},
        {"left": (1, 0, 4, 0, 0)},  # beyond the end
        {"left": (1, 0, 2**70, 0, 0)},
        {"feature": (2, -1, 1, -1, -1)},
        {"feature": (-2, -1, 1, -1, -1)},
        {"feature": (2**70, -1, 1, -1, -1)},
        {"bins": ("1" + 64 * "0", "0", "5", "0", "0")},
        {"bins": ("-1", "0", "5", "0", "0")},
        {"value": (0.0, 1.0)},
        {"value": (0.0, 1.0, 0.0, 2.0, float("nan"))},
        dict.fromkeys(("feature", "left", "bins", "value"), ()),
    ],
)
def test_a_file_that_is_no_tree_is_refused(changes: dict) -> None:
    values = json.loads(tree_model.Trees(task=TASK, cuts=CUTS, intercept=0.0).model_dump_json())
    values["trees"] = [TREE.model_dump() | changes]
    with pytest.raises(ConfigurationError):
        models.from_json(json.dumps(values))


@pytest.mark.parametrize(
    "cuts", [{"levels": [f"{k}" for k in range(256)]}, {"edges": [1.0, 1.0]}, {"edges": [2.0, 1.0]}]
)
def test_cuts_that_do_not_fit_a_byte_or_do_not_rise_are_refused(cuts: dict) -> None:
    values = {"feature": {"column": "x"}, **cuts}
    with pytest.raises(ValidationError):
        tree_model.Cuts.model_validate(values)


OUTSIDE = TREE.model_copy(update={"feature": (0, -1, 2, -1, -1)})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nodes": (1,)}, "leaves"),
        ({"nodes": (-1,)}, "leaves"),
        ({"nodes": (0, 0), "most": ((64.0, 64.0),) * 2}, "distinct"),
        ({"nodes": (2,), "place": tree_rows.Place(growing=TREE)}, "leaves"),
        ({"features": (0, 2)}, "and agreed on"),
        ({"features": (-1,)}, "and agreed on"),
        ({"features": (1, 0)}, "in order"),
        ({"features": (1, 1)}, "in order"),
        ({"place": tree_rows.Place(growing=OUTSIDE), "nodes": (1,)}, "not agreed on"),
        ({"place": tree_rows.Place(chain="x", last=OUTSIDE)}, "not agreed on"),
        ({"place": tree_rows.Place(chain="ab")}, "not known here"),
        ({"place": tree_rows.Place(chain="ab", last=TREE)}, "not known here"),
        ({"most": ()}, "bounds"),
        ({"most": ((64.0, 1e300),)}, "bounds"),
        ({"most": ((-1.0, 64.0),)}, "bounds"),
    ],
)
def test_a_question_nobody_honest_asks_is_refused(changes: dict, words: str) -> None:
    party = rows()
    before = trees.level(party, ask())
    with pytest.raises(PeerError, match=words):
        trees.level(party, ask(**changes))
    after = trees.level(party, ask())
    assert all((before[name] == after[name]).all() for name in before.arrays)


def test_a_question_for_more_bins_than_any_tree_needs_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(trees, "MOST_CELLS", 5)
    with pytest.raises(PeerError, match="bins at once"):
        trees.level(rows(), ask())


def test_a_party_follows_finished_trees_and_begins_again_when_asked() -> None:
    party, fresh = rows(), trees.level(rows(), ask())
    second = tree_rows.Place().next(TREE)
    grown = trees.level(party, ask(place=second))
    eta = tree_model.Trees(task=TASK, cuts=CUTS, intercept=0.0, trees=(TREE,)).eta(FRAME)
    expected = (
        np.rint((1 / (1 + np.exp(-eta)) - FRAME.y) / (0.25 * tree_rows.GRAIN)) * tree_rows.GRAIN
    )
    assert grown["gradient 0"][:4].sum() == expected.sum()
    deep = second.model_copy(update={"growing": TREE})
    leaf = trees.level(party, ask(place=deep, nodes=(3, 4), most=((64.0, 64.0),) * 2))
    assert leaf["gradient 0"][:4].sum() == expected[[2, 4]].sum()
    assert leaf["gradient 1"][:4].sum() == expected[[1, 3]].sum()
    again = trees.level(party, ask())
    assert all((again[name] == fresh[name]).all() for name in fresh.arrays)


def test_rows_that_come_anew_follow_the_trees_that_were_finished_before() -> None:
    party, place = rows(), tree_rows.Place()
    for share in (1.0, 0.5, 0.25):
        values = tuple(share * value for value in TREE.value)
        place = place.next(TREE.model_copy(update={"value": values}))
        there = trees.level(party, ask(place=place))
    anew = rows()
    with pytest.raises(PeerError, match="not known here"):
        trees.level(anew, ask(place=place))
    anew.finished |= party.finished
    found = trees.level(anew, ask(place=place))
    assert all((found[name] == there[name]).all() for name in there.arrays)
    last = anew.finished.pop(place.chain)  # it went away before it heard of the last one
    assert trees.level(rows(finished=anew.finished), ask(place=place)).rows == 6
    assert anew.finished[place.chain] == last


def test_a_model_that_runs_away_says_so_however_often_it_is_asked() -> None:
    task = Task(target="y", family="poisson")
    party = rows(task=task, recipe=RECIPE.model_copy(update={"unit": 0.5}))
    far = TREE.model_copy(update={"value": (0.0, 900.0, 0.0, 900.0, 900.0)})
    away = tree_rows.Place().next(far)
    for _ in range(2):
        assert trees.level(party, ask(place=away)).total("beyond") == 1
    assert trees.level(party, ask()).total("beyond") == 0


def test_a_link_that_trees_do_not_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="default link"):
        rows(FRAME.assign(y=1.0), task=Task(target="y", family="gamma", link="canonical"))


@settings(max_examples=25, deadline=None)
@given(st.floats(0.05, 0.9), st.binary(max_size=32), st.booleans())
def test_the_share_held_out_is_the_one_asked_and_goes_by_key_and_secret(
    share, secret, text
) -> None:
    keys = pd.Series(np.arange(20_000))
    keys = keys.astype("str") if text else keys
    held = drawn(keys, share, secret, "a test")
    assert abs(held.mean() - share) < 5 * np.sqrt(share * (1 - share) / 20_000)
    part = keys.iloc[np.random.default_rng(0).permutation(20_000)[:500]]
    assert (drawn(part, share, secret, "a test") == held[part.index]).all()
    other = drawn(keys, share, secret + b"1", "a test")
    assert abs((other & held).mean() - share**2) < 0.02


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-10, 10), min_size=0, max_size=40),
    st.lists(st.floats(-10, 10), min_size=0, max_size=12, unique=True),
)
def test_a_bin_holds_values_above_one_edge_and_up_to_the_next(values, edges) -> None:
    edges = sorted(edges)
    column = np.sort(np.array(values))
    found = trees.counts([column], edges=np.array([edges]), rows=len(values))["count"][0]
    cut = tree_model.Cuts(feature=Feature(column="x"), edges=tuple(edges))
    codes = tree_model.binned(pd.DataFrame({"x": np.array(values)}), (cut,))[:, 0]
    assert np.bincount(codes, minlength=len(edges) + 1).tolist() == found.tolist()
    assert all(v <= e for v, c in zip(values, codes, strict=True) for e in edges[c:])
    assert all(v > e for v, c in zip(values, codes, strict=True) for e in edges[:c])


def test_missing_values_of_any_kind_are_in_the_last_bin() -> None:
    frame = pd.DataFrame(
        {
            "text": pd.Series(["a", None, "b"], dtype="str"),
            "object": pd.Series(["a", None, np.nan], dtype=object),
            "whole": pd.Series([1, None, 2], dtype="Int64"),
            "flag": pd.Series([True, None, False], dtype="boolean"),
            "real": [1.5, np.nan, 1e7 + 1],
        }
    )
    cuts = [
        *(
            tree_model.Cuts(feature=Feature(column=c), levels=("a", "b"))
            for c in ("text", "object")
        ),
        *(tree_model.Cuts(feature=Feature(column=c), edges=(0.5, 1.0)) for c in ("whole", "flag")),
        tree_model.Cuts(
            feature=Feature(column="real", cut=(1.0, 2.0)), levels=("<=1", "1-2", ">2")
        ),
        tree_model.Cuts(feature=Feature(column="real", category=True), levels=("1.5", "10000001")),
        tree_model.Cuts(feature=Feature(column="real", log=True), edges=(1.0,)),
    ]
    codes = tree_model.binned(frame, tuple(cuts))
    assert codes.T.tolist() == [
        [0, 2, 1], [0, 2, 2], [1, 3, 2], [1, 3, 0], [1, 3, 2], [0, 2, 1], [0, 2, 1]
    ]  # fmt: skip
    check_features(frame, tuple(cut.feature for cut in cuts), "keep")


def test_kernels_compile_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """A file where numba would make a folder: as in an installation nobody may write to."""
    (tmp_path / "taken").write_text("")
    here = Path(trees.__file__).parents[2]
    code = (
        "from lab.models import kernels; print(kernels.leaf_value(1.0, 2.0, (0.0,) * 4, -9.0, 9.0))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"NUMBA_CACHE_DIR": str(tmp_path / "taken" / "x"), "PYTHONPATH": str(here)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "-0.5\n", done.stderr


def test_a_bound_that_a_party_does_not_keep_is_told_in_the_sum_and_not_by_a_refusal() -> None:
    """A refusal would say of this party alone that its sum is larger."""
    party = rows()
    within = trees.level(party, ask())
    assert within.total("beyond") == 0
    tight = trees.level(party, ask(most=((0.5, 64.0),)))
    assert tight.total("beyond") == 1
    assert np.abs(tight["gradient 0"]).max() <= 0.5 < np.abs(within["gradient 0"]).max()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 7))
def test_persons_behind_groups_are_those_of_all_distinct_pairs(
    seed: int, rows: int, groups: int
) -> None:
    rng = np.random.default_rng(seed)
    unit = rng.integers(0, 9, rows) + HOME * rng.integers(0, 3, rows)
    group = rng.integers(-1, groups, rows).astype(np.int32)
    counted = tree_model.Owned.of(unit).behind(group, groups)
    there = group >= 0
    expected = behind(group[there].astype(np.int64), unit[there], groups)
    assert {n: a.tolist() for n, a in counted.items()} == {
        n: a.tolist() for n, a in expected.items()
    }
