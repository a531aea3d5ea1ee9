"""What a party counts for ever: cells that each asker asked for, refusals that may tell something."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from lab.errors import ConfigurationError


class Counters:
    """Counters by name on disk, or in memory for None. Raises :class:`ConfigurationError` for a
    file that cannot be used."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._lock = path, threading.Lock()
        self._memory: dict[str, int] = {}

    def of(self, name: str) -> int:
        """What was counted so far."""
        return self.add(name, 0)

    def add(self, name: str, number: int, most: int | None = None) -> int:
        """Count and return the sum; a sum above ``most`` is returned and not counted."""
        with self._lock:
            if self._path is None:
                total = self._memory.get(name, 0) + number
                if most is None or total <= most:
                    self._memory[name] = total
                return total
            try:
                with closing(sqlite3.connect(self._path, 60, isolation_level=None)) as store:
                    store.execute("PRAGMA synchronous = EXTRA")
                    return _added(store, name, number, most)
            except (sqlite3.Error, TypeError) as error:
                raise ConfigurationError(
                    f"{self._path.name}: the counters of questions cannot be used ({error}); "
                    "nothing is answered without them"
                ) from None


def _added(store: sqlite3.Connection, name: str, number: int, most: int | None) -> int:
    store.execute("BEGIN IMMEDIATE")
    store.execute("CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, number INTEGER)")
    entry = store.execute("SELECT number FROM counters WHERE name = ?", (name,)).fetchone()
    total = (entry[0] if entry else 0) + number
    if most is None or total <= most:
        store.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, total))
    store.execute("COMMIT")
    return int(total)
