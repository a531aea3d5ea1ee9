"""The folder of a search: a line of JSON for each trial, so that none is run twice, and its result."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from federated.search.proposals import Settings
from federated.study.plan import SOLVERS_VERSION
from federated.study.run_folder import LOGGED, plain, public
from lab.errors import ConfigurationError
from lab.files import add_line, added_lines, canonical, write_whole
from lab.report import tracking
from lab.text import slug

Line = dict[str, Any]


class SearchFolder:
    """What a search has come to so far. A search is taken up again by the same words: what is
    varied, over the same table, by the same version."""

    def __init__(self, runs: Path, kind: str, name: str, search: object) -> None:
        """search: all that decides what a trial comes to. Raises :class:`ConfigurationError`."""
        digest = hashlib.sha256(canonical(plain([kind, search, SOLVERS_VERSION]))).hexdigest()
        self.path = runs.resolve() / f"{kind}-{slug(name)[:40]}-{digest[:10]}"
        self._lines_path = self.path / "trials.jsonl"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self.path}: cannot be made: {error.strerror}") from None
        if not self._lines_path.exists():
            write_whole(self._lines_path, b"")
        try:
            self._lines = {_key(*line["trial"]): line for line in added_lines(self._lines_path)}
        except (ValueError, KeyError, TypeError):
            raise ConfigurationError(
                f"{self._lines_path}: is damaged; move the folder away to search anew"
            ) from None

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def fits(self) -> int:
        """Fits behind all of its lines."""
        return sum(len(line.get("folds", ())) for line in self._lines.values())

    def get(self, place: str, settings: Settings) -> Line | None:
        """What these settings came to in a place: all rows, or those without a fold."""
        return self._lines.get(_key(place, settings))

    def add(self, place: str, settings: Settings, line: Line) -> Line:
        """Keep what settings came to; it is on disk when this returns."""
        line = plain(line | {"trial": [place, settings]})
        add_line(self._lines_path, line)
        self._lines[_key(place, settings)] = line
        return line

    def write(self, name: str, text: str) -> Path:
        """Write a file that is not there yet."""
        path = self.path / name
        if not path.exists():
            write_whole(path, text.encode())
        return path

    def replace(self, name: str, text: str) -> None:
        """Write a file in place of what is there."""
        write_whole(self.path / name, text.encode())

    def finish(self, result: dict[str, Any]) -> None:
        """Write what the search came to."""
        text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
        self.replace("result.json", text)

    def log(self, uri: str) -> str:
        """Log the result to MLflow, once for each number of trials; returns what to tell."""
        noted = self.path / f"{LOGGED}-{len(self)}"
        if noted.exists():
            return f"MLflow run {noted.read_text()}"
        try:
            identity = tracking.log_search(self.path, uri)
        except Exception as error:  # whatever the tracking server does, the search is kept
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            return f"not logged to MLflow at {public(uri)} ({reason}); the same command tries again"
        noted.write_text(identity)
        return f"MLflow run {identity}"


def _key(place: str, settings: Settings) -> str:
    return canonical([place, settings]).decode()
