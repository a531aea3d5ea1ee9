"""The Lorenz curve of a GLM over joined test rows: bins of a predicted rate that neither side knows.

Each side rounds its part of the linear predictor to a grid. A row's bin is the sum of two whole numbers then,
one at each side, and what falls into a bin is a sum over pairs of such numbers: products of the insurer's
amounts, by its number, with the fund's indicators of its own. The sums by pair are not opened, those by bin
are. A predicted rate is right to a factor of exp(step) on the log link, which the curve tells its reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from federated.joined.sums.factors import (
    Arguments,
    Format,
    Groups,
    Half,
    Halves,
    Multiplied,
    Role,
    Shares,
    Widths,
    within,
)
from federated.joined.sums.laws import power_of_two
from federated.joined.sums.scores import model_of
from lab.models.glm import GLM, Response
from lab.privacy.joining import PERSONS
from lab.scores import accuracy, places
from lab.sums import Floats, Sums
from secure_agg.arithmetic.ring import Integers, Ring

#: Amounts are whole numbers of this part of an average row's. A row may have 2**21 times as much, and the sum
#: of 2**28 such rows is below 2**62, within the ring.
PART = 2.0**-12
AMOUNTS = ("size", "actual", PERSONS)


@dataclass(frozen=True)
class JoinedLorenz(Arguments):
    """``score_lorenz``: exposure, actual, expected and persons by bin of the rounded prediction."""

    form: ClassVar[Format] = Format(2.0**33, 1.0, Ring(64), bits=63, indicators=True)

    @property
    def _model(self) -> GLM:
        return model_of(self.a.model)

    @property
    def _places(self) -> places.Places:
        return places.Places.of(self.arrays["edges"])

    @property
    def _middle(self) -> places.Middle:
        return places.Middle.of(self.a.task.law, self.a.scale)

    def products(self) -> Multiplied:
        return [((*AMOUNTS, "here", "valid"), ("place", "here", "valid"))]

    def widths(self) -> Widths:
        ones, count = {"here": 1, "valid": 1}, self._places.count
        return dict.fromkeys(AMOUNTS, count) | ones, {"place": count} | ones

    def left(self, side: Half) -> Groups:
        rows, (size, target) = side.rows(self.a.task, "test"), self._units
        r = Response(rows, self.a.task)
        place = self._one_hot("insurer", rows, self._middle.of_market)
        amounts = {"size": r.weight * r.exposure / size, "actual": r.weight * r.y / target}
        groups = {name: place * np.rint(v / PART)[:, None] for name, v in amounts.items()}
        return within({**groups, PERSONS: place}, len(rows), self.form)

    def right(self, side: Half) -> Groups:
        rows = side.rows(self.a.task, "test")
        return within({"place": self._one_hot("fund", rows, 0.0)}, len(rows), self.form)

    def _one_hot(self, role: Role, rows: pd.DataFrame, middle: float) -> Floats:
        """(rows, places) 1 at a row's number, which is counted from the first place around."""
        halves = Halves(self._model.encoding, self.owner)
        beta = np.array(self._model.beta)[halves.places[role]]
        part = (halves.matrix(role, rows) @ beta - middle) / self._middle.unit
        first = self._places.first if role == "insurer" else 0
        at = (self._places.numbers(part) - first) % self._places.count
        return np.asarray(at[:, None] == np.arange(self._places.count), dtype=np.float64)

    @property
    def _units(self) -> tuple[float, float]:
        """About what an average row's exposure and target are, powers of two."""
        scale = self.a.scale
        target = np.sqrt(scale.square * scale.weight)
        return power_of_two(scale.exposure), power_of_two(target)

    def combined(self, shares: Shares) -> dict[str, Integers]:
        count = self._places.count
        bins = np.add.outer(np.arange(count), np.arange(count)) % count
        values = {}
        for name in AMOUNTS:
            values[name] = np.zeros(count, dtype=object)
            np.add.at(values[name], bins, shares(name, "place"))
        return values

    def opened(self, values: Mapping[str, Floats], rows: int) -> Sums:
        size, target = self._units
        arrays = {PERSONS: values[PERSONS]}
        arrays["size"] = values["size"] * PART * size
        arrays["actual"] = values["actual"] * PART * target
        predicted = self._middle.of_market + self._middle.unit * self._places.middles
        arrays["expected"] = arrays["size"] * self.a.task.law.mean(predicted)
        return Sums(arrays, accuracy.level_limits(), rows)
