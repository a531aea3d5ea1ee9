"""What a coordinator of its own mind gets from nodes beyond what was announced: nothing."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.deployment import plan
from federated.deployment.coordinator import study as conduct
from federated.deployment.dealt_tables import deal_tables
from federated.deployment.node.rules import policy as insurer
from federated.deployment.node.rules import settings as node_folder
from federated.deployment.node.rules.refusals import Refusal
from federated.hiding.paillier import terms_of
from federated.hiding.protocol import ask_sums, fields_of
from federated.messages import Request, message_of, one_form, read
from federated.study.experiment import Experiment
from federated.study.plan import StudyPlan
from federated.study.settings import Query
from lab.errors import PeerError, PolicyError
from lab.models import profile
from lab.models.profile import Profile, ProfileCells, Profiling
from lab.privacy.disclosure import Rules
from lab.privacy.noise import Noise
from lab.queries import cells
from lab.queries import sql_plan as sql
from lab.queries.query_table import QueryTable
from lab.queries.questions import ROWS, Axis, Compare, Question, Total
from lab.sums import Sums
from lab.tables.contracts import Contract
from secure_agg import shares
from secure_agg.packing import Layout
from secure_agg.transcript import Contribution, Transcript
from tests.federated.deployment.test_models import CONTRACT, Payers, claims, profiled
from tests.rigs.trial import Trial, started

RULES = Rules.read()
TRIAL = Contract.model_validate(
    {
        "name": "trial",
        "columns": {
            "x": {"type": "number", "minimum": 0, "maximum": 4},
            "cost": {"type": "number", "minimum": 0, "maximum": 1e6},
        },
    }
)
X = Axis(column="x", edges=(0.0, 1.0, 2.0))


def query_table(rows: int, folder: Path | None = None, **more: Any) -> QueryTable:
    frame = pd.DataFrame({"x": np.linspace(0, 2, rows), "cost": 1.0})
    return QueryTable(frame, TRIAL, RULES, folder=folder, **more)


def asked(question: Question) -> dict[str, Any]:
    return {
        "question": json.loads(question.model_dump_json()),
        "rules": json.loads(RULES.model_dump_json()),
    }


@pytest.mark.parametrize("statistic", ["violations", "drift"])
def test_a_party_of_noise_alone_answers_nothing_without(statistic: str) -> None:
    """A noise that is named and never made would be an exact answer that costs nothing."""
    party = query_table(100, noised=True)
    told = asked(Question(table="trial", axes=(X,), noise=Noise(epsilon=0.1)))
    with pytest.raises(PolicyError, match="noise is for counts and sums alone"):
        party.violations(told) if statistic == "violations" else party.drift(told, np.ones(2))


@pytest.mark.parametrize("stored", [False, True])
def test_drift_is_told_from_one_market(stored: bool, tmp_path: Path) -> None:
    """Which of many shares a party is near to is its own share; so is what its index is from two."""
    folder = tmp_path if stored else None
    party = query_table(100, folder)
    told = asked(Question(table="trial", axes=(X,)))
    first = party.drift(told, np.array([0.5, 0.5]))
    assert party.drift(told, np.array([0.5, 0.5])).total("index") == first.total("index")
    same = Axis(column="x", edges=(0.0, 1.001, 2.0))
    again = query_table(100, folder) if stored else party
    for axis in (X, same):
        with pytest.raises(PolicyError, match="other shares than before"):
            again.drift(asked(Question(table="trial", axes=(axis,))), np.array([0.4, 0.6]))


@pytest.mark.parametrize("text", ["select count(*) from trial", "select sum(cost) from trial"])
@pytest.mark.parametrize("statistic", ["violations", "drift"])
def test_a_question_is_asked_by_its_own_name(text: str, statistic: str) -> None:
    question = Question(table="trial")
    assert sql.belongs(question, text, TRIAL, None)
    assert not sql.belongs(question, text, TRIAL, None, statistic)
    own = {
        "violations": "select violations() from trial",
        "drift": "select drift(x, 0, 1, 2) from trial",
    }
    axes = (X,) if statistic == "drift" else ()
    question = question.model_copy(update={"axes": axes})
    assert sql.belongs(question, own[statistic], TRIAL, None, statistic)


def test_a_profile_tells_no_mean_of_a_single_claim() -> None:
    only = Compare(column="age", operation="=", value=87)
    told = Profiling(name="k", by="provider", day="day", means=("cost",), where=only)
    asked_of = ProfileCells(asked=told, numbers=(11,), first=0, periods=1)
    for alone in (True, False):
        arrays: dict[str, Any] = {}
        for party in range(3):
            frame = pd.DataFrame({"person": range(20), "provider": 11, "day": 3, "cost": 9.0})
            frame["age"] = np.where(frame.index <= 20 * (not alone) - (party > 0), 87, 40)
            sums = profile.sums(frame, asked_of, "person")
            arrays = {n: sums[n] + arrays.get(n, 0.0) for n in sums.arrays}
        found = Profile.of(asked_of, profile.release(asked_of, RULES, Sums(arrays, sums.limits, 0)))
        assert found.columns["k_mean_cost"] == ((None,) if alone else (9.0,))


def summed(centre: float) -> Question:
    total = Total(kind="sum", columns=("cost",), centres=(centre,))
    return Question(table="trial", totals=(ROWS, total))


def test_a_sum_is_around_a_centre_only_where_its_answer_needs_one() -> None:
    text = "select sum(cost) from trial"
    assert sql.belongs(summed(0.0), text, TRIAL, None)
    assert not sql.belongs(summed(5e5), text, TRIAL, None)
    assert sql.belongs(summed(5e5), "select variance(cost) from trial", TRIAL, None)


def test_a_centre_does_not_hide_that_one_person_has_nearly_all() -> None:
    """The sum around any centre and the rows give the sum."""
    frames = [pd.DataFrame({"x": 1.0, "cost": np.ones(40)}) for _ in range(3)]
    frames[0].loc[0, "cost"] = 1e6
    for centre in (0.0, 5e5):
        question = summed(centre)
        parts = [QueryTable(f, TRIAL, RULES).answer(asked(question)) for f in frames]
        total = {name: np.sum([p[name] for p in parts], axis=0) for name in parts[0].arrays}
        shown = cells.release(question, RULES, Sums(total, parts[0].limits, 120))["shown"]
        assert not shown.any(), centre


def test_a_column_that_never_leaves_marks_no_rows_and_nobody(trial: Trial) -> None:
    settings = node_folder.NodeSettings.read(trial.root / "insurer 1")
    node = insurer.InsurerPolicy(trial.root / "insurer 1", settings, trial.charter)
    told = plan.announced(trial.experiment(0))
    node.consider(told)
    for change in ({"test_column": "secret", "test_value": 1}, {"person": "secret"}):
        data = told.experiment.data.model_copy(update=change)
        with pytest.raises(Refusal, match=r"\[(never_leaves|rows)\] .*secret"):
            node.consider(
                told.model_copy(
                    update={"experiment": told.experiment.model_copy(update={"data": data})}
                )
            )


def test_which_rows_are_held_out_is_the_nodes_own_and_no_file_moves_a_person(
    trial: Trial,
) -> None:
    """Two shares of testing that differ by one person, or two seeds, told that person's loss."""
    folder = trial.root / "insurer 1"
    settings = node_folder.NodeSettings.read(folder)
    assert settings.data is not None
    own = {"test_column": None, "test_value": None}
    drawn = settings.model_copy(update={"data": settings.data.model_copy(update=own)})
    node = insurer.InsurerPolicy(folder, drawn, trial.charter)

    def changed(seed: int, **changes: Any) -> StudyPlan:
        told = trial.experiment(0)
        data = told.data.model_copy(update={"test_column": None, "test_value": None, **changes})
        return plan.announced(told.model_copy(update={"seed": seed, "data": data}))

    sides = [node.party(changed(seed, test=0.2), b"own").test.index for seed in (1, 2)]
    assert len(sides[0]) > 0 and sides[0].equals(sides[1])
    assert not node.party(changed(1, test=0.2), b"another's").test.index.equals(sides[0])
    node.consider(changed(1, test=0.2))
    with pytest.raises(Refusal, match=r"\[rows\] data.test_share of node.toml is 0.2; .* 0.20125"):
        node.consider(changed(1, test=0.20125))


