"""Vectors of sixteen float32 numbers, for code that writes LLVM's instructions into a kernel of numba.

All of this becomes part of the kernels that are made with it: it is imported with them alone.
"""

from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np
from numba.core import cgutils

from exitlens.compute.tiles import data_of

__all__ = ["LANES", "Vectors", "constant"]

LANES = 16
_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_F32, LANES)


def constant(number: float) -> Any:
    """One number in all lanes."""
    return ir.Constant(_VECTOR, [float(np.float32(number))] * LANES)


class Vectors:
    """Sixteen numbers at a time of the arrays among an intrinsic's arguments.

    Args:
        context: As numba gives it to the code of an intrinsic; the others likewise.
        builder: Where instructions go.
        signature: Types of the arguments.
        arguments: Their values.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self.builder, self._context, self._kinds, self._arguments = builder, context, signature.args, arguments

    def start(self, array: int, index: Any, size: int = 4) -> Any:
        """Where element ``index``, of ``size`` bytes, of the argument number ``array`` lies."""
        data = data_of(self._context, self.builder, self._kinds[array], self._arguments[array])
        return self.builder.gep(data, [self.builder.mul(index, _I64(size))])

    def load(self, start: Any, index: int = 0) -> Any:
        """The vector at number ``index`` from ``start``."""
        return self.builder.load(self._place(start, index, _VECTOR), align=4)

    def store(self, value: Any, start: Any, index: int = 0) -> None:
        """A vector to number ``index`` from ``start`` on."""
        self.builder.store(value, self._place(start, index, _VECTOR), align=4)

    def each(self, start: Any, index: int) -> Any:
        """The number at ``index`` from ``start`` in all lanes."""
        return self.every(self.builder.load(self._place(start, index, _F32), align=4))

    def every(self, number: Any) -> Any:
        """One number in all lanes."""
        one = self.builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, _I32(0))
        return self.builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))

    def call(self, name: str, *vectors: Any) -> Any:
        """LLVM's function ``name`` of vectors."""
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(vectors))
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), vectors)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """``a·b + c``, rounded once."""
        return self.call("llvm.fma.v16f32", a, b, c)

    def maximum(self, a: Any, b: Any) -> Any:
        """``a`` where it is larger, else ``b``: ``b`` where either is NaN."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def positive(self, value: Any, where: Any) -> Any:
        """``value`` in the lanes where ``where`` is over 0, else 0."""
        zero = constant(0.0)
        return self.builder.select(self.builder.fcmp_ordered(">", where, zero), value, zero)

    def sums(self, count: int, first: float = 0.0) -> list[Any]:
        """Variables that LLVM keeps in registers, ``first`` in all lanes to begin with."""
        places = [cgutils.alloca_once(self.builder, _VECTOR) for _ in range(count)]
        for place in places:
            self.builder.store(constant(first), place)
        return places

    def shifted(self, value: Any, bits: Any) -> Any:
        """``value · 2^n``, where n stands in the lowest bits of ``bits``: added to the exponent."""
        whole = ir.VectorType(_I32, LANES)
        value, bits = (self.builder.bitcast(v, whole) for v in (value, bits))
        moved = self.builder.shl(bits, ir.Constant(whole, [23] * LANES))
        return self.builder.bitcast(self.builder.add(value, moved), _VECTOR)

    def _place(self, start: Any, index: int, kind: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(start, [_I64(4 * index)]), kind.as_pointer())
