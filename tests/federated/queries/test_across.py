"""Questions across an insurer and the fund: the answer is that of the table nobody has, as far as it may be shown."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.queries.desk import Desk
from federated.study.experiment import Experiment
from lab.errors import ConfigurationError, LabError, PolicyError
from lab.queries.pair_history import PairHistory
from lab.queries.questions import Axis, Question
from tests.federated.cli.test_main import lab

#: Persons of both tables, of the insurer's alone, of the fund's alone.
BOTH, OURS, THEIRS = 260, 60, 80
OPEN = """
minimum_count = { persons = 1, source = "a test" }
minimum_parties = { parties = 3, source = "a test" }
minimum_difference = { persons = 1, source = "a test" }
rounding = { base = 1, source = "a test" }
"""


def tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """The insurer's and the fund's, in orders of their own; one insured is 97 and at the fund."""
    rng, n = np.random.default_rng(5), BOTH + OURS + THEIRS
    frame = pd.DataFrame(
        {
            "person": [f"P-{k:04d}" for k in rng.permutation(n)],
            "region": rng.choice(["east", "north", "west"], n),
            "age": rng.integers(20, 80, n),
            "paid": rng.gamma(2.0, 300.0, n).round(2),
            "score": np.where(rng.random(n) < 0.1, np.nan, rng.normal(0, 5, n).round(3)),
            "chronic": rng.choice(["no", "yes"], n),
            "cost": rng.gamma(2.0, 50.0, n).round(2),
        }
    )
    frame.loc[3, "age"] = 97
    frame.loc[BOTH : BOTH + 20, "age"] = 97  # whom the fund does not know
    own = frame[["person", "region", "age", "paid", "score"]].iloc[: BOTH + OURS]
    fund = frame[["person", "chronic", "cost", "score"]].drop(index=range(BOTH, BOTH + OURS))
    return own, fund.rename(columns={"person": "card"}).sample(frac=1, random_state=2)


def experiment(folder: Path, rules: str | None = OPEN, **protection: Any) -> Experiment:
    own, fund = tables()
    own.to_csv(folder / "own.csv", index=False)
    fund.to_csv(folder / "fund.csv", index=False)
    if rules is not None:
        (folder / "rules.toml").write_text(rules)
        protection["disclosure"] = str(folder / "rules.toml")
    values = {
        "name": "pair",
        "data": {"target": ""},
        "joined": [
            {"role": "insurer", "name": "claims", "path": str(folder / "own.csv"), "key": "person"},
            {"role": "fund", "path": str(folder / "fund.csv"), "key": "card"},
        ],
        "model": {"kind": "glm"},
        "protection": {"sums": "clear", "key_bits": 2048} | protection,
    }
    return Experiment.model_validate(values)


def by_sqlite(sql: str) -> pd.DataFrame:
    """The same SELECT by SQLite over both tables."""
    with sqlite3.connect(":memory:") as store:
        own, fund = tables()
        own.to_sql("claims", store, index=False)
        fund.to_sql("fund", store, index=False)
        return pd.read_sql_query(sql, store)


JOIN = "from claims join fund on claims.person = fund.card"
SELECTS = (
    f"select chronic, count(*) as n, sum(paid) as s {JOIN} group by chronic",
    f"select region, count(*) as n, avg(fund.cost) as s, sum(cost) as t {JOIN} group by region",
    f"select chronic, region, count(*) as n, sum(paid) as s, sum(cost) as t {JOIN} group by chronic, region",
    f"select chronic, count(*) as n, count(fund.score) as m, sum(claims.score) as s {JOIN} "
    "where region <> 'north' and age between 30 and 70 and cost > 40 and (age < 40 or age > 50) "
    "group by chronic",
    f"select count(*) as n, avg(fund.score) as s {JOIN} where chronic = 'yes' and paid >= 200",
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Under rules that hide nothing but empty cells."""
    with Desk.on(experiment(tmp_path_factory.mktemp("pair")), runs=None) as one:
        yield one


@pytest.mark.parametrize("sql", SELECTS)
def test_answer_equals_the_same_select_over_the_joined_table(desk, sql):
    answer = desk.ask(sql)
    shown = answer.dropna(subset="n").reset_index(drop=True)
    wanted = by_sqlite(sql)
    groups = [name for name in ("chronic", "region") if name in wanted]
    wanted = wanted.sort_values(groups) if groups else wanted
    shown = shown.sort_values(groups) if groups else shown
    for name in wanted:
        got, right = shown[name].to_numpy(), wanted[name].to_numpy()
        if name in groups:
            assert list(got) == list(right)
        else:
            np.testing.assert_allclose(got.astype(float), right.astype(float), rtol=1e-9)


