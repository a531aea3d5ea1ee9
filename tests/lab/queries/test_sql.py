"""SQL becomes a question that means what SQL means, or it is refused with the reason."""

from __future__ import annotations

import re
import sqlite3

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.errors import ConfigurationError
from lab.models.design import Feature
from lab.queries.formulas import Formula
from lab.queries.questions import ROWS, Axis, Question, Total
from lab.queries.sql_functions import Rung
from lab.queries.sql_plan import compile as read
from lab.queries.whole_answers import Plan
from lab.tables.contracts import Contract

CONTRACT = Contract.model_validate(
    {
        "name": "policies",
        "columns": {
            "paid": {"type": "number"},
            "income": {"type": "number", "nullable": True},
            "order": {"type": "number", "nullable": True},
            "claims": {"type": "integer", "minimum": 0, "maximum": 4},
            "age": {"type": "integer", "minimum": 0},
            "delay": {"type": "integer", "minimum": -1, "maximum": 1, "nullable": True},
            "region": {"type": "category", "levels": ["north", "south", "o'er"]},
            "use": {"type": "category", "levels": ["own", "work"], "nullable": True},
            "brand": {"type": "category"},
            "years": {"type": "number", "role": "exposure", "above": 0, "maximum": 1},
            "number": {"type": "integer", "role": "identifier", "minimum": 0, "maximum": 9},
            "iban": {"type": "category", "role": "never_leaves", "levels": ["x"]},
            "wealth": {"type": "number", "role": "never_leaves", "minimum": 0, "maximum": 9},
            "holder": {"type": "integer", "minimum": 0, "maximum": 9},
        },
    }
)


def plan(text: str) -> Plan:
    return read(text, CONTRACT, "holder")


def refusal(text: str) -> str:
    """Why it is refused; nothing but a ConfigurationError may come."""
    with pytest.raises(ConfigurationError) as caught:
        plan(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Conditions, beside SQLite.

NUMBERS = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 1.0, 1.5, 2.0])
WORDS = ["north", "south", "o'er", "nowhere"]
FRAMES = st.lists(
    st.tuples(
        NUMBERS,
        st.none() | NUMBERS,
        st.none() | NUMBERS,
        st.sampled_from(WORDS[:3]),
        st.sampled_from([None, "own", "work"]),
    ),
    min_size=1,
    max_size=12,
).map(lambda rows: pd.DataFrame(rows, columns=["paid", "income", "order", "region", "use"]))


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "''") + "'"


def _leaves() -> st.SearchStrategy[str]:
    number = NUMBERS.flatmap(
        lambda n: st.sampled_from([f"{n:g}", f"({n:g})"] + [f"-(-({n:g}))", f"{n:e}"] * (n >= 0))
    )
    column = st.sampled_from(["paid", "income", '"order"', '"income"', "policies.income"])
    text = st.sampled_from(["region", "use", '"use"'])
    word = st.sampled_from([*WORDS, "own", "work"]).map(_quoted)
    sign = st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="])
    same = st.sampled_from(["=", "<>"])
    no = st.sampled_from(["", "not "])
    several = st.lists(number, min_size=1, max_size=3).map(", ".join)
    words = st.lists(word, min_size=1, max_size=3).map(", ".join)
    return st.one_of(
        st.builds("{} {} {}".format, column, sign, number),
        st.builds("{} {} {}".format, number, sign, column),
        st.builds("{} {}between {} and {}".format, column, no, number, number),
        st.builds("{} {}in ({})".format, column, no, several),
        st.builds("{} is {}null".format, column | text, no),
        st.builds("{} {} {}".format, text, same, word),
        st.builds("{} {} {}".format, word, same, text),
        st.builds("{} {}in ({})".format, text, no, words),
    )


CONDITIONS = st.recursive(
    _leaves(),
    lambda part: st.one_of(
        st.builds("not ({})".format, part),
        st.builds("not {}".format, part),
        st.builds("{} and {}".format, part, part),
        st.builds("{} or {}".format, part, part),
        st.builds("({}) and ({})".format, part, part),
        st.builds("({}) or ({})".format, part, part),
    ),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None)
