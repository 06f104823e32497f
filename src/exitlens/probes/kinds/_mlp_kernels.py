"""The compiled epoch of a small network: products, gradients and Adam's step without leaving a core's own cache.

A batch has at most 16 rows, one a lane of a vector. ``states`` of a batch lie as ``[numbers, 16 rows]``; a weight as
``[blocks of 16 outputs, inputs + 1, 16 outputs]``, its last input the bias, which meets a state that is always 1. So
the three products of a layer (outputs, gradient, what goes back to its inputs) read vectors as they lie:

- outputs and what goes back: a vector of 16 rows times one weight, 16 sums at a time;
- gradient: the 16 rows' errors for a block of outputs stay in registers, each input's 16 numbers are multiplied with
  them, and Adam moves that vector of weights at once: a gradient is never stored.

The first layer holds four fifths of all weights. Its blocks are moved by one batch and multiplied with the next while
they are in the first cache, upwards and downwards in turn: weights and moments (2.3 MB at width 576) are a little more
than a core's second cache, which forgets what was used longest ago, and in turn most of them are still there.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import llvmlite.ir as ir
import numpy as np
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from exitlens.compute.tiles import call, data_of
from exitlens.compute.vectors import LANES, Vectors, constant

__all__ = ["LANES", "epoch"]

_SQUARE = LANES * LANES
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_EPS, _BETA1, _BETA2 = 1e-8, 0.9, 0.999  # PyTorch's defaults

# No folder to keep machine code in: see exitlens.compute.compiled.
_kernel = njit(nogil=True, cache=bool(config.CACHE_DIR), error_model="numpy")


# ---- what LLVM is told


@intrinsic
@no_type_check
def _outputs(_context: Any, x: Any, at: Any, w: Any, start: Any, inputs: Any, out: Any, place: Any, relu: Any) -> Any:
    """A block of 16 outputs of a layer: ``out[place + 16·o + r] = Σ_i w[start + 16·i + o] · x[at + 16·i + r]``."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Vectors(context, builder, signature, arguments)
        _, at, _, start, inputs, _, place, relu = arguments
        left, right, target = lanes.start(0, at), lanes.start(2, start), lanes.start(5, place)
        sums = lanes.sums(LANES)
        with cgutils.for_range(builder, inputs) as loop:
            step = builder.mul(loop.index, _I64(4 * LANES))
            rows, weights = lanes.load(builder.gep(left, [step])), builder.gep(right, [step])
            for o, total in enumerate(sums):
                builder.store(lanes.fma(lanes.each(weights, o), rows, builder.load(total)), total)
        for o, total in enumerate(sums):
            found = builder.load(total)
            lanes.store(builder.select(relu, lanes.positive(found, found), found), target, LANES * o)
        return context.get_dummy_value()

    whole = types.intp
    return types.none(x, whole, w, whole, whole, out, whole, types.boolean), code


