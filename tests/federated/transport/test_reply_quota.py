"""What a node may leave at the exchange unfetched: the count by itself, and over real TLS."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, RecordDict

from federated.deployment import certificates
from federated.deployment.coordinator import exchange
from federated.deployment.node.rules.settings import AUTHORITY, CERTIFICATE, KEY, admission_of
from federated.transport.exchange_grid import ExchangeGrid
from federated.transport.node_line import LineError, NodeLine, bundle
from federated.transport.reply_quota import (
    PUSHES_A_CLEARANCE,
    STORED_BODIES,
    QuotaExceeded,
    ReplyQuota,
)
from tests.rigs.trial import Trial

MEGABYTE = 2**20


def test_what_was_fetched_counts_no_more() -> None:
    quota, store = ReplyQuota(100), {"a", "b"}
    for identity in sorted(store):
        quota.check(1, 50, store)
        quota.add_object(1, identity, 50)
    with pytest.raises(QuotaExceeded, match=r"100 bytes .* not fetched; 1 more .* limit of 100"):
        quota.check(1, 1, store)
    quota.check(2, 100, store)  # another node's
    store.remove("a")
    quota.check(1, 50, store)


def test_an_object_counts_once_and_the_trees_of_a_root_add_up() -> None:
    quota, store = ReplyQuota(100), {"a"}
    quota.add_object(1, "a", 60)
    quota.check(1, 60, store, "a")  # it was fetched, and is the same in another reply
    quota.add_object(1, "a", 60)
    quota.check(1, 40, store)
    for _ in range(2):
        quota.add_tree(1, "a", 20)
    with pytest.raises(QuotaExceeded, match="100 bytes"):
        quota.check(1, 1, store)


def test_an_account_does_not_grow_with_what_was_fetched() -> None:
    quota = ReplyQuota(MEGABYTE)
    for push in range(10 * PUSHES_A_CLEARANCE):
        quota.check(1, 1, ())
        quota.add_object(1, str(push), 1)
    assert len(quota._accounts[1].objects) <= PUSHES_A_CLEARANCE


@pytest.fixture
def small(tmp_path_factory: Any, authority_key: Any) -> Iterator[Trial]:
    made = Trial(tmp_path_factory.mktemp("quota"), authority_key, insurers=3, rows=60)
    made.settings(body_megabytes=1)
    made.start("exchange")
    made.until(lambda: (made.exchange / exchange.LOCAL_SOCKET).exists(), 60)
    admission_of(made.root / "insurer 1", "insurer 1")
    yield made
    made.stop()


def arrays(count: int, size: int) -> RecordDict:
    """Records of `count` arrays that differ, of about `size` bytes each."""
    return RecordDict({f"r{k}": ArrayRecord([np.full(size // 8, float(k))]) for k in range(count)})


def test_a_reply_over_the_limits_is_refused_and_a_fetched_one_is_not(small: Trial) -> None:
    folder = small.root / "insurer 1"
    tls = certificates.client_side(folder / AUTHORITY, folder / CERTIFICATE, folder / KEY)
    line = NodeLine(f"127.0.0.1:{small.port}", certificates.read_key(folder / KEY), tls)
    node = line.open()
    with exchange.short(small.exchange) as path:
        grid = ExchangeGrid(
            f"{path}/{exchange.LOCAL_SOCKET}", exchange.secret_of(small.exchange), bundle()
        )
    part = 9 * MEGABYTE // 10
    try:
        for _ in range(3):  # each nearly fills the quota, and is fetched
            (asked,) = grid.push_messages([Message(RecordDict(), node, "query")])
            line.push(reply_to(line, arrays(STORED_BODIES, part)))
            (reply,) = grid.pull_messages([asked])
            assert len(reply.content) == STORED_BODIES
        list(grid.push_messages([Message(RecordDict(), node, "query") for _ in range(2)]))
        with pytest.raises(LineError, match=r"413 \d+ bytes of this node's replies are stored"):
            line.push(reply_to(line, arrays(STORED_BODIES + 1, part)))
        with pytest.raises(LineError, match="413 the body has"):
            line.push(reply_to(line, arrays(1, 2 * MEGABYTE)))
    finally:
        grid.close()
        line.close()


def reply_to(line: NodeLine, content: RecordDict) -> Message:
    """A node's reply to the next message."""
    message = line.pull()
    assert message is not None
    return Message(content, reply_to=message)
