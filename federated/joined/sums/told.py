"""What the fund tells an insurer while trees grow: of each cut that was chosen, which persons go left.

The fund's column stays at the fund. To follow its rows through a tree the insurer's side needs of a cut
on that column one bit for each common person, and keeps of the column no more than that: the class
of bins that all bits so far put a person in. Where a class stands in for its bins, every cut that was told
goes as it does at the fund, so that trees, leaves and scores are computed as if the column were there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from federated.party.party import Party
from lab.errors import PeerError
from lab.models.design import Feature
from lab.models.tree_model import LEAF, Cuts, Tree
from lab.statistics import Part

Bits = NDArray[np.bool_]
#: A cut: the number of its feature, and (bins,) which bins go left.
Cut = tuple[int, tuple[bool, ...]]


def cuts_of(trees: Iterable[Tree], cuts: tuple[Cuts, ...], holds: Any) -> list[Cut]:
    """The cuts of trees on columns that ``holds`` is true of, each once, in the order of their nodes."""
    chosen: dict[Cut, None] = {}
    for tree in trees:
        for at, feature in enumerate(tree.feature):
            if feature != LEAF and holds(cuts[feature].feature.column):
                left = tree.goes_left[at, : cuts[feature].bins]
                chosen[feature, tuple(map(bool, left))] = None
    return list(chosen)


class ToldColumn:
    """What was told of one of the fund's columns. codes: (rows,) of each common row a bin of its class."""

    def __init__(self, name: str, cut: Cuts, rows: int) -> None:
        """name: of the column that stands in for the fund's."""
        self.name, self.cut = name, cut
        self._of_bin = np.zeros(cut.bins, dtype=np.int64)
        self._of_row = np.zeros(rows, dtype=np.int64)
        self.codes = np.zeros(rows, dtype=np.uint8)

    @property
    def term(self) -> Cuts:
        """The bins of the column that stands in: bin k holds the number k."""
        edges = tuple(k + 0.5 for k in range(self.cut.bins - 2))
        feature = Feature(column=self.name)
        return Cuts(feature=feature, edges=edges, monotone=self.cut.monotone)

    @property
    def values(self) -> NDArray[np.float64]:
        """(rows,) the column that stands in, missing where the last bin does."""
        last = self.cut.bins - 1
        return np.where(self.codes == last, np.nan, self.codes.astype(np.float64))

    def hear(self, goes_left: Bits, bits: Bits) -> None:
        """Take up one cut. goes_left: (bins,); bits: (rows,). Raises :class:`PeerError` for bits that no
        column could have after those before."""
        of_bin, of_row = 2 * self._of_bin + goes_left, 2 * self._of_row + bits
        classes, first, self._of_bin = np.unique(of_bin, return_index=True, return_inverse=True)
        place = np.searchsorted(classes, of_row).clip(max=len(classes) - 1)
        if not np.array_equal(classes[place], of_row):
            raise PeerError("the fund: tells of a cut what does not go with the cuts before it")
        self._of_row, self.codes = place, first[place].astype(np.uint8)


class CommonRows:
    """An insurer's rows that the fund has as well, as a party with what it was told of the fund's columns.

    place: (rows,) where each of the insurer's rows stands on the spine, by its label, -1 for nowhere.
    """

    def __init__(self, side: Party, place: pd.Series) -> None:
        self._holds, self._told = side.holds, dict[Cuts, ToldColumn]()
        train = _common(side.train, place)
        test = train if side.test is side.train else _common(side.test, place)
        self.party = Party(
            side.name,
            train,
            test,
            side.person,
            side.policy,
            secret=side.secret,
            rows_secret=side.rows_secret,
        )
        self._training = len(train)
        labels = train.index if test is train else train.index.append(test.index)
        self._place = place.loc[labels].to_numpy()

    def column(self, cut: Cuts) -> ToldColumn:
        """What was told of one of the fund's columns in bins."""
        if cut not in self._told:
            self._told[cut] = ToldColumn(f"told {len(self._told)}", cut, len(self._place))
            self._show(self._told[cut])
        return self._told[cut]

    def hear(self, cuts: tuple[Cuts, ...], chosen: list[Cut], bits: Bits) -> None:
        """Take up cuts. bits: (cuts, spine's rows)."""
        for (feature, goes_left), of_spine in zip(chosen, bits, strict=True):
            column = self.column(cuts[feature])
            column.hear(np.array(goes_left), of_spine[self._place])
            self._show(column)

    def _show(self, column: ToldColumn) -> None:
        party, values = self.party, column.values
        whole = party.test is party.train
        party.train = party.train.assign(**{column.name: values[: self._training]})
        party.test = (
            party.train if whole else party.test.assign(**{column.name: values[self._training :]})
        )

    def terms(self, cuts: tuple[Cuts, ...]) -> tuple[Cuts, ...]:
        """Bins as this table has them: of the fund's columns those that stand in."""
        return tuple(
            cut if self._holds(cut.feature.column) else self.column(cut).term for cut in cuts
        )

    def codes(self, cut: Cuts, part: Part) -> NDArray[np.uint8]:
        """(rows,) what was told of one of the fund's columns."""
        codes, in_sample = self.column(cut).codes, self.party.test is self.party.train
        of_training = part == "train" or in_sample
        return codes[: self._training] if of_training else codes[self._training :]


def _common(frame: pd.DataFrame, place: pd.Series) -> pd.DataFrame:
    there = place.reindex(frame.index, fill_value=-1).to_numpy() >= 0
    return frame[there].copy()
