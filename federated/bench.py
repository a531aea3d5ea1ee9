"""``lab bench``: what a user asks about on his own machine, each a ratio measured in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from lab.errors import ConfigurationError

Row = tuple[str, str, str, str]  # what, ours, theirs, ratio


def report(names: tuple[str, ...], path: Path | None, quick: bool) -> None:
    """Run the benches named (or all) and print their table."""
    from rich.console import Console
    from rich.table import Table

    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise ConfigurationError(f"no bench '{unknown[0]}'; there are {', '.join(BENCHES)}")
    console = Console()
    for name in names or BENCHES:
        table = Table(
            title=name, title_justify="left", box=None, pad_edge=False, header_style="dim"
        )
        for column, side in (
            ("what", "left"),
            ("ours", "right"),
            ("against", "right"),
            ("ratio", "right"),
        ):
            table.add_column(column, justify=side)  # type: ignore[arg-type]
        for row in BENCHES[name](path, quick):
            table.add_row(*row)
        console.print(table)


def _timed(work: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """(median seconds, last result)."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return median(seconds), result


def _each(work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [work(item) for item in items]


def _row(what: str, ours: float, theirs: float, ratio: str) -> Row:
    return what, f"{ours:.2f} s", f"{theirs:.2f} s", ratio


def paillier(path: Path | None, quick: bool) -> list[Row]:
    """Five parties add vectors: encrypt, add, decrypt once, against phe value by value (a sample
    of phe, extrapolated)."""
    from phe import PaillierPublicKey
    from phe.paillier import PaillierPrivateKey

    from secure_agg import paillier as engine
    from secure_agg.keys import generate
    from secure_agg.packing import Field, Layout

    parties, count, sample = 5, 5_000 if quick else 100_000, 20
    rng = np.random.default_rng(1)
    rows = []
    for bits in (2048, 3072):
        private = generate(bits)
        public = private.public
        theirs = PaillierPublicKey(n=int(public.n))
        opener = PaillierPrivateKey(theirs, int(private.p), int(private.q))
        values = rng.integers(0, 1_000_000, sample)
        encrypt, made = _timed(partial(_each, theirs.encrypt, [float(v) for v in values]))
        decrypt, _ = _timed(partial(_each, opener.decrypt, made))
        phe = (parties * encrypt + decrypt) / sample * count
        for words, bound, resolution in (
            ("64-bit slots", 2.0**40, 2.0**-20),
            ("counts below a million", 1e6, 1.0),
        ):
            layout = Layout((Field(count, bound, resolution),), parties, bits)
            arrays = [rng.integers(0, 1_000_000, count).astype(float) for _ in range(parties)]

            def job(k: Any = private, form: Layout = layout, data: Any = arrays) -> Any:
                batches = [engine.encrypt(k.public, form, [a]) for a in data]
                return engine.decrypt(k, engine.add(k.public, batches))

            ours, (total,) = _timed(job)
            if not np.array_equal(total, np.sum(arrays, axis=0)):
                raise AssertionError("the opened total is not the sum")
            what = f"sum of {parties} x {count:,} values, {bits} bits, {words}; phe extrapolated"
            rows.append(_row(what, ours, phe, f"{phe / ours:,.0f} x faster"))
    return rows


def glm(path: Path | None, quick: bool) -> list[Row]:
    """A federated Poisson fit against statsmodels on the pooled RAND rows, and against
    scikit-learn on freMTPL2 where its path is given."""
    import statsmodels.api as sm

    from federated.encrypted import KeyAuthority, Paillier
    from federated.experiment import Experiment
    from federated.parties import Market
    from federated.protection import Clear

    authority = KeyAuthority.with_new_key(3072)
    here = Path(__file__).parents[1] / "experiments"
    market = Market(Experiment.read(here / "rand_hie.toml", {"data.test": 0.0}))
    frame = market.pooled().train
    x = sm.add_constant(frame.drop(columns="mdvis"))

    def statsmodels_fit() -> Any:
        return sm.GLM(frame["mdvis"], x, family=sm.families.Poisson()).fit()

    theirs, _ = _timed(statsmodels_fit, 5)
    rows = []
    for words, protection in (("in the clear", Clear()), ("Paillier 3072", Paillier(authority))):
        ours, _ = _timed(partial(_fit, market, protection))
        what = f"RAND HIE, six parties, {words}, against statsmodels pooled"
        rows.append(_row(what, ours, theirs, f"{ours / theirs:.1f} x"))
    if path is None:
        return rows
    from sklearn.linear_model import PoissonRegressor

    changes = {"data.path": str(path), "data.test": 0.0}
    market = Market(Experiment.read(here / "fremtpl2_frequency.toml", changes))
    clear, fit = _timed(lambda: _fit(market, Clear()))
    hidden, _ = _timed(lambda: _fit(market, Paillier(authority)))
    rows_, matrix = market.pooled().train, _raw_matrix(market, fit)
    weight = rows_["Exposure"].to_numpy()
    rate = rows_["ClaimNb"].to_numpy() / weight
    model = PoissonRegressor(alpha=0, solver="newton-cholesky", tol=1e-8, max_iter=100)
    model.fit(matrix, rate, sample_weight=weight)  # warm: the first touch of the matrix is slow
    sklearn, _ = _timed(lambda: model.fit(matrix, rate, sample_weight=weight))
    what = f"freMTPL2, {len(rows_):,} rows, {matrix.shape[1]} columns, ten parties, "
    against = ", against scikit-learn newton-cholesky pooled (tol 1e-8)"
    rows.append(_row(what + "in the clear" + against, clear, sklearn, f"{clear / sklearn:.2f} x"))
    rows.append(
        _row(what + "Paillier 3072" + against, hidden, sklearn, f"{hidden / sklearn:.2f} x")
    )
    return rows


def _fit(market: Any, protection: Any) -> Any:
    """A GLM by all parties of a market; nothing is left over from an earlier fit."""
    from federated import glm as solver
    from federated import grid
    from federated.apps import client_app, server_app
    from federated.features import agree
    from federated.federation import Federation, single_threaded_blas

    parties, task = market.parties, market.experiment.tasks()["model"]
    for party in parties:
        party.forget()
    fits: list[Any] = []

    def study(nodes: Any) -> None:
        federation = Federation(nodes, protection, len(parties))
        encoding = agree(federation, task, market.features["model"], market.contract)
        fits.append(solver.fit(federation, task, encoding))

    with single_threaded_blas():
        grid.run_in_process(server_app(study), client_app(parties.__getitem__), len(parties), 2)
    return fits[0]


def _raw_matrix(market: Any, fit: Any) -> Any:
    """The pooled design in the table's own units, without the intercept."""
    from lab.features import Design

    encoding = fit.model.encoding
    plain = [n.model_copy(update={"mean": 0.0, "scale": 1.0}) for n in encoding.numbers]
    raw = encoding.model_copy(update={"numbers": tuple(plain)})
    return Design(market.pooled().train, raw).matrix()[:, 1:]


def grid(path: Path | None, quick: bool) -> list[Row]:
    """Training rounds of a small network through the grid against a plain loop over parties, and
    against Flower's own engine where the ``ray`` extra is installed."""
    import importlib.util

    from lab.network import single_threaded

    single_threaded()
    rows = []
    size, rounds = (20_000, 3) if quick else (100_000, 10)
    for parties in (5, 100):
        job = _Rounds(parties, size, rounds)
        job.loop(1)  # both warm
        job.grid("grid", 1)
        loop, first = _timed(job.loop)
        ours, second = _timed(partial(job.grid, "grid"))
        if first.keys() != second.keys() or any((first[k] != second[k]).any() for k in first):
            raise AssertionError("the grid and the loop end with different weights")
        what = f"{parties} parties, {size:,} rows, {rounds} rounds, grid against a plain loop"
        rows.append(_row(what, ours, loop, f"{ours / loop:.2f} x"))
        if parties == 5 and importlib.util.find_spec("ray"):
            ray, _ = _timed(partial(job.grid, "ray"))
            what = f"{parties} parties, {size:,} rows, {rounds} rounds, grid against Ray"
            rows.append(_row(what, ours, ray, f"{ray / ours:.1f} x faster"))
    return rows


class _Rounds:
    """The same training rounds by a loop and through a grid; one thread in both."""

    def __init__(self, parties: int, size: int, rounds: int) -> None:
        from federated.experiment import NetworkModel
        from federated.node import Party
        from lab.contracts import draft

        rng = np.random.default_rng(3)
        frame = pd.DataFrame(rng.normal(size=(size, 6)), columns=[f"x{k}" for k in range(6)])
        frame["y"] = rng.poisson(np.exp(-1 + 0.3 * frame["x0"])).astype(float)
        self.rounds = rounds
        self.parties = [
            Party(f"p{k}", part, part.iloc[:0]) for k, part in enumerate(_shares(frame, parties))
        ]
        self.contract = draft(frame, "bench")
        self.settings = NetworkModel(kind="network", rounds=rounds, epochs=1)

    def loop(self, rounds: int | None = None) -> Any:
        """Weights after the rounds, without messages: the statistic called party by party."""
        from federated.node import STATISTICS
        from lab.sums import combine

        weights, arguments = self._start()
        for at in range(1, (rounds or self.rounds) + 1):
            asked = arguments | {"round": at}
            total = combine([STATISTICS["network_update"](p, asked, weights) for p in self.parties])
            weights = {k: weights[k] + total[k] / total.total("rows") for k in weights}
        return weights

    def grid(self, engine: str, rounds: int | None = None) -> Any:
        """The same through Flower's apps."""
        from federated.apps import client_app, server_app
        from federated.federation import Federation
        from federated.grid import ENGINES
        from federated.protection import Clear

        found: list[Any] = []

        def study(nodes: Any) -> None:
            federation = Federation(nodes, Clear(), len(self.parties))
            weights, arguments = self._start()
            for at in range(1, (rounds or self.rounds) + 1):
                total = federation.sum("network_update", weights, **arguments | {"round": at})
                weights = {k: weights[k] + total[k] / total.total("rows") for k in weights}
            found.append(weights)

        parties = self.parties
        ENGINES[engine](server_app(study), client_app(lambda k: parties[k]), len(parties), 1)
        return found[0]

    def _start(self) -> Any:
        from lab import network
        from lab.features import Encoding, Feature, Number
        from lab.glm import Task

        numbers = [Number(feature=Feature(column=f"x{k}"), mean=0.0, scale=1.0) for k in range(6)]
        encoding = Encoding(numbers=tuple(numbers))
        bends = network.Bends(knots=((-3.0, -1.0, 0.0, 1.0, 3.0),) * 6)
        fields = set(network.Recipe.model_fields)
        recipe = network.Recipe(intercept=-1.0, **self.settings.model_dump(include=fields))
        weights = network.initial(encoding, bends, recipe, 1)
        arguments = {
            "task": Task(target="y").model_dump_json(),
            "encoding": encoding.model_dump_json(),
            "bends": bends.model_dump_json(),
            "recipe": recipe.model_dump_json(),
            "learning_rate": 0.01,
            "proximal_mu": 0.0,
            "seed": 1,
        }
        return weights, arguments


def _shares(frame: pd.DataFrame, parties: int) -> list[pd.DataFrame]:
    """Equal shares of the rows, in order."""
    edges = np.linspace(0, len(frame), parties + 1).astype(int)
    return [frame.iloc[a:b] for a, b in pairwise(edges)]


BENCHES: dict[str, Callable[[Path | None, bool], list[Row]]] = {
    "paillier": paillier,
    "glm": glm,
    "grid": grid,
}
