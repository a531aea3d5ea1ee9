"""What tests do to a node in its process, so that it fails where a sum of joined sides is made."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Any

from federated.deployment.node.process import Node
from federated.deployment.signed_messages import claimed
from federated.joined.side import JoinedSide


@dataclass(frozen=True)
class DiesAt:
    """Is killed when a message about a statistic comes, after it answered so many of them."""

    statistic: str
    answered: int

    def __call__(self, node: Node) -> None:
        handle, left = node.handle, [self.answered]

        def wrapped(line: Any, message: Any) -> Any:
            content = claimed(message.content).content
            header = content.config_records.get("request", {})
            if header.get("statistic") == self.statistic:
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
            return handle(line, message)

        node.handle = wrapped  # type: ignore[method-assign]


@dataclass(frozen=True)
class TellsOfNothing:
    """Tells an insurer of no cut, whatever the plan chose."""

    def __call__(self, node: Node) -> None:
        JoinedSide.tell = lambda *asked: b""  # type: ignore[method-assign]
