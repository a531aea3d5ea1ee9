"""`lab bench glm`: a federated GLM against the pooled fits of statsmodels and scikit-learn."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import statsmodels.api as sm
from flwr.serverapp import Grid

from federated.app import client_app, server_app
from federated.bench.measurement import Row, row, timed
from federated.federation import Federation, single_threaded_blas
from federated.hiding.paillier import KeyAuthority, Paillier
from federated.hiding.protocol import Clear, Protection
from federated.solvers import glm as solver
from federated.solvers.encoding import agree
from federated.study.experiment import Experiment
from federated.study.simulation import SimulatedMarket
from federated.transport.in_process import run_in_process
from lab.models.design import Design
from lab.sums import Floats
from secure_agg.keys import PrivateKey, generate

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def figures(path: Path | None, quick: bool) -> list[Row]:
    """A federated Poisson fit against statsmodels on the pooled rows, and with --path on freMTPL2
    against scikit-learn's newton-cholesky (tol 1e-8, warmed) on the pooled rows."""
    private = generate(3072)
    market = SimulatedMarket(Experiment.read(EXPERIMENTS / "rand_hie.toml", {"data.test": 0.0}))
    frame = market.pooled().train
    x = sm.add_constant(frame.drop(columns="mdvis"))

    def statsmodels_fit() -> object:
        return sm.GLM(frame["mdvis"], x, family=sm.families.Poisson()).fit()

    theirs, _ = timed(statsmodels_fit, 5)
    rows = []
    for words, protection in (
        ("clear", Clear()),
        ("Paillier 3072", Paillier(KeyAuthority(private))),
    ):
        ours, _ = timed(partial(_fit, market, protection))
        what = f"RAND HIE, 6 parties, {words}"
        rows.append(row(what, ours, "statsmodels", theirs, f"{ours / theirs:.1f} x"))
    return rows if path is None else [*rows, *_fremtpl2(path, private)]


def _fremtpl2(path: Path, private: PrivateKey) -> list[Row]:
    """A frequency model of freMTPL2, in the clear and encrypted, against scikit-learn's."""
    from sklearn.linear_model import PoissonRegressor

    changes = {"data.path": str(path), "data.test": 0.0}
    market = SimulatedMarket(Experiment.read(EXPERIMENTS / "fremtpl2_frequency.toml", changes))
    clear, fit = timed(lambda: _fit(market, Clear()))
    hidden, _ = timed(lambda: _fit(market, Paillier(KeyAuthority(private))))
    frame, matrix = market.pooled().train, _raw_matrix(market, fit)
    weight = frame["Exposure"].to_numpy()
    rate = frame["ClaimNb"].to_numpy() / weight
    model = PoissonRegressor(alpha=0, solver="newton-cholesky", tol=1e-8, max_iter=100)
    model.fit(matrix, rate, sample_weight=weight)  # warm: the first touch of the matrix is slow
    sklearn, _ = timed(lambda: model.fit(matrix, rate, sample_weight=weight))
    what = f"freMTPL2, {len(frame):,} rows x {matrix.shape[1]}, 10 parties"
    return [
        row(f"{what}, {words}", ours, "scikit-learn", sklearn, f"{ours / sklearn:.2f} x")
        for words, ours in (("clear", clear), ("Paillier 3072", hidden))
    ]


def _fit(market: SimulatedMarket, protection: Protection) -> solver.Fit:
    """A GLM by all parties of a market; nothing is left over from an earlier fit."""
    parties, task = market.parties, market.experiment.tasks()["model"]
    for party in parties:
        party.forget()
    fits: list[solver.Fit] = []

    def study(nodes: Grid) -> None:
        federation = Federation(nodes, protection, len(parties))
        least = market.experiment.model.min_persons
        encoding = agree(federation, task, market.features["model"], market.contract, least)
        fits.append(solver.fit(federation, task, encoding))

    with single_threaded_blas():
        node = client_app(parties.__getitem__, protection.hiding)
        run_in_process(server_app(study), node, len(parties), 2)
    return fits[0]


def _raw_matrix(market: SimulatedMarket, fit: solver.Fit) -> Floats:
    """The pooled design in the table's own units, without the intercept."""
    encoding = fit.model.encoding
    plain = [n.model_copy(update={"mean": 0.0, "scale": 1.0}) for n in encoding.numbers]
    raw = encoding.model_copy(update={"numbers": tuple(plain)})
    return Design(market.pooled().train, raw).matrix()[:, 1:]
