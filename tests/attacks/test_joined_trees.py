"""What the fund could learn of labels while trees grow over its columns, and what an insurer learns of them.

Each attack has a twin that works where the guard is not: on derivatives in the clear, on the nodes that
rows are at (Takahashi, Liu and Liu, "Eliminating label leakage in tree-based vertical federated
learning", arXiv 2307.10318: ID2Graph), on bits of persons that an insurer lacks, on a fund that answers
whatever it is asked.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from federated.deployment.coordinator.sides import RemoteJoined
from federated.deployment.node.process import Node
from federated.joined import product
from federated.joined.side import NONCE, JoinedSide
from federated.joined.sums.cuts import ToldColumn
from federated.messages import Request
from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from lab.errors import PeerError, PolicyError
from lab.models.design import Feature
from lab.models.tree_model import Cuts, Tree, binned
from secure_agg import wire
from tests.rigs.sides import Sides
from tests.rigs.trial import started

PERSONS = 1000


def tables() -> pd.DataFrame:
    """A label that mostly follows from the insurer's own columns, which the fund knows nothing of."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(PERSONS, 4))
    frame = pd.DataFrame(x.round(3), columns=["a", "b", "stays", "dose"]).assign(id=range(PERSONS))
    eta = 5 * frame.a + 2 * frame.b + 2 * frame.stays
    frame["fraud"] = (rng.random(PERSONS) < 1 / (1 + np.exp(-eta))).astype(int)
    return frame


def written(folder: Path, **model: object) -> Experiment:
    frame = tables()
    for role, columns in (
        ("insurer", ["id", "fraud", "a", "b"]),
        ("fund", ["id", "stays", "dose"]),
    ):
        frame[columns].to_csv(folder / f"{role}.csv", index=False)
    return Experiment.model_validate(
        {
            "name": "attack",
            "data": {"target": "fraud", "features": ["a", "b", "stays", "dose"], "test": 0.0},
            "joined": [
                {"role": role, "path": str(folder / f"{role}.csv"), "key": "id"}
                for role in ("insurer", "fund")
            ],
            "alignment": {"learns": "both"},
            "model": {"kind": "trees", "trees": 5, "depth": 3, "bins": 16} | model,
            "protection": {"key_bits": 2048},
            "arms": {"run": ["federated"], "replicates": 0},
        }
    )


def guessed(frame: pd.DataFrame, groups: np.ndarray) -> float:
    """The share of labels that are right where one guess is made for each group of rows, at best."""
    return float(
        frame.fraud.groupby(groups).transform(lambda y: max(y.mean(), 1 - y.mean())).mean()
    )


def trees_of(study: Study):
    return study.arms["federated"].models["all"]["model"].model


def leaves(model, codes: np.ndarray) -> np.ndarray:
    """(rows, trees) the leaf of each row."""
    nodes = []
    for tree in model.trees:
        node = np.zeros(len(codes), dtype=np.int32)
        tree.descend(codes, node)
        nodes.append(node)
    return np.column_stack(nodes)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    return perform(written(tmp_path_factory.mktemp("attack")))


def test_unprotected_the_sign_of_a_derivative_is_the_label():
    labels = tables().fraud.to_numpy()
    derivatives = 1 / (1 + np.exp(0.0)) - labels  # of a logistic loss, shown to the fund
    assert ((derivatives < 0) == (labels > 0)).all()


def test_what_the_fund_hears_of_derivatives_goes_with_no_label(tmp_path, monkeypatch):
    heard: list[bytes] = []
    masked = product.triples.masked

    def listening(terms, seed, side, matrix):
        message = masked(terms, seed, side, matrix)
        if side == "left" and terms.query.endswith("/0") and terms.left == 2:
            heard.append(message)
        return message

    monkeypatch.setattr(product.triples, "masked", listening)
    perform(written(tmp_path, trees=2))
    *_, data = wire.split(product.triples.MASKED, heard[0], 3)
    numbers = np.frombuffer(data, dtype="<u8").reshape(PERSONS, 2)
    high = (numbers[:, 0] >> np.uint64(63)).astype(int)
    assert (
        0.4 < (high == tables().fraud).mean() < 0.6
    )  # of 1,000 fair bits, six standard deviations


def test_unprotected_nodes_of_rows_tell_labels_apart(study):
    """ID2Graph: rows that are often at one leaf have one label."""
    frame, model = tables(), trees_of(study)
    at = leaves(model, binned(frame, model.cuts))
    shown = guessed(frame, at[:, 0])
    assert shown > 0.8
    assert guessed(frame, np.zeros(PERSONS)) < 0.6


def test_what_the_fund_knows_of_nodes_by_its_own_columns_tells_little(study):
    """It knows cuts on its own columns, and follows its rows no further than the first other cut."""
    frame, model = tables(), trees_of(study)
    at = leaves(model, binned(frame, model.cuts))
    theirs = {j for j, cut in enumerate(model.cuts) if cut.feature.column in ("stays", "dose")}
    known = np.zeros(PERSONS, dtype=np.int32)
    tree, codes = model.trees[0], binned(frame, model.cuts)
    for row in range(PERSONS):
        node = 0
        while tree.feature[node] in theirs:
            left = tree.goes_left[node, codes[row, tree.feature[node]]]
            node = tree.left[node] + (0 if left else 1)
        known[row] = node
    assert guessed(frame, at[:, 0]) - guessed(frame, known) > 0.2


