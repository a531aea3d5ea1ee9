"""What is said between the coordinator and a node, as Flower records.

A request: the statistic's name, its arguments (JSON for plain values, arrays beside them), how
the answer must be hidden. A reply: either sums in the clear, or one batch of ciphertexts with
their public layout, or a typed refusal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from lab.errors import TRAVELLING, LabError, PeerError
from lab.sums import Floats, Limit, Sums

Hiding = Literal["clear", "paillier"]


@dataclass(frozen=True)
class Request:
    """One question to every node. ``query`` is new for each question of a run."""

    query: str
    statistic: str
    arguments: Mapping[str, Any]
    arrays: Mapping[str, Floats]
    hiding: Hiding = "clear"
    public_key: str = ""  # Paillier modulus, hexadecimal
    parties: int = 1

    def to_record(self) -> RecordDict:
        header = ConfigRecord(
            {
                "query": self.query,
                "statistic": self.statistic,
                "arguments": json.dumps(self.arguments, allow_nan=False),
                "hiding": self.hiding,
                "public_key": self.public_key,
                "parties": self.parties,
            }
        )
        return RecordDict({"request": header, "arrays": to_arrays(self.arrays)})

    @classmethod
    def from_record(cls, record: RecordDict) -> Request:
        try:
            header = record.config_records["request"]
            hiding = str(header["hiding"])
            if hiding not in ("clear", "paillier"):
                raise PeerError(f"request: hiding must be clear or paillier, got {hiding!r}")
            return cls(
                query=str(header["query"]),
                statistic=str(header["statistic"]),
                arguments=json.loads(str(header["arguments"])),
                arrays=from_arrays(record.array_records["arrays"]),
                hiding="paillier" if hiding == "paillier" else "clear",
                public_key=str(header["public_key"]),
                parties=int(header["parties"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise PeerError(f"request: not readable: {error}") from None


@dataclass(frozen=True)
class Reply:
    """A node's contribution: its form is public, its values are in ``clear`` or in ``sealed``."""

    party: str
    rows: int
    form: Mapping[str, tuple[tuple[int, ...], Limit]]
    clear: Mapping[str, Floats] | None = None
    sealed: bytes | None = None

    def to_record(self) -> RecordDict:
        form = {name: [list(s), x.bound, x.resolution] for name, (s, x) in self.form.items()}
        header = ConfigRecord({"party": self.party, "rows": self.rows, "form": json.dumps(form)})
        if self.sealed is not None:
            body = Array("bytes", (len(self.sealed),), "lab.paillier.batch.1", self.sealed)
            return RecordDict({"reply": header, "sealed": ArrayRecord({"batch": body})})
        return RecordDict({"reply": header, "clear": to_arrays(self.clear or {})})

    @classmethod
    def from_record(cls, record: RecordDict) -> Reply:
        try:
            header = record.config_records["reply"]
            form = {
                name: (tuple(shape), Limit(bound, resolution))
                for name, (shape, bound, resolution) in json.loads(str(header["form"])).items()
            }
            sealed = record.array_records.get("sealed")
            clear = record.array_records.get("clear")
            reply = cls(
                party=str(header["party"]),
                rows=int(header["rows"]),
                form=form,
                clear=from_arrays(clear) if clear is not None else None,
                sealed=sealed["batch"].data if sealed is not None else None,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise PeerError(f"reply: not readable: {error}") from None
        if reply.clear is not None and {n: a.shape for n, a in reply.clear.items()} != {
            n: shape for n, (shape, _) in form.items()
        }:
            raise PeerError(f"{reply.party}: arrays do not have the form the reply declares")
        return reply

    @classmethod
    def of(cls, party: str, sums: Sums, sealed: bytes | None) -> Reply:
        form = {name: (sums[name].shape, sums.limits[name]) for name in sorted(sums.arrays)}
        clear = dict(sums.arrays) if sealed is None else None
        return cls(party, sums.rows, form, clear, sealed)


def refuse(error: LabError, party: str) -> RecordDict:
    """A typed refusal; the text is made for people outside the party and shows none of its values."""
    kind = type(error).__name__ if type(error).__name__ in TRAVELLING else "PeerError"
    text = str(error).splitlines()[0]
    return RecordDict({"refusal": ConfigRecord({"kind": kind, "text": text, "party": party})})


def refusal(record: RecordDict) -> LabError:
    """The error a refusal stands for, with the party named."""
    header = record.config_records["refusal"]
    kind = TRAVELLING.get(str(header["kind"]), PeerError)
    return kind(f"{header['party']}: {header['text']}")


def to_arrays(arrays: Mapping[str, Floats]) -> ArrayRecord:
    """Arrays as raw little-endian float64; nothing that needs unpickling travels."""
    return ArrayRecord(
        {
            name: Array(
                "float64", a.shape, "lab.float64.1", np.ascontiguousarray(a, "<f8").tobytes()
            )
            for name, a in arrays.items()
        }
    )


def from_arrays(record: ArrayRecord) -> dict[str, Floats]:
    arrays: dict[str, Floats] = {}
    for name, array in record.items():
        if array.stype != "lab.float64.1":
            raise PeerError(f"array '{name}': unknown encoding {array.stype!r}")
        arrays[name] = np.frombuffer(array.data, "<f8").reshape(tuple(array.shape)).copy()
    return arrays
