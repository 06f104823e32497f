"""Tokens through the blocks of a Llama-like model, compiled: one call instead of two thousand.

At few tokens a step is bound by reading every weight once. So the weights lie in the order in which they are read, and
nothing waits between them: each thread computes its share of every product, and threads meet a few times a block at a
counter (a meeting takes a fraction of a microsecond; handing a product to a pool of threads takes ten).

Products run in the processor's tile registers (Intel AMX): 16 tokens × 16 outputs of sums in float32, from 16 × 32
states and 32 × 16 weights in bf16. Every value that the model itself keeps in bf16 is rounded to bf16 here at the same
place, and no token's numbers depend on the others of a call.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from exitlens.compute.tiles import STEP, reset_tiles, set_tiles, tile_settings
from exitlens.models.native._attention import attend, room, turn
from exitlens.models.native._lanes import add_rows, put_rows, silu_rows
from exitlens.models.native._machine import (
    LANES,
    PAIR,
    TILE,
    floats,
    kernel,
    meet,
    multiply,
    next_task,
    rounded,
    short,
    shorts,
    sums,
)  # fmt: skip
from exitlens.models.native._shapes import Cache, Plan, Shape, State, Weights

__all__ = ["LANES", "PAIR", "STEP", "Cache", "Plan", "Shape", "State", "Weights", "run", "tile_settings"]

_BESIDE = 8  # products of 32 logits
_CHUNK = 256  # tokens that pass all of a thread's weights of a product together: their states stay in its cache


@sums
def _squares(x: Any) -> Any:
    found = np.float32(0.0)
    for i in range(len(x)):
        found += x[i] * x[i]
    return found


@kernel
def _normed(x: Any, weight: Any, eps: Any, out: Any, begin: Any, end: Any) -> None:
    """RMS norm of rows ``begin``..``end`` into rows of the tiles, rounded before the weight and after it."""
    width = x.shape[1]
    for r in range(begin, end):
        row, into = x[r], out[r * (width + STEP) : r * (width + STEP) + width]
        scale = np.float32(1.0) / np.sqrt(_squares(row) / np.float32(width) + np.float32(eps))
        for k in range(width):
            into[k] = short(rounded(weight[k] * rounded(row[k] * scale)))


@kernel
def _as_they_are(x: Any, out: Any) -> None:
    width = x.shape[1]
    for r in range(len(x)):
        for k in range(width):
            out[r * (width + STEP) + k] = short(x[r, k])


@kernel
def _share(count: Any, thread: Any, threads: Any) -> Any:
    return count * thread // threads, count * (thread + 1) // threads


@kernel
def _add_product(weight: Any, start: Any, inputs: Any, states: Any, x: Any, share: Any, out: Any) -> None:
    """Add a product's outputs to the residual stream, both rounded."""
    steps, (rows, width) = inputs // STEP, x.shape
    for chunk in range(0, rows, _CHUNK):
        for g in range(share[0], share[1]):
            for t in range(chunk, min(chunk + _CHUNK, rows), PAIR):
                at, stride, fresh = start + g * steps * 2 * TILE, inputs + STEP, 1 if t == chunk else 0
                multiply(weight, at, steps, states, t * stride, stride, rows - t, fresh, out, 0, PAIR, LANES)
                add_rows(out, x, t * width + g * PAIR, width, min(PAIR, rows - t))


@kernel
def _project(weights: Any, layer: Any, shape: Any, state: Any, states: Any, share: Any, out: Any) -> None:
    """Queries, keys and values of all heads."""
    wide = state.qkv.shape[1]
    steps, rows, stride = shape.width // STEP, len(state.x), shape.width + STEP
    for chunk in range(0, rows, _CHUNK):
        for g in range(share[0], share[1]):
            at = weights.starts[layer, 0] + g * steps * 2 * TILE
            for t in range(chunk, min(chunk + _CHUNK, rows), PAIR):
                fresh = 1 if t == chunk else 0
                multiply(weights.packed, at, steps, states, t * stride, stride, rows - t, fresh, out, 0, PAIR, LANES)
                place = t * wide + g * PAIR
                put_rows(out, weights.biases, layer * wide + g * PAIR, state.qkv, place, wide, min(PAIR, rows - t))


@kernel
def _gated(weights: Any, layer: Any, shape: Any, state: Any, states: Any, share: Any, out: Any) -> None:
    """silu(gate) · up into rows of the tiles; gate and up lie side by side, 16 outputs of one and 16 of the other."""
    steps, rows, stride = shape.width // STEP, len(state.x), shape.width + STEP
    block = PAIR * LANES  # of gate, then of up
    for chunk in range(0, rows, _CHUNK):
        for g in range(share[0], share[1]):
            at = weights.starts[layer, 2] + g * steps * 2 * TILE
            for t in range(chunk, min(chunk + _CHUNK, rows), PAIR):
                fresh = 1 if t == chunk else 0
                multiply(weights.packed, at, steps, states, t * stride, stride, rows - t, fresh, out, 0, LANES, block)
                place = t * (shape.hidden + STEP) + g * LANES
                silu_rows(out, block, state.hidden, place, shape.hidden + STEP, min(PAIR, rows - t))


