"""Nobody leaves an answer in silence: curves and intervals beside the pooled rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from federated.hiding.protocol import Clear
from federated.queries.desk import Desk
from federated.queries.holdings import Holdings
from lab.errors import ConfigurationError, ModelError
from lab.privacy.disclosure import Rules
from lab.privacy.noise import Noise
from lab.queries.questions import Axis, Compare
from lab.queries.sql_plan import belongs
from lab.tables.contracts import Contract
from tests.federated.queries.test_desk import OPEN, dealt, questions

CONTRACT = Contract.model_validate(
    {
        "name": "leavers",
        "columns": {
            "days": {"type": "number", "nullable": True},
            "died": {"type": "integer", "minimum": 0, "maximum": 1, "nullable": True},
            "status": {"type": "integer", "minimum": 0, "maximum": 2},
            "sex": {"type": "category", "levels": ["f", "m"]},
            "months": {"type": "integer", "minimum": 0, "maximum": 24},
        },
    }
)


def leavers(rows: int, seed: int, longest: int = 20) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "days": rng.integers(0, longest + 1, rows).astype(float),
            "died": rng.integers(0, 2, rows).astype(float),
            "status": 0,
            "sex": rng.choice(["f", "m"], rows),
            "months": rng.integers(0, 25, rows),
        }
    )


def desk(frame: pd.DataFrame, rules: Rules = OPEN, **more: Any) -> Desk:
    holdings = Holdings.of(dealt(frame), CONTRACT, rules, **more)
    return Desk.simulated(holdings, Clear(rules), workers=1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**20), last=st.integers(4, 19), first=st.integers(0, 1))
def test_who_leaves_after_the_last_edge_is_at_risk_up_to_it(
    seed: int, last: int, first: int
) -> None:
    frame = leavers(600, seed)
    edges = ", ".join(str(edge) for edge in range(first, last + 1))
    with desk(frame) as opened:
        found = opened.ask(
            f"select sex, survival(days, died, {edges}, {last + 1}) from leavers group by sex"
        )
        test = opened.ask(
            f"select log_rank(days, died, {edges}, {last + 1}) from leavers group by sex"
        )
    assert found.attrs["left_out"] == 0
    cut = frame.assign(
        died=frame["died"].where(frame["days"] <= last + 1, 0),
        days=frame["days"].clip(lower=1, upper=last + 1),
    )
    for sex, part in cut.groupby("sex"):
        wanted = SurvfuncRight(part["days"], part["died"])
        curve = found[found["sex"] == sex]
        at = np.searchsorted(wanted.surv_times, curve["end"], side="right") - 1
        same = curve["end"] == wanted.surv_times[at]
        np.testing.assert_allclose(curve["survival"], wanted.surv_prob[at], rtol=1e-9)
        np.testing.assert_allclose(curve["at_risk"][same], wanted.n_risk[at][same])
        assert curve["events"].sum() + curve["censored"].sum() == len(part)
    assert test["chi2"][0] == pytest.approx(survdiff(cut["days"], cut["died"], cut["sex"])[0])


def test_a_curve_may_end_where_nobody_or_few_are_left() -> None:
    """Nobody past the last edge is no hidden cell; few are, and the curve says where."""
    frame, rules = leavers(1200, 1), Rules.read()
    text = "select survival(days, died, 0, 10, {}) from leavers"
    with desk(frame, rules) as opened:
        assert opened.ask(text.format(30))["at_risk"].tolist()[0] == 1200
    frame.loc[:3, "days"] = 40.0
    with desk(frame, rules) as opened, pytest.raises(ModelError, match=r"hidden: all \(10, 30\]"):
        opened.ask(text.format(30))


def test_rows_without_a_time_or_an_event_are_left_out_and_counted() -> None:
    frame = leavers(900, 2)
    frame.loc[:39, "died"], frame.loc[20:59, "days"] = np.nan, np.nan
    with desk(frame, Rules.read()) as opened:
        found = opened.ask("select survival(days, died, 0, 5, 10) from leavers")
    full = frame.dropna()
    assert found.attrs["left_out"] == 60 and found["at_risk"][0] == len(full)
    assert found["events"].sum() == full[full["days"] <= 10]["died"].sum()


@pytest.mark.parametrize(("rows", "number"), [(60, "60"), (4, "some")])
def test_times_below_0_are_refused(rows: int, number: str) -> None:
    frame = leavers(900, 3)
    women = frame.index[frame["sex"] == "f"]
    frame.loc[women[:rows], "days"] = -1.0
    text = "select survival(days, died, 0, 5, 10) from leavers where sex = 'f'"
    refused = pytest.raises(ModelError, match=f"^{number} rows stand .* add where days >= 0")
    with desk(frame, Rules.read()) as opened, refused:
        opened.ask(text)
    with desk(frame, Rules.read()) as opened:
        found = opened.ask(f"{text} and days >= 0")
    assert found["at_risk"][0] == (frame.query("sex == 'f'")["days"] >= 0).sum()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("select survival(days, status, 0, 5) from leavers", "'status' must be 1 for the event"),
        ("select survival(days, died, -1, 5) from leavers", "time starts at 0"),
        ("select survival(days) from leavers", "takes 2 columns"),
    ],
)
def test_what_is_no_time_and_no_event_is_refused(text: str, reason: str) -> None:
    with desk(leavers(60, 4)) as opened, pytest.raises(ConfigurationError, match=reason):
        opened.ask(text)


def test_no_curve_is_drawn_through_noise_or_rounded_counts() -> None:
    text = "select survival(months, died) from leavers"
    rounded = OPEN.model_copy(update={"rounding": OPEN.rounding.model_copy(update={"base": 10})})
    with desk(leavers(60, 4)) as opened, pytest.raises(ConfigurationError, match="noise"):
        opened.ask(text, noise=Noise(epsilon=1.0))
    with desk(leavers(60, 4), rounded) as opened, pytest.raises(ConfigurationError, match="round"):
        opened.ask(text)


def test_an_answer_says_how_many_rows_are_in_none_of_its_cells() -> None:
    frame = leavers(900, 5)
    frame.loc[:89, "days"] = np.nan
    outside = int((frame["days"] > 15).sum())
    with desk(frame, Rules.read()) as opened:
        cut = opened.ask(
            "select cut(days, 0, 5, 15), count(*) n from leavers group by cut(days, 0, 5, 15)"
        )
        assert cut.attrs["left_out"] == outside == 900 - cut["n"].sum()
        assert opened.ask("select histogram(days, 0, 15) from leavers").attrs["left_out"] == outside
        median = opened.ask(
            "select cut(days, 0, 5, 15), median(months) m from leavers group by cut(days, 0, 5, 15)"
        )
        assert median.attrs["left_out"] == outside
        assert (
            opened.ask("select drift(days, 0, 5, 15) from leavers").attrs["left_out"]
            == outside + 90
        )
        assert opened.ask("select drift(months, 0, 12, 24) from leavers").attrs["left_out"] == 0


def test_a_matrix_says_how_many_rows_have_an_empty_value() -> None:
    frame = leavers(200, 5)
    frame.loc[:19, "days"] = np.nan
    with desk(frame) as opened:
        full = opened.ask("select correlation(days, months) from leavers")
    assert full.attrs["left_out"] == 20


def test_a_number_of_few_rows_outside_is_held_back() -> None:
    frame = leavers(900, 6)
    frame.loc[frame.index[frame["sex"] == "f"][:4], "days"] = 99.0
    text = "select histogram(days, 0, 5, 20) from leavers where days is not null and sex = 'f'"
    with desk(frame, Rules.read()) as opened:
        assert opened.ask(text).attrs["left_out"] is None


PAYMENTS = Contract.model_validate(
    {
        "name": "payments",
        "columns": {
            "accident": {"type": "integer", "minimum": 2015, "maximum": 2018},
            "year": {"type": "integer", "minimum": 2012, "maximum": 2020, "nullable": True},
            "lag": {"type": "integer", "minimum": 1, "maximum": 5},
            "paid": {"type": "number"},
        },
    }
)


def payments(rows: int = 600, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    accident = rng.integers(2015, 2019, rows)
    lag = rng.integers(1, 2020 - accident)
    paid = np.where(lag > 1, rng.gamma(2, 100, rows), 0.0)
    return pd.DataFrame(
        {"accident": accident, "year": accident + lag - 1.0, "lag": lag, "paid": paid}
    )


@pytest.mark.parametrize("development", ["year", "lag"])
def test_a_triangle_starts_with_its_origins(development: str) -> None:
    """Lags from 1, a first period without payments, a calendar that starts before the origins."""
    frame = payments()
    frame.loc[:19, "year"] = np.nan
    used = frame.dropna(subset=[development])
    with Desk.simulated(Holdings.of(dealt(frame), PAYMENTS, OPEN), Clear(OPEN)) as opened:
        found = opened.ask(f"select triangle(paid, accident, {development}) from payments")
    table = used.pivot_table(index="accident", columns="lag", values="paid", aggfunc="sum")
    totals = table.cumsum(axis=1)
    second, third = (totals[k + 1].sum() / totals[k][totals[k + 1].notna()].sum() for k in (2, 3))
    wanted = [
        totals.loc[2015, 4],
        totals.loc[2016, 3] * third,
        totals.loc[2017, 2] * second * third,
    ]
    np.testing.assert_allclose(found["ultimate"], [*wanted, np.nan])
    assert found.attrs["unpaid"] == (2018,)
    assert found.attrs["left_out"] == len(frame) - len(used)


def test_payments_before_their_origin_are_refused() -> None:
    frame = payments()
    frame.loc[:19, "year"] = 2013.0
    frame.loc[:19, "paid"] = 1.0
    with (
        Desk.simulated(Holdings.of(dealt(frame), PAYMENTS, OPEN), Clear(OPEN)) as opened,
        pytest.raises(ModelError, match="'year' before their 'accident'"),
    ):
        opened.ask("select triangle(paid, accident, year) from payments")


@pytest.mark.parametrize(
    "text",
    [
        "select sex, survival(days, died, 0, 5, 10) from leavers where months > 3 group by sex",
        "select log_rank(days, died, 0, 5, 10) from leavers group by sex",
        "select survival(months, died) from leavers",
        "select cut(days, 0, 5), count(*) from leavers where months > 3 group by 1",
        "select correlation(days, months) from leavers",
        "select drift(days, 0, 5, 10) from leavers",
    ],
)
def test_all_that_is_asked_for_an_answer_belongs_to_it(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A party that has approved the text answers each of its questions, and no wider one."""
    with desk(leavers(600, 7)) as opened:
        for question in questions(opened, text, monkeypatch):
            assert belongs(question, text, CONTRACT, None)
            where = Compare(column="status", operation="=", value=0.0)
            assert not belongs(question.model_copy(update={"where": where}), text, CONTRACT, None)
            wider = Axis(column="months", edges=(0.0, 12.0, 24.0))
            assert not belongs(question.model_copy(update={"axes": (wider,)}), text, CONTRACT, None)
