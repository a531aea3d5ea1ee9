"""ristretto255 (RFC 9496) for many elements under one scalar, eight side by side.

libsodium multiplies one element after another. Vector units multiply eight numbers of 32 bits at a
time, so the same formulas are written here for eight (`secure_agg.arithmetic.field`) and
compiled for the machine they run on, which is three to four times as fast on one core.
`secure_agg.ristretto` compares a row of every piece with libsodium's.

No branch and no address depends on a scalar or an element. Formulas: doubling and addition of Hisil,
Wong, Carter and Dawson, ASIACRYPT 2008; decoding, encoding and the map of RFC 9496, sections 4.2
and 4.3.
"""

from __future__ import annotations

import ctypes
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import binding, ir

from secure_agg.arithmetic.field import (
    BITS,
    BYTE4,
    I32,
    I64,
    LIMBS,
    POINTER,
    REDUCED,
    SHIFTS,
    WIDTH,
    WORD,
    P,
    Residues,
    call,
    function,
    load,
    loop,
    place,
    room,
    splat,
    store,
)

D = -121665 * pow(121666, -1, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)
SQRT_AD_MINUS_ONE = 25063068953384623474111414158702152701244531502492656460079210482610430750235
INVSQRT_A_MINUS_D = 54469307008909316920995813868745141605393597292927456921205312896311721017578
WINDOWS = 64  # digits of a scalar, base 16
LOCK = Lock()

Bytes = npt.NDArray[np.uint8]

# Points: X, Y, Z, T with x = X / Z, y = Y / Z, xy = T / Z; cached: Y + X, Y - X, 2 Z, 2 D T.


def write_powers(module: Any) -> None:
    """product(out, factors); squares(x, n): x to 2**n; power(out, x): x to (p - 5) / 8."""
    with function(module, "product", POINTER, POINTER) as (code, (out, factors)):
        store(code, out, load(code, factors) * load(code, factors, 1))
    with function(module, "squares", POINTER, I64) as (code, (x, count)), loop(code, count):
        store(code, x, load(code, x).square())
    with function(module, "power", POINTER, POINTER) as (code, (out, x)):
        number_room, scratch = room(code, 1), room(code, 3)

        def raised(number: Residues, count: int, other: Residues) -> Residues:
            store(code, number_room, number)
            call(code, "squares", number_room, I64(count))
            return load(code, number_room, 0, scratch) * other

        one = load(code, x, 0, scratch)
        two = one.square()
        nine = raised(two, 2, one)
        eleven = nine * two
        ones = {5: raised(eleven, 1, nine)}  # 2**n - 1, by n
        for count, more in (
            (10, 5),
            (20, 10),
            (40, 20),
            (50, 10),
            (100, 50),
            (200, 100),
            (250, 50),
        ):
            ones[count] = raised(ones[count - more], more, ones[more])
        store(code, out, raised(ones[250], 2, one))


def write_points(module: Any) -> None:
    """double(p), without T; double_t(p), with it; add(p, cached q); remember(out, p): cached."""
    for name in ("double", "double_t"):
        with function(module, name, POINTER) as (code, (point,)):
            x, y, z = (load(code, point, at) for at in range(3))
            xx, yy, zz, sum_squared = x.square(), y.square(), z.square(), (x + y).square()
            plus, minus = yy + xx, yy - xx
            e, f = sum_squared - plus, zz + zz - minus
            last = [e * plus] if name == "double_t" else []
            store(code, point, e * f, plus * minus, minus * f, *last)
    with function(module, "add", POINTER, POINTER) as (code, (point, cached)):
        x, y, z, t = (load(code, point, at) for at in range(4))
        plus, minus, double_z, double_dt = (load(code, cached, at) for at in range(4))
        a, b, c, d = (y - x) * minus, (y + x) * plus, t * double_dt, z * double_z
        e, f, g, h = b - a, d - c, d + c, b + a
        store(code, point, e * f, g * h, f * g, e * h)
    with function(module, "remember", POINTER, POINTER) as (code, (out, point)):
        x, y, z, t = (load(code, point, at) for at in range(4))
        store(code, out, y + x, y - x, z + z, t * t.constant(2 * D))


def square_root_of_ratio(code: Any, u: Residues, v: Residues) -> tuple[Any, Residues]:
    """(whether u / v is a square, its root or that of i u / v): section 4.2."""
    numbers = room(code, 2)
    cube = v.square() * v
    store(code, numbers, u * cube.square() * v)
    call(code, "power", place(code, numbers, 1), numbers)
    root = load(code, numbers, 1, u.scratch) * (u * cube)
    check, i = v * root.square(), u.constant(SQRT_M1)
    right, turned = (check - u).is_zero(), (check + u).is_zero()
    turned_i = (check + u * i).is_zero()
    root = (root * i).where(code.or_(turned, turned_i), root)
    return code.or_(right, turned), root.absolute()


