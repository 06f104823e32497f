"""What becomes of a product's sums, 16 lanes at a time: written out as vectors.

Loops over the 16 numbers of a row cost more in their ends than in their middle. Each takes ``rows`` rows of sums as
:func:`exitlens.models.native._machine.multiply` leaves them.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from exitlens.compute.vectors import LANES, Vectors, constant

__all__ = ["add_rows", "put_rows", "silu_rows"]

_PAIR = 2 * LANES
_I64 = ir.IntType(64)
_FLOATS, _INTS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)
_SHORTS = ir.VectorType(ir.IntType(16), LANES)
_LOG2E, _MAGIC = 1.4426950216293335, 12582912.0  # 1.5 · 2^23: adding it rounds to a whole number
# Cephes' e^x: log 2 in two parts, and the polynomial in what is left of x.
_LOG2 = (0.693359375, -2.1219444e-4)
_TERMS = (1.98756915e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def _whole(value: int) -> Any:
    return ir.Constant(_INTS, [ir.Constant(ir.IntType(32), value)] * LANES)


def _rounded(v: Vectors, value: Any) -> Any:
    """To bf16, ties to even, as float32."""
    b = v.builder
    bits = b.bitcast(value, _INTS)
    odd = b.and_(b.lshr(bits, _whole(16)), _whole(1))
    return b.bitcast(b.and_(b.add(b.add(bits, _whole(0x7FFF)), odd), _whole(0xFFFF0000)), _FLOATS)


def _exp(v: Vectors, x: Any) -> Any:
    """e^x for x from −87 to 88 (below: as at −87)."""
    x = v.maximum(x, constant(-87.0))
    shifted = v.fma(x, constant(_LOG2E), constant(_MAGIC))
    n = v.builder.fsub(shifted, constant(_MAGIC))
    r = v.fma(n, constant(-_LOG2[1]), v.fma(n, constant(-_LOG2[0]), x))
    p = constant(_TERMS[0])
    for term in _TERMS[1:]:
        p = v.fma(p, r, constant(term))
    return v.shifted(v.builder.fadd(v.fma(v.builder.fmul(p, r), r, r), constant(1.0)), shifted)


def _inverse(v: Vectors, x: Any) -> Any:
    """1 / x within one unit in the last place: the processor's estimate and a step of Newton's, half of a division."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS, _FLOATS, ir.IntType(16)])
    estimate = cgutils.get_or_insert_function(v.builder.module, kind, "llvm.x86.avx512.rcp14.ps.512")
    y = v.builder.call(estimate, [x, constant(0.0), ir.IntType(16)(-1)])
    return v.fma(v.fma(v.builder.fneg(x), y, constant(1.0)), y, y)


@intrinsic
def silu_rows(_context: Any, sums: Any, _block: Any, into: Any, _place: Any, _stride: Any, _rows: Any) -> Any:
    """silu(gate) · up of 16 outputs a row as bits of bf16; gates from 0 on, ups from ``_block`` on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v, (_, block, _, place, stride, rows) = Vectors(context, builder, signature, arguments), arguments
        with cgutils.for_range(builder, rows) as loop:
            at = builder.mul(loop.index, _I64(LANES))
            gate = _rounded(v, v.load(v.start(0, at)))
            up = _rounded(v, v.load(v.start(0, builder.add(at, block))))
            low = builder.fneg(gate)
            low = builder.select(builder.fcmp_ordered("<", low, constant(88.0)), low, constant(88.0))
            silu = _rounded(v, builder.fmul(gate, _inverse(v, builder.fadd(constant(1.0), _exp(v, low)))))
            found = builder.bitcast(_rounded(v, builder.fmul(silu, up)), _INTS)
            to = v.start(2, builder.add(place, builder.mul(loop.index, stride)), 2)
            shorts = builder.trunc(builder.lshr(found, _whole(16)), _SHORTS)
            builder.store(shorts, builder.bitcast(to, _SHORTS.as_pointer()), align=2)
        return context.get_dummy_value()

    whole = types.intp
    return types.none(sums, whole, into, whole, whole, whole), code


@intrinsic
def add_rows(_context: Any, sums: Any, into: Any, _place: Any, _stride: Any, _rows: Any) -> Any:
    """Add 32 outputs a row to numbers in bf16, both rounded."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v, (_, _, place, stride, rows) = Vectors(context, builder, signature, arguments), arguments
        with cgutils.for_range(builder, rows) as loop:
            given = v.start(0, builder.mul(loop.index, _I64(_PAIR)))
            to = v.start(1, builder.add(place, builder.mul(loop.index, stride)))
            for half in range(0, _PAIR, LANES):
                found = _rounded(v, v.load(given, half))
                v.store(_rounded(v, builder.fadd(v.load(to, half), found)), to, half)
        return context.get_dummy_value()

    whole = types.intp
    return types.none(sums, into, whole, whole, whole), code


@intrinsic
def put_rows(_context: Any, sums: Any, bias: Any, _from: Any, into: Any, _place: Any, _stride: Any, _rows: Any) -> Any:
    """32 outputs a row, each with its bias (those from ``_from`` on), rounded."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        v, (_, _, begin, _, place, stride, rows) = Vectors(context, builder, signature, arguments), arguments
        own = v.start(1, begin)
        with cgutils.for_range(builder, rows) as loop:
            given = v.start(0, builder.mul(loop.index, _I64(_PAIR)))
            to = v.start(3, builder.add(place, builder.mul(loop.index, stride)))
            for half in range(0, _PAIR, LANES):
                v.store(_rounded(v, builder.fadd(v.load(given, half), v.load(own, half))), to, half)
        return context.get_dummy_value()

    whole = types.intp
    return types.none(sums, bias, whole, into, whole, whole, whole), code
