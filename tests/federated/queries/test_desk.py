"""Questions to all parties: the answer is the one of the pooled rows, as far as it may be shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from federated.cli.main import main
from federated.hiding.paillier import Dealer, KeyAuthority, Paillier
from federated.hiding.protocol import Clear, Protection
from federated.queries.desk import Desk
from federated.queries.holdings import Holdings
from lab.errors import ConfigurationError, ContractError, ModelError
from lab.privacy.disclosure import Rules
from lab.queries import actuarial
from lab.queries import sql_plan as sql
from lab.queries.questions import Axis, Compare, Every, Question, Total
from lab.tables.checks import broken
from lab.tables.contracts import Contract
from tests.conftest import split
from tests.federated.cli.test_main import RAND, lab

#: Rules that hide nothing but empty cells.
OPEN = Rules.model_validate(
    {
        "minimum_count": {"persons": 1, "source": "a test"},
        "minimum_parties": {"parties": 1, "source": "a test"},
        "minimum_difference": {"persons": 1, "source": "a test"},
        "rounding": {"base": 1, "source": "a test"},
    }
)
LEVELS = {"region": ["north", "south", "west"], "use": ["own", "work"]}
CONTRACT = Contract.model_validate(
    {
        "name": "policies",
        "columns": {
            "paid": {"type": "number"},
            "income": {"type": "number", "nullable": True},
            "claims": {"type": "integer", "minimum": 0, "maximum": 3},
            "delay": {"type": "integer", "minimum": -2, "maximum": 2, "nullable": True},
            "region": {"type": "category", "levels": LEVELS["region"]},
            "use": {"type": "category", "levels": LEVELS["use"], "nullable": True},
            "brand": {"type": "category"},
            "years": {"type": "number", "role": "exposure", "above": 0, "maximum": 1},
            "accident": {"type": "integer", "minimum": 2015, "maximum": 2018},
            "payment": {"type": "integer", "minimum": 2015, "maximum": 2018},
            "time": {"type": "integer", "minimum": 1, "maximum": 5},
            "died": {"type": "integer", "minimum": 0, "maximum": 1},
            "policy": {"type": "integer", "role": "identifier"},
        },
    }
)


def policies(rows: int, seed: int, offset: float = 0.0, scale: float = 100.0) -> pd.DataFrame:
    """Rows at random: paid may be 0 or below, income far from 0, some values are missing."""
    rng = np.random.default_rng(seed)

    def some(values: Any) -> pd.Series[Any]:
        return pd.Series(values).where(rng.random(rows) > 0.2)

    accident = rng.integers(2015, 2019, rows)
    return pd.DataFrame(
        {
            "paid": np.where(rng.random(rows) < 0.2, 0.0, rng.normal(0, scale, rows)),
            "income": some(offset + rng.normal(0, scale, rows)),
            "claims": rng.integers(0, 4, rows),
            "delay": some(rng.integers(-2, 3, rows)),
            "region": rng.choice(LEVELS["region"], rows),
            "use": some(rng.choice(LEVELS["use"], rows)),
            "brand": rng.choice(["a", "b"], rows),
            "years": rng.uniform(0.1, 1, rows),
            "accident": accident,
            "payment": np.minimum(accident + rng.integers(0, 4, rows), 2018),
            "time": rng.integers(1, 6, rows),
            "died": rng.integers(0, 2, rows),
            "policy": np.arange(rows),
        }
    )


def dealt(frame: pd.DataFrame, parties: int = 3, seed: int = 0) -> dict[str, pd.DataFrame]:
    parts = split(frame, min(parties, len(frame)), seed)
    return {f"insurer {k + 1}": part for k, part in enumerate(parts)}


def desk(
    tables: Mapping[str, pd.DataFrame],
    protection: Protection | None = None,
    rules: Rules = OPEN,
    **more: Any,
) -> Desk:
    return Desk.simulated(
        Holdings.of(tables, CONTRACT, rules, **more), protection or Clear(rules), workers=2
    )


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return policies(400, seed=1)


@pytest.fixture(scope="module")
def asked(rows: pd.DataFrame) -> Iterator[Desk]:
    """Three insurers who tell everything."""
    with desk(dealt(rows)) as opened:
        yield opened


def close(got: Any, wanted: Any, size: Any = 0.0) -> None:
    """To 1e-9 of the value, or of the size of what was added up to it, which for a cell of equal values is
    that of their distance from the market's mean."""
    np.testing.assert_allclose(
        np.asarray(got, float),
        np.asarray(wanted, float),
        rtol=1e-9,
        atol=1e-9 * np.max(size) + 1e-12,
    )


