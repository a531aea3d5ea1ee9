"""Who holds which rows: a market split among parties, and rows set aside for testing.

Everything is decided by whole persons where a person column is given, and by the generator
passed in: same seed, same rows.
"""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from lab.errors import ConfigurationError
from lab.records import Strict
from lab.tables.values import level_of

Rows = NDArray[np.int64]


class Split(Strict):
    """``[parties]``: how the rows of one table are dealt to parties.

    ``column``: a party for each value. ``uniform``: equal shares at random. ``size_skew``: party
    k gets a share proportional to k**-skew. ``dirichlet``: for each value of ``column`` the
    shares are drawn from a symmetric Dirichlet(alpha) (Hsu, Qi & Brown 2019, section 3).
    """

    split: Literal["column", "uniform", "size_skew", "dirichlet"] = Field(
        "uniform",
        description="column: a party for each value. uniform: equal shares at random. size_skew: party k gets a share proportional to k**-skew. dirichlet: shares of each value of column are drawn from Dirichlet(alpha).",
    )
    column: str | None = Field(None, description="For column and dirichlet: the column.")
    count: int | None = Field(None, description="Parties; not for column.")
    skew: float = Field(1.0, description="For size_skew.")
    alpha: float = Field(0.5, description="For dirichlet.")

    def check(self) -> None:
        """Refuse keys that do not go with the way of splitting."""
        if self.split in ("column", "dirichlet") and self.column is None:
            raise ConfigurationError(f"parties.column is needed for split = '{self.split}'")
        if self.split == "column" and self.count is not None:
            raise ConfigurationError("parties.count does not go with split = 'column'; drop it")
        if self.split != "column" and (self.count is None or self.count < 1):
            raise ConfigurationError(f"parties.count must be at least 1, got {self.count}")
        if self.split == "dirichlet" and not self.alpha > 0:
            raise ConfigurationError(f"parties.alpha must be above 0, got {self.alpha:g}")


def drawn(keys: pd.Series, share: float, secret: bytes, purpose: str) -> NDArray[np.bool_]:
    """(rows,) true for a share of the keys, by a hash of each under a secret of the party's: nobody
    else can choose or repeat the draw. A key is drawn with all its rows."""
    if share == 0:
        return np.zeros(len(keys), dtype=bool)
    hashes = _hashes(keys, secret, purpose)
    return np.asarray(hashes < np.uint64(int(share * 2.0**63)) * np.uint64(2))


def folds(keys: pd.Series, count: int, secret: bytes, purpose: str) -> NDArray[np.int64]:
    """(rows,) which of ``count`` folds, from 0, each row is in: drawn as :func:`drawn` draws, so a
    key is in one fold with all its rows.

    >>> person = pd.Series(["a", "b", "a", "c"])
    >>> first, _, again, _ = folds(person, 3, b"a party's own", "cross-validation")
    >>> first == again
    np.True_
    """
    return np.asarray(_hashes(keys, secret, purpose) % np.uint64(count)).astype(np.int64)


def _hashes(keys: pd.Series, secret: bytes, purpose: str) -> NDArray[np.uint64]:
    """(rows,) a hash of each key, evenly spread, under a secret."""
    key = hmac.digest(secret, purpose.encode(), "sha256").hex()[:16]
    texts = keys.astype("str")  # pandas hashes texts alone under a key
    return np.asarray(pd.util.hash_pandas_object(texts, index=False, hash_key=key), np.uint64)


def units(frame: pd.DataFrame, person: str | None) -> NDArray[np.int64]:
    """The unit that stays together for each row: its person, or the row itself."""
    if person is None:
        return np.arange(len(frame))
    return np.asarray(pd.factorize(frame[person], sort=True)[0], dtype=np.int64)


def deal(
    frame: pd.DataFrame,
    split: Split,
    person: str | None,
    rng: np.random.Generator,
    *,
    together: bool = True,
) -> dict[str, Rows]:
    """Rows of each party by its name; every row belongs to one party, each party has rows."""
    split.check()
    if split.split == "column":
        assert split.column is not None
        codes, names = _codes(frame[split.column])
        names = [f"{split.column} {name}" for name in names]
        _refuse_torn_persons(frame, codes, person if together else None, split.column)
    else:
        assert split.count is not None
        unit = units(frame, person)
        owner = _owners(frame, split, unit, split.count, rng)
        codes, names = owner[unit], [f"insurer {k + 1}" for k in range(split.count)]
    parties = {name: np.flatnonzero(codes == k) for k, name in enumerate(names)}
    empty = [name for name, rows in parties.items() if not len(rows)]
    if empty:
        raise ConfigurationError(
            f"parties: {', '.join(empty)} would get none of {len(frame):,} rows; "
            "set fewer parties or less skew"
        )
    return parties