def test_rows_are_capped_as_node_toml_says(trial: Trial) -> None:
    """The largest claim of the market was found by bisection over caps, from 56 totals."""
    folder = trial.root / "insurer 2"
    settings = node_folder.NodeSettings.read(folder)
    assert settings.data is not None

    def node(**caps: float) -> insurer.InsurerPolicy:
        data = settings.data.model_copy(update={"caps": caps})  # type: ignore[union-attr]
        own = settings.model_copy(update={"data": data})
        return insurer.InsurerPolicy(folder, own, trial.charter)

    def plan_with(**caps: float) -> StudyPlan:
        told = trial.experiment(0)
        data = told.data.model_copy(update={"cap": caps})
        return plan.announced(told.model_copy(update={"data": data}))

    node(x1=1.0, y5=9.0).consider(plan_with(x1=1.0))  # y5 has no part in this plan
    for own, theirs, words in (
        ({"x1": 1.0}, {"x1": 1.5}, r"plan has 'x1' capped at 1.5 .* allows 'x1' capped at 1 in"),
        ({"x1": 1.0}, {}, r"plan has no cap of 'x1' .* allows 'x1' capped at 1 in data.caps"),
        ({}, {"y5": 9.0}, r"plan has 'y5' capped at 9 .* allows no cap of 'y5' in data.caps"),
    ):
        with pytest.raises(Refusal, match=rf"\[rows\] the {words}"):
            node(**own).consider(plan_with(**theirs))
    for cap in range(2, insurer.MOST_VARIANTS + 1):
        node(x1=cap).consider(plan_with(x1=cap))
    with pytest.raises(Refusal, match=r"\[rows\] .* 5 variants of data.cap and data.missing, ever"):
        node(x1=0.5).consider(plan_with(x1=0.5))


