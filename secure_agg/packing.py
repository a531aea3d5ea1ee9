"""Many fixed-point numbers in one Paillier plaintext.

A party's value x becomes the integer round(x / resolution), shifted by an offset so that it is
never negative. The integers stand side by side in slots wide enough for the sum of all parties,
so that adding two plaintexts adds every slot and no slot ever carries into its neighbour:

    plaintext = count | slot 0 | slot 1 | ...            (least significant bits first)

`count` is 1 in every contribution. In a total it tells how many were added, and an opened total
whose count is not the one expected is refused.

Packing of this kind for additively homomorphic sums: Ge and Zdonik, "Answering aggregation
queries in a secure system model", VLDB 2007.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import gmpy2
import numpy as np
import numpy.typing as npt

from secure_agg.errors import InconsistentSum, InvalidLayout, LayoutMismatch, ValueOutOfBounds

FORMAT = "secure_agg.layout/1"
SMALLEST_KEY_BITS = 2048
BEYOND_EXACT = 2**53  # every integer below is a float64, some above are not
NARROW_BITS = 62  # slots up to this width are computed in int64


@dataclass(frozen=True)
class Field:
    """A run of values with one public fixed-point format.

    size: how many values, 1 to 2**32 - 1
    bound: largest |value| one party may contribute, finite and above 0
    resolution: spacing of the fixed-point grid, a power of two (1.0 for counts)

    Raises InvalidLayout.
    """

    size: int
    bound: float
    resolution: float

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 1 <= self.size < 2**32:
            raise InvalidLayout(f"Field.size must be 1 to 2**32 - 1, got {self.size!r}")
        for name in ("bound", "resolution"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
                raise InvalidLayout(f"Field.{name} must be a number, got {type(value).__name__}")
            try:
                object.__setattr__(self, name, float(value))
            except OverflowError:
                raise InvalidLayout(f"Field.{name} must fit in a float64") from None
            if not (math.isfinite(getattr(self, name)) and value > 0):
                raise InvalidLayout(f"Field.{name} must be finite and above 0, got {value!r}")
        if math.frexp(self.resolution)[0] != 0.5:
            raise InvalidLayout(
                f"Field.resolution must be a power of two, got {self.resolution!r}; "
                f"take 2.0**{math.floor(math.log2(self.resolution))}"
            )
        if self.limit < 1:
            raise InvalidLayout(
                f"Field.resolution {self.resolution!r} is too coarse for bound {self.bound!r}: "
                "every value would become 0"
            )

    @property
    def shift(self) -> int:
        """s, where resolution = 2**-s."""
        return 1 - math.frexp(self.resolution)[1]

    @property
    def limit(self) -> int:
        """Largest |integer| that one party's value can become."""
        return round(Fraction(self.bound) / Fraction(self.resolution))


@dataclass(frozen=True)
class Run:
    """The part of one plaintext that holds values start..stop of one field, in order."""

    field: int
    start: int
    stop: int
    offset_bits: int


