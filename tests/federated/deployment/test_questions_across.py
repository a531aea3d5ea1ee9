"""Questions across real sides: the answer is that of the simulation, and the supervisor keeps the history."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from federated.deployment.coordinator.sides import RemoteJoined
from federated.deployment.dealt_tables import dealt_experiment
from federated.queries.desk import Desk
from federated.run import ask
from federated.study.experiment import Experiment
from lab.errors import LabError, PeerError
from tests.rigs.sides import Sides
from tests.rigs.trial import started

JOIN = 'from "insurer 1" join fund'
ASKED = f"select fund.chronic, count(*), sum(claims) as claims {JOIN} group by fund.chronic"


class AskedSides(Sides):
    analyses = ("glm", "questions")

    def _join(self, name: str) -> None:
        super()._join(name)
        self.limits(name, analyses='["glm", "questions"]')


@pytest.fixture(scope="module")
def pair(tmp_path_factory: Any, authority_key: Any) -> Iterator[AskedSides]:
    with started(AskedSides(tmp_path_factory.mktemp("pair"), authority_key)) as made:
        yield made


def asked(pair: AskedSides, sql: str) -> pd.DataFrame:
    return ask(pair.study(), sql, exchange=pair.exchange)


def test_dealt_tables_of_a_simulated_market_are_an_experiment_of_their_own() -> None:
    dealt = dealt_experiment(Experiment.read("market_pair"), in_sample=True)
    assert {block.path for block in Experiment.model_validate(dealt).joined} == {
        "insurer/table.parquet",
        "fund/table.parquet",
    }


@pytest.mark.slow
def test_answer_of_real_sides_is_that_of_the_simulation_and_is_remembered(pair: AskedSides) -> None:
    answers = [asked(pair, sql) for sql in (ASKED, f"select count(*), avg(stays) {JOIN}")]
    with Desk.on(pair.study(), runs=None) as desk:
        for answer in answers:
            told = desk.ask(answer.attrs["sql"])
            pd.testing.assert_frame_equal(answer, told, check_exact=False, rtol=1e-9)
            assert answer.notna().any(axis=None)
    for name in pair.insurers:
        letters = [e.told["statistic"] for e in pair.logged(name, "release")]
        assert {"pair_kinds", "pair_cells"} <= set(letters)
    few = asked(pair, f"select count(*), avg(stays) {JOIN} where age <> 30")
    assert few.isna().all(axis=None)  # by what two runs before were told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("noised", "true", "with noise alone, and none is made across sides"),
        ("quota", "1", "may ask for 1 cells here, ever"),
        ("never_leaves", '["age"]', "age may not be used in any study"),
    ],
)
def test_a_side_keeps_the_limits_of_its_node(
    pair: AskedSides, limit: str, value: str, reason: str
) -> None:
    path = pair.root / "insurer 1" / "node.toml"
    before = path.read_text()
    pair.kill("insurer 1")
    pair.limits("insurer 1", **{limit: value})
    pair.start("insurer 1")
    with pytest.raises(LabError, match=reason):
        asked(pair, f"select region, count(*) {JOIN} where age > 30 or age is null group by region")
    pair.kill("insurer 1")
    path.write_text(before)
    pair.start("insurer 1")


@pytest.mark.slow
def test_nothing_is_answered_where_answers_before_are_forgotten(pair: AskedSides) -> None:
    sql = f"select count(*) {JOIN}"
    asked(pair, sql)
    history = pair.root / "supervisor" / "runs" / "pair_history.json"
    kept = history.read_bytes()
    history.unlink()
    with pytest.raises(LabError, match="is missing, while its log tells of answers across"):
        asked(pair, sql)
    history.write_text("{}")  # on purpose
    assert asked(pair, sql).notna().all(axis=None)
    history.write_bytes(kept)


@pytest.mark.slow
def test_a_side_refuses_columns_that_its_node_keeps_from_products(pair: AskedSides) -> None:
    pair.settle("fund", '"insurer 1" = ["*"]', '"insurer 1" = ["chronic"]')
    pair.kill("fund")
    pair.start("fund")
    with pytest.raises(LabError, match="stays may not enter products with insurer 1"):
        asked(pair, f"select sum(stays) {JOIN}")


@pytest.mark.slow
def test_a_coordinator_that_asks_the_sides_for_something_else_is_found_out(
    pair: AskedSides, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = RemoteJoined.total

    def other(self: Any, talk: Any, request: Any) -> Any:
        if request.statistic == "pair_cells":
            arguments = dict(request.arguments) | {"nullable": ["chronic"]}
            request = replace(request, arguments=arguments)
        return whole(self, talk, request)

    monkeypatch.setattr(RemoteJoined, "total", other)
    with pytest.raises(PeerError, match="something else than the question"):
        asked(pair, f"select count(*) {JOIN}")
