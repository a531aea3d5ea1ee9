"""Boosted trees: federated equals pooled tree for tree, hidden or not, and is as good as others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from federated.hiding.masks import Masks
from federated.hiding.paillier import Dealer, KeyAuthority, Paillier
from federated.run import run
from federated.solvers.trees import TreesSettings, solve, train
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError, ContractError, ModelError
from lab.models.agreement import check_features
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.tree_model import Tree, Trees, binned
from lab.tables.contracts import Column, Contract, draft
from lab.tables.partition import drawn as held_out
from tests.conftest import federate, split

FAMILIES = ("gaussian", "poisson", "gamma", "tweedie", "binomial")


def claims(family: str, rows: int, seed: int, missing: float = 0.1) -> pd.DataFrame:
    """Numbers, one of them mostly 0, text and ordered levels, each with empty cells."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "age": rng.normal(45, 15, rows).round(1),
            "paid": np.where(rng.random(rows) < 0.6, 0.0, rng.gamma(1, 1e7, rows)),
            "day": 20_190_000 + rng.integers(0, 1300, rows),
            "clinic": rng.choice([f"c{k}" for k in range(9)], rows),
            "constant": 3.0,
            "years": rng.uniform(0.1, 1, rows),
        }
    )
    eta = 0.02 * (frame.age - 45) + 0.8 * (frame.clinic == "c1") * (frame.age > 50)
    eta += 0.5 * (frame.paid > 0)
    mu = np.exp(eta)
    frame["y"] = {
        "gaussian": lambda: 1e5 * (mu + rng.normal(size=rows)),
        "poisson": lambda: rng.poisson(mu * frame.years).astype(float),
        "gamma": lambda: 1e3 * rng.gamma(2, mu / 2),
        "tweedie": lambda: rng.poisson(mu, rows) * rng.gamma(2, 500, rows),
        "binomial": lambda: (rng.random(rows) < mu / (1 + mu)).astype(float),
    }[family]()
    for name in ("age", "paid", "clinic"):
        frame.loc[rng.random(rows) < missing, name] = None
    return frame


FEATURES = ("age", "paid", "day", "clinic", "constant")


#: A few trees, every level cut in full, nothing held out.
PLAIN = {
    "kind": "trees", "trees": 3, "depth": 3, "leaves": 1024, "learning_rate": 0.1, "bins": 16,
    "min_child_rows": 5.0, "min_gain": 0.0, "validation_share": 0.0,
}  # fmt: skip


def grow(
    parts: list[pd.DataFrame],
    task: Task,
    columns: Any = FEATURES,
    *,
    protection: Any = None,
    contract: Contract | None = None,
    workers: int = 2,
    seed: int = 7,
    **changes: Any,
) -> tuple[Trees, pd.DataFrame]:
    chosen = TreesSettings(**PLAIN | changes)
    terms = tuple(f if isinstance(f, Feature) else Feature(column=f) for f in columns)
    agreed = contract or draft(parts[0], "test")
    found: tuple[Trees, pd.DataFrame] = federate(
        parts,
        lambda federation: train(federation, task, terms, agreed, chosen, seed),
        protection,
        workers,
    )
    return found


def task_of(family: str, exposure: bool = False) -> Task:
    offset = "years" if exposure and family in ("poisson", "gamma", "tweedie") else None
    power = 1.5 if family == "tweedie" else None
    return Task(target="y", exposure=offset, family=family, power=power)


SETTINGS = (
    "validation_share", "rows", "features", "leaves", "l1", "smoothing", "bins", "min_child_rows",
)  # fmt: skip
tables = st.fixed_dictionaries(
    {
        "family": st.sampled_from(FAMILIES),
        "size": st.integers(80, 400),
        "seed": st.integers(0, 999),
        "missing": st.sampled_from([0.0, 0.1, 0.7]),
        "exposure": st.booleans(),
        "parties": st.integers(3, 6),
        "validation_share": st.sampled_from([0.0, 0.3]),
        "rows": st.sampled_from([0.5, 1.0]),
        "features": st.sampled_from([0.4, 1.0]),
        "leaves": st.sampled_from([2, 5, 8]),
        "l1": st.sampled_from([0.0, 3.0]),
        "smoothing": st.sampled_from([0.0, 20.0]),
        "bins": st.sampled_from([2, 5, 64, 255]),
        "min_child_rows": st.sampled_from([0.5, 8.0]),
    }
)


