"""Opened totals on disk, in the order of a run's questions, so that its solver can be taken up again.

A solver is a function of the totals it gets. A process that was killed starts the same solver again
and gives it the totals on disk, each checked to be of the same question, until they are used up.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from flwr.app import RecordDict
from safetensors import SafetensorError
from safetensors.numpy import load, save

from federated.transport.node_line import packed, unpacked
from lab.errors import ConfigurationError, PeerError
from lab.files import write_whole
from lab.sums import Floats, Limit, Sums


class TotalsOnDisk:
    """The totals of one run, by the number of their question; the folder is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __len__(self) -> int:
        return len(list(self._folder.glob("*.sums")))

    def read(self, number: int, question: str) -> Sums | None:
        """A total that was opened before, None where it was not.

        Raises :class:`ConfigurationError` for another question's.
        """
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
                    f"{path}: answers another question; start a new run with --fresh"
                )
            return Sums(arrays, limits, int(header["rows"]))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            raise ConfigurationError(
                f"{path}: is damaged; remove it and all later totals, or start anew with --fresh"
            ) from None

    def proof(self, number: int) -> RecordDict:
        """What shows a total to others. Raises :class:`ConfigurationError` where it is damaged."""
        path = self._path(number).with_suffix(".proof")
        try:
            return unpacked(path.read_bytes())
        except (OSError, PeerError):
            raise ConfigurationError(f"{path}: is damaged; start anew with --fresh") from None

    def write(
        self, number: int, question: str, total: Sums, proof: RecordDict | None = None
    ) -> None:
        """Keep a total, and what shows it to others, on disk when this returns."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        limits = {name: [x.bound, x.resolution] for name, x in total.limits.items()}
        header = {"question": question, "rows": str(total.rows), "limits": json.dumps(limits)}
        arrays = {name: np.ascontiguousarray(array) for name, array in total.arrays.items()}
        if proof is not None:
            write_whole(self._path(number).with_suffix(".proof"), packed(proof), 0o600)
        write_whole(self._path(number), save(arrays, header), 0o600)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.sums"


def _header(data: bytes) -> str:
    """The texts beside the arrays of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8 : 8 + size])["__metadata__"])
