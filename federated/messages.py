"""What is said between the coordinator and a node, as Flower records.

A request: the statistic's name, its arguments (JSON for plain values, arrays beside them), how
the answer must be hidden and among whom. A reply: sums in the clear or hidden, with their public
form, or a typed refusal. Whatever else travels is bytes with a name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, cast, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from lab.errors import TRAVELLING, LabError, ModelError, PeerError
from lab.statistics import text_of
from lab.sums import COUNT, FLAG, Floats, Limit, Sums
from lab.text import printable

Hiding = Literal["clear", "paillier", "masks"]
#: Rows that no party has.
MOST_ROWS = 2**40
#: Shape and format of each array of a contribution; public, and the same for every party.
Form = Mapping[str, tuple[tuple[int, ...], Limit]]
#: What reading a stranger's message may end in.
UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, RecursionError, OverflowError)


@dataclass(frozen=True)
class Request:
    """One question to every node.

    ``query`` is new for each question of a run; ``parties`` are all who are asked, in seat order;
    ``charter`` is the digest of what real parties agreed on, empty in a simulation. ``step``: the
    place in the plan whose question this is, with the ``signature`` of whoever arrived at it; 0 for
    a question that stands in no plan.
    """

    query: str
    statistic: str
    arguments: Mapping[str, Any]
    arrays: Mapping[str, Floats]
    hiding: Hiding = "clear"
    parties: tuple[str, ...] = ()
    charter: str = ""
    step: int = 0
    signature: bytes = b""

    @cached_property
    def text(self) -> str:
        """The arguments as text, in the one form in which they are signed and sent."""
        return text_of(self.arguments)

    @cached_property
    def question(self) -> bytes:
        """SHA-256 of what is asked; parties sign it, so that all were asked the same."""
        names = json.dumps([self.statistic, self.charter])
        digest = hashlib.sha256(f"{names} {self.text}".encode())
        for name in sorted(self.arrays):
            array = np.ascontiguousarray(self.arrays[name], "<f8")
            digest.update(json.dumps([name, array.shape]).encode())
            digest.update(array.data)
        return digest.digest()

    def to_record(self) -> RecordDict:
        header = ConfigRecord(
            {
                "query": self.query,
                "statistic": self.statistic,
                "arguments": self.text,
                "hiding": self.hiding,
                "parties": "\n".join(self.parties),
                "charter": self.charter,
                "step": self.step,
                "signature": self.signature,
            }
        )
        return RecordDict({"request": header, "arrays": to_arrays(self.arrays)})

    @classmethod
    def from_record(cls, record: RecordDict) -> Request:
        try:
            header = cast(ConfigRecord, record["request"])
            hiding = str(header["hiding"])
            if hiding not in get_args(Hiding):
                choices = ", ".join(get_args(Hiding))
                raise PeerError(f"request: hiding must be one of {choices}, got {hiding!r}")
            parties, (arguments, text) = (
                str(header["parties"]),
                _arguments(str(header["arguments"])),
            )
            signature = header["signature"]
            names = [str(header[name]) for name in ("query", "statistic", "charter")]
            if not all(map(str.isprintable, [*names, parties.replace("\n", "")])):
                raise PeerError("request: its names must be printable")
            if not isinstance(signature, bytes):
                raise PeerError("request: its signature must be bytes")
            request = cls(
                query=str(header["query"]),
                statistic=str(header["statistic"]),
                arguments=arguments,
                arrays=from_arrays(cast(ArrayRecord, record["arrays"])),
                hiding=cast(Hiding, hiding),
                parties=tuple(parties.split("\n")) if parties else (),
                charter=str(header["charter"]),
                step=int(str(header["step"])),
                signature=signature,
            )
            vars(request)["text"] = text  # what the property would find
            return request
        except UNREADABLE as error:
            raise PeerError(f"request: not readable: {type(error).__name__}") from None


@lru_cache(8)
def _arguments(received: str) -> tuple[Mapping[str, Any], str]:
    """The arguments in a text that came, and that text in its one form; parties in one process, who
    are sent the same, parse it once."""
    arguments = json.loads(received)
    if not isinstance(arguments, dict):
        raise PeerError("request: arguments must be an object")
    return arguments, text_of(arguments)


@dataclass(frozen=True)
class Reply:
    """A node's contribution: its form is public, its values are in ``clear`` or in ``hidden``.

    ``rows``: how many are behind the sums, 0 where they are hidden: their number is in the sum then
    """

    party: str
    rows: int
    form: Form
    clear: Mapping[str, Floats] | None = None
    hidden: bytes | None = None

    def to_record(self) -> RecordDict:
        form = form_to_json(self.form)
        header = ConfigRecord({"party": self.party, "rows": self.rows, "form": form})
        if self.hidden is None:
            arrays = [self.clear[name].ravel() for name in self.form] if self.clear else []
            body = to_arrays({"sums": np.concatenate([np.zeros(0), *arrays])})
        else:
            body = blobs(hidden=self.hidden)
        return RecordDict({"reply": header, "body": body})

    @classmethod
    def from_record(cls, record: RecordDict) -> Reply:
        try:
            header = cast(ConfigRecord, record["reply"])
            body = cast(ArrayRecord, record["body"])
            form, party = form_from_json(str(header["form"])), printable(str(header["party"]))
            hidden = any(array.stype == BYTES for array in body.values())
            reply = cls(
                party=party,
                rows=int(header["rows"]),
                form=form,
                clear=None if hidden else _in_form(from_arrays(body)["sums"], form),
                hidden=unblob(body, "hidden") if hidden else None,
            )
        except UNREADABLE as error:
            raise PeerError(f"reply: not readable: {type(error).__name__}") from None
        if not 0 <= reply.rows <= MOST_ROWS:
            raise PeerError(f"{reply.party}: rows must be 0 to {MOST_ROWS:,}")
        return reply

    @property
    def sums(self) -> Sums:
        """The sums of a reply in the clear."""
        limits = {name: limit for name, (_, limit) in self.form.items()}
        return Sums(self.clear or {}, limits if self.clear else {}, self.rows)

    @classmethod
    def of(cls, party: str, sums: Sums, hidden: bytes | None) -> Reply:
        clear = dict(sums.arrays) if hidden is None else None
        return cls(party, sums.rows, form_of(sums), clear, hidden)


def _in_form(numbers: Floats, form: Form) -> dict[str, Floats]:
    """Numbers one array after the other, in the shapes of a form. Raises :class:`PeerError`."""
    sizes = [int(np.prod(shape, dtype=object)) for shape, _ in form.values()]
    if min(sizes, default=0) < 0 or sum(sizes) != len(numbers):
        raise PeerError("reply: its sums do not have the form that it declares")
    parts = np.split(numbers, np.cumsum(sizes)[:-1])
    return {n: p.reshape(s) for (n, (s, _)), p in zip(form.items(), parts, strict=bool(sizes))}


def form_to_json(form: Form) -> str:
    """A form as text: shape, bound and resolution of each array."""
    return json.dumps({name: [list(s), x.bound, x.resolution] for name, (s, x) in form.items()})


@lru_cache(8)
def form_from_json(text: str) -> Form:
    """The form that `form_to_json` wrote. Raises :class:`PeerError`."""
    try:
        return {
            name: (tuple(map(int, shape)), Limit(float(bound), float(resolution)))
            for name, (shape, bound, resolution) in json.loads(text).items()
        }
    except UNREADABLE:
        raise PeerError("the form of sums is not readable") from None


def form_of(sums: Sums) -> Form:
    """The public form of sums, in the order in which they are packed."""
    return {name: (sums[name].shape, sums.limits[name]) for name in sorted(sums.arrays)}


def one_form(replies: Mapping[str, Reply]) -> Form:
    """The form that all replies have; all of them are hidden. Raises :class:`PeerError`."""
    for name, reply in replies.items():
        if reply.hidden is None:
            raise PeerError(
                f"{name}: answered in the clear where a hidden answer was asked for", name
            )
    form = agreed_form(replies)
    if not CARRIED.keys() <= form.keys():
        raise PeerError("all parties: their sums do not carry the rows behind them")
    return form


def agreed_form(replies: Mapping[str, Reply]) -> Form:
    """The form of more than half of the replies. Raises :class:`PeerError` that blames the others."""
    for form in (reply.form for reply in replies.values()):
        others = [name for name, reply in replies.items() if reply.form != form]
        if not others:
            return form
        if 2 * len(others) < len(replies):
            raise PeerError(f"{', '.join(others)}: sums of another form than the others'", *others)
    raise PeerError("the parties' sums are of different forms; no form is that of more than half")


#: The arrays in which the number of rows travels where sums are hidden, and whether a party's sums
#: are beyond their bounds: whoever refused would tell it of itself.
ROWS, BEYOND = "rows behind", "sums beyond their bounds"
CARRIED = {ROWS: COUNT, BEYOND: FLAG}


def with_rows(sums: Sums) -> Sums:
    """Sums that carry what is to be hidden with them; those beyond a bound are 0, and say so."""
    beyond = any(np.abs(a).max(initial=0.0) > sums.limits[k].bound for k, a in sums.arrays.items())
    arrays = {k: np.zeros_like(a) if beyond else a for k, a in sums.arrays.items()}
    carried = {ROWS: np.array([float(sums.rows)]), BEYOND: np.array([float(beyond)])}
    return Sums({**arrays, **carried}, {**sums.limits, **CARRIED}, 0)


def opened(form: Form, arrays: list[Floats]) -> Sums:
    """The total of sums `with_rows`, in the shapes of its form.

    Raises :class:`ModelError` where a party's are beyond their bounds; nobody can tell whose.
    """
    shaped = {
        name: array.reshape(shape)
        for (name, (shape, _)), array in zip(form.items(), arrays, strict=True)
    }
    if shaped[BEYOND].any():
        raise ModelError(
            "some party's sums are beyond the bounds that follow from all rows, and nobody can tell "
            "whose: cap the values that are far larger than all others, or give them in another unit"
        )
    limits = {name: limit for name, (_, limit) in form.items() if name not in CARRIED}
    return Sums({name: shaped[name] for name in limits}, limits, round(float(shaped[ROWS][0])))


#: The name of a rule, as somebody else sends it.
LONGEST_RULE = 40


def refuse(error: LabError, party: str) -> RecordDict:
    """A typed refusal; the text is made for people outside the party and shows none of its values."""
    names = (kind.__name__ for kind in type(error).__mro__)
    kind = next((name for name in names if name in TRAVELLING), "PeerError")
    record = ConfigRecord(
        {"kind": kind, "rule": error.rule, "text": str(error).splitlines()[0], "party": party}
    )
    record["culprits"] = list(error.culprits) if isinstance(error, PeerError) else []
    return RecordDict({"refusal": record})


def refusal(record: RecordDict) -> LabError:
    """The error a refusal stands for, with the party named, the rule it refused by, and whom it
    blames: whether to believe that is for whoever reads it."""
    fields = dict(record.config_records["refusal"])
    culprits = fields.pop("culprits", [])
    header = {"kind": "", "party": "?", "text": "?", "rule": "gate"}
    header |= {key: printable(str(value)) for key, value in fields.items()}
    error = TRAVELLING.get(header["kind"], PeerError)(f"{header['party']}: {header['text']}")
    error.rule = header["rule"][:LONGEST_RULE]
    if isinstance(error, PeerError) and isinstance(culprits, list):
        error.culprits = tuple(map(str, culprits))
    return error


#: Type tags of arrays; nothing that needs unpickling travels.
FLOATS, BYTES = "lab.float64.1", "lab.bytes.1"


def to_arrays(arrays: Mapping[str, Floats]) -> ArrayRecord:
    """Arrays as raw little-endian float64."""
    return ArrayRecord(
        {
            name: Array("float64", a.shape, FLOATS, np.ascontiguousarray(a, "<f8").tobytes())
            for name, a in arrays.items()
        }
    )


def from_arrays(record: ArrayRecord) -> dict[str, Floats]:
    arrays: dict[str, Floats] = {}
    for name, array in record.items():
        if array.stype != FLOATS:
            raise PeerError(f"array '{printable(name)}': unknown encoding {array.stype!r}")
        arrays[name] = np.frombuffer(array.data, "<f8").reshape(tuple(array.shape)).copy()
    return arrays


def blobs(**parts: bytes) -> ArrayRecord:
    """Bytes by name, in a record that Flower sends in pieces."""
    return ArrayRecord({k: Array("bytes", (len(v),), BYTES, v) for k, v in parts.items()})


def unblob(record: ArrayRecord, name: str) -> bytes:
    """One of `blobs`. Raises :class:`PeerError`."""
    if name not in record or record[name].stype != BYTES:
        raise PeerError(f"a message lacks its '{name}'")
    return bytes(record[name].data)


def message_of(**parts: bytes) -> RecordDict:
    """A message of bytes by name, for the steps of a protocol."""
    return RecordDict({"message": blobs(**parts)})


def read(message: RecordDict, name: str) -> bytes:
    """One part of a message. Raises :class:`PeerError`."""
    if "message" not in message.array_records:
        raise PeerError(f"a message lacks its '{name}'")
    return unblob(message.array_records["message"], name)
