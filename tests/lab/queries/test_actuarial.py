"""What is computed from released totals equals what the same method finds on the rows."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm, poisson
from statsmodels.duration.survfunc import SurvfuncRight, survdiff

from lab.errors import ContractError, ModelError
from lab.queries import actuarial

# Taylor & Ashe (1983), incremental payments; the worked example of Mack (1993).
TAYLOR_ASHE = """
357848 766940 610542 482940 527326 574398 146342 139950 227229 67948
352118 884021 933894 1183289 445745 320996 527804 266172 425046
290507 1001799 926219 1016654 750816 146923 495992 280405
310608 1108250 776189 1562400 272482 352053 206286
443160 693190 991983 769488 504851 470639
396132 937085 847498 805037 705960
440832 847631 1131398 1063269
359480 1061648 1443370
376686 986608
344014
"""


def cells(text: str, first: int = 1972) -> pd.DataFrame:
    """Increments, a line for each origin, as released totals."""
    return pd.DataFrame(
        [
            (first + i, age, float(value))
            for i, line in enumerate(text.split("\n")[1:-1])
            for age, value in enumerate(line.split())
        ],
        columns=["origin", "development", "value"],
    )


@pytest.fixture(scope="module")
def taylor_ashe() -> actuarial.Triangle:
    return actuarial.triangle(cells(TAYLOR_ASHE))


def test_taylor_ashe_has_the_factors_reserves_and_errors_of_mack_1993(
    taylor_ashe: actuarial.Triangle,
) -> None:
    factors = [3.4906, 1.7473, 1.4574, 1.1739, 1.1038, 1.0863, 1.0539, 1.0766, 1.0177]
    assert taylor_ashe.factors["factor"].tolist() == pytest.approx(factors, abs=5e-5)
    reserves = [0, 95, 470, 710, 985, 1419, 2178, 3920, 4279, 4626]
    assert (taylor_ashe.ultimates["reserve"] / 1000).round().tolist() == reserves
    errors = [0, 75535, 121699, 133549, 261406, 411010, 558317, 875328, 971258, 1363155]
    assert taylor_ashe.ultimates["standard_error"].tolist() == pytest.approx(errors, abs=0.6)
    assert taylor_ashe.reserve == pytest.approx(18_680_856, abs=0.6)
    assert taylor_ashe.standard_error == pytest.approx(2_447_095, abs=0.6)


def test_a_triangle_holds_what_it_was_made_from(taylor_ashe: actuarial.Triangle) -> None:
    found = taylor_ashe
    assert found.latest == 1981
    assert found.incremental.count().tolist() == list(range(10, 0, -1))
    assert found.cumulative.loc[1972, 9] == 3_901_463
    assert np.isnan(found.cumulative.loc[1981, 1])
    assert found.ultimates.loc[1981, "latest"] == 344_014
    assert found.ultimates.index.name == "origin" and found.factors.index.name == "age"
    to_ultimate = found.factors["factor"][::-1].cumprod()[::-1]
    assert np.allclose(found.factors["to_ultimate"], to_ultimate, rtol=1e-12)


@pytest.mark.parametrize("future", [0.0, np.nan])
def test_calendar_periods_and_cells_of_the_future_change_nothing(
    taylor_ashe: actuarial.Triangle, future: float
) -> None:
    square = cells(TAYLOR_ASHE).pivot_table(index="origin", columns="development", values="value")
    square[10] = np.nan
    square.loc[1982] = np.nan
    table = square.fillna(future).reset_index().melt("origin", var_name="age").sample(frac=1)
    table["development"] = table["origin"] + table["age"].astype(int)
    table["origin"] = table["origin"].astype("str").astype("category")
    found = actuarial.triangle(table, "calendar")
    pd.testing.assert_frame_equal(found.ultimates, taylor_ashe.ultimates, rtol=1e-12)
    assert found.standard_error == pytest.approx(taylor_ashe.standard_error, rel=1e-12)


def test_fewer_ages_than_origins_have_macks_error_of_one_factor() -> None:
    found = actuarial.triangle(cells("\n100 50\n80 60\n90\n"))
    factor = 290 / 180
    variance = 100 * (1.5 - factor) ** 2 + 80 * (1.75 - factor) ** 2
    expected = 90 * np.sqrt(variance * (1 / 90 + 1 / 180))
    assert found.ultimates["ultimate"].tolist() == pytest.approx([150, 140, 90 * factor])
    assert found.ultimates["standard_error"].tolist() == pytest.approx([0, 0, expected])
    assert found.standard_error == pytest.approx(expected)


def test_more_ages_than_origins_make_a_triangle_too() -> None:
    found = actuarial.triangle(cells("\n100 50 20 10 5\n80 60 10 5\n90 70 15\n"))
    assert len(found.ultimates) == 3
    assert found.reserve == pytest.approx(155 * 5 / 180 + 175 * (335 / 320 * 185 / 180 - 1))
    assert found.standard_error > 0


def test_lags_may_start_at_any_number(taylor_ashe: actuarial.Triangle) -> None:
    table = cells(TAYLOR_ASHE).assign(development=lambda t: t["development"] + 1)
    found = actuarial.triangle(table)
    pd.testing.assert_frame_equal(found.ultimates, taylor_ashe.ultimates)
    assert found.factors.index.tolist() == list(range(1, 10))
    assert found.latest == taylor_ashe.latest
    assert found.standard_error == taylor_ashe.standard_error


def test_factors_are_the_librarys_where_no_total_is_0(taylor_ashe: actuarial.Triangle) -> None:
    library = actuarial._chain_ladder(taylor_ashe.cumulative, taylor_ashe.latest)
    factors = actuarial._estimates(library, "ldf_")[0, :9]
    np.testing.assert_allclose(taylor_ashe.factors["factor"], factors, rtol=1e-12)
    ultimates = actuarial._estimates(library, "ultimate_")[:10, -1]
    np.testing.assert_allclose(taylor_ashe.ultimates["ultimate"], ultimates, rtol=1e-12)


def test_an_origin_may_start_at_0() -> None:
    """Its payments count in the factors; the library leaves them out, and with them the reserve."""
    found = actuarial.triangle(cells("\n0 50 5\n80 60 10\n90 30\n40\n"))
    first, second = (50 + 140 + 120) / (0 + 80 + 90), (55 + 150) / (50 + 140)
    assert found.factors["factor"].tolist() == pytest.approx([first, second])
    assert found.ultimates["ultimate"].tolist() == pytest.approx(
        [55, 150, 120 * second, 40 * first * second]
    )
    assert found.ultimates["standard_error"].isna().all() and np.isnan(found.standard_error)


def test_an_origin_of_which_nothing_is_paid_yet_has_no_reserve() -> None:
    found = actuarial.triangle(cells("\n0 50 5\n0 60 10\n0 30\n0\n"))
    assert found.unpaid == (1975,)
    assert found.ultimates["ultimate"].tolist()[:3] == pytest.approx([55, 70, 30 * 125 / 110])
    assert np.isnan(found.ultimates.loc[1975, "reserve"])
    assert found.reserve == pytest.approx(30 * 15 / 110)


def test_an_error_that_cannot_be_estimated_is_nan_and_not_0() -> None:
    found = actuarial.triangle(cells("\n100 50 5\n80 60\n90\n"))
    assert found.reserve > 0
    assert found.ultimates["standard_error"].isna().all() and np.isnan(found.standard_error)


@pytest.mark.parametrize("missing", [False, True])
def test_a_hidden_cell_of_a_triangle_is_refused_by_name(missing: bool) -> None:
    table = cells(TAYLOR_ASHE)
    hidden = (table["origin"] == 1975) & (table["development"] == 6)
    table = table[~hidden] if missing else table.assign(value=table["value"].mask(hidden))
    with pytest.raises(ModelError, match=r"to period 1981: origin 1975 age 6; ask for wider"):
        actuarial.triangle(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n0 50 5\n80 -90\n90\n", "below 0 up to origin 1973 age 1"),
        ("\n0 50 5\n0 60\n90\n", "no factor leads on from origin 1974"),
        ("\n100\n80\n", "only one age"),
        ("\n0 0\n0\n", "every cell"),
        ("\n5" + 600 * " 5" + "\n", "at most 500 periods, got 601"),
    ],
)
def test_a_triangle_without_factors_is_refused(text: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        actuarial.triangle(cells(text))


def test_a_table_that_is_no_triangle_is_refused() -> None:
    table = cells("\n100 50\n80\n")
    for broken in (
        table.drop(columns="value"),
        table.iloc[:0],
        pd.concat([table, table]),
        table.assign(development=-1),
        table.assign(development=0.5),
        table.assign(origin="east"),
    ):
        with pytest.raises(ContractError):
            actuarial.triangle(broken)


def released(time: np.ndarray, event: np.ndarray, group: np.ndarray | None = None) -> pd.DataFrame:
    """Totals by unit interval and group, shuffled; event is 1 or 0."""
    rows = pd.DataFrame({"end": time, "leaving": 1, "events": event, "group": 0})
    if group is not None:
        rows["group"] = group
    names = pd.MultiIndex.from_product(
        [sorted(rows["group"].unique()), range(1, int(time.max()) + 1)], names=["group", "end"]
    )
    totals = rows.groupby(["group", "end"]).sum().reindex(names, fill_value=0).reset_index()
    return totals.assign(start=totals["end"] - 1).sample(frac=1, random_state=1)


# Freireich et al. (1963), weeks of remission, as in Kalbfleisch & Prentice; + is censored.
TREATED = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"
PLACEBO = "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"


def leukaemia() -> pd.DataFrame:
    weeks = (TREATED + " " + PLACEBO).split()
    time = np.array([int(week.rstrip("+")) for week in weeks])
    event = np.array([int(not week.endswith("+")) for week in weeks])
    return released(time, event, np.repeat(["treated", "placebo"], 21))


def test_remission_of_leukaemia_is_as_published() -> None:
    found = actuarial.survival(leukaemia(), "group")
    assert found.medians.to_dict() == {"treated": 23.0, "placebo": 8.0}
    week = found.curve.query("group == 'treated' and end == 6").iloc[0]
    assert week[["at_risk", "events", "censored"]].tolist() == [21, 3, 1]
    shown = week[["survival", "standard_error", "low", "high"]].astype(float)
    assert shown.tolist() == pytest.approx([0.857, 0.0764, 0.620, 0.952], abs=5e-4)
    statistic, df, p = actuarial.log_rank(leukaemia(), "group")
    assert (df, statistic) == (1, pytest.approx(16.79, abs=5e-3))
    assert p == pytest.approx(chi2.sf(statistic, 1))


PERSONS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 1)), min_size=2, max_size=60)


@settings(max_examples=40, deadline=None)
@given(PERSONS)
def test_the_curve_from_totals_is_the_curve_from_rows(persons: list[tuple[int, int]]) -> None:
    time, event = np.array([*persons, (1, 1), (9, 0)]).T
    rows = SurvfuncRight(time, event)
    found = actuarial.survival(released(time, event))
    at = found.curve.set_index("end").loc[rows.surv_times]
    assert np.allclose(at["survival"], rows.surv_prob, rtol=1e-12)
    assert np.allclose(at["standard_error"], rows.surv_prob_se, rtol=1e-12)
    assert np.array_equal(at["at_risk"], rows.n_risk)
    assert np.array_equal(at["events"], rows.n_events)
    place = np.log(-np.log(rows.surv_prob))
    spread = norm.ppf(0.975) * rows.surv_prob_se / (rows.surv_prob * -np.log(rows.surv_prob))
    assert np.allclose(at["low"], np.exp(-np.exp(place + spread)), rtol=1e-9)
    assert np.allclose(at["high"], np.exp(-np.exp(place - spread)), rtol=1e-9)
    half = rows.surv_times[rows.surv_prob <= 0.5 + 1e-12]
    assert found.medians["all"] == half[0] if len(half) else np.isnan(found.medians["all"])


def test_a_curve_ends_where_nobody_is_left() -> None:
    ends = [1.0, 2.0, 3.0, np.inf]
    totals = pd.DataFrame({"start": [0, *ends[:3]], "end": ends})
    curve = actuarial.survival(totals.assign(leaving=[0, 2, 2, 0], events=[0, 1, 2, 0])).curve
    assert curve["survival"].tolist() == pytest.approx([1, 0.75, 0, np.nan], nan_ok=True)
    assert curve["low"].isna().tolist() == [True, False, True, True]
    assert curve["standard_error"].isna().tolist() == [False, False, True, True]


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_log_rank_from_totals_is_log_rank_from_rows(groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, 300)
    time = np.minimum(rng.geometric(0.08 + 0.02 * group), rng.integers(5, 30, 300))
    event = rng.integers(0, 2, 300)
    statistic, df, p = actuarial.log_rank(released(time, event, group), "group")
    expected = survdiff(time, event, group)
    assert df == groups - 1
    assert (statistic, p) == (
        pytest.approx(expected[0], rel=1e-9),
        pytest.approx(expected[1], abs=1e-9),
    )


@pytest.mark.parametrize("column", ["leaving", "events"])
def test_a_hidden_interval_is_refused_by_name(column: str) -> None:
    totals = leukaemia()
    totals.loc[(totals["group"] == "placebo") & (totals["end"] == 5), column] = np.nan
    for ask in (actuarial.survival, actuarial.log_rank):
        with pytest.raises(ModelError, match=r"hidden: placebo \(4, 5\]; ask for wider intervals"):
            ask(totals, "group")


def test_intervals_and_counts_that_cannot_be_are_refused() -> None:
    totals = leukaemia()
    twice = pd.concat([totals, totals])
    for broken in (
        totals[totals["end"] != 5],
        twice,
        totals.assign(start=totals["end"]),
        totals.assign(events=totals["leaving"] + 1),
        totals.assign(events=-1),
        totals.assign(group=None),
    ):
        with pytest.raises(ContractError):
            actuarial.survival(broken, "group")
    with pytest.raises(ContractError, match="same intervals"):
        actuarial.log_rank(totals.query("group == 'treated' or end < 30"), "group")


def test_groups_that_nothing_tells_apart_are_refused() -> None:
    for totals in (leukaemia().query("group == 'treated'"), leukaemia().assign(events=0)):
        with pytest.raises(ModelError, match="cannot be compared"):
            actuarial.log_rank(totals, "group")


def test_rates_have_the_limits_of_garwood() -> None:
    found = actuarial.rate([0, 1, 5, 10, 100], [1, 1, 1, 1, 1], per=1)
    assert found["rate"].tolist() == [0, 1, 5, 10, 100]
    assert found["low"].tolist() == pytest.approx([0, 0.0253, 1.6235, 4.7954, 81.3640], abs=5e-5)
    assert found["high"].tolist() == pytest.approx(
        [3.6889, 5.5716, 11.6683, 18.3904, 121.6268], abs=5e-5
    )


@given(st.integers(1, 10_000), st.floats(0.01, 1e6), st.floats(0.5, 0.999))
def test_limits_are_the_rates_that_make_the_count_just_unlikely(
    events: int, exposure: float, level: float
) -> None:
    cell = actuarial.rate(events, exposure, level=level).iloc[0] / 1000 * exposure
    tail = (1 - level) / 2
    assert poisson.sf(events - 1, cell["low"]) == pytest.approx(tail, rel=1e-6)
    assert poisson.cdf(events, cell["high"]) == pytest.approx(tail, rel=1e-6)


def test_hidden_cells_of_a_rate_stay_hidden() -> None:
    events = pd.Series([3, np.nan, 0, 2], index=["east", "north", "south", "west"])
    exposure = pd.Series([1.0, 5, np.nan, 0], index=["west", "south", "east", "north"])
    found = actuarial.rate(events, exposure)
    assert found.notna().all(axis=1).to_dict() == {
        "east": False,
        "north": False,
        "south": True,
        "west": True,
    }
    assert found.loc["west", "rate"] == 2000


def test_actual_over_expected_is_a_count_over_a_known_number() -> None:
    found = actuarial.actual_expected([10, 0], [8.0, 2.0])
    assert found["ratio"].tolist() == [1.25, 0]
    assert found["low"].tolist() == pytest.approx([4.7954 / 8, 0], abs=5e-5)
    assert found["high"].tolist() == pytest.approx([18.3904 / 8, 3.6889 / 2], abs=5e-5)


@pytest.mark.parametrize(("events", "exposure"), [(-1, 1), (1.5, 1), (1, -1)])
def test_what_is_no_count_has_no_poisson_interval(events: float, exposure: float) -> None:
    for ask in (actuarial.rate, actuarial.actual_expected):
        with pytest.raises(ContractError, match="counts"):
            ask(events, exposure)


def test_the_stability_index_is_the_sum_over_bins() -> None:
    expected = 0.1 * np.log(0.6 / 0.5) - 0.1 * np.log(0.4 / 0.5)
    assert actuarial.stability_index([0.5, 0.5], [60, 40], rows=100) == pytest.approx(expected)
    empty = (0.5 - 0.005) * np.log(0.5 / 0.005) + (0.5 - 1) * np.log(0.5 / 1)
    assert actuarial.stability_index([0.5, 0.5], [0, 1], rows=100) == pytest.approx(empty)
    both_empty = actuarial.stability_index([0.5, 0.5, 0], [5, 5, 0], rows=10)
    assert both_empty == 0


SHARES = st.lists(st.integers(0, 500), min_size=4, max_size=4).filter(any)


@given(SHARES, SHARES)
def test_the_stability_index_is_symmetric_and_0_only_for_equal_shares(
    a: list[int], b: list[int]
) -> None:
    found = actuarial.stability_index(a, b, rows=1e6)
    assert found == pytest.approx(actuarial.stability_index(b, a, rows=1e6))
    same = np.allclose(np.array(a) / sum(a), np.array(b) / sum(b), atol=1e-9)
    assert found == pytest.approx(0, abs=1e-12) if same else found > 0


def test_hidden_or_impossible_bins_have_no_stability_index() -> None:
    with pytest.raises(ModelError, match="join it"):
        actuarial.stability_index([0.5, np.nan], [1, 1], rows=2)
    for expected, rows in (([-1, 2], 2), ([0, 0], 2), ([1, 1], 0)):
        with pytest.raises(ContractError):
            actuarial.stability_index(expected, [1, 1], rows=rows)
