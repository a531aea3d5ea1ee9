"""Networks for fraud: scores that are probabilities, and last layers that stay at their party."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from federated.party.party import Party
from federated.run import run
from federated.solvers.encoding import agree
from federated.solvers.network import NetworkSettings, PersonalSettings, personal, train
from federated.study.arms import perform
from federated.study.experiment import Experiment
from federated.study.result import Study
from lab.errors import ConfigurationError
from lab.models.design import Feature
from lab.models.glm import Task
from lab.models.network_model import Network, head, single_threaded
from lab.tables.contracts import draft
from tests.conftest import federate, split

FEATURES = ("amount", "days", "kind")


def claims(n: int, seed: int, turn: float = 0.0) -> pd.DataFrame:
    """Claims with a fraud in every fifteen; ``turn`` is what the amount means at this insurer."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "amount": rng.normal(size=n),
            "days": rng.normal(size=n),
            "kind": pd.Categorical(rng.choice(list("abc"), n)),
        }
    )
    kind = frame["kind"].map({"a": 0.0, "b": 0.5, "c": 1.0}).astype(float)
    eta = -4.1 + (1 + turn) * frame["amount"] + 0.8 * frame["days"].abs() + kind
    frame["fraud"] = (rng.random(n) < expit(eta)).astype(float)
    return frame


def fit(parts: list[pd.DataFrame], protection=None, **more) -> Network:
    shape = {"kind": "network", "family": "binomial", "hidden": (8,), "rounds": 10, "batches": 10}
    settings = NetworkSettings(**shape | more)
    task = Task(target="fraud", family="binomial")
    features = tuple(Feature(column=c) for c in FEATURES)
    single_threaded()

    def work(federation):
        encoding = agree(federation, task, features, draft(parts[0], "test"), 1)
        return train(federation, task, encoding, settings, seed=3)

    return federate(parts, work, protection)[0]


@pytest.mark.parametrize("imbalance", ["none", "weights", "focal"])
def test_scores_are_calibrated_probabilities(imbalance: str) -> None:
    model, test = fit(split(claims(9000, 1), 3), imbalance=imbalance), claims(60_000, 9)
    found = model.predict(test)
    assert found.sum() == pytest.approx(test["fraud"].sum(), rel=0.1)
    fifth = pd.qcut(found, 5, labels=False)
    table = pd.DataFrame({"found": found, "true": test["fraud"]}).groupby(fifth).mean()
    np.testing.assert_allclose(table["found"], table["true"], rtol=0.2, atol=0.005)
    if imbalance == "weights":  # what a weighted loss gives without the shift
        assert expit(logit(found) - model.recipe.intercept).mean() > 0.3


def test_class_weights_come_from_the_rate_of_all_parties() -> None:
    frame = claims(3000, 1).sort_values("fraud")  # the first two parties have no fraud at all
    parts = [frame.iloc[k : k + 1000] for k in (0, 1000, 2000)]
    model = fit(parts, imbalance="weights", rounds=1)
    assert model.recipe.intercept == pytest.approx(logit(frame["fraud"].mean()), rel=1e-9)


def test_paillier_gives_the_same_focal_network(paillier) -> None:
    parts, frame = split(claims(1500, 2), 3), claims(300, 8)
    few = {"imbalance": "focal", "rounds": 2}
    clear, hidden = fit(parts, **few), fit(parts, paillier, **few)
    np.testing.assert_allclose(hidden.predict(frame), clear.predict(frame), rtol=1e-5)


def deviance(model: Network, frame: pd.DataFrame) -> float:
    p, y = model.predict(frame), frame["fraud"]
    return float(-2 * np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def tuned(turns: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """Deviances of the shared and of the personal models, party by party."""
    sizes = (2500, 1500, 800)
    parts = [claims(n, 20 + k, t) for k, (n, t) in enumerate(zip(sizes, turns, strict=True))]
    shared = fit(parts)
    tests = [claims(20_000, 70 + k, t) for k, t in enumerate(turns)]
    own = [
        personal(Party(f"insurer {k}", part, part.iloc[:0]), shared, PersonalSettings(), seed=3)
        for k, part in enumerate(parts)
    ]
    return (
        [deviance(shared, t) for t in tests],
        [deviance(m, t) for m, t in zip(own, tests, strict=True)],
    )


def test_personal_layers_help_where_parties_differ() -> None:
    shared, own = tuned((1.0, -2.5, 1.0))
    assert own[1] < 0.75 * shared[1]
    assert np.mean(own) < 0.9 * np.mean(shared)


def test_personal_layers_cost_nothing_where_parties_do_not_differ() -> None:
    shared, own = tuned((0.0, 0.0, 0.0))
    np.testing.assert_array_less(own, np.multiply(shared, 1.01))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    path = tmp_path_factory.mktemp("claims") / "claims.csv"
    claims(1500, 5).to_csv(path, index=False)
    return Experiment.model_validate(
        {
            "name": "fraud",
            "data": {"path": str(path), "target": "fraud", "features": FEATURES},
            "parties": {"split": "uniform", "count": 3},
            "model": {
                "kind": "network",
                "family": "binomial",
                "imbalance": "weights",
                "hidden": [4],
                "rounds": 2,
            },
            "protection": {"sums": "clear"},
            "arms": {"run": ["federated", "personal"], "replicates": 5},
        }
    )


@pytest.fixture(scope="module")
def study(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run(experiment, runs=tmp_path_factory.mktemp("runs"), track=False)


def test_only_the_last_layer_is_personal_and_the_same_seed_gives_the_same_bits(
    study: Study, experiment: Experiment
) -> None:
    shared = study.arms["federated"].models["all"]["model"].model
    again = perform(experiment).arms["personal"].models
    for holder, parts in study.arms["personal"].models.items():
        model = parts["model"].model
        changed = {k for k, v in model.weights.items() if not v.equal(shared.weights[k])}
        assert changed == set(head(shared.recipe))
        assert parts["model"].json == again[holder]["model"].json


def test_nothing_of_a_personal_layer_leaves(study: Study, experiment: Experiment) -> None:
    arms = experiment.arms.model_copy(update={"run": ("federated",)})
    without = perform(experiment.model_copy(update={"arms": arms}))
    pd.testing.assert_frame_equal(study.receipt, without.receipt)


def test_personal_layers_are_scored_party_by_party_and_shown(study: Study) -> None:
    holders = {party.name for party in study.market.parties}
    assert set(study.scores.loc["personal"].index) == {"all", *holders}
    page = (study.folder / "report.html").read_text()
    assert "that layer stays there" in page
    assert ">personal</th>" in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms.run": '["personal", "federated"]'}, "list 'federated' before 'personal'"),
        ({"arms.run": '["personal"]'}, "list 'federated' before 'personal'"),
        ({"model.kind": "glm"}, "needs model.kind = 'network', got 'glm'"),
        ({"model.imbalance": "focal", "model.family": "poisson"}, "needs family = 'binomial'"),
        ({"model.imbalance": "smote"}, "imbalance"),
        ({"model.personal": "{ epoch = 3 }"}, "did you mean 'epochs'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    changes: dict[str, str], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "e.toml"
    path.write_text(
        'name = "t"\n[data]\npath = "t.csv"\ntarget = "y"\n[model]\n[arms]\nrun = ["federated", "personal"]'
    )
    with pytest.raises(ConfigurationError, match=words):
        Experiment.read(path, {"model.kind": "network"} | changes)