@intrinsic
@no_type_check
def _back(
    _context: Any, w: Any, start: Any, pace: Any, blocks: Any, error: Any, at: Any, acts: Any, seen: Any, place: Any
) -> Any:
    """Errors of 16 inputs of a layer, from those of its outputs at ``error[at…]``; 0 where the input itself was.

    ``error[place + 16·i + r] = Σ_o w[start + pace·⌊o/16⌋ + 16·i + o mod 16] · error[at + 16·o + r]`` for i < 16, where
    ``acts[seen + 16·i + r]`` is over 0.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Vectors(context, builder, signature, arguments)
        _, start, pace, blocks, _, at, _, seen, place = arguments
        right, left = lanes.start(0, start), lanes.start(4, at)
        inputs, target = lanes.start(6, seen), lanes.start(4, place)
        sums = lanes.sums(LANES)
        with cgutils.for_range(builder, blocks) as loop:
            weights = builder.gep(right, [builder.mul(builder.mul(loop.index, pace), _I64(4))])
            errors = builder.gep(left, [builder.mul(loop.index, _I64(4 * _SQUARE))])
            for o in range(LANES):
                rows = lanes.load(errors, LANES * o)
                for i, total in enumerate(sums):
                    weight = lanes.each(weights, LANES * i + o)
                    builder.store(lanes.fma(weight, rows, builder.load(total)), total)
        for i, total in enumerate(sums):
            found = lanes.positive(builder.load(total), lanes.load(inputs, LANES * i))
            lanes.store(found, target, LANES * i)
        return context.get_dummy_value()

    whole = types.intp
    return types.none(w, whole, whole, whole, error, whole, acts, whole, whole), code


@intrinsic
@no_type_check
def _move(
    _context: Any, x: Any, at: Any, error: Any, turned: Any, inputs: Any,
    w: Any, first: Any, second: Any, start: Any, pace: Any, scale: Any,
) -> Any:  # fmt: skip
    """Adam's step of a block of 16 outputs: ``w``, ``first`` and ``second`` from ``start`` on, ``inputs`` × 16 of each.

    The gradient of input i is ``Σ_r x[at + 16·i + r] · error[turned + 16·r + o]``. ``pace``: the learning rate over
    ``1 − β₁^t``; ``scale``: ``(1 − β₂^t)^−½``.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Vectors(context, builder, signature, arguments)
        _, at, _, turned, inputs, _, _, _, start, pace, scale = arguments
        left, errors = lanes.start(0, at), lanes.start(2, turned)
        places = [lanes.start(array, start) for array in (5, 6, 7)]
        rows = [lanes.load(errors, LANES * r) for r in range(LANES)]
        pace, scale = lanes.every(builder.fneg(pace)), lanes.every(scale)
        with cgutils.for_range(builder, inputs) as loop:
            step = builder.mul(loop.index, _I64(4 * LANES))
            numbers = builder.gep(left, [step])
            halves = [builder.fmul(lanes.each(numbers, r), rows[r]) for r in (0, 1)]
            for r in range(2, LANES):
                halves[r & 1] = lanes.fma(lanes.each(numbers, r), rows[r], halves[r & 1])
            gradient = builder.fadd(*halves)
            weight, one, two = (builder.gep(place, [step]) for place in places)
            mean = lanes.load(one)
            mean = lanes.fma(builder.fsub(gradient, mean), constant(1 - _BETA1), mean)
            square = builder.fmul(builder.fmul(gradient, gradient), constant(1 - _BETA2))
            square = lanes.fma(lanes.load(two), constant(_BETA2), square)
            below = lanes.fma(lanes.call("llvm.sqrt.v16f32", square), scale, constant(_EPS))
            lanes.store(mean, one)
            lanes.store(square, two)
            lanes.store(lanes.fma(builder.fdiv(mean, below), pace, lanes.load(weight)), weight)
        return context.get_dummy_value()

    whole = types.intp
    return types.none(
        x, whole, error, whole, whole, w, first, second, whole, types.float32, types.float32
    ), code  # fmt: skip


@intrinsic
@no_type_check
def _turn(_context: Any, x: Any, at: Any, pace: Any, out: Any, place: Any) -> Any:
    """``out[place + 16·i + r] = x[at + pace·r + i]`` for i, r < 16: halves, quarters, … change places."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = Vectors(context, builder, signature, arguments)
        _, at, pace, _, place = arguments
        source, target = lanes.start(0, at), lanes.start(3, place)
        stride = builder.mul(pace, _I64(4))
        rows = [lanes.load(builder.gep(source, [builder.mul(stride, _I64(r))])) for r in range(LANES)]
        for half in (8, 4, 2, 1):
            low = [k if not k & half else LANES + (k ^ half) for k in range(LANES)]
            high = [k | half if not k & half else LANES + k for k in range(LANES)]
            for r in range(LANES):
                if not r & half:
                    pair = rows[r], rows[r | half]
                    rows[r], rows[r | half] = (
                        builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(_I32, LANES), order))
                        for order in (low, high)
                    )
        for r, row in enumerate(rows):
            lanes.store(row, target, LANES * r)
        return context.get_dummy_value()

    whole = types.intp
    return types.none(x, whole, whole, out, whole), code


@intrinsic
@no_type_check
def _denormals(_context: Any, flags: Any) -> Any:
    """The thread's control word as it was, into ``flags[0]``; from now on numbers below 1e-38 are 0.

    The moments of a unit that no longer answers shrink until a processor takes a hundred cycles for each of them.
    """

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = data_of(context, builder, signature.args[0], arguments[0])
        call(builder, "sse.stmxcsr", place)
        flags, new = (builder.bitcast(builder.gep(place, [_I64(at)]), _I32.as_pointer()) for at in (0, 4))
        builder.store(builder.or_(builder.load(flags), _I32(0x8040)), new)
        call(builder, "sse.ldmxcsr", builder.gep(place, [_I64(4)]))
        return context.get_dummy_value()

    return types.none(flags), code


@intrinsic
@no_type_check
def _as_before(_context: Any, flags: Any) -> Any:
    """The control word that :func:`_denormals` found."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        call(builder, "sse.ldmxcsr", data_of(context, builder, signature.args[0], arguments[0]))
        return context.get_dummy_value()

    return types.none(flags), code


# ---- what numba compiles


