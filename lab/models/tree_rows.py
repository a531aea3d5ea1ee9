"""One party's rows while trees grow: their derivatives, their bins, the leaf that each is in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from lab.errors import ConfigurationError, PeerError
from lab.models import kernels
from lab.models.families import Family
from lab.models.glm import Response, Task
from lab.models.tree_model import Cuts, Owned, Tree
from lab.records import Strict
from lab.sums import Floats, Limit
from lab.tables.partition import drawn

#: Derivatives are counted in 2**-10 of what an average row adds, to 64 times what all rows add.
GRAIN, REACH = 2.0**-10, 64
#: Losses, in the same unit, are larger for each row.
LOSS = Limit(bound=2.0**34, resolution=2.0**-16)
#: The smallest share of persons that a tree is grown from.
LEAST_DRAWN = 0.1
#: Rows of all parties: their sums of derivatives are exact in float64.
MOST_ROWS = 2**31


class TreesRecipe(Strict):
    """What is fixed before the first tree. ``step``: by how much linear predictors differ;
    ``unit``: the second derivative of an average row; ``rows``: how many all parties have;
    ``validation_share``: the share of persons (or rows) that no tree is grown from, to judge them by;
    ``drawn_share``: the share of the others that each tree is grown from."""

    intercept: float
    step: float = Field(1.0, gt=0)
    unit: float = Field(gt=0)
    rows: int = Field(gt=0, le=MOST_ROWS)
    validation_share: float = Field(0.0, ge=0, lt=1)
    drawn_share: float = Field(1.0, ge=LEAST_DRAWN, le=1)

    @property
    def most(self) -> float:
        """The largest sum of derivatives, in units."""
        return float(REACH << self.rows.bit_length())

    @property
    def scales(self) -> Floats:
        """(3,) units of first and second derivatives and of the loss, as grains to one."""
        unit, step = self.unit, self.step
        return 1 / np.array([unit * step * GRAIN, unit * GRAIN, unit * step**2 * LOSS.resolution])


class Place(Strict):
    """Where the trees stand: the digest of all that are finished (empty before the first), the
    last of them, and the one that grows."""

    chain: str = ""
    last: Tree | None = None
    growing: Tree = Tree()

    def next(self, finished: Tree) -> Place:
        """The place once the tree that grew is finished."""
        return Place(chain=chained(self.chain, finished), last=finished)


#: Finished trees by the digest of all up to them, each with the digest before it.
Finished = dict[str, tuple[str, Tree]]


def chained(chain: str, tree: Tree) -> str:
    """The digest of the trees so far and one more."""
    return hashlib.sha256(f"{chain} {tree.model_dump_json()}".encode()).hexdigest()


def read_finished(text: str) -> tuple[str, Tree]:
    """A finished tree as a node keeps it: the digest before it, and the tree.

    Raises :class:`PeerError` where it is damaged.
    """
    try:
        return _FINISHED.validate_json(text)
    except ValidationError:
        raise PeerError("this party's finished trees are damaged; start the run again") from None


_FINISHED = TypeAdapter(tuple[str, Tree])


@dataclass
class Side:
    """Rows that trees are grown from, or rows that they are judged by, with their scores so far."""

    codes: NDArray[np.uint8]
    y: Floats
    weight: Floats
    offset: Floats
    eta: Floats
    node: NDArray[np.int32] = field(init=False)
    derivatives: NDArray[np.int64] = field(init=False)
    loss: float = 0.0  # deviance in grains
    beyond: bool = False  # whether a few rows weigh more than the sums can carry

    def __post_init__(self) -> None:
        self.node = np.zeros(len(self.y), dtype=np.int32)
        self.derivatives = np.zeros((len(self.y), 2), dtype=np.int64)

    def derive(self, law: Family, recipe: TreesRecipe) -> None:
        """Derivatives and loss at the scores so far, or a note that they are beyond all bounds."""
        objective = kernels.OBJECTIVES[law.name]
        eta, scales, out = self.eta + self.offset, recipe.scales, self.derivatives
        self.loss, gross, total = kernels.derivatives(
            objective, law.power, self.y, self.weight, eta, scales, out
        )
        self.beyond = not (max(gross, total) * GRAIN <= recipe.most and np.isfinite(self.loss))
        if self.beyond:
            self.loss = 0.0
            self.derivatives[:] = 0


class Rows:
    """A party's rows while trees grow.

    codes: (rows, features) the bin of each value. keys: (rows,) of persons or rows, by which the validation share, and the share of each tree, are
    drawn with a secret of the party's: nobody who asks can choose them. units: (rows,) the same as
    numbers. finished: the trees so far, which are followed anew where the rows come from a restart.
    """

    def __init__(
        self,
        codes: NDArray[np.uint8],
        response: Response,
        keys: pd.Series,
        cuts: tuple[Cuts, ...],
        task: Task,
        recipe: TreesRecipe,
        finished: Finished | None = None,
        *,
        units: Floats | None = None,
        secret: bytes = b"",
    ) -> None:
        self.finished: Finished = {} if finished is None else finished
        self.cuts, self.law, self.recipe = cuts, task.law, recipe
        if self.law.link != Family.make(self.law.name, power=task.power).link:
            raise ConfigurationError(
                f"model.link: trees fit {task.family} on its default link alone; drop the key"
            )
        apart = drawn(keys, recipe.validation_share, secret, "held out")
        self.apart = apart
        self.training = self._side(codes, response, ~apart)
        self.validation = self._side(codes, response, apart)
        units = pd.factorize(keys)[0].astype(np.float64) if units is None else units
        self.owned = Owned.of(units[~apart])
        self._keys, self._secret = keys[~apart], secret
        self.in_tree = np.ones(len(self.training.y), dtype=bool)  # rows that the tree is grown from
        self._features: tuple[int, ...] = ()
        self._codes = self.training.codes[:, :0]
        self._restart()

    def _side(self, codes: NDArray[np.uint8], r: Response, part: NDArray[np.bool_]) -> Side:
        start = np.full(int(part.sum()), self.recipe.intercept)
        return Side(codes[part], r.y[part], r.weight[part], r.offset[part], start)

    def recode(self, feature: int, codes: NDArray[np.uint8]) -> None:
        """Put all rows, in the order of their frame, into other bins of a feature."""
        self.training.codes[:, feature] = codes[~self.apart]
        self.validation.codes[:, feature] = codes[self.apart]

    def _restart(self) -> None:
        for side in (self.training, self.validation):
            side.eta[:] = self.recipe.intercept
        self._start_tree("")

    def _start_tree(self, chain: str) -> None:
        self.chain, self.growing = "nowhere", Tree()  # until there are derivatives to go on from
        self.training.node[:] = 0
        for side in (self.training, self.validation):
            side.derive(self.law, self.recipe)
        self._draw(chain)
        self.chain = chain

    def _draw(self, chain: str) -> None:
        """Draw the rows of the tree after these, anew for each share: rows that two shares differ by
        would show in two totals."""
        share = self.recipe.drawn_share
        if share < 1:
            purpose = f"{share} of rows after {chain}"
            self.in_tree = drawn(self._keys, share, self._secret, purpose)
            self.training.derivatives[~self.in_tree] = 0

    def follow(self, place: Place) -> None:
        """Bring the rows to where the trees stand. Raises :class:`PeerError` if no way is known."""
        for chain in self._way_to(place):
            if chain == "":
                self._restart()
            else:
                self._finish(chain, self.finished[chain][1])
        self._grow(place.growing)

    def _way_to(self, place: Place) -> list[str]:
        """What is to be done from where these rows are: restart, finish one tree after another."""
        last = place.last
        if last is not None and place.chain not in self.finished:
            starts = (self.chain, "", *self.finished)
            before = next((c for c in starts if chained(c, last) == place.chain), None)
            if before is not None:
                self.finished[place.chain] = (before, last)
        way, at = [], place.chain
        while at != self.chain:
            way.append(at)
            if at == "":
                break
            if at not in self.finished:
                raise PeerError("the trees so far are not known here; start the run again")
            at = self.finished[at][0]
        return way[::-1]

    def _finish(self, chain: str, tree: Tree) -> None:
        self._grow(tree)
        self.training.eta += np.array(tree.value)[self.training.node]
        tree.add_values(self.validation.codes, self.validation.eta)
        self._start_tree(chain)

    def columns(self, features: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """The bins of these features alone, side by side, and where each feature's bins start."""
        if features != self._features:
            whole = len(features) == len(self.cuts)
            self._codes = self.training.codes if whole else self.training.codes[:, list(features)]
            self._features = features
        widths = [self.cuts[j].bins for j in features]
        return self._codes, np.concatenate([[0], np.cumsum(widths)]).astype(np.uint64)

    def _grow(self, tree: Tree) -> None:
        if not tree.extends(self.growing):
            self.training.node[:] = 0
        tree.descend(self.training.codes, self.training.node)
        self.growing = tree