def dealt(frame: pd.DataFrame, parties: int, rng: np.random.Generator) -> list[pd.DataFrame]:
    """Rows in any order and any shares, down to the ten that a party must have."""
    most = rng.choice(parties, len(frame), p=rng.dirichlet(np.full(parties, 0.5)))
    most[: 10 * parties] = np.repeat(np.arange(parties), 10)
    owner = rng.permutation(most)
    return [frame[owner == k].sample(frac=1, random_state=1) for k in range(parties)]


def drawn(drawn: dict) -> tuple[list[pd.DataFrame], pd.DataFrame, Task, dict]:
    frame = claims(drawn["family"], drawn["size"], drawn["seed"], drawn["missing"])
    parts = dealt(frame, drawn["parties"], np.random.default_rng(drawn["seed"]))
    model = {name: drawn[name] for name in SETTINGS}
    return parts, frame, task_of(drawn["family"], drawn["exposure"]), model


@settings(max_examples=12, deadline=None)
@given(tables)
def test_federated_trees_equal_pooled_trees_for_any_split(told) -> None:
    parts, frame, task, model = drawn(told)
    ours, losses = grow(parts, task, **model)
    theirs, same = grow([frame.sample(frac=1, random_state=1)], task, **model, workers=1)
    assert ours.model_dump_json() == theirs.model_dump_json()
    assert losses.equals(same)


@settings(max_examples=3, deadline=None)
@given(told=tables)
def test_trees_under_paillier_equal_trees_in_the_clear(authority_key, told) -> None:
    parts, _, task, model = drawn(told)
    hidden, losses = grow(
        parts, task, protection=Paillier(KeyAuthority(authority_key)), trees=2, **model
    )
    clear, same = grow(parts, task, trees=2, **model)
    assert hidden.model_dump_json() == clear.model_dump_json()
    assert losses.equals(same)


@pytest.mark.parametrize("way", ["masks", "split key"])
def test_trees_are_refused_where_everybody_sees_their_bins(way: str, authority_key: Any) -> None:
    protection = Masks() if way == "masks" else Paillier(Dealer(authority_key))
    with pytest.raises(ConfigurationError, match="all parties see every total"):
        federate(
            split(claims("poisson", 300, 1), 3),
            lambda federation: solve(
                federation,
                task_of("poisson", True),
                (Feature(column="age"),),
                draft(claims("poisson", 9, 1), "test"),
                TreesSettings(kind="trees"),
                1,
            ),
            protection,
        )


def test_the_same_bits_for_any_number_of_threads() -> None:
    parts = split(claims("poisson", 800, 2), 4)
    texts = {
        grow(parts, task_of("poisson"), workers=w, validation_share=0.2)[0].model_dump_json()
        for w in (1, 2, 4)
    }
    assert len(texts) == 1


def test_a_target_in_other_money_gives_the_same_trees() -> None:
    frame = claims("gaussian", 500, 3)
    ours, _ = grow([frame], task_of("gaussian"))
    scaled, _ = grow([frame.assign(y=frame.y * 1024)], task_of("gaussian"))
    assert (scaled.predict(frame) == 1024 * ours.predict(frame)).all()
    assert np.unique(ours.predict(frame)).size > 10


