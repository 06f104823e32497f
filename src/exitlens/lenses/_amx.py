"""Products of bf16 matrices in a processor's tile registers, for numba: 32 × 32 sums at a time.

Tiles 0–3 hold the sums of a 32 × 32 block in float32, 4 and 5 the left matrix (32 rows of 32 bf16 numbers), 6 and 7 the
right one, as :mod:`exitlens.compute.tiles` says. Sums of products are rounded to float32 as they are added.
"""

from __future__ import annotations

from typing import Any, no_type_check

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from exitlens.compute.tiles import STEP, call, data_of, prefetch

__all__ = ["BLOCK", "block"]

BLOCK = 32  # rows of the left and of the right matrix in a block
_I8, _I64 = ir.IntType(8), ir.IntType(64)


@intrinsic
@no_type_check
def block(
    _context: Any,
    left: Any,
    at: Any,
    width: Any,
    right: Any,
    start: Any,
    steps: Any,
    repeats: Any,
    pace: Any,
    out: Any,
    place: Any,
    fresh: Any,
) -> Any:
    """``out[place + 32 i + r] (+)= Σ_k left[at + width·i + k] · right[…]`` for i, r < 32, float32.

    ``left`` is a matrix of ``width`` columns, read from element ``at`` on, ``steps`` × 32 columns. ``right`` holds
    ``steps`` × 2 tiles of 16 × 32 numbers from element ``start`` on, and as many again ``pace`` elements further,
    ``repeats`` times: all are multiplied with the same left matrix and added up. Both are bf16 as int16. ``fresh``:
    whatever ``out`` holds is not added to.
    """
    whole = types.intp
    signature = types.none(left, whole, whole, right, whole, whole, whole, whole, out, whole, types.boolean)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        _, at, width, _, start, steps, repeats, pace, _, place, fresh = arguments

        def bytes_at(array: int, index: Any, size: int) -> Any:
            data = data_of(context, builder, kinds[array], arguments[array])
            return builder.gep(data, [builder.mul(index, _I64(size))])

        lefts, rights = bytes_at(0, at, 2), bytes_at(3, start, 2)
        stride = builder.mul(width, _I64(2))
        lower = builder.mul(stride, _I64(16))
        corners = [
            (_I8(2 * i + j), bytes_at(8, builder.add(place, _I64(i * 16 * BLOCK + j * 16)), 4))
            for i in (0, 1)
            for j in (0, 1)
        ]
        with builder.if_else(fresh) as (new, old):
            with new:
                for tile, _ in corners:
                    call(builder, "tilezero", tile)
            with old:
                for tile, corner in corners:
                    call(builder, "tileloadd64", tile, corner, _I64(4 * BLOCK))
        with cgutils.for_range(builder, repeats) as again:
            first = builder.gep(rights, [builder.mul(builder.mul(again.index, pace), _I64(2))])
            with cgutils.for_range(builder, steps) as step:
                column = builder.gep(lefts, [builder.mul(step.index, _I64(2 * STEP))])
                pair = builder.gep(first, [builder.mul(step.index, _I64(2048))])
                for line in range(32):
                    prefetch(builder, builder.gep(pair, [_I64(2 * 2048 + 64 * line)]))
                call(builder, "tileloadd64", _I8(4), column, stride)
                call(builder, "tileloadd64", _I8(6), pair, _I64(64))
                call(builder, "tileloadd64", _I8(7), builder.gep(pair, [_I64(1024)]), _I64(64))
                call(builder, "tileloadd64", _I8(5), builder.gep(column, [lower]), stride)
                for i in (0, 1):
                    for j in (0, 1):
                        call(builder, "tdpbf16ps", _I8(2 * i + j), _I8(4 + i), _I8(6 + j))
        for tile, corner in corners:
            call(builder, "tilestored64", tile, corner, _I64(4 * BLOCK))
        return context.get_dummy_value()

    return signature, code
