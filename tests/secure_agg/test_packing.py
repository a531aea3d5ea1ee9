"""Packing against exact integers and fractions."""

from __future__ import annotations

import hashlib
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_agg.errors import InconsistentSum, InvalidLayout, LayoutMismatch, ValueOutOfBounds
from secure_agg.packing import Field, Layout, pack, unpack

REGRESSION = Field(40, 2.0**60, 2.0**-64)  # about 130 bits a slot


def fields(largest_size=30):
    def field(size, bound, exponent):
        return Field(size, bound, math.ldexp(1.0, math.frexp(bound)[1] - 1 - exponent))

    bounds = st.floats(2.0**-60, 2.0**60)
    return st.builds(field, st.integers(1, largest_size), bounds, st.integers(0, 140))


def layouts():
    return st.builds(
        Layout,
        st.lists(fields(), min_size=1, max_size=4).map(tuple),
        st.integers(1, 9),
        st.sampled_from([2048, 2049, 3072]),
    )


@st.composite
def jobs(draw):
    """A layout, and the arrays of some of its parties, with bounds and tiny values among them."""
    layout = draw(layouts())
    parties = draw(st.integers(1, layout.parties))

    def values(field):
        ends = st.sampled_from(
            [0.0, -0.0, field.bound, -field.bound, field.resolution, field.resolution / 2, 5e-324]
        )
        inside = st.floats(-field.bound, field.bound)
        return st.lists(ends | inside, min_size=field.size, max_size=field.size).map(np.array)

    return layout, [[draw(values(f)) for f in layout.fields] for _ in range(parties)]


def grid_sum(field, values):
    """The exact sum of the values rounded to the field's grid, half to even."""
    resolution = Fraction(field.resolution)
    return sum(round(Fraction(float(value)) / resolution) for value in values) * resolution


@given(jobs())
@settings(max_examples=150)
def test_added_plaintexts_open_to_the_exact_sum_rounded_once(job):
    layout, contributions = job
    packed = [pack(layout, arrays) for arrays in contributions]
    totals = [sum(column) for column in zip(*packed, strict=True)]
    assert len(totals) == layout.plaintexts
    assert all(0 < total < 2 ** (layout.key_bits - 1) for total in totals)
    opened = unpack(layout, totals, len(contributions))
    for index, field in enumerate(layout.fields):
        assert opened[index].dtype == np.float64
        assert opened[index].shape == (field.size,)
        for at in range(field.size):
            exact = grid_sum(field, [arrays[index][at] for arrays in contributions])
            assert opened[index][at] == float(exact)


@given(jobs())
@settings(max_examples=40)
def test_slots_are_where_the_runs_say(job):
    layout, contributions = job
    arrays = contributions[0]
    plaintexts = pack(layout, arrays)
    seen = [[] for _ in layout.fields]
    for plaintext, runs in zip(plaintexts, layout.runs(), strict=True):
        assert plaintext % 2**layout.count_bits == 1
        at = layout.count_bits
        for run in runs:
            assert run.offset_bits == at
            field, width = layout.fields[run.field], layout.widths[run.field]
            for index in range(run.start, run.stop):
                slot = (int(plaintext) >> at) % 2**width
                exact = round(
                    Fraction(float(arrays[run.field][index])) / Fraction(field.resolution)
                )
                assert slot == exact + field.limit
                at += width
            seen[run.field] += range(run.start, run.stop)
        assert at <= layout.key_bits - 1
    assert seen == [list(range(field.size)) for field in layout.fields]


@given(layouts())
def test_every_slot_holds_the_largest_sum_of_all_parties(layout):
    for sign in (1, -1):
        arrays = [np.full(field.size, sign * field.bound) for field in layout.fields]
        totals = [layout.parties * plaintext for plaintext in pack(layout, arrays)]
        opened = unpack(layout, totals, layout.parties)
        for field, values in zip(layout.fields, opened, strict=True):
            assert (values == float(grid_sum(field, [sign * field.bound] * layout.parties))).all()


@given(layouts())
def test_a_layout_survives_json_and_its_digest_identifies_it(layout):
    again = Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
    assert again == layout
    assert again.digest() == layout.digest()
    assert hash(again) == hash(layout)
    other = Layout(layout.fields, layout.parties + 1, layout.key_bits)
    assert other.digest() != layout.digest()


