"""``lab bench``: what a user asks about on his own machine, each a ratio measured in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from lab.errors import ConfigurationError
from lab.sums import Limit

Row = tuple[str, str, str, str]  # what, ours, theirs, ratio
#: As a network's weight changes travel; `lab.network` has its own, which needs torch.
CHANGE = Limit(bound=2.0**32, resolution=2.0**-26)


def report(names: tuple[str, ...], path: Path | None, quick: bool) -> None:
    """Run the benches named (or all) and print their table."""
    from rich.console import Console
    from rich.markup import escape
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
        words = " ".join((BENCHES[name].__doc__ or "").split())
        console.print(f"{escape(words)}\n", style="dim", highlight=False)


def _timed(work: Callable[[], Any], times: int = 1) -> tuple[float, Any]:
    """(median seconds, last result)."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return median(seconds), result


def _row(what: str, ours: float, name: str, theirs: float, ratio: str) -> Row:
    return what, f"{ours:.2f} s", f"{name}: {theirs:,.2f} s", ratio


def paillier(path: Path | None, quick: bool) -> list[Row]:
    """Encrypted sums, each with the making of its tables unless it says that they were kept from
    sums before, and the parts of a split key. phe is measured on 20 values and extrapolated; HEU
    (pip install '.[bench]') has its tables made before. Paillier is not the fastest way to add: masks are far faster for long vectors
    (lab bench masks), and so are lattice schemes such as BFV. It needs one message from each
    party, and a total can be opened without the parties."""
    from secure_agg import bench

    return [*bench.sums(quick), *bench.memory(quick), *bench.parts(quick)]


