"""A market that several tests look at; nobody changes it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lab.market.make import make
from lab.tables.market_folder import pool


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A market of 60,000 persons and four insurers."""
    return make(tmp_path_factory.mktemp("market") / "city", persons=60_000).folder


@pytest.fixture(scope="session")
def pooled(city: Path) -> pd.DataFrame:
    """All its claims with the truth about them."""
    return pool(city)
