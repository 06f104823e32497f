"""One token a row through all blocks of a Llama-like model, compiled: one call instead of two thousand.

At few rows a step is bound by reading every weight once. So the weights lie in the order in which they are read, and
nothing waits between them: each thread computes its share of every product, and threads meet five times a block at a
counter (a meeting takes a fraction of a microsecond; handing a product to a pool of threads takes ten).

Products run in the processor's tile registers (Intel AMX): 16 outputs × 16 rows of sums in float32 from 16 × 32 weights
and 32 × 16 states in bf16. Every value that the model itself keeps in bf16 is rounded to bf16 here at the same place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray
from numpy.typing import NDArray

from exitlens.compute.tiles import STEP, reset_tiles, set_tiles, tile_settings
from exitlens.models.native._machine import (
    LANES,
    TILE,
    exp,
    kernel,
    long,
    meet,
    multiply,
    pointer,
    rounded,
    short,
    sums,
)  # fmt: skip

__all__ = ["LANES", "STEP", "Cache", "Shape", "State", "Weights", "step", "tile_settings"]


class Shape(NamedTuple):
    """Sizes, and the two numbers of the configuration that enter."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    hidden: int
    vocab: int
    eps: float
    scaling: float


class Weights(NamedTuple):
    """Packed products ``[tiles]`` with where each begins ``[layers, 4]`` (qkv, out, gate and up, down), the head's
    ``head``; norms ``[2·layers + 1, width]``; biases ``[layers, (heads + 2·kv)·head_dim]``; ``windows
    [layers]``, 0: all.
    """

    packed: NDArray[np.int16]
    starts: NDArray[np.int64]
    head: NDArray[np.int16]
    norms: NDArray[np.float32]
    biases: NDArray[np.float32]
    windows: NDArray[np.int64]


class Cache(NamedTuple):
    """Addresses of keys and values ``[layers, 2]``, each bf16 ``[rows, kv_heads, room, head_dim]``; those that all rows
    begin with ``[layers, 2]``: keys ``[kv_heads, head_dim, past]``, values ``[kv_heads, past, head_dim]``.
    """

    own: NDArray[np.int64]
    shared: NDArray[np.int64]
    room: int
    past: int


class State(NamedTuple):
    """``x [rows, width]``: in and out. ``cos``, ``sin [rows, head_dim]``; ``at [rows]``: the new token's position.

    ``kept [layers, rows, width]`` is filled where ``keep [layers]`` says so; ``logits [rows, vocab]`` where ``read``.
    The rest is room to work in: ``qkv``, ``mixed`` and ``hidden`` (packed for the tiles), ``meet`` (the counter).
    """

    x: NDArray[np.float32]
    cos: NDArray[np.float32]
    sin: NDArray[np.float32]
    at: NDArray[np.int64]
    keep: NDArray[np.bool_]
    kept: NDArray[np.float32]
    logits: NDArray[np.float32]
    qkv: NDArray[np.float32]
    mixed: NDArray[np.int16]
    hidden: NDArray[np.int16]
    meet: NDArray[np.int64]


