"""The Flower apps: a client app in front of one party, a server app that runs one study.

Both are the same under the in-process grid, Flower's simulation engine and in deployment.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from threading import Lock

import pandas as pd
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from pydantic import TypeAdapter

from federated.hiding import masks as masked
from federated.hiding import paillier as encrypted
from federated.hiding.protocol import answer_clear
from federated.joined import side as joined
from federated.message_kinds import MessageKind
from federated.messages import Hiding, message_of, read, refuse
from federated.party.binding import UnboundQuestion
from federated.party.party import Party
from federated.party.state import NodeState, Released
from lab.errors import BudgetError, LabError, PeerError, PolicyError
from lab.models import profile
from lab.models.agreement import seen_levels
from lab.models.design import Feature
from lab.models.glm import Task
from lab.privacy.joining import RARE
from secure_agg.errors import SecureAggError

#: A party by its partition number: from memory in process, from its own table elsewhere.
PartyOf = Callable[[int], Party]
#: Refusals of questions that follow from the question and tell nothing of the rows.
BY_RULE = (PolicyError, BudgetError)
Handler = Callable[[Party, NodeState, RecordDict], RecordDict]


class _Turns(defaultdict[int, Lock]):
    """One message at a time for each node; a lock is made anew wherever the app is sent."""

    def __init__(self) -> None:
        super().__init__(Lock)

    def __reduce__(self) -> tuple[type[_Turns], tuple[()]]:
        return _Turns, ()


def client_app(party_of: PartyOf, hiding: Hiding) -> ClientApp:
    """The app of a node: one handler for each kind of message, each behind the same guard.

    ``hiding``: the one way in which this side lets sums out, whatever is asked.
    """
    app, turns = ClientApp(), _Turns()

    def guarded(handler: Handler) -> Callable[[Message, Context], Message]:
        """Whatever goes wrong leaves as a typed refusal; a text that may hold values never does."""

        def handle(message: Message, context: Context) -> Message:
            seat = int(context.node_config["partition-id"])
            holder = party_of(seat)
            memory = NodeState(context, holder.name, hiding)
            _recall(holder, memory)
            questions = holder.query_table
            refusals = memory if questions is None or hiding == "clear" else questions
            with turns[seat]:
                try:
                    refusals.check_refusals()
                    reply = handler(holder, memory, message.content)
                    _keep_trees(holder, memory)
                    return Message(reply, reply_to=message)
                except LabError as error:
                    refused = error
                except SecureAggError as error:
                    refused = PeerError(str(error))
                except Exception as error:  # a defect: its type may leave, its text may not
                    refused = PeerError(f"failed with {type(error).__name__}")
                by_rule = holder.policy.answers == "questions" and isinstance(refused, BY_RULE)
                if not by_rule and not isinstance(refused, UnboundQuestion):
                    refusals.refuse()
                return Message(refuse(refused, holder.name), reply_to=message)

        return handle

    for kind, handler in HANDLERS.items():
        message_type, _, action = kind.partition(".")
        register = app.train if message_type == "train" else app.query
        register(action or "default")(guarded(handler))
    return app


def _recall(holder: Party, memory: NodeState) -> None:
    """Take up what a run knows and this process does not: released profiles, finished trees, cuts told."""
    for digest, data in memory.profiles():
        if digest not in holder.profiles:
            holder.profiles[digest] = profile.read(data)
    kept = memory.trees()
    for chain in kept.keys() - holder.finished.keys():
        from lab.models import tree_rows

        holder.finished[chain] = tree_rows.read_finished(str(kept[chain]))
    if isinstance(holder, joined.JoinedSide) and holder.places:
        for cut, bits in memory.told():
            if cut not in holder.told:
                holder.take_up(cut, bits)


def _keep_trees(holder: Party, memory: NodeState) -> None:
    """Keep finished trees and cuts that were told, so that rows can follow them anew."""
    for chain in holder.finished.keys() - memory.trees().keys():
        before, tree = holder.finished[chain]
        memory.keep_tree(chain, f"[{json.dumps(before)},{tree.model_dump_json()}]")
    if isinstance(holder, joined.JoinedSide):
        kept = {cut for cut, _ in memory.told()}
        for cut in holder.told.keys() - kept:
            memory.keep_told(cut, holder.told[cut])


def answer(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """A sum, through the party's gate, hidden as it was asked for."""
    header = message.config_records.get("request", ConfigRecord())
    match header.get("hiding"):
        case "clear":
            return answer_clear(holder, memory, message)
        case "paillier":
            return encrypted.answer_encrypted(holder, memory, message)
        case _:
            raise PeerError(
                "request: hiding must be clear or paillier here; masks take several messages"
            )


