"""Products of bf16 matrices in a processor's tile registers, for numba: 32 × 32 logits at a time, and sums beside them.

Tiles 0–3 hold the sums of a 32 × 32 block in float32, 4 and 5 the left matrix (32 tokens of 32 bf16 numbers), 6 and 7
the right one, as :mod:`exitlens.compute.tiles` says. Sums of products are rounded to float32 as they are added.

The left matrix is used again for every block of rows and stays in the first cache. The right one passes by: it is
loaded with the hint that says so, from the second cache, and does not push the other out.

Tile registers have a unit of their own, which is busy for 64 cycles with a step's four products while the vector units
wait. :func:`beside` lets those read another block's logits meanwhile: instructions of both are mixed as finely as a
processor looks ahead.
"""

from __future__ import annotations

from typing import Any, no_type_check

import llvmlite.ir as ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from exitlens.compute.tiles import STEP, call, prefetch
from exitlens.compute.vectors import LANES, Vectors, constant
from exitlens.lenses.kernels.lanes import LOG2E, MAGIC, POWERS

__all__ = ["BLOCK", "HELD", "LOWEST", "beside", "block", "fetch"]

BLOCK = 32  # rows of the left and of the right matrix in a block
LOWEST = -87.0  # e^−87 = 1.6e-38, the least that float32 holds in full
HELD = 10  # vectors that a block's sums are: total, first, second, cross and largest, of either 16 rows
_I8, _I64 = ir.IntType(8), ir.IntType(64)
_PAIRS = BLOCK // 2  # of tokens


class _Product:
    """The products of one block, a step of 32 columns at a time."""

    def __init__(self, lanes: Vectors, arguments: tuple[Any, ...]) -> None:
        _, at, width, _, start, self._steps, repeats, _, place, self._fresh = arguments
        builder = self._builder = lanes.builder
        self.steps = builder.mul(self._steps, repeats)
        self._left, self._right = lanes.start(0, at, 2), lanes.start(3, start, 2)
        self._stride = builder.mul(width, _I64(2))
        self._lower = builder.mul(self._stride, _I64(16))
        self._corners = [
            (_I8(2 * i + j), lanes.start(7, builder.add(place, _I64(i * 16 * BLOCK + j * 16))))
            for i in (0, 1)
            for j in (0, 1)
        ]
        self._column = cgutils.alloca_once_value(builder, _I64(0))

    def begin(self) -> None:
        """Tiles hold 0, or what was added up so far."""
        builder = self._builder
        with builder.if_else(self._fresh) as (new, old):
            with new:
                for tile, _ in self._corners:
                    call(builder, "tilezero", tile)
            with old:
                for tile, corner in self._corners:
                    call(builder, "tileloadd64", tile, corner, _I64(4 * BLOCK))

    def step(self, number: Any) -> None:
        """Step ``number``: the right matrix goes on, the left one begins anew with each of its repeats."""
        builder = self._builder
        column = builder.load(self._column)
        left = builder.gep(self._left, [builder.mul(column, _I64(2 * STEP))])
        right = builder.gep(self._right, [builder.mul(number, _I64(2048))])
        call(builder, "tileloadd64", _I8(4), left, self._stride)
        call(builder, "tileloaddt164", _I8(6), right, _I64(64))
        call(builder, "tileloaddt164", _I8(7), builder.gep(right, [_I64(1024)]), _I64(64))
        call(builder, "tileloadd64", _I8(5), builder.gep(left, [self._lower]), self._stride)
        for i in (0, 1):
            for j in (0, 1):
                call(builder, "tdpbf16ps", _I8(2 * i + j), _I8(4 + i), _I8(6 + j))
        after = builder.add(column, _I64(1))
        ended = builder.icmp_unsigned("==", after, self._steps)
        builder.store(builder.select(ended, _I64(0), after), self._column)

    def end(self) -> None:
        for tile, corner in self._corners:
            call(self._builder, "tilestored64", tile, corner, _I64(4 * BLOCK))


