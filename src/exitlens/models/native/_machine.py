"""What compiled blocks are made of: products in tile registers, bits of numbers, and a counter that threads meet at.

Tiles are those of :mod:`exitlens.compute.tiles`.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from exitlens.compute.tiles import STEP, call, data_of, prefetch

__all__ = [
    "LANES", "PAIR", "TILE", "exp", "floats", "kernel", "largest", "meet", "multiply", "next_task", "pointer",
    "rounded", "short", "shorts", "sums",
]  # fmt: skip

LANES = 16  # rows of a tile
PAIR = 2 * LANES  # outputs of a product at a time
TILE = LANES * STEP  # numbers in a tile
_AHEAD = 8 << 10  # bytes; weights are asked for so far before they are multiplied
_SPINS = 4000  # looks at the counter before the processor is offered to others
_I8, _I32, _I64, _F32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_BYTES = _I8.as_pointer()

# No folder to keep machine code in: see exitlens.compute.compiled.
kernel = njit(nogil=True, cache=bool(config.CACHE_DIR), error_model="numpy")
# Sums may be put into another order, so that LLVM finds vectors in them; nothing is assumed about NaN.
sums = njit(
    nogil=True, cache=bool(config.CACHE_DIR), error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}
)


def _sums(builder: Any, left: Any, right: Any, stride: Any, steps: Any, two: bool, ahead: bool) -> None:
    """Add up products of ``steps`` tiles: 16 or 32 rows of states (tiles 4, 5) by 32 outputs (tiles 6, 7)."""
    blocks = 2 if two else 1
    for i in range(2 * blocks):
        call(builder, "tilezero", _I8(i))
    below = builder.gep(left, [builder.mul(stride, _I64(LANES))])
    with cgutils.for_range(builder, steps) as loop:
        weight = builder.gep(right, [builder.mul(loop.index, _I64(4 * TILE))])
        for line in range(0, 4 * TILE if ahead else 0, 64):
            prefetch(builder, builder.gep(weight, [_I64(_AHEAD + line)]))
        along = builder.mul(loop.index, _I64(2 * STEP))
        for i in range(blocks):
            call(builder, "tileloadd64", _I8(4 + i), builder.gep(below if i else left, [along]), stride)
        for j in range(2):
            call(builder, "tileloadd64", _I8(6 + j), builder.gep(weight, [_I64(j * 2 * TILE)]), _I64(64))
            for i in range(blocks):
                call(builder, "tdpbf16ps", _I8(2 * i + j), _I8(4 + i), _I8(6 + j))


@intrinsic
def multiply(_context: Any, weight: Any, _at: Any, _steps: Any, states: Any, _from: Any, _stride: Any, _rows: Any,
             _first: Any, out: Any, _to: Any, _apart: Any, _jump: Any) -> Any:  # fmt: skip
    """``out[r, o] = Σ_k states[r, k] weight[o, k]``: 32 outputs of 16 rows, or of 32 where ``_rows`` is above 16.

    ``_steps`` tiles of 32 inputs; those of the weight begin at ``_at`` (32 outputs lie together), the rows of states at
    ``_from``, ``_stride`` numbers apart. ``_first``: the weight is not in a cache yet and is asked for ahead. Sums go
    from ``_to`` on, rows ``_apart`` numbers apart; those of the second 16 outputs lie ``_jump`` numbers further.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        right = builder.gep(data_of(context, builder, kinds[0], arguments[0]), [builder.mul(arguments[1], _I64(2))])
        left = builder.gep(data_of(context, builder, kinds[3], arguments[3]), [builder.mul(arguments[4], _I64(2))])
        sums = builder.gep(data_of(context, builder, kinds[8], arguments[8]), [builder.mul(arguments[9], _I64(4))])
        apart, jump = (builder.mul(arguments[i], _I64(4)) for i in (10, 11))
        lower = builder.gep(sums, [builder.mul(apart, _I64(LANES))])
        stride = builder.mul(arguments[5], _I64(2))
        wide = builder.icmp_signed(">", arguments[6], _I64(LANES))
        ahead = builder.icmp_signed("!=", arguments[7], _I64(0))
        with builder.if_else(wide) as (many, few):
            for branch, two in ((many, True), (few, False)):
                with branch:
                    with builder.if_else(ahead) as (fresh, held):
                        for other, fetched in ((fresh, True), (held, False)):
                            with other:
                                _sums(builder, left, right, stride, arguments[2], two, fetched)
                    for i in range(4 if two else 2):
                        place = lower if i > 1 else sums
                        call(builder, "tilestored64", _I8(i), builder.gep(place, [jump]) if i % 2 else place, apart)
        return context.get_dummy_value()

    whole = types.intp
    return types.none(weight, whole, whole, states, whole, whole, whole, whole, out, whole, whole, whole), code