# Equal to the pooled rows.


@dataclass(frozen=True)
class Asked:
    """A function of SQL, the same in pandas, and the size of the numbers that are added up."""

    sql: str
    pooled: Callable[[pd.DataFrame], float]
    size: Callable[[pd.DataFrame], float] = lambda f: 0.0


def moment(frame: pd.DataFrame, a: str, b: str, less: int) -> float:
    """A covariance; pandas warns where there are too few rows for one."""
    return frame[a].cov(frame[b], ddof=less) if len(frame) > less else np.nan


def spread(frame: pd.DataFrame, *columns: str) -> float:
    return float(np.prod([frame[c].std(ddof=0) for c in columns]))


OUTPUTS = [
    Asked("count(*)", len),
    Asked("count(income)", lambda f: f["income"].count()),
    Asked("count(use)", lambda f: f["use"].count()),
    Asked("missing(delay)", lambda f: f["delay"].isna().sum()),
    Asked("sum(paid)", lambda f: f["paid"].sum(), lambda f: f["paid"].abs().sum()),
    Asked("sum(income)", lambda f: f["income"].sum(), lambda f: f["income"].abs().sum()),
    Asked("sum(claims)", lambda f: f["claims"].sum()),
    Asked(
        "sum(paid * years)",
        lambda f: (f["paid"] * f["years"]).sum(),
        lambda f: (f["paid"] * f["years"]).abs().sum(),
    ),
    Asked("avg(paid)", lambda f: f["paid"].mean(), lambda f: f["paid"].abs().mean()),
    Asked("avg(income)", lambda f: f["income"].mean()),
    Asked("mean(delay)", lambda f: f["delay"].mean(), lambda f: 1.0),
    Asked("var_samp(paid)", lambda f: f["paid"].var(), lambda f: spread(f, "paid", "paid")),
    Asked("variance(income)", lambda f: f["income"].var(), lambda f: 1.0),
    Asked("var_pop(income)", lambda f: f["income"].var(ddof=0), lambda f: 1.0),
    Asked("stddev(income)", lambda f: f["income"].std(), lambda f: 1.0),
    Asked("stddev_pop(years)", lambda f: f["years"].std(ddof=0)),
    Asked(
        "covar_samp(paid, years)",
        lambda f: moment(f, "paid", "years", 1),
        lambda f: spread(f, "paid", "years"),
    ),
    Asked(
        "covar_pop(claims, years)",
        lambda f: moment(f, "claims", "years", 0),
        lambda f: spread(f, "claims", "years"),
    ),
    Asked("sum(paid) / sum(years) - 2", lambda f: f["paid"].sum() / f["years"].sum() - 2),
]
GROUPS: dict[str, Callable[[pd.DataFrame, Any], Any]] = {
    "region": lambda f, cell: f["region"] == cell,
    "use": lambda f, cell: f["use"].isna() if cell is None else f["use"] == cell,
    "claims": lambda f, cell: f["claims"] == cell,
    "delay": lambda f, cell: f["delay"].isna() if cell is None else f["delay"] == cell,
    "brand": lambda f, cell: f["brand"] == cell,
    "cut(paid, -50, 0, 30.5, 200)": lambda f, cell: f["paid"].map(lambda v: v in cell).astype(bool),
}
FILTERS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "": lambda f: f["paid"].notna(),
    " where claims > 0": lambda f: f["claims"] > 0,
    " where paid between -100 and 100 and region <> 'west'": lambda f: (
        f["paid"].between(-100, 100) & (f["region"] != "west")
    ),
    " where not (use = 'own') or delay is null": lambda f: (f["use"] == "work") | f["delay"].isna(),
    " where income is not null and 1 <= claims": lambda f: f["income"].notna() & (f["claims"] >= 1),
}