class _Reading:
    """Sums over a block's logits, two tokens of 32 rows at a time; see :func:`.sums._over`, which does the same."""

    def __init__(self, lanes: Vectors, arguments: tuple[Any, ...]) -> None:
        _, at, _, row, _, count, first, other, self._how, _ = arguments
        self._lanes, builder = lanes, lanes.builder
        self._builder = builder
        self._z = lanes.start(10, at)
        shift = lanes.start(12, row)
        self._shift = [lanes.load(shift, LANES * half) for half in (0, 1)]
        self._pace = builder.mul(count, _I64(4))
        self._likely = [lanes.start(14, place) for place in (first, other)]
        self._total, self._first, self._second, self._cross = (lanes.sums(2) for _ in range(4))
        self._largest = lanes.sums(4, float("-inf"))
        self._held = lanes.start(19, _I64(0))

    def _asked(self, bit: int) -> Any:
        builder = self._builder
        return builder.icmp_signed("!=", builder.and_(self._how, _I64(bit)), _I64(0))

    def pair(self, number: Any) -> None:
        """Tokens 2·``number`` and 2·``number`` + 1."""
        lanes, builder = self._lanes, self._builder
        start = builder.gep(self._z, [builder.mul(number, _I64(4 * 2 * BLOCK))])
        z = [lanes.load(start, LANES * k) for k in range(4)]
        d = [lanes.maximum(constant(LOWEST), builder.fsub(z[k], self._shift[k & 1])) for k in range(4)]
        e = self._exp(d)
        for k in range(4):
            half = k & 1
            builder.store(lanes.maximum(z[k], builder.load(self._largest[k])), self._largest[k])
            builder.store(builder.fadd(builder.load(self._total[half]), e[k]), self._total[half])
            builder.store(lanes.fma(d[k], e[k], builder.load(self._first[half])), self._first[half])
        with builder.if_then(self._asked(4)):
            for k in range(4):
                half, square = k & 1, builder.fmul(d[k], d[k])
                builder.store(lanes.fma(square, e[k], builder.load(self._second[half])), self._second[half])
        even = builder.mul(builder.mul(number, _I64(2)), self._pace)
        places = [
            builder.gep(self._likely[k & 1], [even if k < 2 else builder.add(even, self._pace)]) for k in range(4)
        ]
        with builder.if_then(self._asked(2)):
            for k in range(4):
                half = k & 1
                found = lanes.fma(lanes.load(places[k]), z[k], builder.load(self._cross[half]))
                builder.store(found, self._cross[half])
        with builder.if_then(self._asked(1)):
            for k in range(4):
                lanes.store(e[k], places[k])

    def _exp(self, d: list[Any]) -> list[Any]:
        """As :func:`.lanes.four_exp`."""
        lanes, builder = self._lanes, self._builder
        log2e, magic = constant(float(LOG2E)), constant(float(MAGIC))
        n = [lanes.fma(x, log2e, magic) for x in d]
        f = [lanes.fma(x, log2e, builder.fsub(magic, y)) for x, y in zip(d, n, strict=True)]
        p = [constant(float(POWERS[0]))] * 4
        for power in POWERS[1:]:
            p = [lanes.fma(x, y, constant(float(power))) for x, y in zip(p, f, strict=True)]
        return [lanes.shifted(x, y) for x, y in zip(p, n, strict=True)]

    def end(self) -> None:
        lanes, builder = self._lanes, self._builder
        a, b, c, d = (builder.load(place) for place in self._largest)
        sums = [builder.load(p) for p in (*self._total, *self._first, *self._second, *self._cross)]
        for k, value in enumerate([*sums, lanes.maximum(a, c), lanes.maximum(b, d)]):
            lanes.store(value, self._held, LANES * k)


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
    out: Any,
    place: Any,
    fresh: Any,
) -> Any:
    """``out[place + 32 i + r] (+)= Σ_k left[at + width·i + k] · right[…]`` for i, r < 32, float32.

    ``left`` is a matrix of ``width`` columns, read from element ``at`` on, ``steps`` × 32 columns. ``right`` holds
    ``repeats`` × ``steps`` × 2 tiles of 16 × 32 numbers from element ``start`` on: each repeat is multiplied with the
    same left matrix, all are added up. Both are bf16 as int16. ``fresh``: what ``out`` holds is not added to.
    """
    whole = types.intp
    signature = types.none(left, whole, whole, right, whole, whole, whole, out, whole, types.boolean)

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        product = _Product(Vectors(context, builder, signature, arguments), tuple(arguments))
        product.begin()
        with cgutils.for_range(builder, product.steps) as loop:
            product.step(loop.index)
        product.end()
        return context.get_dummy_value()

    return signature, code


@intrinsic
@no_type_check
def fetch(_context: Any, array: Any, begin: Any, end: Any) -> Any:
    """Have numbers ``begin`` to ``end`` of an array of int16 brought into the second cache meanwhile."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = Vectors(context, builder, signature, arguments).start(0, arguments[1], 2)
        lines = builder.sdiv(builder.sub(arguments[2], arguments[1]), _I64(32))
        with cgutils.for_range(builder, lines) as loop:
            prefetch(builder, builder.gep(start, [builder.mul(loop.index, _I64(64))]), cache=2)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp), code


@intrinsic
@no_type_check
def beside(
    _context: Any,
    left: Any, at: Any, width: Any, right: Any, start: Any, steps: Any, repeats: Any, out: Any, place: Any, fresh: Any,
    z: Any, begin: Any, shift: Any, row: Any, likely: Any, count: Any, lane: Any, other: Any, how: Any, held: Any,
) -> Any:  # fmt: skip
    """As :func:`block`, while sums of another block, the logits ``z[begin + 32 t + r]``, are left in ``held``.

    They are relative to ``shift[row…]`` as it is: ten vectors, total, first, second, cross and largest of rows 0–15 and
    16–31. ``likely``, ``count``, ``lane``, ``other`` and ``how`` as for :func:`.sums._over`.
    """
    whole = types.intp
    signature = types.none(
        left, whole, whole, right, whole, whole, whole, out, whole, types.boolean,
        z, whole, shift, whole, likely, whole, whole, whole, whole, held,
    )  # fmt: skip

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Vectors(context, builder, signature, arguments)
        product, reading = _Product(lanes, tuple(arguments[:10])), _Reading(lanes, tuple(arguments[10:]))
        product.begin()
        done = cgutils.alloca_once_value(builder, _I64(0))
        with cgutils.for_range(builder, _I64(_PAIRS)) as pair:
            share = builder.mul(product.steps, builder.add(pair.index, _I64(1)))
            until = builder.udiv(share, _I64(_PAIRS))
            with cgutils.for_range(builder, until, start=builder.load(done)) as loop:
                product.step(loop.index)
            builder.store(until, done)
            reading.pair(pair.index)
        product.end()
        reading.end()
        return context.get_dummy_value()

    return signature, code