def masks(path: Path | None, quick: bool) -> list[Row]:
    """One sum with all its messages, nothing computed but the sum. Paillier is measured on a
    twentieth of the values and extrapolated."""
    from federated.hiding.masks import Masks
    from federated.hiding.paillier import KeyAuthority, Paillier
    from federated.hiding.protocol import Clear

    parties, size = 10, 50_000 if quick else 1_000_000
    clear, plain = _aggregated(Clear(), parties, size)
    hidden, total = _aggregated(Masks(), parties, size)
    if np.abs(plain - total).max() > parties * CHANGE.resolution:
        raise AssertionError("the sum under masks is not the sum")
    encrypted, _ = _aggregated(Paillier(KeyAuthority.with_new_key(3072)), parties, size // 20)
    what, paillier_seconds = f"{parties} x {size:,} parameters under masks", 20 * encrypted
    faster = f"{paillier_seconds / hidden:.0f} x faster"
    return [
        _row(what, hidden, "in the clear", clear, f"{hidden / clear:.2f} x"),
        _row(what, hidden, "Paillier 3072", paillier_seconds, faster),
    ]


def _aggregated(protection: Any, parties: int, size: int) -> tuple[float, Any]:
    """(seconds, total) of one sum, the best of three; nothing is computed but the sum."""
    from federated.app import client_app, server_app
    from federated.federation import Federation
    from federated.party.party import Party
    from federated.transport.in_process import run_in_process
    from lab.sums import Sums

    class Fixed(Party):
        """A party whose answer is there already."""

        def take(self, request: Any) -> Sums:
            return self.sums  # type: ignore[attr-defined, no-any-return]

    rng, holders = np.random.default_rng(1), []
    empty = pd.DataFrame({"x": []})
    for k in range(parties):
        holder = Fixed(f"insurer {k + 1}", empty, empty)
        change = {"weights": rng.normal(scale=1e3, size=size)}
        holder.sums = Sums(change, {"weights": CHANGE}, 1000)  # type: ignore[attr-defined]
        holders.append(holder)
    found: list[tuple[float, Any]] = []

    def study(nodes: Any) -> None:
        federation = Federation(nodes, protection, parties)
        federation.sum("warm")
        for _ in range(3):
            found.append(_timed(lambda: federation.sum("again")["weights"]))

    run_in_process(
        server_app(study), client_app(holders.__getitem__, protection.hiding), parties, 2
    )
    return min(found, key=lambda one: one[0])


def glm(path: Path | None, quick: bool) -> list[Row]:
    """A federated Poisson fit against statsmodels on the pooled rows, and with --path on freMTPL2
    against scikit-learn's newton-cholesky (tol 1e-8, warmed) on the pooled rows."""
    import statsmodels.api as sm

    from federated.hiding.paillier import KeyAuthority, Paillier
    from federated.hiding.protocol import Clear
    from federated.study.experiment import Experiment
    from federated.study.simulation import SimulatedMarket
    from secure_agg.keys import generate

    private = generate(3072)
    here = Path(__file__).parents[2] / "experiments"
    market = SimulatedMarket(Experiment.read(here / "rand_hie.toml", {"data.test": 0.0}))
    frame = market.pooled().train
    x = sm.add_constant(frame.drop(columns="mdvis"))

    def statsmodels_fit() -> Any:
        return sm.GLM(frame["mdvis"], x, family=sm.families.Poisson()).fit()

    theirs, _ = _timed(statsmodels_fit, 5)
    rows = []
    for words, protection in (
        ("clear", Clear()),
        ("Paillier 3072", Paillier(KeyAuthority(private))),
    ):
        ours, _ = _timed(partial(_fit, market, protection))
        what = f"RAND HIE, 6 parties, {words}"
        rows.append(_row(what, ours, "statsmodels", theirs, f"{ours / theirs:.1f} x"))
    if path is None:
        return rows
    from sklearn.linear_model import PoissonRegressor

    changes = {"data.path": str(path), "data.test": 0.0}
    market = SimulatedMarket(Experiment.read(here / "fremtpl2_frequency.toml", changes))
    clear, fit = _timed(lambda: _fit(market, Clear()))
    hidden, _ = _timed(lambda: _fit(market, Paillier(KeyAuthority(private))))
    rows_, matrix = market.pooled().train, _raw_matrix(market, fit)
    weight = rows_["Exposure"].to_numpy()
    rate = rows_["ClaimNb"].to_numpy() / weight
    model = PoissonRegressor(alpha=0, solver="newton-cholesky", tol=1e-8, max_iter=100)
    model.fit(matrix, rate, sample_weight=weight)  # warm: the first touch of the matrix is slow
    sklearn, _ = _timed(lambda: model.fit(matrix, rate, sample_weight=weight))
    what = f"freMTPL2, {len(rows_):,} rows x {matrix.shape[1]}, 10 parties"
    for words, ours in (("clear", clear), ("Paillier 3072", hidden)):
        ratio = f"{ours / sklearn:.2f} x"
        rows.append(_row(f"{what}, {words}", ours, "scikit-learn", sklearn, ratio))
    return rows


def _fit(market: Any, protection: Any) -> Any:
    """A GLM by all parties of a market; nothing is left over from an earlier fit."""
    from federated.app import client_app, server_app
    from federated.federation import Federation, single_threaded_blas
    from federated.solvers import glm as solver
    from federated.solvers.encoding import agree
    from federated.transport import in_process as grid

    parties, task = market.parties, market.experiment.tasks()["model"]
    for party in parties:
        party.forget()
    fits: list[Any] = []

    def study(nodes: Any) -> None:
        federation = Federation(nodes, protection, len(parties))
        encoding = agree(federation, task, market.features["model"], market.contract)
        fits.append(solver.fit(federation, task, encoding))

    with single_threaded_blas():
        node = client_app(parties.__getitem__, protection.hiding)
        grid.run_in_process(server_app(study), node, len(parties), 2)
    return fits[0]


def _raw_matrix(market: Any, fit: Any) -> Any:
    """The pooled design in the table's own units, without the intercept."""
    from lab.models.design import Design

    encoding = fit.model.encoding
    plain = [n.model_copy(update={"mean": 0.0, "scale": 1.0}) for n in encoding.numbers]
    raw = encoding.model_copy(update={"numbers": tuple(plain)})
    return Design(market.pooled().train, raw).matrix()[:, 1:]


def grid(path: Path | None, quick: bool) -> list[Row]:
    """Training rounds of a small network through the grid, against a plain loop over the parties
    and Flower's own engine (pip install '.[ray]')."""
    import importlib.util

    from lab.models.network_model import single_threaded

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
        what = f"{parties} parties, {size:,} rows, {rounds} rounds"
        rows.append(_row(what, ours, "a plain loop", loop, f"{ours / loop:.2f} x"))
        if parties == 5 and importlib.util.find_spec("ray"):
            ray, _ = _timed(partial(job.grid, "ray"))
            rows.append(_row(what, ours, "Ray", ray, f"{ray / ours:.1f} x faster"))
    return rows


class _Rounds:
    """The same training rounds by a loop and through a grid; one thread in both."""

    def __init__(self, parties: int, size: int, rounds: int) -> None:
        from federated.party.party import Party
        from federated.solvers.network import NetworkSettings
        from lab.tables.contracts import draft

        rng = np.random.default_rng(3)
        frame = pd.DataFrame(rng.normal(size=(size, 6)), columns=[f"x{k}" for k in range(6)])
        frame["y"] = rng.poisson(np.exp(-1 + 0.3 * frame["x0"])).astype(float)
        self.rounds = rounds
        self.parties = [
            Party(f"p{k}", part, part.iloc[:0]) for k, part in enumerate(_shares(frame, parties))
        ]
        self.contract = draft(frame, "bench")
        self.settings = NetworkSettings(kind="network", rounds=rounds, epochs=1)

    def loop(self, rounds: int | None = None) -> Any:
        """Weights after the rounds, without messages: the statistic called party by party."""
        from lab.models.network import OfUpdate, _update
        from lab.sums import combine

        weights, arguments = self._start()
        for at in range(1, (rounds or self.rounds) + 1):
            asked = arguments | {"round": at}
            total = combine([_update(p, OfUpdate(**asked), weights) for p in self.parties])
            weights = {k: weights[k] + total[k] / total.total("rows") for k in weights}
        return weights

    def grid(self, engine: str, rounds: int | None = None) -> Any:
        """The same through Flower's apps."""
        from federated.app import client_app, server_app
        from federated.federation import Federation
        from federated.hiding.protocol import Clear
        from federated.transport.in_process import ENGINES

        found: list[Any] = []

        def study(nodes: Any) -> None:
            federation = Federation(nodes, Clear(), len(self.parties))
            weights, arguments = self._start()
            for at in range(1, (rounds or self.rounds) + 1):
                total = federation.sum("network_update", weights, **arguments | {"round": at})
                weights = {k: weights[k] + total[k] / total.total("rows") for k in weights}
            found.append(weights)

        parties = self.parties
        node = client_app(lambda k: parties[k], "clear")
        ENGINES[engine](server_app(study), node, len(parties), 1)
        return found[0]

    def _start(self) -> Any:
        from lab.models import network_model
        from lab.models.design import Encoding, Feature, Number
        from lab.models.glm import Task

        numbers = [Number(feature=Feature(column=f"x{k}"), mean=0.0, scale=1.0) for k in range(6)]
        encoding = Encoding(numbers=tuple(numbers))
        bends = network_model.Bends(knots=((-3.0, -1.0, 0.0, 1.0, 3.0),) * 6)
        fields = set(network_model.NetworkRecipe.model_fields)
        recipe = network_model.NetworkRecipe(
            intercept=-1.0, **self.settings.model_dump(include=fields)
        )
        weights = network_model.initial(encoding, bends, recipe, 1)
        arguments = {
            "task": Task(target="y"),
            "encoding": encoding,
            "bends": bends,
            "recipe": recipe,
            "learning_rate": 0.01,
            "proximal_mu": 0.0,
            "seed": 1,
        }
        return weights, arguments


def _shares(frame: pd.DataFrame, parties: int) -> list[pd.DataFrame]:
    """Equal shares of the rows, in order."""
    edges = np.linspace(0, len(frame), parties + 1).astype(int)
    return [frame.iloc[a:b] for a, b in pairwise(edges)]


def query(path: Path | None, quick: bool) -> list[Row]:
    """Questions from SQL to the released answer, tables of rows made before. phe is measured on 20
    values and extrapolated to the counts and sums that the answer shows; ours sends more beside
    them: who is there, vetoes, how sensitive an amount is."""
    import tracemalloc

    from secure_agg.bench import phe_seconds
    from secure_agg.keys import generate

    parties, few = 5, 10 if quick else 1
    rows: list[Row] = []
    shape: tuple[int, ...] = (100 // few, 50, 20)
    size = 2_000_000 // few
    private, held = generate(2048), _holdings(parties, size, shape)
    text = "select count(*), sum(paid) from market group by a, b, c"
    cells = int(np.prod(shape))
    hidden, shown = _asked(held, text, private)
    clear, _ = _asked(held, text, None)
    what = f"{parties} x {size:,} rows, {cells:,} cells, 2048 bits"
    phe = phe_seconds(private, 2 * cells)
    rows.append(_row(what, hidden, "phe value by value", phe, f"{phe / hidden:.0f} x faster"))
    rows.append(_row(what, hidden, "in the clear", clear, f"{hidden / clear:.1f} x"))
    rows.append((f"{what}: shown", f"{shown:,} cells", "", f"{shown / cells:.1%}"))
    private, size, shape = generate(3072), 1_000_000 // few, (100, 10)
    held = _holdings(parties, size, shape)
    text = "select count(*), sum(paid) from market group by a, b"
    hidden, _ = _asked(held, text, private)
    clear, _ = _asked(held, text, None)
    what = f"{parties} x {size:,} rows, 1,000 cells, 3072 bits"
    rows.append(_row(what, hidden, "in the clear", clear, f"{hidden / clear:.1f} x"))
    one = _holdings(1, size, shape)
    table = one.parties[0].query_table.frame.memory_usage().sum() / 1e6
    tracemalloc.start()
    _asked(one, text, None)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    rows.append(
        (f"{size:,} rows: a party's peak", f"{peak:.0f} MB", f"its table: {table:.0f} MB", "")
    )
    return rows


def _holdings(parties: int, size: int, shape: tuple[int, ...]) -> Any:
    """Parties with so many rows each, evenly over the cells of a table of this shape."""
    from federated.queries.holdings import Holdings
    from lab.tables.contracts import Column, Contract

    rng, names = np.random.default_rng(1), "abc"[: len(shape)]
    columns = {
        name: Column(type="integer", minimum=0, maximum=n - 1)
        for name, n in zip(names, shape, strict=True)
    }
    contract = Contract(name="market", columns={**columns, "paid": Column(type="number")})
    tables = {}
    for k in range(parties):
        table = {c: rng.integers(0, n, size) for c, n in zip(names, shape, strict=True)}
        tables[f"insurer {k + 1}"] = pd.DataFrame({**table, "paid": rng.gamma(2.0, 500.0, size)})
    return Holdings.of(tables, contract)


def _asked(held: Any, text: str, private: Any) -> tuple[float, int]:
    """(seconds, cells shown) of a question under this key, or in the clear without one."""
    from federated.hiding.paillier import KeyAuthority, Paillier
    from federated.hiding.protocol import Clear
    from federated.queries.desk import Desk

    protection = Paillier(KeyAuthority(private)) if private is not None else Clear()
    with Desk.simulated(held, protection) as desk:
        seconds, answer = _timed(lambda: desk.ask(text))
    return seconds, answer.attrs["cells"] - answer.attrs["hidden"]


def trees(path: Path | None, quick: bool) -> list[Row]:
    """A hundred trees of depth 6 on 40 features in 64 bins, binning included, five parties against
    LightGBM on all rows with as many threads (pip install '.[bench]'). Under Paillier a few trees
    are grown and the rest is extrapolated; it is the model in the clear, to the bit."""
    from federated.hiding.paillier import KeyAuthority, Paillier
    from federated.hiding.protocol import Clear
    from secure_agg.keys import generate

    rows, count, few = (50_000, 20, 1) if quick else (1_000_000, 100, 2)
    frame = _suspicious(rows)
    _boosted(frame.head(5_000), 1, Clear())  # numba compiles
    clear, _, loss = _boosted(frame, count, Clear())
    start, *_ = _boosted(frame, few, Clear())
    private = generate(2048)  # an authority serves one federation
    first, model, _ = _boosted(frame, few, Paillier(KeyAuthority(private)))
    sealed = Paillier(KeyAuthority(private))
    (more, same, _), spent = _spent(lambda: _boosted(frame, 2 * few, sealed))
    if model.trees != same.trees[:few] or same != _boosted(frame, 2 * few, Clear())[1]:
        raise AssertionError("the trees under Paillier are not the trees in the clear")
    hidden = first + (count - few) * (more - first) / few
    what = f"{rows:,} rows, {count} trees, five parties"
    found = [
        _row(
            f"{what}, Paillier 2048, extrapolated",
            hidden,
            "in the clear",
            clear,
            f"{hidden / clear:.0f} x",
        ),
        _row(
            f"of it bins, keys and the first {few} trees",
            first,
            "in the clear",
            start,
            f"{first / start:.0f} x",
        ),
        *(
            (f"of {2 * few} trees, {where}", f"{seconds:.2f} s", "", f"{seconds / more:.0%}")
            for where, seconds in spent.items()
        ),
    ]
    try:
        import lightgbm
    except ImportError:
        return [_row(what, clear, "LightGBM is not installed", float("nan"), ""), *found]
    settings = {
        "objective": "binary", "max_depth": 6, "num_leaves": 64, "learning_rate": 0.1,
        "max_bin": 64, "num_threads": os.cpu_count() or 1, "verbose": -1,
    }  # fmt: skip
    columns, target = frame.drop(columns="fraud").to_numpy(), frame["fraud"].to_numpy()

    def theirs() -> Any:
        return lightgbm.train(settings, lightgbm.Dataset(columns, target), count)

    seconds, booster = _timed(theirs)
    rate = booster.predict(columns)
    other = -2 * float(np.mean(np.where(target > 0, np.log(rate), np.log1p(-rate))))
    return [
        _row(
            f"{what}, in the clear", clear, "LightGBM, pooled", seconds, f"{clear / seconds:.2f} x"
        ),
        ("deviance on the training rows", f"{loss:.5f}", f"LightGBM: {other:.5f}", ""),
        *found,
    ]


def _spent(work: Callable[[], tuple[float, Any, float]]) -> tuple[Any, dict[str, float]]:
    """What a study under Paillier found, and where its seconds went. Nodes work side by side: what
    they do is counted by its share of the time that the coordinator waited for them."""
    from threading import Lock
    from unittest.mock import patch

    from federated.hiding import paillier as encrypted
    from federated.party.party import Party
    from secure_agg import paillier

    spent, turn = dict.fromkeys(("ask_sums", "take", "encrypt", "open"), 0.0), Lock()

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any, **named: Any) -> Any:
            seconds, result = _timed(lambda: function(*given, **named))
            with turn:
                spent[name] += seconds
            return result

        return timed

    with ExitStack() as stack:
        for place, name in (
            (encrypted, "ask_sums"), (Party, "take"), (paillier, "encrypt"),
            (encrypted.KeyAuthority, "open"),
        ):  # fmt: skip
            function = clocked(name, getattr(place, name))
            stack.enter_context(patch.object(place, name, function))
        result = work()
    whole, together = result[0], min(os.cpu_count() or 1, 5)
    found = {
        "parties encrypting": spent["encrypt"] / together,
        "parties adding up histograms and counts": spent["take"] / together,
        "checking, adding and opening": spent["open"],
        "packing of messages and moving": spent["ask_sums"]
        - (spent["encrypt"] + spent["take"]) / together,
    }
    return result, found | {"choosing cuts and all else": whole - sum(found.values())}


def _suspicious(rows: int) -> pd.DataFrame:
    """Forty columns, half of them skewed amounts, and one claim in forty fraudulent."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, 40))
    x[:, 20:] = np.round(100 * np.exp(x[:, 20:]), 2)
    eta = -5 + x[:, 0] * x[:, 1] + x[:, 2] + np.sin(2 * x[:, 3]) + np.log(x[:, 21] / 100)
    frame = pd.DataFrame(x, columns=[f"x{j}" for j in range(40)])
    return frame.assign(fraud=(rng.random(rows) < 1 / (1 + np.exp(-eta))).astype(float))


def _boosted(frame: pd.DataFrame, count: int, protection: Any) -> tuple[float, Any, float]:
    """(seconds, model, last training loss) of five parties that grow so many trees."""
    from federated.app import client_app
    from federated.federation import Federation
    from federated.party.party import Party
    from federated.solvers.trees import TreesSettings, train
    from federated.transport.in_process import InProcessGrid
    from lab.models.design import Feature
    from lab.models.glm import Task
    from lab.tables.contracts import Column, Contract

    names = [name for name in frame.columns if name != "fraud"]
    contract = Contract(name="bench", columns={n: Column(type="number") for n in frame.columns})
    parties = [Party(f"insurer {k + 1}", frame.iloc[k::5], frame.iloc[:1]) for k in range(5)]
    nodes = InProcessGrid(
        client_app(lambda k: parties[k], protection.hiding), 5, os.cpu_count() or 1
    )
    try:
        federation = Federation(nodes, protection, 5)
        settings = TreesSettings(kind="trees", trees=count)
        features = tuple(Feature(column=name) for name in names)
        start = time.perf_counter()
        model, trace = train(
            federation, Task(target="fraud", family="binomial"), features, contract, settings, 0
        )
        return time.perf_counter() - start, model, float(trace["loss"].iloc[-1])
    finally:
        nodes.close()


def exchange(path: Path | None, quick: bool) -> list[Row]:
    """Three insurers as processes on loopback with TLS and a supervisor; each waits for nothing but
    messages. Flower's own path: flower-superlink, three flower-supernodes, flwr run, without TLS, a
    client app that answers two numbers; it starts a process for every message and sleeps 3 s
    between looks. An encrypted total takes two exchanges: insurers, then the supervisor."""
    from federated.bench.exchange import measure

    found = measure(8 if quick else 20)
    stock = found["stock"]
    rows = (
        ("an exchange of messages", found["message"]),
        ("a small encrypted total, 3072 bits, opened by the supervisor", found["sum"]),
    )
    return [
        _row(what, ours, "Flower's path, one exchange", stock, f"{stock / ours:.1f} × faster")
        for what, ours in rows
    ]


BENCHES: dict[str, Callable[[Path | None, bool], list[Row]]] = {
    "paillier": paillier,
    "masks": masks,
    "glm": glm,
    "grid": grid,
    "query": query,
    "trees": trees,
    "exchange": exchange,
}
