"""`lab bench steps`: what it costs that every question is bound to a plan."""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from federated.bench.measurement import Row, row, timed

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.serverapp import Grid

    from federated.federation import Federation
    from federated.party.party import Party
    from federated.study.experiment import Experiment
    from federated.study.outcome import Outcome
    from secure_agg.keys import PrivateKey

Result = TypeVar("Result")

#: An experiment, and what of it is run here.
STUDIES: dict[str, dict[str, Any]] = {
    "rand_hie.toml": {"query": []},
    "market_fraud.toml": {"data.market.persons": 6_000, "model.trees": 20},
}


def figures(path: Path | None, quick: bool) -> list[Row]:
    """A study's federated arm in one process: its questions signed by a solver that stands apart and
    checked by every party, against the same solver that asks whatever it likes. Paillier with 2048
    bits; both make the same model."""
    from federated.study.experiment import Experiment
    from secure_agg.keys import generate

    private, here = generate(2048), Path(__file__).parents[2] / "experiments"
    studies = list(STUDIES.items())[: 1 if quick else 2]
    common = {"protection.key_bits": 2048}
    return [
        _cost(Experiment.read(here / name, changes | common), private) for name, changes in studies
    ]


def _cost(experiment: Experiment, private: PrivateKey) -> Row:
    from federated.study.arms import BoundParties
    from federated.study.bound import SignedStudy
    from federated.study.outcome import carry_out
    from federated.study.scoring import simulated_comparisons
    from federated.study.simulation import market_of
    from secure_agg.identity import Identity

    text, name = experiment.model_dump_json(), secrets.token_hex(8)
    market = market_of(text, name)
    plan = market.plan(*simulated_comparisons(experiment, market))
    study = SignedStudy(plan, Identity.generate("releaser"), name)
    run = partial(_carried_out, private, len(market.parties))

    def unbound() -> Outcome:
        parties = [replace(party) for party in market.parties]
        return run(parties.__getitem__, lambda federation: carry_out(plan, federation))

    def bound() -> Outcome:
        return run(BoundParties(text, name, market.digest, study.binding), study.carried_out)

    unbound()  # warm: tables for the key, compiled code
    theirs, other = timed(unbound)
    ours, own = timed(bound)
    if own.texts != other.texts:
        raise AssertionError("a bound study ends with another model")
    what = f"{experiment.name}, {len(market.parties)} parties"
    return row(what, ours, "unbound", theirs, f"{ours / theirs:.2f} x")


def _carried_out(
    private: PrivateKey,
    parties: int,
    party_of: Callable[[int], Party],
    work: Callable[[Federation], Result],
) -> Result:
    """What ``work`` makes of a federation of these parties."""
    from federated.app import client_app, server_app
    from federated.federation import Federation, single_threaded_blas
    from federated.hiding.paillier import KeyAuthority, Paillier
    from federated.transport.in_process import run_in_process

    outcomes: list[Result] = []

    def study(nodes: Grid) -> None:
        federation = Federation(nodes, Paillier(KeyAuthority(private)), parties)
        outcomes.append(work(federation))

    with single_threaded_blas():
        run_in_process(server_app(study), client_app(party_of, "paillier"), parties, 2)
    return outcomes[0]
