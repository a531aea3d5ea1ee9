"""The kinds of messages between a coordinator and its nodes, by the names that travel.

A kind is Flower's message type: Flower's own action, and behind the dot what a node does.
"""

from __future__ import annotations

from enum import StrEnum


class MessageKind(StrEnum):
    """What a message is for. Every kind but ``REPLY`` goes from the coordinator to a node."""

    # of every federation, simulated or deployed
    HELLO = "query.hello"  # who the node is
    ENROL = "query.enrol"  # the roster, and what the protection needs of it
    LEVELS = "query.levels"  # the names of the levels of its columns
    AGREED = "query.agreed"  # the names of levels that all nodes have together
    RECEIPT = "query.receipt"  # what has left the node
    JOIN = "query.profile"  # a profile of providers, to be joined to the node's rows

    # of joined parties
    PAIR = "query.pair"  # who the other sides are, and what was dealt for products
    PRODUCT = "query.product"  # letters between sides, a turn of a product

    # of a key that is split among the parties
    PART = "query.part"  # the node's part of opening a total
    RELEASE = "query.release"  # open a total by rules, to the first holder

    # of pairwise masks, in the order of the protocol
    ADVERTISE = "query.masks_advertise"  # fresh public keys
    SHARE = "query.masks_share"  # shares of the node's secrets, sealed to the others
    MASK = "query.masks_mask"  # the masked contribution to a question
    MASK_TRAINING = "train.masks_mask"  # the masked contribution of a training step
    CONFIRM = "query.masks_confirm"  # sign who is present
    REVEAL = "query.masks_reveal"  # the shares that take the masks off the total

    # of joined parties that run processes of their own
    ALIGNED = "query.aligned"  # which alignments stand at a side
    ALIGN = "query.align"  # a letter between sides, a turn of an alignment
    DEALER = "query.dealer"  # deal each side's secret of a run, to the supervisor
    DEAL = "query.deal"  # deal what the fund's side needs for a sum, to the supervisor

    # of a deployed federation
    BEGIN = "query.begin"  # the announced plan of a run
    VOUCH = "query.vouch"  # sign that a profile was released in this run
    NEXT = "query.next"  # sign the question that the plan is at, to the supervisor
    OPEN = "query.open"  # open a total, to the supervisor
    TOTAL = "query.total"  # a total that was opened, to who replays the plan
    DELIVER = "query.deliver"  # the fitted model
    CHECKPOINT = "query.checkpoint"  # sign the end of the node's log
    REPLY = "reply"  # the answer to any of these
