"""A supervisor does not forget whom it named: not in this process, and not in the next."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from federated.deployment.audit_logs import LOG_NAME, open_log
from federated.deployment.folders import CHARTER, IDENTITY
from federated.deployment.node.openings import MOST_NAMINGS, OPENINGS, Openings
from federated.deployment.node.supervisor import opened_total, readmit, with_form
from federated.hiding.paillier import terms_of
from federated.hiding.protocol import fields_of
from federated.messages import form_of, message_of, with_rows
from federated.party.statistics import request
from lab.audit.log_format import entries, read_lines
from lab.errors import ConfigurationError, PolicyError
from lab.models.glm import Task
from lab.privacy.disclosure import Rules
from lab.sums import COUNT, Sums
from secure_agg.errors import FaultyParty
from secure_agg.packing import Layout
from secure_agg.paillier import encrypt
from secure_agg.transcript import Transcript, contribute
from tests.rigs.malformed import LeavesTheLayout
from tests.rigs.members import ROLES, Members, members

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
    batch = encrypt(key, layout, [np.full(1, 20.0), np.zeros(1), np.ones(1)]).to_bytes()
    given = tuple(give(made.identities[name], terms, batch) for name in roster.names)
    content = message_of(transcript=Transcript(terms, given).to_bytes(), form=with_form(form))
    content.update(asked.to_record())
    return content


@dataclass
class Supervised:
    """A supervisor's folder, as processes that start one after the other open totals in it."""

    folder: Path
    made: Members
    key: Any

    @classmethod
    def of(cls, folder: Path, key: Any) -> Supervised:
        Openings.begin(folder)
        return cls(folder, members(folder, key.public), key)

    def opened(self, content: RecordDict, run: str, openings: Openings | None = None) -> RecordDict:
        supervisor, charter = self.made.identities["supervisor"], self.made.charter
        memory = openings or Openings(self.folder)
        with open_log(self.folder / LOG_NAME, supervisor, charter=charter.digest) as log:
            return opened_total(charter, self.key, Rules.read(), memory, log, run, content)

    def guesses(self, count: int) -> list[tuple[str, ...]]:
        """Whom the supervisor names where a member signs a changed ciphertext in each of many runs."""
        culprits = []
        for at in range(count):
            run = f"{at:016x}"
            change = LeavesTheLayout(CULPRIT, self.key.public)
            with pytest.raises(FaultyParty) as blame:
                self.opened(shown(self.made, f"{run}-1", self.key.public, change), run)
            if "no total was opened" in str(blame.value):
                culprits.append(blame.value.culprits)
        return culprits


def test_where_namings_are_not_counted_each_run_tells_a_bit_of_a_ciphertext(
    tmp_path: Path, authority_key: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unprotected twin: whether a changed ciphertext keeps the layout, as often as one asks."""
    monkeypatch.setattr(Openings, "_check_namings", lambda openings, parties: None)
    assert len(Supervised.of(tmp_path, authority_key).guesses(8)) == 8


def test_a_party_that_was_named_three_times_is_in_no_total_until_it_is_readmitted(
    tmp_path: Path, authority_key: Any
) -> None:
    supervised = Supervised.of(tmp_path, authority_key)
    assert supervised.guesses(8) == [(CULPRIT,)] * MOST_NAMINGS
    made, run = supervised.made, "ef" * 8
    made.sign(tmp_path / CHARTER)
    shutil.copy(tmp_path / f"{[*ROLES].index('supervisor')}.identity.json", tmp_path / IDENTITY)
    honest = shown(made, f"{run}-1", authority_key.public)
    words = rf"{CULPRIT}: named 3 times .* run lab holder readmit FOLDER '{CULPRIT}' --by NAME"
    with pytest.raises(FaultyParty, match=words) as blame:
        supervised.opened(honest, run)
    assert blame.value.culprits == (CULPRIT,)
    (tmp_path / OPENINGS).unlink()  # the log tells of namings as well
    with pytest.raises(FaultyParty, match="named 3 times"):
        supervised.opened(honest, run)
    with pytest.raises(ConfigurationError, match="nobody: is no insurer; the charter's insurers"):
        readmit(tmp_path, "nobody", "Li Wei")
    readmit(tmp_path, CULPRIT, "Li Wei")
    assert "reply" in supervised.opened(honest, run).config_records
    (line,) = (e for e in entries(read_lines(tmp_path / LOG_NAME)) if e.kind == "approval")
    assert line.told["statistic"] == f"readmission of {CULPRIT}" and line.told["by"] == "Li Wei"


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