@given(frame=FRAMES, condition=CONDITIONS)
def test_a_condition_means_what_it_means_in_sql(frame: pd.DataFrame, condition: str) -> None:
    store = sqlite3.connect(":memory:")
    kinds = 'paid REAL, income REAL, "order" REAL, region TEXT, "use" TEXT'
    store.execute(f"CREATE TABLE policies ({kinds})")
    rows = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    store.executemany("INSERT INTO policies VALUES (?, ?, ?, ?, ?)", rows)
    found = store.execute(f"SELECT rowid FROM policies WHERE {condition}").fetchall()
    store.close()
    typed = frame.assign(
        income=frame["income"].astype(float),
        order=frame["order"].astype(float),
        region=frame["region"].astype("category"),
        use=frame["use"].astype("category"),
    )
    question = plan(f"select count(*) from policies where {condition}").question
    again = Question.model_validate_json(question.model_dump_json())  # as the parties get it
    assert (np.flatnonzero(again.rows(typed)) + 1).tolist() == [row for (row,) in found]


def test_many_conditions_side_by_side_are_one_and_not_a_deep_one() -> None:
    either = " or ".join(f"paid = {k}" for k in range(1000))
    question = plan(f"select count(*) from policies where {either}").question
    frame = pd.DataFrame({"paid": [3.0, 999.0, 1000.0]})
    assert question.rows(frame).tolist() == [True, True, False]
    question.model_dump_json()


