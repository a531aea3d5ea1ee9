"""Questions under protection: who refuses what, what the coordinator is shown, what noise costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Message

from federated.app import client_app, server_app
from federated.federation import Federation
from federated.hiding.masks import Masks
from federated.hiding.paillier import Dealer, KeyAuthority, Paillier, releaser
from federated.hiding.protocol import Clear, Protection
from federated.messages import Request, message_of, read
from federated.queries.desk import Desk
from federated.queries.holdings import Holdings
from federated.transport.in_process import run_in_process
from lab.errors import BudgetError, ConfigurationError, PeerError, PolicyError
from lab.models.design import Encoding
from lab.models.families import Scale
from lab.models.glm import Task
from lab.privacy.disclosure import MinimumPersons, Rules
from lab.privacy.noise import Noise
from lab.queries.query_table import Budget
from lab.queries.questions import ROWS, Axis, Compare, Question, Total
from lab.sums import Sums
from lab.tables.contracts import Column, Contract
from secure_agg.errors import FaultyCoordinator, SecureAggError
from secure_agg.identity import Roster
from secure_agg.shares import Part
from secure_agg.transcript import Transcript
from tests.federated.hiding.test_protection import Road

RULES = Rules.read()
PAID = Total(kind="sum", columns=("paid",), centres=(0.0,))
ASKED = Question(table="claims", totals=(ROWS, PAID))
CLAIMS = Contract(
    name="claims",
    columns={
        "member": Column(type="integer", role="identifier"),
        "plan": Column(type="integer", minimum=0, maximum=2),
        "paid": Column(type="number", role="target", minimum=0, maximum=1000),
        "days": Column(type="integer", minimum=0),
    },
)
BY_PLAN = "select plan, count(*) as n, sum(paid) as paid from claims group by plan"


def claims(seed: int, rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "member": np.arange(rows),
            "plan": np.arange(rows) % 3,
            "paid": np.round(rng.uniform(0, 1000, rows), 2),
            "days": rng.integers(0, 20, rows),
        }
    )


def tables() -> dict[str, pd.DataFrame]:
    return {f"insurer {k + 1}": claims(k, 60 + 15 * k) for k in range(3)}


def holdings(**more: Any) -> Holdings:
    return Holdings.of(tables(), CLAIMS, **more)


def arguments(question: Question = ASKED, rules: Rules = RULES) -> dict[str, Any]:
    """As JSON, in which form it is asked."""
    return {
        "question": json.loads(question.model_dump_json()),
        "rules": json.loads(rules.model_dump_json()),
    }


def cells(federation: Federation) -> Sums:
    return federation.sum("cells", **arguments())


def on_a_road(
    protection: Protection,
    work: Callable[[Federation], Any] = cells,
    held: Holdings | None = None,
    **sitting: Callable[[Message], Message | None],
) -> Any:
    """What ``work`` finds out from parties that answer questions, with somebody on the road."""
    parties = (held or holdings()).parties
    found: list[Any] = []
    app = server_app(
        lambda grid: found.append(work(Federation(Road(grid, **sitting), protection, len(parties))))
    )
    node = client_app(parties.__getitem__, protection.hiding)
    run_in_process(app, node, len(parties), 2)
    return found[0]


def watched() -> tuple[list[bytes], Callable[[Message], Message]]:
    """All bytes that come back to the coordinator."""
    seen: list[bytes] = []

    def back(message: Message) -> Message:
        for record in message.content.array_records.values():
            seen.extend(array.data for array in record.values())
        return message

    return seen, back


def totals() -> tuple[float, float]:
    """Rows of all parties, and what was paid to all."""
    whole = pd.concat(tables().values())
    return float(len(whole)), float(whole["paid"].sum())


@pytest.mark.parametrize("split", [False, True])
def test_an_answer_is_the_pooled_one(split: bool, authority_key: Any) -> None:
    opener = Dealer(authority_key) if split else KeyAuthority(authority_key)
    with Desk.simulated(holdings(), Paillier(opener)) as desk:
        answer = desk.ask(BY_PLAN)
    pooled = pd.concat(tables().values()).groupby("plan")["paid"].agg(["size", "sum"])
    np.testing.assert_array_equal(answer["n"], pooled["size"])
    np.testing.assert_allclose(answer["paid"], pooled["sum"], rtol=1e-9)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_party_without_rows_for_a_question_adds_nothing(first: int) -> None:
    held = tables()
    for k, frame in enumerate(held.values()):
        frame["plan"] = 0 if k == first else 1
    one = pd.concat([frame for frame in held.values() if frame["plan"].iloc[0] == 1])
    rules = RULES.model_copy(
        update={"minimum_parties": RULES.minimum_parties.model_copy(update={"parties": 2})}
    )
    with Desk.simulated(Holdings.of(held, CLAIMS, rules), Clear(rules)) as desk:
        answer = desk.ask("select sum(paid) as paid from claims where plan = 1")
    np.testing.assert_allclose(answer["paid"], one["paid"].sum())


# Who refuses what.


@pytest.mark.parametrize("step", [Masks.total, Masks.run], ids=["careful", "careless"])
def test_a_question_under_masks_is_refused_before_any_sum_leaves(step: Any) -> None:
    """By the coordinator, and by the nodes where the coordinator does not."""
    masked: list[Any] = []

    def back(message: Message) -> Message:
        if "reply" in message.content.config_records:
            masked.append(message)
        return message

    def ask(federation: Federation) -> Sums:
        request = Request("q", "cells", arguments(), {}, "masks", federation.names)
        total: Sums = step(federation.protection, federation, request)
        return total

    with pytest.raises(PolicyError, match="masks"):
        on_a_road(Masks(), ask, back=back)
    assert not masked


def test_a_desk_does_not_ask_under_masks(tmp_path: Path) -> None:
    file = tmp_path / "experiment.toml"
    shipped = Path(__file__).parents[3] / "experiments" / "rand_hie.toml"
    file.write_text(shipped.read_text())
    with pytest.raises(ConfigurationError, match="questions need 'paillier'"):
        Desk.on(file, {"protection.sums": "masks"}, runs=None)


SCALE = Scale(rows=60, weight=1, exposure=1, target=1, square=2)


@pytest.mark.parametrize("statistic", ["totals", "moments", "histogram", "glm_step"])
def test_a_node_for_questions_takes_no_statistic_of_a_model(statistic: str) -> None:
    def fit(federation: Federation) -> Any:
        task = Task(target="paid")
        arguments: dict[str, dict[str, Any]] = {
            "totals": {"part": "train", "most": (2.0**40,) * 4},
            "moments": {"features": (), "most": 1.0},
            "histogram": {"features": (), "least": 10},
            "glm_step": {"encoding": Encoding(), "scale": SCALE},
        }
        arrays = {"histogram": {"edges": np.zeros(1)}, "glm_step": {"beta": np.zeros(1)}}
        return federation.sum(statistic, arrays.get(statistic), task=task, **arguments[statistic])

    with pytest.raises(PolicyError, match="insurer 1: this party answers questions alone"):
        on_a_road(Clear(), fit)


@pytest.mark.parametrize("statistic", ["cells", "violations", "drift"])
def test_a_node_for_models_answers_no_question(statistic: str) -> None:
    held = holdings()
    parties = tuple(
        replace(party, policy=party.policy.model_copy(update={"answers": "models"}))
        for party in held.parties
    )

    def ask(federation: Federation) -> Any:
        return federation.sum(statistic, *sent(statistic)[:1], **sent(statistic)[1])

    with pytest.raises(PolicyError, match="insurer 1: this party answers models alone"):
        on_a_road(Clear(), ask, replace(held, parties=parties))


def sent(statistic: str, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arrays, arguments) of a question for this statistic."""
    arrays = {"shares": np.array([1.0])} if statistic == "drift" else {}
    return arrays, arguments(**changes) | ({"flags": 1} if statistic == "violations" else {})


