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


def client_app(party_of: PartyOf) -> ClientApp:
    """The app of a node: ``query`` answers sums, ``query.hello`` says who is here."""
    app = ClientApp()

    def party(context: Context) -> Party:
        return party_of(int(context.node_config["partition-id"]))

    @app.query()
    @app.train()
    def answer(message: Message, context: Context) -> Message:
        holder = party(context)
        try:
            reply, released = holder.answer(Request.from_record(message.content))
            _note(context, json.dumps(asdict(released)))
            record = reply.to_record()
        except LabError as error:
            record = refuse(error, holder.name)
        except SecureAggError as error:
            record = refuse(PeerError(str(error)), holder.name)
        return Message(record, reply_to=message)

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        holder = party(context)
        seat = int(context.node_config["partition-id"])
        card = ConfigRecord({"party": holder.name, "seat": seat, "rows": len(holder.train)})
        return Message(RecordDict({"hello": card}), reply_to=message)

    @app.query("levels")
    def levels(message: Message, context: Context) -> Message:
        holder, asked = party(context), message.content.config_records["levels"]
        try:
            task = Task.model_validate_json(str(asked["task"]))
            features = [Feature.model_validate(f) for f in json.loads(str(asked["features"]))]
            rows = task.rows(holder.train)
            names = json.dumps([seen_levels(rows, feature) for feature in features])
            record = RecordDict({"levels": ConfigRecord({"names": names})})
        except LabError as error:
            record = refuse(error, holder.name)
        return Message(record, reply_to=message)

    @app.query("receipt")
    def receipt(message: Message, context: Context) -> Message:
        kept = context.state.config_records.get("receipt", ConfigRecord({"lines": ""}))
        return Message(RecordDict({"receipt": kept}), reply_to=message)

    return app


def _note(context: Context, line: str) -> None:
    """Write a line of the receipt where Flower keeps a node's state from message to message."""
    kept = context.state.config_records.get("receipt", ConfigRecord({"lines": ""}))
    context.state["receipt"] = ConfigRecord({"lines": f"{kept['lines']}{line}\n"})


def server_app(study: Callable[[Grid], None]) -> ServerApp:
    """The coordinator's app: it runs one study on the grid it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        study(grid)

    return app