@_kernel
@no_type_check
def _gather(states: Any, d: Any, rows: Any, first: Any, centre: Any, factor: Any, flat: Any, x: Any, at: Any) -> None:
    """The batch that begins at ``rows[first]`` into ``x[at…]`` as ``[d, 16 rows]``; ``flat [16, d]`` is overwritten."""
    wide = len(flat) // LANES
    for r in range(LANES):
        source, target = rows[first + r] * d, r * wide
        if len(centre):
            for i in range(d):
                flat[target + i] = (states[source + i] - centre[i]) * factor[i]
        else:
            for i in range(d):
                flat[target + i] = states[source + i]
    for i in range(0, wide, LANES):
        _turn(flat, i, wide, x, at + LANES * i)
    for r in range(LANES):
        x[at + LANES * d + r] = 1.0


@_kernel
@no_type_check
def _errors(out: Any, at: Any, targets: Any, first: Any, count: Any, error: Any, place: Any) -> None:
    """The slope of the mean cross-entropy of ``count`` rows by their log-odds ``out[at…]``; 0 for rows that fill up."""
    share = np.float32(1.0) / np.float32(count)
    for r in range(LANES):
        p = np.float32(1.0) / (np.float32(1.0) + np.float32(math.exp(-out[at + r])))
        error[place + r] = (p - targets[first + r]) * share if r < count else np.float32(0.0)


@_kernel
@no_type_check
def epoch(
    states: Any, rows: Any, targets: Any, full: Any, last: Any, centre: Any, factor: Any,
    weight: Any, first: Any, second: Any, inputs: Any, blocks: Any, done: Any, lr: Any,
) -> None:  # fmt: skip
    """One epoch of one network.

    ``states [n·d]``; ``rows``, ``targets``: numbers and labels of the rows in their order, 16 a batch, of which the
    first ``full`` count, ``last`` in the last one. ``centre``, ``factor`` ``[d]`` or empty. ``weight``, ``first``,
    ``second``: weights and moments, layer after layer as above; ``inputs``, ``blocks`` of 16 outputs: of each layer.
    ``done``: Adam's steps before.
    """
    layers, d, batches = len(inputs), inputs[0], len(rows) // LANES
    size = LANES * (d + LANES)
    x, flat = np.zeros(2 * size, np.float32), np.zeros(LANES * (-(-d // LANES) * LANES), np.float32)
    # Layer k: weights from start[k], inputs (k > 0) in acts from seen[k], errors of outputs from after[k].
    start, seen, after = np.zeros(layers + 1, np.int64), np.zeros(layers + 1, np.int64), np.zeros(layers + 1, np.int64)
    for k in range(layers):
        start[k + 1] = start[k] + blocks[k] * (inputs[k] + 1) * LANES
        after[k + 1] = after[k] + blocks[k] * _SQUARE
        seen[k + 1] = seen[k] + (LANES * (inputs[k] + 1) if k else 0)
    acts = np.ones(seen[layers] + _SQUARE, np.float32)
    error, turned = np.zeros(after[layers], np.float32), np.zeros(after[layers], np.float32)
    pace, scale = np.float32(0.0), np.float32(0.0)
    flags = np.zeros(2, np.int32)
    _denormals(flags)
    for batch in range(batches + 1):
        now, before = (batch & 1) * size, (1 - batch & 1) * size
        if batch < batches:
            _gather(states, d, rows, batch * LANES, centre, factor, flat, x, now)
        for j in range(blocks[0]):
            b = j if batch & 1 else blocks[0] - 1 - j
            at = b * (d + 1) * LANES
            if batch:
                _move(x, before, turned, b * _SQUARE, d + 1, weight, first, second, at, pace, scale)
            if batch < batches:
                _outputs(x, now, weight, at, d + 1, acts, seen[1] + b * _SQUARE, layers > 1)
        if batch == batches:
            break
        for k in range(1, layers):
            for b in range(blocks[k]):
                at = start[k] + b * (inputs[k] + 1) * LANES
                _outputs(acts, seen[k], weight, at, inputs[k] + 1, acts, seen[k + 1] + b * _SQUARE, k < layers - 1)
        count = last if batch == batches - 1 else full
        _errors(acts, seen[layers], targets, batch * LANES, count, error, after[layers - 1])
        for k in range(layers - 1, 0, -1):
            for i in range(0, inputs[k] * LANES, _SQUARE):
                _back(
                    weight, start[k] + i, (inputs[k] + 1) * LANES, blocks[k], error, after[k],
                    acts, seen[k] + i, after[k - 1] + i,
                )  # fmt: skip
        for at in range(0, after[layers], _SQUARE):
            _turn(error, at, LANES, turned, at)
        t = done + batch + 1
        pace, scale = np.float32(lr / (1 - _BETA1**t)), np.float32(1 / math.sqrt(1 - _BETA2**t))
        for k in range(1, layers):
            for b in range(blocks[k]):
                at = start[k] + b * (inputs[k] + 1) * LANES
                _move(
                    acts, seen[k], turned, after[k] + b * _SQUARE, inputs[k] + 1,
                    weight, first, second, at, pace, scale,
                )  # fmt: skip
    _as_before(flags)
