"""How much may be asked: quotas for each asker, cells that are left, refusals over all runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from federated.hiding.paillier import KeyAuthority, Paillier
from federated.hiding.protocol import Clear
from federated.queries.desk import Desk
from federated.queries.holdings import Holdings
from lab.errors import ConfigurationError, PolicyError
from lab.privacy.disclosure import Rules
from lab.queries.query_table import MOST_REFUSALS
from lab.tables.contracts import Column, Contract
from secure_agg.keys import PrivateKey

VISITS = Contract(
    name="visits",
    columns={
        "person": Column(type="integer", role="identifier"),
        "year": Column(type="integer", minimum=1, maximum=5),
        "bill": Column(type="number", minimum=0, maximum=40_000),
        "visits": Column(type="integer", minimum=0, maximum=200),
        "diseases": Column(type="number", minimum=0, maximum=60),
        "income": Column(type="number", nullable=True),
    },
)
#: Rules that do not look at amounts, which a large bill would break.
OPEN = Rules.read().model_copy(update={"dominance": None, "p_percent": None})
COUNT = "select count(*) from visits"


def panel(people: int, seed: int) -> pd.DataFrame:
    """Persons with a row for each of three or five years; bills are skewed, some have none."""
    rng = np.random.default_rng(seed)
    years = np.where(rng.random(people) < 0.3, 5, 3)
    person = np.repeat(np.arange(people), years)
    rows = len(person)
    return pd.DataFrame(
        {
            "person": person,
            "year": np.concatenate([np.arange(1, count + 1) for count in years]),
            "bill": np.where(rng.random(rows) < 0.2, 0, rng.lognormal(3.8, 1.6, rows)).clip(0, 4e4),
            "visits": rng.negative_binomial(1, 0.25, rows).clip(0, 200),
            "diseases": np.repeat(
                rng.choice([0.0, 10.5, 13.7, 21.0], people, p=[5, 3, 1, 1] / np.array(10)), years
            ),
            "income": np.where(rng.random(rows) < 0.1, np.nan, rng.normal(9, 1, rows)),
        }
    )


def sites() -> dict[str, pd.DataFrame]:
    sizes = (1145, 1090, 570, 620, 700, 900)
    return {f"site {k + 1}": panel(size, k) for k, size in enumerate(sizes)}


def holdings(folder: Path | None = None) -> Holdings:
    return Holdings.of(sites(), VISITS, person="person", folder=folder)


def desk() -> Desk:
    return Desk.simulated(holdings(), Clear(), workers=1)


def test_means_by_year_of_a_panel_are_shown_for_every_year() -> None:
    """Persons were counted in the year of their first row alone, and later years were hidden."""
    pooled = pd.concat(sites().values()).groupby("year")
    with desk() as asked:
        answer = asked.ask("select year, avg(visits) as mean from visits group by year")
    assert answer["mean"].to_numpy() == pytest.approx(pooled["visits"].mean().to_numpy())


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_quantiles_of_a_skewed_column_are_narrow(share: float) -> None:
    pooled = pd.concat(sites().values())["bill"]
    with desk() as asked:
        answer = asked.ask(f"select quantile(bill, {share}) as q from visits").iloc[0]
    assert answer["q from"] <= pooled.quantile(share) <= answer["q to"]
    assert answer["q to"] - answer["q from"] <= 0.25 * pooled.quantile(share)


def test_correlations_of_columns_with_rare_values_are_those_of_pandas() -> None:
    pooled = pd.concat(sites().values())[["visits", "bill", "diseases"]]
    with desk() as asked:
        answer = asked.ask("select correlation(visits, bill, diseases) from visits")
    np.testing.assert_allclose(answer.to_numpy(), pooled.corr().to_numpy(), atol=1e-9)


def test_a_correlation_of_columns_with_gaps_is_that_of_the_complete_rows() -> None:
    pooled = pd.concat(sites().values())[["income", "bill", "visits"]].dropna()
    with desk() as asked:
        answer = asked.ask("select correlation(income, bill, visits) from visits")
    np.testing.assert_allclose(answer.to_numpy(), pooled.corr().to_numpy(), atol=1e-9)


def total_before_and_after(folder: Path | None, later: Path | None) -> tuple[float, float]:
    """What is shown of the bills of one year before and after a victim's row is added."""
    text = "select sum(bill) as bills from visits where year = 2"
    before = sites()
    victim = pd.DataFrame(
        {
            "person": 77_777,
            "year": 2,
            "bill": 39_999.5,
            "visits": 3,
            "diseases": 10.5,
            "income": 9.0,
        },
        index=[0],
    )
    after = before | {"site 3": pd.concat([before["site 3"], victim], ignore_index=True)}
    bills = []
    for tables, place in ((before, folder), (after, later)):
        held = Holdings.of(tables, VISITS, OPEN, person="person", folder=place)
        with Desk.simulated(held, Clear(OPEN), workers=1) as asked:
            bills.append(float(asked.ask(text)["bills"].iloc[0]))
    return bills[0], bills[1]


