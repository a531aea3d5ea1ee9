"""The in-process grid keeps Flower's contract; these fail first when Flower changes inside."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from federated.app import client_app, server_app
from federated.federation import Federation
from federated.hiding.protocol import Clear
from federated.messages import Reply, Request, from_arrays, to_arrays
from federated.party.party import Party
from federated.transport.in_process import InProcessGrid, run_in_process
from lab.errors import PeerError
from lab.models.glm import Task
from lab.sums import COUNT, Limit, Sums


def echo(delay: bool = False) -> ClientApp:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        seat = int(context.node_config["partition-id"])
        if delay:
            time.sleep(0.02 * (3 - seat))
        return Message(RecordDict({"seat": ConfigRecord({"seat": seat})}), reply_to=message)

    @app.query("fail")
    def fail(message: Message, context: Context) -> Message:
        raise ValueError("a secret value 4711")

    return app


@pytest.fixture
def grid():
    made = InProcessGrid(echo(delay=True), 3, workers=3)
    yield made
    made.close()


def test_replies_come_in_node_order_whoever_is_fastest(grid: InProcessGrid) -> None:
    for _ in range(3):
        messages = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages))
        seats = [r.content.config_records["seat"]["seat"] for r in replies]
        assert seats == [0, 1, 2]
        assert [r.metadata.src_node_id for r in replies] == [1, 2, 3]


def test_a_failing_node_answers_with_an_error_that_shows_no_value(grid: InProcessGrid) -> None:
    (reply,) = grid.send_and_receive([Message(RecordDict(), 1, "query.fail")])
    assert reply.has_error()
    assert reply.error.reason == "ValueError"


def test_nothing_is_shared_across_the_boundary(grid: InProcessGrid) -> None:
    content = RecordDict({"x": ConfigRecord({"seat": 9})})
    list(grid.send_and_receive([Message(content, 1, "query")]))
    assert content.config_records["x"]["seat"] == 9


def test_a_request_survives_the_wire_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    sent = Request("q-1", "totals", {"a": [1, "b"]}, {"beta": rng.normal(size=(3, 2))}, "clear")
    got = Request.from_record(sent.to_record())
    assert got.arguments == sent.arguments
    assert got.arrays["beta"].tobytes() == sent.arrays["beta"].tobytes()


def test_nodes_that_are_asked_the_same_parse_it_once() -> None:
    record = Request("q-1", "totals", {"b": 1, "a": [2.5]}, {}, parties=("x", "y z")).to_record()
    one, other = Request.from_record(record), Request.from_record(record)
    assert one.arguments is other.arguments
    assert one.text == '{"a": [2.5], "b": 1}' and one.parties == ("x", "y z")
    changed = replace(one, arguments={"a": [2.5]})
    assert changed.text == '{"a": [2.5]}' and changed.question != one.question


def test_sums_in_the_clear_come_back_in_their_shapes() -> None:
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.array([7.0]), "c": np.zeros((0, 4))}
    sums = Sums(arrays, dict.fromkeys(arrays, COUNT), 5)
    got = Reply.from_record(Reply.of("p", sums, None).to_record()).sums
    assert {n: a.tolist() for n, a in got.arrays.items()} == {
        n: a.tolist() for n, a in arrays.items()
    }


def test_unknown_array_encodings_are_refused_unread() -> None:
    record = to_arrays({"x": np.ones(2)})
    record["x"].stype = "numpy.ndarray"
    with pytest.raises(PeerError, match="unknown encoding"):
        from_arrays(record)


def test_a_reply_whose_arrays_differ_from_its_form_is_refused() -> None:
    reply = Reply("a", 3, {"x": ((2,), Limit(1.0, 1.0))}, clear={"x": np.ones(3)})
    with pytest.raises(PeerError, match="form"):
        Reply.from_record(reply.to_record())


def test_a_defect_at_a_node_leaves_as_its_type_alone() -> None:
    frame = pd.DataFrame({"y": ["secret 4711"]})
    party = Party("insurer 1", frame, frame)
    task = Task(target="y")
    app = server_app(
        lambda nodes: Federation(nodes, Clear(), 1).sum(
            "totals", task=task, part="train", most=(2.0**40,) * 4
        )
    )
    with pytest.raises(PeerError, match=r"^insurer 1: failed with ValueError$"):
        run_in_process(app, client_app(lambda k: party, "clear"), 1, 1)
