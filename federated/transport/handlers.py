"""Calls of nodes and runs, handed to Flower's own handlers without Flower's web stack.

A call through that stack takes 8 ms of processor time, a tenth of it in the handler; an exchange
of messages among four parties is some sixty calls. So these calls go from the listener straight to
the function that Flower's router would call, after the same authentication. State, checks and
handlers are Flower's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    PullAppMessagesRequest,
    PushAppMessagesRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.servicer.runtime import runtime_handlers as core
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers as fleet
from flwr.superlink.servicer.runtime import runtime_handlers as runtime
from google.protobuf.message import DecodeError

from federated.transport.reply_quota import OBJECT_BYTES, QuotaExceeded, ReplyQuota

Headers = Mapping[str, str]
#: Status and body.
StatusAndBody = tuple[int, bytes]
Handler = Callable[[Any, Any], Any]

#: The node routes: what a request is, and who answers it.
NODES: dict[str, tuple[Any, Handler]] = {
    "activate-node": (ActivateNodeRequest, fleet.activate_node),
    "deactivate-node": (DeactivateNodeRequest, fleet.deactivate_node),
    "send-node-heartbeat": (SendNodeHeartbeatRequest, fleet.send_node_heartbeat),
    "pull-messages": (
        PullMessagesRequest,
        lambda request, state: fleet.pull_messages(request, state, state.object_store),
    ),
    "push-messages": (PushMessagesRequest, fleet.push_messages),
    "get-run": (GetRunRequest, fleet.get_run),
    "push-object": (PushObjectRequest, fleet.push_object),
    "pull-object": (PullObjectRequest, fleet.pull_object),
    "confirm-message-received": (
        ConfirmMessageReceivedRequest,
        lambda request, state: fleet.confirm_message_received(request, state, state.object_store),
    ),
}
#: The node routes that store something.
PUSHES = ("push-messages", "push-object")
#: What a run's messages are made of; whatever else a run needs goes through Flower's web stack.
RUNS: dict[str, tuple[Any, Callable[[Any, Any, Any], Any]]] = {
    "push-messages": (PushAppMessagesRequest, runtime.push_messages),
    "pull-messages": (PullAppMessagesRequest, runtime.pull_messages),
    "push-object": (PushObjectRequest, runtime.push_object),
    "pull-object": (PullObjectRequest, runtime.pull_object),
    "confirm-message-received": (
        ConfirmMessageReceivedRequest,
        runtime.confirm_message_received,
    ),
    "get-nodes": (GetNodesRequest, runtime.get_nodes),
    "send-task-heartbeat": (SendTaskHeartbeatRequest, core.send_task_heartbeat),
}


def of_node(name: str, app: Any, headers: Headers, body: bytes, quota: ReplyQuota) -> StatusAndBody:
    """Answer a node: its signature of the time is checked by Flower's own function.

    413 where the node's replies that nobody fetched would exceed its quota.
    """
    kind, handler = NODES[name]

    def answer() -> Any:
        request = kind.FromString(body)
        caller = SimpleNamespace(
            headers=headers, app=app, state=SimpleNamespace(protobuf_request=request)
        )
        authenticate_node(caller)
        if name == "push-messages" and not _own(request):
            raise HTTPException(403, "a node may only push replies, in its own name")
        if name in PUSHES:
            return _counted(request, len(body), handler, _state(app), quota)
        return handler(request, _state(app))

    return _response(answer)


def _counted(request: Any, size: int, handler: Handler, state: Any, quota: ReplyQuota) -> Any:
    """The handler's answer to a push of `size` bytes. Raises :class:`QuotaExceeded`."""
    node, store = request.node.node_id, state.object_store
    if isinstance(request, PushObjectRequest):
        quota.check(node, size, store, request.object_id)
        response = handler(request, state)
        if response.stored:
            quota.add_object(node, request.object_id, size)
        return response
    if not request.message_object_trees:
        raise HTTPException(400, "a message needs the tree of its objects")
    tree = request.message_object_trees[0]  # Flower stores the first message alone
    size += OBJECT_BYTES * sum(1 for _ in iterate_object_tree(tree))
    quota.check(node, size, store)
    response = handler(request, state)
    quota.add_tree(node, tree.object_id, size)
    return response


def _own(request: PushMessagesRequest) -> bool:
    """Whether messages are answers of the node that pushes them; Flower takes its word for it."""
    metadata = [message.metadata for message in request.messages_list]
    return bool(metadata) and all(
        m.reply_to_message_id and m.src_node_id == request.node.node_id for m in metadata
    )


def of_run(name: str, app: Any, headers: Headers, body: bytes) -> StatusAndBody:
    """Answer a run's coordinator, by the token of its task."""
    kind, handler = RUNS[name]

    def answer() -> Any:
        state, token = _state(app), headers.get("flwr-task-token", "")
        task = state.get_task_by_token(token) if token else None
        if task is None:
            raise HTTPException(401, "no task has this token")
        return handler(kind.FromString(body), state, task)

    return _response(answer)


def _state(app: Any) -> Any:
    return app.state.linkstate_factory.state()


def _response(answer: Callable[[], Any]) -> StatusAndBody:
    """What a handler answers; its errors as Flower tells them, which is without details."""
    try:
        return 200, answer().SerializeToString(deterministic=True)
    except QuotaExceeded as error:
        return 413, _detail(str(error))
    except DecodeError:
        return 400, _detail("not readable")
    except FlowerError as error:
        api_error = API_ERROR_MAP[error.code]
        return api_error.http_status_code, _detail(api_error.public_message)
    except HTTPException as error:
        return error.status_code, _detail(str(error.detail))
    except Exception:  # whatever a caller provoked: its text stays here
        return 500, _detail("internal error")


def _detail(text: str) -> bytes:
    return json.dumps({"detail": text}).encode()