@dataclass(frozen=True)
class Layout:
    """How a batch is packed: public, and agreed before anybody encrypts.

    fields: the runs of values, in the order in which arrays are given and returned
    parties: at most this many contributions may be added
    key_bits: bits of the Paillier modulus n

    A slot never straddles two plaintexts; a field may start in the middle of one. Two layouts
    are equal exactly when their digests are. Raises InvalidLayout.
    """

    fields: tuple[Field, ...]
    parties: int
    key_bits: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        if not self.fields or not all(isinstance(field, Field) for field in self.fields):
            raise InvalidLayout("Layout.fields must be one Field or more")
        if type(self.parties) is not int or not 1 <= self.parties < 2**32:
            raise InvalidLayout(f"Layout.parties must be 1 to 2**32 - 1, got {self.parties!r}")
        if type(self.key_bits) is not int or self.key_bits < SMALLEST_KEY_BITS:
            raise InvalidLayout(
                f"Layout.key_bits must be at least {SMALLEST_KEY_BITS}, got {self.key_bits!r}"
            )
        for index, width in enumerate(self.widths):
            if self.count_bits + width > self.plaintext_bits:
                raise InvalidLayout(
                    f"field {index} needs slots of {width} bits, but a key of {self.key_bits} "
                    f"bits leaves {self.plaintext_bits - self.count_bits}; "
                    "lower the bound or coarsen the resolution"
                )

    @property
    def plaintext_bits(self) -> int:
        """Bits that are below n whatever n is."""
        return self.key_bits - 1

    @property
    def count_bits(self) -> int:
        """Bits of the count of contributions at the bottom of every plaintext."""
        return self.parties.bit_length()

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Bits of a slot of each field: enough for the offset sum 0..2 * parties * limit."""
        return tuple(slot_bits(field, self.parties) for field in self.fields)

    @cached_property
    def plaintexts(self) -> int:
        """How many plaintexts (and ciphertexts) one batch has."""
        count, free = 1, self.plaintext_bits - self.count_bits
        room = free
        for field, width in zip(self.fields, self.widths, strict=True):
            rest = field.size - min(field.size, free // width)
            if rest == 0:
                free -= field.size * width
                continue
            per_plaintext = room // width
            more = -(-rest // per_plaintext)
            count += more
            free = room - (rest - (more - 1) * per_plaintext) * width
        return count

    def runs(self) -> Iterator[list[Run]]:
        """For each plaintext in order, the runs of values that it holds."""
        current: list[Run] = []
        at = self.count_bits
        for index, (field, width) in enumerate(zip(self.fields, self.widths, strict=True)):
            start = 0
            while start < field.size:
                fit = min((self.plaintext_bits - at) // width, field.size - start)
                if fit == 0:
                    yield current
                    current, at = [], self.count_bits
                    continue
                current.append(Run(index, start, start + fit, at))
                start, at = start + fit, at + fit * width
        yield current

    def to_dict(self) -> dict[str, Any]:
        """This layout as a JSON-able dict; floats are hexadecimal, hence exact."""
        return {
            "format": FORMAT,
            "key_bits": self.key_bits,
            "parties": self.parties,
            "fields": [
                {"size": f.size, "bound": f.bound.hex(), "resolution": f.resolution.hex()}
                for f in self.fields
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Layout:
        """The layout that `to_dict` wrote. Raises InvalidLayout on anything else."""
        keys, field_keys = (
            {"format", "key_bits", "parties", "fields"},
            {"size", "bound", "resolution"},
        )
        if not isinstance(data, Mapping) or set(data) != keys or data["format"] != FORMAT:
            raise InvalidLayout(f"a layout is a dict of {sorted(keys)} with format {FORMAT!r}")
        if not isinstance(data["fields"], list):
            raise InvalidLayout("a layout's fields must be a list")
        fields = []
        for index, field in enumerate(data["fields"]):
            if not isinstance(field, Mapping) or set(field) != field_keys:
                raise InvalidLayout(f"layout field {index} must be a dict of {sorted(field_keys)}")
            try:
                bound, resolution = (float.fromhex(field[k]) for k in ("bound", "resolution"))
            except (TypeError, ValueError, OverflowError):
                raise InvalidLayout(
                    f"layout field {index}: bound and resolution must be hexadecimal floats"
                ) from None
            fields.append(Field(field["size"], bound, resolution))
        layout = cls(tuple(fields), data["parties"], data["key_bits"])
        if layout.to_dict() != data:
            raise InvalidLayout(
                "a layout's bound and resolution must be written as float.hex writes them"
            )
        return layout

    def digest(self) -> str:
        """SHA-256 of the canonical JSON form, 64 hexadecimal digits."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def slot_bits(field: Field, parties: int) -> int:
    """Bits of the sum of `parties` values of a field, sign included. Raises InvalidLayout."""
    if 2 * parties * max(Fraction(field.limit), Fraction(field.bound)) >= 2**1023:
        raise InvalidLayout(f"a sum of {parties} contributions would not fit in a float64")
    return (2 * parties * field.limit).bit_length()


def scaled(values: npt.NDArray[np.float64], shift: int) -> npt.NDArray[np.float64]:
    """values * 2**shift, as `numpy.ldexp` has it, and much faster where a float holds 2**shift."""
    return values * 2.0**shift if abs(shift) < 1000 else np.ldexp(values, shift)


def checked(
    fields: Sequence[Field], arrays: Sequence[npt.ArrayLike]
) -> list[npt.NDArray[np.float64]]:
    """One float64 array for each field, every value finite and within the field's bound.

    Integers that have no exact float64 are refused rather than rounded.
    Raises LayoutMismatch (number or shape of arrays) and ValueOutOfBounds (a value).
    """
    if len(arrays) != len(fields):
        raise LayoutMismatch(f"the layout has {len(fields)} fields, got {len(arrays)} arrays")
    result = []
    for index, (field, entry) in enumerate(zip(fields, arrays, strict=True)):
        array = np.asarray(entry)
        if array.shape != (field.size,):
            raise LayoutMismatch(f"field {index} takes shape ({field.size},), got {array.shape}")
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise LayoutMismatch(
                f"field {index} takes booleans, integers or floats up to 64 bits, got {array.dtype}"
            )
        values = array.astype(np.float64, copy=False)
        inside = np.abs(values) <= field.bound
        if array.dtype.kind in "iu":
            inside &= np.abs(values) < BEYOND_EXACT
        if not inside.all():
            raise ValueOutOfBounds(
                f"field {index}: a value is not finite, exceeds the bound {field.bound!r}, or is "
                "an integer without an exact float64; nothing was hidden and nothing leaves. "
                "Check the data or agree on a wider bound"
            )
        result.append(values)
    return result