def test_known_layout_digest_and_plaintexts():
    layout = Layout((Field(3, 100.0, 0.25), REGRESSION), 5, 2048)
    assert layout.widths == (12, 128)
    assert layout.plaintexts == 3
    assert layout.digest() == "fe47e4740d83c439fbcb5f33f7aaef6aae7c928486df6ed3b64faf87c9e01d64"
    arrays = [np.array([-100.0, 0.1, 99.875]), np.arange(40.0) / 3]
    text = ",".join(f"{plaintext:x}" for plaintext in pack(layout, arrays))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "4197b80c70e0c020884bb83d5fdadc18ff43149a6b83b8f91b2fdfb103cce0d6"
    )
    small = Layout((Field(2, 3.0, 1.0),), 2, 2048)
    assert pack(small, [[-3, 2]]) == [1 + (0 << 2) + (5 << 6)]


def test_regression_sums_keep_every_bit():
    layout = Layout((REGRESSION,), 5, 3072)
    values = np.random.default_rng(3).normal(size=40) * 10.0 ** np.arange(-20, 20, dtype=float)
    values = np.clip(values, -(2.0**60), 2.0**60)
    (opened,) = unpack(layout, pack(layout, [values]), 1)
    exact = [float(grid_sum(REGRESSION, [value])) for value in values]
    assert opened.tolist() == exact
    large = np.abs(values) > 1.0
    assert (opened[large] == values[large]).all()


def test_arrays_may_be_strided_integers_or_booleans():
    layout = Layout((Field(4, 100.0, 1.0),), 3, 2048)
    expected = [1, 0, 1, 1]
    for array in (
        [True, False, True, True],
        np.array(expected, dtype=np.int8),
        np.array(expected, dtype=np.uint64),
        np.array(expected, dtype=np.float32),
        np.array([1, 9, 0, 9, 1, 9, 1, 9], dtype=np.int64)[::2],
        np.array(expected[::-1], dtype=">i4")[::-1],
    ):
        (opened,) = unpack(layout, pack(layout, [array]), 1)
        assert opened.tolist() == expected


@pytest.mark.parametrize(
    "bad",
    [math.nan, math.inf, -math.inf, np.nextafter(100.0, 200.0), -100.5, 1e308, 2**53, -(2**63)],
)
def test_a_value_out_of_bounds_is_refused_and_not_shown(bad):
    layout = Layout((Field(1, 1.0, 1.0), Field(3, 100.0, 2.0**-20)), 5, 2048)
    with pytest.raises(ValueOutOfBounds) as caught:
        pack(layout, [[0], np.array([1, bad, 2])])
    assert "field 1" in str(caught.value)
    assert "100.0" in str(caught.value)
    assert repr(bad) not in str(caught.value)


def test_an_integer_without_an_exact_float_is_refused_rather_than_rounded():
    layout = Layout((Field(1, 2.0**53, 1.0),), 5, 2048)
    assert unpack(layout, pack(layout, [np.array([2**53 - 1])]), 1)[0][0] == 2**53 - 1
    with pytest.raises(ValueOutOfBounds):
        pack(layout, [np.array([2**53 + 1])])


@pytest.mark.parametrize(
    "arrays",
    [
        [],
        [[1, 2]],
        [[1, 2, 3], [1]],
        [[[1, 2, 3]]],
        [1],
        [["1", "2", "3"]],
        [[1j, 2, 3]],
        [[None, 1, 2]],
        [np.array([1, 2, 3], dtype="datetime64[s]")],
        [np.array([1, 2, 3], dtype=np.longdouble)],
    ],
)
def test_other_arrays_than_the_layout_has_are_refused(arrays):
    with pytest.raises(LayoutMismatch):
        pack(Layout((Field(3, 10.0, 1.0),), 2, 2048), arrays)