def test_losses_fall_and_are_the_mean_deviance_of_the_model() -> None:
    for family in FAMILIES:
        frame, task = claims(family, 600, 4), task_of(family, True)
        model, trace = grow(split(frame, 3), task, trees=8)
        years = frame.years if task.exposure else 1.0
        deviance = task.law.deviance(frame.y.to_numpy(), np.asarray(model.predict(frame) * years))
        assert trace["loss"].is_monotonic_decreasing
        assert trace["loss"].iloc[-1] == pytest.approx(deviance.mean(), rel=1e-4)


def test_exposure_and_weights_enter_as_repeated_rows_do() -> None:
    frame, numbers = claims("poisson", 400, 5, missing=0.0), ("age", "paid", "day")
    weighted = frame.assign(w=2.0)
    ours, _ = grow(
        [weighted],
        Task(target="y", exposure="years", weight="w"),
        numbers,
        min_child_rows=2.5,
        l2=0.5,
    )
    theirs, _ = grow([pd.concat([frame, frame])], Task(target="y", exposure="years"), numbers)
    np.testing.assert_allclose(ours.predict(frame), theirs.predict(frame), rtol=1e-4)
    assert ours.trees[0].feature == theirs.trees[0].feature


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1, -1]))
def test_predictions_keep_to_the_direction_asked(seed: int, direction: int) -> None:
    frame = claims("poisson", 400, seed)
    model, _ = grow(
        [frame],
        task_of("poisson", True),
        monotone={"age": direction},
        trees=10,
        depth=4,
        min_child_rows=1.0,
        min_persons=1,
        l2=0.0,
    )
    assert any(0 in tree.feature for tree in model.trees)
    ladder = np.linspace(-20, 120, 57)
    for row in range(0, 400, 20):
        at = frame.iloc[[row] * len(ladder)].assign(age=ladder)
        assert (direction * np.diff(model.predict(at)) >= 0).all()


def test_a_direction_for_what_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'clinic' is not a numeric feature"):
        grow([claims("poisson", 100, 1)], task_of("poisson"), monotone={"clinic": 1})


def test_growing_stops_and_keeps_the_trees_that_judged_best() -> None:
    frame = claims("binomial", 600, 6)
    model, trace = grow(
        split(frame, 3),
        task_of("binomial"),
        trees=200,
        validation_share=0.4,
        patience=6,
        learning_rate=0.4,
        min_child_rows=1.0,
    )
    best = int(trace["validation"].argmin())
    assert len(model.trees) == best
    assert len(trace) - 1 == best + 6 < 200


def test_no_tree_knows_the_rows_held_out() -> None:
    frame = claims("poisson", 500, 7)
    held = held_out(frame.index.to_series(), 0.5, b"rows", "held out")
    shuffled = frame.copy()
    shuffled.loc[held, "y"] = frame.y[held].to_numpy()[::-1]
    judged = {"validation_share": 0.5, "patience": 1, "trees": 1, "refit": False}
    ours, trace = grow(split(frame, 4), task_of("poisson"), **judged)
    same, other = grow([shuffled], task_of("poisson"), **judged)
    assert ours.trees == same.trees
    assert trace["loss"].equals(other["loss"])
    assert (trace["validation"].iloc[1:] != other["validation"].iloc[1:]).all()


@pytest.mark.slow
def test_once_it_is_known_when_to_stop_so_many_trees_grow_from_all_rows() -> None:
    parts, task = split(claims("poisson", 600, 6), 3), task_of("poisson")
    stopping = {"trees": 60, "validation_share": 0.4, "patience": 6, "min_child_rows": 1.0}
    judged, _ = grow(parts, task, refit=False, **stopping)
    model, trace = grow(parts, task, **stopping)
    whole, _ = grow(parts, task, trees=len(judged.trees), min_child_rows=1.0)
    assert 0 < len(judged.trees) == int(trace["validation"].argmin()) < 60
    assert model == whole != judged


