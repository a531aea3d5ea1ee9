"""A party answers the questions of its plan, in their order, and no others, whoever asks.

The coordinator here has the whole source, every message of an honest run, and keys of its own.
Between any two honest steps it tries something else, and every node must refuse before a sum is
taken; then the honest run goes on, and comes to the model it would have come to.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.app import client_app
from federated.federation import Federation, single_threaded_blas
from federated.hiding.masks import Masks
from federated.hiding.paillier import KeyAuthority, Paillier
from federated.hiding.protocol import Clear, Protection
from federated.messages import Request
from federated.party.binding import sign_step
from federated.party.party import Party, numbered
from federated.study.bound import SignedStudy
from federated.study.experiment import Experiment
from federated.study.outcome import Outcome, carry_out
from federated.study.plan import StudyPlan
from federated.study.steps import Replay, Steps, carried_out, difference
from federated.transport.in_process import InProcessGrid
from lab.errors import PeerError, PolicyError
from lab.models.design import Feature, Levels
from lab.privacy.disclosure import Rules
from lab.records import parse
from lab.sums import Sums
from lab.tables.contracts import draft
from secure_agg.identity import Identity

PARTIES = 3
KINDS: dict[str, dict[str, Any]] = {
    "glm": {"kind": "glm"},
    "trees": {"kind": "trees", "family": "poisson", "trees": 4, "depth": 3, "min_child_rows": 5.0},
    "network": {"kind": "network", "hidden": [4], "rounds": 4, "batches": 2, "epochs": 1},
}


def rows(count: int = 240, seed: int = 5) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.normal(45, 15, count).round(1),
            "bonus": rng.uniform(50, 150, count).round(0),
            "claims": rng.poisson(0.7, count).astype(float),
        }
    )


def plan_of(kind: str, **changes: Any) -> StudyPlan:
    values = {
        "name": f"bound {kind}",
        "data": {"path": "at the parties", "target": "claims", "test": 0.0},
        "model": KINDS[kind],
        "arms": {"run": ["federated"], "replicates": 3},
        **changes,
    }
    experiment = parse(Experiment, values, where="a test")
    contract = draft(rows(), "test")
    halves = Feature(column="age", cut=(40.0,))
    ages = Levels(feature=halves, levels=halves.intervals())
    return StudyPlan(
        experiment=experiment, contract=contract, rules=Rules.read(), by_level={"model": (ages,)}
    )


@dataclass
class Rig:
    """Real client apps of three parties that are bound to a plan, and whoever signs its questions."""

    plan: StudyPlan
    protection: Protection
    replayed: bool
    signer: SignedStudy = field(init=False)
    honest: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.signer = SignedStudy(self.plan, Identity.generate("releaser"), "00" * 8)
        frames = np.array_split(np.arange(240), PARTIES)
        self.replays = (
            [Replay(lambda levels: self.steps()) for _ in frames] if self.replayed else []
        )
        bindings = self.replays or [self.signer.binding] * PARTIES
        self.parties = []
        for k, (numbers, binding) in enumerate(zip(frames, bindings, strict=True)):
            name = f"insurer {k + 1}"
            frame = numbered(name, rows().iloc[numbers])
            own = {"secret": name.encode(), "rows_secret": b"rows"}
            self.parties.append(Party(name, frame, frame, binding=binding, **own))
        node = client_app(self.parties.__getitem__, self.protection.hiding)
        self.grid = InProcessGrid(node, PARTIES, 1)
        self.federation = Federation(self.grid, self.protection, PARTIES)

    def steps(self) -> Steps[Outcome]:
        return Steps(
            lambda parties: carry_out(self.plan, parties),
            self.protection.hiding,
            everybody=self.protection.everybody,
        )

    def signed(self, question: Request) -> Request:
        return sign_step(self.signer.identity, self.signer.digest, self.signer.run, "{}", question)

    def answer(self, question: Request) -> Sums:
        """One honest step."""
        request = question if self.replayed else self.signed(question)
        self.honest.append(request)
        total = self.federation.total(request)
        for replay in self.replays:
            replay.give(question.step, total)
        return total

    def passed(self) -> list[list[str]]:
        """What passed the gate of each party, by statistic, hand-shakes of masks left out."""
        shown = []
        for context in self.grid._contexts.values():
            lines = str(context.state.config_records.get("receipt", {}).get("lines", ""))
            statistics = [json.loads(line)["statistic"] for line in lines.splitlines()]
            shown.append([s for s in statistics if s != "keys and shares of masks"])
        return shown

    def close(self) -> None:
        for replay in self.replays:
            replay.close()
        self.grid.close()


def protection_of(name: str, key: Any) -> Protection:
    return {
        "clear": Clear,
        "masks": Masks,
        "paillier": lambda: Paillier(KeyAuthority(key)),
    }[name]()


# What a coordinator may try.

Deviation = Callable[[Request, Rig, np.random.Generator], Request | None]


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    match value:
        case dict():
            for key in value:
                yield from _leaves(value[key], (*path, key))
        case list() if value:
            for at, each in enumerate(value):
                yield from _leaves(each, (*path, at))
        case _:
            yield path


def another_argument(request: Request, rig: Rig, rng: np.random.Generator) -> Request | None:
    """One value of the arguments, whichever: a column, an encoding, a cut, a seed, a bound."""
    arguments = copy.deepcopy(dict(request.arguments))
    paths = list(_leaves(arguments))
    *way, last = paths[rng.integers(len(paths))]
    place: Any = arguments
    for key in way:
        place = place[key]
    match place[last]:
        case bool() as value:
            place[last] = not value
        case int() as value:
            place[last] = value + 1
        case float() as value:
            place[last] = value * (1 + 10.0 ** -rng.integers(1, 8)) + 10.0 ** -rng.integers(1, 8)
        case str() as value:
            place[last] = rng.choice(["age", "bonus", "claims", value + "x"])
        case _:
            place[last] = 1
    return replace(request, arguments=arguments)


def another_number(request: Request, rig: Rig, rng: np.random.Generator) -> Request | None:
    """One number of an array: a coefficient, an edge, a weight."""
    if not request.arrays:
        return None
    name = rng.choice(sorted(request.arrays))
    array = request.arrays[name].copy()
    flat = array.reshape(-1)
    at = rng.integers(len(flat))
    flat[at] -= np.copysign(max(1.0, abs(flat[at])), flat[at]) * 10.0 ** -rng.integers(0, 8)
    return replace(request, arrays={**request.arrays, name: array})


def another_order(request: Request, rig: Rig, rng: np.random.Generator) -> Request | None:
    """The right question as another step."""
    return replace(request, step=int(request.step + rng.choice([-1, 1, 2, 7])))


def repetition(request: Request, rig: Rig, rng: np.random.Generator) -> Request | None:
    """A question of an earlier step, with the signature it had."""
    return rig.honest[rng.integers(len(rig.honest) - 1)] if len(rig.honest) > 1 else None


def earlier_question_as_this_step(
    request: Request, rig: Rig, rng: np.random.Generator
) -> Request | None:
    if not rig.honest:
        return None
    earlier = rig.honest[rng.integers(len(rig.honest))]
    if difference(earlier, request) is None:
        return None
    return replace(earlier, step=request.step)


def outside_any_plan(request: Request, rig: Rig, rng: np.random.Generator) -> Request | None:
    return replace(request, step=0)


DEVIATIONS: tuple[Deviation, ...] = (
    another_argument,
    another_number,
    another_order,
    repetition,
    earlier_question_as_this_step,
    outside_any_plan,
)


def forged(request: Request, honest: Request, rig: Rig, rng: np.random.Generator) -> Request:
    """With the signature of an honest step, this one among them, of somebody else, or none."""
    stranger = Identity.generate("releaser")
    signatures = [b"", bytes(64), honest.signature, *(one.signature for one in rig.honest)]
    if rng.integers(2):
        return replace(request, signature=signatures[rng.integers(len(signatures))])
    return sign_step(stranger, rig.signer.digest, rig.signer.run, "{}", request)


def attempt(rig: Rig, question: Request, rng: np.random.Generator) -> bool:
    """Try one deviation; true if there was one to try. Asserts that it was refused and by whom."""
    deviation = DEVIATIONS[rng.integers(len(DEVIATIONS))]
    honest = question if rig.replayed else rig.signed(question)
    tried = deviation(honest, rig, rng)
    if tried is None or (difference(honest, tried) is None and tried.step == honest.step):
        return False
    if not rig.replayed and deviation is not repetition:
        tried = forged(tried, honest, rig, rng)
    before = rig.passed()
    with pytest.raises(PolicyError, match=r"^insurer \d: \[plan\] ") as refused:
        rig.federation.total(tried)
    assert refused.value.rule == "plan"
    assert rig.passed() == before, f"{deviation.__name__}: a sum left although it was refused"
    return True


def deviate(kind: str, hiding: str, replayed: bool, count: int, seed: int, key: Any) -> int:
    """So many deviations, spread over the steps of runs that come to their honest end."""
    rng, tried = np.random.default_rng(seed), 0
    plan, models = plan_of(kind), set()
    with single_threaded_blas():
        while tried < count:
            rig = Rig(plan, protection_of(hiding, key), replayed)

            def ask(question: Request, rig: Rig = rig) -> Sums:
                nonlocal tried
                for _ in range(rng.integers(4) if tried < count else 0):
                    tried += attempt(rig, question, rng)
                return rig.answer(question)

            with closing(rig):
                models.add(carried_out(rig.steps(), ask).models["model"].hash)
                with pytest.raises(PolicyError, match="plan"):  # a step after the end
                    rig.federation.total(replace(rig.honest[-1], step=rig.honest[-1].step + 1))
    assert len(models) == 1, "a deviation changed what came out"
    return tried


CASES = [
    ("glm", "clear", False),
    ("glm", "clear", True),
    ("glm", "masks", True),
    ("glm", "paillier", False),
    ("trees", "clear", False),
    ("trees", "clear", True),
    ("network", "clear", False),
    ("network", "clear", True),
]


@pytest.mark.parametrize(("kind", "hiding", "replayed"), CASES)
def test_a_coordinator_that_deviates_is_refused_before_a_sum_leaves(
    kind: str, hiding: str, replayed: bool, authority_key: Any
) -> None:
    """Together 500."""
    count = 10 if hiding == "paillier" else 70
    assert deviate(kind, hiding, replayed, count, 11, authority_key) >= count


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "hiding", "replayed"), CASES)
def test_ten_thousand_deviations_are_refused(
    kind: str, hiding: str, replayed: bool, authority_key: Any
) -> None:
    count = 100 if hiding == "paillier" else 1_415
    assert deviate(kind, hiding, replayed, count, 12, authority_key) >= count


def test_a_party_that_is_not_bound_answers_what_the_bound_one_refuses() -> None:
    """The unprotected twin: without a binding the coordinator chooses its coefficients."""
    rig = Rig(plan_of("glm"), Clear(), replayed=False)
    asked = []

    def ask(question: Request) -> Sums:
        if question.statistic == "glm_step" and not asked:
            asked.append(another_number(question, rig, np.random.default_rng(1)))
            with pytest.raises(PolicyError, match="not signed by whoever opens"):
                rig.federation.total(forged(asked[0], question, rig, np.random.default_rng(1)))
            for party in rig.parties:
                party.binding = None
            assert rig.federation.total(asked[0]).rows == 240
            for party in rig.parties:
                party.binding = rig.signer.binding
        return rig.answer(question)

    with closing(rig):
        carried_out(rig.steps(), ask)
    assert asked


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_the_same_signed_replayed_and_unbound(kind: str) -> None:
    plan, hashes = plan_of(kind), set()
    for replayed in (False, True):
        rig = Rig(plan, Clear(), replayed)
        with closing(rig):
            hashes.add(carried_out(rig.steps(), rig.answer).models["model"].hash)
    rig = Rig(plan, Clear(), replayed=False)
    for party in rig.parties:
        party.binding = None
    with closing(rig):
        hashes.add(carry_out(plan, rig.federation).models["model"].hash)
    assert len(hashes) == 1


def test_rounding_between_machines_is_no_deviation() -> None:
    """A coefficient that is off in its last bits is answered under replay; one off by more is not."""
    rig = Rig(plan_of("glm"), Clear(), replayed=True)
    seen = []

    def ask(question: Request) -> Sums:
        if question.statistic == "glm_step" and len(rig.honest) > 6:
            seen.append(question)
            near = {"beta": question.arrays["beta"] * (1 + 1e-13)}
            far = {"beta": question.arrays["beta"] * (1 + 1e-6)}
            with pytest.raises(PolicyError, match="numbers in 'beta'"):
                rig.federation.total(replace(question, arrays=far))
            return rig.answer(replace(question, arrays=near))
        return rig.answer(question)

    with closing(rig):
        carried_out(rig.steps(), ask)
    assert seen


def test_an_outcome_comes_back_from_its_bytes() -> None:
    for kind in KINDS:
        rig = Rig(
            plan_of(kind, explain={"points": 3, "local": True, "pairs": 2}), Clear(), replayed=False
        )
        with closing(rig):
            outcome = carried_out(rig.steps(), rig.answer)
        assert outcome.evaluations["model"].explained
        again = Outcome.from_bytes(outcome.to_bytes())
        assert again.texts == outcome.texts
        assert again.to_bytes() == outcome.to_bytes()
        pd.testing.assert_frame_equal(
            again.models["model"].trace, outcome.models["model"].trace, check_dtype=False
        )
    with pytest.raises(PeerError, match="not readable"):
        Outcome.from_bytes(b"{}")


def test_an_outcome_holds_errors_of_coefficients_and_no_covariances() -> None:
    rig = Rig(plan_of("glm"), Clear(), replayed=False)
    with closing(rig):
        fit = json.loads(carried_out(rig.steps(), rig.answer).to_bytes())["models"][0][1]["fit"]
    lists = {name for name, value in fit.items() if isinstance(value, list)}
    assert lists == {"errors", "contrast_errors", "path", "trace"}
    assert np.shape(fit["errors"]) == (3,) and fit["path"] == []
    assert np.ndim(fit["contrast_errors"]) == 1  # of single lines of a table, none of two features
    assert all(len(step) == 2 for step in fit["trace"])
