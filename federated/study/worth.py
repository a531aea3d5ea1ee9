"""What a detector brings more than that of another arm, by party and by kind of fraud."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from federated.study.scoring import Evaluation
from federated.study.settings import Detection
from lab.scores import worth


def detection_worth(
    settings: Detection,
    name: str,
    ours: Mapping[str, Evaluation],
    theirs: Mapping[str, Evaluation],
) -> pd.DataFrame:
    """What our detector brings more than another arm's, a line for each party and measure, of the whole
    market for each kind of fraud as well: columns against, party, kind, measure, difference, low, high."""
    rows = []
    for party, other in theirs.items():
        one, two = ours[party].detected, other.detected
        if one is None or two is None or ours[party].fit.total("rows") != other.fit.total("rows"):
            continue
        if settings.amount:
            net = worth.net_difference(
                one.rank, two.rank, settings.budget, investigation_cost=settings.investigation_cost
            )
            rows.append((name, party, None, "net", *net))
        if party == "all" and settings.typology:
            kinds, sums = one.groups[settings.typology]
            found = worth.found_differences(sums, two.groups[settings.typology][1], kinds)
            rows += [(name, party, *line) for line in found.itertuples(index=False)]
    columns = ["against", "party", "kind", "measure", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
