"""Numbers modulo 2**255 - 19, eight side by side: code for vector units, written through llvmlite.

A number has ten limbs of 26 and 25 bits in turn. `Residues.weight` bounds them, as a multiple of
2**26 or 2**25, while the code is written: where a sum would be too large for a product it is carried
first, so nothing can overflow 64 bits. Nothing branches, and no address depends, on a value.

Code is the same for every machine; LLVM makes of eight numbers side by side what the machine has:
vectors of 512, 256 or 128 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

from llvmlite import ir

P = 2**255 - 19
WIDTH, LIMBS = 8, 10
BITS = [26 - limb % 2 for limb in range(LIMBS)]
SHIFTS = [sum(BITS[:limb]) for limb in range(LIMBS)]
REDUCED, MOST = 1.01, 3.3  # weights: after a carry, and before a product

WORD, BYTE4 = ir.VectorType(ir.IntType(64), WIDTH), ir.VectorType(ir.IntType(32), WIDTH)
I32, I64, POINTER = ir.IntType(32), ir.IntType(64), ir.PointerType()


def limbs_of(number: int) -> list[int]:
    return [number >> shift & (1 << bits) - 1 for shift, bits in zip(SHIFTS, BITS, strict=True)]


def splat(number: int) -> Any:
    return ir.Constant(WORD, [number] * WIDTH)


class Residues:
    """Eight numbers modulo p in code that is being written: ten limbs, and a bound on them.

    scratch: where a call of `product` finds its factors; None where products are written out, which
        is faster to run and slower to compile
    """

    def __init__(self, code: Any, limbs: Iterable[Any], weight: float, scratch: Any = None) -> None:
        self.code, self.limbs, self.weight, self.scratch = code, list(limbs), weight, scratch

    def made(self, limbs: Iterable[Any], weight: float) -> Residues:
        return Residues(self.code, limbs, weight, self.scratch)

    def constant(self, number: int) -> Residues:
        return self.made(map(splat, limbs_of(number % P)), 1)

    def carried(self) -> Residues:
        """The same numbers with limbs of their size, where all are below 32 bits."""
        parts = [self._parted(limb, n) for limb, n in zip(self.limbs, BITS, strict=True)]
        over = [self._around(parts[-1][0]), *(part[0] for part in parts[:-1])]
        limbs = [self.code.add(kept, x) for (_, kept), x in zip(parts, over, strict=True)]
        return self.made(limbs, REDUCED)

    def _settled(self) -> Residues:
        """The same for limbs of up to 63 bits: one carry after another, along two chains."""
        limbs = list(self.limbs)
        for limb in (0, 4, 1, 5, 2, 6, 3, 7, 4, 8, 9, 0):
            over, limbs[limb] = self._parted(limbs[limb], BITS[limb])
            after = (limb + 1) % LIMBS
            limbs[after] = self.code.add(limbs[after], over if after else self._around(over))
        return self.made(limbs, REDUCED)

    def _parted(self, limb: Any, bits: int) -> tuple[Any, Any]:
        return self.code.lshr(limb, splat(bits)), self.code.and_(limb, splat((1 << bits) - 1))

    def _around(self, over: Any) -> Any:
        """What a carry out of the last limb is to the first, times 19: 2**255 = 19."""
        twice, times_16 = self.code.shl(over, splat(1)), self.code.shl(over, splat(4))
        return self.code.add(self.code.add(over, twice), times_16)

    def bounded(self) -> Residues:
        return self if self.weight <= MOST else self.carried()

    def __add__(self, other: Residues) -> Residues:
        limbs = [self.code.add(x, y) for x, y in zip(self.limbs, other.limbs, strict=True)]
        return self.made(limbs, self.weight + other.weight).bounded()

    def __sub__(self, other: Residues) -> Residues:
        """Plus a multiple of p whose every limb is above the other's."""
        times = ceil(other.weight / 0.99)
        spread = [times * ((1 << n) - 1) for n in BITS]
        spread[0] -= times * 18
        limbs = [
            self.code.sub(self.code.add(x, splat(extra)), y)
            for x, y, extra in zip(self.limbs, other.limbs, spread, strict=True)
        ]
        return self.made(limbs, self.weight + times).bounded()

    def __neg__(self) -> Residues:
        return self.constant(0) - self

    def __mul__(self, other: Residues) -> Residues:
        return self._product(other, lambda i, j: 1)

    def square(self) -> Residues:
        return self._product(self, lambda i, j: 0 if i > j else 1 if i == j else 2)

    def _product(self, other: Residues, times: Callable[[int, int], int]) -> Residues:
        """Limbs i and j meet in i + j, doubled where both have 25 bits, times 19 above the end."""
        if self.scratch is not None:
            return self._called(other)
        code, low = self.code, splat(2**32 - 1)
        if max(self.weight, other.weight) > MOST:
            raise AssertionError("limbs are too large to be multiplied")
        factors: dict[tuple[int, int, int], Any] = {}

        def scaled(side: int, limb: int, factor: int) -> Any:
            if (side, limb, factor) not in factors:
                value = code.and_((self, other)[side].limbs[limb], low)
                factors[side, limb, factor] = (
                    code.and_(code.mul(value, splat(factor)), low) if factor > 1 else value
                )
            return factors[side, limb, factor]

        sums: list[Any] = [None] * LIMBS
        for i in range(LIMBS):
            for j in range(LIMBS):
                if times(i, j):
                    one = scaled(0, i, times(i, j) * (1 + (i % 2) * (j % 2)))
                    term = code.mul(one, scaled(1, j, 19 if i + j >= LIMBS else 1))
                    at = (i + j) % LIMBS
                    sums[at] = term if sums[at] is None else code.add(sums[at], term)
        return self.made(sums, 0)._settled()

    def _called(self, other: Residues) -> Residues:
        store(self.code, self.scratch, self, other)
        result = place(self.code, self.scratch, 2)
        self.code.call(self.code.module.get_global("product"), [result, self.scratch])
        return load(self.code, result, 0, self.scratch)

    def canonical(self) -> list[Any]:
        """The limbs of the one number between 0 and p - 1."""
        code, limbs = self.code, self.carried().limbs
        over = splat(19)
        for x, n in zip(limbs, BITS, strict=True):
            over = code.lshr(code.add(x, over), splat(n))
        over, out = code.mul(over, splat(19)), []
        for x, n in zip(limbs, BITS, strict=True):
            total = code.add(x, over)
            out.append(code.and_(total, splat((1 << n) - 1)))
            over = code.lshr(total, splat(n))
        return out

    def is_negative(self) -> Any:
        return self.code.icmp_unsigned(
            "!=", self.code.and_(self.canonical()[0], splat(1)), splat(0)
        )

    def is_zero(self) -> Any:
        total = splat(0)
        for limb in self.canonical():
            total = self.code.or_(total, limb)
        return self.code.icmp_unsigned("==", total, splat(0))

    def where(self, mask: Any, other: Residues) -> Residues:
        """These where the mask is set, else the other's."""
        pairs = zip(self.limbs, other.limbs, strict=True)
        limbs = [self.code.select(mask, x, y) for x, y in pairs]
        return self.made(limbs, max(self.weight, other.weight))

    def absolute(self) -> Residues:
        return (-self).where(self.is_negative(), self).carried()