def _codes(column: pd.Series) -> tuple[NDArray[np.int64], list[str]]:
    codes, values = pd.factorize(column, sort=True)
    names = [level_of(v) if isinstance(v, float) else str(v) for v in values]
    return np.asarray(codes, dtype=np.int64), names


def _refuse_torn_persons(
    frame: pd.DataFrame, codes: NDArray[np.int64], person: str | None, column: str
) -> None:
    if person is None:
        return
    splits = int((pd.Series(codes).groupby(units(frame, person)).nunique() > 1).sum())
    if splits:
        raise ConfigurationError(
            f"parties.column '{column}' puts rows of {splits} persons at more than one party; "
            "split by a column that is fixed for a person, or set data.group_by_person = false"
        )


def _owners(
    frame: pd.DataFrame,
    split: Split,
    unit: NDArray[np.int64],
    count: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """The party of each unit."""
    total = int(unit.max()) + 1
    if split.split == "dirichlet":
        first = np.unique(unit, return_index=True)[1]
        label = _codes(frame[str(split.column)])[0][first]
        owner = np.zeros(total, dtype=np.int64)
        for value in np.unique(label):
            members = np.flatnonzero(label == value)
            shares = rng.dirichlet(np.full(count, split.alpha))
            owner[members] = _shuffled(len(members), shares, rng)
        return owner
    skew = split.skew if split.split == "size_skew" else 0.0
    weights = np.arange(1, count + 1, dtype=float) ** -skew
    return _shuffled(total, weights / weights.sum(), rng)


def _shuffled(total: int, shares: NDArray[np.float64], rng: np.random.Generator) -> Rows:
    """Owners of ``total`` units in these shares, in random order."""
    edges = np.round(np.cumsum(shares) * total).astype(np.int64)
    owner = np.searchsorted(edges, np.arange(total), side="right").clip(max=len(shares) - 1)
    rng.shuffle(owner)
    return owner.astype(np.int64)


def test_mask(
    frame: pd.DataFrame,
    *,
    fraction: float,
    rows_file: str | None,
    column: str | None,
    value: str | None,
    person: str | None,
    rng: np.random.Generator,
    together: bool = True,
    row_numbers: Rows | None = None,
    total: int | None = None,
) -> NDArray[np.bool_]:
    """True for the rows kept for testing, by whole persons where there is a person column.

    ``rows_file`` numbers the rows of the table as it was read, of which there are ``total``;
    ``row_numbers`` says which of them are left in ``frame``, all of them if none are given.
    """
    if rows_file is not None:
        numbers = np.arange(len(frame)) if row_numbers is None else row_numbers
        mask = _listed(rows_file, len(frame) if total is None else total)[numbers]
    elif column is not None:
        mask = _equal(frame[column], str(value))
        if not mask.any():
            raise ConfigurationError(f"data.test_value: no row has {column} = '{value}'")
    else:
        unit = units(frame, person)
        selection = rng.permutation(int(unit.max()) + 1) < round(fraction * (int(unit.max()) + 1))
        return np.asarray(selection[unit])
    if together and person is not None and mask.any():
        share = pd.Series(mask).groupby(units(frame, person)).mean()
        splits = int(((share > 0) & (share < 1)).sum())
        if splits:
            raise ConfigurationError(
                f"data.test: {splits} persons have rows on both sides of the train/test split; "
                "set data.group_by_person = false if that is meant, as for a split by time"
            )
    return mask


def _equal(values: pd.Series, value: str) -> NDArray[np.bool_]:
    """Rows with this value, numbers compared as numbers."""
    if not pd.api.types.is_numeric_dtype(values):
        return np.asarray(values.astype("str") == value)
    try:
        return np.asarray(values == float(value))
    except ValueError:
        return np.zeros(len(values), dtype=bool)


def _listed(path: str, total: int) -> NDArray[np.bool_]:
    from lab.tables.sources import read_file

    numbers = read_file(Path(path)).iloc[:, 0].to_numpy()
    whole = len(numbers) > 0 and np.issubdtype(numbers.dtype, np.integer)
    if not whole or numbers.min() < 0 or numbers.max() >= total:
        raise ConfigurationError(
            f"{path}: needs one column of zero-based row numbers below {total}, with a header"
        )
    mask = np.zeros(total, dtype=bool)
    mask[numbers] = True
    return mask
