"""An insurer takes the model that the opened totals make, and no other that is delivered."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from federated.deployment.node import solver
from federated.deployment.node.solver import PURPOSE, check_outcome
from federated.hiding.protocol import Clear
from federated.messages import message_of
from federated.study.outcome import Outcome
from federated.study.steps import carried_out
from lab.errors import PeerError
from tests.federated.study.test_bound_questions import Rig, plan_of
from tests.rigs.members import members

RUN = "ab" * 8


def honest(rig: Rig) -> Outcome:
    return carried_out(rig.steps(), rig.answer)


def another(outcome: Outcome) -> Outcome:
    """The same but for one coefficient, off by a millionth."""
    fitted = outcome.models["model"]
    beta = (fitted.model.beta[0] + 1e-6, *fitted.model.beta[1:])
    model = fitted.model.model_copy(update={"beta": beta})
    return replace(outcome, models={"model": replace(fitted, model=model)})


def test_a_model_that_the_authority_did_not_sign_is_not_taken(
    tmp_path: Path, authority_key: Any
) -> None:
    made, plan = members(tmp_path, authority_key.public), plan_of("glm")
    with closing(Rig(plan, Clear(), replayed=False)) as rig:
        outcome = honest(rig)

    def delivered(data: bytes, signer: str, run: str = RUN) -> Outcome:
        said = solver._statement(plan.digest, RUN, outcome.to_bytes())
        signature = made.identities[signer].sign(PURPOSE, said)
        content = message_of(outcome=data, signature=signature)
        return check_outcome(made.charter, plan, run, content, None)

    assert delivered(outcome.to_bytes(), "supervisor").texts == outcome.texts
    for data, signer, run in (
        (another(outcome).to_bytes(), "supervisor", RUN),
        (outcome.to_bytes(), "exchange", RUN),
        (outcome.to_bytes(), "supervisor", "cd" * 8),
    ):
        with pytest.raises(PeerError, match="supervisor did not sign"):
            delivered(data, signer, run)


def test_a_model_that_a_replaying_insurer_did_not_arrive_at_is_not_taken(
    tmp_path: Path, authority_key: Any
) -> None:
    made, plan = members(tmp_path, authority_key.public), plan_of("glm")
    with closing(Rig(plan, Clear(), replayed=True)) as rig:
        own = rig.replays[0].steps("{}")
        with pytest.raises(PeerError, match="before its plan is carried out"):
            early = Rig(plan, Clear(), replayed=False)
            with closing(early):
                content = message_of(outcome=honest(early).to_bytes())
            check_outcome(made.charter, plan, RUN, content, own)
        outcome = honest(rig)
        content = message_of(outcome=outcome.to_bytes())
        assert check_outcome(made.charter, plan, RUN, content, own).texts == outcome.texts
        content = message_of(outcome=another(outcome).to_bytes())
        with pytest.raises(PeerError, match="another model than the opened totals make"):
            check_outcome(made.charter, plan, RUN, content, own)