@kernel
def _logits(weights: Any, shape: Any, state: Any, states: Any, share: Any, out: Any) -> None:
    """Outputs of several products side by side, so that what is written of a row lies together."""
    steps, rows, stride = shape.width // STEP, len(state.x), shape.width + STEP
    nothing = np.zeros(PAIR, np.float32)
    for first in range(share[0], share[1], _BESIDE):
        for t in range(0, rows, PAIR):
            fresh = 1 if t == 0 else 0
            for g in range(first, min(first + _BESIDE, share[1])):
                at = g * steps * 2 * TILE
                multiply(weights.head, at, steps, states, t * stride, stride, rows - t, fresh, out, 0, PAIR, LANES)
                place = t * shape.vocab + g * PAIR
                put_rows(out, nothing, 0, state.logits, place, shape.vocab, min(PAIR, rows - t))


@kernel
def _attention(layer: Any, states: Any, args: Any, held: Any, times: Any, thread: Any, threads: Any) -> Any:
    """A block's attention, without what it adds to the stream; how often threads have met."""
    shape, weights, cache, state, plan = args
    out, space = held
    count = (shape.heads + 2 * shape.kv_heads) * shape.head_dim // PAIR
    _project(weights, layer, shape, state, states, _share(count, thread, threads), out)
    times = meet(state.meet, threads, times)
    a, b = _share(len(state.x), thread, threads)
    for i in range(a, b):
        turn(layer, i, shape, cache, state)
    times = meet(state.meet, threads, times)
    work = len(plan.blocks) * shape.kv_heads if plan.parts[layer, 0] == 1 else 0
    i = next_task(state.tasks[layer:])
    while i < work:  # the last blocks of a row see most keys: they come first
        index = len(plan.blocks) - 1 - i // shape.kv_heads
        attend(layer, index, i % shape.kv_heads, shape, cache, state, plan, weights.windows[layer], space)
        i = next_task(state.tasks[layer:])
    return meet(state.meet, threads, times)


@kernel
def _norm_all(x: Any, weight: Any, eps: Any, out: Any, meeting: Any, times: Any, thread: Any, threads: Any) -> Any:
    """The norm of all rows: each thread those it needs where they are few, else each its share."""
    if len(x) <= LANES:
        _normed(x, weight, eps, out, 0, len(x))
        return times
    a, b = _share(len(x), thread, threads)
    _normed(x, weight, eps, out, a, b)
    return meet(meeting, threads, times)


@kernel
def run(shape: Any, weights: Any, cache: Any, state: Any, plan: Any, settings: Any, thread: Any, threads: Any) -> None:
    """This thread's share of a call; all ``threads`` must be called with the same arguments at the same time."""
    own = shorts(LANES * (shape.width + STEP) if len(state.x) <= LANES else 0)
    states = own if len(state.x) <= LANES else state.normed
    out = floats(PAIR * PAIR)
    args, held = (shape, weights, cache, state, plan), (out, room(shape, cache, state))
    before = np.zeros(64, np.uint8)
    set_tiles(settings, before)
    times = 0
    share = _share(shape.width // PAIR, thread, threads)
    for layer in range(plan.first - 1, plan.last):
        if plan.parts[layer, 0]:
            norm = weights.norms[2 * layer]
            times = _norm_all(state.x, norm, shape.eps, states, state.meet, times, thread, threads)
            times = _attention(layer, states, args, held, times, thread, threads)
        if plan.parts[layer, 0] == 1:
            inputs = shape.heads * shape.head_dim
            _add_product(weights.packed, weights.starts[layer, 1], inputs, state.mixed, state.x, share, out)
            times = meet(state.meet, threads, times)
        if plan.parts[layer, 1]:
            norm = weights.norms[2 * layer + 1]
            times = _norm_all(state.x, norm, shape.eps, states, state.meet, times, thread, threads)
            _gated(weights, layer, shape, state, states, _share(shape.hidden // LANES, thread, threads), out)
            times = meet(state.meet, threads, times)
            _add_product(weights.packed, weights.starts[layer, 3], shape.hidden, state.hidden, state.x, share, out)
            times = meet(state.meet, threads, times)
        slot = plan.slots[layer]
        if slot >= 0:
            a, b = _share(len(state.x), thread, threads)
            for r in range(a, b):
                for i in range(shape.width):
                    state.kept[slot, r, i] = short(state.x[r, i])
            # The next block's first writes to the stream come after two more meetings.
    if plan.read > 0:
        norm = weights.norms[2 * shape.layers]
        if plan.read == 1:
            times = _norm_all(state.x, norm, shape.eps, states, state.meet, times, thread, threads)
        elif thread == 0 or len(state.x) <= LANES:
            _as_they_are(state.x, states)
        if plan.read == 2:
            times = meet(state.meet, threads, times)
        _logits(weights, shape, state, states, _share(shape.vocab // PAIR, thread, threads), out)
    reset_tiles(before)
