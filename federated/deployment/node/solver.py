"""The solver of a run at a node: beside the key, where it decides what is asked next; or at an
insurer that replays the plan, where it decides what is answered.

Where the charter names a key authority, totals of models stay with it: what comes out is the next
question, signed, and at the end the outcome, signed. Else every insurer is told the opened totals
and runs the solver too.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from federated.deployment.charter import Charter
from federated.deployment.totals import TotalsOnDisk
from federated.federation import levels_request
from federated.hiding import masks, paillier
from federated.messages import Hiding, Reply, Request, message_of, read
from federated.party.binding import UnboundQuestion, sign_step
from federated.party.party import Party
from federated.party.state import NodeState
from federated.party.statistics import RELEASED
from federated.study.bound import SignedStudy, unlisted_levels
from federated.study.outcome import Outcome, carry_out
from federated.study.plan import StudyPlan
from federated.study.steps import Levels, Steps
from lab.errors import PeerError
from lab.files import write_whole
from lab.models.profile import Profile, ProfileCells
from lab.sums import Sums
from secure_agg.identity import Identity, signed_by

PURPOSE = b"outcome of a plan"
#: What a reply that only carries the next step is made of.
NOTHING = Sums({}, {}, 0)


def signed_steps(charter: Charter) -> bool:
    """Whether questions are signed by a key authority; else insurers replay the plan."""
    return charter.key is not None and charter.key.opens == "authority"


def names_of(levels: str) -> Levels:
    """Levels by column from JSON. Raises :class:`PeerError`."""
    try:
        return {str(k): tuple(map(str, v)) for k, v in json.loads(levels).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise PeerError("coordinator: the names of levels are not readable") from None


def check_levels(plan: StudyPlan, content: RecordDict) -> None:
    """Raises :class:`UnboundQuestion` unless names of levels are asked of the plan's features, over
    the plan's rows: over other rows they tell how many there are, and by which party."""
    own = levels_request(*unlisted_levels(plan)).config_records["levels"]
    if dict(content.config_records.get("levels", {})) != dict(own):
        raise UnboundQuestion("names of levels are asked of other features or rows than the plan's")


def taken_up(
    plan: StudyPlan, levels: str, hiding: Hiding, charter: Charter, totals: TotalsOnDisk
) -> Steps[Outcome]:
    """The solver of a plan, after all totals that are on disk."""
    split = hiding == "paillier" and not signed_steps(charter)
    steps = Steps(
        lambda parties: carry_out(plan, parties),
        hiding,
        everybody=hiding == "masks" or split,
        levels=names_of(levels),
        charter=charter.digest,
    )
    while (question := steps.question) is not None:
        total = totals.read(question.step, question.question.hex())
        if total is None:
            break
        steps.give(total)
    return steps


class ReleaserSteps:
    """A supervisor's solver in one run. folder: of its state; each total is on disk before the
    solver goes on, and gone once there is an outcome."""

    def __init__(
        self,
        folder: Path,
        run: str,
        plan: StudyPlan,
        charter: Charter,
        identity: Identity,
        levels: str,
    ) -> None:
        self._run, self._levels = run, levels
        self._study = SignedStudy(plan, identity, run)
        self._folder = folder / f"{run}.totals"
        self._outcome = folder / f"{run}.outcome"
        self._totals = TotalsOnDisk(self._folder)
        self._steps: Steps[Outcome] | None = None
        if not self._outcome.exists():
            self._steps = taken_up(plan, levels, "paillier", charter, self._totals)

    def check(self, request: Request) -> None:
        """Raises :class:`PeerError` unless this is the question that the solver stands at."""
        own = self._steps.question if self._steps else None
        if own is None or (request.step, request.question) != (own.step, own.question):
            raise PeerError("coordinator: sends the answers to another question than the plan's")

    def give(self, total: Sums) -> None:
        """Take the total of the question that the solver stands at."""
        assert self._steps is not None
        question = self._steps.question
        assert question is not None
        self._totals.write(question.step, question.question.hex(), total)
        self._steps.give(total)

    def next(self) -> RecordDict:
        """The next question, signed; at the end the outcome, signed.

        Raises what the solver raised.
        """
        if self._steps is not None and (question := self._steps.question) is not None:
            study = self._study
            signed = sign_step(study.identity, study.digest, self._run, self._levels, question)
            return signed.to_record()
        if self._steps is not None:
            write_whole(self._outcome, self._steps.result.to_bytes(), 0o600)
            self._steps = None
            shutil.rmtree(self._folder, ignore_errors=True)
        data = self._outcome.read_bytes()
        said = _statement(self._study.digest, self._run, data)
        return message_of(outcome=data, signature=self._study.identity.sign(PURPOSE, said))

    def close(self) -> None:
        if self._steps is not None:
            self._steps.close()


def check_outcome(
    charter: Charter, plan: StudyPlan, run: str, content: RecordDict, own: Steps[Outcome] | None
) -> Outcome:
    """The outcome of a plan as it is delivered, if it is the one that follows from its totals.

    own: the insurer's own solver, where nobody signs. Raises :class:`PeerError`.
    """
    data = read(content, "outcome")
    outcome = Outcome.from_bytes(data)
    if own is not None:
        if own.question is not None:
            raise PeerError("coordinator: delivers a model before its plan is carried out")
        if not outcome.agrees_with(own.result):
            raise PeerError("coordinator: delivers another model than the opened totals make")
        return outcome
    if charter.key is None:
        raise PeerError("coordinator: delivers a model that nobody signs and nobody replays")
    key = charter.member(charter.key.by[0]).card.verifying
    if not signed_by(key, PURPOSE, _statement(plan.digest, run, data), read(content, "signature")):
        raise PeerError(f"coordinator: delivers a model that {charter.key.by[0]} did not sign")
    return outcome


def _statement(plan: str, run: str, outcome: bytes) -> bytes:
    return json.dumps([plan, run]).encode() + outcome


def total_message(question: Request, proof: RecordDict) -> RecordDict:
    """A total on its way to insurers that replay the plan, as they can open it for themselves."""
    content = RecordDict(dict(proof))
    content["step"] = ConfigRecord({"number": question.step})
    return content


def step_of(content: RecordDict) -> int:
    """The step of a `total_message`. Raises :class:`PeerError`."""
    number = content.config_records.get("step", {}).get("number")
    if not isinstance(number, int):
        raise PeerError("coordinator: a total comes without its step")
    return number


def total_of(content: RecordDict, run: str, own: Request, party: Party, memory: NodeState) -> Sums:
    """The total of a `total_message`, as this insurer opens it.

    own: the question that its own solver asks. In the clear, where the coordinator alone sees the
    contributions, a total is its word. Raises what is wrong with the total.
    """
    standing = memory.standing()
    question = standing.question if standing.step == own.step else own.question
    if own.statistic in RELEASED:
        total = Reply.from_record(content).sums
        cells = ProfileCells.model_validate(own.arguments["cells"])
        if Profile.of(cells, total).digest not in party.profiles:
            raise PeerError("coordinator: shows another profile than was released")
        return total
    match own.hiding:
        case "masks":
            return masks.proven(memory, run, question, content)
        case "paillier":
            return paillier.proven(memory, run, question, content)
        case "clear":
            return Reply.from_record(content).sums
