"""Sixteen numbers side by side for numba: the vectors that the compiled pass over logits is written in.

numba leaves it to LLVM to find vectors in loops, which it does only where sums may be put into another order, and then
with half of the register's width. Here each operation says what it is: LLVM maps 16 lanes to one AVX512 register, two
of AVX2 or four of SSE and NEON. Rounding is the same on all of them but for ``a·b + c``, which is rounded once where
the processor can.

A bf16 number is the upper half of a float32; arrays of them come as int16.
"""

from __future__ import annotations

from typing import Any, no_type_check

import llvmlite.ir as ir
import numpy as np
from numba import literal_unroll, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = [
    "LANES", "LOG2E", "MAGIC", "POWERS", "add", "any_above", "choose", "divide", "exp", "fma", "four_exp", "load",
    "maximum", "multiply", "signed", "splat", "splat_bits", "store", "subtract", "total", "widen",
]  # fmt: skip

LANES = 16
_I16, _I32, _F32, _F64 = ir.IntType(16), ir.IntType(32), ir.FloatType(), ir.DoubleType()


def _of(element: Any) -> Any:
    return ir.VectorType(element, LANES)


def _every(number: int) -> Any:
    return ir.Constant(_of(_I32), [number] * LANES)


def _model(element: Any) -> Any:
    class Model(models.PrimitiveModel):  # type: ignore[misc, unused-ignore]
        def __init__(self, manager: Any, kind: Any) -> None:
            super().__init__(manager, kind, _of(element))

    return Model


class _Single(types.Type):  # type: ignore[misc, unused-ignore]
    """Sixteen float32 numbers, in registers."""


class _Double(types.Type):  # type: ignore[misc, unused-ignore]
    """Sixteen float64 numbers, in registers."""


_SINGLE, _DOUBLE = _Single("sixteen float32"), _Double("sixteen float64")
register_model(_Single)(_model(_F32))
register_model(_Double)(_model(_F64))


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any, element: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), _of(element).as_pointer())


@intrinsic
@no_type_check
def load(_context: Any, array: Any, index: Any) -> Any:
    """Sixteen numbers of a one-dimensional array from ``index`` on: float32, float64, or bf16 as int16."""
    result = _DOUBLE if array.dtype == types.float64 else _SINGLE

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        if kind.dtype == types.int16:
            found = builder.load(_address(context, builder, kind, *arguments, _I16), align=2)
            bits = builder.shl(builder.zext(found, _of(_I32)), _every(16))
            return builder.bitcast(bits, _of(_F32))
        element = _F64 if kind.dtype == types.float64 else _F32
        return builder.load(_address(context, builder, kind, *arguments, element), align=4)

    return result(array, types.intp), code


@intrinsic
@no_type_check
def store(_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write sixteen numbers from ``index`` on; float32 to an array of int16 as the nearest bf16 (ties to even)."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if signature.args[0].dtype == types.int16:
            bits = builder.bitcast(arguments[2], _of(_I32))
            odd = builder.and_(builder.lshr(bits, _every(16)), _every(1))
            upper = builder.lshr(builder.add(bits, builder.add(odd, _every(0x7FFF))), _every(16))
            place = _address(context, builder, signature.args[0], arguments[0], arguments[1], _I16)
            builder.store(builder.trunc(upper, _of(_I16)), place, align=2)
            return context.get_dummy_value()
        element = _F64 if signature.args[2] == _DOUBLE else _F32
        place = _address(context, builder, signature.args[0], arguments[0], arguments[1], element)
        builder.store(arguments[2], place, align=4)
        return context.get_dummy_value()

    return types.none(array, types.intp, value), code


@intrinsic
@no_type_check
def splat(_context: Any, number: Any) -> Any:
    """One float32 in all lanes."""

    def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        one = builder.insert_element(ir.Constant(_of(_F32), ir.Undefined), arguments[0], _I32(0))
        return builder.shuffle_vector(one, one, _every(0))

    return _SINGLE(types.float32), code


@intrinsic
@no_type_check
def splat_bits(_context: Any, number: Any) -> Any:
    """One int32 in all lanes, as the float32 of the same bits."""

    def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        one = builder.insert_element(ir.Constant(_of(_I32), ir.Undefined), arguments[0], _I32(0))
        return builder.bitcast(builder.shuffle_vector(one, one, _every(0)), _of(_F32))

    return _SINGLE(types.int32), code


def _binary(name: str) -> Any:
    @no_type_check
    def typed(_context: Any, a: Any, b: Any) -> Any:
        def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments)

        return a(a, b), code

    return intrinsic(typed)


add, subtract, multiply, divide = _binary("fadd"), _binary("fsub"), _binary("fmul"), _binary("fdiv")


