"""A run on the coordinator's disk, so that it can be resumed: who is in it, and what was opened."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from federated.deployment.totals import TotalsOnDisk
from lab.errors import ConfigurationError
from lab.files import canonical, read_json, write_whole

RUN, TOTALS = "run.json", "totals"


class ResumableRun:
    """One run's folder. ``plan``: its digest; ``attempt``: how often it was taken up; ``totals``:
    those it has."""

    def __init__(
        self, folder: Path, run: str, plan: str, attempt: int, absent: Mapping[str, str]
    ) -> None:
        self.folder, self.run, self.plan = folder, run, plan
        self.attempt, self.absent = attempt, dict(absent)
        self.totals = TotalsOnDisk(folder / TOTALS)
        self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigurationError(f"run {run}: another process is running it") from None

    @classmethod
    def take_up(cls, folder: Path, plan: str, charter: str, fresh: bool = False) -> Self:
        """The unfinished run of this plan under this charter, or a new one.

        plan: its digest. Raises :class:`ConfigurationError` where the folder cannot be used.
        """
        for place in [] if fresh else sorted(folder.glob(f"*/{RUN}"), reverse=True):
            record = read_json(place)
            of = record.get("plan"), record.get("charter"), record.get("end")
            if of == (plan, charter, ""):
                record["attempt"] = int(record["attempt"]) + 1
                write_whole(place, canonical(record), 0o600)
                run, attempt, absent = str(record["run"]), record["attempt"], record["absent"]
                return cls(place.parent, run, plan, attempt, absent)
        run = secrets.token_hex(8)
        place = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{run}"
        (place / TOTALS).mkdir(mode=0o700, parents=True)
        record = {
            "run": run,
            "plan": plan,
            "charter": charter,
            "attempt": 0,
            "absent": {},
            "end": "",
        }
        write_whole(place / RUN, canonical(record), 0o600)
        return cls(place, run, plan, 0, {})

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