@pytest.mark.parametrize("leaves", [2, 4, 7, 30])
def test_the_leaf_of_most_gain_is_cut_first(leaves: int) -> None:
    """One question for each level gives the tree of one question for each cut."""
    frame = claims("poisson", 900, 3)
    few = {"trees": 1, "depth": 6, "min_child_rows": 1.0, "min_persons": 1, "l2": 0.0}
    numbers = ("age", "paid", "day")
    model, _ = grow(split(frame, 3), task_of("poisson"), numbers, leaves=leaves, **few)
    (whole,), (tree,) = grow([frame], task_of("poisson"), numbers, **few)[0].trees, model.trees
    gain = gains_of(whole, frame, model)
    cut, frontier = [], [0]
    while len(cut) < leaves - 1:
        at = max(frontier, key=lambda node: (gain[node], -node))
        cut.append(at)
        frontier.remove(at)
        frontier += [child for child in (whole.left[at], whole.left[at] + 1) if child in gain]
    expected, _ = whole.compact([f if at in cut else -1 for at, f in enumerate(whole.feature)])
    assert tree == expected


def gains_of(tree: Tree, frame: pd.DataFrame, model: Trees) -> dict[int, float]:
    """Twice the fall of the loss by each cut of a first tree, from its rows."""
    mean, unit = np.exp(model.intercept), frame.y.mean()
    codes = binned(frame, model.cuts)
    worth = np.zeros(len(tree.feature))
    parent = {tree.left[at] + side: at for at, f in enumerate(tree.feature) if f >= 0 for side in (0, 1)}  # fmt: skip
    node = np.zeros(len(frame), dtype=np.int32)
    tree.descend(codes, node)
    g, h = np.zeros(len(worth)), np.zeros(len(worth))
    for at in range(len(worth)):
        g[at], h[at] = (mean - frame.y[node == at]).sum() / unit, (node == at).sum()
    for at in reversed(range(1, len(worth))):
        g[parent[at]] += g[at]
        h[parent[at]] += h[at]
    worth = g**2 / (h)
    return {
        at: worth[tree.left[at]] + worth[tree.left[at] + 1] - worth[at]
        for at, feature in enumerate(tree.feature)
        if feature >= 0
    }


def test_a_tree_grows_from_the_share_of_persons_that_each_party_draws() -> None:
    frame = claims("poisson", 600, 9)
    first = held_out(frame.index.to_series(), 0.5, b"rows", "0.5 of rows after ")
    changed = frame.assign(y=np.where(first, frame.y, frame.y.sample(frac=1, random_state=1)))
    changed["y"] *= frame.y.sum() / changed.y.sum()
    ours, _ = grow(split(frame, 3), task_of("poisson"), rows=0.5, trees=1)
    half, _ = grow([frame[first]], task_of("poisson"), trees=1)
    assert 0.4 < first.mean() < 0.6
    drawn_values = ours.trees[0].value
    assert ours.trees[0].feature[0] == half.trees[0].feature[0] and drawn_values != ()
    other = held_out(frame.index.to_series(), 0.5001, b"rows", "0.5001 of rows after ")
    assert 0.3 < (first != other).mean() < 0.7  # two shares do not differ by a few persons


def test_leaves_are_drawn_towards_their_parent_and_a_small_sum_is_none() -> None:
    frame = claims("poisson", 600, 9)
    values = {
        name: np.array(grow([frame], task_of("poisson"), trees=1, l2=0.0, depth=1, **{name: 1e9})[0].trees[0].value)
        for name in ("smoothing", "l1")
    }  # fmt: skip
    assert np.abs(values["smoothing"]).max() < 1e-4
    assert (values["l1"] == 0).all()


def test_nothing_held_out_where_some_was_asked_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"model\.validation_share"):
        grow([claims("poisson", 60, 1)], task_of("poisson"), validation_share=1e-6)


def test_each_tree_uses_the_share_of_features_asked() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(400, 10)), columns=[f"x{k}" for k in range(10)])
    frame["y"] = rng.poisson(np.exp(0.3 * frame.sum(axis=1))).astype(float)
    names = [f"x{k}" for k in range(10)]
    model, _ = grow(
        [frame], Task(target="y"), names, features=0.3, trees=20, min_child_rows=1.0, depth=5
    )
    used = [set(tree.feature) - {-1} for tree in model.trees]
    assert max(map(len, used)) == 3
    assert set.union(*used) == set(range(10))