def packed(layout: Layout, values: Sequence[npt.NDArray[np.float64]]) -> Iterator[gmpy2.mpz]:
    """The plaintexts of one contribution, one at a time; `values` are `checked` ones."""
    limits = [field.limit for field in layout.fields]
    for runs in layout.runs():
        plaintext = gmpy2.mpz(1)
        for run in runs:
            field, width, limit = (
                layout.fields[run.field],
                layout.widths[run.field],
                limits[run.field],
            )
            grid = np.rint(scaled(values[run.field][run.start : run.stop], field.shift))
            if width <= NARROW_BITS:
                slots = (grid.astype(np.int64) + limit).tolist()
            else:
                slots = [int(point) + limit for point in grid.tolist()]
            plaintext |= gmpy2.pack(slots, width) << run.offset_bits
        yield plaintext


def pack(layout: Layout, arrays: Sequence[npt.ArrayLike]) -> list[gmpy2.mpz]:
    """One party's arrays as `layout.plaintexts` integers, each 0 <= m < 2**(key_bits - 1).

    arrays: one for each field, shape (size,); a value is rounded to the nearest grid point,
    half to even, and is exact where it lies on the grid.
    Raises LayoutMismatch and ValueOutOfBounds; nothing is clipped and nothing wraps.
    """
    return list(packed(layout, checked(layout.fields, arrays)))


def unpack(
    layout: Layout, plaintexts: Iterable[int | gmpy2.mpz], contributions: int
) -> list[npt.NDArray[np.float64]]:
    """The sums that `contributions` added plaintexts hold, one float64 array for each field.

    Sums are exact integers until the last step, which rounds once to the nearest float64.
    Raises InconsistentSum where the plaintexts can't come from that many contributions: another
    count inside, a slot beyond what its bound allows, or a bit outside every slot.
    """
    if type(contributions) is not int or not 1 <= contributions <= layout.parties:
        raise LayoutMismatch(
            f"contributions must be 1 to {layout.parties} under this layout, got {contributions!r}"
        )
    totals = [np.empty(field.size, dtype=np.float64) for field in layout.fields]
    offsets = [contributions * field.limit for field in layout.fields]
    remaining = iter(plaintexts)
    for number, runs in enumerate(layout.runs()):
        try:
            plaintext = gmpy2.mpz(next(remaining))
        except StopIteration:
            raise LayoutMismatch(
                f"the layout has {layout.plaintexts} plaintexts, got {number}"
            ) from None
        end = layout.count_bits
        if gmpy2.f_mod_2exp(plaintext, end) != contributions:
            raise InconsistentSum(
                f"plaintext {number} was not made by adding {contributions} contributions "
                "of this layout; ask who added which batches"
            )
        for run in runs:
            sums = run_sums(layout, run, plaintext, contributions, offsets[run.field])
            totals[run.field][run.start : run.stop] = sums
            end = run.offset_bits + (run.stop - run.start) * layout.widths[run.field]
        if plaintext >> end:
            raise InconsistentSum(
                f"plaintext {number} has bits outside every slot; a party left the layout"
            )
    if next(remaining, None) is not None:
        raise LayoutMismatch(f"the layout has {layout.plaintexts} plaintexts, got more")
    return totals


def run_sums(
    layout: Layout, run: Run, plaintext: gmpy2.mpz, contributions: int, offset: int
) -> npt.NDArray[np.float64]:
    """The sums that a run of an opened plaintext holds, shape (stop - start,).

    offset: what `contributions` parties together added to each value of this field.
    Raises InconsistentSum for a slot beyond what its bound allows.
    """
    field, width, size = layout.fields[run.field], layout.widths[run.field], run.stop - run.start
    part = gmpy2.f_mod_2exp(plaintext >> run.offset_bits, size * width)
    slots = list(map(int, gmpy2.unpack(part, width)))
    slots += [0] * (size - len(slots))
    if max(slots) > 2 * offset:
        raise InconsistentSum(
            f"field {run.field}: an opened sum is beyond what {contributions} values "
            f"within the bound {field.bound!r} can reach; a party left the layout"
        )
    if width <= NARROW_BITS:
        sums = (np.array(slots, dtype=np.int64) - offset).astype(np.float64)
    else:
        sums = np.array([float(slot - offset) for slot in slots])
    return scaled(sums, -field.shift)
