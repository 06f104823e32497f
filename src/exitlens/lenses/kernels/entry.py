"""The kernels of the compiled pass over logits: PyTorch's logits, those of tile registers, and single ones."""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
from numba import njit

from exitlens.compute.tiles import STEP, reset_tiles, set_tiles, tile_settings
from exitlens.lenses.kernels.amx import BLOCK, HELD, beside, block, fetch
from exitlens.lenses.kernels.lanes import LANES, add, any_above, fma, load, maximum, multiply, splat, store, total
from exitlens.lenses.kernels.sums import Reference, Sums, carry, kernel, look, settle, take, transform

__all__ = ["BLOCK", "HELD", "TILE", "Reference", "Sums", "at_ids", "from_tile", "fused", "tile_settings"]

_inlined = njit(inline="always")
TILE = 32  # tokens; a tile has BLOCK rows of logits
_ROOM = np.float32(40.0)  # nats over the largest logit so far that float32 sums relative to that one still bear


@kernel
@no_type_check
def _take_alone(
    z: Any, at: Any, tokens: Any, first_id: Any, row: Any, state: Any, ref: Any, lane: Any, other: Any, how: Any
) -> None:
    """:func:`take` where it is rare, and a copy of its code would only be in the way."""
    take(z, at, BLOCK, tokens, first_id, row, state, ref, lane, other, how)


@kernel
@no_type_check
def _grow(state: Any, row: Any, c: Any, c_b: Any, ref: Any, lane: Any, other: Any, how: Any) -> None:
    """Larger logits were in a tile that was summed relative to the old ones: carry the sums, and what others meet."""
    shrink, shrink_b = carry(state.shift, state.sums, row, c), carry(state.shift, state.sums, row + LANES, c_b)
    if how & 1:
        n = len(ref.grown)
        store(ref.grown, lane, shrink)
        store(ref.grown, other, shrink_b)
        for t in range(0, TILE * n, n):
            store(ref.e, t + lane, multiply(load(ref.e, t + lane), shrink))
            store(ref.e, t + other, multiply(load(ref.e, t + other), shrink_b))


@_inlined
@no_type_check
def _take_held(
    held: Any, z: Any, at: Any, first_id: Any, row: Any, state: Any, ref: Any, lane: Any, other: Any, how: Any
) -> None:
    """As :func:`take` of a whole tile, from sums relative to the largest logits before it (:func:`.amx.beside`)."""
    big, big_b = load(held, 8 * LANES), load(held, 9 * LANES)
    c, c_b = load(state.shift, row), load(state.shift, row + LANES)
    room = splat(_ROOM)
    if any_above(big, add(c, room)) | any_above(big_b, add(c_b, room)):
        _take_alone(z, at, TILE, first_id, row, state, ref, lane, other, how)
    else:
        found = (
            load(held, 0), load(held, LANES), load(held, 2 * LANES), load(held, 3 * LANES),
            load(held, 4 * LANES), load(held, 5 * LANES), load(held, 6 * LANES), load(held, 7 * LANES),
        )  # fmt: skip
        settle(found, row, state, ref, lane, other, how)
        if how & 1:
            store(ref.grown, lane, splat(np.float32(1.0)))
            store(ref.grown, other, splat(np.float32(1.0)))
        if any_above(big, c) | any_above(big_b, c_b):
            _grow(state, row, maximum(big, c), maximum(big_b, c_b), ref, lane, other, how)
        look(z, at, BLOCK, TILE, first_id, row, state, big, big_b)


@kernel
@no_type_check
def from_tile(z: Any, tokens: Any, first_id: Any, bias: Any, cap: Any, how: Any, parts: Any) -> None:
    """Take logits ``z [tokens·rows]`` that were multiplied elsewhere, float32 or bf16: ``how`` 0 or 4."""
    state, ref, scratch = parts
    rows = len(state.shift)
    for t in range(0, tokens, TILE):
        count = min(TILE, tokens - t)
        for row in range(0, rows, BLOCK):
            # Rows of a wide tile lie a power of two apart and would push each other out of the cache.
            for i in range(count):
                store(scratch, i * BLOCK, load(z, (t + i) * rows + row))
                store(scratch, i * BLOCK + LANES, load(z, (t + i) * rows + row + LANES))
            if len(bias) or cap > 0:
                transform(scratch, 0, BLOCK, count, bias, first_id + t, cap)
            take(scratch, 0, BLOCK, count, first_id + t, row, state, ref, 0, 0, how)