def test_the_same_question_before_and_after_one_row_does_not_tell_it(tmp_path: Path) -> None:
    before, after = total_before_and_after(tmp_path, tmp_path)
    assert before > 0
    assert np.isnan(after)
    # The unprotected twin: every state of the table has a history of its own.
    before, after = total_before_and_after(tmp_path / "first", tmp_path / "second")
    assert after - before == pytest.approx(39_999.5)


def test_an_answer_tells_how_much_is_left() -> None:
    with desk() as asked:
        answer = asked.ask(COUNT)
        first = answer.attrs["left"]
        assert answer.attrs["asked"] == 1
        assert answer.attrs["hidden_by"] == ("persons", "parties", "earlier answers")
        rows = np.array([len(table) for table in sites().values()])
        assert 0.9 * rows.mean() / 10 < first <= rows.mean() / 10
        sums = asked.ask("select year, sum(bill) from visits group by year")
        assert sums.attrs["asked"] == 1 + len(sums)
        assert sums.attrs["hidden_by"][2:] == ("amounts", "margins", "earlier answers")
        asked.ask("select histogram(bill, 0, 1, 20, 40, 80, 160, 320) from visits")
        assert asked.ask(COUNT).attrs["left"] <= first


def test_an_asker_gets_no_more_cells_than_its_quota_and_another_has_its_own(
    tmp_path: Path,
) -> None:
    held = holdings(tmp_path)
    first = held.parties[0].query_table
    assert first is not None
    first.quota = 12
    with Desk.simulated(held, Clear(), workers=1) as asked:
        answer = asked.ask("select year, count(*) from visits group by year")
        assert answer.attrs["left"] < 1000
        asked.ask("select year, count(*) from visits group by year")
        with pytest.raises(PolicyError, match=r"\[quota\] analyst may ask for 12 cells here"):
            asked.ask("select year, count(*) from visits group by year")
        assert first.counters.of("cells analyst") == 10  # what is refused is not counted
        first.asker = "actuary"
        assert asked.ask(COUNT)["count(*)"].notna().all()


def test_refusals_are_counted_over_all_runs(tmp_path: Path, authority_key: PrivateKey) -> None:
    """Each run forgot them; a refusal that is no rule's can tell something of the rows."""

    def ask() -> None:
        with Desk.simulated(holdings(tmp_path), Paillier(KeyAuthority(authority_key))) as asked:
            asked.ask(COUNT)

    history = tmp_path / "site-1" / "history.db"
    ask()
    whole = history.read_bytes()
    history.write_bytes(b"damaged" * 1000)
    for _ in range(MOST_REFUSALS):
        with pytest.raises(ConfigurationError, match="history of questions cannot be used"):
            ask()
    history.write_bytes(whole)
    with pytest.raises(PolicyError, match=r"refused 10 questions in all its runs"):
        ask()
    (tmp_path / "site-1" / "counters.db").unlink()
    ask()
