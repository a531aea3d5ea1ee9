"""A statistic over joined rows equals that of the table that nobody has."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, RecordDict

from federated.hiding.protocol import Clear
from federated.joined.by_paillier import by_paillier
from federated.joined.product import (
    Products,
    Spine,
    by_triples,
    contribution,
    deal,
    joined_sum,
    joined_total,
)
from federated.joined.protection import Joined, Pair
from federated.joined.sums.factors import Halves, Role
from federated.joined.sums.lorenz import JoinedLorenz
from federated.party import statistics
from federated.party.party import Party
from federated.party.state import NodeState
from lab.errors import ModelError, PeerError, PolicyError
from lab.models.design import Design, Encoding, Feature, Levels, Number
from lab.models.families import Scale
from lab.models.glm import GLM, Response, Task
from lab.models.tree_model import Cuts
from lab.privacy.joining import PARTIES, PERSONS
from lab.scores import places
from lab.sums import Sums, combine
from secure_agg import wire
from secure_agg.keys import PrivateKey, generate

OURS, THEIRS = ("y", "years", "w", "age", "region"), ("stays", "chronic", "dose")


def table(n: int = 400, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "y": rng.poisson(1.3, n).astype(float),
            "years": rng.uniform(0.2, 1.0, n),
            "w": rng.uniform(0.5, 2.0, n),
            "age": rng.normal(50, 12, n),
            "region": pd.Categorical(rng.choice(["east", "north", "west"], n)),
            "stays": rng.poisson(0.4, n).astype(float),
            "chronic": pd.Categorical(rng.choice(["no", "yes"], n)),
            "dose": rng.normal(3, 1, n),
        }
    )


@dataclass
class HalfTable:
    """One side's rows, in an order of its own, beside rows that the other side lacks."""

    role: Role
    frame: pd.DataFrame
    secret: bytes = b"secret"
    kept: dict[bytes, bytes] = field(default_factory=dict)

    def rows(self, task: Any, part: str) -> pd.DataFrame:
        return self.frame

    def owners(self, task: Any, part: str) -> pd.Series:
        return self.frame.index.to_series()


def owner(column: str) -> Role:
    return "insurer" if column in OURS else "fund"


def sides(
    frame: pd.DataFrame, more: int = 50, seed: int = 5
) -> tuple[dict[Role, HalfTable], dict[Role, Spine]]:
    """The two halves, each with rows more than the common ones, and places on a spine of all."""
    rng, n = np.random.default_rng(seed), len(frame)
    rest = table(2 * more, seed=9).assign(y=1.0)
    own, theirs = pd.concat([frame, rest[:more]]), pd.concat([frame, rest[more:]])
    halves: dict[Role, HalfTable] = {}
    spines: dict[Role, Spine] = {}
    at = rng.permutation(n + 2 * more)
    for role, part, columns, alone in (
        ("insurer", own, OURS, at[n : n + more]),
        ("fund", theirs, THEIRS, at[n + more :]),
    ):
        place = np.concatenate([at[:n], alone])
        order = rng.permutation(len(part))
        halves[role] = HalfTable(role, part[list(columns)].iloc[order].reset_index(drop=True))
        spines[role] = Spine(place[order], n + 2 * more)
    return halves, spines


def numbers(frame: pd.DataFrame, *names: str) -> tuple[Number, ...]:
    return tuple(
        Number(feature=Feature(column=c), mean=frame[c].mean(), scale=frame[c].std()) for c in names
    )


def encoding(frame: pd.DataFrame) -> Encoding:
    return Encoding(
        numbers=numbers(frame, "age", "stays", "dose"),
        categories=(
            Levels(feature=Feature(column="chronic"), levels=("no", "yes")),
            Levels(feature=Feature(column="region"), levels=("east", "north", "west")),
        ),
    )


