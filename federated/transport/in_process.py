"""A Flower grid within one process, for simulations.

The same ``ServerApp`` and ``ClientApp`` objects run here as under Flower's simulation engine and
in deployment. Every message crosses the boundary as protobuf bytes, so that nothing is shared by
accident; replies come back in node order, so that sums do not depend on who was fastest.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    metadata_to_proto,
    recorddict_to_proto,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

#: Error code of a node that failed without a typed refusal.
NODE_FAILED = 1


def identify() -> None:
    """Let this process make messages without one of Flower's own processes around it."""
    TaskIdentity.task_id, TaskIdentity.run_id = 1, 1
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def identify_once() -> None:
    """The same, but for a process that has an identity: a coordinator's own must stay."""
    try:
        _ = TaskIdentity.run_id
    except RuntimeError:
        identify()


class OneRun(Grid):
    """What grids of one run have in common."""

    _run: Run

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class InProcessGrid(OneRun):
    """Nodes as client apps on ``workers`` threads; node k + 1 has partition-id k."""

    def __init__(self, client_app: ClientApp, nodes: int, workers: int) -> None:
        identify()
        self._client_app = client_app
        self._run = Run.create_empty(run_id=1)
        self._contexts = {
            k + 1: Context(
                run_id=1,
                node_id=k + 1,
                node_config={"partition-id": k, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for k in range(nodes)
        }
        self._pool = ThreadPoolExecutor(max_workers=max(1, workers), thread_name_prefix="node")
        self._pending: dict[str, tuple[int, Future[bytes]]] = {}

    def close(self) -> None:
        """Stop the threads; work not yet begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identities = []
        contents: dict[
            int, tuple[RecordDict, ProtoRecordDict]
        ] = {}  # what all nodes are sent is written once
        for message in messages:
            identity, content = str(uuid.uuid4()), message.content
            message.metadata.__dict__["_message_id"] = identity
            if id(content) not in contents:
                contents[id(content)] = content, recorddict_to_proto(content)
            metadata = metadata_to_proto(message.metadata)
            written = ProtoMessage(metadata=metadata, content=contents[id(content)][1])
            wire = written.SerializeToString()
            node = message.metadata.dst_node_id
            self._pending[identity] = (node, self._pool.submit(self._deliver, node, wire))
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        pending = [(i, *self._pending[i]) for i in set(message_ids) if i in self._pending]
        ready = sorted((node, i) for i, node, future in pending if future.done())
        return [self._take(i) for _, i in ready]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        from concurrent.futures import wait

        identities = list(self.push_messages(messages))
        wait([self._pending[i][1] for i in identities], timeout)
        return self.pull_messages(identities)

    def _take(self, identity: str) -> Message:
        _, future = self._pending.pop(identity)
        return message_from_proto(ProtoMessage.FromString(future.result()))

    def _deliver(self, node: int, wire: bytes) -> bytes:
        """The node's side of the boundary: bytes in, bytes out, no exception crosses."""
        message = message_from_proto(ProtoMessage.FromString(wire))
        try:
            reply = self._client_app(message, self._contexts[node])
        except Exception as error:  # what failed is told by its type: a text may hold values
            reply = Message(Error(NODE_FAILED, type(error).__name__), reply_to=message)
        reply.metadata.__dict__["_message_id"] = str(uuid.uuid4())
        return bytes(message_to_proto(reply).SerializeToString())


def run_in_process(server: ServerApp, client: ClientApp, nodes: int, workers: int) -> None:
    """Run both apps to the end on an in-process grid."""
    grid = InProcessGrid(client, nodes, workers)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    try:
        server(grid, context)
    finally:
        grid.close()


def run_on_ray(server: ServerApp, client: ClientApp, nodes: int, workers: int) -> None:
    """Run both apps under Flower's simulation engine (the ``ray`` extra)."""
    import importlib.util

    from lab.errors import ConfigurationError

    if importlib.util.find_spec("ray") is None:
        raise ConfigurationError(
            "--engine ray needs the extra: pip install 'insurance-privacy-lab[ray]'"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import logging
    import warnings

    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": workers, "include_dashboard": False, "log_to_driver": False},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(server, client, nodes, backend_config=backend)


ENGINES: Mapping[str, Callable[[ServerApp, ClientApp, int, int], None]] = {
    "grid": run_in_process,
    "ray": run_on_ray,
}