def write_forms(module: Any) -> None:
    """decode(p, good, s); encode(s, p); map_half(p, t): sections 4.3.1, 4.3.2 and 4.3.4."""
    with function(module, "decode", POINTER, POINTER, POINTER) as (code, (point, good, encoding)):
        s = load(code, encoding, 0, room(code, 3))
        one = s.constant(1)
        u1, u2 = one - s.square(), one + s.square()
        v = -(u1.square() * s.constant(D)) - u2.square()
        is_square, inverse = square_root_of_ratio(code, one, v * u2.square())
        x = ((s + s) * (inverse * u2)).absolute()
        y = u1 * (inverse * (inverse * u2) * v)
        t = x * y
        bad = code.or_(code.not_(is_square), code.or_(t.is_negative(), y.is_zero()))
        store(code, point, x, y, one, t)
        code.store(code.zext(code.not_(bad), BYTE4), good, align=4)
    with function(module, "encode", POINTER, POINTER) as (code, (encoding, point)):
        scratch = room(code, 3)
        x, y, z, t = (load(code, point, at, scratch) for at in range(4))
        u1, u2 = (z + y) * (z - y), x * y
        _, inverse = square_root_of_ratio(code, x.constant(1), u1 * u2.square())
        left, right, i = inverse * u1, inverse * u2, x.constant(SQRT_M1)
        z_inverse = left * right * t
        turned = (t * z_inverse).is_negative()
        y_turned, x_turned = (x * i).where(turned, y), (y * i).where(turned, x)
        inverse = (left * x.constant(INVSQRT_A_MINUS_D)).where(turned, right)
        y_turned = (-y_turned).where((x_turned * z_inverse).is_negative(), y_turned)
        s = (inverse * (z - y_turned)).absolute()
        store(code, encoding, Residues(code, s.canonical(), REDUCED))
    with function(module, "map_half", POINTER, POINTER) as (code, (point, number)):
        t = load(code, number, 0, room(code, 3))
        one, minus = t.constant(1), t.constant(-1)
        r = t.square() * t.constant(SQRT_M1)
        u = (r + one) * t.constant(1 - D * D)
        v = (minus - r * t.constant(D)) * (r + t.constant(D))
        is_square, s = square_root_of_ratio(code, u, v)
        s = s.where(is_square, (-(s * t).absolute()).bounded())
        c = minus.where(is_square, r)
        n = c * (r - one) * t.constant((D - 1) ** 2) - v
        w0, w1 = (s + s) * v, n * t.constant(SQRT_AD_MINUS_ONE)
        w2, w3 = one - s.square(), one + s.square()
        store(code, point, w0 * w3, w2 * w1, w1 * w3, w0 * w2)


def write_exports(module: Any) -> None:
    """multiply(out, good, in, digits, blocks); map(out, halves, blocks): each block is eight elements."""
    with function(module, "multiply", POINTER, POINTER, POINTER, POINTER, I64) as (code, arguments):
        out, good, encodings, digits, blocks = arguments
        point, chosen = (room(code, 4) for _ in range(2))
        table = room(code, 32)
        with loop(code, blocks) as block:
            slot = code.gep(good, [block], source_etype=BYTE4)
            call(code, "decode", point, slot, place(code, encodings, block))
            for times in range(8):
                call(code, "remember", place(code, table, times, 4), point)
                call(code, "add", point, table)
            zero = load(code, point).constant(0)
            store(code, point, zero, zero.constant(1), zero.constant(1), zero)
            with loop(code, I64(WINDOWS)) as window:
                for step in ("double", "double", "double", "double_t"):
                    call(code, step, point)
                pointer = code.gep(digits, [window], source_etype=I32)
                store(code, chosen, *selected(code, table, code.load(pointer, typ=I32, align=4)))
                call(code, "add", point, chosen)
            call(code, "encode", place(code, out, block), point)
    with function(module, "map", POINTER, POINTER, I64) as (code, (out, halves, blocks)):
        point, other, cached = (room(code, 4) for _ in range(3))
        with loop(code, blocks) as block:
            start = place(code, halves, block, 2)
            call(code, "map_half", point, start)
            call(code, "map_half", other, place(code, start, 1))
            call(code, "remember", cached, other)
            call(code, "add", point, cached)
            call(code, "encode", place(code, out, block), point)
    with function(module, "check", POINTER, POINTER, I64) as (code, (good, encodings, blocks)):
        point = room(code, 4)
        with loop(code, blocks) as block:
            slot = code.gep(good, [block], source_etype=BYTE4)
            call(code, "decode", point, slot, place(code, encodings, block))


def selected(code: Any, table: Any, digit: Any) -> list[Residues]:
    """The table's entry for a secret digit from -8 to 8: all are read, and one kept by masks."""
    digits = code.sext(code.insert_element(ir.Constant(BYTE4, None), digit, I32(0)), WORD)
    everywhere = ir.Constant(ir.VectorType(I32, WIDTH), [0] * WIDTH)
    digits = code.shuffle_vector(digits, ir.Constant(WORD, ir.Undefined), everywhere)
    negative = code.icmp_signed("<", digits, splat(0))
    size = code.select(negative, code.sub(splat(0), digits), digits)
    first = load(code, table)
    entry = [first.constant(number) for number in (1, 1, 2, 0)]  # the neutral element
    for times in range(1, 9):
        mask = code.icmp_unsigned("==", size, splat(times))
        row = place(code, table, times - 1, 4)
        entry = [load(code, row, at).where(mask, entry[at]) for at in range(4)]
    plus, minus, double_z, double_dt = entry
    return [
        minus.where(negative, plus),
        plus.where(negative, minus),
        double_z,
        (-double_dt).where(negative, double_dt),
    ]