def compared(answer: pd.DataFrame, pooled: pd.DataFrame, outputs: list[Asked]) -> None:
    """Each cell of an answer is what pandas finds on its rows; a cell without rows tells nothing."""
    told = 0
    groups = [column for column in answer.columns if column not in {o.sql for o in outputs}]
    by_column = {name.removeprefix("cut(").split(",")[0]: test for name, test in GROUPS.items()}
    for _, line in answer.iterrows():
        cell = pooled
        for column in groups:
            value = (
                None
                if pd.api.types.is_scalar(line[column]) and pd.isna(line[column])
                else line[column]
            )
            cell = cell[by_column[column](cell, value)]
        told += len(cell)
        for output in outputs:
            wanted = output.pooled(cell) if len(cell) else np.nan
            if output.sql.startswith(("count", "missing")):
                assert line[output.sql] == wanted or (not len(cell) and np.isnan(line[output.sql]))
            else:
                close(line[output.sql], wanted, output.size(cell) if len(cell) else 0.0)
    inside = (
        pooled if not any("paid" in g for g in groups) else pooled[pooled["paid"].between(-50, 200)]
    )
    assert told == len(inside)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(5, 60), st.integers(1, 4), st.integers(0, 2**20)),
    offset=st.sampled_from([0.0, 1e6, -1e6, 1_234_567.0]),
    outputs=st.lists(st.sampled_from(OUTPUTS), min_size=1, max_size=6, unique_by=lambda o: o.sql),
    groups=st.lists(st.sampled_from(list(GROUPS)), max_size=3, unique=True),
    where=st.sampled_from(list(FILTERS)),
)
def test_an_answer_is_what_pandas_finds_on_the_pooled_rows(
    shape: tuple[int, int, int],
    offset: float,
    outputs: list[Asked],
    groups: list[str],
    where: str,
) -> None:
    rows, parties, seed = shape
    frame = policies(rows, seed, offset)
    text = f"select {', '.join([*groups, *(o.sql for o in outputs)])} from policies{where}"
    text += f" group by {', '.join(groups)}" if groups else ""
    with desk(dealt(frame, parties, seed)) as opened:
        answer = opened.ask(text)
    compared(answer, frame[FILTERS[where](frame)], outputs)


def test_moments_around_a_large_mean_keep_their_digits() -> None:
    frame = policies(300, 3, offset=1_234_999.0, scale=1.0)
    with desk(dealt(frame)) as opened:
        answer = opened.ask(
            "select region, var_samp(income) v, avg(income) a from policies group by region"
        )
    pooled = frame.groupby("region")["income"]
    close(answer["a"], pooled.mean())
    close(answer["v"], pooled.var())


def test_a_correlation_is_that_of_the_pooled_rows(asked: Desk, rows: pd.DataFrame) -> None:
    found = asked.ask("select region, corr(paid, years) r from policies group by region")
    pooled = rows.groupby("region")[["paid", "years"]].corr().iloc[::2, 1]
    close(found["r"], pooled)


def test_matrices_are_those_of_the_pooled_rows(asked: Desk, rows: pd.DataFrame) -> None:
    names = ["paid", "claims", "years"]
    for function in ("correlation", "covariance"):
        found = asked.ask(f"select {function}(paid, claims, years) from policies")
        pooled = rows[names].corr() if function == "correlation" else rows[names].cov()
        assert found.index.tolist() == found.columns.tolist() == names
        close(found, pooled)


@settings(max_examples=10, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 50), st.integers(1, 4), st.integers(0, 2**20)),
    share=st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5, 0.9, 1.0]),
    width=st.sampled_from([1.0, 1e-3, 1e-9]),
)
def test_the_interval_of_a_quantile_holds_it(
    shape: tuple[int, int, int], share: float, width: float
) -> None:
    rows, parties, seed = shape
    frame = policies(rows, seed)
    text = f"quantile(paid, {share}, -1000, 1000, {width}) q, quantile(delay, {share}) d"
    with desk(dealt(frame, parties, seed)) as opened:
        answer = opened.ask(f"select region, {text} from policies group by region")
    for _, line in answer.iterrows():
        cell = frame[frame["region"] == line["region"]]
        if cell.empty:
            assert line[["q", "q from", "q to", "d", "d from", "d to"]].isna().all()
            continue
        wanted = np.quantile(cell["paid"], share, method="inverted_cdf")
        assert line["q from"] <= wanted <= line["q to"]
        assert line["q to"] - line["q from"] <= width
        if cell["delay"].notna().any():
            known = cell["delay"].dropna()
            assert line["d"] == np.quantile(known, share, method="inverted_cdf")


def test_minimum_median_and_maximum_are_quantiles(asked: Desk, rows: pd.DataFrame) -> None:
    found = asked.ask("select min(years) a, median(years) b, max(years) c from policies").iloc[0]
    for name, share in {"a": 0.0, "b": 0.5, "c": 1.0}.items():
        wanted = np.quantile(rows["years"], share, method="inverted_cdf")
        assert found[f"{name} from"] <= wanted <= found[f"{name} to"]
        assert found[f"{name} to"] - found[f"{name} from"] <= 1e-4


