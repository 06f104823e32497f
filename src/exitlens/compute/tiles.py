"""A processor's tile registers (Intel AMX) for kernels of numba: what sets them, and what products in them are made of.

A tile register holds 16 rows of 64 bytes. A product of two tiles of bf16 numbers is added up in float32; the right
one's rows come in pairs: number 2r + i of a pair of rows p stands at ``[p, 2r + i]``.

:func:`set_tiles` must have been called in the thread, and :func:`reset_tiles` gives the registers back as they were.
All of this becomes part of the kernels that call it: it is imported with them alone, and has no machine code of its own
to keep.
"""

from __future__ import annotations

from typing import Any, no_type_check

import llvmlite.ir as ir
import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["STEP", "call", "data_of", "prefetch", "reset_tiles", "set_tiles", "tile_settings"]

STEP = 32  # numbers of a row that one product of tiles takes
_I32, _BYTES = ir.IntType(32), ir.IntType(8).as_pointer()


def tile_settings() -> NDArray[np.uint8]:
    """What the tile registers are set to: eight of 16 rows of 64 bytes."""
    found = np.zeros(64, dtype=np.uint8)
    found[0] = 1
    found[16:32:2] = 64
    found[48:56] = 16
    return found


# ---- for code that writes LLVM's instructions


def call(builder: Any, name: str, *arguments: Any) -> None:
    """Instruction ``name`` of the processor."""
    kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


def prefetch(builder: Any, place: Any, cache: int = 1) -> None:
    """Have the line at ``place`` brought into the first or second cache: the processor misses that tiles follow."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTES, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, _I32(0), _I32(4 - cache), _I32(1)])


def data_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    """Where an array's numbers begin, as a pointer to bytes."""
    return builder.bitcast(context.make_array(kind)(context, builder, array).data, _BYTES)


# ---- for kernels


@intrinsic
@no_type_check
def set_tiles(_context: Any, wanted: Any, before: Any) -> Any:
    """Set the tile registers to ``wanted`` (:func:`tile_settings`), and keep what they were set to in ``before``."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        new, old = (data_of(context, builder, *pair) for pair in zip(signature.args, arguments, strict=True))
        call(builder, "sttilecfg", old)
        call(builder, "ldtilecfg", new)
        return context.get_dummy_value()

    return types.none(wanted, before), code


@intrinsic
@no_type_check
def reset_tiles(_context: Any, before: Any) -> Any:
    """Set the tile registers as they were."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        call(builder, "ldtilecfg", data_of(context, builder, signature.args[0], arguments[0]))
        return context.get_dummy_value()

    return types.none(before), code