@contextmanager
def function(module: Any, name: str, *arguments: Any) -> Iterator[tuple[Any, Any]]:
    """Code of a new function without a result, and its arguments."""
    new = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    code = ir.IRBuilder(new.append_basic_block())
    yield code, new.args
    code.ret_void()


def call(code: Any, name: str, *arguments: Any) -> None:
    code.call(code.module.get_global(name), arguments)


@contextmanager
def loop(code: Any, count: Any) -> Iterator[Any]:
    """Code for each number below a count."""
    start, head = code.block, code.append_basic_block()
    body, end = code.append_basic_block(), code.append_basic_block()
    code.branch(head)
    code.position_at_end(head)
    at = code.phi(I64)
    at.add_incoming(I64(0), start)
    code.cbranch(code.icmp_unsigned("<", at, count), body, end)
    code.position_at_end(body)
    yield at
    at.add_incoming(code.add(at, I64(1)), code.block)
    code.branch(head)
    code.position_at_end(end)


def room(code: Any, numbers: int) -> Any:
    """Memory of a function's own for so many numbers."""
    memory = code.alloca(ir.ArrayType(BYTE4, numbers * LIMBS))
    memory.type = POINTER
    return memory


def place(code: Any, pointer: Any, index: Any, numbers: int = 1) -> Any:
    """Where the index-th group of so many numbers stands."""
    index = I64(index) if isinstance(index, int) else index
    at = code.mul(index, I64(numbers * LIMBS))
    return code.gep(pointer, [at], source_etype=BYTE4)


def load(code: Any, pointer: Any, index: Any = 0, scratch: Any = None) -> Residues:
    start = place(code, pointer, index)
    slots = [code.gep(start, [I64(limb)], source_etype=BYTE4) for limb in range(LIMBS)]
    limbs = [code.zext(code.load(slot, typ=BYTE4, align=4), WORD) for slot in slots]
    return Residues(code, limbs, REDUCED, scratch)


def store(code: Any, pointer: Any, *numbers: Residues) -> None:
    reduced = [x if x.weight <= REDUCED else x.carried() for x in numbers]
    limbs = [limb for number in reduced for limb in number.limbs]
    for at, limb in enumerate(limbs):
        slot = code.gep(pointer, [I64(at)], source_etype=BYTE4)
        code.store(code.trunc(limb, BYTE4), slot, align=4)
