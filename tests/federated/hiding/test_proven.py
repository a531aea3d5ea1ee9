"""Whoever replays a plan opens each total for itself; the coordinator's word counts for nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from federated.federation import Federation
from federated.hiding import masks, paillier
from federated.hiding.masks import Masks
from federated.hiding.paillier import Dealer, Paillier
from federated.messages import form_from_json, form_to_json, message_of, read
from federated.party import statistics
from lab.errors import LabError, PeerError
from lab.models.glm import Task
from lab.sums import Limit, Sums
from secure_agg.errors import SecureAggError
from secure_agg.identity import Roster
from secure_agg.masks import Opening, Signed, pairs_in, pairs_out
from secure_agg.transcript import Transcript
from tests.conftest import federate, split
from tests.federated.solvers.test_glm import table

TASK = Task(target="y", exposure="years")
MOST = (2.0**40,) * 4
REFUSED = (LabError, SecureAggError)


def total_of(protection: Any, part: str = "train") -> tuple[Sums, str, bytes, RecordDict, Roster]:
    """A total as the coordinator has it, its run, its question, its proof, and the roster."""
    rosters: list[Roster] = []
    runs: list[str] = []

    def work(federation: Federation) -> Sums:
        runs.append(federation.run)
        rosters.append(Roster(tuple(member.card for member in federation.members)))
        return federation.sum("totals", task=TASK, part=part, most=MOST)

    total = federate(split(table("poisson"), 4), work, protection)
    arguments = {"task": TASK, "part": part, "most": MOST}
    asked = statistics.request("totals", arguments, {}, query="", hiding=protection.hiding)
    return total, runs[0], asked.question, protection.proof, rosters[0]


def changed(proof: RecordDict, **parts: bytes) -> RecordDict:
    """A proof in which the coordinator has put something else."""
    names = proof.array_records["message"]
    return message_of(**{name: parts.get(name, read(proof, name)) for name in names})


def renamed_form(proof: RecordDict) -> bytes:
    """The form with a bound of its own."""
    form = dict(form_from_json(read(proof, "form").decode()))
    name = next(iter(form))
    form[name] = (form[name][0], Limit(form[name][1].bound * 2, form[name][1].resolution))
    return form_to_json(form).encode()


def test_a_masked_total_follows_from_what_its_parties_signed() -> None:
    total, run, question, proof, roster = total_of(Masks())
    memory: Any = SimpleNamespace(roster=lambda: roster)
    own = masks.proven(memory, run, question, proof)
    assert own.rows == total.rows
    assert all(np.array_equal(own[name], total[name]) for name in total.arrays)


def _vector(opening: Opening) -> Opening:
    name, sent = next(iter(opening.vectors.items()))
    data = bytes([sent.data[0] ^ 1]) + sent.data[1:]
    return replace(opening, vectors={**opening.vectors, name: replace(sent, data=data)})


def _left_out(opening: Opening) -> Opening:
    return replace(opening, vectors=dict(list(opening.vectors.items())[1:]))


def _share(opening: Opening) -> Opening:
    name, sent = next(iter(opening.revealed.items()))
    data = sent.data[:-1] + bytes([sent.data[-1] ^ 1])
    return replace(opening, revealed={**opening.revealed, name: Signed(data, sent.signature)})


def _stranger(opening: Opening) -> Opening:
    sent = next(iter(opening.vectors.values()))
    return replace(opening, vectors={**opening.vectors, "nobody": sent})


@pytest.mark.parametrize("lie", [_vector, _left_out, _share, _stranger])
def test_another_masked_total_does_not_open(lie: Any) -> None:
    _, run, question, proof, roster = total_of(Masks())
    memory: Any = SimpleNamespace(roster=lambda: roster)
    opening = lie(Opening.from_bytes(read(proof, "opening")))
    with pytest.raises(REFUSED):
        masks.proven(memory, run, question, changed(proof, opening=opening.to_bytes()))
    with pytest.raises(REFUSED):  # nor of another sum, question or form
        masks.proven(memory, run, question, changed(proof, query=b"0-9"))
    with pytest.raises(PeerError, match="of another run"):
        masks.proven(memory, "ab" * 8, question, proof)
    with pytest.raises(REFUSED):
        masks.proven(memory, run, bytes(32), proof)
    with pytest.raises(REFUSED):
        masks.proven(memory, run, question, changed(proof, form=renamed_form(proof)))


def test_a_total_under_a_split_key_follows_from_all_parts(authority_key: Any) -> None:
    dealer = Dealer(authority_key)
    total, run, question, proof, roster = total_of(Paillier(dealer))
    assert dealer._holders is not None
    share = SimpleNamespace(split=dealer._holders._split)
    memory: Any = SimpleNamespace(roster=lambda: roster, key_share=lambda: share)
    own = paillier.proven(memory, run, question, proof)
    assert all(np.array_equal(own[name], total[name]) for name in total.arrays)

    parts = pairs_in(read(proof, "parts"))
    first, second, *_ = parts
    transcript = Transcript.from_bytes(read(proof, "transcript"))
    fewer = replace(transcript, contributions=transcript.contributions[1:])
    for lie in (
        changed(proof, parts=pairs_out({**parts, first: parts[second]})),
        changed(proof, parts=pairs_out({k: v for k, v in parts.items() if k != first})),
        changed(proof, transcript=fewer.to_bytes()),
        changed(proof, form=renamed_form(proof)),
    ):
        with pytest.raises(REFUSED):
            paillier.proven(memory, run, question, lie)
    with pytest.raises(PeerError, match="of another run"):
        paillier.proven(memory, "ab" * 8, question, proof)
    with pytest.raises(REFUSED):
        paillier.proven(memory, run, bytes(32), proof)