# Refusals.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("select count(*) from policies join sites on 1 = 1", "JOIN needs rows of two tables"),
        ("select count(*) from policies, sites", "JOIN needs rows of two tables"),
        ("select sum(paid) from policies having paid > 1", "'paid' is none; conditions on rows"),
        ("select count(*) from policies group by region having region = 'north'", "go into WHERE"),
        ("select count(*) from policies having count(*)", "cannot be written as sums"),
        ("select median(claims) m from policies having m > 1", "HAVING compares sums, and 'm'"),
        ("select histogram(claims, 3) from policies having count(*) > 1", "stands alone"),
        ("select (select 1) from policies", "a subquery makes a table of rows"),
        ("select count(*) from (select * from policies)", "say FROM policies"),
        ("select count(*) from policies where paid in (select 1)", "cannot be written as sums"),
        ("select count(*) from policies where paid = (select 1)", "column with a number or a text"),
        ("with p as (select 1) select count(*) from policies", "WITH makes a table of rows"),
        ("select sum(case when paid > 1 then 1 end) from policies", "CASE inside a sum"),
        ("select case when paid > 1 then 1 end from policies", "CASE inside a sum"),
        ("select count(*) filter (where paid > 1) from policies", "FILTER picks rows that no rule"),
        ("select sum(paid) over () from policies", "OVER looks at single rows"),
        ("select distinct region from policies", "DISTINCT lists values; group by"),
        ("select count(distinct region) from policies", "distinct values cannot be added"),
        ("select * from policies", r"\* would list rows"),
        ("select sum(*) from policies", r"\* would list rows"),
        ("select policies.* from policies", "sum it or group by it"),
        ("select paid from policies", "'paid' is a value of single rows"),
        ("select paid + count(*) from policies", "'paid' is a value of single rows"),
        ("select region from policies group by region", r"ask for a sum, as count\(\*\)"),
        ("select sum(paid + years) from policies", r"do arithmetic outside, as sum\(a\) - sum"),
        ("select sum(paid * years * age) from policies", "a column or a product of two"),
        ("select sum(2) from policies", "a column or a product of two"),
        ("select sum(payd) from policies", "no column 'payd'; did you mean 'paid'"),
        ("select round(sum(paid), 0.5) from policies", "whole digits, 12 at most"),
        ("select round(sum(paid), 99) from policies", "whole digits, 12 at most"),
        ("select round(median(claims)) from policies", r"median\(\) stands alone"),
        ("select sum(zzzz) from policies", "no column 'zzzz'$"),
        ("select summ(paid) from policies", r"did you mean sum\(\)\?"),
        ("select stdev(paid) from policies", r"did you mean stddev\(\)\?"),
        ("select count(paid, years) from policies", r"count\(\) takes 1 column$"),
        ("select corr(paid) from policies", r"corr\(\) takes 2 columns"),
        ("select count(*) from claims", "no table 'claims' here; the parties hold policies"),
        ("select claims, sum(paid) as claims from policies group by claims", "'claims' is a group"),
        (
            "select survival(claims, delay), count(*) from policies",
            "is a whole answer; ask it alone",
        ),
        ("select median(paid, -1e308, 1e308) from policies", "low below high"),
        ("select median(paid, 1e16, 10000000000000002) from policies", "low below high"),
        ("select 1", "say FROM policies"),
        ("select count(*) from policies; select count(*) from policies", "one SELECT is answered"),
        ("drop table policies", "one SELECT is answered"),
        ("select count(*) from policies; drop table policies", "one SELECT is answered"),
        ("explain select count(*) from policies", "one SELECT is answered"),
        ("select count(*) from policies union select 1", "one SELECT is answered"),
        ("", "one SELECT is answered"),
        ("select sum(paid from policies", "not readable SQL at column 20, near 'from'"),
        ("select count(*) from policies where paid = 'open", "not readable SQL"),
        ("select count(*) from policies where region like 'n%'", "LIKE is not answered; list"),
        ("select count(*) from policies where region not like 'n%'", "LIKE is not answered"),
        ("select count(*) from policies where paid = '1'", "'paid' is compared with a number"),
        (
            "select count(*) from policies where region = 1",
            "'region' is text and has no level 1; put a level in quotes",
        ),
        ("select count(*) from policies where region in ('north', -1)", "has no level -1"),
        ("select count(*) from policies where region < 'north'", "not <"),
        ("select count(*) from policies where paid = income", "column with a number or a text"),
        ("select count(*) from policies where paid = null", "column with a number or a text"),
        ("select count(*) from policies where paid + 1 = 2", "cannot be written as sums"),
        ("select count(*) from policies where 1 = 1", "cannot be written as sums"),
        ("select count(*) from policies where paid < 1e999", "'1e999'"),
        ("select count(*) from policies where paid = cast('1' as int)", "with a number or a text"),
        ("select sum(region) from policies", "'region' is text and has no sum"),
        ("select corr(paid, region) from policies", "'region' is text and has no sum"),
        ("select median(region) from policies", "'region' is text and has no sum"),
        ("select count(*) from policies group by paid", r"write cut\(paid, edge, edge, …\)"),
        ("select count(*) from policies group by age", r"write cut\(age, edge, edge, …\)"),
        ("select count(*) from policies group by brand", "give the contract its levels: 'brand'"),
        ("select count(*) from policies group by cut(paid, 0, 2, 1)", "edges must rise"),
        ("select count(*) from policies group by cut(paid, 0, 0)", "edges must rise"),
        ("select count(*) from policies group by cut(region, 0, 1)", "'region' is text"),
        ("select count(*) from policies group by claims, claims", "a column groups twice"),
        ("select count(*) from policies group by claims, cut(claims, 0, 4)", "groups twice"),
        ("select count(*) from policies group by 1", r"group by columns or cut\(.*, not COUNT"),
        ("select count(*) from policies group by 2", "2 is no place of an output; there are 1"),
        ("select count(*) from policies order by 0", "0 is no place of an output; there are 1"),
        ("select claims a, region a, count(*) from policies group by 1, 2", "two groups have one"),
        ("select claims n, count(*) n from policies group by claims", "'n' is a group"),
        (
            "select count(*) from policies group by claims, region, use, cut(paid, 0, 1)",
            "at most 3 grouping columns, not 4",
        ),
        (
            "select count(*), count(*) from policies",
            r"two outputs are called 'count\(\*\)'; say AS",
        ),
        ("select count(*) from policies order by paid", "ORDER BY one column of the answer"),
        ("select count(*) n, sum(paid) s from policies order by n, s", "ORDER BY one column"),
        ("select count(*) from policies offset 1", "OFFSET is not answered"),
        ("select count(*) from policies limit -1", "LIMIT takes one whole number"),
        ("select count(*) from policies limit 1.5", "LIMIT takes one whole number"),
        ("select count(*) from policies fetch first 5 rows only", "LIMIT takes one whole number"),
        (
            "select median(paid) from policies",
            r"no range; write where to look for it: median\(paid",
        ),
        ("select quantile(claims) from policies", "needs a share, as 0.9"),
        ("select quantile(claims, 1.5) from policies", "a share is between 0 and 1"),
        ("select median(paid, 2, 1) from policies", "low below high"),
        ("select median(claims) + 1 from policies", r"median\(\) stands alone"),
        ("select rate(claims) * 2 from policies", r"rate\(\) stands alone"),
        ("select histogram(claims, 3), count(*) from policies", "is a whole answer; ask it alone"),
        ("select histogram(claims, 3) from policies group by region", "at most 0 grouping columns"),
        ("select log_rank(claims, delay) from policies", "compares groups: add GROUP BY"),
        ("select severity() from policies", "0 columns with the role 'paid'; name the column"),
        ("select missing() from policies", r"missing\(\) takes 1 column"),
    ],
)
def test_a_refusal_says_why(text: str, reason: str) -> None:
    told = refusal(text)
    assert told.startswith("query: ")
    assert re.search(reason, told), told