@intrinsic
@no_type_check
def fma(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a·b + c``."""

    def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        name = "llvm.fmuladd.v16f64" if a == _DOUBLE else "llvm.fmuladd.v16f32"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return builder.call(function, arguments)

    return a(a, b, c), code


@intrinsic
@no_type_check
def maximum(_context: Any, a: Any, b: Any) -> Any:
    """``a`` where it is larger, else ``b``: ``b`` where either is NaN."""

    def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return a(a, b), code


@intrinsic
@no_type_check
def choose(_context: Any, a: Any, b: Any, x: Any, y: Any) -> Any:
    """``x`` in the lanes where ``a`` is larger than ``b``, else ``y``."""

    def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments[:2]), *arguments[2:])

    return a(a, b, x, y), code


@intrinsic
@no_type_check
def signed(_context: Any, a: Any, b: Any) -> Any:
    """``|a|`` with the sign of ``b``."""

    def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [kind] * 2), "llvm.copysign.v16f32"
        )
        return builder.call(function, arguments)

    return a(a, b), code


@intrinsic
@no_type_check
def any_above(_context: Any, a: Any, b: Any) -> Any:
    """Which lanes of ``a`` are larger than those of ``b``: one bit each, lane 0 lowest."""

    def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        larger = builder.fcmp_ordered(">", *arguments)
        return builder.zext(builder.bitcast(larger, _I16), _I32)

    return types.int32(a, b), code


@intrinsic
@no_type_check
def widen(_context: Any, a: Any) -> Any:
    """The same numbers in float64."""

    def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fpext(arguments[0], _of(_F64))

    return _DOUBLE(a), code


@intrinsic
@no_type_check
def total(_context: Any, a: Any) -> Any:
    """Sum of the lanes, halves onto halves."""

    def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        found = arguments[0]
        for step in (8, 4, 2, 1):
            order = [(lane + step) % LANES for lane in range(LANES)]
            found = builder.fadd(found, builder.shuffle_vector(found, found, ir.Constant(_of(_I32), order)))
        return builder.extract_element(found, _I32(0))

    return types.float32(a), code


@intrinsic
@no_type_check
def _scaled(_context: Any, p: Any, y: Any) -> Any:
    """``p · 2^n`` where ``y`` is 1.5·2^23 + n, whose lowest bits are n: added to the exponent of p."""

    def code(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        bits, steps = (builder.bitcast(value, _of(_I32)) for value in arguments)
        moved = builder.shl(steps, _every(23))
        return builder.bitcast(builder.add(bits, moved), _of(_F32))

    return p(p, y), code


LOG2E = np.float32(1.4426950408889634)
MAGIC = np.float32(12582912.0)  # 1.5·2^23: adding it rounds to a whole number
# 2^f = 1 + f·q(f) on [−½, ½], relative error at most 9.2e-8 (minimax, found by reweighted least squares).
POWERS = tuple(
    np.float32(c)
    for c in (
        0.0013264728477224708,
        0.009671512991189957,
        0.05550733581185341,
        0.24022242426872253,
        0.6931470036506653,
        1.0,
    )
)  # from f^5 down
_MOST, _NEXT, *_REST = POWERS
_LESS = tuple(_REST)


@njit(inline="always")
@no_type_check
def exp(d: Any) -> Any:
    """``e^d`` for −87 ≤ d ≤ 0, ``e^0`` exactly 1, relative error at most 2e-7 + 1.4e-8·|d|; NaN gives anything.

    d·log₂e = n + f with n whole: 2^f by a polynomial of degree 5, 2^n by the exponent. The second term is the rounding
    of log₂e, which a logit d nats below the largest hardly shows: its share of the sum is e^d.
    """
    return four_exp(d, d, d, d)[0]


@njit(inline="always")
@no_type_check
def four_exp(a: Any, b: Any, c: Any, d: Any) -> Any:
    """:func:`exp` of four vectors, step by step together: a step waits four cycles for the one before it."""
    log2e, magic = splat(LOG2E), splat(MAGIC)
    n, o, p, q = fma(a, log2e, magic), fma(b, log2e, magic), fma(c, log2e, magic), fma(d, log2e, magic)
    s, t, u, v = subtract(magic, n), subtract(magic, o), subtract(magic, p), subtract(magic, q)
    a, b, c, d = fma(a, log2e, s), fma(b, log2e, t), fma(c, log2e, u), fma(d, log2e, v)
    most, next_ = splat(_MOST), splat(_NEXT)
    s, t, u, v = fma(most, a, next_), fma(most, b, next_), fma(most, c, next_), fma(most, d, next_)
    for k in literal_unroll(_LESS):
        term = splat(k)
        s, t, u, v = fma(s, a, term), fma(t, b, term), fma(u, c, term), fma(v, d, term)
    return _scaled(s, n), _scaled(t, o), _scaled(u, p), _scaled(v, q)