def test_a_quantile_of_few_persons_is_an_interval_of_the_minimum_of_persons() -> None:
    frame = policies(200, 5)
    rules = OPEN.model_copy(
        update={"minimum_count": OPEN.minimum_count.model_copy(update={"persons": 12})}
    )
    with desk(dealt(frame), rules=rules) as opened:
        found = opened.ask("select max(years) m from policies").iloc[0]
    assert frame["years"].between(found["m from"], found["m to"]).sum() >= 12
    wanted = np.sort(frame["years"])[-12]
    assert found["m from"] <= wanted <= found["m to"]


def test_a_quantile_outside_the_range_is_beyond_it(asked: Desk) -> None:
    found = asked.ask("select median(paid, 5000, 6000) m from policies").iloc[0]
    assert (found["m from"], found["m to"]) == (-np.inf, 5000)


def test_a_quantile_of_which_nothing_is_known_is_hidden() -> None:
    """The middle of the whole range is nobody's median."""
    frame = policies(33, 2).assign(paid=lambda f: np.linspace(18, 110, len(f)))
    text = (
        "select median(paid, 18, 110) a, min(paid, 18, 110) b, max(paid, 18, 110) c from policies"
    )
    with desk(dealt(frame), rules=Rules.read()) as opened:
        found = opened.ask(text)
    for name in "abc":
        low, high = found[f"{name} from"][0], found[f"{name} to"][0]
        assert np.isnan(found[name][0]) == np.isnan(low) == np.isnan(high)
        assert not (low <= 18 and high > 110)
    assert found[["a", "b", "c"]].isna().all(axis=None) and found.attrs["hidden"] == 1


def test_a_histogram_counts_the_rows_of_each_interval(asked: Desk, rows: pd.DataFrame) -> None:
    found = asked.ask("select histogram(years, 9) from policies")
    counts, edges = np.histogram(rows["years"], 9, (0, 1))
    assert found["count"].fillna(0).tolist() == counts.tolist()
    close([cell.left for cell in found["years"]], edges[:-1])
    found = asked.ask("select histogram(income, -1000, 0, 50, 1000) from policies")
    counts, _ = np.histogram(rows["income"].dropna(), [-1000, 0, 50, 1000])
    assert found["count"].tolist() == [*counts, rows["income"].isna().sum()]


def test_missing_values_are_counted_by_column(asked: Desk, rows: pd.DataFrame) -> None:
    found = asked.ask("select missing(*) from policies").set_index("column")["missing"]
    assert found.to_dict() == rows.drop(columns="policy").isna().sum().to_dict()


def test_ratios_find_the_exposure_by_its_role(asked: Desk, rows: pd.DataFrame) -> None:
    found = asked.ask(
        "select region, exposure() e, frequency(claims) f, severity(paid, claims) s, "
        "pure_premium(paid) p, loss_ratio(paid, income) l, actual_expected(died, years) x "
        "from policies group by region"
    )
    pooled = rows.groupby("region").sum(numeric_only=True)
    close(found["e"], pooled["years"])
    close(found["f"], pooled["claims"] / pooled["years"])
    close(found["s"], pooled["paid"] / pooled["claims"])
    close(found["p"], pooled["paid"] / pooled["years"])
    close(found["l"], pooled["paid"] / pooled["income"])
    close(found["x"], pooled["died"] / pooled["years"])


def test_a_rate_has_its_exact_interval(asked: Desk, rows: pd.DataFrame) -> None:
    found = asked.ask(
        "select use, rate(claims) r, rate(died, years, 1) d from policies group by use"
    )
    pooled = rows.groupby("use", dropna=False).sum(numeric_only=True)
    for name, column, per in (("r", "claims", 1000.0), ("d", "died", 1.0)):
        wanted = actuarial.rate(pooled[column], pooled["years"], per)
        close(found[[name, f"{name} low", f"{name} high"]], wanted[["rate", "low", "high"]])


def test_a_triangle_by_calendar_is_the_one_of_the_pooled_sums(
    asked: Desk, rows: pd.DataFrame
) -> None:
    found = asked.ask("select triangle(claims, accident, payment) from policies")
    totals = rows.groupby(["accident", "payment"], as_index=False)["claims"].sum()
    totals.columns = ["origin", "development", "value"]
    wanted = actuarial.triangle(totals, "calendar")
    assert found["accident"].tolist() == [2015, 2016, 2017, 2018]
    close(found.drop(columns="accident"), wanted.ultimates)
    close(found.attrs["reserve"]["reserve"], wanted.reserve)
    close(found.attrs["reserve"]["standard_error"], wanted.standard_error)
    close([line["factor"] for line in found.attrs["factors"]], wanted.factors["factor"])


