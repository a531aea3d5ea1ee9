"""A run on the coordinator's disk: every opened total in order, so that the run can be resumed.

A solver is a function of the totals it gets. A coordinator that was killed starts the same solver
again and gives it the totals on disk, each checked to be of the same question, until they are used
up; from there on it asks the parties. So a resumed run ends with the model it would have had.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from lab.errors import ConfigurationError, PeerError
from lab.files import canonical, read_json, write_whole
from lab.sums import Floats, Limit, Sums

RUN, TOTALS = "run.json", "totals"


class ResumableRun:
    """One run's folder. ``attempt``: how often it was taken up; ``totals``: how many it has."""

    def __init__(self, folder: Path, run: str, attempt: int, absent: Mapping[str, str]) -> None:
        self.folder, self.run, self.attempt, self.absent = folder, run, attempt, dict(absent)
        self.totals = len(list((folder / TOTALS).glob("*.sums")))
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigurationError(f"run {run}: another process is running it") from None

    @classmethod
    def take_up(cls, folder: Path, study: str, charter: str, fresh: bool = False) -> Self:
        """The unfinished run of this study under this charter, or a new one.

        study: its digest. Raises :class:`ConfigurationError` where the folder cannot be used.
        """
        for place in [] if fresh else sorted(folder.glob(f"*/{RUN}"), reverse=True):
            record = read_json(place)
            of = record.get("study"), record.get("charter"), record.get("end")
            if of == (study, charter, ""):
                record["attempt"] = int(record["attempt"]) + 1
                write_whole(place, canonical(record), 0o600)
                return cls(place.parent, str(record["run"]), record["attempt"], record["absent"])
        run = secrets.token_hex(8)
        place = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{run}"
        (place / TOTALS).mkdir(mode=0o700, parents=True)
        record = {
            "run": run,
            "study": study,
            "charter": charter,
            "attempt": 0,
            "absent": {},
            "end": "",
        }
        write_whole(place / RUN, canonical(record), 0o600)
        return cls(place, run, 0, {})

    def total(self, number: int, question: str) -> Sums | None:
        """A total that was opened before. Raises :class:`ConfigurationError` for another question's."""
        path = self._path(number)
        if not path.exists():
            return None
        try:
            data = path.read_bytes()
            header = json.loads(_header(data))
            arrays: dict[str, Floats] = {k: np.array(v) for k, v in load(data).items()}
            limits = {name: Limit(*pair) for name, pair in json.loads(header["limits"]).items()}
            if header["question"] != question:
                raise ConfigurationError(
                    f"run {self.run}: total {number} on disk answers another question; "
                    "start a new run with --fresh"
                )
            return Sums(arrays, limits, int(header["rows"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            raise ConfigurationError(
                f"{path}: is damaged; remove it and all later totals, or start anew with --fresh"
            ) from None

    def commit(self, number: int, question: str, total: Sums) -> None:
        """Keep a total, on disk when this returns."""
        limits = {name: [x.bound, x.resolution] for name, x in total.limits.items()}
        header = {"question": question, "rows": str(total.rows), "limits": json.dumps(limits)}
        arrays = {name: np.ascontiguousarray(array) for name, array in total.arrays.items()}
        write_whole(self._path(number), save(arrays, header), 0o600)
        self.totals = max(self.totals, number)

    def leave(self, party: str, reason: str) -> None:
        """Note that the run continues without a party."""
        self.absent[party] = reason
        self._note(absent=self.absent)

    def end(self) -> None:
        """The run is over and is not taken up again."""
        self._note(end=datetime.now(UTC).isoformat(timespec="seconds"))

    def close(self) -> None:
        os.close(self._lock)

    def _note(self, **changes: Any) -> None:
        place = self.folder / RUN
        write_whole(place, canonical(read_json(place) | changes), 0o600)

    def _path(self, number: int) -> Path:
        return self.folder / TOTALS / f"{number:06d}.sums"


def _header(data: bytes) -> str:
    """The texts beside the arrays of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8 : 8 + size])["__metadata__"])


def question_of(statistic: str, digest: bytes) -> str:
    """The name of a question in a resumable run; it does not depend on who is asked."""
    if not digest:
        raise PeerError(f"{statistic}: a question without a digest")
    return f"{statistic} {digest.hex()}"
