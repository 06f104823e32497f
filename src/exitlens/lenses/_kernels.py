"""The compiled pass over logits: what every statistic is made of, read from a tile while it lies in the cache.

A tile is 32 tokens × the rows of the block, tokens in the outer order, so that a vector holds 16 rows and no sum runs
across its lanes. Per row and tile, with ``c`` the largest logit so far:

    total += Σ e^(z−c)    first += Σ (z−c) e^(z−c)    second += Σ (z−c)² e^(z−c)    cross += Σ e^(z_ref−c_ref) z

float32 within a tile, float64 from tile to tile. Where c grows by δ the sums are carried over (the online softmax of
Milakov and Gimelshein 2018, arXiv 1805.02867, for higher moments):

    total ← e^−δ total    first ← e^−δ (first − δ total)    second ← e^−δ (second − 2δ first + δ² total)

The largest logits are kept in a sorted list a row; a tile is looked through only where its largest logit enters it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import config, njit
from numpy.typing import NDArray

from exitlens.lenses import _amx
from exitlens.lenses._lanes import (
    LANES, add, any_above, divide, exp, fma, load, maximum, multiply, signed, splat, store, subtract, total, widen,
)  # fmt: skip

__all__ = ["TILE", "Reference", "Sums", "at_ids", "from_tile", "fused", "tile_settings"]

TILE = 32  # tokens
_LOWEST = np.float32(-87.0)  # e^−87 = 1.6e-38, the least that float32 holds in full
_begin, _end, _block = _amx.begin, _amx.end, _amx.block
tile_settings = _amx.settings
# No folder to keep machine code in: :func:`._compiled.kernels`.
_kernel = njit(nogil=True, cache=bool(config.CACHE_DIR), error_model="numpy")


class Sums(NamedTuple):
    """State of the rows, padded to whole vectors: ``shift``, ``floor`` (the least of the list) ``[rows]``, ``sums``
    ``[4·rows]`` (total, first, second, cross), ``best``, ``ids`` ``[rows·k]``.
    """

    shift: NDArray[np.float32]
    sums: NDArray[np.float64]
    floor: NDArray[np.float32]
    best: NDArray[np.float32]
    ids: NDArray[np.int32]


class Reference(NamedTuple):
    """What the rows are compared with, of one tile: ``e`` = e^(z_ref−c_ref) ``[TILE·n]``, and ``grown`` = e^−δ ``[n]``."""

    e: NDArray[np.float32]
    grown: NDArray[np.float32]


@_kernel
def _enter(z: Any, at: Any, step: Any, tokens: Any, first_id: Any, row: Any, state: Any) -> None:
    """Logits of one row over its list's least go into the list, in the order of ids: equal ones stay behind."""
    k = len(state.best) // len(state.floor)
    least = state.floor[row]
    base = row * k
    for t in range(tokens):
        value = z[at + t * step]
        if value > least:
            place = k - 1
            while place > 0 and state.best[base + place - 1] < value:
                state.best[base + place] = state.best[base + place - 1]
                state.ids[base + place] = state.ids[base + place - 1]
                place -= 1
            state.best[base + place] = value
            state.ids[base + place] = first_id + t
            least = state.best[base + k - 1]
    state.floor[row] = least


@_kernel
def _carry(row: Any, new: Any, state: Any) -> Any:
    """Sums of 16 rows, from the old largest logit to the new; e^−δ."""
    rows = len(state.shift)
    step = maximum(splat(_LOWEST), subtract(load(state.shift, row), new))
    shrink = exp(step)
    by, wide = widen(shrink), widen(step)
    total_, first = load(state.sums, row), load(state.sums, rows + row)
    second = load(state.sums, 2 * rows + row)
    moved = fma(wide, total_, first)
    second = fma(wide, add(first, moved), second)
    store(state.sums, row, multiply(by, total_))
    store(state.sums, rows + row, multiply(by, moved))
    store(state.sums, 2 * rows + row, multiply(by, second))
    store(state.shift, row, new)
    return shrink


@_kernel
def _take(z: Any, at: Any, step: Any, tokens: Any, first_id: Any, row: Any, state: Any, ref: Any, lane: Any, how: Any) -> None:
    """Sixteen rows of a tile: ``z[at + step·t + lane]``.

    ``how`` 0: sums alone; 1: these are the rows that others are compared with, at ``lane`` of ``ref``; 2: compare with
    them; 4 more: second moments.
    """
    rows = len(state.shift)
    n = len(ref.grown)
    big = splat(np.float32(-np.inf))
    for t in range(tokens):
        big = maximum(load(z, at + t * step), big)
    c = load(state.shift, row)
    if any_above(big, c) != 0:
        c = maximum(big, c)
        shrink = _carry(row, c, state)
        if how & 1:
            store(ref.grown, lane, shrink)
    elif how & 1:
        store(ref.grown, lane, splat(np.float32(1.0)))
    zero = splat(np.float32(0.0))
    total_, first, second, cross = zero, zero, zero, zero
    least = splat(_LOWEST)
    if how == 2:
        for t in range(tokens):
            x = load(z, at + t * step)
            d = maximum(least, subtract(x, c))
            e = exp(d)
            total_ = add(total_, e)
            first = fma(d, e, first)
            cross = fma(load(ref.e, t * n + lane), x, cross)
    else:
        for t in range(tokens):
            x = load(z, at + t * step)
            d = maximum(least, subtract(x, c))
            e = exp(d)
            total_ = add(total_, e)
            first = fma(d, e, first)
            if how & 4:
                second = fma(multiply(d, d), e, second)
            if how & 2:
                cross = fma(load(ref.e, t * n + lane), x, cross)
            if how & 1:
                store(ref.e, t * n + lane, e)
    store(state.sums, row, add(load(state.sums, row), widen(total_)))
    store(state.sums, rows + row, add(load(state.sums, rows + row), widen(first)))
    if how & 4:
        store(state.sums, 2 * rows + row, add(load(state.sums, 2 * rows + row), widen(second)))
    if how & 2:
        place = 3 * rows + row
        store(state.sums, place, fma(load(state.sums, place), widen(load(ref.grown, lane)), widen(cross)))
    if len(state.best):
        above = any_above(big, load(state.floor, row))
        for i in range(LANES):
            if above >> i & 1:
                _enter(z, at + i, step, tokens, first_id, row + i, state)


