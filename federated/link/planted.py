"""How much of planted fraud the payers of a simulated market find by telling each other.

The truth is used here alone, to score what was found; no payer has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from federated.link.charter import LinkCharter
from federated.link.duplicates import Comparison
from lab.errors import ConfigurationError
from lab.tables.market_folder import payers
from lab.tables.sources import read_file

TWICE = "double_reimbursement"
ENDINGS = ("parquet", "csv", "csv.gz")


@dataclass(frozen=True)
class DetectionScore:
    """How much of one kind of fraud was detected, at one payer or by one key.

    claims: that are such fraud; hits: those of them that were reported; false_alarms: others reported
    yuan, hit_yuan: paid on them
    """

    name: str
    claims: int
    hits: int
    false_alarms: int
    yuan: float
    hit_yuan: float

    @property
    def recall(self) -> float:
        return self.hits / self.claims if self.claims else float("nan")

    @property
    def precision(self) -> float:
        reports = self.hits + self.false_alarms
        return self.hits / reports if reports else float("nan")


def payer_tables(folder: Path, charter: LinkCharter) -> dict[str, pd.DataFrame]:
    """The claims of each payer, as `claim_files` finds them. Raises as it and `claims_of`."""
    return {name: claims_of(file, charter) for name, file in claim_files(folder).items()}


def claim_files(folder: Path) -> dict[str, Path]:
    """Each payer's claims: a folder for each, with claims.parquet or claims.csv.

    Raises ConfigurationError where fewer than two have such a file.
    """
    files = {}
    for home in (
        sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    ):
        there = [home / f"claims.{ending}" for ending in ENDINGS]
        file = next((path for path in there if path.is_file()), None)
        if file is not None and home.name != "truth":
            files[home.name] = file
    if len(files) < 2:
        raise ConfigurationError(
            f"{folder}: needs a folder for each payer with its claims.parquet or claims.csv, as "
            "lab market make writes them"
        )
    return files


def claims_of(file: Path, charter: LinkCharter) -> pd.DataFrame:
    """The claims of one payer; columns of keys are codes, as they are written.

    Raises ConfigurationError and ContractError.
    """
    return read_file(file, texts={column for key in charter.key for column in key.columns})


def is_market(folder: Path) -> bool:
    """Whether the truth about a folder's claims is known."""
    return (folder / "market.toml").is_file() and (folder / "truth" / "claims.parquet").is_file()


def twice_detected(
    folder: Path, tables: Mapping[str, pd.DataFrame], comparison: Comparison
) -> list[DetectionScore]:
    """Claims paid twice that were detected: at each insurer, at all, and at all by each key alone.

    The public insurer settles the true bill, so nothing is planted in its own claims.
    """
    insurers, parts = payers(folder)[1:], []
    for name in insurers:
        matches = comparison.payers[name].matches
        keys = np.full(len(tables[name]), "", dtype=object)
        keys[matches["row"].to_numpy()] = matches["key"].to_numpy()
        parts.append(tables[name][["claim", "paid"]].assign(payer=name, key=keys))
    claims = pd.concat(parts, ignore_index=True)
    fraud = of_kind(folder, claims["claim"], TWICE)
    reports = claims["key"].to_numpy() != ""
    rows = [
        detection(name, claims["paid"], fraud, reports, claims["payer"].to_numpy() == name)
        for name in insurers
    ]
    rows.append(detection("all insurers", claims["paid"], fraud, reports))
    for key in dict.fromkeys(batch.key for batch in comparison.payers[insurers[0]].claims.batches):
        rows.append(
            detection(f"first by {key}", claims["paid"], fraud, claims["key"].to_numpy() == key)
        )
    return rows


def of_kind(folder: Path, claims: pd.Series, kind: str) -> NDArray[np.bool_]:
    """Whether each claim is fraud of this kind, by the market's truth."""
    truth = pd.read_parquet(folder / "truth" / "claims.parquet").set_index("claim")["typology"]
    return np.asarray(truth.loc[claims].to_numpy() == kind)


def detection(
    name: str,
    paid: pd.Series,
    fraud: NDArray[np.bool_],
    reports: NDArray[np.bool_],
    among: NDArray[np.bool_] | None = None,
) -> DetectionScore:
    """The score of what was reported, among some claims or all."""
    here = np.ones(len(paid), dtype=bool) if among is None else among
    fraud, reports, yuan = fraud & here, reports & here, paid.to_numpy(dtype=np.float64)
    return DetectionScore(
        name,
        int(fraud.sum()),
        int((fraud & reports).sum()),
        int((reports & ~fraud).sum()),
        float(yuan[fraud].sum()),
        float(yuan[fraud & reports].sum()),
    )