def test_a_triangle_by_age_is_the_one_of_the_pooled_sums(rows: pd.DataFrame) -> None:
    columns = dict(CONTRACT.columns)
    columns["age"] = columns["claims"]
    contract = CONTRACT.model_copy(update={"columns": columns})
    aged = rows.assign(age=rows["payment"] - rows["accident"])
    with Desk.simulated(Holdings.of(dealt(aged), contract, OPEN), Clear(OPEN), workers=2) as opened:
        found = opened.ask("select triangle(claims, accident, age) from policies")
    totals = aged.groupby(["accident", "age"], as_index=False)["claims"].sum()
    totals.columns = ["origin", "development", "value"]
    wanted = actuarial.triangle(totals)
    assert found["accident"].tolist() == [2015, 2016, 2017, 2018]
    close(found.drop(columns="accident"), wanted.ultimates)
    close(found.attrs["reserve"]["reserve"], wanted.reserve)
    close(found.attrs["reserve"]["standard_error"], wanted.standard_error)
    close([line["factor"] for line in found.attrs["factors"]], wanted.factors["factor"])


def test_survival_in_intervals_is_that_of_the_pooled_rows(asked: Desk, rows: pd.DataFrame) -> None:
    found = asked.ask("select survival(time, died, 0, 1, 2, 3, 4, 5) from policies")
    wanted = SurvfuncRight(rows["time"], rows["died"])
    close(found.set_index("end").loc[wanted.surv_times, "survival"], wanted.surv_prob)


def test_survival_leaves_out_rows_without_a_group(asked: Desk) -> None:
    found = asked.ask(
        "select survival(time, died) from policies where use is not null group by use"
    )
    assert set(found["use"]) == {"own", "work"}


def test_the_advice_for_two_columns_with_gaps_can_be_followed(
    asked: Desk, rows: pd.DataFrame
) -> None:
    found = asked.ask(
        "select corr(income, delay) r from policies where income is not null and delay is not null"
    )
    both = rows.dropna(subset=["income", "delay"])
    close(found["r"], [both["income"].corr(both["delay"])])


def test_a_mean_is_not_divided_by_a_rounded_count() -> None:
    frame = policies(44, 2)
    rules = OPEN.model_copy(update={"rounding": OPEN.rounding.model_copy(update={"base": 10})})
    with desk(dealt(frame), rules=rules) as opened:
        assert opened.ask("select count(*) n from policies")["n"].tolist() == [40]
        with pytest.raises(ConfigurationError, match="rounded by the rules"):
            opened.ask("select region, avg(years) a from policies group by region")


def test_a_row_without_a_person_does_not_stop_a_party(rows: pd.DataFrame) -> None:
    with desk(dealt(rows), person="delay") as opened:
        found = opened.ask("select count(*) n from policies")
    assert found["n"].tolist() == [len(rows)]


def test_nobodys_value_follows_from_many_quantiles() -> None:
    """An analyst moves the edge of a quantile's range until the answer turns to its other side."""
    frame, rank = policies(200, 1), 150
    rules, low, high = Rules.read(), -1000.0, 1000.0
    with desk(dealt(frame), rules=rules) as opened:
        for _ in range(9):
            edge = (low + high) / 2
            found = opened.ask(
                f"select quantile(paid, {(rank - 0.5) / 200}, {edge}, {edge + 1e9}, 1e12) q "
                "from policies"
            ).iloc[0]
            if found["q to"] <= edge:
                high = edge
            elif found["q from"] >= edge:
                low = edge
    # Ten persons or more must remain between what is known of one person's value.
    assert frame["paid"].between(low, high).sum() >= rules.minimum_count.persons


def test_survival_is_that_of_the_pooled_rows(asked: Desk, rows: pd.DataFrame) -> None:
    found = asked.ask("select survival(time, died) from policies group by region")
    for region, part in rows.groupby("region"):
        wanted = SurvfuncRight(part["time"], part["died"])
        curve = found[found["region"] == region].set_index("end").loc[wanted.surv_times]
        close(curve["survival"], wanted.surv_prob)
        close(curve["standard_error"], wanted.surv_prob_se)
        close(curve["at_risk"], wanted.n_risk)
        close(found.attrs["medians"][region], wanted.quantile(0.5))


