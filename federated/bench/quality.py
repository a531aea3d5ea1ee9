"""`lab bench quality`: trees at their defaults against LightGBM, on tables that nobody tuned them for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from federated.bench.measurement import Row
from lab.errors import ConfigurationError
from lab.models.glm import Response, Task
from lab.sums import Floats

if TYPE_CHECKING:
    from federated.study.experiment import Experiment

PARTIES = {"split": "uniform", "count": 5}
MOTOR = ["VehPower", "VehAge", "DrivAge", "BonusMalus", "Density", "Area", "VehBrand", "VehGas", "Region"]  # fmt: skip
HEALTH = ["coins", "tookphys", "black", "income", "xage", "female", "educdec", "num", "mhi", "disea", "physlm", "ghindx", "child", "site"]  # fmt: skip
#: Tables that are made or installed, by name: what is modelled, and how.
SHIPPED: dict[str, dict[str, Any]] = {
    "visits, RAND HIE": {
        "data": {"source": "rand_hie", "target": "mdvis"},
        "model": {"family": "poisson"},
    },
    "fraud, simulated market": {
        "data": {
            "source": "market", "market": {"persons": 20_000, "insurers": 4, "seed": 11},
            "target": "confirmed", "person": "person", "group_by_person": False,
            "test_column": "year", "test_value": 2023, "missing": "keep",
        },
        "parties": {"split": "column", "column": "payer"},
        "model": {"family": "binomial"},
    },
}  # fmt: skip
#: Tables that are published elsewhere, by the file or folder they lie in.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "credit default": (
        "fate_vertical",
        {"data": {"source": "default_credit", "target": "y"}, "model": {"family": "binomial"}},
    ),
    "spend, RAND HIE": (
        "randhie/RandHIE.csv.gz",
        {
            "data": {
                "source": "rand_hie_full", "target": "meddol", "exposure": "time", "person": "zper",
                "features": HEALTH, "missing": "keep",
            },
            "model": {"family": "tweedie", "power": 1.5},
        },
    ),
    "visits, European fund": (
        "euhealthinsurance/euhealthinsurance.csv.gz",
        {
            "data": {
                "target": "num_visits", "exposure": "policy_years", "missing": "keep",
                "features": ["relation", "gender", "age_at_inception"],
                "test_column": "group", "test_value": "test",
            },
            "model": {"family": "poisson"},
        },
    ),
    "frequency, French motor": (
        "freMTPL2/freMTPL2freq.csv.gz",
        {
            "data": {
                "source": "fremtpl2_freq", "target": "ClaimNb", "exposure": "Exposure",
                "cap": {"ClaimNb": 4, "Exposure": 1}, "features": MOTOR,
            },
            "model": {"family": "poisson"},
        },
    ),
    "pure premium, French motor": (
        "freMTPL2",
        {
            "data": {
                "source": "fremtpl2_claims", "target": "ClaimAmount", "exposure": "Exposure",
                "cap": {"ClaimAmount": 100_000, "Exposure": 1}, "features": MOTOR,
            },
            "model": {"family": "tweedie", "power": 1.5},
        },
    ),
}  # fmt: skip
#: What a light tuning of LightGBM tries: leaves, fewest rows in a leaf, L2.
GRID = [
    (7, 20, 0.0),
    (15, 20, 0.0),
    (15, 100, 1.0),
    (31, 20, 10.0),
    (31, 100, 1.0),
    (63, 200, 10.0),
]
#: Training rows of each table, at most, where it must be quick.
QUICK = 60_000
#: Of LightGBM: its threads wait in a loop, which takes minutes where others use the machine.
THREADS = 1
#: Scores of a model on test rows, by name.
Scores = dict[str, float]


def figures(path: Path | None, quick: bool) -> list[Row]:
    """Trees at their defaults, five parties in the clear, against LightGBM on all rows at its
    defaults, and the best of six settings with early stopping on a fifth of the rows, grown again
    from all (pip install '.[bench]'). Tables: those made or installed, and published ones below a
    folder that --path names; or those of an experiment's file. Scores on the same test rows:
    deviance explained against a constant rate, or PR-AUC and ROC-AUC. Quick: trained on at most
    60,000 rows of each."""
    from federated.study.experiment import Experiment

    lines: list[Row] = []
    for name, values in tables(path):
        ours, theirs, best = compared(Experiment.model_validate(values), QUICK if quick else None)
        for score, value in ours.items():
            others, ratio = "LightGBM is not installed", ""
            if theirs and best:
                others = f"LightGBM: default {theirs[score]:.4f}, tuned {best[score]:.4f}"
                ratio = f"{value / best[score]:.3f} of tuned"
            lines.append((f"{name}, {score}", f"{value:.4f}", others, ratio))
    return lines


def tables(path: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The experiments to compare by, as their files would say it.

    Raises :class:`ConfigurationError` for a path that is no folder, no table known here and no
    experiment's file.
    """
    if path is not None and path.suffix == ".toml":
        yield _own(path)
        return
    for name, values in SHIPPED.items():
        yield name, _experiment(name, values)
    places = {name: _place(path, place) for name, (place, _) in PUBLISHED.items() if path}
    if path is not None and not path.is_dir() and not any(places.values()):
        raise ConfigurationError(
            f"{path}: quality takes a folder of published tables, one of their files, or an "
            "experiment's file (.toml)"
        )
    for name, file in places.items():
        if file is not None:
            values = PUBLISHED[name][1]
            data = {**values["data"], "path": str(file)}
            yield name, _experiment(name, {**values, "data": data})


