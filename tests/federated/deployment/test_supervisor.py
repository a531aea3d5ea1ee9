"""A supervisor does not forget whom it named: not in this process, and not in the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from federated.deployment.audit_logs import LOG_NAME, open_log
from federated.deployment.node.supervisor import Openings, opened_total, with_form
from federated.hiding.paillier import terms_of
from federated.hiding.protocol import fields_of
from federated.messages import form_of, message_of, with_rows
from federated.party.statistics import request
from lab.errors import PolicyError
from lab.models.glm import Task
from lab.privacy.disclosure import Rules
from lab.sums import COUNT, Sums
from secure_agg.errors import FaultyParty
from secure_agg.packing import Layout
from secure_agg.paillier import encrypt
from secure_agg.transcript import Transcript, contribute
from tests.rigs.malformed import LeavesTheLayout
from tests.rigs.members import Members, members

RUN, CULPRIT = "ab" * 8, "ping-an"


def shown(made: Members, query: str, key: Any, give: Any = contribute) -> RecordDict:
    """What a coordinator shows the supervisor: one number of each insurer of the charter."""
    roster, arguments = (
        made.charter.roster,
        {"task": Task(target="y"), "part": "train", "most": (2.0**40,) * 4},
    )
    asked = request(
        "totals",
        arguments,
        {},
        query=query,
        hiding="paillier",
        parties=roster.names,
        charter=made.charter.digest,
    )
    form = form_of(with_rows(Sums({"y": np.ones(1)}, {"y": COUNT}, 20)))
    layout = Layout(fields_of(form), len(roster.names), key.bits)
    terms = terms_of(asked, roster, key, layout)
    batch = encrypt(key, layout, [np.ones(1), np.full(1, 20.0)]).to_bytes()
    given = tuple(give(made.identities[name], terms, batch) for name in roster.names)
    content = message_of(transcript=Transcript(terms, given).to_bytes(), form=with_form(form))
    content.update(asked.to_record())
    return content


def test_a_party_that_left_the_layout_stays_out_of_the_run_when_its_supervisor_starts_again(
    tmp_path: Path, authority_key: Any
) -> None:
    made, key = members(tmp_path, authority_key.public), authority_key.public
    charter, rules = made.charter, Rules.read()
    log_path = tmp_path / LOG_NAME

    def opened(content: RecordDict, openings: Openings, run: str = RUN) -> RecordDict:
        with open_log(log_path, made.identities["supervisor"], charter=charter.digest) as log:
            return opened_total(charter, authority_key, rules, openings, log, run, content)

    Openings.begin(tmp_path)
    openings = Openings(tmp_path)
    with pytest.raises(FaultyParty) as blame:
        opened(shown(made, f"{RUN}-1", key, LeavesTheLayout(CULPRIT, key)), openings)
    assert blame.value.culprits == (CULPRIT,)
    for memory in (openings, Openings(tmp_path)):
        for number in (1, 2):  # the sum that was not opened, and the next one of the run
            with pytest.raises(PolicyError, match="left this run may not come back into it"):
                opened(shown(made, f"{RUN}-{number}", key), memory)
        assert f"{RUN}-1" in memory.queries
    other = "cd" * 8
    reply = opened(shown(made, f"{other}-1", key), Openings(tmp_path), other)
    assert "reply" in reply.config_records