def test_the_log_rank_test_is_that_of_the_pooled_rows(asked: Desk, rows: pd.DataFrame) -> None:
    found = asked.ask("select log_rank(time, died) from policies group by region").iloc[0]
    statistic, p = survdiff(rows["time"], rows["died"], rows["region"])
    close(found["chi2"], statistic)
    close(found["p"], p)
    assert found["df"] == 2


def test_drift_is_the_mean_of_the_parties_indices(rows: pd.DataFrame) -> None:
    tables = dealt(rows, 4)
    tables["insurer 1"] = tables["insurer 1"].assign(region="west")
    pooled = pd.concat(tables.values())["region"].value_counts()
    indices = []
    for part in tables.values():
        counts = part["region"].value_counts().reindex(pooled.index, fill_value=0)
        indices.append(actuarial.stability_index(pooled, counts, len(part)))
    with desk(tables) as opened:
        found = opened.ask("select drift(region) from policies").iloc[0]
    close(found["mean index"], np.mean(indices))
    assert found["parties"] == 4
    assert found["above 0.1"] == sum(index > 0.1 for index in indices)
    assert found["above 0.25"] == sum(index > 0.25 for index in indices) >= 1


def test_an_answer_is_ordered_and_cut_off(asked: Desk, rows: pd.DataFrame) -> None:
    text = "select claims, sum(years) s, count(*) from policies group by claims order by {} limit 3"
    pooled = rows.groupby("claims")["years"].agg(["sum", "count"])
    found = asked.ask(text.format("s desc"))
    close(found["s"], pooled["sum"].sort_values(ascending=False)[:3])
    found = asked.ask(text.format("count(*)"))
    assert found["count(*)"].tolist() == pooled["count"].sort_values()[:3].tolist()


def test_a_broken_contract_leaves_one_question(rows: pd.DataFrame) -> None:
    tables = dealt(rows)
    spoiled = tables["insurer 2"].astype({"claims": float, "region": object}).reset_index(drop=True)
    spoiled.loc[:3, "claims"] = [-1, 7, 0.5, np.nan]
    spoiled.loc[:1, "region"] = "atlantis"
    tables["insurer 2"] = spoiled
    tables["insurer 3"] = tables["insurer 3"].drop(columns="years")
    wanted: dict[tuple[str, str], int] = {}
    for part in tables.values():
        for rule, count in broken(part, CONTRACT).items():
            wanted[rule] = wanted.get(rule, 0) + count
    with desk(tables) as opened:
        with pytest.raises(ContractError):
            opened.ask("select count(*) from policies")
        found = opened.ask("select violations() from policies")
    told = {(line["column"], line["rule"]): line["rows"] for _, line in found.iterrows()}
    assert told == wanted
    assert told["claims", CONTRACT.columns["claims"].allowed()] == 3
    assert told["claims", "must not be empty"] == 1
    assert told["region", CONTRACT.columns["region"].allowed()] == 2
    assert told["years", "must be there"] == len(tables["insurer 3"])


# Under encryption.

BROAD = [
    "select count(*), sum(paid), avg(income), var_samp(income), corr(paid, years) from policies",
    "select region, use, count(*), stddev(paid), covar_pop(paid, years) from policies "
    "where claims > 0 group by region, use",
    "select claims, median(years), quantile(delay, 0.9) from policies group by claims",
    "select brand, rate(claims), frequency(claims) from policies group by brand",
    "select survival(time, died) from policies",
    "select covariance(paid, claims) from policies",
    "select missing(*) from policies",
    "select drift(region) from policies",
    "select violations() from policies",
]


@pytest.mark.parametrize("text", BROAD)
def test_an_answer_under_encryption_is_the_clear_one(text: str, asked: Desk, hidden: Desk) -> None:
    clear, answer = asked.ask(text), hidden.ask(text)
    pd.testing.assert_frame_equal(answer, clear, rtol=1e-9, atol=1e-9)
    assert answer.attrs["hiding"] == "paillier"
    receipt = answer.attrs["receipt"]
    assert {line["rows"] for line in receipt} == {0}
    sums = [line for line in receipt if line["hiding"] == "paillier"]
    assert len(sums) >= 3
    assert all(line["values"] > 0 and line["bytes"] >= 512 for line in sums)
    assert {line["key_bits"] for line in sums} == {2048}
    others = [line for line in receipt if line not in sums]
    assert {(line["hiding"], line["statistic"]) for line in others} <= {
        ("public", "names of levels")
    }