def weaker() -> Rules:
    few = MinimumPersons(persons=1, source="nobody")
    return RULES.model_copy(update={"minimum_count": few, "minimum_difference": few})


@pytest.mark.parametrize("statistic", ["cells", "violations", "drift"])
def test_a_question_under_weaker_rules_is_refused(statistic: str, authority_key: Any) -> None:
    for protection in (Clear(weaker()), Paillier(KeyAuthority(authority_key, weaker()))):

        def ask(federation: Federation) -> Any:
            arrays, asked = sent(statistic, rules=weaker())
            return federation.sum(statistic, arrays, **asked)

        with pytest.raises(PolicyError, match="insurer 1: asked under other disclosure rules"):
            on_a_road(protection, ask)


def test_a_key_authority_with_other_rules_than_the_parties_releases_nothing(
    authority_key: Any,
) -> None:
    with pytest.raises(PolicyError, match="other disclosure rules than the releaser's"):
        on_a_road(Paillier(KeyAuthority(authority_key, weaker())))


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (ASKED.model_copy(update={"person": "member"}), "by this table's own person column"),
        (ASKED.model_copy(update={"table": "other"}), "no table 'other'"),
        (
            ASKED.model_copy(update={"where": Compare(column="member", operation="=", value=1.0)}),
            "no question is about 'member'",
        ),
    ],
)
def test_a_node_checks_a_question_by_its_contract(question: Question, words: str) -> None:
    with pytest.raises(PolicyError, match=f"insurer 1: .*{words}"):
        on_a_road(Clear(), lambda federation: federation.sum("cells", **arguments(question)))


