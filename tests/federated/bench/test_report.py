"""The benchmarks that `lab bench` names."""

from __future__ import annotations

from importlib import import_module

import pytest

from federated.bench import alignment, masks
from federated.bench.report import BENCHES, report
from lab.errors import ConfigurationError


@pytest.mark.parametrize("name", BENCHES)
def test_a_benchmark_has_figures_and_says_what_they_are(name: str) -> None:
    figures = import_module(f"federated.bench.{name}").figures
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