def questions(asked: Desk, text: str, monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """All that parties are asked for an answer."""
    found: list[Question] = []
    ask = Desk.sum

    def heard(desk: Desk, statistic: str, question: Question, *more: Any, **told: Any) -> Any:
        found.append(question)
        return ask(desk, statistic, question, *more, **told)

    monkeypatch.setattr(Desk, "sum", heard)
    asked.ask(text)
    return found


@pytest.mark.parametrize(
    "text", [*BROAD, "select brand, median(years) from policies where claims > 0 group by brand"]
)
def test_all_that_is_asked_for_an_answer_belongs_to_it_and_nothing_else_does(
    text: str, asked: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A party can tell that a question is another than somebody approved."""
    finer = Compare(column="policy", operation="<", value=200.0)
    own = Axis(column="policy", edges=(0.0, 100.0, 200.0))
    for question in questions(asked, text, monkeypatch):
        assert sql.belongs(question, text, CONTRACT, None)
        parts = (finer,) if question.where is None else (question.where, finer)
        income = Total(kind="sum", columns=("delay", "claims"), centres=(0.0, 0.0))
        for change in (
            {"where": Every(of=parts)},
            {"axes": (*question.axes[:2], own)},
            {"totals": (*question.totals, income)},
        ):
            other = question.model_copy(update=change)
            assert not sql.belongs(other, text, CONTRACT, None)


@pytest.fixture(scope="module")
def hidden(rows: pd.DataFrame, authority_key: Any) -> Iterator[Desk]:
    with desk(dealt(rows), Paillier(KeyAuthority(authority_key, OPEN))) as opened:
        yield opened


def test_an_answer_under_a_split_key_is_the_clear_one(
    asked: Desk, rows: pd.DataFrame, authority_key: Any
) -> None:
    with desk(dealt(rows), Paillier(Dealer(authority_key))) as opened:
        for text in BROAD[:2]:
            answer = opened.ask(text)
            pd.testing.assert_frame_equal(answer, asked.ask(text), rtol=1e-9, atol=1e-9)
            told = {line["rows"] for line in answer.attrs["receipt"]}
            assert told == {0}


def test_the_receipt_tells_what_left_each_party_and_no_rows(asked: Desk) -> None:
    answer = asked.ask("select region, use, sum(paid) from policies group by region, use")
    assert (answer.attrs["cells"], answer.attrs["hidden"]) == (9, 0)
    assert answer.attrs["hiding"] == "clear"
    assert answer.attrs["noise"] is None
    receipt = answer.attrs["receipt"]
    assert [line["party"] for line in receipt] == ["insurer 1", "insurer 2", "insurer 3"]
    for line in receipt:
        assert line["rows"] == 0
        assert line["statistic"] == "cells"
        # Rows, the sum, its sensitivity, parties and vetoes, of each of 9 cells; cells asked for and left.
        assert (line["arrays"], line["values"], line["bytes"]) == (7, 47, 376)


# With the rules that are shipped.


def few_and_many() -> dict[str, pd.DataFrame]:
    """Brands by number of policies at three insurers; nobody has d."""
    held = {
        "a": (40, 40, 40),
        "b": (3, 3, 3),
        "c": (0, 30, 30),
        "e": (30, 30, 30),
        "f": (50, 5, 20),
    }
    parts: list[list[pd.DataFrame]] = [[], [], []]
    for seed, (brand, counts) in enumerate(held.items()):
        for part, count in zip(parts, counts, strict=True):
            part.append(policies(count, seed).assign(brand=brand))
    return {f"insurer {k + 1}": pd.concat(part) for k, part in enumerate(parts)}


def test_a_cell_of_few_persons_or_few_parties_is_hidden_like_an_empty_one() -> None:
    columns = dict(CONTRACT.columns)
    columns["brand"] = columns["brand"].model_copy(update={"levels": tuple("abcdef")})
    contract = CONTRACT.model_copy(update={"columns": columns})
    rules = Rules.read()
    holdings = Holdings.of(few_and_many(), contract, rules)
    with Desk.simulated(holdings, Clear(rules), workers=2) as opened:
        answer = opened.ask(
            "select brand, count(*), sum(claims), avg(years) from policies group by brand"
        )
    shown = answer.set_index("brand")
    assert shown.loc[["b", "c", "d"]].isna().all(axis=None)
    assert shown.loc["a", "count(*)"] == 120
    assert answer.attrs["hidden"] == shown["count(*)"].isna().sum() >= 3
    assert "at least 10 persons, at least 3 " in answer.attrs["rules"]


def test_what_needs_every_cell_says_which_is_hidden() -> None:
    rules = Rules.read()
    with (
        desk(dealt(policies(60, 1)), rules=rules) as opened,
        pytest.raises(ModelError, match="hidden: "),
    ):
        opened.ask("select survival(time, died) from policies group by region")


def test_a_question_that_is_refused_reaches_no_party(asked: Desk) -> None:
    before = asked.federation.receipts()
    with pytest.raises(ConfigurationError, match="role is 'identifier'"):
        asked.ask("select median(policy, 0, 10) from policies")
    assert asked.federation.receipts() == before


# The command line.

CLEAR = ["--experiment", str(RAND), "--set", "protection.sums=clear"]
VISITS = "select idp, count(*) n, avg(mdvis) from rand_hie group by idp"


def typed(monkeypatch: Any, *arguments: object) -> int:
    """``lab query`` in this process; its exit code."""
    monkeypatch.setattr("sys.argv", ["lab", "query", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_lab_query_prints_a_table_the_rules_and_what_left(tmp_path: Path) -> None:
    done = lab("query", VISITS, *CLEAR, "--runs", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "avg(mdvis)" in done.stdout
    assert "Shown where: at least 10 persons" in done.stdout
    assert "IN THE CLEAR" in done.stdout


def test_a_question_needs_no_model(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "visits.toml"
    file.write_text('name = "visits"\n[data]\nsource = "rand_hie"\n[protection]\nsums = "clear"\n')
    text = "select count(*) from rand_hie"
    assert typed(monkeypatch, text, "--experiment", file, "--csv", "--runs", tmp_path) == 0
    assert capsys.readouterr().out.split() == ["count(*)", "20190.0"]
    with Desk.on(file, runs=None) as opened:
        assert opened.ask(text)["count(*)"].tolist() == [20190]


def test_lab_query_json_is_one_object(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    assert typed(monkeypatch, VISITS, *CLEAR, "--runs", tmp_path, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [set(row) for row in told["rows"]] == [{"idp", "n", "avg(mdvis)"}] * 2
    assert sum(row["n"] for row in told["rows"]) == 20_190
    assert told["receipt"]


def test_lab_query_csv_is_the_table_alone(monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    assert typed(monkeypatch, VISITS, *CLEAR, "--runs", tmp_path, "--csv") == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header == "idp,n,avg(mdvis)"
    assert len(lines) == 2


def test_lab_query_writes_intervals_and_matrices_as_json_and_csv(
    monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    for text in ("histogram(mdvis, 0, 1, 5, 100)", "correlation(mdvis, idp)"):
        for form in ("--json", "--csv"):
            asked = f"select {text} from rand_hie"
            assert typed(monkeypatch, asked, *CLEAR, "--runs", tmp_path, form) == 0
            out = capsys.readouterr().out
            assert len(json.loads(out)["rows"] if form == "--json" else out.splitlines()[1:]) > 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("select * from rand_hie", "* would list rows"),
        ("select sum(mdvsi) from rand_hie", "did you mean 'mdvis'?"),
        ("drop table rand_hie", "one SELECT is answered"),
        ("(" * 10_000, "nested too deeply"),
    ],
)
def test_lab_query_refuses_in_one_line(
    text: str, words: str, monkeypatch: Any, capsys: Any, tmp_path: Path
) -> None:
    assert typed(monkeypatch, text, *CLEAR, "--runs", tmp_path) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert words in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert "Traceback" not in told.err


def test_what_is_no_select_is_refused_in_one_line_of_a_real_process(tmp_path: Path) -> None:
    done = lab("query", "explain select 1", *CLEAR, "--runs", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lab: query: one SELECT is answered, and nothing else\n"


def test_an_answer_says_how_much_was_opened_and_of_how_many_persons() -> None:
    rules = Rules.read()
    frame = policies(600, seed=2)
    with desk(dealt(frame), rules=rules) as guarded:
        answer = guarded.ask("select region, count(*), sum(claims) from policies group by region")
    (line,) = answer.attrs["opened"]
    shown = int(answer["count(*)"].notna().sum())
    assert line["statistic"] == "cells" and line["numbers"] == 2 * shown > 0
    assert line["fewest_persons"] == answer["count(*)"].min() >= rules.minimum_count.persons