@_kernel
def _transform(z: Any, at: Any, step: Any, tokens: Any, bias: Any, first_id: Any, cap: Any) -> None:
    """Bias (where there is one) and soft-cap (where it is over 0) of 16 rows of a tile, in place."""
    one, zero, least = splat(np.float32(1.0)), splat(np.float32(0.0)), splat(_LOWEST)
    for t in range(tokens):
        x = load(z, at + t * step)
        if len(bias):
            x = add(x, splat(bias[first_id + t]))
        if cap > 0:
            # tanh |x| = (1 − q) / (1 + q), q = e^−2|x|, within 4e-7. Added x − x keeps what is not finite NaN.
            q = exp(maximum(least, multiply(splat(np.float32(-2.0)), maximum(x, subtract(zero, x)))))
            x = add(signed(divide(subtract(one, q), add(one, q)), x), subtract(x, x))
            x = multiply(splat(cap), x)
        store(z, at + t * step, x)


@_kernel
def from_tile(z: Any, tokens: Any, first_id: Any, bias: Any, cap: Any, how: Any, parts: Any) -> None:
    """Take logits ``z [tokens·rows]`` that were multiplied elsewhere, float32 or bf16: ``how`` 0 or 4."""
    state, _, ref, scratch = parts
    rows = len(state.shift)
    for t in range(0, tokens, TILE):
        count = min(TILE, tokens - t)
        for row in range(0, rows, LANES):
            _copy(z, t * rows + row, rows, count, scratch)
            if len(bias) or cap > 0:
                _transform(scratch, 0, LANES, count, bias, first_id + t, cap)
            _take(scratch, 0, LANES, count, first_id + t, row, state, ref, 0, how)


@_kernel
def _copy(z: Any, at: Any, step: Any, tokens: Any, scratch: Any) -> None:
    # Rows of a wide tile lie a power of two apart and would push each other out of the cache.
    for t in range(tokens):
        store(scratch, t * LANES, load(z, at + t * step))


@_kernel
def fused(
    weight: Any, vocab: Any, width: Any, tiles: Any, right: Any, repeats: Any, right_ref: Any, repeats_ref: Any, chunk: Any,
    bias: Any, cap: Any, how: Any, parts: Any, out: Any, out_ref: Any, settings: Any,
) -> None:
    """Product and sums in one: a tile's logits never leave the cache of the core that made them.

    ``weight [vocab·width]`` bf16; ``tiles``: the numbers of those to do. ``right``: the rows, packed for the tile
    registers 32 by 32 (:func:`._compiled.packed`), ``repeats`` parts each, which add up to a row; ``right_ref``: those
    they are compared with. A tile's weights are taken ``chunk`` × 32 columns at a time, which stay in the first cache
    while all rows pass by; ``out [blocks·1024]`` holds the sums so far.
    """
    state, own, ref, _ = parts
    steps = width // _amx.STEP
    pace = steps * 1024
    before = np.zeros(64, dtype=np.uint8)
    _begin(settings, before)
    for tile in tiles:
        first_id = tile * TILE
        tokens = min(TILE, vocab - first_id)
        start = min(first_id, vocab - TILE)  # the last tile is filled up with the tokens before it
        skip = (first_id - start) * _amx.BLOCK
        for blocks, packed, times, sums, target, kind in (
            (len(right_ref) // (pace * repeats_ref), right_ref, repeats_ref, own, out_ref, (how & 4) | 1),
            (len(right) // (pace * repeats), right, repeats, state, out, how),
        ):
            n = len(ref.grown)
            for column in range(0, steps, chunk):
                size = min(chunk, steps - column)
                for b in range(blocks):
                    _block(
                        weight, start * width + column * _amx.STEP, width,
                        packed, b * pace * times + column * 1024, size, times, pace, target, b * 1024, column == 0,
                    )  # fmt: skip
                    if column + size == steps:
                        for half in range(0, _amx.BLOCK, LANES):
                            row = b * _amx.BLOCK + half
                            if row < len(sums.shift):
                                at = b * 1024 + skip + half
                                if len(bias) or cap > 0:
                                    _transform(target, at, _amx.BLOCK, tokens, bias, first_id, cap)
                                _take(target, at, _amx.BLOCK, tokens, first_id, row, sums, ref, row % max(n, 1), kind)
    _end(before)


@_kernel
def at_ids(x: Any, weight: Any, width: Any, ids: Any, rows: Any, found: Any) -> None:
    """``found[r·k + i] = ⟨x_r, w_v⟩``, v = ``ids[r·k + i]``, for each r of ``rows``; weights float32 or bf16."""
    k = len(ids) // (len(x) // width)
    for r in rows:
        for i in range(r * k, (r + 1) * k):
            base = ids[i] * width
            a, b = splat(np.float32(0.0)), splat(np.float32(0.0))
            for c in range(0, width, 2 * LANES):
                a = fma(load(x, r * width + c), load(weight, base + c), a)
                b = fma(load(x, r * width + c + LANES), load(weight, base + c + LANES), b)
            found[i] = total(add(a, b))
