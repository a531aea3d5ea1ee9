"""The benchmarks that `lab bench` names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.bench import link, masks, parties
from federated.bench.joined import alignment
from federated.bench.joined import trees as joined_trees
from federated.bench.report import BENCHES, module_of, report
from federated.bench.trees import Extrapolation
from lab.errors import ConfigurationError


@pytest.mark.parametrize("name", BENCHES)
def test_a_benchmark_has_figures_and_says_what_they_are(name: str) -> None:
    figures = module_of(name).figures
    assert figures.__doc__


def test_a_name_that_is_no_benchmark_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigurationError, match="no bench 'paillers'; there are paillier, masks"):
        report(("glm", "paillers"), None, quick=True)


def test_sums_under_masks_are_measured_against_the_clear_and_paillier() -> None:
    assert [line[2].partition(":")[0] for line in masks.figures(None, quick=True)] == [
        "in the clear",
        "Paillier 3072",
    ]


def test_an_alignment_is_measured_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "QUICK", 300)
    lines = alignment.figures(None, quick=True)
    assert lines[0][0] == "300 x 300, both learn"
    assert {line[0] for line in lines} >= {"both sides' peak memory", "300 x 300, nobody learns"}


@pytest.mark.slow
def test_claims_of_three_payers_are_compared_and_asked_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "QUICK", 400)
    lines = link.figures(None, quick=True)
    assert [line[0].partition(", ")[0] for line in lines[:2]] == ["3 x 400 invoices"] * 2
    assert all(float(line[1].removesuffix(" s")) < 1 for line in lines[1:])


@pytest.mark.slow
def test_the_same_rows_are_solved_by_few_parties_and_by_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parties, "PARTIES", (3, 6))
    lines = [line for line in parties.figures(None, quick=True) if line[3]]
    assert [line[0].partition(",")[0] for line in lines] == ["trees", "GLM"] * 2
    assert all(line[0].endswith("6 parties") and line[2].startswith("3 parties") for line in lines)


@given(
    st.floats(0, 1e3), st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=6), st.integers(0, 99)
)
def test_trees_that_were_not_grown_never_take_less_than_nothing(
    before: float, each: list[float], more: int
) -> None:
    whole = Extrapolation.of(before, tuple(each), len(each) + more)
    grown = before + sum(each)
    assert grown <= whole.least <= whole.most
    assert whole.least * (1 - 1e-9) <= whole.seconds <= whole.most * (1 + 1e-9)


@pytest.mark.slow
def test_trees_of_joined_sides_are_measured_beside_the_pooled_ones() -> None:
    whats = [line[0] for line in joined_trees.figures(None, quick=True)]
    assert whats == [f"2,000 persons, 2 trees, {way}" for way in ("pooled", "paillier", "triples")]
