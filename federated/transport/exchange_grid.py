"""The coordinator's grid: Flower's runtime protocol over the local listener of an exchange."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    run_from_proto,
)
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab as ProtoFab
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.interceptors.http import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from federated.transport.in_process import OneRun
from federated.transport.node_line import (
    ALIVE_SECONDS,
    CALL_SECONDS,
    FAR_SECONDS,
    Headers,
    Incomplete,
    LineError,
    inflated,
    line_errors,
    named,
    objects_of,
)
from lab.errors import PeerError


@dataclass(frozen=True)
class NodePresence:
    """A node as the broker sees it. key: PEM; since: when it came, as the broker wrote it."""

    node: int
    key: bytes
    online: bool
    since: str


class ExchangeGrid(OneRun):
    """Flower's grid over the local listener of an exchange: one run, made when this is made.

    listener: path of the local listener's socket; bundle: the app that the run says it is. Raises
    :class:`LineError` where nobody serves.
    """

    def __init__(self, listener: str, secret: str, bundle: bytes) -> None:
        self._listener, self._secret, self._bundle = listener, secret, bundle
        self._headers = Headers({"lab-secret": secret, "lab-hold": "1"})
        self._closed = threading.Event()
        self._node = Node(node_id=SUPERLINK_NODE_ID)
        self._open()
        threading.Thread(target=self._alive, daemon=True, name="alive").start()

    def _open(self) -> None:
        self._line = httpx.Client(
            transport=httpx.HTTPTransport(uds=self._listener),
            timeout=CALL_SECONDS,
            follow_redirects=False,
        )
        try:
            with line_errors("starting a run"):
                task = self._start(self._secret, self._bundle)
        except BaseException:
            self._line.close()
            raise
        self._run = run_from_proto(task.run)
        TaskIdentity.task_id, TaskIdentity.run_id = task.task_id, self._run.run_id
        TaskIdentity.node_id = task.context.node_id

    def open_again(self, deadline: float) -> None:
        """A new run, on an exchange that may have been started anew and know nothing of the old one.

        deadline: on the monotonic clock. Raises :class:`LineError` where nobody serves until then.
        """
        self._line.close()
        while True:
            try:
                return self._open()
            except LineError as error:
                if not error.lost or time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def _start(self, secret: str, bundle: bytes) -> Any:
        interceptors = [
            RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
            self._headers,
        ]
        control = self._through(ControlHttpClient, interceptors)
        run = control.StartRun(StartRunRequest(fab=ProtoFab(content=bundle))).run_id
        token = RuntimeTokenHttpInterceptor(token=self._acquire(interceptors, secret, run))
        self._client = self._through(RuntimeHttpClient, [*interceptors, token])
        return self._client.PullTaskInput(PullTaskInputRequest())

    def _acquire(self, interceptors: list[Any], secret: str, run: int) -> str:
        """The token of this run's task; tasks of runs whose coordinator died are taken and left."""
        authenticator = SuperExecAuthHttpInterceptor(
            master_secret=secret.encode(), protected_methods=["/flwr.proto.Runtime/AcquireTask"]
        )
        client = self._through(RuntimeHttpClient, [*interceptors, authenticator])
        while True:
            response = client.AcquireTask(
                AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
            )
            if not response.token:
                raise PeerError(
                    "exchange: has no task for this run; if another run is starting, try again"
                )
            if response.task.run_id == run:
                return str(response.token)

    def _through(self, kind: type[Any], interceptors: list[Any]) -> Any:
        """One of Flower's clients, over the socket."""
        client = kind("http://exchange", interceptors=interceptors)
        client.close()
        client._client = self._line
        return client

    def _alive(self) -> None:
        while not self._closed.wait(ALIVE_SECONDS):
            try:
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            except (httpx.HTTPError, RuntimeError, ValueError):
                continue

    def presences(self) -> list[NodePresence]:
        """All nodes the broker knows, here or not."""
        with line_errors("listing the nodes"):
            nodes = self._client.GetNodes(GetNodesRequest()).nodes
        return [
            NodePresence(n.node_id, n.public_key, n.status == "online", n.last_activated_at)
            for n in nodes
        ]

    def get_node_ids(self) -> Iterable[int]:
        return [node.node for node in self.presences() if node.online]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        whole = [named(message) for message in messages]
        objects = {
            i: part for message in whole for i, part in get_all_nested_objects(message).items()
        }
        with line_errors("sending messages"):
            response = self._client.PushMessages(
                PushAppMessagesRequest(
                    messages_list=[message_to_proto(remove_content_from_message(m)) for m in whole],
                    message_object_trees=[get_object_tree(m) for m in whole],
                )
            )
            missing = [i for i in objects if i in set(response.objects_to_push)]
            for at, identity in enumerate(missing, start=1):
                self._headers.last = at == len(missing)
                try:
                    self._client.PushObject(
                        PushObjectRequest(
                            node=self._node,
                            run_id=self._run.run_id,
                            object_id=identity,
                            object_content=objects[identity].deflate(),
                            session_id=response.session_id,
                        )
                    )
                finally:
                    self._headers.last = False
        return list(response.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are here; waits a while at the broker's listener if there is none. One whose
        sender died while it sent it is none."""
        with line_errors("waiting for replies"):
            response = self._client.PullMessages(
                PullAppMessagesRequest(message_ids=list(message_ids))
            )
        replies = []
        for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            with suppress(Incomplete):
                replies.append(self._fetch(proto, tree))
        return replies

    def _fetch(self, proto: Any, tree: ObjectTree) -> Message:
        head, run = message_from_proto(proto), self._run.run_id
        with line_errors("waiting for replies"):
            contents = objects_of(
                tree,
                lambda i: self._client.PullObject(
                    PullObjectRequest(node=self._node, run_id=run, object_id=i)
                ),
                FAR_SECONDS,
            )
            self._client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self._node, run_id=run, message_object_id=head.metadata.message_id
                )
            )
        return inflated(head, contents)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def close(self) -> None:
        """End the run, so that the broker forgets its messages."""
        self._closed.set()
        try:
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status="completed", details=""))
        except (httpx.HTTPError, RuntimeError, ValueError):
            return
        finally:
            self._line.close()
