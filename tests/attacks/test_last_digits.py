"""One insurer's own sums in the last digits of a total, where the others' floats have none.

Under masks the coordinator holds each total as an exact whole number. Floats of 1e9 end at 1e-7, so
that whatever a finer grid holds below is the smallest insurer's alone.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from flwr.app import RecordDict

from federated.federation import Federation
from federated.hiding.masks import Masks
from federated.hiding.protocol import Talk
from federated.messages import Request, form_from_json, read
from federated.solvers import glm
from federated.solvers.encoding import agree
from lab.models.agreement import CLASSES, bounds
from lab.models.design import Feature
from lab.models.glm import Task
from lab.sums import DIGITS, Limit, Sums, limit_of
from lab.tables.contracts import draft
from tests.conftest import federate, split
from tests.federated.solvers.test_glm import table

LARGE, SMALL = (1_234_567_890.123, 2_345_678_901.77), 0.0000000372


def read_off(limit: Limit) -> float | None:
    """What the coordinator reads below the last digit of the large floats; None where nothing is."""
    grid = Fraction(limit.resolution)
    total = sum(round(Fraction(value) / grid) for value in (*LARGE, SMALL))
    last = Fraction(min(map(math.ulp, LARGE))) / grid
    return float(total % int(last) * grid) if last > 1 else None


def test_a_grid_finer_than_floats_shows_the_smallest() -> None:
    """The unprotected twin."""
    assert read_off(Limit(2.0**60, 2.0**-60)) == pytest.approx(SMALL, rel=1e-9)


def test_a_grid_that_follows_from_the_largest_shows_nothing() -> None:
    reached = np.array([[sum(v >= c for v in (*LARGE, SMALL)) for c in CLASSES]], dtype=float)
    (most,) = bounds(reached)
    assert most > max(LARGE)
    assert read_off(limit_of(most)) is None


class Seen(Masks):
    """Masks whose forms are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.proofs: list[RecordDict] = []

    def total(self, talk: Talk, request: Request) -> Sums:
        total = super().total(talk, request)
        self.proofs.append(self.proof)
        return total


def test_no_sum_that_all_parties_see_has_a_finer_grid() -> None:
    seen, task = Seen(), Task(target="y", exposure="years")

    def fit(federation: Federation) -> glm.Fit:
        contract = draft(table("poisson"), "t")
        features = (Feature(column="age"), Feature(column="region"))
        encoding = agree(federation, task, features, contract, 10)
        return glm.fit(federation, task, encoding)

    federate(split(table("poisson"), 3), fit, seen)
    forms = [form_from_json(read(proof, "form").decode()) for proof in seen.proofs]
    assert len(forms) > 6
    for form in forms:
        for _, limit in form.values():
            assert limit.bound / limit.resolution <= 2.0**DIGITS