def by_both(
    request: Any, frame: pd.DataFrame, way: str, private: PrivateKey, more: int = 50
) -> Sums:
    """The total of a request, made by two sides."""
    halves, spines = sides(frame, more)
    total = joined_sum(request, owner)
    layout = Products("q", spines["fund"].size, total)
    left, right = (secrets.token_bytes(32) for _ in range(2))
    dealt = {"insurer": left, "fund": right}
    if way == "triples":
        talk = {r: by_triples(layout, half, spines[r], dealt[r]) for r, half in halves.items()}
    else:
        talk = {
            r: by_paillier(layout, half, spines[r], lambda: private, 2048)
            for r, half in halves.items()
        }
    letters = {role: next(side) for role, side in talk.items()}
    shares: dict[str, Any] = {}
    turn = 0
    while len(shares) < 2:
        turn += 1
        heard = {"insurer": letters["fund"], "fund": letters["insurer"]}
        if way == "triples":
            parts = wire.split(b"SAGGJL01", heard["fund"], 0, 99)
            heard["fund"] = wire.join(b"SAGGJL01", [*parts, *deal(layout, turn, left, right)])
        for role, side in talk.items():
            try:
                letters[role] = side.send(heard[role])
            except StopIteration as end:
                shares[role] = end.value
    return joined_total(
        total, combine([contribution(share, total.form.ring) for share in shares.values()])
    )


TASKS = {
    "poisson": Task(target="y", exposure="years", weight="w"),
    "gaussian": Task(target="y", weight="w", family="gaussian"),
    "gaussian on the log link": Task(target="y", exposure="years", family="gaussian", link="log"),
    "gamma": Task(target="y", exposure="years", weight="w", family="gamma"),
    "binomial": Task(target="y", weight="w", family="binomial"),
    "tweedie": Task(target="y", exposure="years", weight="w", family="tweedie", power=1.6),
}