def test_levels_that_do_not_fit_share_the_bin_of_missing_values() -> None:
    rng = np.random.default_rng(1)
    codes = np.concatenate([np.repeat(np.arange(255), 5), np.arange(255, 400), [400] * 5])
    frame = pd.DataFrame({"clinic": [f"c{k:03d}" for k in codes], "x": rng.normal(size=len(codes))})
    frame["y"] = rng.poisson(1 + (codes % 3 == 0))
    frame = frame.sample(frac=1, random_state=0, ignore_index=True).astype({"y": float})
    model, _ = grow(split(frame, 3), Task(target="y"), ("clinic", "x"), min_persons=1)
    # 256 clinics are equally frequent: the first 255 have bins, the last shares with the rare ones
    assert model.cuts[0].levels == tuple(f"c{k:03d}" for k in range(255))
    assert (
        model.model_dump_json()
        == grow([frame], Task(target="y"), ("clinic", "x"), min_persons=1)[0].model_dump_json()
    )
    rare, gone = frame.assign(clinic="c399"), frame.assign(clinic=pd.Series([None] * len(frame)))
    assert (model.predict(rare) == model.predict(gone)).all()


def test_levels_are_cut_where_they_have_an_effect_and_left_where_they_have_none() -> None:
    rng = np.random.default_rng(8)
    frame = pd.DataFrame(
        {
            "noise": rng.choice([f"n{k}" for k in range(200)], 8000),
            "clinic": rng.choice([f"c{k}" for k in range(50)], 8000),
        }
    )
    odds = np.where(frame["clinic"].isin([f"c{k}" for k in range(10)]), 0.12, 0.03)
    frame["y"] = (rng.random(8000) < odds).astype(float)
    model, _ = grow([frame], task_of("binomial"), ("noise", "clinic"), trees=20, bins=64)
    places = [model.cuts[j].feature.column for tree in model.trees for j in tree.feature if j >= 0]
    assert 0 < 3 * places.count("noise") < 2 * places.count("clinic")


def test_a_column_may_be_constant_or_missing_altogether_at_a_party() -> None:
    frame = claims("poisson", 400, 8)
    parts = [part.copy() for part in split(frame, 3)]
    parts[0][["age", "clinic"]] = None
    parts[0]["age"] = parts[0]["age"].astype(float)
    parts[1]["age"], parts[1]["clinic"] = 50.0, "c1"
    contract = draft(frame, "test")
    ours, _ = grow(parts, task_of("poisson"), contract=contract)
    theirs, _ = grow([pd.concat(parts)], task_of("poisson"), contract=contract)
    assert ours.model_dump_json() == theirs.model_dump_json()
    assert "constant" not in [cut.feature.column for cut in ours.cuts]


def test_whether_a_value_is_missing_is_something_to_learn_from() -> None:
    rng = np.random.default_rng(2)
    gone = rng.random(500) < 0.5
    frame = pd.DataFrame(
        {"x": np.where(gone, np.nan, 1.0), "k": pd.Series(np.where(gone, None, "a"), dtype="str")}
    )
    frame["y"] = rng.poisson(np.where(gone, 3, 0.5)).astype(float)
    for name in ("x", "k"):
        model, _ = grow(split(frame, 3), Task(target="y"), (name,), trees=30)
        rate = model.predict(frame)
        assert rate[gone].min() > 2 > 1 > rate[~gone].max()


def test_nothing_to_cut_is_an_error_that_says_so() -> None:
    with pytest.raises(ModelError, match="every feature is the same"):
        grow([claims("poisson", 100, 1)], task_of("poisson"), ("constant",))
    flat = claims("gaussian", 100, 1).assign(y=2.5)
    with pytest.raises(ModelError, match="target is the same"):
        grow([flat], task_of("gaussian"))