@kernel
@no_type_check
def fused(
    weight: Any, vocab: Any, width: Any, tiles: Any, right: Any, repeats: Any, repeats_ref: Any, chunk: Any,
    bias: Any, cap: Any, lanes: Any, how: Any, parts: Any, out: Any, settings: Any,
) -> None:  # fmt: skip
    """Product and sums in one: a tile's logits never leave the cache of the core that made them.

    ``weight [vocab·width]`` bf16; ``tiles``: the numbers of those to do. ``right``: first the rows that others are
    compared with, as many as ``grown`` has, then the others, packed for the tile registers
    (:func:`.compiled._packed`), ``repeats_ref`` and ``repeats`` parts each, which add up to a row. Row r of the others
    meets row r mod ``lanes`` of those. Weights are taken ``chunk`` × 32 columns at a time, which stay in the first
    cache while all rows pass by; ``out [2·blocks·1024]`` holds the sums so far.

    A block's logits are summed up while the next block is multiplied: ``out[at…]``, of block ``row``, wait for it.
    """
    # Numbers alone change from block to block: handing arrays over, counted as they are, costs as much as a block.
    state, ref, held, before = parts
    steps, n = width // STEP, len(ref.grown)
    set_tiles(settings, before)
    most = max(n, len(state.shift) - n) // BLOCK
    waits, side = False, 0
    at, id_, row, lane, other, kind = 0, 0, 0, 0, 0, 0
    for number in range(len(tiles)):
        first_id = tiles[number] * TILE
        ahead = tiles[min(number + 1, len(tiles) - 1)] * TILE * width
        tokens = min(TILE, vocab - first_id)
        start = min(first_id, vocab - TILE)  # the last tile is filled up with the tokens before it
        skip = (first_id - start) * BLOCK
        for others in range(2):
            blocks, times, begin = n // BLOCK, repeats_ref, 0
            if others:
                blocks, times, begin = (len(state.shift) - n) // BLOCK, repeats, n * width * repeats_ref
            side = 1 - side if chunk < steps and blocks else side
            for column in range(0, steps, chunk):
                size = min(chunk, steps - column)
                for b in range(blocks):
                    # Logits that wait are not overwritten; two places that stay in the first cache, where two will do.
                    side = 1 - side if chunk >= steps else side
                    place = (side if chunk >= steps else side * most + b) * 1024
                    origin = begin + (column * blocks + b * size) * times * 1024
                    if others and column == 0 and ahead + TILE * width <= len(weight):
                        # The next tile's weights come from memory meanwhile.
                        fetch(weight, ahead + b * TILE // blocks * width, ahead + (b + 1) * TILE // blocks * width)
                    left, fresh = start * width + column * STEP, column == 0
                    if waits:
                        beside(
                            weight, left, width, right, origin, size, times, out, place, fresh,
                            out, at, state.shift, row, ref.e, n, lane, other, kind, held,
                        )  # fmt: skip
                        _take_held(held, out, at, id_, row, state, ref, lane, other, kind)
                        waits = False
                    else:
                        block(weight, left, width, right, origin, size, times, out, place, fresh)
                    if column + size == steps:
                        at, id_, row = place, first_id, b * BLOCK
                        lane, other, kind = row, row + LANES, (how & 4) | 1
                        if others:
                            lane, other, row, kind = row % lanes, (row + LANES) % lanes, row + n, how
                        waits = tokens == TILE
                        if len(bias) or cap > 0:
                            transform(out, at + skip, BLOCK, tokens, bias, first_id, cap)
                        if not waits:
                            _take_alone(out, at + skip, tokens, id_, row, state, ref, lane, other, kind)
    if waits:
        _take_alone(out, at, TILE, id_, row, state, ref, lane, other, kind)
    reset_tiles(before)


@kernel
@no_type_check
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