@pytest.mark.parametrize(
    "text",
    [
        "select count(*) from policies tablesample (10 percent)",
        "select count(*) from policies pivot (sum(paid) for region in ('north'))",
        "select count(*) from policies for system_time as of '2020'",
        "select count(*) from policies group by claims with rollup",
        "select count(*) from policies group by rollup (claims)",
        "select count(*) from policies group by all",
        "select count(*) from other.policies",
        "select count(*) from policies where paid between symmetric 2 and 1",
        "select count(*) into copy from policies",
        "select count(*) from policies for update",
    ],
)
def test_no_clause_is_passed_over_in_silence(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize("column", ["number", "iban", "wealth", "holder"])
@pytest.mark.parametrize(
    "shape",
    [
        "select sum({}) from policies",
        "select count({}) from policies",
        "select missing({}) from policies",
        "select sum(paid * {}) from policies",
        "select corr({}, paid) from policies",
        "select median({}) from policies",
        "select quantile({}, 0.1, 0, 1) from policies",
        "select min({}) from policies",
        "select rate({}) from policies",
        "select frequency({}, years) from policies",
        "select histogram({}, 3) from policies",
        "select correlation(paid, {}) from policies",
        "select triangle({}, claims, delay) from policies",
        "select triangle(paid, claims, {}) from policies",
        "select survival({}, claims) from policies",
        "select survival(claims, {}) from policies",
        "select drift({}) from policies",
        "select drift({}, 0, 1, 2) from policies",
        "select count(*) from policies group by {}",
        "select count(*) from policies group by cut({}, 0, 1)",
        "select count(*) from policies where {} = 1",
        "select count(*) from policies where not (paid = 1 and {} is null)",
        "select count(*) from policies where {} in ('x')",
    ],
)
def test_no_question_is_about_a_column_that_identifies_or_never_leaves(
    shape: str, column: str
) -> None:
    assert f"no question is about '{column}': its role is" in refusal(shape.format(column))


def test_missing_of_all_columns_leaves_out_those_that_no_question_is_about() -> None:
    outputs = plan("select missing(*) from policies").outputs
    assert not {"number", "iban", "wealth", "holder"} & set(outputs)
    assert {"paid", "income", "use"} <= set(outputs)


def test_a_table_of_too_many_cells_is_a_list_of_persons() -> None:
    edges = ", ".join(map(str, range(1100)))
    told = refusal(
        f"select count(*) from policies group by cut(paid, {edges}), cut(years, {edges})"
    )
    assert "1,207,801 cells are more than 1,000,000" in told


@pytest.mark.parametrize(
    "text",
    [
        "select {} from policies".format("+".join(["count(*)"] * 300)),
        "select {} from policies".format("+".join(["count(*)"] * 1200)),
        "select " + "(" * 500 + "count(*)" + ")" * 500 + " from policies",
        "select count(*) from policies where " + "not " * 3000 + "paid = 1",
        "select count(*) from policies where " + "(" * 3000 + "paid = 1" + ")" * 3000,
        "select count(*) from policies where paid = " + "- " * 4000 + "1",
    ],
)
def test_a_deep_nest_is_refused_as_one(text: str) -> None:
    assert "nested too deeply" in refusal(text)


@pytest.mark.parametrize(
    "text", ["(", "x", "'", "select ", "/*", "\0", "select count(*)+", "é", ";"]
)
def test_ten_thousand_characters_of_anything_are_refused(text: str) -> None:
    refusal((text * 10_000)[:10_000])


TOKENS = [
    "select",
    "count(*)",
    "sum(",
    "avg(",
    "median(",
    "rate(",
    "cut(",
    "histogram(",
    "missing(",
    "survival(",
    "drift(",
    ")",
    ",",
    "*",
    "+",
    "-",
    "/",
    "from",
    "policies",
    "where",
    "group",
    "by",
    "order",
    "limit",
    "paid",
    "income",
    "region",
    "'north'",
    "1",
    "0.5",
    "-2",
    "1e999",
    "=",
    "<>",
    "<",
    "in",
    "(",
    "between",
    "and",
    "or",
    "not",
    "is",
    "null",
    "as",
    "x",
    "distinct",
    "case",
    "when",
    "then",
    "end",
    "over",
    "filter",
    "having",
    ";",
    "union",
    "join",
    "on",
    '"',
    "'",
    "--",
    "/*",
    "cast",
    "::",
    "?",
    "@",
    "{",
    "}",
    "[",
    "]",
    "with",
    "values",
    "interval",
    "date",
    "exists",
    "like",
    "desc",
    "all",
    "any",
    "%",
    "||",
    "|",
    "&",
]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(st.sampled_from(TOKENS), max_size=20).map(" ".join),
        st.lists(st.sampled_from(TOKENS), max_size=12).map(
            lambda tokens: f"select {' '.join(tokens)} from policies"
        ),
        st.lists(st.sampled_from(TOKENS), max_size=12).map(
            lambda tokens: f"select count(*) from policies where {' '.join(tokens)}"
        ),
    )
)
def test_whatever_is_typed_is_read_or_refused(text: str) -> None:
    try:
        plan(text).question.model_dump_json()
    except ConfigurationError as error:
        assert str(error).startswith("query: ")