def hello(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Who is here: name, seat, the card with its public keys."""
    record = message_of(card=memory.identity().card.to_bytes())
    record["hello"] = ConfigRecord({"party": holder.name, "seat": memory.seat})
    return record


def enrol(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Take up the roster and the keys."""
    parts = message.array_records["message"]
    keys = [read(message, name) if name in parts else b"" for name in ("key", "split", "share")]
    memory.enrol(read(message, "roster"), *keys, fewest=holder.fewest)
    return RecordDict()


def levels(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Names of the levels that training rows of enough persons have, for features no contract lists
    them of. Questions have no cell for what is rare, so there it is not named at all."""
    header = message.config_records["levels"]
    task = Task.model_validate_json(str(header["task"]))
    features = [Feature.model_validate(f) for f in json.loads(str(header["features"]))]
    for feature in features:
        if holder.holds(feature.column) and feature.column not in holder.policy.announces:
            raise PolicyError(f"names of levels of '{feature.column}' do not leave this party")
    table, least = holder.query_table, holder.rules.minimum_count.persons
    owners: pd.Series | None
    if table is None:
        rows, owners = holder.rows(task, "train"), holder.owners(task, "train")
    else:
        rows, owners = table.frame, None if table.persons is None else pd.Series(table.persons)
    names_by_feature = [
        seen_levels(rows, f, owners, least) if holder.holds(f.column) else [] for f in features
    ]
    if holder.policy.answers == "questions":
        names_by_feature = [[n for n in names if n != RARE] for names in names_by_feature]
    names, count = json.dumps(names_by_feature), sum(map(len, names_by_feature))
    columns = [feature.column for feature in features]
    memory.announce(dict(zip(columns, names_by_feature, strict=True)))
    memory.note(Released("", "names of levels", "public", len(features), count, len(names), 0, 0))
    return RecordDict({"levels": ConfigRecord({"names": names})})


def agree_levels(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Take up the names of levels that all parties have together."""
    levels = _AGREED.validate_json(read(message, "levels"))
    memory.agree(json.dumps(levels, sort_keys=True))
    return RecordDict()


_AGREED = TypeAdapter(dict[str, list[str]])


def join_profile(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """Take up a released profile, to be joined to this party's rows."""
    data = read(message, "profile")
    released = profile.read(data)
    holder.profiles[released.digest] = released
    memory.keep_profile(released.digest, data)
    return RecordDict()


def receipt(holder: Party, memory: NodeState, message: RecordDict) -> RecordDict:
    """What passed this party's gate so far, where the party shows it."""
    if not holder.policy.shows_receipt:
        raise PolicyError("this party keeps its receipt to itself")
    return RecordDict({"receipt": ConfigRecord({"lines": memory.receipt()})})


#: Every kind of message that a node answers: Flower's type, and an action of ours.
HANDLERS: Mapping[str, Handler] = {
    "query": answer,
    "train": answer,
    MessageKind.HELLO: hello,
    MessageKind.ENROL: enrol,
    MessageKind.LEVELS: levels,
    MessageKind.AGREED: agree_levels,
    MessageKind.JOIN: join_profile,
    MessageKind.RECEIPT: receipt,
    MessageKind.PAIR: joined.pair,
    MessageKind.PRODUCT: joined.answer_product,
    MessageKind.PART: encrypted.give_part,
    MessageKind.RELEASE: encrypted.release_answer,
    MessageKind.ADVERTISE: masked.advertise,
    MessageKind.SHARE: masked.share,
    MessageKind.MASK: masked.mask,
    MessageKind.MASK_TRAINING: masked.mask,
    MessageKind.CONFIRM: masked.confirm,
    MessageKind.REVEAL: masked.reveal,
}


def server_app(study: Callable[[Grid], None]) -> ServerApp:
    """The coordinator's app: it runs one study on the grid it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        study(grid)

    return app
