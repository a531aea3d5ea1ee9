"""The Flower apps: a client app that stands before one party, a server app that runs one study.

Both are the same under the in-process grid, Flower's simulation engine and in deployment.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from federated.messages import Request, refuse
from federated.node import Party
from lab.errors import LabError, PeerError
from lab.features import Feature, seen_levels
from lab.glm import Task
from secure_agg.errors import SecureAggError

#: A party by its partition number: from memory in process, from its own table elsewhere.
PartyOf = Callable[[int], Party]
Handler = Callable[[Party, RecordDict, Context], RecordDict]


def client_app(party_of: PartyOf) -> ClientApp:
    """The app of a node: one handler for each kind of message, each behind the same guard."""
    app = ClientApp()

    def guarded(handler: Handler) -> Callable[[Message, Context], Message]:
        """Whatever goes wrong leaves as a typed refusal; a text that may hold values never does."""

        def handle(message: Message, context: Context) -> Message:
            holder = party_of(int(context.node_config["partition-id"]))
            try:
                record = handler(holder, message.content, context)
            except LabError as error:
                record = refuse(error, holder.name)
            except SecureAggError as error:
                record = refuse(PeerError(str(error)), holder.name)
            except Exception as error:  # a defect: its type may leave, its text may not
                record = refuse(PeerError(f"failed with {type(error).__name__}"), holder.name)
            return Message(record, reply_to=message)

        return handle

    app.query()(guarded(answer))
    app.train()(guarded(answer))
    for name, handler in (("hello", hello), ("levels", levels), ("receipt", receipt)):
        app.query(name)(guarded(handler))
    return app


def answer(holder: Party, asked: RecordDict, context: Context) -> RecordDict:
    """A sum, through the party's gate."""
    reply, released = holder.answer(Request.from_record(asked))
    _note(context, json.dumps(asdict(released)))
    return reply.to_record()


def hello(holder: Party, asked: RecordDict, context: Context) -> RecordDict:
    """Who is here: name, seat, number of training rows."""
    seat = int(context.node_config["partition-id"])
    card = {"party": holder.name, "seat": seat, "rows": len(holder.train)}
    return RecordDict({"hello": ConfigRecord(card)})


def levels(holder: Party, asked: RecordDict, context: Context) -> RecordDict:
    """Names of the levels that training rows have, for features no contract lists them of."""
    header = asked.config_records["levels"]
    task = Task.model_validate_json(str(header["task"]))
    features = [Feature.model_validate(f) for f in json.loads(str(header["features"]))]
    rows = task.rows(holder.train)
    names = json.dumps([seen_levels(rows, feature) for feature in features])
    return RecordDict({"levels": ConfigRecord({"names": names})})


def receipt(holder: Party, asked: RecordDict, context: Context) -> RecordDict:
    """What passed this party's gate so far."""
    return RecordDict({"receipt": _receipt(context)})


def _receipt(context: Context) -> ConfigRecord:
    """The receipt, kept where Flower keeps a node's state from message to message."""
    return context.state.config_records.get("receipt", ConfigRecord({"lines": ""}))


def _note(context: Context, line: str) -> None:
    context.state["receipt"] = ConfigRecord({"lines": f"{_receipt(context)['lines']}{line}\n"})


def server_app(study: Callable[[Grid], None]) -> ServerApp:
    """The coordinator's app: it runs one study on the grid it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        study(grid)

    return app
