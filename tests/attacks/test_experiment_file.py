"""An analyst with nothing but an experiment file has honest runs show one person.

Keys of the file once chose rows: the seed and the share for testing, caps, the seed of dropout. Two
runs that differ by one person's row show her; so does one in which she is the only one tested.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from federated.deployment.node.rules import policy
from federated.deployment.node.rules.policy import InsurerPolicy
from federated.deployment.node.rules.refusals import Refusal
from federated.deployment.plan import announced
from federated.party.party import Party
from federated.solvers.trees import TreesSettings
from federated.study.outcome import fit_models
from federated.study.plan import StudyPlan
from lab.models.design import Encoding, Feature, Number
from lab.models.families import Family, Scale
from lab.models.glm import Task
from lab.models.network import _own_seed
from lab.models.network_model import Bends, NetworkRecipe
from lab.sums import Floats
from lab.tables.partition import drawn
from tests.attacks.setting import bisected, federation_of, insurers, nodes_of, outcome_of
from tests.attacks.setting import plan_of as persons_plan
from tests.rigs.trial import Trial

SEED = 7


@pytest.fixture(scope="module")
def trial(tmp_path_factory: Any, authority_key: Any) -> Trial:
    return Trial(tmp_path_factory.mktemp("files"), authority_key, insurers=3, rows=150)


@pytest.fixture
def nodes(trial: Trial) -> list[InsurerPolicy]:
    return nodes_of(trial)


def plan_of(trial: Trial, seed: int = SEED, **data: Any) -> StudyPlan:
    """What the analyst's file announces."""
    experiment = trial.experiment(0)
    values = experiment.data.model_copy(update={"test_column": None, "test_value": None, **data})
    return announced(experiment.model_copy(update={"seed": seed, "data": values}))


def claims(nodes: list[InsurerPolicy]) -> pd.Series:
    """The target in all insurers' rows."""
    return pd.concat([node.table().frame["y0"] for node in nodes], ignore_index=True)


# Nested shares for testing.


def difference(nodes: list[InsurerPolicy], trial: Trial, shares: tuple[float, float]) -> Floats:
    """By how many rows, and how much of the target, two shares for testing differ."""
    outcomes = [outcome_of(nodes, plan_of(trial, test=share)) for share in shares]
    totals = [outcome.evaluations["model"].fit for outcome in outcomes]
    fewer, more = ([total["size"][0], total["actual"][0]] for total in totals)
    return np.subtract(more, fewer)


def narrowed(nodes: list[InsurerPolicy], trial: Trial) -> tuple[tuple[float, float], Floats]:
    """Two shares that one row lies between, by halving, and what they differ by."""
    low, high = 0.2, 0.25
    while (gap := difference(nodes, trial, (low, high)))[0] != 1:
        middle = (low + high) / 2
        lower = difference(nodes, trial, (low, middle))[0] > 0
        low, high = (low, middle) if lower else (middle, high)
    return (low, high), gap


