"""Questions are answered by release alone: whoever opens their totals shows what the rules leave.

The statistics of :data:`RELEASED` never come back as raw totals: those of questions, and the
profile of providers that a model's features come from. What is expected of every
contribution, and what is made of the totals, follows from the question that all parties signed.
"""

from __future__ import annotations

import json

from federated.messages import CARRIED, Form, Request
from federated.party.statistics import RELEASED as RELEASED
from lab.errors import PeerError, PolicyError
from lab.models import profile
from lab.privacy.disclosure import Rules
from lab.queries import cells
from lab.queries.questions import Question
from lab.sums import Sums


def release(request: Request, totals: Sums, rules: Rules) -> Sums:
    """What may be shown of the totals of a question, which are of the `expected` form.

    rules: those of whoever releases. Raises :class:`PolicyError` where the question was asked
    under others.
    """
    arguments = request.arguments
    if arguments.get("rules") != json.loads(rules.model_dump_json()):
        raise PolicyError("the question was asked under other disclosure rules than the releaser's")
    if request.statistic == "profile":
        return profile.release(
            profile.ProfileCells.model_validate(arguments["cells"]), rules, totals
        )
    question = Question.model_validate(arguments["question"])
    match request.statistic:
        case "cells":
            return cells.release(question, rules, totals)
        case "violations":
            return cells.release_flags(rules, totals)
        case "drift":
            return cells.release_drift(rules, totals)
    raise PeerError(f"'{request.statistic}' is not released by rules")


def expected(request: Request) -> Form:
    """The public form of every contribution to this question, in the order it is packed in.

    It follows from the question, so that nobody can swap one array for another.
    """
    match request.statistic:
        case "violations":
            sizes = cells.flag_form(int(request.arguments["flags"]))
        case "drift":
            sizes = cells.DRIFT_FORM
        case "profile":
            sizes = profile.ProfileCells.model_validate(request.arguments["cells"]).form()
        case _:
            sizes = cells.form(Question.model_validate(request.arguments["question"]))
    form = {name: ((size,), limit) for name, (size, limit) in sizes.items()}
    if request.hiding != "clear":
        form |= {name: ((1,), limit) for name, limit in CARRIED.items()}
    return {name: form[name] for name in sorted(form)}