def test_profiles_are_answered_in_few_variants(trial: Trial) -> None:
    """Two profiles whose comparisons differ by one claim would tell it."""
    folder = trial.root / "insurer 3"
    node = insurer.InsurerPolicy(folder, node_folder.NodeSettings.read(folder), trial.charter)

    def asked(above: float, name: str = "k") -> Experiment:
        where = Compare(column="x1", operation=">", value=above)
        profile = Profiling(name=name, by="provider", day="day", where=where)
        return trial.experiment(0).model_copy(update={"profile": (profile,)})

    for at in range(insurer.MOST_VARIANTS):
        node._note_variants(asked(1.0 + at))
        node._note_variants(asked(1.0, "another_name"))
    with pytest.raises(Refusal, match=r"5 variants of \[\[profile\]\], ever"):
        node._note_variants(asked(0.5))


def test_no_cell_of_fewer_persons_than_minimum_rows_is_opened(trial: Trial) -> None:
    """The limit looked at all rows of the table, and cells at the rules alone."""
    settings = node_folder.NodeSettings.read(trial.root / "insurer 1")
    node = insurer.InsurerPolicy(trial.root / "insurer 1", settings, trial.charter)
    node._check_minimum(trial.experiment(0))
    node.limits = settings.limits.model_copy(update={"minimum_rows": 11})
    with pytest.raises(Refusal, match=r"\[minimum_rows\] .* cells of 10 persons, and 11 are"):
        node._check_minimum(trial.experiment(0))


def test_a_model_is_asked_of_the_announced_target_alone(trial: Trial) -> None:
    settings = node_folder.NodeSettings.read(trial.root / "insurer 1")
    node = insurer.InsurerPolicy(trial.root / "insurer 1", settings, trial.charter)
    told, other = (plan.announced(trial.experiment(k)) for k in (0, 1))
    (ours,), (another,) = (s.experiment.tasks().values() for s in (told, other))
    node.allow_statistic(told, "totals", json.dumps({"task": ours.model_dump(mode="json")}))
    with pytest.raises(Refusal, match="this target was not announced"):
        node.allow_statistic(told, "totals", json.dumps({"task": another.model_dump(mode="json")}))


def test_what_a_person_approves_is_what_a_terminal_shows(trial: Trial) -> None:
    hidden = "select sum(x1) from trial\x1b[2K\x1b[1Gselect count(*) from trial\n\u202e"
    told = plan.questions_of(trial.experiment(0, query=[Query(sql=hidden)]))
    assert told.title.isprintable() and "sum(x1)" in told.title


@pytest.fixture(scope="module")
def trial(tmp_path_factory: Any, authority_key: Any) -> Trial:
    return Trial(tmp_path_factory.mktemp("attacked"), authority_key, insurers=3, rows=60)


def transcript_of(federation: Any, request: Request) -> Transcript:
    replies = ask_sums(federation, request)
    roster, public = federation.charter.roster, federation.charter.key.public
    layout = Layout(fields_of(one_form(replies)), len(replies), public.bits)
    terms = terms_of(request, roster, public, layout)
    given = tuple(Contribution.from_bytes(r.hidden or b"") for r in replies.values())
    return Transcript(terms, given)