def test_where_the_file_sets_the_share_for_testing_two_shares_show_one_row(
    trial: Trial, nodes: list[InsurerPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unprotected twin: the share is the file's, drawn with the insurer's own secret even so."""

    def marks(node: InsurerPolicy, frame: pd.DataFrame, experiment: Any, secret: bytes) -> Any:
        return drawn(pd.Series(np.arange(len(frame))), experiment.data.test, secret, "for testing")

    monkeypatch.setattr(InsurerPolicy, "_check_shares", lambda node, experiment: None)
    monkeypatch.setattr(InsurerPolicy, "_marks", marks)
    shares, gap = narrowed(nodes, trial)
    side, other = (
        np.concatenate(
            [
                drawn(pd.Series(np.arange(150)), share, node.settings.name.encode(), "for testing")
                for node in nodes
            ]
        )
        for share in shares
    )
    assert (side != other).sum() == 1
    assert gap[1] == claims(nodes)[side != other].item()


def test_an_insurer_takes_part_at_its_own_share_for_testing_alone(
    trial: Trial, nodes: list[InsurerPolicy]
) -> None:
    with pytest.raises(
        Refusal,
        match=r"\[rows\] data.test_share of node.toml is 0.2; the plan has data.test = 0.25",
    ):
        narrowed(nodes, trial)


# Caps.


def largest(nodes: list[InsurerPolicy], trial: Trial) -> int:
    """The market's largest number of claims in training rows: a cap below it changes their mean."""

    def mean(cap: float) -> float:
        return outcome_of(nodes, plan_of(trial, test=0.2, cap={"y0": cap})).constants["model"]

    whole = mean(1e6)
    return int(bisected(0.0, 64.0, lambda cap: mean(cap) != whole, 0.5))


def test_where_caps_are_free_halving_finds_the_largest_claim(
    trial: Trial, nodes: list[InsurerPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unprotected twin."""
    monkeypatch.setattr(policy, "MOST_VARIANTS", 1_000)
    monkeypatch.setattr(InsurerPolicy, "_check_caps", lambda node, caps, columns: None)
    training = [node.party(plan_of(trial, test=0.2), node.settings.name.encode()) for node in nodes]
    assert largest(nodes, trial) == max(party.train["y0"].max() for party in training)


def largest_of_two_runs(nodes: list[InsurerPolicy], trial: Trial, cap: float) -> float:
    """The largest x1 in training rows, by a cap between the two largest values and by none."""

    def total(cap: dict[str, float]) -> float:
        data = {"test": 0.2, "target": "x1", "features": ("x2",), "cap": cap}
        outcome = outcome_of(nodes, plan_of(trial, **data))
        return float(outcome.constants["model"].rate * outcome.models["model"].fit.rows)

    return cap + total({}) - total({"x1": cap})


def two_largest(nodes: list[InsurerPolicy], trial: Trial) -> tuple[float, float]:
    """Of x1 in training rows, the largest first."""
    parties = [node.party(plan_of(trial, test=0.2), node.settings.name.encode()) for node in nodes]
    second, first = sorted(value for party in parties for value in party.train["x1"])[-2:]
    return first, second


def test_where_caps_are_free_two_runs_read_the_largest_value(
    trial: Trial, nodes: list[InsurerPolicy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unprotected twin: few ways of capping are too many."""
    monkeypatch.setattr(InsurerPolicy, "_check_caps", lambda node, caps, columns: None)
    first, second = two_largest(nodes, trial)
    assert largest_of_two_runs(nodes, trial, (first + second) / 2) == pytest.approx(first)


def test_an_insurer_takes_part_at_its_own_caps_alone(
    trial: Trial, nodes: list[InsurerPolicy]
) -> None:
    words = r"\[rows\] the plan has 'x1' capped at .*; this party's node.toml allows no cap of 'x1'"
    with pytest.raises(Refusal, match=words):
        largest_of_two_runs(nodes, trial, sum(two_largest(nodes, trial)) / 2)
    with pytest.raises(Refusal, match=r"\[rows\] the plan has 'y0' capped at 1000000"):
        largest(nodes, trial)


# Seeds.

#: A number of a person in the middle of the third insurer's table.
HER_INSURER, HER_PLACE, SHARE = 2, 50, 1 / 400


def by_the_file(seed: int) -> bytes:
    """The secret of insurers that draw by the file's seed, as simulated ones do."""
    return f"rows {seed}".encode()


def claims_of(number: int, secret: Callable[[int], bytes]) -> float:
    """A person's claims: from the loss of whoever judges trees, under a seed that holds out her."""
    numbers = pd.concat([party.train.index.to_series() for party in insurers(bound=False)])
    draws = (numbers[drawn(numbers, SHARE, by_the_file(k), "held out")] for k in itertools.count())
    seed = next(k for k, held in enumerate(draws) if held.tolist() == [number])
    plan = persons_plan("trees")
    model = {"family": "poisson", "trees": 1, "validation_share": SHARE}
    changes = {"seed": seed, "model": plan.experiment.model.model_copy(update=model)}
    experiment = plan.experiment.model_copy(update=changes)
    with federation_of(insurers(bound=False, rows_secret=secret(seed))) as federation:
        fitted = fit_models(experiment, plan.features, plan.joined, federation)["model"]
    mean, loss = np.exp(fitted.model.intercept), fitted.trace["validation"][0]
    deviance = Family.make("poisson").deviance(np.arange(20.0), np.full(20, mean))
    return float(np.abs(deviance - loss).argmin())


def test_where_the_file_s_seed_draws_rows_one_is_found_that_shows_a_person() -> None:
    """The unprotected twin."""
    her = insurers(bound=False)[HER_INSURER].train.iloc[HER_PLACE]
    assert claims_of(int(str(her.name)), by_the_file) == her["claims"]


def test_no_seed_of_a_file_says_who_is_held_out() -> None:
    """The same loss comes out whoever is looked for."""
    persons = insurers(bound=False)[HER_INSURER].train.iloc[HER_PLACE : HER_PLACE + 5]
    losses = {claims_of(int(number), lambda seed: b"an insurer's own") for number in persons.index}
    assert persons["claims"].nunique() > 2 and len(losses) == 1


def test_an_insurer_holds_out_its_own_share_of_persons(
    trial: Trial, nodes: list[InsurerPolicy]
) -> None:
    model = TreesSettings(kind="trees", validation_share=SHARE)
    plan = plan_of(trial, test=0.2)
    experiment = plan.experiment.model_copy(update={"model": model})
    words = r"\[rows\] data.validation_share of node.toml is 0.2; .* = 0.0025"
    with pytest.raises(Refusal, match=words):
        nodes[0]._check_shares(experiment)


# Dropout.

DROPOUT, AGE = 0.995, Feature(column="age")
RECIPE = NetworkRecipe(
    hidden=(1,),
    embedding=0,
    dropout=DROPOUT,
    intercept=0.0,
    epochs=1,
    batches=1,
    weight_decay=0.0,
)
#: A network that predicts e claims for rows that are not dropped out, and 1 for those that are.
WEIGHTS = {
    "layer.0.weight": np.zeros((1, 1)),
    "layer.0.bias": np.ones(1),
    "layer.1.weight": np.full((1, 1), 1 - DROPOUT),
    "layer.1.bias": np.zeros(1),
}


def drawing_by(secret: bytes) -> list[Party]:
    """Insurers that draw by their name and a secret."""
    parties = insurers(bound=False)
    for party in parties:
        party.secret = secret + party.name.encode()
    return parties


def survivors(parties: list[Party], seed: int) -> list[tuple[int, int]]:
    """Insurer and place of each row that is not dropped out."""
    rows = []
    for k, party in enumerate(parties):
        generator = torch.Generator().manual_seed(_own_seed(party, seed, 0))
        order = torch.randperm(len(party.train), generator=generator)
        stays = torch.rand(len(order), 1, generator=generator) >= DROPOUT
        rows += [(k, int(place)) for place in order[stays[:, 0]]]
    return rows


def claims_by_dropout(insurer: int, place: int, secret: bytes) -> float:
    """Claims from the loss of a network's first round, under a seed that drops out all but her."""
    secretless = drawing_by(b"")
    seed = next(k for k in itertools.count() if survivors(secretless, k) == [(insurer, place)])
    arguments = {
        "task": Task(target="claims"),
        "encoding": Encoding(numbers=(Number(feature=AGE, mean=0.0, scale=1.0),)),
        "bends": Bends(knots=((0.0, 90.0),)),
        "recipe": RECIPE,
        "learning_rate": 1e-3,
        "proximal_mu": 0.0,
        "round": 0,
        "seed": seed,
        "scale": Scale(rows=400, weight=1, exposure=1, target=1, square=2),
    }
    with federation_of(drawing_by(secret)) as federation:
        loss = federation.sum("network_update", WEIGHTS, **arguments).total("loss")
    return float(400 - 1 + np.e - loss)


def test_where_the_file_s_seed_drops_rows_out_one_is_found_that_leaves_one_person() -> None:
    """The unprotected twin."""
    her = insurers(bound=False)[HER_INSURER].train.iloc[HER_PLACE]
    claims = claims_by_dropout(HER_INSURER, HER_PLACE, b"")
    assert claims == pytest.approx(her["claims"], abs=1e-3)


def test_insurers_drop_rows_out_by_a_secret() -> None:
    her = insurers(bound=False)[HER_INSURER].train.iloc[HER_PLACE]
    claims = claims_by_dropout(HER_INSURER, HER_PLACE, b"an insurer's own")
    assert claims != pytest.approx(her["claims"], abs=1e-3)
