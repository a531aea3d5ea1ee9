"""A pure premium of joined sides as real processes: the oracle is the simulation of the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.study.experiment import Experiment
from tests.federated.deployment.test_sides import simulated
from tests.rigs.sides import Sides
from tests.rigs.trial import started

SEVERITY = {"target": "paid", "per": "claims", "family": "gamma", "features": ["age", "chronic"]}


class CostSides(Sides):
    """A pair whose insurer knows what was paid as well."""

    def _undealt(self, insurers: int) -> Experiment:
        for path in self.root.glob("own*.csv"):
            table = pd.read_csv(path)
            amounts = np.random.default_rng(2).gamma(2.0, 300.0, len(table)).round(2) + 1
            table.assign(paid=table["claims"] * amounts).to_csv(path, index=False)
        values = super()._undealt(insurers).model_dump()
        return Experiment.model_validate(values | {"model": {"kind": "glm", "severity": SEVERITY}})


@pytest.mark.slow
def test_a_pure_premium_of_real_sides_is_that_of_the_simulation(
    tmp_path: Path, authority_key: Any
) -> None:
    with started(CostSides(tmp_path, authority_key)) as made:
        experiment = made.study()
        found, told = made.run(experiment), simulated(experiment, made)
        for part in ("frequency", "severity"):
            ours, theirs = (s.arms["federated"].models["all"][part] for s in (found, told))
            assert ours.hash == theirs.hash
        for part in found.parts:
            ours, theirs = (s.table(part).loc[("federated", "all")] for s in (found, told))
            assert ours["deviance"] == pytest.approx(theirs["deviance"], rel=1e-9)
            assert ours["balance"] == pytest.approx(theirs["balance"], rel=1e-9)
