"""Questions to real parties: their answers, and what each party keeps to whoever asks."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from federated.deployment import plan
from federated.deployment.coordinator import study as conduct
from federated.deployment.node import approval
from federated.deployment.node.rules import policy as insurer
from federated.deployment.node.rules.settings import QUESTIONS, SETTINGS, NodeSettings
from federated.hiding.protocol import Clear
from federated.queries.desk import Desk
from federated.queries.holdings import Holdings
from lab.errors import ConfigurationError, PeerError
from lab.privacy.budget import PrivacyBudget
from lab.privacy.disclosure import Rules
from lab.queries.query_table import Budget
from lab.tables.contracts import Contract
from tests.rigs.trial import Trial, started

WHOLE = "select count(*), avg(x1) from trial"
GROUPS = "select cut(x1, -4, 0, 4), count(*), avg(x2) from trial group by cut(x1, -4, 0, 4)"
MEDIAN = "select median(x1, -4, 4) from trial"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: Any, authority_key: Any) -> Iterator[Trial]:
    made = Trial(tmp_path_factory.mktemp("asked"), authority_key, rows=400)
    for name in made.insurers:
        made.limits(name, analyses='["glm", "questions"]')
        settings = made.root / name / SETTINGS
        text = settings.read_text().replace("# person = ", "person = ")
        settings.write_text(text + "[budget]\nepsilon = 2.0\ndelta = 1e-6\n")
    with started(made):
        yield made


def answers(trial: Trial, *texts: str, **more: Any) -> list[pd.DataFrame]:
    noise = {"noise": {"epsilon": more.pop("epsilon")}} if "epsilon" in more else {}
    experiment = trial.experiment(0, query=[{"sql": text, **noise} for text in texts])
    found = conduct.ask_questions(experiment, trial.exchange, fresh=True, **more)
    return [answer for _, answer in found]


def changed(trial: Trial, name: str, **limits: str) -> None:
    trial.kill(name, signal.SIGTERM)
    trial.limits(name, **limits)
    trial.start(name)


def test_real_parties_answer_as_simulated_ones(asked: Trial) -> None:
    tables = {n: pd.read_parquet(asked.root / f"{n}.parquet") for n in asked.insurers}
    holdings = Holdings.of(tables, Contract.read(asked.contract))
    with Desk.simulated(holdings, Clear()) as desk:
        expected = [desk.ask(text) for text in (WHOLE, GROUPS)]
    found = answers(asked, WHOLE, GROUPS)
    for here, there in zip(found, expected, strict=True):
        pd.testing.assert_frame_equal(here, there, rtol=1e-12)
        assert here.attrs["hiding"] == "paillier"
        assert {line["party"] for line in here.attrs["receipt"]} == set(asked.insurers)
    opened = asked.logged("supervisor", "release")
    assert {line.told["statistic"] for line in opened} == {"cells"}
    assert len(asked.logged("insurer 1", "release")) == len(opened)


@pytest.mark.slow
def test_a_run_gives_the_answers_beside_its_model(asked: Trial, tmp_path: Path) -> None:
    from federated.run import run

    experiment = asked.experiment(1, query=[{"sql": WHOLE, "title": "Everybody"}])
    study = run(experiment, exchange=asked.exchange, runs=tmp_path, track=False)
    ((query, answer),) = study.answers
    assert query.title == "Everybody" and answer["count(*)"].item() == 1600
    result = json.loads((study.folder / "result.json").read_text())
    assert result["answers"][0]["rows"][0][0] == 1600
    assert "Everybody" in (study.folder / "report.html").read_text()


def test_what_a_party_answered_narrows_what_it_answers_after_a_restart(asked: Trial) -> None:
    """Two counts that differ by a few persons of each party would show these."""
    edge = pd.concat(
        [pd.read_parquet(asked.root / f"{n}.parquet") for n in asked.insurers]
    ).x1.nlargest(200)
    first = f"select count(*) from trial where x1 < {edge.iloc[-1]:.6f}"
    (whole,) = answers(asked, first)
    assert whole["count(*)"].notna().all()
    for name in asked.insurers:
        changed(asked, name)
    (narrower,) = answers(asked, f"select count(*) from trial where x1 < {edge.iloc[190]:.6f}")
    assert narrower["count(*)"].isna().all()


def test_a_question_is_answered_by_all_or_by_none(asked: Trial) -> None:
    answers(asked, WHOLE)  # opened with all of them
    changed(asked, "insurer 2", analyses='["glm"]')
    try:
        with pytest.raises(
            PeerError, match=r"insurer 2: \[analyses\] this party does not take part in"
        ):
            answers(asked, WHOLE)
        with pytest.raises(PeerError, match="would show insurer 2's own sum"):
            answers(asked, WHOLE, without=["insurer 2"])
    finally:
        changed(asked, "insurer 2", analyses='["glm", "questions"]')
    with pytest.raises(ConfigurationError, match="the charter's insurers are insurer 1, insur"):
        answers(asked, WHOLE, without=["insurer 9"])


def test_columns_that_never_leave_are_in_no_question(asked: Trial) -> None:
    changed(asked, "insurer 3", never_leaves='["x2"]')
    with pytest.raises(PeerError, match=r"insurer 3: \[never_leaves\] x2 may not be used"):
        answers(asked, "select avg(x2) from trial")
    changed(asked, "insurer 3", never_leaves="[]")


def test_a_wrong_question_is_told_before_anybody_is_asked(asked: Trial) -> None:
    before = len(asked.logged("insurer 1", "request"))
    with pytest.raises(ConfigurationError, match="no question is about 'secret'"):
        answers(asked, "select avg(secret) from trial")
    assert len(asked.logged("insurer 1", "request")) == before


@pytest.mark.parametrize("text", ["select avg(x2) from trial", "select count(*) from trial"])
def test_another_question_than_was_announced_is_refused(asked: Trial, text: str) -> None:
    """The coordinator announces one thing, which a person may have approved, and asks another."""
    announced = {"sql": "select count(*) from trial", "noise": {"epsilon": 0.5}}
    experiment = asked.experiment(0, query=[announced])
    told = plan.questions_of(experiment)
    with (
        pytest.raises(PeerError, match="this question was not announced"),
        conduct.gathered(experiment, told, asked.exchange, fresh=True) as federation,
    ):
        Desk(federation, told.contract, Rules.read(), None).ask(text)


def test_noise_is_paid_from_a_budget_that_outlasts_the_process(asked: Trial) -> None:
    (noised,) = answers(asked, "select count(*) from trial", epsilon=1.5)
    low, high = noised["count(*) from"].item(), noised["count(*) to"].item()
    assert 0 < high - low < 200 and abs((low + high) / 2 - 1600) < 5 * (high - low)
    paid = asked.logged("insurer 1", "budget")
    assert [line.told["epsilon"] for line in paid] == [1.5]
    for name in asked.insurers:
        changed(asked, name)
    with pytest.raises(PeerError, match=r"epsilon 1\.5 of 2 is spent"):
        answers(asked, "select count(*) from trial", epsilon=1.0)
    ledger = PrivacyBudget(asked.root / "insurer 1" / QUESTIONS / "budget.db", 2.0, 1e-6)
    assert ledger.spent() == pytest.approx(1.5)


def test_a_person_sees_a_question_before_it_is_answered(asked: Trial) -> None:
    changed(asked, "insurer 4", approval='"always"')
    text = "select sum(x1 * x2) from trial"
    with pytest.raises(PeerError, match=r"insurer 4: \[approval\] waits for a person"):
        answers(asked, text)
    ((digest, study),) = approval.waiting(asked.root / "insurer 4").items()
    assert [query.sql for query in study.experiment.query] == [text]
    approval.approve(asked.root / "insurer 4", digest, "Li Wei")
    (answer,) = answers(asked, text)
    told = asked.logged("insurer 4", "approval")[-1].told
    assert (told["statistic"], told["by"]) == (text, "Li Wei")
    assert answer.notna().all(axis=None)
    changed(asked, "insurer 4", approval='"never"')


def test_a_quantile_is_within_its_interval(asked: Trial) -> None:
    (found,) = answers(asked, MEDIAN)
    tables = [pd.read_parquet(asked.root / f"{name}.parquet") for name in asked.insurers]
    low, high = (found[f"median(x1, -4, 4) {end}"].item() for end in ("from", "to"))
    assert low <= pd.concat(tables).x1.median() <= high


def test_a_node_that_knows_whose_rows_they_are_lets_nobody_say_otherwise(asked: Trial) -> None:
    settings = NodeSettings.read(asked.root / "insurer 1")
    assert settings.data is not None
    told = plan.questions_of(asked.experiment(0, query=[{"sql": WHOLE}]))
    for own in ("y1", None):
        data = settings.data.model_copy(update={"person": own})
        here = settings.model_copy(update={"data": data})
        node = insurer.InsurerPolicy(asked.root / "insurer 1", here, asked.charter)
        with pytest.raises(insurer.Refusal, match=r"\[person\]"):
            node.consider(told)
    data = told.experiment.data.model_copy(update={"person": "y1"})
    here = settings.model_copy(update={"data": settings.data.model_copy(update={"person": "y1"})})
    node = insurer.InsurerPolicy(asked.root / "insurer 1", here, asked.charter)
    node.consider(
        told.model_copy(update={"experiment": told.experiment.model_copy(update={"data": data})})
    )


@pytest.mark.slow
def test_with_a_split_key_all_parties_are_behind_every_total(
    tmp_path: Path, authority_key: Any
) -> None:
    """Nobody sees all openings, so nobody could tell what sets of parties would show."""
    made = Trial(tmp_path, authority_key, split=True, rows=300)
    for name in made.insurers:
        made.limits(name, analyses='["glm", "questions"]')
        settings = made.root / name / SETTINGS
        settings.write_text(settings.read_text().replace("# person = ", "person = "))
    with started(made):
        (answer,) = answers(made, WHOLE)
        assert answer["count(*)"].item() == 1200
        experiment = made.experiment(0)
        (task,) = experiment.tasks().values()
        told = plan.announced(experiment)
        with (
            pytest.raises(PeerError, match="a sum has at least 4 parties here, not 3"),
            conduct.gathered(experiment, told, made.exchange) as federation,
        ):
            federation._least, federation.members = 3, federation.members[1:]
            federation.sum("totals", task=task, part="train", most=(2.0**40,) * 4)


def test_the_charter_bounds_every_budget(asked: Trial) -> None:
    limits = asked.charter.limits.model_copy(update={"epsilon": 0.5, "delta": 1e-7})
    stricter = asked.charter.model_copy(update={"limits": limits})
    settings = NodeSettings.read(asked.root / "insurer 1")
    node = insurer.InsurerPolicy(asked.root / "insurer 1", settings, stricter)
    assert node._budget() == Budget(epsilon=0.5, delta=1e-7)
