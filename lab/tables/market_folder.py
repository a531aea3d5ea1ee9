"""The folder of a simulated market, as others read it: who pays, all claims together, the contracts of its tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lab.errors import ConfigurationError
from lab.tables.contracts import Contract

#: Most insurers that a market may have.
MOST_INSURERS = 8


PAYERS = ("public", *(f"insurer-{k + 1}" for k in range(MOST_INSURERS)))


CONTRACTS = Path(__file__).parent / "published" / "market"


#: The public register of providers in a market's folder.
REGISTER = "register/providers.parquet"


def contract(name: str) -> Contract:
    """The contract of a table: claims, conditions, persons, policies, providers or truth, or one of
    `lab.tables.market_sides`.

    ``market`` is that of :func:`pool`: the columns of claims, and ``fraud`` and ``typology``.
    """
    if name != "market":
        return Contract.read(CONTRACTS / f"{name}.toml")
    claims, truth = contract("claims"), contract("truth")
    columns = claims.columns | {key: truth.columns[key] for key in ("fraud", "typology")}
    differences = {
        "name": "market",
        "title": "Simulated market, claims of all payers in one table, with the truth about each",
        "notes": claims.notes + " Here the truth stands beside it: fraud, typology.",
        "columns": columns,
    }
    return claims.model_copy(update=differences)


def payers(folder: Path) -> list[str]:
    """The payers of a market, the public insurer first.

    Raises :class:`ConfigurationError` for a folder that is no market.
    """
    members = [payer for payer in PAYERS if (folder / payer / "claims.parquet").is_file()]
    if not (folder / "market.toml").is_file() or len(members) < 2:
        raise ConfigurationError(
            f"{folder}: not the folder of a market; make one with: lab market make FOLDER --persons 50000"
        )
    return members


def pool(folder: Path) -> pd.DataFrame:
    """Claims of all payers of a market in one table, with the truth: what no party may do.

    Columns are those of ``contract("market")``, categories have its levels. Raises
    :class:`ConfigurationError` for a folder that is no market.
    """
    tables = [folder / payer / "claims.parquet" for payer in payers(folder)]
    claims = pd.concat([pd.read_parquet(table) for table in tables], ignore_index=True)
    truth = pd.read_parquet(folder / "truth" / "claims.parquet")
    pooled = claims.merge(truth, on="claim", how="left", validate="one_to_one")
    return pooled[list(contract("market").columns)]
