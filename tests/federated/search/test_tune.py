"""A search by federated cross-validation: right scores, the same trials again, honest refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st

from federated.search.cross_validation import FOLDS, Cost
from federated.search.folds import check_folds, parts
from federated.search.proposals import Proposals
from federated.search.tune import Tuned, tune
from federated.study.experiment import Experiment
from federated.study.settings import Tune
from federated.study.simulation import SimulatedMarket
from lab.errors import ConfigurationError, ModelError
from lab.tables.partition import folds


def searched(path: Path, **changes: Any) -> Tuned:
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    return tune(Experiment.read(path, settings), runs=path.parent / "runs", workers=2)


def chosen(tuned: Tuned) -> list[tuple[Any, float | None]]:
    return [(trial.settings, trial.score) for trial in tuned.trials]


@given(st.integers(2, 9), st.binary(min_size=1), st.integers(1, 60))
def test_a_person_is_in_one_fold_and_every_fold_is_one_of_them(
    count: int, secret: bytes, persons: int
) -> None:
    owners = pd.Series(np.repeat(np.arange(persons), 3))
    drawn = folds(owners, count, secret, "cross-validation")
    assert pd.Series(drawn).groupby(owners).nunique().max() == 1
    assert set(drawn) <= set(range(count))


def test_folds_are_about_equal_and_only_the_secret_tells_them() -> None:
    owners = pd.Series(np.arange(20_000))
    own, other = (folds(owners, 5, secret, "cross-validation") for secret in (b"one", b"two"))
    assert np.abs(np.bincount(own) / 4_000 - 1).max() < 0.05
    assert 0.18 < (own == other).mean() < 0.22


def test_every_training_row_is_judged_once_and_no_test_row_ever(claims: Path) -> None:
    market = SimulatedMarket(Experiment.read(claims))
    for k, party in enumerate(market.parties):
        cuts = [parts(market.parties, 3, at, FOLDS)[k] for at in range(3)]
        judged = pd.concat([cut.test for cut in cuts]).index
        assert sorted(judged) == sorted(party.train.index)
        assert all(not set(cut.test["person"]) & set(cut.train["person"]) for cut in cuts)
        assert not set(judged) & set(party.test.index)


def test_a_score_is_that_of_statsmodels_on_the_pooled_folds(claims: Path) -> None:
    market = SimulatedMarket(Experiment.read(claims))
    deviance = null = 0.0
    for at in range(3):
        cuts = parts(market.parties, 3, at, FOLDS)
        train, test = (pd.concat([getattr(c, n) for c in cuts]) for n in ("train", "test"))
        family = sm.families.Poisson()
        x = [sm.add_constant(rows[["age", "bonus"]]) for rows in (train, test)]
        fit = sm.GLM(train.claims, x[0], family=family).fit(tol=1e-14)
        deviance += family.deviance(test.claims, fit.predict(x[1]))
        null += family.deviance(test.claims, np.full(len(test), train.claims.mean()))
    assert searched(claims).trials[0].score == pytest.approx(1 - deviance / null, rel=1e-8)


def test_a_score_does_not_depend_on_how_sums_are_hidden(claims: Path) -> None:
    change = {"tune__vary": '{"model.ridge" = [0.0]}', "protection__key_bits": 2048}
    clear, hidden = (
        searched(claims, protection__sums=sums, **change).trials[0].score
        for sums in ("clear", "paillier")
    )
    assert hidden == pytest.approx(clear, rel=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_the_same_seed_gives_the_same_trials_and_the_same_best(claims: Path, method: str) -> None:
    change = {
        "tune__method": method,
        "tune__trials": 4,
        "tune__vary": '{"model.ridge" = { low = 1e-4, high = 1.0, log = true }}',
    }
    first = searched(claims, **change)
    (first.folder / "trials.jsonl").unlink()
    again = searched(claims, **change)
    assert chosen(first) == chosen(again) and first.best == again.best
    assert chosen(searched(claims, seed=4, **change))[1:] != chosen(first)[1:]


def test_a_search_goes_on_where_it_was_and_runs_no_trial_twice(claims: Path) -> None:
    change = {"tune.method": "tpe", "tune.vary": '{"model.ridge" = { low = 0.1, high = 1.0 }}'}
    costs: list[Cost] = []

    def trials(count: int) -> Tuned:
        experiment = Experiment.read(claims, change | {"tune.trials": count})
        return tune(experiment, runs=claims.parent / "runs", told=costs.append)

    first = trials(2)
    assert [(cost.fits, cost.kept) for cost in costs] == [(9, 0), (8, 0)]
    assert costs[1].seconds and costs[1].totals
    lines = first.folder / "trials.jsonl"
    whole = lines.read_text()
    lines.write_text(whole[:-20])  # as if it had been stopped while it wrote
    costs.clear()
    assert chosen(trials(2)) == chosen(first)
    assert (costs[0].fits, costs[0].kept) == (3, 2)
    costs.clear()
    assert chosen(trials(2)) == chosen(first) and not costs
    assert chosen(trials(3))[:3] == chosen(first)
    assert len(lines.read_text().splitlines()) == 4


def test_the_best_is_a_new_experiment_file(claims: Path) -> None:
    tuned = searched(claims)
    ridge = tuned.trials[tuned.best].settings["model.ridge"]
    best = Experiment.read(tuned.file)
    assert (best.model.ridge, best.tune, best.name) == (ridge, None, "claims, tuned")
    assert f"ridge = {ridge}" in tuned.toml
    tuned.file.write_text("name = 'of a person'")
    assert searched(claims).file.read_text() == "name = 'of a person'"


def test_a_trial_that_fails_is_a_row_with_its_reason(claims: Path) -> None:
    tuned = searched(claims, data__features='["age", "years"]')
    failed, *others = tuned.trials
    assert failed.score is None and "collinear" in failed.reason
    assert all(trial.score is not None for trial in others)
    assert tuned.best > 0
    with pytest.raises(ModelError, match="no trial has a score"):
        searched(claims, data__features='["age", "years"]', tune__vary='{"model.ridge" = [0.0]}')


def test_a_column_that_never_varies_does_not_end_a_trial(claims: Path) -> None:
    table = pd.read_csv(claims.parent / "claims.csv").assign(years=30)
    table.to_csv(claims.parent / "claims.csv", index=False)
    tuned = searched(claims, data__features='["bonus", "years"]')
    assert all(trial.score is not None for trial in tuned.trials)


@pytest.mark.slow
def test_an_outer_loop_judges_what_was_chosen_without_its_fold(claims: Path) -> None:
    tuned = searched(claims, tune__outer=2)
    assert len(tuned.nested) == 2 and all(len(each.folds) == 1 for each in tuned.nested)
    gains, sizes = zip(*(each.folds[0] for each in tuned.nested), strict=True)
    assert tuned.nested_score == pytest.approx(sum(gains) / sum(sizes))
    assert tuned.result()["cost"]["fits"] == 3 * 3 * 3 + 2


def test_a_fraud_detector_is_searched_by_average_precision(claims: Path) -> None:
    table = pd.read_csv(claims.parent / "claims.csv")
    table.assign(claims=(table["claims"] > 0).astype(int)).to_csv(
        claims.parent / "claims.csv", index=False
    )
    tuned = searched(claims, model__family="binomial", detection="{ budget = 0.1 }")
    assert tuned.experiment.headline == "average_precision"
    assert all(0 < trial.score < 1 for trial in tuned.trials if trial.score is not None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vary": '{"model.ridg" = [1.0]}'}, r"trial 1 \(model.ridg = 1\).*did you mean 'ridge'"),
        ({"vary": '{"model.ridge" = [0.1, -1.0]}'}, r"trial 2 \(model.ridge = -1\).*greater than"),
        ({"vary": '{"model.family" = ["gamma"]}'}, "another measure"),
        ({"vary": '{"data.test" = [0.1]}'}, "keys of .model. alone"),
        ({"vary": '{"model.ridge" = { low = 0.1, high = 1.0 }}'}, "list of values, not a range"),
        ({"vary": '{"model.ridge" = []}'}, "at least one value"),
        ({"vary": '{"model.ridge" = { low = 2.0, high = 1.0 }}'}, "low must be below high"),
        ({"trials": 3}, "a grid tries every combination"),
        ({"metod": "grid"}, "did you mean 'method'"),
        ({"folds": 90}, "persons would be judged in fold"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    claims: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"(?s){words}"):
        searched(claims, **{f"tune__{key}": value for key, value in change.items()})
    assert not list((claims.parent / "runs").glob("tune*/trials.jsonl"))


def test_the_ends_of_a_range_are_looked_at_too(claims: Path) -> None:
    vary = '{"model.ridge" = { low = -1.0, high = 1.0 }}'
    with pytest.raises(ConfigurationError, match=r"model.ridge = -1\)"):
        searched(claims, tune__method="tpe", tune__vary=vary)


def test_without_a_table_to_search_and_for_joined_sides_it_is_said_so() -> None:
    with pytest.raises(ConfigurationError, match=r"no \[tune.vary\]"):
        tune(Experiment.read("rand_hie"), runs=Path("nowhere"))
    joined = Experiment.read("dvisits", {"tune.vary": '{"model.ridge" = [0.0]}'})
    with pytest.raises(ConfigurationError, match="lab sweep"):
        tune(joined, runs=Path("nowhere"))


def test_folds_without_a_row_to_fit_are_refused(claims: Path) -> None:
    market = SimulatedMarket(Experiment.read(claims))
    first, *others = market.parties
    few = [replace(first, train=first.train.iloc[:1]), *others]
    with pytest.raises(ConfigurationError, match="no training rows without fold"):
        check_folds(market, few, 2, FOLDS)


def test_a_grid_is_in_the_order_of_its_file_and_nested_tables_are_keys() -> None:
    vary = {"model": {"depth": [3, 2], "hidden": [[8], [4, 2]]}}
    tune_table = Tune.model_validate({"vary": vary, "method": "grid"})
    assert [list(s.values()) for s in Proposals(tune_table, 0)] == [
        [3, [8]],
        [3, [4, 2]],
        [2, [8]],
        [2, [4, 2]],
    ]
    beside = {"model": {"depth": [3, 2]}, "model.hidden": [[8], [4, 2]], "method": "grid"}
    assert Tune.model_validate(beside) == tune_table
    large = {"vary": {f"model.{k}": list(range(10)) for k in "abcde"}, "method": "grid"}
    with pytest.raises(ConfigurationError, match="at most 10,000 points"):
        Proposals(Tune.model_validate(large), 0)
