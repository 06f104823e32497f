"""What the compiled step is made of: products in tile registers, bits of numbers, and a counter that threads meet at.

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
    "LANES", "TILE", "exp", "kernel", "long", "meet", "multiply", "pointer", "rounded", "short", "sums",
]  # fmt: skip

LANES = 16  # outputs of a product at a time, and rows at most
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


@intrinsic
def multiply(_context: Any, weight: Any, _at: Any, _steps: Any, states: Any, out: Any) -> Any:
    """``out[16·o + r] = Σ_k weight[o, k] states[k, r]`` of ``_steps`` tiles, those of the weight from ``_at`` on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        left = builder.gep(data_of(context, builder, kinds[0], arguments[0]), [builder.mul(arguments[1], _I64(2))])
        right, sums = (data_of(context, builder, kinds[i], arguments[i]) for i in (3, 4))
        call(builder, "tilezero", _I8(0))
        with cgutils.for_range(builder, arguments[2]) as loop:
            place = builder.mul(loop.index, _I64(2 * TILE))
            tile = builder.gep(left, [place])
            for line in range(0, 2 * TILE, 64):
                prefetch(builder, builder.gep(tile, [_I64(_AHEAD + line)]))
            call(builder, "tileloadd64", _I8(1), tile, _I64(64))
            call(builder, "tileloadd64", _I8(2), builder.gep(right, [place]), _I64(64))
            call(builder, "tdpbf16ps", _I8(0), _I8(1), _I8(2))
        call(builder, "tilestored64", _I8(0), sums, _I64(64))
        return context.get_dummy_value()

    return types.none(weight, types.intp, types.intp, states, out), code


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
def long(bits: Any) -> Any:
    return _float_of(np.uint32(np.uint16(bits)) << np.uint32(16))


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