def cuts_told(study: Study):
    return [line for line in study.receipts["fund"] if line.statistic == "trees_cuts"]


def test_trees_of_own_columns_tell_the_insurer_nothing(tmp_path, study):
    assert cuts_told(study)
    assert not cuts_told(perform(written(tmp_path, trees=2, own_trees=2)))


def test_an_insurer_knows_of_a_column_the_cuts_that_were_told_and_no_more():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"stays": rng.normal(size=PERSONS)})
    cut = Cuts(feature=Feature(column="stays"), edges=tuple(np.linspace(-2, 2, 31)))
    codes = binned(frame, (cut,))[:, 0]
    column = ToldColumn("told 0", cut, PERSONS)
    for last in (7, 15, 23):
        goes_left = np.arange(cut.bins) <= last
        column.hear(goes_left, goes_left[codes])
        assert (goes_left[column.codes] == goes_left[codes]).all()
    assert len(np.unique(column.codes)) == 4 < len(np.unique(codes))


# An insurer that is alone told who is common, and looks at what the fund tells of all others.


def told_bits(*, hidden: bool) -> tuple[np.ndarray, np.ndarray]:
    """(cuts, strangers) what the fund tells of them on the spine, and what is true."""
    rng = np.random.default_rng(6)
    frame = pd.DataFrame({"stays": rng.normal(size=PERSONS)})
    cuts = (Cuts(feature=Feature(column="stays"), edges=tuple(np.linspace(-1, 1, 7))),)
    fund = JoinedSide("fund", frame, frame, role="fund", columns=frozenset(["stays"]))
    fund.places["insurer"] = pd.Series(rng.permutation(2 * PERSONS)[:PERSONS], index=frame.index)
    fund.sizes["insurer"] = 2 * PERSONS
    if not hidden:  # as if it knew that all of them are common
        fund.met["insurer"] = pd.Series(True, index=frame.index)
    else:
        fund.row_keys["insurer"] = rng.integers(0, 256, (PERSONS, 32), dtype=np.uint8)
    chosen = [(0, tuple(np.arange(cuts[0].bins) <= last)) for last in range(6)]
    data = np.frombuffer(fund.tell("insurer", chosen, cuts), dtype=np.uint8)[
        NONCE if hidden else 0 :
    ]
    bits = np.unpackbits(data.reshape(6, -1), axis=1, count=2 * PERSONS)
    codes = binned(frame, cuts)[:, 0]
    true = np.array([np.array(goes_left)[codes] for _, goes_left in chosen])
    return bits[:, fund.places["insurer"]], true


def test_a_fund_without_keys_tells_nothing_of_persons_that_an_insurer_lacks():
    fund = JoinedSide("fund", tables(), tables(), role="fund")
    fund.places["insurer"] = pd.Series(range(PERSONS))
    with pytest.raises(PolicyError, match="no keys hide what would be told"):
        fund.tell("insurer", [], ())


def test_unprotected_an_insurer_reads_bits_of_persons_that_it_lacks():
    bits, true = told_bits(hidden=False)
    assert (bits == true).all()


def test_what_is_told_of_persons_that_an_insurer_lacks_is_hidden_by_their_keys():
    bits, true = told_bits(hidden=True)
    assert abs((bits == true).mean() - 0.5) < 0.05  # of 6,000 fair bits, seven standard deviations
    assert abs(bits.mean() - 0.5) < 0.05


# A coordinator among real sides that asks for cuts of its own choosing.


def with_a_cut_of_its_own(request: Request) -> Request:
    """A question about a leaf, at a tree that the coordinator made up."""
    cuts = request.arguments["cuts"]
    at_fund = next(j for j, cut in enumerate(cuts) if cut["feature"]["column"] == "stays")
    tree = Tree(feature=(at_fund, -1, -1), left=(1, 0, 0), bins=("1", "0", "0"), value=(0.0,) * 3)
    ask = {**request.arguments["ask"], "nodes": [1]}
    ask["place"] = {**ask["place"], "growing": tree.model_dump(mode="json")}
    return replace(request, arguments={**request.arguments, "ask": ask})


@dataclass(frozen=True)
class AnswersAnything:
    """Holds no question against the plan."""

    def __call__(self, node: Node) -> None:
        node._answers._binding = lambda run, study: None  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("bound", [False, True])
def test_a_coordinator_is_told_no_cut_that_the_plan_did_not_choose(
    tmp_path, authority_key, monkeypatch, bound
):
    """Unbound the fund tells it, and notes it; bound it refuses before anything is told."""
    multiply = RemoteJoined.multiply

    def forged(self, talk, request, total):
        if request.statistic == "trees_level":
            request = with_a_cut_of_its_own(request)
        multiply(self, talk, request, total)

    monkeypatch.setattr(RemoteJoined, "multiply", forged)
    with started(Sides(tmp_path, authority_key, learns="both")) as made:
        if not bound:
            made.kill("fund", signal.SIGTERM)
            made.start("fund", AnswersAnything())
        with pytest.raises(PeerError, match=r"\[plan\] the question is not signed"):
            made.run(made.trees())
        told = sum(line.told["cuts"] for line in made.logged("fund", "cuts"))
        assert told == (0 if bound else 1)