@pytest.mark.parametrize("product", ["triples", pytest.param("paillier", marks=pytest.mark.slow)])
def test_answer_under_encryption_is_that_in_the_clear(tmp_path, product):
    hidden = experiment(tmp_path, sums="paillier", product=product)
    with Desk.on(hidden, runs=None) as desk, Desk.on(experiment(tmp_path), runs=None) as clear:
        answers = [one.ask(SELECTS[0]) for one in (desk, clear)]
    pd.testing.assert_frame_equal(*answers)


def test_spread_of_an_amount_by_the_other_side_s_groups(desk):
    answer = desk.ask("select chronic, stddev(paid) as s from claims join fund group by chronic")
    own, fund = tables()
    whole = own.merge(fund, left_on="person", right_on="card")
    wanted = whole.groupby("chronic")["paid"].std()
    np.testing.assert_allclose(answer.dropna()["s"], wanted, rtol=1e-9)


def test_a_cell_of_few_persons_and_one_that_would_tell_it_are_hidden(tmp_path):
    sql = "select chronic, cut(age, 0, 90, 120), count(*) from claims join fund group by 1, 2"
    with Desk.on(experiment(tmp_path, rules=None), runs=None) as desk:
        answer = desk.ask(sql)
    assert answer["count(*)"].isna().all()  # each level of chronic less its part is one person


def test_an_amount_that_one_person_dominates_is_hidden(tmp_path):
    study = experiment(tmp_path, rules=None)
    own, fund = tables()
    first = own.index[own["person"].isin(fund.loc[fund["chronic"] == "yes", "card"])][0]
    own.loc[first, "paid"] = 1e6
    own.to_csv(tmp_path / "own.csv", index=False)
    with Desk.on(study, runs=None) as desk:
        answer = desk.ask(
            "select chronic, count(*), sum(paid) from claims join fund group by chronic"
        )
        alone = desk.ask("select chronic, count(*) from claims join fund group by chronic")
    shown = answer.set_index("chronic")["sum(paid)"]
    assert np.isnan(shown["yes"]) and alone["count(*)"].notna().sum() == 2


def test_two_answers_that_differ_by_one_common_person_are_not_both_given(tmp_path):
    """At the insurer 22 persons are 97, enough for its own rules; one of them is at the fund."""
    study, text = (
        experiment(tmp_path, rules=None),
        "select count(*), sum(cost) from claims join fund",
    )
    with Desk.on(study, runs=tmp_path / "runs") as desk:
        assert desk.ask(text)["count(*)"].notna().all()
    with Desk.on(study, runs=tmp_path / "runs") as desk:  # which a restart does not forget
        assert desk.ask(f"{text} where age <> 97")["count(*)"].isna().all()
        assert desk.ask(text)["count(*)"].notna().all()


def test_two_questions_at_once_are_not_answered_beside_each_other(tmp_path):
    """The second begins before the first is answered, by a history that lacks it."""
    study, text = experiment(tmp_path, rules=None), "select count(*) from claims join fund"
    runs = tmp_path / "runs"
    with Desk.on(study, runs=runs) as one, Desk.on(study, runs=runs) as other:
        history, refresh = one.federation.protection._releaser.history, PairHistory.refresh
        begun = lambda: (refresh(history), other.ask(text))  # noqa: E731
        history.refresh = begun
        with pytest.raises(PolicyError, match="answered meanwhile; ask again"):
            one.ask(f"{text} where age <> 97")
        history.refresh = lambda: refresh(history)
        assert one.ask(f"{text} where age <> 97")["count(*)"].isna().all()


def test_unprotected_two_answers_show_one_person_s_amount(tmp_path):
    study, text = experiment(tmp_path), "select sum(cost) as s from claims join fund"
    with Desk.on(study, runs=None) as desk:
        whole, rest = desk.ask(text), desk.ask(f"{text} where age <> 97")
    own, fund = tables()
    one = own.merge(fund, left_on="person", right_on="card").query("age == 97")
    np.testing.assert_allclose(whole["s"] - rest["s"], one["cost"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda own: own.drop(index=3), "who is at the insurer"),
        (lambda own: own.assign(paid=own["paid"] + (own.index == 3)), "'paid'"),
        (lambda own: own.assign(paid=own["paid"].to_numpy()[::-1]), "'paid'"),
    ],
)
def test_what_was_asked_about_may_not_change_under_the_same_history(tmp_path, change, what):
    study, text = experiment(tmp_path, rules=None), "select sum(paid) from claims join fund"
    with Desk.on(study, runs=tmp_path / "runs") as desk:
        desk.ask(text)
    own, _ = tables()
    change(own).to_csv(tmp_path / "own.csv", index=False)
    changed = pytest.raises(PolicyError, match=f"{what} changed")
    with Desk.on(study, runs=tmp_path / "runs") as desk, changed:
        desk.ask(text)