@intrinsic
def _float_of(_context: Any, _bits: Any) -> Any:
    return types.float32(types.uint32), lambda _c, builder, _s, given: builder.bitcast(given[0], _F32)


@intrinsic
def _bits_of(_context: Any, _value: Any) -> Any:
    return types.uint32(types.float32), lambda _c, builder, _s, given: builder.bitcast(given[0], _I32)


@intrinsic
def pointer(_context: Any, _address: Any) -> Any:
    return types.voidptr(types.int64), lambda _c, builder, _s, given: builder.inttoptr(given[0], _BYTES)


@intrinsic
def _add_one(_context: Any, counter: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, _I64(1), "acq_rel")

    return types.int64(counter), code


@intrinsic
def _now(_context: Any, counter: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.load_atomic(array.data, "acquire", 8)

    return types.int64(counter), code


_give_way = types.ExternalFunction("sched_yield", types.int32())


# ---- numbers


@kernel
def rounded(value: Any) -> Any:
    """To bf16, ties to even, as float32."""
    bits = _bits_of(np.float32(value))
    return _float_of((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000))


@kernel
def short(value: Any) -> Any:
    """The bits of a number that is bf16 already."""
    return np.int16(_bits_of(value) >> np.uint32(16))


@kernel
def exp(x: Any) -> Any:
    """e^x for x ≤ 88, within 2e-7: 2^n times a polynomial in what is left (Cephes' coefficients)."""
    x = max(np.float32(x), np.float32(-87.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _float_of(np.uint32(np.int32(n) + np.int32(127)) << np.uint32(23))


@kernel
def largest(values: Any, lanes: Any) -> Any:
    """The largest of some numbers, −inf of none. ``lanes``: room for 16, side by side so that they become a vector."""
    lanes[:] = np.float32(-np.inf)
    whole = len(values) // LANES * LANES
    for i in range(0, whole, LANES):
        part = values[i : i + LANES]
        for o in range(LANES):
            lanes[o] = part[o] if part[o] > lanes[o] else lanes[o]
    found = np.float32(-np.inf)
    for o in range(LANES):
        found = max(found, lanes[o])
    for i in range(whole, len(values)):
        found = max(found, values[i])
    return found


@kernel
def floats(count: Any) -> Any:
    """Zeros that begin where a line of the cache does: a row of a tile that lies in two lines takes twice as long."""
    found = np.zeros(count + LANES, np.float32)
    first = -found.ctypes.data % 64 // 4
    return found[first : first + count]


@kernel
def shorts(count: Any) -> Any:
    """The same for bits of bf16."""
    found = np.zeros(count + STEP, np.int16)
    first = -found.ctypes.data % 64 // 2
    return found[first : first + count]


@kernel
def next_task(counter: Any) -> Any:
    """The number of the next piece of work that no thread has taken."""
    return _add_one(counter)


@kernel
def meet(counter: Any, threads: Any, times: Any) -> Any:
    """Wait until all threads were here ``times + 1`` times."""
    if threads > 1:
        _add_one(counter)
        looks = 0
        while _now(counter) < threads * (times + 1):
            looks += 1
            if looks > _SPINS:  # another thread was put aside: let it run
                _give_way()
    return times + 1
