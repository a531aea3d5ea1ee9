"""How a total splits the cells of a question: a total tells more than its cells where it leaves rows
out, or weighs them by a column that somebody may know."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.privacy.query_audit import OUTSIDE

Ints = NDArray[np.int64]
#: A value of a factor is common in a cell where at least one person in so many has it.
MOST_VALUES = 50


def by_value(codes: Ints, value: Ints, persons: Ints, least: int) -> Ints:
    """(rows,) the part of each row of its cell: a common value is a part, the others are one.

    codes: (rows,) the cell of each row; value: (rows,) the number of its factor's value; `OUTSIDE`
    for none; persons: (rows,) who it belongs to. A sum and a sum times the factor give the sum of
    the others without any one value, so without it ``least`` persons must be left: less common
    values join the others until they are. Where that is never so, each value is a part.
    """
    part = value.copy()
    inside = np.flatnonzero((codes != OUTSIDE) & (value != OUTSIDE))
    table = pd.DataFrame({"cell": codes[inside], "value": value[inside], "person": persons[inside]})
    for cell in table.drop_duplicates().groupby("cell", sort=False):
        heads = cell[1]["value"].value_counts(sort=True)
        most = cell[1]["person"].nunique() / MOST_VALUES
        start = int((heads >= max(most, least)).sum())
        if start == len(heads):
            continue
        while start > 0 and not _mixed(cell[1], heads.index[start:], least):
            start -= 1
        if start > 0 or _mixed(cell[1], heads.index, least):
            other = np.isin(value, heads.index[start:]) & (codes == cell[0])
            part[other] = int(value.max()) + 1
    return part


def _mixed(cell: pd.DataFrame, values: pd.Index, least: int) -> bool:
    """Whether persons enough have one of these values, whichever one is left out. Who has several
    counts for one of them."""
    heads = cell[cell["value"].isin(values)].drop_duplicates("person")["value"].value_counts()
    return int(heads.sum() - heads.max()) >= least
