"""What telling each other finds, in the clear and among payers, and where a reader of a report sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from federated.link.charter import LinkCharter
from federated.link.disclosure import KIND, disclosures
from federated.link.duplicates import compared
from federated.link.planted import TWICE, DetectionScore, payer_tables, twice_detected
from federated.link.told import told
from federated.study.experiment import Experiment
from federated.study.simulation import SimulatedMarket
from lab.market.make import make
from lab.report import tables_detection

PERSONS, SEED = 1_500, 17


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(
        tmp_path_factory.mktemp("told") / "market", persons=PERSONS, insurers=2, seed=SEED
    ).folder


def charter() -> LinkCharter:
    """The shipped one with exact keys alone, for a small market."""
    shipped = LinkCharter.read()
    return shipped.model_copy(
        update={"cap": 400, "caps": {"public": 6_500}, "key": shipped.key[:2]}
    )


def unnamed(score: DetectionScore) -> dict[str, Any]:
    return {name: value for name, value in vars(score).items() if name != "name"}


def test_in_the_clear_the_same_is_found_as_among_payers(market: Path, tmp_path: Path) -> None:
    terms = charter()
    twice, known = told(market, terms)
    assert (twice.name, known.name) == (TWICE, KIND) and twice.hits > 0
    tables = payer_tables(market, terms)
    among = {s.name: s for s in twice_detected(market, tables, compared(tables, terms))}
    assert unnamed(twice) == unnamed(among["all insurers"])
    assert terms.condition is not None
    hidden = terms.condition.model_copy(update={"look_up": "open"})
    assert unnamed(known) == unnamed(disclosures(market, hidden, tmp_path).detections[-1])


def test_a_study_of_a_market_shows_it_beside_the_kinds_of_fraud(market: Path) -> None:
    values: dict[str, Any] = {
        "name": "told",
        "data": {"source": "market", "path": str(market), "target": "fraud", "features": ["age"]},
        "model": {"kind": "trees"},
        "detection": {"typology": "typology"},
    }
    lines = SimulatedMarket(Experiment.model_validate(values)).told
    assert [line["name"] for line in lines] == [TWICE, KIND]
    table = tables_detection.told({"told": lines})
    assert table is not None and table.rows[0][0] == "double reimbursement"
    assert table.columns[-1] == "of these found"
    del values["detection"]
    values["model"] = {"kind": "glm", "family": "binomial"}
    assert SimulatedMarket(Experiment.model_validate(values)).told == ()
    assert tables_detection.told({}) is None
