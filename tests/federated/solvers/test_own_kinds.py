"""A kind of model in a package of the user's own: found by its entry point, loaded where it is named."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from federated.party import statistics
from federated.study.arms import perform
from federated.study.experiment import Experiment
from lab import packages
from lab.errors import ConfigurationError, PeerError
from lab.models import files
from lab.sums import SCORE, Sums

SHIPPED = Path(__file__).parents[3] / "experiments" / "packages"

#: Average claims of five states in twelve quarters, and their numbers (Hachemeister 1975).
RATIOS = """1738 1642 1794 2051 2079 2234 2032 2035 2115 2262 2267 2517
1364 1408 1597 1444 1342 1675 1470 1448 1464 1831 1612 1471
1759 1685 1479 1763 1674 2103 1502 1622 1828 2155 2233 2059
1223 1146 1010 1257 1426 1532 1953 1123 1343 1243 1762 1306
1456 1499 1609 1741 1482 1572 1606 1735 1607 1573 1613 1690"""
WEIGHTS = """7861 9251 8706 8575 7917 8263 9456 8003 7365 7832 7849 9077
1622 1742 1523 1515 1622 1602 1964 1515 1527 1748 1654 1861
1147 1357 1329 1204 998 1077 1277 1218 896 1003 1108 1121
407 396 348 341 315 328 352 331 287 384 321 342
2902 3172 3046 3068 2693 2910 3275 2697 2663 3017 3242 3425"""

CONTRACT = """name = "states"
columns.state = { type = "category", levels = ["a", "b", "c", "d", "e"] }
columns.claims = { type = "number" }
columns.paid = { type = "number" }
"""


def installed(folder: Path, name: str, module: str, code: str = "") -> None:
    """What pip leaves behind of a package with one kind of model."""
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{packages.GROUP}]\n{name} = {module}\n")
    if code:
        (folder / f"{module}.py").write_text(code)


def shipped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    folder = tmp_path / "site"
    installed(folder, name, name)
    shutil.copy(SHIPPED / name / f"{name}.py", folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(packages, "_allowed", None)
    yield packages.load(name)
    sys.modules.pop(name, None)


@pytest.fixture
def credibility(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from shipped("credibility", tmp_path, monkeypatch)


@pytest.fixture
def extrapolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from shipped("extrapolated", tmp_path, monkeypatch)


def experiment(folder: Path, **changes: Any) -> Experiment:
    ratios, weights = (np.fromstring(t.replace("\n", " "), sep=" ") for t in (RATIOS, WEIGHTS))
    frame = pd.DataFrame(
        {
            "state": np.repeat(["a", "b", "c", "d", "e"], 12),
            "claims": weights,
            "paid": ratios * weights,
        }
    )
    frame.to_csv(folder / "claims.csv", index=False)
    (folder / "contract.toml").write_text(CONTRACT)
    values = {
        "name": "premiums of states",
        "data": {
            "path": str(folder / "claims.csv"),
            "contract": str(folder / "contract.toml"),
            "target": "paid",
            "exposure": "claims",
            "features": ["state"],
            "test": 0.0,
        },
        "parties": {"split": "uniform", "count": 3},
        "model": {"kind": "credibility", "min_persons": 1},
        "protection": {"sums": "clear"},
        "arms": {"run": ["federated", "pooled"], "replicates": 0},
    }
    return Experiment.model_validate(values | changes)


def test_the_shipped_kind_gives_hachemeister_s_premiums(
    credibility: ModuleType, tmp_path: Path
) -> None:
    study = perform(experiment(tmp_path))
    fits = [study.arms[arm].models["all"]["model"].model for arm in ("federated", "pooled")]
    one, other = fits
    np.testing.assert_allclose(one.premiums, other.premiums, rtol=1e-12)
    assert one.within == pytest.approx(139_120_026, rel=1e-8)
    assert one.between == pytest.approx(89_638.73, rel=1e-6)
    assert one.collective == pytest.approx(1_683.713, rel=1e-6)
    np.testing.assert_allclose(one.premiums, [2055, 1524, 1793, 1443, 1603], atol=0.5)
    again = files.from_json(one.model_dump_json())
    assert again == one
    new = pd.DataFrame({"state": ["d", "nobody's"]})
    np.testing.assert_allclose(again.predict(new), [one.premiums[3], one.collective])


def test_keys_of_its_settings_are_checked_as_ours_are(
    credibility: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="weighting"):
        experiment(tmp_path, model={"kind": "credibility", "weighting": 1})
    study = experiment(tmp_path)
    assert Experiment.model_validate_json(study.model_dump_json()) == study


def of_networks(folder: Path, kind: str, run: list[str], **model: Any) -> Experiment:
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"age": rng.integers(20, 70, 400), "paid": rng.poisson(1.0, 400)})
    frame["paid"] += rng.poisson(frame.age / 40)
    frame["insurer"] = np.where(frame.paid == 0, "a", np.where(frame.paid < 4, "b", "c"))
    frame.to_csv(folder / "ages.csv", index=False)
    values = {
        "name": "rounds",
        "data": {
            "path": str(folder / "ages.csv"),
            "target": "paid",
            "features": ["age"],
            "test": 0.0,
        },
        "parties": {"split": "column", "column": "insurer"},
        "model": {"kind": kind, "hidden": [4], "rounds": 3, "batches": 4} | model,
        "protection": {"sums": "clear"},
        "arms": {"run": run, "replicates": 0},
    }
    return Experiment.model_validate(values)


def test_a_shipped_strategy_goes_further_the_more_parties_disagree(
    extrapolated: ModuleType,
) -> None:
    def after(changes: list[list[float]]) -> list[float]:
        parts = [
            {"w": 5.0 * np.array(c), "rows": np.array([5.0]), "square": 5.0 * np.dot(c, c)}
            for c in changes
        ]
        arrays = {name: np.sum([p[name] for p in parts], axis=0) for name in parts[0]}
        arrays["square"] = np.reshape(arrays["square"], 1)
        total = Sums(arrays, dict.fromkeys(arrays, SCORE), 5 * len(changes))
        return list(extrapolated.extrapolate({"w": np.zeros(4)}, total)["w"])

    four = np.eye(4).tolist()
    np.testing.assert_allclose(after(four), [0.5] * 4, rtol=1e-6)  # the mean is 0.25, the step 2
    np.testing.assert_allclose(after(four[:1] * 3), [1, 0, 0, 0])  # all agree: the mean itself


def test_a_shipped_strategy_is_the_mean_for_one_party_and_another_model_for_three(
    extrapolated: ModuleType, tmp_path: Path
) -> None:
    arms = ["federated", "pooled"]
    own = perform(of_networks(tmp_path, "extrapolated", arms))
    ours = perform(of_networks(tmp_path, "network", arms))
    weights = {
        (kind, arm): study.arms[arm].models["all"]["model"].model.safetensors
        for kind, study in (("own", own), ("ours", ours))
        for arm in arms
    }
    assert weights["own", "pooled"] == weights["ours", "pooled"]
    assert weights["own", "federated"] != weights["ours", "federated"]
    model = own.arms["federated"].models["all"]["model"].model
    assert model.kind == "extrapolated"
    assert files.from_json(model.model_dump_json()).model_dump() == model.model_dump()
    with pytest.raises(ConfigurationError, match="an extrapolated network has its own; drop it"):
        perform(of_networks(tmp_path, "extrapolated", arms, strategy={"name": "FedAvgM"}))


def test_a_kind_that_no_package_adds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind must be one of glm, network, trees, or one that"):
        experiment(tmp_path)
    with pytest.raises(PeerError, match="no statistic 'credibility_groups' here"):
        statistics.find("credibility_groups")


def test_a_node_loads_no_kind_that_its_owner_did_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "stranger", "stranger", "raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(packages, "_allowed", None)
    packages.restrict(("glm",))
    assert "stranger" in files.kinds() and "stranger" in statistics.analyses()
    assert not statistics.belongs("stranger_sums", ("glm", "questions"))
    message = "its package is installed, but this party's owner did not name it"
    for load in (
        lambda: statistics.find("stranger_sums"),
        lambda: files.from_json('{"kind": "stranger"}'),
    ):
        with pytest.raises(ConfigurationError, match=message):
            load()
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path, model={"kind": "stranger"})


def test_a_package_that_does_not_load_or_lacks_a_part_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path, "broken", "brokenkind", "import nothing_of_that_name")
    installed(tmp_path, "partial", "partialkind", "MODEL = STATISTICS = ()")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(packages, "_allowed", None)
    with pytest.raises(ConfigurationError, match="brokenkind can't be loaded: ModuleNotFoundError"):
        packages.load("broken")
    with pytest.raises(ConfigurationError, match="partialkind has no Settings, solve"):
        packages.load("partial")