@cache
def compiled() -> dict[str, Any]:
    """The functions for this machine, in a second; each lets go of Python's lock."""
    module = ir.Module("ristretto255")
    for write in (write_powers, write_points, write_forms, write_exports):
        write(module)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(),
        features=binding.get_host_cpu_features().flatten(),
        opt=2,
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(module)), machine)
    engine.finalize_object()
    functions = {"engine": engine}  # which owns the code
    for name, pointers in (("multiply", 4), ("map", 2), ("check", 2)):
        kind = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * pointers, ctypes.c_int64)
        functions[name] = kind(engine.get_function_address(name))
    return functions


# Arrays.


def products(scalar: int, encodings: Bytes) -> tuple[Bytes, npt.NDArray[np.bool_]]:
    """(each element times a scalar below the order, (n, 32); whether each is an element, (n,))."""
    limbs = _packed(encodings)
    out, good = np.empty_like(limbs), np.empty((len(limbs), WIDTH), dtype=np.uint32)
    digits = np.array(_digits(scalar), dtype=np.int32)
    arrays = (out, good, limbs, digits)
    _functions()["multiply"](*(array.ctypes.data for array in arrays), len(limbs))
    return _unpacked(out)[: len(encodings)], _good(encodings, good)


def are_elements(encodings: Bytes) -> npt.NDArray[np.bool_]:
    """Whether each is an element and not the neutral one, (n,)."""
    limbs = _packed(encodings)
    good = np.empty((len(limbs), WIDTH), dtype=np.uint32)
    _functions()["check"](good.ctypes.data, limbs.ctypes.data, len(limbs))
    return _good(encodings, good)


def mapped(digests: Bytes) -> Bytes:
    """The one-way map, (n, 64) to (n, 32)."""
    limbs = np.stack([_packed(digests[:, :32]), _packed(digests[:, 32:])], axis=1)
    out = np.empty((len(limbs), LIMBS, WIDTH), dtype=np.uint32)
    _functions()["map"](out.ctypes.data, limbs.ctypes.data, len(limbs))
    return _unpacked(out)[: len(digests)]


def _functions() -> dict[str, Any]:
    with LOCK:
        return compiled()


def _good(encodings: Bytes, good: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """What decoding said, and what it did not see: an even number below p that is not 0."""
    last = encodings[:, 31]
    above = (last == 127) & (encodings[:, 1:31] == 255).all(axis=1) & (encodings[:, 0] >= 237)
    even = encodings[:, 0] % 2 == 0
    decoded = good.reshape(-1)[: len(encodings)] == 1
    good_rows: npt.NDArray[np.bool_] = decoded & even & (last < 128) & ~above
    return good_rows & encodings.any(axis=1)


def _digits(scalar: int) -> list[int]:
    """Base 16, from -7 to 8, the highest first."""
    digits, over = [], 0
    for window in range(WINDOWS):
        digit = (scalar >> 4 * window & 15) + over
        over = (digit + 7) >> 4
        digits.append(digit - 16 * over)
    return digits[::-1]


def _packed(encodings: Bytes) -> npt.NDArray[np.uint32]:
    """(n, 32) bytes as limbs: (blocks, 10, 8), the last block filled up with zeros."""
    blocks = -(-len(encodings) // WIDTH)
    words = np.zeros((blocks * WIDTH, 4), dtype="<u8")
    words[: len(encodings)] = np.ascontiguousarray(encodings).view("<u8")
    limbs = np.empty((blocks, LIMBS, WIDTH), dtype=np.uint32)
    for limb, (shift, bits) in enumerate(zip(SHIFTS, BITS, strict=True)):
        word, low = divmod(shift, 64)
        value = words[:, word] >> np.uint64(low)
        if low + bits > 64:
            value |= words[:, word + 1] << np.uint64(64 - low)
        limbs[:, limb] = (value & np.uint64((1 << bits) - 1)).reshape(blocks, WIDTH)
    return limbs


def _unpacked(limbs: npt.NDArray[np.uint32]) -> Bytes:
    words = np.zeros((len(limbs) * WIDTH, 4), dtype="<u8")
    for limb, (shift, bits) in enumerate(zip(SHIFTS, BITS, strict=True)):
        value = limbs[:, limb].reshape(-1).astype(np.uint64)
        word, low = divmod(shift, 64)
        words[:, word] |= value << np.uint64(low)
        if low + bits > 64:
            words[:, word + 1] |= value >> np.uint64(64 - low)
    return words.view(np.uint8)