def questions(frame: pd.DataFrame, task: Task) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Everything that a fit asks: statistic, arguments, arrays."""
    design, rng = encoding(frame), np.random.default_rng(3)
    beta = rng.normal(0, 0.15, design.width)
    ones = np.ones(len(frame))
    w = frame[task.weight] if task.weight else ones
    e = frame[task.exposure] if task.exposure else ones
    scale = Scale(
        rows=len(frame),
        weight=float(np.mean(w)),
        exposure=float(np.mean(w * e)),
        target=float(np.mean(w * frame.y)),
        square=float(np.mean(w * frame.y**2)),
    )
    most = (2.0**12, 2.0**12, 2.0**12, 2.0**14)
    of = {"task": task, "encoding": design}
    model = GLM(task=task, encoding=design, beta=tuple(beta)).model_dump_json()
    by = [
        Levels(feature=Feature(column="chronic"), levels=("no", "yes")),
        Levels(feature=Feature(column="age", cut=(40.0, 60.0)), levels=("<=40", "40-60", ">60")),
    ]
    return [
        ("totals", {"task": task, "part": "train", "most": most}, {}),
        ("glm_start", {**of, "most": most}, {}),
        ("moments", {"task": task, "features": design.numbers, "most": 2.0**12}, {}),
        ("level_counts", {"task": task, "features": design.categories}, {}),
        ("glm_step", {**of, "scale": scale}, {"beta": beta}),
        ("glm_likelihood", {**of, "dispersion": 1.3, "scale": scale}, {"beta": beta}),
        *(("score_levels", {"model": model, "task": task, "feature": f}, {}) for f in by),
        (
            "score_fit",
            {"model": model, "task": task, "scale": scale, "replicates": 0, "seed": 1},
            {},
        ),
    ]


def compared(
    task: Task, way: str, private: PrivateKey, rows: int, only: tuple[str, ...], more: int = 50
) -> None:
    frame = table(rows)
    if task.family == "gamma":
        frame["y"] += 0.5
    if task.family == "binomial":
        frame["y"] = (frame["y"] > 1).astype(float)
    tolerance = 1e-7 if task.family == "binomial" else 1e-11
    pool = Party("pool", frame, frame)
    for name, arguments, arrays in questions(frame, task):
        if only and name not in only:
            continue
        request = statistics.request(name, arguments, arrays, query="", hiding="clear")
        right, ours = pool.take(request), by_both(request, frame, way, private, more)
        assert ours.rows == rows
        parts = [key for key in right.arrays if key != PARTIES]  # a pair is one
        assert ours.limits == {key: right.limits[key] for key in parts}, name
        for key in parts:
            value = right[key]
            size = max(1.0, np.abs(value).max())
            np.testing.assert_allclose(
                ours[key], value, rtol=0, atol=tolerance * size, err_msg=f"{name} {key}"
            )


@pytest.fixture(scope="module")
def private() -> PrivateKey:
    return generate(2048)


@pytest.mark.parametrize("family", TASKS)
def test_sums_by_triples_are_those_of_the_joined_table(family, private):
    compared(TASKS[family], "triples", private, 400, ())


def test_sums_by_paillier_are_those_of_the_joined_table(private):
    compared(TASKS["poisson"], "paillier", private, 12, ("glm_step", "moments"))


def test_a_logistic_step_by_paillier_is_that_of_the_joined_table(private):
    compared(TASKS["binomial"], "paillier", private, 12, ("glm_step",), more=1)


def test_a_row_beyond_all_bounds_is_not_valid_and_changes_no_other(private):
    frame, task = table(60), TASKS["poisson"]
    (request,) = (
        statistics.request(
            name, arguments, {"beta": arrays["beta"] + [900, *[0.0] * 6]}, query="", hiding="clear"
        )
        for name, arguments, arrays in questions(frame, task)
        if name == "glm_step"
    )
    total = by_both(request, frame, "triples", private)
    assert total.total("valid") == 0 and total.rows == 60


def test_scores_of_a_row_beyond_all_bounds_are_refused(private):
    frame, task = table(60), TASKS["poisson"]
    asked = {name: (arguments, arrays) for name, arguments, arrays in questions(frame, task)}
    arguments, arrays = asked["glm_likelihood"]
    far = {"beta": arrays["beta"] + [0, 0, 900, *[0.0] * 4]}
    request = statistics.request("glm_likelihood", arguments, far, query="", hiding="clear")
    with pytest.raises(ModelError, match="of 60 joined rows have numbers beyond all bounds"):
        by_both(request, frame, "triples", private)


def test_resamples_are_sums_of_bags_that_add_up_to_the_sample(private):
    frame, task = table(200), TASKS["poisson"]
    asked = {name: arguments for name, arguments, _ in questions(frame, task)}
    plain = statistics.request("score_fit", asked["score_fit"], {}, query="", hiding="clear")
    many = asked["score_fit"] | {"replicates": 300}
    request = statistics.request("score_fit", many, {}, query="", hiding="clear")
    once, resampled = (by_both(r, frame, "triples", private) for r in (plain, request))
    for name in ("deviance", "expected", "null_deviance", "actual", "size"):
        value, draws = resampled[name][0], resampled[name][1:]
        assert value == pytest.approx(once[name][0], rel=1e-8)
        assert len(draws) == 300 and draws.mean() == pytest.approx(value, rel=0.05)
        assert 0.02 < draws.std() / value < 0.3
    assert resampled["weighted_deviance"][0] == pytest.approx(
        once["weighted_deviance"][0], rel=1e-8
    )


def curves(
    frame: pd.DataFrame, task: Task, private: PrivateKey, way: str
) -> tuple[list[places.Places], Sums]:
    """The bins that were asked for one after the other, and the last sums by two sides."""
    asked = {name: arguments for name, arguments, _ in questions(frame, task)}
    arguments = {name: asked["score_fit"][name] for name in ("model", "task", "scale")}
    bins = []

    def ask(of: places.Places) -> Sums:
        bins.append(of)
        edges = {"edges": of.edges}
        request = statistics.request("score_lorenz", arguments, edges, query="", hiding="clear")
        return by_both(request, frame, way, private)

    return bins, places.curve(ask, PERSONS)


@pytest.mark.parametrize("family", TASKS)
def test_a_curve_over_joined_rows_is_of_the_sum_of_two_rounded_parts(family, private):
    frame, task = table(600), TASKS[family]
    if family == "gamma":
        frame["y"] += 0.5
    if family == "binomial":
        frame["y"] = (frame["y"] > 1).astype(float)
    bins, curve = curves(frame, task, private, "triples")
    arguments = {name: a for name, a, _ in questions(frame, task)}["score_fit"]
    model, scale = GLM.model_validate_json(arguments["model"]), arguments["scale"]
    halves, middle = Halves(model.encoding, owner), places.Middle.of(task.law, scale)
    numbers = 0
    for role, of_market in (("insurer", middle.of_market), ("fund", 0.0)):
        part = halves.matrix(role, frame) @ np.array(model.beta)[halves.places[role]]
        numbers += np.rint((part - of_market) / middle.unit / bins[-1].step).astype(int)
    r = Response(frame, task)
    for name, value in {"size": r.weight * r.exposure, "actual": r.weight * r.y}.items():
        right = np.bincount(numbers - bins[-1].first, value, bins[-1].count)
        np.testing.assert_allclose(curve[name], right, atol=1e-2)
    assert len(bins) == 3 and (curve[PERSONS] > 0).sum() > 30
    predicted = Design(frame, model.encoding).matrix() @ np.array(model.beta)
    expected = r.weight * r.exposure * task.law.mean(predicted)
    assert curve["expected"].sum() == pytest.approx(expected.sum(), rel=0.02)


def test_a_curve_by_paillier_is_the_curve_by_triples(private):
    frame, task = table(4), TASKS["poisson"]
    arguments = {name: a for name, a, _ in questions(frame, task)}["score_fit"]
    arguments = {name: arguments[name] for name in ("model", "task", "scale")}
    edges = {"edges": 0.1 * (np.arange(9) - 4.5)}
    request = statistics.request("score_lorenz", arguments, edges, query="", hiding="clear")
    by = [by_both(request, frame, way, private) for way in ("triples", "paillier")]
    assert all((by[0][name] == by[1][name]).all() for name in by[0].arrays)


def test_the_sum_of_a_curve_can_t_run_over_its_ring(private):
    form = JoinedLorenz.form
    assert form.bound * 2**28 < 2 ** (form.bits - 1) and form.bits < form.ring.bits
    frame, task = table(60), TASKS["gaussian on the log link"]
    arguments = {name: a for name, a, _ in questions(frame, task)}["score_fit"]
    arguments = {name: arguments[name] for name in ("model", "task", "scale")}
    edges = {"edges": places.WHOLE.edges}
    request = statistics.request("score_lorenz", arguments, edges, query="", hiding="clear")
    frame.loc[3, "y"] = 2.0**25  # far more than any row may have of the average
    with pytest.raises(ModelError, match="1 of 60 joined rows have numbers beyond all bounds"):
        by_both(request, frame, "triples", private)


def test_letters_are_counted_by_the_way_that_a_statistic_is_made():
    """Bins are made by Paillier whatever the plan says: of a row one ciphertext and no matrix leaves."""
    cuts = (Cuts(feature=Feature(column="dose"), edges=()),)
    edges = {"edges": np.linspace(0, 6, 400)[None, :]}
    arguments = {"task": TASKS["poisson"], "cuts": cuts}
    request = statistics.request("trees_bins", arguments, edges, query="q", hiding="clear")
    rows = 1000
    joined = Joined(Clear(), (Pair("insurer", "fund", rows),), owner, "triples", 1)
    letters = joined.letters(request, joined_sum(request, owner), 2048)
    assert letters == {"insurer": rows * 512, "fund": 0}


def test_what_no_side_knows_is_refused():
    with pytest.raises(PeerError, match="can't be asked of joined parties"):
        joined_sum(SimpleNamespace(statistic="drift"), owner)  # type: ignore[arg-type]


def test_a_product_is_begun_once_whatever_was_begun_since():
    context = Context(0, 0, {"partition-id": 0}, RecordDict(), {})
    memory = NodeState(context, "fund", "paillier")
    for query in ("run-1", "run-2"):
        memory.begin_product(query)
    for query in ("run-1", "run-2"):
        with pytest.raises(PolicyError, match="was begun before"):
            NodeState(context, "fund", "paillier").begin_product(query)
