"""Attention of compiled blocks: a few tokens of one row and the heads that share its keys, at a time.

Keys and values lie a second time as weights do, so that scores and mixed values are products in tile registers: what
all rows begin with, and what is a row's own. A token's numbers are the same whether it comes alone or among others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from exitlens.compute.tiles import STEP
from exitlens.models.native._machine import (
    LANES,
    PAIR,
    TILE,
    exp,
    floats,
    kernel,
    largest,
    multiply,
    pointer,
    rounded,
    short,
    shorts,
    sums,
)  # fmt: skip

__all__ = ["attend", "room", "turn"]


@kernel
def _whole(count: Any) -> Any:
    """To whole tiles."""
    return (count + STEP - 1) // STEP * STEP


@kernel
def _turned(x: Any, cos: Any, sin: Any, out: Any) -> None:
    """Rotary embedding of one head as bits of bf16; the sign of the first half is in ``sin`` already."""
    half = len(cos) // 2
    for i in range(half):
        out[i] = short(rounded(rounded(x[i] * cos[i]) + rounded(x[i + half] * sin[i])))
    for i in range(half):
        out[i + half] = short(rounded(rounded(x[i + half] * cos[i + half]) + rounded(x[i] * sin[i + half])))


@kernel
def turn(layer: Any, token: Any, shape: Any, cache: Any, state: Any) -> None:
    """Rotate a token's queries into the rows of the tiles, its keys into the cache; its values go there too."""
    hd, row, deep = shape.head_dim, state.qkv[token], shape.padded // STEP
    cos, sin, group = state.cos[token], state.sin[token], shape.heads // shape.kv_heads
    for head in range(shape.heads):
        into = ((head // group * len(state.x) + token) * group + head % group) * shape.padded
        _turned(row[head * hd : (head + 1) * hd], cos, sin, state.query[into : into + hd])
    at, line, tiles = state.at[token] - cache.past, state.rows[token], _whole(cache.room) // STEP
    size = tiles * STEP * shape.padded
    for kv in range(shape.kv_heads):
        block = ((line * shape.kv_heads + kv) * cache.room + at) * hd * 2
        key = carray(pointer(cache.own[layer, 0] + block), hd, np.int16)
        value = carray(pointer(cache.own[layer, 1] + block), hd, np.int16)
        first = (shape.heads + kv) * hd
        _turned(row[first : first + hd], cos, sin, key)
        first += shape.kv_heads * hd
        for i in range(hd):
            value[i] = short(row[first + i])
        begin = (line * shape.kv_heads + kv) * size * 2
        keys = carray(pointer(cache.packed[layer, 0] + begin), size, np.int16)
        values = carray(pointer(cache.packed[layer, 1] + begin), size, np.int16)
        step, k = at // STEP, at % STEP
        for s in range(deep):  # a key is an output of the scores' product, its numbers the inputs
            into = ((step * deep + s) * 2 + k // LANES) * TILE + (k % LANES) * 2
            for i in range(min(STEP, hd - s * STEP)):
                keys[into + i // 2 * STEP + i % 2] = key[s * STEP + i]
        for g in range(deep):  # a value is an input of the mixing's, its numbers the outputs
            into = (g * tiles + step) * 2 * TILE + k // 2 * STEP + k % 2
            for i in range(min(STEP, hd - g * STEP)):
                values[into + i // LANES * TILE + (i % LANES) * 2] = value[g * STEP + i]


@kernel
def room(shape: Any, cache: Any, state: Any) -> Any:
    """What a thread needs for the rows of a tile: scores, their weights as bits, mixed values of both parts."""
    longest = cache.past
    for i in range(len(state.at)):
        longest = max(longest, state.at[i] + 1)
    stride = _whole(cache.past) + _whole(longest - cache.past) + LANES
    mixed = floats(2 * LANES * shape.padded).reshape((2, LANES * shape.padded))
    return floats(LANES * stride), shorts(LANES * (stride + LANES)), mixed


@sums
def _weights(scores: Any, scaling: Any, big: Any, bits: Any) -> Any:
    """e^(score · scaling − big) as bits of bf16; their sum before rounding."""
    total = np.float32(0.0)
    for i in range(len(scores)):
        e = exp(scores[i] * scaling - big)
        total += e
        bits[i] = short(rounded(e))
    return total


@kernel
def _softmax(scores: Any, bits: Any, far: Any, near: Any, scaling: Any, lanes: Any) -> Any:
    """Weights of one query over the scores in two ranges, 0 around them; what they are divided by."""
    (a, b), (c, d, last) = far, near
    bits[:a] = np.int16(0)
    bits[b:c] = np.int16(0)
    bits[d:last] = np.int16(0)
    big = max(largest(scores[a:b], lanes), largest(scores[c:d], lanes)) * scaling
    return _weights(scores[a:b], scaling, big, bits[a:b]) + _weights(scores[c:d], scaling, big, bits[c:d])


@kernel
def attend(
    layer: Any, index: Any, kv: Any, shape: Any, cache: Any, state: Any, plan: Any, window: Any, room: Any
) -> None:
    """Heads of the group ``kv``, of the tokens of one block: mixed values into the rows of the tiles."""
    scores, bits, mixed = room
    hd, past, group, deep = shape.head_dim, cache.past, shape.heads // shape.kv_heads, shape.padded // STEP
    begin, count = plan.blocks[index, 0], plan.blocks[index, 1]
    stride, far, tiles = len(scores) // LANES, _whole(past), _whole(cache.room) // STEP
    last = 0
    for t in range(begin, begin + count):
        last = max(last, state.at[t] - past + 1)
    near, query = _whole(last), (kv * len(state.x) + begin) * group * shape.padded
    size, held = far * shape.padded, tiles * STEP * shape.padded
    shared, own = kv * size * 2, (state.rows[begin] * shape.kv_heads + kv) * held * 2
    keys = carray(pointer(cache.shared[layer, 0] + shared), size, np.int16)
    for g in range(far // STEP):
        multiply(keys, g * deep * 2 * TILE, deep, state.query, query, shape.padded, LANES, 0,
                 scores, g * PAIR, stride, LANES)  # fmt: skip
    keys = carray(pointer(cache.packed[layer, 0] + own), held, np.int16)
    for g in range(near // STEP):
        multiply(keys, g * deep * 2 * TILE, deep, state.query, query, shape.padded, LANES, 0,
                 scores, far + g * PAIR, stride, LANES)  # fmt: skip
    totals, lanes = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for r in range(count * group):
        at = state.at[begin + r // group]
        first = max(0, at + 1 - window) if window > 0 else 0
        totals[r] = _softmax(
            scores[r * stride : (r + 1) * stride], bits[r * (stride + LANES) : (r + 1) * (stride + LANES)],
            (min(first, past), past), (far + max(0, first - past), far + at - past + 1, far + near),
            np.float32(shape.scaling), lanes,
        )  # fmt: skip
    values = carray(pointer(cache.shared[layer, 1] + shared), size, np.int16)
    for g in range(deep):
        multiply(values, g * far * 2 * LANES, far // STEP, bits, 0, stride + LANES, LANES, 0,
                 mixed[0], g * PAIR, shape.padded, LANES)  # fmt: skip
    values = carray(pointer(cache.packed[layer, 1] + own), held, np.int16)
    for g in range(deep):
        multiply(values, g * tiles * 2 * TILE, near // STEP, bits, far, stride + LANES, LANES, 0,
                 mixed[1], g * PAIR, shape.padded, LANES)  # fmt: skip
    for r in range(count * group):
        place = (begin + r // group) * (shape.heads * hd + STEP) + (kv * group + r % group) * hd
        one, other = (
            mixed[0, r * shape.padded : (r + 1) * shape.padded],
            mixed[1, r * shape.padded : (r + 1) * shape.padded],
        )
        into, total = state.mixed[place : place + hd], totals[r]
        for i in range(hd):
            into[i] = short(rounded((one[i] + other[i]) / total))
