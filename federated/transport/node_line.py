"""A node's connection to the broker: Flower's protocol, without its polling.

Flower starts a Python process for each message and polls every three seconds. Here both ends are
long-lived and speak the same protocol with Flower's own clients; a pull that finds nothing is held
at the broker's listener until there is a message (`federated.transport.broker`).
"""

from __future__ import annotations

import hashlib
import io
import logging
import ssl
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors.http import (
    RuntimeVersionHttpInterceptor,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import DecodeError

from lab.errors import PeerError
from lab.text import printable

logging.getLogger("flwr").setLevel(logging.CRITICAL)
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

#: Seconds a call may take, which is longer than a pull is held; between signs of life of a node.
CALL_SECONDS, ALIVE_SECONDS = 40.0, 10.0
#: Seconds to wait for the next part of a message whose head is here: a coordinator's, which come
#: from the broker's own machine, and a party's, which come from far.
NEAR_SECONDS, FAR_SECONDS = 3.0, 20.0
#: How the listener says that it is the node that may not come in; Flower says 403 of calls as well.
BARRED = "this node's key is"
#: Answers after which a call is worth trying again.
PASSING = (502, 503, 504)
#: Who is trusted to be the other end is decided above; what comes from there may still be broken.
BROKEN = (KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError)


@dataclass
class Headers:
    """Headers of ours on a client's calls; `last` marks the call that completes a message."""

    values: dict[str, str]
    last: bool = False

    def intercept(self, context: ProtobufRequestContext, call: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self.values | ({"lab-last": "1"} if self.last else {}))
        response: httpx.Response = call(context)
        return response


@contextmanager
def line_errors(doing: str) -> Iterator[None]:
    """Failures of a line as errors of ours: short, and without what anybody sent."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise LineError(
            f"{doing}: the exchange answers {status} {_detail(error)}", status
        ) from None
    except httpx.HTTPError as error:
        reason = printable(str(error)[:200]) or type(error).__name__
        raise LineError(f"{doing}: no connection to the exchange ({reason})", 0) from None
    except BROKEN as error:  # Flower's clients raise ValueError for what they cannot read
        kind = type(error).__name__
        raise LineError(f"{doing}: the exchange's answer is not readable ({kind})", 0) from None


def _detail(error: httpx.HTTPStatusError) -> str:
    try:
        body = error.response.json()
        return printable(str(body.get("detail") or body.get("message") or "")[:200])
    except BROKEN:
        return ""


class Incomplete(PeerError):
    """A message that is not there as a whole; it is sent again."""


class LineError(PeerError):
    """A call to the exchange failed. ``status``: what it answered, 0 for nothing."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def barred(self) -> bool:
        """Whether the exchange does not let this node in, rather than this one call."""
        return self.status == httpx.codes.FORBIDDEN and BARRED in str(self)

    @property
    def passing(self) -> bool:
        """Whether trying again may help."""
        return self.status == 0 or self.status in PASSING

    @property
    def lost(self) -> bool:
        """Whether the exchange is gone, or was started again and does not know who calls."""
        return self.passing or self.status == httpx.codes.UNAUTHORIZED


def objects_of(tree: ObjectTree, pull: Callable[[str], Any], patience: float) -> dict[str, bytes]:
    """All parts of a message, as they arrive. Raises :class:`PeerError` if one does not."""
    contents: dict[str, bytes] = {}
    for identity in dict.fromkeys(part.object_id for part in iterate_object_tree(tree)):
        deadline = time.monotonic() + patience
        while True:
            answer = pull(identity)
            if answer.object_found and answer.object_available:
                contents[identity] = answer.object_content
                break
            if not answer.object_found or time.monotonic() > deadline:
                raise Incomplete("exchange: a message arrived without all of its parts")
            time.sleep(0.01)
    return contents


def inflated(head: Any, contents: dict[str, bytes]) -> Message:
    """A message from its head and its parts. Raises :class:`Incomplete`."""
    try:
        identity = head.metadata.message_id
        message = inflate_object_from_contents(identity, contents)
        if not isinstance(message, Message):
            raise TypeError
        message.metadata.__dict__["_message_id"] = identity
        return message
    except BROKEN as error:
        raise Incomplete(f"exchange: a message is not readable: {type(error).__name__}") from None


def named(message: Message) -> Message:
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


class NodeLine:
    """A node's line to an exchange. ``open``, then ``pull`` and ``push``, then ``close``."""

    def __init__(self, address: str, key: ec.EllipticCurvePrivateKey, tls: ssl.SSLContext) -> None:
        self._headers = Headers({})
        self._client = FleetHttpClient(
            f"https://{address}",
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
                self._headers,
            ],
            verify=tls,
            timeout=CALL_SECONDS,
        )
        self._client._client.follow_redirects = False  # nor to anywhere without TLS
        self._public = public_key_to_bytes(key.public_key())
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self.node = 0

    def open(self, last_node: int = 0) -> int:
        """Come in, and return this node's number. last_node: the number it had before, so that a
        node that was killed says first that it left, and need not wait until it is missed."""
        with line_errors("connecting"):
            if last_node:
                try:
                    self._client.DeactivateNode(DeactivateNodeRequest(node_id=last_node))
                except (
                    httpx.HTTPStatusError
                ) as error:  # it was missed already, or all were forgotten
                    if error.response.status_code == httpx.codes.FORBIDDEN:
                        raise
            request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=ALIVE_SECONDS)
            self.node = int(self._client.ActivateNode(request).node_id)
        threading.Thread(target=self._alive, daemon=True, name="alive").start()
        return self.node

    def _alive(self) -> None:
        """Tell the exchange that this node is here, from a thread of its own."""
        node = self.node
        while not self._closed.wait(ALIVE_SECONDS * 0.8) and node == self.node:
            request = SendNodeHeartbeatRequest(
                node=Node(node_id=node), heartbeat_interval=ALIVE_SECONDS
            )
            try:
                self._client.SendNodeHeartbeat(request)
            except (httpx.HTTPError, RuntimeError, ValueError):
                continue  # the next pull will tell

    def pull(self) -> Message | None:
        """The next message, or None after a while without one.

        Raises LineError, and Incomplete for a message that ended with its run.
        """
        node = Node(node_id=self.node)
        with line_errors("waiting for messages"):
            response = self._client.PullMessages(PullMessagesRequest(node=node))
            if not response.messages_list:
                return None
            head, tree = (
                message_from_proto(response.messages_list[0]),
                response.message_object_trees[0],
            )
        try:
            with line_errors("fetching a message"):
                return self._fetch(node, head, tree)
        except LineError as error:
            if error.passing or error.barred:
                raise
            raise Incomplete(str(error)) from None

    def _fetch(self, node: Node, head: Message, tree: ObjectTree) -> Message:
        run = head.metadata.run_id
        contents = objects_of(
            tree,
            lambda i: self._client.PullObject(
                PullObjectRequest(node=node, run_id=run, object_id=i)
            ),
            NEAR_SECONDS,
        )
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=node, run_id=run, message_object_id=head.metadata.message_id
            )
        )
        return inflated(head, contents)

    def app_of(self, run: int) -> str:
        """SHA-256 of the app that a run says it is; the app itself is never fetched."""
        with line_errors("looking up the run"):
            request = GetRunRequest(node=Node(node_id=self.node), run_id=run)
            return str(self._client.GetRun(request).run.fab_hash)

    def push(self, reply: Message) -> None:
        """Send a reply. Raises :class:`LineError`."""
        node, run, whole = Node(node_id=self.node), reply.metadata.run_id, named(reply)
        with line_errors("sending a reply"):
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(remove_content_from_message(whole))],
                    message_object_trees=[get_object_tree(whole)],
                    clientapp_runtime_list=[0.0],
                )
            )
            missing = [
                (i, part)
                for i, part in get_all_nested_objects(whole).items()
                if i in set(response.objects_to_push)
            ]
            for at, (identity, part) in enumerate(missing, start=1):
                self._headers.last = at == len(missing)
                try:
                    self._client.PushObject(
                        PushObjectRequest(
                            node=node,
                            run_id=run,
                            object_id=identity,
                            object_content=part.deflate(),
                            session_id=response.session_id,
                        )
                    )
                finally:
                    self._headers.last = False

    def close(self) -> None:
        """Say goodbye, if anybody listens."""
        self._closed.set()
        try:
            if self.node:
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node))
        except (httpx.HTTPError, RuntimeError, ValueError):
            return
        finally:
            self._client.close()


def packed(record: RecordDict) -> bytes:
    """Records as bytes."""
    return bytes(recorddict_to_proto(record).SerializeToString(deterministic=True))


def unpacked(data: bytes) -> RecordDict:
    """The records of `packed` bytes. Raises :class:`PeerError`."""
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(data))
    except (DecodeError, *BROKEN) as error:
        raise PeerError(f"a message is not readable: {type(error).__name__}") from None


def bundle(files: Mapping[str, str] | None = None) -> bytes:
    """The app that travels: one pyproject.toml that names this package's apps, and no code.

    The same bytes on every machine, in the form of Flower's app bundles: a zip with a list of its
    files, their SHA-256 and their sizes in bits.
    """
    files = files or {"pyproject.toml": PYPROJECT}
    entries = [
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text.encode())}"
        for name, text in files.items()
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, text in {**files, ".info/CONTENT": "\n".join(entries)}.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()


PYPROJECT = """[project]
name = "insurance-privacy-lab-exchange"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.42"]

[tool.flwr.app]
publisher = "lab"

[tool.flwr.app.components]
serverapp = "federated.app:server_app"
clientapp = "federated.app:client_app"
"""