# A coordinator that shows whoever opens another question.

NOISED = ASKED.model_copy(update={"noise": Noise(epsilon=1.0)})
SWAPS = {
    "of fewer totals": Request(
        "", "cells", arguments(ASKED.model_copy(update={"totals": (ROWS,)})), {}
    ),
    "without disclosure fields": Request("", "cells", arguments(NOISED), {}),
    "of a model": Request("", "totals", {"task": {"target": "paid"}, "part": "train"}, {}),
    "of another kind": Request("", "drift", arguments(), {}),
    "under weaker rules": Request("", "cells", arguments(rules=weaker()), {}),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_a_key_authority_refuses_another_question_than_was_signed(
    swap: str, authority_key: Any
) -> None:
    class Swapped(KeyAuthority):
        def open(self, talk: Any, transcript: Any, request: Request, form: Any) -> Sums:
            return super().open(talk, transcript, replace(SWAPS[swap], query=request.query), form)

    with pytest.raises(FaultyCoordinator, match="another question than the parties signed"):
        on_a_road(Paillier(Swapped(authority_key)))


def test_a_question_swapped_on_the_road_is_added_to_no_other(authority_key: Any) -> None:
    def out(message: Message) -> Message:
        if "request" in message.content.config_records and message.metadata.dst_node_id == 2:
            where = Compare(column="plan", operation="=", value=1.0)
            other = ASKED.model_copy(update={"where": where})
            header = message.content.config_records["request"]
            header["arguments"] = json.dumps(arguments(other))
        return message

    with pytest.raises((SecureAggError, PeerError), match="signature does not cover"):
        on_a_road(Paillier(KeyAuthority(authority_key)), out=out)


@pytest.mark.parametrize("swap", SWAPS)
def test_the_releaser_refuses_another_question_than_was_signed(
    swap: str, authority_key: Any
) -> None:
    def out(message: Message) -> Message:
        if message.metadata.message_type == "query.release":
            other = replace(SWAPS[swap], hiding="paillier").to_record()
            for name in ("request", "arrays"):
                message.content[name] = other[name]
        return message

    with pytest.raises(PeerError, match=r"insurer 1: .*another question than the one .* signed"):
        on_a_road(Paillier(Dealer(authority_key)), out=out)


# The split key: no total is in sight of the coordinator.


def test_parts_of_an_answer_are_sealed_to_the_releaser(authority_key: Any) -> None:
    protection, parts = Paillier(Dealer(authority_key)), []

    def back(message: Message) -> Message:
        if message.metadata.message_type == "query.part":
            assert set(message.content.array_records["message"]) == {"sealed"}
            parts.append(read(message.content, "sealed"))
        return message

    shown = on_a_road(protection, back=back)
    split = protection.opener._holders._split  # type: ignore[attr-defined]
    assert len(parts) == 3
    for sealed in parts:
        with pytest.raises(SecureAggError):
            Part.from_bytes(sealed, split)
    assert (shown["total 0"][0], shown["total 1"][0]) == pytest.approx(totals(), rel=1e-9)


def test_nobody_but_the_releaser_opens_a_sealed_part(authority_key: Any) -> None:
    def elsewhere(federation: Federation) -> Any:
        class Wrong:
            names = federation.names

            @staticmethod
            def ask(action: str, messages: Any, *, patient: bool = False) -> Any:
                if action != "query.release":
                    return federation.ask(action, messages, patient=patient)
                ((_, asked),) = messages.items()
                return federation.ask(action, {"insurer 2": asked})

        request = Request("q", "cells", arguments(), {}, "paillier", federation.names)
        return federation.protection.total(Wrong, request)

    with pytest.raises(PeerError, match="insurer 2"):
        on_a_road(Paillier(Dealer(authority_key)), elsewhere)


def test_what_comes_back_holds_no_hidden_cell(authority_key: Any) -> None:
    """Of a table with a cell too small to be shown, the coordinator reads the other cells alone."""
    held = tables()
    for frame in held.values():
        frame.loc[0, "plan"] = 2
        frame["paid"] = np.where(frame["plan"] == 2, 123.0, frame["paid"])
    for frame in held.values():
        frame.loc[frame["plan"] == 2, "plan"] = [2] + [0] * (int((frame["plan"] == 2).sum()) - 1)
    seen, back = watched()

    def ask(federation: Federation) -> Sums:
        question = ASKED.model_copy(update={"axes": (Axis(column="plan", levels=(0.0, 1.0, 2.0)),)})
        return federation.sum("cells", **arguments(question))

    shown = on_a_road(Paillier(Dealer(authority_key)), ask, Holdings.of(held, CLAIMS), back=back)
    assert shown["shown"][2] == 0
    hidden = (3.0, 3 * 123.0)
    readable = np.concatenate([np.frombuffer(d, "<f8") for d in seen if len(d) % 8 == 0 and d])
    assert not np.isin(hidden, readable).any()
    assert shown["total 0"][2] == shown["total 1"][2] == 0


def test_the_releaser_is_in_the_first_seat(authority_key: Any) -> None:
    asked: list[int] = []

    def out(message: Message) -> Message:
        if message.metadata.message_type == "query.release":
            asked.append(message.metadata.dst_node_id)
        return message

    on_a_road(
        Paillier(Dealer(authority_key)),
        lambda f: (cells(f), releaser(Roster(tuple(m.card for m in f.members)))),
        out=out,
    )
    assert asked == [1]


def test_a_node_gives_no_part_for_a_query_it_never_answered(authority_key: Any) -> None:
    """A coordinator that is a node's only source of questions cannot open what it was not asked."""
    kept: list[Transcript] = []

    def out(message: Message) -> Message:
        if message.metadata.message_type == "query.part":
            shown = Transcript.from_bytes(read(message.content, "transcript"))
            kept.append(shown)
            changed = Transcript(replace(shown.terms, query="another"), shown.contributions)
            told = message_of(transcript=changed.to_bytes())
            return Message(told, message.metadata.dst_node_id, "query.part")
        return message

    with pytest.raises(PeerError, match=r"insurer 1: .*query another was not answered here"):
        on_a_road(Paillier(Dealer(authority_key)), out=out)


# Noise.


def noisy(folder: Path, **more: Any) -> Holdings:
    budget = more.pop("budget", Budget(epsilon=100.0, delta=1e-6))
    return holdings(folder=folder, budget=budget, **more)


@pytest.mark.parametrize(
    "noise", [Noise(epsilon=1.0), Noise(mechanism="gaussian", epsilon=1.0, delta=1e-7)]
)
def test_intervals_of_noised_answers_hold_the_truth(noise: Noise, tmp_path: Path) -> None:
    truth = pd.concat(tables().values()).groupby("plan")["paid"].agg(["size", "sum"])
    held, asked = 0, 0
    with Desk.simulated(noisy(tmp_path), Clear()) as desk:
        for _ in range(15):
            answer = desk.ask(BY_PLAN, noise=noise)
            for name, true in (("n", truth["size"]), ("paid", truth["sum"])):
                low, high = answer[f"{name} from"].to_numpy(), answer[f"{name} to"].to_numpy()
                known = ~np.isnan(low)
                asked += int(known.sum())
                held += int(((low <= true) & (true <= high))[known].sum())
    assert asked >= 60
    assert held / asked > 0.85


def test_noise_under_encryption_is_charged_to_every_party_and_told(
    authority_key: Any, tmp_path: Path
) -> None:
    parties = noisy(tmp_path)
    with Desk.simulated(parties, Paillier(KeyAuthority(authority_key))) as desk:
        answer = desk.ask("select count(*) as n from claims", noise=Noise(epsilon=0.5))
    assert {"n from", "n to"} <= set(answer.columns)
    assert abs(answer["n"][0] - totals()[0]) < 60
    lines = [line for line in answer.attrs["receipt"] if line["statistic"] == "cells"]
    assert [line["epsilon"] for line in lines] == [0.5] * 3
    for party in parties.parties:
        assert party.query_table is not None
        assert party.query_table.ledger.path.name == "budget.db"
        assert party.query_table.ledger.path.exists()
        assert party.query_table.ledger.spent() == pytest.approx(0.5, rel=1e-4)


def test_a_spent_budget_is_refused_at_the_desk_and_stays_spent(tmp_path: Path) -> None:
    text, noise = "select count(*) as n from claims", Noise(epsilon=0.6)
    for _ in range(2):  # also after a restart
        with Desk.simulated(noisy(tmp_path, budget=Budget(epsilon=1.0)), Clear()) as desk:
            if _ == 0:
                desk.ask(text, noise=noise)
            with pytest.raises(BudgetError, match=r"insurer 1: privacy budget: epsilon 0\.6 of 1"):
                desk.ask(text, noise=noise)
    with Desk.simulated(noisy(tmp_path, budget=Budget(epsilon=1.0)), Clear()) as desk:
        desk.ask(text, noise=Noise(epsilon=0.3))


def test_without_a_budget_nothing_is_noised(tmp_path: Path) -> None:
    for held in (holdings(), holdings(folder=tmp_path), holdings(budget=Budget(epsilon=1.0))):
        with (
            Desk.simulated(held, Clear()) as desk,
            pytest.raises(PolicyError, match="no budget for noised answers"),
        ):
            desk.ask("select count(*) from claims", noise=Noise(epsilon=0.5))


def test_a_noised_sum_needs_bounds_in_the_contract(tmp_path: Path) -> None:
    held = noisy(tmp_path)
    with (
        Desk.simulated(held, Clear()) as desk,
        pytest.raises(PolicyError, match="'days' needs a minimum and a maximum"),
    ):
        desk.ask("select sum(days) from claims", noise=Noise(epsilon=0.5))
    days = Total(kind="sum", columns=("days",), centres=(0.0,))
    asked = ASKED.model_copy(update={"totals": (ROWS, days), "noise": Noise(epsilon=0.5)})
    with pytest.raises(PolicyError, match=r"insurer 1: .*'days' needs a minimum and a maximum"):
        on_a_road(Clear(), lambda f: f.sum("cells", **arguments(asked)), held)
    assert held.parties[0].query_table is not None
    assert held.parties[0].query_table.ledger.spent() == 0


@pytest.mark.parametrize(
    "text",
    [
        "select count(*) from claims",
        "select median(paid) from claims",
        "select drift(paid, 0, 500, 1000) from claims",
    ],
)
def test_parties_that_add_noise_answer_no_question_without(text: str, tmp_path: Path) -> None:
    with (
        Desk.simulated(noisy(tmp_path, noised=True), Clear()) as desk,
        pytest.raises(PolicyError, match="answers with noise alone"),
    ):
        desk.ask(text)


@pytest.mark.parametrize("statistic", ["cells", "violations", "drift"])
def test_a_coordinator_gets_nothing_exact_of_parties_that_add_noise(
    statistic: str, tmp_path: Path
) -> None:
    def ask(federation: Federation) -> Any:
        arrays, asked = sent(statistic)
        return federation.sum(statistic, arrays, **asked)

    with pytest.raises(PolicyError, match=r"insurer 1: .*noise"):
        on_a_road(Clear(), ask, noisy(tmp_path, noised=True))


def test_parties_that_add_noise_answer_with_it(tmp_path: Path) -> None:
    with Desk.simulated(noisy(tmp_path, noised=True), Clear()) as desk:
        answer = desk.ask("select count(*) as n from claims", noise=Noise(epsilon=5.0))
    assert answer["n from"][0] <= answer["n"][0] <= answer["n to"][0]


@pytest.mark.parametrize(
    "text", ["select median(paid) from claims", "select drift(paid, 0, 500, 1000) from claims"]
)
def test_only_counts_and_sums_are_noised(text: str, tmp_path: Path) -> None:
    with (
        Desk.simulated(noisy(tmp_path), Clear()) as desk,
        pytest.raises(ConfigurationError, match="noise is for counts and sums"),
    ):
        desk.ask(text, noise=Noise(epsilon=0.5))


@pytest.mark.parametrize(("rows_per_person", "counted"), [(1, 90), (2, 180), (9, 270)])
def test_rows_beyond_the_most_of_a_person_do_not_count(
    rows_per_person: int, counted: int, tmp_path: Path
) -> None:
    held = {name: frame.iloc[:90] for name, frame in tables().items()}
    for frame in held.values():
        frame["member"] = np.arange(len(frame)) % 30  # three rows of each person, in two tables
    held["insurer 1"] = held["insurer 2"] = held["insurer 3"]
    parties = Holdings.of(
        held, CLAIMS, person="member", folder=tmp_path, budget=Budget(epsilon=200.0, delta=1e-6)
    )
    noise = Noise(epsilon=90.0, rows_per_person=rows_per_person)
    with Desk.simulated(parties, Clear()) as desk:
        answer = desk.ask("select count(*) as n from claims", noise=noise)
    assert answer["n"][0] == pytest.approx(counted, abs=6)


@pytest.mark.parametrize(
    "text", ["select var_samp(paid) as v from claims", "select avg(paid) as v from claims"]
)
def test_what_is_made_of_noised_totals_has_an_interval(text: str, tmp_path: Path) -> None:
    with Desk.simulated(noisy(tmp_path), Clear()) as desk:
        answer = desk.ask(text, noise=Noise(epsilon=30.0))
    paid = pd.concat(tables().values())["paid"]
    true = paid.var() if "var" in text else paid.mean()
    assert answer["v"][0] == pytest.approx(true, rel=0.2)
    assert answer["v from"][0] <= answer["v"][0] <= answer["v to"][0]


# Receipts.


@pytest.mark.parametrize("split", [False, True])
def test_receipts_shown_tell_no_rows_and_a_partys_own_does(
    split: bool, authority_key: Any, tmp_path: Path
) -> None:
    opener = Dealer(authority_key) if split else KeyAuthority(authority_key)
    where = "select count(*) as n, sum(paid) as paid from claims where plan = 1"
    with Desk.simulated(holdings(folder=tmp_path), Paillier(opener)) as desk:
        answer = desk.ask(where)
    shown = [line for line in answer.attrs["receipt"] if line["statistic"] == "cells"]
    assert len(shown) == 3
    assert all(line["rows"] == 0 for line in answer.attrs["receipt"])
    assert {line["hiding"] for line in shown} == {"paillier"}
    for name, frame in tables().items():
        kept = (tmp_path / name.replace(" ", "-") / "receipt.jsonl").read_text().splitlines()
        own = [json.loads(line) for line in kept]
        assert [line["rows"] for line in own] == [int((frame["plan"] == 1).sum())]
        assert own[0]["query"] == shown[0]["query"]


# Sums that weigh rows by a column somebody knows, or leave out rows without a value.


@pytest.mark.parametrize("odd", [1, 40], ids=["one person is known by it", "many are"])
@pytest.mark.parametrize("empty", [False, True], ids=["a factor", "an empty value"])
def test_a_sum_tells_nobody_apart_by_a_known_column(odd: int, empty: bool) -> None:
    rng, parts = np.random.default_rng(5), {}
    for k in range(3):
        known = np.where(np.arange(80) < (odd if k == 0 else 40), np.nan if empty else 2.0, 1.0)
        parts[f"insurer {k + 1}"] = pd.DataFrame({"paid": rng.gamma(2, 500, 80), "plan": known})
    columns = {
        "paid": Column(type="number", minimum=0, maximum=1e6),
        "plan": Column(type="integer", minimum=0, maximum=3, nullable=empty),
    }
    text = "count(plan)" if empty else "sum(paid * plan)"
    with Desk.simulated(
        Holdings.of(parts, Contract(name="claims", columns=columns)), Clear()
    ) as desk:
        answer = desk.ask(f"select {text} told, sum(paid) paid from claims")
    if odd == 1:  # told - paid, or the rows less told, would be one person's
        assert answer["told"].isna().all()
    else:
        rows = pd.concat(parts.values())
        truth = rows["plan"].count() if empty else (rows["paid"] * rows["plan"]).sum()
        assert answer["told"].iloc[0] == pytest.approx(truth)
