"""What binds a party to the questions of one plan: no other question is answered, whoever asks.

Two ways. *Signed steps*: the solver runs beside whoever opens totals, and signs each question it
arrives at; a party answers questions with its signature, one step after the other. *Replay*
(`federated.study.steps`): the party runs the solver itself and compares.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Protocol

from federated.messages import Request
from lab.errors import PolicyError
from secure_agg.identity import Identity, signed_by

PURPOSE = b"step of a plan"


@dataclass(frozen=True)
class Standing:
    """Where a party stands in its plan: the step it answered last, 0 before the first, the digest
    of that question, and the names of levels that were agreed on, as JSON."""

    step: int = 0
    question: bytes = b""
    levels: str = "{}"


class UnboundQuestion(PolicyError):
    """A question that the plan does not ask now."""

    def __init__(self, text: str) -> None:
        super().__init__(text, "plan")


class Binding(Protocol):
    """What a party holds a question against before it touches a row."""

    def check(self, request: Request, standing: Standing) -> None:
        """Raises :class:`UnboundQuestion` unless this is the plan's question now."""


def statement(plan: str, run: str, levels: str, request: Request) -> bytes:
    """What is signed of a step. plan: its digest; levels: the names agreed on, as JSON."""
    return json.dumps([plan, run, levels, request.step, request.question.hex()]).encode()


def sign_step(identity: Identity, plan: str, run: str, levels: str, request: Request) -> Request:
    """The request with the signature of whoever arrived at it."""
    signature = identity.sign(PURPOSE, statement(plan, run, levels, request))
    return replace(request, signature=signature)


@dataclass(frozen=True)
class SignedSteps:
    """Questions signed by the releaser alone, in order; one may come again, as it was.

    releaser: the key that it signs with; plan: the digest of what this party takes part in; run:
    the name under which it does.
    """

    releaser: bytes
    plan: str
    run: str

    def check(self, request: Request, standing: Standing) -> None:
        said = statement(self.plan, self.run, standing.levels, request)
        if not signed_by(self.releaser, PURPOSE, said, request.signature):
            raise UnboundQuestion("the question is not signed by whoever opens this plan's totals")
        check_order(request, standing)


def check_order(request: Request, standing: Standing) -> None:
    """Raises :class:`UnboundQuestion` unless a request is the step after the last one, or that again."""
    last = standing.step
    again = (request.step, request.question) == (last, standing.question)
    if not again and request.step != last + 1:
        raise UnboundQuestion(f"step {request.step} of the plan was asked for after step {last}")
