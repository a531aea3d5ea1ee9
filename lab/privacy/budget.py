"""The privacy budget of one party: what noised answers cost together, kept where it outlasts a crash."""

from __future__ import annotations

import json
import math
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lab.errors import BudgetError, ConfigurationError
from lab.privacy.noise import KINDS, LARGEST_DELTA, ORDERS, Event, Release, _rho


def event(release: Release) -> Event:
    """What the budget keeps of a release: nothing of the rows."""
    return {"mechanism": release.mechanism, KINDS[release.mechanism]: float(release.cost)}


def spent(events: Sequence[Event], delta: float) -> float:
    """An epsilon such that all these releases together are (epsilon, delta)-private.

    The better of adding up, where all are laplace, and Rényi accounting over :data:`ORDERS`.
    It holds for noise levels that were not chosen by looking at earlier answers; the questions
    may be. Infinite where delta is 0 and a release is gaussian. Raises
    :class:`ConfigurationError` for an event of an unknown kind.

    Laplace: whatever is epsilon-private is no worse than randomised response (Kairouz, Oh,
    Viswanath 2015), and epsilon²/2 zero-concentrated (Bun, Steinke 2016). Gaussian: the
    discrete Gaussian is zero-concentrated (Canonne, Kamath, Steinke 2020).
    """
    return _spent(events, delta, slice(None))


@np.errstate(under="ignore")  # tails of Rényi curves may be 0
def _spent(events: Sequence[Event], delta: float, orders: slice) -> float:
    """:func:`spent` with some of the orders."""
    losses = Counter(_loss(e) for e in events)
    pure = all(mechanism == "laplace" for mechanism, _ in losses)
    added_up = math.fsum(cost for _, cost in losses.elements()) if pure else math.inf
    if delta == 0 or not losses:
        return added_up
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    curves = np.array([count * _curve(*loss) for loss, count in losses.items()])
    renyi, _ = compute_epsilon(ORDERS[orders], curves.sum(axis=0)[orders], delta)
    return min(added_up, float(renyi))


def _loss(event: Event) -> tuple[str, float]:
    """A release's mechanism and cost; what is not understood is an error and never free."""
    for mechanism, kind in KINDS.items():
        cost = event.get(kind)
        alike = event == {"mechanism": mechanism, kind: cost}
        if alike and isinstance(cost, float) and 0 < cost < math.inf:
            return mechanism, cost
    raise ConfigurationError(f"unknown kind of release {event!r}; its cost cannot be computed")


@lru_cache(1024)
def _curve(mechanism: str, cost: float) -> NDArray[np.float64]:
    """Rényi divergences of one release at :data:`ORDERS`, by dp_accounting."""
    import dp_accounting as dp
    from dp_accounting.rdp import RdpAccountant

    def curve(event: Any) -> NDArray[np.float64]:
        rdp = RdpAccountant(ORDERS, dp.NeighboringRelation.REPLACE_ONE).compose(event).rdp
        return np.asarray(rdp, dtype=np.float64)

    if mechanism == "gaussian":
        return curve(dp.ZCDpEvent(cost))
    if cost < 1e-3:  # where the logarithms of randomised response lose their digits
        return np.minimum(curve(dp.ZCDpEvent(cost**2 / 2)), curve(dp.ZCDpEvent(0.0, cost)))
    lie = 2 * math.exp(-cost) / (1 + math.exp(-cost))
    return curve(dp.RandomizedResponseDpEvent(lie, 2))