def test_ordered_levels_are_cut_in_their_order() -> None:
    rng = np.random.default_rng(3)
    levels = ("none", "some", "much", "all")
    frame = pd.DataFrame({"grade": pd.Categorical(rng.choice(levels, 600), levels)})
    frame["y"] = rng.poisson(1 + frame.grade.cat.codes).astype(float)
    columns = {"grade": Column(type="category", levels=levels), "y": Column(type="number")}
    feature = Feature(column="grade", ordinal=True)
    model, _ = grow(
        split(frame, 3),
        Task(target="y"),
        (feature,),
        contract=Contract(name="test", columns=columns),
        monotone={"grade": 1},
        trees=20,
    )
    rates = model.predict(pd.DataFrame({"grade": pd.Categorical(levels, levels)}))
    assert (np.diff(rates) > 0).all()


def test_kept_missing_values_are_for_trees_and_means_for_the_others(tmp_path: Path) -> None:
    text = (
        'name = "x"\n[data]\npath = "x.csv"\ntarget = "y"\nmissing = "{}"\n'
        '[model]\nkind = "{}"\nfamily = "poisson"\n'
    )
    for missing, kind in (("keep", "glm"), ("keep", "network"), ("mean", "trees")):
        (tmp_path / "x.toml").write_text(text.format(missing, kind))
        with pytest.raises(
            ConfigurationError, match=f"data.missing = '{missing}' does not fit {kind}"
        ):
            Experiment.read(tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text(text.format("keep", "trees"))
    Experiment.read(tmp_path / "x.toml")
    with pytest.raises(ContractError, match="'keep' for trees"):
        check_features(claims("poisson", 50, 1, 0.5), (Feature(column="clinic"),), "refuse")


def test_an_experiment_on_a_table_with_empty_cells_grows_the_pooled_trees(tmp_path: Path) -> None:
    claims("poisson", 500, 1, 0.2).to_csv(tmp_path / "x.csv", index=False)
    data = {"path": str(tmp_path / "x.csv"), "target": "y", "exposure": "years", "missing": "keep"}
    told = {
        "name": "x", "data": data, "parties": {"split": "uniform", "count": 3},
        "model": {"kind": "trees", "family": "poisson", "trees": 3, "min_child_rows": 5.0, "validation_share": 0.3},
        "protection": {"sums": "clear"}, "arms": {"replicates": 0},
    }  # fmt: skip
    study = run(Experiment.model_validate(told), runs=tmp_path / "runs", track=False)
    hashes = [study.arms[arm].models["all"]["model"].hash for arm in ("federated", "pooled")]
    assert hashes[0] == hashes[1]


# Against others.


def suspicious(rows: int) -> pd.DataFrame:
    """Claims of which one in twenty is fraudulent."""
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(rng.normal(size=(rows, 10)), columns=[f"x{k}" for k in range(10)])
    frame["amount"] = np.exp(3 + rng.normal(size=rows)).round(2)
    eta = -4 + frame.x0 * frame.x1 + frame.x2 + np.sin(2 * frame.x3) + np.log(frame.amount / 20)
    return frame.assign(y=(rng.random(rows) < 1 / (1 + np.exp(-eta))).astype(float))


def credit(published: Callable[[str], Path]) -> pd.DataFrame:
    folder = published("fate_vertical")
    guest = pd.read_csv(folder / "default_credit_hetero_guest.csv.gz")
    host = pd.read_csv(folder / "default_credit_hetero_host.csv.gz")
    return guest.merge(host, on="id").drop(columns="id").astype(float)


@pytest.mark.slow
@pytest.mark.parametrize("table", ["made", "credit"])
def test_as_good_as_scikit_learn_at_the_same_settings(table, published) -> None:
    frame = suspicious(20_000) if table == "made" else credit(published)
    names = [name for name in frame.columns if name != "y"]
    found = []
    for seed in range(3 if table == "made" else 1):
        test = np.random.default_rng(seed).random(len(frame)) < 0.4
        told = {"trees": 40, "depth": 5, "bins": 64, "min_child_rows": 20.0}
        task, parts = Task(target="y", family="binomial"), split(frame[~test], 5)
        model, _ = grow(parts, task, names, **told)
        with threadpool_limits(1):
            theirs = HistGradientBoostingClassifier(
                max_iter=40, max_depth=5, max_leaf_nodes=None, max_bins=64, early_stopping=False
            ).fit(frame.loc[~test, names], frame.y[~test])
            rate = theirs.predict_proba(frame.loc[test, names])[:, 1]
        y = frame.y[test]
        found.append((roc_auc_score(y, model.predict(frame[test])), roc_auc_score(y, rate)))
    ours, other = np.mean(found, axis=0)
    print(f"{table}: AUC {ours:.5f}, scikit-learn {other:.5f}")
    assert ours > other - 0.002


MOTOR = {"trees": 60, "depth": 5, "bins": 64, "min_child_rows": 20.0}


def fremtpl2(published: Callable[[str], Path]) -> tuple[pd.DataFrame, Any, list[str], pd.DataFrame]:
    """(policies, whether each is a test row of Noll et al., features, features for others)"""
    frame = pd.read_csv(published("freMTPL2/freMTPL2freq.csv.gz"))
    rows = pd.read_csv(published("freMTPL2/split_noll_R_seed100_rounding_test_rows0.csv.gz"))
    frame["y"], frame["Exposure"] = frame.ClaimNb.clip(upper=4.0), frame.Exposure.clip(upper=1.0)
    test = np.zeros(len(frame), dtype=bool)
    test[rows.iloc[:, 0]] = True
    texts = ["Area", "VehBrand", "VehGas", "Region"]
    names = ["VehPower", "VehAge", "DrivAge", "BonusMalus", "Density", *texts]
    return frame, test, names, frame[names].astype(dict.fromkeys(texts, "category"))


def motor_deviance(frame: pd.DataFrame, test: Any, names: list[str]) -> float:
    """The mean deviance on test rows of trees that five insurers grew."""
    task = Task(target="y", exposure="Exposure")
    model, _ = grow(split(frame[~test], 5), task, names, **MOTOR)
    return mean_deviance(frame[test], model.predict(frame[test]))


def mean_deviance(frame: pd.DataFrame, rate: np.ndarray) -> float:
    mean = frame.Exposure.to_numpy() * rate
    return float(Task(target="y").law.deviance(frame.y.to_numpy(), mean).mean())


@pytest.mark.slow
def test_fremtpl2_is_as_good_as_scikit_learn(published) -> None:
    frame, test, names, x = fremtpl2(published)
    ours = motor_deviance(frame, test, names)
    theirs = HistGradientBoostingRegressor(
        loss="poisson", max_iter=MOTOR["trees"], max_depth=5, max_leaf_nodes=None, max_bins=64,
        early_stopping=False, categorical_features="from_dtype",
    )  # fmt: skip
    years = frame.Exposure
    theirs.fit(x[~test], frame.y[~test] / years[~test], sample_weight=years[~test])
    other = mean_deviance(frame[test], theirs.predict(x[test]))
    print(f"deviance x 100: {100 * ours:.4f}, scikit-learn {100 * other:.4f}")
    assert ours < 1.002 * other


@pytest.mark.slow
def test_fremtpl2_is_as_good_as_lightgbm(published) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    frame, test, names, x = fremtpl2(published)
    ours = motor_deviance(frame, test, names)
    settings = {
        "objective": "poisson", "poisson_max_delta_step": 1e-9, "max_depth": 5, "num_leaves": 32, "learning_rate": 0.1,
        "max_bin": 64, "num_threads": 2, "verbose": -1,
    }  # fmt: skip
    years = frame.Exposure
    rates = lightgbm.Dataset(x[~test], frame.y[~test] / years[~test], weight=years[~test])
    rate = lightgbm.train(settings, rates, MOTOR["trees"]).predict(x[test])
    other = mean_deviance(frame[test], rate)
    print(f"deviance x 100: {100 * ours:.4f}, LightGBM {100 * other:.4f}")
    assert ours < 1.002 * other


@pytest.mark.parametrize("least", [1, 10])
def test_no_leaf_stands_on_fewer_persons_than_asked(least: int) -> None:
    """With leaves of single persons allowed, the model holds their targets: the unprotected twin."""
    frame = claims("gaussian", 300, 3)
    model, _ = grow(
        split(frame, 3),
        task_of("gaussian"),
        min_child_rows=0.5,
        l2=0.0,
        learning_rate=1.0,
        trees=1,
        depth=8,
        min_persons=least,
    )
    (tree,) = model.trees
    leaf = np.zeros(len(frame), dtype=np.int32)
    tree.descend(binned(frame, model.cuts), leaf)
    sizes = np.unique(leaf, return_counts=True)[1]
    assert (sizes.min() >= 10) == (least == 10)
    exact = np.isclose(model.predict(frame), frame.y, rtol=1e-3).sum()
    assert exact < 5 if least == 10 else exact > 10


def test_bins_of_few_persons_are_joined_before_a_tree_grows() -> None:
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"x": np.append(rng.integers(0, 4, 300), [90, 91, 92]).astype(float)})
    frame["clinic"] = [*["a"] * 150, *["b"] * 147, *["lone"] * 6]
    frame["y"] = rng.poisson(1.0, len(frame)).astype(float)
    parts = split(frame, 3)
    model, _ = grow(parts, Task(target="y"), ("x", "clinic"))
    bare, _ = grow(parts, Task(target="y"), ("x", "clinic"), min_persons=1)
    (numbers, levels), (fine, all_levels) = model.cuts, bare.cuts
    assert numbers.edges == (0.0, 1.0, 2.0) and levels.levels == ("a", "b")
    assert len(fine.edges) > 3 and all_levels.levels == ("a", "b", "lone")


