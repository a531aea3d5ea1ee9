"""The kinds of messages between a coordinator and its nodes, by the names that travel.

A kind is Flower's message type: Flower's own action, and behind the dot what a node does.
"""

from __future__ import annotations

from enum import StrEnum


class MessageKind(StrEnum):
    """What a message is for. Every kind but ``REPLY`` goes from the coordinator to a node."""

    # of every federation, simulated or deployed
    HELLO = "query.hello"  # who the node is
    LEVELS = "query.levels"  # the names of the levels of its columns
    AGREED = "query.agreed"  # the names of levels that all nodes have together
    RECEIPT = "query.receipt"  # what has left the node
    JOIN = "query.profile"  # a profile of providers, to be joined to the node's rows

    # of a deployed federation
    BEGIN = "query.begin"  # the announced plan of a run
    VOUCH = "query.vouch"  # sign that a profile was released in this run
    NEXT = "query.next"  # sign the question that the plan is at, to the supervisor
    OPEN = "query.open"  # open a total, to the supervisor
    TOTAL = "query.total"  # a total that was opened, to who replays the plan
    RELEASE = "query.release"  # open a total by rules, to the first holder of a split key
    DELIVER = "query.deliver"  # the fitted model
    CHECKPOINT = "query.checkpoint"  # sign the end of the node's log
    REPLY = "reply"  # the answer to any of these