def _place(path: Path, place: str) -> Path | None:
    """Where a published table lies, below a folder or as the file itself."""
    if path.is_file():
        return path if path.name == Path(place).name else None
    return path / place if (path / place).exists() else None


def _own(path: Path) -> tuple[str, dict[str, Any]]:
    """The law and the data of an experiment, whatever its model."""
    from federated.study.experiment import Experiment

    experiment = Experiment.read(path)
    law = {"family": experiment.model.family, "power": experiment.model.law().get("power")}
    values = {"data": experiment.data.model_dump(), "seed": experiment.seed}
    values["parties"] = experiment.parties.model_dump()
    return experiment.name, _experiment(experiment.name, {**values, "model": law})


def _experiment(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    model = {"kind": "trees", **values["model"]}
    return {
        "name": name, "seed": 1, "parties": PARTIES, "protection": {"sums": "clear"},
        **values, "model": model, "arms": {"run": ["federated"], "replicates": 0},
    }  # fmt: skip


def compared(
    experiment: Experiment, rows: int | None
) -> tuple[Scores, Scores | None, Scores | None]:
    """Scores of an experiment's trees, and of LightGBM by default and tuned where it is installed.

    rows: for training, at most, drawn from each party's in equal shares; None for all.
    """
    from federated.study.outcome import fit_models
    from federated.study.simulation import in_process, market_of

    market = market_of(experiment.model_dump_json(), "quality")
    (part, task), *_ = market.experiment.tasks().items()
    share = min(1.0, (rows or np.inf) / sum(len(party.train) for party in market.parties))
    for party in market.parties if share < 1 else ():
        party.train = party.train.sample(frac=share, random_state=1)
    with in_process(market.parties, os.cpu_count() or 1, market.rules) as federation:
        federation.least_parties = market.least_parties
        fitted = fit_models(market.experiment, market.features, market.contract, federation)
    train = pd.concat([party.train for party in market.parties])
    test = pd.concat([party.test for party in market.parties])
    ours = scores(test, task, fitted[part].model.predict(test), Pool.of(train, task, [], None))
    if find_spec("lightgbm") is None:
        return ours, None, None
    columns = sorted({feature.column for feature in market.features[part]})
    pool = Pool.of(train, task, columns, market.experiment.data.person)
    x = pool.like(test[columns])
    others = [scores(test, task, fit(pool, task).predict(x), pool) for fit in (default, tuned)]
    return ours, others[0], others[1]


def scores(test: pd.DataFrame, task: Task, rate: Floats, train: Pool) -> Scores:
    """How good rates are on test rows, for one unit of exposure each."""
    rows, law = Response(test, task), task.law
    constant = float(np.average(train.y, weights=train.size))
    deviance, null = (
        float(rows.weight @ law.deviance(rows.y, each * rows.exposure))
        for each in (np.asarray(rate), np.full(len(test), constant))
    )
    explained = {"deviance explained": 1 - deviance / null}
    if law.name != "binomial":
        return explained
    from sklearn.metrics import average_precision_score, roc_auc_score

    return {
        "PR-AUC": float(average_precision_score(rows.y, rate)),
        "ROC-AUC": float(roc_auc_score(rows.y, rate)),
    }


# LightGBM on all rows in one place.


class Pool(NamedTuple):
    """All rows. x: features, text as categories; y: the target for one unit of exposure, size:
    exposure; weight: what makes the deviance of y that of the target with an offset."""

    x: pd.DataFrame
    y: Floats
    size: Floats
    weight: Floats
    unit: NDArray[np.int64]

    @classmethod
    def of(cls, frame: pd.DataFrame, task: Task, columns: list[str], person: str | None) -> Pool:
        rows, law = Response(frame, task), task.law
        x = frame[columns].reset_index(drop=True)
        texts = [name for name in columns if not pd.api.types.is_numeric_dtype(x[name])]
        x = x.astype(dict.fromkeys(texts, "str")).astype(dict.fromkeys(texts, "category"))
        power = {"poisson": 1.0, "gamma": 2.0}.get(law.name, law.power)
        weight = rows.weight * (rows.exposure ** (2 - power) if task.exposure else 1.0)
        unit = np.arange(len(frame)) if person is None else pd.factorize(frame[person])[0]
        size = rows.weight * rows.exposure
        return cls(x, rows.y / rows.exposure, size, weight, unit.astype(np.int64))

    def like(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Other rows with the categories of these."""
        types = {n: t for n, t in self.x.dtypes.items() if isinstance(t, pd.CategoricalDtype)}
        return frame.astype(dict.fromkeys(types, "str")).astype(types)


def default(pool: Pool, task: Task) -> Any:
    """LightGBM with nothing set but its objective."""
    return _boosted(pool, _objective(task), 100)


def tuned(pool: Pool, task: Task) -> Any:
    """The best of :data:`GRID`, stopped by a fifth of the rows (or persons), grown again from all."""
    import lightgbm

    judging = np.random.default_rng(1).random(int(pool.unit.max()) + 1)[pool.unit] < 0.2
    best: tuple[float, int, dict[str, Any]] | None = None
    for leaves, least, l2 in GRID:
        settings = _objective(task) | {
            "learning_rate": 0.05, "num_leaves": leaves, "min_data_in_leaf": least,
            "lambda_l2": l2, "feature_fraction": 0.8, "bagging_fraction": 0.8, "bagging_freq": 1,
        }  # fmt: skip
        grown, judged = (
            lightgbm.Dataset(pool.x[part], pool.y[part], weight=pool.weight[part])
            for part in (~judging, judging)
        )
        booster = lightgbm.train(
            settings, grown, 2000, [judged], callbacks=[lightgbm.early_stopping(50, verbose=False)]
        )
        ((_, losses),) = booster.best_score.items()
        ((_, loss),) = losses.items()
        if best is None or loss < best[0]:
            best = loss, booster.best_iteration, settings
    assert best is not None
    return _boosted(pool, best[2], best[1])


def _objective(task: Task) -> dict[str, Any]:
    law = task.law
    names = {"binomial": "binary", "gaussian": "regression"}
    settings = {"objective": names.get(law.name, law.name), "num_threads": THREADS}
    if law.name == "tweedie":
        settings["tweedie_variance_power"] = law.power
    return settings | {"verbose": -1, "seed": 1}


def _boosted(pool: Pool, settings: dict[str, Any], trees: int) -> Any:
    import lightgbm

    return lightgbm.train(settings, lightgbm.Dataset(pool.x, pool.y, weight=pool.weight), trees)