@pytest.mark.parametrize(
    ("size", "bound", "resolution"),
    [
        (0, 1.0, 1.0),
        (-1, 1.0, 1.0),
        (2**32, 1.0, 1.0),
        (1.0, 1.0, 1.0),
        (True, 1.0, 1.0),
        (1, 0.0, 1.0),
        (1, -1.0, 1.0),
        (1, math.inf, 1.0),
        (1, math.nan, 1.0),
        (1, "1", 1.0),
        (1, None, 1.0),
        (1, 10**400, 1.0),
        (1, 1.0, 0.0),
        (1, 1.0, 0.1),
        (1, 1.0, 3.0),
        (1, 1.0, -1.0),
        (1, 1.0, math.inf),
        (1, 1.0, 2.0),
    ],
)
def test_a_field_that_makes_no_sense_is_refused(size, bound, resolution):
    with pytest.raises(InvalidLayout):
        Field(size, bound, resolution)


def test_a_layout_that_makes_no_sense_is_refused():
    field = Field(3, 10.0, 1.0)
    for fields_, parties, key_bits in (
        ((), 2, 2048),
        ((1,), 2, 2048),
        ((field,), 0, 2048),
        ((field,), 2**32, 2048),
        ((field,), 2.0, 2048),
        ((field,), 2, 1024),
        ((field,), 2, "2048"),
        ((Field(1, 2.0**1000, 2.0**-1050),), 2, 2048),
        ((Field(1, 1.7e308, 2.0**1000),), 2, 2048),
    ):
        with pytest.raises(InvalidLayout):
            Layout(fields_, parties, key_bits)


def test_a_dict_that_is_no_layout_is_refused():
    good = Layout((Field(3, 10.0, 1.0),), 2, 2048).to_dict()
    field = good["fields"][0]
    for bad in (
        None,
        [],
        {},
        {**good, "format": "secure_agg.layout/2"},
        {**good, "more": 1},
        {**good, "fields": {}},
        {**good, "fields": [1]},
        {**good, "fields": [{**field, "bound": 1.0}]},
        {**good, "fields": [{**field, "bound": "nan"}]},
        {**good, "fields": [{**field, "bound": "0x1p99999"}]},
        {**good, "fields": [{**field, "resolution": "ten"}]},
        {**good, "fields": [{**field, "size": "3"}]},
        {**good, "fields": [{**field, "size": 3.0}]},
        {**good, "fields": [{**field, "more": 1}]},
    ):
        with pytest.raises(InvalidLayout):
            Layout.from_dict(bad)


def test_a_total_of_another_number_of_contributions_is_refused():
    layout = Layout((Field(100, 10.0, 1.0), REGRESSION), 7, 2048)
    one = pack(layout, [np.ones(100), np.ones(40)])
    for added in range(1, 8):
        total = [added * plaintext for plaintext in one]
        assert unpack(layout, total, added)[0].tolist() == [added] * 100
        for claimed in set(range(1, 8)) - {added}:
            with pytest.raises(InconsistentSum):
                unpack(layout, total, claimed)
    for claimed in (0, -1, 8, 1.0, None):
        with pytest.raises(LayoutMismatch):
            unpack(layout, one, claimed)


def test_a_party_that_leaves_its_bounds_is_noticed():
    layout = Layout((Field(3, 5.0, 1.0),), 2, 2048)
    (honest,) = pack(layout, [[5, 5, 5]])
    at = layout.count_bits + layout.widths[0]
    for added in (1 << at, 1 << 2000, 1 << layout.count_bits, 1, -honest, -1, 1 << 5000):
        with pytest.raises(InconsistentSum):
            unpack(layout, [honest + added], 1)


def test_too_few_and_too_many_plaintexts_are_refused():
    layout = Layout((Field(100, 2.0**60, 1.0),), 2, 2048)
    plaintexts = pack(layout, [np.zeros(100)])
    for wrong in (plaintexts[:-1], [*plaintexts, plaintexts[0]], []):
        with pytest.raises(LayoutMismatch):
            unpack(layout, wrong, 1)


@given(st.lists(fields(20_000), min_size=1, max_size=3).map(tuple), st.integers(1, 100))
@settings(max_examples=40)
def test_the_number_of_plaintexts_is_that_of_the_runs(some_fields, parties):
    layout = Layout(some_fields, parties, 2048)
    assert layout.plaintexts == sum(1 for _ in layout.runs())