@kernel
def _place(k: Any, r: Any) -> Any:
    """Where input ``k`` of row ``r`` stands in the tiles of the right matrix: inputs in pairs, rows side by side."""
    return (k // STEP) * TILE + (k % STEP) // 2 * STEP + 2 * r + k % 2


@sums
def _dot(a: Any, b: Any) -> Any:
    found = np.float32(0.0)
    for i in range(len(a)):
        found += a[i] * long(b[i])
    return found


@sums
def _squares(x: Any) -> Any:
    found = np.float32(0.0)
    for i in range(len(x)):
        found += x[i] * x[i]
    return found


@kernel
def _normed(x: Any, weight: Any, eps: Any, out: Any) -> None:
    """RMS norm of every row into the tiles of the right matrix, rounded before the weight and after it."""
    rows, width = x.shape
    for r in range(rows):
        scale = np.float32(1.0) / np.sqrt(_squares(x[r]) / np.float32(width) + np.float32(eps))
        for k in range(width):
            out[_place(k, r)] = short(rounded(weight[k] * rounded(x[r, k] * scale)))


# ---- a step


@kernel
def _turned(x: Any, cos: Any, sin: Any, out: Any) -> None:
    """Rotary embedding of one head; the sign of the first half is in ``sin`` already."""
    half = len(out) // 2
    for i in range(half):
        out[i] = rounded(rounded(x[i] * cos[i]) + rounded(x[i + half] * sin[i]))
        out[i + half] = rounded(rounded(x[i + half] * cos[i + half]) + rounded(x[i] * sin[i + half]))


@sums
def _add_times(out: Any, p: Any, values: Any) -> None:
    for i in range(len(out)):
        out[i] += p * long(values[i])


@sums
def _softmax(weights: Any, count: Any, scaling: Any) -> Any:
    """Scores to e^(score − largest), rounded; their sum."""
    big = np.float32(-np.inf)
    for i in range(count):
        weights[i] *= scaling
        big = max(big, weights[i])
    total = np.float32(0.0)
    for i in range(count):
        e = exp(weights[i] - big)
        total += e
        weights[i] = rounded(e)
    return total


@kernel
def _attend(layer: Any, r: Any, head: Any, shape: Any, cache: Any, state: Any, window: Any, room: Any) -> None:
    """One head of one row: its key and value go into the cache, its mixed values into the tiles."""
    hd, group = shape.head_dim, shape.heads // shape.kv_heads
    kv, past, at = head // group, cache.past, state.at[r]
    query, key, mixed, weights = room
    row = state.qkv[r]
    _turned(row[head * hd : (head + 1) * hd], state.cos[r], state.sin[r], query)
    _turned(row[(shape.heads + kv) * hd : (shape.heads + kv + 1) * hd], state.cos[r], state.sin[r], key)
    block = (r * shape.kv_heads + kv) * cache.room * hd * 2
    count = at - past + 1
    keys = carray(pointer(cache.own[layer, 0] + block), (count, hd), np.int16)
    values = carray(pointer(cache.own[layer, 1] + block), (count, hd), np.int16)
    first_v = (shape.heads + shape.kv_heads + kv) * hd
    for i in range(hd):  # threads of other heads of the group write the same numbers
        keys[count - 1, i] = short(key[i])
        values[count - 1, i] = short(row[first_v + i])
    first = max(0, at + 1 - window) if window > 0 else 0
    if past > 0:
        early = carray(pointer(cache.shared[layer, 0] + kv * past * hd * 2), (hd, past), np.int16)
        weights[:past] = np.float32(0.0)
        for i in range(hd):
            _add_times(weights[:past], query[i], early[i])
    for i in range(max(0, first - past), count):
        weights[past + i] = _dot(query, keys[i])
    total = _softmax(weights[first : at + 1], at + 1 - first, np.float32(shape.scaling))
    mixed[:] = np.float32(0.0)
    if past > first:
        given = carray(pointer(cache.shared[layer, 1] + kv * past * hd * 2), (past, hd), np.int16)
        for i in range(first, past):
            _add_times(mixed, weights[i], given[i])
    for i in range(max(0, first - past), count):
        _add_times(mixed, weights[past + i], values[i])
    for i in range(hd):
        state.mixed[_place(head * hd + i, r)] = short(rounded(mixed[i] / total))


@kernel
def _share(count: Any, thread: Any, threads: Any) -> Any:
    return count * thread // threads, count * (thread + 1) // threads


@kernel
def _add_product(weight: Any, start: Any, inputs: Any, states: Any, x: Any, share: Any, out: Any) -> None:
    """Add a product's outputs to the residual stream, both rounded."""
    steps = inputs // STEP
    for g in range(share[0], share[1]):
        multiply(weight, start + g * steps * TILE, steps, states, out)
        for r in range(len(x)):
            for o in range(LANES):
                x[r, g * LANES + o] = rounded(x[r, g * LANES + o] + rounded(out[o * LANES + r]))


@kernel
def _project(weights: Any, layer: Any, shape: Any, state: Any, states: Any, share: Any, out: Any) -> None:
    steps, rows = shape.width // STEP, len(state.x)
    for g in range(share[0], share[1]):
        multiply(weights.packed, weights.starts[layer, 0] + g * steps * TILE, steps, states, out)
        for o in range(LANES):
            bias = weights.biases[layer, g * LANES + o] if weights.biases.shape[1] else np.float32(0.0)
            for r in range(rows):
                state.qkv[r, g * LANES + o] = rounded(out[o * LANES + r] + bias)


@kernel
def _gated(weights: Any, layer: Any, shape: Any, state: Any, states: Any, share: Any, out: Any, up: Any) -> None:
    """silu(gate) · up into the tiles; gate and up lie side by side, 16 outputs of one and 16 of the other."""
    steps, rows = shape.width // STEP, len(state.x)
    one = np.float32(1.0)
    for g in range(share[0], share[1]):
        start = weights.starts[layer, 2] + 2 * g * steps * TILE
        multiply(weights.packed, start, steps, states, out)
        multiply(weights.packed, start + steps * TILE, steps, states, up)
        for i in range(LANES * LANES):
            gate = rounded(out[i])
            silu = rounded(gate / (one + exp(min(-gate, np.float32(88.0)))))
            out[i] = rounded(silu * rounded(up[i]))
        for o in range(LANES):
            for r in range(rows):
                state.hidden[_place(g * LANES + o, r)] = short(out[o * LANES + r])


@kernel
def step(shape: Any, weights: Any, cache: Any, state: Any, settings: Any, read: Any, thread: Any, threads: Any) -> None:
    """This thread's share of a step; all ``threads`` must be called with the same arguments at the same time."""
    rows, hd = len(state.x), shape.head_dim
    states = np.zeros(shape.width * LANES, np.int16)
    out, up = np.zeros(LANES * LANES, np.float32), np.zeros(LANES * LANES, np.float32)
    longest = 0
    for r in range(rows):
        longest = max(longest, state.at[r] + 1)
    room = (np.empty(hd, np.float32), np.empty(hd, np.float32), np.empty(hd, np.float32), np.empty(longest, np.float32))
    before = np.zeros(64, np.uint8)
    set_tiles(settings, before)
    times = 0
    for layer in range(shape.layers):
        _normed(state.x, weights.norms[2 * layer], shape.eps, states)
        share = _share((shape.heads + 2 * shape.kv_heads) * hd // LANES, thread, threads)
        _project(weights, layer, shape, state, states, share, out)
        times = meet(state.meet, threads, times)
        a, b = _share(rows * shape.heads, thread, threads)
        for i in range(a, b):
            _attend(layer, i // shape.heads, i % shape.heads, shape, cache, state, weights.windows[layer], room)
        times = meet(state.meet, threads, times)
        share = _share(shape.width // LANES, thread, threads)
        _add_product(weights.packed, weights.starts[layer, 1], shape.heads * hd, state.mixed, state.x, share, out)
        times = meet(state.meet, threads, times)
        _normed(state.x, weights.norms[2 * layer + 1], shape.eps, states)
        parts = _share(shape.hidden // LANES, thread, threads)
        _gated(weights, layer, shape, state, states, parts, out, up)
        times = meet(state.meet, threads, times)
        _add_product(weights.packed, weights.starts[layer, 3], shape.hidden, state.hidden, state.x, share, out)
        if state.keep[layer]:
            a, b = share[0] * LANES, share[1] * LANES
            state.kept[layer, :, a:b] = state.x[:, a:b]
        times = meet(state.meet, threads, times)
    if read:
        _normed(state.x, weights.norms[2 * shape.layers], shape.eps, states)
        steps = shape.width // STEP
        a, b = _share(shape.vocab // LANES, thread, threads)
        for g in range(a, b):
            multiply(weights.head, g * steps * TILE, steps, states, out)
            for r in range(rows):
                for o in range(LANES):
                    state.logits[r, g * LANES + o] = rounded(out[o * LANES + r])
    reset_tiles(before)
