"""A trial exchange of joined sides, whose tables are those that a simulation deals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from federated.deployment import charter as charters
from federated.deployment.charter import Charter
from federated.deployment.dealt_tables import DEALT, deal_tables
from federated.deployment.node.rules import settings as node_folder
from federated.deployment.pairs import Pairs
from federated.study.experiment import Experiment
from tests.rigs.trial import Trial

#: Persons of both tables, of the insurers' alone, of the fund's alone; more than one side has.
BOTH, OURS, THEIRS, CAP = 240, 40, 60, 400
TREES: dict[str, Any] = {
    "kind": "trees",
    "family": "poisson",
    "trees": 2,
    "depth": 3,
    "bins": 8,
    "min_child_rows": 5,
    "learning_rate": 0.3,
    "validation_share": 0.0,
}


def persons() -> pd.DataFrame:
    rng, n = np.random.default_rng(11), BOTH + OURS + THEIRS
    frame = pd.DataFrame(
        {
            "person": [f"P-{k:04d}" for k in rng.permutation(n)],
            "years": rng.uniform(0.3, 1.0, n),
            "age": rng.integers(20, 80, n),
            "region": rng.choice(["east", "west"], n),
            "stays": rng.poisson(0.6, n),
            "chronic": rng.choice(["no", "yes"], n),
        }
    )
    chronic = frame.chronic == "yes"
    rate = np.exp(-0.5 + 0.01 * (frame.age - 50) + 0.5 * frame.stays + 0.4 * chronic)
    frame = frame.assign(claims=rng.poisson(frame.years * rate))
    return frame.assign(any=(frame.claims > 0).astype(int))


class Sides(Trial):
    """One insurer or several, each joined to a fund, and a supervisor that deals and opens.

    products, pairs: other settings of each side's node, and of the charter, than the usual ones.
    """

    analyses = ("glm", "trees")

    def __init__(
        self,
        root: Path,
        key: Any,
        insurers: int = 1,
        test: float = 0.0,
        target: str = "claims",
        **pairs: Any,
    ) -> None:
        self._pairs, self._test, self._target = pairs, test, target
        super().__init__(root, key, insurers=insurers)
        for name in self.insurers:
            self._join(name)

    def _tables(self, insurers: int, rows: int) -> dict[str, tuple[Path, Path]]:
        frame = persons()
        own = frame[["person", "claims", "any", "years", "age", "region"]].iloc[: BOTH + OURS]
        fund = frame[["person", "stays", "chronic"]].drop(index=range(BOTH, BOTH + OURS))
        fund = fund.sample(frac=1, random_state=3).rename(columns={"person": "card"})
        fund.to_csv(self.root / "fund.csv", index=False)
        for k in range(insurers):
            own.iloc[k::insurers].to_csv(self.root / f"own{k}.csv", index=False)
        dealt = deal_tables(self._undealt(insurers), self.root / "tables")
        return {n: (at / "table.parquet", at / "contract.toml") for n, at in dealt.items()}

    def _undealt(self, insurers: int) -> Experiment:
        """The experiment on files of both sides, whose rows are not marked for testing yet."""
        blocks = [
            {"role": "insurer", "name": f"insurer {k + 1}", "path": str(self.root / f"own{k}.csv")}
            for k in range(insurers)
        ]
        fund = {"role": "fund", "name": "fund", "path": str(self.root / "fund.csv"), "key": "card"}
        return Experiment.model_validate(
            {
                "name": "joined",
                "seed": 4,
                "data": {
                    "target": self._target,
                    "exposure": "years" if self._target == "claims" else "",
                    "features": ["age", "region", "stays", "chronic"],
                    "test": self._test,
                },
                "joined": [*(block | {"key": "person"} for block in blocks), fund],
                "alignment": {"learns": self._pairs.get("learns", "hidden")},
                "model": {"kind": "glm"},
                "protection": {
                    "key_bits": 2048,
                    "product": self._pairs.get("product", "triples"),
                },
                "arms": {"run": ["federated"], "replicates": 0},
            }
        )

    def study(self, **changes: Any) -> Experiment:
        """The experiment on both sides' dealt tables; changes: dotted keys."""
        return Experiment.read(self.root / "tables" / DEALT, changes)

    def trees(
        self, name: str = "trees", data: dict[str, Any] | None = None, **model: Any
    ) -> Experiment:
        """The same with trees; data, model: other keys of these tables than the usual."""
        changes = {f"data.{key}": value for key, value in (data or {}).items()}
        return self.study(name=name, model=TREES | model, **changes)

    def _charter(self, key: Any, analyses: Any, contracts: Any) -> Charter:
        names = dict.fromkeys(self.insurers, 1)
        charter = super()._charter(key, analyses, names)
        keys = {name: ("card",) if name == "fund" else ("person",) for name in self.insurers}
        pairs = Pairs(fund="fund", keys=keys, cap=CAP, **self._pairs)
        return charters.with_terms(charter, pairs=pairs)

    def _join(self, name: str) -> None:
        """Say in a node's settings what it gives into products."""
        assert self.charter.pairs is not None
        key, peers = self.charter.pairs.keys[name], self.charter.pairs.peers(name)
        path = self.root / name / node_folder.SETTINGS
        text = path.read_text().replace("test_share = 0.2 ", f"test_share = {self._test} ")
        if name == "fund" or not self._test:
            text = text.replace("test_column", "# test_column").replace(
                "test_value", "# test_value"
            )
        lines = ["[joined]", f"key = {json.dumps(list(key))}", "equations_per_person = 50"]
        allowed = [f'"{peer}" = ["*"]' for peer in peers]
        lines += ["alignments = 100", "[joined.products]", *allowed]
        lines += ["[joined.cuts]", *allowed] if name == "fund" else []
        path.write_text(text + "\n".join(lines) + "\n")
        self.limits(name, announces='["region", "chronic"]', analyses='["glm", "trees"]')

    def settle(self, name: str, old: str, new: str) -> None:
        """Change a side's settings; it must be started again."""
        path = self.root / name / node_folder.SETTINGS
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