# What is read.


def axis(grouping: str, **more: object) -> Axis:
    text = f"select count(*) from policies group by {grouping}"
    (found,) = read(text, CONTRACT, "holder", **more).question.axes  # type: ignore[arg-type]
    return found


def test_a_category_groups_by_the_levels_of_its_contract() -> None:
    assert axis("region") == Axis(column="region", levels=("north", "south", "o'er"))


def test_a_category_without_levels_groups_by_those_that_are_found() -> None:
    assert axis("brand", levels=lambda column: ("a", "b")).levels == ("a", "b")


def test_whole_numbers_group_by_their_range() -> None:
    assert axis("claims") == Axis(column="claims", levels=(0.0, 1.0, 2.0, 3.0, 4.0))


def test_cut_groups_by_intervals() -> None:
    assert axis("cut(paid, -1, 0, 2.5)") == Axis(column="paid", edges=(-1.0, 0.0, 2.5))
    shown = [str(name) for name in axis("cut(paid, -1, 0, 2.5)").names]
    assert shown == ["[-1.0, 0.0]", "(0.0, 2.5]"]


@pytest.mark.parametrize("grouping", ["use", "delay", "cut(income, 0, 1, 2)"])
def test_a_nullable_column_has_a_cell_for_missing_values(grouping: str) -> None:
    found = axis(grouping)
    assert found.missing
    assert found.names[-1] is None
    column = pd.Series([None, 1.0], dtype=float)
    if found.column == "use":
        column = pd.Series([None, "work"], dtype="category")
    assert found.codes(column)[0] == found.size - 1
    assert found.codes(column)[1] in range(found.size - 1)