@pytest.mark.slow
def test_with_a_split_key_nobody_opens_a_question_as_a_sum_of_a_model(
    tmp_path: Path, authority_key: Any
) -> None:
    """A query's name says what it was about: neither another run nor another sum takes it."""
    made = Trial(tmp_path, authority_key, insurers=3, split=True, rows=100)
    for name in made.insurers:
        made.limits(name, analyses='["glm", "questions"]')
        settings = made.root / name / node_folder.SETTINGS
        settings.write_text(settings.read_text().replace("# person = ", "person = "))
    text = "select count(*) from trial where x1 > 2.3"  # of few, whom no answer shows
    with started(made):
        experiment = made.experiment(0, query=[{"sql": text}])
        told = plan.questions_of(experiment)
        question = sql.compile(text, told.contract).question
        with conduct.gathered(experiment, told, made.exchange) as federation:
            query = f"{federation.resumable_run.run}-9"
            request = Request(
                query, "cells", asked(question), {}, "paillier", made.insurers, made.charter.digest
            )
            transcript = transcript_of(federation, request)
        experiment = made.experiment(0)
        task = experiment.tasks()["model"].model_dump(mode="json")
        with conduct.gathered(experiment, plan.announced(experiment), made.exchange) as other:
            model = replace(
                request,
                statistic="totals",
                arguments={"task": task, "part": "train", "most": [2.0**40] * 4},
            )
            with pytest.raises(PeerError, match="sends a query of another run"):
                stolen(other, model, transcript)


def stolen(federation: Any, model: Request, transcript: Transcript) -> list[Any]:
    ask_sums(federation, model)
    told = message_of(transcript=transcript.to_bytes())
    answers = federation.ask("query.part", dict.fromkeys(federation.names, told))
    split = federation.protection.opener._holders._split
    parts = {n: shares.Part.from_bytes(read(a, "part"), split) for n, a in answers.items()}
    return shares.combine(split, federation.charter.roster, transcript, parts)


def test_a_query_stands_for_one_statistic() -> None:
    from flwr.app import Context, RecordDict

    from federated.party.state import NodeState

    context = Context(0, 0, {"partition-id": 0}, RecordDict(), {})
    memory = NodeState(context, "insurer 1", "paillier")
    memory.remember("7-1", "profile")
    memory.remember("7-1", "profile")
    with pytest.raises(PeerError, match="was about another statistic before"):
        memory.remember("7-1", "totals")
    assert memory.asked("7-1") == "profile"


def gives_no_profile(node: Any) -> None:
    honest = node._answers.answer

    def answer(kept: Any, message_of: Any, message: Any, log: Any) -> Any:
        asked = message.content.config_records.get("request", {})
        if asked.get("statistic") == "profile":
            raise PolicyError("[mood] not this one")
        return honest(kept, message_of, message, log)

    node._answers.answer = answer


class FourPayers(Payers):
    """One more than the least that a total is opened of."""

    def _tables(self, insurers: int, rows: int) -> dict[str, tuple[Path, Path]]:
        self.contract = self.root / "claims.toml"
        self.contract.write_text(CONTRACT.replace('"c"]', '"c", "d"]'))
        frame = claims(rows * insurers)
        frame.loc[::4, "payer"] = "d"
        frame.to_parquet(self.root / "claims.parquet", index=False)
        pd.DataFrame({"provider": [11, 12]}).to_csv(self.root / "register.csv", index=False)
        dealt = deal_tables(profiled(self.root), self.root / "tables")
        return {n: (at / "table.parquet", at / "contract.toml") for n, at in dealt.items()}


@pytest.mark.slow
def test_one_insurer_does_not_end_all_profiles_for_good(tmp_path: Path, authority_key: Any) -> None:
    """A profile of the others, once opened, would show it in every later one of all."""
    made = FourPayers(tmp_path, authority_key, rows=300)
    with started(made):
        made.kill("payer b", signal.SIGTERM)
        made.start("payer b", gives_no_profile)
        with pytest.raises(PeerError, match=r"'profile' needs all parties: payer b"):
            made.run(profiled(made.root))
        made.kill("payer b", signal.SIGTERM)
        made.start("payer b")
        found = made.run(profiled(made.root))
        assert {party.state for party in found.outlook} == {"took part"}