@lru_cache(64)
def _order(epsilon: float, delta: float) -> slice:
    """The one order at which gaussian noise may use up this budget best."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    _, order = compute_epsilon(ORDERS, _rho(epsilon, delta, 1) * np.array(ORDERS), delta)
    at = ORDERS.index(float(order))
    return slice(at, at + 1)


class Charge(NamedTuple):
    """One charge: its number, when in UTC, the question, and the events as JSON."""

    number: int
    at: str
    question: str
    events: str


class PrivacyBudget:
    """A party's privacy budget, in an SQLite file that processes of one machine may share.

    A charge is on disk before :meth:`charge` returns; whoever crashes then has paid. The file
    keeps the budget it was made with: a smaller one holds for this opening, a larger one is
    refused. Every charge reads, checks and composes all events anew.

    The budget holds even if noise levels are chosen by looking at earlier answers. Releases are
    admitted while costs of laplace add up within it, or by a Rényi filter at one order fixed in
    advance (Feldman, Zrnic 2021); the best order afterwards would not be sound there.

    Raises :class:`ConfigurationError` for a file that is damaged or is no privacy budget.
    """

    def __init__(self, path: Path, epsilon: float, delta: float = 0.0) -> None:
        if not (0 < epsilon < math.inf and 0 <= delta <= LARGEST_DELTA):
            raise ConfigurationError(
                f"a budget has an epsilon above 0 and a delta from 0 to {LARGEST_DELTA}, "
                f"got {epsilon} and {delta}"
            )
        self.path, self.epsilon, self.delta = path, float(epsilon), float(delta)
        if not path.exists():
            _create(path, self.epsilon, self.delta)
        with self._transaction() as db:
            budget, _ = self._read(db)
        if self.epsilon > budget[0] or self.delta > budget[1]:
            raise ConfigurationError(
                f"{path}: this privacy budget was created with epsilon {budget[0]:g} and delta "
                f"{budget[1]:g}; it is never raised, and epsilon {epsilon:g} and delta {delta:g} "
                "would be more"
            )

    def charge(self, question: str, events: Sequence[Event]) -> float:
        """Charge releases before they are made; returns epsilon spent since the file was made.

        Raises :class:`BudgetError`, and charges nothing, if they do not fit into the budget. The
        same question again is charged again.
        """
        events = list(events)
        with self._transaction() as db:
            budget, entries = self._read(db)
            before = _events(entries)
            after = [*before, *events]
            order = _order(self.epsilon, self.delta) if self.delta else slice(None)
            if _spent(after, self.delta, order) > self.epsilon:
                raise BudgetError(
                    f"privacy budget: epsilon {spent(before, self.delta):.4g} of "
                    f"{self.epsilon:g} is spent at delta {self.delta:g}, and this answer of "
                    f"epsilon {spent(events, self.delta):.4g} does not fit; ask with a smaller "
                    "epsilon; what is spent does not come back"
                )
            now = datetime.now(UTC).isoformat(timespec="seconds")
            entry = Charge(len(entries) + 1, now, question, json.dumps(events))
            db.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", entry)
            db.execute("UPDATE budget SET digest = ?", (_digest(budget, [*entries, entry]),))
        return spent(after, self.delta)

    def spent(self) -> float:
        """Epsilon spent so far, as :func:`spent` counts it."""
        return spent(_events(self.entries()), self.delta)

    def remaining(self) -> float:
        """Epsilon less what is spent."""
        return max(0.0, self.epsilon - self.spent())

    def entries(self) -> list[Charge]:
        """Every charge, in order."""
        with self._transaction() as db:
            return self._read(db)[1]

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One at a time over all processes, on disk when it is left, undone by an error."""
        where = f"{self.path.resolve().as_uri()}?mode=rw"
        try:
            with closing(sqlite3.connect(where, 60, uri=True, isolation_level=None)) as db:
                # FULL, and the folder too: a journal that came back would undo a charge.
                db.execute("PRAGMA synchronous = EXTRA")
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
        except (sqlite3.Error, UnicodeError) as error:
            raise self._unusable(str(error)) from None

    def _read(self, db: sqlite3.Connection) -> tuple[tuple[float, float], list[Charge]]:
        """The budget the file was made with and all entries, checked."""
        if (state := db.execute("PRAGMA quick_check").fetchone()) != ("ok",):
            raise self._unusable(str(state[0]))
        try:
            ((*budget, digest),) = db.execute("SELECT epsilon, delta, digest FROM budget")
            rows = db.execute("SELECT number, at, question, events FROM entries ORDER BY number")
            entries = [Charge(*row) for row in rows]
            intact = digest == _digest((budget[0], budget[1]), entries)
        except (ValueError, TypeError):  # no budget or several, no text, no JSON
            intact = False
        if not intact:
            raise self._unusable("its entries do not match its digest")
        return (budget[0], budget[1]), entries

    def _unusable(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.path}: the privacy budget cannot be used: {why}; nothing is released without it. If "
            "it stays so, restore its latest copy and charge what was released since"
        )


def _create(path: Path, epsilon: float, delta: float) -> None:
    """Make a budget's file beside its place and link it there whole, unless another process was first."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with closing(sqlite3.connect(draft)) as db:
            db.executescript(
                "PRAGMA synchronous = EXTRA; BEGIN;"
                "CREATE TABLE budget (epsilon REAL, delta REAL, digest TEXT);"
                "CREATE TABLE entries (number INTEGER, at TEXT, question TEXT, events TEXT);"
            )
            budget = (epsilon, delta)
            db.execute("INSERT INTO budget VALUES (?, ?, ?)", (*budget, _digest(budget, [])))
            db.commit()
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except (sqlite3.Error, OSError) as error:
        raise ConfigurationError(
            f"{path}: a privacy budget cannot be created here: {error}"
        ) from None


def _digest(budget: tuple[float, float], entries: Sequence[Charge]) -> str:
    return sha256(json.dumps([budget, entries]).encode()).hexdigest()


def _events(entries: Sequence[Charge]) -> list[Event]:
    return [event for entry in entries for event in json.loads(entry.events)]