def test_a_value_in_no_level_and_no_interval_is_in_no_cell() -> None:
    cut = axis("cut(paid, 0, 1, 2)").codes(pd.Series([-1.0, 0.0, 1.0, 2.0, 2.1, np.nan]))
    assert cut.tolist() == [-1, 0, 0, 1, -1, -1]
    assert axis("claims").codes(pd.Series([4.0, 5.0, 0.5, np.nan])).tolist() == [4, -1, -1, -1]
    words = pd.Series(["o'er", "east", None], dtype="category")
    assert axis("region").codes(words).tolist() == [2, -1, -1]


def test_a_cut_is_closed_where_an_experiments_cut_is() -> None:
    """A value on an edge is in the same interval in a question and in a model."""
    frame = pd.DataFrame({"age": [19.0, 20.5, 25.0, 25.5, 30.0, 31.0]})
    own = axis("cut(age, 20, 25, 30)")
    places = own.codes(frame["age"]).tolist()
    assert places == [-1, 0, 0, 1, 1, -1]
    model = Feature(column="age", cut=(20.0, 25.0, 30.0)).texts(frame)
    names = ["20-25", "25-30"]
    assert [names.index(level) if level in names else -1 for level in model] == places
    for place in (0, 1):
        cell = Question(table="policies", where=own.condition(place)).rows(frame)
        assert cell.tolist() == [p == place for p in places]
        assert [value in own.names[place] for value in frame["age"]] == cell.tolist()


def test_a_total_is_asked_for_once_however_often_it_is_used() -> None:
    text = "select count(*), avg(paid), sum(paid) / count(paid), avg(income) from policies"
    assert plan(text).question.totals == (
        ROWS,
        Total(kind="sum", columns=("paid",), centres=(0.0,)),
        Total(kind="sum", columns=("income",), centres=(0.0,)),
        Total(kind="count", columns=("income",)),
    )


def test_arithmetic_on_totals_is_the_analysts() -> None:
    found = plan("select -sum(paid) + 2 * (count(*) - 3) / 4 as x from policies").outputs["x"]
    assert isinstance(found, Formula)
    totals = [np.array([7.0, 5.0]), np.array([1.5, np.nan])]
    np.testing.assert_array_equal(found.value(totals), [0.5, np.nan])


def test_what_is_undefined_is_nan_and_no_warning() -> None:
    found = plan("select sum(paid) / (count(*) - 1) as x from policies").outputs["x"]
    assert isinstance(found, Formula)
    assert np.isnan(found.value([np.ones(1), np.ones(1)])).all()


def test_the_answer_is_ordered_by_an_output_or_a_group_and_cut_off() -> None:
    text = "select claims, count(*), sum(paid) s from policies group by claims order by {} limit 2"
    assert plan(text.format("s desc")).order == ("s", True)
    assert plan(text.format("claims")).order == ("claims", False)
    assert plan(text.format("count(*) desc")).order == ("count(*)", True)
    assert plan(text.format("s")).limit == 2


def test_a_quantile_is_looked_for_in_the_contracts_range_or_the_one_given() -> None:
    text = "select median(claims) a, quantile(paid, 0.9, -5, 5, 0.1) b, max(years) c from policies"
    assert plan(text).outputs == {
        "a": Rung("claims", 0.5, 0.0, 4.0, 1.0),
        "b": Rung("paid", 0.9, -5.0, 5.0, 0.1),
        "c": Rung("years", 1.0, 0.0, 1.0, 1e-4),
    }


def test_a_final_semicolon_and_a_comment_are_no_second_statement() -> None:
    assert plan("select count(*) from policies; -- all of them").question.totals == (ROWS,)