def test_other_columns_and_the_order_of_rows_may_change(tmp_path):
    study, text = experiment(tmp_path, rules=None), "select sum(paid) from claims join fund"
    with Desk.on(study, runs=tmp_path / "runs") as desk:
        before = desk.ask(text)
    own, _ = tables()
    own.assign(age=30).iloc[::-1].to_csv(tmp_path / "own.csv", index=False)
    with Desk.on(study, runs=tmp_path / "runs") as desk:
        pd.testing.assert_frame_equal(desk.ask(text), before)


def test_a_damaged_history_answers_nothing(tmp_path):
    study = experiment(tmp_path, rules=None)
    with Desk.on(study, runs=tmp_path / "runs") as desk:
        desk.ask("select count(*) from claims join fund")
    (file,) = (tmp_path / "runs" / "parties").glob("*.json")
    file.write_text(file.read_text()[:-5])
    with pytest.raises(ConfigurationError, match="history of questions cannot be used"):
        Desk.on(study, runs=tmp_path / "runs")


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("select count(*) from claims", "is of both; say FROM claims JOIN fund"),
        ("select count(*) from claims left join fund using (person)", "LEFT JOIN is not answered"),
        ("select count(*) from claims cross join fund", "CROSS JOIN is not answered"),
        ("select count(*) from claims join claims", "'claims' stands there twice"),
        ("select count(*) from claims join pool", "there is no table 'pool' here"),
        ("select count(*) from claims join fund on claims.age = fund.cost", "joined by the key"),
        ("select sum(score) from claims join fund", "say claims.score or fund.score"),
        ("select sum(fund.paid) from claims join fund", "no column 'fund.paid'"),
        ("select sum(pajd) from claims join fund", "did you mean 'paid'"),
        ("select count(*) from claims join fund where card = 'P-0001'", "it names a person"),
        ("select count(*) from claims join fund where age > 50 or cost > 9", "ask twice and add"),
        ("select sum(paid * cost) from claims join fund", "a product of two columns"),
        ("select violations() from claims join fund", "of a party's own table"),
    ],
)
def test_what_is_no_product_of_two_sides_is_refused_with_the_reason(desk, sql, reason):
    with pytest.raises(LabError, match=reason):
        desk.ask(sql)


def test_several_insurers_are_refused(tmp_path):
    study = experiment(tmp_path)
    several = study.model_copy(update={"parties": study.parties.model_copy(update={"count": 2})})
    with pytest.raises(ConfigurationError, match="asked of one insurer and the fund"):
        Desk.on(several, runs=None)


def test_a_side_answers_no_question_about_who_a_row_is(desk):
    """A desk that does not keep to the contract."""
    axis = Axis(column="person", levels=("P-0001",))
    question = Question(table=desk.contract.name, axes=(axis,))
    with pytest.raises(PolicyError, match="no question is about 'person' across these sides"):
        desk.totals(question)


def test_questions_that_tell_a_side_s_rows_apart_in_too_many_ways_are_refused(tmp_path):
    edges = ", ".join(map(str, range(0, 2000, 5)))
    with Desk.on(experiment(tmp_path), runs=None) as desk:
        desk.ask(f"select cut(paid, {edges}), count(*) from claims join fund group by 1")
        with pytest.raises(PolicyError, match="lets them tell 256 apart"):
            desk.ask(
                "select cut(age, 0, 30, 40, 50, 60, 99), count(*) from claims join fund group by 1"
            )


@pytest.mark.slow
def test_lab_query_names_both_sides_as_the_experiment_does(tmp_path):
    study = experiment(tmp_path, rules=None)
    blocks = "\n".join(
        f'[[joined]]\nrole = "{b.role}"\npath = "{b.path}"\nkey = "{b.key}"' for b in study.joined
    )
    file = tmp_path / "pair.toml"
    file.write_text(f'name = "pair"\n{blocks}\n[protection]\nkey_bits = 2048\n')
    sql = "select f.chronic, count(*), sum(c.paid) from insurer c join fund f group by f.chronic"
    result = lab("query", sql, "--experiment", file, "--runs", tmp_path / "runs")
    assert result.returncode == 0, result.stderr
    assert "sum(c.paid)" in result.stdout and "letters between the two sides" in result.stdout
    assert "parties," not in result.stdout
