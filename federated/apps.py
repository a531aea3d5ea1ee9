"""The Flower apps: a client app that stands before one party, a server app that runs one study.

Both are the same under the in-process grid, Flower's simulation engine and in deployment.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from federated import encrypted, masked
from federated.memory import Memory
from federated.messages import letter, read, refuse
from federated.node import Party
from federated.protection import answer_clear
from lab.errors import LabError, PeerError
from lab.features import Feature, seen_levels
from lab.glm import Task
from secure_agg.errors import SecureAggError

#: A party by its partition number: from memory in process, from its own table elsewhere.
PartyOf = Callable[[int], Party]
Handler = Callable[[Party, Memory, RecordDict], RecordDict]


def client_app(party_of: PartyOf) -> ClientApp:
    """The app of a node: one handler for each kind of message, each behind the same guard."""
    app = ClientApp()

    def guarded(handler: Handler) -> Callable[[Message, Context], Message]:
        """Whatever goes wrong leaves as a typed refusal; a text that may hold values never does."""

        def handle(message: Message, context: Context) -> Message:
            holder = party_of(int(context.node_config["partition-id"]))
            try:
                memory = Memory(context, holder.name)
                record = handler(holder, memory, message.content)
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
    app.train("masks_mask")(guarded(masked.mask))
    for name, handler in QUERIES.items():
        app.query(name)(guarded(handler))
    return app


def answer(holder: Party, memory: Memory, asked: RecordDict) -> RecordDict:
    """A sum, through the party's gate, hidden as it was asked for."""
    header = asked.config_records.get("request", ConfigRecord())
    if header.get("hiding") == "clear":
        return answer_clear(holder, memory, asked)
    return encrypted.answer_encrypted(holder, memory, asked)


def hello(holder: Party, memory: Memory, asked: RecordDict) -> RecordDict:
    """Who is here: name, seat, number of training rows, the card with its public keys."""
    record = letter(card=memory.identity().card.to_bytes())
    about = {"party": holder.name, "seat": memory.seat, "rows": len(holder.train)}
    record["hello"] = ConfigRecord(about)
    return record


def enrol(holder: Party, memory: Memory, asked: RecordDict) -> RecordDict:
    """Take up the roster and the keys."""
    given = asked.array_records["letter"]
    told = [read(asked, name) if name in given else b"" for name in ("key", "split", "share")]
    memory.enrol(read(asked, "roster"), *told)
    return RecordDict()


def levels(holder: Party, memory: Memory, asked: RecordDict) -> RecordDict:
    """Names of the levels that training rows have, for features no contract lists them of."""
    header = asked.config_records["levels"]
    task = Task.model_validate_json(str(header["task"]))
    features = [Feature.model_validate(f) for f in json.loads(str(header["features"]))]
    rows = task.rows(holder.train)
    names = json.dumps([seen_levels(rows, feature) for feature in features])
    return RecordDict({"levels": ConfigRecord({"names": names})})


def receipt(holder: Party, memory: Memory, asked: RecordDict) -> RecordDict:
    """What passed this party's gate so far."""
    return RecordDict({"receipt": ConfigRecord({"lines": memory.receipt()})})


QUERIES: dict[str, Handler] = {
    "hello": hello,
    "enrol": enrol,
    "levels": levels,
    "receipt": receipt,
    "part": encrypted.give_part,
    "masks_advertise": masked.advertise,
    "masks_share": masked.share,
    "masks_mask": masked.mask,
    "masks_confirm": masked.confirm,
    "masks_reveal": masked.reveal,
}


def server_app(study: Callable[[Grid], None]) -> ServerApp:
    """The coordinator's app: it runs one study on the grid it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        study(grid)

    return app