def test_a_node_has_the_mean_of_its_rows_and_their_share_and_gains_are_what_cuts_explain() -> None:
    """Of a Gaussian tree without shrinking, whose values are means of what is not explained yet."""
    frame = claims("gaussian", 900, 3, missing=0.0)
    settings_of_means = {"trees": 1, "depth": 2, "learning_rate": 1.0, "l2": 0.0}
    parts = split(frame, 3)
    model, _ = grow(parts, task_of("gaussian"), ("age", "paid", "day"), **settings_of_means)
    (tree,) = model.trees
    node = np.zeros(len(frame), dtype=np.int32)
    rest = (frame["y"] - model.intercept).to_numpy()
    tree.descend(binned(frame, model.cuts), node)
    groups = {at: node == at for at in range(len(tree.feature))}
    for at in reversed(range(len(tree.feature))):
        if tree.feature[at] >= 0:
            groups[at] = groups[tree.left[at]] | groups[tree.left[at] + 1]
            left = groups[tree.left[at]].sum() / groups[at].sum()
            assert tree.share[at] == pytest.approx(left, abs=2**-11)
        assert tree.value[at] == pytest.approx(rest[groups[at]].mean(), rel=1e-3, abs=1e-3 * 1e5)
    share = model.gains / np.sum(model.gains)
    explained = [
        sum(rest[groups[c]].mean() ** 2 * groups[c].sum() for c in (left, left + 1))
        - rest[groups[at]].mean() ** 2 * groups[at].sum()
        for at, left in enumerate(tree.left)
        if tree.feature[at] >= 0
    ]
    feature = [f for f in tree.feature if f >= 0]
    wanted = np.bincount(feature, explained, len(model.cuts)) / np.sum(explained)
    np.testing.assert_allclose(share, wanted, rtol=1e-3, atol=1e-4)
